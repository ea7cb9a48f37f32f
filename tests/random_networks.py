"""Networks put together at random, for ``test_trace_hypothesis``.

A network is a list of blocks with their sizes. Most blocks have no statistics over a width and no
constants that depend on one, so that every width of them must grow, and exactly. With one of the
others among them, a width must grow exactly or be refused.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st
from jax import lax
from networks import data, f64, tokens

Get = Callable[..., Any]  # (name, *shape) -> parameter
Block = Callable[..., Any]  # (get, x, *sizes) -> x
FLAT: dict[str, tuple[int, Block]] = {}
REFUSED: dict[str, tuple[int, Block]] = {}
IMAGE: dict[str, tuple[int, Block]] = {}


def block(table: dict[str, tuple[int, Block]], sizes: int) -> Callable[[Block], Block]:
    """Enters a block that takes so many sizes."""

    def register(function: Block) -> Block:
        table[function.__name__] = sizes, function
        return function

    return register


def linear(get: Get, name: str, x: Any, units: int) -> Any:
    return x @ get(f"{name}/kernel", x.shape[-1], units) + row(get(f"{name}/bias", units), x)


def row(vector: Any, x: Any) -> Any:
    """A vector as the last axis of an array like x."""
    return vector.reshape((1,) * (x.ndim - 1) + vector.shape)


# Blocks of vectors [batch, units] -----------------------------------------------------------------


@block(FLAT, 1)
def dense(get: Get, x: Any, n: int) -> Any:
    return jnp.tanh(linear(get, "up", x, n))


@block(FLAT, 1)
def residual(get: Get, x: Any, n: int) -> Any:
    return x + linear(get, "down", jax.nn.softplus(linear(get, "up", x, n)), x.shape[-1])


@block(FLAT, 1)
def projected_shortcut(get: Get, x: Any, n: int) -> Any:
    return jnp.sin(linear(get, "up", x, n)) + linear(get, "shortcut", x, n)


@block(FLAT, 1)
def concat_after(get: Get, x: Any, n: int) -> Any:
    return jnp.concatenate([x, jnp.tanh(linear(get, "up", x, n))], axis=-1)


@block(FLAT, 1)
def concat_before(get: Get, x: Any, n: int) -> Any:
    return jnp.concatenate([jnp.tanh(linear(get, "up", x, n)), x], axis=-1)


@block(FLAT, 1)
def batch_norm(get: Get, x: Any, n: int) -> Any:
    y = linear(get, "up", x, n)
    y = (y - row(get("mean", n), y)) * row(lax.rsqrt(get("var", n) + 1e-5), y)
    return jnp.tanh(y * row(get("scale", n), y) + row(get("bias", n), y))


@block(FLAT, 1)
def halves_gated(get: Get, x: Any, n: int) -> Any:
    a, b = jnp.split(linear(get, "up", x, 2 * n), 2, axis=-1)
    return a * jax.nn.sigmoid(b)


@block(FLAT, 1)
def pairs_gated(get: Get, x: Any, n: int) -> Any:
    pairs = linear(get, "up", x, 2 * n).reshape(x.shape[0], n, 2)
    return pairs[..., 0] * jnp.tanh(pairs[..., 1])


@block(FLAT, 3)
def parts(get: Get, x: Any, a: int, b: int, n: int) -> Any:
    one, two = jnp.split(linear(get, "up", x, a + b), [a], axis=-1)
    return jnp.concatenate([jnp.sin(two), linear(get, "one", jnp.tanh(one), n)], axis=-1)


@block(FLAT, 3)
def kernel_for_each_head(get: Get, x: Any, heads: int, n: int, m: int) -> Any:
    y = jnp.tanh(linear(get, "up", x, heads * n)).reshape(x.shape[0], heads, n)
    return jnp.einsum("bhn,hnm->bhm", y, get("mix", heads, n, m)).reshape(x.shape[0], -1)


@block(FLAT, 3)
def kernel_shared_by_heads(get: Get, x: Any, heads: int, n: int, m: int) -> Any:
    y = jnp.tanh(linear(get, "up", x, heads * n)).reshape(x.shape[0], heads, n)
    return jnp.swapaxes(y @ get("mix", n, m), 1, 2).reshape(x.shape[0], -1)


@block(FLAT, 3)
def attention(get: Get, x: Any, heads: int, n: int, m: int) -> Any:
    q, k = (x @ get(name, x.shape[-1], heads * n) for name in ("q", "k"))
    q, k = (part.reshape(-1, heads, n) for part in (q, k))
    v = jnp.einsum("tc,chm->thm", x, get("v", x.shape[-1], heads, m))
    weights = jax.nn.softmax(jnp.einsum("thn,shn->hts", q, k))
    y = jnp.einsum("hts,shm->thm", weights, v).reshape(x.shape[0], -1)
    return x + y @ get("o", heads * m, x.shape[-1])


@block(FLAT, 3)
def grouped_query_attention(get: Get, x: Any, heads: int, groups: int, n: int) -> Any:
    q = (x @ get("q", x.shape[-1], heads * groups * n)).reshape(-1, heads, groups, n)
    k, v = (x @ get(name, x.shape[-1], heads * n) for name in ("k", "v"))
    k, v = (part.reshape(-1, heads, n) for part in (k, v))
    weights = jax.nn.softmax(jnp.einsum("thgn,shn->hgts", q, k))
    y = jnp.einsum("hgts,shn->thgn", weights, v).reshape(x.shape[0], -1)
    return x + y @ get("o", heads * groups * n, x.shape[-1])


@block(FLAT, 2)
def multi_query_attention(get: Get, x: Any, heads: int, n: int) -> Any:
    q = (x @ get("q", x.shape[-1], heads * n)).reshape(-1, heads, n)
    weights = jax.nn.softmax(jnp.einsum("thn,sn->hts", q, x @ get("k", x.shape[-1], n)))
    y = jnp.einsum("hts,sn->thn", weights, x @ get("v", x.shape[-1], n))
    return jnp.einsum("thn,hnc->tc", y, get("o", heads, n, x.shape[-1]))


@block(FLAT, 2)
def fused_attention(get: Get, x: Any, heads: int, n: int) -> Any:
    qkv = jnp.split(x @ get("qkv", x.shape[-1], 3 * heads * n), 3, axis=-1)
    q, k, v = (part.reshape(-1, heads, n) for part in qkv)
    weights = jax.nn.softmax(jnp.einsum("thn,shn->hts", q, k))
    return jnp.einsum("hts,shn->thn", weights, v).reshape(x.shape[0], -1)


@block(FLAT, 2)
def attention_fused_within_heads(get: Get, x: Any, heads: int, n: int) -> Any:
    qkv = (x @ get("qkv", x.shape[-1], heads * 3 * n)).reshape(-1, heads, 3, n)
    q, k, v = (qkv[:, :, i].transpose(1, 0, 2) for i in range(3))
    y = jax.nn.softmax(q @ k.swapaxes(1, 2)) @ v
    return x + y.transpose(1, 0, 2).reshape(x.shape[0], -1) @ get("o", heads * n, x.shape[-1])


@block(FLAT, 3)
def heads_in_batch(get: Get, x: Any, heads: int, n: int, m: int) -> Any:
    y = jnp.tanh(linear(get, "up", x, heads * n)).reshape(x.shape[0] * heads, n)
    return jnp.sin(y @ get("mix", n, m)).reshape(x.shape[0], heads * m)


@block(FLAT, 1)
def scanned_layers(get: Get, x: Any, n: int) -> Any:
    layers = get("up", 2, x.shape[-1], n), get("bias", 2, n), get("down", 2, n, x.shape[-1])

    def layer(x: Any, weights: Any) -> Any:
        up, bias, down = weights
        return x + jnp.tanh(x @ up + row(bias, x)) @ down, None

    return lax.scan(jax.checkpoint(layer), x, layers)[0]


@block(FLAT, 1)
def best_experts(get: Get, x: Any, n: int) -> Any:
    gates, chosen = lax.top_k(jax.nn.softmax(x @ get("router", x.shape[-1], 3)), 2)
    weights = jnp.einsum("bk,bke->be", gates, jax.nn.one_hot(chosen, 3, dtype=x.dtype))
    y = jnp.tanh(jnp.einsum("bi,eij->ebj", x, get("up", 3, x.shape[-1], n)))
    y = jnp.einsum("ebj,ejc->ebc", y, get("down", 3, n, x.shape[-1]))
    return jnp.einsum("be,ebc->bc", weights, y)


@block(FLAT, 1)
def batch_norm_training(get: Get, x: Any, n: int) -> Any:
    y = linear(get, "up", x, n)
    y = (y - jnp.mean(y, axis=0, keepdims=True)) * lax.rsqrt(jnp.var(y, 0, keepdims=True) + 1e-5)
    return jnp.tanh(y * row(get("scale", n), y) + row(get("bias", n), y))


@block(FLAT, 1)
def dropped_path(get: Get, x: Any, n: int) -> Any:
    kept = jax.random.bernoulli(jax.random.key(0), 0.5, (x.shape[0], 1))
    return x + jnp.where(
        kept, linear(get, "down", jnp.tanh(linear(get, "up", x, n)), x.shape[-1]), 0
    )


@block(FLAT, 1)
def excited(get: Get, x: Any, n: int) -> Any:
    return x * jax.nn.sigmoid(
        linear(get, "up", jax.nn.relu(linear(get, "down", x, n)), x.shape[-1])
    )


@block(FLAT, 2)
def low_rank(get: Get, x: Any, rank: int, n: int) -> Any:
    update = get("a", x.shape[-1], rank) @ get("b", rank, n)
    return jnp.tanh(x @ (get("kernel", x.shape[-1], n) + 0.7 * update))


@block(FLAT, 1)
def masked(get: Get, x: Any, n: int) -> Any:
    kernel = get("kernel", x.shape[-1], n) * get("mask", x.shape[-1], n)
    return jnp.sin(x @ (kernel * row(jnp.exp(get("log", n)), kernel)))


@block(FLAT, 1)
def weight_norm(get: Get, x: Any, n: int) -> Any:
    v = get("v", x.shape[-1], n)
    return jnp.tanh(x @ (v / jnp.sqrt(jnp.sum(v * v, axis=0, keepdims=True)) * row(get("g", n), v)))


@block(FLAT, 1)
def tied(get: Get, x: Any, n: int) -> Any:
    kernel = get("kernel", x.shape[-1], n)
    return x + jnp.tanh(x @ kernel) @ kernel.T


@block(FLAT, 1)
def recurrent(get: Get, x: Any, n: int) -> Any:
    def step(h: Any, _: Any) -> Any:
        h = jnp.tanh(x @ get("up", x.shape[-1], n) + h @ get("back", n, n))
        return h, h

    h, states = lax.scan(step, jnp.zeros((x.shape[0], n)), length=2)
    return h + states[0]


@block(FLAT, 1)
def gru(get: Get, x: Any, n: int) -> Any:
    def step(h: Any, _: Any) -> Any:
        both = jnp.concatenate([h, x], axis=-1)
        update, candidate = jnp.split(linear(get, "gates", both, 2 * n), 2, axis=-1)
        update = jax.nn.sigmoid(update)
        return update * h + (1 - update) * jnp.tanh(candidate), None

    return lax.scan(step, jnp.zeros((x.shape[0], n)), length=2)[0]


@block(FLAT, 0)
def repeated(get: Get, x: Any) -> Any:
    return jnp.repeat(x, 2, axis=-1)


@block(FLAT, 0)
def tiled(get: Get, x: Any) -> Any:
    return jnp.tile(x, (1, 2))


@block(FLAT, 0)
def stacked(get: Get, x: Any) -> Any:
    return jnp.stack([x, jnp.cos(x)], axis=1).reshape(x.shape[0], -1)


@block(FLAT, 1)
def outer(get: Get, x: Any, n: int) -> Any:
    other = linear(get, "up", x, n)
    return (jnp.tanh(x)[:, None] * other[:, :, None]).reshape(x.shape[0], -1)


@block(FLAT, 1)
def by_expert(get: Get, x: Any, experts: int) -> Any:
    each = jnp.tanh(jnp.einsum("bi,eij->ebj", x, get("up", experts, x.shape[-1], x.shape[-1])))
    return jnp.einsum("ebj,be->bj", each, linear(get, "router", x, experts))


@block(FLAT, 1)
def cond(get: Get, x: Any, n: int) -> Any:
    one, two = (get(name, x.shape[-1], n) for name in ("one", "two"))
    return lax.cond(get("switch") > 0, lambda x: jnp.tanh(x @ one), lambda x: x @ two, x)


# Blocks that let some widths grow and not others -------------------------------------------------


@block(REFUSED, 1)
def layer_norm(get: Get, x: Any, n: int) -> Any:
    y = linear(get, "up", x, n)
    y = y - jnp.mean(y, axis=-1, keepdims=True)
    y = y * lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + 1e-5)
    return y * row(get("scale", n), y)


@block(REFUSED, 1)
def dropout(get: Get, x: Any, n: int) -> Any:
    y = linear(get, "up", x, n)
    return jnp.where(jax.random.bernoulli(jax.random.key(1), 0.5, y.shape), 2 * y, 0)


@block(REFUSED, 2)
def group_norm(get: Get, x: Any, groups: int, n: int) -> Any:
    y = linear(get, "up", x, groups * n).reshape(x.shape[0], groups, n)
    y = y * lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + 1e-5)
    return y.reshape(x.shape[0], -1)


@block(REFUSED, 2)
def largest_of_each_group(get: Get, x: Any, groups: int, n: int) -> Any:
    return jnp.max(linear(get, "up", x, groups * n).reshape(x.shape[0], groups, n), axis=-1)


@block(REFUSED, 2)
def mean_over_heads(get: Get, x: Any, heads: int, n: int) -> Any:
    return jnp.mean(linear(get, "up", x, heads * n).reshape(x.shape[0], heads, n), axis=1)


@block(REFUSED, 2)
def softmax_of_part(get: Get, x: Any, a: int, b: int) -> Any:
    y = linear(get, "up", x, a + b)
    return jnp.concatenate([jax.nn.softmax(y[:, :a]), y[:, a:]], axis=-1)


@block(REFUSED, 1)
def unit_vectors(get: Get, x: Any, n: int) -> Any:
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True) + jnp.tanh(linear(get, "up", x, n)[:, :1])


@block(REFUSED, 2)
def scaled_attention(get: Get, x: Any, n: int, m: int) -> Any:
    q, k = (x @ get(name, x.shape[-1], n) for name in ("q", "k"))
    return jax.nn.softmax(q @ k.T / np.sqrt(n)) @ (x @ get("v", x.shape[-1], m))


@block(REFUSED, 2)
def positions(get: Get, x: Any, a: int, b: int) -> Any:
    y = linear(get, "up", x, a + b)
    wave = jnp.sin(jnp.arange(a, dtype=x.dtype))
    return jnp.concatenate([y[:, :a] * row(wave, y), y[:, a:]], axis=-1)


@block(REFUSED, 1)
def reversed_units(get: Get, x: Any, n: int) -> Any:
    return x[:, ::-1] * jnp.tanh(linear(get, "up", x, n) @ get("down", n, 1))


@block(REFUSED, 2)
def running_sum_of_part(get: Get, x: Any, a: int, b: int) -> Any:
    y = linear(get, "up", x, a + b)
    return jnp.concatenate([y[:, :a], jnp.cumsum(y[:, a:], axis=-1)], axis=-1)


# Blocks of images [batch, height, width, channels] -----------------------------------------------


def convolve(kernel: Any, x: Any, stride: int = 1, groups: int = 1) -> Any:
    numbers = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), "SAME", dimension_numbers=numbers, feature_group_count=groups
    )


@block(IMAGE, 1)
def conv(get: Get, x: Any, n: int) -> Any:
    y = convolve(get("kernel", 2, 2, x.shape[-1], n), x)
    return jnp.tanh(y + row(get("bias", n), y))


@block(IMAGE, 1)
def strided_conv(get: Get, x: Any, n: int) -> Any:
    return jax.nn.softplus(convolve(get("kernel", 2, 2, x.shape[-1], n), x, stride=2))


@block(IMAGE, 1)
def conv_residual(get: Get, x: Any, n: int) -> Any:
    y = jnp.tanh(convolve(get("one", 3, 3, x.shape[-1], n), x))
    return x + convolve(get("two", 1, 1, n, x.shape[-1]), y)


@block(IMAGE, 1)
def conv_concat(get: Get, x: Any, n: int) -> Any:
    return jnp.concatenate([jnp.sin(convolve(get("kernel", 2, 2, x.shape[-1], n), x)), x], axis=-1)


@block(IMAGE, 0)
def depthwise(get: Get, x: Any) -> Any:
    return convolve(get("kernel", 2, 2, 1, x.shape[-1]), x, groups=x.shape[-1])


@block(IMAGE, 3)
def grouped(get: Get, x: Any, groups: int, n: int, m: int) -> Any:
    y = jnp.tanh(convolve(get("one", 1, 1, x.shape[-1], groups * n), x))
    return convolve(get("two", 2, 2, n, groups * m), y, groups=groups)


@block(IMAGE, 0)
def max_pool(get: Get, x: Any) -> Any:
    window = (1, 2, 2, 1)
    return lax.reduce_window(x, -jnp.inf, lax.max, window, (1, 1, 1, 1), "SAME")


@block(IMAGE, 1)
def pixels_to_channels(get: Get, x: Any, n: int) -> Any:
    b, h, w, c = x.shape
    x = jnp.pad(x, ((0, 0), (0, h % 2), (0, w % 2), (0, 0)))
    x = x.reshape(b, (h + 1) // 2, 2, (w + 1) // 2, 2, c).transpose(0, 1, 3, 2, 4, 5)
    return linear(get, "up", jnp.tanh(x).reshape(b, (h + 1) // 2, (w + 1) // 2, 4 * c), n)


@block(IMAGE, 1)
def attention_over_pixels(get: Get, x: Any, n: int) -> Any:
    flat = x.reshape(x.shape[0], -1, x.shape[-1])
    q, k = (flat @ get(name, x.shape[-1], n) for name in ("q", "k"))
    weights = jax.nn.softmax(jnp.einsum("btn,bsn->bts", q, k))
    return jnp.einsum("bts,bsc->btc", weights, flat).reshape(x.shape) + x


# Networks -----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Spec:
    """Blocks by name, in order, and what is around them."""

    image: tuple[str, ...]
    flat: tuple[str, ...]
    channels_first: bool  # where images become vectors
    skip: int | None  # the vectors before this block are concatenated to the last ones
    words: bool  # whether vectors come from a table of words that makes the outputs as well
    gradient: bool  # whether the network returns the gradient of a loss, too

    def blocks(self) -> list[tuple[int, Block]]:
        return [IMAGE[name] for name in self.image] + [(FLAT | REFUSED)[name] for name in self.flat]

    @property
    def sizes(self) -> int:
        return sum(count for count, _ in self.blocks()) + self.words

    @property
    def input(self) -> Any:
        return data(2, 4, 3, 2) if self.image else tokens(5, 4) if self.words else data(3, 4)

    def run(self, get: Get, x: Any, sizes: list[int]) -> Any:
        remaining = iter(sizes)
        kept = None
        if self.words:
            table = get("words", 5, sizes[-1])
            x = table[x]
        for index, (count, function) in enumerate(self.blocks()):
            if x.ndim == 4 and index == len(self.image):
                x = x.transpose(0, 3, 1, 2) if self.channels_first else x
                x = x.reshape(x.shape[0], -1)
            if self.skip is not None and index == len(self.image) + self.skip:
                kept = x
            named = lambda name, *shape, index=index: get(f"{index}_{name}", *shape)  # noqa: E731
            x = function(named, x, *(next(remaining) for _ in range(count)))
        if kept is not None:
            x = jnp.concatenate([x, kept], axis=-1)
        return (
            linear(get, "last", x, sizes[-1]) @ table.T if self.words else linear(get, "head", x, 2)
        )

    def shapes(self, sizes: list[int]) -> dict[str, Any]:
        found = {}

        def get(name: str, *shape: int) -> Any:
            found[name] = f64(*shape)
            return jnp.zeros(shape)

        jax.eval_shape(lambda x: self.run(get, x, sizes), self.input)
        return found

    def apply(self, sizes: list[int]) -> Callable[..., Any]:
        def run(params: Any, x: Any) -> Any:
            return self.run(lambda name, *_: params[name], x, sizes)

        def run_and_loss(params: Any, x: Any) -> Any:
            y = run(params, x)
            return jnp.mean(jnp.square(jnp.sin(y))), y

        def step(params: Any, x: Any) -> Any:
            (loss, y), gradient = jax.value_and_grad(run_and_loss, has_aux=True)(params, x)
            return loss, y, gradient

        return step if self.gradient else run

    def outputs(self, result: Any) -> Any:
        """What must not change: not the gradient, which grows along."""
        return result[:2] if self.gradient else [result]


@st.composite
def growths(draw: Any) -> tuple[Spec, list[int], list[int], bool]:
    """Draws a network, its sizes, those of the larger network, and whether to draw from a key."""
    image = draw(st.lists(st.sampled_from(sorted(IMAGE)), max_size=3))
    flat = draw(st.lists(st.sampled_from(sorted(FLAT)), min_size=1, max_size=4 - len(image) // 2))
    skip = draw(st.none() | st.integers(0, len(flat) - 1))
    refused = draw(st.none() | st.none() | st.sampled_from(sorted(REFUSED)))
    if refused:
        flat.insert(draw(st.integers(0, len(flat))), refused)
    words = not image and draw(st.integers(0, 3)) == 0
    gradient = draw(st.integers(0, 5)) == 0
    spec = Spec(tuple(image), tuple(flat), draw(st.booleans()), skip, words, gradient)
    hypothesis.assume(spec.sizes)
    least = draw(st.sampled_from([2, 2, 2, 1]))
    sizes = draw(st.lists(st.integers(least, 5), min_size=spec.sizes, max_size=spec.sizes))
    more = [0] * spec.sizes
    if not refused or draw(st.booleans()):  # for one alone is more often not refused
        more = draw(st.lists(st.integers(0, 3), min_size=spec.sizes, max_size=spec.sizes))
    more[draw(st.integers(0, spec.sizes - 1))] += 1
    return spec, sizes, [n + k for n, k in zip(sizes, more)], draw(st.booleans())
