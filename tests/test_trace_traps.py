"""Programs that could be grown wrongly without anybody noticing are grown exactly, or refused."""

import contextlib
import dataclasses
import pickle
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import traps_copies  # noqa: F401, for the traps in them
import traps_partial  # noqa: F401
import traps_sizes  # noqa: F401
from evaluate import evaluate
from evaluate import program as evaluated
from jax import lax
from networks import f64, fill
from tiers import some
from traps import CHANGES, INPUTS, MLP, TRAPS, X, layer, trap

import dogwood_jax as dw

# Constants that follow the width -----------------------------------------------------------------


@trap({"i[1]": CHANGES}, **MLP)
def ramp(p: Any, x: Any) -> Any:
    h = layer(p, x)
    return (h * jnp.linspace(0.5, 1, h.shape[1])[None]) @ p["o"]


@trap({"i[1]": "copied"}, **MLP)
def alternating_units(p: Any, x: Any) -> Any:
    h = layer(p, x)
    return jnp.where((jnp.arange(h.shape[1]) % 2 == 0)[None], h, 0) @ p["o"]


@trap({"i[1]": CHANGES}, **MLP)
def table_of_two_positions(p: Any, x: Any) -> Any:
    h = layer(p, x)
    decay = jnp.exp(-jnp.arange(h.shape[1], dtype=h.dtype) / h.shape[1])
    return (h * jnp.sin(jnp.einsum("i,j->ij", jnp.arange(4.0), decay))) @ p["o"]


@trap({"i[1]": CHANGES}, **MLP)
def random_features(p: Any, x: Any) -> Any:
    h = layer(p, x)
    random = jax.random.normal(jax.random.key(0), (h.shape[1], 2), h.dtype)
    return h @ (p["o"] + random)


@trap({"o[0]": "grown"}, i=(5, 6), o=(4, 2))
def some_units_drawn(p: Any, x: Any) -> Any:
    drawn = jax.random.choice(jax.random.key(0), 6, (p["o"].shape[0],))
    return layer(p, x)[:, drawn] @ p["o"]


@trap({"o[0]": "grown"}, i=(5, 6), o=(4, 2))
def some_units_counted(p: Any, x: Any) -> Any:
    return layer(p, x)[:, jnp.arange(p["o"].shape[0]) % 6] @ p["o"]


@trap({"i[1]": "copied"}, i=(5, 7), o=(7, 2))
def mean_field(p: Any, x: Any) -> Any:
    return layer(p, x) @ p["o"] / p["o"].shape[0]


@trap({"i[1]": "copied"}, i=(5, 7), o=(7, 2))
def mean_by_counting(p: Any, x: Any) -> Any:
    h = layer(p, x)
    return h @ p["o"] / jnp.sum(jnp.ones_like(h), axis=-1, keepdims=True)


@trap({"i[1]": "copied"}, i=(5, 7), o=(7, 2))
def slow_and_equalized(p: Any, x: Any) -> Any:
    return layer(p, x) @ (p["o"] * (0.01 / p["o"].shape[0] ** 0.5))


@trap({"i[1]": "copied"}, i=(5, 7), o=(7, 2))
def seven_times_seven_units(p: Any, x: Any) -> Any:
    return layer(p, 7 * x) * 7 @ p["o"]


@trap({"i[1]": "copied"}, i=(5, 6), o=(6, 2))
def pooled_by_six(p: Any, x: Any) -> Any:
    return jnp.stack([layer(p, k * x) for k in range(6)], axis=1).mean(axis=1) @ p["o"]


@trap({"q[head_dim]": "copied", "q[heads]": "copied"}, q=(5, 6), k=(5, 6), v=(5, 6), o=(6, 2))
def queries_scaled_before_heads_are_parted(p: Any, x: Any) -> Any:
    heads = p["v"].shape[1] // 3
    d = p["q"].shape[1] // heads
    q, k, v = (x @ p["q"] * d**-0.5, x @ p["k"], x @ p["v"])
    q, k, v = (y.reshape(4, heads, -1) for y in (q, k, v))
    return jnp.einsum("hts,shd->thd", scores(q, k), v).reshape(4, -1) @ p["o"]


