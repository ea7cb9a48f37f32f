"""``Widths`` and ``Growth``, and the functions between them, with widths written by hand."""

import pickle
import runpy
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from networks import fill

import dogwood_jax as dw
from dogwood_jax._program.reasons import Reason, kind_of
from dogwood_jax._widths.widths import Facts
from dogwood_jax.typing import Concat, Leaf, Product, Units


def layer(inputs, units, seed=0):
    rng = np.random.default_rng(seed)
    return {"kernel": rng.normal(size=(inputs, units)), "bias": rng.normal(size=units)}


PARAMS = {"params": {"up": layer(4, 8, 0), "mid": layer(8, 6, 1), "down": layer(6, 2, 2)}}
WIDTHS = dw.chain(PARAMS, ("up", "mid", "down"))


def specs(*sizes):
    """Returns the shapes of the parameters with these sizes."""
    return {
        "params": {
            name: {
                "kernel": jax.ShapeDtypeStruct((inputs, units), "float64"),
                "bias": jax.ShapeDtypeStruct((units,), "float64"),
            }
            for name, (inputs, units) in zip(("up", "mid", "down"), pairwise(sizes), strict=True)
        }
    }


def shapes(tree):
    return jax.tree.map(jnp.shape, tree)


# Widths -------------------------------------------------------------------------------------------


def test_widths_are_a_mapping_from_names():
    assert list(WIDTHS) == ["up[0]", "up", "mid", "down"]
    assert len(WIDTHS) == 4
    assert "mid" in WIDTHS
    assert "midd" not in WIDTHS
    assert WIDTHS.sizes == {"up[0]": 4, "up": 8, "mid": 6, "down": 2}
    assert repr(WIDTHS) == "Widths(up[0]=4, up=8, mid=6, down=2)"


def test_a_width_knows_its_places():
    width = WIDTHS["up"]
    places = [(place.path, place.axis, place.role) for place in width.occurrences]
    assert places == [
        ("params/up/kernel", 1, "incoming"),
        ("params/up/bias", 0, "incoming"),
        ("params/mid/kernel", 0, "outgoing"),
    ]
    assert (width.name, width.size, width.interface, width.fixed) == ("up", 8, False, None)
    assert WIDTHS["up[0]"].interface
    assert WIDTHS["down"].interface


def test_widths_print_as_a_table():
    assert str(WIDTHS).splitlines() == [
        "width  size  occurs in                 status",
        "-----  ----  ------------------------  ---------",
        "up[0]  4     <- params/up/kernel[0]    interface",
        "up     8     -> params/up/kernel[1]    growable",
        "             -> params/up/bias[0]",
        "             <- params/mid/kernel[0]",
        "mid    6     -> params/mid/kernel[1]   growable",
        "             -> params/mid/bias[0]",
        "             <- params/down/kernel[0]",
        "down   2     -> params/down/kernel[1]  interface",
        "             -> params/down/bias[0]",
        "(-> weights that make the units; <- weights that read them; [1] an axis of the array)",
    ]


def test_a_width_is_found_from_any_of_its_places():
    for path, axis in [
        ("up/kernel", 1),
        ("up/kernel", -1),
        ("params/mid/kernel", 0),
        ("up/bias", 0),
    ]:
        assert WIDTHS.of(path, axis) is WIDTHS["up"]


@pytest.mark.parametrize(
    "look_up, message",
    [
        (lambda: WIDTHS["mid_"], r"no width 'mid_'; the closest are \['mid'"),
        (lambda: WIDTHS.of("mid/kernal", 0), r"no array 'mid/kernal'.*'params/mid/kernel'"),
        (
            lambda: WIDTHS.of("kernel", 0),
            r"'kernel' fits several arrays: pass one of .*'params/up/kernel'",
        ),
        (lambda: WIDTHS.of("up/kernel", 2), r"params/up/kernel has shape \(4, 8\), so no axis 2"),
        (lambda: WIDTHS.of("up/bias", -2), r"params/up/bias has shape \(8,\), so no axis -2"),
    ],
)
def test_failed_look_ups_name_the_choices(look_up, message):
    with pytest.raises(KeyError, match=message):
        look_up()


def test_shapes_are_enough():
    assert dw.chain(specs(4, 8, 6, 2), ("up", "mid", "down")) == WIDTHS


