"""Grow checkpoints on disk, array by array, without loading them.

``shapes`` reads the shapes that ``dw.trace`` needs, ``grow`` applies a growth from file to file,
and ``inspect`` lists the arrays of a checkpoint. On the command line::

    python -m dogwood_jax inspect model/
    python -m dogwood_jax grow model/ growth.json larger/ --seed 0
    python -m dogwood_jax grow model/ larger/ --set num_hidden_layers=40 --seed 0

| file | content |
|---|---|
| ``grow``, ``inspect`` | the public functions |
| ``kinds`` | tells Orbax folders from safetensors |
| ``names``, ``open_models`` | names of tensors and leaves, and the axis orders of both |
| ``made`` | makes each array of the larger model, piece by piece |
| ``writers``, ``new_files`` | threads that write the pieces into files |
| ``safetensors_files``, ``tensors`` | safetensors files |
| ``config_json`` | ``config.json`` of the larger model, and the files that are copied with it |
| ``orbax_folders``, ``orbax_arrays`` | Orbax folders |
| ``orbax_names`` | paths of the network and of the optimizer's state in an Orbax tree |
| ``draft`` | atomic writing: an unfinished checkpoint stays apart, and a later call resumes it |
"""

from dogwood_jax.checkpoint.grow import grow, load, shapes
from dogwood_jax.checkpoint.inspect import Inspection, StoredArray, inspect
from dogwood_jax.checkpoint.kinds import CheckpointError
from dogwood_jax.checkpoint.open_models import gemma, llama, qwen

__all__ = [
    "CheckpointError",
    "Inspection",
    "StoredArray",
    "gemma",
    "grow",
    "inspect",
    "llama",
    "load",
    "qwen",
    "shapes",
]
