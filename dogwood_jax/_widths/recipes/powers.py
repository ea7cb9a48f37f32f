"""What each primitive makes of powers and new entries, for ``find``.

A rule takes a reading and a step and returns the states of its results; it raises ``NoRecipe`` for
what it cannot follow.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import isfinite

import numpy as np

from dogwood_jax._program.primitives.moves import MOVES
from dogwood_jax._program.primitives.table import functions, keeps_numbers, primitive
from dogwood_jax._widths.dims import Dim
from dogwood_jax._widths.recipes.reading import Along, NoRecipe, Reading, State, plus
from dogwood_jax._widths.values import Step, Value

Rule = Callable[[Reading, Step], Sequence[State]]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Registers a rule for primitives, one by one or several in a string."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(" ".join(names).split(), function))
        return function

    return register


def states_of(r: Reading, step: Step) -> Sequence[State]:
    """Returns the states of a step's results."""
    if any(map(r.names_units, step.operands)):
        return [_of_names(r, step)]
    return RULES.get(step.name, unchanged)(r, step)


def unchanged(r: Reading, step: Step) -> Sequence[State]:
    """Any function, if nothing that it takes or makes has the width, and its operands stay."""
    if any(r.axes(value) for value in (*step.operands, *step.results)):
        raise NoRecipe
    for value in step.operands:
        r.unchanged(value)
    return [State() for _ in step.results]


# Loops and outputs -------------------------------------------------------------------------------


@rule("scan while cond")
def _loop(r: Reading, step: Step) -> Sequence[State]:
    """What happens inside is recorded on its own."""
    return [r.state(value) for value in step.results]


@rule("output")
def _output(r: Reading, step: Step) -> Sequence[State]:
    r.unchanged(step.operands[0])
    r.orders |= {k.order for k in r.state(step.operands[0]).along.values() if k.rest == "zero"}
    return []


@rule("enter")
def _enter(r: Reading, step: Step) -> Sequence[State]:
    states = [r.state(value, moved=True) for value in step.operands]
    return [State(s.power, _settled(r, s), leaf=s.leaf) for s in states]


def _settled(r: Reading, state: State) -> dict[int, Along]:
    return {axis: r.settle(along) for axis, along in state.along.items()}


@rule("close")
def _close(r: Reading, step: Step) -> Sequence[State]:
    """What was assumed of a loop's state must hold after an iteration."""
    before, after = map(r.state, step.operands)
    r.equations.equate(before.power, after.power)
    assumed, found = _settled(r, before), _settled(r, after)
    for axis, along in assumed.items():
        weaker = {along.rest, "same"} if along.rest == "mean" else {along.rest}
        if found[axis].shared != along.shared or (
            along.rest != "free" and found[axis].rest not in weaker
        ):
            raise NoRecipe
    return []


@rule("take")
def _take(r: Reading, step: Step) -> Sequence[State]:
    """A slice of what a loop runs over."""
    state = r.state(step.operands[0], moved=True)
    if 0 in state.along:
        raise NoRecipe
    along = {axis - 1: along for axis, along in state.along.items()}
    return [State(state.power, along, leaf=state.leaf)]


@rule("collect")
def _collect(r: Reading, step: Step) -> Sequence[State]:
    """Results of all iterations, stacked."""
    state = r.state(step.operands[0])
    return [State(state.power, {axis + 1: along for axis, along in state.along.items()})]


# Axes --------------------------------------------------------------------------------------------


def _moved(
    r: Reading, x: Value, state: State, result: Value, origin: Mapping[int, int] | None = None
) -> State:
    """The state of a value whose axes were moved, cut or added.

    Args:
        r: the reading.
        x: the value before.
        state: its state.
        result: the value after.
        origin: for each axis of the result, the axis of ``x`` that it comes from, if known.
    """
    axes, old = r.axes(result), sorted(state.along)
    if origin is not None:
        sources = [origin.get(axis) for axis in axes]
        if {*sources} - {None, *old}:  # a padded axis is another one until it is cut again
            raise NoRecipe
    elif len(axes) == len(old):
        sources = [*old]
    elif not old or not axes:
        sources = [None for _ in axes]
    else:
        raise NoRecipe
    along = {
        axis: r.filled("same") if source is None else state.along[source]
        for axis, source in zip(axes, sources, strict=True)
    }
    statistic = None
    if state.statistic and origin is not None:
        places = (origin.get(axis) for axis in range(result.ndim))
        known = tuple(None if p is None else state.statistic.axes[p] for p in places)
        statistic = replace(state.statistic, axes=known)
    elif state.is_raw:
        raise NoRecipe
    return State(state.power, along, statistic, state.constants, state.leaf)


