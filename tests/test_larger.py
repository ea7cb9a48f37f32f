"""Plans with the larger model's own program: products, constants and layers, all in one call."""

import functools

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from networks import data, f64, fill
from tiers import long

import dogwood_jax as dw


class Block(nn.Module):
    heads: int
    hidden: int
    epsilon: float

    @nn.compact
    def __call__(self, x):
        norm = lambda: nn.LayerNorm(epsilon=self.epsilon, param_dtype=jnp.float64)  # noqa: E731
        dense = lambda units: nn.Dense(units, param_dtype=jnp.float64)  # noqa: E731
        y = norm()(x)
        attend = nn.MultiHeadDotProductAttention(
            self.heads, qkv_features=self.heads * 3, param_dtype=jnp.float64
        )
        x = x + attend(y, y)
        return x + dense(x.shape[-1])(nn.gelu(dense(self.hidden)(norm()(x))))


class Transformer(nn.Module):
    width: int = 6
    heads: int = 2
    hidden: int = 8
    blocks: int = 2
    epsilon: float = 1e-3

    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(11, self.width, param_dtype=jnp.float64)(tokens)
        for i in range(self.blocks):
            x = Block(self.heads, self.hidden, self.epsilon, name=f"block_{i}")(x)
        x = nn.LayerNorm(epsilon=self.epsilon, param_dtype=jnp.float64)(x)
        return nn.Dense(11, param_dtype=jnp.float64)(x)


TOKENS = jnp.arange(10).reshape(2, 5)
SMALL = Transformer()


@pytest.fixture(scope="module")
def small():
    variables = fill(jax.eval_shape(SMALL.init, jax.random.key(0), TOKENS), 1)
    return variables, dw.trace(SMALL.apply, variables, TOKENS)


@pytest.mark.long
def test_one_call_plans_wider_and_deeper(small):
    variables, widths = small
    larger = Transformer(width=10, heads=3, hidden=13, blocks=3, epsilon=1e-3 * 6 / 10)
    target = jax.eval_shape(larger.init, jax.random.key(2), TOKENS)
    fresh = fill(target, 2)
    growth = dw.plan(widths, target=target, target_apply=larger.apply)
    (note,) = growth.notes  # all else that there was to mind has been seen to be so
    assert "0.0006 instead of 0.001" in note
    assert dw.from_json(dw.to_json(growth)) == growth
    for grown in (
        dw.grow(variables, growth, key=jax.random.key(3)),
        dw.grow(variables, growth, fresh=fresh),
    ):
        assert jax.tree.map(jnp.shape, grown) == jax.tree.map(jnp.shape, fresh)
        both = jax.jit(SMALL.apply), variables, jax.jit(larger.apply), grown
        assert dw.compare(*both, TOKENS).relative < 1e-12


@pytest.mark.parametrize(
    "sizes, numbers, larger_numbers",
    [
        ((16, 64), (0.25, 0.25), (0.125, 0.125)),
        ((16, 64), (0.25, 0.25), (0.25, 0.125)),
        ((16, 64), (0.25, 0.25), (0.125, 0.25)),
        ((4, 16), (1.0, 0.25), (1.0, 0.25)),
    ],
    ids=["both follow", "the second follows", "the first follows", "a fixed one that looks so"],
)
def test_arrays_make_up_for_numbers_beside_new_layers(sizes, numbers, larger_numbers):
    def network(first, last):
        def apply(params, x):
            h = x @ params["in"] * first
            for layer in params["layers"]:
                h = h + jnp.tanh(h @ layer["up"]) @ layer["down"]
            scale = jax.lax.rsqrt((h * h).mean(-1, keepdims=True) + 1e-6)
            return h * scale * params["scale"][None] @ params["out"] * last

        return apply

    def shapes(size, layers):
        layer = {"up": f64(size, 3), "down": f64(3, size)}
        stem = {"in": f64(5, size), "scale": f64(size), "out": f64(size, 2)}
        return stem | {"layers": [layer] * layers}

    x, old, target = data(3, 5), shapes(sizes[0], 1), shapes(sizes[1], 2)
    apply, larger = network(*numbers), network(*larger_numbers)
    widths, variables = dw.trace(apply, old, x), fill(old, 1)
    growth = dw.plan(widths, target=target, target_apply=larger)
    wide = dw.grow(variables, growth, key=jax.random.key(0))
    assert dw.compare(apply, variables, larger, wide, x).relative < 1e-12


