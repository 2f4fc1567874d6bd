"""The comparison under differential privacy: its cheap model is the model, rates are tuned, what was done is kept."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from gossip.errors import LocalError
from peer.privacy.ledger import Ledger
from peer.training import tiny_model
from scripts.lab.comparison import cached_model, command, private
from scripts.lab.comparison.private import TUNING_SEED, Trial, compare, results, run_trial, table
from scripts.lab.records import records_in, table_of
from scripts.lab.workloads import Sample, Workload


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the comparison be of four peers, on phrases, with a random encoder of two layers."""
    from transformers import BertConfig, BertModel

    folder = tmp_path / "encoder"
    tokenizer = tiny_model.byte_tokenizer()
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=96, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    samples = [
        Sample(
            {"text": f"{'number' if index % 2 else 'x'} {index}", "label": "ab"[index % 2]}, "ab"[index % 2]
        )
        for index in range(120)
    ]
    settings = {
        "model": str(folder),
        "task": "classification",
        "threads": 1,
        "device": "cpu",
        "lora_target_modules": ("query", "value"),
        "max_length": 16,
    }
    workload = Workload(lambda report: samples, settings, "iid", "phrases")
    monkeypatch.setattr(private, "parse_workload", lambda name: workload)
    monkeypatch.setattr(cached_model, "LAST", "1")
    for name, value in {"PEERS": 4, "STEPS": 16, "BATCH": 8, "TOPOLOGY": "complete"}.items():
        monkeypatch.setattr(private, name, value)
    private.prepared.cache_clear()
    private.frozen.cache_clear()


def test_all_ways_learn_and_promises_are_kept_by_the_ledger(
    small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    charged = []
    charge = Ledger.charge

    def watched(self: Ledger, units: object, one: object, run: str) -> None:
        charged.append(one)
        charge(self, units, one, run)  # type: ignore[arg-type]

    monkeypatch.setattr(Ledger, "charge", watched)
    found = {way: run_trial(Trial(way, math.inf, 3e-2, 0)) for way in private.WAYS}
    assert not charged
    assert min(found.values()) > 0.8, found
    assert 0.4 < run_trial(Trial("central", 8.0, 3e-2, 0)) <= 1.0
    assert [one.steps for one in charged] == [2] * 8
    run_trial(Trial("gossip", 8.0, 3e-2, 0))
    assert len(charged) == 8 + 4 * 8


def test_the_cheap_model_is_checked_against_the_whole_one(
    small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cached_model, "lora_part", lambda module, x: torch.ones(()))
    with pytest.raises(LocalError, match="is written for MiniLM"):
        private.prepared(0)


def test_rates_are_chosen_on_a_seed_of_their_own_and_finished_runs_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[Trial] = []

    def measured(trial: Trial) -> float:
        if len(ran) == 30:
            raise LocalError("broken off")
        ran.append(trial)
        better = {"alone": 0.0, "gossip": 0.05, "central": 0.1}[trial.way]
        return 0.5 + better + 0.01 * (trial.seed % 10) - abs(math.log10(trial.rate / 3e-2)) / 10

    monkeypatch.setattr(private, "run_trial", measured)
    assert (
        command.main(["privacy", "--out", str(tmp_path), "--seeds", "2"], "compare.py")
        == LocalError.exit_code
    )
    assert len(results(tmp_path)) == 30
    monkeypatch.setattr(private, "run_trial", lambda trial: (ran.append(trial), 0.6)[1])
    assert len(list(compare(tmp_path, 2))) == 15, "27 to tune and 18 to compare, less what was done"
    assert {trial.rate for trial in results(tmp_path) if trial.seed != TUNING_SEED} == {3e-2}
    lines = table(tmp_path)
    assert lines[0] == "| epsilon | alone | gossip | central | gossip minus alone |"
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| none promised", "| 8", "| 2"]
    assert "(rate 0.03)" in lines[2]
    assert lines == table_of(records_in(tmp_path)("record"), {})
    assert capsys.readouterr().err.startswith("alone, epsilon inf, rate 0.003, seed 1000: ")
