"""Grows an optimizer's state with the network: ``grow_opt_state``.

An optimizer keeps averages of gradients, of their powers, or of the parameters. The first two
transform by the adjoint of the growth, the last like the parameters. So the ``Growth`` determines
the larger state, once the meaning of each field is known.
"""

import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array

from dogwood_jax._base.arguments import (
    GROWTH,
    MAPPING,
    OPTIMIZER,
    STATE,
    VARIABLES,
    expect,
    expect_given,
    some,
)
from dogwood_jax._base.deferred import Deferred
from dogwood_jax._base.described import described, optimizer_states
from dogwood_jax._base.problems import listed
from dogwood_jax._base.trees import (
    Keys,
    PyTree,
    is_traced,
    leaves_by_path,
    struct,
    struct_of,
)
from dogwood_jax._growth.explicit_axes import explicit_shardings, with_automatic_axes
from dogwood_jax._growth.growth import Growth
from dogwood_jax._growth.rounds import unshared
from dogwood_jax._growth.shardings import Placement, fitting_shardings, placement
from dogwood_jax._optimizer.fields import (
    Field,
    Meaning,
    Observed,
    fields_of,
    meanings_of,
    starts,
    unfollowed,
    watched,
)
from dogwood_jax._optimizer.growable import (
    has_growable,
    is_growable,
    rewrapped_state,
    unwrapped,
    unwrapped_state,
)
from dogwood_jax._optimizer.kept import Keeping, Kept, begins_of, deferred, made_in_rounds
from dogwood_jax._optimizer.larger_params import (
    initial_state,
    larger_params,
    part_at,
    zeros_of,
)
from dogwood_jax._optimizer.step_counts import Moments, grown_step_counts


