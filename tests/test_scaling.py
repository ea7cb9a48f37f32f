"""Widths whose size the network computes with grow exactly, by recipes that are found, or not.

Each network is built a second time with the larger size. Its outputs and, by the adjoint of the
growth, its gradients are compared with the old ones.
"""

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from networks import Model, affine, data, dense, f64, fill, linen
from networks_scaling import (
    CASES,
    EPSILON,
    attend,
    attention_shapes,
    codebook,
    divergence,
    latents,
    mixed,
    rms_norm,
    row,
    scaled_sum,
    scores,
    stream,
    towers,
    weighted,
)
from tiers import in_tiers, long, some

import dogwood_jax as dw
from dogwood_jax._base.trees import leaves_by_path
from dogwood_jax._growth.leaf_map import old_places

STRATEGIES = {
    "zero_outgoing": dw.strategies.zero_outgoing,
    "zero_incoming": dw.strategies.zero_incoming,
    "tile": dw.strategies.tile,
    "replicate": dw.strategies.replicate,
    "zeros": dw.strategies.zeros,
}


# What grows ---------------------------------------------------------------------------------------


def widths_of(model: Model) -> dw.Widths:
    return dw.trace(model.apply, model.shapes, *model.inputs)


@functools.cache
def before(name: str) -> tuple[Model, dw.Widths, Any]:
    model = CASES[name].build()
    return model, widths_of(model), fill(model.shapes, 1)


def planned(name: str, new: int) -> tuple[Model, dw.Growth]:
    """The larger model, and the growth to it, with the strategy that is exact."""
    case, widths = CASES[name], before(name)[1]
    width, big = widths.of(*case.place), case.build(n=new)
    sizes = {width.name: new} | {widths.of(*place).name: new for place in case.also}
    options = {"target": big.shapes, "target_apply": big.apply}
    strategies = {width.name: STRATEGIES[case.strategy]()}
    return big, dw.plan(widths, sizes, strategy=strategies, **options)


def assert_close(new: Any, reference: Any, tolerance: float, scale: float) -> None:
    assert new.shape == reference.shape
    np.testing.assert_allclose(new, reference, rtol=0, atol=tolerance * scale)


# Whose programs take long to compile.
LONG = {
    *("scanned", "vit", "sorted experts", "stacked experts", "llama, tied", "gemma", "equinox"),
    *("haiku", "learned queries", "capsules", "standardized", "norm, relu"),
}
# They take as long, and consist of parts of others. The record of state.py has them.
RECORDED = {
    *("rms, norms without scale", "pre-norm", "square", "layer scale", "layer scale, scanned"),
    *("rms, embeddings times sqrt(n)", "unusual", "pre-norm, embeddings times sqrt(n)"),
    *("rms post-norm, tied", "unit norm", "gemma, norms behind branches", "post-norm, tied"),
    *("post-norm", "learned queries, skip", "gemma, scanned", "norm of all heads"),
    "pre-norm, tied",
}


@pytest.mark.parametrize("name", some([n for n in CASES if n not in RECORDED], 3, long=LONG))
def test_the_larger_network_computes_the_same(name: str) -> None:
    model, _, variables = before(name)
    outputs = jax.jit(model.apply)(variables, *model.inputs)
    big, growth = planned(name, CASES[name].sizes[-1])
    grown = dw.grow(variables, growth, fresh=fill(big.shapes, 2))
    new_outputs = jax.jit(big.apply)(grown, *big.inputs)
    assert_close(new_outputs, outputs, CASES[name].tolerance, np.max(np.abs(outputs)))


@pytest.mark.parametrize(
    ("norm", "scaled", "layers"),
    [("rms", True, 1), ("layer", False, 2)],
)
@pytest.mark.long
def test_networks_in_mixed_precision_grow_exactly(norm: str, scaled: bool, layers: int) -> None:
    build = functools.partial(mixed, norm, scaled=scaled)
    growth = None
    for low in (jnp.bfloat16, jnp.float64):
        old, new = build(low), build(low, n=12, head_dim=6, layers=layers)
        if growth is None:
            growth = dw.plan(widths_of(old), target=new.shapes, target_apply=new.apply)
        variables = fill(old.shapes, 1)
        grown = dw.grow(variables, growth, key=jax.random.key(0))
        dw.verify(jax.jit(old.apply), variables, jax.jit(new.apply), grown, *old.inputs)


