"""More heads for keys and values under the same query heads: ``split_groups``.

In grouped-query attention, several query heads share a head of keys and values. If the larger model
has smaller groups, every head of keys and values is copied, and the query heads of its group are
divided among the copies. Query arrays do not change. The copies are a separate width, of size 1
before the growth. New heads may be added at the same time, with as many copies of each. If several
layers read the same keys and values, the query heads of each layer are divided.

In multi-query attention, one head of keys and values serves all query heads. An axis of size 1 is
no width, so ``split_single_heads`` finds the axis in the larger model's program.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice, pairwise
from typing import Any, NamedTuple

from dogwood_jax import strategies
from dogwood_jax._plan.asked import Asked
from dogwood_jax._plan.larger_model import Larger
from dogwood_jax._plan.silence import SEEN, heard
from dogwood_jax._widths.layout import Concat, Layout, Product, Units, units_of
from dogwood_jax._widths.widths import Facts, Leaf, Widths


class Split(NamedTuple):
    """Heads of keys and values that are copied.

    Attributes:
        heads: name of the width of these heads; the name in the larger model if there is one head.
        before: number of heads in the network.
        times: number of copies of each head.
        after: number of heads in the larger model, copies and new heads.
        sharing: number of query heads that share one head, by name of the query heads' width; empty
            if there is one head.
        served: number of query heads that all copies of one head serve together, by name of the
            query heads' width; it includes new query heads. If there is one head, names are those
            of the larger model and all numbers are 0; the only name is ``heads`` if each query head
            has a copy of its own.
    """

    heads: str
    before: int
    times: int
    after: int
    sharing: Mapping[str, int]
    served: Mapping[str, int]

    @property
    def copies(self) -> str:
        """The name of the width of the copies."""
        return copies_of(self.heads)

    @property
    def is_for_each(self) -> bool:
        """Whether each query head has a copy of a single head."""
        return self.heads in self.served


def copies_of(heads: str) -> str:
    """Returns the name of the width of the copies of heads."""
    return f"{heads}[copies]"


@dataclass(frozen=True)
class Groups:
    """A network in which heads of keys and values are copied.

    Attributes:
        before: the network's widths.
        splits: the heads that are copied, one split for each layer of attention.
        widths: the network's widths, with one more for each split.
    """

    before: Widths
    splits: tuple[Split, ...]
    widths: Widths

    @property
    def copies(self) -> dict[str, int]:
        """The number of copies of each head, by name of the width of the copies."""
        return {split.copies: split.times for split in self.splits}

    @property
    def notes(self) -> Iterator[str]:
        """Yields a note for each width of heads that are copied."""
        for split in self.splits:
            each, sharing = "one", "all"
            if split.before > 1:
                each, sharing = "each", f"the {_either(split.sharing.values())}"
            whose = f"and {sharing} query heads that shared it are divided among the copies"
            if split.is_for_each:
                each, whose = "the unit that all share", "one for each of them"
            yield f"{split.heads}: {each} is copied {split.times} times, {whose}"

    @property
    def alone(self) -> Iterator[str]:
        """Yields problems for growths in which both programs cannot be compared."""
        for split in self.splits:
            what = "heads of keys and values are copied in a growth of their own"
            if split.is_for_each:
                what = "the unit that all share is copied in a growth of its own"
            yield f"{split.heads}: {what}, without new layers and with strategies that keep outputs"

    @property
    def divided(self) -> dict[str, str]:
        """The split single head of each width of query heads in the larger model, see ``Split``."""
        return {
            group: split.heads
            for split in self.splits
            if split.before == 1
            for group in split.served
        }

    @property
    def is_for_each(self) -> bool:
        """Whether there is a copy of a single head for each query head."""
        return any(split.is_for_each for split in self.splits)

    def asked(self, sizes: Mapping[str, int]) -> dict[str, int]:
        """Returns the requested sizes, with copies in place of more heads."""
        known = {name: size for name, size in sizes.items() if name in self.widths}
        for split in self.splits:
            if split.before > 1:
                known |= {split.heads: split.after // split.times, **split.served}
        return {**known, **self.copies}


def split_groups(widths: Widths, larger: Larger, found: Groups | None = None) -> Groups | None:
    """Returns a network whose heads are copied into smaller groups, or None if that is not exact.

    Args:
        widths: the network's widths.
        larger: the larger model, whose program shows how many heads it has.
        found: the single heads that are copied, or None.
    """
    splits, wider = ((), widths) if found is None else (found.splits, found.widths)
    for heads, groups in _by_heads(divided(widths)).items():
        before, after = widths[heads].size, larger.sizes.get(heads, 0)
        sharing = {group: widths[group].size for group in groups}
        # If each head serves a single query head, the larger model has no width of query heads.
        new = {group: larger.sizes.get(group, 1) for group in groups}
        least = max(-(-size // new[group]) for group, size in sharing.items())
        ways = range(least, after // before + 1) if least > 1 else ()
        if times := next((n for n in ways if not after % n), 0):
            served = {group: size * times for group, size in new.items()}
            splits += (Split(heads, before, times, after, sharing, served),)
            wider = _with_copies(wider, splits[-1])
    return Groups(widths, splits, wider) if splits else None


def no_copies(widths: Widths, larger: Larger) -> Iterator[str]:
    """Yields why heads of keys and values cannot be copied although groups become smaller.

    Args:
        widths: the network's widths.
        larger: the larger model, whose program shows how many heads it has.
    """
    copyable = divided(widths)
    for heads, groups in _by_heads(_dividing(widths)).items():
        before, after = widths[heads].size, larger.sizes.get(heads, 0)
        sharing = {group: widths[group].size for group in groups}
        if after <= before or not any(larger.sizes.get(g, 1) < n for g, n in sharing.items()):
            continue
        if not copyable.keys() >= sharing.keys():
            yield f"{heads}: heads of keys and values cannot be copied, because {SEEN}"
            continue
        fit = [n for n in range(2, min(sharing.values()) + 1) if _all_divide(n, sharing)]
        yield (
            f"{heads}: {_either(sharing.values())} query heads share each of {before} heads of "
            f"keys and values, and copies divide them evenly: with today's query heads, "
            f"the larger model may have {_either(before * n for n in fit)} heads of keys and "
            f"values, not {after}"
        )


def _all_divide(times: int, sharing: Mapping[str, int]) -> bool:
    return not any(size % times for size in sharing.values())


def _either(numbers: Iterable[int]) -> str:
    return " or ".join(map(str, dict.fromkeys(numbers)))


def first_of_two(widths: Widths, larger: Larger) -> int | None:
    """Returns the number of heads of keys and values after the first of two growths.

    The first growth copies heads for the same query heads. The second one adds new heads. Returns
    None if one growth is enough, or two do not help.

    Args:
        widths: the network's widths.
        larger: the larger model, whose program shows how many heads it has.
    """
    for heads, groups in _by_heads(divided(widths)).items():
        before, after = widths[heads].size, larger.sizes.get(heads, 0)
        sharing = [(widths[group].size, larger.sizes.get(group, 1)) for group in groups]
        if all(their_own >= own for own, their_own in sharing):
            continue
        for times in range(2, min(own for own, _ in sharing) + 1):
            fits = all(not own % times and own // times <= new for own, new in sharing)
            if fits and before * times <= after:
                return before * times
    return None


def split_single_heads(widths: Widths, larger: Larger) -> Groups | None:
    """Returns a network whose single head of keys and values is copied, or None if not exact.

    The network's program has no axis for a single head. The larger model's program shows where the
    axis is, and that each query head is computed on its own. Every query head reads a copy of the
    same head, whichever copy that is. Therefore query heads may be added, too.

    Args:
        widths: the network's widths.
        larger: the larger model.
    """
    if larger.widths is None:
        return None
    moved = {edit.old: edit.path for edit in larger.inserted if edit.old is not None}
    dividing = _dividing(larger.widths)
    single = _Single(widths, larger.widths, dividing, moved)
    lacking = {group: heads for group, heads in dividing.items() if heads in single.lacking}
    lacking |= {heads: heads for heads in _for_each(widths, larger, moved)}
    found = _unheard(larger.widths, lacking)
    if not found:
        return None
    sizes = larger.widths.sizes
    splits = tuple(
        Split(heads, 1, sizes[heads], sizes[heads], {}, dict.fromkeys(groups, 0))
        for heads, groups in _by_heads(found).items()
    )
    return Groups(widths, splits, _Single(widths, larger.widths, found, moved).wider(splits))


def _for_each(widths: Widths, larger: Larger, moved: Mapping[str, str]) -> Iterator[str]:
    """Yields widths of the larger model along which each query head has its own keys and values.

    In the network, arrays of the single head lack this width. The query heads are a width of the
    network, too.
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


