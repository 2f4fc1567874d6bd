"""What a peer tells: lines that read back the same, a page that says what they mean, readers that hold nobody up."""

from __future__ import annotations

import dataclasses
import errno
import io
import json
import math
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from faulty_disk import FaultyDisk, installed

from peer import journal
from peer.audit_event import Audited
from peer.joining_event import JoinedLate
from peer.journal import Journal, JsonPrinter, SentencePrinter
from peer.journal_events import (
    EVENTS,
    Finished,
    JournalEvent,
    Listening,
    Measured,
    ModelReady,
    Note,
    Personalized,
    Preparing,
    Resumed,
    RoundDone,
    Started,
    StepTaken,
)
from peer.journal_file import JournalFile
from peer.journal_lines import Record, parse_record
from peer.journal_page import field_texts, page
from peer.left_out_event import LeftOut
from peer.rate_event import RateChosen
from peer.rollouts_event import RolloutsShared

ROUND = RoundDone(
    round=0,
    rounds=3,
    merging=False,
    loss=1.5,
    age=3,
    shares_weights=True,
    mixed=("anna", "böd"),
    mixed_rounds=(0, 1),
    failed=(("carl", "late"),),
    objections=(("dora", "norm"),),
    neighbors=("anna", "böd"),
    distances=(2.0, 1.0),
    distance_ratios=(2.0, 1.0),
    cosines=(0.5, math.nan),
    drifts=(math.nan, 0.25),
    trimmed=((1, 4), (0, 1)),
    objected=(0, 0),
    measurements=1,
    drift=0.125,
    cross_term=math.nan,
    collect_s=0.25,
    deadline_s=60.0,
    peers=2,
    bytes_in=100,
    bytes_out=2_500_000,
    mask_bytes=0,
    fetches_ok=2,
    fetches_failed=1,
    rejected={"malformed": 2},
    saved=True,
)
TOLD: tuple[JournalEvent, ...] = (
    Started(name="anna", peer_id="12D3KooW", home=Path("anna")),
    Preparing(stage="download", done=None),
    Preparing(stage="download", done=0.5),
    ModelReady(
        model="tiny",
        dtype="float32",
        device="cpu",
        base_parameters=1_250_000,
        adapter="lora",
        adapter_values=12_345,
        data_report="a.jsonl: 3 rows",
        rows=2,
        rows_held_out=1,
        sequences=4,
        seconds=1.5,
    ),
    RateChosen(rate=0.0126, source="tried", why="", tried_rates=(1e-3, 2e-3), gains=(0.0, 0.5)),
    RateChosen(rate=2e-3, source="usual", why="a trial takes too long", tried_rates=(), gains=()),
    RateChosen(rate=0.01, source="kept", why="", tried_rates=(), gains=()),
    Resumed(round=3, checkpoint=Path("anna/checkpoints/round-000003")),
    Listening(addresses=("/ip4/1.2.3.4/tcp/5",), join="peer run --join x"),
    Note(text="two\nlines"),
    JoinedLate(round=56, rounds=200, peers=("bert", "böd"), asked=3, why_not=""),
    JoinedLate(round=0, rounds=200, peers=(), asked=1, why_not="none answered"),
    StepTaken(round=0, step=1, steps=2, loss=2.0),
    ROUND,
    dataclasses.replace(ROUND, merging=True, loss=math.nan, mixed=(), mixed_rounds=(), cross_term=0.5),
    RolloutsShared(round=2, published=8, bytes=400, came=(("bert", 8),), usable=(("bert", 8), ("böd", 4))),
    LeftOut(peer="bert", round=3, loss=9.5, limit=2.5, rounds=4),
    Measured(round=5, own=1.25, all=None, per_file={}, accuracy=None, accuracy_all=None),
    Measured(round=5, own=1.25, all=1.5, per_file={"b": 1.75}, accuracy=1.0, accuracy_all=0.75),
    Personalized(own_share=0.25, loss=1.0, common_loss=1.25, own_loss=1.5, adapter=Path("anna/personal")),
    Audited(
        adapter="received from ana",
        members=30,
        held_out=12,
        auc=0.75,
        auc_interval=(0.6, 0.85),
        tpr_1=0.0,
        tpr_1_interval=(0.0, 0.1),
        tpr_5=0.2,
        tpr_5_interval=(0.1, 0.4),
        canaries=0,
        exposure_mean=None,
        exposure_highest=None,
        exposure_chance=None,
        exposure_limit=None,
        seconds=3.5,
    ),
    Finished(complete=True, round=3, adapter=Path("anna/adapter"), load="model = x", refused={}),
    Finished(
        complete=False, round=0, adapter=Path("anna/adapter"), load=None, refused={"too many newcomers": 12}
    ),
)


