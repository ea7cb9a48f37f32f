"""Speed of `dogwood_jax.training` beside other ways to train the same network.

784-128-10 with relu, Adam 1e-3, batches of 32, 60,000 MNIST images: the time of one epoch, once
compiled, and of a whole process from its start to ten trained epochs. Each contender runs in
processes of its own; all take turns, round by round, so that a busy moment of the machine hits all
of them, and ratios are medians over the rounds. The seconds of CPU, of all threads together, say
more where others keep the machine busy. Those whose packages are missing are left out.

"One core" is XLA with a single thread (the environment variable NPROC=1). The roofline is a scan
over the same matrix products, and over the reading and writing of parameters, gradients and
moments, with next to no other arithmetic. The eight models are trained on the same batches; "on
devices" divides them among two virtual devices, or all accelerators. GFLOP/s count the matrix
products alone; products of large matrices, about as much arithmetic as an epoch, show how many the
machine can do.

    pip install -e '.[bench]' 'tensorflow-cpu'    # 'mnist' too, for --data tfds
    python tests/benchmarks/training.py

The framework contenders are what their users write: `fit` with its defaults on float32 images in
memory for both Keras, and for PyTorch a loop over a shuffled tensor, without a DataLoader, whose
overhead would be larger than the rest.
"""

import argparse
import functools
import importlib.metadata
import importlib.util
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

BATCH_SIZE = 32
EPOCHS = 10  # of a whole process
LEARNING_RATE = 1e-3
UNITS = 128
# In the matrix products of an epoch: forward, and for the gradients of both kernels and of the
# hidden units.
GFLOP = 60_000 * 2 * (2 * 28 * 28 * UNITS + 3 * UNITS * 10) / 1e9
MODELS = 8


# A contender takes uint8 images [60000, 28, 28] and int32 labels [60000] and returns a function
# that trains for some more epochs and returns the loss of the last.


def dogwood_jax(images, labels):
    """Trains with the library."""
    model, variables, tx = _flax_model()
    return _fit(model.apply, variables, tx, (images, labels))


def eight_models(images, labels):
    """Trains models from different seeds with the library, in one call."""
    import jax
    import jax.numpy as jnp
    import optax

    model, variables, tx = _flax_model()
    keys = jax.random.split(jax.random.key(0), MODELS)
    several = jax.vmap(model.init, (0, None))(keys, jnp.zeros((1, 28, 28)))

    def apply(variables, inputs):
        return jax.vmap(model.apply)(variables, jnp.broadcast_to(inputs, (MODELS, *inputs.shape)))

    def loss(outputs, labels):
        labels = jnp.broadcast_to(labels, outputs.shape[:-1])
        return optax.softmax_cross_entropy_with_integer_labels(outputs, labels).sum(0)

    settings = {}
    if jax.device_count() > 1:
        mesh = jax.sharding.Mesh(np.array(jax.devices()), "models")
        of_batch, of_models = (
            jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))
            for axes in ((), ("models",))
        )
        several, settings["sharding"] = jax.device_put(several, of_models), of_batch
    train = _fit(apply, several, tx, (images, labels), loss=loss, **settings)
    return lambda epochs: train(epochs) / MODELS


def _fit(apply, variables, tx, data, **settings):
    import jax

    from dogwood_jax import training

    data = jax.device_put(data, settings.get("sharding"))
    state = {"variables": variables, "opt_state": None}
    keys = map(jax.random.key, range(1_000_000))

    def train(epochs):
        run = training.fit(
            apply,
            state["variables"],
            tx,
            data,
            epochs=epochs,
            batch_size=BATCH_SIZE,
            key=next(keys),
            opt_state=state["opt_state"],
            **settings,
        )
        state.update(variables=run.variables, opt_state=run.opt_state)
        return run.history["loss"][-1]

    return train


