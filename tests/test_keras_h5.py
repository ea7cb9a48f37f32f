import os
import re
import tempfile
from pathlib import Path

import flax.linen as nn
import h5py
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis.extra import numpy as hnp

import dogwood_jax as dw
from dogwood_jax import keras_h5

DATA = Path(__file__).parent / "data"
FILES = sorted(DATA.glob("keras_*.h5"))
MLPS, UNSORTED, NESTED = (
    [path for path in FILES if path.stem.endswith(model)] for model in ("mlp", "unsorted", "nested")
)
ids = {"ids": lambda path: path.stem}


def dense(x, layer):
    return x @ layer["kernel"] + layer.get("bias", 0)


def predict(model, params, x):
    """A plain loop over the models of make_keras_files.py."""
    x = x.reshape(len(x), -1)
    if model == "mlp":
        x = np.maximum(dense(x, params["dense_1"]), 0)
        return dense(np.tanh(dense(x, params["dense_2"])), params["dense_3"])
    if model == "unsorted":
        for i in (8, 9, 10, 11):
            x = np.tanh(dense(x, params[f"dense_{i}"]))
        return x
    up, down = params["inner"].values()
    return dense(dense(np.maximum(dense(x, up), 0), down), params["out"])


def everything(file):
    """All that is in a file: places, attributes with their types in the file, arrays."""
    found = {}

    def visit(name, item):
        attributes = {}
        for key, value in item.attrs.items():
            dtype = item.attrs.get_id(key).dtype
            strings = h5py.check_string_dtype(dtype)  # ASCII or UTF-8, fixed or variable length
            attributes[key] = np.array(value).tolist(), dtype, strings
        found[name] = (attributes,)
        if isinstance(item, h5py.Dataset):
            found[name] = attributes, item.shape, item.dtype, np.asarray(item).tobytes()

    visit("/", file)
    file.visititems(visit)
    return found


def contents(path):
    with h5py.File(path) as file:
        return everything(file)


def flat(variables):
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(variables)}


def assert_same(actual, expected):
    """The same arrays, dtypes and layers, in the same order."""
    assert list(actual) == list(expected)
    for name, value in expected.items():
        if isinstance(value, dict):
            assert_same(actual[name], value)
        else:
            assert actual[name].dtype == value.dtype
            np.testing.assert_array_equal(actual[name], value)


def small(**changes):
    """Two Dense layers and one without weights."""
    rng = np.random.default_rng(0)
    layer = lambda i, o: {  # noqa: E731
        "kernel": rng.normal(size=(i, o)).astype("f"),
        "bias": rng.normal(size=o).astype("f"),
    }
    params = {"flatten": {}, "dense_1": layer(6, 2), "dense_2": layer(2, 3)}
    return {"params": params | changes}


# Files of real Keras.


@pytest.mark.parametrize("path", FILES, **ids)
def test_loaded_weights_predict_what_keras_predicted(path):
    expected = np.load(path.with_suffix(".npz"))
    params = keras_h5.load(path)["params"]
    y = predict(path.stem.split("_")[-1], params, expected["x"])
    np.testing.assert_allclose(y, expected["y"], rtol=1e-5, atol=1e-6)
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize("path", MLPS, **ids)
def test_layers_come_in_the_order_of_the_file(path):
    params = keras_h5.load(path)["params"]
    assert list(params) == ["flatten", "dense_1", "dropout", "dense_2", "dense_3"]
    assert {name: list(layer) for name, layer in params.items()} == {
        "flatten": [],
        "dense_1": ["kernel", "bias"],
        "dropout": [],
        "dense_2": ["kernel"],
        "dense_3": ["kernel", "bias"],
    }


@pytest.mark.parametrize("path", NESTED, **ids)
def test_a_nested_model_is_nested(path):
    params = keras_h5.load(path)["params"]
    assert list(params) == ["flatten", "inner", "out"]
    assert [list(layer) for layer in params["inner"].values()] == [["kernel", "bias"]] * 2


@pytest.mark.parametrize("path", MLPS + UNSORTED, **ids)
def test_saving_gives_back_what_was_loaded(path, tmp_path):
    variables = keras_h5.load(path)
    keras_h5.save(tmp_path / "new.h5", variables)
    assert_same(keras_h5.load(tmp_path / "new.h5"), variables)
    with h5py.File(path) as old, h5py.File(tmp_path / "new.h5") as new:
        names = [list(np.asarray(f.attrs["layer_names"]).astype(str)) for f in (old, new)]
        assert names[0] == names[1]


