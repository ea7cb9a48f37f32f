"""Reads groups, arrays and names from HDF5 files that are not trusted.

Only data in the file itself is read. HDF5 would follow links into other files, read arrays from raw
files and from datasets elsewhere, and trust the sizes that a file declares; none of this
happens here. Errors name the place in the file; ``source.opened`` adds the path of the file.
"""

import math
import re
import reprlib
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import h5py
import jax.numpy as jnp
import numpy as np

from dogwood_jax.keras_h5._files.errors import KerasFileError

Dataset: TypeAlias = h5py.Dataset
Group: TypeAlias = h5py.Group

BFLOAT16 = np.dtype(jnp.bfloat16)  # HDF5 has no such type: Keras stores two opaque bytes
OPAQUE16 = np.dtype("V2")

MAX_DEPTH = 64  # limit on nested groups, and on names in a path and in links on it; Keras has few
_GZIP, _SHUFFLE, _FLETCHER32, _LZF = 1, 2, 3, 32000  # filters; LZF is h5py's


def misplaced(item: Any, expected: str, found: str) -> KerasFileError:
    """Returns the error for a group or dataset with something other than expected."""
    return KerasFileError(f"at {item.name}: expected {expected}; found {found}")


def deeper(place: str) -> KerasFileError:
    """Returns the error for a group that is nested deeper than any in Keras's files."""
    return KerasFileError(f"at {place}: expected groups at most {MAX_DEPTH} deep; found one deeper")


def is_name(name: object) -> bool:
    """Checks whether an HDF5 object can have this name, relative to its group."""
    return (
        isinstance(name, str)
        and not any(part in ("", ".") for part in name.split("/"))
        and not re.search("[\0\ud800-\udfff]", name)
    )


def read_names(group: Group, attribute: str) -> list[str] | None:
    """Reads an attribute that lists names, in one part or in attribute0, attribute1, ..."""
    numbered = {name for name in group.attrs if re.fullmatch(f"{attribute}[0-9]+", name)}
    listed = [f"{attribute}{i}" for i in range(len(numbered))]
    if attribute in group.attrs:
        listed = [attribute]
    elif numbered != {*listed}:
        found = ", ".join(sorted(numbered))
        raise misplaced(group, f"attributes {attribute}0, {attribute}1, ... without a gap", found)
    if not listed:
        return None
    parts = [group.attrs[part] for part in listed]
    if any(np.ndim(part) != 1 or isinstance(part, h5py.Empty) for part in parts):
        raise misplaced(group, f"a list of names in attribute {attribute}", reprlib.repr(parts))
    names = [
        # Fixed-length names are bytes, others str; names that are not UTF-8 fail the next check.
        name.decode(errors="surrogateescape") if isinstance(name, bytes) else name
        for part in parts
        for name in part
    ]
    if not all(map(is_name, names)) or len(set(names)) < len(names):
        raise misplaced(group, f"distinct names in attribute {attribute}", reprlib.repr(names))
    return names


def read_text(group: Group, attribute: str) -> str | None:
    """Returns an attribute that is one string, or ``None`` if there is none."""
    value = group.attrs.get(attribute)
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    if not isinstance(value, str | None):
        raise misplaced(group, f"a string in attribute {attribute}", type(value).__name__)
    return None if value is None else str(value)


def member(group: Group, name: str, kind: str) -> Any:
    """Returns the Group or Dataset of this name; raises if it is not in the same file."""
    found = find(group, name)
    if type(found).__name__ != kind:
        described = "nothing" if found is None else f"a {type(found).__name__}"
        raise misplaced(group, f"a {kind} {name!r}, which is listed in the attributes", described)
    return found


