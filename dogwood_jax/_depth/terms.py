"""Numbers for what programs compute, so that equal numbers mean equal results: ``Terms``.

Two programs that are turned into terms of one table compute the same where they end in the same
term. Terms are compared after simplification (``_SIMPLIFY``), by rules that hold for all finite
values: ``0 + x`` is ``x``, a product with the identity matrix is the other factor, a second relu
does nothing to the result of the first. What has no rule is a term of its own, equal only to the
same operation on the same operands.

Reference:
    Value numbering: Cocke and Schwartz, 1970, Programming Languages and their Compilers.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dogwood_jax._base.trees import concrete, struct
from dogwood_jax._program.elementwise import ELEMENTWISE, folded, functions, keeps_numbers
from dogwood_jax._program.inner import has_program
from dogwood_jax._program.intervals import Bounds
from dogwood_jax._program.moves import MOVES

Operands = Sequence["Term | None"]  # None for a value that could be anything


@dataclass(eq=False, slots=True)
class Term:
    """The result of an operation on other terms; each is made only once, so ``is`` compares them.

    Attributes:
        op: name of the primitive, or of what is no operation: ``"leaf"``, ``"input"``, ...
        params: what else decides the result.
        operands: the terms that it is computed from.
        shape: its shape in the program that made it first.
        dtype: its dtype.
        number: the value of all entries, where it is known.
        low: no entry is below this.
        high: no entry is above this.
        order: how many terms were made before it.
    """

    op: str
    params: Any
    operands: tuple["Term", ...]
    shape: tuple[int, ...]
    dtype: Any
    number: Any = None
    low: float = -math.inf
    high: float = math.inf
    order: int = 0


@dataclass
class Terms:
    """A table of terms.

    Attributes:
        sized: whether sizes are part of terms. Otherwise programs end in the same term if they are
            equal up to their sizes.
        sizes: lengths of axes in one program and in the other. Constants that differ in such a
            proportion are taken for equal.
        lengths: the integers of the old program, which may be lengths of axes; None to note them.
        integers: the integers that have come up, if they are noted.
        old_is_read: whether what comes now is the other program.
        numbers: the constants other than 0 and 1 that have met other values, each with its relative
            rounding error, to be cleared by the caller.
        theirs: the constants of the other program, as far as they are known before it is read.
        is_unsure: whether a constant could be several of the old program's.
        stacked: by paths of arrays that may have entries for each layer, the axes along which the
            layers may lie, each with how many there are.
        counts: how many layers with numbered names the programs have, where one has more.
    """

    sized: bool = True
    sizes: frozenset[tuple[int, int]] = frozenset()
    lengths: frozenset[int] | None = None
    integers: dict[int, None] = field(default_factory=dict)
    old_is_read: bool = False
    numbers: dict[float, float] = field(default_factory=dict)
    theirs: frozenset[float] = frozenset()
    is_unsure: bool = False
    stacked: Mapping[str, Mapping[int, int]] = field(default_factory=dict)
    counts: frozenset[int] = frozenset()
    _table: dict[Any, Term] = field(default_factory=dict)
    _constants: dict[float, None] = field(default_factory=dict)
    _kept: list[Any] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self._table)

    def make(
        self, op: str, params: Any, operands: Sequence[Term], aval: Any, number: Any = None
    ) -> Term:
        """Returns the term of an operation, a new one only if there was none."""
        sized = (tuple(aval.shape),) if number is not None and self.sized else ()
        key = (op, params, tuple(map(id, operands)), *sized)
        term = self._table.get(key)
        if term is None:
            low, high = (
                (number, number) if _is_real(number) else _bounds(op, params, operands, aval.dtype)
            )
            term = Term(
                op, params, tuple(operands), tuple(aval.shape), aval.dtype, number, low, high
            )
            term.order = len(self._table)
            self._table[key] = term
        return term

    def number(self, value: Any, aval: Any, *, written: bool = False) -> Term:
        """Returns the term of an array with equal entries.

        Args:
            value: the entries.
            aval: the array's shape and dtype.
            written: whether the number is written in a program, or follows from such numbers only.
                Which number of the other program it is shows where it meets other values.
        """
        if jnp.issubdtype(aval.dtype, np.inexact) and _is_real(value):
            value = float(value)
        op = "written" if written else "number"
        return self.make(op, (type(value).__name__, value, str(aval.dtype)), (), aval, value)

    def variable(
        self, place: Any, aval: Any, low: float = -math.inf, high: float = math.inf
    ) -> Term:
        """Returns the term of a value at a place, with bounds if any are known."""
        term = self.make("variable", (place, low, high), (), aval)
        term.low, term.high = low, high
        return term

    def like(self, number: Term, aval: Any) -> Term:
        """Returns the term of an array with the same number in all entries."""
        return self.number(number.number, aval, written=_is_written(number))

    def constant(self, array: Any, aval: Any) -> Term:
        """Returns the term of a constant of a program."""
        extended = jnp.issubdtype(aval.dtype, jax.dtypes.extended)
        values = None if extended else concrete(array)
        if values is None:
            return self.make("constant", self._identity(array), (), aval)
        array = np.asarray(values, aval.dtype)
        if array.size and (array == array.flat[0]).all():
            value = array.flat[0].item()
            if _is_real(value) and not isinstance(value, bool):
                if jnp.issubdtype(aval.dtype, np.inexact):
                    return self.number(value, aval, written=True)
                if self.lengths is None:
                    self.integers[value] = None
            return self.number(value, aval)
        return self.make("constant", (array.shape, str(aval.dtype), array.tobytes()), (), aval)

    def entries(self, x: Term, places: tuple[int, ...]) -> Term | None:
        """Returns the term of some entries along the first axis, None if they are not known.

        They are known of what is computed from constants entry by entry, as ``arange(n) % 4 == 0``.
        """
        aval = struct((len(places), *x.shape[1:]), x.dtype)
        if x.number is not None:
            return self.number(x.number, aval)
        if x.op == "constant" and isinstance(x.params[-1], bytes):
            shape, _, data = x.params
            array = np.frombuffer(data, x.dtype).reshape(shape)
            return self.constant(array[np.asarray(places)], aval)
        if x.op == "iota" and places == tuple(range(len(places))):
            params = dict(x.params[1])
            if params["dimension"] != 0:
                return None
            if self.sized:
                params["shape"] = self._static(aval.shape)
            return self.make("iota", (0, tuple(params.items())), (), aval)
        operands = [self.entries(o, places) if o.shape else o for o in x.operands]
        known = [operand for operand in operands if operand is not None]
        if len(known) < len(operands):
            return None
        if x.op in ("scaled", "convert_element_type"):
            return self.make(x.op, x.params, known, aval)
        return self.opaque(x.op, x.params[1], known, [aval])[0] if x.op in ELEMENTWISE else None

    def _scaled(self, value: float, rounding: float) -> float:
        """Returns a constant of the old program that may be this one in another size, or this one.

        Two constants of one program stay two, also where one is a head_dim of 8 and the other a
        stream of 12, which heads grow from and to. If it may be several, the first one is taken
        that the other program does not have as it was, and that is not the only one that another
        constant may be: 16 is 8 times 2 rather than 64 / 4 if 64 becomes 256.
        """
        if abs(value) in (0.0, 1.0):
            return value
        self.numbers[value] = max(rounding, self.numbers.get(value, 0.0))
        if not self.old_is_read:
            self._constants[value] = None
            return value
        may_be = self._in_proportion(value, rounding)
        if len(may_be) > 1:
            self.is_unsure = True
            others = (self._in_proportion(other, rounding) for other in self.theirs - {value})
            taken = {known for its in others if len(its) == 1 for known in its}
            taken |= self.theirs - {value}
            may_be.sort(key=lambda known: known in taken)
        return may_be[0] if may_be else value

    def _in_proportion(self, value: float, rounding: float) -> list[float]:
        """Returns the constants of the old program that a number may be, first of all itself."""
        pairs = itertools.product(self.ratios, self._constants)
        others = (k for r, k in pairs if math.isclose(value, k * r, rel_tol=rounding))
        return [*dict.fromkeys((*([value] * (value in self._constants)), *others))]

    def _met(self, term: Term) -> Term:
        """Returns what stands for a written number in both programs, or the term itself."""
        if not _is_written(term):
            return term
        return self.number(self._scaled(term.number, _rounding(term.dtype)), term)

    def _counted(self, value: int) -> int:
        """Returns what stands for an integer and all that it may be in the other size.

        A length, or a last index, can be one that an axis had before. It must have come up then.
        """
        if self.lengths is None:
            return value
        pairs = ((old - less, new - less) for old, new in self.sizes for less in (0, 1))
        known = self.lengths & {value, *(old for old, new in pairs if new == value)}
        return min(known, default=value)

    def _as_length(self, term: Term | None) -> Term | None:
        """Returns what stands for an integer where positions are computed, or the term itself."""
        number = None if term is None else term.number
        if term is None or not isinstance(number, int) or isinstance(number, bool):
            return term
        return self.number(self._counted(number), term)

    @cached_property
    def ratios(self) -> list[float]:
        """By which factors constants that depend on sizes can differ."""
        found: set[float] = set()
        for a, b in self.sizes:
            # Of sizes, their roots, and the share of units that are copies.
            found |= {b / a, math.sqrt(b / a), (b // a) * a / b}
        return sorted(found | {1 / ratio for ratio in found})

    def _identity(self, thing: Any) -> Any:
        """Returns what stands for something that can only be compared to itself."""
        self._kept.append(thing)  # so that its id is not given to anything else
        return ("object", id(thing))

    def apply(self, eqn: Any, operands: Operands) -> list[Term | None]:
        """Returns the terms of the results of an equation, None for those that cannot be known.

        Args:
            eqn: an equation of a jaxpr.
            operands: its operands, None for those that could be anything finite.
        """
        name = eqn.primitive.name
        if name in _SAME:
            return list(operands)
        if name in _INDEXING:
            operands = [self._as_length(term) for term in operands]
        if not all(map(_is_written, operands)):
            operands = [None if term is None else self._met(term) for term in operands]
        rule = _SIMPLIFY.get(name)
        if rule and (result := rule(self, eqn, operands)) is not None:
            return [result]
        avals = [var.aval for var in eqn.outvars]
        results = [self._folded(eqn, operands, aval) for aval in avals]
        if avals and results[0] is not None:
            return results
        known = [term for term in operands if term is not None]
        if len(known) < len(operands):
            return [None] * len(avals)
        return self.opaque(name, self.params(eqn), [*map(self._met, known)], avals)

    def opaque(
        self, name: str, params: Any, operands: Sequence[Term], avals: Sequence[Any]
    ) -> list[Term | None]:
        """Returns the results of an operation of which nothing else is known."""
        if name in _COMMUTATIVE:
            operands = sorted(operands, key=lambda term: term.order)
        return [self.make(name, (i, params), operands, aval) for i, aval in enumerate(avals)]

    def _folded(self, eqn: Any, operands: Operands, aval: Any) -> Term | None:
        """Returns the result of an operation on equal entries, if it has equal entries."""
        name = eqn.primitive.name
        first = operands[0] if operands else None
        if name in _STRUCTURAL and first is not None:
            if first.number is not None:
                return self.number(first.number, aval, written=_is_written(first))
            return first if first.op == "open" else None
        numbers: list[Any] = [None if term is None else term.number for term in operands]
        if not numbers or any(number is None for number in numbers):
            return None
        written = all(map(_is_written, operands))
        if name in _REARRANGING and len(set(numbers)) == 1:
            return self.number(numbers[0], aval, written=written)
        if name in _SUMS and numbers[0] == 0:
            return self.number(numbers[0], aval)
        try:
            if name == "convert_element_type":
                exact = jnp.issubdtype(aval.dtype, np.inexact) or numbers[0] == int(numbers[0])
                return self.number(numbers[0], aval, written=written) if exact else None
            if name == "integer_pow":
                return self.number(numbers[0] ** eqn.params["y"], aval, written=written)
            if jnp.issubdtype(aval.dtype, np.inexact):
                value = folded(name, *numbers)
                # A pole is no number: not even a zero silences it.
                is_pole = value is not None and np.isfinite(numbers).all() > np.isfinite(value)
                if value is None:
                    return None
                return self.number(math.nan if is_pole else value, aval, written=written)
        except (ArithmeticError, ValueError):
            return self.number(math.nan, aval)  # a pole: not even a zero silences it
        except TypeError:
            pass  # a complex number: nothing is known of it
        return None

    def scale(self, x: Term, factor: float, aval: Any) -> Term:
        """Returns a term times a number."""
        if x.op == "scaled":
            x, factor = x.operands[0], factor * x.params
        if _is_one(factor, aval):
            return x
        return self.make("scaled", factor, (x,), aval)

    def expanded(self, x: Term, aval: Any) -> Term:
        """Returns a term with a first axis of size 1."""
        if x.number is not None:
            return self.number(x.number, aval)
        if x.op == "open":
            return x
        return self.make("expanded", (), (x,), aval)

    def transpose(self, x: Term, permutation: Sequence[int], aval: Any) -> Term:
        """Returns a term with its axes in another order."""
        permutation = tuple(int(axis) for axis in permutation)
        if x.op == "transpose":
            permutation = tuple(x.params[axis] for axis in permutation)
            x = x.operands[0]
        if permutation == tuple(range(len(permutation))):
            return x
        if x.op == "identity":
            path, axes = x.params
            moved = tuple(permutation.index(axis) for axis in axes)
            return self.make("identity", (path, moved), (), aval)
        if x.op == "convert_element_type":
            (inner,) = x.operands
            inner = self.transpose(inner, permutation, struct(aval.shape, inner.dtype))
            return self.make(x.op, x.params, (inner,), aval)
        return self.make("transpose", permutation, (x,), aval)

    def converted(self, x: Term, aval: Any) -> Term:
        """Returns a term as floats of another dtype: they are the same, but for their rounding."""
        if x.op == "convert_element_type" and _are_wide(x):
            (x,) = x.operands
        if x.dtype == aval.dtype:
            return x
        return self.make("convert_element_type", str(aval.dtype), (x,), aval)

    def params(self, eqn: Any) -> Any:
        """Returns an equation's parameters, programs excepted, in a form that can be compared."""
        dropped = {"sharding", "out_sharding"}
        params = {k: v for k, v in eqn.params.items() if k not in dropped and not has_program(v)}
        if len(params) < len(eqn.params.keys() - dropped):
            # Functions beside a program are those that it was traced from.
            params = {k: v for k, v in params.items() if not callable(v)}
        if not self.sized:
            params = _without_sizes(eqn, params)
        return tuple((key, self._static(value)) for key, value in sorted(params.items()))

    def _static(self, value: Any) -> Any:
        if isinstance(value, tuple | list):
            return (type(value).__name__, *map(self._static, value))
        if isinstance(value, np.ndarray):
            return (value.shape, str(value.dtype), value.tobytes())
        if isinstance(value, int | np.integer) and not isinstance(value, bool):
            return int(value)
        try:
            hash(value)
        except TypeError:
            return self._identity(value)
        return (type(value).__name__, value)


