"""Networks of the table: convolutions, pooling, normalization."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from networks import (
    Model,
    affine,
    changes,
    data,
    dense,
    f64,
    fixed,
    grows,
    interface,
    linen,
    network,
    spatial,
)


@network(
    {
        "stem": grows(
            "stem",
            4,
            "-> stem/{kernel[3],bias[0]} batch_stats/norm/{mean,var}[0] "
            "norm/{scale,bias}[0] <- wide/kernel[2]",
        ),
        "stem[2]": interface("channels", 3, "<- stem/kernel[2]"),
        "wide": grows("wide", 6, "-> wide/{kernel[3],bias[0]} <- hidden/kernel[0]"),
        "hidden": grows("hidden", 7, "-> hidden/{kernel[1],bias[0]} <- head/kernel[0]"),
        "head": interface("out", 5, "-> head/{kernel[1],bias[0]}"),
        **spatial("stem/kernel", 3, 3),
        **spatial("wide/kernel", 2, 2),
    }
)
def cnn(channels: int = 3, stem: int = 4, wide: int = 6, hidden: int = 7, out: int = 5) -> Model:
    """BatchNorm in eval mode, strides, pooling of both kinds, a flatten of (H, W, C)."""

    class Cnn(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            x = nn.Conv(stem, (3, 3), strides=2, name="stem")(x)
            x = nn.relu(nn.BatchNorm(use_running_average=True, name="norm")(x))
            x = nn.max_pool(x, (2, 2), (1, 1))
            x = nn.relu(nn.Conv(wide, (2, 2), padding="VALID", name="wide")(x))
            x = nn.avg_pool(x, (2, 2), (2, 2), padding="SAME")
            x = x.reshape(x.shape[0], -1)
            return nn.Dense(out, name="head")(nn.relu(nn.Dense(hidden, name="hidden")(x)))

    return linen(Cnn(), data(2, 8, 8, channels))


@network(
    {
        "stem": grows(
            "stem",
            3,
            "-> stem/kernel[3] batch_stats/norm/{mean,var}[0] norm/{scale,bias}[0] <> "
            "wide/kernel[2]",
            copies="tied",
        ),
        "stem[2]": interface("channels", 2, "<- stem/kernel[2]"),
        "wide": grows(
            "wide",
            4,
            "-> wide/bias[0] batch_stats/norm_2/{mean,var}[0] "
            "norm_2/{scale,bias}[0] <> head/kernel[0] wide/kernel[3]",
            copies="tied",
        ),
        "head": interface("classes", 5, "-> head/bias[0] <> head/kernel[1]", changes=True),
        **spatial("stem/kernel", 3, 3),
        **spatial("wide/kernel", 3, 3),
    }
)
def cnn_training(channels: int = 2, stem: int = 3, wide: int = 4, classes: int = 5) -> Model:
    """A training step's loss: batch statistics, updated averages, and the gradients as outputs."""

    class Cnn(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            x = nn.Conv(stem, (3, 3), use_bias=False, name="stem")(x)
            x = nn.relu(nn.BatchNorm(use_running_average=False, name="norm")(x))
            x = nn.Conv(wide, (3, 3), name="wide")(x)
            x = nn.relu(nn.BatchNorm(use_running_average=False, name="norm_2")(x))
            return nn.Dense(classes, name="head")(jnp.mean(x, axis=(1, 2)))

    module = linen(Cnn(), data(3, 5, 5, channels), mutable=["batch_stats"])

    def apply(variables: Any, x: Any, labels: Any) -> Any:
        def loss(params: Any) -> Any:
            logits, updates = module.apply({**variables, "params": params}, x)
            picked = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=-1)
            return -jnp.mean(picked), updates

        return jax.value_and_grad(loss, has_aux=True)(variables["params"])

    return Model(apply, module.shapes, (*module.inputs, jnp.array([0, 3, 1])))


