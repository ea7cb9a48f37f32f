"""Operations that move entries, take some of them or join arrays: the table ``MOVES``."""

from dogwood_jax._program.primitives.axes import broadcast, reduced, reshaped, transposed
from dogwood_jax._program.primitives.record import Primitive

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
