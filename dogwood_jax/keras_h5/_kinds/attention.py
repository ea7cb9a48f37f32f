"""Attention layers."""

import math
import operator
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dogwood_jax.keras_h5._kinds.kind import KINDS, Config, Function, Kind, Params, Shape, Weight
from dogwood_jax.keras_h5._kinds.masking import handed_on
from dogwood_jax.keras_h5._kinds.options import evaluated_only
from dogwood_jax.keras_h5._kinds.weight import fixed, plain

_MASKED = -1e9  # Keras adds this to masked scores, which are then zero after softmax


class Heads(nn.Module):
    """Keras's MultiHeadAttention, and GroupQueryAttention, whose heads share keys and values.

    Attributes:
        heads: number of heads of queries.
        shared_heads: number of heads of keys and values; a divisor of ``heads``.
        axes: the axes of the inputs along which positions attend to each other; by default all
            between batch and channels.
        window: positions attend to each other if they are less than this far apart.
        gated: whether outputs of the heads are multiplied by a gate computed from the query.
    """

    heads: int
    shared_heads: int
    key_size: int
    value_size: int
    output_shape: tuple[int, ...] | None
    use_bias: bool
    axes: tuple[int, ...] | None = None
    window: int | None = None
    gated: bool = False

    @nn.compact
    def __call__(
        self,
        query: jax.Array,
        value: jax.Array,
        key: jax.Array | None = None,
        query_mask: jax.Array | None = None,
        value_mask: jax.Array | None = None,
        key_mask: jax.Array | None = None,
        attention_mask: jax.Array | None = None,
        return_attention_scores: bool = False,
        use_causal_mask: bool = False,
    ) -> Any:
        key = value if key is None else key
        axes = self.axes or tuple(range(1, query.ndim - 1))
        masks = (query_mask, value_mask, key_mask, use_causal_mask or None, self.window)
        if axes != (1,) and any(mask is not None for mask in masks):
            raise ValueError("masks are not supported along other axes than the first")

        def project(x: jax.Array, heads: int, size: int, name: str) -> jax.Array:
            """Returns ``[batch, ..., head, position, channel]``."""
            y = nn.DenseGeneral((heads, size), use_bias=self.use_bias, name=name)(x)
            return _positions_last(y, axes)

        q = project(query, self.heads, self.key_size, "query") * (1 / math.sqrt(self.key_size))
        k = project(key, self.shared_heads, self.key_size, "key")
        v = project(value, self.shared_heads, self.value_size, "value")
        if self.shared_heads != self.heads:
            k, v = (jnp.repeat(a, self.heads // self.shared_heads, axis=-3) for a in (k, v))
        scores = jnp.einsum("...qd,...kd->...qk", q, k)
        queries, keys = ([a.shape[axis] for axis in axes] for a in (query, key))
        for mask in (
            None if query_mask is None else query_mask[:, None, :, None],
            None if value_mask is None else value_mask[:, None, None],
            None if key_mask is None else key_mask[:, None, None],
            None if attention_mask is None else _expanded(attention_mask, scores, queries + keys),
            _apart(scores) >= 0 if use_causal_mask else None,
            jnp.abs(_apart(scores)) < self.window if self.window else None,
        ):
            scores = scores if mask is None else jnp.where(mask, scores, _MASKED)
        weights = jax.nn.softmax(scores)
        y = jnp.einsum("...qk,...kd->...qd", weights, v)
        if self.gated:
            y = y * jax.nn.sigmoid(project(query, self.heads, self.value_size, "gate"))
        y = y.reshape(*y.shape[:-2], *queries, y.shape[-1])
        first = y.ndim - 1 - len(axes)
        y = jnp.moveaxis(y, range(first, y.ndim - 1), axes)  # the heads are on their old axis again
        shape = (query.shape[-1],) if self.output_shape is None else self.output_shape
        out = self.variables.get("params", {}).get("out")
        if out is not None:  # it may be that of a grown model
            shape = out["kernel"].shape[2:]
        y = nn.DenseGeneral(shape, axis=(-2, -1), use_bias=self.use_bias, name="out")(y)
        weights = weights.reshape(*weights.shape[:-2], *queries, *keys)
        return (y, weights) if return_attention_scores else y


def _positions_last(x: jax.Array, axes: Sequence[int]) -> jax.Array:
    """Moves these axes behind the heads, and merges them into one."""
    x = jnp.moveaxis(x, axes, range(x.ndim - 1 - len(axes), x.ndim - 1))
    return x.reshape(*x.shape[: -1 - len(axes)], -1, x.shape[-1])


def _expanded(mask: jax.Array, scores: jax.Array, sizes: Sequence[int]) -> jax.Array:
    """Returns a mask ``[batch, ..., query, key]`` with as many axes as the scores."""
    kept = mask.ndim - len(sizes)
    mask = mask.reshape(*mask.shape[:kept], *_merged(mask.shape[kept:]))
    return jnp.expand_dims(mask, range(kept, kept + scores.ndim - mask.ndim)).astype(bool)


def _merged(shape: Sequence[int]) -> tuple[int, int]:
    half = len(shape) // 2
    return math.prod(shape[:half]), math.prod(shape[half:])


def _apart(scores: jax.Array) -> jax.Array:
    """Returns the position of each query minus that of each key, ``[query, key]``."""
    queries, keys = scores.shape[-2:]
    return jnp.arange(queries)[:, None] - jnp.arange(keys)[None]


def _multi_head(config: Config, name: str | None, deterministic: bool) -> Function:
    evaluated_only(config, deterministic, "dropout")
    key_size = operator.index(config["key_dim"])
    shape = config.get("output_shape")
    if shape is not None:
        shape = (shape,) if isinstance(shape, int) else tuple(shape)
    axes = config.get("attention_axes")
    heads = operator.index(config["num_heads"])
    return Heads(
        heads,
        heads,
        key_size,
        operator.index(config.get("value_dim") or key_size),
        shape,
        config.get("use_bias", True),
        (axes,) if isinstance(axes, int) else axes and tuple(map(operator.index, axes)),
        config.get("sliding_window"),
        bool(config.get("use_gate")),
        name=name,
    )


def _group_query(config: Config, name: str | None, deterministic: bool) -> Function:
    evaluated_only(config, deterministic, "dropout")
    size = operator.index(config["head_dim"])
    return Heads(
        operator.index(config["num_query_heads"]),
        operator.index(config["num_key_value_heads"]),
        size,
        size,
        None,
        config.get("use_bias", True),
        None,
        config.get("sliding_window"),
        bool(config.get("use_gate")),
        name=name,
    )


def _heads_weights(config: Config) -> list[Weight]:
    gate = ("gate",) if config.get("use_gate") else ()
    return [
        plain(f"{part}_dense/{weight}", f"params/{'out' if part == 'output' else part}/{weight}")
        for part in ("query", "key", *gate, "value", "output")
        for weight in ("kernel", "bias")[: 2 if config.get("use_bias", True) else 1]
    ]


def _heads_told(shapes: Mapping[str, Shape]) -> Config | None:
    gated = any("gate_dense" in name for name in shapes)
    count, full = len(shapes), 10 if gated else 8
    return {"use_bias": count == full, "use_gate": gated} if count in (full // 2, full) else None


def _heads_sizes(config: Config, params: Params) -> dict[str, Any]:
    _, heads, size = params["query"]["kernel"].shape
    value_size = params["value"]["kernel"].shape[-1]
    _check_alike(config, size, value_size)
    sizes = {"num_heads": heads, "key_dim": size, "value_dim": value_size}
    shape = config.get("output_shape")
    new = params["out"]["kernel"].shape[2:] if "out" in params else None
    if new is not None and (shape is not None or new != params["query"]["kernel"].shape[:1]):
        sizes["output_shape"] = new[0] if isinstance(shape, int) else list(new)
    for part in ("query", "key", "value"):  # Keras 2 builds the layer from these
        if old := config.get(f"{part}_shape"):
            sizes[f"{part}_shape"] = _with_channels(old, params[part]["kernel"].shape[0])
    return sizes


def _check_alike(config: Config, key_size: int, value_size: int) -> None:
    """Warns if keys and values have different sizes, for which Keras on JAX has no attention."""
    were_alike = config.get("value_dim") in (None, config.get("key_dim"))
    if were_alike and key_size != value_size and not config.get("dropout"):
        warnings.warn(
            f"{config.get('name')} (MultiHeadAttention): its value_dim is {value_size} and its "
            f"key_dim {key_size}, which Keras cannot compute on JAX; grow head_dim of the query "
            "and of the value to one size, or open the model in Keras on another backend",
            RuntimeWarning,
            stacklevel=2,
        )


def _with_channels(shape: Any, channels: int) -> Any:
    """Returns a shape with another last size; HDF5 files have a shape as an object with items."""
    if isinstance(shape, Mapping):
        return {**shape, "items": _with_channels(shape["items"], channels)}
    return [*shape[:-1], channels]


def _heads_masks_in(version: tuple[int, ...]) -> str | None:
    return "ignored" if version < (2, 10) else None


_HEADS_KEYWORDS = {
    *("query", "key", "value", "query_mask", "key_mask", "value_mask", "attention_mask"),
    *("return_attention_scores", "use_causal_mask"),
}


def _group_sizes(config: Config, params: Params) -> dict[str, Any]:
    _, heads, size = params["query"]["kernel"].shape
    shared = params["key"]["kernel"].shape[1]
    return {"num_query_heads": heads, "head_dim": size, "num_key_value_heads": shared}


class DotAttention(nn.Module):
    """Keras's Attention and AdditiveAttention: averages of values, weighted by queries and keys.

    Attributes:
        score: ``"dot"`` for products, ``"concat"`` for tanh of sums, ``"additive"`` for the same
            with a scale for each channel.
        use_scale: whether there is a learned scale.
        causal: whether positions attend to no later positions.
    """

    score: str
    use_scale: bool
    causal: bool

    @nn.compact
    def __call__(
        self,
        inputs: Sequence[jax.Array],
        mask: Sequence[jax.Array | None] | None = None,
        return_attention_scores: bool = False,
        use_causal_mask: bool = False,
    ) -> Any:
        query, value, key = (*inputs, inputs[1])[:3]
        ones = nn.initializers.ones
        scale: Any = 1
        if self.use_scale:
            sizes = query.shape[-1:] if self.score == "additive" else ()
            scale = self.param("scale", ones, sizes)
            scale = scale.reshape((1,) * (4 - scale.ndim) + sizes) if sizes else scale
        if self.score == "dot":
            scores = jnp.einsum("bqd,bkd->bqk", query, key) * scale
        else:
            sums = query[:, :, None] + key[:, None]
            if self.score == "additive":
                scores = jnp.sum(scale * jnp.tanh(sums), axis=-1)
            else:
                weight = self.param("concat_score_weight", ones, ())
                scores = jnp.sum(jnp.tanh(scale * sums), axis=-1) * weight
        of_query, of_value = (mask or (None, None))[:2]
        if of_value is not None:
            scores = jnp.where(of_value[:, None], scores, scores + _MASKED)
        if self.causal or use_causal_mask:
            scores = jnp.where(_apart(scores)[None] >= 0, scores, scores + _MASKED)
        weights = jax.nn.softmax(scores)
        y = jnp.einsum("bqk,bkd->bqd", weights, value)
        if of_query is not None:
            y = jnp.where(of_query[:, :, None], y, 0)
        return (y, weights) if return_attention_scores else y


def _dot_attention(config: Config, name: str | None, deterministic: bool) -> Function:
    evaluated_only(config, deterministic, "dropout")
    score = config.get("score_mode", "dot")
    if score not in ("dot", "concat"):
        raise ValueError(f"the score_mode {score!r} is unknown")
    return DotAttention(score, bool(config.get("use_scale")), bool(config.get("causal")), name=name)


def _additive_attention(config: Config, name: str | None, deterministic: bool) -> Function:
    evaluated_only(config, deterministic, "dropout")
    use_scale, causal = bool(config.get("use_scale", True)), bool(config.get("causal"))
    return DotAttention("additive", use_scale, causal, name=name)


def _dot_weights(config: Config) -> list[Weight]:
    scale = [plain("scale", "params/scale")] if config.get("use_scale") else []
    if config.get("score_mode") != "concat":
        return scale
    return [*scale, plain("concat_score_weight", "params/concat_score_weight")]


def _additive_weights(config: Config) -> list[Weight]:
    return [plain("scale", "params/scale")] if config.get("use_scale", True) else []


KINDS["MultiHeadAttention"] = Kind(
    module=_multi_head,
    keywords=_HEADS_KEYWORDS,
    weights=_heads_weights,
    axes=fixed(
        {
            "query_dense/kernel": "q num_heads key_dim",
            "query_dense/bias": "num_heads key_dim",
            "key_dense/kernel": "k num_heads key_dim",
            "key_dense/bias": "num_heads key_dim",
            "value_dense/kernel": "v num_heads value",
            "value_dense/bias": "num_heads value",
            "output_dense/kernel": "num_heads value ...",
            "output_dense/bias": "...",
        }
    ),
    told=_heads_told,
    inner_names={
        "query_dense": "query",
        "key_dense": "key",
        "value_dense": "value",
        "output_dense": "attention_output",
    },
    sizes=_heads_sizes,
    reads=lambda config, params: int(params["query"]["kernel"].shape[0]),
    on_mask=handed_on,
    takes_masks="by name",
    masks_in=lambda version: "taken" if version >= (3, 8) else _heads_masks_in(version),
)
KINDS["GroupQueryAttention"] = Kind(
    module=_group_query,
    keywords=_HEADS_KEYWORDS,
    weights=_heads_weights,
    told=_heads_told,
    own_name="GroupedQueryAttention",
    sizes=_group_sizes,
    on_mask=handed_on,
    takes_masks="by name",
    masks_in=_heads_masks_in,
)
KINDS["GroupedQueryAttention"] = KINDS["GroupQueryAttention"]  # what HDF5 files call it
for _class, _make, _weights in (
    ("Attention", _dot_attention, _dot_weights),
    ("AdditiveAttention", _additive_attention, _additive_weights),
):
    KINDS[_class] = Kind(
        module=_make,
        keywords={"mask", "return_attention_scores", "use_causal_mask"},
        weights=_weights,
        on_mask=handed_on,
        takes_masks="all",
    )
