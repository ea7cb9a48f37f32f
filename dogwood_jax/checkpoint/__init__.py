"""Grow checkpoints on disk, array by array, without loading them.

``shapes`` reads what ``dw.trace`` needs, ``grow`` carries a growth out from file to file, and
``inspect`` says what a checkpoint holds. On the command line::

    python -m dogwood_jax inspect model/
    python -m dogwood_jax grow model/ growth.json larger/ --seed 0
    python -m dogwood_jax grow model/ larger/ --set num_hidden_layers=40 --seed 0

| file | what it does |
|---|---|
| ``grow``, ``inspect`` | the front |
| ``kinds`` | which kind of checkpoint a path is |
| ``names``, ``open_models`` | which tensor is which leaf, and how it lies |
| ``made`` | how each array of the larger model is made, piece by piece |
| ``writers``, ``new_files`` | threads that write the pieces into files |
| ``safetensors_files``, ``tensors`` | files of safetensors |
| ``config_json`` | numbers of the larger model, and files that are copied beside the tensors |
| ``orbax_folders``, ``orbax_arrays`` | folders of Orbax |
| ``orbax_names`` | where a tree of Orbax holds the network, and the optimizer's state |
| ``draft`` | what is being written appears whole or not at all, and is gone on with |
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
