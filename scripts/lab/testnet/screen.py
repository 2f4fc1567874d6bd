"""What is shown while a network runs: a live table on a terminal, a line per round and evaluation elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from peer.journal_words import megabytes
from scripts.lab.testnet.config import TestnetConfig
from scripts.lab.testnet.view import Evaluation, PeerView, RoundReport, Watch

REDRAW_S = 0.2
"""Least time between two drawings, seconds, but for rounds and evaluations. Source: guess; four peers tell of eight
steps a second."""


@contextmanager
def watching(console: Console) -> Iterator[Watch]:
    """Yield what ``run_testnet`` calls after every event."""
    if not console.is_terminal:
        yield lambda view, happened: _print(console, view, happened)
        return
    with Live(console=console, refresh_per_second=4) as live:
        yield LiveTable(live).watch


def _print(console: Console, view: PeerView, happened: str) -> None:
    who = f"{view.planned.regime:13} {view.planned.name:12}"
    if happened == "round" and view.round is not None:
        console.print(f"{who} {_round_line(view.round)}")
    elif happened == "eval":
        console.print(f"{who} {_evaluation_line(view.evaluations[-1])}")


def _round_line(report: RoundReport) -> str:
    what = "merge" if report.loss is None else f"loss {report.loss:.3f}"
    traffic = f"read {len(report.mixed)} in {megabytes(report.bytes_in)}"
    return f"round {report.round}/{report.rounds} {what} {traffic}"


def _evaluation_line(evaluation: Evaluation) -> str:
    right = ""
    if evaluation.accuracy is not None:
        right = f"; right labels own {evaluation.accuracy:.1%}, over all {evaluation.accuracy_all:.1%}"
    losses = f"own {evaluation.own:.3f}, over all {evaluation.all:.3f}"
    return f"after round {evaluation.round}: held-out loss {losses}{right}"


class LiveTable:
    """The table of the regime that runs."""

    def __init__(self, live: Live) -> None:
        self._live = live
        self._views: dict[tuple[str, str], PeerView] = {}
        self._drawn_at = 0.0

    def watch(self, view: PeerView, happened: str) -> None:
        """Draw again, if it is worth it or the last time is long enough ago."""
        self._views[view.planned.regime, view.planned.name] = view
        if happened in ("round", "eval", "finished") or time.monotonic() - self._drawn_at > REDRAW_S:
            self._drawn_at = time.monotonic()
            self._live.update(table_of(view.planned.regime, list(self._views.values())))


def table_of(regime: str, views: list[PeerView]) -> Table:
    """Return the table of one regime's peers; with columns of right labels, if labels are what is learned."""
    table = Table(title=f"{regime} learning", title_justify="left")
    shown = [view for view in views if view.planned.regime == regime]
    labels = any(view.evaluations and view.evaluations[-1].accuracy is not None for view in shown)
    losses = ("loss own", "loss all", *(("right own", "right all") if labels else ()))
    for column in ("peer", "doing", "round", "step", *losses, "read from", "in", "out", "age"):
        table.add_column(column, justify="left" if column in ("peer", "doing", "read from") else "right")
    for view in shown:
        table.add_row(
            view.planned.name, view.doing, *_progress(view), *_quality(view, labels), *_traffic(view)
        )
    return table


def _progress(view: PeerView) -> tuple[str, str]:
    return (
        f"{view.round.round}/{view.round.rounds}" if view.round else "",
        f"{view.step.step}/{view.step.steps}" if view.step else "",
    )


def _quality(view: PeerView, labels: bool) -> list[str]:
    if not view.evaluations:
        return [""] * (4 if labels else 2)
    latest = view.evaluations[-1]
    shares = (latest.accuracy, latest.accuracy_all) if labels else ()
    return [
        f"{latest.own:.3f}",
        f"{latest.all:.3f}",
        *("" if share is None else f"{share:.1%}" for share in shares),
    ]


def _traffic(view: PeerView) -> tuple[str, str, str, str]:
    if view.round is None:
        return ("", "", "", "")
    read_from = ", ".join(view.round.mixed)
    return (
        read_from,
        megabytes(view.round.bytes_in),
        megabytes(view.round.bytes_out),
        f"{view.round.age} steps",
    )


def prepare_model(config: TestnetConfig, console: Console) -> None:
    """Make, or fetch and convert, the base model once, with a progress bar, before all processes ask for it at once.

    Raises:
        LocalError: it cannot be had.
    """
    from peer.training import base_models, fresh_models

    model = config.from_scratch or config.model
    columns = (TextColumn("[bold]{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(f"base model {model}", total=None)

        def report(stage: str, done: float | None) -> None:
            progress.update(
                task, description=f"base model {model}: {stage}", total=1.0, completed=done or 0.0
            )

        if config.from_scratch:
            source = fresh_models.resolve(config.from_scratch, fresh_models.BYTES, config.seed, report)
        else:
            source = base_models.resolve(model, progress=report)
    console.print(f"base model {source.name} is ready")
