"""Writes files completely or not at all."""

import os
import shutil
import tempfile
from pathlib import Path


def replace_file(target: Path, data: memoryview) -> None:
    """Writes a temporary file in the same folder, and renames it once it is safely on the disk.

    Args:
        target: the path of the file, as ``place_of`` returns it.
        data: the whole content.
    """
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".keras_h5-") as folder:
        draft = Path(folder, target.name)
        with draft.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        if target.exists():
            shutil.copymode(target, draft)
        os.replace(draft, target)
    _sync_folder(target.parent)


def _sync_folder(folder: Path) -> None:
    """Makes the new name survive a loss of power, where folders can be synchronized."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        except OSError:  # some network file systems cannot; the file itself is safe
            pass
        finally:
            os.close(handle)
