"""How a command of the laboratory was called: as a script of a checkout, or as a command of the installed ``peer``.

Both call the same function; help, hints and refusals then name what the user typed. The command's ``App`` is named as
the script is called, such as ``python scripts/convergence.py``, and says so in the examples of its help.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from contextvars import ContextVar

from cyclopts import App

from gossip.errors import LocalError
from scripts.lab.command import exit_code_of

_OURS = ("topology", "gossip", "peer", "scripts")
_called: ContextVar[str] = ContextVar("_called")


def program() -> str:
    """Return how the command that runs was called: ``peer convergence``, or as its script."""
    return _called.get()


def run_program(app: App, words: Sequence[str] | None, *, called: str | None, extra: str) -> int:
    """Run one command and return its exit code.

    Args:
        words: the command line; None = that of this process.
        called: how it was called, such as ``"peer convergence"``; None = as the script that ``app`` is named by.
        extra: the extra of our distribution that holds all packages which the command may need.
    """
    renamed = _renamed(app, called or app.name[0])

    def command(words: Sequence[str] | None) -> None:
        try:
            renamed(words)
        except ModuleNotFoundError as error:
            package = (error.name or "").partition(".")[0]
            if not package or package in _OURS:
                raise
            raise LocalError(
                f"{program()} needs the package {package}: pip install 'gossip-peer[{extra}]'"
            ) from error

    token = _called.set(renamed.name[0])
    try:
        return exit_code_of(command, words)
    finally:
        _called.reset(token)


def _renamed(app: App, name: str) -> App:
    """Return an equal command that goes by another name, in its help too."""
    help_text = str(app.help).replace(app.name[0], name)
    renamed = App(
        name=name,
        help=help_text,
        help_format="plaintext",  # the examples keep their lines
        version=lambda: importlib.metadata.version("gossip-peer"),
        default_parameter=app.default_parameter,
    )
    renamed.update(app)
    if app.default_command is not None:
        renamed.default(app.default_command)
    return renamed