def _without_sizes(eqn: Any, params: dict[str, Any]) -> dict[str, Any]:
    """Returns parameters with sizes left out, or relative to those of the first operand."""
    name = eqn.primitive.name
    shape = eqn.invars[0].aval.shape if eqn.invars else ()
    params = {k: v for k, v in params.items() if k not in ("shape", "new_sizes")}
    if name == "slice":
        for limit in ("start_indices", "limit_indices"):
            params[limit] = tuple(Fraction(i, max(n, 1)) for i, n in zip(params[limit], shape))
    if name == "split":
        total = max(shape[params["axis"]], 1)
        params["sizes"] = tuple(Fraction(size, total) for size in params["sizes"])
    if name in ("gather", "dynamic_slice"):
        params["slice_sizes"] = tuple(
            "all" if size == n else size for size, n in zip(params["slice_sizes"], shape)
        )
    if name == "conv_general_dilated":
        channels = shape[params["dimension_numbers"].lhs_spec[1]]
        if params["feature_group_count"] == channels > 1:
            params["feature_group_count"] = "all"
    return params


def _is_real(number: Any) -> bool:
    return isinstance(number, int | float) and number == number


def _is_written(term: Term | None) -> bool:
    return term is not None and term.op == "written"


def _is(term: Term | None, number: float) -> bool:
    return term is not None and term.number == number


