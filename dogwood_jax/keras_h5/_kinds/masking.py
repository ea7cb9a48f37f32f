"""Masks of the outputs of layers. A mask marks the steps of a sequence that count.

Each function returns the mask of a layer's output, from its config and the masks of its inputs. A
mask is an array, ``True`` where only the existence of masks is computed, or ``None`` for no mask.
"""

import functools
import operator
from collections.abc import Mapping
from typing import Any

# A key that this library adds to configs where the use of masks depends on the version of Keras:
# - "ignored": the layer ignores masks
# - "all": in a sum, a step counts if it counts in all masks of the inputs
# - "computed": a product or extreme leaves out masked entries
# - "held": in a Bidirectional layer, a masked step has the output of the step before it
# - "taken": attention removes the masks of its inputs, for layers that are called later
MASKS = "masks, says dogwood_jax"


def unknown(config: Mapping[str, Any], masks: list[Any]) -> Any:
    """Raises ``ValueError``: the output's mask is unknown, or depends on the version of Keras."""
    raise ValueError(
        "it is given a mask by an Embedding with mask_zero or a Masking layer, which is not "
        "supported"
    )


def dropped(config: Mapping[str, Any], masks: list[Any]) -> Any:
    """Returns ``None``: the output has no mask."""
    return None


def forgotten(config: Mapping[str, Any], masks: list[Any]) -> Any:
    """Returns ``None``: operations on arrays do not handle masks."""
    return None


def handed_on(config: Mapping[str, Any], masks: list[Any]) -> Any:
    """Returns the mask of the first input."""
    return masks[0]


def merged(config: Mapping[str, Any], masks: list[Any]) -> Any:
    """Returns the steps that count in any input if all have masks; with ``"all"``, in all masks."""
    known = [mask for mask in masks if mask is not None]
    if config.get(MASKS) == "all":
        return functools.reduce(operator.and_, known)
    return functools.reduce(operator.or_, known) if len(known) == len(masks) else None
