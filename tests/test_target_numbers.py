"""The larger model has other numbers: arrays are rescaled to make up for them, or it is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from networks import data, f64, fill
from safetensors.flax import load_file, save_file
from tiers import some

import dogwood_jax as dw


class Case(NamedTuple):
    """A network and the arrays of the function, for any size of what grows.

    Attributes:
        apply: a function of the variables and one input.
        shapes: returns the shapes of the variables, given the size.
        inputs: the input's shape.
        sizes: the size before and after.
    """

    apply: Callable[[int], Callable[..., Any]]
    shapes: Callable[[int], Any]
    inputs: tuple[int, ...]
    sizes: tuple[int, int] = (6, 10)


# Rotary embeddings --------------------------------------------------------------------------------


def frequencies(n: int) -> Any:
    """Frequencies of pairs, computed from no size."""
    return 1 / 10 ** (jnp.arange(n) / 3)


def of_all_pairs(n: int) -> Any:
    """The usual frequencies: old pairs get others if there are more pairs."""
    return 1 / 10 ** (jnp.arange(n) / n)


def without_the_last(n: int) -> Any:
    """Frequencies from the first to the last, which no larger size keeps."""
    return 1 / 10 ** (jnp.arange(n) / (n - 1))


def of_even_numbers(n: int) -> Any:
    """The usual ones, smaller from a wavelength on, as Llama 3.1 has them."""
    frequency = jnp.exp(-np.log(1e4) * jnp.arange(0, 2 * n, 2) / (2 * n))
    return jnp.where(2 * np.pi / frequency > 20, frequency / 8, frequency)


def listed(n: int) -> Any:
    return jnp.asarray(np.array([1, 0.5, 0.2, 0.1, 0.3])[:n])


def in_halves(x: Any, frequency: Any) -> Any:
    """Rotates pairs (i, i + dim / 2) of the last axis of [batch, time, heads, dim]."""
    angle = jnp.arange(x.shape[1])[:, None] * frequency[None]
    sin, cos = jnp.sin(angle)[None, :, None], jnp.cos(angle)[None, :, None]
    a, b = jnp.split(x, 2, -1)
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], -1)


def by_tables_of_the_axis(x: Any, frequency: Any) -> Any:
    """The same with tables as long as the axis, as Llama computes it."""
    angle = jnp.arange(x.shape[1])[:, None] * frequency[None]
    angle = jnp.concatenate([angle, angle], -1)[None, :, None]
    a, b = jnp.split(x, 2, -1)
    return x * jnp.cos(angle) + jnp.concatenate([-b, a], -1) * jnp.sin(angle)


def interleaved(x: Any, frequency: Any) -> Any:
    """Rotates pairs (2 i, 2 i + 1), as GPT-J does."""
    angle = jnp.arange(x.shape[1])[:, None] * frequency[None]
    sin, cos = jnp.sin(angle)[None, :, None], jnp.cos(angle)[None, :, None]
    # Slices of x[..., ::2], which JAX before 0.7 gathers by computed positions.
    a, b = (jax.lax.slice_in_dim(x, start, None, 2, axis=-1) for start in (0, 1))
    return jnp.stack([a * cos - b * sin, a * sin + b * cos], -1).reshape(x.shape)


def by_numpy(x: Any, frequency: Any) -> Any:
    """The same with tables that are captured as constants."""
    angle = np.arange(7)[:, None] * np.tile(np.asarray(frequency), 2)[None]
    sin, cos = np.sin(angle)[None, :, None], np.cos(angle)[None, :, None]
    a, b = jnp.split(x, 2, -1)
    return x * cos + jnp.concatenate([-b, a], -1) * sin


def by_complex_numbers(x: Any, frequency: Any) -> Any:
    turned = jnp.exp(1j * (np.arange(7)[:, None] * frequency))[None, :, None]
    a, b = jnp.split(x, 2, -1)
    z = jax.lax.complex(a, b) * turned
    return jnp.concatenate([jnp.real(z), jnp.imag(z)], -1)


def scaled(x: Any, factor: Any) -> Any:
    """Multiplies both halves by a table."""
    return x * jnp.concatenate([factor, factor])[None, None, None]


def attention(change: Callable[[Any], Any], flat: bool = False) -> Case:
    """Attention in which something becomes of queries and keys; its scale is 1/sqrt(head_dim)."""

    def apply(params: Any, x: Any) -> Any:
        time = x.shape[1]
        q, k = ((x @ params[n].reshape(5, -1)).reshape(2, time, 3, -1) for n in "qk")
        v = jnp.einsum("btm,mhd->bthd", x, params["v"])
        scores = jnp.einsum("bthd,bshd->bhts", change(q), change(k)) * q.shape[-1] ** -0.5
        return jnp.einsum("bhts,bshd,hdm->btm", jax.nn.softmax(scores), v, params["o"])

    def shapes(dim: int) -> Any:
        return {n: f64(5, 3 * dim) if flat else f64(5, 3, dim) for n in "qk"} | {
            "v": f64(5, 3, 4),
            "o": f64(3, 4, 5),
        }

    return Case(lambda _: apply, shapes, (2, 7, 5))


def scanned_rotary(of: Callable[[int], Any] = frequencies) -> Case:
    """Layers under a scan, all of which read the same tables."""

    def apply(dim: int) -> Callable[..., Any]:
        def run(params: Any, x: Any) -> Any:
            angle = jnp.arange(7.0)[:, None] * of(dim // 2)[None]
            sin, cos = jnp.sin(angle)[None], jnp.cos(angle)[None]

            def rotate(x: Any) -> Any:
                a, b = jnp.split(x, 2, -1)
                return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], -1)

            def layer(x: Any, p: Any) -> Any:
                scores = rotate(x @ p["q"]) @ rotate(x @ p["k"]).mT / np.sqrt(dim)
                return x + jax.nn.softmax(scores) @ x @ p["v"], None

            return jax.lax.scan(layer, x, params)[0]

        return run

    def shapes(dim: int) -> Any:
        return {"q": f64(2, 5, dim), "k": f64(2, 5, dim), "v": f64(2, 5, 5)}

    return Case(apply, shapes, (2, 7, 5))


def rotated(rotate: Callable[..., Any], of: Callable[[int], Any] = frequencies) -> Any:
    return lambda x: rotate(x, of(x.shape[-1] // 2))


def partly(rotate: Callable[..., Any], dim: int = 4) -> Any:
    """Only the first units of a head are rotated."""
    return lambda x: jnp.concatenate(
        [rotate(x[..., :dim], of_all_pairs(dim // 2)), x[..., dim:]], -1
    )


def wavelengths(n: int) -> Any:
    return 1e7 ** (2 * jnp.arange(n) / (2 * n))


def over(time: Any, wavelength: Any) -> Any:
    return time[:, None] / wavelength[None]


def by_einsum(time: Any, frequency: Any) -> Any:
    return jnp.einsum("b,f->bf", time, frequency)


def embedded_time(of: Callable[[int], Any] = wavelengths, combined: Any = over) -> Case:
    """Sinusoids of an input, which a layer reads."""

    def apply(params: Any, time: Any) -> Any:
        angle = combined(time, of(len(params["w"]) // 2))
        features = jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], -1)
        return jnp.tanh(features @ params["w"]) @ params["out"]

    def shapes(dim: int) -> Any:
        return {"w": f64(dim, dim // 2), "out": f64(dim // 2, 2)}  # as long as a table

    return Case(lambda _: apply, shapes, (4,), (6, 18))


# Adapters -----------------------------------------------------------------------------------------


def adapter(
    factor: Callable[[int], float],
    merged: bool = False,
    rank: int = 4,
    behind: Callable[[int], float] = lambda rank: 1.0,
) -> Case:
    """A layer with a low-rank adapter (LoRA), which may be added to the weights, and a factor."""

    def apply(rank: int) -> Callable[..., Any]:
        def merge(p: Any, x: Any) -> Any:
            return jnp.tanh(x @ (p["w"] + factor(rank) * (p["a"] @ p["b"]))) * behind(rank)

        def add(p: Any, x: Any) -> Any:
            return jnp.tanh(x @ p["w"] + x @ p["a"] @ p["b"] * factor(rank)) * behind(rank)

        return merge if merged else add

    def shapes(rank: int) -> Any:
        return {"w": f64(5, 6), "a": f64(5, rank), "b": f64(rank, 6)}

    return Case(apply, shapes, (4, 5), (rank, rank + 3))


def tied(factor: Callable[[int], float]) -> Case:
    """Embeddings times a factor, under a norm, which make logits, too."""

    def apply(dim: int) -> Callable[..., Any]:
        def run(p: Any, x: Any) -> Any:
            y = x @ p["embedding"] * factor(dim) + p["position"][None]
            y = y - jnp.mean(y, -1, keepdims=True)
            y = y * jax.lax.rsqrt(jnp.mean(y * y, -1, keepdims=True) + 1e-5) * p["scale"][None]
            return y @ p["embedding"].T

        return run

    return Case(
        apply, lambda n: {"embedding": f64(7, n), "position": f64(n), "scale": f64(n)}, (4, 7)
    )


def memory() -> Case:
    """Linear attention: queries are scaled before the loop in which they meet the memory."""

    def apply(n: int) -> Callable[..., Any]:
        def run(p: Any, x: Any) -> Any:
            q, k, forget = x @ p["q"] * n**-0.5, x @ p["k"], jax.nn.log_sigmoid(x @ p["f"])

            def step(state: Any, now: Any) -> Any:
                q, k, forget, x = now
                state = state * jnp.exp(forget)[:, None] + k[:, None] * x[None]
                return state, q @ state

            return jax.lax.scan(step, jnp.zeros((n, 5)), (q, k, forget, x))[1] @ p["out"]

        return run

    return Case(
        apply, lambda n: {**dict.fromkeys("qkf", f64(5, n)), "out": f64(5, 2)}, (4, 5), (6, 12)
    )


def tied_norm() -> Case:
    """Logits by a tied table behind a LayerNorm, divided by a number that follows from the size."""

    def apply(n: int) -> Callable[..., Any]:
        def run(p: Any, x: Any) -> Any:
            h = x @ p["embedding"]
            h = h - h.mean(-1, keepdims=True)
            h = (
                h / jnp.sqrt((h * h).mean(-1, keepdims=True) + 1e-5) * p["scale"][None]
                + p["bias"][None]
            )
            return h @ p["embedding"].T / (n / 6)

        return run

    return Case(apply, lambda n: {"embedding": f64(7, n), "scale": f64(n), "bias": f64(n)}, (4, 7))


EXACT = {
    "linear attention, queries scaled before the loop": memory(),
    "rotary, first frequencies the old ones": attention(rotated(in_halves)),
    "rotary, tables of the whole axis": attention(rotated(by_tables_of_the_axis)),
    "rotary, interleaved": attention(rotated(interleaved)),
    "rotary, tables by NumPy": attention(rotated(by_numpy, lambda n: 0.3 ** np.arange(n))),
    "rotary, frequencies by a list": attention(rotated(in_halves, listed)),
    "rotary, tables outside a scan": scanned_rotary(),
    "partial rotary": attention(partly(in_halves)),
    "partial rotary, interleaved": attention(partly(interleaved)),
    "twice as many pairs": attention(rotated(in_halves, of_all_pairs))._replace(sizes=(6, 12)),
    "three times as many pairs, flat heads": attention(
        rotated(in_halves, of_even_numbers), flat=True
    )._replace(sizes=(6, 18)),
    "twice as many pairs, tables of the whole axis": attention(
        rotated(by_tables_of_the_axis, of_even_numbers)
    )._replace(sizes=(6, 12)),
    "twice as many pairs, by complex numbers": attention(
        rotated(by_complex_numbers, lambda n: 0.1 ** (np.arange(n) / n))
    )._replace(sizes=(6, 12)),
    "twice as many pairs, tables by NumPy": attention(
        rotated(by_numpy, lambda n: 0.1 ** (np.arange(n) / n))
    )._replace(sizes=(6, 12)),
    "sinusoids of time": embedded_time(),
    "sinusoids of time, by einsum": embedded_time(of_all_pairs, by_einsum),
    "tied embeddings times a root, twice as many units": tied(lambda n: 0.7 * n**0.5)._replace(
        sizes=(6, 12)
    ),
    "tied embeddings over a size, filled with their mean": tied_norm(),
    "tied embeddings over a size, copies and their mean": tied_norm()._replace(sizes=(6, 16)),
    "alpha over rank": adapter(lambda rank: 20 / rank),
    "alpha over rank, equal to the rank": adapter(lambda rank: 16 / rank),
    "alpha over rank, equal to one": adapter(lambda rank: 4 / rank),
    "alpha over rank, merged": adapter(lambda rank: 20 / rank, merged=True),
    "alpha over the root of the rank": adapter(lambda rank: 16 / rank**0.5),
    "alpha over the root of the rank, no round number": adapter(lambda r: 16 / r**0.5, rank=6),
    "alpha grows with the rank": adapter(lambda rank: 2.0),
}


SAID = {
    "alpha over rank": ["a: the larger model has 2.85714 instead of 5"],
    "partial rotary": ["q[2.2]: the larger model has 0.316228 instead of 0.408248"],
    # And not that the mean divides by another number.
    "tied embeddings times a root, twice as many units": [
        "embedding: the larger model has 2.42487 instead of 1.71464"
    ],
    "three times as many pairs, flat heads": [
        "q[head_dim]: old unit i becomes unit 3 i, which has the same numbers in the larger model, "
        "and new units lie between old ones",
    ],
}


LONG = (
    "linear attention, queries scaled before the loop",
    "rotary, tables of the whole axis",
    "rotary, interleaved",
    "rotary, tables outside a scan",
    "partial rotary, interleaved",
    "twice as many pairs, tables of the whole axis",
    "twice as many pairs, tables by NumPy",
    "sinusoids of time, by einsum",
    "tied embeddings over a size, filled with their mean",
    "alpha over the root of the rank, no round number",
)


@pytest.mark.parametrize("name", some(EXACT, 2, long=LONG))
def test_arrays_make_up_for_the_larger_models_numbers(name: str) -> None:
    if "interleaved" in name and jax.__version_info__ < (0, 7):
        pytest.skip("JAX 0.6 takes interleaved pairs apart in other steps, which are refused")
    case = EXACT[name]
    (small, shapes), (large, target) = ((case.apply(n), case.shapes(n)) for n in case.sizes)
    variables, x = fill(shapes, 1), data(*case.inputs)
    growth = dw.plan(dw.trace(small, shapes, x), target=target, target_apply=large)

    @jax.jit
    def of_small(variables: Any) -> Any:
        outputs, pull = jax.vjp(lambda v: small(v, x), variables)
        return outputs, pull(jnp.cos(outputs))[0]

    @jax.jit
    def of_grown(variables: Any) -> Any:
        grown, pull = jax.vjp(lambda v: dw.grow(v, growth, fresh=fill(target, 2)), variables)
        new, back = jax.vjp(lambda v: large(v, x), grown)
        return new, pull(back(jnp.cos(new))[0])[0]

    made_up = [note.partition("; rescaled arrays make up for it")[0] for note in growth.notes]
    assert name not in SAID or SAID[name] == made_up
    (outputs, expected), (new, gradient) = of_small(variables), of_grown(variables)
    np.testing.assert_allclose(new, outputs, rtol=0, atol=1e-12 * np.max(np.abs(outputs)))
    for a, b in zip(*map(jax.tree.leaves, (gradient, expected)), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-11 * np.max(np.abs(b)))


def reversed_tables(x: Any) -> Any:
    """The second half of the axis has the frequencies of the first in reverse."""
    frequency = frequencies(x.shape[-1] // 2)
    angle = jnp.arange(7)[:, None] * jnp.concatenate([frequency, frequency[::-1]])[None]
    return x * jnp.cos(angle)[None, :, None]


def counted_on(x: Any) -> Any:
    """Positions along the whole axis, whose halves are cut apart and rotated."""
    angle = jnp.arange(7)[:, None] / 10 ** (jnp.arange(x.shape[-1]) / 3)[None]
    a, b = jnp.split(x, 2, -1)
    return jnp.concatenate([-b, a], -1) * jnp.sin(angle)[None, :, None]


def tanh_of(x: Any) -> Any:
    return jnp.tanh(x)


def two_sines() -> Case:
    """A normalized sum of two sines, one of them of a number times its operand."""

    def apply(n: int) -> Callable[..., Any]:
        def run(p: Any, x: Any) -> Any:
            h = x @ p["w"]
            h = jnp.sin(h * (0.05 * n**0.5)) + jnp.sin(h)
            return h / jnp.sqrt((h * h).sum(-1, keepdims=True) + 1e-6) @ p["out"]

        return run

    return Case(apply, lambda n: {"w": f64(5, n), "out": f64(n, 2)}, (4, 5))


REFUSED = {
    "a number in one of two sines": (
        two_sines(),
        "computes something else",
    ),
    "rotary": (attention(rotated(in_halves, of_all_pairs)), "computes something else"),
    "rotary, interleaved": (
        attention(rotated(interleaved, of_all_pairs)),
        "computes something else",
    ),
    "rotary, tables of the whole axis": (
        attention(rotated(by_tables_of_the_axis, of_all_pairs)),
        "computes something else",
    ),
    "rotary, tables by NumPy": (
        attention(rotated(by_numpy, lambda n: 0.1 ** (np.arange(n) / n))),
        "computes something else",
    ),
    "no multiple of all pairs": (
        attention(rotated(in_halves, of_all_pairs)),
        "computes something else",
    ),
    "frequencies up to the last": (
        attention(rotated(in_halves, without_the_last))._replace(sizes=(6, 12)),
        "computes something else",
    ),
    "frequencies up to the last, at the first position": (
        attention(rotated(in_halves, without_the_last))._replace(sizes=(6, 12), inputs=(2, 1, 5)),
        "computes something else",
    ),
    "frequencies divided by their sum": (
        attention(
            rotated(in_halves, lambda n: of_all_pairs(n) / jnp.sum(of_all_pairs(n)))
        )._replace(sizes=(6, 12)),
        "computes something else",
    ),
    "all positions are looked at": (
        attention(rotated(scaled, lambda n: jnp.arange(n) / n - jnp.arange(n)[-1]))._replace(
            sizes=(6, 12)
        ),
        "computes something else",
    ),
    "a division by zero for new units": (
        embedded_time(lambda n: jnp.arange(n) / n - 0.5)._replace(sizes=(6, 12)),
        "computes something else",
    ),
    "a sum over sinusoids": (
        embedded_time(
            of_all_pairs,
            lambda t, f: (
                t[:, None] * f[None] + jnp.einsum("bf,f->b", t[:, None] * f[None], f)[:, None]
            ),
        )._replace(sizes=(6, 12)),
        "cannot plan",
    ),
    "partial rotary by halves of the head": (
        attention(lambda x: partly(in_halves, x.shape[-1] // 2 // 2 * 2)(x)),
        "cannot plan",
    ),
    "frequencies in reverse": (attention(reversed_tables), "it is reversed"),
    "positions along the whole axis": (attention(counted_on), "computes something else"),
    "tanh": (attention(tanh_of), "computes something else"),
    "a factor of another sign": (
        adapter(lambda rank: -5.0 if rank == 4 else 5.0),
        r"because mul \(.*\) has 5 instead of -5",
    ),
    "a factor that no array of the width reaches": (
        adapter(lambda rank: 2.0, behind=lambda rank: 1 / rank),
        r"because mul \(.*\) has 0.142857 instead of 0.25",
    ),
}


@pytest.mark.parametrize("name", some(REFUSED, 2))
def test_what_no_array_makes_up_for_is_refused(name: str) -> None:
    case, reason = REFUSED[name]
    shapes, target = map(case.shapes, case.sizes)
    small, large = map(case.apply, case.sizes)
    widths = dw.trace(small, shapes, data(*case.inputs))
    with pytest.raises(ValueError, match=reason):
        dw.plan(widths, target=target, target_apply=large)


@pytest.mark.long
def test_a_growth_between_old_units_is_one_like_others(tmp_path: Path) -> None:
    """It is written as JSON, verified, and grows an optimizer's state and a checkpoint."""
    case = EXACT["twice as many pairs"]
    (small, shapes), (large, target) = ((case.apply(n), case.shapes(n)) for n in case.sizes)
    variables, x, tx = fill(shapes, 1), data(*case.inputs), optax.adam(0.1)
    growth = dw.plan(dw.trace(small, shapes, x), target=target, target_apply=large)
    assert dw.from_json(dw.to_json(growth)) == growth
    wide = dw.grow(variables, growth, key=jax.random.key(3))
    old = (slice(None), slice(None), [0, 2, 4, 6, 8, 10])
    np.testing.assert_array_equal(wide["q"][old], variables["q"])
    np.testing.assert_allclose(wide["k"][old], variables["k"] * 2**0.5, rtol=1e-15)
    assert not np.delete(wide["k"], old[2], 2).any() and np.delete(wide["q"], old[2], 2).all()
    dw.verify(small, variables, large, wide, x, growth=growth)
    _, state = tx.update(jax.tree.map(jnp.sin, variables), tx.init(variables))
    moment = dw.grow_opt_state(state, growth, tx)[0].mu["q"]
    np.testing.assert_array_equal(moment[old], state[0].mu["q"])
    save_file(variables, tmp_path / "small.safetensors")
    dw.checkpoint.grow(
        tmp_path / "small.safetensors",
        growth,
        tmp_path / "large.safetensors",
        key=jax.random.key(3),
    )
    found = load_file(tmp_path / "large.safetensors")
    assert all((found[name] == wide[name]).all() for name in wide)


