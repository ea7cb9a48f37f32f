"""Score units or layers by what a network would lose without them: ``saliency``."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

from dogwood_jax._base.arguments import (
    BOOLEAN,
    VARIABLES,
    WIDTHS,
    ArgumentKind,
    expect,
    expect_arrays,
    expect_given,
    expect_scalar,
    expect_values,
)
from dogwood_jax._base.failed_calls import explaining
from dogwood_jax._base.trees import PyTree, is_array, leaves_by_path, rebuilt
from dogwood_jax._front.loss_first import loss_first
from dogwood_jax._front.plan import plan
from dogwood_jax._front.smaller.dead import find_dead
from dogwood_jax._front.smaller.layer_scores import layer_scores
from dogwood_jax._front.smaller.symmetry import find_symmetric, weights_of
from dogwood_jax._growth.by_layer import stack_of
from dogwood_jax._plan.own_function import Rejected, own_program
from dogwood_jax._plan.searching import for_removal
from dogwood_jax._plan.silence import SEEN, heard
from dogwood_jax._widths.layout import units_along
from dogwood_jax._widths.widths import Width, Widths

Way = Literal["first_order", "activity", "norm"]
Scores = dict[str, NDArray[np.float64]]
Loss = Callable[..., Any]

_NO_BATCH = (
    "saliency: {} needs a loss and a batch; pass them both, saliency(variables, widths, loss, x, y)"
)
_LOSS = ArgumentKind("a function, loss(variables, *batch)", callable)
_WAY = ArgumentKind(f"one of {get_args(Way)}", lambda value: value in get_args(Way))


@loss_first
def saliency(
    variables: PyTree,
    widths: Widths,
    loss: Loss | None = None,
    *batch: Any,
    by: Way = "first_order",
    layers: bool = False,
) -> Scores:
    """Scores each unit, or each layer, by what a network would lose without it.

    Scores are plain data: compute them once and pass them to ``shrink`` for several budgets, leave
    out widths that should stay, or add up the scores of several batches. By default, scores
    estimate how much the loss rises without the unit, up to a common factor. These scores can be
    compared between widths, and so can activities. Norms can be compared within a width at best.

    ``by`` selects the score of a unit:

    - ``"first_order"``: the mean over samples of the squared derivative of a sample's loss by a
      factor on all outgoing weights of the unit. For the loss of the whole batch, this derivative
      vanishes once training has converged; its square by sample does not, and approximates the
      curvature.
    - ``"activity"``: the mean square of the unit's contribution to the outputs, see ``activity``,
      estimated by a random projection of the outputs for each sample. It runs the traced function
      on the first arrays of the batch. The loss is not used.
    - ``"norm"``: the squared norm of all weights of the unit. It needs neither loss nor batch.

    Units that can be removed at no cost always have the score zero: dead units, see ``find_dead``,
    and all but the first of units that compute the same function, see ``find_symmetric``. The first
    unit has the score of the whole group, because it takes over their outgoing weights. In a stack,
    this holds for units that are dead or equal in all layers.

    Layers are scored by removing them: the score of a layer is how much the loss of the batch rises
    without it. Layers have numbers in their names, such as ``layers_0`` and ``layers_1``, or are
    stacked arrays over which a loop runs. A few samples are enough.

    Args:
        variables: pytree of the network's arrays, with values.
        widths: its widths, from ``trace`` or ``chain``.
        loss: function ``loss(variables, *batch)`` that returns a scalar. It may also come first, as
            functions do: ``saliency(loss, variables, widths, *batch)``.
        *batch: arrays, or pytrees of them. The first axis counts samples. For units, the loss is
            called with one sample at a time, arrays ``[1, ...]``.
        by: how to score units.
        layers: whether to score layers in place of units. Needs a loss and a batch.

    Returns:
        The scores by name of the width, float64 ``[units]``, or ``[layers, units]`` for a stack
        over which a loop runs; or by name of the layers, as in ``plan(keep=)``, float64
        ``[layers]``. Layers without which the loss cannot be computed are left out. So are widths
        whose units cannot be removed one by one: widths that are fixed, inputs or outputs, under a
        norm without an exact recipe, or that the traced function can only change together with
        other widths.

    Raises:
        TypeError: if arguments are of the wrong kind.
        ValueError: if the variables are of another network, the batch is missing or its arrays do
            not hold equally many samples, or the loss is not a scalar or not finite.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import dogwood_jax as dw
        >>> def apply(params, x):
        ...     return jax.nn.relu(x @ params["up"]) @ params["down"]
        >>> def loss(params, x, y):
        ...     return jnp.mean((apply(params, x) - y) ** 2)
        >>> params = {"up": jnp.ones((1, 3)), "down": jnp.array([[3.0], [0.0], [4.0]])}
        >>> x, y = jnp.ones((5, 1)), jnp.zeros((5, 1))
        >>> widths = dw.trace(apply, params, x)
        >>> dw.saliency(params, widths, by="norm")["up"].round(1).tolist()
        [53.1, 0.0, 0.0]

    Reference:
        Molchanov et al., 2019, Importance Estimation for Neural Network Pruning (the square of the
        summed products of weights and gradients); Theis et al., 2018, Faster Gaze Prediction With
        Dense Networks and Fisher Pruning (why its mean over samples estimates the loss).
    """
    expect("saliency(variables, widths)", variables=(VARIABLES, variables), widths=(WIDTHS, widths))
    expect_given("saliency", loss=(_LOSS, loss), by=(_WAY, by), layers=(BOOLEAN, layers))
    leaves = leaves_by_path(variables)
    expect_values("saliency", leaves, "pass trained weights")
    expect_arrays("saliency", "variables", variables, leaves, [leaf.path for leaf in widths.leaves])
    if layers:
        if loss is None or not batch:
            raise ValueError(_NO_BATCH.format("layers=True"))
        return layer_scores(variables, widths, loss, batch)
    removable = [width for width in widths.values() if refusal(widths, width) is None]
    idle = {width.name: find_dead(variables, widths, width.name) for width in removable}
    groups = {width.name: copies(variables, widths, width) for width in removable}
    if by == "norm":
        scores = {w.name: _norms(leaves, widths, w) for w in removable}
    elif by == "activity":
        scores = _activities(variables, widths, removable, batch)
    else:
        scores = _first_order(variables, widths, removable, loss, batch)
    for name, own in scores.items():
        if not np.isfinite(own).all():
            raise ValueError(
                f"saliency: scores of {name} are not finite, because weights or gradients are not"
            )
        own[..., list(idle[name])] = 0
        for first, *others in groups[name]:
            own[..., first] = np.sqrt(own[..., [first, *others]]).sum(axis=-1) ** 2
            own[..., others] = 0
    return scores


# Removable units ----------------------------------------------------------------------------------


def refusal(widths: Widths, width: Width) -> str | None:
    """Returns the reason why units of a width cannot be removed by their scores, or None."""
    if width.fixed:
        return width.fixed
    if width.interface:
        return "it is a dimension of an input or output"
    if width.size < 2:
        return "it has a single unit"
    if heard(widths, [width.name]) and for_removal(widths, width.name) is None:
        return f"removing a unit changes the other units: {SEEN}"
    if widths.network is not None:
        own = own_program(widths, {width.name: 2 * width.size}, in_module=False)
        if isinstance(own, Rejected) and own.follows_shapes:
            return f"other widths must change together with it: {own.reason}"
    return None


def copies(variables: PyTree, widths: Widths, width: Width) -> tuple[tuple[int, ...], ...]:
    """Returns groups of units that ``merge_symmetric`` can merge without changing outputs."""
    groups = () if heard(widths, [width.name]) else find_symmetric(variables, width, outgoing=False)
    if groups:
        try:
            plan(widths, merge={width.name: groups})
        except ValueError:
            return ()
    return groups


# Ways to score ------------------------------------------------------------------------------------


def _first_order(
    variables: PyTree,
    widths: Widths,
    removable: list[Width],
    loss: Loss | None,
    batch: tuple[Any, ...],
) -> Scores:
    """Returns the mean square of the effect that each unit has on the loss of a sample."""
    if loss is None or not batch:
        raise ValueError(_NO_BATCH.format("by='first_order'") + "; by='norm' needs neither")
    return _mean_squares(variables, widths, removable, loss, batch)


def _activities(
    variables: PyTree, widths: Widths, removable: list[Width], batch: tuple[Any, ...]
) -> Scores:
    """Returns the mean square of the effect that each unit has on the outputs for a sample.

    The square of the effect on a random projection of the outputs is, on average, the sum of the
    squares of the effects on all outputs.
    """
    network = widths.network
    if network is None:
        raise ValueError("saliency: by='activity' runs the traced function; trace the network")
    inputs = batch[: len(network.inputs)]
    if len(inputs) < len(network.inputs) or not inputs:
        raise ValueError(
            f"saliency: by='activity' needs a batch that begins with the {len(network.inputs)} "
            f"inputs of the traced function, got {len(inputs)}"
        )
    _expect_samples(inputs)

    def projected(variables: PyTree, key: Array, *inputs: Any) -> Any:
        total: Any = 0.0
        for number, output in enumerate(jax.tree.leaves(network.apply(variables, *inputs))):
            if jnp.issubdtype(output.dtype, jnp.inexact):
                own = jax.random.fold_in(key[0], number)
                output = _wide(output)
                total += jnp.real(
                    jnp.vdot(jax.random.normal(own, output.shape, output.dtype), output)
                )
        return total

    count = len(jax.tree.leaves(inputs)[0])
    keys = jax.random.split(jax.random.key(0), count)
    return _mean_squares(variables, widths, removable, projected, (keys, *inputs))


def _mean_squares(
    variables: PyTree,
    widths: Widths,
    removable: list[Width],
    loss: Loss,
    batch: tuple[Any, ...],
) -> Scores:
    """Returns each unit's mean squared effect on the loss of a sample, at first order."""
    samples = jax.tree.map(jnp.asarray, batch)
    _expect_samples(samples)
    structure, leaves = jax.tree.structure(variables), leaves_by_path(variables)
    leaves = {p: jnp.asarray(leaf) if is_array(leaf) else leaf for p, leaf in leaves.items()}
    places = {width.name: _read_at(width) for width in removable}
    layers = {width.name: _layers_of(widths, width) for width in removable}
    arrays = {path: leaves[path] for along in places.values() for path, *_ in along}
    if whole := [p for p, a in arrays.items() if not jnp.issubdtype(a.dtype, jnp.inexact)]:
        raise ValueError(f"saliency: integers have no gradient: {', '.join(whole)}; use by='norm'")

    def loss_of(arrays: Mapping[str, Array], sample: Any) -> Any:
        one = jax.tree.map(lambda array: array[None], sample)
        return loss(rebuilt(structure, {**leaves, **arrays}), *one)

    def squares(arrays: Mapping[str, Array], sample: Any) -> tuple[Array, dict[str, Array]]:
        value, slopes = jax.value_and_grad(loss_of)(arrays, sample)
        effects = {path: jnp.real(_wide(arrays[path]) * _wide(slopes[path])) for path in arrays}
        return value, {
            w.name: _by_unit(effects, w, places[w.name], layers[w.name]) ** 2 for w in removable
        }

    first = jax.tree.map(lambda array: array[0], samples)
    with explaining(
        "saliency(variables, widths, loss, *batch)",
        "loss",
        loss,
        variables,
        batch,
        variables_are="variables",
    ):
        value = jax.eval_shape(loss_of, arrays, first)
    expect_scalar("saliency", value)
    values, found = jax.jit(
        lambda arrays, samples: jax.lax.map(lambda sample: squares(arrays, sample), samples)
    )(arrays, samples)
    if not (finite := np.isfinite(np.asarray(values, float))).all():
        number = int(np.argmin(finite))
        raise ValueError(f"saliency: the loss of sample {number} is {values[number]}, not finite")
    return {name: np.asarray(of, np.float64).mean(axis=0) for name, of in found.items()}


