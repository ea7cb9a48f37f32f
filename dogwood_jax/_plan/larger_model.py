"""Reads the larger model's own program, if there is one: ``read_larger``.

Shapes do not show how a product such as heads * head_dim is split, nor any constants. The larger
model's program shows both. If it has more layers, it also shows what these must compute.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp

from dogwood_jax._base.described import first_line
from dogwood_jax._base.trees import PyTree, arrays_of, is_array, leaf_path, leaves_by_path, struct
from dogwood_jax._growth.edit import Edit
from dogwood_jax._growth.grown_sizes import GrownSizes
from dogwood_jax._growth.modules.resizing import modules_say_numbers
from dogwood_jax._plan.depth.layers import axis_of_layers, placements, with_kinds
from dogwood_jax._plan.depth.repeated import repeated_layers
from dogwood_jax._plan.fewer_layers import fewer_layers
from dogwood_jax._plan.obstacles import other_images
from dogwood_jax._plan.own_function import in_larger_module
from dogwood_jax._plan.target import sizes_of_target
from dogwood_jax._program.dims import LAYERS
from dogwood_jax._program.kernels import kernels_of, with_references
from dogwood_jax._program.program import Program
from dogwood_jax._program.reasons import kind_of
from dogwood_jax._widths.layout import Layout, Units, units_of
from dogwood_jax._widths.trace import read_network, read_program
from dogwood_jax._widths.widths import Network, Width, Widths
from dogwood_jax.strategies import DepthStrategy

_ITS_OWN = "the larger model's function is assumed to be the network's own, also for new layers"
ANOTHER = "if the larger model has another function, pass it as target_apply="

_WITHOUT_FUNCTION = (
    "if the side of images is not the rows of the grid times the side of a patch, leave out "
    "target_apply=: the shapes of the target are enough to resample"
)

NOT_AT_HAND = "target_apply= needs widths that were traced in this process: trace the network again"


@dataclass(frozen=True)
class Larger:
    """The larger model, matched to the network.

    Attributes:
        shapes: shapes of the arrays that the network also has, by their paths in the network.
        inserted: arrays that are new, moved, or have new layers.
        is_unlikely: whether this choice of new layers is less likely than another one.
        others: the same model with other choices of new layers; an iterator, for one use.
        widths: the larger model's widths, or None if its program is not known.
        names: for widths of the network, their names in the larger model.
        notes: assumptions about the larger model's program.
    """

    shapes: Mapping[str, Any]
    inserted: tuple[Edit, ...] = ()
    is_unlikely: bool = False
    others: Iterator["Larger"] = iter(())
    widths: Widths | None = None
    names: Mapping[str, str] | None = None
    notes: tuple[str, ...] = ()

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Sizes of the network's widths in the larger model, where its program shows them."""
        if self.widths is None or self.names is None:
            return {}
        return {name: self.widths.sizes[larger] for name, larger in self.names.items()}


def in_dtypes_of(network: Network | None, target: PyTree) -> PyTree:
    """Returns the larger model's variables in the dtypes of the network, which grown arrays keep.

    In another precision, the larger program would have other constants.
    """
    if network is None:
        return target
    dtypes = {path: array.dtype for path, array in network.traced.program.arguments if path}

    def one(keys: tuple[Any, ...], leaf: Any) -> Any:
        dtype = dtypes.get(leaf_path(keys))
        if dtype is None or not is_array(leaf) or leaf.dtype == dtype:
            return leaf
        are_floats = all(jnp.issubdtype(one, jnp.floating) for one in (leaf.dtype, dtype))
        return struct(leaf.shape, dtype) if are_floats else leaf

    return jax.tree_util.tree_map_with_path(one, target)


