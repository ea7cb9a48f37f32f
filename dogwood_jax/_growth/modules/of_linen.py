"""Resizes Linen modules: ``LinenMethod``, a method of a traced module.

A Linen module is a dataclass. Its sizes are among the integers in its fields, in its submodules and
in configurations. Its initialization shows which integers are sizes: with the right ones it makes
arrays of the wanted shapes.
"""

import copy
import dataclasses
import enum
import functools
import inspect
import itertools
import types
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from dogwood_jax._base.described import first_line, library_of
from dogwood_jax._base.trees import apart, arrays_of, is_array, leaves_by_path
from dogwood_jax._growth.modules.fitting import Shapes, fitting, is_size, smallest
from dogwood_jax._growth.modules.remaking import CannotRemake
from dogwood_jax._program.kernels import WithReferences

# A Linen module. Linen is not imported only to find out that a function is not its method.
LinenModule = Any
Sizes = Mapping[int, Iterable[int]]

# Keyword arguments of ``apply`` that ``init`` does not take.
_OF_APPLY = ("rngs", "mutable", "capture_intermediates")
# Fields that Linen adds to each module.
_OF_LINEN = ("parent", "name")
# Upper limit on the depth in a module at which numbers are searched.
_DEEPEST = 8
# Upper limit on choices of numbers that an error lists.
_MOST_TOLD = 4
# Upper limit on numbers that scale with sizes, such as the ratio of an MLP.
_MOST_RATIOS = 12
# Upper limit on numbers that an error lists.
_MOST_NAMED = 8
# Upper limit on initializations of a module, each of which takes as long as tracing it.
_MOST_INITS = 32


class SeveralFit(CannotRemake):
    """Raised if several choices of integers make the arrays.

    Attributes:
        least: the module with the choice that is a part of all others, or None.
    """

    def __init__(self, told: str, least: LinenModule | None) -> None:
        super().__init__(f"several choices of its numbers make these arrays: {told}")
        self.least = least


class LinenMethod(NamedTuple):
    """A method of a Linen module, as the function of a network.

    Attributes:
        module: the module.
        of: returns the same method of another module.
        keywords: further arguments of ``init``, besides a key and inputs.
    """

    module: LinenModule
    of: Callable[[LinenModule], Callable[..., Any]]
    keywords: Mapping[str, Any]

    def in_sizes(
        self,
        own: Sequence[Any],
        inputs: Sequence[Any],
        before: Shapes,
        after: Shapes,
        sizes: Sizes,
    ) -> LinenModule:
        """Returns the module in other sizes.

        Args:
            own: the network's inputs.
            inputs: the larger network's inputs.
            before: the shapes of the network's arrays, by path.
            after: the shapes of the larger network's arrays, by path.
            sizes: for each size that changes, its possible new sizes.

        Raises:
            CannotRemake: if no choice of its integers makes these arrays.
            SeveralFit: if several choices do.
        """
        numbers, today = _Numbers(self.module), self._made(self.module, own)
        if isinstance(today, Exception):
            raise CannotRemake(f"it cannot be initialized with these inputs: {first_line(today)}")
        # A network's variables may be the bare parameters.
        start = "" if before.keys() & today.keys() else "params/"
        collections = {path.partition("/")[0] for path in before} if not start else {"params"}
        others = {path for path in today if path.removeprefix(start) not in before}

        def ours(made: Shapes) -> Shapes:
            """Returns the shapes of arrays that the network has; its variables may lack a cache."""
            its = (path for path in made if path.partition("/")[0] in collections)
            return {path.removeprefix(start): made[path] for path in its if path not in others}

        inits = itertools.count(1)

        def shapes(given: Sequence[int]) -> Shapes | None:
            if next(inits) > _MOST_INITS:
                raise CannotRemake(f"too many of its numbers may be sizes: {numbers.some()}")
            try:
                module = numbers.changed(given)
            except Exception:  # a class that validates its fields may raise anything
                return None
            made = self._made(module, inputs)
            return None if isinstance(made, Exception) else ours(made)

        known = ours(today)
        if other := [path for path, shape in known.items() if shape != before[path]]:
            path = other[0]
            raise CannotRemake(
                f"it makes {path} of {known[path]}, but the network has {before[path]}"
            )
        if not known:
            raise CannotRemake("its initialization makes no array of the network")
        wanted = {path: after[path] for path in after if path in known or path not in before}
        # With larger inputs, the same numbers make larger arrays.
        is_same = _shapes(own) == _shapes(inputs)
        begun = known if is_same else shapes(numbers.given) or known
        ratios = _ratios(numbers.given, sizes, {n for shape in before.values() for n in shape})
        for ways, strictly in ((sizes, True), (ratios, False)):
            fits = fitting(shapes, numbers.given, begun, ways, wanted, strictly=strictly)
            found = [*itertools.islice(fits, _MOST_TOLD)]
            if len(found) == 1:
                return numbers.changed(found[0])
            if found:
                least = smallest(numbers.given, found)
                told = "; or ".join(map(numbers.told, found))
                raise SeveralFit(told, None if least is None else numbers.changed(least))
        raise CannotRemake(f"no choice of its numbers makes these arrays: {numbers.some()}")

    def _made(self, module: LinenModule, inputs: Sequence[Any]) -> dict[str, Any] | Exception:
        """Returns the shapes of the arrays that a module makes, by path, or the error it raises."""
        arrays, back = apart(tuple(inputs))

        def init(*arrays: Any) -> Any:
            return module.init(jax.random.key(0), *back(arrays), **self.keywords)

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                made = jax.eval_shape(init, *arrays)
            except Exception as error:  # a module may raise anything
                return error
        return {path: tuple(a.shape) for path, a in arrays_of(leaves_by_path(made)).items()}


