"""Growing arrays that are divided among devices: the same values, where promised, none gathered."""

import re
from dataclasses import replace
from functools import partial
from math import prod

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P
from tiers import long

import dogwood_jax as dw

pytestmark = pytest.mark.skipif(jax.device_count() < 8, reason="needs eight devices")
TX = optax.adam(1e-3)
KEY = jax.random.key(1)


@pytest.fixture(scope="module")
def mesh():
    return Mesh(np.array(jax.devices()[:8]).reshape(2, 4), ("data", "model"))


def arrays(seed, **shapes):
    draw = np.random.default_rng(seed).standard_normal
    return {name: jnp.asarray(draw(shape, np.float32)) for name, shape in shapes.items()}


def perceptron(params, x):
    x = jax.nn.relu(x @ params["up"] + params["up_bias"][None])
    x = jax.nn.relu(x @ params["mid"] + params["mid_bias"][None])
    return x @ params["down"]


def fused_attention(params, x):
    """One projection makes queries, keys and values of all heads."""
    q, k, v = (
        part.reshape(*x.shape[:-1], -1, 4) for part in jnp.split(x @ params["qkv"], 3, axis=-1)
    )
    values = jax.nn.dot_product_attention(q, k, v)
    return values.reshape(*x.shape[:-1], -1) @ params["out"]


