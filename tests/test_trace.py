"""What tracing finds: the table of networks, kinds of trees, overrides, unknown primitives."""

import collections
import dataclasses
import functools
import pickle
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import equinox as eqx
import equinox.internal as eqxi
import flax.core
import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from networks import NETWORKS, Expected, data, f64, fill, load, places_of, tokens

import dogwood_jax as dw

load()


def places(width: dw.typing.Width) -> set[str]:
    return {" ".join(str(o).split()[:2]).replace("params/", "") for o in width.occurrences}


# The table ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_widths(name: str) -> None:
    network = NETWORKS[name]
    model = network.build()
    widths = dw.trace(model.apply, model.shapes, *model.inputs)

    found = {width.name: places(width) for width in widths.values() if not is_one(width)}
    assert found == {
        name: places_of(width.places) for name, width in network.widths.items() if not is_one(width)
    }
    # Which axes of size 1 are the same one depends on how JAX's version writes a reshape.
    ones = [width for width in widths.values() if is_one(width)]
    assert set().union(*map(places, ones)) == set().union(
        *(places_of(width.places) for width in network.widths.values() if is_one(width))
    )
    for name, expected in network.widths.items():
        if is_one(expected):
            continue
        width = widths[name]
        assert width.size == expected.size
        assert bool(width.fixed) == bool(expected.fixed), width
        assert expected.fixed in (width.fixed or "")
        if not width.fixed:
            assert width.interface == expected.interface, width


def is_one(width: dw.typing.Width | Expected) -> bool:
    return width.size == 1 and bool(width.fixed)


@pytest.mark.parametrize("name", ["llama", "lstm", "unet"])
def test_widths_of_a_network_are_always_the_same(name: str) -> None:
    model = NETWORKS[name].build()
    widths = dw.trace(model.apply, model.shapes, *model.inputs)
    again = dw.trace(model.apply, model.shapes, *model.inputs)
    assert again == widths
    assert hash(again) == hash(widths)
    assert str(again) == str(widths)
    assert pickle.loads(pickle.dumps(widths)) == widths


# Variables ---------------------------------------------------------------------------------------

LAYERS = {"up": {"kernel": f64(3, 5), "bias": f64(5)}, "down": f64(5, 2)}
PLACES = places_of("-> up/{kernel[1],bias[0]} <- down[0]")
X = data(4, 3)


def apply(params: Any, x: Any) -> Any:
    hidden = jnp.tanh(x @ params["up"]["kernel"] + params["up"]["bias"][None])
    return hidden @ params["down"]


class Pair(NamedTuple):
    up: Any
    down: Any


@dataclasses.dataclass
class Data:
    up: Any
    down: Any


jax.tree_util.register_dataclass(Data, ["up", "down"], [])


class Module(eqx.Module):
    up: Any
    down: Any
    activation: Callable[..., Any] = jnp.tanh


@pytest.mark.parametrize(
    "tree",
    [
        LAYERS,
        {"params": LAYERS},
        flax.core.freeze({"params": LAYERS}),
        collections.OrderedDict(LAYERS),
        nnx.State(LAYERS),
        Pair(**LAYERS),
        Data(**LAYERS),
        Module(**LAYERS),
    ],
    ids=lambda tree: type(tree).__name__,
)
def test_any_tree_will_do(tree: Any) -> None:
    def of_any(tree: Any, x: Any) -> Any:
        if isinstance(tree, Mapping):
            return apply(tree.get("params", tree), x)
        return apply({"up": tree.up, "down": tree.down}, x)

    widths = dw.trace(of_any, tree, X)
    assert places(widths["up"]) == PLACES
    variables = fill(tree, 1)
    larger = jax.tree.map(
        lambda x: f64(*(8 if n == 5 else n for n in x.shape)) if hasattr(x, "shape") else x, tree
    )
    growth = dw.plan(widths, target=larger)
    assert growth.changes == dw.plan(widths, {"up": 8}).changes
    grown = dw.grow(variables, growth, key=jax.random.key(0))
    assert type(grown) is type(variables)
    np.testing.assert_allclose(of_any(grown, X), of_any(variables, X), rtol=1e-12)


