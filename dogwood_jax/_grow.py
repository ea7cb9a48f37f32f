"""Grow the arrays: ``grow``.

Every axis of an array is taken apart into the widths it is made of (a product is reshaped, a
concatenation split), each width is extended along an axis of its own, and the axis is put back
together. Extending a width is a pad or a concatenation; only strategies that copy units gather.
"""

import functools
import itertools
from collections.abc import Iterator, Mapping
from itertools import accumulate
from math import prod, sqrt
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from dogwood_jax._layout import Concat, Layout, Product, Units, size_of, units_of
from dogwood_jax._plan import Change, Growth
from dogwood_jax._random import seeds, uniform
from dogwood_jax._tree import PyTree, in_order_of, is_array, leaves_by_path
from dogwood_jax._widths import Leaf
from dogwood_jax.strategies import glorot


def grow(
    variables: PyTree, growth: Growth, *, key: Array | None = None, fresh: PyTree = None
) -> PyTree:
    """Grows variables as planned.

    Old units keep their values and places and new units are appended; with a preserving strategy
    the grown network computes what the old one did. Arrays in which nothing grows are passed
    through as they are.

    Args:
        variables: pytree of the arrays the growth was planned for, of any floating dtype, on any
            devices; also under ``jax.jit`` and ``jax.eval_shape``.
        growth: from ``plan``; static under ``jax.jit``.
        key: PRNG key for random weights, needed only if the strategy draws some.
        fresh: variables of the larger model from its own initialization. Free weights are taken
            from it instead of being drawn, and the result has its tree structure. Donate it to
            ``jax.jit`` to have the old values written into it in place.

    Returns:
        The variables of the larger model, with the dtypes of the old ones.

    Raises:
        ValueError: if the variables or ``fresh`` do not have the shapes of the growth, an array
            that grows is not of a floating dtype, or the strategy draws random weights and there
            is neither ``key`` nor ``fresh``.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import dogwood_jax as dw
        >>> layer = lambda i, o: {"kernel": jnp.ones((i, o)), "bias": jnp.ones(o)}
        >>> params = {"up": layer(4, 8), "down": layer(8, 2)}
        >>> growth = dw.plan(dw.chain(params, ("up", "down")), {"up": 16})
        >>> jax.tree.map(jnp.shape, dw.grow(params, growth, key=jax.random.key(0)))["down"]
        {'bias': (2,), 'kernel': (16, 2)}
    """
    leaves = leaves_by_path(variables)
    new = None if fresh is None else leaves_by_path(fresh)
    _check(leaves, growth, key, new)
    growing = [leaf.path for leaf in growth.widths.leaves if _grows(leaf, growth)]
    grown = leaves | _grow_leaves(
        {path: leaves[path] for path in growing},
        growth,
        key,
        None if new is None else {path: new[path] for path in growing},
    )
    if fresh is not None:
        return _rebuilt(jax.tree.structure(fresh), grown)
    if growth.structure is not None:
        return _rebuilt(growth.structure, grown)
    tree = jax.tree.unflatten(jax.tree.structure(variables), [grown[path] for path in leaves])
    return in_order_of(variables, tree)


def _grows(leaf: Leaf, growth: Growth) -> bool:
    return growth.shapes[leaf.path] != leaf.shape


def _rebuilt(structure: Any, leaves: Mapping[str, Any]) -> PyTree:
    """Returns a tree of another structure with the leaves that have the same paths."""
    numbered = jax.tree.unflatten(structure, range(structure.num_leaves))
    return jax.tree.unflatten(structure, [leaves[path] for path in leaves_by_path(numbered)])


def _check(
    leaves: Mapping[str, Any], growth: Growth, key: Array | None, fresh: Mapping[str, Any] | None
) -> None:
    """Raises one error that lists everything wrong with the arguments of ``grow``."""
    problems = []
    for leaf in growth.widths.leaves:
        if leaf.path not in leaves:
            problems.append(f"{leaf.path}: missing; the growth was planned for {leaf.shape}")
            continue
        array = leaves[leaf.path]
        if jnp.shape(array) != leaf.shape:
            problems.append(
                f"{leaf.path}: has shape {jnp.shape(array)}, but the growth was planned for "
                f"{leaf.shape}; plan again for these variables"
            )
        elif _grows(leaf, growth):
            dtype = jnp.result_type(array) if not hasattr(array, "dtype") else array.dtype
            if not jnp.issubdtype(dtype, jnp.inexact):
                problems.append(
                    f"{leaf.path}: grows, so it must be of a floating dtype, not {dtype}"
                )
            elif jax.dtypes.canonicalize_dtype(dtype) != dtype:
                problems.append(
                    f"{leaf.path}: is {dtype}, which JAX would cut short; "
                    "set jax.config.update('jax_enable_x64', True) first"
                )
            if key is None and fresh is None and _draws(leaf, growth):
                problems.append(f"{leaf.path}: gets random new weights; pass key= or fresh=")
    if fresh is not None:
        leaves, fresh = (
            {path: leaf for path, leaf in tree.items() if is_array(leaf)}
            for tree in (leaves, fresh)
        )
        expected = {path: jnp.shape(array) for path, array in leaves.items()} | growth.shapes
        problems += [f"{path}: not in fresh" for path in leaves if path not in fresh]
        problems += [f"{path}: only in fresh" for path in fresh if path not in leaves]
        problems += [
            f"{path}: has shape {jnp.shape(array)} in fresh, but grows to {expected[path]}"
            for path, array in fresh.items()
            if path in expected and jnp.shape(array) != expected[path]
        ]
    if problems:
        raise ValueError("cannot grow these variables:\n" + "\n".join(f"- {p}" for p in problems))


