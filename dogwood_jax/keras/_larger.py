"""Makes models of other sizes from their configs: ``larger_models``.

There is no table of the numbers in a config that are sizes. They are found by trial: a layer that
Keras makes from the changed config must have variables of the wanted shapes.
"""

import functools
import inspect
import itertools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from dogwood_jax._base.described import first_line
from dogwood_jax._base.problems import listed
from dogwood_jax._base.trees import PyTree
from dogwood_jax._growth.modules.fitting import fitting
from dogwood_jax._growth.modules.resizing import changes_of
from dogwood_jax._plan.sizes import named_sizes
from dogwood_jax._widths.layout import size_of
from dogwood_jax._widths.widths import Widths
from dogwood_jax.keras._live import (
    Layer,
    Model,
    Variable,
    function_of,
    imported,
    layers_by_name,
    layers_in,
    seeds_kept,
    with_inputs,
)

Config = dict[str, Any]
Shape = tuple[int, ...]
# The possible new values of each size that changes.
Changes = Mapping[int, set[int]]

# At most this many further configs of a layer are tried if the first one does not fit.
_MOST_OTHERS = 8
_WAY_OUT = "make the larger model yourself, and pass it as target="


def larger_models(
    model: Model, widths: Widths, sizes: Mapping[Any, int], inputs: PyTree
) -> Iterator[Model]:
    """Yields copies of a model in other sizes, with Keras's initial values.

    They are not compiled. The first one keeps all numbers that do not affect the shapes of its
    variables, such as the number of groups of a normalization. The next ones change some of them.

    Args:
        model: the model, which is not changed.
        widths: its widths.
        sizes: new sizes by width.
        inputs: the shapes of its input.

    Raises:
        ValueError: if the model cannot be made from its config in these sizes, or if a width is
            unknown; one message lists all layers, before any array is made.
    """
    problems: list[str] = []
    named = named_sizes(widths, sizes, problems)
    if problems:
        raise ValueError(listed("cannot grow this model", problems))
    classes = {type(layer) for layer in layers_in(model)}
    own = {cls.__name__: cls for cls in classes if not cls.__module__.startswith("keras.")}
    configs = _configs(model, widths, named, inputs)
    while True:
        with imported().saving.custom_object_scope(own):
            if (config := next(configs, None)) is None:
                return
            larger = _made(type(model), config, inputs)
        for old, new in zip(layers_in(model), layers_in(larger)):
            if new.trainable != old.trainable:
                new.trainable = old.trainable
        yield larger


def _configs(
    model: Model, widths: Widths, sizes: Mapping[str, int], inputs: PyTree
) -> Iterator[Config]:
    """Yields configs of a model with which Keras makes its variables in other sizes."""
    shapes = {
        leaf.path: tuple(size_of(axis, sizes) for axis in leaf.axes) for leaf in widths.leaves
    }
    wanted = {id(v): shapes[name] for name, v in function_of(model).variables.items()}
    changes: dict[int, set[int]] = {}
    for old, new in itertools.chain(*(changes_of(leaf, sizes) for leaf in widths.leaves)):
        changes.setdefault(old, set()).add(new)
    parts: dict[str, _Part] = {}

    def see(path: str, layer: Layer | None, config: Config) -> Config:
        parts[path] = _Part(layer, config, wanted, inputs if layer is model else None)
        return config

    own = _with_parts(model, _config_of(model), see)
    ways = {path: part.in_sizes(changes) for path, part in parts.items()}
    first = {path: next(configs, None) for path, configs in ways.items()}
    if missing := [path for path, config in first.items() if config is None]:
        problems = (f"{path or model.name}: {parts[path].problem}; {_WAY_OUT}" for path in missing)
        raise ValueError(listed("cannot make this model in other sizes", problems))
    # Then the other configs of each part, one part at a time.
    others = (
        {**first, path: config}
        for path, configs in ways.items()
        for config in itertools.islice(configs, _MOST_OTHERS)
    )
    found, why = False, ""
    for chosen in itertools.chain([first], others):
        config = _with_parts(model, own, lambda path, *_: chosen[path])  # noqa: B023
        try:
            made = _shapes(lambda: _made(type(model), config, inputs))  # noqa: B023
        except _NotMade as error:
            why = why or str(error)
            continue
        if made == [*wanted.values()]:
            found = True
            yield config
    if not found:
        why = why or "its variables have other shapes"
        raise ValueError(f"cannot make {model.name} in other sizes: {why}; {_WAY_OUT}")


