"""Layers with numbers in their names go: variables, optimizer state, checkpoints."""

import json
from typing import Any

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from test_config_json import NAMES, small_in
from test_config_json import apply as decoder
from tiers import long

import dogwood_jax as dw

COUNT, KEPT = 4, [0, 2, 3]
X = jnp.linspace(-1.0, 1.0, 6).reshape(2, 3)


class Deep(nn.Module):
    """A network whose configuration says how many layers it has. Every second one is scaled."""

    layers: tuple[int, ...] = (0,) * COUNT

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(5)(x)
        for index, kind in enumerate(self.layers):
            h = nn.BatchNorm(use_running_average=True, name=f"norms_{index}")(x)
            h = nn.Dense(7, name=f"layers_{index}_up")(h)
            x = x + nn.Dense(5, name=f"blocks_{index}")(nn.gelu(h)) * (2.0 if kind else 1.0)
        return nn.Dense(2)(nn.LayerNorm()(x))


def layer(params, x):
    return x + jax.nn.gelu(x @ params["up"]) @ params["down"]


def by_names(params, x):
    """Takes the layers that it finds."""
    x = x @ params["in"]
    for index in range(sum(name.startswith("layer_") for name in params)):
        x = jax.jit(layer)(params[f"layer_{index}"], x)
    return jnp.tanh(x) @ params["out"]


def by_number(params, x):
    """Takes four layers; the whole network is one call."""
    x = x @ params["in"]
    for index in range(COUNT):
        x = layer(params["layers"][index], x)
    return jnp.tanh(x) @ params["out"]


def arrays(count=COUNT):
    rng = np.random.default_rng(0)
    shapes = [{"up": (5, 7), "down": (7, 5)} for _ in range(count)]
    draw = lambda shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    layers = [{name: draw(shape) for name, shape in one.items()} for one in shapes]
    return {"in": draw((3, 5)), "out": draw((5, 2))}, layers


def in_dict(layers):
    return {f"layer_{index}": one for index, one in enumerate(layers)}


def networks():
    ends, layers = arrays()
    kept = [layers[index] for index in KEPT]
    yield by_names, "layer", ends | in_dict(layers), ends | in_dict(kept)
    yield by_number, "layers", ends | {"layers": layers}, ends | {"layers": kept}
    tuples = ends | {"layers": tuple(layers)}, ends | {"layers": tuple(kept)}
    yield jax.jit(by_number), "layers", *tuples


@pytest.mark.parametrize(("apply", "name", "params", "kept"), [*networks()])
def test_layers_go(apply, name, params, kept):
    widths = dw.trace(apply, params, X)
    growth = dw.plan(widths, keep={name: KEPT})
    jax.tree.map(np.testing.assert_array_equal, dw.grow(params, growth), kept)
    mask = np.isin(range(COUNT), KEPT)
    assert dw.plan(widths, keep={name: mask}) == growth
    assert "3 layers" in str(growth) and "these were 0, 2, 3" in str(growth)
    jax.tree.map(
        np.testing.assert_array_equal, jax.jit(dw.grow, static_argnums=1)(params, growth), kept
    )
    fresh = jax.tree.map(jnp.zeros_like, kept)
    jax.tree.map(np.testing.assert_array_equal, dw.grow(params, growth, fresh=fresh), kept)
    assert jax.tree.structure(growth.rates(kept)) == jax.tree.structure(kept)
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shardings = growth.shardings(jax.tree.map(lambda _: device, params))
    assert jax.tree.structure(shardings) == jax.tree.structure(kept)
    loaded = dw.from_json(dw.to_json(growth))
    jax.tree.map(np.testing.assert_array_equal, dw.grow(params, loaded), kept)


@pytest.mark.parametrize(
    ("tx", "kept_layers"),
    [
        (optax.adam(0.1), KEPT),
        long(dw.growable(optax.adamw(0.1)), KEPT),
        long(dw.growable(optax.adamw(0.1)), [3]),
    ],
)
def test_the_optimizer_goes_along(tx, kept_layers):
    """Training goes on as if the layers had never been there."""
    ends, layers = arrays()
    params = ends | in_dict(layers)
    kept = ends | in_dict([layers[index] for index in kept_layers])
    states, update = [tx.init(params), tx.init(kept)], jax.jit(tx.update)
    for step in range(3):
        for index, tree in enumerate((params, kept)):
            gradients = jax.tree.map(lambda a, step=step: jnp.cos(a + step), tree)
            _, states[index] = update(gradients, states[index], tree)
    growth = dw.plan(dw.trace(by_names, params, X), keep={"layer": kept_layers})
    state = dw.grow_opt_state(states[0], growth, tx)
    gradients = jax.tree.map(jnp.sin, kept)
    updates, expected = (update(gradients, s, kept)[0] for s in (state, states[1]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), updates, expected)