@network(
    {
        "stem": grows(
            "hidden",
            4,
            "-> {stem,residual_0,residual_1}/{kernel[2],bias[0]} <- "
            "{gate_0,filter_0,gate_1,filter_1,up}/kernel[1]",
        ),
        "stem[1]": interface("channels", 3, "<- stem/kernel[1]"),
        "gate_0": grows(
            "filters",
            5,
            "-> {gate_0,filter_0,gate_1,filter_1,depthwise}/{kernel[2],bias[0]} <- "
            "{residual_0,residual_1,up}/kernel[1]",
        ),
        "up": interface("out", 2, "-> up/{kernel[2],bias[0]}"),
        "depthwise": fixed("one channel a group", 1, "-> depthwise/kernel[1]"),
        **spatial("stem/kernel", 1),
        **spatial("gate_0/kernel", 2),
        **spatial("filter_0/kernel", 2),
        **spatial("residual_0/kernel", 1),
        **spatial("gate_1/kernel", 2),
        **spatial("filter_1/kernel", 2),
        **spatial("residual_1/kernel", 1),
        **spatial("depthwise/kernel", 3),
        **spatial("up/kernel", 4),
    }
)
def conv_1d(channels: int = 3, hidden: int = 4, filters: int = 5, out: int = 2) -> Model:
    """WaveNet's gates over dilated causal convolutions, a depthwise one, transposed at the end."""

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            x = nn.Conv(hidden, (1,), name="stem")(x)
            skips = 0
            for i, dilation in enumerate((1, 2)):
                conv = {"kernel_size": (2,), "kernel_dilation": dilation, "padding": "CAUSAL"}
                gate = nn.sigmoid(nn.Conv(filters, **conv, name=f"gate_{i}")(x))
                y = gate * jnp.tanh(nn.Conv(filters, **conv, name=f"filter_{i}")(x))
                x = x + nn.Conv(hidden, (1,), name=f"residual_{i}")(y)
                skips = skips + y
            y = nn.Conv(filters, (3,), feature_group_count=filters, name="depthwise")(skips)
            y = nn.gelu(jnp.concatenate([y, x], axis=-1))
            return nn.ConvTranspose(out, (4,), strides=(2,), name="up")(y)

    return linen(Net(), data(2, 6, channels))


@network(
    {
        "stem[groups]": grows("groups", 2, "-> {stem,grouped}[0] <- mix[1]"),
        "stem[0.1]": grows("per_group", 3, "-> stem[0] <- grouped[1]"),
        "stem[1]": interface("channels", 2, "<- stem[1]"),
        "grouped[0.1]": grows("filters", 7, "-> grouped[0] <- mix[1]"),
        "mix": grows("wide", 5, "-> {mix,bias}[0] <- head/kernel[0]"),
        "head": interface("out", 4, "-> head/{kernel[1],bias[0]}"),
        "stem[2]": fixed("spatial dimension", 2, "-> stem[2]"),
        "stem[3]": fixed("spatial dimension", 2, "-> stem[3]"),
        "stem[4]": fixed("spatial dimension", 2, "-> stem[4]"),
        "grouped[2]": fixed("spatial dimension", 1, "-> grouped[2]"),
        "grouped[3]": fixed("spatial dimension", 2, "-> grouped[3]"),
        "grouped[4]": fixed("spatial dimension", 2, "-> grouped[4]"),
        "mix[2]": fixed("spatial dimension", 1, "-> mix[2]"),
        "mix[3]": fixed("spatial dimension", 1, "-> mix[3]"),
        "mix[4]": fixed("spatial dimension", 1, "-> mix[4]"),
        "head[0.1]": fixed("spatial dimension", 2, "<- head/kernel[0]"),
        "head[0.2]": fixed("spatial dimension", 2, "<- head/kernel[0]"),
    }
)
def conv_3d(
    channels: int = 2,
    groups: int = 2,
    per_group: int = 3,
    filters: int = 7,
    wide: int = 5,
    out: int = 4,
) -> Model:
    """Grouped convolutions with several channels a group, channels first, and (C, D, H, W) flat."""
    shapes = {
        "stem": f64(groups * per_group, channels, 2, 2, 2),
        "grouped": f64(groups * filters, per_group, 1, 2, 2),
        "mix": f64(wide, groups * filters, 1, 1, 1),
        "bias": f64(wide),
        "head": dense(wide * 2 * 1 * 2, out),
    }

    def apply(params: Any, x: Any) -> Any:
        numbers = ("NCDHW", "OIDHW", "NCDHW")
        x = jnp.tanh(
            lax.conv_general_dilated(
                x, params["stem"], (1, 1, 1), "VALID", dimension_numbers=numbers
            )
        )
        x = lax.conv_general_dilated(
            x,
            params["grouped"],
            (1, 2, 1),
            "VALID",
            dimension_numbers=numbers,
            feature_group_count=groups,
        )
        x = lax.conv_general_dilated(
            jnp.sin(x), params["mix"], (1, 1, 1), "VALID", dimension_numbers=numbers
        )
        x = jnp.tanh(x + params["bias"].reshape(1, -1, 1, 1, 1))
        return affine(params["head"], x.reshape(x.shape[0], -1))

    return Model(apply, shapes, (data(2, channels, 3, 4, 4),))


