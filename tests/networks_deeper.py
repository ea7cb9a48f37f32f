"""Networks and programs of any depth, for the tests of inserted layers."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from networks import data, f64, tokens

import dogwood_jax as dw
from dogwood_jax._front.deepen import _inserted
from dogwood_jax._plan.depth.fillings import new_layers

Dense = functools.partial(nn.Dense, param_dtype=jnp.float64)
Conv = functools.partial(nn.Conv, param_dtype=jnp.float64)
LayerNorm = functools.partial(nn.LayerNorm, param_dtype=jnp.float64)
BatchNorm = functools.partial(nn.BatchNorm, param_dtype=jnp.float64, use_running_average=True)
Attention = functools.partial(nn.MultiHeadDotProductAttention, param_dtype=jnp.float64)


def mlp(*sizes, activation=nn.relu):
    """Layers called dense_0, dense_1, ... with an activation between them."""

    class Mlp(nn.Module):
        @nn.compact
        def __call__(self, x):
            for i, size in enumerate(sizes):
                x = Dense(size, name=f"dense_{i}")(activation(x) if i else x)
            return x

    return Mlp()


def sequential(*sizes, activation=nn.relu):
    layers = [layer for size in sizes for layer in (Dense(size), activation)]
    return nn.Sequential(layers[:-1])


class Named(nn.Module):
    """Layers with names of their own."""

    names: tuple = ("a", "out")

    @nn.compact
    def __call__(self, x):
        for name in self.names[:-1]:
            x = nn.relu(Dense(5, name=name)(x))
        return Dense(3, name=self.names[-1])(x)


class Cnn(nn.Module):
    blocks: int = 1
    padding: str = "SAME"
    strides: int = 1
    kernel: tuple = (3, 5)
    training: bool = False

    @nn.compact
    def __call__(self, x):
        x = nn.relu(BatchNorm(name="norm")(Conv(4, (3, 3), name="conv")(x)))
        for i in range(1, self.blocks):
            x = Conv(4, self.kernel, self.strides, self.padding, name=f"conv_{i}")(x)
            norm = BatchNorm(name=f"norm_{i}", use_running_average=not self.training)
            x = nn.relu(norm(x))
        return Dense(3, name="head")(x.mean((1, 2)))


class PooledCnn(nn.Module):
    """Convolutions of every kind behind a pooling."""

    deep: bool = False

    @nn.compact
    def __call__(self, x):
        x = nn.max_pool(nn.relu6(Conv(4, (3, 3), name="conv")(x)), (2, 2), (2, 2), "SAME")
        if self.deep:
            x = nn.relu6(Conv(4, (3, 3), feature_group_count=4, name="depthwise")(x))
            x = nn.relu6(Conv(4, (3, 3), feature_group_count=2, name="grouped")(x))
            x = nn.relu6(Conv(4, (3, 3), kernel_dilation=2, name="dilated")(x))
            x = nn.relu6(Conv(4, (2, 4), name="even")(x))
        x = nn.avg_pool(x, (2, 2), padding="SAME")
        if self.deep:
            x = nn.relu(Conv(4, (3, 3), name="averaged")(x))
        return Dense(3, name="head")(x.reshape(x.shape[0], -1))


class Bottleneck(nn.Module):
    features: int

    @nn.compact
    def __call__(self, x):
        y = nn.relu(BatchNorm()(Conv(self.features, (3, 3), use_bias=False)(x)))
        y = BatchNorm()(Conv(self.features, (3, 3), use_bias=False)(y))
        if x.shape != y.shape:
            x = Conv(self.features, (1, 1), name="project")(x)
        return nn.relu(x + y)


class ResNet(nn.Module):
    stages: tuple = (1, 1)

    @nn.compact
    def __call__(self, x):
        for i, blocks in enumerate(self.stages):
            for _ in range(blocks):
                x = Bottleneck(3 + i)(x)
        return Dense(4)(x.mean((1, 2)))


class Block(nn.Module):
    """A pre-LN transformer block; post-LN for comparison."""

    post: bool = False
    attend: bool = True

    @nn.compact
    def __call__(self, x, _=None):
        if self.attend:
            y = LayerNorm(name="norm_1")(x)
            mask = nn.make_causal_mask(x[..., 0])
            x = x + Attention(2, name="attention")(y, y, mask=mask)
        y = nn.gelu(Dense(10, name="up")(LayerNorm(name="norm_2")(x)))
        x = x + Dense(x.shape[-1], name="down")(y)
        return (LayerNorm(name="norm_3")(x) if self.post else x), None


class Transformer(nn.Module):
    layers: int = 1
    scan: bool = False
    axis: int = 0  # of the layers that it runs over, as MaxText's param_scan_axis
    post: bool = False
    scale: float = 1.0

    @nn.compact
    def __call__(self, words):
        x = nn.Embed(7, 6, param_dtype=jnp.float64)(words) * self.scale
        if self.scan:
            axes, rngs = {"params": self.axis}, {"params": True}
            stack = nn.scan(
                nn.remat(Block), variable_axes=axes, split_rngs=rngs, length=self.layers
            )
            x, _ = stack(name="blocks", attend=False)(x, None)
        else:
            for i in range(self.layers):
                x, _ = Block(name=f"block_{i}", post=self.post)(x)
        return Dense(7, name="head")(LayerNorm(name="norm")(x))


VECTOR = data(5, 4)
IMAGE = data(5, 8, 8, 2)
WORDS = tokens(7, 2, 5)


def square(*names):
    return {name: f64(4, 4) for name in names}


def chain(*names):
    def apply(params, x):
        for name in names:
            x = jax.nn.relu(x @ params[name])
        return x

    return apply


def summed_wide(*names):
    """Layers in single precision, whose sums are made in double precision."""

    def apply(params, x):
        x = x.astype(jnp.float32)
        for name in names:
            branch = jnp.tanh(x) @ params[name].astype(jnp.float32)
            x = (x.astype(jnp.float64) + branch.astype(jnp.float64)).astype(jnp.float32)
        return x

    return apply


def multiplied_wide(*names):
    """Layers in single precision, whose products are made in double precision."""

    def apply(params, x):
        x = x.astype(jnp.float32)
        for name in names:
            kernel = params[name].astype(jnp.float32)
            x = jnp.dot(x, kernel, preferred_element_type=jnp.float64)
            x = jax.nn.relu(x).astype(jnp.float32)
        return x

    return apply


def before_last(layer):
    """A layer, then the last matrix."""
    return lambda p, x: layer(p, x) @ p["a"]


def loop(*, scale=1.0, reverse=False, numbers=None, collect=False, dtype=jnp.float64):
    """A scan over stacked residual layers, and over numbers of a count of layers."""

    def apply(p, x):
        def body(x, layer):
            w, i = layer
            y = (jnp.tanh(x).astype(dtype) @ w).astype(x.dtype)
            return x + y * (1 if i is None else i), x if collect else None

        stack = p["w"].astype(dtype), numbers and numbers(len(p["w"]))
        x, seen = lax.scan(body, x * scale, stack, reverse=reverse)
        return (x, seen) if collect else x

    return apply


def entries(p, x):
    """Layers written one after another, whose arrays have an entry for each of them."""
    first = x
    for i, (up, down) in enumerate(zip(p["u"], jnp.unstack(p["w"]), strict=True)):
        x = p["r"][i, 0] * x + p["r"][i][1] * first + p["s"][i]
        x = x + jnp.tanh(x @ up.astype(jnp.float32)) @ down
    return jax.nn.relu(x)


def own_inputs(read):
    """Layers that each take their own entry of something computed for all, as in Gemma 4."""

    def apply(p, x):
        each = read(p, x)
        for i in range(len(p["layers"])):
            layer = p["layers"][str(i)]
            x = x + (jnp.tanh(x @ layer["in"]) * each[:, i]) @ layer["out"]
        return x

    return apply


def layers_with_own_inputs(n, hidden=3):
    layers = {str(i): {"in": f64(4, hidden), "out": f64(hidden, 4)} for i in range(n)}
    arrays = {"each": f64(4, n, hidden), "table": f64(6, n, hidden), "scale": f64(hidden)}
    blocks = {"wide": f64(4, n * hidden), "rows": f64(6, n * hidden)}
    return {"layers": layers, "flat": f64(n, 1), "last": f64(4, hidden, n), **arrays, **blocks}


def rectified_entries(p, x):
    for i in range(len(p["w"])):
        x = jax.nn.relu(x @ p["w"][i])
    return x


def stacks(n, hidden=4):
    return {"r": f64(n, 2), "s": f64(n), "u": f64(n, 4, hidden), "w": f64(n, hidden, 4)}


def unrolled_loop(p, x):
    return lax.fori_loop(0, len(p["w"]), lambda i, x: x + jnp.tanh(x) @ p["w"][i], x)


def recurrent(p, x):
    h, _ = lax.scan(lambda h, x: (jnp.tanh(h @ p["u"] + x), None), jnp.zeros(4), x)
    return h @ p["a"]


def remembering(begin=0.0, rest=1.0):
    """A residual layer that sums up over time, weighed by exponential gates, as an sLSTM does."""

    def apply(p, x):
        def step(state, gate):
            total, count, most = state
            kept = jax.nn.log_sigmoid(gate) + most
            top = jnp.maximum(kept, gate)
            kept, new = jnp.exp(kept - top), jnp.exp(gate - top)
            total, count = kept * total + new * jnp.tanh(gate), kept * count + new * rest
            return (total, count, top), total / count

        none = jnp.zeros(4)
        return x + lax.scan(step, (none + begin, none, none), x @ p["b"])[1]

    return apply


def gated_recurrent(p, x):
    def step(h, x):
        gate = jax.nn.sigmoid(x @ p["d"])
        h = gate * h + (1 - gate) * jnp.tanh(x @ p["b"] + h @ p["c"])
        return h, h

    return x + lax.scan(step, jnp.zeros(4), x)[1]


def doubling(p, x):
    x = lax.while_loop(lambda x: jnp.sum(jnp.abs(x)) < 99, lambda x: x * 2 + jnp.sin(x), x)
    return x @ p["a"]


def branching(p, x):
    return lax.cond(x.sum() > 0, lambda: x @ p["a"], lambda: x)


def branching_inside(p, x):
    return lax.cond(x.sum() > 0, lambda: x @ p["a"], lambda: x + jnp.tanh(x) @ p["b"])


def residual(p, x):
    return x + jnp.tanh(x) @ p["b"]


def normalized(p, x, epsilon=1e-6):
    return x + x @ (p["b"] * lax.rsqrt(jnp.sum(p["b"] ** 2) + epsilon))


def dropped(p, x):
    kept = jax.random.bernoulli(jax.random.key(0), 0.5, x.shape)
    return x + jnp.where(kept, jnp.tanh(x) @ p["b"] / 0.5, 0)


def reduced(axis, f=jnp.sin):
    """A sum with a program of its own."""
    return lambda x: lax.reduce(x, 0.0, lambda a, b: a + f(b), (axis,))[None]


def same(p, x):
    return x


def scaled_branch(p, x):
    return x + p["g"].reshape(1, 1) * jnp.tanh(x @ p["b"])


def stack(n):
    return {"w": f64(n, 4, 4)}


class Gated(nn.Module):
    """Pre-norm attention with heads, and an MLP, of any sizes."""

    layers: int = 1
    hidden: int = 5
    heads: int = 2

    @nn.compact
    def __call__(self, x):
        for i in range(self.layers):
            y = LayerNorm(name=f"norm_{i}")(x)
            x += Attention(self.heads, qkv_features=3 * self.heads, name=f"attention_{i}")(y, y)
            x += Dense(x.shape[-1], name=f"down_{i}")(
                nn.relu(Dense(self.hidden, name=f"up_{i}")(x))
            )
        return x


def shapes_of(module, x):
    return jax.eval_shape(module.init, jax.random.key(0), x)


def relative(a, b):
    return float(jnp.max(jnp.abs(a - b)) / jnp.max(jnp.abs(a)))


def inserted(variables, found, target, *, key=None):
    """Returns variables with the edits that are proposed."""
    return _inserted(variables, dw.Growth(dw.Widths(()), (), inserted=found), target, key)


def proposed(old, shapes, new, target, *inputs, **options):
    """Returns the first edits that are proposed."""
    return next(
        new_layers(dw.trace(old, shapes, *inputs), dw.trace(new, target, *inputs), **options)
    )
