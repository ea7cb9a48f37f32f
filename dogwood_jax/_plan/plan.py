"""Plan a growth: ``plan``."""

import math
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import jax
import numpy as np

from dogwood_jax import strategies
from dogwood_jax._base.arguments import (
    BOOLEAN,
    BY_WIDTH,
    FUNCTION,
    VARIABLES,
    WIDTHS,
    ArgumentKind,
    expect,
    expect_arrays,
    expect_given,
    is_integer,
)
from dogwood_jax._base.problems import listed
from dogwood_jax._base.trees import PyTree, arrays_of, leaves_by_path
from dogwood_jax._growth.growth import Change, Growth
from dogwood_jax._growth.insertion import Insertion
from dogwood_jax._plan.between import Between, find_between
from dogwood_jax._plan.comparison import Comparison, is_constant, is_scale
from dogwood_jax._plan.experts import exact_copies
from dogwood_jax._plan.groups import divided, single_heads_grow, split_groups, split_single_heads
from dogwood_jax._plan.larger import Larger, is_deeper, read_larger
from dogwood_jax._plan.more_experts import counts_experts
from dogwood_jax._plan.names import check_names
from dogwood_jax._plan.own_function import check_own_function, contradicted
from dogwood_jax._plan.solved import Solved, solve_recipes
from dogwood_jax._plan.target import of_heads, sizes_of_target, splits
from dogwood_jax._widths.dims import LAYERS
from dogwood_jax._widths.reasons import kind_of
from dogwood_jax._widths.widths import Recipe, Width, Widths
from dogwood_jax.strategies import DepthStrategy, Strategy

DEPTH = ArgumentKind(
    "strategies.stack(), strategies.interpose() or strategies.new_layers()",
    lambda value: isinstance(value, DepthStrategy),
)

# Kinds of hazards that the larger model's program may refute, and what to say if it does not.
_IN_LARGER_MODEL: Mapping[str, str] = {
    "table": (
        "not seen to stay in the larger model, as it does where each number follows from its "
        "position and from no size: rotary embeddings keep rotary_dim or begin with the old "
        "frequencies"
    ),
    "suspicion": "no rescaled array makes up for the larger model's numbers",
}

# Where old units keep numbers that follow from the size, such as theta**(-2 i / head_dim).
_MULTIPLES = (
    "numbers that follow from the size, as theta**(-i / size) does, stay in a multiple of it, "
    "where new units lie between old ones"
)

_MORE_EXPERTS = (
    "if the network gets more experts: dw.upcycle copies them, in a growth of their own, and says "
    "whether outputs stay"
)

_MORE_HEADS = (
    "if the larger model has more heads of keys and values for the same query heads, pass its "
    "function as target_apply=, and these heads are copied"
)

_HEADS_FOR_EACH = (
    "if the larger model has a head of keys and values for each query head, in the place of one "
    "for all: plan two growths, the first one with fewer of these heads"
)

_NEVER_LEARN = (
    "only if its new units are zero would outputs stay, and then they would never learn, because "
    "they are only multiplied with each other"
)

_LONELY = "one of them computes with a number that the other lacks"


