"""Strict numerics for every test: float64 enabled, no implicit rank promotion, fixed seeds."""

import gc
import os
from collections.abc import Iterator

import hypothesis
import jax
import pytest

# Tests state their dtypes; with float64 disabled, asking for it would silently give float32.
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")

# Tables fit the terminal. pytest-xdist tells its workers one of 80 columns.
os.environ["COLUMNS"] = "100"

# Tests compile for longer than they run. Unless asked for, as CI does on other versions of Python,
# they leave most optimizations out: compiling then takes half of the time.
if "JAX_DISABLE_MOST_OPTIMIZATIONS" not in os.environ:
    jax.config.update("jax_disable_most_optimizations", True)
# With the emitters that XLA had before, compiling takes a third of the time. Later versions do not
# know the flag, and the oldest have no others.
if jax.__version_info__[:2] == (0, 10):
    emitters = "--xla_cpu_use_fusion_emitters=false"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {emitters}".strip()
# For tests of meshes; all else stays on the first.
jax.config.update("jax_num_cpu_devices", 8)

hypothesis.settings.register_profile("repeatable", derandomize=True, database=None, deadline=None)
hypothesis.settings.load_profile("repeatable")


@pytest.fixture(scope="module", autouse=True)
def left_alone() -> Iterator[None]:
    """Lets Python's collector pass over what modules leave behind: gigabytes of programs."""
    yield
    gc.collect()
    gc.freeze()


# Each compiled program takes some of the 65,530 maps of memory that Linux lets a process have.
_MOST_MAPS = 30_000


@pytest.fixture(autouse=True)
def within_maps(request: pytest.FixtureRequest) -> Iterator[None]:
    """Forgets compiled programs before there are too many."""
    yield
    global _tests
    _tests += 1
    if _tests % 50 == 0 and os.path.exists("/proc/self/maps"):
        with open("/proc/self/maps") as maps:
            if sum(1 for _ in maps) > _MOST_MAPS:
                jax.clear_caches()
                gc.collect()


_tests = 0
OF_NETWORKS = ("test_trace_growth.py", "test_strategies.py", "test_judge.py")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keeps tests of a network, and those of the examples, on one worker: they share its work."""
    for item in items:
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        if item.path.name == "test_examples.py":
            item.add_marker(pytest.mark.xdist_group("examples"))
        elif item.path.name in OF_NETWORKS and "name" in parameters:
            item.add_marker(pytest.mark.xdist_group(parameters["name"]))
