"""Which units outputs depend on although nothing reads them."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from networks import NETWORKS, data, f64, load
from tiers import some

import dogwood_jax as dw
from dogwood_jax._plan.silence import heard

load()
X = data(3, 4)
MLP = {"up": f64(4, 5), "down": f64(5, 2)}
BETWEEN = {
    "relu": (jax.nn.relu, False),
    "exp": (jnp.exp, False),
    "root, which is no number for most units": (jnp.sqrt, False),
    "softmax": (jax.nn.softmax, True),
    "norm": (lambda h: h / jnp.sqrt(jnp.mean(h * h, -1, keepdims=True) + 1e-6), True),
    "norm under which nothing is zero": (lambda h: jnp.exp(h) / jnp.exp(h).sum(-1)[:, None], True),
    "sum beside": (lambda h: h + jnp.tanh(h).sum(-1)[:, None], True),
    "sorted": (lambda h: jnp.sort(h, -1), True),
    "divided by how many": (lambda h: h / h.shape[-1], False),
}


@pytest.mark.parametrize("name", BETWEEN)
def test_what_stands_between_units_and_their_reader(name: str) -> None:
    function, is_heard = BETWEEN[name]
    widths = dw.trace(lambda p, x: function(x @ p["up"]) @ p["down"], MLP, X)
    assert heard(widths, ["up"]) == ["up"] * is_heard


# A step of training takes means over pixels that grow along in its gradient.
@pytest.mark.parametrize("name", some([n for n in NETWORKS if n != "cnn_training"][::2], 4))
def test_widths_that_grow_without_a_change_of_outputs_are_silent(name: str) -> None:
    network = NETWORKS[name]
    model = network.build()
    widths = dw.trace(model.apply, model.shapes, *model.inputs)
    inner = {n: w for n, w in network.widths.items() if not (w.fixed or w.interface)}
    assert {*heard(widths, inner)} <= {n for n, width in inner.items() if width.changes}


def test_like_layers_are_evaluated_once() -> None:
    def apply(p: Any, x: Any) -> Any:
        for layer in p:
            x = x + jax.nn.softmax(x @ layer["up"]) @ layer["down"]
        return x

    layers = [{"up": f64(4, 5), "down": f64(5, 4)} for _ in range(12)]
    widths = dw.trace(apply, layers, X)
    names = [f"{layer}" for layer in range(12)]
    assert heard(widths, names) == names


def test_nothing_is_known_without_a_program() -> None:
    widths = dw.trace(lambda p, x: jax.nn.softmax(x @ p["up"]) @ p["down"], MLP, X)
    assert heard(dw.from_json(dw.to_json(widths)), ["up"]) == []
