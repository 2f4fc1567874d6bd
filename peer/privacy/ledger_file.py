"""The files of a ledger: what stands in them, and what is refused because it is not as it was written."""

from __future__ import annotations

import dataclasses
import json
from collections import defaultdict
from collections.abc import Iterable
from hashlib import blake2b
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gossip.errors import LocalError
from peer.durable import told
from peer.privacy.charge import Charge

Digests = NDArray[np.uint64]

FOLDER, LEDGER, LOCK, UNITS = "privacy", "ledger", "lock", "units-"
VERSION = 1
LEDGER_BYTES_MAX = 16 << 20
"""So much of the file is read; it is smaller, whatever the names in it. Source: follows from ``ENTRIES_MAX``."""
SALT_BYTES = 32
ROW = "row"
"""The unit that is a row; any other is the name of a field."""


class LedgerError(LocalError):
    """The ledger is in use, cannot be written, or is not as it was written."""

    exit_code = 7


@dataclasses.dataclass(frozen=True)
class UnitDigests:
    """Salted digests of a data set; made by ``Ledger.digests``.

    Attributes:
        name: what people call the data set.
        unit: what is protected: ``row``, or a field of which all rows with the same value are one unit.
        units: one for each unit, in ascending order, each once.
        rows: the same of the rows.
    """

    name: str
    unit: str
    units: Digests
    rows: Digests


@dataclasses.dataclass(frozen=True)
class DataSet:
    """What the ledger knows of one data set.

    Attributes:
        name, unit: as in ``UnitDigests``.
        units, rows: how many.
        digest: names its file; hexadecimal.
        epsilon, delta: what was promised last; 0 if nothing was.
    """

    name: str
    unit: str
    units: int
    rows: int
    digest: str
    epsilon: float = 0.0
    delta: float = 0.0


@dataclasses.dataclass(frozen=True)
class Content:
    """All that stands in a ledger."""

    salt: bytes
    sets: dict[str, DataSet] = dataclasses.field(default_factory=dict)
    entries: dict[tuple[str, str, float, float], int] = dataclasses.field(default_factory=dict)
    """(digest of the data set, run, noise multiplier, sampling rate) -> steps."""

    def to_bytes(self) -> bytes:
        """Return the file: the salt, the rest as JSON, and a checksum of both."""
        body = {
            "version": VERSION,
            "sets": [dataclasses.asdict(one) for one in self.sets.values()],
            "entries": [[*key, steps] for key, steps in self.entries.items()],
        }
        text = self.salt.hex() + "\n" + json.dumps(body) + "\n"
        return (text + keyed(self.salt, text.encode()).hex() + "\n").encode()

    @staticmethod
    def from_bytes(content: bytes) -> Content:
        """Read a file.

        Raises:
            ValueError: it is not as it was written, or of another version.
        """
        salt_line, body_line, checksum, end = content.decode("ascii").split("\n")
        salt = bytes.fromhex(salt_line)
        if end or len(salt) != SALT_BYTES:
            raise ValueError("its parts are not complete")
        if keyed(salt, f"{salt_line}\n{body_line}\n".encode()).hex() != checksum:
            raise ValueError("its checksum is wrong")
        body = json.loads(body_line)
        if body["version"] != VERSION:
            raise ValueError(f"it has version {body['version']}, this program reads {VERSION}")
        sets = {one["digest"]: DataSet(**one) for one in body["sets"]}
        return Content(salt, sets, {tuple(key): steps for *key, steps in body["entries"]})


def keyed(salt: bytes, content: bytes) -> bytes:
    """Return a digest of 16 bytes that only who has the salt can compute."""
    return blake2b(content, key=salt, digest_size=16).digest()


def digests_of(salt: bytes, kind: str, contents: Iterable[bytes]) -> Digests:
    """Return digests of 8 bytes, ascending, each once; two that coincide by chance count as one that spent both."""
    key = keyed(salt, kind.encode())
    found = b"".join(blake2b(content, key=key, digest_size=8).digest() for content in contents)
    return np.unique(np.frombuffer(found, np.uint64))


