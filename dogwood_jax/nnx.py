"""The functions of ``dogwood_jax`` for ``flax.nnx`` modules, by the same names.

They take a module where the others take a function and its variables, and a larger module where the
others take ``target=``. A module is split into its graph and its state, a pytree of arrays. The
larger module is given, or made from the module itself and new sizes. An ``nnx.Optimizer`` grows
along. Paths and widths are those of the state: ``"layers/0/kernel"``.
"""

import operator
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

import jax
import optax
from flax import nnx

from dogwood_jax._arrays.grow import grow as _grow
from dogwood_jax._base.arguments import (
    BY_WIDTH,
    GROWTH,
    NNX,
    NNX_OPTIMIZER,
    WIDTHS,
    ArgumentKind,
    expect,
    expect_call,
    expect_given,
    takes_inputs,
)
from dogwood_jax._base.problems import listed
from dogwood_jax._experts.upcycle import upcycle as _upcycle
from dogwood_jax._front.compare import Difference
from dogwood_jax._front.compare import compare as _compare
from dogwood_jax._front.deepen import deepen as _deepen
from dogwood_jax._front.plan import plan as _plan
from dogwood_jax._front.verify import verify as _verify
from dogwood_jax._front.verify import verify_if_possible
from dogwood_jax._growth.growth import Growth
from dogwood_jax._modules.of_nnx import resized_module, value_of
from dogwood_jax._optimizer.growable import with_ages_of
from dogwood_jax._optimizer.opt_state import grow_state
from dogwood_jax._program.kernels import Kernels, without_references
from dogwood_jax._smaller.narrow import narrow as _narrow
from dogwood_jax._widths.trace import Place
from dogwood_jax._widths.trace import trace as _trace
from dogwood_jax._widths.widths import Widths
from dogwood_jax.strategies import DepthStrategy, Strategy

Module = TypeVar("Module", bound=nnx.Module)


