"""Narrowing to a budget: which units go, what that costs, and that the budget is kept."""

import functools
import warnings

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import transformer
from tiers import long

import dogwood_jax as dw

HIDDEN = ("h0", "h1", "h2")


def apply(params, x):
    for name in HIDDEN:
        x = jnp.tanh(x @ params[name]["kernel"] + params[name]["bias"][None])
    return x @ params["out"]["kernel"] + params["out"]["bias"][None]


def loss(params, x, y):
    return jnp.mean((apply(params, x) - y) ** 2)


@functools.partial(jax.jit, static_argnames="steps")
def trained(params, x, y, steps):
    tx = optax.adam(1e-2)

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params, x, y), state)
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(step, (params, tx.init(params)), length=steps)[0][0]


@pytest.fixture(scope="module")
def network():
    """A trained MLP, its widths and a batch; without noise in the labels no gradient is left."""
    keys = jax.random.split(jax.random.key(0), 7)
    sizes = [4, 12, 16, 10, 3]
    params = {
        name: {
            "kernel": jax.random.normal(key, (m, n)) / np.sqrt(m),
            "bias": 0.1 * jnp.arange(1.0, n + 1) / n,
        }
        for name, key, m, n in zip((*HIDDEN, "out"), keys, sizes, sizes[1:], strict=False)
    }
    x = jax.random.normal(keys[5], (256, 4))
    y = jnp.sin(2 * x @ jax.random.normal(keys[6], (4, 3)))
    return trained(params, x, y, 500), dw.trace(apply, params, x), (x, y)


def copied(params):
    return jax.tree.map(lambda array: np.array(array), params)


def size(params):
    return sum(array.size for array in jax.tree.leaves(params))


def spearman(first, second):
    ranks = [np.argsort(np.argsort(values)) for values in (first, second)]
    return np.corrcoef(*ranks)[0, 1]


# Scores -------------------------------------------------------------------------------------------


def test_the_loss_may_come_first(network):
    params, widths, batch = network
    after = dw.saliency(params, widths, loss, *batch)
    first = dw.saliency(loss, params, widths, *batch)
    assert all((first[name] == scores).all() for name, scores in after.items())
    assert (
        dw.gain(loss, params, widths, *batch).gains == dw.gain(params, widths, loss, *batch).gains
    )
    _, growth = dw.shrink(loss, params, widths, *batch, parameters=0.5)
    assert growth == dw.shrink(params, widths, loss, *batch, parameters=0.5)[1]


@pytest.mark.long
def test_scores_rank_units_of_all_widths_as_removing_them_does(network):
    params, widths, batch = network
    scores = dw.saliency(params, widths, loss, *batch)
    assert [*scores] == list(HIDDEN)
    # As one sample: once training has converged, its gradient vanishes.
    whole = dw.saliency(
        params, widths, lambda params, x, y: loss(params, x[0], y[0]), *(a[None] for a in batch)
    )
    measured, quick_loss = [], jax.jit(loss)
    for name, reader in zip(HIDDEN, (*HIDDEN[1:], "out"), strict=True):
        for unit in range(widths[name].size):
            without = copied(params)
            without[reader]["kernel"][unit] = 0
            measured.append(quick_loss(without, *batch))
    by_sample, by_batch = (
        spearman(np.concatenate([*found.values()]), measured) for found in (scores, whole)
    )
    assert by_sample > 0.85 > 0.6 > by_batch


@pytest.mark.long
def test_a_score_is_the_mean_square_of_what_a_factor_on_a_unit_does(network):
    params, widths, (x, y) = network

    def of_sample(factor, x, y):
        rows = params["h2"]["kernel"].at[3].multiply(factor)
        return loss(params | {"h2": params["h2"] | {"kernel": rows}}, x[None], y[None])

    effects = jax.jit(jax.vmap(jax.grad(of_sample), (None, 0, 0)))(1.0, x, y)
    found = dw.saliency(params, widths, loss, x, y)["h1"][3]
    np.testing.assert_allclose(found, np.mean(effects**2), rtol=1e-10)


