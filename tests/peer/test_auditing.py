"""An audit finds what there is to be found, and nothing where there is nothing; it is told to the user alone."""

from __future__ import annotations

import json
import math
import os
import random
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
import trio
from light_peers import Quadratic, Running, limited, memory

from gossip.adapter import AdapterSpec, AdapterState
from gossip.errors import LocalError
from gossip.events import RoundReport
from peer.audit_event import Audited
from peer.auditing import RECEIVED_KEPT, NoAudit, SeenAdapters, audit, warnings
from peer.checkpoints import Home, open_home
from peer.cli import main
from peer.config import OPTIONS, PeerConfig
from peer.exported import bring_up_to_date
from peer.journal_events import Finished, Note
from peer.journal_lines import parse_record
from peer.model_card import CARD
from peer.options import Role
from peer.run_manifest import join_line
from peer.run_plan import plan_run
from peer.training import canaries, data
from peer.training.audited_rows import AuditedRows, choose
from peer.training.data import Row
from peer.training.frames import RowLosses
from peer.training.leakage import figures
from peer.training.local_trainer import LocalTrainer
from peer.training.sequences import Tokens

Configure = Callable[..., PeerConfig]


@pytest.fixture(scope="session")
def codes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Files of 40 codes, which nobody can guess: whoever knows one has seen it."""
    folder = tmp_path_factory.mktemp("codes")
    files = {name: folder / f"{name}.jsonl" for name in ("a", "b")}
    for name, file in files.items():
        draw = random.Random(f"codes {name}")
        rows = [
            {"prompt": f"Room {number}:", "completion": "".join(draw.choices("abcdefghijklmnop", k=12))}
            for number in range(40)
        ]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return files


def by_heart(quick: Configure, file: Path, home: Path, **more: object) -> PeerConfig:
    """Return settings with which the tiny model learns 20 codes and 2 canaries by heart; 20 codes are held out."""
    settings = {
        "held_out": 0.5,
        "local_steps": 100,
        "learning_rate": 3e-3,
        "adapter": "full",
        "batch_size": 8,
    }
    settings |= {"max_length": 48, "audit": True, "canaries": 2}
    return quick(data=(file,), home=home, **{**settings, **more})


@pytest.fixture(scope="session")
def overfitted(
    quick: Configure, codes: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Homes of two peers, each with an adapter that knows its training rows, canaries among them, by heart."""
    made = {}
    for name, file in codes.items():
        home = tmp_path_factory.mktemp(name)
        trainer = LocalTrainer(by_heart(quick, file, home))
        ready = trainer.ready(0.0)
        bring_up_to_date(home / "adapter", trainer.train(ready.initial).state, ready.export)
        made[name] = home
    return made


# -- what is found


def test_rows_learned_by_heart_are_found_and_an_untrained_adapter_tells_nothing(
    quick: Configure, codes: dict[str, Path], tmp_path: Path
) -> None:
    trainer = LocalTrainer(by_heart(quick, codes["a"], tmp_path))
    initial = trainer.ready(0.0).initial
    before = trainer.row_losses(initial)
    assert (len(before.members), len(before.held_out), len(before.canaries)) == (20, 20, 2)
    first = trainer.train(initial).state
    learned = figures(trainer.row_losses(first), before)
    assert learned.membership.auc.low > 0.75
    assert learned.membership.auc.value > 0.9
    assert learned.membership.true_positives[0.05].value > 0.5
    assert learned.exposure is not None
    assert learned.exposure.mean > learned.exposure.chance_mean + 2
    assert figures(trainer.row_losses(first), None).calibrated is None

    noise = torch.randn(initial.spec.size, generator=torch.Generator().manual_seed(1))
    elsewhere = AdapterState(initial.spec, initial.flat + 0.01 * noise)
    untrained = figures(trainer.row_losses(elsewhere), before)
    assert untrained.membership.auc.low < 0.5 < untrained.membership.auc.high


def test_measuring_rows_leaves_no_trace_and_is_the_same_each_time(
    quick: Configure, codes: dict[str, Path], tmp_path: Path
) -> None:
    config = by_heart(quick, codes["a"], tmp_path, local_steps=3)
    one, other = LocalTrainer(config), LocalTrainer(config)
    start = one.ready(0.0).initial
    measured = one.row_losses(start)
    assert one.train(start).state.digest() == other.train(start).state.digest()
    assert one.row_losses(start) == measured == other.row_losses(start)
    assert all(math.isfinite(loss) for losses in (measured.members, measured.held_out) for loss in losses)
    with pytest.raises(LocalError, match="--audit"):
        LocalTrainer(quick(data=(codes["a"],))).row_losses(start)


