"""What a change of the inside must not make worse: size, reach, bits and calls.

``lines`` counts the lines of each room. ``reach`` grows the networks, architectures and models of
other libraries that the tests have, and counts by family which growths are exact, refused and
noted. ``bits`` hashes grown arrays: each network with each strategy in each dtype, by one key.
``walk`` counts through how much of the package the README's example passes. ``--details`` writes a
line for each growth and hash, so that two runs can be compared by ``diff``.

    python tests/benchmarks/state.py [PART ...] [--details FILE]
"""

import argparse
import collections
import contextlib
import csv
import functools
import hashlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("KERAS_BACKEND", "jax")  # before Keras is imported
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # compiling takes longer than running
sys.path.insert(0, str(Path(__file__).parents[1]))

import architecture
import jax
import jax.numpy as jnp
import networks
import networks_scaling
import numpy as np
import optax
import test_primitives
from networks import Model, build_larger, cast, cut, fill, larger_inputs, new_size
from test_trace_growth import assert_close

import dogwood_jax as dw

KEY = jax.random.key(0)
PACKAGE = Path(dw.__file__).parent


def lines() -> Iterator[str]:
    """Lines of Python in each room, and in the tests."""

    def count(files: Iterable[Path]) -> tuple[int, int]:
        files = list(files)
        return len(files), sum(len(file.read_text().splitlines()) for file in files)

    rooms = {room.name: room.rglob("*.py") for room in PACKAGE.iterdir() if any(room.rglob("*.py"))}
    rooms |= {"files beside the rooms": PACKAGE.glob("*.py"), "all": PACKAGE.rglob("*.py")}
    tests = Path(__file__).parents[1]
    rooms |= {"tests": tests.glob("*.py"), "tests/benchmarks": tests.glob("benchmarks/*.py")}
    for name, found in sorted(rooms.items()):
        files, total = count(found)
        yield f"{name:24}{files:5} files {total:7} lines"


# Reach --------------------------------------------------------------------------------------------


class Case(NamedTuple):
    """A growth that is asked for.

    Attributes:
        family: of the network.
        what: the network, and what grows of it how.
        plan: plans it.
        moved: carries out a plan, and says whether outputs moved; if there is none, what ``plan``
            evaluated has to do.
    """

    family: str
    what: str
    plan: Callable[[], dw.Growth]
    moved: Callable[[dw.Growth], bool] | None = None


def _topic(function: Callable[..., Any], prefix: str) -> str:
    return function.__module__.removeprefix(prefix)


def _runs(
    small: Model, big: Model, tolerance: float, *, by_size: bool = False
) -> Callable[[dw.Growth], bool]:
    """Returns what grows a model of random arrays, and compares what both compute.

    By size, a model may keep its own numbers, so that its own function tells.
    """

    def moved(growth: dw.Growth) -> bool:
        if any("another size draws others" in note for note in growth.notes):
            return False
        old = fill(small.shapes, 1)
        # A module may hold its own class, and then has the class of the larger one.
        leaves = jax.tree.leaves(dw.grow(old, growth, key=KEY))
        wide = jax.tree.unflatten(jax.tree.structure(big.shapes), leaves)
        inputs = larger_inputs(small, big)
        wanted = jax.tree.leaves(jax.jit(small.apply)(old, *small.inputs))

        def is_far(apply: Callable[..., Any]) -> bool:
            found = cut(jax.tree.leaves(jax.jit(apply)(wide, *inputs)), [y.shape for y in wanted])
            try:
                for new, old in zip(found, wanted, strict=True):
                    assert_close(new, old, tolerance, np.max(np.abs(old), initial=0))
            except AssertionError:
                return True
            return False

        return is_far(big.apply) and not (by_size and not is_far(small.apply))

    return moved


def of_networks() -> Iterator[Case]:
    """Each number of a network becomes larger, by sizes and by target."""
    for name, network in networks.load().items():
        small = network.build()
        widths = dw.trace(small.apply, small.shapes, *small.inputs)
        family = f"network, {_topic(network.build, 'networks_')}"
        for by in {w.by: None for w in network.widths.values() if w.by}:
            sizes = {n: new_size(w.size) for n, w in network.widths.items() if w.by == by}
            plan = functools.partial(dw.plan, widths, interface=True)
            big = build_larger(network, by)
            moved = _runs(small, big, 1e-12)
            own = _runs(small, big, 1e-12, by_size=True)
            target = {"target": big.shapes, "target_apply": big.apply}
            yield Case(family, f"{name}: {by}, by size", functools.partial(plan, sizes), own)
            yield Case(family, f"{name}: {by}, by target", functools.partial(plan, **target), moved)
        for width, expected in network.widths.items():
            if expected.fixed:
                sizes = {width: new_size(expected.size)}
                plan = functools.partial(dw.plan, widths, sizes, interface=True)
                yield Case(family, f"{name}: {width}, fixed", plan)