@rule(*(name for name, record in MOVES.items() if record.keeps))
def _keep(r: Reading, step: Step) -> Sequence[State]:
    """What keeps all entries, so that axes move, come or go."""
    x, (result,) = step.operands[0], step.results
    axes = step.axes
    origin = None if axes is None else axes.origin()
    return [_moved(r, x, r.state(x, raw=True, moved=True), result, origin)]


@rule("slice split rev unstack dynamic_slice")
def _slice(r: Reading, step: Step) -> Sequence[State]:
    """Units of the width are never cut apart, but other parts of its axes may be."""
    x = step.operands[0]
    state = r.state(x)
    if step.name == "dynamic_slice":
        for start in step.operands[1:]:
            r.unchanged(start)
        sizes = step.params["slice_sizes"]
        if any(sizes[axis] != x.dims[axis].size for axis in state.along):
            raise NoRecipe
    if step.name == "unstack":
        axis = step.params["axis"] % x.ndim
        if axis in state.along:
            raise NoRecipe
        along = {a - (a > axis): known for a, known in state.along.items()}
        return [State(state.power, along) for _ in step.results]
    if step.name == "rev" and set(step.params["dimensions"]) & set(state.along):
        raise NoRecipe
    kept = {a: a for a in range(x.ndim)}
    return [replace(_moved(r, x, state, result, kept), statistic=None) for result in step.results]


@rule("tile")
def _tile(r: Reading, step: Step) -> Sequence[State]:
    x, (result,) = step.operands[0], step.results
    state, reps = r.state(x), step.params["reps"]
    if any(reps[axis] != 1 for axis in state.along):
        raise NoRecipe
    origin = {axis: axis for axis, times in enumerate(reps) if times == 1}
    return [_moved(r, x, state, result, origin)]


@rule("concatenate")
def _concatenate(r: Reading, step: Step) -> Sequence[State]:
    (result,) = step.results
    common = r.equal_powers(step.operands)
    joined = step.params["dimension"]
    along = {}
    for axis in r.axes(result):
        terms = [v for v in step.operands if not r.is_zero(v) and v.dims[axis].size]
        states = [r.state(v) for v in terms]
        parts = [s.along[axis] for s in states if axis in s.along]
        if axis != joined and len(parts) < len(terms):
            raise NoRecipe
        along[axis] = r.sum(parts) if parts else r.filled("zero")
    return [State(common.power, along)]


@rule("stack")
def _stack(r: Reading, step: Step) -> Sequence[State]:
    (result,) = step.results
    common = r.equal_powers(step.operands)
    new = step.params["axis"] % result.ndim
    terms = [r.state(v) for v in step.operands if not r.is_zero(v)]
    along = {}
    for axis in r.axes(result):
        parts = [s.along[old] for s in terms if (old := axis - (axis > new)) in s.along]
        if axis == new or len(parts) < len(terms):
            raise NoRecipe
        along[axis] = r.sum(parts) if parts else r.filled("zero")
    return [State(common.power, along)]


@rule("pad")
def _pad(r: Reading, step: Step) -> Sequence[State]:
    x, filler = step.operands
    is_zero = filler.table is not None and not filler.table.array.any()  # a complex zero
    if filler.number != 0 and not is_zero:
        raise NoRecipe
    state = r.state(x)
    return [State(state.power, state.along)]


@rule("gather")
def _gather(r: Reading, step: Step) -> Sequence[State]:
    x, indices = step.operands
    r.unchanged(indices)
    if r.axes(indices):
        raise NoRecipe
    numbers, sizes = step.params["dimension_numbers"], step.params["slice_sizes"]
    batching = getattr(numbers, "operand_batching_dims", ())
    window = [a for a in range(x.ndim) if a not in {*numbers.collapsed_slice_dims, *batching}]
    place = dict(zip(window, numbers.offset_dims, strict=True))
    state = r.state(x)
    if any(a not in place or sizes[a] != x.dims[a].size for a in state.along):
        raise NoRecipe
    return [State(state.power, {place[a]: along for a, along in state.along.items()})]


