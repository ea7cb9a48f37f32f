"""What the gates of a router become if every expert is copied: ``routers_of``.

A router gives each expert a logit and picks the largest ones by ``top_k``. Gates are computed from
the logits, before or after the choice, and weigh the outputs of the chosen experts. If there are m
copies of every expert and m times as many are chosen, all copies of the experts chosen before are
chosen now. Then each value that is computed from logits is the old one times a power of m: a sum
over experts is m times as large, so a softmax is 1/m of the old one. The outputs are a sum over
experts again. So they stay if the power of the gates is -1, as after a softmax, and grow m times if
it is 0, as of sigmoids.

If one expert is chosen, and still one of all copies, only sums over all experts are m times as
large. So outputs stay if the power of the gates is 0, and become 1/m of what they were if it is -1,
as after a softmax over all experts.

How tokens find their experts is not followed further than to the arrays that they find. It is taken
for granted that each token gets the outputs of its experts, weighed by their gates.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

from dogwood_jax._program.primitives.moves import MOVES
from dogwood_jax._program.primitives.table import is_linear, primitive
from dogwood_jax._widths.dims import PICKS, Dim, parts_of
from dogwood_jax._widths.values import Step, Trace, Value

# A number that keeps a divisor from being zero: too small to matter in a sum, and as the least
# value of a sum.
_NEGLIGIBLE, _LEAST = 1e-15, 1e-6
# Numbers with which an operation does nothing.
_NEUTRAL = {"add": 0, "sub": 0, "mul": 1, "div": 1}


@dataclass(frozen=True)
class Router:
    """A choice of experts in a program.

    Attributes:
        experts: the dimension of the logits.
        choices: the dimension of the chosen experts.
        leaves: the arrays that make the logits, by their numbers.
        stacks: dimensions of the experts' arrays, as far as the program shows where tokens find
            their experts.
        power: the power of the number of copies by which outputs grow if every expert is copied and
            as many times more are chosen; None if the program does not show it.
        power_of_one: the same if one expert is chosen before and after; None otherwise.
        sums_to_one: whether the gates of the chosen experts are shown to sum to one.
        dispatch: the steps that only find out which tokens go to which experts.
        gates: the steps that compute gates.
        uses: the steps that multiply something by gates.
    """

    experts: Dim
    choices: Dim
    leaves: frozenset[int]
    stacks: frozenset[Dim]
    power: float | None
    power_of_one: float | None
    sums_to_one: bool
    dispatch: frozenset[int]
    gates: frozenset[int]
    uses: frozenset[int]

    @property
    def chosen(self) -> int:
        """How many experts are chosen for each token."""
        return self.choices.size

    def is_like(self, other: "Router") -> bool:
        """Whether as many experts are chosen, by such gates."""
        ours, theirs = ((r.chosen, r.power, r.sums_to_one) for r in (self, other))
        return ours == theirs


def routers_of(trace: Trace) -> list[Router]:
    """Returns the routers of a program: where the largest are picked of what parameters produce.

    Args:
        trace: the program as it was read, with all dimensions known.
    """
    choices = [i for i, step in enumerate(trace.steps) if step.name in ("top_k", "approx_top_k")]
    return [_router(trace.steps, index) for index in choices]


def _router(steps: Sequence[Step], index: int) -> Router:
    router = _Reading(steps, index).router()
    if router.chosen > 1:
        return router
    return replace(router, power_of_one=_Reading(steps, index, still_one=True).router().power)


def computed_with(trace: Trace, routers: Sequence[Router], *, with_gates: bool) -> set[str]:
    """Returns what a program computes with: numbers, each with its operation, and functions.

    Where tokens find their experts, numbers are positions, which follow from sizes.

    Args:
        trace: the program as it was read.
        routers: its routers.
        with_gates: whether to look at how gates are computed, too.
    """
    left_out = frozenset[int]().union(*(router.dispatch for router in routers))
    if not with_gates:
        left_out = left_out.union(*(router.gates for router in routers))
    found = set[str]()
    for index, step in enumerate(trace.steps):
        if index in left_out or all(value.origin == "constant" for value in step.operands):
            continue
        law = primitive(step.name)
        if law.takes == 1 and not is_linear(step.name, step.params):
            found.add(step.name)
        found |= {
            f"{value.number:.6g} in {step.name}"
            for value in step.operands
            if value.number not in (None, _NEUTRAL.get(step.name)) and value.origin == "constant"
        }
    return found


def counted_elsewhere(trace: Trace, routers: Sequence[Router]) -> list[str]:
    """Returns where a program depends on how many experts there are, besides the gates.

    These are tables with a number for each expert or each choice, because copies would get other
    numbers than what they are copies of, and sums over all experts, because copies would add to
    them.
    """
    found = dict[str, None]()
    for router in routers:
        dims, followed = {router.experts, *router.stacks}, router.dispatch | router.gates
        for index, step in enumerate(trace.steps):
            if index in router.dispatch:
                continue
            for value in step.operands:
                if value.origin == "constant" and not value.index:
                    axes = {*value.positional, *(range(value.ndim) if value.table else ())}
                    along = [value.dims[axis].root for axis in axes]
                    if any(dim in dims or PICKS in dim.fixed for dim in along):
                        found[f"a number for each expert in {step.name}"] = None
                elif step.name.startswith("reduce_") and index not in followed:
                    if any(value.dims[axis].root in dims for axis in step.params["axes"]):
                        found[f"{step.name} over all experts"] = None
    return list(found)


@dataclass(frozen=True)
class _Known:
    """What is known of a value that is computed from logits.

    Attributes:
        power: the power of the number of copies; None if unknown.
        is_gate: whether it has the logits' values. Otherwise it only says which experts are chosen.
        tagged: whether it has entries for the experts, or for those that are chosen.
        pairs: whether it has an axis for the experts and one for the choices, and is zero where a
            choice is another expert.
        masked: whether the entries of experts that are not chosen are zero.
        base: what it has entries of: equal for values that differ by moves alone.
        sum_of: the base that it is the sum of, over all experts or the chosen ones.
        is_one: whether the entries of chosen experts sum to one.
    """

    power: float | None = 0.0
    is_gate: bool = True
    tagged: bool = True
    pairs: bool = False
    masked: bool = False
    base: object = None
    sum_of: tuple[object, str] | None = None
    is_one: bool = False


_UNKNOWN = _Known(power=None, tagged=False)


class _Reading:
    """Follows the values that are computed from the logits of one router.

    Args:
        steps: the program.
        index: the step at which experts are chosen.
        still_one: whether one expert is chosen before and after, and not as many times more.
    """

    def __init__(self, steps: Sequence[Step], index: int, still_one: bool = False) -> None:
        self._steps = steps
        self._more_chosen = 0 if still_one else 1  # the power of the number of copies
        choice = steps[index]
        (logits, *_), (values, *_) = choice.operands, choice.results
        axis = choice.params.get("axis", choice.params.get("reduction_dimension", -1)) % logits.ndim
        self._choice = choice
        self._experts = logits.dims[axis].root
        self._chosen = values.dims[axis].root
        self._leaves: set[int] = set()
        self._stacks: set[Dim] = set()
        self._known: dict[int, _Known] = {}
        self._uses: list[_Known] = []
        self._before = self._computed_from_experts(index, logits)

    def router(self) -> Router:
        """Returns what was found."""
        dispatch, gates, used = set[int](), set[int](), set[int]()
        for index, step in enumerate(self._steps):
            known = [self._known.get(id(value)) for value in step.operands]
            if any(one is not None for one in known):
                (gates if any(one and one.is_gate for one in known) else dispatch).add(index)
                before = len(self._uses)
                found = [*self._results(step, known)]
                if len(self._uses) > before:
                    used.add(index)
            else:
                found = [_Known(base=v) if id(v) in self._before else None for v in step.results]
            for value, one in zip(step.results, found, strict=False):
                if one is not None:
                    self._known[id(value)] = one
        dispatch |= self._positions(dispatch)
        powers = {
            use.power if use.power is None else use.power + self._more_chosen * use.tagged
            for use in self._uses
        }
        return Router(
            self._experts,
            self._chosen,
            frozenset(self._leaves),
            frozenset(dim.root for dim in self._stacks),
            powers.pop() if len(powers) == 1 else None,
            None,
            bool(self._uses) and all(use.is_one for use in self._uses),
            frozenset(dispatch),
            frozenset(gates),
            frozenset(used),
        )

    def _positions(self, dispatch: Collection[int]) -> set[int]:
        """Returns the steps that make constants for some others only, such as positions."""
        found, wanted = set[int](), set[int]()  # constants that other steps take, too
        for index, step in reversed(list(enumerate(self._steps))):
            is_constant = all(value.origin == "constant" for value in step.results)
            if is_constant and step.results and not any(id(v) in wanted for v in step.results):
                found.add(index)
            elif index not in dispatch:
                wanted.update(id(value) for value in step.operands)
        return found

    def _computed_from_experts(self, index: int, logits: Value) -> set[int]:
        """Returns the activations along experts that what is chosen from is computed from."""
        found = {id(logits)}
        for step in reversed(self._steps[:index]):
            if any(id(value) in found for value in step.results):
                along = [v for v in step.operands if self._has(v, self._experts)]
                found |= {id(value) for value in along if value.origin == "data"}
                parameters = [value for value in along if value.origin == "parameter"]
                self._leaves.update(*(value.leaves for value in parameters))
        return found

    def _has(self, value: Value, *dims: Dim) -> bool:
        return any(part in dims for dim in value.dims for part in parts_of(dim))

    def _results(self, step: Step, known: Sequence[_Known | None]) -> Iterator[_Known | None]:
        """Yields what is known of the results of a step that takes what follows from logits."""
        if step.name.startswith("scatter") and known[1] is not None:
            numbers = step.params["dimension_numbers"]
            written = (step.operands[0].dims[a] for a in numbers.scatter_dims_to_operand_dims)
            self._stacks |= {dim for dim in written if dim.size == self._experts.size}
        if step is self._choice:
            logits = known[0] or _UNKNOWN
            yield replace(logits, masked=False)
            yield _Known(is_gate=False)
        elif not any(one and one.is_gate for one in known):
            yield from self._choices(step, known)
        elif step.name == "sort":
            yield from (one and replace(one, base=None, is_one=False) for one in known)
        else:
            yield self._gates(step, known)

    def _choices(self, step: Step, known: Sequence[_Known | None]) -> Iterator[_Known | None]:
        """Yields what is known of the results if operands only say which experts are chosen."""
        others = [v for v, one in zip(step.operands, known, strict=True) if one is None]
        if step.name == "ragged_dot_general":
            numbers = step.params["ragged_dot_dimension_numbers"]
            self._stacks |= {step.operands[1].dims[a] for a in numbers.rhs_group_dimensions}
        elif step.name == "gather" and known[0] is None:
            axes = step.params["dimension_numbers"].start_index_map
            self._stacks |= {step.operands[0].dims[a] for a in axes}
        if any(value.origin != "constant" for value in others):
            yield from (None for _ in step.results)
            return
        pairs = any(one and one.pairs for one in known)
        if step.name == "eq" and others and self._has(step.results[0], self._chosen):
            taken = {dim.root for v, one in zip(step.operands, known) if one for dim in v.dims}
            self._stacks |= {dim for dim in step.results[0].dims if dim.root not in taken}
            pairs = True
        elif step.name in ("reduce_sum", "reduce_max", "reduce_or"):
            pairs = pairs and not self._sums(step.operands[0], step.params["axes"])
        yield from (_Known(is_gate=False, pairs=pairs) for _ in step.results)

    def _sums(self, value: Value, axes: Sequence[int]) -> int:
        """Returns along how many axes of experts, or of choices, a sum runs."""
        dims = [[*parts_of(value.dims[axis])] for axis in axes]
        places = ({self._chosen}, {self._experts, *(dim.root for dim in self._stacks)})
        return sum(any(part in place for along in dims for part in along) for place in places)

    # Values of gates ------------------------------------------------------------------------------

    def _gates(self, step: Step, known: Sequence[_Known | None]) -> _Known | None:
        """Returns what is known of the result of a step that takes gates, or what becomes gates."""
        pairs = list(zip(step.operands, known, strict=True))
        gates = [one for one in known if one and one.is_gate]
        first = gates[0]
        others = [value for value, one in pairs if one is None]
        is_foreign = any(value.origin == "data" for value in others)
        name, law = step.name, primitive(step.name)
        if name == "dot_general" and others:
            self._uses += gates
            return None
        if name == "mul" and is_foreign:
            self._uses += gates
            return None
        if any(one.power is None for one in gates):
            return _UNKNOWN
        if name == "mul":
            return self._product(step, pairs)
        if name == "dot_general":
            (axes, _), _ = step.params["dimension_numbers"]
            return self._summed(step.operands[0], axes, self._product(step, pairs))
        if name == "div":
            return self._quotient(step, pairs)
        if name == "reduce_sum":
            return self._summed(step.operands[0], step.params["axes"], first)
        if name in ("reduce_max", "reduce_min"):
            over = self._sums(step.operands[0], step.params["axes"])
            return _Known(first.power, tagged=first.tagged and not over, base=step.results[0])
        if name in ("add", "add_any", "sub", "max", "min", "select_n", "clamp"):
            return self._joined(step, pairs)
        if name == "scatter" and step.operands[0].number == 0 and known[2] is not None:
            return replace(known[2], masked=True, base=step.results[0], sum_of=None, is_one=False)
        is_alone = law.is_of_entries and is_linear(name, step.params)
        if is_alone or (name in MOVES and not law.joins):
            return self._negated(first) if name == "neg" else first
        power = first.power or 0.0
        if name == "integer_pow":
            power *= step.params["y"]
        elif law.degree is not None and law.takes == 1:
            power *= law.degree
        elif power or not law.is_of_entries or is_foreign:
            return _UNKNOWN
        keeps_zeros = law.zero
        return _Known(
            power,
            tagged=first.tagged,
            pairs=first.pairs and keeps_zeros,
            masked=first.masked and keeps_zeros,
            base=step.results[0],
        )

    def _negated(self, known: _Known) -> _Known:
        return replace(known, base=None, sum_of=None, is_one=False)

    def _product(self, step: Step, operands: Sequence[tuple[Value, _Known | None]]) -> _Known:
        """Returns what is known of a product of values that follow from logits, and others."""
        found = [one for _, one in operands if one]
        gates = [one for one in found if one.is_gate]
        known = _Known(
            sum(one.power or 0.0 for one in gates),
            tagged=any(one.tagged for one in found),
            pairs=any(one.pairs for one in found),
            masked=any(one.masked or not one.is_gate for one in found),
            base=step.results[0],
        )
        if len(gates) == 1 and len(found) == len(operands):  # the others say which are chosen
            known = replace(known, base=gates[0].base, is_one=gates[0].is_one)
        return known

    def _quotient(self, step: Step, operands: Sequence[tuple[Value, _Known | None]]) -> _Known:
        (_, over), (_, under) = operands
        above, below = (one.power or 0.0 if one else 0.0 for one in (over, under))
        is_one = bool(over and under and under.sum_of == (over.base, "chosen"))
        return _Known(
            above - below,
            tagged=any(one.tagged for one in (over, under) if one),
            pairs=bool(over and over.pairs),
            masked=bool(over and over.masked),
            base=step.results[0],
            is_one=is_one,
        )

    def _summed(self, value: Value, axes: Sequence[int], known: _Known) -> _Known:
        """Returns what is known of a sum over some axes."""
        over = self._sums(value, axes)
        if not over:
            return replace(known, base=None, sum_of=None, is_one=False)
        power = known.power or 0.0
        if known.pairs:  # of each choice there is one expert, so a sum along one axis moves entries
            moved = replace(known, pairs=False, masked=True)
            return moved if over == 1 else _Known(power + self._more_chosen, tagged=False)
        is_chosen = known.masked or self._sums_choices(value, axes)
        what = (known.base, "chosen" if is_chosen else "all")
        terms = self._more_chosen if is_chosen else 1
        return _Known(power + terms, tagged=False, base=value, sum_of=what)

    def _sums_choices(self, value: Value, axes: Sequence[int]) -> bool:
        return any(part is self._chosen for axis in axes for part in parts_of(value.dims[axis]))

    def _joined(self, step: Step, operands: Sequence[tuple[Value, _Known | None]]) -> _Known:
        """Returns what is known of a sum of terms, of the larger of two values, or of a choice."""
        operands = operands[1:] if step.name == "select_n" else operands
        gates = [one for _, one in operands if one and one.is_gate]
        if not gates:
            return _UNKNOWN
        power = gates[0].power or 0.0
        numbers = [v.number for v, one in operands if one is None]
        are_numbers = all(number is not None for number in numbers)
        negligible = all(n is not None and not _NEGLIGIBLE < abs(n) < float("inf") for n in numbers)
        if any(one.power != power for one in gates) or (power and not negligible):
            return _UNKNOWN
        only = len(gates) == 1 and are_numbers
        is_least = step.name == "max" and all(n is not None and n < _LEAST for n in numbers)
        is_kept = only and (negligible or is_least or step.name == "select_n")
        return _Known(
            power,
            tagged=any(one.tagged for one in gates),
            pairs=only and gates[0].pairs and all(number == 0 for number in numbers),
            masked=only and gates[0].masked and all(number == 0 for number in numbers),
            base=gates[0].base if is_kept else step.results[0],
            sum_of=gates[0].sum_of if is_kept else None,
        )