def test_lists_number_their_layers() -> None:
    def of_list(layers: Any, x: Any) -> Any:
        for kernel in layers:
            x = jnp.tanh(x @ kernel)
        return x

    widths = dw.trace(of_list, [f64(3, 5), f64(5, 6), f64(6, 2)], X)
    found = {name: places(width) for name, width in widths.items() if not width.interface}
    assert list(found.values()) == [{"-> 0[1]", "<- 1[0]"}, {"-> 1[1]", "<- 2[0]"}]


def test_other_leaves_pass_through() -> None:
    """Integers, booleans and PRNG keys among the variables stay as they are."""
    variables = {
        "layers": fill(LAYERS, 1),
        "step": jnp.array(3),
        "mask": jnp.array([True, False, True]),
        "key": jax.random.key(5),
        "raw_key": jax.random.PRNGKey(7),
    }

    def with_others(variables: Any, x: Any) -> Any:
        noise = jax.random.normal(variables["key"], x.shape, x.dtype)
        noise += jax.random.normal(variables["raw_key"], x.shape, x.dtype)
        x = jnp.where(variables["mask"][None], x, noise) * variables["step"]
        return apply(variables["layers"], x)

    widths = dw.trace(with_others, variables, X)
    shapes = jax.eval_shape(lambda: variables)
    assert dw.trace(with_others, shapes, X) == widths
    target = shapes | {"layers": {"up": {"kernel": f64(3, 7), "bias": f64(7)}, "down": f64(7, 2)}}
    assert dw.plan(widths, target=target).sizes == {"layers/up": 7}
    assert places(widths["layers/up"]) == places_of(
        "-> layers/up/{kernel[1],bias[0]} <- layers/down[0]"
    )
    grown = dw.grow(variables, dw.plan(widths, {"layers/up": 7}), key=jax.random.key(0))
    for name in ("step", "mask", "key", "raw_key"):
        assert grown[name] is variables[name]
    np.testing.assert_allclose(with_others(grown, X), with_others(variables, X), rtol=1e-12)


def test_integers_along_a_width_fix_it() -> None:
    def quantized(params: Any, x: Any) -> Any:
        return jnp.tanh(x @ params["up"]) @ (params["down"] * params["scale"][None])

    shapes = {"up": f64(3, 5), "down": jax.ShapeDtypeStruct((5, 2), jnp.int32), "scale": f64(2)}
    widths = dw.trace(quantized, shapes, X)
    assert "int32" in widths.of("up", 1).fixed
    with pytest.raises(ValueError, match="int32"):
        dw.plan(widths, {("up", 1): 6})


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_low_precision_leaves(dtype: Any) -> None:
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), LAYERS)
    widths = dw.trace(apply, shapes, jax.ShapeDtypeStruct((4, 3), dtype))
    assert places(widths["up"]) == PLACES
    variables = jax.tree.map(lambda leaf: leaf.astype(dtype), fill(LAYERS, 1))
    grown = dw.grow(variables, dw.plan(widths, {"up": 8}), key=jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(grown)} == {jnp.dtype(dtype)}
    x = X.astype(dtype)
    # The sums gain exact zeros, which may be added in another order.
    tolerance = 8 * float(jnp.finfo(dtype).eps)
    old, new = (np.asarray(apply(v, x), np.float64) for v in (variables, grown))
    np.testing.assert_allclose(new, old, atol=tolerance * np.max(np.abs(old)))


def test_variables_without_arrays_have_no_widths() -> None:
    assert len(dw.trace(lambda variables, x: x, {}, X)) == 0
    assert len(dw.trace(lambda variables, x: 2 * x, {"name": None}, X)) == 0