def test_a_row_of_text_is_measured_where_it_stood_when_it_was_learned(
    quick: Configure, languages: dict[str, Path], tmp_path: Path
) -> None:
    """Every target of a row is one of a training sequence, after the same tokens; others stand in for it in turn."""
    trainer = LocalTrainer(quick(data=(languages["german"],), home=tmp_path, audit=True, canaries=3))
    audited = trainer.shard.audited
    assert audited is not None
    sequences = ["".join(map(chr, one.ids)) for one in trainer.shard.train]

    def starts_one(row: Sequence[Tokens]) -> bool:
        texts = ["".join(map(chr, one.ids)) for one in row]
        return all(any(sequence.startswith(text) for sequence in sequences) for text in texts)

    assert sum(map(starts_one, audited.members)) >= len(audited.members) - 1, (
        "but for an end too short to be learned"
    )
    assert all(map(starts_one, audited.canaries))
    assert not any(map(starts_one, audited.references))
    assert any(row[0].prompt for row in audited.members)
    for row, other in zip(audited.members, audited.held_out, strict=False):
        assert row[0].ids[: row[0].prompt] == other[0].ids[: other[0].prompt]
    alone = choose_alone(trainer)
    assert all(not one.prompt for row in alone.members for one in row), "with noise every row is a sequence"


def choose_alone(trainer: LocalTrainer) -> AuditedRows:
    """Return the rows as they are measured where rows are not packed."""
    config = trainer.config.with_options(dp_epsilon=8.0)
    members, held = data.split(data.load(config.data.data).rows, config.data.held_out, config.run.seed)
    return choose(members, held, (), trainer.task, trainer.model.tokenizer, config)


def test_held_out_rows_that_were_learned_too_are_no_strangers(
    quick: Configure, codes: dict[str, Path], tmp_path: Path
) -> None:
    """A file that says everything twice: what is held out of it was mostly learned."""
    file = tmp_path / "twice.jsonl"
    file.write_text(codes["a"].read_text() * 2)
    audited = LocalTrainer(by_heart(quick, file, tmp_path)).shard.audited
    assert audited is not None
    members, others = audited.members, audited.held_out
    assert others
    assert not {str(row) for row in members} & {str(row) for row in others}
    assert len(others) < 30, "of 40 that are held out"


# -- canaries


def rows_of(*contents: str) -> list[Row]:
    return [Row(Path("x"), line, "text", content) for line, content in enumerate(contents)]


def test_canaries_are_secret_and_the_same_after_a_restart(tmp_path: Path) -> None:
    file = tmp_path / canaries.FILE
    drawn = canaries.keep(file, 3, rows_of("a", "b"))
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert canaries.keep(file, 3, rows_of("a", "b")) == drawn
    more = canaries.keep(file, 5, rows_of("a"))
    assert more[:3] == drawn
    assert len({row.content for row in more}) == 5
    assert canaries.keep(file, 2, rows_of("a")) == drawn[:2]
    again = canaries.keep(tmp_path / "other.jsonl", 3, rows_of("a", "b"))
    assert {row.content for row in again}.isdisjoint(row.content for row in drawn), "nobody can guess them"
    rows = rows_of(*map(str, range(50)))
    assert canaries.planted(rows, drawn) == canaries.planted(rows, drawn)
    among = canaries.planted(rows, drawn)
    assert [row for row in among if row not in drawn] == rows
    assert sorted(map(str, drawn)) == sorted(str(row) for row in among if row in drawn)


def test_canaries_have_the_form_of_the_rows_around_them(tmp_path: Path) -> None:
    chat = Row(Path("x"), 1, "messages", ({"role": "user", "content": "hi"},))
    answer = Row(Path("x"), 1, "prompt/completion", "b", "a")
    for number, around in enumerate((chat, answer, *rows_of("a"))):
        file = tmp_path / f"{number}.jsonl"
        (drawn,) = canaries.keep(file, 1, [around])
        assert drawn.format == around.format
        assert canaries.load(file) == (drawn,)
        alike = canaries.references(drawn, 20)
        assert canaries.references(drawn, 20) == alike
        assert {row.format for row in alike} == {around.format}
        assert len({f"{row.prompt} {row.content}" for row in alike}) == 20


