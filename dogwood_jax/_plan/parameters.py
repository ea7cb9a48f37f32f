"""Parameters of equations in programs of different sizes: ``differing``."""

from collections.abc import Iterator, Mapping
from typing import Any

# Parameters that follow from the sizes of an operation's operands and results.
_SIZES = frozenset(
    "shape new_sizes sizes slice_sizes start_indices limit_indices padding_config reps length k "
    "feature_group_count batch_group_count fft_lengths".split()
)


def differing(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Yields the parameters that differ although they follow from no size, each with its name."""
    for key in sorted(old.keys() & new.keys() - _SIZES):
        a, b = old[key], new[key]
        if _is_plain(a) and _is_plain(b) and a != b:
            yield key, a, b


def _is_plain(value: Any) -> bool:
    """Whether a parameter is made of numbers and names, so that it can be compared."""
    return all(map(_is_plain, value)) if isinstance(value, tuple) else isinstance(value, int | str)