class Collected:
    """A reader of a test's own."""

    def __init__(self) -> None:
        self.events: list[JournalEvent] = []
        self.is_closed = False

    def read(self, record: Record) -> None:
        self.events.append(record.event)

    def close(self) -> None:
        self.is_closed = True


@pytest.mark.parametrize("event", TOLD, ids=lambda event: event.kind)
def test_an_event_read_back_from_its_line_is_the_same(event: JournalEvent) -> None:
    record = Record(12.345, event)
    again = parse_record(record.json_line())
    assert again.json_line() == record.json_line()
    assert type(again.event) is type(event)
    values, values_again = dataclasses.asdict(event), dataclasses.asdict(again.event)
    assert {name: repr(value) for name, value in values.items()} == {  # in text, NaN equals NaN
        name: repr(value) for name, value in values_again.items()
    }


def test_every_event_is_tried_above() -> None:
    assert {event.kind for event in TOLD} == set(EVENTS)


def test_the_line_of_a_round_is_what_programs_have_always_read() -> None:
    assert Record(12.345, ROUND).json_line() == (
        '{"event": "round", "at": 12.345, "round": 0, "rounds": 3, "merging": false, "loss": 1.5, "age": 3, '
        '"mixed": ["anna", "böd"], "mixed_rounds": [0, 1], "failed": [["carl", "late"]], '
        '"objections": [["dora", "norm"]], "neighbors": ["anna", "böd"], "distances": [2.0, 1.0], '
        '"distance_ratios": [2.0, 1.0], "cosines": [0.5, null], "drifts": [null, 0.25], "trimmed": [[1, 4], [0, 1]], '
        '"objected": [0, 0], "measurements": 1, "drift": 0.125, "cross_term": null, "collect_s": 0.25, '
        '"deadline_s": 60.0, "peers": 2, "bytes_in": 100, "bytes_out": 2500000, "mask_bytes": 0, "fetches_ok": 2, '
        '"fetches_failed": 1, "rejected": {"malformed": 2}, "saved": true, "shares_weights": true}'
    )
    assert ROUND.sentence() == (
        "round 1/3: training loss 1.500, mixed with anna, böd; carl late (0.2 s), in 0.1 kB, out 2.5 MB"
    )


def test_where_no_weights_are_shared_nobody_is_said_to_have_been_missed() -> None:
    alone = dataclasses.replace(
        ROUND, mixed=(), mixed_rounds=(), failed=(), neighbors=(), distance_ratios=(), trimmed=()
    )
    assert "mixed with nobody (0.2 s)" in str(alone.sentence())
    of_rollouts = dataclasses.replace(alone, shares_weights=False)
    assert of_rollouts.sentence() == "round 1/3: training loss 1.500 (0.2 s), in 0.1 kB, out 2.5 MB"


def test_who_came_late_is_told_with_what_it_began_and_where() -> None:
    late, in_vain = (event for event in TOLD if isinstance(event, JoinedLate))
    assert late.sentence() == "joined late: began with what 2 of 3 peers have, at round 57 of 200"
    told = "joined late: 1 peer asked, none answered; began with our own weights at round 1 of 200"
    assert in_vain.sentence() == told


def test_the_sentence_of_a_round_names_neighbors_that_are_odd_and_no_others() -> None:
    far = dataclasses.replace(ROUND, distance_ratios=(12.4, 1.0))
    assert "anna is 12 times as far from us as usual" in str(far.sentence())
    assert "böd " not in str(far.sentence())
    again = dataclasses.replace(ROUND, trimmed=((1, 4), (8, 9)))
    assert "böd left out as farthest in 8 of 9 rounds" in str(again.sentence())
    by_chance = dataclasses.replace(ROUND, trimmed=((1, 1), (3, 12)))
    assert by_chance.sentence() == ROUND.sentence()


def test_numbers_that_are_not_finite_are_null_wherever_they_stand() -> None:
    event = Measured(
        round=0, own=math.inf, all=math.nan, per_file={"b": math.nan}, accuracy=None, accuracy_all=None
    )
    values = json.loads(Record(0.0, event).json_line())
    assert (values["own"], values["all"], values["per_file"]) == (None, None, {"b": None})
    again = parse_record(Record(0.0, event).json_line()).event
    assert isinstance(again, Measured)
    assert math.isnan(again.own)
    assert math.isnan(again.per_file["b"])


