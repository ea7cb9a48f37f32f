"""Modules that say sizes beside their arrays: the grown ones say the new sizes, or none grow."""

import dataclasses
import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from tiers import long

import dogwood_jax as dw

KEY = jax.random.key(0)
X = np.random.default_rng(1).normal(size=(3, 4))
WORDS = np.random.default_rng(2).normal(size=(3, 5, 8))
grow, run = eqx.filter_jit(dw.grow), eqx.filter_jit(lambda model, x: jax.vmap(model)(x))
linear = functools.partial(eqx.nn.Linear, dtype=jnp.float64)


def apply(model: Any, x: jax.Array) -> jax.Array:
    return jax.vmap(model)(x)


def mlp(hidden: int, seed: int = 0) -> Any:
    return eqx.nn.MLP(4, 3, hidden, 2, jnp.tanh, dtype=jnp.float64, key=jax.random.key(seed))


BOTH = {"layers/0": 12, "layers/1": 12}


class Net(eqx.Module):
    """Modules of most kinds, none with the same sizes."""

    conv: eqx.nn.Conv1d
    norm: eqx.nn.GroupNorm
    cell: eqx.nn.GRUCell
    attention: eqx.nn.MultiheadAttention
    out: eqx.nn.Linear

    def __init__(
        self, wide: int = 6, hidden: int = 9, heads: int = 2, key: int = 3, value: int = 5
    ):
        keys = jax.random.split(KEY, 4)
        self.conv = eqx.nn.Conv1d(5, wide, 3, padding=1, dtype=jnp.float64, key=keys[0])
        self.norm = eqx.nn.GroupNorm(wide, wide, dtype=jnp.float64)
        self.cell = eqx.nn.GRUCell(wide, hidden, dtype=jnp.float64, key=keys[1])
        self.attention = eqx.nn.MultiheadAttention(
            heads,
            hidden,
            qk_size=key,
            vo_size=value,
            output_size=7,
            dtype=jnp.float64,
            key=keys[2],
        )
        self.out = linear(7, 2, key=keys[3])

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.norm(self.conv(x)).T

        def step(h: Any, x: Any) -> Any:
            h = self.cell(x, h)
            return h, h

        _, x = jax.lax.scan(step, jnp.zeros(self.cell.hidden_size, x.dtype), x)
        return jax.vmap(self.out)(self.attention(x, x, x))


@pytest.mark.long
@pytest.mark.parametrize(
    ("names", "sizes"),
    [
        (["attention/query_proj[heads]"], {"heads": 4}),
        (["attention/query_proj[head_dim]", "conv"], {"key": 4, "wide": 10}),
    ],
)
def test_by_name_a_module_becomes_the_one_that_its_class_makes(
    names: list[str], sizes: dict[str, int]
) -> None:
    small, large = eqx.filter_jit(Net)(), eqx.filter_eval_shape(Net, **sizes)
    widths = dw.trace(apply, small, WORDS)
    growth = dw.plan(widths, dict(zip(names, sizes.values(), strict=True)))
    wide = grow(small, growth, key=KEY)
    assert jax.tree.structure(wide) == jax.tree.structure(large)
    before, after = (run(net, WORDS) for net in (small, wide))
    np.testing.assert_allclose(after, before, rtol=1e-12, atol=1e-12)
    # A growth that comes from another process does the same, and narrowing undoes it.
    again = grow(small, dw.from_json(dw.to_json(growth)), key=KEY)
    assert eqx.tree_equal(again, wide)
    keep = {name: range(widths[name].size) for name in names}
    narrowed = dw.narrow(wide, growth.after, keep)
    assert jax.tree.structure(narrowed) == jax.tree.structure(small)


@pytest.mark.long
def test_under_jit_and_with_shardings_derived_from_the_old_ones() -> None:
    small, _ = eqx.partition(mlp(8), eqx.is_array)
    widths = dw.trace(apply, mlp(8), X)
    growth = dw.plan(widths, BOTH)
    shardings = growth.shardings(jax.tree.map(lambda array: array.sharding, small))
    grow = jax.jit(dw.grow, static_argnames="growth", out_shardings=shardings)
    wide = grow(small, growth=growth, key=KEY)
    assert jax.tree.structure(wide) == jax.tree.structure(eqx.filter(mlp(12), eqx.is_array))


