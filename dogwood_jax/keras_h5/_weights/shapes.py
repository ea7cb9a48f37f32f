"""Checks that a layer's arrays fit each other and the sizes in the layer's config.

A ``Kind`` names the axes of arrays, perhaps with a factor (``4*units``). The same name means the
same size everywhere. A name that is also in the layer's config has the size given there. "..."
stands for any axes.
"""

from collections.abc import Mapping
from typing import Any

from dogwood_jax.keras_h5._files.errors import KerasFileError
from dogwood_jax.keras_h5._kinds.kind import Config, kind_of


def fits(class_name: str | None, config: Config, weights: Mapping[str, Any]) -> bool:
    """Returns whether arrays have as many axes as a class expects; if not, its guess was wrong."""
    return not any(
        "..." not in axes and len(weights[name].shape) != len(axes.split())
        for name, axes in kind_of(class_name).axes(config).items()
        if name in weights
    )


def check_shapes(class_name: str | None, config: Config, weights: Mapping[str, Any]) -> None:
    """Raises if arrays of a layer contradict each other or its config.

    Raises:
        KerasFileError: names the array and its expected shape.
    """
    sizes = {name: size for name, size in config.items() if isinstance(size, int)}
    for name, pattern in kind_of(class_name).axes(config).items():
        if name not in weights:
            continue
        shape, axes = tuple(weights[name].shape), pattern.split()
        if axes[-1] == "...":
            axes, shape = axes[:-1], shape[: len(axes) - 1]
        expected = []
        for axis, size in zip(axes, shape):
            factor, _, axis = axis.rpartition("*")
            times = int(factor or 1)
            if axis.isdecimal():
                expected.append(int(axis))
            elif size % times:
                expected.append(times * sizes.get(axis, 1))
            else:
                expected.append(times * sizes.setdefault(axis, size // times))
        if len(shape) != len(axes) or list(shape) != expected:
            wanted = f"{len(axes)} axes" if len(shape) != len(axes) else f"shape {(*expected,)}"
            raise KerasFileError(
                f"weight {name}: expected {wanted} ({pattern}); found shape "
                f"{tuple(weights[name].shape)}"
            )