def _of_names(r: Reading, step: Step) -> State:
    """What is made of integers that name units, if they still name units or only look them up."""
    if len(step.results) == 1:
        (result,) = step.results
        if isinstance(result.index, Dim) or isinstance(result.wrapped, Dim):
            return State(names_units=True)
        if step.name == "lt" and step.operands[1].number == 0:
            return State()  # no unit has a negative number
        if step.name == "gather" and not r.names_units(step.operands[0]):
            return _looked_up(r, step)
    raise NoRecipe


def _looked_up(r: Reading, step: Step) -> State:
    """Entries of units that were named, which are the same for all copies of a unit."""
    x, numbers = step.operands[0], step.params["dimension_numbers"]
    state, batching = r.state(x), getattr(numbers, "operand_batching_dims", ())
    (named, *others) = numbers.start_index_map
    is_whole = x.dims[named].root is r.width and named in numbers.collapsed_slice_dims
    if others or not is_whole or state.along[named] != r.filled("none"):
        raise NoRecipe
    window = [a for a in range(x.ndim) if a not in {*numbers.collapsed_slice_dims, *batching}]
    place = dict(zip(window, numbers.offset_dims, strict=True))
    if not {*state.along} - {named} <= place.keys():
        raise NoRecipe
    return State(state.power, {place[a]: k for a, k in state.along.items() if a != named})


# One operand -------------------------------------------------------------------------------------


@rule("reduce_precision", *functions(lambda law: law.same))
def _same(r: Reading, step: Step) -> Sequence[State]:
    return [r.state(value, raw=True, moved=True) for value in step.operands]


@rule(*functions(lambda law: law.linear and law.degree is not None))
def _linear(r: Reading, step: Step) -> Sequence[State]:
    state = r.state(step.operands[0])
    return [State(state.power, state.along, constants=state.constants)]


@rule("convert_element_type")
def _convert(r: Reading, step: Step) -> Sequence[State]:
    if keeps_numbers(step.params["new_dtype"]):
        return [r.state(step.operands[0], raw=True, moved=True)]
    return _nonlinear(r, step)


@rule("integer_pow", *functions(lambda law: law.degree is not None and not law.linear))
def _homogeneous(r: Reading, step: Step) -> Sequence[State]:
    state = r.state(step.operands[0])
    degree = primitive(step.name).degree
    degree = step.params["y"] if degree is None else degree
    return [_raised(r, step.operands[0], state, degree)]


def _raised(r: Reading, x: Value, state: State, degree: float) -> State:
    """A power of a value, or another function for which ``f(c x) = c**degree f(x)``."""
    # A root is infinitely steep at zero.
    steep = degree < 0 or 0 < degree < 1
    along = {a: _through(r, known, degree > 0, steep) for a, known in state.along.items()}
    for axis, known in along.items():
        if degree > 1 and known.rest in ("zero", "open"):
            along[axis] = known._replace(order=known.order * int(degree))
    statistic = r.squared(x, state) if degree == 2 else None
    return State(plus({}, state.power, degree), along, statistic, state.constants)


def _through(r: Reading, along: Along, zero_stays: bool, singular: bool = False) -> Along:
    """New entries behind a nonlinear function."""
    along = r.settle(along)
    if along.shared or (along.rest == "zero" and singular):
        raise NoRecipe
    if along.rest == "mean" or (along.rest == "zero" and not zero_stays):
        return Along("free")
    return along


_UNARY = functions(lambda law: law.takes == 1 and law.degree is None and not law.linear)


@rule(*(name for name in _UNARY if name not in ("integer_pow", "bitcast_convert_type")))
@rule("rem atan2 nextafter and or xor shift_left shift_right_logical shift_right_arithmetic")
@rule("select_if_vmap clamp")
def _nonlinear(r: Reading, step: Step) -> Sequence[State]:
    """Any other function. All that is known of it is whether it keeps zeros."""
    (result,), law = step.results, primitive(step.name)
    states = [r.state(value) for value in step.operands]
    for state in states:
        r.equations.equate(state.power, {})
    along = {}
    for axis in r.axes(result):
        parts = [_operand(r, v, s, axis) for v, s in zip(step.operands, states, strict=True)]
        moved = [_through(r, part, law.zero, law.pole) for part in parts]
        rests = {part.rest for part in moved}
        along[axis] = moved[0] if len(rests) == 1 else r.filled("free")
    return [State(along=along)]


