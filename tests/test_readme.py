"""The README's own code."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# What is said of a recipe beside its code.
CLAIMS = {
    "silent = ": """
grown = nn.Sequential([nn.Dense(128), nn.relu, nn.Dense(11)])
assert (grown.apply(wide, x).argmax(-1) < 10).all(), "the new class is predicted"
""",
    "import equinox": "assert wide.layers[0].out_features == 256",
}
EACH_ALONE = """
import json, sys
code, recipes = json.load(sys.stdin)
after = {}
exec(code, after)
for recipe in recipes:
    exec(recipe, dict(after))
"""


@pytest.mark.long
def test_each_recipe_of_the_readme_runs_after_its_first_block(tmp_path):
    # In a process of its own: the tests' strict mode is not what a reader of the README has.
    code, *recipes = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    # test_keras runs those with Keras, where it is installed.
    recipes = [recipe for recipe in recipes if "keras" not in recipe]
    for start, claim in CLAIMS.items():
        (index,) = (i for i, recipe in enumerate(recipes) if recipe.startswith(start))
        recipes[index] += claim
    run = subprocess.run(
        [sys.executable, "-c", EACH_ALONE],
        input=json.dumps([code, recipes]),
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},  # compiling takes longest
    )
    assert run.returncode == 0, run.stderr
    (difference, *_) = re.findall(r"largest difference (\S+) ", run.stdout)
    assert 0 <= float(difference) <= 1e-6
