"""Weights in Keras's HDF5 files: ``load`` and ``save``.

The layout is the one that Keras 2 writes with ``model.save_weights("x.h5")``::

    /                           attributes layer_names, backend, keras_version
    /dense_1                    attribute weight_names: dense_1/kernel:0, dense_1/bias:0
    /dense_1/dense_1/kernel:0   float32 [in, out]
    /dense_1/dense_1/bias:0     float32 [out]
    /flatten                    attribute weight_names, empty: a layer without weights

The attributes alone say what a file holds and in which order; HDF5 itself lists by the alphabet,
biases before kernels. Keras reads the layers in that order, or with ``by_name=True`` by name.
"""

import contextlib
import errno
import io
import os
import re
import reprlib
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from dogwood_jax.keras_h5._errors import KerasFileError

if TYPE_CHECKING:
    import h5py

# Weights of the model itself, outside its layers: a group that Keras leaves out of layer_names.
_TOP_LEVEL = "top_level_model_weights"

# Keras tells a layer's weights apart by position alone, and JAX sorts the keys of dicts.
_WEIGHT_ORDER = (
    *("depthwise_kernel", "pointwise_kernel", "kernel", "recurrent_kernel"),
    *("gamma", "scale", "bias", "beta", "moving_mean", "moving_variance"),
)

# What files without a model to imitate say of themselves: the last Keras 2 of that name. Keras
# treats files of all versions from 2.0 on alike.
_ORIGIN = {"backend": "tensorflow", "keras_version": "2.15.0"}

_ATTRIBUTE_LIMIT = 64512  # bytes; Keras splits longer attributes over name0, name1, ...

_BFLOAT16 = np.dtype(jnp.bfloat16)  # HDF5 has no such type: Keras stores two opaque bytes
_OPAQUE16 = np.dtype("V2")


def load(path: str | os.PathLike[str]) -> dict[str, dict[str, Any]]:
    """Loads the weights of a file that Keras 2 wrote with ``model.save_weights("x.h5")``.

    Layers and weights keep the file's order, shapes and dtypes, and ``save`` writes them back. A
    layer without weights (Flatten) is an empty dict, which Flax and Optax pass over.

    Args:
        path: the file. It is opened for reading only.

    Returns:
        ``{"params": {"dense_1": {"kernel": ..., "bias": ...}, ...}}`` with NumPy arrays, which
        keep float64 where JAX would not; bfloat16 is ``jax.numpy.bfloat16``. Weights are named by
        the last part of their names in the file. Only where a layer holds layers itself (a nested
        model) are they nested as well. Weights of the model outside its layers, where there are
        any, come last, as ``top_level_model_weights``.

    Raises:
        KerasFileError: if the file holds anything else, naming the place in it.
        OSError: if the file is missing or must not be read.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> from dogwood_jax import keras_h5
        >>> layer = {"kernel": np.ones((784, 2), np.float16), "bias": np.zeros(2)}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     keras_h5.save(f"{folder}/small.h5", {"params": {"dense_1": layer}})
        ...     variables = keras_h5.load(f"{folder}/small.h5")
        >>> variables["params"]["dense_1"]["kernel"].shape
        (784, 2)
        >>> [str(array.dtype) for array in variables["params"]["dense_1"].values()]
        ['float16', 'float64']
    """
    with _opened(path) as file:
        params = {
            layer: _nest((path, _read(file, place)) for place, path in weights.items())
            for layer, weights in _contents(file).items()
        }
    return {"params": params}


