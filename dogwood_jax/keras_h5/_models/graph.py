"""Reads the calls of layers from a Keras model's config, in an executable order: ``parse``."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from dogwood_jax.keras_h5._kinds.kind import Config
from dogwood_jax.keras_h5._kinds.nested import MODELS, layer_name, layers_of

ALL = -1  # index for all arrays that a call returns


class Ref(NamedTuple):
    """An array that a call of a layer returns: the layer, the number of the call, the index."""

    layer: str
    call: int
    output: int


@dataclass(frozen=True)
class Call:
    """A call of a layer. Its arguments contain references in place of arrays."""

    layer: str
    number: int
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass(frozen=True)
class Graph:
    """A model as layers and calls.

    Attributes:
        layers: class and config by name, in the order of the config.
        calls: the calls, each after those whose results it reads.
        inputs: references to the model's inputs, in nested lists or dicts as the model takes them.
        outputs: references to the model's outputs, in the same form.
        masks_are_given: whether calls of recurrent layers name their masks, as in Keras 3.
    """

    layers: dict[str, tuple[str, Config]]
    calls: list[Call]
    inputs: Any
    outputs: Any
    masks_are_given: bool = False

    def after(self, call: Call) -> list[Call]:
        """Returns the calls that depend on this one."""
        results, found = {(call.layer, call.number)}, []
        for other in self.calls:  # in an executable order
            if results & {ref[:2] for ref in refs_in([other.args, other.kwargs])}:
                results.add((other.layer, other.number))
                found.append(other)
        return found


def parse(class_name: str, config: Config) -> Graph:
    """Returns the graph of a model's config; raises ``KeyError`` or ``ValueError`` if not valid."""
    if class_name not in MODELS:
        raise ValueError(
            "its class is not part of Keras, and its code is not in the file; load reads its "
            "weights, for a module of your own"
        )
    layers = {layer_name(layer): layer for layer in layers_of(config)}
    if len(layers) < len(layers_of(config)):
        raise ValueError("two layers have the same name")
    described = {name: (layer["class_name"], layer["config"]) for name, layer in layers.items()}
    if class_name == "Sequential":
        calls, last = [], Ref("", 0, 0)
        for name in layers:
            calls.append(Call(name, 0, (last,), {}))
            last = Ref(name, 0, ALL)
        return Graph(described, calls, Ref("", 0, 0), last)
    inputs, outputs = (
        replaced(config[key], _ref_of_list(layers)) for key in ("input_layers", "output_layers")
    )
    calls = [
        Call(name, number, *_arguments(node, layers))
        for name, layer in layers.items()
        for number, node in enumerate(layer["inbound_nodes"])
    ]
    refs = list(refs_in([inputs, outputs, *([call.args, call.kwargs] for call in calls)]))
    new = _renumbered(refs, {name: len(layer["inbound_nodes"]) for name, layer in layers.items()})

    def renumber(tree: Any) -> Any:
        return replaced(tree, lambda ref: new[ref] if isinstance(ref, Ref) else None)

    inputs, outputs = renumber(inputs), renumber(outputs)
    calls = [
        replace(call, args=renumber(call.args), kwargs=renumber(call.kwargs)) for call in calls
    ]
    nodes = [node for layer in layers.values() for node in layer["inbound_nodes"]]
    given = any(isinstance(node, Mapping) for node in nodes)
    return Graph(described, _sorted(calls, inputs), inputs, outputs, given)


def replaced(tree: Any, new: Callable[[Any], Any]) -> Any:
    """Returns nested lists and dicts in which ``new(part)``, unless ``None``, replaces a part."""
    if (value := new(tree)) is not None:
        return value
    if isinstance(tree, Mapping):
        return {key: replaced(branch, new) for key, branch in tree.items()}
    if isinstance(tree, list | tuple):
        return [replaced(branch, new) for branch in tree]
    return tree


def refs_in(tree: Any) -> Iterator[Ref]:
    """Yields the references in nested lists and dicts, those of dicts sorted by key."""
    if isinstance(tree, Ref):
        yield tree
    elif isinstance(tree, Mapping):
        for key in sorted(tree):
            yield from refs_in(tree[key])
    elif isinstance(tree, list | tuple):
        for branch in tree:
            yield from refs_in(branch)


