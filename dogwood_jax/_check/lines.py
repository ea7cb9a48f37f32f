"""Finds the line of the caller's code that made an equation: ``line_of``."""

from collections.abc import Iterator, Sequence
from typing import Any

_PACKAGES = ("/jax/", "/flax/", "/equinox/", "/haiku/", "/optax/", "/numpy/", "/dogwood_jax/_")


def line_of(eqn: Any) -> str:
    """Returns the line that made an equation, ``"model.py:41"``; empty if unknown."""
    place = ""
    for frame in _frames(eqn):
        file = frame.tb_frame.f_code.co_filename
        if not any(package in file for package in _PACKAGES):
            place = f"{file.rpartition('/')[2]}:{frame.tb_lineno}"
    return place


def with_line(eqns: Sequence[Any]) -> Any:
    """Returns the innermost equation whose line is known, of equations that run one another.

    Equations inside a function that JAX has compiled have no line, but the call of the function has
    one. If no line is known, returns the last equation.
    """
    return next((eqn for eqn in reversed(eqns) if line_of(eqn)), eqns[-1])


# Libraries whose own constants do not depend on sizes of the caller.
_LIBRARIES = ("/jax/_src/nn/", "/flax/", "/equinox/", "/haiku/", "/optax/")


def is_of_library(eqns: Sequence[Any]) -> bool:
    """Whether a library's function, such as a layer, made any of the equations."""
    return any(map(_is_of_library, eqns))


def _is_of_library(eqn: Any) -> bool:
    found = False
    for frame in _frames(eqn):
        file = frame.tb_frame.f_code.co_filename
        if any(library in file for library in _LIBRARIES):
            found = True
        elif not any(package in file for package in _PACKAGES):
            found = False
    return found


def _frames(eqn: Any) -> Iterator[Any]:
    """Yields the traceback entries of an equation, the outermost first."""
    try:
        frames = eqn.source_info.traceback.as_python_traceback()
    except AttributeError:
        return
    while frames is not None:
        yield frames
        frames = frames.tb_next
