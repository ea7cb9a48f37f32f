"""An optimizer that renews units that learn nothing: ``recycling``."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from dogwood_jax._base.arguments import (
    BY_WIDTH,
    INTEGER,
    KEY,
    NUMBER,
    OPTIMIZER,
    WIDTHS,
    ArgumentKind,
    expect,
    expect_given,
)
from dogwood_jax._base.described import described
from dogwood_jax._base.problems import listed
from dogwood_jax._base.trees import (
    PyTree,
    is_traced,
    leaves_by_path,
    only_data,
    struct_of,
)
from dogwood_jax._front.renew import never_renewed, renew
from dogwood_jax._front.smaller.symmetry import expect_arrays_of, hidden
from dogwood_jax._growth.explicit_axes import explicit_shardings, with_automatic_axes
from dogwood_jax._growth.moves import along
from dogwood_jax._growth.renewed import new_along
from dogwood_jax._optimizer.growable import growable, has_growable
from dogwood_jax._plan.depth.layers import axis_of_layers
from dogwood_jax._widths.layout import units_along
from dogwood_jax._widths.widths import Width, Widths, no_such
from dogwood_jax.strategies import Initializer, glorot


class RecyclingState(NamedTuple):
    """The state of an optimizer that renews units.

    Attributes:
        inner_state: the state of the wrapped optimizer.
        steps: the number of steps: int32.
        scores: for each width, in their order, the sums of gradient magnitudes since units were
            last checked: float32 ``[layers, units]``, with one layer if no loop runs.
        renewed: the number of units that were renewed, in all steps and widths: int32.
    """

    inner_state: PyTree
    steps: Array
    scores: tuple[Array, ...]
    renewed: Array


_STATE = ArgumentKind(
    "a RecyclingState, as tx.init returns it",
    lambda value: isinstance(value, RecyclingState),
    lambda value: "begin with tx.init(params)",
)


def recycling(
    tx: Any,
    widths: Widths,
    *,
    key: Array,
    every: int = 1000,
    tau: float = 0.025,
    init: Initializer = glorot,
) -> Any:
    """Wraps an optimizer so that it renews units that learn nothing, as ``renew`` does.

    This is for training loops in which only the optimizer can be changed, such as loops with a Flax
    ``TrainState``. An optimizer sees no activations, so it chooses units by their gradients. The
    score of a unit is the mean gradient magnitude of its incoming weights, plus that of its bias,
    divided by the mean of this sum over all units of the width. After every ``every`` steps, units
    are renewed if their score since the last check is at most ``tau``. A unit that is zero for all
    inputs has no gradient, so its score is zero. A new unit has small gradients at first, because
    its outgoing weights are zero. So with a small ``every``, it would be renewed again.

    A loop that can choose units itself passes masks: ``tx.update(grads, state, params,
    masks=dw.dormant(...))``. The optimizer then renews only these units in this step. Gradients of
    this step do not count for scores.

    The update of a renewed unit is the difference to its new weights, so ``optax.apply_updates``
    makes the unit new. So ``recycling`` must be the last link of a chain: a later link, such as a
    learning rate, would scale new weights. Outgoing weights that the optimizer freezes also become
    zero, and remain zero. Shapes stay, and nothing is compiled again. All other entries take the
    steps of the wrapped optimizer, bit for bit, unless XLA rounds differently in the larger
    program.

    Args:
        tx: the optimizer. It is wrapped in ``dw.growable(..., renewable=True)`` unless it contains
            one.
        widths: from ``trace`` or ``chain``, of the optimizer's parameters, or of variables with
            these parameters in the collection ``"params"``. Hidden widths are checked if ``renew``
            accepts them with ``strict=True``.
        key: PRNG key for the new weights of all steps.
        every: after how many steps units are checked.
        tau: the largest score of a unit that is renewed.
        init: initializer of incoming weights, as in ``strategies.zero_outgoing``.

    Returns:
        An ``optax.GradientTransformation`` with a ``RecyclingState``, whose ``renewed`` counts the
        units renewed so far. ``update`` needs the parameters. After a growth, wrap the optimizer
        again with ``growth.after``. The new state is ``tx.init(wide)`` with the grown
        ``inner_state`` of the old state.

    Raises:
        TypeError: if arguments are of the wrong kind or swapped.
        ValueError: if no width can be renewed, or a number is out of range. ``init`` and ``update``
            raise it for parameters of another network, and if arrays of the units, such as running
            statistics, are not among the parameters.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import optax
        >>> import dogwood_jax as dw
        >>> apply = lambda params, x: jax.nn.relu(x @ params["up"]) @ params["down"]
        >>> params = {"up": jnp.array([[1.0, -1.0, 2.0]]), "down": jnp.ones((3, 1))}
        >>> x = jnp.ones((5, 1))
        >>> widths = dw.trace(apply, params, x)
        >>> tx = dw.recycling(optax.adam(1e-3), widths, key=jax.random.key(0), every=2)
        >>> state = tx.init(params)
        >>> for _ in range(2):
        ...     grads = jax.grad(lambda params: apply(params, x).mean())(params)
        ...     updates, state = tx.update(grads, state, params)
        ...     params = optax.apply_updates(params, updates)
        >>> int(state.renewed), params["down"][1].item()
        (1, 0.0)

    Reference:
        Liu et al., 2025, Measure gradients, not activations!, for the score (GraMa). Sokar et al.,
        2023, The Dormant Neuron Phenomenon in Deep Reinforcement Learning, for the schedule (ReDo).
    """
    import optax

    expect("recycling(tx, widths)", tx=(OPTIMIZER, tx), widths=(WIDTHS, widths))
    expect_given("recycling", key=(KEY, key), every=(INTEGER, every), tau=(NUMBER, tau))
    if not callable(init):
        raise TypeError(f"recycling: init must be an initializer, got {described(init)}")
    if wrong := [
        f"{name} must be {range}, got {number!r}"
        for name, number, range, fits in (
            ("every", every, "1 or more", every >= 1),
            ("tau", tau, "zero or positive", tau >= 0),
        )
        if not fits
    ]:
        raise ValueError(listed("recycling: numbers out of range", wrong))
    found = {width.name: [*never_renewed(width, strict=True)] for width in hidden(widths)}
    units = [widths[name] for name, reasons in found.items() if not reasons]
    if not units:
        reasons = [reason for each in found.values() for reason in each]
        raise ValueError(listed("recycling: no width of this network can be renewed", reasons))
    inner = _renewable(tx)

    def scores_of(gradients: PyTree) -> tuple[Array, ...]:
        arrays = leaves_by_path(_in_network(gradients, widths))
        return tuple(_gradients_of(width, widths, arrays) for width in units)

    def begun(params: PyTree) -> RecyclingState:
        _expect_all_arrays(params, widths, units)
        shapes = jax.eval_shape(scores_of, jax.tree.map(struct_of, params))
        scores = tuple(jnp.zeros(each.shape, each.dtype) for each in shapes)
        zero = jnp.zeros((), jnp.int32)
        return RecyclingState(inner.init(params), zero, scores, zero)

    def update(
        updates: PyTree,
        state: RecyclingState,
        params: PyTree = None,
        *,
        masks: Mapping[str, Array] | None = None,
        **extra: Any,
    ) -> tuple[PyTree, RecyclingState]:
        expect("update", state=(_STATE, state))
        expect_given("update", masks=(BY_WIDTH, masks))
        masks = None if masks is None else _of_units(masks, widths, units)
        if params is None:
            raise ValueError(
                "update: pass the parameters, tx.update(grads, state, params), because the update "
                "of a new unit depends on its old weights"
            )
        params = only_data(params)
        expected = {width.name: width.size for width in units}
        if (came := [scores.shape[-1] for scores in state.scores]) != [*expected.values()]:
            raise ValueError(
                f"update: expected a state of units {expected}, got {came}; after a growth, wrap "
                "the optimizer again with growth.after"
            )

        _expect_all_arrays(params, widths, units)
        _expect_gradients(updates, params, widths, units)

        def run(
            updates: PyTree, state: RecyclingState, params: PyTree, masks: Any, key: Array
        ) -> tuple[PyTree, RecyclingState]:
            scores = tuple(map(jnp.add, state.scores, scores_of(updates)))
            steps, zero = state.steps + 1, jnp.zeros((), jnp.int32)
            changes, inner_state = inner.update(updates, state.inner_state, params, **extra)

            def anew(masks: Mapping[str, Array]) -> tuple[PyTree, PyTree, Array]:
                old, drawn = _in_network(params, widths), jax.random.fold_in(key, steps)
                new, state = renew(old, inner_state, widths, masks, key=drawn, tx=inner, init=init)
                missing = jax.tree.map(jnp.subtract, new, old)
                count = sum((jnp.sum(m, dtype=jnp.int32) for m in masks.values()), zero)
                return _with_new_units(changes, missing, widths, masks), state, count

            if masks is not None:
                changes, inner_state, count = anew(masks)
                scores = state.scores
            else:
                idle = {w.name: _is_idle(each, tau) for w, each in zip(units, scores, strict=True)}
                is_due = steps % every == 0
                # Outside of jit, lax.cond would compile in each step.
                choose = lax.cond if is_traced(is_due) else _chosen
                changes, inner_state, count = choose(
                    is_due, lambda: anew(idle), lambda: (changes, inner_state, zero)
                )
                scores = tuple(jnp.where(is_due, 0, each) for each in scores)
            return changes, RecyclingState(inner_state, steps, scores, state.renewed + count)

        arguments = updates, state, params, masks, key
        if shardings := explicit_shardings(arguments):
            changes, state = with_automatic_axes(run, shardings[:2], *arguments)
            return changes, state
        return run(*arguments)

    return optax.GradientTransformationExtraArgs(begun, update)


def _chosen(is_true: Array, yes: Callable[[], Any], no: Callable[[], Any]) -> Any:
    return yes() if is_true else no()


def _with_new_units(
    changes: PyTree, missing: PyTree, widths: Widths, masks: Mapping[str, Array]
) -> PyTree:
    """Returns updates that turn some units into new units.

    Args:
        changes: the updates, in the tree of the optimizer's parameters.
        missing: new parameters minus old parameters, in the tree of the network's variables.
        widths: the network's widths.
        masks: which units are new, by name of each width with new units.
    """
    moves, missing = leaves_by_path(_in_network(changes, widths)), leaves_by_path(missing)
    for leaf in widths.leaves:
        if leaf.path in moves:
            move = moves[leaf.path]
            for axis, is_new in enumerate(new_along(leaf, masks)):
                at = along(is_new, axis, move.ndim)
                move = jnp.where(at, missing[leaf.path].astype(move.dtype), move)
            moves[leaf.path] = move
    return jax.tree.unflatten(jax.tree.structure(changes), moves.values())


def _renewable(tx: Any) -> Any:
    """Returns the optimizer, wrapped in ``growable`` unless it contains one."""
    import optax

    def fitting(params: PyTree) -> Any:
        is_wrapped = has_growable(jax.eval_shape(tx.init, params))
        return optax.with_extra_args_support(tx) if is_wrapped else growable(tx, renewable=True)

    stand_ins = {"kernel": jnp.zeros((2, 3))}
    try:
        jax.eval_shape(tx.init, stand_ins)
    except Exception:  # an optimizer for certain arrays may raise anything
        pass
    else:
        return fitting(stand_ins)

    def update(
        updates: PyTree, state: PyTree, params: PyTree, **extra: Any
    ) -> tuple[PyTree, PyTree]:
        changes, state = fitting(params).update(updates, state, params, **extra)
        return changes, state

    return optax.GradientTransformationExtraArgs(lambda p: fitting(p).init(p), update)


def _of_units(masks: Mapping[str, Array], widths: Widths, units: list[Width]) -> dict[str, Array]:
    """Returns masks by names of widths, after checking that the optimizer renews these widths."""
    names = [width.name for width in units]
    if wrong := [
        f"{name}: this optimizer renews none of its units"
        if name in widths
        else no_such("width", name, names)
        for name in masks
        if name not in widths or widths[name].name not in names
    ]:
        raise ValueError(listed(f"update: pass only masks of {', '.join(names)}", wrong))
    return {widths[name].name: mask for name, mask in masks.items()}


def _expect_gradients(updates: PyTree, params: PyTree, widths: Widths, units: list[Width]) -> None:
    """Raises if gradients of the units' arrays do not match the parameters."""
    known = {place.path: None for width in units for place in width.occurrences}
    given, arrays = (leaves_by_path(_in_network(tree, widths)) for tree in (updates, params))
    if wrong := [
        f"{path}: expected shape {jnp.shape(arrays[path])}, got {described(given.get(path))}"
        for path in known
        if path in arrays
        if path not in given or jnp.shape(given[path]) != jnp.shape(arrays[path])
    ]:
        raise ValueError(listed("update: these are not the gradients of the parameters", wrong))


