"""Find units that can be removed without changing outputs: ``find_dead``."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from dogwood_jax._base.arguments import VARIABLES, WIDTHS, ArgumentKind, expect
from dogwood_jax._base.trees import PyTree, in_order_of, leaves_by_path, rebuilt
from dogwood_jax._check.evaluate import widened
from dogwood_jax._front.plan import plan
from dogwood_jax._front.smaller.constant_units import moves_constants, with_constants_folded
from dogwood_jax._front.smaller.removal import Removal
from dogwood_jax._front.smaller.symmetry import expect_width, weights_of
from dogwood_jax._growth.growth import Growth
from dogwood_jax._plan.silence import heard, silenced
from dogwood_jax._widths.layout import units_along
from dogwood_jax._widths.widths import Width, Widths

_NOT_SHOWN = (
    "find_dead: units of {} have zero weights, but widths from a file hold no program that shows "
    "whether a norm or another output reads them; trace the network"
)
_NAME = ArgumentKind("the name of a width", lambda value: isinstance(value, str))
# Size of units relative to the largest other unit, to test if outputs depend on them.
_FACTORS = (10.0, -10.0)


def find_dead(
    variables: PyTree, width: Width | Widths, name: str | None = None, *, tolerance: float = 0.0
) -> tuple[int, ...]:
    """Finds units that ``narrow`` can remove without changing what the network computes.

    A unit may be dead in two cases. If all its outgoing weights are zero, nothing reads it. If all
    its incoming weights except biases are zero, it is constant; then the layers that read it need
    biases that take over its effect. Weights to dead units count like other weights. So a unit that
    only dead units read is found only after these are removed.

    Such a unit is not dead if anything else reads it: a norm, a softmax or a maximum over the
    units, a product of units with units, another output, or an operation that depends on the index
    of a unit. So the network is evaluated with its weights and random inputs, with and without the
    units, and also with larger values of these units. The result contains units that can be removed
    together without moving any output beyond rounding; at least one unit is left. If weights and
    intermediate values of the network, for the traced inputs, have more than ten million entries, a
    reduced model is evaluated instead. For widths from a file the result is empty, because they
    hold no program.

    Args:
        variables: pytree of the network's arrays.
        width: the width whose units are checked, from ``trace`` or ``chain``; or all widths.
        name: the name of the width, if all widths are passed.
        tolerance: the largest magnitude that counts as zero.

    Returns:
        The units, in ascending order.

    Raises:
        TypeError: if arguments are of the wrong kind or swapped.
        KeyError: if there is no width of this name.
        ValueError: if an array of the width is missing or has another size along it, or the
            tolerance is negative.

    Warns:
        UserWarning: if units of widths from a file may be dead, which cannot be checked.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import dogwood_jax as dw
        >>> def apply(params, x):
        ...     return jax.nn.relu(x @ params["up"]) @ params["down"]
        >>> def normed(params, x):
        ...     return jax.nn.softmax(x @ params["up"]) @ params["down"]
        >>> params = {"up": jnp.ones((1, 3)), "down": jnp.array([[3.0], [0.0], [4.0]])}
        >>> x = jnp.ones((5, 1))
        >>> dw.find_dead(params, dw.trace(apply, params, x)["up"])
        (1,)
        >>> dw.find_dead(params, dw.trace(apply, params, x), "up")
        (1,)
        >>> dw.find_dead(params, dw.trace(normed, params, x), "up")
        ()
    """
    if name is not None:
        expect(
            "find_dead(variables, widths, name)",
            variables=(VARIABLES, variables),
            widths=(WIDTHS, width),
            name=(_NAME, name),
        )
        assert isinstance(width, Widths)
        width = width[name]
    expect_width("find_dead", variables, width, tolerance)
    assert isinstance(width, Width)
    widths = Widths((), (), is_saved=True) if width.whole is None else width.whole
    try:
        return _without_change(variables, widths, width, tolerance)
    except _NotEvaluated:
        found = _unseen(variables, widths, width, tolerance)
    if found and widths.is_saved:
        warnings.warn(_NOT_SHOWN.format(width.name), stacklevel=2)
        return ()
    return found


# By zero weights ---------------------------------------------------------------------------------


def _unseen(variables: PyTree, widths: Widths, width: Width, tolerance: float) -> tuple[int, ...]:
    """Returns units that nothing reads or that biases replace, unless outputs depend on them."""
    if width.fixed or width.interface or heard(widths, [width.name]):
        return ()
    unread, constant = _idle(variables, width, tolerance)
    moves = constant.any() and moves_constants(widths, width.name)
    return tuple(np.flatnonzero(unread | (constant & moves)).tolist())


def _idle(variables: PyTree, width: Width, tolerance: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns which units nothing reads, and which units only biases feed: ``[units]``."""
    leaves = leaves_by_path(variables)
    fed = tuple(
        place
        for place in width.occurrences
        if place.role == "incoming" and len(np.shape(leaves[place.path])) > 1
    )
    several = (
        weights_of(variables, width, ("outgoing", "both")),
        weights_of(variables, replace(width, occurrences=fed), ("incoming",)),
    )
    # If there is no such weight, as for an input or output, nothing is known.
    unread, constant = (
        (np.abs(rows) <= tolerance).all(axis=1) & (rows.shape[1] > 0) for rows in several
    )
    return unread, constant


