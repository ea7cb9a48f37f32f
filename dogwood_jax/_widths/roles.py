"""Finds the weights that read units, and the role of every width along every axis: ``Roles``.

Arrays of small integers, such as quantized weights, are not trained: they stay as they are while
other arrays are trained, and their new entries are zeros.
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
    """The place of a dimension without structure along an axis of a leaf, from ``start`` on."""

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

    Weights are outgoing where they are contracted over the units. Roles only describe structure: an
    evaluation decides whether zeros there keep the outputs.

    Args:
        trace: the facts about the program.
        leaves: the dimensions of each leaf.

    Attributes:
        dims: the dimension along every axis of every leaf, spread out.
        spots: the spots along every axis of every leaf.
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
        """Whether the leaf, in its first use, produces these units.

        If so, this axis decides how entries are filled that are also new along another axis.
        """
        first = spot.axis in self._trace.first.get(spot.leaf, ())
        return first and spot in self._produced and spot not in self._aside

    def produces(self, spot: Spot) -> int:
        """Returns 2 if the leaf certainly produces these units, 1 if it may do so, 0 if not."""
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
_NOT_SHARED = Reason("small integers cannot be divided among copies", "integers")


def is_quantized(dtype: Any) -> bool:
    """Whether arrays of a dtype are treated as quantized weights, such as ``int8`` and ``int4``."""
    return bool(jnp.issubdtype(dtype, np.signedinteger)) and jnp.dtype(dtype).itemsize == 1


def note_quantized(roles: Roles, trace: Trace) -> None:
    """Adds notes to the dimensions of quantized arrays."""
    for spots in roles.spots.values():
        for spot in spots:
            if spot.leaf in trace.quantized:
                spot.atom.note(_ZEROS)
                if roles.of(spot) != "incoming":
                    spot.atom.note(_NOT_SHARED)
