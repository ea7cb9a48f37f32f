"""Plans with the larger model's own program: products, constants and layers, all in one call."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import dogwood_jax as dw


class Block(nn.Module):
    heads: int
    hidden: int
    epsilon: float

    @nn.compact
    def __call__(self, x):
        norm = lambda: nn.LayerNorm(epsilon=self.epsilon, param_dtype=jnp.float64)  # noqa: E731
        dense = lambda units: nn.Dense(units, param_dtype=jnp.float64)  # noqa: E731
        y = norm()(x)
        attend = nn.MultiHeadDotProductAttention(
            self.heads, qkv_features=self.heads * 3, param_dtype=jnp.float64
        )
        x = x + attend(y, y)
        return x + dense(x.shape[-1])(nn.gelu(dense(self.hidden)(norm()(x))))


class Transformer(nn.Module):
    width: int = 6
    heads: int = 2
    hidden: int = 8
    blocks: int = 2
    epsilon: float = 1e-3

    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(11, self.width, param_dtype=jnp.float64)(tokens)
        for i in range(self.blocks):
            x = Block(self.heads, self.hidden, self.epsilon, name=f"block_{i}")(x)
        x = nn.LayerNorm(epsilon=self.epsilon, param_dtype=jnp.float64)(x)
        return nn.Dense(11, param_dtype=jnp.float64)(x)


TOKENS = jnp.arange(10).reshape(2, 5)
SMALL = Transformer()


@pytest.fixture(scope="module")
def small():
    variables = SMALL.init(jax.random.key(0), TOKENS)
    leaves, structure = jax.tree.flatten(variables)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    moved = [a + 0.1 * jax.random.normal(k, a.shape) for a, k in zip(leaves, keys, strict=True)]
    variables = jax.tree.unflatten(structure, moved)
    return variables, dw.trace(SMALL.apply, variables, TOKENS)


@pytest.mark.parametrize(
    "larger",
    [
        Transformer(heads=3, hidden=13),
        Transformer(width=10, epsilon=1e-3 * 6 / 10),
        Transformer(blocks=3),
        Transformer(width=10, heads=3, hidden=13, blocks=3, epsilon=1e-3 * 6 / 10),
    ],
    ids=["wider", "a wider stream", "deeper", "all at once"],
)
def test_one_call_plans_wider_and_deeper(small, larger):
    variables, widths = small
    fresh = larger.init(jax.random.key(2), TOKENS)
    growth = dw.plan(widths, target=jax.eval_shape(lambda: fresh), target_apply=larger.apply)
    assert growth.notes == ()  # all that there was to mind has been seen to be so
    assert dw.from_json(dw.to_json(growth)) == growth
    for grown in (
        dw.grow(variables, growth, key=jax.random.key(3)),
        dw.grow(variables, growth, fresh=fresh),
    ):
        assert jax.tree.map(jnp.shape, grown) == jax.tree.map(jnp.shape, fresh)
        difference = dw.compare(SMALL.apply, variables, larger.apply, grown, TOKENS)
        assert difference.relative < 1e-12


def test_the_optimizer_follows_into_a_deeper_network(small):
    variables, widths = small
    larger = Transformer(heads=3, hidden=13, blocks=3)
    target = jax.eval_shape(larger.init, jax.random.key(2), TOKENS)
    growth = dw.plan(widths, target=target, target_apply=larger.apply)
    tx = optax.adam(1e-3)
    _, state = tx.update(variables["params"], tx.init(variables["params"]), variables["params"])
    grown = dw.grow_opt_state(state, growth, tx)
    wanted = jax.eval_shape(tx.init, target["params"])
    assert jax.tree.map(jnp.shape, grown) == jax.tree.map(jnp.shape, wanted)
    name = "MultiHeadDotProductAttention_0"
    old, new = (s[0].mu["block_1"][name]["out"]["kernel"] for s in (state, grown))
    np.testing.assert_array_equal(new[:2], old)
    assert not any(m.any() for m in jax.tree.leaves(grown[0].mu["block_2"]))
    assert grown[0].count == 1


def test_a_wrong_epsilon_is_refused(small):
    variables, widths = small
    larger = Transformer(width=10)
    target = jax.eval_shape(larger.init, jax.random.key(2), TOKENS)
    with pytest.raises(ValueError, match=r"epsilon of the norm .* must be 0.0006, but it is 0.001"):
        dw.plan(widths, target=target, target_apply=larger.apply)
    (note, *_) = dw.plan(widths, target=target).notes
    assert "must be 0.0006 (and 4 more such constants)" in note


def test_widths_from_elsewhere_cannot_be_compared(small):
    widths = dw.from_json(dw.to_json(small[1]))
    target = jax.eval_shape(SMALL.init, jax.random.key(2), TOKENS)
    with pytest.raises(ValueError, match="trace the network again"):
        dw.plan(widths, target=target, target_apply=SMALL.apply)
