"""Agents in the laboratory: trials in one process, their table, and what the demo starts and shows."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from peer.network.identity import is_peer_id
from scripts.lab.agents import demo, tables
from scripts.lab.agents.trial import METHODS, Method, Outcome, Setting, Trial, run_trial
from scripts.lab.records import table_of
from scripts.lab.testnet.config import TestnetConfig
from scripts.lab.testnet.plan import PlannedPeer
from scripts.lab.testnet.view import Evaluation, PeerView, RoundReport


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of base models that all trials of this file share."""
    return tmp_path_factory.mktemp("bases")


def outcome(bases: Path, method: Method, setting: Setting = "one") -> Outcome:
    trial = Trial(
        setting=setting,
        method=method,
        rounds=2,
        local_steps=1,
        learning_rate=1e-3,
        taught_steps=150,
        own=2,
        external=2,
    )
    return run_trial(trial, bases, eval_each=8)._replace(seconds=0.0)


def test_a_liar_among_four_changes_nothing_but_what_is_read(bases: Path) -> None:
    lied_to, without = outcome(bases, "hostile"), outcome(bases, "without-one")
    assert lied_to.dropped == 3 * 2 * 96
    assert without.dropped == 0
    assert lied_to.read_bytes > without.read_bytes
    assert (lied_to.start, lied_to.all, lied_to.own) == (without.start, without.all, without.own)


def test_what_is_read_depends_on_what_is_shared(bases: Path) -> None:
    found = {method: outcome(bases, method) for method in METHODS[:6]}
    assert len({one.start for one in found.values()}) == 1
    assert found["isolated"].read_bytes == found["central"].read_bytes == 0
    weights = found["weights"].read_bytes
    assert weights == 2 * 3 * 4 * 98752
    assert 0 < found["rollouts"].read_bytes < 0.01 * weights
    assert found["both"].read_bytes > weights
    assert outcome(bases, "rollouts") == found["rollouts"], "everything is seeded"


def test_the_table_pairs_trials_over_seeds() -> None:
    outcomes = {
        ("one", "isolated", seed): Outcome(0.5, value, 0.8, 0.0, 0, 1.0)
        for seed, value in enumerate((0.5, 0.6))
    }
    outcomes |= {
        ("one", "rollouts", seed): Outcome(0.5, value, 0.7, 2000.0, 0, 1.0)
        for seed, value in enumerate((0.7, 0.9, 1.0))
    }
    record = tables.record(outcomes, "made here")
    assert list(record.rows) == ["one isolated", "one rollouts"]
    assert record.at("one isolated", "all skills") == {
        "mean": 0.55,
        "half": pytest.approx(0.6353, abs=1e-3),
        "n": 2,
    }
    assert record.at("one isolated", "over alone") is None
    gain = record.at("one rollouts", "over alone")
    assert gain == {"mean": pytest.approx(0.25), "half": pytest.approx(0.6353, abs=1e-3), "n": 2}
    last = table_of(record, {"columns": ["all skills", "kB read", "seeds"]})[-1]
    assert last == "| a skill each: answers | 0.867 ± 0.379 | 2 | 3 |"


# -- the demo


def value_of(planned: PlannedPeer, flag: str) -> str:
    return planned.flags[planned.flags.index(flag) + 1]


def test_every_regime_takes_as_many_answers_a_step(tmp_path: Path) -> None:
    config = TestnetConfig(task="agent", out=tmp_path, rounds=7, options=("--seed", "3"))
    for regime in demo.REGIMES:
        planned = demo.plan(config, regime)
        groups = sum(int(value_of(one, "--own")) + int(value_of(one, "--external")) for one in planned)
        assert groups == demo.GROUPS * len(demo.SKILLS)
        for one in planned:
            assert value_of(one, "--rounds") == "7"
            assert [word for word in one.flags if word == "--seed"] == ["--seed"]
            assert value_of(one, "--eval-tasks") == "reverse,sort,shift,swap"
        if regime == "central":
            assert [value_of(one, "--tasks") for one in planned] == ["reverse,sort,shift,swap"]
        else:
            assert [value_of(one, "--tasks") for one in planned] == list(demo.SKILLS)
        if "share" in demo.REGIMES[regime]:
            assert all(is_peer_id(one.peer_id) for one in planned)
            assert value_of(planned[1], "--share") == regime


def views() -> list[PeerView]:
    found = []
    for skill, shares in zip(demo.SKILLS, (0.4, 0.5, 0.6, 0.7), strict=True):
        view = PeerView(PlannedPeer(skill, "rollouts", Path(), ()), 4)
        view.round = RoundReport(12, 12, 0.5, 120, (), 2000, 0, 0, 0)
        view.evaluations = [
            Evaluation(0, 0.5, 0.5, 0.9, 0.3, 0, 0.0),
            Evaluation(12, 0.5, 0.5, 0.9, shares, 0, 1.0),
        ]
        found.append(view)
    return found


def test_results_are_means_over_agents() -> None:
    result = demo.result_of("rollouts", views(), 12.34)
    assert result.all == pytest.approx(0.55)
    assert result.own == pytest.approx(0.9)
    assert result.others == pytest.approx((4 * 0.55 - 0.9) / 3)
    assert result.curve == ((0, pytest.approx(0.3)), (12, pytest.approx(0.55)))
    assert (result.read_bytes, result.seconds) == (2000, 12.3)
    central = demo.result_of("central", views()[:1], 1.0)
    assert central.others is None
    assert demo.picture(0.3, [result, central]).startswith(b"\x89PNG")
    printed = io.StringIO()
    shown = [{"question": "sort ba:", "base": "ba wrong", "rollouts": "ab right"}]
    demo.print_results(0.3, [result, central], shown, Console(file=printed, width=200))
    assert "55.0%" in printed.getvalue()
    assert "ab right" in printed.getvalue()