def test_scalars_have_no_axes() -> None:
    widths = dw.trace(lambda p, x: apply(p, x) * p["scale"], {**LAYERS, "scale": f64()}, X)
    assert places(widths["up"]) == PLACES


# Nothing is computed ------------------------------------------------------------------------------


def test_shapes_are_enough_and_nothing_is_allocated() -> None:
    """A model far too large for this machine: 64 layers of 2**20 x 2**20."""
    shapes = {str(i): f64(2**20, 2**20) for i in range(64)}

    def deep(params: Any, x: Any) -> Any:
        for i in range(64):
            x = x + jnp.tanh(x @ params[str(i)])
        return x

    before = len(jax.live_arrays())
    widths = dw.trace(deep, shapes, f64(2, 2**20))
    growth = dw.plan(widths, dict.fromkeys(widths, 2**20 + 1), interface=True)
    grown = jax.eval_shape(lambda v, key: dw.grow(v, growth, key=key), shapes, jax.random.key(0))
    assert {leaf.shape for leaf in jax.tree.leaves(grown)} == {(2**20 + 1, 2**20 + 1)}
    assert len(jax.live_arrays()) <= before  # others may have been collected


def test_values_are_never_read() -> None:
    """Not even to check them: not-a-numbers and zeros trace like all other values."""
    shapes_only = dw.trace(apply, LAYERS, f64(4, 3))
    for value in (0.0, np.nan):
        variables = jax.tree.map(lambda leaf, value=value: np.full(leaf.shape, value), LAYERS)
        assert dw.trace(apply, variables, np.full((4, 3), value)) == shapes_only


def test_the_network_is_traced_once() -> None:
    calls = []

    def counted(params: Any, x: Any) -> Any:
        calls.append(x)
        return apply(params, x)

    dw.trace(counted, LAYERS, X)
    assert len(calls) == 1
    assert isinstance(calls[0], jax.core.Tracer)


def test_growing_compiles_once() -> None:
    widths = dw.trace(apply, LAYERS, X)
    traced = []

    @jax.jit
    def run(variables: Any, key: Any) -> Any:
        traced.append(key)
        return dw.grow(variables, dw.plan(widths, {"up": 8}), key=key)

    for seed in range(3):
        run(fill(LAYERS, seed), jax.random.key(seed))
    assert len(traced) == 1


def test_other_inputs_pass_through() -> None:
    """Flags, None and functions among the inputs reach the network as they are."""

    def with_options(params: Any, x: Any, train: bool, mask: Any, activation: Any) -> Any:
        assert train is True and mask is None
        return activation(x @ params["up"]["kernel"]) @ params["down"]

    shapes = {"up": {"kernel": f64(3, 5)}, "down": f64(5, 2)}
    widths = dw.trace(with_options, shapes, X, True, None, jnp.tanh)
    assert places(widths["up"]) == places_of("-> up/kernel[1] <- down[0]")


@pytest.mark.parametrize("outside", [lambda f: f, jax.jit, jax.checkpoint])
def test_what_is_computed_for_its_shape_alone_splits_nothing(outside: Any) -> None:
    def apply(params: Any, x: Any) -> Any:
        h = jnp.tanh(x @ params["up"])
        mask = nnx.make_causal_mask(h[..., 0])[0]  # reads the shape, not the first unit
        return jnp.where(mask, h @ h.T, 0.0) @ jnp.tanh(h @ params["middle"]) @ params["down"]

    params = {"up": f64(3, 8), "middle": f64(8, 6), "down": f64(6, 2)}
    widths = dw.trace(outside(apply), params, f64(5, 3))
    assert places(widths["up"]) == {"-> up[1]", "<- middle[0]"}
    assert widths["up"].size == 8


