"""What a checkpoint calls the network's arrays: ``Table``.

A row says which leaf a tensor is, and how it lies::

    {"model.layers.{i}.mlp.up_proj.weight": ("layers/{i}/mlp/up_proj/kernel", "transpose")}

``{i}`` stands for a number, the same on both sides. The second text says how the tensor becomes the
leaf: ``"transpose"``, or its axes on both sides of an arrow. ``"(n h:128) d -> d n h"`` takes the
first axis apart into n times 128 and moves it behind the other. A number in square brackets behind
the leaf's path says that the tensor is one entry along the leaf's first axis:
``"layers/{i}/mlp/up_proj[{e}]"`` stacks the tensors of all experts.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

from dogwood_jax._base.arguments import MAPPING, expect
from dogwood_jax._base.problems import listed
from dogwood_jax.checkpoint.errors import CheckpointError
from dogwood_jax.checkpoint.tensors import Tensor

Rows = Mapping[str, str | Sequence[str]]

_NUMBER = re.compile(r"\{([A-Za-z_]\w*)\}")
_EXPECTED = "expected 'transpose' or axes such as '(n h:128) d -> d n h'"
_AXIS = re.compile(r"\(([^()]*)\)|([^()\s]+)")


@dataclass(frozen=True)
class Layout:
    """How a tensor becomes a leaf, or an entry of a stacked leaf.

    Attributes:
        groups: for each axis of the tensor, the axes of the leaf that it is the product of.
        sizes: sizes of axes of the leaf that the tensor's shape does not tell, by axis.
    """

    groups: tuple[tuple[int, ...], ...]
    sizes: tuple[tuple[int, int], ...] = ()

    @property
    def order(self) -> tuple[int, ...]:
        """The axes of the leaf in the order of the tensor."""
        return tuple(axis for group in self.groups for axis in group)

    def leaf_shape(self, tensor: Sequence[int]) -> tuple[int, ...]:
        """Returns the shape of the leaf for a shape of the tensor."""
        sizes = dict(self.sizes)
        for group, size in zip(self.groups, tensor, strict=True):
            known = prod(sizes[axis] for axis in group if axis in sizes)
            unknown = [axis for axis in group if axis not in sizes]
            if size != known * (size // max(known, 1) if unknown else 1):
                raise ValueError(f"expected a multiple of {known} in shape {tuple(tensor)}")
            sizes |= {axis: size // max(known, 1) for axis in unknown}
        return tuple(sizes[axis] for axis in sorted(sizes))

    def tensor_shape(self, leaf: Sequence[int]) -> tuple[int, ...]:
        """Returns the shape of the tensor for a shape of the leaf."""
        return tuple(prod(leaf[axis] for axis in group) for group in self.groups)


@dataclass(frozen=True)
class StoredLeaf:
    """A leaf as a checkpoint holds it.

    Attributes:
        path: its path.
        shape: its shape.
        tensors: the tensor that holds it, or those that it is stacked of.
        layout: how the tensor becomes the leaf; for a stack, how a tensor becomes an entry of it.
        stacked: whether each tensor is an entry along the leaf's first axis.
    """

    path: str
    shape: tuple[int, ...]
    tensors: tuple[Tensor, ...]
    layout: Layout
    stacked: bool = False

    @property
    def dtype(self) -> str:
        """Its dtype as JAX calls it."""
        return self.tensors[0].dtype

    @property
    def order(self) -> tuple[int, ...]:
        """The axes of the leaf as they lie in the file; a stack's entries follow each other."""
        if not self.stacked:
            return self.layout.order
        return (0, *(axis + 1 for axis in self.layout.order))


