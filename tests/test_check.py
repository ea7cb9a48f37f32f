"""The check: growths are accepted if, and only if, an evaluation shows that outputs stay.

Pairs of programs that differ in one place come from ``pairs``.
"""

import dataclasses
import functools
import importlib
import json
import pickle
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pairs
import pytest
from jax import lax
from networks import ONE_OF_EACH_KIND, Model, data, f64, fill, load
from primitive_examples import EXAMPLES
from tiers import in_tiers, some

import dogwood_jax as dw
from dogwood_jax._base.bits import in_64_bits
from dogwood_jax._check import gradients, reduced
from dogwood_jax._check.check import check
from dogwood_jax._check.evaluate import evaluate
from dogwood_jax._check.reduced import LargerProgram, reduced_case
from dogwood_jax._check.resize import in_sizes
from dogwood_jax._growth import edited as editing
from dogwood_jax._growth import grown as growing
from dogwood_jax._growth.grown_sizes import GrownSizes
from dogwood_jax._plan import decide
from dogwood_jax._plan.depth.trial import Trial
from dogwood_jax._plan.search import search
from dogwood_jax._plan.shown import reasons
from dogwood_jax._program.primitives.table import PRIMITIVES, primitive
from dogwood_jax._program.program import Program
from dogwood_jax._widths.roles import Roles

for topic in ("axes", "control", "elementwise", "sums"):
    importlib.import_module(f"primitive_examples_{topic}")
NETWORKS = load()

# Pairs -------------------------------------------------------------------------------------------


# Whose programs take long to evaluate.
LONG = (
    "axis_of_cumsum axis_of_softmax axis_of_sort bound_itself_of_relu branches_of_where "
    "diagonal fill_value_of_a_lookup fill_value_of_take first_positions gelu_is_approximate "
    "halves halves_of_a_fused_array hidden_units_are_narrow interpolation jitted "
    "lines_in_another_order mapped mask_of_attention mode_of_a_lookup mode_of_an_update "
    "mode_of_take norm_of_a_transform operands_of_a_quotient operands_of_an_angle "
    "order_of_a_norm order_of_reshape order_of_sort outputs_exchanged padding_and_dilation "
    "pairs_that_rotate period_of_positions reduced_precision rematerialized sides_of_a_clip "
    "start_of_a_dynamic_slice stop_of_gradients swapped unroll_of_a_scan update_of_entries "
    "value_for_nan words_for_a_square"
).split()


@pytest.mark.parametrize("kind", some(pairs.KINDS, 3, long=LONG))
def test_a_pair_is_accepted_if_and_only_if_outputs_agree(kind: str) -> None:
    assert str(pairs.failure(kind, seed=0)) == "None"


