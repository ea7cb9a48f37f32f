"""The way out that a refusal names is open: no width is sent from one refusal to the next."""

import dataclasses
import re
from typing import Any

import pytest
import test_trace_traps  # noqa: F401, for the traps in it
from networks import load
from tiers import some
from traps import TRAPS, X

import dogwood_jax as dw

NETWORKS = load()


def loss(variables: Any) -> Any:
    raise AssertionError("a plan computes no loss")


STRATEGIES = {
    "default": None,
    "zero_outgoing": dw.strategies.zero_outgoing(),
    "zeros": dw.strategies.zeros(),
    "replicate": dw.strategies.replicate(),
    "zero_incoming": dw.strategies.zero_incoming(),
    "tile": dw.strategies.tile(),
    "gradmax": dw.strategies.gradmax(loss),
    "gradmax, incoming": dw.strategies.gradmax(loss, variant="incoming"),
    "firefly": dw.strategies.firefly(loss),
    "random": dw.strategies.random(),
}
WAY_OUT = re.compile(
    r"(?:use |[;:] |and |^  )strategies\.(\w+)\(\)"
    r"(?: keeps outputs| grows it, but outputs change|; otherwise|:?$)"
    r"(?: for multiples of (\d+))?",
    re.MULTILINE,
)


def traced(name: str) -> dw.Widths:
    """The widths of a network, without its program, which may refuse what its widths allow."""
    if name in TRAPS:
        widths = dw.trace(TRAPS[name].apply, TRAPS[name].shapes, X)
    else:
        model = NETWORKS[name].build()
        widths = dw.trace(model.apply, model.shapes, *model.inputs)
    return dataclasses.replace(widths, network=None)


def refusal(widths: dw.Widths, sizes: Any, strategy: Any, interface: bool) -> str | None:
    try:
        dw.plan(widths, sizes, strategy=strategy, interface=interface)
    except ValueError as error:
        return str(error)
    return None


@pytest.mark.parametrize("name", some([*NETWORKS, *TRAPS], 3))
def test_the_way_out_is_open(name: str) -> None:
    widths = traced(name)
    for width, strategy in ((w, s) for w in widths.values() if not w.fixed for s in STRATEGIES):
        for size in (2 * width.size, width.size + 1):
            message = refusal(widths, {width.name: size}, STRATEGIES[strategy], False)
            interface = message is not None and "pass interface=True" in message
            if interface:
                message = refusal(widths, {width.name: size}, STRATEGIES[strategy], True)
            if message is None:
                continue
            ways = WAY_OUT.findall(message)
            assert ways, f"{width.name}, {strategy}: no way out of {message}"
            for line in message.splitlines():
                said = WAY_OUT.findall(line)
                assert len(said) == len({*said}), f"{width.name}, {strategy}: twice in {line}"
            for way, multiple in ways:
                into = {width.name: 2 * width.size if multiple else size}
                again = refusal(widths, into, getattr(dw.strategies, way)(), interface)
                assert again is None, f"{width.name}, {strategy}: {message}\n{way}: {again}"
