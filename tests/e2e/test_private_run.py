"""Two real peers with differential privacy: one trains within its budget, one has none left and goes on mixing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_three_peers import PeerProcess, invitation_of

from peer.privacy.accounting import epsilon
from peer.privacy.charge import Charge
from peer.privacy.ledger import Ledger
from peer.training import data
from scripts.lab import corpus

FLAGS = [
    "--rounds",
    "3",
    "--local-steps",
    "2",
    "--dp-epsilon",
    "8",
    "--dp-delta",
    "1e-3",
    "--eval-every",
    "1000",
]


def spend(home: Path, file: Path, charge: Charge) -> list[Charge]:
    """Charge all rows of a file, of which training takes some, and return what they have been charged for."""
    with Ledger.open(home) as ledger:
        units = ledger.digests((data.said(row).encode() for row in data.load([file]).rows), file.name)
        if charge.steps:
            ledger.charge(units, charge, "an earlier run")
        return ledger.spent(units)


@pytest.mark.timeout(200)
def test_who_has_spent_its_budget_mixes_what_the_other_learns(tmp_path: Path) -> None:
    corpus.write(tmp_path, ("german", "french"))
    files = {name: tmp_path / f"{name}.jsonl" for name in ("german", "french")}
    homes = {name: tmp_path / name for name in files}
    for home in homes.values():
        home.mkdir()
    (before,) = spend(homes["german"], files["german"], Charge(0.5, 1.0, 10))
    flags, peers = [*FLAGS, "--wait-peers", "1"], []
    try:
        for name, home in homes.items():
            joining = [*flags, *invitation_of(peers[0]), "--join-timeout-s", "60"] if peers else flags
            peers.append(PeerProcess(name, home, files[name], joining))
        codes = [peer.end() for peer in peers]
    finally:
        for peer in peers:
            peer.kill()
    spent, learned = peers
    assert codes == [0, 0], spent.stderr() + learned.stderr()
    said = {peer.name: [event["text"] for event in peer.seen if event["event"] == "note"] for peer in peers}
    assert len([text for text in said["german"] if "goes on mixing what others learn" in text]) == 1
    assert any(text.startswith("differential privacy of every row: epsilon 8") for text in said["french"])
    rounds = {peer.name: [event for event in peer.seen if event["event"] == "round"] for peer in peers}
    assert [event["loss"] for event in rounds["german"]] == [None] * 4
    assert [event["loss"] is None for event in rounds["french"]] == [False] * 3 + [True], (
        "the last is the merge"
    )
    assert all(event["mixed"] == ["french"] for event in rounds["german"])
    assert spend(homes["german"], files["german"], Charge(1.0, 1.0, 0)) == [before]
    charges = spend(homes["french"], files["french"], Charge(1.0, 1.0, 0))
    assert sum(charge.steps for charge in charges) == 6
    assert 7.9 < epsilon(charges, 1e-3) <= 8
    adapters = {(home / "adapter" / "adapter_model.safetensors").read_bytes() for home in homes.values()}
    assert len(adapters) == 1, "both end with what one of them has learned"
    started = json.loads((homes["german"] / "adapter" / "adapter_config.json").read_text())
    assert started["peft_type"] == "LORA"
