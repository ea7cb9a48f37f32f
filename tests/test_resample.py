"""Images and patches of another size: ``strategies.resample`` and ``strategies.resample_patch``."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from tiers import in_tiers, long

import dogwood_jax as dw
from dogwood_jax.strategies import resample, resample_patch


class Block(nn.Module):
    @nn.compact
    def __call__(self, x):
        y = nn.LayerNorm()(x)
        x = x + nn.MultiHeadDotProductAttention(2)(y, y)
        return x + nn.Dense(x.shape[-1])(nn.gelu(nn.Dense(12)(nn.LayerNorm()(x))))


class ViT(nn.Module):
    """A vision transformer as in big_vision, with a class token that has a position of its own."""

    patch: tuple[int, int] = (4, 4)
    features: int = 8
    layers: int = 1
    class_token: bool = True

    @nn.compact
    def __call__(self, image):
        conv = nn.Conv(
            self.features, self.patch, strides=self.patch, padding="VALID", name="embedding"
        )
        x = conv(image)
        n, rows, columns, features = x.shape
        x = x.reshape(n, rows * columns, features)
        if self.class_token:
            token = self.param("cls", nn.initializers.zeros, (1, 1, features))
            x = jnp.concatenate([jnp.tile(token, (n, 1, 1)), x], axis=1)
        shape = (1, x.shape[1], features)
        x = x + self.param("pos_embedding", nn.initializers.normal(1.0), shape)
        for layer in range(self.layers):
            x = Block(name=f"block_{layer}")(x)
        return nn.Dense(3, name="head")(x[:, 0] if self.class_token else x.mean(1))


def images(rows, columns=None):
    return np.zeros((2, rows, columns or rows, 3))


@functools.cache
def variables_of(model, *sides):
    return jax.jit(model.init)(jax.random.key(sum(sides)), images(*sides))


def shapes_of(model, *sides):
    return jax.eval_shape(model.init, jax.random.key(0), images(*sides))


@functools.cache
def traced(model, *sides):
    return dw.trace(model.apply, shapes_of(model, *sides), images(*sides))


SMALL = ViT()
POSITIONS, PATCHES = {"pos_embedding": resample()}, {"embedding/kernel": resample_patch()}

# Name, the larger model and the sides of its images, and how it is asked for.
LARGER = {
    "image": (ViT(), (24,), {"pos_embedding": resample(grid=(4, 4), to=(6, 6), prefix=1)}),
    "one side": (ViT(), (16, 24), {"pos_embedding": resample(to=(4, 6))}),
    "smaller image": (ViT(), (12,), POSITIONS),
    "patch": (ViT((8, 8)), (32,), PATCHES),
    "smaller patch": (ViT((2, 2)), (16,), POSITIONS | PATCHES),
    "both": (ViT((6, 8)), (30, 40), POSITIONS | PATCHES),
}


def larger(name):
    model, sides, strategy = LARGER[name]
    return model, sides, strategy, shapes_of(model, *sides)


@functools.cache
def planned(name, *, with_function=True):
    model, _, strategy, target = larger(name)
    apply = model.apply if with_function else None
    return dw.plan(traced(SMALL, 16), target=target, target_apply=apply, strategy=strategy)


# Formulas, written a second time: sums over pixels, with loops ------------------------------------


def keys(x):
    """The cubic kernel of Keys with a = -1/2, as its author defines it."""
    x, a = abs(x), -0.5
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0


def triangle(x):
    return max(0.0, 1 - abs(x))


def resized(line, size, kernel, antialias):
    """A line of pixels in another size. Pixels lie in the middle of their part of the line."""
    line = np.asarray(line, float)
    step = len(line) / size
    wide = max(step, 1.0) if antialias else 1.0
    made = []
    for pixel in range(size):
        at = (pixel + 0.5) * step - 0.5
        weights = [kernel((at - other) / wide) for other in range(len(line))]
        made.append(np.tensordot(weights, line, 1) / sum(weights))
    return np.array(made)


def between_corners(line, size):
    """A line whose ends stay, and whose other points are read off straight lines."""
    at = [i * (len(line) - 1) / (size - 1) for i in range(size)]
    columns = np.asarray(line, float).reshape(len(line), -1).T
    made = [np.interp(at, np.arange(len(line)), column) for column in columns]
    return np.array(made).T.reshape(size, *line.shape[1:])


def on_both_axes(array, sizes, along):
    for axis, size in enumerate(sizes):
        array = np.moveaxis(along(np.moveaxis(array, axis, 0), size), 0, axis)
    return array


ALONG = {
    "bicubic": lambda line, size: resized(line, size, keys, antialias=True),
    "bilinear": between_corners,
}
RESIZED = {
    "bilinear": lambda line, size: resized(line, size, triangle, antialias=False),
    "bicubic": lambda line, size: resized(line, size, keys, antialias=True),
}


def positions(array, old, new, method, prefix=1):
    """Positions in a grid of another size."""
    array = np.asarray(array, float)
    grid = array[0, prefix:].reshape(*old, -1)
    made = on_both_axes(grid, new, ALONG[method]).reshape(-1, array.shape[-1])
    return np.concatenate([array[0, :prefix], made])[None]


def patches(kernel, sizes, method):
    """FlexiViT's kernel, by the pseudo-inverse of the whole matrix that resizes a patch."""
    kernel = np.asarray(kernel, float)
    rows, columns = kernel.shape[:2]
    unit = np.eye(rows * columns).reshape(rows, columns, -1)
    matrix = on_both_axes(unit, sizes, RESIZED[method]).reshape(-1, rows * columns)
    # Where one side grows and the other shrinks, singular values are zero but for rounding.
    flat = np.linalg.pinv(matrix.T, rcond=1e-10) @ kernel.reshape(rows * columns, -1)
    return flat.reshape(*sizes, *kernel.shape[2:])


