"""Where every width of a network occurs: ``Width`` and ``Widths``."""

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp

from dogwood_jax._base.arguments import is_integer
from dogwood_jax._base.described import described
from dogwood_jax._base.tables import (
    MANY,
    blocks,
    fits,
    layers_together,
    merged,
    table,
    wrapped,
)
from dogwood_jax._program.dims import SPATIAL, Dim, atoms
from dogwood_jax._program.like_layers import LikeLayers
from dogwood_jax._program.values import Kind
from dogwood_jax._widths.layout import Concat, Layout, Product, Role, Units, size_of, units_of

# Upper limits on lines and names in a printed table.
_MOST_LINES = 12
_MOST_NAMES = 6

# What the marks in a printed table mean.
_MARKS = (
    ("-> ", "-> weights that make the units"),
    ("<- ", "<- weights that read them"),
    ("<> ", "<> weights that do both, or pair units with units"),
    ("[", "[1] an axis of the array"),
    (".", "[1.0] the first of several widths along an axis"),
)


@dataclass(frozen=True)
class Occurrence:
    """One place where a width appears.

    Attributes:
        path: path of the array, ``"params/dense_1/kernel"``.
        axis: which of its axes, counted from 0.
        role: ``"incoming"``, ``"outgoing"`` or ``"both"``.
        layout: how the whole axis is laid out; ``Units`` if the width is all of it.
    """

    path: str
    axis: int
    role: Role
    layout: Layout

    def __str__(self) -> str:
        arrow = {"incoming": "->", "outgoing": "<-", "both": "<>"}[self.role]
        layout = "" if isinstance(self.layout, Units) else f" ({self.layout})"
        return f"{arrow} {self.path}[{self.axis}]{layout}"


@dataclass(frozen=True)
class Recipe:
    """A way to grow a width exactly although the network computes with its size.

    A norm over the width, or a scale such as 1/sqrt(head_dim), changes with the width; rescaling
    some arrays and constants makes up for it.

    Attributes:
        powers: paths of arrays and the powers of the ratio that multiply their old entries. The
            ratio is new / old; if new units repeat old ones, it is the share of units that are
            copies, (new // old) * old / new.
        blank: paths of arrays whose new entries are filled as in a new network, instead of with
            zeros or with the mean of the others.
        copies: paths of arrays and the powers of the number of copies of a unit, new // old, that
            also multiply their old entries.
        offsets: paths of arrays that the network adds to a number, such as 1 + scale, and these
            numbers. For these arrays, powers multiply the sum.
        parts: paths of fused arrays and powers, as in ``powers``. Only entries along the width's
            own units are multiplied. If the width has several roles in the array, only entries
            along units that are not incoming are, such as the keys of ``q | k | v``.
        zeros: paths of arrays and roles, ``"incoming"`` or ``"outgoing"``: in these roles, their
            entries for units that are not copies are zero.
        weighed: paths of arrays that write units, and the paths of the arrays that scale these
            units one by one, such as LayerScale. For units that are not copies, the former get
            means weighted by the latter, and the latter get the mean of their absolute values.
    """

    powers: tuple[tuple[str, float], ...] = ()
    blank: tuple[str, ...] = ()
    copies: tuple[tuple[str, float], ...] = ()
    offsets: tuple[tuple[str, float], ...] = ()
    parts: tuple[tuple[str, float], ...] = ()
    zeros: tuple[tuple[str, str], ...] = ()
    weighed: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Width:
    """A set of array axes that index the same units.

    Attributes:
        name: the module that produces the units, ``"dense_1"``, or the array, ``"blocks/fc"``, if
            the module has kernels without this width.
        size: number of units.
        occurrences: every place where they appear.
        interface: whether the width is also a dimension of an input or output.
        fixed: why the width cannot grow, or None.
        notes: what a caller should know before growing it.
        inside: the width whose units are each divided into the units of this width, which has one
            unit before the growth; None for a width that the network's arrays show directly.
        label: the kind of its units, if known, such as ``"heads"``, ``"kv_heads"``, ``"groups"`` or
            ``"head_dim"``; otherwise empty.
        whole: all widths of the network. Comparisons ignore it.
    """

    name: str
    size: int
    occurrences: tuple[Occurrence, ...]
    interface: bool = False
    fixed: str | None = None
    notes: tuple[str, ...] = ()
    inside: str | None = None
    label: str = ""
    whole: "Widths | None" = field(default=None, compare=False, repr=False)

    @property
    def status(self) -> str:
        """``"growable"``, ``"interface"``, or ``"fixed: "`` with the reason."""
        if self.fixed:
            return f"fixed: {self.fixed}"
        kinds = ["interface"] if self.interface else []
        return "; ".join(kinds) or "growable"

    def __str__(self) -> str:
        return "\n".join(
            [f"{self.name}: {self.size} units, {self.status}"]
            + [f"  {occurrence}" for occurrence in self.occurrences]
        )


