"""Explains why a network's function fails with wrong variables or inputs: ``explaining``.

The errors of other libraries, such as one about a parameter's shape, hide the mistake.
"""

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax

from dogwood_jax._base.arguments import is_integer
from dogwood_jax._base.described import (
    described,
    first_line,
    holds_arrays,
    is_train_state,
    library_of,
)
from dogwood_jax._base.problems import listed
from dogwood_jax._base.trees import PyTree, is_array

_COLLECTION = re.compile(r'collection "(\w+)"')


@contextlib.contextmanager
def explaining(
    call: str,
    name: str,
    function: Callable[..., Any],
    variables: PyTree,
    inputs: Sequence[Any],
    *,
    variables_are: str = "",
) -> Iterator[None]:
    """Replaces an error of a network's function by one that names the mistake or the call.

    Args:
        call: the call of the public function, ``"trace(apply, variables, *inputs)"``.
        name: its argument that holds the function.
        function: the network's function.
        variables: the variables that it is called with.
        inputs: the inputs that it is called with.
        variables_are: the argument of the public function that holds the variables, if they may
            belong to another network.

    Raises:
        TypeError: names the mistake and the next step. If none is recognized and ``variables_are``
            is given, names that argument and the error; otherwise, names the inputs and the error.
    """
    try:
        yield
    except Exception as error:
        found = [*_mistakes(name, function, variables, inputs), *_said_by_flax(name, error)]
        if not found and _is_own(error):
            raise
        if not found and not variables_are:
            given = ", ".join(map(described, inputs))
            raise TypeError(
                f"{call}: {name} fails with these variables and the inputs {given}: "
                f"{first_line(error)}"
            ) from error
        if not found:
            raise TypeError(
                f"{call}: does {variables_are} belong to {name}?\n"
                f"The function fails with {variables_are} and these inputs: {first_line(error)}"
            ) from error
        if len(found) == 1:
            raise TypeError(f"{call}: {name} fails, because {found[0]}") from error
        raise TypeError(listed(f"{call}: {name} fails", found)) from error


def _is_own(error: Exception) -> bool:
    """Whether this library raised an error, which then explains the mistake."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    name = trace.tb_frame.f_globals.get("__name__", "") if trace is not None else ""
    return name.startswith("dogwood_jax.")


def expect_no_mistakes(
    call: str,
    name: str,
    function: Callable[..., Any],
    variables: PyTree,
    inputs: Sequence[Any],
) -> None:
    """Raises if arguments look like a known mistake and the function fails with them.

    Takes the arguments of ``explaining``. The function is traced only if a mistake is suspected.

    Raises:
        TypeError: names the mistake and the next step.
    """
    if any(True for _ in _mistakes(name, function, variables, inputs)):
        with explaining(call, name, function, variables, inputs):
            jax.eval_shape(function, variables, *inputs)


def _mistakes(
    name: str, function: Callable[..., Any], variables: PyTree, inputs: Sequence[Any]
) -> Iterator[str]:
    trees = [tree for tree in inputs if isinstance(tree, Mapping) and holds_arrays(tree)]
    if is_array(variables) and trees:
        yield (
            "the arguments seem to be in the wrong order: variables is "
            f"{described(variables)}; an input is {described(trees[0])}"
        )
    module = getattr(function, "__self__", None)
    is_linen = library_of(module) == "Flax Linen"
    if is_linen and getattr(function, "__name__", "") == "init":
        yield f"{name} is module.init, which makes variables; pass module.apply"
    elif is_train_state(variables):
        yield (
            f"variables is {described(variables)}; pass the network's own arrays, "
            '{"params": state.params}, or state.params if the function takes these'
        )
    elif is_linen and isinstance(variables, Mapping) and "params" not in variables:
        yield (
            f"variables, {described(variables)}, has no collection 'params'; pass all of the "
            'variables, {"params": ...}'
        )
    if library_of(variables) == "Equinox" and _takes_one_sample(function, variables, inputs):
        yield (
            "an Equinox module takes one sample and is called with several; pass lambda module, "
            "x: jax.vmap(module)(x)"
        )
    if not inputs:
        yield f"it is called without inputs; pass the inputs that {name} takes"
    for number, one in enumerate(inputs):
        if isinstance(one, str):
            yield f"input {number} is the text {one!r}; pass an array, or set it beforehand"
        elif isinstance(one, tuple | list) and one and all(map(is_integer, one)):
            yield (
                f"input {number} is {one!r}, which looks like a shape; pass an array, or "
                f"jax.ShapeDtypeStruct({tuple(one)}, jnp.float32)"
            )


def _takes_one_sample(function: Callable[..., Any], module: Any, inputs: Sequence[Any]) -> bool:
    """Whether a function of a module runs if it is mapped over the first axis of its inputs."""
    try:
        jax.eval_shape(jax.vmap(lambda *one: function(module, *one)), *inputs)
    except Exception:  # the function may raise anything
        return False
    return True


def _said_by_flax(name: str, error: Exception) -> Iterator[str]:
    """Yields explanations of Flax errors about collections, training mode and random keys."""
    kind, said = type(error).__name__, str(error)
    collection = match[1] if (match := _COLLECTION.search(said)) else ""
    if kind == "ScopeCollectionNotFound" and collection != "params":
        yield (
            f"variables has no collection {collection!r}; pass all of the variables, "
            f'{{"params": ..., "{collection}": ...}}'
        )
    elif kind == "ModifyScopeVariableError":
        yield (
            f"{name} is in training mode and updates the collection {collection!r}; call it in "
            "evaluation mode, such as functools.partial(module.apply, train=False), or let it "
            f"return the updates, functools.partial(module.apply, mutable=[{collection!r}])"
        )
    elif kind == "InvalidRngError":
        yield (
            f"{name} draws random numbers, as dropout does in training mode, but has no key; call "
            "it in evaluation mode, such as functools.partial(module.apply, deterministic=True)"
        )