def _draws(leaf: Leaf, growth: Growth) -> bool:
    """Whether the growth of an array needs random numbers."""
    for units in {units for layout in leaf.axes for units in units_of(layout)}:
        change = growth.change.get(units.width)
        if change is not None and units.role == "incoming" and change.strategy.noise:
            return True
        if change is not None and _fate(change, units) == "free" and leaf.kind == "random":
            return True
    return False


def _fate(change: Change, units: Units) -> str:
    """What becomes of a new unit's entries in an array where it has this role."""
    strategy = change.strategy
    return strategy.incoming if units.role == "incoming" else strategy.outgoing


@functools.partial(jax.jit, static_argnames="growth")
def _grow_leaves(
    leaves: dict[str, Array],
    growth: Growth,
    key: Array | None,
    fresh: dict[str, Array] | None,
) -> dict[str, Array]:
    # One call for all arrays: compiling JAX's generator takes longer than the rest.
    words = None if key is None else jax.random.bits(key, (len(leaves), 2), jnp.uint32)
    grown = {}
    for index, leaf in enumerate(leaf for leaf in growth.widths.leaves if leaf.path in leaves):
        old = leaves[leaf.path]
        extension = _Extension(leaf, growth, old.dtype)
        if key is not None and words is not None:
            extension.seeds = seeds(words[index])
            extension.keys = (jax.random.fold_in(key, i) for i in itertools.count(index * 1024))
        new = extension.initialized() if fresh is None else fresh[leaf.path].astype(old.dtype)
        grown[leaf.path] = extension.extend(old, leaf.axes, new)
    return grown


