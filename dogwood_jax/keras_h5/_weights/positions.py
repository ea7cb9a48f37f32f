"""Groups of Keras 3's weights files, which name layers by class and position.

::

    /layers/dense/vars/0                    kernel of the first Dense layer, whatever its own name
    /layers/dense_1/vars/0, 1               kernel and bias of the second Dense layer
    /layers/lstm/cell/vars/0, 1, 2          an inner layer has the name of its attribute
    /layers/functional/layers/dense/vars/0  an inner model numbers its layers from the start
    /optimizer/vars/0, 1, ...

TensorFlow 2.12 called the container ``_layer_checkpoint_dependencies`` and counted every layer with
weights twice. Since Keras 3.6, ``vars`` has an attribute ``name`` with the layer's own name.
Without it and without the model's config, the file does not contain the layers' own names.
"""

import re
from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from dogwood_jax.keras_h5._files.hdf5 import Dataset, Tree, checked_array, misplaced, read_text
from dogwood_jax.keras_h5._kinds.kind import KINDS, NAMED, Config, kind_of, layout
from dogwood_jax.keras_h5._kinds.nested import MODELS, layer_name, layers_of
from dogwood_jax.keras_h5._kinds.weight import is_kernel_and_bias

CONTAINERS = ("layers", "_layer_checkpoint_dependencies")


class Member(NamedTuple):
    """A layer in a container: ``config`` and ``tree`` are ``None`` if the file has none."""

    name: str
    class_name: str | None
    config: Config | None
    tree: Tree | None


def snake_case(class_name: str) -> str:
    """Returns the group name of a class in Keras: conv2d_transpose for ``Conv2DTranspose``."""
    name = re.sub(r"\W+", "", class_name.rpartition(">")[2])
    name = kind_of(name).own_name or name
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()


_CLASSES = {snake_case(name): name for name, kind in KINDS.items() if kind.weights}


def class_named(name: str) -> str | None:
    """Returns the class whose layers Keras names like this, Dense for ``dense_12``."""
    return _CLASSES.get(stem(name))


def stem(name: str) -> str:
    """Returns a name without the number by which Keras distinguishes layers of one class."""
    return re.sub("_[0-9]+$", "", name)


def variables(tree: Tree) -> dict[str, Dataset]:
    """Returns a layer's own arrays by number, in order."""
    own = tree.part("vars")
    if own is None:
        return {}
    found = own.inside
    for name, item in found.items():
        kind = "Group" if isinstance(item, Tree) else type(item).__name__
        if kind != "Dataset":
            raise misplaced(own.group, f"a Dataset {name!r}", f"a {kind}")
        checked_array(item)
    numbers = sorted(int(name) for name in found if name.isdecimal())
    if numbers != list(range(len(numbers))):
        raise misplaced(own.group, "arrays 0, 1, ... without a gap", ", ".join(sorted(found)))
    others = sorted(name for name in found if not name.isdecimal())
    return {name: found[name] for name in (*map(str, numbers), *others)}


def members(container: Tree, entries: Sequence[Config] | None) -> list[Member]:
    """Returns the layers in a container, in the model's order if its config is known.

    Args:
        container: the group ``layers``.
        entries: configs of the model's layers, or ``None`` if they are not known.
    """
    if entries is None:
        return [
            Member(name, *described(tree, class_named(group_name)), tree)
            for name, (group_name, tree) in named(container).items()
        ]
    groups = _groups(container)
    found = []
    twice = groups if container.group.name.endswith(CONTAINERS[1]) else ()
    for entry, group_name in zip(entries, list(positions(entries, twice))):
        tree = groups.pop(group_name, None)
        found.append(Member(layer_name(entry), entry["class_name"], entry["config"], tree))
    for name, tree in groups.items():
        if _holds_arrays(tree):
            raise misplaced(container.group, "only layers that the model's config has", repr(name))
    return found


def named(container: Tree) -> dict[str, tuple[str, Tree]]:
    """Returns the groups of layers, with their names in the container, by the layers' own names."""
    groups = _groups(container)
    names = {n: own_name(tree) or n for n, tree in groups.items()}
    if len({*names.values()}) < len(names):
        names = {n: n for n in names}
    return {names[n]: (n, groups[n]) for n in sorted(groups, key=_numbered)}


def own_name(tree: Tree) -> str | None:
    """Returns a layer's or optimizer's own name, which Keras 3.6 and later store."""
    own = tree.part("vars")
    name = None if own is None else read_text(own.group, "name")
    return name or None


def _groups(tree: Tree) -> dict[str, Tree]:
    return {name: item for name, item in tree.inside.items() if isinstance(item, Tree)}


def positions(entries: Sequence[Config], counted_twice: Container[str] = ()) -> Iterator[str]:
    """Yields the names of the layers' groups.

    Args:
        entries: configs of the model's layers.
        counted_twice: groups that use up two numbers, as in TensorFlow 2.12.
    """
    used: dict[str, int] = {}
    for entry in entries:
        kind = snake_case(entry.get(NAMED, entry["class_name"]))
        number = used.get(kind, 0)
        name = f"{kind}_{number}" if number else kind
        yield name
        used[kind] = number + (2 if name in counted_twice else 1)


