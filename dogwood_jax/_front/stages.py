"""Stages of a training run, with growths between them: ``Stage``."""

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

import jax

from dogwood_jax._base.arguments import (
    BY_WIDTH,
    FUNCTION,
    NUMBER,
    VARIABLES,
    ArgumentKind,
    expect_given,
    is_count,
)
from dogwood_jax._base.trees import PyTree, is_array, struct_of
from dogwood_jax._front.grow import grow
from dogwood_jax._front.plan import DEPTH, plan
from dogwood_jax._growth.growth import Growth
from dogwood_jax._optimizer.opt_state import grow_opt_state
from dogwood_jax._plan.own_function import in_larger_module
from dogwood_jax._widths.trace import trace
from dogwood_jax.strategies import DepthStrategy, Strategy

Apply = Callable[[Any, jax.Array], Any]

_STRATEGY = ArgumentKind(
    "a strategy from dw.strategies, a function (widths, name, old, new), or a mapping of widths",
    lambda value: callable(value) or isinstance(value, Mapping),
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Stage:
    """A part of a training run, and how the network grows before it.

    A stage ends after ``epochs`` or ``steps``, or once ``seconds`` have passed. If it ends within a
    pass over the data, the next stage continues with the rest of the pass.

    Attributes:
        epochs: how many passes over the data the stage takes, counted in steps.
        steps: in place of ``epochs``, how many batches to train on.
        seconds: time limit of the stage, alone or together with ``epochs`` or ``steps``. The time
            includes growing, compiling and ``after_epoch``. The clock is read between compiled
            calls of at most 16 steps, and one more call may already be running.
        sizes: new number of units by width, as for ``dogwood_jax.plan``.
        target: a pytree of arrays or ``jax.ShapeDtypeStruct`` of the larger model, wider, deeper or
            both. If it holds arrays, free values are taken from it.
        apply: the larger model's function, if the old one does not take larger arrays. For a Linen
            module, the function is found by default, see ``dogwood_jax.larger``.
        strategy: how new units are filled in, as for ``dogwood_jax.plan``.
        depth: how new layers are filled in, as for ``dogwood_jax.plan``. By default outputs stay,
            which suits a network in use. If only the final loss counts, copies between old layers
            reach a lower one, ``dogwood_jax.strategies.interpose(scaled=True)``: see the guide
            "Does it pay?".
        fields: contents of the optimizer state's fields, as for ``dogwood_jax.grow_opt_state``.

    Raises:
        TypeError: if arguments are of the wrong kind.
        ValueError: if ``strategy`` or ``depth`` is given without ``sizes`` or ``target``.

    Example:
        >>> from dogwood_jax.training import Stage
        >>> [Stage(epochs=2), Stage(epochs=14, sizes={"hidden": 128})][1].sizes
        {'hidden': 128}
        >>> stages = [Stage(steps=500), Stage(seconds=3600, sizes={"hidden": 128})]
    """

    epochs: int | None = None
    steps: int | None = None
    seconds: float | None = None
    sizes: Mapping[Any, int] | None = None
    target: PyTree = None
    apply: Apply | None = None
    strategy: Strategy | Mapping[str, Strategy] | None = None
    depth: DepthStrategy | None = None
    fields: Mapping[Any, Any] | None = None

    def __post_init__(self) -> None:
        expect_given(
            "training.Stage",
            sizes=(BY_WIDTH, self.sizes),
            target=(VARIABLES, self.target),
            apply=(FUNCTION, self.apply),
            strategy=(_STRATEGY, self.strategy),
            depth=(DEPTH, self.depth),
        )
        if not self.grows and (self.strategy is not None or self.depth is not None):
            raise ValueError(
                "training.Stage: strategy= and depth= need a growth; pass sizes= or target= as well"
            )

    @property
    def grows(self) -> bool:
        """Whether the network grows before the stage."""
        return self.sizes is not None or self.target is not None


@dataclass(frozen=True)
class Planned:
    """A stage whose growth has been planned.

    Attributes:
        stage: the stage.
        apply: the network's function in this stage.
        variables: the shapes of its arrays in this stage.
        growth: how the network grows before the stage, or None.
    """

    stage: Stage
    apply: Apply
    variables: PyTree
    growth: Growth | None = None

    def grown(
        self,
        variables: PyTree,
        opt_state: PyTree | None,
        tx: Any,
        key: jax.Array,
    ) -> tuple[PyTree, PyTree | None]:
        """Returns the network and its optimizer's state at the beginning of the stage."""
        if self.growth is None:
            return variables, opt_state
        target = jax.tree.leaves(self.stage.target)
        has_values = not any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in target)
        fresh = self.stage.target if has_values else None
        wide = grow(variables, self.growth, key=key, fresh=fresh)
        if opt_state is None:  # the optimizer begins with this stage
            return wide, None
        return wide, self._grown_state(opt_state, tx, wide)

    def grown_state_shapes(self, opt_state: PyTree, tx: Any) -> PyTree:
        """Returns the shapes of the optimizer's state at the beginning of the stage."""
        if self.growth is None:
            return opt_state
        return jax.eval_shape(
            lambda state, wide: self._grown_state(state, tx, wide), opt_state, self.variables
        )

    def _grown_state(self, opt_state: PyTree, tx: Any, wide: PyTree) -> PyTree:
        assert self.growth is not None
        fields = self.stage.fields
        return grow_opt_state(opt_state, self.growth, tx, variables=wide, fields=fields)