def test_a_layer_may_have_several_names():
    module = Deep()
    variables = jax.jit(module.init)(jax.random.key(0), X)
    widths = dw.trace(module.apply, variables, X)
    with pytest.raises(ValueError, match="blocks: nothing shows how the network runs without"):
        dw.plan(widths, keep={"blocks": KEPT})
    growth = dw.plan(widths, keep=dict.fromkeys(("norms", "layers", "blocks"), KEPT))
    smaller = dw.grow(variables, growth)
    assert jax.eval_shape(Deep((0,) * 3).apply, smaller, X).shape == (2, 2)
    old, new = variables["params"], smaller["params"]
    assert new["layers_2_up"]["kernel"].tolist() == old["layers_3_up"]["kernel"].tolist()


class Block(nn.Module):
    @nn.compact
    def __call__(self, x):
        h = nn.BatchNorm(use_running_average=True)(x)
        return x + nn.Dense(5)(nn.gelu(nn.Dense(7)(h)))


class Blocks(nn.Module):
    count: int

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(5)(x)
        for index in range(self.count):
            x = Block(name=f"block{index + 1}")(x)
        return nn.Dense(2)(nn.LayerNorm()(x))


def blocks():
    module = Blocks(COUNT)
    shapes = jax.eval_shape(module.init, jax.random.key(0), X)
    draw = lambda a: jnp.asarray(np.linspace(0.1, 1, a.size).reshape(a.shape), a.dtype)  # noqa: E731
    return module, jax.tree.map(draw, shapes)


def test_a_module_loses_layers_in_all_collections():
    module, variables = blocks()
    growth = dw.plan(dw.trace(module.apply, variables, X), keep={"block": KEPT})
    smaller = dw.grow(variables, growth)
    assert jax.eval_shape(Blocks(3).apply, smaller, X).shape == (2, 2)
    for place, index in enumerate(KEPT):
        for name in ("params", "batch_stats"):
            jax.tree.map(
                np.testing.assert_array_equal,
                smaller[name][f"block{place + 1}"],
                variables[name][f"block{index + 1}"],
            )
    assert not any("block4" in collection for collection in smaller.values())


def test_units_of_layers_that_stay_may_change_along():
    module, variables = blocks()
    widths = dw.trace(module.apply, variables, X)
    name = widths.of("params/block4/Dense_1/kernel", 1).name
    growth = dw.plan(widths, {name: 9}, keep={"block": [0, 3]})
    smaller = dw.grow(variables, growth, key=jax.random.key(0))["params"]
    assert smaller["block2"]["Dense_1"]["kernel"].shape == (5, 9)
    assert {*growth.after.sizes} < {*widths.sizes}
    again = dw.plan(growth.after, {name: 11})
    assert dw.grow(dw.grow(variables, growth, key=jax.random.key(0)), again, key=jax.random.key(1))


def test_narrow_says_how_far_outputs_move():
    module, variables = blocks()
    widths = dw.trace(module.apply, variables, X)
    with pytest.warns(UserWarning, match="outputs move by .* because layers are removed"):
        smaller = dw.narrow(variables, widths, {"block": KEPT})
    assert jax.eval_shape(Blocks(3).apply, smaller, X).shape == (2, 2)
    for index in (2, 3):  # these do nothing
        silent = variables["params"][f"block{index}"]["Dense_0"]
        silent |= jax.tree.map(jnp.zeros_like, silent)
    smaller = dw.narrow(variables, widths, {"block": [0, 3]})
    np.testing.assert_allclose(
        jax.jit(Blocks(2).apply)(smaller, X),
        jax.jit(module.apply)(variables, X),
        rtol=1e-5,
        atol=1e-6,
    )


