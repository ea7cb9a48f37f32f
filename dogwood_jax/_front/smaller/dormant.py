"""Find units that are hardly active, or least useful: ``dormant``, ``utility``."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from dogwood_jax._base.arguments import (
    FUNCTION,
    INTEGER,
    NUMBER,
    VARIABLES,
    WIDTHS,
    ArgumentKind,
    expect,
    expect_call,
    expect_given,
    takes_inputs,
)
from dogwood_jax._base.problems import listed
from dogwood_jax._base.trees import PyTree
from dogwood_jax._front.smaller.readings import UnitReadings, readings
from dogwood_jax._front.smaller.symmetry import expect_arrays_of, hidden
from dogwood_jax._widths.widths import Widths


@takes_inputs
def dormant(
    apply: Callable[..., Any],
    variables: PyTree,
    widths: Widths,
    *inputs: Any,
    tau: float = 0.025,
) -> dict[str, Array]:
    """Finds units that are hardly active compared with the others of their width, as in ReDo.

    The score of a unit is its mean absolute activation over the batch and all positions, divided by
    the mean of this value over all units of the width. A unit is dormant if its score is at most
    ``tau``; with ``tau=0``, if it is never active. The activation is the value that the next
    layer's weights are multiplied by, behind the activation function and a norm. If several layers
    read the units, or layers of a stack over which a loop runs, a unit must be dormant in each.

    ``dormant`` works under ``jax.jit`` and in loops, because shapes do not depend on values.

    Args:
        apply: the function of variables and inputs that was traced.
        variables: pytree of the network's arrays.
        widths: its widths, from ``trace`` or ``chain``.
        *inputs: a batch of inputs.
        tau: the largest score of a dormant unit.

    Returns:
        By name of the width, which units are dormant: booleans, ``[units]``. Left out are widths
        that are fixed or are dimensions of inputs or outputs, and widths that no product with
        weights reads, such as queries. Products within a branch or a loop of unknown length, or
        with kernels that are joined or reversed first, are not followed.

    Raises:
        TypeError: if arguments are of the wrong kind or swapped.
        ValueError: if the variables are of another network, ``tau`` is negative, or no width is
            left.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import dogwood_jax as dw
        >>> apply = lambda params, x: jax.nn.relu(x @ params["up"]) @ params["down"]
        >>> params = {"up": jnp.array([[1.0, -1.0, 2.0]]), "down": jnp.ones((3, 1))}
        >>> x = jnp.ones((5, 1))
        >>> dw.dormant(apply, params, dw.trace(apply, params, x), x)["up"].tolist()
        [False, True, False]

    Reference:
        Sokar, Agarwal, Castro and Evci, 2023, The Dormant Neuron Phenomenon in Deep Reinforcement
        Learning.
    """
    expect_given("dormant", tau=(NUMBER, tau))
    if not tau >= 0:
        raise ValueError(f"dormant: tau must be zero or positive, got {tau!r}")
    found = _read("dormant", apply, variables, widths, *inputs)

    def is_idle(reading: UnitReadings) -> Array:
        mean = jnp.mean(reading.activity, axis=-1, keepdims=True)
        idle = reading.activity <= tau * mean
        return jnp.all(idle, axis=tuple(range(idle.ndim - 1)))

    return {name: jnp.all(jnp.stack([*map(is_idle, each)]), 0) for name, each in found.items()}


def _read(
    caller: str, apply: Callable[..., Any], variables: PyTree, widths: Widths, *inputs: Any
) -> dict[str, list[UnitReadings]]:
    """Returns the readings of hidden units, after checking the arguments."""
    expect(
        f"{caller}(apply, variables, widths, *inputs)",
        apply=(FUNCTION, apply),
        variables=(VARIABLES, variables),
        widths=(WIDTHS, widths),
    )
    expect_call(caller, "apply", apply, variables, *inputs)
    units = hidden(widths)
    expect_arrays_of(caller, variables, units)
    found = readings(apply, variables, units, *inputs)
    if not found:
        raise ValueError(
            f"{caller}: no product with weights reads the units of a hidden width, so their "
            "activations are not known; print(widths) shows all widths"
        )
    return found


# Utility ------------------------------------------------------------------------------------------


class UtilityState(NamedTuple):
    """The state of ``utility`` after some steps, each field by name of the width.

    Attributes:
        utility: the running average of contributions: ``[units]``, at least float32.
        steps: the number of steps since a unit was new: ``[units]``, int32.
        due: the number of units that are due for replacement, with its fraction: float32.
    """

    utility: dict[str, Array]
    steps: dict[str, Array]
    due: dict[str, Array]


_STATE = ArgumentKind(
    "the state that utility.init returns", lambda value: isinstance(value, UtilityState)
)


class Utility(NamedTuple):
    """A pair of functions, returned by ``utility``.

    Attributes:
        init: takes the variables, or their shapes; returns the state.
        update: takes the state, the variables and a batch of inputs; returns which units to replace
            now, booleans ``[units]`` by name of the width, and the state with these units new.
    """

    init: Callable[[PyTree], UtilityState]
    update: Callable[..., tuple[dict[str, Array], UtilityState]]


def utility(
    apply: Callable[..., Any],
    widths: Widths,
    *,
    decay: float = 0.99,
    maturity: int = 100,
    share: float = 1e-4,
) -> Utility:
    """Chooses a small share of units to replace in each step, as continual backprop does.

    The contribution of a unit in a step is its mean absolute activation, times the sum of its
    absolute outgoing weights. Its utility is the running average of its contributions, with a bias
    correction as in Adam. If several layers read the unit, contributions add up. A unit is mature
    after more than ``maturity`` steps. In each step, a ``share`` of the mature units is replaced,
    the lowest utility first. Fractions of a unit add up over the steps.

    The caller replaces the units. The state assumes that this is done, and resets their steps.

    Args:
        apply: the function of variables and inputs that was traced.
        widths: its widths, from ``trace`` or ``chain``.
        decay: the share of the running average that is kept in a step.
        maturity: number of steps during which a new unit is not replaced.
        share: the share of mature units that are replaced in a step.

    Returns:
        Functions ``init(variables)`` and ``update(state, variables, *inputs)``, which work under
        ``jax.jit`` and in loops. They cover the same widths as ``dormant``. After a growth, start
        again with ``init``.

    Raises:
        TypeError: if arguments are of the wrong kind or swapped.
        ValueError: if a number is out of range. Both functions raise it if variables or state are
            of another network.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import dogwood_jax as dw
        >>> apply = lambda params, x: jax.nn.relu(x @ params["up"]) @ params["down"]
        >>> params = {"up": jnp.array([[1.0, -1.0, 2.0]]), "down": jnp.ones((3, 1))}
        >>> x = jnp.ones((5, 1))
        >>> tracked = dw.training.utility(apply, dw.trace(apply, params, x), maturity=1, share=0.4)
        >>> state = tracked.init(params)
        >>> for _ in range(2):
        ...     masks, state = tracked.update(state, params, x)
        >>> masks["up"].tolist(), state.steps["up"].tolist()
        ([False, True, False], [2, 0, 2])

    Reference:
        Dohare et al., 2024, Loss of Plasticity in Deep Continual Learning, Nature 632, algorithm 1;
        the bias correction is that of Dohare, Sutton and Mahmood, 2021, Continual Backprop.
    """
    expect("utility(apply, widths)", apply=(FUNCTION, apply), widths=(WIDTHS, widths))
    numbers = {"decay": (NUMBER, decay), "share": (NUMBER, share)}
    expect_given("utility", maturity=(INTEGER, maturity), **numbers)
    ranges = {
        "decay must be at least 0 and below 1": (decay, 0 <= decay < 1),
        "maturity must be 0 or more": (maturity, maturity >= 0),
        "share must be above 0 and at most 1": (share, 0 < share <= 1),
    }
    if wrong := [f"{what}, got {number!r}" for what, (number, fits) in ranges.items() if not fits]:
        raise ValueError(listed("utility: numbers out of range", wrong))
    units = hidden(widths)

    def init(variables: PyTree) -> UtilityState:
        expect_arrays_of("utility.init", variables, units)
        return UtilityState(
            {width.name: jnp.zeros(width.size) for width in units},
            {width.name: jnp.zeros(width.size, jnp.int32) for width in units},
            {width.name: jnp.zeros((), jnp.float32) for width in units},
        )

    def update(
        state: UtilityState, variables: PyTree, *inputs: Any
    ) -> tuple[dict[str, Array], UtilityState]:
        expect("utility.update(state, variables, *inputs)", state=(_STATE, state))
        sizes = {width.name: (width.size,) for width in units}
        if (came := jax.tree.map(jnp.shape, state.steps)) != sizes:
            raise ValueError(
                f"utility.update: the state has units {came}, expected {sizes}; start again with "
                "utility.init after a growth"
            )
        masks: dict[str, Array] = {}
        averages, steps, due = ({**each} for each in state)
        found = _read("utility.update", apply, variables, widths, *inputs)
        for name, each in found.items():
            contributions = [r.contribution.reshape(-1, len(steps[name])).sum(0) for r in each]
            average = decay * averages[name] + (1 - decay) * sum(contributions)
            count = steps[name] + 1
            corrected = average / (1 - decay ** count.astype(average.dtype))
            is_mature = count > maturity
            due[name] = due[name] + share * jnp.sum(is_mature)
            rank = jnp.argsort(jnp.argsort(jnp.where(is_mature, corrected, jnp.inf)))
            mask = is_mature & (rank < jnp.floor(due[name]))
            masks[name] = mask
            due[name] = (due[name] - jnp.sum(mask)).astype(jnp.float32)
            averages[name] = jnp.where(mask, 0, average).astype(averages[name].dtype)
            steps[name] = jnp.where(mask, 0, count)
        return masks, UtilityState(averages, steps, due)

    return Utility(init, update)
