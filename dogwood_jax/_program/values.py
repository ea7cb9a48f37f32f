"""Facts about every value while a program is traced: ``Value`` and ``Trace``.

A value has symbolic dimensions. If it depends on parameters only, it also records which axes of
which leaves lie along its own axes. With these, a contraction marks weights that read units, and
weights that produce units.
"""

import itertools
import operator
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, NamedTuple, TypeVar

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np

from dogwood_jax._base.trees import concrete
from dogwood_jax._program.dims import Dim, SplitOff
from dogwood_jax._program.primitives.axes import Axes
from dogwood_jax._program.primitives.record import axes_of, primitive
from dogwood_jax._program.subprograms import Key, key_of

Origin = Literal["constant", "parameter", "data"]


class LeafAxis(NamedTuple):
    """An axis of a leaf."""

    leaf: int
    axis: int


Along = tuple[LeafAxis, ...]
T = TypeVar("T")

# The default for new entries of an array: kernels and embeddings are drawn from an initializer,
# biases and running means start at zero, scales and variances at one.
Kind = Literal["random", "zeros", "ones"]


# Ways of using a leaf. If a leaf is used in several ways, the way with the highest number decides
# how its new entries are filled.
_RANK: dict[str, int] = {"": 0, "add": 1, "multiply": 2, "index": 3, "positive": 4, "contract": 5}
KIND_OF_USE: dict[str, Kind] = {
    "": "zeros",
    "add": "zeros",
    "multiply": "ones",
    "index": "random",
    "positive": "ones",
    "contract": "random",
}


_NONE = frozenset[int]()


@dataclass(eq=False, slots=True)
class Value:
    """An array of the program.

    A network has thousands of values. They are not frozen, because frozen dataclasses are slow to
    create. Rules never change a value; ``but`` returns a changed copy.

    Attributes:
        dims: its dimensions.
        origin: ``"constant"``, ``"parameter"`` (nothing but parameters and constants) or
            ``"data"`` (depends on the inputs).
        along: for each axis of a parameter, the axes of leaves that lie along it. For data: the
            axes of the parameter in which it was just looked up, or which it was multiplied by.
        number: the number that all its entries are equal to, if known.
        index: whether its integers come directly from an input, perhaps by a cast, or count
            positions from zero. If they are indices of units, such as those from argmax, the
            dimension of these units.
        wrapped: the same for integers to which a number was added.
        leaves: the leaves from which a parameter is computed.
        one_hot: axes along which it has a one at an index, and zeros elsewhere.
        weighted: axes along which it is the product of two arrays.
        contracted: dimensions over which the last sum of products ran.
        summed: dimensions over which the last plain sum ran.
    """

    dims: tuple[Dim, ...]
    origin: Origin = "data"
    along: tuple[Along, ...] = ()
    number: float | None = None
    index: bool | Dim = False
    wrapped: bool | Dim = False
    leaves: frozenset[int] = _NONE
    one_hot: tuple[int, ...] = ()
    weighted: tuple[int, ...] = ()
    contracted: tuple[Dim, ...] = ()
    summed: tuple[Dim, ...] = ()

    def but(self, **changes: Any) -> "Value":
        """Returns a copy with these attributes changed, like ``dataclasses.replace``."""
        attributes = [*_attributes(self)]
        for name, attribute in changes.items():
            attributes[_PLACES[name]] = attribute
        return Value(*attributes)

    @property
    def ndim(self) -> int:
        return len(self.dims)

    def along_axis(self, axis: int) -> Along:
        """Returns the axes of leaves that lie along an axis, as far as they are known."""
        return self.along[axis] if self.along else ()


_PLACES = {attribute.name: place for place, attribute in enumerate(fields(Value))}
_attributes = operator.attrgetter(*_PLACES)


@dataclass
class Use:
    """How a leaf is used: its fan-in and fan-out for random entries, and its first read."""

    leaf: int
    how: str = ""
    order: int = 1 << 30
    fan_in: set[int] = field(default_factory=set)
    fan_out: set[int] = field(default_factory=set)

    def count_fans(self, value: Value, fan_in: Iterable[int], fan_out: Iterable[int]) -> None:
        """Records the leaf's fan-in and fan-out axes, given as axes of a value made of it."""
        for axes, fan in ((fan_in, self.fan_in), (fan_out, self.fan_out)):
            for axis in axes:
                fan.update(at.axis for at in value.along_axis(axis) if at.leaf == self.leaf)


class Step(NamedTuple):
    """An equation with the values of its operands and results.

    Attributes:
        eqn: the equation.
        callers: the equations that run it.
        operands: the values of its operands; equal dimensions must have the same size.
        results: the values of its results.
        inside: the readings of the programs inside it, in the order of their reading.
        times: how often it runs: the product of the lengths of all scans around it.
    """

    eqn: Any
    callers: tuple[Any, ...]
    operands: Sequence[Value]
    results: Sequence[Value]
    inside: Sequence["Reading"]
    times: int

    @property
    def name(self) -> str:
        """The name of its primitive."""
        return str(self.eqn.primitive.name)

    @property
    def key(self) -> Key:
        """A key that distinguishes it from all other steps."""
        return key_of(self.eqn, self.callers)

    @property
    def axes(self) -> Axes | None:
        """The names of axes, equal for equal axes of operands and result; None if unknown."""
        shapes = [[dim.size for dim in value.dims] for value in (*self.operands, self.results[0])]
        return axes_of(self.name, self.eqn.params, shapes[:-1], shapes[-1])


