"""Whole models that real Keras saved, as Flax modules."""

import copy
import json
import shutil
import zipfile
from pathlib import Path

import flax
import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiers import long

import dogwood_jax as dw
from dogwood_jax import keras_h5
from dogwood_jax.keras_h5 import KerasFileError, load_model
from dogwood_jax.keras_h5._kinds.kind import CHANNELS, KINDS, Kind, layout
from dogwood_jax.keras_h5._kinds.normalizations import grown_groups
from dogwood_jax.keras_h5._kinds.reshaping import reshape_target
from dogwood_jax.keras_h5._models.model import build
from dogwood_jax.keras_h5._models.module import make_layer
from dogwood_jax.keras_h5._models.resize import resized
from dogwood_jax.keras_h5._models.shapes import example_inputs
from dogwood_jax.keras_h5._models.support import differences
from dogwood_jax.keras_h5._weights import positions
from dogwood_jax.keras_h5._weights.config import with_classes
from dogwood_jax.keras_h5._weights.convert import to_flax

DATA = Path(__file__).parent / "data" / "keras_models"
FILES = sorted([*DATA.glob("*.h5"), *DATA.glob("*.keras")])
# Loops take long to compile.
LONG = (
    *("keras_1.2.2_theano_sequence", "tensorflow_2.2.4-tf_sequence", "tensorflow_2.4.0_versions"),
    *("tensorflow_2.10.0_sequence", "tf_keras_2.21.0_sequence", "keras_3.15.1_versions"),
    *("keras_2.3.1_versions",),
)
files = pytest.mark.parametrize(
    "path",
    [pytest.param(p, marks=[pytest.mark.long] * (p.stem in LONG), id=p.name) for p in FILES],
)
QUANTIZED = [path for path in FILES if "_int" in path.stem]
LATEST = [DATA / f"keras_3.15.1_{name}.keras" for name in ("image", "sequence", "graph")]


def predicted(path):
    arrays = np.load(path.with_suffix(".npz"))
    return tuple(
        [arrays[name] for name in sorted(arrays) if name.startswith(letter)] for letter in "xy"
    )


def assert_predicts(module, variables, path):
    xs, ys = predicted(path)
    outputs = jax.tree.leaves(jax.jit(module.apply)(variables, *xs))
    assert len(outputs) == len(ys)
    for output, y in zip(outputs, ys):
        assert output.shape == y.shape and output.dtype == y.dtype
        np.testing.assert_allclose(output, y, rtol=1e-5, atol=1e-5 * np.abs(y).max())


def shapes(tree):
    leaves = jax.tree.leaves_with_path(tree)
    return {jax.tree_util.keystr(path): leaf.shape for path, leaf in leaves}


@files
def test_a_module_predicts_what_keras_predicted(path):
    assert_predicts(*load_model(path), path)


def of_keras_1(name, tmp_path, edits=None):
    """A copy of a model of Keras 1.2.2, with texts in its config replaced."""
    path = shutil.copy(DATA / f"keras_1.2.2_{name}.h5", tmp_path)
    with h5py.File(path, "r+") as file:
        config = file.attrs["model_config"]
        for old, new in (edits or {}).items():
            assert old in config
            config = config.replace(old, new)
        file.attrs["model_config"] = config
    return Path(path)


@pytest.mark.long
def test_models_of_keras_1_grow_and_are_not_written(tmp_path):
    path = of_keras_1("theano_sequence", tmp_path)
    module, variables = load_model(path)
    (x,), (y,) = predicted(DATA / path.name)
    widths = dw.trace(module.apply, variables, x)
    sizes = {
        widths.of(f"params/{cell}/kernel", 1).name: size
        for cell, size in {"lstm_1/cell/hf": 6, "gru_1/cell/hn": 5}.items()
    }
    sizes["convolution1d_1"] = 7
    wide = dw.grow(variables, dw.plan(widths, sizes), key=jax.random.key(0))
    np.testing.assert_allclose(module.apply(wide, x), y, 1e-5, 1e-5)
    with pytest.raises(
        ValueError, match="whole model of Keras 1, which can be read but not written"
    ):
        keras_h5.save(tmp_path / "wide.h5", wide, like=path)
    keras_h5.save(tmp_path / "wide.h5", wide)  # as Keras 2 has it, gates side by side
    kernel = keras_h5.load(tmp_path / "wide.h5")["params"]["lstm_1"]["cell"]["hf"]["kernel"]
    np.testing.assert_array_equal(kernel, wide["params"]["lstm_1"]["cell"]["hf"]["kernel"])


@pytest.mark.parametrize(
    ("name", "edits", "message"),
    [
        (
            "theano_th",
            {'"border_mode": "valid", "subsample"': '"border_mode": "same", "subsample"'},
            "Convolution2D of Theano with border_mode='same' and even sizes",
        ),
        ("theano_th", {'"mode": 0': '"mode": 1'}, "BatchNormalization with mode=1"),
        ("tensorflow_graph", {'"mode": "sum"': '"mode": "cos"'}, "Merge.: this class of layers"),
    ],
)
def test_what_keras_1_computed_in_its_own_way_is_refused(name, edits, message, tmp_path):
    with pytest.raises(KerasFileError, match=message):
        load_model(of_keras_1(name, tmp_path, edits))


@pytest.mark.parametrize("path", LATEST, ids=lambda path: path.stem)
def test_a_module_is_initialized_with_the_variables_it_takes(path):
    module, variables = load_model(path)
    xs, _ = predicted(path)
    own = jax.eval_shape(module.init, jax.random.key(0), *xs)
    assert shapes(own) == shapes(variables)


def test_a_layer_scale_has_a_weight_of_any_name(tmp_path):
    layer = {"class_name": "LayerScale", "config": {"name": "scale", "projection_dim": 3}}
    inputs = {"class_name": "InputLayer", "config": {"name": "x", "batch_shape": [None, 3]}}
    model = {"class_name": "Sequential", "config": {"name": "m", "layers": [inputs, layer]}}
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        file.attrs["model_config"] = json.dumps(model)
        group = file.create_group("model_weights")
        group.attrs["layer_names"] = np.array([b"scale"])
        group["scale/m/variable_1"] = np.array([1, 2, 3], "f")
        group["scale"].attrs["weight_names"] = np.array([b"m/variable_1"])
    module, variables = load_model(path)
    y = module.apply(variables, np.ones((2, 3), "f"))
    np.testing.assert_array_equal(y, [[1, 2, 3], [1, 2, 3]])


