"""Keras models as Flax modules that compute the same."""

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dogwood_jax._base.problems import UnfitArrays, listed
from dogwood_jax.keras_h5._files.errors import KerasFileError
from dogwood_jax.keras_h5._kinds.kind import CHANNELS, NAMED, Config, kind_of, layout
from dogwood_jax.keras_h5._kinds.nested import MODELS, layer_name, layers_of
from dogwood_jax.keras_h5._models.channels import read_channels
from dogwood_jax.keras_h5._models.graph import Ref, parse, refs_in, replaced
from dogwood_jax.keras_h5._models.masks import (
    given_to,
    handed_on,
    seen_by,
    taken_off,
    unclear,
    with_masks,
)
from dogwood_jax.keras_h5._models.sizes import Given, each_step, inputs_of, resized_layer
from dogwood_jax.keras_h5._models.versions import explicit
from dogwood_jax.keras_h5._models.vocabularies import left_out

_ANY_SIZE = 32  # where a model takes inputs of any size
_MAX_CALLS = 1 << 16  # of layers; models that call models many times can make ever more

# What reading a config raises that is not as Keras writes it.
_ERRORS = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)


class FrozenConfig(Mapping[str, Any]):
    """A config that can be hashed, as the fields of modules must be.

    Unlike a ``FrozenDict`` it is nothing that Flax looks through for modules, which it would at
    every call: a config may hold a hundred thousand boundaries.
    """

    def __init__(self, items: Mapping[str, Any]) -> None:
        self._items = {key: _frozen(value) for key, value in items.items()}

    def __getitem__(self, key: str) -> Any:
        return self._items[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __hash__(self) -> int:
        return hash(frozenset(self._items.items()))

    def __repr__(self) -> str:
        return f"FrozenConfig({self._items!r})"


@contextlib.contextmanager
def _at(name: str = "", class_name: str = "") -> Iterator[None]:
    """Says of what a layer raises in which layer it was, and that its arrays are to blame."""
    try:
        yield
    except UnfitArrays as error:  # of a layer in a model in this one
        raise UnfitArrays(f"{name}/{error}") from error
    except Exception as error:  # JAX and Flax raise all kinds
        what = re.sub(r" \(https://flax\S+\)$", "", str(error))  # where to read more
        raise UnfitArrays(f"{name} ({class_name}): {what}" if name else what) from error


class KerasModel(nn.Module):
    """A Keras model as a Flax module: its layers are submodules of the same names.

    ``module.apply(variables, *inputs)`` returns what the model's ``predict`` returns, one array, or
    lists and dicts of arrays as in Keras. With ``deterministic=False`` it is in training: dropout
    is drawn with the RNG ``dropout``, and ``batch_stats`` are updated.

    Sizes are those of the variables: units, filters and heads of a grown model need no other
    module. ``resized`` returns one whose config says them, for ``init``.

    Attributes:
        config: the model's config as Keras has it, ``{"class_name": ..., "config": {...}}``.
    """

    config: FrozenConfig

    @nn.compact
    def __call__(self, *inputs: Any, deterministic: bool = True) -> Any:
        """Computes the outputs.

        Args:
            *inputs: one array for each of the model's inputs, in their order, or one list of them,
                or one dict by their names.
            deterministic: whether to evaluate rather than to train.
        """
        graph = parse(self.config["class_name"], self.config["config"])
        params = self.variables.get("params", {})
        with _at():
            channels = read_channels(graph, params)
        layers = {}
        for name, (class_name, config) in graph.layers.items():
            with _at(name, class_name):
                config = resized_layer(class_name, config, params.get(name, {}))
                if name in channels:
                    config = {**config, CHANNELS: channels[name]}
                layers[name] = make_layer(class_name, config, name, deterministic)
        values: dict[tuple[str, int], Any] = {}
        for ref, value in _assigned(graph.inputs, inputs).items():
            values[ref[:2]] = layers[ref.layer](value) if ref.layer else value

        def found(tree: Any) -> Any:
            if not isinstance(tree, Ref):
                return None
            return jax.tree.leaves(values[tree[:2]])[tree.output]

        masks: dict[tuple[str, int], Any] = {}
        gone = taken_off(graph)
        for call in graph.calls:
            class_name, config = graph.layers[call.layer]
            args, kwargs = replaced([call.args, call.kwargs], found)
            self.sow("intermediates", inputs_of(call.layer), _given(args, kwargs))
            if new_mask := kind_of(class_name).new_mask(config):
                mask = new_mask(args[0])
            else:
                seen = seen_by(call, masks, gone)
                mask = handed_on(class_name, config, given_to(class_name, call, seen))
                kwargs = with_masks(graph, call, seen, kwargs)
            with _at(call.layer, class_name):
                values[call.layer, call.number] = layers[call.layer](*args, **kwargs)
            masks[call.layer, call.number] = mask
        outputs = list(refs_in(graph.outputs))
        return replaced(outputs[0] if len(outputs) == 1 else graph.outputs, found)

    @nn.nowrap
    def resized(self, variables: Mapping[str, Any]) -> "KerasModel":
        """Returns the module whose config has the sizes of these variables.

        Example:
            >>> layer = {"class_name": "Dense", "config": {"name": "dense_1", "units": 2}}
            >>> config = {"class_name": "Sequential", "config": {"layers": [layer]}}
            >>> module = build(config)
            >>> wide = module.resized({"params": {"dense_1": {"kernel": jnp.ones((3, 8))}}})
            >>> wide.init(jax.random.key(0), jnp.ones((1, 3)))["params"]["dense_1"]["kernel"].shape
            (3, 8)
        """
        return KerasModel(_frozen(annotated(resized(self.config, variables))))

    def __repr__(self) -> str:
        return f"KerasModel({self.config['config'].get('name')!r})"


def build(config: Config) -> KerasModel:
    """Returns the Flax module of a Keras model.

    Args:
        config: ``{"class_name": ..., "config": {...}}`` of a Sequential or Functional model, as
            ``checked_config`` returns it, with ``keras_version`` where it is known.

    Raises:
        KerasFileError: if there are layers, options or calls that are not supported, all of them
            named. Nothing of the model is run: layers with code of their own (Lambda) are among
            those not supported.
    """
    config = explicit(config)
    if problems := list(_problems(config["class_name"], config.get("config"), "")):
        raise _refused("cannot make a Flax module of this model", problems)
    if (count := _count_calls(config["class_name"], config["config"])) > _MAX_CALLS:
        problem = f"expected at most {_MAX_CALLS:,} calls of layers, got {count:,}"
        raise _refused("cannot make a Flax module of this model", [problem])
    config = annotated({k: config[k] for k in ("class_name", "config", NAMED) if k in config})
    module: KerasModel = KerasModel(_frozen(config))
    return module


def check_variables(module: KerasModel, variables: Mapping[str, Any]) -> None:
    """Checks that variables are those of a model, without computing anything.

    Raises:
        KerasFileError: if arrays are missing, or do not fit together. That they have the sizes of
            the config is checked where they are read.
    """
    class_name, config = module.config["class_name"], module.config["config"]
    problems = [
        f"{'/'.join(place[1:])}: is missing"
        for weight in layout(class_name, config)
        for place in weight.places
        if not _has(variables, place)
    ]
    problems += [
        f"{jax.tree_util.keystr(path)}: is of {leaf.dtype}; quantized weights are not supported"
        for path, leaf in jax.tree_util.tree_leaves_with_path(variables["params"])
        if not jnp.issubdtype(leaf.dtype, jnp.inexact)
    ]
    inputs = _inputs_of(class_name, config)
    if not problems and None not in inputs:
        try:
            jax.eval_shape(module.apply, variables, *inputs)
        except Exception as error:  # JAX and Flax raise all kinds
            problems = [str(error)]
    if problems:
        raise _refused("the arrays are not those of the model", problems)


def recorded_inputs(module: KerasModel, variables: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the shapes of what a model and models in it call their layers with.

    By ``inputs_of(layer)``, and for each model in it by its name; nothing if the shapes of the
    model's inputs are not known, or if the variables are not the model's.
    """
    inputs = example_inputs(module)
    if inputs is None:
        return {}

    def record(variables: Any, *inputs: Any) -> Any:
        return module.apply(variables, *inputs, mutable=["intermediates"])[1]

    try:
        recorded: Mapping[str, Any] = jax.eval_shape(record, variables, *inputs)["intermediates"]
    except Exception:  # JAX and Flax raise all kinds
        return {}
    return recorded


def described(module: KerasModel) -> Mapping[str, Any] | None:
    """Returns the variables that a model's config describes, and what its layers are called with.

    The latter are in ``"intermediates"``, as ``recorded_inputs`` returns them. ``None`` if the
    shapes of the model's inputs are not known.

    Raises:
        ValueError: if the config contradicts itself.
    """
    inputs = example_inputs(module)
    if inputs is None:
        return None

    def everything(key: Any, *inputs: Any) -> Any:
        return module.apply({}, *inputs, rngs={"params": key}, mutable=True)[1]

    try:
        found: Mapping[str, Any] = jax.eval_shape(everything, jax.random.key(0), *inputs)
    except Exception as error:  # JAX and Flax raise all kinds
        if None in _inputs_of(module.config["class_name"], module.config["config"]):
            return None  # perhaps only the size that was taken is wrong
        raise ValueError(str(error)) from error
    return found


def annotated(config: Config) -> Config:
    """Returns a model's config in which each GroupNormalization says how many channels it has."""
    if not any(_group_norms(config)):
        return config
    try:
        found = described(KerasModel(_frozen(config)))
    except ValueError:
        return config
    return _with_channels(config, (found or {}).get("intermediates", {}))


def _group_norms(layer: Config) -> Iterator[Any]:
    """Yields the layers of this class in a model, and in layers that it has."""
    if layer["class_name"] in MODELS:
        for inner in layers_of(layer["config"]):
            yield from _group_norms(inner)
    elif layer["class_name"] == "TimeDistributed":
        yield from _group_norms(layer["config"]["layer"])
    elif layer["class_name"] == "GroupNormalization" and CHANNELS not in layer["config"]:
        yield layer


def _with_channels(
    layer: Config, inner: Mapping[str, Any], given: Sequence[Given] | None = None
) -> Config:
    """Returns the config of a model, or of a layer in one, that says how many channels there are.

    Args:
        layer: the config.
        inner: what the layers of the model are called with, by ``inputs_of(layer)``, and the same
            for models in it by their names.
        given: what the layer itself is called with, as far as is known.
    """
    class_name, config = layer["class_name"], layer["config"]
    if class_name in MODELS:
        layers = [
            _with_channels(one, inner.get(name, {}), inner.get(inputs_of(name)))
            for one in layers_of(config)
            for name in [layer_name(one)]
        ]
        return {**layer, "config": {**config, "layers": layers} if "layers" in config else layers}
    if class_name == "TimeDistributed":
        each = _with_channels(config["layer"], inner, each_step(given))
        return {**layer, "config": {**config, "layer": each}}
    if class_name == "GroupNormalization" and given:
        sizes = jax.tree.leaves(given)[0].shape
        return {**layer, "config": {CHANNELS: sizes[config.get("axis", -1)], **config}}
    return layer


def _refused(what: str, problems: list[str]) -> KerasFileError:
    return KerasFileError(listed(what, problems))


def _has(tree: Any, path: tuple[str, ...]) -> bool:
    for name in path:
        if not isinstance(tree, Mapping) or name not in tree:
            return False
        tree = tree[name]
    return True


def example_inputs(module: KerasModel) -> list[jax.ShapeDtypeStruct] | None:
    """Returns inputs that a model takes, as its config describes them; ``None`` if it does not."""
    inputs = _inputs_of(module.config["class_name"], module.config["config"], _ANY_SIZE)
    known = [one for one in inputs if one is not None]
    return known if len(known) == len(inputs) else None


def _inputs_of(
    class_name: str, config: Config, any_size: int | None = None
) -> list[jax.ShapeDtypeStruct | None]:
    """Returns the shapes of a model's inputs, ``None`` for those that are not fixed.

    Args:
        class_name: the model's class.
        config: its config.
        any_size: what to take for the batch, one unless given, and where the config leaves a size
            open, not the last one: channels.
    """
    graph = parse(class_name, config)
    looked_up = left_out(graph)
    shapes: list[jax.ShapeDtypeStruct | None] = []
    for ref in refs_in(graph.inputs):
        kind, first = graph.layers[ref.layer or next(iter(graph.layers))]
        if kind in MODELS:
            shapes += _inputs_of(kind, first, any_size)
            continue
        shape: Any = first.get("batch_shape") or first.get("batch_input_shape")
        if not shape and not ref.layer and isinstance(config, Mapping):
            shape = config.get("build_input_shape")
        shape = shape or (None, None)
        dtype = first.get("dtype")
        if ref.layer in looked_up:
            layer_class, layer_config = graph.layers[looked_up[ref.layer]]
            result = kind_of(layer_class).looked_up
            shape = (result and result(layer_config, shape)) or (None, None)
            dtype = "int32"
        array: Any = jax.ShapeDtypeStruct  # untyped
        dtype = jnp.dtype(dtype if isinstance(dtype, str) else "float32")
        sizes = [any_size if size is None else size for size in shape[1:-1]] + list(shape[-1:])
        known = all(isinstance(size, int) for size in sizes)
        shapes.append(array((any_size or 1, *sizes), dtype) if known else None)
    return shapes


def make_layer(
    class_name: str, config: Config, name: str | None, deterministic: bool
) -> Callable[..., Any]:
    """Returns a layer as a function of arrays; its variables are named by it.

    Raises:
        ValueError, KeyError or TypeError: if its class or config is not supported.
    """
    kind = kind_of(class_name)
    if kind.function is not None:
        return kind.function(config)
    if kind.module is not None:
        return kind.module(config, name, deterministic)
    if class_name in MODELS:
        inner = _frozen({"class_name": class_name, "config": config})
        module = KerasModel(inner, name=name)
        return lambda *inputs: module(*inputs, deterministic=deterministic)
    if class_name == "TimeDistributed":
        layer = config["layer"]
        each = make_layer(layer["class_name"], layer["config"], name, deterministic)

        def spread(x: jax.Array, mask: Any = None) -> jax.Array:
            y: jax.Array = each(x.reshape(-1, *x.shape[2:]))
            return y.reshape(*x.shape[:2], *y.shape[1:])

        return spread
    if ">" in class_name:
        raise ValueError(
            "its class is not Keras's own, and its code is not in the file; load reads its "
            "weights, for a module of your own"
        )
    raise ValueError("this class of layers is not supported")


def _problems(class_name: str, config: Any, place: str) -> Iterator[str]:
    """Yields what of a model is not supported, with its place in the whole."""
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
        if "Quantized" in str(_policy(layer_config)):
            yield f"{where} ({layer_class}): quantized weights are not supported"
        try:
            make_layer(layer_class, layer_config, None, deterministic=True)
        except _ERRORS as error:
            yield f"{where} ({layer_class}): {_reason(error)}"
        if name in dir(KerasModel):
            yield f"{where} ({layer_class}): Flax has another use for this name; rename the layer"
    looked_up: dict[str, str] = {}
    try:
        looked_up = left_out(graph)
        if place and looked_up:
            raise ValueError(
                f"{', '.join(looked_up.values())} is inside another model; only at the front of "
                "the whole model can layers be left out"
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
            f"{place}{name} ({graph.layers[name][0]}): masks after it, which Keras 3 hands on or "
            "forgets by the order of calls, are not supported"
        )
    if place and any(masks.get(ref[:2]) for ref in refs_in(graph.outputs)):
        yield f"{place.removesuffix('/')} ({class_name}): a mask of its output is not supported"


def _count_calls(class_name: str, config: Config) -> int:
    """Returns how many calls of layers one call of a layer comes to."""
    if class_name == "TimeDistributed":
        return _count_calls(config["layer"]["class_name"], config["layer"]["config"])
    if class_name not in MODELS:
        return 1
    graph = parse(class_name, config)
    counts = {name: _count_calls(*layer) for name, layer in graph.layers.items()}
    return sum(counts[call.layer] for call in graph.calls)


def differences(module: KerasModel) -> list[str]:
    """Returns in what the module of a model differs from it, by layer."""
    return list(_differences(module.config, ""))


def _differences(model: Config, place: str) -> Iterator[str]:
    if NAMED in model:
        yield (
            f"{place.removesuffix('/') or 'the model'} computes what its config describes, not a "
            f"call that its class, {model[NAMED]}, which is not Keras's own, may define"
        )
    for name, reader in left_out(parse(model["class_name"], model["config"])).items():
        yield f"{place}{reader} is left out; pass what it returns in Keras as input {name or 'x'}"
    for layer in layers_of(model["config"]):
        name, layer_class, details = layer_name(layer), layer["class_name"], layer["config"]
        if layer_class in MODELS:
            yield from _differences(layer, f"{place}{name}/")
            continue
        if details.get("stateful"):
            yield f"{place}{name} begins each call with a state of zeros, as after reset_states()"
        policy = _policy(details)
        name_of = policy.get("config", {}).get("name") if isinstance(policy, Mapping) else policy
        if layer_class != "InputLayer" and str(name_of).endswith("float16"):
            yield f"{place}{name} computes in the dtype of its arrays, in Keras in {name_of}"


def _policy(config: Any) -> Any:
    """Returns a layer's dtype, or what Keras 3 has in its place."""
    return config.get("dtype") if isinstance(config, Mapping) else None


def _given(args: Any, kwargs: Mapping[str, Any]) -> Given:
    """Returns the arrays that a layer is called with."""

    def arrays(tree: Any) -> list[Any]:
        return [leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, jax.Array)]

    found = [arrays(arg) for arg in args], {key: arrays(arg) for key, arg in kwargs.items()}
    return Given([some for some in found[0] if some], {k: v for k, v in found[1].items() if v})


def _reason(error: Exception) -> str:
    return f"its config has no {error}" if isinstance(error, KeyError) else str(error)


def _assigned(expected: Any, inputs: tuple[Any, ...]) -> dict[Ref, Any]:
    """Returns the arrays that were given, by the inputs that they are for."""
    refs = list(refs_in(expected))
    if len(inputs) == 1 and isinstance(inputs[0], Mapping):
        names = sorted(expected) if isinstance(expected, Mapping) else [ref.layer for ref in refs]
        given = [inputs[0][name] for name in names]
    else:
        given = jax.tree.leaves(inputs)
    if len(given) != len(refs):
        wanted = ", ".join(ref.layer or "x" for ref in refs)
        raise ValueError(f"expected {len(refs)} inputs ({wanted}), got {len(given)}")
    return dict(zip(refs, given))


def _frozen(tree: Any) -> Any:
    """Returns a config, or a value in it, as one that can be hashed."""
    if isinstance(tree, Mapping):
        return tree if isinstance(tree, FrozenConfig) else FrozenConfig(tree)
    return tuple(map(_frozen, tree)) if isinstance(tree, list | tuple) else tree


# Other sizes --------------------------------------------------------------------------------------

_COLLECTIONS = ("params", "batch_stats")


def resized(config: Config, variables: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a model's config for these variables: units, filters and heads are what they are now.

    Args:
        config: of the model before it grew, ``{"class_name": "Sequential", "config": {...}}``: in
            the attribute ``model_config`` of a file or in ``config.json`` of a ``.keras`` archive.
        variables: ``{"params": {"dense_1": ...}, ...}``: arrays or ``jax.ShapeDtypeStruct``.

    Returns:
        A new config. Models inside, depthwise convolutions and the shapes from which Keras 3 builds
        layers one by one (``build_config``) follow the sizes of their inputs, as far as these are
        found out because ``load_model`` supports the model. Otherwise ``build_config`` is left
        out: Keras builds layers from the model's input then.

    Raises:
        ValueError: if no config describes a model with these variables.

    Example:
        >>> import numpy as np
        >>> layers = [{"class_name": "Dense", "config": {"name": "dense_1", "units": 2}}]
        >>> model = {"class_name": "Sequential", "config": {"name": "mlp", "layers": layers}}
        >>> wide = {"params": {"dense_1": {"kernel": np.ones((3, 8)), "bias": np.ones(8)}}}
        >>> resized(model, wide)["config"]["layers"][0]["config"]["units"]
        8
    """
    if config["class_name"] not in MODELS:
        name = config.get(NAMED, config["class_name"])
        raise ValueError(
            f"the model's config has no layers whose sizes could change: {name} "
            "makes them itself; save with layout='weights.h5', and load these weights into a "
            "model that is made with the new sizes"
        )
    params = variables.get("params", variables)
    config = annotated(config) if _built(config) else config
    new = resized_layer(config["class_name"], config["config"], params)
    if any(_follows(layer["class_name"]) for layer in layers_of(new)):
        module = _built({**config, "config": new})
        inputs = recorded_inputs(module, variables) if module else {}
        new = resized_layer(config["class_name"], config["config"], params, inputs)
    new = {**config, "config": _without(CHANNELS, new)}
    if problems := sorted({*_lopsided(new)} - {*_lopsided(config)}):
        raise ValueError(listed("no config of this model has these sizes", problems))
    _check(new, variables)
    return new


def _follows(class_name: str) -> bool:
    """Whether sizes in a layer, or in layers that it holds, follow from its inputs."""
    by_input = kind_of(class_name).sizes_by_input is not None
    return by_input or class_name in (*MODELS, "TimeDistributed")


def _lopsided(config: Config, place: str = "") -> Iterator[str]:
    """Yields the layers whose two directions differ: Keras 3 counts one of them twice."""
    for layer in layers_of(config["config"]):
        name = f"{place}{layer_name(layer)}"
        if layer["class_name"] in MODELS:
            yield from _lopsided(layer, f"{name}/")
        ways = [layer["config"].get(way) for way in ("layer", "backward_layer")]
        if layer["class_name"] == "Bidirectional" and all(ways):
            cells = [way["config"].get("cell", way) for way in ways]
            if len({*map(_units, cells)}) > 1:
                yield f"{name}: its two directions must be of one size; grow both by as much"


def _units(cell: Config) -> tuple[Any, ...]:
    """Returns the size of a recurrent cell, or the sizes of a stack."""
    stack = cell["config"].get("cells", [cell])
    return tuple(one["config"].get("units") for one in stack)


def _built(config: Config) -> KerasModel | None:
    """Returns the module of a model, if it is supported."""
    try:
        return build(config)
    except KerasFileError:
        return None


def _without(key: str, tree: Any) -> Any:
    if isinstance(tree, Mapping):
        return {name: _without(key, branch) for name, branch in tree.items() if name != key}
    return [_without(key, branch) for branch in tree] if isinstance(tree, list) else tree


def _check(config: Config, variables: Mapping[str, Any]) -> None:
    """Raises if a config describes other variables than these, as far as that is known."""
    if (module := _built(config)) is None:
        return
    try:
        expected = described(module) or {}
    except ValueError as error:
        raise ValueError(f"no config of this model has these sizes: {error}") from error
    shapes = dict(_shapes(variables))
    problems = [
        f"{path}: has shape {shapes[path]}, where Keras would make one of shape {shape}"
        for path, shape in _shapes({name: expected.get(name, {}) for name in _COLLECTIONS})
        if shapes.get(path, shape) != shape
    ]
    if problems:
        raise ValueError(listed("no config of this model has these sizes", problems))


def _shapes(variables: Mapping[str, Any]) -> list[tuple[str, tuple[int, ...]]]:
    variables = variables if "params" in variables else {"params": variables}
    leaves = jax.tree_util.tree_leaves_with_path(variables)
    return [("/".join(str(key.key) for key in path), tuple(a.shape)) for path, a in leaves]