# Both types are data ------------------------------------------------------------------------------


def growth_of(units=12, strategy=None):
    return dw.plan(dw.chain(PARAMS, ("up", "mid", "down")), {"up": units}, strategy=strategy)


def test_equal_by_value_and_hashable():
    assert dw.chain(PARAMS, ("up", "mid", "down")) == WIDTHS
    assert hash(dw.chain(PARAMS, ("up", "mid", "down"))) == hash(WIDTHS)
    assert dw.chain(PARAMS, ("up", "mid")) != WIDTHS
    assert dict(WIDTHS) != WIDTHS
    growths = [
        growth_of(),
        growth_of(13),
        growth_of(strategy=dw.strategies.zeros()),
        dw.plan(WIDTHS, target=specs(4, 12, 6, 2)),
    ]
    for i, growth in enumerate(growths):
        assert [growth == other for other in growths] == [i == j for j in range(4)]
    assert len({*growths, growth_of()}) == 4


@pytest.mark.parametrize(
    "value", [WIDTHS, growth_of(), WIDTHS["up"]], ids=["widths", "growth", "width"]
)
def test_pickles(value):
    hash(value)
    copy = pickle.loads(pickle.dumps(value))
    assert copy == value
    assert hash(copy) == hash(value)
    assert str(copy) == str(value)


def test_files_keep_the_kinds_of_reasons():
    reasons = (Reason("the constant 0.3 scales it", "must_stay"), "another reason")
    facts = Facts(8, notes=(*reasons, Reason("a table", "unread")))
    widths = dw.Widths((Leaf("w", (8,), (Units("w", 8, "incoming"),)),), (("w", facts),))
    for copy in (pickle.loads(pickle.dumps(widths)), dw.from_json(dw.to_json(widths))):
        assert copy == widths and hash(copy) == hash(widths)
        assert [kind_of(note) for note in copy["w"].notes] == ["must_stay", "", "unread"]
    assert (
        Reason("a table", "unread") != Reason("a table")
        and Reason("a table", "unread") == "a table"
    )
    text = dw.to_json(widths).replace('"must_stay"', '"hunch"')
    with pytest.raises(ValueError, match="has no kind of reason 'hunch'"):
        dw.from_json(text)


