"""Two processes that share a mesh train, grow and go on as one process does."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import dogwood_jax as dw

DEVICES = 4
TX = optax.adam(1e-2)


def apply(params, x):
    return jax.nn.relu(x @ params["up"] + params["bias"][None]) @ params["down"]


def run(devices):
    """Trains, grows variables that are divided along both axes, and trains on: the losses."""
    mesh = Mesh(np.array(devices).reshape(2, 2), ("data", "model"))
    specs = {"up": P("data", "model"), "bias": P("model"), "down": P("model")}
    shardings = {name: NamedSharding(mesh, spec) for name, spec in specs.items()}
    rng = np.random.default_rng(0)
    shapes = {"up": (6, 8), "bias": (8,), "down": (8, 4)}
    small = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    params = jax.tree.map(
        lambda array, sharding: jax.make_array_from_callback(
            array.shape, sharding, lambda index: array[index]
        ),
        small,
        shardings,
    )
    data = rng.normal(size=(64, 6)).astype(np.float32), rng.integers(4, size=64)
    options = {"epochs": 2, "batch_size": 16, "key": jax.random.key(0), "progress": False}
    options["sharding"] = NamedSharding(mesh, P("data"))

    first = dw.training.fit(apply, params, TX, data, **options)
    x = jax.ShapeDtypeStruct((8, 6), jnp.float32)
    widths = dw.trace(apply, params, x)
    growth = dw.plan(widths, {"up": 16})
    wide = dw.grow(first.variables, growth, key=jax.random.key(1))
    assert jax.tree.map(lambda array: array.sharding, wide) == shardings
    for inputs in (x, jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=options["sharding"])):
        assert dw.verify(apply, first.variables, apply, wide, inputs).relative < 1e-6
    state = dw.grow_opt_state(first.opt_state, growth, TX)
    # The same under jit, with the shardings said.
    grow = jax.jit(dw.grow, static_argnames="growth", out_shardings=growth.shardings(shardings))
    again = grow(first.variables, growth=growth, key=jax.random.key(1))
    for name in wide:
        for a, b in zip(wide[name].addressable_shards, again[name].addressable_shards, strict=True):
            np.testing.assert_array_equal(a.data, b.data)
    # A unit that nothing reads is found from arrays that no process holds alone.
    down = jax.jit(lambda down: down.at[2].set(0))(first.variables["down"])
    assert dw.find_dead(first.variables | {"down": down}, widths, "up") == (2,)
    second = dw.training.fit(apply, wide, TX, data, opt_state=state, **options)
    return [*first.history["loss"].tolist(), *second.history["loss"].tolist()]


@pytest.mark.long
def test_two_processes_give_the_numbers_of_one():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    environment = os.environ | {"PYTHONPATH": str(Path(dw.__file__).parents[1])}
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, address, str(index)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            text=True,
        )
        for index in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=240) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], outputs[0][1]
    losses = [json.loads(output.splitlines()[-1]) for output, _ in outputs]
    assert losses[0] == losses[1]
    one = run(jax.devices()[:DEVICES])
    np.testing.assert_allclose(losses[0], one, rtol=1e-5)
    # Growth changed no prediction, and learning went on.
    assert one[0] > one[1] > one[2] > one[3]


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", DEVICES // 2)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
    assert jax.process_count() == 2
    print(json.dumps(run(jax.devices())))
