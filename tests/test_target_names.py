"""Names of arrays that carry sizes, as in e3nn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks_deeper import ResNet, shapes_of
from test_target import shaped

import dogwood_jax as dw

X = jnp.ones((2, 3))


def names(hidden, layers):
    """The arrays of layers with names that carry their sizes."""
    found = {f"in[3x0e,{hidden}x0e]": (3, hidden)}
    found |= {f"layer_{i} {hidden}x0e": (hidden, hidden) for i in range(layers)}
    return found | {f"out[{hidden}x0e,2x0e]": (hidden, 2)}


def apply(params, x):
    """Layers in the order of their names."""
    for name in sorted(params):
        x = jnp.tanh(x @ params[name])
    return x


@pytest.mark.parametrize("with_function", [False, True])
def test_sizes_in_names_are_no_new_layers(with_function):
    widths = dw.trace(apply, shaped(**names(8, 2)), X)
    options = {"target_apply": apply} if with_function else {}
    with pytest.raises(ValueError, match="cannot plan") as error:
        dw.plan(widths, target=shaped(**names(16, 2)), **options)
    lines = str(error.value).splitlines()[1:]
    assert len(lines) == 5 and "layers" not in str(error.value)
    assert "in[3x0e,8x0e]: the name carries sizes, and in the target it seems to be" in lines[0]
    assert "let target_apply= rename them back" in lines[-1]


def test_the_way_out_is_open():
    rng = np.random.default_rng(0)
    old = {name: rng.normal(size=shape) for name, shape in names(8, 2).items()}
    there = dict(zip(names(16, 2), names(8, 2), strict=True))

    def renamed(params, x):
        return apply({new: params[name] for new, name in there.items()}, x)

    target = shaped(**{there[name]: shape for name, shape in names(16, 2).items()})
    widths = dw.trace(apply, old, X)
    growth = dw.plan(widths, target=target, target_apply=renamed)
    grown = dw.grow(old, growth, key=jax.random.key(0))
    np.testing.assert_allclose(renamed(grown, X), apply(old, X), rtol=1e-12)


def test_numbers_of_layers_are_no_sizes():
    """A deeper model: all names are there, and more."""
    widths = dw.trace(apply, shaped(**names(8, 2)), X)
    with pytest.raises(ValueError, match="if the larger model has another function"):
        dw.plan(widths, target=shaped(**names(8, 3)))


def test_numbers_of_blocks_are_no_sizes():
    """The second block of channels becomes the third block of the deeper network."""
    small, large, x = ResNet((1, 1)), ResNet((2, 1)), jnp.ones((2, 8, 8, 2))
    widths = dw.trace(small.apply, shapes_of(small, x), x)
    growth = dw.plan(widths, target=shapes_of(large, x), target_apply=large.apply)
    new = growth.edits["params/Bottleneck_2/Conv_0/kernel"]
    assert new.source == "params/Bottleneck_1/Conv_0/kernel" and not new.changes
