"""Writes new files in any of the layouts: ``write``."""

import json
import re
from collections.abc import Iterable, Mapping
from typing import IO, Any

import h5py
import numpy as np

from dogwood_jax.keras_h5._files.hdf5 import BFLOAT16, OPAQUE16, Dataset, Group
from dogwood_jax.keras_h5._kinds.kind import Config, kind_of, layout
from dogwood_jax.keras_h5._kinds.nested import MODELS, layer_name, layers_of
from dogwood_jax.keras_h5._weights.config import as_in, entries_of
from dogwood_jax.keras_h5._weights.layouts import TOP_LEVEL, Contents
from dogwood_jax.keras_h5._weights.positions import class_named, inner, positions, stem

# Names of weights in Keras's order, for layers of unknown classes.
_WEIGHT_ORDER = (
    *("depthwise_kernel", "pointwise_kernel", "kernel", "recurrent_kernel"),
    *("gamma", "scale", "bias", "beta", "moving_mean", "moving_variance"),
)

# Default origin of a file: the last Keras 2 under that name. Keras treats files of all versions
# since 2.0 alike.
_ORIGIN = {"keras_version": "2.15.0", "backend": "tensorflow"}

_ATTRIBUTE_LIMIT = 64512  # bytes; Keras splits longer attributes over name0, name1, ...

Arrays = Mapping[str, Mapping[str, np.ndarray]]


def layer_order(names: Iterable[str]) -> list[str]:
    """Returns the layers in the dict's order; if that is sorted, numbers are ordered by value."""
    layers = list(names)
    if layers != sorted(layers):
        return layers
    return sorted(layers, key=lambda name: re.sub("[0-9]+", lambda n: n[0].zfill(9), name))


def weight_position(name: str) -> int:
    """Returns the position of a weight among those of a layer of unknown class."""
    return _WEIGHT_ORDER.index(name) if name in _WEIGHT_ORDER else len(_WEIGHT_ORDER)


def told(
    name: str, class_name: str | None, config: Config, weights: Mapping[str, np.ndarray]
) -> tuple[str | None, Config]:
    """Refines a layer's class by its name and by the axes of its kernel; returns the config too."""
    kernel = weights.get("kernel")
    if class_name == "Dense" and kernel is not None and 3 <= kernel.ndim <= 5:
        class_name = f"Conv{kernel.ndim - 2}D"
    hint = class_named(name)
    # The arrays of a layer that holds others are known only with the configs of those layers.
    held = {"layers"} if hint in MODELS else {*kind_of(hint).holds}
    if hint and held <= config.keys() and {w.name for w in layout(hint, config)} == weights.keys():
        class_name = hint
    return class_name, config


def write(draft: IO[bytes], new: Contents, arrays: Arrays) -> None:
    """Writes a file that holds these layers with these arrays, in the layout of ``new``."""
    with h5py.File(draft, "w") as file:
        if new.layout == "weights.h5":
            _write_positions(file, new, arrays)
        elif new.layout == "h5":
            _write_names_and_weights(file, new, arrays)
        else:
            file.attrs["model_config"] = json.dumps(as_in(None, new.config))
            _write_origin(file, new)
            _write_names_and_weights(file.create_group("model_weights"), new, arrays)


# Layouts of Keras 1 and 2.


def _write_names_and_weights(group: Group, new: Contents, arrays: Arrays) -> None:
    names = [layer.name for layer in new.layers if layer.name != TOP_LEVEL]
    _write_names(group, "layer_names", names)
    _write_origin(group, new)
    for layer in new.layers:
        place = group.require_group(layer.name)
        repeated = {w.name for w in layout(layer.class_name, layer.config) if w.repeats}
        weights = {
            f"{layer.name}/{_variable_name(layer.class_name, name)}:0": array
            for name, array in arrays[layer.name].items()
            if name not in repeated
        }
        _write_names(place, "weight_names", list(weights))
        for name, array in weights.items():
            write_array(place, name, array)