@dataclass(frozen=True)
class Leaf:
    """One array of the variables and the layout of each of its axes.

    Attributes:
        path: path of the array.
        shape: its shape before a growth.
        axes: one layout for each axis.
        kind: the initial values of new entries that the growth leaves free.
        fan_in: axes whose sizes multiply to the fan-in of random entries.
        fan_out: axes whose sizes multiply to the fan-out of random entries.
    """

    path: str
    shape: tuple[int, ...]
    axes: tuple[Layout, ...]
    kind: Kind = "random"
    fan_in: tuple[int, ...] = ()
    fan_out: tuple[int, ...] = ()


@dataclass(frozen=True)
class Facts:
    """The properties of a width except its occurrences, see ``Width``."""

    size: int
    interface: bool = False
    fixed: str | None = None
    notes: tuple[str, ...] = ()
    inside: str | None = None
    label: str = ""


@dataclass(frozen=True, eq=False)
class Network:
    """The function that was traced, kept to trace it in other sizes or to run it.

    Attributes:
        apply: the function of variables and inputs.
        variables: its variables, with a ``jax.ShapeDtypeStruct`` for every array.
        inputs: the inputs, in the same way.
        traced: its traced program.
        leaves_out: whether evaluations may leave like layers out.
        found: a cache of the zeros that silence widths, by name.
    """

    apply: Callable[..., Any]
    variables: Any
    inputs: tuple[Any, ...]
    traced: Any
    leaves_out: bool = False
    found: dict[str, Any] = field(default_factory=dict)

    @property
    def layers(self) -> LikeLayers | None:
        """Its like layers, if there are enough of them to leave some out."""
        return self.traced.layers if self.leaves_out else None

    def dims(self, occurrences: Iterable[Occurrence]) -> list[Dim]:
        """Returns the dimensions of axes, without structure."""
        leaves = self.traced.leaves
        return [dim for its in occurrences for dim in atoms(leaves[its.path].dims[its.axis])]

    def random_inputs(self, key: jax.Array) -> tuple[Any, ...]:
        """Returns random inputs: normal floats, and zeros and ones for integers and booleans."""

        def one(leaf: Any) -> Any:
            if not isinstance(leaf, jax.ShapeDtypeStruct):
                return leaf
            if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
                return jnp.broadcast_to(key, leaf.shape)
            if jnp.issubdtype(leaf.dtype, jnp.inexact):
                return jax.random.normal(key, leaf.shape, leaf.dtype)
            return jax.random.bernoulli(key, 0.5, leaf.shape).astype(leaf.dtype)

        return tuple(jax.tree.map(one, self.inputs))


