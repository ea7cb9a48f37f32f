"""Constants that look computed from the size of a dimension, as 1 / sqrt(head_dim) is.

A network does not say where its constants come from. 0.176777 is not a round number, and neither
is 1 / 0.176777. Such a constant counts as computed from n if it is sqrt(n) or the like, perhaps
times a round number. A round constant counts only if it is sqrt(n) or the like itself.
"""

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from math import log, pi, prod, sqrt
from typing import NamedTuple

from dogwood_jax._program.primitives.table import primitive
from dogwood_jax._widths.dims import Dim, parts_of
from dogwood_jax._widths.reasons import Reason
from dogwood_jax._widths.values import SINGLE_PRECISION, Step, Value

# Numbers that models use for other reasons: momenta, slopes, halves; then those of activation
# functions such as gelu and selu, and of the derivative of the error function.
USUAL_NUMBERS = (
    *(2.0, 3.0, 6.0, 0.5, 1 / 3, 1 / 6, 0.1, 0.2, 0.3, 0.01, 0.02, 0.05, 0.001, 10.0, 100.0),
    *(sqrt(2), sqrt(1 / 2), sqrt(2 / pi), 0.044715, 3 * 0.044715, 1.702),
    *(1.0507009873554805, 1.6732632423543772, 1.7580993408473766),
    *(2 / sqrt(pi), 1 / sqrt(2 * pi)),
)

# Numbers that stand beside a root: Praxis scales queries by 1 / softplus(0) / sqrt(head_dim), and
# fast attention takes powers of two.
_BESIDE_ROOTS = (1 / log(2), log(2))

# What may lie between a sum of products and the constant that scales it.
_BEHIND_SUMS = frozenset("add reshape transpose convert_element_type reduce_precision".split())


def check_scales(scales: Iterable[Value]) -> list[float]:
    """Endangers dimensions of values that are scaled by constants computed from their size.

    Returns:
        The constants.
    """
    found = []
    for value in scales:
        number = value.scale
        blamed = to_blame(value, number, value.rounding)
        if blamed:
            found.append(abs(number))
        for dim in blamed:
            if not dim.root.hazards:
                dim.endanger(suspicion(number))
    return found


def suspicion(number: float) -> Reason:
    """Says what a dimension may have to do with a constant."""
    text = f"the constant {_spelled(number)} scales it and looks computed from its size"
    return Reason(text, "suspicion")


def ambiguity(number: float) -> Reason:
    """Says that a dimension could grow if it were known where a constant comes from."""
    text = f"whether the constant {_spelled(number)} follows from its size is not known"
    return Reason(text, "ambiguous")


def one_over_size(number: float) -> Reason:
    """Says that the larger model's number must follow from its size."""
    text = (
        f"a sum over it is multiplied by {_spelled(number)}, one over its size: the larger model "
        "must have one over its own size there; if it has another number, pass its function as "
        "target_apply="
    )
    return Reason(text, "must_stay")


def check_lone_scales(steps: Sequence[Step], explained: Sequence[float]) -> set[Dim]:
    """Endangers the dimensions of a sum of products if only a constant times the sum is used.

    1 / sqrt(4) is a half, and models use halves for many reasons. An activation function that
    multiplies a value by a half also reads the value elsewhere. If nothing else reads it, the half
    may come from a size. Other numbers, such as alpha / rank, are noted.

    Args:
        steps: the network's program.
        explained: constants that are known to follow from other dimensions.

    Returns:
        The dimensions, for which no recipe is known.
    """
    makers = {id(result): step for step in steps for result in step.results}
    readers = Counter(id(operand) for step in steps for operand in step.operands)
    found: dict[Dim, None] = {}
    for step in steps:
        powers = primitive(step.name).powers
        if powers is None:
            continue
        for value, other in (step.operands, step.operands[::-1]):
            number = abs(other.number or 0)
            if not number or value.number is not None:
                continue
            if powers == (1, 1):
                for dim in _averaged(value, number, other.rounding):
                    dim.note(one_over_size(number))
            summed = [d for w in _summed_over(value, makers, readers) for d in parts_of(w)]
            sets: Iterable[tuple[Dim, ...]] = ((d,) for d in summed)
            if value.origin == "parameter" and value.ndim > 1 and readers[id(value)] == 1:
                sets = _subsets([d.root for d in value.dims if d.size > 1])
            near = other.rounding
            usual = _is_any(number, USUAL_NUMBERS, near)
            blamed = (
                d for d in sets if usual and _is_any(number, _roots(prod(i.size for i in d)), near)
            )
            dims = next(blamed, ())
            for dim in dims:
                if not dim.hazards:
                    dim.endanger(suspicion(number))
                    found[dim] = None
            factor = number ** powers[1]
            if not _is_any(factor, explained, near) and set(summed).isdisjoint(dims):
                note = (
                    f"the constant {factor:.6g} scales what is summed over it: the larger model "
                    "must have the same; if it has another, pass its function as target_apply="
                )
                for dim in summed:
                    dim.note(Reason(note, "must_stay"))
    return {*found}


def _averaged(value: Value, number: float, rounding: float) -> Iterable[Dim]:
    """Returns what a value is the sum over, if a number turns the sum into a mean.

    ``jnp.mean`` divides by the size, and the size is that of the array.
    """
    summed = [dim for dim in dict.fromkeys(d.root for d in value.summed) if dim.size > 1]
    for group in (*([dim] for dim in summed), summed):
        if _is_any(number, (1 / prod(dim.size for dim in group),), rounding) and group:
            return [part for dim in group for part in parts_of(dim)]
    return ()


