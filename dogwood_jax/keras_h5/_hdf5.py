"""Groups, arrays and names in HDF5 files that strangers wrote.

Only what the file itself holds is read. HDF5 follows links into other files, reads arrays from raw
files and from datasets elsewhere, and trusts what a file says of its own size; none of this
happens here. Errors name the place in the file; ``_source.opened`` adds the file.
"""

import math
import re
import reprlib
import zlib
from collections.abc import Iterable
from typing import Any, TypeAlias

import h5py
import jax.numpy as jnp
import numpy as np

from dogwood_jax.keras_h5._errors import KerasFileError

Dataset: TypeAlias = h5py.Dataset
Group: TypeAlias = h5py.Group

BFLOAT16 = np.dtype(jnp.bfloat16)  # HDF5 has no such type: Keras stores two opaque bytes
OPAQUE16 = np.dtype("V2")

_MAX_HOPS = 16  # soft links that lead to soft links
_MAX_DEPTH = 64  # groups in groups; Keras nests a few
_GZIP, _SHUFFLE, _FLETCHER32 = 1, 2, 3


def misplaced(item: Any, expected: str, found: str) -> KerasFileError:
    """Returns the error for a group or dataset in which something else was expected."""
    return KerasFileError(f"at {item.name}: expected {expected}; found {found}")


def is_name(name: object) -> bool:
    """Whether an HDF5 object can have this name, relative to its group."""
    return (
        isinstance(name, str)
        and not any(part in ("", ".") for part in name.split("/"))
        and not re.search("[\0\ud800-\udfff]", name)
    )


def read_names(group: Group, attribute: str) -> list[str] | None:
    """Reads an attribute that lists names, whole or split over attribute0, attribute1, ..."""
    if attribute in group.attrs:
        parts = [group.attrs[attribute]]
    else:
        parts = []
        while (part := f"{attribute}{len(parts)}") in group.attrs:
            parts.append(group.attrs[part])
    if not parts:
        return None
    names = [
        # Fixed-length names are bytes, others str; what is not UTF-8 fails the next check.
        name.decode(errors="surrogateescape") if isinstance(name, bytes) else name
        for part in parts
        for name in np.atleast_1d(part)
    ]
    if not all(map(is_name, names)) or len(set(names)) < len(names):
        raise misplaced(group, f"distinct names in attribute {attribute}", reprlib.repr(names))
    return names


def read_text(group: Group, attribute: str) -> str | None:
    """Reads an attribute that is one string, or nothing."""
    value = group.attrs.get(attribute)
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    if not isinstance(value, str | None):
        raise misplaced(group, f"a string in attribute {attribute}", type(value).__name__)
    return None if value is None else str(value)


def member(group: Group, name: str, kind: str) -> Any:
    """Returns the Group or Dataset of this name, which must be in the same file."""
    found = find(group, name)
    if type(found).__name__ != kind:
        described = "nothing" if found is None else f"a {type(found).__name__}"
        raise misplaced(group, f"a {kind} {name!r}, which is listed in the attributes", described)
    return found


def find(group: Group, name: str, hops: int = 0) -> Any:
    """Returns what has this name in a group, or ``None``; only the file itself is looked through.

    Raises:
        KerasFileError: if links lead into another file, or in circles.
    """
    found = group.file if name.startswith("/") else group
    for part in filter(None, name.split("/")):
        link = found.get(part, getlink=True) if isinstance(found, h5py.Group) else None
        if link is None:
            return None
        if isinstance(link, h5py.SoftLink):
            if hops == _MAX_HOPS:
                raise misplaced(found, f"a link {part!r} that leads somewhere", "a circle of links")
            found = find(found, link.path, hops + 1)
        elif isinstance(link, h5py.HardLink):
            found = found[part]
        else:
            raise misplaced(
                found,
                f"a group or array {part!r} in the file itself, for nothing outside it is read",
                "a link into another file",
            )
    return found


def children(group: Group) -> dict[str, Group | Dataset]:
    """Returns what is in a group, by name."""
    if group.name.count("/") > _MAX_DEPTH:
        raise misplaced(group, f"groups at most {_MAX_DEPTH} deep", "one deeper")
    found = {name: find(group, name) for name in group}
    return {name: item for name, item in found.items() if item is not None}


def check_tree(root: Group) -> None:
    """Raises if a group is in several others: links can make ever more places of a few groups."""
    seen = set()
    groups = [root]
    for group in groups:  # which grows
        if address(group) in seen:
            raise misplaced(group, "each group in one place", "one that is in several")
        seen.add(address(group))
        groups += [g for g in children(group).values() if isinstance(g, h5py.Group)]


