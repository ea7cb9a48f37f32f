"""Keras's recurrent layers as Flax modules, with the gates of Flax's own cells.

Their parameters are those of Flax's cells, if the cells compute the same. In Keras, every layer can
also choose its activations and leave out biases. Flax has neither of Keras's two kinds of GRU: with
``reset_after``, all gates have a bias on the state as well.
"""

import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dogwood_jax.keras_h5._kinds.activations import Activation, activation
from dogwood_jax.keras_h5._kinds.kind import (
    KERAS_1,
    KINDS,
    Config,
    Function,
    Kind,
    Params,
    Shape,
    Weight,
    kind_of,
    layout,
)
from dogwood_jax.keras_h5._kinds.masking import MASKS
from dogwood_jax.keras_h5._kinds.nested import inside, weights_of_layer
from dogwood_jax.keras_h5._kinds.options import evaluated_only
from dogwood_jax.keras_h5._kinds.weight import last_axis, path, plain, split

BY_GATES = {1: "SimpleRNN", 3: "GRU", 4: "LSTM"}  # classes by their number of gates


class Cell(nn.Module):
    """The base of all recurrent cells: a Dense for each gate on inputs and on the state."""

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


class StackedCells(nn.Module):
    """Cells in a row: each cell reads the outputs of the cell before it. The carry has all states.

    Attributes:
        cells: the cells in their order; their variables are named ``cells_0``, ``cells_1``.
        states: number of arrays in the state of each cell.
    """

    cells: tuple[Cell, ...]
    states: tuple[int, ...]

    def __call__(self, carry: tuple[jax.Array, ...], x: jax.Array) -> tuple[Any, jax.Array]:
        new: list[jax.Array] = []
        for cell, count in zip(self.cells, self.states):
            state, x = cell(carry[len(new) : len(new) + count], x)
            new += state
        return tuple(new), x


class Recurrent(nn.Module):
    """A cell applied step by step.

    Attributes:
        cell: the cell; its variables are named ``cell``.
        states: the sizes of the arrays of its state. The last size is also that of the output.
        go_backwards: whether to begin with the last step; outputs are in the order of computation.
        return_sequences: whether to return the outputs of all steps or of the last step.
        return_state: whether to return the last state as well.
        zero_masked: whether outputs of masked steps are zero, rather than those of the step before.
    """

    cell: Cell | StackedCells
    states: tuple[int, ...]
    go_backwards: bool = False
    return_sequences: bool = False
    return_state: bool = False
    zero_masked: bool = False

    @nn.compact
    def __call__(self, x: Any, initial_state: Any = None, mask: jax.Array | None = None) -> Any:
        """Computes the outputs, and with ``return_state`` also the last states.

        Args:
            x: sequences ``[batch, step, feature]``, or a list of them and the initial state.
            initial_state: one array ``[batch, unit]``, or a list of one for each state.
            mask: booleans ``[batch, step]``; the state does not change where they are false.
        """
        if isinstance(x, list | tuple):  # as Keras 2 writes calls
            x, *initial_state = x
        *_, zeros = none = [jnp.zeros((x.shape[0], n), self._dtype(x)) for n in self.states]
        initial_state = jax.tree.leaves(initial_state) or none

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
        """Returns the dtype of the state, which must stay the same in a scan."""
        return jnp.result_type(x.dtype, *jax.tree.leaves(self.variables) or [jnp.float32])


_CELLS: dict[str, tuple[type[Cell], int]] = {
    "SimpleRNN": (SimpleCell, 1),
    "GRU": (GRUCell, 1),
    "LSTM": (LSTMCell, 2),
}


def _cell(class_name: str, config: Config, deterministic: bool) -> tuple[Cell, int]:
    """Returns a cell and the number of arrays in its state."""
    evaluated_only(config, deterministic, "dropout", "recurrent_dropout")
    kind, states = _CELLS[class_name]
    extra: dict[str, Any] = {"parent": None}  # the cell is named by the layer's attribute
    if kind is GRUCell:
        extra["reset_after"] = bool(config.get("reset_after", False))
    cell = kind(
        units=operator.index(config["units"]),
        activation=activation(config["activation"]),
        gate=activation(config.get("recurrent_activation")),
        use_bias=config.get("use_bias", True),
        **extra,
    )
    return cell, states


def _recurrent(
    cell: Cell | StackedCells, states: tuple[int, ...], config: Config, name: str | None
) -> Recurrent:
    if config.get("time_major"):
        raise ValueError("time_major=True is not supported")
    # An outer layer has a name; an inner layer is named by the attribute that holds it.
    named: dict[str, Any] = {"parent": None} if name is None else {"name": name}
    return Recurrent(
        cell,
        states,
        bool(config.get("go_backwards")),
        bool(config.get("return_sequences")),
        bool(config.get("return_state")),
        bool(config.get("zero_output_for_mask")),
        **named,
    )


def _layer(class_name: str, config: Config, name: str | None, deterministic: bool) -> Function:
    cell, states = _cell(class_name, config, deterministic)
    return _recurrent(cell, (cell.units,) * states, config, name)


