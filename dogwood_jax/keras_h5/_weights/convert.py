"""Converts the arrays of a Keras layer to those of the equivalent Flax layer, and back."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from dogwood_jax.keras_h5._files.errors import KerasFileError
from dogwood_jax.keras_h5._kinds.kind import Config, Path, layout

Collections = dict[str, dict[str, Any]]


def to_flax(
    class_name: str | None, config: Config, weights: Mapping[str, np.ndarray]
) -> Collections:
    """Returns the arrays of a Keras layer as the corresponding Flax layer has them.

    Args:
        class_name: the layer's class, ``"Conv2D"``. A model inside a model is a layer too. ``None``
            if it is not known; ``infer`` may find it.
        config: the layer's config, ``{}`` if it is not known.
        weights: the arrays in the file's order. Names are those of Keras, of which the last part
            counts (``"kernel"``, ``"lstm_cell_2/kernel"``), or positions (``"0"``, ``"cell/0"``).

    Returns:
        Nested dicts by collection: ``{"params": {"scale": ...}, "batch_stats": {"mean": ...}}``.
        ``params`` is always present. Weights without a counterpart, and weights of unknown classes,
        are in ``params`` under their own names.

    Raises:
        KerasFileError: if the arrays do not fit the class.

    Example:
        >>> import numpy as np
        >>> one = np.ones(3)
        >>> arrays = {"gamma": one, "moving_mean": 0 * one, "moving_variance": one}
        >>> collections = to_flax("BatchNormalization", {"center": False}, arrays)
        >>> {name: list(arrays) for name, arrays in collections.items()}
        {'params': ['scale'], 'batch_stats': ['mean', 'var']}
    """
    expected = {weight.name: weight for weight in layout(class_name, config)}
    collections: Collections = {"params": {}}
    for name, array in canonical(class_name, config, weights).items():
        if name in expected and expected[name].repeats:
            continue
        if name in expected:
            places = expected[name].places
            try:
                parts = expected[name].to_flax(array)
            except ValueError as error:
                raise KerasFileError(
                    f"{class_name} weight {name}: expected an array of {len(places)} parts, got "
                    f"shape {array.shape}"
                ) from error
        else:
            places, parts = (("params", *name.split("/")),), [array]
        for place, part in zip(places, parts):
            _set(collections, place, part)
    return collections


def to_keras(
    class_name: str | None, config: Config, collections: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """Returns the arrays of a Flax layer as the corresponding Keras layer has them.

    The inverse of ``to_flax``, bit by bit.

    Args:
        class_name: the Keras layer's class.
        config: its config.
        collections: the result of ``to_flax``, in any sizes.

    Returns:
        The arrays in Keras's order by their paths in the Keras layer, ``"kernel"`` or
        ``"cell/kernel"``, followed by arrays without a counterpart.

    Raises:
        ValueError: if arrays are missing; the error names all of them.
    """
    found = dict(leaves_of(collections))
    weights = {}
    missing = []
    for weight in layout(class_name, config):
        absent = [place for place in weight.places if place not in found]
        if len(absent) < len(weight.places):
            missing += absent
        if not absent:
            weights[weight.name] = weight.to_keras([found[p] for p in weight.places])
    if missing:
        places = ", ".join(map("/".join, missing))
        raise ValueError(f"{class_name}: expected arrays at {places}; found none")
    known = {place for weight in layout(class_name, config) for place in weight.places}
    return weights | {"/".join(p[1:]): array for p, array in found.items() if p not in known}


def canonical(
    class_name: str | None, config: Config, weights: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Returns the arrays under the names of ``layout``, in their given order.

    Names in files start with arbitrary prefixes. So arrays are identified by the last part of their
    names if these parts differ, and by position otherwise.
    """
    expected = [weight.name for weight in layout(class_name, config)]
    if not expected or weights.keys() <= {*expected}:
        return dict(weights)
    last = [last_part(name) for name in weights]
    if len(expected) == len(last) == 1 and last[0].startswith("variable"):
        names = expected  # in Keras 3, unnamed weights are variable, variable_1, ...
    elif all(part.isdigit() for part in last):
        names = [_at_position(class_name, expected, name) for name in weights]
    elif len({name.rsplit("/", 1)[-1] for name in expected}) == len(expected):
        # In Keras 3 the kernel of a depthwise convolution is called kernel.
        by_last = {name.rsplit("/", 1)[-1]: name for name in expected}
        by_last |= {"kernel": "depthwise_kernel"} if "depthwise_kernel" in expected else {}
        by_last |= {"kernel": "embeddings"} if "embeddings" in expected else {}  # in Keras 1
        names = [by_last.get(part, name) for part, name in zip(last, weights)]
    else:
        names = expected
        if [name.rsplit("/", 1)[-1] for name in expected] != last:
            raise _unlike(class_name, expected, weights)
    if len({*names}) < len(weights):
        raise _unlike(class_name, expected, weights)
    return dict(zip(names, weights.values()))


# Names of weights in Keras 1, which follow the layer's name: dense_1_W.
_KERAS_1 = {
    "W": "kernel",
    "U": "recurrent_kernel",
    "b": "bias",
    "alphas": "alpha",
    "gamma": "gamma",
    "beta": "beta",
    "running_mean": "moving_mean",
    "running_std": "moving_variance",  # a variance, despite its name
}


def last_part(name: str) -> str:
    """Returns the name of a weight within its layer, without any prefix of the file."""
    last = name.rsplit("/", 1)[-1]
    if gate := re.search("_([WUb]_[a-z])$", last):  # Keras 1
        return gate[1]
    for old, new in _KERAS_1.items():
        if last.endswith(f"_{old}"):
            return new
    return last


def _at_position(class_name: str | None, expected: list[str], position: str) -> str:
    """Returns the name of a weight from its inner layer, if any, and its number there."""
    *holder, number = (part.lstrip("_") for part in position.split("/") if part != "vars")
    inside = [name for name in expected if name.split("/")[:-1] == holder]
    if not holder:
        inside = inside or expected
    index = int(number)
    if index >= len(inside):
        raise KerasFileError(
            f"{class_name}: expected {len(inside)} weights ({', '.join(inside)}); found one at "
            f"{position}"
        )
    return inside[index]


def _unlike(
    class_name: str | None, expected: list[str], weights: Mapping[str, np.ndarray]
) -> KerasFileError:
    return KerasFileError(
        f"{class_name}: expected the weights {', '.join(expected)}; found {', '.join(weights)}"
    )


def _set(tree: dict[str, Any], place: Path, leaf: Any) -> None:
    *parents, name = place
    for parent in parents:
        tree = tree.setdefault(parent, {})
    tree[name] = leaf


def leaves_of(tree: Mapping[str, Any], path: Path = ()) -> Iterable[tuple[Path, Any]]:
    """Yields the leaves of nested dicts with their paths."""
    for name, branch in tree.items():
        if isinstance(branch, Mapping):
            yield from leaves_of(branch, (*path, name))
        else:
            yield (*path, name), branch
