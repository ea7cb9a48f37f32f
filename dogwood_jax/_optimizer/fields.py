"""Fields of an optimizer's state: ``fields_of`` finds them, ``meanings_of`` interprets them."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args

import jax
import jax.numpy as jnp
import numpy as np

from dogwood_jax._base.problems import listed
from dogwood_jax._base.trees import Keys, PyTree, leaf_path, leaves_by_path, level
from dogwood_jax._growth.growth import Growth
from dogwood_jax._program.dims import Dim
from dogwood_jax._program.primitives import table as _table  # noqa: F401, which fills the table
from dogwood_jax._program.primitives.reading import run
from dogwood_jax._program.program import Program
from dogwood_jax._program.values import Trace, Value
from dogwood_jax._widths.widths import Leaf

T = TypeVar("T")
Meaning = Literal["first", "second", "magnitude", "update", "step", "parameters"]

# Meanings of fields, by the class of Optax or Flax that declares them.
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
    "ScaleByOptimisticGradientState": {"previous_gradient": "first"},
    "ScaleByAdanState": {"m": "first", "v": "first", "n": "second", "g": "first"},
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
    "MadgradState": {"grad_sum_sq": "second", "s": "first", "x0": "parameters"},
    "ScaleByDistanceOverGradientsState": {"init_params": "parameters"},
    "DoGState": {"init_params": "parameters"},
    "DoWGState": {"init_params": "parameters"},
    "ScheduleFreeState": {"z": "parameters"},
    "MechanicState": {"x0": "parameters"},
    "SAMState": {"cache": "parameters"},
    "LookaheadParams": {"fast": "parameters", "slow": "parameters"},
    "TrainState": {"params": "parameters", "batch_stats": "parameters"},
}

# Classes of states with a boolean that is true before the first step, and its field.
_FIRST_STEPS = {"ScaleByOptimisticGradientState": "is_initial_step"}

_FIELDS = {name for fields in _MEANINGS.values() for name in fields}

# The power of the gradient that a field of each meaning scales with.
DEGREES: dict[Meaning, int] = {"first": 1, "second": 2, "magnitude": 1, "update": 0, "step": 0}


@dataclass(frozen=True)
class Field:
    """An array in a field of an optimizer state, and the array of the network that it follows.

    Attributes:
        group: path of the state that the field belongs to.
        name: name of the field.
        owner: names of the state's class and its bases, the most derived first.
        declared: the names among them that are classes of Optax or Flax. Other classes may only
            have the same name.
        inner: path of the array inside the field.
        leaf: the array of the network that has this path.
        axis: the axis of ``leaf`` that the array follows, if a state keeps a vector for each axis.
    """

    group: str
    name: str
    owner: tuple[str, ...]
    declared: tuple[str, ...]
    inner: str
    leaf: Leaf
    axis: int | None

    @property
    def place(self) -> str:
        """The path of the array in the state."""
        return self.at(self.leaf.path)

    @property
    def tree(self) -> tuple[str, str]:
        """The state and the name of the field, the same for all arrays of the network."""
        return self.group, self.name

    @property
    def collection(self) -> str:
        """The prefix of the leaf's path that the state leaves out, such as ``"params/"``."""
        return self.leaf.path.removesuffix(self.inner)

    @property
    def adds_up(self) -> bool:
        """Whether the initial value may stay in the array forever, as in Adagrad and Yogi."""
        return not {"ScaleByRssState", "ScaleByAdamState"}.isdisjoint(self.declared)

    @property
    def holds_variables(self) -> bool:
        """Whether the field holds the current variables, not averages or older values."""
        return "TrainState" in self.declared and self.name in _MEANINGS["TrainState"]

    @property
    def first_step(self) -> str | None:
        """Path of the state's boolean that is true before the first step; None without one."""
        names = (_FIRST_STEPS[owner] for owner in self.declared if owner in _FIRST_STEPS)
        return next((f"{self.group}/{name}".removeprefix("/") for name in names), None)

    @property
    def factored(self) -> bool:
        """Whether it is a second moment that may be stored as its means along two axes."""
        return "FactoredState" in self.declared

    @property
    def is_factor(self) -> bool:
        """Whether it is one of the two means that stand for a second moment."""
        return self.factored and self.name != "v"

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the field that a caller may use."""
        return (*(f"{owner}.{self.name}" for owner in self.owner), self.name)

    def at(self, path: str, name: str | None = None) -> str:
        """The path in the state for another array of the network, or in another field."""
        axis = "" if self.axis is None else str(self.axis)
        parts = (self.group, name or self.name, path.removeprefix(self.collection), axis)
        return "/".join(part for part in parts if part)

    def places(self, path: str) -> tuple[str, ...]:
        """The paths of all arrays that the state keeps for an array of the network."""
        names = (None, "v_row", "v_col") if self.factored else (None,)
        return tuple(self.at(path, name) for name in names)

    def known(self, fields: Mapping[str, Meaning]) -> tuple[Meaning | None, bool]:
        """The meaning of the field, None if unknown, and whether it comes from the caller."""
        for name in self.names:
            if name in fields:
                return fields[name], True
        if self.declared[:1] == ("EmaState",) and not self.group:
            return None, False  # a standalone EMA may also average parameters
        known = (_MEANINGS.get(owner, {}).get(self.name) for owner in self.declared)
        return next(filter(None, known), None), False


@dataclass(frozen=True)
class Observed:
    """What was observed of an array of a state.

    Attributes:
        degree: the power of the gradient that the array scales with; None if that is not clear.
        start: the initial value.
    """

    degree: int | None
    start: float


def fields_of(opt_state: PyTree, growth: Growth) -> list[Field]:
    """Returns the arrays of the state that follow an array of the network."""
    return list(fields_in(opt_state, {leaf.path: leaf for leaf in growth.widths.leaves}))


def fields_in(state: PyTree, known: Mapping[str, Leaf]) -> Iterator[Field]:
    """Yields the arrays of a state that follow one of the given arrays."""
    return _fields_in(state, (), by_inner_path(known))


def by_inner_path(known: Mapping[str, T]) -> dict[str, dict[str, T]]:
    """Returns the values of ``known`` by path inside a collection, then by collection.

    An optimizer gets all variables (the collection is then ``""``), or one collection, such as
    ``"params/"``. If several collections have arrays of the same name, parameters come first.
    """
    inside: dict[str, dict[str, T]] = {}
    for path in sorted(known, key=lambda path: not path.startswith("params/")):
        collection, _, inner = path.partition("/")
        inside.setdefault(path, {})[""] = known[path]
        if inner:
            inside.setdefault(inner, {})[f"{collection}/"] = known[path]
    return inside


def _fields_in(
    node: PyTree, keys: Keys, known: Mapping[str, Mapping[str, Leaf]]
) -> Iterator[Field]:
    """Yields the fields in a part of the state."""
    owner = tuple(cls.__name__ for cls in type(node).__mro__)
    declared = tuple(cls.__name__ for cls in type(node).__mro__ if _is_known(cls))
    parts, structure = level(node)
    for key, part in parts if structure.node_data() is not None else ():
        followed = _like_parameters(part, known, "FactoredState" in declared)
        for inner, axis, leaf in followed:
            yield Field(leaf_path(keys), leaf_path(key), owner, declared, inner, leaf, axis)
        if not followed:
            yield from _fields_in(part, (*keys, *key), known)


def _like_parameters(
    tree: PyTree, known: Mapping[str, Mapping[str, Leaf]], factored: bool
) -> list[tuple[str, int | None, Leaf]]:
    """Matches the arrays of a tree with those of the network, if it is laid out like parameters.

    Args:
        tree: a part of a state.
        known: the arrays of the network, by path inside a collection, then by collection.
        factored: whether arrays of the tree may be means along axes. Then shapes are not compared.

    Returns:
        For each array, its path inside the collection, the axis that it follows (None for all),
        and the array of the network. Empty if the tree is not laid out like parameters.
    """
    if hasattr(tree, "_fields") and _is_known(type(tree)):
        return []  # a state
    arrays = jax.tree_util.tree_leaves_with_path(tree)
    readings: dict[tuple[str, bool], list[tuple[str, int | None, Leaf]]] = {}
    same_shape: Counter[tuple[str, bool]] = Counter()
    for keys, array in arrays:
        ways: list[tuple[Keys, int | None]] = [(keys, None)]
        if keys and isinstance(keys[-1], jax.tree_util.SequenceKey) and not factored:
            ways.append((keys[:-1], keys[-1].idx))  # a vector for each axis
        for path, axis in ways:
            for collection, leaf in known.get(leaf_path(path), {}).items():
                reading = collection, axis is not None
                readings.setdefault(reading, []).append((leaf_path(path), axis, leaf))
                shape = leaf.shape if axis is None else leaf.shape[axis : axis + 1]
                same_shape[reading] += not factored and jnp.shape(array) == shape != ()
    best = max(readings, key=lambda r: (len(readings[r]), same_shape[r]), default=None)
    # Names may match by chance, for example those of hyperparameters.
    if best is None or not (same_shape[best] or len(readings[best]) == len(arrays)):
        return []
    return readings[best]


def _is_known(cls: type) -> bool:
    # Many projects have their own class TrainState, always with these fields.
    return cls.__module__.partition(".")[0] in ("optax", "flax") or cls.__name__ == "TrainState"


def meanings_of(
    found: list[Field],
    arrays: Mapping[str, Any],
    fields: Mapping[str, Meaning],
    seen: Mapping[str, Observed],
) -> dict[str, Meaning]:
    """Returns the meaning of every field, by place, after checking that all are known.

    Args:
        found: from ``fields_of``.
        arrays: the arrays of the state, by place.
        fields: meanings from the caller, by name.
        seen: from ``watched``.

    Returns:
        The meanings. Fields with one value for a whole array are left out.
    """
    meanings: dict[str, Meaning] = {}
    names = {name for field in found for name in field.names}
    problems = [f"fields: there is no field {name!r}" for name in fields if name not in names]
    problems += [
        f"fields: {name!r} holds one of {get_args(Meaning)}, not {meaning!r}"
        for name, meaning in fields.items()
        if meaning not in get_args(Meaning)
    ]
    unknown: dict[tuple[str, str], list[Field]] = {}
    for field in found:
        shape = jnp.shape(arrays[field.place])
        whole = field.axis is None and not field.factored
        if whole and math.prod(shape) == 1 and shape != field.leaf.shape:
            continue  # one value for the whole array, whatever its size
        meaning, said = field.known(fields)
        if meaning is None:
            unknown.setdefault(field.tree, []).append(field)
        elif whole and shape != field.leaf.shape:
            problems.append(
                f"{field.place}: has shape {shape}, but its parameter has {field.leaf.shape}; "
                "pass the growth of the network that this state belongs to, or start anew with "
                "tx.init"
            )
        else:
            degree = seen[field.place].degree if field.place in seen and not said else None
            meanings[field.place] = _AS_SEEN.get((meaning, degree), meaning)
    for (group, name), (field, *others) in unknown.items():
        if field.owner[-2:-1] == ("dict",) and group.rpartition("/")[2] in _FIELDS:
            problems.append(
                f"{field.place}: is in {name!r}, but no path of the network starts with {name!r}; "
                f"pass a growth of {{{name!r}: ...}}, or a state for the arrays in {name!r} only"
            )
            continue
        problems.append(
            f"{field.place}{f' and {len(others)} more' if others else ''}: field {name!r} of "
            f"{field.owner[0]} has no known meaning; pass fields={{{name!r}: ...}}, one of "
            f"{get_args(Meaning)}"
        )
    if problems:
        raise ValueError(listed("cannot grow this state", problems))
    return meanings


# An observed degree corrects the meaning that the class gives. An average of gradients becomes one
# of updates if another optimizer comes before it in a chain. Adam and Adamax share one class of
# states, but average different powers of the gradient.
_AS_SEEN: dict[tuple[Meaning, int | None], Meaning] = {
    ("first", 0): "update",
    ("second", 0): "step",
    ("second", 1): "magnitude",
}


def unfollowed(arrays: Mapping[str, Any], found: list[Field]) -> list[str]:
    """Lists the arrays that cannot be checked, in a state that does not show the parameters."""
    known = {field.place for field in found}
    return [
        f"{place}: has shape {jnp.shape(array)}, but no array of the network has its name; states "
        "with all parameters in one array, as of optax.flatten, are not supported; start anew with "
        "tx.init"
        for place, array in arrays.items()
        if place not in known and math.prod(jnp.shape(array)) > 1
        if jnp.issubdtype(jnp.result_type(array), jnp.floating)
    ]


def watched(tx: Any, params: PyTree) -> dict[str, Observed]:
    """Measures which power of the gradient each array of an optimizer's state scales with.

    The optimizer takes a few steps with small arrays in place of the parameters. The first entry of
    each gradient is tried at zero and at three sizes. The second entry is much larger, so that
    norms stay nearly the same.

    Args:
        tx: the optimizer.
        params: pytree of ``jax.ShapeDtypeStruct`` of the parameters, as ``tx.init`` takes them.

    Returns:
        The observations, by place in the state. Empty if the optimizer needs more than a gradient.
    """
    import optax

    def state_after(size: float) -> dict[str, Any]:
        state, values = start, np.array([size, 1e-2])
        gradient = jax.tree.map(lambda a: values[: a.size].reshape(a.shape).astype(a.dtype), zeros)
        for _ in range(4):
            _, state = update(gradient, state, zeros, value=0.0)
        return leaves_by_path(state)

    zeros = _stand_ins(params)
    try:
        with jax.ensure_compile_time_eval():
            update = jax.jit(optax.with_extra_args_support(tx).update)
            start = tx.init(jax.tree.map(jnp.asarray, zeros))
            states = [state_after(size) for size in (0.0, 1e-4, 2e-4, 4e-4)]
    except (AttributeError, TypeError, ValueError):
        return {}
    begun = leaves_by_path(start)
    seen = {}
    for place, array in begun.items():
        if jnp.size(array) and jnp.issubdtype(jnp.result_type(array), jnp.floating):
            none, a, b, c = (np.asarray(state[place], float).flat[0] for state in states)
            degree = None
            if abs(b - a) < 0.01 * abs(a - none):
                degree = 0
            elif (c - b) * (b - a) > 0:
                degree = round(math.log2((c - b) / (b - a)))
            seen[place] = Observed(degree, float(np.asarray(array, float).flat[0]))
    return seen


def starts(tx: Any, params: PyTree) -> dict[str, float]:
    """Returns the initial values of the arrays of an optimizer's state, by place.

    Args:
        tx: the optimizer.
        params: pytree of ``jax.ShapeDtypeStruct`` of the parameters, as ``tx.init`` takes them.

    Returns:
        The initial values other than zero, where the program of ``tx.init`` shows them.
    """
    try:
        program = Program(tx.init, params, ())
    except Exception:  # for example, an optimizer that branches on its hyperparameters
        return {}
    begun = [Value(tuple(map(Dim, struct.shape))) for _, struct in program.arguments]
    jaxpr, consts = program.jaxpr.jaxpr, program.jaxpr.consts
    results = run(Trace(), jaxpr, consts, begun)
    found = zip(program.results, results, strict=True)
    return {place: value.number for place, value in found if value.number}


def _stand_ins(params: PyTree) -> PyTree:
    """Returns small arrays of zeros in place of parameters."""

    def small(leaf: Any) -> Any:
        # An initial value of 0.1 differs between single and double precision.
        dtype = leaf.dtype if leaf.dtype == np.float64 else np.float32
        return np.zeros([1] * (leaf.ndim - 1) + [2] * (leaf.ndim > 0), dtype)

    return jax.tree.map(small, params)
