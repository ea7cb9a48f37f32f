"""The network's own function in other sizes: ``own_program``.

The function is traced again with shapes in the grown sizes. The result is the larger network's
program: a constant such as ``0.1 * width`` shows here, and so does ``heads = width // 64``. A Linen
module holds its sizes, so its method is called on a module of other sizes, if there is exactly one.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from math import isclose, prod
from typing import Any

import jax
import jax.numpy as jnp

from dogwood_jax._base.described import first_line
from dogwood_jax._base.problems import UnfitArrays
from dogwood_jax._base.trees import PyTree, arrays_of, leaves_by_path
from dogwood_jax._check.resize import in_sizes
from dogwood_jax._growth.grown_sizes import GrownSizes
from dogwood_jax._growth.modules.of_linen import LinenMethod, LinenModule, method_of
from dogwood_jax._growth.modules.remaking import CannotRemake
from dogwood_jax._growth.modules.resizing import Resizing, changes_of, says_numbers
from dogwood_jax._plan.depth.layers import more_numbers
from dogwood_jax._program.interpret import called
from dogwood_jax._program.primitives.new_sizes import CannotResize
from dogwood_jax._program.program import Program
from dogwood_jax._program.subprograms import equations
from dogwood_jax._widths.trace import Traced
from dogwood_jax._widths.widths import Widths

KNOWS_SIZES = (
    "the network's own function does not take arrays of these sizes, so the larger model needs one "
    "of its own"
)

NUMBERS_STAY = (
    "constants of the program are assumed to stay; pass target_apply= if the larger module has "
    "others"
)

_OTHER_SPLIT = (
    "this function splits {} into {}; the larger model must split it into {}: pass target_apply="
)

ITS_OWN_NUMBERS = (
    "pass target_apply=, this function or the larger model's: then arrays are rescaled to make up "
    "for other constants, where that is possible"
)

WITH_TARGET = "pass target=, the larger model, which holds the right numbers"


@dataclass(frozen=True)
class Rejected:
    """The error that the network's own function raised for larger arrays.

    Attributes:
        reason: the kind of error and its first line.
        is_checked: whether a Flax module compared shapes with its configuration. Then a growth
            needs no note on the error.
        follows_shapes: whether the function accepts other sizes, but not these.
    """

    reason: str
    is_checked: bool
    follows_shapes: bool


def own_program(
    widths: Widths,
    sizes: Mapping[str, int],
    target: PyTree = None,
    *,
    in_module: bool = True,
) -> Program | Rejected:
    """Returns the program of the network's own function in other sizes, or the error it raised.

    Args:
        widths: the widths of a network that was traced in this process.
        sizes: new sizes by name of the width.
        target: the larger model's variables, or None.
        in_module: whether a larger Linen module may be used, see ``in_larger_module``.
    """
    grown = GrownSizes(widths, sizes)
    if in_module:
        its = _of_larger_module(widths, grown, target)
        if its is not None:
            return its
    try:
        return _own_program(widths, grown, target)
    except UnfitArrays as error:
        return Rejected(str(error), is_checked=False, follows_shapes=True)
    except Exception as error:  # a function with fixed sizes may raise anything
        is_checked = type(error).__module__.startswith("flax.")
        knows_sizes = is_checked or target is not None or says_sizes(widths, sizes)
        follows_shapes = not knows_sizes and _follows_shapes(widths)
        return Rejected(first_line(error), is_checked, follows_shapes)


def _of_larger_module(widths: Widths, grown: GrownSizes, target: PyTree) -> Program | None:
    """Returns the program of the network's Linen module in other sizes, or None if not found."""
    if target is None:
        target = _reshaped(widths, grown.sizes)
    inputs = grown.inputs()
    function = in_larger_module(widths, grown.sizes, target, inputs)
    try:
        return None if function is None else Program(function, target, inputs)
    except Exception:  # any module may raise
        return None


def _reshaped(widths: Widths, sizes: Mapping[str, int]) -> PyTree:
    assert widths.network is not None
    return Resizing(widths.leaves, sizes).reshaped(widths.network.variables)


