"""Whether a network that has grown goes on learning: ``check_gradients``.

Gradients must be finite where those of the old network are, and new entries of each array must get
some where old ones do. They may get the first one after a few steps, because layers of zeros learn
one after the other.
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
_ROLES = ("incoming", "outgoing", "both")
_STEP = 0.1
# After so many steps all new entries must learn: a tied table of zeros lets the last layer learn
# once it has learned itself, and then the norm behind this layer.
_STEPS = 3
# In so many samples old units show whether they get a gradient.
_ENOUGH = 3
# Smaller gradients, relative to the largest, are what rounding leaves of a zero.
_SMALL = 1e-11
_NONE_LEARN = (
    "new units of {} get no gradient, so they would never learn; strategies.zeros() makes such "
    "units all the same"
)
# Those of random numbers in new layers.
_SCALES = (1.0, 0.1)


Sample = tuple[SampleFamily, Arrays, Arrays, Sequence[Any], Sequence[Any]]


def check_gradients(case: Case, edges: Sequence[Sample], samples: Iterable[Sample]) -> str | None:
    """Returns what is wrong with the gradients of the larger network, or None.

    Args:
        case: the claim.
        edges: samples in which gradients must be finite, as for a row of zeros: variables of both
            networks and inputs of both.
        samples: more of them. New entries get a gradient in any: a few units may be behind a relu
            that is zero for all inputs.
    """
    after = _gradients(case.new)
    if after is None:  # a loop that cannot be differentiated, as those of ``while``
        return None
    first = [(sample, after(sample[2], sample[4])) for sample in edges]
    found = ((sample, after(sample[2], sample[4])) for sample in samples)
    for (family, old, _, inputs, _), gradients in first:
        bad = [path for path, grad in gradients.items() if not np.isfinite(grad).all()]
        if bad and _is_finite(case.old, old, inputs):
            return (
                f"the gradient of {bad[0]} is not finite where that of the network is, for {family}"
            )
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
            variables = _moved(variables, gradients)
            gradients = after(variables, inputs)
            learn |= {*new.that_learn(gradients)}
        if number + 1 >= _ENOUGH and should <= learn:
            return None
    return new.said(should - learn, should)


class _NewEntries:
    """New entries of each array, each as the sentence that speaks against them.

    Attributes:
        arrays: the arrays of new layers that can learn.
        all: the sentences.
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
        """Yields what gets a gradient."""
        small = _smallest(gradients)
        for sentence, place in self._along.items():
            if np.any(_learns(np.take(gradients[place.path], place.new, place.axis), small)):
                yield sentence
        for sentence, edit in self.arrays.items():
            if np.any(_learns(gradients[edit.path]) & edit.new):
                yield sentence

    def beside_old_that_learn(self, gradients: Arrays) -> Iterator[str]:
        """Yields the sentences of arrays whose old entries get a gradient."""
        small = _smallest(gradients)
        for sentence, place in self._along.items():
            if np.any(_learns(np.take(gradients[place.path], place.old, place.axis), small)):
                yield sentence

    def said(self, failed: set[str], should: set[str]) -> str | None:
        """Returns what is said of entries that do not learn: of units, if none of theirs do.

        Args:
            failed: the sentences of what does not learn.
            should: of that and of what does.
        """
        width_of = {one: place.width for one, place in self._along.items()}
        for width in sorted({width_of[one] for one in failed if one in width_of}):
            if {one for one in should if width_of.get(one) == width} <= failed:
                return _NONE_LEARN.format(width)
        return min(failed, default=None)

    def drawn(self, variables: Arrays, scale: float) -> Arrays:
        """Returns variables with random new layers. What learns there should learn.

        The numbers are positive, because there may be a variance among them.
        """
        rng, drawn = np.random.default_rng(0), dict(variables)
        for edit in self.arrays.values():
            numbers = scale * np.abs(rng.normal(size=edit.shape))
            drawn[edit.path] = np.where(edit.new, numbers, variables[edit.path])
        return drawn


def _moved(variables: Arrays, gradients: Arrays) -> Arrays:
    """Returns variables after a short step."""
    largest = max((np.max(np.abs(grad), initial=1.0) for grad in gradients.values()), default=1.0)
    return {
        path: np.asarray(array) - _STEP / largest * gradients[path] if path in gradients else array
        for path, array in variables.items()
    }


def _is_finite(side: Side, variables: Arrays, inputs: Sequence[Any]) -> bool:
    before = _gradients(side)
    return before is None or all(
        np.isfinite(grad).all() for grad in before(variables, inputs).values()
    )


def _gradients(side: Side) -> Callable[[Arrays, Sequence[Any]], dict[str, Any]] | None:
    """Returns the gradient of a random sum of all outputs, as a function for NumPy's arrays."""
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

    structs = [array for _, array in side.arguments]
    try:
        jaxpr = jax.make_jaxpr(jax.grad(loss))([structs[place] for place in learned], structs)
    except (TypeError, ValueError, NotImplementedError):
        return None

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
    """Returns what rounding may leave of a gradient that is zero."""
    finite = (np.abs(grad[np.isfinite(grad)]) for grad in gradients.values())
    return _SMALL * max((float(np.max(sizes, initial=0.0)) for sizes in finite), default=0.0)


class _Place(NamedTuple):
    """Where an array has new units, and old ones.

    Attributes:
        width: the width.
        path: the array.
        axis: the axis along which they lie.
        new: the places of new units.
        old: those of old ones.
    """

    width: str
    path: str
    axis: int
    new: Any
    old: Any


def _places(growth: Growth, change: Change) -> Iterator[_Place]:
    """Yields where arrays of the larger network have the units of a width."""
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
    """Whether new units are to learn, as far as samples can show it.

    Samples hold no ids of new units. Where units never learn, a note has said so.
    """
    width = growth.widths[change.width]
    is_told = change.strategy.incoming == change.strategy.outgoing == "zero"
    is_told |= change.strategy.is_gated  # of equal copies, only the first may be chosen
    is_told |= any(kind_of(note) == "silent" for note in width.notes)
    is_zero = change.strategy.incoming == "zero"
    is_zero |= any(place.role != "incoming" for place in width.occurrences)
    return is_zero and not (width.interface or is_told)
