"""The page of a chaos run: its verdict, faults over the curves of loss and consensus, and how every process ended."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from scripts.lab.chaos.judge import Figure, losses
from scripts.lab.chaos.run import Record
from scripts.lab.figures import new_figure, png
from scripts.lab.files import write_file
from scripts.lab.page import Rows, html_page, html_pictures, html_table, html_verbatim

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MARK = {True: "holds", False: "FAILS", None: ""}
LATER_S = 0.02
"""A fault of a moment is drawn as wide as this share of the run."""


def verdict_rows(figures: Sequence[Figure]) -> Rows:
    """Return the verdict as a table."""
    return [
        ("", "measured", "bar", ""),
        *((name, value, bar, MARK[holds]) for name, value, bar, holds in figures),
    ]


def write_report(record: Record, reference: Record | None, figures: Sequence[Figure], out: Path) -> None:
    """Write the page."""
    ends = [("peer", "started, s", "ended, s", "exit code", "rounds"), *_lives(record)]
    faults = [("at, s", "until, s", "what"), *_faults(record)]
    words = "\n".join(
        f"{peer.name}:\n{life.last_words}"
        for peer in record.peers.values()
        for life in peer.lives
        if life.last_words
    )
    spec = record.spec
    body = (
        f"<p>{spec.peers} peers for {spec.seconds:g} s, seed {spec.seed}; {record.backend}.</p>"
        + html_table(verdict_rows(figures))
        + html_pictures({"Loss and consensus under faults": _picture(record, reference)})
        + "<h2>Faults</h2>" + html_table(faults)
        + "<h2>Processes</h2>" + html_table(ends)
        + (html_verbatim("Last words of those that ended by themselves", words) if words else "")
    )  # fmt: skip
    write_file(out, html_page("Chaos", body).encode())


def _lives(record: Record) -> list[tuple[str, ...]]:
    return [
        (peer.name, f"{life.started_s:.1f}", f"{life.ended_s:.1f}", str(life.exit_code),
         str(sum(event["event"] == "round" for _, event in life.events)))
        for peer in record.peers.values()
        for life in peer.lives
    ]  # fmt: skip


def _faults(record: Record) -> list[tuple[str, ...]]:
    return [
        (f"{start:.1f}", "" if end is None else f"{end:.1f}", injection.title)
        for start, end, injection in sorted(record.happened, key=lambda happened: happened[0])
    ]


def _picture(record: Record, reference: Record | None) -> bytes:
    figure, (loss, consensus) = new_figure(9, 6.5, rows=2)
    for each, color, label in ((record, "tab:blue", "with faults"), (reference, "tab:gray", "without")):
        if each is None:
            continue
        for place, peer in enumerate(each.peers.values()):
            points = sorted(losses(peer).values())
            loss.plot(*_columns(points), color=color, alpha=0.5, lw=0.9, label="" if place else label)
        consensus.plot(*_columns(each.consensus), color=color, label=label)
    loss.set_ylabel("held-out loss, each peer")
    consensus.set_ylabel("consensus distance")
    consensus.set_xlabel("seconds since all peers were there")
    consensus.set_yscale("log")
    for axes in (loss, consensus):
        _shade(axes, record)
        axes.set_xlim(0, record.spec.seconds)
    loss.legend(frameon=False, fontsize=8)
    return png(figure)


def _columns(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [at_s for at_s, _ in points], [value for _, value in points]


def _shade(axes: Axes, record: Record) -> None:
    """Draw every fault as a span."""
    seconds = record.spec.seconds
    for start, end, _ in record.happened:
        until = seconds if end is None else max(end, start + LATER_S * seconds / 4)
        axes.axvspan(start, until, color="tab:red", alpha=0.12, lw=0)
