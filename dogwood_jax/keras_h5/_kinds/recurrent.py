"""Keras's recurrent layers as Flax modules, with the gates that Flax's own cells have.

They are the cells of Flax where these compute the same. Keras lets every layer choose its
activations, leave biases out, and has two kinds of GRU, of which Flax has neither: with
``reset_after`` all its gates have a bias on the state as well.
"""

import operator
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dogwood_jax.keras_h5._kinds.activations import Activation, activation
from dogwood_jax.keras_h5._kinds.functions import MASKS, Function
from dogwood_jax.keras_h5._kinds.modules import Make, evaluated_only
from dogwood_jax.keras_h5._kinds.weight import Config


class Cell(nn.Module):
    """What recurrent cells of all kinds share: a Dense for each gate of inputs and of the state."""

    units: int
    activation: Activation
    gate: Activation
    use_bias: bool

    def of_inputs(self, gate: str, x: jax.Array) -> jax.Array:
        return nn.Dense(self.units, use_bias=self.use_bias, name=f"i{gate}")(x)

    def of_state(self, gate: str, h: jax.Array, use_bias: bool = False) -> jax.Array:
        return nn.Dense(self.units, use_bias=use_bias, name=f"h{gate}")(h)


class SimpleCell(Cell):
    """``activation(i(x) + h(state))``."""

    @nn.compact
    def __call__(self, carry: tuple[jax.Array], x: jax.Array) -> tuple[Any, jax.Array]:
        (h,) = carry
        h = self.activation(self.of_inputs("", x) + self.of_state("", h))
        return (h,), h


class LSTMCell(Cell):
    """The cell of Keras's LSTM; the carry is ``(h, c)``."""

    @nn.compact
    def __call__(self, carry: tuple[jax.Array, jax.Array], x: jax.Array) -> tuple[Any, jax.Array]:
        h, c = carry

        def gate(name: str, activate: Activation) -> jax.Array:
            of_inputs = nn.Dense(self.units, use_bias=False, name=f"i{name}")(x)
            y: jax.Array = activate(of_inputs + self.of_state(name, h, self.use_bias))
            return y

        c = gate("f", self.gate) * c + gate("i", self.gate) * gate("g", self.activation)
        h = gate("o", self.gate) * self.activation(c)
        return (h, c), h


class GRUCell(Cell):
    """The cell of Keras's GRU, with the reset gate before or after the recurrent product."""

    reset_after: bool

    @nn.compact
    def __call__(self, carry: tuple[jax.Array], x: jax.Array) -> tuple[Any, jax.Array]:
        (h,) = carry

        def of_state(gate: str, h: jax.Array) -> jax.Array:
            return self.of_state(gate, h, use_bias=self.use_bias and self.reset_after)

        r = self.gate(self.of_inputs("r", x) + of_state("r", h))
        z = self.gate(self.of_inputs("z", x) + of_state("z", h))
        reset = r * of_state("n", h) if self.reset_after else of_state("n", r * h)
        n = self.activation(self.of_inputs("n", x) + reset)
        h = z * h + (1 - z) * n
        return (h,), h


class Recurrent(nn.Module):
    """A cell applied step by step.

    Attributes:
        cell: what is applied; its variables are named ``cell``.
        states: how many arrays its state has.
        go_backwards: whether to begin with the last step; outputs are in the order of computation.
        return_sequences: whether to return the outputs of all steps or of the last one.
        return_state: whether to return the last state as well.
        zero_masked: whether outputs of masked steps are zero, not those of the step before.
    """

    cell: Cell
    states: int
    go_backwards: bool = False
    return_sequences: bool = False
    return_state: bool = False
    zero_masked: bool = False

    @nn.compact
    def __call__(self, x: Any, initial_state: Any = None, mask: jax.Array | None = None) -> Any:
        """Computes the outputs, and with ``return_state`` the states after them.

        Args:
            x: sequences ``[batch, step, feature]``, or a list of them and the initial state.
            initial_state: one array ``[batch, unit]``, or as many as there are.
            mask: booleans ``[batch, step]``; the state stays as it is where they are false.
        """
        if isinstance(x, list | tuple):  # as Keras 2 writes calls
            x, *initial_state = x
        zeros = jnp.zeros((x.shape[0], self.cell.units), self._dtype(x))
        if not isinstance(initial_state, jax.Array) and not initial_state:
            initial_state = (zeros,) * self.states
        elif not isinstance(initial_state, list | tuple):
            initial_state = (initial_state,)

        def step(cell: Cell, carry: Any, now: Any) -> tuple[Any, jax.Array]:
            (state, last), (x, counts) = carry, now
            new, y = cell(state, x)
            if counts is not None:
                new = tuple(jnp.where(counts[:, None], a, b) for a, b in zip(new, state))
                y = jnp.where(counts[:, None], y, zeros if self.zero_masked else last)
            return (new, y), y

        scan: Any = nn.scan(
            step,
            variable_broadcast=("params",),
            split_rngs={"params": False},
            in_axes=1,
            out_axes=1,
            reverse=self.go_backwards,
        )
        (state, last), ys = scan(self.cell, (tuple(initial_state), zeros), (x, mask))
        if self.go_backwards:
            ys = ys[:, ::-1]
        y = ys if self.return_sequences else last
        return (y, *state) if self.return_state else y

    def _dtype(self, x: jax.Array) -> Any:
        """Returns the dtype of the state, which a scan must not change."""
        return jnp.result_type(x.dtype, *jax.tree.leaves(self.variables) or [jnp.float32])


