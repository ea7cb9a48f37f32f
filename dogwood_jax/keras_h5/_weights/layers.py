"""Layers of a file, and the conversion of their arrays to Flax and back.

A model inside a model is a layer that holds layers. ``convert`` converts layers of a single class.
This file splits inner models into layers, so a layer of an unknown class does not prevent the
conversion of the others.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from dogwood_jax.keras_h5._files.errors import KerasFileError
from dogwood_jax.keras_h5._files.hdf5 import Dataset, checked_array
from dogwood_jax.keras_h5._kinds.kind import Config, layout
from dogwood_jax.keras_h5._kinds.nested import MODELS, layer_name, layers_of
from dogwood_jax.keras_h5._kinds.quantized import refusal
from dogwood_jax.keras_h5._weights.convert import Collections, canonical, to_flax, to_keras
from dogwood_jax.keras_h5._weights.infer import infer
from dogwood_jax.keras_h5._weights.shapes import check_shapes, fits


@dataclass(frozen=True)
class Layer:
    """One layer of a model; a model inside a model is a layer too.

    Attributes:
        name: the layer's own name.
        class_name: its class in Keras, ``None`` if neither the file nor its weights determine it.
        config: its config, as far as it is known.
        weights: arrays in the file's order, not read yet, by the names of ``layout``; for unknown
            classes, by the names in the file.
        state: arrays other than weights: the states of random generators.
    """

    name: str
    class_name: str | None
    config: Config
    weights: Mapping[str, Dataset]
    state: Mapping[str, Dataset] = field(default_factory=dict)

    @property
    def unconverted(self) -> tuple[str, ...]:
        """Names of the weights that have no counterpart in Flax."""
        return tuple(unconverted(self.class_name, self.config, self.weights))


def make_layer(
    name: str, class_name: str | None, config: Config, weights: Mapping[str, Dataset]
) -> Layer:
    """Checks arrays and returns the layer that holds them, in the file's order.

    Raises:
        KerasFileError: if an item is not an array, or arrays contradict each other or the config.
    """
    state = {n: d for n, d in weights.items() if _is_state(n, checked_array(d))}
    weights = {n: d for n, d in weights.items() if n not in state}
    try:
        if class_name is None:
            class_name, config = infer(weights, name)
            if not _fit(class_name, config, weights):
                class_name, config = None, {}
        named = _named(class_name, config, weights)
        _check(class_name, config, named)
    except KerasFileError as error:
        why = None if class_name in MODELS else refusal(class_name, config, weights.values())
        hint = f"{why}; save the model before quantize(); " if why else ""
        raise KerasFileError(f"at layer {name!r} ({class_name}): {hint}{error}") from None
    return Layer(name, class_name, config, named, state)


def _is_state(name: str, dataset: Dataset) -> bool:
    """Returns whether an array is the state of a random generator, as in dropout layers."""
    return dataset.dtype.kind in "ui" and "seed_generator" in name


def _inner(
    class_name: str | None, config: Config, items: Mapping[str, Any]
) -> list[tuple[str, str | None, Config, dict[str, Any]]]:
    """Returns the layers of a model with their items; the class of unknown layers is ``None``."""
    entries = {layer_name(entry): entry for entry in layers_of(config)}
    names = {*entries, *(name.partition("/")[0] for name in items)}
    split: dict[str, dict[str, Any]] = {
        name: {} for name in (*entries, *sorted(names - {*entries}))
    }
    for name, item in items.items():
        holder, _, rest = name.partition("/")
        split[holder][rest] = item
    nothing: Config = {"class_name": None, "config": {}}
    return [
        (name, entries.get(name, nothing)["class_name"], entries.get(name, nothing)["config"], part)
        for name, part in split.items()
    ]


def _named(class_name: str | None, config: Config, weights: Mapping[str, Any]) -> dict[str, Any]:
    """Returns arrays under the names of ``layout``."""
    if class_name in MODELS:
        entries = {layer_name(entry) for entry in layers_of(config)}
        if all("/" in name and name.partition("/")[0] in entries for name in weights):
            named: dict[str, Any] = {}
            for name, kind, details, part in _inner(class_name, config, weights):
                inside = _named(kind, details, part).items()
                named |= {f"{name}/{rest}": item for rest, item in inside}
            return named
    return canonical(class_name, config, weights)


def _fit(class_name: str | None, config: Config, weights: Mapping[str, Any]) -> bool:
    """Returns whether arrays have as many axes as expected for the class that names suggest."""
    if class_name in MODELS:
        return all(_fit(*layer[1:]) for layer in _inner(class_name, config, weights))
    return fits(class_name, config, _named(class_name, config, weights))


def _check(class_name: str | None, config: Config, weights: Mapping[str, Any]) -> None:
    """Raises if arrays are missing or contradict each other."""
    if class_name in MODELS:
        for name, kind, details, part in _inner(class_name, config, weights):
            try:
                _check(kind, details, part)
            except KerasFileError as error:
                raise KerasFileError(f"layer {name!r} ({kind}): {error}") from None
        return
    once = {weight.name for weight in layout(class_name, config) if not weight.repeats}
    missing = once - weights.keys()
    if weights and missing:
        raise KerasFileError(
            f"expected the weights {', '.join(sorted(missing))} too; found {', '.join(weights)}"
        )
    check_shapes(class_name, config, weights)


def unconverted(
    class_name: str | None, config: Config, weights: Mapping[str, Any]
) -> Iterator[str]:
    """Yields the names of weights that have no counterpart in Flax."""
    if class_name in MODELS:
        for name, kind, details, part in _inner(class_name, config, weights):
            yield from (f"{name}/{rest}" for rest in unconverted(kind, details, part))
    else:
        known = {weight.name for weight in layout(class_name, config)}
        yield from (name for name in weights if name not in known)


def collections_of(
    class_name: str | None, config: Config, weights: Mapping[str, Any]
) -> Collections:
    """Returns a layer's arrays as Flax has them: ``{"params": ..., "batch_stats": ...}``."""
    if class_name not in MODELS:
        return to_flax(class_name, config, weights)
    collections: Collections = {"params": {}}
    for name, kind, details, part in _inner(class_name, config, weights):
        if not part:
            continue
        if "" in part:  # an array of the model itself
            collections["params"][name] = part.pop("")
            continue
        for collection, tree in collections_of(kind, details, part).items():
            if tree:
                collections.setdefault(collection, {})[name] = tree
    return collections


def weights_of(
    class_name: str | None, config: Config, collections: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns a layer's arrays as Keras has them: the inverse of ``collections_of``."""
    if class_name not in MODELS:
        return to_keras(class_name, config, collections)
    entries = {layer_name(entry): entry for entry in layers_of(config)}
    names = dict.fromkeys(name for tree in collections.values() for name in tree)
    weights: dict[str, Any] = {}
    for name in (*(n for n in entries if n in names), *(n for n in names if n not in entries)):
        inside = {c: tree[name] for c, tree in collections.items() if name in tree}
        if not all(isinstance(tree, Mapping) for tree in inside.values()):
            weights[name] = inside["params"]
            continue
        entry = entries.get(name, {"class_name": None, "config": {}})
        part = weights_of(entry["class_name"], entry["config"], inside)
        weights |= {f"{name}/{rest}": array for rest, array in part.items()}
    order = {w.name: i for i, w in enumerate(layout(class_name, config))}
    return dict(sorted(weights.items(), key=lambda item: order.get(item[0], len(order))))
