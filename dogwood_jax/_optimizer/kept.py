"""What a state keeps for arrays of the larger network, and how it is made: ``Kept``."""

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
from dogwood_jax._optimizer.fields import DEGREES, Field, Meaning, Seen
from dogwood_jax._widths.widths import Leaf


@dataclass(frozen=True)
class How:
    """How it is made, without names: arrays that are made alike share a compiled function.

    Attributes:
        edit: what becomes of the old array, by the adjoint of the growth unless it holds an average
            of parameters.
        meaning: what the field holds.
        shape: shape of the network's old array.
        start: the number that the optimizer starts it with, as Adagrad does; new entries get it.
        expected: for a second moment that may be factored, its shape in the larger state.
        is_factored: whether it may be factored.
        is_current: whether it holds the network's variables as they are.
        dtype: dtype of a new array.
        peers: shapes of the old arrays of the network whose largest moment a new array gets.
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
        """Whether the map of its edit alone decides what becomes of the old array."""
        is_more = self.start or self.is_factored or self.meaning == "parameters"
        return self.edit.is_mapped and not is_more

    def made(
        self,
        sources: Sequence[Array],
        peers: Sequence[Sequence[Array]],
        fresh: Array | None,
        scale: Array | None,
    ) -> list[Array]:
        """Returns what the larger state keeps.

        Args:
            sources: what the old state keeps.
            peers: the same of ``peers``.
            fresh: the grown variable, at which new entries of an average of parameters begin.
            scale: the array that weighs its entries in means.
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
    """What a state keeps for one array of the larger network.

    Attributes:
        how: how it is made.
        places: where it is in the larger state, see ``Field.places``.
        sources: where the old array is in the state, that it is made of.
        peers: the same for ``how.peers``.
        scale: where the array is in the state that weighs its entries in means; None for none.
        variable: path of the network's array.
        like: for a new array, an old one of the state that it lies on devices like.
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
        """Yields the places of all old arrays that it is made of."""
        for places in (self.sources, *self.peers):
            yield from places
        if self.scale is not None:
            yield self.scale


class Keeping:
    """What becomes of all that a state keeps.

    Args:
        growth: the growth.
        arrays: the old arrays, by place.
        meanings: what every field holds, by place.
        shapes: shapes of the larger state, by place.
        by_mean: whether new entries of second moments are means of old ones.
        begins: the numbers that arrays start with, by place.
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
        """Returns what becomes of the arrays that follow old arrays of the network."""
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
        """Returns what is kept for new arrays; and what begins as in a new state.

        The latter are places in the larger state, each with that of an old array like it.

        Args:
            found: the fields of old arrays; the fields closest by name tell what is kept.
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
        """Yields the same for one array and the fields of one name."""
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


def begins_of(found: Iterable[Field], seen: Mapping[str, Seen]) -> dict[str, float]:
    """Returns the starts of what adds up: it keeps them for ever, and what is new starts there."""
    return {f.place: seen[f.place].start for f in found if f.adds_up and f.place in seen}


def made_in_rounds(
    kept: Sequence[Kept],
    arrays: Mapping[str, Any],
    own: Mapping[str, Any],
    where: Placement,
    *,
    donate: bool = False,
) -> dict[str, Array]:
    """Returns arrays of the larger state by place; one function makes all arrays of a kind.

    Args:
        kept: how they are made.
        arrays: the arrays of the old state, by place.
        own: the grown variables, by path.
        where: on which devices they lie.
        donate: whether old arrays may be deleted, each when its new one is there.
    """

    def size(one: Kept) -> int:
        return sum(bytes_of(arrays[place]) for place in one.sources)

    # What weighs others is needed until they have grown.
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
    """Returns arrays of the larger state, by the numbers of ``hows`` and of their places."""
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
    """Returns arrays of the larger state by place, each to be made when it is needed.

    Args:
        kept: how they are made.
        begun: what begins as in a new state, see ``Keeping.of_new``.
        arrays: the arrays of the old state, by place.
        own: the grown variables, by path.
        ends: shapes and dtypes of the larger state, by place.
        starts: makes some arrays of a new state.
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
