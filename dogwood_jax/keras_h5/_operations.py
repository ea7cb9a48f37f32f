"""Arithmetic on the arrays of a Functional model: ``x * 2 + y``, which Keras makes layers of.

Each release has its own kind of them: operations in Keras 3 (called ``ops.Add`` here, since there
is a layer Add), calls of TensorFlow's functions since 2.4, and nodes of its graphs before that.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from dogwood_jax.keras_h5._activations import ACTIVATIONS
from dogwood_jax.keras_h5._convert import Config

Function = Callable[..., Any]

# By the names in Keras 3, since TensorFlow 2.4, and before.
_NAMES: Mapping[tuple[str, str, str], Function] = {
    ("Add", "__operators__.add math.add", "AddV2 Add"): jnp.add,
    ("Subtract", "math.subtract", "Sub"): jnp.subtract,
    ("Multiply", "math.multiply", "Mul"): jnp.multiply,
    ("Divide TrueDivide", "math.divide math.truediv", "RealDiv"): jnp.divide,
    ("Maximum", "math.maximum", "Maximum"): jnp.maximum,
    ("Minimum", "math.minimum", "Minimum"): jnp.minimum,
    ("Negative", "math.negative", "Neg"): jnp.negative,
    ("Absolute Abs", "math.abs", "Abs"): jnp.abs,
    ("Square", "math.square", "Square"): jnp.square,
    ("Sqrt", "math.sqrt", "Sqrt"): jnp.sqrt,
    ("Exp", "math.exp", "Exp"): jnp.exp,
    ("Relu", "nn.relu", "Relu"): ACTIVATIONS["relu"],
    ("Relu6", "nn.relu6", "Relu6"): ACTIVATIONS["relu6"],
    ("Sigmoid", "math.sigmoid", "Sigmoid"): jax.nn.sigmoid,
    ("Tanh", "math.tanh", "Tanh"): jnp.tanh,
}
_KERAS_3, _FUNCTIONS, _NODES = (
    {name: function for names, function in _NAMES.items() for name in names[version].split()}
    for version in range(3)
)


def _found(table: Mapping[str, Function], name: Any) -> Function:
    if name not in table:
        raise ValueError(f"the operation {name!r} is not supported")
    return table[name]


def _call_of_function(config: Config) -> Function:
    function = _found(_FUNCTIONS, config["function"])
    return lambda x, **others: function(x, *others.values())


def _node(config: Config) -> Function:
    """An operation whose inputs that are constants are in its config, by position."""
    function = _found(_NODES, config["node_def"]["op"])
    constants = {int(position): value for position, value in config["constants"].items()}

    def call(x: Any) -> Any:
        arrays = list(x) if isinstance(x, list) else [x]
        for position in sorted(constants):
            arrays.insert(position, constants[position])
        return function(*arrays)

    return call


def _slicing(x: Any, slice_spec: Any) -> Any:
    """Indexes, with slices as Keras 3 has them or as TensorFlow wrote them."""
    items = slice_spec if isinstance(slice_spec, list) else [slice_spec]
    return x[tuple(map(_index, items))]


def _index(item: Any) -> Any:
    if isinstance(item, Mapping):
        return slice(item["start"], item["stop"], item["step"])
    if item is None or isinstance(item, int | slice):
        return item
    raise ValueError(f"the index {item!r} is not supported")


OPERATIONS: dict[str, Callable[[Config], Function]] = {
    **{f"ops.{name}": lambda config, f=f: f for name, f in _KERAS_3.items()},  # type: ignore[misc]
    "ops.GetItem": lambda config: _slicing,
    "TFOpLambda": _call_of_function,
    "SlicingOpLambda": lambda config: _slicing,
    "TensorFlowOpLayer": _node,
}
