"""The testnet without its processes: who learns from what, with which flags, and what is made of what they tell."""

from __future__ import annotations

import dataclasses
import io
import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import save_file

from gossip.errors import LocalError
from peer.config import PeerConfig
from peer.training.trainers import maker_at
from scripts.lab.testnet import command
from scripts.lab.testnet.config import BASELINES, Regime, TestnetConfig
from scripts.lab.testnet.curves import draw_curves, write_curves
from scripts.lab.testnet.every_shard import draw_in_turns
from scripts.lab.testnet.plan import EVERY_SHARD, PlannedPeer, plan_regime
from scripts.lab.testnet.run import reason_of
from scripts.lab.testnet.screen import table_of, watching
from scripts.lab.testnet.settings import SETTINGS, DemoSettings
from scripts.lab.testnet.shards import prepare_shards
from scripts.lab.testnet.summary import Summary, consensus_distance, summarize
from scripts.lab.testnet.view import Evaluation, PeerView, Watch


def folder_of(tmp_path: Path, **files: int) -> Path:
    """Make a folder of .jsonl files with so many rows each."""
    folder = tmp_path / "texts"
    folder.mkdir()
    for name, rows in files.items():
        (folder / f"{name}.jsonl").write_text("".join(f'{{"text": "{name} {row}"}}\n' for row in range(rows)))
    return folder


def flag(planned: PlannedPeer, name: str) -> list[str]:
    """Return the values that a flag of a planned peer was given."""
    return [value for word, value in zip(planned.flags, planned.flags[1:], strict=False) if word == name]


def test_every_peer_has_a_file_and_files_are_shared_out_where_peers_are_more(tmp_path: Path) -> None:
    data = str(folder_of(tmp_path, a=5, b=3))
    config = TestnetConfig(peers=2, data=data, out=tmp_path / "out")
    assert list(prepare_shards(config)) == ["a", "b"]
    shards = prepare_shards(TestnetConfig(peers=3, data=data, out=tmp_path / "out"))
    assert list(shards) == ["a-1", "b", "a-2"]
    rows = [json.loads(line)["text"] for name in ("a-1", "a-2") for line in shards[name].open()]
    assert rows == ["a 0", "a 2", "a 4", "a 1", "a 3"]
    assert shards["b"] == tmp_path / "texts" / "b.jsonl"


def test_data_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LocalError, match="a folder with one data file per peer, or demo"):
        prepare_shards(TestnetConfig(data=str(tmp_path / "none")))
    (tmp_path / "rows.csv").write_text("text\nx\n")
    with pytest.raises(LocalError, match=r"only \.jsonl and \.txt files can be shared out"):
        prepare_shards(TestnetConfig(peers=2, data=str(tmp_path), out=tmp_path / "out"))


def test_regimes_are_the_same_program_with_other_flags(tmp_path: Path) -> None:
    shards = {name: tmp_path / f"{name}.jsonl" for name in ("a", "b", "c")}
    options = ("--batch-size", "3")
    config = TestnetConfig(peers=3, model="other", codec="int8", seed=7, out=tmp_path, options=options)
    together = plan_regime(config, "gossip", shards)
    ids = [planned.peer_id for planned in together]
    assert len(set(ids)) == 3
    first = flag(together[0], "--listen")[0]
    for planned in together:
        assert flag(planned, "--data") == [str(shards[planned.name])]
        assert flag(planned, "--eval-data") == [
            str(path) for name, path in shards.items() if name != planned.name
        ]
        assert flag(planned, "--roster") == ids
        assert flag(planned, "--join") == ([] if planned is together[0] else [f"{first}/p2p/{ids[0]}"])
    alone = plan_regime(config, "local", shards)
    (central,) = plan_regime(config, "central", shards)
    (large,) = plan_regime(config, "central-large", shards)
    for planned in (central, large):
        assert (
            flag(planned, "--data") == flag(planned, "--eval-data") == [str(path) for path in shards.values()]
        )
        assert flag(planned, "--threads") == ["0"]
        assert flag(planned, "--trainer") == [EVERY_SHARD]
    assert not flag(together[0], "--trainer")
    for planned in (*together, *alone, central, large):
        assert flag(planned, "--codec") == ["int8"]
        assert flag(planned, "--seed") == ["7"]
        assert not flag(planned, "--rounds")
    for planned in alone:
        assert flag(planned, "--batch-size") == ["3"]
        assert not flag(planned, "--join")


