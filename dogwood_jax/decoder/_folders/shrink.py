"""Fewer hidden units and layers, from folder to folder: ``shrink``."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dogwood_jax._base.problems import listed
from dogwood_jax._front.plan import plan
from dogwood_jax._growth.growth import Growth
from dogwood_jax.decoder._folders.models import Model, expect_new, write
from dogwood_jax.decoder._folders.numbers import read
from dogwood_jax.decoder._folders.scores import LAYERS, Scores, by_loss, by_norm

_COUNT = "num_hidden_layers"


def shrink(source: Path, out: Path, texts: Iterable[str], *, tokens: Path | None = None) -> str:
    """Writes a folder with a smaller model; returns what is said of it.

    All layers get one number of hidden units, each of them keeps its own. Outputs change.

    Args:
        source: the folder of the larger model.
        out: the folder to write.
        texts: new numbers, ``"NAME=VALUE"``: ``intermediate_size``, or ``moe_intermediate_size``
            of experts, and ``num_hidden_layers``.
        tokens: a file with texts as ids, ``int[texts, time]``: a ``.npy`` file, or lists in JSON.
            Units and layers go by what the loss of the next token rises by without them. It takes
            the model in memory. Without a file, those go that have the smallest weights, which are
            read one array after another.

    Raises:
        ValueError: if the folder's model is not known, or cannot shrink so; all mistakes in the
            arguments in one message.
        CheckpointError: if the folder holds other arrays than its ``config.json`` says.
        OSError: if a file cannot be read or written, or there is something at ``out``.
    """
    old, problems = Model.of(source), list[str]()
    units, known = old.hidden_units, [*old.hidden_units, _COUNT]
    numbers = read(texts, old.config, problems)
    for name, new in numbers.items():
        if name not in known:
            problems.append(f"--set {name}: expected one of {', '.join(known)}")
        elif type(new) is int and new >= old.config[name]:
            problems.append(f"--set {name}={new}: expected less than {old.config[name]}")
    if not numbers and not problems:
        problems.append(f"--set NAME=VALUE: needed, with one of {', '.join(known)}")
    if problems:
        raise ValueError(listed(f"{source} cannot shrink so", problems))
    expect_new(out)
    fewer = _COUNT in numbers
    if tokens is None:
        scores = by_norm(old)
    else:
        scores = by_loss(old, tokens, units=len(numbers) > fewer, layers=fewer)
    keep: dict[str, Any] = {
        width: _largest(scores.units[width], numbers[name])
        for name, widths in units.items()
        if name in numbers
        for width in widths
    }
    layers = _largest(scores.layers, numbers.get(_COUNT, old.options.num_hidden_layers))
    numbers |= _of_layers(old, layers)
    smaller = old.with_numbers(numbers)
    if fewer:
        keep[LAYERS] = layers
    growth = plan(old.widths, keep=keep)
    said = write(old, smaller, growth, out, None, numbers)
    return "\n".join([said, *_losses(scores, smaller, growth)])


def _largest(scores: np.ndarray, number: int) -> list[int]:
    """Returns the places of the largest scores, in their order."""
    return sorted(np.argsort(-scores, kind="stable")[:number].tolist())


def _of_layers(old: Model, layers: list[int]) -> Mapping[str, Any]:
    """Returns what ``config.json`` says of layers by their places, for those that stay."""
    options, found = old.options, dict[str, Any]()
    if len(layers) == options.num_hidden_layers:
        return found
    if len({*options.windows}) > 1 or old.config.get("layer_types"):
        slides = (options.windows[n] is not None for n in layers)
        found["layer_types"] = [f"{'sliding' if one else 'full'}_attention" for one in slides]
    if options.experts is not None and len(options.experts.layers) < options.num_hidden_layers:
        dense = [place for place, n in enumerate(layers) if n not in options.experts.layers]
        found |= {"mlp_only_layers": dense, "decoder_sparse_step": 1}
    return found


def _losses(scores: Scores, smaller: Model, growth: Growth) -> list[str]:
    if scores.loss is None:
        return []
    after = scores.loss_of(smaller, growth)
    return [f"loss of the next token: {after:.4f}; it was {scores.loss:.4f}"]
