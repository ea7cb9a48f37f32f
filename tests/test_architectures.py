"""The table of architectures in the documentation is what the library does."""

import dataclasses

import jax
import pytest
from architecture import load, measured
from architecture_table import MARKDOWN, in_short, markdown, read
from tiers import long

ARCHITECTURES = load()
RECORDED = {row["name"]: row for row in read()}
# The others are grown by tests/benchmarks/architectures.py, and by state.py, which takes minutes.
SOME = (
    "MLP",
    long("MLP, Haiku"),
    long("Minimal RNN (lax.scan)"),
    long("RealNVP (affine couplings)"),
)


def whats(refused):
    """Returns what was refused, without the reasons."""
    return [one.partition(": ")[0] for one in refused.split("; ")]


@pytest.mark.parametrize("name", SOME)
def test_an_architecture_grows_as_recorded(name):
    entry, recorded = ARCHITECTURES[name], RECORDED[name]
    if not entry.is_installed:
        pytest.skip(f"{entry.needs} is not installed")
    with jax.enable_x64(False), jax.numpy_rank_promotion("allow"):
        row = {k: str(v) for k, v in dataclasses.asdict(measured(entry)).items()}
    assert float(row.pop("change")) < 1e-4
    assert whats(row.pop("refused")) == whats(recorded["refused"])
    assert row == {name: recorded[name] for name in row}


def test_all_architectures_are_recorded_in_order():
    assert [*RECORDED] == [*ARCHITECTURES]


def test_the_page_is_what_the_rows_say():
    assert MARKDOWN.read_text() == markdown(read())


def test_the_readme_counts_the_rows():
    topics = {
        name: entry.build.__module__.removeprefix("architectures_")
        for name, entry in ARCHITECTURES.items()
    }
    readme = (MARKDOWN.parents[2] / "README.md").read_text()
    assert in_short(read(), topics) in readme
