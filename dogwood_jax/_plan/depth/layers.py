"""Which layers of a deeper model are new: ``placements``.

Names and shapes decide, and often leave a choice. ``fillings`` fills the new layers.
"""

import itertools
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import jax
import jax.numpy as jnp

from dogwood_jax._base.draw import dtype_named
from dogwood_jax._base.problems import listed
from dogwood_jax._growth.edit import Edit, Fill, Layers
from dogwood_jax._growth.pairing import Pairing, split_number
from dogwood_jax._program.dims import DROPPED, LAYERS
from dogwood_jax._program.program import Program
from dogwood_jax._widths.layout import Product, Units, units_of
from dogwood_jax._widths.widths import Leaf, Widths

Shapes = Mapping[str, jax.ShapeDtypeStruct]
UNSHOWN = "cannot show that the deeper network computes what the old one does"


def placements(
    widths: Widths,
    larger: Program,
    *,
    rename: Mapping[str, str] | None = None,
    copy: bool = False,
    interleave: bool = False,
    wider: bool = False,
) -> Iterator[tuple[Edit, ...]]:
    """Yields the arrays of a deeper network that are new, moved, or have new layers, in its order.

    All new arrays and layers are free. The most likely choice comes first.

    Args:
        widths: the network's widths, with its program.
        larger: the deeper network's program.
        rename: see ``deepen``.
        copy: see ``deepen``.
        interleave: see ``deepen``.
        wider: whether old arrays may also be larger.

    Raises:
        ValueError: if arrays of the network have no counterpart in the deeper network.
    """
    problems, known, is_placed = list[str](), None, False
    for blocks in (False, True):
        problem = _Problem(widths, larger, wider=wider, interleave=interleave, blocks=blocks)
        if problem.stacked == known:
            break
        known = problem.stacked
        pairing = Pairing(problem.old, problem.new, fits=problem.fits, rename=rename or {})
        for places in pairing.candidates(problem.reading_order, larger.reading_order()):
            yield problem.described(places, copy=copy)
            is_placed = True
        problems = problems or pairing.problems
    if not is_placed:
        raise ValueError(listed(UNSHOWN, problems))


