"""When entries of parameters were born, and what share of a unit copies carry: ``Ages``.

Both are kept for the units along each axis of an array, not for each entry. An entry is as old as
the youngest unit that it belongs to, and its share is the product of the shares along its axes.

Units of one growth are one cohort, with a number. Where units are renewed while training runs, each
is a cohort of its own from the beginning, so that nothing gets another shape.
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

# A copy with half of a unit's weight begins with half of the unit's steps. After this many steps
# it takes whole ones.
SETTLED = 100


class AlongAxes(NamedTuple):
    """The ages and shares of the entries of one array, along each of its axes.

    Attributes:
        cohorts: the number of the growth in which units were born; units of the first network have
            0: ``[n]``, int32.
        shares: the share that units carried at a growth: ``[n]``, float32.
        since: the number of that growth: ``[n]``, int32.
    """

    cohorts: tuple[Array, ...]
    shares: tuple[Array, ...]
    since: tuple[Array, ...]


class AlongUnits(NamedTuple):
    """The same where each unit along each axis is a cohort of its own, whose number is its place.

    Attributes:
        shares: see ``AlongAxes``.
        since: see ``AlongAxes``.
    """

    shares: tuple[Array, ...]
    since: tuple[Array, ...]


class Ages(NamedTuple):
    """What an optimizer that can grow keeps beside its state.

    Attributes:
        steps: the number of updates since the first growth, int32.
        births: a zero, then the value of ``steps`` at each growth: ``[growths + 1]``, int32. Then,
            where each unit has a number of its own, that at the birth of each, along each axis of
            each array; -1 for those of the first network.
        counts: the same for each step count of the optimizer's state. Where the state only says
            whether the next step is the first, this is said for each cohort instead: bool.
        arrays: for each array of parameters that has changed, by the parts of its path.
    """

    steps: Array
    births: Array
    counts: tuple[Array, ...]
    arrays: PyTree

    def by_path(self) -> dict[str, AlongAxes]:
        """Returns the ages and shares of arrays by path, with the cohorts of all units."""
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
        """How many cohorts come before those of single units."""
        arrays = [along for _, along in _flat(self.arrays, ()) if isinstance(along, AlongUnits)]
        return len(self.births) - sum(len(shares) for along in arrays for shares in along.shares)

    @property
    def is_renewable(self) -> bool:
        """Whether each unit is a cohort of its own."""
        return any(isinstance(along, AlongUnits) for _, along in _flat(self.arrays, ()))

    @property
    def order(self) -> Array:
        """A number for each cohort that is larger the later it was born: ``[cohorts]``."""
        # Of JAX's width for integers: beside wider numbers, XLA 0.10 fails to compile on a CPU.
        return self.births.at[0].set(-1).astype(int)


def _flat(node: Any, keys: tuple[str, ...]) -> Iterator[tuple[str, AlongAxes | AlongUnits]]:
    if isinstance(node, AlongAxes | AlongUnits):
        yield "/".join(keys), node
        return
    for key in sorted(node):  # as in any pytree, whose dicts are sorted by compiled functions
        yield from _flat(node[key], (*keys, key))


def _nested(found: Mapping[str, AlongAxes | AlongUnits]) -> PyTree:
    """Returns a tree of dicts by the parts of paths, which every checkpoint can hold."""
    tree: dict[str, Any] = {}
    for path, along in found.items():
        *parts, last = path.split("/")
        node = tree
        for part in parts:
            node = node.setdefault(part, {})
        node[last] = along
    return tree


def ages_of(stored: Mapping[str, Any]) -> Ages:
    """Returns ages from the nested dicts and lists that a checkpoint holds of them."""

    def arrays(node: Mapping[str, Any]) -> PyTree:
        for kind in (AlongAxes, AlongUnits):
            if node.keys() == {*kind._fields}:
                return kind(*(tuple(node[name]) for name in kind._fields))
        return {key: arrays(part) for key, part in node.items()}

    counts = tuple(stored["counts"])
    return Ages(stored["steps"], stored["births"], counts, arrays(stored["arrays"]))


class Moments:
    """The second moments in the state of an optimizer, and the step counts beside them.

    Args:
        state: the state.
        known: the arrays of parameters by path, as the optimizer sees them.

    Attributes:
        followers: all arrays of the state that follow one of the parameters.
        fields: the second moments among them.
        aged: those whose entries need ages: second moments, and what stands beside a first step.
        first_steps: paths of the numbers that say whether the next step is the first.
        counts: paths of the step counts and first steps, in the order of the state.
    """

    def __init__(self, state: PyTree, known: Mapping[str, Leaf]) -> None:
        arrays = leaves_by_path(state)
        self.followers = list(fields_in(state, known))
        self.fields = [f for f in self.followers if f.known({})[0] in ("second", "magnitude")]
        # Averages of updates beside them correct their bias by counts of their own.
        averages = [f for f in self.followers if "EmaState" in f.declared] if self.fields else []
        groups = {field.group for field in (*self.fields, *averages)}
        begins = {f: f.first_step for f in self.followers if f.first_step in arrays}
        self.aged = [*begins, *self.fields]
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
        """Returns which of the counts says how many steps an array has taken."""
        for i, path in enumerate(self.counts):
            if path.rpartition("/")[0] == field.group and path not in self.first_steps:
                return i
        return None


def share_now(along: AlongAxes, axis: int, ages: Array) -> Array:
    """Returns the share of each unit along an axis: ``[n]``.

    Args:
        along: what is known of the array.
        axis: the axis.
        ages: the number of steps since each growth: ``[growths + 1]``.
    """
    share = along.shares[axis]
    settled = jnp.minimum(ages[along.since[axis]] / SETTLED, 1.0)
    return share + (1 - share) * settled


def grown_ages(
    ages: Ages | None, state: PyTree, growth: Growth, exists: Callable[[str], bool]
) -> Ages | None:
    """Returns the ages in the larger network; None where no entry of the state needs one.

    Args:
        ages: those in the network; None before the first growth.
        state: the optimizer's state in the network.
        growth: the growth.
        exists: whether the state of the larger network has an array at a path.
    """
    moments = Moments(state, {leaf.path: leaf for leaf in growth.widths.leaves})
    if not moments.aged:
        return None
    arrays = leaves_by_path(state)
    zero = jnp.zeros((), jnp.int32)
    now, born = list[Array](), list[Array]()
    for path in moments.counts:
        is_first = path in moments.first_steps
        now.append(jnp.asarray(arrays[path], bool if is_first else jnp.int32))
        born.append(jnp.ones((), bool) if is_first else now[-1])
    if ages is None:
        begun = [n if path in moments.first_steps else zero for path, n in zip(moments.counts, now)]
        ages = Ages(zero, zero[None], tuple(number[None] for number in begun), {})
    number, is_renewable = len(ages.births), ages.is_renewable
    known, grown = ages.by_path(), dict[str, AlongAxes]()
    fields = {f.leaf.path: f for f in moments.aged if f.leaf.path in growth.held}
    for field in fields.values():
        leaf, inner = field.leaf, field.inner
        index = moments.count_of(field)
        since = ages.steps - ages.births if index is None else now[index] - ages.counts[index]
        edit = growth.held[leaf.path]
        if inner in known or edit.map or edit.layers or edit.experts:
            if inner in known:
                _expect_one_age(leaf.path, known[inner], edit)
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
    larger = Ages(
        ages.steps,
        jnp.append(ages.births, ages.steps),
        tuple(jnp.append(count, n) for count, n in zip(ages.counts, born, strict=True)),
        _nested(grown),
    )
    return _by_unit(larger, ages.growths) if is_renewable else larger


def _expect_one_age(path: str, ages: AlongAxes, edit: Edit) -> None:
    """Raises if units of several ages get another order in each layer."""
    for order in edit.orders:
        cohorts = concrete(ages.cohorts[order.axis])
        if cohorts is None or (cohorts != cohorts[:1]).any():
            raise ValueError(
                f"{path}: its units are of several ages, which are kept for all layers together; "
                "keep the same units in all layers"
            )


def renewable_ages(state: PyTree, known: Mapping[str, Leaf]) -> Ages | None:
    """Returns the ages in a new state where each unit is a cohort of its own.

    Args:
        state: the new state of an optimizer.
        known: the arrays of parameters by path, as the optimizer sees them.

    Returns:
        The ages, or None where no entry of the state needs one.
    """
    moments = Moments(state, known)
    if not moments.aged:
        return None
    arrays, zero = leaves_by_path(state), jnp.zeros((), jnp.int32)
    begun = (arrays[path] if path in moments.first_steps else zero for path in moments.counts)
    found = {field.inner: _born(field.leaf.shape, 0) for field in moments.aged}
    ages = Ages(zero, zero[None], tuple(jnp.asarray(n)[None] for n in begun), _nested(found))
    ages = _by_unit(ages, 1)
    return ages._replace(births=ages.births.at[1:].set(-1))


def _by_unit(ages: Ages, growths: int) -> Ages:
    """Returns ages in which each unit is a cohort of its own.

    Args:
        ages: the ages.
        growths: how many cohorts come before those of single units. The last cohort is that of the
            newest growth, unless there are no more.
    """
    known, last = ages.by_path(), len(ages.births) - 1
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
    counts = tuple(count[numbers] for count in ages.counts)
    return Ages(ages.steps, ages.births[numbers], counts, _nested(arrays))


def renewed_ages(
    ages: Ages, state: PyTree, known: Mapping[str, Leaf], masks: Mapping[str, Sequence[Array]]
) -> Ages:
    """Returns ages after some units were born anew.

    Args:
        ages: the ages, in which each unit is a cohort of its own.
        state: the state of the optimizer.
        known: the arrays of parameters by path, as the optimizer sees them.
        masks: for each of them with such units, which are new along each axis.
    """
    arrays, moments = leaves_by_path(state), Moments(state, known)
    found, is_new = dict[str, AlongAxes | AlongUnits](), [jnp.zeros(ages.growths, bool)]
    for path, along in _flat(ages.arrays, ()):
        own = masks.get(path) or [jnp.zeros(len(n), bool) for n in along.shares]
        shares = (jnp.where(new, 1, n) for new, n in zip(own, along.shares, strict=True))
        found[path] = along._replace(shares=tuple(shares))
        is_new += own
    new = jnp.concatenate(is_new)
    now = (True if path in moments.first_steps else arrays[path] for path in moments.counts)
    return Ages(
        ages.steps,
        jnp.where(new, ages.steps, ages.births),
        tuple(
            jnp.where(new, n, count).astype(count.dtype)
            for n, count in zip(now, ages.counts, strict=True)
        ),
        _nested(found),
    )


def _born(shape: Sequence[int], number: int) -> AlongAxes:
    """Returns the ages of an array whose entries were all born in one growth."""
    sizes = tuple(shape) or (1,)
    return AlongAxes(
        tuple(jnp.full(n, number, jnp.int32) for n in sizes),
        tuple(jnp.ones(n, jnp.float32) for n in sizes),
        tuple(jnp.zeros(n, jnp.int32) for n in sizes),
    )


@functools.partial(jax.jit, static_argnames="edit")
def _grown(old: AlongAxes, since: Array, number: int, *, edit: Edit) -> AlongAxes:
    """Returns the ages of an array whose axes grow; arrays that grow alike share its program.

    Args:
        old: its ages.
        since: the number of steps since each growth.
        number: that of this growth.
        edit: what becomes of the array, before it is repeated.
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
    """Returns the ages of an array of experts, each of which repeats an old array.

    Gates weigh the experts, so that together they move as the old array did if each of them does.
    """
    experts = _born((repeats,), 0)
    return AlongAxes(*((*new, *olds) for new, olds in zip(experts, old, strict=True)))


def _taken_along(edit: Edit, axis: int, *, copied: bool) -> Callable[[Array], Array]:
    """Returns what takes numbers along an axis to the larger network, see ``of_numbers``."""
    along = edit.of_numbers(copied=copied).along(axis)
    return lambda numbers: edited(along, numbers.astype(jnp.float32))
