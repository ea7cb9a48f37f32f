"""Makes modules again in other sizes, by their classes: ``Remaker``.

Nothing marks the numbers of a module that are sizes. But its class may make an equal module if it
is called with the module's own fields. The class then also makes the larger module: with the right
numbers, every array gets its new shape. If no choice of numbers does that, or several do, the
numbers that change stay unknown.
"""

import inspect
import itertools
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from dogwood_jax._base.trees import PyTree, is_array, leaf_path, struct, struct_of
from dogwood_jax._growth.modules.fitting import Shapes, fitting

# Names of arguments for random keys.
_KEYS = ("key", "rngs")


class CannotRemake(Exception):
    """Raised with the reason why the numbers of a module in other sizes are unknown."""


class Remaker:
    """Makes modules again, with a cache: equal layers are made once."""

    def __init__(self) -> None:
        self._made: dict[Any, PyTree | None] = {}

    def class_of(self, node: PyTree) -> type:
        """Returns the class that makes a module."""
        return type(node)

    def parameters(self, cls: type) -> Sequence[inspect.Parameter]:
        """Returns the parameters of a class; ValueError or TypeError if it has no signature."""
        return [*inspect.signature(cls).parameters.values()]

    def construct(self, cls: type, arguments: Mapping[str, Any], key: jax.Array) -> PyTree:
        """Returns the module that a class makes from arguments and a random key."""
        takes_key = any(parameter.name == "key" for parameter in self.parameters(cls))
        return cls(**arguments, **({"key": key} if takes_key else {}))

    def remade(self, node: PyTree, wanted: Shapes, sizes: Mapping[int, Iterable[int]]) -> PyTree:
        """Returns a module in new sizes, made by its class.

        Args:
            node: the module.
            wanted: new shapes of all its arrays, by path.
            sizes: for each size that changes, its possible new sizes.

        Raises:
            CannotRemake: if this does not determine the module's numbers in the new sizes.
        """
        cls = self.class_of(node)
        arguments = self._arguments(cls, node)
        again = None if arguments is None else self._again(cls, arguments, node)
        stack = None if again is None else _stack(again, node)
        if stack is None:
            raise CannotRemake(self._why_not_again(cls, node))
        wanted = {path: shape[len(stack) :] for path, shape in wanted.items()}
        given, structure = jax.tree.flatten(arguments)

        def make(given: Sequence[Any]) -> PyTree | None:
            return self._again(cls, jax.tree.unflatten(structure, given), node)

        def shapes(given: Sequence[Any]) -> Shapes | None:
            made = make(given)
            return None if made is None else shapes_in(made)

        found = [
            *map(make, itertools.islice(fitting(shapes, given, shapes_in(again), sizes, wanted), 2))
        ]
        if not found:
            raise CannotRemake("its class makes no module with arrays of the new shapes")
        if len(found) > 1:
            raise CannotRemake("the new shapes leave open which of its numbers change")
        return _with_own(found[0], again, node, stack)

    def _why_not_again(self, cls: type, node: PyTree) -> str:
        """Returns the reason why the class of a module cannot make it again."""
        why = "calling its class with its own fields does not make an equal module"
        try:
            parameters = self.parameters(cls)
        except (TypeError, ValueError):
            return why
        missing = [
            parameter.name
            for parameter in parameters
            if parameter.default is parameter.empty
            if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
            if parameter.name not in (*_KEYS, *vars(node))
        ]
        if not missing:
            return why
        arguments = f"argument{'s' * (len(missing) > 1)} {', '.join(missing)}"
        return f"{why}, because it does not store its {arguments} (self.{missing[0]} = ...)"

    def _arguments(self, cls: type, node: PyTree) -> dict[str, Any] | None:
        """Returns the fields of a module that its class takes; None if a required one is missing.

        An argument with a default is left out if the module's field holds an array or None. (A
        partitioned tree has None in place of leaves in the other part.)
        """
        try:
            parameters, fields = self.parameters(cls), vars(node)
        except (TypeError, ValueError):
            return None
        arguments = {}
        for parameter in parameters:
            name, value = parameter.name, fields.get(parameter.name)
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD) or name in _KEYS:
                continue
            if value is not None and not any(map(is_array, jax.tree.leaves(value))):
                arguments[name] = value
            elif parameter.default is parameter.empty:
                return None
        return arguments

    def _again(self, cls: type, arguments: Mapping[str, Any], node: PyTree) -> PyTree | None:
        """Returns the module that a class makes, with only leaves of ``node``; None on errors."""
        leaves, structure = jax.tree.flatten(arguments)
        case: Any = (cls, structure, tuple((type(leaf), leaf) for leaf in leaves))
        try:
            known = case in self._made
        except TypeError:  # an argument without a hash
            case, known = None, False
        if not known:
            self._made[case] = self._shapes_of(cls, arguments)
        if (made := self._made[case]) is None:
            return None
        paths = set(_by_path(node))
        return jax.tree_util.tree_map_with_path(
            lambda keys, leaf: leaf if leaf_path(keys) in paths else None, made
        )

    def _shapes_of(self, cls: type, arguments: Mapping[str, Any]) -> PyTree | None:
        """Returns the module of a class, with shapes in place of arrays; None on errors."""
        made: PyTree = None

        def make(key: jax.Array) -> None:
            nonlocal made
            try:
                made = self.construct(cls, arguments, key)
                made = jax.tree.map(lambda leaf: struct_of(leaf) if is_array(leaf) else leaf, made)
            except Exception:  # any class may raise anything
                made = None

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            jax.eval_shape(make, jax.random.key(0))
        return made


def is_number(value: Any) -> bool:
    """Whether a value is a Python or NumPy number, but not a boolean."""
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


def shapes_in(tree: PyTree) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of a tree's arrays, by path."""
    return {path: tuple(leaf.shape) for path, leaf in _by_path(tree).items() if is_array(leaf)}


def _by_path(tree: PyTree) -> dict[str, Any]:
    return {leaf_path(keys): leaf for keys, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _stack(made: PyTree, node: PyTree) -> tuple[int, ...] | None:
    """Returns the sizes of leading axes of stacked modules; None if ``made`` differs otherwise.

    Layers over which a loop runs may be stacked in the arrays of one module, along leading axes. A
    single module has no such axes, ``()``.
    """
    try:
        if jax.tree.structure(made) != jax.tree.structure(node):  # type: ignore[operator]
            return None
    except Exception:  # static data that cannot be compared may raise anything
        return None
    one, own = shapes_in(made), shapes_in(node)
    stacks = {own[path][: len(own[path]) - len(shape)] for path, shape in one.items()}
    stack = stacks.pop() if len(stacks) == 1 else ()
    return stack if own == {path: stack + shape for path, shape in one.items()} else None


def _with_own(made: PyTree, again: PyTree, node: PyTree, stack: tuple[int, ...]) -> PyTree:
    """Returns a module made in new sizes, with the old module's leaves where they fit."""

    def one(leaf: Any, before: Any, own: Any) -> Any:
        if is_array(leaf):
            shape = stack + leaf.shape
            return own if own.shape == shape else struct(shape, own.dtype)
        return leaf if is_number(leaf) and before == own else own

    leaves = zip(*map(jax.tree.leaves, (made, again, node)), strict=True)
    return jax.tree.unflatten(jax.tree.structure(made), [one(*each) for each in leaves])
