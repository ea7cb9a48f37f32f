"""Initial values for new entries of a width: ``candidates``."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from dogwood_jax import strategies
from dogwood_jax._growth.growth import Change
from dogwood_jax._widths.widths import Leaf, Recipe, Width, Widths
from dogwood_jax.strategies import Start


@dataclass(frozen=True)
class Candidate:
    """Initial values for new entries of a width, before factors are searched.

    Attributes:
        start: the initial values; None for those of the change.
        recipe: the arrays that are filled differently.
        mixes: whether new entries of vectors may be zero instead of means.
        weighs: whether means may be weighted by the arrays that scale them, see ``weighed``.
    """

    start: Start | None = None
    recipe: Recipe = Recipe()
    mixes: bool = False
    weighs: bool = False

    def of(self, change: Change, chosen: Start | None = None) -> Change:
        """Returns a change with these initial values.

        Args:
            change: the change.
            chosen: the initial values of the caller's strategy, or None.
        """
        start = chosen or self.start or change.strategy
        sources = start.sources(change.old, change.new)
        return replace(change, strategy=start, sources=sources, recipe=self.recipe)


def candidates(widths: Widths, width: Width, new: int, chosen: Start | None) -> Iterator[Candidate]:
    """Yields initial values for new entries of a width, in the order in which they are tried.

    Args:
        widths: the network's widths.
        width: the width that grows.
        new: its new size.
        chosen: the initial values of the caller's strategy, or None.
    """
    written, read = dict[str, None](), dict[tuple[str, str], None]()
    for occurrence in width.occurrences:
        if occurrence.role != "incoming":
            read[occurrence.path, "outgoing"] = None
        elif is_vector(widths.leaf(occurrence.path)):
            written[occurrence.path] = None
    scales = tuple(path for path in written if widths.leaf(path).kind == "ones")
    readers, silent, tile = tuple(read), strategies.zero_incoming(), strategies.tile()
    rotated, copies = strategies.rotated(), strategies.replicate(split="first")
    is_twice = new >= 2 * width.size > 0
    every = [
        Candidate(strategies.zero_outgoing()),
        Candidate(silent, Recipe(blank=scales)),
        Candidate(silent, Recipe(blank=scales, zeros=readers)),
        Candidate(strategies.zeros()),
        *([Candidate(rotated), Candidate(rotated, mixes=True)] if is_twice else []),
        Candidate(copies),
        Candidate(strategies.replicate(split="roots")),
        Candidate(strategies.replicate()),
        Candidate(tile, Recipe(blank=scales), mixes=True),
        Candidate(tile, Recipe(blank=scales, zeros=readers), mixes=True),
        Candidate(tile, Recipe(blank=scales), mixes=True, weighs=True),
        Candidate(tile, Recipe(zeros=readers), mixes=True),
    ]
    if not width.size:  # nothing to copy
        every = every[: every.index(Candidate(strategies.zeros())) + 1]
    elif new % width.size == 0:
        every[every.index(Candidate(tile, Recipe(blank=scales), mixes=True)) :] = [Candidate(tile)]
    if chosen is not None:  # its values, in every way in which arrays may be filled differently
        alike = (one for one in every if one.start and one.start.sides == chosen.sides)
        every = [*dict.fromkeys(replace(one, start=chosen) for one in alike)]
    yield from (one for one in every if chosen or (one.start and one.start.learns))


def is_vector(leaf: Leaf) -> bool:
    """Whether an array has a number for each unit: a bias, a scale."""
    return leaf.kind != "random" or sum(size > 1 for size in leaf.shape) == 1
