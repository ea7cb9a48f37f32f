"""Frozen weights of small integers grow by zeros, beside adapters that are trained."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import data, f64, fill

import dogwood_jax as dw


def int8(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.int8)


def shapes_of(hidden: int) -> dict[str, Any]:
    frozen = {"up": int8(5, hidden), "down": int8(hidden, 3)}
    scales = {"up_scale": f64(hidden), "down_scale": f64(3)}
    adapters = {"a": f64(5, 2), "b": f64(2, hidden), "c": f64(hidden, 2), "d": f64(2, 3)}
    return {"frozen": frozen | scales, "adapters": adapters}


def filled(shapes: Any, seed: int) -> Any:
    """Random weights, and small integers other than zero."""
    rng = np.random.default_rng(seed)
    weights = fill(jax.tree.map(lambda s: f64(*s.shape), shapes), seed)
    return jax.tree.map(
        lambda s, w: (
            jnp.asarray(rng.integers(1, 100, s.shape), s.dtype) if s.dtype == "int8" else w
        ),
        shapes,
        weights,
    )


def by_dequantizing(variables: Any, x: Any) -> Any:
    p, q = variables["frozen"], variables["adapters"]
    y = x @ (p["up"].astype(x.dtype) * p["up_scale"][None]) + x @ q["a"] @ q["b"]
    y = jnp.tanh(y)
    return y @ (p["down"].astype(x.dtype) * p["down_scale"][None]) + y @ q["c"] @ q["d"]


def by_integer_products(variables: Any, x: Any) -> Any:
    """Activations are rounded, too, and both are multiplied as integers."""
    p, q = variables["frozen"], variables["adapters"]

    def product(x: Any, w: Any) -> Any:
        rounded = jnp.round(x * 7).astype(jnp.int8)
        return jnp.matmul(rounded, w, preferred_element_type=jnp.int32).astype(x.dtype) / 7

    y = jnp.tanh(product(x, p["up"]) * p["up_scale"][None] / 99 + x @ q["a"] @ q["b"])
    return product(y, p["down"]) * p["down_scale"][None] + y @ q["c"] @ q["d"]


X = data(4, 5)


@pytest.mark.parametrize(
    ("apply", "by"),
    [
        (by_dequantizing, "sizes"),
        (by_dequantizing, "target"),
        (by_integer_products, "target_apply"),
    ],
)
def test_frozen_integers_grow_by_zeros(apply: Any, by: str) -> None:
    shapes, target = shapes_of(4), shapes_of(7)
    widths = dw.trace(apply, shapes, X)
    name = widths.of("frozen/up", 1).name
    asked = {
        "sizes": {"sizes": {name: 7}},
        "target": {"target": target},
        "target_apply": {"target": target, "target_apply": apply},
    }[by]
    growth = dw.plan(widths, **asked)
    assert any("arrays of small integers are zeros" in note for note in growth.notes)
    variables = filled(shapes, 1)
    grown = dw.grow(variables, growth, key=jax.random.key(0))
    for path in ("up", "down"):
        assert grown["frozen"][path].dtype == jnp.int8
    assert not grown["frozen"]["up"][:, 4:].any() and not grown["frozen"]["down"][4:].any()
    run = jax.jit(apply)
    outputs = run(variables, X)
    np.testing.assert_allclose(run(grown, X), outputs, rtol=0, atol=1e-12 * abs(outputs).max())
    # New units learn by the adapters.
    loss = lambda q: (apply({"frozen": grown["frozen"], "adapters": q}, X) ** 2).sum()  # noqa: E731
    gradient = jax.jit(jax.grad(loss))(grown["adapters"])
    assert abs(gradient["c"][4:]).min() > 0


def test_fresh_integers_are_taken_where_they_are_free() -> None:
    shapes, target = shapes_of(4), shapes_of(7)
    variables = filled(shapes, 1)
    growth = dw.plan(dw.trace(by_dequantizing, shapes, X), target=target)
    grown = dw.grow(variables, growth, fresh=filled(target, 2))
    assert grown["frozen"]["up"].dtype == jnp.int8
    np.testing.assert_allclose(by_dequantizing(grown, X), by_dequantizing(variables, X), rtol=1e-11)


def test_integers_are_not_shared_out_among_copies() -> None:
    widths = dw.trace(by_dequantizing, shapes_of(4), X)
    with pytest.raises(ValueError, match="small integers cannot be divided"):
        dw.plan(widths, {widths.of("frozen/up", 1).name: 8}, strategy=dw.strategies.replicate())


def rows_by_integers(p: Any, x: Any) -> Any:
    return jnp.tanh(x @ p["up"])[:, p["frozen"].astype(jnp.int32)] @ p["down"]


def bits_of_integers(p: Any, x: Any) -> Any:
    return jnp.tanh(x @ p["up"]) * (p["frozen"] & 1)[None].astype(x.dtype) @ p["down"]


def shifted(p: Any, x: Any) -> Any:
    """Zero stands for another number."""
    weights = p["frozen"].astype(x.dtype)[:, None] + 3.0
    return jnp.cos(x @ p["up"]) @ (weights * jnp.ones((1, 2)))


SHAPES = {"up": f64(5, 4), "frozen": int8(4), "down": f64(4, 2)}


@pytest.mark.parametrize("apply", [rows_by_integers, bits_of_integers])
def test_integers_that_are_read_otherwise_get_zeros_all_the_same(apply: Any) -> None:
    widths, variables = dw.trace(apply, SHAPES, X), filled(SHAPES, 1)
    variables["frozen"] = np.abs(variables["frozen"]) % 4
    growth = dw.plan(widths, {widths.of("frozen", 0).name: 6})
    wide = dw.grow(variables, growth, key=jax.random.key(0))
    np.testing.assert_allclose(apply(wide, X), apply(variables, X), rtol=1e-11)


def test_integers_of_which_zero_is_no_zero_cannot_grow() -> None:
    widths = dw.trace(shifted, SHAPES, X)
    with pytest.raises(ValueError, match="cannot plan this growth"):
        dw.plan(widths, {widths.of("frozen", 0).name: 6})


def test_new_units_of_zeros_must_be_finite() -> None:
    def apply(p: Any, x: Any) -> Any:
        y = x @ p["up"].astype(x.dtype)
        return y * jax.lax.rsqrt((y * y).mean(0, keepdims=True)) @ p["down"]

    widths = dw.trace(apply, {"up": int8(5, 4), "down": f64(4, 2)}, X)
    with pytest.raises(ValueError, match="rsqrt .* is not finite"):
        dw.plan(widths, {"up": 6})


def attend(p: Any, x: Any) -> Any:
    q, k = x @ p["q"], x @ (p["k"].astype(x.dtype) * p["scale"][None])
    return jax.nn.softmax(q @ k.T * k.shape[-1] ** -0.5) @ x


def test_a_recipe_rescales_the_scales_beside_integers() -> None:
    def shapes(dim: int) -> Any:
        return {"q": f64(5, dim), "k": int8(5, dim), "scale": f64(dim)}

    widths = dw.trace(attend, shapes(6), X)
    growth = dw.plan(widths, target=shapes(10), target_apply=attend)
    variables = filled(shapes(6), 1)
    grown = dw.grow(variables, growth, key=jax.random.key(0))
    np.testing.assert_allclose(attend(grown, X), attend(variables, X), rtol=0, atol=1e-12)
