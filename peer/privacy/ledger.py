"""What training has spent for whose data, over all runs of a home: on the disk before it is spent.

``HOME/privacy/ledger`` is one small file, replaced whole and synced at each charge, so that a crash leaves the old one
or the new one: steps that were charged and not taken are charged again, never the other way round. Beside it lies, for
each data set, a file of digests of its units (rows, or authors), salted with a secret of the home: a changed file with
some of the same rows inherits what they have spent, and the worst unit counts.

Whatever is not as it was written (missing, torn, changed, another home's, older than the files beside it) is refused,
because the alternative is a fresh budget. A whole folder that was put back from a copy, or removed, cannot be told from
the one it was.
"""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import os
import secrets
from collections.abc import Iterable
from pathlib import Path

from peer.durable import keep_folder, open_log, remove_leftovers, told, write_atomically
from peer.privacy.charge import Charge, check
from peer.privacy.ledger_file import (
    FOLDER,
    LEDGER,
    LOCK,
    ROW,
    SALT_BYTES,
    UNITS,
    Content,
    DataSet,
    LedgerError,
    UnitDigests,
    digests_of,
    keyed,
    read_ledger,
    units_content,
    worst,
)

ENTRIES_MAX = 2_000
"""Data sets that a ledger holds, and kinds of steps of runs; restarts are kinds of their own. Source: ours."""
UNITS_MAX = 4_000_000
"""Rows of one data set; their digests then take 32 MB. Source: ours."""
NAME_MAX = 200
"""Letters of a data set's or a run's name that are kept."""


class Ledger:
    """The open ledger of a home; one process at a time. Use ``Ledger.open`` and, at the end, ``close``."""

    def __init__(self, folder: Path, lock: int, content: Content) -> None:
        self._folder = folder
        self._lock = lock
        self._content = content

    @staticmethod
    def open(home: Path) -> Ledger:
        """Open the ledger of a home; one that has none gets an empty one.

        Raises:
            LedgerError: another process has it open, or it cannot be read or written.
        """
        folder = home / FOLDER
        try:
            keep_folder(folder, mode=0o700)
            lock = open_log(folder / LOCK)
        except OSError as error:
            raise LedgerError(f"cannot keep the privacy ledger in {folder}: {told(error)}") from error
        try:
            _take(lock, folder)
            ledger = Ledger(folder, lock, read_ledger(home) or Content(secrets.token_bytes(SALT_BYTES)))
            remove_leftovers(folder)
            if not (folder / LEDGER).exists():
                ledger._write(ledger._content)
            return ledger
        except BaseException:
            os.close(lock)
            raise

    def close(self) -> None:
        """Let other processes open it."""
        os.close(self._lock)

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def digests(
        self, rows: Iterable[bytes], name: str, unit: str = ROW, owners: Iterable[bytes] = ()
    ) -> UnitDigests:
        """Return the digests of a data set, which tell nothing to who has not the home.

        Args:
            rows: the rows, each as bytes that are the same whenever the row is.
            name: what people call the data set.
            unit: what is protected.
            owners: whom the rows belong to, if the unit is not a row: one for each row, or each owner once.

        Raises:
            LedgerError: there are too many.
        """
        salt = self._content.salt
        of_rows = digests_of(salt, ROW, rows)
        of_units = of_rows if unit == ROW else digests_of(salt, f"field {unit}", owners)
        if max(len(of_rows), len(of_units)) > UNITS_MAX:
            raise LedgerError(
                f"the privacy ledger counts at most {UNITS_MAX:,} rows of one data set: split it"
            )
        return UnitDigests(name[:NAME_MAX], unit, of_units, of_rows)

    def spent(self, units: UnitDigests) -> list[Charge]:
        """Return steps that are at least what any one of these units has been charged for, in any run.

        Raises:
            LedgerError: a file of digests is not as it was written, or some of the rows were charged as another unit.
        """
        return worst(self._content, self._folder, units)

    def promise(self, units: UnitDigests, epsilon: float, delta: float) -> None:
        """Remember what is promised for these data, for who asks later.

        Raises:
            LedgerError: it cannot be written.
        """
        one = dataclasses.replace(self._known(units), epsilon=epsilon, delta=delta)
        self._write(dataclasses.replace(self._content, sets=self._content.sets | {one.digest: one}))

    def charge(self, units: UnitDigests, charge: Charge, run: str) -> None:
        """Charge steps; only when this has returned may they be taken.

        Args:
            run: which run takes them, for people.

        Raises:
            LedgerError: it cannot be written, and no step may be taken.
        """
        check(charge)
        digest = self._known(units).digest
        key = (digest, run[:NAME_MAX], charge.noise_multiplier, charge.sampling_rate)
        entries = dict(self._content.entries)
        entries[key] = entries.get(key, 0) + charge.steps
        self._write(dataclasses.replace(self._content, entries=entries))

    def _known(self, units: UnitDigests) -> DataSet:
        """Return the entry of a data set; a new one is first named in the ledger, then gets its file."""
        content = units_content(units)
        digest = keyed(self._content.salt, content).hex()
        if digest not in self._content.sets:
            one = DataSet(units.name, units.unit, len(units.units), len(units.rows), digest)
            self._write(dataclasses.replace(self._content, sets=self._content.sets | {digest: one}))
        path = self._folder / f"{UNITS}{digest}"
        if not path.exists():
            self._to_disk(path, content)
        return self._content.sets[digest]

    def _write(self, content: Content) -> None:
        if max(len(content.sets), len(content.entries)) > ENTRIES_MAX:
            raise LedgerError(
                f"{self._folder / LEDGER} is full ({ENTRIES_MAX:,} entries): train on other data with a new --home"
            )
        self._to_disk(self._folder / LEDGER, content.to_bytes())
        self._content = content

    def _to_disk(self, path: Path, content: bytes) -> None:
        try:
            write_atomically(path, content)
        except OSError as error:
            raise LedgerError(f"cannot write {path}, so nothing may be trained: {told(error)}") from error


def _take(lock: int, folder: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno != errno.EWOULDBLOCK:
            raise LedgerError(f"cannot lock the privacy ledger in {folder}: {told(error)}") from error
        raise LedgerError(
            f"another process uses the privacy ledger in {folder}: wait for it, or end it"
        ) from error