@pytest.mark.long
@pytest.mark.parametrize("kind", [*pairs.KINDS][::4])
def test_a_pair_is_decided_rightly_in_small_sizes(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Large pairs are evaluated in small sizes, whatever they hold."""
    monkeypatch.setattr(reduced, "_FEW", -1)
    assert str(pairs.failure(kind, seed=0, is_large=True)) == "None"


# The same in few lines ----------------------------------------------------------------------------


class Found(NamedTuple):
    """A pair that was decided wrongly.

    Attributes:
        old: the program.
        new: the larger one.
        word: what the answer must hold: of a refusal, or else of the growth as it is printed.
        sizes: those of the inputs, the units and the outputs.
        inputs: the inputs.
    """

    old: Callable[..., Any]
    new: Callable[..., Any]
    word: str
    sizes: tuple[int, int, int] = (4, 5, 2)
    inputs: Any = f64(3, 4)


def behind(function: Callable[..., Any], act: Callable[..., Any] = jnp.tanh) -> Any:
    return lambda p, x: function(act(x @ p["up"]) @ p["down"])


def biased(function: Callable[..., Any]) -> Any:
    return lambda p, x: function(x + jnp.tanh(x @ p["up"] + 1) @ p["down"])


def whole(y: Any) -> Any:
    return y


def padded(p: Any, x: Any) -> Any:
    x = jnp.pad(x, ((0, 0), (0, 1), (0, 0))).reshape(3, -1)
    return jnp.tanh(x @ p["up"]) @ p["down"]


def looked_up(value: float) -> Callable[..., Any]:
    def apply(p: Any, ids: Any) -> Any:
        table = jnp.sin(jnp.arange(32.0)).reshape(8, 4)
        x = jnp.take(table, ids, 0, mode="fill", fill_value=value)
        return jnp.tanh(x @ p["up"]) @ p["down"]

    return apply


def attention(window: int, within: Any = jnp.less, values: Any = jnp.matmul) -> Callable[..., Any]:
    def mix(y: Any) -> Any:
        places = jnp.arange(y.shape[1])
        behind = places[:, None] - places[None]
        scores = jnp.where(((behind >= 0) & within(behind, window))[None], y @ y.mT, -jnp.inf)
        return values(jax.nn.softmax(scores), y)

    return mix


def by_place(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda y: y * jnp.sin(1.0 * function(jnp.arange(y.shape[1])))[None, :, None]


def switch(function: Callable[..., Any]) -> Callable[..., Any]:
    branches = (*[whole] * 40, function)
    return lambda y: jax.lax.switch(jnp.sum(jnp.abs(y) * 1e3).astype(int) % 41, branches, y)


NO, YES = "computes something else", "checked: equal"
LARGER: dict[str, Any] = {"sizes": (32, 256, 32), "inputs": f64(2, 64, 32)}
LONG: dict[str, Any] = {"sizes": (64, 256, 64), "inputs": f64(16, 2048, 64)}
FOUND = {
    "padded_and_flattened": Found(padded, padded, YES, (10, 5, 2), f64(3, 4, 2)),
    "other_rounding": Found(
        behind(whole), behind(lambda y: y.astype(jnp.bfloat16).astype(y.dtype)), "bfloat16"
    ),
    "ids_out_of_range": Found(
        looked_up(0.0), looked_up(1.0), NO, inputs=jax.ShapeDtypeStruct((3, 2), jnp.int32)
    ),
    "bound_or_none": Found(behind(lambda y: jnp.minimum(y, 1e4)), behind(whole), NO),
    "branches_that_no_sample_reaches": Found(
        behind(lambda y: jnp.where(y > 1e4, jnp.sin(y), y)),
        behind(lambda y: jnp.where(y > 1e4, jnp.cos(y), y)),
        NO,
    ),
    "number_that_occurs_twice": Found(
        behind(lambda y: 1e5 * jnp.tanh(y) + jnp.minimum(y, 1e4)),
        behind(lambda y: 1e5 * jnp.tanh(y) + jnp.minimum(y, 1e5)),
        NO,
    ),
    "branch_that_few_samples_reach": Found(behind(switch(jnp.sin)), behind(switch(jnp.cos)), NO),
    "comparison_with_zero": Found(behind(jnp.abs), behind(lambda y: jnp.where(y > 0, y, -y)), YES),
    "maximum_of_an_infinity": Found(
        behind(lambda y: jnp.exp(y - y.max(1, keepdims=True))),
        behind(lambda y: jnp.exp(y - jnp.maximum(-jnp.inf, y.max(1, keepdims=True)))),
        YES,
    ),
    "window_in_a_reduced_model": Found(behind(attention(16)), behind(attention(32)), NO, **LARGER),
    "position_in_a_reduced_model": Found(
        behind(lambda y: y.at[:, 10].multiply(2.0)),
        behind(lambda y: y.at[:, 20].multiply(2.0)),
        NO,
        **LARGER,
    ),
    "bound_of_a_window_in_a_reduced_model": Found(
        behind(attention(16)), behind(attention(16, jnp.less_equal)), NO, **LARGER
    ),
    "window_and_other_words": Found(
        behind(attention(16)),
        behind(attention(16, values=lambda a, y: jnp.einsum("bts,bsi->bti", a, y))),
        YES,
        **LARGER,
    ),
    "window_that_no_reduced_model_reaches": Found(
        behind(attention(512)), behind(attention(1024)), NO, **LONG
    ),
    "remainder_that_no_reduced_model_reaches": Found(
        behind(by_place(lambda k: k % 512)), behind(by_place(lambda k: k % 1024)), NO, **LONG
    ),
    "clip_that_no_reduced_model_reaches": Found(
        behind(by_place(lambda k: jnp.clip(k - 9, -8, 512))),
        behind(by_place(lambda k: jnp.clip(k - 9, -8, 1024))),
        NO,
        **LONG,
    ),
    "bound_itself": Found(
        biased(lambda y: jnp.where(y > 0, 1.0, 2.0)),
        biased(lambda y: jnp.where(y >= 0, 1.0, 2.0)),
        NO,
        (4, 5, 4),
    ),
    "softmax_that_overflows": Found(
        behind(jax.nn.softmax), behind(lambda y: jnp.exp(y) / jnp.exp(y).sum(1, keepdims=True)), NO
    ),
    "less_than_a_millionth": Found(behind(whole), behind(lambda y: y + 1e-8 * jnp.sin(y)), NO),
    "new_unit_that_sleeps": Found(
        behind(whole, jax.nn.relu), behind(whole, jax.nn.relu), YES, inputs=f64(1, 4)
    ),
}


@pytest.mark.parametrize("case", FOUND)
def test_what_pairs_have_found(case: str) -> None:
    found = FOUND[case]
    inputs, units, outputs = found.sizes
    shapes, larger = ({"up": f64(inputs, n), "down": f64(n, outputs)} for n in (units, units + 1))
    widths = dw.trace(found.old, shapes, found.inputs)
    try:
        answer = str(dw.plan(widths, target=larger, target_apply=found.new))
    except ValueError as refusal:
        answer = str(refusal)
    assert found.word in answer


# Evaluating --------------------------------------------------------------------------------------

# An example of each primitive that the check computes itself, and some others. ``python
# tests/test_check.py`` tries all.
OF_PRIMITIVES = {name: k for k in reversed(EXAMPLES) for name in EXAMPLES[k].reaches}
SPREAD = sorted(
    {k for name, k in OF_PRIMITIVES.items() if primitive(name).evaluate} | {*[*EXAMPLES][::40]}
)
# What is evaluated otherwise, and why.
OTHERWISE = {
    **dict.fromkeys(
        (name for name, example in EXAMPLES.items() if "random_bits" in example.reaches),
        "old entries of an array get the same bits in both networks",
    ),
    **dict.fromkeys(
        ("hessenberg_over_batches", "tridiagonal_over_batches"),
        "reflections of what is zero to rounding are arbitrary",
    ),
    "pure_callback_on_units": "a callback gives random numbers",
    "rem_of_integers_behind_a_norm": "NumPy's remainder of a division by zero is zero",
}


@pytest.mark.parametrize("first", some(range(0, len(SPREAD), 30), 2))
def test_examples_are_evaluated_as_by_jax(first: int) -> None:
    for name in SPREAD[first : first + 30]:
        assert name in OTHERWISE or (name, off(name)) == (name, "")


def off(name: str) -> str:
    """Returns how an example is evaluated otherwise than by JAX, nothing if it is not."""
    example = EXAMPLES[name]
    arguments = (example.parameters(), *example.arguments())
    run, leaves = jax.jit(example.apply), jax.tree.leaves(arguments)
    got = evaluate(Program(example.apply, arguments[0], arguments[1:]).jaxpr, leaves)
    for a, b in zip(jax.tree.leaves(run(*arguments)), got, strict=True):
        if np.shape(a) != np.shape(b):
            return f"the shape is {np.shape(b)} instead of {np.shape(a)}"
        a, b = np.asarray(a, complex), np.asarray(b, complex)
        most = np.max(np.abs(a[np.isfinite(a)]), initial=0.0)
        close = max(4 * example.rounding, 1e-10) * most
        if not np.allclose(b, a, atol=close, rtol=1e-9, equal_nan=True):
            return f"off by {np.nanmax(np.abs(b - a)) / most:.1e}, relative to the largest number"
    return ""


# Other sizes -------------------------------------------------------------------------------------


@functools.lru_cache(None)
def network_of(name: str) -> tuple[Model, Any]:
    model = NETWORKS[name].build()
    return model, dw.trace(model.apply, model.shapes, *model.inputs)


# In the other one, nothing grows by a target.
GROWING = in_tiers([n for n in NETWORKS if n != "made"], short=ONE_OF_EACH_KIND)


@pytest.mark.parametrize("name", GROWING)
def test_a_program_in_its_own_sizes_is_the_same(name: str) -> None:
    model, widths = network_of(name)
    program = widths.network.traced.program
    again = in_sizes(widths.network.traced, lambda dim: dim.root.size)
    arguments = jax.tree.leaves((fill(model.shapes, 0), model.inputs))
    arrays = [a for a in arguments if hasattr(a, "shape")]
    pairs_of = zip(evaluate(program.jaxpr, arrays), evaluate(again, arrays), strict=True)
    for a, b in pairs_of:
        if getattr(a, "dtype", np.dtype(float)).kind != "V":
            np.testing.assert_array_equal(a, b)


@functools.lru_cache(None)
def larger_of(name: str) -> tuple[Any, Any]:
    """Returns a growth to twice the size of something that can grow, and the larger program."""
    network, (_, widths) = NETWORKS[name], network_of(name)
    names = sorted({w.by for w in network.widths.values() if w.by}, key=lambda by: _order(name, by))
    larger = network.build(**{names[0]: 2 * network.sizes[names[0]]})
    growth = dw.plan(widths, target=larger.shapes, target_apply=larger.apply, interface=True)
    inputs = GrownSizes(growth.widths, growth.sizes).inputs()
    return growth, dw.trace(larger.apply, larger.shapes, *inputs).network.traced


def _order(name: str, by: str) -> tuple[bool, str]:
    """Puts last what is a dimension of inputs, or what growing would change outputs."""
    widths = [w for w in NETWORKS[name].widths.values() if w.by == by]
    return any(w.changes or w.interface for w in widths), by


# In the long tier, every third one of the others stands for more.
SOME = [*ONE_OF_EACH_KIND, *[n for n in NETWORKS if n not in ("made", *ONE_OF_EACH_KIND)][::3]]


@pytest.mark.parametrize("name", in_tiers(SOME, short=ONE_OF_EACH_KIND))
def test_a_program_fits_larger_sizes(name: str) -> None:
    growth, larger = larger_of(name)
    sizes = GrownSizes(growth.widths, growth.sizes)
    found, wanted = in_sizes(growth.widths.network.traced, sizes), larger.program.jaxpr
    for which in ("in_avals", "out_avals"):
        assert [a.shape for a in getattr(found, which)] == [a.shape for a in getattr(wanted, which)]


@pytest.mark.parametrize("name", in_tiers(SOME, short=ONE_OF_EACH_KIND))
def test_a_growth_is_shown_by_its_reduced_model(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even sizes of 2, 3 and 4 become others, so that no two that are mixed up go unnoticed."""
    monkeypatch.setattr(reduced, "_SHORT", 1)
    growth, larger = larger_of(name)
    case = reduced_case(growth, growth.widths.network.traced, LargerProgram(larger))
    verdict = check(case)
    assert verdict.is_shown, [*reasons(verdict)]
    assert verdict.samples >= 3


def test_a_reduced_model_keeps_the_ratio_that_a_recipe_depends_on() -> None:
    def apply(p: Any, x: Any) -> Any:
        h = x @ p["embed"]
        h = h / jnp.sqrt(jnp.mean(h * h, -1, keepdims=True) + 1e-3) * p["scale"][None]
        return h @ p["head"]

    shapes = {"embed": f64(64, 2048), "scale": f64(2048), "head": f64(2048, 64)}
    growth = dw.plan(dw.trace(apply, shapes, f64(256, 64)), {"embed": 3072})
    (_, before, after), *_ = growth.evidence.sizes
    assert (before < 2048) and after / before == 3072 / 2048


# Evidence ----------------------------------------------------------------------------------------

X, SIZES = f64(3, 4), {"up": 7}
MLP = {"up": f64(4, 5), "down": f64(5, 2)}


def mlp(p: Any, x: Any) -> Any:
    return jnp.cos(x @ p["up"]) @ p["down"]


def planned() -> dw.Growth:
    return dw.plan(dw.trace(mlp, MLP, X), SIZES)


def test_evidence_is_kept() -> None:
    growth = planned()
    assert growth.evidence is not None and growth.evidence.samples == 18
    assert growth.evidence.sizes == (("up", 5, 7),)
    for again in (dw.from_json(dw.to_json(growth)), pickle.loads(pickle.dumps(growth))):
        assert again == growth
        assert again.evidence == growth.evidence


def test_evidence_has_no_part_in_comparisons() -> None:
    """Hosts round differently, and a growth is static under ``jit``."""
    growth = planned()
    other = dataclasses.replace(growth, evidence=None)
    assert other == growth and hash(other) == hash(growth)


def test_a_growth_without_evidence_is_read() -> None:
    """As 0.2.0 wrote it."""
    growth = planned()
    text = json.loads(dw.to_json(growth))
    del text["evidence"]
    again = dw.from_json(json.dumps(text))
    assert again == growth and again.evidence is None
    assert "checked" not in f"{again}"


def test_the_last_line_says_what_was_checked() -> None:
    assert f"{planned()}".splitlines()[-1] == "checked: equal to rounding in 18 samples"


def test_the_last_line_names_the_sizes_of_a_reduced_model() -> None:
    shapes = {"up": f64(400, 500), "down": f64(500, 20)}
    growth = dw.plan(dw.trace(mlp, shapes, f64(90, 400)), {"up": 700})
    ((name, before, after),) = growth.evidence.sizes
    assert (name, before < 10, after - before) == ("up", True, 2)
    line = f"checked: equal to rounding in 18 samples, sizes 500 -> {before}, 700 -> {after}"
    assert f"{growth}".splitlines()[-1] == line


def clipped(p: Any, x: Any) -> Any:
    h = jnp.maximum(x @ p["up"], -1e7)
    return jnp.clip(jnp.tanh(h), -5, 5) @ p["down"]


@pytest.mark.parametrize("units", [5, 500])  # as it is, and written again in other sizes
@pytest.mark.parametrize("loop", [False, True])
def test_what_was_not_seen_is_named_with_its_line(units: int, loop: bool) -> None:
    """The equations of ``clip`` are those of a function that JAX has compiled."""
    first = clipped.__code__.co_firstlineno
    lines = [("max", 1), ("max", 2), ("min", 2)]
    unseen = ", ".join(f"{name} (test_check.py:{first + more})" for name, more in lines)
    apply = (lambda p, x: jax.lax.map(lambda row: clipped(p, row), x)) if loop else clipped
    shapes = {"up": f64(400, units), "down": f64(units, 2)}
    growth = dw.plan(dw.trace(apply, shapes, f64(9, 400)), {"up": units + 2})
    assert f"{growth}".partition("samples")[2].partition("not seen: ")[2] == unseen


# Samples -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "inputs"),
    [
        (lambda h: 1 / h, "inputs with a row of zeros"),
        (lambda h: jnp.log(jnp.abs(h)), "inputs with a row of zeros"),
        (jnp.exp, "inputs around 1000"),
    ],
)
def test_an_error_says_for_which_inputs_outputs_are_not_finite(function: Any, inputs: str) -> None:
    def apply(p: Any, x: Any) -> Any:
        return function(x @ p["up"] + p["bias"].reshape(1, -1)) @ p["down"]

    error = refusal(apply, MLP | {"bias": f64(5)}, SIZES)
    assert "becomes nan" in error and inputs in error


