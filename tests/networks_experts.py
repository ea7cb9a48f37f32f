"""Mixtures of experts as libraries write them: routers, and ways to take tokens to experts."""

import jax
import jax.numpy as jnp

STREAM, HIDDEN, VOCAB = 8, 12, 10

# For each kind of gates: whether those of a token sum to one.
GATES = {
    "softmax, top-k, renormalized": True,
    "softmax, top-k": False,
    "top-k, softmax": True,
    "sigmoid": False,
    "sigmoid, renormalized": True,
    "softmax, mask, renormalized": True,
}
# tunix's Qwen3 takes experts out of their arrays one by one, its Gemma 4 and MaxText sort tokens.
DISPATCHES = ("einsum", "ragged_dot", "one by one")


def params(experts, *, mlp=False, seed=0, dtype=float):
    """Returns the variables of a language model of one block.

    Args:
        experts: the number of experts; 0 for none.
        mlp: whether there is an MLP, alone or beside the experts.
        seed: of random numbers.
        dtype: of all arrays.
    """
    keys = iter(jax.random.split(jax.random.key(seed), 16))

    def kernel(*shape):
        return (jax.random.normal(next(keys), shape) / shape[-2] ** 0.5).astype(dtype)

    tree = {"embed": kernel(VOCAB, STREAM), "head": kernel(STREAM, VOCAB)}
    into, out = (STREAM, HIDDEN), (HIDDEN, STREAM)
    if mlp:
        shapes = {"gate": into, "up": into, "down": out}
        tree["mlp"] = {name: {"kernel": kernel(*shape)} for name, shape in shapes.items()}
    if experts:
        tree["moe"] = {
            "router": {"kernel": kernel(STREAM, experts)},
            "gate": kernel(experts, *into),
            "up": kernel(experts, *into),
            "down": kernel(experts, *out),
        }
    return tree


def gates_of(logits, kind, chosen):
    """Returns the gates of chosen experts, and which experts these are: ``[tokens, chosen]``."""
    if kind == "top-k, softmax":
        values, experts = jax.lax.top_k(logits, chosen)
        return jax.nn.softmax(values), experts
    function = jax.nn.sigmoid if kind.startswith("sigmoid") else jax.nn.softmax
    gates, experts = jax.lax.top_k(function(logits), chosen)
    if "mask" in kind:
        mask = jax.nn.one_hot(experts, logits.shape[-1], dtype=gates.dtype).sum(-2)
        every = function(logits)
        total = jnp.sum(mask * every, -1, keepdims=True)
        every = every / jnp.where(total > 0, total, 1.0)
        return jnp.take_along_axis(every, experts, -1), experts
    if kind.endswith("renormalized"):
        gates = gates / gates.sum(-1, keepdims=True)
    return gates, experts


def moe(weights, x, kind, dispatch, chosen):
    """Returns what a mixture of experts makes of tokens: ``[tokens, stream]``."""
    logits = x @ weights["router"]["kernel"].astype(jnp.promote_types(x.dtype, jnp.float32))
    gates, experts = gates_of(logits, kind, chosen)
    gates = gates.astype(x.dtype)
    gate, up, down = (weights[name] for name in ("gate", "up", "down"))
    count = logits.shape[-1]
    if dispatch == "ragged_dot":
        flat = experts.reshape(-1)
        order = jnp.argsort(flat)
        rows, sizes = jnp.repeat(x, chosen, axis=0)[order], jnp.bincount(flat, length=count)
        hidden = jax.nn.silu(jax.lax.ragged_dot(rows, gate, sizes))
        hidden = hidden * jax.lax.ragged_dot(rows, up, sizes)
        outputs = jax.lax.ragged_dot(hidden, down, sizes)
        if "scale" in weights:  # Gemma 4 has a number for each expert
            whose = jnp.repeat(jnp.arange(count), sizes, total_repeat_length=len(outputs))
            outputs = outputs * weights["scale"][whose, None]
        outputs = outputs[jnp.argsort(order)]
        return jnp.sum(outputs.reshape(-1, chosen, x.shape[-1]) * gates[..., None], 1)
    mask = jax.nn.one_hot(experts, count, dtype=x.dtype)
    if dispatch in ("einsum", "scatter"):
        hidden = jax.nn.silu(jnp.einsum("td,edf->tef", x, gate)) * jnp.einsum("td,edf->tef", x, up)
        weighed = jnp.sum(mask * gates[..., None], 1)
        if dispatch == "scatter":
            weighed = jnp.zeros_like(weighed).at[jnp.arange(len(x))[:, None], experts].set(gates)
        return jnp.einsum("tef,efd,te->td", hidden, down, weighed)
    mask = jnp.swapaxes(mask, -1, -2)
    inputs = jnp.einsum("tid,tek->ted", x[:, None, :], mask)
    outputs = [
        (jax.nn.silu(inputs[:, e] @ gate[e]) * (inputs[:, e] @ up[e])) @ down[e]
        for e in range(count)
    ]
    gates = mask * jnp.tile(gates[:, None, :], (1, count, 1))
    return jnp.einsum("ted,tek->td", jnp.stack(outputs, 1), gates)


def network(kind="", dispatch="einsum", chosen=2, scale=1.0, function=jax.nn.silu):
    """Returns the function of variables and tokens ``[batch, time]``.

    Args:
        kind: of the gates, one of ``GATES``.
        dispatch: one of ``DISPATCHES``.
        chosen: the number of experts that are chosen for each token.
        scale: what the outputs of experts are multiplied by.
        function: the activation of the MLP.
    """

    def apply(variables, tokens):
        stream = variables["embed"][tokens.reshape(-1)]
        added = []
        if "mlp" in variables:
            gate, up, down = (variables["mlp"][n]["kernel"] for n in ("gate", "up", "down"))
            added.append((function(stream @ gate) * (stream @ up)) @ down)
        if "moe" in variables:
            out = moe(variables["moe"], stream, kind, dispatch, chosen)
            added.append(out if scale == 1 else scale * out)
        for out in added:
            stream = stream + out
        return (stream @ variables["head"]).reshape(*tokens.shape, -1)

    return apply
