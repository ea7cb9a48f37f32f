"""Small networks that use each primitive: ``EXAMPLES``.

An example is a function of parameters and inputs whose code takes all sizes from its arrays, so
that it is its own larger model. Each size that can change has a name; no two of them are tied. So
what an example says outlives the rules: it only says which primitives it reaches, and how large its
arrays are. Examples are in ``primitive_examples_*``, by topic; the laws that they keep are in
``test_primitives``.
"""

import dataclasses
import inspect
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

try:
    from jax import shard_map
except ImportError:  # before jax 0.6.1
    from jax.experimental.shard_map import shard_map

Shapes = Mapping[str, tuple[int, ...]]

# How much inputs of networks sum up to in each row. Weights are so many times smaller in turn: new
# units, whose weights are drawn without regard to that, leave the range of old ones on both sides.
TOTAL = 16


def data(*shape: int, seed: int = 0) -> np.ndarray:
    """Positive numbers that sum up to ``TOTAL`` along the last axis, most of it in one place."""
    numbers = np.random.default_rng(seed).uniform(0.3, 1, shape) ** 8
    return numbers * TOTAL / numbers.sum(-1, keepdims=True)


def tokens(count: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, count, shape).astype(np.int32)


X = data(4, 5)
ONE = np.int32(1)
ZERO = np.int32(0)


@dataclasses.dataclass(frozen=True)
class Example:
    """A network that uses a primitive.

    Attributes:
        apply: the network, a function of parameters and inputs.
        reaches: names of primitives in its program.
        shapes: the shapes of the parameters, as a function of sizes with defaults.
        inputs: the inputs, as a function of the same sizes; or the inputs, if they have none.
        ranges: between which numbers parameters lie, by name.
        dtype: the dtype of the parameters.
        rounding: by how much it rounds on its way, relative to its largest numbers.
        somewhere: whether there are versions of JAX in which it does not reach the primitives.
    """

    apply: Callable[..., Any]
    reaches: tuple[str, ...]
    shapes: Callable[..., Shapes]
    inputs: tuple[Any, ...] | Callable[..., tuple[Any, ...]] = (X,)
    ranges: Mapping[str, tuple[float, float]] = dataclasses.field(default_factory=dict)
    dtype: Any = jnp.float64
    rounding: float = 1e-12
    somewhere: bool = False

    @property
    def sizes(self) -> dict[str, int]:
        parameters = inspect.signature(self.shapes).parameters.values()
        return {parameter.name: parameter.default for parameter in parameters}

    def structs(self, **sizes: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns shapes and dtypes of the parameters, with other sizes for some names."""
        shapes = self.shapes(**sizes)
        return {k: jax.ShapeDtypeStruct(shape, self.dtype) for k, shape in shapes.items()}

    def parameters(self) -> dict[str, Any]:
        """Returns random parameters."""

        def one(name: str, shape: tuple[int, ...]) -> Any:
            random = np.random.default_rng(zlib.crc32(name.encode()))
            numbers = random.uniform(*self.ranges.get(name, (-1, 1)), shape)
            if jnp.issubdtype(self.dtype, jnp.complexfloating):
                numbers = numbers + 1j * random.uniform(-1, 1, shape)
            return jnp.asarray(numbers, self.dtype)

        return {name: one(name, shape) for name, shape in self.shapes().items()}

    def arguments(self, **sizes: int) -> tuple[Any, ...]:
        """Returns the inputs; where they are larger than without sizes, they hold the same."""
        if not callable(self.inputs):
            return self.inputs
        names = inspect.signature(self.inputs).parameters
        larger = self.inputs(**{k: v for k, v in sizes.items() if k in names})
        return tuple(_with_corner(big, small) for big, small in zip(larger, self.inputs()))


def _with_corner(big: Any, small: Any) -> Any:
    big = np.array(big)
    big[tuple(map(slice, small.shape))] = small
    return big


EXAMPLES: dict[str, Example] = {}


def example(*reaches: str, **known: Any) -> Callable[..., Any]:
    """Enters a network; its shapes are said by ``shapes=``, a function of sizes with defaults."""

    def register(apply: Callable[..., Any]) -> Callable[..., Any]:
        assert apply.__name__ not in EXAMPLES
        EXAMPLES[apply.__name__] = Example(apply, reaches, **known)
        return apply

    return register


def layer(p: Any, x: Any) -> Any:
    return jnp.tanh(x @ p["i"] / TOTAL)


def mlp(n: int = 4) -> Shapes:
    return {"i": (5, n), "o": (n, 2)}


def two_widths(n: int = 4, m: int = 2) -> Shapes:
    return {"i": (5, n), "o": (n, m)}


def gated(n: int = 4) -> Shapes:
    return {"i": (5, n), "g": (n,), "o": (n, 2)}


def two(n: int = 4, m: int = 3) -> Shapes:
    return {"i": (5, n), "j": (5, m), "o": (n, 2), "u": (m, 2)}


def mesh() -> Mesh:
    return Mesh(np.array(jax.devices()[:2]), ("devices",))


def on_devices(f: Callable[..., Any], n: int) -> Callable[..., Any]:
    """A function of arrays that every device has the whole of."""
    whole = PartitionSpec()
    return shard_map(f, mesh=mesh(), in_specs=(whole,) * n, out_specs=whole)
