"""Every strategy, in every precision and with an optimizer, on the networks of the table.

Each pair of a strategy and a precision has a network and an optimizer. Widths that the strategy is
not for grow by the default beside it.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from networks import Model, build_larger, cast, cut, larger_inputs
from test_opt_state import optimizers
from test_trace_growth import (
    DRAWS_MASKS,
    NETWORKS,
    assert_close,
    assert_equal,
    float_paths,
    floats,
    hidden,
    old,
)

import dogwood_jax as dw

STRATEGIES = {
    "zero_outgoing": dw.strategies.zero_outgoing,
    "initializer": lambda: dw.strategies.zero_outgoing(jax.nn.initializers.he_normal()),
    "zeros": dw.strategies.zeros,
    "random": dw.strategies.random,
    "replicate": dw.strategies.replicate,
    "uneven": lambda: dw.strategies.replicate(split="uneven"),
    "noise": lambda: dw.strategies.replicate(noise=0.1),
    "one unit": lambda: dw.strategies.replicate(units=[0]),
    "first": lambda: dw.strategies.replicate(split="first"),
    "rotated": dw.strategies.rotated,
    "paired": dw.strategies.paired,
    "gradmax": functools.partial(dw.strategies.gradmax, variant="incoming"),
    "firefly": functools.partial(dw.strategies.firefly, candidates=2),
}
CHOOSING = ("gradmax", "firefly")
# Convolutions and second derivatives take long to compile.
LONG = (
    "conv_1d shape_operations cnn cnn_training handwritten low_rank pinn tied_embedding vae "
    "all_of_size_4 weight_norm width_1 complex_and_fourier weight_standardized embedding "
    "coupling_flow"
).split()
DTYPES = ("float64", "bfloat16")


# Second derivatives are taken in one precision alone.
PAIRS = [
    (strategy, dtype)
    for dtype in DTYPES
    for strategy in STRATEGIES
    if strategy not in CHOOSING or dtype == DTYPES[0]
]
GROWABLE = [name for name in NETWORKS if set(hidden(NETWORKS[name])) - {DRAWS_MASKS[1]}]


def case(index: int, name: str) -> Any:
    strategy, dtype = PAIRS[index]
    optimizer = list(optimizers())[index % len(optimizers())]
    marks = [pytest.mark.long] * (name in LONG)
    name_of_test = f"{name}-{strategy}-{dtype}"
    return pytest.param(name, strategy, dtype, optimizer, marks=marks, id=name_of_test)


def test_strategies_say_whether_they_keep_outputs() -> None:
    kept = {name: STRATEGIES[name]().preserving for name in STRATEGIES if name not in CHOOSING}
    assert {name for name, keeps in kept.items() if not keeps} == {"random", "noise"}


def test_the_table_has_all_pairs() -> None:
    pairs = {tuple(case(i, name).values[1:3]) for i, name in enumerate(GROWABLE[: len(PAIRS)])}
    assert pairs == {*PAIRS}


@pytest.mark.parametrize(
    ("name", "strategy", "dtype", "optimizer"),
    [case(*one) for one in enumerate(GROWABLE[: len(PAIRS)])],
)
def test_every_strategy(name: str, strategy: str, dtype: str, optimizer: str) -> None:
    before = old(name)
    grows = {by: s for by, s in hidden(before.network).items() if (name, by) != DRAWS_MASKS}
    sizes = {width: size for by in grows.values() for width, size in by.items()}
    big = build_larger(before.network, *grows)
    variables, inputs = cast((before.variables, before.model.inputs), dtype)
    larger = cast(larger_inputs(before.model, big), dtype)
    ours = made(strategy, big, larger)
    chosen = {
        width: ours if is_for(ours, before.widths, width) else dw.strategies.zero_outgoing()
        for width in sizes
    }
    growth = dw.plan(before.widths, sizes, target=big.shapes, strategy=chosen)
    grown = dw.grow(variables, growth, key=jax.random.key(5))
    # Moments are linear in the gradient, of which the variables are as good an example as any.
    gradient = dict(zip(float_paths(variables), floats(variables)[0], strict=True))
    moments = dw.grow_opt_state(optax.TraceState(gradient), growth, optax.trace(0.9)).trace

    @jax.jit
    def run(variables: Any, moments: Mapping[str, Any]) -> Any:
        numbers, rebuild = floats(variables)

        def grow(numbers: list[Any]) -> Any:
            new = dw.grow(rebuild(numbers), growth, key=jax.random.key(5))
            return floats(new)[0], new

        _, pull, new = jax.vjp(grow, numbers, has_aux=True)
        back = pull([moments[path] for path in float_paths(new)])[0]
        return new, jax.tree.leaves(big.apply(new, *larger)), back

    jitted, outputs, back = run(variables, moments)
    if ours.choice is None:
        assert_equal(jitted, grown)
    else:  # by sums, which may be added up in another order
        assert_near(floats(jitted)[0], floats(grown)[0], 64, dtype)
    assert_near(back, floats(variables)[0], 8, dtype)
    if ours.preserving:
        reference = jax.tree.leaves(jax.jit(before.model.apply)(variables, *inputs))
        outputs = cut(outputs, [x.shape for x in reference])
        assert_near(outputs, reference, 64, dtype)

    # The way back, for the optimizer's state, too.
    keep = {width: range(before.widths[width].size) for width in sizes}
    back_again = dw.plan(growth.after, keep=keep)
    copied = any(change.sources is not None for change in growth.changes)
    if not copied:
        assert_equal(dw.grow(grown, back_again), variables)
    tx = optimizers()[optimizer]
    state = trained(tx, gradient)
    grown_state = dw.grow_opt_state(state, growth, tx)
    flat = dict(zip(float_paths(grown), floats(grown)[0], strict=True))
    assert jax.tree.map(struct, grown_state) == jax.tree.map(struct, jax.eval_shape(tx.init, flat))
    if not copied:
        assert_equal(dw.grow_opt_state(grown_state, back_again, tx), state)

    # As data, it is the same growth.
    recorded = dataclasses.replace(growth, structure=None)
    if ours.choice is None and strategy != "initializer":
        assert dw.from_json(dw.to_json(recorded)) == recorded
    else:
        with pytest.raises(ValueError, match="cannot be written as JSON"):
            dw.to_json(recorded)


def made(strategy: str, big: Model, inputs: tuple[Any, ...]) -> dw.strategies.Start:
    """A strategy; those that look at a loss get one of the larger model."""
    make = STRATEGIES[strategy]
    if strategy not in CHOOSING:
        return make()

    def loss(variables: Any, *inputs: Any) -> Any:
        outputs = jax.tree.leaves(big.apply(variables, *inputs))
        numbers = [x for x in outputs if jnp.issubdtype(x.dtype, jnp.inexact)]
        return sum(jnp.mean(jnp.abs(x - 1) ** 2) for x in numbers)

    return make(loss, *inputs)


def is_for(strategy: dw.strategies.Start, widths: dw.Widths, name: str) -> bool:
    width = widths[name]
    if strategy.name == "zeros" or strategy.makes_alike:  # a function may not be finite there
        try:
            return bool(dw.plan(widths, {name: 2 * width.size}, strategy=strategy))
        except ValueError:
            return False
    if strategy.choice is not None:
        return {occurrence.role for occurrence in width.occurrences} > {"incoming"}
    return True


def assert_near(found: list[Any], wanted: list[Any], rounding: float, dtype: str) -> None:
    """Checks values to this many times the rounding of the largest of them."""
    scale = max(np.max(np.abs(x), initial=0) for x in wanted)
    for new, reference in zip(found, wanted, strict=True):
        assert new.dtype == reference.dtype
        assert_close(new, reference, rounding * float(jnp.finfo(dtype).eps), scale)


def trained(tx: Any, gradient: Any) -> Any:
    """The state after a step."""
    return jax.jit(lambda gradient: tx.update(gradient, tx.init(gradient), gradient)[1])(gradient)


def struct(leaf: Any) -> tuple[Any, Any]:
    return jnp.shape(leaf), jnp.result_type(leaf)


def test_each_width_has_its_own_initializer_where_two_meet():
    # Kernels that lie the other way round, so that axes are not in the order of the widths.
    def full(number):
        return lambda key, shape, dtype=jnp.float32: jnp.full(shape, number, dtype)

    def apply(variables, x):
        for name in "abc":
            x = jnp.tanh(x @ variables[name].T)
        return x

    variables = {"a": jnp.ones((4, 3)), "b": jnp.ones((4, 4)), "c": jnp.ones((2, 4))}
    widths = dw.trace(apply, variables, jnp.ones((5, 3)))
    strategy = {name: dw.strategies.zero_outgoing(full(n)) for name, n in (("a", 1), ("b", 2))}
    growth = dw.plan(widths, {"a": 5, "b": 5}, strategy=strategy)
    wide = dw.grow(variables, growth, key=jax.random.key(0))
    assert (wide["b"][-1] == 2).all() and (wide["a"][-1] == 1).all()


def test_a_width_without_units_takes_new_ones_that_copy_none():
    variables = {"up": {"kernel": jnp.ones((3, 0))}, "down": {"kernel": jnp.ones((0, 2))}}
    widths = dw.chain(variables, ("up", "down"))
    growth = dw.plan(widths, {"up": 4}, strategy=dw.strategies.replicate(units=[0]))
    assert growth.sizes == {"up": 4}