def problem(larger: Callable[..., Any]) -> str | None:
    """Returns what the check says of a larger program whose outputs are those of ``mlp``."""
    growth = planned()
    traced = growth.widths.network.traced
    shapes = {"up": f64(4, 7), "down": f64(7, 2)}
    its = dw.trace(larger, shapes, X).network.traced
    verdict = check(reduced.claim(growth, traced, LargerProgram(its)))
    assert verdict.difference is None and verdict.samples == 18
    return verdict.problem or verdict.gradients


@pytest.mark.parametrize("layers, units", [(2, 4), (3, 5), (4, 7)])
def test_a_number_is_rounded_alike_wherever_it_stands(layers: int, units: int) -> None:
    """In single precision, 3 ** -0.5 is rounded, and 4 ** -0.5 is a number of the network, too."""

    def shapes(dims: int) -> Any:
        layer = {
            **{name: jax.ShapeDtypeStruct((units, dims), jnp.float32) for name in "qkv"},
            "o": jax.ShapeDtypeStruct((dims, units), jnp.float32),
        }
        return [layer] * layers

    def apply(variables: Any, x: Any) -> Any:
        for layer in variables:
            q, k, v = x @ layer["q"], x @ layer["k"], x @ layer["v"]
            scores = q @ k.swapaxes(1, 2) * q.shape[-1] ** -0.5
            x = x + jax.nn.softmax(scores) @ v @ layer["o"] * 0.5
        return x

    x = jax.ShapeDtypeStruct((2, 3, units), jnp.float32)
    widths = dw.trace(apply, shapes(3), x)
    growth = dw.plan(widths, target=shapes(4), target_apply=apply)
    assert growth.evidence is not None and growth.evidence.samples


