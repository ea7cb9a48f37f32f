"""Small programs that could be grown wrongly without anybody noticing: ``TRAPS``.

Each is a function of parameters and one input ``[4, 5]`` whose code follows the shapes of its
parameters, so that it is its own larger model. What must become of each width is worked out by
hand: it is ``"copied"`` (it grows, by copies as well), ``"grown"`` (but not by copies), ``"only
copied"``, or refused with these words. Those with constants, or units in other places, are in
``test_trace_traps``.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from networks import data, f64

X = data(4, 5)
# A growth keeps outputs for inputs of all these kinds, where they were finite.
INPUTS = {
    "normal": X,
    "large": 1e3 * X,
    "one row of zeros": X.at[0].set(0),
    "zeros": 0 * X,
    "equal rows": X[:1].repeat(4, 0),
}
CHANGES = "something else|would never learn"


@dataclasses.dataclass(frozen=True)
class Trap:
    apply: Callable[..., Any]
    shapes: Mapping[str, Any]
    fates: Mapping[str, str]


TRAPS: dict[str, Trap] = {}


def trap(fates: Mapping[str, str], **shapes: tuple[int, ...]) -> Callable[..., Any]:
    """Enters a program, with the fate of the width at each place and its parameters' shapes."""

    def register(apply: Callable[..., Any]) -> Callable[..., Any]:
        TRAPS[apply.__name__] = Trap(apply, {k: f64(*s) for k, s in shapes.items()}, fates)
        return apply

    return register


def layer(params: Any, x: Any) -> Any:
    return jnp.tanh(x @ params["i"])


MLP = {"i": (5, 6), "o": (6, 2)}


# Axes in another order ---------------------------------------------------------------------------


@trap({"i[1.1]": "copied"}, i=(5, 9), o=(9, 2))
def flattened_columns_first(p: Any, x: Any) -> Any:
    """A reshape that transposes first."""
    y = layer(p, x).reshape(4, 3, -1)
    return y.reshape(4, -1, order="F") @ p["o"]


@trap({"i[1.1]": "copied"}, i=(5, 9), o=(9, 2))
def transposed_within_a_reshape(p: Any, x: Any) -> Any:
    y = layer(p, x).reshape(4, 3, -1)
    return lax.reshape(y, (4, 3 * y.shape[2]), dimensions=(0, 2, 1)) @ p["o"]


# Weights that act more than once -----------------------------------------------------------------


@trap({"w[1]": "grown"}, w=(5, 3))
def gram_matrix_of_weights(p: Any, x: Any) -> Any:
    return x @ (p["w"] @ p["w"].T)


@trap({"i[1]": CHANGES}, i=(5, 6), s=(6,))
def weights_squared_by_einsum(p: Any, x: Any) -> Any:
    return jnp.einsum("bi,i,i->b", layer(p, x), p["s"], p["s"])


@trap({"i[1]": "never learn"}, i=(5, 6), s=(6,))
def weights_squared_by_products(p: Any, x: Any) -> Any:
    return jnp.sum(layer(p, x) * p["s"][None] * p["s"][None], axis=-1)


@trap({"w[1]": "grown"}, w=(5, 6))
def tied_autoencoder(p: Any, x: Any) -> Any:
    return jnp.tanh(x @ p["w"]) @ p["w"].T


@trap({"i[1]": "copied"}, i=(5, 6), w=(6, 6), o=(6, 2))
def one_layer_three_times(p: Any, x: Any) -> Any:
    h = layer(p, x)
    for _ in range(3):
        h = jnp.tanh(h @ p["w"])
    return h @ p["o"]


@trap({"a[1]": "copied"}, a=(5, 6), b=(5, 6))
def bilinear_form(p: Any, x: Any) -> Any:
    return (x @ p["a"]) @ (x @ p["b"]).T


@trap({"i[1]": "grown"}, **MLP)
def weight_decay_in_the_loss(p: Any, x: Any) -> Any:
    return layer(p, x) @ p["o"], jnp.sum(p["i"] ** 2) + jnp.sum(jnp.abs(p["o"]))


@trap({"i[1]": "grown"}, **MLP)
def whitened(p: Any, x: Any) -> Any:
    h = x @ p["i"]
    return h @ (h.T @ h) @ p["o"]


# Ways to make weights ----------------------------------------------------------------------------

DEEP = {"i": (5, 6), "w": (6, 3), "o": (3, 2)}


@trap({"i[1]": CHANGES, "w[1]": "copied"}, **DEEP)
def thresholded_weights(p: Any, x: Any) -> Any:
    return layer(p, x) @ jnp.where(jnp.abs(p["w"]) > 0.1, p["w"], 0.0) @ p["o"]


@trap({"i[1]": CHANGES, "w[1]": "copied"}, **DEEP)
def weights_thresholded_to_one(p: Any, x: Any) -> Any:
    return layer(p, x) @ jnp.where(jnp.abs(p["w"]) > 0.1, p["w"], 1.0) @ p["o"]