def _operand(r: Reading, value: Value, state: State, axis: int) -> Along:
    """New entries of an operand along an axis of the result, where it may be broadcast."""
    return state.along.get(axis) or r.filled("zero" if r.is_zero(value) else "same")


# Sums --------------------------------------------------------------------------------------------


@rule("add add_any sub")
def _add(r: Reading, step: Step) -> Sequence[State]:
    x, y = step.operands
    (result,) = step.results
    if step.name == "sub" and (variance := _variance(r, x, y)):
        return [variance]
    r.follow(step, x, y)
    r.follow(step, y, x)
    shifted = None
    if step.name != "sub":
        shifted = r.with_offset(x, y.number) or r.with_offset(y, x.number)
    common = shifted or r.equal_powers((x, y), constants=step.name != "sub")
    along = {}
    for axis in r.axes(result):
        states = [(v, r.state(v, moved=shifted is not None)) for v in (x, y) if not r.is_zero(v)]
        parts = [_operand(r, v, state, axis) for v, state in states]
        along[axis] = r.sum(parts) if parts else r.filled("zero")
        if step.name == "sub" and _centred(r, x, y) and along[axis].rest == "mean":
            along[axis] = Along("zero", along[axis].shared)
    return [replace(common, along=along)]


def _centred(r: Reading, x: Value, y: Value) -> bool:
    """Whether y is the mean of x over the width."""
    state, mean = r.state(x), r.state(y).statistic
    if not mean or mean.kind != "mean" or mean.of is not state.array:
        return False
    for axis, dim in enumerate(x.dims):
        if axis in state.along or dim.size == 1:
            continue
        if not y.ndim or y.dims[axis].size == 1 or mean.axes[axis] != axis:
            return False
    return True


def _variance(r: Reading, x: Value, y: Value) -> State | None:
    """The mean of squares less the square of the mean, if that is what x and y are.

    A share s of the units are copies, and the rest are means. So the new mean of squares is
    s E[x^2] + (1 - s) E[x]^2. Less E[x]^2, this is s times the variance.
    """
    moment, mean = r.state(x, raw=True), r.state(y)
    if not moment.is_raw:
        return None
    a, b = moment.statistic, mean.statistic
    fits = a and b and (a.kind, b.kind) == ("moment", "squared mean")
    if not fits or a.of is not b.of or a.axes != b.axes:  # type: ignore[union-attr]
        raise NoRecipe
    r.equations.equate(moment.power, mean.power)
    return State(plus(mean.power, r.ratio))


@rule("max min")
def _extremum(r: Reading, step: Step) -> Sequence[State]:
    x, y = step.operands
    (result,) = step.results
    common = r.equal_powers((x, y), constants=True)
    along = {}
    for axis in r.axes(result):
        parts = [_through(r, _operand(r, v, r.state(v), axis), True) for v in (x, y)]
        along[axis] = parts[0] if parts[0].rest == parts[1].rest else r.filled("free")
    return [replace(common, along=along)]


@rule("eq ne lt le gt ge")
def _compare(r: Reading, step: Step) -> Sequence[State]:
    x, y = step.operands
    (result,) = step.results
    r.equal_powers((x, y))
    along = {}
    for axis in r.axes(result):
        parts = [_through(r, _operand(r, v, r.state(v), axis), True) for v in (x, y)]
        same = all(part.rest == "same" for part in parts)
        along[axis] = r.filled("same" if same else "free")
    return [State(along=along)]