class Stacked(eqx.Module):
    """Layers in one module, over which a loop runs."""

    read: eqx.nn.Linear
    layers: Any
    write: eqx.nn.Linear

    def __init__(self, width: int, hidden: int) -> None:
        self.read, self.write = linear(4, width, key=KEY), linear(width, 3, key=KEY)
        keys = jax.random.split(KEY, 5)

        def layer(key: jax.Array) -> Any:
            return linear(width, hidden, key=key), linear(hidden, width, key=key)

        self.layers = eqx.filter_vmap(layer)(keys)

    def __call__(self, x: jax.Array) -> jax.Array:
        arrays, static = eqx.partition(self.layers, eqx.is_array)

        def step(x: Any, arrays: Any) -> Any:
            up, down = eqx.combine(arrays, static)
            return x + down(jnp.tanh(up(x))), None

        return self.write(jax.lax.scan(step, self.read(x), arrays)[0])


@pytest.mark.parametrize("sizes", [(8, 9), (7, 9)])
@pytest.mark.long
def test_stacks_of_modules_are_made_anew(sizes: tuple[int, int]) -> None:
    small, large = Stacked(7, 6), Stacked(*sizes)
    growth = dw.plan(dw.trace(apply, small, X), dict(zip(("read", "layers/0"), sizes)))
    wide = dw.grow(small, growth, key=KEY)
    assert jax.tree.structure(wide) == jax.tree.structure(large)
    np.testing.assert_allclose(run(wide, X), run(small, X), rtol=1e-12)


class Own(eqx.Module):
    """Keeps a size that its class is not told by that name."""

    up: jax.Array
    down: jax.Array
    hidden: int = eqx.field(static=True)

    def __init__(self, units: int) -> None:
        self.up, self.down = jnp.ones((4, units)), jnp.ones((units, 3))
        self.hidden = units

    def __call__(self, x: jax.Array) -> jax.Array:
        return jnp.tanh(x @ self.up).reshape(self.hidden) @ self.down


class Counted(Own):
    """Keeps it as a leaf of the tree."""

    hidden: int = eqx.field(static=False)


@dataclasses.dataclass(frozen=True)
class Config:
    hidden: int


class Configured(Own):
    """Keeps it in a configuration."""

    hidden: Config = eqx.field(static=True)

    def __init__(self, units: int) -> None:
        self.up, self.down = jnp.ones((4, units)), jnp.ones((units, 3))
        self.hidden = Config(units)

    def __call__(self, x: jax.Array) -> jax.Array:
        return jnp.tanh(x @ self.up) @ self.down


class Knot:
    """A configuration that refers to itself."""

    def __init__(self, hidden: int) -> None:
        self.hidden, self.itself = hidden, self

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Knot) and other.hidden == self.hidden

    def __hash__(self) -> int:
        return hash(self.hidden)


class Knotted(Configured):
    """Keeps it in a configuration that refers to itself."""

    hidden: Knot = eqx.field(static=True)

    def __init__(self, units: int) -> None:
        super().__init__(units)
        self.hidden = Knot(units)


class Fields(eqx.Module):
    """Is made of whatever fields."""

    up: jax.Array
    down: jax.Array
    hidden: int = eqx.field(static=True)

    def __call__(self, x: jax.Array) -> jax.Array:
        return jnp.tanh(x @ self.up) @ self.down


def fields(hidden: int) -> Fields:
    return Fields(jnp.ones((4, hidden)), jnp.ones((hidden, 3)), hidden)


@pytest.mark.parametrize("make", [Own, Counted, Configured, Knotted, fields])
def test_what_nothing_shows_is_refused_and_the_larger_model_tells_it(make: Any) -> None:
    small, large = make(8), make(12)
    widths = dw.trace(apply, small, X)
    by_name, by_target = dw.plan(widths, {("up", 1): 12}), dw.plan(widths, target=large)
    with pytest.raises(ValueError, match="(?s)stores hidden.*8.*target=.*fresh="):
        dw.grow(small, by_name, key=KEY)
    for growth in (by_name, by_target):
        wide = dw.grow(small, growth, fresh=large)
        assert wide.hidden == large.hidden
        np.testing.assert_allclose(apply(wide, X), apply(small, X), rtol=1e-6)
    if make is Counted:  # which a tree's structure does not tell
        with pytest.raises(ValueError, match="(?s)hidden: is 8, which equals a size.*fresh="):
            dw.grow(small, by_target, key=KEY)
    else:
        assert dw.grow(small, by_target, key=KEY).hidden == large.hidden


