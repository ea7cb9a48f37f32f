"""How the time of ``trace`` and ``plan`` grows with what is repeated, beside that of JAX alone.

A result that is used twice in each of n steps must not be read 2 ** n times. Each line prints
seconds of the processor, and their ratio to what ``jax.make_jaxpr`` takes of the same network.
Loops in loops are run by the evaluation as often as the network runs them, which doubles with each.

    python tests/benchmarks/repetition.py
"""

import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

import dogwood_jax as dw

X = jnp.linspace(-1.0, 1.0, 12).reshape(3, 4)
UP, DOWN = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((4, 6), (6, 4)))
Network = tuple[Callable[..., Any], Any]


def squares(steps: int) -> Network:
    """A number that is used twice in each step: ``s = s * s + s``."""

    def apply(p: Any, x: Any) -> Any:
        s = 0.1 * x.mean()
        for _ in range(steps):
            s = s * s + s
        return jnp.tanh(x @ p["up"]) @ p["down"] * jnp.tanh(s)

    return apply, {"up": UP, "down": DOWN}


def squares_of_units(steps: int) -> Network:
    """The same behind units, as a long activation has it."""

    def apply(p: Any, x: Any) -> Any:
        s = 0.01 * jnp.tanh(x @ p["up"])
        for _ in range(steps):
            s = s * s + s
        return jnp.tanh(s) @ p["down"]

    return apply, {"up": UP, "down": DOWN}


def loops(levels: int) -> Network:
    """Loops in loops, of two rounds each."""

    def apply(p: Any, x: Any) -> Any:
        def level(k: int, h: Any) -> Any:
            if k == 0:
                return jnp.tanh(h @ p["up"]) @ p["down"]
            return jax.lax.scan(lambda h, _: (level(k - 1, h), None), h, length=2)[0]

        return level(levels, x)

    return apply, {"up": UP, "down": DOWN}


def averages(copies: int) -> Network:
    """Averaged copies of all arrays among the variables, which the network does not read."""

    def apply(v: Any, x: Any) -> Any:
        return jnp.tanh(x @ v["params"]["up"]) @ v["params"]["down"]

    params = {"up": UP, "down": DOWN}
    return apply, {"params": params, "averages": {f"{n}": params for n in range(copies)}}


def seconds(call: Callable[[], Any]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def lines() -> Iterator[str]:
    for build, sizes in (
        (squares, (10, 20, 30)),
        (squares_of_units, (10, 20, 30)),
        (loops, (2, 4, 6)),
        (averages, (625, 1250, 2500)),
    ):
        for size in sizes:
            apply, variables = build(size)

            def grow(apply: Any = apply, variables: Any = variables) -> None:
                widths = dw.trace(apply, variables, X)
                (up,) = (leaf.path for leaf in widths.leaves if leaf.path in ("up", "params/up"))
                dw.plan(widths, {(up, 1): 8})

            def alone(apply: Any = apply, variables: Any = variables) -> None:
                jax.make_jaxpr(lambda *arguments: apply(*arguments))(variables, X)  # not cached

            grow()  # what JAX does once is left out
            ours, its = seconds(grow), min(seconds(alone) for _ in range(3))
            yield f"{build.__name__:17} {size:5} {ours:7.2f} s {ours / its:8.1f} times make_jaxpr"


def main() -> None:
    for line in lines():
        print(line, flush=True)


if __name__ == "__main__":
    main()
