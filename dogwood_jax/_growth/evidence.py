"""What an evaluation has shown of a growth, as plain data: ``Evidence``."""

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Evidence:
    """What was evaluated to show that outputs stay.

    Attributes:
        samples: in how many samples both networks were compared; 0 if they were not.
        sizes: the sizes of each width that grows in the programs that were evaluated, ``(name,
            before, after)``. They are smaller than the network's where the network is large.
        largest: the largest difference of an entry of the outputs, relative to the entry.
        unseen: operations of both programs of which no sample has shown all sides, each with its
            line in your code, ``"max (model.py:41)"``.
        why_not: why nothing was evaluated, if nothing was.
        assumes: what is taken for granted of the larger model, if anything is.
    """

    samples: int = 0
    sizes: tuple[tuple[str, int, int], ...] = ()
    largest: float = 0.0
    unseen: tuple[str, ...] = ()
    why_not: str = ""
    assumes: str = ""

    def lines(self, sizes: dict[str, tuple[int, int]]) -> Iterator[str]:
        """Yields what was checked, without digits that differ between machines.

        Args:
            sizes: the sizes before and after the growth of each width that grows, by name.
        """
        pairs: dict[tuple[int, int], None] = {}
        for name, before, after in self.sizes:
            if name in sizes:
                pairs |= dict.fromkeys(zip(sizes[name], (before, after), strict=True))
        smaller = [f"{size} -> {twin}" for size, twin in pairs if size != twin]
        in_sizes = f", sizes {', '.join(smaller)}" if smaller else ""
        yield f"checked: equal to rounding in {self.samples} samples{in_sizes}"
        if self.unseen:
            yield f"not seen: {', '.join(self.unseen)}"
