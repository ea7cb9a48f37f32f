"""Tells whether a path is an Orbax checkpoint, without importing Orbax: ``item_folder``."""

from pathlib import Path


class CheckpointError(ValueError):
    """A checkpoint cannot be read: the message names the file, what was expected and found."""


_METADATA = "_METADATA"


def item_folder(source: Path) -> Path | None:
    """Returns the folder of the tree that Orbax saved here, alone or in a step; otherwise None.

    Raises:
        CheckpointError: if a step has several trees, or if the folder holds several steps.
    """
    if (source / _METADATA).is_file():
        return source
    if not source.is_dir():
        return None
    inside = sorted(path.parent for path in source.glob(f"*/{_METADATA}"))
    items = sorted(path for path in source.iterdir() if path.is_dir())
    if len(inside) == 1:  # a step may also hold other items, such as metrics
        return inside[0]
    if inside or any(source.glob(f"*/*/{_METADATA}")):
        names = ", ".join(path.name for path in items)
        raise CheckpointError(f"{source}: expected one saved tree; found {names}; name one of them")
    return None
