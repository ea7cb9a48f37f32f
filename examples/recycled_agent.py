"""Recycle dormant units of a reinforcement learning agent.

A deep Q-network plays Catch: a paddle moves below a falling ball. After every 8,000 steps the
cells of the board change places, and the network has to learn the game again. More and more units
become dormant, and it learns less and less. A second agent renews its dormant units after every
1,000 updates, like ReDo (Sokar et al., 2023). The replay ratio is the number of updates per step.
All runs with the same replay ratio are one compiled program.
"""

from collections.abc import Iterable, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from command_line import advance, bar, mean_and_error, parse, run, say, write
from jax import Array, lax

import dogwood_jax as dw

Variables = Any

ROWS, COLUMNS = 10, 5
CELLS = ROWS * COLUMNS
MOVES = 3  # left, none, right
BOARDS = 4  # games played at the same time
STEPS = 8_000  # between changes of places, over all boards
EXPLORED, LEAST = 4_000, 0.05  # steps until the share of random moves is lowest, and this share
UNITS, RATE, BATCH_SIZE, DISCOUNT = 32, 1e-3, 32, 0.99
MEMORY = 8_000  # transitions
COPIED, RECYCLED = 200, 1_000  # updates between copies of the target, and between renewals
TAU = 0.025
TX = dw.growable(optax.adam(RATE), renewable=True)

# The game -----------------------------------------------------------------------------------------


class Boards(NamedTuple):
    """Positions of balls and paddles: integers ``[boards]``."""

    row: Array
    ball: Array
    paddle: Array


