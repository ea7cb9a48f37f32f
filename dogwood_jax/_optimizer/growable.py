"""``growable``: an optimizer that continues after a growth of its network."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from dogwood_jax._base.arguments import (
    BOOLEAN,
    INTEGER,
    OPTIMIZER,
    ArgumentKind,
    expect,
    expect_given,
)
from dogwood_jax._base.described import described
from dogwood_jax._base.problems import listed
from dogwood_jax._base.trees import (
    Keys,
    PyTree,
    is_array,
    leaf_path,
    leaves_by_path,
    only_data,
    struct,
)
from dogwood_jax._growth import moves
from dogwood_jax._optimizer.by_cohort import updated
from dogwood_jax._optimizer.factored import factored_axes
from dogwood_jax._optimizer.fields import Field, fields_in, unfollowed, watched
from dogwood_jax._optimizer.step_counts import (
    AlongAxes,
    Moments,
    StepCounts,
    renewable_step_counts,
    share_now,
    step_counts_from,
)
from dogwood_jax._widths.widths import Leaf


class GrowableState(NamedTuple):
    """The state of an optimizer that can grow.

    Attributes:
        inner_state: the state of the optimizer that was wrapped.
        step_counts: step counts of entries by cohort; empty until the first growth, unless units
            may be renewed.
    """

    inner_state: PyTree
    step_counts: StepCounts | tuple[()] = ()


_STATE = ArgumentKind(
    "a GrowableState, as tx.init returns it",
    lambda value: isinstance(value, GrowableState),
    lambda value: "begin with tx.init(params)",
)


def growable(tx: Any, *, warmup: int = 0, renewable: bool = False) -> Any:
    """Wraps an optimizer, once and before training, so that training goes on after a growth.

    An optimizer such as Adam has one step count, and uses it to correct the bias of its moments.
    After a growth the count is large, but new entries have seen no gradient. If their moments are
    zero, their steps are up to 6.6 learning rates long. If their second moments are the mean of old
    ones, they hardly move for about ``1 / (1 - b2)`` steps. Copies of a unit that share its
    outgoing weights each take a whole step, so their sum moves several times as far as the unit.

    With ``growable``, ``grow_opt_state`` records at which step entries were added, and the share of
    a unit that each copy carries. After a growth, the optimizer treats entries as follows:

    - Old entries take the steps that they would have taken without the growth.
    - New entries take the steps of a new optimizer, whose count starts at the growth.
    - Copies get the moments of their unit. At first their sum moves as this unit did. Over 100
      steps their own steps grow to full length. Identical copies stay identical, unless the
      strategy divides weights unevenly or adds noise.

    The optimizer stays the same object through any number of growths, so a compiled step is only
    compiled again for the new shapes. Until the first growth, its program is that of the wrapped
    optimizer.

    Limits:

    - Values computed from whole arrays are computed from the grown arrays: norms for clipping,
      trust ratios, factored second moments. In a factored moment, a new entry in an old row has
      the step count of the row.
    - ``warmup`` and shares do not scale decoupled weight decay, or any other term proportional to
      the parameters.
    - Without second moments (SGD, Lion, Muon) nothing is corrected. One exception: if an optimizer
      has a special first step (optimistic gradient descent), new entries start with it.
    - If the state holds averages of parameters (schedule-free optimizers, Lookahead), steps are not
      scaled.
    - Trust ratios and parameter scales (LAMB, Adafactor) already shrink with the weights of a copy.
      The copy's share shrinks its steps once more.
    - For an optimizer without a step count (RMSProp), all its updates are counted, also those
      within ``MultiSteps``.

    Args:
        tx: an ``optax.GradientTransformation``: a whole optimizer, a chain, or one link of a chain.
        warmup: the number of steps until the steps of new entries have full length. It has no
            effect for optimizers without second moments, such as SGD, Lion, and Muon for matrices.
        renewable: whether units may be renewed during training, see ``renew``. From ``tx.init`` on,
            the state then holds the step at which each unit was added: a few values for each unit
            along each axis of each array.

    Returns:
        An ``optax.GradientTransformation`` with a ``GrowableState``.

    Raises:
        TypeError: if ``tx`` is not an optimizer.
        ValueError: if ``tx`` is wrapped already, or keeps arrays of unknown meaning, which may be
            second moments. If ``tx.init`` needs the network's own parameters, the wrapped ``init``
            raises this. The wrapped ``update`` raises it for a state that has not grown with the
            network.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import optax
        >>> import dogwood_jax as dw
        >>> layer = lambda i, o: {"kernel": jnp.ones((i, o)), "bias": jnp.ones(o)}
        >>> params = {"up": layer(4, 8), "down": layer(8, 2)}
        >>> tx = dw.growable(optax.adam(1e-3))
        >>> state = tx.init(params)
        >>> growth = dw.plan(dw.chain(params, ("up", "down")), {"up": 16})
        >>> wide = dw.grow(params, growth, key=jax.random.key(0))
        >>> state = dw.grow_opt_state(state, growth, tx)
        >>> updates, state = tx.update(wide, state, wide)
        >>> updates["up"]["kernel"].shape
        (4, 16)

    Reference:
        Kingma and Ba, 2015, Adam (bias correction).
    """
    import optax

    expect("growable", tx=(OPTIMIZER, tx))
    expect_given("growable", warmup=(INTEGER, warmup), renewable=(BOOLEAN, renewable))
    if warmup < 0:
        raise ValueError(f"growable: warmup must be 0 or more, got {warmup}")
    inner = optax.with_extra_args_support(tx)
    stand_ins = {"kernel": jnp.zeros((2, 3)), "bias": jnp.zeros(3)}
    try:
        begun = jax.eval_shape(tx.init, stand_ins)
    except Exception:  # an optimizer made for certain arrays may raise any exception here
        begun = None
    if begun is not None:
        _check(tx, begun, stand_ins)

    def init(params: PyTree) -> GrowableState:
        state = tx.init(params)
        _check(tx, state, params)
        step_counts = renewable_step_counts(state, _known(params)) if renewable else None
        return GrowableState(state, step_counts or ())

    def update(
        updates: PyTree, state: GrowableState, params: PyTree = None, **extra: Any
    ) -> tuple[PyTree, GrowableState]:
        expect("update", state=(_STATE, state))

        def run(updates: PyTree, state: PyTree, params: PyTree) -> Any:
            return inner.update(updates, state, params, **extra)

        try:
            if isinstance(state.step_counts, StepCounts):
                data = only_data(params)
                return _updated(run, updates, state.inner_state, state.step_counts, data, warmup)
            updates, inner_state = run(updates, state.inner_state, params)
            return updates, GrowableState(inner_state)
        except Exception as error:  # an optimizer may raise any exception
            if problems := _of_other_sizes(state.inner_state, updates):
                of = "the state and the updates belong to networks of different sizes"
                raise ValueError(listed(f"growable: {of}", problems)) from error
            if other := _of_another_optimizer(tx, state.inner_state, updates, params):
                raise ValueError(f"growable: {other}") from error
            raise

    return optax.GradientTransformationExtraArgs(init, update)


def _known(params: PyTree) -> dict[str, Leaf]:
    """Returns the arrays of parameters as an optimizer sees them, by path."""
    arrays = leaves_by_path(params)
    return {path: Leaf(path, jnp.shape(a), ()) for path, a in arrays.items() if is_array(a)}


def _check(tx: Any, state: PyTree, params: PyTree) -> None:
    """Raises if an optimizer is wrapped already, or may keep second moments in unknown fields."""
    if has_growable(state):
        raise ValueError("growable: this optimizer is wrapped already, or a part of it is")
    arrays, known = leaves_by_path(state), _known(params)
    found = list(fields_in(state, known))
    unknown = [field for field in found if field.known({})[0] is None]
    unknown = [f for f in unknown if math.prod(jnp.shape(arrays[f.place])) > 1]
    shapes = jax.tree.map(lambda array: struct(jnp.shape(array), jnp.result_type(array)), params)
    seen = watched(tx, shapes) if unknown else {}
    names = {
        f"{field.owner[0]}.{field.name}": None
        for field in unknown
        if field.place not in seen or seen[field.place].degree not in (0, 1)
    }
    problems = [
        f"the meaning of {name} is not known: wrap only the links of the chain that are known, or "
        "wrap none and pass the meaning to grow_opt_state, fields="
        for name in names
    ]
    problems += [
        f"{field.place}: has shape {shape}, but {field.inner} has {field.leaf.shape}; states with "
        "other shapes than the parameters are not supported"
        for field in found
        if field.axis is None and not field.factored
        if math.prod(shape := jnp.shape(arrays[field.place])) > 1 and shape != field.leaf.shape
    ]
    if not found:
        problems += unfollowed(arrays, found)
    if problems:
        raise ValueError(listed("growable: cannot wrap this optimizer", problems))


def _of_other_sizes(state: PyTree, updates: PyTree) -> list[str]:
    """Lists the arrays of a state that have the shapes from before or after a growth."""
    arrays = leaves_by_path(state)
    return [
        f"{field.place}: has shape {shape}, but the update of {field.inner} has "
        f"{field.leaf.shape}; after a growth, use dw.grow_opt_state(state, growth, tx)"
        for field in fields_in(state, _known(updates))
        if field.axis is None and not field.is_factor
        if math.prod(shape := jnp.shape(arrays[field.place])) > 1 and shape != field.leaf.shape
    ]


def _of_another_optimizer(tx: Any, state: PyTree, updates: PyTree, params: PyTree) -> str | None:
    """Describes the expected state and the given one, if another optimizer made the state."""
    try:
        begun = jax.eval_shape(tx.init, updates if params is None else params)
    except Exception:  # an optimizer may raise any exception
        return None
    wanted, came = described(begun), described(state)
    if wanted == came:
        return None
    return f"expected {wanted}, got {came}; pass a state from this optimizer's init"


def _updated(
    update: Callable[..., Any],
    updates: PyTree,
    state: PyTree,
    step_counts: StepCounts,
    params: PyTree,
    warmup: int,
) -> tuple[PyTree, GrowableState]:
    """Returns an optimizer's updates, computed with the step counts of entries, and its state."""
    arrays, known = leaves_by_path(state), _known(updates)
    moments, along = Moments(state, known), step_counts.by_path()
    steps = [jnp.asarray(arrays[path], jnp.int32) for path in moments.counts]
    since = [
        births if path in moments.first_steps else now - births
        for path, now, births in zip(moments.counts, steps, step_counts.counts, strict=True)
    ]
    changes, besides, new_state, lanes = updated(
        update,
        updates,
        state,
        params,
        counts=dict(zip(moments.counts, since, strict=True)),
        ties={field.place: _ties(field, arrays[field.place]) for field in moments.followers},
        follows={field.place: field.inner for field in moments.followers},
        cohorts={path: one.cohorts for path, one in along.items()},
        births=step_counts.order,
    )
    own = step_counts.steps - step_counts.births
    of = {f.inner: own if (i := moments.count_of(f)) is None else since[i] for f in moments.fields}
    averages = any(field.known({})[0] == "parameters" for field in moments.followers)

    def scaled(keys: Any, change: Any, beside: Any) -> Any:
        path = leaf_path(keys)
        if path in along and path in of and not averages:
            scale = _scale(along[path], of[path], step_counts.order, warmup, jnp.shape(change))
            change = change * scale.astype(change.dtype)
        return change + beside

    changes = jax.tree_util.tree_map_with_path(scaled, changes, besides)
    counts = tuple(
        jnp.broadcast_to(lanes[path], births.shape) if path in moments.first_steps else births
        for path, births in zip(moments.counts, step_counts.counts, strict=True)
    )
    step_counts = step_counts._replace(steps=step_counts.steps + 1, counts=counts)
    return changes, GrowableState(new_state, step_counts)


