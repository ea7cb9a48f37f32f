"""The larger model's own program, where it is given: ``read_larger``.

Shapes leave open how a product such as heads * head_dim is split, and say nothing of constants. The
larger model's program tells both, and where it has more layers, what they must compute.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from dogwood_jax._deepen import insertions
from dogwood_jax._growth import Change
from dogwood_jax._insert import Insertion
from dogwood_jax._layout import Layout, Units
from dogwood_jax._trace import trace
from dogwood_jax._tree import PyTree, arrays_of, leaves_by_path, struct
from dogwood_jax._widths import Widths


@dataclass(frozen=True)
class Larger:
    """What is known of the larger model.

    Attributes:
        shapes: shapes of the arrays that the network has, too, by their paths in the network.
        insertions: the arrays that it has not.
        widths: the larger model's widths.
        names: for widths of the network, their names in the larger model.
    """

    shapes: Mapping[str, Any]
    insertions: tuple[Insertion, ...] = ()
    widths: Widths | None = None
    names: Mapping[str, str] | None = None

    @property
    def sizes(self) -> dict[str, int]:
        """Sizes of the network's widths in the larger model, where its program tells them."""
        if self.widths is None or self.names is None:
            return {}
        return {name: self.widths.sizes[larger] for name, larger in self.names.items()}

    def constants(self, change: Change) -> Iterator[tuple[str, float, float | None]]:
        """Yields what constants a growth asks for: what each is, its value, and the model's own."""
        if change.recipe is None:
            return
        own: dict[str, float] = {}
        if self.widths is not None and self.names and change.width in self.names:
            for recipe in self.widths[self.names[change.width]].recipes:
                if recipe.strategy == change.recipe.strategy:
                    own |= {what: value for what, value, _ in recipe.constants}
        for what, value, power in change.recipe.constants:
            yield what, value * change.ratio**power, own.get(what)


def read_larger(widths: Widths, target: PyTree, target_apply: Callable[..., Any] | None) -> Larger:
    """Reads the larger model's shapes, and its program if there is one.

    Args:
        widths: the network's widths.
        target: a pytree of arrays or ``jax.ShapeDtypeStruct`` of the larger model.
        target_apply: its function of variables and inputs, or None.

    Raises:
        ValueError: if the program is needed and cannot be had, or new layers of the larger model
            cannot compute the identity.
    """
    shapes = arrays_of(leaves_by_path(target))
    if target_apply is None:
        return Larger(shapes)
    network = widths.network
    if network is None:
        raise ValueError(
            "target_apply= needs widths that were traced in this process: trace the network again"
        )
    found: tuple[Insertion, ...] = ()
    if _is_deeper(widths, shapes):
        found = insertions(
            network.apply, network.variables, target_apply, target, *network.inputs, wider=True
        )
    places = {i.old: i.path for i in found if i.old is not None}
    stacked = {i.path for i in found if i.layers}
    paired = {leaf.path: places.get(leaf.path, leaf.path) for leaf in widths.leaves}
    kept = {}
    for leaf in widths.leaves:
        if (place := paired[leaf.path]) in shapes:
            array = shapes[place]
            layers = leaf.shape[:1] if place in stacked else tuple(array.shape[:1])
            kept[leaf.path] = struct((*layers, *array.shape[1:]), array.dtype)
    explained = {*paired.values(), *(i.path for i in found)}
    kept |= {path: array for path, array in shapes.items() if path not in explained}
    larger = trace(target_apply, target, *network.inputs)
    return Larger(kept, found, larger, _same_widths(widths, larger, paired, stacked))


def _is_deeper(widths: Widths, shapes: Mapping[str, Any]) -> bool:
    """Whether the larger model has other arrays, or more entries where a loop counts layers."""
    known = {leaf.path: leaf for leaf in widths.leaves}
    if shapes.keys() != known.keys():
        return True
    return any(
        isinstance(axes[0], Units) and widths[axes[0].width].fixed and shapes[path].shape[0] > n
        for path, leaf in known.items()
        if (axes := leaf.axes) and len(shapes[path].shape) == len(axes)
        for n in leaf.shape[:1]
    )


def _same_widths(
    old: Widths, new: Widths, paired: Mapping[str, str], stacked: Collection[str]
) -> dict[str, str]:
    """Returns the names that widths have in the larger model, where their arrays agree on it."""
    names: dict[str, set[str]] = {}
    leaves = {leaf.path: leaf for leaf in new.leaves}
    for leaf in old.leaves:
        if (place := paired[leaf.path]) in leaves:
            layers = 1 if place in stacked else 0  # axes along which the old network is shorter
            for a, b in zip(leaf.axes[layers:], leaves[place].axes[layers:], strict=False):
                for before, after in _pairs(a, b):
                    names.setdefault(before, set()).add(after)
    return {name: found.pop() for name, found in names.items() if len(found) == 1}


def _pairs(old: Layout, new: Layout) -> Iterator[tuple[str, str]]:
    if isinstance(old, Units) and isinstance(new, Units):
        yield old.width, new.width
    elif not isinstance(old, Units) and type(old) is type(new):
        if len(old.parts) == len(new.parts):
            for a, b in zip(old.parts, new.parts, strict=True):
                yield from _pairs(a, b)
