"""Lists the layers and arrays of Keras files of any layout: ``contents``.

| layout | written by | recognised by |
|---|---|---|
| ``"h5"`` | ``model.save_weights("x.h5")`` of Keras 1 and 2 | the attribute layer_names |
| ``"model.h5"`` | ``model.save("x.h5")`` | the group model_weights |
| ``"weights.h5"`` | ``model.save_weights("x.weights.h5")`` of Keras 3 | neither of them |
| ``"keras"`` | ``model.save("x.keras")`` | an archive, or its folder, with config.json |

The first two are written by Keras 1 and 2::

    /                           attributes layer_names, backend, keras_version
    /dense_1                    attribute weight_names: dense_1/kernel:0, dense_1/bias:0
    /dense_1/dense_1/kernel:0   float32 [in, out]
    /dense_1/dense_1/bias:0     float32 [out]
    /flatten                    attribute weight_names, empty: a layer without weights

Only the attributes give the names and their order; HDF5 itself lists names alphabetically, biases
before kernels. The other two layouts name layers by class and position: see ``positions``.
"""

import os
import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from dogwood_jax.keras_h5._files.errors import KerasFileError
from dogwood_jax.keras_h5._files.hdf5 import (
    Dataset,
    Group,
    Tree,
    checked_array,
    find,
    member,
    misplaced,
    read_names,
    read_text,
    read_tree,
)
from dogwood_jax.keras_h5._files.source import CONFIG, METADATA, Source, parsed
from dogwood_jax.keras_h5._kinds.kind import Config
from dogwood_jax.keras_h5._kinds.nested import layer_name
from dogwood_jax.keras_h5._weights import positions
from dogwood_jax.keras_h5._weights.config import (
    checked_config,
    entries_of,
    lists_layers,
    with_classes,
)
from dogwood_jax.keras_h5._weights.layers import Layer, make_layer

LAYOUTS = ("h5", "model.h5", "weights.h5", "keras")

# Weights of the model itself, outside its layers: a group that Keras leaves out of layer_names.
TOP_LEVEL = "top_level_model_weights"

# Groups of Keras 3's weights files that hold no layers.
_NOT_LAYERS = {"optimizer", "metrics", "loss_tracker", "compile_metrics", "seed_generator"}


@dataclass(frozen=True)
class Contents:
    """The contents of a file.

    Attributes:
        layout: one of ``LAYOUTS``.
        keras_version: version of the Keras that wrote the file, if the file contains it.
        backend: Keras's backend, if the file contains it.
        config: the model's config, ``{"class_name": ..., "config": ...}``, or ``None``.
        layers: the layers in the model's order.
        optimizer: the optimizer's arrays in its order, by their names in the file.
        optimizer_class: its class ``"Adam"``, or name ``"adam"``, if the file contains it.
        optimizer_config: its config, empty if the file does not contain it.
        optimizer_problem: why the optimizer cannot be read. Weights can be read without it.
        version_problem: why the version cannot be read. Weights can be read without it.
    """

    layout: str
    keras_version: str | None
    backend: str | None
    config: Config | None
    layers: tuple[Layer, ...]
    optimizer: Mapping[str, Dataset]
    optimizer_class: str | None
    optimizer_config: Config
    optimizer_problem: str | None = None
    version_problem: str | None = None


def contents(source: Source) -> Contents:
    """Returns the contents of an open file, without reading its arrays.

    Raises:
        KerasFileError: if the file holds no Keras weights, or contradicts itself.
    """
    root = source.weights
    if source.config is not None:
        stored = parsed(source.config, CONFIG, source.limit)
        config = checked_config(stored, CONFIG)
        version, unreadable = _version(source)
        tree = read_tree(root)
        return Contents(
            "keras",
            version,
            None,
            config,
            _positioned(tree, config),
            *_if_readable(lambda: _optimizer(tree, stored.get("compile_config"))),
            unreadable,
        )
    whole = "model_weights" in root
    group = member(root, "model_weights", "Group") if whole else root
    names = read_names(group, "layer_names")
    if names is None and whole:
        raise misplaced(group, "an attribute layer_names", "none")
    if names is None:
        return _weights_of_keras_3(root)
    config_text = read_text(root, "model_config")
    model: Config | None = None
    if config_text is not None:
        place = "attribute model_config"
        stored = parsed(config_text, place, source.limit)
        model = checked_config(stored, place, names, of_theano=_is_of_theano(group, names))
    return Contents(
        "model.h5" if whole else "h5",
        read_text(group, "keras_version") or read_text(root, "keras_version"),
        read_text(group, "backend"),
        model,
        _named(group, names, model),
        *_if_readable(lambda: _slots(root, source.limit)),
    )


def _weights_of_keras_3(root: Group) -> Contents:
    tree = read_tree(root)
    layers = _positioned(tree, None)
    is_without_weights = layers and tree.part("vars") is not None
    if not is_without_weights and not any(layer.weights for layer in layers):
        raise misplaced(
            root,
            "an attribute layer_names, as in files that Keras 1 and 2 write, or groups of layers "
            "with their arrays in vars/0, vars/1, ..., as Keras 3 writes them",
            "neither",
        )
    return Contents(
        "weights.h5", None, None, None, layers, *_if_readable(lambda: _optimizer(tree, None))
    )


def _version(source: Source) -> tuple[str | None, str | None]:
    """Returns the Keras version of an archive, and the reason if it cannot be read."""
    if source.metadata is None:
        return None, None
    try:
        metadata = parsed(source.metadata.decode(), METADATA, source.limit)
    except (KerasFileError, UnicodeDecodeError) as error:
        return None, str(error)
    return _text(metadata.get("keras_version")), None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


