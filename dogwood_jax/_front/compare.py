"""Measures how far two networks' outputs differ: ``compare``."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from dogwood_jax._base.arguments import DATA, FUNCTION, expect, expect_call, takes_inputs
from dogwood_jax._base.meshes import automatic, context, on_axes
from dogwood_jax._base.trees import PyTree, is_array, is_traced, leaves_by_path


@dataclass(frozen=True)
class Difference:
    """The largest differences between the outputs of two networks.

    A ``Difference`` is neither true nor false: ``bool(difference)`` raises an error.

    Attributes:
        absolute: largest ``|old - new|``; NaN if only one of two values is NaN.
        relative: largest absolute difference of an output array, divided by its largest magnitude.
        ulps: largest difference in units in the last place of the old value; large if that value is
            close to zero.
        where: path and index of the largest absolute difference, ``"logits[3, 7]"``.
        nans: how many values are NaN in both networks, which is not a difference.
    """

    absolute: float
    relative: float
    ulps: float
    where: str
    nans: int = 0

    def __str__(self) -> str:
        size = f"{self.absolute:.3g} (relative {self.relative:.3g})"
        return f"largest difference {size} at {self.where}"

    def __bool__(self) -> bool:
        raise TypeError(
            "a Difference is neither true nor false: compare one of its fields, as in "
            "difference.relative < 1e-5, or call dw.verify, which raises if outputs moved"
        )


@takes_inputs
def compare(
    old_apply: Callable[..., Any],
    old_variables: PyTree,
    new_apply: Callable[..., Any],
    new_variables: PyTree,
    *inputs: Any,
) -> Difference:
    """Measures how far the outputs of two networks differ on the same inputs.

    If new outputs are longer, because an output width grew, their first part is compared. Sharded
    arrays are compared on their devices.

    Args:
        old_apply: function of variables and inputs.
        old_variables: variables of ``old_apply``.
        new_apply: the other function, whose outputs have the same structure.
        new_variables: variables of ``new_apply``.
        *inputs: pytrees of arrays, the same for both.

    Returns:
        The largest differences over all outputs, and where the largest is.

    Raises:
        TypeError: if arguments are of the wrong kind, in the wrong order or missing.
        ValueError: if the outputs differ in structure or number of axes, or a new one is shorter.

    Example:
        >>> import jax.numpy as jnp
        >>> import dogwood_jax as dw
        >>> dw.compare(jnp.multiply, 2.0, jnp.multiply, 3.0, jnp.array([1.0, 4.0])).absolute
        4.0
    """
    call = "compare(old_apply, old_variables, new_apply, new_variables, *inputs)"
    expect(
        call,
        old_apply=(FUNCTION, old_apply),
        old_variables=(DATA, old_variables),
        new_apply=(FUNCTION, new_apply),
        new_variables=(DATA, new_variables),
    )
    expect_call(call, "old_apply", old_apply, old_variables, *inputs)
    expect_call(call, "new_apply", new_apply, new_variables, *inputs)
    old, new = old_apply(old_variables, *inputs), new_apply(new_variables, *inputs)
    return largest(differences(numbers_by_path(old), numbers_by_path(new)))


def moved_by(
    old_apply: Callable[..., Any],
    old_variables: PyTree,
    new_apply: Callable[..., Any],
    new_variables: PyTree,
    inputs: Sequence[Any],
) -> float:
    """Returns how far the output that moves most moves, relative to its size (root mean squares).

    The result is 0.0 if all outputs stay to rounding, and NaN if there is no output of floats with
    an unchanged shape.
    """
    old, new = old_apply(old_variables, *inputs), new_apply(new_variables, *inputs)
    shares = []
    for before, after in zip(jax.tree.leaves(old), jax.tree.leaves(new), strict=False):
        if before.shape == after.shape and jnp.issubdtype(before.dtype, jnp.floating):
            rounding = 1e2 * float(jnp.finfo(before.dtype).eps)  # type: ignore[no-untyped-call]
            was, now = (np.asarray(array, np.float64) for array in (before, after))
            size = float(np.sqrt(np.mean(was**2)))
            share = float(np.sqrt(np.mean((now - was) ** 2))) / size if size else 0.0
            shares.append(share if share > rounding else 0.0)
    return max(shares, default=float("nan"))


def numbers_by_path(outputs: PyTree) -> dict[str, Any]:
    """Returns the arrays and numbers among outputs by path; for PRNG keys, their data."""
    found: dict[str, Any] = {}
    for path, leaf in leaves_by_path(outputs).items():
        if not is_array(leaf):
            if isinstance(leaf, bool | int | float | complex):
                found[path] = np.asarray(leaf)
        elif jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            found[path] = jax.random.key_data(leaf)
        elif leaf.dtype != jax.dtypes.float0:
            found[path] = leaf
    return found


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Difference]:
    """Returns the largest differences of each output.

    Sharded arrays are compared on their devices, in the precision of JAX; all other arrays by
    NumPy, in double precision.

    Args:
        old: outputs by path.
        new: outputs of the other network by path.

    Raises:
        ValueError: if only one network has an output, or if a new output is smaller than the old.
    """
    problems = [f"{output_at(path)}: only one network has it" for path in old.keys() ^ new.keys()]
    for path in [path for path in old if path in new]:
        shapes = jnp.shape(old[path]), jnp.shape(new[path])
        if len(shapes[0]) != len(shapes[1]) or any(a > b for a, b in zip(*shapes, strict=True)):
            problems.append(
                f"{output_at(path)}: has shape {shapes[1]}, expected {shapes[0]} or more"
            )
    if problems:
        raise ValueError("these outputs cannot be compared:\n" + "\n".join(problems))
    return {path: _difference(path, old[path], new[path]) for path in old}


def largest(found: Mapping[str, Difference]) -> Difference:
    """Returns the largest differences over all outputs."""
    if not found:
        return Difference(0.0, 0.0, 0.0, "no output")
    worst = max(found.values(), key=lambda d: np.inf if np.isnan(d.absolute) else d.absolute)
    return Difference(
        worst.absolute,
        float(np.max([d.relative for d in found.values()])),  # NaN if one of them is NaN
        float(np.max([d.ulps for d in found.values()])),
        worst.where,
        sum(d.nans for d in found.values()),
    )


def together(function: Callable[..., Any], *arrays: Any) -> Any:
    """Calls a function with one or two arrays that belong to the same output.

    Sharded arrays stay on their devices.

    Args:
        function: takes ``numpy`` or ``jax.numpy``, and the arrays.
        *arrays: the arrays.
    """
    if not any(map(_is_divided, arrays)):
        with np.errstate(all="ignore"):
            return function(np, *map(np.asarray, arrays))
    sharding, placed = _on_the_same_devices(arrays[0], arrays[-1])
    with context(sharding):
        return _on_devices(function)(*placed[: len(arrays)])


@functools.cache
def _on_devices(function: Callable[..., Any]) -> Callable[..., Any]:
    return jax.jit(functools.partial(function, jnp))


def _difference(path: str, old: Any, new: Any) -> Difference:
    if not np.size(old):
        return Difference(0.0, 0.0, 0.0, path)
    measured = together(_measures, old, new)
    gap, magnitude, ulps, nans, *index = (np.asarray(measure).item() for measure in measured)
    relative = gap / magnitude if magnitude else (0.0 if gap == 0 else np.inf)
    return Difference(gap, float(relative), ulps, place(path, index), nans)


def output_at(path: str) -> str:
    """Returns the name of an output for messages; the only output may have an empty path."""
    return f"output {path!r}" if path else "the output"


def place(path: str, index: Sequence[int]) -> str:
    """Returns the name of an entry of an output: ``"logits[3, 7]"``."""
    return f"{path}[{', '.join(map(str, index))}]" if index else path or "output"


def _measures(numpy: Any, old: Any, new: Any) -> tuple[Any, ...]:
    """Compares two arrays by ``numpy`` or ``jax.numpy``.

    Returns:
        The largest difference, the largest magnitude of the old values, the largest difference in
        units in the last place, how many values are NaN in both arrays, and the index of the
        largest difference, one number for each axis.
    """
    gap, size = gaps(numpy, old, new), sizes(numpy, old)
    nans = 0
    ulps = gap
    if jnp.issubdtype(old.dtype, jnp.inexact):
        nans = (numpy.isnan(old) & numpy.isnan(_first_part(old, new))).sum()
        # One unit in the last place is eps times the largest power of two below the number. For
        # zero and subnormal numbers it is that of the smallest normal number.
        places = jnp.finfo(old.dtype)  # type: ignore[no-untyped-call]
        _, exponent = numpy.frexp(numpy.maximum(size, float(places.smallest_normal)))
        ulps = numpy.ldexp(gap, 1 - exponent) / float(places.eps)
    worst, index = largest_entry(numpy, gap)
    return worst, size.max(), ulps.max(), nans, *index


def gaps(numpy: Any, old: Any, new: Any) -> Any:
    """Returns how far each entry moves: NaN if only one of both is NaN, zero if both are."""
    new = _first_part(old, new)
    wide = wide_dtype(old.dtype, new.dtype, least=_least(numpy))
    a, b = old.astype(wide), new.astype(wide)
    if jnp.issubdtype(wide, jnp.inexact):
        return numpy.where((a == b) | numpy.isnan(a) & numpy.isnan(b), 0, abs(a - b))
    # Integers are subtracted as integers, because floats would round large ones.
    return numpy.where(a > b, a - b, b - a).astype(f"uint{8 * wide.itemsize}").astype(float)


def sizes(numpy: Any, old: Any) -> Any:
    """Returns the magnitude of each entry; zero for entries that are not finite."""
    wide = wide_dtype(old.dtype, least=_least(numpy))
    a = old.astype(wide if jnp.issubdtype(wide, jnp.inexact) else float)
    return numpy.where(numpy.isfinite(a), abs(a), 0)


def largest_entry(numpy: Any, values: Any) -> tuple[Any, list[Any]]:
    """Returns the largest value (NaN if there is one) and its index along each axis."""
    worst = values.max()  # NaN if one of them is NaN
    at, index = numpy.isnan(values) | (values == worst), []
    for axis, n in enumerate(values.shape):
        along = numpy.arange(n).reshape([-1 if a == axis else 1 for a in range(values.ndim)])
        index.append(numpy.where(at, along, n).min())
        at = at & (along == index[-1])
    return worst, index


def _first_part(old: Any, new: Any) -> Any:
    return new[tuple(map(slice, old.shape))]


def _least(numpy: Any) -> Any:
    return jnp.float64 if numpy is np else jnp.float32


def wide_dtype(*dtypes: Any, least: Any = jnp.float32) -> Any:
    """Returns a dtype of at least single precision in which values of these dtypes can be mixed.

    Args:
        *dtypes: floating, complex, integer or boolean; integers do not count if there are floats.
        least: the lowest precision of floats.
    """
    # JAX does not promote floats of 8 bits and less implicitly.
    known = [dtype for dtype in dtypes if jnp.dtype(dtype).itemsize > 1]
    if any(jnp.issubdtype(dtype, jnp.inexact) for dtype in dtypes):
        known = [least, *(dtype for dtype in known if jnp.issubdtype(dtype, jnp.inexact))]
    return jnp.dtype(functools.reduce(jnp.promote_types, known or [jnp.int32]))


def _is_divided(array: Any) -> bool:
    return isinstance(array, jax.Array) and not (is_traced(array) or array.is_fully_replicated)


def _on_the_same_devices(old: Any, new: Any) -> tuple[NamedSharding | None, list[Any]]:
    """Returns two arrays on one mesh without explicit axes, and a sharding on it."""
    place = new if _is_divided(new) else old
    others = old if place is new else new
    if not isinstance(place.sharding, NamedSharding):
        return None, [old, new]
    sharding = automatic(place.sharding)
    here = isinstance(others, jax.Array) and others.sharding.device_set == sharding.device_set
    if here and isinstance(others.sharding, NamedSharding):
        other = automatic(others.sharding)
    else:
        other = sharding if np.shape(others) == place.shape else on_axes(sharding)
    own = [sharding, other] if place is old else [other, sharding]
    return sharding, [jax.device_put(x, s) for x, s in zip((old, new), own, strict=True)]
