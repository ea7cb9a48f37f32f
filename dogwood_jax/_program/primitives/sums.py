"""Contractions, reductions, and other functions of all entries along an axis."""

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import jax
import numpy as np

from dogwood_jax._base.bits import in_64_bits
from dogwood_jax._program.dims import Dim, order, unify
from dogwood_jax._program.primitives.axes import Axes, Shape, named
from dogwood_jax._program.primitives.new_sizes import SizeOf
from dogwood_jax._program.primitives.outside import arbitrary
from dogwood_jax._program.primitives.reading import mixed, origin_of, pick, shapes_out, unknown
from dogwood_jax._program.primitives.record import PRIMITIVES, Primitive, describes
from dogwood_jax._program.values import Step, Trace, Value, joined, marks


@describes("dot_general")
class _DotGeneral(Primitive):
    contracts = True

    def axes(self, params: Mapping[str, Any], operands: Sequence[Shape], result: Shape) -> Axes:
        """The result has the batch axes, then the first operand's free axes, then the second's."""
        return _axes(params["dimension_numbers"], operands)

    def read(self, trace: Trace, eqn: Any, x: Value, y: Value) -> list[Value]:
        (contract_x, contract_y), (batch_x, batch_y) = eqn.params["dimension_numbers"]
        return [_contraction(trace, x, y, contract_x, contract_y, batch_x, batch_y)]

    def evaluate(self, a: Any, b: Any, *, dimension_numbers: Any, **_: Any) -> Any:
        (over_a, over_b), (batch_a, batch_b) = dimension_numbers
        if a.dtype.kind != b.dtype.kind:
            kind = np.result_type(a, b)
            a, b = a.astype(kind), b.astype(kind)
        free_a = [axis for axis in range(a.ndim) if axis not in (*over_a, *batch_a)]
        free_b = [axis for axis in range(b.ndim) if axis not in (*over_b, *batch_b)]
        batch = [a.shape[axis] for axis in batch_a]
        shape = [*batch, *(a.shape[axis] for axis in free_a), *(b.shape[axis] for axis in free_b)]
        summed = prod(a.shape[axis] for axis in over_a)
        rows = prod(a.shape[axis] for axis in free_a)
        columns = prod(b.shape[axis] for axis in free_b)
        a = a.transpose(*batch_a, *free_a, *over_a).reshape(*batch, rows, summed)
        b = b.transpose(*batch_b, *over_b, *free_b).reshape(*batch, summed, columns)
        return (a @ b).reshape(shape)


@describes("ragged_dot_general")
class _ContractionOfGroups(Primitive):
    contracts = True

    def axes(self, params: Mapping[str, Any], operands: Sequence[Shape], result: Shape) -> Axes:
        """Rows of the first operand are sorted by group and multiplied by their group's matrix."""
        numbers = params["ragged_dot_dimension_numbers"]
        groups = [*numbers.rhs_group_dimensions]
        (x, y), out = _axes(numbers.dot_dimension_numbers, operands, groups)
        y = tuple(frozenset({"#"}) if axis in groups else name for axis, name in enumerate(y))
        return Axes((x, y, *(named(["#"] * len(shape)) for shape in operands[2:])), out)

    def read(
        self, trace: Trace, eqn: Any, x: Value, y: Value, group_sizes: Value, *_: Value
    ) -> list[Value]:
        numbers = eqn.params["ragged_dot_dimension_numbers"]
        (contract_x, contract_y), (batch_x, batch_y) = numbers.dot_dimension_numbers
        groups = list(numbers.rhs_group_dimensions)
        ragged = list(numbers.lhs_ragged_dimensions)
        if len(groups) != 1 or {*ragged} & {*contract_x, *batch_x}:
            return unknown(trace, eqn, x, y, group_sizes)
        unify(y.dims[groups[0]], group_sizes.dims[-1])
        y.dims[groups[0]].fix("it counts groups whose rows follow each other")
        trace.set_aside(y, groups[0])
        kept = [a for a in range(y.ndim) if a not in groups]
        place = {a: i for i, a in enumerate(kept)}
        within = pick(y, kept)
        return [
            _contraction(
                trace,
                x,
                within,
                contract_x,
                [place[a] for a in contract_y],
                batch_x,
                [place[a] for a in batch_y],
            )
        ]


def _axes(numbers: Any, operands: Sequence[Shape], aside: Sequence[int] = ()) -> Axes:
    (over_x, over_y), (batch_x, batch_y) = numbers
    x, y = ([f"{side}{axis}" for axis in range(len(s))] for side, s in zip("xy", operands))
    for kind, own, other in (("sum", over_x, over_y), ("both", batch_x, batch_y)):
        for number, (a, b) in enumerate(zip(own, other, strict=True)):
            x[a] = y[b] = f"{kind}{number}"
    both = [x[axis] for axis in batch_x]
    free = [*(name for name in x if name[0] == "x")]
    free += [name for axis, name in enumerate(y) if name[0] == "y" and axis not in aside]
    return Axes((named(x), named(y)), named([*both, *free]))


