"""Elementwise functions: units stay units."""

import functools
from collections.abc import Callable, Mapping, Sequence
from math import isfinite
from typing import Any

import jax.numpy as jnp
import numpy as np

from dogwood_jax._program.dims import DEVICES, REPEATED, Dim, parts_of, unify
from dogwood_jax._program.primitives.axes import Axes, Shape, named
from dogwood_jax._program.primitives.reading import mixed, origin_of, together, unknown
from dogwood_jax._program.primitives.record import PRIMITIVES, Primitive, describes
from dogwood_jax._program.primitives.sides import Pick, Sides
from dogwood_jax._program.shards import mesh_axes
from dogwood_jax._program.values import Trace, Value, joined

Indices = tuple[bool | Dim, bool | Dim]


class OfEntries(Primitive):
    """An elementwise function.

    Args:
        function: the NumPy function; None to use JAX.
        **facts: attributes of ``Primitive``.
    """

    takes: int | None = 1
    is_of_entries = True

    def __init__(self, function: Callable[..., Any] | None = None, **facts: Any) -> None:
        if function is not None:
            self.evaluate = lambda *operands, **_: function(*operands)
        vars(self).update(facts)

    def axes(self, params: Mapping[str, Any], operands: Sequence[Shape], result: Shape) -> Axes:
        """An axis of size 1 that is broadcast shares no name with the longer axis."""
        names = [f"{axis}" for axis in range(len(result))]
        return Axes(
            tuple(
                named([name if n == m else f"1 {name}" for name, n, m in zip(names, shape, result)])
                for shape in operands
            ),
            named(names),
        )

    def read(self, trace: Trace, eqn: Any, *values: Value) -> list[Value]:
        shape = eqn.outvars[0].aval.shape
        known: dict[str, Any] = {"number": self.number(eqn, [v.number for v in values])}
        known |= {"index": False, "wrapped": False}
        if any(value.index or value.wrapped for value in values):
            known["index"], known["wrapped"] = self.indices(eqn, values)
        if self.takes == 1:
            x = values[0]
            if x.ndim != len(shape):  # a bitcast to a smaller dtype adds an axis
                return unknown(trace, eqn, *values)
            if self.pole or eqn.params.get("y", 1) < 0:
                trace.use(x, "positive")
            if not self.linear:
                along = x.along if x.origin == "parameter" else ()
                known |= {"along": along, "one_hot": (), "weighted": ()}
            return [x.but(**known)]
        dims, origin = _aligned(shape, values), origin_of(values)
        if self.powers:
            for value, power in zip(values, self.powers, strict=True):
                if power < 0:
                    trace.use(value, "positive")
        if origin == "data" and not self.compares:
            for value in values:
                trace.join(value, "multiply" if self.powers else "add")
        if origin == "parameter":
            known["along"] = together(values, dims)
        if not self.compares and any(value.contracted or value.summed for value in values):
            known |= _sums(values, is_sum=not self.powers)
        return [mixed(values, dims, **known)] * len(eqn.outvars)

    def number(self, eqn: Any, numbers: Sequence[float | None]) -> float | None:
        """Returns the number that all entries of the result are equal to, or None if unknown."""
        known = [number for number in numbers if number is not None]
        return folded(eqn, known) if len(known) == len(numbers) else None

    def indices(self, eqn: Any, values: Sequence[Value]) -> Indices:
        """Returns ``Value.index`` and ``Value.wrapped`` of a result computed from indices."""
        return False, False


def _aligned(shape: Sequence[int], values: Sequence[Value]) -> tuple[Dim, ...]:
    """Unifies operands axis by axis, and returns the result's dimensions.

    An axis of size 1 that is broadcast to a longer one is not unified with the result's axis.
    """
    dims, arrays = [], [value.dims for value in values if value.dims]
    for axis, size in enumerate(shape):
        found: Dim | None = None
        for its in arrays:
            dim = its[axis]
            if dim.size != size:
                dim.fix(REPEATED)
            elif found is None:
                found = dim
            else:
                unify(found, dim)
        dims.append(Dim(size) if found is None else found)
    return arrays[0] if arrays and dims == [*arrays[0]] else tuple(dims)


