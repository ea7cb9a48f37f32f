"""Checkpoints on disk: ``dw.checkpoint`` against ``dw.grow`` of the same arrays."""

import functools
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
import transformer
from networks import f64, fill
from safetensors.numpy import load_file, save_file
from tiers import in_tiers, long

import dogwood_jax as dw
from dogwood_jax import __main__ as command_line
from dogwood_jax import checkpoint, strategies
from dogwood_jax._base.trees import leaves_by_path, nested
from dogwood_jax.checkpoint import draft, made, new_files, safetensors_files, writers

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
        {
            **{"qkv": array(6, 9, 4), "out": array(3, 4, 6)},
            **{"up": array(6, 20), "bias": array(20), "down": array(20, 6)},
        }
        for _ in range(2)
    ]
    tree = {"embedding": array(11, 6), "layers": layers, "head": array(6, 5)}
    return apply, tree, jnp.arange(7)


def deeper(tree):
    return {**tree, "layers": [*tree["layers"], tree["layers"][-1]]}


@functools.cache
def traced():
    """The network's widths, and the names of three of them."""
    apply, tree, tokens = network()
    widths = dw.trace(apply, tree, tokens)
    places = "embedding", "layers/0/up", "layers/1/up"
    return widths, *(widths.of(path, 1).name for path in places)


def by_sizes(strategy=None):
    widths, stream, up, up_1 = traced()
    return dw.plan(widths, {stream: 10, up: 33, up_1: 21}, strategy=strategy)


def of_one_width(strategy):
    """Compiling a generator takes long, so this is one width."""
    widths, _, up, _ = traced()
    return dw.plan(widths, {up: 33}, strategy=strategy)


def by_layers(layers, **options):
    apply, tree, _ = network()
    larger = jax.eval_shape(lambda: functools.reduce(lambda t, _: deeper(t), range(layers), tree))
    return dw.plan(traced()[0], target=larger, target_apply=apply, **options)


def narrower():
    widths, stream, up, _ = traced()
    return dw.plan(widths, keep={up: [*range(3, 18)], stream: [0, 1, 3, 5]})


GROWTHS = {
    "wider": by_sizes,
    "copies": lambda: by_sizes(strategies.replicate()),
    "shrunk": lambda: by_sizes(strategies.shrink_perturb()),
    "noise": lambda: of_one_width(strategies.replicate(noise=0.1)),
    "init": lambda: of_one_width(strategies.zero_outgoing(init=jax.nn.initializers.he_normal())),
    "deeper": lambda: by_layers(1),
    "interposed": lambda: by_layers(2, depth=strategies.interpose(scaled=True)),
    "narrower": narrower,
}


@functools.cache
def growth_of(name):
    return GROWTHS[name]()


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


def save_by_orbax(tree, folder, **options):
    import orbax.checkpoint as ocp

    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(**options)) as saver:
        saver.save(folder, args=ocp.args.PyTreeSave(tree), force=True)


def trained(tx, tree, steps=2):
    """Returns the state of an optimizer after some updates."""
    state = tx.init(tree)
    for step in range(steps):
        gradient = jax.tree.map(lambda a, step=step: jnp.cos(a + step), tree)
        state = jax.jit(tx.update)(gradient, state, tree)[1]
    return state


ADAMW = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(optax.linear_schedule(0, 1e-3, 9)))


LONG = ("copies", "shrunk", "noise", "init", "narrower", "deeper")


@pytest.mark.parametrize("name", in_tiers(GROWTHS, long=LONG))
def test_a_checkpoint_grows_as_its_arrays_do(name, tmp_path, monkeypatch):
    place = list(GROWTHS).index(name)
    dtype, shards = (jnp.float32, jnp.bfloat16)[place % 2], (2, 1, 1)[place % 3]
    monkeypatch.setattr(made, "_PIECE", 128)
    _, tree, _ = network(dtype)
    source = save(tree, tmp_path / "small", shards)
    before = {path: path.read_bytes() for path in source.parent.rglob("*") if path.is_file()}
    out = tmp_path / "large"
    assert checkpoint.grow(source, growth_of(name), out, key=KEY) is None
    assert_same(load(out), leaves_by_path(dw.grow(tree, growth_of(name), key=KEY)))
    assert {path: path.read_bytes() for path in before} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["large", "small"]
    if shards > 1:
        index = json.loads((out / "model.safetensors.index.json").read_text())
        sizes = sum(array.nbytes for array in load(out).values())
        assert index["metadata"] == {"total_size": sizes, "kept": "text"}
        for tensor, file in index["weight_map"].items():
            assert tensor.replace(".", "/") in load(out / file)


def test_a_folder_with_one_file_becomes_a_folder(tmp_path):
    source = save(network()[1], tmp_path / "small", 1)
    checkpoint.grow(source.parent, growth_of("copies"), tmp_path / "large", key=KEY)
    assert [path.name for path in (tmp_path / "large").iterdir()] == [source.name]
    expected = leaves_by_path(dw.grow(network()[1], growth_of("copies"), key=KEY))
    assert_same(load(tmp_path / "large"), expected)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.long
