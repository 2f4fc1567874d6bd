"""The journal's file: bounded, private to its owner, and never without the end of a line.

``journal.jsonl`` is the newest part; what came before is in ``journal.jsonl.1`` (the next newest) and so on. A line is
written whole or not at all; one that a crash tore goes at the next start. Lines are not synced: a journal may lose its
last seconds to a power cut, but no round waits for it.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from pathlib import Path

from peer.durable import append, open_log, rename, trim
from peer.journal_lines import Record

FILE_BYTES_MAX = 16 << 20
"""Size of a part, bytes: some 25,000 rounds, a line of which takes about 600 bytes. Source: guess."""
PARTS_KEPT = 3
"""Older parts that are kept; with the newest one, 64 MiB in all. Source: guess."""

READ_BYTES = 1 << 16
"""Bytes read at a time in search of the last line's end."""


class JournalFile:
    """Appends events as JSON lines to a file that only its owner can read; transient events are not kept.

    Args:
        path: the newest part; its folder exists.
        bytes_max: largest size of a part, bytes; a longer line has a part of its own.
        parts_kept: older parts that are kept, at least 1.

    Raises:
        OSError: it cannot be opened.
    """

    def __init__(self, path: Path, bytes_max: int = FILE_BYTES_MAX, parts_kept: int = PARTS_KEPT) -> None:
        self._path = path
        self._bytes_max = bytes_max
        self._parts_kept = parts_kept
        self._descriptor = open_log(
            path
        )  # the line to join a closed group, which carries its secret, stands in it
        self._size = _cut_torn_line(self._descriptor)

    def read(self, record: Record) -> None:
        """Write the event, so that it survives a crash of this process.

        Raises:
            OSError: it cannot be written now; perhaps the next one can.
        """
        if record.event.is_transient:
            return
        line = record.json_line().encode("utf-8", "backslashreplace") + b"\n"
        if self._size and self._size + len(line) > self._bytes_max:
            self._rotate()
        append(self._descriptor, line, self._size)
        self._size += len(line)

    def close(self) -> None:
        """Close the file."""
        with contextlib.suppress(OSError):  # the disk is still full: the next start cuts off what is torn
            trim(self._descriptor, self._size)
        os.close(self._descriptor)

    def _rotate(self) -> None:
        """Begin a new part; nothing is lost if any step fails, and the next line tries again."""
        trim(self._descriptor, self._size)
        if self._path.exists():  # if not, it has been renamed, and only the next part could not be opened
            parts = [self._path, *(_older(self._path, number) for number in range(1, self._parts_kept + 1))]
            for newer, older in reversed([*itertools.pairwise(parts)]):
                if newer.exists():
                    rename(newer, older)
        descriptor = open_log(self._path)
        os.close(self._descriptor)
        self._descriptor, self._size = descriptor, 0


def _older(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.{number}")


def _cut_torn_line(descriptor: int) -> int:
    """Cut off what follows the last end of a line, and return the size that is left, bytes."""
    size = os.fstat(descriptor).st_size
    end, start = 0, size
    while start and not end:
        before, start = start, max(0, start - READ_BYTES)
        end = start + os.pread(descriptor, before - start, start).rfind(b"\n") + 1
        end = 0 if end == start else end
    trim(descriptor, end)
    return end