@pytest.mark.long
def test_other_scores_are_what_they_say(network):
    params, widths, (x, y) = network
    many = jax.random.normal(jax.random.key(5), (8192, 4))
    found = dw.saliency(params, widths, None, many, by="activity")["h2"]
    measured = dw.activity(apply, params, widths, many)["h2"] ** 2
    np.testing.assert_allclose(found / found.sum(), measured / measured.sum(), rtol=0.1)
    found = dw.saliency(params, widths, by="norm")["h0"]
    arrays = params["h0"]["kernel"].T, params["h0"]["bias"][:, None], params["h1"]["kernel"]
    np.testing.assert_allclose(found, sum((array**2).sum(1) for array in arrays), rtol=1e-12)


# What goes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["activity", "first_order"])
@pytest.mark.long
def test_units_that_can_go_for_nothing_go_first(network, by):
    params, widths, batch = network
    params = copied(params)
    params["h1"]["kernel"][2] = 0  # nothing reads unit 2
    params["h1"]["kernel"][:, 5] = 0  # unit 5 is constant
    for unit in (4, 7):  # compute what unit 1 does
        params["h2"]["kernel"][:, unit] = params["h2"]["kernel"][:, 1]
        params["h2"]["bias"][unit] = params["h2"]["bias"][1]
    params["out"]["kernel"][1] = 0  # but a copy stays
    smaller = {"h0": 11, "h1": 15, "h2": 8}
    before, after = dw.cost(widths, smaller).parameters
    scores = dw.saliency(params, widths, loss, *batch, by=by)
    small, growth = dw.shrink(params, widths, scores=scores, parameters=after / before)
    assert growth.sizes == smaller
    assert growth.change["h2"].sources == (0, 1, 2, 3, 5, 6, 8, 9)
    assert size(small) == after
    np.testing.assert_allclose(apply(small, batch[0]), apply(params, batch[0]), rtol=1e-11)


def test_a_constant_unit_without_a_bias_to_take_over_is_not_free():
    def no_bias(params, x):
        return jax.nn.sigmoid(x @ params["up"]) @ params["down"]

    params = {"up": np.ones((2, 3)), "down": np.ones((3, 1))}
    params["up"][:, 1] = 0
    params["up"][:, 2] = 2
    assert (
        dw.saliency(params, dw.trace(no_bias, params, np.ones((4, 2))), by="norm")["up"] > 0
    ).all()


@pytest.mark.parametrize(
    ("share", "measure"),
    [
        (0.95, "flops"),
        long(0.67, "parameters"),
        long(0.3, "flops"),
        long(0.1, "parameters"),
    ],
)
def test_a_budget_is_met_and_missed_by_less_than_a_unit(network, measure, share):
    params, widths, batch = network
    small, growth = dw.shrink(params, widths, loss, *batch, **{measure: share})
    before, after = getattr(dw.cost(widths, growth.sizes), measure)
    units = [
        np.subtract(*getattr(dw.cost(widths, {name: widths[name].size - 1}), measure))
        for name in HIDDEN
    ]
    assert share * before - max(units) < after <= share * before
    assert dw.cost(widths, growth.sizes).parameters[1] == size(small)
    assert np.isfinite(apply(small, batch[0])).all()


def test_units_go_that_save_most_for_their_score(network):
    """With one score for all units, those with the most weights go first."""
    params, widths, _ = network
    scores = {name: np.ones(widths[name].size) for name in HIDDEN}
    saved = {"h0": 4 + 1 + 16, "h1": 12 + 1 + 10, "h2": 16 + 1 + 3}  # by one unit
    share = (size(params) - max(saved.values()) + 0.5) / size(params)
    _, growth = dw.shrink(params, widths, scores=scores, parameters=share)
    assert {c.width: c.new for c in growth.changes} == {"h1": 15}


def test_copies_score_as_the_unit_that_they_are_copies_of(network):
    params, widths, batch = network
    growth = dw.plan(widths, {"h1": 32}, strategy=dw.strategies.replicate(), check=False)
    wide = dw.grow(params, growth)
    found = dw.saliency(wide, growth.after, loss, *batch)["h1"]
    np.testing.assert_allclose(found[:16], dw.saliency(params, widths, loss, *batch)["h1"], 1e-6)
    np.testing.assert_array_equal(found[16:], 0)


