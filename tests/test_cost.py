"""Parameters and FLOPs before and after growing, against what XLA counts."""

import jax
import jax.numpy as jnp
import optax
import pytest
import transformer
from networks import load
from tiers import long

import dogwood_jax as dw
from dogwood_jax.training import Stage, fit

NETWORKS = load()


def flops_of_xla(apply, shapes, inputs):
    """FLOPs of the compiled program, which counts functions of single entries, too."""
    arrays = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype) if hasattr(leaf, "shape") else leaf, shapes
    )
    return jax.jit(apply).lower(arrays, *inputs).compile().cost_analysis()["flops"]


def dense(params, x):
    return (
        jnp.tanh(x @ params["up"]["kernel"] + params["up"]["bias"][None]) @ params["down"]["kernel"]
    )


def shapes(units):
    up = {"kernel": jnp.zeros((6, units)), "bias": jnp.zeros(units)}
    return {"up": up, "down": {"kernel": jnp.zeros((units, 3))}}


def test_both_sizes_cost_what_the_networks_do():
    x = jnp.zeros((10, 6))
    found = dw.cost(dw.trace(dense, shapes(8), x), {"up": 20})
    assert found.parameters == (6 * 8 + 8 + 8 * 3, 6 * 20 + 20 + 20 * 3)
    assert found.flops == (3 * 2 * 10 * 9 * 8, 3 * 2 * 10 * 9 * 20)
    by_place = dw.cost(dw.trace(dense, shapes(8), x), {("down/kernel", 0): 20})
    assert by_place == found
    assert dw.cost(dw.trace(dense, shapes(20), x)).flops == (found.flops[1],) * 2


def test_the_cost_of_a_growth_is_that_of_its_sizes():
    widths = dw.trace(dense, shapes(8), jnp.zeros((10, 6)))
    assert dw.cost(widths, dw.plan(widths, {"up": 20})) == dw.cost(widths, {"up": 20})
    another = dw.trace(dense, shapes(9), jnp.zeros((10, 6)))
    with pytest.raises(ValueError, match=r"up/bias: has shape \(9,\) in widths, and \(8,\)"):
        dw.cost(another, dw.plan(widths, {"up": 20}))


def test_of_a_growth_with_new_layers_parameters_are_counted():
    def stack(layers):
        inner = {f"layers_{n}": {"w": jnp.eye(5)} for n in range(layers)}
        return {"in": {"w": jnp.ones((6, 5))}, **inner, "out": {"w": jnp.ones((5, 3))}}

    def residual(params, x):
        x = x @ params["in"]["w"]
        for n in range(len(params) - 2):
            x = x + jnp.tanh(x) @ params[f"layers_{n}"]["w"]
        return x @ params["out"]["w"]

    widths = dw.trace(residual, stack(2), jnp.zeros((10, 6)))
    growth = dw.plan(widths, target=jax.eval_shape(lambda: stack(4)), target_apply=residual)
    found = dw.cost(widths, growth)
    assert found.parameters == (30 + 2 * 25 + 15, 30 + 4 * 25 + 15) and found.flops is None


