"""Finds entries of outputs that moved by more than rounding explains: ``Entries``."""

import functools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from dogwood_jax._front.compare import gaps, largest_entry, place, sizes, together
from dogwood_jax._front.rounding import bound, eps, least

# An entry may move this many times as far as with nudges. Exact growths of transformers of 2 to 48
# layers in bfloat16 moved one entry in 131,000 by 1.65 times its standard deviation under nudges.
_TIMES = 2


class Entries:
    """How far each entry of a network's outputs has moved, and how far rounding may move it.

    Attributes:
        old: the outputs by path.
        moved: paths of outputs with an entry that moved farther than rounding explains.
        scaled: paths of outputs whose scale as a whole changed by more than rounding explains.
            Rounding moves some entries up and others down, so it hardly moves the scale.
    """

    def __init__(self, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
        self.old = old
        self._gaps = {path: together(gaps, array, new[path]) for path, array in old.items()}
        self._reach = {path: together(_own_rounding, array) for path, array in old.items()}
        self.moved = [*filter(self._has_moved, old)]
        floats = [path for path in self.moved if eps(old[path].dtype)]
        self._scales = {path: self._scale(path, new[path]) for path in floats}
        self._scale_reach = {path: bound(old[path].dtype) for path in floats}

    @property
    def scaled(self) -> list[str]:
        return [path for path, by in self._scales.items() if abs(by) > self._scale_reach[path]]

    def _scale(self, path: str, new: Any) -> float:
        """Returns the relative change of an output's scale."""
        return float(np.asarray(together(_share, self.old[path], new)))

    def explain(self, nudged: Mapping[str, Any]) -> None:
        """Allows entries to move twice as far as in outputs that were computed with nudges."""
        for path in self.moved:
            if path in nudged:
                gap = together(gaps, self.old[path], nudged[path])
                widen = _widened if eps(self.old[path].dtype) else _freed
                self._reach[path] = together(widen, self._reach[path], gap)
        for path in self.scaled:
            if path in nudged:
                by = abs(self._scale(path, nudged[path]))
                self._scale_reach[path] = max(by, self._scale_reach[path])
        self.moved = [*filter(self._has_moved, self.moved)]

    def shows(self, path: str, changed: Mapping[str, Any]) -> bool:
        """Returns whether an entry moves farther than with nudges if arguments change."""
        if path not in changed:
            return False
        gap = together(gaps, self.old[path], changed[path])
        return bool(together(_any_beyond, gap, self._reach[path]))

    def said(self, path: str) -> str:
        """Returns a line on the entry that moved farthest."""
        measured = together(_worst, self._gaps[path], self._reach[path])
        gap, reach, *index = (np.asarray(measure).item() for measure in measured)
        name = f"output {place(path, index)}" if path or index else "output"
        for kind, is_so in (("NaN", math.isnan), ("infinite", math.isinf)):
            if is_so(gap):
                return f"{name}: {kind} in only one of the networks"
        at = functools.partial(_size_at, index=tuple(index))
        size = np.asarray(together(at, self.old[path])).item()
        relative = gap / size if size else math.inf
        moved = f"moved by {gap:.3g}, relative {relative:.3g}"
        return f"{name}: {moved}; rounding explains {reach:.3g}"

    def said_of_all(self, path: str) -> str:
        """Returns a line on the change of an output's scale."""
        by, reach = self._scales[path], self._scale_reach[path]
        name = f"output {path}" if path else "output"
        moved = f"all entries together are {1 + by:.4g} times as large"
        return f"{name}: {moved}; rounding explains {1 + reach:.4g}"

    def _has_moved(self, path: str) -> bool:
        return bool(together(_any_moved, self._gaps[path], self._reach[path]))


def _own_rounding(numpy: Any, old: Any) -> Any:
    """Returns how far the rounding of their own dtype may move entries."""
    size = sizes(numpy, old)
    return bound(old.dtype) * size + least(old.dtype) if eps(old.dtype) else 0 * size


def _share(numpy: Any, old: Any, new: Any) -> Any:
    """Returns the factor that fits best between two outputs, minus one; infinities are ignored."""
    wide = old.dtype if old.dtype.itemsize >= 4 else numpy.float32
    old, gap = old.astype(wide), new[tuple(map(slice, old.shape))].astype(wide) - old.astype(wide)
    gap = numpy.where(numpy.isfinite(gap) & numpy.isfinite(old), gap, 0)
    old = numpy.where(numpy.isfinite(old), old, 0)
    size = (numpy.abs(old) ** 2).sum()
    return numpy.where(size > 0, (gap * old.conj()).real.sum() / numpy.where(size > 0, size, 1), 0)


def _widened(numpy: Any, reach: Any, gap: Any) -> Any:
    return numpy.maximum(reach, numpy.where(numpy.isfinite(gap), _TIMES * gap, 0))


def _freed(numpy: Any, reach: Any, gap: Any) -> Any:
    """Allows any value for integers that nudges move, because they may be rounded either way."""
    return numpy.where(gap > 0, numpy.inf, reach)


def _any_moved(numpy: Any, gap: Any, reach: Any) -> Any:
    return (~(gap <= reach)).any()  # also for NaN


def _any_beyond(numpy: Any, gap: Any, reach: Any) -> Any:
    return (numpy.isfinite(gap) & (gap > reach / _TIMES)).any()


def _worst(numpy: Any, gap: Any, reach: Any) -> tuple[Any, ...]:
    worst, index = largest_entry(numpy, numpy.where(gap <= reach, -1, gap))
    return worst, reach[tuple(index)], *index


def _size_at(numpy: Any, old: Any, index: tuple[int, ...]) -> Any:
    return sizes(numpy, old)[index]
