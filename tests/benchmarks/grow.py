"""How long growing takes beside a plain copy of the result, and beside Keras.

A trained 784-4096-4096-10 perceptron is grown to 8192 units a layer until it is ready for the next
step of training. Each round times all ways in turn, so that the ratios hold on a noisy machine;
"compiled" ones have run before. Without tf_keras, its two ways are left out: building the larger
model and setting its weights, and writing larger arrays and sizes into the model's ``.h5`` file and
loading it.

    pip install -e . tf_keras tensorflow-cpu
    python tests/benchmarks/grow.py [--rounds 11]
"""

import argparse
import contextlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import jax
import jax.numpy as jnp
import numpy as np

import dogwood_jax as dw

ORDER = ("dense_1", "dense_2", "dense_3")
OLD, NEW = (784, 4096, 4096, 10), (784, 8192, 8192, 10)
ARRAYS = "kernel", "bias"  # of a layer, in Keras's order
Params = dict[str, dict[str, jax.Array]]
Case = Callable[[Params], Any]  # takes a fresh set of the larger arrays


def perceptron(key: jax.Array, sizes: tuple[int, ...]) -> Params:
    keys = jax.random.split(key, len(ORDER))
    return {
        name: {"kernel": jax.random.normal(k, shape), "bias": jnp.zeros(shape[1])}
        for name, k, shape in zip(ORDER, keys, zip(sizes, sizes[1:], strict=False), strict=True)
    }


def apply(params: Params, x: jax.Array) -> jax.Array:
    for name in ORDER:
        x = x @ params[name]["kernel"] + params[name]["bias"]
        x = x if name == ORDER[-1] else jax.nn.relu(x)
    return x


@jax.jit
def by_hand(old: Params, key: jax.Array) -> Params:
    """What one would write for this network: new units drawn, read with zero weights."""
    grown = {}
    for name, k, n_in, n_out in zip(ORDER, jax.random.split(key, 3), NEW, NEW[1:]):
        kernel, bias = old[name]["kernel"], old[name]["bias"]
        rows, columns = n_in - kernel.shape[0], n_out - kernel.shape[1]
        kernel = jnp.pad(kernel, ((0, rows), (0, 0)))
        if columns:
            limit = (6 / (n_in + n_out)) ** 0.5
            drawn = jax.random.uniform(k, (n_in, columns), minval=-limit, maxval=limit)
            kernel = jnp.concatenate([kernel, drawn], axis=1)
        grown[name] = {"kernel": kernel, "bias": jnp.pad(bias, (0, columns))}
    return grown


copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))


def jax_cases(old: Params) -> dict[str, Case]:
    """Each way to grow in JAX, by what it is called in the table."""
    key = jax.random.key(2)
    widths = dw.trace(apply, old, jax.ShapeDtypeStruct((32, 784), jnp.float32))

    def plan(strategy: dw.strategies.Start) -> dw.Growth:
        return dw.plan(widths, {"dense_1": 8192, "dense_2": 8192}, strategy=strategy)

    random = plan(dw.strategies.zero_outgoing())
    zeros, replicate = plan(dw.strategies.zeros()), plan(dw.strategies.replicate())
    donating = jax.jit(
        lambda old, fresh: dw.grow(old, random, fresh=fresh), donate_argnames="fresh"
    )
    return {
        "copy of the result": copy,
        "written by hand, jax.random": lambda fresh: by_hand(old, key),
        "grow, random numbers included": lambda fresh: dw.grow(old, random, key=key),
        "grow, zeros": lambda fresh: dw.grow(old, zeros),
        "grow, replicate": lambda fresh: dw.grow(old, replicate),
        "grow, fresh given": lambda fresh: dw.grow(old, random, fresh=fresh),
        "grow, fresh given and donated": lambda fresh: donating(old, fresh),
    }


def from_the_start(old: Params) -> Params:
    """Traces, plans, compiles and grows."""
    jax.clear_caches()
    widths = dw.trace(apply, old, jax.ShapeDtypeStruct((32, 784), jnp.float32))
    growth = dw.plan(widths, {"dense_1": 8192, "dense_2": 8192})
    return dw.grow(old, growth, key=jax.random.key(2))


