"""Gives inserted normalizations the statistics of a batch: ``with_statistics``.

With running mean 0, variance 1 and the scale that undoes them, a normalization is the identity in
evaluation. But training uses the statistics of the batch, so it would start with other outputs.
With the statistics of a batch, and the scale and bias that undo them, a normalization is the
identity in evaluation, and in training on this batch.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from dogwood_jax._base.trees import PyTree, in_order_of, is_array, leaves_by_path, rebuilt
from dogwood_jax._growth.edit import Edit
from dogwood_jax._program.interpret import called, evaluated, interpret
from dogwood_jax._program.primitives.table import primitive
from dogwood_jax._program.program import Program

_PASS = frozenset({"convert_element_type", "copy"})


def with_statistics(
    apply: Callable[..., Any],
    variables: PyTree,
    inserted: Sequence[Edit],
    batch: Sequence[Any],
) -> PyTree:
    """Returns a network whose inserted normalizations have the statistics of a batch.

    Args:
        apply: the deeper network, a function of variables and inputs, in evaluation.
        variables: the deeper network's variables, with new layers.
        inserted: the edits of new arrays, with their fillings.
        batch: the network's inputs, arrays.

    Raises:
        ValueError: if no normalization by running statistics was inserted.
    """
    norms = _norms(inserted)
    if not norms:
        raise ValueError(
            "batch= gives inserted normalizations their statistics, but none was inserted that has "
            "a mean, a variance, a scale and a bias; leave batch= out"
        )
    leaves, program = leaves_by_path(variables), Program(apply, variables, batch)

    @jax.jit
    def measured(leaves: Mapping[str, Array], inputs: Sequence[Array]) -> dict[str, Array]:
        rest = iter(inputs)
        arguments = []
        for path, _ in program.arguments:
            argument = _Measured(next(rest) if path is None else leaves[path])
            if path in norms:
                numbers = jnp.arange(argument.array.size, dtype=jnp.int32)
                argument = _Measured(argument.array, path, numbers.reshape(argument.array.shape))
            arguments.append(argument)
        found: dict[str, tuple[Array, Array]] = {}
        _run(program.jaxpr.jaxpr, program.jaxpr.consts, arguments, found)
        filled = {}
        for path, (mean, variance) in found.items():
            norm = norms[path]
            like = {role: leaves[edit.path] for role, edit in norm.items()}
            epsilon = (_value(norm["scale"]) or 0.0) ** 2 - 1
            # Rounded first, as they will be stored: scale and bias must undo the stored values.
            mean = mean.astype(like["mean"].dtype).astype(like["bias"].dtype)
            variance = variance.astype(like["variance"].dtype)
            wide = jnp.promote_types(variance.dtype, like["scale"].dtype)
            scale = jnp.sqrt(variance.astype(wide) + epsilon)
            values = {"mean": mean, "variance": variance, "scale": scale, "bias": mean}
            for role, value in values.items():
                array = value.reshape(like[role].shape).astype(like[role].dtype)
                filled[norm[role].path] = array
        return filled

    known = {path: leaves[path] for path, _ in program.arguments if path is not None}
    filled = measured(known, [a for a in jax.tree.leaves(tuple(batch)) if is_array(a)])
    scales = sorted({norm["scale"].path for norm in norms.values()} - filled.keys())
    if scales:
        raise ValueError(
            f"batch=: found no values that the inserted normalizations of {', '.join(scales)} "
            "normalize, as in a loop over layers; leave batch= out and set the statistics yourself"
        )
    return in_order_of(variables, rebuilt(jax.tree.structure(variables), leaves | filled))


def _norms(inserted: Sequence[Edit]) -> dict[str, dict[str, Edit]]:
    """Returns the arrays of inserted normalizations by role, for each path that may be the mean."""
    constant = [edit for edit in inserted if edit.is_whole and _value(edit) is not None]
    norms: dict[str, dict[str, Edit]] = {}
    for mean in constant:
        # A module has its arrays under the same path, in Flax in each collection.
        for start in (0, 1):
            module = mean.path.split("/")[start:-1]
            others = [
                i
                for i in constant
                if i is not mean and i.path.split("/")[start:-1] == module
                if i.shape == mean.shape
            ]
            if _value(mean) == 0 and len(others) == 3:
                bias, variance, scale = sorted(others, key=lambda edit: _value(edit) or 0.0)
                if _value(bias) == 0 and _value(variance) == 1 < (_value(scale) or 0.0):
                    roles = {"mean": mean, "bias": bias, "variance": variance, "scale": scale}
                    norms.setdefault(mean.path, roles)
    return norms


def _value(edit: Edit) -> float | None:
    """Returns the constant that an array is filled with, or None."""
    return edit.fill.value if edit.fill else None


@dataclass(frozen=True)
class _Measured:
    """An array, which may hold means of an inserted normalization.

    Attributes:
        array: the array.
        path: path of the means; None if the array holds no means.
        numbers: for each entry of the array, its index among the means.
    """

    array: Any
    path: str | None = None
    numbers: Any = None


def _run(
    jaxpr: Any,
    consts: Sequence[Any],
    arguments: Sequence[_Measured],
    found: dict[str, tuple[Array, Array]],
) -> list[_Measured]:
    """Runs a program and measures the values from which it subtracts an inserted mean.

    Args:
        jaxpr: the program.
        consts: the program's constants.
        arguments: the program's arguments.
        found: receives means and variances, by path of the mean.
    """

    def equation(eqn: Any, operands: list[_Measured]) -> list[_Measured]:
        name = eqn.primitive.name
        if (program := called(eqn)) is not None:
            return _run(*program, operands, found)
        results = [
            _Measured(array) for array in evaluated(eqn, [value.array for value in operands])
        ]
        if name == "sub" and operands[1].path is not None and operands[0].path is None:
            found[operands[1].path] = _statistics(operands[0].array, operands[1].numbers)
        elif operands and operands[0].path is not None and (primitive(name).keeps or name in _PASS):
            numbers = operands[0].numbers
            moved = numbers if name in _PASS else evaluated(eqn, [numbers])[0]
            results = [_Measured(results[0].array, operands[0].path, moved)]
        return results

    return interpret(
        jaxpr, consts, arguments, constant=lambda array, _: _Measured(array), equation=equation
    )


def _statistics(values: Array, numbers: Array) -> tuple[Array, Array]:
    """Returns means and variances of the values with the same number."""
    wide = values.astype(jnp.promote_types(values.dtype, jnp.float32)).ravel()
    units, numbers = numbers.size, jnp.broadcast_to(numbers, values.shape).ravel()

    def mean(entries: Array) -> Array:
        return jax.ops.segment_sum(entries, numbers, units) * (units / entries.size)

    means = mean(wide)
    return means, mean((wide - means[numbers]) ** 2)
