"""Layers that look up text and categories in a vocabulary, or hash them.

They are not computed here. A model that begins with such layers takes their outputs as inputs.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dogwood_jax.keras_h5._kinds.kind import KINDS, Config, Function, Kind, Shape


def _given(config: Config) -> Function:
    def given(x: Any) -> Any:
        if not isinstance(x, jax.Array) and np.asarray(x).dtype.kind not in "biuf":
            name = config.get("name", "a vocabulary layer")
            raise ValueError(
                f"expected the numbers that {name} returns in Keras, because that layer is left "
                "out here; got text; pass the layer's output for it"
            )
        return jnp.asarray(x)

    return given


def _like_input(config: Config, shape: Shape) -> tuple[Any, ...] | None:
    return tuple(shape) if config.get("output_mode", "int") == "int" else None


def _tokens(config: Config, shape: Shape) -> tuple[Any, ...] | None:
    known = config.get("output_mode", "int") == "int" and not config.get("ragged")
    return (shape[0], config.get("output_sequence_length")) if known else None


for _class in ("StringLookup", "IntegerLookup", "Hashing"):
    KINDS[_class] = Kind(function=_given, looked_up=_like_input)
KINDS["TextVectorization"] = Kind(function=_given, looked_up=_tokens)