def plan(
    widths: Widths,
    sizes: Mapping[Any, int] | None = None,
    *,
    target: PyTree = None,
    target_apply: Callable[..., Any] | None = None,
    keep: Mapping[Any, Any] | None = None,
    merge: Mapping[Any, Sequence[Sequence[int]]] | None = None,
    strategy: Strategy | Mapping[str, Strategy] | None = None,
    depth: DepthStrategy | None = None,
    interface: bool = False,
) -> Growth:
    """Plans a growth: works out what becomes of each array, without touching any values.

    With a preserving strategy, such as the default one, the grown network computes what the old one
    did. A width that cannot grow in this way is refused, with the reason. Some parts of a network
    compute with a width's size, such as a norm. If an exact recipe is known for such a width, it is
    the default. It may need other constants in the larger model: the growth's notes say which.
    Experts are copied where outputs stay, with as many times more of them chosen, see ``upcycle``.

    Args:
        widths: the widths of the network, from ``trace`` or ``chain``.
        sizes: new number of units by name of the width, or by ``(path, axis)`` of any place where
            it occurs.
        target: a pytree of arrays or ``jax.ShapeDtypeStruct`` of the larger model. Which widths
            differ is worked out; ``sizes`` settles what the shapes leave open. The grown
            variables get the target's tree structure.
        target_apply: the larger model's function of variables and inputs. It shows how the larger
            model splits products such as heads * head_dim, and whether heads of keys and values
            grow alone: then they are copied. It also shows whether the larger model computes the
            same, with the right constants. Where its numbers differ, as alpha / rank
            does, arrays are rescaled to make up for them, and a note says so. Where frequencies
            follow from a size, as in rotary embeddings, old units go to the multiples of their
            places that have the same ones, and a note says so. If the larger model has more layers,
            they are inserted, filled so that they compute the identity (see ``deepen``).
        keep: by width, the units that stay: their indices, in their new order, or a boolean mask.
            The others are removed. ``narrow`` does the same to variables, but moves the effect of
            constant units into biases before.
        merge: by width, groups of units that compute the same function, as ``find_symmetric``
            returns them. The first of a group stays and takes over the others' outgoing weights,
            see ``merge_symmetric``.
        strategy: one strategy for all widths, or a mapping from width name to strategy. Widths
            without one grow by ``strategies.zero_outgoing()``, or by the recipe they need.
        depth: how the layers that only the target has are filled in, such as
            ``strategies.stack()``, if not so that they compute the identity. It takes
            ``target_apply``.
        interface: whether widths that are dimensions of the network's inputs or outputs may
            change: old outputs stay, new ones are appended.

    Returns:
        The growth, for ``grow`` and ``grow_opt_state``.

    Raises:
        TypeError: if ``widths`` is no ``Widths``, or another argument is of the wrong kind.
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
        -----------  ------  -----  ----------------
        up/kernel    4x8     4x16   axis 1 free (up)
        up/bias      8       16     axis 0 free (up)
        down/kernel  8x2     16x2   axis 0 zero (up)
        >>> dw.plan(widths, keep={"up": [0, 2, 5]})
        Growth(up: 8 -> 3)
    """
    if sizes is None:
        expect("plan", widths=(WIDTHS, widths))
    else:
        expect("plan(widths, sizes)", widths=(WIDTHS, widths), sizes=(BY_WIDTH, sizes))
    expect_given(
        "plan",
        target=(VARIABLES, target),
        target_apply=(FUNCTION, target_apply),
        keep=(BY_WIDTH, keep),
        merge=(BY_WIDTH, merge),
        depth=(DEPTH, depth),
        interface=(BOOLEAN, interface),
    )
    if sizes is None and target is None and keep is None and merge is None:
        raise ValueError(
            "plan needs sizes, {name: units}, or target=, a larger model's variables; "
            "or keep= or merge= to remove units"
        )
    if target_apply is not None and target is None:
        raise ValueError("plan: target_apply= goes with target=, the variables of that function")
    if depth is not None and target_apply is None:
        raise ValueError("plan: depth= goes with target= and target_apply=, the deeper model")
    if target is not None:
        shapes = arrays_of(leaves_by_path(target))
        check_names(widths, shapes)
        if target_apply is None:
            paths = [leaf.path for leaf in widths.leaves]
            expect_arrays("plan", "target", target, shapes, paths)
    problems: list[str] = []
    new = named_sizes(widths, sizes or {}, problems)
    structure, larger, heads, ways_out = None, Larger({}), None, list[str]()
    before = widths
    if target is not None:
        structure = jax.tree.structure(target)
        larger = read_larger(widths, target, target_apply, depth)
        is_plain = all(given is None for given in (keep, merge, strategy))
        if is_plain and not (problems or new or larger.insertions):
            if counts_experts(widths, larger.shapes):
                ways_out.append(_MORE_EXPERTS)
        problems += [
            f"{name}: asked for {size} units, but the larger model has {larger.sizes[name]}"
            for name, size in new.items()
            if larger.sizes.get(name, size) != size
        ]
        told, contradictions = larger.sizes | new, list[str]()
        heads = split_single_heads(widths, larger)
        if heads is not None:
            widths, told = heads.widths, heads.asked(told)
        new = sizes_of_target(widths, larger.shapes, told, contradictions)
        shrinks = any(size < widths[name].size for name, size in new.items())
        if contradictions or shrinks:
            heads = split_groups(before, larger, heads)
        if heads is not None and heads.widths is not widths:
            widths, contradictions = heads.widths, []
            new = sizes_of_target(widths, larger.shapes, heads.asked(told), contradictions)
        elif contradictions and target_apply is None:
            if any(not {*pair} <= new.keys() for pair in divided(widths).items()):
                ways_out.append(_MORE_HEADS)
        problems += contradictions
    chosen = _strategies(widths, strategy, problems)
    without_strategy = {name: size for name, size in new.items() if name not in chosen}
    copies = exact_copies(widths, without_strategy, larger.widths, target, problems)
    notes = [*copies.notes]
    copied = {*copies.changes, *copies.pieces}
    others = {name: size for name, size in new.items() if name not in copied}
    others_grow = any(size != widths[name].size for name, size in others.items())
    if heads is not None:
        chosen = {**chosen, **dict.fromkeys(heads.copies, strategies.replicate())}
    is_checked = not problems and keep is None and merge is None
    is_checked &= depth is None and all(strategy.begins_exact for strategy in chosen.values())
    compared, between = None, Between()
    if is_checked and (others_grow or not copies.changes):
        its_sizes = new if heads is None else heads.sizes_in_program(new)
        divided_in_it = {} if heads is None else heads.divided
        compared = larger.compared(before, its_sizes, copies, divided_in_it)
        between = find_between(before, its_sizes, chosen, larger, copies, divided_in_it, compared)
        compared = between.compared or compared
    if heads is not None and compared is None:
        problems += [
            f"{split.heads}: heads of keys and values are copied in a growth of their own, without "
            "new layers and with strategies that keep outputs"
            for split in heads.splits
        ]
    changes, refusals = _extensions(widths, others, chosen, interface, larger, compared)
    unlike = [] if compared is None else [*compared.problems(changes, exactly=True)]
    solved = Solved()
    if compared and (refusals or unlike):
        found = solve_recipes(widths, compared, changes, chosen)
        again, still = _extensions(
            widths, others, chosen, interface, larger, compared, found.recipes
        )
        differing = [*compared.problems(again, exactly=True, solved=found.degrees)]
        if not still and (refusals or not differing):
            changes, refusals, unlike, solved = again, still, differing, found
    problems += refusals
    if copies.changes and larger.widths is not None and changes and compared is None:
        problems.append(
            f"{', '.join(changes)}: experts grow, too; without new layers and with strategies that "
            "keep outputs both go together, else plan one after the other, first with a target "
            "that only has more experts"
        )
    changes = {**copies.changes, **changes}
    for name, units in _by_name(widths, keep or {}, problems):
        _once(changes, name, problems)
        changes[name] = _kept(widths[name], units, interface, problems)
    for name, groups in _by_name(widths, merge or {}, problems):
        _once(changes, name, problems)
        changes[name] = _merged(widths[name], groups, interface, problems)
    whole = widths if copies.widths is None else copies.widths
    made = tuple(
        change
        for name in whole
        if (change := changes.get(name))
        if (change.new, change.sources) != (change.old, tuple(range(change.old)))
    )
    notes += [
        note for change in made for note in _notes(whole, change, is_seen=compared is not None)
    ]
    notes += between.notes
    problems += between.refusals(made)
    for change in made:
        notes += _constants(larger, change, problems)
    problems += [
        f"the larger model must add {number:.9g}, the epsilon of a norm, in {n} more "
        f"place{'s' * (n > 1)}; epsilons change only where the growth's notes say so"
        for number, n in larger.epsilons(widths, made)
        if not problems
    ]
    is_read = bool(larger.numbers) and widths.network is not None
    degrees = widths.network.traced.trace.degrees if is_read else {}  # type: ignore[union-attr]
    problems += (
        "the larger model has other numbers than the network: "
        + (" or ".join(f"{its:.6g} instead of {number:.6g}" for number, its, _ in pairs) or _LONELY)
        for pairs in larger.numbers
        if not any(is_constant(*pair, made) or is_scale(*pair, made, degrees) for pair in pairs)
    )
    if problems:
        if heads is None and target is not None and single_heads_grow(before, larger.shapes):
            ways_out.append(_MORE_HEADS if target_apply is None else _HEADS_FOR_EACH)
        unread = target is not None and target_apply is None and widths.network is not None
        if unread and is_deeper(widths, larger.shapes):
            problems.append(
                "if the larger model has more layers, pass its function of variables and inputs as "
                "target_apply=, and they are inserted"
            )
        if any(
            widths[name].fixed == LAYERS and size > widths[name].size for name, size in new.items()
        ):
            ways_out.append(
                "new layers are inserted by target= and target_apply=, along the first axis of "
                "arrays that a loop runs over: move an axis of layers to the front (MaxText: "
                "param_scan_axis=0)"
            )
        raise ValueError(listed("cannot plan this growth", problems + ways_out))
    if heads is not None:
        notes += heads.notes
    if compared is not None:
        notes += solved.notes(compared)
    if depth is not None:
        notes.append(_changes_outputs(depth, larger.insertions))
    if target_apply is None:
        sizes_now = {change.width: change.new for change in made}
        notes += splits(widths, sizes_now, every=target is not None)
    whole, made = between.widths(whole), between.changes(made)
    growth = Growth(whole, made, tuple(dict.fromkeys(notes)), structure, larger.insertions)
    problems += (
        f"{new.path}: cannot copy {new.source}, which has shape {growth.shapes[new.source]} then, "
        f"because its own shape is {new.shape}"
        for new in larger.insertions
        if new.fill == "copy" and new.source is not None and not new.layers
        if growth.shapes[new.source] != new.shape
    )
    if problems:
        raise ValueError(listed("cannot plan this growth", problems))
    if unlike:
        raise contradicted("the larger model", unlike)
    if is_checked and target_apply is None and (others_grow or not copies.changes):
        return check_own_function(growth, target, copies)
    return growth


