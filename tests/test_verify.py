"""``verify`` against networks of which it is known whether they compute the same."""

import re
from dataclasses import replace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P
from tiers import in_tiers, long

import dogwood_jax as dw
from dogwood_jax._front import compare as _compare
from dogwood_jax._front import deepen as _deepen
from dogwood_jax._front import rounding as _rounding
from dogwood_jax._growth.edit import Fill

KEY = jax.random.key(1)


def mlp(params, x):
    return jnp.tanh(x @ params["up"]) @ params["down"]


def arrays(dtype=jnp.float64, seed=0, **shapes):
    draw = np.random.default_rng(seed).normal
    return {name: jnp.asarray(draw(size=shape), dtype) for name, shape in shapes.items()}


def grown(dtype=jnp.float64, strategy=None):
    """A network, its larger variables and an input."""
    params = arrays(dtype, up=(4, 6), down=(6, 3))
    growth = dw.plan(dw.trace(mlp, params, x := data(dtype)), {"up": 11}, strategy=strategy)
    return params, dw.grow(params, growth, key=KEY), x


def data(dtype=jnp.float64):
    return arrays(dtype, seed=7, x=(5, 4))["x"]


# Outputs that moved -------------------------------------------------------------------------------


UNEVEN = dw.strategies.replicate(split="uneven")


@pytest.mark.parametrize(
    ("dtype", "strategy"),
    [
        ("float64", None),
        ("bfloat16", UNEVEN),
        long("float32", UNEVEN),
        long("float16", None),
    ],
    ids=str,
)
def test_a_growth_that_preserves_passes_and_a_weight_that_is_wrong_does_not(dtype, strategy):
    params, wide, x = grown(dtype, strategy)
    found = dw.verify(mlp, params, mlp, wide, x)
    # In other orders of summing, as verify's own precision may bring, the last bits differ.
    rounding = 8 * float(jnp.finfo(dtype).eps)
    assert found.absolute == pytest.approx(
        dw.compare(mlp, params, mlp, wide, x).absolute, abs=rounding
    )
    assert found.absolute < rounding and found.nans == 0
    assert str(found).startswith("largest difference")
    wrong = wide | {"down": wide["down"].at[8, 1].add(1e-3 if dtype != "bfloat16" else 0.5)}
    if dtype != "float16":
        with pytest.raises(ValueError, match=r"output \[., 1\]: moved by .* explains"):
            dw.verify(mlp, params, mlp, wrong, x)


def test_all_outputs_that_moved_are_named():
    def apply(v):
        return {"a": v, "b": 2 * v, "c": jnp.array([1.0, 5.0]), "d": {"e": v[0]}}

    def other(v):
        return apply(v) | {"a": v + 1, "d": {"e": v[0] + 3}}

    v = jnp.array([1.0, 4.0])
    with pytest.raises(ValueError) as error:
        dw.verify(apply, v, other, v)
    header, *lines = str(error.value).splitlines()
    assert header.startswith("the larger network computes something else")
    moved = [re.sub(r"[\d.]+e-12$", "1e-12", line) for line in lines]
    assert moved == [
        "- output a[0]: moved by 1, relative 1; rounding explains 1e-12",
        "- output d/e: moved by 3, relative 3; rounding explains 1e-12",
    ]


@pytest.mark.parametrize("value, kind", [(jnp.nan, "NaN"), (jnp.inf, "infinite")])
def test_a_value_that_is_not_finite_in_one_network_has_moved(value, kind):
    v = jnp.array([1.0, 2.0, 3.0])
    bad = v.at[1].set(value)
    for old, new in ((v, bad), (bad, v)):
        with pytest.raises(ValueError, match=rf"output \[1\]: {kind} in only one"):
            dw.verify(jnp.multiply, old, jnp.multiply, new, 1.0)
    same = v.at[0].set(-jnp.inf)
    assert dw.verify(jnp.multiply, same, jnp.multiply, same, 1.0).absolute == 0


def test_integers_are_exact():
    v = jnp.array([2**24, 5])
    assert dw.verify(jnp.multiply, v, jnp.multiply, v, 1).absolute == 0
    with pytest.raises(ValueError, match="moved by 1, .* rounding explains 0$"):
        dw.verify(jnp.multiply, v, jnp.multiply, v.at[0].add(1), 1)