def _ties(field: Field, array: Any) -> tuple[tuple[str, int] | None, ...]:
    """Returns the axis of the parameters that each axis of an array of a state corresponds to."""
    shape, whole = jnp.shape(array), field.leaf.shape
    if field.axis is not None:
        return ((field.inner, field.axis),) if len(shape) == 1 else (None,) * len(shape)
    if shape == whole:
        return tuple((field.inner, axis) for axis in range(len(shape)))
    if field.is_factor and len(shape) == len(whole) - 1:
        row, column = factored_axes(whole)
        gone = column if field.name == "v_row" else row
        return tuple((field.inner, axis) for axis in range(len(whole)) if axis != gone)
    return (None,) * len(shape)


def _scale(
    along: AlongAxes, steps: Array, order: Array, warmup: int, shape: tuple[int, ...]
) -> Array:
    """Returns the factors for the steps of entries."""
    scale, grown = jnp.ones((1,) * len(shape)), jnp.ones((1,) * len(shape))
    for axis, numbers in enumerate(along.cohorts):
        scale = scale * moves.along(share_now(along, axis, steps), axis, len(shape))
        if warmup:
            own = jnp.minimum((steps[numbers] + 1) / warmup, 1.0)
            own = jnp.where(order[numbers] < 0, 1.0, own)
            grown = jnp.minimum(grown, moves.along(own, axis, len(shape)))
    return scale * grown


