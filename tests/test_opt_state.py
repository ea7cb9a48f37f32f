"""The optimizer's state after growing, against the state of a network that was large before."""

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from flax.training.train_state import TrainState
from tiers import long

import dogwood_jax as dw


class Network(nn.Module):
    a: int = 8
    b: int = 7

    @nn.compact
    def __call__(self, x):
        x = nn.tanh(nn.Dense(self.a, param_dtype=jnp.float64)(x))
        x = nn.tanh(nn.Dense(self.b, param_dtype=jnp.float64)(x))
        return nn.Dense(3, param_dtype=jnp.float64)(x)


RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(16, 6)))
VARIABLES = jax.tree.map(
    lambda leaf: jnp.asarray(RNG.normal(size=leaf.shape) / 2, leaf.dtype),
    jax.eval_shape(Network().init, jax.random.key(1), X),
)
SIZES = {"Dense_0": 12, "Dense_1": 10}


@functools.cache
def planned(split=None, noise=0.0):
    """A growth with new weights, or one of copies if there is a split."""
    widths = dw.trace(Network().apply, VARIABLES, X)
    strategy = dw.strategies.replicate(split=split, noise=noise) if split else None
    return dw.plan(widths, SIZES, strategy=strategy)


grow = jax.jit(dw.grow)
grow_opt_state = jax.jit(dw.grow_opt_state, static_argnames=("growth", "tx", "second_moment"))


def by_kind(params):
    return jax.tree.map(lambda p: "kernel" if p.ndim > 1 else "bias", params)


def optimizers():
    kernels = {"kernel": optax.adam(1e-3), "bias": optax.sgd(0.1, momentum=0.9)}
    frozen = {"kernel": optax.adam(1e-3), "bias": optax.set_to_zero()}
    return {
        "adam": optax.adam(1e-3),
        "amsgrad": optax.amsgrad(1e-3),
        "lion": optax.lion(1e-3),
        "lamb": optax.lamb(1e-3),
        "momentum": optax.sgd(0.1, momentum=0.9, nesterov=True),
        "muon": optax.contrib.muon(1e-3),
        "partition": optax.multi_transform(kernels, by_kind),
        "frozen": optax.multi_transform(frozen, by_kind),
        "masked": optax.masked(optax.adam(1e-3), lambda p: jax.tree.map(lambda a: a.ndim > 1, p)),
        "hyperparameters": optax.inject_hyperparams(optax.adam)(1e-3),
        "accumulating": optax.MultiSteps(optax.adam(1e-3), 2),
        "average of gradients": optax.chain(optax.ema(0.9), optax.scale(-1e-3)),
        "rprop": optax.rprop(1e-3),
        # Of the class of Adam's state, but not averages of the same powers.
        "alike": optax.multi_transform(
            {"kernel": optax.contrib.adopt(1e-3), "bias": optax.adamax(1e-3)}, by_kind
        ),
        "adagrad after signs": optax.chain(
            optax.scale_by_lion(), optax.trace(0.9), optax.scale_by_rss()
        ),
    }


def loss(params, x, network):
    outputs = network.apply({"params": params}, x)
    return jnp.sum(jnp.sin(outputs) @ jnp.array([1.0, 2.0, 3.0]))


@functools.cache
def gradients(network, split=None):
    """Gradients at the parameters, one after another; of copies of them if there is a split."""
    params = VARIABLES["params"]
    if split:
        params = grow(VARIABLES, planned(split))["params"]
    gradient = jax.jit(lambda shift: jax.grad(loss)(params, X + shift, network))
    return params, [gradient(shift) for shift in (0.0, 1.0, 2.0)]


@functools.cache
def wide(split=None):
    return grow(VARIABLES, planned(split), key=jax.random.key(2))


def trained(tx, network=None, split=None):
    """The state after some gradients at the same parameters."""
    params, steps = gradients(network or Network(), split)

    @jax.jit
    def run(params, steps):
        state = tx.init(params)
        for gradient in steps:
            _, state = tx.update(gradient, state, params)
        return state

    return run(params, steps)


def assert_equal(found, wanted, tolerance=1e-10):
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert (jnp.shape(a), jnp.result_type(a)) == (jnp.shape(b), jnp.result_type(b))
        # Some optimizers keep float32 whatever the parameters.
        rtol = 1e-5 if jnp.result_type(a) == jnp.float32 else tolerance
        np.testing.assert_allclose(a, b, rtol=rtol, atol=tolerance * np.max(np.abs(b), initial=0))


