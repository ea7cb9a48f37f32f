"""Saves Flax variables to a file that Keras reads: ``save``."""

import io
import os
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dogwood_jax._base.arguments import PATH, ArgumentKind, expect, expect_given
from dogwood_jax._base.places import place_of
from dogwood_jax._base.problems import listed
from dogwood_jax.keras_h5._files.atomic import replace_file
from dogwood_jax.keras_h5._files.errors import KerasFileError, NotSavable
from dogwood_jax.keras_h5._files.hdf5 import BFLOAT16, dtype_of, is_name, is_numeric
from dogwood_jax.keras_h5._files.source import opened
from dogwood_jax.keras_h5._front.moments import replaced_moments
from dogwood_jax.keras_h5._kinds.kind import layout as weights_in
from dogwood_jax.keras_h5._kinds.nested import MODELS, layer_name
from dogwood_jax.keras_h5._models.resize import resized
from dogwood_jax.keras_h5._weights import write
from dogwood_jax.keras_h5._weights.config import entries_of
from dogwood_jax.keras_h5._weights.copy import copied
from dogwood_jax.keras_h5._weights.infer import infer_flax
from dogwood_jax.keras_h5._weights.layers import Layer, collections_of, unconverted, weights_of
from dogwood_jax.keras_h5._weights.layouts import LAYOUTS, TOP_LEVEL, Contents, contents
from dogwood_jax.keras_h5._weights.shapes import check_shapes

Place = tuple[str, ...]  # the path of a leaf, its collection first

_NO_PATH = ArgumentKind("a dict of layers", lambda value: not PATH.fits(value))
_COLLECTIONS = ("params", "batch_stats")


