"""Networks that no memory here holds, planned and grown from shapes; growing in little memory."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import transformer

import dogwood_jax as dw
from dogwood_jax._base.trees import leaves_by_path
from dogwood_jax._growth import grown as _grow
from dogwood_jax._optimizer import kept as _kept


@pytest.mark.long
def test_48_layers_of_1600_units_are_planned_and_grown_from_shapes():
    size = {"depth": 48, "vocabulary": 50_257}
    old = transformer.shapes(width=1600, heads=25, mlp=6400, **size)
    new = transformer.shapes(width=2048, heads=32, mlp=8192, **size)
    assert sum(leaf.size for leaf in jax.tree.leaves(old)) > 1.5e9
    widths = dw.trace(transformer.apply, old, transformer.TOKENS)
    growth = dw.plan(widths, target=new)
    key = jax.random.key(0)
    assert jax.eval_shape(partial(dw.grow, growth=growth), old, key=key) == new
    tx = optax.adamw(1e-3)
    state = jax.eval_shape(tx.init, old)
    grown = jax.eval_shape(lambda state: dw.grow_opt_state(state, growth, tx), state)
    assert grown == jax.eval_shape(tx.init, new)


def random_like(shapes):
    draw = np.random.default_rng(0).uniform
    return jax.tree.map(
        lambda a: jax.device_put(np.asarray(draw(size=a.shape)).astype(a.dtype)), shapes
    )


def small_growth():
    """A decoder and how its heads and hidden units grow."""
    shapes = transformer.shapes(depth=3, width=16, heads=2, mlp=32, vocabulary=64)
    widths = dw.trace(transformer.apply, shapes, transformer.TOKENS)
    names = {widths.of(f"block_{i}/up", 1).name: 48 for i in range(3)}
    return shapes, dw.plan(widths, names | {widths.of("block_0/query", 1).name: 4})


def grow_variables(old, growth, **donate):
    return dw.grow(old, growth, key=jax.random.key(1), **donate)


def grow_state(old, growth, **donate):
    return dw.grow_opt_state(old, growth, optax.adam(1e-3), **donate)


@pytest.mark.parametrize("grow, module", [(grow_variables, _grow), (grow_state, _kept)])
def test_donated_arrays_go_as_their_new_ones_come(grow, module, monkeypatch):
    shapes, growth = small_growth()
    if grow is grow_state:
        shapes = jax.eval_shape(optax.adam(1e-3).init, shapes)
    old = random_like(shapes)
    expected = grow(old, growth)
    leaves_old, leaves_new = leaves_by_path(old), leaves_by_path(expected)
    grow_by_path = {path for path, a in leaves_old.items() if a.shape != leaves_new[path].shape}

    def bytes_alive():
        return sum(array.nbytes for array in jax.live_arrays())

    peaks, delete = [], module.delete
    monkeypatch.setattr(
        module, "delete", lambda *portions: (peaks.append(bytes_alive()), delete(*portions))
    )
    before = bytes_alive() - sum(array.nbytes for array in leaves_old.values())
    grown = grow(old, growth, donate=True)
    jax.tree.map(np.testing.assert_array_equal, grown, expected)
    assert {path for path, a in leaves_old.items() if a.is_deleted()} == grow_by_path
    assert len(peaks) > 2
    largest = max(array.nbytes for array in jax.tree.leaves(expected))
    new = sum(array.nbytes for array in leaves_new.values())
    assert max(peaks) - before <= new + largest


def test_donated_arrays_stay_that_have_two_places():
    params = {"up": jnp.ones((4, 8)), "down": jnp.ones((8, 4)), "again": {}}
    params["again"] = {"up": params["up"], "down": jnp.ones((8, 4))}

    def apply(params, x):
        for layers in (params, params["again"]):
            x = jax.nn.relu(x @ layers["up"]) @ layers["down"]
        return x

    widths = dw.trace(apply, params, jnp.ones((1, 4)))
    growth = dw.plan(widths, {"up": 16, "again": 16})
    wide = dw.grow(params, growth, key=jax.random.key(0), donate=True)
    assert params["down"].is_deleted() and not params["up"].is_deleted()
    assert wide["up"].shape == wide["again"]["up"].shape == (4, 16)


@pytest.mark.long
def test_layers_that_are_alike_are_compiled_once():
    """However many there are: what takes long at first is compiling."""
    shapes = transformer.shapes(depth=7, width=24, heads=3, mlp=32, vocabulary=32)
    widths = dw.trace(transformer.apply, shapes, transformer.TOKENS)
    growth = dw.plan(widths, {widths.of(f"block_{i}/up", 1).name: 48 for i in range(7)})
    old, functions = random_like(shapes), (_grow._edited, _kept._made)
    before = [function._cache_size() for function in functions]
    grow_variables(old, growth)
    grow_state(optax.adam(1e-3).init(old), growth)
    after = [function._cache_size() for function in functions]
    # All rounds are the same: two arrays of a layer, or their two moments each.
    assert np.subtract(after, before).tolist() == [1, 1]