def _expect_samples(batch: tuple[Any, ...]) -> None:
    """Raises if the arrays of a batch do not hold equally many samples."""
    shapes = [array.shape for array in jax.tree.leaves(batch)]
    if not shapes or len({shape[:1] for shape in shapes}) > 1 or () in shapes or (0,) in shapes:
        raise ValueError(
            "saliency: the first axis of each array of the batch must count the same samples, got "
            f"shapes {shapes}; put arguments without samples, such as a key, into the loss: "
            "lambda variables, x, y: loss(variables, x, y, key)"
        )


def _wide(array: Array) -> Array:
    return array.astype(jnp.promote_types(array.dtype, jnp.float32))


def _read_at(width: Width) -> list[tuple[str, int, NDArray[np.int_]]]:
    """Returns paths and axes where a width is read, with the unit at each position or -1.

    If no array reads the units, this returns the arrays that write them. For example, a unit of a
    key has no effect without the unit of the query.
    """
    for roles in (("outgoing", "both"), ("incoming",)):
        places = ((o.path, o.axis, o.layout) for o in width.occurrences if o.role in roles)
        found = dict.fromkeys(places)  # each place once, even if it has units in both roles
        if found:
            break
    return [(path, axis, units_along(layout, width.name, roles)) for path, axis, layout in found]


