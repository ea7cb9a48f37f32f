"""Grow the arrays: ``grown``."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from dogwood_jax._arrays.apply_map import apply_map
from dogwood_jax._arrays.dead import dead_in
from dogwood_jax._arrays.draws import Draws, keys_of, words_of
from dogwood_jax._arrays.explicit_axes import explicit_shardings, with_automatic_axes
from dogwood_jax._arrays.finite import not_finite, refusal_of_not_finite
from dogwood_jax._arrays.insert import insert
from dogwood_jax._arrays.rounds import bytes_of, delete, rounds, several_times
from dogwood_jax._base.arguments import expect_arrays, expect_values
from dogwood_jax._base.described import described
from dogwood_jax._base.draw import dtype_named, seeds
from dogwood_jax._base.problems import cut_short, listed
from dogwood_jax._base.trees import (
    PyTree,
    arrays_of,
    in_order_of,
    is_array,
    is_traced,
    leaves_by_path,
    rebuilt,
    struct,
    struct_of,
    tree_of_indices,
)
from dogwood_jax._growth.growth import Growth
from dogwood_jax._growth.leaf_map import LeafMap
from dogwood_jax._growth.shardings import Placement, placement
from dogwood_jax._modules.resizing import Resizing, outdated_leaves, says_numbers

_NO_VALUES = "pass what the larger model's init returns, or key= in its place"
# Chooses the weights of one width's new units: a function of the grown arrays by path, candidates
# from other random numbers, the growth without choices, the change, the structure, and devices.
Choose = Callable[..., dict[str, Any]]


def without_choices(growth: Growth) -> Growth:
    """Returns the growth with which choosing begins: random incoming, zero outgoing weights."""
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
        choose: chooses weights where a strategy says so.
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
    leaves, growth = in_order(leaves, growth)
    if new is not None:
        places = {growth.place(leaf.path): None for leaf in growth.staying}
        expect_arrays("grow", "fresh", fresh, arrays_of(new), places)
    if growth.insertions or growth.layers:
        expect_values("grow", new or {}, _NO_VALUES, name="fresh")
        return _grow_and_insert(leaves, growth, key, fresh, donate, choose)
    _check(leaves, growth, key, new)
    expect_values("grow", new or {}, _NO_VALUES, name="fresh")
    structure, others = _model(variables, growth, fresh)
    zero = _zero(new, growth, key)
    # What a strategy chooses is chosen in the network that has grown already.
    first = without_choices(growth)
    changing = {path: leaf_map for path, leaf_map in first.maps.items() if leaf_map.changes}
    old = {path: leaves[path] for path in changing}
    new = None if new is None else {path: new[path] for path in old}
    where = placement(old | (new or {}), growth.shapes)
    fill = functools.partial(_grow_in_rounds, changing, old, growth.weighed, where=where)
    donate = donate and not any(change.strategy.choice for change in growth.changes)
    drawn = fill(fresh=None, key=key) if zero else {}
    arrays = leaves | others | fill(fresh=new, key=key, donate=donate)
    arrays |= {path: drawn[path] for path in zero}
    for change in growth.changes:
        if change.strategy.choice is not None:
            assert choose is not None
            candidates = [
                fill(fresh=None, key=jax.random.fold_in(key, n))  # type: ignore[arg-type]
                for n in range(1, change.strategy.choice.candidates)
            ]
            arrays = choose(arrays, candidates, first, change, structure, where)
    tree = _filled(structure, arrays)
    return in_order_of(variables, tree) if fresh is None and growth.structure is None else tree


def in_order(leaves: Mapping[str, Any], growth: Growth) -> tuple[dict[str, Any], Growth]:
    """Returns arrays whose units are in order if layers lose other units each; and what is left."""
    arrays = dict(leaves)
    for path, several in growth.orders.items():
        for order in several:
            arrays[path] = order.of(arrays[path])
    return arrays, growth.in_order


def _model(variables: PyTree, growth: Growth, fresh: PyTree) -> tuple[Any, dict[str, Any]]:
    """Returns the structure of the larger model, and its leaves that are no arrays, by path.

    Raises:
        ValueError: if modules say sizes, and nothing shows which ones the larger model's say.
    """
    model, problems, way_out = variables, list[str](), "pass the larger model as fresh="
    if fresh is not None:
        model = fresh
    elif growth.structure is not None:
        leaves = leaves_by_path(variables)
        problems = outdated_leaves(leaves, growth.widths.leaves, growth.sizes)
    elif says_numbers(variables):
        resizing = Resizing(growth.widths.leaves, growth.sizes)
        model, problems = resizing.resized(variables), resizing.problems
        way_out = "plan with target=, the larger model, or pass it as fresh="
    if problems:
        problems = [f"{problem}; {way_out}" for problem in problems]
        raise ValueError(listed("cannot grow these variables", problems))
    others = {path: leaf for path, leaf in leaves_by_path(model).items() if not is_array(leaf)}
    planned = growth.structure if fresh is None else None
    return jax.tree.structure(model) if planned is None else planned, others


def _zero(fresh: Mapping[str, Any] | None, growth: Growth, key: Array | None) -> set[str]:
    """Returns the arrays of ``fresh`` that are zero where they should be free, to be drawn instead.

    Raises:
        ValueError: if there are any, and no key to draw them with.
    """
    if fresh is None or not all(map(_is_here, fresh.values())):
        return set()
    dead = dead_in(fresh, growth)
    if dead and key is None:
        problems = [
            f"{', '.join(paths)}: zero in the larger model for all new units of {width}, so these "
            "would never learn to differ, or at all; pass key= to draw the weights"
            for width, paths in dead.items()
        ]
        raise ValueError(listed("cannot grow these variables", problems))
    return {path for paths in dead.values() for path in paths}


def _is_here(leaf: Any) -> bool:
    """Whether the values of an array are on this host."""
    return not is_traced(leaf) and getattr(leaf, "is_fully_addressable", True)


def _filled(structure: Any, leaves: Mapping[str, Any]) -> PyTree:
    """Returns a tree of a structure; None where the variables lack a leaf, as when partitioned."""
    paths = leaves_by_path(tree_of_indices(structure))
    return jax.tree.unflatten(structure, [leaves.get(path) for path in paths])


def _grow_in_rounds(
    maps: Mapping[str, LeafMap],
    old: Mapping[str, Any],
    weighed: Mapping[str, str],
    *,
    fresh: Mapping[str, Any] | None,
    key: Array | None,
    where: Placement,
    donate: bool = False,
) -> dict[str, Array]:
    """Returns arrays grown, those that grow alike by the same compiled function."""
    place = {path: index for index, path in enumerate(maps)}
    words = None if key is None else words_of(key, len(maps))
    # What weighs others is needed until they have grown.
    keep = several_times(old.values()) | {id(old[scale]) for scale in weighed.values()}
    grown: dict[str, Array] = {}
    size = (lambda path: bytes_of(old[path])) if donate else None
    for paths in rounds(list(maps), maps.__getitem__, size):
        names = [str(number) for number in range(len(paths))]
        here = where.renamed(dict(zip(paths, names, strict=True)))
        filled = _grow_leaves(
            here.enter({name: old[path] for name, path in zip(names, paths, strict=True)}),
            fresh
            and here.enter({name: fresh[path] for name, path in zip(names, paths, strict=True)}),
            here.enter({n: old[weighed[path]] for n, path in zip(names, paths) if path in weighed}),
            key,
            words,
            np.array([place[path] for path in paths], np.int32),
            maps=tuple(maps[path] for path in paths),
            where=here,
        )
        filled = here.leave(filled)
        grown |= {path: filled[name] for name, path in zip(names, paths, strict=True)}
        if donate:
            delete((old[path] for path in paths), filled.values(), keep)
    return grown


def _grow_and_insert(
    leaves: Mapping[str, Any],
    growth: Growth,
    key: Array | None,
    fresh: PyTree,
    donate: bool,
    choose: Choose | None,
) -> PyTree:
    """Returns the variables grown, then with new layers, or without some."""
    arrays = arrays_of(leaves)
    wider = replace(growth, insertions=(), structure=None, layers=())
    if fresh is None:
        inserted = {i.path: struct(i.shape, dtype_named(i.dtype)) for i in growth.insertions}
        problems = outdated_leaves(leaves, growth.widths.leaves, growth.sizes)
        others = {place: leaf for path, leaf in leaves.items() if (place := growth.renamed(path))}
        if growth.structure is None:
            problems.append("a module says numbers, and maybe how many layers there are")
        else:
            problems += [
                f"{path}: no array, so only the larger model has it"
                for path in leaves_by_path(tree_of_indices(growth.structure))
                if path not in others and path not in inserted
            ]
        if problems:
            model = "smaller" if growth.layers else "larger"
            problems = [f"{problem}; pass the {model} model as fresh=" for problem in problems]
            raise ValueError(listed("cannot grow these variables", problems))
        wide = grown(arrays, wider, key=key, donate=donate, choose=choose)
        structs = {path: struct_of(leaf) for path, leaf in wide.items()}
        target = rebuilt(growth.structure, {**others, **structs, **inserted})
    else:
        target, larger = fresh, leaves_by_path(fresh)
        gone = {path for path in leaves if growth.renamed(path) is None}
        needed = {i.path for i in growth.insertions}
        needed |= {growth.place(path) for path in leaves if path not in gone}
        problems = [f"{path}: not in fresh" for path in sorted(needed - larger.keys())]
        problems += [
            f"{i.path}: has shape {jnp.shape(larger[i.path])} in fresh, but grows to {i.shape}"
            for i in growth.insertions
            if i.path in larger and jnp.shape(larger[i.path]) != i.shape
        ]
        if problems:
            raise ValueError(listed("cannot grow these variables", problems))
        new = dict(larger)  # by old paths, each of which may be another array's new one
        for insertion in growth.insertions:
            if insertion.old is not None:
                size = leaves[insertion.old].shape[insertion.axis] if insertion.layers else None
                size = 1 if insertion.repeats else size
                first = _first(larger[insertion.path], size, insertion.axis)
                new[insertion.old] = first[0] if insertion.repeats else first
        new = {path: leaf if path in gone else new[path] for path, leaf in arrays.items()}
        wide = grown(arrays, wider, key=key, fresh=new, donate=donate, choose=choose)
    return insert(wide, growth.insertions, target, key=key)


def expect_network(call: str, variables: PyTree, leaves: Mapping[str, Any], growth: Growth) -> None:
    """Raises if variables are those of another network than the growth's, or have no values."""
    known = {leaf.path: leaf.shape for leaf in growth.widths.leaves}
    expect_arrays(call, "variables", variables, arrays_of(leaves), known)
    if hasattr(variables, "opt_state") and not any(p.startswith("opt_state/") for p in known):
        raise TypeError(
            f"{call}: variables must be the network's alone, got {described(variables)} that holds "
            "the state of an optimizer, too; dw.grow_opt_state grows both"
        )
    shapes = {path: jnp.shape(leaves[path]) for path in known if path in leaves}
    if shapes == growth.shapes != known:
        raise ValueError(
            f"{call}: these variables have grown already, by a growth like this one; for a second "
            "growth, trace and plan again"
        )
    expect_values(call, leaves, f"jax.eval_shape calls dw.{call} with shapes")


