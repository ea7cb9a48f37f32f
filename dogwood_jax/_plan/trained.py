"""Whether outputs also stay in training mode, with the statistics of a batch: ``noted``."""

from dataclasses import replace

from dogwood_jax._growth.growth import Growth
from dogwood_jax._growth.modules.training_mode import in_training
from dogwood_jax._plan.programs import Programs
from dogwood_jax._plan.search.statistics import statistics_of
from dogwood_jax._plan.shown import verdict_of
from dogwood_jax._program.dims import atoms
from dogwood_jax._program.program import Program
from dogwood_jax._widths.trace import Traced
from dogwood_jax._widths.widths import Widths

# A smaller difference comes from the epsilons of norms, which are not rescaled.
_SMALL = 1e-3


def noted(growth: Growth, network: Widths) -> Growth:
    """Returns a growth with a note if outputs change where batch statistics are used.

    Only growths that rescale arrays are examined, because other growths do not change old units.

    Args:
        growth: the growth, which keeps outputs in the mode that was traced.
        network: the network's widths, with its program.
    """
    traced = network.network
    is_rescaled = any(change.recipe is not None for change in growth.changes)
    if traced is None or not is_rescaled or growth.inserted or not statistics_of(traced):
        return growth
    if (apply := in_training(traced.apply, traced.variables)) is None:
        return growth
    try:
        program = Program(apply, traced.variables, traced.inputs)
    except Exception:  # a module may need other keys in training
        return growth
    training = Traced(program)
    if _atoms(training) != _atoms(traced.traced):  # the units lie otherwise in this program
        return growth
    its = replace(traced, apply=apply, traced=training, found={})
    begun = replace(growth, widths=replace(growth.widths, network=its))
    programs = Programs(begun, replace(network, network=its))
    found = verdict_of(programs.of(begun), programs.its)
    difference = None if isinstance(found, ValueError) else found[0].difference
    if difference is None:
        return growth
    old, new = difference.old, difference.new
    if abs(new - old) <= _SMALL * abs(old):
        return growth
    note = (
        f"in training mode, with the statistics of a batch, outputs change: "
        f"{old.real:.6g} becomes {new.real:.6g} for {difference.family}"
    )
    return replace(growth, notes=(*growth.notes, note))


def _atoms(traced: Traced) -> dict[str, list[list[int]]]:
    """Returns the sizes of the parts of each axis of each array."""
    return {
        path: [[atom.size for atom in atoms(dim)] for dim in value.dims]
        for path, value in traced.leaves.items()
    }
