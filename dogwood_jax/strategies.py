"""Strategies: how the weights of new units are filled in.

A strategy sets the initial weights on both sides of a new unit: its *incoming* weights determine
what it computes, its *outgoing* weights determine what it changes.

| strategy           | incoming | outgoing | preserving | gradient of new units at the first step |
|---|---|---|---|---|
| `zero_outgoing()`  | random   | zero     | yes        | outgoing nonzero, incoming zero |
| `zeros()`          | zero     | zero     | yes        | both zero, permanently if f(0) = 0 |
| `mean()`           | mean     | zero     | yes        | outgoing nonzero, the same for all |
| `random()`         | random   | random   | no         | both nonzero |
| `replicate()`      | copied   | shared   | yes        | as for the copied unit |
| `zero_incoming()`  | zero     | random   | yes        | incoming nonzero, outgoing zero |
| `tile()`           | copied   | shared   | yes        | as for the copied unit |
| `hyperclone()`     | copied   | shared   | yes        | as for the copied unit |
| `rotated()`        | mixed    | zero     | yes        | outgoing nonzero, incoming zero |
| `paired()`         | random   | opposed  | yes        | both nonzero |
| `shrink_perturb()` | random   | random   | no         | both nonzero |
| `gradmax()`        | zero     | chosen   | yes        | incoming largest, outgoing zero |
| `gradmax()`, in    | chosen   | zero     | yes        | outgoing large, incoming zero |
| `firefly()`        | chosen   | zero     | yes        | outgoing large, incoming zero |

Your own function can be a strategy, too: it takes the widths, a name, a size and a new size, and
returns `start(incoming=..., outgoing=...)`.

`stack()`, `interpose()` and `new_layers()` fill in the new layers of a deeper model, with
`plan(depth=...)`. They do not preserve the function; without `depth=`, new layers compute the
identity.

`resample()` and `resample_patch()` adapt a vision model to images or patches of another size. They
do not preserve the function.

`zero_incoming`, `tile` and `rotated` are for residual streams under norms, and for other widths
that can grow in no other way.
`gradmax` (with two variants) and `firefly` use the gradient of a loss.
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
# How copies share outgoing weights, see ``replicate``.
Split = Literal["even", "uneven", "first", "roots"]


def _is_list(value: Any) -> bool:
    return isinstance(value, Sized) and isinstance(value, Iterable)  # includes all array types


def _is_mask(value: Any) -> bool:
    return _is_list(value) and all(isinstance(one, bool | np.bool_) for one in value)


_INIT = ArgumentKind("an initializer, such as jax.nn.initializers.he_normal()", callable)
_LOSS = ArgumentKind("a function, loss(variables, *batch)", callable)
_UNITS = ArgumentKind(
    "a list of units, integers",
    lambda value: _is_list(value) and all(map(is_integer, value)),
    lambda value: "convert a mask by np.flatnonzero(mask)" if _is_mask(value) else "",
)


@dataclass(frozen=True, eq=False)
class Choice:
    """Chooses the weights of new units by the gradient of a loss on a batch.

    Two loss functions cannot be compared, so a choice is equal only to itself. The same holds for a
    strategy or a growth that contains a choice.

    Attributes:
        side: the side that is chosen, ``"incoming"`` or ``"outgoing"``; the other is zero.
        loss: function of the larger model's variables and the batch.
        batch: the other arguments of ``loss``.
        epsilon: factor on incoming weights, instead of setting them to zero.
        candidates: how many candidates are drawn for each new unit.
        ascent: number of gradient ascent steps on incoming weights.
    """

    side: Literal["incoming", "outgoing"]
    loss: Callable[..., Any]
    batch: tuple[Any, ...] = field(repr=False)
    epsilon: float = 0.0
    candidates: int = 1
    ascent: int = 0


@dataclass(frozen=True, repr=False)
class Start:
    """The initial incoming and outgoing weights of new units, as ``start`` returns them.

    A ``Start`` is itself a strategy: it is used for every width.

    Attributes:
        incoming: ``"free"`` (drawn from ``init``), ``"zero"``, ``"copy"``, ``"mean"`` (of the old
            units), ``"rotated"`` (mixtures of the old units) or ``"resampled"``.
        outgoing: ``"free"``, ``"zero"``, ``"copy"``, ``"share"`` (copied, and divided among the
            copies), ``"sum"`` (added up), ``"opposed"`` (drawn, with
            opposite signs for units whose incoming weights are the same) or ``"resampled"``.
        name: the function that made it, for tables and errors.
        init: initializer of free weights.
        outgoing_init: initializer of free outgoing weights, if it differs from ``init``.
        noise: standard deviation of the noise on copies, relative to the copied array's.
        split: how copies share outgoing weights, ``"even"``, ``"uneven"``, ``"first"`` or
            ``"roots"``.
        units: the old units that new units copy in turn; all old units if empty.
        choice: chooses weights by a gradient after the network has grown; or None.
        state: the optimizer's state of copies: ``"copied"`` from their units, or ``"new"``.
        shrink: factor on old weights.
        perturb: factor on the drawn weights that are added to all weights.
        exact: False if outputs may change although the weights could preserve them, for example
            because a router chooses as many experts as before.
        repeats: whether new units repeat the whole width; units that remain hold its mean.
        takes_multiples_only: whether it grows widths to multiples of their sizes only.
        needs_recipe: whether it is only for widths under a norm that can grow in no other way.
        is_gated: whether gates inside the network weigh copies, so that no weights are divided.
        removes: whether it is for widths that lose units.
        method: how new entries are interpolated between old entries; None if they are not.
        grid: the old grid of positions, if the width consists of a prefix and a grid.
        to: the new grid.
        prefix: how many positions come before the grid.
    """

    incoming: Literal["free", "zero", "copy", "mean", "rotated", "resampled"]
    outgoing: Literal["free", "zero", "copy", "share", "sum", "opposed", "resampled"]
    name: str = "start"
    init: Initializer | None = None
    outgoing_init: Initializer | None = None
    noise: float = 0.0
    split: Split = "even"
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
        """Returns itself: the same start for every width."""
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
        """Whether outputs stay the same until the weights of new units are chosen."""
        return self.preserving or self.choice is not None

    @property
    def makes_alike(self) -> bool:
        """Whether some units compute the same, so that their readers must treat them equally."""
        return self.incoming == "copy" or self.outgoing == "opposed"

    @property
    def learns(self) -> bool:
        """Whether new units learn in a hidden layer."""
        return (self.incoming, self.outgoing) != ("zero", "zero")

    @property
    def sides(self) -> tuple[str, str, bool, bool]:
        """The fields in which two starts must agree for one to be tried in place of the other."""
        return self.incoming, self.outgoing, self.repeats, self.is_gated

    @property
    def of_patches(self) -> bool:
        """Whether image patches are resized, rather than a grid of positions."""
        return self.method is not None and self.method.startswith("patch")

    @property
    def for_experts(self) -> "Start | None":
        """The start for copying experts with their router's weights; None if it copies none."""
        if self.sides != _COPIES.sides:
            return None
        return replace(UPCYCLE, noise=self.noise, state=self.state, units=self.units)

    def init_of(self, *, incoming: bool) -> Initializer | None:
        """Returns the initializer of free weights on a side."""
        return self.init if incoming else self.outgoing_init or self.init

    def sources(self, old: int, new: int) -> tuple[int, ...] | None:
        """Returns the old unit that each of the first new units copies; None if none are copied."""
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
        """Returns the word for what becomes of weights along an axis, for the table of a growth.

        Args:
            incoming: whether they are incoming weights.
            random: whether a new network draws them at random.
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


# Takes all widths, the name of a width, its size and its new size; returns its new units' start.
Strategy = Callable[[Mapping[str, Any], str, int, int], Start]


def glorot(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """Glorot-uniform initializer, the default for new weights, as in Keras.

    Growth draws only the new slice, at the scale of the full new shape.

    Args:
        key: PRNG key.
        shape: shape of the array, ``[..., in, out]``.
        dtype: floating dtype of the array.

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
    """Returns the initial weights of new units, for a strategy of your own.

    A strategy is a function ``(widths, name, old, new)`` of the widths, the name of a width, its
    size and its new size. It returns a start for the new units. As for any strategy, an evaluation
    checks whether outputs stay: a growth that wrongly claims this is refused. If an array has new
    entries along two widths, all of them are drawn by the initializer of the width for which the
    array is incoming.

    Args:
        incoming: an initializer of ``jax.nn.initializers`` from which incoming weights are drawn,
            ``"zero"``, ``"mean"`` (of the old units), or ``"copy"``.
        outgoing: an initializer, ``"zero"``, ``"copy"``, or ``"share"``: copied, and divided among
            the copies. With an initializer, a growth does not claim that outputs stay, unless
            incoming weights are zero.
        noise: standard deviation of the noise on copies, relative to the copied array's.
        units: the old units that new units copy in turn; all old units by default.

    Raises:
        TypeError: if arguments are of the wrong kind.
        ValueError: if a side has another value, if outgoing weights are copied but incoming weights
            are not, or if ``noise`` is negative.

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
    the first step, their incoming weights from the second step on. Old weights keep their
    gradients. If two neighbouring widths grow at once, weights from new to old units are zero, and
    all weights to new units are random.

    Args:
        init: any initializer of ``jax.nn.initializers``. It draws the full new array, so that
            fan-in and fan-out are those of the larger layer, and only the new part is kept. For a
            traced network, it gets the shape of a matrix, ``[in, out]``. For an attention kernel
            ``[stream, heads, head_dim]`` this is ``[stream, heads * head_dim]``. Each layer of a
            stack is drawn separately.

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
    """All new weights are zero.

    Preserving, but hidden units never learn if the activation maps zero to zero, as relu and tanh
    do: with zero incoming and zero outgoing weights, both gradients stay zero. With other
    activations, such as sigmoid, outgoing weights have a gradient at the first step, the same for
    all new units. This strategy is meant for outputs of a network, such as the logits of new
    classes, because their incoming weights have a gradient from the loss.

    Example:
        >>> import dogwood_jax as dw
        >>> dw.strategies.zeros().preserving
        True

    Reference:
        No paper: the notebook ``mnist.ipynb`` of https://github.com/kostaleonard/dogwood.
    """
    return Start("zero", "zero", "zeros")


def mean() -> Start:
    """New units begin at the mean of the old units; their outgoing weights are zero.

    For rows of a vocabulary and its logits. The logit of a new token is the mean of the old logits,
    so at first it is never the largest. The loss makes new tokens different at the first step. All
    new units are equal, so new hidden units would stay equal in training.

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
    """All new weights are random: not preserving, kept as a baseline.

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
    split: Split = "even",
    units: Sequence[int] = (),
    state: Literal["copied", "new"] = "copied",
) -> Start:
    """New units copy old units, and share the outgoing weights with them.

    Preserving if ``noise`` is zero. At the first step, the outgoing weights of a copy have the same
    gradient as those of its old unit. Its incoming weights have the old unit's gradient times the
    copy's share. In the optimizer's state, copies also get the moments of their unit.

    With an even split, copies stay equal under a deterministic optimizer, so the network does not
    become able to compute more. With an uneven split, gradients of copies differ by a factor, which
    Adam divides away, so copies come apart slowly, by their outgoing weights. With the split
    ``"first"`` or a little noise, they become different sooner. If a growth makes copies that stay
    equal, a note says so.

    Args:
        noise: standard deviation of normal noise added to the incoming weights of new units, as a
            fraction of the standard deviation of the array; not preserving unless zero.
        split: ``"even"`` divides outgoing weights equally among k copies; ``"uneven"`` gives them
            shares in the ratio 1 : 2 : ... : k; ``"first"`` leaves them all to the old unit, so
            that copies begin with outgoing weights of zero and new moments. ``"roots"`` multiplies
            incoming and outgoing weights of copies by the square roots of uneven shares. The sum of
            squares of the copies is then that of their unit, as norms need it. This is exact if
            activations are relu or another function for which f(c x) = c f(x), c > 0.
        units: the old units that new units copy in turn; by default all old units in order.
            ``dogwood_jax.activity`` ranks them.
        state: moments of copies in the optimizer's state: ``"copied"`` from the old unit, or as for
            a ``"new"`` weight. With new moments, copies become different under optimizers such as
            Adam, and ``growable(warmup=...)`` warms up their learning rate.

    Raises:
        TypeError: if ``noise`` is not a number, or ``units`` are not integers.
        ValueError: if ``noise`` is negative, or ``split`` or ``state`` has another value.

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
    copied, state = tuple(map(operator.index, units)), "new" if split == "first" else state
    return Start(
        "copy", "share", "replicate", noise=float(noise), split=split, units=copied, state=state
    )


