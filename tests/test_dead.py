"""Dead units: those that can go without a change of any output, and those that only look dead."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiers import long

import dogwood_jax as dw
from dogwood_jax._front.smaller import removal

RANDOM = np.random.default_rng(0)
PARAMS = {"up": RANDOM.normal(size=(5, 8)), "down": RANDOM.normal(size=(8, 3))}
X = RANDOM.normal(size=(4, 5))


def normed(h):
    return h / jnp.sqrt((h * h).mean(-1, keepdims=True) + 1e-6)


def by_turns(h):
    return jnp.where(jnp.arange(h.shape[1])[None] % 2 == 1, jnp.tanh(h), jax.nn.relu(h))


def behind(function):
    return lambda params, x: function(x @ params["up"]) @ params["down"]


def beside(function):
    """Has a second output, of the units."""
    return lambda params, x: (
        jax.nn.relu(x @ params["up"]) @ params["down"],
        function(x @ params["up"]),
    )


SEEN = {
    "a norm": behind(normed),
    "a softmax": behind(jax.nn.softmax),
    "a maximum": behind(lambda h: h / (1 + jax.nn.relu(h).max(-1, keepdims=True))),
    "a Gram product": behind(lambda h: h @ h.T @ h),
    "units that take turns": behind(by_turns),
    "a running sum": behind(lambda h: jnp.cumsum(h, -1)),
    "order": behind(lambda h: jnp.sort(h, -1)),
    "a second output: a sum": beside(lambda h: h.sum(-1)),
    "a second output: a Gram product": beside(lambda h: h @ h.T),
    "a second output: the largest": beside(lambda h: h.argmax(-1)),
    "a second output: the units": beside(lambda h: h),
}


def without(name, unit):
    array = np.copy(PARAMS[name])
    array[(slice(None),) * (1 - (name == "down")) + (unit,)] = 0
    return PARAMS | {name: array}


@pytest.mark.parametrize("name", SEEN)
@pytest.mark.parametrize("unit", [0, 5])
def test_units_that_something_sees_are_not_dead(name, unit):
    params = without("down", unit)
    widths = dw.trace(SEEN[name], params, X)
    assert dw.find_dead(params, widths["up"]) == ()
    assert dw.find_dead(params, widths, "up") == ()


@pytest.mark.parametrize("dtype", ["float64", "float32", jnp.bfloat16])
@pytest.mark.parametrize("function", [jax.nn.relu, jnp.exp, jnp.tanh])
def test_units_that_nothing_reads_are_dead(function, dtype):
    apply, params = behind(function), jax.tree.map(lambda a: a.astype(dtype), PARAMS)
    params["down"][[2, 7]] = 0
    widths = dw.trace(apply, params, X.astype(dtype))
    assert dw.find_dead(params, widths["up"]) == (2, 7)
    assert dw.find_dead(params, widths, "up") == (2, 7)
    dw.narrow(params, widths, {"up": [0, 1, 3, 4, 5, 6]})  # without a warning


@pytest.mark.parametrize("name", ["a norm", "a Gram product"])
def test_units_that_are_zero_in_front_of_a_norm_are_dead(name):
    params = without("up", 2)
    widths = dw.trace(SEEN[name], params, X)
    assert dw.find_dead(params, widths["up"]) == (2,)
    assert dw.find_dead(params, widths, "up") == (2,)


def test_only_those_are_dead_whose_removal_moves_no_other():
    """The last unit can go, and units before it would pass on their turns."""
    params = PARAMS | {"down": np.copy(PARAMS["down"])}
    params["down"][[1, 2, 6, 7]] = 0
    widths = dw.trace(SEEN["units that take turns"], params, X)
    assert dw.find_dead(params, widths, "up") == (1, 2, 6, 7)  # the turns of 3, 4 and 5 stay
    params["down"][1] = 1
    assert dw.find_dead(params, widths, "up") == (6, 7)


def constant(reader_bias):
    """Returns a network with a unit that is sigmoid(1) whatever the input."""

    def apply(params, x):
        y = jax.nn.sigmoid(x @ params["up"] + params["b"][None]) @ params["down"]
        return y + params["c"][None] if reader_bias else y

    params = without("up", 2) | {"b": np.ones(8)} | ({"c": np.ones(3)} if reader_bias else {})
    return params, dw.trace(apply, params, X)


@pytest.mark.parametrize("dtype", ["float64", long("bfloat16")])
def test_constant_units_are_dead_if_a_bias_takes_over(dtype):
    dtype = jnp.dtype(dtype)
    params, widths = constant(reader_bias=True)
    params = jax.tree.map(lambda a: a.astype(dtype), params)
    assert dw.find_dead(params, widths["up"]) == dw.find_dead(params, widths, "up") == (2,)
    params, widths = constant(reader_bias=False)
    params = jax.tree.map(lambda a: a.astype(dtype), params)
    assert dw.find_dead(params, widths["up"]) == dw.find_dead(params, widths, "up") == ()


class Network(nn.Module):
    hidden: int = 6
    norm: bool = False

    @nn.compact
    def __call__(self, x):
        h = nn.relu(nn.Dense(self.hidden, param_dtype=jnp.float64)(x))
        h = nn.LayerNorm(param_dtype=jnp.float64)(h) if self.norm else h
        return nn.Dense(3, param_dtype=jnp.float64)(h)


@pytest.mark.parametrize("norm", [False, True])
def test_modules_that_know_their_sizes(norm):
    model = Network(norm=norm)
    shapes = jax.eval_shape(model.init, jax.random.key(0), X)
    variables = jax.tree.map(lambda leaf: np.random.default_rng(1).normal(size=leaf.shape), shapes)
    variables["params"]["Dense_1"]["kernel"][4] = 0
    widths = dw.trace(model.apply, variables, X)
    found = () if norm else (4,)
    assert dw.find_dead(variables, widths["Dense_0"]) == found
    assert dw.find_dead(variables, widths, "Dense_0") == found


def test_small_weights_count_as_zero():
    params = without("down", 2)
    params["down"][2] = 1e-3
    widths = dw.trace(behind(jax.nn.relu), params, X)
    assert dw.find_dead(params, widths, "up") == ()
    assert dw.find_dead(params, widths["up"], tolerance=1e-2) == (2,)
    assert dw.find_dead(params, widths, "up", tolerance=1e-2) == (2,)
    assert params["down"][2, 0] == 1e-3


def test_one_unit_stays():
    params = PARAMS | {"down": np.zeros((8, 3))}
    widths = dw.trace(behind(jax.nn.relu), params, X)
    assert len(dw.find_dead(params, widths, "up")) == 7


def test_zeros_tell_where_a_network_is_not_evaluated(monkeypatch):
    params = without("down", 2)
    widths = dw.trace(behind(jax.nn.relu), params, X)
    read = dw.from_json(dw.to_json(widths))
    with pytest.warns(UserWarning, match="widths from a file hold no program"):
        assert dw.find_dead(params, read["up"]) == ()
    assert dw.find_dead(PARAMS, read, "up") == ()
    softmax = dw.trace(SEEN["a softmax"], params, X)
    monkeypatch.setattr(removal, "MOST_ENTRIES", 10)
    assert dw.find_dead(params, widths, "up") == (2,)
    assert dw.find_dead(params, softmax, "up") == ()
    dw.narrow(params, softmax, {"up": [0, 1]})  # nothing is known, and nothing is said


def test_narrow_says_by_how_much_outputs_move():
    params, keep = without("down", 2), {"up": [0, 1, 3, 4, 5, 6, 7]}
    for name in ("a norm", "a softmax", "units that take turns", "a second output: a sum"):
        widths = dw.trace(SEEN[name], params, X)
        with pytest.warns(UserWarning, match=r"outputs move by [0-9.]+% \(root mean square"):
            dw.narrow(params, widths, keep)
        jax.jit(lambda params, widths=widths: dw.narrow(params, widths, keep))(params)


def test_names_that_do_not_fit():
    widths = dw.trace(behind(jax.nn.relu), PARAMS, X)
    with pytest.raises(KeyError, match="the closest are"):
        dw.find_dead(PARAMS, widths, "upp")
    with pytest.raises(TypeError, match="widths must be the Widths"):
        dw.find_dead(PARAMS, widths["up"], "up")
    with pytest.raises(TypeError, match=r"pass one of them, widths\[name\]"):
        dw.find_dead(PARAMS, widths)
