"""The layers of Keras, class by class: their weights, and what computes the same in Flax.

In comes the name of a class; out comes what is known of it: ``kind`` has the record, ``Kind``, and
the table of all, ``KINDS``, which the other files fill. ``weight`` says what an array of Keras is
in Flax, ``masking`` what becomes of masks, ``options`` has what configs of many layers share, and
``quantized`` what becomes of weights that are integers.

The layers are in ``dense``, ``convolutions``, ``local``, ``recurrent``, ``attention``,
``normalizations``, ``categories``, ``vocabularies``, ``activations``, ``identity``, ``reshaping``,
``pooling``, ``images`` and ``merging``; ``nested`` and ``spectral`` have layers that hold layers,
and ``operations`` functions that Keras makes layers of.

Where to add: a layer is one entry in the table at the end of its family's file. What an entry does
not say is unknown, and refused where it matters.
"""

# Whoever asks for a kind finds the table filled.
from dogwood_jax.keras_h5._kinds import (  # noqa: F401
    activations,
    attention,
    categories,
    convolutions,
    dense,
    identity,
    images,
    local,
    merging,
    nested,
    normalizations,
    operations,
    pooling,
    recurrent,
    reshaping,
    spectral,
    vocabularies,
)
