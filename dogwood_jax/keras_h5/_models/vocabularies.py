"""Finds layers at the front of a model whose results become its inputs: ``left_out``."""

from collections.abc import Iterator

from dogwood_jax.keras_h5._kinds.kind import kind_of
from dogwood_jax.keras_h5._models.graph import Call, Graph, refs_in

Result = tuple[str, int]  # the result of a call: the layer and the number of the call


def left_out(graph: Graph) -> dict[str, str]:
    """Returns the layers that look up text or categories, by the input that each reads.

    Raises:
        ValueError: if such a layer is not at the front, or if another layer also reads its input.
    """
    names = [n for n, (kind, _) in graph.layers.items() if kind_of(kind).looked_up is not None]
    if not names:
        return {}
    inputs = _inputs(graph)
    readers: dict[Result, list[Call]] = {}
    for call in graph.calls:
        for result in _read(call):
            readers.setdefault(result, []).append(call)
    found: dict[str, str] = {}
    for name in names:
        calls = [call for call in graph.calls if call.layer == name]
        read = [result for call in calls for result in _read(call)]
        if len(read) != 1 or read[0] not in inputs:
            raise ValueError(
                f"{name} is not at the front of the model, so its result cannot become an input; "
                "save only the part of the model after it"
            )
        if others := [call.layer for call in readers[read[0]] if call.layer != name]:
            raise ValueError(
                f"the input of {name} is also read by {', '.join(others)}, so the result of the "
                "layer cannot replace this input; give each layer an input of its own"
            )
        found[inputs[read[0]]] = name
    return found


def _inputs(graph: Graph) -> dict[Result, str]:
    """Returns the results that are the model's inputs, with the names of these inputs."""
    found = {ref[:2]: ref.layer for ref in refs_in(graph.inputs)}
    for call in graph.calls:  # a Sequential model calls its InputLayer
        read = list(_read(call))
        if graph.layers[call.layer][0] == "InputLayer" and len(read) == 1 and read[0] in found:
            found[call.layer, call.number] = found.pop(read[0])
    return found


def _read(call: Call) -> Iterator[Result]:
    return (ref[:2] for ref in refs_in([call.args, call.kwargs]))
