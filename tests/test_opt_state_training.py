"""Training goes on after growing, with Adam at its full step count."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import dogwood_jax as dw
from dogwood_jax import mnist, training

RATE = 1e-3
TX = optax.adam(RATE)
NEW = [("hidden", "kernel", np.s_[:, 32:]), ("hidden", "bias", np.s_[32:])]
NEW_OUTGOING = ("digits", "kernel", np.s_[32:])


def apply(params, images):
    x = images.reshape(len(images), -1)
    for name in ("hidden", "inserted"):
        if layer := params.get(name):
            x = jax.nn.relu(x @ layer["kernel"] + layer["bias"][None])
    return x @ params["digits"]["kernel"] + params["digits"]["bias"][None]


def new_network(key, units):
    def layer(key, n_in, n_out):
        kernel = dw.strategies.glorot(key, (n_in, n_out), jnp.float32)
        return {"kernel": kernel, "bias": jnp.zeros(n_out, jnp.float32)}

    keys = jax.random.split(key)
    return {"hidden": layer(keys[0], 784, units), "digits": layer(keys[1], units, 10)}


class Run:
    """A network in the middle of its training: 3,130 steps with Adam."""

    def __init__(self):
        digits = mnist.load("subset")
        self.images = training.scale_uint8(jnp.asarray(digits.train_images))
        self.labels = jnp.asarray(digits.train_labels)
        run = training.fit(
            apply,
            new_network(jax.random.key(0), 32),
            TX,
            (self.images, self.labels),
            epochs=10,
            batch_size=32,
            key=jax.random.key(1),
            progress=False,
        )
        self.params, self.state = run.variables, run.opt_state
        widths = dw.trace(apply, self.params, self.images[:1])
        self.growth = dw.plan(widths, {"hidden": 128})
        self.wide = dw.grow(self.params, self.growth, key=jax.random.key(2))
        self.before = float(self.loss(self.params, slice(2000)))
        self._step = jax.jit(self._take_step, static_argnums=0)

    def loss(self, params, samples):
        outputs = apply(params, self.images[samples])
        losses = optax.softmax_cross_entropy_with_integer_labels(outputs, self.labels[samples])
        return losses.mean()

    def _take_step(self, tx, params, state, batch):
        grads = jax.grad(self.loss)(params, batch)
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        return params, state, updates, self.loss(params, slice(2000))

    def train(self, params, state, seed, steps=20, tx=TX):
        """Returns the loss on 2,000 images after each of the next steps, and the updates."""
        order = np.random.default_rng(seed).permutation(len(self.images))
        losses, updates = [], []
        for batch in order[: steps * 32].reshape(steps, 32):
            params, state, update, loss = self._step(tx, params, state, batch)
            losses.append(float(loss))
            updates.append(update)
        return losses, updates

    def losses(self, params, state, steps=20, tx=TX):
        """Returns the losses of the next steps, for five orders of the batches."""
        return np.array([self.train(params, state, seed, steps, tx)[0] for seed in range(5)])


@pytest.fixture(scope="module")
def run():
    return Run()


def largest(updates, places):
    return [
        max(float(abs(update[layer][name][new]).max()) / RATE for update in updates)
        for layer, name, new in places
    ]


@pytest.mark.long
def test_the_loss_stays_within_the_spread_of_the_run_that_did_not_grow(run):
    ungrown = run.losses(run.params, run.state)
    spread = max(ungrown.max(), run.before) - min(ungrown.min(), run.before)
    state = dw.grow_opt_state(run.state, run.growth, TX, second_moment="mean")
    grown = run.losses(run.wide, state)
    assert grown.max() <= run.before + spread
    # A new optimizer takes steps that the loss shows.
    assert run.losses(run.wide, TX.init(run.wide)).max() > run.before + spread


@pytest.mark.long
def test_the_loss_stays_within_the_spread_with_an_optimizer_that_can_grow(run):
    ungrown = run.losses(run.params, run.state, steps=50)
    spread = max(ungrown.max(), run.before) - min(ungrown.min(), run.before)
    tx = dw.growable(TX)
    state = dw.grow_opt_state(run.state, run.growth, tx)
    grown = run.losses(run.wide, state, steps=50, tx=tx)
    assert grown.max() <= run.before + spread
    _, updates = run.train(run.wide, state, seed=0, steps=10, tx=tx)
    for found in largest(updates, [*NEW, NEW_OUTGOING]):
        assert 0.8 <= found <= 1.5


@pytest.mark.long
def test_an_inserted_layer_begins_with_small_steps(run):
    widths = dw.trace(apply, run.params, run.images[:1])
    layer = {"kernel": jnp.zeros((32, 32), jnp.float32), "bias": jnp.zeros(32, jnp.float32)}
    growth = dw.plan(widths, target={**run.params, "inserted": layer}, target_apply=apply)
    deeper = dw.grow(run.params, growth)
    state = dw.grow_opt_state(run.state, growth, TX, second_moment="mean")
    ungrown = run.losses(run.params, run.state)
    spread = max(ungrown.max(), run.before) - min(ungrown.min(), run.before)
    assert run.losses(deeper, state).max() <= run.before + spread
    _, updates = run.train(deeper, state, seed=0, steps=10)
    assert max(largest(updates, [("inserted", name, np.s_[:]) for name in layer])) <= 1.5


@pytest.mark.long
@pytest.mark.parametrize("second_moment, low, high", [("mean", 0.0, 1.5), ("zeros", 3.0, 6.7)])
def test_the_first_ten_updates_of_new_entries(run, second_moment, low, high):
    state = dw.grow_opt_state(run.state, run.growth, TX, second_moment=second_moment)
    _, updates = run.train(run.wide, state, seed=0, steps=10)
    for found in largest(updates, [*NEW, NEW_OUTGOING]):
        assert low <= found <= high
    # Incoming weights have no gradient until there are outgoing ones.
    assert largest(updates[:1], NEW) == [0, 0]
    assert largest(updates[:1], [NEW_OUTGOING])[0] > 0


@pytest.mark.parametrize("second_moment", ["mean", "zeros"])
def test_updates_under_a_steady_gradient(second_moment):
    """The moments have converged to a gradient of one; new entries get the same gradient."""
    params = new_network(jax.random.key(0), 4)
    growth = dw.plan(dw.chain(params, ("hidden", "digits")), {"hidden": 6})
    steady = jax.tree.map(jnp.ones_like, TX.init(params))
    steady = (steady[0]._replace(count=jnp.array(100_000, jnp.int32)), *steady[1:])
    wide = jax.jit(dw.grow)(params, growth, key=jax.random.key(1))
    state = dw.grow_opt_state(steady, growth, TX, second_moment=second_moment)
    assert int(state[0].count) == 100_000
    found, update = [], jax.jit(TX.update)
    for _ in range(20):
        updates, state = update(jax.tree.map(jnp.ones_like, wide), state)
        np.testing.assert_allclose(updates["hidden"]["kernel"][:, :4], -RATE, rtol=1e-5)
        new = updates["hidden"]["kernel"][:, 4:], updates["digits"]["kernel"][4:]
        found.append([-float(array.mean()) / RATE for array in new])
    steps = np.arange(1, 21)[:, None]
    first = 1 - 0.9**steps
    second = 1.0 if second_moment == "mean" else 1 - 0.999**steps
    np.testing.assert_allclose(found, np.broadcast_to(first / second**0.5, (20, 2)), rtol=1e-4)
    if second_moment == "zeros":
        assert np.max(found) == pytest.approx(6.6, abs=0.05)
        assert np.argmax(np.array(found)[:, 0]) == 11  # the twelfth
