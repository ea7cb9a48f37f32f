"""How a deeper network can compute what a network does: ``insertions``, ``fillings``."""

from collections.abc import Iterator, Mapping
from dataclasses import replace

from dogwood_jax._base.problems import listed
from dogwood_jax._depth.departures import explanation
from dogwood_jax._depth.layers import UNSHOWN, placements, with_kinds
from dogwood_jax._depth.trial import Trial
from dogwood_jax._growth.growth import Growth
from dogwood_jax._growth.insertion import Insertion
from dogwood_jax._judge.resize import CannotResize
from dogwood_jax._judge.twin import CannotShrink
from dogwood_jax._widths.widths import Widths


def insertions(
    widths: Widths,
    larger: Widths,
    *,
    rename: Mapping[str, str] | None = None,
    copy: bool = False,
    interleave: bool = False,
) -> Iterator[tuple[Insertion, ...]]:
    """Proposes what the arrays of new layers are filled with.

    Args:
        widths: the network's widths, with its program.
        larger: those of the deeper network.
        rename: see ``deepen``.
        copy: see ``deepen``.
        interleave: see ``deepen``.

    Yields:
        All arrays of the deeper network that are new, moved, or have new layers, in its order.
        Those of the best proposal come first. Later ones are for a caller who has refused all
        before.

    Raises:
        ValueError: if nothing leaves outputs as they are.
    """
    assert larger.network is not None
    program, options = larger.network.traced.program, {"copy": copy, "interleave": interleave}
    problems, is_proposed = list[ValueError](), False
    for placed in placements(widths, program, rename=rename, **options):
        try:
            growth, quickly = Growth(widths, (), insertions=placed), bool(problems)
            for filled in fillings(growth, widths, larger, quickly=quickly):
                is_proposed = True
                yield filled
        except ValueError as problem:
            problems.append(problem)
    if problems and not is_proposed:
        raise problems[0]


def fillings(
    growth: Growth, network: Widths, larger: Widths, *, quickly: bool = False
) -> Iterator[tuple[Insertion, ...]]:
    """Yields the insertions of a growth with fillings for new layers, the most likely ones first.

    Args:
        growth: the growth, whose new layers are free.
        network: the network's widths, with its program.
        larger: those of the deeper network.
        quickly: whether to try only a few fillings.

    Raises:
        ValueError: if no filling leaves outputs as they are, or nothing can be evaluated.
    """
    assert network.network is not None
    free = replace(growth, insertions=with_kinds(growth.insertions, larger))
    try:
        trial, is_filled = Trial(free, network.network.traced, larger), False
    except (CannotShrink, CannotResize) as error:
        raise ValueError(listed(UNSHOWN, [f"they cannot be evaluated: {error}"])) from error
    for filling in trial.that_fit(quickly=quickly):
        is_filled = True
        yield tuple(filling.get(one.path, one) for one in free.insertions)
    if not is_filled:
        raise NothingFits(trial)


class NothingFits(ValueError):
    """Why no filling of new layers leaves outputs as they are. It is found out when it is read."""

    def __init__(self, trial: Trial) -> None:
        super().__init__(trial)

    @property
    def said(self) -> str:
        """The same in one line."""
        return f"{UNSHOWN}: {explanation(*self.args)}"

    def __str__(self) -> str:
        return listed(UNSHOWN, [explanation(*self.args)])
