"""Growing every width of every network of the table leaves its function as it was."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from networks import (
    Expected,
    Model,
    Network,
    build_larger,
    cast,
    cut,
    data,
    f64,
    fill,
    larger_inputs,
    load,
    new_size,
)
from tiers import in_tiers, long, some

import dogwood_jax as dw
from dogwood_jax._base.trees import leaves_by_path

NETWORKS = load()


@dataclasses.dataclass(frozen=True)
class Old:
    """A network before it grows."""

    network: Network
    model: Model
    widths: dw.Widths
    variables: Any

    @functools.cached_property
    def outputs_and_gradient(self) -> tuple[list[Any], list[Any]]:
        """Compiled for the tests that compare them alone, because compiling takes long."""
        run = jax.jit(functools.partial(value_and_gradient, self.model.apply))
        outputs, gradient = run(self.variables, self.model.inputs)
        assert all(np.isfinite(x).all() for x in (*outputs, *gradient))
        assert all(np.ptp(x) for x in outputs if np.size(x) > 1), "constants show nothing"
        return outputs, gradient

    @property
    def outputs(self) -> list[Any]:
        return self.outputs_and_gradient[0]

    @property
    def gradient(self) -> list[Any]:
        return self.outputs_and_gradient[1]


@functools.cache
def old(name: str) -> Old:
    network = NETWORKS[name]
    model = network.build()
    variables = fill(model.shapes, 1)
    widths = dw.trace(model.apply, model.shapes, *model.inputs)
    return Old(network, model, widths, variables)


def value_and_gradient(
    apply: Callable[..., Any], variables: Any, inputs: Any, shapes: Any = None
) -> tuple[list[Any], list[Any]]:
    """Returns the outputs, cut to these shapes, and the gradient of a projection of them."""
    numbers, rebuild = floats(variables)

    def outputs(numbers: list[Any]) -> list[Any]:
        found = jax.tree.leaves(apply(rebuild(numbers), *inputs))
        return found if shapes is None else cut(found, shapes)

    results, pull = jax.vjp(outputs, numbers)
    # Cosines of the indices are as good as random numbers.
    cotangents = [
        jnp.cos(1 + 0.7 * jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape)
        if jnp.issubdtype(x.dtype, jnp.inexact)
        else np.zeros(x.shape, jax.dtypes.float0)
        for x in results
    ]
    return results, pull(cotangents)[0]


def floats(variables: Any) -> tuple[list[Any], Callable[[list[Any]], Any]]:
    """Returns the floating leaves, and a function that puts others in their place."""
    leaves, structure = jax.tree.flatten(variables)
    inexact = [hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.inexact) for x in leaves]

    def rebuild(numbers: list[Any]) -> Any:
        rest = iter(numbers)
        mixed = [next(rest) if is_float else x for x, is_float in zip(leaves, inexact)]
        return jax.tree.unflatten(structure, mixed)

    return [x for x, is_float in zip(leaves, inexact) if is_float], rebuild


def assert_same_function(before: Old, big: Model, growth: dw.Growth, key: Any) -> None:
    """Checks values and the adjoint: the growth's transpose gives gradients of the old variables.

    If a growth preserves the function for all variables, the gradient of the grown network, taken
    back through the growth, is the old gradient.
    """
    shapes = [x.shape for x in before.outputs]

    @jax.jit
    def run(variables: Any, inputs: Any, key: Any) -> Any:
        old, rebuild = floats(variables)
        new, pull = jax.vjp(lambda old: floats(dw.grow(rebuild(old), growth, key=key))[0], old)
        grown = floats(dw.grow(variables, growth, key=key))[1](new)
        outputs, gradient = value_and_gradient(big.apply, grown, inputs, shapes)
        return outputs, gradient, pull(gradient)[0]

    # A new relu unit may be silent for the few inputs that there are, but not in every draw.
    gradients = []
    inputs = larger_inputs(before.model, big)
    scale = max(np.max(np.abs(g), initial=0) for g in before.gradient)
    for draw in jax.random.split(key):
        outputs, new_gradient, gradient = run(before.variables, inputs, draw)
        for new, reference in zip(outputs, before.outputs, strict=True):
            assert_close(new, reference, 1e-12, np.max(np.abs(reference), initial=0))
        for new, reference in zip(gradient, before.gradient, strict=True):
            assert_close(new, reference, 1e-10, scale)
        gradients.append(leaves_by_path(floats(big.shapes)[1](new_gradient)))
    for width in (growth.widths[name] for name in growth.change):
        if not width.interface and any(o.role != "incoming" for o in width.occurrences):
            noted = any("never learn" in note for note in width.notes)
            assert any(learns(growth, width.name, g) for g in gradients) != noted, width


def learns(growth: dw.Growth, width: str, gradient: Mapping[str, Any]) -> bool:
    """Whether any of the zeros that silence a width's new units towards old ones has a gradient."""
    sizes = {change.width: change.new for change in growth.changes}

    def among(layout: dw.typing.Layout, new: bool) -> np.ndarray:
        """Which entries of an axis are old units', or the new units' that are outgoing there."""
        if isinstance(layout, dw.typing.Units):
            is_new = np.arange(sizes.get(layout.width, layout.size)) >= layout.size
            outgoing = layout.width == width and layout.role != "incoming"
            return is_new & outgoing if new else ~is_new
        if isinstance(layout, dw.typing.Concat):
            return np.concatenate([among(part, new) for part in layout.parts])
        return box(layout.parts, new).ravel()

    def box(layouts: Sequence[dw.typing.Layout], new: bool) -> np.ndarray:
        """The same of axes together: old units on all axes, or new ones on just one of them."""
        boxes = [
            functools.reduce(
                np.logical_and.outer,
                [among(layout, new and i == j) for j, layout in enumerate(layouts)],
            )
            for i in range(len(layouts) if new else 1)
        ]
        return functools.reduce(np.logical_or, boxes)

    return any(
        np.any(np.asarray(gradient[leaf.path])[box(leaf.axes, new=True)])
        for leaf in growth.widths.leaves
        if leaf.axes and leaf.path in gradient
    )


