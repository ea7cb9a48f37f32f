"""Every public transform of the installed Optax: old entries go on, or an error says why not.

A transform that a later Optax adds is met, too: it goes on like the others, or a test fails.
"""

import functools
import inspect
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from tiers import in_tiers

import dogwood_jax as dw

RATE, STEPS, KEY = 1e-2, 5, jax.random.key(1)
MODULES = optax, optax.contrib, optax.transforms


# A small network, and how it grows ----------------------------------------------------------------


def numbers(shape, seed):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def apply(params, x):
    hidden = jnp.tanh(x @ params["up"]["kernel"] + params["up"]["bias"][None])
    return hidden @ params["down"]["kernel"] + params["down"]["bias"][None]


SMALL = {
    "up": {"kernel": numbers((4, 8), 0), "bias": numbers((8,), 1)},
    "down": {"kernel": numbers((8, 3), 2), "bias": numbers((3,), 3)},
}
X, Y = numbers((16, 4), 4), numbers((16, 3), 5)
OLD = {
    "up": {"kernel": np.s_[..., :8], "bias": np.s_[..., :8]},
    "down": {"kernel": np.s_[..., :8, :], "bias": np.s_[...]},
}


def loss(params, x=X, y=Y):
    return jnp.mean((apply(params, x) - y) ** 2)


@jax.jit
def gradients_of_examples(params):
    return jax.vmap(jax.grad(loss), (None, 0, 0))(params, X[:4, None], Y[:4, None])


gradient_of = jax.jit(jax.grad(loss))


@functools.cache
def growth():
    return dw.plan(dw.trace(apply, SMALL, X), {"up": 12})


@jax.jit
def grown(params):
    if isinstance(params, optax.LookaheadParams):
        return optax.LookaheadParams(*map(grown, params))
    return dw.grow(params, growth(), key=KEY)


@jax.jit
def with_new(old, new):
    """The larger network's arrays, whose old entries are these; gradients may be of examples."""

    def one(at, old, new):
        examples = old.shape[: old.ndim - new.ndim]
        return jnp.broadcast_to(new, examples + new.shape).at[at].set(old)

    return jax.tree.map(one, OLD, old, new, is_leaf=lambda node: isinstance(node, tuple))


@jax.jit
def old_part(wide):
    is_place = lambda node: isinstance(node, tuple)  # noqa: E731
    return jax.tree.map(lambda at, array: array[at], OLD, wide, is_leaf=is_place)


def new_part(wide):
    return with_new(jax.tree.map(np.zeros_like, SMALL), wide)


def distance(found, wanted):
    """How far arrays are apart, relative to the largest entry of each."""
    pairs = zip(*(map(np.asarray, jax.tree.leaves(tree)) for tree in (found, wanted)), strict=True)
    return max(float(np.max(np.abs(a - b)) / (np.max(np.abs(b)) or 1)) for a, b in pairs)


SHAPES = {"up": {"kernel": (4, 12), "bias": (12,)}, "down": {"kernel": (12, 3), "bias": (3,)}}
ZEROS, OTHERS = (
    jax.tree.map(make, SHAPES, is_leaf=lambda node: isinstance(node, tuple))
    for make in (np.zeros, lambda shape: numbers(shape, 6))
)


# The transforms -----------------------------------------------------------------------------------


def matrices(params):
    return jax.tree.map(lambda array: array.ndim > 1, params)


def vectors(params):
    return jax.tree.map(lambda array: array.ndim == 1, params)


def kinds(params):
    return jax.tree.map(lambda array: "matrix" if array.ndim > 1 else "vector", params)


def always(updates, params=None, **others):
    return jnp.array(True)


def norm(updates, params=None, **others):
    return sum(jnp.vdot(array, array) for array in jax.tree.leaves(updates))


def adam():
    return optax.adam(RATE)