def _cleared(width: Width, new: int, compared: Comparison) -> Width:
    """Returns a width without the hazards that the larger model's program refutes.

    A constant that looked computed from the size did not change, for example. If old units keep
    their numbers in every table, tables are hazards for copies only.
    """
    multiples = f"; {_MULTIPLES}, but {new} is no multiple of {width.size}" * bool(new % width.size)
    stay = width.name in compared.kept_tables
    tables = [hazard for hazard in width.hazards if stay and kind_of(hazard) == "table"]
    hazards = tuple(
        f"{hazard}, and {_IN_LARGER_MODEL[kind_of(hazard)]}"
        + multiples * (kind_of(hazard) == "table")
        if kind_of(hazard) in _IN_LARGER_MODEL
        else hazard
        for hazard in width.hazards
        if not (kind_of(hazard) == "suspicion" and compared.agrees)
        if (width.name, hazard) not in compared.refuted
        if hazard not in tables
    )
    return replace(
        width,
        hazards=hazards,
        copy_hazards=(*width.copy_hazards, *tables),
        recipes=width.recipes if hazards else (),
    )


def _changes_outputs(depth: DepthStrategy, insertions: Sequence[Insertion]) -> str:
    """Says that new layers change outputs, or that there are none."""
    if not insertions:
        return f"strategies.{depth}() fills in new layers, but the target has none"
    return f"outputs change, because strategies.{depth}() does not silence new layers"