def assert_close(new: Any, reference: Any, tolerance: float, scale: Any) -> None:
    assert new.shape == reference.shape
    if jnp.issubdtype(new.dtype, jnp.inexact):
        np.testing.assert_allclose(new, reference, rtol=0, atol=tolerance * max(scale, 1e-3))
    else:
        np.testing.assert_array_equal(new, reference)


def can_grow(width: Expected) -> bool:
    return bool(width.by) and not width.fixed and not width.changes


def growable(network: Network) -> dict[str, dict[str, int]]:
    """New sizes of the widths that each argument of a builder makes larger."""
    found: dict[str, dict[str, int]] = {}
    for name, width in network.widths.items():
        if width.by and all(can_grow(w) for w in network.widths.values() if w.by == width.by):
            found.setdefault(width.by, {})[name] = new_size(width.size)
    return found


def hidden(network: Network) -> dict[str, dict[str, int]]:
    return {
        by: sizes
        for by, sizes in growable(network).items()
        if not any(network.widths[width].interface for width in sizes)
    }


def copyable(network: Network) -> dict[str, dict[str, int]]:
    return {
        by: sizes
        for by, sizes in hidden(network).items()
        if not any(network.widths[width].copies for width in sizes)
    }


ALONE = [(name, by) for name, network in NETWORKS.items() for by in hidden(network)]
# A larger width draws another dropout mask, which the growth says in its notes.
DRAWS_MASKS = ("encoder_decoder", "hidden")
# Their gradients are computed in float32 in between, whatever the dtype.
SINGLE_PRECISION = {"library_attention"}


# One network of each kind. In the long tier, others of each kind of layer follow.
SHORT = ("mlp", "multi_query")
LONG = (
    *("tied_embedding", "conv_1d", "stacked_layers", "equinox_mlp", "lstm", "complex_and_fourier"),
)


def of_few(names: Iterable[str]) -> list[Any]:
    """Returns the cases of a few networks, most of them of the long tier."""
    return in_tiers([name for name in names if name in {*SHORT, *LONG}], short=SHORT)