def _first(array: Array, size: int | None, axis: int) -> Array:
    """Returns the first entries of an array along an axis, on the devices that it lies on."""
    shape = list(array.shape)
    if size is not None:
        shape[axis] = size
    where = placement({}, {"": tuple(shape)}, alike={"": array})
    first = where.enter({"": array})[""][tuple(slice(n) for n in shape)]
    return where.leave({"": first})[""]


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
                    f"{leaf.path}: grows, so it must be of a floating dtype, not {dtype}"
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
    if fresh is not None:
        leaves, fresh = arrays_of(leaves), arrays_of(fresh)
        expected = {path: jnp.shape(array) for path, array in leaves.items()} | growth.shapes
        problems += [f"{path}: not in fresh" for path in leaves if path not in fresh]
        problems += [f"{path}: only in fresh" for path in fresh if path not in leaves]
        problems += [
            f"{path}: has shape {jnp.shape(array)} in fresh, but grows to {expected[path]}"
            for path, array in fresh.items()
            if path in expected and jnp.shape(array) != expected[path]
        ]
    if not problems:
        # NaN may be in units that are removed, so arrays that only lose units are not checked.
        looked_at = [path for path, leaf_map in growth.maps.items() if leaf_map.grows]
        for where, tree in (("", leaves), (" in fresh", fresh or {})):
            problems += [
                refusal_of_not_finite(path, where)
                for path in not_finite({path: tree[path] for path in looked_at if path in tree})
            ]
    if problems:
        raise ValueError(listed("cannot grow these variables", problems))


