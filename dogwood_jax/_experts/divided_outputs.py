"""Which arrays of experts divide their outputs: ``divides_outputs``.

Where the gates of copies are as large as before, the outputs of all experts have to be divided by
the number of copies. A factor on some arrays does so if every output is a product with exactly one
of them, as ``down`` in ``gate * scale * (hidden @ down)``.
"""

from collections.abc import Sequence

from dogwood_jax._experts.gates import Router
from dogwood_jax._program.elementwise import is_linear
from dogwood_jax._program.moves import MOVES
from dogwood_jax._widths.values import Step, Value

_PRODUCTS = frozenset("mul dot_general ragged_dot_general".split())
_SAME = frozenset("reduce_sum cumsum enter take collect stop_gradient copy".split())
# Where operations that add or join arrays take these.
_TERMS = {"select_n": slice(1, None), "scatter": slice(0, 3, 2), "scatter-add": slice(0, 3, 2)}
_JOINS = frozenset("add add_any sub concatenate stack pad dynamic_update_slice".split()) | {*_TERMS}


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
        name, move = step.name, MOVES.get(step.name)
        is_alone = len(found) == 1 and is_linear(name, step.params)
        if name in _JOINS:
            values = step.operands[_TERMS.get(name, slice(None))]
            taken = {state(value) for value in values if value.number != 0}
        elif name in _PRODUCTS:
            taken = {(sum(n for n, _ in found), has_gate or any(gate for _, gate in found))}
        elif name in _SAME or (move and move.linear) or is_alone:
            taken = {found[0]}
        else:
            taken = {*found}
            has_gate = True
        if len(taken) > 1 or (has_gate and name not in _PRODUCTS):
            if any(n != int(gate) for n, gate in taken):
                return False
            taken = {(0, False)}
        (one,) = taken
        known.update((id(value), one) for value in step.results)
    return True


__all__ = ["divides_outputs"]