def test_numbers_keep_their_digits():
    def apply(params, x):
        for name in sorted(params):
            x = x + jnp.tanh(x @ params[name])
        return x

    params = {f"layer_{index:02}": jnp.full((3, 3), index) for index in range(12)}
    growth = dw.plan(dw.trace(apply, params, X), keep={"layer": [0, 3, 11]})
    small = dw.grow(params, growth)
    assert {name: int(array[0, 0]) for name, array in small.items()} == {
        "layer_00": 0,
        "layer_01": 3,
        "layer_02": 11,
    }


def test_layers_that_alternate_are_told():
    """What a model says of layers by number holds for the new numbers."""

    def apply(params, x):
        for index in range(COUNT):
            x = jnp.tanh(x @ params[f"layer_{index}"]) * (1.0 if index % 2 else 2.0) + x
        return x

    params = {f"layer_{index}": jnp.ones((3, 3)) for index in range(COUNT)}
    widths = dw.trace(apply, params, X)
    for keep, others in ([0, 1], ""), ([0, 3], ""), ([1, 2, 3], "1, 2, 3"), ([0, 1, 3], "3"):
        note = f"layers {others} of layer compute something else"
        assert (
            others == ""
            and "else" not in str(dw.plan(widths, keep={"layer": keep}))
            or (note in " ".join(str(dw.plan(widths, keep={"layer": keep})).split()))
        )


def test_nnx_takes_the_smaller_module():
    class Mlp(nnx.Module):
        def __init__(self, count):
            rngs = nnx.Rngs(0)
            as_list = getattr(nnx, "List", list)  # older versions of Flax take lists as they are
            self.layers = as_list([nnx.Linear(3, 3, rngs=rngs) for _ in range(count)])

        def __call__(self, x):
            for one in self.layers:
                x = x + jnp.tanh(one(x))
            return x

    model, smaller = Mlp(COUNT), Mlp(3)
    growth = dw.nnx.plan(dw.nnx.trace(model, X), keep={"layers": KEPT})
    with pytest.raises(ValueError, match="removes layers; pass the larger module, fresh="):
        dw.nnx.grow(model, growth)
    small = dw.nnx.grow(model, growth, fresh=smaller)
    assert small.layers[1].kernel[...].tolist() == model.layers[2].kernel[...].tolist()


def test_a_module_that_says_numbers_is_asked_for():
    """Nothing shows which of an Equinox module's numbers is that of its layers."""

    class Mlp(eqx.Module):
        layers: list[eqx.nn.Linear]
        depth: int = eqx.field(static=True)
        act: Any = jax.nn.relu

        def __init__(self, depth):
            keys = jax.random.split(jax.random.key(0), depth)
            self.layers = [eqx.nn.Linear(3, 3, key=key) for key in keys]
            self.depth = depth

        def __call__(self, x):
            for index in range(self.depth):
                x = x + self.act(self.layers[index](x))
            return x

    apply = lambda model, x: jax.vmap(model)(x)  # noqa: E731
    model = Mlp(COUNT)
    growth = dw.plan(dw.trace(apply, model, X), keep={"layers": KEPT})
    with pytest.raises(ValueError, match="pass the smaller model as fresh="):
        dw.grow(model, growth)
    small = dw.grow(model, growth, fresh=Mlp(3))
    assert small.layers[1].weight.tolist() == model.layers[2].weight.tolist()
    assert apply(small, X).shape == X.shape


def test_a_folder_loses_layers_with_its_configuration(tmp_path):
    folder = small_in(tmp_path)
    before = json.loads((folder / "config.json").read_text())
    before["layer_types"] = ["sliding_attention", "full_attention"]
    (folder / "config.json").write_text(json.dumps(before))
    shapes = dw.checkpoint.shapes(folder, names=NAMES)
    widths = dw.trace(decoder, shapes, jnp.arange(5))
    growth = dw.plan(widths, keep={"layers": [1]})
    dw.checkpoint.grow(folder, growth, tmp_path / "out", names=NAMES)
    after = json.loads((tmp_path / "out/config.json").read_text())
    assert after == before | {
        "head_dim": 4,
        "num_hidden_layers": 1,
        "layer_types": ["full_attention"],
    }
    small = dw.checkpoint.shapes(tmp_path / "out", names=NAMES)
    assert len(small["layers"]) == 1


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        ([], "one layer at least"),
        ([2, 0], "in ascending order"),
        ([0, 4], "distinct indices below 4"),
        (np.ones(3, bool), "a boolean mask of 4 layers"),
        ([0.5], "distinct indices"),
    ],
)
def test_wrong_layers_are_refused(keep, message):
    ends, layers = arrays()
    widths = dw.trace(by_names, ends | in_dict(layers), X)
    with pytest.raises(ValueError, match=message):
        dw.plan(widths, keep={"layer": keep})