def _sums(values: Sequence[Value], *, is_sum: bool) -> dict[str, Any]:
    """Returns the sums on whose sizes a constant that scales the result may depend, see ``Value``.

    If a sum is combined with other data, the constant scales both and does not depend on the sum
    alone, unless both are scores: 1 / sqrt(head_dim) also scales (q + u) @ k + (q + v) @ positions.
    """
    data = [v for v in values if v.origin == "data"]
    alone = [v for v in values if len(data) < 2 and (v.origin != "constant" or not data)]
    contracted = [value.contracted for value in alone]
    for value in data if is_sum and len(data) > 1 else ():
        its = (d for d in value.contracted if any(part.bilinear for part in parts_of(d)))
        contracted.append(tuple(its))
    return {"contracted": joined(contracted), "summed": joined(v.summed for v in alone)}


def folded(eqn: Any, numbers: Sequence[float]) -> float | None:
    """Returns the result of an elementwise function of numbers.

    Returns None if the result is unknown or not a real number.
    """
    record = PRIMITIVES[eqn.primitive.name]
    if record.evaluate is None or record.takes_equation:
        return None
    dtypes = [atom.aval.dtype for atom in eqn.invars]
    with np.errstate(all="ignore"):
        try:
            operands = (
                np.asarray(number, float if jnp.issubdtype(dtype, jnp.floating) else dtype)
                for number, dtype in zip(numbers, dtypes, strict=True)
            )
            found = record.evaluate(*operands, **eqn.params)
        except (ArithmeticError, TypeError, ValueError):  # from small integers, for example
            return None
    return None if np.iscomplexobj(found) else float(found)


# Functions of one operand -------------------------------------------------------------------------


def _special(name: str) -> Callable[..., Any]:
    """Returns a SciPy function; SciPy, which JAX requires, is imported at the first call."""

    def run(*operands: Any, **_: Any) -> Any:
        import scipy.special  # type: ignore[import-untyped]

        return getattr(scipy.special, name)(*operands)

    return run


_OF_ONE: dict[str, Callable[..., Any] | None] = {
    "abs": np.abs,
    "acos": np.arccos,
    "acosh": np.arccosh,
    "asin": np.arcsin,
    "asinh": np.arcsinh,
    "atan": np.arctan,
    "atanh": np.arctanh,
    "bessel_i0e": _special("i0e"),
    "bessel_i1e": _special("i1e"),
    "cbrt": np.cbrt,
    "ceil": np.ceil,
    "clz": None,
    "cos": np.cos,
    "cosh": np.cosh,
    "erf": _special("erf"),
    "erf_inv": _special("erfinv"),
    "erfc": _special("erfc"),
    "exp": np.exp,
    "exp2": np.exp2,
    "expm1": np.expm1,
    "floor": np.floor,
    "is_finite": np.isfinite,
    "log1p": np.log1p,
    "logistic": lambda a: 1 / (1 + np.exp(-a)),
    "not": np.invert,
    "one_minus_square": None,
    "population_count": None,
    "sign": np.sign,
    "sin": np.sin,
    "sinh": np.sinh,
    "sqrt": np.sqrt,
    "square": np.square,
    "tan": np.tan,
    "tanh": np.tanh,
}
PRIMITIVES |= {name: OfEntries(function) for name, function in _OF_ONE.items()}
PRIMITIVES |= {
    "digamma": OfEntries(_special("digamma"), pole=True),
    "lgamma": OfEntries(_special("gammaln"), pole=True),
    "log": OfEntries(np.log, pole=True),
    "log2": OfEntries(np.log2, pole=True),
    "rsqrt": OfEntries(lambda a: 1 / np.sqrt(a), pole=True),
    # Linear functions.
    "conj": OfEntries(np.conj, linear=True),
    "imag": OfEntries(np.imag, linear=True),
    "neg": OfEntries(np.negative, linear=True),
    "real": OfEntries(np.real, linear=True),
    "reduce_precision": OfEntries(linear=True),
}


@describes("integer_pow")
class _IntegerPow(OfEntries):
    def evaluate(self, a: Any, *, y: int, **_: Any) -> Any:
        is_small = 0 < abs(y) <= 4  # products are faster than powers
        power = functools.reduce(np.multiply, [a] * abs(y)) if is_small else a ** abs(y)
        return power if y >= 0 else 1 / power


@describes("round")
class _Round(OfEntries):
    def evaluate(self, a: Any, *, rounding_method: Any, **_: Any) -> Any:
        if int(rounding_method) == 1:
            return np.round(a)
        return np.sign(a) * np.floor(np.abs(a) + 0.5)