def _in_network(params: PyTree, widths: Widths) -> PyTree:
    """Returns parameters with their paths in the network."""
    known, found = {leaf.path for leaf in widths.leaves}, leaves_by_path(params)
    is_inside = known.isdisjoint(found) and not known.isdisjoint(f"params/{p}" for p in found)
    return {"params": params} if is_inside else params


def _expect_all_arrays(params: PyTree, widths: Widths, units: list[Width]) -> None:
    """Raises if the parameters are of another network, or lack arrays of the units."""
    variables = _in_network(params, widths)
    places = {place.path for width in units for place in width.occurrences}
    gone = sorted(places - leaves_by_path(variables).keys())
    if gone and len(gone) < len(places):
        raise ValueError(
            listed(
                "recycling: arrays of the units are not among the optimizer's parameters, so it "
                "cannot renew them; use dw.renew in the training loop",
                gone,
            )
        )
    way_out = "trace again, and after a growth, wrap the optimizer again with growth.after"
    expect_arrays_of("recycling", variables, units, way_out)


def _gradients_of(width: Width, widths: Widths, gradients: Mapping[str, Any]) -> Array:
    """Returns the mean magnitudes of the gradients of incoming weights: ``[layers, units]``."""
    total = jnp.zeros((1, width.size), jnp.float32)
    known = {leaf.path: leaf for leaf in widths.leaves}
    places = {(p.path, p.axis, p.layout) for p in width.occurrences if p.role == "incoming"}
    for path, axis, layout in sorted(places, key=repr):
        array = jnp.abs(gradients[path]).astype(jnp.float32)
        layers = axis_of_layers(widths, known[path])[0]
        others = [a for a in range(array.ndim) if a not in (axis, layers)]
        mean = jnp.mean(array, others)
        if layers is None:
            mean = mean[None]
        elif layers > axis:
            mean = mean.T
        numbers = units_along(layout, width.name, ("incoming",))
        numbers = np.where(numbers < 0, width.size, numbers)
        total = total + jax.ops.segment_sum(mean.T, numbers, width.size + 1)[:-1].T
    return total


def _is_idle(scores: Array, tau: float) -> Array:
    """Returns which units learn hardly anything compared with others, in every layer."""
    mean = jnp.mean(scores, axis=-1, keepdims=True)
    # Without any gradient, nothing is known of the units.
    return jnp.all((scores <= tau * mean) & (mean > 0), axis=0)