def test_a_growth_of_an_earlier_version_is_read() -> None:
    """``tests/data/make_growth.py`` wrote it. It has new layers, new units and factors."""
    path = Path(__file__).parent / "data" / "make_growth.py"
    made = runpy.run_path(str(path))
    growth = dw.from_json(made["FILE"].read_text())
    assert growth.changes and growth.inserted and growth.factors
    small = fill(made["shapes"](2, 4, 6), 0)
    tokens = jnp.arange(6).reshape(made["TOKENS"].shape)
    wide = dw.grow(small, growth, key=jax.random.key(0))
    assert jax.tree.map(jnp.shape, wide) == jax.tree.map(jnp.shape, made["shapes"](3, 8, 9))
    old, new = (made["apply"](params, tokens) for params in (small, wide))
    np.testing.assert_allclose(old, new, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("value", [WIDTHS, growth_of()], ids=["widths", "growth"])
def test_a_pickle_from_another_process_hashes_as_here(value):
    # Hashes of strings are salted anew in each process; one that was cached must not travel.
    hash(value)
    program = (
        "import pickle, sys; value = pickle.load(sys.stdin.buffer); "
        "copy = type(value)(**value.__getstate__()); "
        "sys.exit(not (copy == value and hash(copy) == hash(value)))"
    )
    subprocess.run([sys.executable, "-c", program], input=pickle.dumps(value), check=True)


def test_frozen():
    for value, name in [(WIDTHS, "leaves"), (growth_of(), "changes"), (WIDTHS["up"], "size")]:
        with pytest.raises(AttributeError):
            setattr(value, name, ())


def test_static_under_jit_and_traced_once():
    traces = []

    def grow(params, growth, key):
        traces.append(growth)
        return dw.grow(params, growth, key=key)

    jitted = jax.jit(grow, static_argnames="growth")
    for seed in range(3):
        wide = jitted(PARAMS, growth_of(), jax.random.key(seed))
    assert len(traces) == 1
    assert wide["params"]["up"]["kernel"].shape == (4, 12)
    jitted(PARAMS, growth_of(13), jax.random.key(0))
    assert len(traces) == 2


# plan ---------------------------------------------------------------------------------------------


def test_sizes_by_name_and_by_place():
    by_name = dw.plan(WIDTHS, {"up": 12, "mid": 7})
    assert dw.plan(WIDTHS, {("mid/kernel", 0): 12, ("mid/bias", -1): 7}) == by_name
    assert dw.plan(WIDTHS, {"up": 12, ("mid/kernel", 0): 12, "mid": 7}) == by_name
    assert repr(by_name) == "Growth(up: 8 -> 12, mid: 6 -> 7)"
    assert by_name.shapes == {
        "params/up/kernel": (4, 12),
        "params/up/bias": (12,),
        "params/mid/kernel": (12, 7),
        "params/mid/bias": (7,),
        "params/down/kernel": (7, 2),
        "params/down/bias": (2,),
    }


def test_todays_sizes_change_nothing():
    with pytest.raises(ValueError, match="nothing grows: up has 8 units already, down has 2"):
        dw.plan(WIDTHS, {"up": 8, "down": 2})
    with pytest.raises(ValueError, match="nothing grows: all sizes stay what they are"):
        dw.plan(WIDTHS, target=PARAMS)


def test_a_target_gives_the_sizes():
    growth = dw.plan(WIDTHS, target=specs(4, 12, 7, 2))
    assert growth.changes == dw.plan(WIDTHS, {"up": 12, "mid": 7}).changes
    arrays = jax.tree.map(lambda spec: np.zeros(spec.shape), specs(4, 12, 7, 2))
    assert dw.plan(WIDTHS, target=arrays) == growth


def test_each_width_can_have_its_own_strategy():
    zeros, replicate = dw.strategies.zeros(), dw.strategies.replicate()
    sizes = {"up": 12, "mid": 7}
    growth = dw.plan(WIDTHS, sizes, strategy={"up": zeros})
    assert [change.strategy.name for change in growth.changes] == ["zeros", "zero_outgoing"]
    growth = dw.plan(WIDTHS, sizes, strategy={"up": zeros, "mid": replicate})
    table = str(growth).partition("\n(by axis")[0].splitlines()
    assert table[0] == "not checked: these widths hold no program, so nothing was evaluated"
    assert table[1].startswith("note: up: new units have zero incoming and zero outgoing weights")
    assert table[3:] == [
        "array               before  after  new entries",
        "------------------  ------  -----  -----------------------------------",
        "params/up/kernel    4x8     4x12   axis 1 zero (up)",
        "params/up/bias      8       12     axis 0 zero (up)",
        "params/mid/kernel   8x6     12x7   axis 0 zero (up), axis 1 copy (mid)",
        "params/mid/bias     6       7      axis 0 copy (mid)",
        "params/down/kernel  6x2     7x2    axis 0 share (mid)",
    ]
    wide = dw.grow(PARAMS, growth)
    assert_preserves(PARAMS, wide)


def test_interface_widths_grow_when_asked():
    growth = dw.plan(
        WIDTHS, {"down": 3, "up[0]": 5}, interface=True, strategy=dw.strategies.zeros()
    )
    wide = dw.grow(PARAMS, growth)
    x = np.random.default_rng(0).normal(size=(9, 4))
    outputs = forward(wide, np.concatenate([x, np.ones((9, 1))], axis=1))
    np.testing.assert_allclose(outputs[:, :2], forward(PARAMS, x), rtol=1e-12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((PARAMS, {"up": 12}), "widths must be the Widths that dw.trace returns, got a dict"),
        ((WIDTHS, [("up", 12)]), r"sizes must be a mapping .* got a list .* \[\('up', 12\)\]"),
        ((WIDTHS, 12), "sizes must be a mapping"),
    ],
)
def test_arguments_of_the_wrong_kind(arguments, message):
    with pytest.raises(TypeError, match=message):
        dw.plan(*arguments)


@pytest.mark.parametrize(
    "strategy", ["zeros", dw.strategies.zeros, {"up": "zeros"}, {"mid": dw.strategies.zeros}]
)
def test_strategies_are_made_by_their_functions(strategy):
    with pytest.raises(TypeError, match=r"must come from dw\.strategies, such as .*, got .*zeros"):
        dw.plan(WIDTHS, {"up": 12}, strategy=strategy)