_CELLS: dict[str, tuple[type[Cell], int]] = {
    "SimpleRNN": (SimpleCell, 1),
    "GRU": (GRUCell, 1),
    "LSTM": (LSTMCell, 2),
}


def _recurrent(
    class_name: str, cell: Config, config: Config, name: str | None, deterministic: bool
) -> Recurrent:
    if config.get("time_major"):
        raise ValueError("time_major=True is not supported")
    evaluated_only(cell, deterministic, "dropout", "recurrent_dropout")
    kind, states = _CELLS[class_name]
    extra: dict[str, Any] = {"parent": None}  # the cell is named by the layer's attribute
    if kind is GRUCell:
        extra["reset_after"] = bool(cell.get("reset_after", False))
    # A layer of its own has a name, one inside another is named by the attribute there.
    named: dict[str, Any] = {"parent": None} if name is None else {"name": name}
    return Recurrent(
        kind(
            units=operator.index(cell["units"]),
            activation=activation(cell["activation"]),
            gate=activation(cell.get("recurrent_activation")),
            use_bias=cell.get("use_bias", True),
            **extra,
        ),
        states,
        bool(config.get("go_backwards")),
        bool(config.get("return_sequences")),
        bool(config.get("return_state")),
        bool(config.get("zero_output_for_mask")),
        **named,
    )


def _for_class(class_name: str) -> Make:
    return lambda config, *arguments: _recurrent(class_name, config, config, *arguments)


def _rnn(config: Config, name: str | None, deterministic: bool) -> Function:
    cell = config["cell"]
    class_name = cell["class_name"].removesuffix("Cell")
    if class_name not in _CELLS:
        raise ValueError(f"the cell {cell['class_name']} is not supported")
    return _recurrent(class_name, cell["config"], config, name, deterministic)


class Bidirectional(nn.Module):
    """Two recurrent layers, one of which begins with the last step, and their outputs merged."""

    forward_rnn: Recurrent
    backward_rnn: Recurrent
    merge_mode: str | None

    def __call__(self, x: Any, initial_state: Any = (), mask: jax.Array | None = None) -> Any:
        if isinstance(x, list | tuple):  # as Keras 2 writes calls
            x, *initial_state = x
        half = len(initial_state) // 2
        first, second = initial_state[:half], initial_state[half:]
        outputs = [
            self.forward_rnn(x, first or None, mask=mask),
            self.backward_rnn(x, second or None, mask=mask),
        ]
        states: list[Any] = []
        if self.forward_rnn.return_state:
            states = [state for _, *layer in outputs for state in layer]
            outputs = [output for output, *_ in outputs]
        forward, backward = outputs
        if self.forward_rnn.return_sequences:
            backward = backward[:, ::-1]
        merged = _MERGES[self.merge_mode](forward, backward)
        if self.merge_mode is None:
            return (*merged, *states)
        return (merged, *states) if states else merged


_MERGES: dict[str | None, Callable[[Any, Any], Any]] = {
    "concat": lambda a, b: jnp.concatenate([a, b], axis=-1),
    "sum": jnp.add,
    "mul": jnp.multiply,
    "ave": lambda a, b: (a + b) / 2,
    None: lambda a, b: (a, b),
}


def _bidirectional(config: Config, name: str | None, deterministic: bool) -> Function:
    forward = config["layer"]
    backward = config.get("backward_layer")
    if not backward:
        turned = {**forward["config"], "go_backwards": not forward["config"].get("go_backwards")}
        backward = {**forward, "config": turned}
    rnns: list[Any] = []
    for layer in (forward, backward):
        if layer["class_name"] not in (*_CELLS, "RNN"):
            raise ValueError(f"the layer {layer['class_name']} inside is not supported")
        inner = layer["config"]
        zero = bool(inner.get("return_sequences")) and config.get(MASKS) != "held"
        inner = {**inner, "zero_output_for_mask": zero}
        rnns.append(RECURRENT[layer["class_name"]](inner, None, deterministic))
    if config["merge_mode"] not in _MERGES:
        raise ValueError(f"the merge_mode {config['merge_mode']!r} is unknown")
    return Bidirectional(rnns[0], rnns[1], config["merge_mode"], name=name)


RECURRENT: dict[str, Make] = {
    **{class_name: _for_class(class_name) for class_name in _CELLS},
    "RNN": _rnn,
    "Bidirectional": _bidirectional,
}
