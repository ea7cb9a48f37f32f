"""Plan a growth: ``plan``."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import jax

from dogwood_jax import strategies
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
from dogwood_jax._base.problems import Refused
from dogwood_jax._base.trees import PyTree, arrays_of, leaves_by_path
from dogwood_jax._depth.insertions import NothingFits, fillings
from dogwood_jax._growth.evidence import Evidence
from dogwood_jax._growth.growth import Growth
from dogwood_jax._growth.insertion import Insertion
from dogwood_jax._plan.asked import HEADS_FOR_EACH, Asked, asked_of, in_sizes, strategies_by_name
from dogwood_jax._plan.between import Between, find_between
from dogwood_jax._plan.by_few_layers import Proposal, by_few_layers
from dogwood_jax._plan.comparison import Comparison
from dogwood_jax._plan.constants import constants, missing_epsilons
from dogwood_jax._plan.copies import Copies
from dogwood_jax._plan.experts import COPIES, exact_copies
from dogwood_jax._plan.extensions import extensions, other_strategies
from dogwood_jax._plan.larger import ANOTHER, Larger, read_larger
from dogwood_jax._plan.names import check_names
from dogwood_jax._plan.notes import notes_of
from dogwood_jax._plan.own_function import (
    ITS_OWN_NUMBERS,
    Contradicted,
    contradicted,
)
from dogwood_jax._plan.removals import NO_MERGE, removals
from dogwood_jax._plan.shown import Unshown, first_shown, fitting, shown, shown_by
from dogwood_jax._plan.target import splits
from dogwood_jax._widths.by_analogy import NotAlike
from dogwood_jax._widths.widths import Widths
from dogwood_jax.strategies import DepthStrategy, Strategy

_NO_PROGRAM = (
    "widths from a file hold no program, so nothing shows that outputs stay; trace the network "
    "again, or pass check=False"
)

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
    """Plans a growth: works out what becomes of each array, without touching any values.

    With a preserving strategy, such as the default one, the grown network computes what the old one
    did. The program of the network proposes such a growth. It is accepted only if an evaluation
    shows it: both networks, in small sizes if they are large, are run on random weights and inputs
    in float64, and must be equal to rounding. The weights of the larger one come from ``grow``.
    ``print(growth)`` says what was checked and what was not seen. Widths from ``chain`` hold no
    function, so nothing is evaluated for them. Widths from a file need ``check=False``.

    A width that cannot grow in this way is refused, with the reason. Some parts of a network
    compute with a width's size, such as a norm. If an exact recipe is known for such a width, it is
    the default. It may need other constants in the larger model: the growth's notes say which.
    Experts are copied where outputs stay, with as many times more of them chosen, see ``upcycle``.

    Args:
        widths: the widths of the network, from ``trace`` or ``chain``.
        sizes: new number of units by name of the width, or by ``(path, axis)`` of any place where
            it occurs.
        target: a pytree of arrays or ``jax.ShapeDtypeStruct`` of the larger model. Which widths
            differ is worked out; ``sizes`` settles what the shapes leave open. The grown
            variables get the target's tree structure.
        target_apply: the larger model's function of variables and inputs. Without a target, it
            takes the network's own variables in the new ``sizes``, and may be the network's own
            function. It shows how the larger model splits products such as heads * head_dim, and
            whether heads of keys and values grow alone: then they are copied. It is also what is
            evaluated: does it compute the same, with the right constants? Where its numbers differ,
            as alpha / rank does, arrays are rescaled to make up for them, and a note says so. Where
            frequencies follow from a size, as in rotary embeddings, old units go to the multiples
            of their places that have the same ones, and a note says so. If the larger model has
            more layers, they are inserted, filled so that they compute the identity (see
            ``deepen``). If it is left out, ``plan`` takes the network's own function in two cases:
            ``target`` consists of modules that say their numbers, as in Equinox; or the network's
            own function uses all new layers of ``target``, which a note says.
        keep: by width, the units that stay: their indices, in their new order, or a boolean mask.
            The others are removed, so outputs move. ``narrow`` does the same to variables, but
            moves the effect of constant units into biases before, and says how far outputs move.
        merge: by width, groups of units that compute the same function, as ``find_symmetric``
            returns them. The first of a group stays and takes over the others' outgoing weights,
            see ``merge_symmetric``. The evaluation shows that outputs stay for all weights with
            which the units of a group compute the same; whether yours do so, it does not know.
        strategy: one strategy for all widths, or a mapping from width name to strategy. Widths
            without one grow by ``strategies.zero_outgoing()``, or by the recipe they need.
        depth: how the layers that only the target has are filled in, such as
            ``strategies.stack()``, if not so that they compute the identity. It takes
            ``target_apply``.
        interface: whether widths that are dimensions of the network's inputs or outputs may
            change: old outputs stay, new ones are appended.
        check: whether to accept a growth that is to keep outputs only if an evaluation shows that
            it does. Without the check, the growth says so in its first line. Nor is the network's
            own function asked whether it takes arrays of the new sizes.

    Returns:
        The growth, for ``grow`` and ``grow_opt_state``. Its ``evidence`` holds what the evaluation
        has shown, see ``Evidence``.

    Raises:
        TypeError: if ``widths`` is no ``Widths``, or another argument is of the wrong kind.
        ValueError: for unknown widths, sizes below today's, widths that cannot grow or cannot
            grow without changing outputs, and shapes of the target that no growth explains; all
            of them in one message. Also if both networks differ for some sample, or nothing shows
            that outputs stay: they cannot be evaluated, the network is finite for no sample, or a
            constant may follow from a size and there is no function to ask.

    Example:
        >>> import jax.numpy as jnp
        >>> import dogwood_jax as dw
        >>> layer = lambda i, o: {"kernel": jnp.ones((i, o)), "bias": jnp.ones(o)}
        >>> widths = dw.chain({"up": layer(4, 8), "down": layer(8, 2)}, ("up", "down"))
        >>> print(dw.plan(widths, {"up": 16}))
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
    if target is not None:
        shapes = arrays_of(leaves_by_path(target))
        check_names(widths, shapes)
        if target_apply is None:
            paths = [leaf.path for leaf in widths.leaves]
            expect_arrays("plan", "target", target, shapes, paths)
    structure = None if target is None else jax.tree.structure(target)
    if sizes is not None and target is None and target_apply is not None:
        target, sizes = in_sizes(widths, sizes)

    def proposed(widths: Widths, sizes: Mapping[Any, int], larger: Larger | None) -> Proposal:
        given = target, keep, merge, strategy, depth, interface, check
        return _proposed(widths, sizes, larger, *given)

    def filled(found: Proposal) -> Iterator[tuple[Insertion, ...]]:
        its, before = found.asked.larger, found.asked.before
        assert its.widths is not None
        return fillings(found.growth, before, its.widths, quickly=its.is_unlikely)

    def judged(found: Proposal) -> Growth:
        growth, larger = found.growth, found.asked.larger.widths
        if not found.keeps_outputs:
            return growth
        if not check:
            if growth.insertions:
                growth = replace(growth, insertions=next(filled(found)))
            return replace(growth, evidence=Evidence(why_not="planned with check=False"))
        assert larger is not None
        before, unlike, is_doubtful = found.asked.before, found.unlike, bool(found.doubts)

        def show(insertions: tuple[Insertion, ...]) -> Growth:
            its = replace(growth, insertions=insertions)
            return shown_by(its, before, larger, unlike, is_doubtful=is_doubtful)

        return first_shown(show, filled(found)) if growth.insertions else show(())

    by_layer = depth or keep or merge or isinstance(strategy, Mapping)
    if target_apply is not None and not by_layer:
        try:
            growth = by_few_layers(widths, sizes or {}, target, target_apply, proposed, judged)
            return replace(growth, structure=structure)
        except (NotAlike, ValueError):  # with all layers, the error says all
            pass

    def planned(larger: Larger | None) -> Growth:
        found = proposed(widths, sizes or {}, larger)
        growth, asked = replace(found.growth, structure=structure), found.asked
        is_moved = keep is not None or merge is not None or not found.keeps_outputs
        if growth.insertions and is_moved and depth is None:  # new layers do nothing all the same
            given = target, None, None, None, depth, interface, check
            exact = _proposed(widths, sizes or {}, larger, *given)
            growth = replace(growth, insertions=next(filled(exact)))
        if keep is not None or (merge is not None and not _is_claim_on_merged(growth)):
            return growth
        its_widths = asked.widths
        if not found.keeps_outputs:
            is_own = target is None and its_widths.network is not None and not found.has_copies
            return fitting(growth) if check and is_own else growth
        refused: Refused
        try:
            if not check or (asked.larger.widths is not None and asked.larger.widths.network):
                return judged(replace(found, growth=growth))
            if its_widths.network is None:
                if its_widths.is_saved and growth.changes:
                    raise Refused([_NO_PROGRAM])
                return growth
            return shown(growth, its_widths, target, is_doubtful=bool(found.doubts))
        except Unshown as unshown:
            if target is None and merge is None and its_widths.network is not None:
                try:  # the numbers of the function decide
                    return plan(
                        its_widths,
                        asked.named,
                        target_apply=its_widths.network.apply,
                        strategy=strategy,
                        interface=interface,
                    )
                except ValueError:
                    pass
            way_out = COPIES if found.has_copies else ITS_OWN_NUMBERS if merge is None else NO_MERGE
            reasons = [f"{reason}; {way_out}" for reason in unshown.args]
            its = Contradicted(reasons)
            if unshown.is_evaluated:
                its = contradicted("in these sizes, the network itself", reasons)
            refused = its.beside(found.doubts)
            refused.__cause__ = unshown
        except Refused as error:
            refused = error.beside(found.doubts, found.ways_out)
            refused.__cause__ = error.__cause__
        except NothingFits as nothing:
            if asked.larger.is_unlikely:
                raise
            ways_out = [*asked.ways_out(), *([ANOTHER] if target_apply is None else [])]
            refused = Refused([nothing.said, *found.doubts, *ways_out])
            refused.__cause__ = nothing
        if strategy is None and merge is None and (others := other_strategies(growth)):
            with suppress(ValueError):
                return plan(
                    asked.before,
                    asked.named,
                    target=target,
                    target_apply=target_apply,
                    strategy=others,
                    interface=interface,
                )
        raise refused

    larger = None if target is None else read_larger(widths, target, target_apply, depth)
    try:
        return planned(larger)
    except ValueError:
        for other in () if larger is None else larger.others:
            with suppress(ValueError):
                return planned(other)
        raise


