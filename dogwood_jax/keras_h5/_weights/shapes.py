"""Whether a layer's arrays fit each other, and the sizes in its config."""

from collections.abc import Mapping
from typing import Any

from dogwood_jax.keras_h5._files.errors import KerasFileError
from dogwood_jax.keras_h5._kinds.weight import Config

# Axes by name, as many times their size as it says; the same name is the same size everywhere.
# A name that is also in the layer's config has its size there. "..." stands for any axes.
_AXES: dict[str, dict[str, str]] = {
    "Dense": {"kernel": "in units", "bias": "units"},
    "EinsumDense": {"kernel": "...", "bias": "..."},
    "Embedding": {"embeddings": "input_dim output_dim"},
    "LayerNormalization": {"gamma": "...", "beta": "..."},
    "GroupNormalization": {"gamma": "channels", "beta": "channels"},
    "BatchNormalization": dict.fromkeys(
        ("gamma", "beta", "moving_mean", "moving_variance"), "channels"
    ),
    "MultiHeadAttention": {
        "query_dense/kernel": "q num_heads key_dim",
        "query_dense/bias": "num_heads key_dim",
        "key_dense/kernel": "k num_heads key_dim",
        "key_dense/bias": "num_heads key_dim",
        "value_dense/kernel": "v num_heads value",
        "value_dense/bias": "num_heads value",
        "output_dense/kernel": "num_heads value ...",
        "output_dense/bias": "...",
    },
}
for _gates, _class in ((1, "SimpleRNN"), (3, "GRU"), (4, "LSTM")):
    _AXES[_class] = {
        "cell/kernel": f"in {_gates}*units",
        "cell/recurrent_kernel": f"units {_gates}*units",
        "cell/bias": f"{_gates}*units",
    }
for _rank, _space in ((1, "x"), (2, "y x"), (3, "z y x")):
    _AXES[f"Conv{_rank}D"] = {"kernel": f"{_space} in filters", "bias": "filters"}
    _AXES[f"Conv{_rank}DTranspose"] = {"kernel": f"{_space} filters in", "bias": "filters"}
    if _rank < 3:
        depthwise = f"{_space} in depth_multiplier"
        _AXES[f"DepthwiseConv{_rank}D"] = {"depthwise_kernel": depthwise, "bias": "..."}
        _AXES[f"SeparableConv{_rank}D"] = {
            "depthwise_kernel": depthwise,
            "pointwise_kernel": "1 " * _rank + "all filters",
            "bias": "filters",
        }


def _axes(class_name: str | None, config: Config) -> Mapping[str, str]:
    axis = config.get("axis")
    if class_name == "BatchNormalization" and isinstance(axis, list) and len(axis) > 1:
        return {}
    axes = _AXES.get(class_name or "", {})
    if class_name == "GRU" and config.get("reset_after", True):
        axes = {**axes, "cell/bias": "2 3*units"}
    if class_name == "GRU" and "reset_after" not in config:
        axes = {**axes, "cell/bias": "..."}  # the default depends on the version
    return axes


def fits(class_name: str | None, config: Config, weights: Mapping[str, Any]) -> bool:
    """Whether arrays have the numbers of axes that a class has: without them it was a bad guess."""
    return not any(
        "..." not in axes and len(weights[name].shape) != len(axes.split())
        for name, axes in _axes(class_name, config).items()
        if name in weights
    )


def check_shapes(class_name: str | None, config: Config, weights: Mapping[str, Any]) -> None:
    """Raises if arrays of a layer contradict each other or its config.

    Raises:
        KerasFileError: saying what was expected of which array.
    """
    sizes = {name: size for name, size in config.items() if isinstance(size, int)}
    for name, pattern in _axes(class_name, config).items():
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
