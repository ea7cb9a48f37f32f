"""Options in the configs of many layers: sizes along axes, ``data_format``, rates of dropout."""

from typing import Any

import jax.numpy as jnp

from dogwood_jax.keras_h5._kinds.kind import Config, Function


def channels_last(config: Config, function: Function) -> Function:
    """Wraps a function of arrays with channels last for the ``data_format`` of the config."""
    data_format = config.get("data_format") or "channels_last"
    if data_format not in ("channels_first", "channels_last"):
        raise ValueError(f"the data_format {data_format!r} is unknown")
    if data_format == "channels_last":
        return function

    def moved(x: Any) -> Any:
        y = function(jnp.moveaxis(x, 1, -1))
        return jnp.moveaxis(y, -1, 1) if y.ndim == x.ndim else y

    return moved


def spatial(value: Any, rank: int) -> tuple[int, ...]:
    """Returns one size for each spatial axis."""
    values = (value,) * rank if isinstance(value, int) else tuple(value)
    if len(values) != rank or not all(isinstance(size, int) for size in values):
        raise ValueError(f"expected {rank} sizes, got {value!r}")
    return values


def evaluated_only(config: Config, deterministic: bool, *rates: str) -> None:
    if not deterministic and any(config.get(rate) for rate in rates):
        raise ValueError(f"{' and '.join(rates)} inside this layer is not supported in training")
