"""Units that begin anew while training runs."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import networks
import numpy as np
import optax
import pytest
import test_every_optimizer as every
from test_growable import KINDS, OPTIMIZERS, gradients
from test_growable import network as perceptron
from tiers import in_tiers, long

import dogwood_jax as dw
from dogwood_jax._plan.silence import heard, silenced

RATE, KEY = 1e-2, jax.random.key(3)
PARAMS = perceptron(8)
WIDTHS = dw.chain(PARAMS, ("up", "down"))
renew = jax.jit(dw.renew, static_argnames=("widths", "tx", "init", "strict"))
MASKS = [jnp.asarray(np.random.default_rng(seed).random(8) < 0.4) for seed in (1, 2)]


def adam():
    return dw.growable(optax.adam(RATE), renewable=True)


def entries(mask):
    """Which entries of the perceptron belong to units."""
    return {
        "up": {"kernel": np.broadcast_to(mask, (4, 8)), "bias": mask},
        "down": {"kernel": np.broadcast_to(mask[:, None], (8, 3)), "bias": np.zeros(3, bool)},
    }


def chosen(mask, new, old):
    return jax.tree.map(np.where, entries(mask), new, old)


def distance(tree, other):
    pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True)
    return max(float(np.max(np.abs(np.subtract(a, b)), initial=0)) for a, b in pairs)


# The optimizer ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
def test_old_entries_go_on_and_renewed_ones_begin(name):
    """Three plain optimizers, of which two begin at a renewal, say what each entry does."""
    plain = OPTIMIZERS[name]()
    tx = dw.growable(plain, renewable=True)
    update, reference = jax.jit(tx.update), jax.jit(plain.update)
    params, state = PARAMS, tx.init(PARAMS)
    plains, masks, programs = [plain.init(PARAMS)], [], renew._cache_size()
    for step in range(24):
        if step in (8, 16):
            masks.append(MASKS[len(masks)])
            structure = jax.tree.map(jnp.shape, (params, state))
            of_up = {"up": masks[-1]}
            params, state = renew(params, state, WIDTHS, of_up, key=jax.random.key(step), tx=tx)
            assert jax.tree.map(jnp.shape, (params, state)) == structure
            plains.append(plain.init(params))
        gradient = gradients(params, step)
        found, state = update(gradient, state, params)
        wanted, plains[0] = reference(gradient, plains[0], params)
        for number, mask in enumerate(masks, 1):
            begun, plains[number] = reference(gradient, plains[number], params)
            wanted = chosen(mask, begun, wanted)
        assert distance(found, wanted) < 1e-14
    assert update._cache_size() == 1 and renew._cache_size() == programs + 1


# Along an axis of a kernel, SM3 keeps the largest of all entries, renewed or not.
NOT_EXACT = every.SEES_NEW_ENTRIES | every.NOT_ANEW | {"sm3", "scale_by_sm3", "lookahead"}


SHORT = ("scale_by_lion", "trace")
OTHERS = [name for name in every.EXACT if name not in (*NOT_EXACT, *SHORT)]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", in_tiers([*SHORT, *OTHERS[::2]], short=SHORT))
def test_so_it_is_for_every_transform(name):
    plain = every.made(name)
    tx = dw.growable(plain, renewable=True)
    with jax.numpy_rank_promotion("allow"):  # inside of Optax
        run, old = (every.Run(name, one, every.SMALL) for one in (tx, plain))
        for _ in range(4):
            gradient = old.gradient()
            run.step(gradient)
            old.step(gradient)
        widths = every.growth().widths
        params, run.state = dw.renew(
            run.params, run.state, widths, {"up": MASKS[0]}, key=KEY, tx=tx
        )
        new = every.Run(name, plain, params)
        run.params = old.params = params
        for step in range(2):
            gradient = gradients(params, step)
            found, run.state = run.updates(gradient)
            wanted, old.state = old.updates(gradient)
            begun, new.state = new.updates(gradient)
            assert every.distance(found, chosen(MASKS[0], begun, wanted)) < 1e-12


@pytest.mark.parametrize("name", [long("adafactor"), "sm3"])
def test_factors_of_old_entries_stay(name):
    """What Adafactor keeps of old entries, as rows times columns, does not change."""
    size = {"min_dim_size_to_factor": 2} if name == "adafactor" else {}
    plain = getattr(optax, name)(RATE, **size)
    tx = dw.growable(plain, renewable=True)
    state = tx.init(PARAMS)
    for step in range(5):
        _, state = jax.jit(tx.update)(gradients(PARAMS, step), state, PARAMS)
    _, after = renew(PARAMS, state, WIDTHS, {"up": MASKS[0]}, key=KEY, tx=tx)

    def moment(state):
        inner = state.inner_state[0]
        if name == "sm3":
            rows, columns = (
                a.reshape(s) for a, s in zip(inner.mu["up"]["kernel"], [(4, 1), (1, 8)])
            )
            return jnp.minimum(rows, columns)
        rows, columns = inner.v_row["up"]["kernel"], inner.v_col["up"]["kernel"]
        return rows[:, None] * columns[None] / jnp.mean(rows)

    found, before = moment(after), moment(state)
    assert float(jnp.max(found[:, MASKS[0]])) == 0
    np.testing.assert_allclose(found[:, ~MASKS[0]], before[:, ~MASKS[0]], rtol=1e-12)


@pytest.mark.long
def test_a_state_of_renewable_units_grows_and_goes_on_renewing():
    """Entries of three cohorts, and a fourth after the growth."""
    plain, tx = optax.adam(RATE), adam()
    update, reference = jax.jit(tx.update), jax.jit(plain.update)
    growth = dw.plan(WIDTHS, {"up": 12})
    state, old = tx.init(PARAMS), plain.init(PARAMS)
    for step in range(6):
        gradient = gradients(PARAMS, step)
        _, state = update(gradient, state, PARAMS)
        _, old = reference(gradient, old)
    params, state = renew(PARAMS, state, WIDTHS, {"up": MASKS[0]}, key=KEY, tx=tx)
    middle = plain.init(params)
    for step in range(3):
        gradient = gradients(params, 20 + step)
        _, state = update(gradient, state, params)
        (_, old), (_, middle) = (reference(gradient, one) for one in (old, middle))
    wide = dw.grow(params, growth, key=KEY)
    state = dw.grow_opt_state(state, growth, tx)
    assert len(state.step_counts.births) == 2 + (4 + 12) + 12 + (12 + 3) + 3
    new = plain.init(wide)
    late = jnp.arange(12) >= 10
    after, renewed = renew(wide, state, growth.after, {"up": late}, key=KEY, tx=tx)
    latest = plain.init(after)
    for step in range(4):
        gradient = gradients(wide, 40 + step)
        own = jax.tree.map(lambda a, b: a[tuple(map(slice, b.shape))], gradient, PARAMS)
        found, renewed = update(gradient, renewed, after)
        parts = []
        for cohort in ("old", "middle"):
            updates, kept = reference(own, {"old": old, "middle": middle}[cohort])
            parts.append(updates["up"]["kernel"])
            old, middle = (kept, middle) if cohort == "old" else (old, kept)
        begun, new = reference(gradient, new)
        last, latest = reference(gradient, latest)
        first = jnp.where(MASKS[0][None], parts[1], parts[0])
        wanted = jnp.hstack([first, begun["up"]["kernel"][:, 8:10], last["up"]["kernel"][:, 10:]])
        np.testing.assert_allclose(found["up"]["kernel"], wanted, rtol=1e-12)


def test_two_thousand_renewals_neither_compile_nor_grow():
    traced = []
    tx = adam()

    def step(carry, key):
        traced.append(1)
        params, state = carry
        gradient = jax.tree.map(jnp.sin, params)
        updates, state = tx.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        return jax.lax.cond(
            jax.random.bernoulli(key, 0.9),
            lambda: dw.renew(
                params, state, WIDTHS, {"up": jnp.abs(params["up"]["bias"]) < 0.1}, key=key, tx=tx
            ),
            lambda: (params, state),
        ), None

    run = jax.jit(lambda carry, keys: jax.lax.scan(step, carry, keys)[0])
    carry = PARAMS, tx.init(PARAMS)
    for part in range(2):
        once = len(traced)
        after = run(carry, jax.random.split(jax.random.key(part), 1000))
        assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, carry)
        assert part == 0 or len(traced) == once
        carry = after
    assert int(carry[1].step_counts.steps) == 2000
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(carry))


# The network --------------------------------------------------------------------------------------


def is_renewable(width):
    width = silenced(width.whole, [width.name], width.whole)[width.name]
    stands_in_the_way = width.fixed or width.interface or width.inside
    stands_in_the_way = stands_in_the_way or heard(width.whole, [width.name])
    sides = {occurrence.role for occurrence in width.occurrences}
    return not stands_in_the_way and width.size > 1 and sides == {"incoming", "outgoing"}


@pytest.mark.parametrize(
    "name",
    [
        "mlp",
        *(
            long(name)
            for name in ("cnn", "lstm", "fused_qkv", "stacked_layers", "complex_and_fourier")
        ),
    ],
)
def test_a_renewal_is_a_removal_and_a_growth_whose_units_take_old_places(name):
    """So the two agree on every entry, old, zero or drawn, and dormant units go without a trace."""
    model = networks.load()[name].build()
    variables = networks.fill(model.shapes, 0)
    widths = dw.trace(model.apply, variables, *model.inputs)
    tx, apply = dw.growable(optax.sgd(RATE), renewable=True), jax.jit(model.apply)
    names = [width.name for width in widths.values() if is_renewable(width)]
    assert names
    for width in names:
        mask = np.arange(widths[width].size) % 3 == 1
        kept, new = (np.flatnonzero(one).tolist() for one in (~mask, mask))
        masks = {width: jnp.asarray(mask)}
        removal = dw.plan(widths, keep={width: kept}, check=False)
        growth = dw.plan(removal.after, {width: len(mask)}, check=False)
        moved = dw.plan(widths, keep={width: kept + new}, check=False)

        wanted = jax.jit(
            lambda tree, by: dw.grow(dw.grow(tree, by[0]), by[1], key=KEY), static_argnums=1
        )(variables, (removal, growth))
        renewed, state = renew(variables, tx.init(None), widths, masks, key=KEY, tx=tx)
        found = jax.jit(dw.grow)(renewed, moved)
        drawn = 0
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
            a, b = np.asarray(a), np.asarray(b)
            assert np.all((a == b) | (a != 0) & (b != 0))
            drawn += np.sum(a != b)
        assert drawn
        again, _ = renew(renewed, state, widths, masks, key=jax.random.key(9), tx=tx)
        assert distance(again, renewed) > 0
        before, after = (apply(tree, *model.inputs) for tree in (renewed, again))
        for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


def test_units_that_are_zero_for_all_inputs_go_without_a_trace():
    """Their outgoing weights are not zero, but relu is, as of units that have died."""

    def apply(params, x):
        hidden = jax.nn.relu(x @ params["up"]["kernel"] + params["up"]["bias"])
        return hidden @ params["down"]["kernel"] + params["down"]["bias"]

    x = jnp.asarray(np.random.default_rng(0).normal(size=(64, 4)))
    dead = jnp.arange(8) % 2 == 0
    params = PARAMS | {"up": PARAMS["up"] | {"bias": jnp.where(dead, -100, 0.1)}}
    tx = adam()
    new, _ = renew(params, tx.init(params), WIDTHS, {"up": dead}, key=KEY, tx=tx)
    with jax.numpy_rank_promotion("allow"):
        np.testing.assert_array_equal(apply(new, x), apply(params, x))
    np.testing.assert_array_equal(new["up"]["bias"], jnp.where(dead, 0, 0.1))
    limit = (6 / (4 + 8)) ** 0.5
    drawn = np.abs(new["up"]["kernel"][:, dead])
    assert 0.5 * limit < drawn.max() <= limit and drawn.min() > 0
    init = lambda key, shape, dtype: jnp.full(shape, 7, dtype)  # noqa: E731
    new, _ = renew(params, tx.init(params), WIDTHS, {"up": dead}, key=KEY, tx=tx, init=init)
    np.testing.assert_array_equal(new["up"]["kernel"][:, dead], 7)


def test_a_weight_between_renewed_units_belongs_to_the_second():
    shapes = {"a": (3, 6), "b": (6, 5), "c": (5, 2)}
    params = {name: {"kernel": jnp.ones(shape)} for name, shape in shapes.items()}
    a, b, tx = np.arange(6) < 2, np.arange(5) < 3, adam()
    masks = {"a": jnp.asarray(a), "b": jnp.asarray(b)}
    widths = dw.chain(params, ("a", "b", "c"))
    new, _ = renew(params, tx.init(params), widths, masks, key=KEY, tx=tx)
    kernel = np.asarray(new["b"]["kernel"])
    assert np.all(kernel[a][:, ~b] == 0) and np.all(kernel[~a][:, ~b] == 1)
    assert np.all((kernel[:, b] != 0) & (np.abs(kernel[:, b]) < 1))
    assert np.all(np.asarray(new["c"]["kernel"])[b] == 0)


class Normalized(nn.Module):
    """With statistics of units, and a norm over units."""

    over: bool = False

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(6, name="up", param_dtype=jnp.float64)(x)
        if self.over:
            x = nn.LayerNorm(param_dtype=jnp.float64)(x)
        else:
            x = nn.BatchNorm(use_running_average=True, param_dtype=jnp.float64)(x)
        return nn.Dense(3, name="down", param_dtype=jnp.float64)(nn.relu(x))


def normalized(over):
    module, x = Normalized(over), jnp.asarray(np.random.default_rng(0).normal(size=(5, 4)))
    return module.apply, networks.fill(jax.eval_shape(module.init, KEY, x), 1), x


@pytest.mark.long
def test_statistics_begin_anew_beside_a_state_of_one_collection():
    apply, variables, x = normalized(False)
    tx = adam()
    state = tx.init(variables["params"])
    _, state = jax.jit(tx.update)(variables["params"], state, variables["params"])
    mask = np.arange(6) < 2
    widths = dw.trace(apply, variables, x)
    new, after = renew(variables, state, widths, {"up": mask}, key=KEY, tx=tx)
    statistics = new["batch_stats"]["BatchNorm_0"]
    np.testing.assert_array_equal(statistics["mean"][:2], 0)
    np.testing.assert_array_equal(statistics["var"][:2], 1)
    np.testing.assert_array_equal(
        statistics["var"][2:], variables["batch_stats"]["BatchNorm_0"]["var"][2:]
    )
    moments = after.inner_state[0].mu
    np.testing.assert_array_equal(moments["BatchNorm_0"]["scale"] == 0, mask)
    np.testing.assert_array_equal(jnp.all(moments["down"]["kernel"] == 0, axis=1), mask)
    assert not jnp.any(moments["down"]["bias"] == 0)


def test_a_norm_over_the_units_is_refused_unless_outputs_may_move():
    apply, variables, x = normalized(True)
    widths, tx = dw.trace(apply, variables, x), adam()
    state, masks = tx.init(variables["params"]), {"up": jnp.arange(6) < 2}
    with pytest.raises(
        ValueError, match=r"up: renewing units would change outputs (.|\n)* strict=False"
    ):
        dw.renew(variables, state, widths, masks, key=KEY, tx=tx)
    new, state = renew(variables, state, widths, masks, key=KEY, tx=tx, strict=False)
    again, _ = renew(new, state, widths, masks, key=jax.random.key(8), tx=tx, strict=False)
    assert dw.compare(apply, new, apply, again, x).absolute > 1e-3


# Arguments ----------------------------------------------------------------------------------------


def test_what_is_wrong_is_said_before_anything_is_computed():
    tx = adam()
    state, mask = tx.init(PARAMS), jnp.ones(8, bool)
    renews = functools.partial(dw.renew, key=KEY, tx=tx)
    masks = {"up": jnp.ones(7, bool), "no": mask, "down": jnp.ones(3, bool)}
    with pytest.raises(ValueError) as raised:
        renews(PARAMS, state, WIDTHS, masks)
    for words in (
        "up: pass a boolean for each unit, of shape (8,), got",
        "no width 'no'",
        "they are inputs or outputs of the network\n  strict=False renews them nevertheless",
    ):
        assert words in str(raised.value)
    with pytest.raises(ValueError, match="pass a boolean for each unit"):
        renews(PARAMS, state, WIDTHS, {"up": jnp.ones(8)})
    with pytest.raises(ValueError, match="variables must hold .* got an optimizer's state"):
        renews(state, PARAMS, WIDTHS, {"up": mask})
    with pytest.raises(TypeError, match="masks must be a mapping from widths"):
        renews(PARAMS, state, WIDTHS, mask)
    with pytest.raises(ValueError, match="another network"):
        renews({"other": jnp.ones(3)}, state, WIDTHS, {"up": mask})
    with pytest.raises(ValueError, match=r"up/kernel: expected a floating array of shape \(4, 8\)"):
        renews(perceptron(9), state, WIDTHS, {"up": mask})
    whole = jax.tree.map(lambda array: array.astype(int), PARAMS)
    with pytest.raises(ValueError, match=r"up/kernel: expected a floating array"):
        renews(whole, state, WIDTHS, {"up": mask})
    for plain in (optax.adam(RATE), optax.sgd(RATE)):
        with pytest.raises(ValueError, match=r"tx = dw.growable\(tx, renewable=True\)"):
            renews(PARAMS, plain.init(PARAMS), WIDTHS, {"up": mask})
    with pytest.raises(ValueError, match="has no step count for each unit; wrap"):
        renews(PARAMS, dw.growable(optax.adam(RATE)).init(PARAMS), WIDTHS, {"up": mask})
    wide = adam().init(perceptron(9))
    with pytest.raises(ValueError, match=r"other sizes than the variables; after a growth, use"):
        renews(PARAMS, wide, WIDTHS, {"up": mask})
    with pytest.raises(ValueError, match="does not belong to tx"):
        dw.renew(
            *(PARAMS, state, WIDTHS, {"up": mask}),
            key=KEY,
            tx=dw.growable(optax.adabelief(RATE), renewable=True),
        )


@pytest.mark.long
def test_rows_of_a_table_have_no_weights_that_could_be_zero():
    model = networks.load()["experts_by_one_hot"].build()
    variables = networks.fill(model.shapes, 0)
    widths, tx = dw.trace(model.apply, variables, *model.inputs), adam()
    arguments, mask = (variables, tx.init(variables), widths), np.arange(9) < 2
    with pytest.raises(ValueError, match="they have no outgoing weights\n  strict=False"):
        dw.renew(*arguments, {"up[0]": jnp.asarray(mask)}, key=KEY, tx=tx)
    masks = {"up[0]": mask, "router": mask[:4]}
    with pytest.raises(
        ValueError, match="router: .* would change outputs (.|\n)* no outgoing weights"
    ):
        dw.renew(*arguments, {"router": jnp.asarray(mask[:4])}, key=KEY, tx=tx)
    new, _ = renew(*arguments, masks, key=KEY, tx=tx, strict=False)
    for name, axis in (("up", 0), ("down", 0), ("router", 1)):
        moved = np.any(new[name] != variables[name], axis=tuple({*range(new[name].ndim)} - {axis}))
        np.testing.assert_array_equal(moved, mask[: len(moved)])
    model = networks.load()["fused_gates"].build()
    variables = networks.fill(model.shapes, 0)
    widths = dw.trace(model.apply, variables, *model.inputs)
    arguments = variables, tx.init(variables), widths, {"lstm/linear": jnp.asarray(mask[:5])}
    with pytest.raises(ValueError, match="they are inputs or outputs of the network"):
        dw.renew(*arguments, key=KEY, tx=tx)
    new, _ = renew(*arguments, key=KEY, tx=tx, strict=False)
    old, kernel = (np.asarray(one["lstm/linear"]["w"]) for one in (variables, new))
    # [input | state, i | g | f | o]
    gates = np.tile(mask[:5], 4)
    assert not np.any(kernel[4:][mask[:5]][:, ~gates])
    np.testing.assert_array_equal(kernel[4:][~mask[:5]][:, ~gates], old[4:][~mask[:5]][:, ~gates])
    assert not np.any(kernel[:, gates] == old[:, gates])
    np.testing.assert_array_equal(new["lstm/linear"]["b"][gates], 0)


def test_what_a_state_keeps_must_be_known():
    tx = dw.growable(optax.ema(0.9), renewable=True)  # of gradients, or of parameters
    with pytest.raises(ValueError, match="cannot reset entries(.|\n)*ema/up/kernel: has no known"):
        dw.renew(PARAMS, tx.init(PARAMS), WIDTHS, {"up": MASKS[0]}, key=KEY, tx=tx)


def test_tied_weights_are_refused():
    model = networks.load()["tied_embedding"].build()
    variables = networks.fill(model.shapes, 0)
    widths, tx = dw.trace(model.apply, variables, *model.inputs), adam()
    name = next(w.name for w in widths.values() for o in w.occurrences if o.role == "both")
    masks = {name: jnp.ones(widths[name].size, bool)}
    with pytest.raises(ValueError, match="both makes and reads its units"):
        dw.renew(variables, tx.init(variables), widths, masks, key=KEY, tx=tx, strict=False)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_dtypes_stay(dtype):
    params = jax.tree.map(lambda array: array.astype(dtype), PARAMS)
    tx = adam()
    arguments = params, tx.init(params)
    of_up = functools.partial(dw.renew, widths=WIDTHS, masks={"up": MASKS[0]}, key=KEY, tx=tx)
    new = jax.eval_shape(of_up, *arguments)
    types = lambda leaf: (leaf.shape, leaf.dtype)  # noqa: E731
    assert jax.tree.map(types, new) == jax.tree.map(types, arguments)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
def test_arrays_on_a_mesh_stay_there(kind):
    if jax.device_count() < 2:
        pytest.skip("needs two devices")
    mesh = jax.make_mesh((2,), ("x",), axis_types=(getattr(jax.sharding.AxisType, kind),))
    spec = jax.sharding.PartitionSpec
    specs = {
        "up": {"kernel": spec(None, "x"), "bias": spec("x")},
        "down": {"kernel": spec("x", None), "bias": spec()},
    }
    shardings = jax.tree.map(lambda one: jax.sharding.NamedSharding(mesh, one), specs)
    tx = adam()
    params = jax.device_put(PARAMS, shardings)
    state = tx.init(params)

    @jax.jit
    def train(params, state, mask):
        for step in range(2):
            gradient = jax.tree.map(jnp.sin, params)
            updates, state = tx.update(gradient, state, params)
            params = optax.apply_updates(params, updates)
            if step == 0:
                params, state = dw.renew(params, state, WIDTHS, {"up": mask}, key=KEY, tx=tx)
        return params, state

    wanted = train(PARAMS, tx.init(PARAMS), MASKS[0])
    found = train(params, state, MASKS[0])
    assert distance(jax.device_get(found), wanted) < 1e-12
    for array, sharding in zip(jax.tree.leaves(found[0]), jax.tree.leaves(shardings), strict=True):
        assert array.sharding.is_equivalent_to(sharding, array.ndim)
