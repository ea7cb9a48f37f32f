"""Commands on a terminal: their options, and how they end (answered, refused or interrupted)."""

import argparse
import os
import sys
import warnings
from collections.abc import Callable
from typing import Any

from dogwood_jax._base.printable import printable


class WholeNames(argparse.ArgumentParser):
    """A parser that takes no abbreviations of options, nor do its commands."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options | {"allow_abbrev": False})


def answered(program: str, command: Callable[[], str]) -> str:
    """Runs a command and returns what it says. Its warnings go to stderr, one line each.

    Raises:
        SystemExit: with a message if the command refuses what it is given, and with 130 after a
            line that says so if it is interrupted, as shells expect it.
    """
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_: _warn(program, message)
            return command()
    except (OSError, TypeError, ValueError) as error:
        # Those of other errors are JAX's, about its tracebacks.
        notes = getattr(error, "__notes__", ()) if isinstance(error, OSError) else ()
        message = "\n".join([f"{program}: {_said(error)}", *notes])
        raise SystemExit(printable(message, keep="\n")) from None
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        raise SystemExit(130) from None


def _said(error: Exception) -> str:
    """Returns what an error says, that of a file without the number that systems give it."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror[0].lower()}{error.strerror[1:]}"
    return str(error)


def _warn(program: str, message: Warning | str) -> None:
    """Prints a warning without the place in the code that gives it."""
    print(printable(f"{program}: warning: {message}", keep="\n"), file=sys.stderr)


def show(text: str) -> None:
    """Prints a text; whoever reads it, such as ``head``, may stop before its end."""
    try:
        print(printable(text, keep="\n"), flush=True)
    except BrokenPipeError:
        # Python would complain once more when it closes what is left.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