def test_large_pieces_are_written_directly_and_zeros_left_out(dtype, tmp_path, monkeypatch):
    """With factors."""
    monkeypatch.setattr(made, "_PIECE", 5 * made.PAGE)
    small, large = (transformer.shapes(1, 64 * heads, heads, 96, 40) for heads in (2, 3))
    rng, tree = np.random.default_rng(0), {}
    for path, leaf in leaves_by_path(small).items():
        tree[path] = rng.normal(size=leaf.shape).astype(jnp.dtype(dtype))
        tree[path].flat[:2] = 1e-40, 0
    tree["copied"] = rng.normal(size=(70, 70)).astype(np.float32)
    growth = dw.plan(dw.trace(transformer.apply, small, transformer.TOKENS), target=large)
    assert any(leaf_map.factor != 1 for leaf_map in growth.maps.values())
    arrays = {path: jnp.asarray(array) for path, array in tree.items()}
    from safetensors.flax import save_file

    save_file({path.replace("/", "."): a for path, a in arrays.items()}, tmp_path / "small")
    handles, write = [], os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda *a: handles.append(a[0]) or write(*a))
    checkpoint.grow(tmp_path / "small", growth, tmp_path / "large", key=KEY)
    grown = leaves_by_path(dw.grow(nested(arrays), growth, key=KEY))
    expected = {path: np.array(array) for path, array in grown.items()}
    assert_same(load(tmp_path / "large"), expected)
    assert len({*handles}) == 2 or not hasattr(os, "O_DIRECT")
    monkeypatch.setattr(new_files, "_open_directly", lambda _: None)
    checkpoint.grow(tmp_path / "small", growth, tmp_path / "again", key=KEY)
    assert (tmp_path / "again").read_bytes() == (tmp_path / "large").read_bytes()


def test_threads_have_64_bits_where_the_caller_has(tmp_path):
    small, target = (
        {"up": jax.ShapeDtypeStruct((4, n), float), "down": jax.ShapeDtypeStruct((n, 2), float)}
        for n in (8, 12)
    )
    growth = dw.plan(
        dw.trace(lambda p, x: x @ p["up"] @ p["down"], small, f64(1, 4)), target=target
    )
    arrays = fill(small, 0)
    jax.config.update("jax_enable_x64", False)
    try:
        with jax.enable_x64(True):
            save_file({name: np.array(array) for name, array in arrays.items()}, tmp_path / "small")
            checkpoint.grow(tmp_path / "small", growth, tmp_path / "large", key=KEY)
            expected = dw.grow(arrays, growth, key=KEY)
    finally:
        jax.config.update("jax_enable_x64", True)
    assert_same(load(tmp_path / "large"), expected)


# Names --------------------------------------------------------------------------------------------


def test_names_map_tensors_to_leaves_and_back(tmp_path, monkeypatch):
    """Heads, transposed matrices and stacks of experts, as Hugging Face's files have them."""
    monkeypatch.setattr(made, "_PIECE", 128)
    rng = np.random.default_rng(0)

    def array(*shape):
        return rng.normal(size=shape).astype(np.float32)

    def apply(tree, x):
        layer = tree["layers"][0]
        heads = jnp.einsum("td,dnh->tnh", x @ tree["in"], layer["attn"]["q_proj"]["w"])
        x = jnp.einsum("tnh,nhd->td", heads, layer["attn"]["o_proj"]["w"])
        experts = jax.nn.relu(jnp.einsum("td,edf->tef", x, layer["mlp"]["up"]))
        return jnp.einsum("tef,efd->td", experts, layer["mlp"]["down"]) @ tree["out"]

    # d = 6, n = 3, h = 4, e = 2, f = 5
    file = {
        "model.in": array(3, 6),
        "model.out": array(6, 2),
        "model.layers.0.self_attn.q_proj.weight": array(12, 6),
        "model.layers.0.self_attn.o_proj.weight": array(6, 12),
        **{f"model.layers.0.mlp.experts.{e}.up.weight": array(5, 6) for e in range(2)},
        **{f"model.layers.0.mlp.experts.{e}.down.weight": array(6, 5) for e in range(2)},
    }
    qwen = checkpoint.qwen(head_dim=4)
    layer = "model.layers.{i}."
    names = {f"{layer}self_attn.{n}_proj.weight": qwen[f"{layer}self_attn.{n}_proj.weight"]
             for n in "qo"}  # fmt: skip
    for part in ("up", "down"):
        names[f"{layer}mlp.experts.{{e}}.{part}.weight"] = (
            f"layers/{{i}}/mlp/{part}[{{e}}]",
            "transpose",
        )
    names |= {"model.in": "in", "model.out": "out"}
    save_file(file, tmp_path / "small.safetensors")
    shapes = checkpoint.shapes(tmp_path / "small.safetensors", names=names)
    experts = {
        part: jnp.stack([file[f"model.layers.0.mlp.experts.{e}.{part}.weight"].T for e in range(2)])
        for part in ("up", "down")
    }
    attention = {
        "q_proj": {"w": file["model.layers.0.self_attn.q_proj.weight"].T.reshape(6, 3, 4)},
        "o_proj": {"w": file["model.layers.0.self_attn.o_proj.weight"].T.reshape(3, 4, 6)},
    }
    tree = {"in": file["model.in"], "out": file["model.out"],
            "layers": [{"attn": attention, "mlp": experts}]}  # fmt: skip
    assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, tree)
    larger = jax.tree.map(lambda a: a, shapes)
    sizes = {"q_proj": (8, 5, 7), "o_proj": (5, 7, 8)}
    for name, shape in sizes.items():
        larger["layers"][0]["attn"][name]["w"] = jax.ShapeDtypeStruct(shape, jnp.float32)
    for name, shape in {"up": (4, 8, 9), "down": (4, 9, 8)}.items():
        larger["layers"][0]["mlp"][name] = jax.ShapeDtypeStruct(shape, jnp.float32)
    larger |= {"in": jax.ShapeDtypeStruct((3, 8), jnp.float32),
               "out": jax.ShapeDtypeStruct((8, 2), jnp.float32)}  # fmt: skip
    x = jax.ShapeDtypeStruct((5, 3), jnp.float32)
    growth = dw.plan(dw.trace(apply, shapes, x), target=larger)
    checkpoint.grow(
        tmp_path / "small.safetensors", growth, tmp_path / "large", key=KEY, names=names
    )
    wide = dw.grow(tree, growth, key=KEY)
    layer = wide["layers"][0]
    expected = {
        "model.in": wide["in"],
        "model.out": wide["out"],
        "model.layers.0.self_attn.q_proj.weight": layer["attn"]["q_proj"]["w"].reshape(8, 35).T,
        "model.layers.0.self_attn.o_proj.weight": layer["attn"]["o_proj"]["w"].reshape(35, 8).T,
        **{f"model.layers.0.mlp.experts.{e}.{part}.weight": layer["mlp"][part][e].T
           for part in ("up", "down") for e in range(4)},
    }  # fmt: skip
    assert_same(load_file(tmp_path / "large"), expected)


