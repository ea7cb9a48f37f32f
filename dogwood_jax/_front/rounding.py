"""Measures how far rounding may move outputs, by runs of the network with nudged values.

A network with float32 variables may compute in bfloat16 and return float32, so neither variables
nor outputs show how coarsely it rounds. The program does: values are nudged where it converts them
to another dtype. Only values that depend on nudged values move.
"""

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.extend.core as jex
import jax.numpy as jnp
from jax import Array, lax

from dogwood_jax._base.draw import seeds, uniform
from dogwood_jax._base.trees import PyTree, is_array
from dogwood_jax._front.compare import wide_dtype
from dogwood_jax._program.interpret import called, evaluated, interpret
from dogwood_jax._program.program import Program
from dogwood_jax._program.subprograms import equations, scan_counts, sub_programs

# A value of a program, and whether it depends on an argument. Otherwise it is a constant, such as a
# table of positions, and the same in a larger network.
_Value = tuple[Any, bool]


def eps(dtype: Any) -> float:
    """The distance from 1 to the next larger number; zero for dtypes that are not rounded."""
    if not jnp.issubdtype(dtype, jnp.inexact):
        return 0.0
    return float(jnp.finfo(dtype).eps)  # type: ignore[no-untyped-call]


def bound(dtype: Any) -> float:
    """How far a value of this dtype may move, relative to its size; see the table of ``verify``."""
    return math.pow(eps(dtype), 3 / 4)


def least(dtype: Any) -> float:
    """The size below which rounding errors stay constant; some devices round to zero there."""
    return float(jnp.finfo(dtype).smallest_normal)  # type: ignore[no-untyped-call]


# Nudged arguments ---------------------------------------------------------------------------------


def changed(tree: PyTree, most: float, key: Array) -> PyTree:
    """Returns arrays in which each value is changed at random by up to a share of its size.

    Args:
        tree: the arrays.
        most: the largest relative change.
        key: PRNG key.
    """
    return _nudged(tree, key, lambda array, seed: _nudge(array, seed, most))


def nudged(tree: PyTree, sign: float, key: Array) -> PyTree:
    """Returns arrays in which each value is changed at random by up to the bound of its dtype.

    Arrays of whole numbers stay: they are masks, ids or counts, which are not rounded, and which a
    network may compare for equality.
    """

    def one(array: Any, seed: Array) -> Any:
        return _nudge(array, seed, sign * bound(array.dtype), whole=False)

    return _nudged(tree, key, one)


def _nudged(tree: PyTree, key: Array, nudge: Callable[[Any, Array], Any]) -> PyTree:
    leaves, structure = jax.tree.flatten(tree)
    for i, leaf in enumerate(leaves):
        if is_array(leaf) and eps(leaf.dtype):
            seed = jax.random.bits(jax.random.fold_in(key, i), (2,), jnp.uint32)
            leaves[i] = nudge(leaf, seed)
    return jax.tree.unflatten(structure, leaves)


@functools.partial(jax.jit, static_argnames="whole")
def _nudge(array: Array, seed: Array, most: Any, whole: bool = True) -> Array:
    dtype = array.dtype
    numbers = array.astype(wide_dtype(dtype))
    part = jnp.finfo(numbers.dtype).dtype  # type: ignore[no-untyped-call]
    factors = 1 + jnp.asarray(most, part) * uniform(seed, array.shape, part, 1.0)
    found = numbers * factors
    if not jnp.issubdtype(dtype, jnp.complexfloating):
        end = float(jnp.finfo(dtype).max)  # type: ignore[no-untyped-call]
        found = jnp.where(jnp.isfinite(numbers), jnp.clip(found, -end, end), numbers)
    if not whole:
        found = jnp.where(_are_whole(numbers), numbers, found)
    nudged: Array = found.astype(dtype)
    return nudged


def _are_whole(numbers: Array) -> Any:
    return (numbers == jnp.round(numbers)).all()


# Nudged programs ----------------------------------------------------------------------------------


