"""Every section of the bench runs, on sizes that take seconds: its figures have names, units and finite values.

What they are is not looked at: times are measured by ``scripts/bench.py`` itself, on a quiet machine.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from scripts.benchmarks import command
from scripts.benchmarks.command import SECTIONS, SLOW, main, section_of
from scripts.benchmarks.rounds import _durations_after
from scripts.benchmarks.rows import Row, at_least, at_most, row, seconds

UNITS = {"s", "ms", "x", "%", "MB", "MB/s", "nats", ""}
FIGURES = {
    "mixing": ("mixing / copies", 8),
    "codecs": ("codec int8: encode", 27),
    "masks": ("masks: payload / float32", 6),
    "simulation": ("simulation: memory of 2,000 / 500 nodes", 2),
    "transport": ("transport: 64 MB, ours / TLS", 11),
    "floods": ("floods: requests of 10, memory", 10),
    "topology": ("topology: consensus / plain loop", 10),
    "rounds": ("rounds: the one in which a neighbor was killed", 4),
    "methods": ("methods: factors tsvd, share of the local steps", 16),
    "dp": ("dp: a million values of noise", 2),
    "memory": ("memory: a whole peer, private", 4),
    "learning": ("demo: gossip below local only", 9),
}
"""Section -> one of its figures, and how many there are."""


@pytest.fixture(scope="module", autouse=True)
def tiny_model_only(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No section may fetch or convert a model when it is quick; the tiny one is made once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GOSSIP_PEER_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield


@pytest.mark.timeout(500)
@pytest.mark.parametrize("name", SECTIONS)
def test_every_section_runs(name: str) -> None:
    rows = list(section_of(name)(True))
    expected, count = FIGURES[name]
    names = [figure.name for figure in rows]
    assert expected in names
    assert len(names) == len(set(names)) == count
    for figure in rows:
        assert math.isfinite(figure.value), figure
        assert figure.unit in UNITS
        assert (figure.met is None) == (figure.target == "")


def test_the_command_prints_a_table_and_appends_a_line_per_figure_where_it_is_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [at_most("a", 1.0, "s", 2.0), at_least("b", 1.0, "x", 2.0), row("c", 3.0, "MB")]
    monkeypatch.setattr(command, "section_of", lambda name: lambda quick: iter(rows))
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert _exit_code("mixing", "--quick") == 0
    printed = capsys.readouterr().out.splitlines()
    assert [line.split() for line in printed[:3]] == [
        ["a", "1.000", "s", "<=", "2", "met"],
        ["b", "1.000", "x", ">=", "2", "MISSED"],
        ["c", "3.000", "MB"],
    ]
    records = [json.loads(line) for line in (tmp_path / "bench.jsonl").read_text().splitlines()]
    assert len(records) == 6
    for record, figure in zip(records, rows * 2, strict=True):
        assert record | dataclasses.asdict(figure) == record
        assert (record["section"], record["quick"]) == ("mixing", True)
        assert {"at", "commit", "cpus", "load", "torch"} <= set(record)
    assert _exit_code("mixing", "--out", "elsewhere.jsonl") == 0
    assert (tmp_path / "elsewhere.jsonl").exists()


def test_without_names_all_but_the_slow_sections_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, bool]] = []

    def section(name: str) -> Callable[[bool], Iterator[Row]]:
        def rows(quick: bool) -> Iterator[Row]:
            asked.append((name, quick))
            return iter(())

        return rows

    monkeypatch.setattr(command, "section_of", section)
    assert _exit_code("--out", str(tmp_path / "bench.jsonl")) == 0
    assert asked == [(name, False) for name in SECTIONS if name not in SLOW]


def test_an_unknown_section_is_refused_with_the_known_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert _exit_code("mixin") == 2
    assert "unknown section mixin; known: mixing, codecs" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_row_says_whether_its_target_is_met() -> None:
    assert at_most("a", 2.0, "s", 2.0) == Row("a", 2.0, "s", "<= 2", True)
    assert at_most("a", 2.1, "s", 2.0).met is False
    assert at_least("a", 1.9, "s", 2.0) == Row("a", 1.9, "s", ">= 2", False)
    assert row("a", 1.0, "s").met is None


def test_a_stopwatch_does_not_count_the_first_run() -> None:
    runs: list[int] = []
    assert seconds(lambda: runs.append(1), repeats=3) >= 0
    assert len(runs) == 4


def test_the_round_in_which_a_neighbor_died_is_the_one_that_was_going_on() -> None:
    ends = itertools.accumulate([1.0, 1.0, 1.0, 5.0, 2.0, 3.0, 1.0], initial=0.0)
    assert _durations_after(3.5, ends, 3) == [5.0, 2.0, 3.0]


def _exit_code(*words: str) -> int:
    try:
        return main(list(words))
    except SystemExit as exit:  # the parser ends so
        return int(exit.code or 0)
