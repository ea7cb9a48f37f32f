"""Checkpoints on disk: ``dw.checkpoint`` against ``dw.grow`` of the same arrays."""

import json
import os
import struct
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import dogwood_jax as dw
from dogwood_jax import __main__ as command_line
from dogwood_jax import checkpoint, strategies
from dogwood_jax._base.trees import leaves_by_path
from dogwood_jax.checkpoint import draft, made

WIDTHS = {"stream": 6, "up": 20, "heads": 4, "vocabulary": 11}
KEY = jax.random.key(7)


def network(dtype=jnp.float32):
    """A network with a tied embedding, heads and a fused array, as flat arrays, and its growths."""

    def apply(tree, tokens):
        x = tree["embedding"][tokens]
        for layer in tree["layers"]:
            query, key, value = jnp.split(jnp.einsum("td,dnh->tnh", x, layer["qkv"]), 3, axis=1)
            heads = jax.nn.dot_product_attention(query, key, value, is_causal=True)
            x += jnp.einsum("tnh,nhd->td", heads, layer["out"])
            x += jax.nn.relu(x @ layer["up"] + layer["bias"][None]) @ layer["down"]
        return x @ tree["head"]

    rng = np.random.default_rng(0)

    def array(*shape):
        return jnp.asarray(rng.normal(size=shape) / 4, dtype)

    layers = [
        dict(qkv=array(6, 9, 4), out=array(3, 4, 6), up=array(6, 20), bias=array(20),
             down=array(20, 6))
        for _ in range(2)
    ]  # fmt: skip
    tree = {"embedding": array(11, 6), "layers": layers, "head": array(6, 5)}
    return apply, tree, jnp.arange(7)


def deeper(tree):
    return {**tree, "layers": [*tree["layers"], tree["layers"][-1]]}


def growths():
    """Growths of all kinds, by name."""
    apply, tree, tokens = network()
    widths = dw.trace(apply, tree, tokens)
    stream, *_, up = (widths.of(path, 1).name for path in ("embedding", "layers/0/up"))
    sizes = {stream: 10, up: 33, widths.of("layers/1/up", 1).name: 21}
    noise = strategies.replicate(noise=0.1)
    larger = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), deeper(tree))
    return {
        "wider": dw.plan(widths, sizes),
        "copies": dw.plan(widths, sizes, strategy=strategies.replicate()),
        "noise": dw.plan(widths, sizes, strategy=noise),
        "shrunk": dw.plan(widths, sizes, strategy=strategies.shrink_perturb()),
        "init": dw.plan(
            widths, sizes, strategy=strategies.zero_outgoing(init=jax.nn.initializers.he_normal())
        ),
        "deeper": dw.plan(widths, target=larger, target_apply=apply),
        "narrower": dw.plan(widths, keep={up: [*range(3, 18)], stream: [0, 1, 3, 5]}),
    }


GROWTHS = growths()


def save(tree, folder, shards):
    """Writes a tree as a checkpoint; returns its path."""
    from safetensors.flax import save_file

    arrays = {path.replace("/", "."): leaf for path, leaf in leaves_by_path(tree).items()}
    folder.mkdir(exist_ok=True)
    if shards == 1:
        save_file(arrays, folder / "small.safetensors", {"format": "pt"})
        return folder / "small.safetensors"
    names = sorted(arrays)
    files = {name: f"model-{n % shards}.safetensors" for n, name in enumerate(names)}
    for file in {*files.values()}:
        save_file({n: arrays[n] for n in names if files[n] == file}, folder / file)
    index = {"metadata": {"total_size": 1, "kept": "text"}, "weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def load(path):
    """Returns the arrays of a checkpoint by leaf path, read by the library."""
    from safetensors.flax import load_file

    files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
    arrays = {name: a for file in files for name, a in load_file(file).items()}
    return {name.replace(".", "/"): array for name, array in arrays.items()}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for path, array in expected.items():
        assert found[path].dtype == array.dtype, path
        assert found[path].shape == array.shape, path
        assert np.asarray(found[path]).tobytes() == np.asarray(array).tobytes(), path


@pytest.mark.parametrize("name", GROWTHS)
def test_a_checkpoint_grows_as_its_arrays_do(name, tmp_path, monkeypatch):
    place = list(GROWTHS).index(name)
    dtype, shards = (jnp.float32, jnp.bfloat16)[place % 2], (2, 1, 1)[place % 3]
    monkeypatch.setattr(made, "_PIECE", 128)
    _, tree, _ = network(dtype)
    source = save(tree, tmp_path / "small", shards)
    before = {path: path.read_bytes() for path in source.parent.rglob("*") if path.is_file()}
    out = tmp_path / "large"
    assert checkpoint.grow(source, GROWTHS[name], out, key=KEY) is None
    assert_same(load(out), leaves_by_path(dw.grow(tree, GROWTHS[name], key=KEY)))
    assert {path: path.read_bytes() for path in before} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["large", "small"]
    if shards > 1:
        index = json.loads((out / "model.safetensors.index.json").read_text())
        sizes = sum(array.nbytes for array in load(out).values())
        assert index["metadata"] == {"total_size": sizes, "kept": "text"}
        for tensor, file in index["weight_map"].items():
            assert tensor.replace(".", "/") in load(out / file)