# Layers that feed others, and the input with which their model is traced.
@pytest.mark.parametrize(
    ("name", "layers"),
    [
        long("image", ["conv2d", "conv2d_transpose", "separable_conv2d"]),
        long("sequence", ["embedding", "time_distributed", "gru_1"]),
        ("graph", ["block/dense"]),
    ],
)
def test_a_grown_module_predicts_the_same(name, layers):
    path = DATA / f"keras_3.15.1_{name}.keras"
    module, variables = load_model(path)
    xs, _ = predicted(path)
    widths = dw.trace(module.apply, variables, *xs)
    sizes = {}
    for layer in layers:
        width = next(
            w for n, w in widths.items() if n.split("[")[0].startswith(layer) and not w.fixed
        )
        sizes[width.name] = width.size + 3
    wide = dw.grow(variables, dw.plan(widths, sizes), key=jax.random.key(1))
    assert_predicts(module, wide, path)
    own = jax.eval_shape(module.resized(wide).init, jax.random.key(0), *xs)
    assert shapes(own) == shapes(wide)


@pytest.mark.parametrize("writer", ["keras_3.15.1", "tf_keras_2.21.0"])
@pytest.mark.long
def test_shapes_and_groups_of_a_grown_model_are_written(writer, tmp_path):
    path = DATA / f"{writer}_growing.keras"
    module, variables = load_model(path)
    widths = dw.trace(module.apply, variables, *predicted(path)[0])
    growth = dw.plan(widths, {"dense[1.2]": 9, "conv2d[groups]": 4})  # channels, groups of 2
    wide = dw.grow(variables, growth, key=jax.random.key(1))
    assert_predicts(module, wide, path)
    keras_h5.save(tmp_path / "wide", wide, like=path)
    module, wide = load_model(tmp_path / "wide")
    shutil.copy(path.with_suffix(".npz"), tmp_path / "wide.npz")
    assert_predicts(module, wide, tmp_path / "wide")
    config = json.loads(zipfile.ZipFile(tmp_path / "wide").read("config.json"))
    layers = [layer["config"] for layer in config["config"]["layers"]]
    found = {key: [c[key] for c in layers if key in c] for key in ("target_shape", "groups")}
    assert found["target_shape"] == [[4, 3, 9], [1, 1, 8]] and 4 in found["groups"]
    assert not any("dogwood" in key for layer in layers for key in layer)


def test_groups_may_be_more_or_larger():
    assert grown_groups(3, 6, 8) == 4 and grown_groups(3, 6, 9) == 3
    assert grown_groups(1, 6, 9) == 1 and grown_groups(6, 6, 9) == 9
    with pytest.warns(RuntimeWarning, match="12 channels read as 6 groups of 2, not as 3 groups"):
        assert grown_groups(3, 6, 12) == 6
    with pytest.raises(
        ValueError, match="7 channels divide neither into groups of 2 nor into 3 groups"
    ):
        grown_groups(3, 6, 7)


def test_a_shape_of_which_any_axis_may_have_grown_is_refused(tmp_path):
    assert reshape_target((6, 24), (6, 2, 8), 12) == (6, 2, 12)
    assert reshape_target((24,), (-1, 1, 12), 24) == (-1, 1, 24)
    assert reshape_target((24,), (3, 3), 3) == (8, 3)
    with pytest.raises(ValueError, match=r"which axis of \(2, 3\) has grown"):
        reshape_target((12,), (2, 3), None)
    model = sequential(
        ("InputLayer", {"batch_shape": [None, 4], "dtype": "float32"}),
        ("Dense", {"units": 6, "activation": "linear"}),
        ("Reshape", {"target_shape": [2, 3]}),
        ("Flatten", {}),
        ("Dense", {"units": 2, "activation": "linear"}),
    )
    dense = lambda *sizes: {"kernel": jnp.ones(sizes), "bias": jnp.ones(sizes[1])}  # noqa: E731
    with pytest.raises(
        ValueError, match=r"no config .*: layer_2 \(Reshape\): which axis of \(2, 3"
    ):
        resized(model, {"params": {"layer_1": dense(4, 12), "layer_4": dense(12, 2)}})
    with pytest.raises(ValueError, match=r"layer_4/kernel: has shape \(7, 2\), but Keras would"):
        resized(model, {"params": {"layer_1": dense(4, 6), "layer_4": dense(7, 2)}})


def dense(units):
    return "Dense", {"units": units, "activation": "linear", "use_bias": False}


def conv(filters, **options):
    options = {"kernel_size": [1], "padding": "valid", "activation": "linear", **options}
    return "Conv1D", {"filters": filters, **options}


def each(layer):
    class_name, config = layer
    inner = {"class_name": class_name, "config": {"name": "inner", **config}}
    return "TimeDistributed", {"layer": inner}


NORM = ("GroupNormalization", {"groups": 3, "axis": -1, "epsilon": 0.001})


