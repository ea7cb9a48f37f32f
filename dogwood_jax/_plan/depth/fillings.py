"""How a deeper network can compute what a network does: ``new_layers``, ``Fillings``."""

from collections.abc import Iterator, Mapping
from dataclasses import replace

from dogwood_jax._base.problems import listed
from dogwood_jax._check.claim import Case
from dogwood_jax._check.reduced import LargerProgram, claim
from dogwood_jax._growth.edit import Edit
from dogwood_jax._growth.growth import Growth
from dogwood_jax._plan.depth.departures import explanation
from dogwood_jax._plan.depth.layers import UNSHOWN, placements, with_kinds
from dogwood_jax._plan.depth.trial import Trial
from dogwood_jax._widths.widths import Widths


def new_layers(
    widths: Widths,
    larger: Widths,
    *,
    rename: Mapping[str, str] | None = None,
    copy: bool = False,
    interleave: bool = False,
) -> Iterator[tuple[Edit, ...]]:
    """Proposes fillings for the arrays of new layers.

    Args:
        widths: the network's widths, with its program.
        larger: the deeper network's widths, with its program.
        rename: see ``deepen``.
        copy: see ``deepen``.
        interleave: see ``deepen``.

    Yields:
        One edit for each array of the deeper network that is new, moved, or has new layers, in the
        network's order. The best proposal comes first. Later ones are for a caller that refused
        all earlier ones.

    Raises:
        ValueError: if no filling keeps outputs.
    """
    assert larger.network is not None
    program, options = larger.network.traced.program, {"copy": copy, "interleave": interleave}
    unfit, is_proposed = list[Fillings](), False
    for placed in placements(widths, program, rename=rename, **options):
        growth = Growth(widths, (), inserted=placed)
        found = Fillings(growth, widths, larger, quickly=bool(unfit))
        for filled in found:
            is_proposed = True
            yield filled
        unfit.append(found)
    if unfit and not is_proposed:
        raise ValueError(listed(UNSHOWN, [unfit[0].why_none]))


class Fillings:
    """Iterates over the edits of a growth with fillings for new layers, most likely ones first.

    Args:
        growth: the growth, whose new layers are free.
        network: the network's widths, with its program.
        larger: the deeper network's widths, with its program.
        quickly: whether to try only a few fillings.
    """

    def __init__(
        self, growth: Growth, network: Widths, larger: Widths, *, quickly: bool = False
    ) -> None:
        assert network.network is not None and larger.network is not None
        self._free = with_kinds(growth.inserted, larger)
        self._trial: Trial | str
        self._quickly = quickly
        free, traced = replace(growth, inserted=self._free), network.network.traced
        program = LargerProgram(larger.network.traced)
        case = claim(free, traced, program)
        if isinstance(case, Case):
            self._trial = Trial(free, traced, larger, program, case)
        else:
            self._trial = f"they cannot be evaluated: {case}"

    def __iter__(self) -> Iterator[tuple[Edit, ...]]:
        if isinstance(self._trial, str):
            return
        for filling in self._trial.that_fit(quickly=self._quickly):
            yield tuple(filling.get(one.path, one) for one in self._free)

    @property
    def why_none(self) -> str:
        """Why no filling keeps outputs."""
        return self._trial if isinstance(self._trial, str) else explanation(self._trial)