def test_gradients_must_be_finite() -> None:
    def steep(p: Any, x: Any) -> Any:
        norms = jnp.sqrt(jnp.sum(p["down"] ** 2, 1)).sum()
        return mlp(p, x) + norms - norms

    assert problem(mlp) is None
    why = "the gradient of down is not finite where the network's is, for random inputs"
    assert problem(steep) == why


def test_new_units_must_learn() -> None:
    def masked(p: Any, x: Any) -> Any:
        h = jnp.cos(x @ p["up"])
        return jnp.where((jnp.arange(h.shape[1]) < 5)[None], h, 0) @ p["down"]

    assert problem(masked).startswith("new units of up get no gradient, so they would never learn")


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_a_step_is_as_long_for_small_gradients_as_for_large(scale: float) -> None:
    """Units behind a saturated softmax get small ones, and must move enough to learn."""
    before = {"w": np.zeros(3), "step": np.ones(2)}
    after = gradients._moved(before, {"w": scale * np.array([0.0, -2.0, 1.0])})
    np.testing.assert_allclose(after["w"] / np.max(after["w"]), [0, 1, -0.5])
    np.testing.assert_allclose(np.max(after["w"]), gradients._STEP)
    assert after["step"] is before["step"]


def test_no_step_is_taken_where_no_gradient_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradients, "_moved", lambda *_: pytest.fail("nothing would move"))

    def signs(p: Any, x: Any) -> Any:
        return jnp.sign(mlp(p, x))

    growth = dw.plan(dw.trace(signs, MLP, X), SIZES)
    assert growth.evidence is not None and growth.evidence.samples


