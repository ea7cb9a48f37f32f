"""Inserted layers by name, and what is filled into them."""

import functools
import pickle

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax
from networks import data, f64, fill
from networks_deeper import (
    IMAGE,
    VECTOR,
    WORDS,
    Cnn,
    Gated,
    Named,
    ResNet,
    chain,
    entries,
    inserted,
    layers_with_own_inputs,
    loop,
    mlp,
    own_inputs,
    proposed,
    relative,
    residual,
    sequential,
    shapes_of,
    square,
    stack,
    stacks,
)
from tiers import long

import dogwood_jax as dw

Dense = functools.partial(nn.Dense, param_dtype=jnp.float64)
# Names --------------------------------------------------------------------------------------------


def test_numbered_layers_keep_their_order_unless_they_are_named():
    old, new = chain("l_1", "l_2"), chain("l_2", "l_3", "l_4")
    shapes = square("l_1", "l_2"), square("l_2", "l_3", "l_4")
    found = proposed(old, shapes[0], new, shapes[1], VECTOR)
    assert [str(i) for i in found] == [
        "l_2: moved from l_1",
        "l_3: moved from l_2",
        "l_4: identity",
    ]
    rename = {"l_1": "l_2", "l_2": "l_4"}
    found = proposed(old, shapes[0], new, shapes[1], VECTOR, rename=rename)
    assert [str(i) for i in found] == [
        "l_2: moved from l_1",
        "l_3: identity",
        "l_4: moved from l_2",
    ]
    with pytest.raises(ValueError, match="rename: the network has no 'l_9'") as error:
        rename = {"l_9": "l_2", "l_2": "l_8"}
        proposed(old, shapes[0], new, shapes[1], VECTOR, rename=rename)
    assert "rename: l_8 is not in the target" in str(error.value)


def test_layers_keep_their_names_among_many():
    names = [f"l_{i}" for i in range(16)]
    old, new = (
        lambda p, x, names=names: chain(*names)(p, jax.nn.relu(x)) for names in (names[10:], names)
    )
    found = proposed(old, square(*names[10:]), new, square(*names), VECTOR)
    assert sorted(i.path for i in found) == sorted(names[:10])
    assert {edit.fill.kind for edit in found} == {"identity"}


def test_modules_can_be_renamed_without_their_collection():
    old, new = Named(("a", "out")), Named(("a", "b", "last"))
    found = proposed(
        old.apply,
        shapes_of(old, VECTOR),
        new.apply,
        shapes_of(new, VECTOR),
        VECTOR,
        rename={"out": "last"},
    )
    assert [str(i) for i in found] == [
        "params/b/bias: 0",
        "params/b/kernel: identity",
        "params/last/bias: moved from params/out/bias",
        "params/last/kernel: moved from params/out/kernel",
    ]


def test_copies_are_of_the_closest_whole_layer():
    old, new = ResNet((2, 1)), ResNet((3, 2))
    found = proposed(
        old.apply, shapes_of(old, IMAGE), new.apply, shapes_of(new, IMAGE), IMAGE, copy=True
    )
    fills = {edit.path: (edit.fill and edit.fill.kind, edit.source) for edit in found}
    kernel = "params/Bottleneck_{}/Conv_0/kernel"
    assert fills[kernel.format(2)] == ("copy", kernel.format(1))
    assert fills[kernel.format(3)] == (None, kernel.format(2))
    # The one before it also projects its input, to another number of channels.
    assert fills[kernel.format(4)] == ("free", None)
    mean = "batch_stats/Bottleneck_{}/BatchNorm_0/mean"
    assert fills[mean.format(2)] == ("copy", mean.format(1))
    assert fills[mean.format(4)] == ("free", None)