def _by_unit(
    effects: Mapping[str, Array],
    width: Width,
    places: list[tuple[str, int, NDArray[np.int_]]],
    layers: Mapping[str, int],
) -> Array:
    """Returns the sums of effects of a width's weights by unit, ``[units]`` or ``[layers, units]``.

    Args:
        effects: the effects, by path.
        width: the width.
        places: the places where it is read, from ``_read_at``.
        layers: for units of a stack, the axis of each array that counts layers.
    """
    total: Any = 0
    for path, axis, units in places:
        kept = [layers[path], axis] if layers else [axis]
        along = jnp.moveaxis(effects[path], kept, [*range(len(kept))])
        along = jnp.sum(along, [*range(len(kept), along.ndim)])
        numbers = jnp.where(units < 0, width.size, units)
        by_unit = jax.ops.segment_sum(jnp.moveaxis(along, -1, 0), numbers, width.size + 1)
        total = total + jnp.moveaxis(by_unit[: width.size], 0, -1)
    return jnp.asarray(total)


def _layers_of(widths: Widths, width: Width) -> Mapping[str, int]:
    """Returns the axis that counts layers in each array of a width; empty outside of stacks."""
    stack = stack_of(widths, width)
    return {} if stack is None else stack[1]


def _norms(leaves: Mapping[str, Any], widths: Widths, width: Width) -> NDArray[np.float64]:
    """Returns the squared norm of all weights of each unit."""
    layers = _layers_of(widths, width)
    if not layers:
        squares: NDArray[np.float64] = np.sum(weights_of(leaves, width) ** 2, axis=1)
        return squares
    one = replace(
        width,
        occurrences=tuple(
            replace(place, axis=place.axis - (layers[place.path] < place.axis))
            for place in width.occurrences
        ),
    )
    of_layers = zip(*(np.moveaxis(np.asarray(leaves[p]), a, 0) for p, a in layers.items()))
    rows = (weights_of(dict(zip(layers, arrays, strict=True)), one) for arrays in of_layers)
    return np.stack([np.sum(own**2, axis=1) for own in rows])