def own_function(widths: Widths, sizes: Mapping[str, int]) -> Callable[..., Any]:
    """Returns the network's own function in other sizes, if possible in a larger Linen module.

    Args:
        widths: the network's widths.
        sizes: new sizes by name of the width.
    """
    assert widths.network is not None
    inputs = GrownSizes(widths, sizes).inputs()
    larger = in_larger_module(widths, sizes, _reshaped(widths, sizes), inputs)
    return larger or widths.network.apply


def in_larger_module(
    widths: Widths, sizes: Mapping[str, int], target: PyTree, inputs: Sequence[Any]
) -> Callable[..., Any] | None:
    """Returns the network's own function in the Linen module of other sizes.

    Returns None if the function is no method of a Linen module, or if the module's numbers in these
    sizes are not known.

    Args:
        widths: the network's widths.
        sizes: known new sizes by name of the width.
        target: the larger model's variables.
        inputs: the larger model's inputs.
    """
    assert widths.network is not None
    if (method := method_of(widths.network.apply)) is None:
        return None
    try:
        return method.of(larger_module(method, widths, sizes, target, inputs))
    except CannotRemake:
        return None


def larger_module(
    method: LinenMethod,
    widths: Widths,
    sizes: Mapping[str, int],
    target: PyTree,
    inputs: Sequence[Any],
) -> LinenModule:
    """Returns a Linen module in other sizes.

    Args:
        method: a method of the module.
        widths: the network's widths.
        sizes: known new sizes by name of the width.
        target: the larger model's variables.
        inputs: the larger model's inputs.

    Raises:
        CannotRemake: if the module's numbers in these sizes are not known.
    """
    if getattr(method.module, "is_resized_by_variables", False):  # a model from a Keras file
        try:
            return method.module.resized(target)
        except ValueError as error:
            raise CannotRemake(first_line(error)) from error
    shapes = {p: tuple(array.shape) for p, array in arrays_of(leaves_by_path(target)).items()}
    before, changes = {leaf.path: leaf.shape for leaf in widths.leaves}, dict[int, set[int]]()
    along = (zip(leaf.shape, shapes.get(leaf.path, leaf.shape)) for leaf in widths.leaves)
    parts = (changes_of(leaf, sizes) for leaf in widths.leaves)
    fewer = ((old, new) for new, old in more_numbers(shapes, before))
    for old, new in chain(*parts, *along, more_numbers(before, shapes), fewer):
        if old != new:
            changes.setdefault(old, set()).add(new)
    own = inputs if widths.network is None else widths.network.inputs
    return method.in_sizes(own, inputs, before, shapes, changes)


def says_sizes(widths: Widths, sizes: Mapping[str, int]) -> bool:
    """Whether modules among the variables hold sizes that change, so that a function uses them."""
    assert widths.network is not None
    variables, resizing = widths.network.variables, Resizing(widths.leaves, sizes)
    larger = jax.tree.structure(resizing.resized(variables))
    return bool(resizing.problems) or larger != jax.tree.structure(variables)  # type: ignore[operator]


def _own_program(
    widths: Widths,
    grown: GrownSizes,
    target: PyTree,
) -> Program:
    """Returns the program of the network's own function in other sizes.

    The function is called with the target's variables, or with its own variables after the growth.
    Modules among the grown variables hold the new sizes. If the function itself holds parts of the
    old modules, it may fail; then it is called with grown arrays in modules of the old sizes.

    Args:
        widths: the widths of the network.
        grown: the other sizes.
        target: the larger model's variables, or None.
    """
    assert widths.network is not None
    apply, variables = widths.network.apply, widths.network.variables
    inputs = grown.inputs()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if target is not None:
            return Program(apply, target, inputs)
        resizing = Resizing(widths.leaves, grown.sizes)
        if says_numbers(variables):
            try:
                return Program(apply, resizing.resized(variables), inputs)
            except Exception:  # a function that holds parts of the old modules may raise anything
                pass
        return Program(apply, resizing.reshaped(variables), inputs)