def grow_opt_state(
    opt_state: PyTree,
    growth: Growth,
    tx: Any,
    *,
    variables: PyTree = None,
    second_moment: Literal["mean", "zeros"] | None = None,
    fields: Mapping[str, Meaning] | None = None,
    donate: bool = False,
    copy: bool = False,
) -> PyTree:
    """Grows the state of an optimizer with the network, so that training continues.

    Gradients transform by the adjoint of the growth. It multiplies old entries by coefficients, and
    second moments by their squares. The result is the state that the larger network would have if
    it had been trained with the same gradients. Step counts, schedules, hyperparameters, random
    keys and norms of whole arrays (Novograd, DoG, Prodigy) do not change. Adafactor and SM3 keep
    only values for rows and columns, so their states are not exact. The guide "In your own training
    loop" has a table of the optimizers whose steps of old entries depend on new ones.

    Wrap the optimizer once, ``tx = dw.growable(tx)``. Then new entries take the steps of a new
    optimizer, and copies together move at first as their unit did. ``opt_state`` may come from an
    optimizer that was not wrapped yet.

    Without ``growable``, both moments of new entries are zero, but the step count is large, so Adam
    does not correct their bias. With b1 = 0.9, b2 = 0.999 and a steady gradient, its first update
    of a new entry is 3.16 times the learning rate, and later ones are up to 6.6 times. A warning
    is shown. ACProp divides by the second moment before the step, which is zero: its first step of
    a new entry has no bound. With ``second_moment="mean"``, new entries hardly move for about
    ``1 / (1 - b2)`` steps instead. An example: 784-32-10 on MNIST grows to 128 units after one
    epoch of ten (Adam 1e-3, batches of 128, three seeds). It reaches a test loss of 0.064 with
    ``growable``, 0.065 with zeros and 0.110 with the mean. From scratch it reaches 0.069 in twelve
    epochs.

    With ``"mean"``, second moments of an inserted layer get the largest value in the arrays of the
    same shape with the closest names: for ``block_2/up/kernel``, in ``block_1/up/kernel`` and
    similar arrays. If none of these has the same shape, it is the largest value in all arrays. A
    mean would be too small: all weights of a new layer learn at once, and some have much larger
    gradients. But in a stack over which a loop runs, new layers do get the mean of old ones.

    Args:
        opt_state: the state: of any Optax optimizer or chain, or a Flax ``TrainState``.
        growth: from ``plan``: growing, narrowing or merging; static under ``jax.jit``.
        tx: the optimizer, ``optax.GradientTransformation``. Its ``init`` gives the shapes of the
            larger state.
        variables: the grown variables, for states that hold parameters or averages of them:
            ``TrainState``, DoG, Prodigy and schedule-free optimizers. New entries of these start
            with the parameters' values, so ``variables`` is required if new entries are random.
            Modules in the state that hold sizes, such as Equinox's, get the sizes of the modules in
            ``variables``. A returned ``TrainState`` holds ``tx``.
        second_moment: the new entries of second moments, ``"zeros"`` (the default) or the
            ``"mean"`` of old ones.
        fields: meanings of fields that are not known here, by name (``"momentum"`` or
            ``"MyState.momentum"``): ``"first"`` and ``"second"`` for averages of gradients and of
            their squares, ``"magnitude"`` for those of absolute values (also Adamax's ``nu``),
            ``"update"`` for averages of updates that no longer scale with the gradient, ``"step"``
            for step sizes, ``"parameters"`` for averages of parameters. An ``optax.ema`` on its
            own may average either gradients or parameters: ``{"ema": "parameters"}``.
        donate: whether each old array that grows may be deleted once its new one is made, as in
            ``grow``. It has no effect under ``jax.jit``, or if layers are inserted.
        copy: whether unchanged arrays are copied, as in ``grow``. By default, both states share
            them.

    Returns:
        The state, for the grown parameters.

    Raises:
        TypeError: if arguments are of the wrong kind, or in the wrong order.
        ValueError: for the state of another optimizer or of another network, fields shaped like
            parameters whose meaning is not known, or modules whose sizes in the larger network are
            not known; all of them in one message. And for a state that holds parameters whose new
            entries are random, without ``variables``.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import optax
        >>> import dogwood_jax as dw
        >>> layer = lambda i, o: {"kernel": jnp.ones((i, o)), "bias": jnp.ones(o)}
        >>> params = {"up": layer(4, 8), "down": layer(8, 2)}
        >>> tx = optax.adam(1e-3)
        >>> growth = dw.plan(dw.chain(params, ("up", "down")), {"up": 16})
        >>> state = dw.grow_opt_state(tx.init(params), growth, tx)
        >>> state[0].mu["up"]["kernel"].shape
        (4, 16)

    Reference:
        The adjoint follows from the chain rule. Kingma and Ba, 2015, Adam (bias correction).
    """
    grown = grow_state(opt_state, growth, tx, None, variables, second_moment, fields or {}, donate)
    return unshared(grown, opt_state) if copy else grown


def grow_state(
    opt_state: PyTree,
    growth: Growth,
    tx: Any,
    params: PyTree | None,
    variables: PyTree,
    second_moment: str | None,
    fields: Mapping[str, Meaning],
    donate: bool = False,
) -> PyTree:
    """Grows a state; ``grow_opt_state`` describes all arguments except ``params``.

    ``params`` has the shapes of the larger network's parameters, as ``tx.init`` takes them. If it
    is None, the shapes are read from the state.
    """
    expect(
        "grow_opt_state(opt_state, growth, tx)",
        opt_state=(STATE, opt_state),
        growth=(GROWTH, growth),
        tx=(OPTIMIZER, tx),
    )
    expect_given("grow_opt_state", variables=(VARIABLES, variables), fields=(MAPPING, fields))
    if second_moment not in (None, "mean", "zeros"):
        raise ValueError(f"second_moment must be 'mean' or 'zeros', got {second_moment!r}")
    plain = unwrapped_state(opt_state)
    found = fields_of(plain, growth)
    _expect_state(plain, leaves_by_path(plain), found, growth)
    is_outside = _is_outside(opt_state)
    if variables is None:
        _expect_no_parameters(found, growth, fields)
    state, old = (t.opt_state if is_outside else t for t in (plain, opt_state))
    if params is None:
        found = fields_of(state, growth) if is_outside else found
        params = larger_params(state, growth, found, variables)
    if params is None:
        like = _as_wrapped(old, growth, tx)
    else:
        like = _shapes_of(lambda: initial_state(tx, state, params))
    moment = second_moment or "zeros"
    if not has_growable(like):
        known = {leaf.path: leaf for leaf in growth.widths.leaves}
        is_new = any(edit.fill or edit.experts or edit.scales for edit in growth.inserted)
        is_larger = is_new or any(c.new > c.old for c in growth.changes)
        moments = Moments(plain, known)
        grown = _grow_plain(plain, growth, tx, params, variables, moment, fields, like, donate)
        if second_moment is None and is_larger and {*moments.counts} - moments.first_steps:
            warnings.warn(_ONE_COUNT, stacklevel=3)
        return grown
    inner, start = unwrapped(tx), unwrapped_state(like)
    grown = _grow_plain(plain, growth, inner, params, variables, moment, fields, start, donate)
    if is_outside:  # the training state also holds its optimizer, maybe not wrapped before
        own = {"tx": tx} if hasattr(grown, "tx") else {}
        return grown.replace(opt_state=_with_step_counts(grown.opt_state, like, old, growth), **own)
    return _with_step_counts(grown, like, old, growth)


