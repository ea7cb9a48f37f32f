"""What docs/limits.md promises, a test for each sentence, named after it."""

import re
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_unseen import arrays, normal
from tiers import long

import dogwood_jax as dw

X = normal(9, 4, 5)


@pytest.fixture(autouse=True)
def as_users_have_it() -> Iterator[None]:
    with jax.numpy_rank_promotion("allow"):
        yield


def behind(function: Any) -> Any:
    """Returns a network with a function between its two layers."""
    return lambda p, x: function(x @ p["i"]) @ p["o"]


def traced(function: Any, *, i: tuple[int, int] = (5, 8), o: int = 3, x: Any = X) -> dw.Widths:
    return dw.trace(behind(function), arrays(i=i, o=(i[1], o)), x)


def refusal(widths: dw.Widths, *sizes: Any, **options: Any) -> str:
    with pytest.raises(ValueError) as error:
        dw.plan(widths, *sizes, **options)
    return str(error.value)


def larger(function: Any, n: int = 12) -> dict[str, Any]:
    """Returns the larger model of a network of eight units as arguments of ``plan``."""
    shapes = {"i": (5, n), "o": (n, 3)}
    target = {name: jax.ShapeDtypeStruct(shape, float) for name, shape in shapes.items()}
    return {"target": target, "target_apply": behind(function)}


def test_the_larger_program_is_that_of_target_apply_else_of_the_own_function() -> None:
    assert "computes something else" in refusal(traced(jnp.tanh), **larger(jnp.sin))
    own = traced(lambda h: jnp.tanh(h) + 0.1 * h.shape[1])
    assert "the network itself computes something else" in refusal(own, {"i": 12})


def test_a_callback_gives_the_same_numbers_where_its_inputs_agree() -> None:
    def outside(h: Any) -> Any:
        return jax.pure_callback(np.tanh, jax.ShapeDtypeStruct(h.shape, h.dtype), h)

    def apply(p: Any, x: Any) -> Any:
        return jax.nn.relu(outside(x) @ p["i"]) @ p["o"]

    widths = dw.trace(apply, arrays(i=(5, 8), o=(8, 3)), X)
    assert dw.plan(widths, {"i": 12}).evidence.samples
    known = traced(outside).network
    assert known is not None
    reference = dw.trace(behind(outside), arrays(i=(5, 8), o=(8, 3)), X, kernels={"tanh": jnp.tanh})
    assert dw.plan(reference, {"i": 12}).evidence.samples


def test_a_model_of_any_size_is_evaluated_in_small_sizes() -> None:
    shapes = {"i": (5, 4096), "o": (4096, 3)}
    variables = {name: jax.ShapeDtypeStruct(shape, float) for name, shape in shapes.items()}
    growth = dw.plan(dw.trace(behind(jnp.tanh), variables, X), {"i": 5000})
    ((_, before, after),) = growth.evidence.sizes
    assert before < after < 64


@pytest.mark.parametrize("kind", ["depth", "half"])
def test_layers_are_left_out_only_if_they_compute_the_same_in_new_sizes(kind: str) -> None:
    """A branch on a size, with the number of layers or in half of them, is seen."""

    def apply(p: Any, x: Any) -> Any:
        for layer, q in enumerate(p["l"]):
            is_other = q["a"].shape[1] > 10 and (
                len(p["l"]) > 10 if kind == "depth" else layer >= 12
            )
            x = x + (jax.nn.gelu if is_other else jax.nn.relu)(x @ q["a"]) @ q["b"]
            for _ in range(6):
                x = jnp.tanh(x * 1.5) * 0.9
                x = x + 0.01 * jnp.sin(x)
        return x @ p["o"]

    variables = {"l": [arrays(a=(6, 8), b=(8, 6)) for _ in range(30)], "o": normal(3, 6, 3)}
    widths = dw.trace(apply, variables, normal(7, 4, 6))
    assert widths.network.layers is not None
    assert "computes something else" in refusal(widths, {f"l/{i}": 12 for i in range(30)})