@pytest.mark.parametrize(
    "line", ["", "[]", '{"at": 1}', '{"event": "planned", "at": 1}', '{"event": "note", "at": 1}']
)
def test_what_is_no_event_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match="not an event"):
        parse_record(line)


def test_the_page_of_events_is_what_the_declarations_say() -> None:
    written = (Path(__file__).parents[2] / "docs" / "events.md").read_text()
    assert written == page(), "run python -m peer.journal_page > docs/events.md"
    for event in EVENTS.values():
        assert field_texts(event).keys() == {field.name for field in dataclasses.fields(event)}


def test_file_terminal_and_a_third_reader_get_what_is_for_them(tmp_path: Path) -> None:
    sentences, lines, third = io.StringIO(), io.StringIO(), Collected()
    path = tmp_path / "journal.jsonl"
    path.write_text("an earlier run\n")
    told = Journal(JournalFile(path), SentencePrinter(sentences), JsonPrinter(lines))
    told.emit(TOLD[0])
    told.subscribe(third)
    for event in TOLD[1:]:
        told.emit(event)
    told.close()
    assert third.events == list(TOLD[1:])
    assert third.is_closed
    assert [parse_record(line).event.kind for line in lines.getvalue().splitlines()] == [e.kind for e in TOLD]
    assert sentences.getvalue() == "".join(
        f"{sentence}\n" for event in TOLD if (sentence := event.sentence()) is not None
    )
    earlier, *kept = path.read_text().splitlines()
    assert earlier == "an earlier run"
    assert kept == [
        line
        for line in lines.getvalue().splitlines()
        if parse_record(line).event.kind not in ("preparing", "step")
    ]


class Stuck:
    """A reader that does not come back from its first event until it is let go."""

    def __init__(self) -> None:
        self.events: list[JournalEvent] = []
        self.is_reading = threading.Event()
        self.go_on = threading.Event()
        self.is_closed = threading.Event()
        self.has_read = threading.Semaphore(0)

    def read(self, record: Record) -> None:
        self.is_reading.set()
        self.go_on.wait()
        self.events.append(record.event)
        self.has_read.release()

    def close(self) -> None:
        self.is_closed.set()


@pytest.fixture
def stuck() -> Iterator[Stuck]:
    reader = Stuck()
    yield reader
    reader.go_on.set()
    assert reader.is_closed.wait(60)


def test_a_reader_that_is_stuck_loses_the_newest_and_holds_nobody_up(
    stuck: Stuck, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "WAITING_MAX", 5)
    monkeypatch.setattr(journal, "CLOSE_S", 0.05)
    third = Collected()
    told = Journal(stuck)
    notes = [Note(text=str(number)) for number in range(20)]
    told.emit(notes[0])
    assert stuck.is_reading.wait(60)
    for note in notes[1:]:
        told.emit(note)  # a queue that waited for its reader would wait here for ever
    told.subscribe(third)
    told.emit(notes[0])
    told.close()
    assert third.events == [notes[0]]
    assert not stuck.is_closed.is_set()
    stuck.go_on.set()
    assert stuck.is_closed.wait(60)
    assert stuck.events == notes[:6]  # the one it was stuck with, and five that waited


class Gone(Collected):
    """A reader at the other end of whose pipe nobody reads any more."""

    def read(self, record: Record) -> None:
        super().read(record)
        raise BrokenPipeError


def test_a_reader_that_has_gone_is_left_alone_and_the_others_go_on() -> None:
    gone, other = Gone(), Collected()
    told = Journal(gone, other)
    for event in TOLD:
        told.emit(event)
    told.close()
    assert gone.events == list(TOLD[:1])
    assert gone.is_closed
    assert other.events == list(TOLD)


def test_events_that_came_faster_than_they_were_read_are_counted(
    stuck: Stuck, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "WAITING_MAX", 3)
    told = Journal(stuck)
    told.emit(Note(text="0"))
    assert stuck.is_reading.wait(60)
    for number in range(1, 8):
        told.emit(Note(text=str(number)))
    stuck.go_on.set()
    for _ in range(4):
        assert stuck.has_read.acquire(timeout=60)
    told.emit(Note(text="8"))
    told.close()
    assert [event.sentence() for event in stuck.events] == [
        *"0123",
        "4 events are missing here: they came faster than they were read",
        "8",
    ]


