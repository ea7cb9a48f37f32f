"""Moves the effect of constant units into biases: ``with_constants_folded``."""

import functools
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dogwood_jax._base.trees import PyTree, concrete, in_order_of, leaves_by_path, rebuilt
from dogwood_jax._front.smaller.symmetry import as_function_of
from dogwood_jax._growth.growth import Change, Growth
from dogwood_jax._growth.shardings import placement
from dogwood_jax._widths.layout import units_along
from dogwood_jax._widths.widths import Network, Occurrence, Widths


@dataclass(frozen=True)
class Folded:
    """Variables after the effect of constant units was moved into biases.

    Attributes:
        variables: the variables.
        biases: paths of the biases that changed.
        lost: effects that no bias can make up for, a line for each reader.
    """

    variables: PyTree
    biases: frozenset[str] = frozenset()
    lost: tuple[str, ...] = ()


def with_constants_folded(variables: PyTree, growth: Growth) -> Folded:
    """Returns variables in which readers' biases hold the effect of removed constant units."""
    network, leaves = growth.widths.network, leaves_by_path(variables)
    where = placement(leaves, {})
    leaves = where.enter(leaves)
    automatic = rebuilt(jax.tree.structure(variables), leaves)
    constant = {change.width: _constant(leaves, growth.widths, change) for change in growth.changes}
    known = [concrete(units) for units in constant.values()]
    if not any(units is None or units.any() for units in known):
        return Folded(variables)
    readers = [(width, *reader) for width in constant for reader in _readers(growth.widths, width)]
    paths = {path for _, place, bias in readers for path in (place.path, bias) if path is not None}
    gradients = None if network is None else _gradients(automatic, network, paths)
    biased = {change.width: _biased(leaves, growth.widths, change) for change in growth.changes}
    folded, biases, problems = dict(leaves), set[str](), list[str]()
    for width, place, bias in readers:
        rows = jnp.moveaxis(jnp.asarray(leaves[place.path]), place.axis, 0)
        units = units_along(place.layout, width, ("outgoing",))
        goes = constant[width][units] & (units >= 0)
        lost = goes & _any(rows != 0)
        if gradients is not None:
            rows_gradient = jnp.moveaxis(gradients[place.path], place.axis + 1, 1)
            lost &= _any(jnp.any(rows_gradient != 0, axis=0))
            if bias is not None:
                effect, moved = _effect(rows, rows_gradient, gradients[bias], goes)
                folded[bias] = (folded[bias] + effect).astype(leaves[bias].dtype)
                lost &= ~moved
                biases.add(bias)
        else:  # a unit that nothing feeds, not even a bias, is assumed to be zero
            lost &= biased[width][units]
        if (found := concrete(lost)) is not None and found.any():
            why = "it has no bias that could make up for this"
            if network is None:
                why = "only with widths from dw.trace are they moved into its bias"
            problems.append(
                f"{width}: removing the constant units {sorted({*units[found].tolist()})} changes "
                f"what {place.path} reads; {why}"
            )
    folded = where.leave(folded)
    after = rebuilt(jax.tree.structure(variables), folded)
    return Folded(in_order_of(variables, after), frozenset(biases), tuple(problems))


def moves_constants(widths: Widths, width: str) -> bool:
    """Returns whether all readers of a width have biases that constant units can move into."""
    known = widths.network is not None
    return known and all(bias is not None for _, bias in _readers(widths, width))


def _any(marks: jax.Array) -> jax.Array:
    """Returns which rows contain True."""
    return marks.reshape(marks.shape[0], -1).any(axis=1)


def _readers(widths: Widths, width: str) -> list[tuple[Occurrence, str | None]]:
    """Returns where a width is read, each with the bias of the values produced there, or None."""
    readers: list[tuple[Occurrence, str | None]] = []
    for place in widths[width].occurrences:
        if place.role == "outgoing":
            module = place.path.rpartition("/")[0]
            axes = widths.leaf(place.path).axes
            others = axes[: place.axis] + axes[place.axis + 1 :]
            biases = [
                leaf.path
                for leaf in widths.leaves
                if leaf.kind == "zeros" and leaf.path.rpartition("/")[0] == module
                if leaf.axes and leaf.axes == others[-len(leaf.axes) :]
            ]
            readers.append((place, biases[0] if len(biases) == 1 else None))
    return readers


