"""Contractions of several arrays, whatever their order: ``contractions_of``.

``einsum`` contracts three arrays or more in the order that takes the least work. This order depends
on their sizes, so two programs may contain different steps for the same sum. Here, steps that
belong together become one contraction: it says which axes of which arrays are summed over, and
which axes the result has.

Where an axis has size 1 in one of the programs, ``einsum`` drops it there, or reshapes cut and join
axes otherwise. Then contractions are compared by the factors that axes are made of.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from itertools import chain, groupby, islice, permutations, product
from typing import Any, NamedTuple

from dogwood_jax._program.moves import KEEP_ORDER
from dogwood_jax._widths.values import Step, Value

_PARTS = frozenset(("dot_general", "transpose"))

_MOST_ORDERS = 24

# Returns what each axis of an array is made of.
FactorsOf = Callable[[Value], Sequence[Sequence[Hashable]]]
_Labels = Sequence[Sequence[int]]


class Contraction(NamedTuple):
    """A sum of products of arrays, made by one step or by several that nothing else reads.

    Attributes:
        operands: the arrays, each with a label for every factor of an axis; equal labels go
            together.
        labels: the labels of the result; what is summed over is not among them.
    """

    operands: list[tuple[Value, list[int]]]
    labels: list[int]

    @property
    def keeps_order(self) -> bool:
        """Whether nothing but the sizes of axes changes."""
        return [labels for _, labels in self.operands] == [self.labels]

    def step(
        self,
        result: Value,
        name_of: Callable[[Value], str],
        rank_of: Callable[[Value], tuple[Any, ...]],
        *,
        joined: bool,
    ) -> Step:
        """Returns the contraction as one step, the same for every order of computing it.

        Args:
            result: its result.
            name_of: returns the name of an array.
            rank_of: returns what arrays are sorted by.
            joined: whether labels that always follow each other count as one.
        """
        ranked = sorted(self.operands, key=lambda operand: rank_of(operand[0]))
        alike = [[*group] for _, group in groupby(ranked, lambda operand: rank_of(operand[0]))]
        # An array may occur more than once. The order with the least labels counts.
        orders = islice(product(*map(permutations, alike)), _MOST_ORDERS)
        labelled = ([*chain(*order)] for order in orders)
        axes, operands = min(
            ((_axes(operands, self.labels, joined), operands) for operands in labelled),
            key=lambda found: found[0],
        )
        of = tuple(name_of(value) for value, _ in operands)
        params = {"operands": of, "axes": axes}
        name = "dot_general" if len(operands) > 1 else "transpose"
        return Step(name, [value for value, _ in operands], [result], params)


def contractions_of(
    steps: Sequence[Step], factors_of: FactorsOf | None = None
) -> dict[int, Contraction | None]:
    """Returns the contractions of a program, by the index of the step that ends each.

    Steps in the middle of a contraction have None.

    Args:
        steps: the program.
        factors_of: returns what each axis of an array is made of. Then operations that only cut and
            join axes are parts of contractions. Without it, an axis is made of itself.
    """
    split = factors_of or _axes_of
    parts = {
        index: step
        for index, step in enumerate(steps)
        if step.name in (_PARTS if factors_of is None else _PARTS | KEEP_ORDER)
        if step.results[0] is not step.operands[0] and _fits(step, split)
    }
    reading = [step for step in steps if not step.results or step.results[0] not in step.operands]
    readers = Counter(id(value) for step in reading for value in step.operands)
    read_by_part = Counter(id(value) for step in parts.values() for value in step.operands)
    makers = {id(step.results[0]): step for step in parts.values()}
    inner = {
        made
        for made in makers
        if readers[made] == read_by_part[made] == 1  # and so no output either
    }
    numbers = iter(range(1 << 60))

    def expanded(value: Value, top: bool) -> tuple[list[tuple[Value, list[int]]], _Labels]:
        if not top and id(value) not in inner:
            own = [[next(numbers) for _ in axis] for axis in split(value)]
            return [(value, [*chain(*own)])], own
        step = makers[id(value)]
        operands, axes = expanded(step.operands[0], False)
        if step.name == "transpose":
            return operands, [axes[a] for a in step.params["permutation"]]
        if step.name != "dot_general":
            labels = chain(*axes)
            return operands, [[next(labels) for _ in axis] for axis in split(value)]
        others, beside = expanded(step.operands[1], False)
        (contract_x, contract_y), (batch_x, batch_y) = step.params["dimension_numbers"]
        same = {
            other: one
            for a, b in zip((*contract_x, *batch_x), (*contract_y, *batch_y), strict=True)
            for one, other in zip(axes[a], beside[b], strict=False)
        }
        others = [(other, [same.get(n, n) for n in own]) for other, own in others]
        free_x = [axis for a, axis in enumerate(axes) if a not in {*contract_x, *batch_x}]
        free_y = [axis for a, axis in enumerate(beside) if a not in {*contract_y, *batch_y}]
        batch = [axes[a] or beside[b] for a, b in zip(batch_x, batch_y, strict=True)]
        return operands + others, [*batch, *free_x, *free_y]

    found: dict[int, Contraction | None] = dict.fromkeys(parts)
    for index, step in parts.items():
        if id(step.results[0]) not in inner:
            operands, axes = expanded(step.results[0], True)
            found[index] = Contraction(operands, [*chain(*axes)])
    return found


def _axes_of(value: Value) -> Sequence[Sequence[Hashable]]:
    return [(axis,) for axis in range(value.ndim)]


def _fits(step: Step, split: FactorsOf) -> bool:
    """Whether a step leaves the factors of axes as they are."""
    if step.name == "transpose":
        return True
    if step.name != "dot_general":
        before, after = (chain(*split(values[0])) for values in (step.operands, step.results))
        return [*before] == [*after]
    x, y = map(split, step.operands)
    (contract_x, contract_y), (batch_x, batch_y) = step.params["dimension_numbers"]
    contracted, batch = zip(contract_x, contract_y, strict=True), zip(batch_x, batch_y, strict=True)
    # What is the same for all of an axis has no factors there.
    return all(len(x[a]) == len(y[b]) for a, b in contracted) and all(
        len(x[a]) == len(y[b]) or not (x[a] and y[b]) for a, b in batch
    )


def _axes(
    operands: Sequence[tuple[Value, list[int]]], labels: list[int], joined: bool
) -> tuple[tuple[tuple[int, ...], ...], tuple[int, ...]]:
    """Returns the labels of operands and of the result, counted as they come."""
    every = [*(labels for _, labels in operands), labels]
    found: dict[int, int] = {}
    *axes, last = (
        tuple(found.setdefault(n, len(found)) for n in along)
        for along in (_joined(every) if joined else every)
    )
    return tuple(axes), last


def _joined(every: Sequence[Sequence[int]]) -> list[list[int]]:
    """Returns lists of labels in which one stands for several that always follow each other."""
    following: dict[int, set[int | None]] = {}
    before: dict[int, set[int | None]] = {}
    for labels in every:
        for one, other in zip((None, *labels), (*labels, None), strict=True):
            if one is not None:
                following.setdefault(one, set()).add(other)
            if other is not None:
                before.setdefault(other, set()).add(one)
    left_out = {
        label
        for label, ones in before.items()
        if len(ones) == 1 and (one := next(iter(ones))) is not None and following[one] == {label}
    }
    return [[label for label in labels if label not in left_out] for labels in every]