TURNED_BACK = [
    "mup",
    "keys as values",
    "keys beside queries",
    "llama",
    "by hand",
    "by hand, fast",
    "pre-norm, tied",
    "gemma",
    "layer scale, scanned",
    "queries and keys from one kernel",
]


def gradient(model: Model, variables: Any) -> Any:
    outputs, pull = jax.vjp(lambda v: model.apply(v, *model.inputs), variables)
    cotangent = jnp.cos(1 + 0.7 * jnp.arange(outputs.size, dtype=outputs.dtype))
    return pull(cotangent.reshape(outputs.shape))[0]


# Those that are no transformers.
TURNED_BACK_SHORT = ("mup", "keys as values", "keys beside queries", "by hand")


@pytest.mark.parametrize(
    "name",
    in_tiers(TURNED_BACK, short=TURNED_BACK_SHORT),
)
def test_gradients_come_back_through_the_growth(name: str) -> None:
    model, _, variables = before(name)
    big, growth = planned(name, CASES[name].sizes[-1])

    @jax.jit
    def of_grown(variables: Any, fresh: Any) -> Any:
        grown, pull = jax.vjp(lambda v: dw.grow(v, growth, fresh=fresh), variables)
        return pull(gradient(big, grown))[0]

    old = jax.tree.leaves(jax.jit(functools.partial(gradient, model))(variables))
    scale = max(np.max(np.abs(g)) for g in old)
    for a, b in zip(jax.tree.leaves(of_grown(variables, fill(big.shapes, 2))), old, strict=True):
        assert_close(a, b, 1e-10, scale)


@pytest.mark.long
def test_moments_follow_arrays_of_which_a_part_is_rescaled() -> None:
    model, _, variables = before("keys beside queries")
    big, growth = planned("keys beside queries", 8)
    tx = optax.trace(0.9)
    _, state = tx.update(gradient(model, variables), tx.init(variables))
    grown = dw.grow(variables, growth, fresh=fill(big.shapes, 2))
    moments = leaves_by_path(dw.grow_opt_state(state, growth, tx))
    gradients = leaves_by_path(gradient(big, grown))
    for path in ("qkv/kernel", "qkv/bias"):
        places = np.ix_(*map(old_places, growth.maps[path].axes))
        assert_close(moments[f"trace/{path}"][places], gradients[path][places], 1e-10, 1.0)


@pytest.mark.long
def test_averages_of_parameters_follow_where_others_weigh_them() -> None:
    model, widths, variables = before("layer scale")
    growth = dw.plan(widths, {widths.of("write/bias", 0).name: 15})
    assert dw.from_json(dw.to_json(growth)) == growth
    wide = dw.grow(variables, growth, key=jax.random.key(0))
    average, fields = optax.ema(0.9, debias=False), {"ema": "parameters"}
    state = average.init(variables)._replace(ema=jax.tree.map(jnp.copy, variables))
    others = optax.masked(average, lambda tree: jax.tree.map(lambda a: a.ndim > 1, tree))
    with pytest.raises(ValueError, match="skip: is weighted by inner_state/ema/layers/0/scale"):
        dw.grow_opt_state(others.init(variables), growth, others, variables=wide, fields=fields)
    options = {"variables": wide, "fields": fields, "donate": True}
    grown = dw.grow_opt_state(state, growth, average, **options).ema
    jax.tree.map(np.testing.assert_array_equal, grown, wide)
    old = jax.tree.map(jnp.copy, variables)
    again = dw.grow(old, growth, key=jax.random.key(0), donate=True)
    jax.tree.map(np.testing.assert_array_equal, again, wide)


