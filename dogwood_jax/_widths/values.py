"""What is known of every value while a program is traced: ``Value`` and ``Trace``.

A value has symbolic dimensions. It also has the facts that decide whether growing a dimension
changes the outputs of the network. New units may hold any value. Where a dimension is summed over,
they must add nothing, so one factor of the product must be zero there. This is a *demand*. The
weights that are zero to satisfy it are *outgoing*. If no weights can satisfy it, growing the
dimension is a *hazard*.
"""

import functools
import itertools
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from dogwood_jax._program.primitives.axes import Axes
from dogwood_jax._program.primitives.table import axes_of
from dogwood_jax._widths.dims import Dim, SplitOff
from dogwood_jax._widths.widths import Kind

Origin = Literal["constant", "parameter", "data"]


@dataclass(frozen=True, slots=True)
class Entry:
    """Where weights can be made zero: the units of a dimension along an axis of a leaf.

    A fused projection, ``q | k`` or three times heads * head_dim, has the same units in several
    pieces of an axis. One piece may be zero while the others are not.

    Attributes:
        leaf: index of the leaf.
        axis: index of its axis.
        dim: the dimension.
        size: its size.
        start: where the piece of the axis begins that holds its units.
        stop: where the piece ends.
        stride: how far apart its units are.
        blended: whether an operation has mixed the units of an outer factor, as a sum over heads
            does for the entry of ``head_dim``.
    """

    leaf: int
    axis: int
    dim: Dim = field(compare=False)
    size: int
    start: int
    stop: int
    stride: int = 1
    blended: bool = False

    def factor(self, dim: Dim, stride: int) -> "Entry":
        """Returns the entry of a factor; ``stride`` counts units of this entry."""
        return replace(self, dim=dim, size=dim.size, stride=self.stride * stride)

    def piece(self, dim: Dim, start: int) -> "Entry":
        """Returns the entry of a piece that begins at a unit of this one."""
        start = self.start + start * self.stride
        stop = start + dim.size * self.stride
        return replace(self, dim=dim, size=dim.size, start=start, stop=stop)

    def contains(self, other: "Entry") -> bool:
        """Whether another entry is for a factor that lies inside each unit of this one."""
        piece, others = ((e.leaf, e.axis, e.start, e.stop) for e in (self, other))
        return piece == others and not other.blended and other.size * other.stride <= self.stride


@dataclass(frozen=True, slots=True)
class Silencer:
    """Weights which, if zero for the new units of a dimension, make a value zero there.

    Attributes:
        entries: all of these have to be zero.
        behind: whether the value is a function, such as relu, of the activations that they silence.
    """

    entries: frozenset[Entry]
    behind: bool = False

    def __and__(self, other: "Silencer") -> "Silencer":
        return Silencer(self.entries | other.entries, self.behind or other.behind)


# Alternatives: any one of them will do. An empty silencer means "zero anyway".
Silencers = tuple[Silencer, ...]
_MOST_SILENCERS = 4

# Ways of using a leaf. If a leaf is used in several ways, the highest number decides on its new
# entries.
_RANK: dict[str, int] = {"": 0, "add": 1, "multiply": 2, "index": 3, "positive": 4, "contract": 5}
KIND_OF_USE: dict[str, Kind] = {
    "": "zeros",
    "add": "zeros",
    "multiply": "ones",
    "index": "random",
    "positive": "ones",
    "contract": "random",
}


