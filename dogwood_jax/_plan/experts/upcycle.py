"""Plans more experts, or the first ones: ``upcycle``."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import jax

from dogwood_jax._base.arguments import (
    BY_WIDTH,
    FUNCTION,
    MAPPING,
    NUMBER,
    VARIABLES,
    WIDTHS,
    expect,
    expect_given,
)
from dogwood_jax._base.problems import listed
from dogwood_jax._base.trees import PyTree, arrays_of, leaves_by_path
from dogwood_jax._growth.growth import Growth
from dogwood_jax._plan.experts.copied import with_noise
from dogwood_jax._plan.experts.found_mixtures import Mixtures
from dogwood_jax._plan.experts.more_experts import more_experts
from dogwood_jax._plan.experts.new_mixture import mixture
from dogwood_jax._plan.shown import what_shows
from dogwood_jax._plan.sizes import named_sizes
from dogwood_jax._program.kernels import kernels_of
from dogwood_jax._widths.trace import read_network
from dogwood_jax._widths.widths import Widths


def upcycle(
    widths: Widths,
    experts: Mapping[Any, int] | None = None,
    *,
    target: PyTree = None,
    target_apply: Callable[..., Any] | None = None,
    rename: Mapping[str, str] | None = None,
    usefulness: PyTree = None,
    noise: float = 0.0,
    anew: float = 0.0,
) -> Growth:
    """Plans more experts in a mixture of experts, or a mixture in place of an MLP.

    **From E to m E experts**, by ``experts`` or ``target``. Every expert is copied, with the
    router's weights for it.

    - If the larger model chooses m times as many experts for each token, outputs stay: all copies
      of an expert are chosen where the expert was. If gates sum to one or come from a softmax over
      all experts, the copies share the gate of the expert. Otherwise each copy has the whole gate,
      and the arrays that make the experts' outputs are divided by m.
    - If one expert is chosen for each token before and after, outputs stay, too. The copies have
      equal logits, and the first of them is chosen. After a softmax over all experts, its gate is
      1/m of the old one, so the arrays that make the experts' outputs are multiplied by m.
    - If as many experts are chosen as before, but more than one, copies of fewer experts take all
      places, and outputs change.

    **From an MLP to experts**, by ``target`` and ``target_apply``. Every expert is a copy of the
    MLP, and the router is new. Outputs stay if the gates of each token sum to one, because all
    experts compute the same. If the larger model keeps the MLP as a shared expert, the other
    experts are new: the arrays that make their outputs are zero, so outputs stay with any gates.

    Both programs are evaluated, as by ``plan``, and the first growth that keeps outputs is
    returned. Its notes state what the larger model must choose, and its ``evidence`` what was
    shown. If no growth keeps outputs, the one that keeps them for most samples is returned, and a
    note names the first output that differs. Without ``target_apply``, the larger program is the
    network's own one with m times as many experts chosen. If that program cannot be evaluated, the
    first line of the growth states this, and its strategies are not exact.

    Copies with equal weights that are always chosen together learn the same. If one expert is
    chosen, it is always the first copy. Make copies differ by ``noise``, or by gates that are
    computed with noise in training.

    Args:
        widths: the widths of the network, from ``trace``.
        experts: the new number of experts by name of a router's width, or by ``(path, axis)``. The
            width of the experts' arrays grows with it. If the program does not show which width
            this is, name that width, too.
        target: a pytree of arrays or ``jax.ShapeDtypeStruct`` of the larger model, instead of
            ``experts``. Every axis that is longer in it must count experts. The result has its tree
            structure.
        target_apply: the larger model's function of variables and inputs. It shows how many experts
            are chosen.
        rename: parts of paths, ``{"mlp/fc1": "moe/w_in"}``, for arrays of an MLP whose names do not
            show which array of the experts they become.
        usefulness: a pytree like the variables, with a number for each weight. An example is
            weights times the gradient of a loss on a batch: the sum over an expert is the change of
            the loss without that expert, at first order. Experts with a larger absolute value of
            this sum get more copies. Outputs change, because experts with more copies get more
            weight.
        noise: standard deviation of normal noise on the copies, relative to the array's; it changes
            outputs unless it is zero.
        anew: the share of hidden units that are drawn anew in each expert that is a copy of an MLP,
            with the mean and the standard deviation of the arrays. It changes outputs unless it is
            zero. For new hidden units that change no outputs, widen the MLP by ``plan`` first: the
            outgoing weights of its new units are zero.

    Returns:
        The growth, for ``grow`` and ``grow_opt_state``. In the optimizer's state, copies share the
        moments of the expert that they copy, as they share its gradient.

    Raises:
        TypeError: if arguments are of the wrong kind.
        ValueError: if the widths do not count the experts of a router, or the target has other
            arrays than a mixture in place of an MLP; all problems in one message.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import dogwood_jax as dw
        >>> def moe(chosen):
        ...     def apply(params, x):
        ...         gates, experts = jax.lax.top_k(jax.nn.softmax(x @ params["router"]), chosen)
        ...         outputs = jnp.einsum("td,edf->tef", x, params["experts"])
        ...         mask = jax.nn.one_hot(experts, outputs.shape[1])
        ...         return jnp.einsum("tk,tke,tef->tf", gates, mask, outputs)
        ...     return apply
        >>> x = jax.random.normal(jax.random.key(0), (9, 3))
        >>> params = {"router": x[:3, :2], "experts": jnp.stack([x[:3], x[3:6]])}
        >>> growth = dw.upcycle(dw.trace(moe(1), params, x), {"router": 4})
        >>> print(growth)  # doctest: +ELLIPSIS, +NORMALIZE_WHITESPACE
        note: router: outputs stay if the larger model chooses 2 of 4 experts instead of 1 of 2
        note: new units of {router,experts[0]} are copies, and stay so until noise or dropout tells
          them apart: strategies.replicate(noise=)
        array    before  after  new entries
        -------  ------  -----  ------------------------
        router   3x2     3x4    axis 1 copy (router)
        experts  2x3x3   4x3x3  axis 0 copy (experts[0])
        (by axis, for each width; copy: the values of old units)
        checked: equal to rounding in ... samples
        >>> wide = dw.grow(params, growth)
        >>> bool(jnp.allclose(moe(2)(wide, x), moe(1)(params, x)))
        True

    Reference:
        Komatsuzaki et al., 2022, Sparse Upcycling; Nakamura et al., 2025, Drop-Upcycling
        (``anew``); expert upcycling, arXiv 2604.19835, 2026 (``usefulness``). Dividing outputs
        follows from the algebra.
    """
    expect("upcycle(widths, experts)", widths=(WIDTHS, widths))
    expect("upcycle", noise=(NUMBER, noise), anew=(NUMBER, anew))
    expect_given(
        "upcycle",
        experts=(BY_WIDTH, experts),
        target=(VARIABLES, target),
        target_apply=(FUNCTION, target_apply),
        rename=(MAPPING, rename),
        usefulness=(VARIABLES, usefulness),
    )
    if (experts is None) == (target is None):
        raise ValueError(
            "upcycle needs either experts, {name: number}, or target=, a larger model's variables"
        )
    if target_apply is not None and target is None:
        raise ValueError("upcycle: target_apply= goes with target=, the variables of that function")
    if not noise >= 0 or not 0 <= anew <= 1:
        raise ValueError(
            f"upcycle: noise must not be negative and anew lies between 0 and 1, got {noise} and "
            f"{anew}"
        )
    if widths.network is None:
        raise ValueError(
            "upcycle needs widths that were traced in this process: trace the network again"
        )
    larger = None
    if target_apply is not None:
        kernels = kernels_of(widths.network.apply)
        larger = read_network(target_apply, target, *widths.network.inputs, kernels=kernels)
    known = {leaf.path for leaf in widths.leaves}
    shapes = {} if target is None else arrays_of(leaves_by_path(target))
    problems: list[str] = []
    if target is not None and (shapes.keys() != known or _has_other_axes(widths, shapes)):
        if noise or usefulness is not None:
            problems.append("noise= and usefulness= are for copies of experts, not of an MLP")
        theirs = Mixtures(larger) if larger is not None else None
        found = mixture(Mixtures(widths), shapes, theirs, rename or {}, anew, problems)
    else:
        if anew or rename:
            problems.append("anew= and rename= are for experts that are copies of an MLP")
        sizes = None if experts is None else named_sizes(widths, experts, problems)
        found = more_experts(widths, larger, shapes, sizes, problems, usefulness=usefulness)
    if problems:
        raise ValueError(listed("cannot plan these experts", problems))
    growth = found.growths[0]
    if larger is not None or all(change.strategy.exact for change in growth.changes):
        growth = what_shows(found.growths, widths, larger, target, notes=found.notes)
    growth = with_noise(growth, noise) if noise else growth
    return replace(growth, structure=None if target is None else jax.tree.structure(target))


def _has_other_axes(widths: Widths, shapes: Mapping[str, Any]) -> bool:
    return any(len(shapes[leaf.path].shape) != len(leaf.shape) for leaf in widths.leaves)
