"""Networks that no memory here holds, planned and grown from shapes; growing in little memory."""

from functools import partial

import jax
import numpy as np
import optax
import pytest
import transformer

import dogwood_jax as dw
from dogwood_jax import _grow
from dogwood_jax._tree import leaves_by_path


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


@pytest.mark.usefixtures("quick_to_compile")
def test_donated_arrays_go_as_their_new_ones_come(monkeypatch):
    shapes = transformer.shapes(depth=3, width=16, heads=2, mlp=32, vocabulary=64)
    leaves, structure = jax.tree.flatten(shapes)
    keys = jax.random.split(jax.random.key(0), len(leaves))
    drawn = [
        jax.random.normal(k, leaf.shape, leaf.dtype) for k, leaf in zip(keys, leaves, strict=True)
    ]
    old = jax.tree.unflatten(structure, drawn)
    widths = dw.trace(transformer.apply, old, transformer.TOKENS)
    names = {widths.of(f"block_{i}/up", 1).name: 48 for i in range(3)}
    growth = dw.plan(widths, names | {widths.of("block_0/query", 1).name: 4})
    key = jax.random.key(1)
    expected = dw.grow(old, growth, key=key)

    leaves_old, leaves_new = leaves_by_path(old), leaves_by_path(expected)
    grow_by_path = {path for path, a in leaves_old.items() if a.shape != leaves_new[path].shape}

    def bytes_alive():
        return sum(array.nbytes for array in jax.live_arrays())

    peaks, delete = [], _grow._delete
    monkeypatch.setattr(
        _grow, "_delete", lambda *portions: (peaks.append(bytes_alive()), delete(*portions))
    )
    before = bytes_alive() - sum(array.nbytes for array in leaves_old.values())
    grown = dw.grow(old, growth, key=key, donate=True)
    jax.tree.map(np.testing.assert_array_equal, grown, expected)
    assert {path for path, a in leaves_old.items() if a.is_deleted()} == grow_by_path
    assert len(peaks) > 2
    largest = max(leaf.size for leaf in leaves) * 4
    new = sum(array.nbytes for array in leaves_new.values())
    assert max(peaks) - before <= new + largest
