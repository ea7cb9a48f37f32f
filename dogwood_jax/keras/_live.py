"""Live Keras models as functions of their arrays: ``ModelFunction``, ``named_variables``."""

import contextlib
import inspect
import random
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dogwood_jax._base.described import described
from dogwood_jax._base.trees import PyTree, is_array, struct

# A variable of Keras; ``keras.Variable`` is not available before Keras is imported.
Variable = Any
Layer = Any
Model = Any


def imported() -> Any:
    """Imports Keras and checks that it is Keras 3 on JAX.

    Raises:
        ImportError: if Keras is not installed, or is Keras 2.
        RuntimeError: if its backend is not JAX.
    """
    try:
        import keras
    except ImportError as error:
        raise ImportError("dogwood_jax.keras takes models of Keras 3: pip install keras") from error
    if not hasattr(keras, "StatelessScope"):
        raise ImportError(
            f"dogwood_jax.keras takes models of Keras 3, found Keras {keras.__version__}; "
            "pip install -U keras, or save the model and use dogwood_jax.keras_h5"
        )
    if (backend := keras.config.backend()) != "jax":
        raise RuntimeError(
            f"dogwood_jax.keras takes models of Keras on JAX, found Keras on {backend}; set the "
            "environment variable KERAS_BACKEND=jax before Keras is imported"
        )
    return keras


def expect_model(call: str, name: str, model: Any) -> None:
    """Raises if an argument is not a Keras model with variables.

    Args:
        call: signature of the public function, for errors.
        name: name of the argument.
        model: the argument.
    """
    if not isinstance(model, imported().Model):
        raise TypeError(f"{call}: {name} must be a keras.Model, got {described(model)}")
    if not model.built:
        raise ValueError(
            f"{call}: {name} has no variables yet, because its input shape is unknown; call it "
            "once, or start it with keras.Input"
        )


@dataclass(frozen=True, eq=False)
class ModelFunction:
    """A model as a function of its arrays, by name, and of its input, as ``predict`` calls it.

    Attributes:
        model: the model.
        variables: the variables by name. Variables not listed keep their values in the model.
    """

    model: Model
    variables: Mapping[str, Variable]

    def __call__(self, variables: Mapping[str, Any], x: Any) -> Any:
        given = {id(variable): variables[name] for name, variable in self.variables.items()}
        trainable, others = (
            [given.get(id(variable), variable.value) for variable in its]
            for its in (self.model.trainable_variables, self.model.non_trainable_variables)
        )
        takes_training = "training" in inspect.signature(self.model.call).parameters
        mode = {"training": False} if takes_training else {}
        outputs, _ = self.model.stateless_call(trainable, others, x, **mode)
        return outputs


def function_of(model: Model) -> ModelFunction:
    """Returns a model as a function of its variables, except states of random generators."""
    named = named_variables(model).items()
    return ModelFunction(model, {n: v for n, v in named if v.name != "seed_generator_state"})


def values_of(variables: Mapping[str, Variable]) -> dict[str, jax.Array]:
    """Returns the arrays that variables hold."""
    return {name: variable.value for name, variable in variables.items()}


def structs_of(variables: Mapping[str, Variable]) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes of variables."""
    return {name: struct(tuple(v.shape), jnp.dtype(v.dtype)) for name, v in variables.items()}


@contextlib.contextmanager
def seeds_kept() -> Iterator[None]:
    """Restores Python's random state, from which Keras draws seeds, on exit."""
    state = random.getstate()
    try:
        yield
    finally:
        random.setstate(state)


# Inputs -------------------------------------------------------------------------------------------


def inputs_of(model: Model, x: PyTree = None) -> PyTree:
    """Returns the shapes of a model's input.

    Args:
        model: the model.
        x: an example. Without it, the model's own specification is used, with a batch of two.

    Raises:
        ValueError: if the specification is missing or leaves a size open.
    """
    if x is not None:
        floats = jnp.dtype(imported().config.floatx())
        return jax.tree.map(lambda leaf: _example(leaf, floats), x)
    spec = _specified(model)
    if spec is None:
        raise ValueError(f"{model.name}: its input shape is unknown; pass an example input, x=")
    if any(None in tensor.shape[1:] for tensor in jax.tree.leaves(spec)):
        shapes = ", ".join(str(tensor.shape) for tensor in jax.tree.leaves(spec))
        raise ValueError(
            f"{model.name}: its input shapes leave sizes open, {shapes}; pass an example input, x="
        )
    return jax.tree.map(lambda t: struct((2, *t.shape[1:]), jnp.dtype(t.dtype)), spec)


