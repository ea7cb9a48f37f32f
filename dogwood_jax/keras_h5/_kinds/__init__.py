"""The layers of Keras, class by class: their weights, and Flax code that computes the same.

``kind`` has the record of a class, ``Kind``, and the table ``KINDS``, which maps the name of a
class to its record; the other files fill it. ``weight`` converts arrays from Keras to Flax and
back, ``masking`` has the masks of outputs, ``options`` reads options that the configs of many
layers share, and ``quantized`` has integer weights.

The layers are in ``dense``, ``convolutions``, ``local``, ``recurrent``, ``attention``,
``normalizations``, ``categories``, ``vocabularies``, ``activations``, ``identity``, ``reshaping``,
``pooling``, ``images`` and ``merging``. ``nested`` and ``spectral`` have layers with inner layers.
``operations`` has functions that Keras turns into layers.

To add a layer, add one entry to the table at the end of its family's file. Whatever an entry leaves
out counts as unknown, and is refused where it matters.
"""

# These imports fill the table.
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