@pytest.mark.parametrize(
    ("function", "word"),
    [
        (lambda h: 1 / jnp.where(h == 0, 0, 1 + 0 * h), "is not finite|becomes nan"),
        (jnp.exp, "becomes (nan|inf)"),
    ],
    ids=["rows of zeros", "several scales"],
)
def test_points_are_random_at_several_scales_and_rows_of_zeros(function: Any, word: str) -> None:
    assert re.search(word, refusal(traced(function), {"i": 12}))


def test_ids_lie_in_the_table_and_are_those_that_are_compared_with() -> None:
    def at(place: int) -> Any:
        def apply(p: Any, ids: Any) -> Any:
            h = p["e"][ids] @ p["i"]
            return jnp.where((ids == place)[..., None], 2 * h, h) @ p["o"]

        return apply

    variables = arrays(e=(50, 5), i=(5, 8), o=(8, 3))
    widths = dw.trace(at(17), variables, jnp.zeros((4,), int))
    target = larger(None)["target"] | {"e": jax.ShapeDtypeStruct((50, 5), float)}
    assert dw.plan(widths, target=target, target_apply=at(17)).evidence.samples
    assert "computes something else" in refusal(widths, target=target, target_apply=at(18))


def test_what_both_programs_have_alike_may_stay_unseen_and_is_named() -> None:
    growth = dw.plan(traced(lambda h: jnp.clip(h, -1e9, 1e9)), {"i": 12})
    assert re.search(r"not seen: max \(test_limits.py:\d+\)", str(growth))


def test_what_only_one_program_has_must_be_seen_to_matter() -> None:
    def clipped(at: float) -> Any:
        return lambda h: jnp.clip(h, -at, at)

    assert "no sample shows" in refusal(traced(clipped(1e9)), **larger(clipped(2e9)))


def test_where_an_operand_differs_and_nothing_is_seen_of_it_it_is_refused() -> None:
    def hidden(h: Any) -> Any:
        return h + jnp.floor(jnp.sum(jnp.cos(h) ** 2, -1, keepdims=True) / 1e9)

    assert refusal(traced(hidden), {"i": 12})


def test_a_side_that_no_sample_takes_is_taken_by_force() -> None:
    def sides(h: Any) -> Any:
        return jnp.where(jnp.sum(x := h**2, -1, keepdims=True) > 1e12, jnp.mean(x), 1.0) * h

    assert refusal(traced(sides), {"i": 12})


def test_a_doubt_is_decided_by_the_own_function_in_the_new_sizes() -> None:
    assert dw.plan(traced(lambda h: jnp.cumsum(h, -1)), {"i": 12}).evidence.samples


def test_random_numbers_by_the_callers_key_are_the_same_for_old_entries() -> None:
    def apply(p: Any, x: Any, key: Any) -> Any:
        h = jnp.tanh(x @ p["i"])
        return (h * jax.random.bernoulli(key, 0.5, h.shape)) @ p["o"]

    widths = dw.trace(apply, arrays(i=(5, 8), o=(8, 3)), X, jax.random.key(0))
    growth = dw.plan(widths, {"i": 12})
    assert any("another size draws others" in note for note in growth.notes)

    fixed = traced(lambda h: h * jax.random.normal(jax.random.key(0), h.shape))
    assert "another size draws others" in refusal(fixed, {"i": 12})


def test_a_cast_that_only_one_program_has_is_noted() -> None:
    def narrow(h: Any) -> Any:
        return h.astype(jnp.bfloat16).astype(h.dtype)

    (note,) = dw.plan(traced(jnp.tanh), **larger(lambda h: narrow(jnp.tanh(h)))).notes
    assert "only one of both programs has casts to bfloat16" in note


def test_zero_outgoing_is_refused_where_new_units_overflow_and_copies_are_not() -> None:
    widths = traced(jnp.exp)
    assert "strategies.replicate() makes copies" in refusal(widths, {"i": 16})
    strategy = dw.strategies.replicate()
    assert dw.plan(widths, {"i": 16}, strategy=strategy).evidence.samples


def test_check_false_switches_it_off_and_the_first_line_says_so() -> None:
    growth = dw.plan(traced(jnp.tanh), {"i": 12}, check=False)
    assert str(growth).startswith("not checked: planned with check=False")


