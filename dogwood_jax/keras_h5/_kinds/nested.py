"""Layers with inner layers: models and TimeDistributed. Bidirectional is in ``recurrent``."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from dogwood_jax.keras_h5._kinds.kind import (
    KINDS,
    Config,
    Kind,
    Path,
    Shape,
    Weight,
    kind_of,
    layout,
)
from dogwood_jax.keras_h5._kinds.masking import handed_on, unknown
from dogwood_jax.keras_h5._kinds.weight import is_kernel_and_bias

MODELS = ("Sequential", "Functional", "Model")
# Layers that pass their input, or each step of it, to their inner layer.
WRAPPERS = ("TimeDistributed", "SpectralNormalization")


def layers_of(config: Config | Sequence[Config]) -> Sequence[Config]:
    """Returns the layers in a model's config; before Keras 2.2.3 the config was a list of them."""
    layers: Sequence[Config] = config["layers"] if isinstance(config, Mapping) else config
    return layers


def layer_name(layer: Config) -> str:
    """Returns the name of a layer in a model's config."""
    return str(layer["name"] if "name" in layer else layer["config"]["name"])


def inside(keras: str, flax: str, weights: Iterable[Weight]) -> list[Weight]:
    """Returns the weights of an inner layer, under these names in the outer layer."""

    def moved(place: Path) -> Path:
        return (place[0], flax, *place[1:]) if flax else place

    return [
        replace(w, name=f"{keras}/{w.name}", places=tuple(map(moved, w.places))) for w in weights
    ]


def weights_of_layer(layer: Config) -> list[Weight]:
    """Returns the weights of an inner layer's config; those of a frozen layer are not trainable."""
    weights = layout(layer["class_name"], layer["config"])
    config = layer["config"]
    frozen = isinstance(config, Mapping) and config.get("trainable") is False
    return [replace(w, trainable=False) for w in weights] if frozen else weights


def _model(config: Config) -> list[Weight]:
    weights: list[Weight] = []
    for layer in layers_of(config):
        weights += inside(layer_name(layer), layer_name(layer), weights_of_layer(layer))
    return weights


def _told_each(shapes: Mapping[str, Shape]) -> Config | None:
    within = {name.partition("/")[2]: shape for name, shape in shapes.items()}
    dense = is_kernel_and_bias(within) and len(within["0"]) == 2
    return {"layer": {"class_name": "Dense", "config": {}}} if dense else None


def _mask_of_each(config: Config, masks: list[Any]) -> Any:
    known = kind_of(config["layer"]["class_name"]).ignores_masks
    return (handed_on if known else unknown)(config, masks)


KINDS.update(dict.fromkeys(MODELS, Kind(weights=_model)))
KINDS["TimeDistributed"] = Kind(
    weights=lambda config: inside("layer", "", weights_of_layer(config["layer"])),
    told=_told_each,
    holds={"layer": ""},
    on_mask=_mask_of_each,
)
