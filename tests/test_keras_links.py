"""Files in which links lead to weights, saved again with others."""

import h5py
import jax
import numpy as np
import pytest
from test_keras_h5 import flat, small

import dogwood_jax as dw
from dogwood_jax import keras_h5


def test_like_replaces_weights_behind_links(tmp_path):
    keras_h5.save(tmp_path / "x.h5", small())
    with h5py.File(tmp_path / "x.h5", "r+") as file:
        file.move("dense_1", "moved")
        file["dense_1"] = h5py.SoftLink("/moved")
    changed = jax.tree.map(lambda array: array + 1, keras_h5.load(tmp_path / "x.h5"))
    keras_h5.save(tmp_path / "y.h5", changed, like=tmp_path / "x.h5")
    loaded = flat(keras_h5.load(tmp_path / "y.h5"))
    for path, array in flat(changed).items():
        np.testing.assert_array_equal(loaded[path], array)


def test_like_refuses_to_save_two_values_into_one_array_behind_links(tmp_path):
    keras_h5.save(tmp_path / "x.h5", small())
    with h5py.File(tmp_path / "x.h5", "r+") as file:
        file["once"] = np.zeros(3, "f")
        for name in ("a", "b"):
            file.create_group(name).attrs["weight_names"] = ["bias:0"]
            file[f"{name}/bias:0"] = h5py.SoftLink("/once")
        file.attrs["layer_names"] = [*file.attrs["layer_names"], b"a", b"b"]
    variables = keras_h5.load(tmp_path / "x.h5")
    keras_h5.save(tmp_path / "y.h5", variables, like=tmp_path / "x.h5")
    before = (tmp_path / "y.h5").read_bytes()
    params = {**variables["params"], "a": {"bias": np.ones(3, "f")}}
    with pytest.raises(ValueError, match="- b/bias: expected the values of a/bias, .* /once; "):
        keras_h5.save(tmp_path / "y.h5", {"params": params}, like=tmp_path / "x.h5")
    assert (tmp_path / "y.h5").read_bytes() == before
    params["b"] = params["a"]
    keras_h5.save(tmp_path / "y.h5", {"params": params}, like=tmp_path / "x.h5")
    for name in ("a", "b"):
        loaded = keras_h5.load(tmp_path / "y.h5")["params"][name]["bias"]
        np.testing.assert_array_equal(loaded, np.ones(3))


def test_like_keeps_weights_that_links_lead_to_among_those_of_the_optimizer(tmp_path):
    keras_h5.save(tmp_path / "x.h5", small())
    with h5py.File(tmp_path / "x.h5", "r+") as file:
        file.create_group("optimizer")
        file.move("dense_1/dense_1/kernel:0", "optimizer/kernel")
        file["dense_1/dense_1/kernel:0"] = h5py.SoftLink("/optimizer/kernel")
    wide = keras_h5.load(tmp_path / "x.h5")
    wide = dw.widen(wide, "dense_1", into="dense_2", units=32, key=jax.random.key(0))
    keras_h5.save(tmp_path / "y.h5", wide, like=tmp_path / "x.h5")
    loaded = flat(keras_h5.load(tmp_path / "y.h5"))
    for path, array in flat(wide).items():
        np.testing.assert_array_equal(loaded[path], array)
