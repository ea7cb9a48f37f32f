"""An optimizer that goes on after its network has grown: ``growable``."""

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
from dogwood_jax._optimizer.ages import Ages, AlongAxes, Moments, ages_of, renewable_ages, share_now
from dogwood_jax._optimizer.by_cohort import updated
from dogwood_jax._optimizer.factored import factored_axes
from dogwood_jax._optimizer.fields import Field, fields_in, unfollowed, watched
from dogwood_jax._widths.widths import Leaf


class GrowableState(NamedTuple):
    """The state of an optimizer that can grow.

    Attributes:
        inner_state: the state of the optimizer that was wrapped.
        ages: when entries of parameters were born; empty until the first growth, unless units may
            be renewed.
    """

    inner_state: PyTree
    ages: Ages | tuple[()] = ()


_STATE = ArgumentKind(
    "a GrowableState, as tx.init returns it",
    lambda value: isinstance(value, GrowableState),
    lambda value: "begin with tx.init(params)",
)


def growable(tx: Any, *, warmup: int = 0, renewable: bool = False) -> Any:
    """Wraps an optimizer, once and before training, so that training goes on after a growth.

    An optimizer such as Adam has one step count, by which it corrects the bias of its moments.
    After a growth the count is large, but new entries have seen no gradient. If their moments are
    zero, their steps are up to 6.6 learning rates long. If their second moments are the mean of old
    ones, they hardly move for about ``1 / (1 - b2)`` steps. Copies of a unit that share its
    outgoing weights each take a whole step, so their sum moves several times as far as the unit.

    With ``growable``, ``grow_opt_state`` records when entries were born, and which share of a unit
    each copy carries. Then the optimizer goes on like this:

    - Old entries take the steps that they would have taken without the growth.
    - New entries take the steps of a new optimizer, whose count begins at their birth.
    - Copies get the moments of their unit. At first their sum moves as this unit did. Over 100
      steps their own steps become whole ones. Copies that are exactly alike stay so, unless the
      strategy divides weights unevenly or adds noise.

    The optimizer stays the same object through any number of growths, so a compiled step is only
    compiled again for the new shapes. Until the first growth its program is that of the optimizer
    that it wraps.

    There are limits to this:

    - What an optimizer computes from whole arrays, it computes from the grown ones: norms to clip
      by, trust ratios, factored second moments. In factored ones, a new entry of an old row is as
      old as the row.
    - ``warmup`` and shares do not scale decoupled weight decay, or anything else that is added in
      proportion to the parameters.
    - Without second moments (SGD, Lion, Muon) nothing is corrected, except that new entries begin
      with a first step where an optimizer has one of its own (optimistic gradient descent).
    - With averages of parameters in the state (schedule-free optimizers, Lookahead) steps are not
      scaled.
    - Trust ratios and parameter scales (LAMB, Adafactor) already shrink with the weights of a copy.
      The copy's share shrinks its steps once more.
    - For an optimizer without a step count (RMSProp), all its updates are counted, also those
      within ``MultiSteps``.

    Args:
        tx: an ``optax.GradientTransformation``: a whole optimizer, a chain, or one link of a chain.
        warmup: the number of steps until the steps of new entries have their full length. It
            changes nothing where an optimizer keeps no second moments, as SGD, Lion, and Muon for
            matrices.
        renewable: whether units may be renewed while training runs, see ``renew``. Then the state
            holds from ``tx.init`` on when each unit was born: a few numbers for each place along
            each axis of each array.

    Returns:
        An ``optax.GradientTransformation`` with a ``GrowableState``.

    Raises:
        TypeError: if ``tx`` is no optimizer.
        ValueError: if ``tx`` is wrapped already, or keeps arrays of unknown meaning, which may be
            second moments. If ``tx.init`` needs the network's own parameters, the wrapped ``init``
            raises this. The wrapped ``update`` raises it for a state that has not grown along.

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
        Kingma and Ba, 2015, Adam, for the correction of bias.
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
    except Exception:  # an optimizer may know the arrays that it is for, and raise anything
        begun = None
    if begun is not None:
        _check(tx, begun, stand_ins)

    def init(params: PyTree) -> GrowableState:
        state = tx.init(params)
        _check(tx, state, params)
        ages = renewable_ages(state, _known(params)) if renewable else None
        return GrowableState(state, ages or ())

    def update(
        updates: PyTree, state: GrowableState, params: PyTree = None, **extra: Any
    ) -> tuple[PyTree, GrowableState]:
        expect("update", state=(_STATE, state))

        def run(updates: PyTree, state: PyTree, params: PyTree) -> Any:
            return inner.update(updates, state, params, **extra)

        try:
            if isinstance(state.ages, Ages):
                data = only_data(params)
                return _updated(run, updates, state.inner_state, state.ages, data, warmup)
            updates, inner_state = run(updates, state.inner_state, params)
            return updates, GrowableState(inner_state)
        except Exception as error:  # an optimizer may raise anything
            if problems := _of_other_sizes(state.inner_state, updates):
                of = "this state is not of the network that the updates are of"
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
    """Raises if an optimizer is wrapped already, or may keep second moments that are not known."""
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
        f"what {name} holds is not known: wrap the links of the chain that are known, or leave it "
        "as it is and tell grow_opt_state by fields="
        for name in names
    ]
    problems += [
        f"{field.place}: has shape {shape}, but {field.inner} has {field.leaf.shape}; there is no "
        "rule for such a state"
        for field in found
        if field.axis is None and not field.factored
        if math.prod(shape := jnp.shape(arrays[field.place])) > 1 and shape != field.leaf.shape
    ]
    if not found:
        problems += unfollowed(arrays, found)
    if problems:
        raise ValueError(listed("growable: cannot wrap this optimizer", problems))


def _of_other_sizes(state: PyTree, updates: PyTree) -> list[str]:
    """Says which arrays of a state are those of a network before or after a growth."""
    arrays = leaves_by_path(state)
    return [
        f"{field.place}: has shape {shape}, but the update of {field.inner} has "
        f"{field.leaf.shape}; after a growth go on with dw.grow_opt_state(state, growth, tx)"
        for field in fields_in(state, _known(updates))
        if field.axis is None and not field.is_factor
        if math.prod(shape := jnp.shape(arrays[field.place])) > 1 and shape != field.leaf.shape
    ]


def _of_another_optimizer(tx: Any, state: PyTree, updates: PyTree, params: PyTree) -> str | None:
    """Says what the state of this optimizer looks like, if another optimizer made the state."""
    try:
        begun = jax.eval_shape(tx.init, updates if params is None else params)
    except Exception:  # an optimizer may raise anything
        return None
    wanted, came = described(begun), described(state)
    if wanted == came:
        return None
    return f"expected {wanted}, got {came}; pass the state that this optimizer's init made"


def _updated(
    update: Callable[..., Any],
    updates: PyTree,
    state: PyTree,
    ages: Ages,
    params: PyTree,
    warmup: int,
) -> tuple[PyTree, GrowableState]:
    """Returns an optimizer's updates by the ages of entries, and its new state."""
    arrays, known = leaves_by_path(state), _known(updates)
    moments, along = Moments(state, known), ages.by_path()
    steps = [jnp.asarray(arrays[path], jnp.int32) for path in moments.counts]
    since = [
        births if path in moments.first_steps else now - births
        for path, now, births in zip(moments.counts, steps, ages.counts, strict=True)
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
        births=ages.order,
    )
    own = ages.steps - ages.births
    of = {f.inner: own if (i := moments.count_of(f)) is None else since[i] for f in moments.fields}
    averages = any(field.known({})[0] == "parameters" for field in moments.followers)

    def scaled(keys: Any, change: Any, beside: Any) -> Any:
        path = leaf_path(keys)
        if path in along and path in of and not averages:
            scale = _scale(along[path], of[path], ages.order, warmup, jnp.shape(change))
            change = change * scale.astype(change.dtype)
        return change + beside

    changes = jax.tree_util.tree_map_with_path(scaled, changes, besides)
    counts = tuple(
        jnp.broadcast_to(lanes[path], births.shape) if path in moments.first_steps else births
        for path, births in zip(moments.counts, ages.counts, strict=True)
    )
    ages = ages._replace(steps=ages.steps + 1, counts=counts)
    return changes, GrowableState(new_state, ages)


