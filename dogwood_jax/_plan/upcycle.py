"""Plan more experts, or the first ones: ``upcycle``."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np

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
from dogwood_jax._growth.growth import Change, Growth
from dogwood_jax._plan.experts import (
    Experts,
    Mixtures,
    copied,
    differences_of,
    notes_of,
    said,
)
from dogwood_jax._plan.mixture import mixture
from dogwood_jax._plan.plan import named_sizes
from dogwood_jax._widths.layout import Units
from dogwood_jax._widths.trace import trace
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

    **From E to m E experts**, by ``experts`` or ``target``. Every expert is copied, and so are the
    router's weights for it. Outputs stay if the larger model chooses m times as many experts for
    each token. Then all copies of an expert are chosen where the expert was, and together they have
    its gate. Where gates are not divided by their sum, as by a softmax over all experts, over the
    chosen ones, or by a renormalization, each copy has the whole gate: then the arrays that make
    the experts' outputs are divided by m. If the larger model chooses as many experts as before,
    the copies of fewer experts take all places, and outputs change.

    **From an MLP to experts**, by ``target`` and ``target_apply``. Every expert is a copy of the
    MLP, and the router is new. Outputs stay if the gates of each token sum to one, because all
    experts compute the same. If the larger model has the MLP beside the experts, as a shared
    expert, the experts are new: the arrays that make their outputs are zero, so outputs stay with
    any gates.

    The growth's notes say which of this is the case, and what the larger model must choose. Growths
    that change outputs are planned all the same.

    Copies with equal weights that are always chosen together learn alike. Let them part by
    ``noise``, or by gates that are computed with noise in training.

    Args:
        widths: the widths of the network, from ``trace``.
        experts: the new number of experts by name of a router's width, or by ``(path, axis)``. The
            width of the experts' arrays grows along. Where the program does not show which one this
            is, name it, too.
        target: a pytree of arrays or ``jax.ShapeDtypeStruct`` of the larger model, instead. Every
            axis that is longer in it must count experts. The result has its tree structure.
        target_apply: the larger model's function of variables and inputs. It shows how many experts
            are chosen.
        rename: for arrays of an MLP whose names do not tell which array of the experts they become:
            ``{"mlp/fc1": "moe/w_in"}``, parts of paths.
        usefulness: a pytree like the variables, with a number for each weight: for example, weights
            times the gradient of a loss on a batch, which summed up over an expert is what the loss
            would change by without it, at first order. The more useful an expert, by the absolute
            value of its sum, the more copies it gets. Outputs change, because experts with more
            copies get more weight.
        noise: standard deviation of normal noise on the copies, relative to the array's; it changes
            outputs, unless it is zero.
        anew: the share of hidden units that are drawn anew in each expert that is a copy of an MLP,
            with the mean and the standard deviation of the arrays. It changes outputs, unless it is
            zero. New hidden units that change nothing have outgoing weights of zero: widen the MLP
            by ``plan`` first.

    Returns:
        The growth, for ``grow`` and ``grow_opt_state``. In the optimizer's state, copies share the
        moments of what they copy, as they share its gradient.

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
        >>> print(growth)
        array    before  after  new entries
        -------  ------  -----  ------------------------
        router   3x2     3x4    axis 1 copy (router)
        experts  2x3x3   4x3x3  axis 0 copy (experts[0])
        note: router: outputs stay if the larger model chooses 2 of 4 experts instead of 1 of 2
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
    larger = trace(target_apply, target, *widths.network.inputs) if target_apply else None
    known = {leaf.path for leaf in widths.leaves}
    shapes = {} if target is None else arrays_of(leaves_by_path(target))
    structure = None if target is None else jax.tree.structure(target)
    problems: list[str] = []
    if target is not None and (shapes.keys() != known or _has_other_axes(widths, shapes)):
        if noise or usefulness is not None:
            problems.append("noise= and usefulness= are for copies of experts, not of an MLP")
        theirs = Mixtures(larger) if larger is not None else None
        found, notes = mixture(Mixtures(widths), shapes, theirs, rename or {}, anew, problems)
        if problems:
            raise ValueError(listed("cannot plan these experts", problems))
        return Growth(widths, (), tuple(notes), structure, found)
    if anew or rename:
        problems.append("anew= and rename= are for experts that are copies of an MLP")
    longer = _longer(widths, shapes)
    network = Mixtures(widths, longer)
    theirs = Mixtures(larger, longer) if larger is not None else None
    whole, widths = widths, network.widths
    sizes = named_sizes(widths, experts or {}, problems)
    if target is not None:
        sizes = _sizes(widths, longer, shapes, problems)
    changes, texts = dict[str, Change](), dict[str, str]()
    # An axis that is longer in a target may be another one than of experts.
    unsure = whole if target is not None else ()
    groups = _groups(widths, network.experts, sizes, unsure, problems)
    others = [] if problems else differences_of(network, whole, larger, sizes, target)
    for group in groups:
        router, old, new = widths[group.router], widths[group.router].size, sizes[group.router]
        own = theirs.like(router) if theirs is not None else None
        if theirs is not None and own is None:
            problems.append(f"{router.name}: the larger model chooses no experts by its arrays")
            continue
        sources = _sources(widths, group, new, usefulness, problems)
        made, reasons = copied(widths, group, new, own, sources=sources, noise=noise, others=others)
        changes |= {change.width: change for change in made}
        texts[router.name] = said(group, old, new, own, reasons)
    if not changes and not problems:
        problems.append("there are as many experts as in the network")
    if problems:
        raise ValueError(listed("cannot plan these experts", problems))
    made = [changes[name] for name in widths if name in changes]
    return Growth(widths, tuple(made), tuple(notes_of(texts)), structure)


def _has_other_axes(widths: Widths, shapes: Mapping[str, Any]) -> bool:
    return any(len(shapes[leaf.path].shape) != len(leaf.shape) for leaf in widths.leaves)


def _longer(widths: Widths, shapes: Mapping[str, Any]) -> list[tuple[str, int]]:
    """Returns the axes that have another length in a target, each by path and axis."""
    return [
        (leaf.path, axis)
        for leaf in widths.leaves
        for axis, length in enumerate(shapes[leaf.path].shape if leaf.path in shapes else ())
        if length != leaf.shape[axis]
    ]


def _sizes(
    widths: Widths,
    longer: Iterable[tuple[str, int]],
    shapes: Mapping[str, Any],
    problems: list[str],
) -> dict[str, int]:
    """Returns the sizes of the widths along some axes of a target."""
    sizes: dict[str, int] = {}
    for path, axis in longer:
        layout, length = widths.leaf(path).axes[axis], shapes[path].shape[axis]
        if not isinstance(layout, Units):
            problems.append(f"{path}[{axis}]: grows, but is made of {layout}")
        elif sizes.setdefault(layout.width, length) != length:
            problems.append(
                f"{path}[{axis}]: is {length} long in the target, but {layout.width} = "
                f"{sizes[layout.width]} elsewhere"
            )
    return sizes


def _groups(
    widths: Widths,
    every: Sequence[Experts],
    sizes: dict[str, int],
    unsure: Collection[str],
    problems: list[str],
) -> list[Experts]:
    """Returns the experts that grow; adds the sizes of widths that grow along with a router's.

    Widths that the program does not tie to a router belong to the one whose arrays are closest by
    path, unless it is not sure that they count experts.
    """
    routers = [group for group in every if group.router in sizes]
    stacks = {name: group for group in every for name in group.stacks}
    found = {group.router: group for group in routers}
    for name in [name for name in sizes if name not in found]:
        group = stacks.get(name)
        if group is None and name not in unsure:
            group = _closest(widths, name, routers)
        if group is None or group.router not in found:
            problems.append(
                f"{name}: no router that grows is seen to choose along it; the routers are "
                f"{[group.router for group in every]}; other widths grow by dw.plan"
            )
            continue
        group = found[group.router]
        found[group.router] = replace(group, stacks=tuple(dict.fromkeys((*group.stacks, name))))
    for group in found.values():
        old, new = widths[group.router].size, sizes[group.router]
        if new < old:
            problems.append(f"{group.router}: {new} experts are fewer than today's {old}")
        if not group.stacks:
            problems.append(
                f"{group.router}: the program does not show which arrays hold its experts; name "
                "their widths, too, or pass target=, the larger model's variables"
            )
        for name in group.stacks:
            if (widths[name].size, sizes.setdefault(name, new)) != (old, new):
                problems.append(
                    f"{name}: is to grow from {widths[name].size} to {sizes[name]}, but its router "
                    f"{group.router} from {old} to {new}"
                )
    return [] if problems else list(found.values())


def _closest(widths: Widths, name: str, routers: Iterable[Experts]) -> Experts | None:
    """Returns the experts whose router's arrays share the longest path with those of a width."""

    def shared(group: Experts) -> int:
        return max(
            _common(one.path.split("/"), other.path.split("/"))
            for one in widths[name].occurrences
            for other in widths[group.router].occurrences
        )

    ranked = sorted(routers, key=shared, reverse=True)
    if not ranked or (len(ranked) > 1 and shared(ranked[0]) == shared(ranked[1])):
        return None
    return ranked[0]


def _common(one: list[str], other: list[str]) -> int:
    """Returns how many parts two paths have in common from the start."""
    different = (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    return next(different, min(len(one), len(other)))


def _sources(
    widths: Widths, group: Experts, new: int, usefulness: PyTree, problems: list[str]
) -> tuple[int, ...] | None:
    """Returns the expert that each new one copies, by usefulness if it is known."""
    if usefulness is None:
        return None
    values, old = leaves_by_path(usefulness), widths[group.router].size
    score, copies = np.zeros(old), np.ones(old, int)
    for leaf in group.arrays(widths):
        if leaf.path not in values or np.shape(values[leaf.path]) != leaf.shape:
            problems.append(f"{leaf.path}: usefulness= must have an array of shape {leaf.shape}")
            continue
        for axis, layout in enumerate(leaf.axes):
            if isinstance(layout, Units) and layout.width in group.stacks:
                others = tuple(other for other in range(len(leaf.shape)) if other != axis)
                score += np.sum(np.asarray(values[leaf.path], float), axis=others)
    extra = []
    for _ in range(new - old):  # the next copy is of the expert with most to do for each copy
        extra.append(int(np.argmax(np.abs(score) / copies)))
        copies[extra[-1]] += 1
    return (*range(old), *extra)
