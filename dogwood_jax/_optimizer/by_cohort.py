"""An optimizer's update in which every entry has the step count of its cohort: ``updated``.

A grown network has entries of several cohorts, but an optimizer has one step count. Therefore its
program is evaluated with one count for each cohort. Values that depend on counts alone, such as the
bias correction ``1 - b2**count``, are computed for each cohort. Where they meet an array laid out
like parameters, each entry gets the value of the newest cohort among its units: along each axis, a
vector with the cohort of each unit is broadcast, and the newest one is selected. The cost hardly
depends on the number of cohorts, so each unit may be a cohort of its own. All other operations,
such as clipping by a norm, see whole arrays.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from dogwood_jax._base.trees import PyTree, leaf_path
from dogwood_jax._growth.moves import along
from dogwood_jax._program.interpret import called, evaluated, interpret
from dogwood_jax._program.primitives.table import axes_of, is_linear, primitive
from dogwood_jax._program.subprograms import sub_programs

# An axis of an array of parameters: the path of the array, and the number of the axis.
Tie = tuple[str, int]
Ties = tuple[Tie | None, ...]
Cohorts = Mapping[str, Sequence[Array]]


@dataclass(eq=False, slots=True)
class _Lanes:
    """A value in the optimizer's program.

    Attributes:
        array: its array. A value with *lanes* has one array for each cohort, along a new first
            axis.
        ties: for each axis of the value, the axis of the parameters that it corresponds to.
        is_lanes: whether the value has lanes.
        beside: a second term of the value, linear in the parameters, such as weight decay.
    """

    array: Any
    ties: Ties = ()
    is_lanes: bool = False
    beside: Any = None

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(np.shape(self.array)[1:] if self.is_lanes else np.shape(self.array))

    @property
    def total(self) -> Any:
        return self.array if self.beside is None else self.array + self.beside


def updated(
    update: Callable[..., Any],
    updates: PyTree,
    state: PyTree,
    params: PyTree,
    *,
    counts: Mapping[str, Array],
    ties: Mapping[str, Ties],
    follows: Mapping[str, str],
    cohorts: Cohorts,
    births: Array,
) -> tuple[PyTree, PyTree, PyTree, dict[str, Array]]:
    """Returns an optimizer's updates and its new state, with a step count for each cohort.

    Args:
        update: the optimizer's function of ``updates``, ``state`` and ``params``.
        updates: the gradients.
        state: the optimizer's state.
        params: the parameters, or None.
        counts: for each step count of the state, by path, the counts of all cohorts: ``[cohorts]``.
        ties: for each array of the state that is laid out like parameters, by path, the axes of the
            parameters that its axes correspond to.
        follows: for each of these arrays, the path of the array of parameters.
        cohorts: for each array of parameters with entries of several cohorts, by path, the cohorts
            of the units along each axis. An entry belongs to the newest cohort among its units.
        births: for each cohort, a number, larger for cohorts that were added later: ``[cohorts]``.

    Returns:
        Three trees: the updates without the part that is linear in the parameters, such as
        decoupled weight decay; this part alone, or zeros; and the new state. And the new step
        counts, by path: of all cohorts, or one number if all have the same.
    """
    program, shapes = jax.make_jaxpr(update, return_shape=True)(updates, state, params)
    values: list[_Lanes] = []
    for place, tree in enumerate((updates, state, params)):
        for keys, leaf in jax.tree_util.tree_leaves_with_path(tree):
            path = leaf_path(keys)
            if place == 1:
                value = _Lanes(leaf, ties.get(path, (None,) * np.ndim(leaf)))
                if path in counts:
                    value = _Lanes(counts[path].astype(jnp.result_type(leaf)), (), True)
            else:
                value = _Lanes(leaf, _along(path, leaf))
            if place == 2 and jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
                value = _Lanes(jnp.zeros_like(leaf), value.ties, beside=leaf)
            values.append(value)
    reading = _CohortEvaluation(cohorts, births)
    results = reading.run(program.jaxpr, program.consts, values)
    shapes_of_updates, shapes_of_state = shapes
    structure: Any = jax.tree.structure(shapes_of_updates)
    here, there = results[: structure.num_leaves], results[structure.num_leaves :]
    changes, besides = [], []
    for (keys, shape), value in zip(
        jax.tree_util.tree_leaves_with_path(shapes_of_updates), here, strict=True
    ):
        path = leaf_path(keys)
        changes.append(reading.settled(value, path, _along(path, shape)))
        besides.append(jnp.zeros_like(changes[-1]) if value.beside is None else value.beside)
    new_state, new_counts = [], dict[str, Array]()
    for (keys, _), value in zip(
        jax.tree_util.tree_leaves_with_path(shapes_of_state), there, strict=True
    ):
        path = leaf_path(keys)
        array = reading.settled(value, follows.get(path, ""), ties.get(path, ()))
        new_state.append(array if value.beside is None else array + value.beside)
        if path in counts:
            new_counts[path] = value.array
    return (
        jax.tree.unflatten(structure, changes),
        jax.tree.unflatten(structure, besides),
        jax.tree.unflatten(jax.tree.structure(shapes_of_state), new_state),
        new_counts,
    )


def _along(path: str, leaf: Any) -> Ties:
    return tuple((path, axis) for axis in range(len(np.shape(leaf))))


class _CohortEvaluation:
    """Evaluates programs in which some values have lanes.

    Args:
        cohorts: see ``updated``.
        births: see ``updated``.
    """

    def __init__(self, cohorts: Cohorts, births: Array) -> None:
        self._cohorts, self._births = cohorts, births

    def run(self, jaxpr: Any, consts: Sequence[Any], values: Sequence[_Lanes]) -> list[_Lanes]:
        """Returns the values of a program's results."""

        def constant(array: Any, aval: Any) -> _Lanes:
            is_number = isinstance(array, int | float | complex | np.generic)
            return _untied(np.asarray(array, aval.dtype) if is_number else array)

        return interpret(jaxpr, consts, values, constant=constant, equation=self._equation)

    def settled(self, value: _Lanes, path: str, ties: Ties) -> Any:
        """Returns the array of a result; if it has lanes, each entry is from its cohort's lane."""
        if not value.is_lanes:
            return value.array
        if not value.shape and path in self._cohorts:  # a scalar parameter
            return value.array[self._cohorts[path][0][0]]
        return jnp.broadcast_to(self._merged(value, ties or value.ties, value.shape), value.shape)

    def _equation(self, eqn: Any, values: list[_Lanes]) -> list[_Lanes]:
        name, programs = eqn.primitive.name, sub_programs(eqn)
        if name == "cond" and not values[0].is_lanes:
            return self._cond(programs, values)
        if (program := called(eqn)) is not None:
            return self.run(*program, values)
        if primitive(name).is_of_entries and any(value.is_lanes for value in values):
            values = self._met(eqn, values)
        if any(value.is_lanes for value in values):
            axes = [0 if value.is_lanes else None for value in values]
            results = jax.vmap(lambda *arrays: evaluated(eqn, arrays), in_axes=axes)(
                *(value.total for value in values)
            )
            return [_Lanes(array, _ties_of(eqn, values, array[0]), True) for array in results]
        if any(value.beside is not None for value in values):
            if (parted := _parted(eqn, values)) is not None:
                return parted
            values = [_Lanes(value.total, value.ties) for value in values]
        results = evaluated(eqn, [value.array for value in values])
        return [_Lanes(array, _ties_of(eqn, values, array)) for array in results]

    def _met(self, eqn: Any, values: list[_Lanes]) -> list[_Lanes]:
        """Returns operands with their lanes merged, if one of them is laid out like parameters."""
        shape = np.broadcast_shapes(*(value.shape for value in values))
        ties = _joined(values, shape)
        if not any(ties):
            return values
        met = [self._merged(value, ties, shape) if value.is_lanes else None for value in values]
        return [
            value
            if array is None
            else _Lanes(array, ties)
            if array.shape == shape
            else _untied(array)
            for value, array in zip(values, met, strict=True)
        ]

    def _merged(self, lanes: _Lanes, ties: Ties, shape: tuple[int, ...]) -> Any:
        """Returns an array in which each entry comes from the lane of its cohort."""
        known = [(axis, tie) for axis, tie in enumerate(ties) if tie and tie[0] in self._cohorts]
        if not known:  # all entries are of the first network
            return lanes.array[0]

        def of(axis: int, tie: Tie) -> tuple[Array, Array]:
            numbers = self._cohorts[tie[0]][tie[1]]
            born = along(self._births[numbers], axis, len(shape))
            return born, _lanes_along(lanes, numbers, axis, len(shape))

        latest, merged = of(*known[0])
        for axis, tie in known[1:]:
            born, lane = of(axis, tie)
            merged = jnp.where(born > latest, lane, merged)
            latest = jnp.maximum(born, latest)
        return jnp.broadcast_to(merged, shape)

    def _cond(self, programs: Sequence[Any], values: Sequence[_Lanes]) -> list[_Lanes]:
        """Returns the results of a ``cond``, which may have lanes or second terms."""
        index, *operands = values
        shapes = [(v.array, v.beside) for v in operands]
        found: list[list[_Lanes]] = []

        def entered(arrays: Any) -> list[_Lanes]:
            return [
                _Lanes(array, value.ties, value.is_lanes, beside)
                for (array, beside), value in zip(arrays, operands, strict=True)
            ]

        for jaxpr, consts in programs:

            def noted(arrays: Any, jaxpr: Any = jaxpr, consts: Any = consts) -> Any:
                found.append(
                    _CohortEvaluation(self._cohorts, self._births).run(
                        jaxpr, consts, entered(arrays)
                    )
                )
                return [value.array for value in found[-1]]

            jax.eval_shape(noted, shapes)
        results = list(zip(*found, strict=True))
        with_lanes = [v for v in (*operands, *itertools.chain(*found)) if v.is_lanes]
        n_lanes = with_lanes[0].array.shape[0] if with_lanes else 0
        lanes = [any(v.is_lanes for v in each) for each in results]
        besides = [any(v.beside is not None for v in each) for each in results]

        def branch(jaxpr: Any, consts: Any) -> Callable[..., Any]:
            def run(arrays: Any) -> Any:
                left = []
                for value, is_lanes, beside in zip(
                    _CohortEvaluation(self._cohorts, self._births).run(
                        jaxpr, consts, entered(arrays)
                    ),
                    lanes,
                    besides,
                    strict=True,
                ):
                    array = value.array
                    if is_lanes and not value.is_lanes:
                        array = jnp.broadcast_to(array, (n_lanes, *np.shape(array)))
                    other = value.beside if value.beside is not None else jnp.zeros_like(array)
                    left.append((array, other if beside else None))
                return left

            return run

        arrays = lax.switch(index.array, [branch(*program) for program in programs], shapes)
        ties = [
            max((v.ties for v in each), key=lambda ties: sum(map(bool, ties))) for each in results
        ]
        return [
            _Lanes(array, own, is_lanes, beside)
            for (array, beside), own, is_lanes in zip(arrays, ties, lanes, strict=True)
        ]


