"""A training loop at a terminal: Ctrl-C, and a progress bar."""

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def interrupt_held_back() -> Iterator[threading.Event]:
    """Yields an event that a first Ctrl-C sets; a second one interrupts at once.

    Without this, KeyboardInterrupt could come when the old state has been donated to an epoch and
    the new one is not there yet. Then everything would be lost.
    """
    interrupted = threading.Event()

    def hold_back(*_: Any) -> None:
        interrupted.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    # Python handles signals in the main thread only, and another's handler is not ours to replace.
    ours = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    )
    if ours:
        signal.signal(signal.SIGINT, hold_back)
    try:
        yield interrupted
    finally:
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def progress_bar(
    total: int | None, unit: str, progress: bool
) -> contextlib.AbstractContextManager[Any]:
    """Returns tqdm's bar, or None where none is wanted, seen or installed, as a context."""
    if progress and sys.stderr is not None and sys.stderr.isatty():
        with contextlib.suppress(ImportError):
            from tqdm import tqdm

            bar: contextlib.AbstractContextManager[Any] = tqdm(total=total, unit=unit)
            return bar
    return contextlib.nullcontext()
