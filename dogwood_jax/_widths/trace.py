"""Finds every width of a network by tracing it: ``trace``.

The network is turned into a jaxpr from shapes alone. Its equations are read one by one
(``_program/primitives/reading``) with symbolic dimensions. Then ``roles`` decides which weights are
outgoing, and ``naming`` turns the dimensions of parameters into ``Widths``.
"""

import itertools
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dogwood_jax._base.arguments import (
    FUNCTION,
    KERNELS,
    TREE,
    expect,
    expect_call,
    expect_given,
    is_integer,
    takes_inputs,
)
from dogwood_jax._base.failed_calls import explaining
from dogwood_jax._base.problems import listed
from dogwood_jax._base.trees import PyTree, leaves_by_path, mirrors
from dogwood_jax._program.dims import Dim, hand_down, spread_out, unify
from dogwood_jax._program.kernels import Kernels, with_references
from dogwood_jax._program.like_layers import LikeLayers, find_like_layers
from dogwood_jax._program.primitives import table as _table  # noqa: F401, which fills the table
from dogwood_jax._program.primitives.reading import run
from dogwood_jax._program.program import Program
from dogwood_jax._program.reasons import Reason
from dogwood_jax._program.values import LeafAxis, Trace, Value
from dogwood_jax._widths.naming import label_of, laid_out, module_of, names_of
from dogwood_jax._widths.roles import Roles, is_quantized, note_quantized, spots_along
from dogwood_jax._widths.widths import Facts, Network, Widths, make_widths, no_such

Place = tuple[str, int]

_CALL = "trace(apply, variables, *inputs)"


@takes_inputs
def trace(
    apply: Callable[..., Any],
    variables: PyTree,
    *inputs: Any,
    fix: Iterable[Place] = (),
    tie: Iterable[tuple[Place, Place]] = (),
    kernels: Kernels | None = None,
) -> Widths:
    """Finds every width of a network: which axes of which arrays index the same units.

    The program of ``apply(variables, *inputs)`` is read, not run: no array is allocated and no
    value is read. ``apply`` may be written with any library. Each width is listed with every place
    where it occurs. If a width cannot grow, or no way to grow it that keeps outputs is known, the
    reason is listed. A growable width is a proposal: ``plan`` evaluates a growth before it accepts
    it.

    Args:
        apply: any traceable function of a pytree of variables and inputs, such as a Flax module's
            ``apply``. To trace a mode of the network (training, a method), close over it.
        variables: pytree of arrays or ``jax.ShapeDtypeStruct``. Leaves that are not arrays, such
            as functions in an Equinox module, are passed through.
        *inputs: pytrees of arrays or ``jax.ShapeDtypeStruct``; anything else in them, such as
            booleans and None, is passed to ``apply`` as it is.
        fix: places ``(path, axis)`` that must not grow for reasons the program does not show.
        tie: pairs of places that index the same units although the program does not show it.
        kernels: JAX functions that are read and evaluated instead of operations that cannot be
            read, such as ``{"pallas_call": reference}``. A key is the name of a primitive, or of
            one Pallas kernel, foreign function, callback or function under ``jax.jit``, which takes
            precedence. A reference takes the operands of the equation as arrays, and returns arrays
            with the shapes and dtypes of its results. The promises of a growth then hold for
            networks that use references instead of kernels, also for the larger model.

    Returns:
        The widths by name. Dimensions of inputs and outputs are widths too, marked ``interface``.

    Raises:
        TypeError: if ``apply`` does not take the variables and these inputs, ``variables`` is not a
            pytree of arrays, ``fix`` or ``tie`` is not a list, or ``kernels`` holds no functions.
        ValueError: if ``fix`` or ``tie`` names a place that does not exist, or ties axes of
            different sizes; or if a function of ``kernels`` does not fit an equation.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import dogwood_jax as dw
        >>> def apply(params, x):
        ...     return jax.nn.relu(x @ params["up"]["kernel"]) @ params["down"]["kernel"]
        >>> params = {"up": {"kernel": jnp.ones((4, 8))}, "down": {"kernel": jnp.ones((8, 2))}}
        >>> print(dw.trace(apply, params, jnp.ones((1, 4)))["up"])
        up: 8 units, growable
          -> up/kernel[1]
          <- down/kernel[0]

        A function outside of JAX, and a JAX function that computes the same:

        >>> import numpy as np
        >>> def outside(params, x):
        ...     up, down = (params[name]["kernel"] for name in ("up", "down"))
        ...     shape = jax.ShapeDtypeStruct((len(x), up.shape[1]), x.dtype)
        ...     return jax.pure_callback(np.tanh, shape, x @ up) @ down
        >>> dw.trace(outside, params, jnp.ones((1, 4)), kernels={"tanh": jnp.tanh})["up"].status
        'growable'
    """
    widths = read_network(apply, variables, *inputs, fix=fix, tie=tie, kernels=kernels)
    network = widths.network
    assert network is not None
    if unread := _unread(network.traced.program):
        warnings.warn(
            f"trace: apply does not read {', '.join(unread)}; it may close over other variables. "
            "Only a larger model shows how these arrays grow",
            stacklevel=3,
        )
    return widths


