"""Fewer units by means, and several networks in one mixture."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiers import long

import dogwood_jax as dw

HEADS, SIZE, STREAM, TIME = 8, 4, 6, 5
X = np.sin(np.arange(30.0)).reshape(TIME, STREAM)


def attention(params, x):
    """Takes any number of heads of keys that divides that of queries."""
    h = 0
    for layer in params["layers"]:
        q, k, v = (jnp.einsum("td,dnh->tnh", x, layer[name]) for name in "qkv")
        h = h + jnp.einsum("tnh,nhd->td", jax.nn.dot_product_attention(q, k, v), layer["o"])
    return h


def flat(params, x):
    """The same, with heads and their dimensions along one axis."""
    q, k, v = (x @ params[name] for name in "qkv")
    q, k, v = (array.reshape(TIME, -1, SIZE) for array in (q, k, v))
    return jax.nn.dot_product_attention(q, k, v).reshape(TIME, -1) @ params["o"]


def drawn(seed=0, layers=2):
    shapes = dict.fromkeys("qkv", (STREAM, HEADS, SIZE)) | {"o": (HEADS, SIZE, STREAM)}
    keys = iter(jax.random.split(jax.random.key(seed), 4 * layers))
    draw = lambda shape: jax.random.normal(next(keys), shape)  # noqa: E731
    return {"layers": [{n: draw(s) for n, s in shapes.items()} for _ in range(layers)]}


@pytest.mark.long
def test_heads_of_keys_and_values_become_means():
    params = drawn()
    widths = dw.trace(attention, params, X)
    with pytest.warns(UserWarning, match="outputs move by .*%"):
        small = dw.average(params, widths, {(f"layers/*/{name}", 1): 2 for name in "kv"})
    for old, new in zip(params["layers"], small["layers"], strict=True):
        for name in "kv":
            expected = old[name].reshape(STREAM, 2, 4, SIZE).mean(2)
            np.testing.assert_allclose(new[name], expected, rtol=1e-6)
        np.testing.assert_array_equal(new["q"], old["q"])
    assert attention(small, X).shape == X.shape


@pytest.mark.long
def test_heads_that_were_copies_become_one_without_a_change():
    params = drawn()
    for layer in params["layers"]:
        for name in "kv":
            layer[name] = jnp.repeat(layer[name][:, ::4], 4, axis=1)
    widths = dw.trace(attention, params, X)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        small = dw.average(params, widths, {(f"layers/*/{name}", 1): 2 for name in "kv"})
    np.testing.assert_allclose(attention(small, X), attention(params, X), rtol=1e-5, atol=1e-6)


def test_heads_along_an_axis_with_their_dimensions_stay_together():
    wide = drawn(layers=1)["layers"][0]
    params = {
        n: a.reshape(STREAM, -1) if n != "o" else a.reshape(-1, STREAM) for n, a in wide.items()
    }
    widths = dw.trace(flat, params, X)
    half = jax.tree.map(lambda a: a.astype(jnp.bfloat16), params)
    with pytest.warns(UserWarning, match="outputs move"):
        small = dw.average(
            params, widths, {("k", 1): [(0, 7), (1, 2, 3)], ("v", 1): [(0, 7), (1, 2, 3)]}
        )
    expected = jnp.stack([wide["k"][:, [0, 7]].mean(1), wide["k"][:, 1:4].mean(1)], 1)
    np.testing.assert_allclose(small["k"], expected.reshape(STREAM, -1), rtol=1e-6)
    jitted = jax.jit(lambda p: dw.average(p, widths, {("k", 1): 2}))(half)
    assert jitted["k"].dtype == jnp.bfloat16 and jitted["k"].shape == (STREAM, 8)


def test_rows_of_a_vocabulary_become_means():
    def apply(params, tokens):
        return params["table"][tokens] @ params["out"]

    params = {"table": jnp.arange(12.0).reshape(6, 2), "out": jnp.ones((2, 3))}
    widths = dw.trace(apply, params, jnp.zeros(4, int))
    with pytest.warns(UserWarning, match="outputs move"):
        small = dw.average(params, widths, {("table", 0): [(0, 1), (5,), (2, 3, 4)]})
    np.testing.assert_array_equal(small["table"], [[1, 2], [10, 11], [6, 7]])


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({("layers/*/w", 1): 2}, r"layers/\*/w: matches the path of no array"),
        ({("layers/0/k", 1): 3}, "3 does not divide the 8 units"),
        ({("layers/0/k", 3): 2}, "expected an axis of"),
        ({("layers/0/k", 1): [(0, 8)]}, "groups of units below 8"),
        ({("layers/0/k", 1): [(), (1,)]}, "groups of units below 8"),
        ({"layers/0/k": 2}, "expected .path, axis."),
    ],
)
def test_wrong_groups_are_refused(groups, message):
    params = drawn()
    widths = dw.trace(attention, params, X)
    with pytest.raises(ValueError, match=message):
        dw.average(params, widths, groups)


# Several networks -------------------------------------------------------------------------------


def dense(params, x):
    return (x + jax.nn.relu(x @ params["up"]) @ params["down"]) @ params["out"]


def stacked(params, x):
    gates, which = jax.lax.top_k(jax.nn.softmax(x @ params["router"]), 2)
    gates = jnp.einsum("tk,tke->te", gates, jax.nn.one_hot(which, 3))
    h = jax.nn.relu(jnp.einsum("td,edf->tef", x, params["up"]))
    return (x + jnp.einsum("te,tef,efd->td", gates, h, params["down"])) @ params["out"]


def sources(count):
    shapes = {"up": (STREAM, 7), "down": (7, STREAM), "out": (STREAM, 2)}
    keys = iter(jax.random.split(jax.random.key(3), 3 * count))
    return [{n: jax.random.normal(next(keys), s) for n, s in shapes.items()} for _ in range(count)]


@pytest.mark.long
def test_experts_come_from_each_network_and_the_rest_is_averaged():
    several = sources(2)
    shapes = {
        "router": (STREAM, 3),
        "up": (3, STREAM, 7),
        "down": (3, 7, STREAM),
        "out": (STREAM, 2),
    }
    target = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
    widths = dw.trace(dense, several[0], X)
    growth = dw.upcycle(widths, target=target, target_apply=stacked)
    with pytest.warns(UserWarning, match=r"networks by [\d.]+%, [\d.]+% \(root mean square"):
        mixed = dw.training.grow_several(
            several, growth, key=jax.random.key(1), target_apply=stacked
        )
    for expert, source in enumerate((0, 1, 0)):
        for name in ("up", "down"):
            np.testing.assert_array_equal(mixed[name][expert], several[source][name])
    np.testing.assert_allclose(mixed["out"], (several[0]["out"] + several[1]["out"]) / 2, rtol=1e-6)
    assert stacked(mixed, X).shape == (TIME, 2)
    alone = dw.training.grow_several(several[:1], growth, key=jax.random.key(1))
    jax.tree.map(
        np.testing.assert_array_equal, alone, dw.grow(several[0], growth, key=jax.random.key(1))
    )


def test_a_growth_without_experts_is_refused():
    (one,) = sources(1)
    growth = dw.plan(dw.trace(dense, one, X), {"up": 9})
    with pytest.raises(ValueError, match="does not replace an MLP by experts"):
        dw.training.grow_several([one], growth)
    with pytest.raises(TypeError, match="sources must be a list"):
        dw.training.grow_several(one, growth)


@pytest.mark.parametrize("fused", [long("runs"), "pairs"])
def test_heads_in_fused_kernels_stay_in_their_places(fused):
    """Keys and values are made by one kernel: all keys first, or by heads."""
    shape = (2, HEADS, SIZE) if fused == "runs" else (HEADS, 2, SIZE)

    def apply(params, x):
        kv = (x @ params["kv"]).reshape(TIME, *shape)
        k, v = (jnp.take(kv, i, axis=1 if fused == "runs" else 2) for i in (0, 1))
        q = (x @ params["q"]).reshape(TIME, HEADS, SIZE)
        return jax.nn.dot_product_attention(q, k, v).reshape(TIME, -1) @ params["o"]

    keys, total = iter(jax.random.split(jax.random.key(0), 3)), HEADS * SIZE
    shapes = {"q": (STREAM, total), "kv": (STREAM, 2 * total), "o": (total, STREAM)}
    params = {n: jax.random.normal(next(keys), s) for n, s in shapes.items()}
    small = dw.average(params, dw.trace(apply, params, X), {("kv", 1): 2})["kv"]
    wide = params["kv"].reshape(STREAM, *shape)
    if fused == "runs":
        expected = wide.reshape(STREAM, 2, 2, 4, SIZE).mean(3)
    else:
        expected = wide.reshape(STREAM, 2, 4, 2, SIZE).mean(2)
    np.testing.assert_allclose(small, expected.reshape(STREAM, -1), rtol=1e-6)


def test_more_networks_than_experts_are_refused():
    several = sources(4)
    shapes = {"router": (STREAM, 3), "up": (3, STREAM, 7), "down": (3, 7, STREAM)}
    shapes["out"] = (STREAM, 2)
    target = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
    growth = dw.upcycle(dw.trace(dense, several[0], X), target=target, target_apply=stacked)
    with pytest.raises(ValueError, match="got 4 networks for 3 experts"):
        dw.training.grow_several(several, growth, key=jax.random.key(1))