@pytest.mark.parametrize("path", FILES, **ids)
def test_like_keeps_everything_of_a_file(path, tmp_path):
    variables = keras_h5.load(path)
    sorted_by_jax = jax.jit(lambda variables: variables)(variables)
    keras_h5.save(tmp_path / "new.h5", sorted_by_jax, like=path)
    assert contents(tmp_path / "new.h5") == contents(path)


@pytest.mark.parametrize("path", UNSORTED, **ids)
def test_layers_sorted_by_jax_are_saved_by_number(path, tmp_path):
    variables = jax.jit(lambda variables: variables)(keras_h5.load(path))
    assert list(variables["params"])[:2] == ["dense_10", "dense_11"]
    keras_h5.save(tmp_path / "new.h5", variables)
    layers = list(keras_h5.load(tmp_path / "new.h5")["params"])
    assert layers == ["dense_8", "dense_9", "dense_10", "dense_11", "flatten"]


@pytest.mark.parametrize("path", MLPS, **ids)
def test_a_widened_network_predicts_the_same(path, tmp_path):
    wide = dw.widen(
        keras_h5.load(path),
        {"dense_1": 16, "dense_2": 8},
        order=("dense_1", "dense_2", "dense_3"),
        key=jax.random.key(0),
    )
    for like in (None, path):
        keras_h5.save(tmp_path / "wide.h5", wide, like=like)
        params = keras_h5.load(tmp_path / "wide.h5")["params"]
        assert list(params) == ["flatten", "dense_1", "dropout", "dense_2", "dense_3"]
        assert params["dense_2"]["kernel"].shape == (16, 8)
        expected = np.load(path.with_suffix(".npz"))
        y = predict("mlp", params, expected["x"])
        np.testing.assert_allclose(y, expected["y"], rtol=1e-5, atol=1e-6)


def tf_keras_mlp(keras, hidden):
    layers = [
        keras.layers.Flatten(input_shape=(3, 2), name="flatten"),
        keras.layers.Dense(hidden, activation="relu", name="dense_9"),
        keras.layers.Dropout(0.5, name="dropout"),
        keras.layers.Dense(hidden, activation="relu", name="dense_10"),
        keras.layers.Dense(3, name="dense_11"),
    ]
    return keras.Sequential(layers)


@pytest.mark.filterwarnings("ignore")  # TensorFlow's own
@pytest.mark.parametrize("use_like", [False, True])
@pytest.mark.parametrize("by_name", [False, True])
@pytest.mark.parametrize("under_jit", [False, True])
def test_keras_predicts_the_same_after_widening(use_like, by_name, under_jit, tmp_path):
    keras = pytest.importorskip("tf_keras", reason="needs Keras 2: pip install tf_keras")
    old, new = tf_keras_mlp(keras, 4), tf_keras_mlp(keras, 16)
    old.save_weights(tmp_path / "old.h5")

    def widen(variables, key):
        sizes, order = {"dense_9": 16, "dense_10": 16}, ("dense_9", "dense_10", "dense_11")
        return dw.widen(variables, sizes, order=order, key=key)

    widen = jax.jit(widen) if under_jit else widen
    variables = widen(keras_h5.load(tmp_path / "old.h5"), jax.random.key(0))
    like = tmp_path / "old.h5" if use_like else None
    keras_h5.save(tmp_path / "new.h5", variables, like=like)
    x = np.random.default_rng(0).normal(size=(8, 3, 2))
    expected = old.predict(x, verbose=0)
    assert np.abs(new.predict(x, verbose=0) - expected).max() > 0.1
    new.load_weights(tmp_path / "new.h5", by_name=by_name)
    np.testing.assert_allclose(new.predict(x, verbose=0), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore")  # TensorFlow's own
def test_keras_reads_names_split_over_attributes(tmp_path):
    keras = pytest.importorskip("tf_keras", reason="needs Keras 2: pip install tf_keras")
    names = [f"dense_{i}_{'x' * 8000}" for i in range(9)]
    model = keras.Sequential([keras.layers.Dense(2, name=name) for name in names])
    model.build((None, 2))
    model.save_weights(tmp_path / "old.h5")
    weights = model.get_weights()
    variables = keras_h5.load(tmp_path / "old.h5")
    keras_h5.save(tmp_path / "new.h5", jax.tree.map(lambda w: w + 1, variables))
    model.load_weights(tmp_path / "new.h5")
    for new, old in zip(model.get_weights(), weights):
        np.testing.assert_array_equal(new, old + 1)


# Saving and loading.


def test_the_file_is_the_one_keras_writes(tmp_path):
    variables = small()
    keras_h5.save(tmp_path / "x.h5", variables)
    with h5py.File(tmp_path / "x.h5") as file:
        assert sorted(file.attrs) == ["backend", "keras_version", "layer_names"]
        assert file.attrs["layer_names"].tolist() == [b"flatten", b"dense_1", b"dense_2"]
        assert file.attrs["backend"] == b"tensorflow"
        assert file.attrs["keras_version"].startswith(b"2.")
        assert file["flatten"].attrs["weight_names"].size == 0
        names = file["dense_1"].attrs["weight_names"]
        assert names.tolist() == [b"dense_1/kernel:0", b"dense_1/bias:0"]
        kernel = file["dense_1/dense_1/kernel:0"]
        np.testing.assert_array_equal(kernel, variables["params"]["dense_1"]["kernel"])


name = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), min_size=1, max_size=12
).filter(lambda name: name != ".")
dtype = st.sampled_from(["<f2", "<f4", "<f8", "<i4", "<i8", "?"])
shape = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3)
bfloat16 = hnp.arrays("<u2", shape).map(lambda array: array.view(jnp.bfloat16))
weights = st.dictionaries(name, hnp.arrays(dtype, shape) | bfloat16, max_size=3)
layer = st.lists(name, min_size=1, max_size=2).map("/".join)


