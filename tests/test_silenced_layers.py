"""Which arrays of a new residual block are zero: the first ones with which outputs stay.

Zeros in the outgoing weights are not always possible. Weight norm divides by their norm, for
example, so its scale is zero instead.
"""

from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from jax.nn import relu
from networks import data, f64, fill
from tiers import in_tiers

import dogwood_jax as dw

X = data(6, 4)
MLP = {"up": f64(5, 7), "down": f64(7, 5)}
ATTENTION = {name: f64(5, 5) for name in ("query", "key", "value", "out")}


def norm(v: Any, axis: int = 0) -> Any:
    return jnp.sqrt(jnp.sum(v * v, axis, keepdims=True))


def unit(v: Any, axis: int = 0) -> Any:
    return v / norm(v, axis)


def standard(w: Any, epsilon: float = 0.0) -> Any:
    centred = w - jnp.mean(w, 0, keepdims=True)
    return centred / jnp.sqrt(jnp.mean(centred**2, 0, keepdims=True) + epsilon)


def weight_norm(p: Any, x: Any) -> Any:
    return relu(x @ p["up"]) @ (p["g"][None] * p["down"] / norm(p["down"]))


def factor(p: Any, x: Any) -> Any:
    return relu(x @ p["up"]) @ (p["down"] * (p["g"][None] / norm(p["down"])))


def both(p: Any, x: Any) -> Any:
    return relu(x @ (p["scale"][None] * unit(p["up"]))) @ (p["g"][None] * unit(p["down"]))


def spectral_norm(p: Any, x: Any) -> Any:
    sigma = p["u"] @ p["down"] @ p["v"]
    return relu(x @ p["up"]) @ (p["g"] * p["down"] / sigma)


def cosine(p: Any, x: Any) -> Any:
    query, key = unit(x @ p["query"], 1), unit(x @ p["key"], 1)
    return jax.nn.softmax(query @ key.T) @ (x @ p["value"]) @ p["out"]


def unit_weights(p: Any, x: Any) -> Any:
    query, key = x @ unit(p["query"]), x @ unit(p["key"])
    return p["a"][None] * (jax.nn.softmax(query @ key.T) @ (x @ p["value"]) @ unit(p["out"]))


def shares(p: Any, x: Any) -> Any:
    h = relu(x @ p["up"])
    return h / jnp.sum(h, 1, keepdims=True) @ p["down"]


def rms(x: Any) -> Any:
    return x * jax.lax.rsqrt(jnp.mean(x * x, 1, keepdims=True) + 1e-6)


