"""What keeps a width from growing to any size, where multiples are exact: ``obstacle``.

Between multiples, new units of a normalized width must be means of the old ones. Where units are
scaled one by one, or go through a function that is not linear, they cannot be.
"""

from collections.abc import Mapping, Sequence

from dogwood_jax._program.primitives.table import primitive
from dogwood_jax._widths.recipes.reading import Reading
from dogwood_jax._widths.values import Step, Value

_WRITES = "the norm that scales by {} writes some of its units"


def obstacle(reading: Reading, steps: Sequence[Step], makers: Mapping[int, Step]) -> str:
    """Returns what keeps new units from being means where a reading has failed, or nothing.

    Args:
        reading: the reading, for units of which some are means.
        steps: the network's program.
        makers: the step that makes a value, by its identity.
    """

    def is_free(value: Value) -> bool:
        state = reading.states.get(id(value))
        along = () if state is None else state.along.values()
        return any(new.rest == "free" and not new.shared for new in along)

    step, is_found = steps[reading.index], False
    while free := [v for v in step.operands if v.origin == "data" and is_free(v)]:
        maker = makers.get(id(free[0]))
        if maker is None or maker is step:
            return ""
        step, is_found = maker, True
    if not is_found:  # a sum over units that are zero where they should be means
        summed = _sum_before(step, makers)
        path = _norm(reading, summed, makers) if summed else ""
        return _WRITES.format(path) if path else ""
    if primitive(step.name).terms is not None:
        path = _norm(reading, step, makers)
        return _WRITES.format(path) if path else ""
    if primitive(step.name).powers is None:
        return f"{step.name} acts on its units one by one"
    arrays = [place.path for value in step.operands for place in reading.scales_of(value)]
    return f"{', '.join(arrays) or 'an activation'} scales its units one by one"


def _sum_before(step: Step, makers: Mapping[int, Step]) -> Step | None:
    """Returns the sum that a value of a norm was computed from, or None."""
    pending, seen = [step], {id(step)}
    while pending:
        step = pending.pop(0)
        if step.name == "reduce_sum":
            return step
        before = [maker for v in step.operands if (maker := makers.get(id(v))) is not None]
        pending += [maker for maker in before if id(maker) not in seen]
        seen |= {id(maker) for maker in before}
    return None


def _norm(reading: Reading, step: Step, makers: Mapping[int, Step]) -> str:
    """Returns the path of the scale of the norm that makes new units zero in a sum, or nothing."""
    pending: list[Step] = [step]
    while pending:
        step = pending.pop()
        for value in step.operands:
            state, maker = reading.states.get(id(value)), makers.get(id(value))
            along = () if state is None else state.along.values()
            if maker is None or maker is step or not any(new.rest == "zero" for new in along):
                continue
            if primitive(maker.name).powers == (1, 1) and (scale := _scale(reading, maker, makers)):
                return scale
            pending.append(maker)
    return ""


def _scale(reading: Reading, step: Step, makers: Mapping[int, Step]) -> str:
    """Returns the path of an array among the factors of a product, or nothing."""
    pending = [*step.operands]
    while pending:
        value = pending.pop()
        for place in reading.scales_of(value):
            if place.scales:
                return place.path
        maker = makers.get(id(value))
        if maker is not None and maker.name in ("mul", "broadcast_in_dim", "reshape"):
            pending += [v for v in maker.operands if v is not value]
    return ""