@rule("select_n")
def _select_n(r: Reading, step: Step) -> Sequence[State]:
    which, *cases = step.operands
    (result,) = step.results
    chooser = r.state(which)
    r.equations.equate(chooser.power, {})
    if (number := which.bounds.number) is not None:
        return [r.state(cases[int(number)])]
    common = r.equal_powers(cases)
    along = {}
    for axis in r.axes(result):
        parts = [_operand(r, v, r.state(v), axis) for v in cases if not r.is_zero(v)]
        known = r.sum(parts) if parts else r.filled("zero")
        if len(parts) < len(cases) and known.rest not in ("zero", "none"):
            known = Along("free", known.shared)
        chosen = r.settle(_operand(r, which, chooser, axis))
        if chosen.shared:
            raise NoRecipe
        if chosen.rest not in ("same", "none") and known.rest != "zero":
            known = Along("free", known.shared)
        along[axis] = known
    return [replace(common, along=along)]


@rule("scatter-add")
def _scatter_add(r: Reading, step: Step) -> Sequence[State]:
    """Updates are added to indexed places, and the width lies along the axes of what is added."""
    x, indices, updates = step.operands
    r.unchanged(indices)
    numbers = step.params["dimension_numbers"]
    batching = getattr(numbers, "operand_batching_dims", ())
    window = [a for a in range(x.ndim) if a not in {*numbers.inserted_window_dims, *batching}]
    place = dict(zip(window, numbers.update_window_dims, strict=True))
    if r.axes(indices) or not {*r.axes(updates)} <= {*place.values()}:
        raise NoRecipe
    common = r.equal_powers((x, updates))
    along = {}
    for axis in r.axes(x):
        if axis not in place or updates.dims[place[axis]].size != x.dims[axis].size:
            raise NoRecipe
        terms = [(x, axis), (updates, place[axis])]
        parts = [_operand(r, v, r.state(v), a) for v, a in terms if not r.is_zero(v)]
        along[axis] = r.sum(parts) if parts else r.filled("zero")
    return [State(common.power, along)]


@rule("dynamic_update_slice")
def _dynamic_update_slice(r: Reading, step: Step) -> Sequence[State]:
    x, update, *starts = step.operands
    for start in starts:
        r.unchanged(start)
    common = r.equal_powers((x, update))
    along = {}
    for axis in r.axes(x):
        if update.dims[axis].size != x.dims[axis].size:
            raise NoRecipe
        parts = [_operand(r, v, r.state(v), axis) for v in (x, update) if not r.is_zero(v)]
        along[axis] = r.sum(parts) if parts else r.filled("zero")
        if len(parts) < 2 and along[axis].rest == "same":
            along[axis] = r.filled("free")
    return [replace(common, along=along)]


# Products ----------------------------------------------------------------------------------------


@rule("mul div")
def _mul(r: Reading, step: Step) -> Sequence[State]:
    x, y = step.operands
    (result,) = step.results
    sign = 1 if step.name == "mul" else -1
    if sign == 1 and (r.is_zero(x) or r.is_zero(y)):
        r.zero_values.add(id(result))
        return [State(along={axis: r.filled("zero") for axis in r.axes(result)})]
    if y.number is not None:
        return [_scaled(r, x, y, sign)]
    if x.number is not None:
        return [_scaled(r, y, x, 1) if sign == 1 else _divided(r, x, y)]
    for value in (x, y):
        is_number = value.origin == "constant" and all(dim.size == 1 for dim in value.dims)
        if is_number and not _is_turn(value):
            raise NoRecipe  # a number computed in a way that is not understood
    a, b = r.state(x), r.state(y)
    if sign == 1:
        a, b = r.written(x, a, b), r.written(y, b, a)
    else:
        b = replace(b, along={axis: _through(r, k, True, True) for axis, k in b.along.items()})
    along = {}
    for axis in r.axes(result):
        parts = [s.along[axis] for s in (a, b) if axis in s.along]
        along[axis] = r.product(parts) if parts else r.filled("same")
    if sign == 1:
        scales = [(a, r.state(y, moved=True)), (b, r.state(x, moved=True))]
        for scaled in (r.scaled(step, state, by) for state, by in scales):
            along = along if scaled is None else dict.fromkeys(along, scaled)
    constants = r.named((x, a), (y, b))
    statistic = r.squared(x, a) if sign == 1 and a.array is b.array else None
    power = plus(a.power, b.power, sign)
    if r.scales_of(x) or r.scales_of(y):
        r.wishes.append(power)  # so that all norms of a stream have the same epsilon
    if not along and "parameter" not in (x.origin, y.origin):
        r.wishes += [r.constants[i].power for i in constants]  # a norm that is not over this width
    return [State(power, along, statistic, constants)]