# How to call what takes more than a learning rate.
CALLS = {
    "MultiSteps": lambda f: f(adam(), 2).gradient_transformation(),
    "adaptive_grad_clip": lambda f: f(0.1),
    "add_noise": lambda f: f(0.1, 0.5, 0),
    "apply_if_finite": lambda f: f(adam(), 3),
    "chain": lambda f: f(optax.clip(0.1), adam()),
    "clip": lambda f: f(0.1),
    "clip_by_block_rms": lambda f: f(0.01),
    "clip_by_global_norm": lambda f: f(0.01),
    "conditionally_mask": lambda f: f(adam(), always),
    "conditionally_transform": lambda f: f(adam(), always),
    "differentially_private_aggregate": lambda f: f(0.1, 0.1, 0),
    "dpsgd": lambda f: f(RATE, 0.1, 0.1, 0),
    "ema": lambda f: f(0.9),
    "flatten": lambda f: f(adam()),
    "freeze": lambda f: f(matrices),
    "galore": lambda f: f(RATE, rank=2),
    "inject_hyperparams": lambda f: f(optax.adam)(RATE),
    "inject_stateful_hyperparams": lambda f: f(optax.adam)(RATE),
    "lookahead": lambda f: f(adam(), 3, 0.5),
    "lars": lambda f: f(RATE, momentum=0.0),  # else it keeps steps of the smaller network
    "masked": lambda f: f(adam(), matrices),
    "mechanize": lambda f: f(adam(), weight_decay=0.0),  # else by the norm of all parameters
    "momo_adam": lambda f: f(10.0),
    "monitor": lambda f: optax.chain(f({"norm": norm}), adam()),
    "multi_transform": lambda f: f({"matrix": adam(), "vector": optax.sgd(RATE, 0.9)}, kinds),
    "named_chain": lambda f: f(("clip", optax.clip(0.1)), ("adam", adam())),
    "noisy_sgd": lambda f: f(RATE, key=0),
    "partition": lambda f: f({"matrix": adam(), "vector": optax.sgd(RATE, 0.9)}, kinds),
    "sam": lambda f: f(adam(), optax.chain(optax.contrib.normalize(), optax.sgd(0.1)), 4),
    "scale": lambda f: f(-RATE),
    "scale_by_backtracking_linesearch": lambda f: optax.chain(optax.sgd(9.0), f(10)),
    "scale_by_distance_over_gradients": lambda f: optax.chain(f(), optax.scale(-1.0)),
    "scale_by_galore": lambda f: f(2),
    "scale_by_schedule": lambda f: f(optax.exponential_decay(1.0, 10, 0.5)),
    "scale_by_zoom_linesearch": lambda f: f(10),
    "schedule_free": lambda f: f(adam(), RATE),
    "selective_transform": lambda f: f(adam(), freeze_mask=vectors),
    "snapshot": lambda f: f("norm", norm),
    "sophia": lambda f: f(RATE, update_interval=2),
    "split_real_and_imaginary": lambda f: f(adam()),
    "stateless": lambda f: f(lambda updates, params: updates),
    "stateless_with_tree_map": lambda f: f(lambda update, param: update),
    "trace": lambda f: f(0.9),
    "with_extra_args_support": lambda f: f(adam()),
}


def taken(name, params, gradient):
    """What an update takes beside the gradient and parameters."""
    if name == "sam":
        return {}
    if name in ("sophia", "hutchinson_estimator_diag_hessian"):
        return {"obj_fn": loss}
    if name == "lbfgs" or "linesearch" in name:
        return {"value": loss(params), "grad": gradient, "value_fn": loss}
    return {"value": loss(params)}


# No transforms, although their signatures do not say what they return.
OTHER_FUNCTIONS = {
    *("bias_correction", "matrix_inverse_pth_root", "schedule_free_eval_params"),
    *("sigmoid_binary_cross_entropy", "update_infinity_moment", "update_moment"),
    "update_moment_per_elem_norm",
}
# Of matrices alone, and of measurements in place of updates. ``muon`` has the first inside.
OTHER_FUNCTIONS |= {"scale_by_muon", "measure_with_ema"}

