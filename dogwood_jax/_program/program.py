"""Programs of functions as JAX traces them: ``Program``, and the programs inside equations."""

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.extend.core as jex

from dogwood_jax._base.trees import PyTree, is_array, leaf_path, struct_of


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
            kept.append(within(eqn, lambda inner: _without_unused(inner, known), known))
    kept.reverse()
    same = len(kept) == len(jaxpr.eqns) and all(a is b for a, b in zip(kept, jaxpr.eqns))
    return jaxpr if same else jaxpr.replace(eqns=kept)


def within(eqn: Any, rewritten: Callable[[Any], Any], known: dict[int, Any]) -> Any:
    """Returns an equation with other programs among its parameters.

    Args:
        eqn: the equation.
        rewritten: takes a program and returns what becomes of it, the same object for no change.
        known: what became of programs that were met before, by identity.
    """
    if not any(map(has_program, eqn.params.values())):
        return eqn

    def one(value: Any) -> Any:
        if isinstance(value, tuple | list):
            items = [one(item) for item in value]
            same = all(a is b for a, b in zip(items, value))
            return value if same else type(value)(items)
        if not isinstance(value, _PROGRAMS):
            return value
        if id(value) not in known:
            closed = value if isinstance(value, jex.ClosedJaxpr) else None
            inner = closed.jaxpr if closed else value
            other = rewritten(inner)
            if other is inner:
                known[id(value)] = value
            else:
                known[id(value)] = jex.ClosedJaxpr(other, closed.consts) if closed else other
        return known[id(value)]

    params = {name: one(value) for name, value in eqn.params.items()}
    same = all(params[name] is eqn.params[name] for name in params)
    return eqn if same else eqn.replace(params=params)


_PROGRAMS = jex.ClosedJaxpr, jex.Jaxpr


def has_program(value: Any) -> bool:
    """Whether an equation's parameter is a program or holds some."""
    if isinstance(value, tuple | list):
        return any(isinstance(item, _PROGRAMS) for item in value)
    return isinstance(value, _PROGRAMS)


def sub_programs(eqn: Any) -> list[tuple[Any, Sequence[Any]]]:
    """Returns the programs among an equation's parameters, with their constants."""
    found: list[tuple[Any, Sequence[Any]]] = []
    for _, value in sorted(eqn.params.items()):
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, jex.ClosedJaxpr):
                found.append((item.jaxpr, item.consts))
            elif isinstance(item, jex.Jaxpr):
                found.append((item, ()))
    return found


def equations(jaxpr: Any) -> Iterator[Any]:
    """Yields the equations of a program and of all programs in it."""
    for eqn in jaxpr.eqns:
        yield eqn
        for program, _ in sub_programs(eqn):
            yield from equations(program)


def every_constant(jaxpr: jex.ClosedJaxpr, take: Callable[[Any, Any], None]) -> None:
    """Calls a function with each constant of a program and of all programs in it, and its aval."""
    pending: list[tuple[Any, Sequence[Any]]] = [(jaxpr.jaxpr, jaxpr.consts)]
    seen = set()
    while pending:
        program, consts = pending.pop()
        if id(program) in seen:
            continue
        seen.add(id(program))
        for var, const in zip(program.constvars, consts):
            take(const, var.aval)
        for eqn in program.eqns:
            for atom in eqn.invars:
                if isinstance(atom, jex.Literal):
                    take(atom.val, atom.aval)
            pending += sub_programs(eqn)


def scan_counts(eqn: Any) -> tuple[int, int]:
    """Returns how many operands of a scan are constants, and how many are its state."""
    if "num_consts" in eqn.params:
        return eqn.params["num_consts"], eqn.params["num_carry"]
    consts, carry, _ = eqn.params["ft_in"].unpack()  # jax 0.12 and later
    return len(consts), len(carry)