def convolution(params, x):
    """Channels are flattened with the places of the picture."""
    x = jax.lax.conv_general_dilated(
        x, params["conv"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return jax.nn.relu(x).reshape(x.shape[0], -1) @ params["dense"]


PERCEPTRON = (
    perceptron,
    arrays(0, up=(8, 32), up_bias=(32,), mid=(32, 32), mid_bias=(32,), down=(32, 8)),
    (1, 8),
    {"up": 64, "mid": 48},
)
ATTENTION = (fused_attention, arrays(1, qkv=(16, 96), out=(32, 16)), (1, 3, 16), {"heads": 16})
CONVOLUTION = (
    convolution,
    arrays(2, conv=(3, 3, 8, 16), dense=(64, 8)),
    (1, 2, 2, 8),
    {"conv": 32},
)

TENSOR = {"up": P(None, "model"), "up_bias": P("model"), "mid": P("model"), "down": P("model")}
BOTH = {
    "up": P("data", "model"),
    "mid": P("model", "data"),
    "up_bias": P("model"),
    "down": P("data"),
}
ALL = P(("data", "model"))
SPLIT = dict.fromkeys(("up", "up_bias", "mid", "mid_bias", "down"), ALL)
CASES = {
    "tensor parallel": (*PERCEPTRON, TENSOR),
    "both axes": (*PERCEPTRON, BOTH),
    "fully sharded": (*PERCEPTRON, SPLIT),
    "fused attention": (*ATTENTION, {"qkv": P(None, "model"), "out": P("model")}),
    "convolution": (*CONVOLUTION, {"conv": P(None, None, "data", "model"), "dense": P("model")}),
}


class Case:
    """A network on a mesh, and how it grows."""

    def __init__(self, name, mesh, strategy=None):
        apply, self.params, shape, sizes, specs = CASES[name]
        widths = dw.trace(apply, self.params, jax.ShapeDtypeStruct(shape, jnp.float32))
        named = {next((w for w in widths if name in w), name): size for name, size in sizes.items()}
        self.growth = dw.plan(widths, named, strategy=strategy)
        self.shardings = {k: NamedSharding(mesh, specs.get(k, P())) for k in self.params}
        self.sharded = jax.device_put(self.params, self.shardings)


def collectives(compiled):
    """Returns the collectives of a program by name, with the sizes of what they make."""
    kinds = "all-gather|all-reduce|all-to-all|reduce-scatter|collective-permute"
    found = re.findall(rf"= (\S+|\(.*?\)) ({kinds})(?:-start)?\(", compiled.as_text())
    sizes = {}
    for shapes, kind in found:
        for shape in re.findall(r"\[([\d,]*)\]", shapes):
            sizes.setdefault(kind, []).append(prod(map(int, filter(None, shape.split(",")))))
    return sizes


def shardings_of(tree):
    return jax.tree.map(lambda array: array.sharding, tree)


def assert_equal(tree, expected):
    jax.tree.map(np.testing.assert_array_equal, tree, expected)


@pytest.mark.parametrize(
    ("name", "copies"),
    [
        ("tensor parallel", False),
        *(long("fused attention", copies) for copies in (False, True)),
        *(long("convolution", copies) for copies in (False, True)),
        *(long("fully sharded", copies) for copies in (False, True)),
        *(long("both axes", copies) for copies in (False, True)),
    ],
)
def test_under_jit_nothing_is_gathered(name, copies, mesh):
    strategy = dw.strategies.replicate() if copies else None
    case = Case(name, mesh, strategy)
    growth, out = case.growth, case.growth.shardings(case.shardings)
    state = TX.init(case.sharded)
    state_out = growth.shardings(shardings_of(state))

    @partial(jax.jit, out_shardings=(out, out, state_out), donate_argnames="fresh")
    def everything(params, state, fresh):
        drawn = dw.grow(params, growth, key=KEY)
        return drawn, dw.grow(params, growth, fresh=fresh), dw.grow_opt_state(state, growth, TX)

    ones = jax.jit(lambda: {path: jnp.ones(n, jnp.float32) for path, n in growth.shapes.items()})
    fresh = jax.jit(ones, out_shardings=out)()
    compiled = everything.lower(case.sharded, state, fresh).compile()
    grown = compiled(case.sharded, state, fresh)
    assert shardings_of(grown) == (out, out, state_out)
    expected = (
        dw.grow(case.params, growth, key=KEY),
        dw.grow(case.params, growth, fresh=ones()),
        dw.grow_opt_state(TX.init(case.params), growth, TX),
    )
    assert_equal(grown, expected)
    if strategy is None:
        # The old weights were written into the larger model's own, which are taken in part.
        assert any(array.is_deleted() for array in fresh.values())
    # Entries move to the devices where they belong, and sums that make means of moments are added.
    if jax.__version_info__ < (0, 7):
        return  # the partitioner before Shardy gathers what lies on two axes of a mesh
    found = collectives(compiled)
    assert found.keys() <= {"collective-permute", "all-reduce"}
    assert max(found.get("all-reduce", [0])) <= 64 * 3


@pytest.mark.parametrize("types", [AxisType.Auto, long(AxisType.Explicit)], ids=str)
def test_arrays_stay_on_their_devices(types, mesh):
    mesh = Mesh(mesh.devices, mesh.axis_names, axis_types=(types, types))
    case = Case("both axes", mesh, dw.strategies.replicate())
    wide = dw.grow(case.sharded, case.growth)
    assert shardings_of(wide) == case.shardings
    assert_equal(wide, dw.grow(case.params, case.growth))
    state = dw.grow_opt_state(TX.init(case.sharded), case.growth, TX)
    assert shardings_of(state[0].mu) == case.shardings
    assert_equal(state, dw.grow_opt_state(TX.init(case.params), case.growth, TX))
    # Units in another order are looked up, of which explicit axes would have to be told.
    growth = dw.plan(
        case.growth.after,
        keep={name: range(n - 2, -1, -2) for name, n in case.growth.sizes.items()},
    )
    halved = dw.grow(wide, growth)
    assert shardings_of(halved) == case.shardings
    assert_equal(halved, dw.grow(dw.grow(case.params, case.growth), growth))
    # The larger model's own arrays know better.
    out = case.shardings | {"down": NamedSharding(mesh, P(None, "model"))}
    fresh = jax.device_put(wide, out)
    assert shardings_of(dw.grow(case.sharded, case.growth, fresh=fresh)) == out


def stack(params, x):
    def layer(x, layer):
        return x + jax.nn.relu(x @ layer["up"]) @ layer["down"], None

    return jax.lax.scan(layer, x, params)[0]


@pytest.mark.skipif(not hasattr(jax.sharding, "auto_axes"), reason="takes JAX 0.7")
@pytest.mark.parametrize(
    "strategy",
    ["zero_outgoing", "stack", *(n for n in ("replicate", "keep"))],
)
@pytest.mark.long
def test_axes_may_be_explicit_under_jit(strategy, mesh):
    mesh = Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Explicit,) * 2)
    if strategy == "stack":  # deeper, and wider
        params = arrays(0, up=(2, 8, 8), down=(2, 8, 8))
        larger = {name: jax.ShapeDtypeStruct((4, 8, 8), jnp.float32) for name in params}
        widths = dw.trace(stack, params, jax.ShapeDtypeStruct((1, 8), jnp.float32))
        growth = dw.plan(widths, target=larger, target_apply=stack)
        specs = dict.fromkeys(params, P("data", "model"))
    else:
        case = Case("both axes", mesh)
        params, widths, specs = case.params, case.growth.widths, CASES["both axes"][-1]
        uneven = dw.strategies.replicate(split="uneven", units=(3, 1, 2))
        growth = {
            "zero_outgoing": case.growth,
            "replicate": dw.plan(widths, case.growth.sizes, strategy=uneven),
            "keep": dw.plan(widths, keep={name: range(15, -1, -1) for name in case.growth.sizes}),
        }[strategy]
    shardings = {name: NamedSharding(mesh, specs.get(name, P())) for name in params}
    sharded, out = jax.device_put(params, shardings), growth.shardings(shardings)

    @jax.jit
    def everything(params, state, fresh):
        drawn = dw.grow(params, growth, key=KEY)
        return drawn, dw.grow(params, growth, fresh=fresh), dw.grow_opt_state(state, growth, TX)

    expected = dw.grow(params, growth, key=KEY)
    fresh = jax.device_put(expected, out)
    # Each array has a type that says how it is divided, which need not be asked for.
    drawn, filled, state = everything(sharded, TX.init(sharded), fresh)
    for tree in (drawn, filled, state[0].mu):
        for name, array in tree.items():
            assert array.sharding.is_equivalent_to(out[name], array.ndim), name
    assert_equal((drawn, filled), (expected, expected))
    assert_equal(state, dw.grow_opt_state(TX.init(params), growth, TX))
    assert_equal(dw.grow(sharded, growth, fresh=fresh), expected)


