"""Keras's files on the command line.

python -m dogwood_jax.keras_h5 inspect model.h5
python -m dogwood_jax.keras_h5 inspect model.h5 --widths
python -m dogwood_jax.keras_h5 widen model.h5 --layer dense_1=128 --out wider.h5
python -m dogwood_jax.keras_h5 convert model.h5 model.weights.h5
"""

import argparse
import difflib
import math
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

import dogwood_jax as dw
from dogwood_jax._base.command import WholeNames, answered, show
from dogwood_jax._base.tables import table
from dogwood_jax._base.trees import leaves_by_path
from dogwood_jax.keras_h5 import inspect, load, load_model, save
from dogwood_jax.keras_h5._models.shapes import example_inputs

_STRATEGIES = ("zero_outgoing", "replicate", "tile", "zeros", "random")

# What errors advise in Python, and how it is said here.
_OPTIONS = {
    r"pass interface=True": "pass --interface",
    r"strategies\.(\w+)\(\)": r"--strategy \1",
    r"pass (like|layout|sizes|target|target_apply|fresh|limit)=": r"in Python, pass \1=",
}


def main(arguments: Sequence[str] | None = None) -> str:
    """Runs one command and returns what it has to say."""
    options = _parser().parse_args(arguments)

    def command() -> str:
        try:
            return str(options.command(options))
        except ValueError as error:
            raise ValueError(_in_terms_of_options(str(error))) from None

    return answered("keras_h5", command)


def _parser() -> argparse.ArgumentParser:
    parser = WholeNames(
        "python -m dogwood_jax.keras_h5", description="Keras's files: look into, widen, convert."
    )
    commands = parser.add_subparsers(required=True, metavar="command")

    command = commands.add_parser("inspect", help="list layers, shapes and dtypes")
    command.add_argument("path")
    command.add_argument("--widths", action="store_true", help="list what widen can widen instead")
    command.set_defaults(command=_inspect)

    command = commands.add_parser("widen", help="add units without changing a prediction")
    command.add_argument("path")
    command.add_argument(
        "--layer",
        action="append",
        required=True,
        metavar="NAME=UNITS",
        help="a name that inspect --widths lists; several with commas, or repeated",
    )
    command.add_argument(
        "--interface", action="store_true", help="let inputs and outputs of the model grow, too"
    )
    command.add_argument("--out", required=True, help="the file to write, in the layout of path")
    command.add_argument(
        "--strategy",
        choices=_STRATEGIES,
        help="of all these layers (default: what keeps predictions, for each of them)",
    )
    command.add_argument("--seed", type=int, default=0, help="of new random weights (default: 0)")
    command.set_defaults(command=_widen)

    command = commands.add_parser(
        "convert",
        help="write weights in another layout",
        description="Writes the weights in the layout that the new name has in Keras: those of "
        "Keras 3 for .weights.h5, otherwise those of Keras 1 and 2.",
    )
    command.add_argument("path")
    command.add_argument("out")
    command.set_defaults(command=_convert)
    return parser


def _inspect(options: argparse.Namespace) -> str:
    if not options.widths:
        return str(inspect(options.path))
    _, widths = _traced(options.path)
    rows = [("width", "units", "needs")]
    for width in _growable(widths):
        rows.append((width.name, str(width.size), "--interface" if width.interface else ""))
    return table(rows)


def _growable(widths: dw.Widths) -> list[dw.Width]:
    """Returns the widths that can grow without changing a prediction."""
    return [
        width
        for width in widths.values()
        if not width.fixed and (not width.hazards or any(r.learns for r in width.recipes))
    ]


def _widen(options: argparse.Namespace) -> str:
    _refuse_to_overwrite(options.path, options.out)
    named = [part for option in options.layer for part in option.split(",")]
    sizes = dict(map(_size, named))
    if len(sizes) < len(named):
        raise ValueError(f"--layer {' '.join(options.layer)}: expected every layer once")
    variables, widths = _traced(options.path)
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
    key = jax.random.key(options.seed)
    save(options.out, dw.grow(variables, growth, key=key), like=options.path)
    return f"{options.out}: {', '.join(f'{name} has {n} units' for name, n in sizes.items())}"


def _traced(path: str) -> tuple[Mapping[str, Any], dw.Widths]:
    """Returns the variables of a file and their widths."""
    if inspect(path).model is None:
        variables: Mapping[str, Any] = load(path)
        return variables, dw.chain(variables, _dense_layers(variables))
    module, variables = load_model(path)
    inputs = example_inputs(module)
    if inputs is None:
        raise ValueError(
            "the model's configuration does not say the shape of its inputs; use dw.trace "
            "with the module that load_model returns, and inputs of your own"
        )
    return variables, dw.trace(module.apply, variables, *inputs)


def _check_memory(variables: Mapping[str, Any], growth: dw.Growth) -> None:
    """Raises if the arrays, and the file that is made of them, are more than memory can hold."""
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
    """Returns the layers of a file of weights, all of which must be Dense for it to be a chain."""
    layers = [name for name, layer in variables["params"].items() if layer]
    if len(variables) > 1:
        raise ValueError(
            "expected Dense layers alone, because weights do not say how layers are connected; "
            "widen a whole model (model.save), or use dw.trace with a module of your own"
        )
    return layers


def _size(option: str) -> tuple[str, int]:
    name, _, units = option.rpartition("=")
    if not name or not units.isdecimal():
        raise ValueError(f"--layer {option}: expected a name and a number, as in dense_1=128")
    return name, int(units)


def _convert(options: argparse.Namespace) -> str:
    _refuse_to_overwrite(options.path, options.out)
    names = {".weights.h5": "weights.h5", ".keras": "keras"}
    layout = next((names[end] for end in names if options.out.endswith(end)), "h5")
    save(options.out, load(options.path), like=options.path, layout=layout)
    return f"{options.out}: layout {layout}"


def _refuse_to_overwrite(path: str, out: str) -> None:
    source, target = Path(path).resolve(), Path(out).resolve()
    inside = source in target.parents  # the folder of an archive
    if inside or target.exists() and os.path.samefile(source, target):
        raise ValueError(f"{out}: is the input, which is never overwritten; choose another name")


def _in_terms_of_options(message: str) -> str:
    for advice, option in _OPTIONS.items():
        message = re.sub(advice, option, message)
    return message


if __name__ == "__main__":
    show(main(sys.argv[1:]))
