"""The sizes of the widths of a larger model, from the shapes of its arrays."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice

from dogwood_jax._layout import Layout, size_of, units_of
from dogwood_jax._tree import PyTree, is_array, leaves_by_path
from dogwood_jax._widths import Widths


def sizes_of_target(
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


__all__ = ["sizes_of_target"]
