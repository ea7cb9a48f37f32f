"""Checks of paths before a file is written: ``place_of``."""

import errno
from pathlib import Path


def place_of(path: Path) -> Path:
    """Returns the path to write to. Symbolic links are followed, not replaced.

    Raises:
        FileNotFoundError: if the folder does not exist.
        FileExistsError: if the path exists but is not a regular file (a folder, a device, a pipe).
    """
    place = path.resolve()
    if not place.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "no such folder; make it first", str(place.parent))
    if place.exists() and not place.is_file():
        raise FileExistsError(errno.EEXIST, "expected a new name or a regular file", str(place))
    return place
