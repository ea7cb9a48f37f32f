"""Strategies that look at the gradient of a loss: ``gradmax`` and ``firefly``."""

import functools
import pickle

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from networks import fill, load
from test_trace_growth import build_larger, cut, growable, larger_inputs
from tiers import long

import dogwood_jax as dw

ACTIVATIONS = {"tanh": jnp.tanh, "relu": jax.nn.relu, "sigmoid": jax.nn.sigmoid}


@functools.cache  # so that the same loss is compiled once
def make_mlp(activation, dtype="float64", sizes=(5, 4, 6), examples=40, seed=0):
    """Returns an MLP's apply, parameters, loss and batch, and how to plan its growth."""
    act = ACTIVATIONS[activation]
    rng = np.random.default_rng(seed)
    n, h, m = sizes
    shapes = {"up": {"kernel": (n, h), "bias": (h,)}, "down": {"kernel": (h, m), "bias": (m,)}}
    params = jax.tree.map(
        lambda s: jnp.asarray(rng.normal(size=s), dtype), shapes, is_leaf=lambda s: type(s) is tuple
    )

    @jax.jit
    def apply(params, x):
        hidden = act(x @ params["up"]["kernel"] + params["up"]["bias"][None])
        return hidden @ params["down"]["kernel"] + params["down"]["bias"][None]

    def loss(params, x, y):
        return jnp.mean((apply(params, x) - y) ** 2)

    batch = [jnp.asarray(rng.normal(size=(examples, size)), dtype) for size in (n, m)]

    @functools.cache
    def planned(strategy, units):
        widths = dw.trace(apply, params, batch[0])
        return dw.plan(widths, {"up": units}, strategy=strategy)

    return apply, params, loss, batch, planned


def grow_mlp(mlp, strategy, units, seed=0):
    return dw.grow(mlp[1], mlp[-1](strategy, units), key=jax.random.key(seed))


def by_hand(mlp):
    """Returns GradMax's matrix by its definition in NumPy: inputs times errors, ``[in, out]``."""
    apply, params, _, batch, _ = mlp
    x, y, outputs = map(np.asarray, (*batch, apply(params, batch[0])))
    return x.T @ (2 * (outputs - y) / outputs.size)


@functools.cache
def gradient_of(loss):
    return jax.jit(jax.grad(loss))


def new_gradients(mlp, wide, old=4):
    """Returns the gradients of the incoming and outgoing kernels of new units, one a row."""
    gradient = gradient_of(mlp[2])(wide, *mlp[3])
    return (
        np.asarray(gradient["up"]["kernel"])[:, old:].T,
        np.asarray(gradient["down"]["kernel"])[old:],
    )


def change(mlp, wide):
    """Returns the largest change of outputs, relative to the largest of them."""
    apply, params, _, (x, _), _ = mlp
    before = np.asarray(apply(params, x), "float64")
    return np.abs(np.asarray(apply(wide, x), "float64") - before).max() / np.abs(before).max()


def test_outgoing_weights_are_the_singular_vectors_of_the_definition():
    mlp = make_mlp("tanh")
    _, singular, right = np.linalg.svd(by_hand(mlp))
    count, units = 5, 12

    wide = grow_mlp(mlp, dw.strategies.gradmax(mlp[2], *mlp[3]), units)

    outgoing = np.asarray(wide["down"]["kernel"])[4:]
    mean_norm = np.linalg.norm(mlp[1]["down"]["kernel"], axis=1).mean()
    np.testing.assert_allclose(abs(outgoing[:count] @ right[:count].T / mean_norm), np.eye(count),
                               atol=1e-6)  # fmt: skip
    incoming, _ = new_gradients(mlp, wide)
    np.testing.assert_allclose(
        np.linalg.norm(incoming[:count], axis=1), singular[:count] * mean_norm, rtol=1e-9
    )
    assert not np.any(wide["up"]["kernel"][:, 4 : 4 + count])
    assert not np.any(wide["up"]["bias"][4:])
    assert change(mlp, wide) <= 1e-12
    # There are no more singular vectors; other units are as zero_outgoing makes them.
    other = grow_mlp(mlp, dw.strategies.zero_outgoing(), units)
    assert not np.any(outgoing[count:])
    np.testing.assert_array_equal(
        wide["up"]["kernel"][:, 4 + count :], other["up"]["kernel"][:, 4 + count :]
    )


