"""Kills processes that charge a ledger, at every call that they ask of the disk: ``python .../killed_chargers.py``.

For each number n, from 0: a fresh copy of a home, and a process that charges steps and reports each charge once it has
returned, which is when training would take the steps; it kills itself with SIGKILL at the n-th call. What it reported
must then stand in the ledger, and at most one charge more. It ends when a process lives to its end.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

from peer import durable
from peer.privacy.charge import Charge
from peer.privacy.ledger import Ledger

ROWS = [b"row %d" % number for number in range(20)]
CHARGES = 3
STEPS = 10


class Killer:
    """``os`` for ``peer.durable``: at the n-th call that changes something, the process is killed."""

    CHANGES = frozenset({"open", "write", "fsync", "replace", "unlink", "mkdir"})

    def __init__(self, left: int) -> None:
        self._left = left

    def __getattr__(self, name: str) -> Any:
        found = getattr(os, name)
        if name in self.CHANGES:
            if self._left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            self._left -= 1
        return found


def charge_and_report(home: Path, reports: int) -> None:
    with Ledger.open(home) as ledger:
        for new in range(CHARGES):  # each time some rows are new
            units = ledger.digests(ROWS[: 10 + 5 * new], "data")
            ledger.charge(units, Charge(1.0, 0.1, STEPS), "run")
            os.write(reports, b".")


def killed_at(call: int, home: Path) -> tuple[int, bool]:
    """Return how many charges were reported, and whether the process was killed."""
    reports, its_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(reports)
            durable.os = Killer(call)  # type: ignore[attr-defined]
            charge_and_report(home, its_end)
            os._exit(0)
        finally:
            os._exit(1)
    os.close(its_end)
    with os.fdopen(reports, "rb") as lines:
        reported = len(lines.read())
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code in (0, -signal.SIGKILL), f"call {call}: it ended by itself with {code}"
    return reported, code != 0


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        prepared, home = Path(folder) / "prepared", Path(folder) / "home"
        with Ledger.open(prepared) as ledger:
            ledger.charge(ledger.digests(ROWS[:5], "data"), Charge(1.0, 0.1, STEPS), "before")
        call, was_killed, seen = 0, True, set()
        while was_killed:
            shutil.rmtree(home, ignore_errors=True)
            shutil.copytree(prepared, home)
            reported, was_killed = killed_at(call, home)
            with Ledger.open(home) as ledger:
                (spent,) = ledger.spent(ledger.digests(ROWS, "data"))
            charged = spent.steps // STEPS - 1
            assert reported <= charged <= reported + 1, f"call {call}: {reported} reported, {charged} charged"
            assert not [*home.rglob("*.partial")], f"call {call}"
            seen.add((reported, charged))
            call += 1
    assert seen >= {(count, count) for count in range(CHARGES + 1)}
    assert any(charged > reported for reported, charged in seen), (
        "no kill fell between a charge and its report"
    )
    print(f"{call} processes, {call - 1} killed: no charge that was reported is lost")
    return 0


if __name__ == "__main__":
    sys.exit(main())
