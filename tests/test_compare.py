"""``compare`` against differences known beforehand."""

import jax.numpy as jnp
import numpy as np
import pytest

import dogwood_jax as dw


def difference(old: object, new: object) -> dw.typing.Difference:
    return dw.compare(lambda v: v, old, lambda v: v, new)


def test_equal_outputs_differ_by_nothing() -> None:
    found = difference(
        {"a": jnp.array([1.0, jnp.inf, jnp.nan])}, {"a": jnp.array([1.0, jnp.inf, jnp.nan])}
    )
    assert (found.absolute, found.relative, found.ulps) == (0, 0, 0)


def test_says_how_far_and_where() -> None:
    old = {"a": jnp.array([[1.0, 2.0]]), "b": jnp.array([10.0])}
    new = {"a": jnp.array([[1.0, 2.5]]), "b": jnp.array([10.25])}
    found = difference(old, new)
    assert found.absolute == 0.5
    assert found.relative == 0.25
    assert found.where == "a[0, 1]"


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32, jnp.bfloat16, jnp.float16])
def test_counts_units_in_the_last_place(dtype: jnp.dtype) -> None:
    old = jnp.array([3.0], dtype)
    new = old + 2 * jnp.finfo(dtype).eps  # one unit in the last place at 3 is 2 eps
    assert difference(old, new).ulps == 1


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32, jnp.bfloat16, jnp.float16])
def test_counts_units_in_the_last_place_of_zero(dtype: jnp.dtype) -> None:
    smallest = jnp.finfo(dtype).smallest_subnormal
    assert difference(np.zeros(1, dtype), np.full(1, 3 * smallest, dtype)).ulps == 3


def test_a_nan_on_one_side_is_the_worst() -> None:
    found = difference(jnp.array([1.0, 2.0, 3.0]), jnp.array([9.0, jnp.nan, 3.0]))
    assert np.isnan(found.absolute)
    assert found.where == "[1]"


def test_a_nan_in_the_second_output_is_not_lost() -> None:
    old, new = {"a": np.ones(2), "b": np.ones(2)}, {"a": np.full(2, 1.5), "b": np.full(2, np.nan)}
    found = difference(old, new)
    assert np.isnan([found.absolute, found.relative, found.ulps]).all()
    assert found.where == "b[0]"


def test_appended_outputs_are_left_out() -> None:
    assert difference(jnp.ones((2, 3)), jnp.ones((2, 5)).at[:, 3:].set(7)).absolute == 0


def test_other_outputs_raise() -> None:
    with pytest.raises(
        ValueError, match=r"'b': only one(.|\n)*'a': has shape \(2,\), expected \(3,\)"
    ):
        difference({"a": jnp.ones(3), "b": jnp.ones(1)}, {"a": jnp.ones(2)})


def test_a_difference_is_neither_true_nor_false() -> None:
    for new in (jnp.ones(2), jnp.zeros(2)):
        with pytest.raises(TypeError, match="neither true nor false.* dw.verify"):
            bool(difference(jnp.ones(2), new))
