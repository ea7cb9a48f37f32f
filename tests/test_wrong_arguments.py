"""A wrong argument is named as such, with what came and the next step, before anything is computed.

What would follow from it, such as a list of all paths, hides the mistake.
"""

import functools
import logging
from collections.abc import Callable
from typing import Any

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState

import dogwood_jax as dw
from dogwood_jax import keras_h5, plotting, strategies, training
from dogwood_jax._growth.finite import _all_finite

X = np.ones((3, 4))
KEY = jax.random.key(0)
KEYS = jax.random.split(KEY, 3)


def dense(inputs: int, units: int) -> dict[str, np.ndarray]:
    return {"kernel": np.ones((inputs, units)), "bias": np.ones(units)}


def apply(params: Any, x: Any) -> Any:
    for layer in (params["up"], params["down"]):
        x = jnp.tanh(x @ layer["kernel"] + layer["bias"][None])
    return x


def apply_deeper(params: Any, x: Any) -> Any:
    return apply({"up": params["up"], "down": params["mid"]}, x) @ params["down"]["kernel"]


def apply_in_params(variables: Any, x: Any) -> Any:
    return apply(variables["params"], x)


def apply_mode(params: Any, x: Any, *, train: bool) -> Any:
    return apply(params, x)


ONE_SAMPLE = eqx.nn.MLP(4, 2, 8, 1, key=KEY)
PARAMS = {"up": dense(4, 8), "down": dense(8, 2)}
IN_PARAMS = {"params": PARAMS}
WIDTHS = dw.trace(apply, PARAMS, X)
WIDTHS_IN_PARAMS = dw.trace(apply_in_params, IN_PARAMS, X)
UP = WIDTHS["up"]
GROWTH = dw.plan(WIDTHS, {"up": 12})
GROWTH_IN_PARAMS = dw.plan(WIDTHS_IN_PARAMS, {"up": 12})
WIDE = {"up": dense(4, 12), "down": dense(12, 2)}
UTILITY_WIDE = dw.training.utility(apply, dw.trace(apply, WIDE, X)).init(WIDE)
OTHER_STATE = optax.adam(1e-3).init({"in": dense(4, 6), "out": dense(6, 2)})
SGD = optax.sgd(0.1, momentum=0.9)
SAME_NAMES_STATE = SGD.init({"up": dense(4, 5), "down": dense(5, 2)})
DEEPER = {**PARAMS, "mid": dense(8, 8)}
TX = optax.adam(1e-3)
GROWABLE = dw.growable(TX)
GROWABLE_STATE = GROWABLE.init(PARAMS)
STATE, IN_STATE = TX.init(PARAMS), TX.init(IN_PARAMS)
WIDE_STATE = TX.init(WIDE)
SGD_STATE = SGD.init(PARAMS)
TRAIN_STATE = TrainState.create(apply_fn=apply, params=PARAMS, tx=TX)
DATA = X, np.zeros(3, int)
NAN = {**PARAMS, "up": {**PARAMS["up"], "kernel": np.full((4, 8), np.nan)}}
INFINITE = {**PARAMS, "down": {**PARAMS["down"], "kernel": jnp.full((8, 2), jnp.inf)}}
SHAPES = jax.eval_shape(lambda: PARAMS)


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x: Any) -> Any:
        return nn.Dense(2)(nn.relu(nn.Dense(8)(x)))


class Normed(nn.Module):
    @nn.compact
    def __call__(self, x: Any, train: bool = False) -> Any:
        return nn.Dense(2)(nn.BatchNorm(use_running_average=not train)(nn.Dense(8)(x)))


class Dropped(nn.Module):
    @nn.compact
    def __call__(self, x: Any) -> Any:
        return nn.Dropout(0.5, deterministic=False)(x)


class Nnx(nnx.Module):
    def __init__(self, units: int = 8) -> None:
        self.up = nnx.Linear(4, units, kernel_init=nnx.initializers.ones, rngs=nnx.Rngs(0))
        self.down = nnx.Linear(units, 2, kernel_init=nnx.initializers.ones, rngs=nnx.Rngs(0))

    def __call__(self, x: Any) -> Any:
        return self.down(nnx.relu(self.up(x)))


LINEN = Linen()
VARIABLES = jax.eval_shape(LINEN.init, KEY, X)
LINEN_WIDE = jax.tree.map(
    lambda array: jax.ShapeDtypeStruct(tuple(12 if n == 8 else n for n in array.shape), "float32"),
    VARIABLES,
)
NORMED = jax.eval_shape(Normed().init, KEY, X)
LINEN_WIDTHS = dw.trace(LINEN.apply, VARIABLES, X)
NNX = Nnx()
NNX_WIDTHS = dw.nnx.trace(NNX, X)
NNX_GROWTH = dw.nnx.plan(NNX_WIDTHS, {"up": 12})
RNGS = nnx.Rngs(0)
NNX_OPTIMIZER = nnx.Optimizer(NNX, TX, wrt=nnx.Param)
EQUINOX = eqx.filter_eval_shape(eqx.nn.MLP, 4, 2, 8, 1, key=KEY)
EQUINOX_WIDTHS = dw.trace(lambda module, x: jax.vmap(module)(x), EQUINOX, X)
HAIKU = hk.transform(lambda x: hk.Linear(2)(x))

fit = functools.partial(training.fit, epochs=1, batch_size=3, key=KEY, progress=False)
deepen = functools.partial(dw.deepen, apply=apply, target_apply=apply)


# What is called, and words that the message must hold: the mistake, what came, the next step.
LINEN_VARIABLES = LINEN.init(KEY, X)
LINEN_STATE = TrainState.create(apply_fn=LINEN.apply, params=LINEN_VARIABLES["params"], tx=TX)
OTHER_NNX = nnx.Sequential(nnx.Linear(4, 8, rngs=RNGS), nnx.Linear(8, 2, rngs=RNGS))
OTHER_NNX_OPTIMIZER = nnx.Optimizer(OTHER_NNX, TX, wrt=nnx.Param)
EXPERTS = {
    "router": np.ones((4, 2)),
    "experts": jax.tree.map(lambda array: np.stack([array] * 2), PARAMS),
}


def apply_experts(params: Any, x: Any) -> Any:
    outputs = jax.vmap(apply, (0, None))(params["experts"], x)
    return jnp.einsum("be,ebo->bo", jax.nn.softmax(x @ params["router"]), outputs)


