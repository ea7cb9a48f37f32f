"""Command line for Keras files.

python -m dogwood_jax.keras_h5 inspect model.h5
python -m dogwood_jax.keras_h5 inspect model.h5 --widths
python -m dogwood_jax.keras_h5 widen model.h5 --layer dense_1=128 --out wider.h5
python -m dogwood_jax.keras_h5 convert model.h5 model.weights.h5
"""

import argparse
import difflib
import functools
import math
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import optax

import dogwood_jax as dw
from dogwood_jax._base.command import WholeNames, answered, show
from dogwood_jax._base.tables import table
from dogwood_jax._base.trees import leaves_by_path
from dogwood_jax._widths.naming import module_of
from dogwood_jax.keras_h5 import (
    KerasFileError,
    inspect,
    load,
    load_model,
    load_optimizer,
    save,
)
from dogwood_jax.keras_h5._models.shapes import example_inputs

_STRATEGIES = ("zero_outgoing", "replicate", "tile", "zeros", "random")

# Advice of error texts in terms of Python, and the same advice in terms of options.
_OPTIONS = {
    r"pass interface=True": "pass --interface",
    r"strategies\.(\w+)\(\)": r"--strategy \1",
    r"say which units stay, keep=.*?, or use dw.narrow": (
        "this command has no option to remove units; in Python, dw.narrow does"
    ),
    r"pass key=": "pass --seed",
    r"pass (like|layout|sizes|target|target_apply|fresh|limit)=": r"in Python, pass \1=",
}


_FORCE = "overwrite an existing file"

# The Optax transformation of each state class that ``load_optimizer`` returns.
_OPTIMIZERS = {
    optax.ScaleByAdamState: optax.scale_by_adam,
    optax.ScaleByRmsState: optax.scale_by_rms,
    optax.ScaleByRssState: optax.scale_by_rss,
    optax.TraceState: functools.partial(optax.trace, 0.9),
}


def main(arguments: Sequence[str] | None = None) -> str:
    """Runs one command and returns its output."""
    options = _parser().parse_args(arguments)

    def command() -> str:
        try:
            return str(options.command(options))
        except ValueError as error:
            raise ValueError(_in_terms_of_options(str(error))) from None

    return answered("keras_h5", command)


def _parser() -> argparse.ArgumentParser:
    parser = WholeNames(
        "python -m dogwood_jax.keras_h5", description="Inspects, widens and converts Keras files."
    )
    commands = parser.add_subparsers(required=True, metavar="command")

    command = commands.add_parser("inspect", help="list layers, shapes and dtypes")
    command.add_argument("path")
    command.add_argument("--widths", action="store_true", help="list the widths that widen accepts")
    command.set_defaults(command=_inspect)

    command = commands.add_parser("widen", help="add units without changing predictions")
    command.add_argument("path")
    command.add_argument(
        "--layer",
        action="append",
        required=True,
        metavar="NAME=UNITS",
        help="a name from inspect --widths; several separated by commas, or option repeated",
    )
    command.add_argument(
        "--interface", action="store_true", help="let inputs and outputs of the model grow too"
    )
    command.add_argument("--out", required=True, help="the file to write, in the layout of path")
    command.add_argument(
        "--strategy",
        choices=_STRATEGIES,
        help="for all these layers (default: one that keeps predictions, chosen for each layer)",
    )
    command.add_argument("--seed", type=int, default=0, help="seed of new weights (default: 0)")
    command.add_argument("--force", action="store_true", help=_FORCE)
    command.set_defaults(command=_widen)

    command = commands.add_parser(
        "convert",
        help="write weights in another layout",
        description="Writes the weights in the layout that Keras expects for the new name: that of "
        "Keras 3 for .weights.h5, an archive for .keras, otherwise that of Keras 1 and 2.",
    )
    command.add_argument("path")
    command.add_argument("out")
    command.add_argument("--force", action="store_true", help=_FORCE)
    command.set_defaults(command=_convert)
    return parser


def _inspect(options: argparse.Namespace) -> str:
    if not options.widths:
        return str(inspect(options.path))
    _, _, widths = _traced(options.path)
    rows = [("width", "units", "needs", "also in")]
    for width in _growable(widths):
        layers = dict.fromkeys(module_of(occurrence.path) for occurrence in width.occurrences)
        others = [layer for layer in layers if layer != width.name]
        needs = "--interface" if width.interface else ""
        rows.append((width.name, str(width.size), needs, ", ".join(others)))
    return table(rows)


def _growable(widths: dw.Widths) -> list[dw.typing.Width]:
    """Returns the widths that can grow without changing a prediction."""
    return [width for width in widths.values() if not width.fixed]


