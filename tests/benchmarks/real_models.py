"""Models of a usual size: what ``plans`` traces and plans, with the widths that it grows.

Arrays are shapes alone. Those of Keras files are written with the layers of Keras first.
"""

import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import nnx
from large_models import deepseek, deepseek_v3, llama, llama_405b

import dogwood_jax as dw


class Model(NamedTuple):
    """A network by its function, the shapes of its arrays, its inputs, and names of widths.

    A ``*`` in a name stands for any number: ``layers/*/mlp`` for the width of each layer's MLP.
    """

    apply: Callable[..., Any]
    variables: Any
    inputs: tuple[Any, ...]
    names: Sequence[str]


def _image(size: int, channels: int = 3) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((8, size, size, channels), jnp.float32)


def _tokens(length: int, batch: int = 2) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((batch, length), jnp.int32)


def _linen(module: nn.Module, x: Any, *units: str) -> Model:
    variables = jax.eval_shape(module.init, jax.random.key(0), x)
    return Model(module.apply, variables, (x,), units)


class ResNet(nn.Module):
    """ResNet-50 with BatchNorm, as in its paper."""

    blocks: Sequence[int] = (3, 4, 6, 3)
    stem: int = 64

    @nn.compact
    def __call__(self, x: Any) -> Any:
        def norm(x: Any, name: str) -> Any:
            return nn.BatchNorm(use_running_average=True, name=name)(x)

        x = nn.Conv(self.stem, (7, 7), (2, 2), use_bias=False, name="stem")(x)
        x = nn.max_pool(nn.relu(norm(x, "stem_norm")), (3, 3), (2, 2), "SAME")
        for stage, blocks in enumerate(self.blocks):
            inner = 64 * 2**stage
            for block in range(blocks):
                name, strides = f"stage{stage}_{block}", (2, 2) if stage and not block else (1, 1)
                y = nn.Conv(inner, (1, 1), use_bias=False, name=f"{name}_a")(x)
                y = nn.relu(norm(y, f"{name}_norm_a"))
                y = nn.Conv(inner, (3, 3), strides, use_bias=False, name=f"{name}_b")(y)
                y = nn.relu(norm(y, f"{name}_norm_b"))
                y = nn.Conv(4 * inner, (1, 1), use_bias=False, name=f"{name}_c")(y)
                y = norm(y, f"{name}_norm_c")
                if not block:
                    x = nn.Conv(4 * inner, (1, 1), strides, use_bias=False, name=f"{name}_skip")(x)
                    x = norm(x, f"{name}_norm_skip")
                x = nn.relu(x + y)
        return nn.Dense(1000, name="head")(x.mean((1, 2)))


class UNet(nn.Module):
    """Eleven convolutions, two for each of five resolutions and one for the classes."""

    channels: Sequence[int] = (16, 32, 64)

    @nn.compact
    def __call__(self, x: Any) -> Any:
        def twice(x: Any, features: int, name: str) -> Any:
            x = nn.relu(nn.Conv(features, (3, 3), name=f"{name}_a")(x))
            return nn.relu(nn.Conv(features, (3, 3), name=f"{name}_b")(x))

        *outer, bottom = self.channels
        kept = []
        for level, features in enumerate(outer):
            kept.append(twice(x, features, f"down{level}"))
            x = nn.max_pool(kept[-1], (2, 2), (2, 2))
        x = twice(x, bottom, "bottom")
        for level, features in reversed([*enumerate(outer)]):
            batch, height, width, channels = x.shape
            x = jax.image.resize(x, (batch, 2 * height, 2 * width, channels), "nearest")
            x = twice(jnp.concatenate([kept[level], x], -1), features, f"up{level}")
        return nn.Conv(4, (1, 1), name="classes")(x)


class Block(nn.Module):
    """A transformer block: attention and an MLP, each behind a norm."""

    heads: int
    hidden: int
    norm: str = "layer"

    @nn.compact
    def __call__(self, x: Any) -> Any:
        def norm(name: str) -> Any:
            if self.norm == "layer":
                return nn.LayerNorm(name=name)
            return nn.BatchNorm(use_running_average=True, name=name)

        stream = x.shape[-1]
        x = x + nn.MultiHeadDotProductAttention(self.heads, name="attention")(norm("before")(x))
        y = nn.gelu(nn.Dense(self.hidden, name="up")(norm("between")(x)))
        return x + nn.Dense(stream, name="down")(y)


