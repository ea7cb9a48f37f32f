"""Arrays of Keras layers as Flax's own layers have them, and back."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dogwood_jax.keras_h5._files.errors import KerasFileError
from dogwood_jax.keras_h5._kinds.kind import layout
from dogwood_jax.keras_h5._weights.convert import canonical, to_flax, to_keras
from dogwood_jax.keras_h5._weights.infer import infer, infer_flax

LSTM_4 = {"kernel": (5, 16), "recurrent_kernel": (4, 16), "bias": (16,)}
GRU_4 = {"kernel": (5, 12), "recurrent_kernel": (4, 12), "bias": (2, 12)}
MLP = [
    {"class_name": "Dense", "config": {"name": "dense_1"}},
    {"class_name": "BatchNormalization", "config": {"name": "a/norm"}},
    {"class_name": "Dense", "config": {"name": "dense", "trainable": False}},
]

# Class, config, shapes by the names of files of Keras 2, in their order.
LAYERS = {
    "dense": ("Dense", {}, {"kernel": (5, 4), "bias": (4,)}),
    "einsum": ("EinsumDense", {}, {"kernel": (5, 4, 3), "bias": (3,)}),
    "conv": ("Conv2D", {}, {"kernel": (3, 2, 5, 4), "bias": (4,)}),
    "transposed": ("Conv2DTranspose", {}, {"kernel": (3, 2, 4, 5), "bias": (4,)}),
    "depthwise": (
        "DepthwiseConv2D",
        {"depth_multiplier": 2},
        {"depthwise_kernel": (3, 3, 5, 2), "bias": (10,)},
    ),
    "separable": (
        "SeparableConv1D",
        {"use_bias": False},
        {"depthwise_kernel": (3, 5, 1), "pointwise_kernel": (1, 5, 4)},
    ),
    "batch_norm": (
        "BatchNormalization",
        {},
        {"gamma": (4,), "beta": (4,), "moving_mean": (4,), "moving_variance": (4,)},
    ),
    "layer_norm": ("LayerNormalization", {"scale": False}, {"beta": (4,)}),
    "embedding": ("Embedding", {}, {"embeddings": (9, 4)}),
    "prelu": ("PReLU", {}, {"alpha": (1, 4)}),
    "normalization": ("Normalization", {}, {"mean": (4,), "variance": (4,), "count": ()}),
    "lstm": ("LSTM", {}, {f"lstm_cell_7/{name}": shape for name, shape in LSTM_4.items()}),
    "gru": ("GRU", {"reset_after": True}, GRU_4),
    "gru_1": ("GRU", {"reset_after": False}, GRU_4 | {"bias": (12,)}),
    "rnn": ("SimpleRNN", {}, {"kernel": (5, 4), "recurrent_kernel": (4, 4), "bias": (4,)}),
    "stacked": (
        "RNN",
        {
            "cell": {
                "class_name": "StackedRNNCells",
                "config": {"cells": [{"class_name": "LSTMCell", "config": {}}] * 2},
            }
        },
        {
            f"stacked_rnn_cells/{cell}/{name}": shape
            for cell in ("lstm_cell", "lstm_cell_1")
            for name, shape in LSTM_4.items()
        },
    ),
    "attention": (
        "MultiHeadAttention",
        {},
        {
            f"{part}/{name}": shape
            for part in ("query", "key", "value", "attention_output")
            for name, shape in (
                {"kernel": (2, 3, 5), "bias": (5,)}
                if part == "attention_output"
                else {"kernel": (5, 2, 3), "bias": (2, 3)}
            ).items()
        },
    ),
    "bidirectional": (
        "Bidirectional",
        {"layer": {"class_name": "GRU", "config": {"reset_after": True}}},
        {f"{way}_gru/gru_cell/{n}": s for way in ("forward", "backward") for n, s in GRU_4.items()},
    ),
    "distributed": (
        "TimeDistributed",
        {"layer": {"class_name": "Dense", "config": {}}},
        {"kernel": (5, 4), "bias": (4,)},
    ),
    "model": (
        "Functional",
        {"layers": MLP},
        {
            "dense_1/kernel": (5, 4),
            "dense_1/bias": (4,),
            "norm/gamma": (4,),
            "norm/beta": (4,),
            "norm/moving_mean": (4,),
            "norm/moving_variance": (4,),
            "dense_2/kernel": (4, 3),  # frozen, and called otherwise when it was made
            "dense_2/bias": (3,),
        },
    ),
    "unknown": ("Mystery", {}, {"a": (3,), "inner/b": (2, 2)}),
}
cases = pytest.mark.parametrize("case", LAYERS.values(), ids=LAYERS.keys())


def arrays(shapes):
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=shape).astype("f") for name, shape in shapes.items()}


def assert_same(actual, expected):
    assert len(actual) == len(expected)
    for a, b in zip(actual.values(), expected.values()):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


@cases
def test_there_and_back_is_the_identity_bit_by_bit(case):
    class_name, config, shapes = case
    weights = arrays(shapes)
    assert_same(to_keras(class_name, config, to_flax(class_name, config, weights)), weights)


@cases
def test_names_of_the_other_layouts_mean_the_same(case):
    """Positions within the holder, as files of Keras 3 have them, and in the alphabetical order."""
    class_name, config, shapes = case
    weights = arrays(shapes)
    names = [w.name for w in layout(class_name, config)]
    if not names:
        return
    assert list(canonical(class_name, config, weights)) == names
    held = {}
    for name in names:
        holder = name.rpartition("/")[0]
        number = sum(name.rpartition("/")[0] == holder for name in held.values())
        held[f"{holder}/vars/{number}".lstrip("/")] = name
    positions = dict(sorted(zip(held, weights.values()), key=lambda item: item[0]))
    expected = to_flax(class_name, config, weights)
    jax.tree.map(np.testing.assert_array_equal, to_flax(class_name, config, positions), expected)
    flat = dict(zip(map(str, range(len(weights))), weights.values()))
    jax.tree.map(np.testing.assert_array_equal, to_flax(class_name, config, flat), expected)


@cases
def test_classes_are_inferred_where_files_do_not_say(case):
    class_name, config, shapes = case
    if class_name in ("TimeDistributed", "RNN"):
        return  # look like what they hold
    weights = arrays(shapes)
    names = {"transposed": "conv2d_transpose"}
    inferred = infer(weights, names.get(class_name, ""))
    if class_name == "EinsumDense":
        assert inferred[0] == "Conv1D"  # whose arrays convert alike
        return
    if class_name == "Functional":
        assert [layer["class_name"] for layer in inferred[1]["layers"]] == [
            *("Dense", "BatchNormalization", "Dense")
        ]
    else:
        assert inferred[0] == (None if class_name == "Mystery" else class_name)
    back = to_keras(*inferred, to_flax(*inferred, weights))
    if class_name == "Functional":
        assert_same({name: back[name] for name in weights}, weights)
    else:
        assert_same(back, weights)
        jax.tree.map(
            np.testing.assert_array_equal,
            to_flax(*inferred, weights),
            to_flax(class_name, config, weights),
        )


@cases
def test_layers_of_flax_are_inferred(case):
    class_name, config, shapes = case
    if class_name in (
        "Conv2DTranspose",
        "DepthwiseConv2D",
        "TimeDistributed",
        "EinsumDense",
        "RNN",
    ):
        return  # look like others
    weights = arrays(shapes)
    if class_name == "Mystery":
        weights = {"a": weights["a"]}
    if class_name == "SeparableConv1D":
        weights = {"depthwise_kernel": np.ones((3, 5, 1)), "pointwise_kernel": np.ones((1, 5, 4))}
    collections = to_flax(class_name, config, weights)
    inferred = infer_flax(collections)
    assert_same(
        dict(sorted(to_keras(*inferred, collections).items())),
        dict(sorted(to_keras(class_name, config, collections).items())),
    )


FLAX = {
    "Dense": (nn.Dense(4), {}, {"kernel": (5, 4), "bias": (4,)}, (2, 5)),
    "Conv2DTranspose": (nn.ConvTranspose(4, (3, 2)), *LAYERS["transposed"][1:], (2, 6, 6, 5)),
    "DepthwiseConv2D": (
        nn.Conv(10, (3, 3), feature_group_count=5),
        *LAYERS["depthwise"][1:],
        (2, 6, 6, 5),
    ),
    "BatchNormalization": (nn.BatchNorm(True), *LAYERS["batch_norm"][1:], (2, 4)),
    "LayerNormalization": (nn.LayerNorm(use_scale=False), *LAYERS["layer_norm"][1:], (2, 4)),
    "Embedding": (nn.Embed(9, 4), *LAYERS["embedding"][1:], None),
    "MultiHeadAttention": (
        nn.MultiHeadDotProductAttention(2, qkv_features=6),
        *LAYERS["attention"][1:],
        (2, 7, 5),
    ),
    "LSTM": (nn.RNN(nn.OptimizedLSTMCell(4)), *LAYERS["lstm"][1:], (2, 7, 5)),
    "SimpleRNN": (nn.RNN(nn.SimpleCell(4)), *LAYERS["rnn"][1:], (2, 7, 5)),
}


@pytest.mark.parametrize("class_name", FLAX)
def test_flax_expects_these_arrays(class_name):
    module, config, shapes, shape = FLAX[class_name]
    x = jnp.zeros((2, 3), int) if shape is None else jnp.zeros(shape, "f")
    expected = jax.eval_shape(module.init, jax.random.key(0), x)
    variables = to_flax(class_name, config, arrays(shapes))
    as_shapes = lambda tree: jax.tree.map(lambda leaf: leaf.shape, tree)  # noqa: E731
    assert as_shapes(variables) == as_shapes(expected)


def test_weights_without_a_counterpart_keep_their_names():
    weights = arrays({"gamma": (3,), "moving_mean": (3,), "renorm_mean": (3,)})
    collections = to_flax("BatchNormalization", {}, weights)
    assert list(collections["params"]) == ["scale", "renorm_mean"]
    assert_same(to_keras("BatchNormalization", {}, collections), dict(sorted(weights.items())))


def test_arrays_that_cannot_be_the_layers_are_refused():
    with pytest.raises(KerasFileError, match="kernel: expected an array of 4 parts, got shape"):
        to_flax("LSTM", {}, arrays({"kernel": (5, 6)}))
    with pytest.raises(KerasFileError, match="expected 2 weights .kernel, bias.; found one at 2"):
        to_flax("Dense", {}, arrays({"0": (5, 6), "1": (6,), "2": (6,)}))
    with pytest.raises(KerasFileError, match="expected the weights query_dense/kernel, .*; found"):
        to_flax("MultiHeadAttention", {}, arrays({"query/kernel": (5, 6), "key/kernel": (5, 6)}))
    with pytest.raises(ValueError, match="expected arrays at params/cell/hf/kernel, .*; found"):
        to_keras("LSTM", {}, {"params": {"cell": {"hi": {"kernel": np.ones(3)}}}})
