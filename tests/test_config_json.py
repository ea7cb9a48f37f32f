"""``config.json`` beside checkpoints that grow: numbers against arrays, and the files beside it."""

import json
import os
import shutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

import dogwood_jax as dw
from dogwood_jax import __main__ as command_line
from dogwood_jax import checkpoint
from dogwood_jax.checkpoint import config_json, draft
from dogwood_jax.checkpoint.tensors import Tensor

KEY = jax.random.key(7)
SMALL = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
}
EXPERTS = {"num_experts": 3, "num_local_experts": 3, "moe_intermediate_size": 12}
KINDS = [
    *("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3", "gemma3_text"),
    *("mixtral", "qwen3_moe", "olmo2"),
]


def shapes(kind="llama", dense=(), **changes):
    """Returns the shapes of a model's tensors, by name, for numbers other than ``SMALL``'s."""
    n = {**SMALL, **EXPERTS, **changes}
    d, mlp = n["hidden_size"], n["intermediate_size"]
    queries, keys = (n[f"num_{h}_heads"] * n["head_dim"] for h in ("attention", "key_value"))
    found = {"model.embed_tokens.weight": (n["vocab_size"], d), "model.norm.weight": (d,)}
    if not kind.startswith("gemma"):
        found["lm_head.weight"] = (n["vocab_size"], d)
    for i in range(n["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        found[f"{layer}.self_attn.q_proj.weight"] = (queries, d)
        found[f"{layer}.self_attn.k_proj.weight"] = (keys, d)
        found[f"{layer}.self_attn.v_proj.weight"] = (keys, d)
        found[f"{layer}.self_attn.o_proj.weight"] = (d, queries)
        if kind.startswith(("qwen3", "gemma3")):
            found[f"{layer}.self_attn.q_norm.weight"] = (n["head_dim"],)
        if kind == "olmo2":
            found[f"{layer}.self_attn.q_norm.weight"] = (queries,)
        if kind == "mixtral":
            found[f"{layer}.block_sparse_moe.gate.weight"] = (n["num_local_experts"], d)
            for e in range(n["num_local_experts"]):
                expert = f"{layer}.block_sparse_moe.experts.{e}"
                found |= {f"{expert}.w1.weight": (mlp, d), f"{expert}.w2.weight": (d, mlp)}
        elif kind == "qwen3_moe" and i not in dense:
            found[f"{layer}.mlp.gate.weight"] = (n["num_experts"], d)
            for e in range(n["num_experts"]):
                name = f"{layer}.mlp.experts.{e}.up_proj.weight"
                found[name] = (n["moe_intermediate_size"], d)
        else:
            found[f"{layer}.mlp.up_proj.weight"] = (mlp, d)
            found[f"{layer}.mlp.down_proj.weight"] = (d, mlp)
    return found


def config(kind="llama", **changes):
    """Returns what the small model's file says."""
    numbers = dict(SMALL)
    if kind == "mixtral":
        numbers["num_local_experts"] = 3
    if kind == "qwen3_moe":
        numbers |= {"num_experts": 3, "moe_intermediate_size": 12}
    numbers = {**numbers, "model_type": kind, "rope_theta": 1e4, **changes}
    return {name: number for name, number in numbers.items() if number is not None}


def new_config(folder, new, *, old=None, before=None, given=None):
    """Returns what the larger model's file says."""
    before = config() if before is None else before
    (folder / "config.json").write_text(json.dumps(before))
    kind = before.get("model_type", "llama")
    old, new = (
        [Tensor(name, "float32", shape, "f") for name, shape in every.items()]
        for every in (shapes(kind) if old is None else old, new)
    )
    text = config_json.config_of(folder, old, new, given)
    return None if text is None else json.loads(text)


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_follow_from_arrays(kind, tmp_path):
    larger = {"vocab_size": 48, "hidden_size": 20, "intermediate_size": 30, "num_hidden_layers": 3}
    experts = {
        "mixtral": {"num_local_experts": 5},
        "qwen3_moe": {"num_experts": 5, "moe_intermediate_size": 18},
    }.get(kind, {})
    larger |= experts
    before = config(kind)
    if kind == "qwen3_moe":
        larger["intermediate_size"] = 24  # no array shows it
    found = new_config(tmp_path, shapes(kind, **larger), before=before)
    assert found == {**before, **larger}
    assert [*found] == [*before]
    # What is given is the same, or an error.
    given = {**larger, "rope_theta": 5e5}
    assert new_config(tmp_path, shapes(kind, **larger), before=before, given=given) == {
        **before,
        **given,
    }
    if kind == "qwen3_moe":
        del larger["intermediate_size"]
    for number, size in larger.items():
        with pytest.raises(ValueError, match=rf"\n- {number}: expected {size}, as .* shows; got 7"):
            new_config(tmp_path, shapes(kind, **larger), before=before, given={number: 7})


def test_all_that_does_not_fit_is_listed(tmp_path):
    with pytest.raises(ValueError, match="do not fit the arrays") as error:
        given = {"vocab_size": 40, "intermediate_size": 30.0, "num_hidden_layers": True}
        new = shapes(vocab_size=48, intermediate_size=30, num_hidden_layers=1)
        new_config(tmp_path, new, given=given)
    assert str(error.value).splitlines()[1:] == [
        "- vocab_size: expected 48, as model.embed_tokens.weight (48, 16) shows; got 40",
        "- intermediate_size: expected 30, as model.layers.0.mlp.up_proj.weight (30, 16) shows; "
        "got 30.0",
        "- num_hidden_layers: expected 1, as model.layers.0.self_attn.q_proj.weight (16, 16) shows;"
        " got True",
    ]


# Heads --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "qwen3", "olmo2"])
@pytest.mark.parametrize("heads", [(8, 4, 4), (4, 2, 8), (8, 4, 8), (8, 2, 4), (4, 2, 4)], ids=str)
def test_heads_follow_where_they_are_certain(kind, heads, tmp_path):
    """Norms of heads show the size of a head; so does a product that stays; else one is given."""
    names = "num_attention_heads", "num_key_value_heads", "head_dim"
    sizes = dict(zip(names, heads, strict=True))
    # By default, transformers divides the stream by the heads.
    before, new = config(kind, head_dim=None), shapes(kind, hidden_size=32, **sizes)
    expected = {**before, "hidden_size": 32, **sizes}
    for number in names:
        given = {number: sizes[number]}
        assert new_config(tmp_path, new, before=before, given=given) == expected
        assert new_config(tmp_path, new, before=before, given=sizes) == expected
        # Without a norm of heads, the size of a head that is given is believed first.
        blamed = number if number != "head_dim" or kind == "qwen3" else "num_attention_heads"
        with pytest.raises(ValueError, match=f"\n- {blamed}: expected"):
            wrong = {**sizes, number: sizes[number] * 2}
            new_config(tmp_path, new, before=before, given=wrong)
    rows = heads[0] * heads[2]
    if kind == "qwen3" or rows == 16 or heads[1] * heads[2] == 8:
        assert new_config(tmp_path, new, before=before) == expected
        return
    with pytest.raises(ValueError, match="give num_attention_heads or head_dim") as error:
        new_config(tmp_path, new, before=before)
    assert (
        f"q_proj.weight ({rows}, 32) shows num_attention_heads * head_dim = {rows}\n  give"
        in str(error.value)
    )
    with pytest.raises(ValueError, match="a divisor of it"):
        new_config(tmp_path, new, before=before, given={"num_attention_heads": 7})
    with pytest.raises(ValueError, match="head_dim: expected a divisor"):
        new_config(tmp_path, new, before=before, given={"head_dim": 7})


@pytest.mark.parametrize(
    "stale",
    [
        {"num_attention_heads": 2},
        {"num_key_value_heads": 1},
        {"head_dim": 2},
        {"num_attention_heads": None, "num_key_value_heads": None, "head_dim": None},
    ],
    ids=str,
)
def test_heads_of_a_file_that_does_not_fit_are_not_believed(stale, tmp_path):
    with pytest.raises(ValueError, match="give num_attention_heads or head_dim"):
        new_config(tmp_path, shapes(hidden_size=20), before=config(**stale))


# Layers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["layer_types", "mlp_layer_types"])
def test_lists_have_an_entry_for_each_layer(name, tmp_path):
    before, deeper = config(**{name: ["full", "sliding"]}), shapes(num_hidden_layers=3)
    assert new_config(tmp_path, shapes(), before=before) == before
    with pytest.raises(ValueError, match=f"{name}: expected 3 entries, .*; got 2 entries"):
        new_config(tmp_path, deeper, before=before)
    with pytest.raises(ValueError, match=f"{name}: expected 3 entries, .*; got 'all'"):
        new_config(tmp_path, deeper, before=before, given={name: "all"})
    types = ("full", "sliding", "full")
    found = new_config(tmp_path, deeper, before=before, given={name: types})
    assert found == {**before, name: [*types], "num_hidden_layers": 3}


def test_layers_without_experts_are_where_the_file_says(tmp_path):
    before, old = config("qwen3_moe", mlp_only_layers=[0]), shapes("qwen3_moe", dense=[0])
    assert new_config(tmp_path, old, old=old, before=before) == before
    new = shapes("qwen3_moe", dense=[0, 2], num_hidden_layers=4)
    with pytest.raises(ValueError, match=r"mlp_only_layers: expected \[0, 2\], .* got \[0\] with"):
        new_config(tmp_path, new, old=old, before=before)
    for given in ({"mlp_only_layers": [0, 2]}, {"mlp_only_layers": [], "decoder_sparse_step": 2}):
        found = new_config(tmp_path, new, old=old, before=before, given=given)
        assert found == {**before, "num_hidden_layers": 4, **given}


@pytest.mark.parametrize(
    ("kind", "number", "tensor", "shape"),
    [
        ("llama", "intermediate_size", "layers.1.mlp.up_proj", (30, 16)),
        ("llama", "num_key_value_heads", "layers.1.self_attn.k_proj", (12, 16)),
        ("llama", "vocab_size", "lm_head", (48, 16)),
        ("gemma", "hidden_size", "norm", (20,)),
        ("qwen3_moe", "num_experts", "layers.1.mlp.gate", (5, 16)),
        ("qwen3_moe", "num_experts", "layers.1.mlp.experts.3.up_proj", (12, 16)),
        ("mixtral", "num_local_experts", "layers.1.block_sparse_moe.gate", (5, 16)),
        ("mixtral", "num_local_experts", "layers.1.block_sparse_moe.experts.3.w1", (24, 16)),
    ],
)
def test_arrays_of_several_sizes_have_no_number(kind, number, tensor, shape, tmp_path):
    name = f"model.{tensor}.weight".replace("model.lm_head", "lm_head")
    new = shapes(kind)
    if "experts.3" not in name:
        assert name in new
    with pytest.raises(ValueError, match=f"{number}.*: expected one size .* in {name}"):
        new_config(tmp_path, {**new, name: shape}, before=config(kind))


@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe"])
def test_experts_are_counted_by_either_name(kind, tmp_path):
    """Transformers 5 writes ``num_local_experts`` for Qwen, too."""
    names = {"num_experts", "num_local_experts"}
    new = shapes(kind, num_experts=5, num_local_experts=5)
    for said in ({"num_experts"}, {"num_local_experts"}, names):
        before = config(kind, **{name: 3 if name in said else None for name in names})
        expected = {**before, **dict.fromkeys(said, 5)}
        assert new_config(tmp_path, new, before=before) == expected
        for name in said:
            with pytest.raises(ValueError, match=f"\n- {name}: expected 5, .*; got 3"):
                new_config(tmp_path, new, before=before, given={name: 3})


def test_tensors_that_the_model_lacks_or_needs_are_named(tmp_path):
    with pytest.raises(ValueError, match="num_local_experts: .* llama has none\n  give another"):
        new_config(tmp_path, shapes("mixtral"), old=shapes())
    given = {"model_type": "mixtral", "architectures": ["MixtralForCausalLM"]}
    found = new_config(tmp_path, shapes("mixtral"), old=shapes(), given=given)
    assert found == {**config(), **given, "num_local_experts": 3}
    fewer = {name: shape for name, shape in shapes().items() if "up_proj" not in name}
    with pytest.raises(ValueError, match=r"intermediate_size: no tensor .* model.layers.#.mlp.up"):
        new_config(tmp_path, fewer)
    with pytest.raises(ValueError, match="num_hidden_layers: no tensor"):
        new_config(tmp_path, {"h.0.attn.weight": (16, 48)})


def test_other_models_need_a_file_by_hand(tmp_path):
    for before in ({}, {"model_type": "phi3"}, {"model_type": []}, config(text_config={})):
        assert new_config(tmp_path, shapes(), old=shapes(), before=before) is None
        with pytest.raises(ValueError, match="config= needs a folder with this file"):
            new_config(tmp_path, shapes(), old=shapes(), before=before, given={})
    with pytest.raises(TypeError, match="config= must hold JSON values only"):
        new_config(tmp_path, shapes(), given={"vocab_size": np.arange(3)})


def test_a_damaged_file_gets_one_clear_error(tmp_path, monkeypatch):
    monkeypatch.setattr(config_json, "_MAX_CONFIG", 200_000)
    for data in (b"[]", b"{", b"[" * 100_000, b"\xff", b" " * 200_001 + b"{}"):
        (tmp_path / "config.json").write_bytes(data)
        with pytest.raises(checkpoint.CheckpointError, match=r"config.json: expected .*; "):
            config_json.config_of(tmp_path, [], [], None)


# A folder in, a folder out ------------------------------------------------------------------------


def apply(tree, tokens):
    """A decoder without rotary positions, which takes its sizes from its arrays."""
    x = tree["embedder"]["input_embedding"][tokens]
    for layer in tree["layers"]:
        heads = layer["attn"]
        h = normed(x, layer["input_layernorm"])
        q, k, v = (jnp.einsum("td,dnh->tnh", h, heads[f"{part}_proj"]["w"]) for part in "qkv")
        h = jax.nn.dot_product_attention(q, k, v, is_causal=True, scale=0.5)
        x += jnp.einsum("tnh,nhd->td", h, heads["o_proj"]["w"])
        h, mlp = normed(x, layer["post_attention_layernorm"]), layer["mlp"]
        h = jax.nn.silu(h @ mlp["gate_proj"]["kernel"]) * (h @ mlp["up_proj"]["kernel"])
        x += h @ mlp["down_proj"]["kernel"]
    return normed(x, tree["final_norm"]) @ tree["lm_head"]["w"]


def normed(x, norm):
    return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-5) * norm["w"][None]


NAMES = checkpoint.llama(head_dim=4)


def small_in(place):
    """Writes a folder as Hugging Face does, of two shards; returns it."""
    rng, folder = np.random.default_rng(0), place / "small"
    every = dict(shapes())
    for i in range(2):
        every[f"model.layers.{i}.mlp.gate_proj.weight"] = (24, 16)
        for norm in ("input", "post_attention"):
            every[f"model.layers.{i}.{norm}_layernorm.weight"] = (16,)
    folder.mkdir()
    files = {name: f"model-{'layers.1' in name:d}.safetensors" for name in every}
    for file in {*files.values()}:
        arrays = {n: rng.normal(size=s).astype("f4") for n, s in every.items() if files[n] == file}
        save_file(arrays, folder / file)
    index = json.dumps({"metadata": {}, "weight_map": files})
    (folder / "model.safetensors.index.json").write_text(index)
    before = config(head_dim=None, layer_types=["full_attention"] * 2)
    (folder / "config.json").write_text(json.dumps(before))
    for name in ("tokenizer.json", "generation_config.json", "chat_template.jinja"):
        (folder / name).write_text(name)
    # A cache of Hugging Face's holds links.
    (folder / "blob.bin").write_text("a tokenizer")
    (folder / "tokenizer.model").symlink_to("blob.bin")
    # Nothing of this is copied.
    for name in ("pytorch_model.bin", "pytorch_model.bin.index.json", "old.gguf"):
        (folder / name).write_text("small weights")
    (folder / "original").mkdir()
    (folder / "original/params.json").write_text("{}")
    os.mkfifo(folder / "fifo")
    return folder


TEXTS = ["chat_template.jinja", "generation_config.json", "tokenizer.json", "tokenizer.model"]
INDEX = "model.safetensors.index.json"
TENSORS = ["model-0.safetensors", "model-1.safetensors", INDEX]
LAYER_TYPES = ["full_attention"] * 3


def planned(folder, **sizes):
    """Returns the growth that makes the folder's model one of these numbers."""
    tree = checkpoint.shapes(folder, names=NAMES)
    n = {**SMALL, **sizes}
    letters = {
        **{"d": n["hidden_size"], "f": n["intermediate_size"], "v": n["vocab_size"]},
        **{"n": n["num_attention_heads"], "k": n["num_key_value_heads"], "h": n["head_dim"]},
    }
    axes = {
        **{"q_proj": "dnh", "k_proj": "dkh", "v_proj": "dkh", "o_proj": "nhd"},
        **{"gate_proj": "df", "up_proj": "df", "down_proj": "fd"},
        **{"embedder": "vd", "lm_head": "dv"},
    }

    def larger(path, leaf):
        name = next((part for part in axes if part in jax.tree_util.keystr(path)), None)
        return jax.ShapeDtypeStruct([letters[axis] for axis in axes.get(name, "d")], leaf.dtype)

    target = jax.tree_util.tree_map_with_path(larger, tree)
    target["layers"] += [target["layers"][-1]] * (n["num_hidden_layers"] - 2)
    widths = dw.trace(apply, tree, jax.ShapeDtypeStruct((5,), jnp.int32))
    return dw.plan(widths, target=target, target_apply=apply, interface=True)


LARGE = {
    **{"vocab_size": 48, "hidden_size": 24, "intermediate_size": 30, "num_hidden_layers": 3},
    **{"num_attention_heads": 8, "num_key_value_heads": 4},
}


@pytest.fixture(scope="module")
def growth(tmp_path_factory):
    """Makes everything larger."""
    return planned(small_in(tmp_path_factory.mktemp("planned")), **LARGE)


@pytest.fixture
def small(tmp_path):
    return small_in(tmp_path)


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_becomes_a_folder_that_loads(small, growth, tmp_path):
    out, given = tmp_path / "large", {**LARGE, "layer_types": LAYER_TYPES, "rope_theta": 5e5}
    before = json.loads((small / "config.json").read_text())
    checkpoint.grow(small, growth, out, key=KEY, names=NAMES, config=given)
    assert names_in(out) == sorted([*TENSORS, *TEXTS, "config.json"])
    assert json.loads((out / "config.json").read_text()) == {**before, **given, "head_dim": 4}
    for name in TEXTS:
        assert (out / name).read_bytes() == (small / name).read_bytes()
        assert not (out / name).is_symlink()
    assert json.loads((small / "config.json").read_text()) == before
    # Of the arrays, nothing has changed.
    checkpoint.grow(small / INDEX, growth, tmp_path / "alone", key=KEY, names=NAMES)
    assert names_in(tmp_path / "alone") == TENSORS
    for name in TENSORS:
        assert (out / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()


def test_nothing_is_written_where_numbers_do_not_fit(small, growth, tmp_path):
    for given, named in {None: ("num_attention_heads", "layer_types"), 7: ("vocab_size",)}.items():
        numbers = None if given is None else {**LARGE, "vocab_size": given}
        with pytest.raises(ValueError, match="do not fit the arrays") as error:
            checkpoint.grow(small, growth, tmp_path / "large", key=KEY, names=NAMES, config=numbers)
        assert all(f"\n- {number}: " in str(error.value) for number in named)
    assert names_in(tmp_path) == ["small"]


def test_files_that_are_copied_need_room(small, growth, tmp_path, monkeypatch):
    (small / "tokenizer.json").write_bytes(bytes(100_000))  # the tensors take fewer
    monkeypatch.setattr(draft.shutil, "disk_usage", lambda _: types.SimpleNamespace(free=90_000))
    given = {**LARGE, "layer_types": LAYER_TYPES}
    with pytest.raises(OSError, match="90,000 are free"):
        checkpoint.grow(small, growth, tmp_path / "x", key=KEY, names=NAMES, config=given)
    checkpoint.grow(small / INDEX, growth, tmp_path / "alone", key=KEY, names=NAMES)


@pytest.mark.long
def test_without_a_file_and_for_one_file_tensors_grow_alone(small, growth, tmp_path):
    with pytest.raises(ValueError, match="config= is for folders"):
        checkpoint.grow(small / INDEX, growth, tmp_path / "x", key=KEY, names=NAMES, config={})
    (small / "config.json").unlink()
    with pytest.raises(ValueError, match="config= needs a folder with this file"):
        checkpoint.grow(small, growth, tmp_path / "x", key=KEY, names=NAMES, config={})
    checkpoint.grow(small, growth, tmp_path / "large", key=KEY, names=NAMES)
    assert names_in(tmp_path / "large") == TENSORS
    assert names_in(tmp_path) == ["large", "small"]


def test_a_killed_run_goes_on_with_the_same_numbers(small, growth, tmp_path, monkeypatch):
    """What is kept is used again only for the same numbers and the same files beside them."""
    out, given = tmp_path / "large", {**LARGE, "layer_types": LAYER_TYPES}
    noted = []
    note = draft.Draft.note
    monkeypatch.setattr(draft.Draft, "note", lambda *a: noted.append(a[2]) or note(*a))

    def grow(numbers):
        noted.clear()
        checkpoint.grow(small, growth, out, key=KEY, names=NAMES, config=numbers)

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfile", lambda *_: (_ for _ in ()).throw(OSError("killed")))
        for numbers, is_new in ((given, True), (given, False), ({**given, "a": 1}, True)):
            with pytest.raises(OSError, match="killed"):
                grow(numbers)
            assert bool(noted) == is_new
        (small / "tokenizer.json").write_text("another")
        with pytest.raises(OSError, match="killed"):
            grow({**given, "a": 1})
        assert noted
        assert not out.exists()
    grow({**given, "a": 1})
    assert not noted
    assert names_in(out) == sorted([*TENSORS, *TEXTS, "config.json"])
    assert (out / "tokenizer.json").read_text() == "another"
    assert names_in(tmp_path) == ["large", "small"]


def test_orbax_has_no_config(tmp_path):
    (tmp_path / "_METADATA").write_text("{}")
    tree = {"up": {"kernel": np.ones((4, 8))}, "down": {"kernel": np.ones((8, 2))}}
    growth = dw.plan(dw.chain(tree, ("up", "down")), {"up": 16})
    with pytest.raises(ValueError, match="config= is for safetensors"):
        checkpoint.grow(tmp_path, growth, tmp_path / "large", key=KEY, config={})


def test_the_command_line_takes_numbers_from_a_file(small, growth, tmp_path):
    for name, given in {
        "growth": json.loads(dw.to_json(growth)),
        "names": NAMES,
        "config": {**LARGE, "layer_types": LAYER_TYPES},
    }.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(given))
    arguments = ["grow", str(small), str(tmp_path / "growth.json"), str(tmp_path / "large")]
    arguments += ["--seed", "7", "--names", str(tmp_path / "names.json")]
    with pytest.raises(SystemExit, match="give num_attention_heads or head_dim"):
        command_line.main(arguments)
    command_line.main([*arguments, "--config", str(tmp_path / "config.json")])
    found = json.loads((tmp_path / "large/config.json").read_text())
    assert found["num_attention_heads"] == 8
