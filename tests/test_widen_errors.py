"""What widening Dense layers by name refuses, and what it says then."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dogwood_jax as dw


def dense(inputs, units, dtype="float32"):
    return {"kernel": jnp.ones((inputs, units), dtype), "bias": jnp.zeros(units, dtype)}


PARAMS = {"dense_1": dense(784, 3), "dense_2": dense(3, 5), "dense_3": dense(5, 10)}
CHAIN = tuple(PARAMS)

# What is asked, on which parameters, and what the message must say: path, shape and way out.
ERRORS = {
    "unknown layer": (
        PARAMS,
        ("dens_1", {"into": "dense_2", "units": 4}),
        ["no layer 'dens_1'", "closest are ['dense_1'"],
    ),
    "unknown reader": (
        {"params": {"encoder": PARAMS}},
        ("encoder/dense_1", {"into": "dense_2", "units": 4}),
        ["no layer 'dense_2'", "closest are ['encoder/dense_2'"],
    ),
    "unknown layer in the sizes": (
        PARAMS,
        ({"dense_4": 4}, {"order": CHAIN}),
        ["dense_4", "not in order", "closest are ['dense_3'"],
    ),
    "no layers": ({}, ("dense_1", {"into": "dense_2", "units": 4}), ["no layer 'dense_1'"]),
    "fewer units": (
        PARAMS,
        ("dense_1", {"into": "dense_2", "units": 2}),
        ["dense_1", "2 units", "today's 3"],
    ),
    "fewer units in several layers": (
        PARAMS,
        ({"dense_1": 2, "dense_2": -1}, {"order": CHAIN}),
        ["dense_1", "2 units", "today's 3", "dense_2", "at least one unit, got -1"],
    ),
    "half a unit": (
        PARAMS,
        ("dense_1", {"into": "dense_2", "units": 4.5}),
        ["dense_1", "integer", "4.5"],
    ),
    "into a layer of another size": (
        PARAMS,
        ("dense_1", {"into": "dense_3", "units": 4}),
        ["dense_3", "(5, 10)", "reads 5 units", "dense_1 has 3", "name the layer that reads"],
    ),
    "not a matrix": (
        {"conv": {"kernel": jnp.ones((3, 3, 1, 3))}, "dense_2": dense(3, 5)},
        ("conv", {"into": "dense_2", "units": 4}),
        ["conv/kernel of shape (3, 3, 1, 3)", "[in, out]", "use trace"],
    ),
    "not a kernel": (
        {"embedding": {"embedding": jnp.ones((9, 3))}, "dense_2": dense(3, 5)},
        ("embedding", {"into": "dense_2", "units": 4}),
        ["embedding/embedding of shape (9, 3)", "use trace"],
    ),
    "a bias of another size": (
        {"dense_1": {"kernel": jnp.ones((9, 3)), "bias": jnp.ones(4)}, "dense_2": dense(3, 5)},
        ("dense_1", {"into": "dense_2", "units": 4}),
        ["dense_1/bias of shape (4,)", "[out]"],
    ),
    "more than kernel and bias": (
        {"dense_1": {**dense(9, 3), "scale": jnp.ones(3)}, "dense_2": dense(3, 5)},
        ("dense_1", {"into": "dense_2", "units": 4}),
        ["dense_1/scale of shape (3,)", "use trace"],
    ),
    "a module, not a layer": (
        {"encoder": PARAMS, "head": dense(10, 2)},
        ("encoder", {"into": "head", "units": 12}),
        ["encoder/dense_1/kernel of shape (784, 3)", "expected a Dense layer"],
    ),
    "integer weights": (
        {"dense_1": dense(9, 3, "int8"), "dense_2": dense(3, 5)},
        ("dense_1", {"into": "dense_2", "units": 4}),
        ["dense_1/kernel", "int8", "(9, 3)", "astype"],
    ),
    "missing order": (PARAMS, ({"dense_1": 4}, {}), ["pass order=", "'dense_1'"]),
    "cyclic order": (
        PARAMS,
        ({"dense_1": 4}, {"order": (*CHAIN, "dense_1")}),
        ["dense_1", "twice in order", "name each layer once"],
    ),
    "a layer into itself": (
        {"dense_1": dense(3, 3)},
        ("dense_1", {"into": "dense_1", "units": 4}),
        ["dense_1", "cannot feed itself"],
    ),
    "one layer under two names": (
        {"params": {"dense_1": dense(3, 3), "dense_2": dense(3, 3)}},
        ({"dense_1": 4}, {"order": ("dense_1", "params/dense_1", "dense_2")}),
        ["dense_1", "twice in order"],
    ),
    "one size under two names": (
        {"params": PARAMS},
        ({"dense_1": 4, "params/dense_1": 5}, {"order": CHAIN}),
        ["dense_1", "named twice"],
    ),
    "an order of one": (PARAMS, ({"dense_1": 4}, {"order": "dense_1"}), ["at least two layers"]),
    "the last layer": (
        PARAMS,
        ({"dense_3": 12}, {"order": CHAIN}),
        ["dense_3", "last in order", "append this layer to order"],
    ),
    "one layer without its reader": (PARAMS, ("dense_1", {"units": 4}), ["pass into="]),
    "one layer without units": (PARAMS, ("dense_1", {"into": "dense_2"}), ["units="]),
    "one layer with an order": (
        PARAMS,
        ("dense_1", {"into": "dense_2", "units": 4, "order": CHAIN}),
        ["no order="],
    ),
    "several layers with a reader": (
        PARAMS,
        ({"dense_1": 4}, {"into": "dense_2"}),
        ["pass order= instead"],
    ),
    "all at once": (
        {"dense_1": dense(9, 3, int), "dense_2": dense(4, 5)},
        ({"dense_1": 4}, {"order": ("dense_1", "dense_2", "dens_3")}),
        ["dense_1/kernel", "reads 4 units", "no layer 'dens_3'"],
    ),
}


@pytest.mark.parametrize("case", ERRORS.values(), ids=ERRORS)
def test_errors_say_where_what_and_the_way_out(case):
    params, (layer, arguments), parts = case
    with pytest.raises(ValueError) as error:
        dw.widen(params, layer, **arguments, key=jax.random.key(0))
    for part in parts:
        assert part in str(error.value)


def test_a_missing_key_is_named():
    with pytest.raises(ValueError, match=r"dense_1/kernel: gets random new weights; pass key="):
        dw.widen(PARAMS, "dense_1", into="dense_2", units=4)
    for strategy in (dw.strategies.zeros(), dw.strategies.replicate()):
        dw.widen(PARAMS, "dense_1", into="dense_2", units=4, strategy=strategy)


@pytest.mark.parametrize("strategy", ["zeros", dw.strategies.zeros], ids=["name", "function"])
def test_a_strategy_is_not_a_name(strategy):
    with pytest.raises(TypeError, match=r"strategy must come from dw\.strategies, .*zeros"):
        dw.widen(PARAMS, "dense_1", into="dense_2", units=4, strategy=strategy)


def test_float64_is_never_cut_short():
    params = {"dense_1": {"kernel": np.ones((9, 3))}, "dense_2": {"kernel": np.ones((3, 5))}}
    jax.config.update("jax_enable_x64", False)
    try:
        with pytest.raises(ValueError, match=r"dense_1/kernel: is float64, .*\n.*jax_enable_x64"):
            dw.widen(params, "dense_1", into="dense_2", units=4, key=jax.random.key(0))
    finally:
        jax.config.update("jax_enable_x64", True)
