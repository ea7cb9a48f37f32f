"""What is known of a value of the larger network, compared with the same value before.

``Power`` and ``Equations`` are the algebra of powers of the ratio of sizes, ``State`` is what is
known of a value, and ``Reading`` is what the rules of ``rules`` share.
"""

import contextlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from math import isfinite, prod
from typing import Any, Literal, NamedTuple

import numpy as np

from dogwood_jax._program.primitives.table import PRIMITIVES, primitive
from dogwood_jax._widths.dims import Dim
from dogwood_jax._widths.layout import Role
from dogwood_jax._widths.scales import USUAL_NUMBERS, to_blame
from dogwood_jax._widths.values import Degree, Entry, Step, Value
from dogwood_jax.strategies import Strategy


class NoRecipe(Exception):
    """The program cannot be followed, or the equations have no solution."""


class Ambiguous(NoRecipe):
    """A constant may follow from the width's size, or be what it is for another reason.

    Args:
        number: the constant.
    """

    def __init__(self, number: float) -> None:
        super().__init__(number)
        self.number = number


# A linear expression: the coefficients of the unknown powers of leaves, by index, and of RATIO and
# COPIES. RATIO is new / old. Where units are tiled, it is the share of units that are copies, and
# COPIES is how many there are of each unit, so new / old is COPIES / RATIO.
Power = Mapping[Any, float]
RATIO, COPIES = "ratio", "copies"


def plus(a: Power, b: Power, factor: float = 1) -> Power:
    """Returns a + factor * b."""
    total = dict(a)
    for key, coefficient in b.items():
        total[key] = total.get(key, 0) + factor * coefficient
    return {key: c for key, c in total.items() if abs(c) > 1e-9}


class Part(NamedTuple):
    """The part of a fused array's axis that is rescaled alone, such as the keys of ``q | k | v``.

    Attributes:
        axis: the axis.
        places: whether each place along the axis belongs to it, as the bytes of booleans.
    """

    axis: int
    places: bytes

    def covers(self, entry: Entry) -> bool | None:
        """Whether a piece of the axis lies within the part; None if some of it does."""
        within = {*self.places[entry.start : entry.stop]}
        return bool(within.pop()) if len(within) == 1 else None


class Partly(NamedTuple):
    """In a power, the unknown power of a fused array of which only a part is rescaled.

    It stands in powers of values that hold the part and what lies beside it, whose power is zero.
    """

    leaf: int
    part: Part


class Equations:
    """Linear equations between powers, solved as they come.

    Every solution makes an exact recipe. Unknowns that stay free are zero, so that few arrays are
    rescaled, unless a wish decides.

    Args:
        preference: a rank for each unknown. An equation is solved for its unknown of lowest rank.
    """

    def __init__(self, preference: Callable[[int], Any]) -> None:
        self._preference = preference
        self._solved: dict[int, Power] = {}

    def copy(self) -> "Equations":
        """Returns the same equations, to go on with in another way."""
        found = Equations(self._preference)
        found._solved = dict(self._solved)
        return found

    def reduce(self, power: Power) -> Power:
        """Returns a power in terms of free unknowns, the power itself if all of them are free."""
        if not power:
            return power
        while (key := next((k for k in power if k in self._solved), None)) is not None:
            others = {k: c for k, c in power.items() if k != key}
            power = plus(others, self._solved[key], power[key])
        kept = [k for k in power if isinstance(k, Partly) and self._solved.get(k.leaf) == {}]
        return {k: c for k, c in power.items() if k not in kept} if kept else power

    def equate(self, a: Power, b: Power) -> None:
        difference = self.reduce(plus(a, b, -1))
        if not difference:
            return
        if partly := [key for key in difference if isinstance(key, Partly)]:
            beside = {key: c for key, c in difference.items() if key not in partly}
            self.equate(beside, {})
            if len({key.part.places for key in partly}) == 1:
                self.equate({key.leaf: difference[key] for key in partly}, {})
            else:  # which part meets which is not known
                for key in partly:
                    self.equate({key.leaf: 1.0}, {})
            return
        unknown = [key for key in difference if isinstance(key, int)]
        if not unknown:
            raise NoRecipe
        pivot = min(unknown, key=self._preference)
        self._solved[pivot] = plus(
            {}, {k: c for k, c in difference.items() if k != pivot}, -1 / difference[pivot]
        )

    def wish(self, power: Power) -> None:
        """Makes a power zero if the equations leave that open."""
        with contextlib.suppress(NoRecipe):
            self.equate(power, {})

    def value(self, power: Power) -> tuple[float, float]:
        """Returns the powers of RATIO and of COPIES, with all free unknowns zero."""
        power = self.reduce(power)
        return power.get(RATIO, 0.0), power.get(COPIES, 0.0)