def _by_name(
    widths: Widths, asked: Mapping[Any, Any], problems: list[str]
) -> Iterator[tuple[str, Any]]:
    """Yields what is asked of each width, by its name."""
    for place, value in asked.items():
        is_place = isinstance(place, tuple) and len(place) == 2
        try:
            yield (widths.of(*place) if is_place else widths[place]).name, value
        except KeyError as error:
            problems.append(str(error.args[0]))


def named_sizes(widths: Widths, sizes: Mapping[Any, int], problems: list[str]) -> dict[str, int]:
    """Returns the asked sizes by width name."""
    new: dict[str, int] = {}
    for name, size in _by_name(widths, sizes, problems):
        if not is_integer(size):
            problems.append(f"{name}: the number of units must be an integer, got {size!r}")
        elif new.setdefault(name, operator.index(size)) != size:
            problems.append(f"{name}: asked for two sizes, {new[name]} and {size}")
    return new


def _once(changes: Mapping[str, Change], name: str, problems: list[str]) -> None:
    if name in changes:
        problems.append(
            f"{name}: is to change in two ways, by sizes=, target=, keep= or merge=; "
            "plan one after the other"
        )


def _strategies(
    widths: Widths, strategy: Strategy | Mapping[str, Strategy] | None, problems: list[str]
) -> Mapping[str, Strategy]:
    """Returns the strategy of each width that is given one."""
    if strategy is None:
        return {}
    if isinstance(strategy, Strategy):
        return dict.fromkeys(widths, strategy)
    for one in strategy.values() if isinstance(strategy, Mapping) else [strategy]:
        if not isinstance(one, Strategy):
            raise TypeError(
                f"strategy must come from dw.strategies, such as dw.strategies.replicate(), "
                f"got {one!r}"
            )
    for name in strategy:
        try:
            widths[name]
        except KeyError as error:
            problems.append(f"strategy: {error.args[0]}")
    return strategy


