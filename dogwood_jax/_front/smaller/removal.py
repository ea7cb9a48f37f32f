"""Measures how far outputs move without some units or layers: ``Removal``."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from math import inf, nan
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dogwood_jax._base.draw import random_keys
from dogwood_jax._base.trees import PyTree, arrays_of, is_traced, leaves_by_path, mirrors, struct
from dogwood_jax._check.check import compared, finite, grown, rounded_in_one
from dogwood_jax._check.claim import Case, ComparedOutput, Side
from dogwood_jax._check.evaluate import Undecided, widened
from dogwood_jax._check.resize import in_sizes
from dogwood_jax._check.run import NUDGE, Watch, run
from dogwood_jax._check.samples import FAMILIES, Arguments, SampleFamily, Samples
from dogwood_jax._front.smaller.constant_units import Folded
from dogwood_jax._growth.grown_sizes import GrownSizes
from dogwood_jax._growth.growth import Growth
from dogwood_jax._plan.depth.removed import smaller_program, whole_program
from dogwood_jax._plan.own_function import Rejected, own_program
from dogwood_jax._program.primitives.new_sizes import CannotResize
from dogwood_jax._program.subprograms import entries
from dogwood_jax._widths.widths import Widths

Values = Mapping[str, Any]

# Allowed error of a folded entry, in rounding errors of its dtype.
_ROUNDING_ERRORS = 2.0


@dataclass(frozen=True)
class _OfNetwork(Samples):
    """Samples whose variables are the network's own."""

    values: Values = field(default_factory=dict)

    def variables(
        self, arguments: Arguments, family: SampleFamily, *, new: bool = False
    ) -> dict[str, Any]:
        return {**self.values}


def moved(case: Case, variables: Values, folded: Values, rounded: Collection[str]) -> float | None:
    """Returns how far outputs move, relative to their size (root mean squares).

    The result is 0 if no entry of an output moves beyond rounding, for any kind of inputs.
    Otherwise it belongs to the output that moves most, for the first kind of inputs that moves one.
    It is infinite if an output gets another shape, NaN if an output is no longer finite, and None
    if the samples do not decide.

    Args:
        case: the network and the smaller network, with the growth that narrows.
        variables: the network's variables by path.
        folded: the same, after constant units were moved into biases. The growth narrows these.
        rounded: paths of these biases, which are rounded in their dtype.
    """
    before = {path: widened(array) for path, array in variables.items()}
    smaller = _narrowed(case, variables, folded, rounded)
    constants, shown = rounded_in_one(case), set[str]()
    for number, family in enumerate(FAMILIES):
        found = finite(case, _OfNetwork({}, seed=number, values=before), family)
        if found is None:
            continue
        _, _, inputs, old = found
        try:
            near = run(case.old, before, inputs, Watch(NUDGE, number))
            near_constants = run(case.old, before, inputs, Watch(NUDGE, number, constants))
            new, *others = (run(case.new, values, inputs, Watch()) for values in smaller)
        except Undecided:
            continue
        shares = []
        for output in case.outputs:
            ours, theirs = old[output.old], new[output.new]
            if np.shape(ours) != np.shape(theirs):
                return inf
            rounding = np.abs(near_constants[output.old] - ours) if constants else 0.0
            for other in others:
                rounding = np.maximum(rounding, np.abs(other[output.new] - theirs))
            counts, differs, _ = compared(ours, near[output.old], theirs, rounding)
            if differs.any():
                shares.append(_share(ours, theirs))
            elif counts.any() or not counts.size:
                shown.add(output.path)
        if shares:
            return nan if any(map(np.isnan, shares)) else max(shares)
    return 0.0 if shown.issuperset(output.path for output in case.outputs) and shown else None


def _zeros(array: Any) -> Any:
    if jnp.issubdtype(array.dtype, jax.dtypes.extended):
        return random_keys(jnp.zeros(2, jnp.uint32), array.shape, array.dtype)
    return np.zeros(array.shape, array.dtype)


def _narrowed(
    case: Case, variables: Values, folded: Values, rounded: Collection[str]
) -> list[dict[str, Any]]:
    """Returns the smaller network's variables, first as they are, then with biases nudged."""
    narrow, rng = grown(case), np.random.default_rng(0)
    fresh = {path: _zeros(array) for path, array in case.new.arguments if path is not None}
    exact = {path: widened(array) for path, array in folded.items()}
    several = [narrow(exact, fresh)]
    for _ in range(3 if rounded else 0):
        nudged = {**exact}
        for path in rounded:
            bias, by = exact[path], exact[path] - widened(variables[path])
            error = _ROUNDING_ERRORS * _eps(folded[path]) * (np.abs(bias) + np.abs(by))
            nudged[path] = bias + error * rng.choice([-1, 1], size=bias.shape)
        several.append(narrow(nudged, fresh))
    return several


def _eps(array: Any) -> float:
    return float(jnp.finfo(array.dtype).eps)  # type: ignore[no-untyped-call]


def _share(old: Any, new: Any) -> float:
    """Returns how far an output moves, relative to its size."""
    if old.dtype.kind not in "fc":
        return float(np.mean(old != new))
    finite = np.isfinite(old)
    moved = np.sqrt(np.mean(np.abs(np.where(finite, new - old, 0)) ** 2))
    size = np.sqrt(np.mean(np.abs(np.where(finite, old, 0)) ** 2))
    return float(moved / size) if size else inf


# Upper limit on entries of all variables and values; larger networks are not evaluated.
MOST_ENTRIES = 10_000_000


class Removal:
    """Evaluates a network with its own weights, and without some of its units or layers.

    The smaller network is the network's own function, if it takes fewer units. Otherwise, for
    example for a module whose config states sizes, it is the network's program, resized.

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
        """Returns how far outputs move, relative to their size; see ``moved``.

        Args:
            variables: the network's variables.
            folded: the same, after constant units were moved into biases.
            growth: the growth that removes units or layers.

        Returns:
            0 if outputs stay; None if the networks cannot be evaluated.
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
    """Returns the outputs to compare, without new values of variables that lose units."""
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