def test_noise_is_noted():
    growth = dw.plan(WIDTHS, {"up": 12}, strategy=dw.strategies.replicate(noise=0.1))
    assert growth.notes == ("up: copies carry noise, so outputs change",)
    assert str(growth).startswith("note: up: copies carry noise, so outputs change\narray ")


PROBLEMS = {
    "unknown width": ({"sizes": {"upp": 9}}, ["no width 'upp'; the closest are ['up'"]),
    "unknown place": ({"sizes": {("upp/kernel", 1): 9}}, ["no array 'upp/kernel'"]),
    "fewer units": ({"sizes": {"up": 7}}, ["7 units are fewer than today's 8"]),
    "not an integer": (
        {"sizes": {"up": 9.0}},
        ["up: the number of units must be an integer, got 9.0"],
    ),
    "two sizes": ({"sizes": {"up": 9, ("up/bias", 0): 10}}, ["up: asked for two sizes, 9 and 10"]),
    "an input": ({"sizes": {"up[0]": 9}}, ["up[0]: is a dimension of an input", "interface=True"]),
    "an output": ({"sizes": {"down": 9}}, ["down: is a dimension of an input", "interface=True"]),
    "unknown width of a strategy": (
        {"sizes": {"up": 9}, "strategy": {"upp": dw.strategies.zeros()}},
        ["strategy: no width 'upp'", "'up'"],
    ),
    "a smaller target": (
        {"target": specs(4, 7, 6, 2)},
        ["7 units are fewer than today's 8"],
    ),
    "an impossible target": (
        {
            "target": {
                "params": {**specs(4, 9, 6, 2)["params"], "up": specs(4, 8, 6, 2)["params"]["up"]}
            }
        },
        ["params/mid/kernel[0]: is 9", "up = 8"],
    ),
    "other arrays in the target": (
        {"target": {"params": {**specs(4, 8, 6, 2)["params"], "top": np.ones(2)}}},
        ["params/top: only in the target"],
    ),
    "arrays that the target lacks": (
        {"target": {"params": {"up": specs(4, 8, 6, 2)["params"]["up"]}}},
        ["params/mid/kernel: not in the target", "params/down/bias: not in the target"],
    ),
    "all at once": (
        {
            "sizes": {"upp": 9, "up": 7, "mid": "9", "down": 3},
            "strategy": {"top": dw.strategies.zeros()},
        },
        [
            "no width 'upp'",
            "7 units are fewer",
            "mid: the number of units",
            "down: is a",
            "no width 'top'",
        ],
    ),
}


@pytest.mark.parametrize("case", PROBLEMS.values(), ids=PROBLEMS)
def test_plan_says_what_is_wrong(case):
    arguments, parts = case
    with pytest.raises(ValueError, match="cannot plan this growth") as error:
        dw.plan(WIDTHS, **arguments)
    for part in parts:
        assert part in str(error.value)


def test_plan_needs_sizes_or_a_target():
    with pytest.raises(ValueError, match="sizes, .* or target="):
        dw.plan(WIDTHS)


def hidden_with(**known):
    """Returns the widths of one hidden layer with something known of its width."""
    units, x, y = (Units(name, 3, "incoming") for name in ("units", "x", "y"))
    leaves = (
        Leaf("in", (3, 3), (x, units)),
        Leaf("out", (3, 3), (Units("units", 3, "outgoing"), y)),
    )
    return dw.Widths(leaves, (("x", Facts(3)), ("units", Facts(3, **known)), ("y", Facts(3))))


def test_fixed_widths_are_refused_with_their_reason():
    with pytest.raises(
        ValueError, match=r"units: cannot grow from 3 to 4: sorted; it occurs in in\[1\], out"
    ):
        dw.plan(hidden_with(fixed="sorted"), {"units": 4})


def test_notes_of_a_width_reach_the_growth():
    growth = dw.plan(hidden_with(notes=("mind the epsilon",)), {"units": 4})
    assert growth.notes == ("units: mind the epsilon",)


# grow ---------------------------------------------------------------------------------------------