@trap({"q[1]": "copied"}, q=(5, 6), k=(5, 6))
def scales_that_cancel(p: Any, x: Any) -> Any:
    root = p["q"].shape[1] ** 0.5
    return jax.nn.softmax((x @ p["q"] * root / root) @ (x @ p["k"]).T)


@trap({"q[1]": "2.44949"}, q=(5, 6), k=(5, 6))
def scales_of_which_one_is_used_alone(p: Any, x: Any) -> Any:
    root = p["q"].shape[1] ** 0.5
    q, k = x @ p["q"] * root, x @ p["k"]
    return jax.nn.softmax((q / root) @ k.T) + jnp.tanh(q) @ k.T


@trap({"a[2]": "copied"}, a=(4, 5, 6), b=(4, 6, 2))
def experts_looked_up(p: Any, x: Any) -> Any:
    """Weights that are looked up are weights; those of gelu are no scales of a score."""
    _, chosen = lax.top_k(x[:, :4], 2)
    h = jax.nn.gelu(jnp.einsum("bd,bkdf->bkf", x, p["a"][chosen]))
    return jnp.einsum("bkf,bkfo->bo", h, p["b"][chosen])


@trap({"i[1]": "has no entries for new units"}, **MLP)
def captured_table(p: Any, x: Any) -> Any:
    return (layer(p, x) * np.arange(1.0, 7.0)[None]) @ p["o"]


@trap({"i[1]": "computes something else"}, i=(5, 4), o=(4, 2))
def half_that_is_one_over_the_root_of_four(p: Any, x: Any) -> Any:
    return jnp.tanh((layer(p, x) @ p["o"] + 1) / p["o"].shape[0] ** 0.5)


@trap({"i[3]": "copied"}, i=(3, 3, 5, 4), o=(3, 3, 4, 2))
def sixth_that_is_one_over_the_root_of_the_fan_in(p: Any, x: Any) -> Any:
    numbers = ("NHWC", "HWIO", "NHWC")
    h = lax.conv_general_dilated(x[None, None], p["i"], (1, 1), "SAME", dimension_numbers=numbers)
    o = p["o"] * (9 * p["o"].shape[2]) ** -0.5
    h = lax.conv_general_dilated(jnp.tanh(h), o, (1, 1), "SAME", dimension_numbers=numbers)
    return h[0, 0]


@trap({"i[1]": "copied"}, i=(5, 4), w=(4, 4), o=(4, 2))
def halves_for_other_reasons(p: Any, x: Any) -> Any:
    h = jax.nn.gelu(layer(p, x) @ p["w"], approximate=False)
    return 0.5 * jnp.tanh(h @ p["o"])


# Sizes that are numbers to one program: only the program in larger sizes tells.
OTHER = "computes something else"


@trap({"i[1]": OTHER}, **MLP)
def width_added(p: Any, x: Any) -> Any:
    h = layer(p, x)
    return (h + 0.1 * h.shape[1]) @ p["o"]


@trap({"i[1]": "copied"}, i=(5, 10), o=(10, 2))
def tenth_of_ten_units(p: Any, x: Any) -> Any:
    return layer(p, x) @ p["o"] / p["o"].shape[0]


@trap({"i[1]": OTHER}, i=(5, 3), o=(3, 2))
def power_of_the_width(p: Any, x: Any) -> Any:
    return jnp.tanh(layer(p, x) @ p["o"]) ** p["o"].shape[0]


@trap({"i[1]": OTHER}, i=(5, 3), o=(3, 2))
def as_many_steps_as_units(p: Any, x: Any) -> Any:
    h = layer(p, x)
    return lax.fori_loop(0, h.shape[1], lambda _, h: 0.9 * h, h) @ p["o"]


@trap({"i[1]": OTHER}, i=(5, 3), o=(3, 2))
def as_many_layers_as_units(p: Any, x: Any) -> Any:
    h = layer(p, x)
    for _ in range(h.shape[1]):
        h = jnp.tanh(h)
    return h @ p["o"]


