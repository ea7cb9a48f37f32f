"""How each array of the larger model is made from the stored arrays: ``Made``, ``made_of``.

``dw.grow`` itself is called with shapes. It determines the new arrays and raises its usual errors,
so a checkpoint grows exactly when its variables grow.
"""

import functools
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from dogwood_jax._base.bits import cut_short
from dogwood_jax._base.problems import listed
from dogwood_jax._base.trees import Keys, PyTree, leaf_path, leaves_by_path
from dogwood_jax._front.grow import grow
from dogwood_jax._growth.edit import Edit
from dogwood_jax._growth.edited import NOTHING_DRAWN, Random, Randomness, edited
from dogwood_jax._growth.finite import is_finite, refusal_of_not_finite
from dogwood_jax._growth.growth import Growth
from dogwood_jax._growth.pieces import Slab, grow_window, is_zero, parts_of, windows_of

# Bytes of a new array that are made at a time.
_PIECE = 1 << 22
# Bytes of a page. Direct writing needs memory and file offsets that begin at a page.
PAGE = 4096


class Stored(Protocol):
    """An old array that can be read in parts."""

    shape: tuple[int, ...]
    dtype: Any
    order: tuple[int, ...]

    def read(self, start: int, into: np.ndarray) -> None:
        """Reads entries in the order of the file, from ``start`` on."""


@dataclass(frozen=True)
class Made:
    """How an array of the larger model is made.

    Attributes:
        edit: the edit that makes it.
        dtype: its dtype.
        scale: the path of the old array that weights its entries in means; None for none.
        random: the source of its random values.
        is_finite: whether old values must be finite, as in all arrays of the network.
    """

    edit: Edit
    dtype: Any
    scale: str | None = None
    random: Random = NOTHING_DRAWN
    is_finite: bool = True

    @property
    def path(self) -> str:
        """Its path."""
        return self.edit.path

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return self.edit.shape

    @property
    def source(self) -> str | None:
        """The path of the old array that it is made from; None for none."""
        return self.edit.source

    @property
    def is_copy(self) -> bool:
        """Whether it is an unchanged old array, perhaps under another path."""
        return not self.edit.changes


def made_of(variables: PyTree, growth: Growth, key: Array | None) -> PyTree:
    """Returns the larger model's tree, with a ``Made`` for each array.

    Args:
        variables: shapes and dtypes of the stored arrays, in the tree that the growth is for.
        growth: the growth.
        key: the key as for ``dw.grow``.

    Raises:
        ValueError: if ``dw.grow`` would raise it, or if a strategy evaluates a loss.
    """
    if choices := [change for change in growth.changes if change.strategy.choice is not None]:
        raise ValueError(
            f"checkpoint.grow: strategies.{choices[0].strategy} evaluates a loss of the whole "
            "network and needs all arrays in memory; use dw.grow, or another strategy"
        )
    with warnings.catch_warnings():
        # JAX warns that it would truncate 64-bit dtypes. Dtypes come from the stored arrays here.
        warnings.filterwarnings("ignore", "Explicitly requested dtype", UserWarning)
        grown = jax.eval_shape(lambda old: grow(old, growth, key=key), variables)
    randomness, stored, cut = Randomness(growth, key), leaves_by_path(variables), list[str]()
    words, layers = (None if w is None else np.asarray(w) for w in randomness.words)

    def made(keys: Keys, leaf: jax.ShapeDtypeStruct) -> Made:
        path = leaf_path(keys)
        edit = growth.edits.get(path) or Edit(path, leaf.shape, source=path)
        place, row = randomness.place(edit)
        random = Random(
            key,
            place,
            None if words is None else words[place],
            None if layers is None else layers[row],
        )
        dtype = leaf.dtype if edit.source is None else stored[edit.source].dtype
        if edit.changes:
            cut.extend(cut_short(path, dtype))
        return Made(edit, dtype, growth.weighed.get(edit.source or ""), random)

    every = jax.tree_util.tree_map_with_path(made, grown)
    if cut:
        raise ValueError(listed("cannot grow this checkpoint", cut))
    return every


@dataclass(frozen=True)
class Piece:
    """Entries of a new array that follow each other in the file.

    Attributes:
        start: index of its first entry among all entries of the array.
        make: reads the old entries; returns the new ones, and whether the old ones are finite.
            Its argument is ``lead`` of ``values``.
        size: number of entries.
        is_large: whether it may take much memory, because it is a whole array or a long row.
        is_zero: whether all entries are zeros.
    """

    start: int
    make: Callable[[int], tuple[np.ndarray, bool]]
    size: int
    is_large: bool = False
    is_zero: bool = False

    def values(self, made: Made, lead: int = 0) -> np.ndarray:
        """Returns the entries, which are valid until the same thread makes another piece.

        Args:
            made: how the array is made.
            lead: offset of the first entry from the beginning of a page in memory, in bytes.

        Raises:
            ValueError: if the array grows and holds NaN or infinities, as for ``dw.grow``.
        """
        entries, finite = self.make(lead)
        if made.is_finite and made.edit.map and made.edit.map.grows and not finite:
            raise ValueError(refusal_of_not_finite(str(made.source)))
        return entries