@takes_inputs
def trace(
    model: nnx.Module,
    *inputs: Any,
    fix: Iterable[Place] = (),
    tie: Iterable[tuple[Place, Place]] = (),
    kernels: Kernels | None = None,
) -> Widths:
    """Finds every width of a module by tracing a call of it.

    Args:
        model: any ``nnx.Module`` that can be called, with arrays or, from ``nnx.eval_shape``,
            shapes as its variables. It is traced in the mode it is in (``train()``, ``eval()``).
        *inputs: what to call it with: pytrees of arrays or ``jax.ShapeDtypeStruct``.
        fix: places ``(path, axis)`` that must not grow, as for ``dogwood_jax.trace``.
        tie: pairs of places that index the same units, as for ``dogwood_jax.trace``.
        kernels: functions in the place of kernels, as for ``dogwood_jax.trace``.

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
    return _trace(apply, state, *inputs, fix=fix, tie=tie, kernels=kernels)


def plan(
    model: nnx.Module | Widths,
    sizes: nnx.Module | Mapping[Any, int] | None = None,
    *inputs: Any,
    target: nnx.Module | None = None,
    keep: Mapping[Any, Any] | None = None,
    merge: Mapping[Any, Sequence[Sequence[int]]] | None = None,
    strategy: Strategy | Mapping[str, Strategy] | None = None,
    depth: DepthStrategy | None = None,
    interface: bool = False,
    check: bool = True,
) -> Growth:
    """Plans how a module becomes a larger one, wider, deeper or both.

    Args:
        model: the trained module, or its widths from ``trace``.
        sizes: new sizes of widths by name, or the larger module. With sizes, the larger module is
            made by calling the module's classes. Their arguments must have the names of their
            fields, so that it is clear which of these numbers are sizes.
        *inputs: what to call the modules with: pytrees of arrays or ``jax.ShapeDtypeStruct``. They
            are not needed beside widths, which know the module that was traced.
        target: the larger module, instead of or beside sizes. The widths that differ are found from
            both modules' programs and shapes, as by ``dogwood_jax.plan`` with a target. Layers that
            only the larger module has are inserted.
        keep: as for ``dogwood_jax.plan``, instead of sizes.
        merge: as there.
        strategy: as there.
        depth: as there.
        interface: whether dimensions of inputs and outputs may grow, as there.
        check: as there.

    Returns:
        The growth of the module's state.

    Raises:
        TypeError: for arguments of the wrong kind, or in the wrong order.
        ValueError: if no growth of the widths explains the larger shapes, or a growth would change
            outputs; if it is not known what the module is like in the new sizes; or if one module
            is in training mode and the other in evaluation mode.

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
        >>> dw.nnx.plan(mlp(8), mlp(16), jnp.ones((1, 4)))
        Growth(layers/0: 8 -> 16)
    """
    call = "nnx.plan(model, sizes, *inputs)"
    expect(call, model=(_NETWORK, model), **({} if sizes is None else {"sizes": (_LARGER, sizes)}))
    expect_given(call, target=(NNX, target))
    if isinstance(sizes, nnx.Module):
        if target is not None:
            raise TypeError(f"{call}: sizes and target= are both larger modules; pass one of them")
        sizes, target = None, sizes
    widths = model if isinstance(model, Widths) else trace(model, *inputs)
    options: dict[str, Any] = {
        "strategy": strategy,
        "depth": depth,
        "interface": interface,
        "check": check,
    }
    if target is not None:
        try:
            return _plan_for(widths, target, sizes, keep=keep, merge=merge, **options)
        except ValueError:
            if isinstance(model, nnx.Module):
                _expect_same_mode(model, target)
            raise
    wide_model, known = None, None if sizes is None else _sizes(widths, sizes)
    if known is not None and isinstance(model, nnx.Module):
        wide_model = _resized(model, widths, known, (), _PLAN_IT)
    elif known is not None and (module := _module_of(widths)) is not None:
        wide_model, problems = resized_module(module, widths.leaves, known)
        wide_model = None if problems else wide_model  # a larger module is then asked for by grow
    if wide_model is None:
        return _plan(widths, sizes, keep=keep, merge=merge, **options)
    growth = _plan_for(widths, wide_model, sizes, keep=keep, merge=merge, **options)
    return replace(growth, structure=None)


def grow(
    model: Module,
    larger: Module | Growth,
    *inputs: Any,
    key: jax.Array | None = None,
    fresh: Module | None = None,
    strategy: Strategy | Mapping[str, Strategy] | None = None,
    interface: bool = False,
    verify: bool = True,
) -> Module:
    """Returns the larger module with the function of the smaller one.

    Neither module is changed. Which widths grow and which layers are new follows from both modules,
    see ``plan``, or from a growth. Then both modules run in evaluation mode, and it is an error if
    outputs moved by more than rounding explains, see ``verify``. Three cases are not verified:
    growths that do not preserve outputs, modules that draw other random numbers in evaluation mode
    once they have grown, and calls under ``jax.jit``, where there are no values.

    Args:
        model: the trained module.
        larger: a growth from ``plan``, or the larger module, wider, deeper or both.
        *inputs: what to call ``model`` with: arrays or ``jax.ShapeDtypeStruct``, of which random
            ones are made to verify. Beside a growth they may be left out. Then nothing is run.
        key: PRNG key for free weights. Without it they are the larger module's own values.
        fresh: the larger module, beside a growth. Without it, the larger module is made from the
            trained one, as ``plan`` makes it for sizes. A growth with new layers needs it.
        strategy: as for ``plan``; not beside a growth.
        interface: whether dimensions of inputs and outputs may grow, as for ``plan``.
        verify: whether to run both modules, which costs some calls.

    Returns:
        A new module like the larger one.

    Raises:
        TypeError: for arguments of the wrong kind, or in the wrong order.
        ValueError: if no growth of the widths explains the larger shapes, or a growth would change
            outputs, see ``plan``; if free weights are needed and there is no key, or the larger
            module has nothing but zeros in their place, from which new units would never learn; if
            a growth does not show what the larger module is; or if outputs moved.

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
        >>> growth = dw.nnx.plan(dw.nnx.trace(small, x), {"layers/0": 16})
        >>> wide = dw.nnx.grow(small, growth, key=jax.random.key(2))
        >>> wide.layers[0].out_features, bool(jnp.allclose(wide(x), small(x)))
        (16, True)
        >>> dw.nnx.grow(small, mlp(16, seed=1), x).layers[0].kernel.shape
        (4, 16)
    """
    call = "nnx.grow(model, larger, *inputs)"
    expect(call, model=(NNX, model), larger=(_GROWN, larger))
    expect_given(call, fresh=(NNX, fresh))
    if isinstance(larger, Growth):
        if strategy is not None or interface:
            raise TypeError(f"{call}: strategy= and interface= belong to nnx.plan, beside a Growth")
        growth = larger
    else:
        if fresh is not None:
            raise TypeError(f"{call}: fresh= is the larger module beside a Growth; pass one module")
        growth = plan(model, larger, *inputs, strategy=strategy, interface=interface)
        fresh = larger
    if fresh is None:
        graph, state = _graph_of(model, growth, inputs, _GROW_IT), None
        growth = replace(growth, structure=None)
    else:
        graph, state = nnx.split(fresh)
    arrays = _grow(nnx.state(model), growth, key=key, fresh=state if key is None else None)
    grown: Module = nnx.merge(graph, arrays)
    if verify and callable(grown) and (inputs or not isinstance(larger, Growth)):
        verify_if_possible(*_in_evaluation(model), *_in_evaluation(grown), inputs, growth)
    return grown


def deepen(
    model: nnx.Module,
    target: Module,
    *arguments: Any,
    inputs: Sequence[Any] = (),
    rename: Mapping[str, str] | None = None,
    copy: bool = False,
    interleave: bool = False,
    batch: Sequence[Any] | None = None,
    key: jax.Array | None = None,
    verify: bool = True,
) -> Module:
    """Returns a deeper module with the function of the trained one.

    Neither module is changed. New layers are filled so that they compute the identity, which is
    shown from both programs, as ``dogwood_jax.deepen`` does.

    Args:
        model: the trained module.
        target: the deeper module.
        *arguments: the inputs, as ``grow`` takes them, instead of ``inputs=``.
        inputs: pytrees of arrays or ``jax.ShapeDtypeStruct``, the same for both modules.
        rename: as for ``dogwood_jax.deepen``, as are all arguments that follow.
        copy: as there.
        interleave: as there.
        batch: as there.
        key: as there; without it, free values are the deeper module's own.
        verify: whether to run both modules, which costs some calls.

    Returns:
        A new module like the deeper one.

    Raises:
        TypeError: for arguments of the wrong kind, or in the wrong order.
        ValueError: as ``dogwood_jax.deepen`` does.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> import dogwood_jax as dw
        >>> def mlp(depth):
        ...     rngs = nnx.Rngs(depth)
        ...     hidden = [layer for _ in range(depth) for layer in (nnx.relu, _linear(4, 4, rngs))]
        ...     return nnx.Sequential(_linear(3, 4, rngs), *hidden)
        >>> def _linear(inputs, outputs, rngs):
        ...     return nnx.Linear(inputs, outputs, rngs=rngs)
        >>> small, x = mlp(1), jnp.ones((1, 3))
        >>> deeper = dw.nnx.deepen(small, mlp(2), inputs=(x,))
        >>> len(deeper.layers), bool(jnp.allclose(deeper(x), small(x)))
        (5, True)
    """
    call = "nnx.deepen(model, target, inputs=)"
    expect(call, model=(NNX, model), target=(NNX, target))
    if arguments and inputs:
        raise TypeError(f"{call}: inputs are given twice, by inputs= and behind target")
    inputs = arguments or inputs
    expect_call(call, "model", model, *inputs)
    expect_call(call, "target", target, *inputs)
    apply, state = _function_of(model)
    target_apply, target_state = _function_of(target)
    deeper = _deepen(
        state,
        target_state,
        apply=apply,
        target_apply=target_apply,
        inputs=inputs,
        rename=rename,
        copy=copy,
        interleave=interleave,
        batch=batch,
        key=key,
        verify=False,
    )
    grown: Module = nnx.merge(nnx.split(target)[0], deeper)
    if verify:
        growth = Growth(Widths(()), ())
        verify_if_possible(*_in_evaluation(model), *_in_evaluation(grown), tuple(inputs), growth)
    return grown


def narrow(
    model: Module, widths: Widths, keep: Mapping[Any, Any], *, interface: bool = False
) -> Module:
    """Returns a module without some of its units.

    Args:
        model: the trained module; it is not changed.
        widths: its widths, from ``trace``.
        keep: the units that stay, as for ``dogwood_jax.narrow``.
        interface: whether units of the module's inputs or outputs may be removed.

    Returns:
        The smaller module. It computes the same if the removed units are dead, as there.

    Raises:
        TypeError: for arguments of the wrong kind, or in the wrong order.
        ValueError: as ``dogwood_jax.narrow`` does, or if it is not known what the module is like in
            the new sizes.

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
    growth = _plan(widths, keep=keep, interface=interface)
    graph = _graph_of(model, growth, (), _NARROW_IT)
    smaller: Module = nnx.merge(graph, _narrow(nnx.state(model), widths, keep, interface=interface))
    return smaller


