"""What a network's function did with doubled widths, written in its place: ``try_doubled``."""

import re
from collections.abc import Iterable
from dataclasses import replace

from dogwood_jax._growth.growth import Growth
from dogwood_jax._plan.own_function import KNOWS_SIZES, Contradicted, NeedsMore
from dogwood_jax._plan.plan import plan
from dogwood_jax._widths.widths import Tried, Width, Widths

_WHEN_WRITTEN = "when it was written, "
_NUMBERS = "the network's function decided which numbers follow from a size; trace it again"


def try_doubled(widths: Widths) -> Tried:
    """Doubles each width that can grow, together with the same width of repeated layers."""
    if widths.network is None:
        return Tried()
    conflicts: list[tuple[str, str]] = []
    known: list[str] = []
    alone: list[tuple[tuple[str, ...], str]] = []
    for names in _alike(width for width in widths.values() if _grows(width)):
        sizes = {name: 2 * widths[name].size for name in names}
        try:
            growth = plan(widths, sizes, interface=True)
        except Contradicted as error:
            conflicts += ((name, _WHEN_WRITTEN + error.problems[0]) for name in names)
        except NeedsMore as error:
            alone.append((names, _WHEN_WRITTEN + error.problems[0]))
        except ValueError:  # the widths say so themselves
            pass
        else:
            known += names if KNOWS_SIZES in growth.notes else ()
            if not _is_plain(widths, growth):
                conflicts += ((name, _NUMBERS) for name in names)
    return Tried(tuple(conflicts), tuple(known), tuple(alone))


def _is_plain(widths: Widths, growth: Growth) -> bool:
    """Whether a growth is the same without the function, so that a file tells all of it."""
    try:
        other = plan(replace(widths, network=None, tried=Tried()), growth.sizes, interface=True)
    except ValueError:  # as plan will say of the widths in the file
        return True
    return other.changes == growth.changes


def _grows(width: Width) -> bool:
    """Whether a width can be doubled by default."""
    exact = not width.hazards or any(r.learns for r in width.recipes)
    return exact and not width.fixed and width.free_hazard is None


def _alike(widths: Iterable[Width]) -> list[tuple[str, ...]]:
    """Returns the names of widths, together where they occur alike but for numbers in paths."""
    groups: dict[object, list[str]] = {}
    for width in widths:
        places = ((re.sub(r"\d+", "#", o.path), o.axis, o.role) for o in width.occurrences)
        label = width.name.partition("[")[2]
        groups.setdefault((width.size, label, *places), []).append(width.name)
    return [tuple(names) for names in groups.values()]
