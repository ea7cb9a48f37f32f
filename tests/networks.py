"""The table of networks that tracing is tested with: ``NETWORKS``.

Each network is built from sizes, so that the larger model comes from its own configuration, and
lists its widths as worked out by hand. The networks are in ``networks_*``, by topic.
"""

import dataclasses
import functools
import importlib
import inspect
import re
import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_TOPICS = ("dense", "weights", "conv", "attention", "recurrent", "control", "libraries")


@dataclasses.dataclass(frozen=True)
class Model:
    """A network of certain sizes: ``apply(variables, *inputs)`` and the shapes of its variables."""

    apply: Callable[..., Any]
    shapes: Any
    inputs: tuple[Any, ...] = ()


@dataclasses.dataclass(frozen=True)
class Expected:
    """What tracing must find of one width.

    Attributes:
        size: how many units it has.
        places: where it occurs, see ``places_of``.
        by: the argument of the builder that makes it larger, if there is one.
        fixed: words of the reason why it cannot grow.
        changes: whether outputs change if it grows and nothing makes up for that.
        interface: whether it is a dimension of an input or output.
        copies: why outputs would change if its units were copied.
    """

    size: int
    places: str
    by: str = ""
    fixed: str = ""
    changes: bool = False
    interface: bool = False
    copies: str = ""


def places_of(text: str) -> set[str]:
    """Returns places one by one, as they are printed: ``"-> up/{kernel[1],bias[0]} <- down[0]"``.

    An arrow holds for all places up to the next one. The collection ``params/`` is left out.
    """
    places, arrow = set(), ""
    for word in text.split():
        if len(word) == 2:
            arrow = word
        else:
            places |= {f"{arrow} {place}" for place in _spelled_out(word)}
    return places


def _spelled_out(word: str) -> list[str]:
    if found := re.match(r"(.*?)\{(.*?)\}(.*)", word):
        before, choices, after = found.groups()
        return [p for choice in choices.split(",") for p in _spelled_out(before + choice + after)]
    return [word]


def grows(by: str, size: int, places: str, *, copies: str = "") -> Expected:
    """A width that the builder's argument ``by`` makes larger, and that can grow."""
    return Expected(size, places, by=by, copies=copies)


def interface(by: str, size: int, places: str, *, changes: bool = False) -> Expected:
    """A width that is a dimension of an input or output."""
    return Expected(size, places, by=by, changes=changes, interface=True)


def changes(by: str, size: int, places: str) -> Expected:
    """A width whose growth would change outputs, if nothing makes up for that."""
    return Expected(size, places, by=by, changes=True)


def fixed(reason: str, size: int, places: str) -> Expected:
    """A width that cannot grow."""
    return Expected(size, places, fixed=reason)


def spatial(kernel: str, *sizes: int) -> dict[str, Expected]:
    """The window of a convolution: the leading axes of its kernel."""
    module = kernel.rpartition("/")[0]
    return {
        f"{module}[{axis}]": fixed("spatial dimension", size, f"-> {kernel}[{axis}]")
        for axis, size in enumerate(sizes)
    }


@dataclasses.dataclass(frozen=True)
class Network:
    """A network of the table: its builder, with the sizes as default arguments, and its widths."""

    build: Callable[..., Model]
    widths: Mapping[str, Expected]

    @property
    def sizes(self) -> dict[str, int]:
        parameters = inspect.signature(self.build).parameters.values()
        return {parameter.name: parameter.default for parameter in parameters}


NETWORKS: dict[str, Network] = {}

# Those that take part wherever only some do: of layers, shared and in a loop, of libraries.
ONE_OF_EACH_KIND = (
    "mlp",
    "tied_embedding",
    "conv_1d",
    "multi_query",
    "experts_by_one_hot",
    "gru",
    "stacked_layers",
    "branches",
    "equinox_mlp",
)


def network(widths: Mapping[str, Expected]) -> Callable[..., Any]:
    """Enters a builder into the table, with its widths by name."""

    def register(builder: Callable[..., Model]) -> Callable[..., Model]:
        assert builder.__name__ not in NETWORKS, builder.__name__
        NETWORKS[builder.__name__] = Network(builder, widths)
        return builder

    return register


def f64(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float64)