SIZES = [((14, 14), (24, 24)), ((7, 5), (6, 9)), ((4, 4), (2, 2)), ((3, 3), (3, 8))]


@pytest.mark.parametrize("method", ALONG)
@pytest.mark.parametrize(("old", "new"), [*SIZES[1:3], *(long(*s) for s in SIZES[::3])])
def test_positions_are_resized_by_the_formula(old, new, method):
    before, after = np.prod(old), np.prod(new)
    params = {"pos": jax.random.normal(jax.random.key(0), (1, 2 + before, 3), jnp.float64)}
    widths = dw.trace(lambda params, x: x + params["pos"], params, params["pos"])
    target = {"pos": jnp.zeros((1, 2 + after, 3))}
    strategy = {"pos": resample(old, new, prefix=2, method=method)}
    made = dw.grow(params, dw.plan(widths, target=target, strategy=strategy))["pos"]
    np.testing.assert_allclose(made, positions(params["pos"], old, new, method, 2), atol=1e-12)
    grid = params["pos"][0, 2:].reshape(*old, 3)
    if method == "bicubic":
        by_jax = jax.image.resize(grid, (*new, 3), "bicubic")
    else:
        zoom = pytest.importorskip("scipy.ndimage").zoom
        factors = (new[0] / old[0], new[1] / old[1], 1)
        by_jax = zoom(np.asarray(grid), factors, order=1)
    # JAX places pixels in single precision.
    np.testing.assert_allclose(made[0, 2:], by_jax.reshape(-1, 3), atol=1e-5)


def convolution(params, image):
    kernel = params["kernel"]
    layout = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        image, kernel, kernel.shape[:2], "VALID", dimension_numbers=layout
    )


def resized_kernel(kernel, new, method):
    image = jnp.zeros((1, *kernel.shape[:2], kernel.shape[2]), kernel.dtype)
    widths = dw.trace(convolution, {"kernel": kernel}, image)
    target = {"kernel": jnp.zeros((*new, *kernel.shape[2:]))}
    strategy = {"kernel": resample_patch(method=method)}
    growth = dw.plan(widths, target=target, target_apply=convolution, strategy=strategy)
    return dw.grow({"kernel": kernel}, growth)["kernel"]


