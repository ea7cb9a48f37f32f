"""Checks configs of models, which may come from untrusted files, before they are used.

Archives contain the module of each class and the name under which its author registered it. Only
this file reads them. A class keeps its name only if it is Keras's own, so a user-defined layer
called Dense is not mistaken for Keras's. HDF5 files lack this information: their classes are
assumed to be Keras's own, as in Keras itself.
"""

import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

from dogwood_jax.keras_h5._files.errors import KerasFileError
from dogwood_jax.keras_h5._kinds.kind import KINDS, NAMED, Config
from dogwood_jax.keras_h5._kinds.nested import MODELS
from dogwood_jax.keras_h5._weights.keras_1 import as_in_keras_2

_WRAPPED = ("layer", "backward_layer", "cell")  # keys of inner layers in the config of a layer

_KERAS = ("keras", "tf_keras", "keras_core")  # packages

# Names in HDF5 files of Keras's own classes that Keras registers itself.
_REGISTERED = ("Adam", "AdamW", "CustomScaleLayer")

# Keys in the config of a Sequential model, also of a user-defined subclass.
_SEQUENTIAL = {"name", "trainable", "dtype", "layers", "build_input_shape"}


def checked_config(
    config: Any, place: str, names: Sequence[str] = (), *, of_theano: bool = False
) -> Config:
    """Checks that every layer in a model's config has a class, a config and a name; returns it.

    Before Keras 2.2.3 the config of a Sequential model was the list of its layers, and an inner
    model had no name. The result has the later form, also for Keras 1. Class names are those of
    ``with_classes``.

    Args:
        config: the config in the file.
        place: its place in the file.
        names: the names of the layers, if the file has them elsewhere.
        of_theano: whether the weights are Theano's, for Keras 1.

    Raises:
        KerasFileError: names the first layer that is not valid.
    """
    modern: Config = with_classes(as_in_keras_2(_modern(config, "", names), of_theano))
    _check(modern, f"at {place}: the model")
    return modern


def _modern(item: Any, name: str, names: Sequence[str] = ()) -> Any:
    if not isinstance(item, Mapping):
        return item
    config = item.get("config")
    if isinstance(config, list):
        config = {"name": item.get("name", name), "layers": config}
    if isinstance(config, Mapping):
        config = {k: _modern(v, k) if k in _WRAPPED else v for k, v in config.items()}
        if isinstance(layers := config.get("layers"), list):
            if len(names) != len(layers):
                names = [f"layer_{i}" for i in range(len(layers))]
            config["layers"] = [_modern(layer, name) for layer, name in zip(layers, names)]
    return {**item, "config": config}


def with_classes(tree: Any) -> Any:
    """Returns a config in which class names show where a class is defined.

    Keras's own classes have their names in Keras. Its operations have the prefix ``ops.``, because
    there is a layer Add as well. Other classes have their registered package or their module as a
    prefix: ``my_package>Dense``. A user-defined model class whose config lists the layers becomes
    ``Functional`` or ``Sequential``. If a name differs from that in the file, the config keeps the
    latter as ``NAMED``.
    """
    if isinstance(tree, list):
        return list(map(with_classes, tree))
    if not isinstance(tree, Mapping):
        return tree
    tree = dict(zip(tree, map(with_classes, tree.values())))
    if NAMED in tree or "config" not in tree:
        return tree
    name = tree.get("class_name")
    new = _class_of(tree) if isinstance(name, str) else name
    return tree if new == name else {**tree, "class_name": new, NAMED: name}


def _class_of(item: Config) -> str:
    name, config = str(item["class_name"]), item["config"]
    if "module" in item:
        module = str(item["module"] or "__main__")  # Keras leaves __main__ out
        package, *path = module.split(".")
        if package in _KERAS:
            path = path[1:] if path[:1] == ["src"] else path
            return f"ops.{name}" if path[:1] in (["ops"], ["operations"]) else name
        if module == "builtins":  # a function
            return name
        registered = str(item.get("registered_name"))
        name = registered if ">" in registered else f"{module}>{name}"
    elif name.removeprefix("Custom>") in _REGISTERED:
        return name.removeprefix("Custom>")
    elif _is_operation(item):
        return f"ops.{name}"
    known = name in KINDS or not isinstance(config, Mapping) or not lists_layers(config)
    if not known and {"input_layers", "output_layers"} <= config.keys():
        return "Functional"
    return "Sequential" if not known and config.keys() <= _SEQUENTIAL else name


def _is_operation(item: Config) -> bool:
    """Returns whether an HDF5 entry is a Keras 3 operation: only layers have ``trainable``."""
    nodes = item.get("inbound_nodes")
    if not isinstance(nodes, list) or not nodes or not isinstance(nodes[0], Mapping):
        return False
    config = item["config"]
    untrained = isinstance(config, Mapping) and "trainable" not in config
    return untrained and f"ops.{item['class_name']}" in KINDS


def lists_layers(config: Config) -> bool:
    """Returns whether a model's config lists its layers; that of a user-defined class may not."""
    layers = config.get("layers")
    return isinstance(layers, list) and all(
        isinstance(layer, Mapping) and "class_name" in layer for layer in layers
    )


def as_in(original: Any, config: Any) -> Any:
    """Returns a config in the form of the original one: the inverse of ``checked_config``."""
    return _listed_as(original, _called_as_before(config))


def _called_as_before(tree: Any) -> Any:
    """Returns a config with the class names of its file."""
    if isinstance(tree, list):
        return list(map(_called_as_before, tree))
    if not isinstance(tree, Mapping):
        return tree
    new = dict(zip(tree, map(_called_as_before, tree.values())))
    if NAMED in new:
        new["class_name"] = new.pop(NAMED)
    return new


def _listed_as(original: Any, config: Any) -> Any:
    """Returns a config in which layers are listed and named as in the original one."""
    if not isinstance(original, Mapping) or not isinstance(config, Mapping):
        return config
    old, new = original.get("config"), config["config"]
    if isinstance(old, list):
        return {**config, "config": list(map(_listed_as, old, new["layers"]))}
    if isinstance(old, Mapping):
        new = {k: _listed_as(old.get(k), v) if k in _WRAPPED else v for k, v in new.items()}
        if isinstance(old.get("layers"), list):
            new["layers"] = list(map(_listed_as, old["layers"], new["layers"]))
    return {**config, "config": new}


def entries_of(config: Config | None) -> list[Config]:
    """Returns the configs of a model's layers; an empty list if they are not known."""
    inner = {} if config is None else config["config"]
    return list(inner["layers"]) if lists_layers(inner) else []


def _check(item: Any, where: str) -> None:
    if not isinstance(item, Mapping) or not isinstance(item.get("class_name"), str):
        raise _unlike(where, "an object with class_name and config", item)
    config = item.get("config")
    if not isinstance(config, Mapping):
        raise _unlike(where, "a config", config)
    for key in _WRAPPED:
        if isinstance(config.get(key), Mapping) and "class_name" in config[key]:
            _check(config[key], f"{where}, {key}")
    if item["class_name"] not in MODELS and not lists_layers(config):
        return
    layers = config.get("layers")
    if not isinstance(layers, list):
        raise _unlike(where, "a list of layers", layers)
    for index, layer in enumerate(layers):
        _check(layer, f"{where}, layer {index}")
        name = layer["config"].get("name", layer.get("name"))
        if not isinstance(name, str):
            raise _unlike(f"{where}, layer {index}", "a layer with a name", name)


def _unlike(where: str, expected: str, found: Any) -> KerasFileError:
    return KerasFileError(f"{where}: expected {expected}; found {reprlib.repr(found)}")