def test_names_may_end_in_the_rest_and_leave_tensors_out(tmp_path):
    arrays = {
        "model.up.kernel": np.ones((4, 8), np.float32),
        "model.down.kernel": np.ones((8, 2), np.float32),
        "model.up.max": np.ones(3, np.float32),
    }
    save_file(arrays, tmp_path / "small.safetensors")
    names = {"model.{*layer}.max": None, "model.{*rest}": "params/{*rest}"}
    shapes = checkpoint.shapes(tmp_path / "small.safetensors", names=names)
    assert sorted(leaves_by_path(shapes)) == ["params/down/kernel", "params/up/kernel"]
    growth = dw.plan(dw.chain(shapes, ("params/up", "params/down")), {"up": 16})
    checkpoint.grow(
        tmp_path / "small.safetensors", growth, tmp_path / "large", key=KEY, names=names
    )
    found = {name: array.shape for name, array in load_file(tmp_path / "large").items()}
    assert found == {"model.up.kernel": (4, 16), "model.down.kernel": (16, 2)}


def test_what_names_cannot_say_is_listed(tmp_path):
    save_file({"a.b": np.ones((4, 6)), "c.0": np.ones(3)}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=r"a.b: .*'\(n h:128\) d -> d n h', found 'a b'\n- c.{i}"):
        checkpoint.shapes(
            tmp_path / "x.safetensors", names={"a.b": ("a", "a b"), "c.{i}": ("c", "-> a")}
        )
    with pytest.raises(checkpoint.CheckpointError, match="a.b: no row .*\n- c.0: expected 2 axes"):
        checkpoint.shapes(tmp_path / "x.safetensors", names={"c.{i}": ("c[{i}]", "transpose")})
    with pytest.raises(ValueError, match="x: expected a path.*\n- y.{i}: expected the same names"):
        names = {"x": 3, "y.{i}": "y", "{0}": "z", "w": "z"}
        checkpoint.shapes(tmp_path / "x.safetensors", names=names)
    with pytest.raises(ValueError, match="b: a is mapped to the leaf c, too"):
        checkpoint.shapes(tmp_path / "x.safetensors", names={"a": "c", "b": "c"})
    save_file({"q.w": np.ones(2), "q.w.max": np.ones(2)}, tmp_path / "y.safetensors")
    with pytest.raises(checkpoint.CheckpointError, match="q/w/max: q/w is a tensor itself"):
        checkpoint.load(tmp_path / "y.safetensors")
    with pytest.raises(checkpoint.CheckpointError, match="a.b: expected a multiple of 4 in shape"):
        names = {"a.b": ("a", "d (n h:4) -> d n h"), "c.{i}": "c[{i}]"}
        checkpoint.shapes(tmp_path / "x.safetensors", names=names)


