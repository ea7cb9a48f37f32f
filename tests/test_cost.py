"""Parameters and FLOPs before and after growing, against what XLA counts."""

import jax
import jax.numpy as jnp
import pytest
from networks import load

import dogwood_jax as dw

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


@pytest.mark.parametrize("name", ["mlp", "llama", "cnn", "vit", "gated_mlp"])
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
