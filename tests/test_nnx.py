"""The adapter for ``flax.nnx``: the larger module with the smaller one's function."""

from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from flax import nnx
from tiers import long

import dogwood_jax as dw


class Network(nnx.Module):
    def __init__(self, width: int, hidden: int, rngs: nnx.Rngs) -> None:
        kwargs = {"rngs": rngs, "param_dtype": jnp.float64, "dtype": jnp.float64}
        self.conv = nnx.Conv(3, width, (3, 3), **kwargs)
        self.norm = nnx.BatchNorm(width, **kwargs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.up = nnx.Linear(width * 4 * 4, hidden, **kwargs)
        self.down = nnx.Linear(hidden, 2, **kwargs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = nnx.relu(self.norm(self.conv(x)))
        x = self.dropout(x).reshape(x.shape[0], -1)
        return self.down(nnx.tanh(self.up(x)))


def trained(width: int, hidden: int, seed: int) -> Network:
    """A module with random values in every variable, as after training."""
    model = Network(width, hidden, nnx.Rngs(seed))
    rng = np.random.default_rng(seed)
    graph, params, statistics, rest = nnx.split(model, nnx.Param, nnx.BatchStat, ...)
    params = jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape)), params)
    statistics = jax.tree.map(lambda a: jnp.asarray(rng.uniform(0.5, 2, a.shape)), statistics)
    model = nnx.merge(graph, params, statistics, rest)
    model.eval()
    return model


@nnx.jit
def outputs(model: Any, x: jax.Array) -> jax.Array:
    return model(x)


@nnx.jit
def gradient(model: Any, x: jax.Array) -> Any:
    return nnx.grad(lambda model: (model(x) ** 2).sum())(model)


@nnx.jit
def update(optimizer: Any, model: Any, slopes: Any) -> None:
    given = () if "model" in vars(optimizer) else (model,)  # Flax 0.11 and newer want it
    optimizer.update(*given, slopes)


def grown_into(small: Any, wide: Any, *inputs: Any, key: Any = None) -> tuple[dw.Growth, Any]:
    """The growth of a module into a larger one, and what it makes of the module."""
    growth = dw.nnx.plan(dw.nnx.trace(small, *inputs), target=wide)
    return growth, dw.nnx.grow(small, growth, key=key, fresh=wide)


@pytest.fixture
def images() -> jax.Array:
    return jnp.asarray(np.random.default_rng(7).normal(size=(5, 4, 4, 3)))


@pytest.mark.parametrize("seed", [None, long(3)], ids=["fresh", "drawn"])
def test_grown_module_computes_the_same(images: jax.Array, seed: int | None) -> None:
    small, wide = trained(6, 10, seed=0), trained(9, 17, seed=1)
    before, key = outputs(small, images), None if seed is None else jax.random.key(seed)
    _, grown = grown_into(small, wide, images, key=key)
    assert grown.conv.kernel.shape == (3, 3, 3, 9)
    assert grown.up.kernel.shape == (9 * 16, 17)
    its_own = grown.conv.kernel[..., 6:] == wide.conv.kernel[..., 6:]
    assert bool(its_own.any()) == (key is None)
    np.testing.assert_allclose(outputs(grown, images), before, rtol=1e-12)
    np.testing.assert_array_equal(outputs(small, images), before)


def test_free_weights_are_the_wide_modules_own(images: jax.Array) -> None:
    small, wide = trained(6, 10, seed=0), trained(9, 17, seed=1)
    growth, grown = grown_into(small, wide, images)
    np.testing.assert_array_equal(grown.conv.kernel[..., 6:], wide.conv.kernel[..., 6:])
    np.testing.assert_array_equal(grown.down.kernel[10:], 0)
    drawn = dw.nnx.grow(small, growth, key=jax.random.key(2), fresh=wide)
    assert not np.any(drawn.conv.kernel[..., 6:] == wide.conv.kernel[..., 6:]), "a key draws others"