CALLS: dict[str, tuple[Callable[[], Any], list[str]]] = {
    # Functions of variables and inputs
    "trace: an unbound Linen module": (
        lambda: dw.trace(LINEN, VARIABLES, X),
        ["apply", "Linen, a Flax Linen module", "module.apply"],
    ),
    "trace: a bound Linen module": (
        lambda: dw.trace(LINEN.bind({}), X, X),
        ["Linen, a Flax Linen module", "module.apply"],
    ),
    "trace: a class of modules": (
        lambda: dw.trace(Linen, VARIABLES, X),
        ["the class Linen of Flax Linen modules", "make an instance"],
    ),
    "trace: a keyword argument of the network": (
        lambda: dw.trace(apply_mode, PARAMS, X, train=False),  # type: ignore[call-arg]
        ["trace has no argument train", "lambda variables, *inputs: apply(", "train=False)"],
    ),
    "nnx.trace: a keyword argument of the module": (
        lambda: dw.nnx.trace(NNX, X, train=False),  # type: ignore[call-arg]
        ["trace has no argument train", "model.eval()"],
    ),
    "trace: an NNX module": (lambda: dw.trace(NNX, X), ["Nnx, an NNX module", "dw.nnx.trace"]),
    "trace: an Equinox module": (
        lambda: dw.trace(EQUINOX, X),
        ["MLP, an Equinox module", "jax.vmap(module)(x)", "as variables"],
    ),
    "trace: an Equinox module twice": (
        lambda: dw.trace(EQUINOX, EQUINOX, X),
        ["MLP, an Equinox module", "jax.vmap(module)(x)"],
    ),
    "trace: a pair of Haiku's functions": (
        lambda: dw.trace(HAIKU, PARAMS, X),
        ["Transformed", "pass its apply"],
    ),
    "trace: kernels that are no mapping": (
        lambda: dw.trace(apply, PARAMS, X, kernels=[jnp.tanh]),  # type: ignore[arg-type]
        ["kernels", "{'pallas_call': reference}", "got a list"],
    ),
    "trace: kernels that are no functions": (
        lambda: dw.trace(apply, PARAMS, X, kernels={"pallas_call": None}),  # type: ignore[dict-item]
        ["kernels", "functions of JAX"],
    ),
    "trace: no function": (lambda: dw.trace(None, PARAMS, X), ["apply", "function", "got None"]),
    "trace: variables first": (
        lambda: dw.trace(PARAMS, apply, X),
        ["trace(apply, variables, *inputs)", "wrong order", "variables is the function apply"],
    ),
    "trace: an Equinox module first": (
        lambda: dw.trace(EQUINOX, apply, X),
        ["wrong order", "variables is the function apply"],
    ),
    "trace: inputs before variables": (
        lambda: dw.trace(apply, X, PARAMS),
        ["wrong order", "variables is an array float64[3, 4]", "a dict of 4 arrays"],
    ),
    "trace: no inputs": (
        lambda: dw.trace(apply, PARAMS),
        ["apply cannot be called with a dict of 4 arrays", "'x'", "pass all inputs"],
    ),
    "trace: no inputs of a Linen module": (
        lambda: dw.trace(LINEN.apply, VARIABLES),
        ["apply cannot be called", "'x'", "pass all inputs"],
    ),
    "trace: too many inputs": (
        lambda: dw.trace(LINEN.apply, VARIABLES, X, X),
        ["apply cannot be called", "too many", "no others"],
    ),
    "trace: an option that has no default": (
        lambda: dw.trace(apply_mode, PARAMS, X),
        ["apply cannot be called", "'train'", "functools.partial"],
    ),
    # Variables
    "trace: a module as variables": (
        lambda: dw.trace(LINEN.apply, LINEN, X),
        ["variables", "Linen, a Flax Linen module", "module.init"],
    ),
    "trace: None as variables": (
        lambda: dw.trace(apply, None, X),
        ["variables", "pytree of arrays", "got None"],
    ),
    "trace: names as variables": (
        lambda: dw.trace(apply, ["up", "down"], X),
        ["variables", "pytree of arrays", "['up', 'down']"],
    ),
    "trace: a growth as variables": (lambda: dw.trace(apply, GROWTH, X), ["got a Growth"]),
    # Places
    "trace: fix is a name": (
        lambda: dw.trace(apply, PARAMS, X, fix="up"),
        ["fix", "[(path, axis), ...]", "got 'up'"],
    ),
    "trace: fix is a place": (
        lambda: dw.trace(apply, PARAMS, X, fix=("up/kernel", 1)),
        ["fix: ('up/kernel', 1) is one place", "pass [('up/kernel', 1)]"],
    ),
    "trace: fix is a mapping": (
        lambda: dw.trace(apply, PARAMS, X, fix={"up/kernel": 1}),
        ["fix", "[(path, axis), ...]", "got {'up/kernel': 1}"],
    ),
    "trace: fix is a list of names": (
        lambda: dw.trace(apply, PARAMS, X, fix=["up"]),
        ["'up': is not a place (path, axis)"],
    ),
    "trace: fix is no list": (lambda: dw.trace(apply, PARAMS, X, fix=3), ["fix", "got 3"]),
    "trace: tie is a name": (
        lambda: dw.trace(apply, PARAMS, X, tie="up"),
        ["tie", "[(place, place), ...]", "got 'up'"],
    ),
    "trace: tie is a pair": (
        lambda: dw.trace(apply, PARAMS, X, tie=(("up/kernel", 1), ("down/kernel", 0))),
        ["is one pair", "pass [(('up/kernel', 1), ('down/kernel', 0))]"],
    ),
    # NNX
    "nnx.trace: a Linen module": (
        lambda: dw.nnx.trace(LINEN, X),
        ["model", "Linen, a Flax Linen module", "dw.trace(module.apply, variables, *inputs)"],
    ),
    "nnx.trace: a class": (
        lambda: dw.nnx.trace(Nnx, X),
        ["the class Nnx of NNX modules", "make an instance"],
    ),
    "nnx.trace: the state": (lambda: dw.nnx.trace(nnx.state(NNX), X), ["State", "dw.trace"]),
    "nnx.trace: no inputs": (lambda: dw.nnx.trace(NNX), ["model cannot be called", "'x'"]),
    "nnx.plan: a class": (lambda: dw.nnx.plan(NNX_WIDTHS, target=Nnx), ["target", "the class Nnx"]),
    "nnx.deepen: sizes": (lambda: dw.nnx.deepen(NNX, {"up": 9}), ["target", "got a dict"]),
    "nnx.narrow: swapped": (
        lambda: dw.nnx.narrow(NNX, {"up": [0]}, WIDTHS),
        ["wrong order", "widths"],
    ),
    "nnx.verify: inputs first": (
        lambda: dw.nnx.verify(NNX, X, NNX),
        ["verify(model, wide_model, *inputs)", "wide_model", "inputs come after all modules"],
    ),
    "nnx.plan: sizes as target": (
        lambda: dw.nnx.plan(NNX_WIDTHS, target={"up": 12}),
        ["target", "{'up': 12}", "pass a module in these sizes"],
    ),
    "nnx.plan: a state as target": (
        lambda: dw.nnx.plan(NNX_WIDTHS, target=nnx.state(NNX)),
        ["target", "a State of 4 arrays", "pass the module itself"],
    ),
    "nnx.grow: nnx.Rngs as key": (
        lambda: dw.nnx.grow(NNX, NNX_GROWTH, key=RNGS),
        ["key", "got an nnx.Rngs", "pass rngs.params()"],
    ),
    "nnx.verify: the function and variables": (
        lambda: dw.nnx.verify(apply, PARAMS, apply, PARAMS, X),
        ["model", "got the function"],
    ),
    "nnx.grow: an Equinox module": (
        lambda: dw.nnx.grow(NNX, NNX_GROWTH, fresh=EQUINOX),
        ["fresh", "MLP, an Equinox module"],
    ),
    "nnx.grow: a number as key": (
        lambda: dw.nnx.grow(NNX, NNX_GROWTH, key=0),
        ["key", "got the int 0", "jax.random.key(0)"],
    ),
    "nnx.grow_optimizer: swapped": (
        lambda: dw.nnx.grow_optimizer(GROWTH, NNX_OPTIMIZER, NNX),
        ["wrong order", "a Growth", "an nnx.Optimizer"],
    ),
    "nnx.grow_optimizer: the state alone": (
        lambda: dw.nnx.grow_optimizer(STATE, NNX, GROWTH),
        ["an nnx.Optimizer", "an optimizer's state of ScaleByAdamState"],
    ),
    # Plans
    "plan: variables": (
        lambda: dw.plan(PARAMS, {"up": 12}),
        ["widths", "dw.trace", "got a dict of 4 arrays"],
    ),
    "plan: swapped": (
        lambda: dw.plan({"up": 12}, WIDTHS),
        ["plan(widths, sizes)", "wrong order", "sizes is Widths"],
    ),
    "plan: nothing": (lambda: dw.plan(WIDTHS), ["plan needs sizes"]),
    "plan: a number": (lambda: dw.plan(WIDTHS, 12), ["sizes", "mapping", "got the int 12"]),
    "plan: a list": (lambda: dw.plan(WIDTHS, ["up"]), ["sizes", "mapping", "got a list"]),
    "plan: a size that is a boolean": (
        lambda: dw.plan(WIDTHS, {"up": True}),
        ["up", "must be an integer", "got True"],
    ),
    "plan: a size that is a float": (
        lambda: dw.plan(WIDTHS, {"up": 12.0}),
        ["up", "must be an integer", "got 12.0"],
    ),
    "plan: an index for a name": (lambda: dw.plan(WIDTHS, {0: 12}), ["the int 0", "'up'"]),
    "plan: a width for a name": (lambda: dw.plan(WIDTHS, {UP: 12}), ["a Width", "'up'"]),
    "plan: half a place": (lambda: dw.plan(WIDTHS, {("up/kernel",): 12}), ["up/kernel", "'up'"]),
    "plan: an axis that is a name": (
        lambda: dw.plan(WIDTHS, {("up/kernel", "1"): 12}),
        ["axis of up/kernel", "'1'"],
    ),
    "plan: a Linen module as target": (
        lambda: dw.plan(LINEN_WIDTHS, target=LINEN),
        ["target", "Linen, a Flax Linen module", "module.init"],
    ),
    "plan: a class as target": (
        lambda: dw.plan(EQUINOX_WIDTHS, target=eqx.nn.MLP),
        ["target", "the class MLP of Equinox modules", "jax.eval_shape"],
    ),
    "plan: an Equinox module as target of another library's": (
        lambda: dw.plan(LINEN_WIDTHS, target=EQUINOX),
        ["target", "params/Dense_1/kernel", "MLP, an Equinox module", "another network's"],
    ),
    "plan: bare params as target": (
        lambda: dw.plan(WIDTHS_IN_PARAMS, target=WIDE),
        ["target", "params/up/kernel", "{'params': ...}"],
    ),
    "plan: a collection as target": (
        lambda: dw.plan(WIDTHS, target={"params": WIDE}),
        ["target", "params/down/bias", "target['params']"],
    ),
    "plan: sizes as target": (
        lambda: dw.plan(WIDTHS, target={"up": 12}),
        ["target", "pytree of arrays", "{'up': 12}"],
    ),
    "plan: a module as target_apply": (
        lambda: dw.plan(LINEN_WIDTHS, target=VARIABLES, target_apply=LINEN),
        ["target_apply", "Linen, a Flax Linen module", "module.apply"],
    ),
    "plan: the small model's function as target_apply": (
        lambda: dw.plan(LINEN_WIDTHS, target=LINEN_WIDE, target_apply=LINEN.apply),
        ["function of target=?", "Pass the larger model's", "is the small network's"],
    ),
    "plan: a deeper model's function as target_apply": (
        lambda: dw.plan(WIDTHS, target=WIDE, target_apply=apply_deeper),
        ["function of target=?", "Pass the larger model's", "KeyError: 'mid'"],
    ),
    "plan: as target_apply a function that reads no new layer": (
        lambda: dw.plan(WIDTHS, target=DEEPER, target_apply=apply),
        ["function of target=?", "reads no new array", "such as mid/bias", "the deeper model's"],
    ),
    "update of a growable optimizer: its inner state": (
        lambda: GROWABLE.update(PARAMS, STATE, PARAMS),
        ["update: state must be a GrowableState", "ScaleByAdamState", "tx.init(params)"],
    ),
    "update of a growable optimizer: arguments swapped": (
        lambda: GROWABLE.update(GROWABLE_STATE, PARAMS, PARAMS),
        ["update: state must be a GrowableState", "a dict of 4 arrays"],
    ),
    "plan: target_apply without sizes or a target": (
        lambda: dw.plan(WIDTHS, keep={"up": [0]}, target_apply=apply),
        ["target_apply=", "sizes", "target="],
    ),
    "plan: the name of a strategy": (
        lambda: dw.plan(WIDTHS, {"up": 12}, strategy="zeros"),
        ["strategy", "dw.strategies", "'zeros'"],
    ),
    "plan: units to keep without a width": (
        lambda: dw.plan(WIDTHS, keep=[0, 1]),
        ["keep", "mapping", "[0, 1]"],
    ),
    "plan: no unit to keep": (
        lambda: dw.plan(WIDTHS, keep={"up": []}),
        ["up", "none of its 8 units", "keep one"],
    ),
    "plan: a mask of no unit": (
        lambda: dw.plan(WIDTHS, keep={"up": np.zeros(8, bool)}),
        ["up", "none of its 8 units", "keep one"],
    ),
    "plan: one unit, not a list of one": (
        lambda: dw.plan(WIDTHS, keep={"up": 0}),
        ["up", "distinct indices below 8", "got 0"],
    ),
    "plan: one group, not a list of one": (
        lambda: dw.plan(WIDTHS, merge={"up": (0, 1)}),
        ["up", "groups of distinct units", "[(0, 1)]", "got (0, 1)"],
    ),
    "plan: groups of masks": (
        lambda: dw.plan(WIDTHS, merge={"up": [(True, False)]}),
        ["up", "groups of distinct units", "(True, False)"],
    ),
    "plan: the name of an interface": (
        lambda: dw.plan(WIDTHS, {"down": 4}, interface="down"),
        ["interface", "True or False", "'down'"],
    ),
    # Removing units
    "narrow: no unit": (
        lambda: dw.narrow(PARAMS, WIDTHS, {"up": []}),
        ["up", "none of its 8 units", "keep one"],
    ),
    "narrow: None": (lambda: dw.narrow(PARAMS, WIDTHS, None), ["keep", "mapping", "got None"]),
    "narrow: swapped": (
        lambda: dw.narrow(WIDTHS, PARAMS, {"up": [0]}),
        ["narrow(variables, widths, keep)", "wrong order", "variables is Widths"],
    ),
    "narrow: one width": (
        lambda: dw.narrow(PARAMS, UP, {"up": [0]}),
        ["widths", "dw.trace", "got a Width"],
    ),
    "narrow: other variables": (
        lambda: dw.narrow(IN_PARAMS, WIDTHS, {"up": [0]}),
        ["up/kernel", "variables['params']"],
    ),
    "merge_symmetric: a width": (
        lambda: dw.merge_symmetric(PARAMS, WIDTHS, UP),
        ["names", "got a Width", "pass 'up'"],
    ),
    "merge_symmetric: an unknown name": (
        lambda: dw.merge_symmetric(PARAMS, WIDTHS, "upp"),
        ["no width 'upp'", "'up'"],
    ),
    "merge_symmetric: other variables": (
        lambda: dw.merge_symmetric(IN_PARAMS, WIDTHS, "up"),
        ["up/kernel", "variables['params']"],
    ),
    # Growing
    "grow: swapped": (
        lambda: dw.grow(GROWTH, PARAMS, key=KEY),
        ["grow(variables, growth)", "wrong order", "variables is a Growth"],
    ),
    "grow: widths": (lambda: dw.grow(PARAMS, WIDTHS), ["growth", "dw.plan", "got Widths"]),
    "grow: sizes": (
        lambda: dw.grow(PARAMS, {"up": 12}),
        ["growth", "{'up': 12}", "dw.plan(widths, sizes)"],
    ),
    "grow: bare params": (
        lambda: dw.grow(PARAMS, GROWTH_IN_PARAMS, key=KEY),
        ["params/up/kernel", "down/bias", "{'params': ...}"],
    ),
    "grow: a collection": (
        lambda: dw.grow(IN_PARAMS, GROWTH, key=KEY),
        ["up/kernel", "params/down/bias", "variables['params']"],
    ),
    "grow: a module": (lambda: dw.grow(LINEN, GROWTH), ["Flax Linen module", "module.init"]),
    "grow: another network": (
        lambda: dw.grow(VARIABLES, GROWTH, key=KEY),
        ["up/kernel", "params/Dense_0/bias", "another network's"],
    ),
    "grow: an optimizer's state": (
        lambda: dw.grow(STATE, GROWTH, key=KEY),
        ["an optimizer's state of ScaleByAdamState", "dw.grow_opt_state"],
    ),
    "grow: shapes as fresh": (
        lambda: dw.grow(PARAMS, GROWTH, fresh=jax.eval_shape(lambda: WIDE)),
        ["fresh must hold values, got the shape", "init returns"],
    ),
    "grow: a training state": (
        lambda: dw.grow(TRAIN_STATE, GROWTH_IN_PARAMS, key=KEY),
        ["a TrainState", "dw.grow_opt_state"],
    ),
    "grow: an nnx.Optimizer": (
        lambda: dw.grow(NNX_OPTIMIZER, GROWTH, key=KEY),
        ["an nnx.Optimizer", "dw.nnx.grow_optimizer"],
    ),
    "grow: twice": (
        lambda: dw.grow(WIDE, GROWTH, key=KEY),
        ["have grown already", "trace and plan again"],
    ),
    "grow: shapes": (
        lambda: dw.grow(SHAPES, GROWTH, key=KEY),
        ["values", "the shape float64", "jax.eval_shape"],
    ),
    "narrow: shapes": (
        lambda: dw.narrow(SHAPES, WIDTHS, {"up": [0]}),
        ["values", "the shape float64", "jax.eval_shape"],
    ),
    "grow: NaN": (lambda: dw.grow(NAN, GROWTH, key=KEY), ["up/kernel", "NaN", "checkpoint"]),
    "grow: infinity": (
        lambda: dw.grow(INFINITE, GROWTH, key=KEY),
        ["down/kernel", "infinities", "checkpoint"],
    ),
    "grow: no key": (lambda: dw.grow(PARAMS, GROWTH), ["up/kernel", "pass key= or fresh="]),
    "grow: a number as key": (
        lambda: dw.grow(PARAMS, GROWTH, key=0),
        ["key", "got the int 0", "pass jax.random.key(0)"],
    ),
    "grow: several keys": (
        lambda: dw.grow(PARAMS, GROWTH, key=KEYS),
        ["one random key", "key<fry>[3]"],
    ),
    "grow: several keys of the old kind": (
        lambda: dw.grow(PARAMS, GROWTH, key=np.zeros((3, 2), np.uint32)),
        ["one random key", "uint32[3, 2]"],
    ),
    "grow: nnx.Rngs as key": (
        lambda: dw.grow(PARAMS, GROWTH, key=RNGS),
        ["one random key", "Rngs"],
    ),
    "grow: a module as fresh": (
        lambda: dw.grow(PARAMS, GROWTH, fresh=LINEN),
        ["fresh", "Flax Linen module", "module.init"],
    ),
    "grow: a key as fresh": (lambda: dw.grow(PARAMS, GROWTH, fresh=KEY), ["fresh", "key<fry>[]"]),
    "grow: a collection as fresh": (
        lambda: dw.grow(PARAMS, GROWTH, fresh={"params": WIDE}),
        ["fresh", "params/down/bias", "fresh['params']"],
    ),
    "grow: NaN in fresh": (
        lambda: dw.grow(PARAMS, GROWTH, fresh=jax.tree.map(lambda a: a * np.nan, WIDE)),
        ["up/kernel", "NaN", "fresh"],
    ),
    # Optimizers
    "grow_opt_state: an nnx.Optimizer": (
        lambda: dw.grow_opt_state(NNX_OPTIMIZER, GROWTH, TX),
        ["an nnx.Optimizer", "dw.nnx.grow_optimizer"],
    ),
    "grow_opt_state: swapped": (
        lambda: dw.grow_opt_state(STATE, TX, GROWTH),
        ["grow_opt_state(opt_state, growth, tx)", "wrong order", "tx is a Growth"],
    ),
    "grow_opt_state: in the reverse order": (
        lambda: dw.grow_opt_state(TX, GROWTH, STATE),
        ["wrong order", "opt_state is an optimizer"],
    ),
    "grow_opt_state: variables": (
        lambda: dw.grow_opt_state(PARAMS, GROWTH, TX),
        ["opt_state", "the network's variables", "tx.init"],
    ),
    "grow_opt_state: None": (
        lambda: dw.grow_opt_state(None, GROWTH, TX),
        ["opt_state", "got None", "tx.init"],
    ),
    "grow_opt_state: another optimizer's state": (
        lambda: dw.grow_opt_state(SGD_STATE, GROWTH, TX),
        ["ScaleByAdamState", "TraceState", "optimizer whose init made it"],
    ),
    "grow_opt_state: another optimizer's state without arrays": (
        lambda: dw.grow_opt_state(optax.sgd(0.1).init(PARAMS), GROWTH, TX),
        ["ScaleByAdamState", "EmptyState", "optimizer whose init made it"],
    ),
    "grow_opt_state: another network's state": (
        lambda: dw.grow_opt_state(OTHER_STATE, GROWTH, TX),
        ["'0/mu/in/kernel'", "'up/kernel'", "another network's", "pass the growth of the network"],
    ),
    "grow_opt_state: a state of another network with the same names": (
        lambda: dw.grow_opt_state(SAME_NAMES_STATE, GROWTH, SGD),
        ["0/trace/up/kernel", "(4, 5)", "(4, 8)", "pass the growth of the network"],
    ),
    "nnx.grow_optimizer: growth of another module": (
        lambda: dw.nnx.grow_optimizer(OTHER_NNX_OPTIMIZER, NNX_GROWTH, NNX),
        ["'0/mu/layers/0/kernel'", "another network's", "pass the growth of the network"],
    ),
    "grow_opt_state: a state of other variables": (
        lambda: dw.grow_opt_state(IN_STATE, GROWTH, TX),
        ["0/mu/params/down/bias", "in 'params'", "{'params': ...}"],
    ),
    "grow_opt_state: twice": (
        lambda: dw.grow_opt_state(WIDE_STATE, GROWTH, TX),
        ["has grown already", "trace and plan again"],
    ),
    "grow_opt_state: a function that makes optimizers": (
        lambda: dw.grow_opt_state(STATE, GROWTH, optax.adam),
        ["tx", "the function adam", "optax.adam(1e-3)"],
    ),
    "grow_opt_state: an nnx.Optimizer as tx": (
        lambda: dw.grow_opt_state(STATE, GROWTH, NNX_OPTIMIZER),
        ["tx", "an nnx.Optimizer", "optimizer.tx"],
    ),
    "grow_opt_state: widths": (
        lambda: dw.grow_opt_state(STATE, WIDTHS, TX),
        ["growth", "got Widths"],
    ),
    "grow_opt_state: a growth as variables": (
        lambda: dw.grow_opt_state(STATE, GROWTH, TX, variables=GROWTH),
        ["variables", "pytree of arrays", "got a Growth"],
    ),
    "grow_opt_state: a list of fields": (
        lambda: dw.grow_opt_state(STATE, GROWTH, TX, fields=["mu"]),
        ["fields", "mapping", "['mu']"],
    ),
    "growable: a class": (
        lambda: dw.growable(optax.adam),
        ["tx", "optax.GradientTransformation"],
    ),
    "growable: a growth": (lambda: dw.growable(GROWTH), ["tx", "got a Growth"]),
    "growable: a fraction of steps": (
        lambda: dw.growable(TX, warmup=0.5),
        ["warmup", "an integer", "0.5"],
    ),
    "shardings: arrays": (
        lambda: GROWTH.shardings(PARAMS),
        ["a dict of 4 arrays", "array.sharding"],
    ),
    "shardings: nothing": (lambda: GROWTH.shardings({}), ["without arrays", "array.sharding"]),
    # By name
    "widen: a list of layers": (
        lambda: dw.widen(PARAMS, ["up"], order=("up", "down")),
        ["layer", "{name: units}", "['up']"],
    ),
    "widen: swapped": (
        lambda: dw.widen("up", PARAMS, into="down", units=9),
        ["widen(params, layer)", "wrong order"],
    ),
    "widen: a list of readers": (
        lambda: dw.widen(PARAMS, "up", into=["down"], units=9),
        ["into", "the name of a layer", "['down']"],
    ),
    "widen: an order of arrays": (
        lambda: dw.widen(PARAMS, {"up": 9}, order=tuple(PARAMS.values())),
        ["order", "names", "a tuple of 4 arrays"],
    ),
    "widen: a boolean": (
        lambda: dw.widen(PARAMS, "up", into="down", units=True, key=KEY),
        ["up", "must be an integer", "got True"],
    ),
    "widen: a number as key": (
        lambda: dw.widen(PARAMS, "up", into="down", units=9, key=0),
        ["key", "got the int 0", "jax.random.key(0)"],
    ),
    "widen: a module": (
        lambda: dw.widen(LINEN, "up", into="down", units=9),
        ["params", "Flax Linen module", "module.init"],
    ),
    "chain: swapped": (
        lambda: dw.chain(("up", "down"), PARAMS),
        ["chain(params, order)", "wrong order"],
    ),
    "chain: numbers": (lambda: dw.chain(PARAMS, (0, 1)), ["order", "names", "(0, 1)"]),
    # Layers
    "deepen: nothing": (lambda: dw.deepen(PARAMS), ["either target=", "or layers="]),
    "deepen: a list of layers": (
        lambda: dw.deepen(PARAMS, layers=["mid"]),
        ["layers", "{name: name}", "['mid']"],
    ),
    "deepen: a module as target": (
        lambda: deepen(PARAMS, LINEN, inputs=(X,)),
        ["target", "Flax Linen module", "module.init"],
    ),
    "deepen: modules as functions": (
        lambda: dw.deepen(PARAMS, DEEPER, apply=LINEN, target_apply=LINEN, inputs=(X,)),
        ["apply", "Flax Linen module", "module.apply"],
    ),
    "deepen: an input instead of a tuple of one": (
        lambda: deepen(PARAMS, DEEPER, inputs=X),
        ["inputs", "(x,)", "float64[3, 4]"],
    ),
    "deepen: no inputs": (
        lambda: deepen(PARAMS, DEEPER),
        ["apply cannot be called", "'x'", "pass all inputs"],
    ),
    "deepen: a batch instead of a tuple of one": (
        lambda: deepen(PARAMS, DEEPER, inputs=(X,), batch=X),
        ["batch", "(x,)", "float64[3, 4]"],
    ),
    "deepen: a number as key": (
        lambda: deepen(PARAMS, DEEPER, inputs=(X,), key=0),
        ["key", "got the int 0", "jax.random.key(0)"],
    ),
    "deepen: shapes": (
        lambda: dw.deepen(SHAPES, layers={"mid": "up"}),
        ["values", "the shape float64", "jax.eval_shape"],
    ),
    "deepen: a growth": (lambda: deepen(GROWTH, DEEPER, inputs=(X,)), ["got a Growth"]),
    # Units
    "find_symmetric: widths": (
        lambda: dw.find_symmetric(PARAMS, WIDTHS),
        ["got Widths", "widths[name]"],
    ),
    "find_symmetric: a name": (lambda: dw.find_symmetric(PARAMS, "up"), ["widths['up']"]),
    "find_symmetric: swapped": (
        lambda: dw.find_symmetric(UP, PARAMS),
        ["find_symmetric(variables, width)", "wrong order", "variables is a Width"],
    ),
    "find_symmetric: other variables": (
        lambda: dw.find_symmetric(IN_PARAMS, UP),
        ["up/kernel", "variables['params']"],
    ),
    "find_symmetric: no tolerance": (
        lambda: dw.find_symmetric(PARAMS, UP, tolerance=None),
        ["tolerance", "got None"],
    ),
    "find_symmetric: shapes": (
        lambda: dw.find_symmetric(SHAPES, UP),
        ["values", "the shape float64", "pass trained weights"],
    ),
    "find_dead: a name": (lambda: dw.find_dead(PARAMS, "up"), ["widths['up']"]),
    "find_dead: other variables": (
        lambda: dw.find_dead(PARAMS, WIDTHS_IN_PARAMS["up"]),
        ["params/up/kernel", "{'params': ...}"],
    ),
    "find_dead: a negative tolerance": (
        lambda: dw.find_dead(PARAMS, UP, tolerance=-1),
        ["tolerance", "got -1"],
    ),
    "activity: no widths": (
        lambda: dw.activity(apply, PARAMS, X),
        ["the Widths", "float64[3, 4]"],
    ),
    "activity: swapped": (
        lambda: dw.activity(PARAMS, apply, WIDTHS, X),
        ["wrong order", "variables is the function apply"],
    ),
    "activity: no inputs": (
        lambda: dw.activity(apply, PARAMS, WIDTHS),
        ["apply cannot be called", "'x'"],
    ),
    "activity: other variables": (
        lambda: dw.activity(apply, IN_PARAMS, WIDTHS, X),
        ["up/kernel", "variables['params']"],
    ),
    "dormant: a width": (
        lambda: dw.dormant(apply, PARAMS, UP, X),
        ["widths must be the Widths", "Width"],
    ),
    "dormant: swapped": (
        lambda: dw.dormant(PARAMS, apply, WIDTHS, X),
        ["wrong order", "variables is the function apply"],
    ),
    "dormant: no inputs": (
        lambda: dw.dormant(apply, PARAMS, WIDTHS),
        ["apply cannot be called", "'x'"],
    ),
    "dormant: other variables": (
        lambda: dw.dormant(apply, IN_PARAMS, WIDTHS, X),
        ["up/kernel", "variables['params']"],
    ),
    "dormant: other sizes": (
        lambda: dw.dormant(apply, WIDE, WIDTHS, X),
        ["down/kernel: has shape (12, 2), expected 8", "up/bias", "up/kernel", "trace again"],
    ),
    "dormant: tau": (
        lambda: dw.dormant(apply, PARAMS, WIDTHS, X, tau=-0.1),
        ["tau must be zero or positive, got -0.1"],
    ),
    "dormant: tau of another kind": (
        lambda: dw.dormant(apply, PARAMS, WIDTHS, X, tau="0.1"),
        ["tau must be a number, got the str '0.1'"],
    ),
    "utility: of other kinds": (
        lambda: dw.training.utility(apply, WIDTHS, maturity=1.5, share="1"),
        ["maturity must be an integer", "share must be a number"],
    ),
    "utility: swapped": (
        lambda: dw.training.utility(WIDTHS, apply),
        ["wrong order"],
    ),
    "utility: out of range": (
        lambda: dw.training.utility(apply, WIDTHS, decay=1.0, maturity=-1, share=0),
        ["decay must be", "got 1.0", "maturity must be", "got -1", "share must be", "got 0"],
    ),
    "utility: other variables": (
        lambda: dw.training.utility(apply, WIDTHS).init(IN_PARAMS),
        ["up/kernel", "variables['params']"],
    ),
    "utility: no state": (
        lambda: dw.training.utility(apply, WIDTHS).update(PARAMS, PARAMS, X),
        ["state must be the state that utility.init returns"],
    ),
    "utility: the state of another network": (
        lambda: dw.training.utility(apply, WIDTHS).update(UTILITY_WIDE, PARAMS, X),
        ["{'up': (12,)}", "{'up': (8,)}", "start again"],
    ),
    "saliency: no batch": (
        lambda: dw.saliency(PARAMS, WIDTHS, lambda params, x: apply(params, x).mean()),
        ["by='first_order' needs a loss", "saliency(variables, widths, loss, x, y)", "by='norm'"],
    ),
    "compare: no inputs": (
        lambda: dw.compare(apply, PARAMS, apply, WIDE),
        ["old_apply cannot be called", "'x'"],
    ),
    "compare: swapped": (
        lambda: dw.compare(apply, apply, PARAMS, WIDE, X),
        ["compare(old_apply, old_variables, new_apply, new_variables", "wrong order"],
    ),
    "compare: modules": (
        lambda: dw.compare(LINEN, VARIABLES, LINEN, VARIABLES, X),
        ["old_apply", "new_apply", "Flax Linen module", "module.apply"],
    ),
    # Look-ups
    "widths: an index": (lambda: WIDTHS[0], ["the int 0", "'up'"]),
    "widths: a place": (lambda: WIDTHS.of("up/kernel", None), ["axis of up/kernel", "None"]),
    "widths: no path": (lambda: WIDTHS.leaf(0), ["no array", "the int 0", "'up/kernel'"]),
    # JSON
    "to_json: variables": (
        lambda: dw.to_json(PARAMS),
        ["Widths", "Growth", "got a dict of 4 arrays"],
    ),
    "from_json: an empty object": (lambda: dw.from_json("{}"), ["to_json", "without 'type'"]),
    "from_json: a list": (lambda: dw.from_json("[]"), ["to_json", "got '[]'"]),
    "from_json: the name of a file": (
        lambda: dw.from_json("growth.json"),
        ["'growth.json', which is not JSON", "pass the file's content"],
    ),
    "from_json: half a text": (
        lambda: dw.from_json(dw.to_json(GROWTH)[:300]),
        ["which is not JSON", "char 300"],
    ),
    "from_json: an object": (
        lambda: dw.from_json({"type": "Widths"}),
        ["text", "got a dict", "json.dumps"],
    ),
    "from_json: a growth": (lambda: dw.from_json(GROWTH), ["text", "got a Growth"]),
    "from_json: a part": (
        lambda: dw.from_json('{"type": "Leaf", "path": "up", "shape": [], "axes": []}'),
        ["of widths or a growth", "Leaf"],
    ),
    "from_json: a type of a newer version": (
        lambda: dw.from_json('{"type": "Widths", "leaves": [{"type": "Sparse"}]}'),
        [f"dogwood_jax {dw.__version__}", "'Sparse'", "older"],
    ),
    "from_json: a member of a newer version": (
        lambda: dw.from_json('{"type": "Widths", "leaves": [], "blocks": []}'),
        [f"dogwood_jax {dw.__version__}", "'blocks'", "older"],
    ),
    "from_json: something is missing": (
        lambda: dw.from_json('{"type": "Widths"}'),
        ["Widths lacks leaves"],
    ),
    "from_json: something is of another kind": (
        lambda: dw.from_json('{"type": "Widths", "leaves": 3}'),
        ["Widths.leaves", "the int 3"],
    ),
    # Strategies
    "strategies: the name of an initializer": (
        lambda: strategies.zero_outgoing("glorot"),
        ["init", "jax.nn.initializers", "'glorot'"],
    ),
    "strategies: a scale instead of an initializer": (
        lambda: strategies.random(0.1),
        ["init", "jax.nn.initializers", "0.1"],
    ),
    "strategies: a key instead of an initializer": (
        lambda: strategies.tile(KEY),
        ["init", "jax.nn.initializers", "key<fry>[]"],
    ),
    "glorot: a number as key": (
        lambda: strategies.glorot(0, (4, 8)),
        ["key", "got the int 0", "jax.random.key(0)"],
    ),
    "replicate: a split instead of noise": (
        lambda: strategies.replicate("uneven"),
        ["noise", "a number", "'uneven'"],
    ),
    "replicate: a mask of units": (
        lambda: strategies.replicate(units=np.ones(8, bool)),
        ["units", "integers", "bool[8]", "np.flatnonzero"],
    ),
    "replicate: one unit": (
        lambda: strategies.replicate(units=3),
        ["units", "a list", "got the int 3"],
    ),
    "gradmax: a batch": (lambda: strategies.gradmax(X), ["loss", "a function", "float64[3, 4]"]),
    "gradmax: no number": (
        lambda: strategies.gradmax(apply, X, epsilon="small"),
        ["epsilon", "a number", "'small'"],
    ),
    "firefly: half a candidate": (
        lambda: strategies.firefly(apply, X, candidates=2.5),
        ["candidates", "an integer", "2.5"],
    ),
    "cost: epochs as stages": (
        lambda: dw.cost(WIDTHS, stages=[2, 14]),
        ["stages", "a list of training.Stage", "[2, 14]"],
    ),
    # Training
    "fit: a module": (
        lambda: fit(LINEN, VARIABLES, TX, DATA),
        ["apply", "Flax Linen module", "module.apply"],
    ),
    "fit: an NNX module": (
        lambda: fit(NNX, nnx.state(NNX), TX, DATA),
        ["apply", "Nnx, an NNX module", "nnx.split(module)", "nnx.update(module, run.variables)"],
    ),
    "fit: inputs without labels": (
        lambda: fit(apply, PARAMS, TX, X),
        ["data", "an array float64[3, 4]", "pass (inputs, labels)"],
    ),
    "fit: one-hot labels": (
        lambda: fit(apply, PARAMS, TX, (X, np.eye(3, 2))),
        ["data", "integers", "float64[3, 2]", "loss=optax.softmax_cross_entropy"],
    ),
    "evaluate: one-hot labels": (
        lambda: training.evaluate(apply, PARAMS, (X, np.eye(3, 2))),
        ["data", "integers", "float64[3, 2]", "loss=optax.softmax_cross_entropy"],
    ),
    "fit: a loss of variables": (
        lambda: fit(apply, PARAMS, TX, DATA, loss=lambda params, x, y: apply(params, x).mean()),
        ["loss must be", "loss(outputs, labels)", "the loop itself calls apply"],
    ),
    "fit: swapped": (
        lambda: fit(apply, TX, PARAMS, DATA),
        ["wrong order", "variables is an optimizer", "tx is a dict of 4 arrays"],
    ),
    "fit: a function that makes optimizers": (
        lambda: fit(apply, PARAMS, optax.adam, DATA),
        ["tx", "the function adam", "optax.adam(1e-3)"],
    ),
    "fit: an option that has no default": (
        lambda: fit(apply_mode, PARAMS, TX, DATA),
        ["apply cannot be called", "'train'", "functools.partial"],
    ),
    "fit: a number as key": (
        lambda: fit(apply, PARAMS, TX, DATA, key=0),
        ["key", "jax.random.key(0)", "got int"],
    ),
    "fit: booleans": (
        lambda: fit(apply, PARAMS, TX, DATA, epochs=True, batch_size=True),
        ["epochs", "batch_size", "got True"],
    ),
    "fit: half a step": (
        lambda: fit(apply, PARAMS, TX, DATA, epochs=None, steps=0.5),
        ["steps", "an integer", "0.5"],
    ),
    "fit: a time of day": (
        lambda: fit(apply, PARAMS, TX, DATA, epochs=None, seconds="13:20"),
        ["seconds", "a positive number", "'13:20'"],
    ),
    "fit: an optimizer as its state": (
        lambda: fit(apply, PARAMS, TX, DATA, opt_state=TX),
        ["opt_state", "got an optimizer", "tx.init"],
    ),
    "fit: another optimizer's state": (
        lambda: fit(apply, PARAMS, TX, DATA, opt_state=SGD_STATE),
        ["opt_state", "ScaleByAdamState", "TraceState"],
    ),
    "fit: the name of a loss": (
        lambda: fit(apply, PARAMS, TX, DATA, loss="mse"),
        ["loss", "a function", "'mse'"],
    ),
    "evaluate: swapped": (
        lambda: training.evaluate(PARAMS, apply, DATA),
        ["training.evaluate(apply, variables, data)", "wrong order"],
    ),
    "evaluate: variables as data": (
        lambda: training.evaluate(apply, DATA, PARAMS),
        ["data", "(inputs, labels)", "got dict"],
    ),
    # What fails within another library, or much later
    "trace: a training state": (
        lambda: dw.trace(LINEN.apply, LINEN_STATE, X),
        ["variables is a TrainState", '{"params": state.params}'],
    ),
    "trace: parameters without their collection": (
        lambda: dw.trace(LINEN.apply, LINEN_VARIABLES["params"], X),
        ["variables, a dict of 4 arrays", "no collection 'params'"],
    ),
    "trace: variables without running statistics": (
        lambda: dw.trace(Normed().apply, {"params": NORMED["params"]}, X),
        ["no collection 'batch_stats'", '{"params": ..., "batch_stats": ...}'],
    ),
    "trace: running statistics in training mode": (
        lambda: dw.trace(functools.partial(Normed().apply, train=True), NORMED, X),
        ["training mode", "'batch_stats'", "train=False", "mutable=['batch_stats']"],
    ),
    "trace: dropout in training mode": (
        lambda: dw.trace(Dropped().apply, {}, X),
        ["draws random numbers", "evaluation mode", "deterministic=True"],
    ),
    "nnx.trace: no inputs of a module that takes any": (
        lambda: dw.nnx.trace(OTHER_NNX),
        ["apply fails", "without inputs"],
    ),
    "trace: a shape as input": (
        lambda: dw.trace(LINEN.apply, LINEN_VARIABLES, (3, 4)),
        ["input 0 is (3, 4)", "jax.ShapeDtypeStruct((3, 4), jnp.float32)"],
    ),
    "trace: a text as input": (
        lambda: dw.trace(LINEN.apply, LINEN_VARIABLES, "x"),
        ["input 0 is the text 'x'"],
    ),
    "trace: init": (
        lambda: dw.trace(LINEN.init, LINEN_VARIABLES, X),
        ["apply is module.init", "pass module.apply"],
    ),
    "plan: a training state as target": (
        lambda: dw.plan(WIDTHS_IN_PARAMS, target=LINEN_STATE),
        ["target must be like", "a TrainState", '{"params": state.params}'],
    ),
    "plan: no units": (lambda: dw.plan(WIDTHS, {"up": -3}), ["at least one unit, got -3"]),
    "trace: an input by its name": (
        lambda: dw.trace(apply, PARAMS, x=X),
        ["no argument x", "pass inputs by position, trace(apply, variables, input)"],
    ),
    "trace: a module of Equinox and several samples": (
        lambda: dw.trace(lambda module, x: module(x), ONE_SAMPLE, X),
        ["takes one sample", "jax.vmap(module)(x)"],
    ),
    "fit: parameters without their collection": (
        lambda: training.fit(
            LINEN.apply,
            LINEN_VARIABLES["params"],
            optax.sgd(0.1),
            (X, np.zeros(3, int)),
            epochs=1,
            batch_size=3,
            key=KEY,
        ),
        ["no collection 'params'"],
    ),
    "plan: keep beside a size": (
        lambda: dw.plan(WIDTHS, {"up": 4}, keep={"up": [0, 1]}),
        ["'up'", "in sizes and in keep=", "leave out its size"],
    ),
    "plan: fewer units": (
        lambda: dw.plan(WIDTHS, {"up": 4}),
        ["4 units are fewer than today's 8", "keep={name: [0, 2, ...]}"],
    ),
    "plan: nothing grows": (
        lambda: dw.plan(WIDTHS, {"up": 8}),
        ["nothing grows", "up has 8 units already"],
    ),
    "plan: a strategy of a width that stays": (
        lambda: dw.plan(WIDTHS, {"up": 12}, strategy={"down": strategies.random()}),
        ["down: has a strategy, but does not grow"],
    ),
    "plan: too many units": (
        lambda: dw.plan(WIDTHS, {"up": 10**12}),
        ["up: 1000000000000 units are too many", "up/kernel would take 16,000 GB in float32"],
    ),
    "plan: experts": (
        lambda: dw.plan(WIDTHS, target=EXPERTS, target_apply=apply_experts),
        ["2 arrays like up/kernel in one", "dw.upcycle"],
    ),
    "narrow: an output": (
        lambda: dw.plan(WIDTHS, keep={"down": [0]}),
        ["down", "interface=True to remove some of its units"],
    ),
    "grow: a module of NNX": (
        lambda: dw.grow(NNX, GROWTH, key=KEY),
        ["Nnx, an NNX module", "dw.nnx.grow"],
    ),
    "nnx.grow: another module's growth": (
        lambda: dw.nnx.grow(OTHER_NNX, NNX_GROWTH, key=KEY),
        ["model must hold 'up/kernel'", "Sequential, an NNX module", "another network's"],
    ),
    "fit: a batch larger than the data": (
        lambda: training.fit(apply, PARAMS, TX, DATA, epochs=1, batch_size=8, key=KEY),
        ["batch_size: expected at most 3", "got 8"],
    ),
    "gain: a loss that needs a batch": (
        lambda: dw.gain(PARAMS, WIDTHS, lambda params, x: apply(params, x).mean()),
        ["loss cannot be called", "'x'"],
    ),
    "gain: a loss that is no scalar": (
        lambda: dw.gain(PARAMS, WIDTHS, apply, X),
        ["the loss must be a scalar", "float64[3, 2]"],
    ),
    # Files and pictures
    "keras_h5.load: variables": (
        lambda: keras_h5.load(PARAMS),
        ["path", "os.PathLike", "a dict of 4 arrays"],
    ),
    "keras_h5.inspect: a number": (lambda: keras_h5.inspect(3), ["path", "got the int 3"]),
    "keras_h5.load: no limit": (
        lambda: keras_h5.load("model.h5", limit="1 GB"),
        ["limit", "an integer", "'1 GB'"],
    ),
    "keras_h5.save: swapped": (
        lambda: keras_h5.save(PARAMS, "model.h5"),
        ["keras_h5.save(path, variables)", "wrong order"],
    ),
    "keras_h5.save: like variables": (
        lambda: keras_h5.save("model.h5", PARAMS, like=PARAMS),
        ["like", "os.PathLike", "a dict of 4 arrays"],
    ),
    "mnist.load: an unknown source": (lambda: dw.mnist.load("full"), ["'subset'", "'full'"]),
    "plotting.widths: a growth": (
        lambda: plotting.widths(GROWTH),
        ["widths", "dw.trace", "got a Growth"],
    ),
    "plotting.units: a layer": (
        lambda: plotting.units(PARAMS["up"]),
        ["kernel", "array of weights", "a dict of 2 arrays"],
    ),
    "plotting.units: one length": (
        lambda: plotting.units(X, shape=4),
        ["shape", "height and width", "got the int 4"],
    ),
    "plotting.units: a module as axes": (
        lambda: plotting.units(X, shape=(3, 1), ax=plotting),
        ["ax", "axes of a Matplotlib figure"],
    ),
    "plotting.curves: an epoch that is a name": (
        lambda: plotting.curves({"grown": [0.5]}, grown_at="end"),
        ["grown_at", "a number", "'end'"],
    ),
    "plotting.curves: a list": (
        lambda: plotting.curves([0.1, 0.2]),
        ["histories", "mapping", "[0.1, 0.2]"],
    ),
    "plotting.curves: one number": (
        lambda: plotting.curves({"grown": 0.5}),
        ["histories", "for each epoch", "'grown': 0.5"],
    ),
    "plotting.curves: nothing": (lambda: plotting.curves({}), ["histories", "{}"]),
}