def read_network(
    apply: Callable[..., Any],
    variables: PyTree,
    *inputs: Any,
    fix: Iterable[Place] = (),
    tie: Iterable[tuple[Place, Place]] = (),
    kernels: Kernels | None = None,
) -> Widths:
    """Returns the same widths as ``trace``, without its warnings."""
    expect(_CALL, apply=(FUNCTION, apply), variables=(TREE, variables))
    expect_given("trace", kernels=(KERNELS, kernels))
    expect_call(_CALL, "apply", apply, variables, *inputs)
    function, apply = apply, with_references(apply, kernels or {})
    fixed, tied = _listed("fix", fix, "(path, axis)"), _listed("tie", tie, "(place, place)")
    leaves_by_path(variables)  # raises an error if two arrays have one path
    with explaining(_CALL, "apply", function, variables, inputs):
        program = Program(apply, variables, inputs)
    outputs = program.jaxpr.out_avals
    if outputs and all(getattr(aval, "size", 1) == 0 for aval in outputs):
        raise ValueError(
            f"{_CALL}: cannot trace a function whose output is empty, because nothing shows what "
            "it depends on; pass inputs for which it is not"
        )
    if (paths := {*program.paths.values()}) and not program.uses(paths):
        raise ValueError(
            f"{_CALL}: apply must use the variables that it is called with. It reads none of their "
            f"{len(paths)} arrays, perhaps because it closes over other variables, as in "
            "`lambda v, x: model.apply(variables, x)`"
        )
    traced, widths = read_program(program, fixed, tied)
    leaves_out = not fixed and not tied
    network = Network(apply, program.variables, tuple(program.inputs), traced, leaves_out)
    return replace(widths, network=network)


def read_program(
    program: Program, fixed: Sequence[Place] = (), tied: Sequence[tuple[Place, Place]] = ()
) -> tuple["Traced", Widths]:
    """Returns a traced program and its widths."""
    traced = Traced(program)
    _override(traced.leaves, fixed, tied)
    _attach_unread(traced.leaves, traced.trace, program)
    return traced, _widths_of(traced.leaves, traced.trace)


def _widths_of(leaves: dict[str, Value], trace: Trace) -> Widths:
    """Returns the widths of a network whose program has been read.

    Args:
        leaves: its arrays, with symbolic dimensions.
        trace: the facts that its equations show about them.
    """
    roles = Roles(trace, [value.dims for value in leaves.values()])
    made = (value for reading in trace.program.every() for value in reading.known.values())
    hand_down(dim for value in itertools.chain(made, leaves.values()) for dim in value.dims)
    names = names_of(leaves, roles, trace)
    note_quantized(roles, trace)
    arrays = laid_out(leaves, names, roles, trace)
    facts = {
        name: Facts(
            dim.size,
            dim.interface,
            next(iter(dim.fixed), None),
            tuple(dim.notes),
            label=label_of(dim),
        )
        for dim, name in names.items()
    }
    return make_widths(arrays, facts)


