"""Step counts of entries by cohort, and the share of a unit that each copy carries: ``StepCounts``.

Both are stored per unit along each axis of an array, not per entry. An entry belongs to the newest
cohort among its units, and its share is the product of the shares along its axes.

The units added by one growth are one cohort, which has a number. If units can be renewed during
training, each unit is a cohort of its own from the beginning, so that shapes never change.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from dogwood_jax._base.trees import PyTree, concrete, leaves_by_path
from dogwood_jax._growth.edit import Edit
from dogwood_jax._growth.edited import edited
from dogwood_jax._growth.growth import Growth
from dogwood_jax._optimizer.fields import Field, fields_in
from dogwood_jax._widths.widths import Leaf

# A copy with half of a unit's weights first takes steps of half length. After this many steps they
# have full length.
SETTLED = 100


class AlongAxes(NamedTuple):
    """The cohorts and shares of the units along each axis of one array.

    Attributes:
        cohorts: the number of each unit's cohort, 0 for units of the first network: ``[n]``, int32.
        shares: the share that each unit carried just after a growth: ``[n]``, float32.
        since: the cohort number of that growth: ``[n]``, int32.
    """

    cohorts: tuple[Array, ...]
    shares: tuple[Array, ...]
    since: tuple[Array, ...]


class AlongUnits(NamedTuple):
    """The shares along each axis of an array in which each unit is its own cohort, in order.

    Attributes:
        shares: see ``AlongAxes``.
        since: see ``AlongAxes``.
    """

    shares: tuple[Array, ...]
    since: tuple[Array, ...]


class StepCounts(NamedTuple):
    """The steps at which entries were added: what ``GrowableState`` adds to an optimizer's state.

    Attributes:
        steps: the number of updates since the first growth, or since ``init`` if each unit is a
            cohort: int32.
        births: a zero, then the value of ``steps`` at each growth: ``[growths + 1]``, int32. If
            each unit is a cohort, the births of all units follow, along each axis of each array: -1
            for units of the first network. In all: ``[cohorts]``.
        counts: for each step count in the optimizer's state, its value at these births:
            ``[cohorts]``. For a boolean that marks the first step, whether the next step is the
            first of each cohort: bool.
        arrays: ``AlongAxes`` of each array of parameters that a growth changed or added, as nested
            dicts by the parts of its path; ``AlongUnits`` of all arrays if each unit is a cohort.
    """

    steps: Array
    births: Array
    counts: tuple[Array, ...]
    arrays: PyTree

    def by_path(self) -> dict[str, AlongAxes]:
        """Returns the cohorts and shares of arrays by path, also where each unit is a cohort."""
        found, start = dict[str, AlongAxes](), self.growths
        for path, along in _flat(self.arrays, ()):
            if isinstance(along, AlongUnits):
                stops = start + np.cumsum([0, *map(len, along.shares)])
                numbers = (jnp.arange(a, b, dtype=jnp.int32) for a, b in pairwise(stops))
                along, start = AlongAxes(tuple(numbers), *along), int(stops[-1])
            found[path] = along
        return found

    @property
    def growths(self) -> int:
        """The number of cohorts before those of single units."""
        arrays = [along for _, along in _flat(self.arrays, ()) if isinstance(along, AlongUnits)]
        return len(self.births) - sum(len(shares) for along in arrays for shares in along.shares)

    @property
    def is_renewable(self) -> bool:
        """Whether each unit is a cohort of its own."""
        return any(isinstance(along, AlongUnits) for _, along in _flat(self.arrays, ()))

    @property
    def order(self) -> Array:
        """A number for each cohort, larger for cohorts that were added later: ``[cohorts]``."""
        # JAX's default integer dtype: next to wider values, XLA 0.10 fails to compile on a CPU.
        return self.births.at[0].set(-1).astype(int)


def _flat(node: Any, keys: tuple[str, ...]) -> Iterator[tuple[str, AlongAxes | AlongUnits]]:
    if isinstance(node, AlongAxes | AlongUnits):
        yield "/".join(keys), node
        return
    for key in sorted(node):  # the order of dicts in JAX pytrees
        yield from _flat(node[key], (*keys, key))


def _nested(found: Mapping[str, AlongAxes | AlongUnits]) -> PyTree:
    """Returns nested dicts by the parts of paths, a tree that every checkpoint format can store."""
    tree: dict[str, Any] = {}
    for path, along in found.items():
        *parts, last = path.split("/")
        node = tree
        for part in parts:
            node = node.setdefault(part, {})
        node[last] = along
    return tree


def step_counts_from(stored: Mapping[str, Any]) -> StepCounts:
    """Returns ``StepCounts`` from their nested dicts and lists in a checkpoint."""

    def arrays(node: Mapping[str, Any]) -> PyTree:
        for kind in (AlongAxes, AlongUnits):
            if node.keys() == {*kind._fields}:
                return kind(*(tuple(node[name]) for name in kind._fields))
        return {key: arrays(part) for key, part in node.items()}

    counts = tuple(stored["counts"])
    return StepCounts(stored["steps"], stored["births"], counts, arrays(stored["arrays"]))


class Moments:
    """Finds the second moments in the state of an optimizer, and their step counts.

    Args:
        state: the state.
        known: the arrays of parameters by path, as the optimizer sees them.

    Attributes:
        followers: all arrays of the state that follow one of the parameters.
        fields: the second moments among them.
        counted: followers whose entries need step counts: second moments, and fields of a state
            with a boolean that marks the first step.
        first_steps: paths of these booleans.
        counts: paths of the step counts and of these booleans, in the order of the state.
    """

    def __init__(self, state: PyTree, known: Mapping[str, Leaf]) -> None:
        arrays = leaves_by_path(state)
        self.followers = list(fields_in(state, known))
        self.fields = [f for f in self.followers if f.known({})[0] in ("second", "magnitude")]
        # Averages of updates in the same state correct their bias by their own counts.
        averages = [f for f in self.followers if "EmaState" in f.declared] if self.fields else []
        groups = {field.group for field in (*self.fields, *averages)}
        begins = {f: f.first_step for f in self.followers if f.first_step in arrays}
        self.counted = [*begins, *self.fields]
        self.first_steps = {*begins.values()}
        self.counts = [
            path
            for path, leaf in arrays.items()
            if path in self.first_steps
            or path.rpartition("/")[0] in groups
            and jnp.ndim(leaf) == 0
            and jnp.issubdtype(jnp.result_type(leaf), jnp.integer)
        ]

    def count_of(self, field: Field) -> int | None:
        """Returns the index in ``counts`` of a field's step count; None if it has none."""
        for i, path in enumerate(self.counts):
            if path.rpartition("/")[0] == field.group and path not in self.first_steps:
                return i
        return None