def _follows_shapes(widths: Widths) -> bool:
    """Whether the network's own function accepts arrays whose widths are all twice as large."""
    assert widths.network is not None
    free = [width for width in widths.values() if not width.fixed]
    # Widths that arrays only read are made by the program itself, for example by a tile.
    made = [width for width in free if any(o.role != "outgoing" for o in width.occurrences)]
    for those in (widths.values(), free, made):
        grown = GrownSizes(widths, {width.name: 2 * width.size for width in those})
        try:
            own = _own_program(widths, grown, None)
        except Exception:  # a function with fixed sizes may raise anything
            continue
        resized = in_sizes(widths.network.traced, grown)
        if isinstance(resized, CannotResize):
            continue
        if not any(_splits_otherwise(*p) for p in zip(_steps(own.jaxpr), _steps(resized))):
            return True
    return False


def other_splits(own: Program, traced: Traced, sizes: GrownSizes) -> list[str]:
    """Returns notes on axes that grow and that a program splits in its own way, such as 2 x 8.

    In that case, the larger model is the same kind of function with another configuration. This is
    assumed only if nothing else differs between ``own`` and the network's program in these sizes,
    except constants that depend on the split, such as the root of a part.

    Args:
        own: the program of the network's own function in the new sizes.
        traced: the network's program.
        sizes: the new sizes.
    """
    resized = in_sizes(traced, sizes)
    if isinstance(resized, CannotResize):
        return []
    ours, its, old = ([*_steps(one)] for one in (resized, own.jaxpr, traced.program.jaxpr))
    if not len(ours) == len(its) == len(old):
        return []
    found, numbers, parts = dict[str, None](), set[tuple[float, float]](), set[tuple[int, int]]()
    for a, b, before in zip(ours, its, old, strict=True):
        if a.primitive != b.primitive:
            return []
        numbers |= {*zip(_numbers(a), _numbers(b))}
        if _splits_otherwise(a, b) and a.invars[0].aval.shape != before.invars[0].aval.shape:
            its_own, larger = (_differing(x.outvars[0].aval.shape, y) for x, y in ((b, a), (a, b)))
            said = (" x ".join(map(str, split)) for split in (its_own, larger))
            found[_OTHER_SPLIT.format(prod(its_own), *said)] = None
            parts |= {*zip(larger, its_own)}
    pairs = {(a**power, b**power) for a, b in parts for power in (1.0, -1.0, 0.5, -0.5)}
    is_explained = all(
        a == b or any(isclose(a, c, rel_tol=1e-6) and isclose(b, d, rel_tol=1e-6) for c, d in pairs)
        for a, b in numbers
    )
    return [*found] if is_explained else []


def _steps(jaxpr: Any) -> Iterator[Any]:
    """Yields the equations of a program, without calls of inner programs and dtype casts."""
    for eqn in equations(jaxpr.jaxpr):
        if called(eqn) is None and eqn.primitive.name != "convert_element_type":
            yield eqn


def _splits_otherwise(a: Any, b: Any) -> bool:
    if a.primitive.name != "reshape" or b.primitive.name != "reshape":
        return False
    shapes = [(eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape) for eqn in (a, b)]
    return bool(shapes[0][0] == shapes[1][0] and shapes[0][1] != shapes[1][1])


def _differing(shape: Sequence[int], other: Any) -> Sequence[int]:
    """Returns the part of a shape that differs from the result shape of another reshape."""
    its = other.outvars[0].aval.shape
    pairs = [*zip(shape, its), *[(0, 1)] * abs(len(shape) - len(its))]
    first = next(i for i, (a, b) in enumerate(pairs) if a != b)
    last = next(i for i, (a, b) in enumerate([*zip(shape[::-1], its[::-1]), (0, 1)]) if a != b)
    return shape[first : len(shape) - last] or shape


def _numbers(eqn: Any) -> list[float]:
    values = (getattr(atom, "val", None) for atom in eqn.invars)
    return [complex(n).real for n in values if n is not None and jnp.ndim(n) == 0]