def test_units_that_no_array_makes_are_not_taken_for_a_width() -> None:
    def apply(params: Any, x: Any) -> Any:
        return jnp.concatenate([x @ params["up"], x.mean(-1, keepdims=True)], -1) @ params["down"]

    widths = dw.trace(apply, {"up": f64(3, 5), "down": f64(6, 2)}, X)
    growth = dw.plan(widths, target={"up": f64(3, 8), "down": f64(9, 2)})
    assert [(change.width, change.new) for change in growth.changes] == [("up", 8)]


# Losses and gradients -----------------------------------------------------------------------------


def training_step(params: Any, x: Any, decay: float) -> Any:
    """A loss and its gradient, with a BatchNorm by the statistics of the batch in between."""

    def loss(params: Any) -> Any:
        y = x @ params["up"]
        y = (y - y.mean(0, keepdims=True)) / jnp.sqrt(y.var(0, keepdims=True) + 1e-5)
        penalty = sum(jnp.sum(w * w) for w in params.values()) if decay else 0
        return jnp.mean(jnp.square(jnp.tanh(y * params["scale"][None]) @ params["down"])) + penalty

    return jax.value_and_grad(loss)(params)


STEP = {"up": f64(3, 5), "scale": f64(5), "down": f64(5, 2)}


@pytest.mark.long
def test_new_units_behind_a_batch_norm_learn() -> None:
    widths = dw.trace(functools.partial(training_step, decay=0), STEP, X)
    assert widths.of("up", 1).notes == ()
    params = fill(STEP, 1)
    grown = dw.grow(params, dw.plan(widths, {("up", 1): 8}), key=jax.random.key(0))
    value, gradient = training_step(grown, X, decay=0)
    np.testing.assert_allclose(value, training_step(params, X, decay=0)[0], rtol=1e-12)
    assert np.all(np.asarray(gradient["down"][5:]))
    stepped = jax.tree.map(lambda p, g: p - 0.1 * g, grown, gradient)
    _, gradient = training_step(stepped, X, decay=0)
    assert np.all(np.asarray(gradient["up"][:, 5:])) and np.all(np.asarray(gradient["scale"][5:]))


@pytest.mark.long
def test_weight_decay_in_the_network_sees_new_units() -> None:
    """Zeros alone leave the sum of all squares as it is. On both sides they never learn."""
    widths = dw.trace(functools.partial(training_step, decay=1e-3), STEP, X)
    with pytest.raises(ValueError, match="up: outputs depend on units"):
        dw.plan(widths, {("up", 1): 8})
    assert dw.plan(widths, {("up", 1): 8}, strategy=dw.strategies.random()).notes == ()


def test_units_of_a_tied_table_learn_where_other_weights_feed_them() -> None:
    def apply(p: Any, ids: Any) -> Any:
        x = p["table"][ids]
        return (jnp.tanh(x @ p["read"]) @ p["write"] + x) @ p["table"].T

    shapes = {"table": f64(7, 4), "read": f64(4, 3), "write": f64(3, 4)}
    widths = dw.trace(apply, shapes, tokens(7, 2))
    assert not any("never learn" in note for note in widths.of("table", 1).notes)


def test_only_attention_has_heads() -> None:
    """Experts are weighed, and gradients contracted, much as queries meet keys and values."""
    shapes = {"experts": f64(4, 3, 5), "router": f64(3, 4), "out": f64(5, 2)}

    def loss(params: Any, x: Any) -> Any:
        each = jnp.tanh(jnp.einsum("bi,eij->ebj", x, params["experts"]))
        y = jnp.einsum("ebj,be->bj", each, x @ params["router"])
        return jnp.mean(jnp.square(y @ params["out"]))

    for network in (loss, jax.value_and_grad(loss)):
        widths = dw.trace(network, shapes, X)
        assert not any("head" in name for name in widths), list(widths)


# Interfaces ---------------------------------------------------------------------------------------


