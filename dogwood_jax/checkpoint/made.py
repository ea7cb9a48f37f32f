"""How each array of the larger model is made of the stored ones: ``Made``, ``made_of``.

Which arrays there are, and whether they can grow, ``dw.grow`` itself says, called with shapes. So a
checkpoint grows when its variables do, and raises the same errors.
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
# Bytes of memory that a file is written from directly begin where a page does, as in the file.
PAGE = 4096


class Stored(Protocol):
    """An old array that can be read in parts."""

    shape: tuple[int, ...]
    dtype: Any
    order: tuple[int, ...]

    def read(self, start: int, into: np.ndarray) -> None:
        """Reads entries in the order of the file, from this one on."""


@dataclass(frozen=True)
class Made:
    """How an array of the larger model is made.

    Attributes:
        edit: what it is made of.
        dtype: its dtype.
        scale: the path of the old array that weighs its entries in means; None for none.
        random: what its random numbers come from.
        is_finite: whether it grows only if all old numbers are finite, as the network's arrays do.
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
        """The path of the old array that it is made of; None for none."""
        return self.edit.source

    @property
    def is_copy(self) -> bool:
        """Whether it is an old array as it was, perhaps under another path."""
        return not self.edit.changes


def made_of(variables: PyTree, growth: Growth, key: Array | None) -> PyTree:
    """Returns how the arrays of the larger model are made: a ``Made`` for each, in its tree.

    Args:
        variables: shapes and dtypes of the stored arrays, as a tree that the growth is planned for.
        growth: what becomes of them.
        key: the key as for ``dw.grow``.

    Raises:
        ValueError: if ``dw.grow`` would raise it, or if a strategy looks at a loss.
    """
    if choices := [change for change in growth.changes if change.strategy.choice is not None]:
        raise ValueError(
            f"checkpoint.grow: strategies.{choices[0].strategy} looks at a loss of the whole "
            "network, so it needs the arrays in memory; use dw.grow, or another strategy"
        )
    with warnings.catch_warnings():
        # JAX says that it would cut 64 bits short. What is stored tells dtypes here.
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
    """Some entries of a new array that follow each other in the file.

    Attributes:
        start: the place of the first among all entries.
        make: reads the old entries and makes the new ones; also says whether the old are finite.
            Its argument is ``lead`` of ``values``.
        size: how many entries there are.
        is_large: whether it may take much memory, because it is a whole array or a long row.
        is_zero: whether all entries are zeros.
    """

    start: int
    make: Callable[[int], tuple[np.ndarray, bool]]
    size: int
    is_large: bool = False
    is_zero: bool = False

    def values(self, made: Made, lead: int = 0) -> np.ndarray:
        """Returns the entries, valid until the same thread makes other ones.

        Args:
            made: how the array is made.
            lead: how many bytes behind the beginning of a page they should begin in memory.

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
        made: how it is made.
        old: the stored array that it is made of, if there is one.
        order: the new array's axes in the order of the file.
        scale: the stored array that weighs its entries, if there is one.
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
    """Returns memory that this thread uses again and again: new memory takes time to get.

    Args:
        name: what it is for.
        shape: shape of the array.
        dtype: its dtype.
        lead: how many bytes behind the beginning of a page it begins.
    """
    size = prod(shape) * int(jnp.dtype(dtype).itemsize)
    held: np.ndarray | None = getattr(_SCRATCH, name, None)
    if held is None or held.size < size + 2 * PAGE:
        held = np.empty(size + 2 * PAGE, np.uint8)
        if size <= 2 * _PIECE:  # others are too much to keep
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
    """Reads some places of a part, and makes what becomes of them."""
    leaf_map = made.edit.map
    assert leaf_map is not None
    held = scratch("old", (places.size, *part.old_shape[1:]), old.dtype)
    window = scratch("new", (places.size, *part.new_shape[1:]), old.dtype, lead)
    _read_rows(old, part.old, sources, held.reshape(places.size, -1))
    words = None if made.random.word is None else np.asarray(made.random.word)
    finite = grow_window(held, places, sources, words, leaf_map, part, count, window)
    return window, finite


def _read_rows(old: Stored, start: int, sources: np.ndarray, rows: np.ndarray) -> None:
    """Reads the rows of an array at these places; zeros for -1 between others."""
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
    """Makes an array at once, in the order of the file."""
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
