"""What a caller asks ``plan`` for: ``Request``."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dogwood_jax._base.trees import PyTree
from dogwood_jax._plan.family import Family
from dogwood_jax._widths.widths import Widths
from dogwood_jax.strategies import DepthStrategy, Strategy


@dataclass(frozen=True)
class Request:
    """The arguments of ``plan``. Their own texts say what they mean.

    Attributes:
        widths: the widths of the network.
        sizes: new sizes.
        target: the larger model's variables, or None.
        target_apply: its function, or None.
        keep: units that stay.
        merge: units that become one.
        strategy: how widths grow.
        depth: how new layers are filled, if they are not to compute the identity.
        interface: whether inputs and outputs may change.
        check: whether the growth is evaluated.
        families: rare families of growths, see ``Family``.
    """

    widths: Widths
    sizes: Mapping[Any, int] = field(default_factory=dict)
    target: PyTree = None
    target_apply: Callable[..., Any] | None = None
    keep: Mapping[Any, Any] | None = None
    merge: Mapping[Any, Sequence[Sequence[int]]] | None = None
    strategy: Strategy | Mapping[str, Strategy] | None = None
    depth: DepthStrategy | None = None
    interface: bool = False
    check: bool = True
    families: tuple[Family, ...] = ()