# Growing ------------------------------------------------------------------------------------------


def _extensions(
    widths: Widths,
    sizes: Mapping[str, int],
    chosen: Mapping[str, Strategy],
    interface: bool,
    larger: Larger,
    compared: Comparison | None,
    solved: Mapping[str, Recipe] = MappingProxyType({}),
) -> tuple[dict[str, Change], list[str]]:
    """Returns how widths get more units, by name, and the reasons why some cannot."""
    problems: list[str] = []
    changes = {}
    for name, width in widths.items():
        if sizes.get(name, width.size) == width.size:
            continue
        known = width if compared is None else _cleared(width, sizes[name], compared)
        recipes = [solved[name]] if name in solved else None
        changes[name] = _extended(
            known, sizes[name], chosen.get(name), recipes, interface, larger, widths, problems
        )
    return changes, problems


def _extended(
    width: Width,
    new: int,
    strategy: Strategy | None,
    recipes: Sequence[Recipe] | None,
    interface: bool,
    larger: Larger,
    widths: Widths,
    problems: list[str],
) -> Change:
    """Returns how a width gets more units, after checking that it can."""
    ways = [
        Change(
            width.name,
            width.size,
            new,
            strategy or strategies.by_name(recipe.strategy if recipe else "zero_outgoing"),
            recipe=recipe,
        )
        for recipe in recipes or _recipes(width, new, strategy)
    ]

    def misfit(way: Change) -> tuple[bool, int]:
        """Whether the larger model has other constants than a way needs, and how many it lacks."""
        lacking = sum(count for _, count in larger.epsilons(widths, [way]))
        return next(_unlike(larger, way), None) is not None, lacking

    change = min(ways, key=misfit) if len(ways) > 1 else ways[0]
    problems += _refusals(width, new, change.strategy, change.recipe, interface)
    sources = _sources(width.size, new, change.strategy, problems, width.name)
    return replace(change, sources=sources)


def _recipes(width: Width, new: int, strategy: Strategy | None) -> Sequence[Recipe | None]:
    """Returns the recipes to choose from, with this strategy if there is one, or None."""
    if not width.hazards:
        return [None]
    name = None if strategy is None else strategy.recipes_for
    fitting = [
        recipe
        for recipe in width.recipes
        if (recipe.learns if name is None else recipe.strategy == name)
        if not recipe.multiple or new % width.size == 0
    ]
    return fitting or [None]