def _summed_over(
    value: Value, makers: Mapping[int, Step], readers: Mapping[int, int]
) -> Sequence[Dim]:
    """Returns the dimensions that a product with weights is summed over, if it is read once."""
    while readers[id(value)] == 1 and (step := makers.get(id(value))):
        data = [operand for operand in step.operands if operand.origin == "data"]
        if primitive(step.name).contracts and len(data) < 2:
            return value.contracted
        if step.name not in _BEHIND_SUMS or len(data) != 1:
            break
        (value,) = data
    return ()


def to_blame(value: Value, number: float, rounding: float = SINGLE_PRECISION) -> Sequence[Dim]:
    """Returns the dimensions from whose sizes a constant looks computed.

    Args:
        value: what was multiplied by the constant.
        number: the constant.
        rounding: the relative rounding error that it may have.
    """

    def is_any(number: float, others: Iterable[float]) -> bool:
        return _is_any(number, others, rounding)

    summed = [d for d in dict.fromkeys(d.root for d in value.summed) if d.size > 1]
    for group in (summed, *([d] for d in summed)):
        n = prod(d.size for d in group)
        if n > 1 and is_any(number, (n, 1 / n, n - 1, 1 / (n - 1))):
            return group  # a mean
    usual = is_any(number, USUAL_NUMBERS)
    suspects = _suspects(value)
    rooted = [s for s in suspects if (s.scores or not usual) and is_any(number, s.roots)]
    # If scores explain 1 / sqrt(64), no other reason is needed, even if there are 8 or 64 heads.
    scored = [s for s in rooted if s.scores]
    contracted = {d for whole in value.contracted for d in parts_of(whole)}
    found = [s.dim for s in scored if s.dim in contracted] or [s.dim for s in scored or rooted]
    if usual:
        return found
    found += [s.dim for s in suspects if (s.mixes or not scored) and is_any(number, s.sizes)]
    if not found and value.origin == "parameter":
        for fan_in in _subsets([s.dim for s in suspects]):
            n = prod(d.size for d in fan_in)
            if len(fan_in) > 1 and is_any(number, (*_roots(n), sqrt(2 / n))):
                found += fan_in
    if found or _is_round(number) or _is_round(1 / number):
        return found
    return [
        s.dim
        for s in suspects
        if any(
            _is_round(beside) or is_any(beside, _BESIDE_ROOTS)
            for beside in (number / f for f in (*_roots(s.size), *(s.sizes if s.mixes else ())))
        )
    ]


def _subsets(dims: Sequence[Dim]) -> Iterable[tuple[Dim, ...]]:
    """Returns all sets of some of the first few dimensions, such as the fan-in."""
    few = dims[:5]
    return itertools.chain.from_iterable(
        itertools.combinations(few, n) for n in range(1, len(few) + 1)
    )


class _Suspect(NamedTuple):
    """A dimension that a constant may be computed from.

    Attributes:
        dim: the dimension.
        mixes: whether its units are summed, with weights, before or after the constant is applied.
        scores: whether that makes scores of two activations.
    """

    dim: Dim
    mixes: bool
    scores: bool

    @property
    def size(self) -> int:
        return self.dim.size

    @property
    def roots(self) -> tuple[float, ...]:
        """The roots that the constant may be. Fourth roots only scale queries and keys.

        sqrt(2 / n) scales random features, and weights behind a relu.
        """
        return (*_roots(self.size)[: 4 if self.scores else 2], sqrt(2 / self.size))

    @property
    def sizes(self) -> tuple[float, ...]:
        """The sizes that the constant may be; n itself only where units are summed."""
        return (self.size, 1 / self.size) if self.mixes else (1 / self.size,)


def _suspects(value: Value) -> list[_Suspect]:
    found = {}
    for whole in value.contracted:
        for dim in parts_of(whole):
            found[dim] = _Suspect(dim, True, whole.root.bilinear or dim.bilinear)
    for axis, whole in enumerate(value.dims):
        for dim in parts_of(whole):
            scores = bool((whole.root.bilinear or dim.bilinear) and value.silencers_of(axis))
            found.setdefault(dim, _Suspect(dim, scores or value.origin == "parameter", scores))
    return [suspect for dim, suspect in found.items() if dim.size > 1]


def _roots(n: int) -> tuple[float, ...]:
    root = sqrt(n)
    return root, 1 / root, sqrt(root), 1 / sqrt(root)


def _spelled(number: float) -> str:
    """Returns a number with what it may have been computed from, as ``0.353553 (1 / sqrt(8))``."""
    if _is_round(number):
        return f"{number:.6g}"
    inverse = "1 / " if number < 1 else ""
    whole = number if number > 1 else 1 / number
    if inverse and _is_any(whole, [round(whole)]):
        return f"{number:.6g} (1 / {round(whole)})"
    n = round(whole**2)
    found = f"sqrt({n})" if _is_any(whole, [sqrt(n)]) and not _is_round(whole) else f"{whole:.6g}"
    return f"{number:.6g} ({inverse}{found})" if inverse or "sqrt" in found else f"{number:.6g}"


def _is_any(number: float, others: Iterable[float], rounding: float = SINGLE_PRECISION) -> bool:
    for other in others:  # not any(), whose generator takes longer than the comparisons
        if abs(number - other) <= rounding * other:
            return True
    return False


def _is_round(number: float) -> bool:
    """Whether two digits are enough to write a number."""
    return _is_any(number, (float(f"{number:.1e}"),))
