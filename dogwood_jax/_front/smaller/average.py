"""Replace groups of units, such as heads of keys and values, by their means: ``average``."""

import fnmatch
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dogwood_jax._base.arguments import (
    FUNCTION,
    MAPPING,
    VARIABLES,
    WIDTHS,
    expect,
    expect_arrays,
    expect_given,
    is_integer,
)
from dogwood_jax._base.problems import listed
from dogwood_jax._base.trees import PyTree, in_order_of, is_traced, leaves_by_path, rebuilt
from dogwood_jax._front.compare import moved_by
from dogwood_jax._widths.attention import HEADS
from dogwood_jax._widths.layout import units_along, units_of
from dogwood_jax._widths.widths import Leaf, Widths

_ROLES = ("incoming", "outgoing", "both")


def average(
    variables: PyTree,
    widths: Widths,
    groups: Mapping[tuple[str, int], Any],
    *,
    target_apply: Callable[..., Any] | None = None,
) -> PyTree:
    """Replaces groups of units by their means, in chosen arrays.

    There are two uses. Heads of keys and values become fewer, so that more heads of queries share
    them: for example from 8 to 2, each the mean of four. Rows of a vocabulary become fewer: the row
    of a new token is the mean of the rows of the old tokens that it replaces. Both uses move
    outputs, so train the network on. A warning states how far outputs move for random inputs, if
    the smaller model's function is known.

    Args:
        variables: pytree of the network's arrays.
        widths: its widths, from ``trace``.
        groups: by ``(path, axis)``, the units that are merged: a group of indices for each new
            unit, or a number of new units, each from equally many neighbours. ``*`` in a path
            matches any text, as in ``("layers/*/key/kernel", 1)``. If an axis consists of heads and
            their dimensions, the units are the heads.
        target_apply: the smaller model's function of variables and inputs; by default the network's
            own, if it takes the smaller arrays.

    Returns:
        The smaller variables, with their dtypes. Arrays without groups stay as they are. There is
        no growth for means, so start with a new optimizer state.

    Raises:
        TypeError: if arguments are of the wrong kind.
        ValueError: if a path matches no array, an axis has no such units, or a group names units
            that do not exist; all of them in one message.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import dogwood_jax as dw
        >>> def apply(params, x):
        ...     q, k, v = (jnp.einsum("td,dnh->tnh", x, params[name]) for name in "qkv")
        ...     return jax.nn.dot_product_attention(q, k, v)
        >>> params = {name: jnp.ones((3, 8, 2)) for name in "qkv"}
        >>> widths = dw.trace(apply, params, jnp.ones((5, 3)))
        >>> small = dw.average(params, widths, {("k", 1): 2, ("v", 1): 2})
        >>> small["k"].shape, small["q"].shape
        ((3, 2, 2), (3, 8, 2))

    Reference:
        Ainslie et al., 2023, GQA: Training Generalized Multi-Query Transformer Models from
        Multi-Head Checkpoints (the mean of heads does best).
    """
    expect(
        "average(variables, widths, groups)",
        variables=(VARIABLES, variables),
        widths=(WIDTHS, widths),
        groups=(MAPPING, groups),
    )
    expect_given("average", target_apply=(FUNCTION, target_apply))
    leaves = leaves_by_path(variables)
    expect_arrays("average", "variables", variables, leaves, [leaf.path for leaf in widths.leaves])
    problems: list[str] = []
    means = [*_means(widths, groups, problems)]
    if problems:
        raise ValueError(listed("average: these units cannot become fewer", problems))
    smaller = dict(leaves)
    for path, axis, positions in means:
        array = jnp.asarray(smaller[path])
        wide = array.astype(jnp.promote_types(array.dtype, jnp.float32))
        parts = (jnp.mean(jnp.take(wide, jnp.asarray(p), axis), axis) for p in positions)
        smaller[path] = jnp.stack([*parts], axis).astype(array.dtype)
    found = in_order_of(variables, rebuilt(jax.tree.structure(variables), smaller))
    if not any(map(is_traced, leaves.values())):
        _warn(variables, found, widths, target_apply)
    return found