def _is_turn(value: Value) -> bool:
    """Whether a constant is a complex number of absolute value one, which scales nothing."""
    array = None if value.table is None else value.table.array
    return array is not None and np.iscomplexobj(array) and bool((np.abs(array) == 1).all())


def _divided(r: Reading, x: Value, y: Value) -> State:
    """A number divided by a value."""
    power = r.power_of_number(y, x, 1)
    return replace(_raised(r, y, r.state(y), -1.0), power=plus(power, r.state(y).power, -1))


def _scaled(r: Reading, x: Value, by: Value, sign: int) -> State:
    """A value times a number, or divided by it."""
    number = by.number
    if not number or not isfinite(number):
        raise NoRecipe
    state = r.state(x, raw=True)
    power = plus(state.power, r.power_of_number(x, by, sign))
    statistic = r.averaged(state.statistic, number**sign, by.rounding)
    if state.is_raw and statistic is None:
        raise NoRecipe
    return State(power, state.along, statistic, state.constants)


@rule("pow")
def _pow(r: Reading, step: Step) -> Sequence[State]:
    x, exponent = step.operands
    if exponent.number is None:
        return _nonlinear(r, step)
    return [_raised(r, x, r.state(x), exponent.number)]


@rule("dot_general ragged_dot_general")
def _sum_of_products(r: Reading, step: Step) -> Sequence[State]:
    x, y, *others = step.operands
    for value in others:
        r.unchanged(value)
    axes = step.axes
    assert axes is not None
    summed = {*axes.summed(0)}
    places = [dict(axes.sources(axis)) for axis in range(step.results[0].ndim)]
    return [
        _contraction(
            r,
            x,
            y,
            [(a, b) for a, b in axes.met() if a in summed],
            [(place.get(0), place.get(1)) for place in places],
        )
    ]


def _contraction(
    r: Reading,
    x: Value,
    y: Value,
    contracted: Sequence[tuple[int, int]],
    places: Sequence[tuple[int | None, int | None]],
) -> State:
    """A sum of products over pairs of axes; other axes of the result are of x, y or both."""
    a, b = r.state(x), r.state(y)
    power = plus(a.power, b.power)
    for value, other in ((x, y), (y, x)):
        if value.number is not None and value.number not in (0, 1):
            if r.power_of_number(other, value, 1):  # no program is asked for such a number
                raise NoRecipe
    hidden = set()  # operands of which only old entries count along their other axes
    for i, j in contracted:
        if i in a.along or j in b.along:
            parts = [k for k in (a.along.get(i), b.along.get(j)) if k is not None]
            r.mixed(power)
            power = plus(power, r.total(r.product(parts), x.dims[i]))
            reads = [k.shared or r.reads_units(k) for k in parts]
            settled = [
                r.settle(k) if is_reader else k for k, is_reader in zip(parts, reads, strict=True)
            ]
            silent = [k.rest == "zero" for k in settled]
            # Weights that are zero for the rest of the units they read are so for all they write.
            whole = [
                is_reader and is_zero for is_reader, is_zero in zip(reads, silent, strict=True)
            ]
            hidden |= {0} if not (silent[-1] or whole[0]) else set()
            hidden |= {1} if not (silent[0] or whole[-1]) else set()
    along = {}
    for place, axes in enumerate(places):
        parts = [
            s.along[k] for s, k in zip((a, b), axes, strict=True) if k is not None and k in s.along
        ]
        if not parts:
            continue
        along[place] = r.settle(r.product(parts)) if len(parts) > 1 else r.settle(parts[0])
        operands = {n for n, k in enumerate(axes) if k is not None}
        if operands & hidden and along[place].rest != "none":
            along[place] = Along("free", along[place].shared)
    return State(power, along)


