"""Layers that merge several arrays into one."""

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp

from dogwood_jax.keras_h5._kinds.kind import KINDS, Config, Function, Kind
from dogwood_jax.keras_h5._kinds.masking import merged, unknown
from dogwood_jax.keras_h5._kinds.normalizations import inverse_norm
from dogwood_jax.keras_h5._kinds.options import spatial


def _aligned(xs: Sequence[Any]) -> list[Any]:
    """Adds axes of size 1 after the batch axis, as Keras does for arrays of lower rank."""
    rank = max(x.ndim for x in xs)
    return [x.reshape(x.shape[0], *(1,) * (rank - x.ndim), *x.shape[1:]) for x in xs]


def _fold(combine: Callable[[Any, Any], Any]) -> Callable[[Config], Function]:
    return lambda config: lambda xs: functools.reduce(combine, _aligned(xs))


def _average(config: Config) -> Function:
    return lambda xs: functools.reduce(jnp.add, _aligned(xs)) / len(xs)


def _scaled_sum(config: Config) -> Function:
    scale = float(config["scale"])
    return lambda xs: xs[0] + xs[1] * scale


def _masks_in(version: tuple[int, ...]) -> str | None:
    return "all" if version < (3,) else "ignored" if version < (3, 4) else None


def _product(xs: Sequence[Any], masks: Sequence[Any]) -> Any:
    """Returns the product of the factors that are not masked; zero where all are masked."""
    factors = [x if m is None else jnp.where(m[..., None], x, 1) for x, m in zip(xs, masks)]
    product = functools.reduce(jnp.multiply, factors)
    if any(mask is None for mask in masks):
        return product
    return jnp.where(functools.reduce(jnp.logical_or, masks)[..., None], product, 0)


def _extreme(combine: Callable[[Any, Any], Any], xs: Sequence[Any], masks: Sequence[Any]) -> Any:
    """Returns the maximum or minimum of the entries that are not masked."""
    (y, seen), *others = zip(xs, masks)
    for x, mask in others:
        x = x if mask is None else jnp.where(mask[..., None], x, y)
        y = combine(y if seen is None else jnp.where(seen[..., None], y, x), x)
        seen = None if seen is None or mask is None else seen | mask
    return y


def _masked(combine: Callable[[Any, Any], Any], masked: Function) -> Callable[[Config], Function]:
    def merge(xs: Sequence[Any], masks: Sequence[Any] | None = None) -> Any:
        return functools.reduce(combine, _aligned(xs)) if masks is None else masked(xs, masks)

    return lambda config: merge


def _concatenate(config: Config) -> Function:
    axis = operator.index(config.get("axis", -1))
    return lambda xs: jnp.concatenate(xs, axis=axis)


def _mask_of_concatenated(config: Config, masks: list[Any]) -> Any:
    last = config.get("axis", -1) in (-1, 2)
    return (merged if last else unknown)(config, masks)


def _dot(config: Config) -> Function:
    axes = spatial(config["axes"], 2)

    def dot(xs: Sequence[Any]) -> Any:
        x, y = xs
        if config.get("normalize"):
            x, y = (a * inverse_norm(a, axis) for a, axis in zip((x, y), axes))
        x, y = (jnp.moveaxis(a, axis, -1) for a, axis in zip((x, y), axes))
        rows, columns = x.shape[1:-1], y.shape[1:-1]
        x, y = (a.reshape(a.shape[0], -1, a.shape[-1]) for a in (x, y))
        product = jnp.einsum("bik,bjk->bij", x, y)
        return product.reshape(product.shape[0], *((rows + columns) or (1,)))

    return dot


for _class, _make in (
    ("Add", _fold(jnp.add)),
    ("Subtract", _fold(jnp.subtract)),
    ("Average", _average),
):
    KINDS[_class] = Kind(function=_make, passes_channels=True, on_mask=merged, masks_in=_masks_in)
for _class, _combine, _where_masked in (
    ("Multiply", jnp.multiply, _product),
    ("Maximum", jnp.maximum, functools.partial(_extreme, jnp.maximum)),
    ("Minimum", jnp.minimum, functools.partial(_extreme, jnp.minimum)),
):
    KINDS[_class] = Kind(
        function=_masked(_combine, _where_masked),
        passes_channels=True,
        on_mask=merged,
        masks_in=lambda version: _masks_in(version) or "computed",
    )
KINDS["Concatenate"] = Kind(
    function=_concatenate, on_mask=_mask_of_concatenated, masks_in=_masks_in
)
KINDS["CustomScaleLayer"] = Kind(  # of InceptionResNetV2, in keras.applications
    function=_scaled_sum, passes_channels=True
)
KINDS["Dot"] = Kind(function=_dot)
