"""Strict numerics for every test: float64 enabled, no implicit rank promotion, fixed seeds."""

import gc
import os
import tempfile
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
# Arrays are small: handing parts of an operation to other threads takes longer than the operation.
os.environ.setdefault("NPROC", "1")
# For tests of meshes; all else stays on the first.
jax.config.update("jax_num_cpu_devices", 8)

hypothesis.settings.register_profile("repeatable", derandomize=True, database=None, deadline=None)
hypothesis.settings.load_profile("repeatable")


# It runs between modules, below, because it would look again and again at what tests leave behind.
gc.disable()


@pytest.fixture(scope="module", autouse=True)
def left_alone() -> Iterator[None]:
    """Lets Python's collector pass over what modules leave behind: gigabytes of programs."""
    yield
    gc.collect()
    gc.freeze()


# Each compiled program takes some of the 65,530 maps of memory that Linux lets a process have, and
# each growth that is judged leaves programs in JAX's caches. Workers may take half of the memory.
_MOST_MAPS, _LEAST_BYTES = 30_000, 3 << 30


def _share() -> int:
    """Returns how much memory each worker may have before it forgets programs."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(_LEAST_BYTES, memory // (2 * workers))


class _Left:
    """What tests of this process have left behind."""

    tests = 0
    most_bytes = 0


@pytest.fixture(autouse=True)
def within_memory() -> Iterator[None]:
    """Forgets programs before there are too many."""
    yield
    _Left.tests += 1
    if _Left.tests % 25 or not os.path.exists("/proc/self/maps"):
        return
    with open("/proc/self/maps") as maps:
        has_many = sum(1 for _ in maps) > _MOST_MAPS
    if has_many or _bytes() > max(_share(), _Left.most_bytes):
        jax.clear_caches()
        gc.unfreeze()
        gc.collect()
        _Left.most_bytes = _bytes() + (1 << 30)


def _bytes() -> int:
    """Returns how much memory this process has."""
    with open("/proc/self/statm") as sizes:
        return int(sizes.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def pytest_configure(config: pytest.Config) -> None:
    """Lets each worker load what another has compiled."""
    if hasattr(config, "workerinput") or "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    folder = tempfile.TemporaryDirectory()
    config.add_cleanup(folder.cleanup)
    os.environ |= {
        "JAX_COMPILATION_CACHE_DIR": folder.name,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }


# Tests of one network share what they trace and compile.
OF_NETWORKS = ("test_trace_growth.py", "test_strategies.py", "test_check.py")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keeps tests that share work on one worker: those of a network, and those of examples."""
    for item in items:
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        network = parameters.get("name") if item.path.name in OF_NETWORKS else None
        if item.path.name == "test_examples.py":
            item.add_marker(pytest.mark.xdist_group("examples"))
        elif network is not None:
            item.add_marker(pytest.mark.xdist_group(network))
