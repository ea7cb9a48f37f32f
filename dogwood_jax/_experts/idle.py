"""How many parameters of experts a token does not use: ``idle_parameters``."""

from collections.abc import Mapping

from dogwood_jax._experts.mixtures import Mixtures
from dogwood_jax._widths.widths import Widths


def idle_parameters(widths: Widths, sizes: Mapping[str, int], counts: Mapping[str, int]) -> int:
    """Returns how many numbers of experts are those of experts that are not chosen for a token.

    As many experts are chosen for a token in all sizes.

    Args:
        widths: the widths of a network that was traced in this process.
        sizes: new sizes by name of the width.
        counts: how many numbers arrays hold in these sizes, by path.
    """
    mixtures = Mixtures(widths)
    idle = 0
    for experts in mixtures.experts:
        count = sizes.get(experts.router, experts.count)
        chosen = min(experts.choice.chosen, count)
        for leaf in experts.arrays(mixtures.widths):
            idle += counts.get(leaf.path, 0) * (count - chosen) // count
    return idle
