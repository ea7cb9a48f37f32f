"""What the network's own function says of a growth: ``check_own_function``.

A planned growth follows from the widths alone. Where the function that was traced is at hand, it is
called once more, with shapes in the grown sizes, and both programs are compared: a number such as
``0.1 * width`` shows here, and so does ``heads = width // 64``. The function can only refuse a
growth, not change it. Widths that were read from a file have no function. They know what it did
when each width was doubled (``tried``).
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import jax

from dogwood_jax._base.described import first_line
from dogwood_jax._base.problems import UnfitArrays, listed
from dogwood_jax._base.trees import PyTree
from dogwood_jax._growth.growth import Growth
from dogwood_jax._modules.resizing import Resizing, says_numbers
from dogwood_jax._plan.comparison import Comparison
from dogwood_jax._plan.copies import Copies
from dogwood_jax._plan.fewer_layers import FewerLayers, fewer_layers, read_so_far
from dogwood_jax._growth.grown_sizes import GrownSizes
from dogwood_jax._program.program import Program
from dogwood_jax._widths.trace import Traced
from dogwood_jax._widths.widths import Tried, Widths

KNOWS_SIZES = (
    "the network's own function does not take arrays of these sizes, so the larger model needs one "
    "of its own"
)

WITH_TARGET = "pass target=, the larger model, whose numbers are right"

_NONE = Copies({})


class Contradicted(str):
    """The message of an error: a program computes something else than a growth supposes."""


class NeedsMore(str):
    """The message of an error: the network's own function asks for more widths to grow along."""


def contradicted(whose: str, problems: Sequence[str], ways_out: Sequence[str] = ()) -> ValueError:
    """Returns the error that says what a program computes instead."""
    lines = [f"{whose} computes something else: {problem}" for problem in problems[:3]]
    return ValueError(Contradicted(listed("cannot plan this growth", [*lines, *ways_out])))


def check_own_function(growth: Growth, target: PyTree = None, copies: Copies = _NONE) -> Growth:
    """Returns a growth once the network's own function does not speak against it.

    Args:
        growth: by sizes, or by a target without a function of its own.
        target: the target, or None.
        copies: the experts that are copied.

    Returns:
        The growth, with a note if the larger model needs another function.

    Raises:
        ValueError: if the function computes something else in the grown sizes.
    """
    widths = growth.widths
    if widths.network is None:
        knows_sizes = _check_record(growth, widths.tried or Tried(), target)
    else:
        knows_sizes = _check_program(growth, target, copies)
    if knows_sizes and target is None:
        return replace(growth, notes=(*growth.notes, KNOWS_SIZES))
    return growth


def _check_record(growth: Growth, tried: Tried, target: PyTree) -> bool:
    """Returns whether the function knows its sizes, by what was recorded when it was at hand."""
    problems = [f"{name}: {why}" for name, why in tried.conflicts if name in growth.change]
    if target is None:  # the larger model says by itself what grows along
        problems += (why for names, why in tried.alone if growth.change.keys() <= {*names})
    if problems and growth.change:
        raise ValueError(listed("cannot plan this growth", problems))
    return any(name in growth.change for name in tried.known)


def _check_program(growth: Growth, target: PyTree, copies: Copies) -> bool:
    """Returns whether the function knows its sizes, and so does not take the grown ones."""
    widths = growth.widths
    assert widths.network is not None
    if not copies.changes and _agrees_with_fewer_layers(growth, target):
        return False
    larger = trace_own(widths, growth.sizes, target)
    if isinstance(larger, Rejected):
        if larger.follows_shapes:
            problem = (
                "the network's own function follows the shapes of its arrays but does not take "
                f"these: {larger.reason}; grow more widths along, or pass target= and target_apply="
            )
            raise ValueError(NeedsMore(listed("cannot plan this growth", [problem])))
        if target is None and says_numbers(widths.network.variables):
            if not _says_sizes(widths, growth.sizes):  # a number of theirs may be half a size
                problem = (
                    "the network's own function does not take its modules in these sizes: "
                    f"{larger.reason}; {WITH_TARGET}"
                )
                raise ValueError(listed("cannot plan this growth", [problem]))
        return not larger.is_checked
    grown = GrownSizes(widths, growth.sizes, copies.choices(larger.trace))
    compared = Comparison(widths.network.traced.trace, larger.trace, grown, copies.dispatch)
    problems = list(compared.problems(growth.change, exactly=False))
    if compared.holds_on and (target is not None or not compared.cuts_elsewhere):
        return False  # the larger model has a function of its own
    if problems:
        way_out = (
            "pass target_apply=, this function or the larger model's, and arrays make up for its "
            "numbers where they can"
        )
        raise contradicted(
            "in these sizes, the network itself", [f"{problem}; {way_out}" for problem in problems]
        )
    return False


