"""Copies a file with new arrays and everything else unchanged: ``copied``."""

import io
import json
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from typing import IO, Any, TypeAlias

import h5py
import numpy as np

from dogwood_jax._base.problems import listed
from dogwood_jax.keras_h5._files.errors import NotSavable
from dogwood_jax.keras_h5._files.hdf5 import Dataset, Group, read_text
from dogwood_jax.keras_h5._files.source import CONFIG, METADATA, WEIGHTS, Source
from dogwood_jax.keras_h5._weights.config import as_in
from dogwood_jax.keras_h5._weights.layouts import Contents
from dogwood_jax.keras_h5._weights.write import write_array, write_text

_OPTIMIZER = ("/optimizer_weights", "/optimizer")

Replacement: TypeAlias = tuple[Dataset, str, np.ndarray]  # an old array, its name, and the new one


def copied(
    source: Source,
    old: Contents,
    new: Contents,
    arrays: Mapping[str, Mapping[str, np.ndarray]],
    draft: IO[bytes],
    optimizer: Sequence[Replacement] = (),
) -> None:
    """Writes the new file into a draft.

    Args:
        source: the old file.
        old: the contents of the old file.
        new: the contents of the new file: the same layers, with their configs.
        arrays: the new arrays, by layer and name.
        draft: the file object to write to.
        optimizer: replacements of the optimizer's arrays. If empty, the optimizer is left out as
            soon as one weight has another shape.

    Raises:
        NotSavable: if weights that share one array in the old file now differ.
    """
    replaced = [
        (dataset, f"{layer.name}/{name}", arrays[layer.name][name])
        for layer in old.layers
        for name, dataset in layer.weights.items()
    ]
    grown = any(array.shape != dataset.shape for dataset, _, array in replaced)
    replacements = _replacements([*replaced, *optimizer])
    weights = draft if old.layout != "keras" else io.BytesIO()
    with h5py.File(weights, "w") as file:
        left_out = _OPTIMIZER if grown and not optimizer else ()
        _copy(source.weights, file, replacements, left_out)
        if old.layout != "keras" and new.config != old.config:
            original = json.loads(read_text(source.weights, "model_config") or "")
            text = json.dumps(as_in(original, new.config))
            write_text(file, "model_config", text, source.weights)
    if old.layout == "keras":
        config = source.config
        if new.config != old.config:
            config = json.dumps(as_in(json.loads(source.config or ""), new.config))
        with zipfile.ZipFile(draft, "w") as archive:
            archive.writestr(METADATA, source.metadata or b"{}")
            archive.writestr(CONFIG, config or "")
            archive.writestr(WEIGHTS, weights.getbuffer())  # type: ignore[attr-defined]
            for name, content in source.others():
                archive.writestr(name, content)


def _replacements(replaced: Iterable[Replacement]) -> dict[str, np.ndarray]:
    """Returns the new arrays by the places of the old ones in the file, after following links."""
    replacements: dict[str, np.ndarray] = {}
    first: dict[str, str] = {}
    problems = []
    for dataset, name, array in replaced:
        place = dataset.name
        if place not in replacements:
            replacements[place], first[place] = array, name
        elif not _same(array, replacements[place]):
            problems.append(
                f"{name}: expected the values of {first[place]}, because the file links both to "
                f"one array, {place}; found others; give both the same values, or choose another "
                "layout, which stores two arrays"
            )
    if problems:
        raise NotSavable(listed("cannot save these variables", problems))
    return replacements


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    """Returns whether two arrays are equal bit by bit, NaN included."""
    return (
        one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
    )


def _copy(
    old: Group, new: Group, replacements: Mapping[str, np.ndarray], left_out: tuple[str, ...]
) -> None:
    """Copies a group and its contents, with new arrays in place of the replaced ones."""
    _copy_attributes(old, new)
    for name in old:
        place = f"{old.name.rstrip('/')}/{name}"
        link = old.get(name, getlink=True)
        inside = any(replaced.startswith(f"{place}/") for replaced in replacements)
        if place in left_out and not inside:
            continue
        if not isinstance(link, h5py.HardLink):
            new[name] = link  # the link itself: its target may be in another file
        elif place in replacements:
            _copy_attributes(old[name], write_array(new, name, replacements[place]))
        elif inside:
            _copy(old[name], new.create_group(name), replacements, left_out)
        else:
            old.copy(name, new)


def _copy_attributes(old: Any, new: Any) -> None:
    for name, value in old.attrs.items():
        attribute = old.attrs.get_id(name)
        if h5py.check_string_dtype(attribute.dtype) and not isinstance(value, h5py.Empty):
            # Read as bytes, because Keras declares all names to be ASCII.
            value = np.empty(attribute.shape, attribute.dtype)
            attribute.read(value)
        # The file's own type: NumPy's array of names has lost it.
        new.attrs.create(name, value, dtype=attribute.dtype)
