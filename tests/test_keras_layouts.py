"""Files of real Keras in all layouts, read and written; tests/data/make_keras_layouts.py made them.

The model is flatten, dense_1 (relu), dense_2 (tanh, no bias), dropout, the model inner of up (relu)
and down, and dense_10.
"""

import io
import json
import shutil
import warnings
import zipfile
from pathlib import Path

import flax.linen as nn
import h5py
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_keras_h5 import assert_same, everything
from test_keras_models import sequential

import dogwood_jax as dw
from dogwood_jax import keras_h5
from dogwood_jax._base.trees import leaves_by_path
from dogwood_jax.keras_h5._models.model import build

DATA = Path(__file__).parent / "data" / "keras_layouts"
FILES = sorted(path for path in DATA.iterdir() if path.suffix != ".npz")
LAYERS = ("dense_1", "dense_2", "inner", "dense_10")


def layout(path):
    """The layout by the name that make_keras_layouts.py gave the file."""
    if path.name.endswith(".w.h5"):
        return "h5"
    if path.name.endswith(".weights.h5"):
        return "weights.h5"
    return "keras" if path.suffix == ".keras" and "2.12" not in path.name else "model.h5"


def of_layout(*layouts):
    found = [path for path in FILES if layout(path) in layouts]
    return pytest.mark.parametrize("path", found, ids=lambda path: path.name)


files = of_layout(*keras_h5._weights.layouts.LAYOUTS)


def stored(path):
    for suffix in (".w.h5", ".weights.h5", ".h5", ".keras"):
        if path.name.endswith(suffix):
            return np.load(DATA / f"{path.name.removesuffix(suffix)}.npz")


def named(variables):
    """The layers of the model by name, also where the file has them by class and position."""
    params = {name: layer for name, layer in variables["params"].items() if layer}
    if params.keys() != {*LAYERS}:
        assert [*params][:2] == ["dense", "dense_1"] or "dense_4" in params
        dense = sorted(name for name in params if name.startswith("dense"))
        inner = params["sequential"]
        inside = dict(zip(("up", "down"), (inner[name] for name in sorted(inner))))
        layers = (params[dense[0]], params[dense[1]], inside, params[dense[2]])
        params = dict(zip(LAYERS, layers))
    return {name: params[name] for name in LAYERS}


def dense(layer, x):
    return x @ layer["kernel"] + layer.get("bias", jnp.zeros(1, "f"))[None]


def predict(params, x):
    x = x.reshape(len(x), -1)
    x = jnp.maximum(dense(params["dense_1"], x), 0)
    x = jnp.tanh(dense(params["dense_2"], x))
    x = jnp.maximum(dense(params["inner"]["up"], x), 0)
    return dense(params["dense_10"], dense(params["inner"]["down"], x))


def contents(path):
    """All that is in a file or archive."""
    if not zipfile.is_zipfile(path):
        with h5py.File(path) as file:
            return everything(file)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with h5py.File(io.BytesIO(members.pop("model.weights.h5"))) as file:
        return members, everything(file)


@files
def test_loaded_weights_predict_what_keras_predicted(path, tmp_path):
    expected = stored(path)
    for name in ("x", "x.h5", "x.weights.h5", "x.keras"):  # the bytes count, not the name
        shutil.copy(path, tmp_path / name)
        params = named(keras_h5.load(tmp_path / name))
        np.testing.assert_allclose(predict(params, expected["x"]), expected["y"], 1e-5, 1e-6)


@files
def test_inspect_says_what_a_file_is_without_reading_arrays(path, monkeypatch):
    def refuse(*_):
        raise AssertionError("read an array")

    monkeypatch.setattr(h5py.Dataset, "__getitem__", refuse)
    found = keras_h5.inspect(path)
    assert found.layout == layout(path)
    version = path.name.split("_")[-1].split(".")[:2]
    if found.layout != "weights.h5":
        # tf.keras of TensorFlow 2.2 calls itself 2.3.0-tf.
        assert found.keras_version.split(".")[:2] == version
        assert [layer.name for layer in found.layers if layer.arrays] == list(LAYERS)
    if found.layout in ("model.h5", "keras"):
        assert found.model == "Sequential" and found.optimizer >= 19
    shapes = {
        array.shape for layer in found.layers for array in layer.arrays if array.name == "kernel"
    }
    assert shapes == {(6, 5), (5, 4), (4, 3)} and found.unconverted == ()
    assert "float32" in str(found) and found.layout in str(found)
    assert hash(found) == hash(keras_h5.inspect(path))


@files
def test_like_keeps_everything_of_a_file(path, tmp_path):
    variables = keras_h5.load(path)
    sorted_by_jax = jax.jit(lambda variables: variables)(variables)
    keras_h5.save(tmp_path / "new", sorted_by_jax, like=path)
    assert contents(tmp_path / "new") == contents(path)
    assert_same(keras_h5.load(tmp_path / "new"), variables)


@of_layout("model.h5", "keras")
@pytest.mark.parametrize("new", ["h5", "weights.h5"])
def test_whole_models_are_saved_in_the_layouts_of_weights(path, new, tmp_path):
    variables = keras_h5.load(path)
    keras_h5.save(tmp_path / "new", variables, like=path, layout=new)
    assert keras_h5.inspect(tmp_path / "new").layout == new
    loaded = keras_h5.load(tmp_path / "new")
    expected = stored(path)
    np.testing.assert_allclose(predict(named(loaded), expected["x"]), expected["y"], 1e-5, 1e-6)
    if new == "h5":  # which alone keeps the order of layers
        assert [*loaded["params"]] == [*variables["params"]]


