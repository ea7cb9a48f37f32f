"""What grows of an architecture, found by growing it: ``ARCHITECTURES``, ``measured``.

Architectures are functions of their sizes, in ``architectures_*``, by topic. Each size is doubled
by itself, and ``layers`` gets one more. So the larger network comes from the same code.
"""

import dataclasses
import importlib
import inspect
import re
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import networks
from flax import nnx

import dogwood_jax as dw

_TOPICS = ("vision", "generative", "language", "recurrent", "science", "agents", "libraries")
_TOPICS += ("keras", "decoders")
KEY = jax.random.key(0)


class Moved(Exception):
    """Outputs moved although the growth was planned to preserve them."""


class Grown(NamedTuple):
    """A growth into a larger network, its arrays, and the relative difference of outputs.

    Keras models grow without showing their growth.
    """

    growth: dw.Growth | None
    variables: Any
    change: float


@dataclasses.dataclass(frozen=True)
class Network:
    """A network of certain sizes: ``apply(variables, *inputs)`` and the shapes of its variables."""

    apply: Callable[..., Any]
    shapes: Any
    inputs: tuple[Any, ...]
    jit: Callable[..., Any] = jax.jit

    def trace(self) -> dw.Widths:
        return dw.trace(self.apply, self.shapes, *self.inputs)

    def by_size(self, widths: dw.Widths, sizes: dict[str, int]) -> dw.Growth:
        """Plans to grow widths by name; raises ValueError where this is refused."""
        return dw.plan(widths, sizes)

    def into(self, widths: dw.Widths, larger: Any) -> Grown:
        """Grows into a larger network."""
        growth = dw.plan(widths, target=larger.shapes, target_apply=larger.apply)
        old = drawn(self.shapes)
        wide = dw.grow(old, growth, key=KEY)
        applies = self.jit(self.apply), self.jit(larger.apply)
        arguments = applies[0], old, applies[1], wide, *self.inputs
        return Grown(growth, wide, verified(dw.verify, *arguments, growth=growth))


@dataclasses.dataclass(frozen=True)
class Module:
    """A module of Flax NNX, whose arrays are shapes."""

    module: nnx.Module
    inputs: tuple[Any, ...]

    def trace(self) -> dw.Widths:
        return dw.nnx.trace(self.module, *self.inputs)

    def by_size(self, widths: dw.Widths, sizes: dict[str, int]) -> dw.Growth:
        return dw.nnx.plan(widths, sizes)

    def into(self, widths: dw.Widths, larger: Any) -> Grown:
        growth = dw.nnx.plan(widths, target=larger.module)
        old = self._with_values()
        wide = dw.nnx.grow(old, growth, key=KEY, fresh=larger._with_values())
        change = verified(dw.nnx.verify, old, wide, *self.inputs)
        return Grown(growth, nnx.state(wide), change)

    def _with_values(self) -> nnx.Module:
        graph, state = nnx.split(self.module)
        return nnx.merge(graph, drawn(state))


def verified(verify: Callable[..., dw.typing.Difference], *args: Any, **options: Any) -> float:
    """Returns the relative difference; that outputs moved is not taken for a refusal."""
    try:
        return verify(*args, **options).relative
    except ValueError as error:
        raise Moved(str(error)) from error


def drawn(shapes: Any) -> Any:
    """Returns variables of these shapes and dtypes, as far from zero as trained ones."""

    def one(leaf: Any, like: Any) -> Any:
        if not hasattr(like, "dtype") or not jnp.issubdtype(like.dtype, jnp.inexact):
            return leaf
        scale = 2 * leaf.size**-0.25 if leaf.ndim > 1 else 1
        return (scale * leaf).astype(like.dtype)

    return jax.tree.map(one, networks.fill(shapes, 1), shapes)


def linen(module: Any, *inputs: Any, **options: Any) -> Network:
    """A module of Flax Linen, called with these options."""
    model = networks.linen(module, *inputs, **options)
    return Network(model.apply, model.shapes, model.inputs)


def data(*shape: int, seed: int = 0) -> jax.Array:
    """A random input."""
    return networks.data(*shape, seed=seed).astype(jnp.float32)


