"""Reads a program: ``run`` finds equal dimensions. Also holds helpers of several primitives.

``run`` calls the ``read`` of each equation's primitive with the trace, the equation and the values
of its operands. ``read`` returns the values of the results. It unifies dimensions that the
operation ties, and records why a dimension cannot grow. Dimensions that pass through a primitive
without ``read`` are fixed.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from dogwood_jax._program.dims import REPEATED, Dim, cut
from dogwood_jax._program.interpret import called, interpret
from dogwood_jax._program.primitives.record import primitive
from dogwood_jax._program.reasons import Reason
from dogwood_jax._program.values import Along, Reading, Trace, Value, constant, joined

# Evaluations draw the same numbers for old entries in all sizes.
DRAWN = Reason("random numbers are drawn along it: another size draws others", "drawn")


def run(trace: Trace, jaxpr: Any, consts: Sequence[Any], arguments: Sequence[Value]) -> list[Value]:
    """Reads every equation of a program; returns the values of its results."""
    reading = Reading(jaxpr, trace.times)
    trace.programs.append(reading)

    def equation(eqn: Any, operands: list[Value]) -> list[Value]:
        read = primitive(eqn.primitive.name).read or _call
        outside, trace.programs = trace.programs, []
        results = read(trace, eqn, *operands)
        if trace.programs:
            reading.inside[id(eqn)] = trace.programs
        trace.programs = outside
        return results

    return interpret(
        jaxpr, consts, arguments, constant=constant, equation=equation, known=reading.known
    )


def _call(trace: Trace, eqn: Any, *operands: Value) -> list[Value]:
    """Reads an equation without a rule, which may run one program, as ``jit`` and ``remat`` do."""
    if (program := called(eqn)) is not None:
        return run(trace, *program, operands)
    return unknown(trace, eqn, *operands)


def unknown(trace: Trace, eqn: Any, *operands: Value) -> list[Value]:
    """Fixes every dimension that passes through a primitive without a rule."""
    if not eqn.outvars:
        return []
    name = eqn.primitive.name
    reason = (
        f"it passes through the primitive {name}, which has no rule; pass a JAX function that "
        f"computes the same, trace(..., kernels={{{name!r}: reference}})"
    )
    for value in operands:
        trace.use(value, "contract")
        for dim in value.dims:
            dim.fix(reason)
    return [mixed(operands, [Dim(n, reason) for n in shape]) for shape in shapes_out(eqn)]


def shapes_out(eqn: Any) -> list[tuple[int, ...]]:
    return [tuple(getattr(v.aval, "shape", ())) for v in eqn.outvars]


def origin_of(values: Iterable[Value]) -> str:
    found = "constant"
    for value in values:  # a loop for speed: this runs for each equation
        if value.origin == "data":
            return "data"
        if value.origin == "parameter":
            found = "parameter"
    return found


def mixed(values: Sequence[Value], dims: Sequence[Dim], **known: Any) -> Value:
    """Returns a value computed from others."""
    origin = origin_of(values)
    if origin == "parameter":
        known["leaves"] = frozenset().union(*(v.leaves for v in values))
    return Value(tuple(dims), origin, **known)  # type: ignore[arg-type]


def together(values: Sequence[Value], dims: Sequence[Dim]) -> tuple[Along, ...]:
    """Returns the axes of leaves along each axis of a result of several parameters."""
    return tuple(
        joined(v.along_axis(a) for v in values if v.ndim and v.dims[a].size == dim.size)
        for a, dim in enumerate(dims)
    )


def pick(x: Value, axes: Sequence[int]) -> Value:
    """Returns a value with a selection of its axes, in a new order."""
    return _moved(x, [x.dims[a] for a in axes], axes)


def _moved(x: Value, dims: Sequence[Dim], axes: Sequence[int | None]) -> Value:
    """Returns a value with other axes: for each, the old axis, or None for a new one."""
    return x.but(
        dims=tuple(dims),
        along=tuple(() if a is None else x.along_axis(a) for a in axes) if x.along else (),
        one_hot=x.one_hot and tuple(i for i, a in enumerate(axes) if a in x.one_hot),
        weighted=x.weighted and tuple(i for i, a in enumerate(axes) if a in x.weighted),
    )


def spread(x: Value, shape: Sequence[int], places: Sequence[int]) -> Value:
    """Returns a value of this shape, with its axes at these places and new axes elsewhere."""
    axes: list[int | None] = [None] * len(shape)
    for axis, place in enumerate(places):
        if x.dims[axis].size == shape[place]:
            axes[place] = axis
        else:
            x.dims[axis].fix(REPEATED)
    dims = [Dim(n) if a is None else x.dims[a] for n, a in zip(shape, axes, strict=True)]
    return _moved(x, dims, axes)


def with_axis(x: Value, axis: int, dim: Dim) -> Value:
    """Returns a value with another dimension along an axis."""
    return x.but(dims=(*x.dims[:axis], dim, *x.dims[axis + 1 :]))


def sliced(x: Value, axis: int, start: int, size: int) -> Value:
    """Returns ``size`` units of a value along an axis, from ``start`` on."""
    whole = x.dims[axis]
    if size == whole.size:
        return x
    sizes = [n for n in (start, size, whole.size - start - size) if n]
    return with_axis(x, axis, cut(whole, sizes)[1 if start else 0] if size else Dim(0))
