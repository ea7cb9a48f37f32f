"""Heads that a program computes each on its own: ``are_apart``.

If heads of keys and values are copied, each query head must be computed on its own, because it goes
with another copy then. A single head may be repeated for all query heads in the network. In the
larger model, each query head may have a copy of its own. What is made of copies alone, or of
repeated values alone, is the same for all heads.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from dogwood_jax._program.elementwise import ELEMENTWISE
from dogwood_jax._program.moves import KEEP_ENTRIES
from dogwood_jax._widths.dims import Dim, atoms, pieces
from dogwood_jax._widths.values import Step, Value

# Operations that compute each entry from entries at the same places, or hand values on.
_APART = KEEP_ENTRIES | frozenset(
    ("reduce_precision", "scan", "while", "cond", "enter", "close", *ELEMENTWISE)
)
# Operations that cut or join along axes, and so change the size of these axes.
_ALONG_OTHERS = frozenset("slice dynamic_slice dynamic_update_slice split pad concatenate".split())
# The ones among them that may take or join whole pieces of an axis, such as keys beside queries.
_IN_PIECES = frozenset("slice split pad concatenate".split())


def are_apart(steps: Sequence[Step], heads: Dim, groups: Collection[Dim]) -> bool:
    """Whether a program computes each query head on its own, until it sums over all of them."""
    heads, groups = heads.root, {group.root for group in groups}

    def count(dims: Iterable[Dim]) -> tuple[int, int]:
        """Returns how often heads and query heads that share one are along dimensions."""
        along = [atom for dim in dims for atom in atoms(dim)]
        return along.count(heads), sum(atom in groups for atom in along)

    def has_any(dim: Dim) -> bool:
        return count([dim]) != (0, 0)

    def is_apart(step: Step) -> bool:
        values = (*step.operands, *step.results)
        if not any(has_any(dim) for value in values for dim in value.dims):
            return True
        # Pairs of query heads that share a head are other pairs if fewer share one.
        counts = [count(value.dims) for value in values]
        if any(sharing > max(own, 1) for own, sharing in counts):
            return False
        if any(has_any(value.dims[axis]) for value in step.operands for axis in value.positional):
            return False
        if step.name in _APART:
            return True
        if step.name in ("take", "collect", "stack", "unstack"):
            (stack,) = step.operands if step.name in ("take", "unstack") else step.results
            # A loop runs along the first axis.
            return not has_any(stack.dims[step.params.get("axis", 0)])
        if step.name == "dot_general":
            (contracted, _), _ = step.params["dimension_numbers"]
        elif step.name.startswith("reduce_"):
            contracted = step.params["axes"]
        elif step.name in _ALONG_OTHERS:
            # All heads stay where they are. A part of them would be other ones among copies.
            return all(
                value.ndim == result.ndim
                and all(
                    _is_whole(step.name, a, b)
                    for a, b in zip(value.dims, result.dims, strict=True)
                    if has_any(a) or has_any(b)
                )
                for result in step.results
                for value in step.operands
                if value.ndim
            )
        else:
            return False
        own, sharing = count(step.operands[0].dims[axis] for axis in contracted)
        return own == sharing

    return all(map(is_apart, steps))


def _is_whole(name: str, before: Dim, after: Dim) -> bool:
    """Whether an operation leaves an axis as it is, or takes or joins whole pieces of it."""
    if before.is_same(after):
        return True
    one, other = ({id(piece.root) for piece in pieces(dim)} for dim in (before, after))
    return name in _IN_PIECES and (one >= other or one <= other)


@dataclass(frozen=True)
class SingleHeads:
    """A single head of keys and values in a network, and its copies in a larger one.

    Attributes:
        divided: dimensions of the larger program that are query heads sharing a copy, each with the
            dimension of the copies. If each query head has a copy of its own, both are the same
            dimension.
        copied: the larger program's values, by identity, that are the same for all query heads,
            where each has a copy of its own.
        heads: the network's dimensions of these query heads.
        repeated: the network's values, likewise, because the head is repeated for them.
    """

    divided: Mapping[Dim, Dim] = field(default_factory=dict)
    copied: frozenset[int] = frozenset()
    heads: frozenset[Dim] = frozenset()
    repeated: frozenset[int] = frozenset()


NO_SINGLE_HEADS = SingleHeads()


def made_of(
    copied: Iterable[Value], steps: Sequence[Step], heads: Collection[Dim]
) -> frozenset[int]:
    """Returns the values that are the same for all heads, because arrays of copies alone make them.

    Args:
        copied: the arrays of copies.
        steps: the program.
        heads: the dimensions of heads.
    """
    found = {id(value) for value in copied}
    for step in steps:
        along = [value for value in step.operands if _has_any(value, heads)]
        # What a loop changes is no copy.
        if along and step.name != "enter" and all(id(value) in found for value in along):
            found.update(id(value) for value in step.results)
    return frozenset(found)


def repeated_from(
    single: Iterable[Value], steps: Sequence[Step], heads: Collection[Dim]
) -> frozenset[int]:
    """Returns the values that are the same for all heads, because a single head is repeated.

    Args:
        single: the arrays of the single head.
        steps: the program.
        heads: the dimensions of heads.
    """
    if not all(are_apart(steps, dim, [dim]) for dim in heads):
        return frozenset()
    made = {id(value) for value in single}  # of a single head, and not repeated yet
    found = set[int]()
    for step in steps:
        along = [value for value in step.operands if _has_any(value, heads)]
        if along:
            if step.name != "enter" and all(id(value) in found for value in along):
                found.update(id(v) for v in step.results if _has_any(v, heads))
        elif any(id(value) in made for value in step.operands):
            repeats = step.name == "broadcast_in_dim"
            for result in step.results:
                if not _has_any(result, heads):
                    made.add(id(result))
                elif repeats:
                    found.add(id(result))
    return frozenset(found)


def _has_any(value: Value, heads: Collection[Dim]) -> bool:
    return any(atom in heads for dim in value.dims for atom in atoms(dim))
