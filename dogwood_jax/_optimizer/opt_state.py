"""Grow the optimizer's state along: ``grow_opt_state``.

Whatever an optimizer keeps for each parameter is an average of gradients, of their powers, or of
the parameters themselves. The first two transform by the adjoint of the growth, the last like the
parameters; so all of it follows from the ``Growth``, once the meaning of each field is known.
"""

import functools
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from dogwood_jax._arrays.apply_map import apply_map
from dogwood_jax._arrays.explicit_axes import explicit_shardings, with_automatic_axes
from dogwood_jax._arrays.insert import fill, stacked
from dogwood_jax._arrays.rounds import bytes_of, delete, rounds, several_times
from dogwood_jax._arrays.unshared import unshared
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
from dogwood_jax._base.deferred import Deferred, made
from dogwood_jax._base.described import described, optimizer_states
from dogwood_jax._base.problems import listed
from dogwood_jax._base.trees import (
    Keys,
    PyTree,
    is_traced,
    leaf_path,
    leaves_by_path,
    level,
    struct,
    struct_of,
    tree_of_indices,
)
from dogwood_jax._growth.growth import Growth
from dogwood_jax._growth.insertion import Insertion
from dogwood_jax._growth.leaf_map import LeafMap
from dogwood_jax._growth.pairing import closest
from dogwood_jax._growth.shardings import ANYWHERE, Placement, fitting_shardings, placement
from dogwood_jax._modules.resizing import Resizing
from dogwood_jax._optimizer.ages import Moments, grown_ages
from dogwood_jax._optimizer.factored import read, written
from dogwood_jax._optimizer.fields import (
    DEGREES,
    Field,
    Meaning,
    Seen,
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
from dogwood_jax._optimizer.ordered import ordered
from dogwood_jax._widths.widths import Leaf


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
    """Grows the state of an optimizer as the variables grew, so that training goes on.

    Gradients transform by the adjoint of the growth. It multiplies old entries by coefficients, for
    second moments by their squares. The result is the state that the larger network would have if
    it had been trained with the same gradients. Step counts, schedules, hyperparameters and random
    keys stay as they are, and so do norms of whole arrays (Novograd, DoG, Prodigy). Adafactor and
    SM3 keep only numbers for rows and columns, so their states are not exact. The guide "In your
    own training loop" has a table of the optimizers whose steps of old entries depend on new ones.

    Wrap the optimizer once, ``tx = dw.growable(tx)``. Then new entries take the steps of a new
    optimizer, and copies together move at first as their unit did. ``opt_state`` may come from an
    optimizer that was not wrapped yet.

    Without ``growable``, both moments of new entries are zero, but the step count is large, so Adam
    does not correct their bias. With b1 = 0.9, b2 = 0.999 and a steady gradient, its first update
    of a new entry is 3.16 times the learning rate, and later ones are up to 6.6 times. A warning
    says so. ACProp divides by the second moment before the step, which is zero: its first step of
    a new entry has no bound. With ``second_moment="mean"`` new entries hardly move for about
    ``1 / (1 - b2)`` steps instead. An example: 784-32-10 on MNIST grows to 128 units after one
    epoch of ten (Adam 1e-3, batches of 128, three seeds). It reaches a test loss of 0.064 with
    ``growable``, 0.065 with zeros and 0.110 with the mean. From scratch it reaches 0.069 in twelve
    epochs.

    With ``"mean"``, second moments of an inserted layer get the largest value in the arrays that
    are closest to it by name and have its shape: ``block_2/up/kernel`` gets that of
    ``block_1/up/kernel`` and of its like. If no such array has its shape, it is the largest value
    in all arrays. A mean would be too small: all weights of a new layer learn at once, and some
    have much larger gradients. But in a stack over which a loop runs, new layers do get the mean of
    old ones.

    Args:
        opt_state: the state: of any Optax optimizer or chain, or a Flax ``TrainState``.
        growth: from ``plan``: growing, narrowing or merging; static under ``jax.jit``.
        tx: the optimizer, ``optax.GradientTransformation``. It tells the shapes of the state for
            the larger network.
        variables: the grown variables, for states that hold parameters or averages of them, as a
            ``TrainState``, DoG, Prodigy and schedule-free optimizers do. New entries of these begin
            with the parameters' values. Such states need ``variables`` where new entries are
            random. Modules in the state that hold sizes beside their arrays, as Equinox's do, get
            the sizes of those in ``variables``. A ``TrainState`` holds ``tx`` afterwards.
        second_moment: what new entries of second moments are, ``"zeros"`` (the default) or the
            ``"mean"`` of old ones.
        fields: meanings of fields that are not known here, by name (``"momentum"`` or
            ``"MyState.momentum"``): ``"first"`` and ``"second"`` for averages of gradients and of
            their squares, ``"magnitude"`` for those of absolute values (also Adamax's ``nu``),
            ``"update"`` for averages of updates that no longer scale with the gradient, ``"step"``
            for step sizes, ``"parameters"`` for averages of parameters. An ``optax.ema`` on its
            own may average either gradients or parameters: ``{"ema": "parameters"}``.
        donate: whether old arrays that grow may be deleted, each when its new one is there, as by
            ``grow``. It has no effect under ``jax.jit``, nor where layers are inserted.
        copy: whether arrays that stay as they are become copies, as by ``grow``. By default, both
            states share them.

    Returns:
        The state, for the grown parameters.

    Raises:
        TypeError: if arguments are of the wrong kind, or in the wrong order.
        ValueError: for the state of another optimizer, a field shaped like parameters whose
            meaning is not known, a state that is not of this growth's network, or modules of which
            it is not known what they say in the larger network; all of them in one message. And
            for a state that holds parameters whose new entries are random, without ``variables``.

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
        The adjoint follows from the chain rule. Kingma and Ba, 2015, Adam, for the bias
        correction.
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

    ``params`` are the shapes of the larger network's parameters as ``tx.init`` takes them. If they
    are None, they are read from the state.
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
    if growth.orders:
        opt_state, growth = ordered(opt_state, growth), growth.in_order
    plain = unwrapped_state(opt_state)
    found = fields_of(plain, growth)
    _expect_state(plain, leaves_by_path(plain), found, growth)
    is_outside = _is_outside(opt_state)
    if variables is None:
        _expect_no_parameters(found, growth, fields)
    state, old = (t.opt_state if is_outside else t for t in (plain, opt_state))
    if params is None:
        found = fields_of(state, growth) if is_outside else found
        params = _params(state, growth, found, variables)
    if params is None:
        like = _as_wrapped(old, growth, tx)
    else:
        like = _shapes_of(lambda: _initial(tx, state, params))
    moment = second_moment or "zeros"
    if not has_growable(like):
        known = {leaf.path: leaf for leaf in growth.widths.leaves}
        is_new = any(not insertion.is_as_it_was for insertion in growth.insertions)
        is_larger = is_new or any(c.new > c.old for c in growth.changes)
        moments = Moments(plain, known)
        grown = _grow_plain(plain, growth, tx, params, variables, moment, fields, like, donate)
        if second_moment is None and is_larger and {*moments.counts} - moments.first_steps:
            warnings.warn(_ONE_COUNT, stacklevel=3)
        return grown
    inner, start = unwrapped(tx), unwrapped_state(like)
    grown = _grow_plain(plain, growth, inner, params, variables, moment, fields, start, donate)
    if is_outside:  # it holds its optimizer, too, which may not have been wrapped before
        own = {"tx": tx} if hasattr(grown, "tx") else {}
        return grown.replace(opt_state=_with_ages(grown.opt_state, like, old, growth), **own)
    return _with_ages(grown, like, old, growth)


_ONE_COUNT = (
    "grow_opt_state: this optimizer has one step count for old and new entries, so that the first "
    "steps of new ones are up to 6.6 learning rates long. Wrapped once, tx = dw.growable(tx), it "
    "counts for each; it takes over this state (of an nnx.Optimizer or a TrainState, wrap its tx). "
    "second_moment= silences this warning"
)


def _is_outside(opt_state: PyTree) -> bool:
    """Whether a state is one of training, such as Flax's ``TrainState``, with another inside."""
    return hasattr(opt_state, "opt_state") and hasattr(opt_state, "replace")


def _expect_no_parameters(
    found: Sequence[Field], growth: Growth, fields: Mapping[str, Meaning]
) -> None:
    """Raises if a state holds parameters with random entries, which only the variables have."""
    held = [field for field in found if field.known(fields)[0] == "parameters"]
    drawn = [field for field in held if growth.maps[field.leaf.path].needs]
    is_inserted = any(
        (insertion.fill, insertion.kind) == ("free", "random") or insertion.anew
        for insertion in growth.insertions
    )
    if first := drawn or (held if is_inserted else []):
        raise ValueError(
            f"grow_opt_state: this state holds parameters, or averages of them ({first[0].place}), "
            "and new entries of these are random; pass the grown variables, "
            "variables=dw.grow(...)"
        )


def _shapes_of(start: Callable[[], PyTree]) -> PyTree:
    """Returns the shapes of the state with which training of the larger network would start."""
    try:
        return jax.eval_shape(start)
    except jax.errors.ConcretizationTypeError:  # an optimizer that looks at its hyperparameters
        with jax.ensure_compile_time_eval():
            return start()
    except (TypeError, ValueError) as error:
        error.add_note(
            "tx.init was called with the parameters of the larger network. A tx that holds "
            "something like the old ones, such as a tree of labels or a mask, has to be made anew"
        )
        raise


def _as_wrapped(state: PyTree, growth: Growth, tx: Any) -> PyTree:
    """Returns a state in which nothing follows the network's arrays as ``tx`` wraps it."""
    start = state if has_growable(state) else _likely_start(tx, growth, state)
    if not has_growable(start):
        return state
    if (
        leaves_by_path(unwrapped_state(start)).keys()
        != leaves_by_path(unwrapped_state(state)).keys()
    ):
        raise ValueError(
            "grow_opt_state: nothing in this state follows the network's arrays, so it cannot be "
            "told how tx wraps it; start anew with tx.init"
        )
    return start


def _with_ages(grown: PyTree, like: PyTree, old: PyTree, growth: Growth) -> PyTree:
    """Returns a grown state with the ages of entries, for the optimizers in it that can grow.

    Args:
        grown: the grown state, without ``GrowableState``.
        like: a state of the same optimizer that has it.
        old: the state before the growth; its optimizer may not have been wrapped yet.
        growth: the growth.
    """

    def aged(keys: Keys, node: Any) -> Any:
        if not is_growable(node):
            return node
        before = _part(old, keys)
        inner = before.inner_state if is_growable(before) else before
        ages = before.ages if is_growable(before) and before.ages else None
        places = leaves_by_path(node.inner_state)
        ages = grown_ages(ages, inner, growth, places.__contains__)
        return node if ages is None else node._replace(ages=_beside(ages, inner))

    return jax.tree_util.tree_map_with_path(aged, rewrapped_state(grown, like), is_leaf=is_growable)


def _beside(ages: PyTree, state: PyTree) -> PyTree:
    """Returns ages on all devices of a mesh that a state is divided over, if it is."""
    arrays = [leaf for leaf in jax.tree.leaves(state) if isinstance(leaf, jax.Array)]
    if any(map(is_traced, (*arrays, *jax.tree.leaves(ages)))):
        return ages
    named = (a.sharding for a in arrays if isinstance(a.sharding, jax.sharding.NamedSharding))
    if (first := next(named, None)) is None:
        return ages
    spec = jax.sharding.PartitionSpec()  # type: ignore[no-untyped-call]
    everywhere = jax.sharding.NamedSharding(first.mesh, spec)
    return jax.device_put(ages, everywhere)


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

    ``expected`` has the shapes of the larger network's state, without what is outside of it.
    """
    state, outside = opt_state, ""
    if _is_outside(opt_state):
        state, outside = opt_state.opt_state, "opt_state/"
    arrays, found = leaves_by_path(opt_state), fields_of(opt_state, growth)
    if params is None and (problems := unfollowed(arrays, found)):
        raise ValueError(listed("cannot grow this state", problems))
    stay = {leaf.path for leaf in growth.staying}
    gone = {field.place for field in found if field.leaf.path not in stay}
    found = [field for field in found if field.place not in gone]
    arrays = {place: array for place, array in arrays.items() if place not in gone}
    repeated = {i.old for i in growth.insertions if i.repeats}
    if by_axis := [f for f in found if f.axis is not None and f.leaf.path in repeated]:
        problems = [f"{f.place}: has a number for each place along one axis" for f in by_axis]
        problem = "cannot grow this state to that of experts; start anew with tx.init"
        raise ValueError(listed(problem, problems))
    if params is None:
        _expect_same_optimizer(state, _likely_start(tx, growth, state))

    def start() -> PyTree:
        """Returns the state with which training of the larger network would start."""
        begun = state if params is None else _initial(tx, state, params)
        if not outside:
            return begun
        trees: dict[str, list[Field]] = {}
        for field in found:
            if not field.group:
                trees.setdefault(field.name, []).append(field)
        zeros = {
            name: _zeros(_params(opt_state, growth, tree, variables))
            for name, tree in trees.items()
        }
        return opt_state.replace(opt_state=begun, **zeros)

    seen, begun_at = dict[str, Seen](), dict[str, float]()
    if params is not None and _divides(growth):
        seen = {outside + place: what for place, what in watched(tx, params).items()}
    elif params is not None and second_moment == "zeros":
        begun_at = {outside + place: start for place, start in starts(tx, params).items()}
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

    def maps(field: Field, meaning: Meaning) -> LeafMap:
        """Returns what becomes of a field: of an average of gradients, by the adjoint."""
        leaf_map = growth.maps[field.leaf.path]
        if meaning == "parameters":
            return leaf_map
        is_zero = meaning in ("first", "update") or second_moment == "zeros"
        leaf_map = leaf_map.adjoint(DEGREES[meaning], "zero" if is_zero else "mean")
        return leaf_map if field.axis is None else leaf_map.along(field.axis)

    def scale(field: Field) -> str | None:
        """Returns where the array is that weighs a field in means."""
        path = field.leaf.path
        is_weighed = meanings[field.place] == "parameters" and path in growth.weighed
        return field.at(growth.weighed[path]) if is_weighed else None

    # What adds up keeps its start for ever; what is new starts there.
    begun_at |= {f.place: seen[f.place].start for f in found if f.adds_up and f.place in seen}
    known = [
        _KnownField(f, meaning, begun_at.get(f.place, 0.0), maps(f, meaning), scale=scale(f))
        for f in found
        if (meaning := meanings.get(f.place)) is not None
    ]
    if alone := [k for k in known if k.scale is not None and k.scale not in arrays]:
        raise ValueError(
            listed(
                "cannot grow this state; start anew with tx.init",
                (f"{k.field.place}: is weighed by {k.scale}, which is not there" for k in alone),
            )
        )
    new = tuple(a for a in _new_arrays(found, growth, meanings, arrays) if a.field.place in shapes)
    moved = {field.place: field.at(growth.place(field.leaf.path)) for field in found}
    grown = {moved.get(place, place): array for place, array in arrays.items()}
    old = {field.place: arrays[field.place] for field in found}
    where = placement(
        {moved[place]: array for place, array in old.items()},
        shapes,
        alike={one.field.place: old[one.kin[0].place] for one in new},
    )
    own = None if variables is None else _own(variables, growth, known, new)
    growing = _growing(known, growth, shapes)

    def fill_new(
        new: tuple[_NewState, ...], old: dict[str, Any], grown: dict[str, Any], own: Any
    ) -> dict[str, Array]:
        begun = _starts(start, {array.field.place for array in new}, where)
        entered = where.enter(old), where.enter(begun), where.enter(grown), where.enter(own)
        filled = _fill_fields(*entered, growth, new, tuple(shapes.items()), second_moment, where)
        return where.leave(filled)

    if any(isinstance(array, Deferred) for array in old.values()):
        ends = {place: struct_of(leaf) for place, leaf in leaves_by_path(expected).items()}
        filled = _deferred(growing, new, old, own, growth, ends, second_moment, fill_new)
    else:
        filled = _grow_in_rounds(
            growing, old, own, growth, second_moment, where, donate and not new
        )
        filled |= fill_new(new, old, filled, own) if new else {}
    grown |= filled
    problems = [
        f"{place}: tx.init makes no such state; pass the optimizer whose init made it, or start "
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
    """Raises if a state is none, is another network's, or has grown already."""
    leaf_paths = [leaf.path for leaf in growth.widths.leaves]
    known = {*leaf_paths}
    inner = {path.partition("/")[2] for path in known}
    if arrays.keys() in (known, inner) and not optimizer_states(opt_state):
        raise TypeError(
            "grow_opt_state: opt_state must be the state of an optimizer, got the network's "
            "variables; tx.init(variables) is the state of a new optimizer"
        )
    # optax.flatten makes one vector of all parameters, so arrays of more axes are named.
    others = [path for path, array in arrays.items() if jnp.ndim(array) > 1]
    # A layer of another network may be like a layer of this one by chance.
    tree_sizes = Counter(field.tree for field in found)
    by_chance = {f.tree for f in found if f.owner[0] in ("dict", "list", "tuple")}
    by_chance = {tree for tree in by_chance if tree_sizes[tree] <= len(known) / 2}
    if others and all(field.tree in by_chance for field in found):
        raise ValueError(
            f"grow_opt_state: this state holds {some(others)}, none of them called like an array "
            f"of the growth, {some(leaf_paths)}, so it is another network's; pass the growth of "
            "the network that this state is of"
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
            f"grow_opt_state: tx has no such state: expected {described(expected)}, got "
            f"{described(state)}; pass the optimizer whose init made it"
        )


def _likely_start(tx: Any, growth: Growth, state: PyTree) -> PyTree:
    """Returns a state like one that an optimizer starts with, or the given one if it is not known.

    ``tx.init`` is called with a dict of the network's arrays. Some optimizers do not take it, such
    as those that divide parameters into groups.
    """
    arrays = {leaf.path: struct(leaf.shape, jnp.float32) for leaf in growth.widths.leaves}
    try:
        return jax.eval_shape(tx.init, arrays)
    except (AttributeError, KeyError, TypeError, ValueError):
        return state


def _divides(growth: Growth) -> bool:
    """Whether gradients of the larger network are multiples of the old ones, other than one."""
    fates = {change.strategy.outgoing for change in growth.changes}
    repeated = any(insertion.repeats for insertion in growth.insertions)
    rescaled = any(leaf_map.rescales for leaf_map in growth.maps.values())
    return repeated or rescaled or not fates.isdisjoint(("share", "sum"))


def _own(
    variables: PyTree,
    growth: Growth,
    known: Iterable["_KnownField"],
    new: Iterable["_NewState"],
) -> dict[str, Array]:
    """Returns the grown variables at which averages of parameters begin, by path."""
    given = leaves_by_path(variables)
    given = {path.partition("/")[2]: leaf for path, leaf in given.items()} | given
    wanted = [growth.place(k.field.leaf.path) for k in known if k.meaning == "parameters"]
    wanted += [array.insertion.path for array in new if array.meaning == "parameters"]
    shapes = {growth.place(path): shape for path, shape in growth.shapes.items()}
    shapes |= {insertion.path: insertion.shape for insertion in growth.insertions}
    # What is there must have grown, wanted or not: the state gets the tree of these variables.
    every = [*shapes] if shapes.keys() <= leaves_by_path(variables).keys() else wanted
    names = {path: path if path in given else path.partition("/")[2] for path in every}
    problems = [
        f"{path}: {f'has shape {jnp.shape(given[name])}' if name in given else 'missing'} in "
        f"variables=, expected shape {shapes[path]}; pass the variables that have grown"
        for path, name in names.items()
        if name not in given or jnp.shape(given[name]) != shapes[path]
    ]
    if problems:
        raise ValueError(listed("cannot grow this state", problems))
    return {path: given[names[path]] for path in wanted}


# The larger network's parameters ------------------------------------------------------------------


def _params(
    opt_state: PyTree, growth: Growth, found: list[Field], variables: PyTree
) -> PyTree | None:
    """Returns the shapes of the larger network's parameters, from a field that is laid out so.

    They come in the tree of the grown variables or of the larger model, where one is known.

    Raises:
        ValueError: if modules in the state say sizes, and nothing shows which ones are right.
    """
    whole = [field for field in found if field.axis is None]
    if not whole:
        return None
    first, *_ = whole
    paths = {leaf_path(keys): keys for keys, _ in jax.tree_util.tree_leaves_with_path(opt_state)}

    def start(field: Field) -> Keys:
        keys = paths[field.place]
        return keys[: next(i for i in range(len(keys)) if leaf_path(keys[i:]) == field.inner)]

    trees = [_part(opt_state, keys) for keys in dict.fromkeys(map(start, whole))]
    shapes = {leaf.path: leaf.shape for leaf in growth.widths.leaves}

    def is_masked(node: Any) -> bool:
        return type(node).__name__ == "MaskedNode"

    def own(keys: Keys, leaf: Any) -> PyTree:
        path = first.collection + leaf_path(keys)
        if not is_masked(leaf):
            return struct(shapes.get(path, jnp.shape(leaf)), jnp.result_type(leaf))
        if path not in shapes:  # a mask may stand for all arrays below, which are elsewhere
            for tree in trees:
                with suppress(KeyError):
                    if not is_masked(part := _part(tree, keys)):
                        return all_own(part, keys)
        return struct(shapes.get(path, ()), jnp.float32)

    def all_own(tree: PyTree, above: Keys = ()) -> PyTree:
        return jax.tree_util.tree_map_with_path(
            lambda keys, leaf: own((*above, *keys), leaf), tree, is_leaf=is_masked
        )

    tree = all_own(trees[0])
    old = {first.collection + path: leaf for path, leaf in leaves_by_path(tree).items()}
    larger, deeper = None, bool(growth.insertions or growth.layers)
    structure = growth.structure if variables is None or deeper else jax.tree.structure(variables)
    if structure is None and variables is not None:
        structure = jax.tree.structure(variables)
    if structure is not None:
        larger = _collection(tree_of_indices(structure), first.collection)
    if larger is None or not (deeper or _kinds(tree).items() <= _kinds(larger).items()):
        known = growth.widths.leaves
        resizing = Resizing(known, growth.sizes, first.collection)
        larger = resizing.resized(tree)
        if resizing.problems:
            way_out = "pass the variables that have grown as variables="
            problems = (f"{problem}; {way_out}" for problem in resizing.problems)
            raise ValueError(listed("cannot grow this state", problems))
    inserted = {insertion.path: insertion for insertion in growth.insertions}
    grown = growth.shapes | {path: insertion.shape for path, insertion in inserted.items()}

    def one(keys: Any, _: Any) -> Any:
        path = first.collection + leaf_path(keys)
        like: Sequence[str] = [path]
        if insertion := inserted.get(path):
            everywhere = (leaf.path for leaf in growth.widths.leaves)
            like = [insertion.old] if insertion.old else closest(path, everywhere)
        found = next((old[p] for p in like if p in old), None)
        # The optimizer keeps nothing for arrays like this one, so it is no parameter.
        return None if found is None else struct(grown.get(path, found.shape), found.dtype)

    return jax.tree_util.tree_map_with_path(one, larger)


def _part(tree: PyTree, keys: Keys) -> PyTree:
    """Returns the part of a tree that lies at some keys."""
    for key in keys:
        tree = dict(level(tree)[0])[(key,)]
    return tree


def _kinds(tree: PyTree) -> dict[str, tuple[Any, ...]]:
    """Returns the types of the nodes that each leaf of a tree lies in, by its keys."""
    parts, structure = level(tree)
    if structure.node_data() is None:
        return {"": ()}
    return {
        jax.tree_util.keystr(key) + keys: (type(tree), *types)
        for key, part in parts
        for keys, types in _kinds(part).items()
    }


def _collection(tree: PyTree, name: str) -> PyTree:
    """Returns a collection of the variables, called ``"params/"`` or so; all if they have none."""
    parts = ((leaf_path(keys), part) for keys, part in level(tree)[0])
    return next((part for path, part in parts if f"{path}/" == name), tree)


def _zeros(shapes: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)


def _initial(tx: Any, state: PyTree, params: PyTree) -> PyTree:
    """Returns the state that an optimizer starts with, for parameters of these shapes."""
    zeros = _zeros(params)
    if type(state).__name__ == "LookaheadState":
        import optax

        zeros = optax.LookaheadParams.init_synced(zeros)
    return tx.init(zeros)


def _starts(start: Callable[[], PyTree], places: set[str], where: Placement) -> dict[str, Array]:
    """Returns some of the arrays that training of the larger network would start with."""

    def some() -> dict[str, Array]:
        begun = leaves_by_path(start())
        return where.constrain({place: begun[place] for place in begun if place in places})

    try:
        arrays: dict[str, Array] = jax.jit(some)() if places else {}
    except jax.errors.ConcretizationTypeError:
        arrays = some()
    return arrays


# The state's arrays -------------------------------------------------------------------------------


@dataclass(frozen=True)
class _KnownField:
    """An array of the state that follows an old array of the network.

    Attributes:
        field: where it is.
        meaning: what the field holds.
        start: the number that the optimizer starts it with, as Adagrad does; new entries get it.
        map: what becomes of it.
        shape: for a second moment that may be factored, its shape in the larger network's state.
        stack: what becomes of its layers, if it is a stack that gets more of them, or how it is
            repeated, if it becomes an array of experts.
        scale: where the array is in the state that weighs its entries in means; None for none.
    """

    field: Field
    meaning: Meaning
    start: float
    map: LeafMap
    shape: tuple[int, ...] | None = None
    stack: Insertion | None = None
    scale: str | None = None

    def places(self, path: str) -> list[str]:
        """The paths in the state of what is kept for an array of the network."""
        return _places(self.field, path)


def _places(field: Field, path: str) -> list[str]:
    """Returns the paths in the state of what a field keeps for an array of the network."""
    names = (None, "v_row", "v_col") if field.factored else (None,)
    return [field.at(path, name) for name in names]


@dataclass(frozen=True)
class _NewState:
    """An array of the state that follows a new array of the network.

    Attributes:
        field: where it is.
        insertion: what the network's array is filled with.
        kin: the same field of the old arrays that are closest by name.
        peers: those of them that have its shape or, if none of them has, of all old arrays.
        meaning: what the field holds; None for one number for a whole array.
        dtype: its dtype.
    """

    field: Field
    insertion: Insertion
    kin: tuple[Field, ...]
    peers: tuple[Field, ...]
    meaning: Meaning | None
    dtype: Any


def _new_arrays(
    found: Iterable[Field],
    growth: Growth,
    meanings: Mapping[str, Meaning],
    arrays: Mapping[str, Any],
) -> Iterator[_NewState]:
    """Yields what the state may hold for new arrays of the network."""
    trees: dict[tuple[str, str], list[Field]] = {}
    for field in found:
        trees.setdefault(field.tree, []).append(field)
    for insertion in growth.insertions:
        for tree in trees.values() if insertion.old is None else ():
            names = closest(insertion.path, [field.leaf.path for field in tree])
            kin = tuple(field for field in tree if field.leaf.path in names)
            alike = tuple(f for f in kin if growth.shapes[f.leaf.path] == insertion.shape)
            inner = insertion.path.removeprefix(kin[0].collection)
            leaf = Leaf(insertion.path, insertion.shape, ())
            axes = [None] if kin[0].axis is None else range(len(insertion.shape))
            for axis in axes:
                field = replace(kin[0], inner=inner, leaf=leaf, axis=axis)
                peers = alike or tuple(tree)
                place = kin[0].place
                dtype = jnp.result_type(arrays[place])
                yield _NewState(field, insertion, kin, peers, meanings.get(place), dtype)


def _growing(
    known: Iterable[_KnownField], growth: Growth, shapes: Mapping[str, tuple[int, ...]]
) -> list[_KnownField]:
    """Returns those arrays of the state that become other ones, with what becomes of them."""
    growing = []
    for one in known:
        path = one.field.leaf.path
        stack = growth.moved.get(path)
        is_scaled = one.meaning == "parameters" and bool(stack and stack.scales)
        stack = stack if stack and (stack.layers or stack.repeats or is_scaled) else None
        if stack and one.field.axis is not None:  # a vector along one axis
            its = replace(stack, axis=0, shape=stack.shape[stack.axis :][:1])
            stack = its if one.field.axis == stack.axis else None
        if not one.field.is_factor and (one.map.changes or stack):
            shape = shapes.get(one.field.at(growth.place(path))) if one.field.factored else None
            growing.append(replace(one, shape=shape, stack=stack))
    return growing


def _deferred(
    growing: Iterable[_KnownField],
    new: Iterable[_NewState],
    old: Mapping[str, Any],
    own: Mapping[str, Any] | None,
    growth: Growth,
    ends: Mapping[str, jax.ShapeDtypeStruct],
    second_moment: str,
    fill_new: Callable[..., dict[str, Array]],
) -> dict[str, Any]:
    """Returns the arrays that grow and new ones, each to be made when it is needed.

    Args:
        growing: the arrays that become other ones.
        new: the arrays that follow new ones of the network.
        old: the old arrays, by place.
        own: the grown variables, by path.
        growth: the growth.
        ends: shapes and dtypes of the larger network's state, by place.
        second_moment: see ``grow_opt_state``.
        fill_new: fills in new arrays from old ones, grown ones and the grown variables.
    """
    deferred: dict[str, Any] = {}

    def taken(places: Iterable[str]) -> dict[str, Any]:
        return {place: made(old[place]) for place in places}

    def defer(place: str, dtype: Any, make: Callable[[], dict[str, Array]], **known: Any) -> None:
        if place in ends:
            deferred[place] = Deferred(ends[place].shape, dtype, lambda: make()[place], **known)

    for one in growing:
        path, new_path = one.field.leaf.path, growth.place(one.field.leaf.path)

        def grow(
            one: _KnownField = one, path: str = path, new_path: str = new_path
        ) -> dict[str, Array]:
            scale = [] if one.scale is None else [one.scale]
            arrays, variable = taken([*one.places(path), *scale]), None
            if own is not None and one.meaning == "parameters":
                variable = {new_path: made(own[new_path])}
            return _grow_in_rounds([one], arrays, variable, growth, second_moment, ANYWHERE, False)

        source, mapped = old[one.field.place], None
        if not (one.stack or one.start or one.field.factored or one.meaning == "parameters"):
            mapped = source, one.map
        for place in one.places(new_path):
            defer(place, source.dtype, grow, mapped=mapped, facts=(one, second_moment))
    for newborn in new:
        path, places = newborn.insertion.path, [newborn.field.place]
        peers = newborn.peers
        if newborn.meaning not in ("second", "magnitude") or second_moment == "zeros":
            peers = ()
        elif newborn.field.is_factor:
            continue  # what it is a factor of brings it along
        else:
            places = _places(newborn.field, path)

        def fill(
            newborn: _NewState = newborn, path: str = path, peers: tuple[Field, ...] = peers
        ) -> dict[str, Array]:
            places = [place for peer in peers for place in _places(peer, peer.leaf.path)]
            source = newborn.insertion.source
            variable, grown = None, {}
            if newborn.meaning == "parameters" and own is not None:
                variable = {path: made(own[path])}
            elif newborn.meaning == "parameters" and source is not None:
                copied = newborn.field.at(growth.place(source))
                if copied in deferred:
                    grown = {copied: made(deferred[copied])}
                else:
                    places = [newborn.field.at(source)]
            return fill_new((newborn,), taken(places), grown, variable)

        for place in places:
            defer(place, newborn.dtype, fill)
    return deferred


def _grow_in_rounds(
    growing: Sequence[_KnownField],
    arrays: Mapping[str, Any],
    own: Mapping[str, Any] | None,
    growth: Growth,
    second_moment: str,
    where: Placement,
    donate: bool,
) -> dict[str, Array]:
    """Returns the arrays that follow old ones of the network, by place in the larger state.

    Those that grow alike do so by the same compiled function. See ``_fill_fields`` for the
    arguments.
    """

    def size(one: _KnownField) -> int:
        return sum(bytes_of(arrays[place]) for place in one.places(one.field.leaf.path))

    # What weighs others is needed until they have grown.
    weights = {id(arrays[one.scale]) for one in growing if one.scale is not None}
    keep = several_times(arrays.values()) | weights
    grown: dict[str, Array] = {}
    for alike in rounds(growing, lambda one: _without_names([one]), size if donate else None):
        without_names = _without_names(alike)
        old, fresh, names = dict[str, Any](), dict[str, Any](), dict[str, str]()
        for number, one in zip(without_names, alike, strict=True):
            path, new_path = one.field.leaf.path, growth.place(one.field.leaf.path)
            inner = number.places(number.field.leaf.path)
            old |= {to: arrays[place] for to, place in zip(inner, one.places(path))}
            if one.scale is not None and number.scale is not None:
                old[number.scale] = arrays[one.scale]
            names |= dict(zip(one.places(new_path), inner))
            if own is not None and one.meaning == "parameters":
                fresh[number.field.leaf.path] = own[new_path]
        here = where.renamed(names)
        filled = _grow_fields(
            here.enter(old), here.enter(fresh), without_names, second_moment, here
        )
        filled = here.leave(filled)
        grown |= {place: filled[inner] for place, inner in names.items() if inner in filled}
        if donate:
            delete(old.values(), filled.values(), keep)
    return grown


def _without_names(known: Sequence[_KnownField]) -> tuple[_KnownField, ...]:
    """Returns arrays of the state with numbers for names."""
    numbered = []
    for number, one in enumerate(known):
        name, field = str(number), one.field
        leaf = Leaf(name, field.leaf.shape, ())
        stack = one.stack and replace(one.stack, path=name, source=name)
        field = replace(field, group=name, inner=name, leaf=leaf)
        scale = one.scale and f"scale of {name}"
        numbered.append(replace(one, field=field, stack=stack, scale=scale))
    return tuple(numbered)


@functools.partial(jax.jit, static_argnames=("known", "second_moment", "where"))
def _grow_fields(
    arrays: dict[str, Array],
    own: dict[str, Array],
    known: tuple[_KnownField, ...],
    second_moment: str,
    where: Placement,
) -> dict[str, Array]:
    """Returns arrays that follow old ones of the network, by place; see ``_fill_fields``."""
    grown: dict[str, Array] = {}
    for one in known:
        path, stack = one.field.leaf.path, one.stack
        array = read(one.field, arrays)
        fresh = own[path].astype(array.dtype) if path in own else None
        if fresh is not None and one.field.holds_variables:
            grown[one.field.at(path)] = fresh
            continue
        if one.map.changes:
            layers = stack.entries if stack else ()
            old_rows = np.flatnonzero(np.asarray(layers) >= 0) if layers else None
            rows = fresh
            if stack and fresh is not None and old_rows is not None:
                rows = jnp.take(fresh, old_rows, stack.axis)
            scale = None if one.scale is None else arrays[one.scale]
            array = _widened(array, one, rows, scale)
        if stack:
            array = _deepened(array, stack, one.meaning, fresh, second_moment)
        grown |= written(one.field, path, array, one.shape)
    return where.constrain(grown)


@functools.partial(jax.jit, static_argnames=("growth", "new", "shapes", "second_moment", "where"))
def _fill_fields(
    arrays: dict[str, Array],
    starts: dict[str, Array],
    grown: dict[str, Array],
    own: dict[str, Array] | None,
    growth: Growth,
    new: tuple[_NewState, ...],
    shapes: tuple[tuple[str, tuple[int, ...]], ...],
    second_moment: str,
    where: Placement,
) -> dict[str, Array]:
    """Returns the arrays that follow new ones of the network, by place.

    Args:
        arrays: the old ones, by place.
        starts: what training of the larger network would start with, for new arrays.
        grown: the arrays that follow old ones of the network, by place.
        own: the grown variables, by path.
        growth: the growth.
        new: the arrays that follow new ones of the network.
        shapes: shapes of the larger network's state, by place.
        second_moment: see ``grow_opt_state``.
        where: on which devices they lie.
    """
    wanted = dict(shapes)
    filled: dict[str, Array] = {}
    for newborn in new:
        place, dtype = newborn.field.place, newborn.dtype
        if newborn.meaning == "parameters":
            filled[place] = _filled(newborn, arrays, grown, growth, own).astype(dtype)
        elif newborn.meaning not in ("second", "magnitude") or second_moment == "zeros":
            filled[place] = starts[place].astype(dtype)
        elif not newborn.field.is_factor:
            largest = [jnp.max(read(one, arrays), initial=0) for one in newborn.peers]
            moment = jnp.max(jnp.stack(largest))
            insertion = newborn.insertion
            shape = insertion.shape if newborn.field.axis is None else wanted[place]
            full = jnp.full(shape, moment, dtype)
            filled |= written(newborn.field, insertion.path, full, wanted.get(place))
    return where.constrain(filled)


def _filled(
    new: _NewState,
    arrays: Mapping[str, Array],
    grown: Mapping[str, Array],
    growth: Growth,
    own: Mapping[str, Array] | None,
) -> Array:
    """Returns an average of parameters for a new array: its own values, or those of an identity."""
    insertion, path, source = new.insertion, new.insertion.path, new.insertion.source
    if own is not None:
        return own[path]
    sources = {}
    if source is not None:
        copied = new.field.at(growth.place(source))
        if copied in grown:  # and multiplied as its copies are
            sources[source], insertion = grown[copied], replace(insertion, scales=())
        else:
            sources[source] = arrays[new.field.at(source)]
    filled: dict[str, Array] = fill(sources, (insertion,), {}, None)
    return filled[path]


def _widened(array: Array, known: _KnownField, fresh: Array | None, scale: Array | None) -> Array:
    """Returns an array of the state with its widths grown."""
    if known.meaning == "parameters":
        if known.map.perturb and fresh is not None:
            return fresh
        return apply_map(replace(known.map, perturb=0.0), array, fresh=fresh, scale=scale)
    array = array - known.start if known.start else array
    array = apply_map(known.map, array)
    return array + known.start if known.start else array


def _deepened(
    array: Array,
    insertion: Insertion,
    meaning: Meaning,
    fresh: Array | None,
    second_moment: str,
) -> Array:
    """Returns an array of the state with an entry for each layer of a deeper stack, or expert."""
    if insertion.repeats:
        if meaning == "parameters":
            return jnp.broadcast_to(array, insertion.shape) if fresh is None else fresh
        # Together, the experts get the gradient of the array that they repeat.
        share = insertion.repeats ** -float(DEGREES[meaning])
        return jnp.broadcast_to((array * share).astype(array.dtype), insertion.shape)
    if meaning == "parameters" and (fresh is None or insertion.scales):
        filled: dict[str, Array] = fill({insertion.old: array}, (insertion,), {}, None)
        return filled[insertion.path]
    if fresh is None:
        fresh = jnp.zeros((), array.dtype)
        if meaning not in ("first", "update") and second_moment == "mean" and array.size:
            fresh = jnp.mean(array, insertion.axis, keepdims=True).astype(array.dtype)
    return stacked(replace(insertion, fill="free"), array, fresh)