def f32(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A row of the table.

    Attributes:
        name: what it is called.
        package: what it is written with.
        build: makes it; its arguments are sizes.
        needs: the module without which it cannot be made.
    """

    name: str
    package: str
    build: Callable[..., Any]
    needs: str

    @property
    def is_installed(self) -> bool:
        """Whether it can be made here."""
        return find_spec(self.needs) is not None

    @property
    def larger(self) -> dict[str, dict[str, int]]:
        """Sizes of the larger networks, by what is larger."""
        sizes = {p.name: p.default for p in inspect.signature(self.build).parameters.values()}
        return {n: {n: size + 1 if n == "layers" else 2 * size} for n, size in sizes.items()}


ARCHITECTURES: dict[str, Architecture] = {}


def architecture(
    name: str, package: str = "Flax Linen", *, needs: str = "jax"
) -> Callable[..., Any]:
    """Enters a builder into the table."""

    def register(build: Callable[..., Any]) -> Callable[..., Any]:
        assert name not in ARCHITECTURES, name
        ARCHITECTURES[name] = Architecture(name, package, build, needs)
        return build

    return register


@dataclasses.dataclass(frozen=True)
class Row:
    """What was found of an architecture.

    Attributes:
        name, package: of the architecture.
        widths: how many hidden widths it has, those of a kernel's window left out.
        fixed: how many of them cannot grow.
        by_size: how many grow by their name and a size.
        sizes: how many numbers its configuration has, layers left out.
        by_target: how many of these numbers may be larger in a target.
        layers: whether the target may have one layer more; empty if it has no such number.
        change: the largest relative difference of an output after a growth by target, in one digit.
        refused: what was refused and why, with "; " between.
    """

    name: str
    package: str
    widths: int
    fixed: int
    by_size: int
    sizes: int
    by_target: int
    layers: str
    change: str
    refused: str


_UNSHOWN = "cannot show that the deeper network computes what the old one does: "


def measured(entry: Architecture) -> Row:
    """Grows an architecture in all its widths and numbers."""
    network = entry.build()
    widths = network.trace()
    hidden = {n: w for n, w in widths.items() if not w.interface and not _of_a_window(w)}
    fixed = [n for n, w in hidden.items() if w.fixed]
    refused: dict[str, str] = {}
    by_size = 0
    for name in hidden.keys() - set(fixed):
        try:
            network.by_size(widths, {name: 2 * hidden[name].size})
            by_size += 1
        except ValueError as error:
            refused[f"{name} by size"] = reason(error, name)
    changes: dict[str, float] = {}
    for name, sizes in entry.larger.items():
        try:
            changes[name] = network.into(widths, entry.build(**sizes)).change
        except ValueError as error:
            refused[f"{name} by target"] = reason(error, name)
    numbers = [name for name in entry.larger if name != "layers"]
    layers = "" if "layers" not in entry.larger else "yes" if "layers" in changes else "no"
    return Row(
        *(entry.name, entry.package, len(hidden), len(fixed), by_size, len(numbers)),
        sum(name in changes for name in numbers),
        layers,
        f"{max(changes.values(), default=0.0):.0e}",
        "; ".join(f"{what}: {why}" for what, why in sorted(refused.items())),
    )


def _of_a_window(width: dw.typing.Width) -> bool:
    """Whether it is no choice of the architecture: an axis of size 1, or of a kernel's window."""
    return bool(width.fixed) and (width.size == 1 or "spatial" in width.fixed)


def reason(error: ValueError, name: str) -> str:
    """Returns the first reason that an error tells, without the width, ways out and places."""
    problems = getattr(error, "problems", None) or [str(error).partition("\n- ")[2] or str(error)]
    first = next((p for p in problems if "something else" in p), problems[0])
    return re.split(r"; |\n", first)[0].removeprefix(f"{name}: ").removeprefix(_UNSHOWN)


def load() -> dict[str, Architecture]:
    """Imports all topics; returns the table."""
    for topic in _TOPICS:
        importlib.import_module(f"architectures_{topic}")
    return ARCHITECTURES