def bare_scan(images, labels):
    """Trains with the least JAX code that does it."""
    import jax
    import jax.numpy as jnp
    import optax

    model, variables, tx = _flax_model()
    images, labels = jax.device_put((images, labels))
    state = variables, tx.init(variables)
    keys = map(jax.random.key, range(1_000_000))

    @functools.partial(jax.jit, donate_argnums=0)
    def train_epoch(state, images, labels, key):
        def step(state, samples):
            variables, opt_state = state

            def objective(variables):
                logits = model.apply(variables, images[samples].astype(jnp.float32) / 255)
                losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels[samples])
                return losses.mean(), (logits.argmax(-1) == labels[samples]).mean()

            values, grads = jax.value_and_grad(objective, has_aux=True)(variables)
            updates, opt_state = tx.update(grads, opt_state, variables)
            return (optax.apply_updates(variables, updates), opt_state), values

        order = jax.random.permutation(key, len(images)).reshape(-1, BATCH_SIZE)
        state, (losses, accuracies) = jax.lax.scan(step, state, order)
        return state, losses.mean(), accuracies.mean()

    def train(epochs):
        nonlocal state
        for _ in range(epochs):
            state, loss, accuracy = train_epoch(state, images, labels, next(keys))
            loss, accuracy = float(loss), float(accuracy)
        return loss

    return train


def roofline(images, _):
    """Multiplies the same matrices, and reads and writes the parameters, once a step."""
    import jax
    import jax.numpy as jnp

    inputs = jnp.full((BATCH_SIZE, 28 * 28), 1 / (28 * 28))
    state = tuple((jnp.ones((28 * 28, UNITS)), jnp.ones((UNITS, 10))) for _ in range(3))

    @functools.partial(jax.jit, donate_argnums=0)
    def train_epoch(state):
        def step(state, _):
            (kernel_1, kernel_2), mean, square = state
            hidden = inputs @ kernel_1
            outputs = hidden @ kernel_2
            grads = inputs.T @ (outputs @ kernel_2.T), hidden.T @ outputs

            def update(value, mean, square, grad):
                # Converges to ones, away from infinities and from slow denormal numbers.
                mean, square = 0.5 * mean + 0.5 + 1e-9 * grad, 0.5 * square + 0.5 + 1e-9 * grad
                return 0.5 * value + 0.25 * (mean + square), mean, square

            both = [update(*leaves) for leaves in zip((kernel_1, kernel_2), mean, square, grads)]
            return tuple(zip(*both)), None

        return jax.lax.scan(step, state, length=len(images) // BATCH_SIZE)[0]

    def train(epochs):
        nonlocal state
        for _ in range(epochs):
            state = jax.block_until_ready(train_epoch(state))
        return float("nan")

    return train


def large_products(images, _):
    """Multiplies large matrices, with about as much arithmetic as in the products of an epoch."""
    import jax
    import jax.numpy as jnp

    size = 1024
    matrix = jnp.full((size, size), 1 / size)
    multiply = jax.jit(jnp.matmul)
    products = round(GFLOP * 1e9 / (2 * size**3))

    def train(epochs):
        for _ in range(epochs * products):
            multiply(matrix, matrix).block_until_ready()
        return float("nan")

    return train


def _flax_model():
    import flax.linen as nn
    import jax
    import jax.numpy as jnp
    import optax

    class Classifier(nn.Module):
        @nn.compact
        def __call__(self, images):
            x = images.reshape(len(images), -1)
            x = nn.relu(nn.Dense(UNITS)(x))
            return nn.Dense(10)(x)

    model = Classifier()
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 28, 28)))
    return model, variables, optax.adam(LEARNING_RATE)


def keras_on_jax(images, labels):
    """Trains with Keras 3 on its JAX backend."""
    os.environ["KERAS_BACKEND"] = "jax"
    import keras

    return _fit_keras(keras, images, labels)


def tf_keras(images, labels):
    """Trains with Keras 2 on TensorFlow."""
    import tf_keras

    return _fit_keras(tf_keras, images, labels)