@trap({"i[1]": CHANGES, "w[1]": "copied"}, **DEEP)
def squared_weights(p: Any, x: Any) -> Any:
    return layer(p, x) @ p["w"] ** 2 @ p["o"]


@trap({"i[1]": CHANGES, "w[1]": "copied"}, **DEEP)
def positive_weights(p: Any, x: Any) -> Any:
    return layer(p, x) @ jax.nn.softplus(p["w"]) @ p["o"]


@trap({"i[1]": CHANGES, "w[1]": "copied"}, **DEEP)
def binary_weights(p: Any, x: Any) -> Any:
    return layer(p, x) @ jnp.where(p["w"] >= 0, 1.0, -1.0) @ p["o"]


@trap({"i[1]": CHANGES, "w[1]": "copied"}, **DEEP)
def shifted_weights(p: Any, x: Any) -> Any:
    return layer(p, x) @ (p["w"] - 0.1) @ p["o"]


@trap({"i[1]": "copied", "w[1]": "copied"}, a=(6, 3), **DEEP)
def gated_weights(p: Any, x: Any) -> Any:
    return layer(p, x) @ (p["w"] * jax.nn.sigmoid(p["a"])) @ p["o"]


@trap({"i[1]": CHANGES}, **MLP)
def weights_scaled_by_the_largest(p: Any, x: Any) -> Any:
    return jnp.tanh(x @ (p["i"] / jnp.max(jnp.abs(p["i"])))) @ p["o"]


@trap({"i[1]": CHANGES}, **MLP)
def weights_scaled_by_each_units_norm(p: Any, x: Any) -> Any:
    norm = jnp.sqrt(jnp.sum(p["o"] ** 2, axis=1, keepdims=True))
    return layer(p, x) @ (p["o"] / norm)


@trap({"i[1]": CHANGES}, s=(6,), **MLP)
def softmax_of_weights(p: Any, x: Any) -> Any:
    return (layer(p, x) * jax.nn.softmax(p["s"])[None]) @ p["o"]


@trap({"i[1]": CHANGES}, u=(2, 6), i=(5, 6))
def logarithms_of_sums_of_weights(p: Any, x: Any) -> Any:
    return layer(p, x) @ lax.cumlogsumexp(p["u"], axis=0).T


@trap({"i[1]": "grown"}, w=(6, 6), **MLP)
def triangular_weights(p: Any, x: Any) -> Any:
    return layer(p, x) @ jnp.tril(p["w"]) @ p["o"]


@trap({"w[0]": "indexed by positions"}, w=(6,), i=(5, 6), o=(6, 2))
def circulant_weights(p: Any, x: Any) -> Any:
    at = jnp.arange(p["w"].shape[0])
    return layer(p, x) @ p["w"][(at[:, None] - at[None]) % p["w"].shape[0]] @ p["o"]


@trap({"i[1]": "copied"}, i=(5, 6), a=(6, 2), b=(6, 2))
def complex_weights(p: Any, x: Any) -> Any:
    return jnp.abs(layer(p, x) @ lax.complex(p["a"], p["b"]))


@trap({"a[1]": "copied", "b[1]": "copied"}, a=(5, 6), b=(5, 3), o=(18, 2))
def outer_product(p: Any, x: Any) -> Any:
    a, b = jnp.tanh(x @ p["a"]), jnp.tanh(x @ p["b"])
    return (a[:, :, None] * b[:, None, :]).reshape(4, -1) @ p["o"]


@trap({"d[0]": "copied", "d[2]": "copied"}, i=(5, 6), d=(3, 2, 2), o=(6, 2))
def block_diagonal_weights(p: Any, x: Any) -> Any:
    h = layer(p, x)
    blocks = h.reshape(4, p["d"].shape[0], -1)
    return (h + jnp.einsum("bkd,kde->bke", blocks, p["d"]).reshape(4, -1)) @ p["o"]


# Statistics over the width -----------------------------------------------------------------------


@trap({"i[1]": CHANGES}, **MLP)
def deviation(p: Any, x: Any) -> Any:
    h = layer(p, x)
    return h @ p["o"] + jnp.std(h, axis=-1, keepdims=True)


@trap({"i[1]": CHANGES}, **MLP)
def cosine(p: Any, x: Any) -> Any:
    h = layer(p, x)
    return (h / jnp.linalg.norm(h, axis=-1, keepdims=True)) @ p["o"]


@trap({"i[1]": CHANGES}, **MLP)
def how_many_are_positive(p: Any, x: Any) -> Any:
    h = layer(p, x)
    return h @ p["o"] + jnp.sum(h > 0, axis=-1, keepdims=True)


@trap({"i[1]": CHANGES}, **MLP)
def whether_any_is_large(p: Any, x: Any) -> Any:
    h = layer(p, x)
    return jnp.where(jnp.any(h > 0.9, axis=-1, keepdims=True), h @ p["o"], 0)


@trap({"i[1]": CHANGES}, **MLP)
def sum_by_a_matrix_of_ones(p: Any, x: Any) -> Any:
    h = layer(p, x)
    return h @ p["o"] + h @ jnp.ones((h.shape[1], 1))