@pytest.mark.parametrize(
    "options", [("--batch-size", "3", "--local-steps", "5"), ("--local-steps=5", "--batch-size=3")]
)
def test_central_training_has_as_many_tokens_a_round_in_small_steps_or_as_few_steps(
    options: tuple[str, ...], tmp_path: Path
) -> None:
    shards = {name: tmp_path / f"{name}.jsonl" for name in ("a", "b", "c")}
    options = (*options, "--warmup-steps", "2")
    config = TestnetConfig(peers=3, model="other", out=tmp_path, options=options)

    def sizes(regime: Regime) -> list[list[str]]:
        planned = plan_regime(config, regime, shards)[0]
        assert planned.round_tokens == 3 * 3 * 5 * 64, "the default length of a sequence is 64"
        words = [word for given in planned.flags for word in given.split("=")]
        split = PlannedPeer("x", regime, tmp_path, tuple(words))
        return [flag(split, name) for name in ("--local-steps", "--warmup-steps", "--batch-size")]

    assert sizes("gossip") == sizes("local") == [["5"], ["2"], ["3"]]
    assert sizes("central") == [["15"], ["6"], ["3"]]
    assert sizes("central-large") == [["5"], ["2"], ["9"]]


def test_a_size_that_is_no_number_is_refused(tmp_path: Path) -> None:
    config = TestnetConfig(out=tmp_path, options=("--local-steps", "many"))
    with pytest.raises(LocalError, match="--local-steps must be a whole number, not 'many'"):
        plan_regime(config, "central", {"a": tmp_path / "a.jsonl"})


@pytest.mark.parametrize("model", SETTINGS)
def test_the_demo_gives_every_regime_its_own_rate_and_the_users_flags_win(model: str, tmp_path: Path) -> None:
    shards = {name: tmp_path / f"{name}.jsonl" for name in ("a", "b")}
    settings = SETTINGS[model]
    assert set(settings.regimes) == {"gossip", *BASELINES}
    rounds = str(settings.shared["rounds"])
    for regime, options in settings.regimes.items():

        def first(name: str, regime: Regime = regime, **given: Any) -> PlannedPeer:
            config = TestnetConfig(model=model, out=tmp_path / f"{regime} {name}", **given)
            return plan_regime(config, regime, shards)[0]

        demo = first("demo")
        assert flag(demo, "--learning-rate") == [str(options["learning_rate"])]
        assert flag(demo, "--rounds") == [rounds]
        changed = first("changed", rounds=3, options=("--learning-rate", "0.5", "--threads=3"))
        assert flag(changed, "--learning-rate") == ["0.5"]
        assert flag(changed, "--rounds") == ["3"]
        assert not flag(changed, "--threads")
        assert not flag(first("other", data="texts"), "--learning-rate")


