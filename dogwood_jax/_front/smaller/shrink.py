"""Remove units to reach a budget, or remove layers: ``shrink``."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from dogwood_jax._base.arguments import (
    BOOLEAN,
    BY_WIDTH,
    NUMBER,
    VARIABLES,
    WIDTHS,
    ArgumentKind,
    expect,
    expect_given,
    expect_values,
    is_integer,
)
from dogwood_jax._base.problems import listed
from dogwood_jax._base.trees import PyTree, leaves_by_path
from dogwood_jax._front.counts import Counts
from dogwood_jax._front.grow import grow
from dogwood_jax._front.loss_first import loss_first
from dogwood_jax._front.plan import plan
from dogwood_jax._front.smaller.narrow import without_units
from dogwood_jax._front.smaller.saliency import Loss, Scores, copies, refusal, saliency
from dogwood_jax._growth.by_layer import stack_of
from dogwood_jax._growth.growth import Growth
from dogwood_jax._plan.depth.removed import layers_of
from dogwood_jax._program.dims import LAYERS
from dogwood_jax._widths.widths import Width, Widths, no_such


def together(widths: Widths, names: Iterable[str]) -> list[tuple[str, ...]]:
    """Returns names of widths in groups: widths that differ only by the layer are in one group.

    For example, the hidden units of ``layers_0``, ``layers_1`` and so on. Each of these widths lies
    in a single layer, at the same places, and has the same size.

    Args:
        widths: the widths.
        names: names of the widths to group.
    """
    every = [*layers_of(widths).values()]
    found: dict[Any, list[str]] = {}

    def place_in(path: str) -> tuple[str, int] | None:
        """Returns the path of an array in its layer, and the layer; None outside of layers."""
        for layers in every:
            if (layer := layers.layer_of(path)) is not None:
                return layers.renamed(path, 0), layer
        return None

    def kind(width: Width) -> Any:
        places = [(place_in(o.path), o.axis, o.role) for o in width.occurrences]
        inside = [(*place, axis, role) for place, axis, role in places if place is not None]
        if len({layer for _, layer, _, _ in inside}) != 1 or len(inside) < len(places):
            return width.name
        return width.size, tuple((path, axis, role) for path, _, axis, role in inside)

    for name in names:
        found.setdefault(kind(widths[name]), []).append(name)
    return [tuple(group) for group in found.values()]


Kept = dict[str, list[Any]]  # by width, the units that stay; a list for each layer of a stack

_LAYERS = ArgumentKind(
    "a number of layers, or numbers by name of the layers",
    lambda value: is_integer(value) or isinstance(value, Mapping),
)
_POSITIVE = ArgumentKind("a positive integer", lambda value: is_integer(value) and value > 0)


@loss_first
def shrink(
    variables: PyTree,
    widths: Widths,
    loss: Loss | None = None,
    *batch: Any,
    parameters: float | None = None,
    flops: float | None = None,
    active_parameters: float | None = None,
    memory: float | None = None,
    layers: int | Mapping[str, int] | None = None,
    scores: Mapping[str, Any] | None = None,
    alike: bool = True,
    multiple_of: int = 1,
) -> tuple[PyTree, Growth]:
    """Removes the units or layers whose absence raises the loss least.

    With a budget of parameters, FLOPs or memory, ``shrink`` removes units. It ranks the units of
    all widths by their score divided by their cost, and removes the lowest until the network is
    within the budget. So widths whose units matter less lose more units. Corresponding widths of
    layers that are alike lose equally many units, though not the same ones, because most
    configurations hold one size for all layers. The same holds for layers of a stack. With
    ``alike=False``, layers outside of stacks get different sizes, ``growth.sizes``. At least one
    unit of each width stays. Units that are dead or copies of others are removed first and change
    nothing, see ``saliency``: a copy that stays takes over the outgoing weights of removed copies.
    Other units lose their contribution to outputs. Train the network on, best by distillation from
    the large one.

    With ``layers``, ``shrink`` removes the layers without which the loss rises least, see
    ``saliency``. The smaller model has fewer layers, and needs another function if the network
    states their number.

    To shrink to several budgets, compute scores once and pass ``scores``. Widths without scores
    stay as they are.

    Args:
        variables: pytree of the network's arrays, with values; not under ``jax.jit``, because
            values determine the new shapes.
        widths: its widths, from ``trace`` or ``chain``.
        loss: function ``loss(variables, *batch)``, as for ``saliency``; it may also come first.
        *batch: arrays, or pytrees of them, whose first axis counts samples.
        parameters: the budget, as a share of the network's parameters, between 0 and 1.
        flops: the budget as a share of the network's FLOPs, in place of ``parameters``. ``cost``
            defines this and the next two measures.
        active_parameters: the budget as a share of the parameters that a token uses.
        memory: the budget as a share of the bytes of parameters and of cached keys and values.
        layers: how many layers stay, in place of a budget: a number, or numbers by name of the
            layers if there are several kinds, ``{"encoder/layers": 4}``.
        scores: scores from ``saliency``, in place of a loss and a batch: of units by width, or of
            layers for ``layers``.
        alike: whether corresponding widths of layers that are alike keep one size.
        multiple_of: new sizes are multiples of this number, such as 256.

    Returns:
        The smaller variables, and the growth that narrows, ``plan(widths, keep=...)``. Use the
        growth for ``grow_opt_state``; ``growth.sizes`` and ``growth.notes`` describe the smaller
        model.

    Raises:
        TypeError: if arguments are of the wrong kind.
        ValueError: if a budget is missing, out of range or cannot be reached, if scores do not fit
            the widths, or if ``saliency`` raises.

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
        "shrink",
        parameters=(NUMBER, parameters),
        flops=(NUMBER, flops),
        active_parameters=(NUMBER, active_parameters),
        memory=(NUMBER, memory),
        layers=(_LAYERS, layers),
        scores=(BY_WIDTH, scores),
        alike=(BOOLEAN, alike),
        multiple_of=(_POSITIVE, multiple_of),
    )
    expect_values("shrink", leaves_by_path(variables), "pass trained weights")
    budgets = {"parameters": parameters, "flops": flops}
    budgets |= {"active_parameters": active_parameters, "memory": memory}
    given = [(name, float(share)) for name, share in budgets.items() if share is not None]
    if len(given) + (layers is not None) != 1:
        raise ValueError(
            "shrink needs one budget, parameters=, flops=, active_parameters= or memory=, such as "
            "parameters=0.67; or layers=, how many layers stay"
        )
    if (scores is None) == (loss is None):
        raise ValueError("shrink needs either a loss and a batch, or scores=dw.saliency(...)")
    if scores is None:
        scores = saliency(variables, widths, loss, *batch, layers=layers is not None)
    if layers is not None:
        growth = plan(widths, keep=_kept_layers(widths, scores, layers))
        return grow(variables, growth), growth
    ((measure, share),) = given
    if not 0 < share < 1:
        raise ValueError(f"shrink: {measure} must be a share between 0 and 1, got {share}")
    scores = _checked(widths, scores)
    groups = together(widths, scores) if alike else [(name,) for name in scores]
    keep = _kept(widths, scores, groups, measure, share, multiple_of)
    return _narrowed(variables, widths, keep), plan(widths, keep=keep)


