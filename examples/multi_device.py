"""Train on all devices, grow on another mesh from a checkpoint, and continue training.

Layers are divided over the axis ``model`` of a mesh, batches over its axis ``data``. The same
script runs on one CPU, on eight virtual devices (``JAX_NUM_CPU_DEVICES=8``) and on GPUs. On a TPU
pod slice, start it in each process, with a folder that all processes share.
"""

import contextlib
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
from command_line import EPOCHS, bar, fit, parse, run, say
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import dogwood_jax as dw
from dogwood_jax import mnist, training

TX = dw.growable(optax.adam(1e-3))
SMALL, LARGE = 64, 256  # units
BATCH_SIZE = 64
PICTURES = jax.ShapeDtypeStruct((1, 28, 28), np.float32)
# How arrays and their optimizer state are divided: the units of a layer over the axis "model".
# Other arrays are whole on every device.
AXES: dict[tuple[Any, ...], tuple[str | None, ...]] = {
    ("dense_1", "kernel"): (None, "model"),
    ("dense_1", "bias"): ("model",),
    ("dense_2", "kernel"): ("model", None),
}


class MLP(nn.Module):
    """784 pixels, one layer of relu units, 10 digits."""

    units: int

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Returns logits ``[n, 10]`` of images ``[n, 28, 28]``."""
        x = nn.relu(nn.Dense(self.units, name="dense_1")(images.reshape(len(images), -1)))
        return nn.Dense(10, name="dense_2")(x)


def apply(variables: Any, images: jax.Array) -> Any:
    """Applies a network of any size."""
    return MLP(variables["params"]["dense_1"]["bias"].size).apply(variables, images)


class Network(NamedTuple):
    """A network in training."""

    variables: Any
    opt_state: Any


def mesh_of(model: int) -> Mesh:
    """Returns a mesh of all devices of all processes; ``model`` devices share each layer."""
    return Mesh(np.array(jax.devices()).reshape(-1, model), ("data", "model"))


def divided(mesh: Mesh, *axes: str | None) -> NamedSharding:
    """Returns the sharding of arrays that are divided over these axes of a mesh."""
    return NamedSharding(mesh, PartitionSpec(*axes))


def shardings(mesh: Mesh, tree: Any) -> Any:
    """Returns shardings for variables or an optimizer's state, by the names of layers."""

    def one(path: tuple[Any, ...], _: Any) -> NamedSharding:
        names = tuple(getattr(key, "key", None) for key in path[-2:])
        return divided(mesh, *AXES.get(names, ()))

    return jax.tree_util.tree_map_with_path(one, tree)


def shapes(units: int) -> Network:
    """Returns the shapes of a network with this many units, and of its optimizer's state."""
    variables = jax.eval_shape(MLP(units).init, jax.random.key(0), PICTURES)
    return Network(variables, jax.eval_shape(TX.init, variables))


def start(units: int, mesh: Mesh, key: jax.Array) -> Network:
    """Returns a new network; each device draws its own part of the weights."""

    def init(key: jax.Array) -> Network:
        variables = MLP(units).init(key, np.zeros(PICTURES.shape, PICTURES.dtype))
        return Network(variables, TX.init(variables))

    network: Network = jax.jit(init, out_shardings=shardings(mesh, shapes(units)))(key)
    return network


def train(
    network: Network, digits: mnist.Digits, mesh: Mesh, *, epochs: int, key: jax.Array
) -> Network:
    """Trains a network on the devices that hold it."""
    trained = fit(
        apply,
        network.variables,
        TX,
        (digits.train_images, digits.train_labels),
        epochs=epochs,
        batch_size=BATCH_SIZE,
        key=key,
        opt_state=network.opt_state,
        sharding=divided(mesh, "data"),
    )
    return Network(trained.variables, trained.opt_state)


def plan(units: int, larger: int) -> dw.Growth:
    """Plans the growth of a network from shapes."""
    widths = dw.trace(MLP(units).apply, shapes(units).variables, PICTURES)
    return dw.plan(widths, {"dense_1": larger})


def save(folder: Path, network: Network, growth: dw.Growth) -> None:
    """Writes the planned growth and a network; each process writes its own part."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder.absolute() / "network", network._asdict(), force=True)
    if jax.process_index() == 0:
        (folder / "growth.json").write_text(dw.to_json(growth))


def restore(folder: Path, units: int, mesh: Mesh) -> tuple[Network, dw.Growth]:
    """Reads a network, whose parts go to their devices, and its planned growth."""

    def one(leaf: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    structs = shapes(units)
    target = jax.tree.map(one, structs, shardings(mesh, structs))
    with ocp.StandardCheckpointer() as checkpointer:
        network = checkpointer.restore(folder.absolute() / "network", target._asdict())
    return Network(**network), dw.from_json((folder / "growth.json").read_text())


def grow(network: Network, growth: dw.Growth, key: jax.Array) -> Network:
    """Grows a network and its optimizer's state on the devices that hold them."""
    return Network(
        dw.grow(network.variables, growth, key=key),
        dw.grow_opt_state(network.opt_state, growth, TX),
    )


class Stage(NamedTuple):
    """A row of the table."""

    name: str
    mesh: Mesh
    network: Network
    loss: float
    accuracy: float

    def __str__(self) -> str:
        sizes = " x ".join(map(str, self.mesh.devices.shape))
        units = self.network.variables["params"]["dense_1"]["bias"].size
        return f"{self.name:<12}{sizes:>14}{units:>7}{self.loss:>10.4f}{self.accuracy:>10.2%}"


HEADER = f"{'stage':<12}{'data x model':>14}{'units':>7}{'loss':>10}{'accuracy':>10}"


def main(arguments: list[str] | None = None) -> list[Stage]:
    """Runs the example; returns the stages."""
    options = parse(
        __doc__,
        arguments,
        counts={**EPOCHS, "model": (1, "devices that share each layer before growing")},
    )
    digits, key = options.digits, jax.random.key(options.seed)
    folder, stages = options.out / "multi_device", list[Stage]()
    folder.mkdir(exist_ok=True)

    def stage(name: str, mesh: Mesh, network: Network) -> Network:
        loss, accuracy = training.evaluate(
            apply,
            network.variables,
            (digits.test_images, digits.test_labels),
            sharding=divided(mesh, "data"),
        )
        stages.append(Stage(name, mesh, network, loss, accuracy))
        if jax.process_index() == 0:
            say(stages[-1])
        return network

    if jax.process_index() == 0:
        print(f"{jax.device_count()} devices of kind {jax.devices()[0].device_kind}\n{HEADER}")
    with bar(2 * options.epochs):
        keys = jax.random.split(key, 4)
        mesh = mesh_of(options.model)
        network = start(SMALL, mesh, keys[0])
        network = train(network, digits, mesh, epochs=options.epochs, key=keys[1])
        save(folder, stage("trained", mesh, network), plan(SMALL, LARGE))

        mesh = mesh_of(jax.device_count() // options.model)
        network, growth = restore(folder, SMALL, mesh)
        network = stage("grown", mesh, grow(stage("restored", mesh, network), growth, keys[2]))
        network = train(network, digits, mesh, epochs=options.epochs, key=keys[3])
        stage("trained on", mesh, network)
    return stages


if __name__ == "__main__":
    # Outside a cluster this raises, because there are no other processes.
    with contextlib.suppress(ValueError):
        jax.distributed.initialize()
    run(main)