@pytest.mark.long
def test_no_random_outgoing_weights_of_this_norm_give_a_larger_gradient():
    mlp = make_mlp("tanh")
    wide = grow_mlp(mlp, dw.strategies.gradmax(mlp[2], *mlp[3]), 7)
    largest = np.linalg.norm(new_gradients(mlp, wide)[0])
    norms = np.linalg.norm(wide["down"]["kernel"][4:], axis=1, keepdims=True)
    rng = np.random.default_rng(1)
    for _ in range(20):
        rows = np.linalg.qr(rng.normal(size=(6, 3)))[0].T * norms
        kernel = np.concatenate([wide["down"]["kernel"][:4], rows])
        random = wide | {"down": wide["down"] | {"kernel": kernel}}
        assert np.linalg.norm(new_gradients(mlp, random)[0]) < largest


@pytest.mark.long
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_lower_precision_is_preserving_too(dtype):
    mlp = make_mlp("tanh", dtype)
    right = np.linalg.svd(by_hand(mlp).astype("float64"))[2]
    wide = grow_mlp(mlp, dw.strategies.gradmax(mlp[2], *mlp[3]), 6)
    assert change(mlp, wide) <= 4 * jnp.finfo(dtype).eps
    outgoing = np.asarray(wide["down"]["kernel"], "float64")[4:]
    cosines = abs(outgoing @ right[:2].T).diagonal() / np.linalg.norm(outgoing, axis=1)
    assert np.all(cosines > (0.9999 if dtype == "float32" else 0.9))


@pytest.mark.long
def test_relu_passes_no_gradient_at_zero():
    mlp = make_mlp("relu")
    loss, batch = mlp[2:4]
    with pytest.raises(ValueError, match=r"up: no gradient .* jax.nn.relu passes none at 0"):
        grow_mlp(mlp, dw.strategies.gradmax(loss, *batch), 6)

    epsilon = 1e-3
    strategy = dw.strategies.gradmax(loss, *batch, epsilon=epsilon)
    assert not strategy.preserving
    wide = grow_mlp(mlp, strategy, 6)
    assert 0 < change(mlp, wide) < 4 * epsilon
    assert np.all(np.linalg.norm(new_gradients(mlp, wide)[0], axis=1) > 0)
    # The definition takes the relu's derivative at zero as one.
    outgoing = np.asarray(wide["down"]["kernel"])[4:]
    right = np.linalg.svd(by_hand(mlp))[2][:2]
    cosines = outgoing @ right.T / np.linalg.norm(outgoing, axis=1)[:, None]
    np.testing.assert_allclose(abs(cosines), np.eye(2), atol=1e-6)
    apply, params, _, (x, _), _ = mlp
    growth = mlp[-1](strategy, 6)
    assert f"{epsilon:g} times drawn ones" in str(growth)


@pytest.mark.long
@pytest.mark.parametrize("activation", ["relu", "sigmoid"])
def test_under_jit_what_cannot_be_chosen_is_as_zero_outgoing_makes_it(activation):
    mlp = make_mlp(activation)
    _, params, loss, batch, planned = mlp
    if activation == "sigmoid":
        with pytest.raises(ValueError, match="up: .* not silent .*variant='incoming'"):
            grow_mlp(mlp, dw.strategies.gradmax(loss, *batch), 6)
    strategy = dw.strategies.gradmax(loss, *batch)
    wide = jax.jit(dw.grow)(params, planned(strategy, 6), key=jax.random.key(0))
    jax.tree.map(
        np.testing.assert_array_equal, wide, grow_mlp(mlp, dw.strategies.zero_outgoing(), 6)
    )


@pytest.mark.parametrize(
    ("activation", "gain"),
    [("tanh", 1.1), *(long(*of) for of in (("relu", 1.4), ("sigmoid", 1.0)))],
)
def test_chosen_incoming_weights_have_a_larger_outgoing_gradient(activation, gain):
    mlp = make_mlp(activation)
    strategy = dw.strategies.gradmax(mlp[2], *mlp[3], variant="incoming")
    random = dw.strategies.zero_outgoing()
    ratios = []
    for seed in range(6):
        wide = grow_mlp(mlp, strategy, 7, seed)
        drawn = grow_mlp(mlp, random, 7, seed)
        assert change(mlp, wide) <= 1e-12
        assert not np.any(wide["down"]["kernel"][4:])
        kernels = [np.asarray(p["up"]["kernel"])[:, 4:] for p in (wide, drawn)]
        norms = [np.linalg.norm(kernel, axis=0) for kernel in kernels]
        np.testing.assert_allclose(*norms, rtol=1e-12)
        cosines = kernels[0].T @ kernels[0] / np.outer(norms[0], norms[0])
        assert np.all(abs(cosines - np.eye(3)) < 0.95), "units must not be alike"
        ratios.append(np.divide(*(np.linalg.norm(new_gradients(mlp, p)[1]) for p in (wide, drawn))))
    assert min(ratios) >= 1
    assert np.mean(ratios) > gain


