"""Folders of Hugging Face on the command line: ``grow --set``, ``upcycle`` and ``shrink``."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decoders import CONFIGS, TOKENS, by_transformers, saved

from dogwood_jax import decoder
from dogwood_jax.__main__ import main
from dogwood_jax.decoder._folders import numbers

# Transformers checks that hidden_size is a multiple of num_attention_heads.
LARGER = {
    "intermediate_size": 24,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "hidden_size": 24,
    "vocab_size": 29,
}


def setting(numbers):
    return [part for name, size in numbers.items() for part in ("--set", f"{name}={size}")]


def config(folder):
    return json.loads((folder / "config.json").read_text())


def logits(folder):
    options, variables = decoder.load(folder)
    return np.asarray(jax.jit(partial(decoder.apply, options))(variables, jnp.asarray(TOKENS)))[0]


def assert_same(small, large, old=24):
    """Asserts that both predict the same, by transformers, too, where it is installed."""
    np.testing.assert_allclose(logits(large)[:, :old], logits(small), rtol=0, atol=3e-5)
    try:
        theirs = by_transformers(large)[0, :, :old]
    except ImportError:
        return
    np.testing.assert_allclose(theirs, by_transformers(small)[0], rtol=0, atol=3e-5)


@pytest.mark.long
def test_everything_grows_at_once(tmp_path):
    """Gemma 2 multiplies by roots of its sizes, and its norms let new layers move outputs a lot."""
    small, large = saved(tmp_path / "small", "gemma2"), tmp_path / "large"
    larger = LARGER | {"hidden_size": 32, "num_hidden_layers": 6}
    said = main(["grow", str(small), str(large), *setting(larger), "--rows", "mean", "--seed", "0"])
    assert "checked: equal to rounding" in said
    assert config(large) == {**config(small), **larger}
    assert (large / "tokenizer.json").read_text() == "{}"
    assert_same(small, large)
    rows = decoder.load(large)[1]["model"]["embed_tokens"]["weight"]
    np.testing.assert_allclose(
        rows[24:], rows[None, :24].mean(1).repeat(5, 0), rtol=1e-4, atol=1e-6
    )


def test_larger_heads_lie_between_old_units(tmp_path):
    """Old units keep their rotary frequencies in all layers, though few layers are compared."""
    small, large = saved(tmp_path / "small", "llama"), tmp_path / "large"
    said = main(["grow", str(small), str(large), *setting({"head_dim": 8}), "--seed", "0"])
    assert "model/layers/{0..3}/self_attn/q_proj[head_dim]: old unit i becomes unit 2 i" in said
    assert_same(small, large)


@pytest.mark.long
def test_rounding_of_rescaled_arrays_is_told(tmp_path):
    small = saved(tmp_path / "small", "llama", dtype=jnp.bfloat16)
    for size, is_rounded in ((32, True), (64, False)):
        large = tmp_path / str(size)
        said = main(
            ["grow", str(small), str(large), *setting({"hidden_size": size}), "--seed", "0"]
        )
        assert ("note: rescaled arrays are rounded to bfloat16" in said) == is_rounded
        assert "note: config.json now has head_dim = 4, because heads keep their size" in said
        assert said.splitlines()[-1].startswith("continue training with a third of the learning")
        assert decoder.load(large)[1]["model"]["norm"]["weight"].dtype == jnp.bfloat16
        if not is_rounded:
            assert_same(small, large)


def test_a_window_that_no_text_reached_is_told(tmp_path):
    small = saved(tmp_path / "small", "mistral", sliding_window=64)
    arguments = ["grow", str(small), str(tmp_path / "large"), "--seed", "0"]
    said = main([*arguments, "--set", "intermediate_size=24"])
    assert "not seen: lt (model.py:" in said
    assert "note: lt is the sliding window, which is longer than the evaluated texts" in said


@pytest.mark.long
def test_lists_of_layers_go_on_as_they_began(tmp_path):
    types = [f"{kind}_attention" for kind in ("sliding", "full")]
    small = saved(tmp_path / "small", "gemma2", layer_types=types * 2)
    large = tmp_path / "large"
    arguments = ["grow", str(small), str(large), "--seed", "0", "--set"]
    main([*arguments, "num_hidden_layers=5"])
    assert config(large)["layer_types"] == [*types, *types, types[0]]
    assert_same(small, large)


@pytest.mark.parametrize(
    ("name", "rule", "kinds"),
    [("qwen2", {"max_window_layers": 3}, "fffsss"), ("gemma3_text", {}, "ssfssf")],
)
def test_a_list_of_layers_goes_on_as_the_file_tells(name, rule, kinds, tmp_path):
    if name == "gemma3_text":
        rule = {"sliding_window_pattern": None, "_sliding_window_pattern": 3}
    types = [f"{'full' if kind == 'f' else 'sliding'}_attention" for kind in kinds]
    count = CONFIGS[name].get("num_hidden_layers", 4)
    old = {**CONFIGS[name], **rule, "num_hidden_layers": count, "layer_types": types[:count]}
    problems = []
    more = {"num_hidden_layers": 6}
    found = numbers.completed(old, decoder.options_of(old), more, problems)
    assert found["layer_types"] == types and problems == []


@pytest.mark.parametrize(("more", "is_said"), [({"intermediate_size": 24}, False), (LARGER, True)])
def test_heads_keep_their_size_and_the_file_says_it_where_it_does_not_follow(more, is_said):
    old = CONFIGS["llama"]
    found = numbers.completed(old, decoder.options_of(old), more, [])
    assert ("head_dim" in found) == is_said
    assert decoder.options_of({**old, **found}).head_dim == 4


def test_the_commands_list_what_can_be_set(capsys):
    for command, name in (("grow", "num_experts_per_tok"), ("shrink", "moe_intermediate_size")):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        assert name in capsys.readouterr().out


def test_a_list_of_layers_that_repeats_nothing_must_be_given(tmp_path):
    types = ["full_attention"] * 3 + ["sliding_attention"]
    small = saved(tmp_path / "small", "qwen2", layer_types=types)
    arguments = ["grow", str(small), str(tmp_path / "more"), "--seed", "0", "--set"]
    with pytest.raises(SystemExit, match="--set layer_types: needed, with an entry for each layer"):
        main([*arguments, "num_hidden_layers=5"])


@pytest.mark.parametrize(
    ("name", "chosen", "kind"),
    [
        ("qwen3", 3, "qwen3_moe"),
        ("llama", None, "mixtral"),
    ],
)
@pytest.mark.long
def test_experts_in_place_of_an_mlp(name, chosen, kind, tmp_path):
    # torch's experts take rows of 16 bytes.
    small, large = saved(tmp_path / "small", name), tmp_path / "large"
    more = [] if chosen is None else ["--experts-per-token", str(chosen)]
    said = main(["upcycle", str(small), str(large), "--experts", "4", "--seed", "0", *more])
    assert "checked: equal to rounding" in said
    assert (config(large)["model_type"], config(large)["num_experts_per_tok"]) == (
        kind,
        chosen or 2,
    )
    assert decoder.options_of(config(large)).experts.number == 4
    assert_same(small, large)


@pytest.mark.long
@pytest.mark.parametrize("is_deeper", [False, True])
def test_more_experts(is_deeper, tmp_path):
    small, large = saved(tmp_path / "small", "qwen3_moe"), tmp_path / "large"
    if is_deeper:
        more = {"num_experts": 6, "num_experts_per_tok": 4, "num_hidden_layers": 5}
        main(["grow", str(small), str(large), *setting(more), "--seed", "0"])
    else:
        main(["upcycle", str(small), str(large), "--experts", "6"])
    experts = decoder.options_of(config(large)).experts
    assert (experts.number, experts.chosen) == (6, 4)
    assert_same(small, large)


@pytest.mark.parametrize("name", ["llama", "gemma3_text", "qwen3_moe of sums"])
def test_units_and_layers_with_small_weights_go(name, tmp_path):
    small = tmp_path / "small"
    large = saved(tmp_path / "large", name)
    before, old = decoder.load(large)
    size = "intermediate_size" if before.experts is None else "moe_intermediate_size"
    main(["shrink", str(large), str(small), *setting({size: 8, "num_hidden_layers": 2})])
    after, new = decoder.load(small)
    own = [
        sum(np.square(leaf, dtype=np.float64).sum() for leaf in jax.tree.leaves(layer))
        for layer in old["model"]["layers"]
    ]
    kept = sorted(np.argsort(own)[-2:])
    assert after.windows == tuple(before.windows[n] for n in kept)
    assert after.ropes == tuple(before.ropes[n] for n in kept)
    for place, layer in enumerate(kept):
        ours, theirs = old["model"]["layers"][layer], new["model"]["layers"][place]
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs)):
            if a.shape == b.shape:
                np.testing.assert_array_equal(a, b)
        if before.experts is None:
            ups = [one["mlp"]["up_proj"]["weight"] for one in (ours, theirs)]
            weights = (ours["mlp"][name]["weight"] for name in ("gate_proj", "up_proj"))
            scores = sum(np.square(weight).sum(1) for weight in weights)
            scores += np.square(ours["mlp"]["down_proj"]["weight"]).sum(0)
            np.testing.assert_array_equal(ups[1], ups[0][sorted(np.argsort(scores)[-8:])])


@pytest.mark.parametrize("name", ["llama", "mixtral"])
def test_a_share_of_parameters_stays(name, tmp_path):
    large, small = saved(tmp_path / "large", name), tmp_path / "small"
    main(["shrink", str(large), str(small), "--set", "parameters=0.8"])
    counts = [
        sum(leaf.size for leaf in jax.tree.leaves(decoder.load(one)[1])) for one in (large, small)
    ]
    assert 0.7 < counts[1] / counts[0] <= 0.8
    assert config(small)["intermediate_size"] % 4 == 0  # as 20 is
    deep = ["shrink", str(large), str(tmp_path / "deep"), "--set", "num_hidden_layers=2"]
    main([*deep, "--set", "parameters=0.5"])
    assert config(tmp_path / "deep")["num_hidden_layers"] == 2
    for share, message in (
        ("parameters=0.05", r"the fewest hidden units still leave 0\.\d+ of today's parameters"),
        ("parameters=2", "expected one share from 0 to 1, such as parameters=0.7"),
    ):
        with pytest.raises(SystemExit, match=message):
            main(["shrink", str(large), str(tmp_path / "out"), "--set", share])
    with pytest.raises(SystemExit, match="leave out intermediate_size"):
        both = ["--set", "parameters=0.8", "--set", "intermediate_size=8"]
        main(["shrink", str(large), str(tmp_path / "out"), *both])


@pytest.mark.long
def test_the_loss_of_texts_tells_which_layers_go(tmp_path):
    large, small, texts = (
        saved(tmp_path / "large", "llama"),
        tmp_path / "small",
        tmp_path / "t.json",
    )
    texts.write_text(json.dumps(np.random.RandomState(2).randint(24, size=(3, 6)).tolist()))
    arguments = ["shrink", str(large), str(small), "--set", "num_hidden_layers=3", "--tokens"]
    said = main([*arguments, str(texts)])
    losses = [loss_without(large, texts, layer) for layer in range(4)]
    kept = [n for n in range(4) if n != int(np.argmin(losses))]
    assert f"these were {', '.join(map(str, kept))}" in said
    assert f"loss of the next token: {min(losses):.4f}" in said
    texts.write_text("[[0, 24]]")
    with pytest.raises(SystemExit, match="expected ids from 0 to 23; found 0 to 24"):
        main([*arguments[:2], str(tmp_path / "other"), *arguments[3:], str(texts)])


def loss_without(folder, texts, layer):
    options, variables = decoder.load(folder)
    del variables["model"]["layers"][layer]
    tokens = np.array(json.loads(texts.read_text()))
    logits = jax.jit(partial(decoder.apply, options))(variables, tokens[:, :-1])
    shares = jax.nn.log_softmax(logits)
    return -np.take_along_axis(np.asarray(shares), tokens[:, 1:, None], -1).mean()


def test_all_mistakes_are_told_at_once_and_nothing_is_written(tmp_path):
    small, out = saved(tmp_path / "small", "llama"), tmp_path / "out"
    grow = ["grow", str(small), str(out)]
    numbers = ["hidden_size=12", "moe_intermediate_size=9", "vocab_size=x", "intermediate_size=2.5"]
    with pytest.raises(SystemExit) as error:
        main([*grow, *(part for one in numbers for part in ("--set", one)), "--rows", "mean"])
    known = (
        "vocab_size, hidden_size, intermediate_size, num_hidden_layers, num_attention_heads, "
        "num_key_value_heads, head_dim, layer_types"
    )
    assert str(error.value).splitlines() == [
        f"dogwood_jax: {small} cannot grow to these values:",
        f"- --set moe_intermediate_size=9: expected NAME=VALUE with one of {known}",
        "- --set vocab_size=x: expected a value in JSON; got 'x'",
        "- --set intermediate_size=2.5: expected a positive whole number; got 2.5",
        "- --set hidden_size=12: expected at least 16; use shrink for less",
        "- --rows: needs --set vocab_size=N with a larger vocabulary",
    ]
    for arguments, message in (
        (grow, "--set NAME=VALUE: needed"),
        ([*grow, "--set", "intermediate_size=24"], "--seed N: needed"),
        (
            [*grow, "--set", "hidden_size=18"],
            "hidden_size: expected a multiple of num_attention_he",
        ),
        ([*grow, "--set", "num_key_value_heads=3"], "expected a multiple of num_key_value_heads 3"),
        ([*grow, "--set", "intermediate_size=24", "--config", "x"], "--config go with GROWTH"),
        (["grow", str(small), "growth.json", str(out), "--rows", "mean"], "or leave out GROWTH"),
        (
            ["shrink", str(small), str(out), "--set", "hidden_size=8"],
            "expected one of intermediate_",
        ),
        (
            ["grow", str(tmp_path / "none"), str(out), "--set", "hidden_size=8"],
            "is not a folder",
        ),
        (["upcycle", str(small), str(out), "--experts", "1"], "--experts 1: expected at least 2"),
    ):
        with pytest.raises(SystemExit, match=message):
            main(arguments)
    gemma = saved(tmp_path / "gemma", "gemma")
    with pytest.raises(SystemExit, match="among llama, mistral, qwen3, or one with experts; found"):
        main(["upcycle", str(gemma), str(out), "--experts", "4"])
    assert {path.name for path in tmp_path.iterdir()} == {"small", "gemma"}
    with pytest.raises(SystemExit, match="expected a new name or an empty folder"):
        main(["shrink", str(small), str(gemma), "--set", "num_hidden_layers=2"])
