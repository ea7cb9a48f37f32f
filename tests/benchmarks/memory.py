"""How much memory growing a transformer takes beside its own bytes, old and new.

Each way of growing runs in a process of its own, on the accelerator if there is one. The peak is
what its allocator reports; on a CPU, the most that the process ever held, less what it held before
there was any array.

    python tests/benchmarks/memory.py [--depth 8] [--width 1024] [--ways key fresh donate state]

At 40 layers of 1600 units the old and the new weights take 14 GiB; the optimizer's state is twice
as large.
"""

import argparse
import json
import subprocess
import sys
from functools import partial
from math import prod
from pathlib import Path

import jax
import jax.numpy as jnp
import optax

import dogwood_jax as dw

sys.path.append(str(Path(__file__).parents[1]))
import transformer

# What may be in memory at once, of: old arrays, new arrays, the largest old array.
WAYS = {
    "key": ("grow(key=...)", (1, 1, 0)),
    "fresh": ("grow(fresh=...), donated to jit", (1, 1, 0)),
    "donate": ("grow(key=..., donate=True)", (0, 1, 1)),
    "state": ("grow_opt_state(donate=True), Adam", (0, 1, 1)),
}


def work(way, depth, width):
    """Grows a transformer in one way; prints bytes: old, new, largest old array, peak."""
    small, large = (
        transformer.shapes(depth, width, heads, 4 * 64 * heads, vocabulary=16_384)
        for heads in (width // 64, width // 32)
    )
    growth = dw.plan(dw.trace(transformer.apply, small, transformer.TOKENS), target=large)
    key = jax.random.key(0)
    jax.block_until_ready(key)
    before = held("VmRSS")
    if way == "state":
        tx = optax.adam(1e-3)
        small, large = (jax.eval_shape(tx.init, shapes) for shapes in (small, large))
    old = ones(small)
    if way == "state":
        wide = dw.grow_opt_state(old, growth, tx, donate=True)
    elif way == "fresh":
        # Arrays of which nothing is taken are kept, too, to have their results written into them.
        grow = jax.jit(partial(dw.grow, growth=growth), donate_argnames="fresh", keep_unused=True)
        wide = grow(old, fresh=ones(large))
    else:
        wide = dw.grow(old, growth, key=key, donate=way == "donate")
    jax.block_until_ready(wide)
    stats = jax.devices()[0].memory_stats()
    peak = stats["peak_bytes_in_use"] if stats else held("VmHWM") - before
    sizes = [[4 * prod(leaf.shape) for leaf in jax.tree.leaves(tree)] for tree in (small, large)]
    print(json.dumps([sum(sizes[0]), sum(sizes[1]), max(sizes[0]), peak]))


def ones(shapes):
    """Returns arrays of ones, each made where it stays."""
    return jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), shapes)


def held(what):
    """Returns the bytes that the process holds (VmRSS) or ever held (VmHWM)."""
    (line,) = [line for line in Path("/proc/self/status").open() if line.startswith(what)]
    return int(line.split()[1]) * 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--depth", type=int, default=8)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=[*WAYS])
    parser.add_argument("--worker", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        return work(options.worker, options.depth, options.width)
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}, MiB")
    print(f"{'':34}{'old':>8}{'new':>8}{'largest':>9}{'peak':>8}{'allowed':>9}{'ratio':>7}")
    for way in options.ways:
        name, parts = WAYS[way]
        run = subprocess.run(
            [sys.executable, __file__, *sys.argv[1:], "--worker", way],
            stdout=subprocess.PIPE,
            check=True,
        )
        *sizes, peak = json.loads(run.stdout)
        allowed = sum(n * size for n, size in zip(parts, sizes, strict=True))
        figures = (*sizes, peak, allowed)
        columns = zip(figures, (8, 8, 9, 8, 9), strict=True)
        row = "".join(f"{figure / 2**20:{width}.0f}" for figure, width in columns)
        print(f"{name:34}{row}{peak / allowed:7.3f}", flush=True)


if __name__ == "__main__":
    main()
