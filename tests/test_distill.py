"""Training on a teacher's predictions."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import dogwood_jax as dw
from dogwood_jax import training

X = np.random.default_rng(0).normal(size=(96, 4))
Y = (X[:, 0] > X[:, 1]).astype(np.int32) + (X[:, 2] > 1)


def apply(params, x):
    return jnp.tanh(x @ params["up"]) @ params["down"]


def drawn(seed, units):
    draw = np.random.default_rng(seed).normal
    return {"up": jnp.asarray(draw(size=(4, units))), "down": jnp.asarray(draw(size=(units, 3)))}


TEACHER = drawn(1, 12)


def distilled(variables=None, **options):
    given = {"teacher": TEACHER, "epochs": 1, "batch_size": 32, "key": jax.random.key(3)}
    variables = drawn(2, 5) if variables is None else variables
    tx = options.pop("tx", optax.sgd(0.1))
    return training.distill(
        options.pop("apply", apply), variables, tx, (X, Y), **given | {"progress": False} | options
    )


def objective(variables, temperature, share, x=X, y=Y):
    """Hinton's objective in NumPy."""
    ours, theirs = (np.asarray(apply(p, x), np.float64) for p in (variables, TEACHER))

    def softmax(logits, t=1.0):
        powers = np.exp(logits / t - np.max(logits / t, -1, keepdims=True))
        return powers / powers.sum(-1, keepdims=True)

    hard = -np.log(softmax(ours)[np.arange(len(y)), y]).mean()
    p, q = softmax(theirs, temperature), softmax(ours, temperature)
    soft = (p * (np.log(p) - np.log(q))).sum(-1).mean()
    return (1 - share) * hard + share * temperature**2 * soft


@pytest.mark.parametrize(("temperature", "share"), [(0.5, 0.3), (2.0, 1.0)])
def test_the_objective_is_that_of_the_paper(temperature, share):
    run = distilled(temperature=temperature, share=share, batch_size=96)
    expected = objective(drawn(2, 5), temperature, share)
    np.testing.assert_allclose(run.history["loss"], expected, rtol=1e-5)
    numeric = jax.jit(jax.grad(lambda p: _smooth(p, temperature, share)))(drawn(2, 5))
    moved = jax.tree.map(lambda new, old: (old - new) / 0.1, run.variables, drawn(2, 5))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-6), moved, numeric
    )


def _smooth(params, t, share):
    ours, theirs = apply(params, X), apply(TEACHER, X)
    hard = -jnp.mean(jax.nn.log_softmax(ours)[np.arange(len(Y)), Y])
    p = jax.nn.softmax(theirs / t)
    soft = jnp.mean(jnp.sum(p * (jnp.log(p) - jax.nn.log_softmax(ours / t)), -1))
    return (1 - share) * hard + share * t**2 * soft


def test_without_a_share_it_is_fit():
    run = distilled(share=0.0, epochs=2)
    fit = training.fit(
        apply, drawn(2, 5), optax.sgd(0.1), (X, Y), epochs=2, batch_size=32,
        key=jax.random.key(3), progress=False,
    )  # fmt: skip
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), *(run[0], fit[0]))
    np.testing.assert_array_equal(run.history["accuracy"], fit.history["accuracy"])


@pytest.mark.long
def test_a_network_heals_after_it_has_lost_units():
    """Labels say nothing here: only what the large network predicts is to be learned."""
    tx = optax.adam(0.02)
    widths = dw.trace(apply, TEACHER, X)
    scores = dw.saliency(TEACHER, widths, None, X, by="activity")
    small, growth = dw.shrink(TEACHER, widths, scores=scores, parameters=0.6)
    state = dw.grow_opt_state(tx.init(TEACHER), growth, tx)
    run = distilled(small, tx=tx, opt_state=state, share=1.0, epochs=30)
    before, after = objective(small, 1.0, 1.0), objective(run.variables, 1.0, 1.0)
    assert after < 0.2 * before
    assert run.variables["up"].shape == small["up"].shape


def test_steps_and_seconds_are_those_of_fit():
    run = distilled(epochs=None, steps=4)
    assert run.history["steps"].tolist() == [3, 4]
    assert distilled(epochs=2, seconds=600).history["steps"].tolist() == [3, 6]


def test_a_teacher_may_be_another_function_and_masks_classes():
    def masked(params, x):
        return apply(params, x).at[:, 2].set(-jnp.inf)

    run = distilled(apply=masked, teacher_apply=masked, share=1.0, epochs=2)
    assert np.isfinite(run.history["loss"]).all()
    other = distilled(teacher_apply=lambda table, x: x[:, :3] * table, teacher=jnp.ones(()))
    assert np.isfinite(other.history["loss"]).all()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"temperature": 0.0}, ValueError, "temperature: expected a positive number, got 0"),
        ({"share": 1.5}, ValueError, "share: expected a number between 0 and 1"),
        ({"share": "half"}, TypeError, "share must be"),
        ({"batch_size": 0, "share": -1}, ValueError, "share(.|\n)*batch_size"),
        ({"teacher": {**TEACHER, "down": jnp.ones((12, 4))}}, ValueError, "logits like those"),
        ({"teacher_apply": 3}, TypeError, "teacher_apply must be"),
        (
            {"epochs": None},
            ValueError,
            "distill cannot start:\\s+epochs: expected epochs=, steps= or",
        ),
    ],
)
def test_wrong_arguments_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        distilled(**options)