@pytest.mark.filterwarnings("ignore:.*weights hold NaN:RuntimeWarning")
@hypothesis.settings(max_examples=50)
@hypothesis.given(st.dictionaries(layer, weights, min_size=1, max_size=4))
def test_load_inverts_save(params):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x.h5")
        keras_h5.save(path, {"params": params})
        loaded = keras_h5.load(path)["params"]
        assert loaded.keys() == params.keys()
        for layer, weights in params.items():
            assert loaded[layer].keys() == weights.keys()
            for name, array in weights.items():
                assert loaded[layer][name].dtype == array.dtype
                assert loaded[layer][name].shape == array.shape
                assert loaded[layer][name].tobytes() == array.tobytes()
        keras_h5.save(Path(folder, "y.h5"), loaded, like=path)
        assert contents(Path(folder, "y.h5")) == contents(path)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32, jnp.float64])
def test_dtypes_of_jax_arrays_are_kept(dtype, tmp_path):
    variables = jax.tree.map(lambda array: jnp.asarray(array, dtype), small())
    keras_h5.save(tmp_path / "x.h5", variables)
    loaded = keras_h5.load(tmp_path / "x.h5")
    for path, array in flat(variables).items():
        assert flat(loaded)[path].dtype == dtype
        np.testing.assert_array_equal(flat(loaded)[path], array)
    with h5py.File(tmp_path / "x.h5") as file:
        stored = file["dense_1/dense_1/kernel:0"].dtype
        assert stored == ("V2" if dtype == jnp.bfloat16 else dtype)


@pytest.mark.parametrize(
    ("given", "written"),
    [
        (["b_2", "b_10", "a"], ["b_2", "b_10", "a"]),
        (["a", "b_10", "b_2"], ["a", "b_2", "b_10"]),
        (
            ["dense_1", "dense_10", "dense_1a", "dense_2"],
            ["dense_1", "dense_1a", "dense_2", "dense_10"],
        ),
    ],
)
def test_layers_are_in_the_order_given_unless_it_is_the_alphabet(given, written, tmp_path):
    keras_h5.save(tmp_path / "x.h5", {name: {"kernel": np.ones(1)} for name in given})
    assert list(keras_h5.load(tmp_path / "x.h5")["params"]) == written


def test_weights_are_in_the_order_of_keras(tmp_path):
    keras = {
        "dense": ["kernel", "bias"],
        "lstm": ["kernel", "recurrent_kernel", "bias"],
        "norm": ["gamma", "beta", "moving_mean", "moving_variance"],
        "separable": ["depthwise_kernel", "pointwise_kernel", "bias"],
        "unknown": ["b", "a"],
    }
    params = {layer: {n: np.ones(1) for n in sorted(weights)} for layer, weights in keras.items()}
    params["unknown"] = {"b": np.ones(1), "a": np.ones(1)}
    keras_h5.save(tmp_path / "x.h5", params)
    with h5py.File(tmp_path / "x.h5") as file:
        for layer, weights in keras.items():
            names = [f"{layer}/{name}:0" for name in weights]
            assert file[layer].attrs["weight_names"].astype(str).tolist() == names


