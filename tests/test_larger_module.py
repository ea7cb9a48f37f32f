"""``larger``: the module of the larger network, of Linen, Equinox and NNX."""

import dataclasses
import functools
import types
from typing import Any, NamedTuple

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import dogwood_jax as dw

KEY = jax.random.key(0)
X = jax.random.normal(KEY, (3, 6))
TOKENS = jnp.arange(6).reshape(2, 3)


@dataclasses.dataclass(frozen=True)
class Config:
    stream: int = 8
    heads: int = 2
    ratio: int = 3
    layers: int = 2
    words: int = 11


class Settings:
    """A configuration that is no dataclass, and refers to itself."""

    def __init__(self) -> None:
        self.hidden, self.itself, self.names = 12, self, {0: "a"}


class Sizes(NamedTuple):
    inner: int = 12
    outer: int = 4


class Block(nn.Module):
    config: Config

    @nn.compact
    def __call__(self, x: Any) -> Any:
        c = self.config
        x = x + nn.MultiHeadDotProductAttention(c.heads)(nn.LayerNorm()(x))
        y = nn.gelu(nn.Dense(c.ratio * c.stream)(nn.LayerNorm()(x)))
        return x + nn.Dense(c.stream)(y)


class Decoder(nn.Module):
    config: Config

    @nn.compact
    def __call__(self, tokens: Any, train: bool) -> Any:
        c = self.config
        x = nn.Embed(c.words, c.stream)(tokens)
        for _ in range(c.layers):
            x = Block(c)(x)
        return nn.Dense(c.words)(nn.LayerNorm()(x))


class Normed(nn.Module):
    """With a number that follows from the size, and statistics that no gradient moves."""

    settings: Any
    read: Any = lambda settings: settings.hidden

    @nn.compact
    def __call__(self, x: Any) -> Any:
        n = self.read(self.settings)
        y = nn.BatchNorm(use_running_average=True)(nn.Dense(n)(x))
        return nn.Dense(2)(nn.relu(y)) / n


class Scanned(nn.Module):
    layers: int = 2
    hidden: int = 5

    @nn.compact
    def __call__(self, x: Any) -> Any:
        class Layer(nn.Module):
            hidden: int

            @nn.compact
            def __call__(self, x: Any, _: Any) -> Any:
                y = nn.relu(nn.Dense(self.hidden, name="up")(x))
                return x + nn.Dense(x.shape[-1], name="down")(y), None

        axes = {"params": 0}
        stack = nn.scan(Layer, variable_axes=axes, split_rngs={"params": True}, length=self.layers)
        return stack(self.hidden, name="layers")(x, None)[0]


def grown(module: Any, sizes: Any, *inputs: Any, **keywords: Any) -> Any:
    """Returns the larger module, after a look at what both modules compute."""
    apply = functools.partial(module.apply, **keywords)
    variables = jax.jit(lambda *given: module.init(KEY, *given, **keywords))(*inputs)
    growth = dw.plan(dw.trace(apply, variables, *inputs), **sizes)
    assert growth.evidence is not None
    assert not growth.evidence.assumes  # the larger module's own program was evaluated
    wide = dw.grow(variables, growth, key=KEY)
    larger = dw.larger(module, growth)
    of_larger = functools.partial(larger.apply, **keywords)
    dw.verify(apply, variables, of_larger, wide, *inputs, growth=growth)
    return larger


def mlp(units: int = 4) -> nn.Module:
    return nn.Sequential([nn.Dense(units), nn.relu, nn.Dense(units), nn.relu, nn.Dense(2)])


def test_a_field_of_a_module_in_a_list() -> None:
    larger = grown(mlp(), {"sizes": {"layers_2": 9}}, X)
    assert [layer.features for layer in larger.layers[::2]] == [4, 9, 2]


@pytest.mark.long
def test_a_ratio_and_a_number_of_layers_in_a_configuration_of_many_modules() -> None:
    module = Decoder(Config())
    sizes = {"Block_0/Dense_0": 40, "Block_1/Dense_0": 40}
    assert grown(module, {"sizes": sizes}, TOKENS, train=False).config == Config(ratio=5)
    wanted = Decoder(Config(ratio=4, layers=3))
    target = jax.eval_shape(lambda: wanted.init(KEY, TOKENS, train=False))
    assert grown(module, {"target": target}, TOKENS, train=False) == wanted