def with_nudges(program: Program) -> Callable[..., dict[str, Any]] | None:
    """Returns a program that nudges values converted to another dtype; None if there are none.

    Returns:
        A function of the variables, the inputs, a sign and a key. It returns outputs by path.
    """
    if not _rounds(program.jaxpr.jaxpr):
        return None

    @jax.jit
    def run(consts: Sequence[Any], arrays: Sequence[Any], sign: Any, key: Array) -> list[Any]:
        found = iter(seeds(jax.random.bits(key, (2,), jnp.uint32)))

        def nudge(array: Any, amount: float) -> Any:
            return _nudge(array, next(found), sign * amount)

        arguments = [(array, True) for array in arrays]
        return [value for value, _ in _run(program.jaxpr.jaxpr, consts, arguments, nudge)]

    def apply(variables: PyTree, inputs: tuple[Any, ...], sign: float, key: Array) -> Any:
        arrays = [leaf for leaf in jax.tree.leaves((variables, *inputs)) if is_array(leaf)]
        results = run(program.jaxpr.consts, arrays, sign, key)
        return dict(zip(program.results, results, strict=True))

    return apply


def _run(
    jaxpr: Any,
    consts: Sequence[Any],
    arguments: Sequence[_Value],
    nudge: Callable[[Any, float], Any],
) -> list[_Value]:
    def equation(eqn: Any, operands: list[_Value]) -> list[_Value]:
        # shard_map is not inlined like a call, because only its own primitive names the mesh axes.
        if "mesh" not in eqn.params and (program := called(eqn)) is not None:
            return _run(*program, operands, nudge)
        values, follows = [value for value, _ in operands], any(flag for _, flag in operands)
        if eqn.primitive.name in _LOOPS and any(_rounds(body) for body, _ in sub_programs(eqn)):
            return [(value, follows) for value in _LOOPS[eqn.primitive.name](eqn, values, nudge)]
        amount = _rounding(eqn) if follows else 0.0
        if amount and sub_programs(eqn):  # rounds inside, where nudges do not reach
            values = [nudge(v, amount) if eps(jnp.result_type(v)) else v for v in values]
        on_mesh = "mesh" in eqn.params
        results = _on_mesh(jaxpr, eqn, values) if on_mesh else evaluated(eqn, values)
        if amount:
            results = [_rounded(eqn, values, value, amount, nudge) for value in results]
        return [(value, follows) for value in results]

    def constant(value: Any, _: Any) -> _Value:
        return value, False

    return interpret(jaxpr, consts, arguments, constant=constant, equation=equation)


def _on_mesh(jaxpr: Any, eqn: Any, operands: Sequence[Any]) -> list[Any]:
    """Returns the results of an equation that runs a program on each device of a mesh.

    Its parameters do not suffice to bind it, so JAX runs a program of this one equation.
    """
    known = {
        atom: value
        for atom, value in zip(eqn.invars, operands, strict=True)
        if not isinstance(atom, jex.Literal)
    }
    one = jaxpr.replace(constvars=[], invars=[*known], outvars=[*eqn.outvars], eqns=[eqn])
    return list(jex.jaxpr_as_fun(jex.ClosedJaxpr(one, []))(*known.values()))


def _rounded(
    eqn: Any, operands: list[Any], value: Any, amount: float, nudge: Callable[[Any, float], Any]
) -> Any:
    """Returns the result of an equation, nudged."""
    if not eps(value.dtype):
        return value
    other = nudge(value, amount)
    if eqn.primitive.name in _CASTS:  # masks and counts are not nudged: 1 - mask must stay zero
        numbers = operands[0].astype(wide_dtype(operands[0].dtype))
        return jnp.where(_are_whole(numbers), value, other)
    return other


def _rounding(eqn: Any) -> float:
    """Returns how far an equation's results are nudged: by the bound of a coarser dtype, or zero.

    The dtype of a result or of a value inside must be coarser than the operands. For casts, both
    directions count.
    """
    before = [b for atom in eqn.invars if (b := _bound_of(atom))]
    after = [b for var in eqn.outvars if (b := _bound_of(var))]
    if not before or not after:
        return 0.0
    finest, bounds = max(before), [*after]
    if eqn.primitive.name in _CASTS:
        finest, bounds = min(*before, *after), [*before, *after]
    if eqn.primitive.name == "reduce_precision":
        bounds.append(math.pow(2.0 ** -eqn.params["mantissa_bits"], 3 / 4))
    if eqn.primitive.name not in _LOOPS:
        inner = (e for body, _ in sub_programs(eqn) for e in equations(body))
        bounds += [_bound_of(var) for e in inner for var in e.outvars]
    return max(bounds) if max(bounds) > finest else 0.0


