"""Comparisons: equal terms for all methods, known answers, the same results again, and statistics done by hand."""

from __future__ import annotations

import dataclasses
import json
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from scipy import stats

from gossip.adapter import AdapterSpec, AdapterState
from gossip.errors import LocalError
from scripts.lab.comparison import command
from scripts.lab.comparison.design import Comparison, read_comparison
from scripts.lab.comparison.judge import Judge
from scripts.lab.comparison.method import Method
from scripts.lab.comparison.peers import prepare_peers
from scripts.lab.comparison.run import in_turn, run_trial
from scripts.lab.comparison.server import Server
from scripts.lab.comparison.statistics import (
    ComparisonResults,
    MethodResults,
    above_central,
    budgets,
    gap_closed,
    loss_within,
    read_comparison_results,
    share_of_gain,
    spent_until_target,
)
from scripts.lab.comparison.tables import convergence_table, tables
from scripts.lab.comparison.trial import TUNING_SEED, Trial
from scripts.lab.comparison.tuning import Tuned, choose_rates, grid_of, run_comparison, wider_grids
from scripts.lab.records import record_of_comparison, table_of

WORDS = {
    "numbers": "one two three four five",
    "colors": "red green blue gray pink",
    "days": "Monday Tuesday Friday",
}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """Three groups of text, one for each of three peers, and the tiny model."""
    file = tmp_path_factory.mktemp("text") / "rows.jsonl"
    draw = random.Random(0)
    rows = [
        {"text": " ".join(draw.choices(words.split(), k=6)), "by": group}
        for group, words in WORDS.items()
        for _ in range(40)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Comparison(
        workload=f"file:{file}:by",
        peers=3,
        rounds=2,
        local_steps=2,
        seeds=2,
        learning_rates=(1e-2, 2e-2),
        widenings=0,
        methods=("complete merge=none", "ring codec=int8 local_steps=1"),
        settings=(
            "model=tiny",
            "device=cpu",
            "threads=1",
            "lora_target_modules=all-linear",
            "batch_size=2",
            "max_length=32",
            "eval_blocks_max=2",
        ),
    )


pytestmark = pytest.mark.usefixtures("tiny_cache")


def compare(out: Path, comparison: Comparison) -> tuple[Tuned, list[int]]:
    """Run a comparison here; return what tuning came to, and of each phase how many runs were not finished before."""
    left: list[int] = []

    @contextmanager
    def on_phase(phase: str, total: int) -> Iterator[Callable[..., None]]:
        yield lambda done, of, trial: left.append(of - done) if trial is None else None

    return run_comparison(comparison, out, engine="here", on_phase=on_phase), left


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, tiny_cache: None, small: Comparison) -> Path:
    out = tmp_path_factory.mktemp("done")
    tuned, left = compare(out, small)
    assert left == [7 * 2, 7 * 2]
    assert set(tuned.rates) == set(small.all_methods())
    return out


# -- how methods are written


def test_methods_are_read_and_written() -> None:
    text = "epidemic:3 overlap local-steps=5 gamma=0.50 codec=int4"
    method = Method.parse(text)
    assert method.regime == "epidemic:3"
    assert method.settings == {"codec": "int4", "gamma": 0.5, "overlap": True, "local_steps": 5}
    assert str(method) == "epidemic:3 codec=int4 gamma=0.5 overlap local_steps=5"
    assert Method.parse(str(method)) == method
    assert str(Method.parse("ring overlap=no")) == "ring overlap=no"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "must begin with a topology or one of local, central, central-large, fedavg"),
        ("codec=int8", "must begin with a topology"),
        ("ring codek=int8", "unknown setting 'codek'. Did you mean 'codec'?"),
        ("ring learning_rate=1", "unknown setting 'learning_rate'"),
        ("fedavg codec=int8", "unknown setting 'codec'"),
        ("fedavg optimizer=diloco", "unknown setting 'optimizer'"),
        ("central local_steps=2", "unknown setting 'local_steps'"),
        ("ring gamma=1 gamma=1", "gamma stands there twice"),
        ("ring gamma", "write gamma=VALUE"),
        ("ring gamma=much", "gamma must be a number, not 'much'"),
        ("ring local_steps=1.5", "local_steps must be a whole number"),
        ("ring overlap=perhaps", "overlap must be yes or no"),
    ],
)
def test_methods_that_mean_nothing_are_refused(text: str, said: str) -> None:
    with pytest.raises(LocalError) as refused:
        Method.parse(text)
    assert said in str(refused.value)


