"""How far two networks' outputs are apart: ``compare``."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from dogwood_jax._tree import PyTree, leaves_by_path


@dataclass(frozen=True)
class Difference:
    """The largest differences between the outputs of two networks.

    Attributes:
        absolute: largest ``|old - new|``; NaN if only one of two values is NaN.
        relative: largest absolute difference of an output array over its largest magnitude.
        ulps: largest difference in units in the last place of the old value.
        where: path and index of the largest absolute difference, ``"logits[3, 7]"``.
    """

    absolute: float
    relative: float
    ulps: float
    where: str

    def __str__(self) -> str:
        return (
            f"largest difference {self.absolute:.3g} (relative {self.relative:.3g}, "
            f"{self.ulps:.3g} ulps) at {self.where}"
        )


def compare(
    old_apply: Callable[..., Any],
    old_variables: PyTree,
    new_apply: Callable[..., Any],
    new_variables: PyTree,
    *inputs: Any,
) -> Difference:
    """Measures how far the outputs of two networks are apart on the same inputs.

    Where the new outputs are longer, because an output width grew, their first part is compared.

    Args:
        old_apply: function of variables and inputs.
        old_variables: its variables.
        new_apply: the other function, of outputs of the same structure.
        new_variables: its variables.
        *inputs: pytrees of arrays, the same for both.

    Returns:
        The largest differences over all outputs, and where the largest is.

    Raises:
        ValueError: if the outputs differ in structure or number of axes, or a new one is shorter.

    Example:
        >>> import jax.numpy as jnp
        >>> import dogwood_jax as dw
        >>> dw.compare(jnp.multiply, 2.0, jnp.multiply, 3.0, jnp.array([1.0, 4.0])).absolute
        4.0
    """
    old = leaves_by_path(old_apply(old_variables, *inputs))
    new = leaves_by_path(new_apply(new_variables, *inputs))
    problems = [f"output {path!r}: only one network has it" for path in old.keys() ^ new.keys()]
    for path in [path for path in old if path in new]:
        shapes = jnp.shape(old[path]), jnp.shape(new[path])
        if len(shapes[0]) != len(shapes[1]) or any(a > b for a, b in zip(*shapes, strict=True)):
            problems.append(f"output {path!r}: has shape {shapes[1]}, expected {shapes[0]} or more")
    if problems:
        raise ValueError("these outputs cannot be compared:\n" + "\n".join(problems))
    found = [_difference(path, np.asarray(old[path]), np.asarray(new[path])) for path in old]
    if not found:
        return Difference(0.0, 0.0, 0.0, "no output")
    worst = max(found, key=lambda d: np.inf if np.isnan(d.absolute) else d.absolute)
    return Difference(
        worst.absolute,
        float(np.max([d.relative for d in found])),  # NaN where one of them is
        float(np.max([d.ulps for d in found])),
        worst.where,
    )


def _difference(path: str, old: np.ndarray, new: np.ndarray) -> Difference:
    new = new[tuple(map(slice, old.shape))]
    if not old.size:
        return Difference(0.0, 0.0, 0.0, path)
    inexact = jnp.issubdtype(old.dtype, jnp.inexact)
    places = jnp.finfo(old.dtype if inexact else jnp.float32)  # type: ignore[no-untyped-call]
    wide = np.complex128 if jnp.issubdtype(old.dtype, jnp.complexfloating) else np.float64
    a, b = old.astype(wide), new.astype(wide)
    with np.errstate(invalid="ignore", over="ignore"):
        gap = np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0.0, np.abs(a - b))
        magnitude = float(np.max(np.abs(a), initial=0.0, where=np.isfinite(a)))
        # The last place of a number is worth eps times the power of two below it; that of zero
        # and of subnormal numbers what it is worth for the smallest normal one.
        exponent = np.floor(np.log2(np.maximum(np.abs(a), float(places.smallest_normal))))
        last_place = float(places.eps) * np.exp2(exponent) if inexact else 1
        ulps = np.where(gap == 0, 0.0, gap / last_place)
    index = np.unravel_index(np.argmax(np.where(np.isnan(gap), np.inf, gap)), gap.shape)
    largest = float(gap[index])
    relative = largest / magnitude if magnitude else (0.0 if largest == 0 else np.inf)
    place = f"[{', '.join(map(str, index))}]" if index else ""
    return Difference(largest, float(relative), float(np.max(ulps)), f"{path}{place}" or "output")
