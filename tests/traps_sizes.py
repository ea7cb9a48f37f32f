"""Traps of sizes that are numbers: only the program in larger sizes tells what follows a width."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from traps import CHANGES, MLP, layer, trap

OTHER = "computes something else"
SMALL = {"i": (5, 3), "o": (3, 2)}


@trap({"i[1]": OTHER}, **MLP)
def sum_of_positions(p: Any, x: Any) -> Any:
    return layer(p, x) @ p["o"] + jnp.arange(p["i"].shape[1]).sum()


@trap({"i[1]": "copied"}, **MLP)
def outputs_tiled_and_summed(p: Any, x: Any) -> Any:
    return jnp.tile(layer(p, x) @ p["o"], (p["i"].shape[1], 1, 1)).sum(0)


@trap({"i[1]": OTHER}, **SMALL)
def loop_over_as_many_zeros(p: Any, x: Any) -> Any:
    step = lambda y, _: (jnp.tanh(2 * y), None)  # noqa: E731
    return lax.scan(step, layer(p, x) @ p["o"], jnp.zeros(p["i"].shape[1]))[0]


@trap({"i[1]": OTHER}, **SMALL)
def as_many_segments(p: Any, x: Any) -> Any:
    y = layer(p, x) @ p["o"]
    sums = jax.ops.segment_sum(y, jnp.array([0, 1, 2, 3]), p["i"].shape[1])
    return jnp.tanh(sums).sum(0)


@trap({"i[1]": OTHER}, **SMALL)
def resized_to_the_width(p: Any, x: Any) -> Any:
    y = layer(p, x) @ p["o"]
    return jax.image.resize(y, (p["i"].shape[1], 2), "linear").mean(0)


@trap({"g[1]": OTHER}, g=(5, 2), w=(2, 5, 2))
def capacity_of_experts(p: Any, x: Any) -> Any:
    weights, chosen = lax.top_k((s := jax.nn.sigmoid(x @ p["g"])).T, 4 // s.shape[1])
    return jnp.einsum("ekc,eco,ek->ko", x[chosen], p["w"], weights).sum(0)


@trap({"i[1]": OTHER}, **SMALL)
def mask_of_as_many_rows(p: Any, x: Any) -> Any:
    mask = (jnp.arange(4) < p["i"].shape[1]).astype(x.dtype)
    return layer(p, x) @ p["o"] * mask[:, None]


@trap({"i[1]": OTHER}, **SMALL)
def rows_up_to_the_width(p: Any, x: Any) -> Any:
    return (layer(p, x) @ p["o"])[jnp.minimum(jnp.arange(4), p["i"].shape[1] - 1)]


@trap({"i[1]": OTHER}, **SMALL)
def other_branch_for_wide_layers(p: Any, x: Any) -> Any:
    y = layer(p, x) @ p["o"]
    return jnp.tanh(y) if p["i"].shape[1] < 4 else jnp.sin(y)


@trap({"i[1]": OTHER}, **SMALL)
def rolled_by_the_width(p: Any, x: Any) -> Any:
    return jnp.roll(layer(p, x) @ p["o"], p["i"].shape[1], axis=0)


@trap({"i[1]": OTHER}, **SMALL)
def padded_by_the_width(p: Any, x: Any) -> Any:
    y = jnp.pad(layer(p, x) @ p["o"], ((p["i"].shape[1], 0), (0, 0)))
    return jnp.cumsum(y, 0)[:4]


@trap({"i[1]": OTHER}, **SMALL)
def key_from_the_width(p: Any, x: Any) -> Any:
    noise = jax.random.normal(jax.random.key(p["i"].shape[1]), (4, 2))
    return layer(p, x) @ p["o"] + noise


def root_mean_square(p: Any, x: Any, by: int) -> Any:
    h = x @ p["i"]
    return h * lax.rsqrt((h * h).sum(-1, keepdims=True) / by) @ p["o"]


@trap({"i[1]": CHANGES}, i=(5, 4), o=(4, 2))
def root_mean_square_of_the_width(p: Any, x: Any) -> Any:
    return jnp.tanh(root_mean_square(p, x, p["i"].shape[1]))


@trap({"i[1]": "grown"}, i=(5, 4), o=(4, 2))
def root_mean_square_by_four_in_every_size(p: Any, x: Any) -> Any:
    """The number is that of units, but no mean."""
    return root_mean_square(p, x, 4)


@trap({"i[1]": OTHER}, i=(5, 4), o=(4, 2))
def root_mean_square_and_a_factor(p: Any, x: Any) -> Any:
    """That a recipe makes up for one number does not excuse another."""
    n = p["i"].shape[1]
    return jnp.tanh(root_mean_square(p, x, n)) * (n / 10)