def test_verify_says_whose_variables_do_not_fit() -> None:
    with pytest.raises(
        TypeError, match=r"does wide belong to target_apply\?\nThe function fails with wide "
    ):
        dw.verify(apply, PARAMS, apply, {**PARAMS, "up": dense(3, 8)}, X)


def test_a_growth_is_static_under_jit_without_being_named_so() -> None:
    made = []

    def grow(params: Any, growth: dw.Growth) -> Any:
        made.append(growth)
        return dw.grow(params, growth, key=KEY)

    jitted = jax.jit(grow)
    for _ in range(2):
        wide = jitted(PARAMS, GROWTH)
    assert wide["up"]["kernel"].shape == (4, 12) and made == [GROWTH]
    assert jitted(PARAMS, dw.plan(WIDTHS, {"up": 9}))["up"]["kernel"].shape == (4, 9)
    assert jax.tree.map(lambda leaf: leaf, {"growth": GROWTH}) == {"growth": GROWTH}


@pytest.mark.parametrize("name", CALLS)
def test_the_mistake_is_named(name: str, caplog: pytest.LogCaptureFixture) -> None:
    call, words = CALLS[name]
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        with pytest.raises((TypeError, ValueError, KeyError)) as error:
            call()
    message = str(error.value)
    assert [word for word in words if word not in message] == [], message
    assert len(message.splitlines()) <= 9, "a list of what follows"
    compiled = [r.getMessage() for r in caplog.records if "Finished XLA" in r.getMessage()]
    assert compiled == [], "computed something first"