@pytest.mark.parametrize("method", RESIZED)
@pytest.mark.parametrize(("old", "new"), SIZES[1:])
def test_kernels_of_patches_are_resized_by_the_formula(old, new, method):
    kernel = jax.random.normal(jax.random.key(0), (*old, 3, 2), jnp.float64)
    made = resized_kernel(kernel, new, method)
    np.testing.assert_allclose(made, patches(kernel, new, method), atol=1e-10)


@pytest.mark.parametrize(("new", "method"), [((32, 32), "bilinear"), ((17, 24), "bicubic")])
def test_larger_patches_that_are_resized_have_the_old_embedding(new, method):
    kernel = jax.random.normal(jax.random.key(0), (16, 16, 3, 4), jnp.float64)
    image = jax.random.normal(jax.random.key(1), (2, 16, 16, 3), jnp.float64)
    made = {"kernel": resized_kernel(kernel, new, method)}
    resized_image = jax.image.resize(image, (2, *new, 3), method)
    before, after = convolution({"kernel": kernel}, image), convolution(made, resized_image)
    assert float(jnp.std(before)) > 1
    np.testing.assert_allclose(after, before, atol=1e-4)  # JAX places pixels in single precision


# Vision transformers ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", in_tiers(LARGER, short=["image"]))
def test_a_vision_transformer_takes_images_and_patches_of_another_size(name):
    model, sides, strategy, target = larger(name)
    variables = variables_of(SMALL, 16)
    growth = planned(name)
    made = dw.grow(variables, growth)
    assert jax.tree.map(jnp.shape, made) == jax.tree.map(jnp.shape, target)
    assert jax.eval_shape(model.apply, made, images(*sides)).shape == (2, 3)
    expected = dict(variables["params"])
    sizes = [side // patch for side, patch in zip((*sides, *sides), model.patch, strict=False)]
    if "pos_embedding" in strategy:
        old = expected["pos_embedding"]
        expected["pos_embedding"] = positions(old, (4, 4), sizes, "bicubic")
    if "embedding/kernel" in strategy:
        kernel = patches(expected["embedding"]["kernel"], model.patch, "bilinear")
        expected["embedding"] = {**expected["embedding"], "kernel": kernel}
    close = functools.partial(np.testing.assert_allclose, atol=1e-4)
    jax.tree.map(close, made["params"], expected)


@pytest.mark.parametrize("name", LARGER)
def test_the_growth_says_that_outputs_change(name):
    growth = planned(name)
    assert growth.evidence is None
    assert "outputs change, because strategies.resample" in str(growth).replace("\n  ", " ")
    assert "resampled" in str(growth)
    assert not any(change.strategy.preserving for change in growth.changes)


@pytest.mark.parametrize("name", LARGER)
def test_shapes_tell_as_much_as_the_larger_function(name):
    assert planned(name, with_function=False).changes == planned(name).changes


def test_the_larger_function_is_traced_with_the_larger_images():
    model, _, strategy, target = larger("both")
    seen = []

    def apply(variables, image):
        seen.append(image.shape)
        return model.apply(variables, image)

    dw.plan(traced(SMALL, 16), target=target, target_apply=apply, strategy=strategy)
    assert {*seen} == {(2, 30, 40, 3)}


def test_under_jit_and_as_json():
    growth, variables = planned("both"), variables_of(SMALL, 16)
    read = dw.from_json(dw.to_json(growth))
    assert read == growth
    made, again = dw.grow(variables, growth), jax.jit(dw.grow)(variables, read)
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-6), again, made)
    shapes = jax.eval_shape(functools.partial(dw.grow, growth=growth), variables)
    assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, made)


@pytest.mark.parametrize(
    "dtype",
    [
        "bfloat16",
        "float64",
        "float16",
        "float32",
    ],
)
@pytest.mark.long
def test_in_each_dtype_it_is_rounded_once(dtype):
    growth = planned("both")
    variables = jax.tree.map(lambda array: array.astype(dtype), variables_of(SMALL, 16))
    made = dw.grow(variables, growth)
    wide = dw.grow(jax.tree.map(lambda array: array.astype(jnp.float64), variables), growth)
    for array, exact in zip(jax.tree.leaves(made), jax.tree.leaves(wide), strict=True):
        assert array.dtype == dtype
        ulp = float(jnp.finfo(dtype).eps) + 1e-6 * (dtype == "float32")
        scale = float(jnp.abs(exact).max()) * 1e-6 * (dtype != "float64")
        np.testing.assert_allclose(array.astype(jnp.float64), exact, rtol=ulp, atol=scale + 1e-14)


