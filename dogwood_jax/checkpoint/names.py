"""Maps names of tensors in a checkpoint to leaves of the network: ``Table``.

A row maps a tensor to a leaf, with a layout::

    {"model.layers.{i}.mlp.up_proj.weight": ("layers/{i}/mlp/up_proj/kernel", "transpose")}

``{i}`` stands for a number, the same on both sides. ``{*rest}`` stands for one or more parts of the
name, as in ``{"params/params/{*rest}": "{*rest}"}``. The first row that matches a name counts. A
row with None in place of a leaf leaves its tensors out of the larger checkpoint.

The layout is ``"transpose"``, or the axes of the tensor and of the leaf with an arrow between them.
``"(n h:128) d -> d n h"`` splits the first axis into n times 128 and moves it behind the other.
After a leaf's path, a number in square brackets makes the tensor one entry along the leaf's first
axis: ``"layers/{i}/mlp/up_proj[{e}]"`` stacks the tensors of all experts.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

from dogwood_jax._base.arguments import MAPPING, expect
from dogwood_jax._base.problems import listed
from dogwood_jax.checkpoint.kinds import CheckpointError
from dogwood_jax.checkpoint.tensors import Tensor

Rows = Mapping[str, str | Sequence[str] | None]

# {i}, which stands for a number, or {*rest}, which stands for one or more parts of a name.
_BLANK = re.compile(r"\{(\*?[A-Za-z_]\w*)\}")
_EXPECTED = "expected 'transpose' or axes such as '(n h:128) d -> d n h'"
_AXIS = re.compile(r"\(([^()]*)\)|([^()\s]+)")


@dataclass(frozen=True)
class Layout:
    """How a tensor becomes a leaf, or an entry of a stacked leaf.

    Attributes:
        groups: for each axis of the tensor, the axes of the leaf whose product it is.
        sizes: given sizes of the leaf's axes, as pairs of axis and size.
    """

    groups: tuple[tuple[int, ...], ...]
    sizes: tuple[tuple[int, int], ...] = ()

    @property
    def order(self) -> tuple[int, ...]:
        """The leaf's axes in the order of the tensor."""
        return tuple(axis for group in self.groups for axis in group)

    def leaf_shape(self, tensor: Sequence[int]) -> tuple[int, ...]:
        """Returns the leaf's shape for a shape of the tensor."""
        sizes = dict(self.sizes)
        for group, size in zip(self.groups, tensor, strict=True):
            known = prod(sizes[axis] for axis in group if axis in sizes)
            unknown = [axis for axis in group if axis not in sizes]
            if size != known * (size // max(known, 1) if unknown else 1):
                raise ValueError(f"expected a multiple of {known} in shape {tuple(tensor)}")
            sizes |= {axis: size // max(known, 1) for axis in unknown}
        return tuple(sizes[axis] for axis in sorted(sizes))

    def tensor_shape(self, leaf: Sequence[int]) -> tuple[int, ...]:
        """Returns the tensor's shape for a shape of the leaf."""
        return tuple(prod(leaf[axis] for axis in group) for group in self.groups)


@dataclass(frozen=True)
class StoredLeaf:
    """A leaf as a checkpoint stores it.

    Attributes:
        path: its path.
        shape: its shape.
        tensors: the tensor that holds it, or the tensors that it stacks.
        layout: how the tensor becomes the leaf; for a stack, how each tensor becomes an entry.
        stacked: whether each tensor is an entry along the leaf's first axis.
    """

    path: str
    shape: tuple[int, ...]
    tensors: tuple[Tensor, ...]
    layout: Layout
    stacked: bool = False

    @property
    def dtype(self) -> str:
        """JAX's name of its dtype."""
        return self.tensors[0].dtype

    @property
    def order(self) -> tuple[int, ...]:
        """The leaf's axes in the order of the file; entries of a stack follow each other."""
        if not self.stacked:
            return self.layout.order
        return (0, *(axis + 1 for axis in self.layout.order))


class Table:
    """Maps names of tensors to leaves, and leaves to names of tensors.

    Args:
        rows: the rows; None if a tensor's name is the leaf's path.
        separator: joins the parts of a tensor's name: ``/`` or ``.``.

    Raises:
        ValueError: if rows are not valid, with all of them in one message.
    """

    def __init__(self, rows: Rows | None, separator: str) -> None:
        self._separator = separator
        self._rows: list[_Row] | None = None
        if rows is None:
            return
        expect("checkpoint", names=(MAPPING, rows))
        self._rows, problems, seen = [], list[str](), dict[str, str]()
        for tensor, leaf in rows.items():
            try:
                row = _row(tensor, leaf, separator)
            except ValueError as error:
                problems.append(f"{tensor}: {error}")
                continue
            self._rows.append(row)
            if row.address is not None:
                text = row.address.text
                if (other := seen.setdefault(text, tensor)) != tensor:
                    problems.append(f"{tensor}: {other} is mapped to the leaf {text}, too")
        if problems:
            raise ValueError(listed("names= cannot be read", problems))

    def leaves(self, tensors: Iterable[Tensor]) -> dict[str, StoredLeaf]:
        """Returns the leaves that tensors hold, by path.

        Raises:
            CheckpointError: if tensors do not fit the table, with all of them in one message.
        """
        # For each leaf, the tensor that holds it (under None), or the tensors of its entries.
        held, problems = dict[str, dict[int | None, StoredLeaf]](), list[str]()
        for tensor in tensors:
            if self.is_left_out(tensor.name):
                continue
            try:
                address, layout = self._address(tensor)
                self._expect_way_back(tensor.name, address)
                path, entry = _split(address)
                leaf = StoredLeaf(path, layout.leaf_shape(tensor.shape), (tensor,), layout)
            except ValueError as error:
                problems.append(f"{tensor.name}: {error}")
                continue
            if other := held.setdefault(path, {}).get(entry):
                problems.append(f"{tensor.name}: {address} belongs to {other.tensors[0].name}")
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
        """Returns how a checkpoint stores a leaf of this shape; the files are left empty.

        Raises:
            ValueError: if the leaf matches no row.
        """
        stacked = (named := self._name(path, len(shape))) is None and bool(shape)
        if stacked:
            every = [self._name(f"{path}[{n}]", len(shape) - 1) for n in range(shape[0])]
        else:
            every = [named]
        pieces = [piece for piece in every if piece is not None]
        if not pieces or len(pieces) < len(every):
            raise ValueError(f"{path}: no row of names= gives its name; add one")
        layout = pieces[0][1]
        inner = layout.tensor_shape(shape[1:] if stacked else shape)
        tensors = tuple(Tensor(name, dtype, inner, "") for name, _ in pieces)
        return StoredLeaf(path, shape, tensors, layout, stacked)

    def is_left_out(self, name: str) -> bool:
        """Returns whether a tensor is left out of the larger checkpoint."""
        row = self._row(name)
        return row is not None and row.address is None

    def leaf(self, name: str) -> str | None:
        """Returns the path of the leaf with this name in the checkpoint; None if no row matches.

        Raises:
            ValueError: if the leaf would be written under another name.
        """
        row = self._row(name)
        if row is None or row.address is None:
            return None
        path = row.address.filled(row.tensor.blanks(name) or {})
        self._expect_way_back(name, path)
        return path

    def name(self, path: str) -> str | None:
        """Returns the name of a leaf in the checkpoint; None if no row matches."""
        named = self._name(path, 0)
        return None if named is None else named[0]

    def expect_names_alone(self) -> None:
        """Raises a ``ValueError`` if rows have layouts or stacks, which need safetensors."""
        problems = [
            f"{row.tensor.text}: {row.address.text}"
            for row in self._rows or ()
            if row.address is not None and (row.layout or row.address.text.endswith("]"))
        ]
        if problems:
            raise ValueError(
                listed(
                    "names= can only rename arrays that Orbax saved; leave out layouts and entries "
                    "in square brackets",
                    problems,
                )
            )

    def _address(self, tensor: Tensor) -> tuple[str, Layout]:
        """Returns the leaf, or the entry of a stack, that a tensor is, and the tensor's layout."""
        if self._rows is None:
            path = tensor.name.replace(self._separator, "/")
            if not all(path.split("/")):
                raise ValueError(f"expected a name without empty parts between {self._separator!r}")
            return path, _plain(len(tensor.shape))
        row = self._row(tensor.name)
        if row is None or row.address is None:
            raise ValueError("no row matches this name; add one")
        layout = row.layout or _plain(len(tensor.shape))
        if len(layout.groups) != len(tensor.shape):
            raise ValueError(f"expected {len(layout.groups)} axes, found {tensor.shape}")
        return row.address.filled(row.tensor.blanks(tensor.name) or {}), layout

    def _row(self, name: str) -> "_Row | None":
        """Returns the first row that matches a tensor's name."""
        fits = (row for row in self._rows or () if row.tensor.blanks(name) is not None)
        return next(fits, None)

    def _expect_way_back(self, name: str, address: str) -> None:
        """Raises a ``ValueError`` if the leaf would be written under another name."""
        if (back := self.name(address)) != name:
            raise ValueError(
                f"is {address}, which an earlier row calls {back}; put the more specific row first"
            )

    def _name(self, address: str, ndim: int) -> tuple[str, Layout] | None:
        """Returns the tensor's name and layout, for a leaf or an entry with this many axes."""
        if self._rows is None:
            return address.replace("/", self._separator), _plain(ndim)
        for row in self._rows:
            if row.address is None:
                continue
            if (blanks := row.address.blanks(address)) is not None:
                return row.tensor.filled(blanks), row.layout or _plain(ndim)
        return None


class _Pattern:
    """A text in which ``{i}`` stands for a number, and ``{*rest}`` for parts of a name.

    Args:
        text: the text.
        separator: joins the parts.
    """

    def __init__(self, text: str, separator: str) -> None:
        self.text, self._separator = text, separator
        parts, groups = _BLANK.split(text), dict[str, str]()
        for n, part in enumerate(parts):
            if n % 2 == 0:
                parts[n] = re.escape(part)
            elif part in groups:
                parts[n] = f"(?P={groups[part]})"
            else:
                groups[part] = f"_{n}"
                parts[n] = f"(?P<_{n}>{'.+' if part[0] == '*' else '[0-9]+'})"
        self._regex, self._groups = re.compile("".join(parts)), groups

    @property
    def names(self) -> set[str]:
        """The names in braces."""
        return {*self._groups}

    def blanks(self, text: str) -> dict[str, str] | None:
        """Returns the value of each name, parts joined by slashes; None if the text differs."""
        if (found := self._regex.fullmatch(text)) is None:
            return None
        return {
            name: found[group].replace(self._separator, "/") for name, group in self._groups.items()
        }

    def filled(self, blanks: Mapping[str, str]) -> str:
        """Returns the text with these values in place of the names."""
        return _BLANK.sub(lambda found: blanks[found[1]].replace("/", self._separator), self.text)


@dataclass(frozen=True)
class _Row:
    """A row of a table: the tensor's name, its leaf or entry, and its layout (None: unchanged).

    Without an address, the tensor is left out.
    """

    tensor: _Pattern
    address: _Pattern | None
    layout: Layout | None


def _row(tensor: str, leaf: str | Sequence[str] | None, separator: str) -> _Row:
    """Reads a row.

    Raises:
        ValueError: if the row is not valid.
    """
    if leaf is None and isinstance(tensor, str):
        return _Row(_Pattern(tensor, separator), None, None)
    texts = [leaf] if isinstance(leaf, str) else [*leaf] if isinstance(leaf, list | tuple) else []
    if not 1 <= len(texts) <= 2 or not all(isinstance(text, str) for text in (tensor, *texts)):
        raise ValueError(f"expected a path, or a path and a layout, found {leaf!r}")
    address, *how = texts
    patterns = _Pattern(tensor, separator), _Pattern(address, "/")
    if patterns[0].names != patterns[1].names:
        raise ValueError(f"expected the same names in braces on both sides, found {address!r}")
    return _Row(*patterns, _layout(how[0]) if how else None)


def _plain(ndim: int) -> Layout:
    return Layout(tuple((axis,) for axis in range(ndim)))


def _layout(how: str) -> Layout:
    """Reads a layout: ``"transpose"``, or axes on both sides of an arrow."""
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
            f"{_EXPECTED}, with the sizes of all axes but one in brackets, found {how!r}"
        )
    places = {name: place for place, name in enumerate(names)}
    return Layout(
        tuple(tuple(places[axis] for axis in group) for group in groups),
        tuple(sorted((places[axis], size) for axis, size in sizes.items())),
    )


def _split(address: str) -> tuple[str, int | None]:
    """Splits ``"path[3]"`` into the path and the number, or None without a number."""
    found = re.fullmatch(r"(.*)\[([0-9]+)\]", address)
    return (address, None) if found is None else (found[1], int(found[2]))