def test_a_refused_state_warns_of_nothing_else(recwarn: pytest.WarningsRecorder) -> None:
    with pytest.raises(ValueError, match="optimizer whose init made it"):
        dw.grow_opt_state(STATE, GROWTH, SGD)
    assert [*recwarn] == []


def test_what_makes_initializers_is_none() -> None:
    strategy = strategies.zero_outgoing(jax.nn.initializers.he_normal)
    growth = dw.plan(WIDTHS, {"up": 12}, strategy=strategy)
    with pytest.raises(TypeError, match=r"init= .* got the function init; .*he_normal\(\)"):
        dw.grow(PARAMS, growth, key=KEY)


# What looks like a mistake and is none ------------------------------------------------------------


def test_keys_of_either_kind_are_keys() -> None:
    new, old = jax.random.key(7), jax.random.PRNGKey(7)
    expected = dw.grow(PARAMS, GROWTH, key=new)
    for key in (old, np.asarray(old), jax.random.key(7, impl="rbg"), jax.random.PRNGKey(7)):
        grown = jax.jit(lambda key: dw.grow(PARAMS, GROWTH, key=key))(key)
        assert grown["up"]["kernel"].shape == (4, 12)
    np.testing.assert_array_equal(
        dw.grow(PARAMS, GROWTH, key=old)["up"]["kernel"], expected["up"]["kernel"]
    )