def forward(variables, x):
    """The chain with relu, as a plain loop in NumPy."""
    params = jax.tree.map(np.asarray, variables["params"])
    for i, name in enumerate(("up", "mid", "down")):
        x = np.where(x > 0, x, 0) if i else x
        x = x @ params[name]["kernel"] + params[name]["bias"]
    return x


def assert_preserves(old, new):
    x = np.random.default_rng(0).normal(size=(9, 4))
    np.testing.assert_allclose(forward(new, x), forward(old, x), rtol=1e-12)


def test_fresh_gives_the_free_weights_and_the_structure():
    growth = dw.plan(WIDTHS, {"up": 12, "mid": 7})
    fresh = jax.tree.map(lambda spec: np.full(spec.shape, 5.0), specs(4, 12, 7, 2))
    wide = dw.grow(PARAMS, growth, fresh=fresh)
    assert shapes(wide) == shapes(fresh)
    assert_preserves(PARAMS, wide)
    kernel = wide["params"]["mid"]["kernel"]
    np.testing.assert_array_equal(kernel[:8, :6], PARAMS["params"]["mid"]["kernel"])
    np.testing.assert_array_equal(kernel[8:, :6], 0)
    np.testing.assert_array_equal(kernel[:, 6:], 5)
    np.testing.assert_array_equal(wide["params"]["up"]["bias"][8:], 5)
    np.testing.assert_array_equal(wide["params"]["down"]["kernel"][6:], 0)
    np.testing.assert_array_equal(fresh["params"]["mid"]["kernel"], 5)


def zeros_in(*names):
    """Returns variables of a larger network in which some kernels are zero, as all biases are."""
    fresh = jax.tree.map(lambda spec: np.full(spec.shape, 5.0), specs(4, 12, 7, 2))
    for name, layer in fresh["params"].items():
        layer["bias"][:] = 0
        layer["kernel"] *= name not in names
    return fresh


def test_a_fresh_network_of_zeros_is_refused_and_a_key_draws_them():
    growth, fresh = dw.plan(WIDTHS, {"up": 12, "mid": 7}), zeros_in("up")
    with pytest.raises(ValueError) as error:
        dw.grow(PARAMS, growth, fresh=fresh)
    assert "params/up/kernel: zero in the larger model for all new units of up" in str(error.value)
    assert "mid" not in str(error.value) and "pass key=" in str(error.value)
    wide = dw.grow(PARAMS, growth, fresh=fresh, key=jax.random.key(0))
    assert_preserves(PARAMS, wide)
    assert not (wide["params"]["up"]["kernel"] == 0).any()
    np.testing.assert_array_equal(wide["params"]["mid"]["kernel"][:, 6:], 5)
    np.testing.assert_array_equal(wide["params"]["up"]["bias"][8:], 0)
    assert dw.find_dead(dw.grow(PARAMS, growth, fresh=zeros_in("down")), growth.after["mid"]) == (
        6,
    )


@pytest.mark.parametrize("name", ["up", "down"])
def test_where_zeros_of_a_fresh_network_matter(name):
    sizes = {"up": 12, "mid": 7}
    growth = dw.plan(WIDTHS, sizes)
    # Not in programs, which do not know the values; not where both sides are asked to be zero,
    # or are copies; and not for what nothing is read from.
    fresh = zeros_in(name)
    jax.jit(dw.grow, static_argnames="growth")(PARAMS, growth=growth, fresh=fresh)
    for strategy in (dw.strategies.zeros(), dw.strategies.replicate()):
        dw.grow(PARAMS, dw.plan(WIDTHS, sizes, strategy=strategy), fresh=fresh)
    outputs = {"params": dict(zeros_in("down")["params"], down=layer(7, 3))}
    outputs["params"]["down"]["kernel"][:] = 0
    larger = dw.plan(WIDTHS, sizes | {"down": 3}, interface=True)
    dw.grow(PARAMS, larger, fresh=outputs)
    if name == "up":
        mixed = dw.plan(WIDTHS, sizes, strategy=dw.strategies.random())
        dw.grow(PARAMS, mixed, fresh=fresh)  # what they feed is not zero
        with pytest.raises(ValueError, match="up/kernel, params/mid/kernel: zero"):
            dw.grow(PARAMS, mixed, fresh=zeros_in("up", "mid"))


