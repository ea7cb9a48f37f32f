"""What new entries of a width may begin with: ``starts``."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from dogwood_jax import strategies
from dogwood_jax._growth.growth import Change
from dogwood_jax._widths.widths import Leaf, Recipe, Width, Widths
from dogwood_jax.strategies import Strategy


@dataclass(frozen=True)
class Start:
    """What new entries of a width begin with, before factors are looked for.

    Attributes:
        recipe: the strategy, and which arrays are filled otherwise than it says.
        mixes: whether vectors' new entries may be zero in the place of means.
        weighs: whether means may be weighed by the arrays that scale them, see ``weighed``.
    """

    recipe: Recipe
    mixes: bool = False
    weighs: bool = False

    def of(self, change: Change, strategy: Strategy | None = None) -> Change:
        """Returns a change that begins so.

        Args:
            change: the change.
            strategy: the caller's strategy; None for the recipe's.
        """
        strategy = strategy or strategies.by_name(self.recipe.strategy)
        sources = strategy.sources(change.old, change.new)
        return replace(change, strategy=strategy, sources=sources, recipe=self.recipe)


def starts(widths: Widths, width: Width, new: int, strategy: Strategy | None) -> Iterator[Start]:
    """Yields what new entries of a width may begin with, in the order in which it is tried.

    Args:
        widths: the network's widths.
        width: one of them.
        new: its new size.
        strategy: the caller's strategy, or None.
    """
    written, read = dict[str, None](), dict[tuple[str, str], None]()
    for occurrence in width.occurrences:
        if occurrence.role != "incoming":
            read[occurrence.path, "outgoing"] = None
        elif is_vector(widths.leaf(occurrence.path)):
            written[occurrence.path] = None
    scales = tuple(path for path in written if widths.leaf(path).kind == "ones")
    readers = tuple(read)
    every = [
        Start(Recipe("zero_outgoing")),
        Start(Recipe("zero_incoming", blank=scales)),
        Start(Recipe("zero_incoming", blank=scales, zeros=readers)),
        Start(Recipe("zeros")),
        Start(Recipe("replicate")),
        Start(Recipe("tile", blank=scales), mixes=True),
        Start(Recipe("tile", blank=scales, zeros=readers), mixes=True),
        Start(Recipe("tile", blank=scales), mixes=True, weighs=True),
        Start(Recipe("tile", zeros=readers), mixes=True),
    ]
    if new % width.size == 0:
        every[5:] = [Start(Recipe("tile"))]
    for start in every:
        name = start.recipe.strategy
        if start.recipe.learns if strategy is None else name == strategy.recipes_for:
            yield start


def is_vector(leaf: Leaf) -> bool:
    """Whether an array has a number for each unit: a bias, a scale."""
    return leaf.kind != "random" or sum(size > 1 for size in leaf.shape) == 1