def save(
    path: str | os.PathLike[str],
    variables: Mapping[str, Any],
    *,
    like: str | os.PathLike[str] | None = None,
) -> None:
    """Saves weights so that Keras reads them with ``model.load_weights(path)``, also by name.

    The file appears whole or not at all: whatever fails, a file that was there before is still
    there, unchanged. ``load`` gives back what was saved, in the same dtypes.

    Without ``like``, layers are written in the order of the dict, unless it is the alphabetical
    one: JAX leaves dicts sorted behind, ``dense_10`` before ``dense_2``, so numbers in names are
    then put in the order of their values. Where another order matters, as for Keras when it does
    not load by name, say it with ``like``. Within a layer kernels come before biases, as in Keras.

    Args:
        path: the file to write or to replace.
        variables: ``{"params": {"dense_1": {"kernel": ..., "bias": ...}, ...}}``, or the bare
            parameters. Arrays are floats, integers or booleans of any size. An empty dict is a
            layer without weights.
        like: a file whose names, order, attributes and layers without weights the new one takes
            over, with the arrays of ``variables`` in whatever sizes they have now. It may be
            ``path`` itself. Nested layers (a model in a model) need it.

    Raises:
        ValueError: if the variables are no such tree or do not belong to ``like``; all that is
            wrong in one message, before anything is written.
        KerasFileError: if ``like`` is not a file that ``load`` reads.
        OSError: if the file cannot be written, or ``like`` not be read.

    Example:
        >>> import tempfile
        >>> import jax
        >>> import numpy as np
        >>> import dogwood_jax as dw
        >>> layer = lambda i, o: {"kernel": np.ones((i, o), "f"), "bias": np.zeros(o, "f")}
        >>> params = {"flatten": {}, "dense_1": layer(4, 2), "dense_2": layer(2, 3)}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     dw.keras_h5.save(f"{folder}/small.h5", params)
        ...     small = dw.keras_h5.load(f"{folder}/small.h5")
        ...     wide = dw.widen(small, "dense_1", into="dense_2", units=8, key=jax.random.key(0))
        ...     dw.keras_h5.save(f"{folder}/wide.h5", wide, like=f"{folder}/small.h5")
        ...     wide = dw.keras_h5.load(f"{folder}/wide.h5")
        >>> list(wide["params"])
        ['flatten', 'dense_1', 'dense_2']
        >>> wide["params"]["dense_2"]["kernel"].shape
        (8, 3)
    """
    import h5py

    params, arrays = _checked(variables)
    # In memory first: HDF5 does not report a full disk, and would leave a broken file behind.
    draft = io.BytesIO()
    with h5py.File(draft, "w") as new:
        if like is None:
            _write(new, params, arrays)
        else:
            with _opened(like) as old:
                _copy(old, new, _replacements(old, arrays))
    _replace_file(Path(path), draft.getbuffer())


@contextlib.contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator["h5py.File"]:
    """Opens a file for reading; what HDF5 cannot make out in it is a ``KerasFileError``."""
    import h5py

    with open(path, "rb"):  # a file that is missing or forbidden gets Python's own error
        pass
    try:
        with h5py.File(path, "r") as file:
            yield file
    except (OSError, RuntimeError) as error:
        raise KerasFileError(
            f"{os.fspath(path)}: expected an HDF5 file, complete and intact; HDF5 says: {error}"
        ) from error


def _contents(file: "h5py.File") -> dict[str, dict[str, tuple[str, ...]]]:
    """Returns, for each layer, its weights: their places in the file and paths in the layer."""
    layers = _names(file, "layer_names")
    if _TOP_LEVEL in file:
        layers.append(_TOP_LEVEL)
    contents = {}
    for layer in layers:
        names = _names(_member(file, layer, "Group"), "weight_names")
        paths = [tuple(name.removesuffix(":0").split("/")) for name in names]
        # A variable's name may begin with that of another layer, model or cell; what all weights
        # of a layer share tells nothing.
        shared = len(os.path.commonprefix([path[:-1] for path in paths]))
        paths = [path[shared:] for path in paths]
        inner = {path[:n] for path in paths for n in range(1, len(path))}
        if len({*paths} - inner) < len(names):
            raise _error(file[layer], "weight_names of distinct weights", reprlib.repr(names))
        contents[layer] = {f"{layer}/{name}": path for name, path in zip(names, paths)}
    if not contents.get(_TOP_LEVEL, True):
        del contents[_TOP_LEVEL]  # Keras writes the group always; empty, it is no layer
    return contents


def _names(group: "h5py.Group", attribute: str) -> list[str]:
    """Reads an attribute that lists names, whole or split over attribute0, attribute1, ..."""
    if attribute in group.attrs:
        parts = [group.attrs[attribute]]
    else:
        parts = []
        while (part := f"{attribute}{len(parts)}") in group.attrs:
            parts.append(group.attrs[part])
    if not parts:
        raise _error(
            group,
            f"an attribute {attribute}, as in files that Keras 2 writes with "
            "model.save_weights('x.h5') (whole models and files of Keras 3 have other layouts: "
            "load them in Keras and save their weights in this one)",
            "none",
        )
    names = [
        # Fixed-length names are bytes, others str; what is not UTF-8 fails the next check.
        name.decode(errors="surrogateescape") if isinstance(name, bytes) else name
        for part in parts
        for name in np.atleast_1d(part)
    ]
    if not all(map(_is_name, names)) or len(set(names)) < len(names):
        raise _error(group, f"distinct names in attribute {attribute}", reprlib.repr(names))
    return names


def _is_name(name: object) -> bool:
    """Whether an HDF5 object can have this name, relative to its group."""
    return (
        isinstance(name, str)
        and not any(part in ("", ".") for part in name.split("/"))
        and not re.search("[\0\ud800-\udfff]", name)
    )


def _member(group: "h5py.Group", name: str, kind: str) -> Any:
    """Returns the Group or Dataset of this name."""
    member = group.get(name)
    if type(member).__name__ != kind:
        found = "nothing" if member is None else f"a {type(member).__name__}"
        raise _error(group, f"a {kind} {name!r}, which is listed in the attributes", found)
    return member