def test_integers_of_any_kind_are_sizes() -> None:
    for size in (np.int32(12), np.uint8(12), jnp.int32(12), np.array(12)):
        assert dw.plan(WIDTHS, {"up": size}) == GROWTH


def test_places_have_integers_of_any_kind() -> None:
    widths = dw.trace(apply, PARAMS, X, fix=[("up/kernel", np.int64(1))])
    assert "fixed by the caller" in widths["up"].status


def test_a_function_that_equinox_transformed_is_a_function() -> None:
    for function in (eqx.filter_jit(apply), jax.tree_util.Partial(apply), jax.jit(apply)):
        assert dw.trace(function, PARAMS, X) == WIDTHS


def test_a_function_that_looks_like_another_takes_its_own_arguments() -> None:
    def layers(x: Any, up: Any, down: Any, activation: Any) -> Any:
        raise AssertionError("is only looked like")

    @functools.wraps(layers)
    def wrapped(params: Any, x: Any) -> Any:
        return apply(params, x)

    for function in (wrapped, jax.jit(wrapped), functools.partial(apply_mode, train=False)):
        assert dw.trace(function, PARAMS, X) == WIDTHS


def test_a_loss_of_other_arguments_is_asked_for_its_variables() -> None:
    with pytest.raises(TypeError, match="does variables belong to loss"):
        dw.saliency(PARAMS, WIDTHS, lambda x, params: jnp.sum(apply(params, x)), X)


