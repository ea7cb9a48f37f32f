"""Checks by running both networks that a grown network computes the same: ``verify``.

``verify`` finds mistakes in the rules of tracing and growing, because it does not rely on them.
"""

import warnings
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax import Array

from dogwood_jax._base.arguments import (
    DATA,
    FUNCTION,
    GROWTH,
    KEY,
    expect,
    expect_call,
    expect_given,
    expect_values,
    takes_inputs,
)
from dogwood_jax._base.failed_calls import explaining
from dogwood_jax._base.problems import listed
from dogwood_jax._base.trees import PyTree, arrays_of, is_array, is_traced, leaves_by_path, mirrors
from dogwood_jax._front.compare import Difference, differences, largest, numbers_by_path, output_at
from dogwood_jax._front.inputs import grown_inputs, with_values
from dogwood_jax._front.mirrored import outputs_to_compare
from dogwood_jax._front.moved_entries import Entries
from dogwood_jax._front.rounding import changed, eps, nudged, sources, with_nudges
from dogwood_jax._growth.growth import Growth
from dogwood_jax._program.primitives.table import primitive
from dogwood_jax._program.program import Program
from dogwood_jax._program.subprograms import equations

_CALL = "verify(apply, variables, target_apply, wide, *inputs)"
_NO_VALUES = (
    "verify runs both networks, so it needs values, which jax.jit and other transformations hide: "
    "call it outside of them"
)
# Upper limit on pairs of nudged runs, one run with each sign: if an entry lies at an edge, such as
# a relu's, only one sign moves it. Nudges may cancel by chance, so one pair is not enough: of
# 131,000 entries of a transformer in bfloat16, an exact growth moved some hundred farther than four
# runs explained. Runs stop early if all moves are explained.
_PAIRS = 12
# Relative change of values that tests whether wrong values would show in outputs, and the upper
# limit on tries: a change may cancel by chance, and a bfloat16 loss rounds by nearly as much.
_TENTH = 0.1
_CHANGES = 8