class _Problem:
    """The arrays of two networks.

    Attributes:
        old: the network's arrays by path.
        new: the deeper network's arrays by path.
        reading_order: the paths of the network's arrays in the order in which they are read.
        stacked: by path of an array with entries for each layer: the axis, and the old number of
            layers.
    """

    def __init__(
        self, widths: Widths, larger: Program, *, wider: bool, interleave: bool, blocks: bool
    ) -> None:
        assert widths.network is not None
        program = widths.network.traced.program
        self.old, self.new = _arrays(program), _arrays(larger)
        self.reading_order = program.reading_order()
        self._wider, self._interleave = wider, interleave
        counts = more_numbers(self.old, self.new)
        self.stacked: dict[str, tuple[int, int]] = {}
        self._scanned = set[str]()
        for leaf in widths.leaves:
            path, shape = leaf.path, self.new.get(leaf.path, leaf).shape
            if len(shape) != len(leaf.shape):
                continue
            axis, is_scanned = axis_of_layers(widths, leaf)
            if is_scanned:
                self._scanned.add(path)
            pairs = [*enumerate(zip(leaf.shape, shape, strict=True))]
            if axis is not None and leaf.shape[axis] < shape[axis]:
                self.stacked[path] = axis, leaf.shape[axis]
                continue
            for axis, (a, b) in pairs:
                may_count = not wider or None not in _reasons(widths, leaf, axis)
                shared = (n for n, m in sorted(counts) if a % n == 0 and a * m == b * n)
                if (a, b) in counts and may_count:
                    self.stacked[path] = axis, a
                elif blocks and path not in self.stacked and (n := next(shared, 0)):
                    self.stacked[path] = axis, n

    def fits(self, path: str, place: str) -> bool:
        """Whether the array at ``place`` in the deeper network can be the old one at ``path``."""
        old, new = self.old[path].shape, self.new[place].shape
        axis = self.stacked.get(path, (None,))[0] if path == place else None
        return len(old) == len(new) and all(
            a <= b if self._wider or i == axis else a == b
            for i, (a, b) in enumerate(zip(old, new, strict=True))
        )

    def described(self, places: Mapping[str, str], *, copy: bool) -> tuple[Edit, ...]:
        """Returns an edit for each array except old arrays that keep their path and layers.

        Args:
            places: new paths of the old arrays.
            copy: whether new arrays are copies, if there is a layer to copy.
        """
        sources, dtypes = {new: old for old, new in places.items()}, self._dtypes(places)
        orders, found = _orders(places, self.new), []
        for path, array in self.new.items():
            source = sources.get(path)
            edit = Edit(path, tuple(array.shape), str(dtypes[path]), source)
            if source is not None and source in self.stacked:
                edit = self._with_layers(edit, source, orders)
            if edit.layers or source is None:
                model = (source or _model(path, self.new, sources)) if copy else None
                fill = Fill("copy" if model else "free")
                edit = replace(edit, source=model or source, fill=fill)
            elif source == path:
                continue
            found.append(edit)
        return tuple(found)

    def _with_layers(
        self,
        edit: Edit,
        source: str,
        orders: Mapping[tuple[int, int], tuple[int, ...]],
    ) -> Edit:
        axis, layers = self.stacked[source]
        old, new = self.old[source].shape[axis], edit.shape[axis]
        if old == new:
            return edit
        each = max(old, 1) // max(layers, 1)
        old, new = old // each, new // each
        order = _order(old, new, self._interleave)
        if source not in self._scanned:
            order = orders.get((old, new), order)
        return replace(edit, layers=Layers(axis, order))

    def _dtypes(self, places: Mapping[str, str]) -> dict[str, jnp.dtype]:
        """Returns dtypes by new path: those of old arrays, and matching ones for new arrays."""
        dtypes = {path: array.dtype for path, array in self.new.items()}
        seen: dict[jnp.dtype, set[jnp.dtype]] = {}
        for path, place in places.items():
            seen.setdefault(dtypes[place], set()).add(self.old[path].dtype)
        for path, dtype in dtypes.items():
            if len(old := seen.get(dtype, {dtype})) == 1:
                (dtypes[path],) = old
        return dtypes | {place: self.old[path].dtype for path, place in places.items()}


def _arrays(program: Program) -> Shapes:
    return {path: array for path, array in program.arguments if path is not None}


def axis_of_layers(widths: Widths, leaf: Leaf) -> tuple[int | None, bool]:
    """Returns the axis of an array that counts layers, and whether a loop runs over the axis.

    Without a loop, the program indexes each layer. The axis is None if the array has none.
    """
    for axis, layout in enumerate(leaf.axes):
        reasons = _reasons(widths, leaf, axis)
        if reasons == {LAYERS} and isinstance(layout, Units):
            return axis, True
        if reasons == {DROPPED} and axis == 0 and not isinstance(layout, Product):
            return axis, False
    return None, False


def _reasons(widths: Widths, leaf: Leaf, axis: int) -> set[str | None]:
    """Returns the reasons why the widths along an axis are fixed; None for those that are not."""
    return {widths[units.width].fixed for units in units_of(leaf.axes[axis])}


def with_kinds(found: Sequence[Edit], larger: Widths) -> tuple[Edit, ...]:
    """Returns edits whose fillings hold how free values are drawn.

    Args:
        found: the edits.
        larger: the deeper network's widths.
    """
    return tuple(with_kind(e, larger.leaf(e.path)) if e.takes_fresh else e for e in found)