@pytest.mark.long
def test_new_units_may_learn_where_all_scales_are_zero() -> None:
    model, widths, variables = before("layer scale")
    growth = dw.plan(widths, {widths.of("write/bias", 0).name: 7})
    assert "axis 1 copy (write), means weighted by layers/0/scale" in str(growth)
    (layer,) = variables["layers"]
    silent = {**variables, "layers": [{**layer, "scale": jnp.zeros_like(layer["scale"])}]}
    outputs = model.apply(silent, *model.inputs)
    grown = dw.grow(silent, growth, key=jax.random.key(0))
    assert_close(CASES["layer scale"].build(n=7).apply(grown, *model.inputs), outputs, 1e-12, 1)
    assert np.all(grown["layers"][0]["skip"][:, 6] == np.mean(layer["skip"], 1))


LEARN_FIRST = {
    "divergence": ("read", 0),
    "factorization machine": ("embed", 1),
    "capsules": ("write/kernel", 1),
}


@pytest.mark.parametrize(
    "name",
    LEARN_FIRST,
)
@pytest.mark.long
def test_new_units_learn_though_they_are_zero(name: str) -> None:
    big, growth = planned(name, 9)
    grown = dw.grow(before(name)[2], growth, fresh=fill(big.shapes, 2))
    path, axis = LEARN_FIRST[name]
    slopes = np.moveaxis(leaves_by_path(gradient(big, grown))[path], axis, 0)
    assert not np.any(np.moveaxis(leaves_by_path(grown)[path], axis, 0)[6:])
    assert np.all(np.abs(slopes[6:].reshape(3, -1)).max(1) > 1e-6)


def test_units_that_never_learn_are_not_the_default() -> None:
    model, widths, _ = before("towers")
    growth = dw.plan(widths, target=towers(n=9).shapes, target_apply=model.apply)
    name = widths.of(*CASES["towers"].place).name
    assert growth.change[name].strategy == dw.strategies.replicate(split="roots")
    strategy = {name: dw.strategies.zeros()}
    dw.plan(widths, target=towers(n=9).shapes, target_apply=model.apply, strategy=strategy)


def test_a_number_that_may_follow_from_the_size_is_settled_by_the_function() -> None:
    widths, big = widths_of(divergence()(n=4)), divergence()(n=6)  # 2 is sqrt(4)
    for function in (None, big.apply):
        growth = dw.plan(widths, target=big.shapes, target_apply=function)
        assert growth.change["mean"].strategy.name == "zero_incoming"


# What does not ------------------------------------------------------------------------------------


def rotated(x: Any) -> Any:
    half = x.shape[-1] // 2
    angle = jnp.arange(x.shape[1])[:, None] / 10 ** (jnp.arange(half) / half)[None]
    sin, cos = jnp.sin(angle)[None, :, None], jnp.cos(angle)[None, :, None]
    a, b = jnp.split(x, 2, -1)
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], -1)


def normalized(x: Any) -> Any:
    return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + EPSILON)


def attention_with(change: Callable[[Any], Any]) -> Model:
    def score(q: Any, k: Any) -> Any:
        q, k = change(q), change(k)
        return jnp.einsum("bthd,bshd->bhts", q, k) * q.shape[-1] ** -0.5

    shapes = attention_shapes(5, 3, 6)
    return weighted(shapes, lambda p, x: attend(p, x, score), data(2, 7, 5))


def tanh_scores() -> Model:
    """No array's scale can make up for the factor."""
    return attention_with(jnp.tanh)


def unusual_scale() -> Model:
    """Three over the root of the size, which may be anything."""
    return scores(lambda n: 3 * n**-0.5)()


def sinusoids() -> Model:
    def norm(params: Any, x: Any, epsilon: float) -> Any:
        return rms_norm(params["g"], x + row(jnp.sin(jnp.arange(6.0)), 2), epsilon)

    return stream(norm, g=1)()


