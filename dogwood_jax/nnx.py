"""Trace and grow ``flax.nnx`` modules: a thin adapter over ``trace``, ``plan`` and ``grow``.

A module is split into its graph and its state, a pytree of arrays; the larger module gives the
target. Paths and widths are those of the state: ``"layers/0/kernel"``.
"""

from collections.abc import Mapping
from typing import Any, TypeVar

import jax
from flax import nnx

from dogwood_jax._grow import grow as _grow
from dogwood_jax._plan import plan
from dogwood_jax._trace import trace as _trace
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

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> import dogwood_jax as dw
        >>> rngs = nnx.Rngs(0)
        >>> model = nnx.Sequential(nnx.Linear(4, 8, rngs=rngs), nnx.Linear(8, 2, rngs=rngs))
        >>> dw.nnx.trace(model, jnp.ones((1, 4)))["layers/0"].size
        8
    """
    graph, state = nnx.split(model)

    def apply(state: Any, *inputs: Any) -> tuple[Any, Any]:
        merged = nnx.merge(graph, state)
        outputs = merged(*inputs)
        return outputs, nnx.state(merged)

    return _trace(apply, state, *inputs, **overrides)


def grow(
    model: nnx.Module,
    wide_model: Module,
    *inputs: Any,
    key: jax.Array | None = None,
    strategy: Strategy | Mapping[str, Strategy] | None = None,
    interface: bool = False,
) -> Module:
    """Returns the larger module with the function of the smaller one.

    Neither module is changed. Which widths grow is worked out from the shapes of both.

    Args:
        model: the trained module.
        wide_model: a module of the same structure with larger widths.
        *inputs: what to call ``model`` with to trace it: arrays or ``jax.ShapeDtypeStruct``.
        key: PRNG key for free weights. Without it they are ``wide_model``'s own values.
        strategy: as for ``plan``.
        interface: whether dimensions of inputs and outputs may grow, as for ``plan``.

    Returns:
        A new module like ``wide_model``.

    Raises:
        ValueError: if no growth of the widths explains the larger shapes, or a growth would change
            outputs; see ``plan``.

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
    _, state = nnx.split(model)
    wide_graph, wide_state = nnx.split(wide_model)
    growth = plan(trace(model, *inputs), target=wide_state, strategy=strategy, interface=interface)
    fresh = wide_state if key is None else None
    return nnx.merge(wide_graph, _grow(state, growth, key=key, fresh=fresh))
