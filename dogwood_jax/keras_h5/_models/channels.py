"""Sizes that no array of a grown model has: shapes of Reshape, groups of GroupNormalization.

Their configs have them as they were before. Where the input of a Reshape is larger than its config
says, one axis of the output has grown. Which, the layers that read the output say by their weights;
or there is only one that it can be. Where a GroupNormalization has more channels, there are more
groups or larger ones.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from dogwood_jax.keras_h5._kinds.weight import Config
from dogwood_jax.keras_h5._models.graph import Graph, refs_in

# Layers whose outputs have the channels of their inputs, and do not tell how many.
_PASS = {
    *("Activation", "ELU", "LeakyReLU", "ReLU", "ThresholdedReLU", "Dropout", "GaussianNoise"),
    *("GaussianDropout", "AlphaDropout", "ActivityRegularization", "Add", "Average", "Maximum"),
    *("Minimum", "Multiply", "Subtract"),
    *(
        f"{kind}{rank}D"
        for rank in (1, 2, 3)
        for kind in ("SpatialDropout", "ZeroPadding", "Cropping", "UpSampling", "MaxPooling")
    ),
    *(f"AveragePooling{rank}D" for rank in (1, 2, 3)),
}
_NORMS = {"BatchNormalization", "LayerNormalization", "GroupNormalization", "RMSNormalization"}


def read_channels(graph: Graph, params: Mapping[str, Any]) -> dict[str, int]:
    """Returns how many channels are read of each Reshape, where the weights of readers tell.

    Args:
        graph: the model.
        params: parameters of Flax by layer, of whatever sizes.

    Raises:
        ValueError: if readers contradict each other.
    """
    readers: dict[str, set[str]] = {}
    for call in graph.calls:
        for ref in refs_in([call.args, call.kwargs]):
            readers.setdefault(ref.layer, set()).add(call.layer)
    found: dict[str, int] = {}
    for name, (class_name, reshape) in graph.layers.items():
        if class_name != "Reshape" or "target_shape" not in reshape:  # keras.ops.reshape has none
            continue
        sizes: set[int] = set()
        queue, seen = [name], {name}
        for layer in queue:  # which grows
            for reader in sorted(readers.get(layer, set()) - seen):
                seen.add(reader)
                kind, config = graph.layers[reader]
                if _is_unclear(reshape["target_shape"], kind, config, params.get(reader, {})):
                    raise ValueError(
                        f"{name}: whether the channels or the depth_multiplier of {reader} have "
                        "grown is not known, because its target_shape has a -1"
                    )
                size = _read(kind, config, params.get(reader, {}))
                if size is not None:
                    sizes.add(size)
                elif kind in _PASS and config.get("data_format") != "channels_first":
                    queue.append(reader)
        if len(sizes) > 1:
            raise ValueError(f"{name}: its readers expect {sorted(sizes)} channels")
        if sizes:
            found[name] = sizes.pop()
    return found


def _is_unclear(
    target: Sequence[int], class_name: str, config: Config, params: Mapping[str, Any]
) -> bool:
    """Whether a depthwise kernel has grown without telling if it is for more channels."""
    depthwise = class_name.startswith(("DepthwiseConv", "SeparableConv"))
    if not depthwise or -1 not in target[:-1] or config.get("data_format") == "channels_first":
        return False
    layer = params.get("depthwise", params)
    size = target[-1] * int(config.get("depth_multiplier", 1))
    return "kernel" in layer and bool(layer["kernel"].shape[-1] != size)


def _read(class_name: str, config: Config, params: Mapping[str, Any]) -> int | None:
    """Returns how many channels a layer reads, as its weights tell."""
    if not params or config.get("data_format") == "channels_first":
        return None
    if class_name in _NORMS and config.get("axis", -1) in (-1, [-1], (-1,)):
        arrays = [params[name] for name in ("scale", "bias") if name in params]
        return int(arrays[0].shape[-1]) if arrays else None
    if class_name == "Dense" or class_name.startswith("Conv") and "LSTM" not in class_name:
        return int(params["kernel"].shape[-2]) * int(config.get("groups", 1))
    if class_name == "MultiHeadAttention":
        return int(params["query"]["kernel"].shape[0])
    if class_name == "Bidirectional":
        return _read("LSTM", {}, params["forward_rnn"])
    if class_name in ("SimpleRNN", "GRU", "LSTM"):
        gate = next(name for name in sorted(params["cell"]) if name.startswith("i"))
        return int(params["cell"][gate]["kernel"].shape[0])
    return None