@describes("bitcast_convert_type")
class _Bitcast(OfEntries):
    takes_equation = True

    def evaluate(self, eqn: Any, a: Any) -> Any:
        """Reads the bits of numbers in the program's own dtype, as JAX's generators do."""
        dtype, new = eqn.invars[0].aval.dtype, eqn.params["new_dtype"]
        found = np.asarray(a, dtype).view(new)
        return found.astype(np.float64) if jnp.issubdtype(new, jnp.floating) else found


@describes("convert_element_type")
class _Cast(OfEntries):
    linear = takes_equation = True

    def evaluate(self, eqn: Any, a: Any) -> Any:
        dtype = eqn.params["new_dtype"]
        if jnp.issubdtype(dtype, jnp.floating):
            return np.real(a).astype(np.float64)
        if jnp.issubdtype(dtype, jnp.complexfloating):
            return a.astype(np.complex128)
        if dtype == np.bool_:
            return a != 0
        kind = np.int8 if dtype in (jnp.int4, jnp.uint4) else dtype
        if a.dtype.kind in "fc":
            info = jnp.iinfo(dtype)  # type: ignore[no-untyped-call]
            a = np.nan_to_num(np.real(a), nan=0.0, posinf=float(info.max), neginf=float(info.min))
            return np.clip(a, float(info.min), np.nextafter(float(info.max), 0)).astype(kind)
        return a.astype(kind)

    def number(self, eqn: Any, numbers: Sequence[float | None]) -> float | None:
        """A cast to integers drops the fraction."""
        (number,), dtype = numbers, eqn.params["new_dtype"]
        if number is None or jnp.issubdtype(dtype, jnp.inexact):
            return number
        if jnp.issubdtype(dtype, bool):
            return float(number != 0)
        return float(int(number)) if isfinite(number) else None

    def indices(self, eqn: Any, values: Sequence[Value]) -> Indices:
        is_float = jnp.issubdtype(eqn.params["new_dtype"], jnp.inexact)
        is_same = not is_float or values[0].origin == "data"
        return (values[0].index, values[0].wrapped) if is_same else (False, False)


class _Same(OfEntries):
    """Returns its operands unchanged."""

    takes = None
    same = linear = True

    def read(self, trace: Trace, eqn: Any, *values: Value) -> list[Value]:
        return [*values]

    def evaluate(self, *operands: Any, **_: Any) -> list[Any]:
        return [*operands]


PRIMITIVES |= dict.fromkeys(
    (
        *("copy", "device_put", "layout_constraint", "mesh_cast", "nonbatchable"),
        *("optimization_barrier", "pvary", "reshard", "sharding_constraint", "stop_gradient"),
    ),
    _Same(),
)


@describes("name")
class _Name(_Same):
    def read(self, trace: Trace, eqn: Any, *values: Value) -> list[Value]:
        """Ignores names, except those of values whose first axes are axes of a mesh."""
        (x,) = values
        for dim in x.dims[: mesh_axes(eqn.params["name"])]:
            dim.fix(DEVICES)
        return [x]


# Sums and products --------------------------------------------------------------------------------


class _Clipped(OfEntries):
    """A function of an index and a number; the result is an index if the number keeps zero.

    Args:
        function: the NumPy function.
        keeps_zero: whether the result for zero and a number is zero, as in ``max(0, -1)``.
        **facts: attributes of ``Primitive``.
    """

    takes = 2
    wraps = False

    def __init__(
        self, function: Any, keeps_zero: Callable[[float], bool] = lambda _: False, **facts: Any
    ) -> None:
        super().__init__(function, **facts)
        self._keeps_zero = keeps_zero

    def keeps_zero(self, other: Value) -> bool:
        """Whether the result for zero and this value is zero; False if its number is unknown."""
        return other.number is not None and self._keeps_zero(other.number)

    def indices(self, eqn: Any, values: Sequence[Value]) -> Indices:
        pairs = (values, values[::-1])
        indexed = next((a.index for a, b in pairs if b.number is not None), False)
        # max(index, 0) keeps indices within their range
        is_clipped = sum(not self.keeps_zero(value) for value in values) == 1
        # jnp adds the length of an axis to negative indices. The results are still indices.
        return indexed if is_clipped else False, indexed if self.wraps else False