@pytest.mark.parametrize(
    ("layers", "width", "size", "why"),
    [
        (
            [
                ("Reshape", {"target_shape": [2, 2, 3]}),
                *map(each, (conv(6), NORM, conv(6, groups=3), ("GlobalAveragePooling1D", {}))),
            ],
            "layer_2[groups]",
            4,
            None,
        ),
        ([conv(4), conv(4, groups=2)], "layer_1[groups]", 3, None),
        ([conv(4), conv(4, groups=2)], "layer_1[2.1]", 3, None),
        ([conv(4), ("Reshape", {"target_shape": [-1, 4]})], "layer_1", 5, None),
        (
            [("Flatten", {}), dense(9), ("Reshape", {"target_shape": [3, 3]})],
            "layer_2[1.1]",
            4,
            None,
        ),
        (
            [("Flatten", {}), dense(9), ("Reshape", {"target_shape": [3, 3]}), ("Flatten", {})],
            "layer_2[1.0]",
            4,
            r"layer_3 \(Reshape\): which axis",
        ),
        (
            [("Flatten", {}), dense(4), ("RepeatVector", {"n": 4}), ("Permute", {"dims": [2, 1]})],
            "layer_5[0]",
            5,
            None,
        ),
        (
            [
                *(("Flatten", {}), dense(1), ("ops.Repeat", {"repeats": 4, "axis": 1})),
                *(dense(1), ("ops.Tile", {"repeats": [1, 4]})),
                *(dense(1), ("ops.BroadcastTo", {"shape": [2, 4]})),
                *(dense(12), ("ops.Reshape", {"newshape": [-1, 3, 4]}), ("ops.Relu", {})),
            ],
            ("layer_4[0]", "layer_6[0]", "layer_8[0]", "layer_8[1.1]"),
            5,
            None,
        ),
        (
            [("Flatten", {}), ("ops.OneHot", {"num_classes": 24, "axis": -1})],
            "layer_4[0]",
            25,
            None,
        ),
        (
            [
                *(("Flatten", {}), ("ops.OneHot", {"num_classes": 24, "axis": -1})),
                *(("ops.Sum", {"axis": [1], "keepdims": False}), dense(3), ("Flatten", {})),
            ],
            "layer_4[0]",
            25,
            None,
        ),
        (
            [
                ("Flatten", {}),
                ("CategoryEncoding", {"num_tokens": 24, "output_mode": "count"}),
                *(dense(3), ("Flatten", {})),
            ],
            "layer_3[0]",
            25,
            None,
        ),
    ],
)
@pytest.mark.long
def test_what_can_be_planned_is_computed_and_saved(layers, width, size, why):
    pooled = [] if layers[-1][0] in ("Flatten", "Permute") else [("GlobalAveragePooling1D", {})]
    start = ("InputLayer", {"batch_shape": [2, 4, 3], "dtype": "float32"})
    module = build(sequential(start, *layers, *pooled, dense(2)))
    x = np.arange(24, dtype="f").reshape(2, 4, 3)
    variables = jax.jit(module.init)(jax.random.key(0), x)
    widths = dw.trace(module.apply, variables, x)
    sizes = dict.fromkeys([width] if isinstance(width, str) else width, size)
    if why:
        with pytest.raises(ValueError, match=why):
            dw.plan(widths, sizes)
        return
    wide = dw.grow(variables, dw.plan(widths, sizes, interface=True), key=jax.random.key(1))
    y = module.apply(variables, x)
    for grown in (module, build(resized(module.config, wide))):
        np.testing.assert_allclose(grown.apply(wide, x), y, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [8, 9])
def test_larger_takes_the_layers_own_numbers(size):
    """The config's ``filters`` and ``units`` are those of the larger arrays."""
    conv = {"filters": 4, "kernel_size": [3], "padding": "same"}
    start = ("InputLayer", {"batch_shape": [2, 6, 3], "dtype": "float32"})
    layers = [start, ("Conv1D", conv), ("GlobalAveragePooling1D", {}), dense(5), dense(2)]
    module = build(sequential(*layers))
    x = np.arange(36, dtype="f").reshape(2, 6, 3) / 36
    variables = module.init(jax.random.key(0), x)
    widths = dw.trace(module.apply, variables, x)
    growth = dw.plan(widths, {name: size for name in widths if widths[name].size in (4, 5)})
    wide = dw.grow(variables, growth, key=jax.random.key(1))
    large = dw.larger(module, growth)
    conv, *_, hidden, out = (layer["config"] for layer in large.config["config"]["layers"][1:])
    assert (conv["filters"], hidden["units"], out["units"]) == (size, size, 2)
    shapes = jax.eval_shape(large.init, jax.random.key(0), x)
    assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, wide)
    np.testing.assert_allclose(large.apply(wide, x), module.apply(variables, x), rtol=1e-5)


def test_channels_that_a_depthwise_kernel_does_not_tell_are_refused():
    conv = {"kernel_size": [1], "padding": "valid", "depth_multiplier": 1, "use_bias": False}
    module = build(sequential(("Reshape", {"target_shape": [-1, 2]}), ("DepthwiseConv1D", conv)))
    x = np.ones((1, 8), "f")
    kernel = module.init(jax.random.key(0), x)["params"]["layer_1"]["kernel"]
    assert module.apply({"params": {"layer_1": {"kernel": kernel}}}, x).shape == (1, 4, 2)
    wide = {"params": {"layer_1": {"kernel": np.ones((1, 1, 4), "f")}}}
    with pytest.raises(
        ValueError, match="layer_0: cannot tell whether the channels or the depth_multiplier"
    ):
        module.apply(wide, x)


def test_in_what_a_module_differs_from_keras_is_said():
    model = sequential(
        ("LSTM", {"units": 2, "activation": "tanh", "stateful": True}),
        ("Dense", {"units": 2, "dtype": "mixed_float16"}),
        ("Dense", {"units": 2, "dtype": {"config": {"name": "bfloat16"}}}),
    )
    assert differences(build(model)) == [
        "layer_0 starts each call with a state of zeros, as after reset_states()",
        "layer_1 computes in the dtype of its arrays, but in Keras in mixed_float16",
        "layer_2 computes in the dtype of its arrays, but in Keras in bfloat16",
    ]


def test_a_module_trains():
    module, variables = load_model(DATA / "keras_3.15.1_image.keras")
    (x,), _ = predicted(DATA / "keras_3.15.1_image.keras")

    def loss(params):
        y, updates = module.apply(
            {**variables, "params": params},
            x,
            deterministic=False,
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.key(0)},
        )
        return jnp.mean(y**2), updates

    step = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (_, updates), gradients = step(variables["params"])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    old, new = (tree["batch_stats"]["batch_normalization"]["mean"] for tree in (variables, updates))
    assert not np.allclose(old, new)


def test_a_module_is_compiled_once():
    module, variables = load_model(LATEST[2])
    count = 0

    @jax.jit
    def apply(variables, *xs):
        nonlocal count
        count += 1
        return module.apply(variables, *xs)

    xs, ys = predicted(LATEST[2])
    for _ in range(2):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, 1e-5, 1e-5), apply(variables, *xs), ys
        )
    assert count == 1
    assert hash(module) == hash(copy.deepcopy(module)) and "KerasModel" in repr(module)


def test_flax_does_not_look_for_modules_in_configs():
    edges = [i / 1000 for i in range(5000)]
    layer = {"class_name": "Discretization", "config": {"name": "bins", "bin_boundaries": edges}}
    module = build({"class_name": "Sequential", "config": {"layers": [layer]}})
    assert flax.serialization.to_state_dict(module.config) is module.config
    np.testing.assert_array_equal(
        module.apply({}, jnp.array([[-1.0, 2.0, 9.0]])), [[0, 2001, 5000]]
    )
    assert repr(module.config).startswith("FrozenConfig({'class_name': 'Sequential'")


