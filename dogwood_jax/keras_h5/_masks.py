"""Masks: which steps of a sequence count, as Keras hands it on from layer to layer.

An Embedding with ``mask_zero`` or a Masking layer makes one. Recurrent layers skip the steps that
do not count, most others hand it on or drop it. What a layer that is in none of the tables below
does with a mask depends on the version of Keras.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from dogwood_jax.keras_h5._convert import Config
from dogwood_jax.keras_h5._graph import Call, Ref, refs_in

RECURRENT = ("SimpleRNN", "GRU", "LSTM", "RNN", "Bidirectional")
HEADS = ("MultiHeadAttention", "GroupQueryAttention", "GroupedQueryAttention")
_DOT_ATTENTION = ("Attention", "AdditiveAttention")
_TAKES_MASK = (*RECURRENT, "GlobalAveragePooling1D")

Masks = Mapping[tuple[str, int], Any]  # of the first output, by layer and call
_HANDS_ON = (
    *("Activation", "ActivityRegularization", "BatchNormalization", "Dense", "LayerNormalization"),
    *("AlphaDropout", "Dropout", "GaussianDropout", "GaussianNoise", "SpatialDropout1D"),
    *("ELU", "LeakyReLU", "PReLU", "ReLU", "ThresholdedReLU", *HEADS, *_DOT_ATTENTION),
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


def given_to(class_name: str, call: Call, masks: Masks) -> list[Any]:
    """Returns the masks of what a layer is called with, ``None`` where there are none."""
    if class_name in HEADS:
        named = _named(call)
        return [_mask_of(named[name], masks) for name in ("query", "value", "key") if name in named]
    return [_mask_of(ref, masks) for ref in refs_in(call.args)]


def arguments(class_name: str, call: Call, masks: Masks) -> dict[str, Any]:
    """Returns the arguments in which a layer takes the masks of its inputs."""
    given = given_to(class_name, call, masks)
    if all(mask is None for mask in given):
        return {}
    if class_name in HEADS:
        return dict(
            zip([f"{n}_mask" for n in ("query", "value", "key") if n in _named(call)], given)
        )
    if class_name in _DOT_ATTENTION:
        return {"mask": given}
    return {"mask": given[0]} if class_name in _TAKES_MASK and given[0] is not None else {}


def _named(call: Call) -> dict[str, Any]:
    return {**dict(zip(("query", "value", "key"), call.args)), **call.kwargs}


def _mask_of(value: Any, masks: Masks) -> Any:
    if not isinstance(value, Ref) or value.output > 0:  # states and scores have none
        return None
    return masks.get(value[:2])


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
        if class_name == "Bidirectional" and config["merge_mode"] is None:
            raise ValueError("a mask and merge_mode=None together are not supported")
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