def _error(item: Any, expected: str, found: str) -> KerasFileError:
    """Returns the error for a group or dataset in which something else was expected."""
    return KerasFileError(
        f"{item.file.filename}: at {item.name}: expected {expected}; found {found}"
    )


def _dataset(file: "h5py.File", place: str) -> "h5py.Dataset":
    """Returns the dataset of a weight."""
    dataset = _member(file, place, "Dataset")
    if dataset.shape is None or not (_is_numeric(dataset.dtype) or dataset.dtype == _OPAQUE16):
        found = "no data" if dataset.shape is None else f"dtype {dataset.dtype}"
        raise _error(dataset, "an array of numbers", found)
    return dataset


def _read(file: "h5py.File", place: str) -> np.ndarray:
    """Reads the array of a weight."""
    array = np.asarray(_dataset(file, place)[()])
    if array.dtype == _OPAQUE16:
        return array.view(_BFLOAT16)
    return array.astype(array.dtype.newbyteorder("="), copy=False)  # JAX takes no other


def _nest(items: Iterable[tuple[tuple[str, ...], Any]]) -> dict[str, Any]:
    """Returns nested dicts with each item at its path."""
    tree: dict[str, Any] = {}
    for (*parents, name), item in items:
        branch = tree
        for parent in parents:
            branch = branch.setdefault(parent, {})
        branch[name] = item
    return tree


def _leaves(tree: Any, *path: Any) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Yields the leaves of nested mappings and their paths, in the mappings' order."""
    if isinstance(tree, Mapping):
        for name, branch in tree.items():
            yield from _leaves(branch, *path, name)
    else:
        yield path, tree


def _checked(
    variables: Mapping[str, Any],
) -> tuple[Mapping[str, Any], dict[tuple[str, ...], np.ndarray]]:
    """Returns the parameters as they came, and their arrays by path, once both are in order."""
    if not isinstance(variables, Mapping):
        raise ValueError(f"expected a dict of layers, got {_describe(variables)}")
    params = variables.get("params", variables)
    problems = []
    if params is not variables:
        problems += [
            f"{_place(path)}: is outside 'params', and this layout holds nothing else; save "
            "{'params': variables['params']}"
            for path, _ in _leaves(variables)
            if path[0] != "params"
        ]
    leaves = dict(_leaves(params))
    for path, leaf in leaves.items():
        if len(path) < 2:
            problems.append(
                f"{_place(path) or 'params'}: expected a layer, as in "
                f"{{'dense_1': {{'kernel': array, 'bias': array}}}}, got {_describe(leaf)}"
            )
        elif not _is_array(leaf):
            problems.append(
                f"{_place(path)}: expected an array of numbers (floats up to float64, integers or "
                f"booleans), got {_describe(leaf)}"
            )
    if problems:
        raise _refused(problems)
    return params, {path: np.asarray(leaf) for path, leaf in leaves.items()}


def _is_array(leaf: Any) -> bool:
    """Whether a leaf is an array of a dtype that Keras files hold."""
    if not isinstance(leaf, jax.Array | np.ndarray | np.generic):
        return False
    dtype = leaf.dtype  # no NumPy dtype for the keys of jax.random
    return isinstance(dtype, np.dtype) and (_is_numeric(dtype) or dtype == _BFLOAT16)


def _is_numeric(dtype: np.dtype) -> bool:
    """Whether a dtype is NumPy's own, of floats, integers or booleans."""
    return issubclass(dtype.type, np.floating | np.integer | np.bool_)


def _describe(leaf: Any) -> str:
    """Names what stands where something else belongs."""
    if hasattr(leaf, "dtype") and hasattr(leaf, "shape"):
        return f"{type(leaf).__name__} of dtype {leaf.dtype} and shape {leaf.shape}"
    return f"{type(leaf).__name__} {reprlib.repr(leaf)}"


def _place(path: tuple[Any, ...]) -> str:
    return "/".join(map(str, path))


def _refused(problems: list[str]) -> ValueError:
    return ValueError("cannot save these variables:\n" + "\n".join(f"- {p}" for p in problems))