SHORT = ("adam", "muon", "partition")


@functools.cache
def merged(split):
    """The growth that takes copies together again."""
    large, _ = gradients(Network(12, 10), split)
    after = planned(split).after
    find = functools.partial(dw.find_symmetric, {"params": large}, outgoing=False)
    return dw.plan(after, merge={width: find(after[width]) for width in SIZES})


@pytest.mark.parametrize(
    ("name", "split"),
    [
        long("adam", "even"),
        *((name, "uneven") for name in SHORT),
        *(long(n, "uneven") for n in optimizers() if n not in SHORT),
    ],
)
def test_after_replicating_the_state_is_that_of_the_large_network(name, split):
    tx = optimizers()[name]
    wanted, state = trained(tx, Network(12, 10), split), trained(tx)
    # Optax's running mean of accumulated gradients goes through float32; Adamax adds an epsilon.
    tolerance = {"accumulating": 1e-5, "alike": 1e-8}.get(name, 1e-10)
    assert_equal(grow_opt_state(state, planned(split), tx), wanted, tolerance)
    # And back: merging adds gradients up again.
    assert_equal(grow_opt_state(wanted, merged(split), tx), state, tolerance)


def test_old_entries_are_those_of_the_large_network_and_new_ones_means():
    tx = optax.adam(1e-3)
    growth, state = planned(), tx.init(large := wide()["params"])
    gradient = jax.jit(lambda shift: jax.grad(loss)(large, X + shift, Network(12, 10)))
    for shift in (0.0, 1.0, 2.0):
        _, state = jax.jit(tx.update)(gradient(shift), state, large)
    wanted = state[0]
    found = dw.grow_opt_state(trained(tx), growth, tx, second_moment="mean")[0]
    for moment in ("mu", "nu"):
        a, b = (getattr(s, moment)["Dense_1"]["kernel"] for s in (found, wanted))
        np.testing.assert_allclose(a[:8, :7], b[:8, :7], rtol=1e-10)
    kernel = found.nu["Dense_1"]["kernel"]
    np.testing.assert_array_equal(found.mu["Dense_1"]["kernel"][8:], 0)
    np.testing.assert_allclose(kernel[8:, :7], np.tile(kernel[:8, :7].mean(0), (4, 1)))
    assert found.count == 3
    zeros = dw.grow_opt_state(trained(tx), growth, tx, second_moment="zeros")[0]
    np.testing.assert_array_equal(zeros.nu["Dense_1"]["kernel"][8:], 0)


@pytest.mark.parametrize(("tx", "degree"), [(optax.adam(1e-3), 2), (optax.adamax(1e-3), 1)])
def test_squares_are_scaled_twice_and_magnitudes_once(tx, degree):
    """Each of two copies that halve their outgoing weights has half of the gradient."""
    widths, params = dw.trace(Network().apply, VARIABLES, X), VARIABLES["params"]
    growth = dw.plan(widths, {"Dense_0": 16}, strategy=dw.strategies.replicate())
    _, state = jax.jit(tx.update)(params, tx.init(params), params)
    states = dw.grow_opt_state(state, growth, tx), state
    found, old = (state[0].nu["Dense_0"]["kernel"] for state in states)
    np.testing.assert_allclose(found, 0.5**degree * np.tile(old, 2), rtol=1e-12)


def test_narrowing_keeps_the_entries_of_units_that_stay():
    tx = optax.adam(1e-3)
    state = trained(tx)
    grown = dw.grow_opt_state(state, growth := planned(), tx)
    back = dw.plan(growth.after, keep={"Dense_0": range(8), "Dense_1": range(7)})
    assert_equal(dw.grow_opt_state(grown, back, tx), state)


@pytest.mark.parametrize("smallest", [long(5), 8])
def test_adafactor_factors_by_the_new_size(smallest):
    tx = optax.adafactor(1e-3, min_dim_size_to_factor=smallest)
    params = wide()["params"]
    state = dw.grow_opt_state(trained(tx), planned(), tx)
    shapes = jax.tree.map(jnp.shape, jax.eval_shape(tx.init, params))
    assert jax.tree.map(jnp.shape, state) == shapes
    updates, _ = jax.jit(tx.update)(params, state, params)
    assert all(np.isfinite(u).all() for u in jax.tree.leaves(updates))


def test_copies_of_parameters_begin_at_the_parameters():
    tx = optax.contrib.schedule_free_adamw(1e-3)
    state = tx.init(VARIABLES["params"])
    grown = dw.grow_opt_state(state, planned(), tx, variables=wide())
    assert_equal(grown.z, wide()["params"])