def _is_finite(term: Term | None) -> bool:
    """Whether a value can be finite; what is not known is taken to be."""
    return term is None or term.number is None or bool(np.isfinite(term.number))


def _rounding(dtype: Any) -> float:
    """Returns by how much constants may differ that are rounded to a dtype."""
    return max(1e-6, float(jnp.finfo(dtype).eps))  # type: ignore[no-untyped-call]


def _is_one(number: Any, aval: Any) -> bool:
    """Whether a factor is one, up to the rounding of what it was computed from."""
    inexact = jnp.issubdtype(aval.dtype, np.inexact)
    rounding = 4 * float(jnp.finfo(aval.dtype).eps) if inexact else 0  # type: ignore[no-untyped-call]
    return _is_real(number) and abs(number - 1) <= rounding


def _like(var: Any, aval: Any) -> bool:
    """Whether an operand has the shape and dtype of the result."""
    return bool(var.aval.shape == aval.shape and var.aval.dtype == aval.dtype)


def _both_ways(eqn: Any, operands: Operands) -> Any:
    """Returns the two operands with their variables, in both orders."""
    first, second = zip(eqn.invars, operands, strict=True)
    return (first, second), (second, first)


# Simplification -----------------------------------------------------------------------------------

Rule = Callable[[Terms, Any, Operands], Term | None]


