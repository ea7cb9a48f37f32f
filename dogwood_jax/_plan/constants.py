"""The constants of the larger model, and whether a growth fits them."""

import math
from collections.abc import Iterator, Sequence

from dogwood_jax._growth.growth import Change
from dogwood_jax._plan.larger import Larger
from dogwood_jax._widths.widths import Widths


def missing_epsilons(widths: Widths, larger: Larger, changes: Sequence[Change]) -> Iterator[str]:
    """Yields the epsilons that the larger model lacks."""
    for number, n in larger.epsilons(widths, changes):
        yield (
            f"the larger model must add {number:.9g}, the epsilon of a norm, in {n} more "
            f"place{'s' * (n > 1)}; epsilons change only where the growth's notes say so"
        )


def constants(larger: Larger, change: Change, problems: list[str]) -> Iterator[str]:
    """Yields the constants that the larger model must have, where its own ones are not known."""
    problems += (
        f"{change.width}: in the larger model, {what} must be {_number(wanted)}, "
        f"but it is {_number(own)}"
        for what, wanted, own in unlike(larger, change)
    )
    alike: dict[float, list[str]] = {}
    for what, value, wanted, own in larger.constants(change):
        if own is None and wanted != value and larger.insertions:
            problems.append(
                f"{change.width}: {what} must be {_number(wanted)}, but the larger model has none "
                "that follows from the width"
            )
        elif own is None and wanted != value:
            alike.setdefault(wanted, []).append(what)
    for wanted, whats in alike.items():
        more = f" (and {len(whats) - 1} more such constants)" if len(whats) > 1 else ""
        other = "; if it has another, pass its function as target_apply=" * (larger.widths is None)
        must = f"in the larger model, {whats[0]} must be {_number(wanted)}"
        yield f"{change.width}: {must}{more}{other}"


def unlike(larger: Larger, change: Change) -> Iterator[tuple[str, float, float]]:
    """Yields the constants that the larger model has with another value than a growth needs."""
    for what, _, wanted, own in larger.constants(change):
        rounding = max(1e-5, change.recipe.rounding if change.recipe else 0.0)
        if own is not None and abs(own - wanted) > rounding * abs(wanted):
            yield what, wanted, own


def _number(number: float) -> str:
    """Writes a number, rounded where it is a short one that a program computed in float32."""
    short = f"{number:.6g}"
    return short if math.isclose(float(short), number, rel_tol=1e-7) else f"{number:.9g}"
