"""Damage to Keras files: what strangers, disks and networks do to them.

    python tests/keras_fuzz.py 5000 [seed]

loads and inspects that many damaged copies of the files in tests/data, and reports how they ended.
"""

import collections
import io
import resource
import sys
import tempfile
import time
import warnings
import zipfile
from pathlib import Path

import h5py
import numpy as np

from dogwood_jax import keras_h5

DATA = Path(__file__).parent / "data"


def sources():
    """Returns the files that are damaged: those of real Keras, one a name and layout."""
    return sorted(p for p in DATA.iterdir() if p.suffix in (".h5", ".keras"))


def damaged(data, rng):
    """Returns a damaged copy of a file's bytes."""
    kind = rng.choice(["flip", "flips", "run", "truncate", "insert", "inside", "edit", "edit"])
    if zipfile.is_zipfile(io.BytesIO(data)) and kind in ("inside", "edit"):
        return _damaged_member(data, rng)
    if kind in ("edit", "inside"):
        return _edited(data, rng)
    changed = bytearray(data)
    if kind == "truncate":
        return data[: rng.integers(len(data))]
    if kind == "insert":
        place = int(rng.integers(len(data)))
        return data[:place] + rng.bytes(int(rng.integers(1, 9))) + data[place:]
    # Structures are at the beginning of HDF5 files and between their arrays.
    end = len(data) if rng.random() < 0.5 else min(len(data), 4096)
    if kind == "run":
        start = int(rng.integers(end))
        changed[start : start + 8] = b"\xff" * len(changed[start : start + 8])
    else:
        for _ in range(1 if kind == "flip" else int(rng.integers(2, 20))):
            changed[rng.integers(end)] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def _damaged_member(data, rng):
    """Damages one member of an archive, with the checksums of the new bytes."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new:
        names = old.namelist()
        victim = names[rng.integers(len(names))]
        for name in names:
            content = old.read(name)
            if name == victim:
                if rng.random() < 0.1:
                    continue
                content = damaged(content, rng) if name.endswith(".h5") else _flipped(content, rng)
            new.writestr(name, content, zipfile.ZIP_DEFLATED if rng.random() < 0.3 else None)
    return out.getvalue()


def _flipped(text, rng):
    changed = bytearray(text)
    for _ in range(int(rng.integers(1, 4))):
        place = int(rng.integers(len(changed)))
        changed[place : place + 1] = rng.choice([b"[", b"{", b'"', b"0", b",", b"", b"null"])
    return bytes(changed)


def _edited(data, rng):
    """Edits a file as HDF5 itself allows: attributes, links, arrays."""
    draft = io.BytesIO(data)
    try:
        with h5py.File(draft, "r+") as file:
            places = ["/"]
            file.visit(places.append)
            for _ in range(int(rng.integers(1, 4))):
                _edit(file, str(places[rng.integers(len(places))]), rng)
    except (KeyError, OSError, RuntimeError, ValueError):
        pass  # an edit before it removed the place
    return draft.getvalue()


def _edit(file, place, rng):
    item = file[place]
    kind = rng.choice(["attribute", "delete", "link", "array", "shape"])
    if kind == "attribute" and len(item.attrs):
        name = list(item.attrs)[rng.integers(len(item.attrs))]
        values = [1, "", "{}", "[" * 3000, ["a", "a"], [b"\xff"], ["../x"], np.zeros((0,)), None]
        value = values[rng.integers(len(values))]
        if value is None:
            del item.attrs[name]
        else:
            item.attrs[name] = value
    elif place == "/":
        return
    elif kind == "delete":
        del file[place]
    elif kind == "link":
        del file[place]
        file[place] = [
            h5py.ExternalLink("/etc/passwd", "/"),
            h5py.SoftLink("/"),
            h5py.SoftLink(place),
            h5py.SoftLink("/nowhere"),
        ][rng.integers(4)]
    else:
        del file[place]
        if kind == "array":
            arrays = ["text", 1.0, np.zeros((2, 3, 4)), np.full((4, 4), np.nan), np.zeros(3, "c16")]
            file[place] = arrays[rng.integers(len(arrays))]
        else:
            shapes = [(1 << 40,), (1 << 20, 1 << 20), (0,), (3, 1 << 33), ()]
            shape = shapes[rng.integers(len(shapes))]
            chunks = (1 << 10,) * len(shape) if len(shape) and rng.random() < 0.5 else None
            file.create_dataset(place, shape, "f4", chunks=chunks)


def outcome(path):
    """Loads and inspects a file; anything but a load or the one error is raised."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        try:
            keras_h5.inspect(path)
            keras_h5.load(path)
        except keras_h5.KerasFileError as error:
            assert str(path) in str(error)
            return "refused"
    return "loaded"


def main(count, seed):
    """Damages files, and prints how it ended."""
    rng = np.random.default_rng(seed)
    files = {path: path.read_bytes() for path in sources()}
    ends, slowest = collections.Counter(), 0.0
    with tempfile.TemporaryDirectory() as folder:
        for number in range(count):
            path = list(files)[rng.integers(len(files))]
            target = Path(folder, "damaged")
            target.write_bytes(damaged(files[path], rng))
            start = time.monotonic()
            try:
                ends[outcome(target)] += 1
            except Exception as error:
                ends[type(error).__name__] += 1
                print(number, path.name, repr(error)[:200])
            slowest = max(slowest, time.monotonic() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{count} files: {dict(ends)}; slowest {slowest:.2f} s, peak memory {peak:.0f} MiB")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)
