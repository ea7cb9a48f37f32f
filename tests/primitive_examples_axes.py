"""Examples of primitives that move, cut, look up and make values."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import primitives
from primitive_examples import (
    EXAMPLES,
    ONE,
    TOTAL,
    ZERO,
    Example,
    X,
    example,
    gated,
    layer,
    mlp,
    tokens,
    two,
    two_widths,
)

# Axes -------------------------------------------------------------------------------------------


@example("transpose", shapes=mlp)
def transpose(p: Any, x: Any) -> Any:
    return (p["o"].T @ layer(p, x).T).T


@example("reshape", shapes=mlp)
def reshape_to_one_axis_and_back(p: Any, x: Any) -> Any:
    y = layer(p, x)
    return jnp.sin(y.reshape(-1)).reshape(y.shape) @ p["o"]


@example("reshape", shapes=lambda h=3, d=4: {"i": (5, h, d), "o": (h * d, 2)})
def reshape_flattens(p: Any, x: Any) -> Any:
    y = jnp.tanh(jnp.einsum("bi,ihd->bhd", x, p["i"] / TOTAL))
    return y.reshape(len(x), -1) @ p["o"]


@example("reshape", shapes=lambda h=3, d=4: {"i": (5, h * d), "g": (h, d), "o": (d, 2)})
def reshape_splits(p: Any, x: Any) -> Any:
    y = layer(p, x).reshape(len(x), *p["g"].shape)
    return (y * p["g"][None]).sum(1) @ p["o"]


@example("reshape", shapes=lambda h=3, d=4: {"i": (5, h, d), "o": (h * d, 2)})
def reshape_transposes_first(p: Any, x: Any) -> Any:
    y = jnp.tanh(jnp.einsum("bi,ihd->bdh", x, p["i"] / TOTAL))
    return lax.reshape(y, (len(x), y.shape[1] * y.shape[2]), dimensions=(0, 2, 1)) @ p["o"]


@example("squeeze", shapes=lambda n=4: {"i": (5, 1, n), "o": (n, 1, 2)})
def squeeze(p: Any, x: Any) -> Any:
    y = jnp.tanh(jnp.einsum("bi,ikn->bkn", x, p["i"] / TOTAL))
    return lax.squeeze(y, (1,)) @ lax.squeeze(p["o"], (1,))


@example("broadcast_in_dim", shapes=gated)
def broadcast_in_dim(p: Any, x: Any) -> Any:
    y = layer(p, x)
    return (y * lax.broadcast_in_dim(p["g"], y.shape, (1,))) @ p["o"]


@example("broadcast_in_dim", shapes=lambda n=4: {"i": (5, 1), "w": (n, 2)})
def broadcast_of_one_unit(p: Any, x: Any) -> Any:
    """One unit that stands for all rows of the weights."""
    y = layer(p, x)
    return lax.broadcast_in_dim(y, (len(x), len(p["w"])), (0, 1)) @ p["w"]


@example("rev", shapes=mlp)
def rev(p: Any, x: Any) -> Any:
    return layer(p, x)[:, ::-1] @ p["o"][::-1]


@example("rev", shapes=mlp)
def rev_of_rows(p: Any, x: Any) -> Any:
    return lax.rev(layer(p, x), (0,)) @ p["o"]


@example("concatenate", shapes=lambda n=4, m=3: {"i": (5, n), "j": (5, m), "o": (n + m, 2)})
def concatenate(p: Any, x: Any) -> Any:
    return jnp.concatenate([layer(p, x), jnp.sin(x @ p["j"])], 1) @ p["o"]


@example("concatenate", shapes=mlp)
def concatenate_rows(p: Any, x: Any) -> Any:
    y = layer(p, x)
    return jnp.concatenate([y, 2 * y], 0) @ p["o"]


@example("concatenate", shapes=lambda n=4: {"i": (5, n), "o": (2 * n, 2)})
def concatenate_with_zeros(p: Any, x: Any) -> Any:
    y = layer(p, x)
    return jnp.concatenate([y, jnp.zeros_like(y)], 1) @ p["o"]


@example("concatenate", shapes=lambda n=4, m=2: {"i": (5, n), "v": (n, m), "w": (n, 2)})
def concatenate_weights(p: Any, x: Any) -> Any:
    return layer(p, x) @ jnp.concatenate([p["w"], jnp.sin(p["v"])], 1)


@example("stack", shapes=two, somewhere=True)
def stack(p: Any, x: Any) -> Any:
    a, b = layer(p, x) @ p["o"], jnp.sin(x @ p["j"]) @ p["u"]
    return jnp.tanh(jnp.stack([a, b], 1))


@example("stack", shapes=lambda n=4: {"i": (5, n), "j": (5, n), "o": (2, n, 2)}, somewhere=True)
def stack_of_layers(p: Any, x: Any) -> Any:
    y = jnp.stack([layer(p, x), jnp.sin(x @ p["j"])], 1)
    return jnp.einsum("bkn,kno->bo", y, p["o"])


@example("unstack", shapes=lambda n=4: {"i": (2, 5, n), "o": (n, 2)}, somewhere=True)
def unstack(p: Any, x: Any) -> Any:
    a, b = jnp.unstack(p["i"])
    return (jnp.tanh(x @ a / TOTAL) * jnp.sin(x @ b)) @ p["o"]


@example("unstack", shapes=mlp, somewhere=True)
def unstack_of_units(p: Any, x: Any) -> Any:
    return jnp.cos(sum(jnp.unstack(layer(p, x), axis=1)))[:, None] + layer(p, x) @ p["o"]


@example("split", shapes=lambda n=4: {"i": (5, 2 * n), "o": (n, 2)})
def split(p: Any, x: Any) -> Any:
    a, b = jnp.split(x @ p["i"] / TOTAL, 2, axis=1)
    return (a * jax.nn.sigmoid(b)) @ p["o"]


@example("split", shapes=lambda n=4, m=3: {"i": (5, n + m), "o": (n, 2), "u": (m, 2)})
def split_in_two_widths(p: Any, x: Any) -> Any:
    a, b = jnp.split(layer(p, x), [len(p["o"])], axis=1)
    return a @ p["o"] + jnp.sin(b) @ p["u"]


@example("slice", shapes=lambda n=4: {"i": (5, 2 * n), "o": (n, 2)})
def slice_of_half(p: Any, x: Any) -> Any:
    y, n = layer(p, x), len(p["o"])
    return (y[:, :n] - y[:, n:]) @ p["o"]


@example("slice", shapes=lambda n=4: {"i": (5, 2 * n), "o": (n, 2)})
def slice_of_every_other(p: Any, x: Any) -> Any:
    y = layer(p, x)
    a, b = (lax.slice(y, (0, k), y.shape, (1, 2)) for k in (0, 1))
    return (a * b) @ p["o"]


@example("slice", shapes=mlp)
def slice_of_all_but_one(p: Any, x: Any) -> Any:
    y = layer(p, x)
    return (y[:, 1:] - y[:, :-1]) @ p["o"][1:]


@example("slice", shapes=lambda n=6: {"i": (5, n), "o": (n, 2)})
def slice_of_all_but_two(p: Any, x: Any) -> Any:
    y = layer(p, x)
    return (y[:, 2:] - y[:, :-2]) @ p["o"][2:]


@example("pad", shapes=lambda n=4, more=2: {"i": (5, n), "o": (n + more, 2)})
def pad(p: Any, x: Any) -> Any:
    y = layer(p, x)
    return jnp.pad(y, ((0, 0), (0, len(p["o"]) - y.shape[1]))) @ p["o"]


@example("pad", shapes=lambda n=4, more=2: {"i": (5, n), "o": (n + more, 2)})
def pad_in_front(p: Any, x: Any) -> Any:
    y = layer(p, x)
    return jnp.pad(y, ((0, 0), (len(p["o"]) - y.shape[1], 0))) @ p["o"]


@example("pad", shapes=lambda n=4: {"i": (5, n), "o": (n + 1, 2)})
def pad_with_ones(p: Any, x: Any) -> Any:
    return jnp.pad(layer(p, x), ((0, 0), (0, 1)), constant_values=1) @ p["o"]


@example("pad", shapes=mlp)
def pad_of_rows(p: Any, x: Any) -> Any:
    return jnp.pad(layer(p, x), ((1, 0), (0, 0)), constant_values=2) @ p["o"]


@example("pad", shapes=lambda n=4: {"i": (5, n), "o": (2 * n - 1, 2)})
def pad_between_units(p: Any, x: Any) -> Any:
    return lax.pad(layer(p, x), 0.0, ((0, 0, 0), (0, 0, 1))) @ p["o"]


@example("tile", shapes=lambda n=4, times=3: {"i": (5, n), "o": (times * n, 2)}, somewhere=True)
def tile(p: Any, x: Any) -> Any:
    y = layer(p, x)
    return jnp.tile(y, (1, len(p["o"]) // y.shape[1])) @ p["o"]


@example("tile", shapes=two_widths, somewhere=True)
def tile_as_often_as_there_are_units(p: Any, x: Any) -> Any:
    y = layer(p, x)
    return jnp.tile(y @ p["o"], (1, y.shape[1])).sum(1)


# Looking up and writing ---------------------------------------------------------------------------


@example("gather", shapes=lambda v=7, n=4: {"e": (v, n), "o": (n, 2)}, inputs=(tokens(7, 4, 3),))
def gather_rows(p: Any, ids: Any) -> Any:
    return jnp.sin(p["e"][ids]) @ p["o"]


@example("gather", shapes=lambda v=7, n=4: {"e": (v, n)}, inputs=(tokens(7, 4, 3),))
def gather_and_unembed(p: Any, ids: Any) -> Any:
    return jnp.sin(p["e"][ids].sum(1)) @ p["e"].T


@example("gather", shapes=lambda v=7, n=4: {"e": (v, n), "o": (n, 2)}, inputs=(tokens(7, 4, 3),))
def gather_by_negated_tokens(p: Any, ids: Any) -> Any:
    return jnp.sin(p["e"][-ids]) @ p["o"]


@example("gather", shapes=lambda v=7, n=4: {"e": (v, n), "o": (n, 2)}, inputs=(tokens(7, 4, 3),))
def gather_next_token(p: Any, ids: Any) -> Any:
    return jnp.sin(p["e"][jnp.minimum(ids + 1, len(p["e"]) - 1)]) @ p["o"]


@example("gather", shapes=mlp)
def gather_units_at_known_places(p: Any, x: Any) -> Any:
    y = layer(p, x)
    return y @ p["o"] + y[:, np.array([0, 2])]


@example("gather", shapes=lambda n=4: {"i": (5, 2 * n), "o": (n, 2)})
def gather_every_other(p: Any, x: Any) -> Any:
    """What a slice with a stride is in older versions of JAX."""
    y = layer(p, x)
    return jnp.take(y, jnp.arange(0, y.shape[1], 2), axis=1) @ p["o"]


@example("gather", shapes=mlp)
def gather_in_reverse(p: Any, x: Any) -> Any:
    y = layer(p, x)
    return jnp.take(y, jnp.arange(y.shape[1])[::-1], axis=1) @ p["o"]


@example("iota", shapes=mlp)
def iota_in_an_identity_matrix(p: Any, x: Any) -> Any:
    y = layer(p, x)
    return y @ jnp.eye(y.shape[1]) @ p["o"]


@example("gather", shapes=mlp)
def gather_the_last_unit(p: Any, x: Any) -> Any:
    y = layer(p, x)
    return y @ p["o"] + jnp.take(y, -1, axis=1)[:, None]


@example("gather", shapes=mlp)
def gather_where_units_are_largest(p: Any, x: Any) -> Any:
    y = layer(p, x)
    return y @ p["o"] + jnp.take_along_axis(y, jnp.argmax(y, axis=1, keepdims=True), axis=1)


@example("gather", shapes=lambda n=3: {"i": (5, n), "t": (n, 3, 3), "o": (n, 2)})
def gather_from_a_table_for_each_unit(p: Any, x: Any) -> Any:
    """Biases by relative position, as MaxViT has them for each head."""
    places = np.array([[1, 0], [2, 1]])
    return (jnp.tanh(x @ p["i"]).mean(0)[:, None, None] + p["t"][:, places, places.T]).T @ p["o"]


@example("gather", shapes=lambda r=3, e=3, n=4: {"r": (5, r), "i": (e, 5, n), "o": (e, n, 2)})
def gather_experts(p: Any, x: Any) -> Any:
    chosen = jnp.argmax(x @ p["r"], axis=1)
    y = jnp.tanh(jnp.einsum("bi,bin->bn", x / TOTAL, p["i"][chosen]))
    return jnp.einsum("bn,bno->bo", y, p["o"][chosen])


SCATTERED = (X, tokens(3, 4))


def _scattered(how: str) -> Callable[..., Any]:
    def apply(p: Any, x: Any, ids: Any) -> Any:
        y = layer(p, x)
        return getattr(jnp.cos(y[:3]).at[ids], how)(y) @ p["o"]

    return apply


for how, primitive in {
    "set": "scatter",
    "add": "scatter-add",
    "subtract": "scatter-sub",
    "multiply": "scatter-mul",
    "min": "scatter-min",
    "max": "scatter-max",
}.items():
    EXAMPLES[f"{primitive}_of_rows"] = Example(
        _scattered(how), (primitive,), mlp, SCATTERED, somewhere=primitive == "scatter-sub"
    )


@example("scatter", shapes=mlp)
def scatter_to_a_unit(p: Any, x: Any) -> Any:
    return layer(p, x).at[:, 1].set(3.0) @ p["o"]


@example("scatter", shapes=mlp)
def scatter_to_the_last_unit(p: Any, x: Any) -> Any:
    return layer(p, x).at[:, -1].set(3.0) @ p["o"]


@example("scatter-add", shapes=lambda n=4: {"i": (5, n), "o": (3, 2)})
def scatter_add_of_units(p: Any, x: Any) -> Any:
    """Units are added up in three groups, one after another."""
    y = layer(p, x)
    groups = jnp.arange(y.shape[1]) % 3
    return jnp.sin(jnp.zeros((len(x), 3)).at[:, groups].add(y)) @ p["o"]


@example("scatter-add", shapes=mlp, inputs=(X, tokens(4, 4)))
def segment_sum_of_rows(p: Any, x: Any, ids: Any) -> Any:
    y = layer(p, x)
    return jax.ops.segment_sum(y, ids, len(x)) @ p["o"]


@example("scatter-add", shapes=mlp, inputs=(X, tokens(4, 4)))
def segment_sum_in_as_many_as_units(p: Any, x: Any, ids: Any) -> Any:
    y = layer(p, x)
    return jnp.cos(jax.ops.segment_sum(y @ p["o"], ids, y.shape[1])).sum(0)


@example("dynamic_slice", shapes=mlp, inputs=(X, ONE))
def dynamic_slice_of_rows(p: Any, x: Any, start: Any) -> Any:
    return lax.dynamic_slice_in_dim(layer(p, x), start, 2, 0) @ p["o"]


@example("dynamic_slice", shapes=mlp, inputs=(X, ONE))
def dynamic_slice_of_units(p: Any, x: Any, start: Any) -> Any:
    y = layer(p, x)
    return y @ p["o"] + lax.dynamic_slice_in_dim(y, start, 2, 1)


@example("dynamic_slice", shapes=mlp, inputs=(X, ONE))
def dynamic_slice_up_to_the_end(p: Any, x: Any, start: Any) -> Any:
    """A slice that begins too late is moved to the front by JAX."""
    y = layer(p, x)
    return y @ p["o"] + lax.dynamic_index_in_dim(y, start + 5, 1)


@example("dynamic_slice", shapes=lambda v=3, n=4: {"e": (v, n), "o": (n, 2)}, inputs=(ONE,))
def dynamic_slice_of_a_table(p: Any, index: Any) -> Any:
    return jnp.sin(lax.dynamic_index_in_dim(p["e"], index, 0)) @ p["o"]


@example("dynamic_update_slice", shapes=mlp, inputs=(X, ONE))
def dynamic_update_slice_of_rows(p: Any, x: Any, start: Any) -> Any:
    y = layer(p, x)
    return lax.dynamic_update_slice(jnp.cos(y), y[:2], (start, ZERO)) @ p["o"]


@example("dynamic_update_slice", shapes=mlp, inputs=(X, ONE))
def dynamic_update_slice_of_units(p: Any, x: Any, start: Any) -> Any:
    y = layer(p, x)
    return lax.dynamic_update_slice(y, jnp.ones((len(x), 2)), (ZERO, start)) @ p["o"]


@example("dynamic_update_slice", shapes=mlp, inputs=(X, ONE))
def dynamic_update_slice_of_a_cache(p: Any, x: Any, start: Any) -> Any:
    y = layer(p, x)
    return lax.dynamic_update_slice(jnp.zeros((6, y.shape[1])), y, (start, ZERO)) @ p["o"]


@example("iota", "eq", shapes=lambda v=7, n=4: {"e": (v, n)}, inputs=(tokens(7, 4),))
def iota_one_hot(p: Any, ids: Any) -> Any:
    return jnp.sin(jax.nn.one_hot(ids, len(p["e"])) @ p["e"])


@example("iota", shapes=mlp)
def iota_times_units(p: Any, x: Any) -> Any:
    y = layer(p, x)
    return (y * lax.iota(float, y.shape[1])[None]) @ p["o"]


@example("iota", shapes=mlp)
def iota_summed_up(p: Any, x: Any) -> Any:
    y = layer(p, x)
    return y @ p["o"] + lax.iota(float, y.shape[1]).sum()


@example("iota", shapes=mlp)
def iota_of_rows(p: Any, x: Any) -> Any:
    return (layer(p, x) * lax.iota(float, len(x))[:, None]) @ p["o"]


# Random numbers -----------------------------------------------------------------------------------

KEY = np.array([1, 2], np.uint32)


@example(
    "random_wrap", "random_split", "random_fold_in", "random_bits", shapes=mlp, inputs=(X, KEY)
)
def random_mask(p: Any, x: Any, words: Any) -> Any:
    key = jax.random.fold_in(jax.random.wrap_key_data(words, impl="threefry2x32"), 3)
    y = layer(p, x)
    return (y * jax.random.bernoulli(jax.random.split(key)[0], 0.5, (len(x), 1))) @ p["o"]


@example("random_seed", "random_bits", shapes=mlp)
def random_mask_of_units(p: Any, x: Any) -> Any:
    y = layer(p, x)
    return (y * jax.random.bernoulli(jax.random.key(0), 0.5, y.shape)) @ p["o"]


@example("random_seed", "random_bits", shapes=mlp)
def random_mask_of_weights(p: Any, x: Any) -> Any:
    mask = jax.random.bernoulli(jax.random.key(0), 0.5, p["o"].shape)
    return layer(p, x) @ (p["o"] * mask)


@example("random_seed", "random_bits", shapes=mlp)
def random_numbers_added(p: Any, x: Any) -> Any:
    y = layer(p, x)
    return (y + jax.random.normal(jax.random.key(0), y.shape)) @ p["o"]


@example("random_seed", "random_bits", shapes=mlp)
def random_seed_from_the_number_of_units(p: Any, x: Any) -> Any:
    y = layer(p, x)
    return y @ p["o"] + jax.random.normal(jax.random.key(y.shape[1]), (len(x), 1))


@example("random_clone", "random_unwrap", shapes=mlp)
def random_key_data(p: Any, x: Any) -> Any:
    words = jax.random.key_data(jax.random.clone(jax.random.key(3)))
    return layer(p, x) @ p["o"] + words.sum()


@example("random_gamma", shapes=two_widths, ranges={"i": (0.1, 1)})
def random_gamma(p: Any, x: Any) -> Any:
    y = layer(p, x)
    return jax.random.gamma(jax.random.key(0), jnp.exp(y @ p["o"]))


@example("random_gamma", shapes=two_widths, ranges={"i": (0.1, 1)})
def random_gamma_of_units(p: Any, x: Any) -> Any:
    return jax.random.gamma(jax.random.key(0), jnp.exp(layer(p, x))) @ p["o"]


@example("threefry2x32", shapes=mlp)
def threefry2x32(p: Any, x: Any) -> Any:
    words = jnp.arange(4, dtype=jnp.uint32)
    key = jnp.ones(4, jnp.uint32)
    bits, _ = primitives.threefry2x32_p.bind(key, key, words, words)
    return layer(p, x) @ p["o"] + (bits[:, None] >> 30)


@example("threefry2x32", shapes=mlp)
def threefry2x32_of_units(p: Any, x: Any) -> Any:
    y = layer(p, x)
    words = jnp.arange(y.shape[1], dtype=jnp.uint32)
    bits, _ = primitives.threefry2x32_p.bind(words, words, words, words)
    return (y * (bits >> 30)[None]) @ p["o"]


@example("rng_bit_generator", shapes=mlp)
def rng_bit_generator(p: Any, x: Any) -> Any:
    y = layer(p, x)
    _, bits = lax.rng_bit_generator(np.arange(4, dtype=np.uint32), y.shape)
    return (y * (bits >> 30)) @ p["o"]


@example("rng_uniform", shapes=mlp)
def rng_uniform(p: Any, x: Any) -> Any:
    """Numbers that are other ones each time, so they must not count."""
    y = layer(p, x)
    return y @ p["o"] + 0 * lax.rng_uniform(0.0, 1.0, (len(x), 1))


# Making values ------------------------------------------------------------------------------------


@example("empty", shapes=mlp, somewhere=True)
def empty(p: Any, x: Any) -> Any:
    y = layer(p, x)
    if not hasattr(lax, "empty"):
        return y @ p["o"]
    return lax.dynamic_update_slice(lax.empty(y.shape, y.dtype), y, (0, 0)) @ p["o"]


@example("empty2", shapes=mlp, somewhere=True)
def empty2(p: Any, x: Any) -> Any:
    y = layer(p, x)
    if not hasattr(primitives, "empty2_p"):
        return y @ p["o"]
    there = primitives.empty2_p.bind(dtype=y.dtype, memory_space=jax.memory.Space.Device)
    return y @ p["o"] + 0 * jnp.nan_to_num(there)


@example("create_token", shapes=mlp)
def create_token(p: Any, x: Any) -> Any:
    lax.create_token(x)
    return layer(p, x) @ p["o"]