def test_numbers_of_the_larger_module_are_its_own() -> None:
    """Nothing else tells whether 1 / 12 is a number of its own, or follows from the size."""
    module = Normed(Settings())
    larger = grown(module, {"sizes": {"Dense_0": 24}}, X)
    assert (larger.settings.hidden, module.settings.hidden) == (24, 12)
    assert larger.settings.names == {0: "a"}


@pytest.mark.parametrize(
    "module",
    [
        Normed(Sizes(), lambda sizes: sizes.inner),
        Normed({"widths": [12]}, lambda sizes: sizes["widths"][0]),
        Normed(functools.partial(max, 3, 12), lambda part: part()),
        Normed(functools.partial(dict, hidden=12), lambda part: part()["hidden"]),
    ],
)
def test_numbers_in_all_that_holds_numbers(module: Any) -> None:
    widths = dw.trace(module.apply, jax.eval_shape(module.init, KEY, X), X)
    larger = dw.larger(module, dw.plan(widths, {"Dense_0": 24}, check=False))
    assert larger.init(KEY, X)["params"]["Dense_0"]["kernel"].shape == (6, 24)


def test_inputs_and_outputs_that_grow_along() -> None:
    larger = grown(mlp(), {"sizes": {"layers_4": 3, "layers_0[0]": 7}, "interface": True}, X)
    assert larger.layers[-1].features == 3


def test_layers_over_which_a_loop_runs() -> None:
    wanted = Scanned(3, 7)
    target = jax.eval_shape(wanted.init, KEY, X)
    module = Scanned()
    widths = dw.trace(module.apply, jax.eval_shape(module.init, KEY, X), X)
    assert dw.larger(module, dw.plan(widths, target=target)) == wanted


def test_a_function_around_a_module_needs_what_its_init_takes() -> None:
    module = Decoder(Config())
    params = module.init(KEY, TOKENS, train=False)["params"]
    apply = lambda params, x: module.apply({"params": params}, x, train=False)  # noqa: E731
    growth = dw.plan(
        dw.trace(apply, params, TOKENS), {"Block_0/Dense_0": 40, "Block_1/Dense_0": 40}
    )
    with pytest.raises(
        ValueError, match=r"cannot be initialized .*'train'.*\n?.*arguments of its init"
    ):
        dw.larger(module, growth)
    assert dw.larger(module, growth, train=False).config.ratio == 5
    saved = dw.from_json(dw.to_json(growth))
    assert dw.larger(module, saved, TOKENS, train=False).config.ratio == 5


@dataclasses.dataclass(frozen=True)
class Checked:
    """Not every choice of integers can be made."""

    hidden: int = 8
    heads: int = 4

    def __post_init__(self) -> None:
        if self.hidden % self.heads:
            raise ValueError("heads must divide hidden")


@pytest.mark.parametrize("config", [Checked(), types.SimpleNamespace(hidden=8)])
def test_configurations_that_refuse_or_make_themselves_otherwise(config: Any) -> None:
    module = Normed(config, lambda config: config.hidden)
    widths = dw.trace(module.apply, jax.eval_shape(module.init, KEY, X), X)
    assert dw.larger(module, dw.plan(widths, {"Dense_0": 16})).settings.hidden == 16
    dw.plan(widths, {"Dense_0": 18}, check=False)


class Layers(nn.Module):
    features: tuple[int, ...] = (4, 4)
    window: tuple[int, ...] = (4, 4)  # which Python makes one object of
    steps: int = 5
    scale: float = 1.0

    @nn.compact
    def __call__(self, x: Any) -> Any:
        for n, size in enumerate(self.features):
            x = nn.relu(nn.Dense(size, name=f"layer_{n}")(x))
        return nn.Dense(2, name="out")(x) * self.scale


def test_the_fewest_changes_are_taken_if_all_choices_have_them() -> None:
    module = Layers()
    widths = dw.trace(module.apply, jax.eval_shape(module.init, KEY, X), X)
    larger = dw.larger(module, dw.plan(widths, {"layer_0": 8}))
    assert (larger.features, larger.window) == ((8, 4), (4, 4))


def test_layers_of_one_size_that_get_others_and_layers_that_go() -> None:
    module = Layers((4,) * 4, ())
    sizes = {f"layer_{n}": 10 + n for n in range(4)}
    assert grown(module, {"sizes": sizes}, X).features == (10, 11, 12, 13)
    module = Scanned(3, 5)
    widths = dw.trace(module.apply, jax.eval_shape(module.init, KEY, X), X)
    (name,) = (name for name in widths if "loop" in (widths[name].fixed or ""))
    assert dw.larger(module, dw.plan(widths, keep={name: [0, 2]})) == Scanned(2, 5)


