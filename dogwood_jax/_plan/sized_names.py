"""Names of arrays that contain sizes, such as ``linear_32x64``: ``check_names``.

Arrays of a network and of a larger one are matched by their paths. A library such as e3nn may put
sizes into the paths. Then every array has another name in the larger model, and all arrays would
look like new layers.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from typing import Any

from dogwood_jax._base.problems import Refused
from dogwood_jax._program.numbered import numbered_layers
from dogwood_jax._widths.widths import Widths

_NUMBER = re.compile(r"\d+")


def check_names(widths: Widths, shapes: Mapping[str, Any]) -> None:
    """Raises an error if arrays are missing from a larger model only because of sizes in names.

    Args:
        widths: the network's widths.
        shapes: the larger model's arrays by path.

    Raises:
        Refused: with a line for each such array.
    """
    paths = {leaf.path for leaf in widths.leaves}
    layers = numbered_layers(shapes).values()  # an inserted layer shifts their numbers
    missing, new = (
        _by_text(p for p in some if all(its.layer_of(p) is None for its in layers))
        for some in (paths - shapes.keys(), shapes.keys() - paths)
    )
    sizes = {*widths.sizes.values(), *(n for leaf in widths.leaves for n in leaf.shape)}
    larger = {n for leaf in shapes.values() for n in leaf.shape}
    problems = []
    for text, old in missing.items():
        for one, other in zip_longest(old, new.get(text, ()), fillvalue=""):
            if _differ_in_sizes(one, other, sizes, larger):
                problems.append(
                    f"{one}: the name carries sizes, and in the target it seems to be {other}"
                )
    if problems:
        problems.append(
            "give the target's arrays the names that they have in the network, and let "
            "target_apply= rename them back before it calls the larger model"
        )
        raise Refused(problems)


def _by_text(paths: Iterable[str]) -> dict[str, list[str]]:
    """Returns paths in groups that differ only in numbers."""
    found: dict[str, list[str]] = {}
    for path in sorted(paths):
        found.setdefault(_NUMBER.sub("#", path), []).append(path)
    return found


def _differ_in_sizes(old: str, new: str, sizes: set[int], larger: set[int]) -> bool:
    """Whether numbers in two paths differ only where a size grows to a size of the larger model."""
    a, b = (_numbers(path) for path in (old, new))
    differing = [(m, n) for m, n in zip(a, b, strict=False) if m != n]
    return len(a) == len(b) > 0 and all(m in sizes and n in larger and m < n for m, n in differing)


def _numbers(path: str) -> Sequence[int]:
    return [int(number) for number in _NUMBER.findall(path)]
