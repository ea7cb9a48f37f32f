"""A trained language model grows wider, then deeper, and its loss continues without a jump.

The small transformer was trained on the sources of Python's standard library, one character at a
time, and is stored next to this file; ``--anew`` trains it again. Its residual stream, heads and
MLPs grow, then its layers, all with the optimizer's state. It is compared with two networks: one
grows with random values for all new weights, and one is the large network, trained from scratch
with the same number of floating-point operations.
"""

import dataclasses
import time
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
from command_line import bar, fit, parse, run, say, write
from growing.data import CHARACTERS, Text

import dogwood_jax as dw
from dogwood_jax import strategies, training

Variables = dict[str, Any]

CONTEXT = 64  # characters that the network sees
HEAD_DIM = 12
TX = dw.growable(optax.adam(1e-3))
STEPS, BATCH_SIZE = 50, 32  # of a round
WINDOW = jax.ShapeDtypeStruct((1, CONTEXT), jnp.int32)
TRAINED = Path(__file__).with_suffix(".msgpack")  # the small model with its optimizer


class Block(nn.Module):
    """Attention and MLP, which read the residual stream through a norm and add to it."""

    heads: int
    mlp: int
    epsilon: float

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        """Returns the stream ``[n, time, stream]`` with both outputs added."""
        stream = x.shape[-1]
        h = nn.RMSNorm(epsilon=self.epsilon, name="attention_norm")(x)
        x += nn.MultiHeadDotProductAttention(
            self.heads,
            qkv_features=self.heads * HEAD_DIM,
            out_features=stream,
            name="attention",
        )(h, mask=mask)
        h = nn.RMSNorm(epsilon=self.epsilon, name="mlp_norm")(x)
        return x + nn.Dense(stream, name="down")(nn.gelu(nn.Dense(self.mlp, name="up")(h)))


class Transformer(nn.Module):
    """A character-level decoder."""

    stream: int
    heads: int
    mlp: int
    depth: int
    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, text: jax.Array) -> jax.Array:
        """Returns logits ``[n, time, characters]`` for the next character at each position."""
        x = nn.Embed(CHARACTERS, self.stream, name="characters")(text)
        positions = jnp.arange(text.shape[-1])[None]
        x += nn.Embed(CONTEXT, self.stream, name="positions")(positions)
        for i in range(self.depth):
            block = Block(self.heads, self.mlp, self.epsilon, name=f"block_{i}")
            x = block(x, nn.make_causal_mask(text))
        x = nn.RMSNorm(epsilon=self.epsilon, name="norm")(x)
        return nn.Dense(CHARACTERS, name="logits")(x)

    def flops(self) -> int:
        """Returns the floating-point operations per character in a training step.

        A weight needs a multiplication and an addition forward, and twice as many backward. So does
        each pair of a head's unit and a character in the context, once for the scores and once for
        the values.
        """
        shapes = jax.eval_shape(self.init, jax.random.key(0), WINDOW)
        kernels = [
            leaf.size
            for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)
            if path[-1].key == "kernel"
        ]
        return 6 * (sum(kernels) + 2 * CONTEXT * self.depth * self.heads * HEAD_DIM)


SMALL = Transformer(stream=72, heads=6, mlp=288, depth=3)
WIDE = Transformer(stream=108, heads=9, mlp=432, depth=3)
DEEP = Transformer(stream=108, heads=9, mlp=432, depth=6)


class Point(NamedTuple):
    """A point in a network's training."""

    step: int
    flops: int  # spent so far
    seconds: float
    loss: float  # on windows of held-out files, in nats per character


class Row(NamedTuple):
    """A row of the CSV file: a point of one of the networks."""

    network: str
    step: int
    flops: int
    seconds: float
    loss: float


class Network(NamedTuple):
    """A network in training, and the points of its training so far."""

    model: Transformer
    variables: Variables
    opt_state: Any
    points: tuple[Point, ...]

    @property
    def last(self) -> Point:
        """The last point."""
        return self.points[-1]


def start(model: Transformer, text: Text, key: jax.Array) -> Network:
    """Returns a new network."""
    variables = jax.jit(model.init)(key, jnp.zeros(WINDOW.shape, WINDOW.dtype))
    network = Network(model, variables, TX.init(variables), ())
    return network._replace(points=(Point(0, 0, 0.0, loss(network, text)),))