@takes_inputs
def verify(
    apply: Callable[..., Any],
    variables: PyTree,
    target_apply: Callable[..., Any],
    wide: PyTree,
    *inputs: Any,
    growth: Growth | None = None,
    key: Array | None = None,
) -> Difference:
    """Runs a network and its grown version, and raises if an output has moved beyond rounding.

    The functions are called as given: pass ``jax.jit(apply)`` if that is faster. Both networks must
    be in evaluation mode, or draw the same random numbers. Matrix products use the highest
    precision, unless the functions set another one.

    Each entry of each output is checked separately. It may move by ``eps ** (3/4)`` of its size,
    with the eps of its dtype, or as far as rounding may move it, whichever is more. To measure the
    latter, the old network is run with values nudged at random: the variables, the inputs, and
    values that the network rounds to a coarser dtype. A value is nudged by up to:

    ==================== ======= =====================
    dtype                eps     a value is nudged by
    ==================== ======= =====================
    float64, complex128  2.2e-16 1.8e-12
    float32, complex64   1.2e-07 6.4e-06
    float16              9.8e-04 5.5e-03
    bfloat16             7.8e-03 2.6e-02
    float8_e4m3fn        1.2e-01 2.1e-01
    float8_e5m2          2.5e-01 3.5e-01
    integers, booleans   0       0
    ==================== ======= =====================

    The scale of an output as a whole must not change by more than it does with these nudges.

    An integer or boolean may move only if these nudges move it. Arrays that hold only whole
    numbers, such as masks, are not nudged.

    ``verify`` also raises if it cannot tell: if both networks have NaN, if inputs or outputs are
    empty, or if wrong weights would not show. To test the last, the old network is run with every
    value of the variables changed by up to a tenth, and then with the inputs changed. In each
    floating output that depends on these values, some entry must move by more than rounding
    explains. Behind zero inputs and dead units, no entry does. If there are integer inputs, too,
    floating inputs need not move outputs, because they may be masks. Integers, booleans, constants
    and outputs that mirror variables need not move if another output does.

    If outputs have grown, their first part is compared. Some outputs mirror variables: new
    running statistics, a module's state or gradients. Only one of the networks may have these.

    Args:
        apply: the network, a function of variables and inputs, as for ``trace``.
        variables: its variables, a pytree of arrays on any devices.
        target_apply: the larger network.
        wide: the larger network's variables, as ``grow`` returns them.
        *inputs: pytrees of arrays, or of ``jax.ShapeDtypeStruct``, for which random arrays are
            drawn. Floats are normal. Integers lie between the smallest and the largest integer in
            given inputs of the same dtype. If there are none, they are 0 or 1, which are valid
            indices into any table of two rows or more.
        growth: the growth between both networks. With it, inputs that grow (``interface=True``)
            get random entries for new units. Outputs that mirror variables are compared only in
            the entries of old units, and not at all if the growth copies or rescales these.
        key: PRNG key for random inputs and nudges; by default ``jax.random.key(0)``.

    Returns:
        The largest differences over all outputs, for ``print``.

    Raises:
        TypeError: for arguments of another kind, and under ``jax.jit``, where there are no values.
        ValueError: if outputs have moved, all of them in one message; if ``verify`` cannot tell; or
            if the networks have different outputs.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import dogwood_jax as dw
        >>> def apply(params, x):
        ...     return jax.nn.relu(x @ params["up"]) @ params["down"]
        >>> params = {"up": jnp.ones((4, 8)), "down": jnp.ones((8, 2))}
        >>> x = jax.ShapeDtypeStruct((5, 4), jnp.float32)
        >>> growth = dw.plan(dw.trace(apply, params, x), {"up": 16})
        >>> wide = dw.grow(params, growth, key=jax.random.key(0))
        >>> dw.verify(apply, params, apply, wide, x).relative < 1e-6
        True
    """
    _check(apply, variables, target_apply, wide, inputs, growth, key)
    keys = jax.random.split(jax.random.key(0) if key is None else key, 4)
    inputs = with_values(inputs, keys[0])
    larger = inputs if growth is None else grown_inputs(inputs, growth, keys[1])
    with jax.default_matmul_precision("highest"):
        outputs = _run(apply, variables, inputs)
        wide_outputs = _run(target_apply, wide, larger, name="target_apply", are="wide")
        program = Program(apply, variables, inputs)
        old, new = outputs_to_compare(
            outputs,
            wide_outputs,
            arrays_of(leaves_by_path(variables)),
            arrays_of(leaves_by_path(wide)),
            growth,
        )
        found = differences(old, new)
        entries = Entries(old, new)
        _explain(entries, apply, program, variables, inputs, keys[2])
        if entries.moved or entries.scaled:
            lines = [entries.said(path) for path in entries.moved]
            lines += [entries.said_of_all(p) for p in entries.scaled if p not in entries.moved]
            what = "the larger network computes something else"
            if _draws(program) != _draws(Program(target_apply, wide, larger)):
                what += ", because it draws other random numbers; run both in evaluation mode"
                raise OtherDraws(listed(f"{what}, by deterministic=True or train=False", lines))
            ask = "if both are in evaluation mode and follow the growth's notes, please report this"
            raise ValueError(listed(f"{what} ({ask})", lines))
        unseen = _without_values(inputs, found) or _unseen(
            entries, apply, program, variables, inputs, keys[3]
        )
    if unseen:
        raise CannotTell(listed("verify cannot tell whether all outputs stayed", unseen))
    return largest(found)


class CannotTell(ValueError):
    """Outputs are equal, but would also be equal if weights were wrong."""


class OtherDraws(ValueError):
    """Outputs have moved, and the networks draw random numbers of different shapes."""


def verify_if_possible(
    apply: Callable[..., Any],
    variables: PyTree,
    target_apply: Callable[..., Any],
    wide: PyTree,
    inputs: tuple[Any, ...],
    growth: Growth,
) -> None:
    """Verifies a growth if it should preserve outputs and all arrays have values.

    Args:
        apply: the network, in evaluation mode.
        variables: its variables.
        target_apply: the larger network.
        wide: the larger network's variables.
        inputs: the network's inputs.
        growth: the growth.

    Raises:
        ValueError: if outputs moved.
    """
    arrays = jax.tree.leaves((variables, wide))
    if any(map(is_traced, (*arrays, *jax.tree.leaves(inputs)))):
        return
    if any(isinstance(array, jax.ShapeDtypeStruct) for array in arrays):
        return
    if not all(change.strategy.preserving for change in growth.changes):
        return
    try:
        verify(apply, variables, target_apply, wide, *inputs, growth=growth)
    except OtherDraws:
        pass  # the notes of the growth say so
    except CannotTell as error:
        warnings.warn(str(error), stacklevel=3)
    except ValueError as error:
        error.add_note("verify=False skips this check.")
        raise