Branch = Callable[[Any, Any], Any]
G = {"g": f64(5)}
# The branch of a block, its arrays, and those that are zero in a new block.
SILENCED: dict[str, tuple[Branch, Mapping[str, Any], str]] = {
    "weight norm": (weight_norm, MLP | G, "g"),
    "weight norm by a factor": (factor, MLP | G, "g"),
    "weight norm of all arrays": (both, MLP | G | {"scale": f64(7)}, "g"),
    "spectral norm": (spectral_norm, MLP | {"u": f64(7), "v": f64(5), "g": f64()}, "g"),
    "attention by cosine": (cosine, ATTENTION, "out"),
    "attention with normalized weights": (unit_weights, ATTENTION | {"a": f64(5)}, "a"),
    "norm behind": (lambda p, x: p["g"][None] * rms(relu(x @ p["up"]) @ p["down"]), MLP | G, "g"),
    "ScaleNorm behind": (
        lambda p, x: p["g"] * (h := relu(x @ p["up"]) @ p["down"]) / (1e-6 + norm(h, 1)),
        MLP | {"g": f64()},
        "g",
    ),
    "gate": (
        lambda p, x: jax.nn.sigmoid(x @ p["w"]) * (relu(x @ p["up"]) @ p["down"]),
        MLP | {"w": f64(5, 5)},
        "down",
    ),
    "ReZero": (
        lambda p, x: jnp.tanh(p["g"]) * (relu(x @ p["up"]) @ unit(p["down"])),
        MLP | {"g": f64()},
        "g",
    ),
    "weight standardization": (
        lambda p, x: relu(x @ p["up"]) @ standard(p["down"], 1e-5),
        MLP,
        "down",
    ),
    "weight standardization with a gain": (
        lambda p, x: relu(x @ p["up"]) @ (p["g"][None] * standard(p["down"])),
        MLP | G,
        "g",
    ),
}
# The branch of a block, its arrays, and why no values are found for a new block.
REFUSED: dict[str, tuple[Branch, Mapping[str, Any], str]] = {
    "log": (
        lambda p, x: jnp.log(x @ p["up"]) @ p["down"],
        MLP,
        r"zeros in new layers do not silence them, because log \(test_silenced_layers.py:\d+\) is ",
    ),
    "log of sizes": (
        lambda p, x: jnp.log(jnp.abs(x @ p["up"])) @ p["down"],
        MLP,
        r"becomes nan instead of \S+ for inputs with a row of zeros, because log \(\S+\) is not",
    ),
    "exp": (
        lambda p, x: jnp.exp(x @ p["up"]) @ p["down"],
        MLP,
        r"becomes nan instead of \S+ for [^,]+, because exp \(\S+\) is not",
    ),
    "shares": (
        shares,
        MLP,
        r"becomes nan instead of \S+ for inputs with a row of zeros, because div \(\S+\) is not",
    ),
    "norm of a row of zeros": (
        lambda p, x: relu(x / (1e-6 + norm(x, 1)) @ p["up"]) @ p["down"],
        MLP,
        "growth:\n- the gradient of block/down is not finite .*, for inputs with a row of zeros",
    ),
    "normalized weights": (
        lambda p, x: relu(x @ p["up"]) @ unit(p["down"]),
        MLP,
        "new/down of a new layer gets no gradient, so it would never learn",
    ),
    "weight standardization": (
        lambda p, x: relu(x @ p["up"]) @ standard(p["down"]),
        MLP,
        "new/down of a new layer gets no gradient, so it would never learn",
    ),
    "root of a scale": (
        lambda p, x: jnp.sqrt(p["g"])[None] * (relu(x @ p["up"]) @ unit(p["down"])),
        MLP | G,
        "random inputs\n- new/up filled instead: new/down of a new layer gets no gradient",
    ),
    "a fixed scale": (
        lambda p, x: jax.lax.stop_gradient(p["g"])[None] * (relu(x @ p["up"]) @ unit(p["down"])),
        MLP | G,
        "new/down of a new layer gets no gradient, so it would never learn",
    ),
}


def residual(branch: Branch) -> Branch:
    return lambda p, x: x + branch(p, x)


def network(block: Branch, old: Branch) -> Branch:
    def apply(p: Any, x: Any) -> Any:
        x = x @ p["into"]
        for name in sorted(p.keys() - {"into", "out"}):
            x = (block if name == "new" else old)(p[name], x)
        return x @ p["out"]

    return apply


ENDS = {"into": f64(4, 5), "out": f64(5, 3)}


def check(apply: Any, variables: Any, target_apply: Any, deeper: Any, new: Any) -> None:
    """Asserts that outputs are equal, gradients finite, and new arrays learn within two steps."""
    assert dw.compare(apply, variables, target_apply, deeper, X).relative <= 1e-12

    @jax.jit
    def gradients(variables: Any) -> Any:
        return jax.grad(lambda v: jnp.sum(jnp.sin(target_apply(v, X))), allow_int=True)(variables)

    first = gradients(deeper)
    assert all(jnp.isfinite(grad).all() for grad in jax.tree.leaves(first))
    moved = jax.tree.map(lambda array, grad: array - 0.01 * grad, deeper, first)
    for grads in zip(jax.tree.leaves(new(first)), jax.tree.leaves(new(gradients(moved)))):
        assert jnp.any(grads[0] != 0) or jnp.any(grads[1] != 0)


SHORT = ("gate", "ReZero")


@pytest.mark.parametrize("name", in_tiers(SILENCED, short=SHORT))
def test_zeros_that_are_shown_to_silence_a_new_block(name: str) -> None:
    branch, arrays, zeros = SILENCED[name]
    apply = network(residual(branch), residual(branch))
    variables = fill(ENDS | {"block": arrays}, 1)
    target = ENDS | {"block": arrays, "new": arrays}
    growth = dw.plan(dw.trace(apply, variables, X), target=target, target_apply=apply)
    filled = [e.path for e in growth.inserted if e.fill and e.fill.value == 0]
    assert filled == [f"new/{zeros}"]
    deeper = dw.grow(variables, growth, key=jax.random.key(0))
    check(apply, variables, apply, deeper, lambda p: p["new"])


@pytest.mark.parametrize("name", REFUSED)
def test_blocks_that_no_zeros_silence(name: str) -> None:
    branch, arrays, why = REFUSED[name]
    apply = network(residual(branch), residual(lambda p, x: relu(x @ p["up"]) @ p["down"]))
    variables = fill(ENDS | {"block": MLP}, 1)
    target = ENDS | {"block": MLP, "new": arrays}
    with pytest.raises(ValueError, match=why):
        dw.deepen(variables, target, apply=apply, target_apply=apply, inputs=(X,))