def _shapes(inputs: Sequence[Any]) -> list[tuple[int, ...]]:
    return [tuple(leaf.shape) for leaf in jax.tree.leaves(inputs) if is_array(leaf)]


@dataclasses.dataclass(frozen=True)
class OnlyOutputs:
    """A function that returns outputs and updated variables, without the latter."""

    apply: Callable[..., Any]

    def __call__(self, *arguments: Any) -> Any:
        return self.apply(*arguments)[0]


def method_of(function: Any) -> LinenMethod | None:
    """Returns a function as a method of a Linen module; None if it is not such a method.

    Recognizes methods inside of ``functools.partial`` with keywords, and of ``jax.jit``.
    """
    inner: LinenMethod | None
    if inspect.ismethod(function) and is_linen(function.__self__):
        method = function.__func__
        return LinenMethod(function.__self__, lambda module: types.MethodType(method, module), {})
    if isinstance(function, functools.partial) and not function.args:
        if (inner := method_of(function.func)) is None:
            return None
        given, of = function.keywords, inner.of
        taken = {name: given[name] for name in given if name not in _OF_APPLY}
        return LinenMethod(
            inner.module,
            lambda module: functools.partial(of(module), **given),
            {**inner.keywords, **taken},
        )
    if isinstance(function, WithReferences):
        if (inner := method_of(function.apply)) is None:
            return None
        kernels, of = function.kernels, inner.of
        return inner._replace(of=lambda module: WithReferences(of(module), kernels))
    if isinstance(function, OnlyOutputs):
        if (inner := method_of(function.apply)) is None:
            return None
        of = inner.of
        return inner._replace(of=lambda module: OnlyOutputs(of(module)))
    if isinstance(function, jax.stages.Wrapped):
        return method_of(getattr(function, "__wrapped__", None))
    return None


def is_linen(value: Any) -> bool:
    """Whether a value is a Flax Linen module."""
    return not isinstance(value, type) and library_of(value) == "Flax Linen"


