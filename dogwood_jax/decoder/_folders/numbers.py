"""New values for ``config.json``: ``read`` from a command line, and ``completed``."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from dogwood_jax.checkpoint import config_json
from dogwood_jax.decoder.options import Options, options_of

Numbers = Mapping[str, Any]

# Settings that determine sizes of arrays, and lists that depend on the layers.
SIZES = (
    *("vocab_size", "hidden_size", "intermediate_size", "moe_intermediate_size"),
    *("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim"),
    *("num_experts", "num_local_experts", "num_experts_per_tok"),
)
_LISTS = ("layer_types", "mlp_only_layers")
# Settings that a file may lack.
_OPTIONAL = ("head_dim", "num_key_value_heads", "layer_types")


def read(texts: Iterable[str], config: Numbers, problems: list[str]) -> dict[str, Any]:
    """Returns the values of ``--set NAME=VALUE`` by name.

    Args:
        texts: ``"NAME=VALUE"``, the value in JSON.
        config: the settings in ``config.json``.
        problems: receives a line for each text that is not valid.
    """
    numbers = dict[str, Any]()
    known = [name for name in (*SIZES, *_LISTS) if name in config or name in _OPTIONAL]
    for text in texts:
        name, sign, value = text.partition("=")
        if name not in config and (other := config_json.ALIASES.get(name)) in config:
            name = str(other)
        if not sign or name not in known:
            problems.append(f"--set {text}: expected NAME=VALUE with one of {', '.join(known)}")
            continue
        if name in numbers:
            problems.append(f"--set {text}: {name} is set twice")
        try:
            numbers[name] = json.loads(value)
        except ValueError:
            problems.append(f"--set {text}: expected a value in JSON; got {value!r}")
            continue
        if name in SIZES and (type(numbers[name]) is not int or numbers[name] < 1):
            problems.append(f"--set {text}: expected a positive whole number; got {value}")
    return numbers


def completed(config: Numbers, options: Options, numbers: Numbers, problems: list[str]) -> Numbers:
    """Returns new values, with the settings that follow from them.

    Heads keep their size. Without ``head_dim`` in the file, it is ``hidden_size //
    num_attention_heads``. The new file gets ``head_dim``, unless that formula gives the same size
    again. ``layer_types`` of more layers follows from the file's other settings, or repeats the
    pattern of the old list.

    Args:
        config: the settings in the old file.
        options: the options of its model.
        numbers: new values of its settings.
        problems: receives a line for each setting that does not follow.
    """
    found = dict(numbers)
    hidden, heads = (
        numbers.get(name, config.get(name)) for name in ("hidden_size", "num_attention_heads")
    )
    follows = options.hidden_size == options.head_dim * options.num_attention_heads
    if config.get("head_dim") is None and not (follows and hidden == options.head_dim * heads):
        found.setdefault("head_dim", options.head_dim)
    layers, types = numbers.get("num_hidden_layers"), config.get("layer_types")
    if isinstance(types, list) and type(layers) is int and "layer_types" not in numbers:
        found["layer_types"] = _more_types(config, types, layers, problems)
    if options.hidden_size % options.num_attention_heads == 0 and hidden % heads:
        problems.append(
            f"hidden_size: expected a multiple of num_attention_heads {heads}, because some "
            f"versions of transformers load no other models; got {hidden}"
        )
    return found


def _more_types(config: Numbers, types: list[Any], layers: int, problems: list[str]) -> list[Any]:
    """Returns the kind of attention of each layer in the new model.

    Args:
        config: the settings in the old file.
        types: the old list.
        layers: number of layers in the new model.
        problems: receives a line if the kinds of new layers are undetermined.
    """
    told = options_of({**config, "num_hidden_layers": layers, "layer_types": None}).windows
    by_rule = [f"{'full' if one is None else 'sliding'}_attention" for one in told]
    if by_rule[: len(types)] == types:
        return by_rule
    period = next(p for p in range(1, len(types) + 1) if types[p:] == types[:-p])
    if layers > len(types) and 2 * period > len(types):
        problems.append(
            "--set layer_types: needed, with an entry for each layer, because the old list "
            "has no pattern to repeat"
        )
    return [types[n % period] for n in range(layers)]
