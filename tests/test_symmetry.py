"""Units that compute the same function."""

import dataclasses
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dogwood_jax as dw
from dogwood_jax._growth.growth import Change
from dogwood_jax._widths.widths import Facts
from dogwood_jax.typing import Concat, Leaf, Product, Units


def make_params(sizes, seed=0, dtype="float32"):
    rng = np.random.default_rng(seed)
    return {
        f"dense_{i}": {
            "kernel": rng.normal(size=(inputs, units)).astype(dtype),
            "bias": rng.normal(size=units).astype(dtype),
        }
        for i, (inputs, units) in enumerate(pairwise(sizes), 1)
    }


def plant(params, unit, original):
    """Makes a unit of dense_1 a copy of another."""
    params["dense_1"]["kernel"][:, unit] = params["dense_1"]["kernel"][:, original]
    params["dense_1"]["bias"][unit] = params["dense_1"]["bias"][original]
    params["dense_2"]["kernel"][unit] = params["dense_2"]["kernel"][original]


def find(params, **options):
    return dw.find_symmetric(params, dw.chain(params, tuple(params))["dense_1"], **options)


def compared_one_by_one(params, tolerance):
    """Finds the groups by the definition: a unit joins the first group whose first unit agrees."""
    kernel, bias = params["dense_1"]["kernel"], params["dense_1"]["bias"]
    rows = np.concatenate([kernel.T, bias[:, None], params["dense_2"]["kernel"]], axis=1)
    groups = []
    for unit, row in enumerate(rows.astype("float64")):
        for group in groups:
            first = rows[group[0]].astype("float64")
            if all(abs(b - a) <= tolerance * (1 + abs(a)) for a, b in zip(first, row, strict=True)):
                group.append(unit)
                break
        else:
            groups.append([unit])
    return tuple(tuple(group) for group in groups if len(group) > 1)


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", jnp.bfloat16])
def test_planted_copies_are_found_and_nothing_else(dtype):
    params = make_params((5, 12, 3), dtype=dtype)
    for unit, original in [(11, 0), (4, 2), (7, 2), (3, 1)]:
        plant(params, unit, original)
    assert find(params) == ((0, 11), (1, 3), (2, 4, 7))
    assert find(jax.tree.map(jnp.asarray, params)) == ((0, 11), (1, 3), (2, 4, 7))


@pytest.mark.parametrize("part", ["incoming", "bias", "outgoing"])
def test_units_that_differ_in_one_weight_are_not_symmetric(part):
    params = make_params((5, 12, 3))
    plant(params, 7, 2)
    assert find(params) == ((2, 7),)
    weight = {
        "incoming": params["dense_1"]["kernel"][1:2, 7],
        "bias": params["dense_1"]["bias"][7:8],
        "outgoing": params["dense_2"]["kernel"][7, 1:2],
    }[part]
    weight += 0.1
    assert find(params) == ()


def test_layers_that_start_at_zero_have_one_unit():
    params = jax.tree.map(np.zeros_like, make_params((5, 12, 3)))
    assert find(params) == (tuple(range(12)),)


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_tolerance_is_relative_for_large_weights(scale):
    params = jax.tree.map(lambda a: np.full_like(a, scale), make_params((5, 2, 3), dtype="float64"))
    params["dense_1"]["kernel"][3, 1] += 0.9e-3 * (1 + scale)
    assert find(params, tolerance=1e-3) == ((0, 1),)
    params["dense_1"]["kernel"][3, 1] += 0.2e-3 * (1 + scale)
    assert find(params, tolerance=1e-3) == ()


@pytest.mark.parametrize("tolerance", [0.0, 1e-6, 0.5, 2.0])
def test_it_agrees_with_comparing_units_one_by_one(tolerance):
    for seed in range(5):
        rng = np.random.default_rng(seed)
        params = make_params((3, 40, 2), seed)
        for unit, original in rng.integers(0, 40, (10, 2)):
            plant(params, unit, original)
        if tolerance:
            noise = tolerance * rng.uniform(-1, 1, params["dense_1"]["kernel"].shape)
            params["dense_1"]["kernel"] += noise.astype("float32")
        assert find(params, tolerance=tolerance) == compared_one_by_one(params, tolerance)


def test_units_that_are_not_finite_agree_with_none():
    params = make_params((5, 12, 3))
    for unit, original in [(4, 2), (6, 5), (8, 7), (11, 10)]:
        plant(params, unit, original)
    params["dense_1"]["kernel"][:, [5, 6]] = np.nan
    params["dense_1"]["kernel"][:2, [7, 8]] = np.inf
    params["dense_1"]["bias"][[7, 8]] = -np.inf
    assert find(params) == ((2, 4), (10, 11))
    assert find(jax.tree.map(lambda a: np.full_like(a, np.nan), params)) == ()


@pytest.mark.long
def test_thousands_of_units():
    params = make_params((784, 4096, 10))
    for unit, original in [(4095, 0), (2048, 2047), (3000, 1000), (3001, 1000)]:
        plant(params, unit, original)
    assert find(params) == ((0, 4095), (1000, 3000, 3001), (2047, 2048))
    assert find(params, tolerance=0.0) == find(params)
    # Weights below the tolerance are all alike; differences between them must not be summed up.
    tiny = jax.tree.map(lambda a: 1e-7 * np.clip(a, -1, 1), params)
    assert [len(group) for group in find(tiny)] == [4096]


def test_identity_kernels():
    # One weight of a hundred tells two units apart.
    params = make_params((100, 100, 1))
    params["dense_1"] = {"kernel": np.eye(100), "bias": np.zeros(100)}
    params["dense_2"]["kernel"][:] = 1
    assert find(params) == ()
    plant(params, 7, 3)
    assert find(params) == ((3, 7),)