class Table:
    """The names of tensors and leaves, from one to the other.

    Args:
        rows: the rows; None if a tensor's name is the leaf's path, joined by ``/`` or ``.``.
        names: the names of the checkpoint's tensors.

    Raises:
        ValueError: if rows say what they cannot, all of them in one message.
    """

    def __init__(self, rows: Rows | None, names: Iterable[str]) -> None:
        self._separator = "/" if any("/" in name for name in names) else "."
        self._rows: list[_Row] | None = None
        if rows is None:
            return
        expect("checkpoint", names=(MAPPING, rows))
        self._rows, problems, seen = [], list[str](), dict[str, str]()
        for tensor, leaf in rows.items():
            try:
                row = _row(tensor, leaf)
            except ValueError as error:
                problems.append(f"{tensor}: {error}")
                continue
            if (other := seen.setdefault(row.address.text, tensor)) != tensor:
                problems.append(f"{tensor}: {other} has the leaf {row.address.text}, too")
            self._rows.append(row)
        if problems:
            raise ValueError(listed("names= cannot be read", problems))

    def leaves(self, tensors: Iterable[Tensor]) -> dict[str, StoredLeaf]:
        """Returns the leaves that tensors hold, by path.

        Raises:
            CheckpointError: if tensors do not fit the table, all of them in one message.
        """
        # What is known of each leaf: the tensor that holds it, or those of its entries.
        held, problems = dict[str, dict[int | None, StoredLeaf]](), list[str]()
        for tensor in tensors:
            try:
                address, layout = self._address(tensor)
                path, entry = _split(address)
                leaf = StoredLeaf(path, layout.leaf_shape(tensor.shape), (tensor,), layout)
            except ValueError as error:
                problems.append(f"{tensor.name}: {error}")
                continue
            if other := held.setdefault(path, {}).get(entry):
                problems.append(f"{tensor.name}: {address} is {other.tensors[0].name} already")
            held[path][entry] = leaf
        leaves = {}
        for path, entries in held.items():
            if None in entries and len(entries) == 1:
                leaves[path] = entries[None]
                continue
            stack = [entries[n] for n in range(len(entries)) if n in entries]
            alike = {(leaf.shape, leaf.dtype, leaf.layout) for leaf in stack}
            if len(stack) < len(entries) or len(alike) > 1:
                problems.append(
                    f"{path}: expected tensors of one shape and dtype for its entries 0 to "
                    f"{len(entries) - 1}; found "
                    + ", ".join(f"[{n}] {leaf.dtype}{leaf.shape}" for n, leaf in entries.items())
                )
                continue
            whole = (len(stack), *stack[0].shape)
            tensors = tuple(leaf.tensors[0] for leaf in stack)
            leaves[path] = StoredLeaf(path, whole, tensors, stack[0].layout, stacked=True)
        for path in leaves:
            parts = path.split("/")
            above = ("/".join(parts[:n]) for n in range(1, len(parts)))
            problems += [f"{path}: {one} is a tensor itself" for one in above if one in leaves]
        if problems:
            raise CheckpointError(listed("the tensors cannot be a network's leaves", problems))
        return leaves

    def stored(self, path: str, shape: tuple[int, ...], dtype: str) -> StoredLeaf:
        """Returns how a checkpoint holds a leaf of this shape, in files that are not said.

        Raises:
            ValueError: if no row says what it is called.
        """
        stacked = (named := self._name(path, len(shape))) is None and bool(shape)
        if stacked:
            every = [self._name(f"{path}[{n}]", len(shape) - 1) for n in range(shape[0])]
        else:
            every = [named]
        pieces = [piece for piece in every if piece is not None]
        if not pieces or len(pieces) < len(every):
            raise ValueError(f"{path}: no row of names= says what it is called; add one")
        layout = pieces[0][1]
        inner = layout.tensor_shape(shape[1:] if stacked else shape)
        tensors = tuple(Tensor(name, dtype, inner, "") for name, _ in pieces)
        return StoredLeaf(path, shape, tensors, layout, stacked)

    def _address(self, tensor: Tensor) -> tuple[str, Layout]:
        """Returns which leaf, or which entry of a stack, a tensor is."""
        if self._rows is None:
            path = tensor.name.replace(self._separator, "/")
            if not all(path.split("/")):
                raise ValueError(f"expected a name without empty parts between {self._separator!r}")
            return path, _plain(len(tensor.shape))
        for row in self._rows:
            if (numbers := row.tensor.numbers(tensor.name)) is not None:
                layout = row.layout or _plain(len(tensor.shape))
                if len(layout.groups) != len(tensor.shape):
                    raise ValueError(f"expected {len(layout.groups)} axes, found {tensor.shape}")
                return row.address.filled(numbers), layout
        raise ValueError("no row has this name; add one")

    def _name(self, address: str, ndim: int) -> tuple[str, Layout] | None:
        """Returns the tensor of a leaf, or of an entry of a stack, that has so many axes."""
        if self._rows is None:
            return address.replace("/", self._separator), _plain(ndim)
        for row in self._rows:
            if (numbers := row.address.numbers(address)) is not None:
                return row.tensor.filled(numbers), row.layout or _plain(ndim)
        return None