@trap({"i[1]": OTHER}, i=(5, 3), o=(3, 2))
def window_of_the_width(p: Any, x: Any) -> Any:
    h, n = layer(p, x), p["i"].shape[1]
    return lax.reduce_window(h @ p["o"], 0.0, lax.add, (n, 1), (1, 1), "SAME")


@trap({"i[1]": "copied"}, **MLP)
def table_computed_with_the_width(p: Any, x: Any) -> Any:
    h = layer(p, x)
    return (h * (jnp.arange(4.0) / h.shape[1])[:, None]) @ p["o"]


@trap({"i[1]": OTHER}, **MLP)
def shifted_by_one_unit(p: Any, x: Any) -> Any:
    """Every unit is added to the next: there are six widths of one unit, which are the same."""
    h = layer(p, x)
    return (h + jnp.roll(h, 1, axis=1)) @ p["o"]


@trap({"i[1]": "grown"}, **MLP)
def first_three_from_another_sample(p: Any, x: Any) -> Any:
    h = layer(p, x)
    return jnp.concatenate([jnp.roll(h[:, :3], 1, axis=0), h[:, 3:]], axis=1) @ p["o"]


# Units in other places ---------------------------------------------------------------------------


@trap({"i[1]": "reversed"}, **MLP)
def flipped(p: Any, x: Any) -> Any:
    return layer(p, x)[:, ::-1] @ p["o"]


@trap({"i[1]": "a reshape cuts across it"}, **MLP)
def rows_mixed_with_units(p: Any, x: Any) -> Any:
    return layer(p, x).reshape(-1, 4).T.reshape(4, -1) @ p["o"]


@trap({"a[1]": "do not fit together"}, a=(5, 6), b=(5, 6), o=(12, 2))
def cut_elsewhere_than_joined(p: Any, x: Any) -> Any:
    h = jnp.concatenate([x @ p["a"], x @ p["b"]], -1).reshape(4, 3, 4)
    return jnp.tanh(h).swapaxes(1, 2).reshape(4, -1) @ p["o"]


@trap({"i[1]": "indexed by positions"}, **MLP)
def last_unit_overwritten(p: Any, x: Any) -> Any:
    return layer(p, x).at[:, -1].set(1.0) @ p["o"]


@trap({"i[1]": "follows the shapes"}, i=(5, 6), o=(12, 2))
def written_to_every_other_position(p: Any, x: Any) -> Any:
    h = layer(p, x)
    return jnp.zeros((4, 2 * h.shape[1])).at[:, jnp.arange(h.shape[1]) * 2].set(h) @ p["o"]


@trap({"i[1]": "copied"}, **MLP)
def means_of_segments(p: Any, x: Any) -> Any:
    h, to = layer(p, x), np.array([0, 2, 2, 1])
    counts = jax.ops.segment_sum(jnp.ones_like(h), to, 3)
    return jax.ops.segment_sum(h, to, 3) / jnp.maximum(counts, 1) @ p["o"]


@trap({"i[1]": CHANGES}, i=(5, 6), o=(3, 2))
def added_up_in_three_bins(p: Any, x: Any) -> Any:
    h = layer(p, x)
    return jnp.zeros((4, 3)).at[:, jnp.arange(h.shape[1]) % 3].add(h) @ p["o"]


@trap({"q[1]": CHANGES, "k[1]": CHANGES}, q=(5, 4), k=(5, 4), c=(4, 2))
def rotated_in_place(p: Any, x: Any) -> Any:
    def rotated(x: Any) -> Any:
        out = jnp.empty_like(x).at[..., 0::2].set(x[..., 0::2] * p["c"])
        return out.at[..., 1::2].set(x[..., 1::2] * p["c"])

    return jax.nn.softmax(rotated(x @ p["q"]) @ rotated(x @ p["k"]).T)


@trap({"i[1]": "copied", "o[0]": "copied"}, i=(5, 6), o=(12, 2))
def repeated_units(p: Any, x: Any) -> Any:
    h = layer(p, x)
    both = jnp.stack([h, h * h], axis=-1).reshape(4, -1)
    return (both + jnp.repeat(h, 2, axis=-1)) @ p["o"]


