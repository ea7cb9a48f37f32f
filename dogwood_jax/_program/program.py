"""The program of a function, as JAX traces it: ``Program``."""

import copy
import itertools
from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax
import jax.extend.core as jex
import jax.numpy as jnp
from jax import Array

from dogwood_jax._base.trees import PyTree, is_array, leaf_path, struct_of
from dogwood_jax._program.shards import in_one_program
from dogwood_jax._program.subprograms import computed_by, within


def is_product(eqn: Any) -> bool:
    """Whether an equation is an elementwise product, with one operand broadcast along the other."""
    if eqn.primitive.name != "dot_general":
        return False
    (summed, _), batch = eqn.params["dimension_numbers"]
    ranks = [atom.aval.ndim for atom in eqn.invars]
    return not summed and any(len(axes) == n for axes, n in zip(batch, ranks, strict=True))


def as_product(eqn: Any) -> Any:
    """Returns an equation that computes the same elementwise product with ``*``."""
    _, batch = eqn.params["dimension_numbers"]
    (result,) = eqn.outvars

    def product(*operands: Array) -> list[Array]:
        factors = []
        for array, axes in zip(operands, batch, strict=True):
            others = [axis for axis in range(array.ndim) if axis not in axes]
            array = jnp.transpose(array, [*axes, *others]).astype(result.aval.dtype)
            places = range(len(axes), result.aval.ndim) if not others else ()
            factors.append(jnp.expand_dims(array, [*places]))
        return [factors[0] * factors[1]]

    return computed_by(product, eqn)


class Program:
    """The program of ``apply(variables, *inputs)``, with the paths of its arguments and results.

    Leaves that are not arrays are passed to ``apply`` as they are.

    Attributes:
        jaxpr: the program, with its constants.
        arguments: path and ``jax.ShapeDtypeStruct`` of each argument; an input has the path None.
        results: path of each result.
        variables: the variables, with a ``jax.ShapeDtypeStruct`` for every array.
        inputs: the inputs, in the same way.
    """

    def __init__(self, apply: Callable[..., Any], variables: PyTree, inputs: Sequence[Any]) -> None:
        arguments = jax.tree_util.tree_leaves_with_path((variables, *inputs))
        structure = jax.tree.structure((variables, *inputs))
        leaves = [struct_of(leaf) if is_array(leaf) else leaf for _, leaf in arguments]
        dynamic = [i for i, leaf in enumerate(leaves) if is_array(leaf)]
        self.variables, *self.inputs = jax.tree.unflatten(structure, leaves)
        keys = [arguments[i][0] for i in dynamic]
        paths = [leaf_path(k[1:]) if k[0].idx == 0 else None for k in keys]
        self.arguments = [(path, leaves[i]) for path, i in zip(paths, dynamic, strict=True)]
        self.results: list[str] = []

        def flat(*arrays: Any) -> list[Any]:
            given = [leaf for _, leaf in arguments]
            for i, array in zip(dynamic, arrays, strict=True):
                given[i] = array
            outputs = jax.tree_util.tree_leaves_with_path(
                apply(*jax.tree.unflatten(structure, given))
            )
            self.results = [leaf_path(k) for k, leaf in outputs if is_array(leaf)]
            return [leaf for _, leaf in outputs if is_array(leaf)]

        traced = jax.make_jaxpr(flat)(*(leaves[i] for i in dynamic))
        self.jaxpr = jex.ClosedJaxpr(_without_unused(traced.jaxpr, {}), traced.consts)

    @property
    def paths(self) -> dict[Any, str]:
        """The path of each array of the variables, by its variable in the jaxpr."""
        arguments = zip(self.jaxpr.jaxpr.invars, self.arguments, strict=True)
        return {var: path for var, (path, _) in arguments if path is not None}

    def reading_order(self) -> list[str]:
        """Returns the paths of the arrays that the program reads, in the order of first use."""
        paths = self.paths
        read = (atom for eqn in self.jaxpr.jaxpr.eqns for atom in eqn.invars)
        used = (atom for atom in read if not isinstance(atom, jex.Literal) and atom in paths)
        return [paths[var] for var in dict.fromkeys(used)]

    @property
    def used(self) -> set[str]:
        """The paths of the arrays that the program reads or returns."""
        known, program = self.paths, self.jaxpr.jaxpr
        read = (atom for eqn in program.eqns for atom in eqn.invars)
        used = itertools.chain(read, program.outvars)
        return {known[a] for a in used if not isinstance(a, jex.Literal) and a in known}

    def uses(self, paths: Collection[str]) -> bool:
        """Whether the program reads or returns one of the arrays at these paths."""
        return not self.used.isdisjoint(paths)

    def in_order(self, paths: Sequence[str]) -> "Program":
        """Returns the same program with the arrays at these paths as arguments, in this order."""
        known = self.paths
        taken = {path: var for var, path in known.items()}
        inputs = [var for var in self.jaxpr.jaxpr.invars if var not in known]
        return self.taking([*(taken[path] for path in paths), *inputs], self.jaxpr.jaxpr.eqns)

    def called(self, paths: Sequence[str | None]) -> "Program":
        """Returns the same program with other paths for its arguments, in their order."""
        other = copy.copy(self)
        structs = (struct for _, struct in self.arguments)
        other.arguments = [*zip(paths, structs, strict=True)]
        return other

    def taking(self, invars: Sequence[Any], eqns: Sequence[Any]) -> "Program":
        """Returns a program with the same results, but only these arguments and equations."""
        arguments = dict(zip(self.jaxpr.jaxpr.invars, self.arguments, strict=True))
        other = copy.copy(self)
        jaxpr = self.jaxpr.jaxpr.replace(invars=[*invars], eqns=[*eqns])
        other.jaxpr = jex.ClosedJaxpr(jaxpr, self.jaxpr.consts)
        other.arguments = [arguments[var] for var in invars]
        return other


def _without_unused(jaxpr: Any, known: dict[int, Any]) -> Any:
    """Returns a program without the equations that no result needs.

    A function may compute a value only to use its shape, such as ``make_causal_mask(x[..., 0])``.
    Such equations must not fix or split the dimensions that they read.

    Args:
        jaxpr: the program.
        known: the inner programs rewritten so far, by the identity of the old ones. Like layers
            share an inner program, and then share the rewritten one.
    """
    needed = {var for var in jaxpr.outvars if not isinstance(var, jex.Literal)}
    kept = []
    for eqn in reversed(jaxpr.eqns):
        if eqn.effects or not needed.isdisjoint(eqn.outvars):
            needed.update(atom for atom in eqn.invars if not isinstance(atom, jex.Literal))
            if eqn.primitive.name == "shard_map":
                eqn = in_one_program(eqn)
            if is_product(eqn):
                eqn = as_product(eqn)
            kept.append(within(eqn, lambda inner: _without_unused(inner, known), known))
    kept.reverse()
    same = len(kept) == len(jaxpr.eqns) and all(a is b for a, b in zip(kept, jaxpr.eqns))
    return jaxpr if same else jaxpr.replace(eqns=kept)
