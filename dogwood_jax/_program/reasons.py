"""Why a width cannot grow, and notes for growing it: ``Reason``, a sentence with a kind.

The sentence is for people. Code reads only the kind.
"""

from typing import Any, Literal

ReasonKind = Literal["", "must_stay", "silent", "drawn", "picked", "integers", "unread", "single"]


class Reason(str):
    """A sentence with a kind.

    Attributes:
        kind: one of these, otherwise ``""``:

            - ``"must_stay"``: a number must stay the same, or depend on the size, such as a
              constant that scales a sum over the width. The larger model's program shows whether
              it does.
            - ``"silent"``: the weights that feed new units must be zero.
            - ``"drawn"``: random numbers are drawn along it, and no array can compensate for that.
            - ``"picked"``: the largest of its units are picked.
            - ``"integers"``: weights are small integers, which cannot be divided among copies.
            - ``"single"``: an operation repeats or drops the width's only unit; copies of the unit
              may have the same effect.
            - ``"unread"``: nothing reads the array, so only a larger model shows what grows.
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
    """Returns the kind of a reason, or ``""`` for a plain string."""
    return reason.kind if isinstance(reason, Reason) else ""
