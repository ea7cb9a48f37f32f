"""Training on eight devices gives what one device gives, and leaves all arrays where they are."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from dogwood_jax import training
from dogwood_jax._base.meshes import on_mesh, shardings_of
from dogwood_jax.training import loop
from dogwood_jax.training.batches import batches_of

pytestmark = pytest.mark.skipif(jax.device_count() < 8, reason="takes eight devices")

WHOLE = {"dense_1": {"kernel": P(), "bias": P()}, "dense_2": {"kernel": P(), "bias": P()}}
LAYOUTS = {
    "data_parallel": (P(("data", "model")), WHOLE),
    "tensor_parallel": (
        P("data"),
        {
            "dense_1": {"kernel": P(None, "model"), "bias": P("model")},
            "dense_2": {"kernel": P("model", None), "bias": P()},
        },
    ),
    "fsdp": (P("data"), {**WHOLE, "dense_1": {"kernel": P("data"), "bias": P("data")}}),
}
SETTINGS = {"epochs": 2, "batch_size": 16, "key": jax.random.key(0)}
TX = optax.adam(0.1)


def apply(variables, inputs):
    for name in ("dense_1", "dense_2"):
        layer = variables["params"][name]
        inputs = jnp.tanh(inputs @ layer["kernel"] + layer["bias"][None])
    return inputs


@pytest.fixture(scope="module")
def variables():
    rng = np.random.default_rng(0)
    sizes = {"dense_1": (4, 8), "dense_2": (8, 4)}
    layers = {
        name: {"kernel": rng.normal(size=shape), "bias": np.zeros(shape[1])}
        for name, shape in sizes.items()
    }
    return {"params": layers, "steps": np.arange(3)}


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(1)
    return rng.normal(size=(36, 4)), rng.integers(0, 4, 36).astype(np.int32)


@pytest.fixture(scope="module")
def on_one_device(variables, data):
    return training.fit(apply, variables, TX, data, **SETTINGS)


def mesh_of(axis_type):
    return jax.make_mesh((4, 2), ("data", "model"), axis_types=2 * (axis_type,))


def put(variables, mesh, specs):
    """Puts parameters on the mesh, but those that are whole, which need not be put."""

    def place(spec, leaf):
        return leaf if spec == P() else jax.device_put(leaf, NamedSharding(mesh, spec))

    params = jax.tree.map(place, specs, variables["params"], is_leaf=lambda x: isinstance(x, P))
    return {**variables, "params": params}


def assert_close(actual, expected):
    jax.tree.map(
        lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-12),
        actual,
        expected,
    )


@pytest.mark.parametrize(
    ("layout", "axis_type"),
    [
        ("fsdp", AxisType.Explicit),
        *(
            (layout, axis_type)
            for layout, axis_type in (
                *(("data_parallel", AxisType.Auto), ("data_parallel", AxisType.Explicit)),
                *(("tensor_parallel", AxisType.Auto), ("tensor_parallel", AxisType.Explicit)),
                ("fsdp", AxisType.Auto),
            )
        ),
    ],
)
@pytest.mark.long
def test_devices_do_not_change_the_result(
    layout, axis_type, variables, data, on_one_device, caplog
):
    mesh, (of_batch, specs) = mesh_of(axis_type), LAYOUTS[layout]
    sharding = NamedSharding(mesh, of_batch)
    given = put(variables, mesh, specs)
    # 36 samples in batches of 16 leave 4, which eight devices cannot share.
    run = training.fit(apply, given, TX, data, sharding=sharding, **SETTINGS)
    assert_close(run, on_one_device)

    # All is where it was, the optimizer's state where the parameters are, and can be trained on.
    shardings = jax.tree.map(
        lambda spec: NamedSharding(mesh, spec), specs, is_leaf=lambda x: isinstance(x, P)
    )
    for tree in (run.variables, run.opt_state[0].mu, run.opt_state[0].nu):
        assert jax.tree.map(lambda leaf: leaf.sharding, tree["params"]) == shardings
    assert run.variables["steps"].sharding == NamedSharding(mesh, P())
    with jax.log_compiles():
        more = training.fit(
            apply,
            run.variables,
            TX,
            data,
            sharding=sharding,
            opt_state=run.opt_state,
            **SETTINGS | {"epochs": 1},
        )
    assert "ompil" not in caplog.text
    assert more.history["loss"][0] < run.history["loss"][1]

    loss, accuracy = training.evaluate(apply, run.variables, data, batch_size=16, sharding=sharding)
    assert (loss, accuracy) == pytest.approx(
        training.evaluate(apply, on_one_device.variables, data, batch_size=16), rel=1e-12
    )


@pytest.mark.long
def test_each_device_trains_some_of_several_models(data):
    mesh = mesh_of(AxisType.Auto)
    kernels = np.random.default_rng(0).normal(size=(8, 4, 4))

    def several(kernels, inputs):
        return jnp.einsum("bi,mio->mbo", inputs, kernels)

    def loss(outputs, labels):
        labels = jnp.broadcast_to(labels, outputs.shape[:-1])
        return optax.softmax_cross_entropy_with_integer_labels(outputs, labels).sum(0)

    one = training.fit(several, kernels, TX, data, loss=loss, **SETTINGS)
    divided = jax.device_put(kernels, NamedSharding(mesh, P(("data", "model"))))
    whole = NamedSharding(mesh, P())
    run = training.fit(several, divided, TX, data, loss=loss, sharding=whole, **SETTINGS)
    assert_close(run, one)
    assert run.variables.sharding == run.opt_state[0].mu.sharding == divided.sharding


@pytest.mark.long
def test_data_split_over_devices(variables, data, on_one_device):
    sharding = NamedSharding(mesh_of(AxisType.Auto), P("data"))
    split = jax.device_put(data, sharding)
    run = training.fit(apply, variables, TX, split, sharding=sharding, **SETTINGS)
    assert_close(run, on_one_device)


def test_devices_exchange_gradients_alone(variables, data):
    """Not samples, nor parameters, where each device has all of both."""
    sharding = NamedSharding(mesh_of(AxisType.Auto), P("data"))
    trained, frozen = on_mesh(loop._partition(variables), sharding)
    state = trained, on_mesh(TX.init(trained), sharding)
    piece = next(batches_of(data, 16, sharding).pieces(np.arange(36)))
    program = loop._train.lower(
        *state,
        frozen,
        piece,
        apply=apply,
        tx=TX,
        loss=optax.softmax_cross_entropy_with_integer_labels,
        preprocess=training.scale_uint8,
        shardings=shardings_of(state),
    )
    text = program.compile().as_text()
    assert "all-reduce" in text
    assert not any(name in text for name in ("all-gather", "all-to-all", "collective-permute"))


def never(*_):
    raise AssertionError("called in spite of wrong arguments")


@pytest.mark.skipif(not hasattr(jax, "set_mesh"), reason="takes JAX 0.7")
@pytest.mark.long
def test_the_mesh_may_be_set(variables, data, on_one_device):
    mesh, (of_batch, specs) = mesh_of(AxisType.Explicit), LAYOUTS["tensor_parallel"]
    given = put(variables, mesh, specs)
    with jax.set_mesh(mesh):
        run = training.fit(
            apply, given, TX, data, sharding=NamedSharding(mesh, of_batch), **SETTINGS
        )
    assert_close(run, on_one_device)


def test_what_lies_elsewhere_is_named(variables, data):
    mesh = mesh_of(AxisType.Auto)
    other = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    elsewhere = jax.device_put(variables, NamedSharding(other, P()))
    settings = SETTINGS | {"epochs": 1}
    with pytest.raises(ValueError, match="sharding: variables/params/.* lies on several devices"):
        training.fit(never, elsewhere, TX, data, **settings)
    with pytest.raises(ValueError, match="variables/steps: expected on .* mesh of sharding"):
        training.evaluate(never, elsewhere, data, sharding=NamedSharding(mesh, P("data")))
    with pytest.raises(ValueError, match="batch_size: expected a multiple of 4, .* got 18"):
        training.fit(
            never,
            variables,
            TX,
            data,
            sharding=NamedSharding(mesh, P("data")),
            **settings | {"batch_size": 18},
        )
    with pytest.raises(ValueError, match="sharding: expected the sharding of a batch along its"):
        training.fit(
            never, variables, TX, data, sharding=NamedSharding(mesh, P(None, "data")), **settings
        )