class _Pattern:
    """A text in which ``{i}`` stands for a number."""

    def __init__(self, text: str) -> None:
        self.text = text
        parts = _NUMBER.split(text)
        self.names = {*parts[1::2]}
        seen = set[str]()
        for n, part in enumerate(parts):
            if n % 2 == 0:
                parts[n] = re.escape(part)
            else:
                parts[n] = f"(?P={part})" if part in seen else f"(?P<{part}>[0-9]+)"
                seen.add(part)
        self._regex = re.compile("".join(parts))

    def numbers(self, text: str) -> dict[str, str] | None:
        """Returns the numbers in a text, by name; None if it is another text."""
        found = self._regex.fullmatch(text)
        return None if found is None else found.groupdict()

    def filled(self, numbers: Mapping[str, str]) -> str:
        """Returns the text with these numbers."""
        return _NUMBER.sub(lambda found: numbers[found[1]], self.text)


@dataclass(frozen=True)
class _Row:
    """A row of a table: what a tensor is called, which leaf it is, how it lies (None: as it is)."""

    tensor: _Pattern
    address: _Pattern
    layout: Layout | None


def _row(tensor: str, leaf: str | Sequence[str]) -> _Row:
    """Reads a row.

    Raises:
        ValueError: says what is wrong with it.
    """
    texts = [leaf] if isinstance(leaf, str) else [*leaf] if isinstance(leaf, list | tuple) else []
    if not 1 <= len(texts) <= 2 or not all(isinstance(text, str) for text in (tensor, *texts)):
        raise ValueError(f"expected a path, or a path and how the tensor lies, found {leaf!r}")
    address, *how = texts
    patterns = _Pattern(tensor), _Pattern(address)
    if patterns[0].names != patterns[1].names:
        raise ValueError(f"expected the same numbers in braces on both sides, found {address!r}")
    return _Row(*patterns, _layout(how[0]) if how else None)


def _plain(ndim: int) -> Layout:
    return Layout(tuple((axis,) for axis in range(ndim)))


def _layout(how: str) -> Layout:
    """Reads ``"transpose"``, or axes on both sides of an arrow."""
    if how == "transpose":
        how = "a b -> b a"
    before, arrow, after = how.partition("->")
    names, sizes = after.split(), dict[str, int]()
    groups = [(group or one).split() for group, one in _AXIS.findall(before)]
    for group in groups:
        for n, axis in enumerate(group):
            group[n], colon, size = axis.partition(":")
            if colon:
                sizes[group[n]] = int(size)
    open_axes = (sum(axis not in sizes for axis in group) for group in groups)
    every = [axis for group in groups for axis in group]
    if not arrow or sorted(every) != sorted({*names}) or len(names) > len(every):
        raise ValueError(f"{_EXPECTED}, found {how!r}")
    if max(open_axes, default=0) > 1:
        raise ValueError(
            f"{_EXPECTED}, where all sizes in brackets but one are said, found {how!r}"
        )
    places = {name: place for place, name in enumerate(names)}
    return Layout(
        tuple(tuple(places[axis] for axis in group) for group in groups),
        tuple(sorted((places[axis], size) for axis, size in sizes.items())),
    )


def _split(address: str) -> tuple[str, int | None]:
    """Takes ``"path[3]"`` apart."""
    found = re.fullmatch(r"(.*)\[([0-9]+)\]", address)
    return (address, None) if found is None else (found[1], int(found[2]))
