"""Activations by their names in configs, and activation layers."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dogwood_jax.keras_h5._kinds.kind import KINDS, Config, Function, Kind
from dogwood_jax.keras_h5._kinds.masking import handed_on
from dogwood_jax.keras_h5._kinds.weight import plain

Activation = Callable[[Any], Any]

# In Keras 2, hard_sigmoid was another function than in Keras 3; it gets this name on reading.
HARD_SIGMOID_2 = "hard_sigmoid of Keras 2"


def relu(
    x: Any, negative_slope: float = 0.0, max_value: float | None = None, threshold: float = 0.0
) -> Any:
    """Keras's ReLU: ``x`` from the threshold on, ``negative_slope * (x - threshold)`` below it."""
    if threshold or negative_slope:
        y = jnp.where(x >= threshold, x, negative_slope * (x - threshold))
    else:
        y = jax.nn.relu(x)
    return y if max_value is None else jnp.minimum(y, max_value)


def elu(x: Any, alpha: float = 1.0) -> Any:
    return jax.nn.elu(x, alpha)


def leaky_relu(x: Any, negative_slope: float = 0.2) -> Any:
    return jnp.where(x >= 0, x, negative_slope * x)


def softmax(x: Any, axis: int | tuple[int, ...] = -1) -> Any:
    return jax.nn.softmax(x, axis=axis)


def sparsemax(x: Any) -> Any:
    """Keras's sparsemax, which differs from the usual one: outputs need not sum to one.

    At least up to Keras 3.15, the threshold uses the total of all cumulative sums in the support
    in place of the last cumulative sum.
    """
    descending = -jnp.sort(-x, axis=-1)
    sums = jnp.cumsum(descending, axis=-1)
    counts = jnp.arange(1, x.shape[-1] + 1, dtype=x.dtype).reshape((1,) * (x.ndim - 1) + (-1,))
    support = descending > (sums - 1) / counts
    total = jnp.sum(jnp.where(support, sums, 0), axis=-1, keepdims=True)
    return jax.nn.relu(x - (total - 1) / jnp.sum(support, axis=-1, keepdims=True, dtype=x.dtype))


ACTIVATIONS: Mapping[str, Activation] = {
    "celu": jax.nn.celu,
    "elu": elu,
    "exponential": jnp.exp,
    "gelu": partial(jax.nn.gelu, approximate=False),
    "glu": jax.nn.glu,
    "hard_shrink": lambda x: jnp.where(jnp.abs(x) > 0.5, x, 0),
    "hard_sigmoid": lambda x: jnp.clip(x + 3, 0, 6) / 6,
    HARD_SIGMOID_2: lambda x: jnp.clip(0.2 * x + 0.5, 0, 1),
    "hard_silu": lambda x: x * (jnp.clip(x + 3, 0, 6) / 6),
    "hard_swish": lambda x: x * (jnp.clip(x + 3, 0, 6) / 6),
    "hard_tanh": jax.nn.hard_tanh,
    "leaky_relu": leaky_relu,
    "linear": lambda x: x,
    "log_sigmoid": jax.nn.log_sigmoid,
    "log_softmax": jax.nn.log_softmax,
    "mish": lambda x: x * jnp.tanh(jax.nn.softplus(x)),
    "relu": relu,
    "relu6": partial(relu, max_value=6),
    "selu": jax.nn.selu,
    "sigmoid": jax.nn.sigmoid,
    "silu": jax.nn.silu,
    "soft_shrink": lambda x: jnp.sign(x) * jax.nn.relu(jnp.abs(x) - 0.5),
    "softmax": softmax,
    "softplus": jax.nn.softplus,
    "softsign": jax.nn.soft_sign,
    "sparse_plus": lambda x: jnp.where(x <= -1, 0, jnp.where(x < 1, (x + 1) ** 2 / 4, x)),
    "sparse_sigmoid": lambda x: jnp.clip(0.5 * (x + 1), 0, 1),
    "sparsemax": sparsemax,
    "squareplus": lambda x: (x + jnp.sqrt(x * x + 4)) / 2,
    "swish": jax.nn.silu,
    "tanh": jnp.tanh,
    "tanh_shrink": lambda x: x - jnp.tanh(x),
}


def activation(spec: Any) -> Activation:
    """Returns the function for the ``activation`` of a config.

    Args:
        spec: a name, ``None``, or a description of a function or layer as Keras writes it there.

    Raises:
        ValueError: if it is not one of Keras's own. Functions of users are never run.
    """
    if spec is None:
        return ACTIVATIONS["linear"]
    if isinstance(spec, Mapping):
        config = spec.get("config")
        if isinstance(config, Mapping) and spec.get("class_name") in LAYERS:
            return LAYERS[spec["class_name"]](config)
        own = str(spec.get("module")).partition(".")[0] in ("keras", "tensorflow")
        spec = config if spec.get("class_name") == "function" and own else spec
    name = spec.removesuffix("_v2") if isinstance(spec, str) else ""  # as in TensorFlow
    if name not in ACTIVATIONS:
        raise ValueError(f"the activation {spec!r} is not one of Keras's own")
    return ACTIVATIONS[name]


def then_activate(config: Config, function: Function) -> Function:
    activate = activation(config.get("activation"))
    return lambda x: activate(function(x))


def _relu_layer(config: Config) -> Activation:
    options = {name: config.get(name) or 0.0 for name in ("negative_slope", "threshold")}
    return partial(relu, max_value=config.get("max_value"), **options)


def _leaky_relu_layer(config: Config) -> Activation:
    slope = config["negative_slope"] if "negative_slope" in config else config["alpha"]
    return partial(leaky_relu, negative_slope=_number(slope))


def _thresholded_relu_layer(config: Config) -> Activation:
    theta = _number(config["theta"])
    return lambda x: jnp.where(x > theta, x, 0)


def _softmax_layer(config: Config) -> Activation:
    axis = config.get("axis", -1)
    return partial(softmax, axis=axis if isinstance(axis, int) else tuple(axis))


def _number(value: Any) -> float:
    """Returns a number of a config; early Keras 2 wrote the numbers of some layers as arrays."""
    return float(value["value"] if isinstance(value, Mapping) else value)


LAYERS: Mapping[str, Callable[[Config], Activation]] = {
    "Activation": lambda config: activation(config["activation"]),
    "ELU": lambda config: partial(elu, alpha=_number(config.get("alpha", 1.0))),
    "LeakyReLU": _leaky_relu_layer,
    "ReLU": _relu_layer,
    "Softmax": _softmax_layer,
    "ThresholdedReLU": _thresholded_relu_layer,
}


class PReLU(nn.Module):
    """A leaky ReLU with learned slopes; all units along the shared axes have one slope."""

    shared_axes: tuple[int, ...]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = [1 if axis in self.shared_axes else n for axis, n in enumerate(x.shape)][1:]
        slope = self.param("negative_slope", nn.initializers.zeros, tuple(shape))
        return jnp.where(x >= 0, x, slope[None] * x)


def _prelu(config: Config, name: str | None, deterministic: bool) -> Function:
    return PReLU(tuple(config.get("shared_axes") or ()), name=name)


for _class, _make in LAYERS.items():
    KINDS[_class] = Kind(function=_make, passes_channels=True, on_mask=handed_on)
KINDS["Softmax"] = Kind(function=_softmax_layer)
KINDS["PReLU"] = Kind(
    module=_prelu,
    weights=lambda config: [plain("alpha", "params/negative_slope")],
    on_mask=handed_on,
)
