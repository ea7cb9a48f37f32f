"""Configs of models, as strangers wrote them: checked before anything relies on them."""

import reprlib
from collections.abc import Mapping
from typing import Any

from dogwood_jax.keras_h5._convert import MODELS, Config, layers_of
from dogwood_jax.keras_h5._errors import KerasFileError


def checked_config(config: Any, place: str) -> Config:
    """Returns a model's config, once every layer in it has a class, a config and a name.

    Raises:
        KerasFileError: naming the first layer that has not.
    """
    _check(config, f"at {place}: the model")
    checked: Config = config
    return checked


def entries_of(config: Config | None) -> list[Config]:
    """Returns the configs of a model's layers; none where they are not known."""
    inner = {} if config is None else config["config"]
    listed = "layers" in inner if isinstance(inner, Mapping) else True
    return list(layers_of(inner)) if listed else []


def _check(item: Any, where: str) -> None:
    if not isinstance(item, Mapping) or not isinstance(item.get("class_name"), str):
        raise _unlike(where, "an object with class_name and config", item)
    config = item.get("config")
    if isinstance(config, Mapping):
        for key in ("layer", "backward_layer", "cell"):
            if isinstance(config.get(key), Mapping) and "class_name" in config[key]:
                _check(config[key], f"{where}, {key}")
        listed = config.get("layers")
    else:
        listed = config
    if item["class_name"] not in MODELS and not isinstance(config, Mapping):
        raise _unlike(where, "a config", config)
    if item["class_name"] in MODELS or isinstance(listed, list):
        if not isinstance(listed, list):
            raise _unlike(where, "a list of layers", listed)
        for index, layer in enumerate(listed):
            _check(layer, f"{where}, layer {index}")
            inner = layer["config"] if isinstance(layer["config"], Mapping) else layer
            name = inner.get("name", layer.get("name"))
            if not isinstance(name, str):
                raise _unlike(f"{where}, layer {index}", "a layer with a name", name)


def _unlike(where: str, expected: str, found: Any) -> KerasFileError:
    return KerasFileError(f"{where}: expected {expected}; found {reprlib.repr(found)}")