@pytest.mark.parametrize(
    "names",
    [
        checkpoint.llama(head_dim=4),
        checkpoint.qwen(head_dim=4),
        *(checkpoint.gemma(head_dim=4, version=version) for version in (1, 2, 3)),
        checkpoint.gemma(head_dim=4, version=1, fused=True),
    ],
    ids=["llama", "qwen", "gemma1", "gemma2", "gemma3", "gemma7b"],
)
def test_ready_tables_name_each_leaf_once(names):
    table = checkpoint.names.Table(names, ".")
    addresses = [row if isinstance(row, str) else row[0] for row in names.values()]
    assert len({*addresses}) == len(addresses)
    tensors = [
        checkpoint.tensors.Tensor(
            # A layer has an MLP or experts.
            name.format(i=int("experts" in name), e=0),
            "float32",
            (8, 8) if isinstance(row, tuple) else (8,),
            "f",
        )
        for name, row in names.items()
    ]
    for path, leaf in table.leaves(tensors).items():
        again = table.stored(path, leaf.shape, "float32")
        assert [t.name for t in again.tensors] == [t.name for t in leaf.tensors]
        assert [t.shape for t in again.tensors] == [t.shape for t in leaf.tensors]


# What does not grow -------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["safetensors", "orbax"])
def test_what_does_not_grow_is_copied_as_it_is(form, tmp_path):
    """Also numbers of 64 bits where JAX has 32, and what the growth does not know."""
    rng = np.random.default_rng(0)
    tree = {
        "up": {"kernel": rng.normal(size=(4, 8)).astype("f4")},
        "down": {"kernel": rng.normal(size=(8, 2)).astype("f4")},
    }
    growth = dw.plan(dw.chain(tree, ("up", "down")), {"up": 16})
    others = {
        "ids": np.array([2**40, 1]),
        "scale": np.array(0.1),
        "flags": np.array([True, False, True]),
        "empty": np.zeros((0, 3), np.float16),
    }
    source, out = tmp_path / "small", tmp_path / "large"
    with jax.enable_x64(False):
        if form == "orbax":
            import orbax.checkpoint as ocp

            del others["empty"]  # Orbax does not save it
            ocp.PyTreeCheckpointer().save(source, {"model": tree, "others": others})
        else:
            flat = {f"{name}.kernel": layer["kernel"] for name, layer in tree.items()}
            save_file({**flat, **others}, source)
        checkpoint.grow(source, growth, out, key=KEY)
        wide = dw.grow(tree, growth, key=KEY)
        found = checkpoint.load(out)
        assert "64" in str(checkpoint.inspect(out))
    expected = {"model": wide, "others": others} if form == "orbax" else {**wide, **others}
    assert_same(leaves_by_path(found), leaves_by_path(expected))


def test_new_rows_are_not_looked_at_before_they_are_made(tmp_path, monkeypatch):
    """Memory that is used again held NaN, and rows that come from no old one were not read."""
    monkeypatch.setattr(made, "_PIECE", 64)
    nan = np.full(4096, np.nan, np.float32).view(np.uint8)
    scratch = types.SimpleNamespace(old=nan.copy(), new=nan.copy())
    monkeypatch.setattr(made, "_SCRATCH", scratch)
    monkeypatch.setattr(writers, "_WAITING", 0)
    tree = {"a": {"kernel": np.ones((3, 4), "f4")}, "b": {"kernel": np.ones((4, 6), "f4")},
            "c": {"kernel": np.ones((6, 2), "f4")}}  # fmt: skip
    widths = dw.chain(tree, ("a", "b", "c"))
    strategy = {"b": strategies.replicate()}
    growth = dw.plan(widths, {"a": 32, "b": 12}, strategy=strategy)
    save_file({f"{name}.kernel": layer["kernel"] for name, layer in tree.items()}, tmp_path / "x")
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    checkpoint.grow(tmp_path / "x", growth, tmp_path / "y", key=KEY)
    found = leaves_by_path(checkpoint.load(tmp_path / "y"))
    assert_same(found, leaves_by_path(dw.grow(tree, growth, key=KEY)))


# What goes wrong ----------------------------------------------------------------------------------


@pytest.fixture
def small(tmp_path):
    return save(network()[1], tmp_path / "small", 1)


@pytest.mark.parametrize("form", ["safetensors", long("orbax")])
def test_a_run_that_fails_goes_on_where_it_stopped(form, tmp_path, monkeypatch):
    monkeypatch.setattr(made, "_PIECE", 128)
    tree, growth, tx = network()[1], growth_of("wider"), None
    if form == "orbax":
        small, tx = tmp_path / "small", ADAMW
        save_by_orbax({"model": tree, "opt_state": trained(tx, tree)}, small)
    else:
        small = save(tree, tmp_path / "small", 1)
    whole, out = tmp_path / "whole", tmp_path / "large"
    written, write, last = [], os.pwrite, 10**6

    def fails(handle, data, offset):
        written.append(offset)
        if len(written) == last:
            raise OSError(28, "No space left on device")
        return write(handle, data, offset)

    monkeypatch.setattr(os, "pwrite", fails)
    checkpoint.grow(small, growth, whole, key=KEY, tx=tx)
    every = len(written)
    written, last = [], every // 2
    with pytest.raises(OSError, match="No space left") as failed:
        checkpoint.grow(small, growth, out, key=KEY, tx=tx)
    assert "the same call resumes" in failed.value.__notes__[0]
    assert not out.exists()
    if form == "orbax":  # as if the journal had been written, and the array had not
        copy = shutil.copytree(tmp_path / "large.growing", tmp_path / "torn.growing")
        shutil.copy(tmp_path / "large.growing.journal", tmp_path / "torn.growing.journal")
        shutil.rmtree(copy / "model.embedding")
        last = 10**6
        checkpoint.grow(small, growth, tmp_path / "torn", key=KEY, tx=tx)
        found = leaves_by_path(checkpoint.load(tmp_path / "torn"))
        assert_same(found, leaves_by_path(checkpoint.load(whole)))
        shutil.rmtree(tmp_path / "torn")
    written, last = [], 10**6
    checkpoint.grow(small, growth, out, key=KEY, tx=tx)
    assert len(written) < 0.8 * every
    assert sorted(p.name for p in tmp_path.iterdir()) == ["large", "small", "whole"]
    if form == "safetensors":
        assert out.read_bytes() == whole.read_bytes()
        return
    assert_same(*(leaves_by_path(checkpoint.load(path)) for path in (out, whole)))
    # Of another source with the same names, nothing is taken.
    written, last = [], every // 2
    with pytest.raises(OSError, match="No space left"):
        checkpoint.grow(small, growth, tmp_path / "other", key=KEY, tx=tx)
    last, tree = 10**6, jax.tree.map(jnp.negative, tree)
    save_by_orbax({"model": tree, "opt_state": trained(tx, tree)}, small)
    checkpoint.grow(small, growth, tmp_path / "other", key=KEY, tx=tx)
    found = leaves_by_path(checkpoint.load(tmp_path / "other")["model"])
    assert_same(found, leaves_by_path(dw.grow(tree, growth, key=KEY)))