class _Extension:
    """Extends one array; holds what every part of it needs."""

    def __init__(self, leaf: Leaf, growth: Growth, dtype: Any) -> None:
        self.leaf = leaf
        self.change = growth.change
        self.shape = growth.shapes[leaf.path]
        self.sizes = {change.width: change.new for change in growth.changes}
        self.dtype = dtype
        # Left empty without a key: ``grow`` has checked that none is needed then.
        self.seeds: Iterator[Array] = iter(())
        self.keys: Iterator[Array] = iter(())

    def initialized(self) -> Array | None:
        """Returns the whole new array from the strategy's initializer, or None to draw parts."""
        changes = [
            self.change[u.width]
            for layout in self.leaf.axes
            for u in units_of(layout)
            if u.width in self.change
        ]
        inits = [c.strategy.init for c in changes if c.strategy.init not in (None, glorot)]
        if not inits or self.leaf.kind != "random":
            return None
        # Initializers want two axes at least; a vector is one row of a kernel.
        shape = self.shape if len(self.shape) > 1 else (1, *self.shape)
        return inits[0](next(self.keys), shape, self.dtype).reshape(self.shape)

    def extend(self, old: Array, axes: tuple[Layout, ...], fresh: Array | None) -> Array:
        """Returns the array with every width of its axes extended.

        Args:
            old: a part of the old array.
            axes: the layout of each of its axes.
            fresh: the same part of the larger model's array, or None to draw free entries.
        """
        for axis, layout in enumerate(axes):
            if isinstance(layout, Concat) and self._grows(layout):
                return self._extend_parts(old, axes, axis, layout, fresh)
        if any(isinstance(layout, Product) and self._grows(layout) for layout in axes):
            return self._extend_factors(old, axes, fresh)
        return self._extend_units(old, axes, fresh)

    def _grows(self, layout: Layout) -> bool:
        return any(units.width in self.change for units in units_of(layout))

    def _extend_parts(
        self,
        old: Array,
        axes: tuple[Layout, ...],
        axis: int,
        layout: Concat,
        fresh: Array | None,
    ) -> Array:
        """Extends the parts of a concatenated axis one by one."""
        starts = [0, *accumulate(size_of(part) for part in layout.parts)]
        new_starts = [0, *accumulate(size_of(part, self.sizes) for part in layout.parts)]
        parts = []
        for i, part in enumerate(layout.parts):
            old_part = lax.slice_in_dim(old, starts[i], starts[i + 1], axis=axis)
            new_part = None
            if fresh is not None:
                new_part = lax.slice_in_dim(fresh, new_starts[i], new_starts[i + 1], axis=axis)
            layouts = (*axes[:axis], part, *axes[axis + 1 :])
            parts.append(self.extend(old_part, layouts, new_part))
        return lax.concatenate(parts, axis)

    def _extend_factors(self, old: Array, axes: tuple[Layout, ...], fresh: Array | None) -> Array:
        """Extends the factors of product axes, each on an axis of its own."""
        factors: list[Layout] = []
        for layout in axes:
            exposed = isinstance(layout, Product) and self._grows(layout)
            factors += layout.parts if exposed else [layout]  # type: ignore[union-attr]
        old = old.reshape([size_of(f) for f in factors])
        if fresh is not None:
            fresh = fresh.reshape([size_of(f, self.sizes) for f in factors])
        new = self.extend(old, tuple(factors), fresh)
        return new.reshape([size_of(layout, self.sizes) for layout in axes])

    def _extend_units(self, old: Array, axes: tuple[Layout, ...], fresh: Array | None) -> Array:
        """Extends axes that are a single width each."""
        appended: list[tuple[int, int, bool, Change]] = []
        copied: list[tuple[str, int, Change]] = []
        for axis, layout in enumerate(axes):
            if isinstance(layout, Units) and (change := self.change.get(layout.width)):
                fate = _fate(change, layout)
                if fate in ("copy", "share"):
                    copied.append((fate, axis, change))
                else:
                    # What is appended last decides about entries that are new on several sides:
                    # weights into a new unit are free, even from other new units.
                    last = 1 if layout.role != "incoming" else 2 if layout.produced else 0
                    appended.append((last, axis, fate == "free", change))
        appended.sort(key=lambda append: (append[0], append[2]))
        order = [(axis, change, free) for _, axis, free, change in appended]
        array = self._append(old, order) if fresh is None else self._append_from(fresh, old, order)
        for fate, axis, change in copied:
            copy = self._share if fate == "share" else self._copy
            array = copy(array, axis, change)
        return array

    def _append(self, old: Array, appended: list[tuple[int, Change, bool]]) -> Array:
        """Appends entries along axes one after another, zeros or free ones."""
        padding = [(0, 0, 0)] * old.ndim
        for axis, change, _ in appended:
            padding[axis] = (0, change.new - change.old, 0)
        array = lax.pad(old, jnp.zeros((), old.dtype), padding)
        extent = list(old.shape)
        for axis, change, free in appended:
            if free:
                block, start = [*extent], [0] * old.ndim
                block[axis], start[axis] = change.new - change.old, change.old
                array = lax.dynamic_update_slice(array, self._draw(tuple(block)), start)
            extent[axis] = change.new
        return array

    def _append_from(
        self, fresh: Array, old: Array, appended: list[tuple[int, Change, bool]]
    ) -> Array:
        """Appends entries along axes one after another, zeros or those of a fresh array."""
        array = old
        for free, group in itertools.groupby(appended, key=lambda append: append[2]):
            extent = list(array.shape)
            for axis, change, _ in group:
                extent[axis] = change.new
            if free:
                whole = lax.slice(fresh, [0] * old.ndim, extent)
                array = lax.dynamic_update_slice(whole, array, [0] * old.ndim)
            else:
                padding = [(0, n - m, 0) for n, m in zip(extent, array.shape, strict=True)]
                array = lax.pad(array, jnp.zeros((), array.dtype), padding)
        return array

    def _draw(self, shape: tuple[int, ...]) -> Array:
        """Returns free entries for a part of the new array."""
        if self.leaf.kind != "random":
            return jnp.full(shape, 0 if self.leaf.kind == "zeros" else 1, self.dtype)
        fan_in, fan_out = (
            prod(self.shape[axis] for axis in axes)
            for axes in (self.leaf.fan_in, self.leaf.fan_out)
        )
        limit = sqrt(6 / (fan_in + fan_out))
        return uniform(next(self.seeds), shape, self.dtype, limit)

    def _share(self, array: Array, axis: int, change: Change) -> Array:
        """Copies outgoing entries, divided among the copies."""
        # Shares in single precision at least: rounded to bfloat16 first, thirds would not add up.
        shares = jnp.asarray(change.shares, jnp.promote_types(array.dtype, jnp.float32))
        shares = shares.reshape([-1 if a == axis else 1 for a in range(array.ndim)])
        copied = jnp.take(array, jnp.asarray(change.sources), axis=axis)
        return (copied * shares).astype(array.dtype)

    def _copy(self, array: Array, axis: int, change: Change) -> Array:
        """Copies incoming entries, with noise if the strategy wants some."""
        copies = jnp.take(array, jnp.asarray(change.copies, int), axis=axis)
        if change.strategy.noise:
            scale = change.strategy.noise * jnp.std(array)
            noise = jax.random.normal(next(self.keys), copies.shape, array.dtype)
            copies = copies + scale.astype(array.dtype) * noise
        return lax.concatenate([array, copies], axis)
