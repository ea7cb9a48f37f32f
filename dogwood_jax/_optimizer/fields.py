"""What the state of an optimizer holds: ``fields_of`` finds it, ``meanings_of`` says what it is."""

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

# What the fields of optimizer states hold, by the class of Optax or Flax that declares them.
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

# States that say whether the next step is the first, for each entry alike.
_FIRST_STEPS = {"ScaleByOptimisticGradientState": "is_initial_step"}

_FIELDS = {name for fields in _MEANINGS.values() for name in fields}

# The power of the gradient that each is an average of.
DEGREES: dict[Meaning, int] = {"first": 1, "second": 2, "magnitude": 1, "update": 0, "step": 0}


@dataclass(frozen=True)
class Field:
    """A field of an optimizer state: where it is, and which array of the network it follows.

    Attributes:
        group: path of the state that the field belongs to.
        name: name of the field.
        owner: names of the state's class and its bases, the most derived first.
        declared: those that Optax or Flax declare; other classes may just have the same name.
        inner: path of the array inside the field.
        leaf: the array of the network that has this path.
        axis: the one axis of the array that it follows, where a state keeps a vector for each.
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
        """The path of the field's array in the state."""
        return self.at(self.leaf.path)

    @property
    def tree(self) -> tuple[str, str]:
        """What the fields of all arrays of the network have in common."""
        return self.group, self.name

    @property
    def collection(self) -> str:
        """What the path of an array of the network has before the part that the state repeats."""
        return self.leaf.path.removesuffix(self.inner)

    @property
    def adds_up(self) -> bool:
        """Whether what it starts from stays in it for ever, as in Adagrad and Yogi."""
        return not {"ScaleByRssState", "ScaleByAdamState"}.isdisjoint(self.declared)

    @property
    def holds_variables(self) -> bool:
        """Whether it holds the network's variables as they are, no average or older ones."""
        return "TrainState" in self.declared and self.name in _MEANINGS["TrainState"]

    @property
    def first_step(self) -> str | None:
        """Path of a number beside it that says whether the next step is the first."""
        names = (_FIRST_STEPS[owner] for owner in self.declared if owner in _FIRST_STEPS)
        return next((f"{self.group}/{name}".removeprefix("/") for name in names), None)

    @property
    def factored(self) -> bool:
        """Whether it is a second moment that may be kept as its means along two axes."""
        return "FactoredState" in self.declared

    @property
    def is_factor(self) -> bool:
        """Whether it is one of the means along an axis that a second moment is kept as."""
        return self.factored and self.name != "v"

    @property
    def names(self) -> tuple[str, ...]:
        """What the caller may call it."""
        return (*(f"{owner}.{self.name}" for owner in self.owner), self.name)

    def at(self, path: str, name: str | None = None) -> str:
        """The path in the state of another array of the network, or of another field."""
        axis = "" if self.axis is None else str(self.axis)
        parts = (self.group, name or self.name, path.removeprefix(self.collection), axis)
        return "/".join(part for part in parts if part)

    def places(self, path: str) -> tuple[str, ...]:
        """The paths in the state of all that it keeps for an array of the network."""
        names = (None, "v_row", "v_col") if self.factored else (None,)
        return tuple(self.at(path, name) for name in names)

    def known(self, fields: Mapping[str, Meaning]) -> tuple[Meaning | None, bool]:
        """What the field holds, as far as is known, and whether the caller says so."""
        for name in self.names:
            if name in fields:
                return fields[name], True
        if self.declared[:1] == ("EmaState",) and not self.group:
            return None, False  # on its own it may as well average parameters
        known = (_MEANINGS.get(owner, {}).get(self.name) for owner in self.declared)
        return next(filter(None, known), None), False


@dataclass(frozen=True)
class Seen:
    """What was seen of an array of a state.

    Attributes:
        degree: the power of the gradient that it follows; None if that could not be told.
        start: what it starts from.
    """

    degree: int | None
    start: float


def fields_of(opt_state: PyTree, growth: Growth) -> list[Field]:
    """Returns the arrays of the state that follow an array of the network."""
    return list(fields_in(opt_state, {leaf.path: leaf for leaf in growth.widths.leaves}))


def fields_in(state: PyTree, known: Mapping[str, Leaf]) -> Iterator[Field]:
    """Yields the arrays of a state that follow one of these arrays, given by path."""
    return _fields_in(state, (), by_inner_path(known))


def by_inner_path(known: Mapping[str, T]) -> dict[str, dict[str, T]]:
    """Returns what is known of arrays by their path inside a collection and by collection.

    Optimizers see all variables, whose collection is called "", or one collection of them, such as
    ``"params/"``. Where several have arrays of the same name, the parameters come first.
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
    """Returns what the arrays of a tree follow, if it is laid out like the parameters.

    Args:
        tree: a part of a state.
        known: the arrays of the network, by their path inside a collection and by collection.
        factored: whether its arrays may be means along axes, so that their shapes tell nothing.

    Returns:
        For each, its path inside the collection, the axis that it follows if it follows one, and
        the array of the network.
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
    # Names may be alike by chance, as of hyperparameters.
    if best is None or not (same_shape[best] or len(readings[best]) == len(arrays)):
        return []
    return readings[best]