@pytest.mark.long
def test_the_optimizer_follows_into_a_deeper_network(small):
    variables, widths = small
    larger = Transformer(heads=3, hidden=13, blocks=3)
    target = jax.eval_shape(larger.init, jax.random.key(2), TOKENS)
    growth = dw.plan(widths, target=target, target_apply=larger.apply)
    wide = jax.tree.map(jnp.float32, dw.grow(variables, growth, key=jax.random.key(3)))
    params = jax.tree.map(jnp.float32, variables["params"])
    tx = optax.contrib.schedule_free(optax.adam(1e-3), 1e-3)
    _, state = jax.jit(tx.update)(params, tx.init(params), params)
    grown = dw.grow_opt_state(state, growth, tx, variables=wide, second_moment="mean")
    wanted = jax.eval_shape(tx.init, wide["params"])
    assert jax.tree.map(lambda a: (a.shape, a.dtype), grown) == jax.tree.map(
        lambda a: (a.shape, a.dtype), wanted
    )
    name = "MultiHeadDotProductAttention_0"
    adam, old = grown.base_optimizer_state[0], state.base_optimizer_state[0]
    np.testing.assert_array_equal(
        adam.mu["block_1"][name]["out"]["kernel"][:2], old.mu["block_1"][name]["out"]["kernel"]
    )
    assert not any(m.any() for m in jax.tree.leaves(adam.mu["block_2"]))
    # New second moments are the largest of those in blocks like it, copies of parameters its own.
    largest = max(old.nu[block]["Dense_0"]["kernel"].max() for block in ("block_0", "block_1"))
    np.testing.assert_allclose(adam.nu["block_2"]["Dense_0"]["kernel"], largest, rtol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, grown.z["block_2"], wide["params"]["block_2"])
    assert adam.count == 1
    # The copies compute the same as before.
    copies = {"params": grown.z}
    both = jax.jit(SMALL.apply), {"params": state.z}, jax.jit(larger.apply), copies
    assert dw.compare(*both, TOKENS).relative < 1e-5
    with pytest.raises(
        ValueError,
        match=r"pass the grown variables(.|\n)*and \d+ more: .*params/block_2/",
    ):
        dw.grow_opt_state(state, growth, tx, variables=variables)


@pytest.mark.long
def test_a_stack_grows_wider_and_deeper(axis=1):
    def stacked(params, x):
        def layer(x, weights):
            return x + jnp.tanh(x @ weights["up"]) @ weights["down"], None

        layers = {name: jnp.moveaxis(array, axis, 0) for name, array in params["layers"].items()}
        return jax.lax.scan(layer, x, layers)[0] @ params["out"]

    def params(layers, hidden, seed):
        shapes = {"up": (4, hidden), "down": (hidden, 4)}
        stacks = {k: f64(*s[:axis], layers, *s[axis:]) for k, s in shapes.items()}
        return fill({"layers": stacks, "out": f64(4, 2)}, seed)

    old, fresh, x = params(2, 5, 0), params(3, 7, 1), jnp.linspace(-1, 1, 12).reshape(3, 4)
    growth = dw.plan(dw.trace(stacked, old, x), target=fresh, target_apply=stacked)
    new = dw.grow(old, growth, fresh=fresh)
    assert dw.compare(stacked, old, stacked, new, x).relative < 1e-12
    tx = optax.adam(1e-3)
    _, state = tx.update(old, tx.init(old))
    (adam, *_), nu = (
        dw.grow_opt_state(state, growth, tx, second_moment="mean"),
        state[0].nu["layers"]["up"],
    )
    assert jax.tree.map(jnp.shape, adam.nu) == jax.tree.map(jnp.shape, new)
    grown, nu = (jnp.moveaxis(a, axis, 0) for a in (adam.nu["layers"]["up"], nu))
    np.testing.assert_array_equal(grown[:2, :, :5], nu)
    np.testing.assert_allclose(grown[2, :, :5], nu.mean(0), rtol=1e-12)


@pytest.mark.parametrize(
    ("layers", "hidden"),
    [
        (0, 0),
        long(0, 5),
        long(2, 0),
    ],
)
def test_layers_and_units_grow_from_none(layers, hidden):
    def apply(params, x):
        layer = lambda x, p: (x + jnp.tanh(x @ p["up"]) @ p["down"], None)  # noqa: E731
        return jax.lax.scan(layer, x, params)[0]

    def stacks(layers, hidden):
        shapes = {"up": (layers, 4, hidden), "down": (layers, hidden, 4)}
        return {name: jnp.ones(shape) for name, shape in shapes.items()}

    old, x = stacks(layers, hidden), jnp.linspace(-1, 1, 12).reshape(3, 4)
    widths = dw.trace(apply, old, x)
    growth = dw.plan(widths, target=stacks(3, 6), target_apply=apply)
    new = dw.grow(old, growth, key=jax.random.key(0))
    assert dw.compare(apply, old, apply, new, x).relative == 0
    tx = optax.adam(1e-3)
    state = dw.grow_opt_state(tx.init(old), growth, tx, second_moment="mean")
    assert jax.tree.map(jnp.shape, state[0].nu) == jax.tree.map(jnp.shape, new)
    assert all((array == 0).all() for array in jax.tree.leaves(state))


