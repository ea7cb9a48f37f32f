"""What layers do with the masks of their inputs: which steps of a sequence count.

Each function returns the mask of a layer's output, from its config and the masks of its inputs,
which are ``None`` where there are none: arrays, or ``True`` to find out whether there will be one.
"""

import functools
import operator
from collections.abc import Mapping
from typing import Any

# In configs, beside what Keras has there, where the version of Keras decides:
# - "ignored": the layer knows of no masks
# - "all": of a sum, what the masks of all inputs agree on counts
# - "computed": in a product or extreme, what is masked does not count
# - "held": of a Bidirectional layer, a masked step has the output of the step before
# - "taken": attention takes the masks off its inputs, for layers that are called later
MASKS = "masks, says dogwood_jax"


def unknown(config: Mapping[str, Any], masks: list[Any]) -> Any:
    """Refuses: what becomes of the mask is not known, or depends on the version of Keras."""
    raise ValueError(
        "it is given a mask, from an Embedding with mask_zero or a Masking layer, and that is not "
        "supported"
    )


def dropped(config: Mapping[str, Any], masks: list[Any]) -> Any:
    """The output has no mask."""
    return None


def forgotten(config: Mapping[str, Any], masks: list[Any]) -> Any:
    """The output has no mask, as of operations on arrays, which know of none."""
    return None


def handed_on(config: Mapping[str, Any], masks: list[Any]) -> Any:
    """The output has the mask of the first input."""
    return masks[0]


def merged(config: Mapping[str, Any], masks: list[Any]) -> Any:
    """A step counts where it counts in one of the inputs, or in all of them."""
    known = [mask for mask in masks if mask is not None]
    if config.get(MASKS) == "all":
        return functools.reduce(operator.and_, known)
    return functools.reduce(operator.or_, known) if len(known) == len(masks) else None
