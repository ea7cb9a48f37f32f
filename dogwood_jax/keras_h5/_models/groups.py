"""How many channels each GroupNormalization of a model has: ``annotated``."""

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
    """Returns a model's config in which each GroupNormalization says how many channels it has."""
    if not any(_group_norms(config)):
        return config
    try:
        found = described(KerasLayers(frozen(config)))
    except ValueError:
        return config
    return _with_channels(config, (found or {}).get("intermediates", {}))


def _group_norms(layer: Config) -> Iterator[Any]:
    """Yields the layers of this class in a model, and in layers that it has."""
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
    """Returns the config of a model, or of a layer in one, that says how many channels there are.

    Args:
        layer: the config.
        inner: what the layers of the model are called with, by ``inputs_of(layer)``, and the same
            for models in it by their names.
        given: what the layer itself is called with, as far as is known.
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