@dataclass(eq=False, slots=True)
class Value:
    """An array of the program.

    Thousands are made for a network, so a value is not frozen, because frozen ones are slow to
    make. Rules leave values as they are; ``but`` makes others.

    Attributes:
        dims: its dimensions.
        origin: ``"constant"``, ``"parameter"`` (nothing but parameters and constants) or
            ``"data"`` (depends on the inputs).
        silencers: for each axis, the weights that can make new entries along it zero.
        number: the number that all its entries are, if known.
        positional: axes along which it counts positions.
        noise: ``"noise"`` if it is made of random numbers, ``"mask"`` of random booleans.
        index: whether its integers come straight from an input, perhaps cast to integers, or count
            positions from zero. If they name units, as those of argmax do, it is the dimension of
            these units.
        wrapped: the same of its integers plus or less a number.
        leaves: the leaves a parameter is made of.
        quantized: whether it holds entries of a leaf of small integers, as they are.
        weighted: axes along which it was just multiplied by a parameter, or by activations that
            other weights silence.
        contracted: dimensions that a product with weights was last summed over.
        summed: dimensions that it was last summed over without weights.
    """

    dims: tuple[Dim, ...]
    origin: Origin = "data"
    silencers: tuple[Silencers, ...] = ()
    number: float | None = None
    positional: frozenset[int] = frozenset()
    noise: Literal["noise", "mask"] | None = None
    index: bool | Dim = False
    wrapped: bool | Dim = False
    leaves: frozenset[int] = frozenset()
    quantized: bool = False
    weighted: frozenset[int] = frozenset()
    contracted: tuple[Dim, ...] = ()
    summed: tuple[Dim, ...] = ()

    def but(self, **changes: Any) -> "Value":
        """Returns a value that differs in these attributes, as ``dataclasses.replace`` does."""
        attributes = [*_attributes(self)]
        for name, attribute in changes.items():
            attributes[_PLACES[name]] = attribute
        return Value(*attributes)

    @property
    def ndim(self) -> int:
        return len(self.dims)

    def silencers_of(self, axis: int) -> Silencers:
        return self.silencers[axis] if self.silencers else ()

    def entries(self, axis: int) -> frozenset[Entry]:
        """The entries of leaves that lie along an axis, as far as they are known."""
        return frozenset().union(*(s.entries for s in self.silencers_of(axis)))


_PLACES = {attribute.name: place for place, attribute in enumerate(fields(Value))}
_attributes = operator.attrgetter(*_PLACES)


def of_weights(silencers: Silencers) -> Silencers:
    """Returns the silencers whose weights act on a value by sums and products alone."""
    if not any(s.behind for s in silencers):
        return silencers
    return tuple(s for s in silencers if not s.behind)


def behind(silencers: Silencers) -> Silencers:
    """Silencers of a function of activations that is zero at zero."""
    return tuple(Silencer(s.entries, behind=True) for s in silencers)


def either(*options: Silencers) -> Silencers:
    """Silencers of a product: it is enough to silence one factor."""
    return _smallest(itertools.chain.from_iterable(options))


def every(options: Sequence[Silencers]) -> Silencers:
    """Silencers of a sum: all terms must be silenced."""
    return functools.reduce(
        lambda sum, term: _smallest(a & b for a, b in itertools.product(sum, term)), options
    )


def _smallest(silencers: Iterable[Silencer]) -> Silencers:
    """The alternatives that take the fewest weights."""
    distinct = dict.fromkeys(silencers)
    return tuple(sorted(distinct, key=lambda s: len(s.entries)))[:_MOST_SILENCERS]


@dataclass(slots=True)
class Demand:
    """A contraction over a dimension: one of the operands must be silent along it.

    Attributes:
        dim: the dimension.
        operands: the silencers of each operand.
        hazard: what to say if none can be silenced.
        beside: the other dimensions of the operands, and their silencers.
        only_readers: whether only weights that read the units may be silent, because units whose
            own weights are zero would never learn, as under a norm.
        decides_last: whether it makes weights outgoing only if no other contraction makes any so.
            A norm over weights is such a sum.
    """

    dim: Dim
    operands: tuple[Silencers, ...]
    hazard: str
    beside: tuple[tuple[Dim, Silencers], ...] = ()
    only_readers: bool = False
    decides_last: bool = False


@dataclass
class Use:
    """How a leaf is used: what its random entries look like, and when it was first read."""

    leaf: int
    how: str = ""
    order: int = 1 << 30
    fan_in: set[int] = field(default_factory=set)
    fan_out: set[int] = field(default_factory=set)

    def count_fans(self, value: Value, fan_in: Iterable[int], fan_out: Iterable[int]) -> None:
        """Notes which axes of the leaf make its fan-in and fan-out, as axes of a value it makes."""
        for axes, fan in ((fan_in, self.fan_in), (fan_out, self.fan_out)):
            for axis in axes:
                fan.update(e.axis for e in value.entries(axis) if e.leaf == self.leaf)


def axes_between(
    name: str, params: Mapping[str, Any], operands: Sequence[Value], result: Value
) -> Axes | None:
    """Returns which axes of operands and result are the same; None if that is not known."""
    shapes = [[dim.size for dim in value.dims] for value in (*operands, result)]
    return axes_of(name, params, shapes[:-1], shapes[-1])


