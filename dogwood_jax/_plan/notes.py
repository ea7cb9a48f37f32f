"""Notes for the caller on a change: ``notes_of``."""

from collections.abc import Iterator

from dogwood_jax import strategies
from dogwood_jax._growth.growth import Change
from dogwood_jax._plan.silence import SEEN, heard
from dogwood_jax._program.reasons import kind_of
from dogwood_jax._widths.widths import Width, Widths


def notes_of(widths: Widths, change: Change, *, is_seen: bool) -> Iterator[str]:
    """Yields notes on outputs that change, and on requirements for the larger model.

    Args:
        widths: all widths.
        change: the change of one width.
        is_seen: whether the larger model's program is known, so that its constants are compared.
    """
    width = widths[change.width]
    if change.strategy.incoming == "free" and change.new > change.old and _is_output(widths, width):
        has_bias = any(len(widths.leaf(place.path).shape) == 1 for place in width.occurrences)
        rest = (
            "a bias below the others keeps it from winning until it has learned"
            if has_bias
            else "the mean of the old weights is a start in the middle of the others"
        )
        yield (
            f"{width.name}: new outputs begin with random weights, so the logit of a new class can "
            "be the largest at once; with strategies.zeros() for this width it begins at zero, and "
            f"{rest}"
        )
    is_silent = change.strategy.incoming == change.strategy.outgoing == "zero"
    if is_silent and change.new > change.old and not width.interface:
        yield (
            f"{width.name}: new units have zero incoming and zero outgoing weights, so behind a "
            "relu or a tanh they never learn; strategy= may be a mapping, with strategies.zeros() "
            "for outputs alone"
        )
    for note in width.notes:
        does_matter = {
            "silent": change.strategy.outgoing == "zero",
            "must_stay": not is_seen,
            "integers": False,
            "picked": False,
        }
        if does_matter.get(kind_of(note), True):
            yield f"{width.name}: {note}"
    if change.strategy.method is not None:
        yield (
            f"outputs change, because strategies.{change.strategy}() resizes an array for other "
            "inputs; nothing is evaluated"
        )
    if change.strategy.noise and not change.strategy.is_gated:
        yield f"{width.name}: copies carry noise, so outputs change"
    if change.strategy.perturb or change.strategy.shrink != 1:
        yield (
            f"{width.name}: outputs change, because old weights are multiplied by "
            f"{change.strategy.shrink:g} and {change.strategy.perturb:g} times new ones are added"
        )
    if change.strategy.choice and (epsilon := change.strategy.choice.epsilon):
        yield (
            f"{width.name}: incoming weights of new units are {epsilon:g} times drawn ones instead "
            "of zero, so outputs change by about as much"
        )
    if change.strategy is strategies.KEEP and change.recipe is None:
        if heard(widths, [width.name]):
            yield f"{width.name}: removing units changes outputs: {SEEN}"


def _is_output(widths: Widths, width: Width) -> bool:
    """Whether the units are outputs of the network that a kernel computes, such as logits."""
    return width.interface and any(
        place.role != "outgoing" and place.axis in widths.leaf(place.path).fan_out
        for place in width.occurrences
    )