def _bound_of(atom: Any) -> float:
    dtype = getattr(atom.aval, "dtype", None)
    return 0.0 if dtype is None else bound(dtype)


def _rounds(jaxpr: Any) -> bool:
    return any(map(_rounding, equations(jaxpr)))


def _scan(eqn: Any, operands: list[Any], nudge: Callable[[Any, float], Any]) -> list[Any]:
    (body, consts), p = sub_programs(eqn)[0], eqn.params
    n, carried = scan_counts(eqn)
    whole, state, rows = operands[:n], operands[n : n + carried], operands[n + carried :]

    def step(state: Any, row: Any) -> Any:
        results = _inside(body, consts, [*whole, *state, *row], nudge)
        return results[:carried], results[carried:]

    state, rows = lax.scan(step, state, rows, length=p["length"], reverse=p["reverse"])
    return [*state, *rows]


def _while(eqn: Any, operands: list[Any], nudge: Callable[[Any, float], Any]) -> list[Any]:
    p = eqn.params
    ends, n = p["cond_nconsts"], p["cond_nconsts"] + p["body_nconsts"]
    asks, does, state = operands[:ends], operands[ends:n], operands[n:]

    def goes_on(state: Any) -> Any:
        return _inside(p["cond_jaxpr"].jaxpr, p["cond_jaxpr"].consts, [*asks, *state], nudge)[0]

    def step(state: Any) -> Any:
        return _inside(p["body_jaxpr"].jaxpr, p["body_jaxpr"].consts, [*does, *state], nudge)

    return list(lax.while_loop(goes_on, step, state))


def _cond(eqn: Any, operands: list[Any], nudge: Callable[[Any, float], Any]) -> list[Any]:
    def branch(program: Any) -> Callable[..., list[Any]]:
        return lambda *values: _inside(program.jaxpr, program.consts, values, nudge)

    index, *values = operands
    return list(lax.switch(index, [branch(p) for p in eqn.params["branches"]], *values))


_CASTS = ("convert_element_type", "reduce_precision")
_LOOPS = {"scan": _scan, "while": _while, "cond": _cond}


def _inside(
    jaxpr: Any, consts: Sequence[Any], operands: Sequence[Any], nudge: Callable[[Any, float], Any]
) -> list[Any]:
    found = _run(jaxpr, consts, [(value, True) for value in operands], nudge)
    return [
        lax.convert_element_type(value, var.aval.dtype) if eps(var.aval.dtype) else value
        for (value, _), var in zip(found, jaxpr.outvars, strict=True)
    ]


# Where outputs come from --------------------------------------------------------------------------


def sources(program: Program) -> dict[str, frozenset[str]]:
    """Returns what each result depends on: ``"variables"``, ``"inputs"`` and ``"integers"``.

    The first two are floating values of the variables and the inputs. A dependence by way of
    integers and booleans does not count, because these need not move. The last are integer inputs.
    """
    invars = zip(program.jaxpr.jaxpr.invars, program.arguments, strict=True)
    given = [_own_source(var, path) for var, (path, _) in invars]
    found = _traced(program.jaxpr.jaxpr, program.jaxpr.consts, given)
    return dict(zip(program.results, found, strict=True))


def _own_source(var: Any, path: str | None) -> frozenset[str]:
    if path is None and jnp.issubdtype(var.aval.dtype, jnp.integer):
        return frozenset({"integers"})
    return _kept(var, {"inputs" if path is None else "variables"})


def _traced(
    jaxpr: Any, consts: Sequence[Any], given: Sequence[frozenset[str]]
) -> list[frozenset[str]]:
    def equation(eqn: Any, operands: list[frozenset[str]]) -> list[frozenset[str]]:
        if (program := called(eqn)) is not None:
            return _traced(*program, operands)
        every: frozenset[str] = frozenset().union(*operands)
        return [_kept(var, every) for var in eqn.outvars]

    def constant(*_: Any) -> frozenset[str]:
        return frozenset()

    return interpret(jaxpr, consts, given, constant=constant, equation=equation)


def _kept(var: Any, names: Iterable[str]) -> frozenset[str]:
    return frozenset(names) if _bound_of(var) else frozenset(names) & {"integers"}
