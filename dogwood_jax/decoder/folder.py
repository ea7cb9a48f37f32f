"""Weights of a decoder in a folder of Hugging Face: ``load``, ``described`` and ``names``."""

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dogwood_jax._base.problems import listed
from dogwood_jax._base.trees import PyTree, leaves_by_path
from dogwood_jax.checkpoint import config_json
from dogwood_jax.checkpoint import load as load_arrays
from dogwood_jax.checkpoint import shapes as shapes_of_arrays
from dogwood_jax.checkpoint.kinds import CheckpointError
from dogwood_jax.decoder.model import shapes
from dogwood_jax.decoder.options import Options, options_of


def load(folder: str | os.PathLike[str]) -> tuple[Options, PyTree]:
    """Returns the options and the weights of a model that was saved in a folder.

    Args:
        folder: a folder with ``config.json`` and safetensors, as ``save_pretrained`` of
            transformers writes it.

    Returns:
        The options and the arrays, for ``apply``; NumPy arrays in the dtype of the files.

    Raises:
        ValueError: as ``options_of``.
        CheckpointError: if the folder holds other arrays than its ``config.json`` says.
        OSError: if a file is missing or must not be read.

    Example:
        >>> import json, tempfile
        >>> from pathlib import Path
        >>> import jax
        >>> import numpy as np
        >>> from safetensors.numpy import save_file
        >>> from dogwood_jax import decoder
        >>> config = dict(
        ...     model_type="gemma", vocab_size=9, hidden_size=4, intermediate_size=8, head_dim=2,
        ...     num_hidden_layers=1, num_attention_heads=2, rms_norm_eps=1e-6, rope_theta=1e4)
        >>> options = decoder.options_of(config)
        >>> leaves = jax.tree.leaves(decoder.shapes(options))
        >>> tensors = {
        ...     name.format(i=0): np.ones(leaf.shape, np.float32)
        ...     for name, leaf in zip(decoder.names(options), leaves)
        ... }
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "config.json").write_text(json.dumps(config))
        ...     save_file(tensors, Path(folder, "model.safetensors"))
        ...     options, variables = decoder.load(folder)
        >>> decoder.apply(options, variables, np.zeros((1, 3), int)).shape
        (1, 3, 9)
    """
    options = described(Path(folder))[1]
    return options, load_arrays(folder, names=names(options))


def described(folder: Path) -> tuple[Mapping[str, Any], Options, PyTree]:
    """Returns what a folder's ``config.json`` says, its options, and the shapes of its arrays.

    Raises:
        ValueError: as ``options_of``.
        CheckpointError: if the folder holds other arrays than its ``config.json`` says.
        OSError: if a file is missing or must not be read.
    """
    path = folder / config_json.NAME
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: is no folder; pass one with {config_json.NAME} in it")
    if not (config := config_json.read(path)):
        raise CheckpointError(f"{path}: expected the numbers of a model; found none")
    options = options_of(config)
    stored = leaves_by_path(shapes_of_arrays(folder))
    expected = dict(_tensors(leaves_by_path(shapes(options))))
    problems = [
        f"{path}: expected {shape}, "
        + (f"found {stored[path].shape}" if path in stored else "found none")
        for path, shape in expected.items()
        if path not in stored or stored[path].shape != shape
    ]
    problems += [f"{path}: expected no such tensor" for path in stored if path not in expected]
    if problems:
        raise CheckpointError(
            listed(
                f"{folder}: the tensors are not those that config.json describes; load the model "
                "with transformers and save it again",
                problems,
            )
        )
    return config, options, shapes_of_arrays(folder, names=names(options))


def _tensors(leaves: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yields the tensors that hold leaves, with ``/`` for ``.``, and their shapes."""
    for path, leaf in leaves.items():
        if "/experts/" in path:
            for n in range(leaf.shape[0]):
                yield path.replace("/experts/", f"/experts/{n}/"), leaf.shape[1:]
        else:
            yield path, leaf.shape


def names(options: Options) -> dict[str, str]:
    """Returns which tensor of the files is which leaf, for ``names=`` of ``dw.checkpoint``.

    A leaf's path is its tensor's name with ``/`` for ``.``. Experts alone have a tensor for each
    entry of a leaf.

    Args:
        options: what the decoder is like.

    Example:
        >>> from dogwood_jax import decoder
        >>> config = dict(
        ...     model_type="mixtral", vocab_size=100, hidden_size=16, intermediate_size=32,
        ...     num_hidden_layers=1, num_attention_heads=4, rms_norm_eps=1e-5, rope_theta=1e4,
        ...     num_local_experts=2, num_experts_per_tok=1)
        >>> table = decoder.names(decoder.options_of(config))
        >>> table["model.layers.{i}.self_attn.q_proj.weight"]
        'model/layers/{i}/self_attn/q_proj/weight'
        >>> table["model.layers.{i}.block_sparse_moe.experts.{e}.w1.weight"]
        'model/layers/{i}/block_sparse_moe/experts/w1/weight[{e}]'
    """
    rows = {}
    for path in leaves_by_path(shapes(options)):
        leaf = re.sub("/layers/[0-9]+/", "/layers/{i}/", path)
        tensor = leaf.replace("/", ".")
        if "/experts/" in leaf:
            tensor, leaf = tensor.replace(".experts.", ".experts.{e}."), f"{leaf}[{{e}}]"
        rows[tensor] = leaf
    return rows