def of_layers(layers, hidden):
    shapes = [{"up": (4, hidden), "down": (hidden, 4)}] * layers
    is_shape = lambda node: isinstance(node, tuple)  # noqa: E731
    draw = lambda shape: jnp.linspace(-1, 1, np.prod(shape)).reshape(shape)  # noqa: E731
    return jax.tree.map(draw, {"layers": shapes, "out": (4, 2)}, is_leaf=is_shape)


def through_layers(layers):
    def apply(params, x):
        for layer in params["layers"][:layers]:
            x = x + jnp.tanh(x @ layer["up"]) @ layer["down"]
        return x @ params["out"]

    return apply


def test_a_function_that_uses_all_layers_is_the_larger_models_too():
    old, x, apply = of_layers(2, 5), jnp.linspace(-1, 1, 12).reshape(3, 4), through_layers(None)
    widths = dw.trace(apply, old, x)
    for target in (of_layers(3, 5), of_layers(4, 7)):
        growth = dw.plan(widths, target=target)
        assert any("pass it as target_apply=" in note for note in growth.notes)
        new = dw.grow(old, growth, key=jax.random.key(0))
        assert dw.compare(apply, old, apply, new, x).relative < 1e-12
        assert jax.tree.map(jnp.shape, new) == jax.tree.map(jnp.shape, target)
    # Not one that passes over the new layers, or that they would change.
    for apply in (
        through_layers(2),
        lambda params, x: through_layers(None)(params, x) / len(params["layers"]),
    ):
        with pytest.raises(ValueError, match="pass it"):
            dw.plan(dw.trace(apply, old, x), target=of_layers(3, 5))


def test_a_product_beside_new_layers_is_not_split_by_the_networks_own_function():
    def apply(params, x):
        for layer in params["layers"]:
            q, k = ((x @ layer[name]).reshape(len(x), 2, -1) for name in "qk")
            weights = jax.nn.softmax(jnp.einsum("ihd,jhd->hij", q, k))
            x = x + jnp.einsum("hij,jhd->ihd", weights, k).reshape(len(x), -1) @ layer["out"]
        return x

    def of(layers, size):
        layer = {"q": jnp.ones((4, size)), "k": jnp.ones((4, size)), "out": jnp.ones((size, 4))}
        return {"layers": [layer] * layers}

    widths = dw.trace(apply, of(2, 8), jnp.ones((5, 4)))
    assert dw.plan(widths, target=of(3, 8)).inserted
    with pytest.raises(ValueError, match="pass its function of variables and inputs"):
        dw.plan(widths, target=of(3, 16))


@pytest.mark.parametrize("is_taken", (False, True))
@pytest.mark.long
def test_a_function_that_runs_over_stacks_is_the_larger_models_too(is_taken):
    def stacks(layers, hidden):
        layer = of_layers(layers, hidden)
        return {"out": layer["out"]} | jax.tree.map(lambda *a: jnp.stack(a), *layer["layers"])

    def apply(params, x):
        layers = [{name: params[name][i] for name in ("up", "down")} for i in range(2)]
        if is_taken:
            return through_layers(None)({"layers": layers, "out": params["out"]}, x)
        body = lambda x, p: (x + jnp.tanh(x @ p["up"]) @ p["down"], None)  # noqa: E731
        scanned = {name: params[name] for name in ("up", "down")}
        return jax.lax.scan(body, x, scanned)[0] @ params["out"]

    old, x, target = stacks(2, 5), jnp.linspace(-1, 1, 12).reshape(3, 4), stacks(4, 7)
    widths = dw.trace(apply, old, x)
    if is_taken:  # the new entries are not
        with pytest.raises(ValueError, match="pass its function of variables and inputs"):
            dw.plan(widths, target=target)
    else:
        new = dw.grow(old, dw.plan(widths, target=target), key=jax.random.key(0))
        assert dw.compare(apply, old, apply, new, x).relative < 1e-12


class Layered(eqx.Module):
    layers: list[eqx.nn.MultiheadAttention]

    def __init__(self, layers, heads):
        keys = jax.random.split(jax.random.key(heads), layers)
        attention = functools.partial(eqx.nn.MultiheadAttention, query_size=8, dropout_p=0.0)
        self.layers = [attention(heads, key=key, qk_size=4, vo_size=4) for key in keys]

    def __call__(self, x):
        for layer in self.layers:
            x = x + layer(x, x, x)
        return x


@pytest.mark.long
def test_modules_that_say_their_numbers_need_no_other_function():
    def apply(model, x):
        return model(x)

    old, target, x = Layered(2, 2), Layered(3, 4), jnp.linspace(-1, 1, 40).reshape(5, 8)
    growth = dw.plan(dw.trace(apply, old, x), target=target)
    assert not growth.notes
    new = dw.grow(old, growth, fresh=target)
    assert dw.compare(apply, old, apply, new, x).relative < 1e-12


