"""Tables of two programs, where the larger network has old units at multiples: ``SpreadTables``.

Frequencies such as ``theta ** (-2 * i / dim)`` follow from a size, so the numbers that they are
computed with differ in a larger network. But with twice the size, every other frequency is an old
one. So the tables themselves are computed and compared, each entry with the one at its new place.
"""

from collections.abc import Hashable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dogwood_jax._base.trees import concrete
from dogwood_jax._growth.grown_sizes import GrownSizes
from dogwood_jax._growth.leaf_map import old_places
from dogwood_jax._plan.parameters import differing
from dogwood_jax._program.elementwise import ELEMENTWISE
from dogwood_jax._program.interpret import evaluated
from dogwood_jax._program.moves import KEEP_ENTRIES
from dogwood_jax._program.sameness import Sameness
from dogwood_jax._widths.dims import Dim, atoms
from dogwood_jax._widths.positions import LARGEST, MEETS
from dogwood_jax._widths.values import Made, Step, Trace, Value

# Operations that compute each entry from entries at the same places.
_IN_PLACE = KEEP_ENTRIES | {"concatenate", "dot_general", *ELEMENTWISE}
# Numbers in tables are rounded. In half precision, a number that differs is another one.
_ROUNDINGS, _MOST = 16, 2e-6


class SpreadTables:
    """The tables along widths whose old units have new units between them.

    Args:
        trace: the network's program as it was read.
        larger: the larger network's program.
        grown: the sizes that dimensions of the network have in the larger one.
    """

    def __init__(self, trace: Trace, larger: Trace, grown: GrownSizes) -> None:
        self._grown = grown
        self._old, self._new = _Entries(trace), _Entries(larger)
        self._same: dict[tuple[int, int], bool] = {}
        self._larger: dict[int, bool] = {}  # by identity, whether they are such tables

    def __contains__(self, value: Value) -> bool:
        """Whether a value is a table along such a width."""
        return (
            bool(self._grown.times)
            and value.origin == "constant"
            and value.number is None
            and any(self._is_spread(dim) for dim in value.dims)
        )

    def makes(self, step: Step) -> bool:
        """Whether a step makes nothing but such tables, so that only these are compared."""
        return bool(step.results) and all(value in self for value in step.results)

    def problems(self, old: Step, new: Step) -> Iterator[str]:
        """Yields what speaks against a step that takes such tables."""
        pairs = [*zip(old.operands, new.operands), *zip(old.results, new.results)]
        self._larger.update((id(b), True) for a, b in pairs if a in self)
        if self.makes(old):
            return
        for place, (a, b) in enumerate(zip(old.operands, new.operands, strict=True)):
            if a not in self:
                continue
            if not self._stays(a, b):
                yield f"{old.name} takes a table in which old units have other numbers"
            elif not self._is_harmless(old, place, b):
                yield f"{old.name} takes a table that may change what old units are"

    def is_larger(self, value: Value) -> bool:
        """Whether a value of the larger program is such a table, and so was looked at."""
        if self._grown.times and id(value) not in self._larger:
            made = self._new.made(value)
            self._larger[id(value)] = made is not None and any(map(self.is_larger, made.operands))
        return self._larger.get(id(value), False)

    def _is_spread(self, dim: Dim) -> bool:
        return any(atom in self._grown.times for atom in atoms(dim))

    def _is_harmless(self, step: Step, place: int, table: Value) -> bool:
        """Whether a step computes each entry of finite numbers, from entries at the same places."""
        entries, params = self._new.of(table), step.params
        if entries is None or not np.isfinite(sizes := np.abs(_plain(entries))).all():
            return False
        axes = [axis for axis, dim in enumerate(step.operands[place].dims) if self._is_spread(dim)]
        if step.name == "div":
            return place == 1 and bool((sizes * LARGEST >= 1).all())
        if step.name in ("gather", "dynamic_slice"):
            whole = [step.operands[0].dims[axis].size for axis in axes]
            return place == 0 and whole == [params["slice_sizes"][axis] for axis in axes]
        if not (sizes <= LARGEST).all():
            return False
        if step.name == "dot_general" and "axes" in params:  # as ``contractions_of`` writes it
            labels, kept = params["axes"]
            return all(labels[place][axis] in kept for axis in axes)
        if step.name == "dot_general":
            contracted, _ = params["dimension_numbers"]
            return not {*contracted[place]} & {*axes}
        return step.name in MEETS

    def _stays(self, a: Value, b: Value) -> bool:
        """Whether old units have the same numbers in tables of both programs."""
        pair = id(a), id(b)
        if pair not in self._same:
            self._same[pair] = self._is_made_of_same(a, b) or self._is_equal(a, b)
        return self._same[pair]

    def _is_made_of_same(self, a: Value, b: Value) -> bool:
        """Whether both are computed in one way, in place, from tables that stay."""
        one, other = self._old.made(a), self._new.made(b)
        if one is None or other is None or None in (one.eqn, other.eqn):
            return False
        name, params = one.eqn.primitive.name, one.eqn.params
        if name not in _IN_PLACE or name != other.eqn.primitive.name:
            return False
        pairs = list(zip(one.operands, other.operands, strict=False))
        if len(one.operands) != len(other.operands) or not any(x in self for x, _ in pairs):
            return False
        dtypes = [made.eqn.outvars[made.place].aval.dtype for made in (one, other)]
        if dtypes[0] != dtypes[1] or any(differing(params, other.eqn.params)):
            return False
        if name == "dot_general":
            contracted, _ = params["dimension_numbers"]
            along = zip(one.operands, contracted, strict=True)
            if any(self._is_spread(x.dims[axis]) for x, axes in along for axis in axes):
                return False
        return all(
            self._stays(x, y) if x in self else _equal(self._old.of(x), self._new.of(y))
            for x, y in pairs
        )

    def _is_equal(self, a: Value, b: Value) -> bool:
        """Whether old units have the same numbers in both, by which they can be told apart.

        At the first position, all sinusoids are equal.
        """
        before, after = self._old.of(a), self._new.of(b)
        if before is None or after is None or before.ndim != after.ndim:
            return False
        for axis, dim in enumerate(a.dims):
            if after.shape[axis] != self._grown(dim) or self._grown(dim) < dim.size:
                return False  # it is cut elsewhere, or query heads are divided among copies
            if self._grown(dim) != dim.size:
                after = np.take(after, old_places(self._grown.along(dim)), axis)
        spread = {atom for dim in a.dims for atom in atoms(dim) if atom in self._grown.times}
        return _equal(before, after) and all(
            _tells_apart(before, [_units(dim, atom) for dim in a.dims], atom.size)
            for atom in spread
        )