def _contraction(
    trace: Trace,
    x: Value,
    y: Value,
    contract_x: Sequence[int],
    contract_y: Sequence[int],
    batch_x: Sequence[int],
    batch_y: Sequence[int],
) -> Value:
    """Reads a sum of products over some axes; the result has batch axes, then free axes."""
    free_x = [a for a in range(x.ndim) if a not in {*contract_x, *batch_x}]
    free_y = [a for a in range(y.ndim) if a not in {*contract_y, *batch_y}]
    data = origin_of((x, y)) == "data"
    both_data = x.origin == y.origin == "data"
    for a, b in zip(batch_x, batch_y, strict=True):
        unify(x.dims[a], y.dims[b])
    for a, b in zip(contract_x, contract_y, strict=True):
        unify(x.dims[a], y.dims[b])
        if both_data:
            x.dims[a].root.bilinear |= not (x.leaves or y.leaves)
    for value, contract, free, batch in (
        (x, contract_x, free_x, batch_x),
        (y, contract_y, free_y, batch_y),
    ):
        other, along = (y, contract_y) if value is x else (x, contract_x)
        for axis, its in zip(contract, along, strict=True):
            is_reader = value is y or y.origin != "parameter"
            if value.origin == "data":  # weights that were looked up, such as those of experts
                is_reader = other.origin == "data" and not other.along_axis(its)
            if is_reader and its not in other.one_hot:
                trace.contract(value, axis)
        if value.origin != "parameter":
            continue
        for use in trace.use(value, "contract"):
            use.count_fans(value, contract, free)
        if data:
            trace.produce(value, free)
            for axis in batch:
                trace.set_aside(value, axis)
    axes = [
        *(
            (x.dims[a], joined((x.along_axis(a), y.along_axis(b))))
            for a, b in zip(batch_x, batch_y)
        ),
        *((v.dims[a], v.along_axis(a)) for v, free in ((x, free_x), (y, free_y)) for a in free),
    ]
    dims, along = zip(*axes) if axes else ((), ())
    contracted = tuple(x.dims[a] for a in contract_x)
    return mixed((x, y), dims, along=() if data else along, contracted=contracted)


# Sums and other reductions ------------------------------------------------------------------------


class _ReducedAxes(Primitive):
    def axes(self, params: Mapping[str, Any], operands: Sequence[Shape], result: Shape) -> Axes:
        names = [f"{axis}" for axis in range(len(operands[0]))]
        kept = [name for axis, name in enumerate(names) if axis not in params["axes"]]
        return Axes((named(names),), named(kept))


@describes("reduce_sum")
class _Sum(_ReducedAxes):
    linear = True

    def read(self, trace: Trace, eqn: Any, x: Value) -> list[Value]:
        return [_summed(trace, x, {int(a) for a in eqn.params["axes"]})]

    def evaluate(self, a: Any, *, axes: Any, **_: Any) -> Any:
        return np.sum(a, axis=tuple(axes), dtype=a.dtype)


@describes("psum", "psum_invariant")
class _PSum(Primitive):
    linear = takes_equation = True

    def read(self, trace: Trace, eqn: Any, *values: Value) -> list[Value]:
        """Reads a sum over devices, which keeps local axes, or over axes that ``vmap`` named."""
        axes = {axis for axis in eqn.params["axes"] if isinstance(axis, int)}
        return [_summed(trace, x, axes) for x in values]

    def evaluate(self, eqn: Any, *operands: Any) -> list[Any]:
        """Sums over axes. A sum over devices is unknown on one device, and arbitrary here."""
        axes = eqn.params.get("axes", ())
        if axes and all(isinstance(axis, int) for axis in axes):
            return [np.sum(a, axis=tuple(axes), dtype=a.dtype) for a in operands]
        return arbitrary(eqn, *operands)


def _summed(trace: Trace, x: Value, axes: set[int]) -> Value:
    for axis in axes if x.origin == "data" else ():
        if axis in x.weighted:
            trace.read += marks(x, axis)
        else:
            x.dims[axis].root.summed = True
    kept = pick(x, [a for a in range(x.ndim) if a not in axes])
    summed = tuple(x.dims[a] for a in sorted(axes))
    contracted = tuple(x.dims[a] for a in sorted(axes & {*x.weighted}))
    number = None if x.number is None else x.number * prod(d.size for d in summed)
    return kept.but(number=number, index=False, contracted=contracted, summed=summed)


class Reduction(_ReducedAxes):
    """Reduces axes.

    Args:
        function: the NumPy function; None to use JAX.
        is_extreme: whether the result is one of the entries.
    """

    def __init__(self, function: Any = None, *, is_extreme: bool = False) -> None:
        self._is_extreme = is_extreme
        if function is not None:
            self.evaluate = lambda a, *, axes, **_: function(a, axis=tuple(axes))

    def read(self, trace: Trace, eqn: Any, x: Value, *_: Value) -> list[Value]:
        axes = {int(a) for a in eqn.params["axes"]}
        order(x.dims[axis] for axis in axes)
        kept = pick(x, [a for a in range(x.ndim) if a not in axes])
        return [kept.but(number=x.number if self._is_extreme else None, index=False)]