def unbiased(params: Any, x: Any, epsilon: float) -> Any:
    mean = jnp.mean(x, -1, keepdims=True)
    return (x - mean) / jnp.sqrt(jnp.var(x, -1, ddof=1, keepdims=True) + epsilon)


def mean_of_another(n: int = 6) -> Model:
    """Centred by the means of other places: the rest of the units is not zero."""

    def apply(params: Any, x: Any) -> Any:
        x = affine(params["write"], x)
        return affine(params["head"], jnp.tanh(x - x.mean(-1).T[..., None]))

    return weighted({"write": dense(4, n), "head": dense(n, 3)}, apply, data(3, 3, 4))


REFUSED = {
    "norms of queries and keys": (lambda: attention_with(normalized), ("q", 2)),
    "tanh of queries and keys": (tanh_scores, ("q", 2)),
    "table of positions": (sinusoids, ("write/bias", 0)),
    "unbiased variance": (stream(unbiased), ("write/bias", 0)),
    "divergence from elsewhere": (divergence(shift=1), ("read", 0)),
    "silent rows of unit length": (divergence(unit_rows=True), ("read", 0)),
    "a bias that is read twice": (scaled_sum(twice=True), ("down", 1)),
}


@pytest.mark.parametrize("name", some(REFUSED, 2))
def test_what_has_no_exact_recipe_is_refused(name: str) -> None:
    build, place = REFUSED[name]
    widths = widths_of(build())
    width = widths.of(*place)
    for make in STRATEGIES.values():
        with pytest.raises(ValueError, match="cannot plan this growth"):
            dw.plan(widths, {width.name: 2 * width.size}, strategy=make())


# No recipe is known of one program alone. The function in the new sizes shows what is exact.
SHOWN = {
    "rotary": (lambda: attention_with(rotated), ("q", 2), "zero_outgoing"),
    "an unusual scale": (unusual_scale, ("q", 2), "zero_outgoing"),
    "a scale with the logarithm of 2": (
        lambda: scores(lambda n: n**-0.5 / np.log(2))(),
        ("q", 2),
        "zero_outgoing",
    ),
    "codes that are told": (codebook(told=True), ("codes", 0), "replicate"),
}


@pytest.mark.parametrize(
    "name",
    [n if "scale" in n else long(n) for n in SHOWN],
)
def test_the_function_in_the_new_size_shows_an_exact_growth(name: str) -> None:
    build, place, exact = SHOWN[name]
    model = build()
    widths, variables = widths_of(model), fill(model.shapes, 1)
    width = widths.of(*place)
    growth = dw.plan(widths, {width.name: 2 * width.size}, strategy=STRATEGIES[exact]())
    new = dw.grow(variables, growth, key=jax.random.key(0))
    before, after = (model.apply(v, *model.inputs) for v in (variables, new))
    np.testing.assert_allclose(after, before, rtol=0, atol=1e-12 * np.max(np.abs(before)))
    for other in STRATEGIES.keys() - {exact}:
        with contextlib.suppress(ValueError):
            growth = dw.plan(widths, {width.name: 2 * width.size}, strategy=STRATEGIES[other]())
            after = model.apply(dw.grow(variables, growth, key=jax.random.key(0)), *model.inputs)
            np.testing.assert_allclose(after, before, rtol=0, atol=1e-12 * np.max(np.abs(before)))


def test_copies_take_the_scale_that_their_size_asks_for() -> None:
    model, widths, variables = before("summed scores")
    big = CASES["summed scores"].build(n=22)
    growth = dw.plan(
        widths,
        target=big.shapes,
        target_apply=big.apply,
        strategy={widths.of("k", 2).name: dw.strategies.tile()},
    )
    outputs = model.apply(variables, *model.inputs)
    grown = dw.grow(variables, growth, fresh=fill(big.shapes, 2))
    assert_close(big.apply(grown, *big.inputs), outputs, 1e-12, np.max(np.abs(outputs)))


def test_a_growth_says_what_a_scale_is_added_to() -> None:
    big = CASES["gemma"].build(n=12)
    widths = before("gemma")[1]
    growth = dw.plan(widths, target=big.shapes, target_apply=big.apply)
    assert "(1 + array) times 0.707107" in str(growth)


