"""Training from scratch in real processes: killed in the warm-up, restarted, and joined late."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import torch
from test_three_peers import PeerProcess, invitation_of

from peer.training.inference import continued, load_adapter

ROUNDS = 4000
FLAGS = (
    f"--rounds {ROUNDS} --local-steps 2 --batch-size 2 --accumulate 2 --max-length 32 --schedule cosine "
    "--warmup-steps 40 --checkpoint-every 3 --eval-every 100000 --mixing age --topology complete --check-rows 0"
).split()


def write(path: Path) -> Path:
    rows = (f"{path.stem} counts: {number}, {number + 1}, {number + 2} and so on." for number in range(60))
    path.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    return path


@pytest.mark.timeout(300)
def test_a_killed_peer_loses_three_rounds_at_most_and_a_late_one_mixes(tmp_path: Path) -> None:
    texts = {name: write(tmp_path / f"{name}.jsonl") for name in ("first", "second", "late")}
    peers: list[PeerProcess] = []

    def start(name: str, *flags: str) -> PeerProcess:
        model = ("--from-scratch", "nano")
        peers.append(PeerProcess(name, tmp_path / name, texts[name], [*FLAGS, *flags], model=model))
        return peers[-1]

    try:
        first = start("first")
        joining = [*invitation_of(first), "--join-timeout-s", "60"]
        second = start("second", *joining)
        second.until("round", peers=1, round=8)
        second.process.send_signal(signal.SIGKILL)
        assert second.end() == -signal.SIGKILL
        rounds = [event for event in second.seen if event["event"] == "round"]
        assert {event["round"] % 3 for event in rounds if event["saved"]} == {2}, "each third, from 0"
        lost_at = rounds[-1]["round"] + 1
        again = start("second", *joining)
        resumed = again.until("resumed")["round"]
        assert lost_at - 3 <= resumed <= lost_at + 2
        assert resumed % 3 == 0
        assert first.until("round", round=30)
        late = start("late", *joining)
        mixed = late.until("round", peers=2)
        while not mixed["mixed"]:
            mixed = late.until("round")
        for peer in (first, again, late):
            peer.process.send_signal(signal.SIGINT)
        for peer in (first, again, late):
            assert peer.end() == 128 + signal.SIGINT
    finally:
        for peer in peers:
            peer.kill()
    model, _ = load_adapter(tmp_path / "first" / "adapter")
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
    said = continued(tmp_path / "first" / "adapter", "first counts:", 40, seed=0)
    assert said.strip()
    assert said == continued(tmp_path / "first" / "adapter", "first counts:", 40, seed=0)
