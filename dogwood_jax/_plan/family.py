"""Rare families of growths: ``Family``.

Experts, and heads of keys and values, grow in ways of their own. Each has a room beside the core,
with one class of this kind. ``plan`` asks all of them. A method that a family does not define does
nothing.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from dogwood_jax._growth.growth import Growth
from dogwood_jax._judge.choice import Choice
from dogwood_jax._plan.asked import Asked
from dogwood_jax._plan.copies import Copies
from dogwood_jax._widths.trace import Traced
from dogwood_jax._widths.widths import Widths


class Family:
    """What a family adds to the growths that ``plan`` proposes."""

    def asked(self, asked: Asked) -> Asked:
        """Returns the asked sizes, in widths that the family adds."""
        return asked

    def ways_out(self, asked: Asked) -> Iterator[str]:
        """Yields what may be passed instead, if a growth is refused."""
        yield from ()

    def instead(self, widths: Widths, shapes: Mapping[str, Any]) -> Iterator[str]:
        """Yields what to call in place of ``plan``, if a larger model's arrays are other ones."""
        yield from ()

    def copies(self, asked: Asked) -> Copies | None:
        """Returns the changes of widths whose units are copied; None if there are none."""
        return None

    def choices(
        self, growth: Growth, larger: Traced | None, *, as_it_is: bool
    ) -> Iterator[tuple[Choice, ...]]:
        """Yields what may be how many experts both programs choose.

        Args:
            growth: the growth, of widths that know their program.
            larger: the larger program; None for the network's own in larger sizes.
            as_it_is: whether the larger program chooses what it does. Else it is to choose all
                copies.
        """
        yield from ()

    def whole(self, widths: Widths, shapes: Mapping[str, Any]) -> Widths:
        """Returns the widths with each axis as one that a program cuts, and that counts no layers.

        Args:
            widths: the network's widths.
            shapes: the shapes of the larger model's arrays, by path.
        """
        return widths