def test_a_number_beside_arrays_is_no_module():
    def apply(variables, x):  # its number of heads is written in it: the larger model's may differ
        q, k = ((x @ variables[name]).reshape(len(x), 2, -1) for name in "qk")
        weights = jax.nn.softmax(jnp.einsum("ihd,jhd->hij", q, k) / 2.0)
        return jnp.einsum("hij,jhd->ihd", weights, k).reshape(len(x), -1) @ variables["out"]

    def of(size):
        return {"q": jnp.ones((4, size)), "k": jnp.ones((4, size)), "out": jnp.ones((size, 3))}

    widths = dw.trace(apply, of(8) | {"step": 3}, jnp.ones((5, 4)))
    with pytest.raises(ValueError, match="the shapes do not say whether"):
        dw.plan(widths, target=of(16) | {"step": 3})


@pytest.mark.long
def test_arrays_make_up_for_another_epsilon(small):
    variables, widths = small
    larger = Transformer(width=10, epsilon=5e-3)
    target = jax.eval_shape(larger.init, jax.random.key(2), TOKENS)
    growth = dw.plan(widths, target=target, target_apply=larger.apply)
    assert any("0.005" in note for note in growth.notes)
    wide = dw.grow(variables, growth, key=jax.random.key(3))
    assert dw.compare(SMALL.apply, variables, larger.apply, wide, TOKENS).relative < 1e-12


def under_rms_norm(epsilon):
    def apply(params, x):
        h = x @ params["in"]
        size = jax.lax.rsqrt(jnp.mean(h**2, -1, keepdims=True) + epsilon)
        return (h * size * params["norm"][None]) @ params["out"]

    return apply


@pytest.mark.long
def test_the_epsilon_of_the_larger_model_tells_how_it_is_filled():
    def params(n):
        return fill({"in": f64(3, n), "norm": f64(n), "out": f64(n, 2)}, n)

    old, x, epsilon = params(4), jnp.linspace(-0.1, 0.1, 12).reshape(4, 3), 1e-3
    apply = under_rms_norm(epsilon)
    widths = dw.trace(apply, old, x)
    for new, its, strategy in (
        (8, epsilon, "zero_incoming"),
        (8, epsilon / 2, "zero_incoming"),
        (6, epsilon, "zero_incoming"),
        (6, epsilon * 4 / 6, "zero_incoming"),
        (8, 0.0003, "zero_incoming"),
    ):
        larger = under_rms_norm(its)
        growth = dw.plan(widths, target=params(new), target_apply=larger)
        assert growth.changes[0].strategy.name == strategy
        assert growth.notes == () or its != epsilon
        wide = dw.grow(old, growth, key=jax.random.key(0))
        assert dw.compare(apply, old, larger, wide, x).relative < 1e-12
    (note,) = dw.plan(widths, {"in": 8}, strategy=dw.strategies.tile()).notes
    assert note.startswith("new units of in are copies")


def test_layers_of_the_target_alone_ask_for_its_function(small):
    target = jax.eval_shape(Transformer(blocks=3).init, jax.random.key(2), TOKENS)
    around = lambda variables, tokens: SMALL.apply(variables, tokens)  # noqa: E731
    with pytest.raises(
        ValueError, match="pass its function .* as target_apply=(.|\n)*only in the target"
    ):
        dw.plan(dw.trace(around, small[0], TOKENS), target=target)


def test_an_output_that_automatic_names_count_as_hidden_is_told():
    class MLP(nn.Module):
        layers: int

        @nn.compact
        def __call__(self, x):
            for _ in range(self.layers):
                x = nn.gelu(nn.Dense(8)(x))
            return nn.Dense(3)(x)

    x = jnp.ones((2, 4))
    widths = dw.trace(MLP(2).apply, jax.eval_shape(MLP(2).init, jax.random.key(0), x), x)
    target = jax.eval_shape(MLP(3).init, jax.random.key(0), x)
    with pytest.raises(ValueError, match="- give the last layer a name of its own in both models"):
        dw.plan(widths, target=target, target_apply=MLP(3).apply)


def test_a_placement_that_fits_no_shape_does_not_hide_why_a_growth_is_refused():
    def apply(activation, variables, x):
        for layer in variables["layers"]:
            x = activation(x @ layer)
        return x @ variables["out"]

    def layers(count, units):
        shapes = [(4, units), *((units, units) for _ in range(count - 1))]
        return {"layers": [jnp.ones(shape) for shape in shapes], "out": jnp.ones((units, 2))}

    relu, gelu = (functools.partial(apply, f) for f in (jax.nn.relu, jax.nn.gelu))
    widths = dw.trace(relu, layers(2, 4), jnp.ones((3, 4)))
    with pytest.raises(ValueError, match="grow them first, or insert the layers first"):
        dw.plan(widths, target=layers(3, 8), target_apply=gelu)


def normed(stream, hidden=1e-3):
    """A network with a norm over its stream and another one in every layer."""

    def norm(x, epsilon):
        return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + epsilon)

    def apply(params, x):
        x = x @ params["in"]
        for layer in params["layers"]:
            x = x + norm(norm(x, stream) @ layer["up"], hidden) @ layer["down"]
        return norm(x, stream) @ params["out"]

    return apply


