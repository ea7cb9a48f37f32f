"""More heads for keys and values under the same query heads: ``split_groups``.

In grouped-query attention, several query heads share a head of keys and values. If the larger model
has more of the latter, but no more query heads, its groups are smaller. Then every head of keys and
values is copied, and the query heads of its group are divided among the copies. Arrays of queries
stay as they are. The copies are a width of their own, of size 1 before.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from dogwood_jax._plan.grown_sizes import GrownSizes
from dogwood_jax._plan.larger import Larger
from dogwood_jax._program.elementwise import ELEMENTWISE
from dogwood_jax._program.moves import KEEP_ENTRIES
from dogwood_jax._widths.dims import Dim, atoms
from dogwood_jax._widths.layout import Concat, Layout, Product, Units
from dogwood_jax._widths.reasons import kind_of
from dogwood_jax._widths.values import Step
from dogwood_jax._widths.widths import Facts, Widths

# Operations that compute each entry from entries at the same places, or hand values on.
_APART = KEEP_ENTRIES | frozenset(
    ("reduce_precision", "scan", "while", "cond", "enter", "close", *ELEMENTWISE)
)
# Operations that cut or join along axes of which they change the size.
_ALONG_OTHERS = frozenset("slice dynamic_slice split pad concatenate".split())


class Split(NamedTuple):
    """Heads of keys and values that are copied.

    Attributes:
        heads: name of their width.
        group: name of the width of query heads that share one of them.
        times: how often each is copied.
    """

    heads: str
    group: str
    times: int

    @property
    def copies(self) -> str:
        """Name of the width of the copies."""
        return f"{self.heads}[copies]"


@dataclass(frozen=True)
class Groups:
    """A network in which heads of keys and values are copied.

    Attributes:
        before: its widths.
        splits: the heads that are copied, one for each layer of attention.
        widths: its widths, with one more for each split.
    """

    before: Widths
    splits: tuple[Split, ...]
    widths: Widths

    @property
    def copies(self) -> dict[str, int]:
        """How often heads are copied, by the width of the copies."""
        return {split.copies: split.times for split in self.splits}

    @property
    def notes(self) -> Iterator[str]:
        """Yields what becomes of the heads."""
        for split in self.splits:
            yield (
                f"{split.heads}: each is copied {split.times} times, and the "
                f"{self.before[split.group].size} query heads that shared it are divided among "
                "the copies"
            )

    def asked(self, sizes: Mapping[str, int]) -> dict[str, int]:
        """Returns the sizes that are asked for, with copies in the place of more heads."""
        today = {name: self.before[name].size for s in self.splits for name in (s.heads, s.group)}
        return {**sizes, **today, **self.copies}

    def sizes_in_program(self, sizes: Mapping[str, int]) -> dict[str, int]:
        """Returns the sizes that the widths before have in the larger model's program."""
        found = {name: size for name, size in sizes.items() if name not in self.copies}
        for heads, group, times in self.splits:
            found[heads] = self.before[heads].size * times
            found[group] = self.before[group].size // times
        return found


def split_groups(widths: Widths, larger: Larger) -> Groups | None:
    """Returns what becomes of a network in a larger model with smaller groups, if that is exact.

    Args:
        widths: the network's widths.
        larger: the larger model, whose program says how many heads it has.
    """
    splits, wider = [], widths
    for group, heads in divided(widths).items():
        times, rest = divmod(larger.sizes.get(heads, 0), widths[heads].size)
        if not rest and times > 1 and not widths[group].size % times:
            splits.append(Split(heads, group, times))
            wider = _with_copies(wider, splits[-1])
    return Groups(widths, tuple(splits), wider) if splits else None


