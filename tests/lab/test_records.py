"""Records and the pages that show them: what is shown, what is refused, and what is made of what commands leave."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gossip.errors import LocalError
from scripts.lab import checkout, evidence
from scripts.lab.evidence import written
from scripts.lab.program import run_program
from scripts.lab.records import Record, record_of_table, records_in, shown, table_of, value_of, write_record
from scripts.lab.statistics import interval

RECORD = Record(
    title="Two methods",
    command="python scripts/compare.py run --out runs/a",
    columns=("loss", "MB a peer", "rate"),
    rows={
        "ring": {"loss": {"mean": 2.97654, "half": 0.0344, "n": 5}, "MB a peer": 1234.5, "rate": 0.02},
        "ring codec=int8": {"loss": {"mean": 2.9, "n": 1}, "rate": 0.01},
    },
    heading="method",
    titles={"ring": "`ring`"},
    digits={"loss": 2},
)
PAGE = """\
Before.

<!-- record: two -->
| anything |
<!-- end of record -->

It ends at **0.0000**<!-- two :: ring :: loss --> (± 0.1<!-- two :: ring :: loss :: half -->),
reading 1,000.0 MB<!-- two :: ring :: MB a peer -->.
"""


def two(name: str) -> Record:
    assert name == "two"
    return RECORD


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (None, 2, ""),
        ("met", 2, "met"),
        (30_110, 0, "30110"),
        (2.97654, None, "2.977"),
        (2.97654, 1, "3.0"),
        ({"mean": 2.97654, "half": 0.0344, "n": 5}, None, "2.977 ± 0.034"),
        ({"mean": 2.97654, "half": 0.0344, "n": 5}, 1, "3.0 ± 0.0"),
        ({"mean": 100.0, "half": 1e-12, "n": 5}, None, "100"),
        ({"mean": 87.35, "half": 2.1, "n": 5, "note": "rate 0.003"}, 1, "87.3 ± 2.1 (rate 0.003)"),
        ({"mean": 1.8, "least": 0.5, "most": 2.6, "n": 3}, 1, "1.8 (0.5 to 2.6)"),
        ({"mean": 1.8, "least": 1.8, "most": 1.8, "n": 1}, 1, "1.8 (one seed)"),
        ({"mean": None, "half": None, "n": 2}, 1, "reached by 2"),
        ({"mean": None, "half": None, "n": 0}, 1, ""),
    ],
)
def test_values_are_shown_as_tables_have_them(value: Any, digits: int | None, text: str) -> None:
    assert shown(value, digits) == text


def test_an_interval_is_a_value() -> None:
    assert shown(value_of(interval([1.0, 3.0]))) == str(interval([1.0, 3.0]))
    assert shown(value_of(interval([1.0]), "rate 2")) == "1 (rate 2)"
    assert value_of(interval([1.0, None])) == "reached by 1 of 2"


def test_a_table_shows_what_the_page_asks_for() -> None:
    assert table_of(RECORD, {})[0] == "| method | loss | MB a peer | rate |"
    assert table_of(RECORD, {})[2:] == [
        "| `ring` | 2.98 ± 0.03 | 1234 | 0.02 |",
        "| ring codec=int8 | 2.90 |  | 0.01 |",
    ]
    asked = {
        "rows": ["ring codec=int8", "ring"],
        "columns": ["rate", "loss"],
        "titles": {"ring": "a ring", "loss": "nats"},
        "digits": {"loss": 0},
        "heading": "",
    }
    assert table_of(RECORD, asked) == [
        "|  | rate | nats |",
        "| --- | ---: | ---: |",
        "| ring codec=int8 | 0.01 | 3 |",
        "| a ring | 0.02 | 3 ± 0 |",
    ]
    for wrong in ({"rows": ["star"]}, {"columns": ["gap"]}, {"row": ["ring"]}):
        with pytest.raises(LocalError, match=r"has no|cannot be asked"):
            table_of(RECORD, wrong)


def test_tables_and_numbers_of_a_page_are_written_from_its_records() -> None:
    text = written(PAGE, two)
    assert "| `ring` | 2.98 ± 0.03 | 1234 | 0.02 |\n" in text
    assert "at **2.9765**<!-- two :: ring :: loss --> (± 0.0<!--" in text
    assert "reading 1,234.5 MB<!-- two" in text
    assert "anything" not in text
    assert written(text, two) == text


@pytest.mark.parametrize(
    ("page", "reason"),
    [
        ("1 <!-- two :: ring :: gap -->", "has no 'ring' / 'gap'"),
        ("1 <!-- two :: ring codec=int8 :: MB a peer -->", "is no number"),
        ("1 <!-- two :: ring :: loss :: most -->", "is no number"),
        ("none <!-- two :: ring :: loss -->", "no number stands before it"),
        ("1 <!-- two :: ring -->", "names no column"),
        ("<!-- record: two -->\n| a |\n", "no table ends behind it"),
        ("<!-- record: two\nrows = ring\n-->\n<!-- end of record -->", "the comment of the record two"),
    ],
)
def test_a_comment_that_cannot_be_followed_is_refused(page: str, reason: str) -> None:
    with pytest.raises(LocalError, match=reason):
        written(page, two)


def test_a_record_is_what_was_written(tmp_path: Path) -> None:
    write_record(tmp_path / "a" / "two.json", RECORD)
    assert records_in(tmp_path)("a/two") == RECORD
    with pytest.raises(LocalError, match="cannot read the record"):
        records_in(tmp_path)("b")
    (tmp_path / "c.json").write_text('{"rows": []}')
    with pytest.raises(LocalError, match="is no record: 'title'"):
        records_in(tmp_path)("c")


def test_rows_of_one_name_are_no_record() -> None:
    with pytest.raises(LocalError, match="rows or columns of one name"):
        record_of_table("twice", "python", [["a", "b"], ["ring", 1], ["ring", 2]], 1)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(checkout, "_ROOT", tmp_path)
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "README.md").write_text("<!-- record: runs/b -->\n<!-- end of record -->\n")
    return tmp_path


def call(*words: str) -> int:
    try:
        return run_program(evidence.app, words, called=None, extra="research")
    except SystemExit as ended:  # as cyclopts ends a command that is done
        return int(ended.code or 0)


def test_what_commands_leave_becomes_records(root: Path) -> None:
    peers = [{"fetches_ok": 3, "bytes_in": 2_000_000}, {"fetches_ok": 5, "bytes_in": 4_000_000}]
    losses = {"base_loss": 5.0, "local_loss": 4.5, "gossip_loss_mean": 4.25, "gossip_loss_worst": 4.3}
    central = {"central_loss": 4.0, "central_large_loss": 4.1, "gossip_accuracy_mean": 0.5}
    summary = {**losses, **central, "wall_s": 7.0, "peers": peers, "base_accuracy": None}
    (root / "summary.json").write_text(json.dumps(summary))
    assert call("take", "demo", str(root / "summary.json"), "--command", "python", "--title", "demo") == 0
    demo = records_in(root / "docs" / "records")("demo")
    assert demo.at("gossip", "share") == 75.0
    assert demo.at("gossip", "accuracy") == 50.0
    assert demo.at("central large", "share") == pytest.approx(90.0)
    assert (demo.at("run", "reads"), demo.at("run", "megabytes")) == (4.0, 3.0)

    figure = {"name": "mixing / copies", "value": 1.5, "unit": "x", "target": "<= 2", "met": True}
    (root / "bench.jsonl").write_text(
        "\n".join(json.dumps({**figure, "value": value}) for value in (1.0, 1.5))
    )
    assert call("take", "bench", str(root / "bench.jsonl"), "--command", "python", "--title", "bench") == 0
    assert table_of(records_in(root / "docs" / "records")("bench"), {})[2:] == [
        "| mixing / copies | 1.500 | x | <= 2 | met |"
    ]


def test_a_comparison_becomes_a_record_and_its_pages_are_written(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    value = {"mean": 95.2, "half": 1.4, "n": 5}
    row = {"method": "ring", "budget": "peers", "rate": 0.02, "values": {"share_of_gain": value}}
    base = {"method": "base model", "values": {}}
    content = {
        "command": "python scripts/compare.py run",
        "made": {"python": "3.11"},
        "strongest_central": "central",
        "columns": ["share_of_gain"],
        "rows": [base, row],
    }
    (root / "runs").mkdir()
    (root / "runs" / "b.json").write_text(json.dumps(content))
    assert call("take", "runs", str(root / "runs"), "--title", "a comparison") == 0
    assert call() == 0
    assert capsys.readouterr().out.endswith("README.md\n")
    assert (root / "README.md").read_text().splitlines()[1:-1] == [
        "| method | budget | learning rate | share of strongest central's gain, % |",
        "| --- | ---: | ---: | ---: |",
        "| base model |  |  |  |",
        "| `ring` | peers | 0.02 | 95 ± 1 |",
    ]


def test_what_is_no_result_is_no_record(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / "other.json").write_text("{}")
    assert call("take", "other", str(root / "other.json")) == LocalError.exit_code
    assert "is nothing that a record is made of" in capsys.readouterr().err
    (root / "bench.jsonl").write_text("")
    assert call("take", "bench", str(root / "bench.jsonl")) == LocalError.exit_code
    assert "give --command and --title" in capsys.readouterr().err
    assert call() == LocalError.exit_code
    assert "README.md: cannot read the record" in capsys.readouterr().err
    monkeypatch.setattr(checkout, "_ROOT", root / "docs")
    assert call() == LocalError.exit_code
    assert "no docs folder" in capsys.readouterr().err