def _add(terms: Terms, eqn: Any, operands: Operands) -> Term | None:
    x, y = operands
    aval = eqn.outvars[0].aval
    if _is(y, 0) and _like(eqn.invars[0], aval):
        return x
    if _is(x, 0) and _like(eqn.invars[1], aval) and eqn.primitive.name != "sub":
        return y
    return None


def _mul(terms: Terms, eqn: Any, operands: Operands) -> Term | None:
    aval = eqn.outvars[0].aval
    if any(_is(x, 0) for x in operands):
        return terms.number(0, aval) if all(map(_is_finite, operands)) else None
    x: Term | None
    y: Term | None
    for (var, x), (_, y) in _both_ways(eqn, operands):
        if x is not None and y is not None and _like(var, aval) and x.number is None:
            if _is_real(y.number) and jnp.issubdtype(aval.dtype, np.inexact):
                return terms.scale(x, y.number, aval)
            if _is(y, 1):
                return x
    return None


def _div(terms: Terms, eqn: Any, operands: Operands) -> Term | None:
    x, y = operands
    aval = eqn.outvars[0].aval
    if _is(x, 0) and not _is(y, 0):  # an evaluation shows whether y may be zero somewhere
        return terms.number(0, aval) if _is_finite(y) else None
    if x is None or y is None or x.number is not None or not _like(eqn.invars[0], aval):
        return None
    if _is_real(y.number) and y.number and jnp.issubdtype(aval.dtype, np.inexact):
        return terms.scale(x, 1 / y.number, aval)
    return None