def save(
    path: str | os.PathLike[str],
    variables: Mapping[str, Any],
    *,
    layout: str | None = None,
    like: str | os.PathLike[str] | None = None,
    opt_state: Any = None,
) -> None:
    """Saves Flax variables in a file that Keras can read.

    The file is written completely or not at all: if anything fails, an existing file remains
    unchanged. ``load`` returns what was saved, in the same dtypes.

    Without ``like``, layers are written in the order of the dict. If that order is alphabetical,
    numbers in names are ordered by value instead, because JAX sorts dicts: ``dense_10`` before
    ``dense_2``. If another order matters, for example because Keras does not load by name, pass
    ``like``. Within a layer, weights are in Keras's order.

    Args:
        path: the file to write or replace.
        variables: ``{"params": {"dense_1": {"kernel": ..., "bias": ...}, ...}}``, as ``load``
            returns them, or the bare parameters. Arrays are floats, integers or booleans of any
            size. An empty dict is a layer without weights.
        layout: ``"h5"`` or ``"weights.h5"``: weights for ``model.load_weights`` of Keras 1 and 2
            or of Keras 3. ``"model.h5"`` or ``"keras"``: whole models, for which ``like`` must be
            a whole model. The default is the layout of ``like``, or without ``like`` the one that
            Keras expects for ``path``: ``"weights.h5"`` if the name ends so, otherwise ``"h5"``.
            The suffix ``.keras`` is for archives only (layout ``"keras"``), ``.h5`` never for them.
        like: a file whose names, order, attributes and layers without weights are copied. The
            arrays are those of ``variables``, in their present sizes. It may be ``path`` itself.
            If it is a whole model, its configuration gets the new sizes, so that
            ``keras.models.load_model`` opens the new file; the optimizer's arrays are left out
            if weights have changed their shapes, unless ``opt_state`` is given. A whole model of
            Keras 1 can be read, but not written.
        opt_state: the state of an optimizer as ``load_optimizer`` returns it, or an Optax state
            that contains it, grown by ``grow_opt_state`` as the variables are by ``grow``. It
            replaces the moments in ``like``, which must be a whole model with the same optimizer
            and in the layout of the new file. Keras resumes from it, with the learning rate of
            ``like``, and with the step count of ``like`` if the state has none. Moments of weights
            that the model does not train are left out.

    Warns:
        RuntimeWarning: if ``opt_state`` comes from a ``growable`` and has grown, because Keras
            counts steps once for all entries; if ``like`` does not record its optimizer; or if the
            heads of a MultiHeadAttention had one size for keys and values and now have two, which
            Keras cannot compute on JAX.

    Raises:
        TypeError: if ``path`` or ``like`` is not a path.
        ValueError: if the variables are not such a tree or do not fit ``like``, or if
            ``opt_state`` belongs to another optimizer, does not fit the variables, or has no place
            in ``like``; one message lists all problems, before anything is written.
        KerasFileError: if ``load`` cannot read ``like``.
        OSError: if the file cannot be written, ``like`` cannot be read, or ``path`` is something
            other than a regular file.

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
    expect("keras_h5.save(path, variables)", path=(PATH, path), variables=(_NO_PATH, variables))
    expect_given("keras_h5.save", like=(PATH, like))
    place = place_of(Path(path))
    collections, leaves = _checked(variables)
    if layout not in (None, *LAYOUTS):
        raise ValueError(f"layout {layout!r}: expected one of {', '.join(map(repr, LAYOUTS))}")
    # In memory first: HDF5 does not report a full disk, and would leave a broken file behind.
    draft = io.BytesIO()
    if like is None:
        if opt_state is not None:
            raise ValueError(
                "opt_state: only whole-model files can hold it; pass like= the file that "
                "load_optimizer read"
            )
        layout = layout or _layout_by_name(Path(path))
        _check_name(Path(path), layout)
        new, arrays = _from_variables(collections, leaves, layout)
        write.write(draft, new, arrays)
    else:
        with opened(like) as source:
            old = contents(source)
            _check_name(Path(path), layout or old.layout)
            new, arrays = _from_file(old, os.fspath(like), collections, leaves, layout)
            if layout in (None, old.layout):
                moments = (
                    ()
                    if opt_state is None
                    else replaced_moments(opt_state, old, new, _parameters(leaves), os.fspath(like))
                )
                copied(source, old, new, arrays, draft, moments)
            elif opt_state is not None:
                raise ValueError(
                    f"opt_state: cannot be saved in layout {layout!r}; leave out layout=, to use "
                    f"that of {os.fspath(like)}"
                )
            else:
                new = replace(new, layout=layout)
                _refuse_unwritable(new, arrays)
                write.write(draft, new, arrays)
    replace_file(place, draft.getbuffer())


# Checks of the arguments.


def _layout_by_name(path: Path) -> str:
    """Returns the layout that Keras expects for a file name."""
    if path.suffix == ".keras":
        return "keras"
    return "weights.h5" if path.name.endswith(".weights.h5") else "h5"


def _check_name(path: Path, layout: str) -> None:
    """Raises if Keras would not read a file of this layout under this name."""
    if path.suffix == ".keras" and layout != "keras":
        raise NotSavable(
            f"{path}: Keras expects an archive under a name that ends in .keras, and layout "
            f"{layout!r} is an HDF5 file; choose a name that ends in .h5"
        )
    if path.suffix in (".h5", ".hdf5") and layout == "keras":
        raise NotSavable(
            f"{path}: Keras expects an HDF5 file under a name that ends in {path.suffix}, and "
            "layout 'keras' is an archive; choose a name that ends in .keras, or pass "
            "layout='h5' for the weights alone"
        )


def _leaves(tree: Any, *path: Any) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Yields the leaves of nested mappings and their paths, in the mappings' order."""
    if isinstance(tree, Mapping):
        for name, branch in tree.items():
            yield from _leaves(branch, *path, name)
    else:
        yield path, tree


def _checked(
    variables: Mapping[str, Any],
) -> tuple[dict[str, Mapping[str, Any]], dict[Place, np.ndarray]]:
    """Checks variables and returns their collections, and their arrays by path."""
    if not isinstance(variables, Mapping):
        raise ValueError(f"expected a dict of layers, got {_describe(variables)}")
    collections = variables if "params" in variables else {"params": variables}
    problems = [
        f"{_place(path)}: is in none of the collections {' and '.join(_COLLECTIONS)}, and Keras "
        "has no others; leave it out"
        for path, _ in _leaves(collections)
        if path[0] not in _COLLECTIONS
    ]
    leaves = {path: leaf for path, leaf in _leaves(collections) if path[0] in _COLLECTIONS}
    for path, leaf in leaves.items():
        if len(path) < 3:
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
    arrays = {path: np.asarray(leaf) for path, leaf in leaves.items()}
    return {c: collections[c] for c in _COLLECTIONS if c in collections}, arrays