PRIMITIVES |= {
    "reduce_max": Reduction(np.max, is_extreme=True),
    "reduce_min": Reduction(np.min, is_extreme=True),
    "reduce_prod": Reduction(np.prod),
    "reduce_and": Reduction(np.all),
    "reduce_or": Reduction(np.any),
    "reduce_xor": Reduction(),
}


@describes("reduce")
class _GeneralReduction(Primitive):
    runs = True

    def read(self, trace: Trace, eqn: Any, *values: Value) -> list[Value]:
        count = len(values) // 2
        axes = {int(a) for a in eqn.params["dimensions"]}
        out = []
        for x in values[:count]:
            order(x.dims[axis] for axis in axes)
            kept = pick(x, [a for a in range(x.ndim) if a not in axes])
            out.append(kept.but(number=None, index=False))
        return out


class _ReduceAll(Primitive):
    def read(self, trace: Trace, eqn: Any, x: Value) -> list[Value]:
        order(x.dims)
        return [mixed((x,), ())]


PRIMITIVES |= dict.fromkeys(("unvmap_any", "unvmap_all", "unvmap_max"), _ReduceAll())


class _Cumulative(Primitive):
    """Reduces all entries up to each place.

    Args:
        function: the NumPy function, which takes an array and an axis.
        linear: whether it is linear.
    """

    def __init__(self, function: Any, *, linear: bool = False) -> None:
        self._function, self.linear = function, linear

    def read(self, trace: Trace, eqn: Any, x: Value) -> list[Value]:
        if not self.linear:
            order([x.dims[eqn.params["axis"]]])
        return [x.but(number=None, index=False)]

    def evaluate(self, a: Any, *, axis: int, reverse: bool, **_: Any) -> Any:
        if reverse:
            return np.flip(self._function(np.flip(a, axis), axis=axis), axis)
        return self._function(a, axis=axis)


PRIMITIVES |= {
    "cumsum": _Cumulative(lambda a, axis: np.cumsum(a, axis=axis, dtype=a.dtype), linear=True),
    "cumprod": _Cumulative(lambda a, axis: np.cumprod(a, axis=axis, dtype=a.dtype)),
    "cummax": _Cumulative(np.maximum.accumulate),
    "cummin": _Cumulative(np.minimum.accumulate),
    "cumlogsumexp": _Cumulative(np.logaddexp.accumulate),
}


@describes("fft")
class _Fourier(Primitive):
    linear = True

    def read(self, trace: Trace, eqn: Any, x: Value) -> list[Value]:
        (shape,) = shapes_out(eqn)
        count = len(eqn.params["fft_lengths"])
        reason = "a Fourier transform runs along it"
        dims = [*x.dims]
        for axis in range(x.ndim - count, x.ndim):
            dims[axis].fix(reason)
            dims[axis] = dims[axis] if dims[axis].size == shape[axis] else Dim(shape[axis], reason)
        return [mixed((x,), dims)]

    def resized(self, step: Step, operands: list[Any], size_of: SizeOf) -> Mapping[str, Any]:
        lengths = step.eqn.params["fft_lengths"]
        is_inverse_real = step.eqn.params["fft_type"].name == "IRFFT"
        value = step.results[0] if is_inverse_real else step.operands[0]
        return {"fft_lengths": tuple(map(size_of, value.dims[value.ndim - len(lengths) :]))}


@describes(
    *("cholesky", "triangular_solve", "lu", "eigh", "eig", "svd", "householder_product"),
    *("tridiagonal_solve", "schur", "hessenberg", "tridiagonal", "lu_pivots_to_permutation"),
)
class _LinearAlgebra(Primitive):
    def read(self, trace: Trace, eqn: Any, *values: Value) -> list[Value]:
        reason = f"the matrix operation {eqn.primitive.name} runs over it"
        rank = 1 if eqn.primitive.name == "lu_pivots_to_permutation" else 2
        batch = values[0].dims[: values[0].ndim - rank]
        for value in values:
            trace.use(value, "contract")
            for dim in value.dims[len(batch) :]:
                dim.fix(reason)
            for a, b in zip(batch, value.dims, strict=False):
                unify(a, b)
        return [
            mixed(values, (*batch, *(Dim(n, reason) for n in shape[len(batch) :])))
            for shape in shapes_out(eqn)
        ]


@describes("qr")
class _Orthogonal(_LinearAlgebra):
    def evaluate(self, a: Any, *, full_matrices: bool, pivoting: bool, **params: Any) -> list[Any]:
        if pivoting:  # NumPy does not pivot
            with in_64_bits():
                found = jax.lax.linalg.qr(
                    a, full_matrices=full_matrices, pivoting=pivoting, **params
                )
            return [*map(np.asarray, found)]
        return [*np.linalg.qr(a, "complete" if full_matrices else "reduced")]
