"""Compile a larger model like the old one, and grow the optimizer's arrays: ``compile_like``."""

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
# What a variable of an optimizer is to a weight: what it is called, and the weight's name.
Slot = tuple[str, str]

# What optimizers keep for each weight, by the names that they give it.
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
# Where an optimizer calls something else so.
_MEANINGS_IN: dict[str, dict[str, Meaning]] = {
    "RMSprop": {"momentum": "update"},
    "ScheduleFreeAdamW": {"momentum": "parameters"},
}
# The means of Adafactor's second moments along the last axis and the one before it.
_FACTORS = {"row": -1, "column": -2}


def expect_compilable(model: Model, names: Mapping[str, Variable]) -> None:
    """Raises if a larger model could not be compiled like this one, or not with its optimizer.

    Args:
        model: the model, compiled or not.
        names: its variables by name.

    Raises:
        ValueError: if the model compiles in a way of its own that it does not describe, or if what
            its optimizer keeps is not known.
    """
    if not model.compiled:
        return
    if not _describes_compiling(model):
        try:
            inspect.signature(model.compile).bind(**_settings(model, None))
        except TypeError as error:
            name = type(model).__name__
            raise ValueError(
                f"{model.name}: {name}.compile does not take what keras.Model.compile takes "
                f"({error}); give {name} get_compile_config and compile_from_config, or pass a "
                "larger model that is compiled as target="
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
        larger: the larger one, whose variables have grown.
        growth: the growth.
        old: variables of the old model, by name.
        new: those of the larger one, by name.

    Raises:
        ValueError: if the larger model has another optimizer already, or if the old one's is not
            for the weights that are trained now.
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
            f"{larger.name}: is compiled with {type(larger.optimizer).__name__}, but the model "
            f"that grows with {type(optimizer).__name__}; pass a target= that is not compiled"
        )
    if not larger.optimizer.built:
        larger.optimizer.build(larger.trainable_variables)
    slots, larger_slots = _slots(optimizer, model, old), _slots(optimizer, larger, new)
    if len(slots) != len(optimizer.variables):
        raise ValueError(
            f"{_name(optimizer)} has {len(optimizer.variables)} variables, where one for the "
            f"weights that {model.name} trains has {len(slots)}; compile it again, then grow it"
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
    """Whether the class of a model says itself how it is compiled once more."""
    return type(model).compile_from_config is not imported().Model.compile_from_config


def _settings(model: Model, optimizer: Optimizer | None) -> dict[str, Any]:
    """Returns what a model was compiled with, but another optimizer and metrics without states."""
    settings = dict(model._compile_config.config, optimizer=optimizer)
    for name in ("metrics", "weighted_metrics"):
        settings[name] = jax.tree.map(_anew, settings[name])
    return settings


def _anew(part: Any) -> Any:
    """Returns an optimizer or a metric like another one, without its state."""
    keras = imported()
    if not isinstance(part, keras.Metric | keras.Optimizer):
        return part
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of functions in the config, which is not saved
        config = part.get_config()
    schedule = getattr(part, "_learning_rate", None)
    if callable(schedule):  # it has no state, and its class or function may not be registered
        config["learning_rate"] = schedule
    return type(part).from_config(config)


# The optimizer's variables ------------------------------------------------------------------------


def _name(optimizer: Optimizer) -> str:
    """Returns the class of an optimizer, or of the one in it."""
    return type(getattr(optimizer, "inner_optimizer", optimizer)).__name__


def _slots(optimizer: Optimizer, model: Model, names: Mapping[str, Variable]) -> list[Slot | None]:
    """Returns what each variable of an optimizer is to which of a model's weights, if it is.

    An optimizer like it is built once more, and watched as it makes its variables.

    Args:
        optimizer: the optimizer.
        model: the model whose weights it trains.
        names: variables of the model, by name.

    Raises:
        ValueError: if it keeps anything else for weights than is known.
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
            problems.append(f"{path}: of shape {shape}, for no weight that is known")
        elif slot is not None and slot[0] not in {*_MEANINGS, *_FACTORS}:
            problems.append(f"{path}: {slot[0]}, expected one of {', '.join(_MEANINGS)}")
    if problems:
        way_out = "compile the model with an optimizer of Keras, or grow it before it is compiled"
        what = f"{_name(optimizer)} keeps what is not known here; {way_out}"
        raise ValueError(listed(what, problems))
    return slots


def _grown(
    state: Mapping[str, Mapping[str, jax.Array]],
    optimizer: Optimizer,
    growth: Growth,
    begun: Mapping[Slot | None, Variable],
    new: Mapping[str, Variable],
) -> Mapping[str, Mapping[str, jax.Array]]:
    """Returns what an optimizer keeps for weights, grown like the state of one of Optax's.

    Args:
        state: what it keeps, by its name and that of the weight.
        optimizer: the optimizer.
        growth: the growth.
        begun: the variables with which one for the larger model begins.
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
