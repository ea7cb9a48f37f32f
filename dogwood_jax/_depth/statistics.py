"""Give inserted normalizations the statistics of a batch: ``with_statistics``.

A normalization by running statistics computes the identity with mean 0, variance 1 and the scale
that undoes them, but training, which goes by the batch's own statistics, then starts elsewhere.
With those of a batch, and the scale and bias that undo these, both compute the identity.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.extend.core as jex
import jax.numpy as jnp
from jax import Array

from dogwood_jax._base.trees import PyTree, in_order_of, is_array, leaves_by_path, rebuilt
from dogwood_jax._depth.identity import CALLS
from dogwood_jax._growth.insertion import Insertion
from dogwood_jax._program.moves import KEEP_ENTRIES
from dogwood_jax._program.program import Program, sub_programs

_PASS = frozenset({"convert_element_type", "copy"})


def with_statistics(
    apply: Callable[..., Any],
    variables: PyTree,
    insertions: Sequence[Insertion],
    batch: Sequence[Any],
) -> PyTree:
    """Returns a network whose inserted normalizations have the statistics of a batch.

    Args:
        apply: the deeper network, a function of variables and inputs, in evaluation.
        variables: its variables, as ``insert`` returns them.
        insertions: what their new arrays were filled with.
        batch: its inputs, arrays.

    Raises:
        ValueError: if no normalization by running statistics was inserted.
    """
    norms = _norms(insertions)
    if not norms:
        raise ValueError(
            "batch= gives inserted normalizations their statistics, but none was inserted that has "
            "a mean, a variance, a scale and a bias; leave it out"
        )
    leaves, program = leaves_by_path(variables), Program(apply, variables, batch)

    @jax.jit
    def measured(leaves: Mapping[str, Array], inputs: Sequence[Array]) -> dict[str, Array]:
        rest = iter(inputs)
        arguments = [next(rest) if path is None else leaves[path] for path, _ in program.arguments]
        places = {
            i: (path, jnp.arange(leaves[path].size, dtype=jnp.int32).reshape(leaves[path].shape))
            for i, (path, _) in enumerate(program.arguments)
            if path in norms
        }
        found: dict[str, tuple[Array, Array]] = {}
        _run(program.jaxpr.jaxpr, program.jaxpr.consts, arguments, places, found)
        filled = {}
        for path, (mean, variance) in found.items():
            norm = norms[path]
            like = {role: leaves[insertion.path] for role, insertion in norm.items()}
            epsilon = norm["scale"].value ** 2 - norm["variance"].value
            # Rounded to what holds them first, so that scale and bias undo just these.
            mean = mean.astype(like["mean"].dtype).astype(like["bias"].dtype)
            variance = variance.astype(like["variance"].dtype)
            wide = jnp.promote_types(variance.dtype, like["scale"].dtype)
            scale = jnp.sqrt(variance.astype(wide) + epsilon)
            values = {"mean": mean, "variance": variance, "scale": scale, "bias": mean}
            for role, value in values.items():
                array = value.reshape(like[role].shape).astype(like[role].dtype)
                filled[norm[role].path] = array
        return filled

    known = {path: leaves[path] for path, _ in program.arguments if path is not None}
    filled = measured(known, [a for a in jax.tree.leaves(tuple(batch)) if is_array(a)])
    scales = sorted({norm["scale"].path for norm in norms.values()} - filled.keys())
    if scales:
        raise ValueError(
            f"batch=: found no values that the inserted normalizations of {', '.join(scales)} "
            "normalize, as in a loop over layers; leave it out and set their statistics yourself"
        )
    return in_order_of(variables, rebuilt(jax.tree.structure(variables), leaves | filled))


def _norms(insertions: Sequence[Insertion]) -> dict[str, dict[str, Insertion]]:
    """Returns the arrays of inserted normalizations by the path of what may be the mean."""
    constant = [i for i in insertions if i.fill == "constant" and not i.layers]
    norms: dict[str, dict[str, Insertion]] = {}
    for mean in constant:
        # A module has its arrays under the same path, in Flax in each collection.
        for start in (0, 1):
            module = mean.path.split("/")[start:-1]
            others = [
                i
                for i in constant
                if i is not mean and i.path.split("/")[start:-1] == module
                if i.shape == mean.shape
            ]
            if mean.value == 0 and len(others) == 3:
                bias, variance, scale = sorted(others, key=lambda i: i.value)
                if bias.value == 0 and variance.value == 1 < scale.value:
                    roles = {"mean": mean, "bias": bias, "variance": variance, "scale": scale}
                    norms.setdefault(mean.path, roles)
    return norms


def _run(
    jaxpr: Any,
    consts: Sequence[Any],
    arguments: Sequence[Any],
    places: Mapping[int, tuple[str, Array]],
    found: dict[str, tuple[Array, Array]],
) -> list[tuple[Any, tuple[str, Array] | None]]:
    """Runs a program; finds the statistics of what means are subtracted from.

    Args:
        jaxpr: the program.
        consts: its constants.
        arguments: its arguments.
        places: for arguments that are means, the path and each entry's number.
        found: the means and variances, by path; added to.

    Returns:
        The results, and for those that are means, the same.
    """
    values = dict(zip(jaxpr.constvars, consts, strict=True))
    values |= dict(zip(jaxpr.invars, arguments, strict=True))
    means = {jaxpr.invars[i]: place for i, place in places.items()}

    def read(atom: Any) -> Any:
        return atom.val if _is_literal(atom) else values[atom]

    for eqn in jaxpr.eqns:
        name, operands = eqn.primitive.name, [read(atom) for atom in eqn.invars]
        origins = [None if _is_literal(atom) else means.get(atom) for atom in eqn.invars]
        programs = sub_programs(eqn) if name in CALLS else []
        if programs:
            inner = {i: origin for i, origin in enumerate(origins) if origin}
            results = _run(*programs[0], operands, inner, found)
        else:
            results = [(value, None) for value in _bound(eqn, operands)]
        if name == "sub" and origins[1] and not origins[0]:
            path, numbers = origins[1]
            found[path] = _statistics(operands[0], numbers)
        elif origins and origins[0] and name in KEEP_ENTRIES | _PASS:
            path, numbers = origins[0]
            moved = numbers if name in _PASS else _bound(eqn, [numbers])[0]
            results = [(results[0][0], (path, moved))]
        for var, (value, origin) in zip(eqn.outvars, results, strict=True):
            values[var] = value
            if origin:
                means[var] = origin
    return [(read(a), None if isinstance(a, jex.Literal) else means.get(a)) for a in jaxpr.outvars]


def _bound(eqn: Any, operands: Sequence[Any]) -> list[Any]:
    """Returns the results of an equation."""
    results = eqn.primitive.bind(*operands, **eqn.params)
    return list(results) if eqn.primitive.multiple_results else [results]


def _is_literal(atom: Any) -> bool:
    return isinstance(atom, jex.Literal)


def _statistics(values: Array, numbers: Array) -> tuple[Array, Array]:
    """Returns means and variances of the values with the same number."""
    wide = values.astype(jnp.promote_types(values.dtype, jnp.float32)).ravel()
    units, numbers = numbers.size, jnp.broadcast_to(numbers, values.shape).ravel()

    def mean(entries: Array) -> Array:
        return jax.ops.segment_sum(entries, numbers, units) * (units / entries.size)

    means = mean(wide)
    return means, mean((wide - means[numbers]) ** 2)
