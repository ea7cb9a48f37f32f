"""The sizes of a larger model's widths, from the shapes of its arrays.

Each axis is an equation, ``layout(sizes) == length in the target``. An axis of a single width
states its size. Axes of several widths, such as a product heads * head_dim or a concatenation of
query, key and value, are solved together if they share widths that no axis states. Sizes are whole
numbers and not smaller than today's. Fixed widths keep their sizes. A single solution is the
answer. Of several solutions none is preferred: heads of other sizes are another function.
"""

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isqrt

from dogwood_jax._base.trees import PyTree, arrays_of, leaves_by_path
from dogwood_jax._widths.attention import HEAD_DIM, VALUE_DIM
from dogwood_jax._widths.layout import Layout, Product, Units, size_of, units_of
from dogwood_jax._widths.widths import Width, Widths

# The sizes that a width may still have, in ascending order.
Domain = Sequence[int]

_NEVER_LESS = "growing never drops units, dw.narrow removes them"
_MOST_WAYS = 100  # at most this many solutions are collected; further ones are only "more"
_MOST_WORK = 100_000  # upper limit on the work of a search, see ``Equation.work``


def of_heads(width: Width) -> str:
    """Returns advice on keeping the size of heads if a width is their dimension, else nothing."""
    if width.label not in (HEAD_DIM, VALUE_DIM):
        return ""
    return (
        "if the larger model has more heads, give it heads of the old size, for example by "
        "qkv_features= or qk_size="
    )