@takes_inputs
def compare(old_model: nnx.Module, new_model: nnx.Module, *inputs: Any) -> Difference:
    """Measures how far the outputs of two modules are apart on the same inputs.

    Args:
        old_model: a module. Both run in evaluation mode, and neither is changed.
        new_model: the other module, with outputs of the same structure.
        *inputs: pytrees of arrays, the same for both.

    Returns:
        The largest differences over all outputs, and where the largest is.

    Raises:
        TypeError: for arguments of the wrong kind, or in the wrong order.
        ValueError: as ``dogwood_jax.compare`` does.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> import dogwood_jax as dw
        >>> model = nnx.Linear(4, 2, rngs=nnx.Rngs(0))
        >>> dw.nnx.compare(model, model, jnp.ones((1, 4))).absolute
        0.0
    """
    call = "nnx.compare(old_model, new_model, *inputs)"
    expect(call, old_model=(NNX, old_model), new_model=(NNX, new_model))
    expect_call(call, "old_model", old_model, *inputs)
    expect_call(call, "new_model", new_model, *inputs)
    return _compare(*_in_evaluation(old_model), *_in_evaluation(new_model), *inputs)


@takes_inputs
def verify(
    model: nnx.Module,
    wide_model: nnx.Module,
    *inputs: Any,
    growth: Growth | None = None,
    key: jax.Array | None = None,
) -> Difference:
    """Runs two modules in evaluation mode, and raises if outputs moved beyond rounding.

    Args:
        model: the module before growing. Neither module is changed.
        wide_model: the module that has grown.
        *inputs: pytrees of arrays, or of ``jax.ShapeDtypeStruct``, for which random arrays are
            drawn, as by ``dogwood_jax.verify``.
        growth: as there.
        key: as there.

    Returns:
        The largest differences over all outputs, to be printed.

    Raises:
        TypeError: for arguments of the wrong kind, or in the wrong order.
        ValueError: if outputs have moved, or the modules have different outputs.

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
    expect(call, model=(NNX, model), wide_model=(NNX, wide_model))
    expect_call(call, "model", model, *inputs)
    if growth is None:  # which may make inputs larger
        expect_call(call, "wide_model", wide_model, *inputs)
    return _verify(
        *_in_evaluation(model), *_in_evaluation(wide_model), *inputs, growth=growth, key=key
    )


def grow_optimizer(
    optimizer: nnx.Optimizer[Any],
    growth: Growth,
    wide_model: nnx.Module,
    *,
    second_moment: Literal["mean", "zeros"] | None = None,
    fields: Mapping[str, Any] | None = None,
) -> nnx.Optimizer[Any]:
    """Returns an optimizer for the module that has grown, with the state of the old one.

    Args:
        optimizer: the optimizer of the trained module; it is not changed.
        growth: from ``plan``.
        wide_model: the module that ``grow`` returned.
        second_moment: as for ``dogwood_jax.grow_opt_state``.
        fields: as there.

    Returns:
        A new ``nnx.Optimizer`` of the same ``tx`` and ``wrt``, at the same step.

    Raises:
        TypeError: for arguments of the wrong kind, or in the wrong order.
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
        _arrays_of(optimizer.opt_state),
        growth,
        optimizer.tx,
        jax.eval_shape(_arrays_of, nnx.state(wide_model, optimizer.wrt)),
        _arrays_of(nnx.state(wide_model)),
        second_moment,
        fields or {},
    )

    def init(params: Any) -> Any:
        return with_ages_of(optimizer.tx.init(params), state)

    # An nnx.Optimizer makes variables of the arrays in its state when it is made.
    beginning = optax.GradientTransformationExtraArgs(init, optimizer.tx.update)
    new = nnx.Optimizer(wide_model, beginning, wrt=optimizer.wrt)
    new.tx = optimizer.tx
    held = jax.tree.leaves((new.opt_state, new.step), is_leaf=_is_variable)
    # Where a part of the parameters is masked, a variable holds no array.
    variables = [variable for variable in held if jax.tree.leaves(value_of(variable))]
    arrays = jax.tree.leaves((state, value_of(optimizer.step)))
    for variable, array in zip(variables, arrays, strict=True):
        if hasattr(variable, "set_value"):
            variable.set_value(array)
        else:  # Flax before 0.12
            variable.value = array
    return new


