"""Strict numerics for every test: float64 enabled, no implicit rank promotion, fixed seeds."""

import gc
import os
import re
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import jax
import pytest
from networks import ONE_OF_EACH_KIND

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


# Each compiled program takes some of the 65,530 maps of memory that Linux lets a process have, and
# each growth that is judged leaves programs in JAX's caches.
_MOST_MAPS, _MOST_BYTES = 30_000, 3 << 30


class _Left:
    """What tests of this process have left behind."""

    tests = 0
    most_bytes = _MOST_BYTES


@pytest.fixture(autouse=True)
def within_memory() -> Iterator[None]:
    """Forgets programs before there are too many."""
    yield
    _Left.tests += 1
    if _Left.tests % 25 or not os.path.exists("/proc/self/maps"):
        return
    with open("/proc/self/maps") as maps:
        has_many = sum(1 for _ in maps) > _MOST_MAPS
    if has_many or _bytes() > _Left.most_bytes:
        jax.clear_caches()
        gc.unfreeze()
        gc.collect()
        _Left.most_bytes = max(_MOST_BYTES, _bytes() + (1 << 30))


def _bytes() -> int:
    """Returns how much memory this process has."""
    with open("/proc/self/statm") as sizes:
        return int(sizes.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


OF_NETWORKS = ("test_trace_growth.py", "test_strategies.py", "test_judge.py")

# What ``pytest -m quick`` runs in two minutes, beside all tests of one network of each kind: the
# tests of these files whose names begin so.
QUICK = {
    "test_checkpoint": "a_checkpoint_grows|a_folder|names_map|ready_tables",
    "test_deepen": "programs_written_by_hand",
    "test_dead": "",
    "test_growth": "",
    "test_judge": "what_pairs_have_found|evidence|the_last_line|new_units_must|a_rule_that",
    "test_keras_h5": "",
    "test_narrow": "",
    "test_nnx": "grown_module|widths_|traces_|by_sizes|deepen_returns",
    "test_opt_state": "(?!states_that|variables_in)",
    "test_package": "",
    "test_primitives": "every|zeros|what_is_linear|degrees|folded|growth_is_exact.*_between",
    "test_reference": "",
    "test_rooms": "",
    "test_trace": "(?!widths)",
    "test_upcycle": "twice_the_experts|experts_in_place",
    "test_verify": "a_growth_that|all_outputs|a_value|integers|keys|nothing_hides",
    "test_widen": "new|replicate|zeros|random|copies|both|arguments|flax",
}


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Does not import files without quick tests where no others are asked for."""
    is_wanted = collection_path.stem in QUICK or collection_path.name in OF_NETWORKS
    is_left_out = config.option.markexpr == "quick" and collection_path.is_file() and not is_wanted
    return True if is_left_out else None  # else pytest decides


def is_quick(item: pytest.Item, network: str | None) -> bool:
    """Whether a test is one of those that take two minutes together."""
    if item.get_closest_marker("slow"):
        return False
    names = QUICK.get(item.path.stem)
    is_named = names is not None and re.match(f"test_({names})", item.name) is not None
    return is_named or network in ONE_OF_EACH_KIND


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks quick tests, and keeps tests that share work on one worker: those of a network."""
    for item in items:
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        network = parameters.get("name") if item.path.name in OF_NETWORKS else None
        if item.path.name == "test_examples.py":
            item.add_marker(pytest.mark.xdist_group("examples"))
        elif network is not None:
            item.add_marker(pytest.mark.xdist_group(network))
        if is_quick(item, network):
            item.add_marker(pytest.mark.quick)