def dense(n_in: int, n_out: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of a Dense layer."""
    return {"kernel": f64(n_in, n_out), "bias": f64(n_out)}


def affine(layer: Mapping[str, Any], x: Any) -> Any:
    """A Dense layer, or a contraction of the last axis with the kernel's first."""
    bias = jnp.reshape(layer["bias"], (1,) * (x.ndim - 1) + layer["bias"].shape)
    return jnp.tensordot(x, layer["kernel"], 1) + bias


def linen(module: Any, *inputs: Any, rngs: Any = None, **options: Any) -> Model:
    """A Flax Linen module; ``options`` are those of its ``apply``, keys are its last input."""
    keys = {"params": jax.random.key(0), **(rngs or {})}
    init = {k: v for k, v in options.items() if k != "mutable"}
    shapes = jax.eval_shape(functools.partial(module.init, **init), keys, *inputs)
    if rngs is None:
        return Model(functools.partial(module.apply, **options), shapes, inputs)

    def apply(variables: Any, *arguments: Any) -> Any:
        *others, rngs = arguments
        return module.apply(variables, *others, rngs=rngs, **options)

    return Model(apply, shapes, (*inputs, rngs))


def values(shape: tuple[int, ...], seed: int, name: str = "") -> np.ndarray:
    """Random numbers that are no layer's default; positive where the name says so."""
    drawn = np.random.default_rng(seed).normal(size=shape)
    positive = any(word in name for word in ("var", "scale", "positive"))
    return 0.5 + np.abs(drawn) if positive else 0.6 * drawn


def fill(shapes: Any, seed: int) -> Any:
    """Variables of these shapes with random values; leaves that have values keep them."""
    # Arrays are put, for jnp.asarray compiles a program for each shape.

    def one(keys: Any, leaf: Any) -> Any:
        if not isinstance(leaf, jax.ShapeDtypeStruct):
            return leaf
        path = jax.tree_util.keystr(keys, simple=True, separator="/")
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.key(seed)
        if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
            parts = [values(leaf.shape, zlib.crc32(f"{path}{seed}{p}".encode())) for p in "ri"]
            return jax.device_put(parts[0] + 1j * parts[1])
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return jnp.ones(leaf.shape, leaf.dtype)
        return jax.device_put(values(leaf.shape, zlib.crc32(f"{path}{seed}".encode()), path))

    return jax.tree_util.tree_map_with_path(one, shapes)


def cast(variables: Any, dtype: Any) -> Any:
    """The same variables, in this dtype where they are floating."""

    def one(leaf: Any) -> Any:
        is_float = hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)
        # By NumPy, since JAX would compile a program for each shape.
        return jax.device_put(np.asarray(leaf).astype(dtype)) if is_float else leaf

    return jax.tree.map(one, variables)


def new_size(size: int) -> int:
    """A size that is no multiple of the old one, where there is such a size close by."""
    return size + 2 if size > 2 else size + 1


def build_larger(network: Network, *arguments: str) -> Model:
    """The network with larger sizes for these arguments of its builder."""
    return network.build(**{by: new_size(network.sizes[by]) for by in arguments})


def larger_inputs(small: Model, big: Model) -> tuple[Any, ...]:
    """The old inputs; where the larger model has more, the rest is its own."""

    def one(a: Any, b: Any) -> Any:
        return a if a.shape == b.shape else jax.lax.dynamic_update_slice(b, a, [0] * a.ndim)

    return jax.tree.map(one, small.inputs, big.inputs)


def cut(arrays: Iterable[Any], shapes: Iterable[Any]) -> list[Any]:
    """The first entries of arrays, of these shapes."""
    return [x[tuple(map(slice, shape))] for x, shape in zip(arrays, shapes, strict=True)]


def data(*shape: int, seed: int = 0) -> jax.Array:
    """A random input."""
    return jax.device_put(values(shape, seed))


def tokens(vocab: int, *shape: int) -> jax.Array:
    return jax.device_put(np.random.default_rng(0).integers(0, vocab, shape).astype(np.int32))


def load() -> dict[str, Network]:
    """Imports all topics; returns the table."""
    for topic in _TOPICS:
        importlib.import_module(f"networks_{topic}")
    return NETWORKS
