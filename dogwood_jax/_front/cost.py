"""The cost of a network before and after growing: ``cost``."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, overload

from dogwood_jax._base.arguments import BY_WIDTH, GROWTH, WIDTHS, expect
from dogwood_jax._base.problems import listed
from dogwood_jax._base.tables import table
from dogwood_jax._front.counts import Counts
from dogwood_jax._front.staged import RunCost, staged_cost
from dogwood_jax._front.stages import Stage
from dogwood_jax._growth.growth import Growth
from dogwood_jax._plan.sizes import named_sizes
from dogwood_jax._widths.widths import Widths


@dataclass(frozen=True)
class Cost:
    """The cost of a network before and after growing; ``print`` shows a table.

    Attributes:
        parameters: number of parameters, before and after. Of Flax collections, only ``"params"``
            counts.
        flops: floating-point operations of one training step, before and after; None if they are
            not known. The same holds for the fields below.
        active_parameters: number of parameters that a token uses: of the experts, only those that
            are chosen for it.
        memory: bytes of the parameters, and of the keys and values that attention caches for the
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


@overload
def cost(widths: Widths, sizes: Mapping[Any, int] | Growth | None = None) -> Cost: ...


@overload
def cost(widths: Widths, *, stages: Sequence[Stage], samples: int | None = None) -> RunCost: ...


def cost(
    widths: Widths,
    sizes: Mapping[Any, int] | Growth | None = None,
    *,
    stages: Sequence[Stage] | None = None,
    samples: int | None = None,
) -> Cost | RunCost:
    """Returns the parameters, FLOPs of a training step and memory, before and after growing.

    FLOPs count matrix products and convolutions, two for each multiply-add, on inputs of the shapes
    that the network was traced with. A training step counts three times the network itself: once
    for the forward pass, and twice that for the gradients. A ``scan`` counts as often as it runs, a
    ``while`` loop once, and all branches of a ``cond``.

    Memory counts parameters in their dtypes, and keys and values for the tokens in the inputs, in
    the dtype that most parameters have. So trace with the batch size and text length that you
    serve. Heads of keys that several queries share count once.

    With ``stages``, ``cost`` returns the FLOPs of a training run that grows between stages, and of
    the same number of steps with the last network from scratch. Growths are planned as in
    ``training.fit``, from shapes alone. The batch size is that of the traced inputs. The last,
    smaller batch of an epoch counts as a whole batch. A stage with ``seconds`` counts as if it ran
    to its last step.

    Args:
        widths: the widths of the network, from ``trace`` or ``chain``.
        sizes: new number of units by name of the width, or by ``(path, axis)`` of any of its
            occurrences. Only ``plan`` checks whether the width can grow to this size. Or a growth
            of these widths; if it changes layers, or replaces an MLP by experts, only parameters
            are known.
        stages: in place of ``sizes``, the stages of a training run, see ``training.Stage``.
        samples: the number of samples in the data; needed if stages count epochs.

    Returns:
        A `Cost`, or a `RunCost` for stages. For widths from ``chain`` or from a file, only
        parameters are known, because the rest needs the traced program.

    Raises:
        TypeError: if arguments are of the wrong kind.
        ValueError: for unknown widths, sizes that are not integers, a growth of another network,
            and stages that do not fit the network or whose number of steps is not known.

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
        >>> growth = dw.plan(dw.trace(apply, params, jnp.ones((10, 4))), {"up": 16})
        >>> dw.cost(growth.widths, growth).parameters
        (48, 96)
        >>> stages = [dw.training.Stage(epochs=3), dw.training.Stage(steps=10, sizes={"up": 16})]
        >>> widths = dw.trace(apply, params, jnp.ones((10, 4)))
        >>> print(dw.cost(widths, stages=stages, samples=100))
        stage         steps  parameters  FLOPs a step  FLOPs    share
        ------------  -----  ----------  ------------  -------  -----
        0             30     48          2,880         86,400   60.0%
        1             10     96          5,760         57,600   40.0%
        sum           40                               144,000
        from scratch  40     96          5,760         230,400
        sum / from scratch: 0.625

    Reference:
        Kaplan et al., 2020, Scaling Laws for Neural Language Models, section 2.1 (twice the
        forward pass for the gradients).
    """
    its = GROWTH if isinstance(sizes, Growth) else BY_WIDTH
    expect("cost(widths, sizes)", widths=(WIDTHS, widths), sizes=(its, sizes or {}))
    if stages is not None:
        if sizes is not None:
            raise ValueError("cost(widths, sizes): pass either sizes, or stages= with the sizes")
        return staged_cost(widths, stages, samples)
    if samples is not None:
        raise ValueError("cost(widths, sizes): samples= counts the epochs of stages=, so pass both")
    if isinstance(sizes, Growth):
        return _of_growth(widths, sizes)
    problems: list[str] = []
    new = named_sizes(widths, sizes or {}, problems)
    if problems:
        raise ValueError(listed("cannot determine this cost", problems))
    return _of_sizes(widths, new)


def _of_growth(widths: Widths, growth: Growth) -> Cost:
    known, its = ({leaf.path: leaf.shape for leaf in w.leaves} for w in (widths, growth.widths))
    if problems := [
        f"{path}: has shape {known.get(path)} in widths, and {its.get(path)} in the growth"
        for path in dict.fromkeys([*known, *its])
        if known.get(path) != its.get(path)
    ]:
        raise ValueError(listed("cost(widths, growth): pass a growth of these widths", problems))
    if growth.inserted or growth.layers:
        counts = Counts(widths)
        return Cost((counts.parameters({}), counts.parameters_of(growth)), None)
    # Only the growth has widths for copied heads and experts.
    return _of_sizes(replace(growth.widths, network=widths.network), growth.sizes)


def _of_sizes(widths: Widths, sizes: Mapping[str, int]) -> Cost:
    both: list[Mapping[str, int]] = [{}, sizes]
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
