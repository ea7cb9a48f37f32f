"""Primitives that the library cannot read: callbacks, kernels, and collectives of devices."""

import zlib
from typing import Any

import jax.numpy as jnp
import numpy as np

from dogwood_jax._program.dims import Dim, unify
from dogwood_jax._program.primitives.reading import shapes_out, unknown
from dogwood_jax._program.primitives.record import Primitive, describes
from dogwood_jax._program.values import Trace, Value


@describes("io_callback", "pallas_call", "ffi_call", "custom_call", "cudnn_dot_product_attention")
@describes("pmax", "pmin", "all_gather", "all_to_all")
class _Outside(Primitive):
    runs = takes_equation = True

    def evaluate(self, eqn: Any, *operands: Any) -> list[Any]:
        return arbitrary(eqn, *operands)


def arbitrary(eqn: Any, *operands: Any) -> list[Any]:
    """Returns arbitrary values that are smooth functions of the operands; integers are 0 or 1."""
    numbers = [np.real(a).astype(float).ravel() for a in operands if isinstance(a, np.ndarray)]
    joined = np.concatenate([np.zeros(0), *numbers])
    rng = np.random.default_rng(zlib.crc32(eqn.primitive.name.encode()))
    level = np.sin(rng.normal(size=joined.size) @ joined) if joined.size else 0.0
    results = []
    for var in eqn.outvars:
        phases = rng.uniform(0, 6, size=var.aval.shape)
        result = np.sin(phases + level)
        if not jnp.issubdtype(var.aval.dtype, jnp.inexact):
            result = (result > 0).astype(var.aval.dtype)
        results.append(result)
    return results


@describes("pure_callback")
class _Callback(Primitive):
    takes_equation = True

    def read(self, trace: Trace, eqn: Any, *operands: Value) -> list[Value]:
        """Reads a callback: dimensions pass through Equinox's ``error_if``, others are fixed."""
        function = getattr(eqn.params.get("callback"), "callback_func", None)
        if getattr(function, "__module__", "") != "equinox._errors":
            return unknown(trace, eqn, *operands)
        results = [Value(tuple(map(Dim, shape)), "data") for shape in shapes_out(eqn)]
        for value, result in zip(operands, results, strict=False):
            shapes = [[dim.size for dim in v.dims] for v in (value, result)]
            if shapes[0] == shapes[1]:  # the second callback returns the first one's result
                for a, b in zip(value.dims, result.dims, strict=True):
                    unify(a, b)
        return results

    def evaluate(self, eqn: Any, *operands: Any) -> list[Any]:
        """Equinox's ``error_if`` returns its operands, or raises; other callbacks are unknown."""
        function = getattr(eqn.params.get("callback"), "callback_func", None)
        shapes = [tuple(var.aval.shape) for var in eqn.outvars]
        if getattr(function, "__module__", "") == "equinox._errors":
            fitting = [np.asarray(a) for a in operands if np.shape(a) in shapes]
            if [a.shape for a in fitting[-len(shapes) :]] == shapes:
                return fitting[-len(shapes) :]
            return [np.full(shape, np.nan) for shape in shapes]
        return arbitrary(eqn, *operands)


@describes("debug_callback", "debug_print")
class _Printed(Primitive):
    def evaluate(self, *_: Any, **__: Any) -> list[Any]:
        return []
