"""Fill in the arrays of inserted layers: ``insert``."""

import functools
import itertools
import math
from dataclasses import replace

import jax
import jax.numpy as jnp
from jax import Array, lax

from dogwood_jax._arrays.draws import words_of
from dogwood_jax._arrays.finite import not_finite
from dogwood_jax._arrays.moves import repeated
from dogwood_jax._base.draw import dtype_named, random_keys, seeds, uniform
from dogwood_jax._base.problems import listed
from dogwood_jax._base.trees import PyTree, in_order_of, is_array, leaves_by_path, rebuilt
from dogwood_jax._growth.insertion import Insertion
from dogwood_jax._growth.new_entries import drawn_anew
from dogwood_jax._growth.shardings import ANYWHERE, Placement, most_like, placement


def insert(
    variables: PyTree,
    insertions: tuple[Insertion, ...],
    target: PyTree,
    *,
    key: Array | None = None,
) -> PyTree:
    """Fills in the arrays of new layers.

    Args:
        variables: pytree of the old network's arrays.
        insertions: from the function of this name; hashable, so static under ``jax.jit``.
        target: pytree of arrays or ``jax.ShapeDtypeStruct`` of the deeper model. Free values are
            its own where it holds arrays.
        key: PRNG key for other free values.

    Returns:
        The variables of the deeper model, in its tree structure.

    Raises:
        ValueError: if arrays are missing, free values are not finite, or random values are needed
            and there is no key.
    """
    leaves = leaves_by_path(variables)
    shapes = leaves_by_path(target)
    inserted = {insertion.path: insertion for insertion in insertions}
    fresh = {
        path: shapes[path]
        for path, insertion in inserted.items()
        if insertion.fill == "free" and not isinstance(shapes[path], jax.ShapeDtypeStruct)
    }
    needed = {i.source: i.path for i in insertions if i.source is not None}
    needed |= {p: p for p, leaf in shapes.items() if is_array(leaf) and p not in inserted}
    problems = [
        f"{path}: missing; it is to become {place}"
        for path, place in needed.items()
        if path not in leaves
    ]
    random = [i.path for i in insertions if i.fill == "free" and i.kind == "random"]
    random = [path for path in random if path not in fresh]
    if random := random + [i.path for i in insertions if i.anew]:
        if key is None:
            problems.append(
                f"{', '.join(random)}: free, so pass key= to draw values, copy=True to copy those "
                "of a layer like it, where there is one, or a target that holds arrays"
            )
    problems += [
        f"{path}: holds NaN or infinities in the target, so outputs could change: 0 * NaN is NaN"
        for path in not_finite(fresh)
    ]
    if problems:
        raise ValueError(listed("cannot insert layers", problems))
    moved = {i.path: leaves[i.source] for i in insertions if i.is_as_it_was and i.source}
    made = [i for i in insertions if i.path not in moved]
    sources = {i.source: leaves[i.source] for i in made if i.source is not None}
    sizes = {path: leaf.shape for path, leaf in leaves.items() if is_array(leaf)}
    where = placement(
        {i.path: leaves[i.source] for i in made if i.source is not None} | fresh,
        {i.path: i.shape for i in made},
        repeated={i.path for i in made if i.repeats},
        alike={
            i.path: leaves[most_like(i.path, i.shape, sizes)]
            for i in made
            if i.source is None and i.path not in fresh
        },
    )
    filled = fill(where.enter(sources), insertions, where.enter(fresh), key, where)
    filled = where.leave(filled)
    result = {path: leaf for path, leaf in shapes.items() if not is_array(leaf)}
    result |= {path: leaf for path, leaf in leaves.items() if path in shapes} | moved | filled
    return in_order_of(target, rebuilt(jax.tree.structure(target), result))


@functools.partial(jax.jit, static_argnames=("insertions", "where"))
def fill(
    sources: dict[str, Array],
    insertions: tuple[Insertion, ...],
    fresh: dict[str, Array],
    key: Array | None,
    where: Placement = ANYWHERE,
) -> dict[str, Array]:
    """Returns the arrays of all insertions but those that are old ones as they were."""
    words = None if key is None else words_of(key, len(insertions))
    filled = {}
    for index, insertion in enumerate(insertions):
        if insertion.is_as_it_was:
            continue
        word = None if words is None else words[index]
        source = None if insertion.source is None else sources[insertion.source]
        filled[insertion.path] = filled_in(insertion, source, word, fresh.get(insertion.path))
    return where.constrain(filled)


def filled_in(
    insertion: Insertion, source: Array | None, word: Array | None, fresh: Array | None = None
) -> Array:
    """Returns the array of one insertion.

    Args:
        insertion: what it is filled with.
        source: the old array that it names, grown.
        word: its seed, ``uint32[2]``.
        fresh: free values, if they are not drawn.
    """
    if source is not None and insertion.fill in ("moved", "copy") and not insertion.layers:
        return _experts(insertion, source, word) if insertion.repeats else scaled(insertion, source)
    if fresh is not None:
        new = lax.convert_element_type(fresh, dtype_named(insertion.dtype))
    elif insertion.layers:
        new = _values(_in_front(insertion), word)
        new = jnp.moveaxis(new, 0, insertion.axis).reshape(insertion.shape)
    else:
        new = _values(insertion, word)
    if source is None or not insertion.layers:
        return new
    return scaled(insertion, stacked(insertion, source, new))