def _ties(field: Field, array: Any) -> tuple[tuple[str, int] | None, ...]:
    """Returns where the axes of an array of a state lie along those of parameters."""
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
    along: AlongAxes, ages: Array, order: Array, warmup: int, shape: tuple[int, ...]
) -> Array:
    """Returns what the steps of entries are multiplied by."""
    scale, grown = jnp.ones((1,) * len(shape)), jnp.ones((1,) * len(shape))
    for axis, numbers in enumerate(along.cohorts):
        scale = scale * moves.along(share_now(along, axis, ages), axis, len(shape))
        if warmup:
            own = jnp.minimum((ages[numbers] + 1) / warmup, 1.0)
            own = jnp.where(order[numbers] < 0, 1.0, own)
            grown = jnp.minimum(grown, moves.along(own, axis, len(shape)))
    return scale * grown


# States within states -----------------------------------------------------------------------------


def is_growable(node: Any) -> bool:
    """Whether a part of a state is one of an optimizer that can grow."""
    return isinstance(node, GrowableState)


def has_growable(state: PyTree) -> bool:
    """Whether a state is one of an optimizer that can grow, or has one in it."""
    return any(map(is_growable, jax.tree.leaves(state, is_leaf=is_growable)))


def unwrapped_state(state: PyTree) -> PyTree:
    """Returns a state as it is of optimizers that are not wrapped."""
    return jax.tree.map(
        lambda node: node.inner_state if is_growable(node) else node, state, is_leaf=is_growable
    )


