"""Pairs of a program and a larger one that differs in one place: ``KINDS``, ``failure``.

``plan`` with ``target_apply=`` must accept such a pair if and only if both compute the same. What
is so is decided here without the library: arrays are grown by hand, and both programs are run in
their own dtypes on many inputs, among them large ones, zeros and ids out of range. ``python
tests/pairs.py 0 20`` looks for pairs that are decided wrongly, for these seeds of all kinds.
"""

import collections
import dataclasses
import math
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from evaluate import program
from jax import lax

import dogwood_jax as dw

Arrays = dict[str, Any]
Function = Callable[..., Any]

# How far entries may differ, relative to the entry, and as a multiple of how far they move when
# inputs and weights are nudged; and what ``1 - exp(-x)`` is off by for a small x.
_CLOSE, _NUDGE, _TIMES, _CANCELLED = 1e-9, 1e-14, 100.0, 1e-15
# Each of these is among the ids, if they lie so far.
_IDS = (0, 7, 20, 500)
# The scales of inputs and weights. In the second sample some inputs are zero, in the third all of
# a batch are equal, and in the fourth the first columns of inputs and weights are zero. The largest
# inputs are positive, so that none is left below a threshold.
_SCALES = (
    *(
        (1.0, 1.0),
        (1.0, 1.0),
        (1.0, 1.0),
        (1.0, 1.0),
        (1e-3, 1e-3),
        (30.0, 1.0),
        (1e3, 1.0),
        (1e6, 1.0),
    ),
    *((1e3, 1e-3), (0.0, 1.0), (5.0, 1.0), (10.0, 1.0), (1.0, 5.0), (1.0, 30.0), (1.0, 1e3)),
    *((1.0, 2e4), (2e4, 1e-4)),
)


@dataclasses.dataclass(frozen=True)
class Pair:
    """A program and a larger one.

    Attributes:
        said: the difference.
        old: the program, a function of arrays and inputs.
        new: the larger one.
        leaves: the axes of each array by name, such as ``"i 2*n"`` for a product. Entries that are
            new along ``n>`` are outgoing: they are zero.
        sizes: the sizes of each axis, before and after.
        inputs: shapes and dtypes of the inputs.
        ids: integers lie from here to below there.
        rounds: whether both programs differ at most in how they round. Then the pair is accepted,
            and a note says so.
        may_hide: whether what differs may be seen by no sample. Then the pair may be refused.
        follows_size: whether the program itself computes something else in larger sizes.
    """

    said: tuple[Any, Any]
    old: Function
    new: Function
    leaves: Mapping[str, str]
    sizes: Mapping[str, tuple[int, int]]
    inputs: Sequence[Any]
    ids: tuple[int, int] = (0, 8)
    rounds: bool = False
    may_hide: bool = False
    follows_size: bool = False

    def shapes(self, *, is_new: bool) -> dict[str, Any]:
        """Returns shapes and dtypes of the arrays."""
        return {
            name: jax.ShapeDtypeStruct([math.prod(part) for part in axes], jnp.float64)
            for name, axes in ((n, self._axes(n, is_new)) for n in self.leaves)
        }

    def _axes(self, name: str, is_new: bool) -> list[list[int]]:
        return [
            [self._size(part, is_new) for part in axis.rstrip(">").split("*")]
            for axis in self.leaves[name].split()
        ]

    def _size(self, part: str, is_new: bool) -> int:
        return int(part) if part.isdecimal() else self.sizes[part][is_new]

    def grown(self, old: Arrays, rng: np.random.Generator) -> Arrays:
        """Returns the arrays of the larger program, with random new entries, grown by hand."""
        found = {}
        for name, array in old.items():
            before, after = self._axes(name, False), self._axes(name, True)
            flat = [size for axis in before for size in axis]
            new = rng.normal(size=[size for axis in after for size in axis])
            place = 0
            corner = tuple(map(slice, flat))
            for axis, parts in zip(self.leaves[name].split(), before):
                if axis.endswith(">"):
                    for k in range(place, place + len(parts)):
                        new[(slice(None),) * k + (slice(flat[k], None),)] = 0
                place += len(parts)
            new[corner] = np.reshape(array, flat)
            found[name] = new.reshape([math.prod(axis) for axis in after])
        return found


# How pairs are judged -----------------------------------------------------------------------------


def samples(pair: Pair, seed: int) -> Iterator[tuple[Arrays, list[Any]]]:
    """Yields arrays and inputs."""
    for number, (scale, weights) in enumerate(_SCALES):
        rng = np.random.default_rng((seed, number))
        arrays = {
            name: weights * rng.normal(size=s.shape) / np.sqrt(max(s.shape[0], 1))
            for name, s in pair.shapes(is_new=False).items()
        }
        inputs = []
        for struct in pair.inputs:
            if jnp.issubdtype(struct.dtype, jnp.integer):
                low, high = pair.ids
                ids = rng.integers(low, high, size=struct.shape).astype(struct.dtype)
                some = [low, *(i for i in _IDS if low < i < high)]
                ids[-1, -1] = some[number % len(some)]
                inputs.append(ids)
                continue
            x = rng.normal(size=struct.shape) * scale
            x = scale + np.abs(x) if scale == 1e6 else x
            if number == 1:
                x[0] = 0
                x[:, 0] = 0
            if number == 2:
                x[:] = x[:1]
            inputs.append(x)
        if number == 3:
            for array in (*arrays.values(), *inputs):
                if array.dtype.kind == "f":
                    array[..., 0] = 0
        yield arrays, inputs


class Oracle:
    """Says whether programs compute the same as the first of a pair."""

    def __init__(self, pair: Pair, seed: int) -> None:
        self._pair = pair
        self._old = self._run(pair.old, pair.shapes(is_new=False))
        self._samples = [(*sample, self._old(*sample)) for sample in samples(pair, seed)]

    def _run(self, function: Function, shapes: Arrays) -> Callable[..., list[np.ndarray]]:
        run = program(function, shapes, *self._pair.inputs)
        return lambda arrays, inputs: [*map(np.asarray, jax.tree.leaves(run(arrays, *inputs)))]

    def difference(self, function: Function, grow: Callable[[Arrays], Arrays]) -> str | None:
        """Returns where a program differs, or None if it computes the same.

        Args:
            function: the program.
            grow: returns its arrays.
        """
        run, counted = self._run(function, self._pair.shapes(is_new=True)), 0
        for number, (arrays, inputs, old) in enumerate(self._samples):
            for place, (a, b) in enumerate(zip(old, run(grow(arrays), inputs), strict=True)):
                if a.shape != b.shape:
                    return f"output {place} has shape {b.shape} instead of {a.shape}"
                counts = np.isfinite(a)
                counted += counts.any()
                with np.errstate(all="ignore"):
                    far = counts & ~(np.abs(b - a) <= _CLOSE * np.abs(a) + _CANCELLED)
                    if far.any():
                        by = self._moved(number, place)
                        far &= (by <= 1e-5 * np.abs(a)) & ~(np.abs(b - a) <= _TIMES * by)
                if far.any():
                    at = tuple(map(int, np.argwhere(far)[0]))
                    return f"output {place} at {[*at]} of sample {number}: {a[at]} -> {b[at]}"
        return None if counted >= len(_SCALES) // 2 else "too few numbers are finite"

    def _moved(self, number: int, place: int) -> np.ndarray:
        """Returns by how much an output of a sample moves if all numbers are nudged."""
        arrays, inputs, old = self._samples[number]
        moved = np.zeros(old[place].shape)
        for k in range(3):
            noise = np.random.default_rng(k)
            near = self._old(*jax.tree.map(lambda a: _nudged(a, noise), (arrays, inputs)))  # noqa: B023
            moved = np.maximum(moved, np.abs(near[place] - old[place]))
        return moved