class Along(NamedTuple):
    """What is known of the new entries of a value along the width.

    Attributes:
        rest: what the new entries are that copy no old entry: ``"zero"``, the ``"mean"`` of the
            old ones, the ``"same"`` as all others, or ``"free"``. ``"none"`` if there are no such
            entries. ``"number"`` if all of them are one known number that is not zero, such as the
            exponential of zero. ``"open"`` if they may be zero or a mean: the other terms of a sum
            decide. Weights that read the units may be zero or free: they are zero where what they
            meet is not.
        shared: whether the entries of copies add up to the old entry instead of repeating it.
        leaf: the leaf whose rest is open.
        writers: of a mean, the leaves whose own new entries make it one; none if not only they do.
        number: the number that new entries are.
        order: how many factors are zero where new entries are. No factor has a gradient if there
            are two.
    """

    rest: Literal["zero", "number", "mean", "same", "free", "none", "open"]
    shared: bool = False
    leaf: int = -1
    writers: frozenset[int] = frozenset()
    number: float = 0.0
    order: int = 1


@dataclass(frozen=True, eq=False)
class Statistic:
    """A value made by summing another, or its square, over the width.

    Attributes:
        kind: ``"square"`` before the sum, ``"sum"`` and ``"squares"`` after it, ``"mean"`` and
            ``"moment"`` after the division, ``"squared mean"``.
        of: the array that is summed over, see ``State.array``.
        axes: for each axis of the value, the axis of ``of`` that it comes from, or None.
    """

    kind: Literal["square", "sum", "squares", "mean", "moment", "squared mean"]
    of: object
    axes: tuple[int | None, ...]


@dataclass(frozen=True, eq=False)
class State:
    """What a value of the larger network is.

    Attributes:
        power: old entries are multiplied by this power.
        along: the axes that the width is part of.
        statistic: how it was made from another value, if that matters.
        constants: constants in what it is made of that have no name yet.
        leaf: the leaf whose entries these are, at other places perhaps.
        array: the same object for all values with the same entries.
        names_units: whether its integers name units. Some units are copies now, so the integers may
            differ for the same unit.
    """

    power: Power = field(default_factory=dict)
    along: Mapping[int, Along] = field(default_factory=dict)
    statistic: Statistic | None = None
    constants: tuple[int, ...] = ()
    leaf: int | None = None
    array: object = field(default_factory=object)
    names_units: bool = False

    @property
    def is_plain(self) -> bool:
        """Whether it is what it was, and nothing need be known of it."""
        known = self.power or self.along or self.statistic or self.constants
        return not (known or self.names_units)

    @property
    def is_raw(self) -> bool:
        """Whether it is no multiple of the old value, because some of the new units are means."""
        return self.statistic is not None and self.statistic.kind in ("squares", "moment")


class Constant(NamedTuple):
    """A constant of the program that must be another in the larger network.

    Attributes:
        what: its name.
        number: the constant.
        power: the power of new / old that multiplies it.
        rounding: the relative rounding error that it may have.
    """

    what: str
    number: float
    power: Power
    rounding: float


@dataclass(frozen=True)
class Filling:
    """How new units of a width are filled in.

    Tiled units are new // old copies of every old unit, then a rest: 3 units become 8 as two of
    each and a rest of two. If the new size is a multiple of the old one, there is no rest. There is
    none either where some units have more copies than others: 3 units become 8 as three of two
    units and two of the third.
    """

    strategy: Strategy
    multiple: bool = False

    @property
    def is_tiled(self) -> bool:
        return self.strategy.incoming == "copy"

    @property
    def is_uneven(self) -> bool:
        """Whether some units have more copies than others, so that a sum over all means nothing."""
        return self.is_tiled and not self.strategy.repeats

    @property
    def has_rest(self) -> bool:
        """Whether there are new units that copy no old unit."""
        return not (self.multiple or self.is_uneven)

    @property
    def silences_outgoing(self) -> bool:
        """Whether what reads new units is zero, and they may be anything."""
        return self.strategy.outgoing == "zero" != self.strategy.incoming


