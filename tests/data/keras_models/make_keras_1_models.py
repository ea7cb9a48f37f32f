"""Writes models of Keras 1.2.2, and what it predicts with them.

    KERAS_BACKEND=theano python make_keras_1_models.py
    KERAS_BACKEND=tensorflow python make_keras_1_models.py

Needs Python 3.6 with keras==1.2.2, "h5py<3", and theano==1.0.5 or tensorflow==1.15. Theano computes
convolutions with kernels that are turned around, and names weights without ``:0``. Weights are
random; of a convolution with axes in Theano's order there is one on each backend.
"""

import os

if os.environ.get("KERAS_BACKEND") == "theano":
    import theano.ifelse  # noqa: F401, which Keras does not import itself

import numpy as np
from keras import __version__, backend
from keras.layers import (
    GRU,
    LSTM,
    Activation,
    AtrousConvolution2D,
    AveragePooling2D,
    BatchNormalization,
    Bidirectional,
    Convolution1D,
    Convolution2D,
    Cropping2D,
    Dense,
    Dropout,
    Embedding,
    Flatten,
    Input,
    LeakyReLU,
    MaxPooling1D,
    MaxPooling2D,
    PReLU,
    SimpleRNN,
    TimeDistributed,
    UpSampling2D,
    ZeroPadding2D,
    merge,
)
from keras.models import Model, Sequential

RNG = np.random.RandomState(0)


def image(order):
    backend.set_image_dim_ordering(order)
    shape = (3, 8, 9) if order == "th" else (8, 9, 3)
    layers = [
        Convolution2D(4, 3, 5, input_shape=shape, border_mode="same", activation="relu"),
        BatchNormalization(axis=1 if order == "th" else -1),
        MaxPooling2D((2, 2)),
        ZeroPadding2D((1, 2)),
        AtrousConvolution2D(5, 2, 3, atrous_rate=(2, 2)),
        UpSampling2D((2, 1)),
        Convolution2D(3, 2, 2, subsample=(2, 1), bias=False),
        Cropping2D(((1, 0), (0, 0))),
        AveragePooling2D((2, 2), strides=(1, 1)),
        Flatten(),
        Dense(3),
    ]
    return Sequential(layers), RNG.normal(size=(2,) + shape)


def sequence():
    layers = [
        Embedding(11, 6, input_length=9),
        Convolution1D(5, 3, border_mode="valid", activation="tanh"),
        MaxPooling1D(2),
        LSTM(4, return_sequences=True),
        GRU(3, return_sequences=True, inner_activation="sigmoid"),
        TimeDistributed(Dense(4)),
        Bidirectional(LSTM(3, return_sequences=True)),
        SimpleRNN(3),
        Dense(2, bias=False),
    ]
    return Sequential(layers), RNG.randint(0, 11, (3, 9))


def graph():
    one, other = Input((4,), name="one"), Input((4,), name="other")
    shared = Dense(5, name="shared", activation="tanh")
    inner = Sequential([Dense(5, input_dim=5), LeakyReLU(0.2), PReLU(), Dropout(0.5)])
    pair = [inner(shared(one)), shared(other)]
    sums = [merge(pair, mode=mode) for mode in ("sum", "mul", "ave", "max")]
    y = Dense(3, name="y")(merge(sums, mode="concat"))
    outputs = [Activation("softmax")(BatchNormalization()(y)), y]
    return Model([one, other], outputs), [RNG.normal(size=(3, 4)), RNG.normal(size=(3, 4))]


def save(name, model, x):
    weights = [RNG.normal(0, 0.4, w.shape).astype("f") for w in model.get_weights()]
    model.set_weights([np.abs(w) if w.ndim == 1 else w for w in weights])
    model.compile("adam", "mse")
    path = f"keras_{__version__}_{backend.backend()}_{name}"
    model.save(path + ".h5")
    y = model.predict(x)
    arrays = {}
    for kind, values in (("x", x), ("y", y)):
        for i, value in enumerate(values if isinstance(values, list) else [values]):
            arrays[f"{kind}{i}"] = value.astype("f") if value.dtype.kind == "f" else value
    np.savez(path + ".npz", **arrays)


save("th", *image("th"))
save("tf", *image("tf"))
if backend.backend() == "theano":
    save("sequence", *sequence())
else:
    save("graph", *graph())
