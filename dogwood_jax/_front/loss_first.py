"""Take a loss before variables and widths, in the order of ``trace``: ``loss_first``."""

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, Protocol, TypeVar, overload

from dogwood_jax._base.trees import PyTree
from dogwood_jax._widths.widths import Widths

P = ParamSpec("P")
R = TypeVar("R", covariant=True)


class InBothOrders(Protocol[P, R]):
    """A function that takes its loss first, or in the place of its own signature."""

    @overload
    def __call__(
        self, loss: Callable[..., Any], variables: PyTree, widths: Widths, /, *batch: Any, **_: Any
    ) -> R: ...
    @overload
    def __call__(self, *arguments: P.args, **options: P.kwargs) -> R: ...


def loss_first(function: Callable[P, R]) -> InBothOrders[P, R]:
    """Lets a function of ``(variables, widths, loss, *batch)`` take the loss first, too.

    The signature has the loss behind, because the loss can be left out where scores or norms take
    its place. All functions that need a function take it first.

    Args:
        function: the function.
    """

    @functools.wraps(function)
    def in_order(*arguments: Any, **options: Any) -> R:
        if len(arguments) > 2 and isinstance(arguments[2], Widths):
            loss, variables, widths, *batch = arguments
            arguments = (variables, widths, loss, *batch)
        return function(*arguments, **options)

    return in_order
