"""How entries along an axis are interpolated, as a matrix: ``matrix_of``.

On a grid, each axis has a matrix of its own, because all of these interpolations are products of
those along each axis. So is the pseudo-inverse of such a product.
"""

import functools
from collections.abc import Callable

import numpy as np

from dogwood_jax.strategies import Method


@functools.cache
def matrix_of(method: Method, old: int, new: int) -> np.ndarray:
    """Returns the matrix that old entries along an axis are multiplied by: ``float64[new, old]``.

    Args:
        method: see ``resample`` and ``resample_patch``.
        old: how many entries there are.
        new: how many there are to be.
    """
    if method == "bilinear":  # the first and the last entry stay
        return _linear(np.abs(np.linspace(0, old - 1, new)[:, None] - np.arange(old)))
    if method == "bicubic":
        return _resized(old, new, _cubic, antialias=True)
    is_cubic = method == "patch bicubic"
    resized = _resized(old, new, _cubic if is_cubic else _linear, antialias=is_cubic)
    return np.asarray(np.linalg.pinv(resized.T))


def _resized(
    old: int, new: int, kernel: Callable[[np.ndarray], np.ndarray], *, antialias: bool
) -> np.ndarray:
    """Returns the matrix that resizes one axis of an image, whose pixels have their centres at 0.5.

    Args:
        old: how many pixels there are.
        new: how many there are to be.
        kernel: the weight of a pixel by its distance.
        antialias: whether the kernel of a smaller image is as wide as its pixels.
    """
    places = (np.arange(new) + 0.5) * old / new - 0.5
    wide = max(old / new, 1.0) if antialias else 1.0
    weights = kernel(np.abs(places[:, None] - np.arange(old)) / wide)
    return np.asarray(weights / weights.sum(1, keepdims=True))


def _linear(distance: np.ndarray) -> np.ndarray:
    return np.where(distance < 1, 1 - distance, 0)


def _cubic(distance: np.ndarray) -> np.ndarray:
    """The kernel of Keys, 1981, with a = -0.5."""
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    return np.where(distance < 1, near, np.where(distance < 2, far, 0))
