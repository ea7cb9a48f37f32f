"""The decoder of open models: its logits are those of transformers, and what it refuses."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decoders import CONFIGS, TOKENS, by_transformers, saved
from tiers import in_tiers

import dogwood_jax as dw
from dogwood_jax import decoder

LOGITS = np.load(Path(__file__).parent / "data/decoder_logits.npz")


def logits(folder):
    """Returns the logits of the model in a folder, float32 ``[time, vocab_size]``."""
    options, variables = decoder.load(folder)
    return np.asarray(jax.jit(partial(decoder.apply, options))(variables, jnp.asarray(TOKENS)))[0]


SHORT = ("llama", "gemma2", "gemma3_text", "qwen3_moe")


@pytest.mark.parametrize("name", in_tiers(CONFIGS, short=SHORT))
def test_logits_are_those_that_transformers_had(name, tmp_path):
    """``data/make_decoder_logits.py`` has recorded them."""
    found = logits(saved(tmp_path / "model", name))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[LOGITS["places"]], LOGITS[name], rtol=0, atol=2e-5)


@pytest.mark.long
@pytest.mark.parametrize("name", CONFIGS)
def test_logits_are_those_of_transformers(name, tmp_path):
    for package in ("torch", "transformers"):
        pytest.importorskip(package, reason=f"compares with transformers, which takes {package}")
    folder = saved(tmp_path / "model", name)
    np.testing.assert_allclose(logits(folder), by_transformers(folder)[0], rtol=0, atol=2e-5)


def test_files_of_transformers_5_say_rotary_positions_in_another_way():
    old = CONFIGS["gemma3_text"]
    new = {name: old[name] for name in old if not name.startswith("rope")}
    new["rope_parameters"] = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 100.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10.0},
    }
    assert decoder.options_of(new) == decoder.options_of(old)
    old, all_alike = CONFIGS["llama"], dict(CONFIGS["llama"])
    all_alike["rope_parameters"] = all_alike.pop("rope_scaling") | {"rope_theta": 100.0}
    assert decoder.options_of(all_alike) == decoder.options_of(old)


def test_all_that_the_decoder_does_not_compute_is_listed():
    config = CONFIGS["llama"] | {
        "hidden_size": 0,
        "hidden_act": "relu2",
        "num_key_value_heads": 3,
        "rope_scaling": {"rope_type": "yarn", "factor": 4.0},
        "quantization_config": {"bits": 4},
        "head_dim": 5,
    }
    del config["rms_norm_eps"]
    with pytest.raises(ValueError, match="cannot compute this model") as error:
        decoder.options_of(config)
    assert str(error.value).splitlines()[1:] == [
        "- quantization_config: expected None, or nothing; the decoder has no other",
        "- hidden_size: expected a positive whole number; found 0",
        "- num_attention_heads: expected a multiple of num_key_value_heads 3; found 4",
        "- head_dim: expected an even number, for rotary positions; found 5",
        "- hidden_act: expected one of silu, swish, gelu, gelu_pytorch_tanh, gelu_new; found "
        "'relu2'",
        "- rope_type: expected default, linear or llama3; found 'yarn'",
        "- rms_norm_eps: expected a positive number; found None",
    ]
    with pytest.raises(ValueError, match="model_type: expected one of llama, .*; found 'gpt2'"):
        decoder.options_of({"model_type": "gpt2"})
    with pytest.raises(ValueError, match="layer_types: expected 4 entries, one for each layer"):
        decoder.options_of(CONFIGS["qwen3"] | {"layer_types": ["full_attention"]})


def test_a_folder_with_other_tensors_is_refused(tmp_path):
    folder = saved(tmp_path / "model", "llama")
    (folder / "config.json").write_text(
        (folder / "config.json")
        .read_text()
        .replace('"intermediate_size": 20', '"intermediate_size": 24')
    )
    with pytest.raises(dw.checkpoint.CheckpointError) as error:
        decoder.load(folder)
    assert "- model/layers/{0..3}/mlp/down_proj/weight: expected (16, 24), found (16, 20)" in str(
        error.value
    )
    folder = saved(tmp_path / "tied", "llama", tie_word_embeddings=True)
    assert logits(folder).shape == (9, 24)
    folder = saved(tmp_path / "also", "llama")
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text[:-1] + ', "tie_word_embeddings": true}')
    with pytest.raises(dw.checkpoint.CheckpointError, match="lm_head/weight: expected no such"):
        decoder.load(folder)


def test_bfloat16_stays_bfloat16():
    options = decoder.options_of(CONFIGS["qwen3_moe"])
    found = jax.eval_shape(partial(decoder.apply, options), decoder.shapes(options), TOKENS)
    assert (found.shape, found.dtype) == ((1, 9, 24), jnp.bfloat16)


@pytest.mark.long
def test_small_sizes_hold_more_experts_than_are_chosen():
    """A large model is evaluated in small sizes; of its experts, eight are chosen there, too."""
    config = CONFIGS["qwen3_moe"] | {"num_experts": 64, "num_experts_per_tok": 8}
    config |= {"hidden_size": 512, "moe_intermediate_size": 256, "num_hidden_layers": 2}
    small = decoder.options_of(config)
    large = decoder.options_of(config | {"moe_intermediate_size": 384, "num_hidden_layers": 3})
    tokens = jax.ShapeDtypeStruct((2, 5), jnp.int32)
    widths = dw.trace(partial(decoder.apply, small), decoder.shapes(small), tokens)
    growth = dw.plan(
        widths, target=decoder.shapes(large), target_apply=partial(decoder.apply, large)
    )
    assert "\nchecked: equal to rounding" in str(growth)


def test_layers_of_two_kinds_that_alternate_are_like_each_other_in_pairs():
    """So a few of them stand for all when a growth is planned."""
    options = decoder.options_of(CONFIGS["gemma2"] | {"num_hidden_layers": 16})
    tokens = jax.ShapeDtypeStruct((2, 5), jnp.int32)
    widths = dw.trace(partial(decoder.apply, options), decoder.shapes(options), tokens)
    pairs = widths.network.layers.prefixes
    assert pairs[:2] == tuple((f"model/layers/{n}", f"model/layers/{n + 1}") for n in (0, 2))


@pytest.mark.parametrize("name", ["llama", "qwen3_moe"])
def test_what_was_trained_goes_back_to_a_folder(name, tmp_path):
    options, variables = decoder.load(saved(tmp_path / "old", name))
    trained = jax.tree.map(lambda array: jnp.asarray(array, jnp.bfloat16) * 2, variables)
    decoder.save(tmp_path / "new", options, trained)
    again = decoder.load(tmp_path / "new")
    assert again[0] == options and again[0].config == options.config
    jax.tree.map(np.testing.assert_array_equal, again[1], trained)
    assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(again[1]))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "old"]


def test_a_folder_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    options, variables = decoder.load(saved(tmp_path / "old", "llama"))
    with pytest.raises(FileExistsError):
        decoder.save(tmp_path / "old", options, variables)
    variables["model"]["norm"] = {"weight": np.ones(3), "other": np.ones(1)}
    with pytest.raises(ValueError, match="variables do not match options") as error:
        decoder.save(tmp_path / "new", options, variables)
    assert str(error.value).splitlines()[1:] == [
        "- model/norm/weight: expected (16,), got (3,)",
        "- model/norm/other: expected no such array",
    ]
    monkeypatch.setattr(decoder.folder.json, "dumps", None)
    _, variables = decoder.load(tmp_path / "old")
    with pytest.raises(TypeError):
        decoder.save(tmp_path / "new", options, variables)
    with pytest.raises(ValueError, match="options have no config; pass"):
        decoder.save(tmp_path / "new", replace(options, config={}), variables)
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
