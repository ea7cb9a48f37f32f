"""One decoder for the open language models whose weights lie in Hugging Face's folders.

``options_of`` reads ``config.json``, ``apply`` computes logits, ``load`` reads weights, and
``save`` writes them. The arrays have the names and the shapes of the files, so this is a model to
build on, and the one that the command line traces. It is written to be read: it keeps no cache and
uses no kernels. Families:
``llama``, ``mistral``, ``qwen2``, ``qwen3``, ``gemma``, ``gemma2``, ``gemma3`` (its text),
``mixtral``, ``qwen3_moe`` and ``olmo2``.

Layouts: tokens are ``[batch, time]``, activations ``[batch, time, features]``, and projections
``[out, in]``, as in the files. Experts are stacked: ``[experts, out, in]``.

| file | what it does |
|---|---|
| ``options`` | ``Options``, and how they follow from ``config.json`` |
| ``model`` | ``apply`` and ``shapes`` |
| ``folder`` | ``load`` and ``save``, and which tensor is which leaf |
| ``_folders/`` | a folder in, a larger or a smaller folder out: the command line |
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
