"""Grow trained JAX networks without changing what they compute.

Three pure functions with two plain data types between them:

    widths = dw.trace(apply, variables, *inputs)     # where does each hidden dimension occur?
    growth = dw.plan(widths, {"dense_1": 128})       # what becomes of each array?
    wider = dw.grow(variables, growth, key=key)      # do it

The public names, each with a docstring of its own (``help(dw.plan)``):

    Grow
        trace               finds every width of a JAX function: Widths
        plan                what becomes of each array, by sizes or by a larger model: Growth
        grow                grows the arrays
        larger              the module of the larger network
        verify              runs both networks, and raises if outputs moved
        compare             how far the outputs of two networks are apart
        strategies          how new units and layers are filled in
        deepen              inserts layers that compute the identity
        upcycle             more experts, or experts in place of an MLP
        widen, chain        Dense layers that the caller names, without tracing
    Train on
        growable            wraps an optimizer once, before training
        grow_opt_state      grows the state of an Optax optimizer
        renew               makes new units of dormant ones while training runs
        recycling           wraps an optimizer, which then does so by itself
        training            fit, distill, evaluate, stages between which a network grows, several
                            networks that become one, units that are replaced in each step
    Choose
        cost                parameters, FLOPs and memory before and after
        gain                where one more unit would lower a loss most
    Shrink
        narrow              removes units or layers
        shrink              narrows to a budget of parameters, FLOPs or memory, or removes layers
        saliency, activity  how much each unit or layer matters
        dormant             units that are hardly active beside others
        find_dead           units that can go without a change
        find_symmetric      units that no training step can tell apart
        merge_symmetric     folds them into one
        average             makes fewer units by means, such as heads of keys and values
    Modules and files
        nnx                 the same functions for Flax NNX modules
        keras               live Keras models grow, and fit goes on
        keras_h5            Keras files to and fro
        checkpoint          checkpoints on disk that do not fit in memory
        decoder             open language models, from Hugging Face's folders
        to_json, from_json  widths and growths as text
    Data and pictures
        mnist               handwritten digits
        plotting            weights, learning curves
    Types
        Refused             the error of a growth that cannot be planned
        typing              what else functions take and return: Width, Change, Difference, ...
"""

# Each name is loaded from its file when it is first used (PEP 562), so that importing the package
# costs no more than the part of it that is used.

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

__version__ = "0.3.0.dev0"


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

# Where the names are that are no submodules: what the imports above say to type checkers.
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
# Names that are gone, or that are looked for and were never there: what to use instead.
_INSTEAD = {
    "grow_several": "is in dw.training: dw.training.grow_several",
    "utility": "is in dw.training: dw.training.utility",
    "scale_by_growth": "is gone: use dw.growable(tx), which wraps an optimizer once, before "
    "training",
    "equinox": "is not needed: modules of Equinox are variables of the plain functions, as in "
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
    globals()[name] = value  # not to be asked again
    return value


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
