"""More heads for keys and values under the same query heads: ``split_groups``.

In grouped-query attention, several query heads share a head of keys and values. If the larger model
has smaller groups, every head of keys and values is copied, and the query heads of its group are
divided among the copies. Arrays of queries stay as they are. The copies are a width of their own,
of size 1 before. There may be new heads of all kinds, too, with as many copies of each.

In multi-query attention, one head of keys and values serves all query heads. An axis of size 1 is
no width, so ``split_single_heads`` looks where the larger model's program has it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from dogwood_jax._plan.grown_sizes import GrownSizes
from dogwood_jax._plan.larger import Larger
from dogwood_jax._program.elementwise import ELEMENTWISE
from dogwood_jax._program.moves import KEEP_ENTRIES
from dogwood_jax._widths.dims import Dim, atoms
from dogwood_jax._widths.layout import Concat, Layout, Product, Units, units_of
from dogwood_jax._widths.reasons import kind_of
from dogwood_jax._widths.values import Step
from dogwood_jax._widths.widths import Facts, Widths

# Operations that compute each entry from entries at the same places, or hand values on.
_APART = KEEP_ENTRIES | frozenset(
    ("reduce_precision", "scan", "while", "cond", "enter", "close", *ELEMENTWISE)
)
# Operations that cut or join along axes of which they change the size.
_ALONG_OTHERS = frozenset("slice dynamic_slice dynamic_update_slice split pad concatenate".split())


class Split(NamedTuple):
    """Heads of keys and values that are copied.

    Attributes:
        heads: name of their width; in the larger model, if there is one head.
        group: name of the width of query heads that share one of them, likewise; ``heads`` if each
            has one of its own.
        before: how many heads there are.
        times: how often each is copied.
        after: how many heads the larger model has, copies and new ones.
        sharing: how many query heads share one of them; 0 if there is one head.
    """

    heads: str
    group: str
    before: int
    times: int
    after: int
    sharing: int = 0

    @property
    def copies(self) -> str:
        """Name of the width of the copies."""
        return copies_of(self.heads)


def copies_of(heads: str) -> str:
    """Returns the name of the width of the copies of heads."""
    return f"{heads}[copies]"


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
            each, sharing = ("each", f"the {split.sharing}") if split.sharing else ("one", "all")
            yield (
                f"{split.heads}: {each} is copied {split.times} times, and {sharing} query heads "
                "that shared it are divided among the copies"
            )

    @property
    def alone(self) -> Iterator[str]:
        """Yields that the heads grow alone, where both programs cannot be compared."""
        for split in self.splits:
            yield (
                f"{split.heads}: heads of keys and values are copied in a growth of their own, "
                "without new layers and with strategies that keep outputs"
            )

    @property
    def divided(self) -> dict[str, str]:
        """What was a single head in the network, by names in the larger model, see ``Split``."""
        return {split.group: split.heads for split in self.splits if split.before == 1}

    @property
    def is_for_each(self) -> bool:
        """Whether each query head has a copy of a single head."""
        return any(split.before == 1 and split.group == split.heads for split in self.splits)

    def asked(self, sizes: Mapping[str, int]) -> dict[str, int]:
        """Returns the sizes that are asked for, with copies in the place of more heads."""
        known = {name: size for name, size in sizes.items() if name in self.widths}
        for split in self.splits:
            if split.before > 1:
                known[split.heads] = split.after // split.times
                known[split.group] = split.sharing
        return {**known, **self.copies}

    def sizes_in_program(self, sizes: Mapping[str, int]) -> dict[str, int]:
        """Returns the sizes that the widths before have in the larger model's program."""
        found = {name: size for name, size in sizes.items() if name not in self.copies}
        for split in self.splits:
            if split.before > 1:
                found[split.heads] = split.after
                found[split.group] = split.sharing // split.times
        return found


def split_groups(widths: Widths, larger: Larger, found: Groups | None = None) -> Groups | None:
    """Returns what becomes of a network in a larger model with smaller groups, if that is exact.

    Args:
        widths: the network's widths.
        larger: the larger model, whose program says how many heads it has.
        found: the single heads that are copied, if there are any.
    """
    splits, wider = ((), widths) if found is None else (found.splits, found.widths)
    for group, heads in divided(widths).items():
        before, sharing = widths[heads].size, widths[group].size
        after = larger.sizes.get(heads, 0)
        # If a head serves a single query head, the larger model has no width of these.
        times, rest = divmod(sharing, larger.sizes.get(group, 1))
        if not rest and times > 1 and not after % times and after >= before * times:
            splits += (Split(heads, group, before, times, after, sharing),)
            wider = _with_copies(wider, splits[-1])
    return Groups(widths, splits, wider) if splits else None


