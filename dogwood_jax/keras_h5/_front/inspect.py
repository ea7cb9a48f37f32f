"""What a file holds, without its arrays: ``inspect``."""

import os
from collections.abc import Iterator
from dataclasses import dataclass

from dogwood_jax.keras_h5._files.errors import in_line
from dogwood_jax.keras_h5._files.hdf5 import dtype_of
from dogwood_jax.keras_h5._files.source import opened
from dogwood_jax.keras_h5._kinds.kind import NAMED, Config
from dogwood_jax.keras_h5._kinds.nested import MODELS, layer_name, layers_of
from dogwood_jax.keras_h5._weights.layers import Layer
from dogwood_jax.keras_h5._weights.layouts import Contents, contents

_CELL = 250  # characters of a name in the table


@dataclass(frozen=True)
class ArrayInfo:
    """One array of a layer, by its name in the layer."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class LayerInfo:
    """One layer of a file.

    Attributes:
        name: its name, the key that ``load`` gives it.
        class_name: its class in Keras, or ``None`` if the file does not tell.
        arrays: its arrays, as the file has them.
        unconverted: names of those that ``load`` gives as they are, under their own names, for
            Flax has no counterpart.
    """

    name: str
    class_name: str | None
    arrays: tuple[ArrayInfo, ...]
    unconverted: tuple[str, ...]


@dataclass(frozen=True)
class Inspection:
    """What a file holds; ``print`` shows it as a table.

    Attributes:
        layout: ``"h5"`` and ``"weights.h5"`` are weights of Keras 1 or 2 and of Keras 3,
            ``"model.h5"`` and ``"keras"`` whole models: the names that ``save`` takes.
        keras_version: of the Keras that wrote the file, if it says so.
        backend: likewise.
        model: the model's class, if the file holds its configuration.
        layers: the layers, in the file's order.
        optimizer: how many arrays the optimizer has in the file.
        notes: what ``load`` cannot know about this file.
    """

    layout: str
    keras_version: str | None
    backend: str | None
    model: str | None
    layers: tuple[LayerInfo, ...]
    optimizer: int
    notes: tuple[str, ...]

    @property
    def unconverted(self) -> tuple[str, ...]:
        """Paths of all arrays that Flax has no counterpart of, ``"layer/name"``."""
        return tuple(f"{layer.name}/{name}" for layer in self.layers for name in layer.unconverted)

    def __str__(self) -> str:
        rows = [("layer", "class", "array", "shape", "dtype", "")]
        for layer in self.layers:
            name, class_name = layer.name, layer.class_name or ("" if not layer.arrays else "?")
            for array in layer.arrays or (ArrayInfo("", (), ""),):
                shape = "[" + ", ".join(map(str, array.shape)) + "]" if array.name else ""
                kept = "not converted" if array.name in layer.unconverted else ""
                rows.append((name, class_name, array.name, shape, array.dtype, kept))
                name = class_name = ""
        cells = [[in_line(cell, _CELL) for cell in row] for row in rows]
        widths = [max(map(len, column)) for column in zip(*cells)]
        origin = ["" if self.keras_version is None else f"Keras {self.keras_version}"]
        origin += [self.backend or "", self.model or "", f"{self.optimizer} arrays of an optimizer"]
        head = ", ".join(
            [f"layout {self.layout}", *filter(None, origin[: 4 if self.optimizer else 3])]
        )
        head = in_line(head)
        table = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in cells]
        return "\n".join([head, *table, *(f"note: {in_line(note)}" for note in self.notes)])


def inspect(path: str | os.PathLike[str]) -> Inspection:
    """Returns what a file of Keras holds: layout, version, layers, shapes and dtypes.

    The arrays are not read.

    Args:
        path: the file, in any layout that ``load`` reads.

    Returns:
        A table that ``print`` shows.

    Raises:
        KerasFileError: if the file is none that ``load`` reads.
        OSError: if it is missing or must not be read.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> from dogwood_jax import keras_h5
        >>> layer = {"kernel": np.ones((784, 2)), "bias": np.zeros(2)}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     keras_h5.save(f"{folder}/small.h5", {"params": {"flatten": {}, "dense_1": layer}})
        ...     print(keras_h5.inspect(f"{folder}/small.h5"))
        layout h5, Keras 2.15.0, tensorflow
        layer    class  array   shape     dtype
        flatten
        dense_1  Dense  kernel  [784, 2]  float64
                        bias    [2]       float64
        note: classes are told by names and shapes, because the file holds no configuration
    """
    with opened(path) as source:
        found = contents(source)
        layers = tuple(map(_layer_info, found.layers))
        return Inspection(
            found.layout,
            found.keras_version,
            found.backend,
            None if found.config is None else found.config.get(NAMED, found.config["class_name"]),
            layers,
            len(found.optimizer),
            tuple(_notes(found)),
        )


def _layer_info(layer: Layer) -> LayerInfo:
    arrays = {**layer.weights, **layer.state}
    infos = tuple(ArrayInfo(n, tuple(d.shape), str(dtype_of(d))) for n, d in arrays.items())
    return LayerInfo(layer.name, layer.class_name, infos, (*layer.unconverted, *layer.state))


def _notes(found: Contents) -> list[str]:
    notes = []
    if found.layout == "weights.h5":
        notes.append(
            "the file does not hold the layers' order; where it holds no names either, as before "
            "Keras 3.6, layers are called by their class and position"
        )
    if found.layout in ("h5", "weights.h5"):
        notes.append(
            "classes are told by names and shapes, because the file holds no configuration"
        )
    if found.layout == "model.h5":
        notes.append(
            "classes are taken for Keras's own of these names, as Keras takes them, because HDF5 "
            "files do not say whose they are"
        )
    if found.config is not None and found.config["class_name"] not in MODELS:
        notes.append(
            "the model's class is not Keras's own, and the file has its weights, not its code: "
            "load reads them, load_model makes no module of it"
        )
    if found.version_problem is not None:
        notes.append(f"which Keras wrote the file is not known: {found.version_problem}")
    for layer in found.layers if found.config is None else ():
        notes += _guesses(layer)
    if found.optimizer_problem is not None:
        notes.append(f"the optimizer cannot be read: {found.optimizer_problem}")
    return notes


def _guesses(layer: Layer) -> Iterator[str]:
    """Yields what else is told of a layer by names and shapes, or is not."""
    if inside := ", ".join(_inside("", layer.class_name, layer.config)):
        yield f"layers in {layer.name} are taken for {inside}"
    for name in layer.weights:
        if name.rpartition("/")[2] == "gamma_or_beta":
            yield (
                f"{layer.name}/{name} is a scale or a bias, which the file does not tell; load "
                "calls it scale_or_bias"
            )


def _inside(name: str, class_name: str | None, config: Config) -> Iterator[str]:
    """Yields the layers in a layer, with their classes where these are told."""
    if class_name in MODELS:
        for entry in layers_of(config):
            place = f"{name}/{layer_name(entry)}".lstrip("/")
            yield from _inside(place, entry["class_name"], entry["config"])
    elif name and class_name:
        yield f"{name} ({class_name})"