def test_a_growth_says_that_scales_of_silent_units_are_as_in_a_new_network() -> None:
    _, widths, variables = before("llama")
    growth = dw.plan(widths, {"embed": 12})
    assert "axis 0 free (embed)" in next(x for x in str(growth).splitlines() if "norm" in x)
    grown = dw.grow(variables, growth, key=jax.random.key(0))
    assert np.all(grown["norm_0"][widths["embed"].size :] == 1)


def test_an_array_is_rescaled_only_by_a_factor() -> None:
    def apply(params: Any, x: Any) -> Any:
        h = x @ params["up"]
        h = h - h.mean(-1, keepdims=True)
        return h / jnp.sqrt((h * h).mean(-1, keepdims=True) + 1e-6) @ params["down"]

    params = {"up": jnp.ones((3, 4)), "down": jnp.ones((4, 2))}
    widths = dw.trace(apply, params, jnp.ones((5, 3)))
    twice, more = dw.plan(widths, {"up": 8}), dw.plan(widths, {"up": 6})
    assert not twice.factors and "times" not in str(twice)
    assert set(more.factors) == {"up", "down"}


def flipped(p: Any, h: Any, x: Any) -> Any:
    """Scales in another order than the layers."""
    stacks = p["stack"][::-1], p["scales"]
    return jax.lax.scan(lambda x, w: (x + row(w[1], 2) * (h @ w[0]), None), x, stacks)[0]


def in_another_loop(p: Any, h: Any, x: Any) -> Any:
    def inner(x: Any, kernel: Any) -> Any:
        return jax.lax.scan(lambda x, s: (x + row(s, 2) * (h @ kernel), None), x, p["scales"])

    return jax.lax.scan(lambda x, kernel: (inner(x, kernel)[0], None), x, p["stack"])[0]


NOT_WEIGHED: dict[str, Callable[[Any, Any, Any], Any]] = {
    "read elsewhere": lambda p, h, x: row(p["a"], 2) * (h @ p["w"]) + h @ p["w"],
    "bias read elsewhere": lambda p, h, x: (
        row(p["a"], 2) * affine(p["v"], h) + row(p["v"]["bias"], 2)
    ),
    "scale read elsewhere": lambda p, h, x: row(p["a"], 2) * (h @ p["w"]) + row(p["a"], 2),
    "a number beside": lambda p, h, x: row(p["a"], 2) * (h @ p["w"] + 1),
    "a branch": lambda p, h, x: (
        row(p["a"], 2) * jax.lax.cond(h[0, 0] > 0, lambda: h @ p["w"], lambda: affine(p["v"], h))
    ),
    "scaled twice": lambda p, h, x: row(p["a"], 2) * (row(p["b"], 2) * (h @ p["w"])),
    "the stream itself": lambda p, h, x: row(p["a"], 2) * (h @ p["w"] + x),
    "one plus": lambda p, h, x: (1 + row(p["a"], 2)) * (h @ p["w"]),
    "rectified": lambda p, h, x: row(p["a"], 2) * jax.nn.relu(h @ p["w"]),
    "for each token": lambda p, h, x: p["of_tokens"] * (h @ p["w"]),
    "flipped": flipped,
    "in another loop": in_another_loop,
}


@pytest.mark.parametrize("name", some(NOT_WEIGHED, 3))
def test_what_writes_scaled_units_must_do_nothing_else(name: str) -> None:
    def apply(params: Any, x: Any) -> Any:
        x = affine(params["write"], x)
        h = jnp.tanh(affine(params["up"], jax.nn.standardize(x)))
        return affine(params["head"], jax.nn.standardize(x + NOT_WEIGHED[name](params, h, x)))

    n = 6
    shapes = {"write": dense(4, n), "up": dense(n, 7), "w": f64(7, n), "v": dense(7, n)}
    shapes |= {"a": f64(n), "b": f64(n), "of_tokens": f64(5, n), "head": dense(n, 3)}
    shapes |= {"stack": f64(3, 7, n), "scales": f64(3, n)}
    widths = widths_of(weighted(shapes, apply, data(5, 4)))
    grows = widths.of("write/bias", 0).name
    assert dw.plan(widths, {grows: 12}).change[grows].recipe
    if name != "a branch":  # whose sides are written alike
        with pytest.raises(ValueError, match="cannot plan this growth"):
            dw.plan(widths, {grows: 9})