@pytest.mark.parametrize("layers", [1, 2])
def test_arrays_make_up_for_epsilons(layers):
    def params(width, layers):
        layer = {"up": jnp.ones((width, 5)), "down": jnp.ones((5, width))}
        return {"in": jnp.ones((3, width)), "layers": [layer] * layers, "out": jnp.ones((width, 2))}

    widths = dw.trace(normed(1e-3), params(4, 1), jnp.ones((2, 3)))
    target = params(6, layers)
    assert dw.plan(widths, target=target, target_apply=normed(1e-3)).sizes == {"in": 6}
    variables, x = fill(params(4, 1), 1), data(2, 3)
    for other in (normed(1e-3 * 4 / 6), normed(1e-3 * 4 / 6, 1e-3 * 4 / 6)):
        growth = dw.plan(widths, target=target, target_apply=other)
        wide = dw.grow(variables, growth, key=jax.random.key(0))
        assert dw.compare(normed(1e-3), variables, other, wide, x).relative < 1e-12


def test_widths_from_elsewhere_cannot_be_compared(small):
    widths = dw.from_json(dw.to_json(small[1]))
    target = jax.eval_shape(SMALL.init, jax.random.key(2), TOKENS)
    with pytest.raises(ValueError, match="trace the network again"):
        dw.plan(widths, target=target, target_apply=SMALL.apply)


# The larger model's program beside the network's --------------------------------------------------


def mlp(scale, shift=0.1, cut=3):
    def apply(params, x):
        h = jnp.tanh(x @ params["up"])
        h = jnp.concatenate([h[:, cut:], h[:, :cut]], axis=1) + shift
        return scale * h @ params["down"]

    return apply


def shapes(features, hidden):
    shape = jax.ShapeDtypeStruct
    return {
        "up": shape((features, hidden), jnp.float64),
        "down": shape((hidden, 2), jnp.float64),
    }


@pytest.mark.parametrize(
    "larger, is_same",
    [(mlp(2.0, cut=5), True), (mlp(2.0, shift=0.2, cut=5), False)],
    ids=["the same", "another term"],
)
def test_a_larger_model_that_computes_something_else_is_refused(larger, is_same):
    x = jnp.arange(20.0).reshape(4, 5)
    widths = dw.trace(mlp(2.0), shapes(5, 8), x)
    options = {"target": shapes(5, 11), "target_apply": larger, "sizes": {"up[1.0]": 5}}
    if is_same:
        assert dw.plan(widths, **options).sizes == {"up[1.0]": 5, "up[1.1]": 6}
    else:
        with pytest.raises(ValueError, match="larger model computes something else: its output"):
            dw.plan(widths, **options)


def difference(sign):
    def apply(params, x):
        y = jnp.sin(x)
        z = jnp.sin(y)  # of the same shape
        return (y - z if sign > 0 else z - y) @ params["up"] @ params["down"]

    return apply


def test_a_larger_model_that_takes_other_arrays_is_refused():
    widths = dw.trace(difference(1), shapes(5, 8), jnp.ones((4, 5)))
    target = shapes(5, 11)
    assert dw.plan(widths, target=target, target_apply=difference(1)).sizes == {"up": 11}
    with pytest.raises(ValueError, match=r"computes something else: its output\[0, 0\] becomes"):
        dw.plan(widths, target=target, target_apply=difference(-1))


def pairs(scores="td,sd->ts", *, across=False, first="q", turned=False):
    """Compares positions with positions, so that axes of one size can change places."""

    def apply(params, x):
        change = {"q": jnp.sin, "k": jnp.cos}
        made = {name: change[name](x @ params[name]) for name in sorted("qk", key=first.find)[::-1]}
        y = jnp.einsum(scores, made["q"], made["k"])
        line = params["line"][:, None] if across else params["line"][None]
        y = y * jnp.broadcast_to(line, (5, 5))
        y = jnp.tanh(y.T + params["line"][None]).T if turned else jnp.tanh(y + params["line"][None])
        return jnp.tanh(y @ x @ params["up"]) @ params["down"]

    return apply


@pytest.mark.parametrize("hidden", [1, 2])  # programs differ where a size is 1
@pytest.mark.parametrize(
    ("options", "is_same"),
    [
        ({}, True),
        ({"first": "k"}, True),
        ({"scores": "td,sd->st"}, False),
        ({"scores": "td,sd->st", "first": "k"}, False),
        ({"across": True}, False),
        ({"turned": True}, False),
    ],
)
def test_axes_of_one_size_are_told_apart(hidden, options, is_same):
    shape = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float64)
    small = {"q": shape((3, 4)), "k": shape((3, 4)), "line": shape((5,))}
    large = small | {"up": shape((3, hidden + 1)), "down": shape((hidden + 1, 2))}
    small |= {"up": shape((3, hidden)), "down": shape((hidden, 2))}
    widths = dw.trace(pairs(), small, jnp.ones((5, 3)))
    if is_same:
        assert dw.plan(widths, target=large, target_apply=pairs(**options)).sizes
    else:
        with pytest.raises(ValueError, match="the larger model computes something else"):
            dw.plan(widths, target=large, target_apply=pairs(**options))


