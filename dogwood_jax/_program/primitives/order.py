"""Primitives that order entries along an axis, or pick the largest."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from dogwood_jax._program.dims import PICKED, PICKS, Dim, order, unify
from dogwood_jax._program.primitives.new_sizes import SizeOf
from dogwood_jax._program.primitives.reading import mixed, shapes_out
from dogwood_jax._program.primitives.record import PRIMITIVES, Primitive, describes
from dogwood_jax._program.primitives.sums import Reduction
from dogwood_jax._program.values import Step, Trace, Value


class _Arg(Reduction):
    """Returns the place of the largest or smallest entry.

    Args:
        function: the NumPy function, which takes an array and an axis.
    """

    def __init__(self, function: Any) -> None:
        super().__init__()
        self._function = function

    def read(self, trace: Trace, eqn: Any, x: Value, *_: Value) -> list[Value]:
        (kept,) = super().read(trace, eqn, x)
        names_units = x.origin == "data"
        return [kept.but(index=x.dims[eqn.params["axes"][0]] if names_units else False)]

    def evaluate(self, a: Any, *, axes: Any, index_dtype: Any, **_: Any) -> Any:
        return self._function(a, axis=axes[0]).astype(index_dtype)


PRIMITIVES |= {"argmax": _Arg(np.argmax), "argmin": _Arg(np.argmin)}


@describes("sort")
class _Sort(Primitive):
    def read(self, trace: Trace, eqn: Any, *values: Value) -> list[Value]:
        first = values[0]
        for value in values:
            for a, b in zip(first.dims, value.dims, strict=True):
                unify(a, b)
        order([first.dims[eqn.params["dimension"]]])
        return [v.but(number=None, index=False) for v in values]

    def evaluate(self, *operands: Any, dimension: int, num_keys: int, **_: Any) -> list[Any]:
        order = np.lexsort(operands[:num_keys][::-1], axis=dimension)
        return [np.take_along_axis(a, order, dimension) for a in operands]


class _TopK(Primitive):
    """Picks the largest entries along an axis."""

    def axis(self, eqn: Any) -> int:
        """Returns the axis; a negative one counts from the end."""
        return int(eqn.params.get("axis", -1))

    def read(self, trace: Trace, eqn: Any, x: Value) -> list[Value]:
        axis = eqn.params.get("axis", eqn.params.get("reduction_dimension", -1)) % x.ndim
        x.dims[axis].note(PICKED)
        order([x.dims[axis]])
        (shape, _) = shapes_out(eqn)
        dims = [*x.dims]
        dims[axis] = Dim(shape[axis], PICKS)
        return [mixed((x,), dims), mixed((x,), dims, index=x.dims[axis])]

    def resized(self, step: Step, operands: list[Any], size_of: SizeOf) -> Mapping[str, Any]:
        return {"k": size_of(step.results[0].dims[self.axis(step.eqn)])}


@describes("top_k")
class _Exact(_TopK):
    def evaluate(self, a: Any, *, k: int, axis: int = -1, **_: Any) -> list[Any]:
        key = -a if a.dtype.kind == "f" else -a.astype(np.int64)
        order = np.argsort(key, axis=axis, kind="stable")
        order = np.take(order, np.arange(k), axis=axis)
        return [np.take_along_axis(a, order, axis), order.astype(np.int32)]


@describes("approx_top_k")
class _Approximate(_TopK):
    def axis(self, eqn: Any) -> int:
        return int(eqn.params["reduction_dimension"])