def test_widths_are_the_same_in_training(images: jax.Array) -> None:
    model = trained(6, 10, seed=0)
    evaluating = dw.nnx.trace(model, images)
    model.train()
    training = dw.nnx.trace(model, images)
    assert evaluating["conv"].size == training["conv"].size == 6
    places = {(o.path, o.axis) for o in evaluating["conv"].occurrences}
    assert places == {(o.path, o.axis) for o in training["conv"].occurrences}
    assert ("norm/var", 0) in places and ("up/kernel", 0) in places
    assert training["conv"].notes, "dropout draws another mask, and the note says so"


def test_traces_from_shapes_alone() -> None:
    abstract = nnx.eval_shape(lambda: Network(6, 10, nnx.Rngs(0)))
    abstract.eval()
    widths = dw.nnx.trace(abstract, jax.ShapeDtypeStruct((1, 4, 4, 3), jnp.float64))
    assert widths["up"].size == 10


def test_the_optimizer_grows_along(images: jax.Array) -> None:
    small, wide = trained(6, 10, seed=0), trained(9, 17, seed=1)
    tx = optax.adam(1e-3)
    graph, *states = nnx.split(small, nnx.Param, ...)
    structure = jax.tree.structure(tuple(states))
    params, rest = map(jax.tree.leaves, states)

    # The module as a function of lists of arrays, and its optimizer's state.
    def apply(variables: dict[str, list[jax.Array]], x: jax.Array) -> jax.Array:
        leaves = [*variables["params"], *variables["rest"]]
        return nnx.merge(graph, *jax.tree.unflatten(structure, leaves))(x)

    slopes = gradient(small, images)
    _, state = jax.jit(tx.update)(jax.tree.leaves(slopes), tx.init(params), params)

    optimizer = nnx.Optimizer(small, tx, wrt=nnx.Param)
    update(optimizer, small, slopes)
    growth, grown = grown_into(small, wide, images)
    found = dw.nnx.grow_optimizer(optimizer, growth, grown)
    assert int(found.step[...]) == 1
    own = dw.nnx.grow_optimizer(optimizer, growth, grown, copy=True)
    old, new = (  # before Flax 0.11 an optimizer holds its module, too
        {id(leaf) for leaf in jax.tree.leaves([one.step, one.opt_state])}
        for one in (optimizer, own)
    )
    assert old.isdisjoint(new)

    variables = {"params": params, "rest": rest}
    target = dict(zip(variables, map(jax.tree.leaves, nnx.split(grown, nnx.Param, ...)[1:])))
    plain = dw.plan(dw.trace(apply, variables, images), target=target)
    wanted = dw.grow_opt_state(state, plain, tx)
    for a, b in zip(jax.tree.leaves(found.opt_state), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(jnp.asarray(a), b, rtol=1e-10)
    update(found, grown, gradient(grown, images))


@pytest.mark.long
def test_an_optimizer_of_which_a_part_is_masked_grows() -> None:
    def layers(width: int, seed: int) -> nnx.Module:
        rngs = nnx.Rngs(seed)
        return nnx.Sequential(nnx.Linear(3, width, rngs=rngs), nnx.Linear(width, 2, rngs=rngs))

    def by_layer(params: Any) -> Any:
        return jax.tree_util.tree_map_with_path(lambda path, _: str(path[1].key), params)

    small, wide, x = layers(4, 0), layers(6, 1), jnp.ones((5, 3))
    tx = dw.growable(optax.partition({"0": optax.adam(1e-2), "1": optax.sgd(1e-2)}, by_layer))
    optimizer = nnx.Optimizer(small, tx, wrt=nnx.Param)
    growth, grown = grown_into(small, wide, x)
    found = dw.nnx.grow_optimizer(optimizer, growth, grown)
    moments = found.opt_state.inner_state.inner_states["0"].inner_state[0].mu["layers"]
    assert moments[0].kernel.shape == (3, 6)
    update(found, grown, gradient(grown, x))


@pytest.mark.skipif(
    not hasattr(optax.contrib, "madgrad"), reason="DoG holds zeros at first in this version"
)
@pytest.mark.long
def test_an_optimizer_that_holds_parameters_gets_those_of_the_grown_module() -> None:
    def layers(width: int, seed: int) -> nnx.Module:
        rngs = nnx.Rngs(seed)
        return nnx.Sequential(nnx.Linear(3, width, rngs=rngs), nnx.Linear(width, 2, rngs=rngs))

    small, wide, x = layers(4, 0), layers(6, 1), jnp.ones((5, 3))
    optimizer = nnx.Optimizer(small, optax.contrib.dog(), wrt=nnx.Param)
    growth, grown = grown_into(small, wide, x)
    found = dw.nnx.grow_optimizer(optimizer, growth, grown)
    held = jax.tree.leaves(found.opt_state[1].init_params)
    for a, b in zip(held, jax.tree.leaves(nnx.state(grown, nnx.Param)), strict=True):
        np.testing.assert_array_equal(jnp.asarray(a), jnp.asarray(b))


class Tower(nnx.Module):
    def __init__(self, blocks: int, rngs: nnx.Rngs) -> None:
        kwargs = {"rngs": rngs, "param_dtype": jnp.float64}
        self.first = nnx.Linear(3, 4, **kwargs)
        for i in range(blocks):
            setattr(self, f"up_{i}", nnx.Linear(4, 6, **kwargs))
            setattr(self, f"down_{i}", nnx.Linear(6, 4, **kwargs))
        self.blocks = blocks

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.first(x)
        for i in range(self.blocks):
            x = x + getattr(self, f"down_{i}")(nnx.tanh(getattr(self, f"up_{i}")(x)))
        return x


@pytest.mark.long
def test_a_module_grows_deeper_with_its_optimizer() -> None:
    x = jnp.linspace(-1, 1, 6).reshape(2, 3)
    small, deep = Tower(1, nnx.Rngs(0)), Tower(2, nnx.Rngs(1))
    optimizer = nnx.Optimizer(small, optax.adam(1e-3), wrt=nnx.Param)
    growth, grown = grown_into(small, deep, x)
    np.testing.assert_allclose(outputs(grown, x), outputs(small, x), rtol=1e-12)
    assert not (grown.up_1.kernel[...] == 0).any()
    found = dw.nnx.grow_optimizer(optimizer, growth, grown)
    wanted = nnx.Optimizer(grown, optax.adam(1e-3), wrt=nnx.Param)
    shapes = [
        [(jnp.shape(v), jnp.result_type(v)) for v in jax.tree.leaves(o.opt_state)]
        for o in (found, wanted)
    ]
    assert shapes[0] == shapes[1]


class Normalized(nnx.Module):
    """Residual blocks under a norm, each with keys of its own for dropout."""

    def __init__(self, width: int, layers: int, epsilon: float, rngs: nnx.Rngs) -> None:
        kwargs = {"rngs": rngs, "param_dtype": jnp.float64, "dtype": jnp.float64}
        self.read = nnx.Linear(3, width, **kwargs)
        for i in range(layers):
            setattr(self, f"norm_{i}", nnx.RMSNorm(width, epsilon=epsilon, **kwargs))
            setattr(self, f"layer_{i}", nnx.Linear(width, width, **kwargs))
            setattr(self, f"dropout_{i}", nnx.Dropout(0.5, rngs=rngs))
        self.write = nnx.Linear(width, 2, **kwargs)
        self.layers = layers

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.read(x)
        for i in range(self.layers):
            norm, layer, dropout = (
                getattr(self, f"{name}_{i}") for name in ("norm", "layer", "dropout")
            )
            x = x + dropout(layer(norm(x)))
        return self.write(x)


@pytest.mark.parametrize("seed", [None, 3], ids=["fresh", "drawn"])
@pytest.mark.long
def test_a_stream_grows_under_its_norms_and_new_layers_get_keys(seed: int | None) -> None:
    key = None if seed is None else jax.random.key(seed)
    x = jnp.linspace(-1, 1, 6).reshape(2, 3)
    small = Normalized(4, 1, 1e-3, nnx.Rngs(0))
    wide = Normalized(6, 2, 1e-3 * 4 / 6, nnx.Rngs(1))
    small.eval(), wide.eval()
    _, grown = grown_into(small, wide, x, key=key)
    np.testing.assert_allclose(outputs(grown, x), outputs(small, x), rtol=1e-12)
    grown.train()
    assert np.isfinite(outputs(grown, x)).all()


def test_modules_in_different_modes_are_named() -> None:
    class Net(nnx.Module):
        def __init__(self, width: int) -> None:
            rngs = nnx.Rngs(0)
            self.up, self.down = nnx.Linear(4, width, rngs=rngs), nnx.Linear(width, 2, rngs=rngs)
            self.dropout = nnx.Dropout(0.5, rngs=rngs)

        def __call__(self, x: jax.Array) -> jax.Array:
            return self.down(self.dropout(nnx.relu(self.up(x))))

    small, wide, x = Net(8), Net(16), jnp.ones((1, 4))
    small.eval()
    with pytest.raises(ValueError, match="different modes.*\n- dropout/deterministic: is True in"):
        dw.nnx.plan(dw.nnx.trace(small, x), target=wide)
    wide.eval()
    assert dw.nnx.plan(dw.nnx.trace(small, x), target=wide).sizes["up"] == 16


def test_refuses_other_structures(images: jax.Array) -> None:
    class Other(nnx.Module):
        def __init__(self) -> None:
            self.conv = nnx.Linear(3, 9, rngs=nnx.Rngs(0))

    with pytest.raises(ValueError, match=r"\{up,down\}/\{kernel,bias\}: not in the target"):
        dw.nnx.plan(dw.nnx.trace(trained(6, 10, seed=0), images), target=Other())


@pytest.mark.long
def test_by_sizes_the_larger_module_is_made_from_the_module(images: jax.Array) -> None:
    small = trained(6, 10, seed=0)
    widths = dw.nnx.trace(small, images)
    growth = dw.nnx.plan(widths, {"conv": 9, ("up/kernel", 1): 17})
    assert growth == dw.nnx.plan(widths, {"conv": 9, "up": 17})
    assert dw.from_json(dw.to_json(growth)) == growth
    grown = dw.nnx.grow(small, growth, key=jax.random.key(3))
    assert nnx.split(grown)[0] == nnx.split(trained(9, 17, seed=1))[0]
    assert (grown.conv.out_features, grown.up.in_features, grown.down.in_features) == (9, 144, 17)
    np.testing.assert_allclose(outputs(grown, images), outputs(small, images), rtol=1e-12)
    assert small.conv.out_features == 6
    # The same for a growth from another process, and one that was planned with a module.
    planned = dw.nnx.plan(widths, target=trained(9, 17, seed=1))
    for other in (planned, dw.from_json(dw.to_json(growth))):
        again = dw.nnx.grow(small, other, key=jax.random.key(3))
        for a, b in zip(*(jax.tree.leaves(nnx.state(m, nnx.Param)) for m in (again, grown))):
            np.testing.assert_array_equal(a, b)


@pytest.mark.long
def test_modules_are_taken_where_others_take_functions_and_variables(images: jax.Array) -> None:
    small, wide = trained(6, 10, seed=0), trained(9, 17, seed=1)
    widths = dw.nnx.trace(small, images)
    grown = dw.nnx.grow(small, dw.nnx.plan(widths, target=wide), fresh=wide)
    np.testing.assert_array_equal(grown.conv.kernel[..., 6:], wide.conv.kernel[..., 6:])
    small.train(), grown.train()  # in which dropout would draw
    assert dw.nnx.verify(small, grown, images).relative < 1e-12
    assert dw.nnx.compare(small, grown, images) == dw.nnx.compare(small, grown, images)
    with pytest.raises(ValueError, match="computes something else"):
        dw.nnx.verify(small, wide, images)
    assert small.dropout.deterministic is False

    dead = [*range(6)]
    narrow = dw.nnx.narrow(grown, dw.nnx.trace(grown, images), {"conv": dead, "up": range(10)})
    assert (narrow.norm.num_features, narrow.up.in_features, narrow.down.in_features) == (6, 96, 10)
    assert dw.nnx.compare(small, narrow, images).absolute == 0
    planned = dw.nnx.plan(dw.nnx.trace(grown, images), keep={"conv": dead})
    assert dw.nnx.grow(grown, planned).conv.out_features == 6


@pytest.mark.long
def test_deepen_returns_the_deeper_module() -> None:
    x = jnp.linspace(-1, 1, 6).reshape(2, 3)
    small, deep = Tower(1, nnx.Rngs(0)), Tower(2, nnx.Rngs(1))
    grown = dw.nnx.deepen(small, deep, inputs=(x,))
    np.testing.assert_array_equal(grown.up_1.kernel, deep.up_1.kernel)
    np.testing.assert_allclose(outputs(grown, x), outputs(small, x), rtol=1e-12)
    copied = dw.nnx.deepen(small, deep, inputs=(x,), copy=True)
    np.testing.assert_array_equal(copied.up_1.kernel, small.up_0.kernel)
    _, again = grown_into(small, deep, x)
    np.testing.assert_array_equal(again.up_1.kernel, deep.up_1.kernel)


class Told(nnx.Module):
    """A module that says a size under another name than its class takes it by."""

    def __init__(self, units: int, rngs: nnx.Rngs) -> None:
        self.up = nnx.Linear(3, units, param_dtype=jnp.float64, rngs=rngs)
        self.down = nnx.Linear(units, 2, param_dtype=jnp.float64, rngs=rngs)
        self.hidden = units

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.down(nnx.tanh(self.up(x)))


@pytest.mark.long
def test_what_nothing_shows_is_refused() -> None:
    x = jnp.ones((2, 3))
    told = Told(4, nnx.Rngs(0))
    widths, keep = dw.nnx.trace(told, x), {"up": [0, 3]}
    for growth in (
        dw.nnx.plan(widths, target=Told(6, nnx.Rngs(1))),
        dw.nnx.plan(widths, {"up": 6}),
    ):
        with pytest.raises(ValueError, match="Told stores hidden=4, .*\n  pass the larger module"):
            dw.nnx.grow(told, growth, key=jax.random.key(0))
    with pytest.raises(
        ValueError, match="cannot narrow this module:(.|\n)*make the smaller module"
    ):
        dw.nnx.narrow(told, widths, keep)
    smaller = Told(2, nnx.Rngs(2))
    with pytest.warns(UserWarning, match="outputs move by"):
        nnx.update(smaller, dw.narrow(nnx.state(told), widths, keep))
    assert (smaller.up.kernel[...] == told.up.kernel[:, [0, 3]]).all()
    tower = dw.nnx.trace(Tower(1, nnx.Rngs(0)), x)
    deeper = dw.nnx.plan(tower, target=Tower(2, nnx.Rngs(1)))
    with pytest.raises(ValueError, match="inserts layers; pass the larger module, fresh="):
        dw.nnx.grow(Tower(1, nnx.Rngs(0)), deeper)


def test_arguments_of_other_kinds_are_named(images: jax.Array) -> None:
    small, wide = trained(6, 10, seed=0), trained(9, 17, seed=1)
    widths = dw.nnx.trace(small, images)
    growth = dw.nnx.plan(widths, target=wide)
    optimizer = nnx.Optimizer(small, optax.adam(1e-3), wrt=nnx.Param)
    for wrong, message in (
        (lambda: dw.nnx.grow_optimizer(optimizer, wide, growth), "wrong order: growth is Network"),
        (
            lambda: dw.nnx.grow_optimizer(small, growth, wide),
            "optimizer must be an nnx.Optimizer, got Network",
        ),
        (lambda: dw.nnx.plan({"conv": 9}, widths), "wrong order: widths is a dict"),
        (lambda: dw.nnx.plan(widths, images), "sizes must be .* got an arr"),
        (lambda: dw.nnx.plan(widths, target=growth), "target must be an nnx.Module, got a Growth"),
        (lambda: dw.nnx.upcycle(widths, target={}), "target must be an nnx.Module, got a dict"),
        (lambda: dw.nnx.grow(growth, small), "wrong order: model is a Growth"),
        (lambda: dw.nnx.grow(small, {"conv": 9}), "growth must be the Growth .* got a dict"),
        (lambda: dw.nnx.grow(small, growth, steps=3), "unexpected keyword argument 'steps'"),
        (lambda: dw.nnx.grow(small), "missing 1 required positional argument: 'growth'"),
        (lambda: dw.nnx.upcycle(small, target=wide), "widths must be the Widths .* got Network"),
    ):
        with pytest.raises(TypeError, match=message):
            wrong()
    with pytest.raises(ValueError, match="no width 'con'"):
        dw.nnx.plan(widths, {"con": 9})


def test_a_larger_module_that_starts_with_zeros_needs_a_key(images: jax.Array) -> None:
    small, wide = trained(6, 10, seed=0), trained(9, 17, seed=1)
    wide.up.kernel = nnx.Param(jnp.zeros((9 * 16, 17)))
    with pytest.raises(ValueError, match="up/kernel: zero in the larger model .*\n  pass key="):
        grown_into(small, wide, images)
    _, grown = grown_into(small, wide, images, key=jax.random.key(3))
    assert not (grown.up.kernel[..., 10:] == 0).all()


@pytest.mark.long
def test_widths_know_the_module_that_was_traced() -> None:
    """Widths tell as much as the module: whether it computes the same in the new sizes."""

    class Attention(nnx.Module):
        def __init__(self, heads: int, rngs: nnx.Rngs) -> None:
            self.attention = nnx.MultiHeadAttention(heads, 6, 4 * heads, decode=False, rngs=rngs)
            self.heads = heads

        def __call__(self, x: jax.Array) -> jax.Array:
            return self.attention(x)

    model, x = Attention(2, nnx.Rngs(0)), jnp.ones((1, 3, 6))
    growth = dw.nnx.plan(dw.nnx.trace(model, x), {"attention/query[heads]": 4})
    assert growth.notes == ()
    assert dw.nnx.grow(model, growth, key=jax.random.key(1)).attention.num_heads == 4


class _Dropped(nnx.Module):
    """A stack of blocks over which a scan runs, each with keys for dropout of its own."""

    def __init__(self, layers, rngs):
        @nnx.split_rngs(splits=layers)
        @nnx.vmap(in_axes=(0,), out_axes=0)
        def blocks(rngs):
            return nnx.Sequential(
                nnx.Linear(4, 6, rngs=rngs),
                nnx.tanh,
                nnx.Dropout(0.1, rngs=rngs),
                nnx.Linear(6, 4, rngs=rngs),
            )

        self.blocks = blocks(rngs)

    def __call__(self, x):
        @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        def run(x, block):
            return x + block(x)

        return run(x, self.blocks)


@pytest.mark.skipif(
    tuple(map(int, flax.__version__.split(".")[:2])) < (0, 12),
    reason="in older versions of Flax, such a stack does not run by itself",
)
@pytest.mark.long
def test_a_stack_with_keys_gets_more_layers():
    small, deep = (_Dropped(layers, nnx.Rngs(0)) for layers in (2, 4))
    small.eval()
    deep.eval()
    x = np.random.default_rng(1).normal(size=(3, 4)).astype(np.float32)
    growth = dw.nnx.plan(dw.nnx.trace(small, x), target=deep)
    deeper = dw.nnx.grow(small, growth, fresh=deep)
    np.testing.assert_allclose(outputs(deeper, x), outputs(small, x), 1e-6)