def test_a_larger_vocabulary_keeps_old_outputs() -> None:
    """A language model with a tied embedding: new words are new rows, and new logits."""
    shapes = {"embed": f64(7, 5)}

    def language_model(params: Any, words: Any) -> Any:
        return jnp.tanh(params["embed"][words]) @ params["embed"].T

    words = tokens(7, 2, 4)
    widths = dw.trace(language_model, shapes, words)
    vocabulary = widths.of("embed", 0)
    assert vocabulary.interface
    with pytest.raises(ValueError, match="pass interface=True"):
        dw.plan(widths, {vocabulary.name: 10})
    growth = dw.plan(widths, {vocabulary.name: 10}, interface=True)
    variables = fill(shapes, 1)
    grown = dw.grow(variables, growth, key=jax.random.key(0))
    logits = language_model(grown, words)
    assert logits.shape == (2, 4, 10)
    np.testing.assert_allclose(logits[..., :7], language_model(variables, words), rtol=1e-12)
    assert np.all(np.asarray(grown["embed"][7:]) != 0)


@pytest.mark.parametrize(
    "look_up",
    [
        lambda embed, words: embed[jnp.where(words < embed.shape[0], words, 0)],
        lambda embed, words: embed[jnp.clip(words, 0, embed.shape[0] - 1)],
        lambda embed, words: jnp.take(embed, words, axis=0, mode="clip"),
        lambda embed, words: jax.vmap(lambda word: embed[word])(words),
        lambda embed, words: jax.nn.one_hot(words, embed.shape[0]) @ embed,
        lambda embed, words: embed[jnp.arange(words.shape[0])],
    ],
    ids=["where", "clip", "take", "vmap", "one_hot", "arange"],
)
def test_new_rows_of_a_table_are_for_new_words(look_up: Callable[..., Any]) -> None:
    words = tokens(7, 5)
    widths = dw.trace(look_up, f64(7, 4), words)
    assert widths.of("", 0).interface
    growth = dw.plan(widths, {("", 0): 9}, interface=True)
    embed = data(7, 4)
    grown = dw.grow(embed, growth, key=jax.random.key(0))
    np.testing.assert_array_equal(look_up(grown, words), look_up(embed, words))


@pytest.mark.parametrize(
    "look_up",
    [
        lambda e, t: jnp.where((t == e.shape[0] - 1)[..., None], 0, e[t]),
        lambda e, t: e[jnp.concatenate([jnp.full_like(t[:1], e.shape[0] - 1), t])],
        lambda e, t: e[(t + e.shape[0]) % 8],
        lambda e, t: e[jnp.minimum(t + 1, e.shape[0] - 1)],
        lambda e, t: e[-t],
        lambda e, t: jax.nn.one_hot(e.shape[0] - 1 - t, e.shape[0]) @ e,
    ],
    ids=["mask", "start", "sum", "shifted", "negated", "one_hot"],
)
def test_tokens_that_the_vocabulary_decides_are_no_indices(look_up: Callable[..., Any]) -> None:
    """Its last token is another one in a larger vocabulary."""
    widths = dw.trace(look_up, f64(7, 4), tokens(7, 5))
    with pytest.raises(ValueError, match="computes something else|positions (is )?computed"):
        dw.plan(widths, {("", 0): 9}, interface=True)


BEYOND = {
    "where": lambda e, t: e[jnp.minimum(jnp.where(t > 2, t + 1, t), e.shape[0] - 1)],
    "clipped": lambda e, t: jnp.take(e, jnp.where(t > 2, t + 1, t), axis=0, mode="clip"),
    "at least six": lambda e, t: jnp.take(e, jnp.maximum(t, 6), axis=0, mode="clip"),
    "between": lambda e, t: e[jnp.clip(t, 6, e.shape[0] - 1)],
    "rows that are not there": lambda e, t: jnp.take(e, jnp.arange(9), axis=0, mode="clip")[t],
}


