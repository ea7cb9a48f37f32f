"""What a network costs before and after growing: ``cost``."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

from dogwood_jax._base.arguments import BY_WIDTH, WIDTHS, expect
from dogwood_jax._base.problems import listed
from dogwood_jax._base.tables import table
from dogwood_jax._base.trees import leaves_by_path
from dogwood_jax._experts.idle import idle_shares
from dogwood_jax._figures.cache import cached_entries
from dogwood_jax._growth.grown_sizes import GrownSizes
from dogwood_jax._plan.sizes import named_sizes
from dogwood_jax._program.primitives.table import primitive
from dogwood_jax._widths.layout import size_of
from dogwood_jax._widths.values import Step
from dogwood_jax._widths.widths import Widths

# A step of training runs the network forward, and takes about twice that for the gradients.
_OF_A_STEP = 3


@dataclass(frozen=True)
class Cost:
    """The cost of a network before and after growing; ``print`` shows a table.

    Attributes:
        parameters: how many numbers its arrays hold, before and after. Of Flax's collections,
            those of ``"params"`` count.
        flops: floating-point operations of one step of training, before and after; None where they
            are not known, as the numbers below.
        active_parameters: how many of the parameters a token uses: of experts, those that are
            chosen for it.
        memory: bytes of the parameters, and of the keys and values that attention keeps of the
            tokens in the inputs (the KV cache).
    """

    parameters: tuple[int, int]
    flops: tuple[int, int] | None
    active_parameters: tuple[int, int] | None = None
    memory: tuple[int, int] | None = None

    def __str__(self) -> str:
        rows: list[tuple[str, ...]] = [("cost", "before", "after", "ratio")]
        active = None if self.active_parameters == self.parameters else self.active_parameters
        named = {"parameters": self.parameters, "active parameters": active}
        named |= {"FLOPs a step": self.flops, "bytes": self.memory}
        for name, pair in named.items():
            if pair is not None:
                before, after = pair
                ratio = f"{after / before:.3g}" if before else ""
                rows.append((name, f"{before:,}", f"{after:,}", ratio))
        return table(rows)


def cost(widths: Widths, sizes: Mapping[Any, int] | None = None) -> Cost:
    """Returns the parameters, FLOPs of a training step and memory, before and after growing.

    FLOPs are those of matrix products and convolutions, two for each multiplication with its
    addition, on inputs of the shapes that the network was traced with. A step of training counts
    three times the network itself: once forward, and twice that for the gradients. A ``scan``
    counts as often as it runs, a ``while`` loop once, and all branches of a ``cond``.

    The memory is that of parameters in their dtypes, and of keys and values for the tokens in the
    inputs, in the dtype that most parameters have. So trace with the batch and the length of text
    that you serve. Heads of keys that queries share count once.

    Args:
        widths: the widths of the network, from ``trace`` or ``chain``.
        sizes: new number of units by name of the width, or by ``(path, axis)`` of any place where
            it occurs. Only ``plan`` checks whether it can grow like this.

    Returns:
        The cost. Only parameters are known of widths from ``chain`` or from a file, because the
        traced program tells the rest.

    Raises:
        TypeError: if arguments are of the wrong kind.
        ValueError: for unknown widths, and sizes that are no integers.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import dogwood_jax as dw
        >>> params = {"up": jnp.ones((4, 8)), "down": jnp.ones((8, 2))}
        >>> def apply(params, x):
        ...     return jax.nn.relu(x @ params["up"]) @ params["down"]
        >>> print(dw.cost(dw.trace(apply, params, jnp.ones((10, 4))), {"up": 16}))
        cost          before  after  ratio
        ------------  ------  -----  -----
        parameters    48      96     2
        FLOPs a step  2,880   5,760  2
        bytes         192     384    2

    Reference:
        Kaplan et al., 2020, Scaling Laws for Neural Language Models, section 2.1 (twice the
        forward pass for the gradients).
    """
    expect("cost(widths, sizes)", widths=(WIDTHS, widths), sizes=(BY_WIDTH, sizes or {}))
    problems: list[str] = []
    new = named_sizes(widths, sizes or {}, problems)
    if problems:
        raise ValueError(listed("cannot tell this cost", problems))
    both: list[Mapping[str, int]] = [{}, new]
    counts = Counts(widths)

    def pair(measure: Callable[[Mapping[str, int]], int]) -> tuple[int, int]:
        before, after = map(measure, both)
        return before, after

    if widths.network is None:
        return Cost(pair(counts.parameters), None)
    return Cost(
        pair(counts.parameters),
        pair(counts.flops),
        pair(counts.active_parameters),
        pair(counts.memory),
    )


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
