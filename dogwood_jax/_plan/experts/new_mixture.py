"""A mixture of experts that replaces an MLP, or is added to it: ``mixture``.

The larger model has other arrays. Each array of the MLP becomes an array of experts, in which it is
repeated along a new first axis, or stays as part of a shared expert. Names and shapes decide which.
"""

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from dogwood_jax._growth.edit import Edit, Fill, Repetition, silenced
from dogwood_jax._growth.growth import Growth
from dogwood_jax._plan.depth.layers import with_kind
from dogwood_jax._plan.experts.copied import STAYS, Attempts, notes_of, tried
from dogwood_jax._plan.experts.found_mixtures import (
    Mixtures,
    arrays_along,
    factors_of_outputs,
    hidden_in,
)
from dogwood_jax._widths.layout import Layout, Units
from dogwood_jax._widths.widths import Leaf, Widths

_ALIKE = "outputs stay, because all experts are alike and the gates of each token sum to one"
_MAY_BE_ALIKE = "all experts are alike, so outputs stay only if the gates of each token sum to one"
_ZERO = "outputs stay, because the outputs of new experts are zero"
_OTHERS = "no array of a router or of experts"
_LAYERS = (
    "if the larger model has more layers, too: first dw.plan with a target that only has more "
    "layers, then dw.upcycle"
)
_MAY_BE_ZERO = "the outputs of new experts are zero"


def mixture(
    network: Mixtures,
    shapes: Mapping[str, Any],
    larger: Mixtures | None,
    rename: Mapping[str, str],
    anew: float,
    problems: list[str],
) -> Attempts:
    """Returns the growths in which a mixture of experts replaces an MLP, or is added to it.

    Args:
        network: the network with the MLP.
        shapes: arrays of the larger model by path.
        larger: the larger model, or None if its program is not known.
        rename: parts of paths that have other names in the larger model.
        anew: the share of hidden units that are drawn anew in each expert.
        problems: receives a line for each problem.
    """
    if larger is None:
        problems.append("the target has other arrays: pass target_apply=, its function, too")
        return Attempts()
    widths, routers = network.widths, {group.router: group for group in larger.experts}
    if not routers:
        problems.append("the larger model has no router: it has no top_k along a width")
        return Attempts()
    stay = {
        leaf.path
        for leaf in widths.leaves
        if leaf.path in shapes and tuple(shapes[leaf.path].shape) == leaf.shape
    }
    gone = [leaf for leaf in widths.leaves if leaf.path not in stay]
    new = {path: array for path, array in shapes.items() if path not in stay}
    found = _moved(widths, gone, new, rename, anew, problems)
    is_replaced = any(edit.experts for edit in found.values())
    if anew and not is_replaced:
        problems.append("anew= is for experts that are copies of an MLP, but the MLP stays")
    own = {leaf.path for leaf in arrays_along(larger.widths, [*routers])}
    zeros, notes, unshown = dict[str, list[tuple[str, ...]]](), dict[str, str](), dict[str, str]()
    for name, group in routers.items():
        stacks = group.arrays(larger.widths)
        own |= {leaf.path for leaf in stacks}
        if any(leaf.path in found for leaf in stacks) or (is_replaced and not stacks):
            is_drawn = f"outputs change, because {anew:g} of the hidden units are drawn anew"
            notes[name], unshown[name] = _ALIKE, is_drawn if anew else _MAY_BE_ALIKE
        elif not stacks:
            problems.append(f"{name}: the program does not show which arrays hold its experts")
        else:
            zeros[name] = factors_of_outputs(larger.widths, group) or [()]
            notes[name], unshown[name] = _ZERO, _MAY_BE_ZERO
    others = [path for path in new if path not in found and path not in own]
    problems += [f"{path}: only in the target, and {_OTHERS}" for path in others]
    problems += [_LAYERS] if others else []
    for path, array in new.items():
        if path in found:
            continue
        edit = Edit(path, tuple(array.shape), str(array.dtype), fill=Fill("free"))
        found[path] = with_kind(edit, larger.widths.leaf(path)) if path in own else edit
    texts, growths = tuple(notes_of(unshown)), list[Growth]()
    for way in tried(zeros):
        silent = {path for paths in way.values() for path in paths}
        arrays = (silenced(found[p]) if p in silent else found[p] for p in new if p in found)
        growths.append(Growth(widths, (), texts, inserted=tuple(arrays)))
    return Attempts(growths, [STAYS] if anew else notes_of(notes))


def _moved(
    widths: Widths,
    gone: Sequence[Leaf],
    new: Mapping[str, Any],
    rename: Mapping[str, str],
    anew: float,
    problems: list[str],
) -> dict[str, Edit]:
    """Returns edits for arrays that have another path in the larger model, by new path.

    The new path of an array shares more words with the old path than any other path does. An array
    of the same shape is preferred to an array of experts.
    """
    found: dict[str, Edit] = {}
    hidden = hidden_in(widths, gone)
    for leaf in gone:
        path = _renamed(leaf.path, rename)
        same = [place for place, array in new.items() if tuple(array.shape) == leaf.shape]
        same = [place for place in same if _words(place) & _words(path)]
        more = [place for place, array in new.items() if tuple(array.shape[1:]) == leaf.shape]
        most = max((_alike(path, place) for place in same or more), default=0)
        best = [place for place in same or more if _alike(path, place) == most]
        if not best:
            problems.append(f"{leaf.path}: not in the target, nor an array of experts like it")
        elif len(best) > 1 or best[0] in found:
            problems.append(
                f"{leaf.path}: names do not show which of {best} it becomes; pass rename=, "
                "{part of its path: part of the other}"
            )
        else:
            (place,) = best
            array = new[place]
            experts = None
            if not same:
                axes = [a for a, layout in enumerate(leaf.axes) if _is_one_of(layout, hidden)]
                experts = Repetition(array.shape[0])
                if axes:
                    experts = Repetition(array.shape[0], anew, axes[0] + 1)
            shape, dtype = tuple(array.shape), str(array.dtype)
            found[place] = Edit(place, shape, dtype, leaf.path, experts=experts)
    return found


def _is_one_of(layout: Layout, names: Collection[str]) -> bool:
    return isinstance(layout, Units) and layout.width in names


def _renamed(path: str, rename: Mapping[str, str]) -> str:
    """Returns a path with parts of it replaced."""
    path = f"/{path}/"
    for before, after in rename.items():
        path = path.replace(f"/{before}/", f"/{after}/")
    return path[1:-1]


def _words(path: str) -> Counter[str]:
    """Returns the words and numbers in a path, counted."""
    return Counter(re.findall(r"[a-zA-Z]+|[0-9]+", path))


def _alike(path: str, place: str) -> int:
    """Returns a score: twice the number of common words, plus one if both paths are equal."""
    return 2 * (_words(path) & _words(place)).total() + (path == place)
