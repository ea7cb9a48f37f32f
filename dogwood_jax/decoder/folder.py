"""Weights of a decoder in a Hugging Face folder: ``load``, ``save`` and ``names``."""

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dogwood_jax._base.problems import listed
from dogwood_jax._base.trees import PyTree, leaves_by_path, struct
from dogwood_jax.checkpoint import config_json
from dogwood_jax.checkpoint import load as load_arrays
from dogwood_jax.checkpoint import shapes as shapes_of_arrays
from dogwood_jax.checkpoint.draft import draft, expect_free
from dogwood_jax.checkpoint.kinds import CheckpointError
from dogwood_jax.decoder.model import shapes
from dogwood_jax.decoder.options import Options, options_of


def load(folder: str | os.PathLike[str]) -> tuple[Options, PyTree]:
    """Returns the options and the weights of a model that was saved in a folder.

    Args:
        folder: a folder with ``config.json`` and safetensors files, as written by
            ``save_pretrained`` of transformers.

    Returns:
        The options and the arrays, for ``apply``; NumPy arrays in the dtype of the files.

    Raises:
        ValueError: if ``options_of`` raises it for the ``config.json``.
        CheckpointError: if the folder's arrays do not match its ``config.json``.
        OSError: if a file is missing or cannot be opened.

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


def save(folder: str | os.PathLike[str], options: Options, variables: PyTree) -> None:
    """Writes a model to a folder, as ``save_pretrained`` of transformers does.

    ``load`` and ``from_pretrained`` return the same model. The tokenizer is not written: copy its
    files from the folder that the model came from.

    Args:
        folder: a new or an empty folder. The model appears whole or not at all.
        options: the model's options, from ``load`` or ``options_of``; ``options.config`` becomes
            the ``config.json``.
        variables: its arrays, in the tree of ``shapes``, in any dtype.

    Raises:
        ValueError: if ``options`` has no ``config``, or if arrays are missing, unexpected or of
            other shapes; all of these in one message.
        OSError: if ``folder`` exists and is not empty, or cannot be written.

    Example:
        >>> import tempfile
        >>> import jax, jax.numpy as jnp
        >>> from dogwood_jax import decoder
        >>> options = decoder.options_of(dict(
        ...     model_type="llama", vocab_size=9, hidden_size=4, intermediate_size=8,
        ...     num_hidden_layers=1, num_attention_heads=2, rms_norm_eps=1e-6, rope_theta=1e4))
        >>> variables = jax.tree.map(lambda a: jnp.ones(a.shape), decoder.shapes(options))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     decoder.save(f"{folder}/model", options, variables)
        ...     again = decoder.load(f"{folder}/model")
        >>> again[0] == options, jax.tree.all(jax.tree.map(jnp.array_equal, again[1], variables))
        (True, True)
    """
    from safetensors.numpy import save_file

    out = Path(folder).absolute()
    if not options.config:
        raise ValueError("decoder.save: options have no config; pass those of options_of or load")
    expect_free(out, is_folder=True)
    leaves = leaves_by_path(variables)
    if problems := [*_misfits(leaves_by_path(shapes(options)), leaves, "got", "array")]:
        raise ValueError(listed("decoder.save: variables do not match options", problems))
    tensors = {
        path.replace("/", "."): np.ascontiguousarray(array) for path, array in _tensors(leaves)
    }
    config = json.dumps(dict(options.config), indent=2)
    size = sum(array.nbytes for array in tensors.values())
    with draft(out, "decoder.save", is_folder=True, size=size) as begun:
        save_file(tensors, begun.folder / "model.safetensors", metadata={"format": "pt"})
        (begun.folder / config_json.NAME).write_text(f"{config}\n")


def described(folder: Path) -> tuple[Mapping[str, Any], Options, PyTree]:
    """Returns the settings in a folder's ``config.json``, the options, and the arrays' shapes.

    Raises:
        ValueError: if ``options_of`` raises it for the ``config.json``.
        CheckpointError: if the folder's arrays do not match its ``config.json``.
        OSError: if a file is missing or cannot be opened.
    """
    path = folder / config_json.NAME
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: is not a folder; pass one with {config_json.NAME} in it")
    if not (config := config_json.read(path)):
        raise CheckpointError(f"{path}: expected the settings of a model; found none")
    options = options_of(config)
    stored = leaves_by_path(shapes_of_arrays(folder))
    expected = dict(_tensors(leaves_by_path(shapes(options))))
    if problems := [*_misfits(expected, stored, "found", "tensor")]:
        raise CheckpointError(
            listed(
                f"{folder}: the tensors do not match config.json; load the model "
                "with transformers and save it again",
                problems,
            )
        )
    return config, options, shapes_of_arrays(folder, names=names(options))


def _misfits(
    expected: Mapping[str, Any], arrays: Mapping[str, Any], came: str, what: str
) -> Iterator[str]:
    """Yields a line for each array that is missing, unexpected or of another shape."""
    for path, known in expected.items():
        shape = np.shape(arrays[path]) if path in arrays else None
        if shape != known.shape:
            yield f"{path}: expected {known.shape}, {came} {'none' if shape is None else shape}"
    yield from (f"{path}: expected no such {what}" for path in arrays if path not in expected)


def _tensors(leaves: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yields names, with ``/`` for ``.``, and values or shapes of the tensors that hold leaves."""
    for path, leaf in leaves.items():
        if "/experts/" not in path:
            yield path, leaf
            continue
        for n in range(leaf.shape[0]):
            is_shape = isinstance(leaf, jax.ShapeDtypeStruct)
            one = struct(leaf.shape[1:], leaf.dtype) if is_shape else leaf[n]
            yield path.replace("/experts/", f"/experts/{n}/"), one


def names(options: Options) -> dict[str, str]:
    """Returns the table that maps tensors of the files to leaves, for ``names=`` in ``checkpoint``.

    A leaf's path is its tensor's name with ``/`` for ``.``. Only leaves of experts consist of
    several tensors, one for each expert.

    Args:
        options: the options of the decoder.

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