def _parameters(leaves: Mapping[Place, np.ndarray]) -> dict[Place, np.ndarray]:
    return {place[1:]: leaf for place, leaf in leaves.items() if place[0] == "params"}


def _is_array(leaf: Any) -> bool:
    """Returns whether a leaf is an array of a dtype that Keras files can hold."""
    if not isinstance(leaf, jax.Array | np.ndarray | np.generic):
        return False
    dtype = leaf.dtype  # keys of jax.random have no NumPy dtype
    return isinstance(dtype, np.dtype) and (is_numeric(dtype) or dtype == BFLOAT16)


def _describe(leaf: Any) -> str:
    """Returns a description of a value for errors."""
    if hasattr(leaf, "dtype") and hasattr(leaf, "shape"):
        return f"{type(leaf).__name__} of dtype {leaf.dtype} and shape {leaf.shape}"
    return f"{type(leaf).__name__} {reprlib.repr(leaf)}"


def _place(path: Sequence[Any]) -> str:
    return "/".join(map(str, path[1:] if path[:1] == ("params",) else path))


def _refused(problems: list[str]) -> NotSavable:
    return NotSavable(listed("cannot save these variables", problems))


def _layer_trees(
    collections: Mapping[str, Mapping[str, Any]], leaves: Mapping[Place, np.ndarray]
) -> dict[str, dict[str, Any]]:
    """Returns the collections of each layer, with NumPy arrays."""
    names = dict.fromkeys(name for tree in collections.values() for name in tree)

    def arrays(path: Place, tree: Any) -> Any:
        if isinstance(tree, Mapping):
            return {name: arrays((*path, name), branch) for name, branch in tree.items()}
        return leaves[path]

    return {
        name: {c: arrays((c, name), tree[name]) for c, tree in collections.items() if name in tree}
        for name in names
    }


# Without like=.


def _from_variables(
    collections: Mapping[str, Mapping[str, Any]], leaves: Mapping[Place, np.ndarray], layout: str
) -> tuple[Contents, dict[str, dict[str, np.ndarray]]]:
    """Returns the contents of a new file: layers without arrays, and the arrays of each layer."""
    problems = [
        f"{_place(path)}: {name!r} cannot be a weight's name in HDF5"
        for path in leaves
        for name in path[2:]
        if not is_name(name) or "/" in name
    ]
    trees = _layer_trees(collections, leaves)
    problems += [
        f"{name}: {name!r} cannot be a layer's name in HDF5" for name in trees if not is_name(name)
    ]
    if not trees:
        problems.append("params: is empty, expected at least one layer")
    layers, arrays = [], {}
    for name in [] if problems else write.layer_order(trees):
        class_name, config = infer_flax(trees[name])
        nested = next((p for p in leaves if p[1] == name and len(p) > 3), None)
        if nested and class_name in (None, *MODELS):
            problems.append(
                f"{_place(nested)}: a layer holds arrays, not layers; save params with the layers "
                "at the top, or pass like= a file of the nested model"
            )
            continue
        weights = weights_of(class_name, config, trees[name])
        if any(unconverted(class_name, config, weights)):  # the inferred class was wrong
            class_name, config = None, {}
            weights = weights_of(class_name, config, trees[name])
        if class_name is None:
            weights = dict(sorted(weights.items(), key=lambda item: write.weight_position(item[0])))
        layers.append(Layer(name, *write.told(name, class_name, config, weights), {}))
        arrays[name] = weights
    if problems:
        raise _refused(problems)
    new = Contents(layout, None, None, None, tuple(layers), {}, None, {})
    _refuse_unwritable(new, arrays)
    return new, arrays