def _sources(
    old: int, new: int, strategy: Strategy, problems: list[str], name: str
) -> tuple[int, ...] | None:
    """Returns the old unit behind each new one, where a strategy copies units."""
    if bad := [unit for unit in strategy.units if old and not 0 <= unit < old]:
        problems.append(f"{name}: has units 0 to {old - 1}, so none of {bad} can be copied")
    return strategy.sources(old, new)


def _refusals(
    width: Width, new: int, strategy: Strategy, recipe: Recipe | None, interface: bool
) -> list[str]:
    """Returns why a width cannot take its new size with this strategy."""
    name, old = width.name, width.size
    if new < old:
        return [
            f"{name}: {new} units are fewer than today's {old}; growing never drops units; "
            f"say which ones stay with keep=, or use dw.narrow{of_heads(name)}"
        ]
    if width.fixed:
        return _fixed(width, new, "grow")
    obstacles = _obstacles(width, new, strategy, recipe)
    return _interface(width, interface) + [
        f"{name}: {obstacle}; {_ways_out(width)}" for obstacle in obstacles
    ]


def _obstacles(width: Width, new: int, strategy: Strategy, recipe: Recipe | None) -> Iterator[str]:
    """Yields what keeps a width that is not fixed from growing with this strategy."""
    if strategy.needs_recipe and recipe is None:
        known = any(strategy.recipes_for == other.strategy for other in width.recipes)
        reason = "is for widths under a norm that can grow no other way"
        if known:
            reason = f"cannot grow it from {width.size} to {new}"
        yield f"strategies.{strategy}() {reason}"
    elif strategy.begins_exact and recipe is None and width.hazards:
        dead = f"; {_NEVER_LEARN}" * any(not other.learns for other in width.recipes)
        yield (
            f"growing it from {width.size} to {new} would change outputs: "
            f"{'; '.join(width.hazards)}{dead}; it occurs in {_places(width)}"
        )
    if strategy.takes_multiples_only and width.size and new % width.size:
        yield f"strategies.{strategy}() grows it to multiples of {width.size} only, not to {new}"
    choice = strategy.choice
    zero_incoming = strategy.incoming == "zero" and not strategy.perturb
    zero_incoming |= choice is not None and choice.side == "outgoing"
    if zero_incoming and width.zero_hazard and recipe is None:
        yield f"new units cannot have zero incoming weights: {width.zero_hazard}"
    free_incoming = strategy.incoming == "free" and strategy.outgoing != "free"
    if (free_incoming or (choice and choice.side == "incoming")) and width.free_hazard:
        yield f"new units cannot have random incoming weights: {width.free_hazard}"
    roles = {occurrence.role for occurrence in width.occurrences}
    if choice and not ("incoming" in roles and roles - {"incoming"}):
        yield (
            f"strategies.{strategy}() chooses between incoming and outgoing weights, but the width "
            f"has {' and '.join(sorted(roles))} ones only"
        )
    if strategy.makes_alike and width.interface:
        yield (
            "units of an input or output cannot be copied, because new inputs are not copies of "
            "old ones"
        )
    if strategy.preserving and strategy.makes_alike and recipe is None:
        if width.copy_hazards:
            yield f"copying units would change outputs: {'; '.join(width.copy_hazards)}"


def _ways_out(width: Width) -> str:
    """Names the strategies with which a width can grow."""
    ways: list[tuple[Strategy, Recipe | None]] = [
        (strategies.zero_outgoing(), None),
        (strategies.replicate(), None),
        (strategies.zeros(), None),
    ]
    if width.hazards:
        ways = [(strategies.by_name(recipe.strategy), recipe) for recipe in width.recipes]
    open_ways = [way for way in ways if not [*_obstacles(width, 2 * width.size, *way)]]
    if open_ways and not width.hazards:
        return f"use strategies.{open_ways[0][0]}()"
    exact = [
        f"strategies.{strategy}() keeps outputs"
        + (", but new units never learn" if recipe and not recipe.learns else "")
        + (_multiples(width, recipe) if recipe and recipe.multiple else "")
        for strategy, recipe in open_ways
    ]
    kinds = {kind_of(hazard) for hazard in width.hazards}
    if kinds and (kinds <= _IN_LARGER_MODEL.keys() or "ambiguous" in kinds):
        exact.append(
            "if old units have the same numbers in a larger network, or numbers that rescaled "
            "arrays make up for, target= and target_apply= show it"
            + f" ({_MULTIPLES})"
            * any(kind_of(hazard) == "table" for hazard in width.hazards)
        )
    return "; ".join(dict.fromkeys([*exact, "strategies.random() grows it all the same"]))