def read_larger(
    widths: Widths,
    target: PyTree,
    target_apply: Callable[..., Any] | None,
    depth: DepthStrategy | None = None,
    *,
    is_deeper: bool,
    inputs: tuple[Any, ...] | None = None,
) -> Larger:
    """Reads the larger model's shapes, and its program if there is one.

    Args:
        widths: the network's widths.
        target: a pytree of arrays or ``jax.ShapeDtypeStruct`` of the larger model.
        target_apply: the larger model's function of variables and inputs, or None.
        depth: how new layers are filled; None for layers that compute the identity.
        is_deeper: whether the larger model has more layers.
        inputs: the larger model's inputs, if they do not follow from the shapes.

    Raises:
        ValueError: if the larger program is needed but cannot be traced, or new layers of the
            larger model cannot compute the identity.
    """
    shapes = arrays_of(leaves_by_path(target))
    if target_apply is None:
        if (own := _in_larger_module(widths, target, shapes, inputs)) is None:
            return _read_by_own_function(widths, target, shapes, is_deeper, inputs)
        target_apply = own
    network = widths.network
    if network is None:
        raise ValueError(NOT_AT_HAND)
    target_apply = with_references(target_apply, kernels_of(network.apply))
    placed: Iterator[tuple[Edit, ...]] = iter([()])
    if is_deeper and depth is not None:
        old = {leaf.path: struct(leaf.shape, float) for leaf in widths.leaves}
        axes = {leaf.path: axis_of_layers(widths, leaf)[0] for leaf in widths.leaves}
        stacked = {path: axis for path, axis in axes.items() if axis is not None}
        found = repeated_layers(old, shapes, stacked, depth)
        placed = iter([with_kinds(found, read_network(target_apply, target, *network.inputs))])
    elif is_deeper:
        try:
            program = Program(target_apply, target, network.inputs)
        except Exception as error:  # a function may raise anything with other inputs
            raise ValueError(
                f"{_not_its_own(widths, target_apply, shapes, error)}\n- if the larger model's "
                "inputs are larger, too, grow the inputs first, in a growth of their own"
            ) from error
        known = {leaf.path for leaf in widths.leaves}
        new = {path: shape for path, shape in shapes.items() if path not in known}
        if new and not program.uses(new):
            raise ValueError(
                "is target_apply= the function of target=? It reads no new array of the larger "
                f"model, such as {next(iter(new))}; pass the deeper model's function"
            )
        placed = placements(widths, program, wider=True)
    instead = [*other_images(widths, shapes)] if inputs is None else [_WITHOUT_FUNCTION]
    traced = dict[tuple[Any, ...], Widths | ValueError]()

    def larger(inputs: tuple[Any, ...]) -> Widths | ValueError:
        arrays = tuple(jax.tree.leaves(inputs))
        if arrays not in traced:
            try:
                traced[arrays] = read_network(target_apply, target, *inputs)
            except Exception as error:  # a function may raise anything
                lines = [_not_its_own(widths, target_apply, shapes, error), *instead]
                traced[arrays] = ValueError("\n- ".join(lines))
                traced[arrays].__cause__ = error  # type: ignore[union-attr]
        return traced[arrays]

    if not is_deeper and (few := _by_few_layers(widths, target, target_apply, inputs)) is not None:
        return few

    def others() -> Iterator[Larger]:
        for found in placed:
            other = _with_new_layers(widths, shapes, found, larger, inputs)
            if isinstance(other, Larger):  # errors report the first choice, not this one
                yield replace(other, is_unlikely=True)

    first = _with_new_layers(widths, shapes, next(placed), larger, inputs)
    if isinstance(first, ValueError):
        raise first
    return replace(first, others=others())


def _with_new_layers(
    widths: Widths,
    shapes: Mapping[str, Any],
    found: tuple[Edit, ...],
    larger: Callable[[tuple[Any, ...]], Widths | ValueError],
    inputs: tuple[Any, ...] | None,
) -> Larger | ValueError:
    """Returns the larger model with these new layers, or the error that its function raised.

    Args:
        widths: the network's widths.
        shapes: shapes of the larger model's arrays.
        found: edits of the arrays that are new, moved, or have new layers.
        larger: returns the larger model's widths for its inputs, or the error that was raised.
        inputs: the larger model's inputs, if they do not follow from the shapes.
    """
    places = {edit.old: edit.path for edit in found if edit.old is not None}
    stacked = {edit.path: edit.layers.axis for edit in found if edit.layers}
    paired = {leaf.path: places.get(leaf.path, leaf.path) for leaf in widths.leaves}
    kept = {}
    for leaf in widths.leaves:
        if (place := paired[leaf.path]) in shapes:
            array = shapes[place]
            shape = list(array.shape)
            if (axis := stacked.get(place)) is not None:
                shape[axis] = leaf.shape[axis]
            kept[leaf.path] = struct(tuple(shape), array.dtype)
    explained = {*paired.values(), *(edit.path for edit in found)}
    kept |= {path: array for path, array in shapes.items() if path not in explained}
    if inputs is None:
        inputs = GrownSizes(widths, sizes_of_target(widths, kept, {}, [])).inputs()
    its = larger(inputs)
    if isinstance(its, ValueError):
        return its
    return Larger(kept, found, widths=its, names=same_widths(widths, its, paired, stacked))


