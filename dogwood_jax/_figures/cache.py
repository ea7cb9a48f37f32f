"""What attention keeps of earlier tokens: ``cached_entries``."""

from collections.abc import Callable
from math import prod

from dogwood_jax._program.primitives.table import primitive
from dogwood_jax._widths.attention import keys_and_values
from dogwood_jax._widths.dims import Dim
from dogwood_jax._widths.values import Step, Trace, Value


def cached_entries(trace: Trace, size: Callable[[Dim], int]) -> int:
    """Returns how many numbers the keys and values of all tokens in the inputs are.

    Heads that several queries share count once, though they are repeated before they are used.

    Args:
        trace: the network as it was read.
        size: returns the size of a dimension.
    """

    def entries(value: Value) -> int:
        return prod(map(size, value.dims))

    def made_by_weights(value: Value) -> int:
        """Returns the number of entries before any were repeated."""
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
