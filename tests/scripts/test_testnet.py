"""The testnet without its processes: who learns from what, with which flags, and what is made of what they tell."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import save_file

from gossip.errors import LocalError
from scripts.lab.testnet import command
from scripts.lab.testnet.config import Regime, TestnetConfig
from scripts.lab.testnet.plan import PlannedPeer, plan_regime
from scripts.lab.testnet.run import reason_of
from scripts.lab.testnet.screen import table_of, watching
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
    config = TestnetConfig(peers=3, codec="int8", seed=7, out=tmp_path, options=("--batch-size", "3"))
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
    assert flag(central, "--data") == flag(central, "--eval-data") == [str(path) for path in shards.values()]
    assert flag(central, "--batch-size") == ["9"]
    assert flag(central, "--threads") == ["0"]
    for planned in (*together, *alone, central):
        assert flag(planned, "--codec") == ["int8"]
        assert flag(planned, "--seed") == ["7"]
        assert not flag(planned, "--rounds")
    for planned in alone:
        assert flag(planned, "--batch-size") == ["3"]
        assert not flag(planned, "--join")
    (default,) = plan_regime(TestnetConfig(out=tmp_path), "central", shards)
    assert flag(default, "--batch-size") == ["12"]


def view_of(name: str = "a", regime: Regime = "gossip", home: Path = Path(), shards: int = 2) -> PeerView:
    return PeerView(PlannedPeer(name, regime, home, (), f"id of {name}"), shards)


def evaluation(round: int, own: float, **per_file: float) -> dict[str, Any]:
    return {
        "event": "eval", "round": round, "own": own, "per_file": per_file, "accuracy": None, "accuracy_all": None,
    }  # fmt: skip


ROUND = {
    "event": "round", "round": 4, "rounds": 5, "merging": False, "loss": 2.5, "age": 10, "mixed": ["b"],
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
    assert own.evaluations == [Evaluation(5, 2.0, 3.0, None, None)]
    assert central.evaluations == [Evaluation(5, 9.0, 3.0, None, None)]


def summary_of(tmp_path: Path) -> Summary:
    """Return the summary of two peers, whose adapters are (1, 0) and (1, 2), and of central training."""
    views: dict[Regime, list[PeerView]] = {"gossip": [], "central": [view_of("central", "central")]}
    for name, second in (("a", 0.0), ("b", 2.0)):
        home = tmp_path / name
        (home / "adapter").mkdir(parents=True)
        save_file({"x": torch.tensor([1.0, second])}, home / "adapter" / "adapter_model.safetensors")
        views["gossip"].append(view_of(name, home=home))
    for index, view in enumerate([*views["gossip"], *views["central"]]):
        for loss in (5.0, 4.0 - index / 2):
            view.take(evaluation(0, loss, a=loss, b=loss))
        view.take(ROUND)
    return summarize(TestnetConfig(compare=("central",), out=tmp_path), views, 12.34)


def test_a_summary_is_what_the_last_evaluations_say(tmp_path: Path) -> None:
    summary = summary_of(tmp_path)
    assert (summary.base_loss, summary.local_loss, summary.central_loss) == (5.0, None, 3.0)
    assert (summary.gossip_loss_mean, summary.gossip_loss_worst) == (3.75, 4.0)
    assert summary.target == "token"
    # The mean is (1, 1), of norm sqrt 2; each is 1 away from it.
    assert summary.consensus_distance == pytest.approx(1 / math.sqrt(2))
    record = json.loads(json.dumps(summary.record()))
    assert record["config"]["out"] == str(tmp_path)
    assert record["config"]["compare"] == ["central"]
    assert record["wall_s"] == 12.3
    assert [(peer["name"], peer["rounds"], peer["bytes_in"]) for peer in record["peers"]] == [
        ("a", 5, 4_400_000), ("b", 5, 4_400_000),
    ]  # fmt: skip


def test_the_end_says_how_much_of_the_central_gain_was_reached(tmp_path: Path) -> None:
    out = io.StringIO()
    command.print_summary(summary_of(tmp_path), "load line", Console(file=out, width=200))
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.getvalue().splitlines()]
    rows = {row[0]: row[1:] for row in cells if row}
    assert rows == {
        "base model": ["5.000", "0.000", "0%"],
        "gossip, mean of peers": ["3.750", "1.250", "62%"],
        "gossip, worst peer": ["4.000", "1.000", "50%"],
        "centralized": ["3.000", "2.000", "100%"],
    }
    assert "load line" in out.getvalue()


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
        "gossip   a            round 5/5 loss 2.500 read 1 in 4.4 MB",
        "gossip   a            round 5/5 merge read 1 in 4.4 MB",
        "gossip   a            after round 5: held-out loss own 2.000, over all 3.000",
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


def test_an_interrupt_ends_with_its_exit_code_and_says_where_things_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from scripts.lab.testnet import run, screen

    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(screen, "prepare_model", lambda model, console: None)
    monkeypatch.setattr(run, "run_testnet", interrupted)
    with pytest.raises(SystemExit) as exit:
        command.main(["--out", str(tmp_path)], "peer testnet")
    assert exit.value.code == 130
    assert f"interrupted; what the peers have learned so far is in {tmp_path}" in capsys.readouterr().err


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
