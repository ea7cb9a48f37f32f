"""Configs of models, as strangers wrote them: checked before anything relies on them."""

import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

from dogwood_jax.keras_h5._files.errors import KerasFileError
from dogwood_jax.keras_h5._kinds.kind import Config
from dogwood_jax.keras_h5._kinds.nested import MODELS, layers_of

_WRAPPED = ("layer", "backward_layer", "cell")  # where the config of a layer has another one


def checked_config(config: Any, place: str, names: Sequence[str] = ()) -> Config:
    """Returns a model's config, once every layer in it has a class, a config and a name.

    Before Keras 2.2.3 the config of a Sequential model was the list of its layers, and one inside
    another had no name. Here it is as it has been since.

    Args:
        config: the config as it is in the file.
        place: where it is there.
        names: the names of the layers, where the file has them elsewhere.

    Raises:
        KerasFileError: naming the first layer that is not as it should be.
    """
    modern: Config = _modern(config, "", names)
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


def as_in(original: Any, config: Any) -> Any:
    """Returns a config in the form that another one has: the inverse of ``checked_config``."""
    if not isinstance(original, Mapping) or not isinstance(config, Mapping):
        return config
    old, new = original.get("config"), config["config"]
    if isinstance(old, list):
        return {**config, "config": list(map(as_in, old, new["layers"]))}
    if isinstance(old, Mapping):
        new = {k: as_in(old.get(k), v) if k in _WRAPPED else v for k, v in new.items()}
        if isinstance(old.get("layers"), list):
            new["layers"] = list(map(as_in, old["layers"], new["layers"]))
    return {**config, "config": new}


def entries_of(config: Config | None) -> list[Config]:
    """Returns the configs of a model's layers; none where they are not known."""
    inner = {} if config is None else config["config"]
    return list(layers_of(inner)) if "layers" in inner else []


def _check(item: Any, where: str) -> None:
    if not isinstance(item, Mapping) or not isinstance(item.get("class_name"), str):
        raise _unlike(where, "an object with class_name and config", item)
    config = item.get("config")
    if not isinstance(config, Mapping):
        raise _unlike(where, "a config", config)
    for key in _WRAPPED:
        if isinstance(config.get(key), Mapping) and "class_name" in config[key]:
            _check(config[key], f"{where}, {key}")
    layers = config.get("layers")
    if not isinstance(layers, list):
        if item["class_name"] in MODELS:
            raise _unlike(where, "a list of layers", layers)
        return
    for index, layer in enumerate(layers):
        _check(layer, f"{where}, layer {index}")
        name = layer["config"].get("name", layer.get("name"))
        if not isinstance(name, str):
            raise _unlike(f"{where}, layer {index}", "a layer with a name", name)


def _unlike(where: str, expected: str, found: Any) -> KerasFileError:
    return KerasFileError(f"{where}: expected {expected}; found {reprlib.repr(found)}")
