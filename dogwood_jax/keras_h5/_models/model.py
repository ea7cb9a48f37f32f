"""Keras models as Flax modules that compute the same: ``build``."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dogwood_jax._base.problems import listed
from dogwood_jax.keras_h5._files.errors import KerasFileError
from dogwood_jax.keras_h5._kinds.kind import Config, layout
from dogwood_jax.keras_h5._models.frozen import frozen
from dogwood_jax.keras_h5._models.groups import annotated
from dogwood_jax.keras_h5._models.module import KerasLayers
from dogwood_jax.keras_h5._models.resize import resized
from dogwood_jax.keras_h5._models.shapes import model_inputs
from dogwood_jax.keras_h5._models.support import supported
from dogwood_jax.keras_h5._weights.convert import leaves_of


class KerasModel(KerasLayers):
    """A Keras model as a Flax module: its layers are submodules of the same names.

    ``module.apply(variables, *inputs)`` returns what the model's ``predict`` returns: one array, or
    lists and dicts of arrays as in Keras. With ``deterministic=False`` the module is in training:
    dropout is drawn with the RNG ``dropout``, and ``batch_stats`` are updated.

    Sizes are those of the variables, so the same module also computes a grown model. ``resized``
    returns a module with these sizes in its config, as ``init`` needs it.

    Attributes:
        config: the model's config as Keras has it, ``{"class_name": ..., "config": {...}}``.
    """

    # So ``plan`` and ``larger`` ask ``resized``, and search for no numbers in the config.
    is_resized_by_variables = True

    @nn.nowrap
    def resized(self, variables: Mapping[str, Any]) -> "KerasModel":
        """Returns the module whose config has the sizes of these variables.

        Example:
            >>> layer = {"class_name": "Dense", "config": {"name": "dense_1", "units": 2}}
            >>> config = {"class_name": "Sequential", "config": {"layers": [layer]}}
            >>> module = build(config)
            >>> wide = module.resized({"params": {"dense_1": {"kernel": jnp.ones((3, 8))}}})
            >>> wide.init(jax.random.key(0), jnp.ones((1, 3)))["params"]["dense_1"]["kernel"].shape
            (3, 8)
        """
        return KerasModel(frozen(annotated(resized(self.config, variables))))


def build(config: Config) -> KerasModel:
    """Returns the Flax module of a Keras model.

    Args:
        config: ``{"class_name": ..., "config": {...}}`` of a Sequential or Functional model, as
            ``checked_config`` returns it, with ``keras_version`` if it is known.

    Raises:
        KerasFileError: if there are layers, options or calls that are not supported; the error
            names all of them. Nothing of the model is run, so layers with code of their own
            (Lambda) are not supported.
    """
    return KerasModel(frozen(supported(config)))


def check_variables(module: KerasModel, variables: Mapping[str, Any]) -> None:
    """Checks that variables belong to a model, without computing anything.

    Raises:
        KerasFileError: if arrays are missing or do not fit together. The sizes in the config are
            compared with the arrays when these are read.
    """
    class_name, config = module.config["class_name"], module.config["config"]
    problems = [
        f"{'/'.join(place[1:])}: is missing"
        for weight in layout(class_name, config)
        for place in weight.places
        if not _has(variables, place)
    ]
    quantized = {p for w in layout(class_name, config) if w.quantized for p in w.places}
    problems += [
        f"{'/'.join(place)}: has dtype {leaf.dtype}, but this layer is not quantized in the "
        "model's config"
        for place, leaf in leaves_of(variables["params"])
        if not jnp.issubdtype(leaf.dtype, jnp.inexact) and ("params", *place) not in quantized
    ]
    inputs = model_inputs(class_name, config)
    if not problems and None not in inputs:
        try:
            jax.eval_shape(module.apply, variables, *inputs)
        except Exception as error:  # JAX and Flax raise all kinds
            problems = [str(error)]
    if problems:
        raise KerasFileError(listed("the arrays do not belong to the model", problems))


def _has(tree: Any, path: tuple[str, ...]) -> bool:
    for name in path:
        if not isinstance(tree, Mapping) or name not in tree:
            return False
        tree = tree[name]
    return True
