"""Ways to copy experts, to be tried in turn: ``Copied`` and ``ways_to_copy``.

Every expert is copied, with the router's weights that make its logit. If the number of chosen
experts grows by the same factor, all copies of an expert are chosen where the expert was. With a
softmax, the copies share the gate of the expert, so outputs stay. With sigmoids, each copy has the
whole gate, so the outputs of experts must be divided. If one expert is chosen before and after, one
of its copies is chosen, and outputs may have to be multiplied.

An evaluation decides: the first way that is shown to keep outputs is used.
"""

import itertools
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import NamedTuple, TypeVar

from dogwood_jax import strategies
from dogwood_jax._growth.growth import Change, Growth
from dogwood_jax._plan.experts.found_mixtures import RoutedExperts, factors_of_outputs
from dogwood_jax._widths.widths import Recipe, Widths
from dogwood_jax.strategies import Start

T = TypeVar("T")

STAYS = "outputs stay, as both programs show"  # although they were expected to change


class Attempts(NamedTuple):
    """Growths that are tried in turn, until an evaluation shows that one keeps outputs.

    Attributes:
        growths: the growths, with the notes for the case that outputs are not shown to stay.
        notes: the notes for a growth that is shown to keep outputs.
    """

    growths: Sequence[Growth] = ()
    notes: Sequence[str] = ()


_MOST = 24  # upper limit on ways for networks with several kinds of routers


def tried(
    alternatives: Mapping[str, Sequence[T]], kinds: Mapping[str, Hashable] = MappingProxyType({})
) -> Iterator[dict[str, T]]:
    """Yields the first alternative of each router, then the second of each, and so on.

    A router with fewer alternatives keeps its last one. Without routers, there is one way. If
    routers are of several kinds, such as softmax in one layer and sigmoids in another, ways with
    different alternatives for each kind follow.

    Args:
        alternatives: what is tried for each router, by name.
        kinds: the kind of each router, by name; if empty, all routers are of the same kind.
    """
    most = max(map(len, alternatives.values()), default=1)
    of_kinds = [*dict.fromkeys(kinds.get(name) for name in alternatives)]
    ways = [dict.fromkeys(of_kinds, index) for index in range(most)]
    for indices in itertools.islice(itertools.product(range(most), repeat=len(of_kinds)), _MOST):
        if len({*indices}) > 1:
            ways.append(dict(zip(of_kinds, indices, strict=True)))
    for way in ways:
        chosen = {name: way[kinds.get(name)] for name in alternatives}
        yield {name: some[min(chosen[name], len(some) - 1)] for name, some in alternatives.items()}


CARRY_NOISE = "outputs change, because copies carry noise"


@dataclass(frozen=True)
class Copied:
    """The experts of one router, and their new number.

    Attributes:
        experts: the experts.
        new: the number of experts after the growth.
        larger: the same experts in the larger model; None if its program is not known.
        sources: for each expert after the growth, the old expert that it copies, see ``in_turn``.
        strategy: how the widths of the experts grow.
    """

    experts: RoutedExperts
    new: int
    larger: RoutedExperts | None
    sources: tuple[int, ...]
    strategy: Start = strategies.UPCYCLE

    @property
    def changes(self) -> dict[str, Change]:
        """How the widths of the experts change, by name."""
        strategy = replace(self.strategy, exact=not self.reasons)
        old, new = self.experts.count, self.new
        return {name: Change(name, old, new, strategy, self.sources) for name in self.experts.names}

    @property
    def reasons(self) -> list[str]:
        """Why outputs change, if that is known without an evaluation."""
        reasons, old = [], self.experts.count
        if len({self.sources.count(expert) for expert in range(old)}) > 1:
            reasons.append("some experts get more copies than others, and so more weight")
        elif self.larger is not None and not self.is_still_one:
            theirs, ours = self.larger.choice.chosen, self.experts.choice.chosen
            if theirs * old != ours * self.new:
                reasons.append(
                    f"the larger model chooses {theirs} of {self.new} experts, and not all "
                    f"{ours * self.new // old} copies of the experts chosen before"
                )
        return reasons

    @property
    def note(self) -> str:
        """The note if outputs stay."""
        if self.is_still_one:
            return (
                f"outputs stay because the larger model chooses {self._choice}, and copies compute "
                "the same. Copies have equal logits, so the first is always chosen; use noise= of "
                "dw.upcycle to make them differ"
            )
        why = "if" if self.larger is None else "because"
        return f"outputs stay {why} the larger model chooses {self._choice}"

    @property
    def unshown(self) -> str:
        """The note if outputs are not shown to stay."""
        if self.reasons:
            return f"outputs change, because {' and '.join(self.reasons)}"
        does = "must choose" if self.larger is None else "chooses"
        return f"the larger model {does} {self._choice}"

    def recipes(self, widths: Widths) -> Iterator[Recipe | None]:
        """Yields recipes that rescale the outputs of copies; the first is None, no rescaling."""
        yield None
        power = 1.0 if self.is_still_one else -1.0
        for paths in factors_of_outputs(widths, self.experts):
            yield Recipe(copies=tuple((path, power) for path in paths))

    @property
    def _choice(self) -> str:
        """A text with the number of experts that the larger model chooses if outputs stay."""
        old, new, chosen = self.experts.count, self.new, self.experts.choice.chosen
        if self.is_still_one:
            return f"one of {new} experts, as one of {old} before"
        return f"{chosen * new // old} of {new} experts instead of {chosen} of {old}"

    @property
    def is_still_one(self) -> bool:
        """Whether one expert is chosen for each token in both networks."""
        theirs = None if self.larger is None else self.larger.choice.chosen
        return theirs == self.experts.choice.chosen == 1


def in_turn(old: int, new: int) -> tuple[int, ...]:
    """Returns the old expert that each expert after the growth copies, if all copy in turn."""
    return tuple(expert % old for expert in range(new))


def ways_to_copy(widths: Widths, every: Sequence[Copied]) -> list[dict[str, Change]]:
    """Returns changes by width, to be tried in turn: plain copies first, then rescaled ones.

    Args:
        widths: the network's widths.
        every: the experts that are copied.
    """
    changes = {name: change for copied in every for name, change in copied.changes.items()}
    recipes = {copied.experts.router: [*copied.recipes(widths)] for copied in every}
    kinds = {copied.experts.router: copied.experts.choice.gates for copied in every}
    return [
        {**changes, **{name: replace(changes[name], recipe=way[name]) for name in recipes}}
        for way in tried(recipes, kinds)
    ]


def with_noise(growth: Growth, noise: float) -> Growth:
    """Returns a growth with noise on copies of experts.

    Args:
        growth: the growth, evaluated without noise.
        noise: see ``upcycle``.
    """
    changes = tuple(
        replace(change, strategy=replace(change.strategy, noise=float(noise)))
        for change in growth.changes
    )
    evidence = growth.evidence if growth.evidence and growth.evidence.why_not else None
    notes = (CARRY_NOISE, *(f"without noise, {note}" for note in growth.notes))
    return replace(growth, changes=changes, notes=notes, evidence=evidence)


def notes_of(texts: Mapping[str, str]) -> list[str]:
    """Returns notes on routers from texts by name; routers with the same text share a note."""
    together: dict[str, list[str]] = {}
    for name, text in texts.items():
        together.setdefault(text, []).append(name)
    return [
        f"{names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''}: {text}"
        for text, names in together.items()
    ]