@pytest.mark.parametrize(
    ("name", "by"),
    [case if case[0] in SHORT else long(*case) for case in ALONE if case[0] in {*SHORT, *LONG}],
)
def test_a_target_tells_which_width_grows(name: str, by: str) -> None:
    network, widths = NETWORKS[name], old(name).widths
    sizes = growable(network)[by]
    target = build_larger(network, by).shapes
    growth = dw.plan(widths, sizes, target=target)  # which checks every shape
    assert {change.width: change.new for change in growth.changes} == sizes
    try:
        found = dw.plan(widths, target=target, check=False)  # which widths, and how
    except ValueError as error:
        assert "the shapes do not say" in str(error)
    else:
        assert found.changes == growth.changes


def test_widths_that_need_different_strategies_grow_together() -> None:
    def apply(groups: int) -> Any:
        def run(params: Any, x: Any) -> Any:
            y = (x @ params["up"]).reshape(x.shape[0], groups, -1)
            y = y / jnp.linalg.norm(y, axis=-1, keepdims=True)
            return y.reshape(x.shape[0], -1) @ params["down"]

        return run

    small, x = {"up": f64(4, 6), "down": f64(6, 2)}, data(3, 4)
    big = {"up": f64(4, 15), "down": f64(15, 2)}
    params, widths = fill(small, 1), dw.trace(apply(2), small, x)
    growth = dw.plan(widths, target=big, target_apply=apply(3))
    grown = dw.grow(params, growth, key=jax.random.key(0))
    np.testing.assert_allclose(apply(3)(grown, x), apply(2)(params, x), rtol=1e-12)
    with pytest.raises(ValueError, match=r"'up\[groups\]' \(2 units\), 'up\[group_size"):
        dw.plan(widths, {"up": 8})


def test_an_array_names_no_width_that_is_a_factor_of_its_axis() -> None:
    def apply(params: Any, x: Any) -> Any:
        y = (x @ params["up"]).reshape(x.shape[0], 2, -1)[:, ::-1]
        return y.reshape(x.shape[0], -1) @ params["down"]

    widths = dw.trace(apply, {"up": f64(4, 6), "down": f64(6, 2)}, data(3, 4))
    with pytest.raises(
        ValueError, match=r"'up\[1.0\]' .*'up\[1.1\]' \(3 units\): name one of these"
    ):
        dw.plan(widths, {"up": 8})
    assert dw.plan(widths, {"up[1.1]": 4}).sizes["up[1.1]"] == 4


def test_an_array_names_no_width_where_its_outputs_may_grow_too() -> None:
    def apply(params: Any, x: Any) -> Any:
        return jax.nn.relu(x @ params["up"]["w"]) @ params["down"]["w"]

    shapes = {"up": {"w": f64(4, 6)}, "down": {"w": f64(6, 2)}}
    widths = dw.trace(apply, shapes, data(3, 4))
    assert dw.plan(widths, {"down/w": 8}).sizes["up"] == 8
    with pytest.raises(
        ValueError, match=r"'down/w' is an array of the widths 'up' \(6 units\), 'down'"
    ):
        dw.plan(widths, {"down/w": 8}, interface=True)


def test_a_function_that_reads_none_of_its_variables_is_refused() -> None:
    params = fill({"up": f64(4, 6)}, 1)
    with pytest.raises(ValueError, match="apply must use the variables that it is called with"):
        dw.trace(lambda _, x: x @ params["up"], params, data(3, 4))
    assert dw.trace(lambda params, _: params, params, data(3, 4))


@functools.cache
def grown_at_once(name: str) -> tuple[Model, dw.Growth]:
    """Returns the larger model, all of whose widths have grown, and the growth to it."""
    grows = {by: s for by, s in growable(NETWORKS[name]).items() if (name, by) != DRAWS_MASKS}
    big = build_larger(NETWORKS[name], *grows)
    sizes = {width: size for by in grows.values() for width, size in by.items()}
    return big, dw.plan(old(name).widths, sizes, target=big.shapes, interface=True)


GROWING = [name for name in NETWORKS if {*growable(NETWORKS[name])} - {DRAWS_MASKS[1]}]


# That a growth of all widths is accepted, test_growth_is_data sees of each network, and that each
# width grows alone, tests/benchmarks/state.py.
@pytest.mark.parametrize("name", of_few(GROWING))
def test_all_widths_grow_at_once(name: str) -> None:
    assert_same_function(old(name), *grown_at_once(name), jax.random.key(3))