def test_a_training_state_that_was_traced_whole_grows_whole() -> None:
    def step(state: Any, x: Any) -> Any:
        gradient = jax.grad(lambda params: jnp.sum(apply(params, x)))(state.params)
        return state.apply_gradients(grads=gradient)

    tx = optax.sgd(0.1, momentum=0.9)
    state = TrainState.create(apply_fn=apply, params=PARAMS, tx=tx)
    growth = dw.plan(dw.trace(step, state, X), {("params/up/kernel", 1): 12})
    grown = dw.grow(state, growth, key=KEY)
    assert grown.opt_state[0].trace["up"]["kernel"].shape == (4, 12)


def test_a_state_without_arrays_stays_as_it_is() -> None:
    tx = optax.chain(optax.clip(1.0), optax.sgd(0.1))
    assert dw.grow_opt_state(tx.init(PARAMS), GROWTH, tx) == tx.init(PARAMS)
    assert GROWTH.shardings(tx.init(PARAMS)) == tx.init(PARAMS)


# Weights that are not finite ----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64", "complex64"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [np.asarray, jnp.asarray])
def test_weights_that_are_not_finite_are_found(dtype: str, value: float, place: Any) -> None:
    params = jax.tree.map(lambda a: place(a.astype(jnp.dtype(dtype))), PARAMS)
    dw.grow(params, GROWTH, key=KEY)
    kernel = np.array(params["down"]["kernel"])
    kernel[3, 1] = value
    params["down"]["kernel"] = place(kernel)
    with pytest.raises(ValueError, match=r"down/kernel: holds NaN or infinities") as error:
        dw.grow(params, GROWTH, key=KEY)
    assert "up/" not in str(error.value)