@pytest.mark.parametrize("damage", ["no file", "no file, killed", "cut journal", "no room"])
def test_a_draft_that_was_damaged_is_completed(small, damage, tmp_path, monkeypatch):
    out, folder = tmp_path / "large", tmp_path / "large.growing"
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(PermissionError("no")))
        with pytest.raises(PermissionError) as failed:
            checkpoint.grow(small, growth_of("wider"), out, key=KEY)
    assert "the same call resumes" in failed.value.__notes__[0]
    journal = tmp_path / "large.growing.journal"
    if damage.startswith("no file"):
        (folder / small.name).unlink()
        if "killed" in damage:
            write = safetensors_files._NewLeaf.write

            def write_others(self, start, entries):
                if (small.name, "layers.0.out") not in self.names:
                    write(self, start, entries)

            with monkeypatch.context() as patch:
                patch.setattr(safetensors_files._NewLeaf, "write", write_others)
                patch.setattr(draft.Draft, "note", lambda *_: None)
                patch.setattr(draft, "_move", lambda *_: (_ for _ in ()).throw(OSError("killed")))
                with pytest.raises(OSError, match="killed"):
                    checkpoint.grow(small, growth_of("wider"), out, key=KEY)
    elif damage == "cut journal":
        journal.write_bytes(journal.read_bytes()[:-5])
    else:
        with monkeypatch.context() as patch:
            patch.setattr(draft.shutil, "disk_usage", lambda _: type("", (), {"free": -(10**9)}))
            with pytest.raises(OSError, match="are free"):
                checkpoint.grow(small, growth_of("wider"), out, key=KEY)
        assert (folder / small.name).stat().st_size
    checkpoint.grow(small, growth_of("wider"), out, key=KEY)
    assert_same(load(out), leaves_by_path(dw.grow(network()[1], growth_of("wider"), key=KEY)))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["large", "small"]


def test_a_draft_of_something_else_is_begun_anew(small, tmp_path, monkeypatch):
    out = tmp_path / "large"
    with monkeypatch.context() as patch:
        patch.setattr(draft, "_move", lambda *_: (_ for _ in ()).throw(OSError("killed")))
        with pytest.raises(OSError, match="killed"):
            checkpoint.grow(small, growth_of("wider"), out, key=jax.random.key(1))
    checkpoint.grow(small, growth_of("wider"), out, key=KEY)
    assert_same(load(out), leaves_by_path(dw.grow(network()[1], growth_of("wider"), key=KEY)))


@pytest.mark.long
def test_a_killed_run_leaves_what_it_has_written(small, tmp_path):
    out, growth = tmp_path / "large", tmp_path / "growth.json"
    growth.write_text(dw.to_json(growth_of("wider")))
    program = (
        "import os, sys\n"
        "from dogwood_jax import __main__ as command_line\n"
        "from dogwood_jax.checkpoint.draft import Draft\n"
        "note = Draft.note\n"
        "def dies(self, file, tensor):\n"
        "    note(self, file, tensor)\n"
        "    if tensor == 'layers.0.out': os._exit(9)\n"
        "Draft.note = dies\n"
        "command_line.main(sys.argv[1:])\n"
    )
    arguments = ["grow", str(small), str(growth), str(out), "--seed", "7"]
    assert subprocess.run([sys.executable, "-c", program, *arguments], check=False).returncode == 9
    assert not out.exists()
    assert "stream" not in command_line.main(arguments)
    assert_same(load(out), leaves_by_path(dw.grow(network()[1], growth_of("wider"), key=KEY)))


