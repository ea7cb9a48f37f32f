"""Products that are written as sums over nothing, as by ``einsum("...k,k->...k")``: ``as_product``.

Norms multiply by their scale so. Such a ``dot_general`` is read as the ``mul`` that it is.
"""

from typing import Any

import jax.numpy as jnp
from jax import Array

from dogwood_jax._program.subprograms import computed_by


def is_product(eqn: Any) -> bool:
    """Whether an equation multiplies arrays entry by entry, one of them along axes of the other."""
    if eqn.primitive.name != "dot_general":
        return False
    (summed, _), batch = eqn.params["dimension_numbers"]
    ranks = [atom.aval.ndim for atom in eqn.invars]
    return not summed and any(len(axes) == n for axes, n in zip(batch, ranks, strict=True))


def as_product(eqn: Any) -> Any:
    """Returns the equation as one that runs a product."""
    _, batch = eqn.params["dimension_numbers"]
    (result,) = eqn.outvars

    def product(*operands: Array) -> list[Array]:
        factors = []
        for array, axes in zip(operands, batch, strict=True):
            others = [axis for axis in range(array.ndim) if axis not in axes]
            array = jnp.transpose(array, [*axes, *others]).astype(result.aval.dtype)
            places = range(len(axes), result.aval.ndim) if not others else ()
            factors.append(jnp.expand_dims(array, [*places]))
        return [factors[0] * factors[1]]

    return computed_by(product, eqn)