def upcycle(
    model: nnx.Module,
    larger: nnx.Module,
    *inputs: Any,
    rename: Mapping[str, str] | None = None,
    usefulness: Any = None,
    noise: float = 0.0,
    anew: float = 0.0,
) -> Growth:
    """Plans more experts in a module's mixture of experts, or a mixture in place of its MLP.

    Args:
        model: the trained module.
        larger: the module with more experts, or with experts in place of an MLP.
        *inputs: what to call the modules with: pytrees of arrays or ``jax.ShapeDtypeStruct``.
        rename: as for ``dogwood_jax.upcycle``.
        usefulness: as there, a pytree like the module's state.
        noise: as there.
        anew: as there.

    Returns:
        The growth of the module's state. ``dogwood_jax.grow`` makes the larger module's state.

    Raises:
        TypeError: for arguments of the wrong kind, or in the wrong order.
        ValueError: as ``dogwood_jax.upcycle`` does.

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
        >>> growth = dw.nnx.upcycle(small, large, x)
        >>> nnx.update(large, dw.grow(nnx.state(small), growth, key=jax.random.key(2)))
        >>> bool(jnp.allclose(large(x), small(x), rtol=1e-5))
        True
    """
    call = "nnx.upcycle(model, larger, *inputs)"
    expect(call, model=(NNX, model), larger=(NNX, larger))
    apply, target = _function_of(larger)
    return _upcycle(
        trace(model, *inputs),
        target=target,
        target_apply=apply,
        rename=rename,
        usefulness=usefulness,
        noise=noise,
        anew=anew,
    )