def keras_cases(old: Params, folder: Path) -> dict[str, Case]:
    """What a Keras user would write, with weights of new units from the larger model's own init."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tf_keras

    def build(sizes: tuple[int, ...]) -> Any:
        layers = [
            tf_keras.layers.Dense(size, activation=None if name == ORDER[-1] else "relu", name=name)
            for name, size in zip(ORDER, sizes[1:], strict=True)
        ]
        return tf_keras.Sequential([tf_keras.layers.Input(sizes[:1]), *layers])

    def write_into(fresh: list[np.ndarray], values: list[np.ndarray]) -> list[np.ndarray]:
        for new, value in zip(fresh, values, strict=True):
            if new.ndim > 1:
                new[value.shape[0] :, : value.shape[1]] = 0
            new[tuple(map(slice, value.shape))] = value
        return fresh

    small = build(OLD)
    small.set_weights([np.asarray(old[name][array]) for name in ORDER for array in ARRAYS])
    small.save(folder / "old.h5")

    def build_and_set(fresh: Any = None) -> Any:
        wide = build(NEW)
        wide.set_weights(write_into(wide.get_weights(), small.get_weights()))
        return wide

    def edit_and_load(fresh: Any = None) -> Any:
        with h5py.File(folder / "old.h5") as source, h5py.File(folder / "new.h5", "w") as file:
            config = json.loads(source.attrs["model_config"])
            for layer in config["config"]["layers"]:
                if layer["config"]["name"] in ORDER[:-1]:
                    layer["config"]["units"] = 8192
            file.attrs.update(source.attrs)
            file.attrs["model_config"] = json.dumps(config)
            source.copy("model_weights", file)
            rng = np.random.default_rng(0)
            for name, shape in zip(ORDER, zip(NEW, NEW[1:], strict=False), strict=True):
                group = file[f"model_weights/{name}/{name}"]
                limit = (6 / sum(shape)) ** 0.5
                kernel = rng.random(shape, np.float32) * (2 * limit) - np.float32(limit)
                fresh = [kernel, np.zeros(shape[1], np.float32)]
                arrays = write_into(fresh, [group[f"{array}:0"][()] for array in ARRAYS])
                for array, value in zip(ARRAYS, arrays, strict=True):
                    del group[f"{array}:0"]
                    group[f"{array}:0"] = value
        return tf_keras.models.load_model(folder / "new.h5", compile=False)

    expected = np.asarray(apply(old, jnp.ones((2, 784))))
    for wide in build_and_set(), edit_and_load():
        np.testing.assert_allclose(wide(np.ones((2, 784))), expected, rtol=1e-3)
    return {
        "tf_keras, build and set weights": build_and_set,
        "tf_keras, edit the .h5 and load it": edit_and_load,
    }


def timed(case: Case, new: Params) -> float:
    fresh = jax.block_until_ready(copy(new))
    start = time.perf_counter()
    result = case(fresh)
    if isinstance(result, dict):  # Keras's models are ready
        jax.block_until_ready(result)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=11)
    rounds = parser.parse_args().rounds

    old, new = (perceptron(jax.random.key(0), sizes) for sizes in (OLD, NEW))
    versions = ["jax"]
    with contextlib.ExitStack() as stack:
        cases = jax_cases(old)
        if importlib.util.find_spec("tf_keras"):
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            cases |= keras_cases(old, Path(folder))
            versions.append("tf_keras")
        last = "trace, plan, compile and grow"
        seconds: dict[str, list[float]] = {name: [] for name in [*cases, last]}
        for _ in range(rounds):
            for case in cases.values():
                timed(case, new)  # compiles again what the last one has cleared
            for name, case in cases.items():
                seconds[name].append(timed(case, new))
            seconds[last].append(timed(lambda fresh: from_the_start(old), new))

    packages = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in versions)
    print(f"{jax.devices()[0].device_kind}, {os.cpu_count()} cores, Python "
          f"{platform.python_version()}, {packages}; {rounds} interleaved rounds")  # fmt: skip
    print(f"{'':36}{'median s':>10}{'min':>8}{'max':>8}{'ratio':>8}")
    peer = seconds["copy of the result"]
    for name, times in seconds.items():
        ratio = statistics.median(t / p for t, p in zip(times, peer, strict=True))
        print(
            f"{name:36}{statistics.median(times):10.4f}{min(times):8.4f}{max(times):8.4f}"
            f"{ratio:8.2f}"
        )


if __name__ == "__main__":
    main()