def find(group: Group, name: str) -> Any:
    """Returns the object of this name in a group, or ``None``; searches only the file itself.

    Raises:
        KerasFileError: if a link leads into another file, into a cycle or along a very long path.
    """
    found: Any = group.id
    parts = _path(name)
    steps = 0
    while parts:
        part = parts.pop()
        if not part:
            found = h5py.h5o.open(found, b"/")
            continue
        if not isinstance(found, h5py.h5g.GroupID):
            return None
        # With identifiers, because h5py's own ``get`` looks up every name several times.
        key = part.encode(errors="surrogateescape")
        if not found.links.exists(key):
            return None
        steps += 1
        kind = found.links.get_info(key).type
        link = found.links.get_val(key) if kind == h5py.h5l.TYPE_SOFT else b""
        # Names without effect, as in "././a", count too, because many links may pass through them.
        if steps + len(parts) + link.count(b"/") > MAX_DEPTH:
            raise misplaced(group, f"a path of at most {MAX_DEPTH} names to {name!r}", "more")
        if kind == h5py.h5l.TYPE_HARD:
            found = h5py.h5o.open(found, key)
        elif kind == h5py.h5l.TYPE_SOFT:
            parts += _path(link.decode(errors="surrogateescape"))
        else:
            raise misplaced(
                h5py.Group(found),
                f"a group or array {part!r} in the file itself, because nothing outside it is read",
                "a link into another file",
            )
    if isinstance(found, h5py.h5g.GroupID):
        return h5py.Group(found)
    if isinstance(found, h5py.h5d.DatasetID):
        return h5py.Dataset(found, readonly=True)
    return h5py.Datatype(found)


def _path(name: str) -> list[str]:
    """Returns the parts of a path, the last part first; an empty part is the file's root."""
    parts = [part for part in name.split("/")[::-1] if part not in ("", ".")]
    return [*parts, ""] if name.startswith("/") else parts


@dataclass(frozen=True)
class Tree:
    """A group and its members by name: groups as trees, arrays as datasets that are not read."""

    group: Group
    inside: Mapping[str, Any]

    def part(self, name: str) -> "Tree | None":
        """Returns the inner group of this name, or ``None`` if nothing has this name."""
        found = self.inside.get(name)
        if not isinstance(found, Tree | None):
            raise misplaced(self.group, f"a Group {name!r}", f"a {type(found).__name__}")
        return found


def read_tree(root: Group) -> Tree:
    """Returns the tree of a group; each object is looked up once.

    Raises:
        KerasFileError: if groups are nested too deep, or a group is in several places, because
            links can give a few groups exponentially many places.
    """
    seen = set()

    def read(group: Group, depth: int) -> Tree:
        if address(group) in seen:
            raise misplaced(group, "each group in one place", "one that is in several")
        if depth > MAX_DEPTH:
            raise deeper(group.name)
        seen.add(address(group))
        found = {name: find(group, name) for name in group}
        return Tree(
            group,
            {
                name: read(item, depth + 1) if isinstance(item, h5py.Group) else item
                for name, item in found.items()
                if item is not None
            },
        )

    return read(root, 0)


def address(item: Any) -> int:
    """Returns the address of a group or array in its file, which does not depend on its name."""
    return int(h5py.h5o.get_info(item.id).addr)


def checked_array(dataset: Dataset) -> Dataset:
    """Returns the dataset; raises unless it holds an array of numbers in the file itself."""
    if dataset.shape is None or not (is_numeric(dataset.dtype) or dataset.dtype == OPAQUE16):
        found = "no data" if dataset.shape is None else f"dtype {dataset.dtype}"
        raise misplaced(dataset, "an array of numbers", found)
    if dataset.dtype == OPAQUE16 and read_text(dataset, "dtype") not in (None, "bfloat16"):
        found = f"an array of {read_text(dataset, 'dtype')} in opaque bytes"
        raise misplaced(dataset, "an array of numbers, or of bfloat16 in opaque bytes", found)
    if dataset.is_virtual or dataset.external:
        found = "a virtual one" if dataset.is_virtual else "one in an external raw file"
        raise misplaced(
            dataset, "an array in the file itself, because nothing outside is read", found
        )
    return dataset


def is_numeric(dtype: np.dtype) -> bool:
    """Checks whether a dtype is one of NumPy's own for floats, integers or booleans."""
    return issubclass(dtype.type, np.floating | np.integer | np.bool_)


def dtype_of(dataset: Dataset) -> np.dtype:
    """Returns the dtype of an array after reading."""
    dtype: np.dtype = dataset.dtype.newbyteorder("=")
    return BFLOAT16 if dataset.dtype == OPAQUE16 else dtype


