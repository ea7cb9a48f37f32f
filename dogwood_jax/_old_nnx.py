"""How functions of ``dogwood_jax.nnx`` were called in 0.2.0: ``takes_old_form``.

Modules stood in the place of widths and growths, with inputs behind them. Such a call warns, and
does the same by calls of today.
"""

import functools
import inspect
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ParamSpec, TypeVar

from flax import nnx

from dogwood_jax._front.verify import verify_if_possible
from dogwood_jax._growth.growth import Growth
from dogwood_jax._modules.nnx_function import in_evaluation
from dogwood_jax._widths.widths import Widths

P = ParamSpec("P")
R = TypeVar("R")


def takes_old_form(
    old: Callable[..., Any], *others: Callable[..., Any]
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Lets a public function also be called as in 0.2.0, with a warning.

    Args:
        old: does what the old call did. It takes the public function, ``others`` and the old
            arguments.
        *others: more public functions.
    """

    def decorated(function: Callable[P, R]) -> Callable[P, R]:
        as_before = functools.partial(old, function, *others)
        new_form, old_form = inspect.signature(function), inspect.signature(as_before)
        known = new_form.parameters.keys() | old_form.parameters.keys()

        @functools.wraps(function)
        def either(*args: P.args, **kwargs: P.kwargs) -> R:
            given = _bound(new_form, args, kwargs)
            is_new = given is not None and not any(
                isinstance(given.get(name), nnx.Module) for name in _NO_MODULES
            )
            is_network = isinstance(args[0] if args else kwargs.get("model"), nnx.Module | Widths)
            is_old = kwargs.keys() <= known and _bound(old_form, args, kwargs) is not None
            if is_new or not (is_network and is_old):
                return function(*args, **kwargs)
            what = f"nnx.{function.__name__} is deprecated in the form of dogwood_jax 0.2.0"
            warnings.warn(f"{what}; use {_INSTEAD[old]}", DeprecationWarning, stacklevel=2)
            result: R = as_before(*args, **kwargs)
            return result

        return either

    return decorated


# Arguments that were modules, and are none any more.
_NO_MODULES = ("widths", "sizes", "experts", "growth")


def _bound(signature: inspect.Signature, args: Any, kwargs: Any) -> dict[str, Any] | None:
    """Returns arguments by name; None if they do not fit."""
    try:
        return signature.bind(*args, **kwargs).arguments
    except TypeError:
        return None


# Calls of 0.2.0 -----------------------------------------------------------------------------------


def plan(
    new: Callable[..., Growth],
    trace: Callable[..., Widths],
    model: Any,
    sizes: Any = None,
    *inputs: Any,
    target: Any = None,
    **options: Any,
) -> Growth:
    """Plans for a module or widths, by sizes or a larger module."""
    widths = model if isinstance(model, Widths) else trace(model, *inputs)
    if isinstance(sizes, nnx.Module) and target is None:
        sizes, target = None, sizes
    return new(widths, sizes, target=target, **options)


def grow(
    new: Callable[..., Any],
    trace: Callable[..., Widths],
    plan: Callable[..., Growth],
    model: Any,
    larger: Any,
    *inputs: Any,
    key: Any = None,
    fresh: Any = None,
    strategy: Any = None,
    interface: bool = False,
    verify: bool = True,
) -> Any:
    """Grows by a growth or into a larger module, and verifies the result."""
    growth = larger
    if isinstance(larger, nnx.Module) and fresh is None:
        widths, fresh = trace(model, *inputs), larger
        growth = plan(widths, target=larger, strategy=strategy, interface=interface)
    elif strategy is not None or interface:
        raise TypeError("nnx.grow: strategy= and interface= belong to nnx.plan, beside a Growth")
    elif inputs and isinstance(growth, Growth) and growth.widths.network is None:
        network = trace(model, *inputs).network
        growth = replace(growth, widths=replace(growth.widths, network=network))
    grown = new(model, growth, key=key, fresh=fresh)
    if verify and callable(grown) and (inputs or growth is not larger):
        verify_if_possible(*in_evaluation(model), *in_evaluation(grown), inputs, growth)
    return grown


def deepen(new: Callable[..., Any], model: Any, target: Any, *inputs: Any, **options: Any) -> Any:
    """Deepens with inputs behind the modules."""
    return new(model, target, inputs=inputs, **options)


def upcycle(
    new: Callable[..., Growth],
    trace: Callable[..., Widths],
    model: Any,
    larger: Any,
    *inputs: Any,
    **options: Any,
) -> Growth:
    """Plans more experts by modules."""
    return new(trace(model, *inputs), target=larger, **options)


# What to call now.
_INSTEAD = {
    plan: "dw.nnx.plan(dw.nnx.trace(module, *inputs), sizes), or target=larger_module for sizes",
    grow: "dw.nnx.grow(module, growth, fresh=larger_module), with growth = "
    "dw.nnx.plan(dw.nnx.trace(module, *inputs), target=larger_module), and verify by dw.nnx.verify",
    deepen: "dw.nnx.deepen(module, target, inputs=inputs)",
    upcycle: "dw.nnx.upcycle(dw.nnx.trace(module, *inputs), target=larger_module)",
}