def divided(widths: Widths) -> dict[str, str]:
    """Returns the widths of query heads that share a head, each with the width of these heads.

    Query heads are computed each on its own, so that they may share copies of the head instead.
    """
    if widths.network is None:
        return {}
    dims = {name: dim for dim, name in GrownSizes(widths, {}).names.items()}
    steps = widths.network.traced.trace.steps
    return {
        group: heads
        for group, heads in _dividing(widths).items()
        # A number that only looks computed from a size is compared with the larger model's.
        if not (widths[heads].fixed or widths[group].fixed)
        and all(
            kind_of(hazard) == "suspicion"
            for hazard in (*widths[heads].hazards, *widths[group].hazards)
        )
        and _are_apart(steps, dims[heads], dims[group])
    }


class _Place(NamedTuple):
    """Units on an axis, and the widths before and after them in a product."""

    units: Units
    before: str | None
    after: str | None


def _places(layout: Layout) -> Iterator[_Place]:
    parts = layout.parts if isinstance(layout, Product) else (layout,)
    for index, part in enumerate(parts):
        if isinstance(part, Units):
            beside = [*parts[max(index - 1, 0) : index], None], [*parts[index + 1 :], None]
            before, after = (p[0].width if isinstance(p[0], Units) else None for p in beside)
            yield _Place(part, before, after)
        elif not isinstance(part, Units):
            for inner in part.parts:
                yield from _places(inner)


def _dividing(widths: Widths) -> dict[str, str]:
    """Returns widths that only divide the units of another width into groups, each with this one.

    The other one must have places of its own, too, where arrays make its units.
    """
    places = [place for leaf in widths.leaves for axis in leaf.axes for place in _places(axis)]
    found = {}
    for group in dict.fromkeys(place.units.width for place in places):
        heads, *others = {place.before for place in places if place.units.width == group}
        own = [p for p in places if p.units.width == heads and p.after != group]
        if heads is not None and not others and own:
            if all(place.units.role == "incoming" for place in own):
                found[group] = heads
    return found


def _with_copies(widths: Widths, split: Split) -> Widths:
    """Returns widths in which copies of heads are a width, where no group follows them."""

    def factors(layout: Layout, after: Layout | None) -> list[Layout]:
        if isinstance(layout, Units):
            is_divided = isinstance(after, Units) and after.width == split.group
            if layout.width != split.heads or is_divided:
                return [layout]
            return [layout, Units(split.copies, 1, "incoming", layout.produced)]
        if isinstance(layout, Concat):
            return [Concat(tuple(map(copied, layout.parts)))]
        behind = [*layout.parts[1:], None]
        return [f for part, next_ in zip(layout.parts, behind) for f in factors(part, next_)]

    def copied(layout: Layout) -> Layout:
        found = factors(layout, None)
        return found[0] if len(found) == 1 else Product(tuple(found))

    leaves = (replace(leaf, axes=tuple(map(copied, leaf.axes))) for leaf in widths.leaves)
    copies = split.copies, Facts(1, inside=split.heads)
    return replace(widths, leaves=tuple(leaves), facts=(*widths.facts, copies))


def _are_apart(steps: Sequence[Step], heads: Dim, group: Dim) -> bool:
    """Whether a program computes each query head on its own, until it sums over all of them."""
    both = {heads, group}

    def of(dim: Dim) -> set[Dim]:
        return both & {*atoms(dim)}

    def is_apart(step: Step) -> bool:
        values = (*step.operands, *step.results)
        if not any(of(dim) for value in values for dim in value.dims):
            return True
        if any(of(value.dims[axis]) for value in step.operands for axis in value.positional):
            return False
        if step.name in _APART:
            return True
        if step.name == "dot_general":
            (contracted, _), _ = step.params["dimension_numbers"]
        elif step.name.startswith("reduce_"):
            contracted = step.params["axes"]
        elif step.name in _ALONG_OTHERS:
            # All heads stay where they are. A part of them would be other ones among copies.
            return all(
                value.ndim == result.ndim
                and all(
                    a.is_same(b)
                    for a, b in zip(value.dims, result.dims, strict=True)
                    if of(a) or of(b)
                )
                for result in step.results
                for value in step.operands
                if value.ndim
            )
        else:
            return False
        summed = [of(step.operands[0].dims[axis]) for axis in contracted]
        return set().union(*summed) in (set(), both)

    return all(map(is_apart, steps))