def single_heads_grow(widths: Widths, larger: Larger) -> bool:
    """Whether keys or values become longer in a network with a single head of keys and values.

    Args:
        widths: the network's widths.
        larger: the larger model.
    """
    shapes = larger.shapes
    its = {} if larger.widths is None else {leaf.path: leaf for leaf in larger.widths.leaves}
    leaves = {leaf.path: leaf for leaf in widths.leaves}
    beside = {
        leaf.path
        for leaf in leaves.values()
        if any(_counts_heads(widths, axis) for axis in leaf.axes)
    }
    for width in widths.values():
        made = {place.path for place in width.occurrences if place.role != "outgoing"}
        if not (width.label == "head_dim" and made & beside):
            continue
        for path in made - beside:
            leaf = leaves[path]
            for axis, old, new in zip(leaf.axes, leaf.shape, _shape(shapes, leaf), strict=False):
                if new > old and (old == 1 or width.name in {u.width for u in units_of(axis)}):
                    return True
    return any(
        new > old and _holds_single_heads(widths, axis) and isinstance(new_axis, Concat)
        for leaf in leaves.values()
        for axis, new_axis, old, new in zip(
            leaf.axes,
            its.get(leaf.path, leaf).axes,
            leaf.shape,
            _shape(shapes, leaf),
            strict=False,
        )
    )


