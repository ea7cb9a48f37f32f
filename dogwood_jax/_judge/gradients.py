"""Whether a network that has grown goes on learning: ``check_gradients``.

Gradients must be finite where those of the old network are, and new units must get some. They may
get the first one after a step, because two layers of zeros learn one after the other.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np

from dogwood_jax._growth.growth import Change, Growth
from dogwood_jax._judge.claim import Case, Side
from dogwood_jax._judge.evaluate import evaluate
from dogwood_jax._widths.layout import units_along
from dogwood_jax._widths.reasons import kind_of

Arrays = Mapping[str, Any]
_ROLES = ("incoming", "outgoing", "both")
_STEP = 0.1


Sample = tuple[Arrays, Arrays, Sequence[Any], Sequence[Any]]


def check_gradients(case: Case, samples: Iterable[Sample]) -> str | None:
    """Returns what is wrong with the gradients of the larger network, or None.

    Args:
        case: the claim.
        samples: variables of both networks and inputs of both. Gradients must be finite in the
            first one, and new units get some in any of them: a few may be behind a relu that is
            zero for all inputs.
    """
    after, names = _gradients(case.new), None
    if after is None:  # a loop that cannot be differentiated, as those of ``while``
        return None
    for old, new, ours, theirs in samples:
        found = after(new, theirs)
        if names is None:
            bad = [path for path, grad in found.items() if not np.isfinite(grad).all()]
            if bad and _is_finite(case.old, old, ours):
                return f"the gradient of {bad[0]} is not finite where that of the network is"
        still = {*_still(case.growth, found)}
        if still:
            moved = {
                p: np.asarray(new[p]) - _STEP * found[p] if p in found else new[p] for p in new
            }
            still &= {*_still(case.growth, after(moved, theirs))}
        names = still if names is None else names & still
        if not names:
            return None
    return (
        f"new units of {min(names)} get no gradient, so they would never learn" if names else None
    )


def _is_finite(side: Side, variables: Arrays, inputs: Sequence[Any]) -> bool:
    before = _gradients(side)
    return before is None or all(
        np.isfinite(grad).all() for grad in before(variables, inputs).values()
    )


def _gradients(side: Side) -> Callable[[Arrays, Sequence[Any]], dict[str, Any]] | None:
    """Returns the gradient of a random sum of all outputs, as a function for NumPy's arrays."""
    run = jex.jaxpr_as_fun(side.jaxpr)
    learned = [
        place
        for place, (path, array) in enumerate(side.arguments)
        if path is not None and jnp.issubdtype(array.dtype, jnp.floating)
    ]

    def loss(weights: Sequence[Any], arguments: Sequence[Any]) -> Any:
        arguments = [*arguments]
        for place, weight in zip(learned, weights, strict=True):
            arguments[place] = weight
        rng, whole = np.random.default_rng(0), jnp.zeros(())
        for result in run(*arguments):
            if jnp.issubdtype(result.dtype, jnp.inexact):
                signs = rng.normal(size=result.shape).astype(np.float32)
                whole = whole + jnp.sum(jnp.real(result).astype(jnp.float32) * signs)
        return whole

    structs = [array for _, array in side.arguments]
    try:
        jaxpr = jax.make_jaxpr(jax.grad(loss))([structs[place] for place in learned], structs)
    except (TypeError, ValueError, NotImplementedError):
        return None

    def gradients(variables: Arrays, inputs: Sequence[Any]) -> dict[str, Any]:
        left = iter(inputs)
        arguments = [next(left) if p is None else variables[p] for p, _ in side.arguments]
        results = evaluate(jaxpr, [*(arguments[place] for place in learned), *arguments])
        paths = [side.arguments[place][0] for place in learned]
        return {path: result for path, result in zip(paths, results, strict=True) if path}

    return gradients


def _still(growth: Growth, gradients: Arrays) -> Iterator[str]:
    """Yields the widths whose new units get no gradient where old units get some."""
    for change in growth.changes:
        if change.new <= change.old or not _should_learn(growth, change):
            continue
        reaches = {"old": False, "new": False}
        for leaf in growth.after.leaves:
            grad = gradients.get(growth.place(leaf.path))
            if grad is None or np.shape(grad) != leaf.shape:
                continue
            for axis, layout in enumerate(leaf.axes):
                units = units_along(layout, change.width, _ROLES)
                for which, chosen in (
                    ("old", (units >= 0) & (units < change.old)),
                    ("new", units >= change.old),
                ):
                    if chosen.any():
                        part = np.take(grad, np.flatnonzero(chosen), axis)
                        reaches[which] |= bool(np.any(part != 0))
        if reaches["old"] and not reaches["new"]:
            yield change.width


def _should_learn(growth: Growth, change: Change) -> bool:
    """Whether new units are to learn, as far as samples can show it.

    Samples hold no ids of new units. Where units never learn, a note has said so.
    """
    width = growth.widths[change.width]
    is_told = change.strategy.incoming == change.strategy.outgoing == "zero"
    is_told |= change.strategy.is_gated  # of equal copies, only the first may be chosen
    is_told |= any(kind_of(note) == "silent" for note in width.notes)
    is_read = any(place.role != "incoming" for place in width.occurrences)
    return is_read and not (width.interface or is_told)