def _nudged(array: Any, noise: np.random.Generator) -> Any:
    if np.asarray(array).dtype.kind in "iu":
        return array
    return array * (1 + _NUDGE * noise.normal(size=np.shape(array)))


@dataclasses.dataclass(frozen=True)
class Failure:
    """A pair that ``plan`` decides wrongly."""

    kind: str
    seed: int
    is_large: bool
    pair: Pair
    status: str
    detail: str

    def __str__(self) -> str:
        one, other = self.pair.said
        of = f"{self.kind}, seed {self.seed}{', large' * self.is_large}, {one} and {other}"
        return f"{self.status}: {of}\n    {self.detail}"


def failure(kind: str, seed: int, *, is_large: bool = False, tally: Any = None) -> Failure | None:
    """Plans the growth of a pair; returns what is wrong with the answer, None if it is right.

    Args:
        kind: the kind of the pair.
        seed: which of its pairs.
        is_large: whether it has many positions and units.
        tally: counts the answers.
    """
    pair = made(kind, seed, is_large)
    old, new = pair.shapes(is_new=False), pair.shapes(is_new=True)
    tally = collections.Counter() if tally is None else tally

    def failed(status: str, detail: Any) -> Failure:
        detail = str(detail).replace("cannot plan this growth\n", "").replace("\n", "\n    ")
        return Failure(kind, seed, is_large, pair, status, detail)

    def by_hand(arrays: Arrays) -> Arrays:
        return pair.grown(arrays, np.random.default_rng(seed))

    oracle = Oracle(pair, seed)
    wrong = None if pair.follows_size else oracle.difference(pair.old, by_hand)
    if wrong is not None:
        return failed("NO PAIR", f"the program by itself, grown by hand: {wrong}")
    claimed = pair.old if pair.rounds else pair.new
    agree = oracle.difference(claimed, by_hand) is None
    try:
        growth = dw.plan(dw.trace(pair.old, old, *pair.inputs), target=new, target_apply=pair.new)
    except Exception as error:
        if not isinstance(error, ValueError) or "cannot plan this growth" not in str(error):
            return failed("CRASH", f"{type(error).__name__}: {error}")
        tally["refused"] += 1
        return failed("REFUSED", error) if agree and not pair.may_hide else None
    tally["accepted"] += 1
    key = jax.random.key(seed)
    by_plan = program(lambda arrays: dw.grow(arrays, growth, key=key), old)
    if (wrong := oracle.difference(claimed, by_plan)) is not None:
        return failed("WRONG", wrong)
    if pair.rounds and not growth.notes and oracle.difference(pair.new, by_plan) is not None:
        return failed("NO NOTE", "the larger program rounds otherwise")
    return None


# How pairs are made -------------------------------------------------------------------------------


class Random:
    """Random choices for a pair, with many positions and units if it is large."""

    def __init__(self, kind: str, seed: int, is_large: bool) -> None:
        self._rng = np.random.default_rng((zlib.crc32(kind.encode()), seed))
        self.is_large = is_large

    def size(self, low: int, high: int) -> int:
        """Returns a size from low to high; a large one is five times as large."""
        return self.whole(low, high) * (5 if self.is_large else 1)

    def whole(self, low: int, high: int) -> int:
        """Returns a whole number from low to high."""
        return int(self._rng.integers(low, high + 1))

    def number(self, low: float, high: float) -> float:
        return round(float(self._rng.uniform(low, high)), 3)

    def one(self, choices: Sequence[Any]) -> Any:
        return choices[self.whole(0, len(choices) - 1)]

    def two(self, choices: Sequence[Any]) -> tuple[Any, Any]:
        """Returns two choices, the same one at times."""
        a = self.whole(0, len(choices) - 1)
        b = (a + self.whole(1, len(choices) - 1)) % len(choices) if self.whole(0, 5) else a
        return choices[a], choices[b]

    def table(self, *shape: int) -> np.ndarray:
        return self._rng.normal(size=shape)


# What makes a pair of each kind.
KINDS: dict[str, Callable[[Random], Pair]] = {}
_ACTIVATIONS: tuple[Function, ...] = (jnp.tanh, jax.nn.relu, jax.nn.gelu, jnp.sin, jax.nn.silu)


def made(kind: str, seed: int, is_large: bool = False) -> Pair:
    """Returns a pair of a kind."""
    return KINDS[kind](Random(kind, seed, is_large))


def enter(kind: str, make: Callable[[Random], Pair]) -> None:
    assert kind not in KINDS
    KINDS[kind] = make


def option(choices: Callable[[Random], Sequence[Any]], **known: Any) -> Callable[..., Any]:
    """Enters a function of numbers ``[batch, time, units]`` and of what differs.

    It is put before or behind layers that grow.

    Args:
        choices: what there is to choose from.
        **known: attributes of the pairs.
    """

    def register(function: Function) -> Function:
        def make(random: Random) -> Pair:
            return around(random, function, *random.two(choices(random)), **known)

        enter(function.__name__, make)
        return function

    return register


def choose(*choices: Any, **known: Any) -> Callable[..., Any]:
    """Enters a function as ``option`` does, with the same choices each time."""
    return option(lambda _: choices, **known)


