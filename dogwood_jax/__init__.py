"""Grow trained JAX networks without changing what they compute.

Three pure functions with two plain data types between them:

    widths = dw.trace(apply, variables, *inputs)     # find where each hidden dimension occurs
    growth = dw.plan(widths, {"dense_1": 128})       # plan how each array changes
    wider = dw.grow(variables, growth, key=key)      # grow the arrays

The public names, each with its own docstring (``help(dw.plan)``):

    Grow
        trace               finds every width of a JAX function: Widths
        plan                plans how each array changes, from sizes or a larger model: Growth
        grow                grows the arrays
        larger              returns the module of the larger network
        verify              runs both networks, and raises if outputs moved
        compare             measures how far the outputs of two networks differ
        strategies          how new units and layers are filled in
        deepen              inserts layers that compute the identity
        upcycle             plans more experts, or experts in place of an MLP
        widen, chain        for Dense layers that the caller names, without tracing
    Train on
        growable            wraps an optimizer once, before training
        grow_opt_state      grows the state of an Optax optimizer
        renew               replaces dormant units with new ones during training
        recycling           wraps an optimizer so that it renews units by itself
        training            fit, distill and evaluate; stages with growth between them; several
                            networks merged into one; replacement of units in each step
    Choose
        cost                parameters, FLOPs and memory before and after
        gain                estimates where one more unit would lower a loss most
    Shrink
        narrow              removes units or layers
        shrink              narrows to a budget of parameters, FLOPs or memory, or removes layers
        saliency, activity  measure how much each unit or layer matters
        dormant             finds units that are hardly active compared with the others
        find_dead           finds units whose removal does not change outputs
        find_symmetric      finds units that no training step can make different
        merge_symmetric     merges such units into one
        average             replaces groups of units, such as heads, by their means
    Modules and files
        nnx                 the same functions for Flax NNX modules
        keras               grows live Keras models, so that fit can continue
        keras_h5            reads and writes Keras files
        checkpoint          grows checkpoints on disk that do not fit in memory
        decoder             open language models from Hugging Face folders
        to_json, from_json  convert widths and growths to text and back
    Data and pictures
        mnist               handwritten digits
        plotting            plots of weights and learning curves
    Types
        Refused             the error raised for a growth that cannot be planned
        typing              other types that functions take and return: Width, Change, ...
"""

# Each name is loaded from its file on first use (PEP 562), so importing the package is cheap.

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dogwood_jax import (
        checkpoint,
        decoder,
        keras,
        keras_h5,
        mnist,
        nnx,
        plotting,
        strategies,
        training,
        typing,
    )
    from dogwood_jax._base.problems import Refused
    from dogwood_jax._front.compare import compare
    from dogwood_jax._front.cost import cost
    from dogwood_jax._front.deepen import deepen
    from dogwood_jax._front.gain import gain
    from dogwood_jax._front.grow import grow
    from dogwood_jax._front.larger import larger
    from dogwood_jax._front.plan import plan
    from dogwood_jax._front.renew import renew
    from dogwood_jax._front.smaller.average import average
    from dogwood_jax._front.smaller.dead import find_dead
    from dogwood_jax._front.smaller.dormant import dormant
    from dogwood_jax._front.smaller.narrow import merge_symmetric, narrow
    from dogwood_jax._front.smaller.recycling import recycling
    from dogwood_jax._front.smaller.saliency import saliency
    from dogwood_jax._front.smaller.shrink import shrink
    from dogwood_jax._front.smaller.symmetry import activity, find_symmetric
    from dogwood_jax._front.verify import verify
    from dogwood_jax._front.widen import chain, widen
    from dogwood_jax._growth.as_json import from_json, to_json
    from dogwood_jax._growth.growth import Growth
    from dogwood_jax._optimizer.growable import growable
    from dogwood_jax._optimizer.opt_state import grow_opt_state
    from dogwood_jax._plan.experts.upcycle import upcycle
    from dogwood_jax._widths.trace import trace
    from dogwood_jax._widths.widths import Widths

__version__ = "0.4.0.dev0"


__all__ = [
    "Growth",
    "Refused",
    "Widths",
    "activity",
    "average",
    "chain",
    "checkpoint",
    "compare",
    "cost",
    "decoder",
    "deepen",
    "dormant",
    "find_dead",
    "find_symmetric",
    "from_json",
    "gain",
    "grow",
    "grow_opt_state",
    "growable",
    "keras",
    "keras_h5",
    "larger",
    "merge_symmetric",
    "mnist",
    "narrow",
    "nnx",
    "plan",
    "plotting",
    "recycling",
    "renew",
    "saliency",
    "shrink",
    "strategies",
    "to_json",
    "trace",
    "training",
    "typing",
    "upcycle",
    "verify",
    "widen",
]

# Files of the public names that are not submodules. Must match the imports for type checkers above.
_NAMES_IN = {
    "_base.problems": ("Refused",),
    "_front.grow": ("grow",),
    "_front.larger": ("larger",),
    "_front.compare": ("compare",),
    "_front.cost": ("cost",),
    "_front.deepen": ("deepen",),
    "_front.gain": ("gain",),
    "_front.smaller.narrow": ("merge_symmetric", "narrow"),
    "_front.smaller.average": ("average",),
    "_front.smaller.saliency": ("saliency",),
    "_front.smaller.shrink": ("shrink",),
    "_front.smaller.dead": ("find_dead",),
    "_front.smaller.dormant": ("dormant",),
    "_front.smaller.recycling": ("recycling",),
    "_front.smaller.symmetry": ("activity", "find_symmetric"),
    "_front.verify": ("verify",),
    "_front.widen": ("chain", "widen"),
    "_growth.as_json": ("from_json", "to_json"),
    "_growth.growth": ("Growth",),
    "_optimizer.growable": ("growable",),
    "_optimizer.opt_state": ("grow_opt_state",),
    "_front.plan": ("plan",),
    "_front.renew": ("renew",),
    "_plan.experts.upcycle": ("upcycle",),
    "_widths.trace": ("trace",),
    "_widths.widths": ("Widths",),
}
_HOMES = {name: module for module, names in _NAMES_IN.items() for name in names}
# Removed names, and names that users may expect here, with what to use instead.
_INSTEAD = {
    "grow_several": "is in dw.training: dw.training.grow_several",
    "utility": "is in dw.training: dw.training.utility",
    "scale_by_growth": "is gone: use dw.growable(tx), which wraps an optimizer once, before "
    "training",
    "equinox": "is not needed: pass Equinox modules as variables to the plain functions, as in "
    "dw.trace(lambda module, x: jax.vmap(module)(x), module, x)",
}


def __getattr__(name: str) -> Any:
    if name in _INSTEAD:
        raise AttributeError(f"dogwood_jax.{name} {_INSTEAD[name]}")
    if name not in __all__:
        if name[0].isupper() and hasattr(importlib.import_module(f"{__name__}.typing"), name):
            raise AttributeError(f"dogwood_jax.{name} is in dw.typing: dw.typing.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = importlib.import_module(f"{__name__}.{_HOMES.get(name, name)}")
    if name in _HOMES:
        value = getattr(value, name)
    globals()[name] = value  # later accesses skip this function
    return value


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
