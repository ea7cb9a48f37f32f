"""The growths that programs propose, before they are evaluated: ``draft``."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from dogwood_jax._base.problems import Refused
from dogwood_jax._growth.growth import Change, Growth
from dogwood_jax._growth.insertion import Insertion
from dogwood_jax._plan.asked import Asked
from dogwood_jax._plan.copies import Copies, in_way
from dogwood_jax._plan.extensions import extensions
from dogwood_jax._plan.larger import Larger
from dogwood_jax._plan.notes import notes_of
from dogwood_jax._plan.removals import removals
from dogwood_jax._plan.request import Request
from dogwood_jax._plan.sizes import asked_of, ways_out
from dogwood_jax._plan.target import splits
from dogwood_jax.strategies import DepthStrategy

_WHICH_COPIES = (
    "there are several ways to copy experts, and only an evaluation tells which one keeps outputs: "
    "leave out check=False"
)


@dataclass(frozen=True)
class Proposal:
    """A growth that programs propose, before it is evaluated.

    Attributes:
        growth: the growth.
        asked: what it was asked for.
        keeps_outputs: whether it is to keep outputs.
        copies: units that are copied with all that belongs to them, or None.
        ways_out: what may be passed instead.
    """

    growth: Growth
    asked: Asked
    keeps_outputs: bool
    copies: Copies | None
    ways_out: Sequence[str]


@dataclass(frozen=True)
class Draft:
    """What all proposals for a request share.

    Attributes:
        request: what the caller asks for.
        asked: the sizes that follow from it.
        copies: units that are copied with all that belongs to them, or None.
        is_compared: whether the larger model's program is compared with the network's.
        problems: why there can be no proposal.
    """

    request: Request
    asked: Asked
    copies: Copies | None
    is_compared: bool
    problems: Sequence[str]

    def proposals(self) -> Iterator[Proposal]:
        """Yields growths in the order in which they are tried.

        Raises:
            Refused: if there is no further growth, with all reasons.
        """
        found = self._proposal()
        yield found
        for other in found.copies.others if found.copies else ():
            yield replace(found, growth=in_way(found.growth, other))
        for family in self.request.families if self.is_compared else ():
            for growth in family.rewritten(found.growth, self.asked):
                yield replace(found, growth=growth)

    @property
    def keeps_outputs(self) -> bool:
        exact = all(one.begins_exact for one in self.asked.strategies.values())
        return self.request.depth is None and exact

    @property
    def _sizes(self) -> dict[str, int]:
        """New sizes of all widths but those whose units are copied."""
        copied = self.copies.changes if self.copies else {}
        return {name: size for name, size in self.asked.sizes.items() if name not in copied}

    def _proposal(self) -> Proposal:
        request, asked, copies = self.request, self.asked, self.copies or Copies({})
        keep, merge, problems = request.keep or {}, request.merge or {}, [*self.problems]
        widths, larger = asked.widths, asked.larger
        extended = extensions(asked, self._sizes, request.interface)
        problems += extended.refusals
        changes = {**copies.changes, **extended.changes}
        changes |= removals(widths, keep, merge, request.interface, [*changes], problems)
        made = [change for name in widths if (change := changes.get(name)) if _is_any(change)]

        notes = [*larger.notes, *(copies.notes if self.keeps_outputs else copies.unshown)]
        for change in made:
            notes += notes_of(widths, change, is_seen=self.is_compared)
        if problems:
            raise Refused([*ways_out(request.families, asked), *problems])
        notes += self._further_notes(made)
        growth = Growth(
            widths,
            tuple(made),
            tuple(dict.fromkeys(notes)),
            insertions=larger.insertions,
        )
        if misfits := [*_misfits(growth)]:
            raise Refused(misfits)
        others = [copies.way_out] if copies.changes else []
        return Proposal(
            growth,
            asked,
            self.keeps_outputs,
            copies if copies.changes else None,
            [*dict.fromkeys([*others, *asked.ways_out])],
        )

    def _further_notes(self, made: Sequence[Change]) -> Iterator[str]:
        """Yields notes on copied heads, on new layers, and on how a larger model splits axes."""
        asked, depth = self.asked, self.request.depth
        yield from asked.notes
        if depth is not None:
            yield _changes_outputs(depth, asked.larger.insertions)
        if asked.larger.widths is None:
            sizes = {change.width: change.new for change in made}
            yield from splits(asked.widths, sizes, every=self.request.target is not None)


def draft(request: Request, larger: Larger | None) -> Draft:
    """Returns what all proposals for a request share.

    Args:
        request: the arguments of ``plan``.
        larger: what is known of the larger model; None if there is none.
    """
    problems: list[str] = []
    asked = asked_of(request, larger, problems)
    widths, larger = asked.widths, asked.larger
    found = (family.copies(asked) for family in request.families)
    copies = next((one for one in found if one is not None), None)
    problems += copies.problems if copies else ()
    made = Draft(request, asked, copies, False, problems)
    others = [name for name, size in made._sizes.items() if size != widths[name].size]
    keeps = made.keeps_outputs and request.keep is None and request.merge is None
    is_copied = copies is not None and bool(copies.changes)
    is_compared = keeps and request.check and bool(others or not is_copied)
    is_compared &= larger.widths is not None and not larger.insertions
    if not is_compared and request.check and not problems:
        problems += asked.alone
    if copies and copies.others and not request.check:
        problems.append(_WHICH_COPIES)
    return replace(made, is_compared=is_compared)


def _is_any(change: Change) -> bool:
    """Whether a change does anything."""
    return change.new != change.old or change.sources != tuple(range(change.old))


def _misfits(growth: Growth) -> Iterator[str]:
    """Yields the new arrays that cannot be copies, because their shapes are others."""
    for new in growth.insertions:
        if new.fill == "copy" and new.source is not None and not new.layers:
            if growth.shapes[new.source] != new.shape:
                yield (
                    f"{new.path}: cannot copy {new.source}, which has shape "
                    f"{growth.shapes[new.source]} then, because its own shape is {new.shape}"
                )


def _changes_outputs(depth: DepthStrategy, insertions: Sequence[Insertion]) -> str:
    """Says that new layers change outputs, or that there are none."""
    if not insertions:
        return f"strategies.{depth}() fills in new layers, but the target has none"
    return f"outputs change, because strategies.{depth}() does not silence new layers"
