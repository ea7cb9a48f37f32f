"""Each layer of a stack keeps units of its own."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from safetensors.numpy import load_file, save_file
from tiers import long

import dogwood_jax as dw
from dogwood_jax._optimizer.factored import joined, parted

LAYERS, HEADS = 3, 4
X = np.sin(np.arange(24.0)).reshape(8, 3)
KEPT = [[0, 3], [5, 1], [2, 4]]
HEADS_KEPT = [[0, 1], [3, 2], [1, 3]]


def layer(x, block):
    h = jax.nn.gelu(x @ block["up"] + block["bias"][None]) @ block["down"]
    q, k, v = (jnp.einsum("td,dnh->tnh", x, block[name]) for name in "qkv")
    h += jnp.einsum("tnh,nhd->td", jax.nn.dot_product_attention(q, k, v), block["o"])
    gate, value = jnp.split(x @ block["gated"], 2, -1)
    return x + h + (jax.nn.silu(gate) * value) @ block["out"]


def apply(params, x):
    return jax.lax.scan(lambda x, block: (layer(x, block), None), x, params["blocks"])[0]


def drawn():
    shapes = {"up": (3, 6), "bias": (6,), "down": (6, 3), "gated": (3, 12), "out": (6, 3)}
    shapes |= dict.fromkeys("qkv", (3, HEADS, 2)) | {"o": (HEADS, 2, 3)}
    rng = np.random.default_rng(0)
    draw = lambda shape: jnp.asarray(0.3 * rng.normal(size=(LAYERS, *shape)))  # noqa: E731
    return {"blocks": {name: draw(shape) for name, shape in shapes.items()}}


def by_hand(params):
    """The same layers, with only those units that stay."""

    def one(name, blocks):
        found = []
        for index, array in enumerate(np.asarray(blocks)):
            units, heads = KEPT[index], HEADS_KEPT[index]
            axes = {"up": (1, units), "bias": (0, units), "down": (0, units)}
            axes |= {"gated": (1, [*units, *(6 + u for u in units)]), "out": (0, units)}
            axes |= dict.fromkeys("qkv", (1, heads)) | {"o": (0, heads)}
            axis, places = axes[name]
            found.append(np.take(array, places, axis))
        return jnp.asarray(np.stack(found))

    return {"blocks": {name: one(name, array) for name, array in params["blocks"].items()}}


def equal(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.fixture(scope="module")
def network():
    params = drawn()
    widths = dw.trace(apply, params, X)
    names = [widths.of(f"blocks/{name}", 2).name for name in ("up", "q")]
    names.append(widths.of("blocks/out", 1).name)
    keep = dict(zip(names, (KEPT, HEADS_KEPT, KEPT), strict=True))
    return params, widths, keep


@pytest.mark.long
def test_each_layer_keeps_its_units(network):
    params, widths, keep = network
    growth = dw.plan(widths, keep=keep)
    equal(jax.jit(dw.grow)(params, growth), by_hand(params))
    assert "kept, different in each layer" in " ".join(str(growth).split())
    assert dw.from_json(dw.to_json(growth)) == growth
    with pytest.warns(UserWarning, match="outputs move by"):
        equal(dw.narrow(params, widths, keep), by_hand(params))


def test_a_mask_says_the_same(network):
    params, widths, keep = network
    ordered = {name: np.sort(units, axis=1).tolist() for name, units in keep.items()}
    sizes = {name: widths[name].size for name in keep}
    masks = {n: [np.isin(range(sizes[n]), row) for row in rows] for n, rows in ordered.items()}
    assert dw.plan(widths, keep=masks) == dw.plan(widths, keep=ordered)


def test_dead_units_go_without_a_change(network):
    """Other units are dead in each layer, and their constants go to the biases of what reads them.

    Nothing reads ``down`` with a bias here, so their outgoing weights are zero.
    """
    params, widths, keep = network
    name = next(name for name in keep if widths[name].occurrences[0].path == "blocks/up")
    dead = jnp.array([[u not in row for u in range(6)] for row in KEPT])
    down = jnp.where(dead[..., None], 0, params["blocks"]["down"])
    params = {"blocks": params["blocks"] | {"down": down}}
    small = dw.narrow(params, widths, {name: KEPT})  # a warning would be an error
    outputs = [jax.jit(apply)(one, X) for one in (small, params)]
    np.testing.assert_allclose(*outputs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "tx",
    [
        long(dw.growable(optax.adamw(0.1))),
        long(optax.adafactor(0.1, min_dim_size_to_factor=2)),
        optax.adam(0.1),
    ],
    ids=["growable", "adafactor", "adam"],
)
def test_the_optimizer_goes_along(network, tx):
    params, widths, keep = network
    growth = dw.plan(widths, keep=keep)
    _, state = jax.jit(tx.update)(jax.tree.map(jnp.cos, params), tx.init(params), params)
    small = by_hand(params)
    found = jax.jit(dw.grow_opt_state, static_argnames="tx")(state, growth, tx)
    _, expected = jax.jit(tx.update)(jax.tree.map(jnp.cos, small), tx.init(small), small)
    gradients = jax.tree.map(jnp.sin, small)
    updates = [jax.jit(tx.update)(gradients, one, small)[0] for one in (found, expected)]
    if "v_row" in str(found):
        # Means over units are those of all units, as when any unit goes. Means of units follow.
        assert jax.tree.map(jnp.shape, found) == jax.tree.map(jnp.shape, expected)
        old, new = (
            [getattr(one[0], name)["blocks"]["up"] for name in ("v", "v_row", "v_col")]
            for one in (state, found)
        )
        whole = joined(old, params["blocks"]["up"].shape)
        kept = np.take_along_axis(whole, np.array(KEPT)[:, None], 2)
        for a, b in zip(new, parted(kept, (1,), is_factored=True), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5)
        return
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), *updates)


def test_units_with_different_step_counts_are_refused(network):
    params, widths, keep = network
    name = next(iter(keep))
    tx = dw.growable(optax.adam(0.1))
    growth = dw.plan(widths, {name: 8})
    grow = lambda params: dw.grow_opt_state(tx.init(params), growth, tx)  # noqa: E731
    state = jax.jit(grow)(params)
    smaller = dw.plan(growth.after, keep={name: [[0, 1], [2, 7], [3, 4]]})
    with pytest.raises(ValueError, match="its units have different step counts"):
        dw.grow_opt_state(state, smaller, tx)


@pytest.mark.long
def test_scores_are_of_each_layer_and_shrinking_follows_them(network):
    params, widths, keep = network

    def loss(params, x):
        return jnp.mean((apply(params, x) - jnp.cos(x)) ** 2)

    for by in ("first_order", "norm", "activity"):
        given = (None, X) if by == "activity" else (loss, X)
        scores = dw.saliency(params, widths, *given, by=by)
        assert {name: scores[name].shape for name in keep} == {
            name: (LAYERS, widths[name].size) for name in keep
        }
    scores = dw.saliency(params, widths, loss, X)
    small, growth = dw.shrink(params, widths, scores=scores, parameters=0.7)
    for name, size in growth.sizes.items():
        if name in keep:
            best = np.sort(np.argsort(scores[name], axis=1)[:, -size:], axis=1)
            assert growth.change[name].by_layer == tuple(map(tuple, best.tolist()))
    equal(small, jax.jit(dw.grow)(params, growth))
    alike = {name: own.sum(0) if name in keep else own for name, own in scores.items()}
    same, _ = dw.shrink(params, widths, scores=alike, parameters=0.7)
    assert jax.tree.map(jnp.shape, same) == jax.tree.map(jnp.shape, small)


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        ([[0, 1], [2, 3]], "a row for each of the 3 layers"),
        ([[0, 1], [2, 6], [0, 1]], "rows of distinct indices below 6"),
        ([[0, 1], [2, 2], [0, 1]], "rows of distinct indices below 6"),
        (np.eye(3, 6, dtype=bool)[:2], "a row for each of the 3 layers"),
    ],
)
def test_wrong_rows_are_refused(network, kept, message):
    _, widths, _ = network
    name = widths.of("blocks/up", 2).name
    with pytest.raises(ValueError, match=message):
        dw.plan(widths, keep={name: kept})


def test_rows_are_for_stacks_alone():
    params = {"up": jnp.ones((3, 4)), "down": jnp.ones((4, 2))}
    widths = dw.trace(lambda p, x: jnp.tanh(x @ p["up"]) @ p["down"], params, X)
    with pytest.raises(ValueError, match="not in one stack"):
        dw.plan(widths, keep={"up": [[0, 1], [1, 2]]})


def test_a_checkpoint_keeps_the_same_units(network, tmp_path):
    params, widths, keep = network
    growth = dw.plan(widths, keep=keep)
    arrays = {f"blocks.{name}": np.asarray(array) for name, array in params["blocks"].items()}
    save_file(arrays, tmp_path / "whole")
    dw.checkpoint.grow(tmp_path / "whole", growth, tmp_path / "small")
    found = load_file(tmp_path / "small")
    equal({name.removeprefix("blocks."): a for name, a in found.items()}, by_hand(params)["blocks"])
