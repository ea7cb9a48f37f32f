"""New units come apart: none stays a copy of another in training, or a note says so."""

from typing import Any

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import networks_experts as net
import numpy as np
import optax
import pytest
from flax import nnx

import dogwood_jax as dw
from dogwood_jax._growth.draws import rotation_of
from dogwood_jax._plan.search import search, starts

KEY = jax.random.key(7)
NOTE = "new units of {} are copies, and stay so until noise or dropout tells them apart"


def layer_norm(h: Any, axis: Any = -1) -> Any:
    mean = h.mean(axis, keepdims=True)
    return (h - mean) / jnp.sqrt(jnp.mean((h - mean) ** 2, axis, keepdims=True) + 1e-5)


def rms_norm(h: Any) -> Any:
    return h / jnp.sqrt(jnp.mean(h * h, -1, keepdims=True) + 1e-5)


def l2_norm(h: Any) -> Any:
    return 3 * h / jnp.sqrt(jnp.sum(h * h, -1, keepdims=True) + 1e-5)


NORMS = {
    "layer": layer_norm,
    "rms": rms_norm,
    "l2": l2_norm,
    "softmax": jax.nn.softmax,
    "none": lambda h: h,
}


def hidden(norm: str, activation: Any = jax.nn.relu, outputs: int = 3) -> Any:
    """Returns a network with units behind a norm, its parameters and an input."""

    def apply(params: Any, x: Any) -> Any:
        h = NORMS[norm](x @ params["up"]["kernel"] + params["up"]["bias"][None])
        return activation(h * params["scale"][None]) @ params["down"]["kernel"]

    keys = jax.random.split(KEY, 4)
    params = {
        "up": {
            "kernel": jax.random.normal(keys[0], (5, 8)) / 2,
            "bias": jax.random.normal(keys[1], (8,)) / 4,
        },
        "scale": 1 + jax.random.normal(keys[2], (8,)) / 4,
        "down": {"kernel": jax.random.normal(keys[3], (8, outputs)) / 3},
    }
    return apply, params, jax.random.normal(jax.random.key(9), (32, 5))


def after_adam(apply: Any, params: Any, x: Any, steps: int = 40) -> Any:
    tx = optax.adam(1e-2)

    def loss(params: Any) -> Any:
        out = apply(params, x)
        return jnp.mean(
            (out - jnp.sin(3 * x.sum(-1, keepdims=True) + jnp.arange(out.shape[-1])[None])) ** 2
        )

    def step(carry: Any, _: Any) -> Any:
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params), state)
        return (optax.apply_updates(params, updates), state), None

    (params, _), _ = jax.jit(lambda c: jax.lax.scan(step, c, length=steps))(
        (params, tx.init(params))
    )
    return params


def different(rows: Any) -> int:
    return len(np.unique(np.round(np.asarray(rows), 7), axis=0))


def planned(norm: str, new: int, strategy: Any = None, **more: Any) -> dw.Growth:
    apply, params, x = hidden(norm, **more)
    return dw.plan(dw.trace(apply, params, x), {"up": new}, strategy=strategy)


@pytest.mark.parametrize("new", [9, 12, 16, 20])
@pytest.mark.parametrize("norm", ["layer", "rms", "l2"])
def test_units_behind_a_norm_come_apart(norm: str, new: int) -> None:
    """Behind a relu, where units that are zero never learn."""
    apply, params, x = hidden(norm)
    if (norm, new) == ("layer", 12):  # a bias behind the norm would do
        params["scale"] = params["scale"] / params["scale"]
    growth = dw.plan(dw.trace(apply, params, x), {"up": new})
    wide = dw.grow(params, growth, key=KEY)
    assert dw.compare(apply, params, apply, wide, x).relative < 1e-12
    assert growth.evidence is not None
    assert not growth.evidence.copied and not growth.notes
    assert different(after_adam(apply, wide, x)["up"]["kernel"].T) == new


def test_which_start_is_taken() -> None:
    """The guide to strategies says so, after the benchmark ``after_growth.py --starts``."""
    taken = {
        (norm, new): (its := planned(norm, new).changes[0].strategy).name + f" {its.split}"
        for norm in ("layer", "rms")
        for new in (12, 16, 20)
    }
    assert taken == {
        ("layer", 12): "tile even",
        ("layer", 16): "rotated even",
        ("layer", 20): "rotated even",
        ("rms", 12): "replicate roots",
        ("rms", 16): "rotated even",
        ("rms", 20): "rotated even",
    }
    assert planned("softmax", 16).changes[0].strategy == dw.strategies.replicate(split="first")
    assert planned("rms", 12, activation=jnp.tanh).changes[0].strategy.name == "zero_incoming"


