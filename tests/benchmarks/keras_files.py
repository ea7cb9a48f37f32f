"""Time and memory of loading 400 MB of weights, beside h5py, tf_keras and Keras 3.

    python tests/benchmarks/keras_files.py [megabytes] [rounds]

Each load is a process of its own, in turn within a round. The time is that of the load alone, after
imports and, for Keras, after the model was made; the memory is how much the process's peak grew.
Those of Keras that are not installed are left out.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LAYERS = 6


def main(megabytes, rounds):
    with tempfile.TemporaryDirectory() as folder:
        for kind in ("h5", "weights.h5", "keras"):
            _report(kind, Path(folder, f"model.{kind}"), megabytes, rounds)


def _report(kind, path, megabytes, rounds):
    _run("make", path, megabytes)
    os.sync()  # or the file is written while others read it
    size = path.stat().st_size / 2**20
    peers = {"h5": ["tf_keras"], "weights.h5": ["keras"], "keras": []}[kind]
    results = {name: [] for name in ("h5py", "dogwood_jax", *peers)}
    for _ in range(rounds):
        for name, found in results.items():
            if (result := _run(name, path, megabytes)) is not None:
                found.append(result)
    path.unlink()
    base = statistics.median(seconds for seconds, _ in results["h5py"])
    print(f"{path.name}, {size:.0f} MiB")
    for name, found in results.items():
        if not found:
            continue
        seconds = [s for s, _ in found]
        memory = statistics.median(m for _, m in found)
        print(
            f"  {name:12} median {statistics.median(seconds):.3f} s "
            f"({min(seconds):.3f} to {max(seconds):.3f}), {statistics.median(seconds) / base:.2f} "
            f"times h5py; peak memory {memory:.0f} MiB, {memory / size:.2f} times the file"
        )


def _run(name, path, megabytes):
    """Runs one load in a process of its own."""
    command = [sys.executable, __file__, "--one", name, str(path), str(megabytes)]
    environment = {**os.environ, "KERAS_BACKEND": "jax", "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        if "ModuleNotFoundError" in done.stderr:
            return None
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout.splitlines()[-1]) if name != "make" else None


def one(name, path, megabytes):
    """Makes the file, or loads it and prints time and memory."""
    shapes = _shapes(megabytes)
    if name == "make":
        return _make(path, shapes)
    load = {"h5py": _h5py, "dogwood_jax": _dogwood}.get(name)
    if load is None:
        load = _keras(name, shapes)
    else:
        load = load()
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak of the imports (Linux)
    before = resident()
    start = time.perf_counter()
    result = load(path)
    seconds = time.perf_counter() - start
    print(json.dumps([seconds, (resident("VmHWM") - before) / 1024]))
    return result


def resident(line="VmRSS"):
    """Returns the memory that this process has, or its peak (VmHWM), in KiB."""
    status = dict(row.split(":", 1) for row in Path("/proc/self/status").read_text().splitlines())
    return int(status[line].split()[0])


def _shapes(megabytes):
    """Kernels of a chain of Dense layers that hold so many bytes."""
    units = int((megabytes * 2**20 / 4 / LAYERS) ** 0.5)
    return [(units, units)] * LAYERS


def _make(path, shapes):
    import zipfile

    import numpy as np

    from dogwood_jax import keras_h5

    rng = np.random.default_rng(0)
    params = {
        f"dense_{i}" if i else "dense": {
            "kernel": rng.normal(size=shape).astype("f"),
            "bias": np.zeros(shape[1], "f"),
        }
        for i, shape in enumerate(shapes)
    }
    if not path.endswith(".keras"):
        keras_h5.save(path, params)
        return
    layers = [
        {"class_name": "Dense", "config": {"name": name, "units": len(layer["bias"])}}
        for name, layer in params.items()
    ]
    config = {"class_name": "Sequential", "config": {"name": "model", "layers": layers}}
    keras_h5.save(f"{path}.weights.h5", params)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("metadata.json", json.dumps({"keras_version": "3.15.0"}))
        archive.writestr("config.json", json.dumps(config))
        archive.write(f"{path}.weights.h5", "model.weights.h5")
    os.remove(f"{path}.weights.h5")


def _h5py():
    import zipfile

    import h5py
    import numpy as np

    def load(path):
        stream = None
        if path.endswith(".keras"):
            stream = zipfile.ZipFile(path).open("model.weights.h5")
        arrays = {}
        with h5py.File(stream or path, "r") as file:
            file.visititems(
                lambda name, item: (
                    arrays.update({name: np.asarray(item[()])})
                    if isinstance(item, h5py.Dataset)
                    else None
                )
            )
        return arrays

    return load


def _dogwood():
    from dogwood_jax import keras_h5

    return keras_h5.load


def _keras(name, shapes):
    import importlib

    keras = importlib.import_module(name)
    model = keras.Sequential()
    model.add(keras.layers.InputLayer((shapes[0][0],)))
    for _, units in shapes:
        model.add(keras.layers.Dense(units))
    model.build((None, shapes[0][0]))
    return model.load_weights


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        one(sys.argv[2], sys.argv[3], float(sys.argv[4]))
    else:
        arguments = [float(a) for a in sys.argv[1:]] + [400, 5][len(sys.argv) - 1 :]
        main(arguments[0], int(arguments[1]))
