"""What becomes of each array: ``plan`` and ``Growth``."""

import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any

import jax

from dogwood_jax._layout import Concat, Layout, Product, Units, size_of, units_of
from dogwood_jax._tree import PyTree, is_array, leaves_by_path
from dogwood_jax._widths import Width, Widths, table
from dogwood_jax.strategies import Strategy, zero_outgoing


@dataclass(frozen=True)
class Change:
    """How one width grows. Old units keep their places; new ones are appended to them.

    Attributes:
        width: name of the width.
        old: number of units before.
        new: number of units after.
        strategy: how new units are filled in.
        copies: the old unit that each new unit copies; empty unless the strategy copies.
    """

    width: str
    old: int
    new: int
    strategy: Strategy
    copies: tuple[int, ...] = ()

    @property
    def sources(self) -> tuple[int, ...]:
        """The old unit behind each unit after the change, where the strategy copies."""
        return (*range(self.old), *self.copies)

    @property
    def shares(self) -> tuple[float, ...]:
        """The factor on the outgoing weights of each unit after the change; copies' sum to one."""
        sources = self.sources
        counts = [0] * self.old
        for source in sources:
            counts[source] += 1
        if self.strategy.split == "even":
            return tuple(1 / counts[source] for source in sources)
        seen = [0] * self.old
        shares = []
        for source in sources:
            seen[source] += 1
            k = counts[source]
            shares.append(2 * seen[source] / (k * (k + 1)))
        return tuple(shares)


