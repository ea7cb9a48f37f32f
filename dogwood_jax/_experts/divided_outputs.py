"""Which arrays of experts divide their outputs: ``divides_outputs``.

Where the gates of copies are as large as before, the outputs of all experts have to be divided by
the number of copies. A factor on some arrays does so if every output is a product with exactly one
of them, as ``down`` in ``gate * scale * (hidden @ down)``.
"""

from collections.abc import Sequence

from dogwood_jax._experts.gates import Router
from dogwood_jax._program.primitives.table import is_linear, primitive
from dogwood_jax._widths.values import Step, Value

# Steps into loops, inside of them, and out of them.
_SAME = frozenset("enter take collect".split())


def divides_outputs(steps: Sequence[Step], router: Router, leaves: frozenset[int]) -> bool:
    """Whether a factor on some arrays is a factor on the outputs of experts.

    Args:
        steps: the program.
        router: the choice of experts.
        leaves: the numbers of these arrays.
    """
    # For each value how many of the arrays it is a product with, and whether it has its gate.
    known: dict[int, tuple[int, bool]] = {}

    def state(value: Value) -> tuple[int, bool]:
        is_one = value.origin == "parameter" and bool(value.leaves & leaves)
        return known.get(id(value), (int(is_one), False))

    for index, step in enumerate(steps):
        found, has_gate = [*map(state, step.operands)], index in router.uses
        if not has_gate and all(one == (0, False) for one in found):
            continue
        name, record = step.name, primitive(step.name)
        is_alone = len(found) == 1 and is_linear(name, step.params)
        is_product = record.contracts or record.powers == (1, 1)
        if record.terms is not None:
            values = step.operands[record.terms]
            taken = {state(value) for value in values if value.number != 0}
        elif is_product:
            taken = {(sum(n for n, _ in found), has_gate or any(gate for _, gate in found))}
        elif name in _SAME or record.linear_in_first or is_alone:
            taken = {found[0]}
        else:
            taken = {*found}
            has_gate = True
        if len(taken) > 1 or (has_gate and not is_product):
            if any(n != int(gate) for n, gate in taken):
                return False
            taken = {(0, False)}
        (one,) = taken
        known.update((id(value), one) for value in step.results)
    return True


__all__ = ["divides_outputs"]