def pieces_of(
    made: Made,
    old: Stored | None,
    order: tuple[int, ...],
    scale: Stored | None = None,
) -> Iterator[Piece]:
    """Yields an array piece by piece, in the order of the file. Threads may share the pieces.

    Args:
        made: how the array is made.
        old: the stored array that it is made from, or None.
        order: the new array's axes in the order of the file.
        scale: the stored array that weights its entries, or None.
    """
    parts: tuple[Slab, ...] = ()
    edit = made.edit
    if old is not None and edit.map is not None and edit.is_mapped:
        parts = parts_of(edit.map, old.order)
    if not parts:
        make = functools.partial(_whole, made, old, order, scale)
        yield Piece(0, make, prod(made.shape), is_large=True)
        return
    assert old is not None and edit.map is not None
    itemsize = int(jnp.dtype(old.dtype).itemsize)
    for part in parts:
        rows, row = part.new_shape[0], prod(part.new_shape[1:])
        count = max(1, -(-rows // max(1, -(-rows * row * itemsize // _PIECE))))
        for places, sources in windows_of(part, count):
            make = functools.partial(_window, made, old, part, places, sources, count)
            yield Piece(
                part.new + int(places[0]) * row,
                make,
                places.size * row,
                is_large=row * itemsize > _PIECE,
                is_zero=is_zero(sources, edit.map, part),
            )


_SCRATCH = threading.local()


def scratch(name: str, shape: tuple[int, ...], dtype: Any, lead: int = 0) -> np.ndarray:
    """Returns an array in memory that this thread reuses, because new memory takes time to get.

    Args:
        name: name of the memory; each name has memory of its own.
        shape: shape of the array.
        dtype: its dtype.
        lead: offset of the array from the beginning of a page, in bytes.
    """
    size = prod(shape) * int(jnp.dtype(dtype).itemsize)
    held: np.ndarray | None = getattr(_SCRATCH, name, None)
    if held is None or held.size < size + 2 * PAGE:
        held = np.empty(size + 2 * PAGE, np.uint8)
        if size <= 2 * _PIECE:  # larger ones take too much memory to keep
            setattr(_SCRATCH, name, held)
    start = -held.ctypes.data % PAGE + lead
    array: np.ndarray = held[start : start + size].view(dtype).reshape(shape)
    return array


def _window(
    made: Made,
    old: Stored,
    part: Slab,
    places: np.ndarray,
    sources: np.ndarray,
    count: int,
    lead: int,
) -> tuple[np.ndarray, bool]:
    """Reads the old rows ``sources`` of a part and returns the new rows ``places``."""
    leaf_map = made.edit.map
    assert leaf_map is not None
    held = scratch("old", (places.size, *part.old_shape[1:]), old.dtype)
    window = scratch("new", (places.size, *part.new_shape[1:]), old.dtype, lead)
    _read_rows(old, part.old, sources, held.reshape(places.size, -1))
    words = None if made.random.word is None else np.asarray(made.random.word)
    finite = grow_window(held, places, sources, words, leaf_map, part, count, window)
    return window, finite


def _read_rows(old: Stored, start: int, sources: np.ndarray, rows: np.ndarray) -> None:
    """Reads these rows of an array; -1 between other rows gives zeros."""
    if sources.max() < 0:
        return
    size = rows.shape[1]
    stops = np.flatnonzero(np.diff(sources) != 1) + 1
    for first, stop in zip((0, *stops), (*stops, sources.size), strict=True):
        if sources[first] < 0:
            rows[first:stop] = 0
        else:
            old.read(start + int(sources[first]) * size, rows[first:stop].reshape(-1))


def whole_of(old: Stored) -> np.ndarray:
    """Reads all of a stored array."""
    held = np.empty([old.shape[axis] for axis in old.order], old.dtype)
    old.read(0, held.reshape(-1))
    return held.transpose(np.argsort(old.order))


def _whole(
    made: Made,
    old: Stored | None,
    order: tuple[int, ...],
    scale: Stored | None,
    lead: int,
) -> tuple[np.ndarray, bool]:
    """Makes a whole array at once, in the order of the file."""
    source, finite = None, True
    if old is not None:
        held = whole_of(old)
        finite = is_finite(held.transpose(old.order))
        source = jnp.asarray(held)
        del held
    weights = None if scale is None else jnp.asarray(whole_of(scale))
    edit = made.edit.without_names
    return np.asarray(_made(source, weights, made.random, edit=edit, order=order)), finite


@functools.partial(jax.jit, static_argnames=("edit", "order"))
def _made(
    source: Array | None,
    scale: Array | None,
    random: Random,
    *,
    edit: Edit,
    order: tuple[int, ...],
) -> Array:
    """Returns a new array in the order of the file."""
    return edited(edit, source, random, scale=scale).transpose(order)