# States within states -----------------------------------------------------------------------------


def is_growable(node: Any) -> bool:
    """Whether a part of a state is a ``GrowableState``."""
    return isinstance(node, GrowableState)


def has_growable(state: PyTree) -> bool:
    """Whether a state is a ``GrowableState``, or has one in it."""
    return any(map(is_growable, jax.tree.leaves(state, is_leaf=is_growable)))


def unwrapped_state(state: PyTree) -> PyTree:
    """Returns a state with the inner state in place of each ``GrowableState``."""
    return jax.tree.map(
        lambda node: node.inner_state if is_growable(node) else node, state, is_leaf=is_growable
    )


def rewrapped_state(state: PyTree, like: PyTree) -> PyTree:
    """Undoes ``unwrapped_state``; the result has no step counts.

    Args:
        state: an unwrapped state.
        like: a state of the same optimizer that is still wrapped.
    """
    return jax.tree.unflatten(jax.tree.structure(without_step_counts(like)), jax.tree.leaves(state))


def without_step_counts(state: PyTree) -> PyTree:
    """Returns a state without step counts, as before the first growth."""
    return jax.tree.map(
        lambda node: GrowableState(node.inner_state) if is_growable(node) else node,
        state,
        is_leaf=is_growable,
    )


def with_stored_step_counts(like: PyTree, stored: PyTree) -> PyTree:
    """Returns a state with the step counts from a checkpoint.

    Args:
        like: a state without step counts.
        stored: the state as nested dicts and lists; named tuples are dicts, too.
    """

    def one(keys: Keys, node: Any) -> Any:
        if not is_growable(node):
            return node
        part = stored
        for key in filter(None, leaf_path(keys).split("/")):
            part = part[int(key) if isinstance(part, list | tuple) else key]
        step_counts = part.get("step_counts")
        return node._replace(step_counts=step_counts_from(step_counts)) if step_counts else node

    try:
        return jax.tree_util.tree_map_with_path(one, like, is_leaf=is_growable)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):  # another optimizer's
        return like


def unwrapped(tx: Any) -> Any:
    """Returns an optimizer whose states have no ``GrowableState``."""
    import optax

    def init(params: PyTree) -> PyTree:
        return unwrapped_state(tx.init(params))

    def update(
        updates: PyTree, state: PyTree, params: PyTree = None, **extra: Any
    ) -> tuple[PyTree, PyTree]:
        like = jax.eval_shape(tx.init, updates if params is None else params)
        update = optax.with_extra_args_support(tx).update
        updates, state = update(updates, rewrapped_state(state, like), params, **extra)
        return updates, unwrapped_state(state)

    return optax.GradientTransformationExtraArgs(init, update)


def with_step_counts_of(state: PyTree, other: PyTree) -> PyTree:
    """Returns a state with the step counts of another state of the same optimizer."""
    found = jax.tree.leaves(other, is_leaf=is_growable)
    step_counts = iter([node.step_counts for node in found if is_growable(node)])
    return jax.tree.map(
        lambda node: node._replace(step_counts=next(step_counts)) if is_growable(node) else node,
        state,
        is_leaf=is_growable,
    )
