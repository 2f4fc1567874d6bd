"""The ledger: whose charges count for whom, what survives, and what is refused rather than forgotten."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from faulty_disk import FOR_EVER, SURVIVAL, FaultyDisk, PowerOff, installed

from gossip.errors import LocalError
from peer.privacy import ledger as ledger_module
from peer.privacy.charge import Charge
from peer.privacy.ledger import Ledger
from peer.privacy.ledger_file import FOLDER, LEDGER, UNITS, LedgerError, read_ledger

STEP = Charge(1.1, 0.25, 10)
OTHER = Charge(2.0, 0.25, 10)


def rows(*numbers: int) -> list[bytes]:
    return [b"row %d" % number for number in numbers]


def charge(home: Path, numbers: Sequence[int], charge: Charge = STEP, run: str = "run") -> None:
    with Ledger.open(home) as ledger:
        ledger.charge(ledger.digests(rows(*numbers), "data"), charge, run)


def spent(home: Path, *numbers: int) -> list[Charge]:
    with Ledger.open(home) as ledger:
        return ledger.spent(ledger.digests(rows(*numbers), "data"))


def test_charges_add_up_over_runs_and_starts(tmp_path: Path) -> None:
    assert spent(tmp_path, 1, 2) == []
    charge(tmp_path, [1, 2])
    charge(tmp_path, [1, 2], run="another run")
    charge(tmp_path, [2, 1, 1], OTHER)
    assert spent(tmp_path, 1, 2) == [STEP._replace(steps=20), OTHER]


def test_rows_take_what_they_have_spent_into_other_files_and_the_worst_counts(tmp_path: Path) -> None:
    charge(tmp_path, [1, 2, 3])
    charge(tmp_path, [3, 4])
    charge(tmp_path, [5, 6], OTHER)
    assert spent(tmp_path, 1) == [STEP]
    assert spent(tmp_path, 3) == [STEP._replace(steps=20)]
    assert spent(tmp_path, 1, 4, 99) == [STEP], "neither of them was charged twice"
    assert spent(tmp_path, 1, 5) == [STEP, OTHER], "at least what either has spent"
    assert spent(tmp_path, 7, 8) == []


def test_owners_are_units_of_their_own_and_follow_new_rows(tmp_path: Path) -> None:
    with Ledger.open(tmp_path) as ledger:
        first = ledger.digests(rows(1, 2, 3), "data", "author", [b"ann", b"ann", b"bob"])
        assert (len(first.units), len(first.rows)) == (2, 3)
        ledger.charge(first, STEP, "run")
        later = ledger.digests(rows(7, 8), "new data", "author", [b"ann", b"eve"])
        assert ledger.spent(later) == [STEP]
        assert ledger.spent(ledger.digests(rows(8), "new data", "author", [b"eve"])) == []


@pytest.mark.parametrize(("before", "now"), [("author", "row"), ("row", "author"), ("author", "clinic")])
def test_rows_that_were_charged_as_another_unit_are_refused(tmp_path: Path, before: str, now: str) -> None:
    owners = [b"ann", b"bob"]
    with Ledger.open(tmp_path) as ledger:
        ledger.charge(ledger.digests(rows(1, 2), "notes.jsonl", before, owners), STEP, "run")
        with pytest.raises(LocalError, match=rf"notes.jsonl.*--dp-unit {now}: go on with --dp-unit {before}"):
            ledger.spent(ledger.digests(rows(2, 3), "notes.jsonl", now, owners))
        assert ledger.spent(ledger.digests(rows(3, 4), "others", now, owners)) == []


def test_digests_are_salted_with_a_secret_of_the_home_that_only_its_owner_can_read(tmp_path: Path) -> None:
    for name in ("one", "two"):
        charge(tmp_path / name, [1, 2])
        folder = tmp_path / name / FOLDER
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert {stat.S_IMODE(found.stat().st_mode) for found in folder.iterdir()} == {0o600}
        assert not any(b"row 1" in found.read_bytes() for found in folder.iterdir())
    one, two = (read_ledger(tmp_path / name) for name in ("one", "two"))
    assert one is not None
    assert two is not None
    assert one.salt != two.salt
    assert one.sets.keys() != two.sets.keys()


def test_one_process_at_a_time(tmp_path: Path) -> None:
    with Ledger.open(tmp_path):
        with pytest.raises(LedgerError, match="another process uses the privacy ledger"):
            Ledger.open(tmp_path)
        assert read_ledger(tmp_path) is not None, "who only looks need not wait"
    Ledger.open(tmp_path).close()


def test_a_home_without_one_has_none(tmp_path: Path) -> None:
    assert read_ledger(tmp_path) is None
    assert list(tmp_path.iterdir()) == []


# What is not as it was written


def damaged_in_every_way(content: bytes) -> dict[str, bytes]:
    middle = len(content) // 2
    older = content.replace(b'"version": 1', b'"version": 2')
    return {
        "empty": b"",
        "torn": content[:-1],
        "torn in the middle": content[:middle],
        "longer": content + b"\n",
        "twice": content * 2,
        "a bit": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
        "less spent": content.replace(b", 10]", b", 01]"),
        "zeros": bytes(len(content)),
        "no text": b"\xff" + content,
        "another version": older,
        "deep": b"[" * 100_000,
    }


@pytest.mark.parametrize("way", damaged_in_every_way(b"0123456789" * 3))
def test_a_damaged_ledger_is_refused_and_left_as_it_is(tmp_path: Path, way: str) -> None:
    charge(tmp_path, [1, 2])
    path = tmp_path / FOLDER / LEDGER
    damaged = damaged_in_every_way(path.read_bytes())[way]
    assert damaged != path.read_bytes()
    path.write_bytes(damaged)
    with pytest.raises(LedgerError, match=rf"{path} is damaged.*nothing is trained on.*backup.*--home"):
        Ledger.open(tmp_path)
    assert path.read_bytes() == damaged


def test_a_missing_ledger_is_refused_where_there_was_one(tmp_path: Path) -> None:
    charge(tmp_path, [1, 2])
    (tmp_path / FOLDER / LEDGER).unlink()
    with pytest.raises(LedgerError, match="is missing, although files of data sets lie beside it"):
        Ledger.open(tmp_path)


def test_an_older_or_foreign_ledger_is_refused_where_the_data_sets_tell(tmp_path: Path) -> None:
    charge(tmp_path / "home", [1, 2])
    path = tmp_path / "home" / FOLDER / LEDGER
    older = path.read_bytes()
    charge(tmp_path / "home", [3, 4])
    charge(tmp_path / "other", [1, 2])
    for wrong in (older, (tmp_path / "other" / FOLDER / LEDGER).read_bytes()):
        path.write_bytes(wrong)
        with pytest.raises(LedgerError, match="it is older, or of another home"):
            Ledger.open(tmp_path / "home")


@pytest.mark.parametrize("damage", ["missing", "torn", "other rows"])
def test_digests_that_are_not_as_they_were_are_refused(tmp_path: Path, damage: str) -> None:
    charge(tmp_path, [1, 2])
    (path,) = (tmp_path / FOLDER).glob(f"{UNITS}*")
    content = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes(content[:-8] if damage == "torn" else content[:-1] + b"?")
    with pytest.raises(LedgerError, match=r"units-\w+ is (missing|damaged).*nothing is trained on"):
        spent(tmp_path, 3, 4)


def test_a_ledger_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_module, "ENTRIES_MAX", 2)
    monkeypatch.setattr(ledger_module, "UNITS_MAX", 3)
    charge(tmp_path, [1, 2])
    charge(tmp_path, [1, 2], OTHER)
    with pytest.raises(LedgerError, match="is full"):
        charge(tmp_path, [1, 2], run="third")
    charge(tmp_path, [1, 2])
    assert spent(tmp_path, 1) == [STEP._replace(steps=20), OTHER], "what is there can still grow"
    with pytest.raises(LedgerError, match="at most 3 rows"):
        charge(tmp_path, [1, 2, 3, 4])


def test_names_of_any_length_and_letters_are_kept_short(tmp_path: Path) -> None:
    with Ledger.open(tmp_path) as ledger:
        units = ledger.digests(rows(1), "\N{PILE OF POO}\n" * 1000, 'a "field"\nof two lines', [b"x"])
        ledger.charge(units, STEP, "\n" * 1000)
        assert ledger.spent(units) == [STEP]
    assert (tmp_path / FOLDER / LEDGER).stat().st_size < 10_000
    assert Ledger.open(tmp_path).spent(units) == [STEP]


def test_a_charge_of_no_mechanism_is_our_bug(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="noise_multiplier"):
        charge(tmp_path, [1], Charge(0, 0.1, 1))


# Crashes


def two_charges(home: Path, reported: list[int]) -> None:
    """Charge data that the ledger knows, then data that share some rows with them."""
    with Ledger.open(home) as ledger:
        ledger.charge(ledger.digests(rows(1, 2), "data"), STEP, "run")
        reported.append(1)
        ledger.charge(ledger.digests(rows(2, 3), "data"), STEP, "run")
        reported.append(2)


def check_spent(home: Path, reported: Sequence[int]) -> None:
    """What was reported counts, and at most one charge more; it can be gone on with."""
    at_least = 1 + max(reported, default=0)
    for _ in range(2):
        steps = sum(found.steps for found in spent(home, 1, 2, 3)) // STEP.steps
        assert at_least <= steps <= at_least + 1
        assert not list((home / FOLDER).glob("*.partial"))
        charge(home, [2])
        at_least = steps + 1


@pytest.fixture(params=["first start", "later"])
def prepared(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A home as it was before the crash."""
    home = tmp_path / "prepared"
    home.mkdir()
    charge(home, [2], run="before")
    if request.param == "first start":
        shutil.rmtree(home / FOLDER)
    return home


