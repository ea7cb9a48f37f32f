import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dogwood_jax.keras_h5._kinds.kind import KINDS
from dogwood_jax.keras_h5._models.resize import resized
from dogwood_jax.keras_h5._models.sizes import Given, _inside
from dogwood_jax.keras_h5._weights.config import with_classes


def shape(*sizes):
    return jax.ShapeDtypeStruct(sizes, jnp.float32)


def layer(class_name, **config):
    return {"class_name": class_name, "config": config, "build_config": {"input_shape": [None, 1]}}


LSTM = {"hg": {"kernel": shape(7, 7)}}

# Layers, what their sizes become, and the shapes that say so.
LAYERS = [
    (layer("Dense", units=2), {"units": 7}, {"kernel": shape(3, 7)}),
    (layer("Conv2DTranspose", filters=2), {"filters": 7}, {"kernel": shape(3, 3, 2, 7)}),
    (layer("DepthwiseConv2D", depth_multiplier=2), {}, {"kernel": shape(3, 3, 1, 8)}),
    (
        layer("SeparableConv1D", filters=2),
        {"filters": 7},
        {"pointwise": {"kernel": shape(1, 2, 7)}},
    ),
    (
        layer("Embedding", input_dim=9, output_dim=2),
        {"output_dim": 7},
        {"embedding": shape(9, 7)},
    ),
    (layer("LayerScale", projection_dim=2), {"projection_dim": 7}, {"gamma": shape(7)}),
    (layer("LSTM", units=2), {"units": 7}, {"cell": LSTM}),
    (
        layer("MultiHeadAttention", num_heads=1, key_dim=2, value_dim=2, output_shape=None),
        {"num_heads": 4, "value_dim": 3},
        {"query": {"kernel": shape(5, 4, 2)}, "value": {"kernel": shape(5, 4, 3)}},
    ),
    (
        layer("EinsumDense", equation="abc,cde->abde", output_shape=[None, 2, 3]),
        {"output_shape": [None, 7, 3]},
        {"kernel": shape(5, 7, 3)},
    ),
    (
        layer("EinsumDense", equation="...x,xy->...y", output_shape=2),
        {"output_shape": 7},
        {"kernel": shape(5, 7)},
    ),
    (layer("Dropout", rate=0.5), {}, {}),
    (layer("Mystery", units=2), {}, {"kernel": shape(3, 7)}),
]


def test_every_layer_has_the_sizes_of_its_arrays_and_nothing_else_changes():
    layers = [copy.deepcopy(old) for old, _, _ in LAYERS]
    expected = [{"class_name": o["class_name"], "config": o["config"] | n} for o, n, _ in LAYERS]
    for i, (old, new) in enumerate(zip(layers, expected)):
        old["config"]["name"] = new["config"]["name"] = f"layer/{i}"
    params = {f"layer/{i}": arrays for i, (_, _, arrays) in enumerate(LAYERS)}
    model = {"class_name": "Sequential", "config": {"layers": layers}, "keras_version": "3"}
    before = copy.deepcopy(model)
    with pytest.warns(RuntimeWarning, match="layer/7 .*: its value_dim is 3 and its key_dim 2"):
        new = resized(model, {"params": params})
    assert new == model | {"config": {"layers": expected}}
    assert model == before


def test_layers_inside_layers_are_resized():
    dense = layer("Dense", units=2, name="a")
    inner = layer("Functional", name="inner", layers=[dense])
    spread = layer("TimeDistributed", name="spread", layer=layer("Dense", units=2))
    rnn = layer("RNN", name="rnn", cell=layer("LSTMCell", units=2))
    both = layer("Bidirectional", name="both", layer=layer("LSTM", units=2), backward_layer=None)
    params = {
        "inner": {"a": {"kernel": shape(3, 7)}},
        "spread": {"kernel": shape(3, 7)},
        "rnn": {"cell": LSTM},
        "both": {"forward_rnn": {"cell": LSTM}, "backward_rnn": {"cell": LSTM}},
    }
    model = {"class_name": "Functional", "config": {"layers": [inner, spread, rnn, both]}}
    inner, spread, rnn, both = resized(model, {"params": params})["config"]["layers"]
    assert inner["config"]["layers"][0]["config"]["units"] == 7
    assert spread["config"]["layer"]["config"]["units"] == 7
    assert rnn["config"]["cell"]["config"]["units"] == 7
    assert both["config"]["layer"]["config"]["units"] == 7
    assert both["config"]["backward_layer"] is None