def test_positions_of_tokens_that_are_no_grid_in_the_network():
    def apply(params, tokens):
        x = tokens @ params["in"] + params["pos"][None]
        return (x + jax.nn.softmax(x @ jnp.swapaxes(x, 1, 2)) @ x)[:, 0] @ params["out"]

    key = jax.random.key(0)
    shapes = {"in": (5, 4), "pos": (7, 4), "out": (4, 2)}
    params = {name: jax.random.normal(key, shape) for name, shape in shapes.items()}
    widths = dw.trace(apply, params, jnp.zeros((2, 7, 5)))
    target = params | {"pos": jnp.zeros((13, 4))}
    strategy = {"pos": resample((2, 3), (3, 4), prefix=1)}
    for function in (None, apply):
        growth = dw.plan(widths, target=target, target_apply=function, strategy=strategy)
        made = dw.grow(params, growth)
        expected = positions(params["pos"][None], (2, 3), (3, 4), "bicubic")[0]
        np.testing.assert_allclose(made["pos"], expected, atol=1e-5)
        assert apply(made, jnp.zeros((2, 13, 5))).shape == (2, 2)


@pytest.mark.long
def test_the_stream_may_grow_along():
    model = ViT((8, 8), features=16)
    growth = dw.plan(traced(SMALL, 16), target=shapes_of(model, 48), strategy=POSITIONS | PATCHES)
    made = dw.grow(variables_of(SMALL, 16), growth, key=jax.random.key(0))
    assert jax.eval_shape(model.apply, made, images(48)).shape == (2, 3)


# What belongs to the arrays -----------------------------------------------------------------------


def trained(tx, variables):
    state = tx.init(variables)
    for sign in (1, -1, 1):
        gradient = jax.tree.map(lambda array, s=sign: jnp.cos(1 + s * array), variables)
        _, state = jax.jit(tx.update)(gradient, state, variables)
    return state


@pytest.mark.long
def test_moments_of_resampled_entries_begin_anew_and_others_stay():
    growth, variables = planned("both"), variables_of(SMALL, 16)
    tx = optax.scale_by_adam()
    old = trained(tx, variables)
    new = dw.grow_opt_state(old, growth, tx, second_moment="zeros")
    assert new.count == 3
    for before, after in ((old.mu, new.mu), (old.nu, new.nu)):
        before, after = before["params"], after["params"]
        assert not after["embedding"]["kernel"].any()
        assert not after["pos_embedding"][:, 1:].any()
        np.testing.assert_array_equal(after["pos_embedding"][:, :1], before["pos_embedding"][:, :1])
        assert before["pos_embedding"][:, :1].all()
        jax.tree.map(np.testing.assert_array_equal, after["block_0"], before["block_0"])


@pytest.mark.long
def test_resampled_entries_take_the_steps_of_a_new_optimizer():
    growth, variables = planned("both"), variables_of(SMALL, 16)
    tx = dw.growable(optax.adam(1.0))
    state = dw.grow_opt_state(trained(tx, variables), growth, tx)
    wide = dw.grow(variables, growth)
    gradient = jax.tree.map(lambda array: jnp.sin(9 + array), wide)
    updates, _ = jax.jit(tx.update)(gradient, state, wide)
    adam = optax.adam(1.0)
    first, _ = jax.jit(adam.update)(gradient, adam.init(wide), wide)
    for path in (("pos_embedding",), ("embedding", "kernel")):
        got, expected = updates["params"], first["params"]
        for name in path:
            got, expected = got[name], expected[name]
        rows = slice(1, None) if path == ("pos_embedding",) else slice(None)
        np.testing.assert_allclose(got[:, rows], expected[:, rows], rtol=1e-4)
    bias = ("params", "embedding", "bias")
    got, expected = (functools.reduce(lambda t, n: t[n], bias, tree) for tree in (updates, first))
    assert not np.allclose(got, expected, rtol=1e-2)