class ViT(nn.Module):
    """ViT-B/16."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        x = nn.Conv(768, (16, 16), (16, 16), name="patches")(x)
        x = x.reshape(len(x), -1, 768)
        first = self.param("class", nn.initializers.zeros, (1, 1, 768))
        x = jnp.concatenate([jnp.broadcast_to(first, (len(x), 1, 768)), x], 1)
        x = x + self.param("positions", nn.initializers.normal(0.02), (1, x.shape[1], 768))
        for block in range(12):
            x = Block(12, 3072, name=f"block{block}")(x)
        return nn.Dense(1000, name="head")(nn.LayerNorm(name="norm")(x)[:, 0])


class Classifier(nn.Module):
    """A transformer that classifies sequences of tokens."""

    blocks: int
    norm: str
    stream: int = 64
    hidden: int = 256

    @nn.compact
    def __call__(self, tokens: Any) -> Any:
        x = nn.Embed(1000, self.stream, name="embed")(tokens)
        for block in range(self.blocks):
            x = Block(4, self.hidden, self.norm, name=f"block{block}")(x)
        return nn.Dense(10, name="head")(nn.LayerNorm(name="norm")(x).mean(1))


class NnxBlock(nnx.Module):
    """The same block in NNX."""

    def __init__(self, stream: int, norm: str, rngs: nnx.Rngs) -> None:
        make = nnx.LayerNorm if norm == "layer" else nnx.BatchNorm
        self.before, self.between = make(stream, rngs=rngs), make(stream, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(4, stream, rngs=rngs, decode=False)
        self.up = nnx.Linear(stream, 4 * stream, rngs=rngs)
        self.down = nnx.Linear(4 * stream, stream, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        x = x + self.attention(self.before(x))
        return x + self.down(nnx.gelu(self.up(self.between(x))))


class NnxClassifier(nnx.Module):
    """The same classifier in NNX."""

    def __init__(self, blocks: int, norm: str, rngs: nnx.Rngs, stream: int = 64) -> None:
        self.embed = nnx.Embed(1000, stream, rngs=rngs)
        self.blocks = nnx.List([NnxBlock(stream, norm, rngs) for _ in range(blocks)])
        self.norm, self.head = nnx.LayerNorm(stream, rngs=rngs), nnx.Linear(stream, 10, rngs=rngs)

    def __call__(self, tokens: Any) -> Any:
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))


def _nnx(blocks: int, norm: str) -> Model:
    module = nnx.eval_shape(lambda: NnxClassifier(blocks, norm, nnx.Rngs(0)))
    module.eval()
    graph, state = nnx.split(module)
    apply = lambda state, tokens: nnx.merge(graph, state)(tokens)  # noqa: E731
    return Model(apply, state, (_tokens(128),), ("blocks/*/up", "embed"))


class Decoder(nn.Module):
    """GPT-2: learned positions, a tied embedding, a causal mask."""

    blocks: int = 12
    stream: int = 768
    hidden: int = 3072

    @nn.compact
    def __call__(self, tokens: Any) -> Any:
        embed = nn.Embed(50257, self.stream, name="embed")
        positions = self.param("positions", nn.initializers.normal(0.02), (1024, self.stream))
        x = embed(tokens) + positions[: tokens.shape[1]]
        mask = nn.make_causal_mask(tokens)
        for block in range(self.blocks):
            attention = nn.MultiHeadDotProductAttention(12, name=f"attention{block}")
            x = x + attention(nn.LayerNorm(name=f"before{block}")(x), mask=mask)
            y = nn.LayerNorm(name=f"between{block}")(x)
            y = nn.Dense(self.hidden, name=f"up{block}")(y)
            x = x + nn.Dense(self.stream, name=f"down{block}")(nn.gelu(y))
        return embed.attend(nn.LayerNorm(name="norm")(x))


def scan_of_states(params: Any, x: Any) -> Any:
    """Two layers like Mamba's: a gate beside a scan over time whose steps depend on the input."""
    for p in params["layers"]:
        y = x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6) * p["norm"]
        inner, gate = y @ p["in"], jax.nn.silu(y @ p["gate"])
        rate = jax.nn.softplus(inner @ p["rate"] + p["rate_bias"])
        reads, writes = inner @ p["read"], inner @ p["write"]

        def step(state: Any, at: Any, p: Any = p) -> Any:
            u, rate, read, write = at
            kept = jnp.exp(-rate[..., None] * jnp.exp(p["decay"]))
            state = state * kept + (rate * u)[..., None] * write[:, None, :]
            return state, jnp.einsum("bis,bs->bi", state, read)

        start = jnp.zeros((len(x), *p["decay"].shape))
        along = [jnp.moveaxis(a, 1, 0) for a in (inner, rate, reads, writes)]
        _, out = jax.lax.scan(step, start, along)
        x = x + ((jnp.moveaxis(out, 0, 1) + inner * p["skip"]) * gate) @ p["out"]
    return x @ params["head"]


