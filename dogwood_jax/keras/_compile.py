"""Compiles a larger model like the old one, and grows the optimizer's arrays: ``compile_like``."""

import inspect
import warnings
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from dogwood_jax._base.problems import listed
from dogwood_jax._growth.growth import Growth
from dogwood_jax._growth.rounds import unshared
from dogwood_jax._optimizer.fields import Meaning
from dogwood_jax._optimizer.opt_state import grow_state
from dogwood_jax.keras._live import Model, Variable, imported, structs_of, values_of

Optimizer = Any
# An optimizer's variable for a weight: the variable's name, and the weight's name.
Slot = tuple[str, str]

# Meanings of the variables that optimizers keep for each weight, by name.
_MEANINGS: dict[str, Meaning] = {
    "momentum": "first",
    "average_gradient": "first",
    "gradient_accumulator": "first",
    "linear": "first",
    "velocity": "second",
    "velocity_hat": "second",
    "accumulator": "second",
    "accumulated_grad": "second",
    "accumulated_delta_var": "step",
    "norm": "magnitude",
    "average": "parameters",
}
# Exceptions: optimizers that use one of these names for something else.
_MEANINGS_IN: dict[str, dict[str, Meaning]] = {
    "RMSprop": {"momentum": "update"},
    "ScheduleFreeAdamW": {"momentum": "parameters"},
}
# Adafactor keeps means of second moments along the last axis and the one before it.
_FACTORS = {"row": -1, "column": -2}


def expect_compilable(model: Model, names: Mapping[str, Variable]) -> None:
    """Raises if a larger model could not be compiled like this one, or not with its optimizer.

    Args:
        model: the model, compiled or not.
        names: its variables by name.

    Raises:
        ValueError: if the model has its own ``compile`` arguments but no ``compile_from_config``,
            or if its optimizer keeps unknown arrays.
    """
    if not model.compiled:
        return
    if not _describes_compiling(model):
        try:
            inspect.signature(model.compile).bind(**_settings(model, None))
        except TypeError as error:
            name = type(model).__name__
            raise ValueError(
                f"{model.name}: {name}.compile does not take the arguments of keras.Model.compile "
                f"({error}); give {name} get_compile_config and compile_from_config, or pass a "
                "compiled larger model as target="
            ) from error
    if model.optimizer is not None:
        _slots(model.optimizer, model, names)


def compile_like(
    model: Model,
    larger: Model,
    growth: Growth,
    old: Mapping[str, Variable],
    new: Mapping[str, Variable],
) -> None:
    """Compiles a larger model like the old one, if that is compiled, with the optimizer's state.

    Args:
        model: the old model.
        larger: the larger model, whose variables have grown.
        growth: the growth.
        old: variables of the old model, by name.
        new: variables of the larger model, by name.

    Raises:
        ValueError: if the larger model already has another optimizer, or if the old optimizer was
            built for other weights than those that are trainable now.
    """
    if not model.compiled:
        return
    optimizer = model.optimizer
    if not larger.compiled and _describes_compiling(model):
        larger.compile_from_config(model.get_compile_config())
    elif not larger.compiled:
        larger.compile(**_settings(model, _anew(optimizer)))
    if optimizer is None or not optimizer.built:
        return
    if type(larger.optimizer) is not type(optimizer):
        raise ValueError(
            f"{larger.name}: is compiled with {type(larger.optimizer).__name__}, but the smaller "
            f"model with {type(optimizer).__name__}; pass a target= that is not compiled"
        )
    if not larger.optimizer.built:
        larger.optimizer.build(larger.trainable_variables)
    slots, larger_slots = _slots(optimizer, model, old), _slots(optimizer, larger, new)
    if len(slots) != len(optimizer.variables):
        raise ValueError(
            f"{_name(optimizer)} has {len(optimizer.variables)} variables, but the trainable "
            f"weights of {model.name} need {len(slots)}; compile the model again, then grow it"
        )
    values = [variable.value for variable in optimizer.variables]
    state: dict[str, dict[str, jax.Array]] = {}
    for slot, value in zip(slots, values):
        if slot is not None and slot[0] not in _FACTORS:
            state.setdefault(slot[0], {})[slot[1]] = value
    begun = dict(zip(larger_slots, larger.optimizer.variables))
    grown = _grown(state, optimizer, growth, begun, new) if state else {}
    others = iter(value.copy() for slot, value in zip(slots, values) if slot is None)
    for slot, variable in zip(larger_slots, larger.optimizer.variables, strict=True):
        if slot is None:
            variable.assign(next(others))
        elif slot[0] in _FACTORS:
            variable.assign(jnp.mean(grown["velocity"][slot[1]], _FACTORS[slot[0]]))
        else:
            variable.assign(grown[slot[0]][slot[1]])


def _describes_compiling(model: Model) -> bool:
    """Returns whether the class of a model has its own ``compile_from_config``."""
    return type(model).compile_from_config is not imported().Model.compile_from_config


