"""From dimensions to widths: every width gets a name, every axis its layout."""

import functools
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from dogwood_jax import _dims
from dogwood_jax._dims import Dim, atoms
from dogwood_jax._layout import Concat, Layout, Product, Units
from dogwood_jax._roles import Roles, solve
from dogwood_jax._scaling import find_recipes
from dogwood_jax._values import KIND_OF_USE, Trace, Use, Value
from dogwood_jax._widths import Facts, Leaf, Widths, make_widths

_COLLECTIONS = ("params", "batch_stats")


def name_widths(leaves: dict[str, Value], trace: Trace) -> Widths:
    """Returns the widths of a network whose program has been read."""
    outgoing = solve(trace)
    trace.check_scales()
    _dims.hand_down([*trace.dims, *(d for value in leaves.values() for d in value.dims)])
    roles = Roles(leaves, trace, outgoing)
    names = _names(roles)
    for demand_dim, hazard in roles.copy_hazards():
        demand_dim.endanger_copies(hazard)
    found = []
    paths = list(leaves)
    for index in sorted(range(len(leaves)), key=lambda i: trace.uses.get(i, Use(i)).order):
        path, use = paths[index], trace.uses.get(index)
        value = leaves[path]
        axes = tuple(
            _layout(dim, names, functools.partial(roles.units, index, axis))
            for axis, dim in enumerate(value.dims)
        )
        found.append(
            Leaf(
                path,
                tuple(d.size for d in value.dims),
                axes,
                KIND_OF_USE[use.how if use else ""],
                tuple(sorted(use.fan_in)) if use else (),
                tuple(sorted(use.fan_out)) if use else (),
            )
        )
    recipes = find_recipes(trace, leaves, found, names)
    facts = {
        name: Facts(
            atom.size,
            atom.interface,
            next(iter(atom.fixed), None),
            tuple(atom.hazards),
            tuple(atom.copy_hazards),
            roles.zero_hazard(atom),
            tuple(atom.notes),
            recipes.get(atom, ()),
        )
        for atom, name in names.items()
    }
    return make_widths(tuple(found), facts)


def _layout(dim: Dim, names: Mapping[Dim, str], units: Callable[[Dim, str], Units]) -> Layout:
    dim = dim.root
    if dim.kind is None:
        return units(dim, names[dim])
    flat = _dims.factors(dim) if dim.kind == "product" else _dims.pieces(dim)
    parts = tuple(_layout(part, names, units) for part in flat)
    return Product(parts) if dim.kind == "product" else Concat(parts)


def _names(roles: Roles) -> dict[Dim, str]:
    """Names every width by the module that first produces it."""
    trace = roles.trace
    places: dict[Dim, list[tuple[int, int]]] = {}
    for index, value in enumerate(roles.leaves.values()):
        for axis, dim in enumerate(value.dims):
            for atom in atoms(dim):
                places.setdefault(atom.root, []).append((index, axis))

    def rank(atom: Dim, spot: tuple[int, int]) -> tuple[Any, ...]:
        leaf, axis = spot
        use = trace.uses.get(leaf)
        random = use is not None and KIND_OF_USE[use.how] == "random"
        order = use.order if use else 1 << 30
        return (-roles.produces(leaf, axis, atom), not random, order, leaf, axis)

    names: dict[Dim, str] = {}
    taken: set[str] = set()
    best = {atom: min(spots, key=functools.partial(rank, atom)) for atom, spots in places.items()}
    products = Counter(
        (leaf, roles.produces(leaf, axis, atom))
        for atom, spots in places.items()
        for leaf, axis in dict.fromkeys(spots)
    )
    for atom in sorted(places, key=lambda atom: rank(atom, best[atom])):
        leaf, axis = best[atom]
        path = roles.paths[leaf]
        module = module_of(path) or path.removeprefix("params/")
        produces = roles.produces(leaf, axis, atom)
        alone = produces and products[leaf, produces] == 1
        within = atoms(roles.leaves[path].dims[axis])
        position = f"{axis}" if len(within) == 1 else f"{axis}.{within.index(atom)}"
        choices = [
            *([module] if alone else []),
            *([f"{module}[{atom.label}]"] if _is_meaningful(atom) else []),
            f"{module}[{position}]",
            f"{path.removeprefix('params/')}[{position}]",
            f"{path}[{position}]",
        ]
        name = next(c for c in choices if c not in taken)
        taken.add(name)
        names[atom] = name
    first_use = {
        atom: min(trace.uses[leaf].order if leaf in trace.uses else 1 << 30 for leaf, _ in spots)
        for atom, spots in places.items()
    }
    return dict(sorted(names.items(), key=lambda item: (bool(item[0].fixed), first_use[item[0]])))


def _is_meaningful(atom: Dim) -> bool:
    """Whether the label says what the units are: positions of an input are no heads."""
    return atom.label is not None and (atom.label == "vocab" or not atom.interface)


def module_of(path: str) -> str:
    """Returns the module that owns an array, whatever collection the array is in."""
    collection, _, rest = path.partition("/")
    inside = rest if collection in _COLLECTIONS and rest else path
    return inside.rpartition("/")[0] or (inside if inside == path else "")
