"""The library does what its reference of a few lines does, see ``docs/inside.md``."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from networks import f64, fill
from tiers import in_tiers

import dogwood_jax as dw


def dense(p: Any, x: Any) -> Any:
    h = jax.nn.relu(x @ p["up"]["kernel"] + p["up"]["bias"][None])
    return jax.nn.silu(h @ p["middle"]) @ p["down"]


def convolution(p: Any, x: Any) -> Any:
    numbers = ("NHWC", "HWIO", "NHWC")
    x = jax.lax.conv_general_dilated(x, p["first"], (1, 1), "SAME", dimension_numbers=numbers)
    x = jax.nn.relu(x * p["scale"][None, None, None])
    x = jax.lax.conv_general_dilated(x, p["second"], (2, 2), "SAME", dimension_numbers=numbers)
    return jnp.tanh(x).mean((1, 2)) @ p["head"]


def attention(p: Any, x: Any) -> Any:
    q, k, v = (jnp.einsum("btd,dhk->bthk", x, p[name]) for name in ("q", "k", "v"))
    weights = jax.nn.softmax(jnp.einsum("bthk,bshk->bhts", q, k) * 0.4)
    return x + jnp.einsum("bhts,bshk,hkd->btd", weights, v, p["out"])


CASES = {
    "dense": (
        dense,
        {
            "up": {"kernel": f64(3, 4), "bias": f64(4)},
            "middle": f64(4, 5),
            "down": f64(5, 2),
        },
        (6, 3),
        [("up/kernel", 1), ("middle", 1)],
    ),
    "convolution": (
        convolution,
        {"first": f64(3, 3, 2, 4), "scale": f64(4), "second": f64(3, 3, 4, 5), "head": f64(5, 2)},
        (2, 6, 6, 2),
        [("first", 3), ("second", 3)],
    ),
    "attention": (
        attention,
        {"q": f64(6, 2, 3), "k": f64(6, 2, 3), "v": f64(6, 2, 5), "out": f64(2, 5, 6)},
        (2, 7, 6),
        [("q", 1), ("v", 2)],
    ),
}


@pytest.mark.parametrize("name", in_tiers(CASES, short=["convolution"]))
def test_the_library_does_what_the_reference_does(name: str) -> None:
    apply, shapes, of_inputs, places = CASES[name]
    params, x = fill(shapes, 0), np.random.default_rng(1).normal(size=of_inputs)
    widths, traced = dw.trace(apply, params, x), reference.trace(apply, params, x)
    keys = [path for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    paths = [jax.tree_util.keystr(path, simple=True, separator="/") for path in keys]
    for path, axis in places:
        growth = dw.plan(widths, {(path, axis): 9})
        ours = dw.grow(params, growth, key=jax.random.key(0))
        its = reference.grow(params, traced, (paths.index(path), axis), 9, jax.random.key(0))
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(its), strict=True):
            assert a.shape == b.shape
            if a.ndim > 1:  # new biases are zero, and new scales one
                np.testing.assert_array_equal(np.asarray(a) == 0, np.asarray(b) == 0)
        np.testing.assert_allclose(apply(its, x), apply(params, x), rtol=1e-12)
        np.testing.assert_allclose(apply(ours, x), apply(params, x), rtol=1e-12)
