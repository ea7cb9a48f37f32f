"""Grows the arrays: ``grown``, after a check that new units can learn: ``dead_in``."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from dogwood_jax._base.arguments import expect_arrays, expect_values
from dogwood_jax._base.bits import cut_short
from dogwood_jax._base.described import described
from dogwood_jax._base.problems import listed
from dogwood_jax._base.trees import (
    PyTree,
    arrays_of,
    in_order_of,
    is_array,
    is_traced,
    leaves_by_path,
    tree_of_indices,
)
from dogwood_jax._growth.edit import Edit
from dogwood_jax._growth.edited import Random, Randomness, edited, rows_of
from dogwood_jax._growth.explicit_axes import explicit_shardings, with_automatic_axes
from dogwood_jax._growth.finite import not_finite, refusal_of_not_finite
from dogwood_jax._growth.growth import Growth
from dogwood_jax._growth.modules.resizing import Resizing, outdated_leaves, says_numbers
from dogwood_jax._growth.rounds import bytes_of, delete, rounds, several_times
from dogwood_jax._growth.shardings import Placement, most_like, placement
from dogwood_jax._widths.layout import resized, units_along


def dead_in(fresh: Callable[[str], Any], growth: Growth) -> dict[str, list[str]]:
    """Finds widths whose new units are dead if their free weights come from a larger model.

    This happens if the larger model itself initializes these weights with zeros. Then one side of
    the new units has only biases, and the other side only zeros. All new units get the same
    gradient, or none under most activations, so they never become different.

    Args:
        fresh: returns the larger model's own array in the place of an old array, by the old path.
            It must not be traced.
        growth: how the network grows.

    Returns:
        For each such width, the paths of its arrays whose entries for new units are all zero.
    """
    dead = {}
    for change in growth.changes:
        fates = {"incoming": change.strategy.incoming, "outgoing": change.strategy.outgoing}
        fates["both"] = fates["incoming" if change.writes("both") else "outgoing"]
        roles = {occurrence.role for occurrence in growth.widths[change.width].occurrences}
        if not {*fates.values()} <= {"free", "zero", "opposed"} or roles <= {"incoming"}:
            continue  # copies and outputs learn like old units
        # The two units of a pair become different through their outgoing weights.
        deciding = "opposed" if "opposed" in fates.values() else "free"
        free = {role for role, fate in fates.items() if fate == deciding}
        recipe = change.recipe
        filled = (*recipe.blank, *(path for path, _ in recipe.zeros)) if recipe else ()
        places = [
            (leaf.path, axis, new)
            for leaf in growth.widths.leaves
            if leaf.kind == "random" and len(leaf.shape) > 1 and leaf.path not in filled
            for axis, layout in enumerate(leaf.axes)
            for units in [units_along(resized(layout, growth.sizes), change.width, free)]
            if (new := np.flatnonzero(units >= change.old)).size
        ]
        if places and not any(has_weights(fresh(path), axis, new) for path, axis, new in places):
            dead[change.width] = list(dict.fromkeys(path for path, _, _ in places))
    return dead


def has_weights(array: Any, axis: int, places: np.ndarray) -> bool:
    """Whether an array has a nonzero entry at some places along an axis."""
    parts = [(0, array)]
    if isinstance(array, jax.Array):  # each part is read on its own device
        parts = [(shard.index[axis].start or 0, shard.data) for shard in array.addressable_shards]
    for some in (places[-1:], places):  # the last unit is usually enough
        for start, part in parts:
            inside = some[(some >= start) & (some < start + part.shape[axis])] - start
            if inside.size and (part[(slice(None),) * axis + (inside,)] != 0).any():
                return True
    return False


_NO_VALUES = "pass the values that the larger model's init returns, or pass key="
# Chooses the weights of one width's new units: a function of the grown arrays by path, candidates
# from other random keys, the growth without choices, the change, the structure, and the placement.
Choose = Callable[..., dict[str, Any]]


def without_choices(growth: Growth) -> Growth:
    """Returns the growth before weights are chosen: random incoming, zero outgoing weights."""
    if all(change.strategy.choice is None for change in growth.changes):
        return growth
    changes = (replace(c, strategy=replace(c.strategy, choice=None)) for c in growth.changes)
    return replace(growth, changes=tuple(changes))


def grown(
    variables: PyTree,
    growth: Growth,
    *,
    key: Array | None = None,
    fresh: PyTree = None,
    donate: bool = False,
    choose: Choose | None = None,
) -> PyTree:
    """Returns the variables of the larger model; see ``grow``.

    Args:
        variables: see ``grow``.
        growth: see ``grow``.
        key: see ``grow``.
        fresh: see ``grow``.
        donate: see ``grow``.
        choose: chooses weights for strategies with a ``Choice``.
    """
    if shardings := explicit_shardings((variables, fresh)):
        old, wanted = shardings
        return with_automatic_axes(
            lambda variables, fresh, key: grown(
                variables, growth, key=key, fresh=fresh, choose=choose
            ),
            growth.shardings(old) if fresh is None else wanted,
            *(variables, fresh, key),
        )
    leaves = leaves_by_path(variables)
    new = None if fresh is None else leaves_by_path(fresh)
    expect_network("grow", variables, leaves, growth)
    if new is not None:
        expect_arrays("grow", "fresh", fresh, arrays_of(new), growth.edits)
    _check(leaves, growth, key, new)
    expect_values("grow", new or {}, _NO_VALUES, name="fresh")
    structure, others = _model(variables, growth, fresh)
    zero = _zero(new, growth, key)
    # Strategies choose weights in the grown network.
    first = without_choices(growth)
    donate = donate and not any(change.strategy.choice for change in growth.changes)
    where = places_of(leaves, first, arrays_of(new or {}))
    make = functools.partial(edited_arrays, leaves, first, where=where)
    drawn = make({}, key) if zero else {}
    arrays = make(arrays_of(new or {}), key, donate=donate) | others
    arrays |= {path: drawn[path] for path in zero}
    for change in growth.changes:
        if change.strategy.choice is not None:
            assert choose is not None
            candidates = [
                make({}, jax.random.fold_in(key, n))  # type: ignore[arg-type]
                for n in range(1, change.strategy.choice.candidates)
            ]
            arrays = choose(arrays, candidates, first, change, structure, where)
    return filled(structure, arrays, like=variables if fresh is None else fresh)


def _model(variables: PyTree, growth: Growth, fresh: PyTree) -> tuple[Any, dict[str, Any]]:
    """Returns the structure of the larger model, and its leaves that are no arrays, by path.

    Raises:
        ValueError: if modules store sizes, and nothing determines the sizes of the larger model's.
    """
    model, problems, way_out = variables, list[str](), "pass the larger model as fresh="
    leaves, is_deeper = leaves_by_path(variables), bool(growth.inserted or growth.layers)
    if fresh is not None:
        model = fresh
    elif growth.structure is not None or is_deeper:
        problems = outdated_leaves(leaves, growth.widths.leaves, growth.sizes)
    elif says_numbers(variables):
        resizing = Resizing(growth.widths.leaves, growth.sizes)
        model, problems = resizing.resized(variables), resizing.problems
        way_out = "plan with target=, the larger model, or pass it as fresh="
    others = {path: leaf for path, leaf in leaves_by_path(model).items() if not is_array(leaf)}
    planned = growth.structure if fresh is None else None
    if is_deeper and fresh is None:
        others = {new: leaf for path, leaf in others.items() if (new := growth.place(path))}
        way_out = f"pass the {'smaller' if growth.layers else 'larger'} model as fresh="
        if planned is None:
            problems.append("a module stores numbers, perhaps the number of layers")
        else:
            kept = {growth.place(path) for path in leaves}
            problems += [
                f"{path}: no array, so only the larger model has it"
                for path in leaves_by_path(tree_of_indices(planned))
                if path not in kept and path not in growth.edits
            ]
    if problems:
        problems = [f"{problem}; {way_out}" for problem in problems]
        raise ValueError(listed("cannot grow these variables", problems))
    return jax.tree.structure(model) if planned is None else planned, others


def _zero(fresh: Mapping[str, Any] | None, growth: Growth, key: Array | None) -> set[str]:
    """Returns arrays of ``fresh`` whose free entries are all zero; they are drawn instead.

    Raises:
        ValueError: if there are such arrays and no key to draw them with.
    """
    if fresh is None or not all(map(_is_here, fresh.values())):
        return set()
    held = growth.held
    dead = dead_in(lambda path: rows_of(held[path], fresh[held[path].path]), growth)
    if dead and key is None:
        problems = [
            f"{', '.join(paths)}: zero in the larger model for all new units of {width}, so these "
            "would never learn to differ, or not learn at all; pass key= to draw the weights"
            for width, paths in dead.items()
        ]
        raise ValueError(listed("cannot grow these variables", problems))
    return {held[path].path for paths in dead.values() for path in paths}


def _is_here(leaf: Any) -> bool:
    """Whether the values of an array are on this host."""
    return not is_traced(leaf) and getattr(leaf, "is_fully_addressable", True)


def filled(structure: Any, leaves: Mapping[str, Any], *, like: PyTree) -> PyTree:
    """Returns a tree of a structure; missing leaves are None, as in partitioned variables."""
    paths = leaves_by_path(tree_of_indices(structure))
    tree = jax.tree.unflatten(structure, [leaves.get(path) for path in paths])
    return in_order_of(like, tree)


def places_of(leaves: Mapping[str, Any], growth: Growth, fresh: Mapping[str, Any]) -> Placement:
    """Returns the placement of the arrays that a growth makes; arguments: see ``edited_arrays``."""
    edits = {path: edit for path, edit in growth.edits.items() if edit.changes}
    shapes = {path: leaf.shape for path, leaf in arrays_of(leaves).items()}
    old = {path: leaves[edit.source] for path, edit in edits.items() if edit.source is not None}
    return placement(
        old | {path: fresh[path] for path in edits if path in fresh},
        {path: edit.shape for path, edit in edits.items()},
        repeated={path for path, edit in edits.items() if edit.experts and path not in fresh},
        alike={
            path: leaves[most_like(path, edit.shape, shapes)]
            for path, edit in edits.items()
            if edit.source is None and path not in fresh
        },
    )


def edited_arrays(
    leaves: Mapping[str, Any],
    growth: Growth,
    fresh: Mapping[str, Any],
    key: Array | None,
    *,
    where: Placement,
    donate: bool = False,
) -> dict[str, Any]:
    """Returns the arrays of the larger model; one compiled function makes all arrays of a kind.

    Args:
        leaves: the old arrays, by path.
        growth: their growth.
        fresh: arrays of the larger model from which free entries are taken, by path.
        key: the key of random values that ``fresh`` does not give.
        where: the placement of the new arrays.
        donate: see ``grow``.
    """
    every = growth.edits.values()
    kept = {e.path: leaves[e.source] for e in every if e.source is not None and not e.changes}
    old = {e.path: leaves[e.source] for e in every if e.source is not None and e.changes}
    weighed = {path: leaves[scale] for path, scale in growth.weighed.items()}
    values = {e.path: fresh[e.path] for e in every if e.takes_fresh and e.path in fresh}
    units = {
        e.path: (fresh[held.path], held)
        for e in every
        if e.map is not None and (held := growth.held[str(e.source)]).path in fresh
    }
    # Keep arrays that weight others until all have grown, and arrays that several others read.
    keep = several_times((*kept.values(), *old.values())) | {*map(id, weighed.values())}
    arrays = {place: leaf for p, leaf in leaves.items() if (place := growth.place(p))} | kept
    random = Randomness(growth, key)

    def size(edit: Edit) -> int:
        return bytes_of(old[edit.path]) if edit.path in old else 0

    changing = [edit for edit in every if edit.changes]
    for several in rounds(changing, lambda edit: edit.without_names, size if donate else None):
        here = where.renamed({edit.path: str(number) for number, edit in enumerate(several)})
        numbered = [(str(number), edit) for number, edit in enumerate(several)]
        made = _edited(
            here.enter({n: old[e.path] for n, e in numbered if e.path in old}),
            here.enter({n: values[e.path] for n, e in numbered if e.path in values}),
            here.enter({n: units[e.path][0] for n, e in numbered if e.path in units}),
            here.enter({n: weighed[str(e.source)] for n, e in numbered if e.source in weighed}),
            key,
            random.words,
            np.array([random.place(edit) for edit in several], np.int32),
            edits=tuple(edit.without_names for edit in several),
            held=tuple(units.get(e.path, (None, e))[1].without_names for e in several),
            where=here,
        )
        made = here.leave(made)
        arrays |= {edit.path: made[number] for number, edit in numbered}
        if donate:
            delete((old[e.path] for e in several if e.path in old), made.values(), keep)
    return arrays


@functools.partial(jax.jit, static_argnames=("edits", "held", "where"))
def _edited(
    old: dict[str, Array],
    fresh: dict[str, Array],
    units: dict[str, Array],
    scales: dict[str, Array],
    key: Array | None,
    words: tuple[Array | None, Array | None],
    places: Array,
    *,
    edits: tuple[Edit, ...],
    held: tuple[Edit, ...],
    where: Placement,
) -> dict[str, Array]:
    """Returns arrays of the larger model.

    Args:
        old: their old arrays, by name: ``"0"``, ``"1"`` and so on.
        fresh: arrays of the larger model from which values of new layers are taken, by name.
        units: arrays of the larger model from which entries of new units are taken, by name.
        scales: arrays that weight old entries in means, by name.
        key: the key of other random values.
        words: the seeds of all arrays of the network, see ``Randomness``.
        places: the rows of each array in the two parts of ``words``: ``[arrays, 2]``.
        edits: the edit of each array.
        held: the edit that continues its old array, to whose path ``units`` belong.
        where: the placement of the new arrays.
    """
    made = {}
    for index, edit in enumerate(edits):
        name, drawn = str(index), (edit.map is not None and edit.map.needs, edit.is_random)
        seeds = (
            w[places[index, i]] if w is not None and drawn[i] else None for i, w in enumerate(words)
        )
        made[name] = edited(
            edit,
            old.get(name),
            Random(key, places[index, 0] if drawn[0] else 0, *seeds),
            fresh=fresh.get(name),
            units=rows_of(held[index], units[name]) if name in units else None,
            scale=scales.get(name),
        )
    return where.constrain(made)


def expect_network(call: str, variables: PyTree, leaves: Mapping[str, Any], growth: Growth) -> None:
    """Raises if variables belong to another network than the growth, or have no values."""
    known = {leaf.path: leaf.shape for leaf in growth.widths.leaves}
    expect_arrays(call, "variables", variables, arrays_of(leaves), known)
    if hasattr(variables, "opt_state") and not any(p.startswith("opt_state/") for p in known):
        raise TypeError(
            f"{call}: variables must hold only the network's arrays, got {described(variables)}, "
            "which also holds an optimizer's state; dw.grow_opt_state grows both"
        )
    shapes = {path: jnp.shape(leaves[path]) for path in known if path in leaves}
    if shapes == growth.shapes != known:
        raise ValueError(
            f"{call}: these variables have grown already, by a growth like this one; for a second "
            "growth, trace and plan again"
        )
    expect_values(call, leaves, f"jax.eval_shape calls dw.{call} with shapes")


def problems_of_new(
    growth: Growth, fresh: Mapping[str, Any], key: Array | None, way_out: str
) -> list[str]:
    """Returns problems with the values of new layers and experts.

    Args:
        growth: the growth.
        fresh: the larger model's own values, by path.
        key: the key to draw other values with, or None.
        way_out: the next step if values are missing.
    """
    drawn = [
        edit.path
        for edit in growth.inserted
        if edit.is_random and (edit.experts or edit.path not in fresh)
    ]
    problems = list[str]()
    if drawn and key is None:
        problems.append(f"{', '.join(drawn)}: free, so {way_out}")
    free = {e.path: fresh[e.path] for e in growth.inserted if e.takes_fresh and e.path in fresh}
    return problems + [refusal_of_not_finite(path, " in fresh") for path in not_finite(free)]


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
        elif growth.maps[leaf.path].changes:
            dtype = jnp.result_type(array) if not hasattr(array, "dtype") else array.dtype
            whole = jnp.issubdtype(dtype, jnp.integer) and growth.maps[leaf.path].keeps_integers
            if not whole and not jnp.issubdtype(dtype, jnp.inexact):
                problems.append(
                    f"{leaf.path}: grows, so it must have a floating dtype, not {dtype}"
                )
            else:
                problems += cut_short(leaf.path, dtype)
            needs = growth.maps[leaf.path].needs if key is None else ()
            if "noise" in needs:
                problems.append(f"{leaf.path}: gets noise on its copies; pass key=")
            elif "free" in needs and fresh is None:
                problems.append(f"{leaf.path}: gets random new weights; pass key= or fresh=")
    if key is None:
        problems += [
            f"{change.width}: strategies.{change.strategy} draws candidates; pass key="
            for change in growth.changes
            if change.strategy.choice is not None and change.strategy.choice.candidates > 1
        ]
    for change in growth.changes:
        if change.strategy.choice is None:
            continue
        held = {
            place.path: growth.held[place.path] for place in growth.widths[change.width].occurrences
        }
        if any(edit.layers or edit.path != path for path, edit in held.items()):
            problems.append(
                f"{change.width}: strategies.{change.strategy} uses a loss, but the deeper model "
                "moves its arrays; grow the width in a separate growth"
            )
    new = arrays_of(fresh or {})
    problems += problems_of_new(growth, new, key, "pass key= or fresh=")
    if fresh is not None:
        shapes = {path: jnp.shape(array) for path, array in arrays_of(leaves).items()}
        expected = {place: n for path, n in shapes.items() if (place := growth.place(path))}
        expected |= {path: edit.shape for path, edit in growth.edits.items()}
        problems += [f"{path}: not in fresh" for path in expected if path not in new]
        problems += [f"{path}: only in fresh" for path in new if path not in expected]
        problems += [
            f"{path}: has shape {jnp.shape(array)} in fresh, but grows to {expected[path]}"
            for path, array in new.items()
            if path in expected and jnp.shape(array) != expected[path]
        ]
    if not problems:
        # NaN may be in units that are removed, so arrays that only lose units are not checked.
        grow = {old: e.path for old, e in growth.held.items() if e.map and e.map.grows}
        for where, tree, looked_at in (("", leaves, grow), (" in fresh", new, grow.values())):
            problems += [
                refusal_of_not_finite(path, where)
                for path in not_finite({path: tree[path] for path in looked_at if path in tree})
            ]
    if problems:
        raise ValueError(listed("cannot grow these variables", problems))