@pytest.mark.parametrize(
    ("content", "mode", "said"),
    [("no json\n", 0o600, "remove it"), ('{"text": "a"}\n', 0o644, "chmod 600")],
)
def test_a_file_of_canaries_that_cannot_be_trusted_is_refused(
    tmp_path: Path, content: str, mode: int, said: str
) -> None:
    file = tmp_path / canaries.FILE
    file.write_text(content + '{"text": "b"}\n')
    file.chmod(mode)
    with pytest.raises(LocalError, match=said):
        canaries.keep(file, 2, rows_of("a"))


def test_canaries_are_learned_and_never_measured_as_own_rows(
    quick: Configure, codes: dict[str, Path], tmp_path: Path
) -> None:
    trainer = LocalTrainer(by_heart(quick, codes["a"], tmp_path, audit=False))
    plain = LocalTrainer(by_heart(quick, codes["a"], tmp_path, audit=False, canaries=0))
    drawn = canaries.load(tmp_path / canaries.FILE)

    def text(trainer: LocalTrainer) -> str:
        return "".join(trainer.model.tokenizer.decode(one.ids) for one in trainer.shard.train)

    assert all(str(row.content) in text(trainer) and str(row.content) not in text(plain) for row in drawn)
    assert trainer.shard.held_out == plain.shard.held_out
    assert (trainer.ready(0.0).rows, plain.ready(0.0).rows) == (22, 20)
    assert trainer.ready(0.0).canaries == 2
    report = trainer.ready(0.0).data_report
    assert not any(str(row.content) in report for row in drawn)


def test_what_cannot_have_canaries_is_refused_with_a_way_out(quick: Configure) -> None:
    with pytest.raises(LocalError, match="--audit measures its rows"):
        plan_run(quick(task="classification", labels=("a", "b"), canaries=1))
    with pytest.raises(LocalError, match="--home"):
        LocalTrainer(quick(canaries=1))


# -- at the end of a run


class Measuring(Quadratic):
    """A training process whose adapters know its rows the better, the nearer they are to its optimum."""

    async def row_losses(self, state: AdapterState) -> RowLosses | None:
        await trio.lowlevel.checkpoint()
        distance = float((state.flat - self.optimum).abs().mean())
        return RowLosses(tuple(distance + row for row in range(8)), tuple(4.0 + row for row in range(8)))


@pytest.fixture
def homes(tmp_path: Path) -> Iterator[Callable[[str], Home]]:
    with ExitStack() as stack:
        yield lambda name: stack.enter_context(open_home(tmp_path / name))


def test_own_mixed_received_and_finished_adapters_are_audited(homes: Callable[[str], Home]) -> None:
    async def body() -> None:
        make = memory()
        settings = {"rounds": 3, "merge": "product", "audit": True, "wait_peers": 2}
        first = Running(1, homes("a"), 4.0, **settings)
        first.trainer = Measuring(4.0)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(first.run, make(first.key))
            settings["join"] = await first.addresses()
            second, third = (Running(n, homes(str(n)), 20.0 * (n - 2), **settings) for n in (2, 3))
            second.trainer = Measuring(0.0)
            for running in (second, third):
                nursery.start_soon(running.run, make(running.key))
        called = [event.adapter for event in first.events(Audited)]
        # All read all here, so that the last round has often made them one already; then there is no other to audit.
        called = [adapter for adapter in called if adapter != "mixed"]
        assert called == ["finished", "own", "received from p2", "received from p3"]
        found = {event.adapter: event.auc for event in first.events(Audited)}
        assert found["own"] == 1.0, "nearer to our optimum than what all began with"
        assert found["received from p3"] == 0.0, "farther"
        assert any("8 held-out rows" in event.text for event in first.events(Note))
        card = (first.home.adapter / CARD).read_text()
        assert card.count("| received |") == 2
        assert "p2" not in card, "a card names nobody"
        # the third cannot measure single rows: it is told so, and finishes all the same
        assert not third.events(Audited)
        assert any("row_losses" in event.text for event in third.events(Note))
        assert third.events(Finished)[0].complete
        assert "not been audited" in (third.home.adapter / CARD).read_text()

    limited(body)