def _by_few_layers(
    widths: Widths,
    target: PyTree,
    target_apply: Callable[..., Any],
    inputs: tuple[Any, ...] | None,
) -> Larger | None:
    """Returns the larger model, read with a few layers that represent all layers.

    Returns None if the function has no like layers, or these do not all grow in the same way.

    Args:
        widths: the widths of a deep network.
        target: the larger model's variables.
        target_apply: the larger model's function.
        inputs: the larger model's inputs, if they do not follow from the shapes.
    """
    network, shapes = widths.network, arrays_of(leaves_by_path(target))
    assert network is not None
    kept = {leaf.path: shapes[leaf.path] for leaf in widths.leaves if leaf.path in shapes}
    if network.layers is None:
        return None
    sizes = sizes_of_target(widths, kept, {}, [])
    fewer = fewer_layers(widths, sizes)
    if fewer is None or fewer.kept != network.layers.few:
        return None
    if inputs is None:
        inputs = GrownSizes(fewer.read, sizes).inputs()
    try:
        program = Program(target_apply, target, inputs)
    except Exception:  # a function with fixed sizes may raise anything
        return None
    if (few := fewer.of(program)) is None:
        return None
    traced, its = read_program(few)
    its = replace(its, network=Network(target_apply, None, inputs, traced))
    names = same_widths(fewer.read, its, {leaf.path: leaf.path for leaf in its.leaves}, {})
    others = ((name, second) for name, second in fewer.like.items() if second in names)
    return Larger(kept, widths=its, names=names | {name: names[its] for name, its in others})


def _in_larger_module(
    widths: Widths, target: PyTree, shapes: Mapping[str, Any], inputs: tuple[Any, ...] | None
) -> Callable[..., Any] | None:
    """Returns the network's own function in the Linen module of the larger model, or None."""
    if widths.network is None:
        return None
    kept = {leaf.path: shapes[leaf.path] for leaf in widths.leaves if leaf.path in shapes}
    sizes = sizes_of_target(widths, kept, {}, [])
    inputs = GrownSizes(widths, sizes).inputs() if inputs is None else inputs
    return in_larger_module(widths, sizes, target, inputs)


def _read_by_own_function(
    widths: Widths,
    target: PyTree,
    shapes: Mapping[str, Any],
    is_deeper: bool,
    inputs: tuple[Any, ...] | None,
) -> Larger:
    """Reads the larger model with the network's own function, if the larger model shares it.

    This is certain if the target consists of modules that hold their own constants, as in Equinox.
    It is assumed if the function uses all new layers of the target and shapes alone determine the
    sizes (then a note states the assumption), or if the function accepts copies of a single unit.
    Otherwise, only the shapes of the larger model are returned.
    """
    network = widths.network
    if network is None:
        return Larger(shapes)
    modules = modules_say_numbers(jax.tree.structure(target))
    is_copied = not is_deeper and copies_single_units(widths, shapes)
    if not (modules or is_deeper or is_copied):
        return Larger(shapes)
    try:
        program = Program(network.apply, target, network.inputs if inputs is None else inputs)
    except Exception:  # a function with fixed sizes may raise anything
        return Larger(shapes)
    if not modules and not _uses_new_layers(widths, program):
        return Larger(shapes)
    try:
        larger = read_larger(widths, target, network.apply, is_deeper=is_deeper, inputs=inputs)
    except ValueError as error:
        raise ValueError(f"{error}\n- {ANOTHER}") from error
    if modules or is_copied:
        return larger
    unsettled: list[str] = []  # another function may split a product differently: more heads
    sizes_of_target(widths, larger.shapes, {}, unsettled)
    note = f"{_ITS_OWN}; {ANOTHER}"
    return Larger(shapes) if unsettled else replace(larger, notes=(note,))