def everything(root: Group) -> list[Any]:
    """Returns all that is in a file, each once, in time linear in its size."""
    seen = {address(root)}
    items = level = [root]
    for _ in range(_MAX_DEPTH):
        inside = []
        for group in level:
            for name in group if isinstance(group, h5py.Group) else ():
                if isinstance(group.get(name, getlink=True), h5py.HardLink):
                    item = group[name]
                    if address(item) not in seen:
                        seen.add(address(item))
                        inside.append(item)
        items, level = items + inside, inside
    if level:
        raise misplaced(level[0], f"groups at most {_MAX_DEPTH} deep", "one deeper")
    return items


def address(item: Any) -> int:
    """Returns where in its file a group or array begins, whatever it is called."""
    return int(h5py.h5o.get_info(item.id).addr)


def checked_array(dataset: Dataset) -> Dataset:
    """Returns a dataset that holds an array of numbers, within the file."""
    if dataset.shape is None or not (is_numeric(dataset.dtype) or dataset.dtype == OPAQUE16):
        found = "no data" if dataset.shape is None else f"dtype {dataset.dtype}"
        raise misplaced(dataset, "an array of numbers", found)
    if dataset.is_virtual or dataset.external:
        found = "a virtual one" if dataset.is_virtual else "one in an external raw file"
        raise misplaced(dataset, "an array in the file itself, for nothing outside is read", found)
    return dataset


def is_numeric(dtype: np.dtype) -> bool:
    """Whether a dtype is NumPy's own, of floats, integers or booleans."""
    return issubclass(dtype.type, np.floating | np.integer | np.bool_)


def dtype_of(dataset: Dataset) -> np.dtype:
    """Returns the dtype in which an array is read."""
    dtype: np.dtype = dataset.dtype.newbyteorder("=")
    return BFLOAT16 if dataset.dtype == OPAQUE16 else dtype


def size_of(dataset: Dataset) -> int:
    """Returns the bytes that reading an array takes in memory, as the file declares it."""
    # A chunk is read whole, and may be larger than the array.
    elements = max(math.prod(dataset.shape), math.prod(dataset.chunks or ()))
    return int(elements) * int(dataset.dtype.itemsize)


def check_sizes(datasets: Iterable[Dataset], limit: int) -> None:
    """Raises if the arrays together need more memory than the limit, before any is read."""
    sizes = {dataset.name: size_of(dataset) for dataset in datasets}
    total = sum(sizes.values())
    if total > limit:
        largest = max(sizes, key=lambda name: sizes[name])
        raise KerasFileError(
            f"at {largest}: expected arrays of at most {limit:,} bytes altogether, which is what "
            f"a file of this size justifies; found {total:,} bytes, {sizes[largest]:,} of them "
            "here (if you trust the file, pass limit= the bytes you allow)"
        )


def read_array(dataset: Dataset) -> np.ndarray:
    """Reads an array, once ``check_sizes`` has passed."""
    if dataset.chunks is not None:
        _check_chunks(dataset)
    array = np.asarray(dataset[()])
    if array.dtype == OPAQUE16:
        return array.view(BFLOAT16)
    return array.astype(array.dtype.newbyteorder("="), copy=False)  # JAX takes no other


def _check_chunks(dataset: Dataset) -> None:
    """Raises if a compressed chunk is larger than it says: HDF5 would allocate whatever it is."""
    properties = dataset.id.get_create_plist()
    filters = [properties.get_filter(i)[0] for i in range(properties.get_nfilters())]
    if not set(filters) <= {_GZIP, _SHUFFLE, _FLETCHER32} or filters.count(_GZIP) > 1:
        raise misplaced(
            dataset,
            "an array that is stored plainly or compressed with gzip (h5repack -f NONE makes it)",
            f"HDF5 filters {filters}",
        )
    if _GZIP not in filters:
        return
    size = math.prod(dataset.chunks) * int(dataset.dtype.itemsize)
    for index in range(dataset.id.get_num_chunks()):
        info = dataset.id.get_chunk_info(index)
        mask, chunk = dataset.id.read_direct_chunk(info.chunk_offset)
        if mask & 1 << filters.index(_GZIP):  # stored as it is, for it would not shrink
            continue
        stream = zlib.decompressobj()
        if len(stream.decompress(chunk, size + 5)) > size + 4:  # 4 bytes of checksum, perhaps
            raise misplaced(dataset, f"chunks of {size} bytes", "a compressed one that is larger")


def is_finite(array: np.ndarray) -> bool:
    """Whether an array is free of NaN and infinities."""
    if not jnp.issubdtype(array.dtype, jnp.inexact):
        return True
    flat = array.reshape(-1)
    step = 1 << 20  # takes no memory to speak of
    parts = (flat[start : start + step] for start in range(0, flat.size, step))
    with np.errstate(all="ignore"):  # bfloat16 warns of what it is asked about
        return all(_is_finite(part) for part in parts)


def _is_finite(part: np.ndarray) -> bool:
    # A sum of squares is read twice as fast, and finite if all are; large numbers overflow.
    if part.dtype in (np.float32, np.float64) and np.isfinite(np.dot(part, part)):
        return True
    return bool(np.isfinite(part).all())
