"""What stays of a round: a checkpoint on disk, where the others were last, the word to them, a line in the journal."""

from __future__ import annotations

from pathlib import Path

import trio

from gossip.events import RoundReport
from gossip.settings import NodeSnapshot
from peer.checkpoints import TRAINER_STATE, Checkpoint
from peer.exchange import Traffic
from peer.journal import Journal
from peer.membership import Membership
from peer.prepared_run import PreparedRun
from peer.telling import round_done


class RoundRecords:
    """Writes down rounds as they end.

    Args:
        run: the run; its checkpoint is the newest until a round has been written.
        membership: who is there; it is told how far we are.
        traffic: counts that go into the journal.
        journal: where rounds are told.
    """

    def __init__(self, run: PreparedRun, membership: Membership, traffic: Traffic, journal: Journal) -> None:
        self.checkpoint = run.checkpoint
        """The newest; None before the first round of a new run."""
        self._run = run
        self._membership = membership
        self._traffic = traffic
        self._journal = journal
        self._remembered: tuple[str, ...] = ()

    def trainer_file(self, round: int) -> Path:
        """Return where the training process saves its state in ``round``, in a fresh folder."""
        return self._run.home.begin(round + 1) / TRAINER_STATE

    def keep_trainer_file(self, round: int) -> None:
        """Let the checkpoint after ``round``, in which training came to nothing, have the file of the one before."""
        self._run.home.begin(round + 1, self.checkpoint.trainer_state if self.checkpoint else None)

    async def write(self, report: RoundReport, snapshot: NodeSnapshot, rounds: int) -> Checkpoint:
        """Write down a round; when this returns, it survives kill -9 and power loss.

        Args:
            report: the round.
            snapshot: the node's own state after it.
            rounds: how many there will be in all.
        """
        if report.merging and self.checkpoint:
            self._run.home.begin(snapshot.round, self.checkpoint.trainer_state)
        run = self._run
        checkpoint = await trio.to_thread.run_sync(
            run.home.commit,
            report.state,
            snapshot,
            run.manifest.fields(),
            run.ready.export,
            run.plan.config.run.keep_checkpoints,
            report.is_healthy,
        )
        self.checkpoint = checkpoint
        self._remember_peers()
        self._membership.progressed(snapshot.round)
        for peer, reason in report.failed:
            if reason == "late":
                self._membership.suspect(peer)
        self._journal.emit(round_done(report, rounds, self._membership, self._traffic))
        return checkpoint

    def _remember_peers(self) -> None:
        others = self._membership.addresses_up()
        if others and others != self._remembered:
            self._run.home.remember_peers(others)
            self._remembered = others
