"""Layers that change the shape of arrays."""

import math
import operator
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from dogwood_jax.keras_h5._kinds.kind import CHANNELS, KINDS, Config, Function, Kind, Params, Shape
from dogwood_jax.keras_h5._kinds.masking import dropped


def _flatten(config: Config) -> Function:
    def flatten(x: Any) -> Any:
        if config.get("data_format") == "channels_first" and x.ndim > 2:
            x = jnp.moveaxis(x, 1, -1)
        return x.reshape(x.shape[0], -1)

    return flatten


def _reshape(config: Config) -> Function:
    shape = tuple(map(operator.index, config["target_shape"]))
    channels = config.get(CHANNELS)
    return lambda x: x.reshape(x.shape[0], *reshape_target(x.shape[1:], shape, channels))


def reshape_target(
    sizes: Sequence[int], target: Sequence[int], channels: int | None
) -> tuple[int, ...]:
    """Returns the output shape of a Reshape, without the batch.

    Args:
        sizes: the input's shape, without the batch.
        target: the shape in the config, in which one size may be -1.
        channels: the size of the last axis that later layers read, if known.

    Raises:
        ValueError: if the axis that has grown is not known.

    Example:
        >>> reshape_target((24,), (1, 1, 12), None)
        (1, 1, 24)
        >>> reshape_target((784,), (7, 7, 8), 16)
        (7, 7, 16)
    """
    known = () if channels is None or not target or target[-1] == -1 else (channels,)
    new = (*target[: len(target) - len(known)], *known)
    count = math.prod(sizes)
    if -1 in new or math.prod(new) == count:
        return new
    longer = [axis for axis, size in enumerate(new[: len(new) - len(known)]) if size > 1]
    others = math.prod(size for axis, size in enumerate(new) if axis not in longer)
    if len(longer) == 1 and count % others == 0:
        return tuple(count // others if axis in longer else n for axis, n in enumerate(new))
    raise ValueError(
        f"which axis of {tuple(target)} has grown for inputs of shape {tuple(sizes)} is not known; "
        "make the larger model in Keras, and read it with load_model"
    )


def _target(config: Config, params: Params, shape: Shape, channels: int | None) -> dict[str, Any]:
    return {"target_shape": list(reshape_target(shape[1:], config["target_shape"], channels))}


def _permute(config: Config) -> Function:
    axes = (0, *map(operator.index, config["dims"]))
    return lambda x: jnp.transpose(x, axes)


def moved_to(axes: Sequence[int], axis: int) -> int | None:
    """Returns the place of an axis after a transposition, both counted from the end.

    Example:
        >>> moved_to((0, 2, 1), -2)
        -1
    """
    return axes.index(len(axes) + axis) - len(axes) if len(axes) + axis in axes else None


def _repeat_vector(config: Config) -> Function:
    n = operator.index(config.get(CHANNELS, config["n"]))
    return lambda x: jnp.repeat(x[:, None], n, axis=1)


KINDS["Flatten"] = Kind(function=_flatten, on_mask=dropped)
KINDS["Reshape"] = Kind(
    function=_reshape,
    sizes_by_input=_target,
    counted=lambda config: (-1, (config["target_shape"] or [None])[-1]),
    on_mask=dropped,
)
KINDS["Permute"] = Kind(
    function=_permute,
    moved_to=lambda config, axis: moved_to((0, *config["dims"]), axis),
    on_mask=dropped,
)
KINDS["RepeatVector"] = Kind(
    function=_repeat_vector,
    sizes_by_input=lambda config, params, shape, channels: {"n": channels or config["n"]},
    counted=lambda config: (-2, config["n"]),
)
