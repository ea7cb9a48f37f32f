"""Architectures of the table: reinforcement learning."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from architecture import Network, architecture, data, linen


@architecture("PPO actor-critic (shared body)")
def actor_critic(hidden: int = 8, layers: int = 2) -> Network:
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            for i in range(layers):
                x = nn.tanh(nn.Dense(hidden, name=f"body_{i}")(x))
            std = jnp.exp(self.param("log_std", nn.initializers.zeros, (2,)))
            return nn.Dense(2, name="actor")(x), std, nn.Dense(1, name="critic")(x)

    return linen(Net(), data(4, 6))


@architecture("DQN (convolutions, dueling heads)")
def dueling(channels: int = 4, value: int = 6, advantage: int = 8) -> Network:
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            x = nn.relu(nn.Conv(channels, (3, 3), 2, name="conv")(x)).reshape(len(x), -1)
            v = nn.Dense(1, name="value_out")(nn.relu(nn.Dense(value, name="value")(x)))
            a = nn.Dense(3, name="advantage_out")(nn.relu(nn.Dense(advantage, name="advantage")(x)))
            return v + a - a.mean(-1, keepdims=True)

    return linen(Net(), data(2, 8, 8, 2))


@architecture("SAC twin critics (nn.vmap)")
def twin_critics(hidden: int = 8) -> Network:
    class Critic(nn.Module):
        @nn.compact
        def __call__(self, x: Any, action: Any) -> Any:
            x = jnp.concatenate([x, action], axis=-1)
            x = nn.relu(nn.LayerNorm(name="norm")(nn.Dense(hidden, name="first")(x)))
            return nn.Dense(1, name="out")(nn.relu(nn.Dense(hidden, name="second")(x)))

    over = {
        "variable_axes": {"params": 0},
        "split_rngs": {"params": True},
        "in_axes": None,
        "axis_size": 2,
    }
    return linen(nn.vmap(Critic, **over)(), data(4, 6), data(4, 2, seed=1))


@architecture("World model (RSSM)")
def rssm(deter: int = 8, stoch: int = 4, hidden: int = 6) -> Network:
    class Step(nn.Module):
        @nn.compact
        def __call__(self, state: Any, at: Any) -> Any:
            (h, z), (action, seen) = state, at
            x = nn.elu(nn.Dense(hidden, name="input")(jnp.concatenate([z, action], axis=-1)))
            h, _ = nn.GRUCell(deter, name="gru")(h, x)
            prior = nn.Dense(stoch, name="prior")(nn.elu(nn.Dense(hidden, name="prior_hidden")(h)))
            y = nn.elu(nn.Dense(hidden, name="post_hidden")(jnp.concatenate([h, seen], axis=-1)))
            z = nn.tanh(nn.Dense(stoch, name="post")(y))
            out = nn.Dense(5, name="decoder")(jnp.concatenate([h, z], axis=-1))
            return (h, z), (out, jnp.square(z - prior).sum(-1))

    class Net(nn.Module):
        @nn.compact
        def __call__(self, actions: Any, seen: Any) -> Any:
            over = {"variable_broadcast": "params", "split_rngs": {"params": False}}
            scan = nn.scan(Step, in_axes=1, out_axes=1, **over)(name="step")
            n = len(actions)
            start = jnp.zeros((n, deter)), jnp.zeros((n, stoch))
            return scan(start, (actions, seen))[1]

    return linen(Net(), data(2, 4, 2), data(2, 4, 5, seed=1))


@architecture("Decision transformer (three modalities)")
def decision_transformer(stream: int = 8, heads: int = 2, hidden: int = 16) -> Network:
    class Net(nn.Module):
        @nn.compact
        def __call__(self, returns: Any, states: Any, actions: Any) -> Any:
            parts = [
                nn.Dense(stream, name=name)(x)
                for name, x in (("returns", returns), ("states", states), ("actions", actions))
            ]
            n, time, _ = states.shape
            x = jnp.stack(parts, axis=2).reshape(n, 3 * time, stream)
            mask = jnp.tril(jnp.ones((3 * time, 3 * time), bool))
            y = nn.LayerNorm(name="norm_a")(x)
            attend = nn.MultiHeadDotProductAttention(
                heads, qkv_features=4 * heads, out_features=stream, name="attention"
            )
            x = x + attend(y, mask=mask)
            y = nn.gelu(nn.Dense(hidden, name="up")(nn.LayerNorm(name="norm_b")(x)))
            x = nn.LayerNorm(name="norm")(x + nn.Dense(stream, name="down")(y))
            return nn.Dense(2, name="head")(x.reshape(n, time, 3, stream)[:, :, 1])

    return linen(Net(), data(2, 3, 1), data(2, 3, 5, seed=1), data(2, 3, 2, seed=2))


@architecture("AlphaZero (residual tower, two heads)")
def alpha_zero(channels: int = 4, policy: int = 2, value: int = 6, layers: int = 2) -> Network:
    class Net(nn.Module):
        def conv(self, x: Any, size: int, window: int, name: str) -> Any:
            x = nn.Conv(size, (window, window), use_bias=False, name=name)(x)
            return nn.BatchNorm(use_running_average=True, name=f"{name}_norm")(x)

        @nn.compact
        def __call__(self, x: Any) -> Any:
            x = nn.relu(self.conv(x, channels, 3, "stem"))
            for i in range(layers):
                y = self.conv(nn.relu(self.conv(x, channels, 3, f"a_{i}")), channels, 3, f"b_{i}")
                x = nn.relu(x + y)
            p = nn.relu(self.conv(x, policy, 1, "policy")).reshape(len(x), -1)
            v = nn.relu(self.conv(x, 1, 1, "value")).reshape(len(x), -1)
            v = nn.Dense(1, name="win")(nn.relu(nn.Dense(value, name="hidden")(v)))
            return nn.Dense(9, name="moves")(p), jax.nn.tanh(v)

    return linen(Net(), data(2, 3, 3, 2))