@rule("conv_general_dilated")
def _conv(r: Reading, step: Step) -> Sequence[State]:
    x, kernel = step.operands
    numbers = step.params["dimension_numbers"]
    (x_batch, x_feature, *x_space), (out_k, in_k, *k_space) = numbers.lhs_spec, numbers.rhs_spec
    batch, feature, *_ = numbers.out_spec
    a, b = r.state(x), r.state(kernel)
    groups = step.params["feature_group_count"]
    if {*x_space} & {*a.along} or {*k_space} & {*b.along} or step.params["batch_group_count"] > 1:
        raise NoRecipe
    if groups == 1 or _is_within_groups(r, x, x_feature, kernel, in_k):
        pairs, places = [(x_feature, in_k)], {batch: (x_batch, None), feature: (None, out_k)}
    elif x.dims[x_feature].size == kernel.dims[out_k].size == groups:
        pairs, places = [], {batch: (x_batch, None), feature: (x_feature, out_k)}
    elif {x_feature} & {*a.along} or {out_k, in_k} & {*b.along}:
        raise NoRecipe
    else:
        pairs, places = [], {batch: (x_batch, None)}
    order = [places.get(axis, (None, None)) for axis in range(x.ndim)]
    return [_contraction(r, x, kernel, pairs, order)]


def _is_within_groups(r: Reading, x: Value, feature: int, kernel: Value, in_k: int) -> bool:
    """Whether a convolution of groups has as many groups as before, with several channels each."""
    per_group = kernel.dims[in_k]
    sizes = r.degree(x.dims[feature]), r.degree(per_group)
    return per_group.size > 1 and sizes[0] is not None and sizes[0] == sizes[1]


# Reductions --------------------------------------------------------------------------------------


@rule("reduce_sum")
def _reduce_sum(r: Reading, step: Step) -> Sequence[State]:
    (x,) = step.operands
    axes = {int(axis) for axis in step.params["axes"]}
    state = r.state(x)
    kept = [a for a in range(x.ndim) if a not in axes]
    over = sorted(axes & {*state.along})
    statistic = r.summed(x, state, axes)
    if statistic and statistic.kind == "squares":
        return [State(plus(state.power, r.size), statistic=statistic)]
    power = state.power
    if over:
        r.mixed(power)
    for axis in over:
        power = plus(power, r.total(state.along[axis], x.dims[axis]))
    along = {kept.index(a): known for a, known in state.along.items() if a in kept}
    if over:
        along = {a: r.filled("free", known.shared) for a, known in along.items()}
    return [State(power, along, statistic)]


@rule("reduce_max reduce_min argmax argmin reduce_and reduce_or reduce_xor reduce_prod")
def _reduce(r: Reading, step: Step) -> Sequence[State]:
    (x,) = step.operands
    axes = {int(axis) for axis in step.params["axes"]}
    state = r.state(x)
    along = {a: _through(r, known, True) for a, known in state.along.items()}
    over = [along[a] for a in along if a in axes]
    # Copies do not change a maximum or minimum, nor what is looked up where it is.
    extremum = step.name in ("reduce_max", "reduce_min")
    names_units = isinstance(step.results[0].index, Dim)
    if over and not (
        (extremum or names_units) and all(known.rest in ("none", "same") for known in over)
    ):
        raise NoRecipe
    if not extremum:
        r.equations.equate(state.power, {})
    kept = [a for a in range(x.ndim) if a not in axes]
    others = {kept.index(a): along[a] for a in along if a in kept}
    if over and names_units:
        if others or r.filling.has_rest:
            raise NoRecipe
        return [State(names_units=True)]
    return [State(state.power, others)]


@rule("fft")
def _fft(r: Reading, step: Step) -> Sequence[State]:
    (x,) = step.operands
    state = r.state(x)
    if any(axis >= x.ndim - len(step.params["fft_lengths"]) for axis in state.along):
        raise NoRecipe
    return [State(state.power, state.along)]


@rule("cumsum")
def _cumsum(r: Reading, step: Step) -> Sequence[State]:
    state = r.state(step.operands[0])
    if step.params["axis"] in state.along:
        raise NoRecipe
    return [State(state.power, state.along)]


@rule("reduce_window_sum reduce_window_max reduce_window_min")
def _reduce_window(r: Reading, step: Step) -> Sequence[State]:
    """Pooling: windows over the width are fixed already."""
    state = r.state(step.operands[0])
    linear = step.name == "reduce_window_sum"
    along = state.along if linear else {a: _through(r, k, True) for a, k in state.along.items()}
    return [State(state.power, along)]
