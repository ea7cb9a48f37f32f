"""Loads the weights of a file as Flax variables: ``load``."""

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
    """Loads the weights of a Keras file as the variables of the same layers in Flax.

    Reads every layout of Keras 1, 2 and 3, recognised by the file's content, not its name: weights
    (``save_weights("x.h5")``, ``save_weights("x.weights.h5")``), whole models (``save("x.h5")``)
    and archives (``save("x.keras")``, or the folder of one). Arrays are renamed, split and
    transposed to what the corresponding layer of ``flax.linen`` expects; ``save`` reverses this.
    Arrays without a counterpart keep their names; ``inspect`` lists them. Layers keep the file's
    order. A layer without weights (Flatten) is an empty dict, which Flax and Optax ignore.

    Nothing in the file is executed, and nothing outside it is read. Content that would crash HDF5
    or take far more memory than the file is detected first and refused. HDF5 still decodes types
    and arrays itself, so read untrusted files in a separate process, whose crash is an error here:
    ``concurrent.futures.ProcessPoolExecutor(1).submit(keras_h5.load, path).result()``.

    Args:
        path: the file. It is opened for reading only.
        limit: maximum total size of the arrays in memory, in bytes. The default is four times the
            file's size plus 64 MiB, which is enough for any arrays that are not compressed.

    Returns:
        ``{"params": {"dense_1": {"kernel": ..., "bias": ...}, ...}}`` with NumPy arrays, which
        keep float64 where JAX would not; bfloat16 is ``jax.numpy.bfloat16``. Statistics of
        BatchNormalization are in ``"batch_stats"``, which is present only if the file has some. A
        model inside a model is a layer that holds layers. Weights of the model outside its layers,
        if there are any, come last, as ``top_level_model_weights``.

        Archives record whether a layer's class is Keras's own; arrays of other classes keep their
        names in the file. HDF5 files do not: a class called Dense is assumed to be Keras's own.

        Files of ``save_weights("x.weights.h5")`` do not contain the layer order and, before Keras
        3.6, no layer names: layers are then named by class and position, ``dense``, ``dense_1``.

    Warns:
        RuntimeWarning: if weights contain NaN or infinities.

    Raises:
        KerasFileError: if the file holds anything else; the error names the place in the file and
            what was expected there.
        OSError: if the file is missing or may not be read.

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