def test_recipes_that_fit_stay() -> None:
    """A norm's recipe is kept where another width needs one for the larger model's numbers."""

    def network(rank: int) -> Callable[..., Any]:
        def apply(p: Any, x: Any) -> Any:
            x = x @ p["write"]
            y = x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-3) * p["scale"][None]
            return (x + y @ p["a"] @ p["b"] * (20 / rank)) @ p["head"]

        return apply

    def shapes(n: int, rank: int) -> Any:
        sizes = {"write": (5, n), "scale": (n,), "a": (n, rank), "b": (rank, n), "head": (n, 2)}
        return {name: f64(*size) for name, size in sizes.items()}

    variables, x, target = fill(shapes(6, 4), 1), data(4, 5), shapes(9, 7)
    widths = dw.trace(network(4), variables, x)
    growth = dw.plan(widths, target=target, target_apply=network(7))
    assert growth.change["write"].recipe == dw.plan(widths, {"write": 9}).change["write"].recipe
    assert [note.partition(":")[0] for note in growth.notes] == ["write, a"]
    grown = dw.grow(variables, growth, fresh=fill(target, 2))
    outputs = network(4)(variables, x)
    np.testing.assert_allclose(
        network(7)(grown, x), outputs, rtol=0, atol=1e-12 * abs(outputs).max()
    )