@of_layout("model.h5", "keras")
@pytest.mark.long
def test_a_grown_model_says_its_sizes(path, tmp_path):
    module, variables = keras_h5.load_model(path)
    expected = stored(path)
    widths = dw.trace(module.apply, variables, expected["x"])
    growth = dw.plan(widths, {"dense_1": 16, "inner/up": 7})
    wide = dw.grow(variables, growth, key=jax.random.key(0))
    keras_h5.save(tmp_path / "wide", wide, like=path)
    module, variables = keras_h5.load_model(tmp_path / "wide")
    assert variables["params"]["dense_1"]["kernel"].shape == (6, 16)
    assert variables["params"]["inner"]["down"]["kernel"].shape == (7, 4)
    y = module.apply(variables, expected["x"])
    np.testing.assert_allclose(y, expected["y"], 1e-5, 1e-6)
    found = keras_h5.inspect(tmp_path / "wide")
    assert found.optimizer == 0 and found.layout == layout(path)
    assert found.keras_version == keras_h5.inspect(path).keras_version


@of_layout("model.h5", "keras")
def test_training_goes_on_where_keras_left_it(path):
    expected = stored(path)
    params = keras_h5.load(path)["params"]
    with warnings.catch_warnings():
        if "3.0.5" in path.name:
            warnings.simplefilter("ignore", RuntimeWarning)  # that it does not say Adam
        state = keras_h5.load_optimizer(path)
    assert state.count == 2
    tx = optax.adam(0.1, eps=1e-7 / np.sqrt(1 - 0.999**3))  # what Keras adds, before step 3
    loss = lambda params: jnp.mean((predict(params, expected["x"]) - expected["t"]) ** 2)  # noqa: E731
    assert jax.tree.structure(state.mu) == jax.tree.structure(params)

    @jax.jit
    def step(params, state):
        _, *rest = tx.init(params)
        updates, _ = tx.update(jax.grad(loss)(params), (state, *rest))
        return optax.apply_updates(params, updates)

    after = named({"params": step(params, state)})
    inner = after["inner"]
    order = [after["dense_1"], after["dense_2"], inner["up"], inner["down"], after["dense_10"]]
    arrays = [layer[name] for layer in order for name in ("kernel", "bias") if name in layer]
    if path.name.startswith("keras_2"):
        return  # counts a step before it takes it or after, as TensorFlow 1.15 happens to do it
    for i, array in enumerate(arrays):
        np.testing.assert_allclose(array, expected[f"after_{i}"], rtol=1e-3, atol=1e-4)


@of_layout("model.h5", "keras")
@pytest.mark.filterwarnings("ignore:.* does not (name its|record the) optimizer:RuntimeWarning")
def test_moments_come_back_in_their_places(path, tmp_path):
    variables, state = keras_h5.load(path), keras_h5.load_optimizer(path)
    other = jax.tree.map(lambda array: array + 1, state)
    for new in (other, state):
        keras_h5.save(tmp_path / "new", variables, like=path, opt_state=(new, optax.EmptyState()))
        jax.tree.map(np.testing.assert_array_equal, keras_h5.load_optimizer(tmp_path / "new"), new)
    assert contents(tmp_path / "new") == contents(path)


def test_only_moments_that_fit_have_a_place(tmp_path):
    path = DATA / "tensorflow_2.12.0.h5"
    variables, state = keras_h5.load(path), keras_h5.load_optimizer(path)
    bias = {"kernel": state.nu["dense_1"]["kernel"], "bias": np.ones(6)}
    wrong = state._replace(count=np.ones(2), mu={}, nu={**state.nu, "dense_1": bias, "x": bias})
    sgd, amsgrad = tmp_path / "sgd.h5", tmp_path / "amsgrad.h5"
    for other, old, new in ((sgd, "Adam", "SGD"), (amsgrad, 'amsgrad": false', 'amsgrad": true')):
        shutil.copy(path, other)
        with h5py.File(other, "r+") as file:
            file.attrs["training_config"] = file.attrs["training_config"].replace(old, new)
    weights = DATA / "tensorflow_2.12.0.w.h5"
    for options, messages in (
        ({"opt_state": state}, ["pass like="]),
        ({"opt_state": state, "like": path, "layout": "h5"}, ["cannot be saved in layout 'h5'"]),
        ({"opt_state": state, "like": weights}, ["no place in", "expected a whole model with"]),
        ({"opt_state": state, "like": sgd}, ["no place in", "Adagrad or SGD; found 'Custom>SGD'"]),
        ({"opt_state": state, "like": amsgrad}, ["has amsgrad, which Optax's state lacks"]),
        ({"opt_state": optax.sgd(1).init(variables), "like": path}, ["expected the state of Adam"]),
        (
            {"opt_state": wrong, "like": path},
            [
                "count: expected one number, got shape (2,)",
                "mu of dense_{1,2,10}/kernel: is missing",
                "nu of dense_1/bias: has shape (6,), its weight (5,)\n  grow the state with",
                "nu of x/{kernel,bias}: is not among the variables",
            ],
        ),
    ):
        with pytest.raises(ValueError) as error:
            keras_h5.save(tmp_path / "new.h5", variables, **options)
        assert all(message in str(error.value) for message in messages), str(error.value)
    assert not (tmp_path / "new.h5").exists()


def test_layers_of_tensorflow_2_12_are_counted_twice(tmp_path):
    """As its archives hold them: weights by position, and beside them the config."""
    whole, path = DATA / "tensorflow_2.12.0.h5", tmp_path / "model.keras"
    with h5py.File(whole) as file, zipfile.ZipFile(path, "w") as archive:
        archive.write(DATA / "tensorflow_2.12.0.weights.h5", "model.weights.h5")
        archive.writestr("config.json", file.attrs["model_config"])
        archive.writestr("metadata.json", json.dumps({"keras_version": "2.12.0"}))
    leaves, wanted = (leaves_by_path(keras_h5.load(each)) for each in (path, whole))
    jax.tree.map(np.testing.assert_array_equal, leaves, wanted)


