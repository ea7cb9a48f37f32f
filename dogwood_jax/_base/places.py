"""Where a file may be written: ``place_of``."""

import errno
from pathlib import Path


def place_of(path: Path) -> Path:
    """Returns where a file of this name goes: through symbolic links, not over them.

    Raises:
        FileNotFoundError: if there is no such folder.
        FileExistsError: if something else than a regular file is there: a folder, a device, a pipe.
    """
    place = path.resolve()
    if not place.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "no such folder; make it first", str(place.parent))
    if place.exists() and not place.is_file():
        raise FileExistsError(errno.EEXIST, "expected a new name or a regular file", str(place))
    return place