def test_a_checkpoint_on_disk_is_resampled_alike(tmp_path):
    numpy = pytest.importorskip("safetensors.numpy")
    growth, variables = planned("both"), variables_of(SMALL, 16)

    def flat(tree):
        paths = jax.tree_util.tree_leaves_with_path(tree)
        return {"/".join(key.key for key in keys): np.asarray(array) for keys, array in paths}

    numpy.save_file(flat(variables), tmp_path / "small.safetensors")
    dw.checkpoint.grow(tmp_path / "small.safetensors", growth, tmp_path / "large.safetensors")
    written, made = (
        numpy.load_file(tmp_path / "large.safetensors"),
        flat(dw.grow(variables, growth)),
    )
    assert written.keys() == made.keys()
    for path, array in made.items():
        np.testing.assert_array_equal(written[path], array)


def test_arrays_may_be_divided_among_devices():
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]), "d")
    divided = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, None, "d"))
    growth, variables = planned("image"), variables_of(SMALL, 16)
    old = variables["params"]["pos_embedding"]
    on_mesh = {"params": variables["params"] | {"pos_embedding": jax.device_put(old, divided)}}
    made = dw.grow(on_mesh, growth)["params"]["pos_embedding"]
    assert made.sharding.is_equivalent_to(divided, 3)
    expected = dw.grow(variables, growth)["params"]["pos_embedding"]
    np.testing.assert_allclose(made, expected, atol=1e-6)


