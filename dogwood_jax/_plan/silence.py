"""Which weights must be zero so that new units do not change outputs: ``silenced``, ``heard``.

New units that do not change outputs are called silent. ``trace`` marks the weights that read units.
Zeros there may not be enough: two activations may be multiplied, such as queries and keys, or a
second function may read the units. Then all new entries begin as zeros, and are freed again where
outputs still do not depend on new units, in the order in which the program reads arrays. No rules
for primitives are needed: the network's own program is evaluated in larger sizes.
"""

import functools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from dogwood_jax import strategies
from dogwood_jax._check.claim import Case
from dogwood_jax._check.reduced import LargerProgram, claim
from dogwood_jax._growth.growth import Change, Growth
from dogwood_jax._plan.fewer_layers import few_layers_of
from dogwood_jax._plan.search.problem import (
    FAR,
    Arrays,
    Problem,
    apart,
    differs,
    is_float,
    network_sample,
)
from dogwood_jax._plan.search.together import Together
from dogwood_jax._program.numbered import without_numbers
from dogwood_jax._program.reasons import Reason
from dogwood_jax._widths.layout import Layout, Role, Units, resized, spread, units_of
from dogwood_jax._widths.widths import Widths

SEEN = "outputs depend on units even if their outgoing weights are zero, as behind a norm"

_NEVER = Reason(
    "the weights that make its units read them, too, and are zero for new ones, which never learn",
    "silent",
)

# Up to this many evaluations run one by one; more of them run as one batched program.
_LEAST = 4


class AxisUnits(NamedTuple):
    """Units of a width along an axis of an array."""

    path: str
    axis: int
    place: int  # among the units of this width along the axis


class Silence(NamedTuple):
    """The zeros that silence new units of a width.

    Attributes:
        is_heard: whether outputs still change with these zeros, or new units could not learn.
        zeros: whether entries are zero, by spot; also by spot with layer numbers removed from the
            path, for like layers.
        learns: whether new units can learn although these entries are zero.
    """

    is_heard: bool
    zeros: Mapping[AxisUnits, bool] = MappingProxyType({})
    learns: bool = True


class _Mask(NamedTuple):
    """The positions of units along an axis of an array.

    Attributes:
        width: the name of their width.
        spot: the units and the axis.
        role: their role there, as ``trace`` marks it.
        along: the unit at each position, or -1.
        old: how many of the units are old.
    """

    width: str
    spot: AxisUnits
    role: Role
    along: np.ndarray
    old: int


def heard(widths: Widths, names: Iterable[str]) -> list[str]:
    """Returns the widths whose new units change outputs, whichever of their weights are zero.

    Args:
        widths: the network's widths. If they hold no program, the list is empty.
        names: names of the widths to examine.
    """
    return [name for name, its in _silences(widths, names).items() if its.is_heard]


def likely_heard(widths: Widths, names: Collection[str]) -> list[str] | None:
    """Returns the widths whose new units probably change outputs, without an evaluation.

    Something sums over their units, as a norm does. Those of the other widths are probably silenced
    by zeros in marked weights. Returns None if that is less likely, because an array both makes and
    reads units.

    Args:
        widths: the network's widths, perhaps with those of copied heads.
        names: names of the widths to examine.
    """
    if widths.network is None or not {*names} <= {*widths}:
        return None
    places = {name: widths[name].occurrences for name in names}
    if any(place.role == "both" for its in places.values() for place in its):
        return None
    dims = {name: widths.network.dims(its) for name, its in places.items()}
    return [name for name, its in dims.items() if any(dim.summed for dim in its)]


def silenced(widths: Widths, names: Iterable[str], of: Widths) -> Widths:
    """Returns widths in which weights are outgoing where zeros silence new units.

    Args:
        widths: the widths, with those of copied heads.
        names: names of the widths to examine.
        of: the network's widths, with its program.
    """
    known = _silences(of, names)
    found = {name: its.zeros for name, its in known.items() if its.zeros}
    if not found:
        return widths
    leaves, told = [], {name for name, its in known.items() if not its.learns}
    for leaf in widths.leaves:
        if any(units.width in found for axis in leaf.axes for units in units_of(axis)):
            axes = (_with_roles(leaf.path, n, axis, found) for n, axis in enumerate(leaf.axes))
            leaf = replace(leaf, axes=tuple(axes))
        leaves.append(leaf)
    facts = (
        (name, replace(its, notes=(*its.notes, _NEVER)) if name in told else its)
        for name, its in widths.facts
    )
    return replace(widths, leaves=tuple(leaves), facts=tuple(facts))


