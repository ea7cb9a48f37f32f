"""Sums, products and other reductions: the table ``SUMS``."""

from dogwood_jax._program.primitives.axes import (
    contraction,
    contraction_of_groups,
    convolution,
    reduced,
)
from dogwood_jax._program.primitives.record import Primitive

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
