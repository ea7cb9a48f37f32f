"""The larger program that growths of the same sizes are compared with: ``Programs``.

The larger program is the larger model's own, if there is one. Else it is that of the network's own
function in the new sizes, if it takes them. Else, as for a module whose config states sizes, it is
the network's program written again in the new sizes.
"""

from dataclasses import dataclass, replace
from functools import cached_property

from dogwood_jax._base.trees import PyTree
from dogwood_jax._growth.growth import Growth
from dogwood_jax._plan.fewer_layers import FewerLayers, fewer_layers
from dogwood_jax._plan.own_function import Rejected, own_program
from dogwood_jax._program.program import Program
from dogwood_jax._widths.layout import units_of
from dogwood_jax._widths.trace import Traced
from dogwood_jax._widths.widths import Widths


@dataclass(frozen=True)
class Compared:
    """A larger program, and the widths of the network that it is compared with.

    Attributes:
        widths: those of the layers that stand for all, or of the whole network.
        own: the program of the network's own function, or what it raised; None for the larger
            model's program.
        larger: the widths of the larger model, or None.
    """

    widths: Widths
    own: Program | Rejected | None
    larger: Widths | None = None

    @cached_property
    def its(self) -> Traced | None:
        """The larger program as it was read; None for the network's own in larger sizes."""
        if self.larger is not None:
            assert self.larger.network is not None
            return self.larger.network.traced  # type: ignore[no-any-return]
        return Traced(self.own) if isinstance(self.own, Program) else None

    def of(self, growth: Growth) -> Growth:
        """Returns a growth of the network as one of the layers that are compared."""
        structure = None if self.larger is not None else growth.structure
        known = {leaf.path: leaf for leaf in growth.widths.leaves}  # which weights are outgoing
        leaves = tuple(known[leaf.path] for leaf in self.widths.leaves)
        own = {units.width for leaf in leaves for axis in leaf.axes for units in units_of(axis)}
        facts = tuple((name, its) for name, its in growth.widths.facts if name in own)
        changes = tuple(change for change in growth.changes if change.width in own)
        widths = replace(self.widths, leaves=leaves, facts=facts)
        its = None if self.larger is None else {leaf.path for leaf in self.larger.leaves}
        new = tuple(edit for edit in growth.inserted if its is None or edit.path in its)
        return replace(growth, widths=widths, changes=changes, inserted=new, structure=structure)


class Programs:
    """The larger program that growths of the same sizes are compared with.

    Args:
        growth: one of the growths.
        network: the network's widths, with its program; those of copied experts have none.
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
        self.network, self._in_module = network, in_module

    @cached_property
    def fewer(self) -> FewerLayers | None:
        """The layers that stand for all."""
        return fewer_layers(self.widths, self.sizes)

    @cached_property
    def compared(self) -> Compared:
        """The larger model's program, or that of the network's own function in the new sizes."""
        widths, fewer = self.widths, self.fewer
        if self.larger is not None:
            return self._with_larger(self.larger)
        if fewer is not None:
            own = own_program(fewer.read, self.sizes, self.target, fewer.cut)
            is_like = isinstance(own, Program) and fewer.is_like_all(own, self.sizes)
            if is_like and (called := fewer.called(own)) is not None:  # type: ignore[arg-type]
                return Compared(fewer.read, called)
        own = own_program(widths, self.sizes, self.target, in_module=self._in_module)
        few = None if fewer is None or isinstance(own, Rejected) else fewer.of(own)
        if fewer is not None and few is not None:
            return Compared(fewer.read, few)
        return Compared(widths, own)

    @property
    def written_again(self) -> Compared:
        """The network's program, to be written again in the new sizes."""
        widths = self.widths if self.fewer is None else self.fewer.read
        return Compared(widths, None)

    def _with_larger(self, larger: Widths) -> Compared:
        """Returns some layers of both networks; or all layers."""
        assert larger.network is not None
        fewer, layers = self.fewer, larger.network.layers
        if fewer is not None and layers is None and len(larger.leaves) == len(fewer.read.leaves):
            return Compared(fewer.read, None, larger)
        if fewer is None or layers is None or layers.prefixes != fewer.layers.prefixes:
            return Compared(self.widths, None, larger)
        return Compared(fewer.read, None, FewerLayers(larger, layers, fewer.kept).read)
