"""Traps of copies: weights that copies share, read by a reader that would need whole ones."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from traps import CHANGES, MLP, layer, trap
from traps_partial import HEADS, heads

GATED = {"i": (5, 6), "w": (6, 3), "o": (6, 2)}


@trap({"i[1]": "copied"}, **HEADS)
def silu_of_heads(p: Any, x: Any) -> Any:
    return (jax.nn.silu(heads(p, x)) * p["g"][None, :, None]).sum(1)


@trap({"i[1]": "copied"}, **HEADS)
def heads_normed_with_epsilon(p: Any, x: Any) -> Any:
    y = heads(p, x)
    y = y * lax.rsqrt(jnp.square(y).sum(-1, keepdims=True) + 1e-3)
    return (y * p["g"][None, :, None]).sum(1)


@trap({"i[1]": "grown"}, **GATED)
def read_and_through_a_sigmoid(p: Any, x: Any) -> Any:
    h = layer(p, x)
    return h @ p["w"], (h * jax.nn.sigmoid(p["w"][:, 0])[None]) @ p["o"]


@trap({"i[1]": "grown"}, **GATED)
def read_and_one_more(p: Any, x: Any) -> Any:
    h = layer(p, x)
    return h @ p["w"], (h * (1 + p["w"][:, 0])[None]) @ p["o"]


@trap({"i[1]": CHANGES}, **MLP)
def integer_weights(p: Any, x: Any) -> Any:
    return layer(p, x) @ (9 * p["o"]).astype(int).astype(float)


@trap({"i[1]": CHANGES}, **MLP)
def weights_as_booleans(p: Any, x: Any) -> Any:
    return layer(p, x) @ p["o"].astype(bool).astype(float)


@trap({"i[1]": "grown"}, **MLP)
def products_of_weights(p: Any, x: Any) -> Any:
    return layer(p, x) @ jnp.cumprod(p["o"], 1)


@trap({"i[1]": "copied"}, **MLP)
def sums_of_weights(p: Any, x: Any) -> Any:
    return layer(p, x) @ jnp.cumsum(p["o"], 1)


@trap({"i[1]": "copied"}, v=(6, 2), **MLP)
def weights_chosen_by_a_branch(p: Any, x: Any) -> Any:
    return layer(p, x) @ lax.cond(x.sum() > 0, lambda: p["o"], lambda: p["v"])


@trap({"i[1]": "copied"}, i=(5, 6), o=(6, 5))
def weights_carried_by_a_loop(p: Any, x: Any) -> Any:
    def step(state: Any, _: Any) -> Any:
        h, up, down = state
        return (h + jnp.tanh(h @ up) @ down, up, down), None

    return lax.scan(step, (x, p["i"], p["o"]), length=3)[0][0]


@trap({"q[0]": "copied", "q[2]": "copied"}, q=(3, 5, 4), o=(3, 4, 2))
def heads_mapped_and_summed(p: Any, x: Any) -> Any:
    return jax.vmap(lambda q, o: jnp.tanh(x @ q) @ o)(p["q"], p["o"]).sum(0)


@trap({"q[0]": "copied"}, q=(3, 5, 4), o=(3, 4, 2), g=(5, 3))
def experts_gated_and_summed(p: Any, x: Any) -> Any:
    y = jax.vmap(lambda q, o: jnp.tanh(x @ q) @ o)(p["q"], p["o"])
    return (jax.nn.sigmoid(x @ p["g"]).T[..., None] * y).sum(0)


@trap({"q[1]": "grown"}, q=(5, 4), k=(5, 4), v=(5, 3))
def attention_without_a_softmax(p: Any, x: Any) -> Any:
    q, k = jnp.tanh(x @ p["q"]), jnp.tanh(x @ p["k"])
    return q @ (k.T @ (x @ p["v"]))


@trap({"i[1]": "copied", "b[1]": "copied"}, i=(5, 4), b=(4, 3), c=(4, 3))
def state_space_of_two_widths(p: Any, x: Any) -> Any:
    """Both widths grow together: new units of one are silenced here, those of the other there."""
    return (jnp.einsum("bd,dn->bdn", x @ p["i"], p["b"]) * p["c"][None]).sum((1, 2))
