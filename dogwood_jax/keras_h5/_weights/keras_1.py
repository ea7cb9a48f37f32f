"""Translates configs of Keras 1 to Keras 2: ``as_in_keras_2``.

Keras 2 has other names for most options, and for some layers. If the layout of arrays differs too,
the config gets the key ``KERAS_1``.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from dogwood_jax.keras_h5._kinds.kind import KERAS_1, Config

_DENSE = {"output_dim": "units", "bias": "use_bias"}
_RECURRENT = {"output_dim": "units", "inner_activation": "recurrent_activation"}
_CONVOLUTION = {
    "nb_filter": "filters",
    "border_mode": "padding",
    "bias": "use_bias",
    "subsample": "strides",
    "subsample_length": "strides",
    "atrous_rate": "dilation_rate",
}
_POOLING = {"border_mode": "padding", "pool_length": "pool_size", "stride": "strides"}
_RATE = {"p": "rate"}

# New names of options in Keras 2, by class.
_OPTIONS: dict[str, Mapping[str, str]] = {
    "Dense": _DENSE,
    "LSTM": _RECURRENT,
    "GRU": _RECURRENT,
    "SimpleRNN": _RECURRENT,
    "Convolution1D": _CONVOLUTION,
    "Convolution2D": _CONVOLUTION,
    "AtrousConvolution1D": _CONVOLUTION,
    "AtrousConvolution2D": _CONVOLUTION,
    "MaxPooling1D": _POOLING,
    "MaxPooling2D": _POOLING,
    "AveragePooling1D": _POOLING,
    "AveragePooling2D": _POOLING,
    "UpSampling1D": {"length": "size"},
    "Dropout": _RATE,
    "SpatialDropout1D": _RATE,
    "SpatialDropout2D": _RATE,
    "GaussianDropout": _RATE,
    "GaussianNoise": {"sigma": "stddev"},
    "InputLayer": {"input_dtype": "dtype"},
}
_CLASSES = {
    "Convolution1D": "Conv1D",
    "Convolution2D": "Conv2D",
    "AtrousConvolution1D": "Conv1D",
    "AtrousConvolution2D": "Conv2D",
}
_MERGES = {
    "sum": "Add",
    "mul": "Multiply",
    "ave": "Average",
    "max": "Maximum",
    "concat": "Concatenate",
}
_FORMATS = {"th": "channels_first", "tf": "channels_last"}
# Layers without an axis order in their config: they have that of the other layers.
_SILENT = ("ZeroPadding2D", "UpSampling2D", "Cropping2D")


def as_in_keras_2(config: Any, of_theano: bool) -> Any:
    """Returns a model's config in the form of Keras 2; only configs of Keras 1 are changed.

    Args:
        config: the config.
        of_theano: whether the model was computed by Theano, which flips kernels of convolutions.
    """
    orderings = {*_orderings(config)}
    ordering = orderings.pop() if len(orderings) == 1 else "tf"
    return _translated(config, _Origin(ordering, of_theano))


class _Origin(NamedTuple):
    """Facts missing in a config of Keras 1: the order of axes, and whether Theano computed it."""

    ordering: str
    is_theano: bool


def _orderings(tree: Any) -> Iterator[str]:
    """Yields the axis orders in the configs of Keras 1 layers, ``"th"`` or ``"tf"``."""
    if isinstance(tree, Mapping):
        if tree.get("dim_ordering") in _FORMATS:
            yield tree["dim_ordering"]
        tree = [*tree.values()]
    for branch in tree if isinstance(tree, list) else ():
        yield from _orderings(branch)


def _translated(tree: Any, origin: _Origin) -> Any:
    if isinstance(tree, list):
        return [_translated(branch, origin) for branch in tree]
    if not isinstance(tree, Mapping):
        return tree
    tree = {key: _translated(branch, origin) for key, branch in tree.items()}
    if isinstance(tree.get("class_name"), str) and isinstance(tree.get("config"), dict):
        tree["class_name"], tree["config"] = _layer(tree["class_name"], tree["config"], origin)
    return tree


def _layer(class_name: str, config: Config, origin: _Origin) -> tuple[str, Config]:
    """Returns the class and config of a layer in Keras 2."""
    if class_name == "Merge" and config.get("mode") in _MERGES and not config.get("layers"):
        new = {"name": config["name"]}
        if config["mode"] == "concat":
            new["axis"] = config["concat_axis"]
        return _MERGES[config["mode"]], new
    if class_name == "BatchNormalization" and config.get("mode", 0):
        return f"BatchNormalization with mode={config['mode']}", config
    options = _OPTIONS.get(class_name, {})
    is_old = not options.keys().isdisjoint(config)
    new = {options.get(key, key): value for key, value in config.items()}
    if "dim_ordering" in new:
        new["data_format"] = _FORMATS.get(new.pop("dim_ordering"))
    elif class_name in _SILENT and "data_format" not in new:
        new["data_format"] = _FORMATS[origin.ordering]
        padding = new.get("padding")
        if isinstance(padding, list) and len(padding) == 4:
            new["padding"] = [padding[:2], padding[2:]]
    if not is_old:
        return class_name, new
    if origin.is_theano and new.get("padding") == "same" and _is_even(new):
        return f"{class_name} of Theano with border_mode='same' and even sizes", new
    if class_name in _CLASSES:
        sizes = ("filter_length", "nb_row", "nb_col")
        new["kernel_size"] = [new[name] for name in sizes if name in new]
        turned = " turned" if origin.is_theano else ""
        new[KERAS_1] = config.get("dim_ordering", "1D") + turned
    elif class_name in ("LSTM", "GRU"):
        new[KERAS_1] = True
    return _CLASSES.get(class_name, class_name), new


def _is_even(config: Config) -> bool:
    """Returns whether a window has an even size, which Theano and TensorFlow pad differently."""
    names = ("filter_length", "nb_row", "nb_col", "pool_size")
    sizes = [size for name in names for size in np.ravel(config.get(name, 1))]
    return any(size % 2 == 0 for size in sizes)