@pytest.mark.long
def test_a_train_state_grows_as_a_whole():
    tx = optax.adam(1e-3)
    state = TrainState.create(apply_fn=Network().apply, params=VARIABLES["params"], tx=tx)
    state = state.apply_gradients(grads=VARIABLES["params"])
    growth = planned()
    large = grow({"params": state.params}, growth, key=jax.random.key(2))
    grown = dw.grow_opt_state(state, growth, tx, variables=large)
    assert_equal(grown.params, large["params"])
    assert grown.step == 1
    assert_equal(grown.opt_state, dw.grow_opt_state(state.opt_state, growth, tx))


HOLD_PARAMETERS = {
    "dog": optax.contrib.dog,
    "dowg": optax.contrib.dowg,
    "layerwise dog": optax.scale_by_distance_over_gradients,
    "prodigy": optax.contrib.prodigy,
    "madgrad": lambda: optax.contrib.madgrad(1e-3),
    "mechanic": lambda: optax.contrib.mechanize(optax.adam(1e-3)),
    "schedule free": optax.contrib.schedule_free_adamw,
    "sam": lambda: optax.contrib.sam(optax.sgd(0.1), optax.sgd(0.1)),
}


# Before, DoG's state held zeros until the first update, and SAM's had another structure.
IS_OLD_OPTAX = not hasattr(optax.contrib, "madgrad")


@pytest.mark.skipif(IS_OLD_OPTAX, reason="states of this version of Optax begin otherwise")
@pytest.mark.parametrize(
    ("name", "wrapped"),
    [
        *(("dowg", True), ("sam", False)),
        *(long(n, False) for n in HOLD_PARAMETERS if n != "sam"),
        *(long(n, True) for n in ("mechanic", "schedule free")),
    ],
)
def test_states_that_hold_parameters_need_the_random_ones(name, wrapped):
    tx = HOLD_PARAMETERS[name]()
    tx = dw.growable(tx) if wrapped else tx
    state = tx.init(VARIABLES["params"])
    with pytest.raises(ValueError, match=r"holds parameters, .*variables=dw.grow\(\.\.\.\)"):
        dw.grow_opt_state(state, planned(), tx)
    with_them = grow_opt_state(state, planned("even"), tx, variables=wide("even"))
    assert_equal(grow_opt_state(state, planned("even"), tx), with_them)


@pytest.mark.skipif(IS_OLD_OPTAX, reason="states of this version of Optax begin otherwise")
def test_states_that_hold_parameters_need_those_of_new_layers():
    def apply(params, x):
        for name in sorted(params):
            x = x + jnp.tanh(x @ params[name]["up"]) @ params[name]["down"]
        return x

    def layers(names):
        return {name: {"up": jnp.ones((6, 5)), "down": jnp.ones((5, 6))} for name in names}

    small, deep, tx = layers("a"), layers("ab"), optax.contrib.dog()
    shapes = jax.eval_shape(lambda: deep)
    growth = dw.plan(dw.trace(apply, small, X), target=shapes, target_apply=apply)
    with pytest.raises(ValueError, match=r"holds parameters, .*variables=dw.grow\(\.\.\.\)"):
        dw.grow_opt_state(tx.init(small), growth, tx)
    wide = dw.grow(small, growth, key=jax.random.key(0))
    grown = dw.grow_opt_state(tx.init(small), growth, tx, variables=wide)
    assert_equal(grown[1].init_params, wide)


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_a_train_state_gets_the_parameters_that_were_given(noise):
    growth, tx = planned("even", noise), optax.sgd(0.1)
    wide = grow(VARIABLES, growth, key=jax.random.key(0))
    state = TrainState.create(apply_fn=None, params=VARIABLES["params"], tx=tx)
    assert_equal(dw.grow_opt_state(state, growth, tx, variables=wide).params, wide["params"])


def test_a_train_state_with_new_random_parameters_needs_them():
    tx = dw.growable(optax.adam(1e-3))
    state = TrainState.create(apply_fn=Network().apply, params=VARIABLES["params"], tx=tx)
    with pytest.raises(ValueError, match=r"params/.*variables=dw.grow"):
        dw.grow_opt_state(state, planned(), tx)
    grown = dw.grow_opt_state(state, planned("even"), tx)
    assert_equal(grown.params, wide("even")["params"])


