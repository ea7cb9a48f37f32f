"""Architectures of the table: live models of Keras 3 on JAX, and Keras files."""

import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from architecture import Grown, Moved, Network, architecture, data

import dogwood_jax as dw

KERAS, FILE = "Keras 3", "Keras file"


@dataclasses.dataclass(frozen=True)
class Model:
    """A model of Keras 3, with the weights that Keras begins with."""

    model: Any
    x: Any

    def trace(self) -> dw.Widths:
        return dw.keras.trace(self.model, self.x)

    def by_size(self, widths: dw.Widths, sizes: dict[str, int]) -> None:
        self._moved(dw.keras.grow(self.model, sizes, self.x))

    def into(self, widths: dw.Widths, larger: Any) -> Grown:
        wide = dw.keras.grow(self.model, x=self.x, target=larger.model)
        return Grown(None, wide, self._moved(wide))

    def _moved(self, larger: Any) -> float:
        old, new = (np.asarray(model(self.x)) for model in (self.model, larger))
        if not np.allclose(old, new, rtol=1e-4, atol=1e-5):
            raise Moved(f"by {np.abs(old - new).max()}")
        return float(np.abs(old - new).max() / np.abs(old).max())


def live(shape: tuple[int, ...], build: Callable[[Any, Any], Any]) -> Model:
    """Makes a functional model; ``build`` takes Keras and the input."""
    import keras

    keras.utils.set_random_seed(0)
    x = keras.Input(shape)
    return Model(keras.Model(x, build(keras.layers, x)), data(2, *shape))


def from_file(shape: tuple[int, ...], build: Callable[[Any, Any], Any]) -> Network:
    """Writes the same model to a file, and reads it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.keras"
        live(shape, build).model.save(path)
        module, variables = dw.keras_h5.load_model(path)

    def struct(leaf: Any) -> Any:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)

    return Network(module.apply, jax.tree.map(struct, variables), (data(2, *shape),))


def mlp(hidden: int, layers: int) -> Callable[[Any, Any], Any]:
    def build(k: Any, x: Any) -> Any:
        for i in range(layers):
            x = k.Dense(hidden, activation="relu", name=f"dense_{i}")(x)
        return k.Dense(5, name="head")(k.Dropout(0.1)(x))

    return build


def cnn(channels: int, hidden: int) -> Callable[[Any, Any], Any]:
    def build(k: Any, x: Any) -> Any:
        x = k.Conv2D(channels, 3, padding="same", name="conv")(x)
        x = k.MaxPooling2D()(k.ReLU()(k.BatchNormalization(name="norm")(x)))
        x = k.Dense(hidden, activation="relu", name="hidden")(k.Flatten()(x))
        return k.Dense(5, name="head")(x)

    return build


def lstm(hidden: int) -> Callable[[Any, Any], Any]:
    return lambda k, x: k.Dense(3, name="head")(k.LSTM(hidden, name="lstm")(x))


@architecture("MLP, Keras", KERAS, needs="keras")
def keras_mlp(hidden: int = 16, layers: int = 2) -> Model:
    return live((8,), mlp(hidden, layers))


@architecture("CNN, Keras", KERAS, needs="keras")
def keras_cnn(channels: int = 4, hidden: int = 8) -> Model:
    return live((8, 8, 3), cnn(channels, hidden))


@architecture("LSTM, Keras", KERAS, needs="keras")
def keras_lstm(hidden: int = 8) -> Model:
    return live((6, 4), lstm(hidden))


@architecture("ResNet, Keras", KERAS, needs="keras")
def keras_resnet(channels: int = 4, layers: int = 2) -> Model:
    def build(k: Any, x: Any) -> Any:
        x = k.Conv2D(channels, 3, padding="same", name="stem")(x)
        for i in range(layers):
            y = k.Conv2D(channels, 3, padding="same", name=f"conv_{i}_a")(x)
            y = k.ReLU()(k.BatchNormalization(name=f"norm_{i}_a")(y))
            y = k.Conv2D(channels, 3, padding="same", name=f"conv_{i}_b")(y)
            x = k.ReLU()(k.Add()([x, k.BatchNormalization(name=f"norm_{i}_b")(y)]))
        return k.Dense(5, name="head")(k.GlobalAveragePooling2D()(x))

    return live((8, 8, 3), build)


@architecture("Transformer encoder, Keras", KERAS, needs="keras")
def keras_transformer(
    stream: int = 8, heads: int = 2, head_dim: int = 4, hidden: int = 16
) -> Model:
    def build(k: Any, x: Any) -> Any:
        x = k.Dense(stream, name="embed")(x)
        y = k.LayerNormalization(name="norm_a")(x)
        x = k.Add()([x, k.MultiHeadAttention(heads, head_dim, name="attention")(y, y)])
        y = k.LayerNormalization(name="norm_b")(x)
        y = k.Dense(hidden, activation="gelu", name="up")(y)
        x = k.Add()([x, k.Dense(stream, name="down")(y)])
        return k.Dense(3, name="head")(k.GlobalAveragePooling1D()(x))

    return live((5, 4), build)


@architecture("MLP, from a file", FILE, needs="keras")
def file_mlp(hidden: int = 16, layers: int = 2) -> Network:
    return from_file((8,), mlp(hidden, layers))


@architecture("CNN, from a file", FILE, needs="keras")
def file_cnn(channels: int = 4, hidden: int = 8) -> Network:
    return from_file((8, 8, 3), cnn(channels, hidden))


@architecture("LSTM, from a file", FILE, needs="keras")
def file_lstm(hidden: int = 8) -> Network:
    return from_file((6, 4), lstm(hidden))
