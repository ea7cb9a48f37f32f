"""Examples of contractions, reductions and linear algebra."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from primitive_examples import (
    EXAMPLES,
    TOTAL,
    Example,
    Shapes,
    X,
    data,
    example,
    layer,
    mlp,
    on_devices,
    two_widths,
)

# Contractions -------------------------------------------------------------------------------------


@example("dot_general", shapes=lambda n=4, m=3: {"i": (5, n), "w": (n, m), "o": (m, 2)})
def dot_general(p: Any, x: Any) -> Any:
    return jnp.sin(layer(p, x) @ p["w"]) @ p["o"]


@example("dot_general", shapes=lambda n=4, m=3: {"i": (5, n), "w": (n, m), "o": (m, 2)})
def dot_general_of_weights(p: Any, x: Any) -> Any:
    return layer(p, x) @ (p["w"] @ p["o"])


@example("dot_general", shapes=lambda n=4: {"i": (5, n), "w": (n, n), "o": (n, 2)})
def dot_general_of_a_residual(p: Any, x: Any) -> Any:
    y = layer(p, x)
    return (y + jnp.sin(y @ p["w"])) @ p["o"]


@example("dot_general", shapes=lambda d=4: {"q": (5, d), "k": (5, d)})
def dot_general_of_scores(p: Any, x: Any) -> Any:
    return jnp.tanh((x @ p["q"]) @ (x @ p["k"]).T / TOTAL**2)


@example("dot_general", shapes=lambda h=3, d=4: {"q": (5, h, d), "k": (5, h, d), "o": (h, 4)})
def dot_general_in_batches(p: Any, x: Any) -> Any:
    q, k = (jnp.einsum("bi,ihd->hbd", x / TOTAL, p[name]) for name in "qk")
    return jnp.einsum("hbc,hc->bc", jnp.tanh(q @ k.mT), p["o"])


@example("dot_general", shapes=lambda d=4, n=3: {"i": (5, d), "b": (d, n), "c": (d, n)})
def dot_general_of_two_widths(p: Any, x: Any) -> Any:
    return (jnp.einsum("bd,dn->bdn", x @ p["i"], p["b"]) * p["c"][None]).sum((1, 2))


@example("dot_general", shapes=lambda d=4, n=3: {"i": (5, d), "b": (5, n), "c": (d, n)})
def dot_general_of_an_outer_product(p: Any, x: Any) -> Any:
    return jnp.einsum("bd,bn,dn->b", jnp.sin(x @ p["i"]), jnp.sin(x @ p["b"]), p["c"])


@example("dot_general", shapes=two_widths)
def dot_general_with_itself(p: Any, x: Any) -> Any:
    y = layer(p, x)
    return y @ y.T + y @ (p["o"] @ p["o"].T) @ y.T


@example("dot_general", shapes=two_widths)
def dot_general_with_itself_shifted(p: Any, x: Any) -> Any:
    y = layer(p, x)
    return y @ (y + 1).T + y @ p["o"][:, :1]


@example(
    "dot_general", shapes=mlp, dtype=jnp.bfloat16, inputs=(X.astype(jnp.bfloat16),), rounding=0.05
)
def dot_general_in_bfloat16(p: Any, x: Any) -> Any:
    return layer(p, x) @ p["o"]


@example("dot_general", shapes=mlp, dtype=jnp.complex128)
def dot_general_of_complex_numbers(p: Any, x: Any) -> Any:
    return jnp.sin(x @ p["i"] / TOTAL) @ p["o"]


@example("dot_general", shapes=mlp)
def dot_general_with_imaginary_bias(p: Any, x: Any) -> Any:
    return abs(layer(p, x) @ (p["o"] + 1j))


@example("ragged_dot_general", shapes=lambda n=4, m=3: {"i": (5, n), "w": (2, n, m), "o": (m, 2)})
def ragged_dot_general(p: Any, x: Any) -> Any:
    y = lax.ragged_dot(layer(p, x), p["w"], np.array([3, 1], np.int32))
    return jnp.sin(y) @ p["o"]


NUMBERS = ("NHWC", "HWIO", "NHWC")
IMAGE = np.abs(data(2, 4, 4, 3))


def conv(x: Any, kernel: Any, **known: Any) -> Any:
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=NUMBERS, **known)


def two_convs(n: int = 4) -> Shapes:
    return {"i": (2, 2, 3, n), "o": (2, 2, n, 2)}


@example("conv_general_dilated", shapes=two_convs, inputs=(IMAGE,))
def conv_general_dilated(p: Any, x: Any) -> Any:
    return conv(jnp.sin(conv(x, p["i"])), p["o"])


@example(
    "conv_general_dilated",
    shapes=lambda n=4: {"i": (2, 2, 3, n), "w": (2, 2, 1, n), "o": (n, 2)},
    inputs=(IMAGE,),
)
def conv_by_channel(p: Any, x: Any) -> Any:
    y = jnp.sin(conv(x, p["i"]))
    return conv(y, p["w"], feature_group_count=y.shape[3]) @ p["o"]


@example(
    "conv_general_dilated",
    shapes=lambda g=2, n=4, m=3: {"i": (1, 1, 3, g * n), "w": (2, 2, n, g * m), "o": (g * m, 2)},
    inputs=(IMAGE,),
)
def conv_in_groups(p: Any, x: Any) -> Any:
    y = jnp.sin(conv(x, p["i"]))
    return jnp.sin(conv(y, p["w"], feature_group_count=y.shape[3] // p["w"].shape[2])) @ p["o"]


@example(
    "conv_general_dilated",
    shapes=lambda b=2, n=5: {"w": (2, 2, 3, b * n), "o": (b * n, 2)},
    inputs=lambda b=2: (data(b, 4, 4, 3),),
)
def conv_in_groups_of_a_batch(p: Any, x: Any) -> Any:
    return jnp.sin(conv(x, p["w"], batch_group_count=len(x))) @ p["o"]


# Sums and reductions ------------------------------------------------------------------------------


@example("reduce_sum", shapes=lambda n=4: {"i": (5, n), "g": (n,)})
def reduce_sum_weighted(p: Any, x: Any) -> Any:
    y = layer(p, x)
    return (y * p["g"][None]).sum(1)


@example("reduce_sum", shapes=mlp)
def reduce_sum_unweighted(p: Any, x: Any) -> Any:
    y = layer(p, x)
    return y.sum(1, keepdims=True) + y @ p["o"]


@example("reduce_sum", shapes=two_widths)
def reduce_sum_of_weights(p: Any, x: Any) -> Any:
    return layer(p, x) @ p["o"].sum(1)


@example("reduce_sum", shapes=mlp)
def reduce_sum_of_all_weights(p: Any, x: Any) -> Any:
    return layer(p, x) @ p["o"] + (p["o"] ** 2).sum()


@example("reduce_sum", shapes=mlp)
def reduce_sum_in_softmax(p: Any, x: Any) -> Any:
    return jax.nn.softmax(layer(p, x)) @ p["o"]


@example("reduce_sum", "rsqrt", shapes=mlp)
def reduce_sum_in_a_norm(p: Any, x: Any) -> Any:
    y = layer(p, x)
    return y * lax.rsqrt((y * y).mean(1, keepdims=True)) @ p["o"]


@example("reduce_sum", "rsqrt", shapes=mlp)
def reduce_sum_by_a_number_that_was_the_size(p: Any, x: Any) -> Any:
    y = layer(p, x)
    return y * lax.rsqrt((y * y).sum(1, keepdims=True) / 4) @ p["o"]


@example("reduce_sum", "div", shapes=mlp)
def reduce_sum_in_normed_weights(p: Any, x: Any) -> Any:
    return layer(p, x) @ (p["o"] / jnp.linalg.norm(p["o"], axis=1, keepdims=True))


@example("reduce_sum", "div", shapes=mlp)
def reduce_sum_in_weights_normed_by_column(p: Any, x: Any) -> Any:
    return layer(p, x) @ (p["o"] / jnp.linalg.norm(p["o"], axis=0, keepdims=True))


@example("reduce_sum", "div", shapes=mlp)
def reduce_sum_in_softmax_of_weights(p: Any, x: Any) -> Any:
    return layer(p, x) @ jax.nn.softmax(p["o"], axis=0)


def _over_units(f: Callable[..., Any]) -> Callable[..., Any]:
    def apply(p: Any, x: Any) -> Any:
        y = layer(p, x)
        return f(y, 1).astype(float)[:, None] + y @ p["o"]

    return apply


def _over_rows(f: Callable[..., Any]) -> Callable[..., Any]:
    def apply(p: Any, x: Any) -> Any:
        return jnp.atleast_2d(f(layer(p, x), 0)).astype(float) @ p["o"]

    return apply


def _over_columns_of_weights(f: Callable[..., Any]) -> Callable[..., Any]:
    def apply(p: Any, x: Any) -> Any:
        return layer(p, x) @ jnp.atleast_2d(f(p["o"], 1)).astype(float).T

    return apply


def _over_rows_of_weights(f: Callable[..., Any]) -> Callable[..., Any]:
    def apply(p: Any, x: Any) -> Any:
        return layer(p, x) @ (p["o"] * jnp.atleast_2d(f(p["o"], 0)))

    return apply


def _custom(y: Any, axis: int) -> Any:
    return lax.reduce(y, 0.0, lambda a, b: jnp.hypot(a, b), (axis,))


def _bits(reduce: Callable[..., Any]) -> Callable[..., Any]:
    return lambda y, axis: reduce((8 * y).astype(int), (axis,))


REDUCTIONS: dict[str, Callable[..., Any]] = {
    "reduce_sum": jnp.sum,
    "reduce_max": jnp.max,
    "reduce_min": jnp.min,
    "reduce_prod": jnp.prod,
    "reduce_and": lambda y, axis: (y > 0).all(axis),
    "reduce_or": lambda y, axis: (y > 0).any(axis),
    "reduce_xor": _bits(lax.reduce_xor),
    "argmax": jnp.argmax,
    "argmin": jnp.argmin,
    "reduce": _custom,
}
for primitive, reduction in REDUCTIONS.items():
    for place in (_over_units, _over_rows, _over_columns_of_weights, _over_rows_of_weights):
        EXAMPLES[f"{primitive}{place.__name__}"] = Example(
            place(reduction), (primitive,), two_widths
        )


@example("psum", shapes=mlp, somewhere=True)
def psum_over_units(p: Any, x: Any) -> Any:
    def one(i: Any, o: Any) -> Any:
        return lax.psum(jnp.tanh(x @ i / TOTAL)[:, None] * o[None], "units")

    return jax.vmap(one, (1, 0), axis_name="units")(p["i"], p["o"])[0]


@example("psum_invariant", "pvary", shapes=mlp, somewhere=True)
def psum_over_devices(p: Any, x: Any) -> Any:
    def one(y: Any, o: Any) -> Any:
        vary = (lambda a, n: lax.pcast(a, n, to="varying")) if hasattr(lax, "pcast") else lax.pvary
        return lax.psum(vary(y, "devices") @ o, "devices")

    return on_devices(one, 2)(layer(p, x), p["o"])


@example("axis_index", shapes=mlp)
def axis_index(p: Any, x: Any) -> Any:
    def one(y: Any, o: Any) -> Any:
        return lax.psum((y @ o) * (1 + lax.axis_index("devices")), "devices")

    return on_devices(one, 2)(layer(p, x), p["o"])


@example("cumsum", shapes=mlp)
def cumsum_of_rows(p: Any, x: Any) -> Any:
    return jnp.cumsum(layer(p, x), 0) @ p["o"]


CUMULATIVE: dict[str, Callable[..., Any]] = {
    "cumsum": lax.cumsum,
    "cumprod": lax.cumprod,
    "cummax": lax.cummax,
    "cummin": lax.cummin,
    "cumlogsumexp": lax.cumlogsumexp,
    "sort": lambda y, axis: jnp.sort(y, axis=axis),
}


def _along_units(f: Callable[..., Any]) -> Callable[..., Any]:
    return lambda p, x: f(layer(p, x), 1) @ p["o"]


def _along_rows(f: Callable[..., Any]) -> Callable[..., Any]:
    return lambda p, x: f(layer(p, x), 0) @ p["o"]


def _along_rows_of_weights(f: Callable[..., Any]) -> Callable[..., Any]:
    return lambda p, x: layer(p, x) @ f(p["o"], 0)


def _along_columns_of_weights(f: Callable[..., Any]) -> Callable[..., Any]:
    return lambda p, x: layer(p, x) @ f(p["o"], 1)


for primitive, cumulative in CUMULATIVE.items():
    for place in (_along_units, _along_rows, _along_rows_of_weights, _along_columns_of_weights):
        EXAMPLES[f"{primitive}{place.__name__}"] = Example(place(cumulative), (primitive,), mlp)


@example("sort", shapes=mlp)
def sort_by_another(p: Any, x: Any) -> Any:
    y = layer(p, x)
    _, sorted_rows = lax.sort((jnp.cos(y), y), dimension=0, num_keys=1)
    return sorted_rows @ p["o"]


@example("top_k", shapes=mlp)
def top_k_of_units(p: Any, x: Any) -> Any:
    values, places = lax.top_k(layer(p, x), 2)
    return values + places + layer(p, x) @ p["o"]


@example("top_k", shapes=mlp)
def top_k_of_rows(p: Any, x: Any) -> Any:
    values, _ = lax.top_k(layer(p, x).T, 2)
    return values.T @ p["o"]


@example(
    "top_k",
    shapes=lambda e=3, n=4: {"r": (5, e), "w": (e, 5, n), "o": (n, 2)},
    inputs=(data(12, 5),),
)
def top_k_by_capacity(p: Any, x: Any) -> Any:
    s = jax.nn.sigmoid(x @ p["r"])
    values, rows = lax.top_k(s.T, len(x) // s.shape[1])
    return jnp.einsum("eb,ebi,ein->n", values, x[rows], p["w"]) @ p["o"]


@example("approx_top_k", shapes=mlp)
def approx_top_k(p: Any, x: Any) -> Any:
    values, _ = lax.approx_max_k(layer(p, x), 2)
    return values + layer(p, x) @ p["o"]


@example("approx_top_k", shapes=mlp)
def approx_top_k_of_rows(p: Any, x: Any) -> Any:
    values, _ = lax.approx_max_k(layer(p, x), 2, reduction_dimension=0)
    return values @ p["o"]


def _pooled(x: Any, start: float, f: Callable[..., Any]) -> Any:
    return lax.reduce_window(x, start, f, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")


def _pooling(start: float, f: Callable[..., Any]) -> Callable[..., Any]:
    return lambda p, x: conv(_pooled(jnp.sin(conv(x, p["i"])), start, f), p["o"])


for primitive, (start, reducer) in {
    "reduce_window_sum": (0.0, lax.add),
    "reduce_window_max": (-np.inf, lax.max),
    "reduce_window_min": (np.inf, lax.min),
    "reduce_window": (1.0, lambda a, b: a * b + 1),
}.items():
    EXAMPLES[primitive] = Example(_pooling(start, reducer), (primitive,), two_convs, (IMAGE,))


@example("reduce_window_max", shapes=mlp)
def reduce_window_max_over_units(p: Any, x: Any) -> Any:
    y = layer(p, x)
    return lax.reduce_window(y, -np.inf, lax.max, (1, 2), (1, 1), "SAME") @ p["o"]


@example("select_and_scatter_add", shapes=two_convs, inputs=(IMAGE,))
def select_and_scatter_add(p: Any, x: Any) -> Any:
    def pooled(y: Any) -> Any:
        return (_pooled(y, -np.inf, lax.max) ** 2).sum()

    return conv(jax.grad(pooled)(jnp.sin(conv(x, p["i"]))), p["o"])


@example("select_and_gather_add", shapes=two_convs, inputs=(IMAGE,))
def select_and_gather_add(p: Any, x: Any) -> Any:
    y = jnp.sin(conv(x, p["i"]))
    _, moved = jax.jvp(lambda y: _pooled(y, -np.inf, lax.max), (y,), (jnp.cos(y),))
    return conv(moved, p["o"])


@example("fft", shapes=mlp)
def fft_of_units(p: Any, x: Any) -> Any:
    return abs(jnp.fft.fft(layer(p, x), axis=1) @ p["o"])


@example("fft", shapes=mlp)
def fft_of_rows(p: Any, x: Any) -> Any:
    return abs(jnp.fft.rfft(layer(p, x), axis=0) @ p["o"])


# Linear algebra -----------------------------------------------------------------------------------


def _gram(y: Any) -> Any:
    return y @ y.T + jnp.eye(len(y))


def _of_matrices(f: Callable[..., Any]) -> Callable[..., Any]:
    """Matrices over the batch in front of a contraction, and those over the units."""

    def apply(p: Any, x: Any) -> Any:
        y = layer(p, x)
        return f(_gram(y @ p["o"]))

    return apply


def _over_batches(f: Callable[..., Any]) -> Callable[..., Any]:
    """A matrix for each unit, which is a batch of them."""

    def apply(p: Any, x: Any) -> Any:
        y = layer(p, x).T[:, :, None] + jnp.ones((1, 1, 4))
        matrices = jnp.abs(f(y @ y.mT + jnp.eye(4)[None]))
        return jnp.einsum("nbc,no->bco", matrices, p["o"])

    return apply


def _over_weights(f: Callable[..., Any]) -> Callable[..., Any]:
    return lambda p, x: layer(p, x) @ jnp.abs(f(_gram(p["o"]))) @ p["o"]


LINEAR_ALGEBRA: dict[str, Callable[..., Any]] = {
    "cholesky": lax.linalg.cholesky,
    "triangular_solve": lambda a: lax.linalg.triangular_solve(a, a + 1),
    "lu": lambda a: lax.linalg.lu(a)[0],
    "lu_pivots_to_permutation": lambda a: (
        lax.linalg.lu_pivots_to_permutation(lax.linalg.lu(a)[1], a.shape[-1])[..., None] * a
    ),
    "qr": lambda a: jnp.abs(lax.linalg.qr(a)[1]),
    "eigh": lambda a: jnp.linalg.eigvalsh(a)[..., None] * a,
    "eig": lambda a: jnp.abs(jnp.linalg.eigvals(a)).sum(-1)[..., None, None] * a,
    "svd": lambda a: jnp.linalg.svd(a, compute_uv=False)[..., None] * a,
    "householder_product": lambda a: lax.linalg.householder_product(a, a[..., 0, :]),
    "tridiagonal_solve": lambda a: lax.linalg.tridiagonal_solve(
        *(a[..., k, :].at[..., z].set(0.0) for k, z in ((0, 0), (1, ()), (2, -1))), a
    ),
    "schur": lambda a: jnp.abs(lax.linalg.schur(a)[0]),
    "hessenberg": lambda a: jnp.abs(lax.linalg.hessenberg(a)[0]),
    "tridiagonal": lambda a: jnp.abs(lax.linalg.tridiagonal(a)[0]),
}
for primitive, operation in LINEAR_ALGEBRA.items():
    for place in (_of_matrices, _over_batches, _over_weights):
        EXAMPLES[f"{primitive}{place.__name__}"] = Example(
            place(operation), (primitive,), two_widths
        )