def _with_roles(
    path: str, axis: int, layout: Layout, zeros: Mapping[str, Mapping[AxisUnits, bool]]
) -> Layout:
    counts: dict[str, int] = {}

    def changed(layout: Layout) -> Layout:
        if not isinstance(layout, Units):
            return replace(layout, parts=tuple(map(changed, layout.parts)))
        place = counts[layout.width] = counts.get(layout.width, -1) + 1
        if layout.width not in zeros:
            return layout
        known = zeros[layout.width]
        if not known.get(
            AxisUnits(path, axis, place),
            known.get(AxisUnits(without_numbers(path), axis, place)),
        ):
            return replace(layout, role="incoming")
        if layout.role != "incoming":
            return layout
        return replace(layout, role="both" if layout.produced else "outgoing")

    return changed(layout)


def _silences(widths: Widths, names: Iterable[str]) -> dict[str, Silence]:
    """Returns the zeros that silence widths, by name. Each result is cached in the network."""
    names = [name for name in names if name in widths]
    if widths.network is None or not names:
        return {}
    found = widths.network.found
    some, layers = few_layers_of(widths), widths.network.layers
    like: dict[str, str] = {}
    for name in (one for one in names if one not in found):
        paths = (occurrence.path for occurrence in widths[name].occurrences)
        in_layers = layers and any(layers.layer_of(path) is not None for path in paths)
        alike = (
            its
            for its in some
            if some[its].occurrences and without_numbers(its) == without_numbers(name)
        )
        like[name] = next(alike, name) if in_layers else name
    new = [its for its in dict.fromkeys(like.values()) if its not in found]
    found |= {its: Silence(is_heard=False) for its in new if some[its].fixed}  # no new units
    new = [its for its in new if not some[its].fixed]
    found |= _silent_together(some, [its for its in new if likely_heard(some, [its]) == []])
    found |= {its: _silence(some, its) for its in new if its not in found}
    found |= {name: found[its] for name, its in like.items()}
    return {name: found[name] for name in names}


def _silent_together(widths: Widths, names: Sequence[str]) -> dict[str, Silence]:
    """Returns the zeros that silence several widths, by name, if marked weights silence all.

    This takes one evaluation in place of one for each width. If it fails, the dict is empty.
    """
    if len(names) < 2 or (case := _larger(widths, names)) is None:
        return {}
    trial = _Trial(case, names, is_larger=True)
    roles = {mask.spot: mask.role for mask in trial.masks}
    marked = {spot for spot, role in roles.items() if role != "incoming"}
    are_apart = len(roles) == len(trial.masks)  # not along the same axis of an array
    if not are_apart or not trial.is_exactly_silent(marked):
        return {}
    of = {name: [m.spot for m in trial.masks if m.width == name] for name in names}
    return {name: Silence(False, _with_alike(of[name], marked)) for name in names}


def _larger(widths: Widths, names: Sequence[str]) -> Case | None:
    """Returns the claim with two more units of widths; None if the program does not fit them."""
    sizes = {name: widths[name].size for name in names}
    changes = (Change(name, n, n + 2, strategies.random()) for name, n in sizes.items())
    growth = Growth(widths, tuple(changes))
    case = claim(growth, widths.network.traced, LargerProgram(None))  # type: ignore[union-attr]
    return case if isinstance(case, Case) else None


def _silence(widths: Widths, name: str) -> Silence:
    """Returns the zeros that silence a width, from evaluations with more units."""
    for growing in ([name], []):
        if (case := _larger(widths, growing)) is not None:
            trial = _Trial(case, [name], is_larger=bool(growing))
            kernels = {m.spot for m in trial.masks if widths.leaf(m.spot.path).kind == "random"}
            return _found_by(trial, kernels)
    return Silence(is_heard=True)


def _found_by(trial: "_Trial", kernels: Collection[AxisUnits]) -> Silence:
    """Returns the zeros that silence the units of a trial.

    Zeros are tried in weights that are marked as reading units, then in those that produce units,
    then everywhere. If outputs still differ, the network computes with the number of units.

    Args:
        trial: evaluates zeros.
        kernels: spots of random weights; new units need at least one of them without zeros to
            learn.
    """
    roles = {mask.spot: mask.role for mask in trial.masks}
    marked, every = {spot for spot, role in roles.items() if role != "incoming"}, {*roles}
    zeros, is_heard = marked, False
    if trial.is_silent(marked):
        zeros = trial.freed(marked) if "both" in roles.values() else marked
        is_heard = not trial.is_exact(marked)
    elif begin := next(filter(trial.is_exactly_silent, (every - marked, every)), None):
        zeros = trial.freed(begin)
    elif not marked and trial.is_silent(every):
        zeros, is_heard = trial.freed(every), trial.is_larger
    else:
        return Silence(is_heard=True)
    is_any_free = not zeros.issuperset(kernels)
    if zeros != marked and not is_any_free:
        return Silence(is_heard=True)
    learns = is_any_free or "both" not in roles.values()
    return Silence(is_heard, _with_alike(roles, zeros), learns)


def _with_alike(
    spots: Iterable[AxisUnits], zeros: Collection[AxisUnits]
) -> Mapping[AxisUnits, bool]:
    """Returns whether entries are zero, by spot, and by spot in any like layer."""
    known = {spot: spot in zeros for spot in spots}
    alike = {spot._replace(path=without_numbers(spot.path)): known[spot] for spot in known}
    return alike | known


