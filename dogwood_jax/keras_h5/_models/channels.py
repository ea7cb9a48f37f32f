"""Finds sizes that no array of a grown model has, such as the target shape of a Reshape.

The config still has the old sizes. If the input of a Reshape has grown, one axis of its output has
grown. The weights of the layers that read the output show which axis, or only one axis is possible.
If a count, such as that of a RepeatVector, is read as channels, the weights of its readers show it
too. If a GroupNormalization has more channels, it has more groups or larger ones.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from dogwood_jax.keras_h5._kinds.kind import Config, kind_of
from dogwood_jax.keras_h5._models.graph import Graph, refs_in


def read_channels(
    graph: Graph, params: Mapping[str, Any], *, of_inputs: bool = False
) -> dict[str, int]:
    """Returns the number of channels that the readers of each layer with a count expect, if known.

    Args:
        graph: the model.
        params: Flax parameters by layer, in any sizes.
        of_inputs: whether to return those of the model's inputs, not those of all other layers.

    Raises:
        ValueError: if readers contradict each other.
    """
    readers: dict[str, set[str]] = {}
    for call in graph.calls:
        for ref in refs_in([call.args, call.kwargs]):
            readers.setdefault(ref.layer, set()).add(call.layer)
    found: dict[str, int] = {}
    for name, (class_name, counting) in graph.layers.items():
        counted = kind_of(class_name).counted
        if counted is None or (class_name == "InputLayer") != of_inputs:
            continue
        axis, count = counted(counting)
        sizes: set[int] = set()
        queue, seen = [(name, axis)], {name}
        for layer, axis in queue:  # the loop extends the queue
            for reader in sorted(readers.get(layer, set()) - seen):
                seen.add(reader)
                reader_class, config = graph.layers[reader]
                arrays = params.get(reader, {})
                kind = kind_of(reader_class)
                if kind.moved_to is not None:
                    if (new := kind.moved_to(config, axis)) is not None:
                        queue.append((reader, new))
                    continue
                if axis != -1:
                    continue
                if _is_unclear(counting.get("target_shape", ()), reader_class, config, arrays):
                    raise ValueError(
                        f"{name}: cannot tell whether the channels or the depth_multiplier of "
                        f"{reader} have grown, because its target_shape has a -1"
                    )
                if config.get("data_format") == "channels_first":
                    continue
                size = kind.reads(config, arrays) if arrays else None
                if size is not None:
                    sizes.add(size)
                elif kind.passes_channels and count != 1:  # one channel may be broadcast
                    queue.append((reader, axis))
        if len(sizes) > 1:
            raise ValueError(f"{name}: its readers expect {sorted(sizes)} channels")
        if sizes and count is not None:
            found[name] = sizes.pop()
    return found


def _is_unclear(
    target: Sequence[int], class_name: str, config: Config, params: Mapping[str, Any]
) -> bool:
    """Returns whether a depthwise kernel has grown for an unknown cause: channels or multiplier."""
    depthwise = "depthwise_kernel" in kind_of(class_name).axes(config)
    if not depthwise or -1 not in target[:-1] or config.get("data_format") == "channels_first":
        return False
    layer = params.get("depthwise", params)
    size = target[-1] * int(config.get("depth_multiplier", 1))
    return "kernel" in layer and bool(layer["kernel"].shape[-1] != size)