def test_copies_are_found_by_numbers_within_names():
    def apply(p, x):
        for i in range(len(p) // 2):
            x = x + jax.nn.gelu(x @ p[f"block_{i}_up1"]) @ p[f"block_{i}_down"]
        return x

    def shapes(blocks):
        names = [f"block_{i}_" for i in range(blocks)]
        return {n + "up1": f64(4, 6) for n in names} | {n + "down": f64(6, 4) for n in names}

    found = proposed(apply, shapes(2), apply, shapes(3), data(3, 4), copy=True)
    assert [str(i) for i in found] == ["block_2_down: 0", "block_2_up1: copy of block_1_up1"]


def test_layers_by_name():
    first, last = ({"kernel": data(*n), "bias": data(n[1])} for n in ((4, 5), (5, 3)))
    params = {"first": first, "last": last, "conv": {"kernel": data(3, 3, 2, 6)}}
    names = {"second": "first", "third": "second", "conv_2": "conv"}
    with pytest.warns(UserWarning, match="nothing was evaluated, so outputs stay only if"):
        deeper = dw.deepen({"params": params}, layers=names)["params"]
    assert list(deeper) == ["first", "second", "third", "last", "conv", "conv_2"]

    def apply(params, *order):
        x = VECTOR
        for name in order:
            x = jax.nn.relu(x @ params[name]["kernel"] + params[name]["bias"][None])
        return x

    expected = apply(params, "first", "last")
    assert (apply(deeper, "first", "second", "third", "last") == expected).all()
    image = data(1, 5, 5, 6)
    convolve = functools.partial(lax.conv_general_dilated, window_strides=(1, 1), padding="SAME")
    same = convolve(image, deeper["conv_2"]["kernel"], dimension_numbers=("NHWC", "HWIO", "NHWC"))
    assert (same == image).all()


def test_layers_by_name_are_proved_where_the_networks_are_given():
    def network(activation):
        def apply(params, x):
            for name in params:
                x = activation(x @ params[name]["kernel"])
            return x

        return apply

    params = {"a": {"kernel": data(4, 5)}}
    options = {"layers": {"b": "a"}, "inputs": (VECTOR,)}
    relu, tanh = network(jax.nn.relu), network(jnp.tanh)
    deeper = dw.deepen(params, apply=relu, target_apply=relu, **options)
    assert (relu(deeper, VECTOR) == relu(params, VECTOR)).all()
    with pytest.raises(ValueError, match="b: tanh follows it"):
        dw.deepen(params, apply=tanh, target_apply=tanh, **options)


def test_errors_of_layers_by_name_are_listed():
    params = {
        "a": {"kernel": data(4, 5)},
        "norm": {"scale": data(5)},
        "m": {"a": {"kernel": IMAGE}},
    }
    names = {"b": "aa", "c": "norm", "norm": "a", "d": "m/a"}
    with pytest.raises(ValueError, match="b|aa: no layer 'aa'; the closest are \\['a'") as error:
        dw.deepen(params, layers=names)
    for words in ("norm: expected a kernel", "norm: already exists", "d: must be in the same"):
        assert words in str(error.value)


# Values -------------------------------------------------------------------------------------------


@pytest.mark.long
def test_equinox_modules_take_the_structure_of_the_target():
    class Cnn(eqx.Module):
        layers: list

        def __init__(self, depth, key):
            channels = [2] + depth * [4]
            self.layers = [
                eqx.nn.Conv2d(a, b, 3, padding=1, key=key)
                for a, b in zip(channels, channels[1:], strict=False)
            ]

        def __call__(self, x):
            for layer in self.layers:
                x = jax.nn.relu(layer(x))
            return x

    def apply(module, x):
        return jax.vmap(module)(x)

    run, x = eqx.filter_jit(apply), IMAGE.transpose(0, 3, 1, 2)
    shapes = [eqx.filter_eval_shape(Cnn, depth, jax.random.key(0)) for depth in (1, 2)]
    old, target = fill(shapes[0], 0), fill(shapes[1], 1)
    deeper = dw.deepen(old, target, apply=apply, target_apply=apply, inputs=(x,))
    assert jax.tree.structure(deeper) == jax.tree.structure(target)
    assert relative(run(old, x), run(deeper, x)) <= 1e-6


@pytest.mark.long
def test_free_values_are_those_of_the_target_or_drawn_at_its_scale():
    old, new, x = Gated(1), Gated(2), data(2, 5, 6)
    variables, shapes = fill(shapes_of(old, x), 0), shapes_of(new, x)
    deepen = functools.partial(
        dw.deepen, variables, apply=old.apply, target_apply=new.apply, inputs=(x,)
    )
    fresh = fill(shapes, 3)
    params = deepen(fresh)["params"]
    assert (params["up_1"]["kernel"] == fresh["params"]["up_1"]["kernel"]).all()
    assert not params["down_1"]["kernel"].any() and not params["down_1"]["bias"].any()
    drawn = deepen(shapes, key=jax.random.key(0))["params"]
    largest = jnp.abs(drawn["up_1"]["kernel"]).max()
    assert np.sqrt(6 / 11) / 2 < largest <= np.sqrt(6 / 11)
    assert (drawn["norm_1"]["scale"] == 1).all() and not drawn["norm_1"]["bias"].any()
    with pytest.raises(ValueError, match="up_1/kernel: free, so pass key="):
        deepen(shapes)


def test_new_layers_have_the_dtype_of_old_ones(dtype=jnp.bfloat16):
    apply = chain("a", "b")
    variables = {"a": data(4, 4).astype(dtype)}
    x = VECTOR.astype(dtype)
    deeper = dw.deepen(
        variables, square("a", "b"), apply=chain("a"), target_apply=apply, inputs=(x,)
    )
    assert deeper["b"].dtype == dtype
    assert (apply(deeper, x) == chain("a")(variables, x)).all()


def test_running_statistics_among_the_outputs():
    old, new = Cnn(), Cnn(2)
    applies = [functools.partial(module.apply, mutable=["batch_stats"]) for module in (old, new)]
    shapes = [shapes_of(module, IMAGE) for module in (old, new)]
    found = proposed(applies[0], shapes[0], applies[1], shapes[1], IMAGE)
    fills = {edit.path: edit.fill.value for edit in found if edit.fill}
    assert fills["batch_stats/norm_1/mean"] == 0 and fills["batch_stats/norm_1/var"] == 1
    assert fills["params/norm_1/scale"] == pytest.approx(np.sqrt(1 + 1e-5))


@pytest.mark.long
def test_inserted_normalizations_get_the_statistics_of_a_batch():
    old, new, x = Cnn(2), Cnn(4), jnp.linspace(-1, 2, 5 * 6 * 6 * 2).reshape(5, 6, 6, 2) ** 3
    variables = fill(jax.eval_shape(old.init, jax.random.key(0), x), 1)
    # As after training, the running statistics are those of the data.
    train_old, train_new = (
        jax.jit(functools.partial(model.clone(training=True).apply, mutable="batch_stats"))
        for model in (old, new)
    )
    _, seen = train_old(variables, x)
    fixed = variables["batch_stats"]["norm_1"]
    variables["batch_stats"]["norm_1"] = jax.tree.map(
        lambda after, before: (after - 0.99 * before) / 0.01, seen["batch_stats"]["norm_1"], fixed
    )
    deepen = functools.partial(
        dw.deepen,
        variables,
        jax.eval_shape(new.init, jax.random.key(0), x),
        apply=old.apply,
        target_apply=new.apply,
        inputs=(x[:1],),
    )
    for deeper, limit in ((deepen(batch=(x,)), 1e-6), (deepen(), np.inf)):
        # Flax adds epsilon to the variance in the statistics' dtype, float32.
        assert dw.compare(old.apply, variables, new.apply, deeper, x).relative < 1e-6
        outputs = [train_old(variables, x)[0], train_new(deeper, x)[0]]
        difference = jnp.abs(outputs[1] - outputs[0]).max() / jnp.abs(outputs[0]).max()
        assert difference < limit
    assert difference > 1e-2
    assert list(deeper["params"]) == sorted(deeper["params"])
    plain = {"a": data(4, 4)}
    with pytest.raises(ValueError, match="none was inserted"):
        applies = {"apply": chain("a"), "target_apply": chain("a", "b")}
        dw.deepen(plain, square("a", "b"), inputs=(VECTOR,), batch=(VECTOR,), **applies)


def test_edits_are_data_from_shapes_alone():
    variables, target = fill(stack(2), 0), stack(4) | {"u": f64(4, 3)}
    found = proposed(loop(), stack(2), loop(), target, f64(5, 4))
    assert found == proposed(loop(), variables, loop(), target, VECTOR)
    assert found == pickle.loads(pickle.dumps(found)) and hash(found) is not None
    assert [str(edit) for edit in found] == ["u: free", "w[2,3]: 0"]

    @functools.partial(jax.jit, static_argnums=1)
    def under_jit(variables, found):
        return inserted(variables, found, target, key=jax.random.key(0))

    compiled = under_jit(variables, found)
    eager = inserted(variables, found, target, key=jax.random.key(0))
    assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), compiled, eager))
    with pytest.raises(ValueError, match="w: missing, but w is made from it"):
        inserted({}, found, target, key=jax.random.key(0))


