"""What the examples ask of their user: the data, how long to train, and where to write."""

import argparse
from collections.abc import Mapping
from pathlib import Path

from dogwood_jax import mnist

EPOCHS = {"epochs": (10, "epochs of each training")}


def parse(
    description: str,
    arguments: list[str] | None = None,
    *,
    counts: Mapping[str, tuple[int, str]] = EPOCHS,
    digits: bool = True,
) -> argparse.Namespace:
    """Parses the command line, and makes sure that what it asks for can be had.

    Args:
        description: what the example does.
        arguments: the command line; that of the process by default.
        counts: options that are integers, 1 or more: name, default and what it is.
        digits: whether the example trains on MNIST.

    Returns:
        The ``counts``, ``seed``, ``out``, a folder that exists, and maybe ``digits``.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    if digits:
        parser.add_argument(
            "--data",
            choices=["subset", "tfds"],
            default="subset",
            help="12,000 digits that come with the package, or all 70,000 of tensorflow-datasets",
        )
    for name, (default, meaning) in counts.items():
        parser.add_argument(f"--{name}", type=_at_least_one, default=default, help=meaning)
    parser.add_argument("--seed", type=int, default=0, help="seed of all random numbers")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for what is written")
    options = parser.parse_args(arguments)
    try:
        import matplotlib  # noqa: F401  # better missed now than after the training
    except ImportError:
        parser.exit(1, "the picture needs Matplotlib; run: pip install 'dogwood_jax[examples]'\n")
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"argument --out: {error.strerror}: {error.filename}")
    if digits:
        try:
            options.digits = mnist.load(options.data)
        except (ImportError, OSError, RuntimeError) as error:
            parser.exit(1, f"{error}\n")
    return options


def _at_least_one(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected an integer, 1 or more, got {text!r}")
    return int(text)