def around(random: Random, function: Function, one: Any, other: Any, **known: Any) -> Pair:
    """Returns a pair of programs that apply a function to their inputs or to a layer's outputs."""
    batch, time, units = random.whole(2, 3), random.size(4, 6), random.size(4, 6)
    is_first, has_head, is_deep, has_skip, has_norm = (bool(random.whole(0, 1)) for _ in range(5))
    act, other_act = random.one(_ACTIVATIONS), random.one(_ACTIVATIONS)
    x = jax.ShapeDtypeStruct((batch, time, units), jnp.float64)

    def flat(value: Any, x: Any) -> list[Any]:
        found = jax.tree.leaves(function(x, value))
        return [jnp.reshape(y, (batch, -1)).astype(y.dtype) for y in found]

    count = sum(y.shape[1] for y in jax.eval_shape(lambda x: flat(one, x), x))
    inside = count if is_first else units
    sizes = {name: (n, n + random.whole(1, 4)) for name in "nk" for n in [random.size(3, 7)]}
    outside = random.whole(2, 4) if is_first else units
    has_skip &= inside == outside
    leaves = {"up": f"{inside} n", "bias": "n", "down": f"{'k' if is_deep else 'n'}> {outside}"}
    if is_deep:
        leaves |= {"middle": "n> k"}
    if has_head and not is_first:
        leaves |= {"head": f"{count} 3"}

    def layers(p: Arrays, x: Any) -> Any:
        rank = (1,) * (x.ndim - 1)
        h = x
        if has_norm:
            h = h / jnp.sqrt(jnp.mean(h * h, -1, keepdims=True) + 1e-3)
        h = act(h @ p["up"] + p["bias"].reshape(*rank, -1))
        if is_deep:
            h = other_act(h @ p["middle"])
        return h @ p["down"] + (x if has_skip else 0)

    def made_of(value: Any) -> Function:
        def apply(p: Arrays, x: Any) -> Any:
            if is_first:
                found = [jnp.asarray(y, jnp.float64) for y in flat(value, x)]
                return layers(p, jnp.concatenate(found, 1))
            found = flat(value, layers(p, x))
            if has_head:
                found = [jnp.asarray(y, jnp.float64) for y in found]
                return jnp.concatenate(found, 1) @ p["head"]
            return found

        return apply

    return Pair((one, other), made_of(one), made_of(other), leaves, sizes, (x,), **known)


def inside(choices: Callable[[Random], Sequence[Any]], **known: Any) -> Callable[..., Any]:
    """Enters a function of hidden units ``[batch, time, units]`` and of what differs."""

    def register(function: Function) -> Function:
        def make(random: Random) -> Pair:
            return hidden(random, function, *random.two(choices(random)), **known)

        enter(function.__name__, make)
        return function

    return register


def hidden(random: Random, function: Function, one: Any, other: Any, **known: Any) -> Pair:
    """Returns a pair of programs that apply a function to hidden units, which grow."""
    batch, time, units = random.whole(2, 3), random.size(4, 6), random.size(2, 5)
    has_bias, is_deep = (bool(random.whole(0, 1)) for _ in range(2))
    act = random.one(_ACTIVATIONS)
    sizes = {name: (n, n + random.whole(1, 4)) for name in "nk" for n in [random.size(3, 7)]}
    leaves = {"up": f"{units} n", "gate": f"{units} n", "down": "n> 3"}
    if has_bias:
        leaves |= {"bias": "n"}
    if is_deep:
        leaves |= {"first": f"{units} k", "up": "k> n", "gate": "k> n"}

    def made_of(value: Any) -> Function:
        def apply(p: Arrays, x: Any) -> Any:
            if is_deep:
                x = act(x @ p["first"])
            h, gate = x @ p["up"], x @ p["gate"]
            if has_bias:
                h = h + p["bias"].reshape(1, 1, -1)
            return function(h, gate, value) @ p["down"]

        return apply

    x = jax.ShapeDtypeStruct((batch, time, units), jnp.float64)
    return Pair((one, other), made_of(one), made_of(other), leaves, sizes, (x,), **known)


def looked_up(choices: Callable[[Random], Sequence[Any]], **known: Any) -> Callable[..., Any]:
    """Enters a function of a table ``[8, units]``, ids ``[batch, time]`` and of what differs."""

    def register(function: Function) -> Function:
        def make(random: Random) -> Pair:
            one, other = random.two(choices(random))
            batch, time, units = random.whole(2, 3), random.whole(4, 6), random.whole(2, 4)
            act = random.one(_ACTIVATIONS)
            n = random.whole(3, 7)

            def made_of(value: Any) -> Function:
                def apply(p: Arrays, ids: Any) -> Any:
                    return act(function(p["table"], ids, value) @ p["up"]) @ p["down"]

                return apply

            ids = jax.ShapeDtypeStruct((batch, time), jnp.int32)
            leaves = {"table": f"8 {units}", "up": f"{units} n", "down": "n> 3"}
            sizes = {"n": (n, n + random.whole(1, 4))}
            return Pair((one, other), made_of(one), made_of(other), leaves, sizes, (ids,), **known)

        enter(function.__name__, make)
        return function

    return register


def whole(make: Callable[[Random], Pair]) -> Callable[[Random], Pair]:
    """Enters a function that makes whole pairs."""
    enter(make.__name__, make)
    return make


# Axes ---------------------------------------------------------------------------------------------


@choose(-1, 1, 2)
def axis_of_softmax(x: Any, axis: int) -> Any:
    return jax.nn.softmax(x, axis)


@choose(-1, 1, 2)
def axis_of_cumsum(x: Any, axis: int) -> Any:
    return jnp.cumsum(x, axis)


@choose(True, False)
def cumsum_reversed(x: Any, reverse: bool) -> Any:
    return lax.cumsum(x, 1, reverse=reverse)


@choose(lax.cummax, lax.cummin, lax.cumsum)
def cumulated(x: Any, function: Any) -> Any:
    return function(x, axis=1)


@choose(1, 2, -1)
def axis_of_a_flip(x: Any, axis: int) -> Any:
    return jnp.flip(x, axis)


@choose(-1, 1, 2, 0)
def roll(x: Any, by: int) -> Any:
    return jnp.roll(x, by, 1)


@choose(1, 2, -1)
def axis_of_sort(x: Any, axis: int) -> Any:
    return jnp.sort(x, axis)


@choose(True, False)
def order_of_sort(x: Any, descending: bool) -> Any:
    return jnp.sort(x, -1, descending=descending)


@choose("C", "F")
def order_of_reshape(x: Any, order: Any) -> Any:
    return jnp.reshape(x, (x.shape[0], -1), order=order)


@choose((0, 1, 2), (0, 2, 1))
def transposed(x: Any, axes: Any) -> Any:
    return jnp.transpose(x, axes)


@choose((1, 2), (2, 1), (-2, -1))
def swapped(x: Any, axes: Any) -> Any:
    return jnp.swapaxes(x, *axes)


@choose(jnp.sum, jnp.mean, jnp.max, jnp.min, jnp.prod)
def reduction(x: Any, function: Any) -> Any:
    return function(x, 1)


@choose((1, 0), (1, 1), (2, 0))
def variance(x: Any, known: Any) -> Any:
    axis, ddof = known
    return jnp.var(x, axis, ddof=ddof)[:, :1]


@choose(0, 1, -1)
def diagonal(x: Any, k: int) -> Any:
    return jnp.triu(x, k)


@choose(jnp.tile, jnp.repeat)
def tiled(x: Any, function: Any) -> Any:
    return function(x, 2, -1) if function is jnp.repeat else function(x, (1, 1, 2))


# Slices and indices -------------------------------------------------------------------------------