def _means(
    widths: Widths, groups: Mapping[tuple[str, int], Any], problems: list[str]
) -> Iterator[tuple[str, int, list[list[int]]]]:
    """Yields paths and axes, with the old positions that are averaged for each new position."""
    for place, asked in groups.items():
        if not (isinstance(place, tuple) and len(place) == 2 and isinstance(place[0], str)):
            problems.append(f"{place!r}: expected (path, axis), such as ('layers/*/key/kernel', 1)")
            continue
        pattern, axis = place
        fitting = [leaf for leaf in widths.leaves if fnmatch.fnmatchcase(leaf.path, pattern)]
        if not fitting:
            problems.append(f"{pattern}: matches the path of no array")
        for leaf in fitting:
            try:
                yield leaf.path, axis, _positions(widths, leaf, axis, asked)
            except ValueError as error:
                problems.append(f"{leaf.path}, axis {axis}: {error}")


def _positions(widths: Widths, leaf: Leaf, axis: Any, asked: Any) -> list[list[int]]:
    """Returns the old positions along an axis that are averaged for each new position."""
    if not is_integer(axis) or not 0 <= axis < len(leaf.axes):
        raise ValueError(f"expected an axis of {leaf.shape}")
    layout = leaf.axes[axis]
    names = [*dict.fromkeys(units.width for units in units_of(layout))]
    if len(names) > 1:
        names = [name for name in names if widths[name].label in HEADS[:2]]
    if len(names) != 1:
        raise ValueError(f"expected units of one width, or heads; the axis consists of {layout}")
    size = widths[names[0]].size
    units = units_along(layout, names[0], _ROLES)
    places = np.stack([np.flatnonzero(units == unit) for unit in range(size)])
    # New units lie where the first old units lay. Each entry comes with the positions to average.
    groups = _groups(asked, size, names[0])
    entries = [
        (int(place), positions)
        for unit, group in enumerate(groups)
        for place, positions in zip(places[unit], places[list(group)].T.tolist(), strict=True)
    ]
    return [positions for _, positions in sorted(entries)]


def _groups(asked: Any, size: int, name: str) -> Sequence[Sequence[int]]:
    """Returns groups of units."""
    asked = asked.tolist() if isinstance(asked, np.ndarray) else asked
    if is_integer(asked):
        if not 0 < asked <= size or size % asked:
            raise ValueError(f"{asked} does not divide the {size} units of {name}")
        return np.arange(size).reshape(asked, -1).tolist()
    if isinstance(asked, Sequence) and len(asked) > size:
        raise ValueError(f"expected at most the {size} units of {name}, got {len(asked)} groups")
    are_groups = isinstance(asked, Sequence) and all(isinstance(g, Sequence) for g in asked)
    if (
        not are_groups
        or not asked
        or not all(
            group and all(is_integer(unit) and 0 <= unit < size for unit in group)
            for group in asked
        )
    ):
        raise ValueError(
            f"expected groups of units below {size}, such as [(0, 1), (2, 3)], or a number of new "
            f"units; got {asked!r}"
        )
    return asked  # type: ignore[no-any-return]


def _warn(
    variables: PyTree, smaller: PyTree, widths: Widths, target_apply: Callable[..., Any] | None
) -> None:
    """Warns how far outputs move, if the smaller model's function is known."""
    network = widths.network
    if network is None:
        return
    inputs = network.random_inputs(jax.random.key(0))
    try:
        share = moved_by(network.apply, variables, target_apply or network.apply, smaller, inputs)
    except Exception:  # a function with fixed sizes may raise anything
        if target_apply is not None:
            raise
        return
    if share > 0:
        warnings.warn(
            f"average: outputs move by {100 * share:.3g}% (root mean square, random inputs)",
            stacklevel=3,
        )