class Module(nnx.Module):
    def __init__(self, side, patch, rngs):
        sides = (patch, patch)
        self.patches = nnx.Conv(3, 4, sides, strides=sides, padding="VALID", rngs=rngs)
        self.pos = nnx.Param(jax.random.normal(rngs.params(), (1, (side // patch) ** 2, 4)))
        self.head = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, image):
        x = self.patches(image)
        x = x.reshape(len(image), -1, x.shape[-1]) + self.pos[...]
        return self.head(nnx.gelu(x).mean(1))


@pytest.mark.long
def test_modules_of_nnx():
    small, large = Module(16, 4, nnx.Rngs(0)), Module(48, 8, nnx.Rngs(1))
    widths = dw.nnx.trace(small, images(16))
    strategy = {"pos": resample(prefix=0), "patches/kernel": resample_patch()}
    growth = dw.nnx.plan(widths, target=large, strategy=strategy)
    made = dw.nnx.grow(small, growth, fresh=large)
    assert made(images(48)).shape == (2, 2)
    expected = positions(small.pos[...], (4, 4), (6, 6), "bicubic", 0)
    np.testing.assert_allclose(made.pos[...], expected, atol=1e-5)
    kernel = patches(small.patches.kernel[...], (8, 8), "bilinear")
    np.testing.assert_allclose(made.patches.kernel[...], kernel, atol=1e-5)


# Refusals -----------------------------------------------------------------------------------------

IMAGES = "images or patches of another size"


@pytest.mark.parametrize(
    ("sizes", "target", "with_function", "strategy", "said"),
    [
        ({"pos_embedding[1.1]": 6}, None, False, None, IMAGES),
        ({"embedding[0]": 8}, None, False, None, IMAGES),
        ({"pos_embedding": 37}, None, False, None, "an array of the widths .*pos_embedding.1.1."),
        ({("pos_embedding", 1): 37}, None, False, None, "axis 1 .* is composite"),
        (None, "image", False, None, IMAGES),
        (None, "image", True, None, IMAGES),
        (None, "patch", False, None, IMAGES),
        (None, "image", False, resample(), "path of the array"),
        ({"pos_embedding[1.1]": 6}, None, False, POSITIONS, "pos_embedding: .* goes with target="),
        (None, "image", False, {"pos_embedding": resample((5, 3))}, r"16 positions, but it has 17"),
        (None, "image", False, {"pos_embedding": resample((2, 8))}, "is a grid of 4 x 4"),
        (None, "image", False, {"pos_embedding": resample(prefix=0)}, "pass prefix=1"),
        (
            None,
            "image",
            False,
            {"pos_embedding": resample(to=(5, 5))},
            "26 positions, but it has 37",
        ),
        (None, "one side", False, POSITIONS, r"pass to=\(rows, columns\)"),
        (None, "patch", False, POSITIONS | PATCHES, "leave it out of strategy="),
        (None, "image", False, POSITIONS | PATCHES, "leave it out of strategy="),
        (None, "image", False, {"head/kernel": resample_patch()}, "no kernel of a convolution"),
        (None, "image", False, {"pos_embedding": resample_patch()}, "no kernel of a convolution"),
        (None, "image", False, {"head/bias": resample()}, "needs .positions, features."),
        (None, "image", False, {"block_0/Dense_0/kernel": resample()}, "no square"),
        (None, "image", False, {"pos": resample()}, "no array 'pos'"),
    ],
)
def test_what_does_not_fit_is_refused(sizes, target, with_function, strategy, said):
    model, _, _, shapes = larger(target or "image")
    target = shapes if target else None
    apply = model.apply if with_function else None
    with pytest.raises(ValueError, match=f"(?s){said}"):
        dw.plan(traced(SMALL, 16), sizes, target=target, target_apply=apply, strategy=strategy)


def test_a_function_that_takes_no_such_images_may_be_left_out():
    def apply(variables, image):
        raise ValueError(f"images have other sides than {image.shape}")

    with pytest.raises(ValueError, match=r"(?s)\(2, 24, 24, 3\).*leave out target_apply="):
        dw.plan(
            traced(SMALL, 16),
            target=shapes_of(SMALL, 24),
            target_apply=apply,
            strategy=POSITIONS,
        )


def test_all_that_does_not_fit_is_said_at_once():
    strategy = {"pos_embedding": resample(to=(5, 5)), "head/kernel": resample_patch()}
    with pytest.raises(ValueError, match=r"(?s)pos_embedding.*head/kernel"):
        dw.plan(traced(SMALL, 16), target=shapes_of(SMALL, 24), strategy=strategy)


def test_new_layers_go_in_another_growth():
    model = ViT(layers=2)
    with pytest.raises(ValueError, match="insert layers in a growth of its own"):
        dw.plan(
            traced(SMALL, 16),
            target=shapes_of(model, 24),
            target_apply=model.apply,
            strategy=POSITIONS,
        )


def mixer(params, image):
    x = convolution(params, image)
    x = x.reshape(len(image), -1, x.shape[-1]) + params["pos"]
    return jnp.einsum("npc,ph->nhc", x, params["mix"])


def test_other_arrays_along_positions_are_not_resampled():
    def shapes(count):
        return {
            "kernel": jnp.ones((4, 4, 3, 2)),
            "pos": jnp.ones((1, count, 2)),
            "mix": jnp.ones((count, 5)),
        }

    widths = dw.trace(mixer, shapes(16), images(16))
    with pytest.raises(ValueError, match="mix: has .* along an axis, too"):
        dw.plan(widths, target=shapes(36), strategy={"pos": resample(prefix=0)})


@pytest.mark.parametrize(
    ("error", "kwargs", "said"),
    [
        (ValueError, {"method": "nearest"}, "'bicubic' or 'bilinear'"),
        (ValueError, {"prefix": -1}, "zero or positive"),
        (TypeError, {"prefix": 1.0}, "prefix"),
        (TypeError, {"grid": 14}, "rows and columns"),
        (TypeError, {"to": (1.5, 2)}, "rows and columns"),
        (ValueError, {"to": (0, 2)}, "positive sizes"),
        (ValueError, {"grid": (2, 2), "to": (3,)}, "equally many axes"),
    ],
)
def test_wrong_arguments(error, kwargs, said):
    with pytest.raises(error, match=said):
        resample(**kwargs)
    if kwargs.keys() == {"method"}:
        with pytest.raises(error, match=said):
            resample_patch(**kwargs)
