"""Figures of a chaos run and whether they hold; where a fault-free run of the same seed is there, compared with it.

A figure that a run says nothing about (no restart, no reference) is left out. Bars: ux-reliability.md, part B4.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from gossip.fault_kinds import BitFlips, Byzantine, Restart
from scripts.lab.chaos.processes import LEAVE_S, Life, PeerProcess
from scripts.lab.chaos.run import Record

LEFT_EXIT_CODE = 143
"""Of a peer that was told to leave."""
REJOIN_S = 10.0
ROUNDS_LOST = 1
DESCRIPTORS_MORE = 16
"""Descriptors that a survivor may have more at the end than once it was warm: connections come and go."""
WARM_S = 30.0
"""A peer is warm so long after its start, and after a third of the run."""
CONSENSUS_TIMES = 2.0
LOSS_TIMES = 1.05
EXCHANGES_SHARE = 0.5
WIRE_FAULTS = ("malformed", "oversized", "shape", "digest")
"""Reasons that no honest peer gives."""
LAST_SHARE = 0.1
"""Consensus is compared over the last tenth of the runs."""


class Figure(NamedTuple):
    """One line of the verdict; ``holds``: None = there is no bar."""

    name: str
    value: str
    bar: str
    holds: bool | None


@dataclass(frozen=True, slots=True)
class Rejoin:
    """A peer's return: seconds from its process's start to its first exchange, and rounds that it had to repeat."""

    peer: str
    seconds: float
    rounds_lost: int


def judge(record: Record, reference: Record | None = None) -> list[Figure]:
    """Return the figures of a run, compared with those of one without faults."""
    lives = [(peer, life) for peer in record.peers.values() for life in peer.lives]
    by_itself = [f"{peer.name}: {life.exit_code}" for peer, life in lives if not _was_expected(life)]
    figures = [
        _none("peers that ended by themselves", by_itself),
        _none("processes left over", list(map(str, record.left_over))),
        Figure("honest peers alive at the end", f"{len(survivors(record))} of {len(record.peers)}", "", None),
        _leaving(record),
        *_rejoining(record),
        *_resources(record),
        _wire_faults(record),
    ]
    return figures + (_compared(record, reference) if reference else [])


def _none(name: str, found: Sequence[str]) -> Figure:
    return Figure(name, ", ".join(found) or "none", "none", not found)


def _leaving(record: Record) -> Figure:
    """Say how many of those that were told to leave at the end had to be killed."""
    late = [peer.name for peer in survivors(record) if peer.lives[-1].exit_code != LEFT_EXIT_CODE]
    return Figure(f"peers that took more than {LEAVE_S:g} s to leave", ", ".join(late) or "none", "", None)


def _was_expected(life: Life) -> bool:
    return life.was_told and life.exit_code in (0, -9, LEFT_EXIT_CODE)


def survivors(record: Record) -> list[PeerProcess]:
    """Return the peers whose last process ran until the end of the run, and that were honest."""
    return [
        peer
        for peer in record.peers.values()
        if peer.lives[-1].was_told and peer.lives[-1].ended_s >= record.spec.seconds and not peer.cheats_by
    ]


# -- coming back


def rejoins(record: Record) -> tuple[list[Rejoin], int]:
    """Return how each restart went, and how many had no time for an exchange."""
    done, undone = [], 0
    for peer in record.peers.values():
        for before, life in zip(peer.lives, peer.lives[1:], strict=False):
            first = next((at_s for at_s, event in _of(life, "round") if event["mixed"]), None)
            if first is None:
                undone += 1
                continue
            reached = max((event["round"] + 1 for _, event in _of(before, "round")), default=0)
            resumed = next((event["round"] for _, event in _of(life, "resumed")), 0)
            done.append(Rejoin(peer.name, first - life.started_s, max(0, reached - resumed)))
    return done, undone


def _of(life: Life, kind: str) -> Iterator[tuple[float, dict[str, Any]]]:
    return ((at_s, event) for at_s, event in life.events if event["event"] == kind)


def _rejoining(record: Record) -> list[Figure]:
    done, undone = rejoins(record)
    if not done:
        return []
    seconds = sorted(rejoin.seconds for rejoin in done)
    p95 = seconds[math.ceil(0.95 * len(seconds)) - 1]
    lost = max(rejoin.rounds_lost for rejoin in done)
    loses_more = any(
        isinstance(injection.kind, BitFlips) or (isinstance(injection.kind, Restart) and injection.kind.older)
        for _, _, injection in record.happened
    )
    unfinished = f", {undone} had no time for it" if undone else ""
    return [
        Figure(
            "from restart to first exchange, p95", f"{p95:.1f} s of {len(done)}{unfinished}",
            f"<= {REJOIN_S:g} s", p95 <= REJOIN_S,
        ),
        Figure("the median of these", f"{statistics.median(seconds):.1f} s", "", None),
        Figure(
            "rounds repeated after a restart, most", str(lost), "" if loses_more else f"<= {ROUNDS_LOST}",
            None if loses_more else lost <= ROUNDS_LOST,
        ),
    ]  # fmt: skip


# -- what they take


def _resources(record: Record) -> list[Figure]:
    more, memory = [], []
    for peer in survivors(record):
        warm_s = max(record.spec.seconds / 3, peer.lives[-1].started_s + WARM_S)
        warm = [sample for sample in peer.samples if sample.at_s >= warm_s]
        if len(warm) >= 2:
            more.append(warm[-1].descriptors - warm[0].descriptors)
            memory.append((warm[-1].rss_bytes - warm[0].rss_bytes) / 2**20)
    if not more:
        return []
    is_flat = max(more) <= DESCRIPTORS_MORE
    return [
        Figure("descriptors more than when warm, most", str(max(more)), f"<= {DESCRIPTORS_MORE}", is_flat),
        Figure("memory more than when warm, most", f"{max(memory):.1f} MiB", "", None),
    ]


def _wire_faults(record: Record) -> Figure:
    """Sum up what was refused as no honest peer's, over all lives."""
    count = 0
    for peer in record.peers.values():
        for life in peer.lives:
            last = [event for _, event in _of(life, "round")][-1:]
            count += sum(event["rejected"].get(reason, 0) for event in last for reason in WIRE_FAULTS)
    return _barred("protocol errors", str(count), "none", count == 0, record)


