"""Commands on a terminal: their options, and how they end (done, refused or interrupted)."""

import argparse
import os
import sys
import warnings
from collections.abc import Callable
from typing import Any

from dogwood_jax._base.printable import printable


class WholeNames(argparse.ArgumentParser):
    """A parser that rejects abbreviated options, as do the parsers of its commands."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options | {"allow_abbrev": False})


def answered(program: str, command: Callable[[], str]) -> str:
    """Runs a command and returns its output. Its warnings go to stderr, one line each.

    Raises:
        SystemExit: with a message if the command refuses its arguments; with status 130, as shells
            expect, after a line on stderr if the command is interrupted.
    """
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_: _warn(program, message)
            return command()
    except (OSError, TypeError, ValueError) as error:
        # Notes on other errors come from JAX and concern its tracebacks.
        notes = getattr(error, "__notes__", ()) if isinstance(error, OSError) else ()
        message = "\n".join([f"{program}: {_said(error)}", *notes])
        raise SystemExit(printable(message, keep="\n")) from None
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        raise SystemExit(130) from None


def _said(error: Exception) -> str:
    """Returns the message of an error; that of a file error comes without its error number."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror[0].lower()}{error.strerror[1:]}"
    return str(error)


def _warn(program: str, message: Warning | str) -> None:
    """Prints a warning without the source line that issues it."""
    print(printable(f"{program}: warning: {message}", keep="\n"), file=sys.stderr)


def show(text: str) -> None:
    """Prints a text. The reader of a pipe, such as ``head``, may close it before the end."""
    try:
        print(printable(text, keep="\n"), flush=True)
    except BrokenPipeError:
        # Otherwise Python would report the broken pipe again when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