def test_comparisons_are_refused_before_anything_runs(tmp_path: Path, small: Comparison) -> None:
    for change, said in (
        ({"methods": ("rinng",)}, "rinng"),
        ({"methods": ("hypercube",)}, "power of two"),
        ({"methods": ("epidemic:2 optimizer=d2",)}, "d2"),
        ({"methods": ("ring local_steps=3",)}, "no whole number of rounds of 3 steps of 2"),
        ({"methods": ("ring batch_size=3",)}, "no whole number of rounds of 2 steps of 3"),
        ({"methods": ("central batch_size=5",)}, "12 sequences of all peers in a round are no whole number"),
        ({"methods": ("fedopt optimizer=k-gt",)}, "does more than an outer step"),
        ({"methods": ("fedopt optimizer=qg",)}, "does more than an outer step"),
        ({"methods": ("fedopt optimizer=nesterov",)}, "nesterov"),
        ({"partition": "dirichle:1"}, "dirichle"),
        (
            {"methods": ("ring schedule=linear",), "until": "converged"},
            "falls towards an end that is not known",
        ),
        ({"workload": "language"}, "unknown workload"),
        ({"settings": ("learning_rate=1",)}, "unknown setting 'learning_rate'"),
    ):
        with pytest.raises(LocalError, match=said):
            compare(tmp_path / "out", dataclasses.replace(small, **change))  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_toml_and_flags_say_the_same(tmp_path: Path) -> None:
    file = tmp_path / "comparison.toml"
    file.write_text('workload = "languages-tiny"\npeers = 3\nmethods = ["ring"]\nlearning_rates = [1, 0.5]\n')
    read = read_comparison({"peers": 4, "rounds": None}, file)
    assert read == Comparison(
        workload="languages-tiny", peers=4, methods=("ring",), learning_rates=(1.0, 0.5)
    )
    file.write_text("workloads = 1\n")
    with pytest.raises(LocalError, match=r"unknown field 'workloads'.* mean 'workload'"):
        read_comparison({}, file)
    with pytest.raises(LocalError, match="needs a workload"):
        read_comparison({})
    with pytest.raises(LocalError, match="methods must be a list of texts"):
        read_comparison({"workload": "topics", "methods": "ring"})
    assert "--workload topics --method 'ring codec=int8' --set batch_size=2 --out here" in Comparison(
        workload="topics", methods=("ring codec=int8",), settings=("batch_size=2",)
    ).command(Path("here"))


# -- equal terms


def test_trials_differ_in_nothing_but_the_method(small: Comparison) -> None:
    trials = small.evaluation(dict.fromkeys(small.all_methods(), 1e-2))
    assert len(trials) == 7 * 2
    own = [trial for trial in trials if trial.what.regime != "central"]
    assert {trial.rounds * trial.local_steps * trial.batch_size for trial in own} == {8}
    assert {trial.seed for trial in trials} == {0, 1}
    tuning = small.tuning(dict.fromkeys(small.all_methods(), small.learning_rates))
    assert {trial.seed for trial in tuning} == {TUNING_SEED}
    assert all(trial.tunes for trial in tuning)
    assert not any(trial.tunes for trial in trials)
    assert not dataclasses.replace(small, learning_rates=(1e-2,)).tuning({})
    same = (
        "workload",
        "partition",
        "peers",
        "settings",
        "learning_rate",
        "latency_s",
        "bandwidth_mbit",
        "loss",
    )
    assert len({tuple(getattr(trial, name) for name in same) for trial in trials}) == 1


