"""Networks under ``shard_map``: read and judged as a program of one device."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from networks import data, f64, fill
from primitive_examples import shard_map
from tiers import in_tiers

import dogwood_jax as dw
from dogwood_jax._program.program import Program

MESH = Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("data", "model"))
X = data(6, 4)
COLUMNS_AND_ROWS = {"up": P(None, "model"), "down": P("model")}


def on_mesh(f: Callable[..., Any], params: Any, x: Any = "data", out: Any = "data") -> Any:
    return shard_map(f, mesh=MESH, in_specs=(params, P(x)), out_specs=P(out))


def shapes(units: int, *more: int) -> dict[str, Any]:
    return {"up": f64(*more, 4, units), "down": f64(*more, units, 4)}


def hidden(p: Any, x: Any) -> Any:
    return jnp.tanh(x @ p["up"])


def parallel(p: Any, x: Any, reduce: Any = jax.lax.psum) -> Any:
    return x + reduce(hidden(p, x) @ p["down"], "model")


def layers(p: Any, x: Any) -> Any:
    def step(h: Any, layer: Any) -> Any:
        return h + jax.jit(parallel)(layer, h), None

    return jax.lax.scan(step, x, p)[0]


def branches(p: Any, x: Any) -> Any:
    is_first = jax.lax.axis_index("model") == 0
    h = jax.lax.cond(is_first, jnp.tanh, lambda h: jnp.sin(h), x @ p["up"])
    return jax.lax.psum(h @ p["down"], "model")


def loop(p: Any, x: Any) -> Any:
    def body(state: Any) -> Any:
        return state[0] + 1, jnp.tanh(parallel(p, state[1]))

    return jax.lax.while_loop(lambda state: state[0] < 3, body, (0, x))[1]


def pipeline(p: Any, x: Any) -> Any:
    h = hidden(p, x)
    received = jax.lax.ppermute(h, "model", [(0, 1)])
    return jax.lax.psum((h + received) @ p["down"], "model")


def ring(p: Any, x: Any) -> Any:
    h = jax.lax.ppermute(hidden(p, x), "model", [(0, 1), (1, 0)])
    return jax.lax.psum(h @ p["down"], "model")


def largest(p: Any, x: Any) -> Any:
    partial = hidden(p, x) @ p["down"]
    return jax.lax.pmax(partial, "model") - jax.lax.pmin(partial, "model")


def scattered(p: Any, x: Any) -> Any:
    return jax.lax.psum_scatter(hidden(p, x) @ p["down"], "model", scatter_dimension=1, tiled=True)


def gathered(p: Any, x: Any) -> Any:
    """Each device gathers all weights before it uses them, as FSDP does."""
    up = jax.lax.all_gather(p["up"], "data", axis=1, tiled=True)
    down = jax.lax.all_gather(p["down"], "data").reshape(-1, 4)
    return hidden({"up": up}, x) @ down


def experts(p: Any, x: Any) -> Any:
    """A device has one expert, and sends each expert the tokens that it gets."""
    gates = jax.nn.softmax(x[:, :2])
    arrived = jax.lax.all_to_all(jnp.concatenate([x, x]), "data", 0, 0, tiled=True)
    made = hidden({"up": p["up"][0]}, arrived) @ p["down"][0]
    back = jax.lax.all_to_all(made, "data", 0, 0, tiled=True)
    return jnp.einsum("te,eto->to", gates, back.reshape(2, -1, 4))


OF_LAYERS = {"up": P(None, None, "model"), "down": P(None, "model")}
NETWORKS: dict[str, tuple[Any, Any]] = {
    "columns and rows": (on_mesh(parallel, COLUMNS_AND_ROWS), shapes),
    "layers": (on_mesh(layers, OF_LAYERS), lambda n: shapes(n, 2)),
    "branches": (on_mesh(branches, COLUMNS_AND_ROWS), shapes),
    "a loop": (on_mesh(loop, COLUMNS_AND_ROWS), shapes),
    "a pipeline": (on_mesh(pipeline, COLUMNS_AND_ROWS), shapes),
    "a ring": (on_mesh(ring, COLUMNS_AND_ROWS), shapes),
    "the largest": (on_mesh(largest, COLUMNS_AND_ROWS), shapes),
    "scattered": (
        shard_map(
            scattered,
            mesh=MESH,
            in_specs=(COLUMNS_AND_ROWS, P("data")),
            out_specs=P("data", "model"),
        ),
        shapes,
    ),
    "gathered": (on_mesh(gathered, {"up": P(None, "data"), "down": P("data")}), shapes),
    "experts": (on_mesh(experts, P("data")), lambda n: shapes(n, 2)),
}


# What is divided or summed in these is so in others, too.
LONG = ("branches", "layers", "a loop")


@pytest.mark.parametrize(
    "name",
    in_tiers(NETWORKS, long=LONG),
)
def test_a_network_on_a_mesh_grows(name: str) -> None:
    apply, of_size = NETWORKS[name]
    params = fill(of_size(8), 0)
    run = jax.jit(apply)
    outputs = run(params, X)
    alone = jex.jaxpr_as_fun(Program(apply, params, (X,)).jaxpr)(*jax.tree.leaves((params, X)))
    np.testing.assert_allclose(alone[0], outputs, rtol=1e-12)
    growth = dw.plan(dw.trace(apply, params, X), target=of_size(12), target_apply=apply)
    assert growth.evidence.samples and not growth.inserted
    wide = dw.grow(params, growth, key=jax.random.key(0))
    np.testing.assert_allclose(run(wide, X), outputs, rtol=1e-12)


def test_the_axes_of_a_mesh_stay() -> None:
    """Each device gets as many new units."""
    apply, _ = NETWORKS["columns and rows"]
    widths = dw.trace(apply, shapes(8), X)
    devices, units = widths["up[1.0]"], widths["up[1.1]"]
    assert (devices.size, units.size, units.status) == (2, 4, "growable")
    assert "devices" in devices.fixed
    assert dw.plan(widths, target=shapes(12)).sizes["up[1.1]"] == 6
    with pytest.raises(ValueError, match="counts the devices along an axis of a mesh"):
        dw.plan(widths, {"up[1.0]": 4})


def test_a_larger_model_that_reduces_otherwise_is_refused() -> None:
    def alone(y: Any, axis: str) -> Any:
        return jax.lax.pmax(jnp.where(jax.lax.axis_index(axis) == 0, y, -jnp.inf), axis)

    widths = dw.trace(NETWORKS["columns and rows"][0], shapes(8), X)
    specs = {"mesh": MESH, "in_specs": (COLUMNS_AND_ROWS, P("data")), "out_specs": P("data")}
    for reduce in (alone, lambda y, axis: y):
        larger = unchecked(functools.partial(parallel, reduce=reduce), **specs)
        with pytest.raises(ValueError, match="the larger model computes something else"):
            dw.plan(widths, target=shapes(12), target_apply=larger)
    larger = unchecked(functools.partial(parallel, reduce=jax.lax.pmean), **specs)
    growth = dw.plan(widths, target=shapes(12), target_apply=larger)
    assert growth.factors == {"down": 2.0}  # there are two devices along the axis


def test_an_abstract_mesh() -> None:
    """The mesh of the model has more devices than there are."""
    from jax.sharding import AbstractMesh, AxisType

    mesh = AbstractMesh((8, 16), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    specs = (COLUMNS_AND_ROWS, P("data"))

    def apply(p: Any, x: Any) -> Any:
        return shard_map(parallel, mesh=mesh, in_specs=specs, out_specs=P("data"))(p, x)

    target = {"up": f64(512, 3072), "down": f64(3072, 512)}
    widths = dw.trace(apply, {"up": f64(512, 2048), "down": f64(2048, 512)}, f64(64, 512))
    growth = dw.plan(widths, target=target, target_apply=apply)
    assert growth.evidence.samples and growth.evidence.sizes[0][1] < 128


def test_a_collective_that_is_not_known_fixes_widths() -> None:
    def in_groups(p: Any, x: Any) -> Any:
        partial = hidden(p, x) @ p["down"]
        return jax.lax.psum(partial, "model", axis_index_groups=[[0], [1]])

    specs = {"mesh": MESH, "in_specs": (COLUMNS_AND_ROWS, P()), "out_specs": P(None, "model")}
    widths = dw.trace(unchecked(in_groups, **specs), shapes(8), X)
    assert "shard_map" in widths.of("up", 1).fixed


def unchecked(f: Any, **specs: Any) -> Any:
    try:
        return shard_map(f, check_vma=False, **specs)
    except TypeError:  # before JAX 0.7
        return shard_map(f, check_rep=False, **specs)
