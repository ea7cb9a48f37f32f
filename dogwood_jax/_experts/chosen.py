"""How many experts are chosen once all of them are copied: ``choices_of``.

A growth says that outputs stay if as many times more experts are chosen. The network's own function
often holds how many it chooses. Then it is evaluated with another number. Where that number stands
is known of the choice itself. Where tokens find their experts, other dimensions and integers of the
same size may be that number, as in ``rows[order // chosen]``. What is not so is not shown.
"""

from collections.abc import Iterable, Iterator

from dogwood_jax._experts.mixtures import Mixtures
from dogwood_jax._experts.routers import Router, routers_of
from dogwood_jax._growth.growth import Growth
from dogwood_jax._judge.choice import Choice, Chosen
from dogwood_jax._program.subprograms import Key
from dogwood_jax._widths.dims import Dim, atoms
from dogwood_jax._widths.trace import Traced
from dogwood_jax._widths.values import Value


def choices_of(
    growth: Growth, larger: Traced | None, *, as_it_is: bool = False
) -> Iterator[tuple[Choice, ...]]:
    """Yields what may be how many experts both programs choose, where experts are copied.

    Args:
        growth: the growth, of widths that know their program.
        larger: the larger program as it was read; None for the network's own in larger sizes.
        as_it_is: whether the larger program chooses what it does. Else it is to choose all copies.
    """
    copied = {change.width: change for change in growth.changes if change.strategy.is_gated}
    if not copied or growth.widths.network is None:
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
                choices.append(Choice(change.width, *sides, new))
        yield tuple(choices)


def _chosen(traced: Traced, router: Router, everywhere: bool) -> Chosen:
    """Returns where a program holds how many experts a router chooses."""
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