@dataclass(frozen=True, eq=False)
class Equation:
    """A layout, its length in the target, and the axes with this layout and length."""

    layout: Layout
    length: int
    places: list[str]

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The widths in the layout."""
        return tuple(dict.fromkeys(units.width for units in units_of(self.layout)))

    @cached_property
    def work(self) -> int:
        """The cost of narrowing all domains by this equation once, in units in the layout."""
        return len(self.names) * sum(1 for _ in units_of(self.layout))

    def fitting(self, name: str, domains: Mapping[str, Domain]) -> Domain:
        """Returns the sizes of a width with which other widths can complete the length."""
        least = {other: domains[other][0] for other in self.names}
        most = {other: domains[other][-1] for other in self.names}

        def shortest(size: int) -> int:
            return size_of(self.layout, {**least, name: size})

        def longest(size: int) -> int:
            return size_of(self.layout, {**most, name: size})

        # A layout never gets shorter when a width grows, so bisection finds both ends.
        sizes = domains[name]
        first = bisect_left(sizes, self.length, key=longest)
        return sizes[first : bisect_right(sizes, self.length, key=shortest)]


def sizes_of_target(
    widths: Widths, target: PyTree, asked: Mapping[str, int], problems: list[str]
) -> dict[str, int]:
    """Returns the sizes with which the widths explain the target's shapes.

    Args:
        widths: the widths of the network that grows.
        target: a pytree of arrays or ``jax.ShapeDtypeStruct`` of the larger model.
        asked: sizes that the caller has chosen.
        problems: receives a line for each reason why the target cannot be explained.

    Returns:
        Sizes by name of the width, including ``asked``. Widths in doubt are left out.
    """
    equations, unread = _equations(widths, target, problems)
    known, doubtful = _stated_sizes(equations, widths, asked, problems)
    doubtful |= unread - known.keys()
    settled = known.keys() | {name for name in widths if widths[name].fixed}
    composite = [equation for equation in equations if not isinstance(equation.layout, Units)]
    for system in _independent(composite, settled):
        # Conclusions from a width in doubt would be misleading.
        if doubtful.isdisjoint(name for equation in system for name in equation.names):
            known |= _solved(system, widths, known, problems)
    return known


def _equations(
    widths: Widths, target: PyTree, problems: list[str]
) -> tuple[list[Equation], set[str]]:
    """Returns the equations, and the widths of the arrays that could not be compared."""
    arrays = arrays_of(leaves_by_path(target))
    shapes = {path: tuple(array.shape) for path, array in arrays.items()}
    leaves = {leaf.path: leaf for leaf in widths.leaves}
    problems += [f"{path}: not in the target" for path in leaves if path not in shapes]
    problems += [f"{path}: only in the target" for path in shapes if path not in leaves]
    equations: dict[tuple[Layout, int], Equation] = {}
    unread: set[str] = set()
    for path, leaf in leaves.items():
        shape = shapes.get(path)
        if shape is None or len(shape) != len(leaf.shape):
            unread |= {units.width for layout in leaf.axes for units in units_of(layout)}
            if shape is not None:
                problems.append(f"{path}: has {len(leaf.shape)} axes, in the target {len(shape)}")
            continue
        for axis, (layout, length) in enumerate(zip(leaf.axes, shape, strict=True)):
            layout = _without_roles(layout)
            equation = equations.setdefault((layout, length), Equation(layout, length, []))
            equation.places.append(f"{path}[{axis}]")
    return list(equations.values()), unread


def _without_roles(layout: Layout) -> Layout:
    """Returns a layout without roles, which do not matter for its length."""
    if isinstance(layout, Units):
        return Units(layout.width, layout.size, "both")
    return type(layout)(tuple(map(_without_roles, layout.parts)))


def _stated_sizes(
    equations: Iterable[Equation],
    widths: Widths,
    asked: Mapping[str, int],
    problems: list[str],
) -> tuple[dict[str, int], set[str]]:
    """Returns the sizes that were requested or that axes of a single width state.

    Also returns the widths in doubt: axes disagree on their sizes, or they would shrink.
    """
    stated: dict[str, list[Equation]] = {}
    for equation in equations:
        if isinstance(equation.layout, Units):
            stated.setdefault(equation.layout.width, []).append(equation)
    known = dict(asked)
    doubtful = {name for name, size in asked.items() if size < widths[name].size}
    for name, candidates in stated.items():
        # The odd one out is the likelier mistake.
        best = max(candidates, key=lambda equation: len(equation.places))
        size, source = best.length, _listed(best.places)
        if name in asked:
            size, source = asked[name], "sizes="
        wrong = [equation for equation in candidates if equation.length != size]
        problems += [f"{_length(equation)}, but {name} = {size} in {source}" for equation in wrong]
        if wrong:
            doubtful.add(name)
        elif name not in asked and size < (today := widths[name].size):
            doubtful.add(name)
            reasons = f"{size} units are fewer than today's {today}; {_NEVER_LESS}"
            thoughts = [of_heads(widths[name]), reasons, f"see {source} in the target"]
            problems.append(f"{name}: {'; '.join(filter(None, thoughts))}")
        else:
            known[name] = size
    return known, doubtful


def _independent(equations: Sequence[Equation], settled: set[str]) -> Iterator[list[Equation]]:
    """Yields the equations in groups that share no widths except settled ones."""
    sharing: dict[str, list[Equation]] = {}
    for equation in equations:
        for name in equation.names:
            if name not in settled:
                sharing.setdefault(name, []).append(equation)
    reached: set[Equation] = set()
    for first in equations:
        if first in reached:
            continue
        group = {first: None}
        waiting = [first]
        while waiting:
            for name in waiting.pop().names:
                # Each width is visited once, which keeps the cost linear.
                new = [other for other in sharing.pop(name, ()) if other not in group]
                group |= dict.fromkeys(new)
                waiting += new
        reached |= group.keys()
        yield list(group)


def _solved(
    system: Sequence[Equation], widths: Widths, known: Mapping[str, int], problems: list[str]
) -> dict[str, int]:
    """Returns the sizes that satisfy all equations, or nothing and adds to ``problems``."""
    ways, complete = _ways(system, _domains(system, widths, known))
    if complete and len(ways) == 1:
        return ways[0]
    if not complete and len(ways) < 2:
        places = _listed([place for equation in system for place in equation.places])
        problems.append(
            f"{places}: there are too many sizes to try; pass some with sizes= and target=, or "
            f"pass target_apply=: {_facts(system, widths, known)}"
        )
    elif ways:
        problems.append(_choices(system, widths, known, ways, complete))
    else:
        problems += [
            _contradiction(core, widths, known) for core in _contradictions(system, widths, known)
        ]
    return {}


def _domains(
    system: Iterable[Equation], widths: Widths, known: Mapping[str, int]
) -> dict[str, Domain]:
    """Returns the sizes that each width may have, from each equation on its own."""
    domains: dict[str, Domain] = {}
    for equation in system:
        for name in equation.names:
            today = widths[name].size
            if name in known or widths[name].fixed:
                domains[name] = (known.get(name, today),)
                continue
            longest = max(today, equation.length)
            sizes = domains.get(name, range(today, longest + 1))
            sizes = sizes[: bisect_right(sizes, longest)]
            if equation.length and name in _factors(equation.layout):
                sizes = [size for size in _divisors(equation.length) if size in sizes]
            domains[name] = sizes
    return domains


def _factors(layout: Layout) -> set[str]:
    """Returns the widths whose size always divides the length of a layout."""
    if isinstance(layout, Units):
        return {layout.width}
    parts = [_factors(part) for part in layout.parts]
    return set.union(*parts) if isinstance(layout, Product) else set.intersection(*parts)


def _divisors(number: int) -> list[int]:
    small = [n for n in range(1, isqrt(number) + 1) if number % n == 0]
    return sorted({*small, *(number // n for n in small)})


def _ways(
    system: Sequence[Equation], domains: dict[str, Domain], most: int = _MOST_WAYS
) -> tuple[list[dict[str, int]], bool]:
    """Returns sizes out of the domains that satisfy all equations, and whether these are all."""
    if not all(domains.values()):
        return [], True
    sharing: dict[str, list[Equation]] = {name: [] for name in domains}
    for equation in system:
        for name in equation.names:
            sharing[name].append(equation)
    ways: list[dict[str, int]] = []
    work = _MOST_WORK
    stack: list[tuple[dict[str, Domain], Sequence[Equation]]] = [(domains, system)]
    while stack:
        domains, changed = stack.pop()
        possible, work = _narrow(domains, changed, sharing, work)
        if work <= 0 or len(ways) == most:
            return ways, False
        if not possible:
            continue
        undecided = [name for name, sizes in domains.items() if len(sizes) > 1]
        if not undecided:
            ways.append({name: sizes[0] for name, sizes in domains.items()})
            continue
        name = min(undecided, key=lambda name: len(domains[name]))
        for sizes in (domains[name][1:], domains[name][:1]):
            stack.append(({**domains, name: sizes}, sharing[name]))
    return ways, True


def _narrow(
    domains: dict[str, Domain],
    changed: Iterable[Equation],
    sharing: Mapping[str, Sequence[Equation]],
    work: int,
) -> tuple[bool, int]:
    """Removes sizes from the domains that fit no sizes of other widths, while work is left.

    Args:
        domains: sizes by width, narrowed in place.
        changed: equations in which a domain has changed.
        sharing: the equations of each width.
        work: the remaining budget of work.

    Returns:
        Whether the equations may have a solution, and the remaining budget.
    """
    waiting = deque(changed)
    queued = set(waiting)
    while waiting and work > 0:
        equation = waiting.popleft()
        queued.discard(equation)
        work -= equation.work
        for name in equation.names:
            sizes = equation.fitting(name, domains)
            if not sizes:
                return False, work
            if len(sizes) < len(domains[name]):
                domains[name] = sizes
                new = [other for other in sharing[name] if other not in queued]
                waiting += new
                queued.update(new)
    return True, work


def _contradictions(
    system: Sequence[Equation], widths: Widths, known: Mapping[str, int]
) -> Iterator[list[Equation]]:
    """Yields disjoint sets of equations without a solution, each as small as possible."""

    def solvable(equations: Sequence[Equation]) -> bool:
        ways, complete = _ways(equations, _domains(equations, widths, known), most=1)
        return bool(ways) or not complete

    left = list(system)
    while not solvable(left):
        core = left
        for equation in reversed(left):
            fewer = [other for other in core if other is not equation]
            if not solvable(fewer):
                core = fewer
        yield core
        left = [equation for equation in left if equation not in core]


# Lines of errors ----------------------------------------------------------------------------------


def _contradiction(core: Sequence[Equation], widths: Widths, known: Mapping[str, int]) -> str:
    """Returns the problem that no growth explains these axes together."""
    facts = _facts(core, widths, known)
    if len(core) == 1:
        (equation,) = core
        today = size_of(equation.layout)
        if equation.length < today:
            return f"{_length(equation)}, fewer than today's {today}; {_NEVER_LESS}"
        return f"{_length(equation)}, which no growth explains: {equation.layout} with {facts}"
    lengths = " and ".join(f"{_length(equation)}: {equation.layout}" for equation in core)
    return f"{lengths}; no growth explains these together, with {facts}"


def _choices(
    system: Sequence[Equation],
    widths: Widths,
    known: Mapping[str, int],
    ways: Sequence[Mapping[str, int]],
    complete: bool,
) -> str:
    """Returns the problem that several choices of sizes explain the axes equally well."""
    # The fewest changes come first.
    today = widths.sizes
    ways = sorted(ways, key=lambda way: sum(way[name] != today[name] for name in way))
    unclear = [name for name in ways[0] if name not in known and not widths[name].fixed]
    if complete:  # else any of them may have another size in a solution that was not collected
        unclear = _telling(unclear, ways)
    choices = [{name: way[name] for name in unclear} for way in ways]
    first = next(equation for equation in system if not set(unclear).isdisjoint(equation.names))
    said = " or ".join(map(str, choices[:3]))
    if len(choices) > 3:
        said += f" or {'' if complete else 'more than '}{len(choices) - 3} others"
    return (
        f"{_length(first)}, but for {first.layout} the shapes do not say whether {said}; "
        "say so with sizes= and target=, or pass target_apply=, the larger model's function"
    )


def _telling(names: Sequence[str], ways: Sequence[Mapping[str, int]]) -> list[str]:
    """Returns a few widths whose sizes distinguish all solutions."""
    telling: list[str] = []
    apart = 1
    for name in names:
        more = len({tuple(way[other] for other in (*telling, name)) for way in ways})
        if more > apart:
            telling.append(name)
            apart = more
    return telling


def _facts(equations: Iterable[Equation], widths: Widths, known: Mapping[str, int]) -> str:
    """Returns a text with the known sizes or bounds of the widths in some equations."""
    facts = []
    for name in dict.fromkeys(name for equation in equations for name in equation.names):
        if name in known:
            facts.append(f"{name} = {known[name]}")
        elif reason := widths[name].fixed:
            facts.append(f"{name} = {widths[name].size} (fixed: {reason})")
        else:
            facts.append(f"{name} >= {widths[name].size}")
    return ", ".join(facts)


def _length(equation: Equation) -> str:
    first, *others = equation.places
    return f"{first}: is {equation.length} long in the target" + (
        f" (like {_listed(others)})" if others else ""
    )


def _listed(places: Sequence[str]) -> str:
    more = len(places) - 2
    return ", ".join(places[:2]) + (f" and {more} more" if more > 0 else "")


# Splits that depend on the larger model's configuration -------------------------------------------


def splits(widths: Widths, sizes: Mapping[str, int], *, every: bool) -> tuple[str, ...]:
    """Returns notes on how the larger model must split axes that are products of widths.

    An array of shape ``[in, heads * head_dim]`` is reshaped by the model, so its shape is the same
    for another number of heads. There is no note if arrays state all factors but one, because then
    the split is determined: before a flatten, for example, a kernel states the channels.

    Args:
        widths: the widths of the network that grows.
        sizes: new sizes by name of the width.
        every: whether to include axes whose factors do not change.
    """
    axes = [layout for leaf in widths.leaves for layout in leaf.axes]
    stated: set[str] = set()
    for layout in axes:
        names = {units.width for units in units_of(layout)}
        stated |= names if len(names) == 1 else set()
    new = {**widths.sizes, **sizes}
    changed = {
        name
        for name, width in widths.items()
        if new[name] != width.size or (every and not width.fixed)
    }
    modules: dict[str, list[str]] = {}
    said: set[str] = set()
    products = dict.fromkeys(p for layout in axes for p in _products(_without_roles(layout)))
    for product in sorted(products, key=lambda product: len(product.parts)):
        untold = {units.width for units in units_of(product)} - stated
        if len(untold) > 1 and not untold & changed <= said:
            said |= untold & changed
            module, split = _split(product, new)
            modules.setdefault(split, []).append(module)
    return tuple(
        f"{_listed(found)}: {split}" if found[0] else split for split, found in modules.items()
    )


def _products(layout: Layout) -> Iterator[Product]:
    if isinstance(layout, Product):
        yield layout
    if not isinstance(layout, Units):
        for part in layout.parts:
            yield from _products(part)


def _split(product: Product, sizes: Mapping[str, int]) -> tuple[str, str]:
    """Returns how an axis must be split. If all factors belong to one module, labels name them.

    Returns:
        The name of that module or an empty string, and the text.
    """
    modules = {units.width.rpartition("[")[0] for units in units_of(product)}
    (module,) = modules if len(modules) == 1 else ("",)
    factors = []
    for part in product.parts:
        label = str(part).replace(f"{module}[", "[") if module else str(part)
        brackets = not module or not isinstance(part, Units)
        factors.append(f"{size_of(part, sizes)} {f'({label})' if brackets else label}")
    whole = size_of(product, sizes)
    return module, f"the larger model must split {whole} into {' x '.join(factors)}"


__all__ = ["sizes_of_target", "splits"]