@dataclass(frozen=True, repr=False)
class Growth:
    """What becomes of every array when some widths change: an affine map ``new = A(old) + fill``.

    Frozen, hashable (so it can be a static argument under ``jax.jit``), comparable and picklable;
    ``print(growth)`` shows what becomes of each array.

    Attributes:
        widths: the widths of the network that grows.
        changes: how each growing width changes, in the order of the widths.
        notes: what the larger model's configuration or the caller has to mind.
        structure: tree structure of the larger model where a target was given.
    """

    widths: Widths
    changes: tuple[Change, ...]
    notes: tuple[str, ...] = ()
    structure: Any = None

    @cached_property
    def change(self) -> dict[str, Change]:
        """The changes by name of their width."""
        return {change.width: change for change in self.changes}

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every known array after the growth, by path."""
        sizes = {change.width: change.new for change in self.changes}
        return {
            leaf.path: tuple(size_of(layout, sizes) for layout in leaf.axes)
            for leaf in self.widths.leaves
        }

    @cached_property
    def _hash(self) -> int:
        return hash((self.widths, self.changes, self.notes, self.structure))

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Growth):
            return NotImplemented
        # A tree structure cannot be compared with None.
        if (self.structure is None) != (other.structure is None):
            return False
        fields = ("widths", "changes", "notes", "structure")
        return all(getattr(self, name) == getattr(other, name) for name in fields)

    def __getstate__(self) -> dict[str, object]:
        # Without the cached hash: hashes of strings differ between processes.
        fields = ("widths", "changes", "notes", "structure")
        return {name: getattr(self, name) for name in fields}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)

    def __str__(self) -> str:
        rows = [("array", "before", "after", "new entries")]
        for leaf in self.widths.leaves:
            new = self.shapes[leaf.path]
            if new != leaf.shape:
                rows.append((leaf.path, _shape(leaf.shape), _shape(new), self._fate(leaf.axes)))
        lines = [table(rows)] if len(rows) > 1 else ["nothing grows"]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])

    def __repr__(self) -> str:
        return f"Growth({', '.join(f'{c.width}: {c.old} -> {c.new}' for c in self.changes)})"

    def _fate(self, axes: tuple[Layout, ...]) -> str:
        parts = []
        for axis, layout in enumerate(axes):
            for units in dict.fromkeys(units_of(layout)):
                if change := self.change.get(units.width):
                    side = "incoming" if units.role == "incoming" else "outgoing"
                    parts.append(f"{units.width}[{axis}] {getattr(change.strategy, side)}")
        return ", ".join(parts)


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def plan(
    widths: Widths,
    sizes: Mapping[Any, int] | None = None,
    *,
    target: PyTree = None,
    strategy: Strategy | Mapping[str, Strategy] | None = None,
    interface: bool = False,
) -> Growth:
    """Plans a growth: works out what becomes of each array, without touching any values.

    With a preserving strategy, which the default is, the grown network computes what the old one
    did: a width whose growth would change that is refused, with the reason.

    Args:
        widths: the widths of the network, from ``trace`` or ``chain``.
        sizes: new number of units by name of the width, or by ``(path, axis)`` of any place where
            it occurs.
        target: a pytree of arrays or ``jax.ShapeDtypeStruct`` of the larger model. Which widths
            differ is worked out; ``sizes`` settles what the shapes leave open. The grown
            variables get the target's tree structure.
        strategy: one strategy for all widths, ``strategies.zero_outgoing()`` unless given, or a
            mapping from width name to strategy.
        interface: whether widths that are dimensions of the network's inputs or outputs may grow:
            old outputs stay, new ones are appended.

    Returns:
        The growth, for ``grow``.

    Raises:
        ValueError: for unknown widths, sizes below today's, widths that cannot grow or cannot
            grow without changing outputs, and shapes of the target that no growth explains; all
            of them in one message.

    Example:
        >>> import jax.numpy as jnp
        >>> import dogwood_jax as dw
        >>> layer = lambda i, o: {"kernel": jnp.ones((i, o)), "bias": jnp.ones(o)}
        >>> widths = dw.chain({"up": layer(4, 8), "down": layer(8, 2)}, ("up", "down"))
        >>> print(dw.plan(widths, {"up": 16}))
        array        before  after  new entries
        -----------  ------  -----  -----------
        up/kernel    4x8     4x16   up[1] free
        up/bias      8       16     up[0] free
        down/kernel  8x2     16x2   up[0] zero
    """
    if sizes is None and target is None:
        raise ValueError("plan needs sizes, {name: units}, or target=, a larger model's variables")
    problems: list[str] = []
    new = _named_sizes(widths, sizes or {}, problems)
    structure = None
    if target is not None:
        new = _sizes_of_target(widths, target, new, problems)
        structure = jax.tree.structure(target)
    chosen = _strategies(widths, strategy, problems)
    changes: list[Change] = []
    notes: list[str] = []
    for name, size in widths.sizes.items():
        if new.get(name, size) == size:
            continue
        width = widths[name]
        how = chosen.get(name, zero_outgoing())
        problems += _refusals(widths, width, new[name], how, interface)
        copies: tuple[int, ...] = ()
        if how.incoming == "copy" and size:
            copies = tuple(i % size for i in range(new[name] - size))
        changes.append(Change(name, size, new[name], how, copies))
        notes += width.notes
        if how.noise:
            notes.append(f"{name}: copies carry noise, so outputs change")
    if problems:
        raise ValueError("cannot plan this growth:\n" + "\n".join(f"- {p}" for p in problems))
    return Growth(widths, tuple(changes), tuple(dict.fromkeys(notes)), structure)


def _named_sizes(widths: Widths, sizes: Mapping[Any, int], problems: list[str]) -> dict[str, int]:
    """Returns the asked sizes by width name."""
    new: dict[str, int] = {}
    for asked, size in sizes.items():
        try:
            name = (widths[asked] if isinstance(asked, str) else widths.of(*asked)).name
            units = operator.index(size)
        except KeyError as error:
            problems.append(str(error.args[0]))
        except TypeError:
            problems.append(f"{asked}: the number of units must be an integer, got {size!r}")
        else:
            if new.setdefault(name, units) != units:
                problems.append(f"{name}: asked for two sizes, {new[name]} and {units}")
    return new


def _strategies(
    widths: Widths, strategy: Strategy | Mapping[str, Strategy] | None, problems: list[str]
) -> Mapping[str, Strategy]:
    """Returns the strategy of each width that has one of its own."""
    if strategy is None or isinstance(strategy, Strategy):
        return dict.fromkeys(widths, strategy or zero_outgoing())
    if not isinstance(strategy, Mapping):
        raise TypeError(f"strategy must come from dw.strategies, got {strategy!r}")
    for name in strategy:
        try:
            widths[name]
        except KeyError as error:
            problems.append(f"strategy: {error.args[0]}")
    return strategy


def _refusals(
    widths: Widths, width: Width, new: int, strategy: Strategy, interface: bool
) -> list[str]:
    """Returns why a width cannot take its new size with this strategy."""
    name, old = width.name, width.size
    if new < old:
        return [f"{name}: {new} units are fewer than today's {old}; growing never drops units"]
    if width.fixed:
        return [
            f"{name}: cannot grow from {old} to {new}: {width.fixed}; it occurs in {_places(width)}"
        ]
    problems = []
    if width.interface and not interface:
        problems.append(
            f"{name}: is a dimension of an input or output; pass interface=True to append to it"
        )
    if strategy.preserving:
        problems += [
            f"{name}: growing it from {old} to {new} would change outputs: {hazard}; "
            f"it occurs in {_places(width)}; strategies.random() ignores this"
            for hazard in width.hazards
        ]
    if strategy.incoming == "zero" and width.zero_hazard:
        problems.append(
            f"{name}: new units cannot have zero incoming weights: {width.zero_hazard}; "
            "use strategies.zero_outgoing()"
        )
    if strategy.incoming == "copy" and width.interface:
        problems.append(
            f"{name}: units of an input or output cannot be copied, for new inputs are not copies "
            "of old ones; use strategies.zero_outgoing()"
        )
    if strategy.preserving and strategy.incoming == "copy":
        problems += [
            f"{name}: copying units would change outputs: {hazard}; use strategies.zero_outgoing()"
            for hazard in width.copy_hazards
        ]
    return problems


def _places(width: Width) -> str:
    places = [f"{o.path}[{o.axis}]" for o in width.occurrences[:4]]
    more = len(width.occurrences) - len(places)
    return ", ".join(places) + (f" and {more} more" if more else "")


def _sizes_of_target(
    widths: Widths, target: PyTree, asked: Mapping[str, int], problems: list[str]
) -> dict[str, int]:
    """Returns the size of every width that explains the target's shapes."""
    shapes = {
        path: tuple(leaf.shape) for path, leaf in leaves_by_path(target).items() if is_array(leaf)
    }
    leaves = {leaf.path: leaf for leaf in widths.leaves}
    problems += [f"{path}: not in the target" for path in leaves if path not in shapes]
    problems += [f"{path}: only in the target" for path in shapes if path not in leaves]
    equations: list[tuple[str, Layout, int]] = []
    for path, leaf in leaves.items():
        shape = shapes.get(path, leaf.shape)
        if len(shape) != len(leaf.shape):
            problems.append(f"{path}: has {len(leaf.shape)} axes, in the target {len(shape)}")
            continue
        for axis, (layout, size) in enumerate(zip(leaf.axes, shape, strict=True)):
            equations.append((f"{path}[{axis}]", layout, size))
    known = dict(asked)
    _solve(equations, known)
    _solve_composites(equations, known, widths, problems)
    sizes = widths.sizes | known
    for place, layout, size in equations:
        if (found := size_of(layout, sizes)) != size:
            names = dict.fromkeys(u.width for u in units_of(layout))
            facts = [f"{n}={sizes[n]}" + _because(widths[n].fixed) for n in names]
            problems.append(
                f"{place}: is {size} long in the target, but {layout} = {found} "
                f"({', '.join(facts)})"
            )
    return known