def _agrees_with_fewer_layers(growth: Growth, target: PyTree) -> bool:
    """Whether a few layers stand for the network, and nothing in them speaks against a growth."""
    fewer = fewer_layers(growth.widths, growth.sizes)
    return fewer is not None and any(
        _agrees(growth, fewer, target, is_cut) for is_cut in (True, False)
    )


def _agrees(growth: Growth, fewer: FewerLayers, target: PyTree, is_cut: bool) -> bool:
    """Whether the function does the same in larger sizes, as far as these layers show.

    Args:
        growth: the growth.
        fewer: some layers.
        target: the target, or None.
        is_cut: whether the function is given variables of these layers only.
    """
    inputs = GrownSizes(read_so_far(growth.widths), growth.sizes)
    cut = fewer.cut if is_cut else lambda variables: variables
    try:
        program = _own_program(growth.widths, inputs, target, cut)
    except Exception:  # any function may raise that knows its sizes, or its number of layers
        return False
    larger = program if is_cut else fewer.of(program)
    widths = None if larger is None else fewer.read_like(larger, is_cut=is_cut)
    if larger is None or widths is None or widths.network is None:
        return False
    its, grown = Traced(larger, notes_reads=False).trace, GrownSizes(widths, growth.sizes)
    compared = Comparison(widths.network.traced.trace, its, grown)
    return compared.is_in_step and not any(compared.problems(growth.change, exactly=False))


@dataclass(frozen=True)
class Rejected:
    """What the network's own function raised when it was given larger arrays.

    Attributes:
        reason: the kind of error and its first line.
        is_checked: whether a Flax module compared shapes with its configuration. A growth needs no
            note of that.
        follows_shapes: whether it takes arrays of other sizes, only not of these.
    """

    reason: str
    is_checked: bool
    follows_shapes: bool


def trace_own(widths: Widths, sizes: Mapping[str, int], target: PyTree = None) -> Traced | Rejected:
    """Traces the network's own function in other sizes, or returns what it raised.

    Args:
        widths: the widths of a network that was traced in this process.
        sizes: new sizes by name of the width.
        target: the larger model's variables, or None.
    """
    try:
        grown = GrownSizes(read_so_far(widths), sizes)  # enough for the sizes of inputs
        return Traced(_own_program(widths, grown, target), notes_reads=False)
    except UnfitArrays as error:
        return Rejected(str(error), is_checked=False, follows_shapes=True)
    except Exception as error:  # any function may raise that knows its sizes
        is_checked = type(error).__module__.startswith("flax.")
        knows_sizes = is_checked or target is not None or _says_sizes(widths, sizes)
        follows_shapes = not knows_sizes and _follows_shapes(widths)
        return Rejected(first_line(error), is_checked, follows_shapes)


def _says_sizes(widths: Widths, sizes: Mapping[str, int]) -> bool:
    """Whether modules among the variables say sizes that change, so that a function knows these."""
    assert widths.network is not None
    variables, resizing = widths.network.variables, Resizing(widths.leaves, sizes)
    larger = jax.tree.structure(resizing.resized(variables))
    return bool(resizing.problems) or larger != jax.tree.structure(variables)  # type: ignore[operator]


def _own_program(
    widths: Widths,
    grown: GrownSizes,
    target: PyTree = None,
    cut: Callable[[PyTree], PyTree] = lambda variables: variables,
) -> Program:
    """Returns the program of the network's own function in other sizes.

    It is called with the target's variables, or with its own variables after the growth. Modules
    among these state the new sizes. The function may hold parts of modules that state the old ones,
    and fail. Then it is called with modules that state the old sizes, too.

    Args:
        widths: the widths of the network.
        grown: the other sizes.
        target: the larger model's variables, or None.
        cut: leaves layers out of variables.
    """
    assert widths.network is not None
    apply, variables = widths.network.apply, widths.network.variables
    inputs = grown.inputs()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if target is not None:
            return Program(apply, cut(target), inputs)
        resizing = Resizing(widths.leaves, grown.sizes)
        if says_numbers(variables):
            try:
                return Program(apply, cut(resizing.resized(variables)), inputs)
            except Exception:  # any function may raise that holds parts of the old modules
                pass
        return Program(apply, cut(resizing.reshaped(variables)), inputs)


def _follows_shapes(widths: Widths) -> bool:
    """Whether the network's own function does the same with all widths twice as large."""
    assert widths.network is not None
    sizes = {name: 2 * width.size for name, width in widths.items() if not width.fixed}
    grown = GrownSizes(widths, sizes)
    try:
        doubled = Traced(_own_program(widths, grown), notes_reads=False).trace
    except Exception:  # any function may raise that knows its sizes
        return False
    found = Comparison(widths.network.traced.trace, doubled, grown)
    return found.is_in_step and not found.sizes
