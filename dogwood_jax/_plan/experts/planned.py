"""More experts in growths by ``plan``: ``copies_of_experts``, and how many are chosen then."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from dogwood_jax import strategies
from dogwood_jax._check.choices import Chosen, RouterChoice
from dogwood_jax._growth.growth import Growth
from dogwood_jax._plan.asked import Asked, Copies
from dogwood_jax._plan.depth.layers import more_numbers
from dogwood_jax._plan.experts.copied import CARRY_NOISE, Copied, notes_of, ways_to_copy
from dogwood_jax._plan.experts.found_mixtures import Mixtures
from dogwood_jax._plan.experts.routers import Router, routers_of
from dogwood_jax._program.dims import PICKED, Dim, atoms
from dogwood_jax._program.subprograms import Key
from dogwood_jax._program.values import Value
from dogwood_jax._widths.trace import Traced
from dogwood_jax._widths.widths import Widths


def choices_of(
    growth: Growth, larger: Traced | None, *, as_it_is: bool = False
) -> Iterator[tuple[RouterChoice, ...]]:
    """Yields possible choices of experts in both programs; one empty tuple if none are copied.

    Args:
        growth: the growth, whose widths hold the program.
        larger: the larger program as it was read; None for the network's program in larger sizes.
        as_it_is: whether the larger program keeps its own number of chosen experts. If not, it must
            choose all copies.
    """
    copied = {change.width: change for change in growth.changes if change.strategy.is_gated}
    if not copied or growth.widths.network is None:
        yield ()
        return
    ours: Traced = growth.widths.network.traced
    routers = Mixtures(growth.widths).routers
    theirs = [router for _, router in routers] if larger is None else routers_of(larger.trace)
    for everywhere in (False, True):
        choices = []
        for (name, router), its in zip(routers, theirs, strict=False):
            if name in copied:
                change = copied[name]
                new = its.chosen if as_it_is else router.chosen * change.new // change.old
                sides = _chosen(ours, router, everywhere), _chosen(larger or ours, its, everywhere)
                choices.append(RouterChoice(change.width, *sides, new))
        yield tuple(choices)


def _chosen(traced: Traced, router: Router, everywhere: bool) -> Chosen:
    """Returns the dimensions and steps in which a program holds the number of chosen experts."""
    count, dims = router.chosen, {router.choices.root}
    if not everywhere or count == 1:  # a size of one is everywhere
        return Chosen(count, frozenset(dims))
    trace = traced.trace
    known = _atoms((*traced.leaves.values(), *trace.arguments))
    every = [*trace.steps]
    made_inside = _atoms(v for step in every for v in (*step.operands, *step.results))
    dims |= {dim for dim in made_inside if dim.size == count and dim not in known}
    steps, made = set[Key](), set[int]()
    for index in sorted(router.dispatch):
        step = every[index]
        if any(v.number == count and id(v) not in made for v in step.operands):
            steps.add(step.key)
        made |= {id(value) for value in step.results}
    return Chosen(count, frozenset[Dim](dims), frozenset[Key](steps))


def _atoms(values: Iterable[Value]) -> set[Dim]:
    return {atom for value in values for dim in value.dims for atom in atoms(dim)}


_MODULES = (
    "experts that are separate modules, such as experts_0 and experts_1, are not copied; keep the "
    "arrays of all experts in one, [experts, in, out]"
)
_COPIES = "dw.upcycle copies experts anyway"


def experts_instead(widths: Widths, shapes: Mapping[str, Any]) -> Iterator[str]:
    """Yields advice on ``upcycle`` if a larger model seems to have experts in place of an MLP."""
    known = {leaf.path for leaf in widths.leaves}
    new = [tuple(array.shape) for path, array in shapes.items() if path not in known]
    for leaf in widths.leaves:
        stacks = [shape[0] for shape in new if shape[1:] == leaf.shape and len(leaf.shape) > 1]
        if leaf.path not in shapes and stacks:
            yield (
                f"the target has {stacks[0]} arrays like {leaf.path} in one; if these are "
                "experts, dw.upcycle makes a mixture of a layer"
            )
            return


def copies_of_experts(asked: Asked) -> Copies:
    """Returns changes of the widths of experts with which outputs may stay.

    Only experts whose widths all grow to the same size count. They have no strategy, or one that
    copies.
    """
    widths, larger = asked.widths, asked.larger.widths
    given = {name: strategy.for_experts for name, strategy in asked.starts.items()}
    sizes = {n: size for n, size in asked.sizes.items() if given.get(n, strategies.UPCYCLE)}
    # A router picks the largest along a width. Without such a width, no program has to be read.
    if widths.network is None or not any(
        PICKED in widths[name].notes for name, new in sizes.items() if new > widths[name].size
    ):
        return Copies({})
    network, theirs = Mixtures(widths), None if larger is None else Mixtures(larger)
    every, problems = list[Copied](), list[str]()
    paths = (*asked.larger.shapes, *(edit.path for edit in asked.larger.inserted))
    numbers = more_numbers((leaf.path for leaf in widths.leaves), paths)
    for experts in network.experts:
        new = sizes.get(experts.router, experts.count)
        if new <= experts.count:
            continue
        if not experts.stacks:
            if (experts.count, new) in numbers:
                problems.append(f"{experts.router}: {_MODULES}")
            continue
        if {sizes.get(name) for name in experts.names} != {new}:
            problems.append(
                f"{experts.router}: its experts must grow with it, {', '.join(experts.stacks)}; "
                "dw.upcycle plans both"
            )
            continue
        own = theirs.like(experts) if theirs is not None else None
        named = (strategy for name in experts.names if (strategy := given.get(name)))
        strategy = next(named, strategies.UPCYCLE)
        sources = strategy.sources(experts.count, new) or ()
        every.append(copied := Copied(experts, new, own, sources, strategy))
        if copied.reasons:
            problems.append(f"{experts.router}: {copied.unshown}; {_COPIES}")
    if not every and not problems:
        return Copies({})
    first, *others = ways_to_copy(network.widths, every)
    unshown = notes_of({copied.experts.router: copied.unshown for copied in every})
    has_noise = any(copied.strategy.noise for copied in every)
    return Copies(
        first,
        others=tuple(others),
        notes=tuple(notes_of({copied.experts.router: copied.note for copied in every})),
        unshown=(*unshown, *([CARRY_NOISE] if has_noise else [])),
        as_it_is=any(copied.is_still_one for copied in every),
        problems=tuple(problems),
        way_out=_COPIES,
    )