@choose((0, 2, 1), (0, 4, 2), (1, 3, 1), (2, 4, 1), (0, 3, 2))
def slices(x: Any, known: Any) -> Any:
    start, stop, step = known
    return x[..., start:stop:step]


@choose("slices", "split", "exchanged", "dynamic")
def halves(x: Any, how: str) -> Any:
    x = x[..., :4]
    if how == "split":
        a, b = jnp.split(x, 2, -1)
    elif how == "dynamic":
        a, b = (lax.dynamic_slice_in_dim(x, k, 2, 2) for k in (0, 2))
    else:
        a, b = x[..., :2], x[..., 2:]
    return jnp.tanh(b) * a if how == "exchanged" else jnp.tanh(a) * b


@choose([0, 2, 1], [0, 1, 2], [2, 2, 0], [0, -1, 1])
def gathered(x: Any, places: Any) -> Any:
    return x[:, jnp.array(places)]


@choose("fill", "clip", "wrap")
def mode_of_take(x: Any, mode: str) -> Any:
    return jnp.take(x, jnp.arange(-2, 8), 1, mode=mode, fill_value=0.5)


@choose(0.0, 1.0, 0.5)
def fill_value_of_take(x: Any, value: float) -> Any:
    return jnp.take(x, jnp.arange(9), 1, mode="fill", fill_value=value)


@choose("add", "set", "max", "multiply")
def update_of_entries(x: Any, how: str) -> Any:
    return getattr(x.at[:, jnp.array([0, 1, 1])], how)(2 * x[:, 1:4])


@choose("drop", "clip")
def mode_of_an_update(x: Any, mode: str) -> Any:
    return x.at[:, jnp.array([1, 9])].set(x[:, :2], mode=mode)


@choose(0, 1, 2, 9)
def start_of_a_dynamic_slice(x: Any, start: int) -> Any:
    return lax.dynamic_slice_in_dim(x, start, 2, 1)


@choose(jnp.argmax, jnp.argmin)
def places_of_extremes(x: Any, function: Any) -> Any:
    return jnp.take_along_axis(x, function(jnp.sin(x), 1)[:, None], 1)


@choose("top", "bottom", "sorted")
def largest_entries(x: Any, how: str) -> Any:
    if how == "sorted":
        return jnp.flip(jnp.sort(x, -1), -1)[..., :2]
    return lax.top_k(x, 2)[0] if how == "top" else -lax.top_k(-x, 2)[0]


@choose(-1, 0, 1)
def order_of_concatenation(x: Any, which: int) -> Any:
    parts = [jnp.sin(x), jnp.tanh(x)]
    return jnp.concatenate(parts[:: which or -1], -1)


@choose([0, 0, 1, 1], [0, 1, 0, 1], [0, 1, 1, 0])
def segments(x: Any, ids: Any) -> Any:
    return jax.vmap(lambda x: jax.ops.segment_sum(x[:4], jnp.array(ids), 2))(x)


# Padding, convolution, pooling --------------------------------------------------------------------


@choose((1, 0), (0, 1))
def side_of_padding(x: Any, pad: Any) -> Any:
    return jnp.pad(x, ((0, 0), pad, (0, 0)))


@choose(0.0, 1.0, -2.0)
def value_of_padding(x: Any, value: float) -> Any:
    return jnp.pad(x, ((0, 0), (1, 1), (0, 0)), constant_values=value)


@choose("constant", "edge", "reflect", "wrap", "symmetric")
def mode_of_padding(x: Any, mode: Any) -> Any:
    return jnp.pad(x, ((0, 0), (2, 1), (0, 0)), mode=mode)


def _window(random: Random, kernel: Any, **known: Any) -> Function:
    def apply(x: Any) -> Any:
        dims = ("NWC", "WIO", "NWC")
        kernel_ = jnp.asarray(kernel[:, : x.shape[2]])
        return lax.conv_general_dilated(x, kernel_, dimension_numbers=dims, **known)

    return apply


@option(
    lambda r: [
        _window(r, table, window_strides=(1,), padding=[pad], rhs_dilation=(dilation,))
        for table in [r.table(2, 30, 3)]
        for pad, dilation in (((1, 0), 1), ((0, 1), 1), ((2, 0), 2), ((1, 1), 2), ((0, 2), 2))
    ]
)
def padding_and_dilation(x: Any, convolution: Any) -> Any:
    return convolution(x)


@option(
    lambda r: [
        _window(r, table[::step], window_strides=(2,), padding=pad)
        for table in [r.table(2, 30, 3)]
        for pad in ("SAME", [(0, 1)], [(1, 0)])
        for step in (1, -1)
    ]
)
def strided_convolution(x: Any, convolution: Any) -> Any:
    return convolution(x[:, :4])


@choose(
    (lax.add, 0.0, (1, 1)),
    (lax.max, -jnp.inf, (1, 1)),
    (lax.min, jnp.inf, (1, 1)),
    (lax.add, 0.0, (2, 0)),
    (lax.max, -jnp.inf, (0, 2)),
)
def pooling(x: Any, known: Any) -> Any:
    function, first, pad = known
    return lax.reduce_window(x, first, function, (1, 3, 1), (1, 1, 1), ((0, 0), pad, (0, 0)))


@choose("full", "edges")
def count_of_average(x: Any, which: str) -> Any:
    def summed(x: Any) -> Any:
        return lax.reduce_window(x, 0.0, lax.add, (1, 3, 1), (1, 1, 1), "SAME")

    return summed(x) / (3.0 if which == "full" else summed(jnp.ones_like(x)))


@choose("nearest", "linear", "cubic")
def interpolation(x: Any, method: str) -> Any:
    return jax.image.resize(x, (x.shape[0], 7, x.shape[2]), method)


# Numbers ------------------------------------------------------------------------------------------


@option(lambda r: [r.number(0.3, 2) for _ in range(3)])
def factor(x: Any, number: float) -> Any:
    return x * number


@choose(1e-3, 1e-5, 1e-2)
def epsilon_of_a_norm(x: Any, eps: float) -> Any:
    return x / jnp.sqrt(jnp.mean(x * x, -1, keepdims=True) + eps)


@choose(True, False)
def centred(x: Any, is_centred: bool) -> Any:
    mean = jnp.mean(x, -1, keepdims=True)
    x = x - mean if is_centred else x + 0 * mean
    return x / jnp.sqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-3)


@option(lambda r: [r.table(r.whole(4, 4)) for _ in range(2)])
def table_of_numbers(x: Any, numbers: Any) -> Any:
    return x[..., :4] * jnp.asarray(numbers)[None, None]


@choose((jnp.sin, jnp.cos), (jnp.cos, jnp.sin))
def sines_and_cosines(x: Any, functions: Any) -> Any:
    angle = jnp.arange(x.shape[1])[:, None] * 0.3 ** jnp.arange(2)[None]
    return x[..., :4] + jnp.concatenate([f(angle) for f in functions], -1)[None]