@pytest.mark.parametrize("parts", [1, 4])
def test_zeros_of_a_fresh_network_are_found_where_they_lie(parts):
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:parts]), "m")
    spec = jax.sharding.PartitionSpec(None, "m")
    kernel = np.zeros((4, 12))
    for value in (0.0, 1.0):
        kernel[2, 9] = value  # the one weight of new units that is not zero
        fresh = zeros_in("up")
        fresh["params"]["up"]["kernel"] = jax.device_put(
            kernel, jax.sharding.NamedSharding(mesh, spec)
        )
        growth = dw.plan(WIDTHS, {"up": 12, "mid": 7})
        if value:
            dw.grow(PARAMS, growth, fresh=fresh)
        else:
            with pytest.raises(ValueError, match="zero in the larger model"):
                dw.grow(PARAMS, growth, fresh=fresh)


@jax.tree_util.register_pytree_with_keys_class
class Model:
    """A pytree that carries its sizes as static data, as an Equinox module does."""

    def __init__(self, params, sizes):
        self.params, self.sizes = params, sizes

    def tree_flatten_with_keys(self):
        return [(jax.tree_util.GetAttrKey("params"), self.params)], self.sizes

    @classmethod
    def tree_unflatten(cls, sizes, children):
        return cls(*children, sizes)


def test_the_result_has_the_structure_of_the_target_or_of_fresh():
    small = Model(PARAMS["params"], (4, 8, 6, 2))
    target = Model(specs(4, 12, 6, 2)["params"], (4, 12, 6, 2))
    fresh = jax.tree.map(lambda spec: np.ones(spec.shape), target)
    wide = dw.grow(small, dw.plan(WIDTHS, target=target), key=jax.random.key(0))
    assert wide.sizes == target.sizes
    assert shapes(wide.params) == shapes(fresh.params)
    assert dw.grow(small, dw.plan(WIDTHS, {"up": 12}), fresh=fresh).sizes == target.sizes


@pytest.mark.parametrize(
    "change, parts",
    [
        (lambda v: v["params"].pop("mid"), ["params/mid/kernel: missing", "planned for (8, 6)"]),
        (
            lambda v: v["params"]["mid"].update(kernel=np.ones((9, 6))),
            ["params/mid/kernel: has shape (9, 6)", "planned for (8, 6)", "plan again"],
        ),
        (
            lambda v: v["params"]["mid"].update(kernel=np.ones((8, 6), int)),
            ["params/mid/kernel: grows, so it must have a floating dtype, not int64"],
        ),
    ],
    ids=["missing", "another shape", "integers"],
)
def test_grow_says_which_variables_do_not_fit(change, parts):
    variables = {"params": {name: dict(layer) for name, layer in PARAMS["params"].items()}}
    change(variables)
    with pytest.raises(ValueError, match="cannot grow these variables") as error:
        dw.grow(variables, growth_of(), key=jax.random.key(0))
    for part in parts:
        assert part in str(error.value)


def test_grow_says_what_does_not_fit_in_fresh():
    fresh = {**specs(4, 13, 6, 2)["params"], "top": layer(2, 2)}
    del fresh["down"]["bias"]
    with pytest.raises(ValueError) as error:
        dw.grow(PARAMS, growth_of(), fresh={"params": fresh})
    for part in (
        "params/up/kernel: has shape (4, 13) in fresh, but grows to (4, 12)",
        "params/down/bias: not in fresh",
        "params/top/kernel: only in fresh",
    ):
        assert part in str(error.value)


# Composite axes, against plain NumPy --------------------------------------------------------------


def incoming(name, size):
    return Units(name, size, "incoming")


def outgoing(name, size):
    return Units(name, size, "outgoing")


