"""Measures the activations that weights read of each unit: ``readings``.

A unit's activation is the value that its outgoing weights are multiplied by: behind the activation
function, and behind a norm or a pooling in front of the next layer. These products are found in the
program, by following arrays with outgoing weights and the unit at each position of their axes.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from dogwood_jax._base.trees import PyTree, is_array
from dogwood_jax._program.interpret import called, evaluated, interpret
from dogwood_jax._program.primitives.table import axes_of, primitive
from dogwood_jax._program.program import Program
from dogwood_jax._program.subprograms import scan_counts
from dogwood_jax._widths.layout import units_along
from dogwood_jax._widths.widths import Width

# For an axis, each width along it with the unit at each position, or -1.
Axis = tuple[tuple[str, np.ndarray], ...]


class UnitReadings(NamedTuple):
    """The activations of a width's units that one product reads.

    Attributes:
        activity: the mean absolute value of each unit: ``[units]``, or ``[layers, units]`` if a
            loop runs over layers with weights of their own.
        contribution: ``activity`` times the sum of the unit's absolute weights in the product.
    """

    activity: Array
    contribution: Array


class _Weights(NamedTuple):
    """How units lie along the axes of weights.

    Attributes:
        axes: the units along each axis.
        loops: the ids of loops that run over layers of these weights.
    """

    axes: tuple[Axis, ...]
    loops: frozenset[int] = frozenset()


class _Value(NamedTuple):
    """A value of the program.

    Attributes:
        array: the array.
        weights: how units lie in it, if it holds only outgoing weights.
        is_data: whether it depends on an input, as far as this is known.
    """

    array: Any
    weights: _Weights | None = None
    is_data: bool = True


def readings(
    apply: Callable[..., Any], variables: PyTree, widths: Iterable[Width], *inputs: Any
) -> dict[str, list[UnitReadings]]:
    """Runs a network; returns the readings of its products, by name of the width.

    Args:
        apply: the function of variables and inputs.
        variables: pytree of the network's arrays.
        widths: the widths whose units are measured.
        *inputs: a batch of inputs.
    """
    program = Program(apply, variables, inputs)
    arrays = [leaf for leaf in jax.tree.leaves((variables, *inputs)) if is_array(leaf)]
    axes: dict[str, dict[int, Axis]] = {}
    for width in widths:
        places = ((place.path, place.axis, place.layout) for place in width.occurrences)
        for path, axis, layout in dict.fromkeys(places):
            units = units_along(layout, width.name, ("outgoing", "both"))
            if (units >= 0).any():
                along = axes.setdefault(path, {})
                along[axis] = (*along.get(axis, ()), (width.name, units))
    arguments = []
    for array, (argument, struct) in zip(arrays, program.arguments, strict=True):
        along = axes.get(argument, {}) if argument is not None else {}
        whole = tuple(along.get(axis, ()) for axis in range(len(struct.shape)))
        arguments.append(_Value(array, _Weights(whole) if along else None, argument is None))
    run = _ReadRun({width.name: width.size for width in widths})
    run.program(program.jaxpr.jaxpr, program.jaxpr.consts, arguments)
    found: dict[str, list[UnitReadings]] = {}
    for (name, _), reading in zip(run.names, run.found, strict=True):
        found.setdefault(name, []).append(reading)
    return found


@dataclass
class _ReadRun:
    """One run of a program, with the readings of its products.

    Attributes:
        sizes: the size of each width.
        names: for each reading, the name of the width, and the loops over layers of the weights.
        found: the readings.
    """

    sizes: Mapping[str, int]
    names: list[tuple[str, frozenset[int]]] = field(default_factory=list)
    found: list[UnitReadings] = field(default_factory=list)

    def program(self, jaxpr: Any, consts: Any, arguments: Sequence[_Value]) -> list[_Value]:
        return interpret(
            jaxpr,
            consts,
            arguments,
            constant=lambda array, _: _Value(array, is_data=False),
            equation=self.equation,
        )

    def equation(self, eqn: Any, operands: list[_Value]) -> list[_Value]:
        if eqn.primitive.name == "scan":
            return self.scan(eqn, operands)
        if (program := called(eqn)) is not None:
            return self.program(*program, operands)
        results = evaluated(eqn, [value.array for value in operands])
        is_data = any(value.is_data for value in operands)
        places = [place for place, value in enumerate(operands) if value.weights is not None]
        if len(places) != 1:  # products of weights with weights are not readings
            return [_Value(result, is_data=is_data) for result in results]
        if is_data and primitive(eqn.primitive.name).contracts and places[0] < 2:
            self._read(eqn, operands, places[0], results[0].shape)
        return [
            _Value(r, None if is_data else _follow(eqn, operands, places[0], r.shape), is_data)
            for r in results
        ]

    def _read(self, eqn: Any, operands: Sequence[_Value], place: int, shape: Sequence[int]) -> None:
        """Records the reading of a product of weights with values."""
        shapes = [jnp.shape(value.array) for value in operands]
        axes = axes_of(eqn.primitive.name, eqn.params, shapes, shape)
        weights = operands[place].weights
        if axes is None or weights is None:
            return
        kernel, values = (_magnitude(operands[p].array) for p in (place, 1 - place))
        names, others = axes.operands[place], axes.operands[1 - place]
        for own in axes.summed(place):
            met = [axis for axis, name in enumerate(others) if name & names[own]]
            for width, units in weights.axes[own]:
                if len(met) == 1 and values.shape[met[0]] == len(units):
                    active = jnp.mean(values, [a for a in range(values.ndim) if a != met[0]])
                    weighed = active * jnp.sum(kernel, [a for a in range(kernel.ndim) if a != own])
                    each = self._by_unit(width, units, jnp.ones_like(active))
                    activity = self._by_unit(width, units, active) / jnp.maximum(each, 1)
                    self.names.append((width, weights.loops))
                    self.found.append(UnitReadings(activity, self._by_unit(width, units, weighed)))

    def _by_unit(self, width: str, units: np.ndarray, along: Array) -> Array:
        size = self.sizes[width]
        return jax.ops.segment_sum(along, np.where(units < 0, size, units), size + 1)[:size]

    def scan(self, eqn: Any, operands: list[_Value]) -> list[_Value]:
        """Runs a loop. Readings of layers are kept separately; other steps are averaged."""
        n_consts, n_carry = scan_counts(eqn)
        consts, carry = operands[:n_consts], operands[n_consts : n_consts + n_carry]
        stacked, program, inner = operands[n_consts + n_carry :], eqn.params["jaxpr"], _ReadRun({})

        def body(state: Any, slices: Any) -> Any:
            nonlocal inner
            inner = _ReadRun(self.sizes)
            layers = [
                _Value(
                    array,
                    whole.weights
                    and _Weights(whole.weights.axes[1:], whole.weights.loops | {id(eqn)}),
                    whole.is_data,
                )
                for array, whole in zip(slices, stacked, strict=True)
            ]
            arguments = [*consts, *map(_Value, state), *layers]
            out = [value.array for value in inner.program(program.jaxpr, program.consts, arguments)]
            return out[:n_carry], (out[n_carry:], inner.found)

        state, (rows, found) = lax.scan(
            body,
            [value.array for value in carry],
            [value.array for value in stacked],
            length=eqn.params["length"],
            reverse=eqn.params["reverse"],
        )
        self.names += inner.names
        for (_, loops), reading in zip(inner.names, found, strict=True):
            apart = id(eqn) in loops
            self.found.append(
                reading if apart else UnitReadings(*(jnp.mean(r, 0) for r in reading))
            )
        return [*map(_Value, state), *map(_Value, rows)]


def _magnitude(array: Any) -> Array:
    array = jnp.asarray(array)
    wide = jnp.promote_types(array.dtype, jnp.float32)
    return jnp.abs(array.astype(wide))


def _follow(
    eqn: Any, operands: Sequence[_Value], place: int, shape: Sequence[int]
) -> _Weights | None:
    """Returns how units lie in a result that still holds only weights; None if it has no units."""
    name, weights = eqn.primitive.name, operands[place].weights
    assert weights is not None
    record, shapes = primitive(name), [jnp.shape(value.array) for value in operands]
    origin = {axis: axis for axis in range(len(shape))} if record.stays else {}
    if record.is_of_entries or record.keeps:
        axes = axes_of(name, eqn.params, shapes, shape)
        if axes is None:
            return None
        origin = {a: own for a in range(len(shape)) for p, own in axes.sources(a) if p == place}
    kept = {a: own for a, own in origin.items() if shape[a] == shapes[place][own]}
    found = tuple(weights.axes[kept[a]] if a in kept else () for a in range(len(shape)))
    return weights._replace(axes=found) if any(found) else None