def hyperclone(state: Literal["copied", "new"] = "copied") -> Start:
    """New units repeat whole widths, also under norms: the model is cloned n times as wide.

    Preserving. For all widths at once, to multiples of their sizes: ``plan(widths, {name: 2 * size
    for name, size in ...}, strategy=strategies.hyperclone())``. Outgoing weights are divided among
    the copies. A repeated stream has the mean and variance of the old stream, so LayerNorm and
    RMSNorm need no change. All copies stay equal under a deterministic optimizer, unless dropout or
    a new ``state`` makes them different.

    Args:
        state: moments of copies in the optimizer's state, as for ``replicate``.

    Raises:
        ValueError: if ``state`` has another value.

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

    Preserving: the effects of both units of a pair cancel. Unlike ``zero_outgoing``, both sides of
    new units have a gradient at the first step, which makes the units of a pair different. If the
    number of new units is odd, the last one has zero outgoing weights.

    Args:
        init: any initializer of ``jax.nn.initializers``, given the full new shape.

    Example:
        >>> import dogwood_jax as dw
        >>> dw.strategies.paired().preserving
        True

    Reference:
        Yuan, Savarese and Maire, 2023, Accelerated Training via Incrementally Growing Neural
        Networks using Variance Transfer and Learning Rate Adaptation: the pairs (V, V) and (Z, -Z).
        The paper's rescaling of old weights is left out, because it would change outputs.
    """
    expect("strategies.paired", init=(_INIT, init))
    return Start("free", "opposed", "paired", init)