def _multiples(width: Width, recipe: Recipe) -> str:
    """Says for which sizes a recipe is, and why for no others."""
    because = " (other sizes need units that are means of the old ones, but "
    return f" for multiples of {width.size}" + f"{because}{recipe.obstacle})" * bool(
        recipe.obstacle
    )


def _notes(widths: Widths, change: Change, *, is_seen: bool) -> Iterator[str]:
    """Yields what the larger model's configuration or the caller has to mind.

    Args:
        widths: all widths.
        change: how one of them changes.
        is_seen: whether the larger model's program is there, and so its constants are compared.
    """
    width = widths[change.width]
    if change.strategy.incoming == "free" and change.new > change.old and _is_output(widths, width):
        has_bias = any(len(widths.leaf(place.path).shape) == 1 for place in width.occurrences)
        rest = (
            "a bias below the others keeps it from winning until it has learned"
            if has_bias
            else "the mean of the old weights is a start in the middle of the others"
        )
        yield (
            f"{width.name}: new outputs begin with random weights, so the logit of a new class can "
            "be the largest at once; with strategies.zeros() for this width it begins at zero, and "
            f"{rest}"
        )
    is_silent = change.strategy.incoming == change.strategy.outgoing == "zero"
    if is_silent and change.new > change.old and not width.interface:
        yield (
            f"{width.name}: new units have zero incoming and zero outgoing weights, so behind a "
            "relu or a tanh they never learn; strategy= may be a mapping, with strategies.zeros() "
            "for outputs alone"
        )
    for note in width.notes:
        does_matter = {"silent": change.strategy.outgoing == "zero", "must_stay": not is_seen}
        if does_matter.get(kind_of(note), True):
            yield f"{width.name}: {note}"
    if change.strategy.noise:
        yield f"{width.name}: copies carry noise, so outputs change"
    if change.strategy.perturb or change.strategy.shrink != 1:
        yield (
            f"{width.name}: outputs change, because old weights are multiplied by "
            f"{change.strategy.shrink:g} and {change.strategy.perturb:g} times new ones are added"
        )
    if change.strategy.choice and (epsilon := change.strategy.choice.epsilon):
        yield (
            f"{width.name}: incoming weights of new units are {epsilon:g} times drawn ones instead "
            "of zero, so outputs change by about as much"
        )
    if change.strategy is strategies.KEEP and change.recipe is None:
        for hazard in width.hazards:
            yield f"{width.name}: removing units changes outputs: {hazard}"


def _is_output(widths: Widths, width: Width) -> bool:
    """Whether the units are outputs of the network that a kernel makes, such as logits."""
    return width.interface and any(
        place.role != "outgoing" and place.axis in widths.leaf(place.path).fan_out
        for place in width.occurrences
    )


def _constants(larger: Larger, change: Change, problems: list[str]) -> Iterator[str]:
    """Yields the constants that the larger model must have, where its own ones are not known."""
    problems += (
        f"{change.width}: in the larger model, {what} must be {_number(wanted)}, "
        f"but it is {_number(own)}"
        for what, wanted, own in _unlike(larger, change)
    )
    alike: dict[float, list[str]] = {}
    for what, value, wanted, own in larger.constants(change):
        if own is None and wanted != value and larger.insertions:
            problems.append(
                f"{change.width}: {what} must be {_number(wanted)}, but the larger model has none "
                "that follows from the width"
            )
        elif own is None and wanted != value:
            alike.setdefault(wanted, []).append(what)
    for wanted, whats in alike.items():
        more = f" (and {len(whats) - 1} more such constants)" if len(whats) > 1 else ""
        other = "; if it has another, pass its function as target_apply=" * (larger.widths is None)
        must = f"in the larger model, {whats[0]} must be {_number(wanted)}"
        yield f"{change.width}: {must}{more}{other}"