def _because(reason: str | None) -> str:
    return f", fixed because {reason}" if reason else ""


def _solve(equations: list[tuple[str, Layout, int]], known: dict[str, int]) -> None:
    """Adds to ``known`` every size that follows from an axis with one unknown width."""
    progress = True
    while progress:
        progress = False
        for _, layout, size in equations:
            unknown = {u.width for u in units_of(layout)} - known.keys()
            if len(unknown) == 1:
                (name,) = unknown
                if (value := _solution(layout, size, name, known)) is not None:
                    known[name] = value
                    progress = True


def _solve_composites(
    equations: list[tuple[str, Layout, int]],
    known: dict[str, int],
    widths: Widths,
    problems: list[str],
) -> None:
    """Settles axes in which several widths are unknown: there must be just one way to grow them."""
    old = widths.sizes
    for place, layout, size in equations:
        _solve(equations, known)
        unknown = list(dict.fromkeys(u.width for u in units_of(layout) if u.width not in known))
        free = [name for name in unknown if not widths[name].fixed]
        pinned = known | {name: old[name] for name in unknown if name not in free}
        options = list(islice(_solutions(layout, size, free, old, pinned), 3)) if unknown else []
        if len(options) > 1:
            choices = " or ".join(
                ", ".join(f"{n}={size}" for n, size in option.items()) for option in options
            )
            problems.append(
                f"{place}: {layout} is {size} long in the target, but the shapes do not say "
                f"whether {choices}; say so with sizes={{name: units}} beside target="
            )
        chosen = options[0] if len(options) == 1 else {name: old[name] for name in free}
        known.update(pinned | chosen)


def _solutions(
    layout: Layout,
    size: int,
    unknown: Sequence[str],
    old: Mapping[str, int],
    known: Mapping[str, int],
) -> Iterator[dict[str, int]]:
    """Yields every way in which unknown widths, none smaller than before, make up an axis."""
    if not unknown:
        if size_of(layout, known) == size:
            yield {}
        return
    name, *others = unknown
    smallest = {other: old[other] for other in others}
    if not others:
        value = _solution(layout, size, name, known)
        if value is not None and value >= old[name]:
            yield {name: value}
        return
    value = old[name]
    while size_of(layout, {**known, **smallest, name: value}) <= size:
        for rest in _solutions(layout, size, others, old, {**known, name: value}):
            yield {name: value, **rest}
        value += 1


def _solution(layout: Layout, size: int, name: str, known: Mapping[str, int]) -> int | None:
    """Returns the size of ``name`` with which a layout is ``size`` long, if there is one."""
    # The length is a polynomial in the unknown that never falls, so the solution is unique.
    low, high = 0, max(size, 1)
    while low < high:
        middle = (low + high) // 2
        if size_of(layout, {**known, name: middle}) < size:
            low = middle + 1
        else:
            high = middle
    return low if size_of(layout, {**known, name: low}) == size else None


__all__ = ["Change", "Concat", "Growth", "Product", "Units", "plan"]
