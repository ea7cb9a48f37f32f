"""What a growth is asked for, by name of the width: ``Asked``."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from dogwood_jax._plan.copies import Copies
from dogwood_jax._plan.larger import Larger
from dogwood_jax._widths.widths import Widths
from dogwood_jax.strategies import Start


@dataclass(frozen=True)
class Asked:
    """The sizes that a growth is asked for.

    Attributes:
        before: the network's widths.
        named: the sizes that the caller named.
        widths: the widths that change, and the widths that families add.
        sizes: their new sizes by name.
        larger: the larger model; without arrays if there is none.
        starts: what new units begin with of widths that are given a strategy, by the caller or by
            a family.
        problems: why sizes do not explain the shapes of the larger model.
        notes: what families say of their widths.
        alone: why widths of families do not grow where programs cannot be compared.
        ways_out: what may be passed instead, whether or not the growth is planned.
        copies: units that are copied with all that belongs to them, or None.
        keeps_outputs: whether the growth is to keep outputs.
    """

    before: Widths
    named: Mapping[str, int]
    widths: Widths
    sizes: Mapping[str, int]
    larger: Larger = Larger({})
    starts: Mapping[str, Start] = field(default_factory=dict)
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    alone: tuple[str, ...] = ()
    ways_out: tuple[str, ...] = ()
    copies: Copies | None = None
    keeps_outputs: bool = True

    @property
    def shrinks(self) -> bool:
        """Whether a width would become smaller."""
        known = self.widths.sizes
        return any(size < known.get(name, size) for name, size in self.sizes.items())
