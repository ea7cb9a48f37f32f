"""Whether a grown network computes what the old one did, found by running both: ``verify``.

This finds mistakes in the rules of tracing and growing, because it does not rely on them.
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
from dogwood_jax._program.primitives.record import primitive
from dogwood_jax._program.program import Program
from dogwood_jax._program.subprograms import equations

_CALL = "verify(apply, variables, target_apply, wide, *inputs)"
_NO_VALUES = (
    "verify runs both networks, so it needs values, which jax.jit and other transformations hide: "
    "call it outside of them"
)
# How often the old network is run to see how far rounding moves an entry, each time with nudges
# of both signs: if an entry lies at an edge, as of a relu, one of both moves it. Nudges may cancel
# by chance. Of 131,000 entries of a transformer in bfloat16, four runs leave some hundred that
# moved farther in an exact growth; so it takes several, but only where entries are left.
_PAIRS = 12
# By how much numbers are changed to see whether an entry would show it if they were wrong, and how
# often at most: a change may cancel by chance, and a loss in bfloat16 rounds by nearly as much.
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
    """Runs a network and the larger one that it became, and raises if an output has moved.

    Each function is called as it is: pass ``jax.jit(apply)`` where that is faster. Both networks
    have to be in evaluation mode, or to draw the same random numbers. Matrix products are computed
    at the highest precision, unless the functions themselves ask for another.

    Every entry of every output is looked at by itself. It may move by ``eps ** (3/4)`` of its size,
    with the eps of its dtype, and as far as rounding may move it. To see how far that is, the old
    network is run with all numbers nudged at random: the variables, the inputs, and where the
    network rounds to a coarser dtype, what is rounded. They are nudged by up to:

    ==================== ======= =====================
    dtype                eps     a number is nudged by
    ==================== ======= =====================
    float64, complex128  2.2e-16 1.8e-12
    float32, complex64   1.2e-07 6.4e-06
    float16              9.8e-04 5.5e-03
    bfloat16             7.8e-03 2.6e-02
    float8_e4m3fn        1.2e-01 2.1e-01
    float8_e5m2          2.5e-01 3.5e-01
    integers, booleans   0       0
    ==================== ======= =====================

    Nor may all entries together become larger or smaller by more than they do with these nudges.

    An integer or boolean may move only where these nudges move it. Arrays of whole numbers, such as
    masks, are not nudged.

    ``verify`` also raises if it cannot tell: where both networks have NaN, where inputs or outputs
    have no entries, and where nothing would show that weights are wrong. To see the last, the old
    network is run with every number of the variables changed by up to a tenth, and then of the
    inputs. In each floating output that follows from these numbers, an entry has to move by more
    than rounding explains. Behind inputs of zero and dead units, none does. Beside integer inputs,
    floating ones need not move anything, because they may be masks. Integers, booleans, constants
    and outputs that mirror variables need not move, if another output does.

    Of outputs that have grown, the first part is compared. Some outputs mirror variables: new
    running statistics, a module's state or gradients. These may be there in only one of the
    networks.

    Args:
        apply: the network, a function of variables and inputs, as for ``trace``.
        variables: its variables, a pytree of arrays on any devices.
        target_apply: the larger network.
        wide: its variables, as ``grow`` returns them.
        *inputs: pytrees of arrays, or of ``jax.ShapeDtypeStruct``, for which random arrays are
            drawn. Floats are normal. Integers lie between the least and the largest integer in
            given inputs of the same dtype. If there are none, they are 0 or 1, which are valid
            indices into any table of two rows or more.
        growth: the growth from one to the other. With it, inputs that grow (``interface=True``)
            get random entries for new units. Outputs that mirror variables are compared only in
            the entries of old units, and not at all if the growth copies or rescales these.
        key: PRNG key for what is drawn; by default ``jax.random.key(0)``.

    Returns:
        The largest differences over all outputs, to be printed.

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
                raise OtherDraws(listed(f"{what}, as by deterministic=True, train=False", lines))
            ask = "if both are in evaluation mode and as the growth's notes ask, please report this"
            raise ValueError(listed(f"{what} ({ask})", lines))
        unseen = _without_values(inputs, found) or _unseen(
            entries, apply, program, variables, inputs, keys[3]
        )
    if unseen:
        raise CannotTell(listed("verify cannot tell whether all outputs stayed", unseen))
    return largest(found)


class CannotTell(ValueError):
    """Outputs are equal, and would be so if weights were wrong."""


class OtherDraws(ValueError):
    """Outputs have moved, and the larger network draws random numbers of other shapes."""


def verify_if_possible(
    apply: Callable[..., Any],
    variables: PyTree,
    target_apply: Callable[..., Any],
    wide: PyTree,
    inputs: tuple[Any, ...],
    growth: Growth,
) -> None:
    """Verifies a growth if it should preserve outputs, and there are values to run networks on.

    Args:
        apply: the network, in evaluation mode.
        variables: its variables.
        target_apply: the larger network.
        wide: its variables.
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
        pass  # as the notes of the growth say
    except CannotTell as error:
        warnings.warn(str(error), stacklevel=3)
    except ValueError as error:
        error.add_note("verify=False leaves out this check.")
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
    """Returns the operations that make random numbers, and the shapes that they make."""
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
    """Runs the old network with nudges, until all entries are explained or it has been enough."""
    rounded = with_nudges(program)
    for i in range(2 * _PAIRS):
        if not (entries.moved or entries.scaled):
            return
        sign, draw = 1.0 - 2 * (i % 2), jax.random.fold_in(key, i // 2)
        others = nudged((variables, inputs), sign, draw)
        entries.explain(rounded(*others, sign, draw) if rounded else _run(apply, *others))


def _without_values(inputs: tuple[Any, ...], found: dict[str, Difference]) -> list[str]:
    """Says which inputs and outputs there is nothing to see in."""
    problems = [
        f"input {path} has shape {leaf.shape}, without any entry: pass at least one sample"
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
    """Says which outputs do not move by more than rounding when numbers change by a tenth."""
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
        if name == "inputs":  # where there are integers, too, floats may be masks of zeros
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
        f"does not move by more than rounding if each number of the {name} changes by up to a "
        "tenth; pass other inputs, because zeros and dead units hide what is behind them, or leave "
        "this output out"
    )
