"""Evaluates programs with NumPy in float64: ``evaluate``.

Nothing is compiled, because compiling a program takes a thousand times longer than running it on a
few numbers. All floats are float64 and all complex numbers complex128, whatever the dtypes of the
program, so two programs do not differ by the rounding of narrow dtypes. Casts to integers and
booleans take place.

Random bits are computed from the key and the index of each entry, so an array with more entries
along an axis keeps the bits of its old entries. With the caller's key a larger model may draw other
bits in JAX, which is not counted as a difference. If no key of the caller changes a key, its bits
are those of JAX, because the program draws the same bits in each call.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dogwood_jax._base.bits import in_64_bits
from dogwood_jax._base.trees import is_traced, struct
from dogwood_jax._program.interpret import called, evaluated, interpret
from dogwood_jax._program.primitives.outside import arbitrary
from dogwood_jax._program.primitives.random_numbers import random_bits_alike
from dogwood_jax._program.primitives.table import primitive
from dogwood_jax._program.subprograms import Key, key_of, scan_counts

# A sample in which a loop runs more rounds is ``Undecided``.
MOST_ROUNDS = 200


class Undecided(Exception):
    """A sample that shows nothing, because a loop does not end."""


def evaluate(
    jaxpr: Any,
    arguments: Sequence[Any],
    watch: Any = None,
    draws: frozenset[Key] = frozenset(),
) -> list[Any]:
    """Returns the results of a program, as NumPy arrays.

    Args:
        jaxpr: a ``ClosedJaxpr``.
        arguments: a NumPy array or a JAX key for each of its arguments.
        watch: a ``Watch`` that records and changes the evaluation, or None.
        draws: the equations that draw the random bits of JAX, see ``Side``.
    """
    with np.errstate(all="ignore"), jax.ensure_compile_time_eval():
        return _Evaluation(watch, draws).run(
            jaxpr.jaxpr, jaxpr.consts, [widened(a) for a in arguments]
        )


def again(eqn: Any, operands: Sequence[Any], *, draws: bool = False) -> Sequence[Any]:
    """Returns the results of one equation for operands as a watch receives them.

    Args:
        eqn: the equation.
        operands: its operands.
        draws: whether it draws the random bits of JAX.
    """
    real = frozenset([key_of(eqn, ())] if draws else ())
    with np.errstate(all="ignore"), jax.ensure_compile_time_eval():
        return _Evaluation(None, real)._results(eqn, [*operands])


def with_last(jaxpr: Any, last: Any) -> Any:
    """Returns a program with a value for its last argument.

    What follows from this argument alone, such as a rotation from a key, is computed only once.

    Args:
        jaxpr: a ``ClosedJaxpr``.
        last: a NumPy array or a JAX key.
    """

    def equation(eqn: Any, operands: list[Any]) -> Sequence[Any]:
        if not any(map(is_traced, operands)):
            return again(eqn, operands)
        if (program := called(eqn)) is not None:
            return read(*program, operands)
        return evaluated(eqn, operands)

    def read(jaxpr: Any, consts: Sequence[Any], operands: Sequence[Any]) -> list[Any]:
        return interpret(jaxpr, consts, operands, constant=constant, equation=equation)

    def constant(array: Any, _: Any) -> Any:
        return widened(array)

    def without_last(*arguments: Any) -> list[Any]:
        return read(jaxpr.jaxpr, jaxpr.consts, [*arguments, widened(last)])

    structs = (struct(var.aval.shape, var.aval.dtype) for var in jaxpr.jaxpr.invars[:-1])
    return jax.make_jaxpr(without_last)(*structs)


def widened(array: Any) -> Any:
    """Returns a NumPy array with floats of 64 bits; JAX keys stay as they are."""
    if type(array) is not np.ndarray:
        dtype = getattr(array, "dtype", None)
        if dtype is not None and jnp.issubdtype(dtype, jax.dtypes.extended):
            return array
        array = np.asarray(array)
    return array.astype(widest(array.dtype), copy=False)


def is_finite(array: Any) -> bool:
    """Whether no number of an array is infinite or NaN."""
    is_number = isinstance(array, _ARRAYS) and array.dtype.kind in "fc"
    return not is_number or bool(np.isfinite(array).all())


def words(key: Any) -> bytes:
    """Returns the words of a random key, as bytes."""
    return np.asarray(jax.random.key_data(key)).tobytes()


@functools.lru_cache(maxsize=256)
def widest(dtype: Any) -> Any:
    """Returns the dtype in which numbers of a dtype are computed."""
    if jnp.issubdtype(dtype, jnp.floating):
        return np.dtype(np.float64)
    if jnp.issubdtype(dtype, jnp.complexfloating):
        return np.dtype(np.complex128)
    if dtype in (jnp.int4, jnp.uint4):
        return np.dtype(np.int8)
    return dtype


_ARRAYS = (np.ndarray, np.generic)


class _Evaluation:
    def __init__(self, watch: Any, draws: frozenset[Key]) -> None:
        self._watch, self._draws = watch, draws
        self._callers: list[Any] = []

    def run(self, jaxpr: Any, consts: Sequence[Any], arguments: Sequence[Any]) -> list[Any]:
        return interpret(jaxpr, consts, arguments, constant=self._constant, equation=self._equation)

    def _closed(self, program: Any, *arguments: Any) -> list[Any]:
        return self.run(program.jaxpr, program.consts, arguments)

    def _constant(self, array: Any, aval: Any) -> Any:
        array = widened(array)
        if self._watch is None or not isinstance(array, np.ndarray) or array.dtype.kind not in "fc":
            return array
        return self._watch.number(array)

    def _equation(self, eqn: Any, operands: list[Any]) -> Sequence[Any]:
        if self._watch is None:
            return self._results(eqn, operands)
        operands = self._watch.equation(eqn, operands, self._callers)
        results = self._results(eqn, operands)
        self._watch.results(eqn, operands, results, self._callers)
        return results

    def _results(self, eqn: Any, operands: list[Any]) -> Sequence[Any]:
        name = eqn.primitive.name
        if name == "random_bits":
            if self._draws and key_of(eqn, self._callers) in self._draws:
                return _by_jax(eqn, operands)
            if self._watch is not None and self._watch.is_alike:
                return random_bits_alike(*operands, **eqn.params)
        record = primitive(name)
        # NumPy has no arrays of keys.
        if record.evaluate is not None and (record.draws or not _has_keys(operands)):
            if record.takes_equation:
                results = record.evaluate(eqn, *operands)
            else:
                results = record.evaluate(*operands, **eqn.params)
            return results if isinstance(results, list) else [results]
        self._callers.append(eqn)
        if (runs := _RUNS.get(name)) is not None:
            results = runs(self, eqn, operands)
        elif (program := called(eqn)) is not None:
            results = self.run(*program, operands)
        else:
            results = _by_jax(eqn, operands)
        self._callers.pop()
        return results

    def _cond(self, eqn: Any, operands: list[Any]) -> list[Any]:
        branches = eqn.params["branches"]
        chosen = min(max(int(operands[0]), 0), len(branches) - 1)
        return self._closed(branches[chosen], *operands[1:])

    def _while(self, eqn: Any, operands: list[Any]) -> list[Any]:
        p = eqn.params
        n_cond, n_body = p["cond_nconsts"], p["body_nconsts"]
        state = operands[n_cond + n_body :]
        for rounds in range(MOST_ROUNDS):
            goes_on = bool(self._closed(p["cond_jaxpr"], *operands[:n_cond], *state)[0])
            if self._watch is not None:
                goes_on = self._watch.goes_on(eqn, self._callers[:-1], goes_on, rounds)
            if not goes_on:
                return state
            state = self._closed(p["body_jaxpr"], *operands[n_cond : n_cond + n_body], *state)
        raise Undecided

    def _linear_solve(self, eqn: Any, operands: list[Any]) -> list[Any]:
        """Runs the program that solves; its others multiply by the matrix."""
        counts, programs = eqn.params["const_lengths"], eqn.params["jaxprs"]
        first = counts.matvec + counts.vecmat
        consts, right = operands[first : first + counts.solve], operands[sum(counts) :]
        return self._closed(programs.solve, *consts, *right)

    def _scan(self, eqn: Any, operands: list[Any]) -> list[Any]:
        n_consts, n_carry = scan_counts(eqn)
        consts, carry = operands[:n_consts], operands[n_consts : n_consts + n_carry]
        stacked, length = operands[n_consts + n_carry :], eqn.params["length"]
        rows: list[Any] = [None] * length
        for k in range(length)[:: -1 if eqn.params["reverse"] else 1]:
            out = self._closed(eqn.params["jaxpr"], *consts, *carry, *(xs[k] for xs in stacked))
            carry, rows[k] = out[:n_carry], out[n_carry:]
        avals = [var.aval for var in eqn.outvars[n_carry:]]
        if not length:
            return [*carry, *(np.zeros(aval.shape, widest(aval.dtype)) for aval in avals)]
        stack = functools.partial(jnp.stack) if _has_keys(rows[0]) else np.stack
        return [*carry, *(stack([row[n] for row in rows]) for n in range(len(avals)))]


# Equations that run programs otherwise than once on all operands.
_RUNS: dict[str, Callable[[_Evaluation, Any, list[Any]], list[Any]]] = {
    "cond": _Evaluation._cond,
    "while": _Evaluation._while,
    "scan": _Evaluation._scan,
    "custom_linear_solve": _Evaluation._linear_solve,
}


def _has_keys(arrays: Sequence[Any]) -> bool:
    for array in arrays:  # faster than ``any``; runs for every equation
        if not isinstance(array, _ARRAYS):
            return True
    return False


def _by_jax(eqn: Any, operands: Sequence[Any]) -> list[Any]:
    """Returns the results of an equation that has no NumPy function.

    JAX computes them on the host in 64 bits, without changing the caller's settings.
    """
    params = {
        name: widest(value) if name in _DTYPES and value is not None else value
        for name, value in eqn.params.items()
    }
    with in_64_bits(), jax.default_device(_host()):
        arrays = [*map(jnp.asarray, operands)]
        try:
            results = _compiled(eqn.primitive, tuple(params.items()))(*arrays)
        except Exception:  # it cannot be compiled, or its parameters cannot be hashed
            try:
                results = eqn.primitive.bind(*arrays, **params)
            except Exception:  # a kernel for another device, or a library's own primitive
                return arbitrary(eqn, *operands)
        results = results if eqn.primitive.multiple_results else [results]
        return [widened(result) for result in results]


@functools.lru_cache(maxsize=256)
def _compiled(primitive: Any, params: tuple[tuple[str, Any], ...]) -> Callable[..., Any]:
    """Returns a primitive, compiled once: without this, ``random_gamma`` compiles at each call."""
    return jax.jit(functools.partial(primitive.bind, **dict(params)))


def _host() -> Any:
    """Returns the CPU as a JAX device, or None if JAX is configured without it."""
    try:
        return jax.devices("cpu")[0]
    except RuntimeError:
        return None


# The parameters that name a dtype to compute in.
_DTYPES = frozenset(("new_dtype", "preferred_element_type", "dtype"))
