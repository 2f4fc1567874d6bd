"""What ``peer privacy`` says, of ledgers as training leaves them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from peer.cli import main
from peer.privacy.accounting import epsilon
from peer.privacy.charge import Charge
from peer.privacy.ledger import Ledger
from peer.privacy.ledger_file import FOLDER, LEDGER
from peer.privacy.statement import FEW_UNITS, statements, warnings_of

STEPS = Charge(1.2, 0.14, 60)


def rows(count: int, first: int = 0) -> list[bytes]:
    return [b"row %d" % number for number in range(first, first + count)]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    with Ledger.open(tmp_path) as ledger:
        notes = ledger.digests(rows(450), "notes.jsonl")
        ledger.promise(notes, 8.0, 1e-5)
        ledger.charge(notes, STEPS, "first")
        ledger.charge(notes, STEPS._replace(steps=30), "second")
        newer = ledger.digests(rows(100, 400), "newer.jsonl")
        ledger.charge(newer, STEPS._replace(steps=10), "third")
        ledger.promise(ledger.digests(rows(5, 9000), "never trained on"), 1.0, 1e-5)
    return tmp_path


def said(home: Path, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as end:
        main(["privacy", "--home", str(home), *words])
    assert not end.value.code
    return capsys.readouterr().out


def test_spent_is_of_the_unit_that_spent_most_over_all_data_sets(home: Path) -> None:
    notes, newer, untouched = statements(home)
    for statement in (notes, newer):  # 50 rows stand in both
        assert statement.charges == (STEPS._replace(steps=100),)
        assert statement.spent == epsilon(statement.charges, 1e-5)
    assert (notes.runs, notes.steps, newer.runs, newer.steps) == (2, 90, 1, 10)
    assert notes.left == pytest.approx(8 - notes.spent)
    assert newer.left is None
    assert (untouched.spent, untouched.left, untouched.runs) == (0, 1, 0)
    assert untouched.true_positives == pytest.approx((0.01, 0.05), abs=1e-6)


def test_people_are_told_numbers_bounds_and_to_whom_they_hold(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = said(home, capsys)
    notes, *_ = statements(home)
    assert f"spent: epsilon {notes.spent:.2f} at delta 1e-05, by 90 steps in 2 runs; with steps on" in text
    assert f"promised: epsilon 8; left: {8 - notes.spent:.2f}" in text
    assert "with 1% false alarms, finds at most" in text
    assert "warning: 100 rows are fewer than 300" in text
    assert "warning: 450" not in text
    assert "in other files, 100" in text
    assert "never trained on: 5 rows" in text
    for word in (
        "neighbors",
        "members",
        "finished adapter",
        "base model",
        "this machine",
        "canaries",
        "held out",
    ):
        assert word in text, word


def test_programs_are_told_the_same(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    notes, newer, _ = json.loads(said(home, capsys, "--json"))
    assert notes["data"] == "notes.jsonl"
    assert notes["charges"] == [STEPS._replace(steps=100)._asdict()]
    assert 0 < notes["left"] < 8
    assert newer["left"] is None
    assert newer["warnings"]
    assert notes["spent"] == newer["spent"]


def test_a_home_that_never_trained_with_noise_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "Nothing is counted" in said(tmp_path, capsys)
    assert json.loads(said(tmp_path, capsys, "--json")) == []
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_ledger_is_an_error_and_no_clean_sheet(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = home / FOLDER / LEDGER
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(SystemExit) as end:
        main(["privacy", "--home", str(home)])
    assert end.value.code == 7
    assert "is damaged" in capsys.readouterr().err


def test_it_can_be_asked_while_a_peer_trains(home: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PEER_")}
    with Ledger.open(home):
        asked = subprocess.run(
            [sys.executable, "-m", "peer", "privacy", "--home", str(home), "--json"],
            capture_output=True,
            text=True,
            check=True,
            env=environment,
        )
    assert len(json.loads(asked.stdout)) == 3


@pytest.mark.parametrize(
    ("unit", "units", "delta", "words"),
    [
        ("row", FEW_UNITS, 1e-5, []),
        ("row", FEW_UNITS - 1, 1e-5, ["299 rows are fewer than 300"]),
        ("author", 12, 1e-5, ["12 authors are fewer"]),
        ("row", 10_000, 1e-4, ["delta 0.0001 is not below 1 in 10,000"]),
        ("row", 10_000, 0.9e-4, []),
    ],
)
def test_few_units_and_a_large_delta_are_warned_of(
    unit: str, units: int, delta: float, words: list[str]
) -> None:
    found = [*warnings_of(unit, units, delta)]
    assert len(found) == len(words)
    assert all(word in warning for word, warning in zip(words, found, strict=True))
