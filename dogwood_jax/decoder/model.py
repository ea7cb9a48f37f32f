"""A decoder as a pure function of its arrays, ``apply``, and the arrays' ``shapes``."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from dogwood_jax._base.trees import nested, struct
from dogwood_jax.decoder.options import Experts, Options, Rope

Weights = Mapping[str, Any]

_ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = {
    "silu": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
}


def apply(options: Options, variables: Weights, tokens: Array) -> Array:
    """Computes logits.

    Args:
        options: the options of the decoder.
        variables: its arrays, in the tree of ``shapes``.
        tokens: ids, ``int[batch, time]``.

    Returns:
        Logits, ``[batch, time, vocab_size]``, in the dtype of the embeddings.

    Example:
        >>> from functools import partial
        >>> import dogwood_jax as dw
        >>> options = dw.decoder.options_of(dict(
        ...     model_type="llama", vocab_size=100, hidden_size=16, intermediate_size=32,
        ...     num_hidden_layers=1, num_attention_heads=4, rms_norm_eps=1e-5, rope_theta=1e4))
        >>> apply, variables = partial(dw.decoder.apply, options), dw.decoder.shapes(options)
        >>> widths = dw.trace(apply, variables, jnp.zeros((2, 4), int))
        >>> widths.of("model/layers/0/mlp/up_proj/weight", 0).size
        32
    """
    model = variables["model"]
    embeddings = model["embed_tokens"]["weight"]
    x = jnp.take(embeddings, tokens, axis=0)
    if options.embed_scale != 1.0:
        x = x * jnp.asarray(options.embed_scale, x.dtype)
    for n, layer in enumerate(model["layers"]):
        x = _layer(options, n, layer, x)
    x = _norm(options, model["norm"], x)
    head = embeddings if options.tie_word_embeddings else variables["lm_head"]["weight"]
    return _capped(jnp.einsum("btd,vd->btv", x, head), options.logit_cap)


def _layer(options: Options, n: int, weights: Weights, x: Array) -> Array:
    """Returns the output of layer ``n`` for ``x [batch, time, hidden]``."""

    def normed(name: str | None, x: Array) -> Array:
        return x if name is None else _norm(options, weights[name], x)

    before, behind, before_mlp, behind_mlp = options.norms
    attended = _attention(options, n, weights["self_attn"], normed(before, x))
    x = x + normed(behind, attended)
    inner, experts = normed(before_mlp, x), options.experts
    if experts is not None and "experts" in weights.get(experts.name, {}):
        made = _mixture(options, experts, weights[experts.name], inner)
    else:
        made = _mlp(options, weights["mlp"], inner)
    return x + normed(behind_mlp, made)


def _linear(weights: Weights, x: Array) -> Array:
    y = jnp.einsum("btd,fd->btf", x, weights["weight"])
    return y + weights["bias"][None, None] if "bias" in weights else y


def _norm(options: Options, weights: Weights, x: Array) -> Array:
    """Applies RMSNorm along the last axis, computed in float32 or wider."""
    weight: Array = weights["weight"]
    scale = weight.reshape((1,) * (x.ndim - 1) + weight.shape)
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    mean = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
    wide = wide * jax.lax.rsqrt(mean + options.rms_norm_eps)
    if options.plus_one:
        return (wide * (1.0 + scale.astype(wide.dtype))).astype(x.dtype)
    return wide.astype(x.dtype) * scale


def _capped(x: Array, cap: float | None) -> Array:
    return x if cap is None else jnp.tanh(x / cap) * cap


# The MLP and experts ------------------------------------------------------------------------------


def _mlp(options: Options, weights: Weights, x: Array) -> Array:
    gate = _ACTIVATIONS[options.activation](_linear(weights["gate_proj"], x))
    return _linear(weights["down_proj"], gate * _linear(weights["up_proj"], x))


def _mixture(options: Options, experts: Experts, weights: Weights, x: Array) -> Array:
    """Sums the outputs of each token's chosen experts, weighted by their gates.

    All experts are computed for all tokens. This is slow, but easy to read and to grow.
    """
    logits = _linear(weights["gate"], x)
    shares = jax.nn.softmax(logits.astype(jnp.promote_types(x.dtype, jnp.float32)), axis=-1)
    gates, which = jax.lax.top_k(shares, experts.chosen)
    if experts.sums_to_one:
        gates = gates / jnp.sum(gates, axis=-1, keepdims=True)
    mask = jax.nn.one_hot(which, experts.number, dtype=x.dtype)
    gates = jnp.einsum("btk,btke->bte", gates.astype(x.dtype), mask)
    gate, up, down = (weights["experts"][name]["weight"] for name in experts.projections)
    hidden = _ACTIVATIONS[options.activation](jnp.einsum("btd,efd->btef", x, gate))
    hidden = hidden * jnp.einsum("btd,efd->btef", x, up)
    outputs = jnp.einsum("btef,edf->bted", hidden, down)
    return jnp.einsum("bte,bted->btd", gates, outputs)


# Attention ----------------------------------------------------------------------------------------


def _attention(options: Options, n: int, weights: Weights, x: Array) -> Array:
    batch, time, _ = x.shape
    heads, kv_heads = options.num_attention_heads, options.num_key_value_heads

    def projected(name: str, number: int) -> Array:
        y = _linear(weights[f"{name}_proj"], x)
        has_norm = name != "v"
        if options.head_norms == "all" and has_norm:
            y = _norm(options, weights[f"{name}_norm"], y)
        y = y.reshape(batch, time, number, options.head_dim)
        if options.head_norms == "each" and has_norm:
            y = _norm(options, weights[f"{name}_norm"], y)
        return _rotated(options.ropes[n], y) if has_norm else y

    query = projected("q", heads)
    key, value = projected("k", kv_heads), projected("v", kv_heads)
    # Each key-value head serves heads // kv_heads consecutive query heads.
    query = query.reshape(batch, time, kv_heads, heads // kv_heads, options.head_dim)
    scores = jnp.einsum("btkgd,bskd->bkgts", query, key) * options.score_scale
    scores = _capped(scores, options.score_cap)
    behind = jnp.arange(time)[:, None] - jnp.arange(time)[None, :]
    seen = behind >= 0
    if (window := options.windows[n]) is not None:
        seen = seen & (behind < window)
    lowest = jnp.finfo(scores.dtype).min  # type: ignore[no-untyped-call]
    scores = jnp.where(seen[None, None, None], scores, lowest)
    shares = jax.nn.softmax(scores.astype(jnp.promote_types(x.dtype, jnp.float32)), axis=-1)
    y = jnp.einsum("bkgts,bskd->btkgd", shares.astype(x.dtype), value)
    return _linear(weights["o_proj"], y.reshape(batch, time, heads * options.head_dim))


def _rotated(rope: Rope, x: Array) -> Array:
    """Rotates pairs ``i`` and ``i + head_dim / 2`` of ``x [batch, time, heads, head_dim]``."""
    half = x.shape[-1] // 2
    wide = jnp.promote_types(x.dtype, jnp.float32)
    frequencies = _frequencies(rope, jnp.arange(half, dtype=wide) * 2 / x.shape[-1])
    angles = jnp.arange(x.shape[1], dtype=wide)[:, None] * frequencies[None, :]
    cos, sin = jnp.cos(angles).astype(x.dtype), jnp.sin(angles).astype(x.dtype)
    cos, sin = cos[None, :, None, :], sin[None, :, None, :]
    first, second = x[..., :half], x[..., half:]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def _frequencies(rope: Rope, powers: Array) -> Array:
    """Returns the frequencies, in radians per token."""
    frequencies = 1.0 / rope.theta**powers
    if rope.kind == "linear":
        return frequencies / rope.factor
    if rope.kind == "llama3":
        turns = rope.length * frequencies / (2 * math.pi)  # in the original length
        kept = jnp.clip((turns - rope.low) / (rope.high - rope.low), 0.0, 1.0)
        return frequencies * (kept + (1.0 - kept) / rope.factor)
    return frequencies


# Shapes -------------------------------------------------------------------------------------------


def shapes(options: Options, dtype: Any = jnp.bfloat16) -> dict[str, Any]:
    """Returns the shapes of a decoder's arrays, in the tree that ``apply`` takes.

    Args:
        options: the options of the decoder.
        dtype: dtype of all arrays.

    Returns:
        Nested dicts with a ``jax.ShapeDtypeStruct`` for each array; layers are a list. Names and
        shapes are those of the tensors in the files, except that experts are stacked.

    Example:
        >>> import jax
        >>> from dogwood_jax import decoder
        >>> config = dict(
        ...     model_type="llama", vocab_size=100, hidden_size=16, intermediate_size=32,
        ...     num_hidden_layers=1, num_attention_heads=4, rms_norm_eps=1e-5, rope_theta=1e4)
        >>> decoder.shapes(decoder.options_of(config))["model"]["layers"][0]["mlp"]["up_proj"]
        {'weight': ShapeDtypeStruct(shape=(32, 16), dtype=bfloat16)}
    """
    flat = {path: struct(shape, dtype) for path, shape in _shapes(options).items()}
    return dict(nested(flat))


def _shapes(options: Options) -> dict[str, tuple[int, ...]]:
    """Returns the shape of each leaf, by path."""
    found, d = dict[str, tuple[int, ...]](), options.hidden_size
    queries, keys = (
        number * options.head_dim
        for number in (options.num_attention_heads, options.num_key_value_heads)
    )

    def projection(path: str, out: int, size: int) -> None:
        found[f"{path}/weight"] = (out, size)
        if path.rpartition("/")[2] in options.biases:
            found[f"{path}/bias"] = (out,)

    found["model/embed_tokens/weight"] = (options.vocab_size, d)
    for n in range(options.num_hidden_layers):
        layer = f"model/layers/{n}"
        for name, out in (("q", queries), ("k", keys), ("v", keys)):
            projection(f"{layer}/self_attn/{name}_proj", out, d)
        projection(f"{layer}/self_attn/o_proj", d, queries)
        if options.head_norms is not None:
            each = (options.head_dim,) * 2 if options.head_norms == "each" else (queries, keys)
            for name, size in zip("qk", each, strict=True):
                found[f"{layer}/self_attn/{name}_norm/weight"] = (size,)
        for norm in options.norms:
            if norm is not None:
                found[f"{layer}/{norm}/weight"] = (d,)
        experts = options.experts
        if experts is not None and n in experts.layers:
            inner = f"{layer}/{experts.name}"
            found[f"{inner}/gate/weight"] = (experts.number, d)
            both = (experts.number, experts.size, d)
            for name, shape in zip(
                experts.projections, (both, both, (experts.number, d, experts.size)), strict=True
            ):
                found[f"{inner}/experts/{name}/weight"] = shape
        else:
            for name in ("gate_proj", "up_proj"):
                projection(f"{layer}/mlp/{name}", options.intermediate_size, d)
            projection(f"{layer}/mlp/down_proj", d, options.intermediate_size)
    found["model/norm/weight"] = (d,)
    if not options.tie_word_embeddings:
        found["lm_head/weight"] = (options.vocab_size, d)
    return found
