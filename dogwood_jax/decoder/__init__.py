"""One decoder for open language models, with weights in Hugging Face folders.

``options_of`` reads ``config.json``, ``apply`` computes logits, ``load`` reads weights, and
``save`` writes them. The arrays have the names and shapes of the files. The command line traces
this decoder, and you can build on it. It is written to be read: it keeps no cache and uses no
kernels. Families:
``llama``, ``mistral``, ``qwen2``, ``qwen3``, ``gemma``, ``gemma2``, ``gemma3`` (text only),
``mixtral``, ``qwen3_moe`` and ``olmo2``.

Layouts: tokens are ``[batch, time]``, activations ``[batch, time, features]``, and projections
``[out, in]``, as in the files. Experts are stacked: ``[experts, out, in]``.

| file | content |
|---|---|
| ``options`` | ``Options``, and how ``config.json`` becomes options |
| ``model`` | ``apply`` and ``shapes`` |
| ``folder`` | ``load``, ``save``, and ``names`` of tensors and leaves |
| ``_folders/`` | the command line: reads a folder, writes a larger or smaller one |
"""

from dogwood_jax.decoder.folder import load, names, save
from dogwood_jax.decoder.model import apply, shapes
from dogwood_jax.decoder.options import Experts, Options, Rope, options_of

__all__ = [
    "Experts",
    "Options",
    "Rope",
    "apply",
    "load",
    "names",
    "options_of",
    "save",
    "shapes",
]