class Reading:
    """The values of all variables of a program.

    Steps are created on demand, because it is slow to create and keep them all.

    Args:
        jaxpr: the program.
        times: how often it runs.

    Attributes:
        jaxpr: the program.
        known: the value of each variable.
        inside: for each equation, by its ``id``, the readings of the programs inside it.
    """

    def __init__(self, jaxpr: Any, times: int) -> None:
        self.jaxpr, self.times = jaxpr, times
        self.known: dict[Any, Value] = {}
        self.inside: dict[int, list[Reading]] = {}

    def steps(self, callers: tuple[Any, ...] = ()) -> Iterator[Step]:
        """Yields the steps of the program, without the steps of programs inside of it.

        Args:
            callers: the equations that run the program.
        """
        return (self._step(eqn, callers) for eqn in self.jaxpr.eqns)

    def _step(self, eqn: Any, callers: tuple[Any, ...]) -> Step:
        operands = [self._value(atom) for atom in eqn.invars]
        results = [self.known[var] for var in eqn.outvars]
        return Step(eqn, callers, operands, results, self.inside.get(id(eqn), ()), self.times)

    def _value(self, atom: Any) -> Value:
        return constant(atom.val, atom.aval) if isinstance(atom, jex.Literal) else self.known[atom]

    def every(self) -> Iterator["Reading"]:
        """Yields the program and all programs inside of it."""
        yield self
        for inner in itertools.chain.from_iterable(self.inside.values()):
            yield from inner.every()

    def flat(
        self, callers: tuple[Any, ...] = (), names: Collection[str] | None = None
    ) -> Iterator[Step]:
        """Yields all steps; steps inside of another step come before it.

        Args:
            callers: the equations that run the program.
            names: names of the primitives whose steps are yielded; None for all.
        """
        for eqn in self.jaxpr.eqns:
            for inner in self.inside.get(id(eqn), ()):
                yield from inner.flat((*callers, eqn), names)
            if names is None or eqn.primitive.name in names:
                yield self._step(eqn, callers)


def constant(array: Any, aval: Any) -> Value:
    """Returns the value of a constant, with its ``number`` if all entries are equal."""
    dims = tuple(Dim(n) for n in aval.shape)
    dtype = getattr(array, "dtype", np.dtype(float))
    if jnp.issubdtype(dtype, jax.dtypes.extended):  # a key; draws with it never change
        return Value(dims, "constant")
    array = concrete(array)
    if array is None:
        return Value(dims, "data")
    if not dims and array.dtype.kind != "c":  # most constants; the NumPy calls below are slow
        number = float(array)
        return Value((), "constant", number=number)
    if not np.iscomplexobj(array):  # NumPy does not take bfloat16 for a number
        array = array.astype(np.result_type(array, float) if array.dtype.kind in "biuf" else float)
    is_one = array.size and not np.iscomplexobj(array)
    is_one = is_one and (array.min() == array.max() or np.isnan(array).all())
    return Value(dims, "constant", number=float(array.flat[0]) if is_one else None)


# A dimension along an axis of a leaf.
Mark = tuple[LeafAxis, Dim]


class Trace:
    """Facts about how a program uses its parameters, collected while its equations are read."""

    def __init__(self) -> None:
        self.inputs: list[Dim] = []  # of all inputs of the network
        self.arguments: list[Value] = []  # the inputs
        self.programs: list[Reading] = []  # programs read at the current level
        self.times = 1  # how often the current equation runs
        self.uses: dict[int, Use] = {}
        # Where units are read: the leaf is contracted over them.
        self.read: list[Mark] = []
        # Where units are produced: the rest of the leaf feeds them.
        self.produced: list[Mark] = []
        # For each leaf, the axes whose units it produces first. A gradient in the program may use
        # the leaf again and produce units along other axes.
        self.first: dict[int, frozenset[int]] = {}
        # Where a leaf is looked up or stacked: no units are produced there.
        self.aside: list[Mark] = []
        self.quantized: set[int] = set()  # leaves of small integers
        self.split_off: list[SplitOff] = []
        self._clock = itertools.count()

    @property
    def program(self) -> Reading:
        """The values of the whole program, once it was read."""
        (reading,) = self.programs
        return reading

    @property
    def steps(self) -> Iterator[Step]:
        """All steps but plain calls, such as ``jit``: these only run the steps inside of them."""
        every = self.program.flat()
        return (step for step in every if not step.inside or primitive(step.name).runs)

    def use(self, value: Value, how: str) -> list[Use]:
        """Records a use of a parameter, and returns the uses of its leaves."""
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

    def contract(self, value: Value, axis: int) -> None:
        """Records that weights are contracted over an axis: they read the units along it."""
        self.read += marks(value, axis)

    def produce(self, value: Value, axes: Iterable[int] | None = None) -> None:
        """Records that the rest of a parameter produces the units along some axes, or along all."""
        axes = range(value.ndim) if axes is None else axes
        found = [mark for axis in axes for mark in marks(value, axis)]
        self.produced += found
        for leaf in {at.leaf for at, _ in found} - self.first.keys():
            self.first[leaf] = frozenset(at.axis for at, _ in found if at.leaf == leaf)

    def join(self, value: Value, how: str) -> None:
        """Records that a parameter becomes part of the data, with the units along all its axes."""
        if value.origin == "parameter":
            self.use(value, how)
            self.produce(value)

    def set_aside(self, value: Value, axis: int) -> None:
        """Records that a parameter is looked up or stacked along an axis."""
        self.aside += marks(value, axis)


def joined(several: Iterable[tuple[T, ...]]) -> tuple[T, ...]:
    """Returns the entries of several tuples in order, without duplicates."""
    found = [*filter(None, several)]
    return found[0] if len(found) == 1 else tuple(dict.fromkeys(itertools.chain(*found)))


def marks(value: Value, axis: int) -> list[Mark]:
    return [(at, value.dims[axis]) for at in value.along_axis(axis)]
