"""``config.json`` and the other files of a Hugging Face folder: ``config_of``, ``files_beside``.

``config.json`` holds the number of layers and the sizes of arrays. With a deeper model's arrays and
the old file, the small model would be loaded without an error. So each value that array shapes
determine is checked against them, or taken from them. Other values stay as they are, or are given.

Reference:
    Names of tensors and settings are those of https://github.com/huggingface/transformers.
"""

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dogwood_jax._base.problems import listed
from dogwood_jax.checkpoint.kinds import CheckpointError
from dogwood_jax.checkpoint.tensors import Tensor

NAME = "config.json"
_MAX_CONFIG = 1 << 24  # bytes
# Endings of files that hold or list the small model's arrays, or come from this library.
_NOT_COPIED = (
    *(".safetensors", ".index.json", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".keras", ".msgpack"),
    *(".gguf", ".onnx", ".onnx_data", ".ot", ".npz", ".growing.journal"),
)

_QUERIES = "num_attention_heads * head_dim"
_KEYS = "num_key_value_heads * head_dim"
_HEADS = {"num_attention_heads": _QUERIES, "num_key_value_heads": _KEYS}
# The settings that a tensor's shape determines, with the axis. # stands for a layer or an expert.
_SHOWN: Mapping[str, Mapping[str, int]] = {
    "embed_tokens.weight": {"vocab_size": 0, "hidden_size": 1},
    "lm_head.weight": {"vocab_size": 0, "hidden_size": 1},
    "norm.weight": {"hidden_size": 0},
    "layers.#.self_attn.q_proj.weight": {_QUERIES: 0},
    "layers.#.self_attn.k_proj.weight": {_KEYS: 0},
    "layers.#.self_attn.q_norm.weight": {"head_dim": 0},
    "layers.#.mlp.up_proj.weight": {"intermediate_size": 0},
    "layers.#.mlp.gate.weight": {"num_experts": 0},
    "layers.#.mlp.experts.#.up_proj.weight": {"moe_intermediate_size": 0},
    "layers.#.block_sparse_moe.gate.weight": {"num_local_experts": 0},
    "layers.#.block_sparse_moe.experts.#.w1.weight": {"intermediate_size": 0},
}
# Exceptions, by model_type: other arrays under the same names.
_SHOWN_BY: Mapping[str, Mapping[str, Mapping[str, int]]] = {
    "olmo2": {"layers.#.self_attn.q_norm.weight": {_QUERIES: 0}},
}
# Settings that count layers or experts: one more than the highest number at the last # of a prefix.
_COUNTED = {
    "layers.#.": "num_hidden_layers",
    "layers.#.mlp.experts.#.": "num_experts",
    "layers.#.block_sparse_moe.experts.#.": "num_local_experts",
}
# Settings with two names; versions of transformers write one or the other.
ALIASES = {"num_experts": "num_local_experts", "num_local_experts": "num_experts"}
# Settings that array shapes determine, by model_type.
_COMMON = frozenset({"vocab_size", "hidden_size", "num_hidden_layers", _QUERIES, _KEYS})
_DENSE = _COMMON | {"intermediate_size"}
_MODELS: Mapping[str, frozenset[str]] = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "olmo2"), _DENSE),
    **dict.fromkeys(("gemma", "gemma2", "gemma3", "gemma3_text"), _DENSE),
    "mixtral": _DENSE | {"num_local_experts"},
    "qwen3_moe": _COMMON | {"num_experts", "moe_intermediate_size"},
}
# Settings that may also be determined, by norms of heads and by layers without experts.
_PERHAPS = frozenset({"head_dim", "intermediate_size"})
# Settings that are lists with an entry for each layer.
_PER_LAYER = ("layer_types", "mlp_layer_types")

# For each setting, the sizes found in array shapes, and the first array with each size.
_Shown = Mapping[str, Mapping[int, Tensor]]