def test_long_lists_of_names_are_split(tmp_path):
    params = {f"layer_{i}_{'x' * 700}": {"kernel": np.full(1, i)} for i in range(200)}
    keras_h5.save(tmp_path / "x.h5", params)
    with h5py.File(tmp_path / "x.h5") as file:
        assert "layer_names" not in file.attrs
        parts = [file.attrs[f"layer_names{i}"] for i in range(3)]
        assert all(part.nbytes <= 64512 for part in parts)
    assert_same(keras_h5.load(tmp_path / "x.h5")["params"], params)
    keras_h5.save(tmp_path / "y.h5", params, like=tmp_path / "x.h5")
    assert contents(tmp_path / "y.h5") == contents(tmp_path / "x.h5")


def test_weights_of_the_model_itself_are_kept(tmp_path):
    variables = small(top_level_model_weights={"scale": np.ones(3)})
    keras_h5.save(tmp_path / "x.h5", variables)
    with h5py.File(tmp_path / "x.h5") as file:
        assert b"top_level_model_weights" not in file.attrs["layer_names"]
    assert_same(keras_h5.load(tmp_path / "x.h5"), variables)


def test_a_file_edited_by_hand(tmp_path):
    """As the notebook does it: delete a dataset, create a wider one."""
    path = tmp_path / "x.h5"
    variables = small()
    keras_h5.save(path, variables)
    kernel = np.ones((6, 5), "f")
    with h5py.File(path, "r+") as file:
        del file["dense_1/dense_1/kernel:0"]
        file["dense_1"].create_dataset("dense_1/kernel:0", data=kernel)
        file.attrs["layer_names"] = ["flatten", "dense_1", "dense_2"]
        file["flatten"].attrs["weight_names"] = []
        del file["dense_1/dense_1/bias:0"]
        file["dense_1"].create_dataset("dense_1/bias:0", data=kernel[0])
    variables["params"]["dense_1"] = {"kernel": kernel, "bias": kernel[0]}
    assert_same(keras_h5.load(path), variables)


