"""Writes the Keras files of the tests, with the Keras 2 that is installed.

    python tests/data/make_keras_files.py

Each file ``keras_<version>_<model>.h5`` is what ``model.save_weights`` writes; beside it,
``keras_<version>_<model>.npz`` holds inputs ``x`` and what ``model.predict`` made of them, ``y``.

The files in this folder come from one run each with:

    Python 3.7   keras 2.3.1, tensorflow 1.15.5, h5py 2.10.0
    Python 3.10  tensorflow-cpu 2.10.1 (its tf.keras is 2.10.0), h5py 3.16.0
    Python 3.11  tf_keras 2.21.0, tensorflow-cpu 2.21.0, h5py 3.14.0
"""

from pathlib import Path

import numpy as np

try:
    import tf_keras as keras
except ImportError:
    try:
        import keras
    except ImportError:
        from tensorflow import keras
if keras.__version__.split(".")[0] != "2":
    from tensorflow import keras

FOLDER = Path(__file__).parent


def mlp():
    """Has layers without weights and one without a bias."""
    return keras.models.Sequential(
        [
            keras.layers.Flatten(input_shape=(3, 2), name="flatten"),
            keras.layers.Dense(5, activation="relu", name="dense_1"),
            keras.layers.Dropout(0.5, name="dropout"),
            keras.layers.Dense(4, activation="tanh", use_bias=False, name="dense_2"),
            keras.layers.Dense(3, name="dense_3"),
        ]
    )


def unsorted():
    """Has layers of one shape whose order is not that of the alphabet."""
    names = ("dense_8", "dense_9", "dense_10", "dense_11")
    layers = [keras.layers.Dense(3, activation="tanh", use_bias=False, name=n) for n in names]
    flatten = keras.layers.Flatten(input_shape=(3, 1), name="flatten")
    return keras.models.Sequential([flatten, *layers])


def nested():
    """Has a model for a layer, with two layers in it."""
    inner = keras.models.Sequential(
        [
            keras.layers.Dense(4, activation="relu", input_shape=(6,), name="up"),
            keras.layers.Dense(2, name="down"),
        ],
        name="inner",
    )
    flatten = keras.layers.Flatten(input_shape=(3, 2), name="flatten")
    return keras.models.Sequential([flatten, inner, keras.layers.Dense(3, name="out")])


if __name__ == "__main__":
    for build in (mlp, unsorted, nested):
        for _ in range(2):  # the second time, Keras numbers the inner names: dense_1_1/kernel:0
            model = build()
        rng = np.random.default_rng(0)
        weights = [rng.normal(size=w.shape).astype("float32") for w in model.get_weights()]
        model.set_weights(weights)
        x = rng.normal(size=(4, *model.input_shape[1:])).astype("float32")
        path = FOLDER / f"keras_{keras.__version__}_{build.__name__}.h5"
        model.save_weights(str(path))
        np.savez(path.with_suffix(".npz"), x=x, y=model.predict(x))
