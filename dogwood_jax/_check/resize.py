"""Rewrites a program in other sizes: ``in_sizes``.

A program that was read has a dimension for each axis of each value. So new sizes of dimensions give
the new shapes of all equations. A few primitives, such as a reshape or a slice, have shapes among
their parameters, which are replaced. All others are bound as they are. If shapes clash, JAX raises
an error: a rule of dimensions is wrong, or the program holds a size that must change.
"""

from collections.abc import Callable, Mapping, Sequence
from math import prod
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.source_info_util import user_context

from dogwood_jax._base.trees import concrete, is_traced, struct
from dogwood_jax._check.lines import with_line
from dogwood_jax._check.seen import PIECES
from dogwood_jax._program.dims import Dim
from dogwood_jax._program.interpret import called, interpret
from dogwood_jax._program.primitives.new_sizes import CannotResize, SizeOf, places_along
from dogwood_jax._program.primitives.table import primitive
from dogwood_jax._program.program import Program
from dogwood_jax._program.subprograms import Key, scan_counts, sub_programs
from dogwood_jax._program.values import Reading, Step, Value
from dogwood_jax._widths.trace import Traced


class _SizedConstant(NamedTuple):
    """A constant in its old shape; it is resized where it is used and its dimensions are known."""

    array: Any


def _constant(array: Any, aval: Any) -> _SizedConstant:
    is_number = isinstance(array, float | int | bool | complex)
    return _SizedConstant(np.asarray(array, aval.dtype) if is_number else array)


def in_sizes(
    traced: Traced, size_of: SizeOf, factors: Mapping[Key, float] = MappingProxyType({})
) -> Any:
    """Returns a program in other sizes, or the reason why it does not fit them.

    Args:
        traced: the program as it was read.
        size_of: the new size of each dimension.
        factors: factors on constants, by key of the step that uses the constant. A number that
            turns a sum into a mean follows the size without an entry here.

    Returns:
        The program, a ``ClosedJaxpr``, or a ``CannotResize``.
    """
    program: Program = traced.program
    leaves, inputs = iter(traced.leaves.values()), iter(traced.trace.arguments)
    values = [next(inputs if path is None else leaves) for path, _ in program.arguments]
    structs = [
        struct([size_of(dim) for dim in value.dims], array.dtype)
        for value, (_, array) in zip(values, program.arguments, strict=True)
    ]
    writer = _Writer(size_of, factors)

    def run(*arguments: Any) -> list[Any]:
        jaxpr = program.jaxpr
        results = writer.run(jaxpr.jaxpr, jaxpr.consts, arguments, traced.trace.program)
        return [r.array if isinstance(r, _SizedConstant) else r for r in results]

    try:
        return jax.make_jaxpr(run)(*structs)
    except CannotResize as why:
        return why


def least_sizes(traced: Traced) -> dict[Dim, int]:
    """Returns the least sizes of dimensions from which ``top_k`` picks entries."""
    found = dict[Dim, int]()
    for step in traced.trace.program.flat(names=("top_k", "approx_top_k")):
        params = step.eqn.params
        axis = params.get("axis", params.get("reduction_dimension", -1))
        whole, picked = (value.dims[axis].root for value in (step.operands[0], step.results[0]))
        least = picked.size + (picked.size < whole.size)
        found[whole] = max(least, found.get(whole, 0))
    return found


