"""Find equal units, and measure activities of units: ``find_symmetric``, ``activity``."""

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from dogwood_jax._base.arguments import (
    FUNCTION,
    VARIABLES,
    WIDTH,
    WIDTHS,
    expect,
    expect_arrays,
    expect_call,
    expect_values,
    takes_inputs,
)
from dogwood_jax._base.problems import listed
from dogwood_jax._base.trees import PyTree, is_traced, leaves_by_path, rebuilt
from dogwood_jax._widths.layout import Layout, size_of, units_along
from dogwood_jax._widths.widths import Width, Widths


def find_symmetric(
    variables: PyTree, width: Width, *, tolerance: float = 1e-6, outgoing: bool = True
) -> tuple[tuple[int, ...], ...]:
    """Finds groups of units that no training step can make different.

    Units are symmetric if all their weights agree: incoming weights, biases *and* outgoing
    weights. They compute the same function and receive the same gradient, so a deterministic
    optimizer keeps them equal. The number of *different* units is
    ``width.size - sum(len(group) - 1 for group in groups)``.

    Args:
        variables: pytree of the network's arrays.
        width: the width whose units are compared, from ``trace`` or ``chain``.
        tolerance: a unit joins a group if ``|b - a| <= tolerance * (1 + |a|)`` holds for each of
            its weights b and the weights a of the group's first unit. Weights that are not finite
            agree with no other weights.
        outgoing: whether outgoing weights must agree, too. If not, units of a group compute the
            same function, but training may make them different. ``merge_symmetric`` merges such
            units.

    Returns:
        The groups of two or more units, each in ascending order, ordered by their first unit.

    Raises:
        TypeError: if arguments are of the wrong kind or swapped.
        ValueError: if an array of the width is missing or has another size along it, or the
            tolerance is negative.

    Example:
        >>> import jax.numpy as jnp
        >>> import dogwood_jax as dw
        >>> params = {
        ...     "up": {"kernel": jnp.array([[1.0, 2.0, 1.0]]), "bias": jnp.zeros(3)},
        ...     "down": {"kernel": jnp.array([[3.0], [4.0], [3.0]])},
        ... }
        >>> dw.find_symmetric(params, dw.chain(params, ("up", "down"))["up"])
        ((0, 2),)
    """
    expect_width("find_symmetric", variables, width, tolerance)
    groups: dict[int, list[int]] = {}
    roles = ("incoming", "outgoing", "both") if outgoing else ("incoming", "both")
    for unit, first in enumerate(_firsts(weights_of(variables, width, roles), tolerance)):
        groups.setdefault(int(first), []).append(unit)
    return tuple(tuple(group) for group in groups.values() if len(group) > 1)


@takes_inputs
def activity(
    apply: Callable[..., Any], variables: PyTree, widths: Widths, *inputs: Any
) -> dict[str, jax.Array]:
    """Measures how much each unit contributes to a network's outputs.

    The contribution of a unit is the derivative of the outputs by a factor on all its outgoing
    weights. If all later operations are linear, silencing the unit changes outputs by this amount.

    Args:
        apply: the function of variables and inputs that was traced.
        variables: pytree of the network's arrays.
        widths: its widths, from ``trace`` or ``chain``.
        *inputs: a batch of inputs.

    Returns:
        By name of the width, the root mean square of the contribution over all floating-point
        outputs, ``[units]``. Left out are widths that are fixed, are dimensions of inputs or
        outputs, or have no outgoing weights.

    Raises:
        TypeError: if arguments are of the wrong kind or swapped.
        ValueError: if the variables are of another network.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import dogwood_jax as dw
        >>> apply = lambda params, x: jax.nn.relu(x @ params["up"]) @ params["down"]
        >>> params = {"up": jnp.ones((1, 2)), "down": jnp.array([[3.0], [4.0]])}
        >>> x = jnp.ones((5, 1))
        >>> dw.activity(apply, params, dw.trace(apply, params, x), x)["up"].tolist()
        [3.0, 4.0]
    """
    expect(
        "activity(apply, variables, widths, *inputs)",
        apply=(FUNCTION, apply),
        variables=(VARIABLES, variables),
        widths=(WIDTHS, widths),
    )
    expect_call("activity", "apply", apply, variables, *inputs)
    units = hidden(widths)
    expect_arrays_of("activity", variables, units)
    return {width.name: _activity(apply, variables, width, *inputs) for width in units}


