"""Refuses arguments of the wrong kind: ``expect``, ``expect_call`` and ``expect_arrays``.

A wrong argument causes later errors that hide the mistake, such as a list of all paths. These
checks run before any computation. They name the mistake, the value that came and the next step.
"""

import functools
import inspect
import itertools
import operator
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, ParamSpec, SupportsFloat, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from dogwood_jax._base.described import (
    described,
    holds_arrays,
    is_a,
    is_nnx_optimizer,
    is_optimizer,
    library_of,
    optimizer_states,
)
from dogwood_jax._base.problems import listed
from dogwood_jax._base.trees import PyTree, is_array, is_traced

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True)
class ArgumentKind:
    """The kind of value that an argument must have.

    Attributes:
        what: its description.
        fits: whether a value is of this kind.
        way_out: the next step for a value of another kind, or an empty text.
    """

    what: str
    fits: Callable[[Any], bool]
    way_out: Callable[[Any], str] = lambda value: ""


def expect(call: str, **arguments: tuple[ArgumentKind, Any]) -> None:
    """Raises if arguments are of the wrong kind, or in the wrong order.

    Args:
        call: the call of the public function, ``"grow(variables, growth)"``.
        **arguments: the kind and the value of each argument, in the function's order.

    Raises:
        TypeError: lists for each wrong argument its kind, the value that came and the next step.
    """
    wrong = {name: one for name, one in arguments.items() if not one[0].fits(one[1])}
    if not wrong:
        return
    kinds, values = zip(*arguments.values(), strict=True)
    for order in itertools.permutations(values):
        if all(kind.fits(value) for kind, value in zip(kinds, order, strict=True)):
            moved = [name for name, one, other in zip(arguments, values, order) if one is not other]
            came = "; ".join(f"{name} is {described(arguments[name][1])}" for name in moved)
            raise TypeError(f"{call}: the arguments are in the wrong order: {came}")
    _raise(call, wrong)


def expect_given(call: str, **arguments: tuple[ArgumentKind, Any]) -> None:
    """Raises if keyword arguments are of the wrong kind, unless they are None; see ``expect``."""
    given = {name: one for name, one in arguments.items() if one[1] is not None}
    _raise(call, {name: one for name, one in given.items() if not one[0].fits(one[1])})


def _raise(call: str, wrong: Mapping[str, tuple[ArgumentKind, Any]]) -> None:
    problems = []
    for name, (kind, value) in wrong.items():
        way_out = kind.way_out(value)
        problem = f"{name} must be {kind.what}, got {described(value)}"
        problems.append(f"{problem}; {way_out}" if way_out else problem)
    if len(problems) == 1:
        raise TypeError(f"{call}: {problems[0]}")
    if problems:
        raise TypeError(listed(f"{call}: arguments of the wrong kind", problems))


# Functions ----------------------------------------------------------------------------------------


def _is_function(value: Any) -> bool:
    library = library_of(value)
    return callable(value) and (
        library is None or (library == "Equinox" and not isinstance(value, type))
    )


def _function_of(value: Any) -> str:
    library = library_of(value)
    if library is not None and isinstance(value, type):
        return "make an instance of the class first"
    if library == "Flax Linen":
        return "pass its function, module.apply, and the variables that module.init returns"
    if library == "NNX":
        return (
            "dw.nnx.trace(module, *inputs) takes NNX modules, other functions take "
            "lambda state, x: nnx.merge(graph, state)(x), where graph, state = nnx.split(module)"
        )
    if library == "Equinox":
        return (
            "pass a function of the module and inputs, such as lambda module, x: "
            "jax.vmap(module)(x), and the module, which holds its arrays, as variables"
        )
    if library == "Keras":
        return "dw.keras.trace(model, x) takes models of Keras"
    return "pass its apply" if callable(getattr(value, "apply", None)) else ""


FUNCTION = ArgumentKind(
    "a function of variables and inputs, such as module.apply", _is_function, _function_of
)


