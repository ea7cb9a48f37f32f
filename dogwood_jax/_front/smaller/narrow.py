"""Fewer units: ``narrow`` removes units, ``merge_symmetric`` merges equal units."""

import warnings
from collections.abc import Mapping, Sequence
from math import isinf, isnan
from typing import Any

import jax

from dogwood_jax._base.arguments import BY_WIDTH, NAMES, VARIABLES, WIDTHS, expect
from dogwood_jax._base.trees import PyTree, in_order_of, leaves_by_path, rebuilt
from dogwood_jax._front.grow import grow
from dogwood_jax._front.plan import plan
from dogwood_jax._front.smaller.constant_units import Folded, with_constants_folded
from dogwood_jax._front.smaller.removal import Removal
from dogwood_jax._front.smaller.symmetry import find_symmetric
from dogwood_jax._growth.explicit_axes import explicit_shardings, with_automatic_axes
from dogwood_jax._growth.grown import expect_network
from dogwood_jax._growth.growth import Growth
from dogwood_jax._widths.widths import Widths


def narrow(
    variables: PyTree, widths: Widths, keep: Mapping[Any, Any], *, interface: bool = False
) -> PyTree:
    """Removes units from a network.

    The network computes the same as before if all removed units are dead, see ``find_dead``. The
    effect of a constant unit is moved into the biases of its readers, if the widths were traced and
    the readers have biases. If other units are removed, outputs lose their contributions, and a
    warning states how far outputs move: the network is evaluated with random inputs before and
    after. There is no warning if this is not possible: under ``jax.jit``, for widths that were not
    traced, if inputs or outputs lose units, or if weights and intermediate values of the network
    have more than ten million entries.

    ``narrow`` undoes a growth by ``zero_outgoing``, bit for bit, if no array was rescaled.

    If an array is sharded, kept units move between devices, as long as they keep their order. If
    ``keep`` changes the order, XLA may make the whole smaller array on each device.

    Args:
        variables: pytree of the network's arrays; also under ``jax.jit``.
        widths: its widths, from ``trace`` or ``chain``.
        keep: by name of the width, or ``(path, axis)``, the units that stay: their indices in their
            new order, or a boolean mask; in a stack, ``[layers, units]`` for different units in
            each layer. By name of numbered layers, the layers that stay, see ``plan``.
        interface: whether units of the network's inputs or outputs may be removed.

    Returns:
        The smaller variables. For the optimizer's state, pass ``plan(widths, keep=keep)`` to
        ``grow_opt_state``.

    Raises:
        TypeError: if arguments are of the wrong kind or swapped.
        ValueError: for unknown widths, widths that cannot change or would lose all their units,
            units that do not exist, and variables of another network.

    Example:
        >>> import jax.numpy as jnp
        >>> import dogwood_jax as dw
        >>> layer = lambda i, o: {"kernel": jnp.ones((i, o)), "bias": jnp.ones(o)}
        >>> params = {"up": layer(4, 3), "down": layer(3, 2)}
        >>> widths = dw.chain(params, ("up", "down"))
        >>> dw.narrow(params, widths, {"up": [0, 2]})["down"]["kernel"].shape
        (2, 2)
    """
    expect(
        "narrow(variables, widths, keep)",
        variables=(VARIABLES, variables),
        widths=(WIDTHS, widths),
        keep=(BY_WIDTH, keep),
    )
    growth = plan(widths, keep=keep, interface=interface)
    expect_network("narrow", variables, leaves_by_path(variables), growth)
    if shardings := explicit_shardings(variables):
        return with_automatic_axes(
            lambda variables: without_units(variables, growth),
            growth.shardings(shardings),
            variables,
        )
    variables, growth = _in_order(variables, growth)
    folded = with_constants_folded(variables, growth)
    share = Removal(widths).moved(variables, folded, growth)
    lost = [*folded.lost]
    if share:
        why = (
            "because layers are removed"
            if growth.layers
            else "because removed units are not dead; dw.find_dead(variables, widths, name) lists "
            "dead units"
        )
        lost = [f"{_in_words(share)}, {why}", *lost]
    if lost and share != 0:
        warnings.warn(f"narrow: {'; '.join(lost)}", stacklevel=2)
    return grow(folded.variables, growth)


