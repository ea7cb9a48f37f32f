"""Which weights of a network are outgoing, and the role of every width along every axis."""

from collections.abc import Iterable

from dogwood_jax._dims import Dim, atoms
from dogwood_jax._layout import Role, Units
from dogwood_jax._values import Entry, Trace, Value


def solve(trace: Trace) -> frozenset[Entry]:
    """Decides which weights are outgoing: as few as satisfy every contraction."""
    chosen: set[Entry] = set()
    open_demands = []
    for demand in trace.demands:
        options = [s for operand in demand.operands for s in operand]
        if not options:
            demand.dim.endanger(demand.hazard)
        elif len(options) == 1:
            chosen |= options[0].entries
        else:
            open_demands.append(options)
    for options in open_demands:
        if not any(option.entries <= chosen for option in options):
            chosen |= options[0].entries
    for demand in trace.demands:
        # A list, for weights on both sides of a product act twice.
        met = [
            s for operand in demand.operands for s in operand if s.entries and s.entries <= chosen
        ]
        if any(demand.operands) and (len(met) != 1 or not met[0].linear):
            demand.dim.endanger_copies(
                "its outgoing weights do not act on it exactly once, linearly"
            )
    return frozenset(chosen)


class Roles:
    """The role of every atom along every axis of every leaf."""

    def __init__(self, leaves: dict[str, Value], trace: Trace, outgoing: frozenset[Entry]) -> None:
        self.leaves = leaves
        self.trace = trace
        self.paths = list(leaves)
        self._outgoing = _spots((e.leaf, e.axis, e.dim) for e in outgoing)
        self._produced = _spots(trace.produced)
        self._aside = _spots(trace.aside)

    def of(self, leaf: int, axis: int, atom: Dim) -> Role:
        spot = (leaf, axis, atom)
        if spot in self._outgoing:
            return "both" if spot in self._produced else "outgoing"
        return "incoming"

    def units(self, leaf: int, axis: int, atom: Dim, name: str) -> Units:
        """Returns the units of an atom as they lie along an axis of a leaf."""
        spot = (leaf, axis, atom)
        produced = spot in self._produced and spot not in self._aside
        return Units(name, atom.size, self.of(*spot), produced)

    def produces(self, leaf: int, axis: int, atom: Dim) -> int:
        """Whether the rest of the leaf feeds these units: 2 for surely, 1 for perhaps."""
        spot = (leaf, axis, atom)
        if spot in self._aside or self.of(*spot) == "outgoing":
            return 0
        return 2 if spot in self._produced else 1

    def copy_hazards(self) -> Iterable[tuple[Dim, str]]:
        tied = sorted(self._outgoing & self._produced, key=lambda spot: spot[:2])
        for leaf, _, atom in tied:
            yield (
                atom,
                (
                    f"{self.paths[leaf]} is both incoming and outgoing (tied), "
                    "so copies cannot share its weights"
                ),
            )

    def zero_hazard(self, atom: Dim) -> str | None:
        """Why the weights that produce these units must not all be zero."""
        for index, (path, value) in enumerate(self.leaves.items()):
            use = self.trace.uses.get(index)
            if use and use.divides and use.how == "contract":
                for axis, dim in enumerate(value.dims):
                    if atom in atoms(dim) and self.of(index, axis, atom) == "incoming":
                        return f"the network divides by a norm of {path}"
        return None


def _spots(entries: Iterable[tuple[int, int, Dim]]) -> frozenset[tuple[int, int, Dim]]:
    return frozenset((leaf, axis, atom.root) for leaf, axis, dim in entries for atom in atoms(dim))