def expect_call(call: str, name: str, function: Callable[..., Any], *arguments: Any) -> None:
    """Raises if a function does not take these arguments.

    Args:
        call: the call of the public function.
        name: its argument that holds the function.
        function: the function that will be called.
        *arguments: its arguments: the variables, if it takes any, and the inputs.

    Raises:
        TypeError: names the argument that is missing or too much.
    """
    why = misfit(function, *arguments)
    module = getattr(function, "__self__", None)
    if why is None and library_of(module) == "Flax Linen" and function.__name__ == "apply":
        why = misfit(inspect.unwrap(type(module).__call__), module, *arguments[1:])
    if library_of(function) == "Equinox" and holds_arrays(function):
        if why is not None or len(arguments) == 1:
            _raise(call, {name: (FUNCTION, function)})
    if why is not None:
        way_out = f"pass all inputs that {name} takes, and no others"
        if why.startswith(_KEYWORD):
            way_out = f"set it beforehand, functools.partial({name}, ...)"
        given = ", ".join(map(described, arguments)) or "no inputs"
        raise TypeError(f"{call}: {name} cannot be called with {given}: {why}; {way_out}")


def expect_scalar(call: str, loss: Any) -> None:
    """Raises ValueError if a loss, or its ``jax.ShapeDtypeStruct``, is not a scalar."""
    if getattr(loss, "shape", None) != ():
        way_out = "pass a loss, not the network; if there is one loss per sample, take the mean"
        if isinstance(loss, tuple):
            way_out = "pass a function that returns the loss alone, lambda *args: loss(*args)[0]"
        raise ValueError(f"{call}: the loss must be a scalar, got {described(loss)}; {way_out}")


def takes_inputs(function: Callable[P, R]) -> Callable[P, R]:
    """Makes a public function explain how to pass keyword arguments of the network.

    Args:
        function: takes a network's function or an NNX module first, and positional inputs.

    Returns:
        The function, which raises TypeError for unknown keyword arguments, with the next step.
    """
    known = inspect.signature(function).parameters
    network = next(iter(known))

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        foreign = {name: value for name, value in kwargs.items() if name not in known}
        if foreign:
            its = ", ".join(f"{name}={value!r}" for name, value in foreign.items())
            call = f"lambda variables, *inputs: {network}(variables, *inputs, {its})"
            way_out = f"pass a function that sets it in place of {network}: {call}"
            if any(map(holds_arrays, foreign.values())):
                way_out = (
                    f"pass inputs by position, {function.__name__}({network}, variables, input)"
                )
            if args and library_of(args[0]) == "NNX":
                way_out = f"set it in the module beforehand, such as the mode by {network}.eval()"
            raise TypeError(
                f"{function.__name__} has no argument {', '.join(foreign)}; if the network has it, "
                f"{way_out}"
            )
        return function(*args, **kwargs)

    return checked


def _is_of_python(function: Any) -> bool:
    return inspect.isfunction(function) or inspect.ismethod(function)


_KEYWORD = "missing the keyword argument"


def misfit(function: Callable[..., Any], *arguments: Any) -> str | None:
    """Returns why a function's signature does not accept these arguments; None if it does."""
    # A Python function keeps its own signature, even if functools.wraps copies another one to it.
    # The results of jax.jit and other transformations take the arguments of their function.
    while not _is_of_python(function) and hasattr(function, "__wrapped__"):
        function = function.__wrapped__
    try:
        signature = inspect.signature(function, follow_wrapped=not _is_of_python(function))
    except (TypeError, ValueError):  # a function that is not written in Python
        return None
    try:
        bound = signature.bind_partial(*arguments).arguments
        for name, parameter in signature.parameters.items():
            if parameter.kind is parameter.KEYWORD_ONLY and parameter.default is parameter.empty:
                if name not in bound:
                    return f"{_KEYWORD} {name!r}"
        signature.bind(*arguments)
    except TypeError as error:
        return str(error)
    return None


# Variables ----------------------------------------------------------------------------------------


def _is_variables(value: Any) -> bool:
    return not isinstance(value, type) and not is_nnx_optimizer(value) and holds_arrays(value)