@pytest.mark.long
def test_axes_may_be_explicit_where_units_are_removed(mesh):
    mesh = Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Explicit,) * 2)
    params = arrays(0, conv=(3, 3, 8, 16), dense=(64, 8))
    specs = CASES["convolution"][-1]
    widths = dw.trace(convolution, params, jax.ShapeDtypeStruct((1, 2, 2, 8), jnp.float32))
    keep = {"conv": range(8)}
    sharded = jax.device_put(params, {k: NamedSharding(mesh, spec) for k, spec in specs.items()})
    with pytest.warns(UserWarning, match="outputs move by") as caught:
        narrow, of_whole = (dw.narrow(arrays, widths, keep) for arrays in (sharded, params))
    assert len({str(one.message) for one in caught}) == 1
    assert shardings_of(narrow) == shardings_of(sharded)
    assert_equal(narrow, of_whole)
    if hasattr(jax.sharding, "auto_axes"):
        assert_equal(jax.jit(lambda params: dw.narrow(params, widths, keep))(sharded), narrow)


@pytest.mark.parametrize(
    "layers",
    [(0, -1, 1, -1), long((0, 1, -1, -1))],
    ids=["between", "behind"],
)
def test_a_stack_that_is_divided_along_its_layers_is_not_gathered(layers, mesh):
    params = arrays(0, up=(2, 8, 8), down=(2, 8, 8))
    larger = {name: jax.ShapeDtypeStruct((4, 8, 8), jnp.float32) for name in params}
    network = dw.trace(stack, params, jax.ShapeDtypeStruct((1, 8), jnp.float32))
    growth = dw.plan(network, target=larger, target_apply=stack)
    inserted = tuple(replace(e, layers=replace(e.layers, places=layers)) for e in growth.inserted)
    growth = replace(growth, inserted=inserted)
    shardings = dict.fromkeys(params, NamedSharding(mesh, P("data", None, "model")))
    sharded = jax.device_put(params, shardings)
    grow = jax.jit(partial(dw.grow, growth=growth, key=KEY), out_shardings=shardings)
    compiled = grow.lower(sharded).compile()
    assert_equal(compiled(sharded), dw.grow(params, growth, key=KEY))
    if jax.__version_info__ >= (0, 7):
        assert collectives(compiled).keys() == {"collective-permute"}