def test_keys_are_compared_by_their_data():
    old, new = jax.random.split(KEY)
    assert dw.verify(lambda v: v, old, lambda v: v, old).absolute == 0
    with pytest.raises(ValueError, match="moved by"):
        dw.verify(lambda v: v, old, lambda v: v, new)


# Entry by entry -----------------------------------------------------------------------------------


def slightly(params):
    return params | {"down": 1.02 * params["down"]}


def masked(number, column=2):
    return lambda y: jnp.where(jnp.arange(y.shape[1])[None] == column, number, y)


def behind(f):
    return lambda params, x: f(mlp(params, x))


def times_true(y):
    return y * (y.astype(jnp.bfloat16) > -99)


def looped(y):
    return jax.lax.while_loop(lambda c: c[0] < 2, lambda c: (c[0] + 1, times_true(c[1])), (0, y))[1]


BEHIND = {
    "one logit is -1e9": masked(-1e9),
    "one logit is finfo.min": lambda y: masked(jnp.finfo(y.dtype).min)(y),
    "one logit is -inf": masked(-jnp.inf),
    "one row and one column are large": lambda y: masked(1e9)(y.at[0].set(1e9)),
    "a large output beside": lambda y: {"large": 1e9 + 0 * y[0].astype(int), "y": y},
    "a comparison in bfloat16": times_true,
    "in a scan": lambda y: jax.lax.scan(lambda y, _: (times_true(y), None), y, length=2)[0],
    "in a loop": looped,
    "in a branch": lambda y: jax.lax.cond(y.sum() > -99, times_true, jnp.zeros_like, y),
    "a small branch in float8": lambda y: y + 1e-5 * y.astype(jnp.float8_e4m3fn).astype(y.dtype),
    "constants in bfloat16": lambda y: y + jnp.cos(jnp.arange(3.0)).astype(jnp.bfloat16)[None],
    "complex": lambda y: y * (1 + 1e-3j),
    "a mask of ones and zeros": lambda y: y + (1 - jnp.array([1.0, 1.0, 0.0])[None]) * -1e9,
}


LONG = ("one logit is finfo.min", "one logit is -inf", "in a loop", "in a branch", "complex")


@pytest.mark.parametrize("name", in_tiers(BEHIND, long=LONG))
def test_nothing_hides_that_an_entry_moved(name):
    params, wide, x = grown(jnp.float32)
    f = behind(BEHIND[name])
    dw.verify(f, params, f, wide, x)
    with pytest.raises(ValueError, match="moved by"):
        dw.verify(f, params, f, slightly(wide), x)


def test_masks_among_the_inputs_are_not_nudged():
    def apply(params, x, mask):
        return mlp(params, x) + (1 - mask.astype(jnp.bfloat16).astype(x.dtype)) * -1e9

    params, wide, x = grown(jnp.float32)
    mask = jnp.array([[1.0, 1.0, 0.0]], jnp.float32)
    dw.verify(apply, params, apply, wide, x, mask)
    with pytest.raises(ValueError, match="moved by"):
        dw.verify(apply, params, apply, slightly(wide), x, mask)


@pytest.mark.long
def test_what_rounds_on_each_device_may_move_as_far():
    mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,))

    def coarse(params, x):
        return mlp(*jax.tree.map(lambda a: a.astype(jnp.bfloat16), (params, x))).astype(x.dtype)

    apply = jax.shard_map(coarse, mesh=mesh, in_specs=(P(), P("data")), out_specs=P("data"))
    params, _, x = grown(jnp.float32)
    near, far = (jax.tree.map(lambda a: a * factor, params) for factor in (1.001, 1.5))  # noqa: B023
    dw.verify(apply, params, apply, near, x)
    with pytest.raises(ValueError, match="moved by"):
        dw.verify(apply, params, apply, far, x)


def test_integers_may_move_where_rounding_moves_them():
    def apply(params, x):
        y = mlp(params, x)
        return y, y.argmax(-1)

    params, _, _ = grown(jnp.bfloat16)
    signs = np.random.default_rng(0).choice([-1, 0, 1], (6, 3))
    near = params | {"down": params["down"] + (params["down"] * 2.0**-8 * signs).astype("bfloat16")}
    x = arrays(jnp.bfloat16, x=(3000, 4))["x"]
    assert not (apply(params, x)[1] == apply(near, x)[1]).all()
    dw.verify(apply, params, apply, near, x)
    with pytest.raises(ValueError, match=r"output 1\["):
        dw.verify(apply, params, lambda v, x: (mlp(v, x), (-mlp(v, x)).argmax(-1)), params, x)