class Paired(Own):
    """Keeps a number that follows from a size, but is none."""

    def __init__(self, units: int) -> None:
        super().__init__(units)
        self.hidden = units // 2

    def __call__(self, x: jax.Array) -> jax.Array:
        return jnp.tanh(x @ self.up).reshape(2, self.hidden).reshape(-1) @ self.down


def test_numbers_that_follow_from_a_size_are_refused_where_they_matter() -> None:
    small, large = Paired(16), Paired(24)
    widths = dw.trace(apply, small, X)
    with pytest.raises(ValueError, match="does not take its modules in these sizes: .*\n.*target="):
        dw.plan(widths, {"up[1.0]": 3})
    growth = dw.plan(widths, target=large, target_apply=apply)
    wide = dw.grow(small, growth, fresh=large)
    assert wide.hidden == 12
    np.testing.assert_allclose(apply(wide, X), apply(small, X), rtol=1e-6)


def test_sizes_that_no_module_of_the_class_has_are_refused() -> None:
    widths = dw.trace(apply, mlp(8), X)
    with pytest.raises(ValueError, match="MLP stores width_size=8, but its class makes no module"):
        dw.grow(mlp(8), dw.plan(widths, {"layers/0": 12}), key=KEY)


def test_sizes_that_shapes_leave_open_are_refused() -> None:
    # Six heads of four or four heads of six.
    model = eqx.nn.MultiheadAttention(4, 8, qk_size=4, vo_size=4, key=KEY, dtype=jnp.float64)

    def attend(model: Any, x: jax.Array) -> jax.Array:
        return jax.vmap(lambda x: model(x, x, x))(x)

    growth = dw.plan(dw.trace(attend, model, WORDS), {"query_proj[heads]": 6})
    with pytest.raises(ValueError, match="num_heads=4, qk_size=4, vo_size=4, .* leave open which"):
        dw.grow(model, growth, key=KEY)


class Scaled(eqx.Module):
    """A norm whose epsilon must change with the width, because tanh writes what it normalizes."""

    up: eqx.nn.Linear
    weight: jax.Array
    down: eqx.nn.Linear
    epsilon: float = eqx.field(static=True)

    def __init__(self, width: int, epsilon: float) -> None:
        self.up, self.down = linear(4, width, key=KEY), linear(width, 3, key=KEY)
        self.weight, self.epsilon = jnp.ones(width), epsilon

    def __call__(self, x: jax.Array) -> jax.Array:
        x = jnp.tanh(self.up(x))
        return self.down(x * jax.lax.rsqrt(jnp.mean(x * x) + self.epsilon) * self.weight)


def test_a_constant_that_must_change_is_refused() -> None:
    small, large = Scaled(8, 1e-3), Scaled(12, 1e-3 * 8 / 12)
    widths = dw.trace(apply, small, X)
    with pytest.raises(ValueError, match="the network itself computes something else"):
        dw.plan(widths, {"up": 12})  # its module goes on to say 1e-3
    growth = dw.plan(widths, target=large, target_apply=apply)
    wide = dw.grow(small, growth, key=KEY)
    np.testing.assert_allclose(apply(wide, X), apply(small, X), rtol=1e-12)


@pytest.mark.long
def test_a_constant_that_only_looks_computed_from_a_size_stays_if_the_function_says_so() -> None:
    class Own(eqx.Module):
        up: eqx.nn.Linear
        down: eqx.nn.Linear
        gain: float = eqx.field(static=True)

        def __call__(self, x: jax.Array) -> jax.Array:
            return self.gain * self.down(jax.nn.gelu(self.up(x)))

    small = Own(linear(4, 16, key=KEY), linear(16, 4, key=KEY), 0.25)  # 1 / sqrt(16)
    widths = dw.trace(apply, small, X)
    growth = dw.plan(widths, {"up": 24}, target_apply=apply)
    assert dw.plan(widths, {"up": 24}).changes == growth.changes  # the module says its gain
    assert dw.from_json(dw.to_json(growth)) == growth  # it holds no module
    wide = dw.grow(small, growth, key=KEY)
    assert wide.gain == 0.25 and wide.up.out_features == 24
    np.testing.assert_allclose(apply(wide, X), apply(small, X), rtol=1e-12)
    twice = dw.plan(widths, {"up": 24}, target_apply=lambda model, x: 2 * apply(model, x))
    assert twice.factors == {"down/weight": 0.5, "down/bias": 0.5}
    assert "the larger model has 2 instead of 1" in twice.notes[0]
    widths = dw.trace(apply, Configured(8), X)
    with pytest.raises(
        ValueError, match="store its argument units .*\n  pass target=, the larger model"
    ):
        dw.plan(widths, {("up", 1): 12}, target_apply=apply)


