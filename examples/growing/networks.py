"""Networks of the benchmark."""

import flax.linen as nn
import jax
import jax.numpy as jnp


class MLP(nn.Module):
    """Relu units between inputs and classes.

    Attributes:
        units: number of units.
        classes: number of classes.
    """

    units: int
    classes: int = 10

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Returns logits ``[n, classes]`` of inputs ``[n, ...]``."""
        x = x.reshape(len(x), -1)
        return nn.Dense(self.classes, name="classes")(
            nn.relu(nn.Dense(self.units, name="units")(x))
        )


class CNN(nn.Module):
    """Three convolutions with BatchNorm, the mean over the image, and the digits.

    Attributes:
        channels: number of channels of the first convolution; the others have twice as many.
    """

    channels: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Returns logits ``[n, 10]`` of images ``[n, 28, 28]``."""
        x = x[..., None]
        for i, times in enumerate((1, 2, 2)):
            x = nn.Conv(times * self.channels, (3, 3), strides=(2, 2), name=f"conv_{i}")(x)
            norm = nn.BatchNorm(use_running_average=not train, momentum=0.9, name=f"norm_{i}")
            x = nn.relu(norm(x))
        return nn.Dense(10, name="digits")(x.mean((1, 2)))


class Transformer(nn.Module):
    """A decoder with a norm before each attention and each MLP.

    Attributes:
        layers: number of layers.
        stream: size of the residual stream.
        words: number of different inputs.
        context: number of positions.
        classes: number of different outputs.
        answers: number of last positions with outputs; None for all positions.
        silent: whether layers start with zeros in their last weights, so that they add nothing.
    """

    layers: int
    stream: int = 64
    words: int = 96
    context: int = 64
    classes: int = 96
    answers: int | None = None
    silent: bool = False

    @nn.compact
    def __call__(self, text: jax.Array, train: bool = False) -> jax.Array:
        """Returns logits ``[n, answers, classes]`` for inputs ``[n, context]``."""
        last = nn.initializers.zeros if self.silent else nn.linear.default_kernel_init
        x = nn.Embed(self.words, self.stream, name="words")(text)
        x += nn.Embed(self.context, self.stream, name="positions")(jnp.arange(text.shape[1])[None])
        mask = nn.make_causal_mask(text)
        for i in range(self.layers):
            h = nn.RMSNorm(name=f"attention_norm_{i}")(x)
            heads = self.stream // 16
            x += nn.MultiHeadDotProductAttention(
                heads, out_kernel_init=last, name=f"attention_{i}"
            )(h, mask=mask)
            h = nn.RMSNorm(name=f"mlp_norm_{i}")(x)
            h = nn.gelu(nn.Dense(4 * self.stream, name=f"up_{i}")(h))
            x += nn.Dense(self.stream, kernel_init=last, name=f"down_{i}")(h)
        x = nn.RMSNorm(name="norm")(x if self.answers is None else x[:, -self.answers :])
        return nn.Dense(self.classes, name="logits")(x)