def arrays(tree: Tree, class_name: str | None, config: Config | None) -> dict[str, Dataset]:
    """Returns all arrays of a layer: ``"0"``, ``"cell/0"``, or ``"dense_1/0"`` in a model."""
    found = variables(tree)
    for name, item in _groups(tree).items():
        if name == "vars":
            continue
        if name not in CONTAINERS:
            entry = inner(config or {}, name)
            inside = [Member(name, entry.get("class_name"), entry.get("config"), item)]
        elif class_name in MODELS and config:
            inside = members(item, layers_of(config))
        else:
            inside = [Member(n, None, None, part) for n, (_, part) in named(item).items()]
        for layer in inside:
            if layer.tree is not None:
                # An inferred config does not determine the names of its groups.
                within = arrays(layer.tree, layer.class_name, config and layer.config)
                found |= {f"{layer.name}/{n}": dataset for n, dataset in within.items()}
    return found


def inner(config: Config, attribute: str) -> Config:
    """Returns the entry of the layer that a wrapper holds under an attribute, if known."""
    keys = {"forward_layer": ("layer",), "backward_layer": ("backward_layer", "layer")}
    for key in keys.get(attribute, (attribute,)):
        if isinstance(config, Mapping) and isinstance(config.get(key), Mapping):
            return dict(config[key])
    return {}


def _holds_arrays(tree: Tree) -> bool:
    return any(not isinstance(i, Tree) or _holds_arrays(i) for i in tree.inside.values())


def _numbered(name: str) -> tuple[str, int]:
    stem, _, number = name.rpartition("_")
    return (stem, int(number)) if stem and number.isdecimal() else (name, 0)


# Without a config: conclusions that are certain from the class and the arrays' shapes.


def described(tree: Tree, class_name: str | None) -> tuple[str | None, Config | None]:
    """Returns a layer's class and the config that conversion needs, or ``None`` for both."""
    inside = _groups(tree)
    container = next((inside[name] for name in CONTAINERS if name in inside), None)
    if class_name in MODELS and container is not None:
        layers = [
            {"class_name": layer.class_name, "config": {**(layer.config or {}), "name": layer.name}}
            for layer in members(container, None)
        ]
        return class_name, {"layers": layers}
    found = arrays(tree, class_name, None)
    if any(dataset.dtype == "int8" for dataset in found.values()):  # quantized, in an unknown way
        return None, None
    shapes = {name: tuple(d.shape) for name, d in found.items()}
    if class_name is None:
        class_name = class_named(own_name(tree) or "")
    config = config_of(class_name, shapes)
    if class_name is None and is_kernel_and_bias(shapes) and len(shapes["0"]) == 2:
        return "Dense", {}
    if config is None and class_name is None and not variables(tree):
        return _holder(tree)
    if config is None or class_name in MODELS:
        return None, None
    # A layer that holds others, unlike layers of the class, shares only the name of the class.
    others = any("/" in name for name in shapes)
    expected = any("/" in weight.name for weight in layout(class_name, config))
    return (None, None) if others and not expected else (class_name, config)


def _holder(tree: Tree) -> tuple[str | None, Config | None]:
    """Returns a user-defined layer as a model, if the class of one of its parts is known."""
    parts = []
    for name, item in _groups(tree).items():
        if name in CONTAINERS:
            parts += members(item, None)
        elif name != "vars" and _holds_arrays(item):
            parts.append(Member(name, *described(item, None), item))
    if not any(part.class_name for part in parts):
        return None, None
    return "Functional", {
        "layers": [
            {"class_name": part.class_name, "config": {**(part.config or {}), "name": part.name}}
            for part in parts
        ]
    }


def config_of(class_name: str | None, shapes: Mapping[str, tuple[int, ...]]) -> Config | None:
    """Infers a config from a class and the shapes of its arrays; ``None`` if these do not suffice.

    Example:
        >>> config_of("BatchNormalization", {str(i): (8,) for i in range(4)})
        {'scale': True, 'center': True}
        >>> config_of("BatchNormalization", {str(i): (8,) for i in range(3)})  # not which of them
        {'scale': False, 'center': False, 'scale or center, says dogwood_jax': True}
    """
    kind = kind_of(class_name)
    if kind.told is not None:
        return kind.told(shapes)
    if kind.weights is None or class_name in MODELS:
        return None
    full = len(kind.weights({}))
    config: dict[str, Any] = {"use_bias": len(shapes) == full}
    if "depthwise_kernel" in kind.axes({}) and "0" in shapes:
        config |= {"depth_multiplier": shapes["0"][-1]}
    return config if len(shapes) in (full - 1, full) else None


def named_by_shape(weights: Mapping[str, Dataset]) -> dict[str, Dataset]:
    """Renames pairs of arrays to kernel and bias if their shapes leave no doubt."""
    holders: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, dataset in weights.items():
        holder, _, number = name.rpartition("/")
        holders.setdefault(holder, {})[number] = tuple(dataset.shape)
    names = {}
    for name in weights:
        holder, slash, number = name.rpartition("/")
        if is_kernel_and_bias(holders[holder]):
            names[name] = f"{holder}{slash}{'kernel' if number == '0' else 'bias'}"
    return {names.get(name, name): dataset for name, dataset in weights.items()}