def test_another_start_is_taken_where_units_would_never_learn() -> None:
    """Behind a relu, units whose incoming weights are zero get no gradient. Copies do."""

    def apply(p: Any, x: Any) -> Any:
        h = jax.nn.relu(x @ p["up"])
        return h @ h.T + h @ p["down"]

    p = {"up": jnp.ones((3, 4)), "down": jnp.ones((4, 2))}
    widths = dw.trace(apply, p, jnp.ones((2, 3)))
    assert dw.plan(widths, {"up": 8}).change["up"].strategy.makes_alike
    assert dw.plan(widths, {"up": 5}).change["up"].strategy.split == "roots"


# What samples hide --------------------------------------------------------------------------------

TABLE = jnp.zeros(500).at[300].set(1.0)
HIDING = {
    "a maximum": lambda h, x: h + jax.nn.relu(h.sum(-1, keepdims=True) - 1e5),
    "a sigmoid that is zero": lambda h, x: h + jax.nn.sigmoid(h.sum(-1, keepdims=True) - 2000),
    "a sign": lambda h, x: h + jnp.sign(h.sum(-1, keepdims=True) + 1e5),
    "a floor": lambda h, x: h + jnp.floor(jnp.abs(h.sum(-1, keepdims=True)) / 1e5),
    "a cast": lambda h, x: h + (h.sum(-1, keepdims=True) / 1e5).astype(int),
    "a choice": lambda h, x: jnp.where(x[:, :1] == 0.5, lax.cumsum(h, 1, reverse=True), h),
    "a product": lambda h, x: h + (x[:, :1] == 0.5) * h.sum(-1, keepdims=True),
    "a mask": lambda h, x: h + TABLE.at[x[:, :1].astype(int)].get() * h.sum(-1, keepdims=True),
    "an input": lambda h, x: h + jax.nn.relu(x[:, :1] - 1e5) * h.sum(-1, keepdims=True),
    "a branch": lambda h, x: lax.cond(x[0, 0] > 1e5, lambda: h[:, ::-1].cumsum(1), lambda: h),
    "a loop": lambda h, x: lax.fori_loop(
        0, jnp.int32(x[0, 0] / 1e5), lambda _, h: lax.cumsum(h, 1, reverse=True), h
    ),
    "a second round": lambda h, x: lax.fori_loop(
        0, jnp.int32(x[0, 0] / 1e5), lambda _, h: 0 * h + h.sum(1, keepdims=True), h
    ),
}


