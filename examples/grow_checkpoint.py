"""Grow a language model on disk, in files like Llama's, without changing its outputs.

A small model is saved in two safetensors files, under Hugging Face's names. The growth is planned
from shapes. It enlarges everything: layers, stream, heads, MLP and vocabulary. It is applied from
file to file, and the larger module loads the result.

    python examples/grow_checkpoint.py [--out FOLDER]
"""

import argparse
import dataclasses
import json
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from command_line import run, say
from flax import nnx
from safetensors.numpy import save_file

import dogwood_jax as dw


@dataclasses.dataclass(frozen=True)
class Config:
    """The sizes of a model."""

    layers: int
    stream: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    vocabulary: int


SMALL = Config(layers=2, stream=64, heads=4, kv_heads=2, head_dim=16, mlp=160, vocabulary=256)
LARGE = Config(layers=3, stream=96, heads=8, kv_heads=4, head_dim=16, mlp=320, vocabulary=288)


def weights(rngs: nnx.Rngs, *shape: int) -> nnx.Param[jax.Array]:
    """Draws an array."""
    return nnx.Param(jax.random.normal(rngs.params(), shape) * shape[0] ** -0.5)


class Kernel(nnx.Module):
    """A matrix, or one matrix for each head."""

    def __init__(self, rngs: nnx.Rngs, *shape: int) -> None:
        self.w = weights(rngs, *shape)


class Dense(nnx.Module):
    """A matrix that Llama's names call ``kernel``."""

    def __init__(self, rngs: nnx.Rngs, *shape: int) -> None:
        self.kernel = weights(rngs, *shape)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Multiplies by the matrix."""
        return x @ self.kernel[...]


class Norm(nnx.Module):
    """Divides by the root of the mean square, and scales."""

    def __init__(self, rngs: nnx.Rngs, size: int) -> None:
        self.w = nnx.Param(jax.random.uniform(rngs.params(), (size,)))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalizes the last axis."""
        return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-5) * self.w[...]


class Embedding(nnx.Module):
    """A row for each token."""

    def __init__(self, rngs: nnx.Rngs, *shape: int) -> None:
        self.input_embedding = weights(rngs, *shape)


class Attention(nnx.Module):
    """Attention with rotary positions, and several query heads for each key-value head."""

    def __init__(self, config: Config, rngs: nnx.Rngs) -> None:
        self.q_proj = Kernel(rngs, config.stream, config.heads, config.head_dim)
        self.k_proj = Kernel(rngs, config.stream, config.kv_heads, config.head_dim)
        self.v_proj = Kernel(rngs, config.stream, config.kv_heads, config.head_dim)
        self.o_proj = Kernel(rngs, config.heads, config.head_dim, config.stream)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Attends from each position to itself and earlier positions."""
        projections = (self.q_proj, self.k_proj, self.v_proj)
        query, key, value = (jnp.einsum("btd,dnh->btnh", x, p.w[...]) for p in projections)
        attended = jax.nn.dot_product_attention(rotated(query), rotated(key), value, is_causal=True)
        return jnp.einsum("btnh,nhd->btd", attended, self.o_proj.w[...])


def rotated(x: jax.Array) -> jax.Array:
    """Rotates pairs of units by angles that grow with the position."""
    half = x.shape[-1] // 2
    angles = jnp.arange(x.shape[1])[:, None] * 10_000.0 ** (-jnp.arange(half) / half)
    cos, sin = jnp.cos(angles)[None, :, None], jnp.sin(angles)[None, :, None]
    first, second = x[..., :half], x[..., half:]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


class MLP(nnx.Module):
    """The gated MLP."""

    def __init__(self, config: Config, rngs: nnx.Rngs) -> None:
        self.gate_proj = Dense(rngs, config.stream, config.mlp)
        self.up_proj = Dense(rngs, config.stream, config.mlp)
        self.down_proj = Dense(rngs, config.mlp, config.stream)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Computes each position separately."""
        return self.down_proj(jax.nn.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nnx.Module):
    """Attention and MLP, each with a norm before it, added to the residual stream."""

    def __init__(self, config: Config, rngs: nnx.Rngs) -> None:
        self.attn, self.mlp = Attention(config, rngs), MLP(config, rngs)
        self.input_layernorm = Norm(rngs, config.stream)
        self.post_attention_layernorm = Norm(rngs, config.stream)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the stream with both outputs added."""
        x = x + self.attn(self.input_layernorm(x))
        return x + self.mlp(self.post_attention_layernorm(x))


class Llama(nnx.Module):
    """A decoder whose arrays have the names of ``dw.checkpoint.llama``."""

    def __init__(self, config: Config, rngs: nnx.Rngs) -> None:
        self.embedder = Embedding(rngs, config.vocabulary, config.stream)
        self.layers = nnx.List([Layer(config, rngs) for _ in range(config.layers)])
        self.final_norm = Norm(rngs, config.stream)
        self.lm_head = Kernel(rngs, config.stream, config.vocabulary)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Returns logits for the token after each token."""
        x = self.embedder.input_embedding[...][tokens]
        for layer in self.layers:
            x = layer(x)
        logits: jax.Array = self.final_norm(x) @ self.lm_head.w[...]
        return logits


