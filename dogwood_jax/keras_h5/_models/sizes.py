"""Configs of Keras layers with the sizes of other weights: ``resized_layer``.

The weights are those of Flax, as ``load`` gives them; only their shapes are used.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax

from dogwood_jax.keras_h5._kinds.functions import CHANNELS, reshape_target
from dogwood_jax.keras_h5._kinds.modules import grown_groups
from dogwood_jax.keras_h5._kinds.weight import MODELS, Config, layer_name, layers_of
from dogwood_jax.keras_h5._models.channels import read_channels
from dogwood_jax.keras_h5._models.graph import parse, refs_in

Sizes = Callable[[Config, Mapping[str, Any]], dict[str, Any]]

# Layers whose configs have sizes that follow from their inputs.
BY_INPUTS = ("GroupNormalization", "Reshape") + tuple(
    f"{kind}Conv{n}D" for kind in ("Depthwise", "Separable") for n in (1, 2)
)


def resized_layer(
    class_name: str,
    config: Any,
    params: Mapping[str, Any],
    inner: Mapping[str, Any] | None = None,
    given: Any = None,
    channels: int | None = None,
) -> Any:
    """Returns the config of one layer for these parameters; unchanged where nothing is known.

    Args:
        class_name: the layer's class.
        config: its config.
        params: its parameters.
        inner: for a model, what its layers are called with, by ``inputs_of(layer)``, and the same
            for models in it by their names.
        given: what the layer is called with, as far as is known.
        channels: how many channels of its output are read, likewise.
    """
    if class_name in MODELS:
        inner = inner or {}
        read = read_channels(parse(class_name, config), params) if inner else {}
        layers = [
            _inside(
                layer,
                params.get(name := layer_name(layer), {}),
                inner.get(name),
                inner.get(inputs_of(name)),
                read.get(name),
            )
            for layer in layers_of(config)
        ]
        new = {**config, "layers": layers} if isinstance(config, Mapping) else layers
        return new if given is None else _fed(class_name, new, jax.tree.leaves(given))
    if class_name == "TimeDistributed":
        return {**config, "layer": _inside(config["layer"], params)}
    if class_name == "RNN":
        return {**config, "cell": _inside(config["cell"], params)}
    if class_name == "Bidirectional":
        ways = {"layer": "forward_rnn", "backward_layer": "backward_rnn"}
        both = {k: _inside(config[k], params.get(ways[k], {})) for k in ways if config.get(k)}
        return {**config, **both}
    if class_name in _SIZES and params:
        config = {**config, **_SIZES[class_name](config, params)}
    if given is None:
        return config
    sizes = jax.tree.leaves(given)[0].shape
    if class_name == "Reshape" and "target_shape" in config:  # else it is keras.ops.reshape
        target = reshape_target(sizes[1:], config["target_shape"], channels)
        return {**config, "target_shape": list(target)}
    if class_name == "GroupNormalization":
        if CHANNELS in config and config["groups"] > 0:
            size = sizes[config.get("axis", -1)]
            return {**config, "groups": grown_groups(config["groups"], config[CHANNELS], size)}
        return config
    if class_name in BY_INPUTS and params:
        outputs = params.get("depthwise", params)["kernel"].shape[-1]
        inputs = sizes[1 if config.get("data_format") == "channels_first" else -1]
        config = {**config, "depth_multiplier": outputs // inputs}
    return config


def inputs_of(layer: str) -> str:
    """Returns the name under which a model's module records what it calls a layer with."""
    return f"inputs of {layer}"


def _inside(
    layer: Config,
    params: Mapping[str, Any],
    inner: Mapping[str, Any] | None = None,
    given: Any = None,
    channels: int | None = None,
) -> dict[str, Any]:
    """Returns a layer in another's config for these parameters."""
    kept = {key: value for key, value in layer.items() if key != "build_config"}
    if given is not None and "build_config" in layer:
        kept["build_config"] = _built_from(
            layer["build_config"], [array.shape for array in jax.tree.leaves(given)]
        )
    config = resized_layer(layer["class_name"], layer["config"], params, inner, given, channels)
    return {**kept, "config": config}


def _built_from(config: Config, shapes: list[tuple[int, ...]]) -> Config:
    """Returns what a layer was built from, one shape or a list of them, in new sizes."""
    old = config.get("input_shape")
    if not isinstance(old, list) or not old:
        return config
    many = isinstance(old[0], list)
    pairs = list(zip(old if many else [old], shapes))
    if many and len(old) != len(shapes) or any(len(one) != len(shape) for one, shape in pairs):
        return config
    new = [[n if n is None else m for n, m in zip(*pair)] for pair in pairs]
    return {"input_shape": new if many else new[0]}


