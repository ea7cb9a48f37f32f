"""Draws random variables and inputs of both networks: ``FAMILIES``, ``Samples``.

Two networks that are equal at a random point of a piece are equal on the whole piece. So a few
samples are enough if they lie in many pieces: small and large numbers, zeros, equal rows, ids that
repeat. If a network is not finite for normal random numbers, for example because of a negative
variance, other numbers are drawn (``MODES``).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from dogwood_jax._base.draw import random_keys
from dogwood_jax._growth.growth import Growth
from dogwood_jax._widths.layout import units_along
from dogwood_jax._widths.roles import is_quantized
from dogwood_jax._widths.widths import Kind, Leaf

# A program: the path of each argument (None for an input) with its shape and dtype.
Arguments = Sequence[tuple[str | None, Any]]


@dataclass(frozen=True)
class SampleFamily:
    """A kind of sample.

    Attributes:
        old: the scale of old weights: a number, ``"fan"`` for one over the root of the fan-in, or
            ``"mixed"`` for 0.001 or 1, at random for each array.
        new: the scale of new weights.
        inputs: the scale of inputs.
        rows: the pattern of inputs. With ``"a zero column"``, old weights have one, too, so the
            first unit of each layer is zero. With ``"negative"``, old weights are negative and
            inputs positive, so a new zero is the largest; with ``"one sign"``, all old weights of
            an array have the same sign. With ``"rows of one sign"``, old weights are negative, and
            each row of an input is positive or negative. With ``"flags"``, every second input has
            only zeros and ones, most of them ones. With ``"opposed"``, the second half of the units
            of a width has the weights of the first half with the opposite sign.
        biases: whether new biases and scales are random; if not, they are zeros and ones.
    """

    old: float | Literal["fan", "mixed"]
    new: float
    inputs: float
    rows: Literal[
        "normal",
        "zeros",
        "a zero row",
        "a zero column",
        "equal",
        "ids beyond",
        "positive",
        "negative",
        "one sign",
        "rows of one sign",
        "flags",
        "a zero row of weights",
        "signed scales",
        "opposed",
    ] = "normal"
    biases: bool = False

    def __str__(self) -> str:
        """Describes the sample in an error."""
        if self.rows == "ids beyond":
            return "ids that are out of range"
        if self.rows == "zeros":
            return "inputs that are zero"
        if self.rows == "a zero row":
            return "inputs with a row of zeros"
        if self.rows == "a zero column":
            return "inputs and weights with a column of zeros"
        if self.rows == "equal":
            return "inputs with equal rows"
        if self.rows == "a zero row of weights":
            return "weights with a row of zeros"
        if self.rows == "flags":
            return "inputs of zeros and ones"
        if self.rows == "opposed":
            return "weights that are opposed in half of the units"
        if self.rows == "signed scales":
            return "scales of both signs"
        if self.rows == "one sign":
            return "positive inputs, and weights of one sign in each array"
        if self.rows == "rows of one sign":
            return "negative weights, and inputs with rows of one sign"
        if self.rows in _OF_ONE_SIGN:
            return f"positive inputs and {self.rows} weights"
        if self is LARGE:
            return "inputs around 1000"
        if self.inputs > 1:
            return "inputs around 1000, with old weights around 0.001 and new ones around 1"
        return "random inputs"


FAMILIES = (
    SampleFamily("fan", 1.0, 1.0),
    SampleFamily("fan", 1.0, 1.0, "a zero row"),
    SampleFamily(1e-3, 1.0, 1e3),
    SampleFamily(1e-3, 1.0, 1e3, biases=True),
    SampleFamily(1e3, 1e-3, 1e-3, biases=True),
    SampleFamily("mixed", 1.0, 1.0, "equal", biases=True),
    SampleFamily("fan", 1.0, 1.0, "zeros"),
    SampleFamily("fan", 1.0, 1.0, "a zero column"),
)

# Those that differ if inputs hold neither floats nor booleans, but ids or keys.
OF_WEIGHTS = tuple(one for one in FAMILIES if one.rows not in ("a zero row", "zeros"))

# Usual new weights and small old ones, if few other samples are finite, as with acos.
SMALL = SampleFamily(1e-3, 1.0, 1.0)

# For new units that are zero: zero is the largest value if all others are negative. After two
# layers, products of negative weights are positive, so each array has a sign of its own in some.
SIGNED = (
    SampleFamily("fan", 1.0, 1.0, "positive"),
    SampleFamily("fan", 1.0, 1.0, "negative"),
    *(3 * (SampleFamily("fan", 1.0, 1.0, "one sign"),)),
)

# For units that are compared with each other. A mean of units is the largest or the smallest for
# some weights only: opposed or large ones. In rows of one sign, a relu returns zeros or none.
COMPARED = (
    *(2 * (SampleFamily("fan", 1.0, 1.0, "rows of one sign"),)),
    *(2 * (SampleFamily("fan", 1.0, 1.0, "opposed"),)),
    *(2 * (SampleFamily(4.0, 1.0, 1.0, biases=True),)),
)

# Masks of zeros and ones: ``(1 - mask) * -1e4`` must not hide all entries. Every second input is a
# mask: the inputs at even places in one sample, the inputs at odd places in the other.
FLAGS = 2 * (SampleFamily("fan", 1.0, 1.0, "flags"),)

# Hidden rows of zeros, as a table has for padding.
ZERO_ROW = SampleFamily("fan", 1.0, 1.0, "a zero row of weights")

# Scales are around one in a new network, but training may make them negative.
SCALES = SampleFamily("fan", 1.0, 1.0, "signed scales", biases=True)

# Large inputs, and new layers with random weights but no random biases.
LARGE = SampleFamily("fan", 1.0, 1e3)

# Ids that no table has: outputs are compared where the function is finite.
BEYOND = SampleFamily("fan", 1.0, 1.0, "ids beyond")

_OF_ONE_SIGN = "positive", "negative", "one sign", "rows of one sign"

Mode = Literal["normal", "positive", "unit", "one-hot"]
MODES: tuple[Mode, ...] = ("normal", "positive", "unit", "one-hot")


@dataclass(frozen=True)
class Samples:
    """Draws arguments of programs.

    Attributes:
        kinds: the kind of new entries of each array, by path.
        mode: the kind of numbers in old weights and inputs.
        ids: one more than the largest integer, unless ``more`` are larger.
        more: other integers, such as those that the program compares with.
        last: the largest integer that the network knows; None for no limit.
        seed: seed of the random numbers.
        merged: for each array that feeds merged units, axes and the places to copy entries from,
            see ``merged_units``. Units that become one unit then compute the same.
        opposed: for each array that makes units that grow, axes, the places to copy entries from,
            and their signs, see ``opposed_units``.
    """

    kinds: Mapping[str, Kind]
    mode: Mode = "normal"
    ids: int = 8
    more: frozenset[int] = frozenset()
    last: int | None = None
    seed: int = 0
    merged: Mapping[str, Sequence[tuple[int, np.ndarray]]] = field(default_factory=dict)
    opposed: Mapping[str, Sequence[tuple[int, np.ndarray, np.ndarray]]] = field(
        default_factory=dict
    )

    def variables(
        self, arguments: Arguments, family: SampleFamily, *, new: bool = False
    ) -> dict[str, Any]:
        """Returns random weights by path.

        Args:
            arguments: the arguments of a program.
            family: the kind of sample.
            new: whether they fill new entries of a larger network.
        """
        rng = np.random.default_rng((self.seed, int(new)))
        found = {}
        for place, (path, array) in enumerate(arguments):
            if path is not None:
                kind = self.kinds.get(path, "random")
                found[path] = self._weights(rng, array, kind, family, new, place)
                for axis, places in () if new else self.merged.get(path, ()):
                    found[path] = np.take(found[path], places, axis)
                is_opposed = family.rows == "opposed" and not new and _is_float(array)
                for axis, places, signs in self.opposed.get(path, ()) if is_opposed else ():
                    signs = signs.reshape(-1, *[1] * (array.ndim - axis - 1))
                    found[path] = signs * np.take(found[path], places, axis)
        return found

    def _weights(
        self, rng: Any, array: Any, kind: Kind, family: SampleFamily, new: bool, place: int
    ) -> Any:
        numbers = self._numbers(rng, array, kind, family, new)
        if family.rows == "a zero column" and not new and _is_float(array) and array.ndim:
            numbers[..., :1] = 0
        if family is ZERO_ROW and not new and _is_float(array) and array.ndim > 1:
            numbers[..., :1, :] = 0
        is_real = jnp.issubdtype(array.dtype, jnp.floating)
        if family.rows in _OF_ONE_SIGN and not new and is_real:
            numbers = self._sign(family, place) * np.abs(numbers)
        return numbers

    def _sign(self, family: SampleFamily, place: int) -> int:
        """Returns the sign of an array's weights; three seeds give neighbors all combinations."""
        if family.rows != "one sign":
            return 1 if family.rows == "positive" else -1
        return -1 if ((place + 1) & (1 + self.seed % 3)).bit_count() % 2 else 1

    def _numbers(self, rng: Any, array: Any, kind: Kind, family: SampleFamily, new: bool) -> Any:
        shape, dtype = tuple(array.shape), array.dtype
        if new and is_quantized(dtype):  # as ``grow`` fills them
            return np.zeros(shape, np.int8)
        if not _is_float(array):
            return self._whole(rng, shape, dtype)
        if new and kind == "zeros" and not family.biases:
            return np.zeros(shape)
        if new and kind == "ones" and not family.biases:
            return np.ones(shape)
        mode = "normal" if new else self.mode  # as an initializer draws them
        scale = family.new if new else family.old
        if scale == "fan":
            fan = shape[-2] if len(shape) > 1 else 1
            scale = 1 / np.sqrt(max(fan, 1))
        elif scale == "mixed":
            scale = float(rng.choice([1e-3, 1.0]))
        numbers = rng.normal(size=shape)
        if jnp.issubdtype(dtype, jnp.complexfloating):
            numbers = numbers + 1j * rng.normal(size=shape)
        elif kind == "ones" or mode == "positive":
            numbers = np.exp(numbers / 2)
            if family is SCALES and mode == "normal" and not new:
                numbers = numbers * rng.choice([-1.0, 1.0], size=shape)
        elif mode in ("unit", "one-hot"):
            numbers = rng.uniform(size=shape)
        if mode == "one-hot" and len(shape) > 1 and shape[-1]:
            return np.eye(shape[-1])[rng.integers(shape[-1], size=shape[:-1])]
        if mode == "unit":
            return numbers
        if mode == "positive" and len(shape) > 1 and shape[-1] == shape[-2]:
            return numbers @ np.swapaxes(numbers, -1, -2) + np.eye(shape[-1])
        return numbers * scale

    def inputs(self, arguments: Arguments, family: SampleFamily) -> list[Any]:
        """Returns random inputs."""
        rng = np.random.default_rng((self.seed, 2))
        arrays = [array for path, array in arguments if path is None]
        return [
            _flags(rng, array)
            if family.rows == "flags" and (place + self.seed) % 2 and not _is_key(array)
            else self._input(rng, array, family)
            for place, array in enumerate(arrays)
        ]

    def _input(self, rng: Any, array: Any, family: SampleFamily) -> Any:
        shape, dtype = tuple(array.shape), array.dtype
        if not _is_float(array):
            if dtype == np.bool_ and family.rows != "a zero row":
                return np.ones(shape, bool)
            if family is BEYOND and jnp.issubdtype(dtype, jnp.signedinteger):
                beyond = np.resize([9, -1, 9999, 0, -9, 1, 99, 2], shape)
                return rng.permutation(beyond.ravel()).reshape(shape).astype(dtype)
            if dtype in (np.uint8, np.int8) and self.last is None:  # an image, unless ids grow
                return rng.integers(0, np.iinfo(dtype).max + 1, size=shape).astype(dtype)
            return self._whole(rng, shape, dtype)
        numbers = rng.normal(size=shape)
        if jnp.issubdtype(dtype, jnp.complexfloating):
            numbers = numbers + 1j * rng.normal(size=shape)
        elif self.mode in ("positive", "unit", "one-hot"):
            numbers = np.abs(numbers)
        if self.mode in ("unit", "one-hot"):
            return rng.uniform(size=shape)
        numbers = numbers * family.inputs
        if family.rows == "zeros":
            return np.zeros_like(numbers)
        if family.rows in _OF_ONE_SIGN and numbers.dtype.kind == "f":
            signs = rng.choice([-1.0, 1.0], size=(*shape[:-1], 1)[: len(shape)])
            return np.abs(numbers) * (signs if family.rows == "rows of one sign" else 1.0)
        if shape and shape[0] and family.rows == "a zero row":
            numbers[0] = 0
            if len(shape) > 2:
                numbers[:, 0] = 0
        if shape and shape[0] and family.rows == "equal":
            numbers[:] = numbers[:1]
        if shape and family.rows == "a zero column":
            numbers[..., :1] = 0
        return numbers

    def _whole(self, rng: Any, shape: tuple[int, ...], dtype: Any) -> Any:
        if jnp.issubdtype(dtype, jax.dtypes.prng_key):
            with jax.ensure_compile_time_eval():  # also where jit traces the caller
                return random_keys(
                    jnp.asarray(rng.integers(1 << 31, size=2), jnp.uint32), shape, dtype
                )
        if dtype == np.bool_:
            return rng.random(shape) < 0.7
        if _is_old_key(dtype, shape):
            return rng.integers(1 << 31, size=shape).astype(np.uint32)
        kind = np.int8 if dtype in (jnp.int4, jnp.uint4) else dtype
        may_be_negative = np.issubdtype(kind, np.signedinteger) and self.last is None
        least = min(self.more, default=0) if may_be_negative else 0
        known = [*range(self.ids), *sorted(n for n in self.more if not 0 <= n < self.ids)]
        known = [number for number in known if number >= least]
        if self.last is not None:
            known = [number for number in known if number <= self.last] or [0]
        found = rng.choice(np.array(known), size=shape)
        more = [number for number in known if number in self.more]
        places = rng.permutation(found.size)[: max(1, found.size // 2)]
        for n, place in enumerate(places if more else ()):
            found.flat[place] = more[(n + self.seed) % len(more)]
        return found.astype(kind)


def _flags(rng: Any, array: Any) -> Any:
    """Returns zeros and ones, with few zeros and a first row of ones."""
    found = np.asarray(rng.random(tuple(array.shape)) < 0.7)
    if found.ndim:
        found[0] = True
    return found.astype(np.float64 if _is_float(array) else array.dtype)


def _is_key(array: Any) -> bool:
    is_key = bool(jnp.issubdtype(array.dtype, jax.dtypes.prng_key))
    return is_key or _is_old_key(array.dtype, tuple(array.shape))


def _is_old_key(dtype: Any, shape: tuple[int, ...]) -> bool:
    """Whether an array is probably a raw key, without a key dtype."""
    return bool(dtype == np.uint32 and shape[-1:] == (2,))


def _is_float(array: Any) -> bool:
    return bool(jnp.issubdtype(array.dtype, jnp.inexact))


def kinds_of(growth: Growth) -> dict[str, Kind]:
    """Returns the kind of new entries of each array, by path."""
    kinds = {leaf.path: leaf.kind for leaf in growth.widths.leaves}
    return {**{e.path: e.fill.drawn if e.fill else "random" for e in growth.inserted}, **kinds}


def opposed_units(growth: Growth) -> dict[str, list[tuple[int, np.ndarray, np.ndarray]]]:
    """Returns how arrays become those of opposed units, by path of the array.

    For each axis along which the array makes units that grow, these are the places from which
    entries are copied, and their signs.
    """
    found: dict[str, list[tuple[int, np.ndarray, np.ndarray]]] = {}
    for change in growth.changes:
        half = change.old // 2
        for leaf, axis, units in _made(growth, change.width):
            places, signs = np.arange(len(units)), np.ones(len(units))
            for unit in range(half, 2 * half):
                if len(old := np.flatnonzero(units == unit - half)):
                    places[units == unit], signs[units == unit] = old, -1
            found.setdefault(leaf.path, []).append((axis, places, signs))
    return found


def merged_units(growth: Growth) -> dict[str, list[tuple[int, np.ndarray]]]:
    """Returns the axes and places from which merged units copy entries, by path of the array.

    For each index along the axis, the place is that of the same entry of the unit that stays.
    """
    found: dict[str, list[tuple[int, np.ndarray]]] = {}
    for change in growth.changes:
        if change.into is None or change.sources is None:
            continue
        stays = np.array(change.sources)[list(change.into)]
        for leaf, axis, units in _made(growth, change.width):
            places = np.arange(len(units))
            for unit in range(change.old):  # all units have equally many entries
                places[units == unit] = np.flatnonzero(units == stays[unit])
            found.setdefault(leaf.path, []).append((axis, places))
    return found


def _made(growth: Growth, width: str) -> Iterator[tuple[Leaf, int, np.ndarray]]:
    """Yields the axes along which arrays make units of a width, with the unit of each place."""
    for leaf in growth.widths.leaves:
        for axis, layout in enumerate(leaf.axes):
            units = units_along(layout, width, ("incoming", "both"))
            if (units >= 0).any():
                yield leaf, axis, units