# By evaluation ------------------------------------------------------------------------------------


class _NotEvaluated(Exception):
    """The network cannot be evaluated with and without units."""


def _without_change(
    variables: PyTree, widths: Widths, width: Width, tolerance: float
) -> tuple[int, ...]:
    """Returns units that can be removed together without moving an output.

    Raises:
        _NotEvaluated: if the network cannot be evaluated.
    """
    unread, constant = _idle(
        variables, silenced(widths, [width.name], widths)[width.name], tolerance
    )
    candidates = np.flatnonzero(unread | constant).tolist()
    if not candidates or width.fixed or width.interface:
        return ()
    variables = _with_zeros(variables, width, tolerance)
    removal = Removal(widths)

    def moved(growth: Growth, variables: PyTree) -> float | None:
        return removal.moved(variables, with_constants_folded(variables, growth), growth)

    def can_go(units: Sequence[int]) -> bool:
        keep = sorted({*range(width.size)} - {*units})
        if not keep:
            return False
        try:
            growth = plan(widths, keep={width.name: keep})
        except ValueError:  # narrow would refuse these units, too
            return False
        share = moved(growth, variables)
        if share is None:
            raise _NotEvaluated
        louder = (_louder(variables, widths, width, units, factor) for factor in _FACTORS)
        return share == 0 and not any(moved(growth, values) for values in louder)

    return tuple(sorted(_together(can_go, (), candidates)))


def _together(
    can_go: Callable[[Sequence[int]], bool], gone: Sequence[int], units: Sequence[int]
) -> Sequence[int]:
    """Returns the units that are gone and more that can go with them, by bisection."""
    if not units:
        return gone
    if can_go([*gone, *units]):
        return [*gone, *units]
    if len(units) == 1:
        return gone
    middle = len(units) // 2
    for half in (units[:middle], units[middle:]):
        gone = _together(can_go, gone, half)
    return gone


def _with_zeros(variables: PyTree, width: Width, tolerance: float) -> PyTree:
    """Returns the variables with the width's weights below the tolerance set to zero."""
    leaves = leaves_by_path(variables)
    for path in {place.path for place in width.occurrences} if tolerance else ():
        array = leaves[path]
        if np.ndim(array) > 1:
            leaves[path] = np.where(np.abs(array) <= tolerance, 0, array).astype(array.dtype)
    return in_order_of(variables, rebuilt(jax.tree.structure(variables), leaves))


def _louder(
    variables: PyTree, widths: Widths, width: Width, units: Sequence[int], factor: float
) -> PyTree:
    """Returns the variables with some units scaled to be much larger than others; zeros stay zeros.

    If a unit can be removed, its size does not matter. A maximum over many units depends on a unit
    only if it is the largest, which is rare for random inputs.
    """
    leaves = leaves_by_path(variables)
    for place in width.occurrences:
        array = leaves[place.path]
        fed = np.ndim(array) > 1 or widths.leaf(place.path).kind == "zeros"
        if place.role == "incoming" and fed and jnp.issubdtype(array.dtype, jnp.inexact):
            rows = np.moveaxis(np.asarray(widened(array)), place.axis, 0)
            mine = np.isin(units_along(place.layout, width.name, ("incoming",)), [*units])
            largest = np.abs(rows).max(axis=tuple(range(1, rows.ndim)), keepdims=True)
            mine = mine.reshape(largest.shape) & (largest > 0)
            scale = factor * largest.max(initial=0) / np.where(mine, largest, 1)
            rows = np.where(mine, rows * scale, rows)
            leaves[place.path] = np.moveaxis(rows, 0, place.axis).astype(array.dtype)
    return in_order_of(variables, rebuilt(jax.tree.structure(variables), leaves))
