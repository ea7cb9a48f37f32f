"""What arrays of Keras are in Flax, and which sizes they tell, as many layers have it.

Keras and ``flax.linen`` differ in names (gamma, scale), in where statistics are kept (the
collection ``batch_stats``), and in how some arrays are laid out: Keras has the gates of a recurrent
layer side by side in one kernel, and the kernel of a transposed convolution is that of the
convolution which it transposes. Each layer's layout is a list of ``Weight``, in the order in which
Keras lists and stores them. Every change is a renaming, split, transposition or reshape: nothing is
lost, nothing is copied, and moments of optimizers convert as weights do.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from dogwood_jax.keras_h5._kinds.kind import Config, Params, Path, Weight


def path(place: str) -> Path:
    return tuple(place.split("/"))


def plain(name: str, place: str, *, trainable: bool = True) -> Weight:
    """An array that is the same in Flax."""
    return Weight(name, (path(place),), trainable=trainable)


def split(name: str, *places: str) -> Weight:
    """An array whose last axis holds several one after another."""
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
    """The axes of arrays, whatever the config."""
    return lambda config: axes


def is_kernel_and_bias(shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether arrays that have numbers in place of names can be nothing else."""
    if shapes.keys() != {"0", "1"}:
        return False
    kernel, bias = shapes["0"], shapes["1"]
    return len(kernel) > 1 and bias == kernel[-1:]


def last_axis(key: str, *path: str) -> Callable[[Config, Params], dict[str, Any]]:
    """The size under a key of the config is that of the last axis of an array."""

    def sizes(config: Config, params: Params) -> dict[str, Any]:
        for name in path:
            params = params[name]
        return {key: params.shape[-1]}  # type: ignore[attr-defined]

    return sizes


def channels_of_kernel(config: Config, params: Params) -> int | None:
    """The channels that are read, if not in groups, whose number no array has."""
    return int(params["kernel"].shape[-2]) if config.get("groups", 1) == 1 else None