@pytest.mark.parametrize("tx", [optax.novograd(1e-3), optax.zero_nans(), optax.sm3(1e-3)])
def test_arrays_of_one_number_are_told_from_one_number_for_an_array(tx):
    params = {"up": {"kernel": jnp.ones((3, 1))}, "down": {"kernel": jnp.ones((1, 1))}}
    growth = dw.plan(dw.chain(params, ("up", "down")), {"up": 3})
    grown = dw.grow_opt_state(tx.init(params), growth, tx)
    wanted = jax.eval_shape(tx.init, dw.grow(params, growth, key=jax.random.key(0)))
    assert jax.tree.map(jnp.shape, grown) == jax.tree.map(jnp.shape, wanted)


def test_what_adds_up_starts_where_it_started_in_double_precision():
    tx = optax.adagrad(1e-3)
    growth = planned("even")
    grown = dw.grow_opt_state(tx.init(VARIABLES["params"]), growth, tx)
    assert all((leaf == 0.1).all() for leaf in jax.tree.leaves(grown[0].sum_of_squares))


def test_a_state_without_any_array_is_wrapped():
    plain = optax.chain(optax.clip(1.0), optax.sgd(optax.linear_schedule(0.1, 0.0, 9)))
    tx, growth = dw.growable(plain), planned()
    grown = dw.grow_opt_state(plain.init(VARIABLES["params"]), growth, tx)
    assert_equal(grown, tx.init(VARIABLES["params"]))


def test_a_state_without_any_array_that_depends_on_their_tree_is_refused():
    def init(params):
        return {name: jnp.zeros(()) for name in params}

    plain = optax.GradientTransformation(init, lambda updates, state, params=None: (updates, state))
    growth, state = planned(), init(VARIABLES["params"])
    assert_equal(dw.grow_opt_state(state, growth, plain), state)
    with pytest.raises(ValueError, match=r"not known how tx wraps this state; start anew"):
        dw.grow_opt_state(state, growth, dw.growable(plain))


class Unknown(NamedTuple):
    momentum: dict


def test_unknown_fields_are_named_and_can_be_explained():
    growth = planned()
    trace = optax.trace(0.9)

    def init(params):
        return Unknown(trace.init(params).trace)

    tx = optax.GradientTransformation(init, trace.update)
    state = Unknown(VARIABLES["params"])
    with pytest.raises(ValueError, match="field 'momentum' of Unknown has no known meaning"):
        dw.grow_opt_state(state, growth, tx)
    found = dw.grow_opt_state(state, growth, tx, fields={"momentum": "first"})
    wanted = dw.grow_opt_state(optax.TraceState(VARIABLES["params"]), growth, trace)
    assert_equal(found.momentum, wanted.trace)


def test_an_average_may_be_one_of_parameters():
    growth = planned("even")
    tx = optax.ema(0.9, debias=False)
    state = optax.EmaState(jnp.array(3), VARIABLES["params"])
    with pytest.raises(ValueError, match="ema/Dense_0/bias and 5 more: field 'ema' of"):
        dw.grow_opt_state(state, growth, tx)
    grown = dw.grow_opt_state(state, growth, tx, fields={"ema": "parameters"})
    jax.tree.map(np.testing.assert_array_equal, grown.ema, dw.grow(VARIABLES, growth)["params"])
    with pytest.raises(ValueError, match="no field 'emma'") as error:
        dw.grow_opt_state(state, growth, tx, fields={"emma": "first", "ema": "frist"})
    assert "'ema' holds one of ('first', 'second'" in str(error.value)


def test_a_state_that_is_only_called_like_one_of_optax_is_not_known():
    class EmaState(NamedTuple):
        ema: dict

    ema = optax.GradientTransformation(EmaState, None)
    growth = planned()
    with pytest.raises(ValueError, match="field 'ema' of EmaState has no known meaning"):
        dw.grow_opt_state((EmaState(VARIABLES["params"]),), growth, optax.chain(ema))


def test_parameters_in_one_array_are_refused():
    tx = optax.flatten(optax.adam(1e-3))
    state = tx.init(VARIABLES["params"])
    with pytest.raises(ValueError, match=r"0/mu: has shape \(143,\), but no array"):
        dw.grow_opt_state(state, planned(), tx)


def test_another_optimizer_is_refused():
    growth = planned()
    state = optax.adam(1e-3).init(VARIABLES["params"])
    with pytest.raises(TypeError, match="tx must be the optax.GradientTransformation"):
        dw.grow_opt_state(state, growth, None)
    with pytest.raises(ValueError, match="does not belong to tx"):
        dw.grow_opt_state(state, growth, optax.sgd(0.1, momentum=0.9))
    with pytest.raises(ValueError, match="second_moment must be"):
        dw.grow_opt_state(state, growth, optax.adam(1e-3), second_moment="ones")


