"""Pictures of networks that grow, with Matplotlib.

Each function draws into the axes given as ``ax``, or into those of a new figure, and returns them.
"""

from collections.abc import Mapping
from math import ceil, prod, sqrt
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from dogwood_jax._widths import Widths

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def units(
    kernel: ArrayLike, shape: tuple[int, int] = (28, 28), *, ax: "Axes | None" = None
) -> "Axes":
    """Draws the incoming weights of each unit as an image, all units side by side.

    Positive weights are red, negative ones blue and zeros white; all units share the scale.

    Args:
        kernel: weights ``[height * width, units]``.
        shape: height and width of an image.
        ax: where to draw.

    Returns:
        The axes.

    Raises:
        ValueError: if the kernel does not hold images of that shape, or no unit at all.
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
    ax.set_facecolor("0.8")  # seen where there is no unit
    ax.set_xticks([])
    ax.set_yticks([])
    return ax


def curves(
    histories: Mapping[str, ArrayLike],
    *,
    grown_at: float | None = None,
    ylabel: str = "accuracy",
    ax: "Axes | None" = None,
) -> "Axes":
    """Draws learning curves, with the moment of growth marked.

    Args:
        histories: label and values ``[epochs]`` of each curve; the first value is that of epoch 1.
        grown_at: the number of epochs after which the network grew.
        ylabel: what the values are.
        ax: where to draw.

    Returns:
        The axes.

    Raises:
        ImportError: if Matplotlib is not installed.

    Example:
        >>> import matplotlib
        >>> from dogwood_jax import plotting
        >>> matplotlib.use("agg")
        >>> ax = plotting.curves({"grown": [0.2, 0.3, 0.5, 0.6]}, grown_at=2)
        >>> [text.get_text() for text in ax.get_legend().get_texts()]
        ['grown', 'growth']
    """
    ax = _axes() if ax is None else ax
    for label, values in histories.items():
        values = np.asarray(values)
        ax.plot(np.arange(1, len(values) + 1), values, marker=".", label=label)
    if grown_at is not None:
        # Between the last epoch of the smaller network and the first of the larger one.
        ax.axvline(grown_at + 0.5, color="0.4", linestyle="--", label="growth")
    ax.locator_params(axis="x", integer=True)
    ax.set_xlabel("epoch")
    ax.set_ylabel(ylabel)
    ax.legend()
    return ax


def widths(widths: Widths, *, ax: "Axes | None" = None) -> "Axes":
    """Draws which arrays share which width.

    A column for each width that can grow or is an input or output, a row for each axis it occurs
    on; a filled mark where the array produces the units, an open one where it reads them.

    Args:
        widths: from ``trace`` or ``chain``.
        ax: where to draw.

    Returns:
        The axes.

    Raises:
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
    """
    shown = [width for width in widths.values() if not width.fixed]
    places = dict.fromkeys((o.path, o.axis) for width in shown for o in width.occurrences)
    row = {place: i for i, place in enumerate(places)}
    ax = _axes((3 + 0.4 * len(shown), 2 + 0.25 * len(row))) if ax is None else ax
    for column, width in enumerate(shown):
        rows = [row[o.path, o.axis] for o in width.occurrences]
        color = f"C{column % 10}"
        ax.plot([column] * len(rows), rows, color=color, linewidth=1)
        for place, occurrence in zip(rows, width.occurrences, strict=True):
            filled = color if occurrence.role == "incoming" else "white"
            ax.plot(column, place, "o", color=color, markerfacecolor=filled)
    labels = [f"{width.name} ({width.size})" for width in shown]
    ax.set_xticks(range(len(shown)), labels, rotation=90)
    ax.set_yticks(range(len(row)), [f"{path}[{axis}]" for path, axis in row])
    ax.invert_yaxis()
    return ax


def _axes(size: tuple[float, float] | None = None) -> "Axes":
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError(
            "dogwood_jax.plotting needs Matplotlib, not installed here; run: "
            "pip install 'dogwood_jax[plot]'"
        ) from error
    return plt.figure(figsize=size).add_subplot()