@pytest.mark.parametrize("name", BEYOND)
def test_numbers_that_a_larger_vocabulary_understands_otherwise_are_no_indices(name: str) -> None:
    widths = dw.trace(lambda p, t: BEYOND[name](p["e"], t), {"e": f64(5, 4)}, tokens(5, 6))
    assert [width for width in widths.values() if width.size == 5]
    for interface in (False, True):
        with pytest.raises(ValueError, match="cannot plan this growth"):
            dw.plan(widths, {("e", 0): 9}, interface=interface)


def test_masks_of_a_key_around_the_network_stay() -> None:
    key = jax.random.key(3)

    def apply(p: Any, x: Any) -> Any:
        h = jnp.tanh(x @ p["up"])
        return jnp.where(jax.random.bernoulli(key, 0.5, h.shape), h, 0) @ p["down"]

    widths = dw.trace(apply, {"up": f64(3, 4), "down": f64(4, 2)}, f64(5, 3))
    with pytest.raises(ValueError, match="another size draws others\n  trace the network in eval"):
        dw.plan(widths, {"up": 6})


def test_masks_along_merged_axes_are_drawn_in_small_sizes() -> None:
    key = jax.random.key(3)

    def apply(p: Any, x: Any) -> Any:
        h = jnp.einsum("bu,uhd->bhd", jnp.tanh(x @ p["up"]), p["heads"]).reshape(len(x), -1)
        h = h * jax.random.bernoulli(key, 0.5, h.shape)
        return jnp.einsum("bhd,hdo->bo", h.reshape(len(x), 8, 64), p["down"])

    shapes = {"up": f64(3, 128), "heads": f64(128, 8, 64), "down": f64(8, 64, 2)}
    x, variables = data(5, 3), fill(shapes, 1)
    growth = dw.plan(dw.trace(apply, shapes, x), {"up": 192})
    assert "sizes 128 -> 6, 192 -> 8" in str(growth)
    grown = dw.grow(variables, growth, key=key)
    np.testing.assert_allclose(apply(grown, x), apply(variables, x), rtol=1e-12)


def test_new_inputs_and_outputs_are_appended() -> None:
    widths = dw.trace(apply, LAYERS, X)
    sizes = {("up/kernel", 0): 5, ("down", 1): 4}
    growth = dw.plan(widths, sizes, interface=True)
    variables = fill(LAYERS, 1)
    grown = dw.grow(variables, growth, key=jax.random.key(0))
    old = apply(variables, X)
    for seed in range(2):  # whatever the new inputs are
        new = apply(grown, jnp.concatenate([X, data(4, 2, seed=seed)], axis=1))
        np.testing.assert_allclose(new[:, :2], old, rtol=1e-12)
        assert np.all(np.asarray(new[:, 2:]) != 0)


def test_inputs_cannot_be_copied() -> None:
    """Nobody but the caller could make the copies."""
    widths = dw.trace(apply, LAYERS, X)
    with pytest.raises(ValueError, match="input"):
        dw.plan(widths, {("up/kernel", 0): 5}, strategy=dw.strategies.replicate(), interface=True)


# Overrides ----------------------------------------------------------------------------------------


def test_fix() -> None:
    widths = dw.trace(apply, LAYERS, X, fix=[("up/bias", 0)])
    assert widths["up"].fixed == "fixed by the caller"
    assert places(widths["up"]) == PLACES
    with pytest.raises(ValueError, match="fixed by the caller"):
        dw.plan(widths, {"up": 8})