@pytest.mark.long
def test_inputs_are_taken_in_order_in_a_list_or_by_name():
    module, variables = load_model(LATEST[2])
    (a, b), ys = predicted(LATEST[2])
    for inputs in ((a, b), ([a, b],), ({"b": b, "a": a},)):
        y, _ = module.apply(variables, *inputs)
        np.testing.assert_allclose(y, ys[0], rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match=r"expected 2 inputs \(a, b\), got 1"):
        module.apply(variables, a)


# Models made by hand.

SLICE = {"start": 1, "stop": None, "step": None}
DOTS = {"class_name": "__ellipsis__"}


def sequential(*layers):
    listed = [
        {"class_name": name, "config": {"name": f"layer_{i}"} | config}
        for i, (name, config) in enumerate(layers)
    ]
    return {"class_name": "Sequential", "config": {"name": "model", "layers": listed}}


def test_all_that_is_not_supported_is_said_at_once():
    model = sequential(
        ("Lambda", {"function": ["4wEAAAAA", None, None], "function_type": "lambda"}),
        ("Dense", {"units": 3, "activation": "my_activation"}),
        ("Sequential", {"layers": [{"class_name": "Custom>Thing", "config": {"name": "thing"}}]}),
        (
            "LSTM",
            {"units": 3, "activation": "tanh", "recurrent_activation": "sigmoid", "time_major": 1},
        ),
        ("Conv2D", {"filters": 3}),
        ("Dense", {"name": "variables", "units": 3}),
        ("Dense", {"name": "params", "units": 3}),
    )
    with pytest.raises(KerasFileError) as raised:
        build(model)
    assert str(raised.value).splitlines() == [
        "cannot make a Flax module of this model:",
        "- layer_0 (Lambda): this class of layers is not supported",
        "- layer_1 (Dense): the activation 'my_activation' is not one of Keras's own",
        "- layer_2/thing (Custom>Thing): its class is not part of Keras, and its code is not in "
        "the file",
        "  load reads its weights, for a module of your own",
        "- layer_3 (LSTM): time_major=True is not supported",
        "- layer_4 (Conv2D): its config has no 'padding'",
        "- variables (Dense): Flax modules use this name; rename the layer",
        "- params (Dense): Flax modules use this name; rename the layer",
    ]


def test_masks_are_not_ignored():
    model = sequential(
        ("Embedding", {"input_dim": 3, "output_dim": 3, "mask_zero": True}),
        ("Softmax", {}),
    )
    with pytest.raises(KerasFileError, match=r"layer_1 \(Softmax\): it is given a mask"):
        build(model)


def test_masks_that_keras_3_may_forget_are_refused():
    def layer(class_name, name, *read, **config):
        refs = [
            {"class_name": "__keras_tensor__", "config": {"keras_history": [r, 0, 0]}} for r in read
        ]
        nodes = [{"args": refs, "kwargs": {}}] if read else []
        config = {"name": name, **config}
        return {"class_name": class_name, "config": config, "name": name, "inbound_nodes": nodes}

    def model(first):
        heads = {"num_heads": 1, "key_dim": 2}
        layers = [
            layer("InputLayer", "x"),
            layer("Embedding", "e", "x", input_dim=3, output_dim=2, mask_zero=True),
            layer("MultiHeadAttention", "a", "e", "e", **heads),
            layer("MultiHeadAttention", "b", first, "e", **heads),
        ]
        ends = {"input_layers": [["x", 0, 0]], "output_layers": [["b", 0, 0]]}
        config = {"layers": layers, **ends}
        return {"class_name": "Functional", "config": config, "keras_version": "3.15.1"}

    build(model("a"))
    with pytest.raises(
        KerasFileError, match="a .MultiHeadAttention.: masks after it are not supported"
    ):
        build(model("e"))


def test_layers_that_wait_for_each_other_are_refused():
    def layer(name, *inbound):
        nodes = [[[other, 0, 0, {}] for other in inbound]] if inbound else []
        class_name = "Add" if inbound else "InputLayer"
        return {
            "class_name": class_name,
            "name": name,
            "config": {"name": name},
            "inbound_nodes": nodes,
        }

    config = {
        "layers": [layer("x"), layer("a", "x", "b"), layer("b", "a")],
        "input_layers": [["x", 0, 0]],
        "output_layers": [["b", 0, 0]],
    }
    with pytest.raises(KerasFileError, match="the layers a, b depend on each other"):
        build({"class_name": "Functional", "config": config})


def test_padding_does_not_count_in_an_average():
    pool = {"pool_size": [2], "strides": [2], "padding": "same"}
    x = np.array([1, 3, 5, 7, 8], "f")[None, :, None]
    y = build(sequential(("AveragePooling1D", pool))).apply({}, x)
    np.testing.assert_array_equal(y[0, :, 0], [2, 6, 8])


X = np.arange(1, 17, dtype="f").reshape(1, 2, 2, 4)
V = np.array([[3, -1, 2], [0, 5, 4]], "f")


