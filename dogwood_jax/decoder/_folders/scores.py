"""Scores of hidden units and layers, the least important lowest: ``by_norm`` and ``by_loss``."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from dogwood_jax._base.problems import listed
from dogwood_jax._base.trees import PyTree
from dogwood_jax._front.grow import grow
from dogwood_jax._front.smaller.saliency import saliency
from dogwood_jax._growth.growth import Growth
from dogwood_jax.checkpoint.safetensors_files import one_by_one
from dogwood_jax.decoder._folders.models import Model
from dogwood_jax.decoder.folder import load, names
from dogwood_jax.decoder.model import apply
from dogwood_jax.decoder.options import Options

LAYERS = "model/layers"
_LAYER = re.compile(f"{LAYERS}/([0-9]+)/")


@dataclass(frozen=True)
class Scores:
    """Scores of units and layers; a higher score is more important.

    Attributes:
        units: scores of units, ``[units]``, by name of the width.
        layers: scores of layers, ``[layers]``.
        variables: the model's arrays, if they were loaded.
        tokens: the texts, if there are any.
        loss: the model's loss on the texts, if there are any.
    """

    units: Mapping[str, np.ndarray]
    layers: np.ndarray
    variables: PyTree = None
    tokens: np.ndarray | None = None
    loss: float | None = None

    def loss_of(self, smaller: Model, growth: Growth) -> float:
        """Returns the loss of the smaller model on the same texts."""
        assert self.tokens is not None
        return _mean_loss(smaller.options, grow(self.variables, growth), self.tokens)


def by_norm(model: Model) -> Scores:
    """Scores units and layers by the sum of their squared weights, reading one array at a time."""
    units = {
        width: np.zeros(model.widths[width].size)
        for widths in model.hidden_units.values()
        for width in widths
    }
    layers = np.zeros(model.options.num_hidden_layers)
    axes = {(o.path, o.axis): width for width in units for o in model.widths[width].occurrences}
    for path, array in one_by_one(model.folder, names(model.options)):
        if (layer := _LAYER.match(path)) is None:
            continue
        squares = np.square(array.astype(np.float32))
        layers[int(layer[1])] += squares.sum(dtype=np.float64)
        for axis in range(array.ndim):
            if width := axes.get((path, axis)):
                rest = tuple(other for other in range(array.ndim) if other != axis)
                units[width] += squares.sum(axis=rest, dtype=np.float64)
    return Scores(units, layers)


def by_loss(model: Model, file: Path, *, units: bool, layers: bool) -> Scores:
    """Scores units, layers or both by the rise of the loss of the next token without them.

    Raises:
        ValueError: if the file does not hold texts of the model's tokens.
    """
    tokens = _tokens(file, model.options)
    variables = load(model.folder)[1]
    score = partial(saliency, variables, model.widths, partial(_loss, model.options), tokens)
    return Scores(
        score() if units else {},
        score(layers=True)[LAYERS] if layers else np.zeros(model.options.num_hidden_layers),
        variables,
        tokens,
        _mean_loss(model.options, variables, tokens),
    )


def _loss(options: Options, variables: PyTree, tokens: jax.Array) -> jax.Array:
    """Returns the mean loss of the next token."""
    logits = apply(options, variables, tokens[:, :-1]).astype(jnp.float32)
    chosen = jnp.take_along_axis(logits, tokens[:, 1:, None], axis=-1)[..., 0]
    return jnp.mean(jax.nn.logsumexp(logits, axis=-1) - chosen)


_compiled = jax.jit(_loss, static_argnums=0)


def _mean_loss(options: Options, variables: PyTree, tokens: np.ndarray) -> float:
    """Returns the mean loss of texts, computed one after another."""
    return float(np.mean([_compiled(options, variables, text[None]) for text in tokens]))


def _tokens(file: Path, options: Options) -> np.ndarray:
    """Returns the texts of a file, ``int32[texts, time]``."""
    if file.suffix == ".npy":
        found = np.load(file, allow_pickle=False)
    else:
        try:
            found = np.array(json.loads(file.read_text()))
        except ValueError as error:
            raise ValueError(f"--tokens {file}: expected a .npy file, or lists in JSON") from error
    problems = []
    if found.ndim != 2 or found.dtype.kind not in "iu" or not found.size or found.shape[1] < 2:
        problems.append(f"expected integers [texts, time]; found {found.dtype}{found.shape}")
    elif not 0 <= found.min() <= found.max() < options.vocab_size:
        problems.append(
            f"expected ids from 0 to {options.vocab_size - 1}; found {found.min()} to {found.max()}"
        )
    if problems:
        raise ValueError(listed(f"--tokens {file}: holds no texts of this model", problems))
    return np.asarray(found, np.int32)