def _gates(sources: str, gates: str, weight: str) -> tuple[str, ...]:
    return tuple(f"params/cell/{source}{gate}/{weight}" for source in sources for gate in gates)


def _gated_kernels(order: str) -> list[Weight]:
    return [
        split("cell/kernel", *_gates("i", order, "kernel")),
        split("cell/recurrent_kernel", *_gates("h", order, "kernel")),
    ]


def _gate_by_gate(gates: str, order: str, bias: str) -> list[Weight]:
    """Returns the weights of Keras 1: one array for each gate, in the order of Keras 1."""
    sources = {"W": ("i", "kernel"), "U": ("h", "kernel"), "b": (bias, "bias")}
    return [
        plain(f"cell/{name}_{gate}", f"params/cell/{source}{own}/{weight}")
        for gate, own in zip(gates, order)
        for name, (source, weight) in sources.items()
    ]


def _lstm(config: Config) -> list[Weight]:
    if KERAS_1 in config:
        return _gate_by_gate("icfo", "igfo", "h")
    order = "ifgo"  # Keras calls g c
    weights = [*_gated_kernels(order), split("cell/bias", *_gates("h", order, "bias"))]
    return weights if config.get("use_bias", True) else weights[:2]


def _gru(config: Config) -> list[Weight]:
    if KERAS_1 in config:
        return _gate_by_gate("zrh", "zrn", "i")
    order = "zrn"  # Keras calls n h
    kernels = _gated_kernels(order)
    bias = split("cell/bias", *_gates("i", order, "bias"))
    if config.get("reset_after", False):
        # [2, 3 * units]: for inputs, for the state. Flax's own cell has only their sum.
        bias = Weight(
            "cell/bias",
            tuple(map(path, _gates("ih", order, "bias"))),
            lambda array: np.split(array.reshape(-1), 6),
            lambda arrays: np.concatenate(arrays).reshape(2, -1),
        )
    return [*kernels, bias] if config.get("use_bias", True) else kernels


def _simple_rnn(config: Config) -> list[Weight]:
    places = {"kernel": "i/kernel", "recurrent_kernel": "h/kernel", "bias": "i/bias"}
    weights = [plain(f"cell/{name}", f"params/cell/{place}") for name, place in places.items()]
    return weights if config.get("use_bias", True) else weights[:2]


def _axes(gates: int, config: Config) -> dict[str, str]:
    bias = f"{gates}*units"
    if gates == 3 and config.get("reset_after", True):  # the default depends on the version
        bias = "2 3*units" if "reset_after" in config else "..."
    return {
        "cell/kernel": f"in {gates}*units",
        "cell/recurrent_kernel": f"units {gates}*units",
        "cell/bias": bias,
    }