# What cannot be told ------------------------------------------------------------------------------


UNSEEN = {
    "no samples": (mlp, lambda x: x[:0], "input 0 has shape .*: pass at least one sample"),
    "no outputs": (behind(lambda y: y[:0]), lambda x: x, "does not move"),
    "zero inputs": (mlp, lambda x: 0 * x, "the variables changes (.|\n)* pass other inputs"),
    "zero inputs and a bias": (
        lambda v, x: jnp.tanh(x @ v["up"] + 1) @ v["down"],
        lambda x: 0 * x,
        "of the inputs changes",
    ),
    "dead units": (behind(lambda y: jax.nn.relu(-abs(y) - 1)), lambda x: x, "does not move"),
    "times zero": (behind(lambda y: y * 0), lambda x: x, "does not move"),
    "dead units beside the input": (
        lambda v, x: x[:, :3] + 0 * mlp(v, x),
        lambda x: x,
        "of the variables changes",
    ),
    "one of two outputs": (
        behind(lambda y: {"a": y, "b": 0 * y}),
        lambda x: x,
        "- output 'b'",
    ),
    "integers alone": (behind(lambda y: (y > 1e9).astype(int)), lambda x: x, "all outputs: does"),
    "rounding alone": (behind(lambda y: y + 1e9 - 1e9), lambda x: x, "does not move"),
    "NaN": (behind(masked(jnp.nan)), lambda x: x, "NaN in 5 values of the output"),
}


@pytest.mark.parametrize("name", UNSEEN)
def test_what_cannot_be_told_is_an_error(name):
    apply, of, message = UNSEEN[name]
    params, _, x = grown(jnp.float32)
    with pytest.raises(ValueError, match=rf"verify cannot tell(.|\n)*{message}"):
        dw.verify(apply, params, apply, params, of(x))


def test_a_second_input_without_samples_is_named():
    def apply(params, x, y):
        return mlp(params, x) + (y["more"] @ params["up"]).sum()

    params, _, x = grown()
    with pytest.raises(ValueError, match=r"input 1/more has shape \(0, 4\)"):
        dw.verify(apply, params, apply, params, x, {"more": x[:0]})


def test_outputs_that_need_not_move():
    def apply(params, x, tokens, mask):
        y = mlp(params, x) + params["down"][tokens] + mask
        return {
            "y": y,
            "ids": y.argmax(-1) * 0,
            "finite": jnp.isfinite(y),
            "constant": jnp.arange(3.0),
            "number": 2,
            "counts": (y > -1e9).sum().astype(y.dtype),
            "state": {"up": 0 * params["up"], "down": params["down"]},
        }

    params, wide, x = grown()
    tokens, mask = jnp.zeros(5, int), jnp.zeros((5, 3))
    dw.verify(apply, params, apply, wide, x, tokens, mask)


def test_deepening_warns_if_its_check_cannot_tell():
    layers = {name: {"up": jnp.ones((4, 6)), "down": jnp.ones((6, 4))} for name in "ab"}
    apply = {"apply": blocks, "target_apply": blocks}
    with pytest.warns(UserWarning, match="verify cannot tell"):
        dw.deepen({"a": layers["a"]}, layers, **apply, inputs=(jnp.zeros((2, 4)),))


# What rounding explains ---------------------------------------------------------------------------


