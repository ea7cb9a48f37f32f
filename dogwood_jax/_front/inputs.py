"""Random inputs of networks, and inputs of larger networks."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from dogwood_jax._base.draw import random_keys
from dogwood_jax._base.trees import is_array, struct
from dogwood_jax._front.compare import wide_dtype
from dogwood_jax._growth.grown_sizes import GrownSizes
from dogwood_jax._growth.growth import Growth
from dogwood_jax._growth.leaf_map import old_places

Inputs = tuple[Any, ...]


def with_values(inputs: Inputs, key: Array) -> Inputs:
    """Returns inputs with random values for every ``jax.ShapeDtypeStruct`` among them."""
    leaves, structure = jax.tree.flatten(inputs)
    given = [leaf for leaf in leaves if is_array(leaf) and not _is_struct(leaf)]
    values = [
        _drawn(leaf, given, jax.random.fold_in(key, i)) if _is_struct(leaf) else leaf
        for i, leaf in enumerate(leaves)
    ]
    return tuple(jax.tree.unflatten(structure, values))


def grown_inputs(inputs: Inputs, growth: Growth, key: Array) -> Inputs:
    """Returns a larger network's inputs: the old ones, and random entries for new units.

    Args:
        inputs: arrays for the network, of any batch size.
        growth: the growth. If its network was not traced in this process, the inputs stay.
        key: PRNG key.

    Raises:
        ValueError: if the network takes other inputs.
    """
    network = growth.widths.network
    if network is None:
        return inputs
    if jax.tree.map(np.ndim, inputs) != jax.tree.map(np.ndim, network.inputs):
        given, known = (jax.tree.map(np.shape, tree) for tree in (inputs, network.inputs))
        raise ValueError(f"growth: its network has inputs of shapes {known}, got {given}")
    grown = GrownSizes(growth.widths, growth.sizes)
    dims = iter(network.traced.trace.inputs)
    leaves, structure = jax.tree.flatten(inputs)
    for i, known in enumerate(jax.tree.leaves(network.inputs)):
        along = [next(dims) for _ in known.shape] if is_array(known) else []
        if any(grown(dim) > dim.size for dim in along):
            array = jnp.asarray(leaves[i], known.dtype)
            # Other axes, such as the batch, may have another size than when it was traced.
            axes = [*zip(array.shape, along, strict=True)]
            sizes = [n if grown(dim) == dim.size else grown(dim) for n, dim in axes]
            places = [
                np.arange(n) if n != dim.size else old_places(grown.along(dim)) for n, dim in axes
            ]
            behind = _drawn(struct(sizes, known.dtype), [array], jax.random.fold_in(key, i))
            leaves[i] = behind.at[np.ix_(*places)].set(array)
    return tuple(jax.tree.unflatten(structure, leaves))


def _drawn(leaf: jax.ShapeDtypeStruct, given: list[Any], key: Array) -> Array:
    """Returns a random array; integers lie in the range of given arrays of the same dtype."""
    shape, dtype = leaf.shape, leaf.dtype
    if jnp.issubdtype(dtype, jax.dtypes.prng_key):
        values = random_keys(jax.random.bits(key, (2,), jnp.uint32), shape, dtype)
    elif jnp.issubdtype(dtype, jnp.inexact):
        values = jax.random.normal(key, shape, wide_dtype(dtype)).astype(dtype)
    elif jnp.issubdtype(dtype, bool):
        values = jax.random.bernoulli(key, 0.5, shape)
    else:
        alike = [array for array in given if array.dtype == dtype and array.size]
        low = min((int(jnp.min(array)) for array in alike), default=0)
        high = max((int(jnp.max(array)) for array in alike), default=1)
        wide = wide_dtype(dtype)
        end = min(high + 1, int(np.iinfo(wide).max))
        values = jax.random.randint(key, shape, low, end, wide).astype(dtype)
    sharding = getattr(leaf, "sharding", None)
    return values if sharding is None else jax.device_put(values, sharding)


def _is_struct(leaf: Any) -> bool:
    return isinstance(leaf, jax.ShapeDtypeStruct)
