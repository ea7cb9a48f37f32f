"""What is known of every value while a program is traced: ``Value`` and ``Trace``.

Besides its symbolic dimensions, a value carries what decides whether growing a dimension changes
the outputs of the network. New units may hold any value, unless it is known to be zero: the
program's *demands* on weights follow from that. Where a dimension is contracted, the new units must
add nothing, so one of the factors must be zero there; if some weights can see to that, they are
*outgoing*. Where a dimension is reduced and no weights can, growing it is a *hazard*.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod, sqrt
from types import MappingProxyType
from typing import Any, Literal

import numpy as np

from dogwood_jax._dims import Dim
from dogwood_jax._widths import Kind

Origin = Literal["constant", "parameter", "data"]


@dataclass(frozen=True, eq=False)
class Entry:
    """A dimension along an axis of a leaf: where weights can be made zero."""

    leaf: int
    axis: int
    dim: Dim


@dataclass(frozen=True)
class Silencer:
    """Weights which, if zero for the new units of a dimension, make a value zero there.

    Attributes:
        entries: all of these have to be zero.
        linear: whether the value is linear in them, so that scaling works as well as zeroing.
    """

    entries: frozenset[Entry]
    linear: bool = True

    def __and__(self, other: "Silencer") -> "Silencer":
        return Silencer(self.entries | other.entries, self.linear and other.linear)


# Alternatives: any one of them will do. An empty silencer means "zero anyway".
Silencers = tuple[Silencer, ...]
_MOST_SILENCERS = 4

# How sure a way of using a leaf is about what its new entries should be.
_RANK: dict[str, int] = {"": 0, "add": 1, "multiply": 2, "index": 3, "positive": 4, "contract": 5}
KIND_OF_USE: dict[str, Kind] = {
    "": "zeros",
    "add": "zeros",
    "multiply": "ones",
    "index": "random",
    "positive": "ones",
    "contract": "random",
}


@dataclass(frozen=True, eq=False)
class Value:
    """An array of the program.

    Attributes:
        dims: its dimensions.
        origin: ``"constant"``, ``"parameter"`` (nothing but parameters and constants) or
            ``"data"`` (depends on the inputs).
        silencers: for each axis, what makes new entries along it zero.
        number: the one number it consists of, if known.
        positional: axes along which it counts positions.
        singular: axes along which silencers make it infinite, for it divides by them.
        noise: ``"noise"`` if it is made of random numbers, ``"mask"`` of random booleans.
        index: whether its integers come straight from an input or count positions from zero.
        wrapped: whether they are such integers plus a number.
        leaves: the leaves a parameter is made of.
        weighted: axes along which it was just multiplied by a parameter.
        contracted: dimensions that a product with weights was last summed over.
        summed: dimensions that it was last summed over without weights.
    """

    dims: tuple[Dim, ...]
    origin: Origin = "data"
    silencers: tuple[Silencers, ...] = ()
    number: float | None = None
    positional: frozenset[int] = frozenset()
    singular: frozenset[int] = frozenset()
    noise: Literal["noise", "mask"] | None = None
    index: bool = False
    wrapped: bool = False
    leaves: frozenset[int] = frozenset()
    weighted: frozenset[int] = frozenset()
    contracted: tuple[Dim, ...] = ()
    summed: tuple[Dim, ...] = ()

    @property
    def ndim(self) -> int:
        return len(self.dims)

    def silencers_of(self, axis: int) -> Silencers:
        return self.silencers[axis] if self.silencers else ()

    def entries(self, axis: int) -> frozenset[Entry]:
        """The entries of leaves that lie along an axis, as far as they are known."""
        return frozenset().union(*(s.entries for s in self.silencers_of(axis)))


def either(*options: Silencers) -> Silencers:
    """Silencers of a product: any factor's will do."""
    return tuple(dict.fromkeys(itertools.chain.from_iterable(options)))[:_MOST_SILENCERS]


def every(options: Sequence[Silencers]) -> Silencers:
    """Silencers of a sum: every term's are needed."""
    combined = itertools.islice(itertools.product(*options), _MOST_SILENCERS)
    result = []
    for combination in combined:
        joined = combination[0]
        for silencer in combination[1:]:
            joined = joined & silencer
        result.append(joined)
    return tuple(dict.fromkeys(result))


@dataclass(frozen=True)
class Demand:
    """A contraction over a dimension: one of the operands must be silent along it.

    Attributes:
        dim: the dimension.
        operands: the silencers of each operand.
        hazard: what to say if none can be silenced.
    """

    dim: Dim
    operands: tuple[Silencers, ...]
    hazard: str


@dataclass
class Use:
    """How a leaf is used: what its random entries look like, and when it was first read."""

    leaf: int
    how: str = ""
    divides: bool = False  # whether the network divides by it, or by its norm
    order: int = 1 << 30
    fan_in: set[int] = field(default_factory=set)
    fan_out: set[int] = field(default_factory=set)

    def count_fans(self, value: Value, fan_in: Iterable[int], fan_out: Iterable[int]) -> None:
        """Notes which axes of the leaf make its fan-in and fan-out, as axes of a value it makes."""
        for axes, fan in ((fan_in, self.fan_in), (fan_out, self.fan_out)):
            for axis in axes:
                fan.update(e.axis for e in value.entries(axis) if e.leaf == self.leaf)