class _Entries:
    """The entries of a program's constants, computed where they are asked for.

    Layers compute the same tables again, so what is computed alike is computed once.
    """

    def __init__(self, trace: Trace) -> None:
        self._trace, self._sameness = trace, Sameness()
        self._keys: dict[int, Hashable] = {}  # what is equal has the same key
        self._known: dict[Hashable, np.ndarray | None] = {}

    def made(self, value: Value) -> Made | None:
        return self._trace.made.get(id(value))

    def of(self, value: Value) -> np.ndarray | None:
        """Returns the entries of a constant; None if it is not known how they come about."""
        pending = [value]
        while pending:
            made = self.made(pending[-1])
            operands = () if made is None else made.operands
            if missing := [one for one in operands if id(one) not in self._keys]:
                pending += missing
                continue
            one = pending.pop()
            keys = [self._keys[id(operand)] for operand in operands]
            key: Hashable = id(one)
            if made is not None and made.eqn is not None:
                key = (self._sameness.equation(made.eqn), made.place, *keys)
            self._keys[id(one)] = key
            if key not in self._known:
                self._known[key] = None if made is None else self._computed(made, keys)
        return self._known[self._keys[id(value)]]

    def _computed(self, made: Made, keys: list[Hashable]) -> np.ndarray | None:
        operands = [self._known[key] for key in keys]
        if any(array is None for array in operands):
            return None
        try:
            if made.eqn is None:
                array = concrete(made.array)
                return None if array is None else np.asarray(array, made.dtype)
            with jax.ensure_compile_time_eval():
                results = evaluated(made.eqn, [jnp.asarray(array) for array in operands])
            return np.asarray(results[made.place])
        except Exception:  # keys are no numbers, and an equation may need devices that are not here
            return None


def _plain(array: np.ndarray) -> np.ndarray:
    """Returns an array in double precision."""
    return array.astype(complex if np.iscomplexobj(array) else float)


def _equal(a: np.ndarray | None, b: np.ndarray | None) -> bool:
    """Whether arrays are equal, to the rounding of their dtype."""
    if a is None or b is None or (a.shape, a.dtype) != (b.shape, b.dtype):
        return False
    rounding = 0.0
    if jnp.issubdtype(a.dtype, jnp.inexact):
        rounding = min(_ROUNDINGS * float(jnp.finfo(a.dtype).eps), _MOST)  # type: ignore[no-untyped-call]
    a, b = _plain(a), _plain(b)
    return bool(np.isclose(a, b, rtol=rounding, atol=0).all())


def _units(dim: Dim, width: Dim) -> np.ndarray:
    """Returns which unit of a width each position along a dimension belongs to, or -1."""
    dim = dim.root
    if dim.kind is None:
        return np.arange(dim.size) if dim is width else np.full(dim.size, -1)
    parts = [_units(part, width) for part in dim.parts]
    if dim.kind == "concat":
        return np.concatenate(parts)
    found = np.full(1, -1)
    for part in parts:
        found = np.maximum.outer(found, part).ravel()
    return found


def _tells_apart(array: np.ndarray, along: list[np.ndarray], size: int) -> bool:
    """Whether no two units of a width have the same numbers.

    Args:
        array: the numbers.
        along: for each axis, the unit at each position, or -1.
        size: how many units the width has.
    """
    unit: Any = np.full((), -1)
    for positions in along:
        unit = np.maximum.outer(unit, positions)
    rows = {array[unit == number].tobytes() for number in range(size)}
    return len(rows) == size