_NETWORK = ArgumentKind(
    f"{NNX.what} or its Widths",
    lambda value: NNX.fits(value) or WIDTHS.fits(value),
    NNX.way_out,
)
_LARGER = ArgumentKind(
    f"{NNX.what}, the larger one, or sizes {{name: units}}",
    lambda value: NNX.fits(value) or BY_WIDTH.fits(value),
    NNX.way_out,
)
_GROWN = ArgumentKind(
    f"{NNX.what}, the larger one, or the Growth that dw.nnx.plan returns",
    lambda value: NNX.fits(value) or GROWTH.fits(value),
    GROWTH.way_out,
)
# What cannot be done with a module that is not known in other sizes, and what to do instead.
_PLAN_IT = "cannot plan this growth", "pass the larger module instead"
_GROW_IT = "cannot grow this module", "pass the larger module, fresh="
_NARROW_IT = (
    "cannot narrow this module",
    "make the smaller module, and nnx.update(smaller, dw.narrow(nnx.state(model), widths, keep))",
)


_MODES = ("deterministic", "use_running_average")


def _expect_same_mode(model: nnx.Module, larger: nnx.Module) -> None:
    """Raises if modules in the two are in different modes, one in training, one in evaluation."""
    flags: list[dict[str, bool]] = [{}, {}]
    for found, whole in zip(flags, (model, larger), strict=True):
        for keys, node in nnx.iter_graph(whole):
            for mode in _MODES:
                if isinstance(value := getattr(node, mode, None), bool):
                    found["/".join(map(str, (*keys, mode)))] = value
    own, its = flags
    different = [path for path in own if its.get(path, own[path]) != own[path]]
    if different:
        raise ValueError(
            listed(
                "nnx.plan: the two modules are in different modes; call train() or eval() on both",
                (f"{path}: is {own[path]} in model, {its[path]} in larger" for path in different),
            )
        ) from None