@network(
    {
        "stem": grows(
            "stem",
            4,
            "-> {stem,expand}/{kernel[3],bias[0]} {norm,norm_1}/{scale,bias}[0] "
            "batch_stats/norm_1/{mean,var}[0] <- {reduce,reduce_2,shortcut}/kernel[2]",
        ),
        "stem[2]": interface("channels", 3, "<- stem/kernel[2]"),
        "reduce": grows("middle", 5, "-> reduce/{kernel[3],bias[0]} <- expand/kernel[2]"),
        "reduce_2": grows("narrow", 7, "-> reduce_2/{kernel[3],bias[0]} <- expand_2/kernel[2]"),
        "expand_2": grows(
            "wide", 6, "-> {expand_2,shortcut}/{kernel[3],bias[0]} <- head/kernel[0]"
        ),
        "head": interface("out", 2, "-> head/{kernel[1],bias[0]}"),
        **spatial("stem/kernel", 3, 3),
        **spatial("reduce/kernel", 1, 1),
        **spatial("expand/kernel", 3, 3),
        **spatial("reduce_2/kernel", 3, 3),
        **spatial("expand_2/kernel", 3, 3),
        **spatial("shortcut/kernel", 1, 1),
    }
)
def resnet(
    channels: int = 3, stem: int = 4, middle: int = 5, narrow: int = 7, wide: int = 6, out: int = 2
) -> Model:
    """Bottlenecks with a plain and a projected shortcut, InstanceNorm, a spatial mean."""

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            x = nn.relu(nn.InstanceNorm(name="norm")(nn.Conv(stem, (3, 3), name="stem")(x)))
            y = nn.relu(nn.Conv(middle, (1, 1), name="reduce")(x))
            y = nn.Conv(stem, (3, 3), name="expand")(y)
            x = nn.relu(x + nn.BatchNorm(use_running_average=True, name="norm_1")(y))
            y = nn.relu(nn.Conv(narrow, (3, 3), strides=2, name="reduce_2")(x))
            y = nn.Conv(wide, (3, 3), name="expand_2")(y)
            x = nn.relu(y + nn.Conv(wide, (1, 1), strides=2, name="shortcut")(x))
            return nn.Dense(out, name="head")(jnp.mean(x, axis=(1, 2)))

    return linen(Net(), data(2, 6, 6, channels))


@network(
    {
        "stem": grows(
            "stem",
            2,
            "-> stem/{kernel[3],bias[0]} batch_stats/{norm_0,norm_1,norm}/{mean,var}[0] "
            "{norm_0,norm_1,norm}/{scale,bias}[0] <- {conv_0,conv_1}/kernel[2] "
            "head/kernel[0]",
        ),
        "stem[2]": interface("channels", 3, "<- stem/kernel[2]"),
        "conv_0": grows(
            "a",
            4,
            "-> conv_0/{kernel[3],bias[0]} batch_stats/{norm_1,norm}/{mean,var}[0] "
            "{norm_1,norm}/{scale,bias}[0] <- conv_1/kernel[2] head/kernel[0]",
        ),
        "conv_1": grows(
            "b",
            5,
            "-> conv_1/{kernel[3],bias[0]} batch_stats/norm/{mean,var}[0] "
            "norm/{scale,bias}[0] <- head/kernel[0]",
        ),
        "head": interface("out", 2, "-> head/{kernel[1],bias[0]}"),
        "head[0.0]": fixed("spatial dimension", 3, "<- head/kernel[0]"),
        "head[0.1]": fixed("spatial dimension", 3, "<- head/kernel[0]"),
        **spatial("stem/kernel", 3, 3),
        **spatial("conv_0/kernel", 3, 3),
        **spatial("conv_1/kernel", 3, 3),
    }
)
def densenet(channels: int = 3, stem: int = 2, a: int = 4, b: int = 5, out: int = 2) -> Model:
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            x = nn.Conv(stem, (3, 3), name="stem")(x)
            for i, growth in enumerate((a, b)):
                y = nn.relu(nn.BatchNorm(use_running_average=True, name=f"norm_{i}")(x))
                x = jnp.concatenate([x, nn.Conv(growth, (3, 3), name=f"conv_{i}")(y)], axis=-1)
            x = nn.relu(nn.BatchNorm(use_running_average=True, name="norm")(x))
            return nn.Dense(out, name="head")(x.reshape(x.shape[0], -1))

    return linen(Net(), data(2, 3, 3, channels))