def _config_of(model: Model) -> Config:
    """Returns the config of a model.

    Raises:
        ValueError: if layers have no config; names all of them.
    """
    # Keras's default config for a class without get_config may lack constructor arguments.
    is_told = type(model).get_config is not imported().Model.get_config
    if not is_told and (fields := _fields(model)) is not None:
        return fields
    try:
        return dict(model.get_config())
    except NotImplementedError:
        pass
    problems = []
    for layer in [model] if not layers_by_name(model) else layers_in(model)[1:]:
        try:
            layer.get_config()
        except NotImplementedError:
            problems.append(
                f"{layer.name}: {type(layer).__name__} has no get_config, from which it could be "
                f"made; write one, or {_WAY_OUT}"
            )
    raise ValueError(listed("cannot make this model in other sizes", problems))


def _fields(model: Model) -> Config | None:
    """Returns constructor arguments from a model's fields; ``None`` if any required is missing."""
    config = {}
    for name, parameter in inspect.signature(type(model).__init__).parameters.items():
        if name in ("self", "name") or parameter.kind in (
            parameter.VAR_POSITIONAL,
            parameter.VAR_KEYWORD,
        ):
            continue
        if hasattr(model, name):
            config[name] = getattr(model, name)
        elif parameter.default is parameter.empty:
            return None
    return config


def _with_parts(
    layer: Layer | None,
    config: Config,
    of_part: Callable[[str, Layer | None, Config], Any],
    path: str = "",
) -> Config:
    """Returns a config with each of its parts changed.

    The parts of a Sequential or Functional model are its layers, including those of inner models.
    Any other model is one part.

    Args:
        layer: the model, or a layer of it; ``None`` for an entry that is not a layer.
        config: its config.
        of_part: returns the new config of a part, from its path, layer and config.
        path: path of the layer.
    """
    layers = layers_by_name(layer)
    if not layers or "layers" not in config:
        return dict(of_part(path, layer, config))
    # The entries of a Sequential model have no names, and may start with one for the input.
    unnamed = dict(zip(range(len(config["layers"]) - 1, -1, -1), reversed(layers.values())))
    entries = []
    for index, entry in enumerate(config["layers"]):
        # Layers are built from their inputs, which may have other sizes than before.
        entry = {key: value for key, value in entry.items() if key != "build_config"}
        part = layers.get(entry["name"]) if "name" in entry else unnamed.get(index)
        name = entry["config"].get("name", "") if part is None else part.name
        here = f"{path}/{name}".removeprefix("/")
        entry["config"] = _with_parts(part, entry["config"], of_part, here)
        entries.append(entry)
    return {**config, "layers": entries}


