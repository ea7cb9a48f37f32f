"""What a network costs before and after growing: ``cost``."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from dogwood_jax._base.arguments import BY_WIDTH, WIDTHS, expect
from dogwood_jax._base.problems import listed
from dogwood_jax._base.tables import table
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
            are not known.
    """

    parameters: tuple[int, int]
    flops: tuple[int, int] | None

    def __str__(self) -> str:
        rows: list[tuple[str, ...]] = [("cost", "before", "after", "ratio")]
        for name, pair in (("parameters", self.parameters), ("FLOPs a step", self.flops)):
            if pair is not None:
                before, after = pair
                ratio = f"{after / before:.3g}" if before else ""
                rows.append((name, f"{before:,}", f"{after:,}", ratio))
        return table(rows)


def cost(widths: Widths, sizes: Mapping[Any, int] | None = None) -> Cost:
    """Returns the parameters and FLOPs of a training step, before and after growing.

    FLOPs are those of matrix products and convolutions, two for each multiplication with its
    addition, on inputs of the shapes that the network was traced with. A step of training counts
    three times the network itself: once forward, and twice that for the gradients. A ``scan``
    counts as often as it runs, a ``while`` loop once, and all branches of a ``cond``.

    Args:
        widths: the widths of the network, from ``trace`` or ``chain``.
        sizes: new number of units by name of the width, or by ``(path, axis)`` of any place where
            it occurs. Only ``plan`` checks whether it can grow like this.

    Returns:
        The cost. FLOPs are None for widths from ``chain`` or from a file, because only the traced
        program tells them.

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

    Reference:
        Kaplan et al., 2020, Scaling Laws for Neural Language Models, section 2.1 (twice the
        forward pass for the gradients).
    """
    expect("cost(widths, sizes)", widths=(WIDTHS, widths), sizes=(BY_WIDTH, sizes or {}))
    problems: list[str] = []
    new = named_sizes(widths, sizes or {}, problems)
    if problems:
        raise ValueError(listed("cannot tell this cost", problems))
    both: tuple[dict[str, int], dict[str, int]] = ({}, new)
    before, after = (sum(_parameters(widths, given)) for given in both)
    if widths.network is None:
        return Cost((before, after), None)
    flops = [_OF_A_STEP * sum(_flops(widths, given)) for given in both]
    return Cost((before, after), (flops[0], flops[1]))


def _parameters(widths: Widths, sizes: Mapping[str, int]) -> Iterator[int]:
    """Yields how many numbers each array of the parameters holds."""
    has_collections = any(leaf.path.startswith("params/") for leaf in widths.leaves)
    for leaf in widths.leaves:
        if not has_collections or leaf.path.startswith("params/"):
            yield prod(size_of(layout, sizes) for layout in leaf.axes)


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