@functools.partial(jax.jit, static_argnames=("maps", "where"))
def _grow_leaves(
    leaves: dict[str, Array],
    fresh: dict[str, Array] | None,
    scales: dict[str, Array],
    key: Array | None,
    words: Array | None,
    places: Array,
    *,
    maps: tuple[LeafMap, ...],
    where: Placement,
) -> dict[str, Array]:
    """Returns arrays grown.

    Args:
        leaves: the old arrays, by name: ``"0"``, ``"1"`` and so on.
        fresh: arrays from which free entries are taken.
        scales: arrays that weigh the entries of others in means.
        key: what other random numbers are drawn with.
        words: a seed for each of the network's arrays that grow, ``[arrays, 2]``.
        places: the row of ``words`` for each of these arrays.
        maps: what becomes of each.
        where: on which devices they lie.
    """
    grown = {}
    for index, leaf_map in enumerate(maps):
        name, word = str(index), None if words is None else words[places[index]]
        new = None if fresh is None else fresh[name]
        scale = scales.get(name)
        grown[name] = grow_array(leaves[name], leaf_map, key, word, places[index], new, scale)
    return where.constrain(grown)


def grow_array(
    old: Array,
    leaf_map: LeafMap,
    key: Array | None,
    word: Array | None,
    place: Any,
    fresh: Array | None = None,
    scale: Array | None = None,
) -> Array:
    """Returns one array grown.

    Args:
        old: the old array.
        leaf_map: what becomes of it.
        key: what random numbers are drawn with; None if there are none.
        word: the array's seed, ``uint32[2]``.
        place: its place among the arrays that grow.
        fresh: an array from which free entries are taken.
        scale: an array that weighs old entries in means, see ``apply_map``.
    """
    draw = noise = None
    fresh = None if fresh is None else fresh.astype(old.dtype)
    if key is not None and word is not None:
        draws = Draws(leaf_map, old.dtype, seeds(word), keys_of(key, place))
        fresh = draws.initialized() if fresh is None else fresh
        draw, noise = draws.draw, draws.normal
    return apply_map(leaf_map, old, fresh=fresh, draw=draw, noise=noise, scale=scale)
