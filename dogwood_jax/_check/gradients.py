"""Checks whether a grown network can go on learning: ``check_gradients``, by ``gradients_of``.

Gradients must be finite if the old network's gradients are. New entries of an array must get a
nonzero gradient if old entries of it do. They may get it after a few steps, because layers of zeros
learn one after the other.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np

from dogwood_jax._check.claim import Case, Side
from dogwood_jax._check.evaluate import evaluate
from dogwood_jax._check.samples import SampleFamily
from dogwood_jax._growth.growth import Change, Growth
from dogwood_jax._program.reasons import kind_of
from dogwood_jax._widths.layout import units_along

Arrays = Mapping[str, Any]
# Returns the gradient of each float array by path, from variables and inputs.
Gradients = Callable[[Arrays, Sequence[Any]], dict[str, Any]]
_ROLES = ("incoming", "outgoing", "both")
_STEP = 0.1
# New entries must learn within this many steps. For example, a tied table of zeros learns first,
# then the last layer, then the norm behind this layer.
_STEPS = 3
# Number of samples that show which old entries get a gradient.
_ENOUGH = 3
# Smaller gradients, relative to the largest gradient, are zeros with rounding.
_SMALL = 1e-11
_NONE_LEARN = (
    "new units of {} get no gradient, so they would never learn; strategies.zeros() adds such "
    "units anyway"
)
# The scales of random numbers in new layers.
_SCALES = (1.0, 0.1)

# A family, variables of both networks, and inputs of both.
Sample = tuple[SampleFamily, Arrays, Arrays, Sequence[Any], Sequence[Any]]


def check_gradients(
    case: Case, after: Gradients, edges: Sequence[Sample], samples: Iterable[Sample]
) -> str | None:
    """Returns a problem with the gradients of the larger network, or None.

    Args:
        case: the claim.
        after: the gradients of the larger network.
        edges: samples in which gradients must be finite, such as inputs with a row of zeros.
        samples: more samples. One gradient in any sample is enough for new entries, because some
            units may be behind a relu that is zero for all inputs.
    """
    first = [(sample, after(sample[2], sample[4])) for sample in edges]
    found = ((sample, after(sample[2], sample[4])) for sample in samples)
    for (family, old, _, inputs, _), gradients in first:
        bad = [path for path, grad in gradients.items() if not np.isfinite(grad).all()]
        if bad and _is_finite(case.old, old, inputs):
            return f"the gradient of {bad[0]} is not finite where the network's is, for {family}"
    new = _NewEntries(case)
    learn, should = set[str](), set[str]()
    for number, ((*_, variables, _, inputs), gradients) in enumerate(itertools.chain(first, found)):
        learn |= {*new.that_learn(gradients)}
        should |= {*new.beside_old_that_learn(gradients)}
        if new.arrays and learn != new.all:
            scale = _SCALES[number % len(_SCALES)]
            should |= {*new.that_learn(after(new.drawn(variables, scale), inputs))}
        for _ in range(_STEPS):
            if learn == new.all:
                return None
            if not any(map(np.any, gradients.values())):
                break  # a saturated softmax: nothing moves
            variables = _moved(variables, gradients)
            gradients = after(variables, inputs)
            learn |= {*new.that_learn(gradients)}
        if number + 1 >= _ENOUGH and should <= learn:
            return None
    return new.said(should - learn, should)


class _NewEntries:
    """The new entries of each array, identified by the problem to report if they do not learn.

    Attributes:
        arrays: edits of the arrays of new layers that can learn, by problem.
        all: the problems.
    """

    def __init__(self, case: Case) -> None:
        floats = {path for path, a in case.new.arguments if jnp.issubdtype(a.dtype, jnp.floating)}
        inserted = case.growth.inserted
        self._along = {
            f"new entries of {place.path} along {change.width} get no gradient, so they would "
            "never learn": place
            for change in case.growth.changes
            if change.new > change.old and _should_learn(case.growth, change)
            for place in _places(case.growth, change)
            if place.path in floats
        }
        self.arrays = {
            f"{i.path} of a new layer gets no gradient, so it would never learn": i
            for i in inserted
            if i.path in floats and i.fill is not None
        }
        self.all = {*self._along, *self.arrays}

    def that_learn(self, gradients: Arrays) -> Iterator[str]:
        """Yields the problems of new entries that do get a gradient."""
        small = _smallest(gradients)
        for sentence, place in self._along.items():
            if np.any(_learns(np.take(gradients[place.path], place.new, place.axis), small)):
                yield sentence
        for sentence, edit in self.arrays.items():
            if np.any(_learns(gradients[edit.path]) & edit.new):
                yield sentence

    def beside_old_that_learn(self, gradients: Arrays) -> Iterator[str]:
        """Yields the problems of arrays whose old entries get a gradient."""
        small = _smallest(gradients)
        for sentence, place in self._along.items():
            if np.any(_learns(np.take(gradients[place.path], place.old, place.axis), small)):
                yield sentence

    def said(self, failed: set[str], should: set[str]) -> str | None:
        """Returns the problem of a width if none of its new entries learn, else of an array.

        Args:
            failed: the problems of new entries that should learn but do not.
            should: the problems of all new entries that should learn.
        """
        width_of = {one: place.width for one, place in self._along.items()}
        for width in sorted({width_of[one] for one in failed if one in width_of}):
            if {one for one in should if width_of.get(one) == width} <= failed:
                return _NONE_LEARN.format(width)
        return min(failed, default=None)

    def drawn(self, variables: Arrays, scale: float) -> Arrays:
        """Returns variables with random new layers; arrays that learn there should learn.

        The numbers are positive, because some arrays may be variances.
        """
        rng, drawn = np.random.default_rng(0), dict(variables)
        for edit in self.arrays.values():
            numbers = scale * np.abs(rng.normal(size=edit.shape))
            drawn[edit.path] = np.where(edit.new, numbers, variables[edit.path])
        return drawn


def _moved(variables: Arrays, gradients: Arrays) -> Arrays:
    """Returns variables after a short step, which is as long for small gradients as for large."""
    largest = max(np.max(np.abs(grad), initial=0.0) for grad in gradients.values())
    return {
        path: np.asarray(array) - _STEP / largest * gradients[path] if path in gradients else array
        for path, array in variables.items()
    }


def _is_finite(side: Side, variables: Arrays, inputs: Sequence[Any]) -> bool:
    before = gradients_of(side)
    return before is None or all(
        np.isfinite(grad).all() for grad in before(variables, inputs).values()
    )


def gradients_of(side: Side) -> Gradients | None:
    """Returns a function for the gradient of a random sum of outputs; None if there is none.

    There is none if the network cannot be differentiated, as with a ``while`` loop.
    """
    run = jex.jaxpr_as_fun(side.jaxpr)
    learned = [
        place
        for place, (path, array) in enumerate(side.arguments)
        if path is not None and jnp.issubdtype(array.dtype, jnp.floating)
    ]

    def loss(weights: Sequence[Any], arguments: Sequence[Any]) -> Any:
        arguments = [*arguments]
        for place, weight in zip(learned, weights, strict=True):
            arguments[place] = weight
        rng, whole = np.random.default_rng(0), jnp.zeros(())
        for result in run(*arguments):
            if jnp.issubdtype(result.dtype, jnp.inexact):
                signs = rng.normal(size=result.shape).astype(np.float32)
                whole = whole + jnp.sum(jnp.real(result).astype(jnp.float32) * signs)
        return whole

    def gradient(weights: Sequence[Any], arguments: Sequence[Any]) -> Any:
        def along(tangents: Sequence[Any]) -> Any:
            return jax.jvp(lambda its: loss(its, arguments), (weights,), (tangents,))[1]

        # This takes half of the time of ``jax.grad``, which makes a program for each equation.
        return jax.linear_transpose(along, weights)(jnp.ones(()))[0]

    structs = [array for _, array in side.arguments]
    try:
        jaxpr = jax.make_jaxpr(gradient)([structs[place] for place in learned], structs)
    except (TypeError, ValueError, NotImplementedError, AssertionError):
        return None  # JAX only asserts that ``reduce_window`` with any function is linear

    def gradients(variables: Arrays, inputs: Sequence[Any]) -> dict[str, Any]:
        left = iter(inputs)
        arguments = [next(left) if p is None else variables[p] for p, _ in side.arguments]
        results = evaluate(jaxpr, [*(arguments[place] for place in learned), *arguments])
        paths = [side.arguments[place][0] for place in learned]
        return {path: result for path, result in zip(paths, results, strict=True) if path}

    return gradients


def _learns(gradient: Any, smallest: float = 0.0) -> Any:
    return np.isfinite(gradient) & (np.abs(gradient) > smallest)


def _smallest(gradients: Arrays) -> float:
    """Returns an upper limit on the rounding of a gradient that is zero."""
    finite = (np.abs(grad[np.isfinite(grad)]) for grad in gradients.values())
    return _SMALL * max((float(np.max(sizes, initial=0.0)) for sizes in finite), default=0.0)


class _Place(NamedTuple):
    """The places of new and old units along an axis of an array.

    Attributes:
        width: the name of the width.
        path: the path of the array.
        axis: the axis.
        new: the places of new units.
        old: the places of old units.
    """

    width: str
    path: str
    axis: int
    new: Any
    old: Any


def _places(growth: Growth, change: Change) -> Iterator[_Place]:
    """Yields the places of a width's units in arrays of the larger network."""
    shapes = growth.shapes
    for leaf in growth.after.leaves:
        path = growth.held[leaf.path].path
        if shapes.get(path, leaf.shape) != leaf.shape:
            continue
        for axis, layout in enumerate(leaf.axes):
            units = units_along(layout, change.width, _ROLES)
            new = np.flatnonzero(units >= change.old)
            if new.size:
                old = np.flatnonzero((units >= 0) & (units < change.old))
                yield _Place(change.width, path, axis, new, old)


def _should_learn(growth: Growth, change: Change) -> bool:
    """Whether new units must learn, as far as samples can show it.

    Inputs and outputs are left out, because samples hold no ids of new units. Units that never
    learn by their strategy, or by a note on their width, are left out, too.
    """
    width = growth.widths[change.width]
    is_told = change.strategy.incoming == change.strategy.outgoing == "zero"
    is_told |= change.strategy.is_gated  # a router may choose only the first of equal copies
    is_told |= any(kind_of(note) == "silent" for note in width.notes)
    is_zero = change.strategy.incoming == "zero"
    is_zero |= any(place.role != "incoming" for place in width.occurrences)
    return is_zero and not (width.interface or is_told)