def _uses_new_layers(widths: Widths, program: Program) -> bool:
    """Whether a program uses all arrays that the network lacks, and all entries of longer stacks.

    A stack counts as used if a loop runs over it.
    """
    known, read = {leaf.path: leaf for leaf in widths.leaves}, set(program.reading_order())
    for path, array in program.arguments:
        if path is None:
            continue
        if path not in known:
            if path not in read:
                return False
            continue
        leaf = known[path]
        if (axis := axis_of_layers(widths, leaf)[0]) is not None:
            is_longer = array.ndim > axis and array.shape[axis] > leaf.shape[axis]
            reasons = {widths[units.width].fixed for units in units_of(leaf.axes[axis])}
            if is_longer and reasons != {LAYERS}:
                return False
    return True


def _not_its_own(
    widths: Widths, target_apply: Callable[..., Any], shapes: Mapping[str, Any], error: Exception
) -> str:
    """Returns an error text: the function does not accept the larger model's arrays, and why."""
    own = None if widths.network is None else widths.network.apply
    is_own = " This one is the small network's." if target_apply == own else ""
    missing = [leaf.path for leaf in widths.leaves if leaf.path not in shapes]
    lacks = f" (not in the target: {', '.join(missing)})" if missing else ""
    return (
        f"is target_apply= the function of target=? Pass the larger model's.{is_own}\n"
        f"It fails with the larger arrays and the network's inputs: {first_line(error)}{lacks}"
    )


def is_deeper(widths: Widths, shapes: Mapping[str, Any]) -> bool:
    """Whether the larger model has other arrays, or more entries along an axis of layers."""
    known = {leaf.path: leaf for leaf in widths.leaves}
    if shapes.keys() - known.keys():
        return True
    return any(
        shapes[path].shape[axis] > leaf.shape[axis]
        for path, leaf in known.items()
        if path in shapes and len(shapes[path].shape) == len(leaf.shape)
        if (axis := axis_of_layers(widths, leaf)[0]) is not None
    )


def is_single(width: Width) -> bool:
    """Whether an operation repeats or drops the width's unit, because the width has only one."""
    return kind_of(width.fixed or "") == "single"


def copies_single_units(widths: Widths, shapes: Mapping[str, Any]) -> bool:
    """Whether a single unit becomes several in the larger model."""
    return any(
        new > old and isinstance(axis, Units) and is_single(widths[axis.width])
        for leaf in widths.leaves
        if leaf.path in shapes
        for axis, old, new in zip(leaf.axes, leaf.shape, shapes[leaf.path].shape, strict=False)
    )


def same_widths(
    old: Widths, new: Widths, paired: Mapping[str, str], stacked: Mapping[str, int]
) -> dict[str, str]:
    """Returns the names of widths in the larger model, where their arrays agree on one name.

    Args:
        old: the network's widths.
        new: the larger model's widths.
        paired: for each path in the network, the path in the larger model.
        stacked: for paths in the larger model, the axis of layers, which is longer there.
    """
    names: dict[str, set[str]] = {}
    leaves = {leaf.path: leaf for leaf in new.leaves}
    for leaf in old.leaves:
        if (place := paired[leaf.path]) in leaves:
            for axis, (a, b) in enumerate(zip(leaf.axes, leaves[place].axes, strict=False)):
                if axis == stacked.get(place):
                    continue  # the old network is shorter along it
                for before, after in _pairs(a, b):
                    names.setdefault(before, set()).add(after)
    return {name: found.pop() for name, found in names.items() if len(found) == 1}


def _pairs(old: Layout, new: Layout) -> Iterator[tuple[str, str]]:
    if isinstance(old, Units) and isinstance(new, Units):
        yield old.width, new.width
    elif not isinstance(old, Units) and type(old) is type(new):
        if len(old.parts) == len(new.parts):
            for a, b in zip(old.parts, new.parts, strict=True):
                yield from _pairs(a, b)
