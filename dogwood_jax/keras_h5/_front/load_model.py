"""A whole model of a file as a Flax module and its variables: ``load_model``."""

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
    """Loads a model that Keras saved, as a Flax module that computes the same.

    ``module.apply(variables, x)`` is what the model's ``predict(x)`` was, to rounding in float32.
    Layers are called as in Keras, and variables are those that ``load`` gives: trace the module,
    grow them, and ``save`` them like the file. The module takes its sizes from the variables, so
    that the same module computes a grown model.

    Sequential and Functional models of Keras 1, 2 and 3, with the layers that ``load`` converts and
    those without weights, but none that has code in the file (Lambda) or elsewhere (custom ones).
    Layers at the front that look up text or categories or hash them (TextVectorization,
    StringLookup, IntegerLookup, Hashing) are left out: the module takes what they return.

    Dense, EinsumDense and Embedding layers that Keras 3 has quantized, by ``quantize("int8")`` or
    ``quantize("int4")``, are computed with integers as there. Their variables are ``kernel`` or
    ``embedding`` of int8, those of 4 bits too, ``kernel_scale``, and, where blocks of rows have
    scales of their own, ``kernel_zero`` and the block of each row, ``g_idx``.

    A model of the user's own class is computed as its config describes it, if it is made from its
    inputs and outputs. Archives say whose a class is. HDF5 files do not, so a layer called Dense
    is taken for Keras's own there, as Keras itself takes it.

    Args:
        path: a file or archive that ``model.save`` wrote.
        limit: as for ``load``.

    Returns:
        The module, whose call takes the model's inputs and ``deterministic=True``, and its
        variables.

    Warns:
        RuntimeWarning: if layers are stateful, left out, or compute in half precision, in which the
            module differs from Keras, or if a model's class is the user's own.

    Raises:
        KerasFileError: if the file holds no model, or not its weights, or if there is something in
            it that is not supported; all layers with their classes in one message, before anything
            is made.
        OSError: if the file is missing or must not be read.

    Example:
        >>> from dogwood_jax import keras_h5
        >>> module, variables = keras_h5.load_model("model.keras")  # doctest: +SKIP
        >>> probabilities = module.apply(variables, images)  # doctest: +SKIP
    """
    with opened(path, limit) as source:
        found = contents(source)
    if found.config is None:
        raise KerasFileError(
            f"{os.fspath(path)}: expected a whole model, as model.save writes it; found weights "
            "alone. Load them with load, for a module of your own"
        )
    if found.version_problem is not None:
        raise KerasFileError(
            f"{os.fspath(path)}: expected the version of Keras, by which layers differ; "
            f"{found.version_problem}. load reads the weights alone"
        )
    try:
        module = build({**found.config, "keras_version": found.keras_version})
        variables = load(path, limit=limit)
        check_variables(module, variables)
    except RecursionError as error:
        raise KerasFileError(
            f"{os.fspath(path)}: expected a model in which some layers hold others; found them "
            "nested too deep"
        ) from error
    except KerasFileError as error:
        name = os.fspath(path)
        raise error if name in str(error) else KerasFileError(f"{name}: {error}") from error
    if notes := differences(module):
        message = shown(listed(f"{os.fspath(path)}: not as in Keras", notes))
        warnings.warn(message, RuntimeWarning, 2)
    return module, variables
