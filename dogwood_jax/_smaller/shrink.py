"""Narrow a network to a budget: ``shrink``."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from dogwood_jax._base.arguments import (
    BY_WIDTH,
    NUMBER,
    VARIABLES,
    WIDTHS,
    expect,
    expect_given,
    expect_values,
)
from dogwood_jax._base.problems import listed
from dogwood_jax._base.trees import PyTree, leaves_by_path
from dogwood_jax._figures.cost import cost
from dogwood_jax._front.grow import grow
from dogwood_jax._front.plan import plan
from dogwood_jax._growth.growth import Growth
from dogwood_jax._smaller.narrow import without_units
from dogwood_jax._smaller.saliency import Loss, Scores, copies, refusal, saliency
from dogwood_jax._widths.widths import Widths

Kept = dict[str, list[int]]  # units that stay, by width


def shrink(
    variables: PyTree,
    widths: Widths,
    loss: Loss | None = None,
    *batch: Any,
    parameters: float | None = None,
    flops: float | None = None,
    scores: Mapping[str, Any] | None = None,
) -> tuple[PyTree, Growth]:
    """Narrows a network to a budget, by the units that it misses least.

    The units of all widths go in one order, the smallest score for what a unit costs first, until
    the network keeps within the budget. So widths whose units matter less give way by more, and
    layers that were alike come out with sizes of their own, ``growth.sizes``. At least one unit of
    each width stays. Units that are dead or copies of others go first and change nothing, see
    ``saliency``: a copy that stays takes over the outgoing weights of copies that go. Other units
    take with them what they contributed. Train the network on, best by distillation from the large
    one.

    The same scores shrink to several budgets: pass ``scores``. Widths without scores stay as they
    are.

    Args:
        variables: pytree of the network's arrays, with values; not under ``jax.jit``, because they
            decide the shapes that come out.
        widths: its widths, from ``trace`` or ``chain``.
        loss: function ``loss(variables, *batch)``, as for ``saliency``.
        *batch: arrays, or pytrees of them, whose first axis counts samples.
        parameters: the budget, as a share of the network's parameters, between 0 and 1.
        flops: the budget, as a share of its FLOPs, see ``cost``, in place of ``parameters``.
        scores: scores of units by width, ``[units]``, from ``saliency``, in place of a loss and a
            batch.

    Returns:
        The smaller variables, and the growth that narrows, ``plan(widths, keep=...)``: for
        ``grow_opt_state``, and with ``growth.sizes`` and ``growth.notes`` for the smaller model.

    Raises:
        TypeError: if arguments are of the wrong kind.
        ValueError: if a budget is missing, out of range or cannot be reached, scores do not fit the
            widths, and as ``saliency`` does.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import dogwood_jax as dw
        >>> def apply(params, x):
        ...     return jax.nn.relu(x @ params["up"]) @ params["down"]
        >>> def loss(params, x, y):
        ...     return jnp.mean((apply(params, x) - y) ** 2)
        >>> params = {"up": jnp.array([[1.0, 2.0, 3.0]]), "down": jnp.array([[3.0], [0.1], [4.0]])}
        >>> x, y = jnp.ones((5, 1)), jnp.zeros((5, 1))
        >>> widths = dw.trace(apply, params, x)
        >>> small, growth = dw.shrink(params, widths, loss, x, y, parameters=0.67)
        >>> growth, small["down"].ravel().tolist()
        (Growth(up: 3 -> 2), [3.0, 4.0])

    Reference:
        Molchanov et al., 2017, Pruning Convolutional Neural Networks for Resource Efficient
        Inference (one order of all units, by what a unit costs); Muralidharan et al., 2024, Compact
        Language Models via Pruning and Knowledge Distillation (healing by distillation).
    """
    expect("shrink(variables, widths)", variables=(VARIABLES, variables), widths=(WIDTHS, widths))
    expect_given(
        "shrink", parameters=(NUMBER, parameters), flops=(NUMBER, flops), scores=(BY_WIDTH, scores)
    )
    expect_values("shrink", leaves_by_path(variables), "pass trained weights")
    budgets = {"parameters": parameters, "flops": flops}
    given = [(name, float(share)) for name, share in budgets.items() if share is not None]
    if len(given) != 1:
        raise ValueError("shrink needs one budget, parameters= or flops=, such as parameters=0.67")
    if (scores is None) == (loss is None):
        raise ValueError("shrink needs either a loss and a batch, or scores=dw.saliency(...)")
    ((measure, share),) = given
    if not 0 < share < 1:
        raise ValueError(f"shrink: {measure} is the share that stays, between 0 and 1, got {share}")
    if scores is None:
        scores = saliency(variables, widths, loss, *batch)
    keep = _kept(widths, _checked(widths, scores), measure, share)
    return _narrowed(variables, widths, keep), plan(widths, keep=keep)


def _checked(widths: Widths, scores: Mapping[str, Any]) -> Scores:
    """Returns the scores, after checking that they fit the widths."""
    arrays = {name: np.asarray(own, np.float64) for name, own in scores.items()}
    problems = []
    for name, own in arrays.items():
        if name not in widths:
            problems.append(f"{name}: there is no such width")
        elif own.shape != (widths[name].size,):
            problems.append(f"{name}: has shape {own.shape}, expected ({widths[name].size},)")
        elif not np.isfinite(own).all():
            problems.append(f"{name}: is not finite")
        elif why := refusal(widths, widths[name]):
            problems.append(f"{name}: no unit of it can go: {why}; leave it out")
    if problems:
        raise ValueError(listed("shrink: scores do not fit the widths", problems))
    return arrays


# The budget ---------------------------------------------------------------------------------------


def _kept(widths: Widths, scores: Scores, measure: str, share: float) -> Kept:
    """Returns the units that stay of each width that gives some."""
    # Counting FLOPs takes longer, and without the function they are not counted.
    counted = widths if measure == "flops" else replace(widths, network=None)

    def spent(sizes: Mapping[str, int]) -> int:
        pair = getattr(cost(counted, sizes), measure)
        if pair is None:
            raise ValueError("shrink: FLOPs are known of traced widths only; trace the network")
        after: int = pair[1]
        return after

    whole = spent({})
    saved = {name: whole - spent({name: widths[name].size - 1}) for name in scores}
    names = [name for name in scores if saved[name] > 0]
    orders = {name: np.argsort(scores[name], kind="stable") for name in names}
    # In one order, the units of all widths but the last one of each.
    values = [scores[name][order[:-1]] / saved[name] for name, order in orders.items()]
    owners = np.repeat(np.arange(len(names)), [len(own) for own in values])
    owners = owners[np.argsort(np.concatenate([*values, []]), kind="stable")]

    def given(cuts: int) -> dict[str, int]:
        counts = np.bincount(owners[:cuts], minlength=len(names))
        return {name: int(n) for name, n in zip(names, counts, strict=True) if n}

    def left(cuts: int) -> int:
        return spent({name: widths[name].size - n for name, n in given(cuts).items()})

    most = share * whole
    if left(len(owners)) > most:
        stay = {name: refusal(widths, w) or "it has no scores" for name, w in widths.items()}
        raise ValueError(
            listed(
                f"shrink: cannot come to {share:.3g} of the {measure}: with one unit in each width "
                f"that can give some, {left(len(owners)) / whole:.3g} of them are left; these stay",
                [f"{name}: {why}" for name, why in stay.items() if name not in names],
            )
        )
    few, enough = 0, len(owners)  # cuts that do not do, and cuts that do
    while enough - few > 1:
        middle = (few + enough) // 2
        few, enough = (few, middle) if left(middle) <= most else (middle, enough)
    return {name: sorted(orders[name][n:].tolist()) for name, n in given(enough).items()}


def _narrowed(variables: PyTree, widths: Widths, keep: Kept) -> PyTree:
    """Returns the network with the units that stay, after merging copies that go into them."""
    also: Kept = {}  # units that stay until they are merged
    merge: dict[str, list[list[int]]] = {}
    for name, units in keep.items():
        stay = set(units)
        for group in copies(variables, widths[name]):
            into, gone = [u for u in group if u in stay], [u for u in group if u not in stay]
            if into and gone:
                merge.setdefault(name, []).append([into[0], *gone])
                also.setdefault(name, []).extend(gone)
    first = {name: sorted([*units, *also.get(name, [])]) for name, units in keep.items()}
    growth = plan(widths, keep=first)
    narrowed = without_units(variables, growth)
    if not merge:
        return narrowed
    place = {name: {unit: n for n, unit in enumerate(units)} for name, units in first.items()}
    groups = {
        name: [[place[name][unit] for unit in group] for group in own]
        for name, own in merge.items()
    }
    return grow(narrowed, plan(growth.after, merge=groups))
