"""Plan a growth: ``plan``."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dogwood_jax._base.arguments import (
    BOOLEAN,
    BY_WIDTH,
    FUNCTION,
    VARIABLES,
    WIDTHS,
    ArgumentKind,
    expect,
    expect_arrays,
    expect_given,
)
from dogwood_jax._base.described import described, is_train_state
from dogwood_jax._base.problems import Refused
from dogwood_jax._base.progress import progress
from dogwood_jax._base.trees import PyTree, arrays_of, leaves_by_path
from dogwood_jax._growth.growth import Growth
from dogwood_jax._plan.asked import Request
from dogwood_jax._plan.decide import decide
from dogwood_jax._plan.depth.removed import layers_of, without_layers_of
from dogwood_jax._plan.sized_names import check_names
from dogwood_jax._plan.sizes import named_sizes
from dogwood_jax._widths.widths import Widths
from dogwood_jax.strategies import DepthStrategy, Strategy

DEPTH = ArgumentKind(
    "strategies.stack(), strategies.interpose() or strategies.new_layers()",
    lambda value: isinstance(value, DepthStrategy),
)


def plan(
    widths: Widths,
    sizes: Mapping[Any, int] | None = None,
    *,
    target: PyTree = None,
    target_apply: Callable[..., Any] | None = None,
    keep: Mapping[Any, Any] | None = None,
    merge: Mapping[Any, Sequence[Sequence[int]]] | None = None,
    strategy: Strategy | Mapping[str, Strategy] | None = None,
    depth: DepthStrategy | None = None,
    interface: bool = False,
    check: bool = True,
) -> Growth:
    """Plans a growth: determines how each array changes, without touching any values.

    With a preserving strategy, such as the default, the grown network computes the same as the old
    one. The growth is derived from the network's program, and accepted only if an evaluation
    confirms it. The evaluation runs both networks in float64 on random weights and inputs, in
    reduced sizes if they are large; ``grow`` makes the larger network's weights. Outputs must be
    equal to rounding. ``print(growth)`` shows what was checked and what was not seen. Widths from
    ``chain`` hold no function, so they are not evaluated. Widths from a file need ``check=False``.

    If a width cannot grow in this way, ``plan`` raises an error with the reason. Some operations,
    such as a norm, depend on a width's size. If an exact recipe is known for such a width, it is
    the default. It may need other constants in the larger model, which the growth's notes list.
    Experts are copied if this keeps outputs: the larger model must then choose that many times more
    of them, see ``upcycle``. A target may also have more layers.

    Args:
        widths: the widths of the network, from ``trace`` or ``chain``.
        sizes: new number of units by name of the width, or by ``(path, axis)`` of any of its
            occurrences.
        target: a pytree of arrays or ``jax.ShapeDtypeStruct`` of the larger model. ``plan`` finds
            the widths that differ; ``sizes`` is needed only if the shapes are ambiguous. The grown
            variables get the target's tree structure.
        target_apply: the larger model's function of variables and inputs. Without a target, it
            takes the network's own variables in the new ``sizes``, and may be the network's own
            function. It shows how the larger model splits products such as heads * head_dim, and
            whether only heads of keys and values grow, which are then copied. The evaluation runs
            this function, with its own constants. If a constant differs, such as alpha / rank,
            arrays are rescaled to make up for it, and a note says so. If frequencies depend on a
            size, as in rotary embeddings, old units move to the positions that have their
            frequencies in the larger model, and a note says so. If the larger model has more
            layers, they are inserted so that they compute the identity (see ``deepen``). By
            default, ``plan`` uses the network's own function in two cases: ``target`` consists of
            modules that hold their sizes, as in Equinox; or the network's own function uses all new
            layers of ``target``, and a note says so.
        keep: by width, the units that stay: their indices, in their new order, or a boolean mask.
            The others are removed, so outputs move. In a stack over which a loop runs, layers may
            keep different units, but equally many: ``[layers, units]``. ``narrow`` does the same
            to variables, but first moves the effect of constant units into biases, and warns how
            far outputs move. For layers with numbers in their names, the layers that stay:
            ``{"layers": [0, 1, 5]}`` keeps ``layers_0``, ``layers_1`` and ``layers_5``, and renames
            the last one to ``layers_2``. A stack over which a loop runs has a width that counts its
            layers.
        merge: by width, groups of units that compute the same function, as ``find_symmetric``
            returns them. The first unit of a group stays and takes over the others' outgoing
            weights, see ``merge_symmetric``. The evaluation shows that outputs stay if the units of
            a group compute the same function. It does not check whether your units do.
        strategy: one strategy for all widths, or a mapping from width name to strategy: one of
            ``dogwood_jax.strategies``, or your own function ``(widths, name, old, new)`` that
            returns the initial weights of new units, see ``strategies.start``. Widths without a
            strategy grow by ``strategies.zero_outgoing()``, or by the recipe they need.
            ``replicate(noise=...)`` for the width of a router copies its experts with noise.
            ``resample`` and ``resample_patch``, for images of another size, are given by the path
            of an array, and need ``target``.
        depth: how layers that only the target has are filled in, such as ``strategies.stack()``. By
            default they compute the identity. Needs ``target`` and ``target_apply``.
        interface: whether widths that are dimensions of the network's inputs or outputs may
            change: old outputs stay, new ones are appended.
        check: whether a preserving growth is accepted only if an evaluation confirms it. Without
            the check, the first line of the growth says so, and ``plan`` does not test whether the
            network's own function takes arrays of the new sizes.

    Returns:
        The growth, for ``grow`` and ``grow_opt_state``. Its ``evidence`` holds the results of the
        evaluation, see ``Evidence``.

    Raises:
        TypeError: if ``widths`` is not a ``Widths``, or another argument is of the wrong kind.
        ValueError: for unknown widths, sizes below the current ones, widths that cannot grow or
            cannot grow without changing outputs, and shapes of the target that no growth explains;
            all of them in one message. Also if the networks differ for some sample, or nothing
            shows that outputs stay: they cannot be evaluated, the network is not finite for any
            sample, or a constant may depend on a size and no function shows its new value.

    Example:
        >>> import jax.numpy as jnp
        >>> import dogwood_jax as dw
        >>> layer = lambda i, o: {"kernel": jnp.ones((i, o)), "bias": jnp.ones(o)}
        >>> widths = dw.chain({"up": layer(4, 8), "down": layer(8, 2)}, ("up", "down"))
        >>> print(dw.plan(widths, {"up": 16}))
        not checked: these widths hold no program, so nothing was evaluated
        array        before  after  new entries
        -----------  ------  -----  ----------------
        up/kernel    4x8     4x16   axis 1 free (up)
        up/bias      8       16     axis 0 free (up)
        down/kernel  8x2     16x2   axis 0 zero (up)
        (by axis, for each width; free: as in a new layer, or from fresh=; zero: ...
        >>> dw.plan(widths, keep={"up": [0, 2, 5]})
        Growth(up: 8 -> 3)
    """
    if sizes is None:
        expect("plan", widths=(WIDTHS, widths))
    else:
        expect("plan(widths, sizes)", widths=(WIDTHS, widths), sizes=(BY_WIDTH, sizes))
    expect_given(
        "plan",
        target=(VARIABLES, target),
        target_apply=(FUNCTION, target_apply),
        keep=(BY_WIDTH, keep),
        merge=(BY_WIDTH, merge),
        depth=(DEPTH, depth),
        interface=(BOOLEAN, interface),
        check=(BOOLEAN, check),
    )
    if sizes is None and target is None and keep is None and merge is None:
        raise ValueError(
            "plan needs sizes, {name: units}, or target=, a larger model's variables; "
            "or keep= or merge= to remove units"
        )
    if target_apply is not None and target is None and sizes is None:
        raise ValueError(
            "plan: target_apply= goes with sizes, or with target=, the variables of that function"
        )
    if depth is not None and (target is None or target_apply is None):
        raise ValueError("plan: depth= goes with target= and target_apply=, the deeper model")
    if twice := (sizes or {}).keys() & {*(keep or {}), *(merge or {})}:
        raise Refused(
            f"{name!r}: is in sizes and in keep= or merge=, which already determine how many units "
            "stay; leave out its size"
            for name in twice
        )
    if target is not None:
        shapes = arrays_of(leaves_by_path(target))
        if is_train_state(target):
            if not any(leaf.path.startswith("opt_state/") for leaf in widths.leaves):
                raise TypeError(
                    f"plan: target must be like the network's variables, got {described(target)} "
                    'that also holds an optimizer state; pass {"params": state.params}, or '
                    "state.params if the network takes these"
                )
        check_names(widths, shapes)
        if target_apply is None:
            paths = [leaf.path for leaf in widths.leaves]
            expect_arrays("plan", "target", target, shapes, paths)
    elif sizes is not None and keep is None and merge is None:
        _expect_other(widths, sizes, interface)
    layers: dict[Any, Any] = {}
    if keep is not None:
        numbered = layers_of(widths)
        layers = {name: keep[name] for name in keep if name not in widths and name in numbered}
        keep = {name: units for name, units in keep.items() if name not in layers} or None
    if layers and (target is not None or target_apply is not None):
        raise ValueError(
            f"plan: keep={{{', '.join(map(repr, layers))}: ...}} removes layers, and target= "
            "describes another network; plan two growths, the second one with widths growth.after"
        )
    request = Request(
        widths,
        sizes or {},
        target=target,
        target_apply=target_apply,
        keep=keep,
        merge=merge,
        strategy=strategy,
        depth=depth,
        interface=interface,
        check=check,
    )
    is_of_units = not layers or sizes is not None or keep is not None or merge is not None
    with progress("plan"):
        growth = decide(request) if is_of_units else Growth(widths, ())
    growth = without_layers_of(growth, layers, check=check) if layers else growth
    is_other = growth.changes or growth.inserted or growth.layers
    if is_other or keep is not None or merge is not None:  # all units may stay
        return growth
    raise ValueError("plan: nothing grows: all sizes stay what they are")


def _expect_other(widths: Widths, sizes: Mapping[Any, int], interface: bool) -> None:
    """Raises if all sizes are the current ones, before anything is evaluated."""
    problems: list[str] = []
    named = named_sizes(widths, sizes, problems, interface)
    if named and not problems and all(widths[name].size == n for name, n in named.items()):
        already = ", ".join(f"{name} has {n} units already" for name, n in named.items())
        raise ValueError(f"plan: nothing grows: {already}")