def test_arrays_that_are_tied_to_no_device_grow_beside_divided_ones(mesh):
    case = Case("both axes", mesh)
    mixed = case.sharded | {name: case.params[name] for name in ("up_bias", "mid")}
    assert_equal(dw.grow(mixed, case.growth, key=KEY), dw.grow(case.params, case.growth, key=KEY))


@pytest.mark.long
def test_narrowed_and_merged_arrays_stay_on_their_devices(mesh):
    case = Case("tensor parallel", mesh, dw.strategies.replicate())
    wide = dw.grow(case.sharded, case.growth)
    widths = case.growth.after
    narrow = dw.narrow(wide, widths, {name: range(32) for name in case.growth.sizes})
    assert shardings_of(narrow) == case.shardings
    merged = dw.merge_symmetric(wide, widths, list(case.growth.sizes))
    assert shardings_of(merged) == case.shardings
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), merged, case.params)


@pytest.mark.parametrize("name", ["tensor parallel", long("both axes")])
def test_units_that_stay_here_and_there_are_not_gathered(name, mesh):
    case = Case(name, mesh)
    rng = np.random.default_rng(0)
    keep = {n: np.sort(rng.permutation(32)[:16]) for n in case.growth.sizes}
    growth = dw.plan(case.growth.widths, keep=keep)
    grow = jax.jit(partial(dw.grow, growth=growth), out_shardings=case.shardings)
    compiled = grow.lower(case.sharded).compile()
    assert_equal(compiled(case.sharded), dw.grow(case.params, growth))
    first, second = map(keep.get, case.growth.sizes)
    np.testing.assert_array_equal(
        compiled(case.sharded)["mid"], case.params["mid"][first][:, second]
    )
    if jax.__version_info__ >= (0, 7):
        assert collectives(compiled).keys() == {"collective-permute"}


def test_sizes_that_do_not_divide_are_refused_together(mesh):
    apply, params, shape, _, specs = CASES["both axes"]
    widths = dw.trace(apply, params, jax.ShapeDtypeStruct(shape, jnp.float32))
    growth = dw.plan(widths, {"up": 34, "mid": 35})
    shardings = {name: NamedSharding(mesh, specs.get(name, P())) for name in params}
    with pytest.raises(ValueError) as error:
        growth.shardings(shardings)
    refused = re.findall(r"^- (\w+: axis \d)", str(error.value), re.MULTILINE)
    places = ["up: axis 1", "up_bias: axis 0", "mid: axis 0", "mid: axis 1", "down: axis 0"]
    assert sorted(refused) == sorted(places)
    assert "axis 0 will have size 34, which does not divide evenly over the 4 devices" in str(
        error.value
    )
    with pytest.raises(ValueError, match="grow to a multiple of 4"):
        dw.grow(jax.device_put(params, shardings), growth, key=KEY)
    # The way out.
    whole = growth.shardings({name: NamedSharding(mesh, P()) for name in params})
    grow = jax.jit(partial(dw.grow, growth=growth), out_shardings=whole)
    assert shardings_of(grow(jax.device_put(params, shardings), key=KEY)) == whole


def test_what_is_no_sharding_is_refused():
    case_widths = dw.chain(
        {"a": {"kernel": jnp.ones((2, 4))}, "b": {"kernel": jnp.ones((4, 2))}}, ("a", "b")
    )
    growth = dw.plan(case_widths, {"a": 8})
    with pytest.raises(ValueError, match=r"a/kernel: expected a jax.sharding.Sharding, got P"):
        growth.shardings({"a": {"kernel": P()}, "b": {"kernel": P()}})


def test_one_device_stays_one(mesh):
    case = Case("tensor parallel", mesh)
    one = SingleDeviceSharding(jax.devices()[3])
    shardings = dict.fromkeys(case.params, one)
    assert case.growth.shardings(shardings) == shardings
    wide = dw.grow(jax.device_put(case.params, one), case.growth, key=KEY)
    assert shardings_of(wide) == shardings