def report(round: int, *received: tuple[str, AdapterState], merging: bool = False) -> RoundReport:
    state = AdapterState(received[0][1].spec, received[0][1].flat + 0.5)
    return RoundReport(
        round=round, merging=merging, loss=1.0, age=1, mixed=(), failed=(), objections=(), payload_bytes=0,
        mixing_change=0.0, cross_term=0.0, collect_s=0.0, deadline_s=0.0, held_out=1.0, went_back=False,
        neighbors=(), measurements=0, state=state, received=received,
    )  # fmt: skip


def test_few_received_adapters_are_kept_and_none_without_an_audit() -> None:
    whole = AdapterSpec((("a", (1,)), ("b", (1,))))
    part = AdapterSpec((("b", (1,)),))
    other = AdapterSpec((("a", (2,)),))
    initial = AdapterState(whole, torch.tensor([7.0, 0.0]))
    wanted, unwanted = (SeenAdapters(initial, is_wanted=wanted) for wanted in (True, False))

    def of(spec: AdapterSpec, value: float) -> AdapterState:
        return AdapterState(spec, torch.full((spec.size,), value))

    last = of(whole, 99.0)
    for seen in (wanted, unwanted):
        for round in range(6):
            came = [(f"p{peer}", of(whole, 10.0 * round + peer)) for peer in range(4)]
            seen.completed(report(round, *came), str.upper)
        seen.completed(report(6, ("p0", of(whole, 70.0)), ("p9", of(other, 3.0))), str.upper)
        seen.completed(report(7, ("p1", of(part, 5.0))), str.upper)
        seen.completed(report(8, ("p2", of(whole, 90.0)), merging=True), str.upper)
    assert list(unwanted.all(None, last)) == ["finished"]
    found = wanted.all(of(whole, 1.0), last)
    assert list(found) == ["finished", "mixed", "own", "received from P0", "received from P1"]
    assert len(found) == 3 + RECEIVED_KEPT
    assert found["received from P1"].flat.tolist() == [7.0, 5.0], "what does not travel is as it began"
    assert list(wanted.all(last, last)) == ["finished", "mixed", "received from P0", "received from P1"]


def test_too_few_rows_are_no_audit_and_few_are_said_to_be_few() -> None:
    class Few:
        async def row_losses(self, state: AdapterState) -> RowLosses | None:
            await trio.lowlevel.checkpoint()
            return RowLosses((1.0,) * 9, (1.0,) * 4)

    initial = AdapterState(AdapterSpec((("a", (1,)),)), torch.zeros(1))
    with pytest.raises(NoAudit, match=r"9 are learned and 4 held out.*--held-out"):
        trio.run(audit, Few(), initial, {"own": initial}, lambda found: None)
    assert warnings([]) is None


# -- for people, with real processes


def test_what_is_secret_stays_here(quick: Configure) -> None:
    """Neither the manifest nor the line with which a friend joins speaks of canaries or of an audit."""
    assert not any(Role.RUN in OPTIONS[name].roles for name in ("canaries", "audit"))
    address = ("/ip4/1.2.3.4/tcp/5/p2p/x",)
    assert join_line(quick(canaries=3, audit=True), address) == join_line(quick(), address)


def test_a_run_audits_itself_and_tells_nobody_its_canaries(codes: dict[str, Path], tmp_path: Path) -> None:
    home = tmp_path / "home"

    def run() -> list[str]:
        words = [
            "run", "--json", "--model", "tiny", "--threads", "1", "--data", str(codes["a"]), "--home", str(home),
            "--rounds", "2", "--held-out", "0.5", "--audit", "--canaries", "4",
            "--listen", "/ip4/127.0.0.1/tcp/0",
            "--local-steps", "60", "--learning-rate", "3e-3", "--batch-size", "8", "--adapter", "full",
            "--max-length", "48",
        ]  # fmt: skip
        ended = subprocess.run(
            [sys.executable, "-m", "peer", *words],
            capture_output=True,
            text=True,
            timeout=120,
            env={**os.environ},
        )
        assert ended.returncode == 0, ended.stderr
        return ended.stdout.splitlines()

    said = run()
    found = [event for event in (parse_record(line).event for line in said) if isinstance(event, Audited)]
    assert [event.adapter for event in found] == ["finished"], "alone, all adapters of the end are one"
    (audited,) = found
    assert (audited.members, audited.held_out, audited.canaries) == (20, 20, 4)
    assert audited.auc > 0.7
    assert audited.exposure_limit == 7.0
    assert "of 100 pairs" in (audited.sentence() or "")
    card = (home / "adapter" / CARD).read_text()
    assert f"| finished | {100 * audited.auc:.0f} (" in card
    assert str(home) not in card
    kept = (home / canaries.FILE).read_text()
    assert stat.S_IMODE((home / canaries.FILE).stat().st_mode) == 0o600
    told = (home / "journal.jsonl").read_text() + "\n".join(said)
    for row in canaries.load(home / canaries.FILE):
        number = str(row.content)[1:-1]
        assert number in kept
        assert number not in told


