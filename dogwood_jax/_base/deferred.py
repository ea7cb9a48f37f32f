"""Arrays that are made when they are needed: ``Deferred``."""

from collections.abc import Callable, Sequence
from typing import Any

import jax


class Deferred(jax.ShapeDtypeStruct):
    """The shape and dtype of an array, and what makes or reads its values.

    A network whose arrays do not fit in memory is a tree of these.
    """

    def __init__(self, shape: Sequence[int], dtype: Any, make: Callable[[], Any]) -> None:
        super().__init__(tuple(shape), dtype)  # type: ignore[no-untyped-call]
        self.make = make


def made(leaf: Any) -> Any:
    """Returns the values of a leaf: made, if they are deferred."""
    return leaf.make() if isinstance(leaf, Deferred) else leaf
