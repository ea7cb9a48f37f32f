"""The arrays of a Keras layer as those of the Flax layer that computes the same, and back.

Keras and ``flax.linen`` differ in names (gamma, scale), in where statistics are kept (the
collection ``batch_stats``), and in how some arrays are laid out: Keras has the gates of a recurrent
layer side by side in one kernel, and the kernel of a transposed convolution is that of the
convolution which it transposes. Each layer's layout is a list of ``Weight``, in the order in which
Keras lists and stores them. Every change is a renaming, split, transposition or reshape: nothing is
lost, nothing is copied, and moments of optimizers convert as weights do.

| Keras | flax.linen |
|---|---|
| Dense, EinsumDense, Conv | ``kernel``, ``bias`` |
| ConvTranspose ``[..., out, in]`` | ``kernel [..., in, out]``, flipped along the spatial axes |
| DepthwiseConv ``[..., in, multiplier]`` | ``kernel [..., 1, in * multiplier]`` of a grouped Conv |
| SeparableConv | ``depthwise/kernel``, ``pointwise/kernel``, ``pointwise/bias`` |
| BatchNormalization | ``scale``, ``bias``; in batch_stats ``mean``, ``var`` |
| LayerNormalization, GroupNormalization | ``scale``, ``bias`` |
| Normalization | in batch_stats ``mean``, ``var``, ``count`` |
| Embedding | ``embedding`` |
| PReLU | ``negative_slope`` |
| MultiHeadAttention | ``query``, ``key``, ``value``, ``out`` of MultiHeadDotProductAttention |
| Attention, AdditiveAttention, LocallyConnected, ConvLSTM, LayerScale | as in Keras |
| LSTM, GRU, SimpleRNN | ``cell`` of an RNN, one Dense for each gate of inputs and state |
| Bidirectional | ``forward_rnn``, ``backward_rnn`` |
| TimeDistributed | what it wraps |
| Sequential, Functional | their layers by name |

A GRU with ``reset_after`` has biases of its own on the inputs and on the state. Flax's GRUCell has
only their sum where they are added, but the two are kept: the cell has a bias more on ``hr`` and
``hz``.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

Config = Mapping[str, Any]
Path = tuple[str, ...]

MODELS = ("Sequential", "Functional", "Model")


@dataclass(frozen=True)
class Weight:
    """One array of Keras, and the arrays of Flax that it becomes.

    Attributes:
        name: its path in the Keras layer, ``"kernel"``, or ``"cell/kernel"`` where it belongs to a
            layer inside, by the attribute that holds it.
        places: paths of the Flax arrays, the collection first: ``(("params", "kernel"),)``.
        to_flax: makes them of the Keras array.
        to_keras: the inverse.
        trainable: whether Keras lists it among the trainable weights, that is first.
    """

    name: str
    places: tuple[Path, ...]
    to_flax: Callable[[np.ndarray], Sequence[np.ndarray]] = lambda array: [array]
    to_keras: Callable[[Sequence[np.ndarray]], np.ndarray] = lambda arrays: arrays[0]
    trainable: bool = True


def _path(place: str) -> Path:
    return tuple(place.split("/"))


def _plain(name: str, place: str, *, trainable: bool = True) -> Weight:
    return Weight(name, (_path(place),), trainable=trainable)


def _split(name: str, *places: str) -> Weight:
    """An array whose last axis holds several one after another."""
    return Weight(
        name,
        tuple(map(_path, places)),
        lambda array: np.split(array, len(places), axis=-1),
        lambda arrays: np.concatenate(arrays, axis=-1),
    )


BY_GATES = {1: "SimpleRNN", 3: "GRU", 4: "LSTM"}  # recurrent classes by how many gates they have

# One function for each class: from its config to its weights.
WEIGHTS: dict[str, Callable[[Config], list[Weight]]] = {}


def _layout(*classes: str) -> Callable[[Callable[[Config], list[Weight]]], Any]:
    def register(function: Callable[[Config], list[Weight]]) -> Any:
        WEIGHTS.update(dict.fromkeys(classes, function))
        return function

    return register


def _bias(config: Config, place: str = "params/bias") -> list[Weight]:
    return [_plain("bias", place)] if config.get("use_bias", True) else []


@_layout("Dense", "Conv1D", "Conv2D", "Conv3D", "Convolution1D", "Convolution2D")
def _kernel_and_bias(config: Config) -> list[Weight]:
    return [_plain("kernel", "params/kernel"), *_bias(config)]


@_layout("EinsumDense")
def _einsum_dense(config: Config) -> list[Weight]:
    use_bias = config["bias_axes"] if "bias_axes" in config else config.get("use_bias", True)
    return [_plain("kernel", "params/kernel"), *_bias({"use_bias": bool(use_bias)})]


def _transposed(array: np.ndarray) -> np.ndarray:
    """Swaps the channels of a kernel and turns it around: its own inverse."""
    return np.flip(np.swapaxes(array, -1, -2), axis=tuple(range(array.ndim - 2)))


@_layout("Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose")
def _conv_transpose(config: Config) -> list[Weight]:
    kernel = Weight(
        "kernel",
        (("params", "kernel"),),
        lambda array: [_transposed(array)],
        lambda arrays: _transposed(arrays[0]),
    )
    return [kernel, *_bias(config)]


def _depthwise_kernel(name: str, place: str, config: Config) -> Weight:
    multiplier = config.get("depth_multiplier", 1)
    return Weight(
        name,
        (_path(place),),
        lambda array: [array.reshape(*array.shape[:-2], 1, -1)],
        lambda arrays: arrays[0].reshape(*arrays[0].shape[:-2], -1, multiplier),
    )


@_layout("DepthwiseConv1D", "DepthwiseConv2D")
def _depthwise(config: Config) -> list[Weight]:
    return [_depthwise_kernel("depthwise_kernel", "params/kernel", config), *_bias(config)]


@_layout("SeparableConv1D", "SeparableConv2D")
def _separable(config: Config) -> list[Weight]:
    return [
        _depthwise_kernel("depthwise_kernel", "params/depthwise/kernel", config),
        _plain("pointwise_kernel", "params/pointwise/kernel"),
        *_bias(config, "params/pointwise/bias"),
    ]


@_layout("LayerNormalization", "GroupNormalization")
def _scale_and_bias(config: Config) -> list[Weight]:
    gamma = [_plain("gamma", "params/scale")] if config.get("scale", True) else []
    beta = [_plain("beta", "params/bias")] if config.get("center", True) else []
    return gamma if config.get("rms_scaling") else gamma + beta


@_layout("RMSNormalization")
def _scale(config: Config) -> list[Weight]:
    return [_plain("scale", "params/scale")]


@_layout("BatchNormalization", "SyncBatchNormalization")
def _batch_norm(config: Config) -> list[Weight]:
    renorm = ("moving_stddev", "renorm_mean", "renorm_stddev") if config.get("renorm") else ()
    return [
        *_scale_and_bias(config),
        _plain("moving_mean", "batch_stats/mean", trainable=False),
        _plain("moving_variance", "batch_stats/var", trainable=False),
        *(_plain(name, f"batch_stats/{name}", trainable=False) for name in renorm),
    ]


@_layout("LocallyConnected1D", "LocallyConnected2D")
def _locally_connected(config: Config) -> list[Weight]:
    return [_plain("kernel", "params/kernel"), *_bias(config)]


@_layout("ConvLSTM1D", "ConvLSTM2D", "ConvLSTM3D")
def _conv_lstm(config: Config) -> list[Weight]:
    names = ("kernel", "recurrent_kernel", "bias")[: 3 if config.get("use_bias", True) else 2]
    return [_plain(f"cell/{name}", f"params/{name}") for name in names]


@_layout("Normalization")
def _normalization(config: Config) -> list[Weight]:
    if config.get("mean") is not None:  # given as an argument: no weights
        return []
    return [
        _plain("mean", "batch_stats/mean", trainable=False),
        _plain("variance", "batch_stats/var", trainable=False),
        _plain("count", "batch_stats/count", trainable=False),
    ]


@_layout("Embedding")
def _embedding(config: Config) -> list[Weight]:
    return [_plain("embeddings", "params/embedding")]


@_layout("LayerScale")  # of ConvNeXt, in keras.applications
def _layer_scale(config: Config) -> list[Weight]:
    return [_plain("gamma", "params/gamma")]


@_layout("PReLU")
def _prelu(config: Config) -> list[Weight]:
    return [_plain("alpha", "params/negative_slope")]


@_layout("MultiHeadAttention", "GroupQueryAttention", "GroupedQueryAttention")
def _attention(config: Config) -> list[Weight]:
    gate = ("gate",) if config.get("use_gate") else ()
    return [
        _plain(f"{part}_dense/{weight}", f"params/{'out' if part == 'output' else part}/{weight}")
        for part in ("query", "key", *gate, "value", "output")
        for weight in ("kernel", "bias")[: 2 if config.get("use_bias", True) else 1]
    ]


@_layout("Attention")
def _dot_attention(config: Config) -> list[Weight]:
    scale = [_plain("scale", "params/scale")] if config.get("use_scale") else []
    if config.get("score_mode") != "concat":
        return scale
    return [*scale, _plain("concat_score_weight", "params/concat_score_weight")]


@_layout("AdditiveAttention")
def _additive_attention(config: Config) -> list[Weight]:
    return [_plain("scale", "params/scale")] if config.get("use_scale", True) else []


def _gates(sources: str, gates: str, weight: str) -> tuple[str, ...]:
    return tuple(f"params/cell/{source}{gate}/{weight}" for source in sources for gate in gates)


def _gated_kernels(order: str) -> list[Weight]:
    return [
        _split("cell/kernel", *_gates("i", order, "kernel")),
        _split("cell/recurrent_kernel", *_gates("h", order, "kernel")),
    ]


@_layout("LSTM", "CuDNNLSTM")
def _lstm(config: Config) -> list[Weight]:
    order = "ifgo"  # Keras calls g c
    kernels = _gated_kernels(order)
    bias = _split("cell/bias", *_gates("h", order, "bias"))
    return [*kernels, bias] if config.get("use_bias", True) else kernels


@_layout("GRU")
def _gru(config: Config) -> list[Weight]:
    order = "zrn"  # Keras calls n h
    kernels = _gated_kernels(order)
    bias = _split("cell/bias", *_gates("i", order, "bias"))
    if config.get("reset_after", False):  # bias [2, 3 * units], of inputs and of the state
        bias = Weight(
            "cell/bias",
            tuple(map(_path, _gates("ih", order, "bias"))),
            lambda array: np.split(array.reshape(-1), 6),
            lambda arrays: np.concatenate(arrays).reshape(2, -1),
        )
    return [*kernels, bias] if config.get("use_bias", True) else kernels


@_layout("SimpleRNN")
def _simple_rnn(config: Config) -> list[Weight]:
    kernels = [
        _plain("cell/kernel", "params/cell/i/kernel"),
        _plain("cell/recurrent_kernel", "params/cell/h/kernel"),
    ]
    bias = _plain("cell/bias", "params/cell/i/bias")
    return [*kernels, bias] if config.get("use_bias", True) else kernels


@_layout("RNN")
def _rnn(config: Config) -> list[Weight]:
    cell = config["cell"]
    return layout(cell["class_name"].removesuffix("Cell"), cell["config"])


def _inside(keras: str, flax: str, weights: Iterable[Weight]) -> list[Weight]:
    """The weights of a layer that is inside another, under these names there."""

    def moved(place: Path) -> Path:
        return (place[0], flax, *place[1:]) if flax else place

    return [
        replace(w, name=f"{keras}/{w.name}", places=tuple(map(moved, w.places))) for w in weights
    ]


def _of_layer(layer: Config) -> list[Weight]:
    """The weights of a layer in another's config; all are fixed where the layer is frozen."""
    weights = layout(layer["class_name"], layer["config"])
    config = layer["config"]
    frozen = isinstance(config, Mapping) and config.get("trainable") is False
    return [replace(w, trainable=False) for w in weights] if frozen else weights