class Traced:
    """A traced network: its leaves with symbolic dimensions, and facts about them.

    Args:
        program: the network's program.

    Attributes:
        program: the program.
        trace: the facts that its equations show.
        leaves: the arrays among its variables, by path.
        outputs: its outputs, by path, without those that mirror variables.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        self.trace = Trace()
        self.leaves: dict[str, Value] = {}
        self.outputs: dict[str, Value] = {}
        values = []
        for path, struct in program.arguments:
            if path is not None:
                value = _parameter(self.trace, len(self.leaves), struct)
                self.leaves[path] = value
            else:
                value = _input(struct)
                self.trace.inputs += value.dims
                self.trace.arguments.append(value)
            values.append(value)
        outputs = run(self.trace, program.jaxpr.jaxpr, program.jaxpr.consts, values)
        mirrored = mirrors(
            {path: _shape(value) for path, value in zip(program.results, outputs, strict=True)},
            {path: _shape(value) for path, value in self.leaves.items()},
        )
        names = {id(value): path for path, value in self.leaves.items()}
        for path, output in zip(program.results, outputs, strict=True):
            name = names.get(id(output))
            if name is not None and f"/{path}".endswith(f"/{name}"):
                continue  # an array that is returned unchanged; NNX modules return all of theirs
            if path not in mirrored:
                self.outputs[path] = output
                for dim in output.dims:
                    dim.root.interface = True
            self.trace.use(output, "add")
        self._few: dict[tuple[int, ...], Traced] = {}

    @cached_property
    def layers(self) -> LikeLayers | None:
        """Its like layers; None unless a program with only a few of them has the same layouts."""
        layers = find_like_layers(self.program)
        if layers is None:
            return None
        few = self.keeping(layers, layers.few).leaves
        return layers if all(_lie_alike(few[path], self.leaves[path]) for path in few) else None

    def keeping(self, layers: LikeLayers, kept: tuple[int, ...]) -> "Traced":
        """Returns the traced program with only some of its like layers."""
        if kept not in self._few:
            self._few[kept], _ = read_program(layers.keeping(self.program, kept))
        return self._few[kept]


def _lie_alike(one: Value, other: Value) -> bool:
    """Whether the axes of two arrays are made of parts of the same sizes."""
    sizes = (
        [[spot.atom.size for spot in spots_along(0, 0, spread_out(dim))] for dim in value.dims]
        for value in (one, other)
    )
    return next(sizes) == next(sizes)


def _shape(value: Value) -> tuple[int, ...]:
    return tuple(dim.size for dim in value.dims)


def _parameter(trace: Trace, index: int, struct: jax.ShapeDtypeStruct) -> Value:
    dims = tuple(Dim(n) for n in struct.shape)
    quantized = is_quantized(struct.dtype)
    if quantized:
        trace.quantized.add(index)
    if not (quantized or jnp.issubdtype(struct.dtype, np.inexact)):
        for dim in dims:
            dim.fix(f"one of its arrays is of dtype {struct.dtype}, which cannot be filled in")
    return Value(
        dims,
        "parameter",
        tuple((LeafAxis(index, axis),) for axis in range(len(dims))),
        leaves=frozenset({index}),
    )


def _input(struct: jax.ShapeDtypeStruct) -> Value:
    dims = tuple(Dim(n) for n in struct.shape)
    for dim in dims:
        dim.interface = True
    return Value(dims, "data", index=jnp.issubdtype(struct.dtype, np.number))


# What the caller knows ----------------------------------------------------------------------------


def _listed(name: str, given: Iterable[Any], one: str) -> tuple[Any, ...]:
    """Returns a caller's list as a tuple, after checking that it is a list."""
    if isinstance(given, str | Mapping) or not isinstance(given, Iterable):
        raise TypeError(f"trace: {name} must be a list, [{one}, ...], got {given!r}")
    return tuple(given)


