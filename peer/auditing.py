"""The audit at the end of a run: what do the adapters that others have, or had, tell of our own rows?

Looked at are our own adapter as last trained, which neighbors read; ours after the last round of mixing; the final one;
and the last ones that came from a few neighbors, into which ours had been mixed. All are kept in memory only, and
what is found out is told to the user alone. The statistics are ``training/leakage.py``'s.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import torch
import trio

from gossip.adapter import AdapterSpec, AdapterState
from gossip.errors import LocalError
from gossip.events import RoundReport
from peer.audit_event import Audited
from peer.training.frames import RowLosses
from peer.training.leakage import ROWS_MIN, Figures, figures

RECEIVED_KEPT = 2
"""Neighbors whose last adapters are kept for the audit, those heard of last. Source: ours; each costs as much memory
as an adapter, and half a minute at the end with SmolLM2 on one core."""
FEW_HELD_OUT = 100
"""Fewer rows held out cannot show a single false positive at 1 %."""


class NoAudit(LocalError):
    """The adapters of a run cannot be audited; the run itself is none the worse for it."""


class MeasuresRows(Protocol):
    """What measures an adapter on single rows of ours; None = it cannot."""

    async def row_losses(self, state: AdapterState) -> RowLosses | None: ...


class SeenAdapters:
    """The adapters of a run that are audited at its end.

    Args:
        initial: the adapter that all peers began with.
        is_wanted: whether there will be an audit; without it nothing is kept.
    """

    def __init__(self, initial: AdapterState, *, is_wanted: bool) -> None:
        self._initial = initial
        self._is_wanted = is_wanted
        self._mixed: AdapterState | None = None
        self._received: dict[str, AdapterState] = {}

    def completed(self, report: RoundReport, name: Callable[[str], str]) -> None:
        """Take note of a round; ``name``: peer -> what the user calls it."""
        if not self._is_wanted or report.merging:
            return
        self._mixed = report.state
        for peer, state in report.received:
            if _is_part(state.spec, self._initial.spec):  # ranks may differ
                self._received.pop(name(peer), None)
                self._received[name(peer)] = self._initial.with_selected(state)
        for peer in list(self._received)[:-RECEIVED_KEPT]:
            del self._received[peer]

    def all(self, own: AdapterState | None, final: AdapterState) -> dict[str, AdapterState]:
        """Return what is audited, by what it is called, the finished one first; none twice.

        Args:
            own: ours as last trained; None if that was before a restart.
            final: the one that the run ends with.
        """
        candidates = {"finished": final, "mixed": self._mixed, "own": own}
        candidates |= {f"received from {peer}": state for peer, state in self._received.items()}
        found: dict[str, AdapterState] = {}
        for called, state in candidates.items():
            if state is not None and not any(torch.equal(state.flat, other.flat) for other in found.values()):
                found[called] = state
        return found


async def audit(
    trainer: MeasuresRows,
    initial: AdapterState,
    adapters: Mapping[str, AdapterState],
    tell: Callable[[Audited], None],
) -> None:
    """Measure adapters on our rows, and tell of each.

    Args:
        initial: the adapter that all peers began with, which knows nothing of anybody's rows.
        adapters: what is audited, by what it is called.
        tell: called with each outcome as it is there.

    Raises:
        NoAudit: the trainer measures no single rows, or there are too few; the message says what to do.
    """
    before = await trainer.row_losses(initial)
    if before is None:
        raise NoAudit(
            "no audit: this --trainer measures no single rows. Give it a method row_losses (MeasuresRows in "
            "peer/training/trainers.py), or audit the finished adapter with `peer audit`"
        )
    if min(len(before.members), len(before.held_out)) < ROWS_MIN:
        raise NoAudit(
            f"no audit: of our rows {len(before.members)} are learned and {len(before.held_out)} held out, and fewer "
            f"than {ROWS_MIN} of either say nothing. Give more rows, or raise --held-out"
        )
    for called, state in adapters.items():
        started = trio.current_time()
        losses = await trainer.row_losses(state)
        assert losses is not None  # as it was before
        tell(_told(called, figures(losses, before), trio.current_time() - started))


def warnings(audits: list[Audited]) -> str | None:
    """Return what a user must know who reads the outcomes; None if nothing."""
    if not audits or audits[0].held_out >= FEW_HELD_OUT:
        return None
    return (
        f"the audit had {audits[0].held_out} held-out rows: with fewer than {FEW_HELD_OUT} the share found at 1 % "
        "false alarms says little; what it did not find may be there all the same (docs/audit.md)"
    )


def _told(called: str, found: Figures, seconds: float) -> Audited:
    membership, planted = found.membership, found.exposure
    one, five = (membership.true_positives[rate] for rate in (0.01, 0.05))
    return Audited(
        adapter=called,
        members=membership.members,
        held_out=membership.others,
        auc=membership.auc.value,
        auc_interval=(membership.auc.low, membership.auc.high),
        tpr_1=one.value,
        tpr_1_interval=(one.low, one.high),
        tpr_5=five.value,
        tpr_5_interval=(five.low, five.high),
        canaries=planted.planted if planted else 0,
        exposure_mean=planted.mean if planted else None,
        exposure_highest=planted.highest if planted else None,
        exposure_chance=planted.chance_mean if planted else None,
        exposure_limit=planted.limit if planted else None,
        seconds=seconds,
    )


def _is_part(spec: AdapterSpec, whole: AdapterSpec) -> bool:
    return set(spec.entries) <= set(whole.entries)
