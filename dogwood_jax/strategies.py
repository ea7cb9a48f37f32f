"""Strategies: how the weights of new units are filled in.

A strategy says what becomes of the two sides of a new unit: its *incoming* weights, which decide
what it computes, and its *outgoing* weights, which decide what it changes.

| strategy           | incoming | outgoing | preserving | gradient of new units at the first step |
|---|---|---|---|---|
| `zero_outgoing()`  | random   | zero     | yes        | outgoing nonzero, incoming zero |
| `zeros()`          | zero     | zero     | yes        | both zero, for ever where f(0) = 0 |
| `mean()`           | mean     | zero     | yes        | outgoing nonzero, the same for all |
| `random()`         | random   | random   | no         | both nonzero |
| `replicate()`      | copied   | shared   | yes        | that of the copied unit |
| `zero_incoming()`  | zero     | random   | yes        | incoming nonzero, outgoing zero |
| `tile()`           | copied   | shared   | yes        | that of the copied unit |
| `hyperclone()`     | copied   | shared   | yes        | that of the copied unit |
| `paired()`         | random   | opposed  | yes        | both nonzero |
| `shrink_perturb()` | random   | random   | no         | both nonzero |
| `gradmax()`        | zero     | chosen   | yes        | incoming largest, outgoing zero |
| `gradmax()`, in    | chosen   | zero     | yes        | outgoing large, incoming zero |
| `firefly()`        | chosen   | zero     | yes        | outgoing large, incoming zero |

A function of your own is a strategy, too: it takes the widths, a name, a size and a new size, and
returns `start(incoming=..., outgoing=...)`.

`stack()`, `interpose()` and `new_layers()` say how the new layers of a deeper model are filled in:
`plan(depth=...)`. They do not preserve the function; without `depth=`, new layers compute the
identity.

`resample()` and `resample_patch()` take a vision model to images or patches of another size. They
do not preserve the function.

`zero_incoming` and `tile` are for residual streams under norms, and for other widths that can grow
in no other way.
`gradmax` (with two variants) and `firefly` look at the gradient of a loss.
"""

import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from dogwood_jax._base.arguments import INTEGER, KEY, NUMBER, ArgumentKind, expect, is_integer

Initializer = Callable[..., jax.Array]  # (key, shape, dtype) -> array, as in jax.nn.initializers
# How entries are interpolated along an axis, see ``resample`` and ``resample_patch``.
Method = Literal["bicubic", "bilinear", "patch bicubic", "patch bilinear"]


def _is_list(value: Any) -> bool:
    return isinstance(value, Sized) and isinstance(value, Iterable)  # as arrays of any version are


def _is_mask(value: Any) -> bool:
    return _is_list(value) and all(isinstance(one, bool | np.bool_) for one in value)


_INIT = ArgumentKind("an initializer, such as jax.nn.initializers.he_normal()", callable)
_LOSS = ArgumentKind("a function, loss(variables, *batch)", callable)
_UNITS = ArgumentKind(
    "a list of units, integers",
    lambda value: _is_list(value) and all(map(is_integer, value)),
    lambda value: "np.flatnonzero(mask) are the units of a mask" if _is_mask(value) else "",
)


@dataclass(frozen=True, eq=False)
class Choice:
    """What the weights of new units are chosen by: the gradient of a loss on a batch.

    Nothing can tell whether two functions are equal. So a choice is equal only to itself, and so
    is a strategy or a growth that holds one.

    Attributes:
        side: the side that is chosen, ``"incoming"`` or ``"outgoing"``; the other is zero.
        loss: function of the larger model's variables and the batch.
        batch: its other arguments.
        epsilon: what to multiply incoming weights by instead of setting them to zero.
        candidates: how many candidates are drawn for each new unit.
        ascent: steps of gradient ascent that incoming weights take.
    """

    side: Literal["incoming", "outgoing"]
    loss: Callable[..., Any]
    batch: tuple[Any, ...] = field(repr=False)
    epsilon: float = 0.0
    candidates: int = 1
    ascent: int = 0