def test_numbers_beside_new_layers_are_compared_too():
    def apply(params, x):
        for layer in params["layers"]:
            x = x + jnp.tanh(x @ layer["up"]) @ layer["down"] * 0.1 * layer["up"].shape[1]
        return x @ params["out"]

    def network(layers, hidden):
        layer = {"up": jnp.ones((3, hidden)), "down": jnp.ones((hidden, 3))}
        return {"layers": layers * [layer], "out": jnp.ones((3, 2))}

    widths = dw.trace(apply, network(1, 4), jnp.ones((2, 3)))
    variables, x = fill(network(1, 4), 1), data(2, 3)
    for layers, hidden in ((2, 4), (2, 6), (1, 6)):
        growth = dw.plan(widths, target=network(layers, hidden), target_apply=apply)
        wide = dw.grow(variables, growth, key=jax.random.key(0))
        assert dw.compare(apply, variables, apply, wide, x).relative < 1e-12


@pytest.mark.parametrize(
    "divisor",
    [lambda n: n**0.5, lambda n: jax.jit(jnp.sqrt)(float(n)), lambda n: 2.0],
    ids=["written", "computed in the program", "a number"],
)
def test_beside_new_layers_arrays_make_up_for_a_factor_of_the_own_function(divisor):
    def apply(params, x):
        for layer in params:
            q, k, v = (x @ layer[name] for name in "qkv")
            x = x + jax.nn.softmax(q @ k.T / divisor(q.shape[1])) @ v @ layer["o"]
        return x

    def network(layers, size):
        draw = lambda *shape: jnp.asarray(np.random.default_rng(size).normal(size=shape))  # noqa: E731
        shapes = {"q": (3, size), "k": (3, size), "v": (3, 5), "o": (5, 3)}
        return layers * [{name: draw(*shape) for name, shape in shapes.items()}]

    x = jnp.linspace(-1, 1, 6).reshape(2, 3)
    old, target = network(1, 4), network(2, 6)
    options = {"target": target, "target_apply": apply}
    wide = dw.grow(old, dw.plan(dw.trace(apply, old, x), **options), fresh=target)
    assert dw.compare(apply, old, apply, wide, x).relative < 1e-12


def test_a_larger_model_may_take_larger_inputs():
    widths = dw.trace(mlp(2.0, cut=0), shapes(5, 8), jax.ShapeDtypeStruct((4, 5), jnp.float64))
    options = {"target": shapes(7, 9), "target_apply": mlp(2.0, cut=0)}
    assert dw.plan(widths, **options, interface=True).sizes == {"up[0]": 7, "up": 9}
    with pytest.raises(ValueError, match=r"function of target=\?[^$]*KeyError: 'sideways'"):
        dw.plan(widths, target=shapes(7, 9), target_apply=lambda params, x: params["sideways"])
    lacking = {"down": shapes(7, 9)["down"]}
    with pytest.raises(ValueError, match=r"KeyError: 'up' \(not in the target: up\)"):
        dw.plan(widths, target=lacking, target_apply=lambda params, x: params["up"])


def attention(scale):
    def apply(params, x):
        q, k, v = (x @ params[name] for name in "qkv")
        return jax.nn.softmax(q @ k.T * scale(q.shape[1])) @ v

    return apply


@pytest.mark.parametrize("scale", [lambda n: n**-0.5, lambda n: 0.5], ids=["root", "number"])
def test_the_larger_model_tells_whether_a_number_follows_from_a_size(scale):
    """0.5 is one over the root of the four dimensions, or no more than a number."""
    draw = lambda n: jnp.asarray(np.random.default_rng(n).normal(size=(5, n)))  # noqa: E731
    params, x = {"q": draw(4), "k": draw(4) + 1, "v": draw(3)}, draw(7).T
    apply = attention(scale)
    widths = dw.trace(apply, params, x)
    target = params | {"q": draw(6), "k": draw(6)}
    growth = dw.plan(widths, target=target, target_apply=apply)
    assert ("k" in growth.factors) == (scale(6) != 0.5)
    grown = dw.grow(params, growth, key=jax.random.key(0))
    assert dw.compare(apply, params, apply, grown, x).relative < 1e-12
    other = attention(lambda n: 0.1 * n)
    growth = dw.plan(widths, target=target, target_apply=other)
    assert any("has 0.6 instead of 0.5" in note for note in growth.notes)
    grown = dw.grow(params, growth, key=jax.random.key(0))
    assert dw.compare(apply, params, other, grown, x).relative < 1e-12


