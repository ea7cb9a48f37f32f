"""Scores of layers, fewer layers, and one size for layers that are alike."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiers import long

import dogwood_jax as dw

COUNT, X = 4, jnp.sin(jnp.arange(30.0)).reshape(10, 3)
Y = jnp.cos(X[:, :2] * 2)


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _=None):
        h = nn.LayerNorm()(x)
        return x + nn.Dense(5, name="down")(nn.gelu(nn.Dense(7, name="up")(h))), None


class Numbered(nn.Module):
    count: int = COUNT

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(5)(x)
        for index in range(self.count):
            x, _ = Block(name=f"block_{index}")(x)
        return nn.Dense(2)(x)


class Stacked(nn.Module):
    count: int = COUNT

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(5)(x)
        blocks = nn.scan(
            Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=self.count
        )
        return nn.Dense(2)(blocks(name="blocks")(x, None)[0])


def in_list(params, x):
    """Takes as many layers as there are."""
    x = x @ params["in"]
    for layer in params["layers"]:
        x = x + jax.nn.gelu(x @ layer["up"]) @ layer["down"]
    return x @ params["out"]


@functools.cache
def of(module):
    variables = jax.jit(module.init)(jax.random.key(0), X)
    grow = lambda a: a * (1 + jnp.linspace(0, 1, a.size).reshape(a.shape))  # noqa: E731
    variables = jax.tree.map(grow, variables)
    return module.apply, variables, dw.trace(module.apply, variables, X)


@functools.cache
def loss_of(apply):
    return jax.jit(lambda variables, x, y: jnp.mean((apply(variables, x) - y) ** 2))


def drawn(shapes):
    draw = np.random.default_rng(0).normal
    is_shape = lambda node: isinstance(node, tuple)  # noqa: E731
    return jax.tree.map(lambda shape: jax.device_put(draw(size=shape)), shapes, is_leaf=is_shape)


def without(variables, name, layer):
    """The variables of a module without a layer, written down by hand."""
    params = variables["params"]
    if name == "blocks[layers]":
        rest = jnp.array([i for i in range(COUNT) if i != layer])
        blocks = jax.tree.map(lambda array: array[rest], params["blocks"])
        return {"params": params | {"blocks": blocks}}
    rest = [params[f"block_{i}"] for i in range(COUNT) if i != layer]
    others = {key: value for key, value in params.items() if not key.startswith("block")}
    return {"params": others | {f"block_{i}": block for i, block in enumerate(rest)}}


@pytest.fixture(scope="module", params=[Stacked, long(Numbered)])
def network(request):
    name = "block" if request.param is Numbered else "blocks[layers]"
    return request.param, *of(request.param()), name


@pytest.mark.long
def test_a_layer_scores_by_how_much_the_loss_rises_without_it(network):
    module, apply, variables, widths, name = network
    scores = dw.saliency(variables, widths, loss_of(apply), X, Y, layers=True)
    assert [*scores] == [name]
    whole = loss_of(apply)(variables, X, Y)
    smaller = loss_of(module(COUNT - 1).apply)
    for layer, score in enumerate(scores[name]):
        expected = smaller(without(variables, name, layer), X, Y) - whole
        np.testing.assert_allclose(score, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.long
def test_the_layers_that_matter_most_stay(network):
    module, apply, variables, widths, name = network
    loss = loss_of(apply)
    scores = dw.saliency(variables, widths, loss, X, Y, layers=True)
    small, growth = dw.shrink(variables, widths, loss, X, Y, layers=2)
    kept = sorted(np.argsort(scores[name])[-2:].tolist())
    assert growth == dw.plan(widths, keep={name: kept})
    assert jax.eval_shape(module(2).apply, small, X).shape == Y.shape
    for layers in (2, {name: 2}):
        assert dw.shrink(variables, widths, scores=scores, layers=layers)[1] == growth


def test_a_loss_that_takes_any_number_of_layers_is_called():
    """In its program a penalty reads all layers at the end, so that none can be left out."""
    layer = {"up": (5, 7), "down": (7, 5)}
    params = drawn({"in": (3, 5), "out": (5, 2), "layers": [layer] * COUNT})
    layers = params["layers"]

    @jax.jit
    def loss(params, x, y):
        penalty = sum(jnp.sum(array**2) for array in jax.tree.leaves(params))
        return loss_of(in_list)(params, x, y) + 1e-3 * penalty

    scores = dw.saliency(params, dw.trace(in_list, params, X), loss, X, Y, layers=True)["layers"]
    for layer, score in enumerate(scores):
        rest = params | {"layers": layers[:layer] + layers[layer + 1 :]}
        np.testing.assert_allclose(score, loss(rest, X, Y) - loss(params, X, Y), rtol=1e-4)


def test_a_layer_may_have_several_names():
    def apply(params, x):
        x = x @ params["in"]
        for index in range(COUNT):
            x = x + jnp.tanh(x @ params[f"up_{index}"]) @ params[f"down_{index}"]
        return x @ params["out"]

    shapes = {f"up_{i}": (5, 7) for i in range(COUNT)} | {f"down_{i}": (7, 5) for i in range(COUNT)}
    params = drawn({"in": (3, 5), "out": (5, 2), **shapes})
    widths, loss = dw.trace(apply, params, X), loss_of(apply)
    scores = dw.saliency(params, widths, loss, X, Y, layers=True)
    assert scores.keys() == {"up", "down"}
    silent = params | {"down_1": jnp.zeros((7, 5))}
    expected = loss(silent, X, Y) - loss(params, X, Y)
    np.testing.assert_allclose(scores["up"][1], expected, rtol=1e-5)
    small, growth = dw.shrink(params, widths, scores=scores, layers=3)
    assert growth == dw.plan(widths, keep=dict.fromkeys(("up", "down"), growth.layers[0].kept))
    assert "up_2" in small and "up_3" not in small


@pytest.mark.long
def test_layers_that_are_alike_keep_one_size_and_units_of_their_own():
    apply, variables, widths = of(Numbered())
    loss = loss_of(apply)
    scores = dw.saliency(variables, widths, loss, X, Y)
    names = [widths.of(f"params/block_{i}/up/kernel", 1).name for i in range(COUNT)]
    small, growth = dw.shrink(variables, widths, scores=scores, parameters=0.7)
    sizes = {growth.sizes[name] for name in names}
    assert len(sizes) == 1
    kept = [growth.change[name].sources for name in names]
    assert len({*kept}) > 1
    (count,) = sizes
    assert all(len(units) == count for units in kept)
    for name, units in zip(names, kept, strict=True):
        assert {*units} == {*np.argsort(scores[name])[-count:].tolist()}
    own = dw.shrink(variables, widths, scores=scores, parameters=0.7, alike=False)[1]
    assert len({own.sizes.get(name, 7) for name in names}) > 1
    shapes = jax.tree.map(jnp.shape, small["params"])
    assert all(shapes[f"block_{i}"]["up"]["kernel"] == (5, count) for i in range(COUNT))


@pytest.mark.long
def test_sizes_are_multiples():
    apply, variables, widths = of(Numbered())
    scores = dw.saliency(variables, widths, loss_of(apply), X, Y)
    for alike in (True, False):
        growth = dw.shrink(
            variables, widths, scores=scores, parameters=0.75, alike=alike, multiple_of=3
        )[1]
        assert {*growth.sizes.values()} <= {3, 6}
    with pytest.raises(ValueError, match="with 3 units left in each width"):
        dw.shrink(variables, widths, scores=scores, parameters=0.01, multiple_of=3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        long({"layers": 2, "parameters": 0.5}, "one budget, parameters=.* or layers="),
        long({"layers": 0}, "between 1 and 4 layers can stay, got 0"),
        ({"layers": 5}, "between 1 and 4 layers can stay, got 5"),
        long({"layers": {"blocks": 2}}, "no layers 'blocks'; the closest are \\['block'\\]"),
        ({"layers": 2, "scores": {"block": np.ones(3)}}, "a finite score for each of 4 layers"),
        ({"layers": 2, "scores": {}}, "scores are of these layers: none"),
        ({"layers": 2, "scores": {"block_0/up": np.ones(7)}}, "block_0/up is a width of units"),
    ],
)
def test_wrong_requests_are_refused(options, message):
    apply, variables, widths = of(Numbered())
    given = () if "scores" in options else (loss_of(apply), X, Y)
    with pytest.raises(ValueError, match=message):
        dw.shrink(variables, widths, *given, **options)


def test_wrong_arguments_are_refused():
    apply, variables, widths = of(Numbered())
    with pytest.raises(ValueError, match="layers=True needs a loss and a batch"):
        dw.saliency(variables, widths, layers=True)
    with pytest.raises(ValueError, match="the loss must be a scalar"):
        dw.saliency(variables, widths, lambda v, x: apply(v, x), X, layers=True)
    with pytest.raises(TypeError, match="multiple_of must be a positive integer"):
        dw.shrink(variables, widths, scores={}, parameters=0.5, multiple_of=0)
    with pytest.raises(TypeError, match="layers must be a number of layers"):
        dw.shrink(variables, widths, scores={}, layers="all")
