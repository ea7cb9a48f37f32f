"""By how much outputs move when units or layers go: ``Removal``."""

from collections.abc import Mapping
from typing import Any

import jax

from dogwood_jax._base.trees import PyTree, arrays_of, is_traced, leaves_by_path, mirrors, struct
from dogwood_jax._depth.removed import smaller_program, whole_program
from dogwood_jax._growth.grown_sizes import GrownSizes
from dogwood_jax._growth.growth import Growth
from dogwood_jax._judge.claim import Case, ComparedOutput, Side
from dogwood_jax._judge.resize import CannotResize, in_sizes
from dogwood_jax._plan.own_function import Rejected, own_program
from dogwood_jax._program.subprograms import entries
from dogwood_jax._smaller.constant_units import Folded
from dogwood_jax._smaller.moved import moved
from dogwood_jax._widths.widths import Widths

# Networks whose arrays have more entries together, variables and values, are not evaluated.
MOST_ENTRIES = 10_000_000


class Removal:
    """Evaluates a network with its own weights, and without some of its units or layers.

    The smaller network is the network's own function, if it takes fewer units. Else, as for a
    module whose config states sizes, it is the network's program written again in these sizes.

    Args:
        widths: the network's widths.
    """

    def __init__(self, widths: Widths) -> None:
        self._widths = widths
        self._smaller: dict[Any, Side | None] = {}
        network = widths.network
        program = None if network is None else whole_program(network)
        self._old = None
        if program is not None and sum(entries(program.jaxpr)) <= MOST_ENTRIES:
            self._old = Side(program.jaxpr, program.arguments, program.results)

    def moved(self, variables: PyTree, folded: Folded, growth: Growth) -> float | None:
        """Returns by how much outputs move, relative to their size; see ``_judge.removal``.

        Args:
            variables: the network's variables.
            folded: the same, after constant units were moved into biases.
            growth: which units go.

        Returns:
            0 if outputs stay; None if that is not known.
        """
        before, after = (arrays_of(leaves_by_path(tree)) for tree in (variables, folded.variables))
        known = all(_has_values(array) for array in (*before.values(), *after.values()))
        if self._old is None or not known or any(growth.widths[n].interface for n in growth.change):
            return None
        new = self._in_sizes(growth)
        if new is None:
            return None
        outputs = [*_outputs(self._old, new)]
        return moved(Case(self._old, new, growth, outputs, ()), before, after, folded.biases)

    def _in_sizes(self, growth: Growth) -> Side | None:
        key = tuple(growth.sizes.items()), growth.layers
        if key not in self._smaller:
            self._smaller[key] = _side(growth)
        return self._smaller[key]


def _has_values(array: Any) -> bool:
    if is_traced(array) or isinstance(array, jax.ShapeDtypeStruct):
        return False
    return bool(getattr(array, "is_fully_addressable", True))


def _side(growth: Growth) -> Side | None:
    """Returns the program of the smaller network, or None if there is none."""
    network = growth.widths.network
    assert network is not None
    if growth.layers:
        smaller = smaller_program(growth)
        if smaller is None:
            return None
        return Side(smaller.jaxpr, smaller.arguments, smaller.results)
    own = own_program(growth.widths, growth.sizes, in_module=False)
    if not isinstance(own, Rejected):
        return Side(own.jaxpr, own.arguments, own.results)
    jaxpr = in_sizes(network.traced, GrownSizes(growth.widths, growth.sizes))
    if isinstance(jaxpr, CannotResize):
        return None
    program = whole_program(network)
    paths = (path for path, _ in program.arguments)
    structs = (struct(aval.shape, aval.dtype) for aval in jaxpr.in_avals)
    return Side(jaxpr, [*zip(paths, structs, strict=True)], program.results)


def _outputs(old: Side, new: Side) -> list[ComparedOutput]:
    """Returns the outputs of both. New values of variables lose units as the variables do."""
    shapes = _shapes(old)
    leaves = {path: tuple(array.shape) for path, array in old.arguments if path is not None}
    of_variables, theirs = mirrors(shapes, leaves), _shapes(new)
    places = {path: place for place, path in enumerate(new.results)}
    return [
        ComparedOutput(path, place, places[path])
        for place, path in enumerate(old.results)
        if path in places
        if path not in of_variables or shapes[path] == theirs[path]
    ]


def _shapes(side: Side) -> Mapping[str, tuple[int, ...]]:
    outvars = side.jaxpr.jaxpr.outvars
    return {p: tuple(var.aval.shape) for p, var in zip(side.results, outvars, strict=True)}
