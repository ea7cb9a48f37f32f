"""The description of a primitive of JAX: ``Primitive``; the table of all: ``PRIMITIVES``."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import jax.numpy as jnp

from dogwood_jax._program.primitives.axes import Axes, Shape
from dogwood_jax._program.primitives.sides import Sides


class Primitive:
    """The description of a primitive. A fact that its class does not set is false or unknown.

    Attributes:
        takes: number of operands of an elementwise function; None for any number.
        is_of_entries: whether it is elementwise: a result depends on the entries at its place.
        same: whether it returns its operands unchanged.
        linear: whether ``f(a + b) = f(a) + f(b)``, in all operands together; for a cast, see
            ``is_linear``.
        linear_in_first: the same in the first operand, with the others held constant.
        pole: whether it is not finite at zero.
        compares: whether it compares its operands, as ``lt`` or ``eq`` does.
        terms: the operands that it adds, joins, or chooses from.
        powers: the exponents of the operands, if the result is the product of their powers.
        contracts: whether it is a sum of products of its first two operands.
        keeps: whether the result has every entry of the operand, once or several times, each at
            the same place along every axis that stays. A reversed axis is not kept.
        indexed: whether the operands after the first one select entries of the first one.
        stays: whether it cuts or joins along axes, but each axis keeps its index.
        joins: whether the result has entries of several operands.
        runs: whether it runs programs among its parameters, but not each of them exactly once.
        draws: whether it makes random bits.
        axes: takes the parameters, the shapes of operands, and the shape of the result. Returns
            which axes of operands and result are the same, or None.
        read: takes the trace, the equation and the values of operands. Unifies the dimensions that
            must have one size, and returns the values of results. Without it, dimensions that pass
            through are fixed.
        evaluate: computes the results from NumPy arrays and the parameters; None to use JAX.
        takes_equation: whether ``evaluate`` takes the equation and the arrays, because it needs
            shapes or dtypes from the program.
        windows: takes a step, and yields a ``Window`` for each axis along which windows move.
        resized: takes a step, its operands, and the new size of each dimension. Returns the
            parameters that depend on sizes.
        sides: the sides of its choice, if it makes a choice, such as ``max`` or ``cond``.
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
    windows: Callable[..., Iterator[Any]] | None = None
    resized: Callable[..., Mapping[str, Any]] | None = None
    sides: Sides | None = None


PRIMITIVES: dict[str, Primitive] = {}
_NOTHING = Primitive()
C = TypeVar("C", bound=type[Primitive])


def describes(*names: str) -> Callable[[C], C]:
    """Adds a class to the table, as the description of the primitives with these names."""

    def enter(described: C) -> C:
        PRIMITIVES.update(dict.fromkeys(names, described()))
        return described

    return enter


def primitive(name: str) -> Primitive:
    """Returns the description of a primitive; without any facts if it is not in the table."""
    return PRIMITIVES.get(name, _NOTHING)


def axes_of(
    name: str, params: Mapping[str, Any], operands: Sequence[Shape], result: Shape
) -> Axes | None:
    """Returns which axes of operands and result are the same; None if unknown."""
    axes = primitive(name).axes
    return None if axes is None else axes(params, operands, result)


def is_linear(name: str, params: Mapping[str, Any]) -> bool:
    """Whether a primitive with these parameters is linear. A cast to integers is not."""
    is_float = jnp.issubdtype(params.get("new_dtype", float), jnp.inexact)
    return primitive(name).linear and bool(is_float)
