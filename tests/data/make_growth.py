"""Makes ``growth.json``: a growth of this version, for later ones to read.

python tests/data/make_growth.py
"""

from pathlib import Path

import jax
import jax.numpy as jnp

import dogwood_jax as dw

FILE = Path(__file__).parent / "growth.json"
TOKENS = jax.ShapeDtypeStruct((2, 3), jnp.int32)


def apply(params, tokens):
    """A language model of residual layers over which a loop runs, and a norm."""

    def layer(x, weights):
        return x + jnp.tanh(x @ weights["up"]) @ weights["down"], None

    x, _ = jax.lax.scan(layer, params["embed"][tokens], params["layers"])
    x = x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True))
    return x * params["norm"].reshape(1, 1, -1) @ params["head"]


def shapes(layers, stream, hidden):
    """Returns shapes of the variables."""
    sizes = {
        "embed": (7, stream),
        "layers": {"up": (layers, stream, hidden), "down": (layers, hidden, stream)},
        "norm": (stream,),
        "head": (stream, 7),
    }
    return jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32),
        sizes,
        is_leaf=lambda node: isinstance(node, tuple),
    )


def growth():
    """Returns a growth by new layers, new units and factors."""
    widths = dw.trace(apply, shapes(2, 4, 6), TOKENS)
    return dw.plan(widths, target=shapes(3, 8, 9), target_apply=apply)


if __name__ == "__main__":
    FILE.write_text(dw.to_json(growth()))
