"""How a script with long commands ends: refusals are one line, what was finished is kept."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

from gossip.errors import LocalError


def note(text: str) -> None:
    """Say something that is not the result."""
    sys.stderr.write(f"{text}\n")


def exit_code_of(command: Callable[[Sequence[str] | None], object], words: Sequence[str] | None) -> int:
    """Run one command; return the exit code of docs/exit-codes.md, refusals being one line on stderr.

    Args:
        words: the command line; None = that of this process.
    """
    try:
        command(words)
    except LocalError as error:
        note(f"error: {error}")
        return error.exit_code
    except KeyboardInterrupt:
        note("stopped; runs that are finished are kept, the same command goes on with the others")
        return 130
    except BrokenPipeError:  # the reader of our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0
