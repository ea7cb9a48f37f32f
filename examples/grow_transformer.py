"""Grow a transformer as it learns to write like Python's documentation, one character at a time.

A small network gets wider (residual stream, attention heads, MLP), then deeper, without changing a
prediction, and its optimizer's state grows along. Beside it, the large network learns from scratch
with the same number of floating-point operations.
"""

import dataclasses
from pydoc_data.topics import topics
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from command_line import bar, fit, parse, run, say

import dogwood_jax as dw
from dogwood_jax import training

Variables = dict[str, Any]

CHARACTERS = 96  # the printable ones of ASCII and the end of a line
CONTEXT = 64  # characters that the network sees
HEAD_DIM = 12
TX = dw.growable(optax.adam(2e-3))
STEPS, BATCH_SIZE = 50, 32  # of a round
WINDOW = jax.ShapeDtypeStruct((1, CONTEXT), jnp.int32)


class Block(nn.Module):
    """Attention and MLP, each added to a residual stream that it reads through a norm."""

    heads: int
    mlp: int
    epsilon: float

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        """Returns the stream ``[n, time, stream]``, with something added."""
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
    """A decoder of characters."""

    stream: int
    heads: int
    mlp: int
    depth: int
    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, text: jax.Array) -> jax.Array:
        """Returns logits ``[n, time, characters]`` of what follows each character of a text."""
        x = nn.Embed(CHARACTERS, self.stream, name="characters")(text)
        positions = jnp.arange(text.shape[-1])[None]
        x += nn.Embed(CONTEXT, self.stream, name="positions")(positions)
        for i in range(self.depth):
            block = Block(self.heads, self.mlp, self.epsilon, name=f"block_{i}")
            x = block(x, nn.make_causal_mask(text))
        x = nn.RMSNorm(epsilon=self.epsilon, name="norm")(x)
        return nn.Dense(CHARACTERS, name="logits")(x)

    def flops(self) -> int:
        """Returns the floating-point operations of one training step for one character.

        A weight takes a multiplication and an addition forward, and twice that backward. So does
        each pair of a unit of a head and a character that it looks at, for the scores and for the
        values.
        """
        shapes = jax.eval_shape(self.init, jax.random.key(0), WINDOW)
        kernels = [
            leaf.size
            for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)
            if path[-1].key == "kernel"
        ]
        return 6 * (sum(kernels) + 2 * CONTEXT * self.depth * self.heads * HEAD_DIM)


SMALL = Transformer(stream=32, heads=2, mlp=64, depth=2)
WIDE = Transformer(stream=48, heads=4, mlp=192, depth=2)
DEEP = Transformer(stream=48, heads=4, mlp=192, depth=4)


