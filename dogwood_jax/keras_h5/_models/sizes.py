"""Configs of Keras layers with the sizes of other weights: ``resized_layer``.

The weights are those of Flax, as ``load`` gives them; only their shapes are used.
"""

from collections.abc import Mapping
from typing import Any

import jax

from dogwood_jax.keras_h5._kinds.kind import Config, kind_of
from dogwood_jax.keras_h5._kinds.nested import MODELS, layer_name, layers_of
from dogwood_jax.keras_h5._models.channels import read_channels
from dogwood_jax.keras_h5._models.graph import parse, refs_in


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
    kind = kind_of(class_name)
    if kind.holds:
        parts = {key: params.get(at, {}) if at else params for key, at in kind.holds.items()}
        inside = {key: _inside(config[key], part) for key, part in parts.items() if config.get(key)}
        return {**config, **inside}
    if kind.sizes and params:
        config = {**config, **kind.sizes(config, params)}
    if kind.sizes_by_input and given is not None:
        shape = jax.tree.leaves(given)[0].shape
        config = {**config, **kind.sizes_by_input(config, params, shape, channels)}
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
