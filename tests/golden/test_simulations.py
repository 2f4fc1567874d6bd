"""Event logs of whole simulated networks: every message, byte and moment of them is as it was.

Their hashes hold the bytes of floating-point sums, which may differ between kinds of processor. On another kind than
the one that wrote the file, everything but the values is compared exactly, and the values nearly.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gossip.events import RoundReport
from gossip.methods.method_set import MethodNames
from gossip.quadratic import Quadratic, positions
from gossip.simulated_network import LinkModel

GOLDEN = Path(__file__).with_name("simulations.json")
LOSSY = LinkModel(loss=0.1)
NETWORKS = {
    "ring": Quadratic(peers=8, rounds=10),
    "epidemic with loss": Quadratic(peers=12, topology="epidemic:3", rounds=8, links=LOSSY, seed=1),
    "asynchronous": Quadratic(peers=8, topology="epidemic:3", rounds=10, collect_s=0.0, links=LOSSY),
    "overlap": Quadratic(peers=9, topology="torus", rounds=8, overlap=True),
    "merge": Quadratic(peers=6, topology="ring", rounds=5, methods=MethodNames(merge="average")),
    "merge of many": Quadratic(peers=20, topology="ring", rounds=3, methods=MethodNames(merge="product")),
    "int8": Quadratic(peers=8, rounds=8, dimension=40, methods=MethodNames(codec="int8")),
    "int4 with error feedback": Quadratic(
        peers=8, rounds=8, dimension=40, methods=MethodNames(codec="int4", merge="average")
    ),
    "topk with replicas": Quadratic(
        peers=8,
        rounds=12,
        dimension=64,
        methods=MethodNames(codec="topk:0.1", feedback="replica"),
        links=LOSSY,
    ),
    "age": Quadratic(peers=8, topology="epidemic:2", rounds=8, methods=MethodNames(mixing="age")),
    "staleness": Quadratic(
        peers=8, topology="epidemic:2", rounds=8, methods=MethodNames(mixing="staleness"), links=LOSSY
    ),
    "push-sum": Quadratic(
        peers=8, topology="exponential", rounds=12, methods=MethodNames(mixing="push-sum"), links=LOSSY
    ),
    "symmetric-drop": Quadratic(peers=8, rounds=8, methods=MethodNames(mixing="symmetric-drop"), links=LOSSY),
    "qg": Quadratic(peers=8, rounds=8, methods=MethodNames(optimizer="qg")),
    "k-gt": Quadratic(peers=8, rounds=8, methods=MethodNames(optimizer="k-gt")),
    "d2": Quadratic(peers=8, weights="lazy", rounds=8, methods=MethodNames(optimizer="d2"), links=LOSSY),
    "noloco": Quadratic(
        peers=8, topology="random-matching", rounds=8, methods=MethodNames(optimizer="noloco")
    ),
    "diloco": Quadratic(peers=8, topology="complete", rounds=8, methods=MethodNames(optimizer="diloco")),
    "fedexp": Quadratic(peers=8, rounds=8, methods=MethodNames(optimizer="fedexp")),
    "fedadam": Quadratic(
        peers=8, topology="epidemic:3", rounds=8, methods=MethodNames(optimizer="fedadam:0.1")
    ),
    "similar": Quadratic(peers=10, topology="similar:3", rounds=8),
}


def story_of(network: Quadratic) -> dict[str, Any]:
    """Run a network and return what is said of it."""
    rounds = hashlib.sha256()

    def on_report(now: float, peer: str, report: RoundReport) -> None:
        said = (now.hex(), peer, report.round, report.merging, report.age, report.failed, report.objections,
                report.payload_bytes, [(sender, round) for sender, round, _ in report.mixed])  # fmt: skip
        rounds.update(repr(said).encode())

    simulation = network.simulation(on_report)
    simulation.run()
    return {
        "events": simulation.events,
        "rounds": rounds.hexdigest(),
        "log_hash": simulation.log_hash,
        "mean": positions(simulation, network.names).double().mean(dim=0).tolist(),
    }


def test_event_logs_are_unchanged(golden: Callable[[str, Any], None], request: pytest.FixtureRequest) -> None:
    stories = {name: story_of(network) for name, network in NETWORKS.items()}
    processor = torch.backends.cpu.get_cpu_capability()
    if not request.config.getoption("--rewrite-golden"):
        recorded = json.loads(GOLDEN.read_text())
        if recorded["processor"] != processor:
            for name, story in stories.items():
                before = recorded["stories"][name]
                np.testing.assert_allclose(story.pop("mean"), before.pop("mean"), rtol=1e-4, atol=1e-6)
                del story["log_hash"], before["log_hash"]
                assert story == before, name
            return
    golden("simulations.json", {"processor": processor, "stories": stories})
