"""Examples of loops, branches, callbacks and of where values are computed."""

from typing import Any

import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import layout
from jax.sharding import NamedSharding, PartitionSpec
from primitive_examples import X, example, layer, mesh, mlp

# Control ------------------------------------------------------------------------------------------


@example("scan", shapes=lambda n=4: {"i": (5, n), "w": (n, n), "o": (n, 2)})
def scan_of_a_recurrence(p: Any, x: Any) -> Any:
    def step(h: Any, y: Any) -> Any:
        h = jnp.tanh(h @ p["w"] + y)
        return h, h

    start = jnp.zeros(p["w"].shape[0])
    return lax.scan(step, start, layer(p, x))[1] @ p["o"]


@example(
    "scan", shapes=lambda k=2, n=4, m=3: {"i": (5, n), "u": (k, n, m), "d": (k, m, n), "o": (n, 2)}
)
def scan_over_layers(p: Any, x: Any) -> Any:
    def block(h: Any, w: Any) -> Any:
        return h + jnp.tanh(h @ w[0]) @ w[1], None

    return lax.scan(block, layer(p, x), (p["u"], p["d"]))[0] @ p["o"]


@example("scan", shapes=mlp)
def scan_over_units(p: Any, x: Any) -> Any:
    def add(total: Any, unit: Any) -> Any:
        return total + unit[0][:, None] * unit[1][None], None

    y = layer(p, x)
    return lax.scan(add, jnp.zeros((len(x), 2)), (y.T, p["o"]))[0]


@example("scan", shapes=mlp)
def scan_as_often_as_there_are_units(p: Any, x: Any) -> Any:
    y = layer(p, x)
    return lax.scan(lambda h, _: (h + 1, None), y @ p["o"], jnp.zeros(y.shape[1]))[0]


@example("scan", shapes=mlp)
def scan_of_a_carried_weight(p: Any, x: Any) -> Any:
    def step(w: Any, y: Any) -> Any:
        return w * 0.5, y @ w

    return lax.scan(step, p["o"], layer(p, x))[1]


@example("scan", shapes=mlp)
def scan_of_a_carried_weight_that_shifts(p: Any, x: Any) -> Any:
    def step(w: Any, y: Any) -> Any:
        return w + 1, y @ w

    return lax.scan(step, p["o"], layer(p, x))[1]


@example("while", shapes=lambda n=4: {"i": (5, n), "w": (n, n), "o": (n, 2)})
def while_of_a_recurrence(p: Any, x: Any) -> Any:
    def step(state: Any) -> Any:
        count, h = state
        return count + 1, jnp.tanh(h @ p["w"])

    return lax.while_loop(lambda s: s[0] < 3, step, (0, layer(p, x)))[1] @ p["o"]


@example("while", shapes=mlp)
def while_units_are_small(p: Any, x: Any) -> Any:
    """How often the loop runs depends on all units."""
    y = layer(p, x)

    def are_small(state: Any) -> Any:
        return (abs(state[1]).sum() < 50) & (state[0] < 9)

    return lax.while_loop(are_small, lambda s: (s[0] + 1, 2 * s[1]), (0, y))[1] @ p["o"]


@example("while", shapes=mlp)
def while_there_are_more_units(p: Any, x: Any) -> Any:
    y = layer(p, x)
    return lax.while_loop(
        lambda s: s[0] < y.shape[1], lambda s: (s[0] + 1, s[1] + 1), (0, y @ p["o"])
    )[1]


@example("cond", shapes=mlp, inputs=(X, np.bool_(True)))
def cond_between_functions(p: Any, x: Any, which: Any) -> Any:
    return lax.cond(which, jnp.sin, jnp.cos, layer(p, x)) @ p["o"]


@example(
    "cond", shapes=lambda n=4: {"i": (5, n), "o": (n, 2), "u": (n, 2)}, inputs=(X, np.bool_(True))
)
def cond_between_weights(p: Any, x: Any, which: Any) -> Any:
    return layer(p, x) @ lax.cond(which, lambda: p["o"], lambda: p["u"])


@example("cond", shapes=mlp)
def cond_by_units(p: Any, x: Any) -> Any:
    y = layer(p, x)
    return lax.cond(y.sum() > 0.1, jnp.sin, jnp.cos, y) @ p["o"]


