"""Which weights of a network read units, and the role of every width along every axis.

Arrays of small integers, as quantized weights are, have no role to play: they stay as they are
while other arrays beside them are trained, and their new entries are zeros.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from dogwood_jax._program.dims import Dim, atoms, factors, pieces, spread_out
from dogwood_jax._program.reasons import Reason
from dogwood_jax._program.values import Mark, Trace
from dogwood_jax._widths.layout import Role


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


class Roles:
    """The role of every dimension without structure along every axis of every leaf.

    Weights are outgoing where they are contracted over the units. These are marks of the structure:
    whether outputs stay with zeros there is evaluated.

    Args:
        trace: what was learned of the program.
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
        self._read, self._produced, self._aside = map(
            self._at, (trace.read, trace.produced, trace.aside)
        )

    def of(self, spot: Spot) -> Role:
        if spot in self._read:
            return "both" if spot in self._produced else "outgoing"
        return "incoming"

    def is_produced(self, spot: Spot) -> bool:
        """Whether the rest of the leaf feeds these units, in the first place.

        Then this axis decides on entries that are new along another axis, too.
        """
        first = spot.axis in self._trace.first.get(spot.leaf, ())
        return first and spot in self._produced and spot not in self._aside

    def produces(self, spot: Spot) -> int:
        """Whether the rest of the leaf feeds these units: 2 for surely, 1 for perhaps."""
        if spot in self._aside or self.of(spot) == "outgoing":
            return 0
        return 2 if self.is_produced(spot) else 1

    def _at(self, marks: Iterable[Mark]) -> set[Spot]:
        found = set[Spot]()
        for place, dim in marks:
            own = {*atoms(dim)}
            found.update(spot for spot in self.spots[place] if spot.atom in own)
        return found


_ZEROS = Reason(
    "new entries of arrays of small integers are zeros, so other arrays must feed its new units",
    "silent",
)
_NOT_SHARED = Reason("small integers cannot be shared out among copies", "integers")


def is_quantized(dtype: Any) -> bool:
    """Whether arrays of a dtype are taken for quantized weights: ``int8``, ``int4`` and so on."""
    return bool(jnp.issubdtype(dtype, np.signedinteger)) and jnp.dtype(dtype).itemsize == 1


def note_quantized(roles: Roles, trace: Trace) -> None:
    """Notes what is special of the dimensions of small integers."""
    for spots in roles.spots.values():
        for spot in spots:
            if spot.leaf in trace.quantized:
                spot.atom.note(_ZEROS)
                if roles.of(spot) != "incoming":
                    spot.atom.note(_NOT_SHARED)
