"""How errors list all that is wrong: ``listed``."""

from collections.abc import Iterable


def listed(what: str, problems: Iterable[str]) -> str:
    """Returns the message of an error with a line for each problem."""
    return "\n".join([f"{what}:", *(f"- {problem}" for problem in problems)])
