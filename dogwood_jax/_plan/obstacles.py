"""What keeps a width from a new size, and the ways out: ``refusals``.

A hazard matters to some strategies only. ``trace`` notes hazards at the width, and each strategy
says what it makes of new units.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from dogwood_jax import strategies
from dogwood_jax._growth.growth import Change
from dogwood_jax._plan.target import of_heads
from dogwood_jax._widths.dims import SPATIAL
from dogwood_jax._widths.layout import units_of
from dogwood_jax._widths.reasons import kind_of
from dogwood_jax._widths.widths import Width, Widths
from dogwood_jax.strategies import Strategy

# What to say of a table if the larger model's program does not show that it stays.
TABLE = (
    "not seen to stay in the larger model, as it does where each number follows from its position "
    "and from no size: rotary embeddings keep rotary_dim or begin with the old frequencies"
)

# Where old units keep numbers that follow from the size, such as theta**(-2 i / head_dim).
MULTIPLES = (
    "numbers that follow from the size, as theta**(-i / size) does, stay in a multiple of it, "
    "where new units lie between old ones"
)

OTHER_IMAGES = (
    "if the larger model is for images or patches of another size, pass its variables as target=, "
    "and strategy={path of the positions: strategies.resample(), path of the kernel of patches: "
    "strategies.resample_patch()}, which change outputs"
)


def refusals(width: Width, change: Change, interface: bool) -> list[str]:
    """Returns why a width cannot grow in this way."""
    if few := fewer(width, change.new):
        return few
    if width.fixed:
        return fixed(width, change.new, "grow")
    misfits = _misfits(width, change.new, change.strategy)
    return unasked(width, interface) + [f"{width.name}: {m}; {_ways_out(width)}" for m in misfits]


def doubts(width: Width, change: Change) -> list[str]:
    """Returns why outputs may change if a width grows in this way. Evaluation decides."""
    if width.fixed:
        return []
    hazards = _hazards(width, change.new, change.strategy)
    return [f"{width.name}: {_ways_out(width)}; otherwise {hazard}" for hazard in hazards]


def has_tables(width: Width) -> bool:
    """Whether a width's units have numbers of their own."""
    return any(kind_of(hazard) == "table" for hazard in width.hazards)


def fewer(width: Width, new: int) -> list[str]:
    """Returns why a width cannot take a size that is smaller than today's, if it is."""
    if new >= width.size:
        return []
    ways_out = [of_heads(width), "say which units stay, keep={name: [0, 2, ...]}, or use dw.narrow"]
    return [
        f"{width.name}: {'; else '.join(filter(None, ways_out))}; {new} units are fewer than "
        f"today's {width.size}, and growing never drops any"
    ]


def _misfits(width: Width, new: int, strategy: Strategy) -> Iterator[str]:
    """Yields what a strategy is not made for, of a width that is not fixed."""
    if bad := [unit for unit in strategy.units if width.size and not 0 <= unit < width.size]:
        yield f"has units 0 to {width.size - 1}, so none of {bad} can be copied"
    if strategy.takes_multiples_only and width.size and new % width.size:
        yield f"strategies.{strategy}() grows it to multiples of {width.size} only, not to {new}"
    roles = {occurrence.role for occurrence in width.occurrences}
    if strategy.choice and not ("incoming" in roles and roles - {"incoming"}):
        yield (
            f"strategies.{strategy}() chooses between incoming and outgoing weights, but the width "
            f"has {' and '.join(sorted(roles))} ones only"
        )
    if strategy.makes_alike and strategy.preserving:
        yield from (note for note in width.notes if kind_of(note) == "integers")
    if strategy.makes_alike and width.interface:
        yield (
            "units of an input or output cannot be copied, because new inputs are not copies of "
            "old ones"
        )


def _hazards(width: Width, new: int, strategy: Strategy) -> Iterator[str]:
    """Yields why outputs may change with a strategy, of a width that is not fixed."""
    if strategy.needs_recipe and not width.hazards:
        yield f"strategies.{strategy}() is for widths under a norm that can grow no other way"
    if strategy.begins_exact and width.hazards:
        yield (
            f"growing it from {width.size} to {new} would change outputs: "
            f"{'; '.join(width.hazards)}; it occurs in {_places(width)}"
        )


def _ways_out(width: Width) -> str:
    """Names the strategies with which a width can grow."""
    new, exact = 2 * width.size, list[str]()
    for strategy in (strategies.zero_outgoing(), strategies.replicate(), strategies.zeros()):
        if not [*_misfits(width, new, strategy), *_hazards(width, new, strategy)]:
            return f"use strategies.{strategy}()"
    kinds = {kind_of(hazard) for hazard in width.hazards}
    if kinds == {"table"}:
        exact.append(
            "if its numbers stay in the larger network, or rescaled arrays make up for them, pass "
            "the larger network's function as target_apply= (it may be the same function) "
            f"({MULTIPLES})"
        )
    return "; ".join(dict.fromkeys([*exact, "strategies.random() grows it, but outputs change"]))


def unasked(width: Width, interface: bool, what: str = "append to it") -> list[str]:
    """Returns why a dimension of the network's inputs or outputs stays, if nobody asked for it."""
    if interface or not width.interface:
        return []
    return [f"{width.name}: is a dimension of an input or output; pass interface=True to {what}"]


def fixed(width: Width, new: int, verb: str) -> list[str]:
    """Returns why a width cannot change at all, if it cannot."""
    if not width.fixed:
        return []
    return [
        f"{width.name}: cannot {verb} from {width.size} to {new}: {width.fixed}; "
        f"it occurs in {_places(width)}"
    ]


def other_images(widths: Widths, shapes: Mapping[str, Any]) -> Iterator[str]:
    """Yields what to pass if a larger model seems to be for images or patches of another size."""
    for leaf in widths.leaves:
        new = tuple(shapes[leaf.path].shape) if leaf.path in shapes else ()
        for layout, old_size, size in zip(leaf.axes, leaf.shape, new, strict=False):
            fixed = (widths[units.width].fixed or "" for units in units_of(layout))
            if size != old_size and any(SPATIAL in reason for reason in fixed):
                yield OTHER_IMAGES
                return


def _places(width: Width) -> str:
    places = list(dict.fromkeys(f"{o.path}[{o.axis}]" for o in width.occurrences))
    more = len(places) - 4
    return ", ".join(places[:4]) + (f" and {more} more" if more > 0 else "")
