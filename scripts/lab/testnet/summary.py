"""How well a network learned, in figures: the content of ``summary.json``, whose names are those of ``Summary``."""

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

EQUAL_TOKENS = "equal tokens"
"""As many tokens as all peers together, in steps of a peer's batch: as many times a peer's steps as there are peers."""
EQUAL_TIME = "equal time"
"""A peer's number of steps, each on as many times its batch: what takes a peer's time where there is a peer's machine
for each part of a batch."""


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
class CurvePoint:
    """What a process measured on its way.

    Attributes:
        tokens: what all processes of its regime had trained on by then; see ``PlannedPeer.round_tokens``.
        seconds: wall time since its training began, without measurements.
        loss: held-out, the mean over all shards.
    """

    regime: str
    peer: str
    tokens: int
    seconds: float
    loss: float


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the table: a loss, compared.

    Attributes:
        name: of the row in ``summary.json``.
        title: for people.
        budget: what central training has as much of as all peers together; empty for what is not central.
        gain: by how much its loss is below the base model's.
        share: of the gain of the strongest central training; None without one, or if that has gained nothing.
        accuracy: share of right labels, 0 to 1; None where nothing is classified.
    """

    name: str
    title: str
    budget: str
    loss: float
    gain: float
    share: float | None
    accuracy: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What came out of a testnet. ``summary.json`` has these fields, and what ``record`` adds.

    Attributes:
        config: the options it was run with, and the machine's cores.
        interrupted: whether the user ended it after gossip, before the last baseline.
        wall_s: wall time of all regimes, seconds.
        base_loss .. gossip_loss_worst: held-out loss, the mean over all shards, nats a token or labeled text; of
            regimes with several peers the mean of theirs; None = a baseline that was not run. ``central`` has equal
            tokens in small steps, ``central_large`` equal time.
        base_accuracy .. gossip_accuracy_worst: the same of right labels, 0 to 1; None where nothing is classified.
        consensus_distance: of the peers' adapters at the end, relative to the norm of their mean.
        peers: those of the gossip regime.
        curves: of every process, in the order in which it measured.
    """

    config: Mapping[str, Any]
    interrupted: bool
    wall_s: float
    base_loss: float
    local_loss: float | None
    central_loss: float | None
    central_large_loss: float | None
    gossip_loss_mean: float
    gossip_loss_worst: float
    base_accuracy: float | None
    local_accuracy: float | None
    central_accuracy: float | None
    central_large_accuracy: float | None
    gossip_accuracy_mean: float | None
    gossip_accuracy_worst: float | None
    consensus_distance: float
    peers: tuple[PeerSummary, ...]
    curves: tuple[CurvePoint, ...]

    @property
    def target(self) -> str:
        """What a loss is measured per."""
        return "token" if self.base_accuracy is None else "text"

    @property
    def strongest(self) -> str | None:
        """The row of the central training with the lower loss; None if there was none."""
        central = {"central": self.central_loss, "central_large": self.central_large_loss}
        known = {name: loss for name, loss in central.items() if loss is not None}
        return min(known, key=lambda name: known[name]) if known else None

    def rows(self) -> list[Row]:
        """Return the rows of the table, without baselines that were not run."""
        labels = ", random head" if self.base_accuracy is not None else ""
        table = (
            ("base", f"base model{labels}", "", self.base_loss, self.base_accuracy),
            ("local", "local only", "", self.local_loss, self.local_accuracy),
            ("gossip_mean", "gossip, mean of peers", "", self.gossip_loss_mean, self.gossip_accuracy_mean),
            ("gossip_worst", "gossip, worst peer", "", self.gossip_loss_worst, self.gossip_accuracy_worst),
            (
                "central_large",
                "central, large batch",
                EQUAL_TIME,
                self.central_large_loss,
                self.central_large_accuracy,
            ),
            ("central", "central, small batch", EQUAL_TOKENS, self.central_loss, self.central_accuracy),
        )
        losses = {name: loss for name, _, _, loss, _ in table}
        best = losses[self.strongest] if self.strongest else None
        whole = self.base_loss - best if best is not None else 0.0
        rows = []
        for name, title, budget, loss, accuracy in table:
            if loss is not None:
                gain = self.base_loss - loss
                rows.append(
                    Row(name, title, budget, loss, gain, gain / whole if whole > 0 else None, accuracy)
                )
        return rows

    def record(self) -> dict[str, Any]:
        """Return the content of ``summary.json``: all fields, and of what is derived from them ``strongest``, and
        ``gains`` and ``shares`` (of the strongest central training's gain), each by the names of ``rows``."""
        rows = self.rows()
        return {
            **dataclasses.asdict(self),
            "peers": [dataclasses.asdict(peer) for peer in self.peers],
            "curves": [dataclasses.asdict(point) for point in self.curves],
            "strongest": self.strongest,
            "gains": {row.name: row.gain for row in rows},
            "shares": {row.name: row.share for row in rows},
        }


def summarize(
    config: TestnetConfig,
    views: Mapping[Regime, Sequence[PeerView]],
    wall_s: float,
    *,
    interrupted: bool = False,
) -> Summary:
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
        interrupted=interrupted,
        wall_s=round(wall_s, 1),
        base_loss=base.all,
        local_loss=_mean(losses.get("local")),
        central_loss=_mean(losses.get("central")),
        central_large_loss=_mean(losses.get("central-large")),
        gossip_loss_mean=sum(losses["gossip"]) / len(losses["gossip"]),
        gossip_loss_worst=max(losses["gossip"]),
        base_accuracy=base.accuracy_all,
        local_accuracy=_mean(accuracies.get("local")),
        central_accuracy=_mean(accuracies.get("central")),
        central_large_accuracy=_mean(accuracies.get("central-large")),
        gossip_accuracy_mean=_mean(accuracies["gossip"]),
        gossip_accuracy_worst=min(accuracies["gossip"], default=None),
        consensus_distance=consensus_distance([view.planned.home / "adapter" for view in gossip]),
        peers=tuple(_peer_summary(view) for view in gossip),
        curves=tuple(point for peers in views.values() for view in peers for point in _curve(view)),
    )


def _curve(view: PeerView) -> list[CurvePoint]:
    regime, name = view.planned.regime, view.planned.name
    return [
        CurvePoint(regime, name, point.tokens, round(point.seconds, 2), point.all)
        for point in view.evaluations
    ]


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
