"""What the exit codes of ``peer`` mean: the catalogue behind ``peer explain`` and docs/exit-codes.md.

``python -m peer.exit_codes > docs/exit-codes.md`` writes the page.
"""

from __future__ import annotations

import sys
from typing import NamedTuple

from gossip.errors import LocalError


class ExitCode(NamedTuple):
    """What one code says.

    Attributes:
        meaning: what happened.
        again: whether starting again helps.
    """

    meaning: str
    again: str


EXIT_CODES: dict[int, ExitCode] = {
    0: ExitCode("done", ""),
    1: ExitCode("a bug of ours; the traceback is printed, please report it", "perhaps"),
    2: ExitCode(
        "command line, configuration file, environment, address, port, identity or topology", "no: correct it"
    ),
    3: ExitCode(
        "none of the peers to join could be reached in `--join-timeout-s`", "yes, when they are there"
    ),
    5: ExitCode(
        "the peer to join takes part in another run; the manifest field that differs is named, and what to write to "
        "have theirs",
        "no: use its settings",
    ),
    6: ExitCode("data missing, empty or unreadable (file and line are named)", "no"),
    7: ExitCode(
        "home folder in use (by the process named), removed, without a whole checkpoint, or not writable: at the "
        "start, or 20 times in a row (training goes on meanwhile), or at the end; the same of its privacy ledger, or "
        "that is not as it was written",
        "after doing what it says",
    ),
    8: ExitCode(
        "the training process died three times without completing a round between, not even half a batch fits into "
        "memory, or the machine is out of open files or of space outside the home; the last checkpoint is safe",
        "perhaps: memory?",
    ),
    9: ExitCode(
        "training diverged: the loss or the adapter is no longer finite, and so it was after three returns to the "
        "last adapter that was in order (at once with `--check-rows 0`)",
        "with a lower learning rate",
    ),
    130: ExitCode("left politely after Ctrl-C (SIGINT), with a checkpoint", "goes on where it stopped"),
    143: ExitCode("left politely after SIGTERM, with a checkpoint", "goes on where it stopped"),
}


def explain(code: int) -> str:
    """Return what a code means, for people.

    Raises:
        LocalError: ``peer`` never ends with this code.
    """
    if code not in EXIT_CODES:
        known = ", ".join(map(str, EXIT_CODES))
        raise LocalError(
            f"peer has no exit code {code}; it has {known} (137 is the system's: killed by kill -9, or memory)"
        )
    found = EXIT_CODES[code]
    again = f"\nDoes starting again help? {found.again[0].upper()}{found.again[1:]}." if found.again else ""
    return f"{code}: {found.meaning}.{again}"


def page() -> str:
    """Return the page of all codes, in Markdown."""
    rows = [f"| {code} | {found.meaning} | {found.again} |" for code, found in EXIT_CODES.items()]
    return "\n".join(
        [
            "# Exit codes of `peer`",
            "",
            "An error is one line on stderr, `error: ...`, saying what happened, where, and what to do. What was saved "
            "is never lost.",
            "`peer explain 7` tells of one code.",
            "",
            "| code | meaning | does starting again help? |",
            "| --- | --- | --- |",
            *(row.replace("|  |", "| |") for row in rows),
            "",
        ]
    )


if __name__ == "__main__":
    sys.stdout.write(page())