@dataclass(frozen=True, repr=False)
class Start:
    """What the incoming and outgoing weights of new units begin with; ``start`` makes one.

    It is a strategy that gives every width the same.

    Attributes:
        incoming: ``"free"`` (drawn from ``init``), ``"zero"``, ``"copy"``, ``"mean"`` (that of old
            units) or ``"resampled"``.
        outgoing: ``"free"``, ``"zero"``, ``"copy"``, ``"share"`` (copied, and divided among the
            copies), ``"sum"`` (added up), ``"opposed"`` (drawn, with
            opposite signs for units whose incoming weights are the same) or ``"resampled"``.
        name: what made it, for tables and errors.
        init: initializer of free weights.
        outgoing_init: that of free outgoing weights, if it is another one.
        noise: standard deviation of the noise on copies, relative to the copied array's.
        split: how copies share outgoing weights, ``"even"`` or ``"uneven"``.
        units: the old units that new ones copy in turn; all of them if empty.
        choice: what weights are chosen by, once the network has grown; or None.
        state: whether copies take over the optimizer's state of the units that they copy.
        shrink: what old weights are multiplied by.
        perturb: how many times drawn weights are added to all weights.
        exact: False if the larger network may do otherwise although the weights would allow it to
            do the same, as a router that chooses as many experts as before.
        repeats: whether new units repeat the whole width, with its mean in what is left over.
        takes_multiples_only: whether it grows widths to multiples of their sizes only.
        needs_recipe: whether it is only for widths under a norm that can grow no other way.
        is_gated: whether gates inside the network weigh copies, so that no weights are divided.
        removes: whether it is for widths that lose units.
        method: how entries are interpolated between old ones; None if they are not.
        grid: the old grid of positions, if the width is one of prefix and grid in one.
        to: the new grid.
        prefix: how many positions come before the grid.
    """

    incoming: Literal["free", "zero", "copy", "mean", "resampled"]
    outgoing: Literal["free", "zero", "copy", "share", "sum", "opposed", "resampled"]
    name: str = "start"
    init: Initializer | None = None
    outgoing_init: Initializer | None = None
    noise: float = 0.0
    split: Literal["even", "uneven"] = "even"
    units: tuple[int, ...] = ()
    choice: Choice | None = None
    state: Literal["copied", "new"] = "copied"
    shrink: float = 1.0
    perturb: float = 0.0
    exact: bool = True
    repeats: bool = False
    takes_multiples_only: bool = False
    needs_recipe: bool = False
    is_gated: bool = False
    removes: bool = False
    method: Method | None = None
    grid: tuple[int, ...] = ()
    to: tuple[int, ...] = ()
    prefix: int = 0

    def __call__(self, widths: Mapping[str, Any], name: str, old: int, new: int) -> "Start":
        """Returns itself, because it is a strategy that gives every width the same."""
        return self

    def __repr__(self) -> str:
        named = ((part.name, getattr(self, part.name), part.default) for part in fields(self))
        told = (f"{name}={value!r}" for name, value, default in named if value != default)
        return f"Start({', '.join(told)})"

    @property
    def preserving(self) -> bool:
        """Whether the grown function equals the old one."""
        silent = self.outgoing != "free" or self.incoming == "zero"
        exact = self.exact and self.noise == self.perturb == 0 and self.shrink == 1
        return silent and exact and (self.choice is None or self.choice.epsilon == 0)

    @property
    def begins_exact(self) -> bool:
        """Whether outputs are the old ones until the weights of new units are chosen."""
        return self.preserving or self.choice is not None

    @property
    def makes_alike(self) -> bool:
        """Whether some units compute the same, so that readers must act on each of them alike."""
        return self.incoming == "copy" or self.outgoing == "opposed"

    @property
    def learns(self) -> bool:
        """Whether new units learn in a hidden layer."""
        return (self.incoming, self.outgoing) != ("zero", "zero")

    @property
    def sides(self) -> tuple[str, str, bool, bool]:
        """What has to be the same of two starts for one to be tried in the place of the other."""
        return self.incoming, self.outgoing, self.repeats, self.is_gated

    @property
    def of_patches(self) -> bool:
        """Whether patches of images are resized, rather than a grid of positions."""
        return self.method is not None and self.method.startswith("patch")

    @property
    def for_experts(self) -> "Start | None":
        """How experts are copied by it, with their router's weights; None if they are not."""
        if self.sides != _COPIES.sides:
            return None
        return replace(UPCYCLE, noise=self.noise, state=self.state, units=self.units)

    def init_of(self, *, incoming: bool) -> Initializer | None:
        """Returns the initializer of free weights on a side."""
        return self.init if incoming else self.outgoing_init or self.init

    def sources(self, old: int, new: int) -> tuple[int, ...] | None:
        """Returns the old unit that each of the first units copies; None if none are copied."""
        if self.incoming != "copy" or not old:
            return None
        if self.repeats:
            return (*range(old),) * (new // old)
        copied = self.units or range(old)
        return (*range(old), *(copied[i % len(copied)] for i in range(new - old)))

    def ratio(self, old: int, new: int) -> float:
        """Returns the ratio whose powers a recipe multiplies arrays by, see ``Recipe.powers``."""
        return new // old * old / new if self.repeats else new / old

    def fate(self, *, incoming: bool, random: bool) -> str:
        """Says what becomes of weights along an axis, as a table of a growth does.

        Args:
            incoming: whether they are incoming weights.
            random: whether a new network draws them.
        """
        side = self.incoming if incoming else self.outgoing
        if self.choice is not None and (random or not incoming):
            return "chosen" if (self.choice.side == "incoming") == incoming else "zero"
        if self.removes:
            return "summed up" if side == "sum" else "kept"
        if self.perturb and random:
            return "perturbed"
        return side

    def __str__(self) -> str:
        return self.name


# What new units of a width begin with, given all widths, its name, its size and its new size.
Strategy = Callable[[Mapping[str, Any], str, int, int], Start]


def glorot(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """Glorot-uniform initializer, what new weights are drawn from by default and in Keras.

    Growth draws only the new slice, at the scale of the full new shape.

    Args:
        key: PRNG key.
        shape: shape of the array, ``[..., in, out]``.
        dtype: its floating dtype.

    Returns:
        Uniform values within ``sqrt(6 / (fan_in + fan_out))`` of zero.

    Example:
        >>> import jax
        >>> import dogwood_jax as dw
        >>> bool(abs(dw.strategies.glorot(jax.random.key(0), (4, 2))).max() <= 1)
        True

    Reference:
        Glorot and Bengio, 2010, Understanding the difficulty of training deep feedforward neural
        networks.
    """
    expect("strategies.glorot", key=(KEY, key))
    return jax.nn.initializers.glorot_uniform()(key, shape, dtype)


_SIDES = {"incoming": ("zero", "mean", "copy"), "outgoing": ("zero", "copy", "share")}


def start(
    incoming: Initializer | Literal["zero", "mean", "copy"] = glorot,
    outgoing: Initializer | Literal["zero", "copy", "share"] = "zero",
    *,
    noise: float = 0.0,
    units: Sequence[int] = (),
) -> Start:
    """What new units begin with, for a strategy of your own.

    A strategy is a function ``(widths, name, old, new)`` of the widths, the name of one, its size
    and its new size. It returns what the new units begin with. Whether outputs stay is found by
    evaluation, as for any strategy: a growth that claims it, and is wrong, is refused. Where an
    array has new entries along two widths, the initializer of the one whose units it makes draws
    all of them.

    Args:
        incoming: an initializer of ``jax.nn.initializers`` from which incoming weights are drawn,
            ``"zero"``, ``"mean"`` (that of old units), or ``"copy"``.
        outgoing: an initializer, ``"zero"``, ``"copy"``, or ``"share"``: copied, and divided among
            the copies. With an initializer, a growth does not claim that outputs stay, unless
            incoming weights are zero.
        noise: standard deviation of the noise on copies, relative to the copied array's.
        units: the old units that new ones copy in turn; all of them by default.

    Raises:
        TypeError: if arguments are of the wrong kind.
        ValueError: if a side is none of these, outgoing weights are to be copied where incoming
            ones are not, or ``noise`` is negative.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import dogwood_jax as dw
        >>> def orthogonal(widths, name, old, new):
        ...     return dw.strategies.start(incoming=jax.nn.initializers.orthogonal())
        >>> apply = lambda params, x: jax.nn.relu(x @ params["up"]) @ params["down"]
        >>> params = {"up": jnp.ones((4, 2)), "down": jnp.ones((2, 3))}
        >>> widths = dw.trace(apply, params, jnp.ones((1, 4)))
        >>> growth = dw.plan(widths, {"up": 4}, strategy=orthogonal)
        >>> wide = dw.grow(params, growth, key=jax.random.key(0))
        >>> wide["down"].tolist()[2:]
        [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
    """
    expect("strategies.start", noise=(NUMBER, noise), units=(_UNITS, units))
    sides = {"incoming": incoming, "outgoing": outgoing}
    for name, side in sides.items():
        if not (callable(side) or side in _SIDES[name]):
            raise ValueError(
                f"strategies.start: {name} must be an initializer or one of {_SIDES[name]}, got "
                f"{side!r}"
            )
    if outgoing in ("copy", "share") and incoming != "copy":
        raise ValueError(
            f"strategies.start: outgoing={outgoing!r} is for units that are copied; pass "
            "incoming='copy', too"
        )
    if not noise >= 0:
        raise ValueError(f"noise must be zero or positive, got {noise!r}")
    return Start(
        "free" if callable(incoming) else incoming,
        "free" if callable(outgoing) else outgoing,
        init=incoming if callable(incoming) else None,
        outgoing_init=outgoing if callable(outgoing) else None,
        noise=float(noise),
        units=tuple(map(operator.index, units)),
    )


def zero_outgoing(init: Initializer = glorot) -> Start:
    """New units get random incoming weights and zero outgoing weights (the default).

    Preserving: nothing reads the new units yet. Their outgoing weights have a nonzero gradient at
    the first step, their incoming weights from the second on; old weights keep their gradients.
    Where two neighbouring widths grow at once, weights from new units to old ones are zero and
    those from any unit to new ones are random.

    Args:
        init: any initializer of ``jax.nn.initializers``. It makes the full new array, so that
            fan-in and fan-out are those of the larger layer, and only the new part is kept. Where
            the network was traced, it gets the shape of a matrix, ``[in, out]``. For an attention
            kernel ``[stream, heads, head_dim]`` this is ``[stream, heads * head_dim]``. The layers
            of a stack are made one by one.

    Example:
        >>> import dogwood_jax as dw
        >>> print(dw.strategies.zero_outgoing())
        zero_outgoing

    Reference:
        Gesmundo and Maile, 2023, Composable Function-preserving Expansions for Transformer
        Architectures, theorem 3.1.
    """
    expect("strategies.zero_outgoing", init=(_INIT, init))
    return Start("free", "zero", "zero_outgoing", init)


def zeros() -> Start:
    """Everything new is zero.

    Preserving, but the new units never learn where the activation maps zero to zero, as relu and
    tanh do: with zero incoming and zero outgoing weights, both gradients are zero for ever. Under
    others, such as sigmoid, the outgoing weights have a gradient at the first step, the same for
    all new units. It is meant for outputs of a network, such as the logits of new classes, whose
    incoming weights have a gradient from the loss.

    Example:
        >>> import dogwood_jax as dw
        >>> dw.strategies.zeros().preserving
        True

    Reference:
        No paper: the notebook ``mnist.ipynb`` of https://github.com/kostaleonard/dogwood.
    """
    return Start("zero", "zero", "zeros")


def mean() -> Start:
    """New units begin at the mean of the old ones; their outgoing weights are zero.

    For rows of a vocabulary and its logits. The logit of a new token is the mean of the old ones,
    so it is never the largest at first, and the loss tells new tokens apart at the first step. All
    new units are alike: hidden ones, which nothing tells apart, would stay so.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import dogwood_jax as dw
        >>> apply = lambda params, x: x @ params["head"]
        >>> params = {"head": jnp.array([[1.0, 3.0], [4.0, 8.0]])}
        >>> widths = dw.trace(apply, params, jnp.ones((1, 2)))
        >>> mean = dw.strategies.mean()
        >>> growth = dw.plan(widths, {"head": 3}, strategy=mean, interface=True)
        >>> dw.grow(params, growth)["head"].tolist()
        [[1.0, 3.0, 2.0], [4.0, 8.0, 6.0]]

    Reference:
        Hewitt, 2021, Initializing New Word Embeddings for Pretrained Language Models.
    """
    return Start("mean", "zero", "mean")


def random(init: Initializer = glorot) -> Start:
    """Everything new is random: not preserving, kept as the baseline.

    All new weights have a nonzero gradient from the first step on.

    Args:
        init: any initializer of ``jax.nn.initializers``, given the full new shape.

    Example:
        >>> import dogwood_jax as dw
        >>> dw.strategies.random().preserving
        False

    Reference:
        Chen, Goodfellow and Shlens, 2016, Net2Net, where it is the baseline "random pad".
    """
    expect("strategies.random", init=(_INIT, init))
    return Start("free", "free", "random", init)


def replicate(
    noise: float = 0.0,
    split: Literal["even", "uneven"] = "even",
    units: Sequence[int] = (),
    state: Literal["copied", "new"] = "copied",
) -> Start:
    """New units copy old ones, which share their outgoing weights with the copies.

    Preserving if ``noise`` is zero. At the first step the outgoing weights of a copy have the same
    gradient as those of its old unit. The gradient of its incoming weights is that of the old
    unit's, times the copy's share. In the optimizer's state, copies get the moments of their unit,
    too. With an even split, copies stay equal for ever under a deterministic optimizer. With an
    uneven split or a little noise they become different.

    Args:
        noise: standard deviation of normal noise added to the incoming weights of new units, as a
            fraction of the standard deviation of the array; not preserving unless zero.
        split: ``"even"`` divides outgoing weights equally among k copies; ``"uneven"`` gives them
            shares in the ratio 1 : 2 : ... : k, which breaks the symmetry without noise.
        units: the old units that new ones copy, in turn; all of them in their order unless given.
            ``dogwood_jax.activity`` ranks them.
        state: what copies have in the optimizer's state: ``"copied"`` moments, or those of a
            ``"new"`` weight. New moments let copies part under optimizers such as Adam, and
            ``growable(warmup=...)`` warms up their rate.

    Raises:
        TypeError: if ``noise`` is no number, or ``units`` are no integers.
        ValueError: if ``noise`` is negative, or ``split`` or ``state`` is none of its two.

    Example:
        >>> import dogwood_jax as dw
        >>> dw.strategies.replicate().preserving, dw.strategies.replicate(noise=0.01).preserving
        (True, False)

    Reference:
        Chen, Goodfellow and Shlens, 2016, Net2Net: Accelerating Learning via Knowledge Transfer
        (even); Wang et al., 2024, LEMON: Lossless model expansion (uneven); Yu et al., 2026,
        SPARKLING (new state for copies, with a warmup).
    """
    expect("strategies.replicate", noise=(NUMBER, noise), units=(_UNITS, units))
    if not noise >= 0:
        raise ValueError(f"noise must be zero or positive, got {noise!r}")
    _check_split(split)
    _check_state(state)
    copied = tuple(map(operator.index, units))
    return Start(
        "copy", "share", "replicate", noise=float(noise), split=split, units=copied, state=state
    )


def hyperclone(state: Literal["copied", "new"] = "copied") -> Start:
    """Whole widths are repeated, under norms too, so that a model is cloned n times as wide.

    Preserving. For all widths at once, to multiples of their sizes: ``plan(widths, {name: 2 * size
    for name, size in ...}, strategy=strategies.hyperclone())``. Outgoing weights are divided among
    the copies. Mean and variance of a repeated stream are those of the stream, so LayerNorm and
    RMSNorm need no change. All copies learn alike under a deterministic optimizer unless dropout,
    or a new ``state``, lets them part.

    Args:
        state: what copies have in the optimizer's state, as for ``replicate``.

    Raises:
        ValueError: if ``state`` is none of its two.

    Example:
        >>> import dogwood_jax as dw
        >>> dw.strategies.hyperclone().preserving
        True

    Reference:
        Samragh et al., 2024, Scaling Smart: Accelerating Large Language Model Pre-training with
        Small Model Initialization (HyperCloning, the symmetric variant).
    """
    _check_state(state)
    return Start(
        "copy", "share", "hyperclone", state=state, repeats=True, takes_multiples_only=True
    )


def paired(init: Initializer = glorot) -> Start:
    """New units come in pairs with the same random incoming and opposite outgoing weights.

    Preserving: what one unit of a pair adds, the other takes away. Unlike ``zero_outgoing``, both
    sides of new units have a gradient at the first step, and the units of a pair part with it. Of
    an odd number of new units the last has zero outgoing weights.

    Args:
        init: any initializer of ``jax.nn.initializers``, given the full new shape.

    Example:
        >>> import dogwood_jax as dw
        >>> dw.strategies.paired().preserving
        True

    Reference:
        Yuan, Savarese and Maire, 2023, Accelerated Training via Incrementally Growing Neural
        Networks using Variance Transfer and Learning Rate Adaptation: the pairs (V, V) and (Z, -Z).
        Its rescaling of old weights is not done, because outputs would change.
    """
    expect("strategies.paired", init=(_INIT, init))
    return Start("free", "opposed", "paired", init)


def shrink_perturb(shrink: float = 0.5, perturb: float = 0.5, init: Initializer = glorot) -> Start:
    """Old weights are multiplied by a number, padded with zeros, and noise is added to all.

    Not preserving: what the network has learned becomes fainter, so that it learns on more like a
    new network. Arrays that a new network draws are changed where the width occurs in them, biases
    and scales only grow.

    Args:
        shrink: what old weights are multiplied by.
        perturb: how many times the weights of a new network are added to all weights.
        init: any initializer of ``jax.nn.initializers``, given the full new shape.

    Raises:
        TypeError: if ``shrink`` or ``perturb`` is no number.
        ValueError: if one of both is negative.

    Example:
        >>> import dogwood_jax as dw
        >>> dw.strategies.shrink_perturb().preserving
        False

    Reference:
        Ash and Adams, 2020, On Warm-Starting Neural Network Training (shrink and perturb); with
        zero padding, for growing, arXiv 2605.13405, 2026.
    """
    expect("strategies.shrink_perturb", shrink=(NUMBER, shrink), perturb=(NUMBER, perturb))
    expect("strategies.shrink_perturb", init=(_INIT, init))
    if not (shrink >= 0 and perturb >= 0):
        raise ValueError(f"shrink and perturb must not be negative, got {shrink} and {perturb}")
    return Start(
        "zero", "zero", "shrink_perturb", init, shrink=float(shrink), perturb=float(perturb)
    )


def zero_incoming(init: Initializer = glorot) -> Start:
    """New units of a residual stream stay zero; what reads them is random.

    For a stream under RMSNorm or another norm without a mean, and for other widths that are summed
    over so that zeros change nothing, such as the codes of a variational autoencoder. If what reads
    new units meets noise instead of zeros, it is zero, too. Everything that writes the stream
    gets zeros for its new units, so the sum of squares stays. But from n to m units the norm's mean
    of squares changes by n / m. So all that writes the stream is multiplied by sqrt(m / n), and
    what reads it is divided by that: the norm's scale, weights without a norm. Epsilons stay as
    they are. If the larger model has its epsilon times n / m, only the norm's scale is divided. So
    it is, too, where what writes the stream cannot be multiplied. Then the growth's notes say which
    epsilon the larger model must have. Preserving. At the first step only the zero weights that
    write the new units have a gradient. The weights that read these units have one from the second
    step on.

    Args:
        init: any initializer of ``jax.nn.initializers``, given the full new shape.

    Example:
        >>> import dogwood_jax as dw
        >>> dw.strategies.zero_incoming().preserving
        True

    Reference:
        Gesmundo and Maile, 2023, Composable Function-preserving Expansions for Transformer
        Architectures, theorem 3.5; the factors that keep the epsilon follow from the algebra.
    """
    expect("strategies.zero_incoming", init=(_INIT, init))
    return Start("zero", "free", "zero_incoming", init, needs_recipe=True)


def tile(init: Initializer = glorot, split: Literal["even", "uneven"] = "even") -> Start:
    """New units of a residual stream repeat it, with its mean in what is left over.

    For a stream under LayerNorm. From n to m units it is repeated q = m // n times; the remaining
    m - q n units hold its mean, so that the mean stays and the variance changes by s = q n / m. So
    all that writes the stream is divided by sqrt(s), and the norm's scale is multiplied by it.
    Epsilons stay as they are. If the larger model has its epsilon times s, only the norm's scale is
    multiplied. So it is, too, where what writes the stream cannot be divided. Then the growth's
    notes say which epsilon the larger model must have. Weights that read the stream are divided
    among the copies. An embedding that is read as the head, too, is repeated whole, and the last
    norm is divided by q. Weights that read the remaining units are random, because these units are
    zero behind the norm. Preserving. Gradients at the first step are those of ``replicate``.

    Where an array scales what is written unit by unit, as LayerScale does, remaining units get the
    mean of its absolute values. What writes them is a mean of the old weights, weighed by the
    array, so that the product is the mean of the old products. New weights are then no larger than
    old ones, and their gradients are about as large, so an optimizer's state grows as elsewhere.
    If something else reads these weights, only multiples are exact.

    Neither ``narrow`` nor ``merge_symmetric`` can undo it.

    Args:
        init: any initializer of ``jax.nn.initializers``, given the full new shape.
        split: how copies share outgoing weights, as for ``replicate``.

    Example:
        >>> import dogwood_jax as dw
        >>> dw.strategies.tile().preserving
        True

    Reference:
        Wang et al., 2024, LEMON: Lossless model expansion; the factors that keep the epsilon follow
        from the algebra.
    """
    expect("strategies.tile", init=(_INIT, init))
    _check_split(split)
    return Start("copy", "share", "tile", init, split=split, repeats=True, needs_recipe=True)


def gradmax(
    loss: Callable[..., Any],
    *batch: Any,
    variant: Literal["outgoing", "incoming"] = "outgoing",
    epsilon: float = 0.0,
    init: Initializer = glorot,
) -> Start:
    """New units get the weights with which they receive the largest gradient.

    The variant ``"outgoing"`` sets incoming weights and biases to zero. It chooses outgoing weights
    with which the gradient of the incoming weights is as large as it can be. They are orthogonal
    vectors, as long as those of old units on average: the top right-singular vectors of the matrix
    of second derivatives of the loss by incoming and outgoing weights. This is preserving where the
    activation maps zero to zero. Outgoing weights have a gradient from the second step on. In a
    gated unit only one factor is zero, in an attention head only the values. If there are more new
    units than singular vectors, the others are as ``zero_outgoing`` makes them.

    ``jax.nn.relu`` passes no gradient at zero, so under it ``grow`` refuses zero incoming weights:
    pass ``epsilon``, or the other variant. It also refuses activations that are not zero at zero.
    Only values show these two cases. So under ``jax.jit``, where there are none, nothing is
    refused, and the new units are as ``zero_outgoing`` makes them.

    The variant ``"incoming"`` sets outgoing weights to zero, which is preserving for any
    activation. Incoming weights begin as drawn. Then they take a few steps, at the same norm, that
    make the gradient of the outgoing weights larger. Each unit follows a direction orthogonal to
    those of the other units. Where units respond linearly, the steps lead to the left-singular
    vectors. Units beyond the number of these vectors stay as drawn, and all do if the gradient does
    not become larger. Incoming weights have a gradient from the second step on.

    Where arrays are divided among devices, the weights on both sides of the width are gathered for
    the choice, and the results are divided again.

    Args:
        loss: function ``loss(variables, *batch)`` of the *larger* model's variables that returns
            a scalar. It is called while the network grows, once for each width that this strategy
            is given, with the other widths grown.
        *batch: arrays, or pytrees of them, with enough examples to tell a direction.
        variant: the side whose weights are chosen; the other is zero.
        epsilon: for ``"outgoing"``, what to multiply drawn incoming weights by instead of setting
            them to zero; outputs change by about as much. Biases are zero.
        init: any initializer of ``jax.nn.initializers``, given the full new shape, for incoming
            weights.

    Raises:
        TypeError: if ``loss`` or ``init`` is no function, or ``epsilon`` no number.
        ValueError: for another variant, or an ``epsilon`` that is negative or of no use.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import dogwood_jax as dw
        >>> def loss(params, x, y):  # of any number of units
        ...     return jnp.mean((jnp.tanh(x @ params["up"]) @ params["down"] - y) ** 2)
        >>> x, y = jax.random.normal(jax.random.key(0), (2, 9, 3))
        >>> params = {"up": x[:3, :2], "down": x[:2]}
        >>> apply = lambda params, x: jnp.tanh(x @ params["up"]) @ params["down"]
        >>> strategy = dw.strategies.gradmax(loss, x, y)
        >>> growth = dw.plan(dw.trace(apply, params, x), {"up": 4}, strategy=strategy)
        >>> wide = dw.grow(params, growth, key=jax.random.key(1))
        >>> bool(jnp.allclose(apply(wide, x), apply(params, x)))
        True

    Reference:
        Evci, van Merrienboer, Unterthiner, Vladymyrov and Pedregosa, 2022, GradMax: Growing
        Neural Networks using Gradient Information.
    """
    expect("strategies.gradmax", loss=(_LOSS, loss))
    expect("strategies.gradmax", epsilon=(NUMBER, epsilon), init=(_INIT, init))
    if variant not in ("outgoing", "incoming"):
        raise ValueError(f"variant must be 'outgoing' or 'incoming', got {variant!r}")
    if not 0 <= epsilon < math.inf or (epsilon and variant == "incoming"):
        raise ValueError(
            f"epsilon must be zero or positive, and is for variant='outgoing'; got {epsilon!r}"
        )
    ascent = 8 if variant == "incoming" else 0
    choice = Choice(variant, loss, batch, float(epsilon), ascent=ascent)
    return Start("free", "zero", "gradmax", init, choice=choice)


def firefly(
    loss: Callable[..., Any], *batch: Any, candidates: int = 4, init: Initializer = glorot
) -> Start:
    """New units are the best of several times as many random ones.

    Candidates get random incoming and zero outgoing weights, as by ``zero_outgoing``. The
    candidates with the largest gradient of their outgoing weights are kept. Preserving for any
    activation. At the first step only outgoing weights have a gradient; incoming weights have one
    from the second step on.

    Only the choice among candidates is the paper's: it also trains them for a few steps, and lets
    units that split compete with new ones.

    Arrays that are divided among devices are gathered as by ``gradmax``.

    Args:
        loss: function ``loss(variables, *batch)`` of the *larger* model's variables, as for
            ``gradmax``.
        *batch: arrays, or pytrees of them.
        candidates: how many candidates are drawn for each new unit.
        init: any initializer of ``jax.nn.initializers``, given the full new shape.

    Raises:
        TypeError: if ``loss`` or ``init`` is no function, or ``candidates`` no integer.
        ValueError: if ``candidates`` is less than two.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import dogwood_jax as dw
        >>> def loss(params, x, y):  # of any number of units
        ...     return jnp.mean((jax.nn.relu(x @ params["up"]) @ params["down"] - y) ** 2)
        >>> x, y = jax.random.normal(jax.random.key(0), (2, 9, 3))
        >>> params = {"up": x[:3, :2], "down": x[:2]}
        >>> apply = lambda params, x: jax.nn.relu(x @ params["up"]) @ params["down"]
        >>> strategy = dw.strategies.firefly(loss, x, y, candidates=8)
        >>> growth = dw.plan(dw.trace(apply, params, x), {"up": 4}, strategy=strategy)
        >>> wide = dw.grow(params, growth, key=jax.random.key(1))
        >>> bool(jnp.allclose(apply(wide, x), apply(params, x)))
        True

    Reference:
        Wu, Liu, Stone and Liu, 2020, Firefly Neural Architecture Descent: a General Approach for
        Growing Neural Networks.
    """
    expect("strategies.firefly", loss=(_LOSS, loss))
    expect("strategies.firefly", candidates=(INTEGER, candidates), init=(_INIT, init))
    if operator.index(candidates) < 2:
        raise ValueError(f"candidates must be two or more for each new unit, got {candidates}")
    choice = Choice("incoming", loss, batch, candidates=operator.index(candidates))
    return Start("free", "zero", "firefly", init, choice=choice)


# Images -------------------------------------------------------------------------------------------


def resample(
    grid: Sequence[int] | None = None,
    to: Sequence[int] | None = None,
    prefix: int = 1,
    *,
    method: Literal["bicubic", "bilinear"] = "bicubic",
) -> Start:
    """Learned vectors of positions are resized with the image, from one grid to another.

    For an array ``[1, positions, features]`` or ``[positions, features]`` of a vision transformer.
    ``plan(target=..., strategy={path: resample(...)})`` takes it by the path of the array, because
    the grid is no width by itself. Not preserving: a larger image is another input, so ``plan``
    evaluates nothing, and ``verify`` has nothing to compare. Only the target tells the new size;
    by name, the width stays fixed. The new grid may also be smaller.

    The new array is a fixed matrix times the old one, computed in float32 at least. Positions that
    come before the grid keep their vectors and their state in the optimizer. Of those in the grid,
    the state begins anew, because each gradient would belong to several old ones.

    With ``target_apply=``, the larger model is traced with images whose sides follow: new rows of
    the grid times the old image's side by its rows, and as many times larger as patches are.

    Args:
        grid: rows and columns of the old grid. If left out, they are those of the traced network,
            or those of a square.
        to: rows and columns of the new grid; a square if left out.
        prefix: how many positions come before the grid, such as that of a class token; 0 if there
            are none.
        method: ``"bicubic"`` is ``jax.image.resize(..., "bicubic")``, what timm does; it smooths
            where the grid shrinks. ``"bilinear"`` keeps the corners in place and interpolates
            linearly between them, what big_vision does (``scipy.ndimage.zoom``, order 1).

    Raises:
        TypeError: if ``prefix`` is no integer, or a grid no sequence of integers.
        ValueError: for a grid without positive sizes, a negative ``prefix``, or another method.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import dogwood_jax as dw
        >>> def apply(params, image):  # [n, rows, columns, channels], a patch is a pixel
        ...     n, rows, columns, channels = image.shape
        ...     pixels = image.reshape(n, rows * columns, channels)
        ...     return (pixels + params["positions"]) @ params["head"]
        >>> positions = jnp.arange(4.0).reshape(1, 4, 1)
        >>> params = {"positions": positions, "head": jnp.ones((1, 2))}
        >>> widths = dw.trace(apply, params, jnp.ones((1, 2, 2, 1)))
        >>> larger = {"positions": jnp.ones((1, 9, 1)), "head": jnp.ones((1, 2))}
        >>> resample = dw.strategies.resample(prefix=0, method="bilinear")
        >>> growth = dw.plan(widths, target=larger, strategy={"positions": resample})
        >>> dw.grow(params, growth)["positions"].reshape(3, 3).tolist()
        [[0.0, 0.5, 1.0], [1.0, 1.5, 2.0], [2.0, 2.5, 3.0]]

    Reference:
        Dosovitskiy et al., 2020, An Image is Worth 16x16 Words, section 3.2; big_vision,
        ``models/vit.py``, ``resample_posemb``; timm, ``layers/pos_embed.py``,
        ``resample_abs_pos_embed``.
    """
    expect("strategies.resample", prefix=(INTEGER, prefix))
    for name, sizes in (("grid", grid), ("to", to)):
        if sizes is not None and not (_is_list(sizes) and all(map(is_integer, sizes))):
            raise TypeError(
                f"{name} must be the rows and columns of a grid, (14, 14), got {sizes!r}"
            )
        if sizes is not None and not (len(sizes) and min(sizes) > 0):
            raise ValueError(f"{name} must have positive sizes, as (14, 14) has, got {sizes!r}")
    if grid is not None and to is not None and len(grid) != len(to):
        raise ValueError(f"grid and to must have equally many axes, got {grid!r} and {to!r}")
    if prefix < 0:
        raise ValueError(f"prefix must be zero or positive, got {prefix}")
    _check_method(method)
    return Start(
        "resampled",
        "resampled",
        "resample",
        exact=False,
        method=method,
        grid=tuple(map(operator.index, grid or ())),
        to=tuple(map(operator.index, to or ())),
        prefix=operator.index(prefix),
    )


def resample_patch(*, method: Literal["bilinear", "bicubic"] = "bilinear") -> Start:
    """The kernel that embeds patches is resized, so that resized patches have the same embedding.

    For the kernel of a convolution whose window is a patch, ``[height, width, in, out]`` in Flax.
    Which axes are spatial, the trace knows. ``plan(target=..., strategy={path: resample_patch()})``
    takes it by the path of the array; the target tells the new size of patches, which may also be
    smaller. If ``B`` is the matrix that resizes a patch, the new kernel is the pseudo-inverse of
    ``B``'s transpose times the old one. If patches become larger, resized patches have exactly the
    old embeddings. If they become smaller, it is the kernel that is closest to that for random
    pixels. Not preserving all the same: images are others, so ``plan`` evaluates nothing.

    It goes together with ``resample`` where the number of positions changes, too: with half of the
    patch's side on the same image, the grid has twice as many rows.

    The matrix is computed in float64 and applied in float32 at least. The optimizer's state of the
    kernel begins anew.

    Args:
        method: how an image is resized. ``"bilinear"`` without antialiasing is that of FlexiViT
            and big_vision; ``"bicubic"`` with antialiasing is that of timm.

    Raises:
        ValueError: for another method.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import dogwood_jax as dw
        >>> def apply(params, image):  # patches of the kernel's size
        ...     kernel = params["kernel"]
        ...     layout = ("NHWC", "HWIO", "NHWC")
        ...     sides = kernel.shape[:2]
        ...     return jax.lax.conv_general_dilated(
        ...         image, kernel, sides, "VALID", dimension_numbers=layout
        ...     )
        >>> params = {"kernel": jax.random.normal(jax.random.key(0), (4, 4, 3, 8))}
        >>> image = jax.random.normal(jax.random.key(1), (1, 4, 4, 3))
        >>> widths = dw.trace(apply, params, image)
        >>> larger = {"kernel": jnp.ones((6, 6, 3, 8))}
        >>> patch = dw.strategies.resample_patch()
        >>> growth = dw.plan(widths, target=larger, strategy={"kernel": patch})
        >>> resized = jax.image.resize(image, (1, 6, 6, 3), "bilinear")
        >>> same = apply(dw.grow(params, growth), resized), apply(params, image)
        >>> bool(jnp.allclose(*same, atol=1e-4))
        True

    Reference:
        Beyer et al., 2022, FlexiViT: One Model for All Patch Sizes (arXiv 2212.08013), section 3.4;
        big_vision, ``models/proj/flexi/vit.py``, ``resample_patchemb``; timm,
        ``layers/patch_embed.py``, ``resample_patch_embed``.
    """
    _check_method(method)
    its: Method = "patch bilinear" if method == "bilinear" else "patch bicubic"
    return Start("resampled", "resampled", "resample_patch", exact=False, method=its)


# Depth --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DepthStrategy:
    """Which layers of a deeper network are copies of which; see ``stack`` and the like.

    Attributes:
        name: the function that made it.
        source: takes the place of a new layer, and how many layers there are before and after;
            returns the old one that it is or copies, or None.
        needs_layers: whether it needs an old layer to begin with.
        keeps_order: whether copies lie beside what they copy, so that counts of layers must be the
            same.
        scaled: see ``interpose``.
    """

    name: Literal["stack", "interpose", "new_layers"]
    source: Callable[[int, int, int], int | None] = field(repr=False, compare=False)
    needs_layers: bool = field(default=True, repr=False)
    keeps_order: bool = field(default=False, repr=False)
    scaled: bool = False

    def sources(self, old: int, new: int) -> tuple[int | None, ...]:
        """Returns for each of the new layers the old one that it is or copies, or None.

        The first layer with a source is the old layer itself; later ones with it are copies.
        """
        return tuple(self.source(place, old, new) for place in range(new))

    def __str__(self) -> str:
        return self.name


def _again(place: int, old: int, new: int) -> int:
    return place % old


def _in_place(place: int, old: int, new: int) -> int:
    return place * old // new


def _behind(place: int, old: int, new: int) -> int | None:
    return place if place < old else None


def stack() -> DepthStrategy:
    """The whole stack of layers is repeated: 0, 1, 2 become 0, 1, 2, 0, 1, 2.

    Not preserving. For ``plan(depth=...)`` with a deeper model as target. One layer becomes many
    copies of it. New layers get a new state of the optimizer. The paper reports that training from
    there costs less than from scratch, if the growth comes early.

    Example:
        >>> import dogwood_jax as dw
        >>> dw.strategies.stack().sources(2, 4)
        (0, 1, 0, 1)

    Reference:
        Du et al., 2024, Stacking Your Transformers (G_stack); Gong et al., 2019, Efficient Training
        of BERT by Progressively Stacking.
    """
    return DepthStrategy("stack", _again)


def interpose(*, scaled: bool = False) -> DepthStrategy:
    """Each layer is repeated in its place: 0, 1, 2 become 0, 0, 1, 1, 2, 2.

    Not preserving. For ``plan(depth=...)`` with a deeper model as target. The order of layers
    stays, which suits networks that have been trained for long. New layers get a new state of the
    optimizer. Scaled, it is the way to more layers that ends lowest in the guide "Does it pay?".

    Args:
        scaled: for layers that add to a residual stream. Two layers that stand where one stood
            each add 1 / sqrt(2) of what that one added, n of them 1 / sqrt(n), so that the stream
            keeps its size. The weights that are multiplied are those whose zeros would silence the
            layer, old and new, such as the last kernel of a block. Their moments in the optimizer
            stay as they are.

    Example:
        >>> import dogwood_jax as dw
        >>> dw.strategies.interpose().sources(2, 4)
        (0, 0, 1, 1)

    Reference:
        Chang et al., 2018, Multi-level Residual Networks from Dynamical Systems View, which halves
        what each of two adds; for converged mixtures of experts, arXiv 2510.08008, 2025.
    """
    return DepthStrategy("interpose", _in_place, keeps_order=True, scaled=scaled)


def new_layers() -> DepthStrategy:
    """New layers follow the old ones, with random weights as in a new network.

    Not preserving. For ``plan(depth=...)`` with a deeper model as target: from one layer to many,
    for example. Without ``depth=``, new layers are random, too, except the weights that silence
    them, so that outputs stay the same.

    Example:
        >>> import dogwood_jax as dw
        >>> dw.strategies.new_layers().sources(1, 3)
        (0, None, None)

    Reference:
        Zero- and one-layer expansion, arXiv 2511.04981, 2025.
    """
    return DepthStrategy("new_layers", _behind, needs_layers=False)


def _check_method(method: str) -> None:
    if method not in ("bicubic", "bilinear"):
        raise ValueError(f"method must be 'bicubic' or 'bilinear', got {method!r}")


def _check_split(split: str) -> None:
    if split not in ("even", "uneven"):
        raise ValueError(f"split must be 'even' or 'uneven', got {split!r}")


def _check_state(state: str) -> None:
    if state not in ("copied", "new"):
        raise ValueError(f"state must be 'copied' or 'new', got {state!r}")


# What becomes of units that stay when others are removed, or when some are merged into them.
KEEP = Start("copy", "copy", "keep", removes=True)
MERGE = Start("copy", "sum", "merge", removes=True)
# What becomes of experts when there are more of them, see ``upcycle``.
_COPIES = replicate()
UPCYCLE = Start("copy", "share", "upcycle", is_gated=True)