@pytest.mark.parametrize("norm", ["layer", "softmax", "none"])
@pytest.mark.parametrize("split", ["even", "uneven", "first"])
def test_copies_that_stay_copies_are_noted(norm: str, split: Any) -> None:
    growth = planned(norm, 16, dw.strategies.replicate(split=split))
    is_copied = split == "even"
    assert growth.evidence is not None
    assert growth.evidence.copied == ("up",) * is_copied
    assert any(NOTE.format("up") in note for note in growth.notes) == is_copied
    assert str(growth).startswith(f"note: {NOTE.format('up')}") == is_copied


def test_units_that_are_zero_behind_a_relu_are_no_default() -> None:
    """No other values keep the sum of squares, for fewer new units than old ones."""

    def squared(h: Any) -> Any:
        return jax.nn.relu(h) ** 2

    with pytest.raises(ValueError, match="new units of up get no gradient, so they would never"):
        planned("rms", 9, activation=squared)
    assert planned("rms", 9, dw.strategies.zeros(), activation=squared).evidence is not None
    assert planned("rms", 16, activation=squared).changes[0].strategy == dw.strategies.rotated()


def test_a_growth_of_copies_comes_last(monkeypatch: Any) -> None:
    """Without a start that comes apart, copies are made, and the note says so."""
    only = [starts.Candidate(dw.strategies.tile()), starts.Candidate(dw.strategies.rotated())]
    monkeypatch.setattr(search, "candidates", lambda *_: iter(only))
    assert planned("layer", 16).changes[0].strategy == dw.strategies.rotated()
    monkeypatch.setattr(search, "candidates", lambda *_: iter(only[:1]))
    growth = planned("layer", 16)
    assert growth.changes[0].strategy == dw.strategies.tile()
    assert NOTE.format("up") in growth.notes[0]


def test_a_mean_of_units_takes_copies_alone() -> None:
    params, x = {"up": jnp.ones((3, 4))}, jnp.ones((2, 3))
    widths = dw.trace(lambda p, x: jnp.tanh(x @ p["up"]).mean(-1), params, x)
    assert NOTE.format("up") in dw.plan(widths, {"up": 8}).notes[0]


def test_noise_and_units_of_zero_need_no_note() -> None:
    for strategy in (dw.strategies.replicate(noise=0.1), dw.strategies.zeros()):
        growth = planned("softmax" if strategy.noise else "rms", 16, strategy)
        assert not any("are copies" in note for note in growth.notes)


class Decoder(nn.Module):
    """A decoder without a mask; ``norm`` is before each part of a block."""

    stream: int
    norm: Any = nn.LayerNorm
    heads: int = 2
    blocks: int = 1
    is_tied: bool = False

    @nn.compact
    def __call__(self, ids: Any) -> Any:
        words = nn.Embed(11, self.stream, name="words")
        x = words(ids)
        for i in range(self.blocks):
            h = self.norm(name=f"norm_{i}")(x)
            x += nn.MultiHeadDotProductAttention(
                self.heads, qkv_features=4 * self.heads, out_features=self.stream, name=f"at_{i}"
            )(h)
            h = nn.gelu(nn.Dense(12, name=f"up_{i}")(self.norm(name=f"mlp_norm_{i}")(x)))
            x += nn.Dense(self.stream, name=f"down_{i}")(h)
        x = self.norm(name="norm")(x)
        return words.attend(x) if self.is_tied else nn.Dense(11, name="logits")(x)