def _variables_of(value: Any) -> str:
    library = library_of(value)
    if library is not None and isinstance(value, type):
        return "pass the arrays of a module, not its class; jax.eval_shape gives their shapes"
    if library == "Flax Linen":
        return (
            "pass the variables that module.init returns; where shapes are enough, pass the "
            "result of jax.eval_shape"
        )
    if library == "NNX":
        return "pass nnx.state(module); the functions of dw.nnx take modules"
    if is_nnx_optimizer(value):
        return "dw.nnx.grow_optimizer grows it"
    return ""


VARIABLES = ArgumentKind(
    "a pytree of arrays, the network's variables", _is_variables, _variables_of
)
# Variables of a network that may have none.
TREE = ArgumentKind(
    VARIABLES.what,
    lambda value: (
        VARIABLES.fits(value)
        or not (value is None or is_a(value, "Growth") or jax.tree.leaves(value))
    ),
    VARIABLES.way_out,
)


def expect_arrays(
    call: str, name: str, tree: PyTree, given: Collection[str], known: Collection[str]
) -> None:
    """Raises if a tree has none of the network's paths.

    If only some arrays are missing, it does not raise: callers list these arrays.

    Args:
        call: the call of the public function.
        name: its argument that holds the tree.
        tree: the argument.
        given: paths of the arrays in it.
        known: paths of the network's arrays.

    Raises:
        ValueError: describes the tree and names the next step.
    """
    found = set(given)
    if not known or not found.isdisjoint(known):
        return
    outer, inner = (next(iter(paths)).partition("/")[0] for paths in (known, given))
    inside = {path.removeprefix(f"{outer}/") for path in known if path.startswith(f"{outer}/")}
    if inside and inside <= found:
        way_out = f"pass all of the variables, {{{outer!r}: ...}}"
    elif found.issuperset(f"{inner}/{path}" for path in known):
        way_out = f"pass {name}[{inner!r}]"
    elif optimizer_states(tree):
        way_out = "dw.grow_opt_state grows an optimizer's state"
    else:
        way_out = "it is another network's"
    came = described(tree) if is_array(tree) else f"{described(tree)}, {some(given)}"
    raise ValueError(f"{call}: {name} must hold {some(known)}, got {came}; {way_out}")


def expect_values(
    call: str, arrays: Mapping[str, Any], way_out: str, *, name: str = "variables"
) -> None:
    """Raises if an argument holds only the shapes of arrays, unless JAX is tracing.

    Args:
        call: the call of the public function.
        arrays: the arrays, by path.
        way_out: the next step.
        name: the argument that holds the arrays.

    Raises:
        TypeError: names the first array without values.
    """
    for path, array in arrays.items():
        if isinstance(array, jax.ShapeDtypeStruct) and not is_traced(jnp.zeros([])):
            raise TypeError(
                f"{call}: {name} must hold values, got {described(array)} for {path}; {way_out}"
            )


def some(paths: Collection[str]) -> str:
    """Returns a text with the first two of some paths, and the number of further ones."""
    shown = [repr(path) for path in itertools.islice(paths, 2)]
    more = len(paths) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


# Results of this package --------------------------------------------------------------------------


def _growth_of(value: Any) -> str:
    sizes = isinstance(value, Mapping) and not holds_arrays(value)
    return "plan it first, growth = dw.plan(widths, sizes)" if sizes else ""


def _width_of(value: Any) -> str:
    if isinstance(value, str):
        return f"pass widths[{value!r}]"
    return "pass one of them, widths[name]" if is_a(value, "Widths") else ""


GROWTH = ArgumentKind(
    "the Growth that dw.plan returns", lambda value: is_a(value, "Growth"), _growth_of
)
WIDTHS = ArgumentKind("the Widths that dw.trace returns", lambda value: is_a(value, "Widths"))
WIDTH = ArgumentKind("a Width, widths[name]", lambda value: is_a(value, "Width"), _width_of)
BY_WIDTH = ArgumentKind(
    "a mapping from widths, {name: ...}",
    lambda value: isinstance(value, Mapping) and not is_a(value, "Widths"),
)
KERNELS = ArgumentKind(
    "a mapping from names to functions of JAX, {'pallas_call': reference}",
    lambda value: isinstance(value, Mapping) and all(map(callable, value.values())),
)


