"""A checkpoint that is being written: ``Draft``, a folder beside the place where it will be.

A journal in the folder says what the draft will be, and which tensors are complete. If writing
stops, the next run with the same arguments goes on behind them. When all is there, the files move
to their place. Until then the place stays as it is.
"""

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

_JOURNAL = "journal.jsonl"


class Draft:
    """The folder of a checkpoint that is being written.

    Attributes:
        folder: the folder.
        done: the tensors that are complete, as pairs of file and name.
    """

    def __init__(self, folder: Path, journal: IO[str], done: set[tuple[str, str]]) -> None:
        self.folder, self.done, self._journal = folder, done, journal

    def note(self, file: str, tensor: str) -> None:
        """Enters in the journal that a tensor is complete."""
        self._journal.write(json.dumps([file, tensor]) + "\n")
        self._journal.flush()


@contextmanager
def draft(out: Path, what: str, *, is_folder: bool, size: int) -> Iterator[Draft]:
    """Opens a new draft, or the one that an interrupted run has left; moves it when it is complete.

    Args:
        out: where the checkpoint will be.
        what: all that decides what is in it. A draft of something else is begun anew.
        is_folder: whether the checkpoint is a folder. Otherwise it is the one file in it.
        size: how many bytes it takes.

    Raises:
        OSError: if ``out`` is something else than a regular file, or than a folder that is empty or
            missing; if the disk has too little room; if another run writes there.
    """
    out = out.resolve()  # through a symbolic link, not over it
    expect_free(out, is_folder)
    folder = out.with_name(f"{out.name}.growing")
    folder.mkdir(exist_ok=True)
    with open(folder / _JOURNAL, "a+") as journal:
        try:
            fcntl.flock(journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BlockingIOError(
                errno.EAGAIN, "another process is writing this checkpoint", str(folder)
            ) from error
        done = _done(journal, what)
        if done is None:
            for path in folder.iterdir():
                if path.name != _JOURNAL:
                    path.unlink()
            journal.truncate(0)
            journal.write(json.dumps([what, _boot()]) + "\n")
            journal.flush()
        room = shutil.disk_usage(folder).free + sum(
            path.stat().st_blocks * 512 for path in folder.iterdir()
        )
        if size > room:
            shutil.rmtree(folder)
            raise OSError(
                errno.ENOSPC, f"the checkpoint takes {size:,} bytes, {room:,} are free", str(out)
            )
        try:
            yield Draft(folder, journal, done or set())
        except OSError as error:
            error.add_note(f"what is written is kept in {folder}: the same call goes on there")
            raise
        except ValueError:
            shutil.rmtree(folder)
            raise
        _move(folder, out, is_folder)


def expect_free(out: Path, is_folder: bool) -> None:
    """Raises unless a checkpoint may be written here; see ``draft``."""
    if not out.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "no such folder; make it first", str(out.parent))
    if is_folder and out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise FileExistsError(
            errno.EEXIST,
            "expected a new name or an empty folder for a checkpoint of files",
            str(out),
        )
    if not is_folder and out.exists() and not out.is_file():
        raise FileExistsError(errno.EEXIST, "expected a new name or a regular file", str(out))


def _done(journal: IO[str], what: str) -> set[tuple[str, str]] | None:
    """Returns the tensors that are complete in the draft; None if it is of something else."""
    journal.seek(0)
    first, *lines = [*journal.read().split("\n"), ""][:-1] or [""]
    try:
        # What was written before a loss of power may not be on the disk.
        if not _boot() or json.loads(first) != [what, _boot()]:
            return None
        return {(file, tensor) for file, tensor in map(json.loads, filter(None, lines))}
    except ValueError:
        return None


def _boot() -> str:
    """Returns a name of the time since this machine was started, where there is one."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _move(folder: Path, out: Path, is_folder: bool) -> None:
    (folder / _JOURNAL).unlink()
    if is_folder:
        if out.is_dir():
            out.rmdir()
        folder.rename(out)
        return
    (file,) = folder.iterdir()
    if out.exists():
        shutil.copymode(out, file)
    os.replace(file, out)
    folder.rmdir()
