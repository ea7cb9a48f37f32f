"""The arrays of the larger state, and how each is made: ``Kept``."""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from dogwood_jax._base.deferred import Deferred, made
from dogwood_jax._growth.edit import Edit, Fill
from dogwood_jax._growth.edited import edited, rows_of
from dogwood_jax._growth.growth import Growth
from dogwood_jax._growth.pairing import closest
from dogwood_jax._growth.rounds import bytes_of, delete, rounds, several_times
from dogwood_jax._growth.shardings import ANYWHERE, Placement
from dogwood_jax._optimizer.factored import joined, parted
from dogwood_jax._optimizer.fields import DEGREES, Field, Meaning, Observed
from dogwood_jax._widths.widths import Leaf


@dataclass(frozen=True)
class How:
    """How an array of the larger state is made, without names; compiled once for equal ones.

    Attributes:
        edit: the edit of the old array: the adjoint of the growth, or the growth itself for
            averages of parameters.
        meaning: the meaning of the field.
        shape: shape of the network's old array.
        start: the initial value of the array, as in Adagrad; new entries get it.
        expected: for a second moment that may be factored, its shape in the larger state.
        is_factored: whether the array may be factored.
        is_current: whether the field holds the current variables.
        dtype: dtype of a new array.
        peers: shapes of old arrays of the network; a new array gets the largest of their moments.
    """

    edit: Edit
    meaning: Meaning
    shape: tuple[int, ...] = ()
    start: float = 0.0
    expected: tuple[int, ...] | None = None
    is_factored: bool = False
    is_current: bool = False
    dtype: Any = None
    peers: tuple[tuple[int, ...], ...] = ()

    @property
    def is_mapped(self) -> bool:
        """Whether the new array depends on the old array and the map of the edit alone."""
        is_more = self.start or self.is_factored or self.meaning == "parameters"
        return self.edit.is_mapped and not is_more

    def made(
        self,
        sources: Sequence[Array],
        peers: Sequence[Sequence[Array]],
        fresh: Array | None,
        scale: Array | None,
    ) -> list[Array]:
        """Returns the arrays of the larger state: one, or three if it may be factored.

        Args:
            sources: the arrays of the old state.
            peers: for each of ``peers``, the arrays of the old state.
            fresh: the grown variable, from which an average of parameters takes its new entries.
            scale: the array that weights the old entries in means.
        """
        if self.peers:
            largest = [jnp.max(joined(*one), initial=0) for one in zip(peers, self.peers)]
            array = jnp.full(self.edit.shape, jnp.max(jnp.stack(largest)), self.dtype)
        elif self.meaning == "parameters":
            array = self._average(sources[0] if sources else None, fresh, scale)
        else:
            array = joined(sources, self.shape)
            array = array - self.start if self.start else array
            array = edited(self.edit, array)
            array = array + self.start if self.start else array
        return parted(array, self.expected, is_factored=self.is_factored)

    def _average(self, old: Array | None, fresh: Array | None, scale: Array | None) -> Array:
        """Returns an average of parameters."""
        edit, dtype = self.edit, self.dtype if old is None else old.dtype
        perturbs = edit.map is not None and bool(edit.map.perturb)
        units = None
        if fresh is not None:
            fresh = fresh.astype(dtype)
            if self.is_current or edit.is_whole or edit.experts or perturbs:
                return fresh
            units = rows_of(edit, fresh)
            if edit.fill and not edit.scales:
                edit = replace(edit, fill=Fill("free"))
        if edit.map is not None:
            edit = replace(edit, map=replace(edit.map, perturb=0.0))
        return edited(edit, old, fresh=fresh, units=units, scale=scale).astype(dtype)


@dataclass(frozen=True)
class Kept:
    """The arrays of the larger state for one array of the larger network.

    Attributes:
        how: how they are made.
        places: their paths in the larger state, see ``Field.places``.
        sources: paths of the old arrays in the state.
        peers: for each of ``how.peers``, paths in the state.
        scale: path in the state of the array that weights entries in means; None without one.
        variable: path of the network's array.
        like: for a new array, path of an old array of the state; the new one gets its sharding.
    """

    how: How
    places: tuple[str, ...]
    sources: tuple[str, ...]
    peers: tuple[tuple[str, ...], ...] = ()
    scale: str | None = None
    variable: str = ""
    like: str = ""

    @property
    def needs(self) -> Iterator[str]:
        """Yields the places of all old arrays that are read to make the new ones."""
        for places in (self.sources, *self.peers):
            yield from places
        if self.scale is not None:
            yield self.scale


