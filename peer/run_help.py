"""What ``--help`` shows of a run's many options: everyday ones, in groups; ``--help-all`` shows all.

Which are everyday is declared with the options (``learning_options.py``, ``group_options.py``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cyclopts.help import DefaultFormatter, HelpEntry, HelpPanel

from peer.config import OPTIONS

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions

ALL = "--help-all"
NOTHING = "()"
"""How a list without items is shown as a default: not worth a word."""


class RunHelp(DefaultFormatter):
    """Shows panels without the options that few users meet.

    Args:
        everything: show those, too.
    """

    def __init__(self, *, everything: bool) -> None:
        super().__init__()
        self._everything = everything

    def __call__(self, console: Console, options: ConsoleOptions, panel: HelpPanel) -> None:
        """Show a panel, if anything is left of it."""
        entries = [_plain(entry) for entry in panel.entries if self._everything or _is_everyday(entry)]
        if entries:
            super().__call__(console, options, panel.copy(entries=entries))


def hidden_options() -> int:
    """Return how many options only ``--help-all`` shows."""
    return sum(not option.everyday for option in OPTIONS.values())


def _is_everyday(entry: HelpEntry) -> bool:
    """Tell whether most users meet an option; what is no option of a run (``--json``, a command) is shown."""
    flags = {option.flag: option for option in OPTIONS.values()}
    return all(flags[name].everyday for name in entry.positive_names if name in flags)


def _plain(entry: HelpEntry) -> HelpEntry:
    return entry.copy(default=None) if str(entry.default) == NOTHING else entry
