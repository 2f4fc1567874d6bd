"""How well a network learned, in figures: the content of ``summary.json``."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.lab.testnet.config import Regime, TestnetConfig
from scripts.lab.testnet.view import PeerView


@dataclass(frozen=True, slots=True)
class PeerSummary:
    """How one peer of the gossip regime ended: its last evaluation and its traffic since its start."""

    name: str
    peer_id: str
    rounds: int
    loss_own: float
    loss_all: float
    accuracy_own: float | None
    accuracy_all: float | None
    bytes_in: int
    bytes_out: int
    fetches_ok: int
    fetches_failed: int
    adapter: str


@dataclass(frozen=True, slots=True)
class Summary:
    """What came out of a testnet.

    Attributes:
        config: the options it was run with, and the machine's cores.
        wall_s: wall time of all regimes, seconds.
        base_loss .. gossip_loss_worst: held-out loss, the mean over all shards, nats a token or labeled text; of
            regimes with several peers the mean of theirs; None = a baseline that was not run.
        base_accuracy .. gossip_accuracy_worst: the same of right labels, 0 to 1; None where nothing is classified.
        consensus_distance: of the peers' adapters at the end, relative to the norm of their mean.
    """

    config: Mapping[str, Any]
    wall_s: float
    base_loss: float
    local_loss: float | None
    central_loss: float | None
    gossip_loss_mean: float
    gossip_loss_worst: float
    base_accuracy: float | None
    local_accuracy: float | None
    central_accuracy: float | None
    gossip_accuracy_mean: float | None
    gossip_accuracy_worst: float | None
    consensus_distance: float
    peers: tuple[PeerSummary, ...]

    @property
    def target(self) -> str:
        """What a loss is measured per."""
        return "token" if self.base_accuracy is None else "text"

    def record(self) -> dict[str, Any]:
        """Return the content of ``summary.json``."""
        return {**dataclasses.asdict(self), "peers": [dataclasses.asdict(peer) for peer in self.peers]}


def summarize(config: TestnetConfig, views: Mapping[Regime, Sequence[PeerView]], wall_s: float) -> Summary:
    """Return what came out.

    Args:
        views: of peers that have finished; their adapters are read.
    """
    gossip = views["gossip"]
    base = gossip[0].evaluations[0]
    losses = {regime: [view.evaluations[-1].all for view in peers] for regime, peers in views.items()}
    accuracies = {
        regime: [
            view.evaluations[-1].accuracy_all
            for view in peers
            if view.evaluations[-1].accuracy_all is not None
        ]
        for regime, peers in views.items()
    }
    return Summary(
        config={**_plain(config), "cpus": os.cpu_count()},
        wall_s=round(wall_s, 1),
        base_loss=base.all,
        local_loss=_mean(losses.get("local")),
        central_loss=_mean(losses.get("central")),
        gossip_loss_mean=sum(losses["gossip"]) / len(losses["gossip"]),
        gossip_loss_worst=max(losses["gossip"]),
        base_accuracy=base.accuracy_all,
        local_accuracy=_mean(accuracies.get("local")),
        central_accuracy=_mean(accuracies.get("central")),
        gossip_accuracy_mean=_mean(accuracies["gossip"]),
        gossip_accuracy_worst=min(accuracies["gossip"], default=None),
        consensus_distance=consensus_distance([view.planned.home / "adapter" for view in gossip]),
        peers=tuple(_peer_summary(view) for view in gossip),
    )


def _peer_summary(view: PeerView) -> PeerSummary:
    final, report = view.evaluations[-1], view.round
    assert report is not None, "a peer that finished had a round"
    return PeerSummary(
        name=view.planned.name,
        peer_id=view.planned.peer_id,
        rounds=report.round,
        loss_own=final.own,
        loss_all=final.all,
        accuracy_own=final.accuracy,
        accuracy_all=final.accuracy_all,
        bytes_in=report.bytes_in,
        bytes_out=report.bytes_out,
        fetches_ok=report.fetches_ok,
        fetches_failed=report.fetches_failed,
        adapter=str((view.planned.home / "adapter").resolve()),
    )


def consensus_distance(adapters: Sequence[Path]) -> float:
    """Return the root mean square distance of adapters to their mean, relative to the norm of the mean.

    Args:
        adapters: folders of PEFT adapters of one shape.
    """
    import torch
    from safetensors.torch import load_file

    from gossip.adapter import AdapterState

    vectors = [
        AdapterState.from_tensors(load_file(next(path.glob("*model.safetensors")))).flat.double()
        for path in adapters
    ]
    mean = torch.stack(vectors).mean(dim=0)
    squares = [float((vector - mean).square().sum()) for vector in vectors]
    return math.sqrt(sum(squares) / len(squares)) / float(torch.linalg.vector_norm(mean))


def _mean(values: Sequence[float] | None) -> float | None:
    return sum(values) / len(values) if values else None


def _plain(config: TestnetConfig) -> dict[str, Any]:
    """Return the options as JSON has them."""
    options = dataclasses.asdict(config)
    return {name: list(value) if isinstance(value, tuple) else value for name, value in options.items()} | {
        "out": str(config.out)
    }