@pytest.mark.long
def test_the_larger_model_tells_that_a_number_has_nothing_to_do_with_a_size():
    """1 / sqrt(8) is also sqrt(2 / 16), and the other attention changes numbers, too."""
    other = attention(lambda n: n**-0.5)

    def pooled(scale):
        def apply(params, x):
            scores = x.T @ params["keys"] @ (scale * (params["probe"] @ params["query"]))
            return scores @ x.T @ params["keys"], other(params, x)

        return apply

    def network(dims, probe):
        draw = lambda *shape: jnp.asarray(np.random.default_rng(probe).normal(size=shape))  # noqa: E731
        shapes = {"q": (5, dims), "k": (5, dims), "v": (5, 3)}
        shapes |= {"keys": (5, 8), "probe": (probe,), "query": (probe, 8)}
        return {name: draw(*shape) for name, shape in shapes.items()}

    params, target = network(4, 16), network(6, 19)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(5, 5)))
    apply = pooled(8**-0.5)
    widths = dw.trace(apply, params, x)
    growth = dw.plan(widths, target=target, target_apply=apply)
    grown = dw.grow(params, growth, fresh=target)
    assert dw.compare(apply, params, apply, grown, x).relative < 1e-12
    larger = pooled((2 / 19) ** 0.5)
    grown = dw.grow(params, dw.plan(widths, target=target, target_apply=larger), fresh=target)
    assert dw.compare(apply, params, larger, grown, x).relative < 1e-12


@pytest.mark.parametrize("follows", [False, True])
def test_what_nothing_uses_may_differ(follows):
    """Modules compute tables to initialize arrays from, whether or not they initialize them."""

    def network(hidden):
        def apply(params, x):
            table = jnp.sqrt(jnp.arange(hidden))
            jax.lax.cond(x[0, 0] > 0, lambda: table, lambda: 1 + table)
            steps = hidden if follows else 3
            shrink = lambda state: (0.9 * state[0], state[1] + 1)  # noqa: E731
            x, _ = jax.lax.while_loop(lambda state: state[1] < steps, shrink, (x, 0))
            return jnp.tanh(x @ params["up"]) @ params["down"]

        return apply

    widths = dw.trace(network(8), shapes(5, 8), jax.ShapeDtypeStruct((4, 5), jnp.float64))
    options = {"target": shapes(5, 11), "target_apply": network(11)}
    if follows:
        with pytest.raises(ValueError, match="computes something else: its output"):
            dw.plan(widths, **options)
    else:
        assert dw.plan(widths, **options).sizes == {"up": 11}


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_a_factor_of_a_product_must_stay(dtype):
    def apply(rank):
        def adapted(params, x):
            a, b = (params[name].astype(dtype) for name in "ab")
            return x @ params["w"] + 4 / rank * (x.astype(dtype) @ a @ b).astype(float)

        return adapted

    def network(rank):
        sizes = {"w": (3, 6), "a": (3, rank), "b": (rank, 6)}
        return {name: jax.ShapeDtypeStruct(shape, float) for name, shape in sizes.items()}

    widths = dw.trace(apply(2), network(2), jnp.ones((1, 3)))
    (note,) = dw.plan(widths, target=network(4)).notes
    assert note.startswith("a: the constant 2 scales what is summed over it: the larger model must")
    assert dw.plan(widths, target=network(4), target_apply=apply(2)).notes == ()


def test_a_factor_that_is_cast_to_an_integer_has_no_fraction():
    def apply(rank):
        def scaled(params, x):
            return jnp.sqrt(jnp.float32(rank)).astype(int) * (x @ params["a"] @ params["b"])

        return scaled

    def network(rank):
        return {"a": jnp.ones((3, rank)), "b": jnp.ones((rank, 6))}

    old, x = network(3), jnp.ones((1, 3))
    with pytest.raises(ValueError, match="has 4 instead of 3"):
        dw.plan(dw.trace(apply(3), old, x), target=network(4), target_apply=apply(4))


def test_layers_are_not_inserted_while_inputs_grow():
    class Net(nn.Module):
        units: int
        layers: int

        @nn.compact
        def __call__(self, x):
            assert x.shape[-1] == self.units, "other inputs"
            for i in range(self.layers):
                x = x + nn.Dense(self.units, name=f"layer_{i}")(x)
            return x

    def shapes(net):
        x = jax.ShapeDtypeStruct((2, net.units), jnp.float32)
        return x, jax.eval_shape(net.init, jax.random.key(0), x)

    small, large = Net(3, 1), Net(4, 2)
    x, variables = shapes(small)
    widths = dw.trace(small.apply, variables, x)
    with pytest.raises(
        ValueError, match=r"AssertionError: other inputs\n- .* grow the inputs first"
    ):
        dw.plan(widths, target=shapes(large)[1], target_apply=large.apply, interface=True)