def interleaved_heads(widths: Widths, larger: Larger) -> Iterator[str]:
    """Yields problems of longer axes that interleave query heads with their keys and values.

    Args:
        widths: the network's widths.
        larger: the larger model.
    """
    shapes = {leaf.path: leaf.shape for leaf in widths.leaves}
    found: dict[str, str] = {}
    of_both = [widths] if larger.widths is None else [widths, larger.widths]
    for its, leaf in ((one, leaf) for one in of_both for leaf in one.leaves):
        axes = zip(leaf.axes, shapes.get(leaf.path, ()), _shape(larger.shapes, leaf), strict=False)
        for number, (axis, old, new) in enumerate(axes):
            parts = axis.parts if isinstance(axis, Product) else ()
            for heads, inner in pairwise(parts) if new > old else ():
                labels = {its[units.width].label for units in units_of(inner)}
                if isinstance(heads, Units) and isinstance(inner, Concat) and "groups" in labels:
                    found.setdefault(f"{leaf.path}[{number}]", str(axis))
    for place, layout in found.items():
        yield (
            f"{place}: the axis interleaves query heads with their keys and values, {layout}, and "
            "copies of a head would lie between query heads: heads of keys and values are copied "
            "only if queries, keys and values are separate arrays or blocks of one, as q | k | v"
        )


def _shape(shapes: Mapping[str, Any], leaf: Leaf) -> tuple[int, ...]:
    return tuple(shapes[leaf.path].shape) if leaf.path in shapes else ()