@pytest.mark.parametrize(
    ("class_name", "config", "x", "expected"),
    [
        ("CustomScaleLayer", {"scale": 0.5}, [V, 2 * V], 2 * V),
        ("ops.BroadcastTo", {"shape": [2, 2, 3]}, V, [V, V]),
        ("ops.Repeat", {"repeats": 2, "axis": 0}, V, V[[0, 0, 1, 1]]),
        ("ops.Repeat", {"repeats": [1, 2], "axis": 0}, V, V[[0, 1, 1]]),
        ("ops.Moveaxis", {"source": [0], "destination": [-1]}, V, V.T),
        ("ops.Argmax", {"axis": -1, "keepdims": False}, V, np.array([0, 1], "i4")),
        ("ops.Argmin", {"axis": -1, "keepdims": True}, V, np.array([[1], [0]], "i4")),
        ("TFOpLambda", {"function": "math.argmax"}, V, np.array([0, 1, 1], "i4")),
        ("ops.Roll", {"shift": [1, -1], "axis": [0, 1]}, V, np.roll(V, (1, -1), (0, 1))),
        ("ops.Flip", {"axis": [0, 1]}, V, V[::-1, ::-1]),
        ("ops.Std", {"axis": [1], "keepdims": True}, V, V.std(1, keepdims=True)),
        ("ops.Cumsum", {"axis": 1, "dtype": None}, V, np.float32([[3, 2, 4], [0, 5, 9]])),
        ("ops.Argsort", {"axis": -1}, V, np.array([[1, 2, 0], [0, 2, 1]], "i4")),
        ("TFOpLambda", {"function": "math.reduce_variance"}, V, V.var()),
        ("ops.Norm", {"ord": 1, "axis": [1], "keepdims": False}, V, np.array([6, 9], "f")),
        ("ops.Norm", {"ord": None, "axis": [0, 1], "keepdims": True}, V, np.sqrt([[55.0]])),
        ("ops.OneHot", {"num_classes": 2, "axis": 0}, np.array([1, 0]), np.eye(2, dtype="f")[::-1]),
        ("ops.OneHot", {"num_classes": 2, "axis": -1, CHANNELS: 3}, np.array([1]), [[0, 1.0, 0]]),
        (
            "ops.DepthToSpace",
            {"block_size": 2},
            X[:, :1, :1],
            np.float32([[[[1], [2]], [[3], [4]]]]),
        ),
        ("ops.SpaceToDepth", {"block_size": 2}, X[..., :1], np.float32([[[[1, 5, 9, 13]]]])),
        ("ops.Resize", {"size": [1, 1]}, X, X.mean((1, 2), keepdims=True)),
        (
            "ops.Resize",
            {"size": [1, 2], "data_format": "channels_first"},
            X[0].T,
            X[0].T.mean(1, keepdims=True),
        ),
        (
            "Resizing",
            {"height": 2, "width": 1, "crop_to_aspect_ratio": True},
            X,
            X[:, :, :1],
        ),
        ("CenterCrop", {"height": 4, "width": 4}, np.ones_like(X), np.ones((1, 4, 4, 4), "f")),
        (
            "AdaptiveMaxPooling1D",
            {"output_size": [2]},
            V[..., None],
            np.float32([[[3], [2]], [[5], [5]]]),
        ),
        (
            "AdaptiveAveragePooling1D",
            {"output_size": 2},
            V[..., None],
            np.float32([[[1], [0.5]], [[2.5], [4.5]]]),
        ),
    ],
)
def test_layers_and_operations_compute_what_keras_computes(class_name, config, x, expected):
    y = make_layer(class_name, config, None, True)(x)
    np.testing.assert_allclose(y, expected, rtol=1e-6)
    assert y.dtype == np.asarray(expected).dtype or y.dtype == np.float32


@pytest.mark.parametrize(
    ("name", "config", "arrays", "expected"),
    [
        ("TopK", {"k": 2, "sorted": True}, [V], [[[3, 2], [5, 4]], [[0, 2], [1, 2]]]),
        ("Unstack", {"num": None, "axis": 1}, [V], list(V.T)),
        ("Tensordot", {"axes": [[0], [0]]}, [V, V], [V.T @ V]),
        ("FFT2", {}, [[V, 0 * V]], [np.fft.fft2(V).real, np.fft.fft2(V).imag]),
        ("SegmentSum", {"num_segments": 3}, [V, np.array([2, 2])], [[[0] * 3, [0] * 3, V.sum(0)]]),
        ("DivideNoNan", {}, [V, V * (V > 2)], [V > 2]),
    ],
)
def test_operations_of_or_to_several_arrays(name, config, arrays, expected):
    results = jax.tree.leaves(make_layer(f"ops.{name}", config, None, True)(*arrays))
    for result, array in zip(results, expected, strict=True):
        np.testing.assert_allclose(result, array, rtol=1e-5, atol=1e-6)


def test_an_embedding_may_be_the_head_too():
    embedding = {"input_dim": 5, "output_dim": 2, "tie_weights": False, "logit_soft_cap": 2.0}
    layer = {"class_name": "ReversibleEmbedding", "config": {"name": "e", **embedding}}
    ref = {"class_name": "__keras_tensor__", "config": {"keras_history": ["e", 0, 0]}}
    first = {"class_name": "__keras_tensor__", "config": {"keras_history": ["x", 0, 0]}}
    nodes = [{"args": [first], "kwargs": {}}, {"args": [ref], "kwargs": {"reverse": True}}]
    inputs = {"class_name": "InputLayer", "config": {"name": "x", "batch_shape": [None, 3]}}
    config = {
        "layers": [{**inputs, "inbound_nodes": []}, {**layer, "inbound_nodes": nodes}],
        "input_layers": [["x", 0, 0]],
        "output_layers": [["e", 1, 0]],
    }
    module = build({"class_name": "Functional", "config": config})
    there, back = np.arange(10.0, dtype="f").reshape(5, 2), np.ones((2, 5), "f")
    arrays = to_flax("ReversibleEmbedding", embedding, {"0": there, "1": back})
    y = module.apply({"params": {"e": arrays["params"]}}, np.array([[0, 4, 1]]))
    np.testing.assert_allclose(y, np.tanh((there[[0, 4, 1]] @ back) / 2)[None] * 2, rtol=1e-6)
    arrays["params"]["reverse_embedding"] = np.ones((2, 6), "f")
    with pytest.raises(ValueError, match=r"e \(Rev.* table of shape \(2, 5\) on the way back.*6\)"):
        module.apply({"params": {"e": arrays["params"]}}, np.array([[0, 4, 1]]))


def connected(*layers):
    """A model of layers with the names of what each reads; the last one makes the output."""
    listed = []
    for name, class_name, config, *read in layers:
        refs = [
            {"class_name": "__keras_tensor__", "config": {"keras_history": [r, 0, 0]}} for r in read
        ]
        listed.append(
            {
                "class_name": class_name,
                "config": {"name": name, **config},
                "inbound_nodes": [{"args": refs, "kwargs": {}}] if read else [],
            }
        )
    inputs = [[name, 0, 0] for name, *rest in layers if len(rest) == 2]
    outputs = [[layers[-1][0], 0, 0]]
    config = {"layers": listed, "input_layers": inputs, "output_layers": outputs}
    return {"class_name": "Functional", "config": {"name": "model", **config}}