@trap({"i[1]": "copied"}, i=(5, 6), o=(18, 2))
def tiled_units(p: Any, x: Any) -> Any:
    return jnp.tile(layer(p, x), (1, 3)) @ p["o"]


@trap({"i[1]": "copied"}, **MLP)
def halves_swapped(p: Any, x: Any) -> Any:
    h = layer(p, x)
    a, b = jnp.split(h, 2, axis=-1)
    return (h + jnp.concatenate([-b, a], axis=-1)) @ p["o"]


@trap({"b[1]": "copied", "c[1]": "copied"}, a=(5, 3), b=(5, 3), c=(5, 2), d=(5, 4), o=(6, 2))
def concatenations_that_do_not_align(p: Any, x: Any) -> Any:
    """3 | 3 and 2 | 4 have the pieces 2 | 1 | 3 in common."""
    one = jnp.concatenate([jnp.tanh(x @ p["a"]), jnp.tanh(x @ p["b"])], -1)
    two = jnp.concatenate([jnp.tanh(x @ p["c"]), jnp.tanh(x @ p["d"])], -1)
    return (one + two) @ p["o"]


@trap({"qkv[2]": "copied", "qkv[3]": "grown"}, qkv=(3, 5, 2, 3), o=(2, 3, 2))
def one_array_for_queries_keys_and_values(p: Any, x: Any) -> Any:
    """New entries of ``o`` for new dimensions of old heads are free, those of new heads zero."""
    q, k, v = jnp.einsum("tm,amhd->athd", x, p["qkv"])
    scores = jax.nn.softmax(jnp.einsum("thd,shd->hts", q, k))
    return jnp.einsum("hts,shd,hdo->to", scores, v, p["o"])


def scores(q: Any, k: Any) -> Any:
    return jax.nn.softmax(jnp.einsum("thd,shd->hts", q, k))


@trap({"qk[1]": "copied"}, qk=(5, 12), m=(2, 2))
def heads_mixed_before_they_are_parted(p: Any, x: Any) -> Any:
    """Each head of ``q`` has come to depend on all of them, those of ``k`` have not."""
    q, k = (x @ p["qk"]).reshape(4, 2, 2, -1).swapaxes(0, 1)
    q = q + jnp.einsum("gh,thd->tgd", p["m"], q)
    return jnp.tanh(k[:, 0] @ q[:, 0].T)


@trap({"w[1]": "grown"}, w=(5, 12), m=(3, 3))
def thirds_mixed_before_they_are_parted(p: Any, x: Any) -> Any:
    y = (x @ p["w"]).reshape(4, 3, -1)
    a, b, _ = jnp.moveaxis(y + jnp.einsum("ij,tjd->tid", p["m"], y), 1, 0)
    return a @ b.T


@trap({"w[1]": "grown"}, w=(5, 12), s=(3,))
def thirds_that_share_their_mean(p: Any, x: Any) -> Any:
    y = (x @ p["w"]).reshape(4, 3, -1)
    a, b, _ = jnp.moveaxis(y + p["s"][None, :, None] * y.mean(axis=1, keepdims=True), 1, 0)
    return a @ b.T


@trap({"w[1]": "grown"}, w=(5, 12), v=(4,))
def thirds_scaled_by_each_other(p: Any, x: Any) -> Any:
    y = (x @ p["w"]).reshape(4, 3, -1)
    pairs = y[:, :, None] * (y @ p["v"])[:, None, :, None]
    a, b, _ = jnp.moveaxis(pairs + pairs.swapaxes(1, 2), 1, 0)
    return jnp.einsum("tid,sid->ts", a, b)


@trap({"w[1]": "grown"}, w=(5, 12))
def thirds_in_another_order(p: Any, x: Any) -> Any:
    y = (x @ p["w"]).reshape(4, 3, -1)
    a, b, _ = jnp.moveaxis(y + jnp.roll(y, 1, axis=1) + y[:, jnp.array([2, 0, 1])], 1, 0)
    return a @ b.T