class Full(Collected):
    """A reader whose disk is full for a while."""

    def __init__(self, refused: range) -> None:
        super().__init__()
        self._calls, self._refused = 0, refused

    def read(self, record: Record) -> None:
        self._calls += 1
        if self._calls in self._refused:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        super().read(record)


def test_a_reader_whose_disk_is_full_lives_on_and_is_told_what_it_missed() -> None:
    reader = Full(range(2, 6))
    told = Journal(reader)
    for number in range(1, 10):
        told.emit(Note(text=str(number)))
    told.close()
    # of the refused calls only the first was an event: the others were to say that one, and then more, are missing
    missing = "4 events are missing here: No space left on device"
    assert [event.sentence() for event in reader.events] == ["1", missing, *"6789"]
    assert reader.is_closed


def lines_of(path: Path) -> list[str]:
    return [parse_record(line).event.sentence() or "" for line in path.read_text().splitlines()]


def write(file: JournalFile, *texts: str) -> None:
    for text in texts:
        file.read(Record(0.0, Note(text=text)))


def test_the_file_is_bounded_and_keeps_the_newest_parts(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    texts = [f"{number:04d}" for number in range(1000)]
    for half in (texts[:500], texts[500:]):
        file = JournalFile(path, bytes_max=1000, parts_kept=2)  # a restart in between
        write(file, *half)
        file.close()
    parts = [path.with_name(name) for name in ("journal.jsonl.2", "journal.jsonl.1", "journal.jsonl")]
    assert sorted(tmp_path.iterdir()) == sorted(parts)
    kept = [text for part in parts for text in lines_of(part)]
    assert kept == texts[-len(kept) :]
    assert all(0 < part.stat().st_size <= 1000 for part in parts)
    assert all(part.stat().st_mode & 0o777 == 0o600 for part in parts)
    file = JournalFile(path, bytes_max=10, parts_kept=2)
    write(file, "longer than a part", "and another")
    file.close()
    assert [lines_of(part) for part in parts[1:]] == [["longer than a part"], ["and another"]]


@pytest.mark.parametrize("torn", ['{"event": "no', "x" * 200_000], ids=["short", "long"])
def test_a_line_torn_by_a_crash_goes_at_the_next_start(tmp_path: Path, torn: str) -> None:
    path = tmp_path / "journal.jsonl"
    for before in ([], ["whole"]):
        file = JournalFile(path)
        write(file, *before)
        file.close()
        with path.open("a") as crashed:
            crashed.write(torn)
        file = JournalFile(path)
        write(file, "next")
        file.close()
        assert lines_of(path) == [*before, "next"]
        path.unlink()


def lost_of(path: Path, texts: list[str]) -> list[str]:
    """Write a journal of many small parts, and return what it refused."""
    lost = []
    try:
        file = JournalFile(path, bytes_max=1500, parts_kept=20)
    except OSError:
        return texts
    for text in texts:
        try:
            write(file, text)
        except OSError:
            lost.append(text)
    file.close()
    return lost


@pytest.mark.parametrize("times", [1, 3])
def test_a_full_disk_tears_no_line_and_no_rotation(tmp_path: Path, times: int) -> None:
    """It is full at each call of the disk in turn: what is in the files are all the events that were not refused."""
    texts = [f"{number:03d} {'x' * 600}" for number in range(8)]
    (tmp_path / "counted").mkdir()
    with installed(FaultyDisk(tmp_path / "counted")) as counted:
        assert lost_of(tmp_path / "counted" / "journal.jsonl", texts) == []
    assert sum("rename" in call for call in counted.calls) > 3
    home = tmp_path / "home"
    for number, call in enumerate(counted.calls):
        home.mkdir()
        with installed(FaultyDisk(home, number, errno.ENOSPC, times)):
            lost = lost_of(home / "journal.jsonl", texts)
        numbered = sorted(home.glob("journal.jsonl.*"), key=lambda part: -int(part.suffix[1:]))
        kept = [text for part in (*numbered, *home.glob("journal.jsonl")) for text in lines_of(part)]
        assert kept == [text for text in texts if text not in lost], call
        assert len(lost) <= times or number == 0
        shutil.rmtree(home)


def test_only_its_owner_can_read_the_file(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_text("")
    path.chmod(0o644)  # of an earlier version
    journal = Journal(JournalFile(path))
    journal.close()
    assert path.stat().st_mode & 0o777 == 0o600
