"""New units between old ones: ``find_between``.

Frequencies such as ``theta ** (-2 * i / dim)`` follow from a size. In a model of twice the size,
every other one is an old one: pair i of a head has the frequency that pair 2 i has there. So old
units go to multiples of their places, where their numbers are the same. Between them
lie new units, which are a width of their own, of size 1 before.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from dogwood_jax._growth.growth import Change
from dogwood_jax._widths.layout import Layout, Product, Units
from dogwood_jax._widths.reasons import kind_of
from dogwood_jax._widths.widths import Facts, Width, Widths
from dogwood_jax.strategies import Strategy


@dataclass(frozen=True)
class Between:
    """The widths in which old units go to multiples of their places.

    Attributes:
        times: by name of the width, how many times as many units it has in the larger model.
    """

    times: Mapping[str, int] = field(default_factory=dict)

    @property
    def notes(self) -> Iterator[str]:
        """Yields where old units go."""
        for name, times in self.times.items():
            yield (
                f"{name}: old unit i becomes unit {times} i, which has the same numbers in the "
                "larger model, and new units lie between old ones"
            )

    def refusals(self, changes: Iterable[Change]) -> Iterator[str]:
        """Yields the changes that cannot be made between old units."""
        for change in changes:
            if change.width in self.times and change.sources is not None:
                yield (
                    f"{change.width}: in the larger model, old units keep their numbers with new "
                    f"units between them, but strategies.{change.strategy}() copies units"
                )

    def widths(self, widths: Widths) -> Widths:
        """Returns widths in which the units between old ones are a width of their own."""
        if not self.times:
            return widths
        facts = ((_name(name), Facts(1, inside=name)) for name in self.times)
        leaves = (replace(leaf, axes=tuple(map(self._layout, leaf.axes))) for leaf in widths.leaves)
        return replace(widths, leaves=tuple(leaves), facts=(*widths.facts, *facts))

    def changes(self, changes: Iterable[Change]) -> tuple[Change, ...]:
        """Returns the changes in which these widths get units between old ones."""
        kept, moved = list[Change](), list[Change]()
        for change in changes:
            times = self.times.get(change.width)
            if times is None:
                kept.append(change)
            else:
                moved.append(replace(change, width=_name(change.width), old=1, new=times))
        return (*kept, *moved)

    def _layout(self, layout: Layout) -> Layout:
        if isinstance(layout, Units):
            if layout.width not in self.times:
                return layout
            return Product((layout, replace(layout, width=_name(layout.width), size=1)))
        parts: list[Layout] = []
        for part in map(self._layout, layout.parts):
            flat = isinstance(layout, Product) and isinstance(part, Product)
            parts += part.parts if flat else [part]  # type: ignore[union-attr]
        return replace(layout, parts=tuple(parts))


def _name(width: str) -> str:
    return f"{width}[between]"


def find_between(
    widths: Widths, sizes: Mapping[str, int], chosen: Mapping[str, Strategy]
) -> Between:
    """Returns the widths that may grow so because old units may have other numbers otherwise.

    Args:
        widths: the network's widths.
        sizes: new sizes by name of the width.
        chosen: the strategies of widths that are given one.
    """
    return Between(
        {
            name: sizes[name] // width.size
            for name, width in widths.items()
            if sizes.get(name, width.size) > width.size > 1 and not sizes[name] % width.size
            if has_tables(width) and not (width.fixed or width.interface)
            if name not in chosen or _only_adds(chosen[name])
        }
    )


def has_tables(width: Width) -> bool:
    """Whether a width's units have numbers of their own."""
    return any(kind_of(hazard) == "table" for hazard in width.hazards)


def _only_adds(strategy: Strategy) -> bool:
    """Whether a strategy adds units without a look at old ones or at each other."""
    return "zero" in (strategy.incoming, strategy.outgoing) and strategy.choice is None