def _variable_name(class_name: str | None, name: str) -> str:
    part, slash, weight = name.partition("/")
    return kind_of(class_name).inner_names.get(part, part) + slash + weight


def _write_origin(group: Group, new: Contents) -> None:
    given = {"keras_version": new.keras_version, "backend": new.backend}
    for attribute, value in _ORIGIN.items():
        # Early versions of Keras can read only bytes.
        group.attrs[attribute] = np.bytes_(given[attribute] or value)


def _write_names(group: Group, attribute: str, names: list[str]) -> None:
    """Writes names as fixed-length bytes, which every Keras reads; splits long attributes."""
    encoded = np.array([name.encode() for name in names])
    if encoded.nbytes <= _ATTRIBUTE_LIMIT:
        group.attrs[attribute] = encoded
        return
    step = _ATTRIBUTE_LIMIT // encoded.itemsize
    for part, start in enumerate(range(0, len(encoded), step)):
        group.attrs[f"{attribute}{part}"] = encoded[start : start + step]


# Layouts of Keras 3.


def _write_positions(file: Group, new: Contents, arrays: Arrays) -> None:
    own = file.create_group("vars")
    for number, array in enumerate(arrays.get(TOP_LEVEL, {}).values()):
        write_array(own, str(number), array)
    layers = [layer for layer in new.layers if layer.name != TOP_LEVEL]
    described = {layer_name(entry): entry for entry in entries_of(new.config)}
    entries = [
        # Keras names unnamed layers by their class; here only layers without weights have unknown
        # classes, so the stem of the name serves as class.
        {
            "class_name": layer.class_name or stem(layer.name),
            **described.get(layer.name, {}),
            "config": layer.config,
        }
        for layer in layers
    ]
    for layer, entry, place in zip(layers, entries, positions(entries)):
        _write_layer(file.create_group(f"layers/{place}"), layer.name, entry, arrays[layer.name])


def _write_layer(group: Group, name: str, entry: Config, weights: Mapping[str, np.ndarray]) -> None:
    """Writes a layer's own arrays by number, and those of layers inside in their groups."""
    own = group.create_group("vars")
    own.attrs["name"] = name
    entries = layers_of(entry["config"]) if entry["class_name"] in MODELS else []
    inside: dict[str, dict[str, np.ndarray]] = {layer_name(layer): {} for layer in entries}
    for key, array in weights.items():
        holder, slash, rest = key.partition("/")
        if slash:
            inside.setdefault(holder, {})[rest] = array
        else:
            dataset = write_array(own, str(len(own)), array)
            if array.dtype == BFLOAT16:
                dataset.attrs["dtype"] = "bfloat16"
    places = zip(entries, positions(entries))
    groups = {layer_name(layer): (f"layers/{place}", layer) for layer, place in places}
    for holder, part in inside.items():
        place, layer = groups.get(holder, (holder, inner(entry["config"], holder)))
        described = {"class_name": layer.get("class_name", ""), "config": layer.get("config", {})}
        if place in kind_of(entry["class_name"]).inner_names:
            place = f"_{place}"  # Keras 3 also reads this name, tf_keras only this name
        _write_layer(group.create_group(place), holder, described, part)


def write_array(group: Group, name: str, array: np.ndarray) -> Dataset:
    """Writes one array and returns its dataset."""
    return group.create_dataset(
        name, data=array.view(OPAQUE16) if array.dtype == BFLOAT16 else array
    )


def write_text(file: Group, attribute: str, text: str, like: Any) -> None:
    """Writes a string in the type that another file has, of fixed or variable length."""
    dtype = like.attrs.get_id(attribute).dtype
    strings = h5py.check_string_dtype(dtype)
    fixed = strings is not None and strings.length is not None
    del file.attrs[attribute]
    file.attrs.create(
        attribute, np.bytes_(text.encode()) if fixed else text, dtype=None if fixed else dtype
    )
