"""The guide "MaxText and tunix", run where the packages are installed."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dogwood_jax.__main__ import main

GUIDE = Path(__file__).parents[1] / "docs/guides/maxtext_tunix.md"


# For the command line, what the guide calls settings.
AS_YML = """
lines = ["base_config: base.yml", *(f"{name}: {value}" for name, value in settings.items())]
Path("old.yml").write_text("\\n".join(lines))
"""


def losses_of(package, heading, folder, more=""):
    """Runs the code under a heading; returns the losses that it finds, by run."""
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed: pip install 'dogwood_jax[{package}]'")
    (text,) = re.findall(rf"^## {heading}\n(.*?)(?=^## |\Z)", GUIDE.read_text(), re.M | re.S)
    code = "\n".join(re.findall(r"^```python\n(.*?)^```", text, re.M | re.S))
    found = "jax.tree.map(lambda a: jnp.asarray(a).tolist(), [first, before, after])"
    kept = f"Path('losses.json').write_text(json.dumps({found}))"
    script = folder / "guide.py"
    script.write_text(f"import json\nbefore = after = 0\n{code}\n{more}\n{kept}\n")
    subprocess.run([sys.executable, script.name], cwd=folder, check=True)
    return json.loads((folder / "losses.json").read_text())


def test_maxtext_goes_on_from_a_larger_checkpoint(tmp_path):
    first, before, after = losses_of("maxtext", "MaxText", tmp_path, AS_YML)
    small = first.pop("small")
    assert {*first} == {"mlp", "stream", "layers", "heads", "all"}
    for run, losses in first.items():
        assert losses["11"] == pytest.approx(small["11"], abs=1e-5), run
        assert losses["12"] < losses["11"], run
    assert before == pytest.approx(small["11"], abs=1e-5) and before < after < before + 0.5
    goes_on_by_command(tmp_path, small["11"])


def goes_on_by_command(folder, loss):
    """Grows a step on the command line, and trains with the config that it has written."""
    (folder / "runs/command/checkpoints").mkdir(parents=True)

    def run(*command):
        subprocess.run([sys.executable, "-m", *command], cwd=folder, check=True)

    steps = [f"runs/{name}/checkpoints/10" for name in ("small", "command")]
    numbers = ["--set", "base_mlp_dim=96", "--set", "base_num_decoder_layers=3"]
    configs = ["--maxtext", "old.yml", "new.yml"]
    run("dogwood_jax", "grow", *steps, *configs, *numbers, "--seed", "0")
    metrics = folder / "command.jsonl"
    given = ["run_name=command", "steps=12", f"metrics_file={metrics}"]
    run("maxtext.trainers.pre_train.train", "new.yml", *given)
    line = json.loads(metrics.read_text().splitlines()[0])
    assert line["learning/loss"] == pytest.approx(loss, abs=1e-5)


@pytest.mark.skipif(bool(importlib.util.find_spec("maxtext")), reason="MaxText is installed")
def test_the_command_says_that_maxtext_is_needed(tmp_path):
    arguments = ["grow", "step", str(tmp_path / "out"), "--maxtext", "old.yml", "new.yml"]
    with pytest.raises(SystemExit, match=r"--maxtext: needs MaxText, pip install"):
        main([*arguments, "--set", "base_mlp_dim=96"])
    with pytest.raises(SystemExit, match="--rows: is for Hugging Face folders"):
        main([*arguments, "--rows", "mean"])
    with pytest.raises(SystemExit, match="--set NAME=VALUE: needed, such as --set base_mlp_dim"):
        main(arguments)


def test_tunix_goes_on_with_a_larger_module(tmp_path):
    first, _, _ = losses_of("tunix", "tunix", tmp_path)
    small, more = first.pop("small"), first.pop("vocabulary")
    assert {*first} == {"mlp", "stream", "layers", "heads", "all"}
    for run, losses in first.items():
        assert losses[0] == pytest.approx(small[0], abs=1e-5), run
        assert losses[1] < losses[0], run
    assert small[0] < more[0] < small[0] + 0.5