def _proposed(
    widths: Widths,
    sizes: Mapping[Any, int],
    larger: Larger | None,
    target: PyTree,
    keep: Mapping[Any, Any] | None,
    merge: Mapping[Any, Sequence[Sequence[int]]] | None,
    strategy: Strategy | Mapping[str, Strategy] | None,
    depth: DepthStrategy | None,
    interface: bool,
    check: bool,
) -> Proposal:
    """Returns the growth that programs propose; see ``plan``."""
    problems: list[str] = []
    asked = asked_of(widths, sizes, larger, problems)
    widths, larger, heads = asked.widths, asked.larger, asked.heads
    chosen = strategies_by_name(widths, strategy, problems)
    without_strategy = {name: size for name, size in asked.sizes.items() if name not in chosen}
    copies = exact_copies(widths, without_strategy, larger.widths, target, problems)
    copied = {*copies.changes, *copies.pieces}
    others = {name: size for name, size in asked.sizes.items() if name not in copied}
    if heads is not None:
        chosen = {**chosen, **dict.fromkeys(heads.copies, strategies.replicate())}

    keeps_outputs = depth is None and all(s.begins_exact for s in chosen.values())
    others_grow = any(size != widths[name].size for name, size in others.items())
    is_checked = (
        not problems
        and keep is None
        and merge is None
        and keeps_outputs
        and (others_grow or not copies.changes)
    )
    compared, between = _compared(asked, chosen, copies) if is_checked else (None, Between())
    if heads is not None and compared is None and not problems:
        problems += heads.alone
    extended = extensions(asked, others, chosen, interface, compared)
    problems += extended.refusals
    if copies.changes and larger.widths is not None and extended.changes and compared is None:
        problems.append(
            f"{', '.join(extended.changes)}: experts grow, too; without new layers and with "
            "strategies that keep outputs both go together, else plan one after the other, first "
            "with a target that only has more experts"
        )
    changes = {**copies.changes, **extended.changes}
    changes |= removals(widths, keep or {}, merge or {}, interface, [*changes], problems)
    whole = widths if copies.widths is None else copies.widths
    made = [
        change
        for name in whole
        if (change := changes.get(name))
        if (change.new, change.sources) != (change.old, tuple(range(change.old)))
    ]

    notes = [*larger.notes, *copies.notes]
    for change in made:
        notes += notes_of(whole, change, is_seen=compared is not None)
    notes += between.notes
    problems += between.refusals(made)
    doubts = [*extended.doubts]
    for change in made:
        notes += constants(larger, change, doubts)
    if not doubts:
        doubts += missing_epsilons(widths, larger, made)
    is_judged = keeps_outputs and check and keep is None and merge is None and not copies.changes
    is_judged &= asked.before.network is not None
    if problems or (doubts and not is_judged):
        raise Refused([*problems, *doubts, *asked.ways_out()])
    if heads is not None:
        notes += heads.notes
    if compared is not None:
        notes += extended.solved.notes(compared, extended.changes)
    if depth is not None:
        notes.append(_changes_outputs(depth, larger.insertions))
    if larger.widths is None:
        sizes_now = {change.width: change.new for change in made}
        notes += splits(widths, sizes_now, every=target is not None)

    growth = Growth(
        between.widths(whole),
        between.changes(made),
        tuple(dict.fromkeys(notes)),
        insertions=larger.insertions,
    )
    if misfits := [*_misfits(growth)]:
        raise Refused(misfits)
    ways_out = [*asked.ways_out()] if doubts else []
    if heads is not None and heads.is_for_each:
        ways_out.append(HEADS_FOR_EACH)
    return Proposal(
        growth,
        asked,
        keeps_outputs,
        bool(copies.changes),
        bool(extended.solved.recipes),
        extended.unlike,
        doubts,
        [*dict.fromkeys(ways_out)],
    )


