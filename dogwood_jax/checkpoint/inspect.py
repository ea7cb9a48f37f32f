"""List the arrays of a checkpoint without reading them: ``inspect``."""

import os
from dataclasses import dataclass
from math import prod
from pathlib import Path

import jax.numpy as jnp

from dogwood_jax._base.arguments import PATH, expect
from dogwood_jax._base.tables import layers_together, table
from dogwood_jax._base.trees import is_array, leaves_by_path
from dogwood_jax.checkpoint.kinds import item_folder
from dogwood_jax.checkpoint.tensors import headers_of


@dataclass(frozen=True)
class StoredArray:
    """One array of a checkpoint.

    Attributes:
        name: its name in the checkpoint.
        shape: its shape.
        dtype: its dtype.
        file: name of its file in the checkpoint's folder; empty for Orbax.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    file: str

    @property
    def nbytes(self) -> int:
        """Bytes of the array."""
        return prod(self.shape) * int(jnp.dtype(self.dtype).itemsize)


@dataclass(frozen=True)
class Inspection:
    """The arrays of a checkpoint; ``print`` shows a table with one row for arrays of like layers.

    Attributes:
        format: ``"safetensors"`` or ``"orbax"``.
        arrays: its arrays, in the order of the files.
    """

    format: str
    arrays: tuple[StoredArray, ...]

    @property
    def parameters(self) -> int:
        """The number of entries of all arrays."""
        return sum(prod(array.shape) for array in self.arrays)

    def __str__(self) -> str:
        files = len({array.file for array in self.arrays if array.file})
        size = sum(array.nbytes for array in self.arrays)
        where = f"{files} file{'s' * (files != 1)}, " if files else ""
        head = (
            f"{self.format}, {where}{len(self.arrays)} arrays, {self.parameters:,} parameters, "
            f"{size:,} bytes"
        )
        # layers_together expects slashes; names may be joined by dots.
        mark = "/" if any("/" in array.name for array in self.arrays) else "."
        rows = (
            (array.name.replace(mark, "/"), "x".join(map(str, array.shape)), array.dtype)
            for array in self.arrays
        )
        lines = [(name.replace("/", mark), *rest) for (name, *rest), _ in layers_together(rows)]
        return "\n".join([head, table([("array", "shape", "dtype"), *lines])])


def inspect(source: str | os.PathLike[str]) -> Inspection:
    """Returns the names, shapes and dtypes of a checkpoint's arrays, without reading the arrays.

    Args:
        source: the checkpoint, as for ``shapes``.

    Returns:
        The arrays; ``print`` shows them as a table.

    Raises:
        CheckpointError: if the source is not an intact checkpoint.
        OSError: if the source is missing or cannot be opened.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> from safetensors.numpy import save_file
        >>> import dogwood_jax as dw
        >>> arrays = {f"layers.{i}.up.kernel": np.ones((4, 8), "f4") for i in range(3)}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_file(arrays, f"{folder}/small.safetensors")
        ...     print(dw.checkpoint.inspect(f"{folder}/small.safetensors"))
        safetensors, 1 file, 3 arrays, 96 parameters, 384 bytes
        array                    shape  dtype
        -----------------------  -----  -------
        layers.{0..2}.up.kernel  4x8    float32
    """
    expect("checkpoint.inspect(source)", source=(PATH, source))
    if folder := item_folder(Path(source)):
        from dogwood_jax.checkpoint.orbax_folders import tree_of_folder

        leaves = leaves_by_path(tree_of_folder(folder)).items()
        saved = (StoredArray(p, a.shape, str(a.dtype), "") for p, a in leaves if is_array(a))
        return Inspection("orbax", tuple(saved))
    arrays = (
        StoredArray(tensor.name, tensor.shape, tensor.dtype, tensor.file)
        for tensor in headers_of(Path(source)).tensors.values()
    )
    return Inspection("safetensors", tuple(arrays))