@trap({"i[1]": CHANGES}, i=(5, 6))
def similarities(p: Any, x: Any) -> Any:
    h = layer(p, x)
    return jax.nn.softmax(h @ h.T)


@trap({"i[1]": "grow more widths as well"}, **MLP)
def hard_choice(p: Any, x: Any) -> Any:
    h = layer(p, x)
    return jax.nn.one_hot(jnp.argmax(h, -1), h.shape[1], dtype=h.dtype) @ p["o"]


@trap({"i[1]": CHANGES}, **MLP)
def sorted_units(p: Any, x: Any) -> Any:
    return jnp.sort(layer(p, x), axis=-1) @ p["o"]


@trap({"i[1]": "grown"}, **MLP)
def running_sums(p: Any, x: Any) -> Any:
    return jnp.cumsum(layer(p, x), axis=-1) @ p["o"]


@trap({"i[1]": CHANGES}, **MLP)
def loop_until_small(p: Any, x: Any) -> Any:
    h = lax.while_loop(lambda h: jnp.sum(h**2) > 1, lambda h: 0.7 * h, layer(p, x))
    return h @ p["o"]


@trap({"i[1]": CHANGES}, **MLP)
def branch_on_a_sum(p: Any, x: Any) -> Any:
    h = layer(p, x)
    return lax.cond(h.sum() > 0, jnp.tanh, jnp.sin, h) @ p["o"]


@trap({"i[1]": CHANGES}, **MLP)
def recurrence_from_unit_to_unit(p: Any, x: Any) -> Any:
    h = layer(p, x)
    last, _ = lax.scan(lambda s, u: (jnp.tanh(s + u), None), jnp.zeros(4), h.T)
    return h @ p["o"] + last[:, None]


@trap({"i[1]": "a loop"}, **MLP)
def sum_of_units_by_a_loop(p: Any, x: Any) -> Any:
    def add(total: Any, unit: Any) -> Any:
        return total + unit[0][:, None] * unit[1][None], None

    return lax.scan(add, jnp.zeros((4, p["o"].shape[1])), (layer(p, x).T, p["o"]))[0]


@trap({"i[1]": "indexed by positions computed"}, **MLP)
def sum_of_units_by_index(p: Any, x: Any) -> Any:
    h = layer(p, x)

    def add(k: Any, total: Any) -> Any:
        return total + h[:, k][:, None] * p["o"][k][None]

    return lax.fori_loop(0, h.shape[1], add, jnp.zeros((4, p["o"].shape[1])))


@trap({"a[1]": CHANGES, "b[1]": CHANGES}, a=(5, 3), b=(5, 2), o=(3, 2))
def softmax_over_two_layers(p: Any, x: Any) -> Any:
    """The softmax runs over a concatenation, which is no axis of any parameter."""
    both = jax.nn.softmax(jnp.concatenate([x @ p["a"], x @ p["b"]], -1))
    return both[:, : p["a"].shape[1]] @ p["o"]


@trap({"q[1]": "copied", "q[2]": "copied"}, q=(5, 2, 3), k=(5, 2, 3), o=(2, 2))
def softmax_over_heads(p: Any, x: Any) -> Any:
    q, k = (jnp.einsum("tm,mhd->thd", x, p[name]) for name in "qk")
    scores = jax.nn.softmax(jnp.einsum("thd,shd->tsh", q, k))
    return jnp.einsum("tsh,ho->to", scores, p["o"])


# Arrays of weights under a norm, or in a penalty --------------------------------------------------


@trap({"i[1]": CHANGES}, s=(6,), **MLP)
def decay_of_the_scale_of_a_norm(p: Any, x: Any) -> Any:
    """A scale that is read as 1 + s, and must be zero where the penalty sums it up."""
    h = x @ p["i"]
    h *= lax.rsqrt(jnp.mean(h**2, 1, keepdims=True) + 1e-6)
    return (h * (1 + p["s"])[None]) @ p["o"], jnp.sum(p["s"] ** 2)


@trap({"w[0]": CHANGES}, w=(6, 5), s=(5,))
def squares_of_scaled_distributions(p: Any, x: Any) -> Any:
    """What the softmax of new rows is, its scales make no zero."""
    return x + jnp.sum((jax.nn.softmax(p["w"], 1) * (1 + p["s"])[None]) ** 2)


@trap({"w[0]": CHANGES}, w=(6, 5))
def sum_of_a_single_number(p: Any, x: Any) -> Any:
    return x + jnp.sum(jnp.sqrt(jnp.sum(jnp.var(p["w"], 1) ** 2) + 1e-6))


@trap({"i[1]": "grown"}, i=(5, 6), w=(3, 6))
def cosines_with_prototypes(p: Any, x: Any) -> Any:
    """Units of both are only multiplied with each other, and the norms let them be zero only."""
    h, w = (v / jnp.linalg.norm(v, axis=1, keepdims=True) for v in (x @ p["i"], p["w"]))
    return h @ w.T
