"""Keras files on the command line."""

import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import h5py
import jax
import numpy as np
import pytest
from tiers import long

from dogwood_jax import keras_h5
from dogwood_jax.keras_h5.__main__ import main

MODELS = Path(__file__).parent / "data" / "keras_models"

LAYOUTS = Path(__file__).parent / "data" / "keras_layouts"


def mlp(*sizes):
    """Returns Dense layers whose names sort in another order than they are in."""
    rng = np.random.default_rng(0)
    return {
        "params": {
            f"dense_{10 - i}": {
                "kernel": rng.normal(size=shape).astype("f"),
                "bias": rng.normal(size=shape[1:]).astype("f"),
            }
            for i, shape in enumerate(zip(sizes, sizes[1:]))
        }
    }


def predict(variables, x):
    layers = list(variables["params"].values())
    for layer in layers[:-1]:
        x = np.maximum(x @ layer["kernel"] + layer["bias"], 0)
    return x @ layers[-1]["kernel"] + layers[-1]["bias"]


@pytest.fixture
def weights(tmp_path):
    """Files of the same weights in both layouts."""
    paths = [tmp_path / "small.h5", tmp_path / "small.weights.h5"]
    for path, layout in zip(paths, ("h5", "weights.h5")):
        keras_h5.save(path, mlp(5, 4, 3, 2), layout=layout)
    return paths


@pytest.mark.parametrize("strategy", ["zero_outgoing", "replicate", "zeros", "random"])
def test_files_of_weights_are_widened(strategy, weights, tmp_path):
    x = np.random.default_rng(1).normal(size=(6, 5)).astype("f")
    for path in weights:
        out = tmp_path / f"wide{''.join(path.suffixes)}"
        command = ["widen", str(path), "--layer", "dense_10=7,dense_9=6"]
        said = main([*command, "--out", str(out), "--strategy", strategy])
        first, checked = said.splitlines()
        assert first == f"{out}: dense_10 has 7 units, dense_9 has 6 units"
        assert checked.startswith("predictions change" if strategy == "random" else "not checked: ")
        wide = keras_h5.load(out)
        assert wide["params"]["dense_9"]["kernel"].shape == (7, 6)
        same = np.allclose(predict(wide, x), predict(keras_h5.load(path), x), rtol=1e-5, atol=1e-5)
        assert same == (strategy != "random")
        assert keras_h5.inspect(out).layout == keras_h5.inspect(path).layout


def test_the_seed_decides_new_weights(weights, tmp_path):
    kernels = []
    for number, seed in enumerate((1, 1, 2)):
        out = str(tmp_path / f"{number}.h5")
        main(["widen", str(weights[0]), "--layer", "dense_10=7", "--out", out, "--seed", str(seed)])
        kernels.append(keras_h5.load(out)["params"]["dense_10"]["kernel"])
    np.testing.assert_array_equal(kernels[0], kernels[1])
    assert not np.array_equal(kernels[0], kernels[2])


def test_files_of_weights_are_converted_and_inspected(weights, tmp_path):
    out, back = str(tmp_path / "out.weights.h5"), str(tmp_path / "back.h5")
    assert main(["convert", str(weights[0]), out]) == f"{out}: layout weights.h5"
    assert main(["convert", out, back]) == f"{back}: layout h5"
    before, after = (keras_h5.load(path) for path in (weights[0], back))
    assert jax.tree.all(jax.tree.map(np.array_equal, before, after))
    assert main(["inspect", out]).startswith("layout weights.h5\nlayer     class")


@pytest.mark.filterwarnings("ignore:.*does not (name its|record the) optimizer")
@pytest.mark.parametrize("name", [long("tf_keras_2.21.0.h5"), long("keras_3.15.1.keras")])
def test_whole_models_are_widened(name, tmp_path):
    out = tmp_path / name
    command = ["widen", str(LAYOUTS / name), "--layer", "dense_1=9", "--out", str(out)]
    said = main(command)
    assert re.search(r"predictions stay: largest difference (0|\S+e-0[67]) ", said), said
    assert "the optimizer state is kept" in said
    with pytest.raises(SystemExit, match="already exists; --force overwrites it"):
        main(command)
    assert main([*command, "--force"]) == said
    x = np.load((LAYOUTS / name).with_suffix(".npz"))["x"]
    old, new = (module.apply(v, x) for module, v in map(keras_h5.load_model, (LAYOUTS / name, out)))
    np.testing.assert_allclose(new, old, rtol=1e-5, atol=1e-6)
    before, after = map(keras_h5.load_optimizer, (LAYOUTS / name, out))
    assert after.count == before.count
    np.testing.assert_array_equal(
        after.mu["dense_1"]["kernel"][:, : before.mu["dense_1"]["kernel"].shape[1]],
        before.mu["dense_1"]["kernel"],
    )
    assert not after.nu["dense_1"]["kernel"][:, before.mu["dense_1"]["kernel"].shape[1] :].any()


