"""The claim of a growth, and the outputs that are compared: ``Case``, ``case_of``."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dogwood_jax._base.trees import mirrors
from dogwood_jax._check.samples import Arguments
from dogwood_jax._growth.grown_sizes import GrownSizes
from dogwood_jax._growth.growth import Growth
from dogwood_jax._growth.leaf_map import old_places
from dogwood_jax._program.primitives.new_sizes import CannotResize, SizeOf
from dogwood_jax._program.subprograms import Key
from dogwood_jax._program.values import Value
from dogwood_jax._widths.trace import Traced


@dataclass(frozen=True)
class Side:
    """One of two networks.

    Attributes:
        jaxpr: its program.
        arguments: path of each of its arguments, None for an input, with shape and dtype.
        results: path of each of its results.
        draws: the equations whose random numbers depend on no key of the caller, by ``key_of``.
    """

    jaxpr: Any
    arguments: Arguments
    results: Sequence[str]
    draws: frozenset[Key] = frozenset()


@dataclass(frozen=True)
class ComparedOutput:
    """An output of both networks that must be equal.

    Attributes:
        path: its path in the network.
        old: its place among the results of the network.
        new: its place among the results of the larger network.
        places: for each axis, the places of old entries in the larger network; None for all.
    """

    path: str
    old: int
    new: int
    places: tuple[np.ndarray | None, ...] = ()


@dataclass(frozen=True)
class Case:
    """The claim that two networks with a growth between them compute the same.

    Attributes:
        old: the network.
        new: the larger network.
        growth: the growth of the variables.
        outputs: the outputs that are compared.
        inputs: for each input and axis, places of old entries in the larger network; None for all.
        is_reduced: whether both programs are in smaller sizes than the network's.
        is_resized: whether the larger program is the network's own, rewritten in other sizes.
    """

    old: Side
    new: Side
    growth: Growth
    outputs: Sequence[ComparedOutput]
    inputs: Sequence[tuple[np.ndarray | None, ...]]
    is_reduced: bool = False
    is_resized: bool = False

    @cached_property
    def has_ids(self) -> bool:
        """Whether an input holds integers."""
        arrays = (array for path, array in self.old.arguments if path is None)
        return any(jnp.issubdtype(array.dtype, jnp.integer) for array in arrays)


def case_of(
    growth: Growth,
    traced: Traced,
    new: Side,
    old: Side | None = None,
    before: SizeOf | None = None,
    after: GrownSizes | None = None,
) -> Case:
    """Returns the claim that a larger program computes what the network does.

    Args:
        growth: the growth of the network's variables.
        traced: the network's program, as it was read.
        new: the larger program.
        old: the network's program, if it is evaluated in other sizes.
        before: the sizes of dimensions in ``old``.
        after: the sizes of these dimensions after the growth.

    Raises:
        CannotResize: if the larger program lacks an output.
    """
    program = traced.program
    old = old or Side(program.jaxpr, program.arguments, program.results)
    places = Places(growth, before, after)
    ours = [array for path, array in old.arguments if path is None]
    theirs = [array for path, array in new.arguments if path is None]
    inputs = [
        places.of(value, a.shape, b.shape)
        for value, a, b in zip(traced.trace.arguments, ours, theirs, strict=True)
    ]
    outputs = [*_outputs(growth, traced, old, new, places)]
    return Case(old, new, growth, outputs, inputs)


class Places:
    """Finds the places of old entries in inputs and outputs that have more entries."""

    def __init__(
        self, growth: Growth, before: SizeOf | None = None, after: GrownSizes | None = None
    ) -> None:
        self._growth, self._before, self._known = growth, before, after

    @cached_property
    def _after(self) -> GrownSizes:
        return self._known or GrownSizes(self._growth.widths, self._growth.sizes)

    def of(
        self, value: Value, old: Sequence[int], new: Sequence[int]
    ) -> tuple[np.ndarray | None, ...]:
        """Returns the places of old entries along each axis, None for an axis that stays."""
        if tuple(old) == tuple(new) or len(old) != len(new):
            return (None,) * len(old)
        return tuple(
            old_places(self._after.along(dim, self._before)) if self._after(dim) == b > a else None
            for dim, a, b in zip(value.dims, old, new, strict=True)
        )


def _outputs(
    growth: Growth, traced: Traced, old: Side, new: Side, places: Places
) -> Iterator[ComparedOutput]:
    ours, shapes = mirrored(old), [v.aval.shape for v in new.jaxpr.jaxpr.outvars]
    theirs = {path: place for place, path in enumerate(new.results)}
    for place, path in enumerate(old.results):
        leaf = ours.get(path)
        if jnp.issubdtype(old.jaxpr.jaxpr.outvars[place].aval.dtype, jax.dtypes.extended):
            continue  # keys do not grow
        if leaf is None:
            if path not in theirs:
                raise CannotResize(
                    f"the larger program has no output {path or 'that is a single array'}"
                )
            value, where = traced.outputs.get(path), theirs[path]
            shape = old.jaxpr.jaxpr.outvars[place].aval.shape
            axes = () if value is None else places.of(value, shape, shapes[where])
            yield ComparedOutput(path, place, where, axes)
            continue
        its_place = theirs.get(place_of_mirror(path, leaf, growth))
        axes_of_leaf = _old_part(leaf, growth)
        if its_place is not None and axes_of_leaf is not None:
            yield ComparedOutput(path, place, its_place, axes_of_leaf)


def mirrored(side: Side) -> Mapping[str, str]:
    """Returns the results that mirror variables, each with the path of its variable."""
    avals = [var.aval for var in side.jaxpr.jaxpr.outvars]
    results = {path: tuple(aval.shape) for path, aval in zip(side.results, avals, strict=True)}
    leaves = {path: tuple(array.shape) for path, array in side.arguments if path is not None}
    return mirrors(results, leaves)


def place_of_mirror(path: str, leaf: str, growth: Growth) -> str:
    """Returns the path in the larger network of a result that mirrors a variable."""
    if (place := growth.place(leaf) or leaf) == leaf:
        return path
    if f"/{path}".endswith(f"/{leaf}"):
        return path.removesuffix(leaf) + place
    inside, place_inside = (name.partition("/")[2] for name in (leaf, place))
    return path.removesuffix(inside) + place_inside


def _old_part(path: str, growth: Growth) -> tuple[Any, ...] | None:
    """Returns the places of old entries of a mirrored variable, None if their values change."""
    edit = growth.held.get(path)
    return None if edit is None or edit.layers else edit.old_places
