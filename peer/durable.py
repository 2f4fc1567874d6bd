"""Files that survive a crash whole: written aside, brought to the disk, and only then given their name.

Everything that a peer keeps (checkpoints, adapters, converted models, results of experiments) goes through here.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def sync(path: Path) -> None:
    """Bring a file or a folder's list of names to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, content: bytes) -> None:
    """Replace ``path`` by ``content``: readers and crashes see the old content or the new, never a part.

    Raises:
        OSError: it cannot be written; what was there before is unharmed.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".partial")
    partial = Path(name)
    try:
        with os.fdopen(handle, "wb") as opened:
            opened.write(content)
        sync(partial)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync(path.parent)
