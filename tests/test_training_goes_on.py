"""Networks of five libraries grow in the middle of their training, and training goes on.

The first loss after a growth is the last one before it, on the same batch, and within a few steps
every new unit moves on both of its sides.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import dogwood_jax as dw
from dogwood_jax._base.trees import leaves_by_path
from dogwood_jax._widths.layout import units_along

KEYS = jax.random.split(jax.random.key(0), 4)
STEPS = 4
BY = pytest.mark.parametrize("by", ["names", "target"])


def batches(*shape: int) -> list[tuple[jax.Array, jax.Array]]:
    """Batches of inputs, and of targets for every input."""
    rng = np.random.default_rng(1)
    return [
        (jnp.asarray(rng.normal(size=shape)), jnp.asarray(rng.normal(size=shape[0])))
        for _ in range(STEPS)
    ]


def optimizer(rate: float = 1e-2) -> optax.GradientTransformation:
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate))


def squares(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """The loss of outputs ``[n, ...]``, of which the mean is to be the target ``[n]``."""
    return jnp.mean((outputs.reshape(len(targets), -1).mean(1) - targets) ** 2)


class Moves:
    """Which weights of new units have moved, by width and role."""

    def __init__(self, growth: dw.Growth, collection: str = "") -> None:
        self.growth, self.collection = growth, collection
        self.moved = {
            (change.width, occurrence.role): False
            for change in growth.changes
            for occurrence in growth.after[change.width].occurrences
            if occurrence.path.startswith(collection)
        }

    def see(self, updates: Any) -> None:
        arrays = {self.collection + p: np.asarray(u) for p, u in leaves_by_path(updates).items()}
        assert all(np.isfinite(array).all() for array in arrays.values())
        for change in self.growth.changes:
            for place in self.growth.after[change.width].occurrences:
                units = units_along(place.layout, change.width, (place.role,))
                new = np.flatnonzero(units >= change.old)
                if place.path in arrays and np.take(arrays[place.path], new, place.axis).any():
                    self.moved[change.width, place.role] = True


def assert_goes_on(
    small: Callable[..., Any],
    large: Callable[..., Any],
    before: tuple[Any, Any],
    after: tuple[Any, Any],
    moves: Moves,
    data: list[tuple[jax.Array, jax.Array]],
) -> None:
    """Checks the loss at the growth, and what training does next.

    Args:
        small: the network's step, ``(params, state, batch) -> (params, state, updates, loss)``.
        large: the larger network's.
        before: the network's parameters and state, when it grew.
        after: the larger network's.
        moves: which new units are to move.
        data: batches.
    """
    *_, old = small(*before, data[0])
    params, state, updates, new = large(*after, data[0])
    np.testing.assert_allclose(new, old, rtol=1e-12)
    moves.see(updates)
    for batch in data[1:]:
        params, state, updates, loss = large(params, state, batch)
        assert np.isfinite(loss)
        moves.see(updates)
    assert moves.moved and all(moves.moved.values()), moves.moved
    *_, last = large(params, state, data[0])
    assert last < old


def trained(step: Callable[..., Any], params: Any, state: Any, data: Any) -> tuple[Any, Any]:
    for batch in data:
        params, state, *_ = step(params, state, batch)
    return params, state


# Equinox ------------------------------------------------------------------------------------------


def equinox_step(tx: Any) -> Callable[..., Any]:
    @eqx.filter_jit
    def step(model: Any, state: Any, batch: Any) -> tuple[Any, Any, Any, Any]:
        def loss(model: Any) -> Any:
            return squares(jax.vmap(model)(batch[0]), batch[1])

        value, gradient = eqx.filter_value_and_grad(loss)(model)
        updates, state = tx.update(gradient, state, eqx.filter(model, eqx.is_inexact_array))
        return eqx.apply_updates(model, updates), state, updates, value

    return step


def assert_equinox_goes_on(
    by: str, make: Callable[[bool], Any], sizes: Mapping[str, int], data: Any
) -> Any:
    step, tx = equinox_step(optimizer()), optimizer()
    small, large = make(False), make(True)
    before = trained(step, small, tx.init(eqx.filter(small, eqx.is_inexact_array)), data)

    def apply(model: Any, x: Any) -> Any:
        return jax.vmap(model)(x)

    widths = dw.trace(apply, before[0], data[0][0])
    if by == "names":
        growth = dw.plan(widths, sizes)
    else:
        growth = dw.plan(widths, target=large, target_apply=apply)
    assert {change.width: change.new for change in growth.changes} == sizes
    wide = dw.grow(before[0], growth, key=KEYS[2])
    assert jax.tree.structure(wide) == jax.tree.structure(large)
    state = dw.grow_opt_state(before[1], growth, tx)
    assert jax.tree.structure(state) == jax.tree.structure(
        tx.init(eqx.filter(wide, eqx.is_inexact_array))
    )
    assert_goes_on(step, step, before, (wide, state), Moves(growth), data)
    return wide


@pytest.mark.parametrize("by", ["names", "target"])
@pytest.mark.long
def test_an_equinox_mlp(by: str) -> None:
    def make(large: bool) -> Any:
        return eqx.nn.MLP(4, 3, 12 if large else 8, 2, jnp.tanh, dtype=jnp.float64, key=KEYS[0])

    wide = assert_equinox_goes_on(by, make, {"layers/0": 12, "layers/1": 12}, batches(6, 4))
    assert wide.width_size == wide.layers[1].in_features == wide.layers[1].out_features == 12


class Transformer(eqx.Module):
    embed: eqx.nn.Linear
    attention: eqx.nn.MultiheadAttention
    norm: eqx.nn.LayerNorm
    mlp: list[eqx.nn.Linear]

    def __init__(self, heads: int, hidden: int, key: jax.Array) -> None:
        keys = jax.random.split(key, 4)
        linear = functools.partial(eqx.nn.Linear, dtype=jnp.float64)
        self.embed = linear(4, 8, key=keys[0])
        self.attention = eqx.nn.MultiheadAttention(
            heads, 8, qk_size=4, vo_size=4, dtype=jnp.float64, key=keys[1]
        )
        self.norm = eqx.nn.LayerNorm(8, dtype=jnp.float64)
        self.mlp = [linear(8, hidden, key=keys[2]), linear(hidden, 8, key=keys[3])]

    def __call__(self, x: jax.Array) -> jax.Array:
        x = jax.vmap(self.embed)(x)
        h = jax.vmap(self.norm)(x)
        x = x + self.attention(h, h, h)
        up, down = self.mlp
        return x + jax.vmap(lambda h: down(jax.nn.gelu(up(h))))(x)


@pytest.mark.long
@pytest.mark.parametrize("by", ["names"])
def test_an_equinox_transformer(by: str) -> None:
    def make(large: bool) -> Any:
        return Transformer(*((3, 20) if large else (2, 16)), KEYS[0])

    sizes = {"attention/query_proj[heads]": 3, "mlp/0": 20}
    wide = assert_equinox_goes_on(by, make, sizes, batches(6, 5, 4))
    assert wide.attention.num_heads == 3
    assert wide.attention.query_proj.out_features == 12
    assert wide.mlp[0].out_features == wide.mlp[1].in_features == 20


# Flax ---------------------------------------------------------------------------------------------


class Cnn(nn.Module):
    channels: int
    hidden: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        kwargs = {"param_dtype": jnp.float64}
        x = nn.Conv(self.channels, (3, 3), name="conv", **kwargs)(x)
        x = nn.BatchNorm(not train, name="norm", **kwargs)(x)
        x = nn.silu(x).reshape(len(x), -1)
        return nn.Dense(2, name="down", **kwargs)(
            nn.tanh(nn.Dense(self.hidden, name="up", **kwargs)(x))
        )


@pytest.mark.long
@pytest.mark.parametrize("by", ["target"])
def test_a_linen_cnn_with_batch_norm(by: str) -> None:
    tx, data = optimizer(), batches(6, 4, 4, 2)
    small, large = Cnn(3, 8), Cnn(5, 12)

    def step_of(model: nn.Module) -> Callable[..., Any]:
        @jax.jit
        def step(variables: Any, state: Any, batch: Any) -> tuple[Any, Any, Any, Any]:
            def loss(params: Any) -> Any:
                outputs, changed = model.apply(
                    {**variables, "params": params}, batch[0], True, mutable=["batch_stats"]
                )
                return squares(outputs, batch[1]), changed

            (value, changed), gradient = jax.value_and_grad(loss, has_aux=True)(variables["params"])
            updates, state = tx.update(gradient, state, variables["params"])
            params = optax.apply_updates(variables["params"], updates)
            return {"params": params, **changed}, state, updates, value

        return step

    def apply(model: nn.Module) -> Callable[..., Any]:
        return lambda variables, x: model.apply(variables, x, False)

    variables = jax.jit(small.init, static_argnums=2)(KEYS[0], data[0][0], True)
    before = trained(step_of(small), variables, tx.init(variables["params"]), data)
    widths = dw.trace(apply(small), before[0], data[0][0])
    target = jax.eval_shape(lambda: large.init(KEYS[1], data[0][0], True))
    if by == "names":
        growth = dw.plan(widths, {"conv": 5, "up": 12})
    else:
        growth = dw.plan(widths, target=target, target_apply=apply(large))
    wide = dw.grow(before[0], growth, key=KEYS[2])
    assert jax.tree.map(jnp.shape, wide) == jax.tree.map(jnp.shape, target)
    found, wanted = (
        jax.jit(apply(n))(v, data[0][0]) for n, v in ((large, wide), (small, before[0]))
    )
    np.testing.assert_allclose(found, wanted, rtol=1e-12)
    after = wide, dw.grow_opt_state(before[1], growth, tx)
    moves = Moves(growth, "params/")
    assert_goes_on(step_of(small), step_of(large), before, after, moves, data)


class Block(nnx.Module):
    def __init__(self, heads: int, hidden: int, rngs: nnx.Rngs) -> None:
        kwargs = {"rngs": rngs, "param_dtype": jnp.float64, "dtype": jnp.float64}
        self.norm = nnx.LayerNorm(8, **kwargs)
        self.attention = nnx.MultiHeadAttention(heads, 8, 4 * heads, decode=False, **kwargs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.up, self.down = nnx.Linear(8, hidden, **kwargs), nnx.Linear(hidden, 8, **kwargs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + self.attention(self.norm(x))
        return x + self.dropout(self.down(nnx.gelu(self.up(x))))


class NnxTransformer(nnx.Module):
    def __init__(self, heads: int, hidden: int, rngs: nnx.Rngs) -> None:
        self.embed = nnx.Linear(4, 8, param_dtype=jnp.float64, dtype=jnp.float64, rngs=rngs)
        blocks = [Block(heads, hidden, rngs) for _ in range(2)]
        self.blocks = nnx.List(blocks) if hasattr(nnx, "List") else blocks
        self.eval()  # each size draws another mask

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return x


@pytest.mark.long
@pytest.mark.parametrize("by", ["target"])
def test_an_nnx_transformer(by: str) -> None:
    data = batches(6, 5, 4)
    small = NnxTransformer(2, 16, nnx.Rngs(0))
    optimizer_ = nnx.Optimizer(small, optimizer(), wrt=nnx.Param)

    @nnx.jit
    def stepped(model: Any, its_optimizer: Any, batch: Any) -> tuple[Any, Any]:
        value, gradient = nnx.value_and_grad(lambda model: squares(model(batch[0]), batch[1]))(
            model
        )
        before = jax.tree.map(jnp.copy, nnx.state(model, nnx.Param))
        given = () if "model" in vars(its_optimizer) else (model,)  # Flax 0.11 and newer want it
        its_optimizer.update(*given, gradient)
        return jax.tree.map(jnp.subtract, nnx.state(model, nnx.Param), before), value

    def step(model: Any, its_optimizer: Any, batch: Any) -> tuple[Any, Any, Any, Any]:
        return model, its_optimizer, *stepped(model, its_optimizer, batch)

    trained(step, small, optimizer_, data)
    sizes = {f"blocks/{i}/attention/query[heads]": 3 for i in range(2)}
    sizes |= {f"blocks/{i}/up": 20 for i in range(2)}
    larger = None if by == "names" else NnxTransformer(3, 20, nnx.Rngs(1))
    widths = dw.nnx.trace(small, data[0][0])
    growth = dw.nnx.plan(widths, sizes if larger is None else None, target=larger)
    assert {change.width: change.new for change in growth.changes} == sizes
    if larger is None:
        wide = dw.nnx.grow(small, growth, key=KEYS[2])
        expected = nnx.split(NnxTransformer(3, 20, nnx.Rngs(0)))[0]
        assert nnx.split(wide)[0] == expected
    else:
        wide = dw.nnx.grow(small, growth, fresh=larger)
    wide_optimizer = dw.nnx.grow_optimizer(optimizer_, growth, wide)
    assert_goes_on(step, step, (small, optimizer_), (wide, wide_optimizer), Moves(growth), data)


# Haiku --------------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize("by", ["names"])
def test_a_haiku_net(by: str) -> None:
    tx, data = optimizer(), batches(6, 4, 4, 2)

    def net(channels: int, hidden: int) -> Any:
        def forward(x: Any, train: bool) -> Any:
            with jax.numpy_rank_promotion("allow"):
                x = hk.Conv2D(channels, 3, name="conv")(x)
                x = jax.nn.silu(hk.BatchNorm(True, True, 0.9, name="norm")(x, train))
                return hk.Linear(2, name="down")(
                    jnp.tanh(hk.Linear(hidden, name="up")(hk.Flatten()(x)))
                )

        return hk.without_apply_rng(hk.transform_with_state(forward))

    def step_of(network: Any) -> Callable[..., Any]:
        @jax.jit
        def step(variables: Any, state: Any, batch: Any) -> tuple[Any, Any, Any, Any]:
            def loss(params: Any) -> Any:
                outputs, changed = network.apply(params, variables[1], batch[0], True)
                return squares(outputs, batch[1]), changed

            (value, changed), gradient = jax.value_and_grad(loss, has_aux=True)(variables[0])
            updates, state = tx.update(gradient, state, variables[0])
            return (optax.apply_updates(variables[0], updates), changed), state, updates, value

        return step

    def apply(network: Any) -> Callable[..., Any]:
        return lambda variables, x: network.apply(*variables, x, False)[0]

    small, large, x = net(3, 8), net(5, 12), data[0][0]
    variables = jax.jit(small.init, static_argnums=2)(KEYS[0], x, True)
    before = trained(step_of(small), variables, tx.init(variables[0]), data)
    widths = dw.trace(apply(small), before[0], x)
    target = jax.eval_shape(lambda: large.init(KEYS[1], x, True))
    if by == "names":
        growth = dw.plan(widths, {"0/conv": 5, "0/up": 12})
    else:
        growth = dw.plan(widths, target=target, target_apply=apply(large))
    wide = dw.grow(before[0], growth, key=KEYS[2])
    assert jax.tree.map(jnp.shape, wide) == jax.tree.map(jnp.shape, target)
    after = wide, dw.grow_opt_state(before[1], growth, tx)
    assert_goes_on(step_of(small), step_of(large), before, after, Moves(growth, "0/"), data)