@_layout("TimeDistributed")
def _time_distributed(config: Config) -> list[Weight]:
    return _inside("layer", "", _of_layer(config["layer"]))


@_layout("Bidirectional")
def _bidirectional(config: Config) -> list[Weight]:
    forward = config["layer"]
    backward = config.get("backward_layer") or forward
    return [
        *_inside("forward_layer", "forward_rnn", _of_layer(forward)),
        *_inside("backward_layer", "backward_rnn", _of_layer(backward)),
    ]


def layers_of(config: Config | Sequence[Config]) -> Sequence[Config]:
    """Returns the layers of a model's config, which before Keras 2.2.3 was their bare list."""
    layers: Sequence[Config] = config["layers"] if isinstance(config, Mapping) else config
    return layers


def layer_name(layer: Config) -> str:
    """Returns the name of a layer in the config of a model."""
    return str(layer["name"] if "name" in layer else layer["config"]["name"])


@_layout(*MODELS)
def _model(config: Config) -> list[Weight]:
    weights: list[Weight] = []
    for layer in layers_of(config):
        weights += _inside(layer_name(layer), layer_name(layer), _of_layer(layer))
    return weights


def layout(class_name: str | None, config: Config) -> list[Weight]:
    """Returns the weights of a layer in Keras's order: trainable ones first, then the others.

    Args:
        class_name: as in a model's config. Classes that are not known here have no weights.
        config: the layer's config. What it leaves out has the default that Keras had before the
            option came.
    """
    if class_name not in WEIGHTS:
        return []
    weights = WEIGHTS[class_name](config)
    return sorted(weights, key=lambda weight: not weight.trainable)
