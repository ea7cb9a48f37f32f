"""Records which sides of operations samples have shown: ``Seen``, ``differing``.

A sample shows a piece of a function only if it lies in the piece. So each operation with several
pieces, such as a maximum, is watched. Operations of both programs may stay unseen. An operation of
only one program must be seen: clips at 10,000 and at 100,000 are equal on small numbers. An operand
of a sum is unseen, too, if the other operand is always so much larger that rounding loses it.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Self

import jax.numpy as jnp
import numpy as np

from dogwood_jax._check.lines import line_of, with_line
from dogwood_jax._program.subprograms import Key, equations, every_constant, key_of


class Operation(NamedTuple):
    """An operation with several pieces.

    Attributes:
        eqn: its equation.
        callers: the equations that run it, the outermost first.
        numbers: the constant numbers among its operands.
    """

    eqn: Any
    callers: tuple[Any, ...]
    numbers: tuple[float, ...] = ()

    @property
    def kind(self) -> tuple[str, tuple[float, ...]]:
        return self.eqn.primitive.name, self.numbers

    def __str__(self) -> str:
        place = line_of(with_line((*self.callers, self.eqn)))
        name: str = self.eqn.primitive.name
        return f"{name} ({place})" if place else name


class Seen:
    """The sides of operations with several pieces that samples have shown.

    Operations on integers count only with a nonzero constant, such as a window of 512 positions.
    Comparisons of integers with zero come from indexing an array.

    Args:
        integers: whether operations on integers count at all.
    """

    def __init__(self, integers: bool) -> None:
        self._integers = integers
        self._sides: dict[Key, set[Hashable]] = {}
        self._operations: dict[Key, Operation] = {}
        self._lost: dict[Key, list[_Lost]] = {}
        self._first: dict[Key, list[bytes]] = {}
        self._moves: set[Key] = set()

    def look(self, eqn: Any, operands: Sequence[Any], callers: Sequence[Any]) -> None:
        """Records an equation before it is evaluated, see ``Watch``."""
        name: str = eqn.primitive.name
        numbers: tuple[float, ...] = ()
        if name in ("add", "sub") and all(map(_is_piece, operands)):
            self._look_at_sum(eqn, operands, callers)
        if name not in PIECES:
            return
        if name == "cond":
            sides: Iterable[Hashable] = [int(operands[0])]
        elif name in _SIDES and all(map(_is_piece, operands)):
            numbers, sides = numbers_in(eqn), _SIDES[name](*operands)
        elif self._integers and name in _OF_INTEGERS and all(map(_is_whole, operands)):
            numbers, sides = numbers_in(eqn), _OF_INTEGERS[name](*operands)
            if name in ("rem", "div") and not operands[1].ndim:  # the number of ``%`` is no literal
                numbers = (float(operands[1]),)
            if not any(numbers):
                return
        else:
            return
        key = key_of(eqn, callers)
        self._operations.setdefault(key, Operation(eqn, (*callers,), numbers))
        self._sides.setdefault(key, set()).update(sides)
        # A comparison of a program's own numbers, as in ``jnp.var``, is the same in all samples.
        if key not in self._moves:
            now = [np.asarray(operand).tobytes() for operand in operands if np.size(operand) == 1]
            is_array = len(now) < len(operands)
            if name == "cond" or is_array or self._first.setdefault(key, now) != now:
                self._moves.add(key)

    def _look_at_sum(self, eqn: Any, operands: Sequence[Any], callers: Sequence[Any]) -> None:
        """Records which entries of a sum are lost in the rounding of the other operand."""
        key = key_of(eqn, callers)
        if key not in self._lost:
            self._operations[key] = Operation(eqn, (*callers,))
            self._lost[key] = [_Lost(beside) for beside in operands[::-1]]
        for lost, operand, beside in zip(self._lost[key], operands, operands[::-1], strict=True):
            lost.look(operand, beside)

    def unseen(self) -> Iterator[Operation]:
        """Yields the operations with a side that was not seen."""
        for key, sides in self._sides.items():
            operation = self._operations[key]
            eqn = operation.eqn
            is_cond = eqn.primitive.name == "cond"
            count = len(eqn.params["branches"]) if is_cond else _COUNTS[eqn.primitive.name]
            if len(sides) < count and key in self._moves:
                yield operation
        for key, operands in self._lost.items():
            if any(lost.is_any for lost in operands):
                yield self._operations[key]

    def only_in(self, other: Self) -> Iterator[Operation]:
        """Yields the unseen operations of kinds that are more frequent than in another program."""
        ours, its = (Counter(o.kind for o in seen._operations.values()) for seen in (self, other))
        yield from (one for one in self.unseen() if ours[one.kind] > its[one.kind])


# An operand of a sum is lost if the other operand is more than this many times as large.
_LOST = 1e8


class _Lost:
    """Entries of an operand of a sum that are lost in all samples.

    If the other operand never changes, such as a causal mask, every network loses the same entries,
    so they do not count.

    Args:
        beside: the other operand in the first sample.
    """

    def __init__(self, beside: Any) -> None:
        self._first = beside
        self._is_lost, self._moves, self._counts = np.True_, np.False_, np.False_

    def look(self, operand: Any, beside: Any) -> None:
        """Records a sample."""
        if not self._is_lost.any():  # usually true after the first sample
            return
        self._is_lost = self._is_lost & (np.abs(beside) > _LOST * np.abs(operand))
        self._moves = self._moves | (beside != self._first)
        self._counts = self._counts | (operand != 0)

    @property
    def is_any(self) -> bool:
        return bool((self._is_lost & self._moves & self._counts).any())


def numbers_in(eqn: Any) -> tuple[float, ...]:
    """Returns the constant numbers among the operands of an equation."""
    values = (getattr(atom, "val", None) for atom in eqn.invars)
    return tuple(float(n) for n in values if n is not None and np.ndim(n) == 0)


def _is_piece(operand: Any) -> bool:
    """Whether an operand holds floats, and is not the infinity that a maximum starts with."""
    is_float = getattr(operand, "dtype", None) == np.float64
    return is_float and not (operand.ndim == 0 and np.isinf(operand))


def _is_whole(operand: Any) -> bool:
    return isinstance(operand, np.ndarray) and operand.dtype.kind in "iu"


def _compared(a: Any, b: Any) -> Iterator[Hashable]:
    yield from (side for side, holds in (("less", a < b), ("more", a > b)) if np.any(holds))


def _clamped(low: Any, a: Any, high: Any) -> Iterator[Hashable]:
    sides = {"below": a < low, "above": a > high, "within": (low < a) & (a < high)}
    yield from (side for side, holds in sides.items() if np.any(holds))


_SIDES: dict[str, Callable[..., Iterator[Hashable]]] = {
    **dict.fromkeys(("max", "min", "lt", "le", "gt", "ge"), _compared),
    "clamp": _clamped,
}


def _within(a: Any, b: Any) -> Iterator[Hashable]:
    yield from np.unique(np.abs(a) < np.abs(b)).tolist()


# A counter ends when it equals its bound, so equality is a side of its own.
_OF_INTEGERS: dict[str, Callable[..., Iterator[Hashable]]] = {
    **{name: _SIDES[name] for name in ("max", "min", "clamp")},
    **{
        name: lambda a, b, holds=holds: iter(np.unique(holds(a, b)).tolist())
        for name, holds in {
            "lt": np.less,
            "le": np.less_equal,
            "gt": np.greater,
            "ge": np.greater_equal,
        }.items()
    },
    **dict.fromkeys(("rem", "div"), _within),
}
_COUNTS = {**dict.fromkeys({**_SIDES, **_OF_INTEGERS}, 2), "clamp": 3}


# Operations with several pieces.
PIECES = frozenset((*_COUNTS, "cond"))
# If a side of these is unseen, operations behind it may be unseen, too.
BRANCHES = frozenset(("lt", "le", "gt", "ge", "cond"))


def differing(old: Any, new: Any) -> Iterator[tuple[bytes, str]]:
    """Yields the numbers that only the second of two programs has, each with a text for errors.

    Args:
        old: a ``ClosedJaxpr``.
        new: another one.
    """
    known = {single for _, single, _ in _constants(old)}
    for number, single, what in dict.fromkeys(_constants(new)):
        if single not in known:
            yield number, what


def _constants(jaxpr: Any) -> list[tuple[bytes, bytes, str]]:
    """Returns the floats of a program: the number, the number in single precision, and a text."""
    found: list[tuple[bytes, bytes, str]] = []

    def constant(array: Any, aval: Any) -> None:
        if jnp.issubdtype(aval.dtype, jnp.floating):
            numbers = np.asarray(array).astype(np.float64)
            if not np.isfinite(numbers).all():  # the infinity that a maximum starts with
                return
            what = f"{numbers:.6g}" if not numbers.shape else f"a table of shape {numbers.shape}"
            with np.errstate(over="ignore"):
                single = numbers.astype(np.float32)
            found.append((numbers.tobytes(), single.tobytes(), what))

    every_constant(jaxpr, constant)
    return found


def rounding_in(jaxpr: Any) -> set[str]:
    """Returns the narrower dtypes that a program casts to, and the precisions it computes with."""
    dtypes = [aval.dtype for aval in jaxpr.in_avals if jnp.issubdtype(aval.dtype, jnp.floating)]
    widest = max((dtype.itemsize for dtype in dtypes), default=8)
    found = set()
    for eqn in equations(jaxpr.jaxpr):
        dtype = eqn.params.get("new_dtype")
        is_float = dtype is not None and jnp.issubdtype(dtype, jnp.floating)
        if is_float and jnp.dtype(dtype).itemsize < widest:
            found.add(f"casts to {jnp.dtype(dtype).name}")
        if (precision := eqn.params.get("precision")) is not None:
            found.add(f"precision {precision}")
    return found