def test_step_counts_have_no_place_in_a_file(tmp_path):
    path = DATA / "tensorflow_2.12.0.h5"
    variables, state = keras_h5.load(path), keras_h5.load_optimizer(path)
    tx = dw.growable(optax.scale_by_adam())
    grown = tx.init(variables["params"])._replace(inner_state=state, step_counts=("some",))
    with pytest.warns(RuntimeWarning, match="Keras has one count for all entries"):
        keras_h5.save(tmp_path / "new.h5", variables, like=path, opt_state=grown)


def test_moments_without_names_are_told_by_their_order():
    path = DATA / "keras_2.0.9.h5"
    state = keras_h5.load_optimizer(path)
    names = ["dense_1/kernel", "dense_1/bias", "dense_2/kernel", "inner/up/kernel"]
    with h5py.File(path) as file:
        slots = file["optimizer_weights/training/Adam"]
        for number, name in enumerate(names):
            for tree, offset in ((state.mu, 0), (state.nu, 9)):
                slot = slots[f"Variable_{number + offset}:0" if number + offset else "Variable:0"]
                for key in name.split("/"):
                    tree = tree[key]
                np.testing.assert_array_equal(tree, slot)


def archive(path, shapes, frozen, numbers, optimizer=None):
    """Writes an archive of Dense layers, and an optimizer with an array for each layer named.

    A layer of shape () is an Attention with a scale; then there is a learning rate, too.
    """
    layers = [
        {"class_name": "Dense", "config": {"name": f"d{i}", "use_bias": False, "trainable": t}}
        for i, t in enumerate(not f for f in frozen)
    ]
    settings = [3] if () not in shapes else [3, 0.1]
    with h5py.File(path.with_suffix(".h5"), "w") as file:
        for i, shape in enumerate(shapes):
            group = f"dense{f'_{i}' if shapes[:i] and shapes[0] else ''}"
            if shape == ():
                layers[i]["class_name"], layers[i]["config"]["use_scale"] = "Attention", True
                group = "attention"
            file[f"layers/{group}/vars/0"] = np.zeros(shape)
        for place, value in enumerate(settings):
            file[f"optimizer/vars/{place}"] = value
        for place, i in enumerate(numbers, len(settings)):
            file[f"optimizer/vars/{place}"] = np.full(shapes[i], place)
    with zipfile.ZipFile(path, "w") as file:
        config = {"class_name": "Sequential", "config": {"layers": layers}}
        config["compile_config"] = {"optimizer": optimizer}
        file.writestr("config.json", json.dumps(config))
        file.write(path.with_suffix(".h5"), "model.weights.h5")


@pytest.mark.filterwarnings("ignore:.* does not (name its|record the) optimizer:RuntimeWarning")
@pytest.mark.parametrize(
    ("numbers", "frozen", "places"),
    [
        ([0, 0, 1, 1], [False, False], [1, 3, 2, 4]),
        ([0, 0, 1, 1, 0, 1], [False, False], [1, 3, 2, 4]),  # amsgrad
        ([0, 1, 0, 0, 1, 1], [False, False], [3, 5, 4, 6]),  # use_ema
        ([0, 0, 1, 1], [False, True], [1, 3, 2, 4]),
        ([0, 0], [False, True], [1, 0, 2, 0]),
    ],
)
def test_moments_in_archives(numbers, frozen, places, tmp_path):
    archive(tmp_path / "model.keras", [(2, 3), (3, 4)], frozen, numbers)
    state = keras_h5.load_optimizer(tmp_path / "model.keras")
    found = [tree[name]["kernel"] for tree in (state.mu, state.nu) for name in ("d0", "d1")]
    for array, place in zip(found, places):
        assert np.all(array == place)


@pytest.mark.parametrize(
    ("name", "options", "tx", "unit"),
    [
        ("RMSprop", {"learning_rate": 0.5}, optax.rmsprop(0.5), 1),
        ("Adagrad", {"learning_rate": 0.5}, optax.adagrad(0.5), 1),
        ("SGD", {"momentum": 0.9, "learning_rate": 0.5}, optax.sgd(0.5, 0.9), -0.5),
    ],
)
def test_optimizers_with_one_array_for_each_weight(name, options, tx, unit, tmp_path):
    path, wide = tmp_path / "model.keras", tmp_path / "wide.keras"
    optimizer = {"module": "keras.optimizers", "class_name": name, "config": options}
    archive(path, [(2, 3), (3, 4)], [False, False], [0, 1], optimizer)
    variables, state = keras_h5.load(path), keras_h5.load_optimizer(path)
    first, *rest = tx.init(variables["params"])
    assert jax.tree.structure(first) == jax.tree.structure(state)
    assert [np.unique(a * unit) for a in jax.tree.leaves(state)] == [1, 2]
    widths = dw.trace(
        lambda v, x: x @ v["d0"]["kernel"] @ v["d1"]["kernel"], variables["params"], np.ones((1, 2))
    )
    growth = dw.plan(widths, {"d0": 5})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # that new entries take large steps
        grown = dw.grow_opt_state((state, *rest), growth, tx)
    variables = {"params": dw.grow(variables["params"], growth, key=jax.random.key(0))}
    keras_h5.save(wide, variables, like=path, opt_state=grown)
    back = keras_h5.load_optimizer(wide)
    jax.tree.map(np.testing.assert_array_equal, back, grown[0])
    assert [a.shape for a in jax.tree.leaves(back)] == [(2, 5), (5, 4)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"momentum": 0.0, "learning_rate": 0.5}, "expected SGD with momentum; found it without"),
        ({"momentum": 0.9, "learning_rate": {}}, "expected one learning rate; found {}"),
        ({"momentum": 0.9, "learning_rate": 0.5, "decay": 0.1}, "found 0.5 with decay"),
    ],
)
def test_steps_that_do_not_tell_gradients_are_refused(options, message, tmp_path):
    optimizer = {"module": "keras.optimizers", "class_name": "SGD", "config": options}
    archive(tmp_path / "model.keras", [(2, 3)], [False], [0], optimizer)
    with pytest.raises(keras_h5.KerasFileError, match=message):
        keras_h5.load_optimizer(tmp_path / "model.keras")