def _mamba(stream: int = 256, inner: int = 512, states: int = 16) -> Model:
    def array(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.float32)

    layer = {
        "norm": array(stream),
        "in": array(stream, inner),
        "gate": array(stream, inner),
        "rate": array(inner, inner),
        "rate_bias": array(inner),
        "read": array(inner, states),
        "write": array(inner, states),
        "decay": array(inner, states),
        "skip": array(inner),
        "out": array(inner, stream),
    }
    params = {"layers": [layer] * 2, "head": array(stream, 100)}
    return Model(scan_of_states, params, (array(2, 2048, stream),), ("layers/*", "layers/*/read"))


def _from_keras(build: Callable[[Any], Any], x: Any, *units: str) -> Model:
    os.environ.setdefault("KERAS_BACKEND", "jax")
    import keras

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.keras"
        build(keras).save(path)
        module, variables = dw.keras_h5.load_model(path)
    return Model(module.apply, jax.tree.map(jax.typeof, variables), (x,), units)


def _xception(keras: Any) -> Any:
    """The mini-XCEPTION of faces and emotions: separable convolutions with skips, 64 x 64."""
    layers = keras.layers
    inputs = x = keras.Input((64, 64, 1))
    for _ in range(2):
        x = layers.Conv2D(8, 3, use_bias=False)(x)
        x = layers.ReLU()(layers.BatchNormalization()(x))
    for features in (16, 32, 64, 128):
        skip = layers.Conv2D(features, 1, strides=2, padding="same", use_bias=False)(x)
        skip = layers.BatchNormalization()(skip)
        for last in (False, True):
            x = layers.SeparableConv2D(features, 3, padding="same", use_bias=False)(x)
            x = layers.BatchNormalization()(x)
            x = x if last else layers.ReLU()(x)
        x = layers.Add()([layers.MaxPooling2D(3, 2, "same")(x), skip])
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(7, 3, padding="same")(x))
    return keras.Model(inputs, layers.Softmax()(x))


def _dilated(keras: Any) -> Any:
    """The residual network of SpliceAI: 10,010 positions, of which 10 are predicted."""
    layers = keras.layers
    inputs = keras.Input((10010, 4))
    x = layers.Conv1D(32, 1)(inputs)
    skip = layers.Conv1D(32, 1)(x)
    for window, dilation in ((11, 1), (11, 4), (21, 10), (41, 25)):
        for _ in range(4):
            y = x
            for _ in range(2):
                y = layers.ReLU()(layers.BatchNormalization()(y))
                y = layers.Conv1D(32, window, dilation_rate=dilation, padding="same")(y)
            x = layers.Add()([x, y])
        skip = layers.Add()([skip, layers.Conv1D(32, 1)(x)])
    x = layers.Cropping1D(5000)(skip)
    return keras.Model(inputs, layers.Softmax()(layers.Conv1D(3, 1)(x)))


def _float(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def _classifier(blocks: int, norm: str) -> Callable[[], Model]:
    return lambda: _linen(Classifier(blocks, norm), _tokens(128), "block*/up", "embed")


_OF_LLAMA = ("layers/*/mlp", "layers/*/attention[kv_heads]", "embed")
_OF_DEEPSEEK = ("layers/*/mlp", "layers/*/attention[heads]", "embed")

MODELS: dict[str, Callable[[], Model]] = {
    "ResNet-50, 224 x 224": lambda: _linen(ResNet(), _image(224), "stage0_0_a", "stage0_0_c"),
    "U-Net, 256 x 256": lambda: _linen(UNet(), _image(256), "down0_b", "bottom_a"),
    "ViT-B/16": lambda: _linen(ViT(), _image(224), "block0/up", "patches"),
    **{
        f"{name} classifier, {blocks} blocks, {norm} norm": make(blocks, norm)
        for name, make in (("Linen", _classifier), ("NNX", lambda *a: lambda: _nnx(*a)))
        for blocks in (2, 12)
        for norm in ("layer", "batch")
    },
    "GPT-2": lambda: _linen(Decoder(), _tokens(128), "up*", "embed"),
    "scan of 2,048 states": _mamba,
    "mini-XCEPTION, Keras": lambda: _from_keras(_xception, _float(2, 64, 64, 1), "conv2d"),
    "SpliceAI, Keras": lambda: _from_keras(_dilated, _float(1, 10010, 4), "conv1d", "conv1d_2"),
    "Llama-3 405B": lambda: Model(llama, llama_405b(), (_tokens(4096, 1),), _OF_LLAMA),
    "DeepSeek-V3": lambda: Model(deepseek, deepseek_v3(), (_tokens(4096, 1),), _OF_DEEPSEEK),
}
