"""Trace and grow ``flax.nnx`` modules: a thin adapter over ``trace``, ``plan`` and ``grow``.

A module is split into its graph and its state, a pytree of arrays; the larger module gives the
target. An ``nnx.Optimizer`` grows along. Paths and widths are those of the state:
``"layers/0/kernel"``.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeVar

import jax
from flax import nnx

from dogwood_jax._arguments import GROWTH, NNX, NNX_OPTIMIZER, expect, expect_call
from dogwood_jax._grow import grow as _grow
from dogwood_jax._growth import Growth
from dogwood_jax._opt_state import grow_state
from dogwood_jax._plan import plan as _plan
from dogwood_jax._trace import trace as _trace
from dogwood_jax._verify import verify_if_possible
from dogwood_jax._widths import Widths
from dogwood_jax.strategies import Strategy

Module = TypeVar("Module", bound=nnx.Module)


def trace(model: nnx.Module, *inputs: Any, **overrides: Any) -> Widths:
    """Finds every width of a module by tracing a call of it.

    Args:
        model: any ``nnx.Module`` that can be called, with arrays or, from ``nnx.eval_shape``,
            shapes as its variables. It is traced in the mode it is in (``train()``, ``eval()``).
        *inputs: what to call it with: pytrees of arrays or ``jax.ShapeDtypeStruct``.
        **overrides: ``fix`` and ``tie``, as for ``dogwood_jax.trace``.

    Returns:
        The widths of its state.

    Raises:
        TypeError: if ``model`` is no module that can be called with these inputs.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> import dogwood_jax as dw
        >>> rngs = nnx.Rngs(0)
        >>> model = nnx.Sequential(nnx.Linear(4, 8, rngs=rngs), nnx.Linear(8, 2, rngs=rngs))
        >>> dw.nnx.trace(model, jnp.ones((1, 4)))["layers/0"].size
        8
    """
    expect("nnx.trace(model, *inputs)", model=(NNX, model))
    expect_call("nnx.trace(model, *inputs)", "model", model, *inputs)
    apply, state = _function_of(model)
    return _trace(apply, state, *inputs, **overrides)


def plan(
    model: nnx.Module,
    wide_model: nnx.Module,
    *inputs: Any,
    strategy: Strategy | Mapping[str, Strategy] | None = None,
    interface: bool = False,
) -> Growth:
    """Plans how a module becomes a larger one, wider, deeper or both.

    Args:
        model: the trained module.
        wide_model: the larger module. Widths that differ are found from both modules' programs and
            shapes, as by ``dogwood_jax.plan`` with a target, layers that only it has are inserted.
        *inputs: what to call the modules with: pytrees of arrays or ``jax.ShapeDtypeStruct``.
        strategy: as for ``dogwood_jax.plan``.
        interface: whether dimensions of inputs and outputs may grow, as there.

    Returns:
        The growth of the module's state.

    Raises:
        TypeError: if one of the two is no module.
        ValueError: if no growth of the widths explains the larger shapes, or a growth would change
            outputs.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> import dogwood_jax as dw
        >>> def mlp(width):
        ...     rngs = nnx.Rngs(0)
        ...     layers = nnx.Linear(4, width, rngs=rngs), nnx.Linear(width, 2, rngs=rngs)
        ...     return nnx.Sequential(*layers)
        >>> dw.nnx.plan(mlp(8), mlp(16), jnp.ones((1, 4)))
        Growth(layers/0: 8 -> 16)
    """
    expect("nnx.plan(model, wide_model, *inputs)", model=(NNX, model), wide_model=(NNX, wide_model))
    apply, target = _function_of(wide_model)
    return _plan(
        trace(model, *inputs),
        target=target,
        target_apply=apply if callable(wide_model) else None,
        strategy=strategy,
        interface=interface,
    )


def grow(
    model: nnx.Module,
    wide_model: Module,
    *inputs: Any,
    key: jax.Array | None = None,
    strategy: Strategy | Mapping[str, Strategy] | None = None,
    interface: bool = False,
    verify: bool = True,
) -> Module:
    """Returns the larger module with the function of the smaller one.

    Neither module is changed. Which widths grow, and which layers are new, is worked out from
    both, see ``plan``. Then both are run in evaluation mode, and it is an error if outputs moved by
    more than rounding explains, see ``dogwood_jax.verify``. Growths that do not preserve outputs
    are not verified, nor is anything under ``jax.jit``, where there are no values.

    Args:
        model: the trained module.
        wide_model: a larger module, wider, deeper or both.
        *inputs: what to call ``model`` with: arrays or ``jax.ShapeDtypeStruct``, of which random
            ones are made to verify.
        key: PRNG key for free weights. Without it they are ``wide_model``'s own values.
        strategy: as for ``plan``.
        interface: whether dimensions of inputs and outputs may grow, as for ``plan``.
        verify: whether to run both modules, which costs two calls.

    Returns:
        A new module like ``wide_model``.

    Raises:
        ValueError: if no growth of the widths explains the larger shapes, or a growth would change
            outputs, see ``plan``; or if outputs moved.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> import dogwood_jax as dw
        >>> def mlp(width, seed):
        ...     rngs = nnx.Rngs(seed)
        ...     layers = nnx.Linear(4, width, rngs=rngs), nnx.relu, nnx.Linear(width, 2, rngs=rngs)
        ...     return nnx.Sequential(*layers)
        >>> small, x = mlp(8, seed=0), jnp.ones((1, 4))
        >>> wide = dw.nnx.grow(small, mlp(16, seed=1), x)
        >>> wide.layers[0].kernel.shape, bool(jnp.allclose(wide(x), small(x)))
        ((4, 16), True)
    """
    growth = plan(model, wide_model, *inputs, strategy=strategy, interface=interface)
    wide_graph, fresh = nnx.split(wide_model)
    grown = nnx.merge(
        wide_graph, _grow(nnx.state(model), growth, key=key, fresh=fresh if key is None else None)
    )
    if verify and callable(grown):
        verify_if_possible(*_in_evaluation(model), *_in_evaluation(grown), inputs, growth)
    return grown


def grow_optimizer(
    optimizer: nnx.Optimizer[Any],
    wide_model: nnx.Module,
    growth: Growth,
    *,
    second_moment: Literal["mean", "zeros"] = "mean",
    fields: Mapping[str, Any] | None = None,
) -> nnx.Optimizer[Any]:
    """Returns an optimizer for the module that has grown, with the state of the old one.

    Args:
        optimizer: the optimizer of the trained module; it is not changed.
        wide_model: the module that ``grow`` returned.
        growth: from ``plan``.
        second_moment: as for ``dogwood_jax.grow_opt_state``.
        fields: as there.

    Returns:
        A new ``nnx.Optimizer`` of the same ``tx`` and ``wrt``, at the same step.

    Raises:
        TypeError: if arguments are of the wrong kind, or in the wrong order.
        ValueError: as ``dogwood_jax.grow_opt_state`` does.

    Example:
        >>> import jax.numpy as jnp
        >>> import optax
        >>> from flax import nnx
        >>> import dogwood_jax as dw
        >>> def mlp(width):
        ...     rngs = nnx.Rngs(0)
        ...     layers = nnx.Linear(4, width, rngs=rngs), nnx.Linear(width, 2, rngs=rngs)
        ...     return nnx.Sequential(*layers)
        >>> small, x = mlp(8), jnp.ones((1, 4))
        >>> optimizer = nnx.Optimizer(small, optax.adam(1e-3), wrt=nnx.Param)
        >>> wide = dw.nnx.grow(small, mlp(16), x)
        >>> growth = dw.nnx.plan(small, mlp(16), x)
        >>> dw.nnx.grow_optimizer(optimizer, wide, growth).opt_state[0].nu["layers"][0].kernel.shape
        (4, 16)
    """
    expect(
        "nnx.grow_optimizer(optimizer, wide_model, growth)",
        optimizer=(NNX_OPTIMIZER, optimizer),
        wide_model=(NNX, wide_model),
        growth=(GROWTH, growth),
    )
    new = nnx.Optimizer(wide_model, optimizer.tx, wrt=optimizer.wrt)
    state = grow_state(
        _arrays_of(optimizer.opt_state),
        growth,
        optimizer.tx,
        jax.eval_shape(_arrays_of, nnx.state(wide_model, optimizer.wrt)),
        _arrays_of(nnx.state(wide_model)),
        second_moment,
        fields or {},
    )
    variables = jax.tree.leaves((new.opt_state, new.step), is_leaf=_is_variable)
    arrays = jax.tree.leaves((state, _value(optimizer.step)))
    for variable, array in zip(variables, arrays, strict=True):
        if hasattr(variable, "set_value"):
            variable.set_value(array)
        else:  # Flax before 0.12
            variable.value = array
    return new


def _in_evaluation(model: nnx.Module) -> tuple[Callable[..., Any], Any]:
    """Returns a module as a function of its state and inputs without side effects, and the state.

    The function is in evaluation mode; the module stays in its own.
    """
    copy = nnx.merge(*nnx.split(model))
    copy.eval()  # type: ignore[no-untyped-call]
    apply, state = _function_of(copy)
    return lambda state, *inputs: apply(state, *inputs)[0], state


def _function_of(model: nnx.Module) -> tuple[Callable[..., Any], Any]:
    """Returns a module as a function of its state and inputs, and the state."""
    graph, state = nnx.split(model)

    def apply(state: Any, *inputs: Any) -> tuple[Any, Any]:
        merged = nnx.merge(graph, state)
        outputs = merged(*inputs)
        return outputs, nnx.state(merged)

    return apply, state


def _is_variable(leaf: Any) -> bool:
    return hasattr(leaf, "get_metadata")  # nnx.Variable, and what holds its state in old Flax


def _value(variable: Any) -> Any:
    return variable.get_value() if hasattr(variable, "get_value") else variable.value


def _arrays_of(tree: Any) -> Any:
    """Returns a tree with arrays in place of the variables that hold them."""
    return jax.tree.map(
        lambda leaf: _value(leaf) if _is_variable(leaf) else leaf, tree, is_leaf=_is_variable
    )
