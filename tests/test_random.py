"""Random numbers for new weights: as independent as a network can tell."""

from itertools import islice

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dogwood_jax._base import draw as _random
from dogwood_jax._base.draw import seeds

# One program for each shape, as when arrays grow, instead of one for each operation.
uniform = jax.jit(_random.uniform, static_argnames=("shape", "dtype", "limit"))


def draw(shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32, seed: int = 0) -> np.ndarray:
    return np.asarray(
        uniform(jax.random.bits(jax.random.key(seed), (2,), jnp.uint32), shape, dtype, 1.0)
    )


@pytest.mark.parametrize("shape", [(), (100_000,), (300, 400), (3, 3, 64, 128), (1, 5000)])
def test_is_uniform(shape: tuple[int, ...]) -> None:
    numbers = draw(shape)
    assert numbers.shape == shape
    assert (np.abs(numbers) <= 1).all()
    if numbers.size > 1000:
        counts, _ = np.histogram(numbers, bins=20, range=(-1, 1))
        expected = numbers.size / 20
        chi_square = ((counts - expected) ** 2 / expected).sum()
        assert chi_square < 60  # 19 degrees of freedom: once in a hundred thousand


@pytest.mark.long
def test_singular_values_are_those_of_an_independent_matrix() -> None:
    # Any dependence between rows or columns would push singular values out of the
    # Marchenko-Pastur law, whose edges are sqrt(n) +- sqrt(m) times the standard deviation.
    rows, columns = 2000, 500
    values = np.linalg.svd(draw((rows, columns)) * np.sqrt(3), compute_uv=False)
    edges = np.sqrt(rows) - np.sqrt(columns), np.sqrt(rows) + np.sqrt(columns)
    assert edges[0] * 0.98 < values.min() < edges[0] * 1.03
    assert edges[1] * 0.97 < values.max() < edges[1] * 1.02


def test_neighbours_are_uncorrelated() -> None:
    numbers = draw((1000, 1000)).astype(float)
    for axis in (0, 1):
        for lag in (1, 2, 64):
            a, b = (
                np.split(numbers, [numbers.shape[axis] - lag], axis)[0],
                np.roll(numbers, -lag, axis),
            )
            b = np.take(b, range(numbers.shape[axis] - lag), axis)
            assert abs((a * b).mean() * 3) < 5e-3  # standard error 1e-3


def test_bits_are_fair_down_to_the_last() -> None:
    numbers = draw((512, 512), jnp.float64)
    bits = np.round(numbers * 2.0**31).astype(np.int64) & 0xFFFFFFFF
    shares = [((bits >> i) & 1).mean() for i in range(32)]
    np.testing.assert_allclose(shares, 0.5, atol=5e-3)


def test_rows_repeat_in_no_draw() -> None:
    a, b = draw((50, 60), seed=0), draw((50, 60), seed=1)
    assert not np.intersect1d(a, b).size
    assert len(np.unique(a)) == a.size


@pytest.mark.parametrize(
    "dtype", [jnp.float64, jnp.float32, jnp.bfloat16, jnp.float16, jnp.complex64]
)
def test_dtypes(dtype: jnp.dtype) -> None:
    numbers = uniform(jax.random.bits(jax.random.key(0), (2,), jnp.uint32), (200, 200), dtype, 0.5)
    assert numbers.dtype == dtype
    spread = float(jnp.std(jnp.real(numbers).astype(jnp.float32)))
    assert abs(spread - 0.5 / np.sqrt(3)) < 5e-3


def test_seeds_from_one_seed_are_apart() -> None:
    word = jax.random.bits(jax.random.key(0), (2,), jnp.uint32)
    drawn = [np.asarray(uniform(s, (40, 50), jnp.float32, 1.0)) for s in islice(seeds(word), 20)]
    numbers = np.stack(drawn).reshape(20, -1)
    correlations = np.corrcoef(numbers) - np.eye(20)
    assert np.abs(correlations).max() < 0.1  # standard error 0.022
