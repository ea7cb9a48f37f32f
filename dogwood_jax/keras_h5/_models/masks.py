"""Masks: which steps of a sequence count, as Keras hands it on from layer to layer.

An Embedding with ``mask_zero`` or a Masking layer makes one. Recurrent layers skip the steps that
do not count, most others hand it on or drop it. What a layer that is in none of the tables below
does with a mask depends on the version of Keras.
"""

import functools
import operator
from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp

from dogwood_jax.keras_h5._kinds.functions import MASKS
from dogwood_jax.keras_h5._kinds.weight import Config
from dogwood_jax.keras_h5._models.graph import Call, Graph, Ref, refs_in

RECURRENT = ("SimpleRNN", "GRU", "LSTM", "RNN", "Bidirectional")
HEADS = ("MultiHeadAttention", "GroupQueryAttention", "GroupedQueryAttention")
_DOT_ATTENTION = ("Attention", "AdditiveAttention")

_TAKES_MASK = (*RECURRENT, "GlobalAveragePooling1D")

Result = tuple[str, int]  # of a layer, by the number of its call
Masks = Mapping[Result, Any]  # of the first output
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
_OPERATIONS = ("ops.", "TFOpLambda", "SlicingOpLambda", "TensorFlowOpLayer")  # drop it too
_ALONE = {*_DROPS, *_HANDS_ON} - {*_TAKES_MASK, *HEADS, *_DOT_ATTENTION}
MERGES = ("Add", "Average", "Maximum", "Minimum", "Multiply", "Subtract")


def ignores_mask(layer: Config) -> bool:
    """Whether a layer computes the same with and without a mask."""
    return layer["class_name"] in _ALONE


def makes_mask(class_name: str, config: Config) -> bool:
    """Whether a layer makes a mask of what it is given."""
    return class_name == "Masking" or (class_name == "Embedding" and bool(config.get("mask_zero")))


def made_mask(class_name: str, config: Config, x: Any) -> Any:
    """Returns the mask that such a layer makes."""
    if class_name == "Embedding":
        return x != 0
    return jnp.any(x != config.get("mask_value", 0.0), axis=-1)


def taken_off(graph: Graph) -> dict[Result, set[Result]]:
    """Returns for calls which results have no masks any more when they are made."""
    gone: dict[Result, set[Result]] = {}
    for call in _takers_off(graph):
        for later in graph.after(call):
            results = {ref[:2] for ref in refs_in([call.args, call.kwargs])}
            gone.setdefault((later.layer, later.number), set()).update(results)
    return gone


def _takers_off(graph: Graph) -> list[Call]:
    """Returns the calls that take masks off their inputs; none where there are no masks."""
    if not any(makes_mask(*layer) for layer in graph.layers.values()):
        return []
    return [call for call in graph.calls if graph.layers[call.layer][1].get(MASKS) == "taken"]


def seen_by(call: Call, masks: Masks, gone: Mapping[Result, set[Result]]) -> Masks:
    """Returns the masks without those that have been taken off before a call."""
    without = gone.get((call.layer, call.number))
    return {r: mask for r, mask in masks.items() if r not in without} if without else masks


def given_to(class_name: str, call: Call, masks: Masks) -> list[Any]:
    """Returns the masks of what a layer is called with, ``None`` where there are none."""
    if class_name in HEADS:
        named = _named(call)
        return [_mask_of(named[name], masks) for name in ("query", "value", "key") if name in named]
    return [_mask_of(ref, masks) for ref in refs_in(call.args)]


def with_masks(graph: Graph, call: Call, masks: Masks, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a call's arguments with those in which the layer takes the masks of its inputs.

    Args:
        graph: the model.
        call: the call.
        masks: of the results before it.
        kwargs: the arguments that the config has.
    """
    class_name, config = graph.layers[call.layer]
    if config.get(MASKS) == "ignored":
        return {**kwargs}
    given = given_to(class_name, call, masks)
    implied: dict[str, Any] = {}
    if class_name in HEADS:
        names = [f"{n}_mask" for n in ("query", "value", "key") if n in _named(call)]
        implied = {name: mask for name, mask in zip(names, given) if mask is not None}
        if config.get(MASKS) == "taken":  # whatever it is called with
            kwargs = {name: value for name, value in kwargs.items() if name != "query_mask"}
    elif any(mask is not None for mask in given) and class_name in _DOT_ATTENTION:
        implied = {"mask": given}
    elif any(mask is not None for mask in given) and config.get(MASKS) == "computed":
        implied = {"masks": given}
    elif class_name in _TAKES_MASK and given[0] is not None and not graph.masks_are_given:
        implied = {"mask": given[0]}
    return {**implied, **kwargs}


def unclear(graph: Graph, masks: Masks) -> Iterator[str]:
    """Yields layers of attention after which there may be a mask or not.

    They take it off their inputs. What else reads these, and does not wait for the attention, has
    it or not by the order in which Keras makes the calls.

    Args:
        graph: the model.
        masks: whether results have masks.
    """
    for call in _takers_off(graph):
        later = graph.after(call)
        given = {ref[:2] for ref in refs_in([call.args, call.kwargs]) if masks.get(ref[:2])}
        for other in graph.calls:
            read = {ref[:2] for ref in refs_in([other.args, other.kwargs])}
            if other is call or other in later or not read & given:
                continue
            after_other = graph.after(other)
            if call not in after_other and any(_relies(graph, c) for c in (other, *after_other)):
                yield call.layer
                break


def _relies(graph: Graph, call: Call) -> bool:
    """Whether a call takes masks that its config does not say."""
    class_name, config = graph.layers[call.layer]
    if config.get(MASKS) == "taken":
        return True
    takes = class_name in (*_TAKES_MASK, *HEADS, *_DOT_ATTENTION)
    return takes and "mask" not in call.kwargs


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
    known = [mask for mask in masks if mask is not None]
    operation = class_name.startswith(_OPERATIONS)
    if not known or operation or class_name in _DROPS or config.get(MASKS) == "ignored":
        return None
    if class_name in RECURRENT:
        inner = config["layer"]["config"] if class_name == "Bidirectional" else config
        if class_name == "Bidirectional" and config["merge_mode"] is None:
            raise ValueError("a mask and merge_mode=None together are not supported")
        return masks[0] if inner.get("return_sequences") else None
    if class_name in _HANDS_ON or class_name == "TimeDistributed" and ignores_mask(config["layer"]):
        return masks[0]
    last = class_name == "Concatenate" and config.get("axis", -1) in (-1, 2)
    if last or class_name in MERGES:
        if config.get(MASKS) == "all":
            return functools.reduce(operator.and_, known)
        return functools.reduce(operator.or_, known) if len(known) == len(masks) else None
    raise ValueError(
        "it is given a mask, from an Embedding with mask_zero or a Masking layer, and that is not "
        "supported"
    )
