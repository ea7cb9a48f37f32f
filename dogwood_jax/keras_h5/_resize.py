"""Configs of Keras models with the sizes of other weights: what a grown model is called in Keras.

The weights are those of Flax, as ``load`` gives them; only their shapes are used.
"""

from collections.abc import Callable, Mapping
from typing import Any

from dogwood_jax.keras_h5._convert import MODELS, Config, layer_name, layers_of

Sizes = Callable[[Config, Mapping[str, Any]], dict[str, Any]]


def resized(config: Config, variables: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a model's config for these variables: units, filters and heads are what they are now.

    Args:
        config: of the model before it grew, ``{"class_name": "Sequential", "config": {...}}``: in
            the attribute ``model_config`` of a file or in ``config.json`` of a ``.keras`` archive.
        variables: ``{"params": {"dense_1": ...}, ...}``: arrays or ``jax.ShapeDtypeStruct``.

    Returns:
        A new config. The shapes from which Keras 3 builds layers one by one (``build_config``) are
        left out: it builds them from the model's input then.

    Example:
        >>> import numpy as np
        >>> layers = [{"class_name": "Dense", "config": {"name": "dense_1", "units": 2}}]
        >>> model = {"class_name": "Sequential", "config": {"name": "mlp", "layers": layers}}
        >>> wide = {"params": {"dense_1": {"kernel": np.ones((3, 8)), "bias": np.ones(8)}}}
        >>> resized(model, wide)["config"]["layers"][0]["config"]["units"]
        8
    """
    params = variables.get("params", variables)
    return {**config, "config": resized_layer(config["class_name"], config["config"], params)}


def resized_layer(class_name: str, config: Any, params: Mapping[str, Any]) -> Any:
    """Returns the config of one layer for these parameters; unchanged where nothing is known."""
    if class_name in MODELS:
        layers = [_inside(layer, params.get(layer_name(layer), {})) for layer in layers_of(config)]
        return {**config, "layers": layers} if isinstance(config, Mapping) else layers
    if class_name == "TimeDistributed":
        return {**config, "layer": _inside(config["layer"], params)}
    if class_name == "RNN":
        return {**config, "cell": _inside(config["cell"], params)}
    if class_name == "Bidirectional":
        ways = {"layer": "forward_rnn", "backward_layer": "backward_rnn"}
        inner = {k: _inside(config[k], params.get(ways[k], {})) for k in ways if config.get(k)}
        return {**config, **inner}
    if class_name in _SIZES and params:
        return {**config, **_SIZES[class_name](config, params)}
    return config


def _inside(layer: Config, params: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a layer in another's config for these parameters."""
    kept = {key: value for key, value in layer.items() if key != "build_config"}
    return {**kept, "config": resized_layer(layer["class_name"], layer["config"], params)}


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
    if shape is not None:
        new = params["out"]["kernel"].shape[2:]
        sizes["output_shape"] = new[0] if isinstance(shape, int) else list(new)
    return sizes


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
    "Embedding": _embedding,
    "MultiHeadAttention": _attention,
    **{f"Conv{n}D{kind}": _FILTERS for n in (1, 2, 3) for kind in ("", "Transpose")},
    **{f"SeparableConv{n}D": _last("filters", "pointwise", "kernel") for n in (1, 2)},
    **{
        f"{kind}{suffix}": _last("units", "cell", state, "kernel")
        for kind, state in _STATE.items()
        for suffix in ("", "Cell")
    },
}
