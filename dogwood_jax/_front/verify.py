"""Whether a grown network computes what the old one did, found by running both: ``verify``.

This finds mistakes in the rules of tracing and growing, because it does not rely on them.
"""

import functools
import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
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
from dogwood_jax._base.draw import uniform
from dogwood_jax._base.problems import listed
from dogwood_jax._base.trees import PyTree, arrays_of, is_array, is_traced, leaves_by_path
from dogwood_jax._front.compare import Difference, differences, largest, numbers_by_path, wide_dtype
from dogwood_jax._front.inputs import grown_inputs, with_values
from dogwood_jax._front.mirrored import outputs_to_compare
from dogwood_jax._front.rounding import coarsest_dtypes, eps
from dogwood_jax._growth.growth import Growth
from dogwood_jax._program.program import Program, equations

_NO_VALUES = (
    "verify runs both networks, so it needs values, which jax.jit and other transformations hide: "
    "call it outside of them"
)
_GENERATORS = ("random_bits", "rng_bit_generator", "rng_uniform", "threefry2x32")
# An output may move this many times as far as it moves when every number is nudged. In networks of
# 12 and 48 layers, growths moved outputs 0.7 times as far at most, in float32 and bfloat16.
_NUDGES = 4


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

    Each function is called once, as it is: pass ``jax.jit(apply)`` where that is faster. Both
    networks have to be in evaluation mode, or to draw the same random numbers. Matrix products are
    computed at the highest precision, unless the functions themselves ask for another.

    An output has moved if its largest difference, relative to its largest magnitude, is more than
    ``eps ** (3/4)``. This is the eps of the coarsest dtype on the way to the output: a network may
    compute in bfloat16 and return float32.

    ==================== ======= =====================
    dtype                eps     an output may move by
    ==================== ======= =====================
    float64, complex128  2.2e-16 1.8e-12
    float32, complex64   1.2e-07 6.4e-06
    float16              9.8e-04 5.5e-03
    bfloat16             7.8e-03 2.6e-02
    float8_e4m3fn        1.2e-01 2.1e-01
    float8_e5m2          2.5e-01 3.5e-01
    integers, booleans   0       0
    ==================== ======= =====================

    Very deep networks round more than that, and so do outputs that are small differences of large
    numbers. So before ``verify`` raises, it runs the old network once more, with every number of
    the variables and inputs multiplied by 1 + eps or 1 - eps. An output may then move four times as
    far as it moved in this run.

    Where only one network has NaN or infinity, the output has moved. Where both have NaN, or where
    nothing is left to compare, ``verify`` cannot tell, and warns. Of outputs that have grown, the
    first part is compared. Some outputs mirror variables: new running statistics, a module's state
    or gradients. These may be there in only one of the networks.

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
        ValueError: if outputs have moved, all of them in one message; or if the networks have
            different outputs.

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
    keys = jax.random.split(jax.random.key(0) if key is None else key, 3)
    inputs = with_values(inputs, keys[0])
    larger = inputs if growth is None else grown_inputs(inputs, growth, keys[1])
    with jax.default_matmul_precision("highest"):
        program = Program(apply, variables, inputs)
        outputs = _run(apply, variables, inputs)
        old, new = outputs_to_compare(
            outputs,
            _run(target_apply, wide, larger),
            arrays_of(leaves_by_path(variables)),
            arrays_of(leaves_by_path(wide)),
            growth,
        )
        found = differences(old, new)
        dtypes = {path: array.dtype for path, array in old.items()} | coarsest_dtypes(program)
        explained = {
            path: _bound(array.dtype, dtypes[path]) * _magnitude(found[path])
            for path, array in old.items()
        }
        for dtype in {dtypes[path] for path in _moved(found, explained)}:
            nudged = _run(apply, *_nudged((variables, inputs), eps(dtype), keys[2]))
            for path, difference in differences(outputs, nudged).items():
                if dtypes.get(path) == dtype and math.isfinite(difference.absolute):
                    explained[path] = max(explained[path], _NUDGES * difference.absolute)
    if moved := _moved(found, explained):
        lines = [_said(found[path], explained[path], dtypes[path]) for path in moved]
        what = "the larger network computes something else"
        if _draws(program) != _draws(Program(target_apply, wide, larger)):
            raise OtherDraws(listed(f"{what}, because it draws other random numbers", lines))
        ask = "if both are in evaluation mode and as the growth's notes ask, please report this"
        raise ValueError(listed(f"{what} ({ask})", lines))
    unseen = [
        f"both networks have NaN in {difference.nans} values of output {path!r}: pass other inputs"
        for path, difference in found.items()
        if difference.nans
    ]
    if not found:
        unseen.append("the networks have no outputs besides those that the growth changes")
    if unseen:
        warnings.warn(listed("verify cannot see whether all outputs stayed", unseen), stacklevel=2)
    return largest(found)


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
    call = "verify(apply, variables, target_apply, wide, *inputs)"
    expect(
        call,
        apply=(FUNCTION, apply),
        variables=(DATA, variables),
        target_apply=(FUNCTION, target_apply),
        wide=(DATA, wide),
    )
    expect_given(call, growth=(GROWTH, growth), key=(KEY, key))
    if any(map(is_traced, jax.tree.leaves((variables, wide, inputs)))):
        raise TypeError(_NO_VALUES)
    for tree in (variables, wide):
        expect_values(call, arrays_of(leaves_by_path(tree)), "both networks are run")
    expect_call(call, "apply", apply, variables, *inputs)
    expect_call(call, "target_apply", target_apply, wide, *inputs)