def test_the_table_of_the_docstring_is_what_is_done():
    rows = re.findall(r"^ *(\w+).*? ([\d.e-]+) +([\d.e-]+)$", dw.verify.__doc__, re.MULTILINE)
    assert [name for name, *_ in rows] == [
        *("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "integers")
    ]
    for name, size, bound in rows[:-1]:
        assert f"{float(jnp.finfo(name).eps):.1e}" == size
        assert f"{_rounding.bound(name):.1e}" == bound
    assert _rounding.bound(jnp.dtype(int)) == 0


def test_the_coarsest_dtype_on_the_way_counts():
    @jax.jit
    def f(v, x):
        table = jnp.arange(4, dtype=jnp.bfloat16)  # is the same in both networks
        half = (x.astype(jnp.bfloat16) * v.astype(jnp.bfloat16)).astype(jnp.float32)
        return {"fine": x * v + table.astype(jnp.float32), "coarse": half}

    v, x = jnp.float32(1.0), jnp.linspace(1, 2, 4, dtype=jnp.float32)
    with pytest.raises(ValueError) as error:
        dw.verify(f, v, f, v * 1.01, x)
    assert "output fine" in str(error.value) and "output coarse" not in str(error.value)
    with pytest.raises(ValueError, match=r"output coarse.*rounding explains 0\.\d"):
        dw.verify(f, v, f, v * 2, x)


def test_outputs_that_are_small_differences_may_move_as_rounding_moves_them():
    def apply(v, x):
        return (x * v).sum() - 1000

    v, x = jnp.float32(100.0), jnp.linspace(0, 2, 10, dtype=jnp.float32)
    assert abs(apply(v, x)) < 1e-3
    near, far = v * (1 + 1e-7), v * (1 + 1e-4)
    assert dw.verify(apply, v, apply, near, x).relative > 1e-3
    with pytest.raises(ValueError, match="moved by"):
        dw.verify(apply, v, apply, far, x)


def test_matrix_products_are_at_the_highest_precision():
    seen = []

    def apply(v, x):
        seen.append(jax.config.jax_default_matmul_precision)
        return x @ v

    dw.verify(apply, jnp.ones((2, 2)), apply, jnp.ones((2, 2)), jnp.ones((1, 2)))
    assert set(seen) == {"highest"}


# Inputs -------------------------------------------------------------------------------------------


@pytest.mark.long
def test_shapes_become_random_inputs():
    shape = jax.ShapeDtypeStruct
    seen = {}

    def apply(v, *inputs):
        seen.update(enumerate(inputs))
        return v + inputs[0]

    given = jnp.array([3, 17, 5], jnp.int32)
    inputs = (
        *(shape((1000,), dtype) for dtype in (jnp.float32, jnp.bfloat16, jnp.complex64)),
        *(shape((1000,), dtype) for dtype in (jnp.int32, jnp.uint8, bool)),
        shape((), jax.random.key(0).dtype),
        given,
        None,
        2.5,
    )
    dw.verify(apply, 1.0, apply, 1.0, *inputs)
    for i, struct in enumerate(inputs[:7]):
        assert (seen[i].shape, seen[i].dtype) == (struct.shape, struct.dtype)
    for i in range(3):
        assert abs(np.std(seen[i].astype(complex)) - 1) < 0.1
    assert (seen[3].min(), seen[3].max()) == (3, 17)
    assert {*seen[4].tolist()} == {0, 1} and {*seen[5].tolist()} == {False, True}
    assert jax.random.uniform(seen[6]) < 1
    assert seen[7] is given and seen[8] is None and seen[9] == 2.5
    first = seen[0]
    dw.verify(apply, 1.0, apply, 1.0, *inputs)
    np.testing.assert_array_equal(seen[0], first)
    dw.verify(apply, 1.0, apply, 1.0, *inputs, key=KEY)
    assert (seen[0] != first).all()


def test_both_networks_get_the_same_inputs():
    struct = jax.ShapeDtypeStruct((5, 4), jnp.float64)
    params, wide, _ = grown()
    assert dw.verify(mlp, params, mlp, wide, struct).relative < 1e-14


def test_inputs_and_outputs_that_grew_are_mapped():
    def apply(params, x):
        return jnp.tanh(x["image"] @ params["up"] + params["embed"][x["tokens"]]) @ params["down"]

    params = arrays(embed=(9, 6), up=(4, 6), down=(6, 3))
    x = {"image": data(), "tokens": jnp.array([0, 8, 3, 3, 1])}
    widths = dw.trace(apply, params, jax.tree.map(lambda a: a[:2], x))
    sizes = {("up", 0): 6, ("down", 1): 5, ("embed", 0): 12, ("up", 1): 7}
    growth = dw.plan(widths, sizes, interface=True)
    wide = dw.grow(params, growth, key=KEY)
    assert wide["up"].shape == (6, 7)
    assert dw.verify(apply, params, apply, wide, x, growth=growth).relative < 1e-14
    with pytest.raises(TypeError, match="dot_general|incompatible"):
        dw.verify(apply, params, apply, wide, x)
    wrong = wide | {"up": wide["up"].at[5, 0].set(1e-3)}
    with pytest.raises(ValueError, match="moved by"):
        dw.verify(apply, params, apply, wrong, x, growth=growth)
    with pytest.raises(ValueError, match=r"growth: its network has inputs of shapes .* got"):
        dw.verify(apply, params, apply, wide, x["image"], growth=growth)


@pytest.mark.long
def test_integers_of_a_larger_input_are_those_of_the_old_one():
    def apply(params, tokens):
        return (params["table"][tokens] * params["where"][None, :, None]).sum(1)

    params = arrays(table=(9, 6), where=(4,))
    tokens = jnp.array([[5, 6, 8, 7]] * 2)
    growth = dw.plan(dw.trace(apply, params, tokens), {("where", 0): 40}, interface=True)
    wide = dw.grow(params, growth, key=KEY) | {"table": params["table"].at[:5].set(jnp.nan)}
    assert (wide["where"][4:] == 0).all()
    assert dw.verify(apply, params, apply, wide, tokens, growth=growth).relative < 1e-14


# Outputs that mirror variables --------------------------------------------------------------------


class Normed(nn.Module):
    hidden: int

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(self.hidden, (2, 2), param_dtype=jnp.float64)(x)
        x = x.reshape(x.shape[0], -1)
        x = nn.BatchNorm(use_running_average=False, momentum=0.5, param_dtype=jnp.float64)(x)
        return nn.Dense(2, param_dtype=jnp.float64)(nn.relu(x))


def in_training(hidden):
    def apply(variables, x):
        return Normed(hidden).apply(variables, x, mutable=["batch_stats"])

    return apply


@pytest.mark.long
def test_new_statistics_are_compared_where_old_units_are():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(8, 3, 3, 2)))
    old = jax.jit(Normed(4).init)(jax.random.key(0), x)
    widths = dw.trace(in_training(4), old, x)
    growth = dw.plan(widths, target=jax.eval_shape(Normed(7).init, KEY, x))
    wide = dw.grow(old, growth, key=KEY)
    found = dw.verify(in_training(4), old, in_training(7), wide, x, growth=growth)
    assert found.relative < 1e-12
    # The channels of each place lie among others, so the first part is not what was there before.
    with pytest.raises(ValueError, match="output 1/batch_stats/BatchNorm_0/mean"):
        dw.verify(in_training(4), old, in_training(7), wide, x)
    mean = wide["batch_stats"]["BatchNorm_0"]["mean"]
    wide["batch_stats"]["BatchNorm_0"]["mean"] = mean.at[7].add(1e-3)  # an old unit's
    with pytest.raises(ValueError, match=r"mean\[4\]: moved"):
        dw.verify(in_training(4), old, in_training(7), wide, x, growth=growth)