_ONE_COUNT = (
    "grow_opt_state: this optimizer has one step count for old and new entries, so the first steps "
    "of new entries are up to 6.6 learning rates long. Wrap it once, tx = dw.growable(tx), and new "
    "entries get their own count; the wrapped optimizer accepts this state (for an nnx.Optimizer "
    "or a TrainState, wrap its tx). Pass second_moment= to silence this warning"
)


def _is_outside(opt_state: PyTree) -> bool:
    """Whether a state is a training state with an ``opt_state`` in it, as Flax's ``TrainState``."""
    return hasattr(opt_state, "opt_state") and hasattr(opt_state, "replace")


def _expect_no_parameters(
    found: Sequence[Field], growth: Growth, fields: Mapping[str, Meaning]
) -> None:
    """Raises if a state holds parameters whose new entries are random: it needs the variables."""
    held = [field for field in found if field.known(fields)[0] == "parameters"]
    drawn = [field for field in held if growth.maps[field.leaf.path].needs]
    is_inserted = any(edit.is_random for edit in growth.inserted)
    if first := drawn or (held if is_inserted else []):
        raise ValueError(
            f"grow_opt_state: this state holds parameters, or averages of them ({first[0].place}), "
            "and new entries of these are random; pass the grown variables, "
            "variables=dw.grow(...)"
        )


def _shapes_of(start: Callable[[], PyTree]) -> PyTree:
    """Returns the shapes of the initial state for the larger network."""
    try:
        return jax.eval_shape(start)
    except jax.errors.ConcretizationTypeError:  # an optimizer that branches on hyperparameters
        with jax.ensure_compile_time_eval():
            return start()
    except (TypeError, ValueError) as error:
        error.add_note(
            "tx.init was called with the parameters of the larger network. If tx holds a tree laid "
            "out like the old ones, such as labels or a mask, create a new tx"
        )
        raise


def _as_wrapped(state: PyTree, growth: Growth, tx: Any) -> PyTree:
    """Returns a state without arrays that follow the network's, with the wrappers of ``tx``."""
    start = state if has_growable(state) else _likely_start(tx, growth, state)
    if not has_growable(start):
        return state
    if (
        leaves_by_path(unwrapped_state(start)).keys()
        != leaves_by_path(unwrapped_state(state)).keys()
    ):
        raise ValueError(
            "grow_opt_state: no array of this state follows an array of the network, so it is not "
            "known how tx wraps this state; start anew with tx.init"
        )
    return start