COPYABLE = [name for name in NETWORKS if copyable(NETWORKS[name])]


@pytest.mark.parametrize("name", of_few(COPYABLE))
def test_copies_and_zeros_preserve_and_gradients_follow_the_adjoint(name: str) -> None:
    before = old(name)
    grows = {by: s for by, s in copyable(before.network).items() if (name, by) != DRAWS_MASKS}
    big = build_larger(before.network, *grows)
    sizes = {width: size for by in grows.values() for width, size in by.items()}
    shapes = [x.shape for x in before.outputs]
    run = jax.jit(functools.partial(value_and_gradient, big.apply, shapes=shapes))
    # Outputs that are new variables grow along; of these, the adjoint knows nothing.
    grown_outputs = jax.tree.leaves(jax.eval_shape(big.apply, big.shapes, *big.inputs))
    same_outputs = [x.shape for x in grown_outputs] == shapes
    paths = float_paths(before.variables)
    gradient = dict(zip(paths, before.gradient, strict=True))
    scale = max(np.max(np.abs(g), initial=0) for g in before.gradient)
    tolerance = 1e-6 if name in SINGLE_PRECISION else 1e-10

    def outputs_and_gradient(growth: dw.Growth) -> dict[str, Any]:
        grown = dw.grow(before.variables, growth, fresh=fill(big.shapes, 2))
        outputs, found = run(grown, larger_inputs(before.model, big))
        for new, reference in zip(outputs, before.outputs, strict=True):
            assert_close(new, reference, 1e-12, np.max(np.abs(reference), initial=0))
        return dict(zip(paths, found, strict=True))

    strategy = dw.strategies.replicate(split="uneven")
    growth = dw.plan(before.widths, sizes, target=big.shapes, strategy=strategy)
    found = outputs_and_gradient(growth)
    state = dw.grow_opt_state(optax.TraceState(gradient), growth, optax.trace(decay=0.9))
    for path, new in found.items() if same_outputs else ():
        assert_close(new, state.trace[path], tolerance, scale)

    grown = dw.grow(before.variables, dw.plan(before.widths, sizes, strategy=strategy))
    merged = dw.merge_symmetric(grown, growth.after, list(sizes))
    for new, reference in zip(*map(jax.tree.leaves, (merged, before.variables)), strict=True):
        if jnp.issubdtype(new.dtype, jnp.inexact):
            assert_close(new, reference, 1e-12, np.max(np.abs(reference), initial=0))

    try:
        growth = dw.plan(before.widths, sizes, strategy=dw.strategies.zeros())
    except ValueError as error:
        assert "is not finite" in str(error)
    else:
        found = outputs_and_gradient(growth)
        keep = {width: range(before.widths[width].size) for width in sizes}
        others = {path: np.zeros(shape, int) for path, shape in growth.shapes.items()}
        kept = dw.grow(others | found, dw.plan(growth.after, keep=keep))
        for path, reference in gradient.items():
            assert_close(kept[path], reference, tolerance, scale)


def float_paths(variables: Any) -> list[str]:
    return [
        path
        for path, leaf in leaves_by_path(variables).items()
        if hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.inexact)
    ]


# Whose plans take long.
HEAVY = (
    *("lstm", "gru", "conv_1d", "experts_by_ragged_dot", "encoder_decoder", "cnn_training", "pinn"),
    *("fused_qkv", "equinox_conv_attention", "fused_gates", "decoding", "haiku_cnn", "branches"),
    *(
        "haiku_attention",
        "squeeze_excite",
        "densenet",
        "vit",
        "resnet",
        "cnn",
        "unet",
        "groupnorm",
        "nnx_cnn",
    ),
)


@pytest.mark.parametrize("name", some(GROWING[::2], 2, long=HEAVY))
def test_growth_is_data(name: str) -> None:
    widths, growth = old(name).widths, dataclasses.replace(grown_at_once(name)[1], structure=None)
    assert dw.from_json(dw.to_json(widths)) == widths
    assert dw.from_json(dw.to_json(growth)) == growth


