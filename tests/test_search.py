"""What is searched is found for any samples, and by starts that know no primitive."""

import ast
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import networks_scaling as scaling
import pytest
from networks import data, f64, fill
from tiers import in_tiers

import dogwood_jax as dw
from dogwood_jax._plan import shown
from dogwood_jax._plan.search import problem, search, starts, weighed
from dogwood_jax._program.primitives.table import PRIMITIVES


def residual_mlp(epsilon: float) -> Any:
    """A residual MLP whose norm comes first, as in a transformer."""

    def apply(p: Any, x: Any) -> Any:
        h = x @ p["embed"]
        for n in range(2):
            size = jax.lax.rsqrt(jnp.mean(h * h, -1, keepdims=True) + epsilon)
            h = h + jnp.tanh(h * size * p[f"scale_{n}"][None] @ p[f"up_{n}"]) @ p[f"down_{n}"]
        size = jax.lax.rsqrt(jnp.mean(h * h, -1, keepdims=True) + epsilon)
        return h * size @ p["head"]

    return apply


def shapes(n: int) -> Any:
    layer = {"scale": (n,), "up": (n, 5), "down": (5, n)}
    layers = {f"{name}_{i}": f64(*shape) for i in range(2) for name, shape in layer.items()}
    return {"embed": f64(4, n), **layers, "head": f64(n, 3)}


def by_size(name: str) -> Any:
    case = scaling.CASES[name]
    small = case.build()
    widths = dw.trace(small.apply, small.shapes, *small.inputs)
    return lambda: dw.plan(widths, {widths.of(*case.place).name: case.sizes[0]})


def by_target(epsilon: float, other: float) -> Any:
    widths = dw.trace(residual_mlp(epsilon), shapes(6), data(7, 4))
    larger = residual_mlp(other)
    return lambda: dw.plan(widths, target=shapes(9), target_apply=larger)


SEARCHED = {
    "epsilon 1e-5": by_target(1e-5, 1e-5),
    "epsilon 1e-6": by_target(1e-6, 1e-6),
    "another epsilon": by_target(1e-5, 1e-6),
}
IN_TABLE = ("scores", "vit", "llama", "gemma", "rms by tiles", "layer scale")


@pytest.mark.parametrize("name", in_tiers((*SEARCHED, *IN_TABLE), short=("epsilon 1e-6", "llama")))
def test_a_growth_is_the_same_for_any_samples(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the check says of one growth is not asked ten times."""
    known, checked = dict[Any, Any](), shown.verdict_of

    def remembered(growth: dw.Growth, *arguments: Any, **options: Any) -> Any:
        if growth not in known:
            known[growth] = checked(growth, *arguments, **options)
        return known[growth]

    monkeypatch.setattr(shown, "verdict_of", remembered)
    plan = SEARCHED.get(name) or by_size(name)
    written = dw.to_json(plan())
    for seed in range(1, 10):
        monkeypatch.setattr(problem, "_SEED", 1000 * seed)
        monkeypatch.setattr(weighed, "_SEED", 1000 * seed + 1)
        assert dw.to_json(plan()) == written


@pytest.mark.parametrize("other", [1e-6, 1e-5, 1e-2])
def test_arrays_make_up_for_epsilons(other: float) -> None:
    variables, x = fill(shapes(6), 1), data(7, 4)
    growth = by_target(1e-5, other)()
    wide = dw.grow(variables, growth, fresh=fill(shapes(9), 2))
    assert dw.compare(residual_mlp(1e-5), variables, residual_mlp(other), wide, x).relative < 1e-10


def test_factors_are_found_that_only_an_order_depends_on() -> None:
    """The nearest code stays the nearest one if distances double, but the check compares these."""

    def apply(p: Any, x: Any) -> Any:
        z = x @ p["code"]
        apart = jnp.sum((z[..., None, :] - p["book"][None]) ** 2, -1)
        nearest = z + jax.lax.stop_gradient(p["book"][jnp.argmin(apart, -1)] - z)
        return nearest @ p["out"]

    shapes = {"code": f64(4, 3), "book": f64(6, 3), "out": f64(3, 2)}
    variables, x = fill(shapes, 1), data(7, 4)
    widths = dw.trace(apply, shapes, x)
    growth = dw.plan(widths, {"code": 6})
    assert 1 not in {growth.factors[name] for name in ("code", "book")}
    wide = dw.grow(variables, growth, key=jax.random.key(0))
    assert dw.compare(apply, variables, apply, wide, x).relative < 1e-12


@pytest.mark.parametrize("layers", [2, 5])
def test_like_layers_share_their_numbers(layers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else many layers would be many numbers. A start is tried in both ways if need be."""

    def apply(p: Any, x: Any) -> Any:
        h = x @ p["embed"]
        for q in p["layers"]:
            size = jax.lax.rsqrt(jnp.mean(h * h, -1, keepdims=True) + 1e-6)
            h = h + jnp.tanh(h * size * q["scale"][None] @ q["up"]) @ q["down"]
        return h @ p["head"]

    counts = list[int]()

    class Counting(search.Solver):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            counts.append(len(self._columns))

    monkeypatch.setattr(search, "Solver", Counting)
    layer = {"scale": f64(6), "up": f64(6, 5), "down": f64(5, 6)}
    shapes = {"embed": f64(4, 6), "layers": [layer] * layers, "head": f64(6, 3)}
    growth = dw.plan(dw.trace(apply, shapes, data(7, 4)), {"embed": 9})
    assert growth.factors["layers/0/scale"] == growth.factors[f"layers/{layers - 1}/scale"]
    assert {*counts} == {5}  # embed, scale, up, down and head


def test_scales_that_are_not_along_their_last_axis_weigh_no_means() -> None:
    def apply(p: Any, x: Any) -> Any:
        h = jnp.einsum("bi,ihm->bhm", x, p["in"]) * p["scale"][None]
        h = jax.vmap(lambda y, w: jax.nn.softplus(y @ w), (1, 0), 1)(h, p["each"])
        return h.sum(1) @ p["out"]

    arrays = {"in": f64(3, 5, 2), "scale": f64(5, 2), "each": f64(5, 2, 2), "out": f64(2, 2)}
    widths = dw.trace(apply, arrays, data(3, 3))
    with pytest.raises(ValueError, match="reduce_sum .* is the first to compute something else"):
        dw.plan(widths, {widths.of("scale", 0).name: 8})


def test_starts_name_no_primitive_and_are_few() -> None:
    file = Path(starts.__file__)
    nodes = [*ast.walk(ast.parse(file.read_text()))]
    texts = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
    strings = {
        node.value for node in nodes if isinstance(node, ast.Constant) and id(node) not in texts
    }
    assert "ones" in strings
    assert not strings & {*PRIMITIVES}
    widths = dw.trace(residual_mlp(1e-5), shapes(6), data(7, 4))
    assert 5 <= len([*starts.candidates(widths, widths["embed"], 9, None)]) <= 10