def share_now(along: AlongAxes, axis: int, steps: Array) -> Array:
    """Returns the share of each unit along an axis: ``[n]``.

    Args:
        along: the cohorts and shares of the array.
        axis: the axis.
        steps: the number of steps since each cohort was added: ``[cohorts]``.
    """
    share = along.shares[axis]
    settled = jnp.minimum(steps[along.since[axis]] / SETTLED, 1.0)
    return share + (1 - share) * settled


def grown_step_counts(
    step_counts: StepCounts | None, state: PyTree, growth: Growth, exists: Callable[[str], bool]
) -> StepCounts | None:
    """Returns the step counts of the larger network; None if no entry of the state needs one.

    Args:
        step_counts: the step counts of the network; None before the first growth.
        state: the optimizer's state for the network.
        growth: the growth.
        exists: whether the state of the larger network has an array at a path.
    """
    moments = Moments(state, {leaf.path: leaf for leaf in growth.widths.leaves})
    if not moments.counted:
        return None
    arrays = leaves_by_path(state)
    zero = jnp.zeros((), jnp.int32)
    now, born = list[Array](), list[Array]()
    for path in moments.counts:
        is_first = path in moments.first_steps
        now.append(jnp.asarray(arrays[path], bool if is_first else jnp.int32))
        born.append(jnp.ones((), bool) if is_first else now[-1])
    if step_counts is None:
        begun = [n if path in moments.first_steps else zero for path, n in zip(moments.counts, now)]
        step_counts = StepCounts(zero, zero[None], tuple(number[None] for number in begun), {})
    number, is_renewable = len(step_counts.births), step_counts.is_renewable
    known, grown = step_counts.by_path(), dict[str, AlongAxes]()
    fields = {f.leaf.path: f for f in moments.counted if f.leaf.path in growth.held}
    for field in fields.values():
        leaf, inner = field.leaf, field.inner
        index = moments.count_of(field)
        since = (
            step_counts.steps - step_counts.births
            if index is None
            else now[index] - step_counts.counts[index]
        )
        edit = growth.held[leaf.path]
        if inner in known or edit.map or edit.layers or edit.experts:
            if inner in known:
                _expect_one_cohort(leaf.path, known[inner], edit)
            old = known.get(inner) or _born(leaf.shape, 0)
            found = _grown(old, since, number, edit=edit.without_names)
            if edit.experts:
                found = _repeated(found, edit.experts.count)
            grown[edit.path.removeprefix(field.collection)] = found
    for edit in growth.inserted if fields else ():
        field = next(iter(fields.values()))
        places = {f.at(edit.path) for f in fields.values()}
        if edit.is_whole and any(map(exists, places)):
            grown[edit.path.removeprefix(field.collection)] = _born(edit.shape, number)
    larger = StepCounts(
        step_counts.steps,
        jnp.append(step_counts.births, step_counts.steps),
        tuple(jnp.append(count, n) for count, n in zip(step_counts.counts, born, strict=True)),
        _nested(grown),
    )
    return _by_unit(larger, step_counts.growths) if is_renewable else larger


