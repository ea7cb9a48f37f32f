"""Pictures of networks that grow, with Matplotlib.

Each function draws into the axes ``ax``, or into the axes of a new figure, and returns the axes.
"""

from collections.abc import Mapping
from math import ceil, prod, sqrt
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import ArrayLike

from dogwood_jax._base.arguments import (
    NUMBER,
    WIDTHS,
    ArgumentKind,
    expect,
    expect_given,
    is_integer,
)
from dogwood_jax._base.tables import layers_together, merged
from dogwood_jax._widths.widths import Widths

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_AXES = ArgumentKind(
    "the axes of a Matplotlib figure, plt.figure().add_subplot()",
    lambda value: hasattr(value, "set_xticks"),
)
_SHAPE = ArgumentKind(
    "the height and width of an image, (28, 28)",
    lambda value: (
        isinstance(value, tuple | list) and len(value) == 2 and all(map(is_integer, value))
    ),
)
_KERNEL = ArgumentKind("an array of weights", lambda value: _is_numeric(value))
_HISTORIES = ArgumentKind(
    "a mapping, {label: [one number for each epoch]} or {label: run.history}",
    lambda value: (
        isinstance(value, Mapping)
        and len(value) > 0
        and all(_is_curve(one) or _is_history(one) for one in value.values())
    ),
)

_Style = Literal["full", "left", "none"]  # how much of a mark is filled


def units(
    kernel: ArrayLike, shape: tuple[int, int] = (28, 28), *, ax: "Axes | None" = None
) -> "Axes":
    """Draws the incoming weights of each unit as an image, all units side by side.

    Positive weights are red, negative weights blue and zeros white. All units share one scale; the
    label below the images gives its ends.

    Args:
        kernel: weights ``[height * width, units]``.
        shape: height and width of an image.
        ax: the axes; by default those of a new figure.

    Returns:
        The axes.

    Raises:
        TypeError: if arguments are of the wrong kind.
        ValueError: if the kernel does not hold images of that shape, or has no units.
        ImportError: if Matplotlib is not installed.

    Example:
        >>> import matplotlib
        >>> import numpy as np
        >>> from dogwood_jax import plotting
        >>> matplotlib.use("agg")
        >>> kernel = np.random.default_rng(0).normal(size=(784, 2))
        >>> plotting.units(kernel).images[0].get_array().shape  # two images, a line between them
        (28, 57)
    """
    expect("plotting.units(kernel, shape)", kernel=(_KERNEL, kernel), shape=(_SHAPE, shape))
    expect_given("plotting.units", ax=(_AXES, ax))
    kernel = np.asarray(kernel, np.float64)
    if kernel.ndim != 2 or kernel.shape[0] != prod(shape) or not kernel.shape[1]:
        raise ValueError(
            f"plotting.units: expected a kernel of shape [{prod(shape)}, units] for images of "
            f"shape {shape}, got {kernel.shape}; pass the shape of the layer's inputs"
        )
    count, (height, width) = kernel.shape[1], shape
    columns = ceil(sqrt(count))
    rows = ceil(count / columns)
    tiles = np.full((rows, columns, height + 1, width + 1), np.nan)
    tiles.reshape(-1, height + 1, width + 1)[:count, :height, :width] = kernel.T.reshape(-1, *shape)
    mosaic = tiles.swapaxes(1, 2).reshape(rows * (height + 1), columns * (width + 1))[:-1, :-1]
    ax = _axes() if ax is None else ax
    limit = np.nanmax(np.abs(mosaic)) or 1.0
    ax.imshow(mosaic, cmap="RdBu_r", vmin=-limit, vmax=limit)
    ax.set_facecolor("0.8")  # visible in tiles without a unit
    ax.set_xticks([])
    ax.set_yticks([])
    ax.set_xlabel(
        f"a tile: the weights into a unit\nblue: -{limit:.2g}, white: 0, red: {limit:.2g}",
        fontsize="small",
    )
    return ax


def curves(
    histories: Mapping[str, ArrayLike | Mapping[str, ArrayLike]],
    *,
    grown_at: float | None = None,
    ylabel: str = "accuracy",
    ax: "Axes | None" = None,
) -> "Axes":
    """Draws learning curves, with the moments of growth marked.

    Args:
        histories: values ``[epochs]`` of each curve, by label; the first value is that of epoch 1.
            Or the history of a run of ``training.fit``, by label: its growths are marked.
        grown_at: the number of epochs after which the network grew.
        ylabel: the name of the values, and the entry of a history: ``"accuracy"`` or ``"loss"``.
        ax: the axes; by default those of a new figure.

    Returns:
        The axes.

    Raises:
        TypeError: if arguments are of the wrong kind.
        ValueError: if a history has no values of this name.
        ImportError: if Matplotlib is not installed.

    Example:
        >>> import matplotlib
        >>> from dogwood_jax import plotting
        >>> matplotlib.use("agg")
        >>> ax = plotting.curves({"grown": [0.2, 0.3, 0.5, 0.6]}, grown_at=2)
        >>> [text.get_text() for text in ax.get_legend().get_texts()]
        ['grown', 'growth']
    """
    expect("plotting.curves", histories=(_HISTORIES, histories))
    expect_given("plotting.curves", grown_at=(NUMBER, grown_at), ax=(_AXES, ax))
    moments = {} if grown_at is None else {float(grown_at): None}
    curves: dict[str, ArrayLike] = {}
    for label, given in histories.items():
        if not isinstance(given, Mapping):
            curves[label] = given
        elif ylabel in given:
            curves[label] = given[ylabel]
            moments |= dict.fromkeys(np.asarray(given.get("grown_at", ()), float).tolist())
        else:
            names = [name for name in given if name not in ("steps", "grown_at")]
            raise ValueError(
                f"plotting.curves: the history of {label!r} has no {ylabel!r}; pass ylabel=, one "
                f"of {names}"
            )
    ax = _axes() if ax is None else ax
    for label, values in curves.items():
        values = np.asarray(values)
        ax.plot(np.arange(1, len(values) + 1), values, marker=".", label=label)
    for number, moment in enumerate(moments):
        # Between the last epoch of the smaller network and the first of the larger one.
        name = "growth" if number == 0 else None
        ax.axvline(moment + 0.5, color="0.4", linestyle="--", label=name)
    ax.locator_params(axis="x", integer=True)
    ax.set_xlabel("epoch")
    ax.set_ylabel(ylabel)
    _legend(ax)
    return ax