def files_of(model: Llama, config: Config, folder: Path) -> None:
    """Saves a model in two files and an index, like Hugging Face's libraries."""
    arrays = {
        "model.embed_tokens.weight": model.embedder.input_embedding[...],
        "model.norm.weight": model.final_norm.w[...],
        "lm_head.weight": model.lm_head.w[...].T,
    }
    for i, layer in enumerate(model.layers):
        name = f"model.layers.{i}"
        for part in ("q", "k", "v"):
            kernel = getattr(layer.attn, f"{part}_proj").w[...]
            arrays[f"{name}.self_attn.{part}_proj.weight"] = kernel.reshape(config.stream, -1).T
        out = layer.attn.o_proj.w[...].reshape(-1, config.stream).T
        arrays[f"{name}.self_attn.o_proj.weight"] = out
        for part in ("gate", "up", "down"):
            kernel = getattr(layer.mlp, f"{part}_proj").kernel[...]
            arrays[f"{name}.mlp.{part}_proj.weight"] = kernel.T
        for part in ("input", "post_attention"):
            scale = getattr(layer, f"{part}_layernorm").w[...]
            arrays[f"{name}.{part}_layernorm.weight"] = scale
    files = {n: f"model-{1 + ('layers.1' in n)}-of-2.safetensors" for n in arrays}
    folder.mkdir()
    for file in {*files.values()}:
        inside = {n: np.ascontiguousarray(arrays[n]) for n in arrays if files[n] == file}
        save_file(inside, folder / file)
    index = {"metadata": {}, "weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def main(out: Path) -> float:
    """Grows a model on disk; returns the largest difference of logits."""
    tokens = jax.random.randint(jax.random.key(0), (2, 16), 0, SMALL.vocabulary)
    model = Llama(SMALL, nnx.Rngs(0))
    files_of(model, SMALL, out / "small")
    names = dw.checkpoint.llama(head_dim=SMALL.head_dim)
    say(dw.checkpoint.inspect(out / "small"))

    # The growth is planned from shapes, without arrays of either model.
    small = nnx.eval_shape(lambda: Llama(SMALL, nnx.Rngs(0)))
    large = nnx.eval_shape(lambda: Llama(LARGE, nnx.Rngs(0)))
    growth = dw.nnx.plan(dw.nnx.trace(small, tokens), target=large, interface=True)
    dw.checkpoint.grow(out / "small", growth, out / "large", key=jax.random.key(1), names=names)
    say(dw.checkpoint.inspect(out / "large"))

    wide = Llama(LARGE, nnx.Rngs(2))
    arrays = dw.checkpoint.load(out / "large", names=names)
    nnx.update(wide, numbered(arrays))
    logits = wide(tokens)[..., : SMALL.vocabulary]
    difference = float(jnp.abs(logits - model(tokens)).max())
    say(f"largest difference of logits: {difference:.1e}")
    return difference


def numbered(tree: object) -> object:
    """Returns a tree with lists replaced by dicts from number to item, as in a module's state."""
    if isinstance(tree, list):
        return {number: numbered(part) for number, part in enumerate(tree)}
    if isinstance(tree, dict):
        return {key: numbered(part) for key, part in tree.items()}
    return tree


def command(arguments: list[str] | None = None) -> None:
    """Runs the example in the folder given on the command line, or in a temporary folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--out", type=Path, help="output folder; by default a temporary one")
    options = parser.parse_args(arguments)
    if options.out is not None:
        options.out.mkdir(exist_ok=True)
        main(options.out)
    else:
        with tempfile.TemporaryDirectory() as folder:
            main(Path(folder))


if __name__ == "__main__":
    run(command)