@pytest.mark.skipif(os.name != "posix", reason="links")
def test_the_input_is_never_overwritten(weights, tmp_path):
    path = weights[0]
    (tmp_path / "symbolic.h5").symlink_to("small.h5")
    os.link(path, tmp_path / "hard.h5")
    (tmp_path / "folder").symlink_to(".")
    before = path.read_bytes()
    same = ["small.h5", "./small.h5", "symbolic.h5", "hard.h5", "folder/small.h5", "no/../small.h5"]
    for source in ("small.h5", "symbolic.h5"):
        for name in same:
            out = f"{tmp_path}/{name}"
            for command in (["widen", "--layer", "dense_10=7", "--out", out], ["convert", out]):
                with pytest.raises(SystemExit, match="is the input, which is never overwritten"):
                    main([command[0], f"{tmp_path}/{source}", *command[1:]])
    assert path.read_bytes() == before and (tmp_path / "hard.h5").samefile(path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["inspect", "none.h5"], "none.h5: no such file or directory"),
        (["inspect", __file__], "expected an HDF5 file or a .keras archive"),
        (["widen", "in", "--layer", "dense_9", "--out", "out"], "expected a name and a number"),
        (["widen", "in", "--layer", "dense_9=x", "--out", "out"], "expected a name and a number"),
        (
            ["widen", "in", "--layer", "other=9", "--out", "out"],
            "no width 'other'; inspect --widths lists all",
        ),
        (["widen", "in", "--layer", "dense_9=1", "--out", "out"], "1 units are fewer"),
        (
            ["widen", "in", "--layer", "dense_9=1", "--out", "out"],
            "this command has no option to remove units; in Python, dw.narrow does",
        ),
        (
            ["widen", "in", "--layer", "dense_8=9", "--out", "out"],
            "is a dimension of an input or",
        ),
        (["widen", "in", "--layer", "dense_8=9", "--out", "out"], "pass --interface to append"),
        (["widen", "in", "--layer", f"dense_9={10**9}", "--out", "out"], "this machine has"),
        (
            ["widen", "in", *("--layer", "dense_9=8") * 2, "--out", "out"],
            "expected every layer once",
        ),
        (["widen", "norm", "--layer", "norm=8", "--out", "out"], "expected only Dense layers"),
        (["inspect", "nested.h5", "--widths"], "the file holds weights but no model"),
        (["convert", "in", "out.keras"], "layout 'keras' holds a model's configuration"),
        (["convert", "in", "nowhere/out.h5"], "no such folder; make it first"),
    ],
)
def test_errors_are_said_and_nothing_is_written(arguments, message, weights, tmp_path):
    names = {"in": str(weights[1]), "out": str(tmp_path / "out.h5")}
    names |= {name: str(tmp_path / name) for name in ("norm", "out.keras", "nowhere/out.h5")}
    scale, statistics = {"scale": np.ones(4)}, {"mean": np.ones(4), "var": np.ones(4)}
    norm = {"params": {"norm": scale}, "batch_stats": {"norm": statistics}}
    keras_h5.save(names["norm"], norm)
    names["nested.h5"] = str(tmp_path / "nested.h5")
    with h5py.File(names["nested.h5"], "w") as file:
        file.attrs["layer_names"] = [b"block"]
        block = file.create_group("block")
        block.attrs["weight_names"] = [b"block/up/kernel:0", b"block/down/kernel:0"]
        block["block/up/kernel:0"], block["block/down/kernel:0"] = np.ones((2, 4, 4), "f")
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(SystemExit) as raised:
        main([names.get(argument, argument) for argument in arguments])
    assert str(raised.value).startswith("keras_h5: ") and message in str(raised.value)
    assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.filterwarnings("ignore:.*does not (name its|record the) optimizer")
def test_widths_are_listed_and_interfaces_grow_if_asked_to(tmp_path):
    path, out = LAYOUTS / "keras_3.15.1.keras", tmp_path / "out.keras"
    rows = [line.split() for line in main(["inspect", str(path), "--widths"]).splitlines()]
    assert rows[0] == ["width", "units", "needs", "also", "in"]
    assert ["dense_1", "5", "dense_2"] in rows and rows[-1][2] == "--interface"
    name, units, *_ = rows[-1]
    main(
        ["widen", str(path), "--layer", f"{name}={int(units) + 1}", "--interface"]
        + ["--out", str(out)]
    )
    assert keras_h5.load(out)["params"][name]["bias"].shape == (int(units) + 1,)


def test_an_interruption_ends_with_a_line(weights, monkeypatch, capsys):
    def interrupted(path):
        raise KeyboardInterrupt

    monkeypatch.setattr("dogwood_jax.keras_h5.__main__.inspect", interrupted)
    with pytest.raises(SystemExit) as raised:
        main(["inspect", str(weights[0])])
    assert raised.value.code == 130
    assert capsys.readouterr().err == "keras_h5: interrupted\n"


@pytest.mark.skipif(os.name != "posix", reason="pipes")
@pytest.mark.long
def test_whoever_reads_may_stop(weights):
    command = [sys.executable, "-m", "dogwood_jax.keras_h5", "inspect", str(weights[0])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
        run.stdout.close()
        assert run.stderr.read() == b"" and run.wait() == 0


@pytest.mark.long
def test_each_layer_grows_in_the_way_that_keeps_predictions(tmp_path, capsys):
    """Those under a norm by a recipe, the others by zero outgoing weights."""
    path, out = MODELS / "keras_3.15.1_growing.keras", tmp_path / "wide.keras"
    sizes = "conv2d[group_size]=4,conv2d[groups]=6"
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        main(["widen", str(path), "--layer", sizes, "--out", str(out)])
    said = capsys.readouterr().err
    assert said.startswith("keras_h5: warning: ") and "24 channels read as 12 groups of 2" in said
    assert ".py" not in said
    (old, before), (new, after) = map(keras_h5.load_model, (path, out))
    x = np.load(path.with_suffix(".npz"))
    inputs = [x[name] for name in sorted(x) if name.startswith("x")]
    ys = (jax.tree.leaves(m.apply(v, *inputs)) for m, v in ((old, before), (new, after)))
    for y, wide in zip(*ys, strict=True):
        np.testing.assert_allclose(wide, y, rtol=1e-4, atol=1e-5)
