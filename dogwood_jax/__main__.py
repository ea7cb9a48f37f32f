"""Checkpoints on the command line: ``python -m dogwood_jax inspect`` and ``grow``."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import jax

from dogwood_jax import checkpoint
from dogwood_jax._base.command import WholeNames, answered, show
from dogwood_jax._growth.as_json import from_json
from dogwood_jax._growth.growth import Growth


def main(arguments: Sequence[str]) -> str:
    """Runs one command; returns what it says.

    Raises:
        SystemExit: for a mistake in the arguments or files, with a message that says which.
    """
    parser = WholeNames("python -m dogwood_jax", description=__doc__)
    commands = parser.add_subparsers(required=True)
    inspect = commands.add_parser("inspect", help="say what a checkpoint holds")
    inspect.add_argument("source", help="a .safetensors file, or a folder")
    inspect.set_defaults(run=_inspect)
    grow = commands.add_parser("grow", help="write a larger checkpoint, without loading this one")
    grow.add_argument("source", help="a .safetensors file, or a folder")
    grow.add_argument("growth", help="a file with what dw.to_json wrote of the growth")
    grow.add_argument("out", help="where the larger checkpoint goes")
    grow.add_argument("--seed", type=int, help="of random weights: jax.random.key(SEED)")
    grow.add_argument("--names", help="a JSON file that says which tensor is which leaf")
    grow.add_argument("--config", help="a JSON file with new numbers for config.json")
    grow.set_defaults(run=_grow)
    options = parser.parse_args(arguments)
    return answered(parser.prog, lambda: options.run(options))


def _inspect(options: argparse.Namespace) -> str:
    return str(checkpoint.inspect(options.source))


def _grow(options: argparse.Namespace) -> str:
    growth = from_json(Path(options.growth).read_text())
    if not isinstance(growth, Growth):
        raise ValueError(
            f"{options.growth}: expected a growth, which dw.plan returns; found widths"
        )
    key = None if options.seed is None else jax.random.key(options.seed)
    names, config = (
        None if file is None else json.loads(Path(file).read_text())
        for file in (options.names, options.config)
    )
    checkpoint.grow(options.source, growth, options.out, key=key, names=names, config=config)
    return (
        f"{options.out}: {', '.join(f'{name} has {n} units' for name, n in growth.sizes.items())}"
    )


if __name__ == "__main__":
    show(main(sys.argv[1:]))