def audited(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    with pytest.raises(SystemExit) as ended:
        main(["audit", *map(str, words)])
    printed = capsys.readouterr()
    return printed.out if ended.value.code == 0 else f"{ended.value.code}: {printed.err}"


def test_the_command_finds_what_the_run_has_learned(
    overfitted: dict[str, Path], codes: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    homes, files = list(overfitted.values()), list(codes.values())
    adapters = [home / "adapter" for home in homes]
    said = audited(
        capsys, "--adapter", *adapters, "--data", *files, "--held-out", "0.5", "--canary-file",
        homes[0] / canaries.FILE, "--references", "63", "--json",
    )  # fmt: skip
    found = json.loads(said)
    mine, theirs = found["outcomes"]
    for outcome in (mine, theirs):
        calibrated = outcome["figures"]["calibrated"]
        assert calibrated["auc"]["value"] > 0.9
        assert (calibrated["members"], calibrated["others"]) == (20, 20)
    assert mine["exposure"]["limit"] == 6.0
    assert mine["exposure"]["mean"] > theirs["exposure"]["mean"] + 2, (
        "whoever has not seen them knows nothing"
    )
    assert found["attribution"]["learned"]["value"] > 0.9
    others = found["attribution"]["held_out"]
    assert others["value"] < 0.7, "they are of one style, and nobody has learned them"
    assert found["attribution"]["owners"] == 2

    said = audited(capsys, "--adapter", adapters[0], "--data", files[0], "--held-out", "0.5", "--rows", "10")
    assert "10 rows that it may have learned, 10 that it has not" in said
    assert "50 = guessing" in said
    assert said.count("too few rows for this") == 2
    said = audited(
        capsys, "--adapter", adapters[0], "--canary-file", homes[0] / canaries.FILE, "--references", "7"
    )
    assert "2 canaries among 7 rows like them" in said
    # other rows of the same kind, named by the user
    said = audited(capsys, "--adapter", adapters[1], "--data", files[0], "--against", files[0])
    assert said.startswith("6: "), "no row is left that is not among those learned"


def test_what_cannot_be_audited_is_refused_with_a_way_out(
    overfitted: dict[str, Path], codes: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter, file = overfitted["a"] / "adapter", codes["a"]
    few = tmp_path / "few.jsonl"
    few.write_text("".join(file.read_text().splitlines(keepends=True)[:12]))
    other = tmp_path / "other"
    other.mkdir()
    for part in adapter.iterdir():
        (other / part.name).write_bytes(part.read_bytes())
    written = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**written, "base_model_name_or_path": "another"}))
    for words, said in (
        ((adapter,), "give --data"),
        ((adapter, "--data", tmp_path / "none.jsonl"), "none.jsonl"),
        ((adapter, "--data", few), r"11 rows to tell apart from 1 others"),
        ((tmp_path, "--data", file), "not an adapter"),
        ((adapter, other, "--data", file), "another base model (another)"),
        ((adapter, adapter, "--data", file, file, file), "one for each"),
        ((adapter, "--data", file, "--held-out", "1"), "--held-out must lie between"),
        ((adapter, "--data", file, "--rows", "0"), "--rows must be at least 1"),
        ((adapter, "--canary-file", tmp_path / "none.jsonl"), "none.jsonl"),
    ):
        assert said in audited(capsys, "--adapter", *words), words


def test_rows_that_differ_in_kind_are_not_taken_for_leaks(
    overfitted: dict[str, Path], codes: dict[str, Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """English is what the tiny base model knows: it tells it from codes without having seen either."""
    english = tmp_path / "english.jsonl"
    lines = [f"The old sailor sees the blue boat in the morning, number {n}." for n in range(20)]
    english.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    said = audited(
        capsys, "--adapter", overfitted["a"] / "adapter", "--data", codes["a"], "--against", english
    )
    assert "beware: the base model, which has seen neither" in said
    assert data.load([english]).rows
