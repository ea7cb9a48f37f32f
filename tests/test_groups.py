"""Grouped-query attention with more heads of keys and values, and the same query heads."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from networks import data, f64, fill
from tiers import in_tiers, long

import dogwood_jax as dw

HEADS, DIM, VALUE = 8, 4, 2
X = data(2, 5, 6)


def shapes_of(kv: int, layers: int = 1, split: bool = False) -> Any:
    """Arrays of attention layers, in which axes of heads are split from those of dimensions."""
    sizes = {"q": (HEADS, DIM), "k": (kv, DIM), "v": (kv, VALUE)}
    one = {n: f64(6, *size) if split else f64(6, size[0] * size[1]) for n, size in sizes.items()}
    one["o"] = f64(HEADS, VALUE, 6) if split else f64(HEADS * VALUE, 6)
    return [one for _ in range(layers)]


Mix = Callable[[Any], Any]


def network(kv: int, attend: Callable[..., Any]) -> Callable[..., Any]:
    def apply(params: Any, x: Any) -> Any:
        for p in params:
            q, k, v = (x @ p[name].reshape(6, -1) for name in "qkv")
            q, k, v = (y.reshape(2, 5, heads, -1) for y, heads in ((q, HEADS), (k, kv), (v, kv)))
            x = x + attend(q, k, v).reshape(2, 5, -1) @ p["o"].reshape(-1, 6)
        return x

    return apply


def by_groups(q: Any, k: Any, v: Any, change: Mix = lambda s: s, first: Mix = lambda k: k) -> Any:
    q = q.reshape(2, 5, k.shape[2], -1, DIM)
    scores = change(jnp.einsum("btkgd,bskd->bkgts", q, first(k)) / np.sqrt(DIM))
    return jnp.einsum("bkgts,bskd->btkgd", jax.nn.softmax(scores), v)


def by_repeating(q: Any, k: Any, v: Any) -> Any:
    k, v = (jnp.repeat(y, HEADS // y.shape[2], axis=2) for y in (k, v))
    scores = jnp.einsum("bthd,bshd->bhts", q, k) / np.sqrt(DIM)
    return jnp.einsum("bhts,bshd->bthd", jax.nn.softmax(scores), v)


def as_gemma(q: Any, k: Any, v: Any) -> Any:
    """Makes no groups where one head is shared by all or by none, and ``einsum`` drops its axis."""
    kv, heads = k.shape[2], q.shape[2]
    if kv in (1, heads):
        scores = jnp.einsum("bthd,bshd->bths", q, k)
        return jnp.einsum("bths,bshd->bthd", jax.nn.softmax(scores), v)
    groups = (2, 5, kv, heads // kv, -1)
    scores = jnp.einsum("btkgd,bskd->btkgs", q.reshape(groups), k).reshape(2, 5, heads, 5)
    y = jnp.einsum("btkgs,bskd->btkgd", jax.nn.softmax(scores).reshape(groups), v)
    return y.reshape(2, 5, heads, -1)


def without_axis(q: Any, k: Any, v: Any) -> Any:
    """Has no axis of heads where one head is shared by all."""
    if k.shape[2] > 1:
        return by_groups(q, k, v, masked)
    scores = jnp.einsum("bthd,bsd->bhts", q, k[:, :, 0]) / np.sqrt(DIM)
    return jnp.einsum("bhts,bsd->bthd", jax.nn.softmax(masked(scores)[0]), v[:, :, 0])


def heads_outside(q: Any, k: Any, v: Any) -> Any:
    """Has the axis of keys' heads before the one of positions, and their groups behind it."""
    q = q.reshape(2, 5, k.shape[2], -1, DIM)
    scores = jnp.einsum("btkgd,bskd->bktgs", q, k) / np.sqrt(DIM)
    return jnp.einsum("bktgs,bskd->btkgd", jax.nn.softmax(jnp.tanh(scores)), v)