@pytest.mark.parametrize("settings", SETTINGS.values())
def test_the_settings_of_the_demo_give_curves_of_at_least_six_points(settings: DemoSettings) -> None:
    rounds, every = int(settings.shared["rounds"]), int(settings.shared["eval_every"])
    assert -(-rounds // every) + 1 >= 6, "before the first round, each so many rounds, and at the end"


def test_central_training_draws_as_often_from_every_file_however_long(tmp_path: Path) -> None:
    from peer.training.adapted_model import AdaptedModel

    files = tuple(tmp_path / f"{name}.jsonl" for name in "abc")
    for path, rows in zip(files, (5, 200, 40), strict=True):
        path.write_text(f'{{"text": "{path.stem * 30}"}}\n' * rows)
    config = PeerConfig.of(model="tiny", data=files, eval_data=files, batch_size=4, local_steps=2, threads=1)
    model = AdaptedModel(config)
    draw = draw_in_turns(config, model)
    texts = [model.tokenizer.decode(one.ids) for _ in range(6) for one in draw()]
    assert Counter(max("abc", key=text.count) for text in texts) == {"a": 8, "b": 8, "c": 8}
    trainer = maker_at(EVERY_SHARD)(config, lambda stage, done: None)
    assert trainer.train(model.initial).sequences == 8
    assert len(trainer.evaluate(model.initial).per_file) == 3


def view_of(name: str = "a", regime: Regime = "gossip", home: Path = Path(), shards: int = 2) -> PeerView:
    return PeerView(PlannedPeer(name, regime, home, (), f"id of {name}", round_tokens=100), shards)


def evaluation(round: int, own: float, **per_file: float) -> dict[str, Any]:
    return {
        "event": "eval", "at": 1000.0, "round": round, "own": own, "per_file": per_file,
        "accuracy": None, "accuracy_all": None,
    }  # fmt: skip


ROUND = {
    "event": "round", "at": 1003.0, "round": 4, "rounds": 5, "merging": False, "loss": 2.5, "age": 10, "mixed": ["b"],
    "bytes_in": 4_400_000, "bytes_out": 2_000, "fetches_ok": 3, "fetches_failed": 1,
}  # fmt: skip


def test_a_view_keeps_what_its_process_told() -> None:
    view = view_of()
    assert view.doing == "start"
    for event, doing in (
        ({"event": "start", "name": "a", "peer_id": "x", "home": "h"}, "start"),
        ({"event": "preparing", "stage": "load", "done": None}, "load"),
        ({"event": "ready"}, "ready"),
        ({"event": "listening"}, "listening"),
        ({"event": "step", "round": 0, "step": 1, "steps": 2, "loss": 3.0}, "train"),
        (ROUND, "train"),
        ({"event": "finished", "complete": True, "round": 5, "adapter": "x", "load": "line"}, "done"),
    ):
        view.take(event)
        assert view.doing == doing
    assert view.step == (1, 2)
    assert view.round is not None
    assert (view.round.round, view.round.rounds, view.round.mixed, view.round.age) == (5, 5, ("b",), 10)
    assert view.load == "line"


def test_the_loss_over_all_shards_counts_every_shard_once() -> None:
    own, central = view_of(), view_of("central", "central")
    own.take(evaluation(5, 2.0, b=4.0))
    central.take(evaluation(5, 9.0, a=2.0, b=4.0))  # its own rows are of both shards
    assert own.evaluations == [Evaluation(5, 2.0, 3.0, None, None, 0, 0.0)]
    assert central.evaluations == [Evaluation(5, 9.0, 3.0, None, None, 0, 0.0)]


def test_a_curve_counts_tokens_of_rounds_that_trained_and_time_without_measurements() -> None:
    view = view_of()
    for event in (
        {**evaluation(0, 5.0, b=5.0), "at": 1000.0},  # training begins
        {**ROUND, "at": 1003.0},
        {**ROUND, "at": 1005.0},
        {**evaluation(2, 4.0, b=4.0), "at": 1025.0},  # 20 s of measuring
        {**ROUND, "at": 1026.5},
        {**ROUND, "at": 1027.0, "merging": True, "loss": None},
        {**evaluation(4, 3.0, b=3.0), "at": 1047.0},
    ):
        view.take(event)
    assert [(point.tokens, point.seconds) for point in view.evaluations] == [(0, 0.0), (200, 5.0), (300, 7.0)]


def summary_of(tmp_path: Path) -> Summary:
    """Return the summary of two peers, whose adapters are (1, 0) and (1, 2), and of both central trainings."""
    views: dict[Regime, list[PeerView]] = {
        "gossip": [],
        "central": [view_of("central", "central")],
        "central-large": [view_of("central", "central-large")],
    }
    for name, second in (("a", 0.0), ("b", 2.0)):
        home = tmp_path / name
        (home / "adapter").mkdir(parents=True)
        save_file({"x": torch.tensor([1.0, second])}, home / "adapter" / "adapter_model.safetensors")
        views["gossip"].append(view_of(name, home=home))
    ends = (4.0, 3.5, 2.5, 3.0)
    for view, end in zip([view for peers in views.values() for view in peers], ends, strict=True):
        view.take(evaluation(0, 5.0, a=5.0, b=5.0))
        view.take(ROUND)
        view.take(evaluation(5, end, a=end, b=end))
    return summarize(TestnetConfig(compare=("central", "central-large"), out=tmp_path), views, 12.34)


def test_a_summary_is_what_the_last_evaluations_say(tmp_path: Path) -> None:
    summary = summary_of(tmp_path)
    assert (summary.base_loss, summary.local_loss) == (5.0, None)
    assert (summary.central_loss, summary.central_large_loss) == (2.5, 3.0)
    assert (summary.gossip_loss_mean, summary.gossip_loss_worst) == (3.75, 4.0)
    assert summary.target == "token"
    # The mean is (1, 1), of norm sqrt 2; each is 1 away from it.
    assert summary.consensus_distance == pytest.approx(1 / math.sqrt(2))
    record = json.loads(json.dumps(summary.record()))
    assert record["config"]["out"] == str(tmp_path)
    assert record["config"]["compare"] == ["central", "central-large"]
    assert record["wall_s"] == 12.3
    assert not record["interrupted"]
    assert [(peer["name"], peer["rounds"], peer["bytes_in"]) for peer in record["peers"]] == [
        ("a", 5, 4_400_000), ("b", 5, 4_400_000),
    ]  # fmt: skip
    assert record["strongest"] == "central"
    assert record["gains"] == {
        "base": 0.0, "gossip_mean": 1.25, "gossip_worst": 1.0, "central_large": 2.0, "central": 2.5,
    }  # fmt: skip
    assert record["shares"] == {
        "base": 0.0, "gossip_mean": 0.5, "gossip_worst": 0.4, "central_large": 0.8, "central": 1.0,
    }  # fmt: skip
    assert record["curves"][:2] == [
        {"regime": "gossip", "peer": "a", "tokens": 0, "seconds": 0.0, "loss": 5.0},
        {"regime": "gossip", "peer": "a", "tokens": 100, "seconds": 3.0, "loss": 4.0},
    ]
    assert len(record["curves"]) == 8


def test_the_end_says_how_much_of_the_strongest_central_gain_was_reached(tmp_path: Path) -> None:
    out = io.StringIO()
    command.print_summary(summary_of(tmp_path), "load line", Console(file=out, width=200))
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.getvalue().splitlines()]
    rows = {row[0]: row[1:] for row in cells if row}
    assert rows == {
        "base model": ["", "5.000", "0.000", "0%"],
        "gossip, mean of peers": ["", "3.750", "1.250", "50%"],
        "gossip, worst peer": ["", "4.000", "1.000", "40%"],
        "central, large batch": ["equal time", "3.000", "2.000", "80%"],
        "central, small batch (strongest)": ["equal tokens", "2.500", "2.500", "100%"],
    }
    assert "load line" in out.getvalue()


