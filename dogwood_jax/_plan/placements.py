"""Growths that put new units between old ones: ``placements``.

A program may have a constant for each unit, such as the frequencies ``theta ** (-2 * i / dim)``. In
a multiple of the size, every second, third, ... of these constants may be an old one. Then old unit
``i`` goes to a multiple of ``i``. The new units between old ones are a separate width, of size 1
before the growth.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from dogwood_jax._base.problems import Refused
from dogwood_jax._growth.growth import Change, Growth
from dogwood_jax._plan.asked import Asked
from dogwood_jax._plan.numbers_of_sizes import tables_of
from dogwood_jax._plan.silence import silenced
from dogwood_jax._program.numbered import without_numbers
from dogwood_jax._widths.layout import Layout, Product, Units
from dogwood_jax._widths.widths import Facts, Widths
from dogwood_jax.strategies import Start


def placements(growth: Growth, asked: Asked) -> Iterator[Growth | Refused]:
    """Yields a growth with old units in other places, if they may keep their constants there.

    Args:
        growth: a growth that appends new units.
        asked: the requested sizes.
    """
    if any(facts.inside for _, facts in growth.widths.facts):  # old units do not come first
        return
    # Tables are looked for in a few layers, which stand for like ones.
    found = (c.width for c in growth.changes if tables_of(asked.before, [c.width]))
    tabled = {*map(without_numbers, found)}
    every = (c for c in growth.changes if without_numbers(c.width) in tabled)
    changes = [change for change in every if _may_lie_between(growth, change, asked)]
    if copied := [change for change in changes if change.sources is not None]:
        yield Refused(
            f"{change.width}: in the larger model, old units keep their numbers if new units "
            f"lie between them, but strategies.{change.strategy}() copies units"
            for change in copied
        )
    elif changes:
        between = _Between({change.width: change.new // change.old for change in changes})
        widths = silenced(growth.widths, between.times, asked.before)
        yield replace(
            growth,
            widths=between.widths(widths),
            changes=between.changes(growth.changes),
            notes=(*between.notes, *growth.notes),
        )


def _may_lie_between(growth: Growth, change: Change, asked: Asked) -> bool:
    """Whether the new size is a multiple of the old one, and its units may lie anywhere."""
    width, chosen = growth.widths[change.width], asked.starts.get(change.width)
    return (
        change.new > change.old > 1
        and not change.new % change.old
        and not (width.fixed or width.interface)
        and (chosen is None or _only_adds(chosen))
    )


@dataclass(frozen=True)
class _Between:
    """Widths whose old units go to multiples of their places.

    Attributes:
        times: for each such width, its new size divided by the old size.
    """

    times: Mapping[str, int]

    @property
    def notes(self) -> Iterator[str]:
        """Yields notes on the places of old units."""
        for name, times in self.times.items():
            yield (
                f"{name}: old unit i becomes unit {times} i, which has the same numbers in the "
                "larger model, and new units lie between old ones"
            )

    def widths(self, widths: Widths) -> Widths:
        """Returns widths in which the units between old ones are a separate width."""
        facts = ((_name(name), Facts(1, inside=name)) for name in self.times)
        leaves = (replace(leaf, axes=tuple(map(self._layout, leaf.axes))) for leaf in widths.leaves)
        return replace(widths, leaves=tuple(leaves), facts=(*widths.facts, *facts))

    def changes(self, changes: Iterable[Change]) -> tuple[Change, ...]:
        """Returns changes in which these widths get their new units between old ones."""
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


def _only_adds(strategy: Start) -> bool:
    """Whether a strategy adds units independently of old units and of each other."""
    return "zero" in (strategy.incoming, strategy.outgoing) and strategy.choice is None
