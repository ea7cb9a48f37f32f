"""Remove hidden units and layers, from folder to folder: ``shrink``."""

from bisect import bisect_right
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

_COUNT, _SHARE = "num_hidden_layers", "parameters"


def shrink(source: Path, out: Path, texts: Iterable[str], *, tokens: Path | None = None) -> str:
    """Writes a folder with a smaller model; returns a report.

    All layers get the same number of hidden units; each layer keeps its best ones. Outputs change.

    Args:
        source: the folder of the larger model.
        out: the folder to write.
        texts: new values, ``"NAME=VALUE"``: ``intermediate_size``, or ``moe_intermediate_size``
            of experts, and ``num_hidden_layers``. Instead of hidden units, ``parameters`` gives a
            share of today's parameters, such as 0.7: all MLPs lose the same share of their units.
        tokens: a file with texts as ids, ``int[texts, time]``: a ``.npy`` file, or lists in JSON.
            Units and layers are removed whose absence raises the loss of the next token least. This
            needs the model in memory. Without a file, those with the smallest weights are removed;
            arrays are then read one after another.

    Raises:
        ValueError: if the folder's model is not known, or cannot shrink to these values; mistakes
            in the arguments are all in one message.
        CheckpointError: if the folder's arrays do not match its ``config.json``.
        OSError: if a file cannot be read or written, or if ``out`` exists and is not empty.
    """
    old, problems = Model.of(source), list[str]()
    units, known = old.hidden_units, [*old.hidden_units, _COUNT]
    shares, texts = _shares(texts, problems)
    numbers = read(texts, old.config, problems)
    for name, new in numbers.items():
        if name not in known:
            problems.append(f"--set {name}: expected one of {', '.join(known)}")
        elif type(new) is int and new >= old.config[name]:
            problems.append(f"--set {name}={new}: expected less than {old.config[name]}")
    if not (numbers or shares) and not problems:
        known = [*known, _SHARE]
        problems.append(f"--set NAME=VALUE: needed, with one of {', '.join(known)}")
    if shares and not problems:
        numbers |= _within(old, numbers, shares[0], problems)
    if problems:
        raise ValueError(listed(f"{source} cannot shrink to these values", problems))
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


def _shares(texts: Iterable[str], problems: list[str]) -> tuple[list[float], list[str]]:
    """Returns the given shares of parameters, at most one if valid, and the other texts."""
    shares, others = list[float](), list[str]()
    for text in texts:
        name, _, value = text.partition("=")
        if name.strip() != _SHARE:
            others.append(text)
            continue
        try:
            share = float(value)
        except ValueError:
            share = 0.0
        if not 0 < share < 1 or shares:
            problems.append(f"--set {text}: expected one share from 0 to 1, such as {_SHARE}=0.7")
        shares.append(share)
    return shares, others


def _within(
    old: Model, numbers: Mapping[str, Any], share: float, problems: list[str]
) -> dict[str, int]:
    """Returns the largest numbers of hidden units for at most a share of today's parameters."""
    if both := [name for name in numbers if name in old.hidden_units]:
        problems.append(f"--set {_SHARE}: sets the number of hidden units; leave out {both[0]}")
        return {}
    sizes = {name: old.config[name] for name in old.hidden_units}
    # Sizes stay multiples of the power of two that divides them, up to 64.
    steps = {name: min(size & -size, 64) for name, size in sizes.items()}
    layers = range(numbers.get(_COUNT, old.options.num_hidden_layers))
    counted = {**numbers, **_of_layers(old, [*layers])}

    def units(kept: float) -> dict[str, int]:
        return {name: int(sizes[name] * kept / n) * n or n for name, n in steps.items()}

    most = share * old.parameters
    kept = [n / 1024 for n in range(1024)]
    count = bisect_right(kept, most, key=lambda n: old.with_numbers(counted | units(n)).parameters)
    if not count:
        least = old.with_numbers(counted | units(0.0)).parameters / old.parameters
        problems.append(
            f"--set {_SHARE}={share:g}: the fewest hidden units still leave {least:.2g} of today's "
            f"parameters; set {_COUNT}, too"
        )
    return units(kept[max(count - 1, 0)])


def _largest(scores: np.ndarray, number: int) -> list[int]:
    """Returns the indices of the largest scores, in ascending order."""
    return sorted(np.argsort(-scores, kind="stable")[:number].tolist())


def _of_layers(old: Model, layers: list[int]) -> Mapping[str, Any]:
    """Returns the settings of ``config.json`` that list layers, for the layers that stay."""
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
