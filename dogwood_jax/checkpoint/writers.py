"""Threads that make and write arrays piece by piece, for all formats: ``Writers``."""

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from typing import Protocol

import numpy as np

from dogwood_jax._base.bits import cut_short, in_64_bits
from dogwood_jax.checkpoint.draft import Draft
from dogwood_jax.checkpoint.made import Made, Piece

# Upper limit on the threads that make pieces, because each needs memory for some pieces.
_MOST_THREADS = 8
# Additional threads, because some wait for the disk while others make pieces.
_WAITING = 2


class New(Protocol):
    """A new array, to which several threads write parts."""

    @property
    def names(self) -> Iterable[tuple[str, str]]:
        """Its names in the journal; empty if each run writes the array again."""

    def lead(self, start: int) -> int:
        """Returns the offset of an entry from the beginning of its page in the file, in bytes."""

    def write(self, start: int, entries: np.ndarray) -> None:
        """Writes entries from ``start`` on, in the order of the file."""

    def leave_zeros(self, start: int, size: int) -> None:
        """Makes ``size`` entries zeros that have not been written."""

    def done(self) -> None:
        """Called once all entries are written."""


class Writers:
    """Threads that write arrays one after another, and record complete arrays in the draft."""

    def __init__(self, begun: Draft) -> None:
        self._draft = begun
        self._threads = min(os.cpu_count() or 1, _MOST_THREADS) + _WAITING
        self._pool = ThreadPoolExecutor(self._threads)
        # Parts that are being written; each array follows its last part.
        self._waiting: deque[Future[None] | New] = deque()
        self._alone = threading.Lock()
        self._has_64_bits = not cut_short("", float)

    def __enter__(self) -> "Writers":
        return self

    def __exit__(self, error: object = None, *_: object) -> None:
        try:
            if error is None:
                self.finish()
        finally:
            self._pool.shutdown(cancel_futures=True)

    def has(self, new: New) -> bool:
        """Returns whether an array is complete according to the journal."""
        return (names := {*new.names}) <= self._draft.done and bool(names)

    def begin(self, new: New, tasks: Iterable[Callable[[], None]]) -> None:
        """Begins to write an array; each task writes one part."""
        for task in tasks:
            while len(self._waiting) > 2 * self._threads:
                self._next()
            self._waiting.append(self._pool.submit(self._run, task))
        self._waiting.append(new)

    def _run(self, task: Callable[[], None]) -> None:
        """Runs a task with the settings of the thread that began it."""
        with in_64_bits(self._has_64_bits):
            task()

    def finish(self) -> None:
        """Waits until all arrays are written."""
        while self._waiting:
            self._next()

    def _next(self) -> None:
        """Waits for the oldest part, or records the array whose parts are all written."""
        first = self._waiting.popleft()
        if isinstance(first, Future):
            first.result()
        else:
            first.done()
            for file, name in first.names:
                self._draft.note(file, name)

    def write(self, made: Made, piece: Piece, new: New) -> None:
        """Makes a piece and writes it."""
        if piece.is_zero:
            new.leave_zeros(piece.start, piece.size)
        elif piece.size:
            # Two large pieces at the same time could exceed the memory.
            with self._alone if piece.is_large else nullcontext():
                new.write(piece.start, piece.values(made, new.lead(piece.start)))

    def alone(self, task: Callable[[], None]) -> None:
        """Runs a task that needs much memory, while no other thread runs such a task."""
        with self._alone:
            task()
