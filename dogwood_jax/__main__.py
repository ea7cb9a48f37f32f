"""Checkpoints on the command line: ``inspect``, ``grow``, ``upcycle`` and ``shrink``."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from dogwood_jax import checkpoint
from dogwood_jax._base.command import WholeNames, answered, show
from dogwood_jax._growth.as_json import from_json
from dogwood_jax._growth.growth import Growth
from dogwood_jax.decoder._folders import grow as folder_grow
from dogwood_jax.decoder._folders import maxtext as folder_maxtext
from dogwood_jax.decoder._folders import shrink as folder_shrink
from dogwood_jax.decoder._folders import upcycle as folder_upcycle
from dogwood_jax.decoder._folders.models import key_of
from dogwood_jax.decoder._folders.numbers import SIZES

_MODEL = "a Hugging Face folder with config.json and safetensors"


def main(arguments: Sequence[str]) -> str:
    """Runs one command; returns the text to print.

    Raises:
        SystemExit: for a mistake in the arguments or files, with a message that names it.
    """
    parser = WholeNames("dogwood_jax", description=__doc__)
    commands = parser.add_subparsers(required=True)
    inspect = commands.add_parser("inspect", help="print the contents of a checkpoint")
    inspect.add_argument("source", help="a .safetensors file, or a folder")
    inspect.set_defaults(run=_inspect)

    grow = commands.add_parser("grow", help="write a larger checkpoint, without loading this one")
    grow.add_argument("source", help=f"{_MODEL}; with GROWTH any .safetensors file, or a folder")
    grow.add_argument("growth", nargs="?", help="a file with the text of dw.to_json(growth)")
    grow.add_argument("out", help="the larger checkpoint to write")
    _add_numbers(grow, f"{', '.join(SIZES)} or layer_types, if config.json has it")
    grow.add_argument(
        "--rows",
        choices=("mean", "random"),
        help="initial rows of new tokens: the mean of the old rows, or random values (the default)",
    )
    _add_seed(grow)
    grow.add_argument(
        "--names", help="with GROWTH: a JSON file that maps tensors of SOURCE to leaves"
    )
    grow.add_argument(
        "--maxtext",
        nargs=2,
        metavar=("CONFIG", "NEW"),
        help="SOURCE is a MaxText step, and --set changes values of its CONFIG, such as "
        "base_mlp_dim; NEW is the yml file to write with the new values. Requires MaxText",
    )
    grow.add_argument("--config", help="with GROWTH: a JSON file with new values for config.json")
    grow.set_defaults(run=_grow)

    upcycle = commands.add_parser(
        "upcycle", help="write a model with experts that has the same outputs"
    )
    upcycle.add_argument("source", help=f"{_MODEL}: llama, mistral, qwen3, mixtral or qwen3_moe")
    upcycle.add_argument("out", help="the folder to write")
    upcycle.add_argument("--experts", type=int, required=True, help="number of experts")
    upcycle.add_argument("--experts-per-token", type=int, help="number of experts per token")
    _add_seed(upcycle)
    upcycle.set_defaults(run=_upcycle)

    shrink = commands.add_parser("shrink", help="write a smaller model, whose outputs differ")
    shrink.add_argument("source", help=_MODEL)
    shrink.add_argument("out", help="the folder to write")
    _add_numbers(
        shrink,
        "intermediate_size, moe_intermediate_size, num_hidden_layers, or parameters=0.7, a share",
    )
    shrink.add_argument(
        "--tokens",
        metavar="FILE",
        help="token ids [texts, time], .npy or JSON; removes what raises the loss of these texts "
        "least. Without it, removes the smallest weights",
    )
    shrink.set_defaults(run=_shrink)
    options = parser.parse_args(arguments)
    return answered(parser.prog, lambda: options.run(options))


def _add_numbers(command: argparse.ArgumentParser, names: str) -> None:
    command.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a new value for config.json, such as num_hidden_layers=40; one of "
        f"{names}; may be repeated",
    )


def _add_seed(command: argparse.ArgumentParser) -> None:
    command.add_argument("--seed", type=int, help="seed of random weights: jax.random.key(SEED)")


def _inspect(options: argparse.Namespace) -> str:
    return str(checkpoint.inspect(options.source))


def _grow(options: argparse.Namespace) -> str:
    if options.growth is not None:
        return _grow_as_planned(options)
    if options.names or options.config:
        raise ValueError("--names and --config go with GROWTH; pass new values as --set NAME=VALUE")
    source, out = Path(options.source), Path(options.out)
    if options.maxtext:
        if options.rows:
            raise ValueError("--rows: is for Hugging Face folders; leave it out for MaxText")
        config, new = map(Path, options.maxtext)
        return folder_maxtext.grow(source, out, config, new, options.set, seed=options.seed)
    return folder_grow.grow(source, out, options.set, rows=options.rows, seed=options.seed)


def _grow_as_planned(options: argparse.Namespace) -> str:
    """Grows a checkpoint by a growth that was planned before."""
    if options.set or options.rows or options.maxtext:
        raise ValueError(
            "--set, --rows and --maxtext plan a growth; leave them out, or leave out GROWTH"
        )
    growth = from_json(Path(options.growth).read_text())
    if not isinstance(growth, Growth):
        raise ValueError(f"{options.growth}: expected a growth from dw.plan, found widths")
    key = key_of(options.seed, growth)
    names, config = (
        None if file is None else json.loads(Path(file).read_text())
        for file in (options.names, options.config)
    )
    checkpoint.grow(options.source, growth, options.out, key=key, names=names, config=config)
    return (
        f"{options.out}: {', '.join(f'{name} has {n} units' for name, n in growth.sizes.items())}"
    )


def _upcycle(options: argparse.Namespace) -> str:
    return folder_upcycle.upcycle(
        Path(options.source),
        Path(options.out),
        options.experts,
        options.experts_per_token,
        seed=options.seed,
    )


def _shrink(options: argparse.Namespace) -> str:
    tokens = None if options.tokens is None else Path(options.tokens)
    return folder_shrink.shrink(Path(options.source), Path(options.out), options.set, tokens=tokens)


def run() -> None:
    """Runs the command of this process and prints its text."""
    show(main(sys.argv[1:]))


if __name__ == "__main__":
    run()