@trap({"qkv[heads]": "copied", "qkv[head_dim]": "copied"}, qkv=(5, 24), o=(2, 4, 2))
def queries_keys_and_values_within_heads(p: Any, x: Any) -> Any:
    y = (x @ p["qkv"]).reshape(4, p["o"].shape[0], -1)
    n = (y.shape[2] - p["o"].shape[1]) // 2
    q, k, v = jnp.split(y, [n, 2 * n], axis=-1)
    return jnp.einsum("hts,shd,hdo->to", scores(q, k), v, p["o"])


@trap({"qk[1.1]": "copied"}, qk=(5, 16), v=(5, 4), o=(4, 2))
def queries_and_keys_turned_together(p: Any, x: Any) -> Any:
    """Both are rotated as one array of heads, whose halves are cut again."""
    both = (x @ p["qk"]).reshape(4, 4, -1)
    a, b = jnp.split(both, 2, axis=-1)
    both = both * 0.7 + jnp.concatenate([-b, a], axis=-1)
    q, k = both[:, :2], both[:, 2:]
    return jnp.einsum("hts,sc,co->to", scores(q, k), x @ p["v"], p["o"])


@trap({"flat[0]": "copied"}, flat=(5 * 6 + 6 * 2,))
def all_weights_in_one_array(p: Any, x: Any) -> Any:
    n = p["flat"].shape[0] // 7
    up, down = p["flat"][: 5 * n].reshape(5, n), p["flat"][5 * n :].reshape(n, 2)
    return jnp.tanh(x @ up) @ down


@trap({"a[1]": "copied", "b[0]": "copied", "b[2]": "copied"}, a=(5, 6), b=(3, 6, 4), c=(3, 4, 2))
def experts_and_hidden_units(p: Any, x: Any) -> Any:
    h = jnp.tanh(jnp.einsum("bi,eij->bej", jnp.tanh(x @ p["a"]), p["b"]))
    return jnp.einsum("bej,ejo->bo", h, p["c"])


@trap({"i[1]": CHANGES}, **MLP)
def after_a_step_of_training(p: Any, x: Any) -> Any:
    """New units get a gradient within the program, so they do not stay silent."""

    def loss(p: Any) -> Any:
        return jnp.sum((layer(p, x) @ p["o"]) ** 2)

    p = jax.tree.map(lambda w, g: w - 0.1 * g, p, jax.grad(loss)(p))
    return layer(p, x) @ p["o"]


@trap({"i[1]": "grown"}, **MLP)
def gradient_penalty(p: Any, x: Any) -> Any:
    return jnp.sum(jax.grad(lambda x: jnp.sum(layer(p, x) @ p["o"]))(x) ** 2, axis=0)[:2]


@trap({"i[1]": "copied"}, i=(5, 6), w=(3, 6, 6), o=(6, 2))
def layers_looked_up_in_a_loop(p: Any, x: Any) -> Any:
    """What counts positions from the end depends on the width, and does not matter."""
    return lax.fori_loop(0, 3, lambda k, h: jnp.tanh(h @ p["w"][k]), x @ p["i"]) @ p["o"]


@trap({"i[1]": "copied"}, **MLP)
def own_derivative(p: Any, x: Any) -> Any:
    @jax.custom_vjp
    def f(w: Any, x: Any) -> Any:
        return jnp.tanh(x @ w)

    def backward(residuals: Any, g: Any) -> Any:
        w, x, y = residuals
        g = g * (1 - y * y)
        return x.T @ g, g @ w.T

    f.defvjp(lambda w, x: (f(w, x), (w, x, f(w, x))), backward)
    return f(p["i"], x) @ p["o"]


# The checks --------------------------------------------------------------------------------------


def width_at(widths: dw.Widths, place: str) -> dw.typing.Width:
    """The width at a place or of this name; of a composite axis, the first that can grow."""
    if place in widths:
        return widths[place]
    path, axis = place[:-1].split("[")
    names = [
        w.name
        for w in widths.values()
        for o in w.occurrences
        if (o.path, o.axis) == (path, int(axis))
    ]
    return next((widths[n] for n in names if not widths[n].fixed), widths[names[0]])