@choose(1e4, 1e3, 5e3)
def base_of_frequencies(x: Any, base: float) -> Any:
    angle = jnp.arange(x.shape[1])[:, None] / base ** (jnp.arange(2)[None] / 2)
    sin, cos = jnp.sin(angle)[None], jnp.cos(angle)[None]
    a, b = x[..., :2], x[..., 2:4]
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], -1)


@choose("halves", "interleaved")
def pairs_that_rotate(x: Any, how: str) -> Any:
    angle = jnp.arange(x.shape[1])[:, None] * 0.3 ** jnp.arange(2)[None]
    sin, cos = jnp.sin(angle)[None], jnp.cos(angle)[None]
    x = x[..., :4]
    a, b = (x[..., :2], x[..., 2:]) if how == "halves" else (x[..., ::2], x[..., 1::2])
    both = [a * cos - b * sin, a * sin + b * cos]
    return jnp.concatenate(both, -1) if how == "halves" else jnp.stack(both, -1).reshape(x.shape)


@choose((0.0, 1.0, True), (0.0, 1.0, False), (0.0, 2.0, True))
def ramp(x: Any, known: Any) -> Any:
    start, stop, endpoint = known
    return x * jnp.linspace(start, stop, x.shape[1], endpoint=endpoint)[None, :, None]


@choose(2, 3, 1)
def power(x: Any, exponent: int) -> Any:
    return jnp.tanh(x) ** exponent


@choose(1, 2, jnp.inf)
def order_of_a_norm(x: Any, order: Any) -> Any:
    return jnp.linalg.norm(x, order, -1)


@choose(0.0, 1.0, -1.0)
def value_for_nan(x: Any, value: float) -> Any:
    return jnp.nan_to_num(jnp.log(jnp.tanh(x)), nan=value, neginf=-9.0)


# Thresholds and branches --------------------------------------------------------------------------


@choose(3.0, 5.0, 8.0, 20.0)
def threshold_of_softplus(x: Any, threshold: float) -> Any:
    small = jnp.log1p(jnp.exp(jnp.minimum(x, threshold))) * 0.9
    return jnp.where(x > threshold, x, small)


@choose(1.0, 2.0, 10.0, 1e2, 1e4, 1e5)
def bound_of_a_clip(x: Any, bound: float) -> Any:
    return jnp.clip(x, -bound, bound)


@choose(1e2, 1e4, None)
def bound_or_none(x: Any, bound: float | None) -> Any:
    return x if bound is None else jnp.minimum(x, bound)


@choose(1e2, 1e4)
def number_that_occurs_twice(x: Any, bound: float) -> Any:
    return 1e4 * jnp.tanh(x) + 1e2 * jnp.sin(x) + jnp.minimum(x, bound)


@option(lambda r: [(c, f) for c in [r.one([3.0, 1e2, 1e4])] for f in (jnp.sin, jnp.tanh, jnp.abs)])
def branch_beyond(x: Any, known: Any) -> Any:
    threshold, function = known
    return jnp.where(x > threshold, function(x), x)


@option(lambda r: [(c, f) for c in [r.one([0.5, 1e4])] for f in (jnp.sin, jnp.tanh, jnp.abs)])
def branch_of_cond(x: Any, known: Any) -> Any:
    threshold, function = known
    return lax.cond(jnp.max(x) > threshold, function, lambda x: x, x)


@choose((-1.0, 1.0), (0.0, 1.0), (-1.0, 2.0), (None, 1.0))
def sides_of_a_clip(x: Any, bounds: Any) -> Any:
    return jnp.clip(x, *bounds)


@choose(0.0, 0.5, -0.5, 1e3)
def threshold_of_where(x: Any, threshold: float) -> Any:
    return jnp.where(x > threshold, jnp.sin(x), jnp.tanh(x) + 2)


@choose(lax.gt, lax.ge)
def bound_itself(x: Any, compare: Any) -> Any:
    return jnp.where(compare(x, jnp.zeros_like(x)), 1.0, 2.0) + jnp.sin(x)


@choose(lax.gt, lax.ge)
def bound_itself_of_relu(x: Any, compare: Any) -> Any:
    return jnp.where(compare(x, jnp.zeros_like(x)), x, 0.0)


@choose((0, 1), (1, 0))
def branches_of_where(x: Any, order: Any) -> Any:
    both = jnp.sin(x), jnp.cos(x)
    return jnp.where(x > 0.1, both[order[0]], both[order[1]])


@choose(0.0, 1.0, 1e3)
def threshold_of_cond(x: Any, threshold: float) -> Any:
    return lax.cond(jnp.mean(jnp.abs(x)) > threshold, jnp.sin, jnp.tanh, x)


@choose((jnp.sin, jnp.cos, jnp.tanh), (jnp.cos, jnp.sin, jnp.tanh), (jnp.sin, jnp.cos, jnp.abs))
def branches_of_switch(x: Any, branches: Any) -> Any:
    place = jnp.sum(x > 0, dtype=jnp.int32) % 3
    return lax.switch(place, branches, x)


@choose(2, 3, 4)
def rounds_of_a_loop(x: Any, count: int) -> Any:
    return lax.fori_loop(0, count, lambda _, x: jnp.sin(x) + x, x)


@choose(2.0, 4.0, 1e2)
def bound_of_while(x: Any, bound: float) -> Any:
    return lax.while_loop(lambda x: jnp.mean(jnp.abs(x)) < bound, lambda x: 2 * x + 0.1, x)


@choose(1, 2, 3)
def unroll_of_a_scan(x: Any, unroll: int) -> Any:
    def step(carry: Any, row: Any) -> Any:
        carry = jnp.tanh(carry + row)
        return carry, carry

    rows = jnp.swapaxes(x, 0, 1)[:4]
    return jnp.swapaxes(lax.scan(step, rows[0], rows, unroll=unroll)[1], 0, 1)


@choose((False, 0.0), (True, 0.0), (False, 1.0))
def direction_and_start_of_a_scan(x: Any, known: Any) -> Any:
    reverse, start = known

    def step(carry: Any, row: Any) -> Any:
        carry = jnp.tanh(0.5 * carry + row)
        return carry, carry

    rows = jnp.swapaxes(x, 0, 1)
    first = jnp.full_like(rows[0], start)
    return jnp.swapaxes(lax.scan(step, first, rows, reverse=reverse)[1], 0, 1)


# Casts and rounding -------------------------------------------------------------------------------


@choose(None, jnp.int32, jnp.int64)
def cast_to_integers(x: Any, dtype: Any) -> Any:
    return 3 * x if dtype is None else jnp.clip(3 * x, -1e9, 1e9).astype(dtype).astype(x.dtype)


@choose(jnp.floor, jnp.ceil, jnp.round, jnp.trunc)
def rounded(x: Any, function: Any) -> Any:
    return function(2.5 * x)