def _fed(class_name: str, config: Any, inputs: list[Any]) -> Any:
    """Returns the config of a model inside another for inputs of these shapes."""
    names = [ref.layer for ref in refs_in(parse(class_name, config).inputs)]
    shapes = dict(zip(names, (array.shape for array in inputs)))
    layers = list(layers_of(config))
    if class_name == "Sequential":
        shapes = {layer_name(layers[0]): inputs[0].shape} if layers else {}
    layers = [
        {**layer, "config": _with_shape(layer["config"], shapes[name])}
        if (name := layer_name(layer)) in shapes
        else layer
        for layer in layers
    ]
    if not isinstance(config, Mapping):
        return layers
    return {**_with_shape(config, inputs[0].shape), "layers": layers}


def _with_shape(config: Config, shape: tuple[int, ...]) -> Config:
    """Returns a config with an input's shape; sizes that it leaves open stay open."""
    changed = {
        key: [old if old is None else new for old, new in zip(config[key], shape)]
        for key in ("batch_shape", "batch_input_shape", "build_input_shape")
        if config.get(key)
    }
    return {**config, **changed}


def _last(key: str, *path: str) -> Sizes:
    """The size under a key is that of the last axis of an array."""

    def sizes(config: Config, params: Mapping[str, Any]) -> dict[str, Any]:
        for name in path:
            params = params[name]
        return {key: params.shape[-1]}  # type: ignore[attr-defined]

    return sizes


def _embedding(config: Config, params: Mapping[str, Any]) -> dict[str, Any]:
    return dict(zip(("input_dim", "output_dim"), params["embedding"].shape))


def _attention(config: Config, params: Mapping[str, Any]) -> dict[str, Any]:
    _, heads, size = params["query"]["kernel"].shape
    sizes = {"num_heads": heads, "key_dim": size, "value_dim": params["value"]["kernel"].shape[-1]}
    shape = config.get("output_shape")
    new = params["out"]["kernel"].shape[2:] if "out" in params else None
    if new is not None and (shape is not None or new != params["query"]["kernel"].shape[:1]):
        sizes["output_shape"] = new[0] if isinstance(shape, int) else list(new)
    return sizes


def _group_attention(config: Config, params: Mapping[str, Any]) -> dict[str, Any]:
    _, heads, size = params["query"]["kernel"].shape
    shared = params["key"]["kernel"].shape[1]
    return {"num_query_heads": heads, "head_dim": size, "num_key_value_heads": shared}


def _gated_filters(config: Config, params: Mapping[str, Any]) -> dict[str, Any]:
    return {"filters": params["kernel"].shape[-1] // 4}


def _einsum(config: Config, params: Mapping[str, Any]) -> dict[str, Any]:
    """Output axes that the kernel has too are as long as there."""
    operands, output = config["equation"].replace(" ", "").split("->")
    size_of = dict(zip(operands.split(",")[1], params["kernel"].shape))
    shape = config["output_shape"]
    old = [shape] if isinstance(shape, int) else list(shape)
    labels = output.replace("...", "")[-len(old) :]  # the batch axis is not among them
    new = [None if size is None else size_of.get(axis, size) for axis, size in zip(labels, old)]
    return {"output_shape": new[0] if isinstance(shape, int) else new}


_UNITS = _last("units", "kernel")
_FILTERS = _last("filters", "kernel")
_STATE = {"SimpleRNN": "h", "GRU": "hn", "LSTM": "hg"}

_SIZES: dict[str, Sizes] = {
    "Dense": _UNITS,
    "EinsumDense": _einsum,
    "LayerScale": _last("projection_dim", "gamma"),
    "Embedding": _embedding,
    "MultiHeadAttention": _attention,
    **dict.fromkeys(("GroupQueryAttention", "GroupedQueryAttention"), _group_attention),
    **{f"LocallyConnected{n}D": _FILTERS for n in (1, 2)},
    **{f"ConvLSTM{n}D": _gated_filters for n in (1, 2, 3)},
    **{f"Conv{n}D{kind}": _FILTERS for n in (1, 2, 3) for kind in ("", "Transpose")},
    **{f"SeparableConv{n}D": _last("filters", "pointwise", "kernel") for n in (1, 2)},
    **{
        f"{kind}{suffix}": _last("units", "cell", state, "kernel")
        for kind, state in _STATE.items()
        for suffix in ("", "Cell")
    },
}