def test_inputs_of_a_model_have_the_channels_that_are_read():
    layers = [
        layer("InputLayer", name="x", batch_shape=[None, 4]),
        layer("Dropout", name="some", rate=0.5),
        layer("Dense", name="a", units=2, activation="linear"),
    ]
    config = {"name": "m", "layers": layers, "build_input_shape": [None, 4]}
    model = {"class_name": "Sequential", "config": config}
    wide = {"params": {"a": {"kernel": shape(7, 2), "bias": shape(2)}}}
    new = resized(model, wide)["config"]
    assert new["layers"][0]["config"]["batch_shape"] == new["build_input_shape"] == [None, 7]
    layers[1] = layer("Flatten", name="some")
    with pytest.raises(
        ValueError, match=r"layout='weights.h5', and .*\n- params/a/kernel: has shape"
    ):
        resized(model, wide)
    assert resized(model, wide, is_opened=False)["config"]["build_input_shape"] == [None, 4]


def test_sequential_models_of_old_versions_are_bare_lists():
    model = {"class_name": "Sequential", "config": [layer("Dense", units=2, name="a")]}
    wide = {"a": {"kernel": shape(3, 7)}}
    assert resized(model, wide)["config"][0]["config"] == {"units": 7, "name": "a"}


def test_models_and_depthwise_convolutions_inside_get_the_sizes_of_their_inputs():
    conv = {"kernel_size": 3, "padding": "same"}
    inner = [
        layer("InputLayer", name="in", batch_shape=[None, 9, None, 2]),
        layer("DepthwiseConv2D", name="each", depth_multiplier=2, **conv),
    ]
    layers = [
        layer("Conv2D", name="a", filters=2, batch_input_shape=[None, 9, 8, 3], **conv),
        layer("Sequential", name="inner", layers=inner)
        | {"build_config": {"input_shape": [None, 9, None, 2]}},
    ]
    kernels = {"a": (3, 3, 3, 5), "each": (3, 3, 1, 15)}
    a, each = ({"kernel": shape(*sizes), "bias": shape(sizes[-1])} for sizes in kernels.values())
    model = {"class_name": "Sequential", "config": {"name": "model", "layers": layers}}
    before = copy.deepcopy(model)
    new = resized(model, {"params": {"a": a, "inner": {"each": each}}})
    assert model == before
    first, second = (layer["config"] for layer in new["config"]["layers"][1]["config"]["layers"])
    assert new["config"]["layers"][0]["config"]["filters"] == 5
    assert first["batch_shape"] == [None, 9, None, 5]
    assert second["depth_multiplier"] == 3
    # Keras 3.0 builds models inside others from these shapes alone.
    assert new["config"]["layers"][1]["build_config"] == {"input_shape": [None, 9, None, 5]}


def test_the_operation_reshape_has_no_target_shape():
    conv = {"kernel_size": 1, "padding": "same", "use_bias": False}
    layers = [
        layer("InputLayer", name="in", batch_shape=[None, 4, 4, 3]),
        layer("Conv2D", name="a", filters=2, **conv),
        layer("DepthwiseConv2D", name="each", depth_multiplier=1, **conv),
        layer("GlobalAveragePooling2D", name="mean"),
        layer("Dense", name="b", units=6, use_bias=False),
        layer("Reshape", name="op", newshape=[-1, 3]) | {"module": "keras.src.ops.numpy"},
    ]
    names = [described["config"]["name"] for described in layers]
    for described, before in zip(layers, [None, *names]):
        tensor = {"class_name": "__keras_tensor__", "config": {"keras_history": [before, 0, 0]}}
        node = {"args": [tensor], "kwargs": {}}
        described |= {"name": described["config"]["name"], "inbound_nodes": [node] * bool(before)}
    ends = {"input_layers": [["in", 0, 0]], "output_layers": [["op", 0, 0]]}
    config = {"name": "model", "layers": layers, **ends}
    kernels = {"a": (1, 1, 3, 5), "each": (1, 1, 1, 5), "b": (5, 6)}
    params = {name: {"kernel": shape(*sizes)} for name, sizes in kernels.items()}
    model = with_classes({"class_name": "Functional", "config": config})
    _, a, each, _, _, op = resized(model, {"params": params})["config"]["layers"]
    assert a["config"]["filters"] == 5 and each["config"]["depth_multiplier"] == 1
    assert op["config"] == layers[-1]["config"]


