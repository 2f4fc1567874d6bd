"""Which life of ours this is: a number that rises with every start, kept in the home folder.

What we sign names it, so that going on from an older checkpoint is told from serving two adapters for one round, and
what an earlier life announced does not count any more.
"""

from __future__ import annotations

import time
from pathlib import Path

from gossip.errors import LocalError
from gossip.wire import INCARNATION_MAX
from peer.durable import told, write_atomically

FILE = "incarnation"


def begin_life(home: Path) -> int:
    """Return a number higher than any before, and keep it: one more than the last, or the time, whichever is higher.

    The time (seconds since 1970) makes up for a file that is lost, and the file for a clock that was set back.

    Raises:
        LocalError: it cannot be kept.
    """
    path = home / FILE
    try:
        kept = int(path.read_text(encoding="ascii"))
    except (FileNotFoundError, ValueError):  # new, or damaged
        kept = 0
    except OSError as error:
        raise LocalError(f"cannot read {path}: {told(error)}; or choose another --home") from error
    if not 0 <= kept < INCARNATION_MAX:
        kept = 0
    number = max(kept + 1, int(time.time()))
    try:
        write_atomically(path, f"{number}\n".encode())
    except OSError as error:
        raise LocalError(f"cannot write {path}: {told(error)}; or choose another --home") from error
    return number
