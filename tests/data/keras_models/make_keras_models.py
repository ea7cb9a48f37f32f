"""Writes the models of this folder, and what Keras predicts with them.

    python make_keras_models.py tensorflow   # tf.keras of TensorFlow 1.15 to 2.15
    python make_keras_models.py tf_keras     # Keras 2, the archives it calls v3
    python make_keras_models.py keras        # Keras 2.3, Keras 3
    python make_keras_models.py keras image  # this one alone

Small models with many layers each; weights are random, so that no two arrays can be mistaken for
each other. A model with layers that a version lacks is left out. The files in this folder come from
TensorFlow 1.15.5 and 2.10.1, tf_keras 2.21.0 and Keras 3.15.1; of the latter's .h5, which differ
from its archives in their layout alone, only the model with a model inside is kept. The masked
model of Keras 3 is not supported: its masks depend on the order of calls.
"""

import importlib
import os
import sys

import numpy as np

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
package = importlib.import_module(sys.argv[1])
keras = getattr(package, "keras", package)
L = keras.layers
VERSION = getattr(keras, "__version__", None) or package.__version__
FORMATS = {"tensorflow": [".h5"], "tf_keras": [".keras"], "keras": [".keras", ".h5"]}[sys.argv[1]]
FORMATS = [".h5"] if VERSION.startswith("2.3.") else FORMATS


def image():
    x = y = L.Input((9, 8, 3))
    y = L.ZeroPadding2D(((1, 0), (0, 2)))(y)
    y = L.Conv2D(6, (3, 2), strides=2, padding="same", activation="relu")(y)
    y = L.BatchNormalization(epsilon=1e-2)(y)
    y = L.PReLU(shared_axes=[1, 2])(y)
    y = L.Conv2DTranspose(4, 3, strides=2, padding="same")(y)
    y = L.ReLU(6.0, negative_slope=0.1, threshold=0.2)(y)
    y = L.DepthwiseConv2D(3, padding="same", depth_multiplier=2)(y)
    y = L.BatchNormalization(scale=False)(y)
    y = L.SeparableConv2D(5, 3, activation="elu")(y)
    y = L.Concatenate()(
        [L.MaxPooling2D(2, padding="same")(y), L.AveragePooling2D(2, padding="same")(y)]
    )
    y = L.UpSampling2D(2)(L.Cropping2D(1)(y))
    z = L.Flatten()(L.Conv2D(2, 2, dilation_rate=2)(y))
    y = L.Dropout(0.5)(L.GlobalAveragePooling2D()(y))
    return keras.Model(x, L.Dense(4, activation="softmax")(L.Concatenate()([y, z])))


def sequence():
    model = keras.Sequential()
    model.add(L.Embedding(9, 4, mask_zero=True, **LENGTH))
    model.add(L.Bidirectional(L.LSTM(3, return_sequences=True)))
    model.add(L.GRU(5, return_sequences=True, reset_after=True))
    model.add(L.TimeDistributed(L.Dense(4, activation="tanh")))
    model.add(L.Conv1D(4, 3, padding="causal", dilation_rate=2))
    model.add(L.MaxPooling1D(2))
    model.add(
        L.LSTM(4, recurrent_activation="hard_sigmoid", go_backwards=True, return_sequences=True)
    )
    model.add(L.GRU(3, reset_after=False, return_sequences=True))
    model.add(L.SimpleRNN(3, activation="relu"))
    if not LENGTH:
        model.build((None, 8))
    return model


# Keras 3 and early Keras 2 learn the length of sequences in different ways.
LENGTH = {} if VERSION.startswith("3.") else {"input_length": 8}


def graph():
    a, b = L.Input((4,), name="a"), L.Input((4,), name="b")
    block = keras.Sequential(name="block")
    block.add(L.Dense(5, activation="softplus", input_shape=(4,)))
    block.add(L.BatchNormalization())
    block.add(L.Dense(4, name="narrow"))
    shared = L.Dense(4, activation="tanh", name="shared")
    p, q = shared(block(a)), shared(block(b))
    r = L.Multiply()([p, L.Average()([q, a])])
    s = L.Subtract()([L.Maximum()([p, q]), L.Add()([p, q, r])])
    dot = L.Dot(1, normalize=True)([r, s])
    return keras.Model([a, b], [L.Dense(3)(L.Concatenate()([r, s, dot])), shared(r)])


def attention():
    a, b = L.Input((6, 8)), L.Input((5, 4))
    x = L.Add()([a, L.MultiHeadAttention(2, 3)(a, a)])
    x = L.LayerNormalization(epsilon=1e-5)(x)
    y = L.MultiHeadAttention(3, 4, value_dim=5, use_bias=False)(x, b)
    y = L.EinsumDense("abc,cd->abd", output_shape=(None, 6), bias_axes="d", activation="gelu")(y)
    return keras.Model([a, b], L.GlobalAveragePooling1D()(y))