@pytest.mark.long
def test_gradients_are_compared_unless_the_growth_copies_or_rescales():
    def gradient(params, x):
        return jax.grad(lambda params: (mlp(params, x) ** 2).sum())(params)

    params, x = arrays(up=(4, 6), down=(6, 3)), data()
    widths = dw.trace(mlp, params, x)
    growths = [
        dw.plan(widths, {"up": 11}, strategy=strategy)
        for strategy in (None, dw.strategies.replicate())
    ]
    wide, copied = (dw.grow(params, growth, key=KEY) for growth in growths)
    found = dw.verify(gradient, params, gradient, wide, x, growth=growths[0])
    assert found.where.startswith(("up", "down")) and found.relative < 1e-12
    with pytest.raises(ValueError, match="no outputs besides those that the growth changes"):
        dw.verify(gradient, params, gradient, copied, x, growth=growths[1])
    with pytest.raises(ValueError, match="output up"):
        dw.verify(gradient, params, gradient, copied, x)


@pytest.mark.long
def test_gradients_of_old_layers_are_compared_where_they_are():
    def apply(params, x):
        layers = {name: jnp.moveaxis(array, 1, 0) for name, array in params.items()}
        return jax.lax.scan(lambda x, p: (x + jnp.tanh(x @ p["w"]), None), x, layers)[0]

    def gradient(params, x):
        return jax.grad(lambda params: (apply(params, x) ** 2).sum())(params)

    small, deep = (arrays(w=(4, n, 4)) for n in (2, 5))
    widths = dw.trace(apply, small, data())
    growth = dw.plan(widths, target=deep, target_apply=apply)
    wide = dw.grow(small, growth)
    found = dw.verify(gradient, small, gradient, wide, data(), growth=growth)
    assert found.where.startswith("w[") and found.relative < 1e-12


def test_state_of_new_layers_is_no_output():
    def apply(params, x):
        y = x
        for layer in params.values():
            y = jax.nn.relu(y @ layer)
        return y, {name: 2 * layer for name, layer in params.items()}

    params, x = arrays(a=(4, 3), c=(3, 2), seed=1), data()
    target = params | arrays(b=(3, 3))
    options = {"apply": apply, "target_apply": apply, "inputs": (x,)}
    deeper = dw.deepen(params, target, **options)
    assert dw.verify(apply, params, apply, deeper, x).absolute == 0