class _Extreme(Sides):
    """The sides of ``max`` and ``min``: either operand.

    Args:
        wins: compares two operands; true where the first one is the result.
    """

    def __init__(self, wins: Any) -> None:
        self._wins = wins

    def taken(self, *operands: Any) -> set[int]:
        a, b = operands
        if any(np.ndim(one) == 0 and np.isinf(one) for one in (a, b)):  # the start of a maximum
            return {0, 1}
        sides = (self._wins(a, b), self._wins(b, a))
        return {side for side, holds in enumerate(sides) if np.any(holds)}

    def forced(self, operands: list[Any], side: int) -> Sequence[Any]:
        shape = np.broadcast_shapes(*map(np.shape, operands))
        return 2 * [np.broadcast_to(operands[side], shape)]


_MAX = _Clipped(np.maximum, lambda number: number <= 0, sides=_Extreme(np.greater))
_MIN = _Clipped(np.minimum, lambda number: number >= 0, sides=_Extreme(np.less))


class _ZeroProduct(Sides):
    """The sides of ``mul``: operands that are not all zero; a side is forced by ones."""

    def taken(self, *operands: Any) -> set[int]:
        sides = (np.abs(one) > 0 for one in operands)  # false for NaN: an id out of range
        return {side for side, holds in enumerate(sides) if np.any(holds)}

    def forced(self, operands: list[Any], side: int) -> Sequence[Any]:
        operands[side] = np.ones_like(operands[side])
        return operands


class _Product(OfEntries):
    """The product of two arrays."""

    takes = 2
    powers = 1, 1

    def read(self, trace: Trace, eqn: Any, *values: Value) -> list[Value]:
        (out,) = super().read(trace, eqn, *values)
        x, y = values
        arrays = [v for v in values if v.ndim and v.origin != "constant"]
        weighted = tuple(
            axis
            for axis, dim in enumerate(out.dims)
            if len(arrays) == 2
            and x is not y
            and x.dims[axis].size == y.dims[axis].size == dim.size
        )
        # In a product of weights, it is enough if one factor reads units.
        weights = sorted(
            (v for v in (x, y) if v.origin == "parameter"), key=lambda v: -sum(map(bool, v.along))
        )
        each = [together([weight], out.dims) for weight in weights]
        along = tuple(next(filter(None, its), ()) for its in zip(*each, strict=True))
        return [out.but(along=along, weighted=weighted)]


def _divide(a: Any, b: Any) -> Any:
    if a.dtype.kind in "iu":
        whole = np.where(b == 0, 1, b)
        return np.where(b == 0, -1, np.trunc(a / whole)).astype(a.dtype)
    return a / b


def _remainder(a: Any, b: Any) -> Any:
    """Returns remainders as XLA does: an integer modulo zero is the integer itself."""
    if a.dtype.kind in "iu":
        return np.where(b == 0, a, np.fmod(a, np.where(b == 0, 1, b)))
    return np.fmod(a, b)


PRIMITIVES |= {
    "add": _Clipped(np.add, terms=slice(None), wraps=True),
    "add_any": OfEntries(np.add, takes=2, terms=slice(None)),
    "complex": OfEntries(lambda a, b: a + 1j * b, takes=2, terms=slice(None)),
    "max": _MAX,
    "min": _MIN,
    "mul": _Product(np.multiply, sides=_ZeroProduct()),
    "sub": _Clipped(np.subtract, terms=slice(None)),
    "div": OfEntries(_divide, takes=2, powers=(1, -1), linear_in_first=True),
    "pow": OfEntries(np.power, takes=2),
    "rem": OfEntries(_remainder, takes=2),
    "atan2": OfEntries(np.arctan2, takes=2),
    "igamma": OfEntries(_special("gammainc"), takes=2),
    "igamma_grad_a": OfEntries(takes=2),
    "igammac": OfEntries(_special("gammaincc"), takes=2),
    "nextafter": OfEntries(np.nextafter, takes=2),
    "polygamma": OfEntries(takes=2),
    "polynomial": OfEntries(takes=None),
    "regularized_incomplete_beta": OfEntries(_special("betainc"), takes=3),
    "zeta": OfEntries(_special("zeta"), takes=2),
}


# Choices and comparisons --------------------------------------------------------------------------


class _Bounds(Sides):
    """The sides of ``clamp``: below, within and above the bounds."""

    def count(self, eqn: Any) -> int:
        return 3

    def taken(self, *operands: Any) -> set[int]:
        low, a, high = operands
        sides = (a < low, (low < a) & (a < high), a > high)
        return {side for side, holds in enumerate(sides) if np.any(holds)}

    def forced(self, operands: list[Any], side: int) -> Sequence[Any]:
        low, a, high = operands
        if side == 1:
            return [np.full_like(low, -np.inf), a, np.full_like(high, np.inf)]
        return [low, np.broadcast_to(operands[side], np.shape(a)), high]