def _ratios(given: Iterable[int], sizes: Sizes, known: Collection[int]) -> Sizes:
    """Returns new values of numbers that change by the same factor as a size.

    Such a number is this size, or its ratio to one of the known sizes, as in an MLP.
    """
    pairs = {(old, new) for old, its in sizes.items() for new in its if old}
    found: dict[int, set[int]] = {}
    for n, (old, new) in itertools.product(dict.fromkeys(given), pairs):
        if n and old % n == 0 and (n == old or old // n in known) and n * new % old == 0:
            found.setdefault(n, set()).add(n * new // old)
    return found if sum(map(len, found.values())) <= _MOST_RATIOS else {}


class _Numbers:
    """The integers in a module.

    Args:
        module: the module.

    Attributes:
        given: the integers, in the order of the search.
    """

    def __init__(self, module: LinenModule) -> None:
        self._module = module
        self._names, self.given = list[str](), list[int]()

        def see(name: str, number: int) -> int:
            self._names.append(name)
            self.given.append(number)
            return number

        _Changed(see).of("", module)

    def changed(self, given: Sequence[int]) -> LinenModule:
        """Returns the module with other integers."""
        numbers = iter(given)
        return _Changed(lambda name, old: next(numbers)).of("", self._module)

    def told(self, given: Sequence[int]) -> str:
        """Returns a text with the integers that change, and their new values."""
        rows = zip(self._names, self.given, given, strict=True)
        return ", ".join(f"{name}={new}" for name, old, new in rows if old != new)

    def some(self) -> str:
        """Returns a text with the first integers, and the number of further ones."""
        said = [f"{name}={number}" for name, number in zip(self._names, self.given, strict=True)]
        more = [f"and {len(said) - _MOST_NAMED} more"] if len(said) > _MOST_NAMED else []
        return ", ".join([*said[:_MOST_NAMED], *more]) or "it has none"


class _Changed:
    """Copies values with other integers. Values whose integers stay the same are not copied.

    Args:
        number: takes the name of an integer and the integer; returns its new value.
    """

    def __init__(self, number: Callable[[str, int], int]) -> None:
        self._number = number
        # By identity, because many modules may share a configuration.
        self._known: dict[int, tuple[Any, Any]] = {}

    def of(self, name: str, value: Any, depth: int = 0) -> Any:
        """Returns a value with other integers.

        Args:
            name: its path in the module.
            value: the value.
            depth: its depth in the module.
        """
        if is_size(value):
            return self._number(name, value)
        if isinstance(value, tuple):  # equal tuples in different places may be one object
            return self._changed(name, value, depth)
        if id(value) not in self._known:
            self._known[id(value)] = value, value  # a value may contain itself
            self._known[id(value)] = value, self._changed(name, value, depth)
        return self._known[id(value)][1]

    def _changed(self, name: str, value: Any, depth: int) -> Any:
        try:
            parts, make = _opened(value) if depth < _DEEPEST else ({}, _none)
        except Exception:  # any class may raise anything
            return value
        changed = {key: self.of(_named(name, key), part, depth + 1) for key, part in parts.items()}
        is_same = all(changed[key] is part for key, part in parts.items())
        return value if is_same else make(changed)


def _named(name: str, key: Any) -> str:
    if not isinstance(key, str):
        return f"{name}[{key}]"
    return f"{name}.{key}" if name else key


_Parts = Mapping[Any, Any]


def _opened(value: Any) -> tuple[_Parts, Callable[[_Parts], Any]]:
    """Returns the parts of a value by name or index, and a function that rebuilds the value."""
    if isinstance(value, type | enum.Enum) or is_array(value):
        return {}, _none
    if dataclasses.is_dataclass(value):
        names = [f.name for f in dataclasses.fields(value) if f.init and f.name not in _OF_LINEN]
        fields = {name: getattr(value, name) for name in names if hasattr(value, name)}
        make: Callable[..., Any] = functools.partial(dataclasses.replace, value)  # type: ignore[type-var]
        make = value.clone if is_linen(value) else make  # type: ignore[union-attr]
        return fields, lambda parts: make(**parts)
    if isinstance(value, dict | list):  # subclasses may have other constructors, so copy

        def filled(parts: _Parts) -> Any:
            new = copy.copy(value)
            for key, part in parts.items():
                new[key] = part
            return new

        return dict(value if isinstance(value, dict) else enumerate(value)), filled
    if isinstance(value, Mapping):
        return value, type(value)
    if isinstance(value, tuple):
        of_items = getattr(type(value), "_make", type(value))  # NamedTuples have _make
        return dict(enumerate(value)), lambda parts: of_items(parts.values())
    if isinstance(value, functools.partial):
        arguments = dict(enumerate(value.args)) | value.keywords
        count = len(value.args)
        return arguments, lambda parts: functools.partial(
            value.func,
            *(parts[place] for place in range(count)),
            **{name: parts[name] for name in value.keywords},
        )
    if callable(value) or type(value).__module__.partition(".")[0] in ("jax", "numpy", "builtins"):
        return {}, _none

    def made(parts: _Parts) -> Any:
        new = copy.copy(value)
        vars(new).update(parts)
        return new

    return getattr(value, "__dict__", {}), made


def _none(parts: _Parts) -> Any:
    raise AssertionError("it has no parts")
