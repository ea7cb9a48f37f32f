"""Architectures of the table: networks of images."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from architecture import Network, architecture, data, linen

IMAGES = (2, 8, 8, 3)


def norm(name: str) -> nn.BatchNorm:
    return nn.BatchNorm(use_running_average=True, name=name)


def attention(x: Any, stream: int, heads: int, head_dim: int, name: str) -> Any:
    attend = nn.MultiHeadDotProductAttention(
        heads, qkv_features=heads * head_dim, out_features=stream, name=name
    )
    return attend(x)


def mlp(x: Any, stream: int, hidden: int, name: str) -> Any:
    x = nn.gelu(nn.Dense(hidden, name=f"{name}_up")(x))
    return nn.Dense(stream, name=f"{name}_down")(x)


@architecture("MLP")
def mlp_classifier(hidden: int = 16, layers: int = 2) -> Network:
    def layer(_: int) -> list[Any]:
        return [nn.Dense(hidden), nn.relu]

    stack = [part for i in range(layers) for part in layer(i)]
    return linen(nn.Sequential([*stack, nn.Dense(5)]), data(4, 8))


@architecture("MLP, LayerNorm")
def mlp_layer_norm(hidden: int = 16, layers: int = 2) -> Network:
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            for i in range(layers):
                x = nn.relu(nn.LayerNorm(name=f"norm_{i}")(nn.Dense(hidden, name=f"dense_{i}")(x)))
            return nn.Dense(5, name="head")(x)

    return linen(Net(), data(4, 8))


@architecture("MLP, residual")
def mlp_residual(stream: int = 8, hidden: int = 16, layers: int = 2) -> Network:
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            x = nn.Dense(stream, name="stem")(x)
            for i in range(layers):
                x = x + mlp(x, stream, hidden, f"block_{i}")
            return nn.Dense(5, name="head")(x)

    return linen(Net(), data(4, 8))


@architecture("VGG")
def vgg(channels: int = 4, hidden: int = 8, layers: int = 2) -> Network:
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            for stage in range(2):
                for i in range(layers):
                    conv = nn.Conv(channels * 2**stage, (3, 3), name=f"conv_{stage}_{i}")
                    x = nn.relu(conv(x))
                x = nn.max_pool(x, (2, 2), (2, 2))
            x = nn.relu(nn.Dense(hidden, name="hidden")(x.reshape(len(x), -1)))
            return nn.Dense(5, name="head")(x)

    return linen(Net(), data(*IMAGES))


@architecture("ResNet v1 (BatchNorm, relu after the sum)")
def resnet_v1(stem: int = 4, wide: int = 8, layers: int = 2) -> Network:
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            x = nn.Conv(stem, (3, 3), use_bias=False, name="stem")(x)
            x = nn.relu(norm("stem_norm")(x))
            for stage, channels in enumerate((stem, wide)):
                for i in range(layers):
                    name, strides = f"stage_{stage}_{i}", 2 if stage and not i else 1
                    conv = {"use_bias": False}
                    y = nn.Conv(channels, (3, 3), strides, name=f"{name}_a", **conv)(x)
                    y = nn.relu(norm(f"{name}_norm_a")(y))
                    y = nn.Conv(channels, (3, 3), name=f"{name}_b", **conv)(y)
                    y = norm(f"{name}_norm_b")(y)
                    if x.shape != y.shape or (stage and not i):
                        x = nn.Conv(channels, (1, 1), strides, name=f"{name}_skip", **conv)(x)
                        x = norm(f"{name}_norm_skip")(x)
                    x = nn.relu(x + y)
            return nn.Dense(5, name="head")(x.mean((1, 2)))

    return linen(Net(), data(*IMAGES))


@architecture("ResNet v2 (pre-activation, bottlenecks)")
def resnet_v2(channels: int = 8, middle: int = 4, layers: int = 2) -> Network:
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            x = nn.Conv(channels, (3, 3), name="stem")(x)
            for i in range(layers):
                y = x
                for part, (size, window) in enumerate(((middle, 1), (middle, 3), (channels, 1))):
                    y = nn.relu(norm(f"block_{i}_norm_{part}")(y))
                    y = nn.Conv(size, (window, window), name=f"block_{i}_conv_{part}")(y)
                x = x + y
            return nn.Dense(5, name="head")(nn.relu(norm("norm")(x)).mean((1, 2)))

    return linen(Net(), data(*IMAGES))


@architecture("ResNet, GroupNorm")
def resnet_group_norm(channels: int = 8, middle: int = 4, layers: int = 2) -> Network:
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            x = nn.Conv(channels, (3, 3), name="stem")(x)
            for i in range(layers):
                y = nn.relu(nn.GroupNorm(4, name=f"norm_{i}_a")(x))
                y = nn.Conv(middle, (3, 3), name=f"conv_{i}_a")(y)
                y = nn.relu(nn.GroupNorm(2, name=f"norm_{i}_b")(y))
                x = x + nn.Conv(channels, (3, 3), name=f"conv_{i}_b")(y)
            return nn.Dense(5, name="head")(x.mean((1, 2)))

    return linen(Net(), data(*IMAGES))


@architecture("ResNeXt (grouped convolutions)")
def resnext(channels: int = 8, groups: int = 2, group: int = 3, layers: int = 2) -> Network:
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            x = nn.relu(nn.Conv(channels, (3, 3), name="stem")(x))
            for i in range(layers):
                y = nn.relu(norm(f"norm_{i}_a")(nn.Conv(groups * group, (1, 1), name=f"a_{i}")(x)))
                grouped = {"feature_group_count": groups, "name": f"grouped_{i}"}
                y = nn.relu(norm(f"norm_{i}_b")(nn.Conv(groups * group, (3, 3), **grouped)(y)))
                x = nn.relu(x + norm(f"norm_{i}_c")(nn.Conv(channels, (1, 1), name=f"c_{i}")(y)))
            return nn.Dense(5, name="head")(x.mean((1, 2)))

    return linen(Net(), data(*IMAGES))


@architecture("DenseNet")
def densenet(stem: int = 4, growth: int = 3, layers: int = 2) -> Network:
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            x = nn.Conv(stem, (3, 3), name="stem")(x)
            for i in range(layers):
                y = nn.Conv(growth, (3, 3), name=f"conv_{i}")(nn.relu(norm(f"norm_{i}")(x)))
                x = jnp.concatenate([x, y], axis=-1)
            return nn.Dense(5, name="head")(nn.relu(norm("norm")(x)).mean((1, 2)))

    return linen(Net(), data(*IMAGES))


@architecture("Inception (branches, concatenated)")
def inception(one: int = 3, three: int = 4, reduced: int = 5, pooled: int = 2) -> Network:
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            a = nn.relu(nn.Conv(one, (1, 1), name="one")(x))
            b = nn.relu(nn.Conv(reduced, (1, 1), name="reduced")(x))
            b = nn.relu(nn.Conv(three, (3, 3), name="three")(b))
            c = nn.max_pool(x, (3, 3), (1, 1), "SAME")
            c = nn.relu(nn.Conv(pooled, (1, 1), name="pooled")(c))
            x = jnp.concatenate([a, b, c], axis=-1)
            return nn.Dense(5, name="head")(x.reshape(len(x), -1))

    return linen(Net(), data(*IMAGES))


@architecture("MobileNet v2 (depthwise, inverted residuals)")
def mobilenet_v2(channels: int = 4, wide: int = 8, layers: int = 2) -> Network:
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            x = nn.relu6(norm("stem_norm")(nn.Conv(channels, (3, 3), 2, name="stem")(x)))
            for i in range(layers):
                y = nn.relu6(norm(f"norm_{i}_a")(nn.Conv(wide, (1, 1), name=f"expand_{i}")(x)))
                depthwise = nn.Conv(
                    wide, (3, 3), feature_group_count=wide, name=f"depthwise_{i}", use_bias=False
                )
                y = nn.relu6(norm(f"norm_{i}_b")(depthwise(y)))
                x = x + norm(f"norm_{i}_c")(nn.Conv(channels, (1, 1), name=f"project_{i}")(y))
            return nn.Dense(5, name="head")(x.mean((1, 2)))

    return linen(Net(), data(*IMAGES))


@architecture("EfficientNet (squeeze and excite, swish)")
def efficientnet(channels: int = 4, wide: int = 8, squeeze: int = 2, layers: int = 2) -> Network:
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            x = nn.swish(norm("stem_norm")(nn.Conv(channels, (3, 3), 2, name="stem")(x)))
            for i in range(layers):
                y = nn.swish(norm(f"norm_{i}_a")(nn.Conv(wide, (1, 1), name=f"expand_{i}")(x)))
                depthwise = nn.Conv(wide, (3, 3), feature_group_count=wide, name=f"depthwise_{i}")
                y = nn.swish(norm(f"norm_{i}_b")(depthwise(y)))
                gate = nn.swish(nn.Dense(squeeze, name=f"squeeze_{i}")(y.mean((1, 2))))
                gate = nn.sigmoid(nn.Dense(wide, name=f"excite_{i}")(gate))
                y = y * gate[:, None, None]
                x = x + norm(f"norm_{i}_c")(nn.Conv(channels, (1, 1), name=f"project_{i}")(y))
            return nn.Dense(5, name="head")(x.mean((1, 2)))

    return linen(Net(), data(*IMAGES))


@architecture("ConvNeXt (LayerNorm, layer scale)")
def convnext(channels: int = 4, hidden: int = 16, layers: int = 2) -> Network:
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            x = nn.LayerNorm(name="stem_norm")(nn.Conv(channels, (2, 2), 2, name="stem")(x))
            for i in range(layers):
                depthwise = {"feature_group_count": channels, "name": f"depthwise_{i}"}
                y = nn.LayerNorm(name=f"norm_{i}")(nn.Conv(channels, (7, 7), **depthwise)(x))
                y = mlp(y, channels, hidden, f"block_{i}")
                x = x + y * self.param(f"scale_{i}", nn.initializers.ones, (channels,))
            return nn.Dense(5, name="head")(nn.LayerNorm(name="norm")(x.mean((1, 2))))

    return linen(Net(), data(*IMAGES))


@architecture("U-Net (skips, concatenated)")
def unet(channels: int = 4, bottom: int = 8) -> Network:
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            skip = nn.relu(nn.Conv(channels, (3, 3), name="down")(x))
            x = nn.max_pool(skip, (2, 2), (2, 2))
            x = nn.relu(nn.Conv(bottom, (3, 3), name="bottom")(x))
            x = nn.ConvTranspose(channels, (2, 2), (2, 2), name="up")(x)
            x = nn.relu(nn.Conv(channels, (3, 3), name="merge")(jnp.concatenate([skip, x], -1)))
            return nn.Conv(2, (1, 1), name="head")(x)

    return linen(Net(), data(*IMAGES))


@architecture("Feature pyramid, detector heads")
def feature_pyramid(backbone: int = 4, pyramid: int = 6, head: int = 5) -> Network:
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            levels = []
            for i in range(2):
                x = nn.relu(nn.Conv(backbone * 2**i, (3, 3), 2, name=f"down_{i}")(x))
                levels.append(nn.Conv(pyramid, (1, 1), name=f"lateral_{i}")(x))
            n, h, w, _ = levels[0].shape
            up = jax.image.resize(levels[1], (n, h, w, pyramid), "nearest")
            shared = nn.Conv(head, (3, 3), name="head")
            boxes, classes = (nn.Conv(k, (1, 1), name=f"out_{k}") for k in (4, 3))
            features = [nn.relu(shared(level)) for level in (levels[0] + up, levels[1])]
            return [(boxes(f), classes(f)) for f in features]

    return linen(Net(), data(*IMAGES))


@architecture("ViT (class token, LayerNorm)")
def vit(
    stream: int = 8, heads: int = 2, head_dim: int = 4, hidden: int = 16, layers: int = 2
) -> Network:
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            x = nn.Conv(stream, (4, 4), (4, 4), name="patches")(x).reshape(len(x), -1, stream)
            token = self.param("token", nn.initializers.zeros, (1, 1, stream))
            x = jnp.concatenate([jnp.tile(token, (len(x), 1, 1)), x], axis=1)
            x = x + self.param("positions", nn.initializers.zeros, (1, x.shape[1], stream))
            for i in range(layers):
                y = nn.LayerNorm(name=f"norm_{i}_a")(x)
                x = x + attention(y, stream, heads, head_dim, f"attention_{i}")
                x = x + mlp(nn.LayerNorm(name=f"norm_{i}_b")(x), stream, hidden, f"mlp_{i}")
            return nn.Dense(5, name="head")(nn.LayerNorm(name="norm")(x[:, 0]))

    return linen(Net(), data(*IMAGES))


@architecture("Swin (windows, shifted, relative positions)")
def swin(
    stream: int = 8, heads: int = 2, head_dim: int = 4, hidden: int = 16, layers: int = 2
) -> Network:
    window = 2
    at = jnp.stack(jnp.meshgrid(jnp.arange(2), jnp.arange(2), indexing="ij"), -1).reshape(-1, 2)
    apart = at[:, None] - at[None] + window - 1

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            x = nn.Conv(stream, (2, 2), (2, 2), name="patches")(x)
            for i in range(layers):
                y = nn.LayerNorm(name=f"norm_{i}_a")(x)
                x = x + self.attend(jnp.roll(y, -(i % 2), (1, 2)), i)
                x = x + mlp(nn.LayerNorm(name=f"norm_{i}_b")(x), stream, hidden, f"mlp_{i}")
            return nn.Dense(5, name="head")(nn.LayerNorm(name="norm")(x).mean((1, 2)))

        def attend(self, x: Any, i: int) -> Any:
            n, h, w, _ = x.shape
            x = x.reshape(n, h // window, window, w // window, window, stream)
            x = x.swapaxes(2, 3).reshape(-1, window**2, stream)
            qkv = nn.Dense(3 * heads * head_dim, name=f"qkv_{i}")(x)
            q, k, v = jnp.moveaxis(qkv.reshape(*x.shape[:2], 3, heads, head_dim), 2, 0)
            scores = jnp.einsum("nthd,nshd->nhts", q, k) * head_dim**-0.5
            table = self.param(f"bias_{i}", nn.initializers.zeros, (3, 3, heads))
            bias = table[apart[..., 0], apart[..., 1]]
            scores = jax.nn.softmax(scores + bias.transpose(2, 0, 1))
            y = jnp.einsum("nhts,nshd->nthd", scores, v).reshape(*x.shape[:2], -1)
            y = nn.Dense(stream, name=f"out_{i}")(y)
            y = y.reshape(n, h // window, w // window, window, window, stream).swapaxes(2, 3)
            return jnp.roll(y.reshape(n, h, w, stream), i % 2, (1, 2))

    return linen(Net(), data(*IMAGES))


@architecture("MLP-Mixer")
def mixer(stream: int = 8, tokens: int = 6, hidden: int = 16, layers: int = 2) -> Network:
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            x = nn.Conv(stream, (4, 4), (4, 4), name="patches")(x).reshape(len(x), -1, stream)
            for i in range(layers):
                y = nn.LayerNorm(name=f"norm_{i}_a")(x).swapaxes(1, 2)
                x = x + mlp(y, y.shape[-1], tokens, f"tokens_{i}").swapaxes(1, 2)
                x = x + mlp(nn.LayerNorm(name=f"norm_{i}_b")(x), stream, hidden, f"channels_{i}")
            return nn.Dense(5, name="head")(nn.LayerNorm(name="norm")(x).mean(1))

    return linen(Net(), data(*IMAGES))


@architecture("ResMLP (affine, layer scale)")
def resmlp(stream: int = 8, hidden: int = 16, layers: int = 2) -> Network:
    class Net(nn.Module):
        def affine(self, x: Any, name: str) -> Any:
            ones, zeros = nn.initializers.ones, nn.initializers.zeros
            scale, bias = (
                self.param(f"{name}_{part}", start, (stream,))
                for part, start in (("scale", ones), ("bias", zeros))
            )
            return x * scale + bias

        @nn.compact
        def __call__(self, x: Any) -> Any:
            x = nn.Conv(stream, (4, 4), (4, 4), name="patches")(x).reshape(len(x), -1, stream)
            for i in range(layers):
                y = self.affine(x, f"a_{i}").swapaxes(1, 2)
                y = nn.Dense(y.shape[-1], name=f"tokens_{i}")(y).swapaxes(1, 2)
                x = x + self.affine(y, f"b_{i}")
                y = mlp(self.affine(x, f"c_{i}"), stream, hidden, f"channels_{i}")
                x = x + self.affine(y, f"d_{i}")
            return nn.Dense(5, name="head")(self.affine(x, "last").mean(1))

    return linen(Net(), data(*IMAGES))


@architecture("Perceiver (latents read the input)")
def perceiver(
    stream: int = 8, latents: int = 3, heads: int = 2, hidden: int = 16, layers: int = 2
) -> Network:
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            x = x.reshape(len(x), -1, x.shape[-1])
            z = self.param("latents", nn.initializers.normal(), (latents, stream))
            z = jnp.broadcast_to(z, (len(x), *z.shape))
            for i in range(layers):
                cross = nn.MultiHeadDotProductAttention(
                    heads, qkv_features=4 * heads, out_features=stream, name=f"cross_{i}"
                )
                z = z + cross(nn.LayerNorm(name=f"norm_{i}_a")(z), x)
                z = z + mlp(nn.LayerNorm(name=f"norm_{i}_b")(z), stream, hidden, f"mlp_{i}")
            return nn.Dense(5, name="head")(z.mean(1))

    return linen(Net(), data(*IMAGES))


@architecture("CLIP (two towers, L2-normalized)")
def clip(image: int = 8, text: int = 6, shared: int = 5, hidden: int = 16) -> Network:
    class Net(nn.Module):
        @nn.compact
        def __call__(self, images: Any, words: Any) -> Any:
            x = nn.Conv(image, (4, 4), (4, 4), name="patches")(images).mean((1, 2))
            x = x + mlp(nn.LayerNorm(name="image_norm")(x), image, hidden, "image")
            y = nn.Embed(9, text, name="words")(words).mean(1)
            y = y + mlp(nn.LayerNorm(name="text_norm")(y), text, hidden, "text")
            x = nn.Dense(shared, use_bias=False, name="image_out")(x)
            y = nn.Dense(shared, use_bias=False, name="text_out")(y)
            x, y = (z / jnp.linalg.norm(z, axis=-1, keepdims=True) for z in (x, y))
            return x @ y.T * jnp.exp(self.param("temperature", nn.initializers.zeros, ()))

    return linen(Net(), data(*IMAGES), jnp.arange(6, dtype=jnp.int32).reshape(2, 3))
