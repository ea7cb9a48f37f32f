"""Masks: which steps of a sequence count, as Keras passes masks from layer to layer.

An Embedding with ``mask_zero`` or a Masking layer makes a mask. Recurrent layers skip the steps
that do not count. Most other layers pass the mask on or drop it: each ``Kind`` defines which.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from dogwood_jax.keras_h5._kinds.kind import Config, kind_of
from dogwood_jax.keras_h5._kinds.masking import MASKS
from dogwood_jax.keras_h5._models.graph import Call, Graph, Ref, refs_in

Result = tuple[str, int]  # the result of a call: the layer and the number of the call
Masks = Mapping[Result, Any]  # masks of the first output of each call


def taken_off(graph: Graph) -> dict[Result, set[Result]]:
    """Returns, for each call, the results whose masks have been taken off before it."""
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
    """Returns the masks that a call sees: all except those taken off before it."""
    without = gone.get((call.layer, call.number))
    return {r: mask for r, mask in masks.items() if r not in without} if without else masks


def given_to(class_name: str, call: Call, masks: Masks) -> list[Any]:
    """Returns the masks of a layer's inputs, ``None`` for inputs without a mask."""
    if kind_of(class_name).takes_masks == "by name":
        named = _named(call)
        return [_mask_of(named[name], masks) for name in ("query", "value", "key") if name in named]
    return [_mask_of(ref, masks) for ref in refs_in(call.args)]


def with_masks(graph: Graph, call: Call, masks: Masks, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a call's keyword arguments, plus those that pass the masks of its inputs.

    Args:
        graph: the model.
        call: the call.
        masks: masks of earlier results.
        kwargs: the keyword arguments in the config.
    """
    class_name, config = graph.layers[call.layer]
    if config.get(MASKS) == "ignored":
        return {**kwargs}
    given, takes = given_to(class_name, call, masks), kind_of(class_name).takes_masks
    implied: dict[str, Any] = {}
    if takes == "by name":
        names = [f"{n}_mask" for n in ("query", "value", "key") if n in _named(call)]
        implied = {name: mask for name, mask in zip(names, given) if mask is not None}
        if config.get(MASKS) == "taken":  # even if the call passes one
            kwargs = {name: value for name, value in kwargs.items() if name != "query_mask"}
    elif any(mask is not None for mask in given) and takes == "all":
        implied = {"mask": given}
    elif any(mask is not None for mask in given) and config.get(MASKS) == "computed":
        implied = {"masks": given}
    elif takes == "first" and given[0] is not None and not graph.masks_are_given:
        implied = {"mask": given[0]}
    return {**implied, **kwargs}


def unclear(graph: Graph, masks: Masks) -> Iterator[str]:
    """Yields attention layers whose effect on masks depends on Keras's order of calls.

    They take the masks off their inputs. Other layers that read the same inputs, independently of
    the attention, see a mask only if Keras calls them first.

    Args:
        graph: the model.
        masks: which results have masks.
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
    """Returns whether a call uses masks that are not in its config."""
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
        masks: one for each input: an array, ``None`` for no mask, or ``True`` to find out whether
            the output will have a mask.

    Raises:
        ValueError: if the layer's treatment of masks is not known.
    """
    if all(mask is None for mask in masks) or config.get(MASKS) == "ignored":
        return None
    return kind_of(class_name).on_mask(config, masks)