@pytest.mark.parametrize("channels_first", [False, True])
@pytest.mark.parametrize("strategy", [None, dw.strategies.replicate()], ids=["zero", "replicate"])
def test_channels_grow_through_a_flatten(strategy, channels_first):
    # Three channels at five places: a unit feeds five rows of the kernel behind the flatten.
    places, channels = outgoing("place", 5), outgoing("conv", 3)
    parts = (channels, places) if channels_first else (places, channels)
    widths = dw.Widths(
        (
            Leaf("conv", (4, 3), (outgoing("x", 4), incoming("conv", 3)), "random", (0,), (1,)),
            Leaf("dense", (15, 2), (Product(parts), incoming("y", 2)), "random", (0,), (1,)),
        ),
        (("x", Facts(4)), ("conv", Facts(3)), ("place", Facts(5)), ("y", Facts(2))),
    )
    rng = np.random.default_rng(0)
    old = {"conv": rng.normal(size=(4, 3)), "dense": rng.normal(size=(15, 2))}
    new = dw.grow(old, dw.plan(widths, {"conv": 5}, strategy=strategy), key=jax.random.key(0))
    assert shapes(new) == {"conv": (4, 5), "dense": (25, 2)}

    def apply(params, x):
        h = np.maximum(x @ np.asarray(params["conv"]), 0)  # [n, place, channel]
        h = h.swapaxes(1, 2) if channels_first else h
        return h.reshape(len(x), -1) @ np.asarray(params["dense"])

    x = rng.normal(size=(7, 5, 4))
    np.testing.assert_allclose(apply(new, x), apply(old, x), rtol=1e-12)
    with pytest.raises(KeyError, match=r"axis 0 of dense is composite, .*: name one of its widths"):
        widths.of("dense", 0)


def test_value_heads_grow_inside_a_fused_projection():
    # query | key | value, each heads * dim; here the dim of the values grows inside each head.
    def part(dim):
        return Product((incoming("heads", 2), incoming(dim, 3)))

    fused = Concat((part("dim"), part("dim"), part("value")))
    merged = Product((outgoing("heads", 2), outgoing("value", 3)))
    widths = dw.Widths(
        (
            Leaf("qkv", (4, 18), (outgoing("x", 4), fused), "random", (0,), (1,)),
            Leaf("out", (6, 4), (merged, incoming("y", 4)), "random", (0,), (1,)),
        ),
        tuple((n, Facts(s)) for n, s in {"x": 4, "heads": 2, "dim": 3, "value": 3, "y": 4}.items()),
    )
    rng = np.random.default_rng(0)
    old = {"qkv": rng.normal(size=(4, 18)), "out": rng.normal(size=(6, 4))}

    def apply(params, x, heads, value):
        q, k, v = np.split(x @ np.asarray(params["qkv"]), [3 * heads, 6 * heads], axis=1)
        q, k = (a.reshape(len(x), heads, 3) for a in (q, k))
        weights = np.exp(np.einsum("ihd,jhd->hij", q, k))
        weights /= weights.sum(axis=-1, keepdims=True)
        mixed = np.einsum("hij,jhd->ihd", weights, v.reshape(len(x), heads, value))
        return mixed.reshape(len(x), -1) @ np.asarray(params["out"])

    x = rng.normal(size=(7, 4))
    for sizes, key in [({"value": 5}, 0), ({"heads": 3}, 1), ({"heads": 4, "value": 4}, 2)]:
        new = dw.grow(old, dw.plan(widths, sizes), key=jax.random.key(key))
        after = apply(new, x, sizes.get("heads", 2), sizes.get("value", 3))
        np.testing.assert_allclose(after, apply(old, x, 2, 3), rtol=1e-12)
        assert np.count_nonzero(new["qkv"]) == np.size(new["qkv"])
    with pytest.raises(ValueError, match=r"qkv\[1\]: .*\n  say so with sizes="):
        dw.plan(widths, target={"qkv": np.zeros((4, 18 + 18)), "out": np.zeros((12, 4))})


def test_kinds_of_leaves_say_what_new_entries_are():
    leaves = tuple(Leaf(kind, (3,), (incoming("units", 3),), kind) for kind in ("zeros", "ones"))
    widths = dw.Widths(leaves, (("units", Facts(3)),))
    wide = dw.grow(
        {"zeros": np.full(3, 2.0), "ones": np.full(3, 2.0)}, dw.plan(widths, {"units": 5})
    )
    np.testing.assert_array_equal(wide["zeros"], [2, 2, 2, 0, 0])
    np.testing.assert_array_equal(wide["ones"], [2, 2, 2, 1, 1])


