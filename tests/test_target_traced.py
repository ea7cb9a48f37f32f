"""What the shapes of a larger model tell of networks that are traced, and what they hide."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_target import shaped

import dogwood_jax as dw


def attend(heads):
    def apply(params, x):
        split = (heads, params["out"].shape[0] // heads)
        q, k, v = (
            a.reshape(*x.shape[:-1], *split) for a in jnp.split(x @ params["qkv"], 3, axis=-1)
        )
        mixed = jax.nn.dot_product_attention(q, k, v, scale=1.0)
        return mixed.reshape(*x.shape[:-1], -1) @ params["out"]

    return apply


def test_a_traced_attention_layer_grows_to_what_its_shapes_tell():
    rng = np.random.default_rng(0)
    old = {"qkv": rng.normal(size=(6, 36)), "out": rng.normal(size=(12, 6))}
    x = rng.normal(size=(1, 5, 6))
    widths = dw.trace(attend(3), old, x)
    growth = dw.plan(widths, target=shaped(qkv=(6, 45), out=(15, 6)))
    assert growth.notes[0].startswith("qkv: the larger model must split 15 into 3 [heads] x 5 ")
    new = dw.grow(old, growth, key=jax.random.key(0))
    np.testing.assert_allclose(attend(3)(new, x), attend(3)(old, x), rtol=1e-5)


@pytest.mark.parametrize(("heads", "split"), [(1, "1 x 12"), (12, "12 x 1")])
def test_factors_of_size_1_stay_what_they_are(heads, split):
    widths = dw.trace(attend(heads), shaped(qkv=(6, 36), out=(12, 6)), jnp.ones((1, 5, 6)))
    target = shaped(qkv=(6, 72), out=(24, 6))
    note = f"the network splits an axis into {split}: the 1 must be 1 in the larger model, too"
    assert any(note in text for text in dw.plan(widths, target=target).notes)
    with pytest.raises(ValueError, match="the larger model computes something else"):
        dw.plan(widths, target=target, target_apply=attend(4))


@pytest.mark.parametrize(("groups", "split"), [(1, "1 x 4"), (4, "4 x 1")])
def test_groups_of_size_1_stay_what_they_are(groups, split):
    def apply(params, x):
        y = (x @ params["up"]).reshape(x.shape[0], groups, -1)
        return (y / jnp.linalg.norm(y, axis=-1, keepdims=True)).reshape(x.shape[0], -1)

    widths = dw.trace(apply, shaped(up=(6, 4)), jnp.ones((3, 6)))
    assert f"the network splits an axis into {split}: " in str(widths["up"].notes)


def test_scores_of_one_unit_may_be_scaled_by_its_size():
    def attend(size):
        return lambda params, x: jax.nn.softmax(x @ params["q"] @ (x @ params["k"]).T / size**0.5)

    rng = np.random.default_rng(0)
    old, x = {name: rng.normal(size=(3, 1)) for name in "qk"}, rng.normal(size=(4, 3))
    widths, target = dw.trace(attend(1), old, x), shaped(q=(3, 4), k=(3, 4))
    (note,) = dw.plan(widths, target=target).notes
    assert "the program does not show whether they are scaled" in note
    growth = dw.plan(widths, target=target, target_apply=attend(4))
    assert not growth.notes
    new = dw.grow(old, growth, key=jax.random.key(0))
    np.testing.assert_allclose(attend(4)(new, x), attend(1)(old, x), rtol=1e-12)


TABLES_THAT_STAY = {
    "slopes of ALiBi": lambda n: 2.0 ** -(jnp.arange(n) + 1.0),
    "slopes made by NumPy": lambda n: jnp.asarray(2.0 ** -(np.arange(n) + 1.0)),
}
TABLES_THAT_CHANGE = {
    "a share of all": lambda n: 2.0 ** (-8 * (jnp.arange(n) + 1.0) / n),
    "made by NumPy": lambda n: jnp.asarray(2.0 ** (-np.arange(n) / n)),
    "the last first": lambda n: jnp.asarray(np.arange(n)[::-1] + 1.0),
    "not finite": lambda n: jnp.log(5.0 - jnp.arange(n)),
    "NaN for new units": lambda n: (
        jnp.asarray(np.sqrt(np.clip(5.0 - np.arange(n), -1, 9) + 0j).real)
        + jnp.asarray([1.0] * min(n, 4) + [np.nan] * (n - 4))
    ),
    "a power of what may be negative": lambda n: (5.0 - jnp.arange(n)) ** 0.3,
    "of part of the axis": lambda n: (jnp.arange(2 * n).reshape(2, n) + 1.0)[1],
    "summed from behind": lambda n: jax.lax.cumsum(jnp.arange(n) + 1.0, reverse=True),
}


def with_table(table):
    return lambda p, x: (jnp.tanh(x @ p["up"]) * table(p["up"].shape[1])[None]) @ p["down"]


@pytest.mark.parametrize("name", TABLES_THAT_STAY)
def test_a_table_that_stays_for_old_units_is_seen_in_the_larger_model(name):
    apply = with_table(TABLES_THAT_STAY[name])
    rng = np.random.default_rng(0)
    old = {"up": rng.normal(size=(3, 4)), "down": rng.normal(size=(4, 2))}
    widths, target = (
        dw.trace(apply, old, x := rng.normal(size=(5, 3))),
        shaped(up=(3, 7), down=(7, 2)),
    )
    for growth in (
        dw.plan(widths, {"up": 7}),  # asks the network's own function
        dw.plan(widths, target=target, target_apply=apply),
    ):
        new = dw.grow(old, growth, key=jax.random.key(0))
        np.testing.assert_allclose(apply(new, x), apply(old, x), rtol=1e-12)
    with pytest.raises(ValueError, match="computes something else"):
        dw.plan(widths, target=target, target_apply=apply, strategy=dw.strategies.replicate())


def test_copies_have_other_places_in_a_table_than_their_units():
    def apply(p, x):
        return x @ p["u"] @ (p["w"] + jnp.eye(p["w"].shape[0])) @ p["o"]

    rng, x = np.random.default_rng(0), jnp.ones((5, 3))
    old = {k: rng.normal(size=s) for k, s in {"u": (3, 4), "w": (4, 4), "o": (4, 2)}.items()}
    widths, target = dw.trace(apply, old, x), shaped(u=(3, 8), w=(8, 8), o=(8, 2))
    new = dw.grow(old, dw.plan(widths, target=target, target_apply=apply), key=jax.random.key(0))
    np.testing.assert_allclose(apply(new, x), apply(old, x), rtol=1e-12)
    copied = {widths.of("u", 1).name: dw.strategies.tile()}
    growth = dw.plan(widths, target=target, target_apply=apply, strategy=copied)
    new = dw.grow(old, growth, key=jax.random.key(0))
    np.testing.assert_allclose(apply(new, x), apply(old, x), rtol=1e-12)


@pytest.mark.parametrize("name", TABLES_THAT_CHANGE)
def test_a_table_that_may_change_is_refused(name):
    apply = with_table(TABLES_THAT_CHANGE[name])
    widths = dw.trace(apply, shaped(up=(3, 4), down=(4, 2)), jnp.ones((5, 3)))
    with pytest.raises(ValueError, match="computes something else|is not finite|cut"):
        dw.plan(widths, target=shaped(up=(3, 7), down=(7, 2)), target_apply=apply)


# What is made with a table that stays must be finite for new units, too: zero times NaN is NaN.
NOT_FINITE = {
    "a quotient": lambda h, n: h / (8.0 - jnp.arange(n))[None],
    "a quotient by a constant": lambda h, n: (
        h / jnp.asarray(np.clip(8.0 - np.arange(n), 0, 9))[None]
    ),
    "a remainder": lambda h, n: jax.lax.rem(h, jnp.broadcast_to(8.0 - jnp.arange(n), h.shape)),
    "infinity elsewhere": lambda h, n: jnp.where((jnp.arange(n) < 8)[None], h, jnp.inf),
    "an overflow": lambda h, n: h * jnp.exp(100.0 * jnp.arange(n))[None],
    "a table of infinities": lambda h, n: h * jnp.where(jnp.arange(n) < 8, 1.0, jnp.inf)[None],
    "a table of another sign": lambda h, n: jnp.sqrt(
        jax.nn.relu(h) + jnp.asarray(np.where(np.arange(n) < 4, 1.0, -5.0))[None]
    ),
}


@pytest.mark.parametrize("name", NOT_FINITE)
def test_what_a_table_makes_must_be_finite_for_new_units(name):
    def apply(p, x):
        return NOT_FINITE[name](jnp.tanh(x @ p["up"]), p["up"].shape[1]) @ p["down"]

    widths = dw.trace(apply, shaped(up=(3, 4), down=(4, 2)), jnp.ones((5, 3)))
    with pytest.raises(ValueError, match="computes something else|not finite|entries of its own"):
        dw.plan(widths, target=shaped(up=(3, 12), down=(12, 2)), target_apply=apply)


def test_what_becomes_of_a_table_is_not_guessed():
    """Without an evaluation, nothing tells whether old units keep their numbers."""

    def apply(params, x):
        hidden = x @ params["up"]
        size = hidden.shape[-1]
        return (hidden * 10000.0 ** (-jnp.arange(size) / size)[None]) @ params["down"]

    widths = dw.trace(apply, shaped(up=(3, 4), down=(4, 2)), jnp.ones((5, 3)))
    target = shaped(up=(3, 8), down=(8, 2))
    growth = dw.plan(widths, target=target, target_apply=apply)
    assert "old unit i becomes unit 2 i" in str(growth.notes)
    unchecked = dw.plan(widths, target=target, target_apply=apply, check=False)
    assert "not checked" in f"{unchecked}"