def cell_told(shapes: Mapping[str, Shape]) -> tuple[str | None, Config | None]:
    """Returns the class and the config of a cell by the shapes of its arrays, or ``None``."""
    kernels = [shapes.get(f"cell/{i}", ()) for i in (0, 1)]
    if any(len(shape) != 2 for shape in kernels) or not kernels[1][0]:
        return None, None
    bias = shapes.get("cell/2")
    class_name = BY_GATES.get(kernels[1][1] // kernels[1][0])
    config = {"use_bias": bias is not None}
    if class_name == "GRU" and bias is not None:
        config["reset_after"] = len(bias) == 2
    return class_name, None if class_name is None else config


def _channels(config: Config, params: Params) -> int:
    gate = next(name for name in sorted(params["cell"]) if name.startswith("i"))
    return int(params["cell"][gate]["kernel"].shape[0])


def _mask(config: Config, masks: list[Any]) -> Any:
    return masks[0] if config.get("return_sequences") else None


_KEYWORDS = {"mask", "initial_state"}


def _cells_of(cell: Config) -> list[tuple[str, Config]]:
    """Returns class and config of a cell, or of each cell in a stack."""
    stacked = cell["class_name"] == "StackedRNNCells"
    cells = cell["config"]["cells"] if stacked else [cell]
    return [(one["class_name"].removesuffix("Cell"), one["config"]) for one in cells]


def _rnn(config: Config, name: str | None, deterministic: bool) -> Function:
    described = _cells_of(config["cell"])
    if unknown := [class_name for class_name, _ in described if class_name not in _CELLS]:
        raise ValueError(f"the cell {unknown[0]} is not supported")
    cells, counts = zip(*(_cell(*one, deterministic) for one in described))
    sizes = tuple(cell.units for cell, count in zip(cells, counts) for _ in range(count))
    stacked = config["cell"]["class_name"] == "StackedRNNCells"
    cell = StackedCells(cells, counts, parent=None) if stacked else cells[0]
    return _recurrent(cell, sizes, config, name)


_GROUPS = {"SimpleRNN": "simple_rnn_cell", "GRU": "gru_cell", "LSTM": "lstm_cell"}


def _rnn_weights(config: Config) -> list[Weight]:
    cell = config["cell"]
    if cell["class_name"] != "StackedRNNCells":
        return layout(cell["class_name"].removesuffix("Cell"), cell["config"])
    cells = _cells_of(cell)
    if not _are_known(cells):
        return []  # their arrays keep their names in the file
    weights: list[Weight] = []
    used: dict[str, int] = {}
    for number, (class_name, details) in enumerate(cells):
        group = _GROUPS.get(class_name, class_name)
        used[group] = used.get(group, -1) + 1
        group += f"_{used[group]}" if used[group] else ""
        for weight in layout(class_name, details):
            rest = weight.name.removeprefix("cell/")
            places = tuple(
                (place[0], "cell", f"cells_{number}", *place[2:]) for place in weight.places
            )
            weights.append(replace(weight, name=f"cell/cells/{group}/{rest}", places=places))
    return weights


def _are_known(cells: Iterable[tuple[str, Config]]) -> bool:
    return all(class_name in _CELLS for class_name, _ in cells)


def _stacked_sizes(config: Config, params: Params) -> dict[str, Any]:
    described = _cells_of({"class_name": "StackedRNNCells", "config": config})
    if not _are_known(described):
        return {}
    cells = []
    for number, (one, (class_name, details)) in enumerate(zip(config["cells"], described)):
        sizes = kind_of(f"{class_name}Cell").sizes
        inner = {"cell": params["cell"][f"cells_{number}"]}
        kept = {key: value for key, value in one.items() if key != "build_config"}
        cells.append({**kept, "config": {**details, **(sizes(details, inner) if sizes else {})}})
    return {"cells": cells}


def _rnn_told(shapes: Mapping[str, Shape]) -> Config | None:
    kind, cell = cell_told(shapes)
    return None if kind is None else {"cell": {"class_name": f"{kind}Cell", "config": cell}}


class Bidirectional(nn.Module):
    """Two recurrent layers, forward and backward in time, whose outputs are merged."""

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
            raise ValueError(f"the inner layer {layer['class_name']} is not supported")
        inner = layer["config"]
        zero = bool(inner.get("return_sequences")) and config.get(MASKS) != "held"
        inner = {**inner, "zero_output_for_mask": zero}
        make = KINDS[layer["class_name"]].module
        rnns.append(make(inner, None, deterministic) if make else None)
    if config["merge_mode"] not in _MERGES:
        raise ValueError(f"the merge_mode {config['merge_mode']!r} is unknown")
    return Bidirectional(rnns[0], rnns[1], config["merge_mode"], name=name)


def _both_weights(config: Config) -> list[Weight]:
    forward = config["layer"]
    backward = config.get("backward_layer") or forward
    return [
        *inside("forward_layer", "forward_rnn", weights_of_layer(forward)),
        *inside("backward_layer", "backward_rnn", weights_of_layer(backward)),
    ]


def _both_told(shapes: Mapping[str, Shape]) -> Config | None:
    ways = [
        cell_told({n.partition("/")[2]: s for n, s in shapes.items() if n.startswith(way)})
        for way in ("forward_layer/", "backward_layer/")
    ]
    if any(kind is None for kind, _ in ways):
        return None
    layers = ({"class_name": kind, "config": config} for kind, config in ways)
    return dict(zip(("layer", "backward_layer"), layers))


def _mask_of_both(config: Config, masks: list[Any]) -> Any:
    inner = config["layer"]["config"]
    if config["merge_mode"] is None:
        raise ValueError("a mask and merge_mode=None together are not supported")
    return _mask(inner, masks)


for _count, _class, _weights, _state in (
    (1, "SimpleRNN", _simple_rnn, "h"),
    (3, "GRU", _gru, "hn"),
    (4, "LSTM", _lstm, "hg"),
):
    _sizes = last_axis("units", "cell", _state, "kernel")
    KINDS[_class] = Kind(
        module=partial(_layer, _class),
        keywords=_KEYWORDS,
        weights=_weights,
        axes=partial(_axes, _count),
        told=lambda shapes: cell_told(shapes)[1],
        sizes=_sizes,
        reads=_channels,
        on_mask=_mask,
        takes_masks="first",
    )
    KINDS[f"{_class}Cell"] = Kind(sizes=_sizes)
KINDS["StackedRNNCells"] = Kind(sizes=_stacked_sizes)
KINDS["CuDNNLSTM"] = Kind(weights=_lstm)
KINDS["RNN"] = Kind(
    module=_rnn,
    keywords=_KEYWORDS,
    weights=_rnn_weights,
    told=_rnn_told,
    holds={"cell": ""},
    on_mask=_mask,
    takes_masks="first",
)
KINDS["Bidirectional"] = Kind(
    module=_bidirectional,
    keywords=_KEYWORDS,
    weights=_both_weights,
    told=_both_told,
    holds={"layer": "forward_rnn", "backward_layer": "backward_rnn"},
    reads=lambda config, params: _channels({}, params["forward_rnn"]),
    on_mask=_mask_of_both,
    takes_masks="first",
    masks_in=lambda version: "held" if version < (2, 4) else None,
)
