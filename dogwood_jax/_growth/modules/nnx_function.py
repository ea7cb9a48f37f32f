"""Converts NNX modules to functions of their state, and back."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import jax
import optax
from flax import nnx

from dogwood_jax._base.problems import listed
from dogwood_jax._base.trees import PyTree
from dogwood_jax._growth.modules.of_nnx import value_of
from dogwood_jax._program.kernels import without_references
from dogwood_jax._widths.widths import Widths

Module = TypeVar("Module", bound=nnx.Module)


@dataclass(frozen=True, eq=False)
class ModuleFunction:
    """A module as a function of its state and inputs, without side effects.

    Attributes:
        graph: the module without its state.
        trains: whether it is called in training mode, whatever the mode of ``graph``.
    """

    graph: Any
    trains: bool = False

    def __call__(self, state: PyTree, *inputs: Any) -> tuple[Any, PyTree]:
        merged = nnx.merge(self.graph, state)
        if self.trains:
            merged.train()
        outputs = merged(*inputs)
        return outputs, nnx.state(merged)

    def in_training(self) -> "ModuleFunction":
        """Returns the function of the module in training mode."""
        return replace(self, trains=True)


def function_of(model: nnx.Module) -> tuple[ModuleFunction, PyTree]:
    """Returns a module as a function of its state and inputs, and the state."""
    graph, state = nnx.split(model)
    return ModuleFunction(graph), state


def with_state(model: Module, state: PyTree) -> Module:
    """Returns a copy of a module with another state of the same structure."""
    new: Module = nnx.merge(nnx.split(model)[0], state)
    return new


def in_evaluation(model: nnx.Module) -> tuple[Callable[..., Any], PyTree]:
    """Returns a module in evaluation mode as a function of its state, and the state.

    The function returns only outputs. The mode of ``model`` does not change.
    """
    copy = with_state(model, nnx.state(model))
    copy.eval()  # type: ignore[no-untyped-call]
    apply, state = function_of(copy)
    return lambda state, *inputs: apply(state, *inputs)[0], state


def as_target(model: nnx.Module | None) -> dict[str, Any]:
    """Returns a larger module as the arguments ``target`` and ``target_apply`` of functions."""
    if model is None:
        return {}
    apply, state = function_of(model)
    return {"target": state, "target_apply": apply if callable(model) else None}


def traced_module(widths: Widths) -> nnx.Module | None:
    """Returns the traced module without values; None if the widths do not come from a module."""
    network = widths.network
    apply = None if network is None else without_references(network.apply)
    if network is None or not isinstance(apply, ModuleFunction):
        return None
    module: nnx.Module = nnx.merge(apply.graph, network.variables)
    return module


def arrays_of(tree: PyTree) -> PyTree:
    """Returns a tree with variables replaced by the arrays that they hold."""
    return jax.tree.map(
        lambda leaf: value_of(leaf) if _is_variable(leaf) else leaf, tree, is_leaf=_is_variable
    )


def _is_variable(leaf: Any) -> bool:
    return hasattr(leaf, "get_metadata")  # nnx.Variable, and VariableState in older Flax


def optimizer_of(
    model: nnx.Module,
    like: nnx.Optimizer[Any],
    begin: Callable[[PyTree], PyTree],
    state: PyTree,
    step: Any,
) -> nnx.Optimizer[Any]:
    """Returns an optimizer of a module, in a given state.

    Args:
        model: the module.
        like: an optimizer with the same ``tx`` and ``wrt``.
        begin: takes the parameters and returns a state with the structure of ``state``.
        state: the state, with arrays in place of variables.
        step: its number of steps.
    """
    # The constructor of nnx.Optimizer wraps the arrays of its state in variables.
    beginning = optax.GradientTransformationExtraArgs(begin, like.tx.update)
    new = nnx.Optimizer(model, beginning, wrt=like.wrt)
    new.tx = like.tx
    held = jax.tree.leaves((new.opt_state, new.step), is_leaf=_is_variable)
    # Variables of masked parameters hold no array.
    variables = [variable for variable in held if jax.tree.leaves(value_of(variable))]
    arrays = jax.tree.leaves((state, step))
    for variable, array in zip(variables, arrays, strict=True):
        if hasattr(variable, "set_value"):
            variable.set_value(array)
        else:  # Flax before 0.12
            variable.value = array
    return new


def expect_same_mode(call: str, model: nnx.Module, target: nnx.Module) -> None:
    """Raises if one module is in training mode where the other is in evaluation mode.

    Args:
        call: the public function that takes both.
        model: the module that was traced.
        target: the larger module.

    Raises:
        ValueError: names the places of different modes.
    """
    own, its = _flags(model), _flags(target)
    problems = [
        f"{path}: is {flag} in the traced module, {its[path]} in target"
        for path, flag in own.items()
        if its.get(path, flag) != flag
    ]
    if problems:
        what = "the two modules are in different modes; call train() or eval() on both"
        raise ValueError(listed(f"{call}: {what}", problems)) from None


def _flags(model: nnx.Module) -> dict[str, bool]:
    """Returns the flags that hold the mode of a module, by path."""
    return {
        "/".join(map(str, (*keys, name))): flag
        for keys, node in nnx.iter_graph(model)
        for name in ("deterministic", "use_running_average")
        if isinstance(flag := getattr(node, name, None), bool)
    }
