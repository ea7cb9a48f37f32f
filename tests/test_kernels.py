"""References in the place of kernels: ``trace(..., kernels=)``."""

import functools
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.experimental import pallas as pl
from networks import data, f64, fill
from tiers import long

import dogwood_jax as dw
from dogwood_jax._program.kernels import with_references

X = data(3, 4)


def gelu_kernel(x: Any, out: Any) -> None:
    out[...] = x[...] * jax.nn.sigmoid(1.702 * x[...])


def gelu(x: Any) -> Any:
    return x * jax.nn.sigmoid(1.702 * x)


def by_pallas(x: Any) -> Any:
    return pl.pallas_call(gelu_kernel, out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype))(x)


def by_callback(x: Any) -> Any:
    def on_the_host(h: Any) -> Any:
        return np.asarray(gelu(h))

    return jax.pure_callback(on_the_host, jax.ShapeDtypeStruct(x.shape, x.dtype), x)


@jax.custom_vjp
def differentiable(x: Any) -> Any:
    return by_pallas(x)


differentiable.defvjp(lambda x: (by_pallas(x), x), lambda x, ct: (ct * by_pallas(x),))


@jax.jit
def with_derivative(x: Any) -> Any:
    return differentiable(x)


def mlp(act: Callable[..., Any], params: Any, x: Any) -> Any:
    return act(x @ params["up"]) @ params["down"]


def layers(act: Callable[..., Any], params: Any, x: Any) -> Any:
    return jax.lax.scan(lambda h, layer: (h + mlp(act, layer, h), None), x, params)[0]


def shapes(units: int, *stack: int) -> dict[str, Any]:
    return {"up": f64(*stack, 4, units), "down": f64(*stack, units, 4)}


@pytest.mark.parametrize(
    ("act", "name", "stack"),
    [
        (by_pallas, "pallas_call", ()),
        long(by_pallas, "gelu_kernel", (2,)),
        (by_callback, "pure_callback", (2,)),
        (by_callback, "on_the_host", ()),
        (with_derivative, "pallas_call", (2,)),
        long(with_derivative, "with_derivative", ()),
    ],
)
def test_a_reference_is_read_in_the_place_of_a_kernel(
    act: Any, name: str, stack: tuple[int, ...]
) -> None:
    network = layers if stack else mlp
    apply, params = functools.partial(network, act), fill(shapes(5, *stack), 0)
    alone = dw.trace(apply, params, X)
    primitive = "pure_callback" if act is by_callback else "pallas_call"
    with pytest.raises(ValueError, match=rf"kernels={{'{primitive}': reference}}"):
        dw.plan(alone, {alone.of("up", -1).name: 8})
    widths = dw.trace(apply, params, X, kernels={name: gelu})
    target = shapes(8, *stack)
    for growth in (
        dw.plan(widths, {widths.of("up", -1).name: 8}),
        dw.plan(widths, target=target),
        dw.plan(widths, target=target, target_apply=apply),
    ):
        assert growth.evidence.samples
        wide = dw.grow(params, growth, key=jax.random.key(0))
        run = functools.partial(network, gelu)
        np.testing.assert_allclose(run(wide, X), run(params, X), rtol=1e-12)


def test_a_larger_model_that_computes_something_else_than_the_reference() -> None:
    widths = dw.trace(
        functools.partial(mlp, by_pallas), shapes(5), X, kernels={"gelu_kernel": gelu}
    )
    with pytest.raises(ValueError, match="computes something else"):
        dw.plan(widths, target=shapes(8), target_apply=functools.partial(mlp, jnp.tanh))


def test_the_derivative_is_that_of_the_reference() -> None:
    alone = with_references(lambda x: with_derivative(x).sum(), {"pallas_call": gelu})
    got, wanted = jax.grad(alone)(X), jax.grad(lambda x: gelu(x).sum())(X)
    np.testing.assert_allclose(got, wanted, rtol=1e-12)


def test_a_module_of_nnx_with_a_kernel() -> None:
    class Network(nnx.Module):
        def __init__(self, units: int) -> None:
            rngs = nnx.Rngs(0)
            self.up, self.down = nnx.Linear(4, units, rngs=rngs), nnx.Linear(units, 2, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            return self.down(by_pallas(self.up(x)))

    x = jnp.ones((3, 4))
    widths = dw.nnx.trace(Network(5), x, kernels={"pallas_call": gelu})
    growth = dw.nnx.plan(widths, {"up": 8})
    assert growth.sizes["up"] == 8 and growth.evidence.samples


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        (lambda x: x[:1], ["it returns float64[1, 5]", "the kernel returns float64[3, 5]"]),
        (lambda x: x.astype(jnp.float32), ["it returns float32[3, 5]", "float64[3, 5]"]),
        (lambda x: (x, x), ["float64[3, 5], float64[3, 5]"]),
        (lambda x, scale: x * scale, ["does not take float64[3, 5]", "scale"]),
    ],
)
def test_a_reference_that_does_not_fit(reference: Any, words: list[str]) -> None:
    with pytest.raises(ValueError, match=re.escape("kernels['pallas_call']: the function")) as e:
        kernels = {"pallas_call": reference}
        dw.trace(functools.partial(mlp, by_pallas), shapes(5), X, kernels=kernels)
    assert all(word in str(e.value) for word in words)