# The optimizer's arrays, class and config.
Optimizer: TypeAlias = tuple[Mapping[str, Dataset], str | None, Config]


def _if_readable(
    read: Callable[[], Optimizer],
) -> tuple[Mapping[str, Dataset], str | None, Config, str | None]:
    """Returns the optimizer's arrays, class and config, and the reason if it cannot be read."""
    try:
        return *read(), None
    except KerasFileError as error:
        return {}, None, {}, str(error)


def _compiled(training: Any) -> tuple[str | None, Config]:
    """Returns the optimizer's class and config from a model's compile settings."""
    described = training if isinstance(training, Mapping) else {}
    described = with_classes(described.get("optimizer", described.get("optimizer_config")))
    if not isinstance(described, Mapping):
        return _text(described), {}
    config = described.get("config")
    return _text(described.get("class_name")), config if isinstance(config, Mapping) else {}


def _optimizer_name(tree: Tree) -> str | None:
    """Returns the optimizer's name from the attribute that Keras 3.6 and later write."""
    optimizer = tree.part("optimizer")
    name = None if optimizer is None else positions.own_name(optimizer)
    return None if name is None else positions.stem(name)


# Layouts of Keras 1 and 2.


def _named(group: Group, names: Sequence[str], config: Config | None) -> tuple[Layer, ...]:
    """Returns the layers that attributes list."""
    described = {layer_name(layer): layer for layer in entries_of(config)}
    listed = [*names, TOP_LEVEL] if find(group, TOP_LEVEL) is not None else names
    layers = []
    for name in listed:
        place = member(group, name, "Group")
        weights = _listed_weights(place)
        if name == TOP_LEVEL and not weights:
            continue  # Keras always writes this group, even without weights
        entry = described.get(name, {"class_name": None, "config": {}})
        layers.append(make_layer(name, entry["class_name"], entry["config"], weights))
    return tuple(layers)


def _is_of_theano(group: Group, names: Sequence[str]) -> bool:
    """Returns whether the names of weights lack ``:0``, as with Keras 1 on Theano."""
    groups = (find(group, name) for name in names)
    weights = [w for g in groups if g is not None for w in read_names(g, "weight_names") or ()]
    return not any(name.endswith(":0") for name in weights)


def _listed_weights(group: Group) -> dict[str, Dataset]:
    """Returns the arrays that a layer's attribute lists, by their names within the layer."""
    names = read_names(group, "weight_names")
    if names is None:
        raise misplaced(group, "an attribute weight_names", "none")
    paths = [tuple(name.removesuffix(":0").split("/")) for name in names]
    # A variable's name may begin with the name of another layer, model or cell; the prefix that
    # all weights of a layer share carries no information.
    shared = len(os.path.commonprefix([path[:-1] for path in paths]))
    paths = [path[shared:] for path in paths]
    inner = {path[:n] for path in paths for n in range(1, len(path))}
    if len({*paths} - inner) < len(names):
        raise misplaced(group, "weight_names of distinct weights", reprlib.repr(names))
    return {"/".join(path): member(group, name, "Dataset") for name, path in zip(names, paths)}


def _slots(root: Group, limit: int) -> Optimizer:
    """Returns the optimizer in a whole-model file."""
    slots = {}
    if find(root, "optimizer_weights") is not None:
        group = member(root, "optimizer_weights", "Group")
        names = read_names(group, "weight_names") or []
        slots = {name: checked_array(member(group, name, "Dataset")) for name in names}
    text, place = read_text(root, "training_config"), "attribute training_config"
    return slots, *_compiled(None if text is None else parsed(text, place, limit))


# Layouts of Keras 3.


def _positioned(tree: Tree, config: Config | None) -> tuple[Layer, ...]:
    """Returns the layers of a file that names them by class and position."""
    layers = []
    own = positions.variables(tree)
    # The config of a user-defined model class may not list its layers.
    known_layers = config is not None and lists_layers(config["config"])
    for container in filter(None, map(tree.part, positions.CONTAINERS)):
        entries = entries_of(config) if known_layers else None
        for name, class_name, details, place in positions.members(container, entries):
            known = details if entries else None
            weights = {} if place is None else positions.arrays(place, class_name, known)
            layers.append(make_layer(name, class_name, details or {}, weights))
    if config is not None and not layers:
        layers = [
            make_layer(layer_name(layer), layer["class_name"], layer["config"], {})
            for layer in entries_of(config)
        ]
    for name, item in tree.inside.items():
        if name in {"vars", *positions.CONTAINERS} or name.lstrip("_") in _NOT_LAYERS:
            continue
        if isinstance(item, Tree) and (weights := positions.arrays(item, None, None)):
            layers.append(_attribute(name, item, weights))
    if own:
        layers.append(make_layer(TOP_LEVEL, None, {}, own))
    return tuple(layers)


def _attribute(name: str, tree: Tree, weights: Mapping[str, Dataset]) -> Layer:
    """Returns the layer that a user-defined model class holds under one of its attributes."""
    class_name, config = positions.described(tree, None)
    if class_name is not None:
        return make_layer(name, class_name, config or {}, weights)
    return make_layer(name, None, {}, positions.named_by_shape(weights))


def _optimizer(tree: Tree, training: Any) -> Optimizer:
    optimizer = tree.part("optimizer")
    slots = {} if optimizer is None else positions.variables(optimizer)
    name, config = _compiled(training)
    return slots, name or _optimizer_name(tree), config