def _kept_layers(
    widths: Widths, scores: Mapping[str, Any], layers: int | Mapping[str, int]
) -> Kept:
    """Returns the layers with the highest scores, which stay."""
    numbered = layers_of(widths)
    counts = {name: len(its) for name, its in numbered.items()} | widths.sizes
    every = {name: np.asarray(own, np.float64) for name, own in scores.items()}
    if of_units := [name for name in every if name in widths and widths[name].fixed != LAYERS]:
        raise ValueError(
            f"shrink: layers= goes with scores of layers, dw.saliency(..., layers=True); "
            f"{of_units[0]} is a width of units"
        )
    if not isinstance(layers, Mapping):
        if len({tuple(own.tolist()) for own in every.values()}) != 1:
            raise ValueError(
                f"shrink: scores are of these layers: {', '.join(every) or 'none'}; pass how many "
                "of each stay, layers={name: number}"
            )
        layers = dict.fromkeys(every, layers)
    problems = []
    for name, count in layers.items():
        if name not in every:
            problems.append(f"{name}: {no_such('layers', name, every)}")
        elif every[name].shape != (counts.get(name),) or not np.isfinite(every[name]).all():
            problems.append(
                f"{name}: expected a finite score for each of {counts.get(name)} layers, got shape "
                f"{every[name].shape}"
            )
        elif not (is_integer(count) and 0 < count <= counts[name]):
            problems.append(f"{name}: between 1 and {counts[name]} layers can stay, got {count!r}")
    if problems:
        raise ValueError(listed("shrink: cannot remove layers", problems))
    return {
        name: np.sort(np.argsort(-every[name], kind="stable")[:count]).tolist()
        for name, count in layers.items()
    }