# These compute updates of old entries from new ones, too; the table in GUIDE names them. They do so
# as if the new entries had been there from the beginning, and had not moved.
GUIDE = pathlib.Path(__file__).parents[1] / "docs" / "guides" / "training_loop.md"
NORMS = [
    *("adaptive_grad_clip", "clip_by_global_norm", "dog", "dowg", "momo", "normalize"),
    *("normalize_by_update_norm", "novograd", "polyak_sgd", "sam", "scale_by_novograd"),
    *("scale_by_backtracking_linesearch", "scale_by_distance_over_gradients", "scale_by_polyak"),
    *("momo_adam", "prodigy"),
]
WHOLE_ARRAYS = [
    *("adafactor", "centralize", "clip_by_block_rms", "fromage", "lamb", "lars", "muon"),
    *("scale_by_param_block_norm", "scale_by_param_block_rms", "scale_by_trust_ratio"),
]
NOISE = [
    *("add_noise", "differentially_private_aggregate", "dpsgd", "noisy_sgd"),
    "hutchinson_estimator_diag_hessian",
]
SEES_NEW_ENTRIES = {*NORMS, *WHOLE_ARRAYS, *NOISE}

# Under growable, new entries take the steps of a new optimizer, except for what goes on for all: a
# schedule, gradients that were added up, a rate that was estimated, the weight of an average.
NOT_ANEW = {
    *("scale_by_schedule", "MultiSteps", "dadapt_adamw", "mechanize", "lookahead"),
    *("schedule_free", "schedule_free_adamw", "schedule_free_sgd"),
}

UNKNOWN = r"field '.*' of .* has no known meaning\s+pass fields="
REFUSED = {
    "cocob": UNKNOWN,
    "scale_by_cocob": UNKNOWN,
    "ema": UNKNOWN,
    "flatten": "all parameters in one array, as of optax.flatten",
    "galore": "(?s)has shape .* start anew with tx.init",
    "scale_by_galore": "(?s)has shape .* start anew with tx.init",
    "lbfgs": UNKNOWN,
    "monitor": "0/measurements/norm: tx.init makes no such array",
    "scale_by_lbfgs": UNKNOWN,
    "scale_by_zoom_linesearch": UNKNOWN,
}


def transforms():
    """All public functions of Optax that return transforms, by name."""
    found = {}
    for module in MODULES:
        for name in dir(module):
            f = getattr(module, name)
            is_function = callable(f) and inspect.isfunction(inspect.unwrap(f))
            if name.startswith("_") or name in OTHER_FUNCTIONS or not is_function:
                continue
            returned = inspect.signature(f).return_annotation
            if returned is inspect.Signature.empty or "GradientTransformation" in str(returned):
                found[name] = f
    return found | {"MultiSteps": optax.MultiSteps}


TRANSFORMS = transforms()

# These consist of others: of scale_by_ and the same name, or as their names say.
CONSIST_OF_OTHERS = {name for name in TRANSFORMS if f"scale_by_{name}" in TRANSFORMS} | set(
    (
        "adabelief adagrad adamaxw adamw dpsgd fromage inject_stateful_hyperparams lars "
        "named_chain noisy_sgd optimistic_adam optimistic_gradient_descent partition polyak_sgd "
        "rmsprop scale_by_learning_rate schedule_free_adamw schedule_free_sgd sign_sgd signum "
        "with_extra_args_support"
    ).split()
)
# The others are of the long tier.
SHORT = (
    "MultiSteps adafactor lamb multi_transform muon scale_by_adam scale_by_lion scale_by_sm3 "
    "schedule_free trace"
).split()


EXACT = sorted(TRANSFORMS.keys() - REFUSED.keys() - CONSIST_OF_OTHERS)


def made(name):
    f = TRANSFORMS[name]
    if name in CALLS:
        return CALLS[name](f)
    parameters = inspect.signature(f).parameters.values()
    needed = [p.name for p in parameters if p.default is p.empty and p.kind < p.VAR_POSITIONAL]
    assert needed in ([], ["learning_rate"]), f"say in CALLS how to call {name}"
    tx = f(*[RATE for _ in needed])
    return optax.chain(tx, optax.scale(-RATE)) if name.startswith("scale_by") else tx