@pytest.mark.parametrize(
    "kind", ["folder", "draft", "journal", "fifo", "source", "file of source", "missing parent"]
)
def test_only_regular_files_are_replaced(small, kind, tmp_path):
    out = tmp_path / "out"
    if kind in ("folder", "draft"):
        mine = out if kind == "folder" else tmp_path / "out.growing"
        mine.mkdir()
        (mine / "mine").write_text("kept")
    elif kind == "journal":
        (tmp_path / "out.growing.journal").write_text("mine")
    elif kind == "fifo":
        os.mkfifo(out)
    source = small.parent if kind == "file of source" else small
    out = {"source": small, "file of source": small, "missing parent": tmp_path / "no" / "out"}.get(
        kind, out
    )
    before = small.read_bytes()
    expected = {
        "source": "is the source",
        "file of source": "is the source",
        "draft": "expected a draft",
        "journal": "expected a draft",
        "missing parent": "no such folder",
    }.get(kind, "expected a new name")
    with pytest.raises((OSError, ValueError), match=expected):
        checkpoint.grow(source, growth_of("wider"), out, key=KEY)
    assert small.read_bytes() == before
    left = [path.name for path in tmp_path.rglob("*") if path.name == "mine"]
    assert left == ["mine"] * (kind in ("folder", "draft"))


def test_a_missing_key_and_infinite_weights_are_refused(small, tmp_path):
    with pytest.raises(ValueError, match="pass key="):
        checkpoint.grow(small, growth_of("wider"), tmp_path / "large")
    tree = network()[1]
    tree["layers"][1]["up"] = tree["layers"][1]["up"].at[0, 0].set(jnp.nan)
    source = save(tree, tmp_path / "bad", 1)
    with pytest.raises(ValueError, match="layers/1/up: holds NaN"):
        checkpoint.grow(source, growth_of("wider"), tmp_path / "large", key=KEY)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad", "small"]


def header(text, data=b"", length=None):
    text = text if isinstance(text, bytes) else json.dumps(text).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(start, stop, shape=(4,)):
    return {"dtype": "F32", "shape": list(shape), "data_offsets": [start, stop]}