def _compared(
    asked: Asked, chosen: Mapping[str, Strategy], copies: Copies
) -> tuple[Comparison | None, Between]:
    """Compares the larger model's program with the network's, and finds what grows between units.

    Args:
        asked: what the growth is asked for.
        chosen: the strategies of widths that are given one.
        copies: the experts that are copied.
    """
    sizes, divided = asked.sizes, dict[str, str]()
    if asked.heads is not None:
        sizes, divided = asked.heads.sizes_in_program(sizes), asked.heads.divided
    larger, widths = asked.larger, asked.before
    compared = larger.compared(widths, sizes, copies, divided)
    between = find_between(widths, sizes, chosen, larger, copies, divided, compared)
    return between.compared or compared, between


def _is_claim_on_merged(growth: Growth) -> bool:
    """Whether units become one in a network that can be evaluated, with as many outputs."""
    widths = growth.widths
    is_closed = not any(widths[change.width].interface for change in growth.changes)
    return bool(growth.changes) and is_closed and widths.network is not None


def _misfits(growth: Growth) -> Iterator[str]:
    """Yields the new arrays that cannot be copies, because their shapes are others."""
    for new in growth.insertions:
        if new.fill == "copy" and new.source is not None and not new.layers:
            if growth.shapes[new.source] != new.shape:
                yield (
                    f"{new.path}: cannot copy {new.source}, which has shape "
                    f"{growth.shapes[new.source]} then, because its own shape is {new.shape}"
                )


def _changes_outputs(depth: DepthStrategy, insertions: Sequence[Insertion]) -> str:
    """Says that new layers change outputs, or that there are none."""
    if not insertions:
        return f"strategies.{depth}() fills in new layers, but the target has none"
    return f"outputs change, because strategies.{depth}() does not silence new layers"