def _check(
    apply: Any,
    variables: PyTree,
    target_apply: Any,
    wide: PyTree,
    inputs: tuple[Any, ...],
    growth: Any,
    key: Any,
) -> None:
    """Raises if arguments are of the wrong kind, in the wrong order, missing or without values."""
    expect(
        _CALL,
        apply=(FUNCTION, apply),
        variables=(DATA, variables),
        target_apply=(FUNCTION, target_apply),
        wide=(DATA, wide),
    )
    expect_given(_CALL, growth=(GROWTH, growth), key=(KEY, key))
    if any(map(is_traced, jax.tree.leaves((variables, wide, inputs)))):
        raise TypeError(_NO_VALUES)
    for tree in (variables, wide):
        expect_values(_CALL, arrays_of(leaves_by_path(tree)), "both networks are run")
    expect_call(_CALL, "apply", apply, variables, *inputs)
    expect_call(_CALL, "target_apply", target_apply, wide, *inputs)


def _draws(program: Program) -> list[tuple[str, tuple[int, ...]]]:
    """Returns the operations that draw random numbers, with the shapes of their results."""
    return [
        (eqn.primitive.name, eqn.outvars[0].aval.shape)
        for eqn in equations(program.jaxpr.jaxpr)
        if primitive(eqn.primitive.name).draws
    ]


def _run(
    apply: Callable[..., Any],
    variables: PyTree,
    inputs: tuple[Any, ...],
    name: str = "apply",
    are: str = "variables",
) -> dict[str, Any]:
    """Returns the outputs of a network by path."""
    # Dicts are sorted, as they are for every function that JAX transforms.
    variables, inputs = jax.tree.map(lambda leaf: leaf, (variables, inputs))
    with explaining(_CALL, name, apply, variables, inputs, variables_are=are):
        outputs = numbers_by_path(apply(variables, *inputs))
    if any(map(is_traced, outputs.values())):
        raise TypeError(_NO_VALUES)
    return outputs


def _explain(
    entries: Entries,
    apply: Callable[..., Any],
    program: Program,
    variables: PyTree,
    inputs: tuple[Any, ...],
    key: Array,
) -> None:
    """Runs the old network with nudges until all moves are explained, or the limit is reached."""
    rounded = with_nudges(program)
    for i in range(2 * _PAIRS):
        if not (entries.moved or entries.scaled):
            return
        sign, draw = 1.0 - 2 * (i % 2), jax.random.fold_in(key, i // 2)
        others = nudged((variables, inputs), sign, draw)
        entries.explain(rounded(*others, sign, draw) if rounded else _run(apply, *others))


def _without_values(inputs: tuple[Any, ...], found: dict[str, Difference]) -> list[str]:
    """Returns problems of inputs and outputs that are empty or NaN, so that they show nothing."""
    problems = [
        f"input {path} has shape {leaf.shape} and no entries: pass at least one sample"
        for path, leaf in leaves_by_path(inputs).items()
        if is_array(leaf) and not np.prod(leaf.shape)
    ]
    problems += [
        f"both networks have NaN in {difference.nans} values of {output_at(path)}: "
        "pass other inputs"
        for path, difference in found.items()
        if difference.nans
    ]
    if not found:
        problems.append("the networks have no outputs besides those that the growth changes")
    return problems


def _unseen(
    entries: Entries,
    apply: Callable[..., Any],
    program: Program,
    variables: PyTree,
    inputs: tuple[Any, ...],
    key: Array,
) -> list[str]:
    """Returns problems of outputs that stay within rounding when values change by a tenth."""
    known = sources(program)
    shapes, its = (
        {path: np.shape(leaf) for path, leaf in leaves.items()}
        for leaves in (entries.old, arrays_of(leaves_by_path(variables)))
    )
    mirrored = mirrors(shapes, its)
    asked = {path: names for path, names in known.items() if path in shapes.keys() - mirrored}
    given = {"variables": variables, "inputs": inputs}
    seen, problems = False, []
    for name, tree in given.items():
        hidden = {path for path, names in asked.items() if name in names}
        if name == "inputs":  # with integer inputs, floating inputs may be masks of zeros
            hidden -= {path for path, names in asked.items() if "integers" in names}
        for i in range(_CHANGES):
            if not hidden and seen:
                break
            other = changed(tree, _TENTH, jax.random.fold_in(key, i))
            others = _run(apply, **given | {name: other})
            shown = {path for path in entries.old if entries.shows(path, others)}
            hidden, seen = hidden - shown, seen or bool(shown)
        problems += [f"{output_at(path)}: {_unmoved(name)}" for path in sorted(hidden)]
    numbers = [leaf for leaf in jax.tree.leaves(given) if is_array(leaf) and eps(leaf.dtype)]
    if numbers and not seen and not problems:
        problems.append(f"all outputs: {_unmoved('variables and inputs')}")
    return problems


def _unmoved(name: str) -> str:
    return (
        f"does not move by more than rounding if each value of the {name} changes by up to a "
        "tenth; pass other inputs, because zeros and dead units hide the weights behind them, or "
        "leave this output out"
    )