def test_rates_are_those_of_the_maximal_update_parametrization():
    """Input, hidden and output layer, biases, and a new layer."""
    sizes = {"a": (4, 8), "b": (8, 6), "c": (6, 2)}
    params = {k: {"kernel": jnp.ones(s), "bias": jnp.ones(s[1])} for k, s in sizes.items()}
    growth = dw.plan(dw.chain(params, ("a", "b", "c")), {"a": 32, "b": 12})
    wide = dw.grow(params, growth, key=jax.random.key(0))
    rates = growth.rates({"params": {**wide, "new": {"kernel": jnp.ones(3)}}})["params"]
    assert {k: rates[k]["kernel"] for k in rates} == {"a": 1, "b": 0.25, "c": 0.5, "new": 1}
    assert all(rates[k]["bias"] == 1 for k in sizes)
    rates = growth.rates(wide, optimizer="sgd")
    assert {k: rates[k]["kernel"] for k in rates} == {"a": 4, "b": 0.5, "c": 0.5}
    assert {k: rates[k]["bias"] for k in rates} == {"a": 4, "b": 2, "c": 1}
    with pytest.raises(ValueError, match="must be 'adam' or 'sgd', got 'muon'"):
        growth.rates(wide, optimizer="muon")
    with pytest.raises(ValueError, match=r"tree of the larger model:(.|\n)*expected \(4, 32\)"):
        growth.rates(params)


def test_rates_count_the_window_of_no_convolution():
    def apply(params, x):
        dims = ("NHWC", "HWIO", "NHWC")
        for name in ("first", "last"):
            x = jax.lax.conv_general_dilated(
                x, params[name], (1, 1), "SAME", dimension_numbers=dims
            )
            x = jnp.tanh(x)
        return x

    params = {"first": jnp.ones((3, 3, 2, 4)), "last": jnp.ones((3, 3, 4, 2))}
    growth = dw.plan(dw.trace(apply, params, jnp.ones((1, 5, 5, 2))), {"first": 8})
    wide = dw.grow(params, growth, key=jax.random.key(0))
    assert growth.rates(wide) == {"first": 1.0, "last": 0.5}


def test_new_outputs_that_begin_at_random_are_noted():
    (note,) = dw.plan(WIDTHS, {"down": 3}, interface=True).notes
    assert note.startswith("down: new outputs begin with random weights")
    silent = {"down": dw.strategies.zeros()}
    assert dw.plan(WIDTHS, {"down": 3}, interface=True, strategy=silent).notes == ()
    assert dw.plan(WIDTHS, {"up[0]": 5, "up": 9}, interface=True).notes == ()
    table = {"table": np.ones((5, 3)), "out": np.ones((3, 2))}
    looked_up = dw.trace(
        lambda v, tokens: jax.vmap(lambda token: v["table"][token])(tokens) @ v["out"],
        table,
        np.arange(4),
    )
    assert dw.plan(looked_up, {"table[vocab]": 6}, interface=True).notes == ()  # no outputs
    (note,) = dw.plan(WIDTHS, {"up": 9}, strategy=dw.strategies.zeros()).notes
    assert note.startswith("up: new units have zero incoming and zero outgoing weights")


def test_copies_are_not_shared():
    """A train step that donates deletes arrays that the old tree still needs."""
    params = {"up": jnp.ones((4, 8)), "down": jnp.ones((8, 2)), "other": jnp.ones(3)}
    key = jax.random.key(0)

    def apply(v, x):
        return x @ v["up"] @ v["down"] + v["other"].sum()

    growth = dw.plan(dw.trace(apply, params, jnp.ones((1, 4))), {"up": 16})
    tx = optax.adam(1e-3)
    state = tx.init(params)
    for copy in (False, True):
        wide = dw.grow(params, growth, key=key, copy=copy)
        wide_state = dw.grow_opt_state(state, growth, tx, copy=copy, second_moment="zeros")
        assert (wide["other"] is params["other"]) != copy
        old = {id(leaf) for leaf in jax.tree.leaves((params, state))}
        shared = [leaf for leaf in jax.tree.leaves((wide, wide_state)) if id(leaf) in old]
        assert bool(shared) != copy
    jax.jit(lambda tree: jax.tree.map(lambda a: 2 * a, tree), donate_argnums=0)(wide)
    assert params["other"].sum() == 3
    assert jax.eval_shape(lambda p: dw.grow(p, growth, key=key, copy=True), params)["up"].shape
