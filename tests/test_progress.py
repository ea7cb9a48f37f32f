"""The line on stderr that says what takes long."""

import io
import threading
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import dogwood_jax as dw
from dogwood_jax._base import progress as line
from dogwood_jax._base.progress import progress, say


class Stream(io.StringIO):
    """Text that is written to a terminal or to a file."""

    def __init__(self, is_terminal: bool) -> None:
        super().__init__()
        self._is_terminal = is_terminal

    def isatty(self) -> bool:
        return self._is_terminal


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Stream:
    stream = Stream(is_terminal=True)
    # pytest sets sys.stderr itself once the fixtures are made.
    monkeypatch.setattr(line, "sys", SimpleNamespace(stderr=stream))
    return stream


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line, "_AFTER", 0.0)


def plan() -> dw.Growth:
    def apply(p: Any, x: Any) -> Any:
        h = jnp.tanh(x @ p["up"])
        return (h / jnp.linalg.norm(h, axis=-1, keepdims=True)) @ p["down"]

    p = {"up": jnp.ones((4, 6)), "down": jnp.ones((6, 3))}
    return dw.plan(dw.trace(apply, p, jnp.ones((2, 4))), {"up": 12})


def shown(text: str) -> list[str]:
    """Returns what stood on the line, one after the other."""
    return [part.strip() for part in text.split("\r") if part.strip()]


@pytest.mark.usefixtures("at_once")
def test_a_terminal_shows_what_plan_does_and_the_line_goes(terminal):
    plan()
    texts = shown(terminal.getvalue())
    assert texts and all(text.startswith("plan") for text in texts)
    assert any("comparing" in text for text in texts)
    assert "\n" not in terminal.getvalue()
    last = terminal.getvalue().split("\r")[-2]
    assert last.strip() == "" and len(last) >= len(texts[-1])  # spaces over the last text


def test_what_is_quick_says_nothing(terminal):
    with progress("plan"):
        say("comparing both networks")
    assert terminal.getvalue() == ""


def test_one_long_step_is_shown_by_a_timer(terminal, monkeypatch):
    monkeypatch.setattr(line, "_AFTER", 0.02)
    written = threading.Event()
    monkeypatch.setattr(terminal, "flush", written.set)
    with progress("plan"):
        say("comparing both networks")
        assert written.wait(10)
        assert shown(terminal.getvalue()) == ["plan: comparing both networks"]


@pytest.mark.usefixtures("at_once")
def test_a_file_gets_no_line(monkeypatch):
    stream = Stream(is_terminal=False)
    monkeypatch.setattr("sys.stderr", stream)
    plan()
    assert stream.getvalue() == ""
    monkeypatch.setattr("sys.stderr", None)  # as under pythonw
    plan()


@pytest.mark.usefixtures("at_once")
def test_nothing_is_shown_under_jit(terminal):
    @jax.jit
    def step(x: Any) -> Any:
        with progress("plan"):
            say("comparing both networks")
        return x

    step(jnp.ones(()))
    assert terminal.getvalue() == ""


@pytest.mark.usefixtures("at_once")
def test_a_call_inside_of_another_one_adds_to_its_line(terminal):
    with progress("larger"), progress("plan"):
        say("comparing both networks")
    assert shown(terminal.getvalue()) == ["larger", "larger: comparing both networks"]


@pytest.mark.usefixtures("at_once")
def test_the_line_goes_if_the_call_fails(terminal):
    with pytest.raises(ValueError, match="no"), progress("plan"):
        say("comparing both networks")
        raise ValueError("no")
    assert terminal.getvalue().endswith("\r")
    with progress("plan"):
        say("again")
    assert shown(terminal.getvalue())[-1] == "plan: again"