@pytest.mark.parametrize("name", some(["softmax", "post-norm", "relu, norm", "rms by tiles"], 4))
def test_some_only_grow_to_multiples(name: str) -> None:
    widths = before(name)[1]
    width = widths.of(*CASES[name].place)
    for strategy in (dw.strategies.tile(), dw.strategies.replicate()):
        with pytest.raises(ValueError, match="cannot plan this growth"):
            dw.plan(widths, {width.name: 2 * width.size + 1}, strategy=strategy)


def test_the_mean_must_be_that_of_the_same_array() -> None:
    widths = widths_of(mean_of_another())
    name = widths.of("write/bias", 0).name
    assert ("head/kernel", "outgoing") in dw.plan(widths, {name: 9}).change[name].recipe.zeros


def test_parts_that_are_summed_up_together_are_rescaled_together() -> None:
    small, big = (latents(joint=True)(n) for n in (6, 9))
    growth = dw.plan(widths_of(small), target=big.shapes, target_apply=big.apply)
    variables = fill(small.shapes, 1)
    grown = dw.grow(variables, growth, fresh=fill(big.shapes, 2))
    new, old = big.apply(grown, *big.inputs), small.apply(variables, *small.inputs)
    assert_close(new, old, 1e-10, np.max(np.abs(old)))


def test_arrays_make_up_for_an_epsilon_that_follows_from_no_size() -> None:
    model, widths, variables = before("llama")
    assert dw.plan(widths, {"embed": 12}).notes == ()  # epsilons stay
    big = CASES["llama"].build(n=12, epsilon=5e-3)
    growth = dw.plan(widths, target=big.shapes, target_apply=big.apply)
    wide = dw.grow(variables, growth, key=jax.random.key(0))
    both = model.apply, variables, big.apply, wide
    assert dw.compare(*both, *model.inputs).relative < 1e-12


@pytest.mark.parametrize(
    ("score", "said"),
    [
        (lambda s, d: s * d**-0.5, "has 0.25 instead of 0.377964"),
        (lambda s, d: s / np.sqrt(d), "has 4 instead of 2.64575"),
    ],
)
def test_notes_say_which_numbers_arrays_make_up_for(score: Any, said: str) -> None:
    def scored(q: Any, k: Any) -> Any:
        return score(jnp.einsum("bthd,bshd->bhts", q, k), q.shape[-1])

    shapes = attention_shapes(5, 3, 7)
    model = weighted(shapes, lambda p, x: attend(p, x, scored), data(2, 7, 5))
    (note,) = dw.plan(widths_of(model), {("q", 2): 16}).notes
    assert note == f"q[head_dim]: the larger model {said}; rescaled arrays make up for it"


def test_norms_and_what_writes_their_units_are_rescaled() -> None:
    recipe = dw.plan(before("llama")[1], {"embed": 12}).change["embed"].recipe
    powers = dict(recipe.powers)
    assert [powers[f"norm_{i}"] for i in range(3)] == [-0.5] * 3
    assert {power for path, power in powers.items() if "norm" not in path} == {0.5}
    assert recipe.blank == ("norm_0", "norm_1", "norm_2")