def _order(old: int, new: int, interleave: bool) -> tuple[int, ...]:
    """Returns, for each layer of a deeper stack, the old layer in its place, or -1."""
    if not interleave:
        return (*range(old), *[-1] * (new - old))
    places = {(i * new) // old: i for i in range(old)}
    return tuple(places.get(i, -1) for i in range(new))


def _orders(
    places: Mapping[str, str], new: Iterable[str]
) -> dict[tuple[int, int], tuple[int, ...]]:
    """Returns the orders of layers with numbered names, by the numbers of layers before and after.

    Args:
        places: new paths of the old arrays.
        new: the new paths.
    """
    sources: dict[str, dict[int, int]] = {}
    for path, place in places.items():
        for (kind, number), (other, now) in zip(_numbered(path), _numbered(place), strict=False):
            if kind == other:
                sources.setdefault(kind, {})[now] = number
    counted: dict[str, set[int]] = {}
    for kind, number in itertools.chain.from_iterable(map(_numbered, new)):
        counted.setdefault(kind, set()).add(number)
    found: dict[tuple[int, int], tuple[int, ...]] = {}
    for kind, its in sources.items():
        old = sorted(its.values())
        order = tuple(old.index(its[n]) if n in its else -1 for n in sorted(counted[kind]))
        if [n for n in order if n >= 0] == [*range(len(old))]:
            found.setdefault((len(old), len(order)), order)
    return found


def more_numbers(old: Iterable[str], new: Iterable[str]) -> set[tuple[int, int]]:
    """Returns the numbers of parts with numbered names, before and after, where they grow.

    Args:
        old: the paths of the network's arrays.
        new: the paths of the larger network's arrays.
    """
    found: list[dict[str, set[int]]] = [{}, {}]
    for numbers, paths in zip(found, (old, new), strict=True):
        for kind, number in itertools.chain.from_iterable(map(_numbered, paths)):
            numbers.setdefault(kind, set()).add(number)
    before, after = ({kind: len(its) for kind, its in numbers.items()} for numbers in found)
    return {(n, after[kind]) for kind, n in before.items() if n < after.get(kind, 0)}


def _numbered(path: str) -> Iterator[tuple[str, int]]:
    """Yields the parts of a path that end in a number, as the path before it, and the number."""
    parts = _split(path)
    for i, part in enumerate(parts):
        name, number = split_number(part)
        if number is not None:
            yield "/".join([*parts[:i], name]), number


def _model(path: str, shapes: Shapes, sources: Mapping[str, str]) -> str | None:
    """Returns the old array that a new one copies: that of the closest layer with equal arrays."""
    # A module has its arrays under the same path in each collection.
    start = 1 if any(p.startswith("params/") for p in shapes) else 0
    parts = path.split("/")
    for i in range(start, len(parts)):
        module = parts[start : i + 1]
        members = [p for p in map(_split, shapes) if p[start : i + 1] == module]
        siblings = {p[i] for p in map(_split, sources) if p[start:i] == module[:-1] and i < len(p)}
        for sibling in _numbered_alike(parts[i], siblings):
            copies = {"/".join(p): "/".join([*p[:i], sibling, *p[i + 1 :]]) for p in members}
            if all(c in sources and shapes[c].shape == shapes[p].shape for p, c in copies.items()):
                return sources[copies[path]]
    return None


def _numbered_alike(name: str, others: Iterable[str]) -> Iterator[str]:
    """Yields the names that differ in one number, such as ``block_1_up`` for ``block_2_up``.

    Smaller numbers come first, and the closest of these. If a name has several numbers, the last
    is tried first.
    """
    for found in reversed([*re.finditer(r"\d+", name)]):
        number, around = int(found[0]), (name[: found.start()], name[found.end() :])
        alike = re.compile(r"(\d+)".join(map(re.escape, around)))
        numbers = {other: int(m[1]) for other in others if (m := alike.fullmatch(other))}
        yield from sorted(numbers, key=lambda o: (numbers[o] > number, abs(numbers[o] - number), o))


def _split(path: str) -> list[str]:
    return path.split("/")


def with_kind(edit: Edit, leaf: Leaf) -> Edit:
    dtype = dtype_named(edit.dtype)
    if not jnp.issubdtype(dtype, jnp.inexact):
        is_key = jnp.issubdtype(dtype, jax.dtypes.prng_key)
        return replace(edit, fill=Fill("free", drawn="random" if is_key else "zeros"))
    into, out = (math.prod(leaf.shape[a] for a in axes) for axes in (leaf.fan_in, leaf.fan_out))
    return replace(edit, fill=Fill("free", drawn=leaf.kind, fans=(into, out)))