def _holds_single_heads(widths: Widths, layout: Layout) -> bool:
    """Whether an axis holds queries of several heads and keys or values of a single head."""
    parts = layout.parts if isinstance(layout, Concat) else ()
    dims = {u.width for part in parts if _counts_heads(widths, part) for u in units_of(part)}
    return any(
        units.width in dims and widths[units.width].label == "head_dim"
        for part in parts
        if not _counts_heads(widths, part)
        for units in units_of(part)
    )


def _counts_heads(widths: Widths, layout: Layout) -> bool:
    return any(widths[units.width].label == "heads" for units in units_of(layout))


def divided(widths: Widths) -> dict[str, str]:
    """Returns widths of query heads that share a head, each with the width of the shared heads.

    Each of these query heads could instead read a copy of the head.
    """
    return {} if widths.network is None else _unheard(widths, _dividing(widths))


def _unheard(widths: Widths, dividing: Mapping[str, str]) -> dict[str, str]:
    """Returns the pairs of ``dividing`` whose new units do not change outputs by themselves."""
    known = {*heard(widths, {head for pair in dividing.items() for head in pair})}
    return {
        group: heads
        for heads, groups in _by_heads(dividing).items()
        if known.isdisjoint((heads, *groups))
        for group in groups
    }


def _by_heads(divided: Mapping[str, str]) -> dict[str, list[str]]:
    """Returns the widths of query heads that share a head, by the width of the shared heads."""
    found: dict[str, list[str]] = {}
    for group, heads in divided.items():
        found.setdefault(heads, []).append(group)
    return found


class _AxisPlace(NamedTuple):
    """Units on an axis, and the neighboring widths in a product."""

    units: Units
    before: str | None
    after: str | None


def _places(layout: Layout) -> Iterator[_AxisPlace]:
    parts = layout.parts if isinstance(layout, Product) else (layout,)
    for index, part in enumerate(parts):
        if isinstance(part, Units):
            beside = [*parts[max(index - 1, 0) : index], None], [*parts[index + 1 :], None]
            before, after = (p[0].width if isinstance(p[0], Units) else None for p in beside)
            yield _AxisPlace(part, before, after)
        elif not isinstance(part, Units):
            for inner in part.parts:
                yield from _places(inner)


def _dividing(widths: Widths) -> dict[str, str]:
    """Returns widths that only divide units of another width into groups, each with that width.

    The other width must also occur without them, in arrays that produce its units.
    """
    places: dict[str, list[_AxisPlace]] = {}
    for leaf in widths.leaves:
        for place in (place for axis in leaf.axes for place in _places(axis)):
            places.setdefault(place.units.width, []).append(place)
    found = {}
    for group, along in places.items():
        heads, *others = {place.before for place in along}
        if heads is not None and not (others or widths[heads].fixed or widths[group].fixed):
            found[group] = heads
    for heads, groups in _by_heads(found).items():
        own = [place for place in places[heads] if place.after not in groups]
        if not own or any(place.units.role != "incoming" for place in own):
            found = {group: other for group, other in found.items() if other != heads}
    return found


