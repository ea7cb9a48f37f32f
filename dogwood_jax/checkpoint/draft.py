"""A checkpoint that is being written: ``Draft``, a folder next to the final path.

A journal next to the folder identifies the draft and lists the complete tensors. If writing stops,
the next run with the same arguments resumes after them. When all tensors are complete, the files
move to the final path. Until then nothing there changes.
"""

import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import jax
import numpy as np
from jax import Array

import dogwood_jax
from dogwood_jax._base.places import place_of
from dogwood_jax._growth.growth import Growth


class Draft:
    """The folder of a checkpoint that is being written.

    Attributes:
        folder: the folder.
        done: the tensors that are complete, as pairs of file and name.
    """

    def __init__(self, folder: Path, journal: IO[bytes], done: set[tuple[str, str]]) -> None:
        self.folder, self.done, self._journal = folder, done, journal

    def note(self, file: str, tensor: str) -> None:
        """Records in the journal that a tensor is complete."""
        self._journal.write(json.dumps([file, tensor]).encode() + b"\n")
        self._journal.flush()


@contextmanager
def draft(out: Path, what: str, *, is_folder: bool, size: int) -> Iterator[Draft]:
    """Opens a new draft, or the draft of an interrupted run; moves it when it is complete.

    Args:
        out: final path of the checkpoint.
        what: fingerprint of the content. A draft with another fingerprint is discarded.
        is_folder: whether the checkpoint is the folder. Otherwise it is the only file in it.
        size: bytes of the checkpoint.

    Raises:
        OSError: if ``out`` exists and is not a regular file or, for a folder, not an empty folder;
            if its parent is missing; if the disk has too little room; if another run writes there.
    """
    out = out.resolve()  # a symbolic link stays, and its target is written
    expect_free(out, is_folder)
    folder, path = (out.with_name(f"{out.name}.growing{end}") for end in ("", ".journal"))
    if not path.exists() and folder.exists() and any(folder.iterdir()):
        raise _taken(folder)
    with open(path, "a+b") as journal:
        try:
            fcntl.flock(journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BlockingIOError(
                errno.EAGAIN, "another process is writing this checkpoint", str(folder)
            ) from error
        done = _done(journal, what, path)
        if done is None or not all((folder / file).is_file() for file, _ in done):
            done = None
            shutil.rmtree(folder, ignore_errors=True)
            journal.truncate(0)
            journal.write(json.dumps([what, _boot()]).encode() + b"\n")
            journal.flush()
        folder.mkdir(exist_ok=True)
        held = sum(file.stat().st_blocks * 512 for file in folder.rglob("*"))
        room = shutil.disk_usage(folder).free + held
        if size > room:
            if done is None:
                _remove(folder, path)
            raise OSError(
                errno.ENOSPC, f"the checkpoint needs {size:,} bytes, {room:,} are free", str(out)
            )
        try:
            yield Draft(folder, journal, done or set())
            _move(folder, out, is_folder)
        except OSError as error:
            error.add_note(f"the unfinished files stay in {folder}; the same call resumes there")
            raise
        except ValueError:
            _remove(folder, path)
            raise
        path.unlink()


def fingerprint(growth: Growth, key: Array | None, files: Iterable[Path], *facts: Any) -> str:
    """Returns a hash of all inputs that determine the written content.

    A caller's own initializer is identified by its address in memory, so the hash differs in every
    process.

    Args:
        growth: the growth.
        key: the key as for ``dw.grow``.
        files: all files that are read.
        *facts: other inputs; their ``repr`` is hashed.
    """
    states = [(str(file), file.stat()) for file in files]
    every = (
        dogwood_jax.__version__,
        {path: leaf_map for path, leaf_map in growth.maps.items() if leaf_map.changes},
        growth.weighed,
        growth.inserted,
        growth.layers,
        None if key is None else (str(key.dtype), np.asarray(jax.random.key_data(key)).tolist()),
        [(file, state.st_size, state.st_mtime_ns) for file, state in states],
        facts,
    )
    return hashlib.sha256(repr(every).encode()).hexdigest()


def expect_free(out: Path, is_folder: bool) -> None:
    """Raises an ``OSError`` unless a checkpoint may be written to ``out``; see ``draft``."""
    if not (is_folder and out.is_dir()):
        place_of(out)
    if is_folder and out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise FileExistsError(
            errno.EEXIST, "expected a new name or an empty folder for several files", str(out)
        )


def _done(journal: IO[bytes], what: str, path: Path) -> set[tuple[str, str]] | None:
    """Returns the complete tensors of the draft; None if its fingerprint or the boot differs.

    An incomplete last line of the journal is cut off.
    """
    journal.seek(0)
    text = journal.read()
    if not text:
        return None
    end = text.rfind(b"\n") + 1  # the last line may have been cut
    journal.truncate(end)
    try:
        first, *lines = [json.loads(line) for line in text[:end].splitlines()]
        is_ours = len(first) == 2 and all(isinstance(part, str) for part in first)
        done = {(file, tensor) for file, tensor in lines}
    except (ValueError, TypeError) as error:
        raise _taken(path) from error
    if not is_ours:
        raise _taken(path)
    # After a loss of power, recorded tensors may be missing from the disk.
    return done if _boot() and first == [what, _boot()] else None


def _taken(path: Path) -> FileExistsError:
    return FileExistsError(
        errno.EEXIST, "expected a draft of this library, or nothing; move it away", str(path)
    )


def _boot() -> str:
    """Returns an identifier of this machine's current boot; empty where there is none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _remove(folder: Path, journal: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    journal.unlink()


def _move(folder: Path, out: Path, is_folder: bool) -> None:
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
