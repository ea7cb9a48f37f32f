"""Contractions of several arrays, whatever their order: ``contractions_of``.

``einsum`` contracts three arrays or more in the order that takes the least work. This order depends
on their sizes, so two programs may contain different steps for the same sum. Here, steps that
belong together become one contraction: it says which axes of which arrays are summed over, and
which axes the result has.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

from dogwood_jax._widths.values import Step, Value

_PARTS = frozenset(("dot_general", "transpose"))


class Contraction(NamedTuple):
    """A sum of products of arrays, made by one step or by several that nothing else reads.

    Attributes:
        operands: the arrays, each with a label for every axis; equal labels go together.
        labels: the label of each axis of the result; what is summed over is not among them.
    """

    operands: list[tuple[Value, list[int]]]
    labels: list[int]

    def step(self, result: Value, name_of: Callable[[Value], str]) -> Step:
        """Returns the contraction as one step, the same for every order of computing it.

        Args:
            result: its result.
            name_of: returns the name of an array.
        """
        operands = sorted(self.operands, key=lambda operand: name_of(operand[0]))
        found: dict[int, int] = {}
        axes = tuple(
            tuple(found.setdefault(n, len(found)) for n in labels) for _, labels in operands
        )
        of = tuple(name_of(value) for value, _ in operands)
        params = {"operands": of, "axes": (axes, tuple(found[n] for n in self.labels))}
        name = "dot_general" if len(operands) > 1 else "transpose"
        return Step(name, [value for value, _ in operands], [result], params)


def contractions_of(steps: Sequence[Step]) -> dict[int, Contraction | None]:
    """Returns the contractions of a program, by the index of the step that ends each.

    Steps in the middle of a contraction have None.
    """
    readers = Counter(id(value) for step in steps for value in step.operands)
    read_by_part = Counter(
        id(value) for step in steps if step.name in _PARTS for value in step.operands
    )
    makers = {id(step.results[0]): step for step in steps if step.name in _PARTS}
    inner = {
        made
        for made in makers
        if readers[made] == read_by_part[made] == 1  # and so no output either
    }
    labels = iter(range(1 << 60))

    def expanded(value: Value, top: bool) -> tuple[list[tuple[Value, list[int]]], list[int]]:
        if not top and id(value) not in inner:
            own = [next(labels) for _ in value.dims]
            return [(value, own)], own
        step = makers[id(value)]
        operands, axes = expanded(step.operands[0], False)
        if step.name == "transpose":
            return operands, [axes[a] for a in step.params["permutation"]]
        others, beside = expanded(step.operands[1], False)
        (contract_x, contract_y), (batch_x, batch_y) = step.params["dimension_numbers"]
        same = {
            beside[b]: axes[a]
            for a, b in zip((*contract_x, *batch_x), (*contract_y, *batch_y), strict=True)
        }
        others = [(other, [same.get(n, n) for n in own]) for other, own in others]
        beside = [same.get(n, n) for n in beside]
        free_x = [n for a, n in enumerate(axes) if a not in {*contract_x, *batch_x}]
        free_y = [n for a, n in enumerate(beside) if a not in {*contract_y, *batch_y}]
        return operands + others, [*(axes[a] for a in batch_x), *free_x, *free_y]

    found: dict[int, Contraction | None] = {}
    for index, step in enumerate(steps):
        if step.name not in _PARTS:
            continue
        result = step.results[0]
        found[index] = None
        if id(result) not in inner:
            found[index] = Contraction(*expanded(result, True))
    return found
