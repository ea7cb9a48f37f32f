"""The way back: ``narrow`` removes units, ``merge_symmetric`` folds equal ones into one."""

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

    The network computes the same as before if all removed units are dead, see ``find_dead``. What a
    constant unit adds to its readers is moved into the biases of these. This is possible only if
    the widths were traced and the readers have biases. If other units are removed, the outputs lose
    what they contributed, and a warning says by how much outputs move: the network is evaluated
    with random inputs before and after. Nothing is said where it cannot be evaluated: under
    ``jax.jit``, for widths that were not traced, where inputs or outputs lose units, and if weights
    and values of the network are more than ten million numbers.

    ``narrow`` undoes a growth by ``zero_outgoing``, bit for bit, where no array was rescaled.

    Where an array is divided among devices, kept units move from device to device, if they keep
    their order. If ``keep`` changes the order, XLA may make the whole smaller array on each device.

    Args:
        variables: pytree of the network's arrays; also under ``jax.jit``.
        widths: its widths, from ``trace`` or ``chain``.
        keep: by name of the width, or ``(path, axis)``, the units that stay: their indices in
            their new order, or a boolean mask; in a stack, ``[layers, units]`` for others in each
            layer. By name of numbered layers, the layers that stay,
            see ``plan``.
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
            "because of the layers that go"
            if growth.layers
            else "because units that go are not dead; dw.find_dead(variables, widths, name) lists "
            "those that are"
        )
        lost = [f"{_in_words(share)}, {why}", *lost]
    if lost and share != 0:
        warnings.warn(f"narrow: {'; '.join(lost)}", stacklevel=2)
    return grow(folded.variables, growth)


def _in_words(share: float) -> str:
    """Says by how much outputs move."""
    if isnan(share):
        return "outputs are not finite any more"
    if isinf(share):
        return "outputs become others"
    return f"outputs move by {100 * share:.3g}% (root mean square, random inputs)"


def without_units(variables: PyTree, growth: Growth) -> PyTree:
    """Returns the smaller variables without saying how far outputs move."""
    variables, growth = _in_order(variables, growth)
    return grow(with_constants_folded(variables, growth).variables, growth)


def _in_order(variables: PyTree, growth: Growth) -> tuple[PyTree, Growth]:
    """Returns variables whose units are in order if layers lose other units each; what is left."""
    leaves = leaves_by_path(variables)
    for path, several in growth.orders.items():
        for order in several:
            leaves[path] = order.of(leaves[path])
    tree = in_order_of(variables, rebuilt(jax.tree.structure(variables), leaves))
    return tree, growth.in_order


def merge_symmetric(
    variables: PyTree, widths: Widths, names: str | Sequence[str], *, tolerance: float = 1e-6
) -> PyTree:
    """Folds units that compute the same function into one, adding up their outgoing weights.

    The network computes the same as before, to rounding: the inverse of a growth by ``replicate``.
    ``plan(merge=)`` refuses the growth if an evaluation with random weights shows that the network
    does something else for units that are the same. If weights of units differ by more than
    rounding, within the tolerance, outputs move, and a warning says by how much: the network is
    evaluated with its own weights and random inputs, before and after. Where it cannot be
    evaluated, as ``narrow`` says, nothing is said: also for ``growth.after``, which holds no
    function.

    Args:
        variables: pytree of the network's arrays, with values.
        widths: its widths, from ``trace`` or ``chain``.
        names: name of the width, or names of several.
        tolerance: how far weights of units that count as equal may differ, see ``find_symmetric``.

    Returns:
        The smaller variables. For the optimizer's state, pass ``plan(widths, merge=groups)`` to
        ``grow_opt_state``, with the groups of ``find_symmetric(..., outgoing=False)``.

    Raises:
        TypeError: if arguments are of the wrong kind or swapped.
        KeyError: if there is no width of a name.
        ValueError: if the width cannot change, weights of its units cannot be added up, or outputs
            would change although units are the same.

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
            f"merge_symmetric: {_in_words(share)}, because units that become one are not the same; "
            "a smaller tolerance merges fewer",
            stacklevel=2,
        )
    return grow(variables, growth)
