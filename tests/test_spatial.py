"""Images, sequences and positions that the check makes smaller, and what stays seen in them."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from tiers import long

import dogwood_jax as dw
from dogwood_jax._check.spatial import lost_entries

IMAGE = jnp.asarray(np.random.default_rng(9).normal(size=(2, 96, 64, 2)))


@pytest.fixture(autouse=True)
def as_users_have_it() -> Iterator[None]:
    with jax.numpy_rank_promotion("allow"):
        yield


def arrays(**shapes: tuple[int, ...]) -> dict[str, Any]:
    draw = np.random.default_rng(0).normal
    return {name: jnp.asarray(draw(size=shape) / 3) for name, shape in shapes.items()}


def conv(x: Any, kernel: Any, stride: int = 1, dilation: int = 1) -> Any:
    dims = ("NHWC", "HWIO", "NHWC")
    spread = (dilation, dilation)
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), "SAME", rhs_dilation=spread, dimension_numbers=dims
    )


def assert_outputs_stay(apply: Any, variables: Any, wide: Any, x: Any) -> None:
    np.testing.assert_allclose(jax.jit(apply)(wide, x), jax.jit(apply)(variables, x), 1e-9, 1e-9)


KERNELS = {"a": (3, 3, 2, 6), "b": (3, 3, 6, 4)}
HEAD = {**KERNELS, "head": (4, 3)}


def strided(p, x):
    h = jax.nn.relu(conv(jax.nn.relu(conv(x, p["a"], 2)), p["b"], 2))
    return h.mean((1, 2)) @ p["head"]


def pooled_and_dilated(p, x):
    h = jax.nn.relu(conv(x, p["a"]))
    h = lax.reduce_window(h, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), "SAME")
    return conv(h, p["b"], dilation=4).mean((1, 2)) @ p["head"]


def down_and_up(p, x):
    a = jax.nn.relu(conv(x, p["a"]))
    h = jax.nn.relu(conv(a, p["b"], 4))
    h = jax.image.resize(h, (*a.shape[:3], 4), "nearest")
    return jnp.concatenate([a, h], -1) @ p["head"]


def flattened(p, x):
    h = jax.nn.relu(conv(jax.nn.relu(conv(x, p["a"], 2)), p["b"], 2))
    return h.reshape(len(h), -1) @ p["head"]


def with_positions(p, x):
    h = jax.nn.relu(conv(x, p["a"]) + p["rows"][:, None])
    return conv(h, p["b"]).mean((1, 2))


# Each network, shapes of its arrays, and how many rows and columns the check takes away.
@pytest.mark.parametrize(
    ("apply", "shapes", "lost"),
    [
        (strided, HEAD, (88, 56)),
        (pooled_and_dilated, HEAD, (78, 46)),
        (down_and_up, {**KERNELS, "head": (10, 3)}, (88, 56)),
        (flattened, {**KERNELS, "head": (24 * 16 * 4, 3)}, None),
        (with_positions, {**KERNELS, "rows": (96, 6)}, (93, 61)),
    ],
)
def test_images_are_as_small_as_windows_allow(apply, shapes, lost):
    variables = arrays(**shapes)
    widths = dw.trace(apply, variables, IMAGE)
    if lost is not None:
        rows, columns = lost
        assert lost_entries(widths.network.traced) == {(0, 1): rows, (0, 2): columns}
    growth = dw.plan(widths, {widths.of("a", 3).name: 9})
    wide = dw.grow(variables, growth, key=jax.random.key(1))
    assert wide["a"].shape == (3, 3, 2, 9)
    assert_outputs_stay(apply, variables, wide, IMAGE)


# Operations over units, in rows that the check leaves out or merges with others.
FAR = {
    "the last row": lambda h: h[:, -1],
    "a row in the middle": lambda h: h[:, 25],
    "a mask of late rows": lambda h: (h * (jnp.arange(40) >= 30)[:, None, None]).sum(1),
    "a mask of one row": lambda h: jnp.where((jnp.arange(40) == 25)[:, None, None], h, 0).sum(1),
    "every third row": lambda h: h[:, ::3].sum(1),
    "rolled rows": lambda h: jnp.roll(h, 20, 1)[:, :2].sum(1),
}
OVER_UNITS = {
    "prod": lambda rows: jnp.prod(jnp.cos(rows), -1),
    "min": lambda rows: jnp.minimum(rows.min(-1), -0.1),
    "std": lambda rows: rows.std(-1),
    "all": lambda rows: (jnp.abs(rows) > 1e-3).all(-1),
}


CASES = [(rows, over) for rows in FAR for over in OVER_UNITS]


@pytest.mark.parametrize(
    ("rows", "over"),
    [case if "mask" in case[0] and case[1] != "std" else long(*case) for case in CASES],
)
def test_units_that_matter_in_few_rows_are_not_missed(rows, over):
    def apply(p, x):
        h = jnp.sin(conv(x, p["a"]))
        return conv(h, p["b"]).mean((1, 2)) + OVER_UNITS[over](FAR[rows](h)).mean(-1)[:, None]

    variables, x = arrays(**KERNELS), IMAGE[:, :40, :24]
    widths = dw.trace(apply, variables, x)
    try:
        growth = dw.plan(widths, {widths.of("a", 3).name: 12})
    except ValueError:
        return
    wide = dw.grow(variables, growth, key=jax.random.key(1))
    assert_outputs_stay(apply, variables, wide, x)


@pytest.mark.parametrize("over", OVER_UNITS)
def test_units_that_matter_at_late_positions_are_not_missed(over):
    def apply(p, x):
        h = jnp.sin(x @ p["a"])
        late = (h * (jnp.arange(40) >= 30)[:, None]).sum(1)
        return (h @ p["b"]).mean(1) + OVER_UNITS[over](late)[:, None]

    variables, x = arrays(a=(2, 6), b=(6, 4)), IMAGE[:, :40, 0]
    widths = dw.trace(apply, variables, x)
    try:
        growth = dw.plan(widths, {widths.of("a", 1).name: 12})
    except ValueError:
        return
    wide = dw.grow(variables, growth, key=jax.random.key(1))
    assert_outputs_stay(apply, variables, wide, x)


def test_a_length_of_a_sequence_is_smaller_too():
    shapes = {"a": (5, 4, 6), "b": (5, 6, 4)}
    dims = ("NWC", "WIO", "NWC")

    def apply(p, x):
        for rate in (1, 10):
            h = jax.nn.relu(
                lax.conv_general_dilated(
                    x, p["a"], (1,), "SAME", rhs_dilation=(rate,), dimension_numbers=dims
                )
            )
            x += lax.conv_general_dilated(h, p["b"], (1,), "SAME", dimension_numbers=dims)
        return x[:, 20:-20]

    variables, x = arrays(**shapes), jnp.ones((1, 5_000, 4))
    widths = dw.trace(apply, variables, x)
    lost = lost_entries(widths.network.traced)
    assert lost[0, 1] > 4_900
    growth = dw.plan(widths, {widths.of("a", 2).name: 8})
    wide = dw.grow(variables, growth, key=jax.random.key(1))
    assert_outputs_stay(apply, variables, wide, x)
