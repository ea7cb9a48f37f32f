"""Adapts the config of a model to variables of other sizes: ``resized``."""

from collections.abc import Iterator, Mapping
from typing import Any

import jax

from dogwood_jax._base.problems import listed
from dogwood_jax.keras_h5._files.errors import KerasFileError
from dogwood_jax.keras_h5._kinds.kind import CHANNELS, NAMED, Config, kind_of
from dogwood_jax.keras_h5._kinds.nested import MODELS, WRAPPERS, layer_name, layers_of
from dogwood_jax.keras_h5._models.channels import read_channels
from dogwood_jax.keras_h5._models.frozen import frozen
from dogwood_jax.keras_h5._models.graph import parse
from dogwood_jax.keras_h5._models.groups import annotated
from dogwood_jax.keras_h5._models.module import KerasLayers
from dogwood_jax.keras_h5._models.shapes import described, recorded_inputs
from dogwood_jax.keras_h5._models.sizes import resized_layer, with_shape
from dogwood_jax.keras_h5._models.support import supported

_COLLECTIONS = ("params", "batch_stats")


def resized(
    config: Config, variables: Mapping[str, Any], *, is_opened: bool = True
) -> dict[str, Any]:
    """Returns a model's config with the sizes of these variables: units, filters, heads, ...

    Args:
        config: the config before growth, ``{"class_name": "Sequential", "config": {...}}``, from
            the attribute ``model_config`` of a file or from ``config.json`` of an archive.
        variables: ``{"params": {"dense_1": ...}, ...}``: arrays or ``jax.ShapeDtypeStruct``.
        is_opened: whether Keras will make a model of the new config. If so, the config is checked.

    Returns:
        A new config. Inner models, depthwise convolutions and the shapes from which Keras 3 builds
        single layers (``build_config``) follow the sizes of their inputs. These are known only if
        ``load_model`` supports the model. Otherwise ``build_config`` is left out, and Keras builds
        the layers from the model's input. The channels of the model's inputs change to those that
        their readers expect, if the variables fit no config otherwise.

    Raises:
        ValueError: if no config describes a model with these variables.

    Example:
        >>> import numpy as np
        >>> layers = [{"class_name": "Dense", "config": {"name": "dense_1", "units": 2}}]
        >>> model = {"class_name": "Sequential", "config": {"name": "mlp", "layers": layers}}
        >>> wide = {"params": {"dense_1": {"kernel": np.ones((3, 8)), "bias": np.ones(8)}}}
        >>> resized(model, wide)["config"]["layers"][0]["config"]["units"]
        8
    """
    if config["class_name"] not in MODELS:
        name = config.get(NAMED, config["class_name"])
        raise ValueError(
            f"the model's config has no layers whose sizes could change, because {name} "
            "creates its layers itself; save with layout='weights.h5', and load these weights "
            "into a model that is made with the new sizes"
        )
    if not _built(config):
        return _resized(config, variables, is_opened)
    config = annotated(config)
    try:
        new = _resized(config, variables, is_opened)
        if is_opened:
            _check(new, variables)
    except ValueError:
        read = _as_read(config, variables.get("params", variables))
        if read == config:
            raise
        new = _resized(read, variables, is_opened)
        _check(new, variables)
    return new


def _as_read(config: Config, params: Mapping[str, Any]) -> Config:
    """Returns a model's config with as many channels of inputs as its layers expect."""
    graph = parse(config["class_name"], config["config"])
    read = read_channels(graph, params, of_inputs=True)

    def fed(layer: Config) -> Config:
        name, inner = layer_name(layer), layer["config"]
        if name not in read:
            return layer
        shape = inner.get("batch_shape") or inner["batch_input_shape"]
        return {**layer, "config": with_shape(inner, (*shape[:-1], read[name]))}

    model = config["config"]
    layers = [*map(fed, layers_of(model))]
    if not isinstance(model, Mapping):
        return {**config, "config": layers}
    if model.get("build_input_shape") and len(read) == 1:
        model = with_shape(model, (*model["build_input_shape"][:-1], *read.values()))
    return {**config, "config": {**model, "layers": layers}}