def test_without_the_larger_function_the_way_out_is_named() -> None:
    case = EXACT["alpha grows with the rank"]
    widths = dw.trace(case.apply(4), case.shapes(4), data(*case.inputs))
    assert dw.plan(widths, {"a": 8}).evidence.samples  # its own function keeps its number
    case = EXACT["alpha over rank"]
    widths = dw.trace(case.apply(4), case.shapes(4), data(*case.inputs))
    (note,) = dw.plan(widths, {"a": 8}).notes
    assert "pass its function as target_apply=" in note
    case = EXACT["alpha over rank, equal to the rank"]
    widths = dw.trace(case.apply(4), case.shapes(4), data(*case.inputs))
    assert dw.plan(widths, {"a": 8}).evidence.samples  # its own function keeps its number


@pytest.mark.parametrize(("alpha", "ranks"), [(16, (4, 64)), (16, (8, 128))])
def test_adapters_with_large_factors(alpha: int, ranks: tuple[int, int]) -> None:
    """Slopes explain little of what such factors do behind an activation."""

    def apply(rank: int) -> Callable[..., Any]:
        def adapted(p: Any, x: Any) -> Any:
            for name in ("up", "down"):
                w, a, b = p[name]
                x = jax.nn.silu(x @ w + x @ a @ b * (alpha / rank))
            return x

        return adapted

    def shapes(rank: int) -> Any:
        sizes = {"up": (5, 7), "down": (7, 5)}
        return {k: [f64(n, m), f64(n, rank), f64(rank, m)] for k, (n, m) in sizes.items()}

    old, new = ranks
    widths = dw.trace(apply(old), shapes(old), data(4, 5))
    growth = dw.plan(widths, target=shapes(new), target_apply=apply(new))
    variables = fill(shapes(old), 1)
    grown = dw.grow(variables, growth, key=jax.random.key(0))
    outputs = apply(old)(variables, data(4, 5))
    np.testing.assert_allclose(apply(new)(grown, data(4, 5)), outputs, rtol=0, atol=1e-12)