@pytest.mark.parametrize(
    "read",
    [
        lambda h: jnp.sum(0.25 * jnp.exp(h), -1),
        lambda h: jnp.exp(h) @ jnp.full(h.shape[-1], 0.25),
        lambda h: jnp.einsum("ti,->t", jnp.exp(h), jnp.float64(0.25)),
    ],
)
def test_a_number_that_stays_is_not_one_that_follows_from_the_size(read: Any) -> None:
    def apply(params: Any, x: Any) -> Any:
        return read(x @ params["up"]) @ params["out"]

    x = data(4, 5)
    params = {"up": f64(5, 4), "out": f64(4, 2)}
    shape = jax.eval_shape(read, f64(4, 4)).shape
    if len(shape) == 1:
        params["out"] = f64(shape[0], 2)
    widths = dw.trace(apply, params, x)
    big = params | {"up": f64(5, 8)} | ({"out": f64(8, 2)} if len(shape) == 2 else {})
    for asked in ({"sizes": {"up": 8}}, {"target": big, "target_apply": apply}):
        with pytest.raises(ValueError, match="cannot plan"):
            dw.plan(widths, **asked)


def test_the_larger_model_tells_that_a_number_stays_so_that_units_are_copied() -> None:
    def apply(params: Any, x: Any) -> Any:
        return jax.nn.softmax(0.25 * (x @ params["up"])) @ params["out"]

    shapes, x = {"up": f64(5, 4), "out": f64(4, 2)}, data(4, 5)
    variables, widths = fill(shapes, 1), dw.trace(apply, shapes, x)
    with pytest.raises(ValueError, match="at least one unit, got 0"):
        dw.plan(widths, {"up": 0}, target_apply=lambda p, x: apply(p, x) / p["up"].shape[1] ** -0.5)
    for growth in (dw.plan(widths, {"up": 8}), dw.plan(widths, {"up": 8}, target_apply=apply)):
        wide = dw.grow(variables, growth)
        assert dw.compare(apply, variables, apply, wide, x).relative < 1e-12


def test_a_mean_by_other_weights_than_one_over_the_size_is_none() -> None:
    """A module that holds its size, and a number beside it, are not tried in other sizes."""

    class Network(nn.Module):
        mean: Callable[[Any], Any]

        @nn.compact
        def __call__(self, x: Any) -> Any:
            return self.mean(jnp.tanh(nn.Dense(8, name="up")(x)))

    def planned(mean: Callable[[Any], Any]) -> dw.Growth:
        return dw.plan(widths_of(linen(Network(mean), data(2, 3))), {"up": 16})

    (note,) = planned(lambda h: h.mean(-1)).notes
    assert note.startswith("new units of up are copies, and stay so")
    with pytest.raises(ValueError, match="up: 0.125 .* may follow from a size"):
        planned(lambda h: h @ jnp.full(8, 0.125))


@pytest.mark.parametrize("scaled", ["...k,k->...k", long("k,...k->...k")])
@pytest.mark.parametrize("knows_sizes", [False, long(True)])
def test_a_norm_may_scale_by_einsum(scaled, knows_sizes):
    """A sum of products that sums over nothing is a product, as in MaxText's RMSNorm."""

    def apply(params, x):
        assert not knows_sizes or params["embed"].shape == (5, 8)
        h = x @ params["embed"]
        h = h + jnp.tanh(h @ params["up"]) @ params["down"]
        normed = h * jax.lax.rsqrt(jnp.mean(h * h, -1, keepdims=True) + 1e-6)
        operands = (normed, params["scale"]) if scaled[0] == "." else (params["scale"], normed)
        return jnp.einsum(scaled, *operands) @ params["out"]

    keys = iter(jax.random.split(jax.random.key(0), 9))
    shapes = {"embed": (5, 8), "up": (8, 6), "down": (6, 8), "scale": (8,), "out": (8, 3)}
    params = {name: jax.random.normal(next(keys), shape) for name, shape in shapes.items()}
    x = jax.random.normal(next(keys), (4, 7, 5))
    growth = dw.plan(dw.trace(apply, params, x), {"embed": 12})
    if not knows_sizes:
        wide = dw.grow(params, growth, key=next(keys))
        np.testing.assert_allclose(apply(wide, x), apply(params, x), 1e-9, 1e-10)
    assert growth.evidence.samples and growth.shapes["scale"] == (12,)
