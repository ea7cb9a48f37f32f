"""Which kind of checkpoint a path is: ``item_folder``. Nothing of Orbax is imported to know it."""

from pathlib import Path


class CheckpointError(ValueError):
    """A checkpoint cannot be read: the message says which file, what was expected, what came."""


_METADATA = "_METADATA"


def item_folder(source: Path) -> Path | None:
    """Returns the folder of a tree that Orbax saved, perhaps as the one tree of a step; or None.

    Raises:
        CheckpointError: if a step has several trees, or if a folder holds steps.
    """
    if (source / _METADATA).is_file():
        return source
    if not source.is_dir():
        return None
    inside = sorted(path.parent for path in source.glob(f"*/{_METADATA}"))
    items = sorted(path for path in source.iterdir() if path.is_dir())
    if len(inside) == 1:  # a step may also hold metrics and the like
        return inside[0]
    if inside or any(source.glob(f"*/*/{_METADATA}")):
        names = ", ".join(path.name for path in items)
        raise CheckpointError(f"{source}: expected one saved tree; found {names}; name one of them")
    return None
