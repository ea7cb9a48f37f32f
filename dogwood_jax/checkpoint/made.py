"""How each array of the larger model is made of the stored ones: ``Made``, ``made_of``.

Which arrays there are, and whether they can grow, ``dw.grow`` itself says, called with shapes. So a
checkpoint grows when its variables do, and raises the same errors.
"""

import functools
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import prod
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from dogwood_jax._arrays.draws import words_of
from dogwood_jax._arrays.finite import is_finite, refusal_of_not_finite
from dogwood_jax._arrays.grow import grow_array
from dogwood_jax._arrays.insert import filled_in
from dogwood_jax._arrays.pieces import Slab, grow_window, is_zero, parts_of, windows_of
from dogwood_jax._base.problems import cut_short, listed
from dogwood_jax._base.trees import Keys, PyTree, leaf_path, leaves_by_path
from dogwood_jax._front.grow import grow
from dogwood_jax._growth.growth import Growth
from dogwood_jax._growth.insertion import Insertion
from dogwood_jax._growth.leaf_map import LeafMap

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
        path: its path.
        shape: its shape.
        dtype: its dtype.
        source: the path of the old array that it is made of; None for none.
        leaf_map: what becomes of the old array; None if nothing does.
        scale: the path of the old array that weighs its entries in means; None for none.
        insertion: what it is filled with, if layers are inserted.
        seed: the seed of its map, ``uint32[2]``.
        place: the place of the old array among those that grow.
        word: the seed of its insertion, ``uint32[2]``.
        is_finite: whether it grows only if all old numbers are finite, as the network's arrays do.
    """

    path: str
    shape: tuple[int, ...]
    dtype: Any
    source: str | None
    leaf_map: LeafMap | None = None
    scale: str | None = None
    insertion: Insertion | None = None
    seed: np.ndarray | None = None
    place: int = 0
    word: np.ndarray | None = None
    is_finite: bool = True

    @property
    def is_copy(self) -> bool:
        """Whether it is an old array as it was, perhaps under another path."""
        return self.source is not None and self.leaf_map is None and not self.is_filled

    @property
    def is_filled(self) -> bool:
        """Whether its insertion says more than where the old array goes."""
        known = self.insertion
        return known is not None and bool(known.layers or known.repeats or known.scales)


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
    if by_layer := [change.width for change in growth.changes if change.by_layer]:
        raise ValueError(
            f"checkpoint.grow: each layer keeps other units of {by_layer[0]}, which moves units "
            "about in memory; use dw.grow, or keep the same ones in all layers"
        )
    with warnings.catch_warnings():
        # JAX says that it would cut 64 bits short. What is stored tells dtypes here.
        warnings.filterwarnings("ignore", "Explicitly requested dtype", UserWarning)
        grown = jax.eval_shape(lambda old: grow(old, growth, key=key), variables)
    changing = [path for path, leaf_map in growth.maps.items() if leaf_map.changes]
    places = {path: place for place, path in enumerate(changing)}
    seeds = words = None
    if key is not None:
        seeds = np.asarray(words_of(key, len(changing)))
        words = np.asarray(words_of(key, len(growth.insertions))) if growth.insertions else None
    inserted = {i.path: (number, i) for number, i in enumerate(growth.insertions)}
    stored, cut = leaves_by_path(variables), list[str]()

    def made(keys: Keys, leaf: jax.ShapeDtypeStruct) -> Made:
        path = leaf_path(keys)
        number, insertion = inserted.get(path, (0, None))
        source = path if insertion is None else _source(insertion)
        one = Made(path, leaf.shape, leaf.dtype, source, insertion=insertion)
        if source in places:
            place = places[source]
            seed = None if seeds is None else seeds[place]
            one = replace(one, leaf_map=growth.maps[source], seed=seed, place=place)
            one = replace(one, scale=growth.weighed.get(source))
        if insertion is not None and words is not None:
            one = replace(one, word=words[number])
        dtype = leaf.dtype if source is None else stored[source].dtype
        if not one.is_copy:
            cut.extend(cut_short(path, dtype))
        return replace(one, dtype=dtype)

    every = jax.tree_util.tree_map_with_path(made, grown)
    if cut:
        raise ValueError(listed("cannot grow this checkpoint", cut))
    return every


def _source(insertion: Insertion) -> str | None:
    """Returns the old array that an insertion is made of."""
    return insertion.source if insertion.layers or insertion.fill in ("moved", "copy") else None


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
        if made.is_finite and made.leaf_map and made.leaf_map.grows and not finite:
            raise ValueError(refusal_of_not_finite(str(made.source)))
        return entries


def pieces_of(
    made: Made,
    old: Stored | None,
    order: tuple[int, ...],
    key: Array | None,
    scale: Stored | None = None,
) -> Iterator[Piece]:
    """Yields an array piece by piece, in the order of the file. Threads may share the pieces.

    Args:
        made: how it is made.
        old: the stored array that it is made of, if there is one.
        order: the new array's axes in the order of the file.
        key: the key as for ``dw.grow``.
        scale: the stored array that weighs its entries, if there is one.
    """
    parts: tuple[Slab, ...] = ()
    if old is not None and made.leaf_map is not None and not made.is_filled:
        parts = parts_of(made.leaf_map, old.order)
    if not parts:
        make = functools.partial(_whole, made, old, order, key, scale)
        yield Piece(0, make, prod(made.shape), is_large=True)
        return
    assert old is not None and made.leaf_map is not None
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
                is_zero=is_zero(sources, made.leaf_map, part),
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
    assert made.leaf_map is not None
    held = scratch("old", (places.size, *part.old_shape[1:]), old.dtype)
    window = scratch("new", (places.size, *part.new_shape[1:]), old.dtype, lead)
    _read_rows(old, part.old, sources, held.reshape(places.size, -1))
    finite = grow_window(held, places, sources, made.seed, made.leaf_map, part, count, window)
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
    key: Array | None,
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
    values = source, weights, key, made.seed, made.word, made.place
    return np.asarray(_made(*values, made=_static(made), order=order)), finite


def _static(made: Made) -> Made:
    """Returns what compiled functions for arrays that are made alike have in common."""
    insertion = made.insertion
    if insertion is not None:
        insertion = replace(insertion, path="", source=insertion.source and "")
    return Made("", made.shape, made.dtype, None, made.leaf_map, insertion=insertion)


@functools.partial(jax.jit, static_argnames=("made", "order"))
def _made(
    source: Array | None,
    scale: Array | None,
    key: Array | None,
    seed: Array | None,
    word: Array | None,
    place: Array,
    *,
    made: Made,
    order: tuple[int, ...],
) -> Array:
    """Returns a new array in the order of the file."""
    if source is not None and made.leaf_map is not None:
        source = grow_array(source, made.leaf_map, key, seed, place, scale=scale)
    if made.insertion is None:
        assert source is not None
        return source.transpose(order)
    return filled_in(made.insertion, source, word).transpose(order)