@example("pure_callback", shapes=mlp)
def pure_callback_on_units(p: Any, x: Any) -> Any:
    y = layer(p, x)
    cumulated = jax.ShapeDtypeStruct(y.shape, y.dtype)
    return jax.pure_callback(lambda y: np.cumsum(y, 1), cumulated, y) @ p["o"]


@example("pure_callback", shapes=mlp)
def pure_callback_that_checks(p: Any, x: Any) -> Any:
    y = layer(p, x)
    return eqx.error_if(y, jnp.isnan(y).any(), "not a number") @ p["o"]


# Equinox's own ------------------------------------------------------------------------------------


@example("unvmap_any", shapes=mlp)
def unvmap_any(p: Any, x: Any) -> Any:
    y = layer(p, x)
    return y @ p["o"] + eqxi.unvmap_any(y > 0.2)


@example("unvmap_all", shapes=mlp)
def unvmap_all(p: Any, x: Any) -> Any:
    y = layer(p, x)
    return y @ p["o"] + eqxi.unvmap_all(y < 0.2)


@example("unvmap_max", shapes=mlp)
def unvmap_max(p: Any, x: Any) -> Any:
    y = layer(p, x)
    return y @ p["o"] + eqxi.unvmap_max((8 * y).astype(int))


@example("nonbatchable", shapes=mlp)
def nonbatchable(p: Any, x: Any) -> Any:
    return eqxi.nonbatchable(layer(p, x)) @ p["o"]


@example("select_if_vmap", "maybe_set", shapes=lambda n=4: {"i": (5, n), "w": (n, n), "o": (n, 2)})
def loop_that_collects(p: Any, x: Any) -> Any:
    def step(state: Any) -> Any:
        h, found, count = state
        h = jnp.tanh(h @ p["w"])
        return h, found.at[count].set(h), count + 1

    y = layer(p, x)
    start = (y, jnp.zeros((3, *y.shape)), jnp.asarray(0))
    _, found, _ = eqxi.while_loop(
        lambda s: s[2] < 3, step, start, max_steps=3, buffers=lambda s: s[1], kind="checkpointed"
    )
    return found.sum(0) @ p["o"]


# Where values are computed ------------------------------------------------------------------------


@example("reshard", shapes=mlp, somewhere=True)
def reshard(p: Any, x: Any) -> Any:
    y = layer(p, x)
    if not hasattr(jax, "reshard"):
        return y @ p["o"]
    return jax.reshard(y, NamedSharding(mesh(), PartitionSpec())) @ p["o"]


@example("mesh_cast", shapes=mlp, somewhere=True)
def mesh_cast(p: Any, x: Any) -> Any:
    """In jax 0.6 and 0.7, what changes the types of a mesh's axes."""
    y = layer(p, x)
    if not hasattr(jax.sharding, "mesh_cast"):
        return y @ p["o"]
    return jax.sharding.mesh_cast(y, NamedSharding(mesh(), PartitionSpec())) @ p["o"]


@example("layout_constraint", shapes=mlp, somewhere=True)
def layout_constraint(p: Any, x: Any) -> Any:
    y = layer(p, x)
    if not hasattr(layout, "with_layout_constraint"):  # as in jax 0.6
        return y @ p["o"]
    return layout.with_layout_constraint(y, layout.Layout((0, 1))) @ p["o"]


@example("sharding_constraint", shapes=mlp)
def sharding_constraint(p: Any, x: Any) -> Any:
    whole = NamedSharding(mesh(), PartitionSpec())
    return lax.with_sharding_constraint(layer(p, x), whole) @ p["o"]


@example("name", shapes=mlp)
def name(p: Any, x: Any) -> Any:
    return checkpoint_name(layer(p, x), "hidden") @ checkpoint_name(p["o"], "out")


@example("optimization_barrier", shapes=mlp)
def optimization_barrier(p: Any, x: Any) -> Any:
    y, o = lax.optimization_barrier((layer(p, x), p["o"]))
    return y @ o


@example("device_put", shapes=mlp)
def device_put(p: Any, x: Any) -> Any:
    return jax.device_put(layer(p, x)) @ jax.device_put(p["o"])
