"""An optimizer that can grow: what it does with each entry after its network has grown."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState
from tiers import in_tiers, long

import dogwood_jax as dw
from dogwood_jax._base.trees import leaves_by_path

RATE = 1e-2
LAYERS = ("up", "down")


def network(n, seed=0):
    shapes = {"up": {"kernel": (4, n), "bias": (n,)}, "down": {"kernel": (n, 3), "bias": (3,)}}
    leaves, structure = jax.tree.flatten(shapes, is_leaf=lambda node: isinstance(node, tuple))
    draw = np.random.default_rng(seed).normal
    arrays = [jnp.asarray(draw(size=shape)) for shape in leaves]
    return jax.tree.unflatten(structure, arrays)


def gradients(params, seed):
    leaves, structure = jax.tree.flatten(params)
    draw = np.random.default_rng(seed).normal
    return jax.tree.unflatten(structure, [np.asarray(draw(size=a.shape)) for a in leaves])


SMALL = network(8)
GROWTH = dw.plan(dw.chain(SMALL, LAYERS), {"up": 14})
WIDE = dw.grow(SMALL, GROWTH, key=jax.random.key(1))
OLD = {
    ("up", "kernel"): np.s_[:, :8],
    ("up", "bias"): np.s_[:8],
    ("down", "kernel"): np.s_[:8],
    ("down", "bias"): np.s_[:],
}
NEW = {
    ("up", "kernel"): np.s_[:, 8:],
    ("up", "bias"): np.s_[8:],
    ("down", "kernel"): np.s_[8:],
}


def old_part(tree):
    return {
        layer: {name: tree[layer][name][OLD[layer, name]] for name in tree[layer]} for layer in tree
    }


def distance(a, b, places):
    return max(
        np.max(np.abs(np.asarray(a[layer][name])[at] - np.asarray(b[layer][name])[bt]))
        for (layer, name), (at, bt) in places.items()
    )


def same(places):
    return {key: (at, at) for key, at in places.items()}


def of_kernels(params):
    """Labels for multi_transform, and a mask."""
    return jax.tree.map(lambda a: a.ndim > 1, params)


def labels(params):
    return jax.tree.map(lambda a: "matrix" if a.ndim > 1 else "vector", params)


# Each takes the same gradients as entries of the larger network, one by one, and counts or averages
# in another way. Every optimizer of Optax takes one step in test_every_optimizer.py.
OPTIMIZERS = {
    "adam": lambda: optax.adam(RATE),
    "adamw, masked": lambda: optax.adamw(RATE, weight_decay=0.1, mask=of_kernels),
    "radam": lambda: optax.radam(RATE),
    "adan": lambda: optax.adan(RATE),
    "ademamix": lambda: optax.contrib.ademamix(RATE),
    "rmsprop, bias corrected": lambda: optax.rmsprop(RATE, bias_correction=True),
    "elementwise adafactor": lambda: optax.adafactor(
        RATE, clipping_threshold=None, multiply_by_parameter_scale=False
    ),
    "several steps": lambda: optax.MultiSteps(optax.adam(RATE), 2),
    "an average of updates": lambda: optax.chain(
        optax.scale_by_rms(bias_correction=True), optax.ema(0.9), optax.scale(-RATE)
    ),
    "sgd": lambda: optax.sgd(RATE, momentum=0.9),
    "lion": lambda: optax.lion(RATE),
    "optimistic": lambda: optax.optimistic_gradient_descent(RATE),
    "optimistic adam": lambda: optax.chain(optax.scale_by_optimistic_gradient(), optax.adam(RATE)),
    "optimistic, several steps": lambda: optax.MultiSteps(
        optax.optimistic_gradient_descent(RATE), 2
    ),
}


def trained(tx, params, steps, seed=0, state=None, update=None):
    """Takes steps with random gradients; returns the updates of the last and the state."""
    state, updates = tx.init(params) if state is None else state, None
    update = update or jax.jit(tx.update)
    for step in range(steps):
        updates, state = update(gradients(params, 1000 * seed + step), state, params)
    return updates, state


SHORT = ("adam", "adamw, masked", "elementwise adafactor", "sgd")
KINDS = in_tiers(OPTIMIZERS, short=SHORT)


@pytest.mark.parametrize("name", KINDS)
def test_old_entries_go_on_and_new_ones_begin(name):
    plain = OPTIMIZERS[name]()
    tx = dw.growable(plain)
    update, reference = jax.jit(tx.update), jax.jit(plain.update)
    _, state = trained(tx, SMALL, 20, update=update)
    _, before = trained(plain, SMALL, 20, update=reference)
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(before), strict=True):
        np.testing.assert_array_equal(a, b)
    state = dw.grow_opt_state(state, GROWTH, tx)
    fresh = plain.init(WIDE)
    for step in range(10):
        gradient = gradients(WIDE, 7000 + step)
        updates, state = update(gradient, state, WIDE)
        wanted, before = reference(old_part(gradient), before, SMALL)
        begun, fresh = reference(gradient, fresh, WIDE)
        places = {key: (OLD[key], np.s_[:]) for key in OLD}
        assert distance(updates, wanted, places) < 1e-10
        assert distance(updates, begun, same(NEW)) < 1e-10


def test_what_sees_whole_arrays_sees_the_grown_ones():
    """Clipping by a norm comes before Adam, and scales all entries alike."""
    plain = optax.chain(optax.clip_by_global_norm(0.1), optax.adam(RATE))
    tx = dw.growable(plain)
    state = dw.grow_opt_state(trained(tx, SMALL, 30)[1], GROWTH, tx)
    fresh = plain.init(WIDE)
    update, reference = jax.jit(tx.update), jax.jit(plain.update)
    for step in range(10):
        gradient = gradients(WIDE, step)
        updates, state = update(gradient, state, WIDE)
        begun, fresh = reference(gradient, fresh, WIDE)
        assert distance(updates, begun, same(NEW)) < 1e-10


# Steps by hand, in which each entry has the step count of its cohort. They take a gradient,
# its parameter, the moments, and step counts along each axis, this step included.


def adam_by_hand(gradient, moments, counts, eps):
    count = functools.reduce(np.minimum.outer, counts)
    mu = 0.9 * moments["mu"] + 0.1 * gradient
    nu = 0.999 * moments["nu"] + 0.001 * gradient**2
    moments |= {"mu": mu, "nu": nu}
    return mu / (1 - 0.9**count) / (np.sqrt(nu / (1 - 0.999**count)) + eps)


def lamb_by_hand(gradient, param, moments, counts):
    update = adam_by_hand(gradient, moments, counts, 1e-6)
    return -RATE * update * np.linalg.norm(param) / np.linalg.norm(update)


def adafactor_by_hand(gradient, param, moments, counts):
    def decayed(name, mean, count):
        rate = 1 - count**-0.8
        moments[name] = rate * moments[name] + (1 - rate) * mean
        return moments[name]

    if moments["v"].shape == param.shape:
        update = (
            gradient / decayed("v", gradient**2, functools.reduce(np.minimum.outer, counts)) ** 0.5
        )
    else:
        shorter, longer = np.argsort(param.shape)
        row = decayed("v_row", np.mean(gradient**2, longer), counts[shorter])
        column = decayed("v_col", np.mean(gradient**2, shorter), counts[longer])
        row, column = np.expand_dims(row / row.mean(), longer), np.expand_dims(column, shorter)
        update = gradient / np.sqrt(row * column)
    rms = lambda array: np.sqrt(np.mean(array**2))  # noqa: E731
    return -RATE * update / max(1, rms(update)) * max(rms(param), 1e-3)


def clipped_by_hand(gradient, param, moments, counts):
    return adam_by_hand(gradient, moments, counts, 1e-8)


WHOLE_ARRAYS = {
    "lamb": (optax.lamb(RATE), lamb_by_hand),
    "adafactor": (optax.adafactor(RATE), adafactor_by_hand),
    "factored": (optax.adafactor(RATE, min_dim_size_to_factor=2), adafactor_by_hand),
    "clipped": (
        optax.chain(optax.scale_by_adam(), optax.clip_by_global_norm(0.1)),
        clipped_by_hand,
    ),
}


@pytest.mark.parametrize("name", WHOLE_ARRAYS)
def test_where_whole_arrays_are_seen_new_entries_have_a_count_of_their_own(name):
    """All entries have gradients, so old ones take other steps if new ones are counted wrongly."""
    plain, by_hand = WHOLE_ARRAYS[name]
    tx = dw.growable(plain)
    state = dw.grow_opt_state(trained(tx, SMALL, 50)[1], GROWTH, tx)
    flat = {path: np.asarray(leaf) for path, leaf in leaves_by_path(WIDE).items()}
    fields = ("mu", "nu") if name in ("lamb", "clipped") else ("v", "v_row", "v_col")
    moments = {
        path: {field: np.asarray(leaves_by_path(part)[path]) for field, part in kept.items()}
        for kept in [{field: optax.tree_utils.tree_get(state, field) for field in fields}]
        for path in flat
    }
    update = jax.jit(tx.update)
    for step in range(1, 6):
        gradient = gradients(WIDE, step)
        updates, state = update(gradient, state, WIDE)
        of_units = np.where(np.arange(14) < 8, 50 + step, step).astype(float)
        counts = {"up/kernel": (np.full(4, 50.0 + step), of_units), "up/bias": (of_units,)}
        counts |= {"down/kernel": (of_units, np.full(3, 50.0 + step))}
        counts |= {"down/bias": (np.full(3, 50.0 + step),)}
        wanted = {
            path: by_hand(np.asarray(array), flat[path], moments[path], counts[path])
            for path, array in leaves_by_path(gradient).items()
        }
        if name == "clipped":
            norm = np.sqrt(sum(np.sum(array**2) for array in wanted.values()))
            wanted = {path: 0.1 * array / norm for path, array in wanted.items()}
        for path, found in leaves_by_path(updates).items():
            # Adafactor computes its decay in float32.
            np.testing.assert_allclose(found, wanted[path], 1e-6, err_msg=f"{path}, step {step}")


@pytest.mark.long
def test_factored_moments_of_arrays_with_equal_axes_are_those_of_their_own_entries():
    def apply(params, x):
        return jnp.einsum("bi,ijk,jkl->bl", x, params["in"], params["out"])

    def arrays(i):
        keys = jax.random.split(jax.random.key(0))
        shapes = (i, 8, 8), (8, 8, 3)
        drawn = [jax.random.normal(k, s, jnp.float64) for k, s in zip(keys, shapes, strict=True)]
        return dict(zip(("in", "out"), drawn, strict=True))

    small, x = arrays(6), jnp.ones((2, 6))
    growth = dw.plan(dw.trace(apply, small, x), {("in", 0): 8}, interface=True)
    wide = dw.grow(small, growth, key=jax.random.key(1))
    plain = optax.adafactor(
        RATE, min_dim_size_to_factor=2, clipping_threshold=None, multiply_by_parameter_scale=False
    )
    tx = dw.growable(plain)
    state = dw.grow_opt_state(trained(tx, small, 200)[1], growth, tx)
    fresh = plain.init(wide)
    update, reference = jax.jit(tx.update), jax.jit(plain.update)
    for step in range(6):
        gradient = gradients(wide, step)
        updates, state = update(gradient, state, wide)
        begun, fresh = reference(gradient, fresh, wide)
    ratio = jnp.median(jnp.abs(updates["in"][6:] / begun["in"][6:]))
    assert 0.8 < float(ratio) < 1.25


@pytest.mark.long
def test_a_gate_of_one_number_begins_anew():
    def apply(params, x):
        for name in sorted(params):
            x = x + params[name]["gate"] * jnp.tanh(x @ params[name]["kernel"])
        return x

    def block(seed):
        kernel = jax.random.normal(jax.random.key(seed), (4, 4), jnp.float64)
        return {"kernel": kernel, "gate": jnp.zeros((), jnp.float64)}

    small, deep = {"a": block(0)}, {"a": block(0), "b": block(1)}
    growth = dw.plan(dw.trace(apply, small, X), target=deep, target_apply=apply)
    for name in ("adam", "elementwise adafactor"):
        plain = OPTIMIZERS[name]()
        tx = dw.growable(plain)
        state = dw.grow_opt_state(trained(tx, small, 30)[1], growth, tx)
        fresh = plain.init(deep)
        update, reference = jax.jit(tx.update), jax.jit(plain.update)
        for step in range(5):
            gradient = gradients(deep, step)
            updates, state = update(gradient, state, deep)
            begun, fresh = reference(gradient, fresh, deep)
            np.testing.assert_allclose(updates["b"]["gate"], begun["b"]["gate"], rtol=1e-9)


@pytest.mark.parametrize("wrap", ["whole", long("link"), "group"])
def test_a_whole_optimizer_or_a_part_of_it_is_wrapped(wrap):
    adam = optax.scale_by_adam()
    rate = optax.scale_by_learning_rate(optax.linear_schedule(RATE, 0.0, 100))
    if wrap == "group":
        parts = {"matrix": dw.growable(optax.adam(RATE)), "vector": optax.sgd(RATE)}
        tx = optax.multi_transform(parts, labels)
        plain = optax.multi_transform(
            {"matrix": optax.adam(RATE), "vector": optax.sgd(RATE)}, labels
        )
    else:
        plain = optax.chain(adam, rate)
        tx = dw.growable(plain) if wrap == "whole" else optax.chain(dw.growable(adam), rate)
    _, state = trained(tx, SMALL, 20)
    _, before = trained(plain, SMALL, 20)
    state = dw.grow_opt_state(state, GROWTH, tx)
    scale = 1.0 if wrap == "group" else 0.8  # of the schedule, which goes on
    gradient = gradients(WIDE, 5)
    updates, state = jax.jit(tx.update)(gradient, state, WIDE)
    wanted, _ = jax.jit(plain.update)(old_part(gradient), before, SMALL)
    assert distance(updates, wanted, {key: (OLD[key], np.s_[:]) for key in OLD}) < 1e-12
    new = updates["down"]["kernel"][8:]
    np.testing.assert_allclose(jnp.abs(new), scale * RATE, rtol=1e-5)


def test_the_state_of_an_optimizer_that_was_not_wrapped_grows_for_one_that_is():
    plain = optax.adamw(RATE)
    tx = dw.growable(plain)
    grown = [dw.grow_opt_state(trained(one, SMALL, 25)[1], GROWTH, tx) for one in (plain, tx)]
    assert jax.tree.structure(grown[0]) == jax.tree.structure(grown[1])
    for a, b in zip(*map(jax.tree.leaves, grown), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.filterwarnings("always:grow_opt_state")
def test_growing_without_it_is_a_warning_that_names_it(recwarn):
    for tx in (optax.sgd(RATE, momentum=0.9), optax.lion(RATE), optax.rmsprop(RATE)):
        dw.grow_opt_state(tx.init(SMALL), GROWTH, tx)
    adam = optax.adam(RATE)
    dw.grow_opt_state(adam.init(SMALL), GROWTH, adam, second_moment="mean")
    tx = dw.growable(adam)
    dw.grow_opt_state(adam.init(SMALL), GROWTH, tx)
    assert not recwarn
    with pytest.warns(UserWarning, match=r"tx = dw.growable\(tx\), and new entries get"):
        dw.grow_opt_state(adam.init(SMALL), GROWTH, adam)


def test_nothing_is_kept_until_the_first_growth():
    tx = dw.growable(optax.adam(RATE))
    state = tx.init(SMALL)
    assert state.step_counts == ()
    assert len(jax.tree.leaves(state)) == len(jax.tree.leaves(optax.adam(RATE).init(SMALL)))
    programs = [
        jax.make_jaxpr(one.update)(SMALL, one.init(SMALL), SMALL) for one in (optax.adam(RATE), tx)
    ]
    assert str(programs[0]) == str(programs[1])
    for name in ("sgd", "lion"):
        other = dw.growable(OPTIMIZERS[name]())
        assert dw.grow_opt_state(other.init(SMALL), GROWTH, other).step_counts == ()


# Several growths ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["adam", long("optimistic")])
def test_a_network_that_grows_twice_has_entries_of_three_cohorts(name):
    plain = OPTIMIZERS[name]()
    tx = dw.growable(plain)
    update, reference = jax.jit(tx.update), jax.jit(plain.update)
    _, state = trained(tx, SMALL, 10)
    state = dw.grow_opt_state(state, GROWTH, tx)
    fresh = [plain.init(SMALL), plain.init(WIDE)]
    for step in range(10):
        fresh[0] = reference(gradients(SMALL, step), fresh[0])[1]
    for step in range(15):
        gradient = gradients(WIDE, 50 + step)
        _, state = update(gradient, state, WIDE)
        fresh = [
            reference(old_part(gradient), fresh[0])[1],
            reference(gradient, fresh[1])[1],
        ]
    again = dw.plan(dw.chain(WIDE, LAYERS), {"up": 20})
    wider = dw.grow(WIDE, again, key=jax.random.key(2))
    state = dw.grow_opt_state(state, again, tx)
    fresh.append(plain.init(wider))
    for step in range(5):
        gradient = gradients(wider, 90 + step)
        updates, state = update(gradient, state, wider)
        kernel = updates["up"]["kernel"]
        parts = np.s_[:, :8], np.s_[:, 8:14], np.s_[:, 14:]
        for i, (n, part) in enumerate(zip((8, 14, 20), parts, strict=True)):
            own = {
                "up": {
                    "kernel": gradient["up"]["kernel"][:, :n],
                    "bias": gradient["up"]["bias"][:n],
                },
                "down": {
                    "kernel": gradient["down"]["kernel"][:n],
                    "bias": gradient["down"]["bias"],
                },
            }
            wanted, fresh[i] = reference(own, fresh[i])
            np.testing.assert_allclose(kernel[part], wanted["up"]["kernel"][part], rtol=1e-9)


def test_whether_a_step_is_the_first_is_known_for_each_cohort():
    tx = dw.growable(optax.optimistic_gradient_descent(RATE))
    state = dw.grow_opt_state(tx.init(SMALL), GROWTH, tx)  # before the first step of all
    np.testing.assert_array_equal(state.step_counts.counts[0], [True, True])
    _, state = trained(tx, WIDE, 2, state=state)
    again = dw.plan(dw.chain(WIDE, LAYERS), {"up": 20})
    state = dw.grow_opt_state(state, again, tx)
    np.testing.assert_array_equal(state.step_counts.counts[0], [False, False, True])


def test_units_that_stay_when_others_are_removed_keep_their_step_counts():
    tx = dw.growable(optax.adam(RATE))
    state = dw.grow_opt_state(trained(tx, SMALL, 10)[1], GROWTH, tx)
    _, state = trained(tx, WIDE, 4, seed=3, state=state)
    removal = dw.plan(dw.chain(WIDE, LAYERS), keep={"up": [0, 3, 9, 13]})
    kept = dw.grow_opt_state(state, removal, tx)
    along = kept.step_counts.arrays["up"]["kernel"]
    np.testing.assert_array_equal(along.cohorts[1], [0, 0, 1, 1])
    np.testing.assert_array_equal(kept.step_counts.counts[0], [0, 10, 14])


def test_layers_that_are_inserted_begin_and_old_ones_go_on():
    def apply(params, x):
        for name in sorted(params):
            x = x + jnp.tanh(x @ params[name]["up"]) @ params[name]["down"]
        return x

    def block(seed):
        keys = jax.random.split(jax.random.key(seed))
        return {
            "up": jax.random.normal(keys[0], (4, 6), jnp.float64),
            "down": jax.random.normal(keys[1], (6, 4), jnp.float64),
        }

    small = {"a": block(0)}
    deep = {"a": block(0), "b": block(1)}
    x = jnp.ones((2, 4))
    growth = dw.plan(dw.trace(apply, small, x), target=deep, target_apply=apply)
    plain = optax.adam(RATE)
    tx = dw.growable(plain)
    state = dw.grow_opt_state(trained(tx, small, 12)[1], growth, tx)
    before, fresh = trained(plain, small, 12)[1], plain.init(deep)
    update, reference = jax.jit(tx.update), jax.jit(plain.update)
    for step in range(6):
        gradient = gradients(deep, step)
        updates, state = update(gradient, state, deep)
        wanted, before = reference({"a": gradient["a"]}, before)
        begun, fresh = reference(gradient, fresh)
        for name in ("up", "down"):
            np.testing.assert_allclose(updates["a"][name], wanted["a"][name], rtol=1e-9)
            np.testing.assert_allclose(updates["b"][name], begun["b"][name], rtol=1e-9)


@pytest.mark.long
@pytest.mark.parametrize("axis", (0, 1))
def test_layers_that_are_inserted_into_a_stack_begin_and_old_ones_go_on(axis):
    def apply(params, x):
        layers = {name: jnp.moveaxis(array, axis, 0) for name, array in params.items()}
        layer = lambda x, p: (x + jnp.tanh(x @ p["up"]) @ p["down"], None)  # noqa: E731
        return jax.lax.scan(layer, x, layers)[0]

    def stack(layers):
        shapes = {"up": [4, 6], "down": [6, 4]}
        shapes = {name: (*s[:axis], layers, *s[axis:]) for name, s in shapes.items()}
        return {name: jnp.linspace(-1, 1, np.prod(s)).reshape(s) for name, s in shapes.items()}

    def old(stacks):
        return jax.tree.map(lambda array: jnp.take(array, jnp.arange(2), axis), stacks)

    small, deep, plain = stack(2), stack(3), optax.adam(RATE)
    widths = dw.trace(apply, small, jnp.ones((2, 4)))
    growth = dw.plan(widths, target=deep, target_apply=apply)
    tx = dw.growable(plain)
    update, reference = jax.jit(tx.update), jax.jit(plain.update)
    state = dw.grow_opt_state(trained(tx, small, 12)[1], growth, tx)
    before, fresh = trained(plain, small, 12)[1], plain.init(deep)
    for step in range(3):
        gradient = gradients(deep, step)
        updates, state = update(gradient, state, deep)
        wanted, before = reference(old(gradient), before)
        begun, fresh = reference(gradient, fresh)
        for name in ("up", "down"):
            np.testing.assert_allclose(old(updates)[name], wanted[name], rtol=1e-9)
            new, its = (jnp.take(u[name], 2, axis) for u in (updates, begun))
            np.testing.assert_allclose(new, its, rtol=1e-9)


# Copies -------------------------------------------------------------------------------------------

COPIES = dw.plan(
    dw.chain(SMALL, LAYERS), {"up": 14}, strategy=dw.strategies.replicate(split="uneven")
)
X, Y = (jnp.asarray(np.random.default_rng(8).normal(size=(32, n))) for n in (4, 3))


def loss(params):
    hidden = jnp.tanh(X @ params["up"]["kernel"] + params["up"]["bias"][None])
    return jnp.mean((hidden @ params["down"]["kernel"] + params["down"]["bias"][None] - Y) ** 2)


@functools.partial(jax.jit, static_argnames="tx")
def steps(tx, params, state, count):
    def step(_, carry):
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    return jax.lax.fori_loop(0, count, step, (params, state))


def summed(params):
    """The outgoing weights of each unit, those of its copies added up."""
    sources = jnp.array(COPIES.changes[0].sources)
    return jnp.zeros((8, 3)).at[sources].add(params["down"]["kernel"])


@pytest.mark.long
def test_copies_move_together_at_first_and_part_later():
    tx = dw.growable(optax.adam(RATE, eps=1e-12))
    small, state = steps(tx, SMALL, tx.init(SMALL), 30)
    wide, grown = dw.grow(small, COPIES), dw.grow_opt_state(state, COPIES, tx)
    assert float(loss(wide)) == pytest.approx(float(loss(small)), rel=1e-12)
    moved, _ = steps(tx, small, state, 3)
    wide, grown = steps(tx, wide, grown, 3)
    np.testing.assert_allclose(summed(wide), moved["down"]["kernel"], atol=1e-3)
    assert float(loss(wide)) == pytest.approx(float(loss(moved)), rel=1e-3)
    wide, grown = steps(tx, wide, grown, 1500)
    kernel = wide["up"]["kernel"]
    apart = jnp.abs(kernel[:, 8:] - kernel[:, jnp.array(COPIES.changes[0].sources[8:])])
    assert float(jnp.min(jnp.max(apart, axis=0))) > 0.01
    # By then each takes whole steps, as the optimizer that was wrapped does.
    gradient = jax.grad(loss)(wide)
    updates, _ = jax.jit(tx.update)(gradient, grown, wide)
    wanted, _ = jax.jit(optax.adam(RATE, eps=1e-12).update)(gradient, grown.inner_state)
    for a, b in zip(jax.tree.leaves(updates), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


@pytest.mark.long
def test_copies_that_are_merged_carry_the_whole_again():
    tx = dw.growable(optax.adam(RATE))
    even = dw.plan(dw.chain(SMALL, LAYERS), {"up": 16}, strategy=dw.strategies.replicate())
    wide = dw.grow(SMALL, even)
    state = dw.grow_opt_state(trained(tx, SMALL, 5)[1], even, tx)
    np.testing.assert_allclose(state.step_counts.arrays["down"]["kernel"].shares[0], 0.5)
    groups = [(i, i + 8) for i in range(8)]
    merged = dw.plan(dw.chain(wide, LAYERS), merge={"up": groups})
    back = dw.grow_opt_state(state, merged, tx)
    np.testing.assert_allclose(back.step_counts.arrays["down"]["kernel"].shares[0], 1.0)
    np.testing.assert_array_equal(back.step_counts.arrays["up"]["kernel"].cohorts[1], 0)


def test_shares_of_copies_of_copies_multiply():
    tx = dw.growable(optax.adam(RATE))
    even = dw.plan(dw.chain(SMALL, LAYERS), {"up": 16}, strategy=dw.strategies.replicate())
    state = dw.grow_opt_state(trained(tx, SMALL, 5)[1], even, tx)
    wide = dw.grow(SMALL, even)
    more = dw.plan(dw.chain(wide, LAYERS), {"up": 32}, strategy=dw.strategies.replicate())
    state = dw.grow_opt_state(state, more, tx)
    np.testing.assert_allclose(state.step_counts.arrays["down"]["kernel"].shares[0], 0.25)


# Warming up ---------------------------------------------------------------------------------------


def test_warming_up_ramps_the_steps_of_new_entries_alone():
    tx = dw.growable(optax.adam(RATE), warmup=4)
    state = dw.grow_opt_state(trained(tx, SMALL, 10)[1], GROWTH, tx)
    ones = jax.tree.map(jnp.ones_like, WIDE)
    update = jax.jit(tx.update)
    for step in range(6):
        updates, state = update(ones, state, WIDE)
        ramp = min((step + 1) / 4, 1.0)
        np.testing.assert_allclose(updates["down"]["kernel"][8:], -RATE * ramp, rtol=1e-5)
    with pytest.raises(ValueError, match="warmup must be 0 or more, got -1"):
        dw.growable(optax.adam(RATE), warmup=-1)


@pytest.mark.parametrize("nested", [False, long(True)])
def test_weight_decay_is_not_ramped(nested):
    tx = optax.adamw(RATE, weight_decay=0.3)
    if nested:
        tx = optax.MultiSteps(tx, 1)
    tx = dw.growable(tx, warmup=1000)
    state = dw.grow_opt_state(trained(tx, SMALL, 10)[1], GROWTH, tx)
    updates, _ = jax.jit(tx.update)(jax.tree.map(jnp.zeros_like, WIDE), state, WIDE)
    decay = -RATE * 0.3 * WIDE["up"]["kernel"][:, 8:]
    np.testing.assert_allclose(updates["up"]["kernel"][:, 8:], decay, rtol=1e-6)


# Where optimizers live ----------------------------------------------------------------------------


@pytest.mark.long
def test_a_template_to_restore_into_follows_from_shapes(tmp_path):
    tx = dw.growable(optax.adamw(RATE))
    state = dw.grow_opt_state(trained(tx, SMALL, 7)[1], GROWTH, tx)
    shapes = jax.eval_shape(lambda params: dw.grow_opt_state(tx.init(params), GROWTH, tx), SMALL)
    assert jax.tree.structure(shapes) == jax.tree.structure(state)
    assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, state)
    checkpoint = pytest.importorskip("orbax.checkpoint")
    with checkpoint.StandardCheckpointer() as saver:
        saver.save(tmp_path / "state", state)
        saver.wait_until_finished()
        restored = saver.restore(tmp_path / "state", shapes)
    for a, b in zip(jax.tree.leaves(restored), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(a, b)
    gradient = gradients(WIDE, 3)
    for a, b in zip(
        jax.tree.leaves(jax.jit(tx.update)(gradient, restored, WIDE)),
        jax.tree.leaves(jax.jit(tx.update)(gradient, state, WIDE)),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)


def test_growing_the_state_works_under_jit():
    tx = dw.growable(optax.adam(RATE))
    _, state = trained(tx, SMALL, 7)
    found = jax.jit(lambda state: dw.grow_opt_state(state, GROWTH, tx))(state)
    wanted = dw.grow_opt_state(state, GROWTH, tx)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)


@pytest.mark.parametrize("begun", ["wrapped", "plain"])
def test_a_train_state_grows(begun):
    tx = dw.growable(optax.adam(RATE))
    its = tx if begun == "wrapped" else optax.adam(RATE)
    state = TrainState.create(apply_fn=None, params=SMALL, tx=its)
    apply_gradients = jax.jit(lambda state, grads: state.apply_gradients(grads=grads))
    for step in range(6):
        state = apply_gradients(state, gradients(SMALL, step))
    grown = dw.grow_opt_state(state, GROWTH, tx, variables=WIDE)
    assert int(grown.step) == 6 and grown.tx is tx
    after = apply_gradients(grown, gradients(WIDE, 9))
    moved = after.params["down"]["kernel"][8:] - grown.params["down"]["kernel"][8:]
    np.testing.assert_allclose(jnp.abs(moved), RATE, rtol=1e-5)
    apply_gradients(after, gradients(WIDE, 10))


class Module(nnx.Module):
    def __init__(self, n, rngs):
        self.up, self.down = nnx.Linear(4, n, rngs=rngs), nnx.Linear(n, 3, rngs=rngs)

    def __call__(self, x):
        return self.down(nnx.tanh(self.up(x)))


@pytest.mark.long
def test_an_nnx_optimizer_grows():
    @nnx.jit
    def step(module, optimizer):
        gradient = nnx.grad(lambda module: jnp.mean((module(x) - y) ** 2))(module)
        given = () if "model" in vars(optimizer) else (module,)  # Flax 0.11 and newer want it
        optimizer.update(*given, gradient)

    x, y = X.astype(jnp.float32), Y.astype(jnp.float32)
    small, large = Module(8, nnx.Rngs(0)), Module(14, nnx.Rngs(1))
    optimizer = nnx.Optimizer(small, dw.growable(optax.adam(RATE)), wrt=nnx.Param)
    for _ in range(50):
        step(small, optimizer)
    growth = dw.nnx.plan(dw.nnx.trace(small, x), target=large)
    wide = dw.nnx.grow(small, growth, key=jax.random.key(0))
    grown = dw.nnx.grow_optimizer(optimizer, growth, wide)
    assert grown.tx is optimizer.tx
    before = wide.down.kernel[...]
    step(wide, grown)
    moved = jnp.abs(wide.down.kernel[...] - before)
    np.testing.assert_allclose(moved[8:], RATE, rtol=1e-2)
    assert float(jnp.min(moved[:8])) < 0.8 * RATE
    step(wide, grown)
    growth = dw.nnx.plan(dw.nnx.trace(wide, x), target=Module(16, nnx.Rngs(2)))
    wider = dw.nnx.grow(wide, growth, key=jax.random.key(0))
    again = dw.nnx.grow_optimizer(grown, growth, wider)
    assert again.opt_state.step_counts.births.shape == (3,)


@pytest.mark.long
def test_an_equinox_module_grows_with_its_optimizer():
    def make(n):
        return eqx.nn.MLP(4, 3, n, 1, key=jax.random.key(0))

    def apply(module, x):
        return jax.vmap(module)(x)

    tx = dw.growable(optax.adam(RATE))

    @eqx.filter_jit
    def step(module, state):
        gradient = eqx.filter_grad(lambda module: jnp.mean((apply(module, X) - Y) ** 2))(module)
        updates, state = tx.update(gradient, state, eqx.filter(module, eqx.is_array))
        return eqx.apply_updates(module, updates), state

    module = make(8)
    state = tx.init(eqx.filter(module, eqx.is_array))
    for _ in range(50):
        module, state = step(module, state)
    growth = dw.plan(dw.trace(apply, module, X), target=make(14))
    wide = dw.grow(module, growth, fresh=make(14))
    state = dw.grow_opt_state(state, growth, tx, variables=wide)
    after, state = step(wide, state)
    moved = jnp.abs(after.layers[1].weight - wide.layers[1].weight)
    np.testing.assert_allclose(moved[:, 8:], RATE, rtol=1e-2)
    step(after, state)


def test_variables_in_lists_grow():
    def apply(params, x):
        return jnp.tanh(x @ params[0]) @ params[1]

    params = [SMALL["up"]["kernel"], SMALL["down"]["kernel"]]
    tx = dw.growable(optax.chain(optax.clip(1.0), optax.adamw(RATE, weight_decay=0.0)))
    growth = dw.plan(dw.trace(apply, params, X), {("0", 1): 14})
    wide = dw.grow(params, growth, key=jax.random.key(0))
    state = dw.grow_opt_state(trained(tx, params, 20)[1], growth, tx)
    updates, _ = jax.jit(tx.update)(gradients(wide, 4), state, wide)
    np.testing.assert_allclose(jnp.abs(updates[1][8:]), RATE, rtol=1e-5)


@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
@pytest.mark.long
def test_it_works_on_a_mesh(kind):
    if jax.device_count() < 2:
        pytest.skip("needs two devices")
    axis_types = (getattr(jax.sharding.AxisType, kind),)
    mesh = jax.make_mesh((2,), ("x",), axis_types=axis_types)
    specs = {
        "up": {"kernel": (None, "x"), "bias": ("x",)},
        "down": {"kernel": ("x", None), "bias": (None,)},
    }
    is_spec = lambda node: isinstance(node, tuple)  # noqa: E731
    shardings = jax.tree.map(
        lambda spec: jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec)),
        specs,
        is_leaf=is_spec,
    )
    tx = dw.growable(optax.adam(RATE))
    divided = jax.device_put(SMALL, shardings)
    state = tx.init(divided)
    for step in range(5):
        gradient = jax.device_put(gradients(SMALL, step), shardings)
        _, state = jax.jit(tx.update)(gradient, state, divided)
    state = dw.grow_opt_state(state, GROWTH, tx)
    gradient = jax.device_put(gradients(WIDE, 6), shardings)
    updates, state = jax.jit(tx.update)(gradient, state, jax.device_put(WIDE, shardings))
    wanted = dw.grow_opt_state(trained(tx, SMALL, 5)[1], GROWTH, tx)
    wanted, _ = jax.jit(tx.update)(gradients(WIDE, 6), wanted, WIDE)
    for a, b in zip(jax.tree.leaves(updates), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(np.asarray(a), b, rtol=1e-10)


# What cannot be wrapped ---------------------------------------------------------------------------


def test_what_cannot_be_wrapped_is_named():
    tx = dw.growable(optax.adam(RATE))
    with pytest.raises(ValueError, match="wrapped already, or a part of it is"):
        dw.growable(optax.chain(optax.clip(1.0), tx))
    with pytest.raises(TypeError, match="growable: tx must be the optax.GradientTransformation"):
        dw.growable(optax.adam)
    with pytest.raises(ValueError, match="states with all parameters in one array"):
        dw.growable(optax.flatten(optax.adam(RATE)))


def test_unknown_second_moments_are_refused_and_momenta_are_not():
    def keeping(power):
        def init(params):
            return {"kept": jax.tree.map(jnp.zeros_like, params)}

        def update(updates, state, params=None):
            kept = jax.tree.map(lambda k, g: 0.9 * k + g**power, state["kept"], updates)
            return updates, {"kept": kept}

        return optax.GradientTransformation(init, update)

    with pytest.raises(ValueError, match=r"the meaning of dict.kept is not known: wrap only"):
        dw.growable(keeping(2))
    dw.growable(keeping(1))
    dw.growable(optax.chain(keeping(1), optax.adam(RATE)))


def test_the_old_name_says_what_to_use():
    with pytest.raises(AttributeError, match=r"scale_by_growth is gone: use dw.growable\(tx\)"):
        dw.scale_by_growth  # noqa: B018


@pytest.mark.parametrize(
    ("name", "renewable"),
    [("adam", False), ("sgd", True), long("adafactor", True)],
)
def test_a_state_that_has_not_grown_along_is_named(name, renewable):
    plain = optax.sgd(RATE, momentum=0.9) if name == "sgd" else getattr(optax, name)(RATE)
    tx = dw.growable(plain, renewable=renewable)
    state = tx.init(SMALL)
    for update in (tx.update, jax.jit(tx.update)):
        with pytest.raises(ValueError, match=r"use dw\.grow_opt_state\(state") as raised:
            update(WIDE, state, WIDE)
        said = "up/kernel: has shape (4, 8), but the update of up/kernel has (4, "
        assert said in str(raised.value)
    grown = dw.grow_opt_state(state, GROWTH, tx)
    jax.eval_shape(tx.update, WIDE, grown, WIDE)
    with pytest.raises(ValueError, match=r"use dw\.grow_opt_state\(state"):
        tx.update(SMALL, grown, SMALL)


def test_other_errors_of_an_optimizer_stay_as_they_are():
    tx = dw.growable(optax.adamw(RATE))
    with pytest.raises(ValueError, match="You are using a transformation that requires"):
        jax.eval_shape(tx.update, SMALL, tx.init(SMALL))
