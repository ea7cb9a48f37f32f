"""Strategies that users write: functions of the widths, a name, a size and a new size."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import data

import dogwood_jax as dw

start = dw.strategies.start
INIT = jax.nn.initializers
X = data(7, 5, seed=0)
VARIABLES = {
    "in": data(5, 6, seed=1),
    "mid": data(6, 4, seed=3),
    "out": data(4, 3, seed=4),
}


def apply(variables: Any, x: Any) -> Any:
    hidden = jnp.tanh(x @ variables["in"])
    return jnp.tanh(hidden @ variables["mid"]) @ variables["out"]


WIDTHS = dw.trace(apply, VARIABLES, X)


def grown(strategy: Any, sizes: Any) -> tuple[dw.Growth, Any]:
    growth = dw.plan(WIDTHS, sizes, strategy=strategy)
    return growth, dw.grow(VARIABLES, growth, key=jax.random.key(0))


def test_a_strategy_is_asked_once_for_each_width_that_grows() -> None:
    asked = []

    def strategy(widths: Any, name: str, old: int, new: int) -> Any:
        asked.append((widths is WIDTHS, name, old, new))
        return start()

    grown(strategy, {"in": 8})
    assert asked == [(True, "in", 6, 8)]


def test_orthogonal_incoming_weights() -> None:
    def orthogonal(widths: Any, name: str, old: int, new: int) -> Any:
        return start(incoming=INIT.orthogonal())

    growth, wide = grown(orthogonal, {"in": 8})
    assert growth.evidence
    drawn = INIT.orthogonal()(jax.random.key(3), (5, 8), float)
    assert wide["in"].dtype == drawn.dtype
    np.testing.assert_allclose(apply(wide, X), apply(VARIABLES, X), atol=1e-12)
    new = np.linalg.norm(wide["in"][:, 6:], axis=0)
    assert (new > 0).all()
    assert (new <= 1 + 1e-9).all()  # a part of a matrix with orthonormal rows
    with pytest.raises(ValueError, match="cannot be written as JSON"):
        dw.to_json(growth)
    assert dw.from_json(dw.to_json(grown(start(), {"in": 8})[0])).evidence


def test_each_side_has_an_initializer_of_its_own() -> None:
    ones, halves = INIT.constant(1.0), INIT.constant(0.5)
    growth, wide = grown(start(ones, halves), {"in": 8})
    assert growth.evidence is None
    np.testing.assert_array_equal(wide["in"][:, 6:], np.ones((5, 2)))
    np.testing.assert_array_equal(wide["mid"][6:], np.full((2, 4), 0.5))
    # Of an array with new entries of both, the width whose units it makes decides.
    by_name = {"in": start(INIT.constant(2.0), halves), "mid": start(ones, "zero")}
    _, wide = grown(by_name, {"in": 8, "mid": 5})
    np.testing.assert_array_equal(wide["mid"][:, 4:], np.ones((8, 1)))


def test_a_wrong_one_is_refused() -> None:
    def copies(widths: Any, name: str, old: int, new: int) -> Any:
        return start("copy", "copy")

    with pytest.raises(ValueError, match="the network itself computes something else"):
        grown(copies, {"in": 8})  # for twice as many, halves of all outgoing weights are found
    growth, wide = grown(start("copy", "share"), {"in": 12})
    np.testing.assert_allclose(apply(wide, X), apply(VARIABLES, X), atol=1e-12)
    assert growth.evidence


def test_it_may_follow_from_the_width_and_from_sizes() -> None:
    def strategy(widths: Any, name: str, old: int, new: int) -> Any:
        is_multiple = new % old == 0
        return start("copy", "share") if is_multiple else start(outgoing="zero")

    growth, _ = grown(strategy, {"in": 12, "mid": 5})
    assert growth.change["in"].sources == (*range(6), *range(6))
    assert growth.change["mid"].sources is None


def test_behind_a_norm_the_search_takes_its_initializers() -> None:
    def normed(variables: Any, x: Any) -> Any:
        h = x @ variables["in"]
        h = h / jnp.sqrt(jnp.mean(h * h, -1, keepdims=True) + 1e-5)
        return h @ variables["mid"] @ variables["out"]

    twos = functools.partial(start, outgoing=INIT.constant(2.0))
    widths = dw.trace(normed, VARIABLES, X)
    growth = dw.plan(widths, {"in": 8}, strategy=lambda *_: twos("zero"))
    wide = dw.grow(VARIABLES, growth, key=jax.random.key(0))
    np.testing.assert_array_equal(wide["mid"][6:], np.full((2, 4), 2.0))
    np.testing.assert_allclose(normed(wide, X), normed(VARIABLES, X), rtol=1e-9)


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        (dw.strategies.zeros, "got the function zeros: call it"),
        (
            INIT.zeros,
            r"the function zeros, called with \(widths, 'in', 6, 8\), raises .*initializer",
        ),
        (lambda *_: INIT.orthogonal(), "returns the function .* start"),
        (lambda widths: start(), "raises TypeError"),
        ({"in": 3}, "got 3"),
        ("zeros", "got 'zeros'"),
    ],
)
def test_what_is_no_strategy(strategy: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        grown(strategy, {"in": 8})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"incoming": "share"}, "incoming must be an initializer or one of"),
        ({"outgoing": "mean"}, "outgoing must be an initializer or one of"),
        ({"outgoing": "share"}, "incoming='copy', too"),
        ({"noise": -1.0}, "noise must be zero or positive"),
    ],
)
def test_what_is_no_start(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        start(**arguments)