def _in_words(share: float) -> str:
    """Returns the text of a warning on how far outputs move."""
    if isnan(share):
        return "outputs are not finite any more"
    if isinf(share):
        return "outputs change"
    return f"outputs move by {100 * share:.3g}% (root mean square, random inputs)"


def without_units(variables: PyTree, growth: Growth) -> PyTree:
    """Returns the smaller variables without measuring how far outputs move."""
    variables, growth = _in_order(variables, growth)
    return grow(with_constants_folded(variables, growth).variables, growth)


def _in_order(variables: PyTree, growth: Growth) -> tuple[PyTree, Growth]:
    """Reorders units if layers lose different units; returns variables and remaining growth."""
    leaves = leaves_by_path(variables)
    for path, several in growth.orders.items():
        for order in several:
            leaves[path] = order.of(leaves[path])
    tree = in_order_of(variables, rebuilt(jax.tree.structure(variables), leaves))
    return tree, growth.in_order


def merge_symmetric(
    variables: PyTree, widths: Widths, names: str | Sequence[str], *, tolerance: float = 1e-6
) -> PyTree:
    """Merges units that compute the same function, adding up their outgoing weights.

    The network computes the same as before, to rounding: the inverse of a growth by ``replicate``.
    The growth is refused if an evaluation with random weights shows that outputs change although
    units are equal, see ``plan(merge=)``. If weights of merged units differ by more than rounding,
    within the tolerance, outputs move, and a warning states how far: the network is evaluated with
    its own weights and random inputs, before and after. There is no warning if this is not
    possible, see ``narrow``, nor for ``growth.after``, which holds no function.

    Args:
        variables: pytree of the network's arrays, with values.
        widths: its widths, from ``trace`` or ``chain``.
        names: name of a width, or names of several widths.
        tolerance: how far weights of equal units may differ, see ``find_symmetric``.

    Returns:
        The smaller variables. For the optimizer's state, pass ``plan(widths, merge=groups)`` to
        ``grow_opt_state``, with the groups of ``find_symmetric(..., outgoing=False)``.

    Raises:
        TypeError: if arguments are of the wrong kind or swapped.
        KeyError: if there is no width with one of the names.
        ValueError: if a width cannot change, weights of its units cannot be added up, or outputs
            would change although units are equal.

    Example:
        >>> import jax.numpy as jnp
        >>> import dogwood_jax as dw
        >>> params = {
        ...     "up": {"kernel": jnp.array([[1.0, 2.0, 1.0]])},
        ...     "down": {"kernel": jnp.array([[3.0], [4.0], [5.0]])},
        ... }
        >>> merged = dw.merge_symmetric(params, dw.chain(params, ("up", "down")), "up")
        >>> merged["down"]["kernel"].tolist()
        [[8.0], [4.0]]
    """
    expect(
        "merge_symmetric(variables, widths, names)",
        variables=(VARIABLES, variables),
        widths=(WIDTHS, widths),
        names=(NAMES, names),
    )
    names = (names,) if isinstance(names, str) else names
    groups = {
        name: find_symmetric(variables, widths[name], tolerance=tolerance, outgoing=False)
        for name in names
    }
    growth = plan(widths, merge=groups)
    if not growth.changes:
        return variables
    expect_network("merge_symmetric", variables, leaves_by_path(variables), growth)
    merged = {place.path for name in names for place in widths[name].occurrences}
    share = Removal(widths).moved(variables, Folded(variables, frozenset(merged)), growth)
    if share:
        warnings.warn(
            f"merge_symmetric: {_in_words(share)}, because merged units are not equal; a smaller "
            "tolerance merges fewer units",
            stacklevel=2,
        )
    return grow(variables, growth)
