"""The picture of a testnet: held-out loss of every regime, against tokens and against seconds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from scripts.lab.testnet.summary import CurvePoint, Summary

COLORS: Mapping[str, str] = {
    "gossip": "tab:blue",
    "local": "tab:orange",
    "central": "tab:green",
    "central-large": "tab:purple",
}

Curves = Mapping[str, Mapping[str, Sequence[CurvePoint]]]
"""The curve of every process, by its name."""


def write_curves(summary: Summary, path: Path) -> None:
    """Draw the picture to a PNG."""
    draw_curves(summary).savefig(path, dpi=130)


def draw_curves(summary: Summary) -> Figure:
    """Draw loss over all shards against tokens of all peers together, and against seconds of training."""
    figure = Figure(figsize=(11, 5), layout="constrained")
    tokens, seconds = figure.subplots(1, 2, sharey=True)
    curves = _curves(summary)
    _draw(tokens, summary, curves, lambda point: point.tokens / 1000)
    _draw(seconds, summary, curves, lambda point: point.seconds)
    tokens.set_xlabel("tokens trained on by all peers together (thousands)")
    cores = summary.config["cpus"]
    seconds.set_xlabel(f"seconds of training, without measurements (one machine, {cores} cores)")
    tokens.set_ylabel(f"held-out loss over all shards (nats per {summary.target})")
    # Below both, where it covers no curve; they have the same lines.
    figure.legend(*tokens.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    return figure


def _curves(summary: Summary) -> dict[str, dict[str, list[CurvePoint]]]:
    curves: dict[str, dict[str, list[CurvePoint]]] = {}
    for point in summary.curves:
        curves.setdefault(point.regime, {}).setdefault(point.peer, []).append(point)
    return curves


def _draw(axes: Axes, summary: Summary, curves: Curves, place: Callable[[CurvePoint], float]) -> None:
    """Draw every process faintly, and the mean of those of a regime; ``place``: where a point is on the axis."""
    for regime, peers in curves.items():
        color = COLORS[regime]
        if len(peers) > 1:
            for points in peers.values():
                axes.plot(
                    [place(point) for point in points],
                    [point.loss for point in points],
                    color=color,
                    alpha=0.25,
                )
        together = list(zip(*peers.values(), strict=True))
        losses = [_mean([point.loss for point in points]) for points in together]
        places = [_mean([place(point) for point in points]) for points in together]
        label = f"{regime}: {losses[-1]:.3f}" + (" (mean of peers)" if len(peers) > 1 else "")
        axes.plot(places, losses, "o-", color=color, label=label, ms=4)
    axes.axhline(summary.base_loss, color="gray", ls=":", label=f"base model: {summary.base_loss:.3f}")
    axes.grid(alpha=0.3)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