TEXT = ("text", "InputLayer", {"batch_shape": [None, 1], "dtype": "string"})
TOKENS = ("tokens", "TextVectorization", {"output_sequence_length": 3}, "text")
EMBEDDING = ("embedding", "Embedding", {"input_dim": 5, "output_dim": 2}, "tokens")


def test_a_model_behind_a_vocabulary_takes_what_it_returns():
    module = build(connected(TEXT, TOKENS, EMBEDDING))
    assert differences(module) == ["tokens is left out; pass its result in Keras as input text"]
    (example,) = example_inputs(module)
    assert example.shape[1:] == (3,) and example.dtype == jnp.int32
    table = np.arange(10.0, dtype="f").reshape(5, 2)
    variables = {"params": {"embedding": {"embedding": table}}}
    np.testing.assert_array_equal(
        module.apply(variables, np.array([[0, 4, 1]]))[0], table[[0, 4, 1]]
    )
    with pytest.raises(ValueError, match="the numbers that tokens returns in Keras.*; got text"):
        module.apply(variables, np.array([["a"]]))
    dense = ("Dense", {"units": 2, "activation": "linear"})
    module = build(sequential(("StringLookup", {"output_mode": "multi_hot"}), dense))
    assert differences(module)[0].startswith("layer_0 is left out; pass its result")
    assert example_inputs(module) is None


@pytest.mark.parametrize(("batch", "shape"), [(None, (32,)), (4, (4,))])
def test_an_example_may_be_a_number(batch, shape):
    numbers = ("x", "InputLayer", {"batch_shape": [batch], "dtype": "int32"})
    (example,) = example_inputs(build(connected(numbers, (*EMBEDDING[:3], "x"))))
    assert example.shape == shape


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (connected(TEXT, ("x", "Identity", {}, "text"), TOKENS[:3] + ("x",)), "not at the front"),
        (
            connected(TEXT, TOKENS, ("h", "Hashing", {}, "text")),
            "input of tokens is also read by h",
        ),
        (connected(TEXT, ("x", "Identity", {}, "text")), r"text \(InputLayer\): text is not supp"),
        (sequential(("Sequential", sequential(("Hashing", {}))["config"])), "inside another model"),
    ],
)
def test_vocabularies_elsewhere_are_refused(model, message):
    with pytest.raises(KerasFileError, match=message):
        build(model)


def test_sparsemax_is_that_of_keras():
    x = np.array([[2.0, 1.5, -1.0], [0.5, 0.25, 0.0]], "f")
    y = build(sequential(("Activation", {"activation": "sparsemax"}))).apply({}, x)
    np.testing.assert_allclose(y, [[0, 0, 0], [1 / 6, 0, 0]], atol=1e-6)


def test_noise_is_for_training():
    x = np.ones((1, 2, 2, 3), "f")
    module = build(sequential(("RandomHue", {"factor": [0, 1]}), ("CutMix", {"factor": 1})))
    np.testing.assert_array_equal(module.apply({}, x), x)
    with pytest.raises(ValueError, match="its noise is not supported in training"):
        module.apply({}, x, deterministic=False)


@pytest.mark.long
def test_stacked_cells_are_layers_in_a_row():
    cell = lambda name, units: {  # noqa: E731
        "class_name": name,
        "config": {"units": units, "activation": "tanh", "recurrent_activation": "sigmoid"},
    }
    lstm, simple = cell("LSTMCell", 3), cell("SimpleRNNCell", 2)
    stack = {"class_name": "StackedRNNCells", "config": {"cells": [lstm, simple]}}
    stacked = sequential(("RNN", {"cell": stack, "return_state": True}))
    row = build(
        sequential(
            ("RNN", {"cell": lstm, "return_sequences": True}),
            ("RNN", {"cell": simple, "return_state": True}),
        )
    )
    x = jax.random.normal(jax.random.key(0), (2, 5, 4), jnp.float32)
    params = row.init(jax.random.key(1), x)["params"]
    cells = {f"cells_{i}": params[f"layer_{i}"]["cell"] for i in (0, 1)}
    variables = {"params": {"layer_0": {"cell": cells}}}
    outputs, expected = build(stacked).apply(variables, x), row.apply({"params": params}, x)
    assert (len(outputs), len(expected)) == (4, 2)  # with all states, as Keras 3 returns them
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-6), outputs[::3], expected)
    wide = jax.tree.map(lambda a: np.zeros([*a.shape[:-1], 5], "f"), variables)
    layers = resized(stacked, wide)["config"]["layers"][0]["config"]["cell"]["config"]["cells"]
    assert [layer["config"]["units"] for layer in layers] == [5, 5]
    simple["class_name"] = "mine>Cell"  # nothing is known of this class
    assert layout("RNN", {"cell": stack}) == []
    assert resized(stacked, wide) == stacked


def test_random_crops_are_not_the_same_in_all_versions():
    model = sequential(("RandomCrop", {"height": 1, "width": 2}))
    for version, expected in (("3.15.1", X), ("2.15.0", X[:, :1])):
        y = build({**model, "keras_version": version}).apply({}, X)
        np.testing.assert_allclose(y, expected, rtol=1e-6)
    with pytest.raises(KerasFileError, match="layer_0 .*crops of Keras 3.6 and 3.7"):
        build({**model, "keras_version": "3.7.0"})


def test_a_depthwise_convolution_may_have_more_outputs_for_each_channel():
    conv = {"kernel_size": [1], "padding": "valid", "depth_multiplier": 1, "use_bias": False}
    kernel = np.array([1, 10, 2, 20], "f").reshape(1, 1, 4)
    module = build(sequential(("DepthwiseConv1D", conv)))
    y = module.apply({"params": {"layer_0": {"kernel": kernel}}}, np.array([[[3, 5]]], "f"))
    np.testing.assert_array_equal(y[0, 0], [3, 30, 10, 100])


def functional(*layers):
    """A model of an input ``x`` and layers, the last of which gives its output."""
    inputs = {"class_name": "InputLayer", "name": "x", "config": {"name": "x"}, "inbound_nodes": []}
    refs = {"input_layers": [["x", 0, 0]], "output_layers": [[layers[-1]["name"], 0, 0]]}
    model = {"class_name": "Functional", "config": {"layers": [inputs, *layers], **refs}}
    return with_classes(model)


