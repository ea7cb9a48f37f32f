"""The functions of ``dogwood_jax`` for ``flax.nnx`` modules, by the same names.

They take a module in place of a function and its variables, and a larger module as ``target=`` or
``fresh=``. Other arguments and errors are as in ``dogwood_jax``: ``TypeError`` for arguments of
the wrong kind or in the wrong order, ``ValueError`` for requests that cannot be fulfilled. No
module is changed in place: functions return new modules. Paths and widths refer to the module's
state, such as ``"layers/0/kernel"``.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import jax
from flax import nnx

import dogwood_jax as dw
from dogwood_jax._base.arguments import (
    BY_WIDTH,
    GROWTH,
    NNX,
    NNX_OPTIMIZER,
    WIDTHS,
    expect,
    expect_arrays,
    expect_call,
    expect_given,
    takes_inputs,
)
from dogwood_jax._base.described import described
from dogwood_jax._base.trees import leaves_by_path
from dogwood_jax._front.larger import larger_nnx
from dogwood_jax._front.verify import verify_if_possible
from dogwood_jax._growth.modules.nnx_function import (
    Module,
    arrays_of,
    as_target,
    expect_same_mode,
    function_of,
    in_evaluation,
    optimizer_of,
    traced_module,
    with_state,
)
from dogwood_jax._growth.modules.of_nnx import resized_module, value_of
from dogwood_jax._growth.rounds import unshared
from dogwood_jax._optimizer.growable import with_step_counts_of
from dogwood_jax._optimizer.opt_state import grow_state
from dogwood_jax._plan.sizes import named_sizes
from dogwood_jax._program.kernels import Kernels
from dogwood_jax._widths.trace import Place
from dogwood_jax.strategies import DepthStrategy, Strategy


@takes_inputs
def trace(
    model: nnx.Module,
    *inputs: Any,
    fix: Iterable[Place] = (),
    tie: Iterable[tuple[Place, Place]] = (),
    kernels: Kernels | None = None,
) -> dw.Widths:
    """Finds every width of a module by tracing a call of it, as ``dogwood_jax.trace`` does.

    The module is traced in its current mode (``train()``, ``eval()``). Its variables may hold
    arrays or, from ``nnx.eval_shape``, shapes. The widths are those of its state.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> import dogwood_jax as dw
        >>> rngs = nnx.Rngs(0)
        >>> model = nnx.Sequential(nnx.Linear(4, 8, rngs=rngs), nnx.Linear(8, 2, rngs=rngs))
        >>> dw.nnx.trace(model, jnp.ones((1, 4)))["layers/0"].size
        8
    """
    _expect_modules("nnx.trace(model, *inputs)", inputs, model=model)
    return dw.trace(*function_of(model), *inputs, fix=fix, tie=tie, kernels=kernels)


def plan(
    widths: dw.Widths,
    sizes: Mapping[Any, int] | None = None,
    *,
    target: nnx.Module | None = None,
    keep: Mapping[Any, Any] | None = None,
    merge: Mapping[Any, Sequence[Sequence[int]]] | None = None,
    strategy: Strategy | Mapping[str, Strategy] | None = None,
    depth: DepthStrategy | None = None,
    interface: bool = False,
    check: bool = True,
) -> dw.Growth:
    """Plans how a module grows or shrinks, as ``dogwood_jax.plan`` does.

    ``target`` is the larger module, wider, deeper or both, in the mode in which the old one was
    traced. It also serves as ``target_apply``. Without a target, the larger module is made by
    calling the classes of the traced module with new sizes. Their arguments must have the names of
    their fields, which shows which fields are sizes. If that is not clear, ``grow`` raises and
    asks for the larger module.

    Returns:
        The growth of the module's state.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> import dogwood_jax as dw
        >>> def mlp(width):
        ...     rngs = nnx.Rngs(0)
        ...     layers = nnx.Linear(4, width, rngs=rngs), nnx.Linear(width, 2, rngs=rngs)
        ...     return nnx.Sequential(*layers)
        >>> widths = dw.nnx.trace(mlp(8), jnp.ones((1, 4)))
        >>> dw.nnx.plan(widths, {"layers/0": 16})
        Growth(layers/0: 8 -> 16)
        >>> dw.nnx.plan(widths, target=mlp(16))
        Growth(layers/0: 8 -> 16)
    """
    expect_given("nnx.plan", target=(NNX, target))
    try:
        growth = dw.plan(
            widths,
            sizes,
            keep=keep,
            merge=merge,
            strategy=strategy,
            depth=depth,
            interface=interface,
            check=check,
            **as_target(_in_sizes(widths, sizes) if target is None else target),
        )
    except ValueError:
        if target is not None and (module := traced_module(widths)) is not None:
            expect_same_mode("nnx.plan", module, target)
        raise
    return replace(growth, structure=None) if target is None else growth


def grow(
    model: Module,
    growth: dw.Growth,
    *,
    key: jax.Array | None = None,
    fresh: Module | None = None,
    copy: bool = False,
) -> Module:
    """Returns the larger module with the values of the trained one, as ``dogwood_jax.grow`` does.

    ``fresh`` is the larger module; a growth with new layers needs it. Without it, the larger module
    is made from the trained one, as ``plan`` does for sizes. Free weights are drawn if there is a
    ``key``, and taken from ``fresh`` otherwise. Both modules share unchanged arrays, unless
    ``copy`` is true.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> import dogwood_jax as dw
        >>> rngs, x = nnx.Rngs(0), jnp.ones((1, 4))
        >>> model = nnx.Sequential(nnx.Linear(4, 8, rngs=rngs), nnx.Linear(8, 2, rngs=rngs))
        >>> growth = dw.nnx.plan(dw.nnx.trace(model, x), {"layers/0": 16})
        >>> wide = dw.nnx.grow(model, growth, key=jax.random.key(2))
        >>> wide.layers[0].out_features, bool(jnp.allclose(wide(x), model(x)))
        (16, True)
    """
    expect("nnx.grow(model, growth)", model=(NNX, model), growth=(GROWTH, growth))
    expect_given("nnx.grow", fresh=(NNX, fresh))
    state = leaves_by_path(nnx.state(model))
    known = [leaf.path for leaf in growth.widths.leaves]
    expect_arrays("nnx.grow", "model", model, state, known)
    if missing := [path for path in known if path not in state]:
        raise ValueError(
            f"nnx.grow: model must be the module that the growth was planned for, got "
            f"{described(model)} without {', '.join(missing)}; trace and plan this one"
        )
    larger, values = fresh, None if fresh is None or key is not None else nnx.state(fresh)
    if larger is None:
        what = "cannot grow this module", "pass the larger module, fresh="
        larger, growth = _larger(model, growth, *what), replace(growth, structure=None)
    return with_state(larger, dw.grow(nnx.state(model), growth, key=key, fresh=values, copy=copy))


def deepen(
    model: nnx.Module,
    target: Module,
    *,
    inputs: Sequence[Any] = (),
    rename: Mapping[str, str] | None = None,
    copy: bool = False,
    interleave: bool = False,
    batch: Sequence[Any] | None = None,
    key: jax.Array | None = None,
    verify: bool = True,
) -> Module:
    """Inserts layers without changing what a module computes, as ``dogwood_jax.deepen`` does.

    ``target`` is the deeper module. Without ``key``, free values of new layers are taken from it.
    The modules are verified in evaluation mode.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> import dogwood_jax as dw
        >>> def mlp(depth):
        ...     layers = [nnx.Linear(4, 4, rngs=nnx.Rngs(seed)) for seed in range(depth)]
        ...     return nnx.Sequential(*(part for layer in layers for part in (layer, nnx.relu)))
        >>> small, x = mlp(1), jnp.ones((1, 4))
        >>> deeper = dw.nnx.deepen(small, mlp(2), inputs=(x,))
        >>> len(deeper.layers), bool(jnp.allclose(deeper(x), small(x)))
        (4, True)
    """
    _expect_modules("nnx.deepen(model, target, inputs=)", inputs, model=model, target=target)
    apply, state = function_of(model)
    arrays = dw.deepen(
        state,
        apply=apply,
        inputs=inputs,
        rename=rename,
        copy=copy,
        interleave=interleave,
        batch=batch,
        key=key,
        verify=False,
        **as_target(target),
    )
    deeper = with_state(target, arrays)
    if verify:
        preserving = dw.Growth(dw.Widths(()), ())
        networks = *in_evaluation(model), *in_evaluation(deeper)
        verify_if_possible(*networks, tuple(inputs), preserving)
    return deeper


def narrow(
    model: Module, widths: dw.Widths, keep: Mapping[Any, Any], *, interface: bool = False
) -> Module:
    """Returns a module without some of its units, as ``dogwood_jax.narrow`` does.

    The smaller module is made by calling classes, as in ``plan``. If that is not possible, a
    ``ValueError`` explains what to do instead.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> import dogwood_jax as dw
        >>> rngs = nnx.Rngs(0)
        >>> model = nnx.Sequential(nnx.Linear(4, 8, rngs=rngs), nnx.Linear(8, 2, rngs=rngs))
        >>> model.layers[1].kernel[...] = model.layers[1].kernel[...].at[3:].set(0)
        >>> widths = dw.nnx.trace(model, jnp.ones((1, 4)))
        >>> dw.nnx.narrow(model, widths, {"layers/0": [0, 1, 2]}).layers[0].out_features
        3
    """
    expect(
        "nnx.narrow(model, widths, keep)",
        model=(NNX, model),
        widths=(WIDTHS, widths),
        keep=(BY_WIDTH, keep),
    )
    growth = dw.plan(widths, keep=keep, interface=interface)
    way_out = "nnx.update(smaller, dw.narrow(nnx.state(model), widths, keep))"
    way_out = f"make the smaller module, and {way_out}"
    smaller = _larger(model, growth, "cannot narrow this module", way_out)
    return with_state(smaller, dw.narrow(nnx.state(model), widths, keep, interface=interface))


@takes_inputs
def compare(old_model: nnx.Module, new_model: nnx.Module, *inputs: Any) -> dw.typing.Difference:
    """Measures how far the outputs of two modules differ, as ``dogwood_jax.compare`` does.

    Both modules run in evaluation mode.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> import dogwood_jax as dw
        >>> model = nnx.Linear(4, 2, rngs=nnx.Rngs(0))
        >>> dw.nnx.compare(model, model, jnp.ones((1, 4))).absolute
        0.0
    """
    call = "nnx.compare(old_model, new_model, *inputs)"
    _expect_modules(call, inputs, old_model=old_model, new_model=new_model)
    return dw.compare(*in_evaluation(old_model), *in_evaluation(new_model), *inputs)


@takes_inputs
def verify(
    model: nnx.Module,
    wide_model: nnx.Module,
    *inputs: Any,
    growth: dw.Growth | None = None,
    key: jax.Array | None = None,
) -> dw.typing.Difference:
    """Runs a module and the grown module, and raises if outputs moved beyond rounding.

    Both modules run in evaluation mode. Otherwise it works like ``dogwood_jax.verify``.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> import dogwood_jax as dw
        >>> rngs, x = nnx.Rngs(0), jnp.ones((1, 4))
        >>> model = nnx.Sequential(nnx.Linear(4, 8, rngs=rngs), nnx.Linear(8, 2, rngs=rngs))
        >>> growth = dw.nnx.plan(dw.nnx.trace(model, x), {"layers/0": 16})
        >>> wide = dw.nnx.grow(model, growth, key=jax.random.key(0))
        >>> dw.nnx.verify(model, wide, x).relative < 1e-6
        True
    """
    call = "nnx.verify(model, wide_model, *inputs)"
    _expect_modules(call, inputs, model=model, wide_model=wide_model)
    networks = *in_evaluation(model), *in_evaluation(wide_model)
    return dw.verify(*networks, *inputs, growth=growth, key=key)


def grow_optimizer(
    optimizer: nnx.Optimizer[Any],
    growth: dw.Growth,
    wide_model: nnx.Module,
    *,
    second_moment: Literal["mean", "zeros"] | None = None,
    fields: Mapping[str, Any] | None = None,
    copy: bool = False,
) -> nnx.Optimizer[Any]:
    """Returns an optimizer for the grown module, with the grown state of the old optimizer.

    The state grows as in ``dogwood_jax.grow_opt_state``. ``wide_model`` is the module that ``grow``
    returned. The new optimizer has the same ``tx`` and ``wrt``, and is at the same step. Both
    optimizers share unchanged arrays, unless ``copy`` is true.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import optax
        >>> from flax import nnx
        >>> import dogwood_jax as dw
        >>> rngs = nnx.Rngs(0)
        >>> model = nnx.Sequential(nnx.Linear(4, 8, rngs=rngs), nnx.Linear(8, 2, rngs=rngs))
        >>> optimizer = nnx.Optimizer(model, optax.adam(1e-3), wrt=nnx.Param)
        >>> growth = dw.nnx.plan(dw.nnx.trace(model, jnp.ones((1, 4))), {"layers/0": 16})
        >>> wide = dw.nnx.grow(model, growth, key=jax.random.key(0))
        >>> dw.nnx.grow_optimizer(optimizer, growth, wide).opt_state[0].nu["layers"][0].kernel.shape
        (4, 16)
    """
    expect(
        "nnx.grow_optimizer(optimizer, growth, wide_model)",
        optimizer=(NNX_OPTIMIZER, optimizer),
        growth=(GROWTH, growth),
        wide_model=(NNX, wide_model),
    )
    state = grow_state(
        arrays_of(optimizer.opt_state),
        growth,
        optimizer.tx,
        jax.eval_shape(arrays_of, nnx.state(wide_model, optimizer.wrt)),
        arrays_of(nnx.state(wide_model)),
        second_moment,
        fields or {},
    )

    step = value_of(optimizer.step)
    if copy:
        state, step = unshared((state, step), arrays_of(optimizer.opt_state), step)

    def begin(params: Any) -> Any:
        return with_step_counts_of(optimizer.tx.init(params), state)

    return optimizer_of(wide_model, optimizer, begin, state, step)


def upcycle(
    widths: dw.Widths,
    experts: Mapping[Any, int] | None = None,
    *,
    target: nnx.Module | None = None,
    rename: Mapping[str, str] | None = None,
    usefulness: Any = None,
    noise: float = 0.0,
    anew: float = 0.0,
) -> dw.Growth:
    """Plans more experts, or experts in place of an MLP, as ``dogwood_jax.upcycle`` does.

    ``target`` is the larger module; it also serves as ``target_apply``. ``usefulness`` is a pytree
    like the module's state.

    Returns:
        The growth of the module's state. Pass the larger module to ``grow`` as ``fresh=``.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> import dogwood_jax as dw
        >>> class Mixture(nnx.Module):
        ...     def __init__(self, experts, chosen):
        ...         self.chosen, init = chosen, jax.random.normal
        ...         self.router = nnx.Param(init(jax.random.key(0), (3, experts)))
        ...         self.experts = nnx.Param(init(jax.random.key(1), (experts, 3, 3)))
        ...     def __call__(self, x):
        ...         gates, which = jax.lax.top_k(jax.nn.softmax(x @ self.router[...]), self.chosen)
        ...         outputs = jnp.einsum("td,edf->tef", x, self.experts[...])
        ...         mask = jax.nn.one_hot(which, outputs.shape[1])
        ...         return jnp.einsum("tk,tke,tef->tf", gates, mask, outputs)
        >>> small, large, x = Mixture(2, 1), Mixture(4, 2), jnp.ones((1, 3))
        >>> growth = dw.nnx.upcycle(dw.nnx.trace(small, x), target=large)
        >>> wide = dw.nnx.grow(small, growth, fresh=large)
        >>> bool(jnp.allclose(wide(x), small(x), rtol=1e-5))
        True
    """
    expect_given("nnx.upcycle", target=(NNX, target))
    return dw.upcycle(
        widths,
        experts,
        rename=rename,
        usefulness=usefulness,
        noise=noise,
        anew=anew,
        **as_target(target),
    )


def _expect_modules(call: str, inputs: Sequence[Any], **modules: nnx.Module) -> None:
    """Raises unless all arguments are modules that can be called with these inputs."""
    expect(call, **{name: (NNX, module) for name, module in modules.items()})
    for name, module in modules.items():
        expect_call(call, name, module, *inputs)


def _in_sizes(widths: dw.Widths, sizes: Mapping[Any, int] | None) -> nnx.Module | None:
    """Returns the traced module in other sizes; None if it cannot be made."""
    if not isinstance(widths, dw.Widths) or not isinstance(sizes, Mapping):
        return None
    if (module := traced_module(widths)) is None:
        return None
    larger, problems = resized_module(module, widths.leaves, named_sizes(widths, sizes, []))
    return None if problems else larger


def _larger(model: Module, growth: dw.Growth, what: str, way_out: str) -> Module:
    """Returns the larger (or smaller) module of a growth, made from the trained one.

    Raises:
        ValueError: if it cannot be made, or computes something else; names a way out.
    """
    widths = growth.widths
    # Planning with this module as target compares its program, constants included.
    has_program = widths.network is not None and all(c.new > c.old for c in growth.changes)
    larger = larger_nnx(model, growth, what, way_out)
    if has_program:
        strategy = {change.width: change.strategy for change in growth.changes}
        options = {"strategy": strategy, "interface": True, **as_target(larger)}
        dw.plan(widths, growth.sizes, **options)
    return larger