def _checked(widths: Widths, scores: Mapping[str, Any]) -> Scores:
    """Returns the scores, after checking that they fit the widths."""
    arrays = {name: np.asarray(own, np.float64) for name, own in scores.items()}
    problems = []
    for name, own in arrays.items():
        if name not in widths:
            problems.append(f"{name}: there is no such width")
        elif own.shape not in (shapes := _shapes(widths, name)):
            expected = " or ".join(map(str, shapes))
            problems.append(f"{name}: has shape {own.shape}, expected {expected}")
        elif not np.isfinite(own).all():
            problems.append(f"{name}: is not finite")
        elif why := refusal(widths, widths[name]):
            problems.append(f"{name}: its units cannot be removed: {why}; leave it out")
    if problems:
        raise ValueError(listed("shrink: scores do not fit the widths", problems))
    return arrays


def _shapes(widths: Widths, name: str) -> list[tuple[int, ...]]:
    """Returns the shapes that scores of a width may have."""
    size, stack = widths[name].size, stack_of(widths, widths[name])
    return [(size,)] if stack is None else [(widths[stack[0]].size, size), (size,)]


# The budget ---------------------------------------------------------------------------------------


def _kept(
    widths: Widths,
    scores: Scores,
    groups: Sequence[tuple[str, ...]],
    measure: str,
    share: float,
    multiple_of: int,
) -> Kept:
    """Returns the units that stay, for each width that loses some.

    Args:
        widths: the widths.
        scores: the scores of units.
        groups: names of widths that keep one size.
        measure: the measure of the budget, such as ``"parameters"``.
        share: the share that stays.
        multiple_of: new sizes are multiples of this number.
    """
    if measure != "parameters" and widths.network is None:
        raise ValueError(f"shrink: {measure} is known only for traced widths; trace the network")
    spent = getattr(Counts(widths), measure)
    whole = spent({})
    orders = {name: np.argsort(own, axis=-1, kind="stable") for name, own in scores.items()}
    ascending = {name: np.sort(own, axis=-1) for name, own in scores.items()}
    steps: list[list[int]] = []  # for each group, its sizes after each cut
    cuts: list[tuple[float, int]] = []  # the loss per saving of each cut, and its group
    for number, names in enumerate(groups):
        size = widths[names[0]].size
        saved = whole - spent(dict.fromkeys(names, size - 1))
        steps.append([*range((size - 1) // multiple_of * multiple_of, 0, -multiple_of)])
        before = 0
        for left in steps[-1] if saved > 0 else ():
            gone = (ascending[name][..., before : size - left].sum() for name in names)
            cuts.append((sum(gone) / (saved * (size - left - before)), number))
            before = size - left
    owners = [number for _, number in sorted(cuts, key=lambda cut: cut[0])]

    def sizes(count: int) -> dict[str, int]:
        """Returns the sizes after the first cuts."""
        taken = np.bincount(owners[:count], minlength=len(groups))
        return {
            name: steps[number][n - 1]
            for number, n in enumerate(taken.tolist())
            if n
            for name in groups[number]
        }

    most = share * whole
    if spent(sizes(len(owners))) > most:
        giving = {name for number in {*owners} for name in groups[number]}
        stay = {name: refusal(widths, w) or "it has no scores" for name, w in widths.items()}
        units = "one unit" if multiple_of == 1 else f"{multiple_of} units"
        raise ValueError(
            listed(
                f"shrink: cannot reach {share:.3g} of the {measure}: with {units} left in each "
                f"width that can shrink, {spent(sizes(len(owners))) / whole:.3g} remains; "
                "these widths stay",
                [f"{name}: {why}" for name, why in stay.items() if name not in giving],
            )
        )
    few, enough = 0, len(owners)  # numbers of cuts: not enough, and enough
    while enough - few > 1:
        middle = (few + enough) // 2
        few, enough = (few, middle) if spent(sizes(middle)) <= most else (middle, enough)
    return {
        name: np.sort(orders[name][..., widths[name].size - size :], axis=-1).tolist()
        for name, size in sizes(enough).items()
    }


def _narrowed(variables: PyTree, widths: Widths, keep: Kept) -> PyTree:
    """Returns the network with the units that stay, after merging removed copies into them."""
    also: Kept = {}  # removed units that are kept until they are merged
    merge: dict[str, list[list[int]]] = {}
    for name, units in keep.items():
        if np.ndim(units) > 1:  # different units in each layer
            continue
        stay = set(units)
        for group in copies(variables, widths, widths[name]):
            into, gone = [u for u in group if u in stay], [u for u in group if u not in stay]
            if into and gone:
                merge.setdefault(name, []).append([into[0], *gone])
                also.setdefault(name, []).extend(gone)
    first = {
        name: sorted([*units, *also[name]]) if name in also else units
        for name, units in keep.items()
    }
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