def with_inputs(model: Model, inputs: PyTree) -> Model:
    """Calls a model with symbolic inputs, so that it makes its variables, and returns it."""
    tensor = imported().KerasTensor
    model(jax.tree.map(lambda leaf: tensor(leaf.shape, str(leaf.dtype)), inputs))
    return model


def _specified(model: Model) -> PyTree | None:
    """Returns the inputs of a Functional or Sequential model, if they are known."""
    keras = imported()
    if isinstance(model, keras.Function):
        return model.input
    if isinstance(model, keras.Sequential) and model.inputs:
        return model.inputs[0]
    return None


def _example(leaf: Any, floats: Any) -> jax.ShapeDtypeStruct:
    """Returns the shape of an example, with floats in the dtype that Keras converts them to."""
    array = leaf if is_array(leaf) else np.asarray(leaf)
    is_float = jnp.issubdtype(array.dtype, jnp.floating)
    return struct(tuple(array.shape), floats if is_float else array.dtype)


# Names --------------------------------------------------------------------------------------------


def named_variables(model: Model) -> dict[str, Variable]:
    """Returns the variables of a model by their names, such as ``"dense_1/kernel"``.

    Layers of a Sequential or Functional model have their own names. In other layers and models, a
    layer has the name of the attribute that holds it, unless the user has named it, because its
    automatic name has another number in each model.
    """
    variables = (*model.trainable_variables, *model.non_trainable_variables)
    paths: dict[int, str] = {}
    for path, variable in _walk(model, "", set()):
        paths.setdefault(id(variable), path)
    names: dict[str, Variable] = {}
    for variable in variables:
        names[_free(paths.get(id(variable), variable.path), names)] = variable
    return names


def layers_by_name(layer: Layer) -> dict[str, Layer]:
    """Returns the layers of a Sequential or Functional model; an empty dict for other layers."""
    keras = imported()
    is_graph = isinstance(layer, keras.Function | keras.Sequential)
    return {part.name: part for part in layer.layers} if is_graph else {}


def layers_in(layer: Layer) -> list[Layer]:
    """Returns a layer and all layers in it."""
    return [*layer._flatten_layers()]


def _walk(node: Any, path: str, seen: set[int]) -> Iterator[tuple[str, Variable]]:
    """Yields the variables in a layer, each with its path."""
    if id(node) in seen:
        return
    seen.add(id(node))
    for name, layer in layers_by_name(node).items():
        yield from _walk(layer, f"{path}/{name}".removeprefix("/"), seen)
    for attribute, value in sorted(vars(node).items(), key=_is_kept_by_keras):
        yield from _held(attribute.lstrip("_"), value, path, seen)


def _is_kept_by_keras(attribute: tuple[str, Any]) -> int:
    """Sort key of attributes: Keras's own lists of all layers and variables come last."""
    name, value = attribute
    return name.startswith("_") * (1 + isinstance(value, list | tuple | dict))


def _held(name: str, value: Any, path: str, seen: set[int]) -> Iterator[tuple[str, Variable]]:
    """Yields the variables in the value of an attribute, each with its path."""
    keras = imported()
    here = f"{path}/{name}".removeprefix("/")
    if isinstance(value, keras.Variable):
        own = name if re.fullmatch(r"variable(_\d+)?", value.name) else value.name
        yield f"{path}/{own}".removeprefix("/"), value
    elif isinstance(value, keras.Layer):
        # Automatic names have the class and a number, and in a Bidirectional layer the direction.
        given = re.sub(r"^(forward|backward)_|_\d+$|_(?=.)", "", value.name)
        is_named = given != type(value).__name__.lower()
        named = f"{path}/{value.name}".removeprefix("/")
        yield from _walk(value, named if is_named else here, seen)
    elif isinstance(value, keras.random.SeedGenerator):
        yield from _walk(value, here, seen)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _held(str(index), item, here, seen)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _held(str(key), item, here, seen)


def _free(path: str, taken: Mapping[str, Any]) -> str:
    """Returns a path, with a number appended if the path is taken."""
    paths = (path if n == 1 else f"{path}_{n}" for n in range(1, len(taken) + 2))
    return next(one for one in paths if one not in taken)