@dataclass(frozen=True)
class Place:
    """A leaf in which a width occurs.

    Attributes:
        path: its path.
        how: how it is used, see ``Use``.
        roles: the width's role along each axis that it is part of, or None if it has several.
        parts: for each axis where the width has several roles, or other widths lie beside it, the
            roles and where their units lie.
    """

    path: str
    how: str
    roles: Mapping[int, Role | None]
    parts: Mapping[int, Mapping[Role, np.ndarray]] = field(default_factory=dict)

    @property
    def scales(self) -> bool:
        """Whether its entries scale units, so that they need not be zero or means."""
        return self.how in ("multiply", "positive")

    def is_silent(self, entry: Entry) -> bool:
        """Whether all new units of a piece of an axis are outgoing."""
        role = self.roles.get(entry.axis)
        parts = self.parts.get(entry.axis, {})
        within = {r for r, along in parts.items() if along[entry.start : entry.stop].any()}
        return bool(roles := {role} - {None} or within) and "incoming" not in roles

    def part(self, filling: Filling) -> Part | None:
        """The part that is rescaled alone, if the width lies along a single fused axis.

        It is the outgoing part if new outgoing weights are zero, and what writes the width, beside
        what writes other widths, if new units are zero.
        """
        if not self.parts or len(self.roles) > 1:
            return None
        ((axis, parts),) = self.parts.items()
        if filling.silences_outgoing and self.roles[axis] is None:
            own = [along for role, along in parts.items() if role != "incoming"]
        elif filling.strategy.incoming == "zero" and parts.keys() == {"incoming"}:
            own = [*parts.values()]
        else:
            return None
        return Part(axis, np.any(own, 0).tobytes())


@dataclass(frozen=True)
class LargerNetwork:
    """What is known of one larger network whose program is at hand.

    Attributes:
        powers: the powers of new / old by which its factors differ, by the index of the step that
            multiplies. All others are the same. A divisor counts as a factor of one over it.
        keeps_tables: whether old units have the same numbers in all tables along the width, and new
            units have finite ones.
        is_multiple: whether new is a multiple of old.
    """

    powers: Mapping[int, float]
    keeps_tables: bool
    is_multiple: bool


