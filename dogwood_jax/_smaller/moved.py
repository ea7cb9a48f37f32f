"""How far outputs move when units of a network go, by evaluation: ``moved``.

``judge`` asks of any weights. Here the network's own weights count, and only inputs are random: a
unit is dead because some of its weights are zero.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from math import inf, nan
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dogwood_jax._base.draw import random_keys
from dogwood_jax._judge.claim import Case
from dogwood_jax._judge.evaluate import Undecided, widened
from dogwood_jax._judge.judge import compared, finite, grown, rounded_in_one
from dogwood_jax._judge.run import run
from dogwood_jax._judge.samples import FAMILIES, Arguments, SampleFamily, Samples
from dogwood_jax._judge.watch import NUDGE, Watch

Values = Mapping[str, Any]

# How many of the rounding errors of its dtype a folded entry may be off by.
_ROUNDING_ERRORS = 2.0


@dataclass(frozen=True)
class _OfNetwork(Samples):
    """Samples whose variables are the network's own."""

    values: Values = field(default_factory=dict)

    def variables(
        self, arguments: Arguments, family: SampleFamily, *, new: bool = False
    ) -> dict[str, Any]:
        return {**self.values}


def moved(case: Case, variables: Values, folded: Values, rounded: Collection[str]) -> float | None:
    """Returns by how much outputs move, relative to their size (root mean squares).

    It is 0 if no entry of an output moves beyond rounding, for any kind of inputs; else it is that
    of the output that moves most, for the first kind of inputs that shows it. It is infinite if an
    output gets another shape, nan if it is not finite any more, and None if no sample shows it.

    Args:
        case: the network and the smaller one, with the growth that narrows.
        variables: the network's variables by path.
        folded: the same, after constant units were moved into biases. The growth narrows these.
        rounded: paths of these biases. They are rounded in their dtype.
    """
    before = {path: widened(array) for path, array in variables.items()}
    smaller = _narrowed(case, variables, folded, rounded)
    constants, shown = rounded_in_one(case), set[str]()
    for number, family in enumerate(FAMILIES):
        found = finite(case, _OfNetwork({}, seed=number, values=before), family)
        if found is None:
            continue
        _, _, inputs, old = found
        try:
            near = run(case.old, before, inputs, Watch(NUDGE, number))
            near_constants = run(case.old, before, inputs, Watch(NUDGE, number, constants))
            new, *others = (run(case.new, values, inputs, Watch()) for values in smaller)
        except Undecided:
            continue
        shares = []
        for output in case.outputs:
            ours, theirs = old[output.old], new[output.new]
            if np.shape(ours) != np.shape(theirs):
                return inf
            rounding = np.abs(near_constants[output.old] - ours) if constants else 0.0
            for other in others:
                rounding = np.maximum(rounding, np.abs(other[output.new] - theirs))
            counts, differs, _ = compared(ours, near[output.old], theirs, rounding)
            if differs.any():
                shares.append(_share(ours, theirs))
            elif counts.any() or not counts.size:
                shown.add(output.path)
        if shares:
            return nan if any(map(np.isnan, shares)) else max(shares)
    return 0.0 if shown.issuperset(output.path for output in case.outputs) and shown else None


def _zeros(array: Any) -> Any:
    if jnp.issubdtype(array.dtype, jax.dtypes.extended):
        return random_keys(jnp.zeros(2, jnp.uint32), array.shape, array.dtype)
    return np.zeros(array.shape, array.dtype)


def _narrowed(
    case: Case, variables: Values, folded: Values, rounded: Collection[str]
) -> list[dict[str, Any]]:
    """Returns the smaller network's variables, then again with other rounding of biases."""
    narrow, rng = grown(case), np.random.default_rng(0)
    fresh = {path: _zeros(array) for path, array in case.new.arguments if path is not None}
    exact = {path: widened(array) for path, array in folded.items()}
    several = [narrow(exact, fresh)]
    for _ in range(3 if rounded else 0):
        nudged = {**exact}
        for path in rounded:
            bias, by = exact[path], exact[path] - widened(variables[path])
            error = _ROUNDING_ERRORS * _eps(folded[path]) * (np.abs(bias) + np.abs(by))
            nudged[path] = bias + error * rng.choice([-1, 1], size=bias.shape)
        several.append(narrow(nudged, fresh))
    return several


def _eps(array: Any) -> float:
    return float(jnp.finfo(array.dtype).eps)  # type: ignore[no-untyped-call]


def _share(old: Any, new: Any) -> float:
    """Returns how much an output moves, relative to its size."""
    if old.dtype.kind not in "fc":
        return float(np.mean(old != new))
    finite = np.isfinite(old)
    moved = np.sqrt(np.mean(np.abs(np.where(finite, new - old, 0)) ** 2))
    size = np.sqrt(np.mean(np.abs(np.where(finite, old, 0)) ** 2))
    return float(moved / size) if size else inf