def test_strategies_that_make_no_promise_are_not_refused() -> None:
    assert dw.plan(traced(jnp.tanh), {"i": 12}, strategy=dw.strategies.random()).sizes == {"i": 12}


def test_with_interface_the_promise_is_for_old_outputs() -> None:
    growth = dw.plan(traced(jnp.tanh), {"o": 6}, interface=True)
    assert growth.evidence.samples
    assert refusal(traced(lambda h: h, o=3), {"o": 6})


@pytest.mark.parametrize("layers", [12, long(48)])
def test_copies_of_many_layers_agree_in_float64(layers: int) -> None:
    def apply(p: Any, x: Any) -> Any:
        return jax.lax.scan(lambda x, q: (x + jnp.sin(x @ q["u"]) @ q["d"], None), x, p)[0]

    variables = {"u": normal(0, layers, 16, 8), "d": normal(1, layers, 8, 16)}
    x, strategy = normal(2, 4, 16), dw.strategies.replicate()
    growth = dw.plan(dw.trace(apply, variables, x), {"u": 16}, strategy=strategy)
    wide = dw.grow(variables, growth, key=jax.random.key(0))
    np.testing.assert_allclose(apply(wide, x), apply(variables, x), rtol=0, atol=1e-10)


def test_new_units_are_appended() -> None:
    variables = arrays(i=(5, 8), o=(8, 3))
    wide = dw.grow(variables, dw.plan(traced(jnp.tanh), {"i": 12}), key=jax.random.key(0))
    np.testing.assert_array_equal(wide["i"][:, :8], variables["i"])
    np.testing.assert_array_equal(wide["o"], jnp.pad(variables["o"], ((0, 4), (0, 0))))


def test_a_module_that_holds_its_size_is_settled_by_the_larger_function() -> None:
    class Held(nn.Module):
        units: int

        @nn.compact
        def __call__(self, x: Any) -> Any:
            h = jnp.tanh(nn.Dense(self.units)(x)) + 0.1 * self.units
            return nn.Dense(3)(h)

    small, large = Held(8), Held(16)
    around = lambda variables, x: small.apply(variables, x)  # noqa: E731
    widths = dw.trace(around, small.init(jax.random.key(0), X), X)
    assert "may follow from a size" in refusal(widths, {"Dense_0": 16})
    own = dw.trace(small.apply, small.init(jax.random.key(0), X), X)
    assert "the network itself computes something else" in refusal(own, {"Dense_0": 16})
    target = jax.eval_shape(large.init, jax.random.key(0), X)
    assert "computes something else" in refusal(widths, target=target, target_apply=large.apply)


def test_behind_another_layer_a_network_may_be_finite_by_luck() -> None:
    def function(h: Any) -> Any:
        s = jax.nn.sigmoid(h)
        return h * s / jnp.sqrt(s * s)

    assert "nan" in refusal(traced(function), {"i": 12})
    apply = lambda p, x: behind(function)(p, x @ p["first"])  # noqa: E731
    widths = dw.trace(apply, arrays(first=(5, 6), i=(6, 8), o=(8, 3)), X)
    assert dw.plan(widths, {"i": 12}).evidence.samples
    assert not jnp.isfinite(function(jnp.array(-401.0)))


def test_a_root_of_a_square_and_one_is_always_finite() -> None:
    assert dw.plan(traced(lambda h: jnp.sqrt(h * h + 1)), {"i": 12}).evidence.samples
    assert refusal(traced(jnp.sqrt), {"i": 12})


def test_widths_from_a_file_are_not_evaluated() -> None:
    widths = dw.from_json(dw.to_json(traced(jnp.tanh)))
    assert "trace the network again, or pass check=False" in refusal(widths, {"i": 12})
    assert dw.plan(widths, {"i": 12}, check=False).sizes == {"i": 12}


def test_states_of_lbfgs_are_not_grown() -> None:
    variables = arrays(i=(5, 8), o=(8, 3))
    growth, tx = dw.plan(traced(jnp.tanh), {"i": 12}), optax.scale_by_lbfgs()
    with pytest.raises(ValueError, match="cannot grow this state"):
        dw.grow_opt_state(tx.init(variables), growth, tx)