@pytest.mark.long
def test_scores_serve_several_budgets(network):
    params, widths, batch = network
    scores = dw.saliency(params, widths, loss, *batch)
    kept, quick_loss = [], jax.jit(loss)
    for share in (0.8, 0.5):
        small, growth = dw.shrink(params, widths, scores=scores, parameters=share)
        other, same = dw.shrink(params, widths, loss, *batch, parameters=share)
        assert growth == same
        jax.tree.map(np.testing.assert_array_equal, small, other)
        with pytest.warns(UserWarning, match="outputs move by"):
            worse = dw.narrow(params, widths, worst(growth, scores))
        assert quick_loss(small, *batch) < quick_loss(worse, *batch)
        kept.append({c.width: {*c.sources} for c in growth.changes})
    assert all(units <= kept[0].get(name, units) for name, units in kept[1].items())
    # A width without scores stays.
    less = {name: own for name, own in scores.items() if name != "h1"}
    assert "h1" not in dw.shrink(params, widths, scores=less, parameters=0.8)[1].sizes


def worst(growth, scores):
    """The units of the lowest scores, as many of each width as a growth keeps."""
    return {c.width: np.sort(np.argsort(scores[c.width])[: c.new]) for c in growth.changes}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.long
def test_half_precision(network, dtype):
    params, widths, batch = network
    half = jax.tree.map(lambda array: array.astype(dtype), params)
    scores = dw.saliency(half, widths, loss, *batch)
    small, _ = dw.shrink(half, widths, scores=scores, parameters=0.67)
    assert {array.dtype for array in jax.tree.leaves(small)} == {jnp.dtype(dtype)}
    exact = dw.saliency(params, widths, loss, *batch)
    assert spearman(*(np.concatenate([*s.values()]) for s in (exact, scores))) > 0.95


# Other networks -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def decoder():
    shapes = transformer.shapes(1, 16, 3, 24, 11)
    random = np.random.default_rng(1)
    params = jax.tree.map(
        lambda leaf: jax.device_put((random.normal(size=leaf.shape) / 4).astype(leaf.dtype)), shapes
    )
    tokens = jax.device_put(random.integers(0, 11, (6, 8)))
    return params, dw.trace(transformer.apply, params, tokens), tokens


def predicted(params, tokens):
    logits = transformer.apply(params, tokens)[:, :-1]
    return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()


@pytest.mark.long
def test_a_transformer_shrinks_with_its_optimizer(decoder):
    params, widths, tokens = decoder
    tx = optax.adam(1e-3)
    update = jax.jit(tx.update)
    state = update(params, tx.init(params))[1]  # as good as gradients
    small, growth = dw.shrink(params, widths, predicted, tokens, parameters=0.67)
    assert size(small) <= 0.67 * size(params)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no entry is new
        state = dw.grow_opt_state(state, growth, tx)
    updates, _ = update(small, state)
    assert jax.tree.map(jnp.shape, updates) == jax.tree.map(jnp.shape, small)
    assert jax.eval_shape(predicted, small, tokens).shape == ()


@pytest.mark.long
def test_dimensions_of_heads_that_go_only_together_stay(decoder):
    """The attention of JAX takes values only of as many dimensions as queries."""
    params, widths, tokens = decoder
    scores = dw.saliency(params, widths, predicted, tokens)
    assert {*scores} == {"embedding", "block_0[heads]", "block_0/up"}
    with pytest.raises(ValueError, match=r"cannot reach 0.01 of the parameters(.|\n)*head_dim"):
        dw.shrink(params, widths, scores=scores, parameters=0.01)


class CNN(nn.Module):
    units: int = 6
    groups: int | None = None

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(self.units, (3, 3))(x)
        norm = nn.BatchNorm(use_running_average=True)
        x = nn.relu(norm(x) if self.groups is None else nn.GroupNorm(self.groups)(x))
        return nn.Dense(3)(x.reshape(len(x), -1))