def copied(prepared: Path) -> Path:
    home = prepared.parent / "home"
    shutil.rmtree(home, ignore_errors=True)
    return Path(shutil.copytree(prepared, home))


def calls_of(prepared: Path) -> list[str]:
    with installed(FaultyDisk(copied(prepared))) as disk:
        two_charges(prepared.parent / "home", [])
    return disk.calls


def check_found(found: Path, prepared: Path, reported: Sequence[int]) -> None:
    if (prepared / FOLDER).exists():
        check_spent(found, reported)
        return
    steps = sum(charge.steps for charge in spent(found, 1, 2, 3)) // STEP.steps
    assert max(reported, default=0) <= steps <= max(reported, default=0) + 1


def test_the_power_goes_at_every_call_and_no_charge_that_returned_is_lost(prepared: Path) -> None:
    for number, call in enumerate(calls_of(prepared)):
        disk = FaultyDisk(copied(prepared), fail_at=number)
        reported: list[int] = []
        with installed(disk), pytest.raises(PowerOff):
            two_charges(prepared.parent / "home", reported)
        for name, survival in SURVIVAL.items():
            found = prepared.parent / "found"
            disk.after_power_off(found, survival())
            try:
                with installed(FaultyDisk(found)):
                    check_found(found, prepared, reported)
            except Exception as error:
                raise AssertionError(f"power off at call {number} ({call}), survives: {name}") from error
            shutil.rmtree(found)