@choose(jnp.uint8, jnp.int8, jnp.int32)
def width_of_integers(x: Any, dtype: Any) -> Any:
    whole = jnp.round(300 * jnp.tanh(x)).astype(jnp.int32)
    return whole.astype(dtype).astype(x.dtype)


@choose(bool, None)
def cast_to_booleans(x: Any, dtype: Any) -> Any:
    return x if dtype is None else x.astype(dtype).astype(x.dtype)


@choose(jnp.float64, jnp.bfloat16, jnp.float32, rounds=True)
def cast_to_narrow_floats(x: Any, dtype: Any) -> Any:
    return jnp.tanh(x).astype(dtype).astype(jnp.float64)


@choose(None, jax.lax.Precision.HIGHEST, jax.lax.Precision.DEFAULT)
def precision(x: Any, precision: Any) -> Any:
    return jnp.einsum("bti,bsi->bts", x, x, precision=precision)


@choose((8, 7), (5, 10), (11, 52))
def reduced_precision(x: Any, bits: Any) -> Any:
    return lax.reduce_precision(jnp.tanh(x), *bits)


# Operands, order, other words for the same --------------------------------------------------------


@choose(lambda a, b: a - b, lambda a, b: b - a)
def operands_of_a_difference(x: Any, function: Any) -> Any:
    return function(jnp.sin(x), jnp.tanh(x))


@choose(lambda a, b: a * b, lambda a, b: b * a)
def operands_of_a_product(x: Any, function: Any) -> Any:
    return function(jnp.sin(x), jnp.tanh(x))


@choose(lambda a, b: a / b, lambda a, b: b / a, lambda a, b: a * (1 / b))
def operands_of_a_quotient(x: Any, function: Any) -> Any:
    return function(jnp.cosh(jnp.sin(x)), 2 + jnp.tanh(x))


def length(a: Any, b: Any) -> Any:
    return jnp.sqrt(a * a + b * b)  # jnp.hypot has branches of its own in JAX 0.12


@choose(jnp.arctan2, lambda a, b: jnp.arctan2(b, a), length, lambda a, b: length(b, a))
def operands_of_an_angle(x: Any, function: Any) -> Any:
    return function(jnp.sin(x), jnp.cos(x))


@choose((0.5, 2.0), (2.0, 0.5))
def factors_exchanged(x: Any, factors: Any) -> Any:
    return jnp.tanh(factors[0] * x) + jnp.sin(factors[1] * x)


@choose("first", "second")
def lines_in_another_order(x: Any, which: str) -> Any:
    if which == "first":
        a, b = jnp.sin(x), jnp.tanh(x)
    else:
        b, a = jnp.tanh(x), jnp.sin(x)
    return a * b + b


@choose((0, 1), (1, 0))
def outputs_exchanged(x: Any, order: Any) -> Any:
    both = jnp.sin(x), jnp.tanh(x)
    return both[order[0]], both[order[1]]


@choose("einsum", "matmul", "dot_general", "sum", "exchanged")
def words_for_a_product(x: Any, word: str) -> Any:
    y = jnp.sin(x)
    if word == "einsum":
        return jnp.einsum("bti,bsi->bts", x, y)
    if word == "matmul":
        return x @ jnp.swapaxes(y, 1, 2)
    if word == "sum":
        return jnp.sum(x[:, :, None] * y[:, None], -1)
    a, b = (x, y) if word == "dot_general" else (y, x)
    return lax.dot_general(a, b, (((2,), (2,)), ((0,), (0,))))


@choose(
    jnp.tanh,
    lambda x: 2 * jax.nn.sigmoid(2 * x) - 1,
    lambda x: jnp.sinh(jnp.clip(x, -50, 50)) / jnp.cosh(jnp.clip(x, -50, 50)),
    jax.nn.hard_tanh,
    may_hide=True,
)
def words_for_tanh(x: Any, function: Any) -> Any:
    return function(x)


@choose(
    lambda x: x * x,
    jnp.square,
    lambda x: x**2,
    lambda x: jnp.abs(x) ** 2,
    lambda x: jnp.abs(x) * x,
)
def words_for_a_square(x: Any, function: Any) -> Any:
    return function(x)


@choose(
    lambda x: jax.nn.softmax(x),
    lambda x: jnp.exp(jax.nn.log_softmax(x)),
    lambda x: (
        jnp.exp(x - x.max(-1, keepdims=True))
        / jnp.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True)
    ),
    lambda x: jnp.exp(x) / jnp.sum(jnp.exp(x), -1, keepdims=True),
)
def words_for_softmax(x: Any, function: Any) -> Any:
    return function(x)


@choose(True, False)
def jitted(x: Any, is_jitted: bool) -> Any:
    function = lambda x: jnp.sin(x) * x  # noqa: E731
    return (jax.jit(function) if is_jitted else function)(x)


@choose(True, False)
def rematerialized(x: Any, is_remade: bool) -> Any:
    function = lambda x: jnp.sin(x) * x  # noqa: E731
    return (jax.checkpoint(function) if is_remade else function)(x)


@choose(True, False)
def mapped(x: Any, is_mapped: bool) -> Any:
    function = lambda x: x @ jnp.sin(x).T  # noqa: E731
    return jax.vmap(function)(x) if is_mapped else jnp.stack([function(row) for row in x])


@choose(jnp.real, jnp.imag, jnp.abs)
def parts_of_complex_numbers(x: Any, function: Any) -> Any:
    return function(x * jnp.exp(1j * jnp.tanh(x)))


@choose("backward", "ortho", "forward")
def norm_of_a_transform(x: Any, norm: str) -> Any:
    return jnp.abs(jnp.fft.rfft(x, axis=1, norm=norm))


@choose((0, True), (0, False), (1, True))
def stop_of_gradients(x: Any, known: Any) -> Any:
    add, is_stopped = known
    return jnp.sin(x) + add + (lax.stop_gradient(x) if is_stopped else x)


# Attention ----------------------------------------------------------------------------------------


def _attention(x: Any, mask: Any, scale: float = 0.5, value: Any = -jnp.inf) -> Any:
    scores = jnp.einsum("bti,bsi->bts", jnp.tanh(x), jnp.tanh(x)) * scale
    scores = jnp.where(mask(x.shape[1])[None], scores, value)
    return jnp.einsum("bts,bsi->bti", jax.nn.softmax(scores), x)


def _window_of(size: int, strict: bool = False) -> Function:
    def mask(time: int) -> Any:
        ahead = jnp.arange(time)[:, None] - jnp.arange(time)[None]
        return (ahead >= 0) & ((ahead < size) if strict else (ahead <= size))

    return mask


@option(
    lambda r: (
        [(16, False), (16, True), (17, True), (20, False)]
        if r.is_large
        else [(2, False), (3, True), (3, False), (2, True), (9, False)]
    )
)
def window_of_attention(x: Any, known: Any) -> Any:
    return _attention(x, _window_of(*known))