def _max(terms: Terms, eqn: Any, operands: Operands) -> Term | None:
    aval = eqn.outvars[0].aval
    x: Term | None
    y: Term | None
    for (var, x), (_, y) in _both_ways(eqn, operands):
        if x is None or y is None or not _like(var, aval):
            continue
        largest = eqn.primitive.name == "max"
        if _is_real(y.number) and (x.low >= y.number if largest else x.high <= y.number):
            return x
        if x.op == eqn.primitive.name and y in x.operands:
            return x
    return None


def _abs(terms: Terms, eqn: Any, operands: Operands) -> Term | None:
    (x,) = operands
    return x if x is not None and x.low >= 0 else None


def _round(terms: Terms, eqn: Any, operands: Operands) -> Term | None:
    (x,) = operands
    if x is None:
        return None
    is_fixed = _is_real(x.number) and x.number in (-1, 0, 1)  # of rounding, and of the sign
    return x if is_fixed or x.op == eqn.primitive.name else None


def _select(terms: Terms, eqn: Any, operands: Operands) -> Term | None:
    which, first, *others = operands
    if first is not None and all(x is first for x in others):
        return first
    if which is None or which.number is None:
        return None
    return operands[1 + int(which.number)]


def _equal(terms: Terms, eqn: Any, operands: Operands) -> Term | None:
    """Compares a finite number with itself, as functions do that ask whether it is one."""
    x, y = operands
    if x is None or x is not y or not _is_real(x.number) or not math.isfinite(x.number):
        return None
    return terms.number(eqn.primitive.name == "eq", eqn.outvars[0].aval)


