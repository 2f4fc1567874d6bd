"""A disk that fails or loses power at any call of ``peer.durable``; it stands in that file in the place of ``os``.

It carries every call out on the real files, so that the process under test sees them, and keeps beside them what has
reached the disk. The model is as hard as POSIX allows (and harder than ext4): bytes are on the disk after an fsync of
their file, a name after an fsync of its folder, even one of a file that was synced; what was not synced when the power
goes survives or not, each change for itself, and a file's bytes up to any length.
"""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from peer import durable

CHANGES = ("open", "write", "fsync", "replace", "rename", "link", "unlink", "mkdir", "rmdir", "ftruncate")
TAKEN_WHOLE_BYTES = 512
"""Of more than this a write takes only a half, as a disk that is nearly full may."""
FOR_EVER = 1 << 60
"""So many calls are never made."""
REFUSED: dict[int, frozenset[str]] = {
    errno.ENOSPC: frozenset({"create", "write", "fsync", "replace", "rename", "link", "mkdir"}),
    errno.EROFS: frozenset(CHANGES) - {"open", "fsync"} | {"create"},
    errno.EIO: frozenset(CHANGES) | {"create"},
    errno.EMFILE: frozenset({"open", "create"}),
}
"""Error -> the calls that give it; "create" is an open that makes a file."""


class PowerOff(BaseException):
    """Nothing is executed after it."""


@dataclass(eq=False)
class File:
    """Bytes as they are, and as they were at the last fsync."""

    now: bytearray
    synced: bytes = b""


@dataclass(eq=False)
class Folder:
    """Names as they are, and as they were at the last fsync; the changes since, each a function of the names."""

    now: dict[str, File | Folder] = field(default_factory=dict)
    synced: dict[str, File | Folder] = field(default_factory=dict)
    changes: list[Callable[[dict[str, Any]], object]] = field(default_factory=list)

    def change(self, make: Callable[[dict[str, Any]], object]) -> None:
        make(self.now)
        self.changes.append(make)


def everything_in(path: Path) -> Folder:
    """Return what lies in a real folder, all of it synced."""
    names: dict[str, File | Folder] = {}
    for entry in path.iterdir():
        content = b"" if entry.is_dir() else entry.read_bytes()
        names[entry.name] = everything_in(entry) if entry.is_dir() else File(bytearray(content), content)
    return Folder(dict(names), dict(names))


