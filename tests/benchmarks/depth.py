"""How the time of tracing and planning grows with the number of layers.

A GPT-2 of the largest size (1600 wide, 25 heads, 1024 tokens, 50257 words) with 1 to 96 layers.
All from shapes alone: no array is allocated. Each round takes all depths in turn. The last line is
the most memory that the process ever held, JAX and all programs included. The part ``large`` of
``state.py`` times Llama-3 405B and DeepSeek-V3 671B.

    python tests/benchmarks/depth.py [--rounds 3] [--layers 1 6 12 24 48 96]
"""

import argparse
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

import dogwood_jax as dw


class Block(nn.Module):
    heads: int

    @nn.compact
    def __call__(self, x: Any) -> Any:
        mask = nn.make_causal_mask(x[..., 0])
        x = x + nn.MultiHeadDotProductAttention(self.heads)(nn.LayerNorm()(x), mask=mask)
        hidden = nn.gelu(nn.Dense(4 * x.shape[-1])(nn.LayerNorm()(x)))
        return x + nn.Dense(x.shape[-1])(hidden)


class Gpt(nn.Module):
    layers: int
    width: int = 1600

    @nn.compact
    def __call__(self, tokens: Any) -> Any:
        embed = nn.Embed(50257, self.width)
        x = embed(tokens) + nn.Embed(1024, self.width)(jnp.arange(tokens.shape[-1]))
        for _ in range(self.layers):
            x = Block(25)(x)
        return embed.attend(nn.LayerNorm()(x))


def measure(layers: int) -> dict[str, float]:
    """Returns the seconds that each step takes."""
    model, tokens = Gpt(layers), jax.ShapeDtypeStruct((1, 1024), jnp.int32)
    key = jax.ShapeDtypeStruct((), jax.eval_shape(lambda: jax.random.key(0)).dtype)
    variables = jax.eval_shape(model.init, key, tokens)
    tx = optax.adamw(1e-3)
    opt_state = jax.eval_shape(tx.init, variables)
    seconds: dict[str, float] = {}

    def timed(what: str, function: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = function()
        seconds[what] = time.perf_counter() - start
        return result

    jax.clear_caches()
    timed("make_jaxpr", lambda: jax.make_jaxpr(model.apply)(variables, tokens))
    jax.clear_caches()
    widths = timed("trace", lambda: dw.trace(model.apply, variables, tokens))
    sizes = {
        name: width.size + width.size // 2
        for name, width in widths.items()
        if width.status == "growable"
    }
    growth = timed("plan, by sizes", lambda: dw.plan(widths, sizes))
    target = jax.tree.map(
        jax.ShapeDtypeStruct,
        jax.tree.unflatten(jax.tree.structure(variables), _shapes(growth, variables)),
        jax.tree.map(lambda leaf: leaf.dtype, variables),
        is_leaf=lambda node: isinstance(node, tuple),
    )
    assert timed("plan, by target", lambda: dw.plan(widths, target=target)).sizes == sizes
    timed("print", lambda: f"{widths}{growth}")
    timed("hash", lambda: hash(growth))
    text = timed("to_json", lambda: dw.to_json(growth))
    timed("from_json", lambda: dw.from_json(text))
    abstract = lambda tree: dw.grow_opt_state(tree, growth, tx)  # noqa: E731
    timed("grow_opt_state, abstract", lambda: jax.eval_shape(abstract, opt_state))
    return seconds


def _shapes(growth: dw.Growth, variables: Any) -> list[tuple[int, ...]]:
    paths = jax.tree_util.tree_leaves_with_path(variables)
    names = [jax.tree_util.keystr(keys, simple=True, separator="/") for keys, _ in paths]
    return [growth.shapes[name] for name in names]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--layers", type=int, nargs="+", default=[1, 6, 12, 24, 48, 96])
    options = parser.parse_args()

    measure(1)  # imports what is imported late
    rounds = [{n: measure(n) for n in options.layers} for _ in range(options.rounds)]
    assert not jax.live_arrays(), "an array was allocated"

    def cell(values: list[float]) -> str:
        return f"{statistics.median(values):.3f} ({min(values):.3f}-{max(values):.3f})"

    print(f"{jax.devices()[0].device_kind}, {os.cpu_count()} cores, Python "
          f"{platform.python_version()}, jax {jax.__version__}, flax {flax.__version__}; "
          f"{options.rounds} interleaved rounds; seconds: median (min-max)")  # fmt: skip
    print(f"{'layers':26}" + "".join(f"{n:>22}" for n in options.layers))
    for what in rounds[0][options.layers[0]]:
        cells = [cell([r[n][what] for r in rounds]) for n in options.layers]
        print(f"{what:26}" + "".join(f"{c:>22}" for c in cells))
    beyond = [cell([r[n]["trace"] - r[n]["make_jaxpr"] for r in rounds]) for n in options.layers]
    print(f"{'trace beyond make_jaxpr':26}" + "".join(f"{c:>22}" for c in beyond))
    for a, b in zip(options.layers, options.layers[1:], strict=False):
        ratio = statistics.median(r[b]["trace"] / r[a]["trace"] for r in rounds)
        print(f"trace, {a} to {b} layers: {ratio:.2f} times")
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"the process held {most:.2f} GiB at most")


if __name__ == "__main__":
    main()