@describes("clamp")
class _Clamp(OfEntries):
    takes = 3
    sides = _Bounds()

    def evaluate(self, low: Any, a: Any, high: Any, **_: Any) -> Any:
        return np.minimum(np.maximum(a, low), high)

    def indices(self, eqn: Any, values: Sequence[Value]) -> Indices:
        low, x, high = values
        is_clipped = _MAX.keeps_zero(low) and (high.number is None or _MIN.keeps_zero(high))
        return x.index if is_clipped else False, False


@describes("select_n")
class _Select(OfEntries):
    takes = None
    terms = slice(1, None)
    sides = Pick()

    def evaluate(self, which: Any, *cases: Any) -> Any:
        if len(cases) == 2 and which.dtype == np.bool_:
            return np.where(which, cases[1], cases[0])
        return np.choose(np.broadcast_to(which, cases[0].shape).astype(int), cases)

    def number(self, eqn: Any, numbers: Sequence[float | None]) -> float | None:
        return None if numbers[0] is None else numbers[1 + int(numbers[0])]

    def indices(self, eqn: Any, values: Sequence[Value]) -> Indices:
        cases = values[1:]
        known = [c.index or c.wrapped or c.number == 0 for c in cases]
        names = {index.root if isinstance(index, Dim) else None for index in known}
        is_one = all(known) and len(names) == 1
        return next((c.index for c in cases if c.index), False) if is_one else False, False


PRIMITIVES["select_if_vmap"] = OfEntries(takes=None)


class _Holds(Sides):
    """The sides of a comparison, such as ``lt``: false and true.

    Args:
        holds: the comparison of two operands.
    """

    def __init__(self, holds: Any) -> None:
        self._holds = holds

    def taken(self, *operands: Any) -> set[int]:
        return {int(side) for side in np.unique(self._holds(*operands))}

    def forced(self, operands: list[Any], side: int) -> Sequence[Any]:
        shape = np.broadcast_shapes(*map(np.shape, operands))
        zeros, ones = (np.full(shape, number, operands[0].dtype) for number in (0, 1))
        return [zeros, ones] if bool(self._holds(0, 1)) == bool(side) else [ones, zeros]

    def is_open(self, moving: Sequence[bool], side: int) -> bool:
        return any(moving)


class _Compares(OfEntries):
    """Compares operands."""

    takes = 2
    compares = True

    def read(self, trace: Trace, eqn: Any, *values: Value) -> list[Value]:
        """If ``eq`` compares indices with positions, the results are one-hot vectors."""
        (out,) = super().read(trace, eqn, *values)
        x, y = values
        table, other = (x, y) if x.origin == "constant" else (y, x)
        counts = tuple(a for a, d in enumerate(table.dims) if d.size > 1)
        is_free = all(not other.ndim or other.dims[a].size == 1 for a in counts)
        if eqn.primitive.name != "eq" or table.index is not True or not other.index or not is_free:
            return [out]
        for axis in counts if other.index is True else ():  # old inputs do not reach new positions
            out.dims[axis].root.interface = True
        return [out.but(one_hot=counts)]


PRIMITIVES |= {
    "eq": _Compares(np.equal),
    "eq_to": _Compares(),
    "ge": _Compares(np.greater_equal, sides=_Holds(np.greater_equal)),
    "gt": _Compares(np.greater, sides=_Holds(np.greater)),
    "le": _Compares(np.less_equal, sides=_Holds(np.less_equal)),
    "le_to": _Compares(),
    "lt": _Compares(np.less, sides=_Holds(np.less)),
    "lt_to": _Compares(),
    "ne": _Compares(np.not_equal),
}


# Bits ---------------------------------------------------------------------------------------------


def _shift_right_logical(a: Any, b: Any) -> Any:
    unsigned = np.dtype(f"u{a.dtype.itemsize}")
    return (a.view(unsigned) >> b.astype(unsigned)).view(a.dtype)


PRIMITIVES |= {
    "and": OfEntries(np.bitwise_and, takes=2),
    "or": OfEntries(np.bitwise_or, takes=2),
    "xor": OfEntries(np.bitwise_xor, takes=2),
    "shift_left": OfEntries(np.left_shift, takes=2),
    "shift_right_arithmetic": OfEntries(np.right_shift, takes=2),
    "shift_right_logical": OfEntries(_shift_right_logical, takes=2),
    "threefry2x32": OfEntries(takes=None, draws=True),
}