def test_tie() -> None:
    """Two towers whose features must stay comparable though the program never compares them."""

    def towers(params: Any, x: Any) -> Any:
        return [jnp.tanh(x @ params[k]["up"]) @ params[k]["down"] for k in ("one", "two")]

    tower = {"up": f64(3, 5), "down": f64(5, 2)}
    shapes = {"one": tower, "two": tower}
    free = dw.trace(towers, shapes, X)
    assert free.of("one/up", 1) != free.of("two/up", 1)
    tied = dw.trace(towers, shapes, X, tie=[(("one/up", 1), ("two/down", -2))])
    assert tied.of("one/up", 1) == tied.of("two/up", 1)
    grown = dw.grow(fill(shapes, 1), dw.plan(tied, {("two/up", 1): 8}), key=jax.random.key(0))
    assert {grown[k]["up"].shape for k in shapes} == {(3, 8)}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ({"fix": [("up/kernels", 1)]}, "no array 'up/kernels'; the closest are ['up/kernel'"),
        ({"fix": [("up/kernel", 2)]}, "up/kernel: has 2 axes, so no axis 2"),
        ({"tie": [(("up/kernel", 0), ("down", 0))]}, "has size 3, but ('down', 0) has 5"),
        ({"fix": ("up/kernel", 1)}, "'up/kernel': is not a place (path, axis)"),
        ({"fix": [("kernel", "1")]}, "('kernel', '1'): is not a place"),
        ({"tie": [("up/kernel", 1)]}, "1: is not a place (path, axis)"),
        ({"tie": [("up/kernel",)]}, "tie: ('up/kernel',): is not a pair of places"),
    ],
)
def test_overrides_that_fit_nothing(override: Any, message: str) -> None:
    with pytest.raises(ValueError) as error:
        dw.trace(apply, LAYERS, X, **override)
    assert message in str(error.value)


def test_all_wrong_overrides_are_reported() -> None:
    with pytest.raises(ValueError) as error:
        dw.trace(apply, LAYERS, X, fix=[("a", 0), ("b", 0)], tie=[(("c", 0), ("down", 9))])
    assert str(error.value).count("\n- ") == 4


# Primitives without a rule ------------------------------------------------------------------------


def unknown_primitive() -> jax.extend.core.Primitive:
    primitive = jax.extend.core.Primitive("mystery")
    primitive.def_abstract_eval(lambda x: jax.core.ShapedArray(x.shape, x.dtype))
    primitive.def_impl(lambda x: x[:, ::-1])
    return primitive


def test_an_unknown_primitive_fixes_the_widths_through_it() -> None:
    mystery = unknown_primitive()

    def network(params: Any, x: Any) -> Any:
        hidden = jnp.tanh(x @ params["a"])
        return jnp.tanh(mystery.bind(hidden @ params["b"]) @ params["c"]) @ params["d"]

    shapes = {"a": f64(3, 5), "b": f64(5, 6), "c": f64(6, 7), "d": f64(7, 2)}
    widths = dw.trace(network, shapes, X)
    through = widths.of("b", 1)
    assert places(through) == {"-> b[1]"} and widths.of("c", 0).fixed
    assert "mystery" in through.fixed and "no rule" in through.fixed
    for name, size in ((through.name, 8), (widths.of("c", 0).name, 9)):
        with pytest.raises(ValueError, match="mystery") as error:
            dw.plan(widths, {name: size})
        assert f"- {name}: cannot grow" in str(error.value)
        assert "[1]" in str(error.value) or "[0]" in str(error.value)
    for place in (("a", 1), ("c", 1)):  # those that do not pass through it still grow
        assert widths.of(*place).status == "growable"


def test_an_unknown_primitive_on_weights_fixes_their_widths() -> None:
    mystery = unknown_primitive()
    widths = dw.trace(
        lambda p, x: jnp.tanh(x @ mystery.bind(p["up"])) @ p["down"],
        {"up": f64(3, 5), "down": f64(5, 2)},
        X,
    )
    assert "mystery" in widths.of("up", 1).fixed
    assert "mystery" in widths.of("down", 0).fixed


def test_callbacks_fix_the_widths_through_them() -> None:
    def network(params: Any, x: Any) -> Any:
        hidden = x @ params["up"]
        hidden = jax.pure_callback(np.tanh, jax.ShapeDtypeStruct(hidden.shape, x.dtype), hidden)
        return hidden @ params["down"]

    widths = dw.trace(network, {"up": f64(3, 5), "down": f64(5, 2)}, X)
    assert "pure_callback" in widths.of("up", 1).fixed
    assert "pure_callback" in widths.of("down", 0).fixed


