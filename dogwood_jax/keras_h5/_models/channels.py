"""Sizes that no array of a grown model has: shapes of Reshape, groups of GroupNormalization.

Their configs have them as they were before. Where the input of a Reshape is larger than its config
says, one axis of the output has grown. Which, the layers that read the output say by their weights;
or there is only one that it can be. A count, as of a RepeatVector, that is read as channels is what
the weights of its readers say, too. Where a GroupNormalization has more channels, there are more
groups or larger ones.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from dogwood_jax.keras_h5._kinds.kind import Config, kind_of
from dogwood_jax.keras_h5._models.graph import Graph, refs_in


def read_channels(
    graph: Graph, params: Mapping[str, Any], *, of_inputs: bool = False
) -> dict[str, int]:
    """Returns how many channels are read of each layer with a count, where weights of readers tell.

    Args:
        graph: the model.
        params: parameters of Flax by layer, of whatever sizes.
        of_inputs: whether of the model's inputs, rather than of all other layers.

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
        for layer, axis in queue:  # which grows
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
                        f"{name}: whether the channels or the depth_multiplier of {reader} have "
                        "grown is not known, because its target_shape has a -1"
                    )
                if config.get("data_format") == "channels_first":
                    continue
                size = kind.reads(config, arrays) if arrays else None
                if size is not None:
                    sizes.add(size)
                elif kind.passes_channels and count != 1:  # one may be repeated for all others
                    queue.append((reader, axis))
        if len(sizes) > 1:
            raise ValueError(f"{name}: its readers expect {sorted(sizes)} channels")
        if sizes and count is not None:
            found[name] = sizes.pop()
    return found


def _is_unclear(
    target: Sequence[int], class_name: str, config: Config, params: Mapping[str, Any]
) -> bool:
    """Whether a depthwise kernel has grown without telling if it is for more channels."""
    depthwise = "depthwise_kernel" in kind_of(class_name).axes(config)
    if not depthwise or -1 not in target[:-1] or config.get("data_format") == "channels_first":
        return False
    layer = params.get("depthwise", params)
    size = target[-1] * int(config.get("depth_multiplier", 1))
    return "kernel" in layer and bool(layer["kernel"].shape[-1] != size)