def keras_3(class_name, name, *args):
    def argument(arg):
        if not isinstance(arg, str):
            return arg
        return {"class_name": "__keras_tensor__", "config": {"keras_history": [arg, 0, 0]}}

    return {
        "module": "keras.src.ops.numpy",
        "class_name": class_name,
        "name": name,
        "config": {"name": name},
        "inbound_nodes": [{"args": [argument(arg) for arg in args], "kwargs": {}}],
    }


def function_call(function, name, node):
    config = {"name": name, "function": function}
    class_name = "SlicingOpLambda" if "getitem" in function else "TFOpLambda"
    return {"class_name": class_name, "name": name, "config": config, "inbound_nodes": [node]}


def graph_node(op, name, constants, *inputs, **masks):
    names = ("begin", "end", "ellipsis", "new_axis", "shrink_axis")
    attributes = {f"{mask}_mask": {"i": str(masks.get(mask, 0))} for mask in names}
    return {
        "class_name": "TensorFlowOpLayer",
        "name": name,
        "config": {"name": op, "node_def": {"op": op, "attr": attributes}, "constants": constants},
        "inbound_nodes": [[[other, 0, 0, {}] for other in inputs]],
    }


INDICES = ({"1": [1, 1], "2": [0, 2], "3": [1, 1]}, {"1": [0, 0], "2": [0, 0], "3": [1, 1]})
OPERATIONS = {
    "keras_3": [
        keras_3("Multiply", "a", 2, "x"),
        keras_3("Subtract", "b", "a", "x"),
        keras_3("TrueDivide", "c", "b", 4.0),
        keras_3("GetItem", "d", "c", [{"class_name": "__slice__", "config": SLICE}, 1]),
        keras_3("GetItem", "e", "d", [DOTS | {"config": {}}, None]),
    ],
    "function": [
        function_call("math.multiply", "a", ["_CONSTANT_VALUE", -1, 2, {"y": ["x", 0, 0]}]),
        function_call("math.subtract", "b", ["a", 0, 0, {"y": ["x", 0, 0], "name": None}]),
        function_call("math.truediv", "c", ["b", 0, 0, {"y": 4.0, "name": None}]),
        function_call("__operators__.getitem", "d", ["c", 0, 0, {"slice_spec": [SLICE, 1]}]),
        function_call("__operators__.getitem", "e", ["d", 0, 0, {"slice_spec": [DOTS, None]}]),
    ],
    "graph": [
        graph_node("Mul", "a", {"0": 2.0}, "x"),
        graph_node("Sub", "b", {}, "a", "x"),
        graph_node("RealDiv", "c", {"1": 4.0}, "b"),
        # Of rows from 1 on column 1, and of all that a new axis.
        graph_node("StridedSlice", "d", INDICES[0], "c", begin=0, end=1, shrink_axis=2),
        graph_node("StridedSlice", "e", INDICES[1], "d", ellipsis=1, new_axis=2),
    ],
}


@pytest.mark.parametrize("layers", OPERATIONS.values(), ids=OPERATIONS.keys())
def test_arithmetic_of_every_release(layers):
    x = np.arange(12, dtype="f").reshape(4, 3)
    expected = ((2 * x - x) / 4)[1:, 1, None]
    np.testing.assert_array_equal(build(functional(*layers)).apply({}, x), expected)


def test_a_model_with_an_index_grows():
    whole = {"class_name": "__slice__", "config": dict.fromkeys(("start", "stop", "step"))}
    dense = keras_3("Dense", "first", "x")
    dense["config"].update(units=2, activation="linear", trainable=True)
    dense["module"] = "keras.layers"
    model = functional(dense, keras_3("GetItem", "end", "first", [whole, 0]))
    model["config"]["layers"][0]["config"]["batch_shape"] = [None, 5, 3]
    wide = {"params": {"first": {"kernel": np.ones((3, 4)), "bias": np.ones(4)}}}
    assert resized(model, wide)["config"]["layers"][1]["config"]["units"] == 4


def changed(path, tmp_path, change):
    """A copy of a file of Keras 2 with another config."""
    new = tmp_path / "changed.h5"
    shutil.copy(path, new)
    with h5py.File(new, "r+") as file:
        config = json.loads(file.attrs["model_config"])
        change({layer["config"]["name"]: layer for layer in config["config"]["layers"]})
        file.attrs["model_config"] = json.dumps(config)
    return new


def test_a_config_that_contradicts_the_arrays_is_refused(tmp_path):
    path = DATA / "tensorflow_2.10.0_image.h5"
    path = changed(path, tmp_path, lambda layers: layers["conv2d"]["config"].update(filters=7))
    with pytest.raises(KerasFileError, match=r"'conv2d' \(Conv2D\).* 7\).* 6\)") as e:
        load_model(path)
    assert str(path) in str(e.value)


def test_arrays_that_do_not_fit_together_are_refused(tmp_path):
    path = DATA / "tensorflow_2.10.0_image.h5"
    path = changed(path, tmp_path, lambda layers: layers["conv2d"]["config"].update(groups=5))
    with pytest.raises(KerasFileError, match="the arrays do not belong to the model"):
        load_model(path)


INT8 = {"class_name": "QuantizedDTypePolicy", "config": {"mode": "int8"}}


@pytest.mark.parametrize(
    ("class_name", "policy", "options", "why"),
    [
        ("Dense", "QuantizedFloat8DTypePolicy", {"mode": "float8"}, "of mode 'float8' are not"),
        ("Dense", "GPTQDTypePolicy", {"mode": "gptq/4/128"}, "of mode 'gptq/4/128' are not"),
        ("Dense", "AWQDTypePolicy", {"mode": "awq/4/128"}, "of mode 'awq/4/128' are not"),
        ("Dense", "QuantizedDTypePolicy", {"mode": "int4"}, "of mode 'int4' are not.*Keras 3.14"),
        ("Dense", "QuantizedDTypePolicy", {"mode": "int8", "rank": 2}, "with LoRA are not"),
        ("Dense", "Int4DTypePolicy", [], "with this dtype policy are not supported"),
        (
            "GroupedQueryAttention",
            "QuantizedDTypePolicy",
            {"mode": "int8"},
            "in this class",
        ),
    ],
)
def test_layers_quantized_in_other_ways_are_refused(class_name, policy, options, why, tmp_path):
    path = tmp_path / "quantized.keras"
    config = {"name": "h", "units": 2, "dtype": {"class_name": policy, "config": options}}
    config["lora_rank"] = options and options.get("rank")
    model = {"class_name": "Sequential", "config": {"layers": [{"class_name": class_name}]}}
    model["config"]["layers"][0]["config"] = config
    with h5py.File(tmp_path / "weights.h5", "w") as file:
        for index, shape in enumerate(((3, 2), (2,), (2,))):  # with a scale
            place = positions.snake_case(class_name)
            file[f"layers/{place}/vars/{index}"] = np.ones(shape, "int8" if not index else "f")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("metadata.json", "{}")
        archive.writestr("config.json", json.dumps(model))
        archive.write(tmp_path / "weights.h5", "model.weights.h5")
    with pytest.raises(KerasFileError, match=f"'h' .{class_name}.: quantized weights .*{why}"):
        load_model(path)


