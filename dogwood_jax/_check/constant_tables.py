"""Compares constant tables of programs: ``first_other_table``.

Masks, rows of positions and NumPy arrays depend on no variable and no input. A reduced model has
only their first entries, which may be equal although later entries differ: ``arange(n) < n // 2``.
So the tables of both programs are computed in the real sizes, and compared at old entries. Tables
made by the same operations from the same numbers and shapes are equal, so they are not computed.
Large tables are computed a few rows at a time. A table that has numbers of fewer kinds in small
sizes is found by ``first_partial_table``.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dogwood_jax._base.trees import is_traced
from dogwood_jax._check.claim import Places
from dogwood_jax._check.evaluate import again, is_finite, widened
from dogwood_jax._check.lines import line_of, with_line
from dogwood_jax._growth.growth import Growth
from dogwood_jax._program.dims import Dim, parts_of
from dogwood_jax._program.interpret import called, interpret
from dogwood_jax._program.primitives.table import primitive
from dogwood_jax._program.subprograms import sub_programs
from dogwood_jax._widths.trace import Traced

# Larger tables are compared in pieces with this many entries.
_PIECE = 1 << 25
# Tables with more entries than this are computed in pieces, or not at all.
_MOST = 1 << 28
# The largest difference that counts as rounding, relative to the number.
_ROUNDING = 1e-6


@dataclass(frozen=True, eq=False)
class _Table:
    """An array that depends on no argument.

    Attributes:
        key: a hash of the operations and constants that compute it.
        loose: the same without the sizes of axes along which all entries are the same.
        aval: its shape and dtype.
        made: computes it.
        entries: the number of entries of the largest array that computing it needs.
        eqn: the equation that computes it; None for a constant.
        operands: the operands of the equation.
    """

    key: Any
    loose: Any
    aval: Any
    made: Callable[[], Any]
    entries: int
    eqn: Any = None
    operands: "Sequence[_Table]" = ()

    @cached_property
    def array(self) -> Any:
        if self.entries > _MOST:
            raise _TooLarge
        return self.made()

    def rows(self, start: int, stop: int) -> Any:
        """Returns some rows along the first axis; computes no other rows if possible.

        Raises:
            _TooLarge: if this needs all entries of an array that is too large.
        """
        shape = (stop - start, *self.aval.shape[1:])
        name = "" if self.eqn is None else self.eqn.primitive.name
        if name == "" or self.entries <= _PIECE:
            return self.array[start:stop]
        if name == "iota":
            axis, dtype = self.eqn.params["dimension"], self.eqn.params["dtype"]
            numbers = np.arange(start, stop) if axis == 0 else np.arange(shape[axis])
            along = [-1 if n == axis else 1 for n in range(len(shape))]
            return np.broadcast_to(numbers.astype(dtype).reshape(along), shape)
        if name == "broadcast_in_dim":
            operand, to = self.operands[0], self.eqn.params["broadcast_dimensions"]
            is_along = to[:1] == (0,) and operand.aval.shape[0] == self.aval.shape[0]
            array = operand.rows(start, stop) if is_along else operand.array
            sizes = dict(zip(to, array.shape, strict=True))
            along = [sizes.get(axis, 1) for axis in range(len(shape))]
            return np.broadcast_to(array.reshape(along), shape)
        if primitive(name).is_of_entries:
            parts = [
                one.rows(start, stop) if one.aval.shape[:1] == self.aval.shape[:1] else one.array
                for one in self.operands
            ]
            return again(self.eqn, parts)[0]
        return self.array[start:stop]

    @property
    def pieces(self) -> Iterator[Any]:
        """Yields the table, a few rows at a time."""
        if not self.aval.shape:
            yield self.array
            return
        count = self.aval.shape[0]
        step = max(1, _PIECE // max(prod(self.aval.shape[1:]), 1))
        for start in range(0, count, step):
            yield self.rows(start, min(start + step, count))


class _TooLarge(Exception):
    """Raised if a table is too large to be computed."""


class _Read(NamedTuple):
    """A table that is an operand of an equation which depends on arguments.

    Attributes:
        eqn: the equation.
        callers: the equations that run it.
        table: the table.
        value: its dimensions; None in a program that was not read.
    """

    eqn: Any
    callers: tuple[Any, ...]
    table: _Table
    value: Any

    @property
    def called(self) -> str:
        line = line_of(with_line((*self.callers, self.eqn)))
        shape = f"{self.table.aval.str_short()} used by {self.eqn.primitive.name}"
        return f"a constant table, {shape}{f' ({line})' if line else ''}"


def first_other_table(growth: Growth, traced: Traced, larger: Traced) -> str | None:
    """Returns a table whose old entries differ between two programs, as text, or None.

    Programs with different equations are not compared.

    Args:
        growth: the growth of the network's widths.
        traced: the network's program.
        larger: the larger program.
    """
    ours, its = _Reader(traced.trace.program), _Reader(None)
    before, after = ours.of(traced.program.jaxpr), its.of(larger.program.jaxpr)
    if ours.names != its.names or len(before) != len(after):
        return None
    places = Places(growth)
    for old, new in zip(before, after, strict=True):
        if old.table.loose != new.table.loose and not _are_equal(old, new, places):
            return f"{old.called}, has other values"
    return None


def first_partial_table(traced: Traced, small: Any) -> str | None:
    """Returns a table that is partial in small sizes, as text, or None.

    The first rows of a mask may all be zero although later ones are not: ``arange(n) >= 80``.

    Args:
        traced: the network's program.
        small: the same program in small sizes, as a closed jaxpr.
    """
    whole = _Reader(traced.trace.program).of(traced.program.jaxpr)
    parts, known = _Reader(None).of(small), set[Any]()
    if len(whole) != len(parts):
        return "tables that small sizes leave out"
    for ours, its in zip(whole, parts, strict=True):
        pair = ours.table.key, its.table.key
        is_key = jnp.issubdtype(ours.table.aval.dtype, jax.dtypes.extended)
        if not is_key and ours.table.aval.shape != its.table.aval.shape and pair not in known:
            known.add(pair)
            missing = _possible(ours.table) - _kinds(its.table, _possible(its.table))
            if missing and missing & _kinds(ours.table, missing):
                return ours.called
    return None


def _possible(table: _Table) -> set[str]:
    """Returns the kinds of numbers that an array of this dtype can have."""
    kinds = {"zero", "finite", "another"}
    return kinds | {"not finite"} if jnp.issubdtype(table.aval.dtype, jnp.inexact) else kinds


def _kinds(table: _Table, asked: set[str]) -> set[str]:
    """Returns kinds of numbers that a table has, until all that are asked for are found.

    Returns none if the table is too large.
    """
    while table.eqn is not None and primitive(table.eqn.primitive.name).keeps:
        table = table.operands[0]
    found, first = set[str](), None
    try:
        for piece in table.pieces:
            array = np.asarray(piece)
            first = array.reshape(-1)[:1] if first is None else first
            is_zero, is_number = array == 0, np.isfinite(array)
            of_kind = {
                "zero": is_zero,
                "finite": ~is_zero & is_number,
                "not finite": ~is_number,
                "another": array != first,
            }
            found |= {kind for kind, entries in of_kind.items() if entries.any()}
            if asked <= found:
                break
    except _TooLarge:
        return set()
    return found


def tables_along(traced: Traced, names: Mapping[Dim, str]) -> Iterator[tuple[str, str]]:
    """Yields the tables that vary along some dimensions: name of the dimension, text of the table.

    Tables that are compared by equality are left out: comparing ids with positions is a look-up.

    Args:
        traced: the network's program.
        names: the dimensions, each with its name.
    """
    for its in _Reader(traced.trace.program).of(traced.program.jaxpr):
        is_key = jnp.issubdtype(its.table.aval.dtype, jax.dtypes.extended)
        if its.value is None or is_key or its.eqn.primitive.name == "eq":
            continue
        for axis, dim in enumerate(its.value.dims):
            own = dict.fromkeys(names[part] for part in parts_of(dim) if part in names)
            if own and not _are_alike(its.table, axis):
                yield from ((name, its.called) for name in own)


def _are_alike(table: _Table, axis: int) -> bool:
    try:
        return _is_alike(table, axis)
    except _TooLarge:
        return False


def _are_equal(old: _Read, new: _Read, places: Places) -> bool:
    """Whether tables agree in old entries, and new entries are finite if the old ones are."""
    shape, larger = (read.table.aval.shape for read in (old, new))
    if jnp.issubdtype(old.table.aval.dtype, jax.dtypes.extended):  # keys
        return True
    if old.value is None or len(shape) != len(larger):
        return False
    where = [*places.of(old.value, shape, larger)]
    open_axes = [n for n, at in enumerate(where) if at is None and shape[n] != larger[n]]
    step = max(1, _PIECE // max(prod(larger[1:]), 1))
    try:
        for axis in open_axes:  # the places of old entries do not matter if all are equal
            if not (_is_alike(old.table, axis) and _is_alike(new.table, axis)):
                return False
            where[axis] = np.zeros(shape[axis], int)
        rows = np.arange(shape[0]) if where[0] is None else where[0]
        if not all(map(is_finite, new.table.pieces)) and all(map(is_finite, old.table.pieces)):
            return False
        for start in range(0, len(rows), step):
            its = rows[start : start + step]
            a = old.table.rows(start, start + len(its))
            b = new.table.rows(int(its.min()), int(its.max()) + 1)[its - its.min()]
            if not _agree(a, b, where):
                return False
    except _TooLarge:
        return False
    return True


def _is_alike(table: _Table, axis: int) -> bool:
    """Whether all entries along an axis are the same."""
    first = table.rows(0, 1)
    for piece in table.pieces:
        one = np.take(piece, [0], axis) if axis else first
        if not ((piece == one) | ((piece != piece) & (one != one))).all():  # NaN equals NaN
            return False
    return True


def _agree(old: Any, new: Any, where: Sequence[np.ndarray | None]) -> bool:
    """Whether rows agree in the old entries along the other axes."""
    for axis, at in enumerate(where):
        if axis and at is not None:
            new = np.take(new, at, axis)
    if np.shape(old) != np.shape(new):
        return False
    if old.dtype.kind not in "fc":
        return bool((old == new).all())
    return bool(np.isclose(new, old, _ROUNDING, 0, equal_nan=True).all())


class _Reader:
    """Finds the tables of a program.

    Attributes:
        names: the primitives of equations that depend on arguments, in order.
    """

    def __init__(self, read: Any) -> None:
        self._read = read
        self.names: list[str] = []
        self._found: list[_Read] = []
        self._callers: list[Any] = []

    def of(self, jaxpr: Any) -> list[_Read]:
        """Returns the tables that are operands of equations which depend on arguments."""
        self._run(jaxpr.jaxpr, jaxpr.consts, [None] * len(jaxpr.in_avals), self._read)
        return self._found

    def _run(
        self, jaxpr: Any, consts: Sequence[Any], arguments: Sequence[_Table | None], read: Any
    ) -> list[_Table | None]:
        left = iter(() if read is None else read.steps())

        def equation(eqn: Any, operands: list[_Table | None]) -> Sequence[_Table | None]:
            return self._equation(eqn, operands, next(left, None))

        return interpret(jaxpr, consts, arguments, constant=_constant, equation=equation)

    def _equation(
        self, eqn: Any, operands: list[_Table | None], sized: Any
    ) -> Sequence[_Table | None]:
        programs = () if sized is None else sized.inside
        if (program := called(eqn)) is not None:
            self._callers.append(eqn)
            results = self._run(*program, operands, programs[0] if programs else None)
            self._callers.pop()
            return results
        known = [operand for operand in operands if operand is not None]
        if len(known) == len(operands) and not eqn.effects:
            return [*_computed(eqn, known)]
        self.names.append(eqn.primitive.name)
        for place, operand in enumerate(operands):
            if operand is not None and operand.aval.shape:
                value = None if sized is None else sized.operands[place]
                self._found.append(_Read(eqn, (*self._callers,), operand, value))
        self._callers.append(eqn)
        inner = sub_programs(eqn)
        for (jaxpr, consts), its in zip(inner, [*programs, *[None] * len(inner)]):
            self._run(jaxpr, consts, [None] * len(jaxpr.invars), its)
        self._callers.pop()
        return [None] * len(eqn.outvars)


def _constant(array: Any, aval: Any) -> _Table | None:
    if is_traced(array):  # an outer program computes it
        return None
    is_key = jnp.issubdtype(aval.dtype, jax.dtypes.extended)
    key = id(array) if is_key else hash((str(aval), np.asarray(array).tobytes()))
    return _Table(key, key, aval, lambda: widened(array), prod(aval.shape))


def _computed(eqn: Any, operands: Sequence[_Table]) -> Iterator[_Table]:
    found: list[Any] = []

    def results() -> Sequence[Any]:
        if not found:
            found.extend(again(eqn, [operand.array for operand in operands], draws=True))
        return found

    params = str(eqn.params) if eqn.params else ""
    entries = max((operand.entries for operand in operands), default=0)
    for which, var in enumerate(eqn.outvars):
        key = eqn.primitive.name, params, which, *(operand.key for operand in operands)
        largest = max(entries, prod(var.aval.shape))

        def made(which: int = which) -> Any:
            return results()[which]

        loose = _loose(eqn, which, operands)
        exact = hash(key)
        yield _Table(exact, loose or exact, var.aval, made, largest, eqn, operands)


def _loose(eqn: Any, which: int, operands: Sequence[_Table]) -> Any:
    """Returns the key of a table without the sizes of axes along which all entries are the same.

    A causal mask for more heads has the same key. The key is None for operations whose results
    depend on these sizes, such as a sum.
    """
    name, known = eqn.primitive.name, tuple(operand.loose for operand in operands)
    if name == "broadcast_in_dim":
        rank = len(eqn.params["shape"])
        grown = [eqn.params["shape"][to] for to in eqn.params["broadcast_dimensions"]]
        is_along = tuple(a == b for a, b in zip(operands[0].aval.shape, grown, strict=True))
        return hash((name, eqn.params["broadcast_dimensions"], rank, is_along, known))
    return hash((name, str(eqn.params), which, known)) if primitive(name).is_of_entries else None
