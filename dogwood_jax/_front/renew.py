"""Replace units by new ones during training: ``renew``."""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from dogwood_jax import strategies
from dogwood_jax._base.arguments import (
    BOOLEAN,
    BY_WIDTH,
    KEY,
    OPTIMIZER,
    STATE,
    VARIABLES,
    WIDTHS,
    expect,
    expect_given,
)
from dogwood_jax._base.described import described
from dogwood_jax._base.problems import listed
from dogwood_jax._base.trees import PyTree, in_order_of, is_array, leaves_by_path, rebuilt
from dogwood_jax._growth.explicit_axes import explicit_shardings, with_automatic_axes
from dogwood_jax._growth.grown import expect_network
from dogwood_jax._growth.renewed import new_along, renewal, renewed
from dogwood_jax._optimizer.renewed_state import expect_renewable, renewed_state
from dogwood_jax._plan.silence import SEEN, heard, silenced
from dogwood_jax._widths.layout import units_of
from dogwood_jax._widths.widths import Width, Widths, no_such
from dogwood_jax.strategies import Initializer, glorot


def renew(
    variables: PyTree,
    opt_state: PyTree,
    widths: Widths,
    masks: Mapping[str, Array],
    *,
    key: Array,
    tx: Any,
    init: Initializer = glorot,
    strict: bool = True,
) -> tuple[PyTree, PyTree]:
    """Replaces some units, such as dormant ones, by new units during training.

    For each renewed unit:

    - Incoming weights are drawn as in a new layer. Outgoing weights are zero.
    - Biases, scales and statistics are reset. A bias is zero, a running variance one.
    - The optimizer's state is as after ``tx.init``. Moments are zero, and step counts begin again.
      Schedules continue.

    Everything else stays, bit for bit. So outputs lose what the units contributed. They do not
    change if the units were zero for all inputs or had zero outgoing weights. If a renewed unit
    feeds a renewed unit of another width, their weight belongs to the second unit and is drawn.

    Shapes and tree structures stay, and masks may be computed during training. So a renewal works
    under ``jax.jit``, in ``jax.lax.cond`` and in ``jax.lax.scan``, and is compiled once.

    New weights are drawn for whole arrays, even if few units are renewed, which may take longer
    than a training step. If most steps renew nothing, put the renewal into ``jax.lax.cond``. Under
    ``jax.vmap``, reduce the predicate by ``jax.lax.pmax`` over the mapped axis first, because a
    mapped predicate makes ``jax.lax.cond`` compute both branches.

    Args:
        variables: pytree of the network's arrays, of any floating dtype, on any devices. Arrays
            on a mesh keep their sharding.
        opt_state: the state of ``tx`` for these variables, or for one collection of them.
        widths: from ``trace`` or ``chain``; static under ``jax.jit``.
        masks: by name of the width, the units to renew: booleans, ``[units]``, as ``dormant``
            returns them. In a stack over which a loop runs, the mask applies to every layer.
        key: PRNG key for the new weights.
        tx: the optimizer, ``dw.growable(tx, renewable=True)``, or a chain that contains one.
        init: initializer of incoming weights, as in ``strategies.zero_outgoing``.
        strict: whether to refuse a width whose new units would change outputs although their
            outgoing weights are zero: if a norm or a softmax reads the units, if they are inputs or
            outputs, as an LSTM's state may be, or if they have no outgoing weights, such as rows of
            a table. With ``False``, these units are renewed and outputs move: a router's new
            column, for example, takes its share of a softmax. ``compare(apply, variables, apply,
            new, x)`` measures how far. The check needs only the widths, so nothing is evaluated.

    Returns:
        The variables and the state, with the shapes, dtypes and structures of the old ones.

    Raises:
        TypeError: if arguments are of the wrong kind, or in the wrong order.
        ValueError: for unknown widths, or widths with an array that both makes and reads units, as
            tied weights do; for masks of other lengths or dtypes; for variables of another network;
            and for the state of an optimizer that does not count the steps of each unit. All errors
            are raised before anything is computed.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import optax
        >>> import dogwood_jax as dw
        >>> layer = lambda i, o: {"kernel": jnp.ones((i, o)), "bias": jnp.ones(o)}
        >>> params = {"up": layer(4, 8), "down": layer(8, 2)}
        >>> widths = dw.chain(params, ("up", "down"))
        >>> tx = dw.growable(optax.adam(1e-3), renewable=True)
        >>> state = tx.init(params)
        >>> @jax.jit
        ... def recycled(params, state, key):
        ...     dormant = params["up"]["bias"] > 0
        ...     return dw.renew(params, state, widths, {"up": dormant}, key=key, tx=tx)
        >>> params, state = recycled(params, state, jax.random.key(0))
        >>> params["down"]["kernel"].sum()
        Array(0., dtype=float32)

    Reference:
        Sokar et al., 2023, The Dormant Neuron Phenomenon in Deep Reinforcement Learning (ReDo).
        Dohare et al., 2024, Loss of plasticity in deep continual learning.
    """
    expect(
        "renew(variables, opt_state, widths, masks)",
        variables=(VARIABLES, variables),
        opt_state=(STATE, opt_state),
        widths=(WIDTHS, widths),
    )
    expect("renew", masks=(BY_WIDTH, masks))
    expect("renew", key=(KEY, key), tx=(OPTIMIZER, tx))
    expect_given("renew", strict=(BOOLEAN, strict))
    if problems := [
        p for name, mask in masks.items() for p in _problems(widths, name, mask, strict)
    ]:
        raise ValueError(listed("cannot renew these units", problems))
    masks = {widths[name].name: mask for name, mask in masks.items()}
    growth = renewal(widths, [*masks], strategies.zero_outgoing(init))
    leaves, known = leaves_by_path(variables), {leaf.path: leaf for leaf in widths.leaves}
    expect_network("renew", variables, leaves, growth)
    concerned = [leaf for leaf in widths.leaves if any(_touches(leaf, masks))]
    problems = [
        f"{leaf.path}: expected a floating array of shape {leaf.shape}, got {described(array)}"
        for leaf in concerned
        for array in [leaves.get(leaf.path)]
        if array is None
        or jnp.shape(array) != leaf.shape
        or not jnp.issubdtype(array.dtype, jnp.inexact)
    ]
    if problems:
        raise ValueError(listed("cannot renew units of these variables", problems))
    expect_renewable(opt_state, tx, variables, known)

    def run(
        variables: PyTree, opt_state: PyTree, masks: PyTree, key: Array
    ) -> tuple[PyTree, PyTree]:
        arrays = renewed(leaves_by_path(variables), growth, masks, key)
        new = in_order_of(variables, rebuilt(jax.tree.structure(variables), arrays))
        places = {leaf.path: new_along(leaf, masks) for leaf in concerned}
        return new, renewed_state(opt_state, tx, new, known, places)

    arguments = variables, opt_state, masks, key
    if shardings := explicit_shardings(arguments):
        variables, opt_state = with_automatic_axes(run, shardings[:2], *arguments)
        return variables, opt_state
    return run(*arguments)


