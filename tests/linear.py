"""A linear classifier and data for it, for the tests of training."""

import jax
import jax.numpy as jnp
import numpy as np

KEY = jax.random.key(0)


def linear(variables, inputs):
    return inputs @ variables["kernel"] + jnp.expand_dims(variables["bias"], 0)


def linear_variables(dtype=np.float64, features=3, classes=4):
    rng = np.random.default_rng(1)
    kernel = rng.normal(size=(features, classes)).astype(dtype)
    return {"kernel": kernel, "bias": np.zeros(classes, dtype)}


def classes_data(size=5, dtype=np.float64, features=3, classes=4):
    rng = np.random.default_rng(2)
    inputs = rng.normal(size=(size, features)).astype(dtype)
    return inputs, rng.integers(0, classes, size).astype(np.int32)


def assert_trees_close(actual, expected, rtol):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(actual), jax.tree.leaves(expected)):
        assert one.dtype == other.dtype
        np.testing.assert_allclose(one, other, rtol=rtol, atol=rtol)


def assert_trees_equal(actual, expected):
    assert_trees_close(actual, expected, rtol=0)
