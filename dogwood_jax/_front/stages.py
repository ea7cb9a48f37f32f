"""Stages of a training run, with the growths between them: ``Stage``."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import optax

from dogwood_jax._base.arguments import BY_WIDTH, FUNCTION, VARIABLES, ArgumentKind, expect_given
from dogwood_jax._base.trees import PyTree, is_array, struct_of
from dogwood_jax._front.grow import grow
from dogwood_jax._front.plan import DEPTH, plan
from dogwood_jax._growth.growth import Growth
from dogwood_jax._optimizer.opt_state import grow_opt_state
from dogwood_jax._widths.trace import trace
from dogwood_jax.strategies import DepthStrategy, Strategy

Apply = Callable[[Any, jax.Array], Any]

_STRATEGY = ArgumentKind(
    "a strategy from dw.strategies, or a mapping {width: strategy}",
    lambda value: isinstance(value, Strategy | Mapping),
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Stage:
    """A stretch of training, and how the network grows before it.

    Attributes:
        epochs: how many times to go through the data.
        sizes: new number of units by width, as for ``dogwood_jax.plan``.
        target: a pytree of arrays or ``jax.ShapeDtypeStruct`` of the larger model, wider, deeper or
            both. Where it holds arrays, free values are its own.
        apply: the larger model's function, if the old one does not take larger arrays. This is so
            for deeper models, and for modules with sizes in their configuration.
        strategy: how new units are filled in, as for ``dogwood_jax.plan``.
        depth: how new layers are filled in, as for ``dogwood_jax.plan``.
        fields: what fields of the optimizer's state hold, as for ``dogwood_jax.grow_opt_state``.

    Raises:
        TypeError: if arguments are of the wrong kind.
        ValueError: if it is said how to grow, but not to what.

    Example:
        >>> from dogwood_jax.training import Stage
        >>> [Stage(epochs=2), Stage(epochs=14, sizes={"hidden": 128})][1].sizes
        {'hidden': 128}
    """

    epochs: int
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
                "training.Stage: strategy= and depth= say how the network grows, so pass sizes= or "
                "target=, too"
            )

    @property
    def grows(self) -> bool:
        """Whether the network grows before it."""
        return self.sizes is not None or self.target is not None


@dataclass(frozen=True)
class Planned:
    """A stage that is known to fit the network.

    Attributes:
        epochs: how many times to go through the data.
        apply: the network's function in this stage.
        growth: how the network grows before it, or None.
        fresh: the larger model's own arrays, or None.
        fields: see ``Stage``.
    """

    epochs: int
    apply: Apply
    growth: Growth | None = None
    fresh: PyTree = None
    fields: Mapping[Any, Any] | None = None

    def grown(
        self,
        variables: PyTree,
        opt_state: optax.OptState | None,
        tx: optax.GradientTransformation,
        key: jax.Array,
    ) -> tuple[PyTree, optax.OptState | None]:
        """Returns the network and its optimizer's state as they are when the stage begins."""
        if self.growth is None:
            return variables, opt_state
        wide = grow(variables, self.growth, key=key, fresh=self.fresh)
        if opt_state is None:  # it begins with this stage
            return wide, None
        return wide, grow_opt_state(opt_state, self.growth, tx, variables=wide, fields=self.fields)


def planned(
    stages: Sequence[Stage],
    apply: Apply,
    variables: PyTree,
    inputs: jax.ShapeDtypeStruct,
    opt_state: optax.OptState,
    tx: optax.GradientTransformation,
) -> tuple[list[Planned], list[str]]:
    """Plans all growths of a run before any work; returns them, and what stands in the way.

    Args:
        stages: the stages.
        apply: the network's function at first.
        variables: its arrays.
        inputs: the shape of a batch of inputs, preprocessed.
        opt_state: the shapes of the optimizer's state at first.
        tx: the optimizer.
    """
    shapes = jax.tree.map(lambda leaf: struct_of(leaf) if is_array(leaf) else leaf, variables)
    found: list[Planned] = []
    for number, stage in enumerate(stages):
        own = stage.apply or apply
        if not stage.grows:
            found.append(Planned(stage.epochs, own))
            apply = own
            continue
        try:
            growth = _planned(stage, apply, shapes, inputs)
        except (TypeError, ValueError) as error:
            return found, [f"stages[{number}]: {error}"]
        shapes = _grown(shapes, growth)
        made = Planned(stage.epochs, own, growth, fields=stage.fields)
        try:
            opt_state = jax.eval_shape(
                lambda state, wide, made=made: grow_opt_state(
                    state, made.growth, tx, variables=wide, fields=made.fields
                ),
                opt_state,
                shapes,
            )
        except (TypeError, ValueError) as error:
            return found, [f"stages[{number}]: the optimizer's state cannot grow: {error}"]
        try:
            jax.eval_shape(own, shapes, inputs)
        except Exception as error:  # any function may raise that knows its sizes
            return found, [
                f"stages[{number}]: apply does not take the grown variables ({error}); give the "
                "stage the larger model's function as apply="
            ]
        is_shapes = any(
            isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(stage.target)
        )
        found.append(replace(made, fresh=None if is_shapes else stage.target))
        apply = own
    return found, []


def _planned(stage: Stage, apply: Apply, variables: PyTree, inputs: jax.ShapeDtypeStruct) -> Growth:
    """Returns the growth before a stage."""
    widths, target = trace(apply, variables, inputs), stage.target
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
    """Returns the shapes of a network's arrays once it has grown."""
    return jax.eval_shape(
        lambda variables, key: grow(variables, growth, key=key), variables, jax.random.key(0)
    )
