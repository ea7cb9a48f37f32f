"""Architectures of the table: networks that make images, sounds and samples."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from architecture import Network, architecture, data, f32, linen
from architectures_vision import IMAGES, attention, mlp, norm


def waves(time: Any, size: int) -> Any:
    """Sines and cosines of a time, at frequencies that follow from the size."""
    angle = time[:, None] * 100.0 ** -(jnp.arange(size // 2) / (size // 2))
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)


@architecture("Autoencoder")
def autoencoder(hidden: int = 16, code: int = 4) -> Network:
    sizes = (hidden, code, hidden)
    stack = [part for size in sizes for part in (nn.Dense(size), nn.tanh)]
    return linen(nn.Sequential([*stack, nn.Dense(8)]), data(4, 8))


@architecture("VAE (convolutional, sampled)")
def vae(channels: int = 4, hidden: int = 8, code: int = 3) -> Network:
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            h = nn.relu(nn.Conv(channels, (3, 3), 2, name="conv")(x))
            h = nn.relu(nn.Dense(hidden, name="encoder")(h.reshape(len(h), -1)))
            mean, log_var = nn.Dense(code, name="mean")(h), nn.Dense(code, name="log_var")(h)
            noise = jax.random.normal(jax.random.key(0), mean.shape)
            h = nn.relu(nn.Dense(hidden, name="decoder")(mean + jnp.exp(log_var / 2) * noise))
            h = nn.relu(nn.Dense(4 * 4 * channels, name="grid")(h)).reshape(-1, 4, 4, channels)
            return nn.ConvTranspose(3, (3, 3), (2, 2), name="image")(h)

    return linen(Net(), data(*IMAGES))


@architecture("VQ-VAE (codebook)")
def vq_vae(channels: int = 4, code: int = 3, codes: int = 6) -> Network:
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            h = nn.relu(nn.Conv(channels, (3, 3), 2, name="encoder")(x))
            z = nn.Conv(code, (1, 1), name="code")(h)
            book = self.param("book", nn.initializers.normal(1), (codes, code))
            apart = jnp.sum((z[..., None, :] - book) ** 2, axis=-1)
            q = book[jnp.argmin(apart, axis=-1)]
            q = z + jax.lax.stop_gradient(q - z)
            h = nn.relu(nn.Conv(channels, (3, 3), name="decoder")(q))
            return nn.ConvTranspose(3, (2, 2), (2, 2), name="image")(h)

    return linen(Net(), data(*IMAGES))


@architecture("GAN generator (DCGAN)")
def dcgan(first: int = 8, second: int = 4) -> Network:
    class Net(nn.Module):
        @nn.compact
        def __call__(self, z: Any) -> Any:
            x = nn.Dense(2 * 2 * first, name="grid")(z).reshape(-1, 2, 2, first)
            x = nn.relu(norm("norm_0")(x))
            x = nn.ConvTranspose(second, (4, 4), (2, 2), use_bias=False, name="up")(x)
            x = nn.relu(norm("norm_1")(x))
            return jnp.tanh(nn.ConvTranspose(3, (4, 4), (2, 2), name="image")(x))

    return linen(Net(), data(2, 6))


@architecture("StyleGAN block (modulated convolution)", "JAX")
def stylegan(channels: int = 4, style: int = 5) -> Network:
    shapes = {
        "style": {"kernel": f32(6, style), "bias": f32(style)},
        "first": f32(3, 3, 3, channels),
        "scale": {"kernel": f32(style, channels), "bias": f32(channels)},
        "conv": f32(3, 3, channels, channels),
        "image": f32(1, 1, channels, 3),
    }

    def conv(x: Any, kernel: Any) -> Any:
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=numbers)

    def apply(p: Any, x: Any, z: Any) -> Any:
        w = jax.nn.leaky_relu(z @ p["style"]["kernel"] + p["style"]["bias"], 0.2)
        scale = w @ p["scale"]["kernel"] + p["scale"]["bias"]
        x = conv(x, p["first"])
        kernel = p["conv"][None] * scale[:, None, None, :, None]
        demodulate = jax.lax.rsqrt(jnp.sum(kernel**2, axis=(1, 2, 3)) + 1e-8)
        x = conv(x * scale[:, None, None], p["conv"]) * demodulate[:, None, None]
        return conv(jax.nn.leaky_relu(x, 0.2), p["image"])

    return Network(apply, shapes, (data(*IMAGES), data(2, 6)))


@architecture("Diffusion U-Net (GroupNorm, time)")
def diffusion_unet(channels: int = 8, time: int = 8) -> Network:
    class Net(nn.Module):
        def block(self, x: Any, t: Any, size: int, name: str) -> Any:
            h = nn.Conv(size, (3, 3), name=f"{name}_a")(nn.swish(self.norm(f"{name}_norm_a")(x)))
            h = h + nn.Dense(size, name=f"{name}_time")(t)[:, None, None]
            h = nn.Conv(size, (3, 3), name=f"{name}_b")(nn.swish(self.norm(f"{name}_norm_b")(h)))
            return h + (x if x.shape == h.shape else nn.Conv(size, (1, 1), name=f"{name}_skip")(x))

        def norm(self, name: str) -> Any:
            return nn.GroupNorm(4, name=name)

        @nn.compact
        def __call__(self, x: Any, at: Any) -> Any:
            t = nn.swish(nn.Dense(4 * time, name="time")(waves(at, time)))
            x = skip = self.block(nn.Conv(channels, (3, 3), name="stem")(x), t, channels, "down")
            x = nn.Conv(channels, (3, 3), 2, name="half")(x)
            x = self.block(x, t, 2 * channels, "bottom")
            x = jax.image.resize(x, (*skip.shape[:3], x.shape[-1]), "nearest")
            x = self.block(jnp.concatenate([x, skip], -1), t, channels, "up")
            return nn.Conv(3, (3, 3), name="noise")(nn.swish(self.norm("norm")(x)))

    return linen(Net(), data(*IMAGES), jnp.asarray([3.0, 7.0]))


@architecture("DiT (adaLN-Zero)")
def dit(
    stream: int = 8, heads: int = 2, head_dim: int = 4, hidden: int = 16, layers: int = 2
) -> Network:
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x: Any, at: Any) -> Any:
            x = nn.Conv(stream, (4, 4), (4, 4), name="patches")(x).reshape(len(x), -1, stream)
            t = nn.swish(nn.Dense(stream, name="time")(waves(at, 8)))
            for i in range(layers):
                parts = nn.Dense(6 * stream, name=f"modulation_{i}")(t)[:, None]
                a, b, c, d, e, f = jnp.split(parts, 6, axis=-1)
                plain = {"use_scale": False, "use_bias": False}
                y = nn.LayerNorm(**plain, name=f"norm_{i}_a")(x) * (1 + a) + b
                x = x + c * attention(y, stream, heads, head_dim, f"attention_{i}")
                y = nn.LayerNorm(**plain, name=f"norm_{i}_b")(x) * (1 + d) + e
                x = x + f * mlp(y, stream, hidden, f"mlp_{i}")
            return nn.Dense(48, name="out")(nn.LayerNorm(name="norm")(x))

    return linen(Net(), data(*IMAGES), jnp.asarray([3.0, 7.0]))


@architecture("WaveNet (gated, dilated)")
def wavenet(channels: int = 6, gates: int = 8, layers: int = 2) -> Network:
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            x, skips = nn.Conv(channels, (1,), name="stem")(x), 0.0
            for i in range(layers):
                conv = {"kernel_dilation": 2**i, "padding": "CAUSAL"}
                y = jnp.tanh(nn.Conv(gates, (2,), name=f"filter_{i}", **conv)(x))
                y = y * nn.sigmoid(nn.Conv(gates, (2,), name=f"gate_{i}", **conv)(x))
                x = x + nn.Conv(channels, (1,), name=f"residual_{i}")(y)
                skips = skips + nn.Conv(channels, (1,), name=f"skip_{i}")(y)
            return nn.Conv(5, (1,), name="head")(nn.relu(skips))

    return linen(Net(), data(2, 8, 3))


@architecture("RealNVP (affine couplings)")
def real_nvp(hidden: int = 8, layers: int = 2) -> Network:
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            log_det = 0.0
            for i in range(layers):
                a, b = jnp.split(x, 2, axis=-1)
                h = nn.relu(nn.Dense(hidden, name=f"hidden_{i}")(a))
                s, t = jnp.split(nn.Dense(2 * b.shape[-1], name=f"out_{i}")(h), 2, axis=-1)
                s = jnp.tanh(s)
                x = jnp.concatenate([b * jnp.exp(s) + t, a], axis=-1)
                log_det = log_det + jnp.sum(s, axis=-1)
            return x, log_det

    return linen(Net(), data(4, 6))
