"""Lists the contents of a file without reading its arrays: ``inspect``."""

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

_CELL = 250  # maximum length of a table cell, in characters


@dataclass(frozen=True)
class ArrayInfo:
    """One array of a layer, with its name in the layer."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class LayerInfo:
    """One layer of a file.

    Attributes:
        name: the layer's name, which is its key in the result of ``load``.
        class_name: its class in Keras, or ``None`` if the file does not determine it.
        arrays: its arrays, as they are in the file.
        unconverted: names of the arrays that have no counterpart in Flax. ``load`` returns them
            unchanged, under these names.
    """

    name: str
    class_name: str | None
    arrays: tuple[ArrayInfo, ...]
    unconverted: tuple[str, ...]


@dataclass(frozen=True)
class Inspection:
    """The contents of a file; ``print`` shows them as a table.

    Attributes:
        layout: ``"h5"`` and ``"weights.h5"`` are weights of Keras 1 or 2 and of Keras 3,
            ``"model.h5"`` and ``"keras"`` whole models. ``save`` takes the same names.
        keras_version: version of the Keras that wrote the file, if the file contains it.
        backend: Keras's backend, if the file contains it.
        model: the model's class, if the file holds its configuration.
        layers: the layers, in the file's order.
        optimizer: number of optimizer arrays in the file.
        notes: properties that the file leaves open, such as classes that are only inferred.
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
        """Paths of all arrays that have no counterpart in Flax, as ``"layer/name"``."""
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
    """Returns the contents of a Keras file: layout, version, layers, shapes and dtypes.

    The arrays are not read.

    Args:
        path: the file, in any layout that ``load`` reads.

    Returns:
        The contents, which ``print`` shows as a table.

    Raises:
        KerasFileError: if ``load`` cannot read the file.
        OSError: if the file is missing or may not be read.

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
        note: classes are inferred from names and shapes, because the file has no configuration
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
            "the file does not contain the layer order; without layer names, as before Keras 3.6, "
            "layers are named by their class and position"
        )
    if found.layout in ("h5", "weights.h5"):
        notes.append(
            "classes are inferred from names and shapes, because the file has no configuration"
        )
    if found.layout == "model.h5":
        notes.append(
            "classes are assumed to be Keras's own, as in Keras itself, because HDF5 files do not "
            "record where a class is defined"
        )
    if found.config is not None and found.config["class_name"] not in MODELS:
        notes.append(
            "the model's class is user-defined, and the file has its weights, not its code: "
            "load reads the weights, load_model refuses the file"
        )
    if found.version_problem is not None:
        notes.append(f"the version of Keras is not known: {found.version_problem}")
    for layer in found.layers if found.config is None else ():
        notes += _guesses(layer)
    if found.optimizer_problem is not None:
        notes.append(f"the optimizer cannot be read: {found.optimizer_problem}")
    return notes


def _guesses(layer: Layer) -> Iterator[str]:
    """Yields notes on what names and shapes tell, or leave open, about the inside of a layer."""
    if inside := ", ".join(_inside("", layer.class_name, layer.config)):
        yield f"layers in {layer.name} are read as {inside}"
    for name in layer.weights:
        if name.rpartition("/")[2] == "gamma_or_beta":
            yield (
                f"{layer.name}/{name} is a scale or a bias, the file leaves open which; load "
                "names it scale_or_bias"
            )


def _inside(name: str, class_name: str | None, config: Config) -> Iterator[str]:
    """Yields the layers inside a layer, with their classes, if these are known."""
    if class_name in MODELS:
        for entry in layers_of(config):
            place = f"{name}/{layer_name(entry)}".lstrip("/")
            yield from _inside(place, entry["class_name"], entry["config"])
    elif name and class_name:
        yield f"{name} ({class_name})"