# Variables in lists -------------------------------------------------------------------------------


class Weights(NamedTuple):
    kernel: jax.Array
    b1: jax.Array  # called like a hyperparameter
    out: jax.Array


def leaves_of(seed):
    shapes = [(6, 8), (8,), (8, 3)]
    draw = np.random.default_rng(seed).normal
    return [jnp.asarray(draw(size=shape)) for shape in shapes]


def plain(arrays, x):
    kernel, bias, out = arrays
    return jnp.tanh(x @ kernel + bias[None]) @ out


def with_statistics(variables, x):
    """Trainable and other variables in two lists, as Keras' ``stateless_call`` takes them."""
    (kernel, bias, out), (scale, mean) = variables
    return (jnp.tanh(x @ kernel + bias[None]) - mean[None]) * scale[None] @ out


LAYOUTS = {
    "list": (lambda a: a, lambda v, x: plain(v, x), lambda v: v, ("0", 1)),
    "tuple": (tuple, lambda v, x: plain(v, x), lambda v: v, ("0", 1)),
    "nested": (
        lambda a: [a[:2], a[2:]],
        lambda v, x: plain(sum(v, []), x),
        lambda v: v,
        ("0/0", 1),
    ),
    "named tuple": (lambda a: Weights(*a), lambda v, x: plain(v, x), lambda v: v, ("kernel", 1)),
    "Keras": (lambda a: (a, [a[1], a[1]]), with_statistics, lambda v: v[0], ("0/0", 1)),
}


@functools.cache
def planned_by_name():
    named = dict(zip("abc", leaves_of(0)))
    return dw.plan(dw.trace(lambda v, x: plain(v.values(), x), named, X), {("a", 1): 12})


IN_LISTS = {
    "chain": optax.chain(optax.clip(1.0), optax.adamw(1e-3)),
    "chain of chains": optax.chain(
        optax.clip_by_global_norm(1.0), optax.chain(optax.zero_nans(), optax.scale_by_lion())
    ),
    "finite": optax.apply_if_finite(optax.adamw(1e-3), 3),
    "sm3": optax.sm3(1e-3),
    "adafactor": optax.adafactor(1e-3, min_dim_size_to_factor=4),
    "schedule free": optax.contrib.schedule_free_adamw(1e-3),
}


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        *(("masked", "list"), ("chain", "nested"), ("partition", "list"), ("sm3", "nested")),
        *(("adafactor", "Keras"), ("schedule free", "nested"), ("masked", "named tuple")),
        *(
            long(*case)
            for case in (
                *(("masked", "tuple"), ("masked", "nested"), ("masked", "Keras")),
                *(("chain", "tuple"), ("chain of chains", "nested"), ("accumulating", "Keras")),
                *(("hyperparameters", "list"), ("finite", "nested"), ("schedule free", "Keras")),
            )
        ),
    ],
)
def test_variables_in_lists_are_told_from_the_state_around_them(name, layout):
    tx = (optimizers() | IN_LISTS)[name]
    arrange, apply, trainable, place = LAYOUTS[layout]
    variables = arrange(leaves_of(0))
    if name == "partition" or name == "masked":
        # The kernels are told by their axes, whatever they are called.
        labelled = trainable(variables)
        assert jax.tree.leaves(by_kind(labelled)) == ["kernel", "bias", "kernel"]
    params = trainable(variables)
    gradient = jax.tree.map(jnp.square, params)
    _, state = jax.jit(tx.update)(gradient, tx.init(params), params)
    growth = dw.plan(dw.trace(apply, variables, X), {place: 12})
    wide = grow(variables, growth, key=jax.random.key(2))
    found = grow_opt_state(state, growth, tx, variables=wide)
    expected = jax.eval_shape(tx.init, trainable(wide))
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    assert jax.tree.map(jnp.shape, found) == jax.tree.map(jnp.shape, expected)

    # As of the same variables in a dict.
    named = dict(zip("abc", jax.tree.leaves(params)))
    _, state = jax.jit(tx.update)(
        dict(zip("abc", jax.tree.leaves(gradient))), tx.init(named), named
    )
    large = dict(zip("abc", jax.tree.leaves(trainable(wide))))
    wanted = grow_opt_state(state, planned_by_name(), tx, variables=large)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_array_equal(a, b)