def _with_step_counts(grown: PyTree, like: PyTree, old: PyTree, growth: Growth) -> PyTree:
    """Returns a grown state with every ``GrowableState`` and its step counts.

    Args:
        grown: the grown state, without ``GrowableState``.
        like: a state of the same optimizer, with ``GrowableState``.
        old: the state before the growth; its optimizer may not have been wrapped yet.
        growth: the growth.
    """

    def with_grown_counts(keys: Keys, node: Any) -> Any:
        if not is_growable(node):
            return node
        before = part_at(old, keys)
        inner = before.inner_state if is_growable(before) else before
        step_counts = before.step_counts if is_growable(before) and before.step_counts else None
        places = leaves_by_path(node.inner_state)
        step_counts = grown_step_counts(step_counts, inner, growth, places.__contains__)
        return (
            node if step_counts is None else node._replace(step_counts=_beside(step_counts, inner))
        )

    return jax.tree_util.tree_map_with_path(
        with_grown_counts, rewrapped_state(grown, like), is_leaf=is_growable
    )


def _beside(step_counts: PyTree, state: PyTree) -> PyTree:
    """Returns step counts, replicated on all devices of a state's mesh if it has one."""
    arrays = [leaf for leaf in jax.tree.leaves(state) if isinstance(leaf, jax.Array)]
    if any(map(is_traced, (*arrays, *jax.tree.leaves(step_counts)))):
        return step_counts
    named = (a.sharding for a in arrays if isinstance(a.sharding, jax.sharding.NamedSharding))
    if (first := next(named, None)) is None:
        return step_counts
    spec = jax.sharding.PartitionSpec()  # type: ignore[no-untyped-call]
    everywhere = jax.sharding.NamedSharding(first.mesh, spec)
    return jax.device_put(step_counts, everywhere)


def _grow_plain(
    opt_state: PyTree,
    growth: Growth,
    tx: Any,
    params: PyTree | None,
    variables: PyTree,
    second_moment: str,
    fields: Mapping[str, Meaning],
    expected: PyTree,
    donate: bool = False,
) -> PyTree:
    """Grows the state of an optimizer that is not wrapped; see ``grow_state``.

    ``expected`` has the shapes of the larger state, without the training state around it.
    """
    state, outside = opt_state, ""
    if _is_outside(opt_state):
        state, outside = opt_state.opt_state, "opt_state/"
    arrays, found = leaves_by_path(opt_state), fields_of(opt_state, growth)
    if params is None and (problems := unfollowed(arrays, found)):
        raise ValueError(listed("cannot grow this state", problems))
    found, arrays = _staying(found, arrays, growth)
    if params is None:
        _expect_same_optimizer(state, _likely_start(tx, growth, state))

    def start() -> PyTree:
        """Returns the initial state for the larger network."""
        begun = state if params is None else initial_state(tx, state, params)
        if not outside:
            return begun
        trees: dict[str, list[Field]] = {}
        for field in found:
            if not field.group:
                trees.setdefault(field.name, []).append(field)
        zeros = {
            name: zeros_of(larger_params(opt_state, growth, tree, variables))
            for name, tree in trees.items()
        }
        return opt_state.replace(opt_state=begun, **zeros)

    seen, begins = dict[str, Observed](), dict[str, float]()
    if params is not None and _divides(growth):
        seen = {outside + place: what for place, what in watched(tx, params).items()}
    elif params is not None and second_moment == "zeros":
        begins = {outside + place: number for place, number in starts(tx, params).items()}
    meanings = meanings_of(found, arrays, fields, seen)
    _expect_same_optimizer(state, expected)
    inner, expected = expected, _shapes_of(start) if outside else expected
    shapes = {place: tuple(jnp.shape(leaf)) for place, leaf in leaves_by_path(expected).items()}
    if shardings := explicit_shardings(opt_state):
        return with_automatic_axes(
            lambda opt_state, variables: _grow_plain(
                opt_state, growth, tx, params, variables, second_moment, fields, inner
            ),
            fitting_shardings(leaves_by_path(shardings), shapes),
            *(opt_state, variables),
        )
    begins |= begins_of(found, seen)
    by_mean = second_moment == "mean"
    keeping = Keeping(growth, arrays, meanings, shapes, by_mean=by_mean, begins=begins)
    of_old, (of_new, begun) = keeping.of_old(found), keeping.of_new(found)
    if alone := [one for one in of_old if one.scale is not None and one.scale not in arrays]:
        what = "cannot grow this state; start anew with tx.init"
        missing = (f"{k.places[0]}: is weighted by {k.scale}, which is missing" for k in alone)
        raise ValueError(listed(what, missing))
    moved = {field.place: field.at(growth.held[field.leaf.path].path) for field in found}
    old = {field.place: arrays[field.place] for field in found}
    like = {place: one.like for one in of_new for place in one.places} | begun
    where = placement(
        {moved[place]: array for place, array in old.items()},
        shapes,
        alike={place: old[one] for place, one in like.items()},
        repeated={one.places[0] for one in of_old if one.how.edit.experts},
    )
    own = {} if variables is None else _own(variables, growth, [*of_old, *of_new])

    def begin(places: set[str]) -> dict[str, Array]:
        return where.leave(where.enter(_starts(start, places, where)))

    grown = {moved.get(place, place): array for place, array in arrays.items()}
    if any(isinstance(array, Deferred) for array in old.values()):
        ends = {place: struct_of(leaf) for place, leaf in leaves_by_path(expected).items()}
        grown |= deferred([*of_old, *of_new], begun, old, own, ends, begin)
    else:
        # With new layers, several arrays may be made from one old array.
        donate = donate and not of_new
        grown |= made_in_rounds([*of_old, *of_new], old, own, where, donate=donate)
        dtypes = {place: jnp.result_type(old[one]) for place, one in begun.items()}
        grown |= {place: a.astype(dtypes[place]) for place, a in begin({*begun}).items()}
    return _fitted(grown, expected, shapes)


