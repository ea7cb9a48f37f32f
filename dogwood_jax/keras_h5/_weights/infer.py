"""Infers the class of a layer if a file or a tree does not contain it.

Files of ``save_weights`` name layers and weights, but not classes. The names and shapes of weights
identify most classes.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from dogwood_jax.keras_h5._kinds.kind import EITHER, KINDS, Config, layout
from dogwood_jax.keras_h5._kinds.recurrent import BY_GATES
from dogwood_jax.keras_h5._weights.convert import last_part


def infer(weights: Mapping[str, np.ndarray], layer: str = "") -> tuple[str | None, dict[str, Any]]:
    """Returns a class and config with which ``to_flax`` converts a layer's arrays.

    Args:
        weights: the arrays in the file's order, by name: ``"kernel"``, or ``"dense_1/kernel"`` in a
            layer that holds others.
        layer: the layer's name, which decides if arrays cannot: Keras names a transposed
            convolution ``conv2d_transpose_1``.

    Returns:
        The class, ``None`` if it is not known, and as much of a config as conversion needs. A layer
        that holds several others of different names counts as a model.

    Example:
        >>> import numpy as np
        >>> infer({"kernel": np.ones((5, 8)), "recurrent_kernel": np.ones((2, 8))})
        ('LSTM', {'use_bias': False})
    """
    parts = {name.partition("/")[0] for name in weights if "/" in name}
    if not parts:
        return _of_arrays({last_part(name): array for name, array in weights.items()}, layer)
    inside = {
        part: {n.partition("/")[2]: a for n, a in weights.items() if n.startswith(f"{part}/")}
        for part in parts
    }
    if sum(map(len, inside.values())) < len(weights):  # some weights are the layer's own
        return None, {}
    if parts == {*KINDS["MultiHeadAttention"].inner_names.values()}:
        return "MultiHeadAttention", {"use_bias": "query/bias" in weights}
    layers = {part: infer(arrays, part) for part, arrays in inside.items()}
    described = {
        part: {"class_name": class_name, "config": {"name": part, **config}}
        for part, (class_name, config) in layers.items()
    }
    if len(parts) == 1 and layers[part := parts.pop()][0] in BY_GATES.values():
        return layers[part]  # the cell of a recurrent layer
    directions = sorted(parts, reverse=True)
    if [name.partition("_")[0] for name in directions] == ["forward", "backward"]:
        forward, backward = (described[name] for name in directions)
        return "Bidirectional", {"layer": forward, "backward_layer": backward}
    order = dict.fromkeys(name.partition("/")[0] for name in weights)
    return "Functional", {"layers": [described[part] for part in order]}


def _of_arrays(arrays: Mapping[str, np.ndarray], layer: str) -> tuple[str | None, dict[str, Any]]:
    """Infers a layer from the last parts of its weights' names, and from their shapes."""
    names = arrays.keys()
    shapes = {name: array.shape for name, array in arrays.items()}
    bias = {"use_bias": "bias" in names}
    if "recurrent_kernel" in names and len(shapes["recurrent_kernel"]) == 2:
        units, columns = shapes["recurrent_kernel"]
        reset_after = {"reset_after": len(shapes.get("bias", ())) == 2}
        class_name = BY_GATES.get(columns // max(units, 1))
        return class_name, bias | (reset_after if class_name == "GRU" else {})
    if "depthwise_kernel" in names:
        rank = len(shapes["depthwise_kernel"]) - 2
        kind = "SeparableConv" if "pointwise_kernel" in names else "DepthwiseConv"
        return f"{kind}{rank}D", bias | {"depth_multiplier": shapes["depthwise_kernel"][-1]}
    if "kernel" in names and names <= {"kernel", "bias"}:
        return _of_kernel(shapes, layer)
    norm = {"scale": "gamma" in names, "center": "beta" in names}
    if "gamma_or_beta" in names:
        norm[EITHER] = True
    if names >= {"moving_mean", "moving_variance"}:
        return "BatchNormalization", norm
    if names and names <= {"gamma", "beta"}:
        return "LayerNormalization", norm
    for class_name in ("Normalization", "Embedding", "PReLU"):
        if names == {weight.name for weight in layout(class_name, {})}:
            return class_name, {}
    if names == {"embeddings", "reverse_embeddings"}:
        return "ReversibleEmbedding", {"tie_weights": False}
    return None, {}


def _of_kernel(shapes: Mapping[str, tuple[int, ...]], layer: str) -> tuple[str, dict[str, Any]]:
    """Infers the kind of convolution: all have kernels of the same axes, in different roles."""
    *space, rows, columns = (1, 1, *shapes["kernel"])[-max(len(shapes["kernel"]), 2) :]
    use_bias = "bias" in shapes
    config: dict[str, Any] = {"use_bias": use_bias}
    if not 1 <= len(space) <= 3:
        return "Dense", config
    # The size of the bias in each kind of layer.
    kinds = {"Conv{}D": columns, "Conv{}DTranspose": rows, "DepthwiseConv{}D": rows * columns}
    fits = [k for k, size in kinds.items() if not use_bias or shapes["bias"] == (size,)]
    hints = {"Conv{}DTranspose": "transpose", "DepthwiseConv{}D": "depthwise"}
    named = [kind for kind in fits if kind in hints and hints[kind] in layer]
    kind = (named or fits or ["Conv{}D"])[0]
    if kind.startswith("Depthwise"):
        config["depth_multiplier"] = columns
    return kind.format(len(space)), config


def infer_flax(collections: Mapping[str, Any]) -> tuple[str | None, dict[str, Any]]:
    """Returns a class and config with which ``to_keras`` converts a Flax layer's arrays.

    The counterpart of ``infer``. A plain, a transposed and a depthwise convolution look the same in
    Flax. The result for all of them is ``"Dense"``; ``write.told`` refines it.

    Example:
        >>> infer_flax({"params": {"scale": 1.0}, "batch_stats": {"mean": 0.0, "var": 1.0}})
        ('BatchNormalization', {'scale': True, 'center': False})
    """
    params = collections.get("params", {})
    stats = collections.get("batch_stats", {})
    names = {*params, *stats}
    norm = {"scale": "scale" in params, "center": "bias" in params}
    either = {EITHER: True} if "scale_or_bias" in params else {}
    if {*stats} == {"mean", "var", "count"} and not params:
        return "Normalization", {}
    if {*stats} == {"mean", "var"} and names <= {"mean", "var", "scale", "bias", "scale_or_bias"}:
        return "BatchNormalization", norm | either
    if names == {"cell"}:
        return _of_cell(params["cell"])
    if names == {"query", "key", "value", "out"}:
        return "MultiHeadAttention", {"use_bias": "bias" in params["query"]}
    if names == {"depthwise", "pointwise"}:
        return f"SeparableConv{params['depthwise']['kernel'].ndim - 2}D", {
            "use_bias": "bias" in params["pointwise"]
        }
    if names == {"forward_rnn", "backward_rnn"}:
        forward, backward = (
            dict(zip(("class_name", "config"), infer_flax({"params": params[name]})))
            for name in ("forward_rnn", "backward_rnn")
        )
        return "Bidirectional", {"layer": forward, "backward_layer": backward}
    if names and all(isinstance(params.get(n, stats.get(n)), Mapping) for n in names):
        return "Functional", {"layers": [_described(n, collections) for n in {**params, **stats}]}
    if "scale" in names and names <= {"scale", "bias"}:
        return "LayerNormalization", norm
    if names == {"embedding"}:
        return "Embedding", {}
    if names == {"embedding", "reverse_embedding"}:
        return "ReversibleEmbedding", {"tie_weights": False}
    if names == {"negative_slope"}:
        return "PReLU", {}
    return ("Dense", {"use_bias": "bias" in names}) if "kernel" in names else (None, {})


def _of_cell(cell: Mapping[str, Any]) -> tuple[str | None, dict[str, Any]]:
    gates = {*cell}
    if gates == {"i", "h"}:
        return "SimpleRNN", {"use_bias": "bias" in cell["i"]}
    if gates == {"ir", "iz", "in", "hr", "hz", "hn"}:
        reset_after = {"reset_after": "bias" in cell["hr"]}
        return "GRU", {"use_bias": "bias" in cell["ir"], **reset_after}
    if gates == {source + gate for source in "ih" for gate in "ifgo"}:
        return "LSTM", {"use_bias": "bias" in cell["hi"]}
    return None, {}


def _described(name: str, collections: Mapping[str, Any]) -> Config:
    inside = {c: tree[name] for c, tree in collections.items() if name in tree}
    class_name, config = infer_flax(inside)
    return {"class_name": class_name, "config": {"name": name, **config}}