# Whose programs take long to compile.
LONG = (
    *("some_units_drawn", "concatenations_that_do_not_align", "block_diagonal_weights"),
    *("queries_keys_and_values_within_heads", "one_array_for_queries_keys_and_values"),
    *("experts_and_hidden_units", "softmax_over_heads", "repeated_units", "gated_weights"),
    *("unit_vectors_of_heads", "pooled_by_six", "outer_product", "experts_looked_up"),
    "queries_scaled_before_heads_are_parted",
)


@pytest.mark.parametrize("name", some(TRAPS, 3, long=LONG))
def test_trap(name: str) -> None:
    apply, shapes, fates = dataclasses.astuple(TRAPS[name])
    widths = dw.trace(apply, shapes, X)
    grows: dict[str, int] = {}
    growths = []
    for place, fate in fates.items():
        width = width_at(widths, place)
        new = {width.name: width.size + 2}
        if fate == "only copied":
            not_finite = r"strategies.replicate\(\) makes copies"
            with pytest.raises(ValueError, match=not_finite):
                dw.plan(widths, new)
            growths.append(dw.plan(widths, new, strategy=dw.strategies.replicate(split="uneven")))
            continue
        if fate == OTHER:
            shapes_of = dw.plan(widths, new, strategy=dw.strategies.random()).shapes
            target = {k: jax.ShapeDtypeStruct(s, jnp.float64) for k, s in shapes_of.items()}
            with pytest.raises(ValueError, match=f"{OTHER}|the shapes do not say"):
                dw.plan(widths, target=target)
        elif fate == CHANGES:
            # Plain growth would change outputs; what is found instead must not.
            with contextlib.suppress(ValueError):
                growths.append(dw.plan(widths, {width.name: 2 * width.size}, interface=True))
                continue
        if fate not in ("copied", "grown"):
            with pytest.raises(ValueError) as error:
                dw.plan(widths, new, interface=True)
            assert re.search(fate, str(error.value))
            continue
        grows |= new
        growths.append(dw.plan(widths, new))
        copies = {"strategy": dw.strategies.replicate(split="uneven")}
        if fate == "copied":
            growths.append(dw.plan(widths, new, **copies))
        else:
            with pytest.raises(ValueError, match="computes something else"):
                dw.plan(widths, new, **copies)
    if len(grows) > 1:
        growths.append(dw.plan(widths, grows))

    variables, key = fill(shapes, 1), jax.random.key(0)
    old = evaluated(apply, variables, X)
    for growth in growths:
        grown = evaluate(lambda v, growth=growth: dw.grow(v, growth, key=key), variables)
        new = evaluated(apply, grown, X)
        for rows, x in INPUTS.items():
            jax.tree.map(
                lambda a, b, said=f"{growth!r}, {rows}": assert_kept(a, b, said),
                old(variables, x),
                new(grown, x),
            )


def assert_kept(old: Any, new: Any, said: str) -> None:
    """Each entry that is finite stays, relative to the largest."""
    finite = np.isfinite(old)
    most = np.max(np.abs(old), where=finite, initial=0.0)
    np.testing.assert_allclose(new[finite], old[finite], rtol=0, atol=1e-12 * most, err_msg=said)


def test_a_transpose_that_depends_on_a_size_is_seen() -> None:
    def apply(p: Any, x: Any) -> Any:
        w = p["w"].T if p["i"].shape[1] < 4 else p["w"]
        return jnp.tanh(layer(p, x) @ w) @ p["o"]

    shapes = {"i": f64(5, 3), "w": f64(3, 3), "o": f64(3, 2)}
    widths = dw.trace(apply, shapes, X)
    with pytest.raises(ValueError, match="the network itself computes something else"):
        dw.plan(widths, {"i": 5, "w": 5})


