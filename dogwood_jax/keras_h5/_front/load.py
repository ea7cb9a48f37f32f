"""Weights of a file as variables of Flax: ``load``."""

import os
import warnings
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from dogwood_jax._growth.finite import is_finite
from dogwood_jax.keras_h5._files.errors import shown
from dogwood_jax.keras_h5._files.hdf5 import check_sizes, read_array
from dogwood_jax.keras_h5._files.source import opened
from dogwood_jax.keras_h5._weights.layers import collections_of
from dogwood_jax.keras_h5._weights.layouts import contents


def load(path: str | os.PathLike[str], *, limit: int | None = None) -> dict[str, dict[str, Any]]:
    """Loads the weights of a file that Keras wrote, as those of the same layers in Flax.

    Any layout of Keras 1, 2 and 3, recognised by what the file holds, whatever its name: weights
    (``save_weights("x.h5")``, ``save_weights("x.weights.h5")``), whole models (``save("x.h5")``)
    and archives (``save("x.keras")``, or the folder of one). Arrays are renamed, split and
    transposed to what the corresponding layer of ``flax.linen`` expects, and ``save`` writes them
    back; ``inspect`` lists those that have no counterpart, which keep their names. Layers keep the
    file's order; one without weights (Flatten) is an empty dict, which Flax and Optax pass over.

    Nothing in the file is executed, and nothing outside it is read. What would crash HDF5 or take
    far more memory than the file is looked for first, and refused. HDF5 still decodes types and
    arrays itself. Read files that may be attacks in a process of its own, whose end is an error
    here: ``concurrent.futures.ProcessPoolExecutor(1).submit(keras_h5.load, path).result()``.

    Args:
        path: the file. It is opened for reading only.
        limit: bytes that the arrays may take in memory altogether; four times the file's size and
            64 MiB unless given, which is more than arrays take that are not compressed.

    Returns:
        ``{"params": {"dense_1": {"kernel": ..., "bias": ...}, ...}}`` with NumPy arrays, which
        keep float64 where JAX would not; bfloat16 is ``jax.numpy.bfloat16``. Statistics of
        BatchNormalization are in ``"batch_stats"``, which is there where a file has some. A model
        in a model is a layer that holds layers. Weights of the model outside its layers, where
        there are any, come last, as ``top_level_model_weights``.

        Arrays of layers whose class is not Keras's own, as archives say, keep the names that they
        have in the file. HDF5 files do not say it: a layer called Dense is taken for Keras's own.

        Files of ``save_weights("x.weights.h5")`` do not hold the layers' order, and before Keras
        3.6 no names either: layers are called by class and position then, ``dense``, ``dense_1``.

    Warns:
        RuntimeWarning: if weights are infinite or not a number.

    Raises:
        KerasFileError: if the file holds anything else, naming the place in it and what was
            expected there.
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
    variables: dict[str, dict[str, Any]] = {"params": {}}
    finite: dict[str, Future[bool]] = {}
    # An array is checked while the next one is read.
    with opened(path, limit) as source, ThreadPoolExecutor(1) as checker:
        layers = contents(source).layers
        check_sizes((d for layer in layers for d in layer.weights.values()), source.limit)
        for layer in layers:
            arrays = {name: read_array(dataset) for name, dataset in layer.weights.items()}
            for name, array in arrays.items():
                finite[f"{layer.name}/{name}"] = checker.submit(is_finite, array)
            collections = collections_of(layer.class_name, layer.config, arrays)
            for collection, tree in collections.items():
                variables.setdefault(collection, {})[layer.name] = tree
    if not_finite := [name for name, is_so in finite.items() if not is_so.result()]:
        warnings.warn(
            shown(f"{os.fspath(path)}: weights hold NaN or infinities: {', '.join(not_finite)}"),
            RuntimeWarning,
            stacklevel=2,
        )
    return variables