def hidden(widths: Widths) -> list[Width]:
    """Returns the widths that may change and have outgoing weights."""
    return [
        width
        for width in widths.values()
        if not (width.fixed or width.interface)
        if any(place.role in ("outgoing", "both") for place in width.occurrences)
    ]


def _activity(
    apply: Callable[..., Any], variables: PyTree, width: Width, *inputs: Any
) -> jax.Array:
    places = _places(width)
    outputs, arrays = as_function_of(apply, variables, {path for path, _, _ in places})

    def contribution(unit: jax.Array) -> jax.Array:
        tangents: dict[str, Any] = {}
        for path, axis, layout in places:
            leaf = arrays[path]
            units = jnp.asarray(units_along(layout, width.name, ("outgoing", "both")))
            mine = jnp.expand_dims(units == unit, [a for a in range(leaf.ndim) if a != axis])
            tangents[path] = tangents.get(path, 0) + jnp.where(mine, leaf, 0)
        _, change = jax.jvp(lambda arrays: outputs(arrays, *inputs), (arrays,), (tangents,))
        squares = [jnp.sum(jnp.abs(c) ** 2) for c in change]
        return jnp.sqrt(sum(squares) / sum(c.size for c in change))

    measured: jax.Array = jax.lax.map(contribution, jnp.arange(width.size))
    return measured


def as_function_of(
    apply: Callable[..., Any], variables: PyTree, paths: Iterable[str]
) -> tuple[Callable[..., list[jax.Array]], dict[str, jax.Array]]:
    """Returns a function from some arrays and the inputs to floating outputs, and the arrays."""
    leaves, structure = leaves_by_path(variables), jax.tree.structure(variables)

    def outputs(arrays: Mapping[str, jax.Array], *inputs: Any) -> list[jax.Array]:
        results = jax.tree.leaves(apply(rebuilt(structure, {**leaves, **arrays}), *inputs))
        return [r for r in results if jnp.issubdtype(jnp.result_type(r), jnp.inexact)]

    return outputs, {path: jnp.asarray(leaves[path]) for path in sorted(paths)}


def expect_width(caller: str, variables: Any, width: Any, tolerance: Any) -> None:
    """Raises if variables or width are of the wrong kind, or do not belong together."""
    call = f"{caller}(variables, width)"
    expect(call, variables=(VARIABLES, variables), width=(WIDTH, width))
    if not (isinstance(tolerance, int | float | np.number) and tolerance >= 0):
        raise ValueError(f"tolerance must be zero or positive, got {tolerance!r}")
    expect_values(call, leaves_by_path(variables), "pass trained weights")
    expect_arrays_of(caller, variables, [width])


def expect_arrays_of(
    caller: str, variables: PyTree, widths: Iterable[Width], way_out: str = "trace again"
) -> None:
    """Raises if an array of some widths is missing, or has another size along them."""
    leaves = leaves_by_path(variables)
    known = {path: None for width in widths for path, _, _ in _places(width)}
    expect_arrays(caller, "variables", variables, leaves, known)
    problems: dict[str, list[str]] = {}
    for width in widths:
        for path, axis, layout in _places(width):
            if path not in leaves:
                problems.setdefault(f"{path}: missing", []).append(width.name)
            elif np.shape(leaves[path])[axis : axis + 1] != (size_of(layout),):
                problem = (
                    f"{path}: has shape {np.shape(leaves[path])}, expected {size_of(layout)} along "
                    f"axis {axis}"
                )
                problems.setdefault(problem, []).append(width.name)
    if problems:
        names = ", ".join(dict.fromkeys(name for of in problems.values() for name in of))
        raise ValueError(
            listed(
                f"{caller}: these are not the variables in which {names} "
                f"{'were' if ', ' in names else 'was'} found; {way_out}",
                list(problems),
            )
        )


