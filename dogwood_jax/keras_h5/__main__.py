"""Keras's files on the command line.

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

# What errors advise in Python, and how it is said here.
_OPTIONS = {
    r"pass interface=True": "pass --interface",
    r"strategies\.(\w+)\(\)": r"--strategy \1",
    r"say which units stay, keep=.*?, or use dw.narrow": (
        "this command has no option to remove units; in Python, dw.narrow does"
    ),
    r"pass key=": "pass --seed",
    r"pass (like|layout|sizes|target|target_apply|fresh|limit)=": r"in Python, pass \1=",
}


_FORCE = "overwrite a file that is there"

# What has the moments of each class of states that Keras's files hold, as ``load_optimizer`` says.
_OPTIMIZERS = {
    optax.ScaleByAdamState: optax.scale_by_adam,
    optax.ScaleByRmsState: optax.scale_by_rms,
    optax.ScaleByRssState: optax.scale_by_rss,
    optax.TraceState: functools.partial(optax.trace, 0.9),
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
    command.add_argument("--force", action="store_true", help=_FORCE)
    command.set_defaults(command=_widen)

    command = commands.add_parser(
        "convert",
        help="write weights in another layout",
        description="Writes the weights in the layout that the new name has in Keras: those of "
        "Keras 3 for .weights.h5, otherwise those of Keras 1 and 2.",
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
    rows = [("width", "units", "needs", "grows along")]
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
    """Says whether predictions stay, and how that is known."""
    if not all(change.strategy.preserving for change in growth.changes):
        strategy = growth.changes[0].strategy
        return f"predictions change, because --strategy {strategy} does not keep them"
    if apply is None:
        return "not checked: a file of weights does not say what the model computes"
    inputs = growth.widths.network.inputs if growth.widths.network else ()
    found = dw.verify(apply, variables, apply, wide, *inputs, growth=growth)
    return f"predictions stay: {found} for random inputs"


def _grown_state(path: str, growth: dw.Growth) -> tuple[Any, str]:
    """Returns the state of the file's optimizer for the wider model, and what is said of it."""
    try:
        state = load_optimizer(path)
    except KerasFileError as error:
        has_none = inspect(path).model is None or "found none" in str(error)
        return None, "" if has_none else f"the optimizer begins anew: {error}"
    tx = _OPTIMIZERS[type(state)]()
    # Keras has one count of steps, so there is no choice.
    return dw.grow_opt_state(state, growth, tx, second_moment="zeros"), (
        "the optimizer goes on where it was; new weights take larger steps at first"
    )


def _traced(path: str) -> tuple[Any, Mapping[str, Any], dw.Widths]:
    """Returns the function of a file's model, its variables and their widths.

    A file of weights has no function: it is None.
    """
    if inspect(path).model is None:
        weights: Mapping[str, Any] = load(path)
        return None, weights, dw.chain(weights, _dense_layers(weights))
    module, variables = load_model(path)
    inputs = example_inputs(module)
    if inputs is None:
        raise ValueError(
            "the model's configuration does not say the shape of its inputs; use dw.trace "
            "with the module that load_model returns, and inputs of your own"
        )
    return module.apply, variables, dw.trace(module.apply, variables, *inputs)


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
    are_dense = all({*layer} <= {"kernel", "bias"} for layer in variables["params"].values())
    if len(variables) > 1 or not are_dense:
        raise ValueError(
            "the file holds weights and no model, which do not say how layers are connected, so "
            "expected Dense layers alone; widen a whole model (model.save), or use dw.trace with "
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
        raise ValueError(f"{options.out}: is there already; --force overwrites it")


def _in_terms_of_options(message: str) -> str:
    for advice, option in _OPTIONS.items():
        message = re.sub(advice, option, message)
    return message


if __name__ == "__main__":
    show(main(sys.argv[1:]))
