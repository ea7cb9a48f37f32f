"""Grow the model of a folder to new values of its ``config.json``: ``grow``."""

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from dogwood_jax import strategies
from dogwood_jax._base.problems import listed
from dogwood_jax._front.plan import plan
from dogwood_jax.decoder._folders.models import NEEDS_SEED, Model, expect_new, write
from dogwood_jax.decoder._folders.numbers import completed, read

_TRAIN_ON = (
    "continue training with a third of the learning rate, or with a warm-up, because a new "
    "optimizer takes full-sized steps in all weights at once"
)
# Growing these draws random weights. Planning may take long, so the seed is required before.
_RANDOM = (
    *("hidden_size", "intermediate_size", "moe_intermediate_size"),
    *("num_hidden_layers", "num_attention_heads", "head_dim"),
)
# Arrays with a row for each token of the vocabulary.
_ROWS = ("model/embed_tokens/weight", "lm_head/weight")


def grow(
    source: Path,
    out: Path,
    texts: Iterable[str],
    *,
    rows: Literal["mean", "random"] | None = None,
    seed: int | None = None,
) -> str:
    """Writes a folder with a larger model that computes the same logits; returns a report.

    Only the logits of new tokens are new.

    Args:
        source: the folder of the smaller model.
        out: the folder to write.
        texts: new values, ``"NAME=VALUE"``.
        rows: initial rows of new tokens, if the vocabulary grows: the mean of old rows, or random
            values.
        seed: seed of random weights.

    Raises:
        ValueError: if the folder's model is not known, or cannot grow to these values; mistakes in
            the arguments are all in one message.
        CheckpointError: if the folder's arrays do not match its ``config.json``.
        OSError: if a file cannot be read or written, or if ``out`` exists and is not empty.
    """
    old, problems = Model.of(source), list[str]()
    numbers = read(texts, old.config, problems)
    asked, more = {*numbers}, set[str]()
    for name, new in numbers.items():
        before = old.config.get(name, getattr(old.options, name, None))
        if not type(new) is type(before) is int:
            continue
        if new > before:
            more.add(name)
        elif new < before:
            problems.append(f"--set {name}={new}: expected at least {before}; use shrink for less")
    if not numbers and not problems:
        problems.append("--set NAME=VALUE: needed, such as --set num_hidden_layers=40")
    grows = numbers.get("vocab_size", 0) != old.options.vocab_size and "vocab_size" in numbers
    if rows is not None and not grows:
        problems.append("--rows: needs --set vocab_size=N with a larger vocabulary")
    if not problems:
        numbers = dict(completed(old.config, old.options, numbers, problems))
    if seed is None and (more & {*_RANDOM} or (grows and rows != "mean")):
        problems.append(NEEDS_SEED)
    if problems:
        raise ValueError(listed(f"{source} cannot grow to these values", problems))
    larger = old.with_numbers(numbers)
    expect_new(out)
    widths, filled = old.widths, {}
    if rows == "mean":
        leaves = {leaf.path for leaf in widths.leaves}
        filled = {widths.of(p, 0).name: strategies.mean() for p in _ROWS if p in leaves}
    growth = plan(
        widths,
        target=larger.variables,
        target_apply=larger.apply,
        strategy=filled or None,
        interface=grows,
    )
    said = [write(old, larger, growth, out, seed, numbers)]
    if (size := numbers.get("head_dim")) is not None and "head_dim" not in asked:
        said.append(f"note: config.json now has head_dim = {size}, because heads keep their size")
    return "\n".join([*said, _TRAIN_ON])