@pytest.mark.parametrize(
    "groups, name, after",
    [(None, "Conv_0", 4), long(3, "Conv_0[groups]", 2)],
)
def test_channels_under_a_norm_go_alone_or_by_group(groups, name, after):
    x = jax.random.normal(jax.random.key(0), (4, 5, 5, 2))
    model = CNN(groups=groups)
    variables = jax.jit(model.init)(jax.random.key(1), x)
    widths = dw.trace(model.apply, variables, x)

    def squared(variables, x):
        return jnp.mean(model.apply(variables, x) ** 2)

    small, growth = dw.shrink(variables, widths, squared, x, parameters=0.67)
    assert growth.sizes == {name: after}
    assert size(small["params"]) <= 0.67 * size(variables["params"])
    smaller = CNN(4, groups and after)
    shapes = jax.eval_shape(smaller.init, jax.random.key(2), x)
    assert jax.tree.map(jnp.shape, small) == jax.tree.map(jnp.shape, shapes)  # batch_stats, too
    silent = jax.tree.map(np.array, variables)
    rows = silent["params"]["Dense_0"]["kernel"].reshape(25, widths[name].size, -1, 3)
    rows[:, np.delete(np.arange(len(rows[0])), list(growth.changes[0].sources))] = 0
    wanted = jax.jit(model.apply)(silent, x)
    np.testing.assert_allclose(jax.jit(smaller.apply)(small, x), wanted, rtol=1e-4, atol=1e-6)


# Errors -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({}, "needs one budget"),
        ({"parameters": 0.5, "flops": 0.5}, "needs one budget"),
        ({"parameters": 67}, "parameters must be a share between 0 and 1, got 67"),
        ({"flops": 0.0}, "flops must be a share between"),
        ({"parameters": 0.001}, r"cannot reach 0.001 of the parameters: .* 0.0\d+ remains"),
        ({"parameters": 0.5, "scores": {}}, "either a loss and a batch, or scores="),
    ],
)
def test_bad_budgets_are_refused(network, arguments, message):
    params, widths, batch = network
    with pytest.raises(ValueError, match=message):
        dw.shrink(params, widths, loss, *batch, **arguments)


@pytest.mark.parametrize(
    "scores, messages",
    [
        ({"h0": np.ones(3), "h": np.ones(3)}, [r"h0: has shape \(3,\), expected \(12,\)", "h: "]),
        ({"h0": np.full(12, np.nan)}, ["h0: is not finite"]),
        ({"out": np.ones(3)}, ["out: its units cannot be removed: it is a dimension of an input"]),
    ],
)
def test_scores_that_do_not_fit_are_refused(network, scores, messages):
    params, widths, _ = network
    with pytest.raises(ValueError) as error:
        dw.shrink(params, widths, scores=scores, parameters=0.5)
    for message in messages:
        assert error.match(message)


def test_bad_losses_and_batches_are_refused(network):
    params, widths, (x, y) = network

    def refused(message, *arguments, **options):
        with pytest.raises(ValueError, match=message):
            dw.saliency(params, widths, *arguments, **options)

    def aux(params, x, y):
        return loss(params, x, y), x

    refused("needs a loss and a batch", loss)
    refused("needs a loss and a batch")
    refused("the loss must be a scalar, got .*float64", lambda p, x, y: apply(p, x) - y, x, y)
    refused("pass a loss, not the network", apply, x)
    refused(r"a tuple .*pass a function that returns the loss alone", aux, x, y)
    refused("must count the same samples", loss, x, y[:3])
    refused("must count the same samples", lambda p, x, k: loss(p, x, x), x, jax.random.key(0))
    refused("the loss of sample 2 is nan", loss, x.at[2].set(jnp.nan), y)
    refused("begins with the 1 inputs", by="activity")
    with pytest.raises(TypeError, match="by must be one of"):
        dw.saliency(params, widths, by="taylor")
    with pytest.raises(TypeError, match="pass trained weights"):
        dw.shrink(jax.eval_shape(lambda: params), widths, loss, x, y, parameters=0.5)
