"""Find out which new arrays make a deeper program compute what the old one did: ``TermReader``.

Both programs are turned into terms (``terms``). What a new array holds is still open, so a value
that depends on new arrays has *options*. An option says how new arrays are filled, and which term
the value then is. If a kernel is zero, for example, its product is zero, and a residual block
passes on its input. If a kernel is an identity, its product is its input. Options that do not lead
back to a term of the old program are dropped on the way.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from jax import lax

from dogwood_jax._base.trees import struct
from dogwood_jax._depth.one_layer import Equation, Variable, for_one_layer, of_one_layer
from dogwood_jax._depth.terms import TOLERANT, Operands, Term, Terms
from dogwood_jax._program.inner import scan_counts, sub_programs
from dogwood_jax._program.interpret import called, interpret


@dataclass(frozen=True)
class Fill:
    """What an array is filled with.

    Attributes:
        kind: ``"constant"``; ``"identity"``: what passes on the input of a contraction or
            convolution; ``"open"``: a constant that is still to be found.
        value: the constant.
        axes: the axis of the identity that is contracted, and the one that is produced.
        entry: if it fills just one entry of the array, the number of this entry.
    """

    kind: Literal["constant", "identity", "open"]
    value: float = 0.0
    axes: tuple[int, int] = (0, 1)
    entry: int | None = None


Fills = Mapping[tuple[str, int | None], Fill]  # by path and entry

_MOST_ENTRIES = 64  # of an array whose entries are filled one by one


@dataclass(frozen=True)
class Option:
    """A term that a value can be, and how new arrays must be filled for that."""

    fills: frozenset[tuple[str, Fill]]
    term: Term


@dataclass(frozen=True)
class Value:
    """A value of a program.

    Attributes:
        options: what it can be; just one for a value that depends on no new array.
        leaves: paths of the new arrays that it depends on.
        path: if the value is a new array itself, perhaps reshaped, the path of this array.
        array: if it is a new array or a new layer of a stack, whose entries are where they were,
            perhaps in another shape or dtype, its path and the layer.
        layers: the axes along which layers may lie, each with how many there are: what is there for
            one layer is computed of what arrays of the network have for it.
        leaf: if it is such an array of the network itself, its path.
        made: the equation that computes it and the operands, if one entry may be asked for.
    """

    options: tuple[Option, ...]
    leaves: frozenset[str] = frozenset()
    path: str | None = None
    array: tuple[str, int | None] | None = None
    layers: Mapping[int, int] = field(default_factory=dict)
    leaf: str | None = None
    made: tuple[Any, Sequence["Value"]] | None = field(default=None, compare=False, repr=False)

    def under(self, fills: frozenset[tuple[str, Fill]]) -> Term | None:
        """Returns what it is if new arrays are filled so, None if that is not known."""
        return next((option.term for option in self.options if option.fills <= fills), None)

    @property
    def term(self) -> Term | None:
        """What it is, if it depends on no new array."""
        return None if self.leaves else self.options[0].term


@dataclass(frozen=True)
class Stack:
    """An array with an entry for each layer, and more of them than in the old network.

    Attributes:
        path: path of the old array.
        layers: for each layer, which old one it is, or -1 for a new one.
        axis: the axis that counts layers.
    """

    path: str
    layers: tuple[int, ...]
    axis: int = 0

    @property
    def old_layers(self) -> tuple[int, ...]:
        """Where the old layers are."""
        return tuple(self.layers.index(i) for i in range(max(self.layers) + 1))


@dataclass(frozen=True)
class Departure:
    """Where a program left everything that the old one computes.

    Attributes:
        operation: name of the primitive or of the function around it.
        before: name of what computed its operand.
        leaf: path of the last new array before it.
        first: whether the array is itself an operand.
        step: how many equations were read before.
    """

    operation: str
    before: str
    leaf: str
    first: bool
    step: int


# What leaves the entries of an array in their order.
_KEEP_ORDER = frozenset({"convert_element_type", "reshape", "squeeze"})

# What leaves an array of the network one, perhaps in another dtype or with its axes moved.
_STILL_ARRAYS = frozenset({"convert_element_type", "transpose"})


def exactly(term: Term) -> Value:
    """Returns a value that depends on no new array."""
    return Value((Option(frozenset(), term),))


class TermReader:
    """Turns a program into terms.

    Attributes:
        terms: the table of terms, shared with the program to compare with.
        departures: where the program left the terms of the old one since it last came back.
        scanned: the axis along which a loop runs over an array, by its path.
        taken: the axis along which single entries are taken from an array, by its path.
        stranger: the first operation on terms of the old program, without any new array, whose
            result is no term of the old program, and how many equations were read before.
    """

    def __init__(
        self,
        terms: Terms,
        *,
        known: int = 0,
        stacks: Mapping[str, Stack] | None = None,
        fills: Fills | None = None,
        free: frozenset[str] = frozenset(),
    ) -> None:
        """Starts a program.

        Args:
            terms: the table of terms.
            known: how many of them there were after the old program.
            stacks: the arrays that have an entry for each layer and more layers now, by path.
            fills: how new arrays are filled, if that is known; arrays without one can be anything.
            free: paths of new arrays that can be anything.
        """
        self.terms = terms
        self.departures: list[Departure] = []
        self.stranger: tuple[str, int] | None = None
        self.scanned: dict[str, int] = {}
        self.taken: dict[str, int] = {}
        self._stacks = stacks or {}
        self._fills = fills
        self._free = free
        self._known = known
        self._steps = 0
        self._orders: dict[str, int] = {}  # when a new array was last used
        self._calls: list[str] = []
        self._names: dict[Term, str] = {}
        self._level = 0

    # Values ---------------------------------------------------------------------------------------

    def leaf(self, path: str, aval: Any) -> Value:
        """Returns the value of an array of the old network."""
        term = self.terms.make("leaf", path, (), aval)
        return replace(exactly(term), layers=self.terms.stacked.get(path, {}), leaf=path)

    def stack(self, path: str, aval: Any) -> Value:
        """Returns the value of an array that has more layers now."""
        axis, layers = self._stacks[path].axis, len(self._stacks[path].layers)
        if aval.shape[axis] > layers:
            term = self.terms.make("stack of blocks", path, (), aval)
        else:
            term = self.terms.make("stack", path, (), _in_front(aval, axis))
            term = self.terms.transpose(term, _from_front(axis, len(aval.shape)), aval)
        return replace(exactly(term), layers={axis: layers}, leaf=path)

    def new(self, path: str, aval: Any, layer: int | None = None) -> Value:
        """Returns the value of a new array, or of a new layer of a stack."""
        terms, fills = self.terms, self._fills
        if fills is not None:
            fill = fills.get((path, None))
            if fill is None:
                term = terms.make("new", (path, layer), (), aval)
                return replace(exactly(term), array=(path, layer))
            if fill.kind == "constant":
                return exactly(terms.number(fill.value, aval))
            return exactly(terms.make("identity", (path, fill.axes), (), aval))
        options = []
        if jnp.issubdtype(aval.dtype, np.inexact) and path not in self._free:
            choices = [(Fill("constant", value), terms.number(value, aval)) for value in (0.0, 1.0)]
            choices.append((Fill("open"), terms.make("open", (path, None), (), aval)))
            choices += [
                (Fill("identity", axes=axes), terms.make("identity", (path, axes), (), aval))
                for axes in _identities(aval.shape)
            ]
            options = [Option(frozenset({(path, fill)}), term) for fill, term in choices]
        return Value(tuple(options), frozenset({path}), path, (path, layer))

    def _entry(self, eqn: Any, value: Value) -> Value | None:
        """Returns a single entry of a new array, if an equation takes one."""
        shape, starts = eqn.invars[0].aval.shape, eqn.params["start_indices"]
        ends = tuple(start + 1 for start in starts)
        if value.array is None or not shape or eqn.params["limit_indices"] != ends:
            return None
        (path, layer), terms, aval = value.array, self.terms, eqn.outvars[0].aval
        if math.prod(shape) > _MOST_ENTRIES or not jnp.issubdtype(aval.dtype, np.inexact):
            return None
        if path in self._free:
            return None
        entry = int(np.ravel_multi_index(starts, shape))
        if self._fills is not None:
            fill = self._fills.get((path, entry))
            if fill is None:
                return exactly(terms.make("new", (path, layer, entry), (), aval))
            return exactly(terms.number(fill.value, aval))
        choices = [(Fill("constant", n, entry=entry), terms.number(n, aval)) for n in (0.0, 1.0)]
        if any(option.term.op == "open" for option in value.options):  # not behind a rounding
            choices.append((Fill("open", entry=entry), terms.make("open", (path, entry), (), aval)))
        whole = (
            Option(option.fills, terms.number(option.term.number, aval))
            for option in value.options
            if option.term.number is not None
        )
        options = *whole, *(Option(frozenset({(path, fill)}), term) for fill, term in choices)
        return Value(options, value.leaves, value.path)

    def cost(self, fills: Iterable[tuple[str, Fill]]) -> tuple[int, int, float]:
        """Orders fills: those of fewer arrays first, then of later ones, then with plain values."""
        orders = [self._orders.get(path, 0) for path, _ in fills]
        values = sorted(min(abs(fill.value), abs(fill.value - 1)) for _, fill in fills)
        return len(orders), -sum(orders), sum(values)

    def _leads_on(self, term: Term) -> bool:
        """Whether a term is something that the old program computes, or close to it."""
        if term.op in ("scaled", "transpose", "reshape", "convert_element_type"):
            return term.order < self._known or self._leads_on(term.operands[0])
        return term.order < self._known and term.number is None

    def _best(self, options: Iterable[Option]) -> tuple[Option, ...]:
        """Returns the options that are worth following: some terms, and the best two ways to each.

        Eight terms that lead on are kept, and eight numbers beside them. The zero of a silent
        branch must still be there when it is added to what was before the branch.
        """
        kept: dict[Term, int] = {}
        numbers: list[Option] = []
        leading: list[Option] = []
        for option in sorted(
            dict.fromkeys(options), key=lambda o: (self.cost(o.fills), o.term.order)
        ):
            number = option.term.number is not None or option.term.op in ("identity", "open")
            if not number and not self._leads_on(option.term):
                continue
            kept[option.term] = kept.get(option.term, 0) + 1
            if kept[option.term] <= 2:
                (numbers if number else leading).append(option)
        leading.sort(key=lambda option: option.term.order >= self._known)
        return (*leading[:8], *numbers[:8])

    def together(
        self, values: Sequence[Value], tolerant: bool = False
    ) -> list[tuple[frozenset[tuple[str, Fill]], tuple[Term | None, ...]]]:
        """Returns what several values can be at the same time.

        Args:
            values: the values.
            tolerant: whether to count in that a value can be anything, None.
        """
        found: dict[Any, None] = {(frozenset(), ()): None}
        anything = [(frozenset[tuple[str, Fill]](), None)]
        for value in values:
            choices = [(option.fills, option.term) for option in value.options]
            merged: dict[Any, None] = {}
            for fills, chosen in found:
                for more, term in choices + (anything if value.leaves and tolerant else []):
                    if (union := _merge(fills, more)) is not None:
                        merged[union, (*chosen, term)] = None
            found = merged
            if len(found) > 256:
                found = dict.fromkeys(sorted(found, key=lambda world: self.cost(world[0]))[:256])
        return list(found)

    def _evaluate(
        self,
        eqn: Any,
        values: Sequence[Value],
        function: Callable[[Any], list[Term | None]],
        tolerant: bool = False,
        likely: Iterable[frozenset[tuple[str, Fill]]] = (),
    ) -> list[Value]:
        """Returns the results of a function of terms for everything that the values can be.

        Args:
            eqn: the equation.
            values: its operands.
            function: what it computes.
            tolerant: whether it may be known although operands are not.
            likely: how arrays may be filled so that it is known.
        """
        leaves = frozenset[str]().union(*(value.leaves for value in values))
        if not leaves:
            terms = [value.options[0].term for value in values]
            made = function(terms)
            self._look_for_strangers(eqn, terms, made)
            return [exactly(term) for term in made if term is not None]
        options: list[list[Option]] = [[] for _ in eqn.outvars]
        worlds = self.together(values, tolerant)
        likely = (*likely, *(fills for fills, terms in worlds if None in terms))
        worlds = [world for world in worlds if None not in world[1]]
        worlds += [(fills, tuple(value.under(fills) for value in values)) for fills in likely]
        for fills, operands in worlds:
            fills, operands = self._close(eqn, fills, operands)
            for result, term in zip(options, function(operands), strict=True):
                if term is not None:
                    result.append(Option(fills, term))
        path = values[0].path if len(values) == 1 else None
        results = [Value(self._best(o), leaves, path) for o in options]
        self._note_departures(eqn, values, results)
        return results

    def _close(
        self, eqn: Any, fills: frozenset[tuple[str, Fill]], operands: tuple[Term | None, ...]
    ) -> tuple[frozenset[tuple[str, Fill]], tuple[Term | None, ...]]:
        """Chooses an open constant so that it cancels the number in the factor beside it."""
        if eqn.primitive.name != "mul":
            return fills, operands
        for i, (factor, other) in enumerate((operands, operands[::-1])):
            if factor is None or other is None or factor.op != "open":
                continue
            number = other.params if other.op == "scaled" else other.number
            if number:
                path, entry = factor.params
                chosen = (path, Fill("constant", 1 / number, entry=entry))
                known = self.terms.number(1 / number, eqn.invars[i].aval)
                fills = fills - {(path, Fill("open", entry=entry))} | {chosen}
                return fills, (known, other) if i == 0 else (other, known)
        return fills, operands

    def _look_for_strangers(self, eqn: Any, operands: Operands, results: Operands) -> None:
        if not self._known or self.stranger:
            return
        known = all(term is not None and term.order < self._known for term in operands)
        if known and any(t is not None and t.order >= self._known for t in results):
            name = self._calls[-1] if self._calls else eqn.primitive.name
            self.stranger = name, self._steps

    def _note_departures(self, eqn: Any, before: Sequence[Value], after: Sequence[Value]) -> None:
        def on_track(value: Value) -> bool:
            return any(self._leads_on(option.term) for option in value.options)

        if any(on_track(value) for value in after):
            if not all(on_track(value) for value in before if value.leaves):
                self.departures.clear()
            return
        followed = [value for value in before if on_track(value)]
        if followed:
            last = max(
                (path for value in before for path in value.leaves),
                key=lambda path: self._orders.get(path, 0),
            )
            term = next(o.term for o in followed[0].options if self._leads_on(o.term))
            name = self._calls[-1] if self._calls else eqn.primitive.name
            first = any(value.path == last for value in before)
            before_it = self._names.get(term, term.op)
            self.departures.append(Departure(name, before_it, last, first, self._steps))

    # Programs -------------------------------------------------------------------------------------

    def run(self, jaxpr: Any, consts: Sequence[Any], arguments: Sequence[Value]) -> list[Value]:
        """Reads every equation of a program; returns the values of its results."""

        def constant(array: Any, aval: Any) -> Value:
            return exactly(self.terms.constant(array, aval))

        return interpret(jaxpr, consts, arguments, constant=constant, equation=self._read)

    def _read(self, eqn: Any, operands: list[Value]) -> list[Value]:
        self._steps += 1
        for value in operands:
            if value.path is not None:
                self._orders[value.path] = self._steps
        name = eqn.primitive.name
        if (taken := self._taken(eqn, operands)) is not None:
            return taken
        if name == "slice" and (one := self._entry(eqn, operands[0])) is not None:
            return [one]
        if (program := called(eqn)) is not None:
            return self._call(eqn, program, operands)
        if name == "scan":
            return self._scan(eqn, operands)
        if name == "cond":
            return self._cond(eqn, operands)
        if sub_programs(eqn) and name != "scatter-add":  # its program says that it adds
            return self._evaluate(eqn, operands, lambda terms: self._opaque(eqn, terms))
        results = self._evaluate(
            eqn, operands, lambda terms: self.terms.apply(eqn, terms), name in TOLERANT
        )
        if name in _KEEP_ORDER and len(operands) == 1 and operands[0].array:
            results = [replace(result, array=operands[0].array) for result in results]
        axes = self._axes_of_layers(eqn, operands)
        if axes or name == "broadcast_in_dim":
            results = [replace(result, layers=axes, made=(eqn, operands)) for result in results]
        return results

    def _call(self, eqn: Any, program: Any, operands: list[Value]) -> list[Value]:
        jaxpr, consts = program
        name = eqn.params.get("name")
        # A function of one array with a result of the same shape has a name that readers know.
        named = (
            isinstance(name, str)
            and len(eqn.invars) == len(eqn.outvars) == 1
            and eqn.invars[0].aval.shape == eqn.outvars[0].aval.shape
        )
        self._calls += [name] if named else []
        results = self.run(jaxpr, consts, operands)
        if named:
            self._calls.pop()
            self._names.update((option.term, name) for option in results[0].options)
        return results

    def _variables(self, variables: Sequence[Any]) -> list[Value]:
        """Returns values for the arguments of a program of which nothing is known."""
        self._level += 1
        return [
            exactly(self.terms.variable((self._level, i), var.aval))
            for i, var in enumerate(variables)
        ]

    def _opaque(self, eqn: Any, operands: Sequence[Term]) -> list[Term | None]:
        """Reads an equation that does something unknown with programs among its parameters."""
        bodies = []
        for jaxpr, consts in sub_programs(eqn):
            results = self.run(jaxpr, consts, self._variables(jaxpr.invars))
            self._level -= 1
            bodies.append(tuple(value.options[0].term for value in results))
        params = self.terms.params(eqn), tuple(bodies)
        return self.terms.opaque(
            eqn.primitive.name, params, operands, [var.aval for var in eqn.outvars]
        )

    def _cond(self, eqn: Any, operands: list[Value]) -> list[Value]:
        which, *arguments = operands
        branches = [self.run(*program, arguments) for program in sub_programs(eqn)]
        results = []
        for i, var in enumerate(eqn.outvars):

            def choose(terms: Operands, var: Any = var) -> list[Term | None]:
                if all(term is terms[1] for term in terms[2:]):
                    return [terms[1]]
                return self.terms.opaque("cond", (), terms, [var.aval])  # type: ignore[arg-type]

            one = Equation(eqn.primitive, eqn.invars, [var])
            results += self._evaluate(one, [which, *(branch[i] for branch in branches)], choose)
        return results

    def _scan(self, eqn: Any, operands: list[Value]) -> list[Value]:
        ((jaxpr, closed_over),) = sub_programs(eqn)
        n_consts, n_carry = scan_counts(eqn)
        length = eqn.params["length"]
        first = n_consts + n_carry
        arrays = [_array(value) for value in operands[first:]]
        for array, axis in arrays:
            if array and array.op == "leaf":
                self.scanned.setdefault(array.params, axis)
        stacks = [array.params if array and array.op == "stack" else None for array, _ in arrays]
        longer = {self._stacks[path].old_layers for path in stacks if path}
        idle: list[frozenset[tuple[str, Fill]]] = [frozenset()]
        if longer:
            idle = self._idle_layers(eqn, operands, stacks) if len(longer) == 1 else []
            old_layers = min(longer)
            length = len(old_layers)
            for i, path in enumerate(stacks, first):
                if (term := operands[i].term) is None:
                    continue
                # The loop may also run over something that no layer owns. Old layers must get the
                # same of it as before.
                own = self._old(term) if path else None
                entries = own or self.terms.entries(term, old_layers)
                if entries is None:
                    idle = []
                else:
                    operands = [*operands[:i], exactly(entries), *operands[i + 1 :]]

        def function(terms: Operands) -> list[Term | None]:
            arguments = self._variables(jaxpr.invars)
            for i, (term, var) in enumerate(zip(terms, jaxpr.invars, strict=True)):
                if term is not None and i < n_consts:
                    arguments[i] = exactly(term)
                elif term is not None and i >= first and term.number is not None:
                    arguments[i] = exactly(self.terms.like(term, var.aval))
            state, body = self._settled(
                jaxpr, closed_over, arguments, n_consts, terms[n_consts:first]
            )
            self._level -= 1
            known = [term for term in terms if term is not None]
            outputs: list[Term | None] = [None] * len(body)
            if len(known) == len(terms):
                outputs = self.terms.opaque(
                    "scan",
                    (length, eqn.params["reverse"], len(body)),
                    [*body, *known[n_consts:]],
                    [var.aval for var in eqn.outvars],
                )
            for i, (after, var) in enumerate(zip(body, eqn.outvars, strict=True)):
                if i >= n_carry and after.number is not None:
                    outputs[i] = self.terms.like(after, var.aval)
                elif i < n_carry and (after is state[i] or _same_number(after, state[i])):
                    outputs[i] = terms[n_consts + i]
            return outputs

        if not longer:
            return self._evaluate(eqn, operands, function, True, self._still(eqn, operands))
        results = self._evaluate(eqn, operands, function)
        leaves = frozenset(path for path in stacks if path)
        return [
            Value(
                self._best(
                    Option(union, option.term)
                    for option in value.options
                    for fills in (idle if i < n_carry else [])
                    if (union := _merge(option.fills, fills)) is not None
                ),
                value.leaves | leaves,
            )
            for i, value in enumerate(results)
        ]

    def _still(self, eqn: Any, operands: Sequence[Value]) -> list[frozenset[tuple[str, Fill]]]:
        """Returns how new arrays may be filled so that a loop makes nothing but zeros of zeros."""
        ((jaxpr, closed_over),) = sub_programs(eqn)
        n_consts, n_carry = scan_counts(eqn)
        begin = [value.term for value in operands[n_consts:][:n_carry]]
        if not any(v.leaves for v in operands) or not all(t and t.number == 0 for t in begin):
            return []
        arguments = self._variables(jaxpr.invars)
        arguments[:n_consts] = operands[:n_consts]
        for i, value in enumerate(operands[n_consts:], n_consts):
            aval = jaxpr.invars[i].aval
            zeros = [
                replace(option, term=self.terms.like(option.term, aval))
                for option in value.options
                if option.term.number == 0
            ]
            if zeros or value.leaves:
                arguments[i] = replace(value, options=tuple(zeros), path=None)
        known, self._known = self._known, len(self.terms)
        results = self.run(jaxpr, closed_over, arguments)
        self._known = known
        self._level -= 1
        still = [
            replace(value, options=tuple(o for o in value.options if o.term.number == 0))
            for value in results
        ]
        return [fills for fills, _ in self.together(still)]

    def _settled(
        self,
        jaxpr: Any,
        consts: Sequence[Any],
        arguments: list[Value],
        first: int,
        begin: Operands,
    ) -> tuple[list[Term], list[Term]]:
        """Returns the state of a loop before and after a step, with what holds in every step.

        A zero stays a zero if a step makes it of itself, and bounds stay if a step keeps them.

        Args:
            jaxpr: the program of a step.
            consts: its constants.
            arguments: its arguments, those of the state to be replaced.
            first: the first argument that is part of the state.
            begin: the state at first.
        """
        places = range(first, first + len(begin))
        for i, term in zip(places, begin, strict=True):
            aval = jaxpr.invars[i].aval
            if term is not None and term.number == 0 and jnp.issubdtype(aval.dtype, np.inexact):
                arguments[i] = exactly(self.terms.like(term, aval))
        while True:
            before = [arguments[i].options[0].term for i in places]
            after = [value.options[0].term for value in self.run(jaxpr, consts, arguments)]
            for i, old, new in zip(places, before, after, strict=False):
                if not _same_number(old, new):
                    low = old.low if new.low >= old.low else -math.inf
                    high = old.high if new.high <= old.high else math.inf
                    place = (self._level, i)
                    kept = self.terms.variable(place, jaxpr.invars[i].aval, low, high)
                    arguments[i] = exactly(kept)
            if all(arguments[i].options[0].term is old for i, old in zip(places, before)):
                return before, after

    def _old(self, term: Term) -> Term:
        """Returns the old layers of a stack, perhaps converted."""
        if term.op == "stack":
            stack = self._stacks[term.params]
            leaf = self.terms.make("leaf", stack.path, (), term)
            return self.terms.transpose(leaf, _to_front(stack.axis, len(term.shape)), term)
        return self.terms.make(term.op, term.params, [*map(self._old, term.operands)], term)

    def _taken(self, eqn: Any, operands: Sequence[Value]) -> list[Value] | None:
        """Returns what an equation takes of single layers, if it does just this."""
        if len(operands) != 1 or not operands[0].layers:
            return None
        (value,), (var,) = operands, eqn.invars
        for axis, count in value.layers.items():
            if (layers := _layers_taken(eqn, axis, count)) is not None:
                aval = of_one_layer(var.aval, axis, count)
                return [
                    self._part(
                        eqn, axis, aval, self._layer(value, var.aval, axis, layer, count), result
                    )
                    for layer, result in zip(layers, eqn.outvars, strict=True)
                ]
        return None

    def _part(self, eqn: Any, axis: int, aval: Any, layer: Value, result: Any) -> Value:
        """Returns what an equation takes of one layer."""
        if aval.shape == result.aval.shape:
            return layer
        primitive, params = lax.squeeze_p, dict[str, Any](dimensions=(axis,))
        if eqn.primitive.name == "slice":  # along other axes, too
            primitive, params = eqn.primitive, dict(eqn.params)
            for limit, place in (("start_indices", 0), ("limit_indices", aval.shape[axis])):
                places = list(params[limit])
                places[axis] = place
                params[limit] = tuple(places)
        return self._read(Equation(primitive, [Variable(aval)], [result], params), [layer])[0]

    def _axes_of_layers(self, eqn: Any, operands: Sequence[Value]) -> dict[int, int]:
        """Returns the axes of a result along which layers lie, each computed of one layer."""
        counts = {count for value in operands for count in value.layers.values()}
        if eqn.primitive.name not in _STILL_ARRAYS:
            counts &= self.terms.counts
        if len(eqn.outvars) != 1 or not counts:
            return {}

        def are_along(axis: int, size: int, layers: int) -> bool:
            if size % layers or (found := for_one_layer(eqn, axis, layers)) is None:
                return False
            read = [(v, p) for v, p in zip(operands, found[0], strict=True) if p is not None]
            own = [value.layers.get(place) == layers for value, place in read]
            others = (pair for pair, is_own in zip(read, own, strict=True) if not is_own)
            return any(own) and all(_is_spread(*pair, layers) for pair in others)

        return {
            axis: layers
            for axis, size in enumerate(eqn.outvars[0].aval.shape)
            for layers in counts
            if are_along(axis, size, layers)
        }

    def _layer(self, value: Value, aval: Any, axis: int, layer: int, layers: int) -> Value:
        """Returns what a value has for one of the layers along an axis. The axis stays."""
        if value.leaf is not None and axis in value.layers:
            if aval.shape[axis] > layers:
                return self._block_of_array(value.leaf, aval, axis, layer, layers)
            return self._layer_of_array(value.leaf, aval, axis, layer)
        if (number := _number(value)) is not None:
            return exactly(self.terms.like(number, of_one_layer(aval, axis, layers)))
        assert value.made is not None
        eqn, operands = value.made
        found = for_one_layer(eqn, axis, layers)
        assert found is not None
        places, one = found
        entries = [
            operand if place is None else self._layer(operand, var.aval, place, layer, layers)
            for operand, var, place in zip(operands, eqn.invars, places, strict=True)
        ]
        return self._read(one, entries)[0]

    def _old_layer(self, path: str, axis: int, layer: int) -> tuple[str, int]:
        """Returns the old array and the old layer that a layer is, or -1 for a new layer."""
        if (stack := self._stacks.get(path)) is not None:
            return stack.path, stack.layers[layer]
        self.taken.setdefault(path, axis)
        return path, layer

    def _block_of_array(self, path: str, aval: Any, axis: int, layer: int, layers: int) -> Value:
        """Returns the entries of an array along an axis for one of the layers that share it."""
        one = of_one_layer(aval, axis, layers)
        source, number = self._old_layer(path, axis, layer)
        if number < 0:
            return self.new(path, one, layer)
        whole = self.terms.make("leaf", source, (), aval)
        return exactly(self.terms.make("layer", (number, axis), (whole,), one))

    def _layer_of_array(self, path: str, aval: Any, axis: int, layer: int) -> Value:
        """Returns one entry of an array along its axis of layers. The axis stays."""
        terms, front = self.terms, _in_front(aval, axis)
        first = struct((1, *front.shape[1:]), aval.dtype)
        one = struct(front.shape[1:], aval.dtype)
        source, number = self._old_layer(path, axis, layer)
        if number < 0:
            value = self.new(path, one, layer)
        else:
            whole = terms.make("leaf", source, (), aval)
            whole = terms.transpose(whole, _to_front(axis, len(aval.shape)), front)
            value = exactly(terms.make("layer", number, (whole,), one))
        order = _from_front(axis, len(aval.shape))
        kept = struct(tuple(first.shape[a] for a in order), aval.dtype)

        def placed(term: Term) -> Term:
            term = terms.expanded(term, first)
            known = term.number is not None or term.op == "open"
            return term if known else terms.transpose(term, order, kept)

        options = tuple(replace(o, term=placed(o.term)) for o in value.options)
        return replace(value, options=options)

    def _idle_layers(
        self, eqn: Any, operands: list[Value], stacks: Sequence[str | None]
    ) -> list[frozenset[tuple[str, Fill]]]:
        """Returns how the arrays of a new layer can be filled so that it changes nothing."""
        ((jaxpr, closed_over),) = sub_programs(eqn)
        n_consts, n_carry = scan_counts(eqn)
        arguments = self._variables(jaxpr.invars)
        arguments[:n_consts] = operands[:n_consts]
        state = arguments[n_consts:][:n_carry]
        for i, path in enumerate(stacks):
            place = n_consts + n_carry + i
            if path is not None:
                arguments[place] = self.new(path, jaxpr.invars[place].aval)
        # Whatever the new layer gets is something that the old program computes.
        known, self._known = self._known, len(self.terms)
        results = self.run(jaxpr, closed_over, arguments)[:n_carry]
        self._known = known
        self._level -= 1
        same = [
            replace(value, options=tuple(o for o in value.options if o.term is before.term))
            for value, before in zip(results, state, strict=True)
        ]
        return [fills for fills, _ in self.together(same)]


def _same_number(one: Term, other: Term) -> bool:
    """Whether all entries of two terms are known to be the same number."""
    return one.number is not None and bool(one.number == other.number)


def _array(value: Value) -> tuple[Term | None, int]:
    """Returns the term of an array of the network that a value is, and which axis is the first.

    The array may be converted, and one of its axes moved to the front.
    """
    term, axis = value.term, 0
    while term is not None and term.op == "convert_element_type":
        term = term.operands[0]
    if term is not None and term.op == "transpose":
        axis, leaf = term.params[0], term.operands[0].op == "leaf"  # layers of a stack come first
        in_front = term.params == _to_front(axis, len(term.params))
        term = term.operands[0] if leaf and in_front else None
    return term if term is not None and term.op in ("leaf", "stack") else None, axis


def _to_front(axis: int, ndim: int) -> tuple[int, ...]:
    """Returns the order of axes in which one is the first, and the others stay in order."""
    return axis, *(a for a in range(ndim) if a != axis)


def _from_front(axis: int, ndim: int) -> tuple[int, ...]:
    """Returns the order of axes that takes the first one back to its place."""
    return tuple(map(_to_front(axis, ndim).index, range(ndim)))


def _in_front(aval: Any, axis: int) -> Any:
    """Returns the shape and dtype of an array with an axis moved to the front."""
    return struct(tuple(aval.shape[a] for a in _to_front(axis, len(aval.shape))), aval.dtype)


def _layers_taken(eqn: Any, axis: int, layers: int) -> Sequence[int] | None:
    """Returns which of the layers along an axis each result of an equation is, or is a part of.

    Returns:
        None if a result is something else.
    """
    name, p, size = eqn.primitive.name, eqn.params, eqn.invars[0].aval.shape[axis]
    each = size // layers
    if name == "slice":
        start, stop = p["start_indices"][axis], p["limit_indices"][axis]
        return [start // each] if stop - start == each and start % each == 0 else None
    if name == "squeeze":
        return [0] if tuple(p["dimensions"]) == (axis,) else None
    are_each = name == "unstack" or (name == "split" and set(p["sizes"]) == {each})
    return range(layers) if are_each and p["axis"] == axis else None


def _number(value: Value) -> Term | None:
    """Returns the term of a value whose entries are one number."""
    return value.term if value.term is not None and value.term.number is not None else None


def _is_spread(value: Value, axis: int, layers: int) -> bool:
    """Whether layers along an axis have equal entries, because a value is repeated along it."""
    if value.made is None:
        return _number(value) is not None
    eqn, _ = value.made
    is_broadcast = eqn.primitive.name == "broadcast_in_dim"
    found = for_one_layer(eqn, axis, layers) if is_broadcast else None
    return found is not None and found[0] == (None,)


def _merge(
    first: frozenset[tuple[str, Fill]], second: frozenset[tuple[str, Fill]]
) -> frozenset[tuple[str, Fill]] | None:
    """Returns both fills together, or None if they fill an array in two ways."""
    if not second or first >= second:
        return first
    union = first | second
    if len({path for path, _ in union}) == len(union):
        return union
    places = {(path, fill.entry) for path, fill in union}
    whole = {path for path, entry in places if entry is None}
    apart = whole.isdisjoint(path for path, entry in places if entry is not None)
    return union if len(places) == len(union) and apart else None


def _identities(shape: Sequence[int]) -> list[tuple[int, int]]:
    """Returns the pairs of axes, contracted and produced, that an identity can have."""
    n = len(shape)
    pairs = [(0, 1)] if n == 2 else [(n - 2, n - 1), (1, 0)] if n > 2 else []
    return [(i, o) for i, o in pairs if shape[i] and shape[o] % shape[i] == 0]