def _write(
    new: "h5py.File", params: Mapping[str, Any], arrays: dict[tuple[str, ...], np.ndarray]
) -> None:
    """Writes a file from nothing but the variables."""
    problems = []
    for path in arrays:
        if len(path) > 2:
            problems.append(
                f"{_place(path)}: a layer holds arrays, not layers; save params with the layers at "
                "the top, or pass like= a file of the nested model"
            )
        elif not _is_name(path[1]) or "/" in path[1]:
            problems.append(f"{_place(path)}: {path[1]!r} cannot be a weight's name in HDF5")
    for layer in params:
        if not _is_name(layer):
            problems.append(f"{layer}: {layer!r} cannot be a layer's name in HDF5")
    if not params:
        problems.append("params: is empty, expected at least one layer")
    if problems:
        raise _refused(problems)
    layers: dict[str, list[str]] = {layer: [] for layer in _layer_order(params)}
    for layer, name in arrays:
        layers[layer].append(name)
    _write_names(new, "layer_names", [layer for layer in layers if layer != _TOP_LEVEL])
    for attribute, value in _ORIGIN.items():
        new.attrs[attribute] = np.bytes_(value)  # early versions of Keras can only read bytes
    for layer, weights in layers.items():
        weights = sorted(weights, key=_weight_position)
        group = new.require_group(layer)
        _write_names(group, "weight_names", [f"{layer}/{name}:0" for name in weights])
        for name in weights:
            _write_array(group, f"{layer}/{name}:0", arrays[layer, name])


def _layer_order(params: Mapping[str, Any]) -> list[str]:
    """Returns the layers in the dict's order, or numbers by value where JAX has sorted it."""
    layers = list(params)
    if layers != sorted(layers):
        return layers
    return sorted(layers, key=lambda name: re.sub("[0-9]+", lambda n: n[0].zfill(9), name))


def _weight_position(name: str) -> int:
    return _WEIGHT_ORDER.index(name) if name in _WEIGHT_ORDER else len(_WEIGHT_ORDER)


def _write_names(group: "h5py.Group", attribute: str, names: list[str]) -> None:
    """Writes names as fixed-length bytes, which Keras of all ages reads, split where too long."""
    encoded = np.array([name.encode() for name in names])
    if encoded.nbytes <= _ATTRIBUTE_LIMIT:
        group.attrs[attribute] = encoded
        return
    step = _ATTRIBUTE_LIMIT // encoded.itemsize
    for part, start in enumerate(range(0, len(encoded), step)):
        group.attrs[f"{attribute}{part}"] = encoded[start : start + step]


def _write_array(group: "h5py.Group", name: str, array: np.ndarray) -> Any:
    """Writes one array and returns its dataset."""
    return group.create_dataset(
        name, data=array.view(_OPAQUE16) if array.dtype == _BFLOAT16 else array
    )


def _replacements(old: "h5py.File", arrays: dict[tuple[str, ...], np.ndarray]) -> dict[str, Any]:
    """Returns the arrays where the old file has its own, in nested dicts like its groups."""
    places = {
        (layer, *path): place
        for layer, weights in _contents(old).items()
        for place, path in weights.items()
    }
    problems = []
    for path, place in places.items():
        dataset = _dataset(old, place)
        if path not in arrays:
            problems.append(
                f"{_place(path)}: is missing; {old.filename} has it, of shape {dataset.shape}"
            )
        elif arrays[path].ndim != dataset.ndim:
            problems.append(
                f"{_place(path)}: expected {dataset.ndim} axes, as {old.filename} has it with "
                f"shape {dataset.shape}; got shape {arrays[path].shape}"
            )
    problems += [
        f"{_place(path)}: has no place in {old.filename}; leave it out, or save without like="
        for path in arrays
        if path not in places
    ]
    if problems:
        raise _refused(problems)
    return _nest((tuple(place.split("/")), arrays[path]) for path, place in places.items())


def _copy(old: "h5py.Group", new: "h5py.Group", replacements: Mapping[str, Any]) -> None:
    """Copies a group with all that is in it, other arrays in place of those replaced."""
    import h5py

    _copy_attributes(old, new)
    for name in old:
        replacement = replacements.get(name)
        link = old.get(name, getlink=True)
        if replacement is None and isinstance(link, h5py.HardLink):
            old.copy(name, new)
        elif replacement is None:
            new[name] = link  # not what it points to, perhaps in another file
        elif isinstance(replacement, dict):
            _copy(old[name], new.create_group(name), replacement)
        else:
            _copy_attributes(old[name], _write_array(new, name, replacement))


def _copy_attributes(old: Any, new: Any) -> None:
    for name, value in old.attrs.items():
        # With the type of the file, which NumPy's array of names does not know.
        new.attrs.create(name, value, dtype=old.attrs.get_id(name).dtype)


def _replace_file(path: Path, data: memoryview) -> None:
    """Writes a file beside the old one, and puts it in its place when it is safe on the disk."""
    target = path.resolve()  # through a symbolic link, not over it
    if not target.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "no such folder; make it first", str(target.parent))
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".keras_h5-") as folder:
        draft = Path(folder, target.name)
        with draft.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        if target.exists():
            shutil.copymode(target, draft)
        os.replace(draft, target)
