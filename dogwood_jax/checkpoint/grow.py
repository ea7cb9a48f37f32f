"""Grow a checkpoint on disk: ``shapes``, ``load`` and ``grow``."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from jax import Array

from dogwood_jax._base.arguments import GROWTH, KEY, MAPPING, OPTIMIZER, PATH, expect, expect_given
from dogwood_jax._base.deferred import made
from dogwood_jax._base.trees import PyTree, is_array, nested, struct
from dogwood_jax._growth.growth import Growth
from dogwood_jax.checkpoint.kinds import item_folder
from dogwood_jax.checkpoint.names import Rows
from dogwood_jax.checkpoint.safetensors_files import arrays_of_files, grow_files, shapes_of_files


def shapes(source: str | os.PathLike[str], *, names: Rows | None = None) -> PyTree:
    """Returns the shapes of a checkpoint's arrays, for ``dw.trace``; the arrays are not read.

    Args:
        source: a ``.safetensors`` file, a folder with one file or with shards, or the index of the
            shards; or the folder of a tree that Orbax saved, or of a step that holds one tree.
        names: maps tensors to leaves, see ``names`` of ``grow``.

    Returns:
        Nested dicts with a ``jax.ShapeDtypeStruct`` for each array. Keys 0, 1, ... of safetensors
        become a list. For Orbax, it is the saved tree, including an optimizer's state if there is
        one; with ``names``, only the leaves that ``names`` lists.

    Raises:
        CheckpointError: if the source is not an intact checkpoint, or does not fit ``names``.
        OSError: if the source is missing or cannot be opened.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> from safetensors.numpy import save_file
        >>> import dogwood_jax as dw
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_file({"up.kernel": np.ones((4, 8))}, f"{folder}/small.safetensors")
        ...     dw.checkpoint.shapes(f"{folder}/small.safetensors")
        {'up': {'kernel': ShapeDtypeStruct(shape=(4, 8), dtype=float64)}}
    """
    expect("checkpoint.shapes(source)", source=(PATH, source))
    if folder := item_folder(Path(source)):
        from dogwood_jax.checkpoint.orbax_folders import tree_of_folder

        tree = tree_of_folder(folder, names)
        return jax.tree.map(lambda a: struct(a.shape, a.dtype) if is_array(a) else a, tree)
    return nested(shapes_of_files(Path(source), names))


def load(source: str | os.PathLike[str], *, names: Rows | None = None) -> PyTree:
    """Returns all arrays of a checkpoint in memory, in the tree that ``shapes`` returns.

    Args:
        source: as for ``shapes``.
        names: maps tensors to leaves, see ``names`` of ``grow``.

    Returns:
        A tree of NumPy arrays. For Orbax without ``names``, other saved values are in it, too.

    Raises:
        CheckpointError: if the source is not an intact checkpoint, or does not fit ``names``.
        OSError: if the source is missing or cannot be opened.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> from safetensors.numpy import save_file
        >>> import dogwood_jax as dw
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_file({"model.up.weight": np.ones((8, 4))}, f"{folder}/small.safetensors")
        ...     names = {"model.up.weight": ("up/kernel", "transpose")}
        ...     dw.checkpoint.load(f"{folder}/small.safetensors", names=names)["up"]["kernel"].shape
        (4, 8)
    """
    expect("checkpoint.load(source)", source=(PATH, source))
    if folder := item_folder(Path(source)):
        from dogwood_jax.checkpoint.orbax_folders import tree_of_folder

        return jax.tree.map(made, tree_of_folder(folder, names))
    return nested(arrays_of_files(Path(source), names))


def grow(
    source: str | os.PathLike[str],
    growth: Growth,
    out: str | os.PathLike[str],
    *,
    key: Array | None = None,
    tx: Any = None,
    names: Rows | None = None,
    config: Mapping[str, Any] | None = None,
) -> None:
    """Grows a checkpoint on disk; the arrays equal those of ``dw.grow`` with the same key.

    The arrays are equal bit for bit. They are read, made and written one after another: neither
    the old nor the new network is ever in memory. The result appears whole or not at all.

    Large arrays are made in pieces of 4 MiB. Arrays that do not change are copied. Zeros at the end
    of an array take no time: they are holes in the file. A few arrays are made as a whole, because
    their entries depend on each other: copies with noise, means of units, merged units, stacks that
    get more layers, arrays from an initializer given to the strategy. Files are written into the
    folder ``OUT.growing``, with a journal next to it, and then moved. If the run is killed or the
    disk gets full, the same call resumes where it stopped.

    A tree that Orbax saved may also hold an optimizer's state, next to the variables or above them:
    ``{"params": ..., "opt_state": ...}``. The state grows as in ``dw.grow_opt_state``. All other
    values are saved unchanged. Each array that grows becomes a single uncompressed chunk in a file
    of its own, as Orbax writes with ``use_ocdbt=False, use_compression=False``. TensorStore decodes
    a compressed chunk as a whole: the chunk is then in memory, and during decoding its compressed
    bytes, too. Save with ``ocp.SaveArgs(chunk_byte_size=...)`` for smaller chunks.

    Args:
        source: the smaller checkpoint, as for ``shapes``.
        growth: from ``plan``, for the widths that ``trace`` finds with the tree of ``shapes``; it
            may grow, deepen or narrow.
        out: path of the larger checkpoint: a new name; or, if the source is a file, a regular file
            to replace; or, if the source is a folder or an index, an empty folder. Arrays stay in
            files of the same name. If the source is a step of ``CheckpointManager``, ``out`` is a
            step, too, with all other items of the old step. Name it by its number, such as
            ``large/100``, and ``CheckpointManager("large")`` finds it. Other files next to the
            tensors are copied only if ``config.json`` is read, see below.
        key: PRNG key for random weights, as for ``dw.grow``.
        tx: the optimizer, if the checkpoint holds its state.
        names: maps tensors to leaves. Without it, a tensor's name is the leaf's path, joined by
            ``/`` or ``.``. A row such as ``{"model.layers.{i}.mlp.up_proj.weight":
            ("layers/{i}/mlp/up_proj/kernel", "transpose")}`` names tensors and leaves of all
            layers. The second text is ``"transpose"``, or the tensor's axes and the leaf's, such as
            ``"(n h:128) d -> d n h"`` for heads of size 128. ``"layers/{i}/mlp/up[{e}]"`` is a leaf
            that stacks one tensor for each expert. ``llama``, ``qwen`` and ``gemma`` return tables
            of such rows. ``{*rest}`` stands for one or more parts of a name. None in place of a
            leaf leaves the tensor out of the larger checkpoint. The first matching row counts.
            For Orbax, names are paths in the tree, and axes cannot be reordered. MaxText's trees
            need ``{"params/params/{*rest}": "{*rest}"}``. Arrays that match no row are kept. The
            optimizer's state needs no rows. Without ``names``, the network must be at the top of
            the tree or at most two keys below.
        config: new values for ``config.json``, such as ``{"num_attention_heads": 8}``. The file is
            read in a safetensors folder if its ``model_type`` is llama, mistral, qwen2, qwen3,
            qwen3_moe, gemma, gemma2, gemma3, mixtral or olmo2. The larger model then gets a file of
            its own, with or without ``config=``. Values that array shapes determine are updated,
            such as ``num_hidden_layers``; if you give them, they must fit. If heads grow, shapes
            only determine the product of their number and size, so give ``num_attention_heads``. If
            there are more layers, give lists with an entry for each layer, such as ``layer_types``.
            Other values, such as ``rope_theta``, are as in the old file or as you give them.
            Transformers loads some models only if ``num_attention_heads`` divides ``hidden_size``;
            this is not checked. The tokenizer, the chat template, ``generation_config.json`` and
            all other files next to the tensors are copied, except weights in other formats. For
            other models, for a single file and for an index, only tensors are written.

    Raises:
        TypeError: if arguments are of the wrong kind.
        ValueError: if ``dw.grow`` or ``dw.grow_opt_state`` would raise it, except that dropped
            units are not searched for NaN; if a strategy evaluates a loss; if ``out`` is the
            source; if ``names`` has no row for an array of a new layer; if there is a state and no
            ``tx``, or a ``tx`` but not its state; if values of ``config.json`` do not fit the
            larger arrays; if ``config=`` is given and there is no ``config.json`` to read.
        CheckpointError: if the source is damaged, hostile or not of a known kind.
        OSError: if a file cannot be read or written, if ``out`` is anything else than listed above,
            or if the disk has too little room.

    Example:
        >>> import tempfile
        >>> import jax
        >>> import numpy as np
        >>> from safetensors.numpy import load_file, save_file
        >>> import dogwood_jax as dw
        >>> arrays = {"up.kernel": np.ones((4, 8), "f4"), "down.kernel": np.ones((8, 2), "f4")}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_file(arrays, f"{folder}/small.safetensors")
        ...     shapes = dw.checkpoint.shapes(f"{folder}/small.safetensors")
        ...     growth = dw.plan(dw.chain(shapes, ("up", "down")), {"up": 16})
        ...     source, out = f"{folder}/small.safetensors", f"{folder}/wide.safetensors"
        ...     dw.checkpoint.grow(source, growth, out, key=jax.random.key(0))
        ...     wide = load_file(out)
        >>> wide["up.kernel"].shape, wide["down.kernel"].shape
        ((4, 16), (16, 2))
    """
    expect(
        "checkpoint.grow(source, growth, out)",
        source=(PATH, source),
        growth=(GROWTH, growth),
        out=(PATH, out),
    )
    expect_given("checkpoint.grow", key=(KEY, key), tx=(OPTIMIZER, tx), config=(MAPPING, config))
    if folder := item_folder(Path(source)):
        # Orbax and optimizers take time to import, and safetensors files need neither.
        from dogwood_jax.checkpoint.orbax_folders import grow_folder

        if config is not None:
            raise ValueError("checkpoint.grow: config= is for safetensors; leave it out for Orbax")
        step = None if folder == Path(source) else Path(source)
        grow_folder(folder, growth, Path(out), key, tx, step, names)
        return
    if tx is not None:
        raise ValueError("checkpoint.grow: tx= is for Orbax; safetensors hold no optimizer state")
    grow_files(Path(source), growth, Path(out), key, names, config)