def _plan_for(
    widths: Widths, wide_model: nnx.Module, sizes: Mapping[Any, int] | None, **options: Any
) -> Growth:
    """Plans how the module with these widths becomes a larger module."""
    apply, target = _function_of(wide_model)
    target_apply = apply if callable(wide_model) else None
    return _plan(widths, sizes, target=target, target_apply=target_apply, **options)


def _graph_of(
    model: nnx.Module, growth: Growth, inputs: Sequence[Any], refusal: tuple[str, str]
) -> Any:
    """Returns the graph of the larger module that a growth was planned for."""
    if growth.insertions:
        raise ValueError("{}: the growth inserts layers; {}".format(*_GROW_IT))
    widths = growth.widths
    if widths.network is None and inputs:
        widths = replace(widths, network=trace(model, *inputs).network)
    # Its program tells whether it is that module, constants included.
    has_program = widths.network is not None and all(c.new > c.old for c in growth.changes)
    constants = () if has_program else growth.constants
    wide_model = _resized(model, widths, growth.sizes, constants, refusal)
    if has_program:
        strategy = {change.width: change.strategy for change in growth.changes}
        _plan_for(widths, wide_model, growth.sizes, strategy=strategy, interface=True)
    graph, _ = nnx.split(wide_model)
    return graph


def _sizes(widths: Widths, sizes: Mapping[Any, Any]) -> dict[str, int] | None:
    """Returns sizes by name of the width; None if some are no sizes of its widths."""
    try:
        return {
            (widths[place] if isinstance(place, str) else widths.of(*place)).name: operator.index(n)
            for place, n in sizes.items()
        }
    except (KeyError, TypeError):
        return None


def _resized(
    model: Module,
    widths: Widths,
    sizes: Mapping[str, int],
    constants: Collection[float],
    refusal: tuple[str, str],
) -> Module:
    """Returns a module with the shapes and numbers of other sizes."""
    wide_model, problems = resized_module(model, widths.leaves, sizes, constants)
    if problems:
        what, way_out = refusal
        raise ValueError(listed(what, (f"{problem}; {way_out}" for problem in problems)))
    return wide_model


def _in_evaluation(model: nnx.Module) -> tuple[Callable[..., Any], Any]:
    """Returns a module as a function of its state and inputs without side effects, and the state.

    The function is in evaluation mode; the module stays in its own.
    """
    copy = nnx.merge(*nnx.split(model))
    copy.eval()  # type: ignore[no-untyped-call]
    apply, state = _function_of(copy)
    return lambda state, *inputs: apply(state, *inputs)[0], state


@dataclass(frozen=True, eq=False)
class _Function:
    """A module as a function of its state and inputs, without side effects."""

    graph: Any

    def __call__(self, state: Any, *inputs: Any) -> tuple[Any, Any]:
        merged = nnx.merge(self.graph, state)
        outputs = merged(*inputs)
        return outputs, nnx.state(merged)


def _function_of(model: nnx.Module) -> tuple[_Function, Any]:
    """Returns a module as a function of its state and inputs, and the state."""
    graph, state = nnx.split(model)
    return _Function(graph), state


def _module_of(widths: Widths) -> nnx.Module | None:
    """Returns the module that was traced, without values; None for widths of anything else."""
    network = widths.network
    apply = None if network is None else without_references(network.apply)
    if network is None or not isinstance(apply, _Function):
        return None
    module: nnx.Module = nnx.merge(apply.graph, network.variables)
    return module


def _is_variable(leaf: Any) -> bool:
    return hasattr(leaf, "get_metadata")  # nnx.Variable, and what holds its state in old Flax


def _arrays_of(tree: Any) -> Any:
    """Returns a tree with arrays in place of the variables that hold them."""
    return jax.tree.map(
        lambda leaf: value_of(leaf) if _is_variable(leaf) else leaf, tree, is_leaf=_is_variable
    )