def loss(network: Network, text: Text) -> float:
    """Returns the loss on held-out windows."""
    return training.evaluate(network.model.apply, network.variables, text.test)[0]


def train(network: Network, text: Text, key: jax.Array, *, rounds: int) -> Network:
    """Trains for some rounds, and tests after each round."""
    flops = network.model.flops() * STEPS * BATCH_SIZE * CONTEXT
    rng = np.random.default_rng(np.asarray(jax.random.bits(key, (4,), np.uint32)))
    for number in range(rounds):
        started, last = time.perf_counter(), network.last
        variables, opt_state, _ = fit(
            network.model.apply,
            network.variables,
            TX,
            text.draw(rng, STEPS * BATCH_SIZE),
            epochs=1,
            batch_size=BATCH_SIZE,
            key=jax.random.fold_in(key, number),
            opt_state=network.opt_state,
            step=flops,
        )
        network = network._replace(variables=variables, opt_state=opt_state)
        spent = last.seconds + time.perf_counter() - started
        point = Point(last.step + STEPS, last.flops + flops, spent, loss(network, text))
        network = network._replace(points=(*network.points, point))
    return network


def grow(network: Network, model: Transformer, text: Text, key: jax.Array, **how: Any) -> Network:
    """Grows a network to the sizes of another model: stream, heads, MLPs and number of blocks.

    The loss after the growth is a point of its own, at the same step.
    """
    # More units that are zero make the mean square in a norm smaller. Epsilon shrinks with it.
    epsilon = network.model.epsilon * network.model.stream / model.stream
    model = dataclasses.replace(model, epsilon=epsilon)
    widths = dw.trace(network.model.apply, network.variables, WINDOW)
    target = jax.eval_shape(model.init, key, WINDOW)
    growth = dw.plan(widths, target=target, target_apply=model.apply, **how)
    variables = dw.grow(network.variables, growth, key=key)
    opt_state = dw.grow_opt_state(network.opt_state, growth, TX)
    grown = Network(model, variables, opt_state, network.points)
    behind = network.last._replace(loss=loss(grown, text))
    return grown._replace(points=(*network.points, behind))


def trained(text: Text, key: jax.Array, rounds: int) -> Network:
    """Returns the small model after training from random weights."""
    init_key, fit_key = jax.random.split(key)
    return train(start(SMALL, text, init_key), text, fit_key, rounds=rounds)


def save(network: Network, path: Path) -> None:
    """Writes a network with its optimizer's state and all points."""
    state = {name: value for name, value in network._asdict().items() if name != "model"}
    path.write_bytes(flax.serialization.to_bytes(state))


def load(path: Path) -> Network:
    """Reads a small model that ``save`` wrote."""
    shapes = jax.eval_shape(SMALL.init, jax.random.key(0), WINDOW)
    known = {"variables": shapes, "opt_state": jax.eval_shape(TX.init, shapes)}
    read = flax.serialization.msgpack_restore(path.read_bytes())
    state = {name: flax.serialization.from_state_dict(known[name], read[name]) for name in known}
    points = [
        Point(*(read["points"][str(i)][f] for f in Point._fields))
        for i in range(len(read["points"]))
    ]
    return Network(SMALL, points=tuple(points), **jax.tree.map(jnp.asarray, state))


def further(network: Network, text: Text, key: jax.Array, rounds: int, *, exact: bool) -> Network:
    """Returns the small model after growing wider, then deeper, with training after each growth.

    Args:
        network: the small model.
        text: the text to train on.
        key: PRNG key for new weights and for drawing text.
        rounds: number of rounds in each size.
        exact: whether outputs stay; otherwise all new weights are random.
    """
    ways: list[dict[str, Any]] = [{}, {}]
    if not exact:
        ways = [{"strategy": strategies.random()}, {"depth": strategies.new_layers()}]
    for model, how in zip((WIDE, DEEP), ways, strict=True):
        key, grow_key, fit_key = jax.random.split(key, 3)
        network = grow(network, model, text, grow_key, **how)
        network = train(network, text, fit_key, rounds=rounds)
    return network


class Result(NamedTuple):
    """The small model after growing in two ways, and the large model from scratch."""

    grown: Network
    random: Network
    scratch: Network


def jumps(network: Network) -> list[tuple[Point, Point]]:
    """Returns the points before and after each growth."""
    pairs = zip(network.points, network.points[1:], strict=False)
    return [(a, b) for a, b in pairs if a.step == b.step]


