"""Which weights of a network are outgoing, and the role of every width along every axis."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from dogwood_jax._dims import Dim, atoms, factors, pieces, spread_out
from dogwood_jax._layout import Role
from dogwood_jax._values import KIND_OF_USE, Demand, Entry, Silencer, Trace


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


@dataclass(frozen=True)
class _Option:
    """Weights that silence one dimension, where they lie."""

    spots: frozenset[Spot]
    linear: bool


class Roles:
    """The role of every dimension without structure along every axis of every leaf.

    Weights are outgoing where some contraction needs them to be zero for new units; as few are
    chosen as satisfy every contraction.

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
        self._known: dict[Entry, dict[Dim, frozenset[Spot]]] = {}
        self._produced = self._of_entries(trace.produced)
        self._aside = self._of_entries(trace.aside)
        self._outgoing: set[Spot] = set()
        self._solve()

    def of(self, spot: Spot) -> Role:
        if spot in self._outgoing:
            return "both" if spot in self._produced else "outgoing"
        return "incoming"

    def is_produced(self, spot: Spot) -> bool:
        """Whether the rest of the leaf feeds these units, in the first place."""
        first = spot.axis in self._trace.first.get(spot.leaf, ())
        return first and spot in self._produced and spot not in self._aside

    def produces(self, spot: Spot) -> int:
        """Whether the rest of the leaf feeds these units: 2 for surely, 1 for perhaps."""
        if spot in self._aside or self.of(spot) == "outgoing":
            return 0
        return 2 if self.is_produced(spot) else 1

    def _preferred(self, options: Sequence[_Option], demand: Demand) -> _Option:
        """Returns the option that lets new units learn most."""
        if len(demand.operands) > 1:
            return options[0]
        # The factor in a product that is summed up reads the units, as in sum(units * factor):
        # that it is zero, and not what feeds them, leaves these weights free.
        return next((o for o in options if not any(map(self._feeds, o.spots))), options[0])

    def _feeds(self, spot: Spot) -> bool:
        """Whether the rest of the leaf feeds these units by random weights, not by a factor."""
        use = self._trace.uses.get(spot.leaf)
        return spot in self._produced and use is not None and KIND_OF_USE[use.how] == "random"

    def tied(self) -> list[Spot]:
        """Returns where weights are both incoming and outgoing."""
        return sorted(self._outgoing & self._produced, key=lambda s: (s.leaf, s.axis, s.start))

    def _of_entry(self, entry: Entry) -> Mapping[Dim, frozenset[Spot]]:
        """Returns the spots of each part of an entry's dimension."""
        if entry not in self._known:
            along = self.spots[entry.leaf, entry.axis]
            within = [s for s in along if entry.start <= s.start < entry.stop]
            self._known[entry] = {
                atom: frozenset(s for s in within if s.atom is atom)
                or frozenset(s for s in along if s.atom is atom)
                for atom in atoms(entry.dim)
            }
        return self._known[entry]

    def _of_entries(self, entries: Iterable[Entry]) -> frozenset[Spot]:
        return frozenset().union(*(s for e in entries for s in self._of_entry(e).values()))

    def _option(self, silencer: Silencer, atom: Dim) -> _Option | None:
        """Returns what a silencer of a dimension does for one of the parts."""
        if not silencer.entries:  # the part is zero anyway
            return _Option(frozenset(), silencer.linear)
        spots = [self._of_entry(e).get(atom, frozenset()) for e in silencer.entries]
        found = frozenset().union(*spots)
        return _Option(found, silencer.linear) if found else None

    def _solve(self) -> None:
        """Decides which weights are outgoing."""
        sums: list[tuple[Dim, list[_Option]]] = []
        first: list[_Option] = []
        for demand in self._trace.demands:
            for atom in dict.fromkeys(atoms(demand.dim)):
                silencers = [s for operand in demand.operands for s in operand]
                options = [o for s in silencers if (o := self._option(s, atom))]
                if options:
                    sums.append((atom, options))
                    first.append(self._preferred(options, demand))
                else:
                    atom.endanger(demand.hazard)
        for _, options in sums:
            if len(options) == 1:
                self._outgoing |= options[0].spots
        for (_, options), preferred in zip(sums, first, strict=True):
            if not any(option.spots <= self._outgoing for option in options):
                self._outgoing |= preferred.spots
        for atom, options in sums:
            # A list, for weights on both sides of a product act twice.
            met = [o for o in options if o.spots and o.spots <= self._outgoing]
            if len(met) != 1 or not met[0].linear:
                atom.endanger_copies("its outgoing weights do not act on it exactly once, linearly")