@choose(
    lambda t: jnp.tril(jnp.ones((t, t), bool)),
    lambda t: jnp.triu(jnp.ones((t, t), bool)),
    lambda t: jnp.ones((t, t), bool),
    lambda t: jnp.arange(t)[:, None] >= jnp.arange(t)[None],
    lambda t: ~jnp.triu(jnp.ones((t, t), bool), 1),
)
def mask_of_attention(x: Any, mask: Any) -> Any:
    return _attention(x, mask)


@choose(-jnp.inf, -1e9, -1e4, -2.0, may_hide=True)
def value_of_a_mask(x: Any, value: float) -> Any:
    return _attention(x, _window_of(3), value=value)


@choose(0.5, 0.25, 2**-0.5)
def scale_of_attention(x: Any, scale: float) -> Any:
    return _attention(x, _window_of(9), scale)


@option(lambda r: [12, 16, 40] if r.is_large else [1, 2, 3, 9])
def first_positions(x: Any, count: int) -> Any:
    is_first = jnp.arange(x.shape[1]) < count
    return jnp.where(is_first[None, :, None], jnp.sin(x), x)


@option(lambda r: [3, 12, 14] if r.is_large else [1, 2, 3])
def one_position(x: Any, place: int) -> Any:
    return x.at[:, place].multiply(2.0)


@option(lambda r: [5, 8, 15] if r.is_large else [1, 2, 3])
def period_of_positions(x: Any, period: int) -> Any:
    return x + jnp.sin((jnp.arange(x.shape[1]) % period)[None, :, None] * 1.0)


@choose(True, False)
def time_or_units_mixed(x: Any, is_time: bool) -> Any:
    x = x[:, :4, :4]
    return jnp.einsum("bti,bsi->bts" if is_time else "bti,btj->bij", jnp.sin(x), x)


# Hidden units -------------------------------------------------------------------------------------


@inside(lambda _: (0.01, 0.2, 0.1))
def slope_of_leaky_relu(h: Any, gate: Any, slope: float) -> Any:
    return jax.nn.leaky_relu(h, slope)


@inside(lambda _: (True, False))
def gelu_is_approximate(h: Any, gate: Any, approximate: bool) -> Any:
    return jax.nn.gelu(h, approximate=approximate)


@inside(lambda _: (jax.nn.relu, jax.nn.relu6, jax.nn.silu, jax.nn.gelu, jnp.tanh))
def activation(h: Any, gate: Any, function: Any) -> Any:
    return function(h)


@inside(lambda _: (True, False))
def gate_is_first(h: Any, gate: Any, is_first: bool) -> Any:
    return jax.nn.silu(h) * gate if is_first else h * jax.nn.silu(gate)


@inside(lambda _: ((0.5, 2.0), (2.0, 0.5), (0.5, 0.5)))
def factors_of_hidden_units(h: Any, gate: Any, factors: Any) -> Any:
    return jnp.tanh(factors[0] * h) + jnp.sin(factors[1] * h)


@inside(lambda _: (3.0, 6.0, 20.0, 1e3))
def bound_of_hidden_units(h: Any, gate: Any, bound: float) -> Any:
    return jnp.clip(h, -bound, bound)


@inside(lambda _: (1, 2, 0))
def hidden_units_roll(h: Any, gate: Any, by: int) -> Any:
    return jnp.roll(jnp.tanh(h), by, 1)


@inside(lambda _: ((1, 0), (0, 1)))
def hidden_units_are_padded(h: Any, gate: Any, pad: Any) -> Any:
    return jnp.pad(jnp.tanh(h), ((0, 0), pad, (0, 0)))


@inside(lambda _: ("add", "sub", "exchanged"))
def hidden_units_are_combined(h: Any, gate: Any, how: str) -> Any:
    a, b = jnp.tanh(h), jnp.sin(gate)
    return a + b if how == "add" else a - b if how == "sub" else b - a


@inside(lambda _: (jnp.float64, jnp.bfloat16, jnp.float32), rounds=True)
def hidden_units_are_narrow(h: Any, gate: Any, dtype: Any) -> Any:
    return jnp.tanh(h).astype(dtype).astype(jnp.float64)


@inside(lambda _: (jnp.floor, jnp.round, lambda x: x))
def hidden_units_are_rounded(h: Any, gate: Any, function: Any) -> Any:
    return function(jnp.tanh(h) * 3)


@inside(lambda r: (8, 11, 14) if r.is_large else (1, 2, 3))
def first_hidden_units(h: Any, gate: Any, count: int) -> Any:
    is_first = jnp.arange(h.shape[-1]) < count
    return jnp.where(is_first[None, None], jnp.sin(h), jnp.tanh(h))


@inside(lambda _: (1, 2, 0))
def axis_of_hidden_cumsum(h: Any, gate: Any, axis: int) -> Any:
    h = jnp.tanh(h)
    return h if not axis else jnp.cumsum(h, 1) if axis == 1 else jnp.flip(jnp.cumsum(h, 1), 1)