def _override(
    leaves: dict[str, Value], fix: Sequence[Place], tie: Sequence[tuple[Place, Place]]
) -> None:
    problems: list[str] = []

    def dim_at(place: Place) -> Dim | None:
        if not _is_place(place):
            problems.append(f"{place!r}: is not a place (path, axis)")
            return None
        path, axis = place
        names = [p for p in leaves if p == path] or [p for p in leaves if p.endswith(f"/{path}")]
        if len(names) > 1:
            problems.append(f"{path!r} fits several arrays: pass one of {names}")
            return None
        if not names:
            problems.append(no_such("array", path, leaves))
            return None
        dims = leaves[names[0]].dims
        if not -len(dims) <= axis < len(dims):
            problems.append(f"{path}: has {len(dims)} axes, so no axis {axis}")
            return None
        return dims[axis]

    if _is_place(fix):
        problems.append(f"fix: {fix} is one place, not a list of places; pass [{fix}]")
    if len(tie) == 2 and all(map(_is_place, tie)):
        problems.append(f"tie: {tie} is one pair, not a list of pairs; pass [{tie}]")
    for place in fix:
        if dim := dim_at(place):
            dim.fix("fixed by the caller")
    for pair in tie:
        if not (isinstance(pair, Sequence) and len(pair) == 2):
            problems.append(f"tie: {pair!r}: is not a pair of places")
            continue
        one, other = pair
        a, b = dim_at(one), dim_at(other)
        if a and b and a.size != b.size:
            problems.append(f"tie: {one} has size {a.size}, but {other} has {b.size}")
        elif a and b:
            unify(a, b)
    if problems:
        raise ValueError(
            listed("fix= takes places [(path, axis), ...] and tie= pairs of them", problems)
        )


def _is_place(place: object) -> bool:
    match place:
        case (str(), axis):
            return is_integer(axis)
    return False


def _unread(program: Program) -> list[str]:
    """Returns unread arrays that have no size in common with the read arrays of their module."""
    read = program.used
    beside: dict[str, set[int]] = {}
    for path, array in program.arguments:
        if path in read:
            beside.setdefault(module_of(path), set()).update(array.shape)
    return [
        path
        for path, array in program.arguments
        if path is not None and path not in read and array.shape
        if not beside.get(module_of(path), set()) & {*array.shape}
    ]


_UNREAD = "{} is never read, so only a larger model shows which units lie along its axis {}"


def _attach_unread(leaves: dict[str, Value], trace: Trace, program: Program) -> None:
    """Ties arrays that are never read to arrays of the same shape beside them.

    A module's variables grow with the module, even if this mode of the network does not read them.
    In training, for example, a BatchNorm does not read its running mean. For other unread arrays,
    only a larger model's arrays show to which units they belong.
    """
    read: dict[str, list[Dim]] = {}
    used = program.used
    for index, (path, value) in enumerate(leaves.items()):
        if index in trace.uses:
            read.setdefault(module_of(path), []).extend(value.dims)
    for index, (path, value) in enumerate(leaves.items()):
        if index in trace.uses:
            continue
        for axis, dim in enumerate(value.dims):
            dims = read.get(module_of(path), ())
            beside = dict.fromkeys(d.root for d in dims if d.size == dim.size)
            if len(beside) == 1:
                (found,) = beside
                unify(dim, found)
                found.note(f"{path} is never read; its axis {axis} follows the arrays beside it")
            elif not beside and path not in used:
                dim.note(Reason(_UNREAD.format(path, axis), "unread"))
