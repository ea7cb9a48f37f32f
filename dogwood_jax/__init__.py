"""Grow trained JAX networks without changing what they compute.

Three pure functions with two plain data types between them:

    widths = dw.trace(apply, variables, *inputs)     # where does each hidden dimension occur?
    growth = dw.plan(widths, {"dense_1": 128})       # what becomes of each array?
    wider = dw.grow(variables, growth, key=key)      # do it

The submodules ``keras_h5``, ``mnist``, ``nnx``, ``training`` and ``plotting`` are loaded when first
used, so that importing the package costs no more than importing JAX.
"""

import importlib
from typing import TYPE_CHECKING, Any

from dogwood_jax import strategies
from dogwood_jax._compare import Difference, compare
from dogwood_jax._deepen import deepen
from dogwood_jax._grow import grow
from dogwood_jax._growth import Change, Growth
from dogwood_jax._insert import Insertion
from dogwood_jax._json import from_json, to_json
from dogwood_jax._layout import Concat, Layout, Product, Units
from dogwood_jax._narrow import merge_symmetric, narrow
from dogwood_jax._opt_state import grow_opt_state
from dogwood_jax._plan import plan
from dogwood_jax._symmetry import activity, find_dead, find_symmetric
from dogwood_jax._trace import trace
from dogwood_jax._updates import scale_by_growth
from dogwood_jax._widen import chain, widen
from dogwood_jax._widths import Leaf, Occurrence, Recipe, Width, Widths

if TYPE_CHECKING:
    from dogwood_jax import keras_h5, mnist, nnx, plotting, training

__version__ = "0.1.0"

__all__ = [
    "Change",
    "Concat",
    "Difference",
    "Growth",
    "Insertion",
    "Layout",
    "Leaf",
    "Occurrence",
    "Product",
    "Recipe",
    "Units",
    "Width",
    "Widths",
    "activity",
    "chain",
    "compare",
    "deepen",
    "find_dead",
    "find_symmetric",
    "from_json",
    "grow",
    "grow_opt_state",
    "keras_h5",
    "merge_symmetric",
    "mnist",
    "narrow",
    "nnx",
    "plan",
    "plotting",
    "scale_by_growth",
    "strategies",
    "to_json",
    "trace",
    "training",
    "widen",
]

_LAZY = frozenset({"keras_h5", "mnist", "nnx", "plotting", "training"})


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