# Devices ------------------------------------------------------------------------------------------


EIGHT = pytest.mark.skipif(jax.device_count() < 8, reason="needs eight devices")


@EIGHT
@pytest.mark.long
@pytest.mark.parametrize("types", [AxisType.Auto, AxisType.Explicit], ids=str)
def test_divided_arrays_are_compared_where_they_lie(types, monkeypatch):
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(types,) * 2)

    def apply(params, x):
        h = jnp.tanh(x @ params["up"])
        return {"h": h @ params["down"], "x": x @ params["side"]}

    # With explicit axes, a network has to say how sums over divided axes are divided.
    divided = types == AxisType.Auto
    specs = {"up": P(None, "model"), "down": P("model"), "side": P(None, "model")}
    shardings = {k: NamedSharding(mesh, spec if divided else P()) for k, spec in specs.items()}
    params = arrays(jnp.float32, up=(8, 16), down=(16, 8), side=(8, 8))
    x = arrays(jnp.float32, x=(8, 8))["x"]
    wide = dw.grow(params, dw.plan(dw.trace(apply, params, x), {"up": 32}), key=KEY)
    wrong = wide | {"down": wide["down"].at[30, 5].set(1e-3)}
    params, wide, wrong = (jax.device_put(tree, shardings) for tree in (params, wide, wrong))
    x = jax.device_put(x, NamedSharding(mesh, P("data")))

    class Numpy:
        def __getattr__(self, name):
            return getattr(np, name)

        def asarray(self, array):
            assert not _compare._is_divided(array)
            return np.asarray(array)

    monkeypatch.setattr(_compare, "np", Numpy())
    assert dw.verify(apply, params, apply, wide, x).relative < 1e-6
    with pytest.raises(ValueError, match=r"output h\[\d, 5\]: moved by"):
        dw.verify(apply, params, apply, wrong, x)


@EIGHT
def test_no_device_gets_the_whole_of_a_divided_array():
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    array = jax.device_put(jnp.ones((8, 16)), NamedSharding(mesh, P("data", "model")))
    measures = _compare._on_devices(_compare._measures)
    compiled = measures.lower(array, array).compile().as_text()
    assert "all-reduce" in compiled and "all-gather" not in compiled


@pytest.mark.long
@EIGHT
def test_networks_may_lie_on_different_devices():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    params, wide, _ = grown()
    here = jax.device_put(params, SingleDeviceSharding(jax.devices()[3]))
    there = jax.device_put(wide, NamedSharding(mesh, P()))
    x = arrays(x=(8, 4))["x"]
    divided = jax.device_put(x, NamedSharding(mesh, P("data")))

    def on_mesh(params, x):
        return mlp(params, jax.device_put(x, divided.sharding))

    assert dw.verify(mlp, here, mlp, there, x).relative < 1e-14
    assert dw.compare(mlp, here, on_mesh, there, x).relative < 1e-14
    assert dw.compare(on_mesh, there, mlp, here, x).relative < 1e-14


# Where it does not run ----------------------------------------------------------------------------


def test_under_jit_it_says_where_to_call_it():
    params, wide, x = grown()

    def difference(wide, params=params, x=x):
        return dw.verify(mlp, params, mlp, wide, x).absolute

    for wrong in (
        lambda: jax.jit(difference)(wide),
        lambda: jax.grad(lambda x: difference(wide, x=x))(x),
        lambda: jax.jit(lambda x: dw.verify(lambda v: v * x, 1.0, jnp.multiply, 1.0).absolute)(1.0),
    ):
        with pytest.raises(TypeError, match="needs values, .* call it outside of them"):
            wrong()


def test_wrong_arguments_are_named():
    params, wide, x = grown()

    def refused(*arguments, **options):
        with pytest.raises(TypeError, match=r"^verify\(apply, variables, target_app") as error:
            dw.verify(*arguments, **options)
        return str(error.value)

    assert "got Dense, a Flax Linen module; pass its function" in (
        refused(nn.Dense(3), params, mlp, wide, x)
    )
    module = Small(6, nnx.Rngs(0))
    assert "target_apply must be a function" in refused(mlp, params, module, wide, x)
    assert "in the wrong order: apply is a dict" in refused(params, mlp, mlp, wide, x)
    text = refused(mlp, params, mlp, jax.eval_shape(lambda: wide), x)
    assert "must hold values" in text and "for down; both networks are run" in text
    assert "growth must be the Growth" in refused(mlp, params, mlp, wide, x, growth={"up": 11})
    assert "key must be one random key" in refused(mlp, params, mlp, wide, x, key=0)
    assert "missing a required argument: 'x'" in refused(mlp, params, mlp, wide)


