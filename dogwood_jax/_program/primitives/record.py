"""What is known of a primitive: ``Primitive``."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dogwood_jax._program.primitives.axes import Axes

Shape = Sequence[int]


@dataclass(frozen=True)
class Primitive:
    """What is known of a primitive. What a record does not state counts as not true.

    Attributes:
        takes: how many operands a function of single entries has; None for any number of them.
        is_of_entries: whether each entry of the result is a function of the entries at its place.
        same: whether it returns its operands as they are.
        linear: whether ``f(a + b) = f(a) + f(b)``, in all operands together; of a cast, see
            ``is_linear``.
        linear_in_first: the same, where other operands stay.
        pole: whether it is not finite at zero.
        compares: whether it tells which operand is larger, or whether they are equal.
        terms: the operands that it adds, joins, or chooses from.
        powers: the powers of the operands that the result is a product of, entry by entry.
        contracts: whether it is a sum of products of its first two operands.
        axes: which axes of operands and result are the same, from parameters, shapes of operands,
            and the shape of the result.
        keeps: whether the result has every entry of the operand, once or several times, each at
            the same place along every axis that stays. A reversed axis is not kept.
        indexed: whether operands behind the first one say which entries are taken.
        stays: whether it cuts or joins along axes, but each axis keeps its index.
        joins: whether the result has entries of several operands.
        runs: whether it runs programs among its parameters, several times or one of them.
        draws: whether it makes random bits.
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
    axes: Callable[[Mapping[str, Any], Sequence[Shape], Shape], Axes | None] | None = None
    keeps: bool = False
    indexed: bool = False
    stays: bool = False
    joins: bool = False
    runs: bool = False
    draws: bool = False
