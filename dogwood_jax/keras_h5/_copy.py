"""A file like another, with other arrays and all the rest as it was."""

import io
import json
import zipfile
from collections.abc import Mapping
from typing import IO, Any

import h5py
import numpy as np

from dogwood_jax.keras_h5._config import as_in
from dogwood_jax.keras_h5._hdf5 import Group, read_text
from dogwood_jax.keras_h5._layouts import Contents
from dogwood_jax.keras_h5._source import CONFIG, METADATA, WEIGHTS, Source
from dogwood_jax.keras_h5._write import write_array, write_text

_OPTIMIZER = ("/optimizer_weights", "/optimizer")


def copied(
    source: Source,
    old: Contents,
    new: Contents,
    arrays: Mapping[str, Mapping[str, np.ndarray]],
    draft: IO[bytes],
) -> None:
    """Writes the new file into a draft.

    Args:
        source: the old file.
        old: what it holds.
        new: what the new one shall hold: the same layers, with their configs.
        arrays: its arrays, by layer and name.
        draft: what is written to.
    """
    replacements = {
        dataset.name: arrays[layer.name][name]
        for layer in old.layers
        for name, dataset in layer.weights.items()
    }
    grown = any(
        arrays[layer.name][name].shape != dataset.shape
        for layer in old.layers
        for name, dataset in layer.weights.items()
    )
    weights = draft if old.layout != "keras" else io.BytesIO()
    with h5py.File(weights, "w") as file:
        _copy(source.weights, file, replacements, _OPTIMIZER if grown else ())
        if old.layout != "keras" and new.config != old.config:
            original = json.loads(read_text(source.weights, "model_config") or "")
            text = json.dumps(as_in(original, new.config))
            write_text(file, "model_config", text, source.weights)
    if old.layout == "keras":
        config = source.config if new.config == old.config else json.dumps(new.config)
        with zipfile.ZipFile(draft, "w") as archive:
            archive.writestr(METADATA, source.metadata or "{}")
            archive.writestr(CONFIG, config or "")
            archive.writestr(WEIGHTS, weights.getbuffer())  # type: ignore[attr-defined]
            for name, content in source.others():
                archive.writestr(name, content)


def _copy(
    old: Group, new: Group, replacements: Mapping[str, np.ndarray], left_out: tuple[str, ...]
) -> None:
    """Copies a group with all that is in it, other arrays in place of those replaced."""
    _copy_attributes(old, new)
    for name in old:
        place = f"{old.name.rstrip('/')}/{name}"
        link = old.get(name, getlink=True)
        if place in left_out:
            continue
        if not isinstance(link, h5py.HardLink):
            new[name] = link  # not what it points to, perhaps in another file
        elif place in replacements:
            _copy_attributes(old[name], write_array(new, name, replacements[place]))
        elif any(replaced.startswith(f"{place}/") for replaced in replacements):
            _copy(old[name], new.create_group(name), replacements, left_out)
        else:
            old.copy(name, new)


def _copy_attributes(old: Any, new: Any) -> None:
    for name, value in old.attrs.items():
        # With the type of the file, which NumPy's array of names does not know.
        new.attrs.create(name, value, dtype=old.attrs.get_id(name).dtype)