@pytest.mark.parametrize(
    ("norm", "new", "is_tied"),
    [(nn.LayerNorm, 16, False), (nn.RMSNorm, 16, False), (nn.LayerNorm, 12, True)],
)
def test_the_stream_of_a_decoder_comes_apart(norm: Any, new: int, is_tied: bool) -> None:
    small, large = (Decoder(size, norm, is_tied=is_tied) for size in (8, new))
    ids = jnp.arange(10).reshape(2, 5)
    variables = small.init(KEY, ids)
    target = jax.eval_shape(large.init, KEY, ids)
    widths = dw.trace(small.apply, variables, ids)
    growth = dw.plan(widths, target=target, target_apply=large.apply)
    wide = dw.grow(variables, growth, key=KEY)
    assert dw.compare(small.apply, variables, large.apply, wide, ids).relative < 1e-6
    assert growth.evidence is not None and not growth.evidence.copied
    tx = dw.growable(optax.adam(1e-2))
    state = dw.grow_opt_state(tx.init(variables), growth, tx)

    def loss(variables: Any) -> Any:
        logits = large.apply(variables, ids)
        return optax.softmax_cross_entropy_with_integer_labels(logits, (3 * ids + 1) % 11).mean()

    for _ in range(10):
        updates, state = tx.update(jax.grad(loss)(wide), state, wide)
        wide = optax.apply_updates(wide, updates)
    params = wide["params"]
    made = jnp.concatenate([params["words"]["embedding"], params["down_0"]["kernel"]])
    assert different(made.T) == new


def test_new_heads_come_apart() -> None:
    small, ids = Decoder(8), jnp.arange(10).reshape(2, 5)
    widths = dw.trace(small.apply, small.init(KEY, ids), ids)
    growth = dw.plan(widths, {widths.of("params/at_0/query/kernel", 1).name: 4})
    assert growth.evidence is not None and growth.evidence.samples and not growth.evidence.copied


def test_new_layers_next_to_each_other_come_apart() -> None:
    """Two layers that begin as the same identity get other gradients."""

    class Network(nn.Module):
        layers: int

        @nn.compact
        def __call__(self, x: Any) -> Any:
            for i in range(self.layers):
                x = nn.relu(nn.Dense(6, name=f"layer_{i}")(x))
            return nn.Dense(3, name="out")(x)

    small, large, x = Network(1), Network(3), jax.random.normal(KEY, (32, 6))
    variables = small.init(KEY, x)
    target = jax.eval_shape(large.init, KEY, x)
    growth = dw.plan(dw.trace(small.apply, variables, x), target=target, target_apply=large.apply)
    wide = dw.grow(variables, growth, key=KEY)
    kernels = [wide["params"][f"layer_{i}"]["kernel"] for i in (1, 2)]
    assert jnp.array_equal(*kernels)
    later = after_adam(large.apply, wide, x)["params"]
    assert not np.allclose(later["layer_1"]["kernel"], later["layer_2"]["kernel"], atol=1e-3)


def test_experts_that_are_copied_with_their_router_are_noted() -> None:
    """All copies are chosen together, so they get the same gradients."""
    tokens = jax.ShapeDtypeStruct((2, 6), jnp.int32)
    widths = dw.trace(net.network("sigmoid", "einsum"), net.params(3), tokens)
    growth = dw.upcycle(widths, experts={"moe/router": 6})
    assert any("new units of moe/router" in note and "copies" in note for note in growth.notes)


def test_experts_of_one_layer_come_apart_by_their_router() -> None:
    def apply(params: Any, x: Any) -> Any:
        return x + jax.nn.relu(x @ params["up"]) @ params["down"]

    def mixture(params: Any, x: Any) -> Any:
        gates, which = jax.lax.top_k(jax.nn.softmax(x @ params["router"]), 2)
        gates = jnp.einsum("tk,tke->te", gates, jax.nn.one_hot(which, 3))
        h = jax.nn.relu(jnp.einsum("td,edf->tef", x, params["up"]))
        return x + jnp.einsum("te,tef,efd->td", gates, h, params["down"])

    keys, x = jax.random.split(KEY, 3), jax.random.normal(KEY, (32, 3))
    params = {"up": jax.random.normal(keys[0], (3, 4)), "down": jax.random.normal(keys[1], (4, 3))}
    shapes = {"router": (3, 3), "up": (3, 3, 4), "down": (3, 4, 3)}
    target = {name: jax.ShapeDtypeStruct(its, x.dtype) for name, its in shapes.items()}
    growth = dw.upcycle(dw.trace(apply, params, x), target=target, target_apply=mixture)
    for experts in (
        dw.grow(params, growth, key=keys[2]),
        dw.training.grow_several([params, jax.tree.map(lambda a: 2 * a, params)], growth, key=KEY),
    ):
        assert different(experts["up"].reshape(3, -1)) < 3
        assert different(after_adam(mixture, experts, x)["up"].reshape(3, -1)) == 3


