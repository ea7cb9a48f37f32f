"""Chooses smaller heights, widths and lengths under convolutions and pooling: ``spatial_sizes``.

The rows that an image loses are a multiple of all strides together. Then each array behind it loses
its share of them, and each window lies as it did, seen from the border: an image of 224 rows that
loses 128 loses 4 of the 7 rows behind five strides of 2. Rows are lost until one more multiple
would leave a window without a place that is inside.
"""

from collections.abc import Iterator, Mapping
from fractions import Fraction
from math import floor, lcm, prod

from dogwood_jax._program.dims import Dim
from dogwood_jax._program.primitives.table import PRIMITIVES, primitive
from dogwood_jax._program.primitives.windows import Window
from dogwood_jax._widths.trace import Traced

# An axis of an input that is no parameter: the number of the input, and that of the axis.
InputAxis = tuple[int, int]
# What a dimension loses for each entry that an axis of an input loses.
_Share = tuple[InputAxis, Fraction]

# No dimension gets fewer entries, because an axis with one entry may be repeated.
_LEAST = 2


class _Unclear(Exception):
    """Raised if dimensions that must lose the same entries would not."""


def lost_entries(traced: Traced) -> Mapping[InputAxis, int]:
    """Returns how many entries each axis of inputs loses; empty if none can lose any."""
    try:
        shares, windows = _shares(traced), [*_windows(traced)]
        lost = dict[InputAxis, int]()
        for axis in dict.fromkeys(axis for axis, _ in shares.values()):
            parts = {dim: share for dim, (its, share) in shares.items() if its == axis}
            ends = [(dim.size, _LEAST, share) for dim, share in parts.items()]
            for window in windows:
                for dim, least in ((window.inside, window.spread), (window.outside, _LEAST)):
                    found = _share(dim, shares)
                    if found is not None and found[0] == axis:
                        ends.append((dim.size, least, found[1]))
            most = min((size - min(size, least)) / share for size, least, share in ends)
            step = lcm(*(share.denominator for *_, share in ends))
            lost[axis] = floor(most / step) * step
        return {axis: count for axis, count in lost.items() if count}
    except _Unclear:
        return {}


def spatial_sizes(traced: Traced, lost: Mapping[InputAxis, int]) -> dict[Dim, int]:
    """Returns the new sizes of dimensions; empty if they would not fit each other.

    Args:
        traced: the program as it was read.
        lost: how many entries each axis of inputs loses.
    """
    try:
        shares = _shares(traced) if lost else {}
    except _Unclear:
        return {}
    sizes = {dim: dim.size - lost.get(axis, 0) * share for dim, (axis, share) in shares.items()}
    if any(size.denominator > 1 or size < 1 for size in sizes.values()):
        return {}
    return {dim: int(size) for dim, size in sizes.items()}


def _windows(traced: Traced) -> Iterator[Window]:
    """Yields the windows of all steps, each axis on its own."""
    names = [name for name, its in PRIMITIVES.items() if its.windows is not None]
    for step in traced.trace.program.flat(names=names):
        windows = primitive(step.name).windows
        assert windows is not None
        yield from windows(step)


def _shares(traced: Traced) -> dict[Dim, _Share]:
    """Returns what each dimension without structure loses.

    Raises:
        _Unclear: if dimensions that must lose the same entries would not.
    """
    windows = [*_windows(traced)]
    inside = {window.inside.root for window in windows}
    shares = dict[Dim, _Share]()
    for number, value in enumerate(traced.trace.arguments):
        for axis, dim in enumerate(value.dims):
            if dim.root in inside and _share(dim, shares) is None:
                _lose(dim, ((number, axis), Fraction(1)), shares)
    for window in windows:
        found = _share(window.inside, shares)
        if found is not None:
            _lose(window.outside, (found[0], found[1] * window.ratio), shares)
    # Positions in an image, such as those to which an image is resized again.
    images = {dim.size: share for dim, share in shares.items() if share[1] == 1}
    for step in traced.trace.program.flat(names=["iota"]):
        for dim in step.results[0].dims:
            if dim.size in images and _share(dim, shares) is None:
                _lose(dim, images[dim.size], shares)
    for window in windows:  # a window may be read before what its input is added to
        found = _share(window.inside, shares)
        expected = None if found is None else (found[0], found[1] * window.ratio)
        if _share(window.outside, shares) != expected:
            raise _Unclear
    return shares


def _share(dim: Dim, shares: Mapping[Dim, _Share]) -> _Share | None:
    """Returns what a dimension loses, from what its parts lose; None if it loses nothing."""
    dim = dim.root
    if dim.kind is None:
        return shares.get(dim)
    found = [(part.root.size, share) for part in dim.parts if (share := _share(part, shares))]
    if not found:
        return None
    axes = {axis for _, (axis, _) in found}
    if len(axes) > 1 or (dim.kind == "product" and len(found) > 1):
        raise _Unclear
    times = dim.size // found[0][0] if dim.kind == "product" else 1
    return axes.pop(), times * sum((share for _, (_, share) in found), Fraction())


def _lose(dim: Dim, share: _Share, shares: dict[Dim, _Share]) -> None:
    """Records what a dimension loses: its longest pieces, or the first factor of a product."""
    dim = dim.root
    axis, count = share
    known = _share(dim, shares)
    if known is not None and dim.kind != "concat":
        if known != share:
            raise _Unclear
    elif dim.kind is None:
        shares[dim] = share
    elif dim.kind == "product":
        first, *rest = dim.parts
        _lose(first, (axis, count / prod(part.root.size for part in rest)), shares)
    else:
        if known is not None:
            if known[0] != axis:
                raise _Unclear
            count -= known[1]
        left = [part for part in dim.parts if _share(part, shares) is None]
        if count < 0 or (count and not left):
            raise _Unclear
        longest = [p for p in left if p.root.size == max(part.root.size for part in left)]
        for part in longest if count else ():
            _lose(part, (axis, count / len(longest)), shares)