def config_of(
    folder: Path,
    old: Iterable[Tensor],
    new: Collection[Tensor],
    given: Mapping[str, Any] | None,
    kept: Sequence[int] | None = None,
) -> str | None:
    """Returns the text of the larger model's ``config.json``.

    Args:
        folder: the folder of the smaller model's file.
        old: the tensors of the smaller model.
        new: the tensors of the larger model.
        given: the values that the caller passes, or None.
        kept: the layers that stay, or None if no layers are removed.

    Returns:
        The text. None if ``given`` is None, and the file is missing or its ``model_type`` is not
        known.

    Raises:
        TypeError: if ``given`` holds values that JSON cannot represent.
        ValueError: if values do not fit the arrays, with all of them in one message; if values are
            given, and the file is missing or its ``model_type`` is not known.
        CheckpointError: if the file is not a JSON object.
    """
    path, numbers = folder / NAME, _plain(given or {})
    before = read(path) if kept is None else _of_layers(read(path), kept)
    config = {**before, **numbers}
    kind = config.get("model_type")
    if "text_config" in config or not isinstance(kind, str) or kind not in _MODELS:
        if given is None:
            return None
        known = ", ".join(_MODELS)
        raise ValueError(
            f"{path}: config= needs a folder with this file, with a model_type among {known}, and "
            f"without text_config; found model_type {kind!r}; omit config= and write the file"
        )
    shown = _shown(new, kind)
    sizes, old_sizes = _sizes(shown), _sizes(_shown(old, str(before.get("model_type"))))
    problems = [*_unfit(shown, kind)]
    if head_dim := _head_dim(numbers, before, old_sizes, sizes):
        sizes["head_dim"] = head_dim
    problems += _add_heads(sizes, shown)
    for number, size in sizes.items():
        if number in _HEADS.values():
            continue
        both = [name for name in (number, ALIASES.get(number)) if name in config]
        for name in both or [number]:
            found = config[name] = numbers.get(name, size)
            if type(found) is not int or found != size:
                problems.append(f"{name}: expected {size}, as {_by(shown, number)}; got {found!r}")
    problems += _unfit_lists(config, sizes.get("num_hidden_layers"), new)
    if problems:
        raise ValueError(
            listed(
                f"{path}: these values do not fit the arrays of the larger model; give others as "
                "config=, or grow the tensors alone by passing the index or the file as source",
                problems,
            )
        )
    return json.dumps(config, indent=2) + "\n"


def files_beside(folder: Path) -> list[Path]:
    """Returns the files that are copied for the larger model, such as tokenizer and template."""
    return sorted(
        path
        for path in folder.iterdir()
        if path.is_file() and path.name != NAME and not path.name.endswith(_NOT_COPIED)
    )


def _of_layers(config: Mapping[str, Any], kept: Sequence[int]) -> dict[str, Any]:
    """Returns the settings, with per-layer lists reduced to the layers that stay."""
    found, count = dict(config), config.get("num_hidden_layers")
    for name in _PER_LAYER:
        if isinstance(each := config.get(name), list) and len(each) == count:
            found[name] = [each[layer] for layer in kept]
    if isinstance(only := config.get("mlp_only_layers"), list):
        found["mlp_only_layers"] = [place for place, layer in enumerate(kept) if layer in only]
    return found


