"""What configs mean that later versions of Keras read in another way."""

import re
from collections.abc import Mapping
from typing import Any

from dogwood_jax.keras_h5._kinds.activations import HARD_SIGMOID_2
from dogwood_jax.keras_h5._kinds.functions import MASKS
from dogwood_jax.keras_h5._kinds.images import BILINEAR_2_3
from dogwood_jax.keras_h5._kinds.weight import Config
from dogwood_jax.keras_h5._models.masks import HEADS, MERGES


def explicit(config: Config) -> Config:
    """Returns a model's config in which what depends on the version of Keras has names of its own.

    Args:
        config: ``{"class_name": ..., "config": {...}}``, with ``keras_version`` where it is known:
            ``"2.2.4-tf"`` is that of the Keras in TensorFlow.
    """
    version = str(config.get("keras_version") or "")
    number = tuple(map(int, re.findall("[0-9]+", version)[:2]))
    if not number:  # the newest; Keras 3 says of every layer where it is registered
        number = (3, 99) if "registered_name" in config else (2, 99)
    renamed: dict[tuple[str, str], str] = {}
    marks: dict[str, str] = {}
    if number < (3,):
        renamed |= {(key, "hard_sigmoid"): HARD_SIGMOID_2 for key in _ACTIVATIONS}
        marks |= dict.fromkeys((*MERGES, "Concatenate"), "all")
    elif number < (3, 4):
        marks |= dict.fromkeys((*MERGES, "Concatenate"), "ignored")
    else:
        marks |= dict.fromkeys(("Maximum", "Minimum", "Multiply"), "computed")
    if number < (2, 10):
        marks |= dict.fromkeys(HEADS, "ignored")
    if number >= (3, 8):
        marks["MultiHeadAttention"] = "taken"
    if number < (2, 4) and "tf" not in version:
        renamed["interpolation", "bilinear"] = BILINEAR_2_3
        marks["Bidirectional"] = "held"
    new: Config = _explicit(config, renamed, marks)
    return new


_ACTIVATIONS = ("activation", "recurrent_activation")


def _explicit(tree: Any, renamed: Mapping[tuple[str, str], str], marks: Mapping[str, str]) -> Any:
    if isinstance(tree, list | tuple):
        return [_explicit(branch, renamed, marks) for branch in tree]
    if not isinstance(tree, Mapping):
        return tree
    new: dict[str, Any] = {
        key: renamed.get((key, branch), branch)
        if isinstance(branch, str)
        else _explicit(branch, renamed, marks)
        for key, branch in tree.items()
    }
    if isinstance(new.get("config"), dict) and (mark := marks.get(str(new.get("class_name")))):
        new["config"][MASKS] = mark
    return new