def test_a_number_in_a_branch_scales_what_is_summed_behind_it() -> None:
    def apply(p: Any, x: Any) -> Any:
        def scaled(a: str, b: str) -> Any:
            return x @ p[a] * 6**-0.5, x @ p[b]

        q, k = jax.lax.cond(x.sum() > 0, lambda: scaled("q", "k"), lambda: scaled("k", "q"))
        return jax.nn.softmax(q @ k.T) @ x

    variables, x = fill(dict.fromkeys("qk", f64(5, 6)), 1), data(4, 5)
    target = dict.fromkeys("qk", f64(5, 12))
    growth = dw.plan(dw.trace(apply, variables, x), target=target, target_apply=apply)
    wide = dw.grow(variables, growth, key=jax.random.key(0))
    assert all(dw.compare(apply, variables, apply, wide, s * x).relative < 1e-12 for s in (-1, 1))


@pytest.mark.parametrize("use", [jnp.equal, jnp.less, jnp.add])
def test_large_integers_are_compared_exactly(use):
    def of(token):
        def apply(params, ids):
            h = jnp.tanh(params["embed"][ids % 11]) * use(ids, token)[..., None]
            return h @ params["out"]

        return apply

    shapes = {
        "embed": jax.ShapeDtypeStruct((11, 4), float),
        "out": jax.ShapeDtypeStruct((4, 2), float),
    }
    larger = {
        "embed": jax.ShapeDtypeStruct((11, 7), float),
        "out": jax.ShapeDtypeStruct((7, 2), float),
    }
    widths = dw.trace(of(128000), shapes, jnp.arange(6))
    dw.plan(widths, target=larger, target_apply=of(128000))
    with pytest.raises(ValueError, match="the larger model computes something else"):
        dw.plan(widths, target=larger, target_apply=of(128001))
