"""Writes models that Keras 3 has quantized, and what it predicts with them.

    KERAS_BACKEND=jax python make_quantized_models.py

The files in this folder come from Keras 3.10.0, which knows int8 alone, and 3.15.1. Sizes are odd,
because two integers of 4 bits are in a byte, and no multiples of a block.
"""

import keras
import numpy as np
from keras import layers as L

VERSION = keras.__version__


def model():
    ids = L.Input((6,), dtype="int32")
    y = L.Dense(7, activation="tanh")(L.Embedding(9, 5)(ids))
    y = L.EinsumDense("abc,cde->abed", (None, 4, 3), bias_axes="ed", activation="relu")(y)
    y = L.EinsumDense("abdc,cde->abe", (None, 5), bias_axes="e")(y)
    return keras.Model(ids, L.Dense(3, use_bias=False)(L.GlobalAveragePooling1D()(y)))


def configs():
    if VERSION.startswith("3.10."):
        return {"int8": {"mode": "int8"}}
    new = keras.quantizers
    rounded = new.AbsMaxQuantizer(value_range=(-100, 100), epsilon=1e-3)
    return {
        "int8": {"mode": "int8"},
        "int8-weights": {"config": new.Int8QuantizationConfig(activation_quantizer=None)},
        "int4": {"config": new.Int4QuantizationConfig(block_size=4)},
        "int4-rounded": {
            "config": new.Int4QuantizationConfig(block_size=None, activation_quantizer=rounded)
        },
    }


for name, options in configs().items():
    rng = np.random.RandomState(0)
    keras.backend.clear_session()
    made = model()
    made.set_weights([rng.normal(size=w.shape) * 0.4 for w in made.get_weights()])
    made.quantize(**options)
    x = rng.randint(0, 9, (3, 6))
    stem = f"keras_{VERSION}_{name}"
    np.savez_compressed(f"{stem}.npz", x0=x, y0=made.predict(x))
    made.save(f"{stem}.keras")
    if name in ("int8", "int4") and VERSION.startswith("3.15."):
        made.save(f"{stem}.h5")
