"""How fast a checkpoint grows on disk, against copying the larger one, and in how much memory.

A decoder is saved as safetensors or by Orbax (with Adam's state, if that is asked for), then grown
in a process of its own: as wide again in its stream, its heads and its MLP. Growing and copying
take turns, because the disk and the machine are shared. Both are asked for bytes written a second,
until they are on the disk. Of copying, it is also said when the file is in the system's memory,
which is where a copy is left by default.

    python tests/benchmarks/checkpoint.py [--gib 4] [--dtype float32] [--runs 3] [--folder DIR]
        [--form safetensors|orbax|adam]
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import dogwood_jax as dw
from dogwood_jax.checkpoint.tensors import Tensor, header_for

sys.path.append(str(Path(__file__).parents[1]))
import transformer

_GROW = """
import json, re, sys, time
import jax
import dogwood_jax as dw

source, growth, out, form = sys.argv[1:]
growth = dw.from_json(open(growth).read())
tx = None
if form == "adam":
    import optax
    tx = dw.growable(optax.adam(1e-3))
start = time.perf_counter()
dw.checkpoint.grow(source, growth, out, key=jax.random.key(0), tx=tx)
seconds = time.perf_counter() - start
# The peak of this program: what getrusage says is also that of the one that began it.
peak = re.search(r"VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read())
print(json.dumps([seconds, int(peak[1]) * 1024]))
"""


def save(shapes, path):
    """Writes random weights of these shapes, tensor by tensor."""
    leaves = jax.tree_util.tree_leaves_with_path(shapes)
    names = [jax.tree_util.keystr(keys, simple=True, separator=".") for keys, _ in leaves]
    tensors = [Tensor(n, str(a.dtype), a.shape, "") for n, (_, a) in zip(names, leaves)]
    text, placed = header_for(tensors, {})
    rng = np.random.default_rng(0)
    with open(path, "wb") as stream:
        stream.write(text)
        for tensor in placed:
            weights = rng.standard_normal(tensor.shape, np.float32) / 32
            stream.write(weights.astype(tensor.dtype).tobytes())


def save_by_orbax(shapes, path, form):
    """Writes random weights of these shapes by Orbax, with moments that are random, too."""
    import optax
    import orbax.checkpoint as ocp

    rng = np.random.default_rng(0)

    def weights(leaf):
        if not leaf.ndim:
            return jnp.ones(leaf.shape, leaf.dtype)
        return jnp.asarray(np.abs(rng.standard_normal(leaf.shape, np.float32)) / 32, leaf.dtype)

    tree = {"params": shapes}
    if form == "adam":
        tree["opt_state"] = jax.eval_shape(optax.adam(1e-3).init, shapes)
    with ocp.StandardCheckpointer() as saver:
        saver.save(path, jax.tree.map(weights, tree))


def bytes_in(path):
    """Returns how many bytes a file has, or all files in a folder."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)


def remove(path):
    """Removes a file or a folder."""
    path.unlink() if path.is_file() else shutil.rmtree(path)


def main(gib, dtype, runs, folder, form):
    """Prints the ratio of speeds, and the peak memory beside the largest array."""
    heads = 16

    def shapes(layers, heads):
        tree = transformer.shapes(layers, 64 * heads, heads, 256 * heads, vocabulary=32_768)
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), tree)

    def size(tree):
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))

    layer = size(shapes(2, 2 * heads)) - size(shapes(1, 2 * heads))
    layers = max(1, round(gib * 2**30 / layer / (3 if form == "adam" else 1)))
    small, large = shapes(layers, heads), shapes(layers, 2 * heads)
    growth = dw.plan(dw.trace(transformer.apply, small, transformer.TOKENS), target=large)
    source, wide, copied = (Path(folder, name) for name in ("small", "wide", "copied"))
    save(small, source) if form == "safetensors" else save_by_orbax(small, source, form)
    Path(folder, "growth.json").write_text(dw.to_json(growth))
    ratios, cached, peaks = [], [], []
    for run in range(runs + 1):
        command = [sys.executable, "-c", _GROW, source, Path(folder, "growth.json"), wide, form]
        seconds, peak = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
        written = bytes_in(wide)
        start = time.perf_counter()
        shutil.copyfile(wide, copied) if wide.is_file() else shutil.copytree(wide, copied)
        caching = time.perf_counter() - start
        os.sync()
        copying = time.perf_counter() - start
        remove(copied)
        remove(wide)
        os.sync()
        if run:  # the first fills the caches
            ratios.append(copying / seconds)
            cached.append(caching / seconds)
            peaks.append(peak)
        print(
            f"{written / 2**30:.2f} GiB: grown in {seconds:.1f} s, copied in {copying:.1f} s "
            f"({caching:.1f} s without waiting for the disk), peak {peak / 2**20:.0f} MiB",
            flush=True,
        )
    largest = max(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(large))
    print(
        f"{layers} layers, {form}, {dtype.name}: {statistics.median(ratios):.2f} times the speed "
        f"of copying ({statistics.median(cached):.2f} without waiting); peak memory: "
        f"the largest array ({largest / 2**20:.0f} MiB) + {(max(peaks) - largest) / 2**20:.0f} MiB"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gib", type=float, default=4)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--form", choices=["safetensors", "orbax", "adam"], default="safetensors")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--folder", help="where the files go; a temporary folder by default")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as place:
        main(options.gib, jnp.dtype(options.dtype), options.runs, place, options.form)