def halves_swapped(x: Any) -> Any:
    """Cuts what each head computes in two, as rotary embeddings do."""
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([-second, first], axis=-1)


def pairs_turned(x: Any) -> Any:
    """Turns what each head computes in pairs, as rotary embeddings do where these interleave."""
    return jnp.stack([-x[..., 1::2], x[..., ::2]], axis=-1).reshape(x.shape)


def masked(scores: Any) -> Any:
    return jnp.where(jnp.tril(jnp.ones((5, 5), bool))[None, None, None], scores, -1e9)


EXACT = {
    "groups": (by_groups, 2, 4, {}),
    "a head for each query head": (by_groups, 2, 8, {}),
    "cut in two": (lambda q, k, v: by_groups(halves_swapped(q), k, v), 2, 4, {"split": True}),
    "turned in pairs": (lambda q, k, v: by_groups(q, k, v, first=pairs_turned), 2, 4, {}),
    "one head, turned in pairs": (lambda q, k, v: by_groups(pairs_turned(q), k, v), 1, 2, {}),
    "masked, keys normalized": (
        lambda *qkv: by_groups(*qkv, masked, jax.nn.standardize),
        2,
        4,
        {},
    ),
    "repeated": (by_repeating, 2, 4, {}),
    "as Gemma, then one for each": (as_gemma, 2, HEADS, {"split": True}),
    "two layers": (by_groups, 2, 4, {"layers": 2}),
    "one head, masked": (lambda *qkv: by_groups(*qkv, masked), 1, 4, {}),
    "one head, as Gemma": (as_gemma, 1, 2, {"split": True, "layers": 2}),
    "one head, repeated": (by_repeating, 1, 4, {}),
    "one head, repeated, then one for each": (by_repeating, 1, HEADS, {"split": True}),
    "one head, without its axis": (without_axis, 1, 4, {}),
    "one head, then one for each": (lambda *qkv: by_groups(*qkv, masked), 1, HEADS, {}),
    "one head, as Gemma, then one for each": (as_gemma, 1, HEADS, {"split": True, "layers": 2}),
    # Copies are alike, so their order does not matter.
    "one head, turned around, then one for each": (
        lambda *qkv: by_groups(*qkv, first=lambda k: jnp.flip(k, 2)),
        1,
        HEADS,
        {},
    ),
}


SHORT = ("groups", "repeated", "one head, masked")


@pytest.mark.parametrize("name", in_tiers(EXACT, short=SHORT))
def test_heads_of_keys_and_values_are_copied(name: str) -> None:
    attend, old, new, options = EXACT[name]
    shapes, target = shapes_of(old, **options), shapes_of(new, **options)
    small, large = network(old, attend), network(new, attend)
    variables = fill(shapes, 1)
    widths = dw.trace(small, shapes, X)
    growth = dw.plan(widths, target=target, target_apply=large)
    assert len(growth.notes) == len(shapes)
    queries = "all query heads" if old == 1 else f"the {HEADS // old} query heads"
    whose = "one for each" if new == HEADS and old == 1 else f"and {queries} that shared it"
    assert f" is copied {new // old} times, {whose}" in growth.notes[0]

    @jax.jit
    def run(variables: Any) -> Any:
        outputs, pull = jax.vjp(lambda v: small(v, X), variables)
        grown, back = jax.vjp(lambda v: dw.grow(v, growth), variables)
        new, pull_new = jax.vjp(lambda v: large(v, X), grown)
        gradients = pull(jnp.cos(outputs)), back(pull_new(jnp.cos(new))[0])
        return outputs, new, grown, gradients

    outputs, new, grown, gradients = run(variables)
    np.testing.assert_allclose(new, outputs, rtol=0, atol=1e-12 * abs(outputs).max())
    assert (grown[0]["q"] == variables[0]["q"]).all() and (grown[0]["o"] == variables[0]["o"]).all()
    for a, b in zip(*map(jax.tree.leaves, gradients), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-11 * abs(a).max())
    if name == "groups":
        dw.verify(small, variables, large, grown, X, growth=growth)
    tx = optax.adam(0.1)
    state = dw.grow_opt_state(tx.init(variables), growth, tx)
    assert jax.tree.map(jnp.shape, state[0].mu) == jax.tree.map(lambda s: s.shape, target)