def scaled(insertion: Insertion, array: Array) -> Array:
    """Returns an array of old values, multiplied as an insertion says."""
    if not insertion.scales:
        return array
    each = insertion.shape[insertion.axis] // len(insertion.scales) if insertion.layers else 1
    scales = jnp.repeat(jnp.asarray(insertion.scales, jnp.float32), each)
    if insertion.layers:
        others = [axis for axis in range(array.ndim) if axis != insertion.axis]
        scales = jnp.expand_dims(scales, others)
    else:
        scales = scales[0]
    wide = jnp.promote_types(array.dtype, jnp.float32)
    product: Array = (array.astype(wide) * scales.astype(wide)).astype(array.dtype)
    return product


def _in_front(insertion: Insertion) -> Insertion:
    """Returns an insertion into the same array with a first axis that counts the layers."""
    shape, layers = list(insertion.shape), len(insertion.layers)
    each = shape[insertion.axis] // layers
    shape[insertion.axis : insertion.axis + 1] = [each] if each > 1 else []
    return replace(insertion, shape=(layers, *shape), axis=0)


def _experts(insertion: Insertion, old: Array, word: Array | None) -> Array:
    """Returns an array repeated for each expert, with the hidden units that are drawn anew."""
    new = jnp.broadcast_to(old, insertion.shape)
    if not insertion.anew or word is None:
        return new
    wide = old.astype(jnp.promote_types(old.dtype, jnp.float32))
    drawn = uniform(next(seeds(word)), insertion.shape, wide.dtype, math.sqrt(3))
    drawn = jnp.mean(wide) + jnp.std(wide) * drawn
    return jnp.where(drawn_anew(insertion), drawn.astype(old.dtype), new)


def _values(insertion: Insertion, word: Array | None) -> Array:
    """Returns the values of a new array, or of the new entries of a stack."""
    shape, dtype = insertion.shape, dtype_named(insertion.dtype)
    layer = shape[1:] if insertion.layers else shape
    if insertion.fill == "identity":
        return jnp.broadcast_to(identity(layer, insertion.axes).astype(dtype), shape)
    if insertion.fill == "free" and insertion.kind == "random" and word is not None:
        if jnp.issubdtype(dtype, jax.dtypes.prng_key):
            return random_keys(word, shape, dtype)
        limit = math.sqrt(6 / sum(insertion.fans))
        drawn: Array = uniform(next(seeds(word)), shape, dtype, limit)
        return drawn
    if insertion.values:
        return jnp.broadcast_to(jnp.asarray(insertion.values, dtype).reshape(layer), shape)
    value = {"zeros": 0.0, "ones": 1.0}.get(insertion.kind, 0.0)
    return jnp.full(shape, insertion.value if insertion.fill == "constant" else value, dtype)


def identity(shape: tuple[int, ...], axes: tuple[int, int]) -> Array:
    """Returns where a kernel that passes on its input is one."""
    contracted, produced = axes
    places = [lax.broadcasted_iota(jnp.int32, shape, axis) for axis in range(len(shape))]
    # In a grouped convolution each group counts its input channels from 0.
    mask = places[contracted] == places[produced] % shape[contracted]
    for axis, place in enumerate(places):
        if axis not in axes:
            mask &= place == (shape[axis] - 1) // 2
    return mask


def stacked(insertion: Insertion, old: Array, new: Array) -> Array:
    """Returns old layers with new ones between or behind them."""
    axis = insertion.axis
    if not old.shape[axis]:  # the network had no layers
        return jnp.broadcast_to(new, insertion.shape).astype(old.dtype)
    if insertion.fill == "copy" and insertion.copies:
        return jnp.take(old, jnp.asarray(insertion.copies), axis)
    # A new layer (-1) takes the place of the old layer before it: the largest index so far.
    rows = list(itertools.accumulate(insertion.layers, max, initial=0))[1:]
    shape, each = list(old.shape), insertion.shape[axis] // len(rows)
    if each > 1:
        old = old.reshape(*shape[:axis], shape[axis] // each, each, *shape[axis + 1 :])
    stack = jnp.moveaxis(repeated(jnp.moveaxis(old, axis, 0), rows), 0, axis)
    stack = stack.reshape(insertion.shape) if each > 1 else stack
    if insertion.fill == "copy":
        return stack
    is_old = jnp.asarray(insertion.entries) >= 0
    is_old = jnp.expand_dims(is_old, [a for a in range(stack.ndim) if a != axis])
    return jnp.where(is_old, stack, new.astype(stack.dtype))