class Averaged(eqx.Module):
    """Divides by the number of its heads."""

    up: eqx.nn.Linear
    down: eqx.nn.Linear
    heads: int = eqx.field(static=True)
    dim: int = eqx.field(static=True)

    def __init__(self, heads: int, dim: int, key: jax.Array) -> None:
        self.heads, self.dim = heads, dim
        self.up, self.down = linear(4, heads * dim, key=key), linear(heads * dim, 3, key=key)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = jnp.tanh(self.up(x)).reshape(self.heads, self.dim)
        return self.down(x.reshape(-1)) / self.heads


@pytest.mark.long
def test_the_module_made_anew_is_compared_with_the_network() -> None:
    widths = dw.trace(apply, Averaged(2, 5, KEY), X)
    heads, dim = widths["up[0.0]"], widths["up[0.1]"]
    assert (heads.size, dim.size) == (2, 5)
    small = Averaged(2, 5, KEY)
    wide = dw.grow(small, dw.plan(widths, {heads.name: 3}), key=KEY)  # divides by 3, not by 2
    assert (wide.heads, wide.dim) == (3, 5)
    np.testing.assert_allclose(apply(wide, X), apply(small, X), rtol=1e-12)
    wide = dw.grow(Averaged(2, 5, KEY), dw.plan(widths, {dim.name: 7}), key=KEY)
    assert (wide.heads, wide.dim) == (2, 7)


@pytest.mark.long
def test_leaves_that_are_no_arrays_are_those_of_the_larger_model() -> None:
    class Block(eqx.Module):
        up: eqx.nn.Linear
        down: eqx.nn.Linear
        activation: Any

        def __init__(self, hidden: int, key: jax.Array) -> None:
            self.up, self.down = linear(4, hidden, key=key), linear(hidden, 4, key=key)
            self.activation = jax.nn.gelu

        def __call__(self, x: jax.Array) -> jax.Array:
            return x + self.down(self.activation(self.up(x)))

    def blocks(depth: int, hidden: int) -> Any:
        keys = jax.random.split(KEY, depth)
        return [Block(hidden, key) for key in keys]

    def chained(model: Any, x: jax.Array) -> jax.Array:
        return jax.vmap(lambda x: functools.reduce(lambda x, block: block(x), model, x))(x)

    small, large = blocks(1, 6), blocks(2, 9)
    growth = dw.plan(dw.trace(chained, small, X), target=large, target_apply=chained)
    with pytest.raises(ValueError, match="1/activation: no array, so only .* fresh="):
        dw.grow(small, growth, key=KEY)
    wide = dw.grow(small, growth, fresh=large)
    assert wide[1].activation is jax.nn.gelu
    np.testing.assert_allclose(chained(wide, X), chained(small, X), rtol=1e-12)


# Optimizers ---------------------------------------------------------------------------------------


def by_axes(params: Any) -> Any:
    return jax.tree.map(lambda array: "kernel" if array.ndim > 1 else "bias", params)


def is_kernel(params: Any) -> Any:
    return jax.tree.map(lambda array: array.ndim > 1, params)


OPTIMIZERS = {
    "chain": optax.chain(optax.clip(1.0), optax.adamw(1e-2)),
    "steps": optax.MultiSteps(optax.adamw(1e-2), 2),
    "masked": optax.masked(optax.adamw(1e-2), is_kernel),
    "partition": optax.multi_transform(
        {"kernel": optax.adamw(1e-2), "bias": optax.sgd(1e-2, momentum=0.9)}, by_axes
    ),
    "hyperparameters": optax.inject_hyperparams(optax.adamw)(1e-2),
    "factored": optax.adafactor(1e-2, min_dim_size_to_factor=4),
    "averages": optax.contrib.schedule_free_adamw(1e-2),
    "finite": optax.apply_if_finite(optax.lion(1e-2), 3),
    "plain": optax.sgd(1e-2),
}