class _Trial:
    """Evaluates a network with new units, some of whose entries are zero.

    Args:
        case: the claim of a growth, with the network's program rewritten in the larger sizes.
        names: the widths that have new units.
        is_larger: whether these widths grow. If not, because the program does not fit other sizes,
            half of their units are treated as new.

    Attributes:
        masks: the positions of the units, in the order in which the program reads arrays.
        is_larger: whether the widths grow.
    """

    def __init__(self, case: Case, names: Sequence[str], *, is_larger: bool) -> None:
        draw = functools.partial(network_sample, case)
        self._problem = Problem(case, Together(case.new, least=_LEAST), {}, draw).of(())
        self._known: dict[frozenset[AxisUnits], list[np.ndarray]] = {}
        floats = (path for path, a in case.old.arguments if jnp.issubdtype(a.dtype, jnp.inexact))
        self._floats, self.is_larger = {*floats}, is_larger
        widths, self.masks = case.growth.widths, list[_Mask]()
        for name in names:
            size = widths[name].size
            old = size if is_larger else size - size // 2
            self.masks += _masks(widths, name, old, case.growth.sizes.get(name, size))

    def is_silent(self, zeros: Collection[AxisUnits]) -> bool:
        """Whether outputs do not depend on the values of the other new entries."""
        drawn = self._drawn(frozenset(zeros))
        if not drawn or any(map(differs, apart(drawn))):
            return False
        if self.is_larger and all(np.all(np.abs(by) < FAR) for by in drawn):
            return True  # otherwise try copies, which are finite where old units are
        copies = self._problem.evaluated(
            lambda one, _: [self._changed(one, zeros, unit) for unit in (0, -1)]
        )
        are_finite = all(np.all(np.abs(by) < FAR) for by in copies[::2])
        return are_finite and not any(map(differs, apart(copies)))

    def is_exact(self, zeros: Collection[AxisUnits]) -> bool:
        """Whether finite outputs equal the network's; True if the width does not grow."""
        found = self._drawn(frozenset(zeros))[::2]
        return not (self.is_larger and any(differs(by[np.abs(by) < FAR]) for by in found))

    def is_exactly_silent(self, zeros: Collection[AxisUnits]) -> bool:
        """Whether outputs are finite and equal the network's for any other new entries."""
        found = self._drawn(frozenset(zeros))[::2]
        return self.is_larger and not any(map(differs, found)) and self.is_silent(zeros)

    def _drawn(self, zeros: frozenset[AxisUnits]) -> list[np.ndarray]:
        """Returns the differences of outputs for two draws of new entries, for each sample."""
        if zeros not in self._known:
            self._known[zeros] = self._problem.evaluated(
                lambda *drawn: [self._changed(arrays, zeros) for arrays in drawn]
            )
        return self._known[zeros]

    def freed(self, zeros: set[AxisUnits]) -> set[AxisUnits]:
        """Returns the zeros that are needed, found by bisection."""
        return self._freed(zeros, [m.spot for m in self.masks if m.spot.path in self._floats])

    def _freed(self, zeros: set[AxisUnits], spots: Sequence[AxisUnits]) -> set[AxisUnits]:
        spots = [spot for spot in spots if spot in zeros]
        if not spots or self.is_silent(zeros - {*spots}):
            return zeros - {*spots}
        if len(spots) == 1:
            return zeros
        middle = len(spots) // 2
        for half in (spots[:middle], spots[middle:]):
            zeros = self._freed(zeros, half)
        return zeros

    def _changed(
        self, arrays: Arrays, zeros: Collection[AxisUnits], unit: int | None = None
    ) -> Arrays:
        """Returns arrays with zeros at some entries of new units.

        The other new entries are drawn, or copies of old unit ``unit``: a function may not be
        finite for drawn values, but it is for the values of old units.
        """
        found = dict(arrays)
        for _, spot, _, along, old in self.masks:
            array, is_new = np.moveaxis(found[spot.path], spot.axis, -1), along >= old
            if unit is not None and is_float(array) and 0 < old <= along.max(initial=0):
                copied = array[..., [list(along).index(unit % old)]]
                array = np.where(is_new, copied / (1 - unit), array)  # differs even with one unit
            array = np.where(is_new, 0, array) if spot in zeros else array
            found[spot.path] = np.moveaxis(array, -1, spot.axis)
        return found


def _masks(widths: Widths, name: str, old: int, new: int) -> Iterator[_Mask]:
    """Yields the positions of units in grown arrays, in the order of the widths' leaves."""
    for leaf in widths.leaves:
        for axis, layout in enumerate(leaf.axes):
            every = spread(resized(layout, {name: new}))
            own = (its for its in every if its[0].width == name)
            for place, (units, along) in enumerate(own):
                yield _Mask(name, AxisUnits(leaf.path, axis, place), units.role, along, old)