def test_weights_that_are_not_finite_are_found_on_several_devices() -> None:
    mesh = jax.make_mesh((8,), ("units",))
    along = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("units"))
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    growth = dw.plan(WIDTHS, {"up": 16})
    for kernel, bad in ((PARAMS["down"]["kernel"], False), (INFINITE["down"]["kernel"], True)):
        params = jax.device_put(PARAMS, whole)
        params["down"]["kernel"] = jax.device_put(kernel, along)
        if not bad:
            dw.grow(params, growth, key=KEY)
            continue
        with pytest.raises(ValueError, match=r"down/kernel: holds NaN or infinities"):
            dw.grow(params, growth, key=KEY)


def test_a_device_sees_by_itself_whether_its_weights_are_finite() -> None:
    """What is done for arrays on accelerators, and on the devices of several hosts."""
    mesh = jax.make_mesh((8,), ("units",))
    along = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("units"))
    for kernel, finite in ((PARAMS["down"]["kernel"], True), (INFINITE["down"]["kernel"], False)):
        assert bool(_all_finite(jax.device_put(kernel, along))) == finite


def test_large_finite_weights_are_finite() -> None:
    params = jax.tree.map(lambda a: np.full_like(a, 1e300), PARAMS)
    dw.grow(params, GROWTH, key=KEY)


def test_arrays_that_do_not_grow_may_hold_anything() -> None:
    params = {**PARAMS, "down": {**PARAMS["down"], "bias": np.full(2, -np.inf)}}
    np.testing.assert_array_equal(
        dw.grow(params, GROWTH, key=KEY)["down"]["bias"], params["down"]["bias"]
    )


def test_units_of_nan_can_be_removed() -> None:
    up = PARAMS["up"]["kernel"].copy()
    up[:, 2] = np.nan
    params = {**PARAMS, "up": {**PARAMS["up"], "kernel": up}}
    narrowed = dw.narrow(params, WIDTHS, {"up": [0, 1, 3]})
    assert np.isfinite(narrowed["up"]["kernel"]).all()


def test_traced_weights_are_not_looked_at() -> None:
    grown = jax.jit(lambda params: dw.grow(params, GROWTH, key=KEY))(NAN)
    assert np.isnan(grown["up"]["kernel"][:, :8]).all()
    shapes = jax.eval_shape(lambda params: dw.grow(params, GROWTH, key=KEY), SHAPES)
    assert shapes["up"]["kernel"].shape == (4, 12)
    assert jax.eval_shape(lambda: dw.grow(SHAPES, GROWTH, key=KEY)) == shapes