def fresh(key: Array) -> Boards:
    """Returns boards with a ball at a random place in the first row."""
    ball = jax.random.randint(key, (BOARDS,), 0, COLUMNS)
    return Boards(jnp.zeros_like(ball), ball, jnp.full_like(ball, COLUMNS // 2))


def seen(boards: Boards, places: Array) -> Array:
    """Returns the agent's observations ``[boards, cells]``: ones for ball and paddle."""
    ball = boards.row * COLUMNS + boards.ball
    paddle = CELLS - COLUMNS + boards.paddle
    both = jax.nn.one_hot(ball, CELLS) + jax.nn.one_hot(paddle, CELLS)
    return jnp.minimum(both, 1)[:, places]


def play(boards: Boards, moves: Array) -> tuple[Boards, Array, Array]:
    """Returns the next boards, the rewards, and whether each game has ended."""
    paddle = jnp.clip(boards.paddle + moves - 1, 0, COLUMNS - 1)
    boards = Boards(boards.row + 1, boards.ball, paddle)
    ended = boards.row == ROWS - 1
    return boards, jnp.where(ended, jnp.where(boards.ball == paddle, 1.0, -1.0), 0.0), ended


# The agent ----------------------------------------------------------------------------------------


class Network(nn.Module):
    """Two layers of relu units, with the value of each move as output."""

    @nn.compact
    def __call__(self, cells: jax.Array) -> jax.Array:
        """Returns values ``[n, moves]`` of cells ``[n, cells]``."""
        x = nn.relu(nn.Dense(UNITS, name="hidden_0")(cells))
        x = nn.relu(nn.Dense(UNITS, name="hidden_1")(x))
        return nn.Dense(MOVES, name="values")(x)


apply: Any = Network().apply


@cache
def widths() -> dw.Widths:
    """Returns the network's widths."""
    cells = jnp.zeros((1, CELLS))
    return dw.trace(apply, jax.eval_shape(Network().init, jax.random.key(0), cells), cells)


class Transitions(NamedTuple):
    """Observations, the agent's moves, and their results."""

    before: Array
    move: Array
    reward: Array
    after: Array
    ended: Array


class Agent(NamedTuple):
    """A network in training, its target network, its games and its replay memory."""

    variables: Variables
    target: Variables
    opt_state: Any
    boards: Boards
    memory: Transitions


def loss(variables: Variables, target: Variables, batch: Transitions) -> Array:
    """Returns the loss of values against rewards plus discounted values of the next states."""
    after = apply(target, batch.after).max(-1) * ~batch.ended
    values = jnp.take_along_axis(apply(variables, batch.before), batch.move[:, None], -1)[:, 0]
    return jnp.mean(optax.huber_loss(values, batch.reward + DISCOUNT * after))


def born(key: Array) -> Agent:
    """Returns an untrained agent."""
    cells = jnp.zeros((MEMORY, CELLS))
    init_key, board_key = jax.random.split(key)
    variables = Network().init(init_key, cells[:1])
    none = jnp.zeros(MEMORY, int)
    memory = Transitions(cells, none, jnp.zeros(MEMORY), cells, none.astype(bool))
    return Agent(variables, variables, TX.init(variables), fresh(board_key), memory)


def step(
    updates: int, key: Array, places: Array, agent: Agent, number: Array
) -> tuple[Agent, tuple[Array, Array]]:
    """Plays a step on all boards, and learns ``updates`` batches from the memory.

    Returns:
        The agent, and the sum of rewards and the number of games that have ended.
    """
    move_key, board_key, batch_key = jax.random.split(jax.random.fold_in(key, number), 3)
    before, done = seen(agent.boards, places), number * BOARDS
    chance, other = jax.random.uniform(move_key, (2, BOARDS))
    is_random = chance < jnp.maximum(LEAST, 1 - done / EXPLORED)
    best = apply(agent.variables, before).argmax(-1)
    moves = jnp.where(is_random, (MOVES * other).astype(int), best)
    boards, rewards, ended = play(agent.boards, moves)
    new = Transitions(before, moves, rewards, seen(boards, places), ended)
    memory = jax.tree.map(
        lambda all, some: lax.dynamic_update_slice_in_dim(all, some, done % MEMORY, 0),
        agent.memory,
        new,
    )
    known = jnp.minimum(done + BOARDS, MEMORY)
    chosen = jax.random.randint(batch_key, (updates, BATCH_SIZE), 0, known)

    def learn(networks: Any, at: tuple[Array, Transitions]) -> tuple[Any, None]:
        variables, target, opt_state = networks
        update, batch = at
        grads = jax.grad(loss)(variables, target, batch)
        changes, opt_state = TX.update(grads, opt_state, variables)
        variables = optax.apply_updates(variables, changes)
        target = optax.periodic_update(variables, target, update, COPIED)
        return (variables, target, opt_state), None

    order = number * updates + jnp.arange(updates), jax.tree.map(lambda all: all[chosen], memory)
    networks, _ = lax.scan(learn, agent[:3], order)
    boards = jax.tree.map(lambda new, old: jnp.where(ended, new, old), fresh(board_key), boards)
    return Agent(*networks, boards, memory), (rewards.sum(), ended.sum())


@partial(jax.jit, static_argnames=("updates", "games"))
@partial(jax.vmap, in_axes=(None, None, 0, 0, 0))
def lives(
    updates: int, games: int, key: Array, changes: Array, recycles: Array
) -> tuple[Array, Array]:
    """Trains agents.

    Args:
        updates: number of updates in a step of all boards.
        games: number of periods; cells change places between them.
        key: PRNG keys ``[n]``.
        changes: whether cells change places, ``[n]``.
        recycles: whether dormant units are renewed, ``[n]``.

    Returns:
        The mean return and the share of dormant units in each period: ``[n, games]``.
    """
    born_key, places_key, key = jax.random.split(key, 3)
    steps = RECYCLED // updates
    periods = STEPS // BOARDS // steps

    def period(game: Array, agent: Agent, number: Array) -> tuple[Agent, tuple[Array, Array]]:
        number = game * periods + number
        places = jax.random.permutation(jax.random.fold_in(places_key, changes * game), CELLS)
        run_key, batch_key, renew_key = jax.random.split(jax.random.fold_in(key, number), 3)
        agent, sums = lax.scan(
            partial(step, updates, run_key, places), agent, number * steps + jnp.arange(steps)
        )
        rewards, ended = (each.sum() for each in sums)
        known = jnp.minimum((number + 1) * steps * BOARDS, MEMORY)
        chosen = jax.random.randint(batch_key, (256,), 0, known)
        idle = dw.dormant(apply, agent.variables, widths(), agent.memory.before[chosen], tau=TAU)
        variables, opt_state = dw.renew(
            agent.variables,
            agent.opt_state,
            widths(),
            {name: mask & recycles for name, mask in idle.items()},
            key=renew_key,
            tx=TX,
        )
        agent = agent._replace(variables=variables, opt_state=opt_state)
        return agent, (rewards / ended, jnp.mean(jnp.concatenate([*idle.values()])))

    def game(agent: Agent, number: Array) -> tuple[Agent, tuple[Array, Array]]:
        agent, found = lax.scan(partial(period, number), agent, jnp.arange(periods))
        returns, dormant = (each.mean() for each in found)
        return agent, (returns, dormant)

    found: tuple[Array, Array] = lax.scan(game, born(born_key), jnp.arange(games))[1]
    return found


# Results ------------------------------------------------------------------------------------------


class Game(NamedTuple):
    """Results of a run between two changes of places."""

    cells: str
    replay_ratio: float  # updates per step
    dormant_units: str
    seed: int
    game: int
    mean_return: float
    dormant: float


# For each number of updates in a step of all boards: whether cells change places.
SETTINGS = {1: (True,), 4: (False, True), 8: (True,)}


def measured(
    updates: int, changes: Sequence[bool], games: int, key: Array, seeds: int
) -> list[Game]:
    """Trains agents with and without renewed units, from the same initial weights."""
    lanes = [
        (seed, moves, new) for moves in changes for new in (False, True) for seed in range(seeds)
    ]
    numbers, moves, recycles = (jnp.asarray(each) for each in zip(*lanes, strict=True))
    keys = jax.vmap(partial(jax.random.fold_in, key))(numbers)
    found = jax.device_get(lives(updates, games, keys, moves, recycles))
    return [
        Game(
            "move" if moves else "stay",
            updates / BOARDS,
            "renewed" if new else "left",
            seed,
            game,
            *(round(float(each[lane, game]), 4) for each in found),
        )
        for lane, (seed, moves, new) in enumerate(lanes)
        for game in range(games)
    ]


def grouped(found: Iterable[Game]) -> dict[tuple[str, float, str], np.ndarray]:
    """Groups mean returns and shares of dormant units by setting and way: ``[2, seeds, games]``."""
    ways: dict[tuple[str, float, str], list[Game]] = {}
    for game in found:
        ways.setdefault(game[:3], []).append(game)
    return {
        way: np.moveaxis(
            np.reshape([game[-2:] for game in games], (games[-1].seed + 1, -1, 2)), -1, 0
        )
        for way, games in ways.items()
    }


def table(found: Iterable[Game]) -> str:
    """Returns a Markdown table, a row per setting and way: means over seeds, standard errors."""
    heads = ["cells", "replay ratio", "dormant units are", "return, whole training"]
    heads += ["return, last tenth", "dormant, first tenth", "dormant, last tenth"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for (cells, ratio, way), (returns, dormant) in grouped(found).items():
        tenth = -(-returns.shape[1] // 10)
        row = [cells, f"{ratio:g}", way]
        row += [mean_and_error(part.mean(1), ".2f") for part in (returns, returns[:, -tenth:])]
        parts = dormant[:, :tenth], dormant[:, -tenth:]
        row += [mean_and_error(part.mean(1), ".0%") for part in parts]
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


def picture(found: Iterable[Game]) -> Any:
    """Returns a figure of mean returns and dormant units over time, with ranges over seeds."""
    from matplotlib.figure import Figure

    ways = grouped(found)
    settings = list(dict.fromkeys(way[:2] for way in ways))
    figure = Figure(figsize=(3 * len(settings) + 1, 5), layout="constrained")
    axes = figure.subplots(2, len(settings), sharex=True, sharey="row", squeeze=False)
    for (cells, ratio, way), curves in ways.items():
        column = axes[:, settings.index((cells, ratio))]
        column[0].set_title(f"cells {cells}, replay ratio {ratio:g}", fontsize="medium")
        column[1].set_xlabel("thousand steps")
        for ax, runs in zip(column, curves, strict=True):
            color, steps = {"left": "black", "renewed": "C0"}[way], np.arange(runs.shape[1]) + 1
            ax.plot(STEPS / 1000 * steps, runs.mean(0), color=color, label=f"dormant units {way}")
            ax.fill_between(
                STEPS / 1000 * steps, runs.min(0), runs.max(0), color=color, alpha=0.2, linewidth=0
            )
    axes[0, 0].set_ylabel("mean return")
    axes[1, 0].set_ylabel("share of dormant units")
    axes[1, 0].yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    axes[0, 0].legend(fontsize="small")
    return figure


def main(arguments: list[str] | None = None) -> list[Game]:
    """Runs the example; returns the measurements."""
    options = parse(
        __doc__.splitlines()[0],
        arguments,
        counts={
            "games": (20, f"periods of {STEPS:,} steps; cells change places between them"),
            "seeds": (4, "number of seeds for each setting"),
        },
        digits=False,
        quick={"games": 2, "seeds": 1},
    )
    found: list[Game] = []
    key = jax.random.key(options.seed)
    with bar(len(SETTINGS)):
        for updates, changes in SETTINGS.items():
            found += measured(updates, changes, options.games, key, options.seeds)
            advance()
    say(table(found))
    write(found, picture(found), options.out, "recycled_agent")
    return found


if __name__ == "__main__":
    run(main)
