"""Arrays that are made when they are needed: ``Deferred``."""

from collections.abc import Callable, Sequence
from typing import Any

import jax


class Deferred(jax.ShapeDtypeStruct):
    """The shape and dtype of an array, and what makes or reads its values.

    A network whose arrays do not fit in memory is a tree of these.

    Attributes:
        make: makes or reads the values.
        mapped: the array that these values are made of, and the map that does it; None if more
            than a map decides them.
        facts: what decides the values beside the network's own arrays; None if that is not known.
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
    """Returns the values of a leaf: made, if they are deferred."""
    return leaf.make() if isinstance(leaf, Deferred) else leaf