def test_complex_weights_differ_in_their_imaginary_parts():
    params = make_params((5, 12, 3), dtype="complex64")
    plant(params, 7, 2)
    leaves = (
        Leaf("dense_1/kernel", (5, 12), (Units("x", 5, "outgoing"), units("incoming"))),
        Leaf("dense_2/kernel", (12, 3), (units("outgoing"), Units("y", 3, "incoming"))),
    )
    facts = (("x", Facts(5)), ("dense_1", Facts(12)), ("y", Facts(3)))
    width = dw.Widths(leaves, facts)["dense_1"]
    assert dw.find_symmetric(params, width) == ((2, 7),)
    params["dense_1"]["kernel"][0, 7] += 0.1j
    assert dw.find_symmetric(params, width) == ()


def units(role, size=12):
    return Units("dense_1", size, role)


def test_units_of_composite_axes():
    # Four units, each spread over three places of a flattened axis, beside two that are not units.
    flat = Concat(
        (
            Product((Units("place", 3, "outgoing"), units("outgoing", 4))),
            Units("y", 2, "outgoing"),
        )
    )
    widths = dw.Widths(
        (Leaf("kernel", (14, 5), (flat, Units("out", 5, "incoming"))),),
        (("place", Facts(3)), ("dense_1", Facts(4)), ("y", Facts(2)), ("out", Facts(5))),
    )
    kernel = np.random.default_rng(0).normal(size=(14, 5))
    kernel[[3, 7, 11]] = kernel[[1, 5, 9]]
    assert dw.find_symmetric({"kernel": kernel}, widths["dense_1"]) == ((1, 3),)
    kernel[[2, 6]] = kernel[[0, 4]]  # all but their third places agree
    assert dw.find_symmetric({"kernel": kernel}, widths["dense_1"]) == ((1, 3),)


def test_replicated_units_are_symmetric_until_an_uneven_split_parts_them():
    params = make_params((5, 4, 3), dtype="float64")
    for split, expected in [("even", ((0, 4), (1, 5), (2, 6))), ("uneven", ())]:
        wide = dw.widen(
            params,
            "dense_1",
            into="dense_2",
            units=7,
            strategy=dw.strategies.replicate(split=split),
        )
        assert find(wide) == expected


def test_errors_name_what_does_not_fit():
    params = make_params((5, 12, 3))
    width = dw.chain(params, tuple(params))["dense_1"]
    del params["dense_1"]["bias"]
    params["dense_1"]["kernel"] = np.zeros((5, 11))
    params["dense_2"]["kernel"] = np.zeros(())
    with pytest.raises(ValueError, match="variables in which dense_1 was found") as error:
        dw.find_symmetric(params, width)
    for part in ("dense_1/bias: missing", "dense_1/kernel: has shape (5, 11), expected 12 along"):
        assert part in str(error.value)
    assert "dense_2/kernel: has shape (), expected 12 along axis 0" in str(error.value)
    with pytest.raises(ValueError, match="tolerance must be zero or positive, got -1"):
        dw.find_symmetric(params, width, tolerance=-1.0)


# Units that become one ----------------------------------------------------------------------------


def dense(params, x):
    hidden = jnp.tanh(x @ params["up"])
    return hidden @ params["down"]


def copied(dtype="float32"):
    """Returns weights with two equal units, 0 and 2, and an input."""
    rng = np.random.default_rng(0)
    up, down = rng.normal(size=(4, 3)).astype(dtype), rng.normal(size=(3, 2)).astype(dtype)
    up[:, 2] = up[:, 0]
    return {"up": jnp.asarray(up), "down": jnp.asarray(down)}, jnp.ones((5, 4), dtype)


def test_merging_is_checked_for_units_that_are_the_same():
    params, x = copied()
    growth = dw.plan(dw.trace(dense, params, x), merge={"up": [(0, 2)]})
    assert "\nchecked: equal to rounding in " in str(growth)
    wide = {"up": jnp.ones((300, 900)), "down": jnp.ones((900, 200))}
    widths = dw.trace(dense, wide, jnp.ones((400, 300)))
    assert dw.plan(widths, merge={"up": [(0, 2), (1, 7, 800)]}).evidence.samples


def test_merging_is_refused_where_outputs_would_change():
    """The network multiplies by the number of its units."""
    params, x = copied()
    widths = dw.trace(lambda p, x: dense(p, x) * p["up"].shape[1], params, x)
    with pytest.raises(ValueError, match="the network itself computes something else: its output"):
        dw.plan(widths, merge={"up": [(0, 2)]})
    with pytest.raises(ValueError, match="dw.narrow still removes the units"):
        dw.merge_symmetric(params, widths, "up")


def test_weights_that_are_added_up_wrongly(monkeypatch):
    params, x = copied()
    along = Change.along

    def kept(self, units, leaf):
        return dataclasses.replace(along(self, units, leaf), into=None)

    monkeypatch.setattr(Change, "along", kept)
    with pytest.raises(ValueError, match="computes something else: its output"):
        dw.plan(dw.trace(dense, params, x), merge={"up": [(0, 2)]})


def test_merging_units_that_differ_says_how_far_outputs_move():
    params, x = copied()
    widths = dw.trace(dense, params, x)
    dw.merge_symmetric(params, widths, "up")
    params["up"] = params["up"].at[:, 2].multiply(1.01)
    with pytest.warns(UserWarning, match=r"merge_symmetric: outputs move by 0\.\d+% .*smaller tol"):
        merged = dw.merge_symmetric(params, widths, "up", tolerance=0.1)
    assert merged["up"].shape == (4, 2)
