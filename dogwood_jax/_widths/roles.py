"""Which weights of a network are outgoing, and the role of every width along every axis."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from dogwood_jax._widths.dims import Dim, atoms, factors, pieces, spread_out
from dogwood_jax._widths.layout import Role
from dogwood_jax._widths.values import (
    KIND_OF_USE,
    Demand,
    Entry,
    Silencer,
    Silencers,
    Trace,
    of_weights,
)


class Spot(NamedTuple):
    """One place where the units of a dimension without structure lie: on an axis, from a start."""

    leaf: int
    axis: int
    atom: Dim
    start: int


def spots_along(leaf: int, axis: int, dim: Dim) -> list[Spot]:
    """Returns the spots along an axis of a leaf, spread out, in the order of its layout."""

    def walk(dim: Dim, start: int) -> Iterator[Spot]:
        if dim.kind is None:
            yield Spot(leaf, axis, dim, start)
        for piece in pieces(dim) if dim.kind == "concat" else ():
            yield from walk(piece, start)
            start += piece.size
        for factor in factors(dim) if dim.kind == "product" else ():
            yield from walk(factor, start)

    return list(walk(dim.root, 0))


# One way to silence a dimension: the spots of the weights that must be zero together.
_Option = frozenset[Spot]

_BEHIND = (
    "its units are silenced by what feeds them, behind a function of activations: behind relu, "
    "which has no slope at zero, new units never learn"
)


def _all(demand: Demand) -> Silencers:
    return tuple(s for operand in demand.operands for s in operand)


class Roles:
    """The role of every dimension without structure along every axis of every leaf.

    Weights are outgoing where some contraction needs them to be zero for new units. If a
    contraction leaves a choice, weights that are outgoing already are enough.

    Args:
        trace: what was learned of the program; the hazards of contractions are added to it.
        leaves: the dimensions of each leaf.

    Attributes:
        dims: the dimension along every axis of every leaf, spread out.
        spots: the spots along it.
    """

    def __init__(self, trace: Trace, leaves: Sequence[Sequence[Dim]]) -> None:
        self._trace = trace
        self.dims = {
            (leaf, axis): spread_out(dim)
            for leaf, dims in enumerate(leaves)
            for axis, dim in enumerate(dims)
        }
        self.spots = {place: spots_along(*place, dim) for place, dim in self.dims.items()}
        self._by_leaf: dict[int, list[Spot]] = {}
        for (leaf, _), spots in self.spots.items():
            self._by_leaf.setdefault(leaf, []).extend(spots)
        self._known: dict[Entry, dict[Dim, frozenset[Spot]]] = {}
        self._produced = self._of_entries(trace.produced)
        self._aside = self._of_entries(trace.aside)
        self._outgoing: set[Spot] = set()
        self._yielding: set[Spot] = set()
        self._solve()
        self._part_corners()

    def of(self, spot: Spot) -> Role:
        if spot in self._outgoing:
            return "both" if spot in self._produced else "outgoing"
        return "incoming"

    def is_produced(self, spot: Spot) -> bool:
        """Whether the rest of the leaf feeds these units, in the first place."""
        first = spot.axis in self._trace.first.get(spot.leaf, ())
        return first and spot in self._produced and spot not in self._aside

    def decides(self, spot: Spot) -> bool:
        """Whether this axis decides on entries that are new along another axis, too.

        Two widths may have new units that are silenced in two different arrays. Then one of these
        arrays must be zero where both units are new.
        """
        return self.is_produced(spot) and spot not in self._yielding

    def produces(self, spot: Spot) -> int:
        """Whether the rest of the leaf feeds these units: 2 for surely, 1 for perhaps."""
        if spot in self._aside or self.of(spot) == "outgoing":
            return 0
        return 2 if self.is_produced(spot) else 1

    def _preferred(self, options: Sequence[_Option], demand: Demand) -> _Option:
        """Returns the option that lets new units learn most."""
        if len(demand.operands) > 1:
            return options[0]
        # In sum(units * factor), the factor reads the units, and it is read last. If it is zero,
        # the weights that feed the units need not be.
        return min(options, key=lambda o: (any(map(self._feeds, o)), -self._order(o)))

    def _order(self, option: _Option) -> int:
        """Returns when the last of these weights is first read."""
        return max(
            (self._trace.uses[s.leaf].order for s in option if s.leaf in self._trace.uses),
            default=0,
        )

    def _feeds(self, spot: Spot) -> bool:
        """Whether the rest of the leaf feeds these units by random weights, not by a factor."""
        use = self._trace.uses.get(spot.leaf)
        return spot in self._produced and use is not None and KIND_OF_USE[use.how] == "random"

    def _of_entry(self, entry: Entry) -> Mapping[Dim, frozenset[Spot]]:
        """Returns the spots of each part of an entry's dimension."""
        known = self._known.get(entry)
        if known is None:
            along = self.spots[entry.leaf, entry.axis]
            within = [s for s in along if entry.start <= s.start < entry.stop]
            known = self._known[entry] = {
                atom: frozenset(s for s in within if s.atom is atom)
                or frozenset(s for s in along if s.atom is atom)
                for atom in atoms(entry.dim)
            }
        return known

    def _of_entries(self, entries: Iterable[Entry]) -> frozenset[Spot]:
        return frozenset().union(*(s for e in entries for s in self._of_entry(e).values()))

    def _option(self, silencer: Silencer, atom: Dim) -> _Option | None:
        """Returns the spots that a silencer of a dimension makes zero for one of its parts."""
        if not silencer.entries:  # the part is zero anyway
            return frozenset()
        spots = [self._of_entry(e).get(atom, frozenset()) for e in silencer.entries]
        return frozenset().union(*spots) or None

    def _options(self, silencers: Silencers, atom: Dim) -> list[_Option]:
        return [o for s in silencers if (o := self._option(s, atom)) is not None]

    def _options_of(self, demand: Demand, atom: Dim) -> tuple[list[_Option], bool]:
        """Returns the options that satisfy a demand, and whether they are behind functions.

        Options behind functions are returned only if there are no others.
        """
        options = self._options(of_weights(_all(demand)), atom)
        if is_behind := not options:
            # Weights that silence both factors of a product would never learn.
            sides = [self._options(silencers, atom) for silencers in demand.operands]
            options = [o for side in sides for o in side if sum(o in s for s in sides) == 1]
        if demand.only_readers:
            options = [option for option in options if not option & self._produced]
        return options, is_behind

    def _solve(self) -> None:
        """Decides which weights are outgoing."""
        sums: list[tuple[Dim, list[_Option]]] = []
        first: list[_Option] = []
        of_weights_alone: list[tuple[Dim, list[_Option], str]] = []
        for demand in self._trace.demands:
            for atom in dict.fromkeys(atoms(demand.dim)):
                options, is_behind = self._options_of(demand, atom)
                if not options:
                    atom.endanger(demand.hazard)
                    continue
                if is_behind:
                    atom.note(_BEHIND)
                if demand.decides_last:
                    of_weights_alone.append((atom, options, demand.hazard))
                    continue
                sums.append((atom, options))
                first.append(self._preferred(options, demand))
        for _, options in sums:
            if len(options) == 1:
                self._outgoing |= options[0]
        for (_, options), preferred in zip(sums, first, strict=True):
            if not any(option <= self._outgoing for option in options):
                self._outgoing |= preferred
        decided = {spot.atom for spot in self._outgoing}
        for atom, options, hazard in of_weights_alone:
            if atom not in decided:
                self._outgoing |= options[0]
            elif not any(option <= self._outgoing for option in options):
                atom.endanger(hazard)

    # Units that are new along two dimensions

    def _part_corners(self) -> None:
        """Decides which of two arrays is zero where the units of two dimensions are new.

        In ``sum(b * c)`` over both axes, ``b`` may be zero for new units of the first axis and
        ``c`` for new units of the second. Where both units are new, one of the two must be zero.
        """
        for demand in self._trace.demands:
            if not demand.beside:
                continue
            for atom in dict.fromkeys(atoms(demand.dim)):
                silent = self._chosen(_all(demand), atom)
                for other, along in self._beside(demand, atom) if silent else ():
                    beside = self._chosen(along, other)
                    if not beside or any(self._is_silent(o, atom, other) for o in silent):
                        continue
                    if any(self._is_silent(o, other, atom) for o in beside):
                        continue
                    self._yielding |= self._of_leaves({spot.leaf for spot in silent[0]}, other)

    def _beside(self, demand: Demand, atom: Dim) -> Iterator[tuple[Dim, Silencers]]:
        for dim, silencers in demand.beside:
            for other in atoms(dim):
                if other is not atom:
                    yield other, silencers

    def _chosen(self, silencers: Silencers, atom: Dim) -> list[_Option]:
        return [o for o in self._options(silencers, atom) if o and o <= self._outgoing]

    def _of_leaves(self, leaves: Iterable[int], atom: Dim) -> set[Spot]:
        return {spot for leaf in leaves for spot in self._by_leaf[leaf] if spot.atom is atom}

    def _is_silent(self, option: _Option, atom: Dim, other: Dim) -> bool:
        """Whether silent weights stay zero where units of another dimension are new, too."""
        for spot in option:
            for beside in self._of_leaves({spot.leaf}, other):
                if beside.axis != spot.axis and beside not in self._outgoing:
                    if self.decides(beside):
                        return False
        return True
