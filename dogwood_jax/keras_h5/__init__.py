"""Reads and writes Keras files of every layout: ``load``, ``save`` and ``inspect``.

``load`` returns the arrays of a file as Flax variables, and ``save`` writes them back.
``load_model`` also builds a Flax module. ``inspect`` lists the contents. On the command line::

    python -m dogwood_jax.keras_h5 inspect model.h5
    python -m dogwood_jax.keras_h5 widen model.h5 --layer dense_1=128 --out wider.h5
    python -m dogwood_jax.keras_h5 convert model.h5 model.weights.h5
"""

from dogwood_jax.keras_h5._files.errors import KerasFileError
from dogwood_jax.keras_h5._front.inspect import ArrayInfo, Inspection, LayerInfo, inspect
from dogwood_jax.keras_h5._front.load import load
from dogwood_jax.keras_h5._front.load_model import load_model
from dogwood_jax.keras_h5._front.optimizer import load_optimizer
from dogwood_jax.keras_h5._front.save import save

__all__ = [
    "ArrayInfo",
    "Inspection",
    "KerasFileError",
    "LayerInfo",
    "inspect",
    "load",
    "load_model",
    "load_optimizer",
    "save",
]
