"""Reasons against a new size that are known without an evaluation: ``refusals``."""

from collections.abc import Iterator, Mapping
from typing import Any

from dogwood_jax import strategies
from dogwood_jax._growth.growth import Change
from dogwood_jax._plan.target import of_heads
from dogwood_jax._program.dims import SPATIAL
from dogwood_jax._program.reasons import kind_of
from dogwood_jax._widths.layout import units_of
from dogwood_jax._widths.widths import Width, Widths
from dogwood_jax.strategies import Start

OTHER_IMAGES = (
    "if the larger model is for images or patches of another size, pass its variables as target=, "
    "and strategy={path of the positions: strategies.resample(), path of the kernel of patches: "
    "strategies.resample_patch()}, which change outputs"
)


def refusals(width: Width, change: Change, interface: bool) -> list[str]:
    """Returns why a width cannot change in this way; empty if it can."""
    if few := fewer(width, change.new):
        return few
    if width.fixed:
        return fixed(width, change.new, "grow")
    misfits = _misfits(width, change.new, change.strategy)
    return unasked(width, interface) + [f"{width.name}: {m}; {_ways_out(width)}" for m in misfits]


def only_under_a_norm(width: Width, change: Change) -> str:
    """Returns why a strategy that rescales arrays does not apply to a width."""
    return (
        f"{width.name}: strategies.{change.strategy}() is for widths under a norm that can grow no "
        f"other way; {_ways_out(width)}"
    )


def fewer(width: Width, new: int) -> list[str]:
    """Returns why a width cannot take a smaller size than today's; empty if it is not smaller."""
    if new >= width.size:
        return []
    ways_out = [of_heads(width), "say which units stay, keep={name: [0, 2, ...]}, or use dw.narrow"]
    return [
        f"{width.name}: {'; else '.join(filter(None, ways_out))}; {new} units are fewer than "
        f"today's {width.size}, and growing never drops any"
    ]


def _misfits(width: Width, new: int, strategy: Start) -> Iterator[str]:
    """Yields why a strategy does not fit a width that is not fixed."""
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


def _ways_out(width: Width) -> str:
    """Returns a text that names a strategy with which a width can grow."""
    for strategy in (strategies.zero_outgoing(), strategies.replicate(), strategies.zeros()):
        if not [*_misfits(width, 2 * width.size, strategy)]:
            return f"use strategies.{strategy}()"
    return "strategies.random() grows it, but outputs change"


def unasked(width: Width, interface: bool, what: str = "append to it") -> list[str]:
    """Returns why a dimension of an input or output may not change without ``interface=True``."""
    if interface or not width.interface:
        return []
    return [f"{width.name}: is a dimension of an input or output; pass interface=True to {what}"]


def fixed(width: Width, new: int, verb: str) -> list[str]:
    """Returns why a width cannot change at all; empty if it can."""
    if not width.fixed:
        return []
    return [
        f"{width.name}: cannot {verb} from {width.size} to {new}: {width.fixed}; "
        f"it occurs in {_places(width)}"
    ]


def other_images(widths: Widths, shapes: Mapping[str, Any]) -> Iterator[str]:
    """Yields advice if a larger model seems to be for images or patches of another size."""
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