def test_both_directions_have_one_size_unless_they_had_two_before():
    ways = {"layer": layer("LSTM", units=2), "backward_layer": layer("LSTM", units=2)}
    model = {"layers": [layer("Bidirectional", name="both", **ways)]}
    model = {"class_name": "Sequential", "config": {"name": "model", **model}}
    wide = {"both": {"forward_rnn": {"cell": LSTM}}}
    with pytest.raises(ValueError, match="both: its two directions must have one size"):
        resized(model, wide)
    ways["backward_layer"]["config"]["units"] = 3
    assert resized(model, wide)["config"]["layers"][0]["config"]["layer"]["config"]["units"] == 7


A, B = shape(32, 8), shape(32, 6)
TWO = {"shapes_dict": {"query_shape": [None, 4], "value_shape": [None, 4]}}
TWO_NEW = {"shapes_dict": {"query_shape": [None, 8], "value_shape": [None, 6]}}


@pytest.mark.parametrize(
    ("old", "given", "new"),
    [
        ({"input_shape": None}, Given([[A]], {}), {"input_shape": None}),
        ({"input_shape": [None, 4]}, Given([[A]], {"mask": [B]}), {"input_shape": [None, 8]}),
        (
            {"input_shape": [[None, 4], [None, 4]]},
            Given([[A, B]], {}),
            {"input_shape": [[None, 8], [None, 6]]},
        ),
        (TWO, Given([[A], [B]], {}), TWO_NEW),
        (TWO, Given([[A]], {"value": [B]}), TWO_NEW),
        (TWO, Given([[B]], {"query": [A]}), TWO_NEW),
        (TWO, Given([[A, B]], {}), None),
        ({"input_shape": [None, 4]}, Given([[A, B]], {}), None),
        ({"input_shape": [None, 4, 4]}, Given([[A]], {}), None),
        ({"units": 4}, Given([[A]], {}), None),
    ],
)
def test_a_layer_is_built_from_the_shapes_of_what_it_is_called_with(old, given, new):
    old = layer("Dense", name="d", units=4) | {"build_config": old}
    assert _inside(old, {}, None, (given,)).get("build_config") == new


def test_layers_after_a_time_distributed_one_keep_what_they_are_built_from():
    each = layer("TimeDistributed", name="each", layer=layer("Dense", name="dense", units=2))
    each["build_config"] = {"input_shape": [None, 5, 3]}
    after = layer("Dense", name="after", units=4)
    after["build_config"] = {"input_shape": [None, 5, 2]}
    start = {"class_name": "InputLayer", "config": {"name": "x", "batch_shape": [None, 5, 3]}}
    model = {"class_name": "Sequential", "config": {"name": "m", "layers": [start, each, after]}}
    dense = {"kernel": shape(3, 7), "bias": shape(7)}
    wide = {"params": {"each": dense, "after": {"kernel": shape(7, 4), "bias": shape(4)}}}
    layers = resized(model, wide)["config"]["layers"]
    assert layers[2]["build_config"] == {"input_shape": [None, 5, 7]}


def test_shapes_from_which_keras_2_builds_attention_follow():
    old = {"query_shape": [None, 5, 6], "key_shape": {"items": [None, 5, 6]}}
    params = {part: {"kernel": np.ones((12, 2, 3))} for part in ("query", "key", "value")}
    new = KINDS["MultiHeadAttention"].sizes(old, {**params, "out": {"kernel": np.ones((2, 3, 12))}})
    assert new["query_shape"] == [None, 5, 12] and new["key_shape"] == {"items": [None, 5, 12]}
    assert "value_shape" not in new and "output_shape" not in new