@pytest.mark.parametrize("strategy", ["zero_outgoing", "replicate"])
@pytest.mark.parametrize("name", HIDING)
def test_what_samples_hide_is_not_shown(name: str, strategy: str) -> None:
    """Units are mixed where inputs are large or are 0.5, and no sample shows it."""

    def apply(p: Any, x: Any) -> Any:
        return HIDING[name](x @ p["up"], x) @ p["down"]

    with pytest.raises(ValueError, match="cannot plan this growth"):
        dw.plan(dw.trace(apply, MLP, X), SIZES, strategy=getattr(dw.strategies, strategy)())


def test_new_weights_may_add_rounds_to_a_loop() -> None:
    """Old weights are halved as often as the largest weight asks for, and that may be a new one."""

    def apply(p: Any, x: Any) -> Any:
        is_large = lambda w: jnp.max(jnp.abs(w)) > 1  # noqa: E731
        return x @ p["up"] @ lax.while_loop(is_large, lambda w: 0.7 * w, p["down"]) @ p["out"]

    variables, x = fill({"up": f64(3, 4), "down": f64(4, 4), "out": f64(4, 2)}, 0), data(6, 3)
    growth = dw.plan(dw.trace(apply, variables, x), {"up": 8})
    fresh = {path: 100 * fill(f64(*shape), 1) for path, shape in growth.shapes.items()}
    wide = dw.grow(variables, growth, fresh=fresh)
    np.testing.assert_allclose(apply(wide, x), apply(variables, x), 1e-12)


