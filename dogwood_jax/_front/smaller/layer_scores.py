"""Score layers by what a network would lose without them: ``layer_scores``."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.extend.core as jex
import numpy as np
from numpy.typing import NDArray

from dogwood_jax._base.arguments import expect_scalar
from dogwood_jax._base.trees import PyTree, leaves_by_path
from dogwood_jax._check.resize import in_sizes
from dogwood_jax._front.grow import grow
from dogwood_jax._front.plan import plan
from dogwood_jax._growth.grown_sizes import GrownSizes
from dogwood_jax._plan.depth.removed import layers_of
from dogwood_jax._program.dims import LAYERS
from dogwood_jax._program.left_out import without_layers
from dogwood_jax._program.primitives.new_sizes import CannotResize
from dogwood_jax._program.program import Program
from dogwood_jax._widths.trace import trace
from dogwood_jax._widths.widths import Width, Widths

Loss = Callable[..., Any]


def layer_scores(
    variables: PyTree, widths: Widths, loss: Loss, batch: Sequence[Any]
) -> dict[str, NDArray[np.float64]]:
    """Returns how much the loss of a batch rises without each layer, by name of the layers.

    Layers without which the loss cannot be computed are left out.

    Args:
        variables: the network's variables.
        widths: its widths.
        loss: function ``loss(variables, *batch)`` that returns a scalar.
        batch: arrays, or pytrees of them.

    Raises:
        ValueError: if the loss is not a scalar or not finite.
    """
    value = loss(variables, *batch)
    expect_scalar("saliency", value)
    whole = float(value)
    if not np.isfinite(whole):
        raise ValueError(f"saliency: the loss of the batch is {whole}, not finite")
    without, found = _Without(variables, widths, loss, batch), {}
    for several, count in _countable(widths):
        names = [name for name in several if name not in found]
        if len(names) < min(len(several), 2):
            continue
        losses = [without.layer(names, layer, count) for layer in range(count)]
        if None not in losses:
            found.update(dict.fromkeys(names, np.asarray(losses, np.float64) - whole))
    return found


def _countable(widths: Widths) -> Iterator[tuple[list[str], int]]:
    """Yields names of layers that may be removed, and how many there are.

    The arrays of a layer may have several names, such as ``up_0`` and ``down_0``.
    """
    alike: dict[Any, list[str]] = {}
    for name, layers in layers_of(widths).items():
        if name not in widths:
            yield [name], len(layers)
            alike.setdefault((layers.start, len(layers)), []).append(name)
    for (_, count), names in alike.items():
        if len(names) > 1:
            yield names, count
    for width in widths.values():
        if width.fixed == LAYERS and width.size > 1:
            yield [width.name], width.size


class _Without:
    """The loss of a batch without some layers.

    The loss is called with the variables of the smaller network. If it does not take them, the
    loss's program is run without the layer, if that is possible.
    """

    def __init__(self, variables: PyTree, widths: Widths, loss: Loss, batch: Sequence[Any]) -> None:
        self._variables, self._widths, self._loss, self._batch = variables, widths, loss, batch
        self._layers = layers_of(widths)
        self._program: Program | None = None
        self._of_loss: Widths | None = None
        self._resized: dict[str, Any] = {}

    def layer(self, names: Sequence[str], layer: int, count: int) -> float | None:
        """Returns the loss without a layer, or None if it cannot be computed.

        Args:
            names: the names of the layers.
            layer: the layer that is left out.
            count: how many layers there are.
        """
        rest = [other for other in range(count) if other != layer]
        if names[0] in self._widths:
            return self._of_stack(self._widths[names[0]], rest)
        try:
            growth = plan(self._widths, keep=dict.fromkeys(names, rest))
            found = self._called(grow(self._variables, growth))
        except ValueError:
            found = None
        if found is not None:
            return found
        if self._program is None:
            self._program = Program(self._loss, self._variables, self._batch)
        first, *others = (self._layers[name] for name in names)
        program = without_layers(self._program, first.beside(others), [layer])
        if program is None:
            return None
        return self._run(program.jaxpr, program.arguments, self._variables)

    def _of_stack(self, width: Width, rest: Sequence[int]) -> float | None:
        smaller = grow(self._variables, plan(self._widths, keep={width.name: rest}, check=False))
        found = self._called(smaller)
        if found is not None:
            return found
        if width.name not in self._resized:
            self._resized[width.name] = self._program_for(width, len(rest))
        program, arguments = self._resized[width.name]
        return None if program is None else self._run(program, arguments, smaller)

    def _program_for(self, width: Width, count: int) -> tuple[Any, Any]:
        """Returns the program of the loss for fewer layers of a stack, with its arguments."""
        if self._of_loss is None:
            self._of_loss = trace(self._loss, self._variables, *self._batch)
        place = width.occurrences[0]
        name = self._of_loss.of(place.path, place.axis).name
        network = self._of_loss.network
        assert network is not None
        jaxpr = in_sizes(network.traced, GrownSizes(self._of_loss, {name: count}))
        if isinstance(jaxpr, CannotResize):
            return None, None
        return jaxpr, network.traced.program.arguments

    def _called(self, smaller: PyTree) -> float | None:
        """Returns the loss of a smaller network, if the loss takes its variables."""
        try:
            return float(self._loss(smaller, *self._batch))
        except Exception:  # a loss with a fixed number of layers may raise anything
            return None

    def _run(self, program: jex.ClosedJaxpr, arguments: Any, variables: PyTree) -> float:
        """Runs a program of the loss, equation by equation, to avoid compiling each program."""
        leaves, inputs = leaves_by_path(variables), iter(jax.tree.leaves(tuple(self._batch)))
        values = [next(inputs) if path is None else leaves[path] for path, _ in arguments]
        return float(jex.jaxpr_as_fun(program)(*values)[0])
