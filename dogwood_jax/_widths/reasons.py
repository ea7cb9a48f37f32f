"""Why a width cannot grow, and what to mind when it does: ``Reason``, a sentence with a kind.

People read the sentence. Code asks for the kind, and never looks at the words.
"""

from typing import Any, Literal

ReasonKind = Literal[
    "", "suspicion", "ambiguous", "table", "must_stay", "silent", "unweighted", "integers", "unread"
]


class Reason(str):
    """A sentence with a kind.

    Attributes:
        kind: one of these, otherwise ``""``:

            - ``"suspicion"``: a constant looks computed from the size. The larger model's program
              may show that it is not.
            - ``"ambiguous"``: an exact way is known if a constant is not computed from the size, or
              if arrays can make up for it. The larger model's program shows which it is.
            - ``"table"``: numbers inside the network vary along the width. Old units may keep
              their numbers in the larger model.
            - ``"must_stay"``: a number must stay the same, or follow from the size, such as a
              constant that scales a sum over the width. The larger model's program shows whether
              it does.
            - ``"silent"``: the weights that feed new units must be zero.
            - ``"unweighted"``: all units count alike in a sum over them.
            - ``"integers"``: weights are small integers, which have no halves.
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
    return reason.kind if isinstance(reason, Reason) else _kind_by_words(reason)


def _kind_by_words(text: str) -> ReasonKind:
    """Returns the kind of a sentence from a file of version 0.1.0, which wrote no kinds."""
    if text.endswith("and looks computed from its size"):
        return "suspicion"
    if text.endswith("scales what is summed over it: the larger model must have the same"):
        return "must_stay"
    if text.startswith("the weights that feed its units must be zero for new ones"):
        return "silent"
    if text == "a table of positions is computed along it" or (
        text.startswith("a constant of shape") and text.endswith("the network varies along it")
    ):
        return "table"
    return ""
