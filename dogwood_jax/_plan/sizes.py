"""The sizes and strategies that a request stands for, by name of the width: ``asked_of``."""

import operator
from collections.abc import Iterator, Mapping
from dataclasses import replace
from inspect import isfunction
from math import prod
from typing import Any

from dogwood_jax import strategies
from dogwood_jax._base.arguments import is_integer
from dogwood_jax._base.described import described, first_line
from dogwood_jax._base.trees import PyTree
from dogwood_jax._growth.modules.resizing import Resizing
from dogwood_jax._plan.asked import Asked, Request
from dogwood_jax._plan.experts.planned import experts_instead
from dogwood_jax._plan.heads import ways_out_of_heads, with_copied_heads
from dogwood_jax._plan.larger_model import NOT_AT_HAND, Larger, is_deeper, is_single
from dogwood_jax._plan.numbers_of_sizes import tables_of
from dogwood_jax._plan.obstacles import OTHER_IMAGES, fewer, other_images
from dogwood_jax._plan.own_function import WITH_TARGET
from dogwood_jax._program.dims import LAYERS, SPATIAL
from dogwood_jax._program.reasons import kind_of
from dogwood_jax._widths.layout import size_of
from dogwood_jax._widths.widths import Widths
from dogwood_jax.strategies import Start, Strategy

# JAX counts the entries of an axis in 32 bits.
_MOST_UNITS = 2**31 - 1

_EACH_ALONE = (
    "with new layers, programs do not show which constants follow from sizes: grow the widths "
    "first, or insert the layers first, each in a growth of its own"
)

_MORE_LAYERS = (
    "if the larger model has more layers, pass its function of variables and inputs as "
    "target_apply=, and they are inserted"
)

_FEWER_LAYERS = (
    "if the target is to have fewer layers, say which ones stay, because growing never drops "
    'arrays; keep={"layers": [0, 1, 5]} keeps layers_0, layers_1 and layers_5; '
    "keep={name of the width: [0, 1, 5]} keeps those of a stack over which a loop runs"
)

_OF_A_START = (
    "it must return what new units begin with, as dw.strategies.start() does; an initializer goes "
    "into start(incoming=initializer)"
)

_BY_TARGET = "new layers are inserted by target= and target_apply="


def asked_of(request: Request, larger: Larger | None, problems: list[str]) -> Asked:
    """Returns the requested sizes, given by name or by a larger model; see ``plan``."""
    widths = request.widths
    named = named_sizes(widths, request.sizes, problems, request.interface)
    problems += [
        f"{name}: {note}; pass target="
        for name in (named if larger is None else ())
        for note in widths[name].notes
        if kind_of(note) == "unread" and named[name] != widths[name].size
    ]
    if larger is None:
        return _with_strategies(Asked(widths, named, widths, named), request, problems)
    problems += [
        f"{name}: asked for {size} units, but the larger model has {larger.sizes[name]}"
        for name, size in named.items()
        if larger.sizes.get(name, size) != size
    ]
    asked = Asked(widths, named, widths, {}, larger)
    asked = with_copied_heads(asked.explained(widths, {**larger.sizes, **named}))
    problems += asked.problems
    return _with_strategies(asked, request, problems)


def _with_strategies(asked: Asked, request: Request, problems: list[str]) -> Asked:
    strategy = request.strategy
    if isinstance(strategy, Mapping):
        gone = [n for n in strategy if n in asked.before and n not in asked.widths]
        problems += [f"{name}: its unit is copied; leave it out of strategy=" for name in gone]
        strategy = {name: one for name, one in strategy.items() if name not in gone}
    chosen = starts_by_name(asked.widths, strategy, asked.sizes, problems)
    if isinstance(request.strategy, Mapping):
        problems += [
            f"{name}: has a strategy, but does not grow; leave it out of strategy="
            for name in chosen
            if name in asked.widths and asked.sizes.get(name, 0) <= asked.widths[name].size
            if chosen[name].method is None
        ]
    return replace(asked, starts={**chosen, **asked.starts})


def ways_out(asked: Asked) -> Iterator[str]:
    """Yields advice on what to pass instead if the growth is refused."""
    larger, before = asked.larger, asked.before
    if larger.shapes:
        yield from ways_out_of_heads(asked)
        yield from experts_instead(before, larger.shapes)
        yield from other_images(before, larger.shapes)
        grown = [n for n, size in asked.sizes.items() if n in before and size > before[n].size]
        shifted = [n for n in grown if before[n].interface and n[-1:].isdigit()]
        if shifted and (larger.inserted or is_deeper(before, larger.shapes)):
            yield (
                "give the last layer a name of its own in both models, because automatic names are "
                f"numbered: {shifted[0]} is the output of one and a hidden layer of the other"
            )
        if larger.inserted and _meets_numbers(asked):
            yield _EACH_ALONE
        unread = larger.widths is None and before.network is not None
        if unread and is_deeper(before, larger.shapes):
            yield _MORE_LAYERS
        elif larger.shapes.keys() < {leaf.path for leaf in before.leaves}:
            yield _FEWER_LAYERS
    elif any(
        asked.widths[name].fixed == LAYERS and size > asked.widths[name].size
        for name, size in asked.sizes.items()
    ):
        yield _BY_TARGET
    elif any(
        SPATIAL in (asked.widths[name].fixed or "") and size != asked.widths[name].size
        for name, size in asked.sizes.items()
    ):
        yield OTHER_IMAGES


def _meets_numbers(asked: Asked) -> bool:
    """Whether a width grows that has a table with a constant for each unit."""
    widths, sizes = asked.widths, asked.sizes
    return bool(tables_of(asked.before, [n for n in sizes if sizes[n] > widths[n].size]))