def first_of_two(widths: Widths, larger: Larger) -> int | None:
    """Returns how many heads of keys and values a growth in between may have, if one is needed.

    The first growth copies heads for the same query heads. The second one adds new heads.

    Args:
        widths: the network's widths.
        larger: the larger model, whose program says how many heads it has.
    """
    for group, heads in divided(widths).items():
        before, sharing = widths[heads].size, widths[group].size
        after, sharing_after = larger.sizes.get(heads, 0), larger.sizes.get(group, 1)
        for times in range(2, sharing + 1) if sharing_after < sharing else ():
            if not sharing % times and before * times <= after:
                if sharing // times <= sharing_after:
                    return before * times
    return None


def split_single_heads(widths: Widths, larger: Larger) -> Groups | None:
    """Returns what becomes of a network with one head of keys and values, if more are exact.

    The network's program has no axis for a single head. The larger model's program shows where the
    axis is, and that each query head is computed on its own. All query heads read copies of one
    head, whichever they read. So there may be more of them, too.

    Args:
        widths: the network's widths.
        larger: the larger model.
    """
    if larger.widths is None:
        return None
    moved = {i.old: i.path for i in larger.insertions if i.old is not None}
    dividing = _dividing(larger.widths)
    single = _Single(widths, larger.widths, dividing, moved)
    lacking = {group: heads for group, heads in dividing.items() if heads in single.lacking}
    lacking |= {heads: heads for heads in _for_each(widths, larger, moved)}
    found = _apart(larger.widths, lacking) if lacking else {}
    if not found:
        return None
    sizes = larger.widths.sizes
    splits = tuple(Split(h, group, 1, sizes[h], sizes[h]) for group, h in found.items())
    return Groups(widths, splits, _Single(widths, larger.widths, found, moved).wider(splits))


def _for_each(widths: Widths, larger: Larger, moved: Mapping[str, str]) -> Iterator[str]:
    """Yields the larger model's widths of query heads that keys and values of one head lack.

    Query heads are a width of the network, too, and each has a head of keys and values there.
    """
    assert larger.widths is not None and larger.names is not None
    names = {own: its for own, its in larger.names.items() if widths[own].size > 1}
    several, its = {*names.values()}, {leaf.path: leaf for leaf in larger.widths.leaves}
    found: dict[str, None] = {}
    for leaf in widths.leaves:
        same = its.get(moved.get(leaf.path, leaf.path))
        for axis, larger_axis in zip(leaf.axes, same.axes if same else (), strict=False):
            known = {names.get(units.width) for units in units_of(axis)}
            beside = [units.width for units in units_of(larger_axis)]
            found |= dict.fromkeys(w for w in beside if w in several and w not in known)
    for heads in found:
        if heads in _Single(widths, larger.widths, {heads: heads}, moved).joined:
            yield heads


def single_heads_grow(widths: Widths, shapes: Mapping[str, Any]) -> bool:
    """Whether keys or values of a network with one head of them for all queries become longer.

    Args:
        widths: the network's widths.
        shapes: the shapes of its arrays in a larger model, by path.
    """
    leaves = {leaf.path: leaf for leaf in widths.leaves}
    beside = {leaf.path for leaf in leaves.values() if any(map(_counts_heads, leaf.axes))}
    for width in widths.values():
        made = {place.path for place in width.occurrences if place.role != "outgoing"}
        if not (width.name.endswith("[head_dim]") and made & beside):
            continue
        for path in made - beside:
            shape = shapes[path].shape if path in shapes else ()
            for axis, old, new in zip(leaves[path].axes, leaves[path].shape, shape, strict=False):
                if new > old and (old == 1 or width.name in {u.width for u in units_of(axis)}):
                    return True
    return False


def _counts_heads(layout: Layout) -> bool:
    return any(units.width.endswith("[heads]") for units in units_of(layout))


def divided(widths: Widths) -> dict[str, str]:
    """Returns the widths of query heads that share a head, each with the width of these heads.

    Query heads are computed each on its own, so that they may share copies of the head instead.
    """
    return {} if widths.network is None else _apart(widths, _dividing(widths))


