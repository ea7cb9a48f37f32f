"""Turns dimensions into widths with names, and axes into layouts."""

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from dogwood_jax._program import dims as _dims
from dogwood_jax._program.dims import Dim
from dogwood_jax._program.reasons import Reason
from dogwood_jax._program.values import KIND_OF_USE, Trace, Use, Value
from dogwood_jax._widths.attention import HEAD_DIM, HEADS, VALUE_DIM, label_attention
from dogwood_jax._widths.layout import Concat, Layout, Product, Units
from dogwood_jax._widths.roles import Roles, Spot
from dogwood_jax._widths.widths import Leaf

# Names that libraries give to the only kernel of a layer.
_KERNELS = ("kernel", "weight", "w")
_COLLECTIONS = ("params", "batch_stats")


def names_of(leaves: dict[str, Value], roles: Roles, trace: Trace) -> dict[Dim, str]:
    """Returns the name of each width by its dimension, after adding labels and notes."""
    paths = list(leaves)
    _fix_units_that_no_array_makes(roles)
    label_attention(trace, roles)
    _note_factors_of_size_1(trace)
    _label_groups(roles)
    names = _names(paths, roles, trace)
    _note_scores_of_one_unit(names)
    return names


def laid_out(
    leaves: dict[str, Value], names: dict[Dim, str], roles: Roles, trace: Trace
) -> tuple[Leaf, ...]:
    """Returns the arrays with the layout of every axis, in the order in which they are used."""
    paths, found = list(leaves), []
    for index in sorted(range(len(leaves)), key=lambda i: trace.uses.get(i, Use(i)).order):
        path, use = paths[index], trace.uses.get(index)
        dims = leaves[path].dims
        axes = tuple(
            _layout(
                roles.dims[index, axis],
                (_units(spot, names, roles) for spot in roles.spots[index, axis]),
            )
            for axis in range(len(dims))
        )
        found.append(
            Leaf(
                path,
                tuple(d.size for d in dims),
                axes,
                "zeros" if index in trace.quantized else KIND_OF_USE[use.how if use else ""],
                tuple(sorted(use.fan_in)) if use else (),
                tuple(sorted(use.fan_out)) if use else (),
            )
        )
    return tuple(found)


def _units(spot: Spot, names: dict[Dim, str], roles: Roles) -> Units:
    return Units(names[spot.atom], spot.atom.size, roles.of(spot), roles.is_produced(spot))


def _layout(dim: Dim, units: Iterator[Units]) -> Layout:
    """Returns the layout of a dimension, given its units from left to right."""
    dim = dim.root
    if dim.kind is None:
        return next(units)
    if dim.kind == "product":
        return Product(tuple(_layout(factor, units) for factor in _dims.factors(dim)))
    return Concat(tuple(_layout(piece, units) for piece in _dims.pieces(dim)))


def _fix_units_that_no_array_makes(roles: Roles) -> None:
    """Fixes widths of size 1 that arrays only read, such as a mean beside other features."""
    made: dict[Dim, bool] = {}
    for spots in roles.spots.values():
        for spot in spots:
            made[spot.atom] = made.get(spot.atom, False) or roles.of(spot) != "outgoing"
    for atom, is_made in made.items():
        if atom.size == 1 and not is_made and not atom.interface:
            atom.fix("no array makes its unit, the program does")


def _label_groups(roles: Roles) -> None:
    """Labels groups of units that are normalized separately, such as in GroupNorm."""
    for place, spots in roles.spots.items():
        atoms = [spot.atom for spot in spots]
        if roles.dims[place].root.kind == "product" and len(atoms) == 2:
            groups, units = atoms
            if units.summed and not groups.summed:
                groups.named("groups")
                units.named("group_size")


def _note_factors_of_size_1(trace: Trace) -> None:
    """Adds notes where a larger model could have more heads or groups with the same shapes."""
    noted: set[Dim] = set()
    for split in trace.split_off:
        labels = {atom.label for dim in split.beside for atom in _dims.atoms(dim)}
        for atom in {*_dims.atoms(split.whole)} - noted:
            has_heads = atom.label in HEADS or (
                atom.label in (HEAD_DIM, VALUE_DIM) and labels.isdisjoint(HEADS)
            )
            # A repeated 1 only fits axes to another array, such as in squeeze-and-excitation.
            is_repeated = _dims.REPEATED in split.one.root.fixed
            # The gradient of a repeated array is also summed over a 1, which then comes first.
            is_summed = split.is_last and split.one.root.summed
            has_groups = (atom.summed or is_summed) and not is_repeated
            if has_heads or has_groups:
                noted.add(atom)
                note = (
                    f"the network splits an axis into {split.how}: the 1 must be 1 in the larger "
                    "model, too, which its shapes do not show"
                )
                atom.note(Reason(note, "must_stay"))