def activations():
    x = L.Input((7,))
    names = "elu selu relu softplus softsign tanh sigmoid hard_sigmoid exponential linear".split()
    layers = [L.Activation(name) for name in names]
    layers += [L.LeakyReLU(0.3), L.ELU(0.7), L.Softmax(), L.ReLU(0.5)]
    return keras.Model(x, L.Concatenate()([layer(L.Dense(3)(x)) for layer in layers]))


def growing():
    x = L.Input((5,))
    y = L.LeakyReLU(0.3)(L.BatchNormalization()(L.Dense(4 * 3 * 6)(x)))
    y = L.Conv2D(6, 3, padding="same")(L.UpSampling2D(2)(L.Reshape((4, 3, 6))(y)))
    y = L.Activation("relu")(L.GroupNormalization(3)(y))
    gate = L.Reshape((1, 1, 6))(L.GlobalAveragePooling2D()(y))
    y = L.Multiply()([y, L.Dense(6, activation="sigmoid")(gate)])
    return keras.Model(x, L.Conv2D(2, 3, activation="tanh")(y))


def masked():
    a = L.Input((8,), dtype="int32")
    e = L.Embedding(9, 4, mask_zero=True)(a)
    y = L.Add()([e, L.MultiHeadAttention(2, 3)(e, e)])
    y = L.Attention(use_scale=True)([y, e])
    states = L.LSTM(4, return_state=True)(y)
    b = L.Input((6, 3))
    z = L.GRU(4, return_sequences=True)(b, initial_state=states[1])
    z = L.AdditiveAttention()([z, y])
    return keras.Model([a, b], L.Dense(2)(z[:, -1] * 2 + 1))


def versions():
    a, b = L.Input((6,), dtype="int32"), L.Input((6, 4))
    e, f = L.Embedding(9, 4, mask_zero=True)(a), L.Embedding(9, 4, mask_zero=True)(a)
    ends = [L.LSTM(2)(L.Add()([e, b])), L.LSTM(2)(L.Add()([e, f]))]
    ends += [L.LSTM(3)(L.Concatenate()([e, f])), L.GlobalAveragePooling1D()(L.Dense(3)(e))]
    merged = L.Multiply()([e, b]), L.Maximum()([b, e])
    ends.append(L.Concatenate()([L.LSTM(2)(one) for one in merged]))
    ends.append(L.Bidirectional(L.GRU(2, return_sequences=True))(e))
    ends.append(L.UpSampling2D((2, 3), interpolation="bilinear")(L.Reshape((6, 4, 1))(b)))
    ends.append(L.Activation("hard_sigmoid")(b))
    if hasattr(L, "MultiHeadAttention"):
        y = L.LayerNormalization()(L.Add()([f, L.MultiHeadAttention(2, 3)(f, f)]))
        ends.append(L.GlobalAveragePooling1D()(y))
        ends.append((1 - b / 2) * np.arange(4, dtype="float32"))
    return keras.models.Model([a, b], ends)


def randomized(model, rng):
    """Gives a model random weights, of scales at which nothing saturates."""
    new = []
    for weight, array in zip(model.weights, model.get_weights()):
        positive = "variance" in weight.name or "gamma" in weight.name
        draw = (
            rng.uniform(0.5, 1.5, array.shape) if positive else rng.normal(size=array.shape) * 0.4
        )
        new.append(draw.astype(array.dtype))
    model.set_weights(new)
    return model


for make in (image, sequence, graph, attention, activations, growing, masked, versions):
    if make.__name__ not in (sys.argv[2:] or [make.__name__]):
        continue
    rng = np.random.RandomState(0)
    keras.backend.clear_session()
    try:
        model = randomized(make(), rng)
    except AttributeError as error:
        print("without", make.__name__, "-", error)
        continue
    if make is sequence:
        x = [rng.randint(0, 9, (3, 8)) * (np.arange(8) < [[8], [5], [7]])]
    else:
        x = [rng.normal(size=(3, *map(int, i.shape[1:]))).astype("float32") for i in model.inputs]
    if make is masked:
        x[0] = rng.randint(1, 9, (3, 8)) * (np.arange(8) < [[8], [5], [7]])
    if make is versions:
        x[0] = rng.randint(1, 9, (3, 6)) * (np.arange(6) < [[6], [3], [5]])
    y = model.predict(x if len(x) > 1 else x[0])
    y = y if isinstance(y, list) else [y]
    stem = f"{sys.argv[1]}_{VERSION}_{make.__name__}"
    arrays = {f"x{i}": array for i, array in enumerate(x)}
    arrays.update({f"y{i}": array for i, array in enumerate(y)})
    np.savez_compressed(f"{stem}.npz", **arrays)
    for ending in FORMATS:
        model.save(stem + ending)
