"""The module of the larger network: ``larger``."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax

from dogwood_jax._base.arguments import GROWTH, expect
from dogwood_jax._base.described import described, library_of
from dogwood_jax._base.problems import Refused, listed
from dogwood_jax._base.trees import apart, arrays_of, leaves_by_path, struct, struct_of
from dogwood_jax._front.grow import grow
from dogwood_jax._growth.grown import grown, without_choices
from dogwood_jax._growth.grown_sizes import GrownSizes
from dogwood_jax._growth.growth import Growth
from dogwood_jax._growth.modules.of_linen import LinenMethod, LinenModule, SeveralFit, method_of
from dogwood_jax._growth.modules.remaking import CannotRemake
from dogwood_jax._plan.own_function import larger_module
from dogwood_jax._plan.programs import Programs
from dogwood_jax._plan.shown import shown_by
from dogwood_jax._widths.trace import read_network

Module = TypeVar("Module")

_YOURSELF = "make the larger module yourself"


def larger(module: Module, growth: Growth, *inputs: Any, **keywords: Any) -> Module:
    """Returns the module of the grown network, so that you need not write it.

    A Linen module holds its sizes as integers: in its fields, in the fields of its submodules, and
    in configurations. ``larger`` finds the integers with which the module's ``init`` makes arrays
    of the grown shapes. No array is allocated. It also finds counts of layers, and integers that
    change by the same factor as a size, such as an MLP's ratio.

    Other numbers stay. If the traced function was a method of this module, an evaluation checks
    that outputs stay with these numbers.

    Equinox and NNX modules hold their arrays, so ``grow`` already returns the larger module. For
    these libraries, ``larger`` makes it from shapes alone.

    Args:
        module: the module of the network, of Flax Linen, Equinox or NNX; it is not changed.
        growth: from ``plan``.
        *inputs: arguments of a Linen module's ``init`` after the key, arrays or
            ``jax.ShapeDtypeStruct``. By default, these are the inputs that were traced.
        **keywords: keyword arguments of its ``init``, such as ``train=False``. If a
            ``functools.partial(module.apply, train=False)`` was traced, its keywords are used.

    Returns:
        The larger module. For Equinox and NNX, it holds a ``jax.ShapeDtypeStruct`` for each array.

    Raises:
        TypeError: if ``module`` is not a module, or ``growth`` is not a growth.
        ValueError: if no integers make these arrays, or several choices of integers do and none is
            a part of all others; the message lists them. Also if outputs would not stay, because
            the growth was planned for a module with other numbers.

    Example:
        >>> import flax.linen as nn
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import dogwood_jax as dw
        >>> model, x = nn.Sequential([nn.Dense(8), nn.relu, nn.Dense(2)]), jnp.ones((1, 4))
        >>> variables = model.init(jax.random.key(0), x)
        >>> growth = dw.plan(dw.trace(model.apply, variables, x), {"layers_0": 16})
        >>> wide = dw.grow(variables, growth, key=jax.random.key(1))
        >>> wider = dw.larger(model, growth)
        >>> wider.layers[0].features
        16
        >>> bool(jnp.allclose(wider.apply(wide, x), model.apply(variables, x)))
        True
    """
    call = "larger(module, growth)"
    expect(call, growth=(GROWTH, growth))
    match library_of(module) if not isinstance(module, type) else None:
        case "Flax Linen":
            return _of_linen(module, growth, inputs, keywords)  # type: ignore[no-any-return]
        case "NNX":
            return larger_nnx(module, growth, f"{call}: cannot make this module", _YOURSELF)
        case "Equinox":
            return _of_arrays(module, growth)
    raise TypeError(
        f"{call}: module must be a module of Flax Linen, NNX or Equinox, got {described(module)}; "
        "a plain function takes larger arrays unchanged, or its sizes must be changed by hand"
    )


def _of_linen(
    module: LinenModule, growth: Growth, inputs: tuple[Any, ...], keywords: dict[str, Any]
) -> LinenModule:
    widths, network = growth.widths, growth.widths.network
    traced = None if network is None else method_of(network.apply)
    is_traced = traced is not None and type(traced.module) is type(module)
    method = traced if is_traced else method_of(module.apply)
    assert method is not None
    method = method._replace(module=module, keywords={**method.keywords, **keywords})
    if not inputs and network is not None:
        inputs = GrownSizes(widths, growth.sizes).inputs()
    variables = {leaf.path: struct(leaf.shape, float) for leaf in widths.leaves}
    variables = variables if network is None else network.variables
    key, begun = jax.random.key(0), without_choices(growth)
    made = jax.eval_shape(lambda arrays: grown(arrays, begun, key=key), variables)
    try:
        found = larger_module(method, widths, growth.sizes, made, inputs)
    except CannotRemake as why:
        if isinstance(why, SeveralFit) and why.least is not None:
            return _checked(why.least, growth, method, made, is_traced)
        olds = {change.old for change in growth.changes}
        alike = [w.name for w in widths.values() if w.size in olds and w.name not in growth.change]
        more = f"; grow {', '.join(alike)}, too, if they have one size" if alike else ""
        raise ValueError(
            f"larger: cannot find the {type(module).__name__} with the arrays of the growth: "
            f"{why}{more}; {_YOURSELF}, for example by module.clone(field=size), or pass the "
            "arguments of its init, larger(module, growth, *inputs, **keywords)"
        ) from None
    return _checked(found, growth, method, made, is_traced)


def _checked(
    found: LinenModule, growth: Growth, method: LinenMethod, variables: Any, is_traced: bool
) -> LinenModule:
    """Returns a module, after checking that outputs stay if its method was traced."""
    if is_traced and growth.evidence is not None and growth.evidence.samples:
        _expect_evidence(growth, method.of(found), variables)
    return found


def _expect_evidence(growth: Growth, apply: Any, variables: Any) -> None:
    """Raises unless outputs stay the same with this function in the larger sizes.

    The growth may have been planned with another function, whose numbers do not show in shapes.
    """
    widths = growth.widths
    assert widths.network is not None
    if any(change.strategy.is_gated for change in growth.changes):
        return  # a router may choose as many experts as before
    inputs = GrownSizes(widths, growth.sizes).inputs()
    its = read_network(apply, variables, *inputs)
    refused = shown_by(growth, Programs(growth, widths, its))
    if isinstance(refused, Refused):
        raise ValueError(
            "larger: the module with these arrays is not the one the growth was planned for; "
            f"{_YOURSELF}:\n- " + "\n- ".join(refused.problems)
        )


def larger_nnx(module: Module, growth: Growth, what: str, way_out: str) -> Module:
    """Returns an NNX module in the sizes of a growth, with shapes in place of arrays.

    Raises:
        ValueError: if it cannot be made; the message begins with ``what`` and names ``way_out``.
    """
    from flax import nnx  # takes a second to import

    from dogwood_jax._growth.modules.of_nnx import resized_module

    if growth.inserted or growth.layers:
        does = "removes" if growth.layers else "inserts"
        raise ValueError(f"{what}: the growth {does} layers; {way_out}")
    known = arrays_of(leaves_by_path(nnx.state(module)))
    its = {leaf.path: leaf.shape for leaf in growth.widths.leaves}
    others = [p for p, shape in its.items() if p not in known or known[p].shape != shape]
    if others:
        raise ValueError(
            f"{what}: the growth belongs to another module, because this one has no "
            f"{others[0]} of shape {its[others[0]]}; pass the module that was traced"
        )
    made, problems = resized_module(module, growth.widths.leaves, growth.sizes)  # type: ignore[type-var]
    if problems:
        raise ValueError(listed(what, (f"{problem}; {way_out}" for problem in problems)))
    graph, state = nnx.split(made)
    return nnx.merge(graph, jax.tree.map(struct_of, state))


def _of_arrays(module: Module, growth: Growth) -> Module:
    """Returns a pytree after the growth, with shapes in place of arrays."""
    arrays, back = apart(module)
    of_grown: list[Callable[..., Module]] = []

    def make(key: Any, *arrays: Any) -> list[Any]:
        made, of_these = apart(grow(back(arrays), growth, key=key))
        of_grown.append(of_these)
        return made

    shapes = jax.eval_shape(make, jax.random.key(0), *map(struct_of, arrays))
    return of_grown[-1](shapes)
