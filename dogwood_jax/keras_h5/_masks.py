"""Masks: which steps of a sequence count, as Keras hands it on from layer to layer.

An Embedding with ``mask_zero`` or a Masking layer makes one. Recurrent layers skip the steps that
do not count, most others hand it on or drop it. What a layer that is in none of the tables below
does with a mask depends on the version of Keras.
"""

from typing import Any

import jax.numpy as jnp

from dogwood_jax.keras_h5._convert import Config

RECURRENT = ("SimpleRNN", "GRU", "LSTM", "RNN", "Bidirectional")
TAKES_MASK = (*RECURRENT, "GlobalAveragePooling1D")
_HANDS_ON = (
    *("Activation", "ActivityRegularization", "BatchNormalization", "Dense", "LayerNormalization"),
    *("AlphaDropout", "Dropout", "GaussianDropout", "GaussianNoise", "SpatialDropout1D"),
    *("ELU", "LeakyReLU", "PReLU", "ReLU", "ThresholdedReLU"),
)
_DROPS = (
    *("Flatten", "Reshape", "Permute", "Conv1D", "SeparableConv1D", "DepthwiseConv1D"),
    *("MaxPooling1D", "AveragePooling1D", "GlobalMaxPooling1D", "GlobalAveragePooling1D"),
    *("ZeroPadding1D", "Cropping1D", "UpSampling1D"),
)
_MERGES = ("Add", "Average", "Maximum", "Minimum", "Multiply", "Subtract")


def makes_mask(class_name: str, config: Config) -> bool:
    """Whether a layer makes a mask of what it is given."""
    return class_name == "Masking" or (class_name == "Embedding" and bool(config.get("mask_zero")))


def made_mask(class_name: str, config: Config, x: Any) -> Any:
    """Returns the mask that such a layer makes."""
    if class_name == "Embedding":
        return x != 0
    return jnp.any(x != config.get("mask_value", 0.0), axis=-1)


def handed_on(class_name: str, config: Config, masks: list[Any]) -> Any:
    """Returns the mask of a layer's output.

    Args:
        class_name: the layer's class.
        config: the layer's config.
        masks: those of its inputs, ``None`` where there are none: arrays, or ``True`` to find out
            whether there will be one.

    Raises:
        ValueError: if that is not known of such a layer.
    """
    if all(mask is None for mask in masks) or class_name in _DROPS:
        return None
    if class_name in RECURRENT:
        inner = config["layer"]["config"] if class_name == "Bidirectional" else config
        if inner.get("return_state"):
            raise ValueError("a mask and return_state=True together are not supported")
        return masks[0] if inner.get("return_sequences") else None
    if class_name == "TimeDistributed" and config["layer"]["class_name"] in _HANDS_ON:
        return masks[0]
    if class_name in _HANDS_ON:
        return masks[0]
    if class_name in _MERGES:
        if any(mask is None for mask in masks):
            return None
        merged = masks[0]
        for mask in masks[1:]:
            merged = merged | mask
        return merged
    raise ValueError(
        "it is given a mask, from an Embedding with mask_zero or a Masking layer, and that is not "
        "supported"
    )