@pytest.mark.filterwarnings("ignore:.* does not (name its|record the) optimizer:RuntimeWarning")
@pytest.mark.parametrize("scalar", [0, 1])
def test_moments_of_scalars_are_not_taken_for_settings(scalar, tmp_path):
    shapes = [(2, 3), (2, 3)]
    shapes[scalar] = ()
    path = tmp_path / "model.keras"
    archive(path, shapes, [False, False], [0, 0, 1, 1])
    variables, state = keras_h5.load(path), keras_h5.load_optimizer(path)
    assert jax.tree.map(np.shape, state.mu) == jax.tree.map(np.shape, variables["params"])
    found = [np.max(a) for i in range(2) for t in state[1:] for a in t[f"d{i}"].values()]
    assert found == [2, 3, 4, 5] and state.count == 3
    keras_h5.save(path, variables, like=path, opt_state=jax.tree.map(np.negative, state))
    assert np.max(keras_h5.load_optimizer(path).nu[f"d{scalar}"]["scale"]) == -3 - 2 * scalar


def test_moments_that_can_be_read_in_several_ways_are_refused(tmp_path):
    archive(tmp_path / "model.keras", [(2, 2), (2, 2)], [False, False], [0, 0, 1, 1, 0, 1])
    with pytest.raises(keras_h5.KerasFileError, match="can be read in several ways"):
        keras_h5.load_optimizer(tmp_path / "model.keras")


@of_layout("h5", "weights.h5")
def test_weights_alone_hold_no_optimizer_to_go_on_with(path):
    with pytest.raises(keras_h5.KerasFileError, match="expected a whole model with its optimizer"):
        keras_h5.load_optimizer(path)


def test_the_optimizer_must_be_known(tmp_path):
    path = shutil.copy(DATA / "keras_2.3.1.h5", tmp_path)
    with h5py.File(path, "r+") as file:
        text = file.attrs["training_config"].replace('"Adam"', '"Nadam"')
        file.attrs["training_config"] = text
    with pytest.raises(keras_h5.KerasFileError, match="to be Adam, .* or SGD; found 'Nadam'"):
        keras_h5.load_optimizer(path)


def test_the_folder_of_an_archive_is_one_too(tmp_path):
    path = DATA / "keras_3.15.1.keras"
    with zipfile.ZipFile(path) as archive:
        archive.extractall(tmp_path / "folder")
    assert_same(keras_h5.load(tmp_path / "folder"), keras_h5.load(path))
    assert keras_h5.inspect(tmp_path / "folder") == keras_h5.inspect(path)


def test_the_layers_of_a_class_that_makes_them_itself(tmp_path):
    path, like = tmp_path / "x.keras", tmp_path / "like.keras"
    small = {"dense": {"kernel": np.ones((2, 3))}, "dense_1": {"kernel": np.ones((3, 1))}}
    wide = {"dense": {"kernel": np.ones((2, 5))}, "dense_1": {"kernel": np.ones((5, 1))}}
    keras_h5.save(tmp_path / "small.weights.h5", small)
    net = {"module": None, "class_name": "Net", "registered_name": "Net"}
    net["config"] = {"name": "n", "layers": [3, 1]}
    archived(like, tmp_path / "small.weights.h5", net)
    assert keras_h5.inspect(like).model == "Net" and "not its code" in str(keras_h5.inspect(like))
    with pytest.raises(
        keras_h5.KerasFileError, match="Net.*: its class is not part of Keras.*\n  load reads its"
    ):
        keras_h5.load_model(like)
    assert_same(keras_h5.load(like)["params"], small)
    keras_h5.save(path, small, like=like)
    assert_same(keras_h5.load(path)["params"], small)
    with pytest.raises(ValueError, match="no layers whose sizes could change, because Net"):
        keras_h5.save(path, wide, like=like)
    weights = tmp_path / "x.weights.h5"
    keras_h5.save(weights, wide, like=like, layout="weights.h5")
    assert_same(keras_h5.load(weights)["params"], wide)