# Modules, optimizers and keys --------------------------------------------------------------------


def _optimizer_of(value: Any) -> str:
    if is_nnx_optimizer(value):
        return "pass optimizer.tx"
    return "call it, as in optax.adam(1e-3)" if inspect.isfunction(value) else ""


def _is_state(value: Any) -> bool:
    if value is None or isinstance(value, type) or is_optimizer(value) or is_nnx_optimizer(value):
        return False
    return not jax.tree_util.all_leaves([value])


def _state_of(value: Any) -> str:
    if is_nnx_optimizer(value):
        return "dw.nnx.grow_optimizer grows it"
    return "pass the state that tx.init and tx.update return"


def _is_key(value: Any) -> bool:
    if not isinstance(value, jax.Array | np.ndarray):
        return False
    if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        return value.shape == ()
    return value.dtype == np.uint32 and value.shape in ((2,), (4,))  # from jax.random.PRNGKey


def _key_of(value: Any) -> str:
    if is_a(value, "Rngs", "flax.nnx"):
        return "pass rngs.params(), a key that they draw"
    return f"pass jax.random.key({int(value)})" if is_integer(value) else ""


def _nnx_of(value: Any) -> str:
    library = library_of(value)
    if library == "NNX":
        return "make an instance of the class; nnx.eval_shape makes one without values"
    if library == "Flax Linen":
        return "dw.trace(module.apply, variables, *inputs) takes Linen modules"
    if is_array(value):
        return "inputs come after all modules"
    if isinstance(value, Mapping) and not holds_arrays(value):
        return "pass a module in these sizes"
    way_out = "dw.trace(apply, variables, *inputs) takes functions of variables and inputs"
    return f"pass the module itself; {way_out}" if holds_arrays(value) else way_out


NNX = ArgumentKind(
    "an nnx.Module",
    lambda value: library_of(value) == "NNX" and not isinstance(value, type),
    _nnx_of,
)
NNX_OPTIMIZER = ArgumentKind("an nnx.Optimizer", is_nnx_optimizer)
OPTIMIZER = ArgumentKind(
    "the optax.GradientTransformation of an optimizer", is_optimizer, _optimizer_of
)
STATE = ArgumentKind("the state of an optimizer", _is_state, _state_of)
KEY = ArgumentKind("one random key of JAX, such as jax.random.key(0)", _is_key, _key_of)


# Plain values -------------------------------------------------------------------------------------


def is_integer(value: Any) -> bool:
    """Whether a value is a Python integer or a scalar integer array, and not a boolean."""
    if isinstance(value, bool):
        return False
    try:
        operator.index(value)
    except TypeError:
        return False
    return True


def is_count(value: Any, *, at_least: int) -> bool:
    """Whether a value is a Python or NumPy integer, not a boolean, and not less than a limit."""
    if isinstance(value, bool):
        return False
    return isinstance(value, int | np.integer) and bool(value >= at_least)


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, SupportsFloat):
        return False
    return getattr(value, "shape", ()) == ()


def _are_names(value: Any) -> bool:
    return isinstance(value, Collection) and all(isinstance(name, str) for name in value)


BOOLEAN = ArgumentKind("True or False", lambda value: isinstance(value, bool | np.bool_))
INTEGER = ArgumentKind("an integer", is_integer)
NUMBER = ArgumentKind("a number", _is_number)
# Variables that may also be plain numbers.
DATA = ArgumentKind(
    VARIABLES.what,
    lambda value: holds_arrays(value) or not callable(value),
    VARIABLES.way_out,
)
MAPPING = ArgumentKind("a mapping", lambda value: isinstance(value, Mapping))
NAMES = ArgumentKind(
    "a name or a list of names",
    _are_names,
    lambda value: f"pass {value.name!r}" if is_a(value, "Width") else "",
)
PATH = ArgumentKind(
    "the path of a file, str or os.PathLike",
    lambda value: isinstance(value, str | os.PathLike),
)