@pytest.mark.long
def test_where_the_response_is_linear_incoming_weights_turn_to_the_left_singular_vectors():
    mlp = make_mlp("tanh", sizes=(12, 4, 2))
    init = jax.nn.initializers.normal(1e-4)
    strategy = dw.strategies.gradmax(mlp[2], *mlp[3], variant="incoming", init=init)
    incoming = np.asarray(grow_mlp(mlp, strategy, 9)["up"]["kernel"])[:, 4:]
    incoming = incoming / np.linalg.norm(incoming, axis=0)
    left = np.linalg.svd(by_hand(mlp))[0][:, :2]
    np.testing.assert_allclose(abs(incoming[:, :2].T @ left), np.eye(2), atol=0.02)
    # There are two outgoing weights; the units beyond stay as drawn.
    drawn = np.asarray(grow_mlp(mlp, dw.strategies.zero_outgoing(init), 9)["up"]["kernel"])[:, 6:]
    np.testing.assert_allclose(incoming[:, 2:], drawn / np.linalg.norm(drawn, axis=0), rtol=1e-9)


def test_firefly_keeps_the_best_candidates():
    mlp = make_mlp("relu")
    strategy = dw.strategies.firefly(mlp[2], *mlp[3], candidates=5)

    def scores(strategy, seed):
        wide = grow_mlp(mlp, strategy, 7, seed)
        assert change(mlp, wide) <= 1e-12
        assert not np.any(wide["down"]["kernel"][4:])
        return np.linalg.norm(new_gradients(mlp, wide)[1], axis=1)

    zero = dw.strategies.zero_outgoing()
    random = [scores(zero, seed) for seed in range(30)]
    for seed in range(3):
        best = scores(strategy, seed)
        assert best.mean() > 1.2 * np.mean(random)
        assert best.min() > np.median(random)


@pytest.mark.skipif(jax.device_count() < 8, reason="takes eight devices")
@pytest.mark.parametrize(
    ("name", "types"), [("gradmax", AxisType.Auto), ("firefly", AxisType.Explicit)]
)
@pytest.mark.long
def test_devices_do_not_change_the_choice(name, types):
    mlp = make_mlp("tanh", sizes=(8, 4, 4))
    _, params, loss, batch, planned = mlp
    strategy = getattr(dw.strategies, name)(loss, *batch)
    mesh = Mesh(np.array(jax.devices()[:8]).reshape(4, 2), ("x", "y"), axis_types=(types,) * 2)
    both = NamedSharding(mesh, PartitionSpec("x", "y"))
    divided = {
        layer: {"kernel": jax.device_put(arrays["kernel"], both), "bias": arrays["bias"]}
        for layer, arrays in params.items()
    }
    wide = dw.grow(divided, planned(strategy, 8), key=jax.random.key(0))
    expected = grow_mlp(mlp, strategy, 8)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), wide, expected)
    assert wide["up"]["kernel"].sharding == wide["down"]["kernel"].sharding == both