def _ref_of_list(layers: Mapping[str, Any]) -> Callable[[Any], Ref | None]:
    """Returns a reader of Keras 2 references, ``[layer, call, output]``, perhaps with keywords."""

    def ref(value: Any) -> Ref | None:
        if not isinstance(value, list | tuple) or len(value) not in (3, 4):
            return None
        name, *numbers = value[:3]
        if isinstance(name, str) and name in layers and all(type(n) is int for n in numbers):
            return Ref(name, *numbers)
        return None

    return ref


def _ref_of_tensor(value: Any) -> Any:
    """Reads a dict of Keras 3 that stands for a reference, a slice or a constant."""
    if not isinstance(value, Mapping):
        return None
    if value.get("class_name") in ("__numpy__", "__tensor__"):
        return _constant(**value["config"])
    if value.get("class_name") == "__keras_tensor__":
        name, call, output = value["config"]["keras_history"]
        return Ref(name, call, output)
    if value.get("class_name") == "__slice__":
        bounds = value["config"]
        return slice(bounds["start"], bounds["stop"], bounds["step"])
    return None


def _constant(value: Any, dtype: str = "float32") -> np.ndarray:
    """Returns an array that a config contains; before Keras 3.4 its dtype is not stored."""
    array = np.asarray(value, jnp.dtype(dtype))
    if not jnp.issubdtype(array.dtype, jnp.number):
        raise ValueError(f"a constant of dtype {dtype!r} is not supported")
    return array


def _arguments(node: Any, layers: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Returns the arguments of one call."""
    if isinstance(node, Mapping):  # Keras 3
        args, kwargs = (replaced(node[key], _ref_of_tensor) for key in ("args", "kwargs"))
        return tuple(args), _given(kwargs)
    ref = _ref_of_list(layers)
    if isinstance(node[0], str):  # a single array without a list
        node = [node]
    first = node[0]
    args = [item[2] if item[0] == "_CONSTANT_VALUE" else ref(item) for item in node]
    if None in args:
        raise ValueError(f"expected layers of the model, got {node!r}")
    kwargs = first[3] if len(first) > 3 else {}
    return (args[0] if len(args) == 1 else args,), _given(replaced(kwargs, ref))


def _given(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Leaves out arguments without effect on evaluation, such as ``mask=[None, None]``."""

    def says_nothing(value: Any) -> bool:
        return value is None or (
            isinstance(value, list) and len(value) > 0 and all(map(says_nothing, value))
        )

    return {
        key: value
        for key, value in kwargs.items()
        if key not in ("training", "name") and not says_nothing(value)
    }


def _renumbered(refs: list[Ref], calls: Mapping[str, int]) -> dict[Ref, Ref]:
    """Returns references with calls counted from zero, without gaps.

    Configs count an inner model's calls from one if Keras built it by calling it, and early Keras 3
    also counts calls outside the model. But each call inside the model has a reference to it.
    """
    new: dict[Ref, Ref] = {}
    for layer in {ref.layer for ref in refs}:
        numbers = sorted({ref.call for ref in refs if ref.layer == layer})
        known = calls.get(layer) or 1  # inputs have no calls in the config
        if len(numbers) < known and numbers[-1] < known:
            numbers = list(range(known))
        if layer not in calls or len(numbers) != known:
            raise ValueError(f"expected {known} calls of {layer!r}, got references to {numbers}")
        new |= {r: r._replace(call=numbers.index(r.call)) for r in refs if r.layer == layer}
    return new


def _sorted(calls: list[Call], inputs: Any) -> list[Call]:
    """Returns the calls, each after those that it depends on."""
    done = {ref[:2] for ref in refs_in(inputs)}
    waits = {i: {r[:2] for r in refs_in([c.args, c.kwargs])} - done for i, c in enumerate(calls)}
    waiting: dict[tuple[str, int], list[int]] = {}
    for i, results in waits.items():
        for result in results:
            waiting.setdefault(result, []).append(i)
    ready = [i for i, results in waits.items() if not results]
    order = []
    for i in ready:  # the loop extends the list
        order.append(calls[i])
        result = (calls[i].layer, calls[i].number)
        for other in waiting.get(result, ()):
            waits[other].discard(result)
            if not waits[other]:
                ready.append(other)
    if len(order) < len(calls):
        stuck = sorted({calls[i].layer for i, results in waits.items() if results})
        raise ValueError(f"the layers {', '.join(stuck)} depend on each other or on missing layers")
    return order