def widths(widths: Widths, *, ax: "Axes | None" = None) -> "Axes":
    """Draws which arrays share which width.

    There is a column for each width that can grow or is an input or output, and a row for each
    array. Repeated layers share rows and columns. A mark is filled if the array produces the units,
    and open if it reads them. To follow the data, move along rows and columns in turn.

    Args:
        widths: from ``trace`` or ``chain``.
        ax: the axes; by default those of a new figure.

    Returns:
        The axes.

    Raises:
        TypeError: if arguments are of the wrong kind.
        ImportError: if Matplotlib is not installed.

    Example:
        >>> import matplotlib
        >>> import jax.numpy as jnp
        >>> import dogwood_jax as dw
        >>> matplotlib.use("agg")
        >>> params = {"up": {"kernel": jnp.ones((4, 8))}, "down": {"kernel": jnp.ones((8, 2))}}
        >>> ax = dw.plotting.widths(dw.chain(params, ("up", "down")))
        >>> [label.get_text() for label in ax.get_xticklabels()]
        ['up[0] (4)', 'up (8)', 'down (2)']
        >>> [label.get_text() for label in ax.get_yticklabels()]
        ['up/kernel', 'down/kernel']
    """
    expect("plotting.widths", widths=(WIDTHS, widths))
    expect_given("plotting.widths", ax=(_AXES, ax))
    shown = [width for width in widths.values() if not width.fixed]
    columns = layers_together((f"{width.name} ({width.size})",) for width in shown)
    column = {
        shown[member].name: place for place, (_, found) in enumerate(columns) for member in found
    }
    marks: dict[str, dict[int, set[str]]] = {}
    for width in shown:
        for o in width.occurrences:
            marks.setdefault(o.path, {}).setdefault(column[width.name], set()).add(o.role)
    paths = [leaf.path for leaf in widths.leaves if leaf.path in marks]
    rows = merged((_styles(marks[path]), path) for path in paths)
    ax = _axes((4 + 0.4 * len(columns), 3 + 0.22 * len(rows))) if ax is None else ax
    reach: dict[int, list[int]] = {}
    for row, (found, _) in enumerate(rows):
        places = [place for place, _ in found]
        ax.plot([min(places), max(places)], [row, row], color="0.8", linewidth=1, zorder=0)
        for place, style in found:
            color = f"C{place % 10}"
            ax.plot(place, row, "o", color=color, fillstyle=style, markerfacecoloralt="white")
            reach.setdefault(place, []).append(row)
    for place, along in reach.items():
        ax.plot([place, place], [min(along), max(along)], color=f"C{place % 10}", zorder=0)
    legend: dict[_Style, str] = {"full": "produces the units", "none": "reads them", "left": "both"}
    for style, what in legend.items():
        ax.plot([], [], "ko", fillstyle=style, markerfacecoloralt="white", label=what)
    _legend(ax)
    ax.set_xticks(range(len(columns)), [label for (label,), _ in columns], rotation=90)
    ax.set_yticks(range(len(rows)), [path for _, path in rows])
    ax.invert_yaxis()
    return ax


def _styles(marks: Mapping[int, set[str]]) -> tuple[tuple[int, _Style], ...]:
    """Returns how the marks of an array are filled, by column."""
    styles: dict[frozenset[str], _Style] = {
        frozenset({"incoming"}): "full",
        frozenset({"outgoing"}): "none",
    }
    return tuple((place, styles.get(frozenset(roles), "left")) for place, roles in marks.items())


def _is_curve(value: object) -> bool:
    """Returns whether a value is a vector of numbers, one for each epoch."""
    return _is_numeric(value) and np.ndim(value) == 1  # type: ignore[arg-type]


def _is_history(value: object) -> bool:
    """Returns whether a value is a mapping of curves, such as the history of ``training.fit``."""
    return isinstance(value, Mapping) and all(map(_is_curve, value.values()))


def _is_numeric(value: object) -> bool:
    """Returns whether a value is a number, or an array or nested list of numbers."""
    if isinstance(value, Mapping | str):
        return False
    try:
        np.asarray(value, np.float64)
    except (TypeError, ValueError):
        return False
    return True


def _axes(size: tuple[float, float] | None = None) -> "Axes":
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError(
            "dogwood_jax.plotting needs Matplotlib, not installed here; run: "
            "pip install 'dogwood_jax[plot]'"
        ) from error
    return plt.figure(figsize=size, layout="constrained").add_subplot()


def _legend(ax: "Axes") -> None:
    """Adds a legend, next to the axes if the figure's layout makes room for it there."""
    if ax.get_figure().get_layout_engine() is None:  # type: ignore[union-attr]
        ax.legend()
    else:
        ax.legend(loc="upper left", bbox_to_anchor=(1, 1))