def planned(
    stages: Sequence[Stage], apply: Apply, variables: PyTree, *inputs: Any
) -> tuple[list[Planned], list[str]]:
    """Plans all growths of a run before any work; returns the planned stages and problems.

    Args:
        stages: the stages.
        apply: the network's function at first.
        variables: its arrays, or their shapes.
        *inputs: a batch of inputs as the network takes them, or their shapes.
    """
    shapes = jax.tree.map(lambda leaf: struct_of(leaf) if is_array(leaf) else leaf, variables)
    found: list[Planned] = []
    for number, stage in enumerate(stages):
        own, growth = stage.apply or apply, None
        if stage.grows:
            try:
                growth = _planned(stage, apply, shapes, inputs)
            except (TypeError, ValueError) as error:
                return found, [f"stages[{number}]: {error}"]
            shapes = _grown(shapes, growth)
            if stage.apply is None:
                own = in_larger_module(growth.widths, growth.sizes, shapes, inputs) or apply
            try:
                jax.eval_shape(own, shapes, *inputs)
            except Exception as error:  # a function with fixed sizes may raise anything
                return found, [
                    f"stages[{number}]: apply does not take the grown variables ({error}); give "
                    "the stage the larger model's function as apply="
                ]
        found.append(Planned(stage, own, shapes, growth))
        apply = own
    return found, []


def state_problems(stages: Sequence[Planned], opt_state: PyTree, tx: Any) -> list[str]:
    """Returns a problem if the optimizer's state cannot grow for a stage.

    Args:
        stages: the stages.
        opt_state: the shapes of the state at first.
        tx: the optimizer.
    """
    for number, stage in enumerate(stages):
        try:
            opt_state = stage.grown_state_shapes(opt_state, tx)
        except (TypeError, ValueError) as error:
            return [f"stages[{number}]: the optimizer's state cannot grow: {error}"]
    return []


def length_problems(stage: Stage, place: str = "") -> list[str]:
    """Returns problems of a stage's length.

    Args:
        stage: the stage.
        place: prefix of argument names, such as ``"stages[0]."``.
    """
    counts = {"epochs": stage.epochs, "steps": stage.steps}
    given = [name for name, value in counts.items() if value is not None]
    if not given and stage.seconds is None:
        return [f"{place}epochs: expected epochs=, steps= or seconds=, got none of them"]
    problems = [
        f"{place}{name}: expected an integer, 0 or more, got {counts[name]!r}"
        for name in given
        if not is_count(counts[name], at_least=0)
    ]
    if len(given) == 2:
        problems.append(f"{place}steps: expected either epochs= or steps=, got both")
    if stage.seconds is not None:
        if not NUMBER.fits(stage.seconds) or not 0 < stage.seconds < inf:
            problems.append(f"{place}seconds: expected a positive number, got {stage.seconds!r}")
    return problems


def stages_problems(stages: Any) -> list[str]:
    """Returns problems of a list of stages that show without the network."""
    is_list = isinstance(stages, Sequence) and len(stages) > 0
    if not is_list or not all(isinstance(one, Stage) for one in stages):
        return [f"stages: expected a list of training.Stage, got {stages!r}"]
    return [
        problem
        for number, stage in enumerate(stages)
        for problem in length_problems(stage, f"stages[{number}].")
    ]


def steps_of(stage: Stage, an_epoch: int) -> float:
    """Returns how many steps a stage takes at most; infinity if only the clock ends it.

    Args:
        stage: the stage.
        an_epoch: the number of steps in an epoch.
    """
    if stage.epochs is not None:
        return operator.index(stage.epochs) * an_epoch
    return inf if stage.steps is None else operator.index(stage.steps)


def _planned(stage: Stage, apply: Apply, variables: PyTree, inputs: tuple[Any, ...]) -> Growth:
    """Returns the growth before a stage."""
    widths, target = trace(apply, variables, *inputs), stage.target
    if target is None and stage.apply is not None:
        # With a target, ``plan`` compares the larger model's function with the old one.
        target = _grown(variables, plan(widths, stage.sizes, strategy=stage.strategy))
    return plan(
        widths,
        stage.sizes,
        target=target,
        target_apply=stage.apply if target is not None else None,
        strategy=stage.strategy,
        depth=stage.depth,
    )


def _grown(variables: PyTree, growth: Growth) -> PyTree:
    """Returns the shapes of a network's arrays after a growth."""
    return jax.eval_shape(
        lambda variables, key: grow(variables, growth, key=key), variables, jax.random.key(0)
    )