@functools.partial(jax.jit, static_argnames=("name", "tx"))
def updated(gradient, state, params, name, tx):
    own = params.fast if name == "lookahead" else params
    update = optax.with_extra_args_support(tx).update
    return update(gradient, state, params, **taken(name, own, gradient))


class Run:
    """A network in training, which may have grown."""

    def __init__(self, name, tx, params, state=None):
        self.name, self.tx, self.params = name, tx, params
        self.state = tx.init(params) if state is None else state

    @property
    def own(self):
        return self.params.fast if self.name == "lookahead" else self.params

    def gradient(self):
        if self.name in ("dpsgd", "differentially_private_aggregate"):
            return gradients_of_examples(self.own)
        return gradient_of(self.own)

    def updates(self, gradient):
        return updated(gradient, self.state, self.params, self.name, self.tx)

    def step(self, gradient):
        updates, self.state = self.updates(gradient)
        self.params = optax.apply_updates(self.params, updates)


def after_steps(name, tx):
    """A network after some steps, and a larger one that has seen the same, with new entries."""
    is_pair = name == "lookahead"
    small = Run(name, tx, optax.LookaheadParams.init_synced(SMALL) if is_pair else SMALL)
    large = Run(name, tx, grown(small.params)) if name in SEES_NEW_ENTRIES else None
    for _ in range(STEPS):
        gradient = small.gradient()
        if large is not None:
            large.params = grown(small.params)
            _, large.state = large.updates(with_new(gradient, ZEROS))
        small.step(gradient)
        if name == "scale_by_distance_over_gradients" and not jnp.isfinite(loss(small.own)):
            pytest.skip("Optax 0.2.5 exchanges two of its arguments")
    return small, large


@pytest.mark.filterwarnings("ignore:grow_opt_state", "ignore::DeprecationWarning")
@pytest.mark.parametrize("name", in_tiers(EXACT, short=SHORT))
def test_old_entries_go_on_as_without_the_growth(name):
    plain = made(name)
    with jax.numpy_rank_promotion("allow"):  # inside of Optax
        small, large = after_steps(name, plain)
        gradient = small.gradient()
        wanted = of_old = small.updates(gradient)[0]
        new = OTHERS
        if large is not None:
            large.params, new = grown(small.params), ZEROS
            wanted = old_part(large.updates(with_new(gradient, new))[0])
        wide = grown(small.params)
        variables = wide.fast if name == "lookahead" else wide
        for tx in (plain, dw.growable(plain)):
            state = dw.grow_opt_state(small.state, growth(), tx, variables=variables)
            run = Run(name, tx, wide, state)
            found = run.updates(with_new(gradient, new))[0]
            if name == "lookahead":
                found, wanted = found.fast, getattr(wanted, "fast", wanted)
            assert distance(old_part(found), wanted) < 1e-8
        found = run.updates(with_new(gradient, OTHERS))[0]
        if large is not None:  # else it has no place in this list
            assert distance(old_part(found), of_old) > 1e-6
        elif name not in NOT_ANEW:
            begun = Run(name, plain, wide).updates(with_new(gradient, OTHERS))[0]
            assert distance(new_part(found), new_part(begun)) < 1e-8


@pytest.mark.filterwarnings("ignore:grow_opt_state", "ignore::DeprecationWarning")
@pytest.mark.parametrize("name", sorted(TRANSFORMS.keys() & REFUSED.keys() - CONSIST_OF_OTHERS))
def test_what_cannot_go_on_is_refused(name):
    small = Run(name, made(name), SMALL)
    small.step(small.gradient())
    with pytest.raises(ValueError, match=REFUSED[name]):
        dw.grow_opt_state(small.state, growth(), small.tx, variables=grown(small.params))


def test_the_guide_names_them():
    guide = GUIDE.read_text()
    assert [name for name in {*SEES_NEW_ENTRIES, *REFUSED} if f"`{name}`" not in guide] == []
