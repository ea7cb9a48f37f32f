"""The model of a folder, traced, and the shapes of a larger or smaller model: ``Model``."""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from math import frexp, prod
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from dogwood_jax import checkpoint
from dogwood_jax._base.tables import wrapped
from dogwood_jax._base.trees import PyTree, leaves_by_path, nested, struct
from dogwood_jax._growth.growth import Growth
from dogwood_jax._widths.trace import trace
from dogwood_jax._widths.widths import Widths
from dogwood_jax.checkpoint.draft import expect_free
from dogwood_jax.decoder.folder import described, names
from dogwood_jax.decoder.model import apply, shapes
from dogwood_jax.decoder.options import Options, options_of

NEEDS_SEED = "--seed N: needed, because some new weights are random"
# The model is traced with tokens of this shape, [batch, time].
_TOKENS = struct((2, 8), jnp.int32)


@dataclass(frozen=True)
class Model:
    """The model of a folder.

    Attributes:
        folder: the folder.
        config: the settings in its ``config.json``.
        options: its options.
        variables: the shapes of its arrays.
    """

    folder: Path
    config: Mapping[str, Any]
    options: Options
    variables: PyTree

    @classmethod
    def of(cls, folder: Path) -> "Model":
        """Returns the model of a folder; raises the errors of ``decoder.load``."""
        return cls(folder, *described(folder))

    @cached_property
    def apply(self) -> Callable[..., Any]:
        """The function of its variables and tokens."""
        return partial(apply, self.options)

    @cached_property
    def widths(self) -> Widths:
        """Its widths, traced without reading weights."""
        return trace(self.apply, self.variables, _TOKENS)

    @cached_property
    def hidden_units(self) -> Mapping[str, list[str]]:
        """The widths of hidden units in MLPs and experts, by the setting for their size."""
        found, experts = dict[str, list[str]](), self.options.experts
        for n in range(self.options.num_hidden_layers):
            layer, name, path, axis = f"model/layers/{n}", "intermediate_size", "mlp/up_proj", 0
            if experts is not None and n in experts.layers:
                name = "moe_intermediate_size" if experts.name == "mlp" else name
                path, axis = f"{experts.name}/experts/{experts.projections[1]}", 1
            width = self.widths.of(f"{layer}/{path}/weight", axis)
            found.setdefault(name, []).append(width.name)
        return found

    @property
    def parameters(self) -> int:
        """The number of entries in its arrays."""
        return sum(prod(leaf.shape) for leaf in jax.tree.leaves(self.variables))

    def with_numbers(self, numbers: Mapping[str, Any]) -> "Model":
        """Returns the model for other values of settings, with arrays of the old dtypes."""
        config = {**self.config, **numbers}
        options = options_of(config)
        old = {path: leaf.dtype for path, leaf in leaves_by_path(self.variables).items()}
        alike = {_pattern(path): dtype for path, dtype in old.items()}
        usual = Counter(old.values()).most_common(1)[0][0]
        new = {
            path: struct(leaf.shape, old.get(path, alike.get(_pattern(path), usual)))
            for path, leaf in leaves_by_path(shapes(options)).items()
        }
        return Model(self.folder, config, options, nested(new))


def write(
    old: Model, new: Model, growth: Growth, out: Path, seed: int | None, numbers: Mapping[str, Any]
) -> str:
    """Writes the folder of a new model; returns a report.

    Raises:
        ValueError: if weights are random and there is no seed.
        OSError: if a file cannot be read or written, or if ``out`` exists and is not empty.
    """
    key = key_of(seed, growth)
    table = names(old.options) | names(new.options)
    checkpoint.grow(old.folder, growth, out, key=key, names=table, config=numbers)
    said = "\n".join([str(growth), *_unseen(growth), *_rounding(old, growth)])
    return f"{said}\n{out}: {new.parameters:,} parameters; {old.folder} has {old.parameters:,}"


def expect_new(out: Path) -> None:
    """Raises an ``OSError`` unless ``out`` is a new path or an empty folder."""
    expect_free(out.resolve(), is_folder=True)


def key_of(seed: int | None, growth: Growth) -> jax.Array | None:
    """Returns the key for random weights; raises ``ValueError`` if it is needed without a seed."""
    if seed is not None:
        return jax.random.key(seed)
    if any(e.is_random or (e.map is not None and e.map.needs) for e in growth.edits.values()):
        raise ValueError(NEEDS_SEED)
    return None


def _unseen(growth: Growth) -> Iterator[str]:
    """Yields a note on the decoder's comparison, if all evaluated inputs gave the same result."""
    if growth.evidence and any(one.startswith("lt (model.py") for one in growth.evidence.unseen):
        yield "note: lt is the sliding window, which is longer than the evaluated texts"


def _rounding(model: Model, growth: Growth) -> Iterator[str]:
    """Yields a note on arrays that are rescaled in a narrow dtype."""
    dtypes = {path: leaf.dtype for path, leaf in leaves_by_path(model.variables).items()}
    factors = (item for item in growth.factors.items() if frexp(item[1])[0] != 0.5)
    narrow = {str(dtypes[path]) for path, _ in factors if dtypes[path].itemsize < 4}
    if narrow:
        yield wrapped(
            f"note: rescaled arrays are rounded to {', '.join(sorted(narrow))}, so outputs change "
            "as much as they do by computing in that dtype; powers of two as factors round "
            "nothing, such as with four times the hidden_size"
        )


def _pattern(path: str) -> str:
    return re.sub("/[0-9]+/", "/#/", path)
