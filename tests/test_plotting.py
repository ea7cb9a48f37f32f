"""Pictures, by what Matplotlib was told to draw."""

import sys

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="needs the extra plot")

from matplotlib.figure import Figure

import dogwood_jax as dw
from dogwood_jax import plotting


@pytest.fixture
def ax():
    return Figure().add_subplot()


@pytest.mark.parametrize("count, grid", [(1, (1, 1)), (2, (1, 2)), (5, (2, 3)), (128, (11, 12))])
def test_each_unit_is_an_image_in_reading_order(ax, count, grid):
    kernel = np.random.default_rng(0).normal(size=(12, count))
    assert plotting.units(kernel, (3, 4), ax=ax) is ax
    mosaic = np.ma.filled(ax.images[0].get_array(), np.nan)
    rows, columns = grid
    assert mosaic.shape == (4 * rows - 1, 5 * columns - 1)
    for unit in range(rows * columns):
        row, column = divmod(unit, columns)
        image = mosaic[4 * row : 4 * row + 3, 5 * column : 5 * column + 4]
        expected = kernel[:, unit].reshape(3, 4) if unit < count else np.full((3, 4), np.nan)
        np.testing.assert_array_equal(image, expected)
    assert np.isnan(mosaic).sum() == mosaic.size - kernel.size


def test_the_label_says_what_a_tile_and_its_colors_mean(ax):
    plotting.units(np.linspace(-3, 1, 12)[:, None], (3, 4), ax=ax)
    assert ax.get_xlabel() == "a tile: the weights into a unit\nblue: -3, white: 0, red: 3"


def test_zero_is_white_whatever_the_weights(ax):
    plotting.units(np.linspace(-3, 1, 12)[:, None], (3, 4), ax=ax)
    assert ax.images[0].get_clim() == (-3, 3)
    np.testing.assert_allclose(ax.images[0].to_rgba(0.0)[:3], 1, atol=0.05)
    zeros = plotting.units(np.zeros((12, 1)), (3, 4), ax=Figure().add_subplot())
    assert zeros.images[0].get_clim() == (-1, 1)


@pytest.mark.parametrize("shape", [(784,), (783, 2), (784, 0), (28, 28, 2)])
def test_a_kernel_of_another_shape_is_refused(ax, shape):
    with pytest.raises(ValueError, match=r"\[784, units\]") as error:
        plotting.units(np.zeros(shape), ax=ax)
    assert str(shape) in str(error.value)
    assert not ax.images


def test_curves_start_at_epoch_one_and_show_the_growth(ax):
    histories = {"grown": [0.1, 0.2, 0.4], "from scratch": np.array([0.3, 0.5])}
    assert plotting.curves(histories, grown_at=2, ax=ax) is ax
    *lines, growth = ax.get_lines()
    for line, (label, values) in zip(lines, histories.items(), strict=True):
        assert line.get_label() == label
        np.testing.assert_array_equal(line.get_xdata(), np.arange(len(values)) + 1)
        np.testing.assert_array_equal(line.get_ydata(), values)
    assert set(growth.get_xdata()) == {2.5}
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("epoch", "accuracy")


@pytest.mark.parametrize("layout", ["constrained", None])
def test_the_legend_lies_beside_the_axes_where_there_is_room(layout):
    ax = Figure(layout=layout).add_subplot()
    plotting.curves({"loss": [3, 2]}, ylabel="loss", ax=ax)
    ax.figure.draw_without_rendering()
    left = ax.get_legend().get_window_extent().x0
    assert (left >= ax.bbox.x1) == (layout == "constrained")


def test_without_a_growth_there_is_no_mark(ax):
    plotting.curves({"loss": [3, 2]}, ylabel="loss", ax=ax)
    assert len(ax.get_lines()) == 1
    assert ax.get_ylabel() == "loss"


def test_a_new_figure_is_made_where_no_axes_are_given(monkeypatch):
    plt = pytest.importorskip("matplotlib.pyplot")
    plt.switch_backend("agg")
    axes = [plotting.units(np.ones((784, 1))), plotting.curves({"a": [1.0]})]
    assert axes[0].figure is not axes[1].figure
    for ax in axes:
        plt.close(ax.figure)


def test_without_matplotlib_it_says_what_to_install(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"pip install 'dogwood_jax\[plot\]'"):
        plotting.curves({"a": [1.0]})


def test_widths_are_columns_with_a_mark_for_each_place(ax):
    params = {
        name: {"kernel": np.ones(shape), "bias": np.ones(shape[1])}
        for name, shape in {"up": (4, 8), "down": (8, 2)}.items()
    }
    widths = dw.chain(params, ("up", "down"))
    plotting.widths(widths, ax=ax)
    rows = [label.get_text() for label in ax.get_yticklabels()]
    columns = [label.get_text() for label in ax.get_xticklabels()]
    marks = {
        (columns[int(x)], rows[int(y)], line.get_fillstyle())
        for line in ax.get_lines()
        if line.get_marker() == "o"
        for x, y in zip(*line.get_data())
    }
    assert marks == {
        (
            f"{width.name} ({width.size})",
            place.path,
            "full" if place.role == "incoming" else "none",
        )
        for width in widths.values()
        for place in width.occurrences
    }


def test_repeated_layers_share_rows_and_columns(ax):
    sizes = {"in": (4, 8), "layer_0": (8, 8), "layer_1": (8, 8), "layer_2": (8, 8), "out": (8, 2)}
    params = {name: {"kernel": np.ones(shape)} for name, shape in sizes.items()}
    plotting.widths(dw.chain(params, tuple(sizes)), ax=ax)
    assert [label.get_text() for label in ax.get_xticklabels()] == [
        "in[0] (4)",
        "in (8)",
        "layer_{0..2} (8)",
        "out (2)",
    ]
    assert [label.get_text() for label in ax.get_yticklabels()] == [
        "in/kernel",
        "layer_0/kernel",
        "layer_{1,2}/kernel",
        "out/kernel",
    ]