def shrink_perturb(shrink: float = 0.5, perturb: float = 0.5, init: Initializer = glorot) -> Start:
    """Scales old weights down, pads them with zeros, and adds random weights to all.

    Not preserving: old weights keep only a part of their effect, so that the network learns more
    like a new one. This changes arrays that contain the width and that a new network draws at
    random. Biases and scales only grow.

    Args:
        shrink: factor on old weights.
        perturb: factor on the random weights of a new network, which are added to all weights.
        init: any initializer of ``jax.nn.initializers``, given the full new shape.

    Raises:
        TypeError: if ``shrink`` or ``perturb`` is not a number.
        ValueError: if ``shrink`` or ``perturb`` is negative.

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
    """New units of a residual stream are zero; the weights that read them are random.

    For a stream under RMSNorm or another norm without a mean, and for other widths in which zeros
    add nothing to a sum, such as the codes of a variational autoencoder. If new units carry noise
    instead of zeros, the weights that read them are zero, too. Arrays that write the stream get
    zeros for new units, so the sum of squares stays. From n to m units, the norm's mean of squares
    changes by the factor n / m. To make up for it, arrays that write the stream are multiplied by
    sqrt(m / n), and arrays that read it (the norm's scale, or weights without a norm) are divided
    by the same factor. Epsilons stay as they are. Only the norm's scale is divided in two cases: if
    the larger model's epsilon is n / m times the old one, or if arrays that write the stream cannot
    be multiplied. Then the growth's notes say which epsilon the larger model must have. Preserving.
    At the first step, only the zero weights that write the new units have a gradient; the weights
    that read them have one from the second step on.

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


def tile(init: Initializer = glorot, split: Split = "even") -> Start:
    """New units of a residual stream repeat the stream; remaining units hold its mean.

    For a stream under LayerNorm. From n to m units, the stream is repeated q = m // n times. The
    remaining m - q n units hold its mean, so the mean stays and the variance changes by the factor
    s = q n / m. To make up for it, arrays that write the stream are divided by sqrt(s), and the
    norm's scale is multiplied by sqrt(s). Epsilons stay as they are. Only the norm's scale is
    multiplied in two cases: if the larger model's epsilon is s times the old one, or if arrays that
    write the stream cannot be divided. Then the growth's notes say which epsilon the larger model
    must have. Weights that read the stream are divided among the copies. An embedding that also
    serves as the head is repeated undivided, and the last norm is divided by q. Weights that read
    the remaining units are random, because these units are zero behind the norm. Preserving.
    Gradients at the first step are those of ``replicate``.

    If an array scales the written values unit by unit, as LayerScale does, its entries for
    remaining units are the mean of its absolute values. The weights that write the remaining units
    are a mean of the old weights, weighted by that array, so that the product is the mean of the
    old products. New weights are then no larger than old ones, and their gradients are about as
    large, so an optimizer's state grows as elsewhere. If anything else reads these weights, only
    multiples are exact.

    Neither ``narrow`` nor ``merge_symmetric`` can undo this growth.

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


def rotated() -> Start:
    """New units are mixtures of old units by a random rotation; nothing reads them yet.

    For streams and hidden layers under LayerNorm, RMSNorm or another norm, to at least twice the
    size. The weights that make new units are P times those of old units, with a random matrix P
    whose columns are orthogonal and which keeps the mean. From n to m units, the sum of squares of
    the new units is (m - n) / n times that of the old ones. So mean, variance and mean square of
    all units stay, and norms need no change. Outgoing weights of new units are zero. Preserving.

    Every new unit computes another function than the old ones, so units stay different, unlike
    copies. At the first step, their outgoing weights have a gradient; their incoming weights have
    one from the second step on. In the optimizer's state, new units have new moments. The matrix is
    drawn from the key of ``grow``; without a key, it is always the same.

    To less than twice the size, the mixtures are orthogonal, but their sum of squares is another.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import dogwood_jax as dw
        >>> def apply(params, x):
        ...     hidden = x @ params["up"]
        ...     hidden = jax.nn.relu(hidden / jnp.linalg.norm(hidden, axis=-1, keepdims=True))
        ...     return hidden @ params["down"]
        >>> params = {"up": jnp.array([[1.0, -2.0, 3.0]]), "down": jnp.ones((3, 1))}
        >>> widths = dw.trace(apply, params, jnp.ones((1, 1)))
        >>> growth = dw.plan(widths, {"up": 6}, strategy=dw.strategies.rotated())
        >>> wide = dw.grow(params, growth, key=jax.random.key(0))
        >>> bool(jnp.allclose(apply(wide, jnp.ones((1, 1))), apply(params, jnp.ones((1, 1)))))
        True

    Reference:
        No paper: norms do not change under rotations, as Ashkboos et al., 2024, SliceGPT, use for
        removing units.
    """
    return Start("rotated", "zero", "rotated")


def gradmax(
    loss: Callable[..., Any],
    *batch: Any,
    variant: Literal["outgoing", "incoming"] = "outgoing",
    epsilon: float = 0.0,
    init: Initializer = glorot,
) -> Start:
    """New units get the weights that maximize their gradient.

    The variant ``"outgoing"`` sets incoming weights and biases to zero. It chooses outgoing weights
    that maximize the gradient of the incoming weights. They are orthogonal vectors, as long as
    those of old units on average: the top right-singular vectors of the matrix of second
    derivatives of the loss by incoming and outgoing weights. This is preserving if the activation
    maps zero to zero. Outgoing weights have a gradient from the second step on. In a gated unit
    only one factor is zero, in an attention head only the values. If there are more new units than
    singular vectors, the remaining units are filled in as by ``zero_outgoing``.

    ``jax.nn.relu`` passes no gradient at zero, so ``grow`` refuses zero incoming weights under it:
    pass ``epsilon``, or the other variant. It also refuses activations that are not zero at zero.
    Both checks need values. Under ``jax.jit`` there are none, so nothing is refused, and new units
    of these two kinds are filled in as by ``zero_outgoing``.

    The variant ``"incoming"`` sets outgoing weights to zero, which is preserving for any
    activation. Incoming weights begin at random. Then a few steps of ascent, at the same norm,
    increase the gradient of the outgoing weights. Each unit follows a direction orthogonal to
    those of the other units. If units respond linearly, the steps lead to the left-singular
    vectors. Units beyond the number of these vectors stay as drawn, and all units do if the
    gradient does not increase. Incoming weights have a gradient from the second step on.

    If arrays are sharded, the weights on both sides of the width are gathered for the choice, and
    the results are sharded again.

    Args:
        loss: function ``loss(variables, *batch)`` of the *larger* model's variables that returns
            a scalar. ``grow`` calls it once for each width with this strategy, after the other
            widths have grown.
        *batch: arrays, or pytrees of them, with enough examples to determine a direction.
        variant: the side whose weights are chosen; the other is zero.
        epsilon: for ``"outgoing"``, a factor on drawn incoming weights, instead of setting them to
            zero; outputs change by about as much. Biases are zero.
        init: any initializer of ``jax.nn.initializers``, given the full new shape, for incoming
            weights.

    Raises:
        TypeError: if ``loss`` or ``init`` is not a function, or ``epsilon`` is not a number.
        ValueError: for another variant, a negative or infinite ``epsilon``, or an ``epsilon`` with
            the variant ``"incoming"``.

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
            f"epsilon must be zero or positive, and is for variant='outgoing' only, got {epsilon!r}"
        )
    ascent = 8 if variant == "incoming" else 0
    choice = Choice(variant, loss, batch, float(epsilon), ascent=ascent)
    return Start("free", "zero", "gradmax", init, choice=choice)


