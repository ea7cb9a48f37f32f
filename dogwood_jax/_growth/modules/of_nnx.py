"""Resizes NNX modules: ``resized_module``.

A module stores numbers next to its variables. It is viewed as a tree with static data, like an
Equinox module, and then resized in the same way (``resizing``).
"""

import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import jax
from flax import nnx

from dogwood_jax._base.trees import PyTree
from dogwood_jax._growth.modules.remaking import Remaker
from dogwood_jax._growth.modules.resizing import Resizing
from dogwood_jax._widths.widths import Leaf

Module = TypeVar("Module", bound=nnx.Module)

# Older versions of Flax keep modules in Python lists and dicts.
_LISTS: Any = tuple({list, tuple, getattr(nnx, "List", list)})
_DICTS: Any = tuple({dict, getattr(nnx, "Dict", dict)})


def resized_module(
    model: Module,
    leaves: Iterable[Leaf],
    sizes: Mapping[str, int],
) -> tuple[Module, list[str]]:
    """Returns a module in other sizes, and problems with numbers whose new values are unknown.

    Arrays that change shape are ``jax.ShapeDtypeStruct`` in the result.

    Args:
        model: the module; it is not changed.
        leaves: the arrays of its state, with the layouts of their axes.
        sizes: new sizes by name of the width.
    """
    resizing = Resizing(leaves, sizes, remaker=_ModuleRemaker())
    view = resizing.resized(_viewed(model, set()))
    graph, state = nnx.split(model)
    larger = nnx.merge(graph, resizing.resized(state))
    _adopt(larger, view)
    return larger, resizing.problems


def value_of(variable: Any) -> Any:
    """Returns the array that a variable holds."""
    return variable.get_value() if hasattr(variable, "get_value") else variable.value


class _View:
    """A module as a tree of its variables and modules.

    It has the fields of the module, with arrays in place of variables.

    Attributes:
        cls: the class of the module.
        parts: names of the fields that hold variables and modules; other fields are static.
    """

    __slots__ = ("__dict__", "cls", "parts")

    def __init__(self, cls: type, parts: Mapping[str, Any], static: Mapping[str, Any]) -> None:
        self.cls, self.parts = cls, tuple(parts)
        self.__dict__.update(parts, **static)


def _flatten(view: _View) -> tuple[list[tuple[Any, Any]], Any]:
    fields = dict(vars(view))
    parts = [(jax.tree_util.GetAttrKey(name), fields.pop(name)) for name in view.parts]
    return parts, (view.cls, view.parts, tuple(fields.items()))


def _unflatten(data: Any, parts: Iterable[Any]) -> _View:
    cls, names, static = data
    return _View(cls, dict(zip(names, parts, strict=True)), dict(static))


jax.tree_util.register_pytree_with_keys(_View, _flatten, _unflatten)


def _viewed(value: Any, seen: set[int]) -> Any:
    """Returns modules as views and variables as arrays; None for repeated occurrences."""
    if isinstance(value, nnx.Variable | nnx.Module):
        if id(value) in seen:
            return None
        seen.add(id(value))
    if isinstance(value, nnx.Variable):
        return value_of(value)
    if isinstance(value, _LISTS):
        return [_viewed(item, seen) for item in value]
    if isinstance(value, _DICTS):
        return {name: _viewed(item, seen) for name, item in value.items()}
    if not isinstance(value, nnx.Module):
        return value
    # In the order of the module's state, so that shared parts are kept at the same path.
    fields = {name: field for name, field in sorted(vars(value).items()) if _is_own(name, field)}
    parts = {name: _viewed(field, seen) for name, field in fields.items() if _is_part(field)}
    return _View(type(value), parts, {name: fields[name] for name in fields if name not in parts})


def _is_own(name: str, field: Any) -> bool:
    """Whether a field is the module's own: neither Flax's nor random keys."""
    is_random = isinstance(field, nnx.Rngs | nnx.RngStream)
    return not is_random and not name.startswith(("_pytree__", "_object__"))


def _is_part(field: Any) -> bool:
    """Whether a field holds variables or modules."""
    if isinstance(field, _DICTS):
        field = list(field.values())
    if isinstance(field, _LISTS):
        return any(_is_part(item) for item in field)
    return isinstance(field, nnx.Variable | nnx.Module)


def _adopt(value: Any, view: Any) -> None:
    """Copies the numbers of views into their modules."""
    if isinstance(view, _View):
        for name, field in vars(view).items():
            if name in view.parts:
                _adopt(getattr(value, name), field)
            elif getattr(value, name) is not field:
                setattr(value, name, field)
    elif isinstance(view, list):
        for item, its_view in zip(value, view, strict=True):
            _adopt(item, its_view)
    elif isinstance(view, dict):
        for name, its_view in view.items():
            _adopt(value[name], its_view)


class _ModuleRemaker(Remaker):
    """Makes views of modules again by the modules' classes."""

    def class_of(self, node: PyTree) -> type:
        return node.cls if isinstance(node, _View) else type(node)

    def parameters(self, cls: type) -> Sequence[inspect.Parameter]:
        return [*inspect.signature(cls.__init__).parameters.values()][1:]  # type: ignore[misc]

    def construct(self, cls: type, arguments: Mapping[str, Any], key: jax.Array) -> PyTree:
        names = [parameter.name for parameter in self.parameters(cls)]
        rngs = {"rngs": nnx.Rngs(key)} if "rngs" in names else {}
        return _viewed(cls(**arguments, **rngs), set())
