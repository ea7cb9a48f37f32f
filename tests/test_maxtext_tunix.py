"""The guide "MaxText and tunix", run where the packages are installed."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

GUIDE = Path(__file__).parents[1] / "docs/guides/maxtext_tunix.md"


def losses_of(package, heading, folder):
    """Runs the code under a heading; returns the losses that it finds, by run."""
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed: pip install 'dogwood_jax[{package}]'")
    (text,) = re.findall(rf"^## {heading}\n(.*?)(?=^## |\Z)", GUIDE.read_text(), re.M | re.S)
    code = "\n".join(re.findall(r"^```python\n(.*?)^```", text, re.M | re.S))
    found = "jax.tree.map(lambda a: jnp.asarray(a).tolist(), [first, before, after])"
    kept = f"Path('losses.json').write_text(json.dumps({found}))"
    script = folder / "guide.py"
    script.write_text(f"import json\nbefore = after = 0\n{code}\n{kept}\n")
    subprocess.run([sys.executable, script.name], cwd=folder, check=True)
    return json.loads((folder / "losses.json").read_text())


def test_maxtext_goes_on_from_a_larger_checkpoint(tmp_path):
    first, before, after = losses_of("maxtext", "MaxText", tmp_path)
    small = first.pop("small")
    assert {*first} == {"mlp", "stream", "layers", "heads", "all"}
    for run, losses in first.items():
        assert losses["11"] == pytest.approx(small["11"], abs=1e-5), run
        assert losses["12"] < losses["11"], run
    assert before == pytest.approx(small["11"], abs=1e-5) and before < after < before + 0.5


def test_tunix_goes_on_with_a_larger_module(tmp_path):
    first, _, _ = losses_of("tunix", "tunix", tmp_path)
    small, more = first.pop("small"), first.pop("vocabulary")
    assert {*first} == {"mlp", "stream", "layers", "heads", "all"}
    for run, losses in first.items():
        assert losses[0] == pytest.approx(small[0], abs=1e-5), run
        assert losses[1] < losses[0], run
    assert small[0] < more[0] < small[0] + 0.5