@dataclass(frozen=True, eq=False)
class Step:
    """An equation of the program, or what a loop does with a value, as it was read.

    Attributes:
        name: its primitive; for a loop ``"enter"``, ``"take"``, ``"collect"`` or ``"close"``; at
            the end ``"output"`` or, for a new value of a variable, ``"variable"``.
        operands: the values it takes.
        results: the values it makes.
        params: the parameters of its primitive.
    """

    name: str
    operands: Sequence[Value]
    results: Sequence[Value]
    params: Mapping[str, Any]


class Trace:
    """What a program does with its parameters, collected while its equations are read."""

    def __init__(self) -> None:
        self.dims: list[Dim] = []  # of every value, for what is known of wholes concerns parts
        self.inputs: list[Dim] = []  # of the network's inputs
        self.steps: list[Step] = []  # every equation, in the order of the program
        self.demands: list[Demand] = []
        self.uses: dict[int, Use] = {}
        # Entries whose units are produced there: the rest of the leaf feeds them.
        self.produced: set[tuple[int, int, Dim]] = set()
        # Entries along which a leaf is looked up or stacked, which make no units of their own.
        self.aside: set[tuple[int, int, Dim]] = set()
        self._scales: list[tuple[Value, float]] = []
        self._clock = itertools.count()

    def record(
        self,
        name: str,
        operands: Sequence[Value],
        results: Sequence[Value],
        params: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        """Notes what was read, for a second reading when all dimensions are known."""
        self.steps.append(Step(name, operands, results, params))

    def use(self, value: Value, how: str) -> list[Use]:
        """Notes that data meets a parameter."""
        if value.origin != "parameter":
            return []
        uses = []
        for leaf in value.leaves:
            use = self.uses.setdefault(leaf, Use(leaf))
            use.order = min(use.order, next(self._clock))
            if _RANK[how] > _RANK[use.how]:
                use.how = how
            uses.append(use)
        return uses

    def produce(self, value: Value, axes: Iterable[int] | None = None) -> None:
        """Notes that the units along axes of a parameter are produced by the rest of it."""
        for axis in range(value.ndim) if axes is None else axes:
            for entry in value.entries(axis):
                self.produced.add((entry.leaf, entry.axis, entry.dim))

    def join(self, value: Value, how: str) -> None:
        """Notes that a value becomes part of the data: if a parameter, all of it is used."""
        if value.origin == "parameter":
            self.use(value, how)
            self.produce(value)

    def set_aside(self, value: Value, axis: int) -> None:
        """Notes that a parameter is looked up or stacked along an axis."""
        for entry in value.entries(axis):
            self.aside.add((entry.leaf, entry.axis, entry.dim))

    def demand(self, dim: Dim, operands: Sequence[Silencers], hazard: str) -> None:
        """Notes that new units along a dimension must add nothing to a sum."""
        self.demands.append(Demand(dim, tuple(operands), hazard))

    def scaled(self, value: Value, number: float) -> None:
        """Notes that a constant scales a value."""
        if np.isfinite(number) and abs(number) not in (0, 1):
            self._scales.append((value, abs(number)))

    def check_scales(self) -> None:
        """Endangers dimensions scaled by constants that look computed from their size."""
        for value, number in self._scales:
            common = any(abs(number - c) < 1e-9 for c in COMMON_NUMBERS)
            means = False
            for group, surely in _scaled_groups(value):
                n = prod(d.size for d in group)
                fits = any(abs(number - f) <= 3e-6 * f for f in _functions_of_size(n, surely))
                means |= fits and surely
                suspicious = fits and (surely or not (common or means))
                if suspicious or any(d.root.bilinear for d in group):
                    for dim in group:
                        if not dim.root.hazards:
                            dim.endanger(
                                f"the constant {number:.6g} scales it and looks computed from "
                                "its size"
                            )


def _scaled_groups(value: Value) -> Iterator[tuple[list[Dim], bool]]:
    """Yields the groups of dimensions whose sizes a constant may be computed from.

    With each comes whether it was just summed over, so that dividing by its size makes a mean.
    """
    summed = [d for d in dict.fromkeys(d.root for d in value.summed) if d.size > 1]
    dims = [d.root for d in (*value.contracted, *value.dims) if d.size > 1]
    yield from (([d], True) for d in summed)
    if len(summed) > 1:
        yield summed, True
    dims = [d for d in dict.fromkeys(dims) if d not in summed]
    yield from (([d], False) for d in dims)
    if value.origin == "parameter":
        for n in range(2, len(dims) + 1):
            yield from ((list(group), False) for group in itertools.combinations(dims[:5], n))


def _functions_of_size(n: int, summed: bool) -> tuple[float, ...]:
    """What models compute from the size of a dimension to scale by."""
    root = sqrt(n)
    common = (n, 1 / n, root, 1 / root, sqrt(2 / n), sqrt(root), 1 / sqrt(root))
    return (*common, n - 1, 1 / (n - 1)) if summed else common


# Numbers that models use for other reasons: momenta, slopes, halves.
COMMON_NUMBERS = (
    2.0,
    3.0,
    6.0,
    0.5,
    1 / 3,
    1 / 6,
    0.1,
    0.2,
    0.3,
    0.01,
    0.02,
    0.05,
    0.001,
    10.0,
    100.0,
)
