"""How long plans take, in seconds of the processor; what JAX has cached is forgotten before each.

Models of a usual size are traced and planned beside ``jax.make_jaxpr`` of the same function: a few
of their widths, each by its size (to twice as many units, and by one unit more) and by another
function (to twice as many). Then each width of the networks that the tests have is planned, by its
size and by ``target_apply=``, and those that take longest are printed.

    python tests/benchmarks/plans.py [MODEL ...] [--most 10]
"""

import argparse
import gc
import re
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
from real_models import MODELS, Model

import dogwood_jax as dw

sys.path.append(str(Path(__file__).parents[1]))
from networks import Network, load


class Timed(NamedTuple):
    """Seconds of the processor, and what came: an error if it was refused."""

    seconds: float
    found: Any

    @property
    def is_refused(self) -> bool:
        return isinstance(self.found, ValueError)

    def beside(self, other: float) -> str:
        """Returns the seconds, and how many times as long as another's they are."""
        refused = "  refused" if self.is_refused else ""
        return f"{self.seconds:7.2f} s {self.seconds / other:6.1f} x{refused}"


def timed(function: Callable[[], Any]) -> Timed:
    """Calls a function after JAX has forgotten all."""
    jax.clear_caches()
    gc.collect()
    start = time.process_time()
    try:
        found = function()
    except ValueError as error:
        found = error
    return Timed(time.process_time() - start, found)


def names_like(widths: dw.Widths, name: str) -> list[str]:
    """Returns the names of widths that a name with ``*`` for any number stands for.

    Raises:
        KeyError: if there are none.
    """
    pattern = re.escape(name).replace(r"\*", r"\d+")
    if found := [width for width in widths if re.fullmatch(pattern, width)]:
        return found
    raise KeyError(f"no width is called {name}:\n{widths}")


def another_function(apply: Callable[..., Any], growth: dw.Growth) -> Callable[..., Any]:
    """Returns a function of the larger network that JAX does not know from the network's own."""
    module = getattr(apply, "__self__", None)
    if isinstance(module, nn.Module):
        return dw.larger(module, growth).apply
    return lambda *arguments: apply(*arguments)


def of_model(model: Model) -> Iterator[tuple[str, str]]:
    """Yields what is done with a model, and how long it takes beside make_jaxpr."""
    apply, variables, inputs, names = model
    alone = timed(lambda: jax.make_jaxpr(apply)(variables, *inputs)).seconds
    yield "make_jaxpr", f"{alone:7.2f} s"
    trace = timed(lambda: dw.trace(apply, variables, *inputs))
    yield "trace", trace.beside(alone)
    widths = trace.found
    for name in names:
        like = names_like(widths, name)
        more = {width: widths[width].size + 1 for width in like}
        twice = {width: 2 * widths[width].size for width in like}
        yield f"{name}, one more", timed(partial(dw.plan, widths, more)).beside(alone)
        by_size = timed(partial(dw.plan, widths, twice))
        yield f"{name}, twice", by_size.beside(alone)
        if not by_size.is_refused:
            try:
                larger = another_function(apply, by_size.found)
            except ValueError:  # the module has no number for this width alone
                continue
            grown = partial(dw.grow, growth=by_size.found, key=jax.random.key(0))
            target = jax.eval_shape(grown, variables)
            by_function = partial(dw.plan, widths, target=target, target_apply=larger)
            yield f"{name}, twice, another function", timed(by_function).beside(alone)


def of_tests(network: Network) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yields what plans each width of a network of the tests, with its name."""
    model = network.build()
    widths = dw.trace(model.apply, model.shapes, *model.inputs)
    for name, expected in network.widths.items():
        if expected.by and not (expected.fixed or expected.changes or expected.interface):
            size = 2 * network.sizes[expected.by]
            large = network.build(**{expected.by: size})
            larger = {"target": large.shapes, "target_apply": large.apply}
            yield f"{name}, by size", partial(dw.plan, widths, {name: 2 * expected.size})
            yield f"{name}, by target_apply=", partial(dw.plan, widths, **larger)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"of {', '.join(MODELS)}")
    parser.add_argument("--most", type=int, default=10)
    options = parser.parse_args()
    if unknown := [name for name in options.models if name not in MODELS]:
        parser.error(f"no model {', '.join(unknown)}; there are {', '.join(MODELS)}")
    for name in options.models or MODELS:
        print(f"-- {name}", flush=True)
        for what, seconds in of_model(MODELS[name]()):
            print(f"{seconds}  {what}", flush=True)
    if options.models:
        return
    with jax.enable_x64(True):  # the table holds float64
        found = [
            (timed(grow).seconds, f"{name}: {what}")
            for name, network in load().items()
            for what, grow in of_tests(network)
        ]
    total = sum(seconds for seconds, _ in found)
    print(f"-- {len(found)} plans of the tests' networks: {total:.0f} s. The slowest:")
    for seconds, what in sorted(found, reverse=True)[: options.most]:
        print(f"{seconds:7.2f} s  {what}")


if __name__ == "__main__":
    main()