def _scatter_add(terms: Terms, eqn: Any, operands: Operands) -> Term | None:
    x, _, updates = operands
    return x if _is(updates, 0) else None


def _dot(terms: Terms, eqn: Any, operands: Operands) -> Term | None:
    aval = eqn.outvars[0].aval
    if any(_is(x, 0) for x in operands[:2]):
        return terms.number(0, aval) if all(map(_is_finite, operands)) else None
    if eqn.primitive.name != "dot_general":
        return None
    x, y = operands
    (contract_x, contract_y), (batch, _) = eqn.params["dimension_numbers"]
    if x is None or y is None or len(contract_x) != 1 or batch:
        return None
    for factor, var, axis, last in (
        (x, eqn.invars[0], contract_x[0], y),
        (y, eqn.invars[1], contract_y[0], x),
    ):
        if last.op == "identity" and len(last.shape) == 2:
            others = [a for a in range(len(aval.shape)) if a != axis]
            # The axis of the identity matrix takes the place of the one that it is contracted with.
            order = [*others, axis] if factor is x else [axis, *others]
            return _moved(terms, factor, var, order, aval)
    return None


def _conv(terms: Terms, eqn: Any, operands: Operands) -> Term | None:
    x, kernel = operands
    aval = eqn.outvars[0].aval
    if _is(x, 0) or _is(kernel, 0):
        return terms.number(0, aval) if all(map(_is_finite, operands)) else None
    if x is None or kernel is None or kernel.op != "identity":
        return None
    p = eqn.params
    image, (out, into, *window), result = p["dimension_numbers"]
    shape = eqn.invars[1].aval.shape
    # The centre of the window must lie on the entry of the result.
    centred = tuple(
        (dilation * ((shape[axis] - 1) // 2), dilation * (shape[axis] // 2))
        for axis, dilation in zip(window, p["rhs_dilation"], strict=True)
    )
    same = (
        kernel.params[1] == (into, out)
        and shape[out] == eqn.invars[0].aval.shape[image[1]]
        and set(p["window_strides"]) | set(p["lhs_dilation"]) <= {1}
        and tuple(map(tuple, p["padding"])) == centred
        and p["batch_group_count"] == 1
    )
    if not same:
        return None
    order = [0] * len(image)
    for axis, place in zip(image, result, strict=True):
        order[place] = axis
    return _moved(terms, x, eqn.invars[0], order, aval)


def _moved(terms: Terms, x: Term, var: Any, order: Sequence[int], aval: Any) -> Term | None:
    """Returns a term with its axes in another order, perhaps as floats of another dtype."""
    if var.aval.dtype == aval.dtype:
        return terms.transpose(x, order, aval)
    if x.op == "identity" or not _are_wide(x, aval):
        return None
    found = terms.transpose(x, order, struct(aval.shape, x.dtype))
    return terms.converted(found, aval)


def _transpose(terms: Terms, eqn: Any, operands: Operands) -> Term | None:
    (x,) = operands
    if x is None or x.number is not None or x.op == "open":
        return None
    return terms.transpose(x, eqn.params["permutation"], eqn.outvars[0].aval)


def _reshape(terms: Terms, eqn: Any, operands: Operands) -> Term | None:
    x, aval = operands[0], eqn.outvars[0].aval
    if x is not None and x.op == "expanded" and eqn.params.get("dimensions") == (0,):
        return x.operands[0]
    plain = len(operands) == 1 and eqn.params.get("dimensions") is None
    if eqn.primitive.name != "reshape":
        plain = math.prod(eqn.invars[0].aval.shape) == math.prod(aval.shape)
    if x is None or x.number is not None or x.op == "open" or not plain or not terms.sized:
        return None
    if x.op in ("reshape", "expanded"):
        x = x.operands[0]
    return x if x.shape == aval.shape else terms.make("reshape", tuple(aval.shape), (x,), aval)


def _convert(terms: Terms, eqn: Any, operands: Operands) -> Term | None:
    x, aval = operands[0], eqn.outvars[0].aval
    if x is None or _like(eqn.invars[0], aval):
        return x
    if x.op == "identity" and jnp.issubdtype(aval.dtype, np.inexact):
        return x
    is_known = x.number is None and x.op not in ("identity", "open")
    return terms.converted(x, aval) if is_known and _are_wide(x, aval) else None


def _are_wide(*avals: Any) -> bool:
    """Whether dtypes are real, and a cast from one to the other and back keeps numbers."""
    dtypes = [aval.dtype for aval in avals]
    return all(jnp.issubdtype(dtype, np.floating) and keeps_numbers(dtype) for dtype in dtypes)


_SIMPLIFY: dict[str, Rule] = {
    "add": _add,
    "add_any": _add,
    "sub": _add,
    "mul": _mul,
    "div": _div,
    "max": _max,
    "min": _max,
    "abs": _abs,
    "sign": _round,
    "round": _round,
    "floor": _round,
    "ceil": _round,
    "select_n": _select,
    "eq": _equal,
    "ne": _equal,
    "scatter-add": _scatter_add,
    "dot_general": _dot,
    "ragged_dot": _dot,
    "ragged_dot_general": _dot,
    "conv_general_dilated": _conv,
    "transpose": _transpose,
    "broadcast_in_dim": _reshape,
    "reshape": _reshape,
    "squeeze": _reshape,
    "convert_element_type": _convert,
}

# Operations that can be known although an operand could be anything.
TOLERANT = frozenset({"mul", "div", "select_n", "conv_general_dilated"}) | {
    name for name, rule in _SIMPLIFY.items() if rule is _dot
}

# What changes nothing but where and when values are computed.
_SAME = frozenset(functions(lambda law: law.same))

_COMMUTATIVE = frozenset(functions(lambda law: law.commutes))

# Operations that only move entries of their first operand, or take some.
_STRUCTURAL = frozenset(
    (
        *(name for name, move in MOVES.items() if move.linear and name != "gather"),
        *("reduce_max", "reduce_min"),
    )
)

# Operations that put entries of all operands together.
# Operations that compute positions along an axis, such as -1 + length. Elsewhere an integer is no
# length: in tokens * 6, for example.
_INDEXING = frozenset(
    "add min max clamp select_n gather scatter dynamic_slice dynamic_update_slice".split()
)
_REARRANGING = frozenset(name for name, move in MOVES.items() if move.joins and name != "scatter")

# Operations that sum up entries.
_SUMS = frozenset({"cumsum", "fft", "imag", "real", "reduce_precision", "reduce_sum"})


# Bounds -------------------------------------------------------------------------------------------


def _bounds(op: str, params: Any, operands: Sequence[Term], dtype: Any) -> tuple[float, float]:
    """Returns the least and the largest value that an operation can have."""
    lows, highs = [x.low for x in operands], [x.high for x in operands]
    if op == "sqrt":  # of finite values, and so of none below zero
        return math.sqrt(max(lows[0], 0)), math.inf
    is_real = all(jnp.issubdtype(d, np.floating) for d in (dtype, *(x.dtype for x in operands)))
    if is_real and (law := ELEMENTWISE.get(op)) and law.bounds:
        found = law.bounds(Bounds(lows[0], highs[0]))
        return found.low, found.high
    if op == "max":
        return max(lows), max(highs)
    if op == "min":
        return min(lows), min(highs)
    if op in ("add", "add_any"):
        return sum(lows), sum(highs)
    if op in _STRUCTURAL:
        return lows[0], highs[0]
    if op == "concatenate":
        return min(lows), max(highs)
    if op == "select_n":
        return min(lows[1:]), max(highs[1:])
    if op == "scaled":
        return (lows[0] * params, highs[0] * params) if params > 0 else (-math.inf, math.inf)
    if op in ("reduce_sum", "reduce_window_sum", "cumsum", "mul"):
        return (0.0 if all(low >= 0 for low in lows) else -math.inf), math.inf
    if op == "reduce_window_max":
        p = dict(params[1])
        window, padding = p["window_dimensions"][1:], p["padding"][1:]
        if all(max(low, high) < size for size, (_, low, high) in zip(window, padding, strict=True)):
            return lows[0], highs[0]
    return -math.inf, math.inf
