"""Adapts configs of Keras layers to weights of other sizes: ``resized_layer``.

The weights are those of Flax, as ``load`` returns them; only their shapes are used.
"""

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax

from dogwood_jax.keras_h5._kinds.kind import Config, kind_of
from dogwood_jax.keras_h5._kinds.nested import MODELS, WRAPPERS, layer_name, layers_of
from dogwood_jax.keras_h5._models.channels import read_channels
from dogwood_jax.keras_h5._models.graph import parse, refs_in


class Given(NamedTuple):
    """The inputs of a call of a layer: the arrays in each argument that contains arrays."""

    args: list[list[Any]]
    kwargs: dict[str, list[Any]]


def resized_layer(
    class_name: str,
    config: Any,
    params: Mapping[str, Any],
    inner: Mapping[str, Any] | None = None,
    given: Any = None,
    channels: int | None = None,
) -> Any:
    """Returns the config of one layer for these parameters; options of unknown effect stay.

    Args:
        class_name: the layer's class.
        config: its config.
        params: its parameters.
        inner: for a model, the inputs of its layers, by ``inputs_of(layer)``, and the same for
            inner models, by their names.
        given: the inputs of the layer, a ``Given`` for each call, if known.
        channels: the number of channels that readers expect of its output, if known.
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
        seen: tuple[Any, ...] = ()
        if class_name in WRAPPERS:
            seen = (inner, each_step(given) if class_name == "TimeDistributed" else given)
        held = {key: part for key, part in parts.items() if config.get(key)}
        return {**config, **{key: _inside(config[key], part, *seen) for key, part in held.items()}}
    if kind.sizes and params:
        config = {**config, **kind.sizes(config, params)}
    if kind.sizes_by_input and given is not None:
        shape = jax.tree.leaves(given)[0].shape
        config = {**config, **kind.sizes_by_input(config, params, shape, channels)}
    return config


def each_step(calls: Sequence[Given] | None) -> list[Given] | None:
    """Returns the inputs of the layer inside a TimeDistributed layer: all steps as one batch."""
    if calls is None:
        return None

    def steps(array: Any) -> Any:
        shape: Any = jax.ShapeDtypeStruct  # untyped
        return shape((array.shape[0] * array.shape[1], *array.shape[2:]), array.dtype)

    return [Given([[steps(a) for a in arg] for arg in call.args[:1]], {}) for call in calls]


def inputs_of(layer: str) -> str:
    """Returns the name under which a model's module records the inputs of a layer."""
    return f"inputs of {layer}"


def _inside(
    layer: Config,
    params: Mapping[str, Any],
    inner: Mapping[str, Any] | None = None,
    given: Any = None,
    channels: int | None = None,
) -> dict[str, Any]:
    """Returns the entry of a layer in another layer's config, for these parameters."""
    kept = {key: value for key, value in layer.items() if key != "build_config"}
    if given and isinstance(layer.get("build_config"), Mapping):
        with contextlib.suppress(ValueError):
            kept["build_config"] = _built_from(layer["build_config"], given[0])
    config = resized_layer(layer["class_name"], layer["config"], params, inner, given, channels)
    return {**kept, "config": config}


def _built_from(config: Config, given: Given) -> Config:
    """Returns a ``build_config`` in new sizes: the shapes of the layer's inputs.

    Keras 2 stores the shape of the first argument, Keras 3 the shapes of all arguments by name, in
    the order of the call's parameters.

    Raises:
        ValueError: if it is not known which arguments the shapes belong to.
    """
    if config.get("input_shape", 0) is None:
        return config
    old = dict(config.get("shapes_dict", config))
    args = iter(given.args)
    new = {}
    for key, shape in old.items():
        name = key.removesuffix("_shape")
        arrays = given.kwargs[name] if name in given.kwargs else next(args, [])
        shapes = [array.shape for array in arrays]
        new[key] = _followed(shape, shapes)
        if shapes:
            raise ValueError("there are more arguments")
    return {"shapes_dict": new} if "shapes_dict" in config else new


def _followed(old: Any, shapes: list[tuple[int, ...]]) -> Any:
    """Returns shapes, perhaps nested in lists or dicts, in sizes that it removes from a list."""
    if isinstance(old, Mapping):
        new = {key: _followed(old[key], shapes) for key in sorted(old)}
        return {key: new[key] for key in old}
    if not isinstance(old, list):
        raise ValueError("it is not a shape")
    if any(isinstance(size, list | Mapping) for size in old):
        return [_followed(shape, shapes) for shape in old]
    if not shapes or len(shapes[0]) != len(old):
        raise ValueError("it is the shape of something else")
    return [n if n is None else m for n, m in zip(old, shapes.pop(0))]


def _fed(class_name: str, config: Any, inputs: list[Any]) -> Any:
    """Returns the config of an inner model for inputs of these shapes."""
    names = [ref.layer for ref in refs_in(parse(class_name, config).inputs)]
    shapes = dict(zip(names, (array.shape for array in inputs)))
    layers = list(layers_of(config))
    if class_name == "Sequential":
        shapes = {layer_name(layers[0]): inputs[0].shape} if layers else {}
    layers = [
        {**layer, "config": with_shape(layer["config"], shapes[name])}
        if (name := layer_name(layer)) in shapes
        else layer
        for layer in layers
    ]
    if not isinstance(config, Mapping):
        return layers
    return {**with_shape(config, inputs[0].shape), "layers": layers}


def with_shape(config: Config, shape: tuple[int, ...]) -> Config:
    """Returns a config with an input's shape; sizes that are ``None`` stay ``None``."""
    changed = {
        key: [old if old is None else new for old, new in zip(config[key], shape)]
        for key in ("batch_shape", "batch_input_shape", "build_input_shape")
        if config.get(key)
    }
    return {**config, **changed}