def size_of(dataset: Dataset) -> int:
    """Returns the bytes of memory that reading an array takes, by the sizes in the file."""
    # HDF5 reads whole chunks, and a chunk may be larger than the array.
    elements = max(math.prod(dataset.shape), math.prod(dataset.chunks or ()))
    return int(elements) * int(dataset.dtype.itemsize)


def check_sizes(datasets: Iterable[Dataset], limit: int) -> None:
    """Raises if all arrays together would need more memory than the limit; reads none of them."""
    sizes = [(size_of(dataset), dataset.name) for dataset in datasets]  # a dataset may occur twice
    total = sum(size for size, _ in sizes)
    if total > limit:
        largest, name = max(sizes)
        raise KerasFileError(
            f"at {name}: expected arrays of at most {limit:,} bytes altogether, which is what "
            f"a file of this size justifies; found {total:,} bytes, {largest:,} of them "
            "here (if you trust the file, pass limit= the bytes you allow)"
        )


def read_array(dataset: Dataset) -> np.ndarray:
    """Reads an array; call ``check_sizes`` first."""
    if dataset.chunks is not None:
        _check_chunks(dataset)
    array = np.asarray(dataset[()])
    if array.dtype == OPAQUE16:
        return array.view(BFLOAT16)
    return array.astype(array.dtype.newbyteorder("="), copy=False)  # JAX takes no other byte order


def _check_chunks(dataset: Dataset) -> None:
    """Raises unless each chunk has the expected size, because HDF5 would allocate any size."""
    properties = dataset.id.get_create_plist()
    filters = [properties.get_filter(i) for i in range(properties.get_nfilters())]
    codes = [code for code, *_ in filters]
    packers = [code for code in codes if code in (_GZIP, _LZF)]
    if not {*codes} <= {_GZIP, _SHUFFLE, _FLETCHER32, _LZF} or len(packers) > 1:
        raise misplaced(
            dataset,
            "an array that is stored plainly or compressed once, with gzip or lzf (h5repack -f "
            "NONE writes such a file)",
            f"HDF5 filters {codes}",
        )
    size = math.prod(dataset.chunks) * int(dataset.dtype.itemsize)
    for code, _, values, _ in filters:
        if code == _LZF and len(values) > 2 and values[2] > size:  # LZF allocates this size
            raise misplaced(dataset, f"chunks of {size} bytes", f"{values[2]} in the lzf filter")
    infos: list[Any] = []
    if hasattr(dataset.id, "chunk_iter"):  # takes linear time, but is not in every HDF5
        dataset.id.chunk_iter(infos.append)
    else:
        infos += map(dataset.id.get_chunk_info, range(dataset.id.get_num_chunks()))
    most = math.prod(-(-n // chunk) for n, chunk in zip(dataset.shape, dataset.chunks))
    if len(infos) > most:
        raise misplaced(dataset, f"at most {most} chunks", f"{len(infos)}")
    for info in infos:
        # Chunks that compression would not shrink are stored uncompressed.
        used = [code for i, code in enumerate(codes) if not info.filter_mask >> i & 1]
        packed = next((i for i, code in enumerate(used) if code in (_GZIP, _LZF)), len(used))
        inside, outside = (4 * some.count(_FLETCHER32) for some in (used[:packed], used[packed:]))
        length = info.size - outside
        if packed < len(used):
            chunk = dataset.id.read_direct_chunk(info.chunk_offset)[1][:length]
            unpacked = _gzip_length if used[packed] == _GZIP else _lzf_length
            length = unpacked(chunk, size + inside)
        if length != size + inside:
            raise misplaced(dataset, f"chunks of {size} bytes", "one of another size")


def _gzip_length(chunk: bytes, expected: int) -> int:
    """Returns the decompressed size of a gzip chunk; stops just above the expected size."""
    return len(zlib.decompressobj().decompress(chunk, expected + 1))


def _lzf_length(chunk: bytes, expected: int) -> int:
    """Returns the same for LZF: each length precedes new bytes or a reference to earlier bytes."""
    at = length = 0
    while at < len(chunk) and length <= expected:
        control = chunk[at]
        if control < 32:
            at += control + 2
            length += control + 1
        else:
            further = control >> 5 == 7  # one more byte of the length
            length += (control >> 5) + 2 + (sum(chunk[at + 1 : at + 2]) if further else 0)
            at += 2 + further
    return length if at == len(chunk) else -1
