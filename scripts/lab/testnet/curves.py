"""The picture of a testnet: held-out loss against rounds, every regime."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from scripts.lab.testnet.config import Regime
from scripts.lab.testnet.run import Views
from scripts.lab.testnet.summary import Summary
from scripts.lab.testnet.view import PeerView

COLORS: dict[Regime, str] = {"gossip": "tab:blue", "local": "tab:orange", "central": "tab:green"}


def write_curves(views: Views, summary: Summary, path: Path) -> None:
    """Draw loss over all shards against rounds, every regime, to a PNG."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for regime, peers in views.items():
        _draw_regime(axes, regime, peers)
    axes.axhline(summary.base_loss, color="gray", ls=":", label=f"base model: {summary.base_loss:.3f}")
    axes.set_xlabel("round")
    axes.set_ylabel(f"held-out loss over all shards (nats per {summary.target})")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150)


def _draw_regime(axes: Axes, regime: Regime, peers: Sequence[PeerView]) -> None:
    """Draw every peer faintly, and the mean of them."""
    color = COLORS[regime]
    curves = [[evaluation.all for evaluation in view.evaluations] for view in peers]
    for view, losses in zip(peers, curves, strict=True):
        axes.plot(_rounds(view), losses, color=color, alpha=0.25, lw=1)
    mean = [sum(losses) / len(losses) for losses in zip(*curves, strict=True)]
    label = f"{regime}: {mean[-1]:.3f}" + (" (mean of peers)" if len(peers) > 1 else "")
    axes.plot(_rounds(peers[0]), mean, "o-", color=color, label=label, ms=4)


def _rounds(view: PeerView) -> list[int]:
    return [evaluation.round for evaluation in view.evaluations]
