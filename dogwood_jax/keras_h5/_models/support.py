"""Lists what is not supported in a model, and how supported models differ from Keras."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from dogwood_jax._base.problems import listed
from dogwood_jax.keras_h5._files.errors import KerasFileError
from dogwood_jax.keras_h5._kinds.activations import HARD_SIGMOID_2
from dogwood_jax.keras_h5._kinds.images import BILINEAR_2_3, RANDOM_CROP_3_5, RANDOM_CROP_3_7
from dogwood_jax.keras_h5._kinds.kind import NAMED, Config, kind_of
from dogwood_jax.keras_h5._kinds.masking import MASKS
from dogwood_jax.keras_h5._kinds.nested import MODELS, layer_name, layers_of
from dogwood_jax.keras_h5._models.graph import parse, refs_in
from dogwood_jax.keras_h5._models.groups import annotated
from dogwood_jax.keras_h5._models.masks import given_to, handed_on, seen_by, taken_off, unclear
from dogwood_jax.keras_h5._models.module import KerasLayers, make_layer
from dogwood_jax.keras_h5._models.vocabularies import left_out


def explicit(config: Config) -> Config:
    """Returns a model's config with own names for options whose meaning depends on the version.

    Args:
        config: ``{"class_name": ..., "config": {...}}``, with ``keras_version`` if it is known.
            ``"2.2.4-tf"`` is the Keras inside TensorFlow.
    """
    version = str(config.get("keras_version") or "")
    number = tuple(map(int, re.findall("[0-9]+", version)[:2]))
    if not number:  # assume the newest; only Keras 3 writes registered_name
        number = (3, 99) if "registered_name" in config else (2, 99)
    elif "tf" in version:  # the Keras in TensorFlow was ahead of its version number
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


_MAX_CALLS = 1 << 16  # calls of layers; nested models that call models multiply them

_TAKEN = {*dir(KerasLayers), "resized", "params"}  # names that modules use themselves

# Errors from reading a config that Keras did not write.
_ERRORS = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)


def supported(config: Config) -> Config:
    """Checks that a model is supported, and returns its config for the module.

    Args:
        config: as ``build`` takes it.

    Raises:
        KerasFileError: lists everything that is not supported.
    """
    config = explicit(config)
    problems = list(_problems(config["class_name"], config.get("config"), ""))
    if not problems:
        count = _count_calls(config["class_name"], config["config"])
        if count > _MAX_CALLS:
            problems = [f"expected at most {_MAX_CALLS:,} calls of layers, got {count:,}"]
    if problems:
        raise KerasFileError(listed("cannot make a Flax module of this model", problems))
    return annotated({k: config[k] for k in ("class_name", "config", NAMED) if k in config})


def differences(module: KerasLayers) -> list[str]:
    """Returns the differences between a module and the Keras model, by layer."""
    return list(_differences(module.config, ""))


def _problems(class_name: str, config: Any, place: str) -> Iterator[str]:
    """Yields everything in a model that is not supported, with its place in the whole model."""
    try:
        graph = parse(class_name, config)
    except _ERRORS as error:
        yield f"{place or 'the model'} ({class_name}): {_reason(error)}"
        return
    for name, (layer_class, layer_config) in graph.layers.items():
        where = f"{place}{name}"
        if layer_class in MODELS:
            yield from _problems(layer_class, layer_config, f"{where}/")
            continue
        try:
            make_layer(layer_class, layer_config, None, deterministic=True)
        except _ERRORS as error:
            yield f"{where} ({layer_class}): {_reason(error)}"
        if name in _TAKEN:
            yield f"{where} ({layer_class}): Flax modules use this name; rename the layer"
    looked_up: dict[str, str] = {}
    try:
        looked_up = left_out(graph)
        if place and looked_up:
            raise ValueError(
                f"{', '.join(looked_up.values())} is inside another model; layers can be left out "
                "only at the front of the whole model"
            )
    except ValueError as error:
        yield f"{place or 'the model'} ({class_name}): {error}"
    for name, (layer_class, layer_config) in graph.layers.items():
        text = layer_class == "InputLayer" and layer_config.get("dtype") == "string"
        if text and not looked_up.keys() & {name, ""}:
            yield f"{place}{name} ({layer_class}): text is not supported"
    masks: dict[tuple[str, int], bool | None] = {}
    gone = taken_off(graph)
    for call in graph.calls:
        layer_class, layer_config = graph.layers[call.layer]
        kind = kind_of(layer_class)
        known = call.kwargs if kind.keywords is None else kind.keywords
        each = layer_config["layer"] if layer_class == "TimeDistributed" else None
        if each and kind_of(each["class_name"]).ignores_masks:
            known = {"mask"}
        if unknown := call.kwargs.keys() - known:
            what = ", ".join(sorted(unknown))
            yield f"{place}{call.layer} ({layer_class}): a call with {what} is not supported"
        given = given_to(layer_class, call, seen_by(call, masks, gone))
        try:
            made = kind.new_mask(layer_config) is not None
            mask = True if made else handed_on(layer_class, layer_config, given)
            masks[call.layer, call.number] = mask
        except _ERRORS as error:
            yield f"{place}{call.layer} ({layer_class}): {_reason(error)}"
    for name in unclear(graph, masks):
        yield (
            f"{place}{name} ({graph.layers[name][0]}): masks after it are not supported, because "
            "they depend on the order of calls in Keras 3"
        )
    if place and any(masks.get(ref[:2]) for ref in refs_in(graph.outputs)):
        yield f"{place.removesuffix('/')} ({class_name}): an output with a mask is not supported"


def _reason(error: Exception) -> str:
    return f"its config has no {error}" if isinstance(error, KeyError) else str(error)


def _count_calls(class_name: str, config: Config) -> int:
    """Returns the number of layer calls in one call of a layer, inner layers included."""
    if class_name == "TimeDistributed":
        return _count_calls(config["layer"]["class_name"], config["layer"]["config"])
    if class_name not in MODELS:
        return 1
    graph = parse(class_name, config)
    counts = {name: _count_calls(*layer) for name, layer in graph.layers.items()}
    return sum(counts[call.layer] for call in graph.calls)


def _differences(model: Config, place: str) -> Iterator[str]:
    if NAMED in model:
        yield (
            f"{place.removesuffix('/') or 'the model'} computes what its config describes, without "
            f"any call method that its user-defined class, {model[NAMED]}, may have"
        )
    for name, reader in left_out(parse(model["class_name"], model["config"])).items():
        yield f"{place}{reader} is left out; pass its result in Keras as input {name or 'x'}"
    for layer in layers_of(model["config"]):
        name, layer_class, details = layer_name(layer), layer["class_name"], layer["config"]
        if layer_class in MODELS:
            yield from _differences(layer, f"{place}{name}/")
            continue
        if details.get("stateful"):
            yield f"{place}{name} starts each call with a state of zeros, as after reset_states()"
        policy = _policy(details)
        options = policy.get("config") if isinstance(policy, Mapping) else {"name": policy}
        options = options if isinstance(options, Mapping) else {}
        name_of = options.get("source_name", options.get("name"))
        if layer_class != "InputLayer" and str(name_of).endswith("float16"):
            yield f"{place}{name} computes in the dtype of its arrays, but in Keras in {name_of}"


def _policy(config: Any) -> Any:
    """Returns a layer's dtype, or the dtype policy that Keras 3 has in its place."""
    return config.get("dtype") if isinstance(config, Mapping) else None