def _staying(
    found: Sequence[Field], arrays: Mapping[str, Any], growth: Growth
) -> tuple[list[Field], dict[str, Any]]:
    """Returns the fields and arrays of the state, without those of arrays that the growth removes.

    Raises:
        ValueError: if an array with a vector for each axis becomes experts, or its units get a
            different order in each layer.
    """
    gone = {field.place for field in found if field.leaf.path not in growth.held}
    found = [field for field in found if field.place not in gone]
    problems = list[str]()
    for field in found:
        edit = growth.held[field.leaf.path]
        if field.axis is not None and edit.experts:
            problems.append(
                f"{field.place}: is a vector along one axis of an array that becomes experts"
            )
        elif field.axis in [order.axis for order in edit.orders]:
            problems.append(f"{field.place}: has one value per unit for all layers")
    if problems:
        what = "cannot grow this state; start anew with tx.init"
        raise ValueError(listed(what, problems))
    return found, {place: array for place, array in arrays.items() if place not in gone}


def _fitted(
    grown: Mapping[str, Any], expected: PyTree, shapes: Mapping[str, tuple[int, ...]]
) -> PyTree:
    """Returns the larger state, after checking that its arrays have the expected shapes."""
    problems = [
        f"{place}: tx.init makes no such array; pass the optimizer whose init made it, or start "
        "anew with tx.init"
        for place in grown
        if place not in shapes
    ]
    problems += [
        f"{place}: grows to {jnp.shape(grown[place])}, but for the larger network tx expects "
        f"{shape}"
        for place, shape in shapes.items()
        if place in grown and jnp.shape(grown[place]) != shape
    ]
    problems += [f"{place}: missing in this state" for place in shapes if place not in grown]
    if problems:
        raise ValueError(listed("cannot grow this state", problems))
    return jax.tree.unflatten(jax.tree.structure(expected), [grown[place] for place in shapes])