def _touches(leaf: Any, masks: Mapping[str, Any]) -> Iterator[bool]:
    return (units.width in masks for layout in leaf.axes for units in units_of(layout))


def _problems(widths: Widths, name: str, mask: Any, strict: bool) -> Iterator[str]:
    """Yields the problems with renewing units of a width."""
    if name not in widths:
        yield no_such("width", name, widths)
        return
    width = widths[name]
    is_mask = is_array(mask) and jnp.issubdtype(mask.dtype, jnp.bool_)
    if not is_mask or jnp.shape(mask) != (width.size,):
        yield (
            f"{name}: pass a boolean for each unit, of shape {(width.size,)}, got {described(mask)}"
        )
    yield from never_renewed(width, strict)


def never_renewed(width: Width, strict: bool) -> Iterator[str]:
    """Yields the reasons why no unit of a width can be renewed."""
    name = width.name
    if strict and width.whole is not None and not width.fixed:
        width = silenced(width.whole, [name], width.whole)[name]
    if width.fixed or width.inside:
        yield f"{name}: the places of its units are not known: {width.fixed or width.inside}"
    elif both := [o for o in width.occurrences if o.role == "both"]:
        places = ", ".join(f"{occurrence.path}[{occurrence.axis}]" for occurrence in both)
        yield (
            f"{name}: {places} both makes and reads its units, so new units would not be silent; "
            "leave out this width"
        )
    elif strict and (reasons := [*_reasons(width)]):
        yield (
            f"{name}: renewing units would change outputs even where they are dormant: "
            f"{'; '.join(reasons)}; strict=False renews them nevertheless"
        )


def _reasons(width: Width) -> Iterator[str]:
    """Yields the reasons why new units change outputs although outgoing weights are zero."""
    if width.interface:
        yield "they are inputs or outputs of the network"
    elif all(occurrence.role == "incoming" for occurrence in width.occurrences):
        yield "they have no outgoing weights"
    elif width.whole is not None and heard(width.whole, [width.name]):
        yield SEEN