def units_content(units: UnitDigests) -> bytes:
    """Return the file of a data set: the unit's name, the units' digests, and the rows' if those are others."""
    rows = b"" if units.unit == ROW else units.rows.tobytes()
    return json.dumps(units.unit).encode() + b"\n" + units.units.tobytes() + rows


def read_ledger(home: Path) -> Content | None:
    """Return what stands in the ledger of a home; None if there was never one.

    Raises:
        LedgerError: it is not as it was written.
    """
    folder = home / FOLDER
    path = folder / LEDGER
    try:
        names = {found.name for found in folder.iterdir()} if folder.is_dir() else set()
        if LEDGER not in names:
            if any(name.startswith(UNITS) for name in names):
                raise _refused(path, "is missing, although files of data sets lie beside it")
            return None
        with path.open("rb") as file:
            content = Content.from_bytes(file.read(LEDGER_BYTES_MAX))
    except OSError as error:
        raise LedgerError(f"cannot read {path}: {told(error)}") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _refused(path, f"is damaged: {error}") from error
    strangers = {name for name in names if name.startswith(UNITS)} - {UNITS + name for name in content.sets}
    if strangers:
        raise _refused(
            path,
            f"does not know {sorted(strangers)[0]}, which lies beside it: it is older, or of another home",
        )
    return content


def load_units(content: Content, folder: Path, one: DataSet) -> UnitDigests:
    """Return the digests of a data set from its file.

    Raises:
        LedgerError: the file is missing or not as it was written.
    """
    path = folder / f"{UNITS}{one.digest}"
    try:
        found = path.read_bytes()
    except FileNotFoundError as error:
        raise _refused(path, "is missing, although steps have been charged for its data") from error
    except OSError as error:
        raise LedgerError(f"cannot read {path}: {told(error)}") from error
    if keyed(content.salt, found).hex() != one.digest:
        raise _refused(path, "is damaged: its checksum is wrong")
    numbers = np.frombuffer(found[found.index(b"\n") + 1 :], np.uint64)
    units = numbers[: one.units]
    return UnitDigests(one.name, one.unit, units, units if one.unit == ROW else numbers[one.units :])


def worst(content: Content, folder: Path, units: UnitDigests) -> list[Charge]:
    """Return steps that are at least what any one of these units has been charged for.

    Of each kind of step, the most that any of the units has taken part in: of units with different histories, no single
    one may have spent all of that.

    Raises:
        LedgerError: a file is not as it was written, or rows were charged as another unit.
    """
    steps: defaultdict[tuple[float, float], NDArray[np.int64]] = defaultdict(
        lambda: np.zeros(len(units.units), np.int64)
    )
    for one in content.sets.values():
        kinds = [(key[2:], count) for key, count in content.entries.items() if key[0] == one.digest and count]
        if not kinds:
            continue
        there = load_units(content, folder, one)
        if there.unit != units.unit and len(np.intersect1d(there.rows, units.rows, assume_unique=True)):
            raise LedgerError(
                f"some of these rows have been trained on with --dp-unit {there.unit} (data set {there.name}), and "
                f"what that spent cannot be counted for --dp-unit {units.unit}: go on with --dp-unit {there.unit}"
            )
        if there.unit == units.unit:
            touched = np.isin(units.units, there.units, assume_unique=True)
            for kind, count in kinds:
                steps[kind] += touched * count
    return [
        Charge(*kind, int(counts.max(initial=0))) for kind, counts in sorted(steps.items()) if counts.any()
    ]


def _refused(path: Path, what: str) -> LedgerError:
    return LedgerError(
        f"{path} {what}. What has been spent of the privacy of your data is not known any more, so nothing is "
        "trained on: put back the newest copy of the whole folder from a backup, or use data that this home has never "
        "seen, with a new --home"
    )