def _expect_state(
    opt_state: PyTree, arrays: Mapping[str, Any], found: Sequence[Field], growth: Growth
) -> None:
    """Raises if a state is no optimizer state, is another network's, or has grown already."""
    leaf_paths = [leaf.path for leaf in growth.widths.leaves]
    known = {*leaf_paths}
    inner = {path.partition("/")[2] for path in known}
    if arrays.keys() in (known, inner) and not optimizer_states(opt_state):
        raise TypeError(
            "grow_opt_state: opt_state must be the state of an optimizer, got the network's "
            "variables; tx.init(variables) is the state of a new optimizer"
        )
    # optax.flatten puts all parameters into one vector, so only arrays with more axes have names.
    others = [path for path, array in arrays.items() if jnp.ndim(array) > 1]
    # A layer of another network may have the names of a layer of this network by chance.
    tree_sizes = Counter(field.tree for field in found)
    by_chance = {f.tree for f in found if f.owner[0] in ("dict", "list", "tuple")}
    by_chance = {tree for tree in by_chance if tree_sizes[tree] <= len(known) / 2}
    if others and all(field.tree in by_chance for field in found):
        raise ValueError(
            f"grow_opt_state: this state holds {some(others)}, but the growth's arrays are "
            f"{some(leaf_paths)}, so it is another network's; pass the growth of the network that "
            "this state belongs to"
        )
    shapes = [
        (jnp.shape(arrays[field.place]), field.leaf)
        for field in found
        if field.axis is None and not field.factored
    ]
    grown = all(shape == growth.shapes[leaf.path] for shape, leaf in shapes)
    if grown and any(shape != leaf.shape for shape, leaf in shapes):
        raise ValueError(
            "grow_opt_state: this state has grown already, by a growth like this one; for a second "
            "growth, trace and plan again"
        )


def _expect_same_optimizer(state: PyTree, expected: PyTree) -> None:
    """Raises if a state is another optimizer's."""
    if {*optimizer_states(state)} != {*optimizer_states(expected)}:
        raise ValueError(
            f"grow_opt_state: this state does not belong to tx: expected {described(expected)}, "
            f"got {described(state)}; pass the optimizer whose init made it"
        )


def _likely_start(tx: Any, growth: Growth, state: PyTree) -> PyTree:
    """Returns a state like the initial one of an optimizer, or the given one if ``tx.init`` fails.

    ``tx.init`` is called with a dict of the network's arrays. Some optimizers do not accept it, for
    example those that divide parameters into groups.
    """
    arrays = {leaf.path: struct(leaf.shape, jnp.float32) for leaf in growth.widths.leaves}
    try:
        return jax.eval_shape(tx.init, arrays)
    except (AttributeError, KeyError, TypeError, ValueError):
        return state


def _divides(growth: Growth) -> bool:
    """Whether gradients of the larger network are old gradients times a factor other than one."""
    fates = {change.strategy.outgoing for change in growth.changes}
    repeated = any(edit.experts for edit in growth.inserted)
    rescaled = any(leaf_map.rescales for leaf_map in growth.maps.values())
    return repeated or rescaled or not fates.isdisjoint(("share", "sum"))


def _own(
    variables: PyTree,
    growth: Growth,
    kept: Iterable[Kept],
) -> dict[str, Array]:
    """Returns the grown variables with which averages of parameters start, by path."""
    given = leaves_by_path(variables)
    given = {path.partition("/")[2]: leaf for path, leaf in given.items()} | given
    wanted = [one.variable for one in kept if one.how.meaning == "parameters"]
    shapes = {path: edit.shape for path, edit in growth.edits.items()}
    # All given variables must have grown: the state gets their tree structure.
    every = [*shapes] if shapes.keys() <= leaves_by_path(variables).keys() else wanted
    names = {path: path if path in given else path.partition("/")[2] for path in every}
    problems = [
        f"{path}: {f'has shape {jnp.shape(given[name])}' if name in given else 'missing'} in "
        f"variables=, expected shape {shapes[path]}; pass the grown variables"
        for path, name in names.items()
        if name not in given or jnp.shape(given[name]) != shapes[path]
    ]
    if problems:
        raise ValueError(listed("cannot grow this state", problems))
    return {path: given[names[path]] for path in wanted}


def _starts(start: Callable[[], PyTree], places: set[str], where: Placement) -> dict[str, Array]:
    """Returns some arrays of the initial state for the larger network."""

    def some() -> dict[str, Array]:
        begun = leaves_by_path(start())
        return where.constrain({place: begun[place] for place in begun if place in places})

    try:
        arrays: dict[str, Array] = jax.jit(some)() if places else {}
    except jax.errors.ConcretizationTypeError:
        arrays = some()
    return arrays