def _is_known(cls: type) -> bool:
    # Training states are written anew in many places, always with these fields.
    return cls.__module__.partition(".")[0] in ("optax", "flax") or cls.__name__ == "TrainState"


def meanings_of(
    found: list[Field],
    arrays: Mapping[str, Any],
    fields: Mapping[str, Meaning],
    seen: Mapping[str, Seen],
) -> dict[str, Meaning]:
    """Returns what every field holds, by place, after checking that all are known.

    Args:
        found: from ``fields_of``.
        arrays: the arrays of the state, by place.
        fields: what the caller says, by name.
        seen: from ``watched``.

    Returns:
        The meanings, without those of fields with one number for a whole array.
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
            continue  # one number for the whole array, whatever its size
        meaning, said = field.known(fields)
        if meaning is None:
            unknown.setdefault(field.tree, []).append(field)
        elif whole and shape != field.leaf.shape:
            problems.append(
                f"{field.place}: has shape {shape}, but its parameter has {field.leaf.shape}; "
                "pass the growth of the network that this state is of, or if this one is, start "
                "anew with tx.init"
            )
        else:
            degree = seen[field.place].degree if field.place in seen and not said else None
            meanings[field.place] = _AS_SEEN.get((meaning, degree), meaning)
    for (group, name), (field, *others) in unknown.items():
        if field.owner[-2:-1] == ("dict",) and group.rpartition("/")[2] in _FIELDS:
            problems.append(
                f"{field.place}: is below {name!r}, which no path of the network begins with; pass "
                f"a growth of {{{name!r}: ...}}, or the state of what is below {name!r}"
            )
            continue
        problems.append(
            f"{field.place}{f' and {len(others)} more' if others else ''}: what field {name!r} of "
            f"{field.owner[0]} holds is not known; say so with fields={{{name!r}: ...}}, one of "
            f"{get_args(Meaning)}"
        )
    if problems:
        raise ValueError(listed("cannot grow this state", problems))
    return meanings


# What was seen corrects what the class says. An average of gradients is one of updates if another
# optimizer comes before it in a chain. And Adam and Adamax share one class of states, but average
# different powers of the gradient.
_AS_SEEN: dict[tuple[Meaning, int | None], Meaning] = {
    ("first", 0): "update",
    ("second", 0): "step",
    ("second", 1): "magnitude",
}


def unfollowed(arrays: Mapping[str, Any], found: list[Field]) -> list[str]:
    """Returns which arrays cannot be checked in a state in which nothing tells the parameters."""
    known = {field.place for field in found}
    return [
        f"{place}: has shape {jnp.shape(array)} and is called like no array of the network; there "
        "is no rule for a state of all parameters in one, as of optax.flatten; start anew with "
        "tx.init"
        for place, array in arrays.items()
        if place not in known and math.prod(jnp.shape(array)) > 1
        if jnp.issubdtype(jnp.result_type(array), jnp.floating)
    ]


def watched(tx: Any, params: PyTree) -> dict[str, Seen]:
    """Finds out which power of the gradient the arrays of an optimizer's state follow.

    The optimizer takes a few steps with small arrays in place of the parameters. The first entry of
    each gradient is tried at zero and at three sizes. The second entry is much larger, so that
    norms stay nearly the same.

    Args:
        tx: the optimizer.
        params: pytree of ``jax.ShapeDtypeStruct`` of the parameters, as ``tx.init`` takes them.

    Returns:
        What was seen, by place in the state; nothing if the optimizer wants more than a gradient.
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
            seen[place] = Seen(degree, float(np.asarray(array, float).flat[0]))
    return seen


def starts(tx: Any, params: PyTree) -> dict[str, float]:
    """Returns the numbers that the arrays of an optimizer's state start from, by place.

    Args:
        tx: the optimizer.
        params: pytree of ``jax.ShapeDtypeStruct`` of the parameters, as ``tx.init`` takes them.

    Returns:
        Those that are not zero, as far as the program of ``tx.init`` shows them.
    """
    try:
        program = Program(tx.init, params, ())
    except Exception:  # as of an optimizer that looks at its hyperparameters
        return {}
    begun = [Value(tuple(map(Dim, struct.shape))) for _, struct in program.arguments]
    jaxpr, consts = program.jaxpr.jaxpr, program.jaxpr.consts
    results = run(Trace(), jaxpr, consts, begun)
    found = zip(program.results, results, strict=True)
    return {place: value.number for place, value in found if value.number}


def _stand_ins(params: PyTree) -> PyTree:
    """Returns small arrays of zeros in place of parameters."""

    def small(leaf: Any) -> Any:
        # A start of 0.1 is another number in double precision.
        dtype = leaf.dtype if leaf.dtype == np.float64 else np.float32
        return np.zeros([1] * (leaf.ndim - 1) + [2] * (leaf.ndim > 0), dtype)

    return jax.tree.map(small, params)
