"""Networks of the table: NNX, Haiku and Equinox."""

from typing import Any

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
from flax import nnx
from networks import (
    Model,
    changes,
    data,
    fixed,
    grows,
    interface,
    network,
    spatial,
    tokens,
)


@network(
    {
        "conv": grows(
            "wide",
            5,
            "-> conv/{kernel[3],bias[0]} norm/{mean,var,scale,bias}[0] <- hidden/kernel[0]",
        ),
        "conv[2]": interface("channels", 2, "<- conv/kernel[2]"),
        "hidden": grows("hidden", 6, "-> hidden/{kernel[1],bias[0]} <- head/kernel[0]"),
        "head": interface("out", 3, "-> head/{kernel[1],bias[0]}"),
        "hidden[0.0]": fixed("spatial dimension", 2, "<- hidden/kernel[0]"),
        "hidden[0.1]": fixed("spatial dimension", 2, "<- hidden/kernel[0]"),
        **spatial("conv/kernel", 3, 3),
    }
)
def nnx_cnn(channels: int = 2, wide: int = 5, hidden: int = 6, out: int = 3) -> Model:
    """A functional split: parameters, batch statistics, and random state with its keys."""

    class Cnn(nnx.Module):
        def __init__(self, rngs: Any) -> None:
            self.conv = nnx.Conv(channels, wide, (3, 3), rngs=rngs)
            self.norm = nnx.BatchNorm(wide, use_running_average=True, rngs=rngs)
            self.drop = nnx.Dropout(0.5, deterministic=True, rngs=rngs)
            self.hidden = nnx.Linear(wide * 4, hidden, rngs=rngs)
            self.head = nnx.Linear(hidden, out, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            x = nnx.relu(self.norm(self.conv(x)))
            x = nnx.max_pool(x, (2, 2), (2, 2))
            x = self.drop(nnx.relu(self.hidden(x.reshape(x.shape[0], -1))))
            return self.head(x)

    graph, state = nnx.split(nnx.eval_shape(lambda: Cnn(nnx.Rngs(0))))
    return Model(lambda state, x: nnx.merge(graph, state)(x), state, (data(2, 4, 4, channels),))


@network(
    {
        "layers/0": grows("hidden", 5, "-> layers/0/{weight,bias}[0] <- layers/1/weight[1]"),
        "layers/0[1]": interface("n_in", 4, "<- layers/0/weight[1]"),
        "layers/1": interface("out", 3, "-> layers/1/{weight,bias}[0]"),
    }
)
def equinox_mlp(n_in: int = 4, hidden: int = 5, out: int = 3) -> Model:
    """``eqx.partition`` and ``eqx.combine``; the sizes are static in the module."""

    def make(key: Any) -> Any:
        return eqx.nn.MLP(n_in, out, hidden, 1, jax.nn.softplus, key=key)

    model = eqx.filter_eval_shape(make, jax.random.key(0))
    shapes, static = eqx.partition(model, lambda x: isinstance(x, jax.ShapeDtypeStruct))

    def apply(params: Any, x: Any) -> Any:
        return jax.vmap(eqx.combine(params, static))(x)

    return Model(apply, shapes, (data(3, n_in),))


@network(
    {
        "conv": grows(
            "wide",
            6,
            "-> {conv,norm}/{weight,bias}[0] <- "
            "attention/{query_proj,key_proj,value_proj}/weight[1]",
        ),
        "conv/weight[1]": interface("channels", 2, "<- conv/weight[1]"),
        "attention/query_proj[heads]": grows(
            "heads",
            3,
            "-> attention/{query_proj,key_proj,value_proj}/weight[0] <- "
            "attention/output_proj/weight[1]",
        ),
        "attention/query_proj[head_dim]": changes(
            "dim",
            4,
            "-> attention/query_proj/weight[0] -> attention/key_proj/weight[0]",
        ),
        "attention/value_proj[value_dim]": grows(
            "value", 8, "-> attention/value_proj/weight[0] <- attention/output_proj/weight[1]"
        ),
        "attention/output_proj": grows(
            "after", 7, "-> attention/output_proj/{weight,bias}[0] <- head/weight[1]"
        ),
        "head": interface("out", 5, "-> head/{weight,bias}[0]"),
        "conv/weight[2]": fixed("spatial dimension", 3, "-> conv/weight[2]"),
        "conv[1]": fixed("because its size is 1", 1, "-> conv/bias[1]"),
        "conv[2]": fixed("because its size is 1", 1, "-> conv/bias[2]"),
        "conv[3]": fixed("spatial dimension", 3, "-> conv/weight[3]"),
    }
)
def equinox_conv_attention(
    channels: int = 2,
    wide: int = 6,
    heads: int = 3,
    dim: int = 4,
    value: int = 8,
    after: int = 7,
    out: int = 5,
) -> Model:
    """Channels first, GroupNorm of one group each, attention over pixels, under ``filter_jit``."""

    class Net(eqx.Module):
        conv: Any
        norm: Any
        attention: Any
        head: Any

        def __call__(self, x: Any) -> Any:
            x = jax.nn.relu(self.norm(self.conv(x)))
            x = x.reshape(x.shape[0], -1).T
            x = self.attention(x, x, x)
            return self.head(jnp.mean(x, axis=0))

    def make(key: Any) -> Any:
        attention = eqx.nn.MultiheadAttention(
            heads,
            wide,
            qk_size=dim,
            vo_size=value,
            output_size=after,
            use_output_bias=True,
            key=key,
        )
        return Net(
            eqx.nn.Conv2d(channels, wide, 3, key=key),
            eqx.nn.GroupNorm(wide, wide),
            attention,
            eqx.nn.Linear(after, out, key=key),
        )

    model = eqx.filter_eval_shape(make, jax.random.key(0))
    shapes, static = eqx.partition(model, lambda x: isinstance(x, jax.ShapeDtypeStruct))

    @eqx.filter_jit
    def apply(params: Any, x: Any) -> Any:
        return jax.vmap(eqx.combine(params, static))(x)

    return Model(apply, shapes, (data(2, channels, 5, 4),))


@network(
    {
        "0/conv": grows(
            "wide",
            5,
            "-> 0/conv/{w[3],b[0]} 1/norm/~/{mean_ema,var_ema}/{hidden,average}[3] "
            "0/norm/{scale,offset}[3] <- 0/up/w[3]",
        ),
        "0/conv[2]": interface("channels", 2, "<- 0/conv/w[2]"),
        "0/up": grows("hidden", 6, "-> 0/up/{w[2],b[0]} <- 0/head/w[0]"),
        "0/head": interface("out", 3, "-> 0/head/{w[1],b[0]}"),
        "1/norm/~/mean_ema/average[0]": grows("", 1, "-> 1/norm/~/mean_ema/average[0]"),
        "1/norm/~/mean_ema/average[1]": grows("", 1, "-> 1/norm/~/mean_ema/average[1]"),
        "1/norm/~/mean_ema/average[2]": grows("", 1, "-> 1/norm/~/mean_ema/average[2]"),
        "1/norm/~/var_ema[0]": grows("", 1, "-> 1/norm/~/var_ema/average[0]"),
        "1/norm/~/var_ema[1]": grows("", 1, "-> 1/norm/~/var_ema/average[1]"),
        "1/norm/~/var_ema[2]": grows("", 1, "-> 1/norm/~/var_ema/average[2]"),
        "1/norm/~/mean_ema[0]": fixed(
            "because its size is 1",
            1,
            "-> 1/norm/~/{mean_ema,var_ema}/hidden[0] 0/norm/scale[0]",
        ),
        "1/norm/~/mean_ema[1]": fixed(
            "because its size is 1",
            1,
            "-> 1/norm/~/{mean_ema,var_ema}/hidden[1] 0/norm/scale[1]",
        ),
        "1/norm/~/mean_ema[2]": fixed(
            "because its size is 1",
            1,
            "-> 1/norm/~/{mean_ema,var_ema}/hidden[2] 0/norm/scale[2]",
        ),
        "0/norm[0]": fixed("because its size is 1", 1, "-> 0/norm/offset[0]"),
        "0/norm[1]": fixed("because its size is 1", 1, "-> 0/norm/offset[1]"),
        "0/norm[2]": fixed("because its size is 1", 1, "-> 0/norm/offset[2]"),
        "0/head[0.0]": fixed("spatial dimension", 4, "<- 0/head/w[0]"),
        "0/head[0.1]": fixed("spatial dimension", 4, "<- 0/head/w[0]"),
        **spatial("0/conv/w", 3, 3),
        **spatial("0/up/w", 2, 2),
    }
)
def haiku_cnn(channels: int = 2, wide: int = 5, hidden: int = 6, out: int = 3) -> Model:
    """Haiku's modules with state: (parameters, state) as variables, new state as an output."""

    def forward(x: Any) -> Any:
        with jax.numpy_rank_promotion("allow"):
            x = hk.Conv2D(wide, 3, name="conv")(x)
            x = hk.BatchNorm(True, True, 0.9, name="norm")(x, is_training=True)
            x = hk.Conv2DTranspose(hidden, 2, 2, name="up")(jax.nn.relu(x))
            x = hk.avg_pool(jax.nn.relu(x), (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
            return hk.Linear(out, name="head")(hk.Flatten()(x))

    net = hk.without_apply_rng(hk.transform_with_state(forward))
    x = data(2, 4, 4, channels)
    shapes = jax.eval_shape(net.init, jax.random.key(0), x)
    return Model(lambda variables, x: net.apply(*variables, x), list(shapes), (x,))


@network(
    {
        "embed": grows("embed", 5, "-> embed/embeddings[1] <- attention/{query,key,value}/w[0]"),
        "embed[vocab]": interface("vocab", 9, "-> embed/embeddings[0]"),
        "attention/query[heads]": grows(
            "heads", 2, "-> attention/{query,key,value}/{w[1],b[0]} <- attention/linear/w[0]"
        ),
        "attention/query[head_dim]": changes(
            "dim",
            3,
            "-> attention/query/{w[1],b[0]} -> attention/key/{w[1],b[0]}",
        ),
        "attention/value[value_dim]": grows(
            "value", 4, "-> attention/value/{w[1],b[0]} <- attention/linear/w[0]"
        ),
        "attention/linear": grows("model", 7, "-> attention/linear/{w[1],b[0]} <- head/w[0]"),
        "head": interface("out", 6, "-> head/{w[1],b[0]}"),
    }
)
def haiku_attention(
    vocab: int = 9,
    embed: int = 5,
    heads: int = 2,
    dim: int = 3,
    value: int = 4,
    model: int = 7,
    out: int = 6,
) -> Model:
    def forward(words: Any) -> Any:
        with jax.numpy_rank_promotion("allow"):
            x = hk.Embed(vocab, embed, name="embed")(words)
            attention = hk.MultiHeadAttention(
                heads,
                dim,
                value_size=value,
                model_size=model,
                name="attention",
                w_init=hk.initializers.VarianceScaling(),
            )
            mask = jnp.tril(jnp.ones((1, 1, 4, 4)))
            return hk.Linear(out, name="head")(attention(x, x, x, mask=mask))

    net = hk.without_apply_rng(hk.transform(forward))
    words = tokens(vocab, 2, 4)
    return Model(net.apply, jax.eval_shape(net.init, jax.random.key(0), words), (words,))