def _expect_one_cohort(path: str, along: AlongAxes, edit: Edit) -> None:
    """Raises if units of several cohorts get a different order in each layer."""
    for order in edit.orders:
        cohorts = concrete(along.cohorts[order.axis])
        if cohorts is None or (cohorts != cohorts[:1]).any():
            raise ValueError(
                f"{path}: its units have different step counts, which are stored once for all "
                "layers; keep the same units in all layers"
            )


def renewable_step_counts(state: PyTree, known: Mapping[str, Leaf]) -> StepCounts | None:
    """Returns step counts for a new state in which each unit is a cohort of its own.

    Args:
        state: the new state of an optimizer.
        known: the arrays of parameters by path, as the optimizer sees them.

    Returns:
        The step counts, or None if no entry of the state needs one.
    """
    moments = Moments(state, known)
    if not moments.counted:
        return None
    arrays, zero = leaves_by_path(state), jnp.zeros((), jnp.int32)
    begun = (arrays[path] if path in moments.first_steps else zero for path in moments.counts)
    found = {field.inner: _born(field.leaf.shape, 0) for field in moments.counted}
    step_counts = StepCounts(
        zero, zero[None], tuple(jnp.asarray(n)[None] for n in begun), _nested(found)
    )
    step_counts = _by_unit(step_counts, 1)
    return step_counts._replace(births=step_counts.births.at[1:].set(-1))


def _by_unit(step_counts: StepCounts, growths: int) -> StepCounts:
    """Returns step counts in which each unit is a cohort of its own.

    Args:
        step_counts: the step counts.
        growths: the number of cohorts before those of single units. If there are more cohorts, the
            last one is that of the newest growth.
    """
    known, last = step_counts.by_path(), len(step_counts.births) - 1
    found = [numbers for along in known.values() for numbers in along.cohorts]
    first = jnp.arange(growths, dtype=jnp.int32)
    numbers = jnp.concatenate([first, *[jnp.full(1, last)] * (last >= growths), *found])
    arrays = {
        path: AlongUnits(
            along.shares,
            tuple(jnp.where(n == last, min(last, growths), n) for n in along.since),
        )
        for path, along in known.items()
    }
    counts = tuple(count[numbers] for count in step_counts.counts)
    return StepCounts(step_counts.steps, step_counts.births[numbers], counts, _nested(arrays))


