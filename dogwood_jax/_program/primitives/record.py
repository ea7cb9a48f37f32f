"""What is known of a primitive of JAX: ``Primitive``, and the table of all: ``PRIMITIVES``."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax.numpy as jnp

from dogwood_jax._program.primitives.axes import Axes, Shape
from dogwood_jax._program.primitives.sides import Sides


class Primitive:
    """A primitive. A fact that its class does not state counts as not true.

    Attributes:
        takes: number of operands of a function of single entries; None for any number.
        is_of_entries: whether each entry of the result is a function of the entries at its place.
        same: whether it returns its operands unchanged.
        linear: whether ``f(a + b) = f(a) + f(b)``, in all operands together; for a cast, see
            ``is_linear``.
        linear_in_first: the same in the first operand, with the others held constant.
        pole: whether it is not finite at zero.
        compares: whether it tells which operand is larger, or whether they are equal.
        terms: the operands that it adds, joins, or chooses from.
        powers: the powers of the operands whose product, entry by entry, is the result.
        contracts: whether it is a sum of products of its first two operands.
        keeps: whether the result has every entry of the operand, once or several times, each at
            the same place along every axis that stays. A reversed axis is not kept.
        indexed: whether operands behind the first one select the entries that are taken.
        stays: whether it cuts or joins along axes, but each axis keeps its index.
        joins: whether the result has entries of several operands.
        runs: whether it runs programs among its parameters, several times or one of them.
        draws: whether it makes random bits.
        axes: takes the parameters, the shapes of operands, and the shape of the result. Returns
            which axes of operands and result are the same, or None.
        read: takes the trace, the equation and the values of operands. Unifies the dimensions that
            must have one size, and returns the values of results. Without it, dimensions that pass
            through are fixed.
        evaluate: computes the results from NumPy's arrays and the parameters. Without it, JAX does.
        takes_equation: whether ``evaluate`` takes the equation and the arrays, because it needs
            shapes or dtypes of operands.
        resized: takes a step, its operands, and the new size of each dimension. Returns the
            parameters that depend on sizes.
        sides: what it chooses between, if it chooses.
    """

    takes: int | None = None
    is_of_entries: bool = False
    same: bool = False
    linear: bool = False
    linear_in_first: bool = False
    pole: bool = False
    compares: bool = False
    terms: slice | None = None
    powers: tuple[int, int] | None = None
    contracts: bool = False
    keeps: bool = False
    indexed: bool = False
    stays: bool = False
    joins: bool = False
    runs: bool = False
    draws: bool = False
    takes_equation: bool = False
    axes: Callable[..., Axes | None] | None = None
    read: Callable[..., list[Any]] | None = None
    evaluate: Callable[..., Any] | None = None
    resized: Callable[..., Mapping[str, Any]] | None = None
    sides: Sides | None = None


PRIMITIVES: dict[str, Primitive] = {}
_NOTHING = Primitive()
C = TypeVar("C", bound=type[Primitive])


def describes(*names: str) -> Callable[[C], C]:
    """Enters a class in the table, as the description of the primitives with these names."""

    def enter(described: C) -> C:
        PRIMITIVES.update(dict.fromkeys(names, described()))
        return described

    return enter


def primitive(name: str) -> Primitive:
    """Returns what is known of a primitive; nothing is, if it is not in the table."""
    return PRIMITIVES.get(name, _NOTHING)


def axes_of(
    name: str, params: Mapping[str, Any], operands: Sequence[Shape], result: Shape
) -> Axes | None:
    """Returns which axes of operands and result are the same; None if that is not known."""
    axes = primitive(name).axes
    return None if axes is None else axes(params, operands, result)


def is_linear(name: str, params: Mapping[str, Any]) -> bool:
    """Whether a primitive with these parameters is linear. A cast to integers is not."""
    is_float = jnp.issubdtype(params.get("new_dtype", float), jnp.inexact)
    return primitive(name).linear and bool(is_float)
