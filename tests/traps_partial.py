"""Traps of functions that are finite on part of the line only: roots, logarithms, quotients.

New units with random weights leave that part, and zero weights meet the end of it; what is NaN or
infinite there stays so when zero weights multiply it.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from traps import CHANGES, MLP, layer, trap


def positive(params: Any, x: Any) -> Any:
    """Old units inside the domains of all functions here, whatever random weights would do."""
    return 0.2 + 0.5 * jnp.tanh(jnp.abs(x) @ jnp.abs(params["i"]))


# Random weights leave the domain ------------------------------------------------------------------


@trap({"i[1]": "copied"}, **MLP)
def root_of_units(p: Any, x: Any) -> Any:
    h = x @ p["i"]
    return jnp.sqrt(1 + h - lax.stop_gradient(h)) @ p["o"]


@trap({"i[1]": "copied"}, **MLP)
def power_of_units(p: Any, x: Any) -> Any:
    h = x @ p["i"]
    return jnp.power(h - lax.stop_gradient(h) + 1, -0.5) @ p["o"]


@trap({"i[1]": "copied"}, **MLP)
def logarithm_of_units(p: Any, x: Any) -> Any:
    h = x @ p["i"]
    return jnp.log(0.5 + h - lax.stop_gradient(h)) @ p["o"]


@trap({"i[1]": "copied"}, **MLP)
def area_cosine_of_units(p: Any, x: Any) -> Any:
    h = x @ p["i"]
    return jnp.arccosh(2 + h - lax.stop_gradient(h)) @ p["o"]


@trap({"i[1]": "copied"}, **MLP)
def quotient_by_a_relu(p: Any, x: Any) -> Any:
    h = x @ p["i"]
    return (1 / jax.nn.relu(1 + h - lax.stop_gradient(h))) @ p["o"]


@trap({"i[1]": "copied"}, **MLP)
def root_behind_a_comparison_of_rounded_units(p: Any, x: Any) -> Any:
    """A unit just below 1 is rounded to 1: that the rounded one is no less tells nothing of it."""
    h = x @ p["i"]
    is_large = lax.reduce_precision(h, 8, 7) >= 1
    return jnp.where(is_large, jnp.sqrt(jnp.where(is_large, h, 1.0) - 0.999), h) @ p["o"]


# Bounds keep them inside --------------------------------------------------------------------------


@trap({"i[1]": "only copied"}, **MLP)
def quotient_of_features_that_are_positive(p: Any, x: Any) -> Any:
    h = jax.nn.relu(x @ p["i"]) + jnp.exp(x @ p["i"])
    return (h / jnp.cumsum(2.0 * h, 0)) @ p["o"]


@trap({"i[1]": "only copied"}, **MLP)
def quotient_of_features_that_rounding_makes_zero(p: Any, x: Any) -> Any:
    """expm1(-40) is -1 in double precision."""
    return (1 / (jnp.expm1(x @ p["i"]) + 1)) @ p["o"]


@trap({"i[1]": "copied"}, **MLP)
def logarithm_where_another_unit_is_positive(p: Any, x: Any) -> Any:
    h = x @ p["i"]
    h = 2 + h - lax.stop_gradient(h)
    return jnp.log(jnp.where((h > 0)[::-1], h, 1)) @ p["o"]


@trap({"i[1]": "copied"}, **MLP)
def logarithm_of_a_part_that_may_be_zero(p: Any, x: Any) -> Any:
    h = x @ p["i"]
    h = 2 + h - lax.stop_gradient(h)
    return jnp.log(jnp.where(jax.nn.relu(h) + 1 > 0, jax.nn.relu(h) + 1, 2.0) - 1) @ p["o"]


@trap({"i[1]": "copied"}, **MLP)
def quotient_of_features_that_may_be_zero(p: Any, x: Any) -> Any:
    h = jax.nn.elu(x @ p["i"]) + 0.5
    return (1 / (h - lax.stop_gradient(h) + 1)) @ p["o"]


@trap({"i[1]": "only copied"}, **MLP)
def softmax_by_segments(p: Any, x: Any) -> Any:
    h = jnp.exp(x @ p["i"])
    segments = jnp.array([0, 2, 2, 0])
    return (h / jax.ops.segment_sum(h, segments, 3)[segments]) @ p["o"]


@trap({"i[1]": "only copied"}, **MLP)
def quotient_by_what_a_loop_adds_up(p: Any, x: Any) -> Any:
    def step(total: Any, h: Any) -> Any:
        return 0.5 * total + jnp.exp(h), h / (total + jnp.exp(h))

    return lax.scan(step, jnp.zeros(p["i"].shape[1]), x @ p["i"])[1] @ p["o"]


@trap({"i[1]": "copied"}, **MLP)
def quotient_by_what_a_loop_subtracts(p: Any, x: Any) -> Any:
    def step(total: Any, h: Any) -> Any:
        return total - (h - lax.stop_gradient(h)), h / (1 + total)

    return lax.scan(step, jnp.zeros(p["i"].shape[1]), x @ p["i"])[1] @ p["o"]


@trap({"i[1]": "copied"}, r=(6,), **MLP)
def quotient_by_a_complex_number(p: Any, x: Any) -> Any:
    rate = -jnp.exp(p["r"]) + 1j * p["r"]
    return jnp.real((x @ p["i"]) * ((jnp.exp(rate) - 1) / rate)[None]) @ p["o"]


@trap({"i[1]": "copied"}, **MLP)
def root_of_one_and_a_square(p: Any, x: Any) -> Any:
    h = x @ p["i"]
    return jnp.sqrt(h * h + 1) @ p["o"]


@trap({"i[1]": "copied"}, **MLP)
def functions_of_positive_units(p: Any, x: Any) -> Any:
    h = positive(p, x)
    return (jnp.log(h + 1) + h**-0.5 + lax.lgamma(h) + jnp.arccosh(2 + h) + 1 / h) @ p["o"]


@trap({"i[1]": "copied"}, **MLP)
def logarithm_of_a_softplus(p: Any, x: Any) -> Any:
    return jnp.log(1e-3 + jax.nn.softplus(x @ p["i"])) @ p["o"]


@trap({"i[1]": "copied"}, **MLP)
def softsign_and_mish(p: Any, x: Any) -> Any:
    h = x @ p["i"]
    return (jax.nn.soft_sign(h) + jax.nn.mish(h) + jax.nn.silu(h)) @ p["o"]


@trap({"i[1]": "copied"}, **MLP)
def normalized_over_the_batch(p: Any, x: Any) -> Any:
    """As BatchNorm is in training, in both ways that libraries compute a variance."""
    h = x @ p["i"]
    var = jnp.mean(jnp.square(h - jnp.mean(h, 0, keepdims=True)), 0, keepdims=True)
    fast = jnp.mean(jnp.square(h), 0) - jnp.square(jnp.mean(h, 0))
    return (h * lax.rsqrt(var + 1e-5) + h * lax.rsqrt(fast + 1e-5)[None]) @ p["o"]


@trap({"i[1]": "copied"}, var_scale=(6,), **MLP)
def batch_norm_without_epsilon(p: Any, x: Any) -> Any:
    """New entries of a running variance are ones."""
    return jnp.tanh((x @ p["i"]) / jnp.sqrt(p["var_scale"])[None]) @ p["o"]


# Zero weights -------------------------------------------------------------------------------------

HEADS = {"i": (5, 3, 4), "u": (3, 4, 6), "g": (3,)}


def heads(p: Any, x: Any) -> Any:
    return jnp.einsum("bhc,hcd->bhd", jnp.tanh(jnp.einsum("bi,ihc->bhc", x, p["i"])), p["u"])


@trap({"i[1]": "copied", "i[2]": "copied"}, **HEADS)
def unit_vectors_of_heads(p: Any, x: Any) -> Any:
    """The factors are zero for new heads, not what makes the vectors."""
    y = heads(p, x)
    return (y / jnp.linalg.norm(y, axis=-1, keepdims=True) * p["g"][None, :, None]).sum(1)


@trap({"i[1]": CHANGES}, i=(5, 3, 4), u=(3, 4, 6))
def sum_of_unit_vectors_of_heads(p: Any, x: Any) -> Any:
    y = heads(p, x)
    return jnp.einsum("bhd->bd", y / jnp.linalg.norm(y, axis=-1, keepdims=True)) @ jnp.ones((6, 2))


@trap({"i[1]": "copied", "i[2]": "copied"}, **HEADS)
def heads_by_their_largest_entry(p: Any, x: Any) -> Any:
    y = heads(p, x)
    return (y / jnp.abs(y).max(-1, keepdims=True) * p["g"][None, :, None]).sum(1)


@trap({"i[1]": "never learn"}, **MLP)
def weights_scaled_by_the_largest_of_each_column(p: Any, x: Any) -> Any:
    """As weights are quantized: rows of zeros change no maximum, nor does clipping change them."""
    scale = jnp.abs(p["o"]).max(0, keepdims=True)
    return layer(p, x) @ (jnp.clip(jnp.round(p["o"] / scale * 127), -127, 127) * scale)


@trap({"i[1]": "copied"}, **MLP)
def quotient_of_exponentials_that_may_be_zero(p: Any, x: Any) -> Any:
    """exp(-1000) is 0, even in double precision."""
    h = x @ p["i"]
    h = 900 + h - lax.stop_gradient(h)
    return (1 / jnp.exp(jnp.clip(h, 0, 1000) - 1000)) @ p["o"]


# Weights that are standardized, each column or row by itself --------------------------------------


@trap({"i[1]": "only copied"}, i=(5, 6), o=(6, 2), s=(3, 6))
def standardized_columns_of_ones(p: Any, x: Any) -> Any:
    """New columns hold ones, so that their deviation is zero."""
    return (x @ p["i"] + (p["s"] / jnp.std(p["s"], 0, keepdims=True))[:1]) @ p["o"]


@trap({"i[1]": CHANGES}, i=(5, 6), o=(6, 2), s=(3, 6))
def standardized_scale_of_a_norm(p: Any, x: Any) -> Any:
    h = x @ p["i"]
    h *= lax.rsqrt(jnp.mean(h**2, 1, keepdims=True) + 1e-6)
    return (h * (p["s"] / jnp.std(p["s"], 0, keepdims=True))[:1]) @ p["o"]


@trap({"w[0]": "is not finite"}, w=(6, 5))
def sum_of_standardized_rows(p: Any, x: Any) -> Any:
    return x + jnp.sum(p["w"] / jnp.std(p["w"], 1, keepdims=True), 0, keepdims=True)


@trap({"i[1]": "only copied"}, s=(6,), **MLP)
def scales_that_are_not_finite_for_one(p: Any, x: Any) -> Any:
    return (x @ p["i"] / jnp.log(p["s"] ** 2)[None]) @ p["o"]
