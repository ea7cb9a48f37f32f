"""Arrays that training does not learn, such as running statistics: ``statistics_of``."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from dogwood_jax._base.described import is_a
from dogwood_jax._base.trees import PyTree, leaves_by_path
from dogwood_jax._program.interpret import called, interpret
from dogwood_jax._program.primitives.table import primitive
from dogwood_jax._widths.widths import Network

_PASS = frozenset({"convert_element_type", "copy"})


def statistics_of(network: Network) -> dict[str, float]:
    """Returns the arrays that are not learned, by path, each with the constant added to it.

    The constant of a variance is the epsilon of its norm. It is 0 if nothing is added. A norm
    computes the same if its inputs are multiplied by a factor, and the variance plus epsilon by the
    square of that factor. In training, the factor then follows from the inputs.

    Args:
        network: the network.
    """
    paths, program = _not_learned(network.variables), network.traced.program
    if not paths:
        return {}
    found = dict.fromkeys(paths, 0.0)
    arguments = [path if path in paths else None for path, _ in program.arguments]
    _read(program.jaxpr.jaxpr, program.jaxpr.consts, arguments, found)
    return found


def _not_learned(variables: PyTree) -> set[str]:
    """Returns the paths of arrays that training does not learn.

    These lie outside of Linen's ``params``, NNX marks them as no ``Param``, or they lie in a
    ``State`` of Equinox. Any other network has none.
    """
    if isinstance(variables, Mapping) and "params" in variables:
        return {path for path in leaves_by_path(variables) if not path.startswith("params/")}

    def is_state(node: Any) -> bool:
        return is_a(type(node), "State", "equinox")

    def is_variable(node: Any) -> bool:
        return hasattr(node, "get_metadata") or is_state(node)

    def are_learned(node: Any) -> PyTree:
        if is_state(node):
            return jax.tree.map(lambda _: False, node)
        classes = getattr(node, "type", type(node)).__mro__
        return not is_variable(node) or any(one.__name__ == "Param" for one in classes)

    learned = jax.tree.map(are_learned, variables, is_leaf=is_variable)
    return {path for path, is_it in leaves_by_path(learned).items() if not is_it}


def _read(
    jaxpr: Any, consts: Sequence[Any], arguments: Sequence[Any], found: dict[str, float]
) -> list[Any]:
    """Reads a program; values are a path, for an array in another shape, a number, or None."""

    def equation(eqn: Any, operands: list[Any]) -> Sequence[Any]:
        name, nothing = eqn.primitive.name, [None] * len(eqn.outvars)
        if (program := called(eqn)) is not None:
            return _read(*program, operands, found)
        paths = [value for value in operands if isinstance(value, str)]
        numbers = [value for value in operands if isinstance(value, float)]
        if name == "add" and len(paths) == len(numbers) == 1:
            found[paths[0]] = numbers[0]
            return nothing
        is_same = operands and (primitive(name).keeps or name in _PASS)
        return operands[:1] if is_same and len(eqn.outvars) == 1 else nothing

    def constant(array: Any, _: Any) -> float | None:
        return float(array) if np.size(array) == 1 and np.ndim(array) == 0 else None

    return interpret(jaxpr, consts, arguments, constant=constant, equation=equation)