def _resized(config: Config, variables: Mapping[str, Any], is_opened: bool) -> dict[str, Any]:
    """Returns a model's config with the sizes of variables; raises if Keras has no such layers."""
    params = variables.get("params", variables)
    new, unfit = resized_layer(config["class_name"], config["config"], params), None
    if any(_follows(layer["class_name"]) for layer in layers_of(new)):
        module = _built({**config, "config": new})
        inputs: Mapping[str, Any] = {}
        try:
            inputs = recorded_inputs(module, variables) if module else {}
        except ValueError as error:
            unfit = error
        new = resized_layer(config["class_name"], config["config"], params, inputs)
    new = {**config, "config": _without(CHANNELS, new)}
    if problems := sorted({*_lopsided(new)} - {*_lopsided(config)}):
        raise ValueError(listed("no config of this model has these sizes", problems))
    if unfit and is_opened:
        _check(new, variables)  # its error names all arrays that do not fit
        raise unfit
    return new


def _follows(class_name: str) -> bool:
    """Returns whether sizes in a layer, or in its inner layers, follow from its inputs."""
    by_input = kind_of(class_name).sizes_by_input is not None
    return by_input or class_name in (*MODELS, *WRAPPERS)


def _lopsided(config: Config, place: str = "") -> Iterator[str]:
    """Yields Bidirectional layers of two sizes; Keras 3 would use the size of one for both."""
    for layer in layers_of(config["config"]):
        name = f"{place}{layer_name(layer)}"
        if layer["class_name"] in MODELS:
            yield from _lopsided(layer, f"{name}/")
        ways = [layer["config"].get(way) for way in ("layer", "backward_layer")]
        if layer["class_name"] == "Bidirectional" and all(ways):
            cells = [way["config"].get("cell", way) for way in ways]
            if len({*map(_units, cells)}) > 1:
                yield f"{name}: its two directions must have one size; grow both to the same size"


def _units(cell: Config) -> tuple[Any, ...]:
    """Returns the size of a recurrent cell, or the sizes of stacked cells."""
    stack = cell["config"].get("cells", [cell])
    return tuple(one["config"].get("units") for one in stack)


def _built(config: Config) -> KerasLayers | None:
    """Returns the module of a model, if it is supported."""
    try:
        return KerasLayers(frozen(supported(config)))
    except KerasFileError:
        return None


def _without(key: str, tree: Any) -> Any:
    if isinstance(tree, Mapping):
        return {name: _without(key, branch) for name, branch in tree.items() if name != key}
    return [_without(key, branch) for branch in tree] if isinstance(tree, list) else tree


def _check(config: Config, variables: Mapping[str, Any]) -> None:
    """Raises if a config is known to describe other variables than these."""
    if (module := _built(config)) is None:
        return
    try:
        expected = described(module) or {}
    except ValueError as error:
        raise ValueError(f"no config of this model has these sizes: {error}") from error
    shapes = dict(_shapes(variables))
    problems = [
        f"{path}: has shape {shapes[path]}, but Keras would create shape {shape}"
        for path, shape in _shapes({name: expected.get(name, {}) for name in _COLLECTIONS})
        if shapes.get(path, shape) != shape
    ]
    if problems:
        way_out = (
            "save with layout='weights.h5', and load these weights into a model that is made with "
            "the new sizes"
        )
        what = f"no config of this model is known to have these sizes ({way_out})"
        raise ValueError(listed(what, problems))


def _shapes(variables: Mapping[str, Any]) -> list[tuple[str, tuple[int, ...]]]:
    variables = variables if "params" in variables else {"params": variables}
    leaves = jax.tree_util.tree_leaves_with_path(variables)
    return [("/".join(str(key.key) for key in path), tuple(a.shape)) for path, a in leaves]