@network(
    {
        "down": grows("down", 3, "-> down/{kernel[3],bias[0]} <- {bottom,merge}/kernel[2]"),
        "down[2]": interface("channels", 2, "<- down/kernel[2]"),
        "bottom": grows("bottom", 4, "-> bottom/{kernel[3],bias[0]} <- up/kernel[3]"),
        "up": grows("up", 5, "-> up/{kernel[2],bias[0]} <- merge/kernel[2]"),
        "merge": grows("merge", 6, "-> merge/{kernel[3],bias[0]} <- head/kernel[2]"),
        "head": interface("out", 2, "-> head/{kernel[3],bias[0]}"),
        "up[0]": fixed("reversed", 2, "-> up/kernel[0]"),
        "up[1]": fixed("reversed", 2, "-> up/kernel[1]"),
        **spatial("down/kernel", 3, 3),
        **spatial("bottom/kernel", 3, 3),
        **spatial("merge/kernel", 3, 3),
        **spatial("head/kernel", 1, 1),
    }
)
def unet(
    channels: int = 2, down: int = 3, bottom: int = 4, up: int = 5, merge: int = 6, out: int = 2
) -> Model:
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            skip = nn.silu(nn.Conv(down, (3, 3), name="down")(x))
            x = nn.max_pool(skip, (2, 2), (2, 2))
            x = nn.silu(nn.Conv(bottom, (3, 3), name="bottom")(x))
            x = nn.ConvTranspose(up, (2, 2), (2, 2), transpose_kernel=True, name="up")(x)
            x = jnp.concatenate([skip, x], axis=-1)
            x = nn.silu(nn.Conv(merge, (3, 3), name="merge")(x))
            x = jax.image.resize(x, (2, 8, 8, merge), "nearest")
            return nn.Conv(out, (1, 1), name="head")(x)

    return linen(Net(), data(2, 4, 4, channels))


@network(
    {
        "expand": grows(
            "wide",
            7,
            "-> {expand,depthwise,excite}/{kernel[3],bias[0]} "
            "batch_stats/norm/{mean,var}[0] norm/{scale,bias}[0] <- "
            "{squeeze,project}/kernel[2]",
        ),
        "project": interface(
            "channels", 2, "-> project/{kernel[3],bias[0]} <- expand/kernel[2] head/kernel[0]"
        ),
        "squeeze": grows("squeeze", 4, "-> squeeze/{kernel[3],bias[0]} <- excite/kernel[2]"),
        "head": interface("out", 5, "-> head/{kernel[1],bias[0]}"),
        "depthwise": fixed("one channel a group", 1, "-> depthwise/kernel[2]"),
        **spatial("expand/kernel", 1, 1),
        **spatial("depthwise/kernel", 3, 3),
        **spatial("squeeze/kernel", 1, 1),
        **spatial("excite/kernel", 1, 1),
        **spatial("project/kernel", 1, 1),
    }
)
def squeeze_excite(channels: int = 2, wide: int = 7, squeeze: int = 4, out: int = 5) -> Model:
    """An inverted residual block: expand, depthwise, gate by channel, project."""

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            y = nn.relu6(nn.Conv(wide, (1, 1), name="expand")(x))
            y = nn.Conv(wide, (3, 3), feature_group_count=wide, name="depthwise")(y)
            y = nn.hard_swish(nn.BatchNorm(use_running_average=True, name="norm")(y))
            gate = jnp.mean(y, axis=(1, 2), keepdims=True)
            gate = nn.relu(nn.Conv(squeeze, (1, 1), name="squeeze")(gate))
            y = y * nn.hard_sigmoid(nn.Conv(wide, (1, 1), name="excite")(gate))
            x = x + nn.Conv(channels, (1, 1), name="project")(y)
            return nn.Dense(out, name="head")(jnp.max(x, axis=(1, 2)))

    return linen(Net(), data(2, 4, 4, channels))