class Keeping:
    """Finds how all arrays of the larger state are made.

    Args:
        growth: the growth.
        arrays: the old arrays, by place.
        meanings: the meaning of every field, by place.
        shapes: shapes of the larger state, by place.
        by_mean: whether new entries of second moments are means of old ones.
        begins: the initial values of arrays, by place.
    """

    def __init__(
        self,
        growth: Growth,
        arrays: Mapping[str, Any],
        meanings: Mapping[str, Meaning],
        shapes: Mapping[str, tuple[int, ...]],
        *,
        by_mean: bool,
        begins: Mapping[str, float],
    ) -> None:
        self._growth, self._arrays, self._meanings = growth, arrays, meanings
        self._shapes, self._by_mean, self._begins = shapes, by_mean, begins

    def of_old(self, found: Iterable[Field]) -> list[Kept]:
        """Returns the arrays made from those that follow old arrays of the network."""
        kept = list[Kept]()
        for field in found:
            path, meaning = field.leaf.path, self._meanings.get(field.place)
            if meaning is None or field.is_factor:
                continue
            edit = self._edit(field, self._growth.held[path], meaning)
            if not edit.changes:
                continue
            places, start = field.places(edit.path), self._begins.get(field.place, 0.0)
            how = How(
                edit.without_names,
                meaning,
                field.leaf.shape,
                start if meaning != "parameters" else 0.0,
                self._shapes.get(places[0]) if field.factored else None,
                field.factored,
                field.holds_variables,
            )
            scale = self._growth.weighed.get(path) if meaning == "parameters" else None
            scale = scale and field.at(scale)
            sources = field.places(path)
            kept.append(Kept(how, places, sources, scale=scale, variable=edit.path))
        return kept

    def of_new(self, found: Sequence[Field]) -> tuple[list[Kept], dict[str, str]]:
        """Returns the arrays for new arrays of the network, and those taken from a new state.

        The latter are places in the larger state, each with the place of a similar old array.

        Args:
            found: the fields of old arrays. New arrays get the fields of those closest by name.
        """
        trees: dict[tuple[str, str], list[Field]] = {}
        for field in found:
            trees.setdefault(field.tree, []).append(field)
        kept, begun = list[Kept](), dict[str, str]()
        new = [edit for edit in self._growth.inserted if edit.is_whole]
        for edit in (self._growth.edits[one.path] for one in new):
            for tree in trees.values():
                for one in self._of_new(edit, tree):
                    if isinstance(one, Kept):
                        kept.append(one)
                    else:
                        begun |= one
        return kept, begun

    def _of_new(self, edit: Edit, tree: Sequence[Field]) -> Iterator[Kept | dict[str, str]]:
        """Yields the results of ``of_new`` for one new array and the fields of one name."""
        names = closest(edit.path, [field.leaf.path for field in tree])
        kin = [field for field in tree if field.leaf.path in names]
        first, place = kin[0], kin[0].place
        alike = [f for f in kin if self._growth.shapes[f.leaf.path] == edit.shape] or tree
        inner, leaf = edit.path.removeprefix(first.collection), Leaf(edit.path, edit.shape, ())
        meaning, dtype = self._meanings.get(place), jnp.result_type(self._arrays[place])
        is_mean = meaning in ("second", "magnitude") and self._by_mean
        for axis in [None] if first.axis is None else range(len(edit.shape)):
            field = replace(first, inner=inner, leaf=leaf, axis=axis)
            if field.place not in self._shapes:
                continue
            if meaning == "parameters":
                sources = (field.at(edit.source),) if edit.source is not None else ()
                how = How(edit.without_names, meaning, dtype=dtype)
                yield Kept(how, (field.place,), sources, variable=edit.path, like=place)
            elif not is_mean:
                yield {field.place: place}
            elif not field.is_factor:
                how = How(
                    edit.without_names if axis is None else edit.along(axis).without_names,
                    meaning,  # type: ignore[arg-type]
                    expected=self._shapes[field.place] if field.factored else None,
                    is_factored=field.factored,
                    dtype=dtype,
                    peers=tuple(peer.leaf.shape for peer in alike),
                )
                peers = tuple(peer.places(peer.leaf.path) for peer in alike)
                yield Kept(how, field.places(edit.path), (), peers, like=place)

    def _edit(self, field: Field, edit: Edit, meaning: Meaning) -> Edit:
        if meaning == "parameters":
            return edit
        is_zero = meaning in ("first", "update") or not self._by_mean
        edit = edit.adjoint(DEGREES[meaning], "zero" if is_zero else "mean")
        return edit if field.axis is None else edit.along(field.axis)