def _settings(model: Model, optimizer: Optimizer | None) -> dict[str, Any]:
    """Returns a model's compile settings, with another optimizer and with fresh metrics."""
    settings = dict(model._compile_config.config, optimizer=optimizer)
    for name in ("metrics", "weighted_metrics"):
        settings[name] = jax.tree.map(_anew, settings[name])
    return settings


def _anew(part: Any) -> Any:
    """Returns a new optimizer or metric with the same settings, without state."""
    keras = imported()
    if not isinstance(part, keras.Metric | keras.Optimizer):
        return part
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # functions in a config matter only for saving
        config = part.get_config()
    schedule = getattr(part, "_learning_rate", None)
    if callable(schedule):  # a schedule has no state, and may not be registered
        config["learning_rate"] = schedule
    return type(part).from_config(config)


# The optimizer's variables ------------------------------------------------------------------------


def _name(optimizer: Optimizer) -> str:
    """Returns the class name of an optimizer, or of its inner optimizer."""
    return type(getattr(optimizer, "inner_optimizer", optimizer)).__name__


def _slots(optimizer: Optimizer, model: Model, names: Mapping[str, Variable]) -> list[Slot | None]:
    """Returns the slot of each variable of an optimizer, ``None`` if it belongs to no weight.

    A new optimizer with the same settings is built, and its creation of variables is recorded.

    Args:
        optimizer: the optimizer.
        model: the model whose weights it trains.
        names: variables of the model, by name.

    Raises:
        ValueError: if the optimizer keeps arrays of unknown meaning.
    """
    name_of = {id(variable): name for name, variable in names.items()}
    slots: list[Slot | None] = []
    shapes: list[tuple[str, tuple[int, ...]]] = []

    def build() -> None:
        again = _anew(optimizer)
        inner = getattr(again, "inner_optimizer", again)
        made: dict[int, Slot] = {}
        add = inner.add_variable_from_reference

        def watched(reference_variable: Variable, name: str = "var", **options: Any) -> Variable:
            variable = add(reference_variable, name=name, **options)
            made[id(variable)] = name, name_of[id(reference_variable)]
            return variable

        inner.add_variable_from_reference = watched
        again.build(model.trainable_variables)
        slots[:] = [made.get(id(variable)) for variable in again.variables]
        shapes[:] = [(variable.path, tuple(variable.shape)) for variable in again.variables]

    jax.eval_shape(build)
    if _name(optimizer) == "Adafactor":
        for index, slot in enumerate(slots):
            if slot is not None and len(names[slot[1]].shape) > 1:
                slots[index - 2 : index] = [("row", slot[1]), ("column", slot[1])]
    problems = []
    for slot, (path, shape) in zip(slots, shapes):
        if slot is None and shape:
            problems.append(f"{path}: has shape {shape}, but belongs to no known weight")
        elif slot is not None and slot[0] not in {*_MEANINGS, *_FACTORS}:
            problems.append(f"{path}: {slot[0]}, expected one of {', '.join(_MEANINGS)}")
    if problems:
        way_out = "compile the model with an optimizer of Keras, or grow it before it is compiled"
        what = f"{_name(optimizer)} keeps arrays of unknown meaning; {way_out}"
        raise ValueError(listed(what, problems))
    return slots


def _grown(
    state: Mapping[str, Mapping[str, jax.Array]],
    optimizer: Optimizer,
    growth: Growth,
    begun: Mapping[Slot | None, Variable],
    new: Mapping[str, Variable],
) -> Mapping[str, Mapping[str, jax.Array]]:
    """Returns the arrays that an optimizer keeps for weights, grown like the state of Optax.

    Args:
        state: the old arrays, by the name of the variable and that of the weight.
        optimizer: the optimizer.
        growth: the growth.
        begun: the initial variables of the optimizer of the larger model, by slot.
        new: variables of the larger model, by name.
    """
    meanings = _MEANINGS | _MEANINGS_IN.get(_name(optimizer), {})
    weights = {name: new[name] for name in dict.fromkeys(s[1] for s in begun if s is not None)}
    starts = {slot: float(v.value.ravel()[0]) for slot, v in begun.items() if slot is not None}

    def init(params: Mapping[str, Any]) -> dict[str, dict[str, jax.Array]]:
        tree: dict[str, dict[str, jax.Array]] = {name: {} for name in state}
        for (name, path), start in starts.items():
            if name in tree:
                tree[name][path] = jnp.full(params[path].shape, start, params[path].dtype)
        return tree

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        raise TypeError("Keras takes the steps")

    grown = grow_state(
        state,
        growth,
        optax.GradientTransformation(init, update),
        structs_of(weights),
        values_of(new),
        "zeros",
        {name: meanings[name] for name in state},
    )
    kept: Mapping[str, Mapping[str, jax.Array]] = unshared(grown, state, values_of(new))
    return kept