def _constant(leaves: Mapping[str, Any], widths: Widths, change: Change) -> jax.Array:
    """Returns which removed units have no incoming weights: ``[units]``, booleans."""
    fed = [place for place in _incoming(widths, change) if jnp.ndim(leaves[place.path]) > 1]
    goes = np.full(change.old, bool(fed))
    goes[list(change.sources or ())] = False
    return ~_nonzero(leaves, change, fed) & goes


def _biased(leaves: Mapping[str, Any], widths: Widths, change: Change) -> jax.Array:
    """Returns which units have biases: ``[units]``, booleans."""
    places = _incoming(widths, change)
    shifts = [place for place in places if widths.leaf(place.path).kind == "zeros"]
    return _nonzero(leaves, change, shifts)


def _incoming(widths: Widths, change: Change) -> list[Occurrence]:
    return [place for place in widths[change.width].occurrences if place.role == "incoming"]


def _nonzero(leaves: Mapping[str, Any], change: Change, places: Iterable[Occurrence]) -> jax.Array:
    """Returns which units have a nonzero entry in the arrays: ``[units]``, booleans."""
    found = jnp.zeros(change.old, bool)
    for place in places:
        units = units_along(place.layout, change.width, ("incoming",))
        found |= _nonzero_units(leaves[place.path], units, axis=place.axis, count=change.old)
    return found


@functools.partial(jax.jit, static_argnames=("axis", "count"))
def _nonzero_units(array: jax.Array, units: jax.Array, *, axis: int, count: int) -> jax.Array:
    """Returns which of ``count`` units have a nonzero entry; -1 stands for no unit."""
    rows = _any(jnp.moveaxis(array, axis, 0) != 0)
    numbers = jnp.where(units < 0, count, units)
    counts = jax.ops.segment_max(rows.astype(int), numbers, count + 1)
    return counts[:count] > 0


def _gradients(variables: PyTree, network: Network, paths: Collection[str]) -> dict[str, jax.Array]:
    """Returns gradients of random projections of the outputs, stacked over random inputs."""
    outputs, arrays = as_function_of(network.apply, variables, paths)

    def one(key: jax.Array) -> dict[str, jax.Array]:
        inputs = network.random_inputs(key)
        results, pull = jax.vjp(lambda arrays: outputs(arrays, *inputs), arrays)
        keys = jax.random.split(key, len(results))
        cotangents = [
            jax.random.normal(k, r.shape, r.dtype) for k, r in zip(keys, results, strict=True)
        ]
        gradients: dict[str, jax.Array] = pull(cotangents)[0]
        return gradients

    several = [one(jax.random.key(seed)) for seed in range(4)]
    return {path: jnp.stack([gradients[path] for gradients in several]) for path in several[0]}


def _effect(
    rows: jax.Array, rows_gradient: jax.Array, bias_gradient: jax.Array, constant: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns what constant units add to a bias, and which units do.

    A unit of constant value c adds c times its row. The gradient of its row is then c times the
    gradient of the bias, for any input. Units for which this does not hold are not moved.

    Args:
        rows: outgoing weights, ``[units, ..., *bias]``.
        rows_gradient: their gradients for several inputs, ``[inputs, units, ..., *bias]``.
        bias_gradient: the bias's gradients for these inputs, ``[inputs, *bias]``.
        constant: which units are constant and removed, ``[units]``.
    """
    bias = bias_gradient.shape[1:]
    between = rows.shape[1 : rows.ndim - len(bias)]
    shape = (bias_gradient.shape[0], 1, *(1 for _ in between), *bias)
    unit_gradient = bias_gradient.reshape(shape)
    axes = (0, *range(rows_gradient.ndim - len(bias), rows_gradient.ndim))
    norm = jnp.sum(unit_gradient**2)
    value = jnp.sum(rows_gradient * unit_gradient, axes, keepdims=True) / norm
    error = jnp.max(jnp.abs(rows_gradient - value * unit_gradient), axes)
    scale = jnp.max(jnp.abs(value * unit_gradient), axes)
    tolerance = 1e3 * float(jnp.finfo(rows.dtype).eps)  # type: ignore[no-untyped-call]
    fits = (error <= tolerance * scale).all(axis=tuple(range(1, 1 + len(between))))
    moved = constant & fits
    effect = jnp.where(moved.reshape(-1, *(1 for _ in rows.shape[1:])), rows * value[0], 0)
    return jnp.sum(effect, axis=tuple(range(1 + len(between)))), moved
