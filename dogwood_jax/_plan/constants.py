"""The constants of the larger model, and whether a growth fits them."""

import math
from collections.abc import Iterator, Sequence

from dogwood_jax._growth.growth import Change
from dogwood_jax._plan.comparison import is_close, is_constant, moves_of
from dogwood_jax._plan.larger import Larger
from dogwood_jax._widths.widths import Widths


def missing_epsilons(widths: Widths, larger: Larger, changes: Sequence[Change]) -> Iterator[str]:
    """Yields the epsilons that the larger model lacks."""
    for number, n in larger.epsilons(widths, changes):
        yield (
            f"the larger model must add {number:.9g}, the epsilon of a norm, in {n} more "
            f"place{'s' * (n > 1)}; epsilons change only where the growth's notes say so"
        )


def other_numbers(widths: Widths, larger: Larger, changes: Sequence[Change]) -> Iterator[str]:
    """Yields the numbers that a deeper model has in place of the network's own ones.

    Beside new layers, the two programs are not compared step by step. The numbers alone must show
    which of them follow from sizes. So a number follows in all its places, or in none.
    """
    if widths.network is None or not (larger.numbers or larger.kept):
        return
    trace = widths.network.traced.trace
    moves = moves_of(trace, changes)

    def is_move(number: float, its: float, rounding: float) -> bool:
        return any(
            is_close(abs(number), n) and is_close(its / number, ratio, rounding)
            for n, ratio in moves.values()
        )

    for pairs in larger.numbers:
        if any(is_constant(*pair, changes) or is_move(*pair) for pair in pairs):
            continue
        others = (f"{its:.6g} instead of {number:.6g}" for number, its, _ in pairs)
        what = " or ".join(others) or "one of them computes with a number that the other lacks"
        yield f"the larger model has other numbers than the network: {what}"
    for number, ratio in dict.fromkeys(moves.values()):
        places = {
            index
            for index, step in enumerate(trace.steps)
            if any(result.number is None for result in step.results)  # others hand it on
            for value in step.operands
            if value.number is not None and is_close(abs(value.number), number)
        }
        ratios = (moves.get(index, (number, 1.0))[1] for index in places)
        stays = any(is_close(abs(kept), number) for kept in larger.kept)
        if ratio != 1 and (stays or any(not is_close(other, ratio) for other in ratios)):
            yield (
                f"{number:.6g} must be {number * ratio:.6g} in the larger model where it follows "
                "from a size, and beside new layers it does not show where that is"
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
