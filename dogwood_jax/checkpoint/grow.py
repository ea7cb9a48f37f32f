"""From a checkpoint on disk to a larger one: ``shapes``, ``load`` and ``grow``."""

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
        source: a ``.safetensors`` file, a folder with one or with shards, or the index of these;
            or the folder of a tree that Orbax saved, or of a step that holds one.
        names: which tensor is which leaf, see ``names`` of ``grow``.

    Returns:
        Nested dicts with a ``jax.ShapeDtypeStruct`` for each array. Keys 0, 1, ... of safetensors
        become a list. Of Orbax, the tree that was saved, perhaps with an optimizer's state in it;
        with ``names``, the leaves that these name.

    Raises:
        CheckpointError: if it is no intact checkpoint, or does not fit ``names``.
        OSError: if it is missing or must not be read.

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
    """Returns a checkpoint's arrays, in the tree that ``shapes`` gives; all of them in memory.

    Args:
        source: as for ``shapes``.
        names: which tensor is which leaf, see ``names`` of ``grow``.

    Returns:
        A tree of NumPy arrays, of Orbax with what else was saved, unless ``names`` are given.

    Raises:
        CheckpointError: if it is no intact checkpoint, or does not fit ``names``.
        OSError: if it is missing or must not be read.

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
    """Grows a checkpoint on disk, bit for bit as ``dw.grow`` grows its arrays with that key.

    Arrays are read, made and written one after another: neither the old nor the new network is ever
    in memory. The result appears whole or not at all.

    Large arrays are made in pieces of 4 MiB, and those in which nothing grows are copied. Zeros
    that end an array take no time: they are holes in the file. A few arrays are made as a whole,
    because their entries depend on each other: copies with noise, means of units, merged units,
    stacks of layers that get more of them, arrays of an initializer given to the strategy. All is
    written into the folder ``OUT.growing``, with a journal beside it, and then moved. If the run is
    killed or the disk gets full, the same call goes on where it stopped.

    Beside or above the network's variables, a tree that Orbax saved may hold an optimizer's state,
    ``{"params": ..., "opt_state": ...}``. The state grows as ``dw.grow_opt_state`` grows it. All
    else is saved as it was. Each array that grows is written as the one chunk of a file, as it is
    in memory (Orbax writes so with ``use_ocdbt=False, use_compression=False``). What Orbax saved as
    one compressed chunk, TensorStore decodes as a whole: the chunk is then in memory, and while it
    is decoded, what it is decoded from, too. ``ocp.SaveArgs(chunk_byte_size=...)`` makes smaller
    ones.

    Args:
        source: the smaller checkpoint, as for ``shapes``.
        growth: from ``plan`` for these variables, as ``shapes`` gives them to ``trace``; growing,
            deepening or narrowing.
        out: where the larger checkpoint goes: a new name, or a regular file to replace if the
            source is a file, or an empty folder if it is a folder or an index. Arrays stay in files
            of the same name. If the source is a step, as ``CheckpointManager`` writes them,
            ``out`` is one, too, with all that the step holds beside the tree: name it by its
            number, as ``large/100``, and ``CheckpointManager("large")`` finds it.
            Other files beside them are left to you, unless ``config.json`` is read, see below.
        key: PRNG key for random weights, as for ``dw.grow``.
        tx: the optimizer, if the checkpoint holds its state.
        names: which tensor is which leaf. Without it, a tensor's name is the leaf's path, joined by
            ``/`` or ``.``. A row such as ``{"model.layers.{i}.mlp.up_proj.weight":
            ("layers/{i}/mlp/up_proj/kernel", "transpose")}`` names tensors and leaves of all
            layers. The second text is ``"transpose"``, or the tensor's axes and the leaf's, as
            ``"(n h:128) d -> d n h"`` for heads of size 128. ``"layers/{i}/mlp/up[{e}]"`` is a leaf
            that is stacked of one tensor for each expert. ``llama``, ``qwen`` and ``gemma`` are
            such tables. ``{*rest}`` stands for one or more parts of a name, and None in place of a
            leaf leaves the tensor out of the larger checkpoint. The first row that fits counts.
            In a tree of Orbax, names are paths, and arrays lie as they are. MaxText's trees need
            ``{"params/params/{*rest}": "{*rest}"}``. What no row names is kept. The optimizer's
            state follows by itself. Without ``names``, the network is found at the top of the tree
            or at most two keys below.
        config: new numbers for ``config.json``, such as ``{"num_attention_heads": 8}``. It is read
            in a folder of safetensors if its ``model_type`` is llama, mistral, qwen2, qwen3,
            qwen3_moe, gemma, gemma2, gemma3, mixtral or olmo2. The larger model then gets its own,
            with or without ``config=``: a number that an array shows follows from the array, such
            as ``num_hidden_layers``, and one that you give must fit it. If heads grow, arrays show
            their number times their size alone, so give ``num_attention_heads``. Give lists with an
            entry for each layer, such as ``layer_types``, if there are more layers. What no array
            shows, such as ``rope_theta``, is as in the old file or as you give it. Transformers
            loads some models only if ``num_attention_heads`` divides ``hidden_size``: see to that.
            Tokenizer, chat template, ``generation_config.json`` and all other files beside the
            tensors are copied, weights in other formats not among them. For other models, for a
            single file and for an index, only tensors are written.

    Raises:
        TypeError: if arguments are of the wrong kind.
        ValueError: if ``dw.grow`` or ``dw.grow_opt_state`` would raise it, except that NaN is not
            looked for in units that are dropped; if a strategy looks at a loss; if ``out`` is the
            source; if ``names`` does not name an array of a new layer; if there is a state and no
            ``tx``, or a ``tx`` and not its state; if numbers of ``config.json`` do not fit the
            larger arrays; if ``config=`` is given and there is no ``config.json`` to read.
        CheckpointError: if the source is damaged, hostile or not of a known kind.
        OSError: if a file cannot be read or written, if ``out`` is something else than said above,
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
        # Optimizers take time to import, and safetensors hold none.
        from dogwood_jax.checkpoint.orbax_folders import grow_folder

        if config is not None:
            raise ValueError("checkpoint.grow: config= is for safetensors; leave it out for Orbax")
        step = None if folder == Path(source) else Path(source)
        grow_folder(folder, growth, Path(out), key, tx, step, names)
        return
    if tx is not None:
        raise ValueError("checkpoint.grow: tx= is for checkpoints of Orbax; safetensors hold none")
    grow_files(Path(source), growth, Path(out), key, names, config)
