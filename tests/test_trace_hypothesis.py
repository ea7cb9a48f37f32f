"""Random networks, grown at random: every width must grow exactly, or be refused with a reason."""

from typing import Any

import hypothesis
import jax
import numpy as np
import pytest
from networks import fill
from random_networks import REFUSED, Spec, growths

import dogwood_jax as dw

# Groups are silenced after the second layer, units within groups by it; gradients produce both.
SILENCED_IN_TWO_PLACES = Spec(("grouped", "conv_concat"), ("cond",), False, None, False, True)
# A mask that is drawn for each example is the same for all units.
DRAWN_FOR_EACH_EXAMPLE = Spec((), ("weight_norm", "dropped_path"), False, None, False, False)


@hypothesis.given(growths())
@hypothesis.example((SILENCED_IN_TWO_PLACES, [2, 3, 2, 2, 2], [3, 3, 3, 2, 2], True))
@hypothesis.example((DRAWN_FOR_EACH_EXAMPLE, [2, 2], [3, 2], False))
@hypothesis.settings(max_examples=10)
@pytest.mark.long
def test_random_networks_grow_exactly(case: tuple[Spec, list[int], list[int], bool]) -> None:
    spec, sizes, larger, from_key = case
    small, big = spec.shapes(sizes), spec.shapes(larger)
    hypothesis.assume(sum(np.prod(leaf.shape) for leaf in big.values()) < 20_000)
    widths = dw.trace(spec.apply(sizes), small, spec.input)
    try:
        growth = dw.plan(widths, target=big)
        if any("not show" in note for note in growth.notes):
            growth = dw.plan(widths, target=big, target_apply=spec.apply(larger))
    except ValueError as error:
        # The shapes may not say which of two factors has grown; reshapes lose dimensions of size 1;
        # gradients contract activations, and it is not always seen that one of these is zero.
        if not (REFUSED.keys() & {*spec.flat} or spec.gradient):
            assert "the shapes do not say" in str(error) or 1 in sizes, f"{error}\n{widths}"
        hypothesis.event("refused")
        return
    if any("another size draws others" in note for note in growth.notes):
        hypothesis.event("another mask")
        return
    found = [growth]
    try:
        copies = dw.strategies.replicate(split="uneven")
        grows = {change.width: change.new for change in growth.changes}
        found.append(dw.plan(widths, grows, target=big, strategy=copies))
    except ValueError as error:
        assert "something else" in str(error)

    fresh = {"key": jax.random.key(1)} if from_key else {"fresh": fill(big, 2)}

    @jax.jit
    def run(variables: Any, fresh: Any, x: Any) -> Any:
        grown = [dw.grow(variables, growth, **fresh) for growth in found]
        old, *new = (
            spec.outputs(spec.apply(n)(v, x))
            for n, v in ((sizes, variables), *((larger, v) for v in grown))
        )
        return old, new

    olds, news = run(fill(small, 1), fresh, spec.input)
    hypothesis.event("grown")
    for growth, outputs in zip(found, news, strict=True):
        for new, old in zip(outputs, olds, strict=True):
            np.testing.assert_allclose(
                new,
                old,
                rtol=0,
                atol=1e-12 * np.max(np.abs(old)),
                err_msg=f"{growth!r}\n{widths}",
            )
