"""Why a width cannot grow, and what to mind when it does: ``Reason``, a sentence with a kind.

People read the sentence. Code asks for the kind, and never looks at the words.
"""

from typing import Any, Literal

ReasonKind = Literal["", "must_stay", "silent", "drawn", "picked", "integers", "unread", "single"]


class Reason(str):
    """A sentence with a kind.

    Attributes:
        kind: one of these, otherwise ``""``:

            - ``"must_stay"``: a number must stay the same, or follow from the size, such as a
              constant that scales a sum over the width. The larger model's program shows whether
              it does.
            - ``"silent"``: the weights that feed new units must be zero.
            - ``"drawn"``: random numbers are drawn along it, which no array makes up for.
            - ``"picked"``: the largest of its units are picked.
            - ``"integers"``: weights are small integers, which have no halves.
            - ``"single"``: an operation repeats or drops its unit because the unit is alone; copies
              may do the same.
            - ``"unread"``: nothing reads the array, so only a larger model tells what grows.
    """

    kind: ReasonKind

    def __new__(cls, text: str, kind: ReasonKind = "") -> "Reason":
        reason = super().__new__(cls, text)
        reason.kind = kind
        return reason

    def __eq__(self, other: object) -> Any:
        same_kind = not isinstance(other, Reason) or self.kind == other.kind
        return same_kind and str.__eq__(self, other)

    def __ne__(self, other: object) -> Any:
        return not self == other

    __hash__ = str.__hash__


def kind_of(reason: str) -> ReasonKind:
    """Returns the kind of a reason."""
    return reason.kind if isinstance(reason, Reason) else ""