class FaultyDisk:
    """``os`` for ``peer.durable``, over the folder ``root``.

    Args:
        root: where everything happens.
        fail_at: number of the call, from 0, at which something happens; None: nothing does.
        error: number of the error that calls give from then on, those that can (``REFUSED``); None: the power goes at
            this call, before it does anything.
        times: for how many calls that lasts.
    """

    def __init__(
        self, root: Path, fail_at: int | None = None, error: int | None = None, times: int = 1
    ) -> None:
        self.calls: list[str] = []
        self._root = root
        self._tree = everything_in(root)
        self._fail_at, self._error, self._times = fail_at, error, times
        self._open: dict[int, File | Folder] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def refuse(self, error: int) -> None:
        """Give this error from now on."""
        self._fail_at, self._error, self._times = len(self.calls), error, FOR_EVER

    def recover(self) -> None:
        """Be a good disk again."""
        self._fail_at = None

    def open(self, path: Path, flags: int, mode: int = 0o777) -> int:
        self._reach("create" if flags & os.O_CREAT else "open", path)
        descriptor = os.open(path, flags, mode)
        if flags & os.O_CREAT and path.name not in self._folder(path.parent).now:
            made = File(bytearray())
            self._folder(path.parent).change(lambda names: names.update({path.name: made}))
        self._open[descriptor] = self._find(path)
        return descriptor

    def close(self, descriptor: int) -> None:
        self._open.pop(descriptor, None)
        os.close(descriptor)

    def write(self, descriptor: int, content: memoryview) -> int:
        self._reach("write", f"{len(content)} bytes")
        file = self._open[descriptor]
        assert isinstance(file, File)
        taken = content[: len(content) // 2] if len(content) > TAKEN_WHOLE_BYTES else content
        count = os.write(descriptor, taken)
        file.now += content[:count]
        return count

    def ftruncate(self, descriptor: int, size: int) -> None:
        self._reach("ftruncate", size)
        os.ftruncate(descriptor, size)
        file = self._open[descriptor]
        assert isinstance(file, File)
        del file.now[size:]

    def fsync(self, descriptor: int) -> None:
        found = self._open[descriptor]
        self._reach("fsync", type(found).__name__)
        if isinstance(found, File):
            found.synced = bytes(found.now)
        else:
            found.synced, found.changes = dict(found.now), []

    def replace(self, path: Path, name: Path) -> None:
        self._reach("replace", name)
        os.replace(path, name)
        self._move(path, name)

    def rename(self, path: Path, name: Path) -> None:
        self._reach("rename", name)
        os.rename(path, name)
        self._move(path, name)

    def link(self, there: Path, here: Path) -> None:
        self._reach("link", here)
        os.link(there, here)
        file = self._find(there)
        self._folder(here.parent).change(lambda names: names.update({here.name: file}))

    def unlink(self, path: Path) -> None:
        self._reach("unlink", path)
        os.unlink(path)
        self._folder(path.parent).change(lambda names: names.pop(path.name, None))

    def mkdir(self, path: Path, mode: int = 0o777) -> None:
        self._reach("mkdir", path)
        os.mkdir(path, mode)
        made = Folder()
        self._folder(path.parent).change(lambda names: names.update({path.name: made}))

    def rmdir(self, path: Path) -> None:
        self._reach("rmdir", path)
        os.rmdir(path)
        self._folder(path.parent).change(lambda names: names.pop(path.name, None))

    def after_power_off(self, target: Path, chance: Callable[[], float]) -> None:
        """Write to ``target`` what is found when the power comes back.

        Args:
            chance: a number from 0 to 1 for each change that was not synced; it survives if the number is below 0.5.
        """
        _write(self._tree, target, chance)

    def _reach(self, name: str, what: object) -> None:
        number = len(self.calls)
        self.calls.append(f"{name} {what}")
        if self._fail_at is not None and self._fail_at <= number < self._fail_at + self._times:
            if self._error is None:
                self._times = FOR_EVER  # off is off
                raise PowerOff
            if name in REFUSED[self._error]:
                raise OSError(self._error, os.strerror(self._error))

    def _folder(self, path: Path) -> Folder:
        found = self._find(path)
        assert isinstance(found, Folder)
        return found

    def _find(self, path: Path) -> File | Folder:
        found: File | Folder = self._tree
        real = self._root
        for name in path.relative_to(self._root).parts:
            assert isinstance(found, Folder)
            real /= name
            if name not in found.now:  # made by somebody else: seen, but nothing of it is synced
                made = Folder() if real.is_dir() else File(bytearray(real.read_bytes()))
                found.change(lambda names, name=name, made=made: names.update({name: made}))  # type: ignore[misc]
            found = found.now[name]
        return found

    def _move(self, path: Path, name: Path) -> None:
        assert path.parent == name.parent, "a move between folders is two changes, which may be torn"
        moved = self._find_moved(path)

        def move(names: dict[str, Any]) -> None:
            names.pop(path.name, None)
            names[name.name] = moved

        self._folder(path.parent).change(move)

    def _find_moved(self, path: Path) -> File | Folder:
        return self._folder(path.parent).now[path.name]


def _write(folder: Folder, target: Path, chance: Callable[[], float]) -> None:
    target.mkdir()
    names = dict(folder.synced)
    for change in folder.changes:
        if chance() < 0.5:
            change(names)
    for name, found in names.items():
        if isinstance(found, Folder):
            _write(found, target / name, chance)
        elif chance() < 0.5:
            (target / name).write_bytes(found.now)
        else:
            more = found.now[len(found.synced) :]
            (target / name).write_bytes(found.synced + more[: int(chance() * len(more))])
        if not isinstance(found, Folder):
            (target / name).chmod(0o600)


SURVIVAL: dict[str, Callable[[], Callable[[], float]]] = {
    "all that was done": lambda: lambda: 0.0,
    "only what was synced": lambda: lambda: 1.0 - 1e-9,
    **{f"by chance {seed}": lambda seed=seed: random.Random(seed).random for seed in range(2)},  # type: ignore[misc]
}
"""What survives a crash -> a new source of numbers that says so; the first is kill -9, in which nothing is lost."""


@contextmanager
def installed(disk: FaultyDisk) -> Iterator[FaultyDisk]:
    """Let ``peer.durable`` write to this disk."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(durable, "os", disk)
        yield disk
