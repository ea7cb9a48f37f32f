"""Replaces kernels, which the library cannot read, by JAX functions: ``with_references``."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.extend.core as jex
import jax.numpy as jnp

from dogwood_jax._base.described import described
from dogwood_jax._base.problems import listed
from dogwood_jax._base.trees import PyTree, apart, struct_of
from dogwood_jax._program.subprograms import computed_by, sub_programs, within

Kernels = Mapping[str, Callable[..., Any]]


@dataclass(frozen=True, eq=False)
class WithReferences:
    """A function of pytrees whose kernels are replaced by references: functions of JAX.

    Attributes:
        apply: the function.
        kernels: the references, by the name of a primitive or of a kernel.
    """

    apply: Callable[..., Any]
    kernels: Kernels

    def __call__(self, *arguments: PyTree) -> PyTree:
        arrays, back = apart(arguments)
        of_outputs: list[Callable[..., PyTree]] = []

        def flat(*arrays: Any) -> list[Any]:
            outputs, of_these = apart(self.apply(*back(arrays)))
            of_outputs.append(of_these)
            return outputs

        traced = jax.make_jaxpr(flat)(*map(struct_of, arrays))
        jaxpr = jex.ClosedJaxpr(_Replaced(self.kernels).program(traced.jaxpr), traced.consts)
        return of_outputs[-1](jex.jaxpr_as_fun(jaxpr)(*arrays))


def with_references(apply: Callable[..., Any], kernels: Kernels) -> Callable[..., Any]:
    """Replaces a function's kernels by references; returns the function itself without any."""
    return WithReferences(apply, kernels) if kernels else apply


def kernels_of(apply: Callable[..., Any]) -> Kernels:
    """Returns the references that replace the kernels of a function."""
    return apply.kernels if isinstance(apply, WithReferences) else {}


def without_references(apply: Callable[..., Any]) -> Callable[..., Any]:
    """Returns the function that runs the kernels themselves."""
    return apply.apply if isinstance(apply, WithReferences) else apply


class _Replaced:
    """Replaces kernels by references in programs, and in the programs inside of equations."""

    def __init__(self, kernels: Kernels) -> None:
        self._kernels = kernels
        self._known: dict[int, Any] = {}

    def program(self, jaxpr: Any) -> Any:
        eqns = [self._equation(eqn) for eqn in jaxpr.eqns]
        same = all(a is b for a, b in zip(eqns, jaxpr.eqns))
        return jaxpr if same else jaxpr.replace(eqns=eqns)

    def _equation(self, eqn: Any) -> Any:
        for name in _names_of(eqn):
            if name in self._kernels:
                return computed_by(self._reference(name, eqn), eqn)
        inside = within(eqn, self.program, self._known)
        if inside is eqn or not eqn.primitive.name.startswith("custom_"):
            return inside
        # A custom derivative of a kernel runs kernels, too. The reference has its own.
        ((jaxpr, consts),) = sub_programs(inside)
        return computed_by(jex.jaxpr_as_fun(jex.ClosedJaxpr(jaxpr, consts)), eqn)

    def _reference(self, name: str, eqn: Any) -> Callable[..., Any]:
        """Returns a reference that checks its operands and results against an equation.

        Raises:
            ValueError: if the reference fails, or returns other shapes or dtypes than the equation.
        """

        def run(*operands: Any) -> list[Any]:
            try:
                found = jax.tree.leaves(self._kernels[name](*operands))
            except Exception as error:
                raise ValueError(f"{where} does not take {_said(eqn.invars)}: {error}") from error
            results = [jnp.asarray(result) for result in found]
            if _shapes(results) != _shapes([var.aval for var in eqn.outvars]):
                problems = [
                    f"it returns {_said(results)}",
                    f"the kernel returns {_said(eqn.outvars)}",
                ]
                raise ValueError(listed(f"{where} returns other shapes or dtypes", problems))
            return results

        where = f"kernels[{name!r}]: {described(self._kernels[name])}"
        return run


def _names_of(eqn: Any) -> Iterator[str]:
    """Yields the names of an equation; the name of its kernel comes before its primitive's."""
    params, primitive = eqn.params, eqn.primitive.name
    callback = getattr(params.get("callback"), "callback_func", None)
    kernel = params.get("jaxpr") if primitive == "pallas_call" else None
    for name in (
        params.get("name"),
        params.get("target_name"),
        getattr(callback, "__name__", None),
        getattr(getattr(kernel, "debug_info", None), "func_name", None),
    ):
        if isinstance(name, str):
            yield name
    yield primitive


def _shapes(arrays: Sequence[Any]) -> list[tuple[Any, ...]]:
    return [(tuple(array.shape), array.dtype) for array in arrays]


def _said(arrays: Sequence[Any]) -> str:
    """Returns the dtypes and shapes of arrays, or of the variables of a program, as text."""
    shapes = _shapes([getattr(array, "aval", array) for array in arrays])
    return ", ".join(f"{dtype.name}{[*shape]}" for shape, dtype in shapes)