@whole
def halves_of_a_fused_array(random: Random) -> Pair:
    """Which half of a fused array is the gate."""
    one, other = random.two(["first", "second", "split", "reshaped"])
    batch, units, n = random.whole(2, 3), random.whole(3, 5), random.whole(3, 6)

    def made_of(how: str) -> Function:
        def apply(p: Arrays, x: Any) -> Any:
            h = x @ p["up"]
            if how == "split":
                a, b = jnp.split(h, 2, -1)
            elif how == "reshaped":
                a, b = jnp.unstack(h.reshape(batch, 2, -1), axis=1)
            else:
                a, b = h[:, : h.shape[1] // 2], h[:, h.shape[1] // 2 :]
            return (a * jax.nn.silu(b) if how == "second" else jax.nn.silu(a) * b) @ p["down"]

        return apply

    x = jax.ShapeDtypeStruct((batch, units), jnp.float64)
    leaves = {"up": f"{units} 2*n", "down": "n> 3"}
    return Pair(
        (one, other), made_of(one), made_of(other), leaves, {"n": (n, n + random.whole(1, 4))}, (x,)
    )


@whole
def parts_of_attention(random: Random) -> Pair:
    """Where queries, keys and values lie in a fused array, and which axes scores are of."""
    numbers = ["qkv", "kqv", "vqk", "split", "transposed"]
    one, other = random.two(numbers)
    batch, time, units = random.whole(2, 3), random.whole(3, 5), random.whole(3, 5)
    n = random.whole(2, 4)
    grown = n + random.whole(1, 3)

    def made_of(how: str) -> Function:
        def apply(p: Arrays, x: Any) -> Any:
            h = (x @ p["up"]).reshape(batch, time, 3, 2, -1)
            order = how if how in ("qkv", "kqv", "vqk") else "qkv"
            if how == "split":
                parts = [part[:, :, 0] for part in jnp.split(h, 3, 2)]
            else:
                parts = [h[:, :, k] for k in range(3)]
            named = dict(zip(order, parts))
            q, k, v = (named[name] for name in "qkv")
            if how == "transposed":
                scores = jnp.einsum("bthd,bshd->bhst", k, q)
            else:
                scores = jnp.einsum("bthd,bshd->bhts", q, k)
            mixed = jnp.einsum("bhts,bshd->bthd", jax.nn.softmax(0.3 * scores), v)
            return mixed.reshape(batch, time, -1) @ p["down"]

        return apply

    x = jax.ShapeDtypeStruct((batch, time, units), jnp.float64)
    leaves = {"up": f"{units} 3*2*n", "down": "2*n> 3"}
    # By hand, queries and keys need zeros, too: those of one of both.
    return _Attention((one, other), made_of(one), made_of(other), leaves, {"n": (n, grown)}, (x,))


class _Attention(Pair):
    def grown(self, old: Arrays, rng: np.random.Generator) -> Arrays:
        found = super().grown(old, rng)
        before, after = self.sizes["n"]
        up = found["up"].reshape(-1, 3, 2, after)
        up[..., before:] = 0
        return found | {"up": up.reshape(found["up"].shape)}


# Ids ----------------------------------------------------------------------------------------------


@looked_up(lambda _: ("clip", "fill", "wrap", None), ids=(-3, 12))
def mode_of_a_lookup(table: Any, ids: Any, mode: Any) -> Any:
    return jnp.take(table, ids, 0, mode=mode, fill_value=0.0)


@looked_up(lambda _: (0.0, 1.0, 7.0), ids=(-3, 12))
def fill_value_of_a_lookup(table: Any, ids: Any, value: float) -> Any:
    return jnp.take(table, ids, 0, mode="fill", fill_value=value)


@looked_up(lambda _: (0, 1, 5, 7))
def id_of_padding(table: Any, ids: Any, padding: int) -> Any:
    return jnp.where((ids == padding)[..., None], 0.0, table[ids])


@looked_up(lambda _: ("take", "one_hot", "index"), ids=(-3, 12))
def words_for_a_lookup(table: Any, ids: Any, word: str) -> Any:
    if word == "one_hot":
        return jax.nn.one_hot(ids, 8) @ table
    return jnp.take(table, ids, 0, mode="clip") if word == "take" else table[ids]


@looked_up(lambda _: (1, 2, 7))
def ids_are_shifted(table: Any, ids: Any, by: int) -> Any:
    return table[(ids + by) % 8]


@looked_up(lambda _: (5, 20, 500), ids=(0, 900))
def largest_id(table: Any, ids: Any, last: int) -> Any:
    return table[jnp.where(ids > last, 1, ids) % 8]


@looked_up(lambda _: (20, 500, -1), ids=(-2, 600))
def special_id(table: Any, ids: Any, special: int) -> Any:
    return jnp.where((ids == special)[..., None], 1.0, table[ids % 8])


@looked_up(lambda _: ("sum", "mean", "max"))
def lookups_are_combined(table: Any, ids: Any, how: str) -> Any:
    return getattr(jnp, how)(table[ids], 1)


@looked_up(lambda _: (lax.lt, lax.le, lax.gt))
def comparison_of_ids(table: Any, ids: Any, compare: Any) -> Any:
    return table[ids] * jnp.where(compare(ids, jnp.full_like(ids, 3)), 1.0, -1.0)[..., None]


# Tables that follow from sizes, and masks ---------------------------------------------------------

_TABLES: dict[str, Function] = {
    "first half": lambda k, n: k < n // 2,
    "all but two": lambda k, n: k < n - 2,
    "first two": lambda k, n: k < 2,
    "last one": lambda k, n: k == n - 1,
    "most": lambda k, n: k < 4 * n // 5,
    "thresholds": lambda k, n: (k // max(n // 4, 1)) % 2 == 1,
    "every third": lambda k, n: k % 3 == 0,
}


@inside(lambda _: tuple(_TABLES), follows_size=True)
def table_of_hidden_units(h: Any, gate: Any, which: str) -> Any:
    size = h.shape[-1]
    return h * jnp.where(_TABLES[which](jnp.arange(size), size), 1.0, -1.0)[None, None]


@inside(lambda _: tuple(_TABLES), follows_size=True)
def numpy_table_of_hidden_units(h: Any, gate: Any, which: str) -> Any:
    size = h.shape[-1]
    table = np.asarray(_TABLES[which](np.arange(size), size))
    return jnp.tanh(h) * np.where(table, 0.5, 2.0)[None, None]


@whole
def scores_behind_a_mask(random: Random) -> Pair:
    """Queries and keys grow; a mask of zeros and ones hides most of what their scores are."""
    batch, time, units = random.whole(2, 3), random.size(4, 6), random.size(2, 5)
    n, low = random.size(3, 7), random.one((-1e4, -1e9, float(np.finfo(np.float32).min)))
    one, other = random.two(("plain", "unit", "mean square"))

    def normed(a: Any, how: str) -> Any:
        size = {"unit": jnp.sum, "mean square": jnp.mean}.get(how)
        return a if size is None else a / jnp.sqrt(size(a * a, -1, keepdims=True) + 1e-3)

    def made_of(how: str) -> Function:
        def apply(p: Arrays, x: Any, mask: Any) -> Any:
            q, k = (normed(x @ p[name], how) for name in "qk")
            hidden = (1.0 - mask[:, None].astype(float)) * low
            scores = jnp.einsum("bqd,bkd->bqk", q, k) + hidden
            return jax.nn.softmax(scores, -1) @ x

        return apply

    x = jax.ShapeDtypeStruct((batch, time, units), jnp.float64)
    mask = jax.ShapeDtypeStruct((batch, time), jnp.int32)
    leaves, sizes = {"q": f"{units} n", "k": f"{units} n>"}, {"n": (n, n + random.whole(1, 4))}
    functions = made_of(one), made_of(other)
    return Pair((one, other), *functions, leaves, sizes, (x, mask), ids=(0, 2), follows_size=True)


def main(first: int, count: int, *kinds: str) -> None:
    """Looks for failures; without names of kinds, in all kinds, of small and large pairs."""
    tally: collections.Counter[str] = collections.Counter()
    by_kind: collections.Counter[tuple[str, str]] = collections.Counter()
    for kind in kinds or KINDS:
        for seed in range(first, first + count):
            for is_large in (False, True):
                tally["pairs"] += 1
                if (found := failure(kind, seed, is_large=is_large, tally=tally)) is not None:
                    tally[found.status] += 1
                    by_kind[found.status, kind] += 1
                    if by_kind[found.status, kind] <= 2:
                        print(found, flush=True)
    for (status, kind), number in sorted(by_kind.items()):
        print(f"{number:4} {status} {kind}")
    print(len(kinds or KINDS), "kinds", dict(tally))


if __name__ == "__main__":
    import conftest  # noqa: F401, sets what tests run with

    main(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
