"""Symbolic array dimensions: the algebra behind tracing.

A ``Dim`` stands for one dimension of one or more arrays while a program is traced. Operations that
force two dimensions to be equal *unify* them. A dimension may turn out to be structured, a
row-major product (a reshape made or cut it) or a concatenation; where two structured dimensions
meet, both are refined to their common structure. The parts of a structured dimension are strictly
smaller than the whole, so refinement ends and no dimension can contain itself.

Facts about a dimension, such as why it cannot grow, are recorded on it, and copied to its parts
when tracing is over.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from math import prod
from operator import mul
from typing import Literal, NamedTuple

from dogwood_jax._program.reasons import Reason

# Limits on the parts and the depth of a structure. Beyond these, it is a sliding window over
# positions, not a layout of units.
_MOST_PIECES = 48
_DEEPEST = 24

DROPPED = Reason("an operation drops it because its size is 1", "single")
REPEATED = Reason("an operation repeats it because its size is 1", "single")
PICKED = Reason("the largest of its units are picked", "picked")
PICKS = "it counts the entries that are picked as the largest"
DEVICES = "it counts the devices along an axis of a mesh"
SPATIAL = "it is a spatial dimension of a convolution or pooling, or follows from one"
LAYERS = "a loop runs over it: it counts layers or steps, not units"


class Dim:
    """One dimension, or, after unification, a reference to the dimension it equals."""

    __slots__ = (
        "_same_as",
        "bilinear",
        "fixed",
        "interface",
        "kind",
        "label",
        "notes",
        "ordered",
        "parts",
        "size",
        "summed",
    )

    def __init__(self, size: int, fixed: str | None = None) -> None:
        self.size = int(size)
        self.kind: Literal["product", "concat"] | None = None
        self.parts: tuple[Dim, ...] = ()
        # Without duplicates, in program order, so that messages come in that order.
        self.fixed: tuple[str, ...] = (fixed,) if fixed else ()
        self.notes: tuple[str, ...] = ()
        self.interface = False
        self.bilinear = False  # whether two activations are contracted over it
        self.summed = False  # whether a sum runs over it that no weights can silence
        self.ordered = False  # whether its entries are compared with each other, or multiplied
        self.label: str | None = None
        self._same_as: Dim | None = None

    @property
    def root(self) -> "Dim":
        """The dimension that stands for all that are unified with this one."""
        dim = self
        while dim._same_as is not None:
            if dim._same_as._same_as is not None:
                dim._same_as = dim._same_as._same_as
            dim = dim._same_as
        return dim

    def fix(self, reason: str) -> None:
        """Notes why the dimension cannot grow at all."""
        self.root.fixed = _joined(self.root.fixed, (reason,))

    def note(self, note: str) -> None:
        """Notes what a caller should know before growing the dimension."""
        self.root.notes = _joined(self.root.notes, (note,))

    def named(self, label: str) -> None:
        """Labels the dimension, if it has no label yet."""
        root = self.root
        root.label = root.label or label

    def is_same(self, other: "Dim") -> bool:
        return self.root is other.root


def product(dims: Iterable[Dim]) -> Dim:
    """Returns the row-major product of dimensions."""
    parts = tuple(d.root for d in dims if d.size != 1)
    return _structured("product", parts, prod(d.size for d in parts))


def concat(dims: Iterable[Dim]) -> Dim:
    """Returns the concatenation of dimensions."""
    parts = tuple(d.root for d in dims if d.size != 0)
    return _structured("concat", parts, sum(d.size for d in parts))


def _structured(kind: Literal["product", "concat"], parts: tuple[Dim, ...], size: int) -> Dim:
    if len(parts) == 1:
        return parts[0]
    whole = Dim(size)
    if parts:
        whole.kind, whole.parts = kind, parts
    return whole


def factors(dim: Dim) -> list[Dim]:
    """Returns the factors of a dimension, products within products resolved."""
    return _flat(dim.root, "product")


def pieces(dim: Dim) -> list[Dim]:
    """Returns the pieces of a dimension, concatenations within concatenations resolved."""
    return _flat(dim.root, "concat")


def atoms(dim: Dim) -> list[Dim]:
    """Returns the dimensions without structure that a dimension is made of."""
    dim = dim.root
    return [dim] if dim.kind is None else [a for part in dim.parts for a in atoms(part)]


def order(dims: Iterable[Dim]) -> None:
    """Notes that entries along dimensions are compared with each other, or multiplied."""
    for dim in dims:
        for atom in atoms(dim):
            atom.ordered = True


def spread_out(dim: Dim) -> Dim:
    """Returns the same layout in which only the last factor of a product is a concatenation.

    ``a * (b | c) * d`` is ``a * (b * d | c * d)``. Pieces of size 1 that cannot grow, such as the
    three of ``(q | k | v) * heads * head_dim``, are left out of the products.
    """
    dim = dim.root
    if dim.kind == "concat":
        return _structured("concat", tuple(map(spread_out, pieces(dim))), dim.size)
    for i, factor in enumerate(outer := factors(dim)):
        if factor.kind == "concat" and (inner := outer[i + 1 :]):
            n = prod(d.size for d in inner)
            branches = []
            for piece in pieces(factor):
                rows = [] if piece.size == 1 and piece.root.fixed else factors(piece)
                branches.append(_structured("product", (*rows, *inner), piece.size * n))
            last = _structured("concat", tuple(map(spread_out, branches)), factor.size * n)
            return _structured("product", (*outer[:i], last), dim.size)
    return dim


def parts_of(dim: Dim) -> Iterator[Dim]:
    """Yields a dimension, its parts, and the parts of these."""
    yield dim.root
    for part in dim.root.parts:
        yield from parts_of(part)


def _flat(dim: Dim, kind: str) -> list[Dim]:
    if dim.kind != kind:
        return [dim]
    return [part for inner in dim.parts for part in _flat(inner.root, kind)]


def unify(a: Dim, b: Dim, depth: int = 0) -> None:
    """Makes two dimensions of equal size the same, and refines both to a common structure."""
    a, b = a.root, b.root
    if a is b:
        return
    if a.size != b.size:
        for dim in (a, b):
            dim.fix(f"an operation without a rule for sizes {a.size} and {b.size} ties it")
        return
    if a.kind is None:
        a, b = b, a
    kinds, parts = (a.kind, b.kind), b.parts
    _merge(b, into=a)
    if kinds[1] is None:
        return
    other = Dim(a.size)
    other.kind, other.parts = kinds[1], parts
    depth += 1
    if depth > _DEEPEST:
        fits = False
    elif kinds == ("product", "product"):
        fits = _align_products(factors(a), factors(other), depth)
    elif kinds == ("concat", "concat"):
        fits = _align_concats(pieces(a), pieces(other), depth)
    elif kinds == ("product", "concat"):
        fits = _align_product_with_concat(factors(a), pieces(other), depth)
    else:
        fits = _align_product_with_concat(factors(other), pieces(a), depth)
    if not fits:
        reason = "reshapes or slices cut it in ways that do not fit together"
        a.fix(reason)
        other.fix(reason)
        for part in parts:
            part.fix(reason)


def _joined(known: tuple[str, ...], more: tuple[str, ...]) -> tuple[str, ...]:
    """Returns the entries of both tuples in order, without duplicates."""
    return (*known, *(one for one in more if one not in known)) if more else known


def _tell(into: Dim, dim: Dim) -> None:
    """Copies all facts about ``dim`` to ``into``."""
    into.fixed = _joined(into.fixed, dim.fixed)
    into.notes = _joined(into.notes, dim.notes)
    into.interface |= dim.interface
    into.bilinear |= dim.bilinear
    into.summed |= dim.summed
    into.ordered |= dim.ordered
    into.label = into.label or dim.label


def _merge(dim: Dim, into: Dim) -> None:
    _tell(into, dim)
    dim._same_as = into


def _align_products(a: list[Dim], b: list[Dim], depth: int) -> bool:
    """Unifies two row-major products of equal size; False if their cuts do not nest."""
    a, b = a[::-1], b[::-1]
    while a and b:
        x, y = a.pop().root, b.pop().root
        if x.size == y.size:
            unify(x, y, depth)
        elif x.size % y.size == 0:
            rest = Dim(x.size // y.size)
            unify(x, product((y, rest)), depth)
            a += factors(rest)[::-1]
        elif y.size % x.size == 0:
            rest = Dim(y.size // x.size)
            unify(y, product((x, rest)), depth)
            b += factors(rest)[::-1]
        else:
            return False
    return not a and not b


def _align_concats(a: list[Dim], b: list[Dim], depth: int) -> bool:
    """Unifies two concatenations of equal size, cutting pieces at each other's boundaries."""
    if len(a) + len(b) > _MOST_PIECES:
        return False
    a, b = a[::-1], b[::-1]
    while a and b:
        x, y = a.pop().root, b.pop().root
        if x.size == y.size:
            unify(x, y, depth)
        elif x.size > y.size:
            rest = Dim(x.size - y.size)
            unify(x, concat((y, rest)), depth)
            a += pieces(rest)[::-1]
        else:
            rest = Dim(y.size - x.size)
            unify(y, concat((x, rest)), depth)
            b += pieces(rest)[::-1]
    return not a and not b