def archived(path, weights, config):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", json.dumps(config))
        archive.write(weights, "model.weights.h5")


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ({"module": None, "registered_name": "Dense"}, "__main__>Dense"),
        ({"module": "my.layers", "registered_name": "Dense"}, "my.layers>Dense"),
        ({"module": None, "registered_name": "mine>Other"}, "mine>Other"),
        (
            {"module": "keras_hub.src.layers", "registered_name": "keras_hub>Dense"},
            "keras_hub>Dense",
        ),
        ({"module": "keras.src.layers.core.dense", "registered_name": "Dense"}, "Dense"),
        ({"module": "tf_keras.src.applications.x", "registered_name": "Custom>Dense"}, "Dense"),
        ({"module": "keras_core.layers", "registered_name": None}, "Dense"),
        ({"module": "keras_core.operations.numpy", "registered_name": "Dense"}, "ops.Dense"),
        ({}, "Dense"),
    ],
)
def test_a_class_of_the_user_is_not_taken_for_that_of_keras(said, name, tmp_path):
    path, grown = tmp_path / "x.keras", tmp_path / "grown.keras"
    keras_h5.save(
        tmp_path / "x.weights.h5",
        {"a": {"kernel": np.ones((2, 3))}, "dense": {"kernel": np.ones((3, 1))}},
    )
    config = {"name": "dense", "units": 1, "use_bias": False, "activation": "linear"}
    model = sequential(("Dense", config | {"name": "a", "units": 3}))
    model["config"]["layers"].append({"class_name": "Dense", **said, "config": config})
    archived(path, tmp_path / "x.weights.h5", model)
    found = keras_h5.inspect(path)
    assert [layer.class_name for layer in found.layers] == ["Dense", name]
    params = keras_h5.load(path)["params"]
    if name == "Dense":
        keras_h5.load_model(path)
    else:
        with pytest.raises(keras_h5.KerasFileError, match=rf"dense \({name}\): .* not"):
            keras_h5.load_model(path)
    wide = {
        "a": {"kernel": np.ones((2, 5))},
        "dense": dict.fromkeys(params["dense"], np.ones((5, 1))),
    }
    keras_h5.save(grown, wide, like=path)
    model["config"]["layers"][0]["config"]["units"] = 5
    assert json.loads(zipfile.ZipFile(grown).read("config.json")) == model


def test_a_model_of_a_class_of_the_user_is_what_its_config_describes(tmp_path):
    path, wide = DATA / "keras_3.15.1.keras", tmp_path / "wide.keras"
    with zipfile.ZipFile(path) as archive:
        model = json.loads(archive.read("config.json"))
        weights = archive.extract("model.weights.h5", tmp_path)
    layers = model["config"]["layers"]
    inner = next(layer for layer in layers if layer["config"]["name"] == "inner")
    for described, name in ((model, "Mine"), (inner, "Inner")):
        described |= {"module": None, "class_name": name, "registered_name": name}
    with h5py.File(weights, "r+") as file:
        file.move("layers/sequential", "layers/inner")
    archived(tmp_path / "x.keras", weights, model)
    with pytest.warns(RuntimeWarning, match="(?s)model computes what .* Mine, .*inner .* Inner, "):
        module, variables = keras_h5.load_model(tmp_path / "x.keras")
    expected = stored(path)
    np.testing.assert_allclose(module.apply(variables, expected["x"]), expected["y"], 1e-5, 1e-6)
    widths = dw.trace(module.apply, variables, expected["x"])
    growth = dw.plan(widths, {"dense_1": 16, "inner/up": 7})
    keras_h5.save(
        wide, dw.grow(variables, growth, key=jax.random.key(0)), like=tmp_path / "x.keras"
    )
    found = json.loads(zipfile.ZipFile(wide).read("config.json"))
    inner["config"]["layers"][1]["config"]["units"] = 7
    next(n for n in layers if n["config"]["name"] == "dense_1")["config"]["units"] = 16
    for layer in (*layers, *inner["config"]["layers"]):
        layer.pop("build_config", None)
    for layer in (*(f := found["config"]["layers"]), *f[layers.index(inner)]["config"]["layers"]):
        layer.pop("build_config", None)
    assert found == model
    weights = tmp_path / "wide.weights.h5"
    keras_h5.save(weights, keras_h5.load(wide), like=wide, layout="weights.h5")
    assert "inner" in h5py.File(weights)["layers"]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("x.keras", {}, "layout 'keras' holds a model's configuration\n  pass like="),
        ("x.keras", {"like": "small.h5"}, "expects an archive under .* choose a name"),
        ("x.keras", {"layout": "weights.h5"}, "expects an archive under .* choose a name"),
        ("x.h5", {"like": "model.keras"}, "layout 'keras' is an archive; choose a name"),
    ],
)
def test_a_name_says_archive_or_hdf5(name, options, message, tmp_path):
    like = {"small.h5": tmp_path / "small.h5", "model.keras": DATA / "keras_3.15.1.keras"}
    keras_h5.save(like["small.h5"], {"dense": {"kernel": np.ones((2, 3))}})
    source = like[options.get("like", "small.h5")]
    options = {key: like.get(value, value) for key, value in options.items()}
    with pytest.raises(ValueError, match=message):
        keras_h5.save(tmp_path / name, keras_h5.load(source), **options)
    assert [path.name for path in tmp_path.iterdir()] == ["small.h5"]


def compressed(path, new, method):
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(new, "w", method) as archive:
        for name in old.namelist():
            archive.writestr(name, old.read(name))


def test_a_compressed_archive_is_read(tmp_path):
    path = DATA / "keras_3.15.1.keras"
    compressed(path, tmp_path / "x", zipfile.ZIP_DEFLATED)
    assert_same(keras_h5.load(tmp_path / "x"), keras_h5.load(path))
    compressed(path, tmp_path / "x", zipfile.ZIP_BZIP2)
    with pytest.raises(keras_h5.KerasFileError, match="at config.json: expected it stored plainly"):
        keras_h5.load(tmp_path / "x")