def test_a_key_that_follows_from_inputs_draws_other_numbers_for_more_units() -> None:
    def apply(p: Any, x: Any, key: Any) -> Any:
        h = x @ p["up"]
        return (h + jax.random.normal(key, h.shape)) @ p["down"]

    of_data = lambda p, x: apply(p, x, jax.random.key(x[0, 0].astype(int)))  # noqa: E731
    with pytest.raises(ValueError, match="another size draws others"):
        dw.plan(dw.trace(of_data, MLP, X), SIZES)
    assert dw.plan(dw.trace(apply, MLP, X, jax.random.key(0)), SIZES).evidence.samples

    def scaled(p: Any, x: Any, key: Any) -> Any:
        return x @ p["up"] * jax.random.normal(key) @ p["down"]

    assert dw.plan(dw.trace(scaled, MLP, X, jax.random.key(0)), SIZES).evidence.samples


def test_images_have_bright_pixels() -> None:
    def apply(p: Any, x: Any) -> Any:
        return lax.cumsum(jnp.cos((x >> 7) @ p["up"]), 1, reverse=True) @ p["down"]

    image = jax.ShapeDtypeStruct((3, 4), jnp.uint8)
    with pytest.raises(
        ValueError, match="because cumsum .* is the first to compute something else"
    ):
        dw.plan(dw.trace(apply, MLP, image), SIZES, strategy=dw.strategies.zero_outgoing())


@pytest.mark.parametrize("pick", [jnp.max, jnp.argmax, lambda h, axis: lax.top_k(h, 2)[0]])
def test_new_zeros_may_be_the_largest(pick: Any) -> None:
    """With 20 old units, normal numbers are never all negative."""

    def apply(p: Any, x: Any) -> Any:
        return jnp.tanh(x @ p["up"]) @ p["down"], pick(x @ p["up"], axis=-1)

    shapes = {"up": f64(4, 20), "down": f64(20, 3)}
    with pytest.raises(ValueError, match="positive inputs and negative weights"):
        dw.plan(dw.trace(apply, shapes, f64(3, 4)), {"up": 24}, strategy=dw.strategies.zeros())


@pytest.mark.parametrize("layers", [2, 4])
def test_new_zeros_may_be_the_largest_behind_several_layers(layers: int) -> None:
    """Products of an even number of negative weights are positive."""

    def apply(p: Any, x: Any) -> Any:
        h = jnp.einsum("bi,imn->bmn", x, p["first"])
        for n in range(1, layers):
            h = h @ p[f"layer_{n}"]
        return jnp.argmax(h, 1).astype(x.dtype) @ p["last"]

    shapes = {"first": f64(80, 45, 64), "last": f64(64, 2)}
    shapes |= {f"layer_{n}": f64(64, 64) for n in range(1, layers)}
    widths = dw.trace(apply, shapes, f64(3, 80))
    with pytest.raises(ValueError, match="weights of one sign in each array"):
        dw.plan(widths, {"first[1]": 46}, strategy=dw.strategies.zero_incoming())
    (change,) = dw.plan(widths, {"first[1]": 46}).changes
    assert change.strategy.incoming == "copy"  # the first of the largest is an old unit


# Broken on purpose -------------------------------------------------------------------------------


def refusal(apply: Any, shapes: Any, sizes: Any, **options: Any) -> str:
    with pytest.raises(ValueError, match="cannot plan this growth") as error:
        dw.plan(dw.trace(apply, shapes, X), sizes, **options)
    return f"{error.value}"


def read_as(monkeypatch: pytest.MonkeyPatch, name: str, other: str) -> None:
    """Has a primitive read as if it were another one."""
    monkeypatch.setattr(PRIMITIVES[name], "read", PRIMITIVES[other].read)


def test_a_rule_that_overlooks_a_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    def apply(p: Any, x: Any) -> Any:
        return jax.lax.cumsum(jnp.cos(x @ p["up"]), 1, reverse=True) @ p["down"]

    as_it_is = {"strategy": dw.strategies.zero_outgoing()}
    assert "because cumsum" in refusal(apply, MLP, SIZES, **as_it_is)
    read_as(monkeypatch, "cumsum", "stop_gradient")
    assert "its output[0, 0] becomes" in refusal(apply, MLP, SIZES, **as_it_is)


def test_a_rule_that_ties_the_wrong_axes(monkeypatch: pytest.MonkeyPatch) -> None:
    def apply(p: Any, x: Any) -> Any:
        assert p["up"].shape[1] == 5  # as a module that knows its sizes
        outer = jnp.tanh(x @ p["up"])[:, :, None] * jnp.sin(x @ p["gate"])[:, None]
        return jnp.einsum("bmn,mno->bo", jnp.swapaxes(outer, 1, 2), p["down"])

    shapes = {"up": f64(4, 5), "gate": f64(4, 5), "down": f64(5, 5, 2)}
    assert dw.plan(dw.trace(apply, shapes, X), SIZES).shapes["down"] == (5, 7, 2)
    read_as(monkeypatch, "transpose", "stop_gradient")
    assert "transpose returns shape (3, 5, 7), not (3, 7, 5)" in refusal(apply, shapes, SIZES)