def test_recycled_units_come_apart() -> None:
    apply, params, x = hidden("layer")
    widths, tx = dw.trace(apply, params, x), dw.growable(optax.adam(1e-2), renewable=True)
    mask = {"up": jnp.arange(8) < 3}
    renewed, _ = dw.renew(params, tx.init(params), widths, mask, key=KEY, tx=tx, strict=False)
    assert different(renewed["up"]["kernel"].T) == 8


# Rotations ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("new", "old"), [(8, 8), (5, 3), (2, 2), (3, 2), (7, 1), (1, 1), (20, 8)])
def test_a_rotation_keeps_means_and_squares(new: int, old: int) -> None:
    matrix = np.asarray(rotation_of(KEY, new, old))
    assert np.allclose(matrix.T @ matrix, new / old * np.eye(old), atol=1e-12)
    assert np.allclose(matrix.sum(0), new / old, atol=1e-12)
    other = np.asarray(rotation_of(jax.random.key(1), new, old))
    assert np.allclose(matrix, other) == (old == 1 or new == 2)
    if new == old > 1:
        assert not np.allclose(matrix, np.eye(old))


def test_fewer_mixtures_than_units_are_orthogonal() -> None:
    matrix = np.asarray(rotation_of(KEY, 3, 7))
    assert np.allclose(matrix @ matrix.T, np.eye(3), atol=1e-12)


def test_the_key_draws_the_rotation() -> None:
    apply, params, x = hidden("layer")
    growth = dw.plan(dw.trace(apply, params, x), {"up": 16})
    drawn = [dw.grow(params, growth, key=key) for key in (None, KEY, jax.random.key(1))]
    kernels = [wide["up"]["kernel"] for wide in drawn]
    assert different(jnp.stack(kernels).reshape(3, -1)) == 3
    assert jnp.array_equal(kernels[0], dw.grow(params, growth)["up"]["kernel"])
    jitted = jax.jit(dw.grow)(params, growth, key=KEY)["up"]["kernel"]
    assert np.allclose(jitted, kernels[1], rtol=1e-12)
    old = params["up"]
    mixed = (drawn[1]["up"]["kernel"][:, 8:], drawn[1]["up"]["bias"][8:])
    matrix = rotation_of(KEY, 8, 8)
    assert np.allclose(mixed[0], old["kernel"] @ matrix.T)
    assert np.allclose(mixed[1], matrix @ old["bias"])
    assert not drawn[1]["down"]["kernel"][8:].any()
    state = optax.adam(1e-3).init(params)
    grown = dw.grow_opt_state(state, growth, optax.adam(1e-3))
    assert growth.is_new(drawn[1])["up"]["kernel"][:, 8:].all()
    assert not grown[0].mu["up"]["kernel"].any()


def test_roots_of_shares_keep_squares() -> None:
    apply, params, x = hidden("l2")
    growth = dw.plan(dw.trace(apply, params, x), {"up": 12})
    wide = dw.grow(params, growth)
    old = params["up"]["kernel"]
    both = jnp.stack([wide["up"]["kernel"][:, :4], wide["up"]["kernel"][:, 8:]])
    assert np.allclose((both**2).sum(0), old[:, :4] ** 2)
    assert not np.allclose(*both) and np.array_equal(wide["scale"][8:], params["scale"][:4])
    # The gradients of both sides of a copy are its root times those of its unit.
    gradients = jax.grad(lambda p: jnp.sum(jnp.sin(apply(p, x))))
    back = jax.vjp(lambda p: dw.grow(p, growth), params)[1](gradients(wide))[0]
    assert jax.tree.all(jax.tree.map(np.allclose, back, gradients(params)))


# Batch statistics ---------------------------------------------------------------------------------


class Stream(nn.Module):
    """A stream that BatchNorm and RMSNorm read."""

    size: int = 8

    @nn.compact
    def __call__(self, x: Any, train: bool = False) -> Any:
        x = nn.Dense(self.size, name="in")(x)
        h = nn.BatchNorm(use_running_average=not train, name="batch")(x)
        x += nn.Dense(self.size, name="mix")(nn.relu(nn.Dense(6, name="up")(h)))
        return nn.Dense(3, name="out")(nn.RMSNorm(name="rms")(x))


def stream() -> tuple[Stream, Any, Any]:
    model, x = Stream(), 2 + 3 * jax.random.normal(KEY, (64, 5))
    variables = model.init(KEY, x)
    for _ in range(100):
        _, new = model.apply(variables, x, train=True, mutable=["batch_stats"])
        variables = {**variables, **new}
    return model, variables, x