def verdict(result: Result) -> str:
    """Returns a summary of the measurements."""
    grown, random, scratch = (network.last for network in result)
    moved = max(abs(b.loss - a.loss) for a, b in jumps(result.grown))
    up = " and ".join(f"{b.loss - a.loss:.2f}" for a, b in jumps(result.random))
    return (
        f"Where the model grows, the loss moves by {moved:.1g} at most, and by {up} where new "
        f"weights are random. At the end it is {grown.loss:.3f} grown, {random.loss:.3f} with "
        f"random new weights, and {scratch.loss:.3f} from scratch with the same "
        f"{scratch.flops:.2g} FLOPs."
    )


def picture(result: Result) -> Any:
    """Returns a figure of the loss against steps, with the growths marked."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.2), layout="constrained")
    ax = figure.subplots()
    names = "grows, outputs stay", "grows, new weights random", "large from scratch, equal FLOPs"
    for name, color, network in zip(names, ("C0", "C3", "0.4"), result, strict=True):
        steps, _, _, losses = np.transpose(network.points)
        label = f"{name}: ends at {losses[-1]:.3f}"
        ax.plot(steps, losses, color=color, label=label, zorder=3 if color == "C0" else 2)
    lows = [network.last.loss for network in result]
    top = max(b.loss for network in result for _, b in jumps(network))
    ax.set_ylim(min(lows) - 0.05, max(top, max(lows)) + 0.1)
    for (at, _), model in zip(jumps(result.grown), (WIDE, DEEP), strict=True):
        ax.axvline(at.step, color="C0", linestyle="--", linewidth=1)
        label = f" {model.depth} layers of\n {model.stream} units"
        ax.text(at.step, ax.get_ylim()[1], label, color="C0", verticalalignment="top")
    ax.set(xlabel="steps", ylabel="loss on held-out files, nats a character")
    ax.set_title("A transformer that reads Python's standard library", fontsize="medium")
    ax.legend(loc="upper center", bbox_to_anchor=(0.33, 1.0))
    return figure


HEADER = f"{'network':<34}{'weights':>9}{'steps':>7}{'FLOPs':>9}{'seconds':>9}{'loss':>8}"


def row(name: str, network: Network) -> str:
    """Returns a row of the table."""
    weights, last = sum(leaf.size for leaf in jax.tree.leaves(network.variables)), network.last
    spent = f"{last.flops:>9.2g}{last.seconds:>9.0f}"
    return f"{name:<34}{weights:>9,}{last.step:>7}{spent}{last.loss:>8.3f}"


def main(arguments: list[str] | None = None) -> Result:
    """Runs the example; returns the measurements."""
    options = parse(
        __doc__,
        arguments,
        counts={
            "rounds": (
                40,
                f"rounds of {STEPS} steps in each size, three times as many in the small one",
            )
        },
        flags={"anew": "train the small model again, and write it to the output folder"},
        digits=False,
    )
    text = Text(half=0, context=CONTEXT, tests=500)
    keys = jax.random.split(jax.random.key(options.seed), 3)
    costs = [model.flops() * STEPS * BATCH_SIZE * CONTEXT for model in (SMALL, WIDE, DEEP)]
    print(HEADER)
    begun = 3 * options.rounds if options.anew else 0
    total = options.rounds * (costs[1] + costs[2])
    small = None if options.anew else load(TRAINED)
    spent = 3 * options.rounds * costs[0] if small is None else small.last.flops
    with bar(begun * costs[0] + 3 * total + spent):
        if small is None:
            small = trained(text, keys[0], begun)
            save(small, options.out / TRAINED.name)
        say(row("small, trained", small))
        found: list[Network] = []
        for name, exact in ("grown, outputs stay", True), ("grown, new weights random", False):
            found.append(further(small, text, keys[1], options.rounds, exact=exact))
            say(row(name, found[-1]))
        scratch = start(DEEP, text, keys[2])
        scratch = train(scratch, text, keys[2], rounds=round(found[0].last.flops / costs[2]))
        say(row("large, from scratch", scratch))
    grown, random = found
    result = Result(grown, random, scratch)
    print(f"\n{verdict(result)}")
    rows = [Row(n, *point) for n, its in result._asdict().items() for point in its.points]
    write(rows, picture(result), options.out, "grow_transformer")
    return result


if __name__ == "__main__":
    run(main)