@dataclass(frozen=True, repr=False)
class Widths(Mapping[str, Width]):
    """All widths of a network: a mapping from name to ``Width``.

    Frozen, hashable (so it can be a static argument under ``jax.jit``), comparable and picklable;
    ``print(widths)`` shows a table.

    Attributes:
        leaves: the arrays in which widths occur, with the layout of each axis.
        facts: name and properties of each width, in the order of the table.
        network: the function that was traced. Comparisons ignore it, and it is not pickled.
        is_saved: whether the widths of a traced network were loaded from a file or a pickle, which
            holds no function. Comparisons ignore it.
    """

    leaves: tuple[Leaf, ...]
    facts: tuple[tuple[str, Facts], ...] = field(default=())
    network: Network | None = None
    is_saved: bool = False

    @cached_property
    def _widths(self) -> dict[str, Width]:
        places: dict[str, list[Occurrence]] = {name: [] for name, _ in self.facts}
        for leaf in self.leaves:
            for axis, layout in enumerate(leaf.axes):
                for units in dict.fromkeys(units_of(layout)):
                    places[units.width].append(Occurrence(leaf.path, axis, units.role, layout))
        return {
            name: Width(name, occurrences=tuple(places[name]), **vars(facts), whole=self)
            for name, facts in self.facts
        }

    @cached_property
    def _hash(self) -> int:
        return hash((self.leaves, self.facts))

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        # Mapping's own equality would ignore the layouts and the order.
        if not isinstance(other, Widths):
            return NotImplemented
        return self is other or (self.leaves, self.facts) == (other.leaves, other.facts)

    def __getstate__(self) -> dict[str, object]:
        # Without the cached hash: hashes of strings differ between processes.
        is_saved = self.is_saved or self.network is not None
        return {"leaves": self.leaves, "facts": self.facts, "network": None, "is_saved": is_saved}

    def __getitem__(self, name: str) -> Width:
        try:
            return self._widths[name]
        except KeyError:
            raise KeyError(no_such("width", name, self._widths)) from None

    def __contains__(self, name: object) -> bool:  # without a search for close names
        return name in self._widths

    def __iter__(self) -> Iterator[str]:
        return iter(self._widths)

    def __len__(self) -> int:
        return len(self._widths)

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Size of each width by name."""
        return {name: facts.size for name, facts in self.facts}

    def within(self, path: str, *, interface: bool = False) -> Width:
        """Returns the one width of an array that can grow.

        Args:
            path: path of the array, with or without its leading collection (``params/``).
            interface: whether a dimension of an input or output can grow, too.

        Raises:
            KeyError: if there is no such array, or not exactly one of its widths can grow, or a
                composite axis contains this width or a spatial dimension.
        """
        leaf = self.leaf(path)
        names = dict.fromkeys(u.width for layout in leaf.axes for u in units_of(layout))
        may = {name for name in names if interface or not self[name].interface}
        inner = [name for name in names if name in may and not self[name].fixed]
        # If a width is one factor of an axis, its size is not that of the axis. If a composite axis
        # holds spatial positions, a size may be meant for these, such as 196 positions.
        parts = [u for x in leaf.axes if not isinstance(x, Units) for u in units_of(x)]
        is_unclear = any(u.width in inner or SPATIAL in (self[u.width].fixed or "") for u in parts)
        if len(inner) != 1 or is_unclear:
            sizes = ", ".join(f"{name!r} ({self[name].size} units)" for name in names)
            raise KeyError(f"{path!r} is an array of the widths {sizes}: name one of these")
        return self[inner[0]]

    def leaves_at(self, path: str) -> list[Leaf]:
        """Returns the array at a path, or all arrays at it in any collection (``params/``)."""
        if (leaf := self._by_path.get(path)) is not None:
            return [leaf]
        return [leaf for leaf in self.leaves if leaf.path.endswith(f"/{path}")]

    @cached_property
    def _by_path(self) -> dict[str, Leaf]:
        return {leaf.path: leaf for leaf in self.leaves}

    def leaf(self, path: str) -> Leaf:
        """Returns the array at a path, with or without its leading collection (``params/``).

        Raises:
            KeyError: if there is none, or the shortened path fits several; names the closest.
        """
        found = self.leaves_at(path)
        if len(found) > 1:
            raise KeyError(
                f"{path!r} fits several arrays: pass one of {[leaf.path for leaf in found]}"
            )
        if not found:
            raise KeyError(no_such("array", path, [leaf.path for leaf in self.leaves]))
        return found[0]

    def of(self, path: str, axis: int) -> Width:
        """Returns the width that lies along one axis of one array.

        Args:
            path: path of the array, with or without its leading collection (``params/``).
            axis: index of the axis; negative counts from the end.

        Raises:
            KeyError: if there is no such array or axis, or if several widths share the axis; the
                message names the choices.

        Example:
            >>> import jax.numpy as jnp
            >>> import dogwood_jax as dw
            >>> layer = lambda i, o: {"kernel": jnp.ones((i, o)), "bias": jnp.ones(o)}
            >>> widths = dw.chain({"up": layer(4, 8), "down": layer(8, 2)}, ("up", "down"))
            >>> widths.of("down/kernel", 0).name
            'up'
        """
        leaf = self.leaf(path)
        if not is_integer(axis):
            raise KeyError(f"an axis of {leaf.path} must be an integer, got {axis!r}")
        if not -len(leaf.axes) <= axis < len(leaf.axes):
            raise KeyError(f"{leaf.path} has shape {leaf.shape}, so no axis {axis}")
        names = dict.fromkeys(units.width for units in units_of(leaf.axes[axis]))
        if len(names) != 1:
            raise KeyError(
                f"axis {axis} of {leaf.path} is composite, {leaf.axes[axis]}: "
                f"name one of its widths {list(names)}"
            )
        return self[next(iter(names))]

    def __str__(self) -> str:
        fixed: dict[str, list[str]] = {}
        for width in self.values():
            if width.fixed:
                reason = "of size 1" if width.size == 1 else width.fixed
                fixed.setdefault(reason, []).append(width.name)
        summed_up = {
            reason: names
            for reason, names in fixed.items()
            if reason == "of size 1" or len(names) >= MANY
        }
        hidden = {name for names in summed_up.values() for name in names}
        rows: list[tuple[str, ...]] = [("width", "size", "occurs in", "status")]
        rows += _rows([width for width in self.values() if width.name not in hidden])
        text = table(rows) if len(rows) > 1 else ""
        if not fits(text):
            text = blocks(
                (f"{n}: {units} units, {s}", o.splitlines()) for n, units, o, s in rows[1:]
            )
        lines = [text] * bool(text)
        lines += [wrapped(f"fixed ({why}): {_some(names)}") for why, names in summed_up.items()]
        return "\n".join([*lines, *map(wrapped, _legend(text))])

    def __repr__(self) -> str:
        return f"Widths({', '.join(f'{name}={size}' for name, size in self.sizes.items())})"


def make_widths(leaves: tuple[Leaf, ...], facts: Mapping[str, Facts]) -> Widths:
    """Returns the widths, after checking that every layout accounts for its axis."""
    for leaf in leaves:
        laid_out = tuple(size_of(layout) for layout in leaf.axes)
        assert laid_out == leaf.shape, (leaf.path, leaf.shape, laid_out)
    return Widths(leaves, tuple(facts.items()))


def no_such(what: str, name: object, names: Mapping[str, object] | list[str]) -> str:
    """Returns an error message for a failed look-up that names the closest choices."""
    choices = list(names)
    if not isinstance(name, str):
        return f"no {what} is called {described(name)}; there are {choices[:10]}"
    parts = [choice for choice in choices if choice.startswith(f"{name}[")]
    if isinstance(names, Mapping):  # without fixed widths
        parts = [part for part in parts if not getattr(names[part], "fixed", None)]
    close = parts or difflib.get_close_matches(name, choices, n=3, cutoff=0.4) or choices[:10]
    return f"no {what} {name!r}; the closest are {close}" if close else f"no {what} {name!r}"


def _rows(widths: Iterable[Width]) -> list[tuple[str, ...]]:
    """Returns the rows of a table; like widths of repeated layers share a row."""
    rows = ((w.name, str(w.size), "\n".join(_places(w)), w.status) for w in widths)
    return [
        (*cells, status if len(members) == 1 else f"{len(members)} widths, each {status}")
        for (*cells, status), members in layers_together(rows)
    ]


def _legend(text: str) -> list[str]:
    """Returns a line that explains the marks that occur in a table, or nothing."""
    axes = re.findall(r"\[(\d+(\.)?)", text)
    occur = {"[": bool(axes), ".": any(dot for _, dot in axes)}
    found = [meaning for mark, meaning in _MARKS if occur.get(mark, mark in text)]
    return [f"({'; '.join(found)})"] if found else []


def _places(width: Width) -> list[str]:
    """Returns the lines of a table that list the occurrences of a width."""
    module = width.name.partition("[")[0]
    texts = ((*str(o).split(" ", 1), o.path) for o in width.occurrences)
    places = merged(
        ((arrow, place.removeprefix(path).replace(f"{module}[", "[")), path)
        for arrow, place, path in texts
    )
    lines = [f"{arrow} {path}{after}" for (arrow, after), path in places] or ["(no array)"]
    if len(lines) > _MOST_LINES:
        lines[_MOST_LINES:] = [f"and more: print(widths[{width.name!r}])"]
    return lines


def _some(names: Sequence[str]) -> str:
    more = len(names) - _MOST_NAMES
    return ", ".join(names[:_MOST_NAMES]) + (f" and {more} more" if more > 0 else "")


__all__ = [
    "Concat",
    "Kind",
    "Leaf",
    "Occurrence",
    "Product",
    "Recipe",
    "Width",
    "Widths",
    "make_widths",
    "no_such",
]