def test_interleaved_layers_copy_the_one_before():
    variables = fill(stack(2), 0)
    found = proposed(loop(), stack(2), loop(), stack(5), VECTOR, interleave=True)
    assert found[0].layers.places == (0, -1, 1, -1, -1)
    deeper = inserted(variables, found, stack(5))["w"]
    assert (deeper[jnp.array([0, 2])] == variables["w"]).all()
    assert not deeper[jnp.array([1, 3, 4])].any()
    for numbers in (np.arange, jnp.arange):
        counted = loop(numbers=numbers)
        with pytest.raises(ValueError, match="cannot show"):
            proposed(counted, stack(2), counted, stack(5), VECTOR, interleave=True)
    alternating = loop(numbers=lambda n: np.arange(n) % 2)  # 0, 1 and 0, 1, 0, 1
    with pytest.raises(ValueError, match="cannot show"):
        proposed(alternating, stack(2), alternating, stack(4), VECTOR, interleave=True)
    paired = loop(numbers=lambda n: np.arange(n) // (n // 2))  # 0, 1 and 0, 0, 1, 1
    proposed(paired, stack(2), paired, stack(4), VECTOR, interleave=True)


def reader_of_words(words, *sizes):
    embed = nn.Embed(words, 5, param_dtype=jnp.float64)
    return nn.Sequential([embed, nn.relu, *sequential(*sizes).layers])


WIDER = {
    "mlp": (mlp(5, 3), mlp(8, 8, 3), VECTOR, {"dense_0": 8}),
    "heads": (Gated(), Gated(2, 7, 4), data(2, 5, 6), {"up_0": 7, "attention_0/query[heads]": 4}),
    # Words are looked up by a clipped number, so the program holds their count and the last one.
    "words": (reader_of_words(7, 3), reader_of_words(9, 5, 3), WORDS, {"layers_0[vocab]": 9}),
}


@pytest.mark.parametrize("name", ["mlp", *(long(n) for n in ("heads", "words"))])
def test_wider_and_deeper(name):
    old, new, x, sizes = WIDER[name]
    variables, target = fill(shapes_of(old, x), 0), shapes_of(new, x)
    widths = dw.trace(old.apply, variables, x)
    growth = dw.plan(widths, target=target, target_apply=new.apply, interface=True)
    assert growth.sizes.items() >= sizes.items()
    deeper = dw.grow(variables, growth, key=jax.random.key(0))
    assert jax.tree.map(jnp.shape, deeper) == jax.tree.map(jnp.shape, target)
    assert relative(jax.jit(old.apply)(variables, x), jax.jit(new.apply)(deeper, x)) <= 1e-12


@pytest.mark.long
def test_arrays_with_an_entry_for_each_layer_get_more_and_wider_ones():
    variables, target = fill(stacks(2), 0), stacks(3, hidden=6)
    plan = functools.partial(
        dw.plan, dw.trace(entries, variables, VECTOR), target=target, target_apply=entries
    )
    deeper = dw.grow(variables, plan(), key=jax.random.key(0))
    assert relative(entries(variables, VECTOR), entries(deeper, VECTOR)) <= 1e-12
    copied = dw.grow(variables, plan(depth=dw.strategies.stack()), key=jax.random.key(0))
    assert (copied["r"][2] == variables["r"][0]).all()


def normed(p, x):
    each = jnp.einsum("bd,dlh->blh", x, p["each"])
    size = lax.rsqrt(jnp.mean(each**2, -1, keepdims=True) + 1e-6)
    return each * size * (1 + p["scale"])[None, None]


def looked_up(p, x):
    return (p["table"] * 2)[jnp.arange(5) % 3] + p["scale"][None, None]


def reshaped(p, x):
    each = jnp.einsum("bd,dlh->blh", x, p["each"])
    each = jnp.maximum(each.reshape(1, 5, *each.shape[1:]), 0)[0]
    return each + jnp.moveaxis(p["last"], -1, 1)[:1] - jnp.squeeze(p["flat"], 1)[None, :, None]


def in_blocks(p, x):
    own = x @ p["wide"] + p["rows"][jnp.arange(5) % 3] * 2
    return own.reshape(5, len(p["layers"]), -1)


OWN_INPUTS = {
    "blocks of one axis": in_blocks,
    "a product under a norm": normed,
    "a table": looked_up,
    "axes that move": reshaped,
    "both": lambda p, x: (normed(p, x) + looked_up(p, x)) * lax.rsqrt(2.0),
}


@pytest.mark.parametrize(
    ("name", "hidden"),
    [
        ("blocks of one axis", 3),
        ("blocks of one axis", 5),
        long("a product under a norm", 5),
        ("a table", 5),
        long("axes that move", 5),
        long("a product under a norm", 3),
        long("both", 3),
    ],
)
def test_layers_take_their_own_part_of_what_is_computed_for_all(name, hidden):
    apply = jax.jit(own_inputs(OWN_INPUTS[name]))
    variables, target = fill(layers_with_own_inputs(2), 0), layers_with_own_inputs(4, hidden)
    widths = dw.trace(apply, variables, VECTOR)
    if hidden > 3 and name in ("a product under a norm", "blocks of one axis"):
        with pytest.raises(ValueError, match="something else|never learn|which no growth explains"):
            dw.plan(widths, target=target, target_apply=apply)
        return
    growth = dw.plan(widths, target=target, target_apply=apply)
    deeper = dw.grow(variables, growth, key=jax.random.key(0))
    assert jax.tree.map(jnp.shape, deeper) == jax.tree.map(jnp.shape, target)
    assert relative(apply(variables, VECTOR), apply(deeper, VECTOR)) <= 1e-12


@pytest.mark.parametrize(
    "across",
    (
        lambda each: jnp.cumsum(each, 1),
        long(lambda each: each[:, ::-1]),
    ),
)
def test_new_layers_may_stand_where_old_ones_do_not_follow_from_them(across):
    apply = own_inputs(lambda p, x: across(normed(p, x)))
    variables, target = fill(layers_with_own_inputs(2), 0), layers_with_own_inputs(3)
    growth = dw.plan(dw.trace(apply, variables, VECTOR), target=target, target_apply=apply)
    deeper = dw.grow(variables, growth, key=jax.random.key(0))
    assert relative(apply(variables, VECTOR), apply(deeper, VECTOR)) <= 1e-12


@pytest.mark.parametrize(
    "across",
    (
        lambda each: each - each.mean(1, keepdims=True),
        lambda each: jax.nn.softmax(each, 1),
        lambda each: each + each[:, :1] * each[:, 1:2] * each[:, -1:],
    ),
)
def test_parts_that_follow_from_other_layers_are_refused(across):
    apply = own_inputs(lambda p, x: across(normed(p, x)))
    variables, target = layers_with_own_inputs(2), layers_with_own_inputs(3)
    with pytest.raises(ValueError, match="cannot show that the deeper network computes"):
        dw.plan(dw.trace(apply, variables, VECTOR), target=target, target_apply=apply)


@pytest.mark.long
def test_the_optimizer_and_the_gradient_follow_layers_that_share_an_axis():
    def apply(p, x):
        return own_inputs(in_blocks)(p, x)

    @jax.jit
    def gradient(p, x):
        return jax.grad(lambda p: (apply(p, x) ** 2).sum())(p)

    small, target = fill(layers_with_own_inputs(2), 0), fill(layers_with_own_inputs(4), 1)
    growth = dw.plan(dw.trace(apply, small, VECTOR), target=target, target_apply=apply)
    deeper = dw.grow(small, growth, key=jax.random.key(0))
    rows = small["rows"].shape[1]
    np.testing.assert_array_equal(deeper["rows"][:, :rows], small["rows"])
    assert (
        dw.grow(small, growth, fresh=target)["rows"][:, rows:] == target["rows"][:, rows:]
    ).all()
    assert dw.verify(gradient, small, gradient, deeper, VECTOR, growth=growth).relative < 1e-12
    tx = dw.growable(optax.adam(1e-2))
    init, update = jax.jit(tx.init), jax.jit(tx.update)
    _, state = update(gradient(small, VECTOR), init(small), small)
    state = dw.grow_opt_state(state, growth, tx)
    assert [*state.step_counts.arrays["rows"].cohorts[1]] == [0] * rows + [1] * rows
    updates, _ = update(jax.tree.map(jnp.ones_like, deeper), state, deeper)
    begun, _ = update(jax.tree.map(jnp.ones_like, deeper), init(deeper), deeper)
    np.testing.assert_allclose(updates["rows"][:, rows:], begun["rows"][:, rows:], rtol=1e-9)


def test_a_stack_that_is_also_read_along_another_axis_is_refused():
    def apply(p, x):
        x, _ = lax.scan(lambda x, w: (x + jnp.tanh(x @ w), None), x, p["w"])
        rows = jnp.moveaxis(p["w"], 1, 0)
        return lax.scan(lambda x, row: (x * row.mean(), None), x, rows)[0]

    old, new = {"w": f64(2, 4, 4)}, {"w": f64(3, 4, 4)}
    with pytest.raises(ValueError, match="cannot show that the deeper network computes"):
        proposed(apply, old, apply, new, VECTOR)


@pytest.mark.parametrize("scale", (1.0, 2.0))
def test_one_is_no_size(scale):
    def larger(p, x):
        return residual(p, x) * scale @ p["a"]

    widths = dw.trace(lambda p, x: x * 1.0 @ p["a"], {"a": f64(4, 4)}, VECTOR)
    options = {"target": {"a": f64(4, 8), "b": f64(4, 4)}, "target_apply": larger}
    growth = dw.plan(widths, interface=True, **options)
    assert growth.inserted
    assert growth.factors == ({} if scale == 1 else {"a": 0.5})  # it makes up for the number


def test_deepen_needs_networks_or_names():
    with pytest.raises(ValueError, match="either target="):
        dw.deepen({}, {}, layers={})
    with pytest.raises(ValueError, match="needs apply= and target_apply="):
        dw.deepen({}, {})


@pytest.mark.long
def test_a_place_where_the_inputs_do_not_fit_is_no_reason():
    """Were the first of the layers the new one, the inputs would have 8 columns."""

    class Normalized(nn.Module):
        layers: int

        @nn.compact
        def __call__(self, x):
            for i in range(self.layers):
                x = nn.relu(nn.LayerNorm(name=f"norm_{i}")(Dense(8, name=f"dense_{i}")(x)))
            return Dense(2, name="head")(x)

    old, new = Normalized(2), Normalized(3)
    x = data(3, 4)
    widths = dw.trace(old.apply, shapes_of(old, x), x)
    with pytest.raises(ValueError, match="dense_2: square follows it"):
        dw.plan(widths, target=shapes_of(new, x), target_apply=new.apply)
