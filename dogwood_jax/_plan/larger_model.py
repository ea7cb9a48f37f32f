"""The larger model's own program, where it is given: ``read_larger``.

Shapes leave open how a product such as heads * head_dim is split, and say nothing of constants. The
larger model's program tells both, and where it has more layers, what they must compute.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import jax

from dogwood_jax._base.described import first_line
from dogwood_jax._base.trees import PyTree, arrays_of, leaves_by_path, struct
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

_ITS_OWN = "new layers compute what the network's own function computes with them"
ANOTHER = "if the larger model has another function, pass it as target_apply="

_WITHOUT_FUNCTION = (
    "if images have other sides than rows of the grid times the side of a patch, leave out "
    "target_apply=: the target says what is resampled"
)

NOT_AT_HAND = "target_apply= needs widths that were traced in this process: trace the network again"


@dataclass(frozen=True)
class Larger:
    """What is known of the larger model.

    Attributes:
        shapes: shapes of the arrays that the network has, too, by their paths in the network.
        inserted: the arrays that the network does not have.
        is_unlikely: whether other layers are more likely to be those of the network.
        others: the same where other layers of it are those of the network. Each is yielded once.
        widths: the larger model's widths.
        names: for widths of the network, their names in the larger model.
        notes: what is supposed of its program.
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
        """Sizes of the network's widths in the larger model, where its program tells them."""
        if self.widths is None or self.names is None:
            return {}
        return {name: self.widths.sizes[larger] for name, larger in self.names.items()}


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
        target_apply: its function of variables and inputs, or None.
        depth: how new layers are filled in; None for layers that compute the identity.
        is_deeper: whether it has more layers.
        inputs: its inputs, if they do not follow from its shapes.

    Raises:
        ValueError: if the program is needed and cannot be had, or new layers of the larger model
            cannot compute the identity.
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
        except Exception as error:  # a function may raise anything if it is given other inputs
            raise ValueError(
                f"{_not_its_own(widths, target_apply, shapes, error)}\n- if the larger model's "
                "inputs are larger, too, grow these first, in a growth of its own"
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
            if isinstance(other, Larger):  # what speaks against the first is what is told
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
    """Returns what is known of a larger model with these new layers, or what its function raised.

    Args:
        widths: the network's widths.
        shapes: shapes of the larger model's arrays.
        found: which of them are new, moved, or have new layers.
        larger: returns the larger model's widths for its inputs, or what its function raised.
        inputs: its inputs, if they do not follow from its shapes.
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
    """Returns what a function tells of a larger model's layers that stand for all.

    It is None if the function has no such layers, or others grow in other ways. The network's own
    function may take these layers alone.

    Args:
        widths: the widths of a deep network.
        target: the larger model's variables.
        target_apply: its function.
        inputs: its inputs, if they do not follow from its shapes.
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
    is_own = target_apply == network.apply  # a method is another object each time
    try:
        program = Program(target_apply, fewer.cut(target) if is_own else target, inputs)
    except Exception:  # any function may raise that knows its sizes
        return None
    called = fewer.called(program) if is_own else fewer.of(program)
    if called is None or (is_own and not fewer.is_like_all(program, sizes)):
        return None
    traced, its = read_program(called)
    its = replace(its, network=Network(target_apply, None, inputs, traced))
    names = same_widths(fewer.read, its, {leaf.path: leaf.path for leaf in its.leaves}, {})
    others = ((name, second) for name, second in fewer.like.items() if second in names)
    return Larger(kept, widths=its, names=names | {name: names[its] for name, its in others})


def _in_larger_module(
    widths: Widths, target: PyTree, shapes: Mapping[str, Any], inputs: tuple[Any, ...] | None
) -> Callable[..., Any] | None:
    """Returns the network's own function in the Linen module of the larger model, if it is one."""
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
    """Reads the larger model by the network's own function, if that is the larger model's, too.

    It is where the target consists of modules that say the numbers it computes with, as in Equinox.
    It is taken to be where it uses all of the target's new layers, and shapes alone tell the sizes,
    and where it takes copies of a single unit. Of new layers, a note says so.
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
    except Exception:  # any function may raise that knows its sizes
        return Larger(shapes)
    if not modules and not _uses_new_layers(widths, program):
        return Larger(shapes)
    try:
        larger = read_larger(widths, target, network.apply, is_deeper=is_deeper, inputs=inputs)
    except ValueError as error:
        raise ValueError(f"{error}\n- {ANOTHER}") from error
    if modules or is_copied:
        return larger
    unsettled: list[str] = []  # another function may split a product otherwise, as into more heads
    sizes_of_target(widths, larger.shapes, {}, unsettled)
    note = f"{_ITS_OWN}; {ANOTHER}"
    return Larger(shapes) if unsettled else replace(larger, notes=(note,))


def _uses_new_layers(widths: Widths, program: Program) -> bool:
    """Whether a program uses all arrays that the network lacks, and all entries of longer stacks.

    A loop uses all entries of what it runs over.
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
    """Says that a function does not take the larger model's arrays, and what it raised."""
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
    """Whether an operation repeats or drops the width's unit, because the unit is alone."""
    return kind_of(width.fixed or "") == "single"


def copies_single_units(widths: Widths, shapes: Mapping[str, Any]) -> bool:
    """Whether single units become more."""
    return any(
        new > old and isinstance(axis, Units) and is_single(widths[axis.width])
        for leaf in widths.leaves
        if leaf.path in shapes
        for axis, old, new in zip(leaf.axes, leaf.shape, shapes[leaf.path].shape, strict=False)
    )


def same_widths(
    old: Widths, new: Widths, paired: Mapping[str, str], stacked: Mapping[str, int]
) -> dict[str, str]:
    """Returns the names that widths have in the larger model, where their arrays agree on it."""
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