def test_heads_are_copied_in_a_loop_over_layers(kv: int = 2) -> None:
    def looped(n: int) -> tuple[Any, Callable[..., Any]]:
        layer = network(n, by_groups)
        shapes = {name: f64(3, *one.shape) for name, one in shapes_of(n)[0].items()}
        return shapes, lambda p, x: jax.lax.scan(lambda x, p: (layer([p], x), None), x, p)[0]

    (shapes, small), (target, large) = looped(kv), looped(4)
    growth = dw.plan(dw.trace(small, shapes, X), target=target, target_apply=large)
    variables = fill(shapes, 1)
    outputs = small(variables, X)
    new = large(dw.grow(variables, growth), X)
    np.testing.assert_allclose(new, outputs, rtol=0, atol=1e-12 * abs(outputs).max())


def test_more_heads_of_all_kinds_are_no_copies() -> None:
    """The groups stay, so new heads are silent instead."""
    shapes, target = shapes_of(2, split=True), shapes_of(4, split=True)
    target[0]["q"], target[0]["o"] = f64(6, 2 * HEADS, DIM), f64(2 * HEADS, VALUE, 6)

    def apply(params: Any, x: Any) -> Any:
        (p,) = params
        q, k, v = (jnp.einsum("btm,mhd->bthd", x, p[name]) for name in "qkv")
        y = by_groups(q, k, v)
        return jnp.einsum("bthd,hdm->btm", y.reshape(2, 5, -1, VALUE), p["o"])

    growth = dw.plan(dw.trace(apply, shapes, X), target=target, target_apply=apply)
    assert {change.strategy.name for change in growth.changes} == {"zero_outgoing"}