def _number(number: float) -> str:
    """Writes a number, rounded where it is a short one that a program computed in float32."""
    short = f"{number:.6g}"
    return short if math.isclose(float(short), number, rel_tol=1e-7) else f"{number:.9g}"


def _unlike(larger: Larger, change: Change) -> Iterator[tuple[str, float, float]]:
    """Yields the constants that the larger model has with another value than a growth needs."""
    for what, _, wanted, own in larger.constants(change):
        rounding = max(1e-5, change.recipe.rounding if change.recipe else 0.0)
        if own is not None and abs(own - wanted) > rounding * abs(wanted):
            yield what, wanted, own


def _interface(width: Width, interface: bool) -> list[str]:
    if interface or not width.interface:
        return []
    return [
        f"{width.name}: is a dimension of an input or output; pass interface=True to append to it"
    ]


# Removing units -----------------------------------------------------------------------------------


def _kept(width: Width, units: Any, interface: bool, problems: list[str]) -> Change:
    """Returns how a width changes if only some of its units stay."""
    asked = np.asarray(units)
    if asked.dtype == bool and asked.shape == (width.size,):
        asked = np.flatnonzero(asked)
    kept = tuple(asked.tolist()) if asked.ndim == 1 else (-1,)
    whole = np.issubdtype(asked.dtype, np.integer) or not asked.size
    if not whole or {*kept} - {*range(width.size)} or len({*kept}) < len(kept):
        problems.append(
            f"{width.name}: keep takes distinct indices below {width.size}, or a boolean mask of "
            f"{width.size} units; got {units!r}"
        )
        kept = ()
    elif width.size and not kept:
        problems.append(
            f"{width.name}: keep leaves none of its {width.size} units; keep one at least, because "
            "a width without units cannot grow again, or write the network without these layers"
        )
    problems += _fixed(width, len(kept), "change") + _interface(width, interface)
    # A recipe for copies says nothing of units that go.
    fitting = [r for r in width.recipes if not strategies.by_name(r.strategy).makes_alike]
    recipe = fitting[0] if fitting and kept else None
    return Change(width.name, width.size, len(kept), strategies.KEEP, kept, recipe=recipe)


def _merged(
    width: Width, groups: Sequence[Sequence[int]], interface: bool, problems: list[str]
) -> Change:
    """Returns how groups of units of a width become one unit each."""
    grouped = isinstance(groups, Iterable) and all(isinstance(group, Iterable) for group in groups)
    members = [unit for group in groups for unit in group] if grouped else [None]
    whole = all(map(is_integer, members))
    if not whole or {*members} - {*range(width.size)} or len({*members}) < len(members):
        problems.append(
            f"{width.name}: merge takes groups of distinct units below {width.size}, such as "
            f"[(0, 1)]; got {groups!r}"
        )
        groups = ()
    first = {unit: group[0] for group in groups for unit in group}
    sources = tuple(unit for unit in range(width.size) if first.get(unit, unit) == unit)
    place = {unit: index for index, unit in enumerate(sources)}
    into = tuple(place[first.get(unit, unit)] for unit in range(width.size))
    problems += _fixed(width, len(sources), "change") + _interface(width, interface)
    if hazards := (*width.hazards, *width.copy_hazards):
        problems.append(f"{width.name}: merging units would change outputs: {'; '.join(hazards)}")
    return Change(width.name, width.size, len(sources), strategies.MERGE, sources, into)


def _fixed(width: Width, new: int, verb: str) -> list[str]:
    if not width.fixed:
        return []
    return [
        f"{width.name}: cannot {verb} from {width.size} to {new}: {width.fixed}; "
        f"it occurs in {_places(width)}"
    ]


def _places(width: Width) -> str:
    places = list(dict.fromkeys(f"{o.path}[{o.axis}]" for o in width.occurrences))
    more = len(places) - 4
    return ", ".join(places[:4]) + (f" and {more} more" if more > 0 else "")
