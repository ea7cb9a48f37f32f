"""Adds the number of channels to the config of each GroupNormalization: ``annotated``."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax

from dogwood_jax.keras_h5._kinds.kind import CHANNELS, Config
from dogwood_jax.keras_h5._kinds.nested import MODELS, layer_name, layers_of
from dogwood_jax.keras_h5._models.frozen import frozen
from dogwood_jax.keras_h5._models.module import KerasLayers
from dogwood_jax.keras_h5._models.shapes import described
from dogwood_jax.keras_h5._models.sizes import Given, each_step, inputs_of


def annotated(config: Config) -> Config:
    """Returns a model's config with the number of channels of each GroupNormalization."""
    if not any(_group_norms(config)):
        return config
    try:
        found = described(KerasLayers(frozen(config)))
    except ValueError:
        return config
    return _with_channels(config, (found or {}).get("intermediates", {}))


def _group_norms(layer: Config) -> Iterator[Any]:
    """Yields the GroupNormalization layers in a model, including those in its inner layers."""
    if layer["class_name"] in MODELS:
        for inner in layers_of(layer["config"]):
            yield from _group_norms(inner)
    elif layer["class_name"] == "TimeDistributed":
        yield from _group_norms(layer["config"]["layer"])
    elif layer["class_name"] == "GroupNormalization" and CHANNELS not in layer["config"]:
        yield layer


def _with_channels(
    layer: Config, inner: Mapping[str, Any], given: Sequence[Given] | None = None
) -> Config:
    """Returns the config of a model or layer, with ``CHANNELS`` in each GroupNormalization.

    Args:
        layer: the config.
        inner: the inputs of the model's layers, by ``inputs_of(layer)``, and the same for inner
            models, by their names.
        given: the inputs of the layer itself, if known.
    """
    class_name, config = layer["class_name"], layer["config"]
    if class_name in MODELS:
        layers = [
            _with_channels(one, inner.get(name, {}), inner.get(inputs_of(name)))
            for one in layers_of(config)
            for name in [layer_name(one)]
        ]
        return {**layer, "config": {**config, "layers": layers} if "layers" in config else layers}
    if class_name == "TimeDistributed":
        each = _with_channels(config["layer"], inner, each_step(given))
        return {**layer, "config": {**config, "layer": each}}
    if class_name == "GroupNormalization" and given:
        sizes = jax.tree.leaves(given)[0].shape
        return {**layer, "config": {CHANNELS: sizes[config.get("axis", -1)], **config}}
    return layer