@network(
    {
        "wide": grows("wide", 5, "-> wide/{kernel[1],bias[0]} <- up/kernel[0]"),
        "wide[0.0]": interface("", 2, "<- wide/kernel[0]"),
        "wide[0.1]": interface("", 2, "<- wide/kernel[0]"),
        "wide[0.2]": interface("channels", 3, "<- wide/kernel[0]"),
        "up[1.2]": grows("up", 7, "-> up/{kernel[1],bias[0]} <- head/kernel[0]"),
        "up[1.0]": interface("", 2, "-> up/{kernel[1],bias[0]}"),
        "up[1.1]": interface("", 2, "-> up/{kernel[1],bias[0]}"),
        "head": interface("out", 2, "-> head/{kernel[1],bias[0]}"),
    }
)
def pixel_shuffle(channels: int = 3, wide: int = 5, up: int = 7, out: int = 2) -> Model:
    """Channels become pixels and pixels become channels."""
    shapes = {
        "wide": dense(4 * channels, wide),
        "up": dense(wide, 2 * 2 * up),
        "head": dense(up, out),
    }

    def apply(params: Any, x: Any) -> Any:
        n, h, w, c = x.shape
        x = x.reshape(n, h // 2, 2, w // 2, 2, c).transpose(0, 1, 3, 2, 4, 5)
        x = jnp.tanh(affine(params["wide"], x.reshape(n, h // 2, w // 2, 4 * c)))
        x = affine(params["up"], x).reshape(n, h // 2, w // 2, 2, 2, -1)
        x = x.transpose(0, 1, 3, 2, 4, 5).reshape(n, h, w, -1)
        return affine(params["head"], jnp.tanh(x))

    return Model(apply, shapes, (data(2, 4, 6, channels),))


@network(
    {
        "stem[groups]": grows(
            "groups", 2, "-> stem/{kernel[3],bias[0]} norm/{scale,bias}[0] <- conv/kernel[2]"
        ),
        "stem[group_size]": changes(
            "per_group",
            3,
            "-> stem/{kernel[3],bias[0]} norm/{scale,bias}[0] <- conv/kernel[2]",
        ),
        "stem[2]": interface("channels", 2, "<- stem/kernel[2]"),
        "conv": grows("conv", 4, "-> conv/{kernel[3],bias[0]} <- inner/kernel[0]"),
        "inner": changes(
            "inner",
            5,
            "-> inner/{kernel[1],bias[0]} layer_norm/{scale,bias}[0] <- head/kernel[0]",
        ),
        "head": interface("out", 3, "-> head/{kernel[1],bias[0]}"),
        **spatial("stem/kernel", 3, 3),
        **spatial("conv/kernel", 3, 3),
    }
)
def groupnorm(
    channels: int = 2,
    groups: int = 2,
    per_group: int = 3,
    conv: int = 4,
    inner: int = 5,
    out: int = 3,
) -> Model:
    """Statistics over groups of channels, and over all of them."""

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            x = nn.Conv(groups * per_group, (3, 3), name="stem")(x)
            x = nn.relu(nn.GroupNorm(num_groups=groups, name="norm")(x))
            x = nn.relu(nn.Conv(conv, (3, 3), name="conv")(x))
            x = nn.LayerNorm(name="layer_norm")(nn.Dense(inner, name="inner")(x))
            return nn.Dense(out, name="head")(jnp.mean(x, axis=(1, 2)))

    return linen(Net(), data(2, 3, 3, channels))


@network(
    {
        "conv": grows("wide", 4, "-> {conv[3],gain_scale[0]} <- dense/kernel[0]"),
        "conv[2]": interface("channels", 3, "<- conv[2]", changes=True),
        "dense": interface("out", 2, "-> dense/{kernel[1],bias[0]}"),
        "conv[0]": fixed("spatial dimension", 3, "-> conv[0]"),
        "conv[1]": fixed("spatial dimension", 3, "-> conv[1]"),
        "dense[0.1]": fixed("spatial dimension", 3, "<- dense/kernel[0]"),
        "dense[0.2]": fixed("spatial dimension", 3, "<- dense/kernel[0]"),
    }
)
def flatten_channels_first(channels: int = 3, wide: int = 4, out: int = 2) -> Model:
    """The channels are the slowest factor of the flat axis, with a normalized kernel before."""
    shapes = {
        "conv": f64(3, 3, channels, wide),
        "gain_scale": f64(wide),
        "dense": dense(wide * 9, out),
    }

    def apply(params: Any, x: Any) -> Any:
        kernel = params["conv"]
        mean = jnp.mean(kernel, axis=(0, 1, 2), keepdims=True)
        var = jnp.var(kernel, axis=(0, 1, 2), keepdims=True)
        kernel = params["gain_scale"][None] * ((kernel - mean) * lax.rsqrt(var + 1e-4)).reshape(
            -1, wide
        )
        kernel = kernel.reshape(3, 3, channels, wide)
        x = lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x = jax.nn.relu(x).transpose(0, 3, 1, 2)
        return affine(params["dense"], x.reshape(x.shape[0], -1))

    return Model(apply, shapes, (data(2, 3, 3, channels),))
