"""Short descriptions of values for error messages: ``described``.

Classes of other libraries are recognized by the names of their modules, so that no library is
imported only to find out that a value is not from it. This package's own classes are recognized in
the same way, so that all of its files may import this one.
"""

import reprlib
from typing import Any

import jax
import numpy as np

from dogwood_jax._base.trees import PyTree, is_array

_LIBRARIES = {
    "Flax Linen": ("flax.linen", "Module"),
    "NNX": ("flax.nnx", "Module"),
    "Equinox": ("equinox", "Module"),
    "Haiku": ("haiku", "Module"),
    "Keras": ("keras", "Layer"),
}


def described(value: Any) -> str:
    """Returns a description of a value in a few words."""
    name, library = type(value).__name__, library_of(value)
    if isinstance(value, type):
        return f"the class {value.__name__}" + f" of {library} modules" * (library is not None)
    if library is not None:
        return f"{name}, {_article(library)} {library} module"
    if is_nnx_optimizer(value):
        return "an nnx.Optimizer"
    if is_a(value, "Rngs", "flax.nnx"):
        return "an nnx.Rngs"
    if isinstance(value, jax.ShapeDtypeStruct):
        return f"the shape {value.dtype}{list(value.shape)} of an array"
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        return f"an array {value.dtype}{list(value.shape)}"
    if value is None or isinstance(value, str | bytes | bool | int | float | complex):
        return "None" if value is None else f"the {name} {reprlib.repr(value)}"
    if is_optimizer(value):
        return "an optimizer"
    if isinstance(value, tuple) and (states := optimizer_states(value)):
        return f"an optimizer's state of {', '.join(states)}"
    if callable(value):
        called = getattr(value, "__name__", None)
        return f"the function {called if isinstance(called, str) else name}"
    if is_a(value, "Widths"):
        return "Widths"
    if is_a(value, "Growth"):
        return "a Growth"
    arrays = sum(map(is_array, jax.tree.leaves(value)))
    if jax.tree_util.all_leaves([value]):
        return f"{_article(name)} {name}"
    if not arrays:
        return f"{_article(name)} {name} without arrays, {reprlib.repr(value)}"
    return f"{_article(name)} {name} of {arrays} array{'s' * (arrays > 1)}"


def _article(noun: str) -> str:
    return "an" if noun[0] in "AEIOUaeiou" or noun == "NNX" else "a"


def is_a(value: Any, name: str, package: str = "dogwood_jax") -> bool:
    """Whether a value (or class) is an instance (or subclass) of a package's class of this name."""
    cls = value if isinstance(value, type) else type(value)
    return any(
        base.__name__ == name and f"{base.__module__}.".startswith(f"{package}.")
        for base in cls.__mro__
    )


def library_of(value: Any) -> str | None:
    """Returns the library of a module or of a class of modules; None for other values."""
    cls = value if isinstance(value, type) else type(value)
    if cls.__module__.startswith("equinox._"):
        return None  # a transformed function or bound method, which Equinox wraps in a module
    found = (library for library, (package, name) in _LIBRARIES.items() if is_a(cls, name, package))
    return next(found, None)


def is_nnx_optimizer(value: Any) -> bool:
    """Whether a value is an ``nnx.Optimizer``."""
    return not isinstance(value, type) and is_a(value, "Optimizer", "flax.nnx")


def is_train_state(value: Any) -> bool:
    """Whether a value holds parameters and an optimizer's state, like Flax's ``TrainState``."""
    return hasattr(value, "opt_state") and hasattr(value, "params")


def is_optimizer(value: Any) -> bool:
    """Whether a value is an optimizer with the interface of Optax."""
    if isinstance(value, type) or library_of(value) is not None or is_a(value, "Rngs", "flax.nnx"):
        return False  # nnx.Rngs seems to have every attribute
    return callable(getattr(value, "init", None)) and callable(getattr(value, "update", None))


def optimizer_states(tree: PyTree) -> list[str]:
    """Returns the class names of the Optax states in a tree, each once."""
    classes: dict[str, None] = {}

    def see(node: Any) -> bool:
        cls = type(node)
        if cls.__module__.partition(".")[0] == "optax" and cls.__name__ != "MaskedNode":
            classes[cls.__name__] = None
        return False

    jax.tree.leaves(tree, is_leaf=see)
    return list(classes)


def first_line(error: Exception) -> str:
    """Returns the type of an error and the first line of its message."""
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"


def holds_arrays(tree: PyTree) -> bool:
    """Whether a tree has an array among its leaves, or the shape of one."""
    return any(map(is_array, jax.tree.leaves(tree)))