def _draws(program: Program) -> list[tuple[str, tuple[int, ...]]]:
    """Returns the operations that make random numbers, and the shapes that they make."""
    return [
        (eqn.primitive.name, eqn.outvars[0].aval.shape)
        for eqn in equations(program.jaxpr.jaxpr)
        if eqn.primitive.name in _GENERATORS
    ]


def _run(apply: Callable[..., Any], variables: PyTree, inputs: tuple[Any, ...]) -> dict[str, Any]:
    """Returns the outputs of a network by path."""
    # Dicts are sorted, as they are for every function that JAX transforms.
    variables, inputs = jax.tree.map(lambda leaf: leaf, (variables, inputs))
    outputs = numbers_by_path(apply(variables, *inputs))
    if any(map(is_traced, outputs.values())):
        raise TypeError(_NO_VALUES)
    return outputs


def _bound(dtype: Any, coarsest: Any) -> float:
    """Returns how far an output may move without being looked at closer, relative to its size."""
    return eps(coarsest) ** (3 / 4) if eps(dtype) else 0.0


def _nudged(tree: PyTree, size: float, key: Array) -> PyTree:
    """Returns arrays with numbers that are larger or smaller by this, relative to their own."""
    leaves, structure = jax.tree.flatten(tree)
    for i, leaf in enumerate(leaves):
        if is_array(leaf) and eps(leaf.dtype):
            words = jax.random.bits(jax.random.fold_in(key, i), (2,), jnp.uint32)
            leaves[i] = _nudge(leaf, words, size)
    return jax.tree.unflatten(structure, leaves)


@functools.partial(jax.jit, static_argnames="size")
def _nudge(array: Array, words: Array, size: float) -> Array:
    up = uniform(words, array.shape, jnp.dtype(jnp.float32), 1.0) > 0
    wide = array.astype(wide_dtype(array.dtype))
    return jnp.where(up, wide * (1 + size), wide * (1 - size)).astype(array.dtype)


def _moved(found: Mapping[str, Difference], explained: Mapping[str, float]) -> list[str]:
    return [path for path, d in found.items() if not d.absolute <= explained[path]]


def _magnitude(difference: Difference) -> float:
    """Returns the largest magnitude of the old values, if something differs."""
    known = 0 < difference.relative < math.inf
    return difference.absolute / difference.relative if known else 0.0


def _said(difference: Difference, explained: float, dtype: Any) -> str:
    """Says how far an output has moved."""
    name = "output" if difference.where == "output" else f"output {difference.where}"
    for kind, is_so in (("NaN", math.isnan), ("infinite", math.isinf)):
        if is_so(difference.absolute):
            return f"{name}: {kind} in only one of the networks"
    return (
        f"{name}: moved by {difference.absolute:.3g}, relative {difference.relative:.3g}; "
        f"rounding of {dtype} explains {explained:.3g}"
    )
