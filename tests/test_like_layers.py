"""Deep networks of like layers: few of them stand for all where a growth is evaluated."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiers import long

import dogwood_jax as dw
from dogwood_jax._plan.programs import Programs
from dogwood_jax._program import like_layers
from dogwood_jax._program.sameness import Sameness

DEPTH = 11  # so that layers/10 comes before layers/2 where names are sorted
X = jax.ShapeDtypeStruct((2, 6, 8), jnp.float32)
TOKENS = jax.ShapeDtypeStruct((2, 6), jnp.int32)


def shapes(*sizes: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, jnp.float32)


def mlp(hidden: int = 12) -> dict[str, Any]:
    return {"up": shapes(8, hidden), "down": shapes(hidden, 8)}


def blocks(count: int = DEPTH) -> dict[str, Any]:
    return {"blocks": [mlp() for _ in range(count)], "out": shapes(8, 3)}


def residual(p: Any, x: Any) -> Any:
    for q in p["blocks"]:
        x = x + jax.nn.relu(x @ q["up"]) @ q["down"]
    return x @ p["out"]


def named(p: Any, x: Any) -> Any:
    for i in range(len(p) - 1):
        q = p[f"layer_{i}"]
        x = x + jax.nn.relu(x @ q["up"]) @ q["down"]
    return x @ p["out"]


def normed(p: Any, x: Any) -> Any:
    for q in p["blocks"]:
        y = x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6) * q["scale"][None, None]
        x = x + jax.nn.silu(y @ q["up"]) @ q["down"]
    return x @ p["out"]


def alternating(p: Any, x: Any) -> Any:
    for i, q in enumerate(p["blocks"]):
        x = x + (jnp.tanh if i % 2 else jax.nn.gelu)(x @ q["up"]) @ q["down"]
    return x @ p["out"]


def two_stacks(p: Any, x: Any) -> Any:
    for q in p["encoder"]:
        x = x + jax.nn.relu(x @ q["up"]) @ q["down"]
    memory = jnp.tanh(x)
    for q in p["blocks"]:
        x = x + jax.nn.relu(x @ q["up"] + memory @ q["up"]) @ q["down"]
    return x @ p["out"]


def layer_scale(p: Any, x: Any) -> Any:
    """LayerNorm before branches whose outputs are scaled, so that recipes name pairs of arrays."""
    x = x @ p["in"]
    for q in p["blocks"]:
        y = jax.nn.relu(jax.nn.standardize(x) @ q["up"]) @ q["down"]
        x = x + q["scale"][None, None] * y
    return jax.nn.standardize(x) @ p["out"]


def latent(p: Any, x: Any) -> Any:
    """Norms over latents, which scale by arrays of their own layer, with another epsilon before."""

    def branch(q: Any, x: Any, epsilon: float) -> Any:
        y = x @ q["up"]
        y = y * jax.lax.rsqrt(jnp.mean(y * y, -1, keepdims=True) + epsilon)
        return x + y * q["inner"][None, None] @ q["down"]

    x = branch(p["stem"], x @ p["in"], 1e-5)
    for q in p["blocks"]:
        x = branch(q, x, 1e-6)
    return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6) @ p["out"]


class Chain(nn.Module):
    @nn.compact
    def __call__(self, x: Any) -> Any:
        for _ in range(DEPTH):
            x = nn.relu(nn.Dense(8)(x))
        return nn.Dense(3)(x)


class ConvNet(nn.Module):
    """Its running statistics are unread in training."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        for _ in range(DEPTH):
            x = x + nn.BatchNorm(use_running_average=False)(nn.Conv(8, (3,))(nn.relu(x)))
        return nn.Dense(3)(x)