class Text(NamedTuple):
    """Python's documentation as numbers below ``CHARACTERS``, in a training and a test part."""

    train: np.ndarray  # int32 [characters]
    test: np.ndarray

    def round(self, key: jax.Array) -> tuple[np.ndarray, np.ndarray]:
        """Returns windows ``[n, CONTEXT]`` to train on, and what follows each character."""
        shape = STEPS * BATCH_SIZE, 1
        starts = jax.random.randint(key, shape, 0, len(self.train) - CONTEXT)
        return _windows(self.train, np.asarray(starts))

    def tests(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns all windows of the test part."""
        return _windows(self.test, np.arange(0, len(self.test) - CONTEXT, CONTEXT)[:, None])


def _windows(text: np.ndarray, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    places = starts + np.arange(CONTEXT)
    return text[places], text[places + 1]


def load() -> Text:
    """Returns the help texts that ship with Python; they differ a little between its versions."""
    text = "\n".join(topics[name] for name in sorted(topics))
    codes = np.frombuffer(text.encode("ascii", "replace"), np.uint8).astype(np.int32)
    numbers = np.where(codes == ord("\n"), CHARACTERS - 1, np.clip(codes - 32, 0, CHARACTERS - 2))
    return Text(*np.split(numbers, [len(numbers) * 9 // 10]))


class Network(NamedTuple):
    """A network in training, and where it has been."""

    model: Transformer
    variables: Variables
    opt_state: Any = None
    points: tuple[tuple[int, float], ...] = ()  # FLOPs spent and test loss after each round

    @property
    def spent(self) -> int:
        """FLOPs spent so far."""
        return self.points[-1][0] if self.points else 0


def loss(network: Network, text: Text) -> float:
    """Returns the test loss, in nats a character."""
    return training.evaluate(network.model.apply, network.variables, text.tests())[0]


def train(network: Network, text: Text, key: jax.Array, *, rounds: int, budget: int) -> Network:
    """Trains for some rounds, or for as many as the budget of FLOPs allows."""
    cost = network.model.flops() * STEPS * BATCH_SIZE * CONTEXT
    for _ in range(min(rounds, (budget - network.spent) // cost)):
        round_key, fit_key = jax.random.split(jax.random.fold_in(key, len(network.points)))
        variables, opt_state, _ = fit(
            network.model.apply,
            network.variables,
            TX,
            text.round(round_key),
            epochs=1,
            batch_size=BATCH_SIZE,
            key=fit_key,
            opt_state=network.opt_state,
            step=cost,
        )
        network = network._replace(variables=variables, opt_state=opt_state)
        point = network.spent + cost, loss(network, text)
        network = network._replace(points=(*network.points, point))
    return network


def grow(network: Network, model: Transformer, key: jax.Array) -> Network:
    """Grows to the size of another model: stream, heads, MLPs, and blocks that it lacks."""
    # With more units that are zero, the mean of squares in a norm is smaller: so must epsilon be.
    epsilon = network.model.epsilon * network.model.stream / model.stream
    model = dataclasses.replace(model, epsilon=epsilon)
    widths = dw.trace(network.model.apply, network.variables, WINDOW)
    target = jax.eval_shape(model.init, key, WINDOW)
    growth = dw.plan(widths, target=target, target_apply=model.apply)
    variables = dw.grow(network.variables, growth, key=key)
    opt_state = dw.grow_opt_state(network.opt_state, growth, TX)
    return Network(model, variables, opt_state, network.points)


class Growth(NamedTuple):
    """When a network grew, and what that did to the predictions."""

    at: int  # FLOPs spent before
    before: float  # test loss
    after: float
    difference: dw.typing.Difference  # of the outputs for some windows


def grown(text: Text, key: jax.Array, rounds: int, budget: int) -> tuple[Network, list[Growth]]:
    """Trains the small network, then the wide one, then the deep one, until nothing is left."""
    init_key, fit_key, wide_key, deep_key = jax.random.split(key, 4)
    network = start(SMALL, init_key)
    growths = []
    for model, grow_key in (WIDE, wide_key), (DEEP, deep_key):
        old = train(network, text, fit_key, rounds=rounds, budget=budget)
        network = grow(old, model, grow_key)
        windows = text.tests()[0][:32]
        difference = dw.compare(
            jax.jit(old.model.apply),
            old.variables,
            jax.jit(network.model.apply),
            network.variables,
            windows,
        )
        growths.append(Growth(*old.points[-1], loss(network, text), difference))
    return train(network, text, fit_key, rounds=budget, budget=budget), growths


def start(model: Transformer, key: jax.Array) -> Network:
    """Returns a new network."""
    return Network(model, jax.jit(model.init)(key, jnp.zeros(WINDOW.shape, WINDOW.dtype)))


class Result(NamedTuple):
    """What came of all seeds."""

    scratch: list[Network]
    grown: list[Network]
    growths: list[list[Growth]]


def verdict(result: Result) -> str:
    """Returns what the measurements say, in a sentence."""
    ends = [np.array([n.points[-1][1] for n in ns]) for ns in (result.scratch, result.grown)]
    (scratch, grown), spreads = (
        [end.mean() for end in ends],
        [end.std(ddof=1) if len(end) > 1 else 0.0 for end in ends],
    )
    clear = abs(scratch - grown) > np.linalg.norm(spreads)
    outcome = ("growing pays" if grown < scratch else "growing costs") if clear else "no difference"
    total = result.scratch[0].spent
    reached = next(
        (f for f, value in mean_points(result.grown) if value <= scratch + spreads[0]), None
    )
    when = "never" if reached is None else f"after {reached / total:.0%} of the FLOPs"
    return (
        f"With {total:.3g} FLOPs, the test loss is {scratch:.3f} ± {spreads[0]:.3f} nats a "
        f"character from scratch, and {grown:.3f} ± {spreads[1]:.3f} grown: {outcome}. Grown, it "
        f"comes within one standard deviation of that from scratch {when}."
    )


def mean_points(networks: list[Network]) -> list[tuple[float, float]]:
    """Returns FLOPs and mean test loss after each round."""
    return [tuple(pair) for pair in np.mean([network.points for network in networks], axis=0)]


def size_of(model: Transformer) -> str:
    """Returns how large a network is."""
    return f"{model.depth} layers of {model.stream} units"


def picture(result: Result) -> Any:
    """Returns a figure of the mean test loss against FLOPs, with the growths marked."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.8), layout="constrained")
    ax = figure.subplots()
    total = result.scratch[0].spent
    for label, color, networks in (
        (f"from scratch: {size_of(DEEP)}", "black", result.scratch),
        (f"grows twice, begins with {size_of(SMALL)}", "C0", result.grown),
    ):
        spent, losses = np.transpose(mean_points(networks))
        ax.plot(spent / total, losses, color=color, marker=".", label=label)
        every = np.array([network.points for network in networks])[..., 1]
        ax.fill_between(spent / total, every.min(0), every.max(0), color=color, alpha=0.2, lw=0)
        end = spent[-1] / total, losses[-1]
        ax.annotate(
            f"{losses[-1]:.2f}",
            end,
            xytext=(6, 0),
            textcoords="offset points",
            verticalalignment="center",
            color=color,
        )
    bottom = ax.get_ylim()[0]
    names = f"to {WIDE.stream}\nunits", f"to {DEEP.depth}\nlayers"
    for name, growths in zip(names, zip(*result.growths, strict=True), strict=True):
        at = growths[0].at / total
        ax.plot(at, np.mean([growth.before for growth in growths]), "o", color="C3", markersize=8)
        ax.axvline(at, color="C3", linestyle="--", linewidth=1)
        ax.text(at + 0.01, bottom, f"grows\n{name}", color="C3", verticalalignment="bottom")
    ax.set_xlim(right=1.09)  # room for the labels of the ends
    ax.set(
        xlabel="FLOPs spent, as a share of those from scratch", ylabel="test loss, nats a character"
    )
    count = len(result.grown)
    seeds = "one seed" if count == 1 else f"mean and range of {count} seeds"
    ax.set_title(f"Transformer of characters of Python's documentation, {seeds}", fontsize="medium")
    ax.xaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    ax.legend()
    return figure


def main(arguments: list[str] | None = None) -> Result:
    """Runs the example; returns what was measured."""
    options = parse(
        __doc__,
        arguments,
        counts={
            "rounds": (24, f"of {STEPS} steps of the large network from scratch"),
            "seeds": (3, "how often each is run"),
        },
        digits=False,
    )
    text = load()
    budget = options.rounds * DEEP.flops() * STEPS * BATCH_SIZE * CONTEXT
    result = Result([], [], [])
    print(f"{'seed':>4} {'network':<13} {'FLOPs':>9} {'test loss':>10} {'grown from':>11}  outputs")
    with bar(2 * budget * options.seeds):
        for seed, key in enumerate(jax.random.split(jax.random.key(options.seed), options.seeds)):
            init_key, fit_key = jax.random.split(key)
            scratch = start(DEEP, init_key)
            scratch = train(scratch, text, fit_key, rounds=options.rounds, budget=budget)
            network, growths = grown(text, key, max(1, options.rounds // 4), budget)
            for name, growth in zip(("wide", "deep"), growths, strict=True):
                say(
                    f"{seed:>4} {name:<13} {'':>9} {growth.after:>10.4f} {growth.before:>11.4f}  "
                    f"{growth.difference}"
                )
            for name, trained in ("grown", network), ("from scratch", scratch):
                flops, end = trained.points[-1]
                say(f"{seed:>4} {name:<13} {flops:>9.3g} {end:>10.4f}")
            result.scratch.append(scratch)
            result.grown.append(network)
            result.growths.append(growths)
    print("\n" + verdict(result))
    picture(result).savefig(options.out / "grow_transformer.png", dpi=100)
    print(f"\nwritten to {options.out}: grow_transformer.png")
    return result


if __name__ == "__main__":
    run(main)
