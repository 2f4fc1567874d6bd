"""Files that survive a crash whole: written aside, brought to the disk, and only then given their name.

Everything that a peer keeps (checkpoints, adapters, identity, the group's secret, addresses, the journal, converted
models, results of experiments) goes through here, and through nothing but calls of ``os``: tests put a disk of their
own in its place, which fails or loses power at each of them (``tests/peer/faulty_disk.py``).

What is written aside ends in ``PARTIAL``, what is on its way out in ``GONE``; whoever owns the folder removes both when
it begins (``remove_leftovers``).
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

from gossip.errors import LocalError

PARTIAL = ".partial"
"""Ending of the name of a file that is being written."""
GONE = ".gone"
"""Ending of the name of a folder that is being removed."""

Content: TypeAlias = bytes | Sequence[bytes | memoryview]
"""What is written to a file: all of it, or pieces one after another, so that what is large need not be copied."""

_REMEDIES = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space, or ask for a larger quota",
    errno.EROFS: "make the disk writable again (the system itself mounts a failing one read-only: see its log)",
    errno.EIO: "the disk fails, see the system's log: copy the folder to another one",
    errno.EMFILE: "too many files are open in this process: raise the limit, for example `ulimit -n 8192`",
    errno.ENFILE: "too many files are open on this machine: end other programs, or raise the system's limit",
    errno.EACCES: "let this user write there",
    errno.EPERM: "let this user write there",
}
"""What a user can do about an error of the system."""


def told(error: OSError) -> str:
    """Return what the system said, and what to do about it where that is known."""
    said = error.strerror or str(error)
    remedy = _REMEDIES.get(error.errno or 0)
    return f"{said}: {remedy}" if remedy else said


def is_of_the_machine(error: BaseException) -> bool:
    """Whether an error is one that only its user can do something about: no space, too many files, a failing disk."""
    return isinstance(error, OSError) and error.errno in _REMEDIES


def sync(path: Path) -> None:
    """Bring a file or a folder's list of names to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_new(path: Path, content: Content) -> None:
    """Write a file that is not there yet and bring its bytes, not its name, to the disk; only its owner can read it.

    Raises:
        FileExistsError: it is there.
        OSError: it cannot be written; a part of it may be there.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        _write_all(descriptor, content)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, content: Content) -> None:
    """Replace ``path`` by ``content``: readers and crashes see the old content or the new, never a part.

    Raises:
        OSError: it cannot be written; what was there before is unharmed.
    """
    partial = _partial(path)
    try:
        write_new(partial, content)
        os.replace(partial, path)
    except BaseException:
        _unlink(partial)
        raise
    sync(path.parent)


def create_private(path: Path, text: str) -> None:
    """Write a new file that only its owner can read; an existing one is never overwritten.

    Raises:
        FileExistsError: there is one already.
        OSError: it cannot be written.
    """
    partial = _partial(path)
    try:
        write_new(partial, text.encode("ascii") + b"\n")
        os.link(partial, path)  # unlike a rename, fails if the name is taken
    finally:
        _unlink(partial)
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
    except UnicodeDecodeError as error:
        raise LocalError(f"cannot read {path}: {error}") from error
    except OSError as error:
        raise LocalError(f"cannot read {path}: {told(error)}") from error
    if mode & 0o077:
        raise LocalError(f"{path} can be read by others (mode {mode:04o}): run `chmod 600 {path}`")
    return text


def open_log(path: Path) -> int:
    """Return a descriptor of a file to append to, made if it is missing, that only its owner can read."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
    os.fchmod(descriptor, 0o600)
    return descriptor


def append(descriptor: int, content: bytes, size: int) -> None:
    """Add ``content`` to the end of an open log of ``size`` bytes, without a sync.

    Raises:
        OSError: it cannot be written; a part of it may be there until ``trim`` or the next call.
    """
    trim(descriptor, size)
    _write_all(descriptor, content)


def trim(descriptor: int, size: int) -> None:
    """Cut off what a log has beyond ``size`` bytes."""
    if os.fstat(descriptor).st_size > size:
        os.ftruncate(descriptor, size)


def keep_folder(path: Path, mode: int = 0o777) -> None:
    """Make a folder and those it lies in, as far as they are missing, and bring the names of new ones to the disk.

    Raises:
        OSError: it cannot be made, or something else has its name.
    """
    if path.is_dir():
        return
    keep_folder(path.parent)
    with contextlib.suppress(FileExistsError):  # made just now by another process, or no folder: see below
        os.mkdir(path, mode)
    sync(path.parent)
    if not path.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))


def make_folder(path: Path) -> None:
    """Make an empty folder in one that is there; what bore its name before is removed.

    Raises:
        OSError: it cannot be made.
    """
    if path.exists():
        remove_folder(path)
    os.mkdir(path)


def publish_folder(temporary: Path, final: Path) -> None:
    """Bring a folder of files to the disk and give it its name; what bore that name goes.

    When this returns the folder survives a crash; before that, it is not there under its name, or whole.

    Raises:
        OSError: it could not be done; the folder may lie under either name, whole.
    """
    for path in temporary.iterdir():
        sync(path)
    sync(temporary)
    replaced = final.with_name(final.name + GONE)
    if final.exists():
        if replaced.exists():
            _remove(replaced)
        os.rename(final, replaced)
    os.rename(temporary, final)
    sync(final.parent)
    if replaced.exists():
        _remove(replaced)


def link(there: Path, here: Path) -> None:
    """Let the same file, which nobody writes any more, have a second name."""
    os.link(there, here)


def rename(path: Path, name: Path) -> None:
    """Give a file or folder another name on the same disk; the sync of its folder is the caller's."""
    os.rename(path, name)


def remove_file(path: Path) -> None:
    """Remove a file, if it is there; when this returns, it stays removed."""
    if path.exists():
        os.unlink(path)
        sync(path.parent)


def remove_folder(path: Path) -> None:
    """Remove a folder with all that is in it; a crash leaves none of it under its name, so it is never seen halved.

    Raises:
        OSError: it could not be removed, or not all of it.
    """
    gone = path.with_name(path.name + GONE)
    if gone.exists():
        _remove(gone)
    os.rename(path, gone)
    _remove(gone)


def remove_leftovers(folder: Path) -> None:
    """Remove what a process that died in the middle of a write left in a folder that no other process writes to.

    Raises:
        OSError: something could not be removed.
    """
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.name.endswith((PARTIAL, GONE)):
            _remove(path)


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}{PARTIAL}")


def _write_all(descriptor: int, content: Content) -> None:
    for piece in (content,) if isinstance(content, bytes) else content:
        left = memoryview(piece)
        while left:  # one call writes at most 2 GiB, and less on a disk that is nearly full
            left = left[os.write(descriptor, left) :]


def _unlink(path: Path) -> None:
    with contextlib.suppress(
        OSError
    ):  # never made, or renamed; on a disk that fails, the first error says it all
        os.unlink(path)


def _remove(path: Path) -> None:
    if path.is_symlink() or not path.is_dir():
        os.unlink(path)
        return
    for inside in path.iterdir():
        _remove(inside)
    os.rmdir(path)