def test_a_module_with_other_numbers_than_the_growth_was_planned_for_is_refused() -> None:
    module, other = Layers(window=()), Layers((8, 4), (), scale=2.0)
    widths = dw.trace(module.apply, jax.eval_shape(module.init, KEY, X), X)
    target = jax.eval_shape(other.init, KEY, X)
    growth = dw.plan(widths, target=target, target_apply=other.apply)
    with pytest.raises(ValueError, match="not the one the growth was planned for"):
        dw.larger(module, growth)


class Twice(nn.Module):
    units: int = 4
    most: int = 4

    @nn.compact
    def __call__(self, x: Any) -> Any:
        hidden = nn.relu(nn.Dense(self.units)(x))
        return nn.Dense(2)(hidden)


def test_a_module_of_other_arrays_is_told() -> None:
    module = Twice()
    widths = dw.trace(module.apply, jax.eval_shape(module.init, KEY, X), X)
    growth = dw.plan(widths, {"Dense_0": 8})
    assert dw.larger(module, growth) == Twice(units=8)
    module = mlp()
    widths = dw.trace(module.apply, jax.eval_shape(module.init, KEY, X), X)
    growth = dw.plan(widths, {"layers_0": 8})
    with pytest.raises(ValueError, match=r"makes layers_2.*, but the network has|no array"):
        dw.larger(Twice(), growth)

    class Fixed(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            hidden = nn.relu(nn.Dense(4)(x))
            return nn.Dense(2)(hidden)

    widths = dw.trace(Fixed().apply, Fixed().init(KEY, X), X)
    with pytest.raises(ValueError, match="no choice of its numbers .*it has none"):
        dw.larger(Fixed(), dw.plan(widths, {"Dense_0": 8}))


def test_modules_that_hold_their_arrays_from_shapes_alone() -> None:
    module = eqx.nn.MLP(6, 2, 4, 1, key=KEY)
    apply = lambda module, x: jax.vmap(module)(x)  # noqa: E731
    growth = dw.plan(dw.trace(apply, module, X), {"layers/0": 8})
    shapes = eqx.filter_eval_shape(lambda: module)
    larger = dw.larger(shapes, growth)
    assert larger.layers[0].out_features == 8
    assert jax.tree.leaves(larger)[0] == jax.ShapeDtypeStruct((8, 6), X.dtype)

    rngs = nnx.Rngs(0)
    net = nnx.Sequential(nnx.Linear(6, 4, rngs=rngs), nnx.relu, nnx.Linear(4, 2, rngs=rngs))
    growth = dw.nnx.plan(dw.nnx.trace(net, X), {"layers/0": 8})
    wider = dw.larger(net, growth)
    assert (wider.layers[0].out_features, net.layers[0].out_features) == (8, 4)
    assert {type(leaf) for leaf in jax.tree.leaves(nnx.state(wider))} == {jax.ShapeDtypeStruct}


def test_what_is_no_module() -> None:
    module = mlp()
    growth = dw.plan(
        dw.trace(module.apply, jax.eval_shape(module.init, KEY, X), X), {"layers_0": 8}
    )
    with pytest.raises(TypeError, match="must be a module .*got the function"):
        dw.larger(module.apply, growth)
    with pytest.raises(TypeError, match="growth must be"):
        dw.larger(module, {"layers_0": 8})  # type: ignore[arg-type]


class Shared(nn.Module):
    units: int = 4

    @nn.compact
    def __call__(self, x: Any) -> Any:
        for name in "ab":
            x = nn.relu(nn.Dense(self.units, name=name)(x))
        return nn.Dense(2)(x)


def test_widths_that_share_a_field_are_told() -> None:
    module = Shared()
    widths = dw.trace(module.apply, jax.eval_shape(module.init, KEY, X), X)
    with pytest.raises(ValueError, match="units=4; grow b, too, if they have one size"):
        dw.larger(module, dw.plan(widths, {"a": 8}))


def test_a_growth_of_another_module_is_told() -> None:
    rngs, x = nnx.Rngs(0), jnp.ones((3, 6))
    module = mlp()
    growth = dw.plan(dw.trace(module.apply, module.init(KEY, x), x), {"layers_0": 8})
    other = nnx.Sequential(nnx.Linear(6, 4, rngs=rngs), nnx.relu, nnx.Linear(4, 2, rngs=rngs))
    with pytest.raises(ValueError, match="the growth belongs to another module"):
        dw.larger(other, growth)