@pytest.mark.long
@pytest.mark.parametrize(("hidden", "width"), [(8, 4), (7, 6), (8, 6)])
def test_lengths_that_become_the_same_are_told_apart(hidden, width):
    """The old vocabulary may be as long as the new stream, the new one as a new hidden width."""

    def params(vocab, width, hidden, layers, seed=0):
        layer = {"up": f64(width, hidden), "down": f64(hidden, width)}
        ends = {"embed": f64(vocab, width), "out": f64(width, 2)}
        return fill(ends | {f"layer_{i}": layer for i in range(layers)}, seed)

    def apply(params, tokens):
        x = params["embed"][tokens]  # an index below zero counts from the end of the vocabulary
        for i in range(len(params) - 2):
            layer = params[f"layer_{i}"]
            x = x + jnp.tanh(x @ layer["up"]) @ layer["down"]
        return x @ params["out"]

    old, fresh = params(6, 4, 5, 2), params(8, width, hidden, 3, seed=1)
    tokens = jnp.arange(6)
    growth = dw.plan(dw.trace(apply, old, tokens), target=fresh, target_apply=apply, interface=True)
    new = dw.grow(old, growth, fresh=fresh)
    np.testing.assert_allclose(apply(new, tokens), apply(old, tokens), rtol=1e-12, atol=1e-12)


def counting(layers, factor):
    def apply(params, tokens):
        x = params["embed"][tokens] + jnp.sin(1.0 * (tokens * factor))[:, None]
        for i in range(layers):
            x = x + jnp.tanh(x @ params[f"up_{i}"]) @ params[f"down_{i}"]
        return x @ params["head"]

    return apply


def counted(width, layers):
    sizes = {"embed": (9, width), "head": (width, 2)}
    for i in range(layers):
        sizes |= {f"up_{i}": (width, 5), f"down_{i}": (5, width)}
    return {name: jax.ShapeDtypeStruct(size, jnp.float64) for name, size in sizes.items()}


def test_an_integer_that_is_no_length_must_stay_beside_new_layers():
    tokens = jnp.arange(9)
    widths = dw.trace(counting(2, 6), counted(6, 2), tokens)
    target = counted(8, 3)
    growth = dw.plan(widths, target=target, target_apply=counting(3, 6))
    assert growth.sizes == {"embed": 8}
    with pytest.raises(ValueError, match="cannot show"):
        dw.plan(widths, target=target, target_apply=counting(3, 8))


@pytest.mark.long
def test_a_root_and_a_mean_of_one_size_are_told_apart_in_another_one():
    """4 is the root of 16 as sqrt(8) is of 8, or half of the 8 that a mean is over."""

    def apply(params, x):
        size = params["in"].shape[1]
        x = x @ params["in"] * size**0.5
        for layer in params["layers"]:
            y = x * jax.lax.rsqrt(jnp.mean(x * x, 1, keepdims=True) + 1e-6) * layer["scale"][None]
            x = x + jnp.tanh(y @ layer["up"]) @ layer["down"]
        return x @ params["out"]

    def network(layers, size):
        layer = {"scale": f64(size), "up": f64(size, 3), "down": f64(3, size)}
        return {"in": f64(5, size), "layers": layers * [layer], "out": f64(size, 2)}

    widths = dw.trace(apply, network(1, 8), f64(4, 5))
    growth = dw.plan(widths, target=network(2, 16), target_apply=apply)
    old, x = fill(network(1, 8), 1), fill(f64(4, 5), 2)
    wide = dw.grow(old, growth, fresh=fill(network(2, 16), 3))
    assert dw.compare(apply, old, apply, wide, x).relative < 1e-12


@pytest.mark.long
@pytest.mark.parametrize("number", [8, 30])
def test_two_constants_in_proportion_to_a_width_stay_two(number):
    """Heads that grow from 2 to 3 would make one of 8 and the mean over 12, of 30 and over 20."""

    def network(stream, heads, layers):
        sizes = {"embed": (9, stream), "head": (stream, 2)}
        for i in range(layers):
            sizes |= {f"up_{i}": (stream, heads, 4), f"down_{i}": (heads, 4, stream)}

        def apply(params, tokens):
            x = params["embed"][tokens] / number
            for i in range(layers):
                h = x * jax.lax.rsqrt((x**2).sum(-1, keepdims=True) / stream + 1e-6)
                y = jnp.tanh(jnp.einsum("ts,shd->thd", h, params[f"up_{i}"]))
                x = x + jnp.einsum("thd,hds->ts", y, params[f"down_{i}"])
            return x @ params["head"]

        return apply, {k: jax.ShapeDtypeStruct(s, jnp.float64) for k, s in sizes.items()}

    tokens = jnp.arange(9)
    (apply, old), (larger, new) = network(12, 2, 2), network(20, 3, 3)
    growth = dw.plan(dw.trace(apply, old, tokens), target=new, target_apply=larger)
    params = fill(old, 1)
    grown = dw.grow(params, growth, key=jax.random.key(0))
    np.testing.assert_allclose(larger(grown, tokens), apply(params, tokens), rtol=1e-12, atol=1e-12)