def _refuse_unwritable(new: Contents, arrays: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """Raises if a layout needs information that is not there."""
    problems = []
    if new.layout in ("model.h5", "keras") and new.config is None:
        problems.append(
            f"params: layout {new.layout!r} holds a model's configuration; pass like= a whole "
            "model, or choose 'h5' or 'weights.h5'"
        )
    elif new.layout == "keras":
        problems.append(
            "params: layout 'keras' needs the model's configuration in another form than "
            "'model.h5'; pass like= a .keras archive, or choose 'model.h5' and let Keras convert it"
        )
    if new.layout in ("h5", "model.h5"):
        problems += [
            f"{layer.name}: Keras expects quantized weights of layout {new.layout!r} in another "
            "order; choose 'weights.h5', or leave out layout="
            for layer in new.layers
            if any(weight.quantized for weight in weights_in(layer.class_name, layer.config))
        ]
    if new.layout in ("weights.h5", "keras"):
        unknown = (None, *MODELS) if new.config is None else (None,)
        problems += [
            f"{layer.name}: its class or the layers in it are not known, but layout "
            f"{new.layout!r} names layers by class; pass like= a whole model"
            for layer in new.layers
            if arrays[layer.name] and layer.class_name in unknown and layer.name != TOP_LEVEL
        ]
    if problems:
        raise _refused(problems)


# With like=.


def _from_file(
    old: Contents,
    filename: str,
    collections: Mapping[str, Mapping[str, Any]],
    leaves: Mapping[Place, np.ndarray],
    layout: str | None,
) -> tuple[Contents, dict[str, dict[str, np.ndarray]]]:
    """Returns the contents of a file like the old one: its layers resized, and their arrays."""
    if old.config is not None and str(old.keras_version).startswith("1."):
        raise NotSavable(
            f"{filename}: is a whole model of Keras 1, which can be read but not written; leave "
            "out like=, to write a weights file that Keras 2 and 3 read"
        )
    expected = {
        (collection, layer.name, *path): leaf
        for layer in old.layers
        for collection, tree in _stand_ins(layer).items()
        for path, leaf in _leaves(tree)
    }
    problems = []
    for path, leaf in expected.items():
        if path not in leaves:
            problems.append(f"{_place(path)}: missing; {filename} has it with shape {leaf.shape}")
        elif leaves[path].ndim != leaf.ndim:
            problems.append(
                f"{_place(path)}: expected {leaf.ndim} axes, as in {filename}, where it has "
                f"shape {leaf.shape}; got shape {leaves[path].shape}"
            )
    problems += [
        f"{_place(path)}: has no place in {filename}; leave it out, or save without like="
        for path in leaves
        if path not in expected
    ]
    if problems:
        raise _refused(problems)
    grown = any(leaves[path].shape != leaf.shape for path, leaf in expected.items())
    # A weights file does not need the config of a model class that makes its layers itself.
    alone = layout in ("h5", "weights.h5")
    config = old.config
    try:
        if config and grown and (entries_of(config) or not alone):
            config = resized(config, collections, is_opened=not alone)
    except ValueError as error:
        raise NotSavable(str(error)) from error
    sizes = {layer_name(entry): entry["config"] for entry in entries_of(config)}
    trees = _layer_trees(collections, leaves)
    layers, arrays = [], {}
    for layer in old.layers:
        details = sizes.get(layer.name, layer.config)
        layers.append(replace(layer, config=details))
        try:
            arrays[layer.name] = weights_of(layer.class_name, details, trees.get(layer.name, {}))
            check_shapes(layer.class_name, details, arrays[layer.name])
        except (KerasFileError, ValueError) as error:
            problems.append(f"{layer.name}: {error}")
    if problems:
        raise _refused(problems)
    return replace(old, config=config, layers=tuple(layers)), arrays


def _stand_ins(layer: Layer) -> Mapping[str, Any]:
    """Returns stand-ins for a layer's Flax arrays: their shapes, each with one repeated element."""
    shapes = {
        name: np.broadcast_to(np.zeros((), dtype_of(dataset)), dataset.shape)
        for name, dataset in layer.weights.items()
    }
    return collections_of(layer.class_name, layer.config, shapes)
