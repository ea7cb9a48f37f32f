"""SpectralNormalization: a layer whose kernel Keras divides by its largest singular value.

Keras does so at each step of training, and keeps a vector for it. In evaluation, the layer computes
the same as its inner layer.
"""

from collections.abc import Mapping
from dataclasses import replace

import flax.linen as nn
import jax
import jax.numpy as jnp

from dogwood_jax.keras_h5._kinds.activations import activation
from dogwood_jax.keras_h5._kinds.kind import KINDS, Config, Function, Kind, Params, Shape, Weight
from dogwood_jax.keras_h5._kinds.nested import inside, weights_of_layer
from dogwood_jax.keras_h5._kinds.weight import plain

_SPACES = "123"
_LAYERS = ("Dense", *(f"Conv{n}D" for n in _SPACES), *(f"Conv{n}DTranspose" for n in _SPACES))


class SpectralNormalization(nn.Module):
    """An inner layer, and the vector with which Keras continues training.

    Attributes:
        make: makes the inner layer, without its activation.
        activate: the activation of the inner layer.
        axis: the axis of channels.
        by_input: whether the vector has an entry for each input channel, as in a transposed
            convolution, rather than for each output channel.
    """

    make: Function
    activate: Function
    axis: int
    by_input: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        layer = self.make()
        y = layer(self._beside(x)) if self.by_input else self._beside(layer(x))
        return self.activate(y)  # type: ignore[no-any-return]

    def _beside(self, x: jax.Array) -> jax.Array:
        """Returns ``x``; reads the vector, so that its axis and the channels share a width."""
        shape = [1] * x.ndim
        shape[self.axis] = x.shape[self.axis]

        def make() -> jax.Array:
            init = nn.initializers.truncated_normal(0.02)
            return init(self.make_rng("params"), (1, x.shape[self.axis]), jnp.float32)

        vector = self.variable("batch_stats", "vector_u", make).value
        return jnp.where(False, vector.reshape(shape).astype(x.dtype), x)


def _spectral(config: Config, name: str | None, deterministic: bool) -> Function:
    class_name, inner = config["layer"]["class_name"], config["layer"]["config"]
    make = KINDS[class_name].module if class_name in _LAYERS else None
    if make is None:
        raise ValueError(f"the inner layer {class_name} is not supported")
    if not deterministic:
        raise ValueError(
            "Keras changes its kernel at each step of training, which is not supported; pass "
            "deterministic=True"
        )
    first = inner.get("data_format") == "channels_first" and class_name != "Dense"
    plain_config = {**inner, "activation": None}
    return SpectralNormalization(
        lambda: make(plain_config, "layer", deterministic),
        activation(inner.get("activation")),
        1 if first else -1,
        class_name.endswith("Transpose"),
        name=name,
    )


def _weights(config: Config) -> list[Weight]:
    layer = inside("layer", "layer", weights_of_layer(config["layer"]))
    vector = plain("vector_u", "batch_stats/vector_u", trainable=False)
    # The native files of Keras 3 have the kernel twice: it is an attribute of both layers.
    again = [
        replace(weight, name="kernel of layer", trainable=False, repeats=weight.name)
        for weight in layer
        if weight.name == "layer/kernel"
    ]
    return [*layer, *again, vector]


def _axes(config: Config) -> Mapping[str, str]:
    inner = KINDS[config["layer"]["class_name"]].axes(config["layer"]["config"])
    kernel = inner.get("kernel", "...")
    return {
        **{f"layer/{name}": axes for name, axes in inner.items()},
        "kernel of layer": kernel,
        "vector_u": f"1 {kernel.split()[-1]}" if kernel != "..." else "...",
    }


def _told(shapes: Mapping[str, Shape]) -> Config | None:
    """Returns the inner layer by the shapes of its kernel, which is stored twice, and its bias."""
    own = [shapes.get(str(i), ()) for i in range(2)]
    kernel, bias = shapes.get("layer/0", ()), shapes.get("layer/1")
    if own != [kernel, (1, *kernel[-1:])] or not 2 <= len(kernel) <= 5 or len(shapes) > 4:
        return None
    rank = len(kernel) - 2
    kinds = {f"Conv{rank}D": kernel[-1:], f"Conv{rank}DTranspose": kernel[-2:-1]}
    if rank == 0:
        kinds = {"Dense": kernel[-1:]}
    elif bias is None or kernel[-1] in (1, kernel[-2]):  # it may be depthwise
        return None
    fitting = [kind for kind, size in kinds.items() if bias in (None, size)]
    if not fitting:
        return None
    layer = {"class_name": fitting[0], "config": {"use_bias": bias is not None}}
    return {"layer": layer}


def _reads(config: Config, params: Params) -> int | None:
    layer = config["layer"]
    return KINDS[layer["class_name"]].reads(layer["config"], params["layer"])


KINDS["SpectralNormalization"] = Kind(
    module=_spectral,
    weights=_weights,
    axes=_axes,
    told=_told,
    holds={"layer": "layer"},
    reads=_reads,
)
