"""The training mode of a network whose function is a Flax module: ``in_training``."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax

from dogwood_jax._base.trees import PyTree
from dogwood_jax._growth.modules.of_linen import OnlyOutputs, method_of

# Names of arguments that choose the mode of a Linen module, with their values in training.
_MODES = {
    "train": True,
    "training": True,
    "is_training": True,
    "deterministic": False,
    "use_running_average": False,
}


def in_training(apply: Callable[..., Any], variables: PyTree) -> Callable[..., Any] | None:
    """Returns a network's function in training mode, without updated variables; None if unknown.

    Known are NNX modules, and methods of Linen modules that choose the mode by an argument.

    Args:
        apply: the network's function.
        variables: the network's variables.
    """
    if hasattr(apply, "in_training"):  # an NNX module
        return OnlyOutputs(apply.in_training())
    if (method := method_of(apply)) is None:
        return None
    names = inspect.signature(type(method.module).__call__).parameters
    mode = {name: value for name, value in _MODES.items() if name in names}
    if not mode:
        return None
    others = [name for name in variables if name != "params"]
    rngs = {"dropout": jax.random.key(0)}
    return OnlyOutputs(functools.partial(apply, **mode, mutable=others, rngs=rngs))