def _lanes_along(lanes: _Lanes, numbers: Array, axis: int, ndim: int) -> Array:
    """Returns an array whose entries along an axis come from the lanes with these numbers."""
    if not lanes.shape:
        return along(lanes.array[numbers], axis, ndim)
    taken: Array = jnp.take_along_axis(lanes.array, along(numbers, axis + 1, ndim + 1), 0)[0]
    return taken


def _untied(array: Any) -> _Lanes:
    return _Lanes(array, (None,) * np.ndim(array))


def _parted(eqn: Any, values: Sequence[_Lanes]) -> list[_Lanes] | None:
    """Returns an operation's result if it is linear in its operands' second terms, else None."""
    name, arrays = eqn.primitive.name, [value.array for value in values]
    besides = [value.beside for value in values]
    shape = eqn.outvars[0].aval.shape

    def bound(*operands: Any) -> Any:
        return evaluated(eqn, operands)[0]

    record, zeros = primitive(name), [*map(jnp.zeros_like, arrays)]
    with_zeros = [a if b is None else b for a, b in zip(zeros, besides, strict=True)]
    if is_linear(name, eqn.params) and len(arrays) == 1:
        beside = bound(besides[0])
    elif record.terms is not None:
        terms = {*range(len(arrays))[record.terms]}
        if any(besides[place] is not None for place in {*range(len(arrays))} - terms):
            return None
        beside = bound(*(with_zeros[n] if n in terms else arrays[n] for n in range(len(arrays))))
    elif record.powers == (1, 1) and None in besides:
        beside = bound(*(a if b is None else b for a, b in zip(arrays, besides, strict=True)))
    elif record.linear_in_first and not any(beside is not None for beside in besides[1:]):
        beside = bound(besides[0], *arrays[1:])
    else:
        return None
    array = bound(*arrays)
    return [_Lanes(array, _ties_of(eqn, values, array), beside=jnp.broadcast_to(beside, shape))]


def _joined(values: Sequence[_Lanes], shape: tuple[int, ...]) -> Ties:
    """Returns the ties of the axes of an elementwise operation's result."""
    ties: list[Tie | None] = [None] * len(shape)
    for value in values:
        for axis, tie in enumerate(value.ties if len(value.ties) == len(shape) else ()):
            if ties[axis] is None and value.shape[axis] == shape[axis]:
                ties[axis] = tie
    return tuple(ties)


def _ties_of(eqn: Any, values: Sequence[_Lanes], result: Any) -> Ties:
    """Returns the ties of a result's axes, None for each axis without a known tie."""
    shapes = [value.shape for value in values]
    axes = axes_of(eqn.primitive.name, eqn.params, shapes, np.shape(result)) if values else None
    if axes is None:
        return (None,) * np.ndim(result)
    found = []
    for axis in range(np.ndim(result)):
        along = (values[place].ties[own : own + 1] for place, own in axes.sources(axis))
        found.append(next((tie for ties in along for tie in ties if tie is not None), None))
    return tuple(found)