@pytest.mark.parametrize("name", of_few(GROWING))
def test_narrowing_undoes_a_growth(name: str) -> None:
    before, (_, growth) = old(name), grown_at_once(name)
    grown = dw.grow(before.variables, growth, key=jax.random.key(4))
    keep = {width: range(before.widths[width].size) for width in growth.sizes}
    narrowed = dw.narrow(grown, growth.after, keep, interface=True)
    assert_equal(narrowed, before.variables)

    # Casting before growing or after it makes no difference, and growing with what has grown
    # already gives the same again: nothing is computed.
    half = dw.grow(cast(before.variables, jnp.bfloat16), growth, fresh=cast(grown, jnp.bfloat16))
    assert_equal(half, cast(grown, jnp.bfloat16))


def assert_equal(found: Any, expected: Any) -> None:
    for new, reference in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        if hasattr(new, "dtype"):
            assert new.dtype == reference.dtype
            if not jnp.issubdtype(new.dtype, jax.dtypes.prng_key):
                new, reference = np.asarray(new), np.asarray(reference)
            assert (new == reference).all()


# Whose refusals take seconds.
COSTLY = ("vit", "cnn_training", "groupnorm", "vae", "fused_qkv", "library_attention", "pinn")


@pytest.mark.parametrize("name", some([*NETWORKS][::2], 3, long=COSTLY))
def test_what_cannot_grow_is_refused_with_the_reason(name: str) -> None:
    network, widths = NETWORKS[name], old(name).widths
    for width, expected in network.widths.items():
        size = new_size(expected.size)
        if expected.fixed and width in widths:  # names of axes of size 1 depend on JAX's version
            message = refusal(widths, {width: size})
            assert f"- {width}: " in message and expected.fixed in message
            assert widths[width].occurrences[0].path in message
        if expected.interface and not expected.fixed:
            with pytest.raises(ValueError, match="pass interface=True"):
                dw.plan(widths, {width: size})
        if expected.copies:
            copies = {"strategy": dw.strategies.replicate()}
            message = refusal(widths, {width: size}, **copies)
            assert not message or "something else" in message
    for by in set(network.sizes) - growable(network).keys():
        if any(w.by == by for w in network.widths.values()):
            target = build_larger(network, by).shapes
            refusal(widths, target=target)


def refusal(widths: dw.Widths, *asked: Any, **target: Any) -> str:
    """Why a growth is refused, or nothing if the function in the new sizes has shown it."""
    try:
        growth = dw.plan(widths, *asked, interface=True, **target)
    except ValueError as error:
        assert "cannot plan this growth" in str(error)
        return str(error)
    assert growth.evidence.samples
    return ""


def test_initializers_are_asked_for_matrices():
    """They tell fan-in and fan-out by the last two axes, whatever axes the array has."""

    def apply(params, x):
        x = jnp.tanh(jnp.einsum("ntd,hud->nthu", x, params["heads"]))
        x = jnp.einsum("nthu,huo->nto", x, params["joined"])
        x, _ = jax.lax.scan(lambda x, kernel: (jnp.tanh(x @ kernel), None), x, params["stack"])
        layout = ("NWC", "WIO", "NWC")
        x = jax.lax.conv_general_dilated(x, params["conv"], (1,), "SAME", dimension_numbers=layout)
        return jnp.tanh(x).sum(1) @ params["last"]

    shapes = {"heads": (2, 3, 5), "joined": (2, 3, 4), "stack": (7, 4, 4), "conv": (3, 4, 6)}
    params = {name: jnp.ones(shape) for name, shape in (shapes | {"last": (6, 2)}).items()}
    asked = []

    def init(key, shape, dtype):
        asked.append(shape)
        return jnp.arange(1.0, 1 + np.prod(shape), dtype=dtype).reshape(shape)

    widths = dw.trace(apply, params, jnp.ones((1, 2, 5)))
    strategy = dw.strategies.zero_outgoing(init)
    growth = dw.plan(widths, {"heads[0]": 4, "joined": 8, "conv": 9}, strategy=strategy)
    wide = dw.grow(params, growth, key=jax.random.key(0))
    assert set(asked) == {(5, 4 * 3), (4 * 3, 8), (8, 8), (3, 8, 9)}  # new rows of "last" are zeros
    expected = np.arange(1.0, 1 + 5 * 12).reshape(5, 4, 3).transpose(1, 2, 0)
    np.testing.assert_array_equal(wide["heads"][2:], expected[2:])