class Layers(nn.Module):
    """One of each layer that can be told without a configuration."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(4, (3, 3), name="conv")(x)
        x = nn.BatchNorm(use_running_average=True, name="batch_normalization")(x)
        x = nn.LayerNorm(name="layer_normalization")(x)
        x = nn.PReLU(name="p_re_lu")(x)
        x = x.reshape(len(x), -1, 4)
        x = nn.RNN(nn.OptimizedLSTMCell(3, parent=None), name="lstm")(x)
        x = nn.RNN(nn.SimpleCell(5, parent=None), name="simple_rnn")(x)
        x = nn.MultiHeadDotProductAttention(2, qkv_features=6, name="multi_head_attention")(x)
        return nn.Dense(2, name="dense")(x)


@pytest.mark.parametrize("new", ["h5", "weights.h5"])
def test_variables_of_flax_come_back_from_a_new_file(new, tmp_path):
    shapes = jax.eval_shape(Layers().init, jax.random.key(0), jnp.ones((1, 4, 4, 2), jnp.float32))
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda s: rng.normal(size=s.shape).astype(s.dtype), shapes)
    variables["params"]["embedding"] = table = {"embedding": np.ones((5, 3), "f")}
    variables["params"]["untied"] = {**table, "reverse_embedding": np.ones((3, 5), "f")}
    for name in ("time_distributed", "rnn", "model"):  # of layers that hold others, which it is not
        variables["params"][name] = {"kernel": np.ones((5, 3)), "bias": np.ones(3)}
    path = tmp_path / f"x.{new}"  # the layout that Keras expects of the name
    keras_h5.save(path, variables)
    assert keras_h5.inspect(path).layout == new
    assert keras_h5.inspect(path).unconverted == ()
    loaded = keras_h5.load(path)
    assert jax.tree.structure(loaded) == jax.tree.structure(variables)
    jax.tree.map(np.testing.assert_array_equal, loaded, variables)


def test_layers_are_counted_by_class_not_by_name(tmp_path):
    layer = lambda i: {"kernel": np.full((2, 2), i, "f")}  # noqa: E731
    params = {"dense_2": layer(2), "dense_1": layer(1), "dense": layer(0)}
    keras_h5.save(tmp_path / "x.weights.h5", params)
    with h5py.File(tmp_path / "x.weights.h5") as file:
        found = {name: file[f"layers/{name}/vars/0"][0, 0] for name in file["layers"]}
    assert found == {"dense": 2, "dense_1": 1, "dense_2": 0}
    loaded = keras_h5.load(tmp_path / "x.weights.h5")["params"]
    assert {name: layer["kernel"][0, 0] for name, layer in loaded.items()} == {
        "dense_2": 2,
        "dense_1": 1,
        "dense": 0,
    }


def test_weights_of_a_model_that_has_none(tmp_path):
    path = tmp_path / "none.weights.h5"
    with h5py.File(path, "w") as file:  # as Keras 3 writes them
        file.create_group("layers/flatten/vars")
    with pytest.raises(keras_h5.KerasFileError, match="or groups of layers with their arrays"):
        keras_h5.load(path)
    with h5py.File(path, "a") as file:
        file.create_group("vars")
    assert keras_h5.load(path) == {"params": {"flatten": {}}}


def test_what_cannot_be_told_is_not_guessed(tmp_path):
    with h5py.File(tmp_path / "x", "w") as file:
        for number in range(3):  # either scale or center is False
            file[f"layers/batch_normalization/vars/{number}"] = np.full(2, number)
        file["encoder/vars/0"] = np.ones((2, 3))  # Dense without a bias, or an Embedding
        for number, shape in enumerate([(2, 3), 3]):  # of the user's own class, in which is a Dense
            file[f"block/fc/vars/{number}"] = np.ones(shape)
            file[f"block/norm/vars/{number}"] = np.ones(3)
        file["block/norm/vars"].attrs["name"] = "layer_normalization_3"
    variables = keras_h5.load(tmp_path / "x")
    assert {name: list(layer) for name, layer in variables["params"].items()} == {
        "batch_normalization": ["scale_or_bias"],
        "block": ["fc", "norm"],
        "encoder": ["0"],
    }
    assert [*variables["params"]["block"]["fc"]] == ["kernel", "bias"]
    assert [*variables["params"]["block"]["norm"]] == ["scale", "bias"]
    statistics = variables["batch_stats"]["batch_normalization"]
    assert {name: array[0] for name, array in statistics.items()} == {"mean": 1, "var": 2}
    inspection = keras_h5.inspect(tmp_path / "x")
    assert inspection.unconverted == ("encoder/0",)
    assert "block are read as fc (Dense), norm (LayerNormalization)" in str(inspection)
    assert "note: batch_normalization/gamma_or_beta is a scale or a bias" in str(inspection)
    keras_h5.save(
        tmp_path / "new.weights.h5",
        {
            **variables,
            "params": {"batch_normalization": variables["params"]["batch_normalization"]},
        },
    )
    with h5py.File(tmp_path / "new.weights.h5") as file:
        group = file["layers/batch_normalization/vars"]
        assert [group[number][0] for number in "012"] == [0, 1, 2]
    keras_h5.save(tmp_path / "y", variables, like=tmp_path / "x")
    assert contents(tmp_path / "y") == contents(tmp_path / "x")


@pytest.mark.parametrize(
    ("params", "layout", "message"),
    [
        ({"a": {"kernel": np.ones((1, 1))}}, "model.h5", "pass like= a whole model"),
        ({"a": {"kernel": np.ones((1, 1))}}, "keras", "pass like= a whole model"),
        ({"a": {"mystery": np.ones((1, 1))}}, "weights.h5", "a: its class .* not known"),
        ({"a": {"kernel": np.ones((1, 1))}}, "v3", "expected one of 'h5', 'model.h5'"),
    ],
)
def test_layouts_that_need_more_are_refused(params, layout, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        keras_h5.save(tmp_path / "x", params, layout=layout)
    assert list(tmp_path.iterdir()) == []


def test_grown_arrays_must_fit_each_other(tmp_path):
    path = DATA / "keras_3.15.1.keras"
    variables = keras_h5.load(path)
    variables["params"]["dense_1"]["kernel"] = np.ones((6, 9), "f")
    with pytest.raises(ValueError, match=r"dense_1/bias: has shape \(5,\), but Keras .* \(9,\)"):
        keras_h5.save(tmp_path / "x", variables, like=path)
    assert list(tmp_path.iterdir()) == []


def test_a_kernel_that_a_file_has_twice_is_one(tmp_path):
    path, wide = tmp_path / "x.keras", tmp_path / "wide.keras"
    conv = {"filters": 3, "kernel_size": [2], "padding": "valid", "activation": "relu"}
    layers = [("Conv1DTranspose", conv), ("Dense", {"units": 5, "activation": "tanh"})]
    arrays = [((2, 3, 2), 3, 2), ((3, 5), 5, 5)]  # of kernel, bias and vector
    rng = np.random.default_rng(0)
    with h5py.File(tmp_path / "weights.h5", "w") as file:
        for name, shapes in zip(("", "_1"), arrays):
            kernel, bias, vector = (rng.normal(size=s).astype("f") for s in shapes)
            group = file.create_group(f"layers/spectral_normalization{name}")
            group["vars/0"], group["vars/1"] = kernel, vector[None]
            group["layer/vars/0"], group["layer/vars/1"] = kernel, bias
        file["layers/dense/vars/0"] = rng.normal(size=(5, 1)).astype("f")
    parts = [{"class_name": n, "config": {"name": n, **config}} for n, config in layers]
    last = ("Dense", {"units": 1, "use_bias": False, "activation": "linear"})
    model = sequential(*(("SpectralNormalization", {"layer": part}) for part in parts), last)
    archived(path, tmp_path / "weights.h5", model)
    module, variables = keras_h5.load_model(path)
    x = np.ones((2, 4, 2), "f")
    plain = {name: layer.get("layer", layer) for name, layer in variables["params"].items()}
    expected = build(sequential(*layers, last)).apply({"params": plain}, x)
    np.testing.assert_array_equal(module.apply(variables, x), expected)
    with pytest.raises(ValueError, match="layer_0 .* its kernel at each step of training"):
        module.apply(variables, x, deterministic=False)
    widths = dw.trace(module.apply, variables, x)
    growth = dw.plan(widths, {"layer_0/layer": 4, "layer_1/layer": 7})
    grown = dw.grow(variables, growth, key=jax.random.key(0))
    assert grown["batch_stats"]["layer_1"]["vector_u"].shape == (1, 7)
    keras_h5.save(wide, grown, like=path)
    module, loaded = keras_h5.load_model(wide)
    assert_same(loaded["params"], grown["params"])
    np.testing.assert_allclose(module.apply(loaded, x), expected, rtol=1e-5)
    keras_h5.save(tmp_path / "x.weights.h5", loaded, like=wide, layout="weights.h5")
    with h5py.File(tmp_path / "x.weights.h5") as file:
        group = file["layers/spectral_normalization_1"]
        np.testing.assert_array_equal(group["vars/0"], group["layer/vars/0"])
        assert group["vars/1"].shape == (1, 7) and group["vars/0"].shape == (4, 7)
    alone = keras_h5.load(tmp_path / "x.weights.h5")
    for i in (0, 1):  # without a config, by their shapes
        assert_same(alone["params"][f"layer_{i}"], grown["params"][f"layer_{i}"])


# Real Keras reads what is written.


@pytest.mark.filterwarnings("ignore")  # Keras's own
@jax.numpy_rank_promotion("allow")  # which Keras needs with JAX for its backend
def test_keras_opens_grown_tables_and_spectral_norms(tmp_path):
    keras = pytest.importorskip("keras", reason="needs real Keras: pip install keras")
    table = keras.layers.ReversibleEmbedding(7, 4, tie_weights=False, name="table")
    convolution = keras.layers.Conv1DTranspose(3, 2, padding="same", activation="relu")
    ids = keras.Input((5,), dtype="int32")
    h = keras.layers.SpectralNormalization(convolution, name="a")(table(ids))
    h = keras.layers.SpectralNormalization(keras.layers.Dense(4), name="b")(h)
    model = keras.Model(ids, table(h, reverse=True))
    x = np.arange(10).reshape(2, 5) % 7
    for suffix in (".h5", ".keras"):
        path, wide = tmp_path / f"x{suffix}", tmp_path / f"wide{suffix}"
        model.save(path)
        module, variables = keras_h5.load_model(path)
        widths = dw.trace(module.apply, variables, x)
        sizes = {"a/layer": 6, "table/embedding": 9, "b/layer": 9}
        sizes |= {"table[vocab]": 8, "table/reverse_embedding": 8}
        growth = dw.plan(widths, sizes, interface=True)
        keras_h5.save(wide, dw.grow(variables, growth, key=jax.random.key(0)), like=path)
        grown = keras.models.load_model(wide, compile=False)
        assert grown.get_layer("table").input_dim == 8
        expected = model.predict(x, verbose=0)
        np.testing.assert_allclose(grown.predict(x, verbose=0)[..., :7], expected, 1e-5, 1e-6)
    grown.compile("sgd", "mse")
    assert np.isfinite(grown.fit(x, np.zeros((2, 5, 8)), verbose=0).history["loss"]).all()


@pytest.mark.filterwarnings("ignore")  # Keras's own
@pytest.mark.parametrize("mode", ["int8", "int4"])
@jax.numpy_rank_promotion("allow")  # which Keras needs with JAX for its backend
def test_keras_opens_quantized_models(mode, tmp_path):
    keras = pytest.importorskip("keras", reason="needs real Keras: pip install keras")
    if mode == "int4" and not hasattr(keras.dtype_policies, "Int4DTypePolicy"):
        pytest.skip("Keras packed int4 in another way before 3.14")
    hidden = keras.layers.Dense(7, "relu", name="hidden")
    inner = keras.Sequential([keras.Input((6, 4)), hidden], name="inner")
    h = inner(keras.layers.Embedding(9, 4)(ids := keras.Input((6,), dtype="int32")))
    h = keras.layers.EinsumDense("abc,cde->abde", (6, 3, 5), bias_axes="e")(h)
    model = keras.Model(ids, keras.layers.Dense(3)(keras.layers.Flatten()(h)))
    model.quantize(mode)
    x = np.arange(12).reshape(2, 6) % 9
    expected = model.predict(x, verbose=0)
    for suffix in (".h5", ".keras"):
        path, copy = tmp_path / f"x{suffix}", tmp_path / f"copy{suffix}"
        model.save(path)
        module, variables = keras_h5.load_model(path)
        np.testing.assert_allclose(module.apply(variables, x), expected, 1e-5, 1e-6)
        if mode == "int8":
            widths = dw.trace(module.apply, variables, x)
            growth = dw.plan(widths, {"inner/hidden": 9})
            variables = dw.grow(variables, growth, key=jax.random.key(0))
        keras_h5.save(copy, variables, like=path)
        opened = keras.models.load_model(copy, compile=False)
        np.testing.assert_allclose(opened.predict(x, verbose=0), expected, 1e-5, 1e-6)
        opened.set_weights([np.zeros_like(w) for w in opened.get_weights()])
        keras_h5.save(tmp_path / "x.weights.h5", variables, like=path, layout="weights.h5")
        opened.load_weights(tmp_path / "x.weights.h5")
        np.testing.assert_allclose(opened.predict(x, verbose=0), expected, 1e-5, 1e-6)


@pytest.mark.filterwarnings("ignore")  # Keras's and TensorFlow's own
@pytest.mark.parametrize("package", ["keras", "tf_keras"])
@jax.numpy_rank_promotion("allow")  # which Keras needs with JAX for its backend
def test_keras_opens_grown_models_and_weights(package, tmp_path):
    keras = pytest.importorskip(package, reason=f"needs real Keras: pip install {package}")
    name = "keras_3.15.1" if package == "keras" else "tf_keras_2.21.0"
    for suffix in (".h5", ".keras"):
        path = DATA / f"{name}{suffix}"
        expected = stored(path)
        module, variables = keras_h5.load_model(path)
        widths = dw.trace(module.apply, variables, expected["x"])
        growth = dw.plan(widths, {"dense_1": 16, "dense_2": 6, "inner/up": 7})
        wide = dw.grow(variables, growth, key=jax.random.key(0))
        keras_h5.save(tmp_path / f"wide{suffix}", wide, like=path)
        model = keras.models.load_model(tmp_path / f"wide{suffix}", compile=False)
        assert model.get_layer("dense_1").units == 16
        np.testing.assert_allclose(model.predict(expected["x"]), expected["y"], 1e-5, 1e-6)
        for new in ("h5", "weights.h5"):
            model.set_weights([np.zeros_like(w) for w in model.get_weights()])
            keras_h5.save(tmp_path / f"new.{new}", wide, like=path, layout=new)
            model.load_weights(tmp_path / f"new.{new}")
            np.testing.assert_allclose(model.predict(expected["x"]), expected["y"], 1e-5, 1e-6)


@pytest.mark.filterwarnings("ignore")  # Keras's and TensorFlow's own
@pytest.mark.parametrize(("package", "name"), [("keras", "3.0.5"), ("tf_keras", "2.21.0")])
@jax.numpy_rank_promotion("allow")  # which Keras needs with JAX for its backend
def test_keras_trains_on_from_a_grown_optimizer(package, name, tmp_path):
    keras = pytest.importorskip(package, reason=f"needs real Keras: pip install {package}")
    path, wide = DATA / f"{package}_{name}.keras", tmp_path / "wide.keras"
    expected = stored(path)
    module, variables = keras_h5.load_model(path)
    widths = dw.trace(module.apply, variables, expected["x"])
    growth = dw.plan(widths, {"dense_1": 16, "inner/up": 7})
    # Keras adds epsilon earlier; this is the middle one of the three steps.
    tx = optax.adam(0.1, eps=1e-7 / np.sqrt(1 - 0.999**4))
    state = (keras_h5.load_optimizer(path), *tx.init(variables["params"])[1:])
    state = dw.grow_opt_state(state, growth, tx)
    variables = dw.grow(variables, growth, key=jax.random.key(0))
    keras_h5.save(wide, variables, like=path, opt_state=state)
    model = keras.models.load_model(wide)
    model.fit(expected["x"], expected["t"], epochs=3, batch_size=4, verbose=0)
    model.save(wide)

    @jax.jit
    def step(params, state):
        def loss(params):
            return jnp.mean((module.apply({"params": params}, expected["x"]) - expected["t"]) ** 2)

        updates, state = tx.update(jax.grad(loss)(params), state)
        return optax.apply_updates(params, updates), state

    params = variables["params"]
    for _ in range(3):
        params, state = step(params, state)
    for one, other in zip(*map(jax.tree.leaves, (params, keras_h5.load(wide)["params"]))):
        np.testing.assert_allclose(one, other, rtol=1e-2, atol=1e-2 * np.abs(other).max())
