"""The size of every dimension of a network after some widths have grown: ``GrownSizes``."""

from collections.abc import Callable, Mapping
from math import prod
from types import MappingProxyType
from typing import Any

import jax

from dogwood_jax._base.trees import is_array, struct
from dogwood_jax._growth.leaf_map import AlongAxis, AxisMap, Compound
from dogwood_jax._program.dims import Dim, atoms, parts_of, spread_out
from dogwood_jax._widths.layout import units_of
from dogwood_jax._widths.roles import spots_along
from dogwood_jax._widths.widths import Widths

_NONE: Mapping[Dim, int] = MappingProxyType({})


class GrownSizes:
    """Computes the size of each dimension of a network after some widths have grown.

    Args:
        widths: the widths of a network that was traced in this process. A width inside another one
            (``Width.inside``) has no dimension of its own.
        sizes: new sizes by name of the width.
        choices: new sizes of dimensions that are an axis of no array, such as the number of experts
            that a router chooses.

    Attributes:
        sizes: the new sizes by name of the width.
        names: name of each width by dimension.
        times: for dimensions of widths with another width inside, the number of units that each old
            unit becomes.
        dims: the dimensions of all axes of arrays, and their parts.
        lengths: the sizes of ``dims``, as pairs before and after the growth.
        appended: the new sizes of those of ``dims`` along which units are appended.
    """

    def __init__(
        self, widths: Widths, sizes: Mapping[str, int], choices: Mapping[Dim, int] = _NONE
    ) -> None:
        assert widths.network is not None
        self._network, self.sizes = widths.network, sizes
        dims = {path: value.dims for path, value in widths.network.traced.leaves.items()}
        inside = {facts.inside: sizes.get(name, 1) for name, facts in widths.facts if facts.inside}
        inner = {name for name, facts in widths.facts if facts.inside}
        self.names: dict[Dim, str] = {}
        self.times: dict[Dim, int] = {}
        self._sizes: dict[Dim, int] = {**choices}
        for leaf in widths.leaves:
            for axis, (layout, dim) in enumerate(zip(leaf.axes, dims[leaf.path], strict=True)):
                spots = spots_along(0, axis, spread_out(dim))
                own = [units for units in units_of(layout) if units.width not in inner]
                if len(own) == 1 < len(spots) and own[0].size == dim.size:
                    # The program takes experts out of their array one by one.
                    self._sizes[dim.root] = sizes.get(own[0].width, dim.size)
                    continue
                if len(spots) != len(own):  # a part of size 1 became fixed later
                    spots = [spot for spot in spots if spot.atom.size != 1]
                    own = [units for units in own if units.size != 1]
                for spot, units in zip(spots, own, strict=True):
                    self.names[spot.atom] = units.width
                    self._sizes[spot.atom] = sizes.get(units.width, units.size)
                    if units.width in inside:
                        self.times[spot.atom] = inside[units.width]
                        self._sizes[spot.atom] *= inside[units.width]
        every = {d: None for along in dims.values() for dim in along for d in parts_of(dim)}
        self.dims = (*every, *choices)
        self.lengths = {(d.size, self(d)) for d in self.dims}
        self.appended = {self(d) for d in self.dims if self._is_appended(d)}

    def __call__(self, dim: Dim) -> int:
        dim = dim.root
        if dim not in self._sizes:
            parts = list(map(self, dim.parts))
            size = prod(parts) if dim.kind == "product" else sum(parts)
            self._sizes[dim] = size if dim.kind else dim.size
        return self._sizes[dim]

    def _is_appended(self, dim: Dim) -> bool:
        return any(self(atom) != atom.size for atom in atoms(dim) if atom not in self.times)

    def along(self, dim: Dim, before: Callable[[Dim], int] | None = None) -> AlongAxis:
        """Returns the map of the entries along a dimension.

        Args:
            dim: the dimension.
            before: the size of each dimension before the growth, if it is not the current size.
        """
        dim = dim.root
        if dim.kind is not None:
            return Compound(dim.kind, tuple(self.along(part, before) for part in dim.parts))
        old = dim.size if before is None else before(dim)
        if (times := self.times.get(dim, 1)) > 1:
            own = AxisMap(old, self(dim) // times)
            return Compound("product", (own, AxisMap(1, times)))
        return AxisMap(old, self(dim))

    def inputs(self) -> tuple[Any, ...]:
        """Returns the network's inputs in these sizes, ``jax.ShapeDtypeStruct`` for arrays."""
        dims = iter(self._network.traced.trace.inputs)
        leaves, structure = jax.tree.flatten(self._network.inputs)
        inputs = [
            struct([self(next(dims)) for _ in leaf.shape], leaf.dtype) if is_array(leaf) else leaf
            for leaf in leaves
        ]
        return tuple(jax.tree.unflatten(structure, inputs))