def test_a_new_block_may_have_numbers_of_its_own() -> None:
    branch, arrays, zeros = SILENCED["norm behind"]  # with an epsilon
    apply = network(residual(branch), residual(lambda p, x: relu(x @ p["up"]) @ p["down"]))
    target = ENDS | {"block": MLP, "new": arrays}
    widths = dw.trace(apply, ENDS | {"block": MLP}, X)
    for is_checked in (True, False):  # no doubt that only an evaluation could take away
        growth = dw.plan(widths, target=target, target_apply=apply, check=is_checked)
        assert f"new/{zeros}: 0" in map(str, growth.inserted)


@pytest.mark.long
def test_each_of_several_branches_is_silenced_by_other_zeros() -> None:
    names = "abc"

    def block(p: Any, x: Any) -> Any:
        for name in names:
            x = x + weight_norm(p[name], x)
        return x

    apply, arrays = network(block, block), dict.fromkeys(names, MLP | G)
    variables = fill(ENDS | {"block": arrays}, 1)
    target = fill(ENDS | {"block": arrays, "new": arrays}, 2)
    deeper = dw.deepen(variables, target, apply=apply, target_apply=apply, inputs=(X,))
    zeros = [name for name in names if not jnp.any(deeper["new"][name]["g"])]
    assert zeros == [*names]
    check(apply, variables, apply, deeper, lambda p: p["new"])


class Linen(nn.Module):
    """Residual blocks with weight norm."""

    blocks: int

    @nn.compact
    def __call__(self, x: Any) -> Any:
        x = nn.Dense(5, param_dtype=jnp.float64, name="into")(x)
        for n in range(self.blocks):
            h = relu(nn.Dense(7, param_dtype=jnp.float64, name=f"up_{n}")(x))
            down = nn.Dense(5, param_dtype=jnp.float64, name=f"down_{n}")
            x = x + nn.WeightNorm(down, param_dtype=jnp.float64, name=f"norm_{n}")(h)
        return x


@pytest.mark.long
def test_weight_norm_of_linen() -> None:
    old, new = Linen(1), Linen(2)
    variables = jax.jit(old.init)(jax.random.key(0), X)
    target = jax.eval_shape(new.init, jax.random.key(0), X)
    growth = dw.plan(dw.trace(old.apply, variables, X), target=target, target_apply=new.apply)
    deeper = dw.grow(variables, growth, key=jax.random.key(1))
    assert not jnp.any(deeper["params"]["norm_1"]["down_1/kernel/scale"])
    check(
        old.apply,
        variables,
        new.apply,
        deeper,
        lambda p: [layer for name, layer in p["params"].items() if name.endswith("_1")],
    )


class Equinox(eqx.Module):
    """Residual blocks with weight norm."""

    blocks: list[tuple[eqx.nn.Linear, eqx.nn.WeightNorm]]

    def __init__(self, blocks: int) -> None:
        keys = jax.random.split(jax.random.key(0), 2 * blocks)
        self.blocks = [
            (
                eqx.nn.Linear(4, 7, key=keys[2 * n], dtype=jnp.float64),
                eqx.nn.WeightNorm(eqx.nn.Linear(7, 4, key=keys[2 * n + 1], dtype=jnp.float64)),
            )
            for n in range(blocks)
        ]

    def __call__(self, x: Any) -> Any:
        for up, down in self.blocks:
            x = x + down(relu(up(x)))
        return x


@pytest.mark.long
def test_weight_norm_of_equinox() -> None:
    def apply(model: Any, x: Any) -> Any:
        return jax.vmap(model)(x)

    old, new = Equinox(1), Equinox(2)
    deeper = dw.deepen(old, new, apply=apply, target_apply=apply, inputs=(X,))
    assert not jnp.any(deeper.blocks[1][1].g)
    growth = dw.plan(dw.trace(apply, old, X), target=new, target_apply=apply)
    assert "blocks/1/1/g: 0" in map(str, growth.inserted)
    parts = eqx.partition(deeper, eqx.is_array)

    def of_arrays(arrays: Any, x: Any) -> Any:
        return apply(eqx.combine(arrays, parts[1]), x)

    before = eqx.partition(old, eqx.is_array)
    check(
        lambda arrays, x: apply(eqx.combine(arrays, before[1]), x),
        before[0],
        of_arrays,
        parts[0],
        lambda p: p.blocks[1],
    )