class Reading:
    """A program read for one width and one way to fill in new units.

    Args:
        name: name of the width.
        width: its dimension.
        filling: how new units are filled in.
        places: the leaves in which it occurs, by index.
        leaves: all leaves.
        paths: their paths.
        readers: returns the steps that take a value, each as often as it takes it.
        larger: what is known of one larger network; None for any larger network.

    Attributes:
        beside: the leaves without the width that may be rescaled, because they are added to what
            is summed over it, as biases are.
    """

    def __init__(
        self,
        name: str,
        width: Dim,
        filling: Filling,
        places: Mapping[int, Place],
        leaves: Sequence[Value],
        paths: Sequence[str],
        readers: Callable[[Value], Sequence[Step]],
        larger: "LargerNetwork | None" = None,
    ) -> None:
        self.name, self.width, self.filling, self.places = name, width, filling, places
        self._leaves, self._paths = leaves, paths
        self._readers, self.larger = readers, larger
        self.ratio: Power = {RATIO: 1.0} if filling.has_rest else {}
        self.size = plus({COPIES: 1.0}, self.ratio, -1) if filling.is_tiled else self.ratio
        self.equations = Equations(self._preference)
        self.constants: list[Constant] = []
        self.wishes: list[Power] = []  # powers that should be zero, if they may be
        self.blank: set[int] = set()  # leaves whose rest is as in a new network
        # Leaves whose rest must be zero, where they write the width or where they read it.
        self.zeros: set[tuple[int, Role]] = set()
        self.beside: set[int] = set()
        self.weighed: dict[int, int] = {}  # by leaf, the leaf that scales all that it writes
        self.zero_values: set[int] = set()  # values times zero, by identity
        self.orders: set[int] = set()  # of the zeros that are summed over, see ``Along``
        self.offsets: dict[int, float] = {}  # numbers that leaves are added to wherever they are
        self._bare: set[int] = set()  # leaves that are read without such a number
        self._rests: dict[int, Literal["zero", "mean"]] = {}  # of leaves that were open
        self._degrees: dict[Dim, int | None] = {}
        self.states: dict[int, State] = {}  # by identity of the value
        self.index = 0  # of the step that is read
        self._freed: set[int] = set()  # leaves of which a function has read free entries
        self.degrees: dict[int, Degree] = {}
        self.epsilons: dict[int, float] = {}
        self.parts: set[int] = set()  # fused leaves with a part that is rescaled alone
        for index, place in places.items():
            along = {axis: self._of_leaf(index, role) for axis, role in place.roles.items()}
            part = place.part(filling)
            power: Power = {index if part is None else Partly(index, part): 1.0}
            if part is not None:
                self.parts.add(index)
            self.states[id(leaves[index])] = State(power, along, leaf=index)
            if leaves[index].quantized:
                self._leave_integers(index, along.values())

    def _leave_integers(self, leaf: int, along: Iterable[Along]) -> None:
        """Makes sure that a leaf of small integers is not rescaled, and gets integers."""
        self.equations.equate({leaf: 1.0}, {})
        if any(known.shared or known.rest in ("mean", "open") for known in along):
            raise NoRecipe

    @property
    def is_dead(self) -> bool:
        """Whether new units, and what they are multiplied by, are zero, so that none learns."""
        return bool(self.orders) and 1 not in self.orders

    def _preference(self, leaf: int) -> tuple[int, int]:
        """Returns a rank for each leaf: leaves of low rank are rescaled first.

        If new outgoing weights are zero, outgoing leaves come first, such as keys. Otherwise scales
        of norms come first, then embeddings, then leaves that read the units.
        """
        if leaf in self.beside:
            return 4, leaf
        place = self.places[leaf]
        outgoing = not {*place.roles.values()} <= {"incoming"}
        if self.filling.silences_outgoing:
            return 0 if outgoing else 1, leaf
        if place.scales:
            return 0, leaf
        return 1 if place.how == "index" else 2 if outgoing else 3, leaf

    def _of_leaf(self, leaf: int, role: Role | None) -> Along:
        """How new entries of a leaf are filled in."""
        place = self.places[leaf]
        if self.filling.silences_outgoing:
            return Along("zero" if role in ("outgoing", "both") else "free")
        if self.filling.is_tiled and role != "incoming":
            if role is None:
                raise NoRecipe
            # What also writes units cannot share them out among copies.
            if role == "both" and self.filling.is_uneven:
                raise NoRecipe
            if role == "both":
                return self.filled("mean")
            return self.filled("open", shared=True)._replace(leaf=leaf)
        if role in ("outgoing", None) and self.filling.strategy.outgoing == "zero":
            return Along("zero")
        if role == "outgoing":
            return Along("open", leaf=leaf)
        if role is None:
            return Along("free")
        if place.scales:
            self.blank.add(leaf)
            return self.filled("free")
        if not self.filling.is_tiled:
            return Along("zero")
        if place.how == "index" or not self.filling.has_rest:
            return self.filled("mean")
        return Along("open", leaf=leaf)

    # Dimensions

    def degree(self, dim: Dim) -> int | None:
        """The power of the width's size that a dimension's size follows; None if it has none."""
        dim = dim.root
        if dim not in self._degrees:
            parts = [self.degree(part) for part in dim.parts]
            degree: int | None = int(dim is self.width)
            if dim.kind == "product":
                degree = None if None in parts else sum(p or 0 for p in parts)
            elif dim.kind == "concat":
                degree = parts[0] if len({*parts}) == 1 else None
            if degree and degree > 1:
                raise NoRecipe
            self._degrees[dim] = degree
        return self._degrees[dim]

    def axes(self, value: Value) -> list[int]:
        """The axes of a value that the width is part of."""
        return [axis for axis, dim in enumerate(value.dims) if self.degree(dim) != 0]

    # States of values

    def state(self, value: Value, raw: bool = False, moved: bool = False) -> State:
        """What is known of a value.

        Args:
            value: the value.
            raw: whether it may be no multiple of the old value.
            moved: whether it is only moved, so that it may still be added to a number.
        """
        known = self.states.get(id(value))
        if known is None:
            axes = self.axes(value)
            rest = "zero" if value.number == 0 else "same"
            if axes and value.number is None:
                if self.filling.is_tiled or not (self.larger and self.larger.keeps_tables):
                    raise NoRecipe  # the numbers of a copy are not those of its unit
                rest = "free"
            return State(along={a: self.filled(rest) for a in axes})
        if known.is_raw and not raw:
            raise NoRecipe
        if known.leaf is not None and not moved:
            self._bare.add(known.leaf)
            if known.leaf in self.offsets:  # no multiple of it suits both
                self.equations.equate({known.leaf: 1.0}, {})
            known = replace(known, leaf=None)
        if self.parts:
            along = {a: self._of_part(value, a, new) for a, new in known.along.items()}
            known = replace(known, along=along)
        power = self.equations.reduce(known.power)
        return known if power is known.power else replace(known, power=power)

    def repeat(self, step: Step) -> None:
        """Notes that a constant is the same along the width, as a mask that all heads share is."""
        if step.name == "broadcast_in_dim" and not self.axes(step.operands[0]):
            (result,) = step.results
            same = {axis: self.filled("same") for axis in self.axes(result)}
            self.states[id(result)] = State(along=same)

    def names_units(self, value: Value) -> bool:
        """Whether integers name units, see ``State.names_units``."""
        known = self.states.get(id(value))
        return known is not None and known.names_units

    def _of_part(self, value: Value, axis: int, along: Along) -> Along:
        """New entries of a value that may be a part of fused weights, such as keys."""
        if along.rest != "free":
            return along
        is_zero = any(
            silencer.entries
            and all(
                entry.leaf in self.places and self.places[entry.leaf].is_silent(entry)
                for entry in silencer.entries
            )
            for silencer in value.silencers_of(axis)
        )
        return along._replace(rest="zero") if is_zero else along

    def cut(self, value: Value, state: State) -> State:
        """What is known of a value that was cut out of another, perhaps of fused arrays."""
        power = state.power
        for key in [key for key in power if isinstance(key, Partly)]:
            along = [value.silencers_of(axis) for axis in range(value.ndim)]
            entries = {e for silencers in along for s in silencers for e in s.entries}
            own = [e for e in entries if (e.leaf, e.axis) == (key.leaf, key.part.axis)]
            covered = {key.part.covers(entry) for entry in own}
            if len(covered) == 1 and None not in covered:
                coefficient = power[key]
                power = plus(power, {key: 1}, -coefficient)
                if covered == {True}:
                    power = plus(power, {key.leaf: coefficient})
        return replace(state, power=power)

    def is_zero(self, value: Value) -> bool:
        """Whether all entries of a value are known to be zero."""
        return value.number == 0 or id(value) in self.zero_values

    def with_offset(self, value: Value, number: float | None) -> State | None:
        """What is known of a leaf plus a number; None if the leaf was read otherwise before.

        The sum may take any power, because the leaf can make up for the number. If the leaf is read
        otherwise later on, the power must be zero.
        """
        if not number or not isfinite(number) or value.number is not None:
            return None
        known = self.state(value, moved=True)
        if known.leaf is None or known.leaf in self._bare:
            return None
        if self.offsets.setdefault(known.leaf, number) != number:
            return None
        return State(known.power, known.along)

    def follow(self, step: Step, value: Value, other: Value) -> None:
        """Lets an array that is added to a value be rescaled along with it, as a bias can be.

        Args:
            step: the sum.
            value: what the array is added to.
            other: the other term. It is such an array if it is a leaf that nothing else reads.
        """
        if other.origin != "parameter" or len(other.leaves) != 1 or id(other) in self.states:
            return
        (leaf,) = other.leaves
        if leaf in self.places or self._leaves[leaf].quantized or not self.state(value).power:
            return
        if self._loops_until(step, leaf, _MOVED) is not None:
            self.beside.add(leaf)
            self.states[id(other)] = State({leaf: 1.0})

    def written(self, value: Value, state: State, other: State) -> State:
        """What is known of a factor: it may write units, if what it multiplies has none of them.

        An array that scales units need not be zero or a mean where they are. But in
        ``x[..., None] * w`` it writes units as a kernel does.
        """
        leaf = next(iter(value.leaves), -1) if value.origin == "parameter" else -1
        place = self.places.get(leaf)
        if (
            place is None
            or not place.scales
            or self.state(value, moved=True).leaf is None  # such as its softmax
            or state.along.keys() & other.along
        ):
            return state
        if self.filling.silences_outgoing or {*place.roles.values()} != {"incoming"}:
            return state
        rest = self.filled("open")._replace(leaf=leaf)
        return replace(state, along=dict.fromkeys(state.along, rest))

    def unchanged(self, value: Value) -> None:
        """Makes sure that old entries of a value are what they were."""
        state = self.state(value)
        self.equations.equate(state.power, {})
        if any(along.shared for along in state.along.values()):
            raise NoRecipe

    def equal_powers(self, values: Sequence[Value], constants: bool = False) -> State:
        """The common power of terms, and the epsilons among them, which adapt to any power."""
        values = [value for value in values if not self.is_zero(value)]
        terms = [v for v in values if v.number is None or isfinite(v.number)]
        states = [self.state(v) for v in terms if v.number is None]
        if not states:
            return State()
        power = states[0].power
        for state in states[1:]:
            self.equations.equate(power, state.power)
        power = self.equations.reduce(power)
        found: list[int] = []
        for value in terms:
            if value.number is None:
                continue
            is_epsilon = constants and 0 < value.number <= LARGEST_EPSILON
            if is_epsilon and power and not any(state.along for state in states):
                if any(isinstance(key, Partly) for key in power):
                    raise NoRecipe
                found.append(len(self.constants))
                self.epsilons[self.index] = value.number
                what = f"epsilon of a norm over {self.name}"
                self.constants.append(Constant(what, value.number, power, value.rounding))
            else:
                self.equations.equate(power, {})
        return State(self.equations.reduce(power), constants=tuple(found))

    def scales_of(self, value: Value) -> list[Place]:
        """The leaves along the width that a parameter is made of."""
        leaves = sorted(value.leaves) if value.origin == "parameter" else ()
        return [self.places[leaf] for leaf in leaves if leaf in self.places]

    def named(self, *operands: tuple[Value, State]) -> tuple[int, ...]:
        """Names the constants in a norm after the array that scales it; returns the others."""
        constants = [index for _, state in operands for index in state.constants]
        if not constants:
            return ()
        parameters = [v for v, _ in operands if v.origin == "parameter"]
        leaves = [leaf for value in parameters for leaf in sorted(value.leaves)]
        scales = [self._paths[leaf] for leaf in leaves]
        if not scales:
            return tuple(constants)
        for index in constants:
            what = f"epsilon of the norm that scales by {scales[0]}"
            self.constants[index] = self.constants[index]._replace(what=what)
        return ()

    # New entries

    def filled(self, rest: Any, shared: bool = False) -> Along:
        return Along(rest if self.filling.has_rest else "none", shared)

    def settle(self, along: Along, rest: Literal["zero", "mean"] = "mean") -> Along:
        """Decides what the rest of a leaf is, if it is open."""
        if along.rest != "open":
            return along
        if self.reads_units(along):  # free, unless it must be zero here or elsewhere
            if rest == "zero":
                if along.leaf in self._freed:
                    raise NoRecipe
                self.zeros.add((along.leaf, "outgoing"))
            is_zero = self._is_silent(along)
            if not (is_zero or along.shared):
                self._freed.add(along.leaf)
            return Along("zero" if is_zero else "free", along.shared, order=along.order)
        if self.places[along.leaf].scales:
            self.blank.discard(along.leaf)
            return Along("mean" if self.filling.is_tiled else "zero")
        found = self._rests.setdefault(along.leaf, rest)
        if found == "zero":
            if self.places[along.leaf].how in ("", "add"):
                self.blank.add(along.leaf)
            else:
                self.zeros.add((along.leaf, "incoming"))
            return Along("zero")
        return Along("mean", writers=frozenset([along.leaf]))

    def _is_silent(self, along: Along) -> bool:
        """Whether entries are weights that read the units, and have to be zero."""
        return self.reads_units(along) and (along.leaf, "outgoing") in self.zeros

    def _is_free(self, along: Along) -> bool:
        """Whether entries are weights that may as well be free in a sum."""
        return self.reads_units(along) and not along.shared

    def reads_units(self, along: Along) -> bool:
        """Whether entries are weights that read the units, which are zero if they have to be."""
        if along.rest != "open":
            return False
        place = self.places[along.leaf]
        writes = place.scales and {*place.roles.values()} == {"incoming"}  # see ``written``
        return along.shared or not (self.filling.is_tiled or writes)

    def sum(self, parts: Sequence[Along]) -> Along:
        """New entries of a sum, or of things put side by side."""
        if len({part.shared for part in parts}) > 1:
            raise NoRecipe
        if len({*parts}) == 1:
            return parts[0]
        is_zero = any(part.rest == "zero" for part in parts)
        settled = [
            self.settle(part, "zero" if is_zero and not self._is_free(part) else "mean")
            for part in parts
        ]
        rests = {part.rest for part in settled}
        if len(rests) == 1 or "none" in rests:
            (rest,) = rests & {"none"} or rests
        else:
            rest = "mean" if rests <= {"mean", "same"} else "free"
        writers = frozenset[int]()
        if rest == "mean" and all(part.writers for part in settled):
            writers = frozenset().union(*(part.writers for part in settled))
        order = min(part.order for part in settled)
        return Along(rest, parts[0].shared, writers=writers, order=order)

    def product(self, parts: Sequence[Along]) -> Along:
        """New entries of a product."""
        shared = [part.shared for part in parts].count(True)
        varying = [part for part in parts if part.rest != "same"]
        rests = [part.rest for part in varying]
        if shared > 1:
            raise NoRecipe
        if len(varying) < 2:
            return (varying or parts)[0]._replace(shared=bool(shared))
        if "zero" not in rests:
            readers = [part for part in varying if self.reads_units(part)]
            if readers:
                return readers[0]._replace(order=sum(part.order for part in readers))
        rest = next((r for r in ("none", "zero") if r in rests), "free")
        order = sum(part.order for part in varying if part.rest == "zero" or self._is_silent(part))
        return Along(rest, bool(shared), order=order or 1)  # type: ignore[arg-type]

    def scaled(self, step: Step, state: State, by: State) -> Along | None:
        """New entries of units that are scaled one by one, as by LayerScale; None if not known.

        New units are no means of old ones then, unless they are made so: what writes them gets
        means that are weighed by the scales. That is possible if nothing else reads what is scaled.

        Args:
            step: the product.
            state: what is scaled.
            by: the array that scales it.
        """
        writers = [leaf for along in state.along.values() for leaf in along.writers]
        if (
            by.leaf is None
            or not writers
            or len(state.along) > 1
            or by.along.keys() != {*state.along}
        ):
            return None
        leaves, scale = [by.leaf, *writers], self._leaves[by.leaf]
        loops = self._loops_until(step, by.leaf)
        if loops is None or any(self._loops_until(step, leaf) != loops for leaf in writers):
            return None
        if not self.places[by.leaf].scales or not all(map(self._is_whole, leaves)):
            return None
        is_for_each = prod(dim.size for dim in scale.dims[len(loops) :]) == self.width.size
        if not is_for_each or scale.quantized or self.weighed.keys() & leaves:
            return None
        self.blank.discard(by.leaf)
        self.weighed |= dict.fromkeys(writers, by.leaf)
        return Along("mean")

    def _loops_until(
        self, step: Step, leaf: int, through: Collection[str] = ()
    ) -> tuple[Dim, ...] | None:
        """Returns the loops that take a leaf apart before a step; None if others read it, too.

        Args:
            step: the step.
            leaf: the leaf.
            through: what may be done to the leaf before, if not everything may be.
        """
        value, loops, is_whole = self._leaves[leaf], tuple[Dim, ...](), True
        while True:
            readers = self._readers(value)
            if len(readers) != 1 or len(readers[0].results) != 1:
                return None
            if (reader := readers[0]) is step:
                return loops
            if _scales_by_array(reader, value) or (through and reader.name not in through):
                return None
            if reader.name == "take" and is_whole:
                loops = (*loops, reader.params["loop"])
            elif reader.name == "take":  # perhaps in another order, as behind ``rev``
                return None
            is_whole &= reader.name in ("take", "convert_element_type")
            (value,) = reader.results

    def _is_whole(self, leaf: int) -> bool:
        """Whether a leaf writes the width along one axis, which is that of no other width."""
        axes = [axis for axis, role in self.places[leaf].roles.items() if role == "incoming"]
        return len(axes) == 1 and self._leaves[leaf].dims[axes[0]].root is self.width

    def mixed(self, power: Power) -> None:
        """Makes sure that a sum along the width does not mix parts with different powers."""
        for key in [key for key in power if isinstance(key, Partly)]:
            self.equations.equate({key.leaf: 1.0}, {})

    def total(self, along: Along, dim: Dim) -> Power:
        """The power that a sum along a dimension with the width adds."""
        along = self.settle(along, "zero" if self.reads_units(along) else "mean")
        rest, shared = along.rest, along.shared
        if rest == "zero" and not self.filling.is_tiled:
            self.orders.add(along.order)
            return {}
        if shared and rest in ("zero", "none"):
            return {}
        if shared or self.filling.is_uneven or self.degree(dim) is None:
            raise NoRecipe
        if rest == "zero":
            return plus(self.size, self.ratio)
        if rest in ("same", "none") or (rest == "mean" and self.filling.is_tiled):
            return self.size
        raise NoRecipe

    # Means and variances where the rest of the units are means

    def _is_mean(self, along: Along) -> bool:
        """Whether the rest of the units are means, also those of a leaf that is read first here."""
        return not self.reads_units(along) and self.settle(along).rest == "mean"

    def squared(self, x: Value, state: State) -> Statistic | None:
        """What the square of a value is, if that matters."""
        old = state.statistic
        if old and old.kind == "mean":
            return replace(old, kind="squared mean")
        if [self._is_mean(along) for along in state.along.values()] == [True]:
            return Statistic("square", state.array, tuple(range(x.ndim)))
        return None

    def summed(self, x: Value, state: State, axes: Iterable[int]) -> Statistic | None:
        """What the sum of a value over some axes is, if that matters."""
        over = [*axes]
        if not over or over != [*state.along] or x.dims[over[0]].root is not self.width:
            return None
        kept = tuple(axis for axis in range(x.ndim) if axis not in over)
        old = state.statistic
        if old and old.kind == "square":
            return Statistic("squares", old.of, kept)
        if self._is_mean(state.along[over[0]]):
            return Statistic("sum", state.array, kept)
        return None

    def averaged(
        self, statistic: Statistic | None, number: float, rounding: float
    ) -> Statistic | None:
        """What a sum times a number is: a mean, if it is one over the size."""
        if statistic is None or not _near(number, 1 / self.width.size, rounding):
            return None
        if statistic.kind in ("sum", "squares"):
            return replace(statistic, kind="mean" if statistic.kind == "sum" else "moment")
        return None

    # Numbers that were computed from the size

    def power_of_number(self, x: Value, by: Value, sign: int) -> Power:
        """The power of a number that a value is multiplied by, or divided by if the sign is -1."""
        assert by.number is not None
        number = abs(by.number)
        if self.larger is not None:
            power = self.larger.powers.get(self.index, 0.0)
            if power:
                self.degrees[self.index] = Degree(number, power, is_noted=False)
            return plus({}, self.size, power)
        if number == 1:
            return {}
        degree = self._degree_of_mean(x, number, by.rounding)
        is_mean = degree is not None
        is_noted = not is_mean and not self.filling.is_tiled
        if degree is None:
            degree = self._degree_of_scale(x, number, by.rounding)
            if degree and is_noted:
                what = f"the {'factor on' if sign == 1 else 'divisor of'} {self.name}"
                of_ratio = plus({}, self.ratio, degree)
                self.constants.append(Constant(what, number, of_ratio, by.rounding))
        if degree and self.filling.is_uneven:
            raise NoRecipe
        if degree:
            self.degrees[self.index] = Degree(number, sign * degree, is_noted, is_mean)
        return plus({}, self.size, sign * degree)

    def _degree_of_mean(self, x: Value, number: float, rounding: float) -> float | None:
        """The degree of a number that makes a sum a mean; None if it does not."""
        summed = [d for d in dict.fromkeys(d.root for d in x.summed) if d.size > 1]
        for group in (*([d] for d in summed), summed):
            n = prod(d.size for d in group)
            for inverse, size in ((1, n), (-1, 1 / n)):
                if group and _near(number, size, rounding):
                    return inverse * self._degree_of_group(group)
        weighted = [d.root for d in x.contracted]
        is_usual = any(_near(number, usual, rounding) for usual in USUAL_NUMBERS)
        if not is_usual and any(self.degree(d) != 0 for d in summed if d not in weighted):
            raise Ambiguous(number)  # such as n - 1
        return None

    def _degree_of_group(self, group: Iterable[Dim]) -> int:
        degrees = [self.degree(dim) for dim in group]
        if None in degrees:
            raise NoRecipe
        return sum(degree or 0 for degree in degrees)

    def _degree_of_scale(self, x: Value, number: float, rounding: float) -> float:
        """The degree of a number that may have been computed from sizes, or is none of them."""
        whole = (*x.contracted, *x.summed, *x.dims)
        dims = list(dict.fromkeys(d.root for d in whole if d.size > 1))
        if all(self.degree(d) == 0 for d in dims):
            return 0
        groups = [[d] for d in dict.fromkeys((*dims, self.width))]
        if x.origin == "parameter":
            groups += [list(g) for k in range(2, len(dims) + 1) for g in combinations(dims[:5], k)]
        degrees: set[float] = set()
        is_ambiguous = False
        for group in groups:
            n = prod(d.size for d in group)
            fits = [power for power, size in _functions_of_size(n) if _near(number, size, rounding)]
            if x.origin != "parameter" and not any(d.bilinear for d in group):
                fits = [power for power in fits if abs(power) != 0.25]  # of queries and keys only
            if fits and (degree := self._degree_of_group(group)):
                degrees |= {degree * power for power in fits}
            elif fits:
                is_ambiguous |= not all(d.interface for d in group)
        # A number that scales scores follows from head_dim, if it follows from any size.
        is_ambiguous &= bool(degrees) and not self.width.bilinear
        is_blamed = any(self.degree(d) != 0 for d in to_blame(x, number, rounding))
        if is_ambiguous or is_blamed != bool(degrees) or len(degrees) > 1:
            raise Ambiguous(number)
        return degrees.pop() if degrees else 0


# What keeps the entries of a leaf, in all of them or in one layer's.
_MOVED = {name for name, record in PRIMITIVES.items() if record.keeps} | {"take"}

LARGEST_EPSILON = 1e-2  # a larger constant does more than keep a division finite


def _near(a: float, b: float, rounding: float) -> bool:
    return abs(a - b) <= rounding * abs(b)


def _functions_of_size(n: int) -> tuple[tuple[float, float], ...]:
    """Returns the numbers that models compute from a size to scale by, each with its power."""
    powers = (1.0, -1.0, 0.5, -0.5, 0.25, -0.25)
    return tuple((power, float(n) ** power) for power in powers)


def _scales_by_array(step: Step, value: Value) -> bool:
    """Whether a step multiplies a value by an array of parameters."""
    others = [other for other in step.operands if other is not value]
    return primitive(step.name).powers is not None and any(
        other.origin == "parameter" and any(dim.size > 1 for dim in other.dims) for other in others
    )