class Block(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.norm = nnx.RMSNorm(8, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, 8, decode=False, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return x + self.attention(self.norm(x))


class Transformer(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.embed = nnx.Embed(10, 8, rngs=rngs)
        self.layers = nnx.Dict({f"layer_{i}": Block(rngs) for i in range(DEPTH)})

    def __call__(self, tokens: Any) -> Any:
        x = self.embed(tokens)
        for i in range(DEPTH):
            x = self.layers[f"layer_{i}"](x)
        return self.embed.attend(x)


def of_linen(module: nn.Module, **options: Any) -> tuple[Callable[..., Any], Any, Any]:
    variables = jax.eval_shape(module.init, jax.random.key(0), X)
    if options:
        return (lambda v, x: module.apply(v, x, **options)[0]), variables, X
    return module.apply, variables, X


def of_nnx() -> tuple[Callable[..., Any], Any, Any]:
    graph, state = nnx.split(nnx.eval_shape(lambda: Transformer(nnx.Rngs(0))))
    return lambda state, tokens: nnx.merge(graph, state)(tokens), state, TOKENS


NETWORKS: dict[str, Callable[[], tuple[Callable[..., Any], Any, Any]]] = {
    "residual": lambda: (residual, blocks(), X),
    "named": lambda: (
        named,
        {f"layer_{i}": mlp() for i in range(DEPTH)} | {"out": shapes(8, 3)},
        X,
    ),
    "normed": lambda: (
        normed,
        {"blocks": [mlp() | {"scale": shapes(8)} for _ in range(DEPTH)], "out": shapes(8, 3)},
        X,
    ),
    "layer_scale": lambda: (
        layer_scale,
        {"blocks": [mlp() | {"scale": shapes(8)} for _ in range(DEPTH)]}
        | {"in": shapes(8, 8), "out": shapes(8, 3)},
        X,
    ),
    "latent": lambda: (
        latent,
        {"stem": mlp(5) | {"inner": shapes(5)}, "in": shapes(8, 8), "out": shapes(8, 3)}
        | {"blocks": [mlp() | {"inner": shapes(12)} for _ in range(DEPTH)]},
        X,
    ),
    "alternating": lambda: (alternating, blocks(16), X),
    "two_stacks": lambda: (two_stacks, blocks() | {"encoder": [mlp(5) for _ in range(8)]}, X),
    "chain": lambda: of_linen(Chain()),
    "batch_norm": lambda: of_linen(ConvNet(), mutable=["batch_stats"]),
    "nnx": of_nnx,
}


@pytest.fixture
def is_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(like_layers, "WORTH", 1)


@pytest.mark.parametrize("name", NETWORKS)
def test_like_layers_are_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    apply, variables, x = NETWORKS[name]()
    for worth in (10**9, 1):
        monkeypatch.setattr(like_layers, "WORTH", worth)
        is_found = dw.trace(apply, variables, x).network.layers is not None
        assert is_found == (worth == 1)


def collected(p: Any, x: Any) -> Any:
    outputs = []
    for q in p["blocks"]:
        x = x + jax.nn.relu(x @ q["up"]) @ q["down"]
        outputs.append(x @ p["out"])
    return outputs


def numbered(p: Any, x: Any) -> Any:
    for i, q in enumerate(p["blocks"]):
        x = x + jax.nn.relu(x @ q["up"]) @ q["down"] * (1 - i / 100)
    return x @ p["out"]


def shared(p: Any, x: Any) -> Any:
    for _ in range(DEPTH):
        x = x + jax.nn.relu(x @ p["blocks"][0]["up"]) @ p["blocks"][1]["down"]
    return x @ p["out"]


@pytest.mark.usefixtures("is_worth_it")
@pytest.mark.parametrize("apply", [collected, numbered, shared])
def test_layers_that_are_not_like_are_not_left_out(apply: Callable[..., Any]) -> None:
    assert dw.trace(apply, blocks(), X).network.layers is None


def test_equations_with_other_numbers_do_something_else() -> None:
    program = jax.make_jaxpr(lambda x: (x * 2.0, x * 3.0, x * 2.0))(X).jaxpr
    twice, thrice, again = map(Sameness().equation, program.eqns)
    assert twice == again != thrice


def test_a_program_with_few_equations_is_evaluated_whole() -> None:
    assert dw.trace(residual, blocks(), X).network.layers is None


@pytest.mark.usefixtures("is_worth_it")
@pytest.mark.parametrize(
    ("name", "grown"), [("residual", "all"), ("named", "one"), ("normed", "all")]
)
def test_plan_compares_a_few_layers(name: str, grown: str) -> None:
    """Also if layers grow to several sizes."""
    apply, variables, x = NETWORKS[name]()
    widths = dw.trace(apply, variables, x)
    hidden = [name for name, width in widths.items() if width.size == 12]
    assert len(hidden) == DEPTH
    names = hidden if grown == "all" else hidden[5:6]
    growth = dw.plan(widths, dict.fromkeys(names, 20))
    assert [change.width for change in growth.changes] == names
    programs = Programs(growth, widths)
    few = programs.of(growth).widths.leaves
    assert programs.are_of_fewer and len(few) < len(widths.leaves) - 6


def scaled_by_size(p: Any, x: Any) -> Any:
    for q in p["blocks"]:
        x = x + jax.nn.relu(x @ q["up"]) @ q["down"] * (12 / q["up"].shape[1])
    return x @ p["out"]


def scaled_in_one_layer(p: Any, x: Any) -> Any:
    for q in p["blocks"]:
        x = x + jax.nn.relu(x @ q["up"]) @ q["down"] * (1 if q["up"].shape[1] < 20 else 0.5)
    return x @ p["out"]


@pytest.mark.usefixtures("is_worth_it")
@pytest.mark.parametrize("apply", [scaled_in_one_layer, scaled_by_size])
@pytest.mark.long
def test_plan_sees_numbers_that_follow_from_sizes(apply: Callable[..., Any]) -> None:
    widths = dw.trace(apply, blocks(), X)
    assert widths.network.layers is not None
    keys = iter(jax.random.split(jax.random.key(0), 100))
    variables = jax.tree.map(lambda s: jax.random.normal(next(keys), s.shape) / 4, blocks())
    wide = dw.grow(variables, dw.plan(widths, {"blocks/5": 20}), key=jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), X.shape)  # arrays make up for the numbers
    np.testing.assert_allclose(apply(wide, x), apply(variables, x), rtol=1e-5)


@pytest.mark.usefixtures("is_worth_it")
@pytest.mark.long
def test_a_deep_network_grows_exactly() -> None:
    keys = iter(jax.random.split(jax.random.key(0), 100))
    variables = jax.tree.map(lambda s: jax.random.normal(next(keys), s.shape) / 4, blocks())
    x = jax.random.normal(next(keys), X.shape)
    widths = dw.trace(residual, variables, x)
    growth = dw.plan(widths, {name: 20 for name, width in widths.items() if width.size == 12})
    wide = dw.grow(variables, growth, key=next(keys))
    dw.verify(residual, variables, residual, wide, x, growth=growth)


@pytest.mark.usefixtures("is_worth_it")
@pytest.mark.parametrize(
    "name, whose",
    [
        ("named", "own"),
        ("alternating", "other"),
        long("layer_scale", "other"),
        long("latent", "own"),
    ],
)
def test_a_larger_model_is_planned_with_few_layers(
    name: str, whose: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    apply, variables, x = NETWORKS[name]()
    widths = dw.trace(apply, variables, x)
    sizes = {name: 2 * width.size for name, width in widths.items() if width.size in (5, 12)}
    if name == "layer_scale":  # its stream, too, by recipes that name arrays of all layers
        sizes |= {n: 16 for n, w in widths.items() if w.size == 8 and not w.interface}
    target_apply = apply if whose == "own" else lambda variables, x: apply(variables, x)
    assert widths.network is not None and widths.network.layers is not None
    growth = dw.plan(widths, sizes, target_apply=target_apply)

    monkeypatch.setattr(like_layers, "WORTH", 10**9)
    whole = dw.plan(dw.trace(apply, variables, x), sizes, target_apply=target_apply)
    growth, whole = (dataclasses.replace(its, evidence=None) for its in (growth, whole))
    assert growth == whole and str(growth) == str(whole)


def scaled_if_shallow(p: Any, x: Any) -> Any:
    for q in p["blocks"]:
        y = jax.nn.relu(x @ q["up"]) @ q["down"]
        x = x + y * (1 if len(p["blocks"]) == DEPTH else q["up"].shape[1] / 12)
    return x @ p["out"]


def other_in_layer_5(p: Any, x: Any) -> Any:
    for i, q in enumerate(p["blocks"]):
        x = x + (jnp.tanh if i == 5 else jax.nn.relu)(x @ q["up"]) @ q["down"]
    return x @ p["out"]


@pytest.mark.usefixtures("is_worth_it")
def test_a_function_that_does_something_else_with_few_layers_is_called_with_all() -> None:
    widths = dw.trace(scaled_if_shallow, blocks(), X)
    sizes = {name: 24 for name, width in widths.items() if width.size == 12}
    assert not dw.plan(widths, sizes, target_apply=scaled_if_shallow).factors


@pytest.mark.usefixtures("is_worth_it")
def test_a_larger_model_that_differs_in_one_layer_is_refused() -> None:
    widths = dw.trace(residual, blocks(), X)
    sizes = {name: 24 for name, width in widths.items() if width.size == 12}
    with pytest.raises(ValueError, match="the larger model computes something else"):
        dw.plan(widths, sizes, target_apply=other_in_layer_5)


def returning(p: Any, x: Any) -> Any:
    return residual(p, x), p["blocks"][5]["up"]


def unread(count: int, *, dtype: Any = jnp.float32, only: int | None = None) -> dict[str, Any]:
    variables = blocks(count)
    for i, block in enumerate(variables["blocks"]):
        kind = dtype if i == 5 else jnp.float32
        if only in (None, i):
            block["unread"] = jax.ShapeDtypeStruct((12,), kind)
    return variables


@pytest.mark.usefixtures("is_worth_it")
@pytest.mark.parametrize(
    "apply, variables",
    [
        (returning, blocks()),
        (residual, unread(DEPTH, dtype=jnp.int32)),
        (residual, unread(DEPTH, only=5)),
    ],
    ids=["returned", "other dtype", "one has more"],
)
def test_layers_with_other_arrays_are_not_left_out(
    apply: Callable[..., Any], variables: Any
) -> None:
    assert dw.trace(apply, variables, X).network.layers is None
