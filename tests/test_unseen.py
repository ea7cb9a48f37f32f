"""What an evaluation might not see: tables, masks, numbers of sizes, entries that never learn."""

import re
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from tiers import in_tiers, long

import dogwood_jax as dw
from dogwood_jax._check import constant_tables as tables


@pytest.fixture(autouse=True)
def as_users_have_it() -> Iterator[None]:
    with jax.numpy_rank_promotion("allow"):
        yield


def normal(seed: int, *shape: int) -> Any:
    fan = shape[-2] if len(shape) > 1 else 1
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape) / np.sqrt(fan))


def arrays(**shapes: tuple[int, ...]) -> dict[str, Any]:
    return {name: normal(seed, *shape) for seed, (name, shape) in enumerate(shapes.items())}


def assert_exact_or_refused(
    apply: Any, variables: Any, inputs: Any, sizes: Any, larger: Any = None, **options: Any
) -> dw.Growth | None:
    """Asserts that a growth moves outputs by rounding alone, with finite gradients."""
    widths = dw.trace(apply, variables, *inputs)
    try:
        growth = dw.plan(widths, sizes, **options)
    except ValueError:
        return None
    wide, larger = dw.grow(variables, growth, key=jax.random.key(1)), larger or apply
    outputs = jax.jit(larger)(wide, *inputs), jax.jit(apply)(variables, *inputs)
    np.testing.assert_allclose(*outputs, 1e-9, 1e-9)
    slopes = jax.jit(jax.grad(lambda wide: jnp.sum(larger(wide, *inputs) ** 2)))(wide)
    assert all(bool(jnp.isfinite(slope).all()) for slope in jax.tree.leaves(slopes))
    return growth


# Units that are compared with each other ----------------------------------------------------------