def renewed_step_counts(
    step_counts: StepCounts,
    state: PyTree,
    known: Mapping[str, Leaf],
    masks: Mapping[str, Sequence[Array]],
) -> StepCounts:
    """Returns step counts after some units were renewed.

    Args:
        step_counts: the step counts, in which each unit is a cohort of its own.
        state: the state of the optimizer.
        known: the arrays of parameters by path, as the optimizer sees them.
        masks: for each array with renewed units, by path, which units are new along each axis.
    """
    arrays, moments = leaves_by_path(state), Moments(state, known)
    found, is_new = dict[str, AlongAxes | AlongUnits](), [jnp.zeros(step_counts.growths, bool)]
    for path, along in _flat(step_counts.arrays, ()):
        own = masks.get(path) or [jnp.zeros(len(n), bool) for n in along.shares]
        shares = (jnp.where(new, 1, n) for new, n in zip(own, along.shares, strict=True))
        found[path] = along._replace(shares=tuple(shares))
        is_new += own
    new = jnp.concatenate(is_new)
    now = (True if path in moments.first_steps else arrays[path] for path in moments.counts)
    return StepCounts(
        step_counts.steps,
        jnp.where(new, step_counts.steps, step_counts.births),
        tuple(
            jnp.where(new, n, count).astype(count.dtype)
            for n, count in zip(now, step_counts.counts, strict=True)
        ),
        _nested(found),
    )


def _born(shape: Sequence[int], number: int) -> AlongAxes:
    """Returns the cohorts and shares of an array that was added as a whole, by one growth."""
    sizes = tuple(shape) or (1,)
    return AlongAxes(
        tuple(jnp.full(n, number, jnp.int32) for n in sizes),
        tuple(jnp.ones(n, jnp.float32) for n in sizes),
        tuple(jnp.zeros(n, jnp.int32) for n in sizes),
    )


@functools.partial(jax.jit, static_argnames="edit")
def _grown(old: AlongAxes, since: Array, number: int, *, edit: Edit) -> AlongAxes:
    """Returns the cohorts and shares of an array whose axes grow; compiled once for equal edits.

    Args:
        old: the cohorts and shares of the old array.
        since: the number of steps since each cohort was added: ``[cohorts]``.
        number: the cohort number of this growth.
        edit: the edit of the array; repeats into experts are left to ``_repeated``.
    """
    found = []
    for axis, cohorts in enumerate(old.cohorts):
        shares, begun = old.shares[axis], old.since[axis]
        shares_now = share_now(old, axis, since)
        taken, scaled = (_taken_along(edit, axis, copied=copied) for copied in (True, False))
        is_old = taken(jnp.ones(len(cohorts))) > 0
        times = edit.map.factor if edit.map and axis == 0 else 1.0
        same = (scaled(jnp.ones(len(cohorts))) == 1) & (times == 1)
        found.append(
            (
                jnp.where(is_old, taken(cohorts), number),
                jnp.where(is_old, jnp.where(same, taken(shares), scaled(shares_now) * times), 1.0),
                jnp.where(is_old, jnp.where(same, taken(begun), number), 0),
            )
        )
    dtypes = jnp.int32, jnp.float32, jnp.int32
    return AlongAxes(
        *(
            tuple(array.astype(dtype) for array in arrays)
            for arrays, dtype in zip(zip(*found, strict=True), dtypes, strict=True)
        )
    )


def _repeated(old: AlongAxes, repeats: int) -> AlongAxes:
    """Returns the cohorts and shares of an array of experts, each a repeat of the old array.

    Gates weight the experts, so if each expert moves as the old array did, their sum does, too.
    """
    experts = _born((repeats,), 0)
    return AlongAxes(*((*new, *olds) for new, olds in zip(experts, old, strict=True)))


def _taken_along(edit: Edit, axis: int, *, copied: bool) -> Callable[[Array], Array]:
    """Returns a function from values along an axis to values along the axis of the larger array."""
    along = edit.of_numbers(copied=copied).along(axis)
    return lambda numbers: edited(along, numbers.astype(jnp.float32))