def conv_net(params, x):
    hidden = jnp.tanh(lax.conv_general_dilated(
        x, params["conv"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")))  # fmt: skip
    pooled = lax.reduce_window(hidden, 0.0, lax.add, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    return pooled.reshape(x.shape[0], -1) @ params["head"]


def conv_loss(params, x, y):
    return jnp.mean((conv_net(params, x) - y) ** 2)


@pytest.mark.long
def test_a_convolution_before_a_flatten_agrees_with_the_dense_matrix_of_second_derivatives():
    rng = np.random.default_rng(0)
    shapes = {"conv": (2, 2, 3, 2), "head": (4 * 2, 5)}
    params = {name: jnp.asarray(rng.normal(size=shape)) for name, shape in shapes.items()}
    x, y = jnp.asarray(rng.normal(size=(7, 4, 4, 3))), jnp.asarray(rng.normal(size=(7, 5)))

    def with_one_more(incoming, outgoing):
        conv = jnp.concatenate([params["conv"], incoming.reshape(2, 2, 3, 1)], axis=3)
        head = jnp.concatenate([params["head"].reshape(4, 2, 5), outgoing.reshape(4, 1, 5)], axis=1)
        return conv_loss({"conv": conv, "head": head.reshape(12, 5)}, x, y)

    mixed = jax.jit(jax.jacfwd(jax.grad(with_one_more), 1))(jnp.zeros(12), jnp.zeros(20))
    right = np.linalg.svd(mixed)[2]

    widths = dw.trace(conv_net, params, x)
    growth = dw.plan(widths, {"conv": 5}, strategy=dw.strategies.gradmax(conv_loss, x, y))
    wide = dw.grow(params, growth, key=jax.random.key(0))

    run = jax.jit(conv_net)
    np.testing.assert_allclose(run(wide, x), run(params, x), rtol=0, atol=1e-12)
    rows = np.asarray(wide["head"]).reshape(4, 5, 5)[:, 2:].swapaxes(0, 1).reshape(3, 20)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    np.testing.assert_allclose(abs(rows @ right[:3].T), np.eye(3), atol=1e-4)


@pytest.mark.parametrize(
    ("name", "by"),
    [
        ("vit", "heads"),  # whose values alone must be zero
        ("gated_mlp", "hidden"),
        ("stacked_layers", "hidden"),  # which is a width for each layer
    ],
)
@pytest.mark.long
def test_new_units_of_other_networks_are_silent_and_none_is_dead(name, by):
    network = load()[name]
    small, big = network.build(), build_larger(network, by)
    sizes = growable(network)[by]
    inputs = larger_inputs(small, big)
    variables = fill(small.shapes, 1)
    reference = jax.tree.leaves(jax.jit(small.apply)(variables, *small.inputs))

    def loss(variables, *inputs):
        return sum(jnp.mean((x - 1) ** 2) for x in jax.tree.leaves(big.apply(variables, *inputs)))

    widths = dw.trace(small.apply, small.shapes, *small.inputs)
    strategy = dw.strategies.gradmax(loss, *inputs)
    growth = dw.plan(widths, sizes, target=big.shapes, strategy=strategy)
    wide = dw.grow(variables, growth, key=jax.random.key(0))

    outputs = jax.tree.leaves(jax.jit(big.apply)(wide, *inputs))
    for new, old in zip(cut(outputs, [x.shape for x in reference]), reference, strict=True):
        np.testing.assert_allclose(new, old, rtol=0, atol=1e-12 * np.abs(old).max())

    # After one step every new part of every array has a gradient, in every layer and head.
    gradient = jax.jit(jax.grad(loss))
    moved = jax.tree.map(lambda a, g: a - 1e-3 * g, wide, gradient(wide, *inputs))
    after = gradient(moved, *inputs)
    (name,) = sizes
    for place in widths[name].occurrences:
        array = functools.reduce(lambda tree, key: tree[key], place.path.split("/"), after)
        new = np.moveaxis(np.asarray(array), place.axis, 0)[widths[name].size :]
        size = np.linalg.norm(new.reshape(*new.shape[:2], -1), axis=-1)
        assert np.all(size > 1e-6 * size.max()), place


@pytest.mark.long
def test_neighbouring_widths_may_have_strategies_of_their_own():
    rng = np.random.default_rng(0)
    params = {
        n: jnp.asarray(rng.normal(size=s))
        for n, s in {"a": (4, 3), "b": (3, 5), "c": (5, 4)}.items()
    }
    x, y = (jnp.asarray(rng.normal(size=(20, 4))) for _ in range(2))

    def apply(params, x):
        return jnp.tanh(jnp.tanh(x @ params["a"]) @ params["b"]) @ params["c"]

    def loss(params, x, y):
        return jnp.mean((apply(params, x) - y) ** 2)

    strategies = {
        "a": dw.strategies.gradmax(loss, x, y),
        "b": dw.strategies.firefly(loss, x, y, candidates=2),
    }
    widths = dw.trace(apply, params, x)
    growth = dw.plan(widths, {"a": 5, "b": 8}, strategy=strategies)
    grow = functools.partial(dw.grow, growth=growth, key=jax.random.key(0))
    wide, pull = jax.vjp(grow, params)
    np.testing.assert_allclose(apply(wide, x), apply(params, x), rtol=0, atol=1e-12)
    assert not np.any(wide["a"][:, 3:])
    assert np.any(wide["b"][3:, :5])
    assert np.all(wide["b"][3:, 5:]), "weights from new units into new ones are the latter's"
    assert not np.any(wide["c"][5:])
    # Gradients of old weights stay, for what is chosen is a constant.
    gradient = jax.jit(jax.grad(loss))
    (back,) = pull(gradient(wide, x, y))
    for name, expected in gradient(params, x, y).items():
        np.testing.assert_allclose(back[name], expected, rtol=0, atol=1e-12)


@pytest.mark.long
def test_weights_that_see_no_input_in_the_batch_are_not_relied_on_to_stay_silent():
    rng = np.random.default_rng(0)
    params = {
        n: jnp.asarray(rng.normal(size=s))
        for n, s in {"a": (3, 4), "b": (2, 4), "c": (4, 3)}.items()
    }

    def apply(params, x, z):
        return jnp.tanh(x @ params["a"] + z @ params["b"]) @ params["c"]

    def loss(params, x, z):
        return jnp.mean((apply(params, x, z) - x) ** 2)

    x, z = jnp.asarray(rng.normal(size=(9, 3))), jnp.asarray(rng.normal(size=(9, 2)))
    strategy = dw.strategies.gradmax(loss, x, 0 * z)
    growth = dw.plan(dw.trace(apply, params, x, z), {"a": 6}, strategy=strategy)
    wide = dw.grow(params, growth, key=jax.random.key(0))
    np.testing.assert_allclose(apply(wide, x, z), apply(params, x, z), rtol=0, atol=1e-12)


@pytest.mark.long
def test_strategies_are_hashable_static_and_picklable():
    rng = np.random.default_rng(0)
    params = {"conv": jnp.asarray(rng.normal(size=(1, 1, 3, 2))), "head": jnp.ones((8, 5))}
    x, y = jnp.asarray(rng.normal(size=(7, 4, 4, 3))), jnp.asarray(rng.normal(size=(7, 5)))
    calls = []

    def loss(params, x, y, options):
        calls.append(options)
        return conv_loss(params, x, y)

    widths = dw.trace(conv_net, params, x)
    strategy = dw.strategies.gradmax(loss, x, y, {"train": True})
    growth = dw.plan(widths, {"conv": 3}, strategy=strategy)
    assert hash(growth) == hash(dw.plan(widths, {"conv": 3}, strategy=strategy))
    assert growth == dw.plan(widths, {"conv": 3}, strategy=strategy)
    other = dw.strategies.gradmax(loss, x, y, {"train": True})
    assert growth != dw.plan(widths, {"conv": 3}, strategy=other)

    eager = dw.grow(params, growth, key=jax.random.key(0))
    assert calls and all(options == {"train": True} for options in calls)
    before = len(calls)
    dw.grow(params, growth, key=jax.random.key(1))
    assert len(calls) == before, "a second growth must not trace the loss again"
    jitted = jax.jit(dw.grow, static_argnames="growth")(
        params, growth=growth, key=jax.random.key(0)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-9), eager, jitted)

    growth = dw.plan(widths, {"conv": 3}, strategy=dw.strategies.firefly(conv_loss, x, y))
    loaded = pickle.loads(pickle.dumps(growth))
    grown = [dw.grow(params, g, key=jax.random.key(0)) for g in (growth, loaded)]
    jax.tree.map(np.testing.assert_array_equal, *grown)


def test_the_table_says_what_is_chosen():
    _, _, loss, batch, planned = make_mlp("tanh")
    rows = {}
    for variant in ("outgoing", "incoming"):
        strategy = dw.strategies.gradmax(loss, *batch, variant=variant)
        lines = str(planned(strategy, 6)).splitlines()
        rows[variant] = [line.split()[-2] for line in lines if "kernel" in line]
    assert rows == {"outgoing": ["zero", "chosen"], "incoming": ["chosen", "zero"]}


def test_errors_say_what_to_do():
    mlp = make_mlp("tanh")
    apply, params, loss, batch, _ = mlp
    widths = dw.trace(apply, params, batch[0])
    strategy = dw.strategies.firefly(loss, *batch)
    growth = dw.plan(widths, {"up": 6}, strategy=strategy)
    with pytest.raises(ValueError, match="a loss and a batch cannot be written as JSON"):
        dw.to_json(growth)
    with pytest.raises(ValueError, match=r"up: strategies.firefly draws candidates; pass key="):
        wide = dw.grow(params, growth, key=jax.random.key(0))
        dw.grow(params, growth, fresh=wide)
    with pytest.raises(ValueError, match=r"down: .* has incoming ones only\n  use .*zero_outgoing"):
        dw.plan(widths, {"down": 7}, strategy=strategy, interface=True)

    def of_the_smaller(params, x, y):
        assert params["up"]["bias"].shape == (4,), "a wrong shape"
        return loss(params, x, y)

    with pytest.raises(AssertionError, match="a wrong shape") as error:
        grow_mlp(mlp, dw.strategies.gradmax(of_the_smaller, *batch), 6)
    assert "the larger model, in which up has 6 units" in "".join(error.value.__notes__)
    flat = dw.strategies.firefly(lambda params, x, y: 0.0 * params["up"]["bias"].sum(), *batch)
    with pytest.raises(ValueError, match="up: no gradient of the loss on this batch reaches new"):
        grow_mlp(mlp, flat, 6)

    def normed(params, x):
        stream = x @ params["a"]
        mean = jnp.mean(stream, axis=1, keepdims=True)
        return ((stream - mean) * lax.rsqrt(jnp.var(stream, axis=1, keepdims=True))) @ params["b"]

    layers = {"a": jnp.ones((5, 4)), "b": jnp.ones((4, 6))}
    strategy = dw.strategies.gradmax(loss, *batch, epsilon=1e-4)
    with pytest.raises(ValueError, match="a: (.|\n)*computes something else"):
        dw.plan(dw.trace(normed, layers, batch[0]), {"a": 6}, strategy=strategy)

    with pytest.raises(ValueError, match="variant must be 'outgoing' or 'incoming', got 'both'"):
        dw.strategies.gradmax(loss, variant="both")
    for options in ({"epsilon": -1.0}, {"epsilon": 1e-4, "variant": "incoming"}):
        with pytest.raises(ValueError, match="epsilon must be zero or positive, and is for"):
            dw.strategies.gradmax(loss, **options)
    with pytest.raises(ValueError, match="candidates must be two or more for each new unit, got 1"):
        dw.strategies.firefly(loss, candidates=1)


class Blocks(nn.Module):
    """Residual blocks over which no loop runs, or one does."""

    layers: int
    hidden: int = 6
    scan: bool = False

    @nn.compact
    def __call__(self, x):
        if self.scan:
            axes = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
            stack = nn.scan(Block, length=self.layers, **axes)
            return stack(self.hidden, name="blocks")(x, None)[0]
        for number in range(self.layers):
            x, _ = Block(self.hidden, name=f"block_{number}")(x, None)
        return x


class Block(nn.Module):
    hidden: int

    @nn.compact
    def __call__(self, x, _):
        h = nn.tanh(nn.Dense(self.hidden, use_bias=False, name="up")(x))
        return x + nn.Dense(x.shape[-1], use_bias=False, name="down")(h), None


@pytest.mark.parametrize("scan", [False, True])
def test_weights_are_chosen_where_layers_are_new_too(scan):
    x, key = jnp.asarray(np.random.default_rng(0).normal(size=(8, 4))), jax.random.key(0)
    small, large = Blocks(1, scan=scan), Blocks(2, 8, scan=scan)
    params = fill(jax.eval_shape(small.init, key, x), 0)
    target = jax.eval_shape(large.init, key, x)

    def loss(params, x):
        return jnp.mean((large.apply(params, x) - jnp.cos(x)) ** 2)

    growth = dw.plan(
        dw.trace(small.apply, params, x),
        target=target,
        target_apply=large.apply,
        strategy=dw.strategies.gradmax(loss, x),
    )
    if scan:
        with pytest.raises(ValueError, match="but the deeper model moves its arrays"):
            dw.grow(params, growth, key=key)
        return
    wide = dw.grow(params, growth, key=key)
    np.testing.assert_allclose(large.apply(wide, x), small.apply(params, x), rtol=1e-6)
    assert np.any(wide["params"]["block_0"]["down"]["kernel"][6:])
    assert jax.tree.map(jnp.shape, wide) == jax.tree.map(jnp.shape, target)