def begins_of(found: Iterable[Field], seen: Mapping[str, Observed]) -> dict[str, float]:
    """Returns the initial values, by place, of fields that add up; new entries start there."""
    return {f.place: seen[f.place].start for f in found if f.adds_up and f.place in seen}


def made_in_rounds(
    kept: Sequence[Kept],
    arrays: Mapping[str, Any],
    own: Mapping[str, Any],
    where: Placement,
    *,
    donate: bool = False,
) -> dict[str, Array]:
    """Returns arrays of the larger state by place; arrays made alike share a compiled function.

    Args:
        kept: how they are made.
        arrays: the arrays of the old state, by place.
        own: the grown variables, by path.
        where: the devices of the arrays.
        donate: whether each old array may be deleted once its new one is made.
    """

    def size(one: Kept) -> int:
        return sum(bytes_of(arrays[place]) for place in one.sources)

    # Arrays that weight others are needed until the others have grown.
    weights = {id(arrays[one.scale]) for one in kept if one.scale is not None}
    keep = several_times(arrays.values()) | weights
    found: dict[str, Array] = {}
    for several in rounds(kept, lambda one: one.how, size if donate else None):
        names = {p: f"{i}.{j}" for i, one in enumerate(several) for j, p in enumerate(one.places)}
        here = where.renamed(names)
        given = [
            (
                [arrays[place] for place in one.sources],
                [[arrays[place] for place in places] for places in one.peers],
                own.get(one.variable) if one.how.meaning == "parameters" else None,
                None if one.scale is None else arrays[one.scale],
            )
            for one in several
        ]
        entered = here.enter(given)
        new = here.leave(_made(entered, hows=tuple(one.how for one in several), where=here))
        found |= {place: new[name] for place, name in names.items()}
        if donate:
            sources = (place for one in several for place in one.sources)
            delete((arrays[place] for place in sources), new.values(), keep)
    return found


@functools.partial(jax.jit, static_argnames=("hows", "where"))
def _made(given: Sequence[Any], *, hows: tuple[How, ...], where: Placement) -> dict[str, Array]:
    """Returns arrays of the larger state, by index in ``hows`` and index of the place."""
    every = [how.made(*arrays) for how, arrays in zip(hows, given, strict=True)]
    named = {f"{i}.{j}": array for i, its in enumerate(every) for j, array in enumerate(its)}
    return where.constrain(named)


def deferred(
    kept: Iterable[Kept],
    begun: Mapping[str, str],
    arrays: Mapping[str, Any],
    own: Mapping[str, Any],
    ends: Mapping[str, jax.ShapeDtypeStruct],
    starts: Callable[[set[str]], dict[str, Array]],
) -> dict[str, Any]:
    """Returns arrays of the larger state by place, each made only when it is read.

    Args:
        kept: how they are made.
        begun: the arrays taken from a new state, see ``Keeping.of_new``.
        arrays: the arrays of the old state, by place.
        own: the grown variables, by path.
        ends: shapes and dtypes of the larger state, by place.
        starts: returns the arrays of a new state at some places.
    """
    found: dict[str, Any] = {}

    def defer(place: str, dtype: Any, make: Callable[[], dict[str, Array]], **known: Any) -> None:
        if place in ends:
            found[place] = Deferred(ends[place].shape, dtype, lambda: make()[place], **known)

    for one in kept:
        source = arrays[one.sources[0]] if one.sources else None
        mapped = (source, one.how.edit.map) if source is not None and one.how.is_mapped else None

        def make(one: Kept = one) -> dict[str, Array]:
            variables = {p: made(own[p]) for p in [one.variable] if p in own}
            given = {place: made(arrays[place]) for place in one.needs}
            return made_in_rounds([one], given, variables, ANYWHERE)

        dtype = one.how.dtype if source is None else source.dtype
        for place in one.places:
            defer(place, dtype, make, mapped=mapped, facts=None if source is None else one)
    for place, like in begun.items():
        dtype = jnp.result_type(arrays[like])

        def begin(place: str = place, dtype: Any = dtype) -> dict[str, Array]:
            return {place: starts({place})[place].astype(dtype)}

        defer(place, dtype, begin)
    return found