REFUSED = {
    "a softmax over the group": lambda q, k, v: by_groups(q, k, v, lambda s: jax.nn.softmax(s, 2)),
    "centred in the group": lambda q, k, v: by_groups(
        q, k, v, lambda s: s - s.mean(2, keepdims=True)
    ),
    "summed up over the group before": lambda q, k, v: by_groups(
        q, k, v, lambda s: jnp.cumsum(s, 2)
    ),
    "a slope for each of the group": lambda q, k, v: by_groups(
        q, k, v, lambda s: s * jnp.arange(1.0, s.shape[2] + 1)[None, None, :, None, None]
    ),
    "a slope for each, by NumPy": lambda q, k, v: by_groups(
        q, k, v, lambda s: s * np.arange(1.0, s.shape[2] + 1).reshape(1, 1, -1, 1, 1)
    ),
    "keys mixed": lambda q, k, v: by_groups(q, k, v, first=lambda k: jnp.flip(k, 2)),
    "query heads in another order": lambda q, k, v: jnp.swapaxes(by_groups(q, k, v), 2, 3),
    "keys centred": lambda q, k, v: by_groups(
        q, k, v, first=lambda k: k - k.mean(2, keepdims=True)
    ),
    "a slope for each head of keys": lambda q, k, v: by_groups(
        q, k, v, lambda s: masked(s * jnp.arange(1.0, s.shape[1] + 1).reshape(1, -1, 1, 1, 1))
    ),
    "keys in the place of queries, if there are as many": lambda q, k, v: by_repeating(
        *((q, k, v) if k.shape[2] < HEADS else (k, q, v))
    ),
    "repeated keys in another order": lambda q, k, v: by_repeating(
        q, jnp.repeat(k, HEADS // k.shape[2], axis=2)[:, :, ::-1], v
    ),
    "keys in turn": lambda q, k, v: by_repeating(
        q, *(jnp.tile(y, (1, 1, HEADS // k.shape[2], 1)) for y in (k, v))
    ),
}


SWAPPED = "keys in the place of queries, if there are as many"
FOR_EACH = ("a softmax over the group", "summed up over the group before", SWAPPED)


@pytest.mark.parametrize(
    ("name", "kv", "larger"),
    [(name, kv, 4) for name in REFUSED if name not in (SWAPPED, "keys in turn") for kv in (1, 2)]
    + [(name, 1, HEADS) for name in FOR_EACH]
    + [(name, 2, HEADS) for name in ("keys mixed", "keys in turn", SWAPPED)],
)
def test_heads_that_are_mixed_cannot_be_copied(name: str, kv: int, larger: int) -> None:
    widths = dw.trace(network(kv, REFUSED[name]), shapes_of(kv), X)
    with pytest.raises(ValueError, match="cannot plan this growth"):
        dw.plan(widths, target=shapes_of(larger), target_apply=network(larger, REFUSED[name]))


def of_any_heads(params: Any, x: Any) -> Any:
    q, k, v = (jnp.einsum("btm,mhd->bthd", x, params[name]) for name in "qkv")
    y = x + jnp.einsum("bthd,hdm->btm", as_gemma(q, k, v).reshape(2, 5, -1, VALUE), params["o"])
    return y + jax.nn.relu(y @ params["up"]) @ params["down"]


def any_heads(kv: int, heads: int, hidden: int = 3) -> Any:
    q, k, v = f64(6, heads, DIM), f64(6, kv, DIM), f64(6, kv, VALUE)
    mlp = {"up": f64(6, hidden), "down": f64(hidden, 6)}
    return {"q": q, "k": k, "v": v, "o": f64(heads, VALUE, 6), **mlp}


@pytest.mark.parametrize(
    ("old", "new", "copies"),
    [
        ((1, 4), (3, 9), 3),
        long((1, 3), (5, 5), 5),
        long((2, 8), (6, 12), 2),
    ],
)
def test_more_query_heads_beside_copies(
    old: tuple[int, int], new: tuple[int, int], copies: int
) -> None:
    """Heads of keys and values are copied, and new ones are silent; another width grows, too."""
    small, large = any_heads(*old), any_heads(*new, hidden=5)
    growth = dw.plan(dw.trace(of_any_heads, small, X), target=large, target_apply=of_any_heads)
    assert f"is copied {copies} times" in growth.notes[0]
    variables = fill(small, 1)
    grown = dw.grow(variables, growth, key=jax.random.key(0))
    assert jnp.shape(grown["q"]) == (6, new[1], DIM) and grown["o"].any((1, 2)).sum() == old[1]
    run = jax.jit(of_any_heads)
    np.testing.assert_allclose(run(grown, X), run(variables, X), rtol=1e-12)


def fused(kv: int) -> tuple[Any, Callable[..., Any]]:
    """One kernel makes queries, keys and values."""
    sizes = HEADS * DIM, kv * DIM, kv * DIM

    def apply(p: Any, x: Any) -> Any:
        q, k, v = jnp.split(x @ p["qkv"], np.cumsum(sizes)[:-1].tolist(), axis=-1)
        q, k, v = (y.reshape(2, 5, -1, DIM) for y in (q, k, v))
        return by_groups(q, halves_swapped(k), v).reshape(2, 5, -1) @ p["o"]

    return {"qkv": f64(6, sum(sizes)), "o": f64(HEADS * DIM, 6)}, apply


def shared(kv: int) -> tuple[Any, Callable[..., Any]]:
    """Another layer, with fewer query heads, reads the same keys and values."""
    (shapes,) = shapes_of(kv)
    more = {"q": f64(6, HEADS // 2 * DIM), "o": f64(HEADS // 2 * VALUE, 6)}

    def apply(p: Any, x: Any) -> Any:
        k, v = ((x @ p["first"][name]).reshape(2, 5, kv, -1) for name in "kv")
        for layer in (p["first"], p["second"]):
            q = (x @ layer["q"]).reshape(2, 5, -1, DIM)
            x = x + by_groups(q, k, v).reshape(2, 5, -1) @ layer["o"]
        return x

    return {"first": shapes, "second": more}, apply


@pytest.mark.parametrize(("make", "kv"), [(fused, 2), long(shared, 1)])
def test_heads_beside_others_and_of_several_layers(make: Callable[..., Any], kv: int) -> None:
    (shapes, small), (target, large) = make(kv), make(2 * kv)
    growth = dw.plan(dw.trace(small, shapes, X), target=target, target_apply=large)
    assert "is copied 2 times" in growth.notes[0]
    variables = fill(shapes, 1)
    outputs, new = jax.jit(small)(variables, X), jax.jit(large)(dw.grow(variables, growth), X)
    np.testing.assert_allclose(new, outputs, rtol=0, atol=1e-12 * abs(outputs).max())


def test_copies_that_query_heads_cannot_divide_are_told() -> None:
    widths = dw.trace(of_any_heads, any_heads(2, 6), X)
    with pytest.raises(ValueError, match="may have 6 heads of keys and values, not 3"):
        dw.plan(widths, target=any_heads(3, 6), target_apply=of_any_heads)


def test_what_keeps_heads_from_copies_is_told() -> None:
    name = "a softmax over the group"
    widths = dw.trace(network(2, REFUSED[name]), shapes_of(2), X)
    with pytest.raises(ValueError, match=r"cannot be copied, because outputs depend on units"):
        dw.plan(widths, target=shapes_of(4), target_apply=network(4, REFUSED[name]))


def test_query_heads_beside_their_keys_are_told() -> None:
    def beside(kv: int) -> tuple[Any, Callable[..., Any]]:
        def apply(p: Any, x: Any) -> Any:
            y = (x @ p["qkv"]).reshape(2, 5, kv, -1, DIM)
            q, k, v = y[..., :-2, :], y[..., -2, :], y[..., -1, :]
            return by_groups(q.reshape(2, 5, HEADS, DIM), k, v).reshape(2, 5, -1) @ p["o"]

        return {"qkv": f64(6, (HEADS + 2 * kv) * DIM), "o": f64(HEADS * DIM, 6)}, apply

    (shapes, small), (target, large) = beside(2), beside(4)
    with pytest.raises(ValueError, match="interleaves query heads with their keys and values"):
        dw.plan(dw.trace(small, shapes, X), target=target, target_apply=large)


def test_heads_that_no_copies_make_up_are_added_in_two_growths() -> None:
    def planned(old: tuple[int, int], new: tuple[int, int]) -> dw.Growth:
        widths = dw.trace(of_any_heads, any_heads(*old), X)
        return dw.plan(widths, target=any_heads(*new), target_apply=of_any_heads)

    with pytest.raises(ValueError, match="two growths, the first one to 4 heads of keys"):
        planned((2, 4), (5, 5))
    assert planned((2, 4), (4, 4)).changes and planned((4, 4), (5, 5)).changes


@pytest.mark.parametrize("kv", [1, 2])
def test_shapes_alone_name_the_way_out(kv: int) -> None:
    widths = dw.trace(network(kv, by_groups), shapes_of(kv), X)
    with pytest.raises(ValueError, match="pass its function as target_apply=, and these heads are"):
        dw.plan(widths, target=shapes_of(4))


def test_one_head_becomes_one_for_each_query_head() -> None:
    one, two, all_ = (network(n, heads_outside) for n in (1, 2, HEADS))
    widths = dw.trace(one, shapes_of(1), X)
    dw.plan(widths, target=shapes_of(HEADS), target_apply=all_)
    dw.plan(widths, target=shapes_of(2), target_apply=two)
    dw.plan(dw.trace(two, shapes_of(2), X), target=shapes_of(HEADS), target_apply=all_)


def gated(p: Any, x: Any) -> Any:
    units = jnp.tanh(x @ p["up"])
    return (units * jax.nn.sigmoid(x @ p["gate"] + p["bias"][None, None])) @ p["down"]


GATED = fill({"up": f64(6, 8), "gate": f64(6, 1), "bias": f64(1), "down": f64(8, 3)}, 1)


def scaled(p: Any, x: Any) -> Any:
    return x + jnp.tanh(x @ p["up"]) @ p["down"] * p["scale"][None, None]


SCALED = fill({"up": f64(6, 8), "down": f64(8, 6), "scale": f64(1)}, 1)


def one_for_all(p: Any, x: Any) -> Any:
    q, k, v = (jnp.einsum("btd,dhk->bthk", x, p[name]) for name in "qkv")
    return jnp.einsum("bthk,hkd->btd", by_repeating(q, k, v), p["o"])


ONE_FOR_ALL = fill({**shapes_of(1, split=True)[0], "o": f64(HEADS, VALUE, 6)}, 1)


@pytest.mark.parametrize(
    ("apply", "small", "sizes", "copied"),
    [
        (gated, GATED, {"gate": 8}, {"gate": (6, 8), "bias": (8,)}),
        (gated, GATED, {"gate": 12, "up": 12}, {"gate": (6, 12), "bias": (12,)}),
        (scaled, SCALED, {"scale": 6}, {"scale": (6,)}),
        (one_for_all, ONE_FOR_ALL, {("k", 1): 4, ("v", 1): 4}, {"k": (6, 4, DIM)}),
    ],
)
def test_a_unit_that_is_repeated_is_copied_where_its_function_takes_copies(
    apply: Any, small: Any, sizes: Any, copied: dict[str, Any]
) -> None:
    """By sizes, and by the shapes of a target, without a function."""
    widths, x = dw.trace(apply, small, X), jax.random.normal(jax.random.key(3), X.shape, float)
    growth = dw.plan(widths, sizes)
    wide = dw.grow(small, growth, key=jax.random.key(0))
    for name, shape in copied.items():
        axis = next(i for i, size in enumerate(small[name].shape) if size == 1)
        assert wide[name].shape == shape
        np.testing.assert_array_equal(wide[name], jnp.repeat(small[name], shape[axis], axis))
    np.testing.assert_allclose(apply(wide, x), apply(small, x), rtol=1e-12, atol=1e-12)
    by_target = dw.plan(widths, target=jax.tree.map(jnp.zeros_like, wide))
    assert dw.grow(small, by_target, key=jax.random.key(0)).keys() == wide.keys()
    assert growth.evidence is not None and growth.evidence.samples > 1
    assert [c.width for c in by_target.changes] == [c.width for c in growth.changes]


def test_a_unit_that_is_repeated_stays_where_its_function_takes_no_copies() -> None:
    with pytest.raises(dw.Refused, match="gate: cannot grow from 1 to 3: an operation repeats it"):
        dw.plan(dw.trace(gated, GATED, X), {"gate": 3})
    with pytest.raises(dw.Refused, match="gate: its unit is copied; leave it out of strategy="):
        strategy = {"gate": dw.strategies.zeros()}
        dw.plan(dw.trace(gated, GATED, X), {"gate": 8}, strategy=strategy)
    with pytest.raises(dw.Refused, match="up: the unit that all share is copied in a growth of"):
        strategy = dw.strategies.random()
        dw.plan(dw.trace(gated, GATED, X), {"gate": 12, "up": 12}, strategy=strategy)


@pytest.mark.parametrize("kv", [1, 2])
def test_copies_are_made_only_where_programs_are_compared(kv: int) -> None:
    widths = dw.trace(network(kv, by_groups), shapes_of(kv), X)
    options = {"target": shapes_of(4), "target_apply": network(4, by_groups)}
    with pytest.raises(ValueError, match="are copied in a growth of their own"):
        dw.plan(widths, **options, strategy=dw.strategies.random())