def test_outgoing_weights_that_are_taken_for_incoming_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Roles, "of", lambda self, spot: "incoming")
    monkeypatch.setattr(decide, "silenced", lambda widths, *_: widths)
    strategy = dw.strategies.zero_outgoing()
    assert "its output[0, 0] becomes" in refusal(mlp, MLP, SIZES, strategy=strategy)


def test_a_silencer_behind_a_function_that_is_not_zero_at_zero(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def apply(p: Any, x: Any) -> Any:
        return jnp.cos((x @ p["up"]) * p["scale"].reshape(1, -1)).sum(1)

    shapes = {"up": f64(4, 5), "scale": f64(5)}
    assert "because reduce_sum" in refusal(apply, shapes, SIZES)
    read_as(monkeypatch, "cos", "stop_gradient")
    assert "its output[0] becomes" in refusal(apply, shapes, SIZES)


def test_new_layers_that_nothing_silences(monkeypatch: pytest.MonkeyPatch) -> None:
    def apply(p: Any, x: Any) -> Any:
        for one in p:
            x = x + jnp.tanh(x @ one["up"]) @ one["down"]
        return x

    layer = {"up": f64(4, 5), "down": f64(5, 4)}
    widths, target = dw.trace(apply, [layer], X), {"target": [layer] * 2, "target_apply": apply}
    assert "inserted: 1/down: 0" in f"{dw.plan(widths, **target)}"
    monkeypatch.setattr(Trial, "fits", lambda trial, filling: True)  # so nothing is filled
    with pytest.raises(ValueError, match=r"its output\[0, 0\] becomes"):
        dw.plan(widths, **target)


def test_a_recipe_with_another_power(monkeypatch: pytest.MonkeyPatch) -> None:
    def apply(p: Any, x: Any) -> Any:
        h = x @ p["up"]
        return h / jnp.sqrt(jnp.mean(h * h, -1, keepdims=True) + 1e-3) @ p["down"]

    assert dw.plan(dw.trace(apply, MLP, X), SIZES).factors
    found = search._recipes

    def wrong(*arguments: Any) -> Any:
        recipes = found(*arguments)
        return {
            name: dataclasses.replace(recipe, powers=tuple((p, 2 * n) for p, n in recipe.powers))
            for name, recipe in recipes.items()
        }

    monkeypatch.setattr(search, "_recipes", wrong)
    assert "its output[0, 0] becomes" in refusal(apply, MLP, SIZES)


def test_maps_that_put_units_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    apply_map = editing.apply_map

    def shifted(leaf_map: Any, array: Any, **known: Any) -> Any:
        return jnp.roll(apply_map(leaf_map, array, **known), 1, 0)

    assert dw.plan(dw.trace(mlp, MLP, X), {"up": 8})
    growing._edited.clear_cache()
    monkeypatch.setattr(editing, "apply_map", shifted)
    try:
        assert "its output[0, 0] becomes" in refusal(mlp, MLP, {"up": 8})
    finally:
        growing._edited.clear_cache()


def test_linear_systems_are_solved_in_64_bits() -> None:
    """Whatever the dtypes of the program: JAX's own solver was compiled for 32 bits."""
    a, b = data(4, 4) + 4 * np.eye(4), data(4, 2)
    with in_64_bits(False):
        program = jax.make_jaxpr(jnp.linalg.solve)(a.astype(np.float32), b.astype(np.float32))
        (found,) = evaluate(program, [a, b])
    np.testing.assert_allclose(found, np.linalg.solve(a, b), 1e-12)


def test_a_real_transform_and_its_inverse_are_evaluated_in_other_sizes():
    def apply(p: Any, x: Any) -> Any:
        h = jnp.tanh(x @ p["up"]).reshape(2, 6, 4)  # cannot be called in other sizes
        return jnp.fft.irfft(jnp.fft.rfft(h, axis=1), 6, axis=1) @ p["down"]

    widths = dw.trace(apply, {"up": f64(3, 4), "down": f64(4, 2)}, f64(2, 6, 3))
    assert dw.plan(widths, {"up": 7}).evidence is not None


if __name__ == "__main__":
    for name in EXAMPLES:
        if name not in OTHERWISE and (what := off(name)):
            print(name, what)