def _apart(widths: Widths, dividing: Mapping[str, str]) -> dict[str, str]:
    """Returns the widths of query heads, each with the width of heads, that are computed apart."""
    if widths.network is None or not dividing:
        return {}
    dims = {name: dim for dim, name in GrownSizes(widths, {}).names.items()}
    steps = widths.network.traced.trace.steps
    return {
        group: heads
        for group, heads in dividing.items()
        # A number that only looks computed from a size is compared with the larger model's.
        if all(
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
    places: dict[str, list[_Place]] = {}
    for leaf in widths.leaves:
        for place in (place for axis in leaf.axes for place in _places(axis)):
            places.setdefault(place.units.width, []).append(place)
    found = {}
    for group, along in places.items():
        heads, *others = {place.before for place in along}
        if heads is None or others or widths[heads].fixed or widths[group].fixed:
            continue
        own = [place for place in places[heads] if place.after != group]
        if own and all(place.units.role == "incoming" for place in own):
            found[group] = heads
    return found


class _Single:
    """Where a network with one head of keys and values lacks the axis of heads.

    Args:
        widths: the network's widths.
        larger: the larger model's widths.
        dividing: widths of the larger model that divide query heads, see ``_dividing``.
        moved: paths of arrays in the larger model that have another one in the network.

    Attributes:
        joined: the larger model's widths of heads that the network lacks in some of their places.
        lacking: the ones that it lacks in each of them.
    """

    def __init__(
        self,
        widths: Widths,
        larger: Widths,
        dividing: Mapping[str, str],
        moved: Mapping[str, str],
    ) -> None:
        self._widths, self._dividing, self._heads = widths, dividing, {*dividing.values()}
        self.joined, self._there = set[str](), set[str]()
        self._gone: set[str] = set()
        found, its = set[str](), {leaf.path: leaf for leaf in larger.leaves}
        self._leaves = []
        for leaf in widths.leaves:
            same = its.get(moved.get(leaf.path, leaf.path))
            axes = leaf.axes
            if same is not None and len(same.axes) == len(axes):
                found |= {units.width for axis in same.axes for units in self._own(axis)}
                axes = tuple(map(self._joined, axes, same.axes))
            self._leaves.append(replace(leaf, axes=axes))
        self.lacking = found - self._there

    def wider(self, splits: Sequence[Split]) -> Widths:
        """Returns the network's widths with the copies of heads among them."""
        used = {u.width for leaf in self._leaves for axis in leaf.axes for u in units_of(axis)}
        facts = [
            (name, facts)
            for name, facts in self._widths.facts
            if name in used or name not in self._gone
        ]
        copies = ((split.copies, Facts(1)) for split in splits)
        return replace(self._widths, leaves=tuple(self._leaves), facts=(*facts, *copies))

    def _own(self, layout: Layout) -> Iterator[Units]:
        """Yields heads in the larger model's layout that are not divided there."""
        for place in _places(layout):
            heads = place.units.width
            if heads in self._heads and self._dividing.get(place.after or "") != heads:
                yield place.units

    def _joined(self, layout: Layout, its: Layout) -> Layout:
        """Returns a layout with heads in the places where the larger model has them."""
        own = [units.width for units in self._own(its)]
        if not own:
            return layout
        if isinstance(its, Concat) and isinstance(layout, Concat):
            if len(its.parts) == len(layout.parts):
                return Concat(tuple(map(self._joined, layout.parts, its.parts)))
        if isinstance(its, Units) and isinstance(layout, Units) and layout.size == 1:
            self._gone.add(layout.width)
            self.joined.update(own)
            return replace(its, width=copies_of(its.width), size=1)
        if isinstance(its, Product):
            parts = list(layout.parts) if isinstance(layout, Product) else [layout]
            if len(parts) == len(its.parts) - len(own):
                for index, part in enumerate(its.parts):
                    if isinstance(part, Units) and part.width in own:
                        parts.insert(index, replace(part, width=copies_of(part.width), size=1))
                self.joined.update(own)
                return Product(tuple(parts))
        self._there.update(own)
        return layout


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
        if step.name in ("take", "collect", "stack", "unstack"):
            (stack,) = step.operands if step.name in ("take", "unstack") else step.results
            return not of(stack.dims[step.params.get("axis", 0)])  # a loop runs along the first one
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
