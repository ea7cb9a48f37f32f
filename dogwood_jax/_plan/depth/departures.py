"""Explains why no filling makes new layers compute the identity: ``explanation``.

The deeper network is evaluated with the fillings that are tried first. It departs from the network
at the equation that turns a value that both networks compute into one that only it computes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from dogwood_jax._check.cause import first_not_finite
from dogwood_jax._check.run import Drawn, Watch, run
from dogwood_jax._check.seen import differing
from dogwood_jax._plan.depth.trial import Filling, Readings, Trial
from dogwood_jax._program.subprograms import sub_programs

_ONE_BY_ONE = (
    "widths grow, too: grow them first, or insert the layers first, each in a growth of its own"
)
# Arrays with larger entries are not compared: next to these, all other entries look equal.
_MASKED = 1e9


def explanation(trial: Trial) -> str:
    """Returns an error text: where the deeper network computes something else than the network."""
    if not trial.samples:
        return "the network is finite for none of the samples, so nothing shows that outputs stay"
    case, starts = trial.case, [*trial.starts()]
    zeros = replace(trial.samples[0], wide=trial.arrays(trial.samples[0], starts[1]))
    if not trial.is_finite(starts[1]) and (cause := first_not_finite(case.old, case.new, zeros)):
        return f"zeros in new layers do not silence them, {cause}"
    found = []
    for filling in () if case.growth.changes else starts:  # wider values are never equal
        seen = [_departures(trial, filling, sample) for sample in trial.samples]
        found.append(min(seen, key=lambda one: one.step))
    words = max(found, key=lambda one: one.step).words if found else _ONE_BY_ONE
    strange = sorted({what for _, what in differing(case.old.jaxpr, case.new.jaxpr)})
    if not strange:
        return words
    return (
        f"{words}; it computes with {', '.join(strange)}, which the old network does not: "
        "constants of old layers must stay, including those that depend on the number of layers, "
        "such as 1 / sqrt(layers)"
    )


def _departures(trial: Trial, filling: Filling, sample: Drawn) -> "_Departures":
    ours = _Values(sample.inputs)
    run(trial.case.old, sample.variables, sample.inputs, ours)
    return trial.watched(filling, lambda arrays: _Departures(arrays, trial.new, ours), sample)


class _Values(Watch):
    """Collects the values that a network computes from inputs, with the name of the operation."""

    def __init__(self, inputs: Sequence[Any]) -> None:
        super().__init__()
        self._found: dict[tuple[int, ...], list[tuple[Any, str]]] = {}
        self._of_inputs: dict[int, Any] = {}
        self._add(inputs, "")

    def _add(self, arrays: Sequence[Any], name: str | None) -> None:
        self._of_inputs.update((id(array), array) for array in arrays)
        for array in arrays:
            if name is not None and _tells(array):
                self._found.setdefault(array.shape, []).append((array, name))

    def results(
        self, eqn: Any, operands: Sequence[Any], results: Sequence[Any], callers: Sequence[Any]
    ) -> None:
        if any(id(a) in self._of_inputs or id(_base(a)) in self._of_inputs for a in operands):
            self._add(results, None if sub_programs(eqn) else _name(eqn, callers))

    def name_of(self, array: Any) -> str | None:
        """Returns the name of the operation that computes a value in the network, or None."""
        if not _tells(array):
            return None
        size = np.abs(array).max()
        alike = (name for one, name in self._found.get(array.shape, ()) if _close(array, one, size))
        return next(alike, None)


class _Departures(Readings):
    """Finds where a deeper network departs from the values of the network for good.

    Attributes:
        step: number of the equation; the number of the last equation if there is no departure.
        words: the text of the error.
    """

    def __init__(self, arrays: Mapping[str, Any], new: Mapping[str, Any], network: _Values) -> None:
        super().__init__(arrays)
        self._new, self._network = new, network
        self._left: tuple[int, str] | None = None

    @property
    def step(self) -> int:
        return self.steps if self._left is None else self._left[0]

    @property
    def words(self) -> str:
        nothing = "they differ in more than layers that could be the identity"
        return nothing if self._left is None else self._left[1]

    def results(
        self, eqn: Any, operands: Sequence[Any], results: Sequence[Any], callers: Sequence[Any]
    ) -> None:
        super().results(eqn, operands, results, callers)
        if sub_programs(eqn):
            return
        before = [self._network.name_of(array) for array in operands]
        if any(self._network.name_of(array) is not None for array in results):
            if any(_tells(array) and name is None for array, name in zip(operands, before)):
                self._left = None
        elif any(name is not None for name in before) and self._left is None:
            known = next(name for name in before if name is not None)
            self._left = self.steps, self._described(eqn, operands, known, _name(eqn, callers))

    def _described(self, eqn: Any, operands: Sequence[Any], before: str, name: str) -> str:
        read = {path: step for path, step in self.read.items() if path in self._new}
        if not read:
            return f"{name} is applied where the old network does something else"
        last = max(read, key=read.__getitem__)
        if last in map(self.path_of, operands):
            shape = self._new[last].shape
            return f"{last} of shape {shape}: no values make {name} with it the identity"
        module = last.rpartition("/")[0]
        module = last if module in ("", "params") else module.removeprefix("params/")
        inner = f"{name}(x)" if before == name else "x"
        return (
            f"{module}: {name} follows it, and {name}({inner}) is not {inner}; put the new layer "
            "on a residual branch, or pass depth=strategies.new_layers(), which changes outputs"
        )


def _base(array: Any) -> Any:
    """Returns the array that a view is part of, or None."""
    return getattr(array, "base", None)


def _name(eqn: Any, callers: Sequence[Any]) -> str:
    """Returns a readable name of an equation: that of the innermost elementwise call around it."""
    for caller in reversed(callers):
        name = caller.params.get("name")
        if isinstance(name, str) and len(caller.invars) == len(caller.outvars) == 1:
            if caller.invars[0].aval.shape == caller.outvars[0].aval.shape:
                return name
    return str(eqn.primitive.name)


def _tells(array: Any) -> bool:
    """Whether a value can be recognized by its entries."""
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fc" or array.size < 2:
        return False
    sizes = np.abs(array)
    return bool((sizes < _MASKED).all() and np.any(array != array.flat[0]))


def _close(array: Any, other: Any, size: float) -> bool:
    is_close = abs(array.flat[0] - other.flat[0]) <= 1e-6 * size  # rules out most arrays
    return is_close and bool(np.allclose(array, other, 1e-6, 1e-9 * size))