def copies_a_unit(request: Request) -> bool:
    """Whether a single unit should become several.

    Then the network's own function in the new sizes shows where the copies of the unit go.
    """
    widths = request.widths
    named = {} if widths.network is None else named_sizes(widths, request.sizes, [])
    return any(size > widths[n].size and is_single(widths[n]) for n, size in named.items())


def target_in_sizes(
    widths: Widths, sizes: Mapping[Any, int], problems: list[str]
) -> tuple[PyTree, Mapping[str, int]]:
    """Returns the network's variables in other sizes, to be a target, and the sizes of all widths.

    Args:
        widths: the widths of the network.
        sizes: new sizes by name of the width, or by place.
        problems: receives problems: there is no such width, a size is smaller than today's, or
            numbers that modules among the variables hold are not known in these sizes.

    Raises:
        ValueError: if the widths do not hold the network.
    """
    if widths.network is None:
        raise ValueError(NOT_AT_HAND)
    named = named_sizes(widths, sizes, problems)
    for name, size in named.items():
        problems += fewer(widths[name], size)
    resizing = Resizing(widths.leaves, named)
    target = resizing.resized(widths.network.variables)
    problems += (f"{problem}; {WITH_TARGET}" for problem in resizing.problems)
    return target, widths.sizes | named


def by_name(
    widths: Widths, asked: Mapping[Any, Any], problems: list[str], interface: bool = False
) -> Iterator[tuple[str, Any]]:
    """Yields the name of each width with its value in ``asked``.

    A key is the name of a width, a place ``(path, axis)``, or the path of an array in which only
    one width can grow. Widths of inputs and outputs count as able to grow if ``interface`` is True.
    """
    for place, value in asked.items():
        is_place = isinstance(place, tuple) and len(place) == 2
        try:
            if is_place:
                width = widths.of(*place)
            else:
                is_name = place in widths or not isinstance(place, str)
                is_name = is_name or not widths.leaves_at(place)
                width = widths[place] if is_name else widths.within(place, interface=interface)
            yield width.name, value
        except KeyError as error:
            parts = {part for leaf in widths.leaves for part in leaf.path.split("/")[:-1]}
            numbered = {part for part in parts if part[-1:].isdigit()}
            more = f"; {_BY_TARGET}" if place in {"layers", *numbered} else ""
            problems.append(f"{error.args[0]}{more}")


def named_sizes(
    widths: Widths, sizes: Mapping[Any, int], problems: list[str], interface: bool = False
) -> dict[str, int]:
    """Returns the requested sizes by name of the width."""
    if trees := [name for name, size in sizes.items() if isinstance(size, Mapping)]:
        problems.append(
            f"pass the arrays of a larger model as target=; sizes= takes a number of units for "
            f"each width, but {trees[0]!r} has a mapping"
        )
        return {}
    new: dict[str, int] = {}
    for name, size in by_name(widths, sizes, problems, interface):
        if not is_integer(size):
            problems.append(f"{name}: the number of units must be an integer, got {size!r}")
        elif size < 1:
            problems.append(f"{name}: a width has at least one unit, got {size}")
        elif size > _MOST_UNITS:
            problems.append(f"{name}: {size} units are too many: {_bytes(widths, name, size)}")
        elif new.setdefault(name, operator.index(size)) != size:
            problems.append(f"{name}: asked for two sizes, {new[name]} and {size}")
    return new


def _bytes(widths: Widths, name: str, size: int) -> str:
    """Returns a text with the size of the largest array of a width."""
    arrays = {
        leaf.path: prod(size_of(layout, {**widths.sizes, name: size}) for layout in leaf.axes)
        for leaf in map(widths.leaf, {o.path for o in widths[name].occurrences})
    }
    path = max(arrays, key=lambda path: (arrays[path], path))
    return f"{path} would take {4 * arrays[path] / 1e9:,.0f} GB in float32"


def starts_by_name(
    widths: Widths,
    strategy: Strategy | Mapping[str, Strategy] | None,
    sizes: Mapping[str, int],
    problems: list[str],
) -> dict[str, Start]:
    """Returns the initial values of new units, by name of each width that has a strategy."""
    if strategy is None:
        return {}
    by_name = strategy if isinstance(strategy, Mapping) else dict.fromkeys(widths, strategy)
    for one in by_name.values():
        is_uncalled = isfunction(one) and vars(strategies).get(one.__name__) is one
        is_uncalled |= isinstance(one, type)
        if is_uncalled or not callable(one):
            raise TypeError(
                "strategy must come from dw.strategies, such as dw.strategies.replicate(), or be a "
                "function (widths, name, old, new), got "
                f"{f'the function {one.__name__}: call it' if is_uncalled else repr(one)}"
            )
    found: dict[str, Start] = {}
    for name, one in by_name.items():
        try:
            old, new = widths[name].size, sizes.get(name, 0)
        except KeyError as error:
            problems.append(f"strategy: {error.args[0]}")
            continue
        if isinstance(one, Start):
            found[name] = one
        elif new > old:
            found[name] = _begun(one, widths, name, new)
    return found


def _begun(strategy: Strategy, widths: Widths, name: str, new: int) -> Start:
    """Returns the initial values of new units that a caller's strategy returns.

    Raises:
        TypeError: if the strategy raises an error, or returns something else.
    """
    call = f"{described(strategy)}, called with (widths, {name!r}, {widths[name].size}, {new})"
    try:
        start = strategy(widths, name, widths[name].size, new)
    except Exception as error:  # any function may raise
        raise TypeError(f"strategy: {call}, raises {first_line(error)}; {_OF_A_START}") from error
    if not isinstance(start, Start):
        raise TypeError(f"strategy: {call}, returns {described(start)}; {_OF_A_START}")
    return start
