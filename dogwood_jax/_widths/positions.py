"""Tables inside a network that vary along a width: ``POSITIONS`` and ``of_constant``.

A table such as ``2.0 ** -(jnp.arange(heads) + 1)``, slopes of ALiBi, has a number for each unit. In
a larger network, old units may have other numbers there.
"""

from dogwood_jax._widths.reasons import Reason

POSITIONS = Reason("a table of positions is computed along it", "table")


def of_constant(shape: tuple[int, ...]) -> Reason:
    """Says that a constant of a shape varies along a dimension."""
    return Reason(f"a constant of shape {shape} inside the network varies along it", "table")