def test_a_growth_that_the_network_cannot_run_is_refused_or_noted() -> None:
    """Here one array ends where another begins, and there one is reshaped to known sizes."""

    def follows(p: Any, x: Any) -> Any:
        n = p["w"].shape[1]
        return jnp.tanh((x @ p["i"])[:, n:] @ p["w"]) @ p["o"]

    def knows(p: Any, x: Any) -> Any:
        return jnp.tanh(x @ p["i"]).reshape(4, 2, 3).sum(1) @ p["o"]

    widths = dw.trace(follows, {"i": f64(5, 7), "w": f64(4, 3), "o": f64(3, 2)}, X)
    with pytest.raises(ValueError, match="follows the shapes of its arrays but does not take"):
        dw.plan(widths, {"w": 5})
    widths = dw.trace(knows, {"i": f64(5, 6), "o": f64(3, 2)}, X)
    growth = dw.plan(widths, {widths.of("o", 0).name: 4})
    assert "the network's own function does not take arrays of these sizes" in growth.notes[0]


def test_a_function_that_tiles_as_many_units_as_an_array_has_asks_for_more_widths() -> None:
    def apply(p: Any, x: Any) -> Any:
        h = (x @ p["w"])[:, : p["up"].shape[1]]
        return jnp.tile(h, (1, 2)) @ p["up"] @ p["out"]

    shapes = {"w": f64(3, 7), "up": f64(8, 4), "out": f64(4, 2)}
    widths = dw.trace(apply, shapes, f64(5, 3))
    with pytest.raises(ValueError, match="follows the shapes of its arrays but does not take"):
        dw.plan(widths, {"up": 6})


def test_an_axis_that_is_padded_and_cut_again() -> None:
    def apply(p: Any, x: Any) -> Any:
        n = p["i"].shape[1]
        return layer(p, x) @ jnp.pad(p["w"], ((n - 4, 0), (0, 0)))[:n] @ p["o"]

    shapes = {"i": f64(5, 6), "w": f64(6, 3), "o": f64(3, 2)}
    target = {"i": f64(5, 8), "w": f64(8, 3), "o": f64(3, 2)}
    copies = {"target_apply": apply, "strategy": dw.strategies.tile()}
    growth = dw.plan(dw.trace(apply, shapes, X), target=target, **copies)
    variables = fill(shapes, 1)
    dw.verify(apply, variables, apply, dw.grow(variables, growth), INPUTS["normal"])


def test_widths_from_a_file_hold_no_program_to_evaluate() -> None:
    traced = dw.trace(lambda p, x: layer(p, x) @ p["o"], {"i": f64(5, 6), "o": f64(6, 2)}, X)
    for widths in (dw.from_json(dw.to_json(traced)), pickle.loads(pickle.dumps(traced))):
        again = dw.from_json(dw.to_json(widths))
        assert again == widths == traced and hash(again) == hash(traced)
        with pytest.raises(ValueError, match="trace the network again, or pass check=False"):
            dw.plan(again, {"i": 8})
        assert dw.plan(again, {"i": 8}, check=False) == dw.plan(traced, {"i": 8})
        assert dw.plan(again, {"i": 8}, strategy=dw.strategies.random()).sizes == {"i": 8}


def test_values_that_are_handed_on_are_looked_up_once() -> None:
    """A step that returns its operand is not what made it."""

    def apply(p: Any, x: Any) -> Any:
        y = lax.stop_gradient(3 * (layer(p, x) @ p["o"]))
        return jnp.tanh(y) + y

    widths = dw.trace(apply, {"i": f64(5, 6), "o": f64(6, 2)}, X)
    assert dw.plan(widths, {"i": 8}).sizes == {"i": 8}


def test_a_target_says_by_itself_what_grows_along() -> None:
    def apply(p: Any, x: Any) -> Any:
        assert p["a"].shape[1] == 2 * p["b"].shape[1]
        return jnp.tanh(x @ p["a"]).sum() + jnp.tanh(x @ p["b"])

    shapes, target = ({"a": f64(5, n), "b": f64(5, 3)} for n in (6, 8))
    traced = dw.trace(apply, shapes, X)
    read = dw.from_json(dw.to_json(traced))
    name = traced.of("a", 1).name
    outcomes = []
    for widths in (traced, read):
        try:
            outcomes.append(dw.plan(widths, target=target, strategy=dw.strategies.random()))
        except ValueError as error:
            outcomes.append(str(error))
    assert outcomes[0] == outcomes[1], name
