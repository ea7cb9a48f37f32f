"""The cost of a network in any sizes: ``Counts``."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from math import prod

from dogwood_jax._base.trees import leaves_by_path
from dogwood_jax._growth.grown_sizes import GrownSizes
from dogwood_jax._growth.growth import Growth
from dogwood_jax._plan.experts.found_mixtures import idle_shares
from dogwood_jax._program.dims import Dim
from dogwood_jax._program.primitives.table import primitive
from dogwood_jax._program.values import Step, Trace, Value
from dogwood_jax._widths.attention import keys_and_values
from dogwood_jax._widths.layout import size_of
from dogwood_jax._widths.widths import Widths


def cached_entries(trace: Trace, size: Callable[[Dim], int]) -> int:
    """Returns how many entries the keys and values of all tokens in the inputs have.

    Heads that several queries share count once, even if they are repeated before use.

    Args:
        trace: the trace of the network.
        size: returns the size of a dimension.
    """

    def entries(value: Value) -> int:
        return prod(map(size, value.dims))

    def made_by_weights(value: Value) -> int:
        """Returns the number of entries before any repetition."""
        count = entries(value)
        while (step := made.get(id(value))) is not None and not _reads_weights(step):
            computed = [operand for operand in step.operands if operand.origin == "data"]
            if not computed:
                break
            if len(computed) == 1 and entries(computed[0]) < entries(value):  # it is repeated
                count = count * entries(computed[0]) // entries(value)
            value = max(computed, key=entries)
        return count

    made = {id(value): step for step in trace.steps for value in step.results}
    # There are never more heads of keys than of queries.
    found = keys_and_values(trace)
    return sum(step.times * min(map(made_by_weights, either)) for step, either in found)


def _reads_weights(step: Step) -> bool:
    is_product = primitive(step.name).contracts
    return is_product and any(operand.origin == "parameter" for operand in step.operands)


# A training step runs the network forward, and needs about twice as much for the gradients.
_OF_A_STEP = 3


class Counts:
    """The cost of a network in any sizes; each method returns one measure.

    Args:
        widths: the widths of the network.
    """

    def __init__(self, widths: Widths) -> None:
        self._widths = widths

    def parameters(self, sizes: Mapping[str, int]) -> int:
        """Returns the number of parameters."""
        return sum(self._arrays(sizes).values())

    def parameters_of(self, growth: Growth) -> int:
        """Returns the number of parameters of a larger model."""
        return sum(prod(edit.shape) for path, edit in growth.edits.items() if self._counts(path))

    def flops(self, sizes: Mapping[str, int]) -> int:
        """Returns the floating-point operations of a training step."""
        return _OF_A_STEP * sum(_flops(self._widths, sizes))

    def active_parameters(self, sizes: Mapping[str, int]) -> int:
        """Returns the number of parameters that a token uses."""
        counts = self._arrays(sizes)
        shares = ((counts.get(path, 0), share(sizes)) for path, share in self._idle)
        return sum(counts.values()) - round(sum(count * share for count, share in shares))

    def memory(self, sizes: Mapping[str, int]) -> int:
        """Returns the bytes of parameters, and of the keys and values that attention caches."""
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
        """Returns the number of entries of each parameter array, by path."""
        return {
            leaf.path: prod(size_of(layout, sizes) for layout in leaf.axes)
            for leaf in self._widths.leaves
            if self._counts(leaf.path)
        }

    def _counts(self, path: str) -> bool:
        """Whether an array is a parameter: in Flax collections, whether it is in ``"params"``."""
        return path.startswith("params/") or not self._has_collections

    @cached_property
    def _has_collections(self) -> bool:
        return any(leaf.path.startswith("params/") for leaf in self._widths.leaves)


def _flops(widths: Widths, sizes: Mapping[str, int]) -> Iterator[int]:
    """Yields the floating-point operations of each equation of the network."""
    assert widths.network is not None
    grown = GrownSizes(widths, sizes)

    def summed_over(step: Step) -> int:
        """Returns how many products are summed for each entry of the result."""
        assert step.axes is not None
        return prod(grown(step.operands[1].dims[axis]) for axis in step.axes.summed(1))

    for step in widths.network.traced.trace.steps:
        if primitive(step.name).contracts:
            entries = prod(map(grown, step.results[0].dims))
            yield 2 * step.times * entries * summed_over(step)
