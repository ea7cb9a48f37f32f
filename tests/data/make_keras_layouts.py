"""Writes one model in every layout that the Keras that is installed has.

    python tests/data/make_keras_layouts.py keras        # or tf_keras, or tensorflow

The model is trained for two steps with Adam and saved; beside its files, the ``.npz`` holds inputs
``x``, what ``predict`` made of them, ``y``, targets ``t``, and all weights after a third step,
``after_0``, ``after_1``, ...

The files in the folder ``keras_layouts`` come from one run each with:

    Python 3.7   keras 2.0.9 and keras 2.3.1, each with tensorflow 1.15.5, h5py 2.10.0
    Python 3.8   tensorflow-cpu 2.2.3 (its tf.keras is 2.3.0-tf), h5py 2.10.0
    Python 3.10  tensorflow-cpu 2.12.1, h5py 3.16.0
    Python 3.11  tf_keras 2.21.0, keras 3.0.5 and 3.15.1, each with tensorflow-cpu 2.21.0
"""

import importlib
import sys
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent / "keras_layouts"


def main(package):
    """Makes, trains and saves the model."""
    keras = importlib.import_module(package)
    keras = getattr(keras, "keras", keras)
    version = tuple(map(int, keras.__version__.split("-")[0].split(".")[:2]))
    dense = keras.layers.Dense

    def sequential(shape, *layers, **kwargs):
        if version >= (3, 0):
            return keras.Sequential([keras.Input(shape), *layers], **kwargs)
        return keras.models.Sequential([keras.layers.InputLayer(shape), *layers], **kwargs)

    up, down = dense(3, activation="relu", name="up"), dense(4, name="down")
    inner = sequential((4,), up, down, name="inner")
    model = sequential(
        (3, 2),
        keras.layers.Flatten(name="flatten"),
        dense(5, activation="relu", name="dense_1"),
        dense(4, activation="tanh", use_bias=False, name="dense_2"),
        keras.layers.Dropout(0.0, name="dropout"),
        inner,
        dense(3, name="dense_10"),
    )
    rng = np.random.RandomState(0)
    weights = [rng.normal(size=w.shape).astype("f") / 2 for w in model.get_weights()]
    model.set_weights(weights)  # small, for gradients through tanh to be more than rounding
    x, t = rng.normal(size=(4, 3, 2)).astype("f"), rng.normal(size=(4, 3)).astype("f")
    if package != "tf_keras" and version < (2, 4):
        adam = keras.optimizers.Adam(lr=0.1)
    else:
        adam = keras.optimizers.Adam(learning_rate=0.1)
    model.compile(optimizer=adam, loss="mse")
    model.fit(x, t, epochs=2, batch_size=4, verbose=0)
    FOLDER.mkdir(exist_ok=True)
    base = FOLDER / f"{package}_{keras.__version__}"
    if version != (3, 0):  # cannot save a model in a model this way
        model.save(f"{base}.h5")
    if version < (3, 0):
        model.save_weights(f"{base}.w.h5")
    if version >= (2, 12):
        model.save(f"{base}.keras")
        model.save_weights(f"{base}.weights.h5")
    y = model.predict(x)
    model.fit(x, t, epochs=1, batch_size=4, verbose=0)
    after = {f"after_{i}": w for i, w in enumerate(model.get_weights())}
    np.savez_compressed(f"{base}.npz", x=x, y=y, t=t, **after)


if __name__ == "__main__":
    main(sys.argv[1])