HOSTILE = {
    "overlap": header({"a": tensor(0, 16), "b": tensor(8, 24)}, bytes(24)),
    "huge header": header({"a": tensor(0, 16)}, bytes(16), 2**62),
    "short": header({"a": tensor(0, 16)}, bytes(8)),
    "huge shape": header({"a": tensor(0, 16, (2**62, 8))}, bytes(16)),
    "parent": header({"../a": tensor(0, 16)}, bytes(16)),
    "parent below": header({"b/../../a": tensor(0, 16)}, bytes(16)),
    "list": header([1], b""),
    "unknown dtype": header({"a": {**tensor(0, 2), "dtype": "F4"}}, bytes(2)),
    "empty": b"",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_get_one_clear_error(name, tmp_path):
    (tmp_path / "x.safetensors").write_bytes(HOSTILE[name])
    with pytest.raises(checkpoint.CheckpointError, match=r"x.safetensors: expected .*; "):
        checkpoint.inspect(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"a": "../x.safetensors"}, "names of .safetensors files in the same folder"),
        ({"a": "/etc/passwd"}, "names of .safetensors files in the same folder"),
        ({"a": "1.safetensors", "b": "1.safetensors"}, "lack tensors of the index: b"),
        ({"b": "1.safetensors"}, "expected a in no file, as the index says"),
        ({"a": "journal.jsonl"}, "names of .safetensors files"),
        ({"a": "x\0.safetensors"}, "names of .safetensors files"),
        ([], "expected a JSON object with a weight_map"),
    ],
)
def test_hostile_indexes_get_one_clear_error(weight_map, message, tmp_path):
    save_file({"a": np.ones(3)}, tmp_path / "1.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(checkpoint.CheckpointError, match=message):
        checkpoint.shapes(tmp_path)


def test_the_command_line_inspects_and_grows(small, tmp_path):
    (tmp_path / "growth.json").write_text(dw.to_json(growth_of("wider")))
    assert "layers.0.up    6x20   float32" in command_line.main(["inspect", str(small)])
    out = tmp_path / "large"
    arguments = ["grow", str(small), str(tmp_path / "growth.json"), str(out), "--seed", "7"]
    assert command_line.main(arguments).startswith(f"{out}: embedding has 10 units, ")
    assert_same(load(out), leaves_by_path(dw.grow(network()[1], growth_of("wider"), key=KEY)))
    with pytest.raises(SystemExit, match=r"^dogwood_jax: --seed N: needed"):
        command_line.main(arguments[:-2])


# Orbax --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tx", "name", "options"),
    [
        (ADAMW, "wider", {}),
        long(dw.growable(ADAMW, renewable=True), "deeper", {"use_ocdbt": False, "use_zarr3": True}),
        long(optax.contrib.dog(), "interposed", {}),
    ],
    ids=["adamw", "renewable", "dog"],
)
@pytest.mark.filterwarnings("ignore:.*[Ss]harding.*")
def test_a_checkpoint_of_orbax_grows_with_the_optimizer(tx, name, options, tmp_path, monkeypatch):
    import orbax.checkpoint as ocp

    monkeypatch.setattr(made, "_PIECE", 128)
    apply, tree, tokens = network()
    growth = growth_of(name)
    state = trained(tx, tree)
    saver = ocp.StandardCheckpointer()
    save_by_orbax({"model": tree, "opt_state": state, "step": 7}, tmp_path / "small", **options)
    assert checkpoint.grow(tmp_path / "small", growth, tmp_path / "large", key=KEY, tx=tx) is None
    wide = dw.grow(tree, growth, key=KEY)
    wide_state = dw.grow_opt_state(state, growth, tx, variables=wide)
    target = {"model": wide, "opt_state": wide_state, "step": 0}
    found = saver.restore(tmp_path / "large", jax.tree.map(np.zeros_like, target))
    assert found["step"] == 7
    assert_same(*(leaves_by_path({**t, "step": np.int64(7)}) for t in (found, target)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["large", "small"]
    if name == "deeper":  # and once more, with step counts of units
        again = dw.plan(dw.trace(apply, wide, tokens), {"embedding": 12})
        checkpoint.grow(tmp_path / "large", again, tmp_path / "larger", key=KEY, tx=tx)
        wider = dw.grow(wide, again, key=KEY)
        state = dw.grow_opt_state(wide_state, again, tx, variables=wider)
        target = {"model": wider, "opt_state": state, "step": np.int64(7)}
        found = saver.restore(tmp_path / "larger", jax.tree.map(np.zeros_like, target))
        assert_same(*(leaves_by_path({**t, "step": np.int64(7)}) for t in (found, target)))


@pytest.mark.filterwarnings("ignore:.*[Ss]harding.*")
def test_a_step_of_a_checkpoint_manager_becomes_a_step(tmp_path):
    """The manager of the larger network finds it, with its metrics, and restores it."""
    import orbax.checkpoint as ocp

    _, tree, _ = network()
    growth, state = growth_of("wider"), trained(ADAMW, tree)
    best = ocp.CheckpointManagerOptions(best_fn=lambda metrics: metrics["loss"])
    with ocp.CheckpointManager(tmp_path / "small", options=best) as manager:
        saved = ocp.args.StandardSave({"params": tree, "opt_state": state})
        manager.save(7, args=saved, metrics={"loss": 0.5})
    (tmp_path / "large").mkdir()
    checkpoint.grow(tmp_path / "small/7", growth, tmp_path / "large/7", key=KEY, tx=ADAMW)
    wide = dw.grow(tree, growth, key=KEY)
    target = {"params": wide, "opt_state": dw.grow_opt_state(state, growth, ADAMW)}
    with ocp.CheckpointManager(tmp_path / "large", options=best) as manager:
        assert manager.latest_step() == 7
        like = ocp.args.StandardRestore(jax.tree.map(np.zeros_like, target))
        assert_same(*map(leaves_by_path, (manager.restore(7, args=like), target)))
        assert manager.metrics(7) == {"loss": 0.5}


def in_blocks(path):
    return re.sub(r"(^|/)layers/(\d+)/", r"\1block_\2/", path)


@pytest.mark.parametrize("name", ["wider", "deeper"])
@pytest.mark.long
def test_names_say_where_orbax_has_the_network(name, tmp_path):
    """Layers under other names, with an optimizer's state in which they have these names, too."""
    _, tree, _ = network()
    growth = growth_of(name)
    blocks = nested({in_blocks(path): leaf for path, leaf in leaves_by_path(tree).items()})
    state = trained(ADAMW, blocks)
    save_by_orbax({"model": blocks, "optimizer": {"opt_state": state}}, tmp_path / "small")
    names = {"model/block_{i}/{*rest}": "layers/{i}/{*rest}", "model/{*rest}": "{*rest}"}
    shapes = checkpoint.shapes(tmp_path / "small", names=names)
    assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, tree)
    assert_same(*map(leaves_by_path, (checkpoint.load(tmp_path / "small", names=names), tree)))
    checkpoint.grow(tmp_path / "small", growth, tmp_path / "large", key=KEY, tx=ADAMW, names=names)
    wide = dw.grow(tree, growth, key=KEY)
    wide_state = dw.grow_opt_state(trained(ADAMW, tree), growth, ADAMW, variables=wide)
    expected = {"model": wide, "optimizer": {"opt_state": wide_state}}
    expected = {in_blocks(path): leaf for path, leaf in leaves_by_path(expected).items()}
    assert_same(leaves_by_path(checkpoint.load(tmp_path / "large")), expected)


@pytest.mark.long
def test_a_tree_as_maxtext_saves_it_grows(tmp_path):
    """Parameters below two keys, empty entries of a state, and keys that are left out."""
    apply, tree, tokens = network()
    tree = {**tree, "layers": {"block": tree["layers"][0]}}

    def first(variables, tokens):
        return apply({**variables, "layers": [variables["layers"]["block"]]}, tokens)

    growth = dw.plan(dw.trace(first, tree, tokens), {"layers/block/up": 33})
    tx = optax.adamw(optax.linear_schedule(0, 1e-3, 9))

    def as_saved(tree, state):
        adam, _, schedule = state
        mu, nu = {"params": adam.mu}, {"params": adam.nu}
        adam = {"count": adam.count, "mu": mu, "nu": nu}
        return {"params": {"params": tree}, "opt_state": [adam, None, {"count": schedule.count}]}

    state = trained(tx, tree)
    saved = as_saved(tree, state) | {"nnx_aux": {"model": {"key": np.arange(4)}}, "step": 7}
    save_by_orbax(saved, tmp_path / "small")
    names = {"params/params/{*rest}": "{*rest}", "nnx_aux/{*rest}": None}
    checkpoint.grow(tmp_path / "small", growth, tmp_path / "large", key=KEY, tx=tx, names=names)
    wide = dw.grow(tree, growth, key=KEY)
    found = checkpoint.load(tmp_path / "large")
    assert found.pop("step") == 7
    expected = as_saved(wide, dw.grow_opt_state(state, growth, tx))
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    assert_same(*map(leaves_by_path, (found, expected)))
    # Without names=, the network is found and so is the state above it, and all else is kept.
    checkpoint.grow(tmp_path / "small", growth, tmp_path / "kept", key=KEY, tx=tx)
    assert_same(
        leaves_by_path(checkpoint.load(tmp_path / "kept")),
        leaves_by_path({**expected, "nnx_aux": saved["nnx_aux"], "step": np.int64(7)}),
    )
    with pytest.raises(ValueError, match="holds the state of an optimizer at opt_state; pass"):
        checkpoint.grow(tmp_path / "small", growth, tmp_path / "none", key=KEY, names=names)


@pytest.mark.long
def test_what_names_cannot_say_of_orbax_is_listed(tmp_path):
    _, tree, _ = network()
    save_by_orbax({"model": tree}, tmp_path / "small")

    def grow(names, growth="wider"):
        checkpoint.grow(tmp_path / "small", growth_of(growth), tmp_path / "x", key=KEY, names=names)

    with pytest.raises(
        ValueError, match=r"can only rename .*\n- model/head: head\n- model/x: x\[0\]"
    ):
        grow({"model/head": ("head", "transpose"), "model/x": "x[0]"})
    with pytest.raises(ValueError, match="layers/0/up: is up/0, which an earlier row calls x/0/y;"):
        grow({"x/{i}/y": "up/{i}", "model/layers/{j}/up": "up/{j}"})
    with pytest.raises(ValueError, match="the growth's network; .*\n- head: not in the"):
        grow({"model/layers/{*rest}": "layers/{*rest}", "model/embedding": "embedding"})
    names = {f"model/layers/{n}/{{*rest}}": f"layers/{n}/{{*rest}}" for n in range(2)}
    with pytest.raises(
        ValueError, match="lacks arrays of the larger network; add one:\n- layers/2/bias: no"
    ):
        grow(names | {"model/embedding": "embedding", "model/head": "head"}, "deeper")


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:.*[Ss]harding.*")
def test_arrays_that_others_weigh_grow_on_disk(tmp_path):
    import orbax.checkpoint as ocp

    def apply(tree, x):  # blocks whose outputs are scaled, as by LayerScale
        def layer(x, block):
            y = jax.nn.standardize(x) @ block["kernel"]
            return x + y * block["scale"][None], None

        x, _ = jax.lax.scan(layer, x @ tree["in"], tree["blocks"])
        return jax.nn.standardize(x) @ tree["out"]

    rng = np.random.default_rng(0)

    def array(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    blocks = {"kernel": array(3, 6, 6), "scale": array(3, 6)}
    tree = {"in": array(4, 6), "blocks": blocks, "out": array(6, 2)}
    growth = dw.plan(dw.trace(apply, tree, jnp.ones((2, 4))), {"in": 8})
    tx = optax.contrib.schedule_free_sgd(1e-3)  # its state holds other parameters
    state = tx.init(jax.tree.map(lambda array: 2 * array, tree))
    save_by_orbax({"model": tree, "opt_state": state}, tmp_path / "small")
    checkpoint.grow(tmp_path / "small", growth, tmp_path / "large", key=KEY, tx=tx)
    wide = dw.grow(tree, growth, key=KEY)
    wide_state = dw.grow_opt_state(state, growth, tx, variables=wide)
    target = {"model": wide, "opt_state": wide_state}
    saver = ocp.StandardCheckpointer()
    found = saver.restore(tmp_path / "large", jax.tree.map(np.zeros_like, target))
    assert_same(leaves_by_path(found), leaves_by_path(target))
    source = save(tree, tmp_path / "files", 1)
    checkpoint.grow(source, growth, tmp_path / "grown", key=KEY)
    assert_same(load(tmp_path / "grown"), leaves_by_path(wide))


@pytest.mark.parametrize("name", ["../kept", "/kept", "w/above"])
def test_names_of_orbax_that_lead_elsewhere_are_refused(name, tmp_path):
    tree = {"up": {"kernel": np.ones((4, 8))}, "down": {"kernel": np.ones((8, 2))}}
    others = {"w": np.ones(1), name: np.ones(3)}
    save_by_orbax({"model": tree, **others}, tmp_path / "small")
    growth = dw.plan(dw.chain(tree, ("up", "down")), {"up": 16})
    with pytest.raises(checkpoint.CheckpointError, match=f"'{name}': "):
        checkpoint.grow(tmp_path / "small", growth, tmp_path / "large", key=KEY)
    assert [path.name for path in tmp_path.iterdir()] == ["small"]
