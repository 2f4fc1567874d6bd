"""Commands of ``peer`` that live above it: what installed distributions declare as entry points of ``GROUP``.

An entry point ``NAME = "MODULE:FUNCTION"`` becomes ``peer NAME``: the function is called with the words after the name
and with how it was called, and returns the exit code. Its module is imported only when that command is asked for; the
first line of the module's docstring, read without running it, is the line in ``peer --help``.
"""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Callable, Collection, Sequence
from functools import partial
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from gossip.errors import LocalError

GROUP = "gossip_peer.commands"

InstalledCommand = Callable[[Sequence[str], str], int]
"""Called with the words after its name, and with how it was called, such as ``"peer testnet"``."""


def find_installed_command(words: Sequence[str], own: Collection[str]) -> Callable[[], int] | None:
    """Return the installed command that a command line begins with, ready to run; None if there is none.

    Args:
        own: the names of ``peer``'s own commands, which none may replace.
    """
    if not words or words[0].startswith("-") or words[0] in own:
        return None
    for entry in entry_points(group=GROUP, name=words[0]):
        command: InstalledCommand = entry.load()
        return partial(command, words[1:], f"peer {words[0]}")
    return None


def list_installed_commands(app: App) -> None:
    """Let the help of ``app`` list the installed commands, a line each."""
    for entry in entry_points(group=GROUP):
        if entry.name not in app:
            app.command(_refuse, name=entry.name, help=_first_line(entry.module))


def _refuse(*words: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)]) -> None:
    """Say why a command that is not the first word does not run."""
    raise LocalError(
        "--config is for peer's own commands; an installed one must be the first word after peer"
    )


def _first_line(module: str) -> str:
    """Return the first line of a module's docstring; of a module that is not there, nothing."""
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        spec = None
    if spec is None or spec.origin is None:
        return ""
    docstring = ast.get_docstring(ast.parse(Path(spec.origin).read_bytes()))
    return (docstring or "").partition("\n")[0]
