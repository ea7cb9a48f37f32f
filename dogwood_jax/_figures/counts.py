"""What a network costs in any sizes: ``Counts``."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from math import prod

from dogwood_jax._base.trees import leaves_by_path
from dogwood_jax._experts.idle import idle_shares
from dogwood_jax._figures.cache import cached_entries
from dogwood_jax._growth.grown_sizes import GrownSizes
from dogwood_jax._program.primitives.table import primitive
from dogwood_jax._widths.layout import size_of
from dogwood_jax._widths.values import Step
from dogwood_jax._widths.widths import Widths

# A step of training runs the network forward, and takes about twice that for the gradients.
_OF_A_STEP = 3


class Counts:
    """What a network costs in any sizes, each number by itself.

    Args:
        widths: the widths of the network.
    """

    def __init__(self, widths: Widths) -> None:
        self._widths = widths

    def parameters(self, sizes: Mapping[str, int]) -> int:
        """Returns how many numbers the parameters are."""
        return sum(self._arrays(sizes).values())

    def flops(self, sizes: Mapping[str, int]) -> int:
        """Returns the floating-point operations of a step of training."""
        return _OF_A_STEP * sum(_flops(self._widths, sizes))

    def active_parameters(self, sizes: Mapping[str, int]) -> int:
        """Returns how many parameters a token uses."""
        counts = self._arrays(sizes)
        shares = ((counts.get(path, 0), share(sizes)) for path, share in self._idle)
        return sum(counts.values()) - round(sum(count * share for count, share in shares))

    def memory(self, sizes: Mapping[str, int]) -> int:
        """Returns the bytes of parameters, and of what attention keeps."""
        network = self._widths.network
        assert network is not None
        arrays, held = leaves_by_path(network.variables), Counter[int]()
        for path, count in self._arrays(sizes).items():
            held[arrays[path].dtype.itemsize] += count
        cached = cached_entries(network.traced.trace, GrownSizes(self._widths, sizes))
        of_most = max(held, key=held.__getitem__, default=0)
        return sum(size * count for size, count in held.items()) + cached * of_most

    @cached_property
    def _idle(self) -> list[tuple[str, Callable[[Mapping[str, int]], float]]]:
        return [*idle_shares(self._widths)]

    def _arrays(self, sizes: Mapping[str, int]) -> dict[str, int]:
        """Returns how many numbers each array of the parameters holds, by path."""
        leaves = self._widths.leaves
        has_collections = any(leaf.path.startswith("params/") for leaf in leaves)
        return {
            leaf.path: prod(size_of(layout, sizes) for layout in leaf.axes)
            for leaf in leaves
            if not has_collections or leaf.path.startswith("params/")
        }


def _flops(widths: Widths, sizes: Mapping[str, int]) -> Iterator[int]:
    """Yields the floating-point operations of each equation of the network."""
    assert widths.network is not None
    grown = GrownSizes(widths, sizes)

    def summed_over(step: Step) -> int:
        """Returns how many products each entry of the result is a sum of."""
        assert step.axes is not None
        return prod(grown(step.operands[1].dims[axis]) for axis in step.axes.summed(1))

    for step in widths.network.traced.trace.steps:
        if primitive(step.name).contracts:
            entries = prod(map(grown, step.results[0].dims))
            yield 2 * step.times * entries * summed_over(step)
