"""A growth of a deep network, planned with few of its layers: ``by_few_layers``.

What becomes of the second layer becomes of each layer between the first one and the last one. This
is not taken for granted: the growth that is planned with three layers, made to be one of five in
this way, must be the growth that is planned with five.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from types import MethodType
from typing import Any

from dogwood_jax._base.trees import PyTree, arrays_of, leaves_by_path
from dogwood_jax._growth.grown_sizes import GrownSizes
from dogwood_jax._growth.growth import Change, Growth
from dogwood_jax._plan.fewer_layers import FewerLayers
from dogwood_jax._plan.larger import Larger, is_deeper, same_widths
from dogwood_jax._plan.propose import Proposal, draft
from dogwood_jax._plan.request import Request
from dogwood_jax._plan.sizes import named_sizes, whole
from dogwood_jax._plan.target import sizes_of_target
from dogwood_jax._program.program import Program
from dogwood_jax._widths.by_analogy import Analogy, NotAlike, constants_without_place
from dogwood_jax._widths.trace import read_network, read_program
from dogwood_jax._widths.widths import Deep, Network, Recipe, Widths

Layers = tuple[int, ...]


def by_few_layers(request: Request, judge: Callable[[Proposal], Growth]) -> Growth:
    """Returns the growth of a deep network to a larger model, without the target's structure.

    Args:
        request: what the caller asks for: a target and the target's function.
        judge: returns a growth of some layers once it has been shown that it keeps outputs.

    Raises:
        NotAlike: if layers are not alike, or do not grow alike.
        ValueError: if the growth of some layers cannot be planned.
    """
    widths, target, target_apply = request.widths, request.target, request.target_apply
    assert target_apply is not None
    shapes = arrays_of(leaves_by_path(target))
    network = widths.network
    if network is None or network.deep is None:
        raise NotAlike
    if is_deeper(whole(request.families, widths, shapes), shapes):
        raise NotAlike
    deep, layers = network.deep, network.deep.layers
    named = named_sizes(widths, request.sizes, [], request.interface)

    def proposed(theirs: Mapping[Layers, Widths]) -> Iterator[dict[Layers, Proposal]]:
        """Yields the proposals for both numbers of layers, in the order in which they are tried."""
        found = {}
        for kept, its in theirs.items():
            own = whole(request.families, deep.some[kept], shapes)
            known = {leaf.path: shapes[leaf.path] for leaf in own.leaves}
            same = same_widths(own, its, {path: path for path in known}, {})
            chosen = {name: size for name, size in named.items() if name in own}
            few_layers = replace(request, widths=own, sizes=chosen)
            found[kept] = draft(few_layers, Larger(known, widths=its, names=same)).proposals()
        for proposals in zip(*found.values()):
            yield dict(zip(found, proposals, strict=True))

    few = deep.some[layers.few]
    known = {leaf.path: shapes[leaf.path] for leaf in few.leaves}
    inputs = GrownSizes(few, sizes_of_target(few, known, {}, [])).inputs()
    theirs = _called_with_few(widths, deep, target, target_apply, inputs)
    first = next(proposed(theirs), {}) if theirs is not None else {}
    if theirs is None or any(one.is_solved for one in first.values()):
        theirs = _called_with_all(deep, target, target_apply, inputs)  # perhaps numbers of depth
    for found in proposed(theirs):
        with suppress(NotAlike, ValueError):
            return _growth_of_all(widths, shapes, named, found, judge)
    raise NotAlike


def _growth_of_all(
    widths: Widths,
    shapes: Mapping[str, Any],
    named: Mapping[str, int],
    found: Mapping[Layers, Proposal],
    judge: Callable[[Proposal], Growth],
) -> Growth:
    """Returns the growth of all layers that follows from proposals for some of them.

    Args:
        widths: the network's widths.
        shapes: those of the target's arrays, by path.
        named: the sizes that the caller named.
        found: the proposals.
        judge: see ``by_few_layers``.

    Raises:
        NotAlike: if layers do not grow alike.
        ValueError: if the growth of some layers is refused.
    """
    assert widths.network is not None and widths.network.deep is not None
    deep, layers = widths.network.deep, widths.network.deep.layers
    growth = _of_all(widths, deep, found)
    sizes_now = widths.sizes | growth.sizes
    if any(sizes_now[name] != size for name, size in named.items()):
        raise NotAlike
    if any(shapes[path].shape != shape for path, shape in growth.shapes.items()):
        raise NotAlike
    first = found[layers.few]
    changes = tuple(change for change in growth.changes if change.width in first.growth.change)
    first = replace(first, growth=replace(first.growth, changes=changes, notes=growth.notes))
    shown = judge(first)
    if (evidence := shown.evidence) is not None:
        seen = Analogy(layers).sequence(evidence.sizes, range(len(layers)), lambda size: size[0])
        evidence = replace(evidence, sizes=seen)
    return replace(growth, notes=shown.notes, evidence=evidence)


def _called_with_few(
    widths: Widths,
    deep: Deep,
    target: PyTree,
    target_apply: Callable[..., Any],
    inputs: tuple[Any, ...],
) -> dict[Layers, Widths] | None:
    """Returns the widths of the larger model's layers, from its function of these layers alone.

    It is None for a function that is not the network's own, because it may do something else in one
    of the other layers, and for one that does not take these layers alone.
    """
    layers = deep.layers
    assert widths.network is not None
    own = widths.network.apply
    is_method = isinstance(target_apply, MethodType)  # Python makes a new one each time
    if target_apply is not own and not (is_method and target_apply == own):
        return None
    found = {}
    for kept in (layers.few, layers.more):
        fewer = FewerLayers(widths, deep, kept)
        try:
            program = Program(target_apply, fewer.cut(target), inputs)
        except Exception:  # any function may raise that knows its sizes
            return None
        called = fewer.called(program)
        if called is None:
            return None
        traced, its = read_program(called)
        found[kept] = replace(its, network=Network(target_apply, None, inputs, read=traced))
    return found


def _called_with_all(
    deep: Deep, target: PyTree, target_apply: Callable[..., Any], inputs: tuple[Any, ...]
) -> dict[Layers, Widths]:
    """Returns the widths of the larger model's layers, from its function of all layers.

    Raises:
        NotAlike: if the larger model's layers are not alike.
    """
    layers = deep.layers
    try:
        larger = read_network(target_apply, target, *inputs)
    except Exception as error:  # any function may raise
        raise NotAlike from error
    assert larger.network is not None
    its = larger.network.deep
    if its is None or its.layers.prefixes != layers.prefixes:
        raise NotAlike
    return {kept: its.some[kept] for kept in (layers.few, layers.more)}


def _of_all(widths: Widths, deep: Deep, found: Mapping[Layers, Proposal]) -> Growth:
    """Returns the growth of all layers.

    Args:
        widths: the network's widths.
        deep: its program.
        found: the growths of few layers and of more.

    Raises:
        NotAlike: if the growth of more layers is not that of few layers for more of them.
    """
    layers = deep.layers
    few, more = found[layers.few].growth, found[layers.more].growth
    spread, every = _Spread(few, more, Analogy(layers)), range(len(layers))
    if all(one.growth.widths is deep.some[kept] for kept, one in found.items()):  # known to extend
        growth = Growth(widths, *spread.over(every))
        is_known = spread.over(layers.more) == (more.changes, more.notes)
    else:
        own = replace(spread.widths(every), network=widths.network)
        growth = Growth(own, *spread.over(every))
        is_known = Growth(spread.widths(layers.more), *spread.over(layers.more)) == more
    if not is_known:
        raise NotAlike
    return growth


class _Spread:
    """A growth of few layers, for all layers.

    Args:
        few: the growth of the layers that stand for all.
        more: that of two layers more.
        analogy: renames the layers.
    """

    def __init__(self, few: Growth, more: Growth, analogy: Analogy) -> None:
        self._few, self._analogy = few, analogy
        self._in_facts = constants_without_place(few.widths, more.widths, analogy)
        self._in_changes = {
            name: (analogy.without_place(change.recipe) - analogy.without_place(known)) // 2
            for name, change in more.change.items()
            if name in few.change
            if change.recipe is not None and (known := few.change[name].recipe) is not None
        }

    def widths(self, layers: Sequence[int]) -> Widths:
        """Returns the widths of these layers; raises ``NotAlike`` as ``over`` does."""
        return self._analogy.extended(self._few.widths, layers, self._in_facts)

    def over(self, layers: Sequence[int]) -> tuple[tuple[Change, ...], tuple[str, ...]]:
        """Returns the changes of these layers, and the notes.

        Raises:
            NotAlike: if it is open what becomes of more layers.
        """
        few, analogy = self._few, self._analogy
        more = len(layers) - len(analogy.few)
        if any(analogy.are_several(note) for note in few.notes):
            raise NotAlike

        def recipe(change: Change) -> Recipe | None:
            count = self._in_changes.get(change.width, 0)
            own = analogy.is_of_one_layer(change.width, change.recipe, more=bool(count))
            if change.recipe is None or own:
                return change.recipe
            return analogy.recipe(change.recipe, layers, more * count)

        parts = tuple(
            (change.width, recipe(change), index) for index, change in enumerate(few.changes)
        )
        spread = analogy.sequence(parts, layers, lambda part: part[0])
        changes = tuple(
            replace(few.changes[index], width=width, recipe=recipe)
            for width, recipe, index in spread
        )
        return changes, analogy.sequence(few.notes, layers)
