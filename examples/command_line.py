"""Command-line helpers shared by the examples: options, progress bar, results and Ctrl-C."""

import argparse
import contextlib
import csv
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np

from dogwood_jax import mnist, training
from dogwood_jax.training.loop import interrupt_held_back

EPOCHS = {"epochs": (10, "epochs of each training")}

_progress: "_Progress | None" = None  # of the trainings under way
_interrupted = threading.Event()  # by Ctrl-C


def parse(
    description: str,
    arguments: list[str] | None = None,
    *,
    counts: Mapping[str, tuple[int, str]] = EPOCHS,
    digits: bool = True,
    flags: Mapping[str, str] | None = None,
    quick: Mapping[str, int] | None = None,
) -> argparse.Namespace:
    """Parses the command line, and checks packages, output folder and data before any training.

    Args:
        description: description of the example.
        arguments: the command line; by default that of the process.
        counts: options that are integers, 1 or more: their defaults and help texts, by name.
        digits: whether the example trains on MNIST.
        flags: options without a value: their help texts, by name.
        quick: values of some of the counts with ``--quick``.

    Returns:
        The ``counts``, the ``flags``, ``seed``, the folder ``out``, which exists, and ``digits`` if
        they are needed.
    """
    parser = argparse.ArgumentParser(
        description=description,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    if digits:
        parser.add_argument(
            "--data",
            choices=["subset", "tfds"],
            default="subset",
            help="12,000 digits that come with the package, or all 70,000 from tensorflow-datasets",
        )
    for name, (default, meaning) in counts.items():
        parser.add_argument(f"--{name}", type=_at_least_one, default=default, help=meaning)
    for name, meaning in (flags or {}).items():
        parser.add_argument(f"--{name}", action="store_true", help=meaning)
    parser.add_argument("--seed", type=int, default=0, help="seed of all random numbers")
    parser.add_argument("--out", type=Path, default=Path("out"), help="output folder")
    if quick:
        meaning = " ".join(f"--{name} {count}" for name, count in quick.items())
        parser.add_argument("--quick", action="store_true", help=f"same as {meaning}")
    options = parser.parse_args(arguments)
    if quick and options.quick:
        vars(options).update(quick)
    try:
        import matplotlib  # noqa: F401  # fail now rather than after the training
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


def mean_and_error(runs: np.ndarray, form: str) -> str:
    """Returns the mean over runs, and its standard error if there are several runs."""
    error = f" ± {runs.std(ddof=1) / len(runs) ** 0.5:{form}}" if len(runs) > 1 else ""
    return f"{runs.mean():{form}}{error}"


def write(rows: Sequence[Any], figure: Any, folder: Path, name: str) -> None:
    """Writes named tuples to a CSV file, and a figure to a PNG file."""
    with (folder / f"{name}.csv").open("w", newline="") as file:
        csv.writer(file).writerows([rows[0]._fields, *rows])
    figure.savefig(folder / f"{name}.png", dpi=100)
    print(f"\nwritten to {folder}: {name}.csv, {name}.png")


def run(main: Callable[[], object]) -> None:
    """Runs an example; Ctrl-C ends it with a one-line message and exit code 130."""
    global _interrupted
    try:
        # Ctrl-C takes effect after the current step of work, because KeyboardInterrupt gets lost
        # in a callback of JAX. A second Ctrl-C raises it at once.
        with interrupt_held_back() as _interrupted:
            main()
    except KeyboardInterrupt:
        print(f"{Path(sys.argv[0]).name}: interrupted", file=sys.stderr)
        raise SystemExit(130) from None


def _end_if_interrupted() -> None:
    if _interrupted.is_set():
        raise KeyboardInterrupt


@contextlib.contextmanager
def bar(total: float) -> Iterator[None]:
    """Shows the progress of all trainings, on standard error.

    On a terminal it is a bar, if tqdm is installed; otherwise a line at least every five seconds in
    which an epoch ends.

    Args:
        total: length of the bar, in epochs of `fit` unless its ``step=`` is given.
    """
    global _progress
    shown: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
    with contextlib.suppress(ImportError):
        if sys.stderr.isatty():
            from tqdm import tqdm

            shown = tqdm(total=total, leave=False, bar_format=_FORMAT)
    with shown as tqdm_bar:
        _progress = _Progress(total, tqdm_bar)
        try:
            yield
        finally:
            _progress = None
    _end_if_interrupted()


_FORMAT = "{l_bar}{bar}| {elapsed} passed, {remaining} to go"
_SECONDS = 4.0  # between two lines of progress


class _Progress:
    """The progress of all trainings.

    Args:
        total: length of all trainings.
        bar: a bar of tqdm, or None to print lines.
    """

    def __init__(self, total: float, bar: Any) -> None:
        self.total, self.bar, self.done = total, bar, 0.0
        self.started = self.last = monotonic()

    def advance(self, step: float) -> None:
        step = min(step, self.total - self.done)  # runs of growbench may take one step more
        self.done += step
        if self.bar is not None:
            self.bar.update(step)
        elif (now := monotonic()) - self.last > _SECONDS:
            self.last = now
            share, seconds = self.done / self.total, now - self.started
            print(f"{share:.0%} after {seconds:.0f} s", file=sys.stderr, flush=True)


def advance(step: float = 1) -> None:
    """Moves the bar, or ends the example after Ctrl-C."""
    _end_if_interrupted()
    if _progress is not None:
        _progress.advance(step)


def say(text: object) -> None:
    """Prints a text above the bar, or ends the example after Ctrl-C."""
    _end_if_interrupted()
    tqdm_bar = None if _progress is None else _progress.bar
    with contextlib.nullcontext() if tqdm_bar is None else tqdm_bar.external_write_mode():
        print(text, flush=True)


def fit(*arguments: Any, test: Any = None, step: float = 1, **options: Any) -> training.Run:
    """Trains with the example's bar: calls ``training.fit``, or ``distill`` if there is a teacher.

    Ctrl-C ends the example after the current epoch.

    Args:
        *arguments: positional arguments of ``training.fit``.
        test: images and labels to test the network with after each epoch.
        step: how far an epoch moves the bar.
        **options: keyword arguments of ``training.fit`` or ``training.distill``.

    Returns:
        The run. With ``test``, its history also has the ``"test accuracy"``.
    """
    accuracies: list[float] = []

    def after_epoch(run: training.Run) -> None:
        if test is not None:
            accuracies.append(training.evaluate(run.apply, run.variables, test)[1])
        advance(step)

    train = training.distill if "teacher" in options else training.fit
    run = train(*arguments, **options, progress=False, after_epoch=after_epoch)
    if test is not None:
        run.history["test accuracy"] = np.array(accuracies)
    return run