def _plain(given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the caller's values after a round trip through JSON."""
    try:
        return dict(json.loads(json.dumps(dict(given))))
    except TypeError as error:
        raise TypeError(f"checkpoint.grow: config= must hold JSON values only: {error}") from error


def read(path: Path) -> dict[str, Any]:
    """Returns the settings in a file; an empty dict if it does not exist."""
    if not path.is_file():
        return {}
    if (size := path.stat().st_size) > _MAX_CONFIG:
        raise CheckpointError(f"{path}: expected at most {_MAX_CONFIG:,} bytes; found {size:,}")
    try:
        config = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: expected a JSON object; it cannot be read: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{path}: expected a JSON object; found {type(config).__name__}")
    return config


# Sizes in array shapes ----------------------------------------------------------------------------


def _shown(tensors: Iterable[Tensor], kind: str) -> _Shown:
    """Returns the sizes of each setting that names and shapes of tensors determine."""
    rows = {**_SHOWN, **_SHOWN_BY.get(kind, {})}
    shown, last = dict[str, dict[int, Tensor]](), dict[str, tuple[int, Tensor]]()
    for tensor in tensors:
        name, places = _pattern(tensor)
        for number, axis in rows.get(name, {}).items():
            if axis < len(tensor.shape):
                shown.setdefault(number, {}).setdefault(tensor.shape[axis], tensor)
        for beginning, number in _COUNTED.items():
            if name.startswith(beginning):
                count = places[beginning.count("#") - 1] + 1
                if number not in last or count > last[number][0]:
                    last[number] = count, tensor
    for number, (count, tensor) in last.items():
        shown.setdefault(number, {}).setdefault(count, tensor)
    return shown


def _pattern(tensor: Tensor) -> tuple[str, Sequence[int]]:
    """Returns a tensor's name with # in place of each number, and the numbers."""
    parts = tensor.name.removeprefix("model.").split(".")
    numbers = [int(part) for part in parts if part.isdecimal()]
    return ".".join("#" if part.isdecimal() else part for part in parts), numbers


def _sizes(shown: _Shown) -> dict[str, int]:
    """Returns the size of each setting; the first size if tensors differ."""
    return {number: next(iter(sizes)) for number, sizes in shown.items()}


def _by(shown: _Shown, number: str) -> str:
    """Returns a text that names an array whose shape determines a setting, or a product with it."""
    rows = number if number in shown else _HEADS.get(number, _QUERIES)
    tensor = next(iter(shown[rows].values()))
    return f"{tensor.name} {tensor.shape} shows"


def _unfit(shown: _Shown, kind: str) -> Iterator[str]:
    """Yields problems of the arrays that no values in the file can resolve."""
    for number in sorted(_MODELS[kind] - shown.keys()):
        names = (name for name, axes in _SHOWN.items() if number in axes)
        yield f"{number}: no tensor shows it; expected one such as model.{next(names, 'layers.#')}"
    for number in sorted(shown.keys() - _MODELS[kind] - _PERHAPS):
        yield f"{number}: {_by(shown, number)} it, and {kind} has none; give another model_type"
    for number, sizes in shown.items():
        if len(sizes) > 1:
            found = ", ".join(f"{size} in {tensor.name}" for size, tensor in sizes.items())
            yield f"{number}: expected one size for all arrays; got {found}"


def _unfit_lists(
    config: Mapping[str, Any], layers: int | None, tensors: Iterable[Tensor]
) -> Iterator[str]:
    """Yields problems of lists that do not fit the layers."""
    for name in _PER_LAYER:
        if (found := config.get(name)) is None or layers is None:
            continue
        if not isinstance(found, list) or len(found) != layers:
            had = f"{len(found)} entries" if isinstance(found, list) else repr(found)
            yield f"{name}: expected {layers} entries, one for each layer; got {had}"
    if config.get("model_type") != "qwen3_moe":
        return
    named = [_pattern(tensor) for tensor in tensors]
    dense = {numbers[0] for name, numbers in named if name == "layers.#.mlp.up_proj.weight"}
    only, step = config.get("mlp_only_layers"), _size(config, "decoder_sparse_step") or 1
    without = only if isinstance(only, list) else []
    if dense != {n for n in range(layers or 0) if n in without or (n + 1) % step}:
        yield (
            f"mlp_only_layers: expected {sorted(dense)}, the layers without experts; got {only!r} "
            f"with decoder_sparse_step {step}"
        )


# Heads --------------------------------------------------------------------------------------------


def _head_dim(
    given: Mapping[str, Any],
    before: Mapping[str, Any],
    old: Mapping[str, int],
    new: Mapping[str, int],
) -> int | None:
    """Returns the size of a head in the larger model, or None if it is undetermined.

    Shapes of queries and keys only determine the number of heads times their size.
    """
    if "head_dim" in new:
        return new["head_dim"]
    if head_dim := _size(given, "head_dim"):
        return head_dim
    for number, rows in _HEADS.items():
        if (heads := _size(given, number)) and rows in new and new[rows] % heads == 0:
            return new[rows] // heads
    # A growth never makes heads larger and fewer. If the product is unchanged, so are its factors.
    if any(rows in new and old.get(rows) == new[rows] for rows in _HEADS.values()):
        return _old_head_dim(before, old)
    return None


def _old_head_dim(before: Mapping[str, Any], old: Mapping[str, int]) -> int | None:
    """Returns the size of a head in the smaller model; None if the file does not fit the arrays."""
    heads = _size(before, "num_attention_heads")
    head_dim = _size(before, "head_dim") or old.get(_QUERIES, 0) // (heads or 1)
    said = {rows: _size(before, number) for number, rows in _HEADS.items()}
    fits = all(n is None or n * head_dim == old.get(rows) for rows, n in said.items())
    return head_dim if fits and any(said.values()) else None


def _add_heads(sizes: dict[str, int], shown: _Shown) -> Iterator[str]:
    """Adds the numbers of heads to ``sizes``; yields problems."""
    head_dim = sizes.get("head_dim")
    for number, rows in _HEADS.items():
        if rows not in sizes:
            continue
        if head_dim is None:
            yield (
                f"{number}: {_by(shown, rows)} {rows} = {sizes[rows]}; give num_attention_heads or "
                "head_dim, a divisor of it"
            )
        elif sizes[rows] % head_dim:
            yield f"head_dim: expected a divisor of {sizes[rows]}, as {_by(shown, rows)}"
        else:
            sizes[number] = sizes[rows] // head_dim


def _size(numbers: Mapping[str, Any], number: str) -> int | None:
    """Returns a value if it is a positive integer, otherwise None."""
    found = numbers.get(number)
    return found if type(found) is int and found > 0 else None
