"""Shows what takes longer than two seconds, on one line of stderr: ``progress`` and ``say``."""

import contextlib
import sys
import threading
import time
from collections.abc import Iterator
from contextvars import ContextVar

import jax.numpy as jnp

from dogwood_jax._base.trees import is_traced

# Seconds until the line appears.
_AFTER = 2.0


class _Line:
    """A line on stderr that is rewritten; it appears once the call takes long."""

    def __init__(self, call: str) -> None:
        self._call, self._text, self._shown = call, call, ""
        self._begun, self._is_over = time.monotonic(), False
        self._lock = threading.Lock()
        self._timer = threading.Timer(_AFTER, self._show)  # a step may take long by itself
        self._timer.daemon = True
        self._timer.start()

    def say(self, doing: str) -> None:
        self._text = f"{self._call}: {doing}"
        if time.monotonic() - self._begun >= _AFTER:
            self._show()

    def end(self) -> None:
        self._timer.cancel()
        with self._lock:
            self._is_over = True
            self._write("")

    def _show(self) -> None:
        with self._lock:
            if not self._is_over:
                self._write(self._text)

    def _write(self, text: str) -> None:
        if text != self._shown:
            ending = "" if text else "\r"
            sys.stderr.write(f"\r{text.ljust(len(self._shown))}{ending}")
            sys.stderr.flush()
            self._shown = text


# The line of the call that runs; another thread has its own.
_LINE: ContextVar[_Line | None] = ContextVar("line", default=None)


@contextlib.contextmanager
def progress(call: str) -> Iterator[None]:
    """Shows what a call does while the block runs, and removes the line afterwards.

    Nothing is shown if stderr is no terminal and no cell of a notebook, under ``jax.jit``, or in a
    call inside of another one.

    Args:
        call: the name of the call.
    """
    if _LINE.get() is not None or not _is_watched() or is_traced(jnp.zeros(())):
        yield
        return
    line = _Line(call)
    token = _LINE.set(line)
    try:
        yield
    finally:
        _LINE.reset(token)
        line.end()


def say(doing: str) -> None:
    """Replaces the text of the line, such as ``comparing both networks``."""
    line = _LINE.get()
    if line is not None:
        line.say(doing)


def _is_watched() -> bool:
    stream = sys.stderr
    if stream is None:
        return False
    return stream.isatty() or type(stream).__module__.startswith("ipykernel.")