def test_what_all_train_on_is_equal_whatever_a_step_and_a_round_take(small: Comparison) -> None:
    texts = (
        "ring batch_size=1 local_steps=4",
        "central",
        "central batch_size=4",
        "fedopt optimizer=noloco local_steps=1",
    )
    grown = dataclasses.replace(small, methods=texts, rounds=4, step_s=0.5)
    trials = {trial.method: trial for trial in grown.evaluation(dict.fromkeys(grown.all_methods(), 1e-2))}
    planned = {
        name: (one.rounds, one.local_steps, one.batch_size, one.step_s) for name, one in trials.items()
    }
    assert planned["local"] == planned["central-large"] == planned["fedavg"] == (4, 2, 2, 0.5)
    assert planned["ring local_steps=4 batch_size=1"] == (4, 4, 1, 0.25)
    assert planned["central"] == (4, 6, 2, 0.5)  # what three peers do in a round, one after the other
    assert planned["central batch_size=4"] == (4, 3, 4, 1.0)
    assert planned["fedopt optimizer=noloco local_steps=1"] == (8, 1, 2, 0.5)


def test_central_takes_the_text_of_all_peers_in_turn(small: Comparison) -> None:
    trial = small.evaluation(dict.fromkeys(small.all_methods(), 1e-2))[0]
    ours, alone = prepare_peers(trial), prepare_peers(trial)
    turns = in_turn([ours.trainers[name] for name in ours.names])
    drawn = [next(turns) for _ in range(3 * 5)]
    for index, name in enumerate(alone.names):
        own = [one for _ in range(3) for one in alone.trainers[name].draw_batch()]
        assert [one.ids for one in drawn[index::3]] == [one.ids for one in own[:5]]


def test_validation_rows_are_no_test_rows_and_decide_the_rate(small: Comparison) -> None:
    trial = small.evaluation(dict.fromkeys(small.all_methods(), 1e-2))[0]
    peers = prepare_peers(trial)
    judge, whole = Judge(peers), Judge(peers, validates=False)
    state = peers.model.initial
    test, validation = judge(state).loss, judge.validation(state).loss
    assert test != validation
    assert judge(state).loss == test
    assert whole(state).loss not in (test, validation)
    tuned = run_trial(dataclasses.replace(trial, seed=TUNING_SEED)).outcome
    assert tuned["validation_loss"] > 0
    assert tuned["final_loss"] is tuned["start_loss"] is None  # nothing that could be looked at
    few = dataclasses.replace(trial, settings=trial.settings + " held_out=0.025")
    with pytest.raises(LocalError, match=r"1 held-out rows of .* too few for a validation and a test half"):
        Judge(prepare_peers(few))


def test_from_scratch_a_peer_s_own_text_is_what_its_training_holds_out(small: Comparison) -> None:
    trial = dataclasses.replace(
        small.evaluation(dict.fromkeys(small.all_methods(), 1e-2))[0],
        settings="from_scratch=nano device=cpu threads=1 batch_size=2 max_length=32 eval_blocks_max=4",
    )
    peers = prepare_peers(trial)
    judge, state = Judge(peers), peers.model.initial
    for name in peers.names:
        assert judge.own(name, state) == pytest.approx(peers.trainers[name].evaluate(state).own, rel=1e-5)


def test_a_server_that_steps_by_one_averages_and_momentum_carries_on() -> None:
    spec = AdapterSpec.of({"x": torch.zeros(2)})

    def state(*values: float) -> AdapterState:
        return AdapterState(spec, torch.tensor(values, dtype=torch.float32))

    first, second = {"a": state(1, 0), "b": state(3, 2)}, {"a": state(4, 4), "b": state(2, 2)}
    plain = Server("none", state(0, 0), 1)
    assert [plain.step(states).flat.tolist() for states in (first, second)] == [[2, 1], [3, 3]]
    nesterov = Server("diloco:0.5:1", state(0, 0), 1)
    # m = d, step d + m / 2; then m' = m / 2 + d
    assert nesterov.step(first).flat.tolist() == [3, 1.5]
    assert nesterov.step(second).flat.tolist() == [3 + 0.5 * (0.5 * 2 + 0), 1.5 + 1.5 + 0.5 * (0.5 * 1 + 1.5)]


