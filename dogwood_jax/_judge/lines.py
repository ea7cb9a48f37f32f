"""Where in the caller's own code an equation comes from: ``line_of``."""

from collections.abc import Sequence
from typing import Any

_PACKAGES = ("/jax/", "/flax/", "/equinox/", "/haiku/", "/optax/", "/numpy/", "/dogwood_jax/_")


def line_of(eqn: Any) -> str:
    """Returns the line that made an equation, ``"model.py:41"``; nothing if it is not known."""
    place = ""
    try:
        frames = eqn.source_info.traceback.as_python_traceback()
    except AttributeError:
        frames = None
    while frames is not None:
        file = frames.tb_frame.f_code.co_filename
        if not any(package in file for package in _PACKAGES):
            place = f"{file.rpartition('/')[2]}:{frames.tb_lineno}"
        frames = frames.tb_next
    return place


def with_line(eqns: Sequence[Any]) -> Any:
    """Returns the last equation whose line is known, of some that run one another.

    A function that JAX has compiled is called at a line, but its own equations have none. If no
    line is known, it is the last equation.
    """
    return next((eqn for eqn in reversed(eqns) if line_of(eqn)), eqns[-1])