def test_networks_of_other_outputs_are_refused():
    params, wide, x = grown()
    with pytest.raises(ValueError, match="'logits': only one network has it"):
        dw.verify(mlp, params, lambda *args: {"logits": mlp(*args)}, wide, x)
    with pytest.raises(ValueError, match=r"has shape \(5, 2\), expected \(5, 3\) or more"):
        dw.verify(mlp, params, lambda *args: mlp(*args)[:, :2], wide, x)


# By default ---------------------------------------------------------------------------------------


class Small(nnx.Module):
    def __init__(self, hidden, rngs):
        self.up = nnx.Linear(4, hidden, rngs=rngs)
        self.norm = nnx.BatchNorm(hidden, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.down = nnx.Linear(hidden, 3, rngs=rngs)

    def __call__(self, x):
        return self.down(self.dropout(nnx.relu(self.norm(self.up(x)))))


@pytest.fixture
def wrong_rule(monkeypatch):
    """Returns what makes new units random on both sides from then on."""
    rule = dw.typing.Change.along

    def wrong(*arguments):
        return replace(rule(*arguments), fill="free")

    return lambda: monkeypatch.setattr(dw.typing.Change, "along", wrong)


@pytest.mark.long
@pytest.mark.parametrize(("mode", "inputs"), [("train", "arrays"), ("eval", "shapes")])
def test_a_module_that_grows_wrongly_is_found(mode, inputs, wrong_rule):
    # Sizes that no other test has, for compiled growths are kept.
    units = {"train": 12, "eval": 13}[mode]
    small, wide = Small(units, nnx.Rngs(0)), Small(units + 9, nnx.Rngs(1))
    getattr(small, mode)(), getattr(wide, mode)()
    x = data(jnp.float32) if inputs == "arrays" else jax.ShapeDtypeStruct((5, 4), jnp.float32)
    widths = dw.nnx.trace(small, x)
    growth = dw.nnx.plan(widths, target=wide)
    wrong_rule()
    with pytest.raises(ValueError, match="the larger model computes something else"):
        dw.nnx.plan(widths, target=wide)
    grown = dw.nnx.grow(small, growth, fresh=wide)
    with pytest.raises(ValueError, match=r"output \[., .\]: moved by"):
        dw.nnx.verify(small, grown, x)


@pytest.mark.long
def test_a_module_stays_in_its_mode():
    small, wide = Small(6, nnx.Rngs(0)), Small(9, nnx.Rngs(1))
    before, x = nnx.to_pure_dict(nnx.state(small)), data(jnp.float32)
    growth = dw.nnx.plan(dw.nnx.trace(small, x), target=wide, strategy=dw.strategies.replicate())
    grown = dw.nnx.grow(small, growth, key=KEY, fresh=wide)
    dw.nnx.verify(small, grown, x)
    assert not small.dropout.deterministic and not grown.dropout.deterministic
    assert not small.norm.use_running_average and not grown.norm.use_running_average
    after = nnx.to_pure_dict(nnx.state(small))
    same = jax.tree.map(lambda a, b: bool((a == b).all()), before, after)
    assert all(jax.tree.leaves(same))


class Noisy(nnx.Module):
    """Draws a mask in every mode."""

    def __init__(self, hidden, rngs):
        self.up = nnx.Linear(4, hidden, rngs=rngs)
        self.down = nnx.Linear(hidden, 3, rngs=rngs)

    def __call__(self, x):
        h = nnx.relu(self.up(x))
        mask = jax.random.bernoulli(jax.random.key(0), 0.5, h.shape)
        return self.down(jnp.where(mask, h, 0))


@pytest.mark.long
def test_other_masks_are_no_mistake():
    small, wide = Noisy(6, nnx.Rngs(0)), Noisy(9, nnx.Rngs(1))
    widths = dw.nnx.trace(small, data(jnp.float32))
    with pytest.raises(ValueError, match="another size draws others"):
        dw.nnx.plan(widths, target=wide)
    growth = dw.nnx.plan(widths, target=wide, strategy=dw.strategies.random())
    grown = dw.nnx.grow(small, growth, fresh=wide)
    functions = [pair for m in (small, grown) for pair in as_function(m)]
    with pytest.raises(
        ValueError,
        match="draws other random numbers; run both in evaluation mode, by deterministic=True",
    ):
        dw.verify(*functions, data(jnp.float32))


def as_function(module):
    graph, state = nnx.split(module)
    return lambda state, *inputs: nnx.merge(graph, state)(*inputs), state


@pytest.mark.long
def test_modules_without_values_grow():
    def grown(small, wide, x, key=None):
        growth = dw.nnx.plan(dw.nnx.trace(small, x), target=wide)
        return dw.nnx.grow(small, growth, key=key, fresh=wide)

    @jax.jit
    def kernel(x):
        modules = (Small(n, nnx.Rngs(0)) for n in (6, 9))
        return grown(*modules, x).up.kernel[...]

    assert kernel(data(jnp.float32)).shape == (4, 9)
    small, wide = (nnx.eval_shape(lambda n=n: Small(n, nnx.Rngs(0))) for n in (6, 9))
    x = jax.ShapeDtypeStruct((5, 4), jnp.float32)
    assert jax.eval_shape(lambda: nnx.state(grown(small, wide, x, KEY)))


def blocks(params, x):
    for layer in params.values():
        x = x + jnp.tanh(x @ layer["up"]) @ layer["down"]
    return x


def test_a_deeper_network_that_computes_something_else_is_not_returned(monkeypatch):
    params = {"a": arrays(up=(4, 5), down=(5, 4))}
    target = params | {"b": arrays(seed=1, up=(4, 5), down=(5, 4))}
    shape = jax.ShapeDtypeStruct((3, 4), jnp.float64)
    options = {"apply": blocks, "target_apply": blocks, "inputs": (shape,)}
    deeper = dw.deepen(params, target, **options)
    assert (deeper["b"]["down"] == 0).all()
    found = _deepen.new_layers

    def wrong(*arguments, **options):
        for filling in found(*arguments, **options):
            yield tuple(replace(edit, fill=Fill("free")) for edit in filling)

    monkeypatch.setattr(_deepen, "new_layers", wrong)
    for deepen in (
        lambda params: dw.deepen(params, target, **options),
        lambda params: dw.deepen(params, target, **options, verify=False),
        jax.jit(lambda params: dw.deepen(params, target, **options)),
    ):
        with pytest.raises(ValueError, match="the larger model computes something else"):
            deepen(params)


# Inputs and outputs whose axes are made of several widths -----------------------------------------


def two_heads(params, x):
    """Mixes the entries of each head; inputs and outputs are ``heads * entries``."""
    parted = x.reshape(len(x), -1, params["mix"].shape[0])
    return jnp.einsum("bhd,de,hg->bge", parted, params["mix"], params["over"]).reshape(len(x), -1)


def pieces_side_by_side(params, x):
    """Reads one piece of its input by each kernel, and returns both results side by side."""
    a, b = jnp.split(x, [params["a"].shape[0]], axis=1)
    return jnp.concatenate([a @ params["a"], jnp.tanh(b @ params["b"])], axis=1)


@pytest.mark.long
@pytest.mark.parametrize(
    ("apply", "shapes", "larger"),
    [
        (two_heads, {"mix": (3, 4), "over": (2, 5)}, {"mix": (5, 7), "over": (3, 6)}),
        (pieces_side_by_side, {"a": (3, 2), "b": (4, 5)}, {"a": (6, 3), "b": (5, 7)}),
    ],
)
def test_old_entries_are_found_within_axes_of_several_widths(apply, shapes, larger):
    params = arrays(jnp.float64, **shapes)
    n = 6 if apply is two_heads else 7
    x = arrays(jnp.float64, seed=3, x=(5, n))["x"]
    target = {name: jax.ShapeDtypeStruct(shape, jnp.float64) for name, shape in larger.items()}
    growth = dw.plan(dw.trace(apply, params, x), target=target, interface=True)
    wide = dw.grow(params, growth, key=KEY)
    found = dw.verify(apply, params, apply, wide, x, growth=growth)
    assert found.absolute < 1e-12
    wrong = jax.tree.map(lambda array: array.at[0, 0].add(1e-3), wide)
    with pytest.raises(ValueError, match="moved by"):
        dw.verify(apply, params, apply, wrong, x, growth=growth)