def test_layers_go_alone():
    ends, layers = arrays()
    params = ends | in_dict(layers)
    widths = dw.trace(by_names, params, X)
    with pytest.raises(ValueError, match="plan two growths"):
        dw.plan(widths, target=params, keep={"layer": KEPT})
    with pytest.raises(ValueError, match="use dw.trace"):
        dw.plan(dw.from_json(dw.to_json(widths)), keep={"layer": KEPT})


def test_a_chain_cannot_do_without_a_layer_that_changes_its_size():
    """The layers are called alike, but each makes what only the next one reads."""
    sizes = [3, 4, 5, 6]
    params = {f"layer_{i}": jnp.ones(pair) for i, pair in enumerate(zip(sizes, sizes[1:]))}

    def apply(params, x):
        for index in range(3):
            x = jnp.tanh(x @ params[f"layer_{index}"])
        return x

    widths = dw.trace(apply, params, X)
    with pytest.raises(ValueError, match="nothing shows how the network runs without"):
        dw.plan(widths, keep={"layer": [0, 2]})
    growth = dw.plan(widths, keep={"layer": [0, 2]}, check=False)
    assert dw.grow(params, growth)["layer_1"].shape == (5, 6)


def test_all_arrays_of_a_layer_go_together():
    """The function counts its layers by one name, and would mix arrays of several layers."""

    def apply(params, x):
        for index in range(sum(name.startswith("up") for name in params)):
            x = x + jnp.tanh(x @ params[f"up_{index}"]) @ params[f"down_{index}"]
        return x

    params = {f"{name}_{i}": jnp.ones((3, 3)) for name in ("up", "down") for i in range(COUNT)}
    widths = dw.trace(apply, params, X)
    with pytest.raises(ValueError, match="name all arrays of a layer"):
        dw.plan(widths, keep={"up": KEPT})
    growth = dw.plan(widths, keep=dict.fromkeys(("up", "down"), KEPT))
    assert {*dw.grow(params, growth)} == {f"{n}_{i}" for n in ("up", "down") for i in range(3)}


def test_a_network_of_two_streams_is_not_written_anew():
    """What it computes without a layer is not clear, unless its function says so."""

    def network(count):
        def apply(params, x):
            a = b = x
            for layer in params["layers"][:count]:
                a, b = b, a + jnp.tanh(b @ layer["w"])
            return a + b

        return apply

    params = {"layers": [{"w": jnp.ones((3, 3))}] * COUNT}

    def fixed(params, x):
        assert len(params["layers"]) == COUNT
        return network(COUNT)(params, x)

    with pytest.raises(ValueError, match="nothing shows how the network runs without"):
        dw.plan(dw.trace(fixed, params, X), keep={"layers": KEPT})
    growth = dw.plan(dw.trace(network(None), params, X), keep={"layers": KEPT})
    assert len(dw.grow(params, growth)["layers"]) == 3


def test_layers_of_layers_go():
    def apply(params, x):
        for block in params["blocks"]:
            for one in block["sub"]:
                x = x + jnp.tanh(x @ one)
        return x

    params = {
        "blocks": [{"sub": [jnp.full((3, 3), 3 * b + s) for s in range(3)]} for b in range(4)]
    }
    growth = dw.plan(dw.trace(apply, params, X), keep={"blocks": [0, 2, 3], "blocks/2/sub": [0, 2]})
    small = dw.grow(params, growth)["blocks"]
    assert [[int(one[0, 0]) for one in block["sub"]] for block in small] == [
        [0, 1, 2],
        [6, 8],
        [9, 10, 11],
    ]
    with pytest.raises(ValueError, match="should grow, but it is only in layers that are removed"):
        widths = dw.trace(by_names, arrays()[0] | in_dict(arrays()[1]), X)
        dw.plan(widths, {("layer_1/up", 1): 20}, keep={"layer": KEPT})
