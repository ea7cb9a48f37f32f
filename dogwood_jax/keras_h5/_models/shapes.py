"""Shapes of a model's inputs, of its variables, and of the inputs of its layers."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from dogwood_jax.keras_h5._kinds.kind import Config, kind_of
from dogwood_jax.keras_h5._kinds.nested import MODELS
from dogwood_jax.keras_h5._models.graph import parse, refs_in
from dogwood_jax.keras_h5._models.module import KerasLayers
from dogwood_jax.keras_h5._models.vocabularies import left_out

_ANY_SIZE = 32  # stands for a size that the model leaves open


def example_inputs(module: KerasLayers) -> list[jax.ShapeDtypeStruct] | None:
    """Returns inputs as a model's config describes them; ``None`` if it does not."""
    inputs = model_inputs(module.config["class_name"], module.config["config"], _ANY_SIZE)
    known = [one for one in inputs if one is not None]
    return known if len(known) == len(inputs) else None


def model_inputs(
    class_name: str, config: Config, any_size: int | None = None
) -> list[jax.ShapeDtypeStruct | None]:
    """Returns the shapes of a model's inputs, ``None`` for inputs whose shape is not known.

    Args:
        class_name: the model's class.
        config: its config.
        any_size: size for axes that the config leaves open, except the last one (channels). Without
            it, an open batch has size 1.
    """
    graph = parse(class_name, config)
    looked_up = left_out(graph)
    shapes: list[jax.ShapeDtypeStruct | None] = []
    for ref in refs_in(graph.inputs):
        kind, first = graph.layers[ref.layer or next(iter(graph.layers))]
        if kind in MODELS:
            shapes += model_inputs(kind, first, any_size)
            continue
        shape: Any = first.get("batch_shape") or first.get("batch_input_shape")
        if not shape and not ref.layer and isinstance(config, Mapping):
            shape = config.get("build_input_shape")
        shape = shape or (None, None)
        dtype = first.get("dtype")
        if ref.layer in looked_up:
            layer_class, layer_config = graph.layers[looked_up[ref.layer]]
            result = kind_of(layer_class).looked_up
            shape = (result and result(layer_config, shape)) or (None, None)
            dtype = "int32"
        array: Any = jax.ShapeDtypeStruct  # untyped
        dtype = jnp.dtype(dtype if isinstance(dtype, str) else "float32")
        each = shape[1:]
        sizes = [any_size if size is None else size for size in each[:-1]] + list(each[-1:])
        known = all(isinstance(size, int) for size in sizes)
        batch = shape[0] if isinstance(shape[0], int) else any_size or 1
        shapes.append(array((batch, *sizes), dtype) if known else None)
    return shapes


def recorded_inputs(module: KerasLayers, variables: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the shapes of the inputs of a model's layers.

    The keys are ``inputs_of(layer)``, and the names of inner models, whose values have the same
    form. The result is empty if the shapes of the model's inputs are not known.

    Raises:
        ValueError: if the model cannot be called with these variables.
    """
    inputs = example_inputs(module)
    if inputs is None:
        return {}

    def record(variables: Any, *inputs: Any) -> Any:
        return module.apply(variables, *inputs, mutable=["intermediates"])[1]

    try:
        recorded: Mapping[str, Any] = jax.eval_shape(record, variables, *inputs)["intermediates"]
    except Warning:
        raise
    except Exception as error:  # JAX and Flax raise all kinds
        raise ValueError(f"no config of this model has these sizes: {error}") from error
    return recorded


def described(module: KerasLayers) -> Mapping[str, Any] | None:
    """Returns the variables that a model's config describes, and the inputs of its layers.

    The inputs are in ``"intermediates"``, as ``recorded_inputs`` returns them. Returns ``None`` if
    the shapes of the model's inputs are not known.

    Raises:
        ValueError: if the config contradicts itself.
    """
    inputs = example_inputs(module)
    if inputs is None:
        return None

    def everything(key: Any, *inputs: Any) -> Any:
        return module.apply({}, *inputs, rngs={"params": key}, mutable=True)[1]

    try:
        found: Mapping[str, Any] = jax.eval_shape(everything, jax.random.key(0), *inputs)
    except Warning:
        raise
    except Exception as error:  # JAX and Flax raise all kinds
        if None in model_inputs(module.config["class_name"], module.config["config"]):
            return None  # perhaps only the size assumed for an open axis is wrong
        raise ValueError(str(error)) from error
    return found