def test_without_central_training_there_is_no_share(tmp_path: Path) -> None:
    summary = dataclasses.replace(summary_of(tmp_path), central_loss=None, central_large_loss=None)
    assert summary.strongest is None
    assert [(row.name, row.share) for row in summary.rows()] == [
        ("base", None), ("gossip_mean", None), ("gossip_worst", None),
    ]  # fmt: skip


def test_the_picture_has_every_regime_on_an_axis_of_tokens_and_one_of_seconds(tmp_path: Path) -> None:
    path = tmp_path / "curves.png"
    figure = draw_curves(summary_of(tmp_path))
    tokens, seconds = figure.axes
    for axes, last in ((tokens, 0.1), (seconds, 3.0)):
        drawn = {line.get_label(): line for line in axes.lines}
        named = {label: line for label, line in drawn.items() if not str(label).startswith("_")}
        assert list(named) == [
            "gossip: 3.750 (mean of peers)", "central: 2.500", "central-large: 3.000", "base model: 5.000",
        ]  # fmt: skip
        assert list(named["central: 2.500"].get_xdata()) == [0.0, last]
        assert list(named["central: 2.500"].get_ydata()) == [5.0, 2.5]
    write_curves(summary_of(tmp_path / "again"), path)
    assert path.read_bytes().startswith(b"\x89PNG")


