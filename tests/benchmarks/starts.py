"""Which initial values of new units lead to the lowest loss: ``after_growth.py --starts``.

Each network has units behind a norm or a softmax. It trains, grows to twice the size by each
strategy that keeps its outputs, and goes on. A row has the number of different units after 300
steps of Adam, and the test loss after the last step: the mean over seeds, and the largest distance
from it.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import dogwood_jax as dw

Arrays = Mapping[str, Any]
SEEDS, FIRST, LAST, BATCH, RATE = 3, 300, 1500, 64, 3e-3
STARTS: dict[str, Any] = {
    "the default": None,
    "zero_outgoing()": dw.strategies.zero_outgoing(),
    "zero_incoming()": dw.strategies.zero_incoming(),
    "rotated()": dw.strategies.rotated(),
    'replicate(split="first")': dw.strategies.replicate(split="first"),
    'replicate(split="roots")': dw.strategies.replicate(split="roots"),
    'replicate(split="uneven")': dw.strategies.replicate(split="uneven"),
    "replicate()": dw.strategies.replicate(),
    "tile()": dw.strategies.tile(),
}


class Network(NamedTuple):
    """A network whose units may be of any number.

    Attributes:
        apply: its function of arrays and inputs.
        shapes: returns the shapes of its arrays for a number of units.
        units: the path of an array that makes the units, and the axis of the units there.
        size: the number of units before the growth.
        data: the kind of data, ``"digits"`` or ``"text"``.
    """

    apply: Callable[[Arrays, Any], Any]
    shapes: Callable[[int], Mapping[str, tuple[int, ...]]]
    units: tuple[str, int]
    size: int
    data: str = "digits"


def layer_norm(h: Any, axis: Any = -1) -> Any:
    mean = h.mean(axis, keepdims=True)
    return (h - mean) / jnp.sqrt(h.var(axis, keepdims=True) + 1e-5)


def rms_norm(h: Any) -> Any:
    return h / jnp.sqrt(jnp.mean(h * h, -1, keepdims=True) + 1e-5)


def l2_norm(h: Any) -> Any:
    return 4 * h / jnp.sqrt(jnp.sum(h * h, -1, keepdims=True) + 1e-5)


def group_norm(h: Any) -> Any:
    groups = h.reshape(len(h), 4, -1)  # groups are as large as the kernel makes them
    return layer_norm(groups).reshape(h.shape)


def dense(h: Any, p: Arrays, name: str) -> Any:
    return h @ p[f"{name}/kernel"] + p[f"{name}/bias"]


def scaled(h: Any, p: Arrays, name: str) -> Any:
    return h * p[f"{name}/scale"] + p[f"{name}/bias"]


def hidden(norm: Callable[[Any], Any], activation: Callable[[Any], Any] = jax.nn.relu) -> Network:
    def apply(p: Arrays, x: Any) -> Any:
        return dense(activation(scaled(norm(dense(x, p, "up")), p, "norm")), p, "down")

    def shapes(n: int) -> Mapping[str, tuple[int, ...]]:
        vectors = {"up/bias": (n,), "norm/scale": (n,), "norm/bias": (n,)}
        return {"up/kernel": (196, n), "down/kernel": (n, 10), "down/bias": (10,), **vectors}

    return Network(apply, shapes, ("up/kernel", 1), 8)


def grouped() -> Network:
    def apply(p: Arrays, x: Any) -> Any:
        h = jnp.einsum("ni,igc->ngc", x, p["up/kernel"])
        h = jax.nn.relu(layer_norm(h) * p["norm/scale"] + p["norm/bias"])
        return jnp.einsum("ngc,gco->no", h, p["down/kernel"]) + p["down/bias"]

    def shapes(n: int) -> Mapping[str, tuple[int, ...]]:
        arrays = {"up/kernel": (196, 4, n), "norm/scale": (4, n), "norm/bias": (4, n)}
        return {**arrays, "down/kernel": (4, n, 10), "down/bias": (10,)}

    return Network(apply, shapes, ("up/kernel", 2), 4)


def transformer(norm: Callable[[Any], Any], grows: str) -> Network:
    """A decoder of two blocks; its stream or its heads grow."""

    def apply(p: Arrays, ids: Any) -> Any:
        x = p["words/kernel"][ids] + p["places/kernel"][: ids.shape[1]]
        mask = jnp.tril(jnp.ones((ids.shape[1], ids.shape[1]), bool))
        for i in range(2):
            h = norm(x) * p[f"norm_{i}/scale"]
            q, k, v = (jnp.einsum("ntd,dhe->nhte", h, p[f"{name}_{i}/kernel"]) for name in "qkv")
            scores = jnp.einsum("nhte,nhse->nhts", q, k) / 8**0.5
            weights = jax.nn.softmax(jnp.where(mask, scores, -1e9))
            x = x + jnp.einsum("nhts,nhse,hed->ntd", weights, v, p[f"o_{i}/kernel"])
            h = norm(x) * p[f"mlp_norm_{i}/scale"]
            x = x + jax.nn.gelu(h @ p[f"up_{i}/kernel"]) @ p[f"down_{i}/kernel"]
        return (norm(x) * p["norm/scale"]) @ p["logits/kernel"]

    def shapes(n: int) -> Mapping[str, tuple[int, ...]]:
        d, heads = (n, 2) if grows == "stream" else (16, n)
        found = {"words/kernel": (96, d), "places/kernel": (32, d)}
        for i in range(2):
            found |= {f"{name}_{i}/kernel": (d, heads, 8) for name in "qkv"}
            found |= {f"o_{i}/kernel": (heads, 8, d), f"norm_{i}/scale": (d,)}
            found |= {f"up_{i}/kernel": (d, 64), f"down_{i}/kernel": (64, d)}
            found |= {f"mlp_norm_{i}/scale": (d,)}
        return {**found, "norm/scale": (d,), "logits/kernel": (d, 96)}

    units = ("words/kernel", 1) if grows == "stream" else ("q_0/kernel", 1)
    return Network(apply, shapes, units, 16 if grows == "stream" else 2, "text")


def experts() -> Network:
    """A soft mixture: a router behind a norm weighs all experts."""

    def apply(p: Arrays, x: Any) -> Any:
        h = layer_norm(x @ p["in/kernel"])
        weights = jax.nn.softmax(h @ p["router/kernel"])
        up = jax.nn.relu(jnp.einsum("ni,eij->nej", h, p["up/kernel"]))
        return jnp.einsum("ne,nej,ejo->no", weights, up, p["down/kernel"])

    def shapes(n: int) -> Mapping[str, tuple[int, ...]]:
        arrays = {"in/kernel": (196, 8), "router/kernel": (8, n)}
        return {**arrays, "up/kernel": (n, 8, 4), "down/kernel": (n, 4, 10)}

    return Network(apply, shapes, ("router/kernel", 1), 3)


def recurrent() -> Network:
    """A recurrent network that reads an image row by row; its state is normalized."""

    def apply(p: Arrays, x: Any) -> Any:
        rows = x.reshape(len(x), 14, 14).swapaxes(0, 1)

        def step(state: Any, row: Any) -> tuple[Any, None]:
            new = row @ p["in/kernel"] + state @ p["state/kernel"] + p["in/bias"]
            return jnp.tanh(layer_norm(new) * p["norm/scale"] + p["norm/bias"]), None

        start = jnp.zeros((len(x), p["in/bias"].shape[0]))
        return dense(jax.lax.scan(step, start, rows)[0], p, "down")

    def shapes(n: int) -> Mapping[str, tuple[int, ...]]:
        vectors = {"in/bias": (n,), "norm/scale": (n,), "norm/bias": (n,)}
        arrays = {"in/kernel": (14, n), "state/kernel": (n, n), **vectors}
        return {**arrays, "down/kernel": (n, 10), "down/bias": (10,)}

    return Network(apply, shapes, ("in/kernel", 1), 8)


def networks() -> dict[str, Network]:
    tanh = jnp.tanh
    return {
        "Dense, LayerNorm, relu": hidden(layer_norm),
        "Dense, LayerNorm, tanh": hidden(layer_norm, tanh),
        "Dense, RMSNorm, relu": hidden(rms_norm),
        "Dense, RMSNorm, tanh": hidden(rms_norm, tanh),
        "Dense, L2 norm, relu": hidden(l2_norm),
        "Dense, softmax": hidden(jax.nn.softmax, lambda h: h),
        "Dense, GroupNorm, relu": grouped(),
        "state of a recurrent network, LayerNorm": recurrent(),
        "experts, softmax": experts(),
        "stream of a transformer, LayerNorm": transformer(layer_norm, "stream"),
        "stream of a transformer, RMSNorm": transformer(rms_norm, "stream"),
        "heads of a transformer, LayerNorm": transformer(layer_norm, "heads"),
    }


def begun(shapes: Mapping[str, tuple[int, ...]], key: jax.Array) -> dict[str, Any]:
    """Returns new arrays: ones for scales, zeros for biases, and random kernels."""
    keys, found = jax.random.split(key, len(shapes)), {}
    for path, its in zip(shapes, keys, strict=True):
        kind, shape = path.rpartition("/")[2], shapes[path]
        fan = {"q": shape[0], "k": shape[0], "v": shape[0]}.get(path[0], np.prod(shape[:-1]))
        if path.startswith(("up/", "down/")) and len(shape) == 3:
            fan = shape[0] if shape[0] == 196 else shape[-2] * (shape[-1] == 10) or shape[1]
        fan = 1 / 0.05**2 if path.startswith(("words/", "places/")) else fan
        drawn = jax.random.normal(its, shape) / np.sqrt(fan)
        found[path] = {"scale": jnp.ones(shape), "bias": jnp.zeros(shape)}.get(kind, drawn)
    return found


@functools.cache
def digits() -> tuple[Any, Any, Any, Any]:
    data = dw.mnist.load("subset")
    x = data.train_images.reshape(-1, 14, 2, 14, 2).mean((2, 4)).reshape(-1, 196) / 255
    x, y = jnp.asarray(x, jnp.float32), jnp.asarray(data.train_labels)
    return x[:-2000], y[:-2000], x[-2000:], y[-2000:]


@functools.cache
def text() -> tuple[Any, Any, Any, Any]:
    from growing.data import Text

    data = Text(0, None, context=32, tests=500)
    drawn = data.draw(np.random.default_rng(0), 20000)
    return tuple(map(jnp.asarray, (*drawn, *data.test)))  # type: ignore[return-value]


def trained(
    network: Network, arrays: Any, state: Any, tx: Any, seed: int, first: int, last: int
) -> tuple[Any, Any]:
    """Returns arrays and state after the steps from ``first`` to ``last``; batches follow them."""
    x, y, *_ = {"digits": digits, "text": text}[network.data]()

    @jax.jit
    def run(arrays: Any, state: Any, steps: Any) -> Any:
        def step(carry: Any, number: Any) -> Any:
            arrays, state = carry
            key = jax.random.fold_in(jax.random.key(seed), number)
            chosen = jax.random.randint(key, (BATCH,), 0, len(x))
            gradients = jax.grad(loss)(arrays, network, x[chosen], y[chosen])
            updates, state = tx.update(gradients, state, arrays)
            return (optax.apply_updates(arrays, updates), state), None

        return jax.lax.scan(step, (arrays, state), steps)[0]

    found: tuple[Any, Any] = run(arrays, state, jnp.arange(first, last))
    return found


def loss(arrays: Any, network: Network, x: Any, y: Any) -> Any:
    logits = network.apply(arrays, x)
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


def different(growth: dw.Growth, arrays: Any) -> int:
    """Returns the number of units that differ from all others in the weights that make them."""
    name = growth.changes[0].width
    rows = [
        np.moveaxis(np.asarray(arrays[place.path]), place.axis, 0).reshape(growth.sizes[name], -1)
        for place in growth.widths[name].occurrences
        if place.role != "outgoing"
    ]
    return len(np.unique(np.round(np.concatenate(rows, 1), 5), axis=0))


def rows(only: str) -> Iterator[str]:
    """Yields the rows of the table, for networks whose names contain ``only``."""
    for name, network in networks().items():
        if only in name:
            yield from _rows_of(name, network)


def _rows_of(name: str, network: Network) -> Iterator[str]:
    *_, x, y = {"digits": digits, "text": text}[network.data]()
    tx = dw.growable(optax.adam(RATE))
    size = network.size
    ends: dict[str, list[float]] = {}
    units: dict[str, list[int]] = {}

    def end(row: str, arrays: Any, state: Any, seed: int, first: int) -> None:
        arrays, _ = trained(network, arrays, state, tx, seed, first, LAST)
        ends.setdefault(row, []).append(float(loss(arrays, network, x, y)))

    widths = dw.trace(network.apply, begun(network.shapes(size), jax.random.key(0)), x[:2])
    grows = {widths.of(*network.units).name: 2 * size}
    chosen: dict[str, Any] = {}
    if network.data == "text" and size == 2:  # the heads of both blocks
        grows |= {widths.of("q_1/kernel", 1).name: 2 * size}
    growths: dict[str, dw.Growth] = {}
    for start, strategy in STARTS.items():
        try:
            growth = dw.plan(widths, grows, strategy=strategy)
        except ValueError:
            continue
        change = growth.changes[0]
        if strategy is None:
            chosen = {"is": change.strategy}
            continue
        growths[f"{start}, the default" if change.strategy == chosen["is"] else start] = growth
    for seed in range(SEEDS):
        small = begun(network.shapes(size), jax.random.key(seed))
        small, state = trained(network, small, tx.init(small), tx, seed, 0, FIRST)
        end(f"{size} units alone", small, state, seed, FIRST)
        for start, growth in growths.items():
            wide = dw.grow(small, growth, key=jax.random.key(seed + 100))
            its = dw.grow_opt_state(state, growth, tx)
            wide, its = trained(network, wide, its, tx, seed, FIRST, 2 * FIRST)
            units.setdefault(start, []).append(different(growth, wide))
            end(start, wide, its, seed, 2 * FIRST)
        large = begun(network.shapes(2 * size), jax.random.key(seed))
        end(f"{2 * size} units from scratch", large, tx.init(large), seed, 0)
    for row, losses in ends.items():
        mean = float(np.mean(losses))
        count = f"{min(units[row])} of {2 * size}" if row in units else ""
        far = max(abs(its - mean) for its in losses)
        yield f"| {name} | {row} | {count} | {mean:.4f} | {far:.4f} |"
        name = ""