@dataclass(eq=False, slots=True)
class Step:
    """An equation of the program, or what a loop does with a value, as it was read.

    Attributes:
        name: its primitive; for a loop ``"enter"``, ``"take"``, ``"collect"`` or ``"close"``; at
            the end ``"output"`` or, for a new value of a variable, ``"variable"``.
        operands: the values it takes.
        results: the values it makes.
        params: the parameters of its primitive.
        times: how often it runs, by the lengths of the loops around it.
    """

    name: str
    operands: Sequence[Value]
    results: Sequence[Value]
    params: Mapping[str, Any]
    times: int = 1

    @property
    def axes(self) -> Axes | None:
        """Which axes of operands and result are the same; None if that is not known."""
        return axes_between(self.name, self.params, self.operands, self.results[0])


class Sized(NamedTuple):
    """An equation as it was read, so that it can be written again in other sizes.

    Attributes:
        operands: the values it takes, whose dimensions say which sizes belong together.
        results: the values it makes.
        programs: the equations of each program inside it, in the order in which they were read.
        step: the index of its step.
    """

    operands: Sequence[Value]
    results: Sequence[Value]
    programs: Sequence[Sequence["Sized"]]
    step: int


class Trace:
    """What a program does with its parameters, collected while its equations are read."""

    def __init__(self) -> None:
        self.dims: list[Dim] = []  # of every value
        self.inputs: list[Dim] = []  # of the network's inputs
        self.arguments: list[Value] = []  # the inputs
        self.steps: list[Step] = []  # every equation, in the order of the program
        self.programs: list[Sequence[Sized]] = []  # the programs read so far, from outside
        self.times = 1  # how often the equation that is read runs
        self.demands: list[Demand] = []
        self.uses: dict[int, Use] = {}
        # Entries whose units are produced there: the rest of the leaf feeds them.
        self.produced: set[Entry] = set()
        # For each leaf, the axes whose units it produces first. A gradient in the program may use
        # the leaf again and produce units along other axes.
        self.first: dict[int, frozenset[int]] = {}
        # Entries along which a leaf is looked up or stacked, which make no units of their own.
        self.aside: set[Entry] = set()
        self.quantized: set[int] = set()  # leaves of small integers
        self.penalized: set[int] = set()  # leaves of which the network sums up all entries
        self.split_off: list[SplitOff] = []
        self._clock = itertools.count()

    def record(
        self,
        name: str,
        operands: Sequence[Value],
        results: Sequence[Value],
        params: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        """Notes what was read, for a second reading when all dimensions are known."""
        self.steps.append(Step(name, operands, results, params, self.times))

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
        entries = [value.entries(a) for a in (range(value.ndim) if axes is None else axes)]
        found: frozenset[Entry] = frozenset().union(*entries)
        self.produced |= found
        for leaf in {entry.leaf for entry in found} - self.first.keys():
            self.first[leaf] = frozenset(entry.axis for entry in found if entry.leaf == leaf)

    def join(self, value: Value, how: str) -> None:
        """Notes that a value becomes part of the data: if a parameter, all of it is used."""
        if value.origin == "parameter":
            self.use(value, how)
            self.produce(value)

    def set_aside(self, value: Value, axis: int) -> None:
        """Notes that a parameter is looked up or stacked along an axis."""
        self.aside |= value.entries(axis)

    def demand(
        self,
        dim: Dim,
        operands: Sequence[Silencers],
        hazard: str,
        *summed: tuple[Value, int],
        only_readers: bool = False,
        decides_last: bool = False,
    ) -> None:
        """Notes that new units along a dimension must add nothing to a sum.

        Args:
            dim: the dimension.
            operands: the silencers of each operand along it.
            hazard: what to say if none can be silenced.
            *summed: the operands, and the axis of each that is summed over.
            only_readers: see ``Demand``.
            decides_last: see ``Demand``.
        """
        beside = tuple(
            (other, value.silencers_of(a))
            for value, axis in summed
            for a, other in enumerate(value.dims)
            if a != axis and value.silencers_of(a)
        )
        if len(operands) < 2 or any(value.origin != "data" for value, _ in summed):
            operands = [of_weights(along) for along in operands]
        found = Demand(dim, tuple(operands), hazard, beside, only_readers, decides_last)
        self.demands.append(found)
