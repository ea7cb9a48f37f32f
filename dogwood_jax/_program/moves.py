"""Operations that move entries, take some of them or join arrays: the table ``MOVES``.

Functions of single entries have a table of their own, in ``elementwise``. To add an operation, add
its row. A property that the row does not state counts as not true.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Move:
    """What becomes of the entries of an operation's operands.

    Attributes:
        keeps: whether the result has every entry of the operand, once or several times, each at
            the same place along every axis that stays. A reversed axis is not kept.
        ordered: whether the entries also stay in their row-major order, so that axes of size 1 come
            and go, or axes become one or several.
        linear: whether the result of a sum is the sum of results.
        indexed: whether operands behind the first one say which entries are taken.
        pieces: whether it takes pieces of axes apart.
        stays: whether it cuts or joins along axes, but each axis keeps its index.
        joins: whether the result has entries of several operands.
    """

    keeps: bool = False
    ordered: bool = False
    linear: bool = False
    indexed: bool = False
    pieces: bool = False
    stays: bool = False
    joins: bool = False


MOVES: dict[str, Move] = {
    "broadcast_in_dim": Move(keeps=True, ordered=True, linear=True),
    "reshape": Move(keeps=True, ordered=True, linear=True, pieces=True),
    "squeeze": Move(keeps=True, ordered=True, linear=True, pieces=True),
    "transpose": Move(keeps=True, linear=True),
    "rev": Move(linear=True),
    "tile": Move(linear=True),
    # What takes some entries.
    "dynamic_slice": Move(linear=True, indexed=True, pieces=True, stays=True),
    "gather": Move(linear=True, indexed=True, pieces=True),
    "slice": Move(linear=True, pieces=True, stays=True),
    "split": Move(linear=True, pieces=True, stays=True),
    "unstack": Move(linear=True, pieces=True),
    # What takes the largest or smallest entries.
    "approx_top_k": Move(),
    "cummax": Move(),
    "cummin": Move(),
    "reduce_max": Move(),
    "reduce_min": Move(),
    "reduce_window_max": Move(),
    "reduce_window_min": Move(),
    "sort": Move(),
    "top_k": Move(),
    # What joins arrays.
    "concatenate": Move(joins=True, stays=True),
    "dynamic_update_slice": Move(joins=True, stays=True),
    "pad": Move(joins=True, stays=True),
    "scatter": Move(joins=True),
    "stack": Move(joins=True),
}

# Operations whose results have every entry of the operand, and among them the ones that also keep
# the entries in order.
KEEP_ENTRIES = frozenset(name for name, move in MOVES.items() if move.keeps)
KEEP_ORDER = frozenset(name for name, move in MOVES.items() if move.ordered)
