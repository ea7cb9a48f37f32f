"""Architectures of the table: fields, operators, equations, graphs and sets."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from architecture import Network, architecture, data, f32, linen


@architecture("PINN (derivatives of a tanh MLP)")
def pinn(hidden: int = 8, layers: int = 2) -> Network:
    stack = [part for _ in range(layers) for part in (nn.Dense(hidden), nn.tanh)]
    model = linen(nn.Sequential([*stack, nn.Dense(1)]), data(4, 2))

    def residual(variables: Any, x: Any) -> Any:
        def u(point: Any) -> Any:
            return model.apply(variables, point[None])[0, 0]

        return jax.vmap(u)(x), jax.vmap(lambda p: jnp.trace(jax.hessian(u)(p)))(x)

    return Network(residual, model.shapes, model.inputs)


@architecture("DeepONet (branch and trunk)")
def deeponet(hidden: int = 8, shared: int = 5) -> Network:
    class Net(nn.Module):
        def net(self, x: Any, name: str) -> Any:
            x = nn.tanh(nn.Dense(hidden, name=f"{name}_hidden")(x))
            return nn.Dense(shared, name=f"{name}_out")(x)

        @nn.compact
        def __call__(self, functions: Any, points: Any) -> Any:
            bias = self.param("bias", nn.initializers.zeros, ())
            return self.net(functions, "branch") @ self.net(points, "trunk").T + bias

    return linen(Net(), data(3, 6), data(4, 2, seed=1))


@architecture("Fourier neural operator")
def fno(channels: int = 4, layers: int = 2, modes: int = 3) -> Network:
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            x = nn.Dense(channels, name="lift")(x)
            for i in range(layers):
                parts = (
                    self.param(
                        f"{part}_{i}", nn.initializers.normal(0.3), (modes, channels, channels)
                    )
                    for part in ("real", "imag")
                )
                real, imag = parts
                f = jnp.fft.rfft(x, axis=1)
                low = jnp.einsum("nkc,kcd->nkd", f[:, :modes], real + 1j * imag)
                f = jnp.zeros_like(f).at[:, :modes].set(low)
                y = jnp.fft.irfft(f, x.shape[1], axis=1)
                x = nn.gelu(y + nn.Dense(channels, name=f"skip_{i}")(x))
            return nn.Dense(1, name="project")(x)

    return linen(Net(), data(2, 16, 2))


@architecture("SIREN (sines)")
def siren(hidden: int = 8, layers: int = 2) -> Network:
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            for i in range(layers):
                x = jnp.sin(30.0 * nn.Dense(hidden, name=f"layers_{i}")(x))
            return nn.Dense(3, name="head")(x)

    return linen(Net(), data(4, 2))


@architecture("NeRF (encoded positions, a skip)")
def nerf(hidden: int = 8, direction: int = 5) -> Network:
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x: Any, d: Any) -> Any:
            angles = (x[..., None] * 2.0 ** jnp.arange(3)).reshape(len(x), -1)
            code = jnp.concatenate([x, jnp.sin(angles), jnp.cos(angles)], axis=-1)
            h = nn.relu(nn.Dense(hidden, name="layer_0")(code))
            h = nn.relu(nn.Dense(hidden, name="layer_1")(h))
            h = nn.relu(nn.Dense(hidden, name="layer_2")(jnp.concatenate([h, code], axis=-1)))
            density = nn.softplus(nn.Dense(1, name="density")(h))
            h = jnp.concatenate([nn.Dense(hidden, name="feature")(h), d], axis=-1)
            h = nn.relu(nn.Dense(direction, name="direction")(h))
            return nn.sigmoid(nn.Dense(3, name="color")(h)), density

    return linen(Net(), data(4, 3), data(4, 3, seed=1))


@architecture("Neural ODE (Runge-Kutta steps)", "JAX")
def neural_ode(hidden: int = 8) -> Network:
    shapes = {"up": f32(3, hidden), "bias": f32(hidden), "down": f32(hidden, 3)}

    def apply(p: Any, x: Any) -> Any:
        def slope(x: Any) -> Any:
            return jnp.tanh(x @ p["up"] + p["bias"]) @ p["down"]

        def step(_: Any, x: Any) -> Any:
            a = slope(x)
            b = slope(x + 0.05 * a)
            c = slope(x + 0.05 * b)
            return x + 0.1 / 6 * (a + 2 * b + 2 * c + slope(x + 0.1 * c))

        return jax.lax.fori_loop(0, 5, step, x)

    return Network(apply, shapes, (data(4, 3),))


@architecture("KAN (splines on edges)", "JAX")
def kan(hidden: int = 5, knots: int = 4) -> Network:
    shapes = {"a": f32(3, knots, hidden), "b": f32(hidden, knots, 2)}
    shapes |= {"a_base": f32(3, hidden), "b_base": f32(hidden, 2)}

    def apply(p: Any, x: Any) -> Any:
        for name in "ab":
            at = jnp.linspace(-1, 1, p[name].shape[1])
            basis = jnp.exp(-((x[..., None] - at) ** 2))
            x = jnp.einsum("nik,iko->no", basis, p[name]) + jax.nn.silu(x) @ p[f"{name}_base"]
        return x

    return Network(apply, shapes, (data(4, 3),))


SENDERS, RECEIVERS = (jnp.asarray(x, jnp.int32) for x in ([0, 1, 2, 3, 4, 0], [1, 2, 3, 4, 0, 2]))


def summed(x: Any) -> Any:
    return jax.ops.segment_sum(x, RECEIVERS, 5)


@architecture("GCN (segment sums)")
def gcn(hidden: int = 8, layers: int = 2) -> Network:
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            degree = summed(jnp.ones(len(SENDERS))) + 1
            for i in range(layers):
                x = nn.Dense(hidden, name=f"layers_{i}")(x) / jnp.sqrt(degree)[:, None]
                x = nn.relu((summed(x[SENDERS]) + x) / jnp.sqrt(degree)[:, None])
            return nn.Dense(3, name="head")(x)

    return linen(Net(), data(5, 4))


@architecture("GAT (attention over edges)")
def gat(heads: int = 2, head_dim: int = 4) -> Network:
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            h = nn.DenseGeneral((heads, head_dim), use_bias=False, name="project")(x)
            start = nn.initializers.normal(0.5)
            a, b = (self.param(name, start, (heads, head_dim)) for name in ("from", "to"))
            scores = (h * a).sum(-1)[SENDERS] + (h * b).sum(-1)[RECEIVERS]
            scores = nn.leaky_relu(scores, 0.2)
            scores = jnp.exp(scores - jax.ops.segment_max(scores, RECEIVERS, 5)[RECEIVERS])
            weights = scores / summed(scores)[RECEIVERS]
            h = nn.elu(summed(weights[..., None] * h[SENDERS]).reshape(5, -1))
            return nn.Dense(3, name="head")(h)

    return linen(Net(), data(5, 4))


@architecture("Message passing (edges, mean over nodes)")
def message_passing(nodes: int = 6, edges: int = 8, layers: int = 2) -> Network:
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            x = nn.Dense(nodes, name="embed")(x)
            for i in range(layers):
                e = jnp.concatenate([x[SENDERS], x[RECEIVERS]], axis=-1)
                e = nn.swish(nn.Dense(edges, name=f"message_{i}")(e))
                x = x + nn.Dense(nodes, name=f"update_{i}")(summed(e))
            return nn.Dense(3, name="head")(x.mean(0))

    return linen(Net(), data(5, 4))


@architecture("Deep Sets")
def deep_sets(inner: int = 8, outer: int = 6) -> Network:
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            x = nn.Dense(outer, name="element")(nn.relu(nn.Dense(inner, name="inner")(x)))
            return nn.Dense(3, name="head")(nn.relu(x.sum(1)))

    return linen(Net(), data(2, 5, 4))


@architecture("PointNet (maximum over points)")
def point_net(points: int = 8, hidden: int = 6) -> Network:
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            x = nn.relu(nn.Dense(points, name="points")(x)).max(1)
            return nn.Dense(3, name="head")(nn.relu(nn.Dense(hidden, name="hidden")(x)))

    return linen(Net(), data(2, 5, 3))


@architecture("Recommender (embeddings, dot products)")
def recommender(factors: int = 6, hidden: int = 8) -> Network:
    class Net(nn.Module):
        @nn.compact
        def __call__(self, users: Any, items: Any) -> Any:
            u, v = (
                nn.Embed(7, factors, name="users")(users),
                nn.Embed(5, factors, name="items")(items),
            )
            h = nn.relu(nn.Dense(hidden, name="hidden")(jnp.concatenate([u, v], axis=-1)))
            return (u * v).sum(-1) + nn.Dense(1, name="head")(h)[:, 0]

    ids = jnp.arange(4, dtype=jnp.int32)
    return linen(Net(), ids, ids[::-1])