def test_adapters_that_are_equal_have_no_distance(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        save_file({"x": torch.ones(3)}, tmp_path / name / "adapter_model.safetensors")
    assert consensus_distance([tmp_path / "a", tmp_path / "b"]) == 0.0


def test_where_there_is_no_terminal_rounds_and_evaluations_are_lines() -> None:
    out = io.StringIO()
    view = view_of()
    with watching(Console(file=out, width=200)) as watch:
        for event in ({"event": "ready"}, ROUND, {**ROUND, "loss": None}, evaluation(5, 2.0, b=4.0)):
            view.take(event)
            watch(view, str(event["event"]))
    assert out.getvalue().splitlines() == [
        "gossip        a            round 5/5 loss 2.500 read 1 in 4.4 MB",
        "gossip        a            round 5/5 merge read 1 in 4.4 MB",
        "gossip        a            after round 5: held-out loss own 2.000, over all 3.000",
    ]


def test_the_live_table_has_columns_of_labels_only_where_labels_are_learned() -> None:
    text, labeled, waiting = view_of("a"), view_of("b"), view_of("c")
    text.take(evaluation(5, 2.0, b=4.0))
    text.take(ROUND)
    labeled.take({**evaluation(5, 2.0, a=4.0), "accuracy": 0.5, "accuracy_all": 0.25})

    def shown(*views: PeerView) -> str:
        out = io.StringIO()
        Console(file=out, width=200).print(table_of("gossip", list(views)))
        return out.getvalue()

    assert "4.4 MB" in shown(text, waiting)
    assert "right all" not in shown(text, waiting)
    assert "25.0%" in shown(text, labeled, waiting)
    assert "start" not in shown(view_of("d", "local"))


def test_an_interrupt_counts_more_than_what_it_broke() -> None:
    refusal = LocalError("a peer ended with exit code 130")
    both = BaseExceptionGroup("", [ExceptionGroup("", [refusal]), KeyboardInterrupt()])
    assert isinstance(reason_of(both), KeyboardInterrupt)
    assert reason_of(ExceptionGroup("", [ExceptionGroup("", [refusal])])) is refusal
    bug = ExceptionGroup("", [ZeroDivisionError()])
    assert reason_of(bug) is bug


def interrupted_in(
    regime: Regime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> str:
    """Return the last line of a testnet whose user interrupts it in a regime; the others end at once."""
    from scripts.lab.testnet import run, screen

    async def run_regime(config: TestnetConfig, now: Regime, shards: object, watch: Watch) -> list[PeerView]:
        if now == regime:
            raise BaseExceptionGroup("", [LocalError("a peer ended with exit code 130"), KeyboardInterrupt()])
        home = config.out / ("peers" if now == "gossip" else now) / "a"
        for folder in ("adapter", "checkpoints"):
            (home / folder).mkdir(parents=True)
        save_file({"x": torch.ones(2)}, home / "adapter" / "adapter_model.safetensors")
        view = view_of("a", now, home, shards=1)
        for event in (evaluation(0, 5.0), ROUND, evaluation(5, 4.0)):
            view.take(event)
        return [view]

    monkeypatch.setattr(screen, "prepare_model", lambda model, console: None)
    monkeypatch.setattr(run, "run_regime", run_regime)
    data = str(folder_of(tmp_path, a=3))
    with pytest.raises(SystemExit) as exit:
        command.main(["--out", str(tmp_path / "out"), "--data", data, "--peers", "1"], "peer testnet")
    assert exit.value.code == 130
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_an_interrupt_of_gossip_says_where_things_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    line = interrupted_in("gossip", tmp_path, monkeypatch, capsys)
    assert line.endswith(
        f"interrupted before gossip was finished; what the peers have learned so far is in {tmp_path / 'out'}"
    )
    assert not (tmp_path / "out" / "summary.json").exists()


def test_an_interrupt_of_a_baseline_leaves_a_summary_of_what_was_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    line = interrupted_in("central", tmp_path, monkeypatch, capsys)
    written = tmp_path / "out" / "summary.json"
    assert line.endswith(f"interrupted; finished: gossip, local; their summary is in {written}")
    record = json.loads(written.read_text())
    assert record["interrupted"]
    assert (record["local_loss"], record["gossip_loss_mean"], record["central_loss"]) == (4.0, 4.0, None)
    assert not (tmp_path / "out" / "local").exists(), "nothing of the baselines is kept"


def test_flags_after_two_hyphens_go_to_the_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    from scripts.lab.testnet import run, screen

    configs: list[TestnetConfig] = []

    def take(config: TestnetConfig, watch: Watch) -> None:
        configs.append(config)
        raise LocalError("far enough")

    monkeypatch.setattr(screen, "prepare_model", lambda model, console: None)
    monkeypatch.setattr(run, "run_testnet", take)
    words = ["--peers", "8", "--compare", "none", "--", "--lora-r", "4"]
    assert command.main(words) == 2
    (config,) = configs
    assert (config.peers, config.compare, config.options) == (8, (), ("--lora-r", "4"))
