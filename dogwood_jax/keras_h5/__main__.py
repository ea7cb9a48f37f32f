"""Keras's files on the command line.

python -m dogwood_jax.keras_h5 inspect model.h5
python -m dogwood_jax.keras_h5 widen model.h5 --layer dense_1=128 --out wider.h5
python -m dogwood_jax.keras_h5 convert model.h5 model.weights.h5
"""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

import dogwood_jax as dw
from dogwood_jax.keras_h5 import inspect, load, load_model, save
from dogwood_jax.keras_h5._models.model import example_inputs

_STRATEGIES = ("zero_outgoing", "replicate", "zeros", "random")


def main(arguments: Sequence[str] | None = None) -> str:
    """Runs one command and returns what it has to say."""
    options = _parser().parse_args(arguments)
    try:
        return str(options.command(options))
    except (OSError, ValueError) as error:
        raise SystemExit(f"keras_h5: {error}") from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m dogwood_jax.keras_h5", description="Keras's files: look into, widen, convert."
    )
    commands = parser.add_subparsers(required=True, metavar="command")

    command = commands.add_parser("inspect", help="list layers, shapes and dtypes")
    command.add_argument("path")
    command.set_defaults(command=lambda options: inspect(options.path))

    command = commands.add_parser("widen", help="add units without changing a prediction")
    command.add_argument("path")
    command.add_argument(
        "--layer", action="append", required=True, metavar="NAME=UNITS", help="may be repeated"
    )
    command.add_argument("--out", required=True, help="the file to write, in the layout of path")
    command.add_argument("--strategy", choices=_STRATEGIES, default=_STRATEGIES[0])
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


def _widen(options: argparse.Namespace) -> str:
    _refuse_to_overwrite(options.path, options.out)
    sizes = dict(map(_size, options.layer))
    if len(sizes) < len(options.layer):
        raise ValueError(f"--layer {' '.join(options.layer)}: expected every layer once")
    strategy = getattr(dw.strategies, options.strategy)()
    key = jax.random.key(options.seed)
    if inspect(options.path).model is None:
        variables: Mapping[str, Any] = load(options.path)
        widths = dw.chain(variables, _dense_layers(variables))
    else:
        module, variables = load_model(options.path)
        inputs = example_inputs(module)
        if inputs is None:
            raise ValueError(
                "the model's configuration does not say the shape of its inputs; use dw.trace "
                "with the module that load_model returns, and inputs of your own"
            )
        widths = dw.trace(module.apply, variables, *inputs)
    growth = dw.plan(widths, sizes, strategy=strategy)
    save(options.out, dw.grow(variables, growth, key=key), like=options.path)
    return f"{options.out}: {', '.join(f'{name} has {n} units' for name, n in sizes.items())}"


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


if __name__ == "__main__":
    print(main(sys.argv[1:]))