def firefly(
    loss: Callable[..., Any], *batch: Any, candidates: int = 4, init: Initializer = glorot
) -> Start:
    """New units are the best of several times as many random candidates.

    Candidates get random incoming and zero outgoing weights, as by ``zero_outgoing``. The
    candidates with the largest gradient of their outgoing weights are kept. Preserving for any
    activation. At the first step only outgoing weights have a gradient; incoming weights have one
    from the second step on.

    Only the choice among candidates follows the paper. The paper also trains candidates for a few
    steps, and lets splits of old units compete with new units.

    Sharded arrays are gathered as by ``gradmax``.

    Args:
        loss: function ``loss(variables, *batch)`` of the *larger* model's variables, as for
            ``gradmax``.
        *batch: arrays, or pytrees of them.
        candidates: how many candidates are drawn for each new unit.
        init: any initializer of ``jax.nn.initializers``, given the full new shape.

    Raises:
        TypeError: if ``loss`` or ``init`` is not a function, or ``candidates`` is not an integer.
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
    """Resizes learned position vectors from one grid to another, for images of another size.

    For an array ``[1, positions, features]`` or ``[positions, features]`` of a vision transformer.
    Pass it by the path of the array, ``plan(target=..., strategy={path: resample(...)})``, because
    the grid is not a width by itself. Not preserving: a larger image is another input, so ``plan``
    evaluates nothing, and ``verify`` has nothing to compare. The new size comes from the target:
    the width cannot grow by name. The new grid may also be smaller.

    The new array is a fixed matrix times the old array, computed at least in float32. Positions
    before the grid keep their vectors and their optimizer state. Positions in the grid get a new
    optimizer state, because each gradient would belong to several old positions.

    With ``target_apply=``, the larger model is traced with images of matching size. Their side is
    the old side, times new / old rows of the grid, times new / old size of a patch.

    Args:
        grid: rows and columns of the old grid. By default, they are those of the traced network,
            or those of a square.
        to: rows and columns of the new grid; a square by default.
        prefix: how many positions come before the grid, such as that of a class token; 0 if there
            are none.
        method: ``"bicubic"`` is ``jax.image.resize(..., "bicubic")``, as in timm; it smooths if the
            grid shrinks. ``"bilinear"`` keeps the corners in place and interpolates linearly
            between them, as in big_vision (``scipy.ndimage.zoom``, order 1).

    Raises:
        TypeError: if ``prefix`` is not an integer, or a grid is not a sequence of integers.
        ValueError: for a grid without positive sizes, grids with different numbers of axes, a
            negative ``prefix``, or another method.

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
                f"{name} must be the rows and columns of a grid, such as (14, 14), got {sizes!r}"
            )
        if sizes is not None and not (len(sizes) and min(sizes) > 0):
            raise ValueError(f"{name} must have positive sizes, such as (14, 14), got {sizes!r}")
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
    """Resizes the kernel that embeds patches, so that resized patches have the same embedding.

    For the kernel of a convolution whose window is a patch, ``[height, width, in, out]`` in Flax.
    The trace finds the spatial axes. Pass it by the path of the array, ``plan(target=...,
    strategy={path: resample_patch()})``. The new patch size comes from the target, and may also be
    smaller. If ``B`` is the matrix that resizes a patch, the new kernel is the pseudo-inverse of
    ``B``'s transpose times the old kernel. If patches become larger, resized patches have exactly
    the old embeddings. If patches become smaller, the new kernel is the closest one for random
    pixels. Still not preserving: images differ, so ``plan`` evaluates nothing.

    Combine it with ``resample`` if the number of positions changes, too: with half the patch side
    on the same image, the grid has twice as many rows.

    The matrix is computed in float64 and applied at least in float32. The kernel gets a new
    optimizer state.

    Args:
        method: how an image is resized: ``"bilinear"`` without antialiasing, as in FlexiViT and
            big_vision; or ``"bicubic"`` with antialiasing, as in timm.

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
    """Which old layer each layer of a deeper network is or copies; see ``stack`` for an example.

    Attributes:
        name: the function that made it.
        source: takes the index of a layer in the deeper network, and the numbers of layers before
            and after; returns the index of the old layer that it is or copies, or None.
        needs_layers: whether at least one old layer is needed.
        keeps_order: whether copies lie next to the layers that they copy, so that counts of layers
            must be the same.
        scaled: see ``interpose``.
    """

    name: Literal["stack", "interpose", "new_layers"]
    source: Callable[[int, int, int], int | None] = field(repr=False, compare=False)
    needs_layers: bool = field(default=True, repr=False)
    keeps_order: bool = field(default=False, repr=False)
    scaled: bool = False

    def sources(self, old: int, new: int) -> tuple[int | None, ...]:
        """Returns for each layer of the deeper network the old layer that it is or copies, or None.

        The first layer with a source is the old layer itself; later layers with it are copies.
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
    """Repeats the whole stack of layers: 0, 1, 2 become 0, 1, 2, 0, 1, 2.

    Not preserving. For ``plan(depth=...)`` with a deeper model as target. A single layer becomes
    many copies. New layers get a new optimizer state. The paper reports that this costs less than
    training from scratch, if the growth comes early.

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
    """Repeats each layer in its place: 0, 1, 2 become 0, 0, 1, 1, 2, 2.

    Not preserving. For ``plan(depth=...)`` with a deeper model as target. The order of layers
    stays, which suits networks that have been trained for long. New layers get a new optimizer
    state. With ``scaled=True``, it reaches the lowest loss of all ways to add layers in the guide
    "Does it pay?".

    Args:
        scaled: for layers that add to a residual stream. If n layers replace one, each adds
            1 / sqrt(n) of what the old layer added, so that the stream keeps its size. In old and
            new layers, this multiplies the weights whose zeros would silence the layer, such as the
            last kernel of a block. Their moments in the optimizer stay as they are.

    Example:
        >>> import dogwood_jax as dw
        >>> dw.strategies.interpose().sources(2, 4)
        (0, 0, 1, 1)

    Reference:
        Chang et al., 2018, Multi-level Residual Networks from Dynamical Systems View (each of two
        layers adds half); for converged mixtures of experts, arXiv 2510.08008, 2025.
    """
    return DepthStrategy("interpose", _in_place, keeps_order=True, scaled=scaled)


def new_layers() -> DepthStrategy:
    """New layers follow the old layers, with random weights as in a new network.

    Not preserving. For ``plan(depth=...)`` with a deeper model as target, for example from one
    layer to many. Without ``depth=``, new layers are random as well, except for the weights that
    silence them, so outputs stay the same.

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
    if split not in ("even", "uneven", "first", "roots"):
        raise ValueError(f"split must be 'even', 'uneven', 'first' or 'roots', got {split!r}")


def _check_state(state: str) -> None:
    if state not in ("copied", "new"):
        raise ValueError(f"state must be 'copied' or 'new', got {state!r}")


# For units that stay when other units are removed, or merged into them.
KEEP = Start("copy", "copy", "keep", removes=True)
MERGE = Start("copy", "sum", "merge", removes=True)
# For copies of experts, see ``upcycle``.
_COPIES = replicate()
UPCYCLE = Start("copy", "share", "upcycle", is_gated=True)
