"""Grow the optimizer's state along: ``grow_opt_state``.

Whatever an optimizer keeps for each parameter is an average of gradients, of their powers, or of
the parameters themselves. The first two transform by the adjoint of the growth, the last like the
parameters; so all of it follows from the ``Growth``, once the meaning of each field is known.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from dogwood_jax._affine import AxisMap, Fill, map_of_moment, transform
from dogwood_jax._grow import changes, grow_leaf
from dogwood_jax._growth import Growth
from dogwood_jax._layout import Layout, Units
from dogwood_jax._problems import listed
from dogwood_jax._tree import PyTree, leaf_path, leaves_by_path, rebuilt, struct
from dogwood_jax._widths import Leaf

Meaning = Literal["first", "second", "magnitude", "update", "step", "parameters"]

# What the fields of optimizer states hold, by the class that declares them.
_MEANINGS: dict[str, dict[str, Meaning]] = {
    "ScaleByAdamState": {"mu": "first", "nu": "second"},
    "ScaleByAmsgradState": {"mu": "first", "nu": "second", "nu_max": "second"},
    "ScaleByBeliefState": {"mu": "first", "nu": "second"},
    "ScaleByNovogradState": {"mu": "first", "nu": "second"},
    "ScaleByLionState": {"mu": "first"},
    "ScaleByRmsState": {"nu": "second"},
    "ScaleByRStdDevState": {"mu": "first", "nu": "second"},
    "ScaleByRmsWithCountState": {"nu": "second"},
    "ScaleByRStdDevWithCountState": {"mu": "first", "nu": "second"},
    "ScaleByRssState": {"sum_of_squares": "second"},
    "ScaleByRpropState": {"step_sizes": "step", "prev_updates": "update"},
    "ScaleByAdaDeltaState": {"e_g": "second", "e_x": "step"},
    "ScaleBySM3State": {"mu": "second", "nu": "update"},
    "ScaleByOptimisticGradientState": {"trace": "first"},
    "ScaleByAdemamixState": {"m1": "first", "m2": "first", "nu": "second"},
    "ScaleBySimplifiedAdEMAMixState": {"m": "first", "n": "second"},
    "TraceState": {"trace": "first"},
    "EmaState": {"ema": "first"},
    "MuonState": {"mu": "first"},
    "SophiaState": {"mu": "first", "nu": "second"},
    "FactoredState": {"v_row": "second", "v_col": "second", "v": "second"},
    "ApplyEvery": {"grad_acc": "first"},
    "MultiStepsState": {"acc_grads": "first"},
    "AccumulateAvgUpdatesState": {"avg_grad": "first"},
    "MomoState": {"exp_avg": "first"},
    "MomoAdamState": {"exp_avg": "first", "exp_avg_sq": "second"},
    "DAdaptAdamWState": {"exp_avg": "first", "exp_avg_sq": "second", "grad_sum": "first"},
    "ProdigyState": {
        "exp_avg": "first",
        "exp_avg_sq": "second",
        "grad_sum": "first",
        "params0": "parameters",
    },
    "DoGState": {"init_params": "parameters"},
    "DoWGState": {"init_params": "parameters"},
    "ScheduleFreeState": {"z": "parameters"},
    "MechanicState": {"x0": "parameters"},
    "SAMState": {"cache": "parameters"},
    "LookaheadParams": {"fast": "parameters", "slow": "parameters"},
    "TrainState": {"params": "parameters", "batch_stats": "parameters"},
}

# The power of the gradient that each is an average of.
_DEGREES: dict[Meaning, int] = {"first": 1, "second": 2, "magnitude": 1, "update": 0, "step": 0}


@dataclass(frozen=True)
class _Field:
    """A field of an optimizer state: where it is, and which array of the network it follows.

    Attributes:
        group: path of the state that the field belongs to.
        name: name of the field.
        owner: names of the state's class and its bases, the most derived first.
        inner: path of the array inside the field.
        leaf: the array of the network that has this path.
        normalized: whether the updates that reach this state no longer scale with the gradient.
    """

    group: str
    name: str
    owner: tuple[str, ...]
    inner: str
    leaf: Leaf
    normalized: bool

    def beside(self, name: str) -> str:
        """The place of the same array in another field of the state."""
        return "/".join(part for part in (self.group, name, self.inner) if part)

    def at(self, inner: str) -> str:
        """The place of another array in the same field."""
        return "/".join(part for part in (self.group, self.name, inner) if part)

    @property
    def place(self) -> str:
        return self.beside(self.name)

    @property
    def axis(self) -> int | None:
        """The one axis of the array that it follows, where a state keeps a vector for each."""
        last = self.inner.rpartition("/")[2]
        return int(last) if not self.leaf.path.endswith(self.inner) and last.isdigit() else None

    def meaning(self, fields: Mapping[str, Meaning]) -> Meaning | None:
        """What the field holds, as far as the caller or the table knows."""
        for owner in self.owner:
            known = _MEANINGS.get(owner, {}).get(self.name)
            if meaning := fields.get(f"{owner}.{self.name}") or fields.get(self.name) or known:
                return meaning
        return None


def grow_opt_state(
    opt_state: PyTree,
    growth: Growth,
    tx: Any,
    *,
    variables: PyTree = None,
    second_moment: Literal["mean", "zeros"] = "mean",
    fields: Mapping[str, Meaning] | None = None,
) -> PyTree:
    """Grows the state of an optimizer as the variables grew, so that training goes on.

    Gradients transform by the adjoint of the growth. Old entries of first moments are carried over
    exactly, those of second moments with squared coefficients: the state is the one that the
    larger network would have, had it been trained with the same gradients. Step counts, schedules,
    hyperparameters and random keys stay as they are.

    New entries of first moments are zero. Those of second moments are the mean of the old entries
    along the axis: with zeros beside a large step count, Adam's bias correction believes that the
    moments have converged, and under a steady gradient its first update of a new entry is 3.16
    times the learning rate, later ones up to 6.6 times (for b1 = 0.9, b2 = 0.999).

    Moments of layers that the growth inserts start as in a new optimizer.

    Args:
        opt_state: the state: of any Optax optimizer or chain, or a Flax ``TrainState``.
        growth: from ``plan``: growing, narrowing or merging; static under ``jax.jit``.
        tx: the optimizer, ``optax.GradientTransformation``. It tells the shapes of the state for
            the larger network.
        variables: the grown variables, for states that hold averages or copies of parameters:
            their new entries begin at the parameters' own. Without it they begin at zero, those of
            scales at one.
        second_moment: what new entries of second moments are, the ``"mean"`` of old ones or
            ``"zeros"``.
        fields: meanings of fields that are not known here, by name (``"momentum"`` or
            ``"MyState.momentum"``): ``"first"`` and ``"second"`` for averages of gradients and of
            their squares, ``"magnitude"`` for those of absolute values (also Adamax's ``nu``),
            ``"update"`` for averages of updates that no longer scale with the gradient, ``"step"``
            for step sizes, ``"parameters"`` for averages of parameters.

    Returns:
        The state, for the grown parameters.

    Raises:
        ValueError: for a field shaped like parameters whose meaning is not known, or a state that
            is not of this growth's network; all of them in one message.

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
    if second_moment not in ("mean", "zeros"):
        raise ValueError(f"second_moment must be 'mean' or 'zeros', got {second_moment!r}")
    if growth.insertions:
        wider = replace(growth, insertions=(), structure=None)
        grown = grow_opt_state(
            opt_state, wider, tx, variables=None, second_moment=second_moment, fields=fields
        )
        return _with_new_layers(opt_state, grown, growth, tx)
    arrays = leaves_by_path(opt_state)
    found = _fields(opt_state, growth)
    meanings = _meanings(found, arrays, fields or {})
    expected = _expected(opt_state, growth, tx, found)
    structure, shapes = jax.tree.structure(expected), leaves_by_path(expected)
    grown = arrays | _grow_fields(
        arrays,
        growth,
        tuple((field, meanings[field.place]) for field in found if field.place in meanings),
        tuple((place, tuple(jnp.shape(leaf))) for place, leaf in shapes.items()),
        None if variables is None else leaves_by_path(variables),
        second_moment,
    )
    problems = [f"{place}: tx has no such state" for place in grown if place not in shapes]
    problems += [
        f"{place}: grows to {jnp.shape(grown[place])}, but for the larger network tx expects "
        f"{jnp.shape(leaf)}"
        for place, leaf in shapes.items()
        if place in grown and jnp.shape(grown[place]) != jnp.shape(leaf)
    ]
    problems += [f"{place}: missing in this state" for place in shapes if place not in grown]
    if problems:
        raise _refused(problems)
    return jax.tree.unflatten(structure, [grown[place] for place in shapes])


def _with_new_layers(old: PyTree, grown: PyTree, growth: Growth, tx: Any) -> PyTree:
    """Returns the state with new layers' entries as the optimizer starts them."""
    found = [field for field in _fields(old, growth) if field.axis is None]
    if not found:
        return grown
    collection = found[0].leaf.path.removesuffix(found[0].inner)
    inserted = {i.path: i for i in growth.insertions}
    places = {i.old: i.path for i in growth.insertions if i.old is not None}
    shapes = growth.shapes | {path: i.shape for path, i in inserted.items()}
    numbered = jax.tree.unflatten(growth.structure, range(growth.structure.num_leaves))
    params = rebuilt(
        growth.structure, {path: jnp.zeros(shapes[path]) for path in leaves_by_path(numbered)}
    )
    for part in collection.split("/")[:-1]:
        params = params[part]
    arrays, started = leaves_by_path(grown), tx.init(params)
    result = leaves_by_path(started)
    moved = {}
    for field in found:
        place = places.get(field.leaf.path, field.leaf.path)
        moved[field.at(place.removeprefix(collection))] = (field, place)
    for place, start in result.items():
        if place in moved:
            field, path = moved[place]
            array = arrays[field.place]
            layers = inserted[path].layers if path in inserted else ()
            if layers:
                rows = jnp.asarray(layers)
                is_old = (rows >= 0).reshape([-1] + [1] * (array.ndim - 1))
                array = jnp.where(is_old, array[jnp.maximum(rows, 0)], start.astype(array.dtype))
            result[place] = array
        elif place in arrays and jnp.shape(arrays[place]) == jnp.shape(start):
            result[place] = arrays[place]
    return rebuilt(jax.tree.structure(started), result)


def _refused(problems: list[str]) -> ValueError:
    return ValueError(listed("cannot grow this state", problems))


def _fields(opt_state: PyTree, growth: Growth) -> list[_Field]:
    """Returns the arrays of the state that follow an array of the network."""
    known = {leaf.path.partition("/")[2]: leaf for leaf in reversed(growth.widths.leaves)}
    known |= {leaf.path: leaf for leaf in growth.widths.leaves}
    found = []
    for keys, _ in jax.tree_util.tree_leaves_with_path(opt_state):
        # The longest path that fits: what is before it is the optimizer's.
        spans = ((i, j) for i in range(1, len(keys)) for j in (len(keys), len(keys) - 1) if j > i)
        for start, stop in spans:
            owner = functools.reduce(_child, keys[: start - 1], opt_state)
            inside = hasattr(_child(owner, keys[start - 1]), "_fields")  # another state's field
            if not inside and (leaf := known.get(leaf_path(keys[start:stop]))):
                found.append((keys, start, owner, leaf))
                break
    normalizing: dict[str, list[Sequence[Any]]] = {}
    for keys, start, owner, _ in found:
        if _normalizes(owner):
            normalizing.setdefault(leaf_path(keys[start:]), []).append(keys[: start - 1])
    return [
        _Field(
            leaf_path(keys[: start - 1]),
            leaf_path(keys[start - 1 : start]),
            tuple(cls.__name__ for cls in type(owner).__mro__),
            inner := leaf_path(keys[start:]),
            leaf,
            any(
                _precedes(earlier, keys[: start - 1], opt_state)
                for earlier in normalizing.get(inner, ())
            ),
        )
        for keys, start, owner, leaf in found
    ]


def _precedes(first: Sequence[Any], second: Sequence[Any], opt_state: PyTree) -> bool:
    """Whether the state at one path comes before that at another in a chain."""
    node = opt_state
    for a, b in zip(first, second, strict=False):
        if a != b:
            return type(node) is tuple and a.idx < b.idx
        node = _child(node, a)
    return False


def _normalizes(state: Any) -> bool:
    meanings = _MEANINGS.get(type(state).__name__, {})
    return "second" in meanings.values() or type(state).__name__ in (
        "ScaleByLionState",
        "MuonState",
    )


def _child(node: Any, key: Any) -> Any:
    """Returns what a tree has at a key of a path."""
    if isinstance(key, jax.tree_util.GetAttrKey):
        return getattr(node, key.name)
    return node[key.idx if isinstance(key, jax.tree_util.SequenceKey) else key.key]


def _meanings(
    found: list[_Field], arrays: Mapping[str, Any], fields: Mapping[str, Meaning]
) -> dict[str, Meaning]:
    """Returns what every field holds, by place, after checking that all are known."""
    meanings: dict[str, Meaning] = {}
    problems = []
    for field in found:
        shape = jnp.shape(arrays[field.place])
        meaning = field.meaning(fields)
        factored = "FactoredState" in field.owner
        if prod(shape) == 1 != prod(field.leaf.shape) and not factored:
            continue  # one number for the whole array, whatever its size
        if meaning == "first" and field.normalized:
            meaning = "update"
        if meaning is None:
            problems.append(
                f"{field.place}: what field {field.name!r} of {field.owner[0]} holds is not known; "
                f"say so with fields={{{field.name!r}: ...}}, one of {get_args(Meaning)}"
            )
        elif field.axis is None and shape != field.leaf.shape and not factored:
            problems.append(
                f"{field.place}: has shape {shape}, but {field.leaf.path} has {field.leaf.shape}; "
                "there is no rule for such a state"
            )
        else:
            meanings[field.place] = meaning
    if problems:
        raise _refused(problems)
    return meanings


def _expected(opt_state: PyTree, growth: Growth, tx: Any, found: list[_Field]) -> PyTree:
    """Returns the shapes of the state for the larger network, from the optimizer itself."""
    if hasattr(opt_state, "opt_state") and hasattr(opt_state, "replace"):  # Flax's TrainState
        inner = _expected(opt_state.opt_state, growth, tx, _fields(opt_state.opt_state, growth))
        outer = {field.place: field.leaf for field in found}
        template = opt_state.replace(opt_state=inner)

        def one(keys: Any, array: Any) -> Any:
            leaf = (
                None
                if keys[0] == jax.tree_util.GetAttrKey("opt_state")
                else outer.get(leaf_path(keys))
            )
            shape = growth.shapes[leaf.path] if leaf else jnp.shape(array)
            return struct(shape, jnp.result_type(array))

        return jax.tree_util.tree_map_with_path(one, template)
    params = _params(opt_state, growth, found)
    return opt_state if params is None else jax.eval_shape(tx.init, params)


def _params(opt_state: PyTree, growth: Growth, found: list[_Field]) -> PyTree | None:
    """Returns the shapes of the larger network's parameters, from a part that is laid out so."""
    first = next((field for field in found if field.axis is None), None)
    if first is None:
        return None
    paths = (keys for keys, _ in jax.tree_util.tree_leaves_with_path(opt_state))
    keys = next(keys for keys in paths if leaf_path(keys) == first.place)
    start = next(i for i in range(len(keys)) if leaf_path(keys[i:]) == first.inner)
    tree = functools.reduce(_child, keys[:start], opt_state)
    by_inner = {field.inner: field.leaf.path for field in found}
    collection = first.leaf.path.removesuffix(first.inner)

    def is_masked(node: Any) -> bool:
        return type(node).__name__ == "MaskedNode"

    def one(keys: Any, array: Any) -> Any:
        inner = leaf_path(keys)
        path = by_inner.get(inner, collection + inner)
        shape = growth.shapes[path] if path in growth.shapes else jnp.shape(array)
        return struct(shape, jnp.float32 if is_masked(array) else jnp.result_type(array))

    return jax.tree_util.tree_map_with_path(one, tree, is_leaf=is_masked)


@functools.partial(jax.jit, static_argnames=("growth", "fields", "shapes", "second_moment"))
def _grow_fields(
    arrays: dict[str, Array],
    growth: Growth,
    fields: tuple[tuple[_Field, Meaning], ...],
    shapes: tuple[tuple[str, tuple[int, ...]], ...],
    variables: dict[str, Array] | None,
    second_moment: str,
) -> dict[str, Array]:
    grown = {}
    expected = dict(shapes)
    for field, meaning in fields:
        array = arrays[field.place]
        if "FactoredState" in field.owner:
            grown[field.place] = _factored(field, arrays, growth, expected, second_moment)
        elif not changes(field.leaf, growth):
            grown[field.place] = array
        elif meaning == "parameters":
            fresh = None if variables is None else variables[field.leaf.path].astype(array.dtype)
            grown[field.place] = grow_leaf(array, field.leaf, growth, fresh)
        else:
            leaf, axis = field.leaf, field.axis
            axes = leaf.axes if axis is None else leaf.axes[axis : axis + 1]
            grown[field.place] = _moment(array, leaf.path, axes, growth, meaning, second_moment)
    return grown


def _moment(
    array: Array,
    path: str,
    axes: tuple[Layout, ...],
    growth: Growth,
    meaning: Meaning,
    second_moment: str,
) -> Array:
    """Returns an average of powers of the gradient, grown."""
    degree = _DEGREES[meaning]
    signed = meaning in ("first", "update")
    fill: Fill = "zero" if signed or second_moment == "zeros" else "mean"

    def map_of(units: Units) -> AxisMap:
        return map_of_moment(growth.change[units.width], units, degree, fill)

    if factor := growth.factors.get(path):
        array = (array / factor**degree).astype(array.dtype)
    return transform(array, axes, growth.sizes, map_of)


def _factored(
    field: _Field,
    arrays: Mapping[str, Array],
    growth: Growth,
    expected: Mapping[str, tuple[int, ...]],
    second_moment: str,
) -> Array:
    """Returns a field of Adafactor's state: a second moment, or its means along two axes.

    The moment is put together from its means, grown, and taken apart again: which axes are
    factored, if any, depends on the size.
    """
    old, new = field.leaf.shape, growth.shapes[field.leaf.path]
    moment = arrays[field.beside("v")]
    if moment.shape != old:
        row, column = np.argsort(old)[-2:]  # as Optax chooses them
        rows = jnp.expand_dims(arrays[field.beside("v_row")], column)
        columns = jnp.expand_dims(arrays[field.beside("v_col")], row)
        mean = jnp.mean(rows, row, keepdims=True)
        moment = rows * columns / jnp.where(mean == 0, 1, mean)
    leaf = field.leaf
    moment = _moment(moment, leaf.path, leaf.axes, growth, "second", second_moment)
    is_whole = expected.get(field.beside("v"), new) == new
    if is_whole or field.name == "v":
        whole = moment if is_whole else jnp.zeros((1,), moment.dtype)
        return whole if field.name == "v" else jnp.zeros((1,), moment.dtype)
    row, column = np.argsort(new)[-2:]
    return jnp.mean(moment, column if field.name == "v_row" else row)