@dataclass(frozen=True)
class _Part:
    """A layer of a model, or an operation, with its config.

    Attributes:
        layer: the layer; ``None`` for an operation.
        config: its config.
        wanted: the new shapes of the model's variables, by ``id``.
        inputs: shapes of the input if the part is the whole model, otherwise ``None``.
    """

    layer: Layer | None
    config: Config
    wanted: Mapping[int, Shape]
    inputs: PyTree

    @functools.cached_property
    def variables(self) -> Mapping[str, Variable]:
        """The layer's variables by name."""
        return {} if self.layer is None else function_of(self.layer).variables

    @property
    def shapes(self) -> list[Shape]:
        """The present shapes of the variables."""
        return [tuple(variable.shape) for variable in self.variables.values()]

    @property
    def new_shapes(self) -> list[Shape]:
        """The wanted shapes of the variables."""
        return [self.wanted.get(id(v), tuple(v.shape)) for v in self.variables.values()]

    @functools.cached_property
    def given(self) -> dict[str, Any]:
        """The config of the layer, and the shapes of its inputs, from which it is made."""
        build = None if self.layer is None else self.layer.get_build_config()
        return dict(_plain({"config": self.config, "build": build}))

    def made(self, given: Mapping[str, Any]) -> list[Shape]:
        """Returns the shapes of the variables of the layer that is made from ``given``."""
        if not self.variables:
            return []
        cls = type(self.layer)
        if self.inputs is None:
            return _shapes(lambda: _built(cls, **given))
        return _shapes(lambda: _made(cls, given["config"], self.inputs))

    def in_sizes(self, changes: Changes) -> Iterator[Config]:
        """Yields configs with which the variables get the wanted shapes.

        The first one keeps the numbers that do not affect these shapes.
        """
        if self.variables and self.new_shapes == self.shapes:
            yield self.config
            return
        leaves, structure = jax.tree.flatten(self.given)
        in_build = len(jax.tree.leaves(self.given["build"]))  # these come first

        def shapes(given: Sequence[Any]) -> dict[str, Shape] | None:
            try:
                return _numbered(self.made(jax.tree.unflatten(structure, given)))
            except _NotMade:
                return None

        seen = list[Sequence[Any]]()
        today, wanted = _numbered(self.shapes), _numbered(self.new_shapes)
        for given in fitting(shapes, leaves, today, changes, wanted):
            if given[in_build:] not in seen:
                seen.append(given[in_build:])
                yield jax.tree.unflatten(structure, given)["config"]

    @property
    def problem(self) -> str:
        """Explains why the layer cannot be made in its new shapes."""
        cls = type(self.layer).__name__
        try:
            self.made(self.given)
        except _NotMade as error:
            return f"{cls} cannot be made from its config again: {error}"
        shapes = zip(self.variables, self.shapes, self.new_shapes)
        wrong = [f"{name} {new} in place of {old}" for name, old, new in shapes if new != old]
        more = f" and {len(wrong) - 2} more" if len(wrong) > 2 else ""
        return f"no values in the config of {cls} make {', '.join(wrong[:2])}{more}"


# Making layers ------------------------------------------------------------------------------------


class _NotMade(Exception):
    """Raised if Keras cannot make a layer or model from a config."""


def _made(cls: Any, config: Config, inputs: PyTree) -> Model:
    """Returns a model of a class, built so that it has its variables."""
    model = cls.from_config(_plain(config))
    return model if model.built else with_inputs(model, inputs)


def _built(cls: Any, config: Config, build: Config | None) -> Layer:
    """Returns a layer of a class, built for inputs of the shapes in ``build``."""
    layer = cls.from_config(_plain(config))
    if build and not layer.built:
        layer.build_from_config(build)
    if build and not layer.variables:  # layers without ``build`` make variables when called
        tensor = imported().KerasTensor
        shapes = build.get("shapes_dict", {})
        args = [] if shapes else [tensor(build["input_shape"])]
        layer(*args, **{name.removesuffix("_shape"): tensor(s) for name, s in shapes.items()})
    return layer


def _numbered(shapes: Sequence[Shape]) -> dict[str, Shape]:
    return {str(index): shape for index, shape in enumerate(shapes)}


def _plain(config: Any) -> Any:
    """Returns a copy of a config in plain Python containers, because Keras modifies configs."""
    if isinstance(config, dict):
        return {key: _plain(value) for key, value in config.items()}
    if isinstance(config, list | tuple):
        return (list if isinstance(config, list) else tuple)(map(_plain, config))
    return config


def _shapes(make: Callable[[], Layer]) -> list[Shape]:
    """Returns the shapes of a layer's variables without making arrays.

    Raises:
        _NotMade: if Keras or a user-defined class raises.
    """
    shapes: list[Shape] | Exception = []

    def made() -> None:
        nonlocal shapes
        try:
            shapes = [tuple(v.shape) for v in function_of(make()).variables.values()]
        except Exception as error:  # user-defined classes may raise anything
            shapes = error

    with seeds_kept(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        jax.eval_shape(made)
    if isinstance(shapes, Exception):
        raise _NotMade(first_line(shapes))
    return shapes