def of_recipes() -> Iterator[Case]:
    """Networks that compute with a size."""
    for name, case in networks_scaling.CASES.items():
        small = case.build()
        widths = dw.trace(small.apply, small.shapes, *small.inputs)
        for new in case.sizes:
            big = case.build(n=new)
            moved = _runs(small, big, case.tolerance)
            sizes = {widths.of(*case.place).name: new}
            target = {"target": big.shapes, "target_apply": big.apply}
            by_size = functools.partial(dw.plan, widths, sizes)
            # The larger network may have other epsilons: what plan evaluated has to do.
            yield Case("network, scaling", f"{name}: {new}, by size", by_size)
            by_target = functools.partial(dw.plan, widths, **target)
            yield Case("network, scaling", f"{name}: {new}, by target", by_target, moved)


def of_primitives() -> Iterator[Case]:
    """Networks around one primitive, which take their sizes from their arrays."""
    for name, example in test_primitives.EXAMPLES.items():
        family = f"primitive, {_topic(example.apply, 'primitive_examples_')}"
        for sizes in test_primitives.requests(name):
            widths = test_primitives.traced(name)
            plan = functools.partial(dw.plan, widths, sizes, interface=True)
            moved = functools.partial(test_primitives.moved, name)
            yield Case(family, f"{name}: {sizes}", plan, lambda g, moved=moved: bool(moved(g)))


def of_architectures() -> Iterator[Case]:
    """Each width by its size, each number of the configuration by target."""
    for entry in architecture.load().values():
        if not entry.is_installed:
            continue
        network = entry.build()
        widths = network.trace()
        family = f"architecture, {_topic(entry.build, 'architectures_')}"
        for name, width in widths.items():
            if not width.interface and not width.fixed:
                plan = functools.partial(network.by_size, widths, {name: 2 * width.size})
                yield Case(family, f"{entry.name}: {name}, by size", plan)
        for name, sizes in entry.larger.items():
            grown: list[architecture.Grown] = []

            def plan(network=network, widths=widths, entry=entry, sizes=sizes, grown=grown):
                found = network.into(widths, entry.build(**sizes))
                grown.extend([found] if isinstance(found, architecture.Grown) else [])
                return grown[0].growth if grown else None  # of a library's own call

            def moved(growth, what=f"{entry.name}: {name}", grown=grown):
                for one in grown:
                    BITS["architectures"].append((what, _hash(one.variables)))
                return False  # which raises Moved

            yield Case(family, f"{entry.name}: {name}, by target", plan, moved)


DETAILS: list[tuple[str, ...]] = []


def reach() -> Iterator[str]:
    counts: dict[str, collections.Counter[str]] = {}
    for cases in (of_networks, of_recipes, of_primitives, of_architectures):
        doubles = cases is not of_architectures
        with jax.enable_x64(doubles), jax.numpy_rank_promotion("allow"):
            for case in cases():
                outcome, notes = _outcome(case)
                count = counts.setdefault(case.family, collections.Counter())
                count.update([outcome, *["noted"] * bool(notes)])
                DETAILS.append((case.family, case.what, outcome, notes))
        jax.clear_caches()
    counts["all"] = sum(counts.values(), collections.Counter())
    yield f"{'family':32}" + "".join(f"{word:>9}" for word in _OUTCOMES)
    for family, count in counts.items():
        yield f"{family:32}" + "".join(f"{count[word]:9}" for word in _OUTCOMES)


_OUTCOMES = "exact", "refused", "noted", "moved"


def _outcome(case: Case) -> tuple[str, str]:
    """Returns what became of a growth, and its notes."""
    try:
        growth = case.plan()
    except ValueError:
        return "refused", ""
    except architecture.Moved:
        return "moved", ""
    is_moved = case.moved is not None and case.moved(growth)
    notes = growth.notes if growth is not None else ()  # of a library's own call
    return "moved" if is_moved else "exact", "; ".join(notes)


# Bits ---------------------------------------------------------------------------------------------

BITS: dict[str, list[tuple[str, str]]] = collections.defaultdict(list)
STRATEGIES = {
    "default": None,
    "zeros": dw.strategies.zeros(),
    "zero_incoming": dw.strategies.zero_incoming(),
    "random": dw.strategies.random(),
    "replicate": dw.strategies.replicate(),
    "uneven": dw.strategies.replicate(split="uneven"),
    "noise": dw.strategies.replicate(noise=0.1),
    "tile": dw.strategies.tile(),
    "paired": dw.strategies.paired(),
}


