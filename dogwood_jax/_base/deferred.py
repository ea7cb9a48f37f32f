"""Arrays that are made when they are needed: ``Deferred``."""

from collections.abc import Callable, Sequence
from typing import Any

import jax


class Deferred(jax.ShapeDtypeStruct):
    """The shape and dtype of an array, and a function that makes or reads its values.

    A network whose arrays do not fit in memory is a tree of deferred arrays.

    Attributes:
        make: makes or reads the values.
        mapped: the source array and the map from it to these values; None if the values depend on
            more than that.
        facts: everything except the network's own arrays that decides the values; None if unknown.
    """

    def __init__(
        self,
        shape: Sequence[int],
        dtype: Any,
        make: Callable[[], Any],
        *,
        mapped: tuple[Any, Any] | None = None,
        facts: Any = None,
    ) -> None:
        super().__init__(tuple(shape), dtype)  # type: ignore[no-untyped-call]
        self.make, self.mapped, self.facts = make, mapped, facts


def made(leaf: Any) -> Any:
    """Returns the values of a leaf, and makes them first if the leaf is deferred."""
    return leaf.make() if isinstance(leaf, Deferred) else leaf
