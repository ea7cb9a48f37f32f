"""Which share of the parameters of experts a token does not use: ``idle_shares``."""

from collections.abc import Callable, Iterator, Mapping

from dogwood_jax._experts.mixtures import Experts, Mixtures
from dogwood_jax._widths.widths import Widths

# Takes sizes by name of the width.
Share = Callable[[Mapping[str, int]], float]


def idle_shares(widths: Widths) -> Iterator[tuple[str, Share]]:
    """Yields the arrays of experts by path, each with the share of it that a token does not use.

    The share depends on the number of experts. As many are chosen for a token in all sizes.

    Args:
        widths: the widths of a network that was traced in this process.
    """
    mixtures = Mixtures(widths)
    for experts in mixtures.experts:
        for leaf in experts.arrays(mixtures.widths):
            yield leaf.path, _share_of(experts)


def _share_of(experts: Experts) -> Share:
    def share(sizes: Mapping[str, int]) -> float:
        count = sizes.get(experts.router, experts.count)
        return max(count - experts.choice.chosen, 0) / count

    return share
