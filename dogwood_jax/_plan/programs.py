"""The larger program that growths of the same sizes are compared with: ``Programs``.

This is the larger model's own program, if there is one. Otherwise it is the program of the
network's own function in the new sizes, if the function accepts them. Otherwise, for example for a
module whose config fixes the sizes, it is the network's program rewritten in the new sizes.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property

from dogwood_jax._base.trees import PyTree
from dogwood_jax._growth.growth import Growth
from dogwood_jax._growth.modules.resizing import says_numbers
from dogwood_jax._plan.fewer_layers import FewerLayers, fewer_layers
from dogwood_jax._plan.numbers_of_sizes import NumberOfSize, numbers_of_sizes
from dogwood_jax._plan.own_function import Rejected, own_program
from dogwood_jax._program.program import Program
from dogwood_jax._program.subprograms import Key, numbers_of
from dogwood_jax._widths.layout import units_of
from dogwood_jax._widths.trace import Traced
from dogwood_jax._widths.widths import Widths


class Programs:
    """The larger program that growths of the same sizes are compared with.

    Args:
        growth: one of the growths.
        network: the network's widths, with its program; ``growth.widths`` may lack the program.
        larger: the larger model's widths, with its program, or None.
        target: the larger model's variables, or None.
        in_module: whether the network's function may be called in a larger Linen module.
    """

    def __init__(
        self,
        growth: Growth,
        network: Widths,
        larger: Widths | None = None,
        target: PyTree = None,
        *,
        in_module: bool = True,
    ) -> None:
        self.widths = replace(growth.widths, network=network.network)
        self.sizes, self.target, self.larger = growth.sizes, target, larger
        self._growth = growth
        self.network, self._in_module = network, in_module

    @cached_property
    def fewer(self) -> FewerLayers | None:
        """A few layers that represent all layers, or None."""
        return fewer_layers(self.widths, self.sizes)

    @property
    def own(self) -> Program | Rejected | None:
        """The network's own function in the new sizes, or its error; None with a larger model."""
        found = self._compared[1]
        if isinstance(found, Program) and self.following:
            return Rejected("its constants are those of its own sizes", True, False)
        return None if isinstance(found, Widths) else found

    @cached_property
    def following(self) -> Mapping[Key, NumberOfSize]:
        """Constants of the network that are taken for roots of sizes, by key of their step.

        Such constants are ``sqrt(d)`` and ``1 / sqrt(head_dim)``. They follow a size if no function
        tells otherwise: it accepts no other sizes, or the larger model is given by shapes alone.
        """
        own = self._compared[1]
        if isinstance(own, Widths):
            return {}
        if isinstance(own, Program) and (self.target is None or says_numbers(self.target)):
            return {}
        roots = {step: its for step, its in self.numbers.items() if its.is_root}
        if isinstance(own, Rejected):
            return roots
        return {step: its for step, its in roots.items() if not its.is_simple}

    @cached_property
    def numbers(self) -> Mapping[Key, NumberOfSize]:
        """Constants of the network that may follow from sizes, and that its own function keeps."""
        own, few = self._compared[1], self.of(self._growth)
        assert few.widths.network is not None
        found = numbers_of_sizes(few, few.widths.network.traced)
        if not isinstance(own, Program):
            return found
        known = {*numbers_of(own.jaxpr)}
        return {step: its for step, its in found.items() if its.number in known}

    @cached_property
    def its(self) -> Traced | None:
        """The larger program as it was read; None for the network's program in larger sizes."""
        found = self._compared[1]
        if isinstance(found, Widths):
            assert found.network is not None
            return found.network.traced  # type: ignore[no-any-return]
        return Traced(found) if isinstance(found, Program) and not self.following else None

    @property
    def are_of_fewer(self) -> bool:
        """Whether only a few layers, which represent all, are compared."""
        return self._compared[0] is not self.widths

    def of(self, growth: Growth) -> Growth:
        """Returns a growth of the network, restricted to the layers that are compared."""
        compared, larger = self._compared
        other = larger if isinstance(larger, Widths) else None
        structure = None if other is not None else growth.structure
        known = {leaf.path: leaf for leaf in growth.widths.leaves}  # with the growth's own roles
        leaves = tuple(known[leaf.path] for leaf in compared.leaves)
        own = {units.width for leaf in leaves for axis in leaf.axes for units in units_of(axis)}
        facts = tuple((name, its) for name, its in growth.widths.facts if name in own)
        changes = tuple(change for change in growth.changes if change.width in own)
        widths = replace(compared, leaves=leaves, facts=facts)
        there = None if other is None else {leaf.path for leaf in other.leaves}
        new = tuple(edit for edit in growth.inserted if there is None or edit.path in there)
        return replace(growth, widths=widths, changes=changes, inserted=new, structure=structure)

    @cached_property
    def _compared(self) -> tuple[Widths, Program | Rejected | Widths]:
        """The widths that are compared, and the other side of the comparison.

        The other side is the larger model, or the network's own function in the new sizes. If that
        function raised an error, it is the error, and the network's program is rewritten instead.
        """
        widths, fewer = self.widths, self.fewer
        if self.larger is not None:
            return self._with_larger(self.larger)
        own = own_program(widths, self.sizes, self.target, in_module=self._in_module)
        if fewer is None:
            return widths, own
        few = own if isinstance(own, Rejected) else fewer.of(own)
        return (widths, own) if few is None else (fewer.read, few)

    def _with_larger(self, larger: Widths) -> tuple[Widths, Widths]:
        """Returns a few layers of both networks if possible, otherwise all layers."""
        assert larger.network is not None
        fewer, layers = self.fewer, larger.network.layers
        if fewer is not None and layers is None:  # the larger model was read with fewer layers
            of_larger = {fewer.layers.layer_of(leaf.path) for leaf in larger.leaves} - {None}
            kept = tuple(layer for layer in range(len(fewer.layers)) if layer in of_larger)
            return FewerLayers(self.widths, fewer.layers, kept).read, larger
        if fewer is None or layers is None or layers.prefixes != fewer.layers.prefixes:
            return self.widths, larger
        return fewer.read, FewerLayers(larger, layers, fewer.kept).read