@pytest.mark.parametrize("optimizer", ["noloco", "diloco:0.5:1", "fedexp", "fedadam:0.1"])
def test_a_server_does_what_peers_do_that_all_read_all(small: Comparison, optimizer: str) -> None:
    methods = f"complete optimizer={optimizer} merge=none robust=none", f"fedopt optimizer={optimizer}"
    grown = dataclasses.replace(small, methods=methods, rounds=3, seeds=1)
    rates = dict.fromkeys(grown.all_methods(), 1e-2)
    ends = [
        run_trial(trial).outcome["unmerged_loss"]
        for trial in grown.evaluation(rates)
        if str(trial.what) in {str(Method.parse(text)) for text in methods}
    ]
    assert len(ends) == 2
    assert ends[0] == pytest.approx(ends[1], abs=1e-4)


def test_names_follow_the_content_of_files(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "a"}\n')
    trial = Trial(workload=f"file:{file}:by")
    before = trial.name()
    assert before == Trial(workload=f"file:{file}:by").name()
    assert before != dataclasses.replace(trial, seed=1).name()
    file.write_text('{"text": "b"}\n')
    assert trial.name() != before


# -- known answers


def test_methods_meet_on_equal_terms(done: Path) -> None:
    comparison = read_comparison_results(done)
    runs = {method.name: method.runs for method in comparison.methods}
    for seed in range(2):
        tokens = {runs[method][seed]["tokens_per_peer"] for method in runs}
        assert len({round(value, 6) for value in tokens}) == 1
        assert len({runs[method][seed]["start_loss"] for method in runs}) == 1
        for method in ("local", "central", "central-large"):
            assert runs[method][seed]["bytes_per_peer"] == 0
        whole, server = runs["complete merge=none"][seed], runs["fedavg"][seed]
        assert (
            whole["bytes_per_peer"] == server["bytes_per_peer"] > 0
        )  # of three peers, both others; one up, one down
        if comparison.rates["complete merge=none"] == comparison.rates["fedavg"]:
            assert whole["final_loss"] == pytest.approx(server["final_loss"], abs=1e-4)
        assert whole["consensus_distance"] == pytest.approx(0, abs=1e-5)
        assert runs["local"][seed]["consensus_distance"] > 0.1
        assert runs["local"][seed]["total_variation"] > 0.4
        merged = runs["ring codec=int8 local_steps=1"][seed]
        assert merged["final_worst"] == pytest.approx(merged["final_loss"], abs=1e-6)
        assert merged["final_loss"] == pytest.approx(merged["final_mean_adapter"], abs=1e-6)


def test_rounds_are_counted_from_the_start(done: Path) -> None:
    ring = read_comparison_results(done).named("ring codec=int8 local_steps=1")
    assert ring is not None
    rounds = ring.rounds[0]
    assert rounds["round"].tolist() == [0, 1, 2, 3, 4, 5]  # four of one step each, and the merge
    assert rounds["merging"].tolist() == [0, 0, 0, 0, 0, 1]
    tokens = rounds["tokens_per_peer"]
    assert tokens[0] == 0
    assert (np.diff(tokens)[:4] > 0).all()
    assert tokens[5] == tokens[4]
    read = np.diff(rounds["bytes_per_peer"])
    assert np.ptp(read) == 0
    assert (np.diff(rounds["seconds"]) > 0).all()
    assert np.isfinite(rounds["loss"][[0, 4, 5]]).all()
    assert rounds["loss"][5] < rounds["loss"][0]
    assert rounds["cross_term"][1] == 0  # lora_B begins at 0, so that the first step leaves lora_A alike
    assert rounds["cross_term"][2] > 0
    peers = ring.peers[0]
    assert peers["round"].tolist() == [4, 4, 4, 5, 5, 5]
    assert peers["loss"][:3].mean() == pytest.approx(rounds["loss"][4])
    assert np.ptp(peers["loss_own"]) > 0