class _Single:
    """A network with one head of keys and values, matched to a larger model with several.

    Args:
        widths: the network's widths.
        larger: the larger model's widths.
        dividing: widths of the larger model that divide query heads, see ``_dividing``.
        moved: paths in the larger model of arrays that have another path, by path in the network.

    Attributes:
        joined: widths of heads in the larger model that at least one axis of the network lacks.
        lacking: those that all axes of the network lack.
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
        """Returns the network's widths, with those of the copies of heads added."""
        used = {u.width for leaf in self._leaves for axis in leaf.axes for u in units_of(axis)}
        facts = [
            (name, facts)
            for name, facts in self._widths.facts
            if name in used or name not in self._gone
        ]
        copies = ((split.copies, Facts(1)) for split in splits)
        return replace(self._widths, leaves=tuple(self._leaves), facts=(*facts, *copies))

    def _own(self, layout: Layout) -> Iterator[Units]:
        """Yields heads in the larger model's layout that are not divided into query heads."""
        for place in _places(layout):
            heads = place.units.width
            if heads in self._heads and self._dividing.get(place.after or "") != heads:
                yield place.units

    def _as_in(self, layout: Concat, its: Concat) -> Sequence[Layout]:
        """Returns the parts of a layout, grouped like the parts of the larger model's layout.

        For example, halves of keys and then values of a single head are ``a | b | c``; with several
        heads they are ``heads * (a | b) | heads * c``.
        """
        counts = [
            len(part.parts[-1].parts)
            if isinstance(part, Product)
            and isinstance(part.parts[-1], Concat)
            and len(part.parts) == 1 + len([*self._own(part)])
            else 1
            for part in its.parts
        ]
        if len(layout.parts) == len(counts) or len(layout.parts) != sum(counts):
            return layout.parts
        parts = iter(layout.parts)
        taken = ([*islice(parts, count)] for count in counts)
        return [Concat(tuple(several)) if len(several) > 1 else several[0] for several in taken]

    def _joined(self, layout: Layout, its: Layout) -> Layout:
        """Returns a layout with copies of heads where the larger model has heads."""
        own = [units.width for units in self._own(its)]
        if not own:
            return layout
        if isinstance(its, Concat) and isinstance(layout, Concat):
            parts = self._as_in(layout, its)
            if len(its.parts) == len(parts):
                return Concat(tuple(map(self._joined, parts, its.parts)))
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
    """Returns widths with copies of heads as one more width, except in front of query heads."""

    def factors(layout: Layout, after: Layout | None) -> list[Layout]:
        if isinstance(layout, Units):
            is_divided = isinstance(after, Units) and after.width in split.served
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


_MORE_HEADS = (
    "if the larger model has more heads of keys and values for the same query heads, pass its "
    "function as target_apply=, and these heads are copied"
)

_FOR_EACH = (
    "if the larger model has a head of keys and values for each query head instead of one for "
    "all: plan two growths, the first one with fewer of these heads"
)

_IN_TWO = (
    "if the larger model has more query heads, but fewer for each head of keys and values: plan "
    "two growths, the first one to {} heads of keys and values with today's query heads"
)


def with_copied_heads(asked: Asked) -> Asked:
    """Returns a request with copied heads if fewer query heads share a head in the larger model."""
    before, larger, told = asked.before, asked.larger, {**asked.larger.sizes, **asked.named}
    heads = split_single_heads(before, larger)
    found = asked if heads is None else _asked(asked, heads, told)
    if found.problems or found.shrinks:
        more = split_groups(before, larger, heads)
        if more is not None and more.widths is not found.widths:
            found = _asked(asked, more, told)
    return found


def ways_out_of_heads(asked: Asked) -> Iterator[str]:
    """Yields what the caller may pass instead if heads prevent a growth."""
    before, larger = asked.before, asked.larger
    heads_differ = any({*pair} - {*asked.sizes} for pair in divided(before).items())
    unsplit = not asked.alone or bool(asked.problems)
    unsplit = unsplit and single_heads_grow(before, larger)
    shrinks = any(before[n].size > size for n, size in asked.sizes.items() if n in before)
    if asked.problems or shrinks:
        yield from interleaved_heads(before, larger)
    if larger.widths is None:
        if unsplit or (heads_differ and asked.problems):
            yield _MORE_HEADS
        return
    if unsplit:
        yield _FOR_EACH
    if between := first_of_two(before, larger):
        yield _IN_TWO.format(between)
    elif not asked.alone:
        yield from no_copies(before, larger)


def _asked(asked: Asked, heads: Groups, sizes: Mapping[str, int]) -> Asked:
    """Returns the request in widths with copies of heads."""
    found = asked.explained(heads.widths, heads.asked(sizes))
    return replace(
        found,
        starts={**asked.starts, **dict.fromkeys(heads.copies, strategies.replicate())},
        notes=(*asked.notes, *heads.notes),
        alone=(*asked.alone, *heads.alone),
        ways_out=(*asked.ways_out, *([_FOR_EACH] if heads.is_for_each else [])),
    )