def _hash(variables: Any) -> str:
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
        if hasattr(leaf, "dtype") and not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            digest.update(f"{jax.tree_util.keystr(path)} {leaf.shape} {leaf.dtype}".encode())
            digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()[:16]


def bits() -> Iterator[str]:
    """Hashes of the grown arrays of each network, by strategy and dtype."""
    with jax.enable_x64(True), jax.numpy_rank_promotion("raise"):
        for name, network in networks.load().items():
            small = network.build()
            widths = dw.trace(small.apply, small.shapes, *small.inputs)
            plain = {n: w for n, w in network.widths.items() if w.by and not w.fixed}
            sizes = {n: 2 * w.size for n, w in plain.items() if not w.copies}
            for how, strategy in STRATEGIES.items():
                growth = _grown_at_once(widths, sizes, strategy)
                for dtype in (jnp.float64, jnp.float32, jnp.bfloat16) if growth else ():
                    old = cast(fill(small.shapes, 1), dtype)
                    with contextlib.suppress(ValueError):  # of a module with other numbers
                        wide = dw.grow(old, growth, key=KEY)
                        BITS[f"{how}, {jnp.dtype(dtype).name}"].append((name, _hash(wide)))
            jax.clear_caches()
    for what, hashes in BITS.items():
        DETAILS.extend((what, *each) for each in hashes)
        digest = hashlib.sha256("".join(f"{name}{one}" for name, one in hashes).encode())
        yield f"{what:32}{len(hashes):5} grown  {digest.hexdigest()[:16]}"


def _grown_at_once(widths: dw.Widths, sizes: dict[str, int], strategy: Any) -> dw.Growth | None:
    """Returns a growth of all widths that the strategy is for."""
    plan = functools.partial(dw.plan, widths, interface=True, check=False)
    if strategy is not None:
        plan = functools.partial(plan, strategy=strategy)

    def planned(sizes: dict[str, int]) -> dw.Growth | None:
        try:
            return plan(sizes)
        except ValueError:
            return None

    alone = {name: size for name, size in sizes.items() if planned({name: size})}
    return planned(alone)


# Calls and time -----------------------------------------------------------------------------------


def _dense(rows: int, columns: int) -> dict[str, Any]:
    return {"kernel": jnp.ones((rows, columns)) / rows, "bias": jnp.zeros(columns)}


def _perceptron(v: Any, x: Any) -> Any:
    hidden = jax.nn.relu(x @ v["hidden"]["kernel"] + v["hidden"]["bias"])
    return hidden @ v["out"]["kernel"] + v["out"]["bias"]


def walk() -> Iterator[str]:
    """Files, functions and calls of the package, for 784-128-10 whose hidden units become 200."""
    variables, x = {"hidden": _dense(784, 128), "out": _dense(128, 10)}, jnp.ones((5, 784))
    tx = dw.growable(optax.adam(1e-3))
    state = tx.init(variables)

    widths = dw.trace(_perceptron, variables, x)
    growth = dw.plan(widths, {"hidden": 200})
    steps: dict[str, Callable[[], Any]] = {
        "trace": lambda: dw.trace(_perceptron, variables, x),
        "plan": functools.partial(dw.plan, widths, {"hidden": 200}),
        "grow": lambda: dw.grow(variables, growth, key=KEY),
        "grow_opt_state": lambda: dw.grow_opt_state(state, growth, tx),
    }
    for step in steps.values():
        step()  # imports are no part of the walk
    for name, step in steps.items():
        calls: collections.Counter[Any] = collections.Counter()

        def profile(frame: Any, event: str, _: Any, calls: Any = calls) -> None:
            if event == "call" and frame.f_code.co_filename.startswith(str(PACKAGE)):
                calls[frame.f_code] += 1

        sys.setprofile(profile)
        try:
            step()
        finally:
            sys.setprofile(None)
        files = {code.co_filename for code in calls}
        yield f"{name:16}{len(files):4} files {len(calls):5} functions {calls.total():7} calls"


PARTS = {part.__name__: part for part in (lines, reach, bits, walk)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; by default, all")
    parser.add_argument("--details", type=Path, help="a CSV to write each growth and hash to")
    options = parser.parse_args()
    if unknown := [name for name in options.parts if name not in PARTS]:
        parser.error(f"no part {', '.join(unknown)}; there are {', '.join(PARTS)}")
    for name in options.parts or PARTS:
        print(f"-- {name}")
        for line in PARTS[name]():
            print(line, flush=True)
    if options.details:
        with options.details.open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(DETAILS)


if __name__ == "__main__":
    main()