def _align_product_with_concat(a: list[Dim], b: list[Dim], depth: int) -> bool:
    """Unifies a product with a concatenation by cutting the leading factors into pieces.

    Every piece of ``q | k | v`` is a whole number of rows of ``3 * heads * head_dim``.
    """
    for lead in range(1, len(a)):
        inner = prod(d.size for d in a[lead:])
        if any(piece.size % inner for piece in b):
            continue
        rows = [Dim(piece.size // inner) for piece in b]
        for row, piece in zip(rows, b, strict=True):
            if row.size == 1:
                row.fix("its rows are taken one by one")
            unify(piece, product((row, *a[lead:])), depth)
        unify(product(a[:lead]), concat(rows), depth)
        if all(row.size == 1 for row in rows):
            for dim in a[:lead]:
                dim.fix("its units are taken one by one")
        return True
    return False


def reshape(dims: Sequence[Dim], sizes: Sequence[int]) -> list[Dim]:
    """Returns the dimensions of an array after a row-major reshape."""
    if 0 in sizes:
        return [Dim(size) for size in sizes]
    result: list[Dim] = []
    pending = [f for dim in dims for f in factors(dim) if f.size != 1][::-1]
    ones, gone = _ones(dims, sizes)
    for size in sizes:
        if size == 1:
            result.append(ones.pop(0))
            continue
        taken: list[Dim] = []
        need = size
        while need > 1:
            f = pending.pop().root
            if f.kind == "product":
                pending += factors(f)[::-1]
            elif need % f.size == 0:
                taken.append(f)
                need //= f.size
            elif f.size % need == 0:
                head, rest = Dim(need), Dim(f.size // need)
                unify(f, product((head, rest)))
                pending += [rest, head]
            else:
                reason = "a reshape cuts across it"
                for dim in (*taken, f, *pending):
                    dim.fix(reason)
                return result + [Dim(s, reason) for s in sizes[len(result) :]]
        result.append(product(taken))
    for one in gone:
        one.fix(DROPPED)
    return result


def _ones(dims: Sequence[Dim], sizes: Sequence[int]) -> tuple[list[Dim], list[Dim]]:
    """Returns the dimensions of size 1 after a reshape, and the old ones that it drops.

    A reshape does not define which axis of size 1 becomes which. An old axis is matched with a new
    axis at the same place among the longer axes, otherwise at any place. If too many new axes fit,
    the last ones are matched.
    """
    old, new = _places_of_ones([dim.size for dim in dims]), _places_of_ones(sizes)
    found: dict[int, int] = {}
    for anywhere in (False, True):
        left: dict[int, list[int]] = {}
        for axis, place in old.items():
            if axis not in found.values():
                left.setdefault(0 if anywhere else place, []).append(axis)
        for place, axes in left.items():
            slots = [i for i, p in new.items() if i not in found and (anywhere or p == place)]
            found |= zip(slots[max(len(slots) - len(axes), 0) :], axes, strict=False)
    after = [dims[found[i]] if i in found else Dim(1) for i in new]
    return after, [dims[axis] for axis in old if axis not in found.values()]


def _places_of_ones(sizes: Iterable[int]) -> dict[int, int]:
    """Maps each axis of size 1 to the product of all sizes before it."""
    sizes = list(sizes)
    places = accumulate(sizes, mul, initial=1)
    return {axis: place for axis, (n, place) in enumerate(zip(sizes, places)) if n == 1}


class SplitOff(NamedTuple):
    """A factor of size 1 that a reshape splits off a dimension.

    Attributes:
        whole: the dimension.
        one: the factor.
        how: the sizes of all factors, such as ``"4 x 1"``.
        is_last: whether the last factor has size 1, which usually counts the units of a group.
        beside: the other dimensions of the array that are longer than 1.
    """

    whole: Dim
    one: Dim
    how: str
    is_last: bool
    beside: Sequence[Dim]


def ones_split_off(old: Sequence[Dim], new: Sequence[Dim]) -> Iterator[SplitOff]:
    """Yields the factors of size 1 that a reshape splits off dimensions.

    Args:
        old: the dimensions of an array before the reshape.
        new: its dimensions after it.
    """
    wholes = [dim for dim in old if dim.size > 1]
    starts = list(accumulate((dim.size for dim in wholes), mul, initial=1))[:-1]
    parts: list[list[Dim]] = [[] for _ in wholes]
    place = 1
    for dim in new:
        if wholes:
            parts[bisect_right(starts, place) - 1].append(dim)
        place *= dim.size
    for i, (whole, factors_of) in enumerate(zip(wholes, parts, strict=True)):
        sizes = [part.size for part in factors_of]
        ones = [part for part in factors_of if part.size == 1]
        made = not any(one is dim for one in ones for dim in old)
        if ones and made and prod(sizes) == whole.size:
            how = " x ".join(map(str, sizes))
            yield SplitOff(whole, ones[0], how, sizes[-1] == 1, wholes[:i] + wholes[i + 1 :])


def hand_down(dims: Iterable[Dim]) -> None:
    """Copies all facts about structured dimensions to their parts."""
    seen: dict[int, Dim] = {}
    stack = [dim.root for dim in dict.fromkeys(dims)]
    while stack:
        dim = stack.pop()
        if id(dim) not in seen:
            seen[id(dim)] = dim
            stack += [part.root for part in dim.parts]
    for dim in sorted(seen.values(), key=lambda d: -d.size):
        for part in dim.parts:
            _tell(part.root, dim)


def cut(dim: Dim, sizes: Sequence[int]) -> list[Dim]:
    """Cuts a dimension into consecutive pieces of these sizes."""
    if len(sizes) == 1:
        return [dim]
    parts = [Dim(size) for size in sizes]
    if len(pieces(dim)) + len(parts) > _MOST_PIECES:
        for d in (dim, *parts):
            d.fix("it is sliced into many pieces")
        return parts
    unify(dim, concat(parts))
    return parts


def offsets(sizes: Iterable[int]) -> list[int]:
    """Returns the start of each piece of these sizes, and the end of the last one."""
    return [0, *accumulate(sizes)]
