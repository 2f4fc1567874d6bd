"""Files that survive a crash whole: written aside, brought to the disk, and only then given their name.

Everything that a peer keeps (checkpoints, adapters, converted models, results of experiments) goes through here.
"""

from __future__ import annotations

import os
import secrets
import stat
import tempfile
from pathlib import Path

from gossip.errors import LocalError


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


def create_private(path: Path, text: str) -> None:
    """Write a new file that only its owner can read; an existing one is never overwritten.

    Raises:
        FileExistsError: there is one already.
        OSError: it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as opened:
            opened.write(text + "\n")
            opened.flush()
            os.fsync(opened.fileno())
        os.link(temporary, path)  # unlike a rename, fails if the name is taken
    finally:
        temporary.unlink()
    sync(path.parent)


def read_private(path: Path) -> str:
    """Return the text of a file that only its owner can read.

    Raises:
        FileNotFoundError: there is none.
        LocalError: others can read it, or it cannot be read; the message says what to do.
    """
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        text = path.read_text(encoding="ascii").strip()
    except FileNotFoundError:
        raise
    except (OSError, UnicodeDecodeError) as error:
        raise LocalError(f"cannot read {path}: {error}") from error
    if mode & 0o077:
        raise LocalError(f"{path} can be read by others (mode {mode:04o}): run `chmod 600 {path}`")
    return text
