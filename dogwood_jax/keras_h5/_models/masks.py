"""Masks: which steps of a sequence count, as Keras hands it on from layer to layer.

An Embedding with ``mask_zero`` or a Masking layer makes one. Recurrent layers skip the steps that
do not count, most others hand it on or drop it: each ``Kind`` says what its layers do.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from dogwood_jax.keras_h5._kinds.kind import Config, kind_of
from dogwood_jax.keras_h5._kinds.masking import MASKS
from dogwood_jax.keras_h5._models.graph import Call, Graph, Ref, refs_in

Result = tuple[str, int]  # of a layer, by the number of its call
Masks = Mapping[Result, Any]  # of the first output


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
    if not any(kind_of(name).new_mask(config) for name, config in graph.layers.values()):
        return []
    return [call for call in graph.calls if graph.layers[call.layer][1].get(MASKS) == "taken"]


def seen_by(call: Call, masks: Masks, gone: Mapping[Result, set[Result]]) -> Masks:
    """Returns the masks without those that have been taken off before a call."""
    without = gone.get((call.layer, call.number))
    return {r: mask for r, mask in masks.items() if r not in without} if without else masks


def given_to(class_name: str, call: Call, masks: Masks) -> list[Any]:
    """Returns the masks of what a layer is called with, ``None`` where there are none."""
    if kind_of(class_name).takes_masks == "by name":
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
    given, takes = given_to(class_name, call, masks), kind_of(class_name).takes_masks
    implied: dict[str, Any] = {}
    if takes == "by name":
        names = [f"{n}_mask" for n in ("query", "value", "key") if n in _named(call)]
        implied = {name: mask for name, mask in zip(names, given) if mask is not None}
        if config.get(MASKS) == "taken":  # whatever it is called with
            kwargs = {name: value for name, value in kwargs.items() if name != "query_mask"}
    elif any(mask is not None for mask in given) and takes == "all":
        implied = {"mask": given}
    elif any(mask is not None for mask in given) and config.get(MASKS) == "computed":
        implied = {"masks": given}
    elif takes == "first" and given[0] is not None and not graph.masks_are_given:
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
    return kind_of(class_name).takes_masks is not None and "mask" not in call.kwargs


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
    if all(mask is None for mask in masks) or config.get(MASKS) == "ignored":
        return None
    return kind_of(class_name).on_mask(config, masks)