@pytest.mark.parametrize(
    ("name", "way"),
    [
        *(("chain", "target"), ("masked", "names"), ("partition", "fresh"), ("factored", "target")),
        *(
            long(name, way)
            for name, way in (
                *(("steps", "names"), ("hyperparameters", "names"), ("averages", "fresh")),
                *(("finite", "names"), ("plain", "target")),
            )
        ),
    ],
)
def test_the_optimizers_next_update_works(name: str, way: str) -> None:
    tx, small, large = OPTIMIZERS[name], mlp(8), mlp(12, seed=1)
    params = eqx.filter(small, eqx.is_inexact_array)
    _, state = jax.jit(tx.update)(params, tx.init(params), params)
    widths = dw.trace(apply, small, X)
    growth = dw.plan(widths, target=large) if way == "target" else dw.plan(widths, BOTH)
    wide = grow(small, growth, **({"fresh": large} if way == "fresh" else {"key": KEY}))
    params = eqx.filter(wide, eqx.is_inexact_array)
    without = [] if name == "averages" else [{}]
    for given in (*without, {"variables": wide}, {"variables": params}):
        grown = dw.grow_opt_state(state, growth, tx, **given)
        expected = jax.eval_shape(tx.init, params)
        assert jax.tree.structure(grown) == jax.tree.structure(expected)
        assert jax.tree.map(jnp.shape, grown) == jax.tree.map(jnp.shape, expected)
        updates, _ = jax.eval_shape(tx.update, params, grown, params)
        jax.eval_shape(eqx.apply_updates, params, updates)


def test_a_state_whose_modules_nothing_tells_asks_for_the_grown_variables() -> None:
    small, large, tx = fields(8), fields(12), optax.adam(1e-2)
    growth = dw.plan(dw.trace(apply, small, X), {("up", 1): 12})
    state = tx.init(small)
    with pytest.raises(ValueError, match="(?s)Fields stores hidden=8.*pass the grown variables"):
        dw.grow_opt_state(state, growth, tx)
    wide = dw.grow(small, growth, fresh=large)
    grown = dw.grow_opt_state(state, growth, tx, variables=wide)
    assert jax.tree.structure(grown) == jax.tree.structure(tx.init(wide))
    with pytest.raises(ValueError, match=r"up: has shape \(4, 8\) in variables=, expected"):
        dw.grow_opt_state(state, growth, tx, variables=small)


def test_an_optimizer_that_holds_the_old_tree_is_named() -> None:
    def pair(hidden: int) -> Any:
        return [linear(4, hidden, key=KEY), linear(hidden, 3, key=KEY)]

    def chained(model: Any, x: jax.Array) -> jax.Array:
        return jax.vmap(lambda x: model[1](jnp.tanh(model[0](x))))(x)

    transforms = {"kernel": optax.adam(1e-2), "bias": optax.sgd(1e-2)}
    tx = optax.multi_transform(transforms, by_axes(pair(8)))
    growth = dw.plan(dw.trace(chained, pair(8), X), {"0": 12})
    with pytest.raises(ValueError) as error:
        dw.grow_opt_state(tx.init(pair(8)), growth, tx)
    assert "such as labels or a mask, create a new tx" in error.value.__notes__[-1]
    grown = dw.grow_opt_state(
        tx.init(pair(8)), growth, optax.multi_transform(transforms, by_axes(pair(12)))
    )
    assert grown.inner_states["kernel"].inner_state[0].mu[0].out_features == 12


class Scores(eqx.Module):
    """Holds a number that only the last two axes of an array have, as their product."""

    kernel: jax.Array
    of_heads: jax.Array
    of_dims: jax.Array
    inner: int = eqx.field(static=True)
    heads: int = eqx.field(static=True)

    def __init__(self, inner, heads):
        self.inner, self.heads = inner, heads
        shapes = (5, heads, inner // heads), (heads,), (inner // heads,)
        self.kernel, self.of_heads, self.of_dims = map(jnp.ones, shapes)

    def __call__(self, x):
        y = jnp.tanh(jnp.einsum("bi,ihd->bhd", x, self.kernel))
        return jnp.einsum("bhd,h,d->b", y, self.of_heads, self.of_dims)


def test_a_number_that_is_the_product_of_the_last_axes_follows_them():
    module, x = Scores(6, 2), jnp.ones((4, 5))
    growth = dw.plan(dw.trace(lambda module, x: module(x), module, x), {("kernel", 1): 4})
    wide = dw.grow(module, growth, key=jax.random.key(0))
    assert (wide.inner, wide.heads) == (12, 4)