def _fit_keras(keras, images, labels):
    model = keras.Sequential(
        [
            keras.layers.Input((28, 28)),
            keras.layers.Flatten(),
            keras.layers.Dense(UNITS, activation="relu"),
            keras.layers.Dense(10),
        ]
    )
    model.compile(
        optimizer=keras.optimizers.Adam(LEARNING_RATE),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    inputs = images.astype(np.float32) / 255

    def train(epochs):
        curves = model.fit(inputs, labels, batch_size=BATCH_SIZE, epochs=epochs, verbose=0)
        return curves.history["loss"][-1]

    return train


def torch(images, labels):
    """Trains with PyTorch, eagerly."""
    import torch

    model = torch.nn.Sequential(
        torch.nn.Flatten(),
        torch.nn.Linear(28 * 28, UNITS),
        torch.nn.ReLU(),
        torch.nn.Linear(UNITS, 10),
    )
    optimizer = torch.optim.Adam(model.parameters(), LEARNING_RATE)
    cross_entropy = torch.nn.CrossEntropyLoss()
    inputs = torch.from_numpy(images.astype(np.float32) / 255)
    targets = torch.from_numpy(labels.astype(np.int64))

    def train(epochs):
        for _ in range(epochs):
            total, correct = torch.zeros(()), torch.zeros((), dtype=torch.int64)
            for samples in torch.randperm(len(inputs)).split(BATCH_SIZE):
                optimizer.zero_grad()
                outputs = model(inputs[samples])
                loss = cross_entropy(outputs, targets[samples])
                loss.backward()
                optimizer.step()
                total += loss.detach() * len(samples)
                correct += (outputs.argmax(1) == targets[samples]).sum()
        return float(total) / len(inputs)

    return train


OURS = ("dogwood_jax",)
JAX = ("jax", "flax", "optax")
CONTENDERS = {  # name: the function, the packages that it takes, and whether to time processes
    "dogwood_jax": (dogwood_jax, OURS, True),
    "dogwood_jax, one core": (dogwood_jax, OURS, True),
    "bare lax.scan": (bare_scan, JAX, True),
    "bare lax.scan, one core": (bare_scan, JAX, True),
    "roofline": (roofline, JAX, False),
    "roofline, one core": (roofline, JAX, False),
    "large matrix products": (large_products, JAX, False),
    "dogwood_jax, eight models": (eight_models, OURS, False),
    "dogwood_jax, eight models on devices": (eight_models, OURS, False),
    "Keras 3 on JAX": (keras_on_jax, ("jax", "keras"), True),
    "PyTorch eager": (torch, ("torch",), True),
    "tf_keras": (tf_keras, ("tensorflow", "tf_keras"), True),
}


def work(name, folder, epochs):
    """Trains in this process, for so many epochs or, if None, for one each time it is asked."""
    images, labels = (np.load(folder / f"{part}.npy") for part in ("images", "labels"))
    train = CONTENDERS[name][0](images, labels)
    if epochs is not None:
        loss = train(epochs)
        print(time.process_time(), loss)
        return
    print("ready", flush=True)
    for _ in sys.stdin:
        start, cpu_start = time.perf_counter(), time.process_time()
        loss = train(1)
        print(time.perf_counter() - start, time.process_time() - cpu_start, loss, flush=True)


# Both return, by name, rows [rounds, 3]: seconds, seconds of CPU of all threads, and the loss.


def measure_epochs(names, folder, rounds):
    """Times a first epoch and so many later ones, each contender in a process that stays."""
    workers = {}
    for name in names:
        workers[name] = _start(name, folder)
        # One at a time, so that none imports or builds its model while another is timed.
        _answer(name, workers[name], folder)
    rows = {name: [] for name in names}
    for _ in range(1 + rounds):
        for name, worker in workers.items():
            print("epoch", file=worker.stdin, flush=True)
            rows[name].append([float(word) for word in _answer(name, worker, folder)])
    for worker in workers.values():
        worker.communicate()
    return {name: np.array(values) for name, values in rows.items()}


def measure_processes(names, folder, rounds):
    """Times whole processes."""
    rows = {name: [] for name in names}
    for _ in range(rounds):
        for name in names:
            start = time.perf_counter()
            worker = _start(name, folder, "--epochs", str(EPOCHS))
            cpu, loss = map(float, _answer(name, worker, folder))
            worker.communicate()
            rows[name].append([time.perf_counter() - start, cpu, loss])
    return {name: np.array(values) for name, values in rows.items()}


def _start(name, folder, *options):
    ways = {"one core": {"NPROC": "1"}, "on devices": {"JAX_NUM_CPU_DEVICES": "2"}}
    way = next((way for end, way in ways.items() if name.endswith(end)), {})
    with (folder / f"{name}.errors").open("w") as errors:  # kept from the tables, for they are many
        return subprocess.Popen(
            [sys.executable, __file__, "--worker", name, "--folder", str(folder), *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=os.environ | way,
        )


def _answer(name, worker, folder):
    words = worker.stdout.readline().split()
    if not words:
        raise SystemExit(f"{(folder / f'{name}.errors').read_text()}\n{name} failed")
    return words


def print_table(title, rows, *, epochs):
    """Prints median and spread of each contender, and its ratios to dogwood_jax."""
    print(f"\n{title}\n")
    print(
        "| | median s | least to most s | times dogwood_jax | CPU s | times dogwood_jax | GFLOP/s "
        "| loss |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for name, values in rows.items():
        seconds, cpu, loss = values.T
        gflop = GFLOP * epochs * (MODELS if "eight models" in name else 1)
        # Of each round, then the median: what disturbs a whole round cancels.
        ratio, cpu_ratio, _ = np.median(values / rows["dogwood_jax"], 0)
        print(
            f"| {name} | {np.median(seconds):.3f} | {min(seconds):.3f} to {max(seconds):.3f} "
            f"| {ratio:.2f} | {np.median(cpu):.3f} | {cpu_ratio:.2f} "
            f"| {gflop / np.median(seconds):.0f} | {loss[-1]:.3f} |"
        )


def _digits(source):
    from dogwood_jax import mnist

    digits = mnist.load(source)
    images, labels = digits.train_images, digits.train_labels
    repeats = 60_000 // len(images)
    return np.tile(images, (repeats, 1, 1)), np.tile(labels, repeats)


def _versions():
    names = ("jax", "flax", "optax", "keras", "torch", "tensorflow-cpu", "tensorflow", "tf_keras")
    for name in names:
        try:
            yield f"{name} {importlib.metadata.version(name)}"
        except importlib.metadata.PackageNotFoundError:
            pass


def main():
    """Runs both parts and prints their tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data",
        choices=["subset", "tfds"],
        default="subset",
        help="all of MNIST, or the shipped digits six times over (as many images: as fast)",
    )
    parser.add_argument("--rounds", type=int, default=10, help="epochs timed of each contender")
    parser.add_argument("--processes", type=int, default=5, help="processes timed of each")
    parser.add_argument(
        "--only", nargs="+", choices=CONTENDERS, help="contenders beside dogwood_jax"
    )
    parser.add_argument("--worker", choices=CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--epochs", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(arguments.worker, arguments.folder, arguments.epochs)
        return

    names = [
        name
        for name, (_, packages, _) in CONTENDERS.items()
        if all(importlib.util.find_spec(package) for package in packages)
        if not arguments.only or name in ("dogwood_jax", *arguments.only)
    ]
    print(f"Python {platform.python_version()}, {', '.join(_versions())}; {os.cpu_count()} cores")
    print(f"60,000 images from {arguments.data}; left out: {set(CONTENDERS) - set(names)}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part, array in zip(("images", "labels"), _digits(arguments.data)):
            np.save(folder / f"{part}.npy", array)
        if arguments.rounds:
            rows = measure_epochs(names, folder, arguments.rounds)
            first = {name: values[:1] for name, values in rows.items()}
            later = {name: values[1:] for name, values in rows.items()}
            print_table("The first epoch, compiling included", first, epochs=1)
            print_table(f"One epoch after that, {arguments.rounds} rounds", later, epochs=1)
        if arguments.processes:
            names = [name for name in names if CONTENDERS[name][2]]
            title = f"A whole process with {EPOCHS} epochs, {arguments.processes} rounds"
            print_table(title, measure_processes(names, folder, arguments.processes), epochs=EPOCHS)


if __name__ == "__main__":
    main()