class _Writer:
    """Binds the equations of a program again, in other sizes."""

    def __init__(self, size_of: SizeOf, factors: Mapping[Key, float]) -> None:
        self._size_of, self._factors = size_of, factors
        self._callers: list[Any] = []

    def run(
        self, jaxpr: Any, consts: Sequence[Any], arguments: Sequence[Any], read: Reading
    ) -> list[Any]:
        left = read.steps((*self._callers,))

        def equation(eqn: Any, operands: list[Any]) -> Sequence[Any]:
            step = next(left)
            taken = [
                self._resized(operand.array, value)
                if isinstance(operand, _SizedConstant)
                else operand
                for operand, value in zip(operands, step.operands, strict=True)
            ]
            try:
                return self._equation(eqn, self._scaled(taken, step), step)
            except CannotResize:
                raise
            except (TypeError, ValueError, AssertionError, ZeroDivisionError) as error:
                raise CannotResize(f"{eqn.primitive.name}: {error}") from error

        return interpret(jaxpr, consts, arguments, constant=_constant, equation=equation)

    def _scaled(self, operands: list[Any], step: Step) -> list[Any]:
        """Returns operands; a number that follows from a size is scaled."""
        ratio = self._factors.get(step.key) if self._factors else None
        ratio = ratio or ratio_of_mean(step, self._size_of)
        if ratio is None or called(step.eqn) is not None:  # equations inside have their own steps
            return operands
        places = [i for i, value in enumerate(step.operands) if value.number is not None]
        for place in places[-1:]:
            number = operands[place]
            if is_traced(number):
                operands[place] = number * jnp.asarray(ratio, number.dtype)
            else:  # a constant stays a constant
                operands[place] = np.asarray(np.asarray(number, float) * ratio, number.dtype)
        return operands

    def _resized(self, array: Any, value: Value) -> Any:
        """Returns a constant in other sizes; new entries repeat old ones, which must be equal."""
        shape = self._shape(value)
        if getattr(array, "shape", ()) == shape:
            return array
        known = concrete(array)
        if known is None:
            raise CannotResize("a constant is traced by an outer transformation, such as jax.jit")
        for axis, dim in enumerate(value.dims):
            places = places_along(dim, self._size_of)
            if (places < 0).any():
                if (known != np.take(known, [0], axis)).any():
                    raise CannotResize("a table of constants has no entries for new units")
                places = np.maximum(places, 0)
            known = np.take(known, places, axis)
        return known

    def _shape(self, value: Value) -> tuple[int, ...]:
        return tuple(map(self._size_of, value.dims))

    def _equation(self, eqn: Any, operands: list[Any], step: Step) -> Sequence[Any]:
        name = eqn.primitive.name
        self._callers.append(eqn)
        if name in _LOOPS:
            results = _LOOPS[name](self, eqn, operands, step)
        elif (program := called(eqn)) is not None and step.inside:
            results = self.run(*program, operands, step.inside[0])
        else:
            made_by = with_line(self._callers) if name in PIECES else eqn
            with user_context(made_by.source_info.traceback):
                results = self._bound(eqn, operands, step)
        self._callers.pop()
        return results

    def _bound(self, eqn: Any, operands: list[Any], step: Step) -> Sequence[Any]:
        name, params = eqn.primitive.name, eqn.params
        if (resized := primitive(name).resized) is not None:
            params = params | resized(step, operands, self._size_of)
        elif self._is_changed(step) and not all(map(_is_of_numbers, sub_programs(eqn))):
            raise CannotResize(f"{name} runs programs of its own, which are not resized")
        results = eqn.primitive.bind(*operands, **params)
        results = list(results) if eqn.primitive.multiple_results else [results]
        if name == "random_bits":  # drawn with an axis for each width
            return [r.reshape(self._shape(v)) for r, v in zip(results, step.results, strict=True)]
        for result, value in zip(results, step.results, strict=True):
            if (shape := self._shape(value)) != tuple(result.shape):
                raise CannotResize(f"{name} returns shape {tuple(result.shape)}, not {shape}")
        return results

    def _is_changed(self, step: Step) -> bool:
        values = (*step.operands, *step.results)
        return any(self._size_of(dim) != dim.size for value in values for dim in value.dims)

    def _scan(self, eqn: Any, operands: list[Any], step: Step) -> Sequence[Any]:
        n_consts, n_carry = scan_counts(eqn)
        consts, carry = operands[:n_consts], operands[n_consts : n_consts + n_carry]
        stacked = operands[n_consts + n_carry :]
        program = eqn.params["jaxpr"]

        def body(carry: Any, xs: Any) -> Any:
            results = self.run(
                program.jaxpr, program.consts, [*consts, *carry, *xs], step.inside[0]
            )
            results = [
                jnp.asarray(r.array) if isinstance(r, _SizedConstant) else r for r in results
            ]
            results = [_as(r, var.aval) for r, var in zip(results, program.jaxpr.outvars)]
            return results[:n_carry], results[n_carry:]

        lengths = [self._size_of(value.dims[0]) for value in step.operands[n_consts + n_carry :]]
        lengths += [self._size_of(value.dims[0]) for value in step.results[n_carry:]]
        length = lengths[0] if lengths else eqn.params["length"]
        carry = [_as(c, var.aval) for c, var in zip(carry, program.jaxpr.invars[n_consts:])]
        final, collected = jax.lax.scan(
            body, carry, stacked, length=length, reverse=eqn.params["reverse"]
        )
        return [*final, *collected]

    def _while(self, eqn: Any, operands: list[Any], step: Step) -> Sequence[Any]:
        p = eqn.params
        n_cond, n_body = p["cond_nconsts"], p["body_nconsts"]
        of_cond, of_body = step.inside
        given, consts = operands[:n_cond], operands[n_cond : n_cond + n_body]
        cond, body = p["cond_jaxpr"], p["body_jaxpr"]

        def goes_on(state: Any) -> Any:
            (result,) = self.run(cond.jaxpr, cond.consts, [*given, *state], of_cond)
            return result.array if isinstance(result, _SizedConstant) else result

        def once(state: Any) -> Any:
            results = self.run(body.jaxpr, body.consts, [*consts, *state], of_body)
            results = [r.array if isinstance(r, _SizedConstant) else r for r in results]
            return [_as(r, var.aval) for r, var in zip(results, body.jaxpr.outvars)]

        state = operands[n_cond + n_body :]
        state = [_as(s, var.aval) for s, var in zip(state, body.jaxpr.invars[n_body:])]
        return jax.lax.while_loop(goes_on, once, state)

    def _cond(self, eqn: Any, operands: list[Any], step: Step) -> Sequence[Any]:
        which, *arguments = operands

        def branch(program: Any, read: Reading) -> Any:
            def run(*arguments: Any) -> list[Any]:
                results = self.run(program.jaxpr, program.consts, arguments, read)
                results = [r.array if isinstance(r, _SizedConstant) else r for r in results]
                return [_as(r, var.aval) for r, var in zip(results, program.jaxpr.outvars)]

            return run

        branches = [branch(*pair) for pair in zip(eqn.params["branches"], step.inside)]
        return jax.lax.switch(which, branches, *arguments)  # type: ignore[no-any-return]


