"""Loads a whole model from a file as a Flax module and its variables: ``load_model``."""

import os
import warnings
from typing import Any

from dogwood_jax._base.problems import listed
from dogwood_jax.keras_h5._files.errors import KerasFileError, shown
from dogwood_jax.keras_h5._files.source import opened
from dogwood_jax.keras_h5._front.load import load
from dogwood_jax.keras_h5._models.model import KerasModel, build, check_variables
from dogwood_jax.keras_h5._models.support import differences
from dogwood_jax.keras_h5._weights.layouts import contents


def load_model(
    path: str | os.PathLike[str], *, limit: int | None = None
) -> tuple[KerasModel, dict[str, dict[str, Any]]]:
    """Loads a Keras model from a file, as a Flax module that computes the same outputs.

    ``module.apply(variables, x)`` equals the model's ``predict(x)``, to rounding in float32. Layers
    have the same names as in Keras, and ``load`` returns the same variables: trace the
    module, grow the variables, and ``save`` them with ``like=`` the file. The module takes its
    sizes from the variables, so the same module computes a grown model.

    Supports Sequential and Functional models of Keras 1, 2 and 3, with the layers that ``load``
    converts and layers without weights. Layers with code of their own (Lambda, custom classes) are
    refused. Layers at the front that look up or hash text or categories (TextVectorization,
    StringLookup, IntegerLookup, Hashing) are left out: the module takes their results as inputs.

    Dense, EinsumDense and Embedding layers that Keras 3 quantized, with ``quantize("int8")`` or
    ``quantize("int4")``, are computed with integers as in Keras. Their variables are ``kernel`` or
    ``embedding`` (int8, also for 4 bits) and ``kernel_scale``. If blocks of rows have their own
    scales, there are also ``kernel_zero`` and ``g_idx``, the block of each row.

    A model of a user-defined class is computed as its config describes it, if the model is made
    from its inputs and outputs. Archives record where a class is defined. HDF5 files do not, so a
    class called Dense is assumed to be Keras's own, as in Keras itself.

    Args:
        path: a file or archive that ``model.save`` wrote.
        limit: as for ``load``.

    Returns:
        The module, which takes the model's inputs and ``deterministic=True``, and its variables.

    Warns:
        RuntimeWarning: if the module differs from Keras, because layers are stateful, left out, or
            compute in half precision, or if a model's class is user-defined.

    Raises:
        KerasFileError: if the file holds no model or not the model's weights, or if it contains
            something unsupported; one message lists all such layers with their classes, before
            anything is created.
        OSError: if the file is missing or may not be read.

    Example:
        >>> from dogwood_jax import keras_h5
        >>> module, variables = keras_h5.load_model("model.keras")  # doctest: +SKIP
        >>> probabilities = module.apply(variables, images)  # doctest: +SKIP
    """
    with opened(path, limit) as source:
        found = contents(source)
    if found.config is None:
        raise KerasFileError(
            f"{os.fspath(path)}: expected a whole model, as model.save writes it; found only "
            "weights. Read them with load, for a module of your own"
        )
    if found.version_problem is not None:
        raise KerasFileError(
            f"{os.fspath(path)}: expected the version of Keras, because layers differ by version; "
            f"{found.version_problem}. load reads only the weights"
        )
    try:
        module = build({**found.config, "keras_version": found.keras_version})
        variables = load(path, limit=limit)
        check_variables(module, variables)
    except RecursionError as error:
        raise KerasFileError(
            f"{os.fspath(path)}: expected a model with few levels of nested layers; found them "
            "nested too deep"
        ) from error
    except KerasFileError as error:
        name = os.fspath(path)
        raise error if name in str(error) else KerasFileError(f"{name}: {error}") from error
    if notes := differences(module):
        message = shown(listed(f"{os.fspath(path)}: not as in Keras", notes))
        warnings.warn(message, RuntimeWarning, 2)
    return module, variables