def rewrapped_state(state: PyTree, like: PyTree) -> PyTree:
    """Returns a state with its ``GrowableState`` again, without ages.

    Args:
        state: a state from which ``unwrapped_state`` has removed it.
        like: a state of the same optimizer that still has it.
    """
    return jax.tree.unflatten(jax.tree.structure(without_ages(like)), jax.tree.leaves(state))


def without_ages(state: PyTree) -> PyTree:
    """Returns a state as it is before the first growth."""
    return jax.tree.map(
        lambda node: GrowableState(node.inner_state) if is_growable(node) else node,
        state,
        is_leaf=is_growable,
    )


def with_stored_ages(like: PyTree, stored: PyTree) -> PyTree:
    """Returns a state with the ages that a checkpoint holds.

    Args:
        like: a state without ages.
        stored: the state as nested dicts and lists, in which its named tuples are dicts.
    """

    def one(keys: Keys, node: Any) -> Any:
        if not is_growable(node):
            return node
        part = stored
        for key in filter(None, leaf_path(keys).split("/")):
            part = part[int(key) if isinstance(part, list | tuple) else key]
        ages = part.get("ages")
        return node._replace(ages=ages_of(ages)) if ages else node

    try:
        return jax.tree_util.tree_map_with_path(one, like, is_leaf=is_growable)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):  # another optimizer's
        return like


def unwrapped(tx: Any) -> Any:
    """Returns an optimizer whose states are unwrapped."""
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


def with_ages_of(state: PyTree, other: PyTree) -> PyTree:
    """Returns a state with the ages in another one of the same optimizer."""
    found = jax.tree.leaves(other, is_leaf=is_growable)
    ages = iter([node.ages for node in found if is_growable(node)])
    return jax.tree.map(
        lambda node: node._replace(ages=next(ages)) if is_growable(node) else node,
        state,
        is_leaf=is_growable,
    )