def _barred(name: str, value: str, bar: str, holds: bool | None, record: Record) -> Figure:
    """Return a figure that has its bar only where all members are honest: others may spoil it."""
    if any(isinstance(injection.kind, Byzantine) for _, _, injection in record.happened):
        return Figure(name, value, "", None)
    return Figure(name, value, bar, holds)


# -- against the run without faults


def _compared(record: Record, reference: Record) -> list[Figure]:
    figures = []
    ours, usual = _last_consensus(record), _last_consensus(reference)
    if ours is not None and usual:
        times = ours / usual
        measured = f"{times:.2f} ({ours:.4f} / {usual:.4f})"
        name, bar = "consensus distance at the end / without faults", f"<= {CONSENSUS_TIMES:g}"
        figures.append(_barred(name, measured, bar, times <= CONSENSUS_TIMES, record))
    losses = losses_at_equal_rounds(record, reference)
    if losses:
        round, loss, without = losses
        name, measured = (
            f"held-out loss after {round} rounds / without faults",
            f"{loss / without:.3f} ({loss:.4f})",
        )
        most = record.spec.loss_times or LOSS_TIMES
        figure = Figure(name, measured, f"<= {most:g}", loss <= most * without)
        figures.append(figure if record.spec.loss_times else _barred(*figure, record))
    share = exchanges(record) / (exchanges(reference) or math.inf)
    figures.append(
        Figure(
            "exchanges / without faults",
            f"{share:.0%}",
            f">= {EXCHANGES_SHARE:.0%}",
            share >= EXCHANGES_SHARE,
        )
    )
    return figures


def _last_consensus(record: Record) -> float | None:
    late = [value for at_s, value in record.consensus if at_s >= (1 - LAST_SHARE) * record.spec.seconds]
    return statistics.median(late) if late else None


def losses(peer: PeerProcess) -> dict[int, tuple[float, float]]:
    """Return round -> (time, held-out loss over all files) of a peer; of a round measured twice, the last counts."""
    return {
        event["round"]: (at_s, statistics.fmean([event["own"], *event["per_file"].values()]))
        for life in peer.lives
        for at_s, event in _of(life, "eval")
    }


def losses_at_equal_rounds(record: Record, reference: Record) -> tuple[int, float, float] | None:
    """Return the last round that all survivors of both runs have measured, and its mean losses; None = none."""
    measured = [[losses(peer) for peer in survivors(each)] for each in (record, reference)]
    if not all(measured):
        return None
    common = set.intersection(*(set(curve) for curves in measured for curve in curves))
    if not common:
        return None
    last = max(common)
    ours, usual = (statistics.fmean(curve[last][1] for curve in curves) for curves in measured)
    return last, ours, usual


def exchanges(record: Record) -> int:
    """Return how many adapters were read, over all lives."""
    return sum(
        event["fetches_ok"]
        for peer in record.peers.values()
        for life in peer.lives
        for _, event in [*_of(life, "round")][-1:]
    )
