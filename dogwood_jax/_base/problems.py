"""How errors list all that is wrong: ``listed``."""

from collections.abc import Iterable

from dogwood_jax._base.tables import layers_together


def listed(what: str, problems: Iterable[str]) -> str:
    """Returns the message of an error with a line for each problem.

    What is wrong with many layers in the same way takes one line: ``block_{0..11}/up: ...``.
    """
    lines = [f"- {line}" for (line,), _ in layers_together((problem,) for problem in problems)]
    return "\n".join([f"{what}:", *lines])