def test_names_in_the_file_need_not_contain_the_layers(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.attrs["layer_names"] = ["b", "a"]
        for layer, inner in {"a": "sequential/a_3/kernel", "b": "kernel:0"}.items():
            file.create_group(layer).attrs["weight_names"] = [inner]
            file[layer][inner] = np.ones(1, ">f4")
    params = {name: {"kernel": np.ones(1, "f")} for name in ("b", "a")}
    assert_same(keras_h5.load(tmp_path / "x.h5")["params"], params)
    keras_h5.save(tmp_path / "y.h5", params, like=tmp_path / "x.h5")
    with h5py.File(tmp_path / "y.h5") as file:
        assert file["a/sequential/a_3/kernel"].shape == (1,)


def test_like_keeps_names_that_are_no_ascii(tmp_path):
    """Keras says that they are, whatever they are."""
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["层_1/kernel"] = np.ones((2, 2))
        ascii_ = h5py.string_dtype("ascii")
        for group, attribute, name in (
            (file["层_1"], "weight_names", "kernel"),
            (file, "layer_names", "层_1"),
        ):
            group.attrs.create(attribute, [name.encode()], dtype=ascii_)
    variables = keras_h5.load(tmp_path / "x.h5")
    keras_h5.save(tmp_path / "y.h5", variables, like=tmp_path / "x.h5")
    assert list(keras_h5.load(tmp_path / "y.h5")["params"]) == ["层_1"]


def test_like_keeps_what_it_does_not_know(tmp_path):
    path = tmp_path / "x.h5"
    keras_h5.save(path, small())
    with h5py.File(path, "r+") as file:
        file.attrs["note"] = "best run"
        file["notes/seeds"] = [1, 2, 3]
        file["dense_1/dense_1/kernel:0"].attrs["unit"] = "mV"
        file["dense_1/best"] = h5py.SoftLink("/notes")
        file["other"] = h5py.ExternalLink("other.h5", "/")
    wide = dw.widen(keras_h5.load(path), "dense_1", into="dense_2", units=32, key=jax.random.key(0))
    before = contents(path)
    keras_h5.save(path, wide, like=path)
    after = contents(path)
    assert after.keys() == before.keys()
    assert after["/"] == before["/"] and after["notes/seeds"] == before["notes/seeds"]
    attributes, shape, dtype, _ = after["dense_1/dense_1/kernel:0"]
    assert attributes == before["dense_1/dense_1/kernel:0"][0]
    assert dtype == np.float32 and shape == (6, 32)
    with h5py.File(path) as file:
        assert file["dense_1"].get("best", getlink=True).path == "/notes"
        assert file.get("other", getlink=True).filename == "other.h5"


def test_like_does_not_carry_the_old_weights_along(tmp_path):
    keras_h5.save(tmp_path / "x.h5", {"dense": {"kernel": np.ones((256, 256))}})
    keras_h5.save(tmp_path / "y.h5", {"dense": {"kernel": np.ones((1, 1))}}, like=tmp_path / "x.h5")
    assert (tmp_path / "y.h5").stat().st_size < 20_000


def test_layers_without_weights_pass_through_flax_and_optax(tmp_path):
    keras_h5.save(tmp_path / "x.h5", small())
    variables = keras_h5.load(tmp_path / "x.h5")

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(3, name="dense_2")(nn.relu(nn.Dense(2, name="dense_1")(x)))

    tx = optax.adam(1e-3)
    x = jnp.ones((4, 6), jnp.float32)

    @jax.jit
    def step(variables, opt_state):
        gradients = jax.grad(lambda v: Model().apply(v, x).sum())(variables)
        updates, opt_state = tx.update(gradients, opt_state, variables)
        return optax.apply_updates(variables, updates), opt_state

    trained, _ = step(variables, tx.init(variables))
    assert trained["params"]["flatten"] == {}
    keras_h5.save(tmp_path / "y.h5", trained, like=tmp_path / "x.h5")
    assert list(keras_h5.load(tmp_path / "y.h5")["params"]) == ["flatten", "dense_1", "dense_2"]


# What is refused, and what is left when something fails.

ONE = np.ones(1)


@pytest.mark.parametrize(
    ("variables", "messages"),
    [
        ([ONE], ["expected a dict of layers, got list"]),
        ({}, ["is empty"]),
        ({"params": {}}, ["is empty"]),
        ({"params": None}, ["params: expected a layer", "NoneType"]),
        ({"kernel": ONE}, ["kernel: expected a layer", "(1,)"]),
        ({"d": {"kernel": [1.0]}, "e": {"bias": 1.0}}, ["d/kernel: expected an array", "e/bias: "]),
        ({"d": {"kernel": None}}, ["d/kernel: expected an array", "NoneType"]),
        ({"d": {"kernel": np.array("x")}}, ["d/kernel: expected an array", "<U1"]),
        ({"d": {"kernel": np.array([{}])}}, ["d/kernel: expected an array", "object"]),
        ({"d": {"kernel": np.ones(1, complex)}}, ["d/kernel: expected an array", "complex128"]),
        ({"d": {"kernel": jnp.ones(1, jnp.float8_e5m2)}}, ["d/kernel: expected", "float8_e5m2"]),
        ({"d": {"kernel": jax.random.key(0)}}, ["d/kernel: expected an array", "key<"]),
        ({"d": {"kernel": jax.ShapeDtypeStruct((1,), "f")}}, ["d/kernel: expected an array"]),
        ({"params": {"params": {"d": {"kernel": ONE}}}}, ["params/d/kernel: a layer holds arrays"]),
        ({"params": {}, "cache": {"n": {"mean": ONE}}}, ["cache/n/mean: is in none of"]),
        ({"": {"kernel": ONE}}, ["'' cannot be a layer's name"]),
        ({"a//b": {}, ".": {}}, ["'a//b' cannot be", "'.' cannot be"]),
        ({"a\0b": {}, 3: {}}, ["'a\\x00b' cannot be", "3 cannot be"]),
        ({"a\ud800": {}}, ["'a\\ud800' cannot be"]),
        ({"d": {"a/b": ONE, "": ONE}}, ["'a/b' cannot be a weight's name", "'' cannot be"]),
    ],
)
def test_save_refuses_what_it_cannot_write(variables, messages, tmp_path):
    with pytest.raises(ValueError) as error:
        keras_h5.save(tmp_path / "x.h5", variables)
    assert all(message in str(error.value) for message in messages), str(error.value)
    assert os.listdir(tmp_path) == []


def test_like_refuses_variables_of_another_model(tmp_path):
    keras_h5.save(tmp_path / "x.h5", small())
    before = (tmp_path / "x.h5").read_bytes()
    variables = small(extra={"kernel": ONE}, dense_1={"kernel": np.ones(4)})
    with pytest.raises(ValueError) as error:
        keras_h5.save(tmp_path / "x.h5", variables, like=tmp_path / "x.h5")
    for message in [
        "dense_1/kernel: expected 2 axes",
        "dense_1/bias: missing",
        "extra/kernel: has no place",
    ]:
        assert message in str(error.value)
    assert str(error.value).count("\n- ") == 3
    assert (tmp_path / "x.h5").read_bytes() == before


def edit(place, change):
    """Returns a function that changes the item at a place of a file."""

    def apply(path):
        with h5py.File(path, "r+") as file:
            change(file[place])

    return apply


def no_layer_names(root):
    del root.attrs["layer_names"]


def no_weight_names(layer):
    del layer.attrs["weight_names"]


def no_kernel(layer):
    del layer["dense_1/kernel:0"]


def no_group(root):
    del root["dense_2"]


def dataset_for_group(root):
    del root["dense_2"]
    root["dense_2"] = 1.0


def group_for_dataset(layer):
    no_kernel(layer)
    layer.create_group("dense_1/kernel:0")


def strings_for_numbers(layer):
    no_kernel(layer)
    layer["dense_1/kernel:0"] = ["a", "b"]


def no_data(layer):
    no_kernel(layer)
    layer["dense_1/kernel:0"] = h5py.Empty("f")


def names(attribute, *value):
    return lambda item: item.attrs.__setitem__(attribute, list(value))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(b""), "expected an HDF5 file"),
        (lambda path: path.write_text("weights"), "expected an HDF5 file"),
        (lambda path: path.write_bytes(path.read_bytes()[:-200]), "expected an HDF5 file"),
        (edit("/", no_layer_names), "at /: expected an attribute layer_names"),
        (edit("dense_1", no_weight_names), "at /dense_1: expected an attribute weight_names"),
        (edit("/", no_group), "at /: expected a Group 'dense_2'"),
        (edit("/", dataset_for_group), "at /: expected a Group 'dense_2'.*found a Dataset"),
        (edit("dense_1", no_kernel), "at /dense_1: expected a Dataset 'dense_1/kernel:0'"),
        (edit("dense_1", group_for_dataset), "at /dense_1: expected a Dataset.*found a Group"),
        (edit("dense_1", strings_for_numbers), "kernel:0: expected an array of numbers.*object"),
        (edit("dense_1", no_data), "kernel:0: expected an array of numbers; found no data"),
        (edit("/", names("layer_names", 1, 2)), "at /: expected distinct names in attribute"),
        (edit("/", names("layer_names", "a", "a")), "at /: expected distinct names in attribute"),
        (edit("/", names("layer_names", "")), "at /: expected distinct names in attribute"),
        (
            edit("/", names("layer_names", np.bytes_(b"a\xff"))),
            "at /: expected distinct names in attribute",
        ),
        (
            edit("dense_1", names("weight_names", "/dense_2")),
            "at /dense_1: expected distinct names",
        ),
        (edit("dense_1", names("weight_names", "a/b", "a/b:0")), "at /dense_1: .*distinct weights"),
        (edit("dense_1", names("weight_names", "x/a", "x/a/b")), "at /dense_1: .*distinct weights"),
    ],
)
def test_damaged_files_are_refused_with_their_place(damage, message, tmp_path):
    path = tmp_path / "x.h5"
    keras_h5.save(path, small())
    damage(path)
    before = path.read_bytes()
    for read in (keras_h5.load, lambda path: keras_h5.save(path, small(), like=path)):
        with pytest.raises(keras_h5.KerasFileError, match=f"{re.escape(str(path))}: .*{message}"):
            read(path)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["x.h5"]


def test_files_that_cannot_be_opened(tmp_path):
    with pytest.raises(FileNotFoundError, match="none.h5"):
        keras_h5.load(tmp_path / "none.h5")
    with pytest.raises(IsADirectoryError):
        keras_h5.load(tmp_path)
    with pytest.raises(FileNotFoundError, match="none.h5"):
        keras_h5.save(tmp_path / "x.h5", small(), like=tmp_path / "none.h5")
    with pytest.raises(FileNotFoundError, match="no such folder; make it first: .*nowhere'"):
        keras_h5.save(tmp_path / "nowhere" / "x.h5", small())
    assert os.listdir(tmp_path) == []


def test_arguments_are_left_alone(tmp_path):
    variables = small()
    keras_h5.save(tmp_path / "x.h5", variables)
    assert_same(variables, small())
