"""The table of primitives: ``PRIMITIVES``, and what it says of one: ``primitive``."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from dogwood_jax._program.primitives.axes import (
    Axes,
    broadcast,
    contraction,
    contraction_of_groups,
    convolution,
    reduced,
    reshaped,
    transposed,
)
from dogwood_jax._program.primitives.entries import ENTRIES
from dogwood_jax._program.primitives.record import Primitive, Shape

CONTROL: dict[str, Primitive] = {
    "cond": Primitive(runs=True),
    "scan": Primitive(runs=True),
    "while": Primitive(runs=True),
    "random_bits": Primitive(draws=True),
    "rng_bit_generator": Primitive(draws=True),
    "rng_uniform": Primitive(draws=True),
}


MOVES: dict[str, Primitive] = {
    "broadcast_in_dim": Primitive(keeps=True, linear=True, axes=broadcast),
    "reshape": Primitive(keeps=True, linear=True, axes=reshaped),
    "squeeze": Primitive(keeps=True, linear=True, axes=reshaped),
    "transpose": Primitive(keeps=True, linear=True, axes=transposed),
    "rev": Primitive(linear=True),
    "tile": Primitive(linear=True),
    # What takes some entries.
    "dynamic_slice": Primitive(linear_in_first=True, indexed=True, stays=True),
    "gather": Primitive(linear_in_first=True, indexed=True),
    "slice": Primitive(linear=True, stays=True),
    "split": Primitive(linear=True, stays=True),
    "unstack": Primitive(linear=True),
    # What takes the largest or smallest entries.
    "approx_top_k": Primitive(),
    "cummax": Primitive(),
    "cummin": Primitive(),
    "reduce_max": Primitive(axes=reduced),
    "reduce_min": Primitive(axes=reduced),
    "reduce_window_max": Primitive(),
    "reduce_window_min": Primitive(),
    "sort": Primitive(),
    "top_k": Primitive(),
    # What joins arrays.
    "concatenate": Primitive(terms=slice(None), joins=True, stays=True),
    "dynamic_update_slice": Primitive(terms=slice(0, 2), joins=True, stays=True),
    "pad": Primitive(terms=slice(None), joins=True, stays=True),
    "scatter": Primitive(terms=slice(0, 3, 2), joins=True),
    "stack": Primitive(terms=slice(None), joins=True),
}


SUMS: dict[str, Primitive] = {
    # Sums of products.
    "conv_general_dilated": Primitive(contracts=True, axes=convolution),
    "dot_general": Primitive(contracts=True, axes=contraction),
    "ragged_dot_general": Primitive(contracts=True, axes=contraction_of_groups),
    # Sums.
    "cumsum": Primitive(linear=True),
    "fft": Primitive(linear=True),
    "psum": Primitive(linear=True),
    "psum_invariant": Primitive(linear=True),
    "reduce_sum": Primitive(linear=True, axes=reduced),
    "reduce_window_sum": Primitive(linear=True),
    "scatter-add": Primitive(terms=slice(0, 3, 2)),
    "scatter-sub": Primitive(terms=slice(0, 3, 2)),
    # What is computed of all entries along axes.
    "argmax": Primitive(axes=reduced),
    "argmin": Primitive(axes=reduced),
    "reduce_prod": Primitive(axes=reduced),
    "unvmap_all": Primitive(terms=slice(None)),
}


PRIMITIVES: Mapping[str, Primitive] = {**ENTRIES, **MOVES, **SUMS, **CONTROL}
_NOTHING = Primitive()


def primitive(name: str) -> Primitive:
    """Returns the record of a primitive; one that states nothing, if there is none."""
    return PRIMITIVES.get(name, _NOTHING)


def functions(holds: Callable[[Primitive], bool]) -> list[str]:
    """Returns the names of the functions of single entries for which ``holds`` is true."""
    return [name for name, record in ENTRIES.items() if holds(record)]


def axes_of(
    name: str, params: Mapping[str, Any], operands: Sequence[Shape], result: Shape
) -> Axes | None:
    """Returns which axes of operands and result are the same; None if that is not known."""
    axes = primitive(name).axes
    return None if axes is None else axes(params, operands, result)


def is_linear(name: str, params: Mapping[str, Any]) -> bool:
    """Whether a primitive with these parameters is linear. A cast to integers is not."""
    is_float = jnp.issubdtype(params.get("new_dtype", float), jnp.inexact)
    return primitive(name).linear and bool(is_float)