def in_training(model: Stream, variables: Any, x: Any) -> Any:
    return model.apply(variables, x, train=True, mutable=["batch_stats"])[0]


def test_batch_statistics_take_factors_before_learned_scales() -> None:
    model, variables, x = stream()
    growth = dw.plan(dw.trace(model.apply, variables, x), {"in": 12})
    factors = {path: round(factor, 3) for path, factor in growth.factors.items()}
    assert factors["batch_stats/batch/mean"] == 1.225
    assert factors["batch_stats/batch/var"] == 1.5
    assert "params/batch/scale" not in factors
    wide, large = dw.grow(variables, growth, key=KEY), dw.larger(model, growth)
    assert dw.compare(model.apply, variables, large.apply, wide, x).relative < 1e-6
    before, after = in_training(model, variables, x), in_training(large, wide, x)
    assert np.allclose(before, after, rtol=1e-4, atol=1e-4)  # epsilon is not rescaled
    assert growth.notes == ()


class EquinoxStream(eqx.Module):
    """The same stream, whose running statistics lie in a state beside the module."""

    first: eqx.nn.Linear
    batch: eqx.nn.BatchNorm
    up: eqx.nn.Linear
    mix: eqx.nn.Linear
    rms: eqx.nn.RMSNorm
    out: eqx.nn.Linear

    def __init__(self, size: int, key: Any) -> None:
        sizes = {"first": (5, size), "up": (size, 6), "mix": (6, size), "out": (size, 3)}
        for name, one in zip(sizes, jax.random.split(key, 4), strict=True):
            setattr(self, name, eqx.nn.Linear(*sizes[name], key=one))
        self.batch = eqx.nn.BatchNorm(size, "batch", mode="ema")
        self.rms = eqx.nn.RMSNorm(size)

    def __call__(self, x: Any, state: Any) -> Any:
        h = self.first(x)
        y, state = self.batch(h, state)
        return self.out(self.rms(h + self.mix(nn.relu(self.up(y))))), state


def test_statistics_in_a_state_of_equinox_take_factors_first() -> None:
    def run(variables: Any, x: Any) -> Any:
        model, state = variables
        return jax.vmap(model, (0, None), (0, None), axis_name="batch")(x, state)

    def apply(variables: Any, x: Any) -> Any:
        return run((eqx.nn.inference_mode(variables[0]), variables[1]), x)[0]

    model, state = eqx.nn.make_with_state(EquinoxStream)(8, KEY)
    x = 2 + 3 * jax.random.normal(KEY, (64, 5))
    for _ in range(20):
        _, state = run((model, state), x)
    target = eqx.nn.make_with_state(EquinoxStream)(12, KEY)
    widths = dw.trace(apply, (model, state), x)
    growth = dw.plan(widths, target=target, target_apply=apply)
    wide = dw.grow((model, state), growth, key=KEY)
    assert dw.compare(apply, (model, state), apply, wide, x).relative < 1e-6
    before, after = run((model, state), x)[0], run(wide, x)[0]
    assert np.allclose(before, after, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("library", ["linen", "nnx"])
def test_outputs_that_move_in_training_are_noted(library: str, monkeypatch: Any) -> None:
    monkeypatch.setattr(search, "statistics_of", lambda network: {})  # as if all were learned
    if library == "linen":
        model, variables, x = stream()
        growth = dw.plan(dw.trace(model.apply, variables, x), {"in": 12})
    else:

        class Module(nnx.Module):
            def __init__(self, rngs: nnx.Rngs) -> None:
                self.first, self.out = nnx.Linear(5, 8, rngs=rngs), nnx.Linear(8, 3, rngs=rngs)
                self.up, self.mix = nnx.Linear(8, 6, rngs=rngs), nnx.Linear(6, 8, rngs=rngs)
                self.batch, self.rms = nnx.BatchNorm(8, rngs=rngs), nnx.RMSNorm(8, rngs=rngs)

            def __call__(self, x: Any) -> Any:
                x = self.first(x)
                return self.out(self.rms(x + self.mix(nnx.relu(self.up(self.batch(x))))))

        module = Module(nnx.Rngs(0))
        module.eval()
        with jax.numpy_rank_promotion("allow"):
            widths = dw.nnx.trace(module, jnp.ones((4, 5), jnp.float32))
            growth = dw.nnx.plan(widths, {"first": 12})
    assert growth.notes[0].startswith("in training mode, with the statistics of a batch, outputs")