def test_equal_trials_give_equal_results_whatever_ran_between(small: Comparison) -> None:
    trial = small.evaluation(dict.fromkeys(small.all_methods(), 1e-2))[-1]
    first = run_trial(trial)
    run_trial(dataclasses.replace(trial, seed=5, method="central"))
    again = run_trial(trial)
    assert first.outcome == again.outcome
    for table, columns in first.tables.items():
        for name, values in columns.items():
            assert np.array_equal(values, again.tables[table][name], equal_nan=True), name


def test_labels_are_counted(tmp_path: Path) -> None:
    file = tmp_path / "labeled.jsonl"
    rows = [{"text": f"LOUD {n} LOUD" if n % 2 else f"low {n} low", "label": "ab"[n % 2]} for n in range(80)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    trial = Trial(
        workload=f"labeled:{file}",
        partition="iid",
        peers=2,
        settings="model=tiny lora_target_modules=all-linear max_length=16",
        learning_rate=1e-2,
        rounds=4,
    )
    trial.check()
    result = run_trial(trial)
    assert result.outcome["final_accuracy"] == 1.0
    accuracy = result.tables["rounds"]["accuracy"]
    assert accuracy[0] < 1
    assert result.tables["peers"]["accuracy"].tolist() == [1.0] * 4


@pytest.mark.parametrize("method", ["local", "ring"])
def test_training_until_it_has_converged_reports_its_best_round(small: Comparison, method: str) -> None:
    growing = dataclasses.replace(
        small, methods=(method,), seeds=1, until="converged", patience=2, rounds_factor=10, evaluate_every=1
    )
    trials = {one.method: one for one in growing.evaluation(dict.fromkeys(growing.all_methods(), 0.02))}
    trial = trials[method]
    assert (trial.rounds, trial.patience) == (20, 2)
    result = run_trial(trial)
    outcome, rounds = result.outcome, result.tables["rounds"]
    best, last = outcome["best_round"], outcome["last_round"]
    assert 0 < best < last == best + 2 < trial.rounds  # then it learns its words by heart
    assert rounds["round"].tolist() == list(range(last + 1))
    assert outcome["unmerged_loss"] == rounds["loss"][best]
    assert outcome["unmerged_worst"] == rounds["loss_worst"][best]
    for name in ("bytes_per_peer", "seconds", "tokens_per_peer"):
        assert outcome[name] == pytest.approx(rounds[name][best])
    merged = rounds["loss_mean_adapter"][best]
    assert (outcome["final_loss"] == merged == outcome["final_worst"]) == (method == "ring")
    assert (outcome["final_loss"] == rounds["loss"][best]) == (method != "ring")
    fixed = run_trial(dataclasses.replace(trial, patience=0, rounds=last)).tables["rounds"]
    assert np.array_equal(fixed["loss"][: last + 1], rounds["loss"])  # it is the same training
    tuning = run_trial(dataclasses.replace(trial, seed=TUNING_SEED, rounds=2)).outcome
    assert tuning["last_round"] == 2  # the bound
    assert tuning["validation_loss"] > 0


def test_what_diverges_is_a_result(small: Comparison) -> None:
    trial = small.evaluation(dict.fromkeys(small.all_methods(), 1e30))[0]
    for method in ("local", "ring"):
        outcome = run_trial(dataclasses.replace(trial, method=method, rounds=4)).outcome
        assert outcome["diverged"] == 1
        assert outcome["final_loss"] is None
        assert outcome["start_loss"] > 0


# -- going on, and reporting


def test_what_is_finished_is_not_run_again(done: Path, tmp_path: Path, small: Comparison) -> None:
    out = tmp_path / "again"
    shutil.copytree(done, out)
    before = {file.name: file.read_bytes() for file in out.glob("*.parquet")}
    assert set(before) == {"rounds.parquet", "peers.parquet", "runs.parquet"}
    gone = small.evaluation(read_comparison_results(out).rates)[3]
    shutil.rmtree(out / "cells" / gone.name())
    tuned, left = compare(out, small)
    assert left == [0, 1]
    assert tuned.rates == read_comparison_results(done).rates
    assert before == {file.name: file.read_bytes() for file in out.glob("*.parquet")}
    grown = dataclasses.replace(small, methods=(*small.methods, "epidemic:1"))
    _, left = compare(out, grown)
    assert left == [2, 2]
    assert pq.read_table(out / "runs.parquet").num_rows == 8 * 2 + 8 * 2


def test_the_command_reports(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        command.main(["run", "--workload", "languages-tiny", "--method", "ring codek=1", "--out", "x"]) == 2
    )
    assert "Did you mean 'codec'?" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        command.app(["report", "--out", str(done)])
    assert ended.value.code in (0, None)
    assert "share of strongest central's gain, %" in capsys.readouterr().out
    page = (done / "report.html").read_text()
    for name in ("loss", "spread", "consensus-distance", "cross-term", "frontier"):
        assert (done / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert page.count("data:image/png;base64,") == len(list(done.glob("*.png")))
    markdown = (done / "table.md").read_text()
    again = json.loads((done / "manifest.json").read_text())["spec"]["command"]
    for text in (
        "Paired differences",
        "At equal bytes",
        "Learning rates",
        "Split",
        "compare.py report --out",
    ):
        assert text in page
        assert text in markdown
    assert again in markdown
    assert not Path("x").exists()
    _check_record(json.loads((done / "record.json").read_text()), read_comparison_results(done))


def _check_record(kept: dict[str, Any], comparison: ComparisonResults) -> None:
    """The record holds the numbers of the tables."""
    assert kept["command"].startswith("python scripts/compare.py run --workload")
    assert kept["command"].endswith("--out done0")  # not where it lies on this machine
    assert kept["strongest_central"] == "central"
    rows = {row["method"]: row for row in kept["rows"]}
    ring = comparison.named("ring codec=int8 local_steps=1")
    assert ring is not None
    row = rows[ring.name]
    loss = ring.outcome("final_loss")
    assert row["values"]["loss"] == {"mean": loss.mean, "half": loss.half, "n": 2}
    assert row["rate"] == comparison.rates[ring.name]
    start = np.mean([run["start_loss"] for run in ring.runs.values()])
    assert rows["base model"]["values"]["loss"]["mean"] == pytest.approx(start)
    assert rows["central"]["values"]["share_of_gain"]["mean"] == pytest.approx(100)
    assert set(row["values"]) == set(kept["columns"])
    asked = {"rows": [ring.name], "columns": ["loss"]}
    assert table_of(record_of_comparison(kept), asked)[2] == f"| `{ring.name}` | {loss} |"


# -- statistics, by hand


def results(method: str, finals: list[float | None], rounds: dict[str, Any] | None = None) -> MethodResults:
    starts = {"start_loss": 6.0, "bytes_per_peer": 4e6, "best_round": 3, "last_round": 4}
    losses = ("final_loss", "final_worst", "unmerged_worst", "validation_loss")
    runs: dict[int, dict[str, Any]] = {
        seed: {**starts, **dict.fromkeys(losses, final)} for seed, final in enumerate(finals)
    }
    curve = {name: np.asarray(values, dtype=float) for name, values in (rounds or {}).items()}
    return MethodResults(method, runs, dict.fromkeys(runs, curve), {})


def test_the_gap_closed_and_the_share_of_the_gain_are_paired() -> None:
    local, central = results("local", [4.0, 5.0, 3.0]), results("central", [3.0, 3.0, 2.0])
    ring = results("ring", [3.25, 4.0, 2.0])
    comparison = ComparisonResults({}, (local, central, ring), {}, {})
    share = share_of_gain(comparison, ring)  # from 6
    by_hand = [2.75 / 3, 2 / 3, 4 / 4]
    assert share.mean == pytest.approx(np.mean(by_hand))
    assert share.half == pytest.approx(stats.t.ppf(0.975, 2) * stats.sem(by_hand))
    shares = [0.75, 0.5, 1.0]
    closed = gap_closed(comparison, ring)
    assert closed.mean == pytest.approx(0.75)
    assert closed.half == pytest.approx(stats.t.ppf(0.975, 2) * stats.sem(shares))
    assert gap_closed(comparison, local).mean == 0
    assert gap_closed(comparison, central).mean == 1
    assert gap_closed(comparison, results("ring", [3.0, None, 2.0])).mean is None
    difference = ring.minus(local, "final_loss")
    by_hand = [-0.75, -1.0, -1.0]
    assert difference.mean == pytest.approx(np.mean(by_hand))
    assert difference.half == pytest.approx(stats.t.ppf(0.975, 2) * stats.sem(by_hand))


def test_the_strongest_central_is_chosen_by_validation_alone() -> None:
    """Neither by what is reported nor by the few seeds that rates are tuned on; and one of equal time is none."""
    plain, small, large = "central", "central batch_size=1", "central-large"
    methods = tuple(
        results(name, finals) for name, finals in ((plain, [2.0]), (small, [3.0]), (large, [1.0]))
    )
    methods[0].runs[0]["validation_loss"] = 4.0
    grid = {plain: {0.1: 3.0, 0.2: 2.5}, small: {0.1: 2.7, 0.2: 9.0}, large: {0.1: 0.0}}
    comparison = ComparisonResults({}, methods, grid, {plain: 0.2, small: 0.1, large: 0.1})
    strongest = comparison.strongest_central()
    assert strongest is not None
    assert strongest.name == small


def test_losses_are_interpolated_at_equal_bytes() -> None:
    curve = {"loss": [4.0, np.nan, 3.0, 3.5], "bytes_per_peer": [0.0, 1e6, 2e6, 4e6], "round": [0, 1, 2, 3]}
    ring = results("ring", [3.5], curve)
    for budget, loss in ((0.0, 4.0), (5e5, 3.75), (2e6, 3.0), (3e6, 3.0), (1e9, 3.0)):
        assert loss_within(ring, budget).mean == pytest.approx(loss)
    limits = budgets(ComparisonResults({}, (ring,), {}, {}))
    assert limits == pytest.approx([2e6, 5e6])


def test_what_is_spent_until_the_target_is_interpolated_and_may_never_be() -> None:
    central = results("central", [2.0, 2.0])  # from 6: the target is 2.2
    curve = {
        "loss": [6.0, np.nan, 2.6, 2.1, 2.0],
        "tokens_per_peer": [0.0, 1e3, 2e3, 4e3, 5e3],
        "bytes_per_peer": [0.0, 1e6, 2e6, 4e6, 5e6],
        "merging": [0, 0, 0, 0, 1],
    }
    ring, stuck = (
        results("ring", [1.9, 2.4], curve),
        results("base:1", [2.5, 2.5], {**curve, "loss": [6, 5, 4, 3, 2]}),
    )
    manifest = {"spec": {"comparison": {"until": "converged"}}}
    methods = central, ring, stuck
    comparison = ComparisonResults(manifest, methods, {}, dict.fromkeys(("central", "ring", "base:1"), 0.1))
    spent = spent_until_target(comparison, ring, "tokens_per_peer")
    assert spent.mean == pytest.approx(2e3 + 2e3 * 0.4 / 0.5)
    assert spent_until_target(comparison, stuck, "tokens_per_peer").mean is None  # only the merge gets there
    above = above_central(comparison, ring, "final_loss")
    assert above.mean == pytest.approx((-0.05 + 0.2) / 2)
    rows = convergence_table(comparison).rows
    shown = dict(zip(rows[0], rows[2], strict=True))
    assert shown["MB a peer to 95 %"] == "3.6 ± 0"
    assert rows[3][-1] == "not reached on 2 of 2"
    fixed = dataclasses.replace(comparison, manifest={"spec": {"comparison": {}}})
    assert len(convergence_table(fixed).rows) == 1


def test_rates_are_chosen_by_the_mean_over_seeds(small: Comparison) -> None:
    trial = small.evaluation(dict.fromkeys(small.all_methods(), 1e-2))[0]
    finals: list[tuple[Trial, float | None]] = []
    for rate, losses in ((0.3, (2.0, 2.0)), (0.1, (1.0, 3.0)), (0.9, (0.5, None))):
        finals += [
            (dataclasses.replace(trial, learning_rate=rate, seed=1000 + seed), loss)
            for seed, loss in enumerate(losses)
        ]
    grid = grid_of(finals)
    assert grid == {trial.method: {0.1: 2.0, 0.3: 2.0, 0.9: np.inf}}
    rates = choose_rates(grid)
    assert rates == {trial.method: 0.1}  # of equal means the smaller; one that diverges once is out
    tuned = Tuned(rates, grid)
    assert "the edge of the widest grid" in tuned.says(trial.method)
    assert tuned._replace(rates={trial.method: 0.3}).says(trial.method) == "learning rate 0.3: local"
    with pytest.raises(LocalError, match="diverges at every learning rate"):
        choose_rates(grid_of(finals[-2:]))


def test_grids_are_widened_step_by_step_until_the_best_rate_is_inside_or_at_a_bound() -> None:
    def widest(loss: Callable[[float], float], widenings: int) -> list[float]:
        base, tried = [0.01, 0.02, 0.04], dict[float, float]()
        grid: Sequence[float] = base
        for _ in range(20):
            tried = {rate: loss(rate) for rate in grid}
            if (wider := wider_grids({"ring": tried}, base, widenings)["ring"]) == sorted(grid):
                return wider
            assert len(wider) == len(grid) + 1  # one more of one side
            grid = wider
        raise AssertionError("it never stops")

    assert widest(lambda rate: (rate - 0.02) ** 2, 4) == [0.01, 0.02, 0.04]
    assert widest(lambda rate: (rate - 0.08) ** 2, 4) == [0.01, 0.02, 0.04, 0.08, 0.16]
    assert widest(lambda rate: rate, 2) == [0.0025, 0.005, 0.01, 0.02, 0.04]
    assert widest(lambda rate: -rate, 1) == [0.01, 0.02, 0.04, 0.08]
    assert widest(lambda rate: -rate, 0) == [0.01, 0.02, 0.04]
    diverging = widest(lambda rate: -rate if rate < 0.1 else np.inf, 4)
    assert diverging == [0.01, 0.02, 0.04, 0.08, 0.16]  # 0.16 is no edge to go beyond
    assert widest(lambda rate: rate if rate < 0.009 else np.inf, 4)[0] == 0.000625


def test_a_wider_grid_is_run_and_the_search_begins_again_where_it_stopped(
    done: Path, tmp_path: Path, small: Comparison
) -> None:
    out = tmp_path / "wider"
    shutil.copytree(done, out)
    wide = dataclasses.replace(small, widenings=1, seeds=1)
    tuned, left = compare(out, wide)
    assert left[0] == 0  # the grid to begin with is there
    assert left[1] == len(wide.all_methods())  # of two rates, each is an edge
    assert {len(losses) for losses in tuned.grid.values()} <= {3, 4}
    again, left = compare(out, wide)
    assert again == tuned
    assert set(left) == {0}


def test_tables_name_the_edge_of_the_grid(done: Path, small: Comparison) -> None:
    comparison = read_comparison_results(done)
    rows = {table.title: table.rows for table in tables(comparison)}
    assert all("(edge: the widest grid)" in row[-1] for row in rows["Learning rates"][1:])
    assert [row[0] for row in rows["Results"][1:]] == ["base model", *small.all_methods()]
    assert {row[0]: row[1] for row in rows["Results"][2:]} == {
        "local": "alone",
        "central": "equal tokens",
        "central-large": "equal time",
        "fedavg": "server",
        "fedopt": "server",
        "complete merge=none": "peers",
        "ring codec=int8 local_steps=1": "peers",
    }
    against = ["minus local", "minus central", "minus central-large", "minus fedavg"]
    assert rows["Paired differences"][0][1:5] == against