def ratio_of_mean(step: Step, size_of: SizeOf) -> float | None:
    """Returns the factor on a number that turns a sum into a mean, None for other numbers."""
    if step.name not in ("mul", "div") or len(step.operands) != 2:
        return None
    x, by = step.operands
    if by.number is None and step.name == "mul":
        x, by = by, x
    if not by.number:
        return None
    dtype = step.eqn.outvars[0].aval.dtype
    is_float = jnp.issubdtype(dtype, jnp.inexact)
    near = max(3e-6, float(jnp.finfo(dtype).eps) if is_float else 0.0)  # type: ignore[no-untyped-call]
    summed = [dim for dim in dict.fromkeys(dim.root for dim in x.summed) if dim.size > 1]
    for group in (*([dim] for dim in summed), summed):
        size, new = prod(dim.size for dim in group), prod(map(size_of, group))
        if group and abs(by.number - size) <= near * size:
            return new / size
        if group and abs(by.number * size - 1) <= near:
            return size / new
    return None


def _is_of_numbers(program: tuple[Any, Any]) -> bool:
    """Whether a program takes only scalars, such as the program of a ``reduce``."""
    return all(not var.aval.shape for var in program[0].invars)


def _as(array: Any, aval: Any) -> Any:
    """Returns an array with the dtype of an aval, and without a weak type."""
    if jnp.issubdtype(aval.dtype, jax.dtypes.extended):
        return array
    return jax.lax.convert_element_type(array, aval.dtype)


_Loop = Callable[[_Writer, Any, list[Any], Step], Sequence[Any]]
_LOOPS: dict[str, _Loop] = {
    "scan": _Writer._scan,
    "while": _Writer._while,
    "cond": _Writer._cond,
}