def _widen(options: argparse.Namespace) -> str:
    _refuse_to_overwrite(options)
    named = [part for option in options.layer for part in option.split(",")]
    sizes = dict(map(_size, named))
    if len(sizes) < len(named):
        raise ValueError(f"--layer {' '.join(options.layer)}: expected every layer once")
    apply, variables, widths = _traced(options.path)
    if unknown := [name for name in sizes if name not in widths]:
        names = [width.name for width in _growable(widths)]
        close = difflib.get_close_matches(unknown[0], names, 5, 0) if len(names) > 20 else names
        raise ValueError(
            f"no width {', '.join(map(repr, unknown))}; inspect --widths lists all: "
            f"{', '.join(close)}{', ...' if len(close) < len(names) else ''}"
        )
    strategy = getattr(dw.strategies, options.strategy)() if options.strategy else None
    growth = dw.plan(widths, sizes, strategy=strategy, interface=options.interface)
    _check_memory(variables, growth)
    wide = dw.grow(variables, growth, key=jax.random.key(options.seed))
    checked = _checked(apply, variables, wide, growth)
    state, kept = _grown_state(options.path, growth)
    save(options.out, wide, like=options.path, opt_state=state)
    sizes_now = ", ".join(f"{name} has {units} units" for name, units in sizes.items())
    return "\n".join(filter(None, (f"{options.out}: {sizes_now}", checked, kept)))


def _checked(apply: Any, variables: Any, wide: Any, growth: dw.Growth) -> str:
    """Returns a line on whether predictions stay the same, and how this was checked."""
    if not all(change.strategy.preserving for change in growth.changes):
        strategy = growth.changes[0].strategy
        return f"predictions change, because --strategy {strategy} does not keep them"
    if apply is None:
        return "not checked: a weights file does not describe what the model computes"
    inputs = growth.widths.network.inputs if growth.widths.network else ()
    found = dw.verify(apply, variables, apply, wide, *inputs, growth=growth)
    return f"predictions stay: {found} for random inputs"


def _grown_state(path: str, growth: dw.Growth) -> tuple[Any, str]:
    """Returns the file's optimizer state for the wider model or ``None``, and a line about it."""
    try:
        state = load_optimizer(path)
    except KerasFileError as error:
        has_none = inspect(path).model is None or "found none" in str(error)
        return None, "" if has_none else f"the optimizer starts from scratch: {error}"
    tx = _OPTIMIZERS[type(state)]()
    # second_moment= silences the advice to use dw.growable: Keras has one count of steps.
    return dw.grow_opt_state(state, growth, tx, second_moment="zeros"), (
        "the optimizer state is kept; new weights take larger steps at first"
    )


def _traced(path: str) -> tuple[Any, Mapping[str, Any], dw.Widths]:
    """Returns the function of a file's model, its variables and their widths.

    The function of a weights file is ``None``.
    """
    if inspect(path).model is None:
        weights: Mapping[str, Any] = load(path)
        return None, weights, dw.chain(weights, _dense_layers(weights))
    module, variables = load_model(path)
    inputs = example_inputs(module)
    if inputs is None:
        raise ValueError(
            "the model's configuration does not contain the shape of its inputs; use dw.trace "
            "with the module that load_model returns, and inputs of your own"
        )
    return module.apply, variables, dw.trace(module.apply, variables, *inputs)


def _check_memory(variables: Mapping[str, Any], growth: dw.Growth) -> None:
    """Raises if the arrays and the file made from them do not fit into memory."""
    itemsizes = {path: leaf.dtype.itemsize for path, leaf in leaves_by_path(variables).items()}
    size = sum(math.prod(shape) * itemsizes[path] for path, shape in growth.shapes.items())
    if "SC_PHYS_PAGES" in getattr(os, "sysconf_names", ()):  # not on Windows
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        if 2 * size > memory:
            raise ValueError(
                f"the wider weights take {size:,} bytes, and writing them takes as many again; "
                f"this machine has {memory:,}; choose smaller sizes"
            )


def _dense_layers(variables: Mapping[str, Any]) -> list[str]:
    """Returns the layers of a weights file; raises unless all are Dense, and so form a chain."""
    layers = [name for name, layer in variables["params"].items() if layer]
    are_dense = all({*layer} <= {"kernel", "bias"} for layer in variables["params"].values())
    if len(variables) > 1 or not are_dense:
        raise ValueError(
            "the file holds weights but no model, so the connections between layers are unknown; "
            "expected only Dense layers; widen a whole model (model.save), or use dw.trace with "
            "a module of your own"
        )
    return layers


def _size(option: str) -> tuple[str, int]:
    name, _, units = option.rpartition("=")
    if not name or not units.isdecimal():
        raise ValueError(f"--layer {option}: expected a name and a number, as in dense_1=128")
    return name, int(units)


def _convert(options: argparse.Namespace) -> str:
    _refuse_to_overwrite(options)
    names = {".weights.h5": "weights.h5", ".keras": "keras"}
    layout = next((names[end] for end in names if options.out.endswith(end)), "h5")
    save(options.out, load(options.path), like=options.path, layout=layout)
    return f"{options.out}: layout {layout}"


def _refuse_to_overwrite(options: argparse.Namespace) -> None:
    source, target = Path(options.path).resolve(), Path(options.out).resolve()
    inside = source in target.parents  # the folder of an archive
    if inside or target.exists() and os.path.samefile(source, target):
        raise ValueError(
            f"{options.out}: is the input, which is never overwritten; choose another name"
        )
    if target.exists() and not options.force:
        raise ValueError(f"{options.out}: already exists; --force overwrites it")


def _in_terms_of_options(message: str) -> str:
    for advice, option in _OPTIONS.items():
        message = re.sub(advice, option, message)
    return message


if __name__ == "__main__":
    show(main(sys.argv[1:]))
