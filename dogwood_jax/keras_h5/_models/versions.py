"""What configs mean that later versions of Keras read in another way."""

import re
from collections.abc import Mapping
from typing import Any

from dogwood_jax.keras_h5._kinds.activations import HARD_SIGMOID_2
from dogwood_jax.keras_h5._kinds.images import BILINEAR_2_3, RANDOM_CROP_3_5, RANDOM_CROP_3_7
from dogwood_jax.keras_h5._kinds.kind import Config, kind_of
from dogwood_jax.keras_h5._kinds.masking import MASKS


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
    elif "tf" in version:  # where Keras was ahead of its number
        number = max(number, (2, 4))
    renamed: dict[tuple[str, str], str] = {}
    if number < (3,):
        renamed |= {(key, "hard_sigmoid"): HARD_SIGMOID_2 for key in _ACTIVATIONS}
    if number < (2, 4):
        renamed["interpolation", "bilinear"] = BILINEAR_2_3
    if number < (3, 8):
        old = RANDOM_CROP_3_5 if number < (3, 6) else RANDOM_CROP_3_7
        renamed["class_name", "RandomCrop"] = old
    new: Config = _explicit(config, renamed, number)
    return new


_ACTIVATIONS = ("activation", "recurrent_activation")


def _explicit(tree: Any, renamed: Mapping[tuple[str, str], str], version: tuple[int, ...]) -> Any:
    if isinstance(tree, list | tuple):
        return [_explicit(branch, renamed, version) for branch in tree]
    if not isinstance(tree, Mapping):
        return tree
    new: dict[str, Any] = {
        key: renamed.get((key, branch), branch)
        if isinstance(branch, str)
        else _explicit(branch, renamed, version)
        for key, branch in tree.items()
    }
    mark = kind_of(str(new.get("class_name"))).masks_in(version)
    if mark and isinstance(new.get("config"), dict):
        new["config"][MASKS] = mark
    return new
