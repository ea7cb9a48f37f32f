"""The adapter for ``flax.nnx``: the larger module with the smaller one's function."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

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


@pytest.fixture
def images() -> jax.Array:
    return jnp.asarray(np.random.default_rng(7).normal(size=(5, 4, 4, 3)))


@pytest.mark.parametrize("key", [None, jax.random.key(3)], ids=["fresh", "drawn"])
def test_grown_module_computes_the_same(images: jax.Array, key: jax.Array | None) -> None:
    small, wide = trained(6, 10, seed=0), trained(9, 17, seed=1)
    before = small(images)
    grown = dw.nnx.grow(small, wide, images, key=key)
    assert grown.conv.kernel.shape == (3, 3, 3, 9)
    assert grown.up.kernel.shape == (9 * 16, 17)
    np.testing.assert_allclose(grown(images), before, rtol=1e-12)
    np.testing.assert_array_equal(small(images), before)


def test_free_weights_are_the_wide_modules_own(images: jax.Array) -> None:
    small, wide = trained(6, 10, seed=0), trained(9, 17, seed=1)
    grown = dw.nnx.grow(small, wide, images)
    np.testing.assert_array_equal(grown.conv.kernel[..., 6:], wide.conv.kernel[..., 6:])
    np.testing.assert_array_equal(grown.down.kernel[10:], 0)


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

    gradient = jax.grad(lambda p: (apply({"params": p, "rest": rest}, images) ** 2).sum())(params)
    _, state = tx.update(gradient, tx.init(params), params)

    optimizer = nnx.Optimizer(small, tx, wrt=nnx.Param)
    given = () if "model" in vars(optimizer) else (small,)  # Flax 0.11 and newer want it
    optimizer.update(*given, nnx.grad(lambda model: (model(images) ** 2).sum())(small))
    growth = dw.nnx.plan(small, wide, images)
    grown = dw.nnx.grow(small, wide, images)
    found = dw.nnx.grow_optimizer(optimizer, grown, growth)
    assert int(found.step[...]) == 1

    variables = {"params": params, "rest": rest}
    target = dict(zip(variables, map(jax.tree.leaves, nnx.split(grown, nnx.Param, ...)[1:])))
    plain = dw.plan(dw.trace(apply, variables, images), target=target)
    wanted = dw.grow_opt_state(state, plain, tx)
    for a, b in zip(jax.tree.leaves(found.opt_state), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(jnp.asarray(a), b, rtol=1e-10)
    given = () if "model" in vars(found) else (grown,)
    found.update(*given, nnx.grad(lambda model: (model(images) ** 2).sum())(grown))


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


def test_a_module_grows_deeper_with_its_optimizer() -> None:
    x = jnp.linspace(-1, 1, 6).reshape(2, 3)
    small, deep = Tower(1, nnx.Rngs(0)), Tower(2, nnx.Rngs(1))
    optimizer = nnx.Optimizer(small, optax.adam(1e-3), wrt=nnx.Param)
    grown = dw.nnx.grow(small, deep, x)
    np.testing.assert_allclose(grown(x), small(x), rtol=1e-12)
    assert not (grown.up_1.kernel[...] == 0).any()
    found = dw.nnx.grow_optimizer(optimizer, grown, dw.nnx.plan(small, deep, x))
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


@pytest.mark.parametrize("key", [None, jax.random.key(3)], ids=["fresh", "drawn"])
def test_a_stream_grows_under_its_norms_and_new_layers_get_keys(key: jax.Array | None) -> None:
    x = jnp.linspace(-1, 1, 6).reshape(2, 3)
    small = Normalized(4, 1, 1e-3, nnx.Rngs(0))
    wide = Normalized(6, 2, 1e-3 * 4 / 6, nnx.Rngs(1))
    small.eval(), wide.eval()
    grown = dw.nnx.grow(small, wide, x, key=key)
    np.testing.assert_allclose(grown(x), small(x), rtol=1e-12)
    grown.train()
    assert jnp.isfinite(grown(x)).all()


def test_refuses_other_structures(images: jax.Array) -> None:
    class Other(nnx.Module):
        def __init__(self) -> None:
            self.conv = nnx.Linear(3, 9, rngs=nnx.Rngs(0))

    with pytest.raises(ValueError, match=r"up/kernel: not in the target"):
        dw.nnx.grow(trained(6, 10, seed=0), Other(), images)
