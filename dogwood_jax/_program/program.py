"""Programs of functions as JAX traces them: ``Program``."""

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
    """Whether an equation multiplies arrays entry by entry, one of them along axes of the other."""
    if eqn.primitive.name != "dot_general":
        return False
    (summed, _), batch = eqn.params["dimension_numbers"]
    ranks = [atom.aval.ndim for atom in eqn.invars]
    return not summed and any(len(axes) == n for axes, n in zip(batch, ranks, strict=True))


def as_product(eqn: Any) -> Any:
    """Returns the equation as one that runs a product."""
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
    """The program of ``apply(variables, *inputs)``, and what its arguments and results are called.

    Leaves that are not arrays are passed to ``apply`` as they are.

    Attributes:
        jaxpr: the program, with its constants.
        arguments: path and shape of each of its arguments; None for the path of an input.
        results: path of each of its results.
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
        """The path of each array of the variables, by what stands for the array in equations."""
        arguments = zip(self.jaxpr.jaxpr.invars, self.arguments, strict=True)
        return {var: path for var, (path, _) in arguments if path is not None}

    def reading_order(self) -> list[str]:
        """Returns the paths of the arrays that are read, in the order in which they first are."""
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
        """Returns the same program, which takes the arrays at these paths in this order."""
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
        """Returns a program with these of the arguments, and with other equations."""
        arguments = dict(zip(self.jaxpr.jaxpr.invars, self.arguments, strict=True))
        other = copy.copy(self)
        jaxpr = self.jaxpr.jaxpr.replace(invars=[*invars], eqns=[*eqns])
        other.jaxpr = jex.ClosedJaxpr(jaxpr, self.jaxpr.consts)
        other.arguments = [arguments[var] for var in invars]
        return other


def _without_unused(jaxpr: Any, known: dict[int, Any]) -> Any:
    """Returns a program without the equations that no result needs.

    They are there because a function may compute something for its shape alone, such as
    ``make_causal_mask(x[..., 0])``, and must not fix or split what they read.

    Args:
        jaxpr: the program.
        known: programs inside of equations that were met before, by identity, with what they
            became: like layers share a program, and go on to share it.
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
