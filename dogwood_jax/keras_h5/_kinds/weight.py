"""Conversions between arrays of Keras and of Flax that many layers share, and sizes of arrays.

Keras and ``flax.linen`` differ in names (gamma, scale), in where they keep statistics (the
collection ``batch_stats``), and in the layout of some arrays: Keras has the gates of a recurrent
layer side by side in one kernel, and stores a transposed convolution with the kernel of the
convolution that it transposes. Each layer's layout is a list of ``Weight``, in the order in which
Keras lists and stores them. Every change is a renaming, split, transposition or reshape: nothing is
lost, nothing is copied, and moments of optimizers convert in the same way as weights.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from dogwood_jax.keras_h5._kinds.kind import Config, Params, Path, Weight


def path(place: str) -> Path:
    return tuple(place.split("/"))


def plain(name: str, place: str, *, trainable: bool = True) -> Weight:
    """Returns a weight that is the same array in Flax."""
    return Weight(name, (path(place),), trainable=trainable)


def split(name: str, *places: str) -> Weight:
    """Returns a weight whose last axis is a concatenation of several Flax arrays."""
    return Weight(
        name,
        tuple(map(path, places)),
        lambda array: np.split(array, len(places), axis=-1),
        lambda arrays: np.concatenate(arrays, axis=-1),
    )


def bias(config: Config, place: str = "params/bias") -> list[Weight]:
    return [plain("bias", place)] if config.get("use_bias", True) else []


def kernel_and_bias(config: Config) -> list[Weight]:
    return [plain("kernel", "params/kernel"), *bias(config)]


def fixed(axes: Mapping[str, str]) -> Callable[[Config], Mapping[str, str]]:
    """Returns a function that returns these axes for every config."""
    return lambda config: axes


def is_kernel_and_bias(shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Checks whether arrays with numbers as names can only be a kernel and a bias."""
    if shapes.keys() != {"0", "1"}:
        return False
    kernel, bias = shapes["0"], shapes["1"]
    return len(kernel) > 1 and bias == kernel[-1:]


def last_axis(key: str, *path: str) -> Callable[[Config, Params], dict[str, Any]]:
    """Returns a function that sets a key of the config to the last size of the array at a path."""

    def sizes(config: Config, params: Params) -> dict[str, Any]:
        for name in path:
            params = params[name]
        return {key: params.shape[-1]}  # type: ignore[attr-defined]

    return sizes


def channels_of_kernel(config: Config, params: Params) -> int | None:
    """Returns the channels that a kernel reads; ``None`` with groups, because no array has them."""
    return int(params["kernel"].shape[-2]) if config.get("groups", 1) == 1 else None