def opposed(array: Any, axis: int) -> Any:
    """Returns an array whose second half of units is the first with the opposite sign."""
    half = jnp.take(array, jnp.arange(array.shape[axis] // 2), axis)
    return jnp.concatenate([half, -half], axis)


UNITS = {
    "scaled": lambda p, x: p["s"] * (x @ p["i"]),
    "gated": lambda p, x: jax.nn.sigmoid(x @ p["g"]) * (x @ p["i"]),
    "sin": lambda p, x: jnp.sin(p["s"] * (x @ p["i"] + 0 * (x @ p["g"]))),
    "relu": lambda p, x: nn.relu(p["s"] * (x @ p["i"] + 0 * (x @ p["g"]))),
}
COMPARED = {
    "min": lambda h: h - h.min(-1, keepdims=True),
    "max": lambda h: h - h.max(-1, keepdims=True),
    "product": lambda h: h + h.prod(-1, keepdims=True),
    "all": lambda h: h + (h > 0).all(-1, keepdims=True),
    "any": lambda h: h * jnp.where((h > 0).any(-1, keepdims=True), 1, 2),
    "no zeros": lambda h: jnp.where((h != 0).any(-1, keepdims=True), h, 1.0),
    "winner": lambda h: jnp.where(h == h.max(-1, keepdims=True), h, 0),
    "argmin": lambda h: h + 0.1 * jnp.argmin(h, -1)[:, None],
    "lower half": lambda h: h + h[:, : h.shape[1] // 2].min(-1, keepdims=True),
    "median": lambda h: jnp.where(h >= jnp.median(h, -1, keepdims=True), h, 0),
    "sorted": lambda h: jnp.sort(h, -1) * h,
    "cummax": lambda h: h + jax.lax.cummax(h, 1)[:, -1:],
    "largest two": lambda h: h + jax.lax.top_k(h, 2)[0].sum(-1, keepdims=True),
    "pairs": lambda h: h * (h[:, :, None] > h[:, None]).sum(-1),
    "logsumexp": lambda h: h - jax.nn.logsumexp(h, -1, keepdims=True),
}


@pytest.mark.parametrize("new", [12, 16])
@pytest.mark.parametrize("compared", in_tiers(COMPARED, short=("min", "all", "no zeros", "winner")))
@pytest.mark.parametrize("units", in_tiers(UNITS, short=("scaled", "relu")))
def test_units_that_are_compared_with_each_other(units: str, compared: str, new: int) -> None:
    """For any weights: of one sign, of opposed halves, large ones."""

    def apply(p: Any, x: Any) -> Any:
        return COMPARED[compared](UNITS[units](p, x)) @ p["o"]

    variables, x = arrays(i=(4, 8), g=(4, 8), s=(8,), o=(8, 2)), normal(9, 40, 4)
    widths = dw.trace(apply, variables, x)
    try:
        growth = dw.plan(widths, {"i": new})
    except ValueError:
        return
    one_sign = {**variables, "i": jnp.abs(variables["i"]), "s": jnp.abs(variables["s"])}
    both = {"i": opposed(variables["i"], 1), "s": opposed(variables["s"], 0)}
    for weights in (
        variables,
        variables | both,
        variables | {"i": both["i"]},
        one_sign,
        one_sign | {"i": -one_sign["i"]},
        variables | {"i": 5 * variables["i"]},
    ):
        wide = dw.grow(weights, growth, key=jax.random.key(1))
        for rows in (x, jnp.abs(x), jnp.abs(x) * jnp.sign(x[:, :1])):
            np.testing.assert_allclose(apply(wide, rows), apply(weights, rows), 1e-9, 1e-9)


# Tables -------------------------------------------------------------------------------------------

TABLES = {
    "signs": lambda n: np.where(np.arange(n) < n // 2, 1.0, -1.0),
    "most of them": lambda n: np.where(np.arange(n) < 4 * n // 5, 1.0, -1.0),
    "the last one": lambda n: 1.0 + (jnp.arange(n) == n - 1),
    "thresholds": lambda n: 1.0 + jnp.searchsorted(jnp.array([n // 4, n // 2]), jnp.arange(n)),
    "sign of integers": lambda n: jnp.sign(jnp.arange(n) - n // 2),
    "divisors": lambda n: jnp.gcd(jnp.arange(n), n) * 1.0,
}


def with_table(table: Any) -> Any:
    def apply(p: Any, x: Any) -> Any:
        return jnp.tanh((x @ p["i"]) * table(p["i"].shape[1])[None]) @ p["o"]

    return apply


@pytest.mark.parametrize("name", in_tiers(TABLES, short=("sign of integers",)))
def test_tables_are_compared_in_the_real_sizes(name: str) -> None:
    """The network is so large that small sizes stand for it, in which tables look alike."""
    variables = arrays(i=(32, 128), o=(128, 8))
    apply = with_table(TABLES[name])
    assert_exact_or_refused(apply, variables, (normal(7, 512, 32),), {"i": 256})


def test_a_table_that_stays_in_old_entries_is_no_obstacle() -> None:
    variables = arrays(i=(32, 128), o=(128, 8))
    apply, inputs = with_table(lambda n: 1 / (1.0 + jnp.arange(n))), (normal(7, 512, 32),)
    growth = assert_exact_or_refused(apply, variables, inputs, {"i": 256})
    assert growth is not None and not [*growth.change["i"].factors()]
    assert "sizes 128 -> " in str(growth)  # small sizes were enough


def test_where_a_table_differs_and_the_network_is_too_large_the_table_is_named() -> None:
    def apply(p: Any, x: Any) -> Any:
        n = p["i"].shape[1]
        return ((x @ p["i"]) * (1.0 + (jnp.arange(n) == n - 1))[None]) @ p["o"]

    shapes = {"i": (1032, 2048), "o": (2048, 4)}
    variables = {name: jax.ShapeDtypeStruct(shape, float) for name, shape in shapes.items()}
    widths = dw.trace(apply, variables, jax.ShapeDtypeStruct((4, 1032), float))
    with pytest.raises(ValueError, match=r"table, float64\[1,2048\] .* \(test_unseen.py:\d+\)"):
        dw.plan(widths, {"i": 4096})


@pytest.mark.parametrize("is_same", [True, long(False)])
def test_large_tables_are_compared_in_pieces(
    is_same: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mask along hidden units that takes some hundred megabytes is computed row by row."""
    monkeypatch.setattr(tables, "_PIECE", 1 << 10)
    monkeypatch.setattr(tables, "_MOST", 1 << 11)

    def apply(p: Any, x: Any) -> Any:
        units, inputs = p["u"].shape
        period = 3 if is_same else units // 2
        mask = (jnp.arange(units)[:, None] // period) % 2 == jnp.arange(inputs)[None] % 2
        return jnp.tanh(x @ (p["u"] * jnp.where(mask, 1.0, 0.5)).T) @ p["v"]

    variables = {"u": normal(0, 1024, 96), "v": normal(1, 1024, 3)}
    growth = assert_exact_or_refused(apply, variables, (normal(2, 600, 96),), {"u": 1536})
    assert (growth is not None) == is_same


def test_a_mask_for_more_heads_is_the_same_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    """So it is not computed: for long texts it would take gigabytes."""
    monkeypatch.setattr(tables, "_MOST", 0)

    def apply(p: Any, x: Any) -> Any:
        q, k, v = (jnp.einsum("btd,dhk->bhtk", x, p[name]) for name in "qkv")
        seen = jnp.tril(jnp.ones((x.shape[1], x.shape[1]), bool))
        scores = jnp.where(seen[None, None], jnp.einsum("bhqk,bhtk->bhqt", q, k), -1e30)
        return jnp.einsum("bhqt,bhtk,hkd->bqd", jax.nn.softmax(scores, -1), v, p["o"])

    shapes = dict.fromkeys("qkv", (64, 8, 16)) | {"o": (8, 16, 64)}
    variables = {name: jax.ShapeDtypeStruct(shape, float) for name, shape in shapes.items()}
    widths = dw.trace(apply, variables, jax.ShapeDtypeStruct((1, 2048, 64), float))
    name = next(name for name in widths if widths[name].size == 8)
    assert dw.plan(widths, {name: 12}).evidence.samples


class Made(nn.Module):
    """A masked autoencoder: which unit reads which input follows from how many units there are."""

    units: int

    @nn.compact
    def __call__(self, x: Any) -> Any:
        places, inputs = (
            np.arange(self.units) * (x.shape[1] - 1) // self.units,
            np.arange(x.shape[1]),
        )
        shapes = {"u": (x.shape[1], self.units), "v": (self.units, x.shape[1])}
        u, v = (self.param(name, nn.initializers.normal(0.3), s) for name, s in shapes.items())
        return nn.relu(x @ (u * (inputs[:, None] <= places))) @ (v * (places[:, None] < inputs))


def test_masks_of_a_larger_model_are_compared_in_its_sizes() -> None:
    x, small, large = normal(7, 256, 16), Made(128), Made(256)
    variables = small.init(jax.random.key(0), x)
    target = jax.eval_shape(large.init, jax.random.key(0), x)
    options = {"target": target, "target_apply": large.apply}
    assert_exact_or_refused(small.apply, variables, (x,), None, large.apply, **options)


# Inputs that look like masks ----------------------------------------------------------------------


def unit_norm(a: Any) -> Any:
    return a / (jnp.sqrt((a * a).sum(-1, keepdims=True)) + 1e-6)


def attention(hide: Any) -> Any:
    def apply(p: Any, x: Any, mask: Any) -> Any:
        q, k, v = (jnp.einsum("btd,dhk->bthk", x, p[name]) for name in "qkv")
        scores = jnp.einsum("bqhk,bthk->bhqt", unit_norm(q), unit_norm(k)) + hide(mask)
        return jnp.einsum("bhqt,bthk,hkd->bqd", jax.nn.softmax(scores, -1), v, p["o"])

    return apply


@pytest.mark.long
@pytest.mark.parametrize("low", [-1e4, float(np.finfo(np.float32).min)])
@pytest.mark.parametrize("dtype", [float, jnp.int32])
def test_scores_are_seen_behind_a_mask(low: float, dtype: Any) -> None:
    """Normal numbers in the place of a mask would hide the scores, which larger heads change."""
    apply = attention(lambda mask: (1.0 - mask[:, None, None].astype(float)) * low)
    variables = arrays(q=(5, 2, 4), k=(5, 2, 4), v=(5, 2, 4), o=(2, 4, 5))
    mask = jnp.ones((3, 6), dtype).at[0, 4:].set(0)
    inputs = normal(7, 3, 6, 5), mask
    assert_exact_or_refused(apply, variables, inputs, {"q[head_dim]": 6})


def test_an_operand_that_is_always_lost_in_a_sum_is_not_seen() -> None:
    def apply(p: Any, x: Any, scale: Any) -> Any:
        return jnp.tanh(x @ p["i"]) @ p["o"] + 1e12 * (1.0 + scale**2)[:, None]

    widths = dw.trace(apply, arrays(i=(5, 8), o=(8, 3)), normal(7, 4, 5), normal(8, 4))
    assert re.search(r"not seen: add \(test_unseen.py:\d+\)", str(dw.plan(widths, {"i": 12})))


# Functions and modules that hold sizes ------------------------------------------------------------


def test_the_networks_own_function_decides_where_it_can_be_called() -> None:
    """A reshape that has nothing to do with it does not overrule the branch on a size."""

    def apply(p: Any, x: Any) -> Any:
        h = x @ p["i"]
        h = h.reshape(len(h), -1, 4).reshape(h.shape)
        return (jax.nn.relu if p["i"].shape[1] < 10 else jax.nn.gelu)(h) @ p["o"]

    variables, x = arrays(i=(5, 8), o=(8, 3)), normal(7, 4, 5)
    widths = dw.trace(apply, variables, x)
    with pytest.raises(ValueError, match="the network itself computes something else"):
        dw.plan(widths, {"i[1.1]": 8})
    target = {"i": jax.ShapeDtypeStruct((5, 16), float), "o": jax.ShapeDtypeStruct((16, 3), float)}
    with pytest.raises(ValueError, match="computes something else"):
        dw.plan(widths, {"i[1.1]": 8}, target=target)


def test_a_function_may_split_an_axis_into_a_number_of_its_own() -> None:
    """Growths of both factors stay, and a note says where the larger model must split otherwise."""

    def apply(p: Any, x: Any, shift: float = 0.0) -> Any:
        q, k, v = ((x @ p[name]).reshape(*x.shape[:2], 2, -1) for name in "qkv")
        weights = jax.nn.softmax(jnp.einsum("bqhk,bthk->bhqt", q, k), -1)
        read = jnp.einsum("bhqt,bthk->bqhk", weights, v) + shift * p["q"].shape[1]
        return read.reshape(*x.shape[:2], -1) @ p["o"]

    variables = arrays(q=(5, 8), k=(5, 8), v=(5, 8), o=(8, 5))
    widths = dw.trace(apply, variables, normal(7, 3, 6, 5))
    growth = dw.plan(widths, {"q[heads]": 4})
    assert growth.notes[-1] == (
        "this function splits 16 into 2 x 8; the larger model must split it into 4 x 4: pass "
        "target_apply="
    )
    assert not any("does not take" in note for note in growth.notes)
    growth = dw.plan(widths, {"q[head_dim]": 8})
    assert not any("this function splits" in note for note in growth.notes)
    shifted = dw.trace(lambda p, x: apply(p, x, 0.1), variables, normal(7, 3, 6, 5))
    with pytest.raises(ValueError, match="the network itself computes something else"):
        dw.plan(shifted, {"q[heads]": 4})


def test_a_cast_that_only_larger_sizes_have_is_noted() -> None:
    def apply(p: Any, x: Any) -> Any:
        h = jnp.tanh(x @ p["i"])
        return (h.astype(jnp.bfloat16).astype(h.dtype) if h.shape[1] >= 12 else h) @ p["o"]

    growth = dw.plan(dw.trace(apply, arrays(i=(5, 8), o=(8, 3)), normal(7, 4, 5)), {"i": 16})
    assert "only one of both programs has casts to bfloat16" in growth.notes[-1]


def test_ids_are_small_where_a_table_has_no_entry_for_others() -> None:
    """The table is read from its end, where most ids lead out of it."""

    def apply(p: Any, ids: Any) -> Any:
        h = jnp.tanh(p["table"][-ids] @ p["up"])
        return h @ jnp.clip(p["down"], -1, 1)

    widths = dw.trace(apply, arrays(table=(5, 4), up=(4, 5), down=(5, 3)), jnp.arange(30) % 5)
    with pytest.raises(ValueError, match="cannot plan this growth"):
        dw.plan(widths, {"up": 6}, strategy=dw.strategies.replicate())


OF_SCALED = {
    "a median": lambda h: jnp.median(h, 1),  # half of n - 1 is its place
    "a sine that jumps": lambda h: jnp.sin(1e25 * h),  # only zeros are steady
}


@pytest.mark.parametrize("name", OF_SCALED)
def test_an_output_is_shown_by_more_than_zeros(name: str) -> None:
    def apply(p: Any, x: Any) -> Any:
        h = x @ p["up"] @ (p["down"] / (jnp.max(jnp.abs(p["down"]), 0, keepdims=True) + 1e-3))
        return OF_SCALED[name](h)

    variables, copies = arrays(up=(3, 3), down=(3, 3)), dw.strategies.replicate()
    assert_exact_or_refused(apply, variables, (normal(7, 4, 3),), {"up": 6}, strategy=copies)


def test_a_larger_size_is_no_rounding_in_bfloat16() -> None:
    def apply(p: Any, x: Any) -> Any:
        scores = (x @ p["q"]) @ (x @ p["k"]).T / p["q"].shape[1]
        return jax.nn.relu(scores) @ x @ p["o"]

    shapes = arrays(q=(50, 32), k=(50, 32), o=(50, 2))
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, jnp.bfloat16), shapes)
    widths = dw.trace(apply, shapes, jax.ShapeDtypeStruct((64, 50), jnp.bfloat16))
    growth = dw.plan(widths, {"q": 34}, strategy=dw.strategies.replicate())
    (factor,) = {factor for _, factor in growth.change["q"].factors()}
    np.testing.assert_allclose(factor, 34 / 32)


class Held(nn.Module):
    units: int
    function: Any

    @nn.compact
    def __call__(self, x: Any) -> Any:
        h = self.function(self.units, nn.Dense(self.units)(x))
        return nn.Dense(3)(h)


def traced_around(module: Held, x: Any) -> dw.Widths:
    """Returns the widths of a function that holds a module, so that nothing has its numbers."""
    return dw.trace(lambda v, x: module.apply(v, x), module.init(jax.random.key(0), x), x)


HELD = {
    "0.1 * 8": lambda n, h: h + 0.1 * n,
    "1 + 8**-1": lambda n, h: jnp.abs(h) ** (1 + 1 / n),
    "8": lambda n, h: jnp.clip(h, -8 / n, 8 / n),
    "0.125 * 8": lambda n, h: h * (n / 8),
}


def test_one_that_is_added_is_no_size() -> None:
    model = Held(8, lambda n, h: h * (1 + jnp.tanh(h)))
    growth = dw.plan(traced_around(model, jnp.ones((4, 5))), {"Dense_0": 16})
    assert "constants of the program are assumed to stay" in str(growth)


@pytest.mark.parametrize("formula", HELD)
def test_a_module_that_holds_its_size_is_refused_where_a_number_may_follow(formula: str) -> None:
    widths = traced_around(Held(8, HELD[formula]), normal(7, 4, 5))
    said = rf"\(test_unseen.py:\d+\) may follow from a size, as .*{re.escape(formula)}"
    with pytest.raises(ValueError, match=f"(?s){said}.*pass target_apply="):
        dw.plan(widths, {"Dense_0": 16})


@pytest.mark.parametrize("function", [nn.gelu, nn.softplus, lambda h: nn.LayerNorm()(nn.silu(h))])
def test_numbers_of_a_library_follow_from_no_size_and_the_first_line_says_so(function: Any) -> None:
    x = normal(7, 4, 5)
    widths = traced_around(Held(8, lambda n, h: function(h)), x)
    growth = dw.plan(widths, {"Dense_0": 16})
    assert str(growth).startswith("constants of the program are assumed to stay; pass target_apply")
    assert dw.from_json(dw.to_json(growth)).evidence == growth.evidence
    target = jax.eval_shape(Held(16, lambda n, h: function(h)).init, jax.random.key(0), x)
    large = Held(16, lambda n, h: function(h)).apply
    known = dw.plan(widths, target=target, target_apply=large)
    assert "numbers stay" not in str(known)


class Attention(nn.Module):
    """Flax divides queries by the root of their size, and JAX multiplies scores by one over it."""

    units: int
    is_flax: bool

    @nn.compact
    def __call__(self, x: Any) -> Any:
        if self.is_flax:
            return nn.MultiHeadDotProductAttention(2, qkv_features=self.units, out_features=3)(x)
        q, k, v = (nn.DenseGeneral((2, self.units // 2), name=name)(x) for name in "qkv")
        return nn.DenseGeneral(3, axis=(-2, -1))(jax.nn.dot_product_attention(q, k, v))


@pytest.mark.parametrize("units", [8, long(12)])  # one over the root of 4 is a half
@pytest.mark.parametrize("is_flax", [False, True])
def test_a_library_scales_scores_by_the_root_of_a_size(units: int, is_flax: bool) -> None:
    x, module = normal(7, 4, 5, 5), Attention(units, is_flax)
    widths = dw.trace(module.apply, module.init(jax.random.key(0), x), x)
    (name,) = (name for name in widths if name.endswith("[head_dim]"))
    growth = dw.plan(widths, {name: units})  # the module knows no such sizes
    assert re.search(r"is taken for \d\*\*-?0.5, so it is", growth.notes[0])
    assert [*growth.changes[0].factors()]  # arrays make up for it


# What is new can learn ----------------------------------------------------------------------------


def test_gradients_are_finite_for_zero_rows_behind_other_layers() -> None:
    """New groups have zero biases, so a row of zeros in a table becomes a norm of zero."""

    def apply(p: Any, ids: Any) -> Any:
        q = (p["e"][ids] @ p["q"] + p["b"]).reshape(*ids.shape, -1, 4)
        q = q / (jnp.linalg.norm(q, axis=-1, keepdims=True) + 1e-6)
        return q.reshape(*ids.shape, -1) @ p["o"]

    variables = arrays(e=(10, 6), q=(6, 8), b=(8,), o=(8, 3))
    variables["e"] = variables["e"].at[0].set(0)
    ids = jnp.array([[1, 2, 0, 0]])
    assert_exact_or_refused(apply, variables, (ids,), {"q[groups]": 3})


def test_new_entries_of_each_array_learn() -> None:
    """Values of new heads learn, but queries and keys of zero would be zero for ever."""

    def apply(p: Any, x: Any) -> Any:
        def normed(a: Any) -> Any:
            return a * jax.lax.rsqrt(jnp.mean(a * a, -1, keepdims=True) + 1e-6)

        q, k = (normed(x @ p[name]).reshape(*x.shape[:2], -1, 4) for name in "qk")
        v = (x @ p["v"]).reshape(*x.shape[:2], -1, 4)
        weights = jax.nn.softmax(jnp.einsum("bqhk,bthk->bhqt", q, k), -1)
        return jnp.einsum("bhqt,bthk->bqhk", weights, v).reshape(*x.shape[:2], -1) @ p["o"]

    variables = arrays(q=(5, 8), k=(5, 8), v=(5, 8), o=(8, 5))
    widths = dw.trace(apply, variables, normal(7, 3, 6, 5))
    (name,) = [n for n in widths if widths[n].size == 2 and widths[n].status != "interface"]
    try:
        growth = dw.plan(widths, {name: 4}, target_apply=apply)
    except ValueError:
        return
    wide = dw.grow(variables, growth, key=jax.random.key(1))
    x, y = normal(7, 3, 6, 5), normal(8, 3, 6, 5)
    step = jax.jit(jax.grad(lambda p: jnp.mean((apply(p, x) - y) ** 2)))
    trained = wide
    for _ in range(3):
        trained = jax.tree.map(lambda p, g: p - 0.1 * g, trained, step(trained))
    for name in "qk":
        assert not np.array_equal(trained[name][:, 8:], wide[name][:, 8:])


# What is no number, and what is not read ----------------------------------------------------------


def test_minus_infinity_that_becomes_nan_is_another_number() -> None:
    def apply(p: Any, x: Any, mask: Any) -> Any:
        return jnp.where(mask[:, None], jax.nn.log_sigmoid(x @ p["i"]), -jnp.inf) @ jnp.abs(p["o"])

    inputs = normal(7, 6, 5), jnp.array([True] * 4 + [False] * 2)
    widths = dw.trace(apply, arrays(i=(5, 8), o=(8, 3)), *inputs)
    with pytest.raises(ValueError, match="becomes nan instead of -inf"):
        dw.plan(widths, {"i": 12})


def test_arrays_that_nothing_reads_do_not_grow() -> None:
    kernel, variables = normal(1, 5, 8), {"hid": {"bias": jnp.zeros(8)}, "out": normal(2, 8, 3)}
    with pytest.warns(UserWarning, match="apply does not read hid/bias"):
        widths = dw.trace(lambda p, x: jnp.tanh(x @ kernel) @ p["out"], variables, normal(3, 2, 5))
    with pytest.raises(ValueError, match="hid/bias is never read"):
        dw.plan(widths, {"hid": 16})


# False refusals and crashes -----------------------------------------------------------------------


def test_labels_of_a_partition_may_be_a_prefix_of_the_parameters() -> None:
    def apply(p: Any, x: Any) -> Any:
        return jax.nn.relu(x @ p["a"]["w"] + p["a"]["b"]) @ p["o"]["w"] + p["o"]["b"]

    variables = {"a": arrays(w=(5, 8), b=(8,)), "o": arrays(w=(8, 3), b=(3,))}
    growth = dw.plan(dw.trace(apply, variables, normal(7, 4, 5)), {"a": 12})
    wide, found = dw.grow(variables, growth, key=jax.random.key(0)), []
    for labels in {"a": "x", "o": "y"}, {"a": {"w": "x", "b": "x"}, "o": {"w": "y", "b": "y"}}:
        txs = {"x": optax.sgd(0.1, momentum=0.9), "y": optax.adam(0.1)}
        tx = optax.partition(txs, labels)
        state = dw.grow_opt_state(tx.init(variables), growth, tx)
        assert jax.tree.structure(state) == jax.tree.structure(tx.init(wide))
        found.append(jax.tree.leaves(jax.tree.map(jnp.shape, state)))
    assert found[0] == found[1]


def test_a_product_of_axes_may_be_a_size_that_stays() -> None:
    """The input of this LoRA is as long as its rank times its output."""
    module = nnx.LoRA(32, 8, 4, rngs=nnx.Rngs(0))
    growth = dw.nnx.plan(dw.nnx.trace(module, normal(0, 3, 32)), {"lora_a": 12})
    wide = dw.nnx.grow(module, growth, key=jax.random.key(0))
    assert (wide.in_features, wide.lora_a.shape, wide.lora_b.shape) == (32, (32, 12), (12, 4))


@pytest.mark.skipif(not hasattr(jax, "set_mesh"), reason="takes jax.set_mesh")
def test_a_mesh_that_is_set_is_none_of_the_evaluations() -> None:
    """Heads of attention grow with the stream, from a larger model's arrays."""

    def make(stream: int, heads: int) -> Any:
        options = {"qkv_features": 4 * heads, "decode": False, "rngs": nnx.Rngs(0)}
        return nnx.MultiHeadAttention(heads, stream, **options)

    x = normal(0, 2, 3, 5)
    with jax.set_mesh(jax.make_mesh((1,), ("fsdp",))):
        small, large = make(5, 2), make(5, 3)
        growth = dw.nnx.plan(dw.nnx.trace(small, x), target=large)
        assert growth.evidence.samples


def test_a_loop_that_does_not_end_shows_nothing() -> None:
    def apply(p: Any, x: Any) -> Any:
        h = jnp.tanh(x @ p["i"]) @ p["o"]
        return jax.lax.while_loop(
            lambda s: jnp.abs(s).max() > 1e-3, lambda s: s * jnp.abs(p["s"]), h
        )

    variables = arrays(i=(5, 8), o=(8, 3)) | {"s": jnp.array(0.5)}
    widths = dw.trace(apply, variables, normal(7, 4, 5))
    try:
        dw.plan(widths, {"i": 12})
    except ValueError as error:
        assert "cannot plan this growth" in str(error)


# verify -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "times"), [(jnp.bfloat16, 1.02), (jnp.float8_e4m3fn, 1.1)], ids=["bfloat16", "float8"]
)
def test_a_uniform_change_is_no_rounding(dtype: Any, times: float) -> None:
    def network(times: float) -> Any:
        def apply(p: Any, x: Any) -> Any:
            h = jnp.tanh(x @ p["i"]).astype(dtype).astype(float)
            return times * (h @ p["o"])

        return apply

    variables, x = arrays(i=(8, 64), o=(64, 10)), normal(7, 5, 8)
    assert dw.verify(network(1.0), variables, network(1.0), variables, x).absolute == 0
    with pytest.raises(ValueError, match=f"all entries together are {times} times as large"):
        dw.verify(network(1.0), variables, network(times), variables, x)


@pytest.mark.parametrize(("dtype", "less"), [(jnp.bfloat16, 4), (jnp.float16, 0.5)])
def test_a_constant_of_another_size_is_no_rounding(dtype: Any, less: float) -> None:
    """``1 - less / n`` moves by two epsilons, so arrays make up for it."""

    def apply(p: Any, x: Any) -> Any:
        y = jax.nn.relu(x.astype(dtype) @ p["up"]) @ p["down"]
        return y * jnp.asarray(1 - less / p["up"].shape[1], dtype)

    keys = jax.random.split(jax.random.key(0))
    variables = {
        "up": jax.random.normal(keys[0], (16, 128), dtype) / 4,
        "down": jax.random.normal(keys[1], (128, 4), dtype) / 11,
    }
    x = jax.random.normal(jax.random.key(1), (8, 16))
    growth = dw.plan(dw.trace(apply, variables, x), {"up": 256})
    assert "rescaled arrays make up for it" in f"{growth}"
    (change,) = growth.changes
    assert [*change.factors()]


def embedded(size: int) -> Any:
    return lambda p, ids: (p["e"][ids] * size**0.5 + p["b"]) @ p["o"]


def of_size(size: int) -> Any:
    return arrays(e=(11, size), b=(size,), o=(size, 5))


def test_a_root_of_a_size_follows_it_in_a_target_without_a_function() -> None:
    ids, target = jnp.arange(6), jax.eval_shape(lambda: of_size(32))
    growth = dw.plan(dw.trace(embedded(24), of_size(24), ids), target=target)
    assert re.search(r"4.89898 .* is taken for 24\*\*0.5, so it is 5.65685", growth.notes[0])
    wide = dw.grow(of_size(24), growth, key=jax.random.key(1))
    dw.verify(embedded(24), of_size(24), embedded(32), wide, ids)


def test_another_number_stays_in_a_target_without_a_function() -> None:
    """A 16 behind 16 units may follow from their number, or not."""

    def apply(p: Any, ids: Any) -> Any:
        return (p["e"][ids] * 16 + p["b"]) @ p["o"]

    target = jax.eval_shape(lambda: of_size(32))
    growth = dw.plan(dw.trace(apply, of_size(16), jnp.arange(6)), target=target)
    assert re.search(r"16 .* stays what it is; .* as 16\*\*1", growth.notes[0])