def test_a_convolution_counts_its_window():
    def apply(params, x):
        return jax.lax.conv_general_dilated(
            x, params["w"], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    widths = dw.trace(apply, {"w": jnp.zeros((3, 3, 4, 5))}, jnp.zeros((2, 8, 8, 4)))
    assert dw.cost(widths).flops[0] == 3 * 2 * (2 * 6 * 6 * 5) * (3 * 3 * 4)


def test_a_scan_counts_as_often_as_it_runs():
    def apply(params, x):
        def layer(h, w):
            return jnp.tanh(jax.lax.fori_loop(0, 3, lambda _, h: h @ w, h)), None

        return jax.lax.scan(layer, x, params["w"])[0]

    widths = dw.trace(apply, {"w": jnp.zeros((4, 6, 6))}, jnp.zeros((2, 6)))
    assert dw.cost(widths).flops[0] == 3 * 4 * 3 * 2 * (2 * 6 * 6)


@pytest.mark.parametrize("name", ["mlp", "cnn", long("llama")])
def test_xla_counts_no_fewer_and_little_more(name):
    model = NETWORKS[name].build()
    ours = dw.cost(dw.trace(model.apply, model.shapes, *model.inputs)).flops[0] / 3
    theirs = flops_of_xla(model.apply, model.shapes, model.inputs)
    assert 0.3 * theirs < ours <= theirs


def test_widths_without_a_program_know_parameters_only():
    widths = dw.chain(shapes(8), ("up", "down"))
    found = dw.cost(widths, {"up": 16})
    assert found.flops is None and found.parameters[1] == 6 * 16 + 16 + 16 * 3
    assert "FLOPs" not in str(found)


def test_collections_that_are_not_trained_do_not_count():
    tree = {"params": {"w": jnp.zeros((4, 3))}, "batch_stats": {"mean": jnp.zeros(3)}}

    def apply(variables, x):
        return x @ variables["params"]["w"] - variables["batch_stats"]["mean"][None]

    widths = dw.trace(apply, tree, jnp.zeros((2, 4)))
    assert dw.cost(widths).parameters == (12, 12)


def test_unknown_widths_are_refused():
    widths = dw.chain(shapes(8), ("up", "down"))
    with pytest.raises(ValueError, match="no width 'upp'; the closest are"):
        dw.cost(widths, {"upp": 16})
    with pytest.raises(ValueError, match="must be an integer, got 1.5"):
        dw.cost(widths, {"up": 1.5})
    with pytest.raises(TypeError, match="widths"):
        dw.cost(shapes(8), {"up": 16})


@pytest.mark.parametrize("repeats", [False, True])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_memory_is_that_of_weights_and_of_keys_and_values(repeats, dtype):
    """Two heads of keys serve six of queries, repeated or in groups."""
    tokens, stream, heads, kv_heads, size = 10, 8, 6, 2, 4

    def apply(params, x):
        query, key, value = (jnp.einsum("ti,ihd->thd", x, params[name]) for name in "qkv")
        if repeats:
            key, value = (jnp.repeat(a, heads // kv_heads, axis=1) for a in (key, value))
            scores = jnp.einsum("thd,shd->hts", query, key)
            mixed = jnp.einsum("hts,shd->thd", jax.nn.softmax(scores), value)
        else:
            query = query.reshape(tokens, kv_heads, -1, size)
            scores = jnp.einsum("tkgd,skd->kgts", query, key)
            mixed = jnp.einsum("kgts,skd->tkgd", jax.nn.softmax(scores), value)
        return mixed.reshape(tokens, -1) @ params["o"]

    shapes = {"q": (stream, heads, size), "o": (heads * size, stream)}
    shapes |= dict.fromkeys("kv", (stream, kv_heads, size))
    params = {name: jnp.zeros(shape, dtype) for name, shape in shapes.items()}
    found = dw.cost(dw.trace(apply, params, jnp.zeros((tokens, stream), dtype)))
    weights = sum(array.size for array in params.values())
    cached = 2 * tokens * kv_heads * size
    assert found.memory == (jnp.dtype(dtype).itemsize * (weights + cached),) * 2
    assert found.active_parameters == found.parameters == (weights, weights)


def test_a_stack_keeps_keys_of_each_layer():
    def apply(params, x):
        def layer(x, w):
            key = x @ w["k"]
            return x + jax.nn.softmax((x @ w["q"]) @ key.T) @ (x @ w["v"]), None

        return jax.lax.scan(layer, x, params)[0]

    params = dict.fromkeys("qv", jnp.zeros((3, 4, 4))) | {"k": jnp.zeros((3, 4, 4))}
    found = dw.cost(dw.trace(apply, params, jnp.zeros((5, 4))))
    assert found.memory[0] == 8 * (3 * 3 * 16 + 3 * 5 * (4 + 4))


def test_active_parameters_are_those_of_chosen_experts():
    experts, chosen, stream, hidden = 8, 2, 4, 6

    def apply(params, x):
        gates, which = jax.lax.top_k(jax.nn.softmax(x @ params["router"]), chosen)
        combine = jnp.einsum("tk,tke->te", gates, jax.nn.one_hot(which, experts))
        h = jax.nn.relu(jnp.einsum("tm,emh->teh", x, params["up"]))
        return jnp.einsum("teh,ehm,te->tm", h, params["down"], combine)

    params = {"router": jnp.zeros((stream, experts)), "up": jnp.zeros((experts, stream, hidden))}
    params["down"] = jnp.zeros((experts, hidden, stream))
    widths = dw.trace(apply, params, jnp.zeros((5, stream)))
    name = widths.of("up", 2).name
    found = dw.cost(widths, {name: 9})
    router = stream * experts
    assert found.parameters == tuple(router + 2 * experts * stream * n for n in (hidden, 9))
    assert found.active_parameters == tuple(router + 2 * chosen * stream * n for n in (hidden, 9))
    assert "active parameters" in str(found)
    scores = {name: jnp.arange(1.0, 7)}
    small, growth = dw.shrink(
        jax.tree.map(lambda a: a + 1, params), widths, scores=scores, active_parameters=0.75
    )
    assert dw.cost(widths, growth.sizes).active_parameters[1] <= 0.75 * found.active_parameters[0]
    growth = dw.shrink(params, widths, scores=scores, memory=0.75)[1]
    assert growth.sizes == {name: 4}


def fixed(params, x):
    """The network above, for 20 units only."""
    assert params["up"]["bias"].shape == (20,)
    return dense(params, x)


@pytest.mark.long
def test_a_run_costs_what_its_stages_do():
    widths = dw.trace(dense, shapes(8), jnp.zeros((10, 6)))
    stages = [
        Stage(epochs=2, seconds=600),
        Stage(steps=5, sizes={"up": 12}),
        Stage(epochs=1, target=shapes(20), apply=fixed),
        Stage(steps=4),
    ]
    found = dw.cost(widths, stages=stages, samples=25)  # three steps an epoch
    a_step = {units: 3 * 2 * 10 * 9 * units for units in (8, 12, 20)}
    assert found.steps == (6, 5, 3, 4)
    assert found.parameters == tuple(10 * units for units in (8, 12, 20, 20))
    assert found.flops_a_step == tuple(a_step[units] for units in (8, 12, 20, 20))
    assert found.flops == (6 * a_step[8], 5 * a_step[12], 3 * a_step[20], 4 * a_step[20])
    assert found.total == sum(found.flops)
    assert found.from_scratch == 18 * a_step[20]
    assert found.ratio == (6 * 8 + 5 * 12 + 7 * 20) / (18 * 20)
    assert "sum / from scratch: 0.689" in str(found)
    # These are the steps that fit takes.
    data = jnp.ones((25, 6)), jnp.zeros(25, int)
    tx, settings = optax.sgd(0.1), {"batch_size": 10, "key": jax.random.key(0)}
    run = fit(dense, shapes(8), tx, data, stages=stages, progress=False, **settings)
    assert run.history["steps"][-1] == sum(found.steps)


def test_a_stage_may_compute_otherwise_without_growing():
    def twice(params, x):
        return dense(params, jnp.concatenate([x, x]))

    widths = dw.trace(dense, shapes(8), jnp.zeros((10, 6)))
    one, two = dw.cost(widths, stages=[Stage(steps=1), Stage(steps=1, apply=twice)]).flops
    assert two == 2 * one


@pytest.mark.long
def test_a_transformer_that_deepens_costs_its_layers():
    n, t, width, vocabulary, head = 2, 8, 16, 50, transformer.HEAD_DIM

    def by_hand(depth, mlp):
        attention = 4 * n * t * width * head + 2 * n * t * t * head
        return 6 * (depth * (attention + 2 * n * t * width * mlp) + n * t * width * vocabulary)

    small, deep = (transformer.shapes(depth, width, 1, 32, vocabulary) for depth in (1, 3))
    widths = dw.trace(transformer.apply, small, jax.ShapeDtypeStruct((n, t), jnp.int32))
    mlp = widths.of("block_0/up", 1).name
    stages = [Stage(steps=30), Stage(steps=20, sizes={mlp: 48})]
    assert dw.cost(widths, stages=stages).flops == (30 * by_hand(1, 32), 20 * by_hand(1, 48))
    found = dw.cost(widths, stages=[Stage(steps=60), Stage(steps=40, target=deep)])
    assert found.flops_a_step == (by_hand(1, 32), by_hand(3, 32))
    assert found.ratio == (60 * by_hand(1, 32) + 40 * by_hand(3, 32)) / (100 * by_hand(3, 32))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stages": [Stage(epochs=1)]}, "samples: expected the number of samples"),
        ({"stages": [Stage(epochs=1)], "samples": 0}, "samples: expected an integer, 1 or more"),
        ({"stages": [Stage(steps=1), Stage(seconds=9)]}, r"stages\[1\]: ends by the clock alone"),
        ({"stages": []}, "stages: expected a list of training.Stage"),
        ({"stages": [Stage(steps=-1)], "samples": 1.5}, r"stages\[0\].steps: (?s:.*)samples: "),
        ({"stages": [Stage(steps=1, sizes={"upp": 12})]}, r"stages\[0\]: (?s:.*)no width 'upp'"),
        ({"stages": [Stage(steps=1)], "sizes": {"up": 12}}, "pass either sizes, or stages="),
        ({"samples": 100}, "samples= counts the epochs of stages="),
    ],
)
def test_a_run_whose_steps_are_not_known_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        dw.cost(dw.trace(dense, shapes(8), jnp.zeros((10, 6))), **options)


def test_a_run_is_told_for_traced_networks_of_arrays():
    with pytest.raises(ValueError, match="widths: expected widths that dw.trace returned"):
        dw.cost(dw.chain(shapes(8), ("up", "down")), stages=[Stage(steps=1)])
    with pytest.raises(ValueError, match="widths: expected them traced with a batch"):
        widths = dw.trace(lambda params, x: params["w"] * x, {"w": jnp.ones(3)}, jnp.zeros(()))
        dw.cost(widths, stages=[Stage(epochs=1)], samples=9)
    with pytest.raises(ValueError, match="variables/activation: expected an array, as for train"):
        module = {**shapes(8), "activation": jnp.tanh}
        dw.cost(dw.trace(dense, module, jnp.zeros((10, 6))), stages=[Stage(steps=1)])