def test_a_quantized_layer_at_each_step_is_refused():
    # Keras 3.15 calls the layer inside without its scales.
    inner = {"class_name": "Dense", "config": {"name": "d", "units": 2, "dtype": INT8}}
    layer = {"class_name": "TimeDistributed", "config": {"name": "each", "layer": inner}}
    with pytest.raises(KerasFileError, match="each .TimeDistributed.: quantized weights are not"):
        build({"class_name": "Sequential", "config": {"layers": [layer]}})


@pytest.mark.parametrize("path", QUANTIZED, ids=lambda path: path.name)
def test_quantized_weights_are_integers_and_written_back_as_they_were(path, tmp_path):
    module, variables = load_model(path)
    xs, _ = predicted(path)
    kernel = variables["params"]["dense"]["kernel"]
    assert kernel.shape == (5, 7) and kernel.dtype == np.int8
    assert np.abs(kernel).max() in ((7, 8) if "int4" in path.stem else (127,))
    own = jax.eval_shape(module.init, jax.random.key(0), *xs)
    assert shapes(own) == shapes(variables)
    copy = tmp_path / path.name
    keras_h5.save(copy, variables, like=path)
    for old, new in zip(weights_in(path), weights_in(copy), strict=True):
        np.testing.assert_array_equal(old, new, strict=True)
    with pytest.raises(ValueError, match="dense: Keras expects quantized weights of layout 'h5'"):
        keras_h5.save(tmp_path / "x.h5", variables, like=path, layout="h5")
    variables["params"]["dense"]["kernel"] = kernel.astype("f")
    with pytest.raises(ValueError, match="dense: expected quantized weights of int8, got float32"):
        keras_h5.save(copy, variables, like=path)


def weights_in(path):
    """The arrays that a file holds, byte by byte."""
    if path.suffix == ".keras":
        path = zipfile.ZipFile(path).open("model.weights.h5")
    arrays = []
    with h5py.File(path) as file:
        file.visititems(lambda _, item: isinstance(item, h5py.Dataset) and arrays.append(item[()]))
    return arrays


def test_integers_that_have_no_place_in_half_a_byte_are_not_written(tmp_path):
    path = DATA / "keras_3.15.1_int4.keras"
    _, variables = load_model(path)
    variables["params"]["dense"]["kernel"][0, 0] = 8
    with pytest.raises(ValueError, match="dense: expected quantized weights from -8 to 7, got"):
        keras_h5.save(tmp_path / "other.keras", variables, like=path)


@pytest.mark.long
def test_a_quantized_model_grows_where_its_predictions_stay(tmp_path):
    path = DATA / "keras_3.15.1_int8.keras"
    module, variables = load_model(path)
    (x,), (y,) = predicted(path)
    widths = dw.trace(module.apply, variables, x)
    wide = dw.grow(variables, dw.plan(widths, {"dense": 9}), key=jax.random.key(0))
    keras_h5.save(tmp_path / "wide.keras", wide, like=path)
    module, wide = load_model(tmp_path / "wide.keras")
    assert wide["params"]["dense"]["kernel"].dtype == np.int8
    assert wide["params"]["dense"]["kernel_scale"].shape == (9,)
    np.testing.assert_allclose(module.apply(wide, x), y, rtol=1e-5, atol=1e-6)


def test_blocks_of_weights_with_a_zero_point_grow_by_zeros():
    module, variables = load_model(DATA / "keras_3.15.1_int4.keras")
    inputs, _ = predicted(DATA / "keras_3.15.1_int4.keras")
    growth = dw.plan(dw.trace(module.apply, variables, *inputs), {"dense": 8})
    wide = dw.grow(variables, growth, key=jax.random.key(0))
    assert wide["params"]["dense"]["kernel"].shape == (5, 8)
    dw.verify(module.apply, variables, module.apply, wide, *inputs)


def test_quantized_weights_without_a_model_keep_their_numbers(tmp_path):
    with h5py.File(tmp_path / "alone.weights.h5", "w") as file:
        file["layers/dense/vars/0"] = np.ones((3, 2), "int8")
        file["layers/dense/vars/1"] = np.ones(2, "f")  # a scale, not a bias
    assert [*keras_h5.load(tmp_path / "alone.weights.h5")["params"]["dense"]] == ["0", "1"]


def test_integers_in_a_layer_that_is_not_quantized_are_refused(tmp_path):
    path = shutil.copy(DATA / "tensorflow_2.10.0_image.h5", tmp_path / "quantized.h5")
    with h5py.File(path, "r+") as file:
        conv = file["model_weights/conv2d/conv2d"]
        kernel = conv["kernel:0"][()]
        del conv["kernel:0"]
        conv["kernel:0"] = np.round(kernel * 100).astype("int8")
    with pytest.raises(KerasFileError, match="conv2d/kernel: has dtype int8, but this layer"):
        load_model(path)


def test_weights_alone_are_no_model():
    path = Path(__file__).parent / "data" / "keras_2.10.0_mlp.h5"
    with pytest.raises(KerasFileError, match="expected a whole model, .* found only weights"):
        load_model(path)


def test_what_is_not_said_of_a_layer_is_unknown():
    kind = Kind()
    with pytest.raises(ValueError, match="it is given a mask"):
        kind.on_mask({}, [True])
    assert not kind.ignores_masks and not kind.keywords and not kind.passes_channels
    assert kind.reads({}, {"kernel": np.ones((2, 3))}) is None
    assert not [name for name, kind in KINDS.items() if kind.function and kind.module]