@pytest.mark.parametrize(
    ("code", "times"),
    [(errno.ENOSPC, FOR_EVER), (errno.EROFS, FOR_EVER), (errno.EIO, 1), (errno.EMFILE, 1)],
    ids=["full for ever", "read-only for ever", "fails once", "too many files once"],
)
def test_an_error_at_any_call_is_a_refusal_to_train_and_loses_nothing(
    prepared: Path, code: int, times: int
) -> None:
    for number, call in enumerate(calls_of(prepared)):
        reported: list[int] = []
        with installed(FaultyDisk(copied(prepared), number, code, times)), contextlib.suppress(LedgerError):
            two_charges(prepared.parent / "home", reported)
        try:
            with installed(FaultyDisk(prepared.parent / "home")):
                check_found(prepared.parent / "home", prepared, reported)
        except Exception as error:
            raise AssertionError(f"{os.strerror(code)} at call {number} ({call})") from error


def test_processes_killed_with_9_at_every_write_are_charged_twice_and_never_not_at_all() -> None:
    script = Path(__file__).with_name("killed_chargers.py")
    ended = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert int(ended.stdout.split()[0]) > 20


def test_the_promise_made_last_is_remembered(tmp_path: Path) -> None:
    with Ledger.open(tmp_path) as ledger:
        units = ledger.digests(rows(1, 2), "data")
        ledger.promise(units, 8.0, 1e-5)
        ledger.charge(units, STEP, "run")
        ledger.promise(units, 4.0, 1e-6)
    content = read_ledger(tmp_path)
    assert content is not None
    (one,) = content.sets.values()
    assert (one.name, one.unit, one.units, one.epsilon, one.delta) == ("data", "row", 2, 4.0, 1e-6)
    assert list(content.entries.values()) == [STEP.steps]
