"""Which axes of operands and results are the same: ``Axes``.

Axes have names, as in ``einsum("bk,kn->bn")``. An axis of the result lies along all axes of
operands that have a name in common with it. A name that only operands have is summed over, unless
it is ``"#"``: along such an axis, entries are chosen.

An axis may have two names. In a convolution of groups, the input features are summed over within a
group, and their groups are those of the output features.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

Names = frozenset[str]
Shape = Sequence[int]


class Axes(NamedTuple):
    """The names of axes.

    Attributes:
        operands: for each operand, the names of each axis.
        result: the names of each axis of the result.
    """

    operands: tuple[tuple[Names, ...], ...]
    result: tuple[Names, ...]

    def sources(self, axis: int) -> Iterator[tuple[int, int]]:
        """Yields the operands along which an axis of the result lies, each with its axis."""
        for place, names in enumerate(self.operands):
            for own, name in enumerate(names):
                if name & self.result[axis]:
                    yield place, own

    def summed(self, place: int) -> list[int]:
        """Returns the axes of an operand that the result lacks."""
        kept = frozenset[str]({"#"}).union(*self.result)
        return [axis for axis, names in enumerate(self.operands[place]) if not names & kept]


def _named(names: Sequence[str]) -> tuple[Names, ...]:
    return tuple(frozenset({name}) for name in names)


def of_entries(params: Mapping[str, Any], operands: Sequence[Shape], result: Shape) -> Axes:
    """Functions of single entries. An axis of size 1 beside a longer one has no name in common."""
    names = [f"{axis}" for axis in range(len(result))]
    return Axes(
        tuple(
            _named([name if n == m else f"1 {name}" for name, n, m in zip(names, shape, result)])
            for shape in operands
        ),
        _named(names),
    )


def contraction(params: Mapping[str, Any], operands: Sequence[Shape], result: Shape) -> Axes:
    """The result has the axes that both operands have, then those of the first, of the second."""
    return _contraction(params["dimension_numbers"], operands)


def _contraction(numbers: Any, operands: Sequence[Shape], aside: Sequence[int] = ()) -> Axes:
    (over_x, over_y), (batch_x, batch_y) = numbers
    x, y = ([f"{side}{axis}" for axis in range(len(s))] for side, s in zip("xy", operands))
    for kind, own, other in (("sum", over_x, over_y), ("both", batch_x, batch_y)):
        for number, (a, b) in enumerate(zip(own, other, strict=True)):
            x[a] = y[b] = f"{kind}{number}"
    both = [x[axis] for axis in batch_x]
    free = [*(name for name in x if name[0] == "x")]
    free += [name for axis, name in enumerate(y) if name[0] == "y" and axis not in aside]
    return Axes((_named(x), _named(y)), _named([*both, *free]))


def contraction_of_groups(
    params: Mapping[str, Any], operands: Sequence[Shape], result: Shape
) -> Axes:
    """Rows of the first operand, sorted by group, each times the matrix of its group."""
    numbers = params["ragged_dot_dimension_numbers"]
    groups = [*numbers.rhs_group_dimensions]
    (x, y), out = _contraction(numbers.dot_dimension_numbers, operands, groups)
    y = tuple(frozenset({"#"}) if axis in groups else name for axis, name in enumerate(y))
    return Axes((x, y, *(_named(["#"] * len(shape)) for shape in operands[2:])), out)


def convolution(params: Mapping[str, Any], operands: Sequence[Shape], result: Shape) -> Axes:
    """Windows of the first operand times the second, summed over a window and input features."""
    numbers = params["dimension_numbers"]
    x, kernel, out = ([frozenset[str]()] * len(result) for _ in range(3))
    x[numbers.lhs_spec[0]] = out[numbers.out_spec[0]] = frozenset({"batch"})
    kernel[numbers.rhs_spec[0]] = out[numbers.out_spec[1]] = frozenset({"features"})
    is_grouped = params["feature_group_count"] > 1
    kernel[numbers.rhs_spec[1]] = frozenset({"inputs"})
    x[numbers.lhs_spec[1]] = frozenset({"inputs", "features"} if is_grouped else {"inputs"})
    spaces = (numbers.lhs_spec[2:], numbers.rhs_spec[2:], numbers.out_spec[2:])
    for number, (a, b, c) in enumerate(zip(*spaces, strict=True)):
        x[a] = out[c] = frozenset({f"space{number}"})
        kernel[b] = frozenset({f"window{number}"})
    return Axes((tuple(x), tuple(kernel)), tuple(out))


def transposed(params: Mapping[str, Any], operands: Sequence[Shape], result: Shape) -> Axes:
    names = [f"{axis}" for axis in range(len(result))]
    return Axes((_named(names),), _named([names[axis] for axis in params["permutation"]]))


def broadcast(params: Mapping[str, Any], operands: Sequence[Shape], result: Shape) -> Axes:
    """An axis of size 1 that becomes longer is another one."""
    places = params["broadcast_dimensions"]
    new = [f"new {axis}" for axis in range(len(result))]
    for axis, (place, size) in enumerate(zip(places, operands[0])):
        if size == result[place]:
            new[place] = f"{axis}"
    return Axes((_named([f"{axis}" for axis in range(len(operands[0]))]),), _named(new))


def reshaped(params: Mapping[str, Any], operands: Sequence[Shape], result: Shape) -> Axes | None:
    """Axes of size 1 come and go. If axes become one or several, nothing is known of them."""
    order = params.get("dimensions")
    if order is None or len(order) != len(operands[0]) or "new_sizes" not in params:
        order = range(len(operands[0]))  # of ``squeeze``, they are those that go
    long = [axis for axis in order if operands[0][axis] != 1]
    if [operands[0][axis] for axis in long] != [size for size in result if size != 1]:
        return None
    left = iter(long)
    names = [f"{next(left)}" if n != 1 else f"new {axis}" for axis, n in enumerate(result)]
    return Axes((_named([f"{axis}" for axis in range(len(operands[0]))]),), _named(names))


def reduced(params: Mapping[str, Any], operands: Sequence[Shape], result: Shape) -> Axes:
    names = [f"{axis}" for axis in range(len(operands[0]))]
    kept = [name for axis, name in enumerate(names) if axis not in params["axes"]]
    return Axes((_named(names),), _named(kept))