@pytest.mark.long
def test_checks_and_loops_of_equinox_fix_nothing() -> None:
    def network(params: Any, x: Any) -> Any:
        def step(state: Any) -> Any:
            n, hidden, made = state
            hidden = jnp.tanh(hidden @ params["again"])
            return n + 1, hidden, made.at[n].set(hidden)

        hidden = eqx.error_if(x @ params["up"], x.sum() > 1e9, "the inputs are too large")
        made = jnp.zeros((3, *hidden.shape), hidden.dtype)
        loop = {"kind": "checkpointed", "checkpoints": 2, "max_steps": 3}
        goes_on, written = lambda state: state[0] < 3, lambda state: state[2]
        state = eqxi.while_loop(goes_on, step, (0, hidden, made), buffers=written, **loop)
        return state[2] @ params["down"]

    shapes = lambda n: {"up": f64(3, n), "again": f64(n, n), "down": f64(n, 2)}  # noqa: E731
    widths = dw.trace(network, shapes(5), X)
    assert widths["up"].status == "growable"
    params = fill(shapes(5), 0)
    growth = dw.plan(widths, target=shapes(7), target_apply=network)
    grown = dw.grow(params, growth, key=jax.random.key(0))
    assert dw.compare(network, params, network, grown, X).relative < 1e-12


@pytest.mark.parametrize("cuts", [((2, 12), (6, 4)), ((6, 4), (2, 12))])
def test_cuts_of_one_axis_nest(cuts: tuple[tuple[int, int], ...]) -> None:
    """Units that are 2 x 12 in one array and 6 x 4 in another are 2 x 3 x 4, in this order."""

    def apply(p: Any, x: Any) -> Any:
        one, other = (jnp.tensordot(x, p[name], 1).reshape(len(x), -1) for name in "ab")
        return jnp.tanh(one + other) @ p["down"]

    shapes = {"a": f64(5, *cuts[0]), "b": f64(5, *cuts[1]), "down": f64(24, 2)}
    leaves = {leaf.path: leaf for leaf in dw.trace(apply, shapes, data(3, 5)).leaves}
    cut = {cuts[0]: leaves["a"], cuts[1]: leaves["b"]}
    assert [part.size for part in leaves["down"].axes[0].parts] == [2, 3, 4]
    assert [part.size for part in cut[2, 12].axes[2].parts] == [3, 4]
    assert [part.size for part in cut[6, 4].axes[1].parts] == [2, 3]


@pytest.mark.long
def test_factors_of_attention_read_units_that_weights_feed() -> None:
    """The scores of a graph attention network: new units of its heads learn."""

    def apply(p, x):
        z = jnp.einsum("nf,fhd->nhd", x, p["w"])
        scores = jax.nn.softmax((z * p["sent"][None]).sum(-1), 0) * (z * p["received"][None]).sum(
            -1
        )
        mixed = jax.nn.elu(jnp.einsum("nh,nhd->nhd", scores, z))
        return jax.nn.relu(mixed.reshape(len(x), -1) @ p["up"]) @ p["down"]

    shapes = {"w": f64(4, 2, 3), "sent": f64(2, 3), "received": f64(2, 3), "up": f64(6, 5)}
    params = fill(shapes | {"down": f64(5, 2)}, 1)
    x = data(7, 4)
    growth = dw.plan(dw.trace(apply, params, x), {("w", 2): 5})
    assert growth.notes == ()
    wide = dw.grow(params, growth, key=jax.random.key(0))
    np.testing.assert_allclose(apply(wide, x), apply(params, x), rtol=1e-12)
    gradient = jax.grad(lambda p: jnp.sum(jnp.sin(apply(p, x))))(wide)
    assert np.any(np.asarray(wide["w"][..., 3:]))
    assert np.all(np.asarray(gradient["sent"][:, 3:]))