def _note_scores_of_one_unit(atoms: Iterable[Dim]) -> None:
    """Adds notes where scores may be scaled by 1 / sqrt(head_dim), which is 1."""
    for atom in atoms:
        if atom.size == 1 and atom.bilinear and not atom.summed:
            note = (
                "activations are contracted over a single unit, so the program does not show "
                "whether they are scaled by the number of units: pass target_apply="
            )
            atom.note(Reason(note, "must_stay"))


def _names(paths: list[str], roles: Roles, trace: Trace) -> dict[Dim, str]:
    """Names every width by the module that first produces it.

    If a kernel of the module lacks the width, as in the parameters of a whole block, the name
    contains the array that produces it.
    """
    places: dict[Dim, list[Spot]] = {}
    for spots in roles.spots.values():
        for spot in spots:
            places.setdefault(spot.atom, []).append(spot)

    def rank(spot: Spot) -> tuple[Any, ...]:
        use = trace.uses.get(spot.leaf)
        random = use is not None and KIND_OF_USE[use.how] == "random"
        order = use.order if use else 1 << 30
        return (-roles.produces(spot), not random, order, spot.leaf, spot.axis, spot.start)

    names: dict[Dim, str] = {}
    taken: set[str] = set()
    best = {atom: min(spots, key=rank) for atom, spots in places.items()}
    # A module that produces only one width gives its name to it.
    produced = Counter(
        (leaf, level)
        for spots in places.values()
        for leaf, _, level in {(s.leaf, s.axis, roles.produces(s)) for s in spots}
    )
    kernels: dict[str, set[int]] = {}
    for index, axis in roles.dims:
        if axis:  # biases and scales belong to the layer of their kernel
            kernels.setdefault(module_of(paths[index]), set()).add(index)
    for atom in sorted(places, key=lambda atom: rank(best[atom])):
        spot = best[atom]
        path = paths[spot.leaf]
        module = module_of(path) or path.removeprefix("params/")
        level = roles.produces(spot)
        alone = level and produced[spot.leaf, level] == 1
        # A width that counts layers is named after the module that contains all of them.
        modules = {module_of(paths[s.leaf]) for s in places[atom]} if atom.label == "layers" else ()
        owner = "/".join(_common([m.split("/") for m in modules])) or module
        within = [s.atom for s in roles.spots[spot.leaf, spot.axis]]
        position = f"{spot.axis}" if len(within) == 1 else f"{spot.axis}.{within.index(atom)}"
        label, own = label_of(atom), {s.leaf for s in places[atom]}
        is_whole = kernels.get(module, set()) <= own or any(
            inside_of(paths[i]) in {f"{module}/{kernel}" for kernel in _KERNELS} for i in own
        )
        rest = [
            f"{module}[{position}]",
            f"{path.removeprefix('params/')}[{position}]",
            f"{path}[{position}]",
        ]
        whole = module if is_whole else inside_of(path)
        choices = [*([whole] if alone else []), *([f"{owner}[{label}]"] if label else []), *rest]
        names[atom] = _first_free(choices, taken)
    first_use = {
        atom: min(trace.uses.get(spot.leaf, Use(spot.leaf)).order for spot in spots)
        for atom, spots in places.items()
    }
    in_order = sorted(names.items(), key=lambda item: (bool(item[0].fixed), first_use[item[0]]))
    return dict(in_order)


def _first_free(choices: Iterable[str], taken: set[str]) -> str:
    """Returns the first name that is not taken, and adds it to the taken names."""
    name = next(choice for choice in choices if choice not in taken)
    taken.add(name)
    return name


def _common(paths: Sequence[Sequence[str]]) -> list[str]:
    """Returns the path of the innermost module that contains all these modules."""
    levels = zip(*paths, strict=False)
    return [first for first, *others in itertools.takewhile(lambda m: len({*m}) == 1, levels)]


def label_of(atom: Dim) -> str:
    """Returns the label of units; empty for positions of an input, which are not heads."""
    return atom.label or "" if atom.label == "vocab" or not atom.interface else ""


def module_of(path: str) -> str:
    """Returns the module that owns an array, whatever collection the array is in."""
    inside = inside_of(path)
    return inside.rpartition("/")[0] or (inside if inside == path else "")


def inside_of(path: str) -> str:
    """Returns a path without its leading collection."""
    collection, _, rest = path.partition("/")
    return rest if collection in _COLLECTIONS and rest else path