def _places(width: Width) -> list[tuple[str, int, Layout]]:
    """Returns the axes along which a width lies, each once even if it has units in both roles."""
    return list(dict.fromkeys((o.path, o.axis, o.layout) for o in width.occurrences))


def _firsts(rows: np.ndarray, tolerance: float) -> np.ndarray:
    """Returns for each row the first row that it agrees with, or itself if there is none.

    Only rows with close sketches are compared in full. A sketch holds weighted sums of blocks of a
    row. If two rows agree, their sketches differ by no more than a bound.
    """
    units, weights = rows.shape
    firsts = np.arange(units)
    if not units:
        return firsts
    largest = np.maximum(rows.max(axis=1), -rows.min(axis=1))
    if not np.isfinite(largest).all():
        finite = np.flatnonzero(np.isfinite(largest))
        firsts[finite] = finite[_firsts(rows[finite], tolerance)]
        return firsts
    # Any fixed blocks and factors work; random ones prevent differences from cancelling.
    rng = np.random.default_rng(0)
    blocks = np.zeros((weights, 32))
    blocks[np.arange(weights), rng.permutation(weights) % 32] = rng.uniform(1, 2, weights)
    sketch = rows @ blocks
    rounding = weights * np.finfo(rows.dtype).eps
    bound = (tolerance + rounding) * np.outer(1 + largest, blocks.sum(axis=0) + 1)

    # Sort by the sum that separates units best: units within reach of a unit are its neighbours.
    best = np.argmax(np.ptp(sketch, axis=0) / bound.max(axis=0))
    sums, reach = sketch[:, best], bound[:, best].max()
    order = np.argsort(sums)
    low = np.searchsorted(sums[order], sums - reach, "left")
    high = np.searchsorted(sums[order], sums + reach, "right")
    is_first = np.zeros(units, bool)
    for unit in range(units):
        near = order[low[unit] : high[unit]]
        near = near[is_first[near]]
        near = near[np.all(np.abs(sketch[near] - sketch[unit]) <= bound[near], axis=1)]
        for first in np.sort(near):
            if np.all(np.abs(rows[unit] - rows[first]) <= tolerance * (1 + np.abs(rows[first]))):
                firsts[unit] = first
                break
        else:
            is_first[unit] = True
    return firsts


def _values(path: str, array: Any) -> np.ndarray:
    """Returns the values of an array, which may span several processes."""
    if is_traced(array):
        raise TypeError(
            f"{path}: jit hides its values, which decide about units; choose units outside of jit, "
            "and call grow(variables, growth) inside"
        )
    if getattr(array, "is_fully_addressable", True):
        return np.asarray(array)
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def weights_of(
    variables: PyTree, width: Width, roles: Collection[str] = ("incoming", "outgoing", "both")
) -> np.ndarray:
    """Returns all weights of each unit as a row of a matrix ``[units, weights]``, in float64."""
    leaves = leaves_by_path(variables)
    columns = [np.zeros((width.size, 0))]
    for path, axis, layout in _places(width):
        array = _values(path, leaves[path])
        if np.iscomplexobj(array):
            array = np.stack([array.real, array.imag], axis=-1)
        units = units_along(layout, width.name, roles)
        # Sorted by unit: all units have equally many positions along the axis.
        order = np.argsort(units, kind="stable")[np.count_nonzero(units < 0) :]
        rows = np.moveaxis(array.astype(np.float64), axis, 0)[order]
        columns.append(rows.reshape(width.size, rows.size // max(width.size, 1)))
    return np.concatenate(columns, axis=1)
