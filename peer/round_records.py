"""What stays of a round: a checkpoint on disk, where the others were last, the word to them, a line in the journal."""

from __future__ import annotations

from gossip.events import RoundReport
from gossip.settings import NodeSnapshot
from peer.checkpoint_files import Checkpoint
from peer.checkpoints import PEERS, HomeError
from peer.exchange import Traffic
from peer.journal import Journal
from peer.membership import Membership
from peer.prepared_run import PreparedRun
from peer.saving import Saving
from peer.telling import rollouts_shared, round_done


class RoundRecords:
    """Writes down rounds as they end.

    Args:
        run: the run; what was saved of it before is where it goes on.
        membership: who is there; it is told how far we are.
        traffic: counts that go into the journal.
        journal: where rounds are told.
    """

    def __init__(self, run: PreparedRun, membership: Membership, traffic: Traffic, journal: Journal) -> None:
        self.saving = Saving(run, journal)
        """Checkpoints, on a disk that may refuse them."""
        self._run = run
        self._membership = membership
        self._traffic = traffic
        self._journal = journal
        self._remembered: tuple[str, ...] = ()

    async def write(self, report: RoundReport, snapshot: NodeSnapshot, rounds: int) -> Checkpoint | None:
        """Write down a round.

        Args:
            report: the round.
            snapshot: the node's own state after it.
            rounds: how many there will be in all.

        Returns:
            its checkpoint, which survives kill -9 and power loss; None if the disk refused it.

        Raises:
            HomeError: the disk has refused too often, or there is no home any more.
        """
        checkpoint = await self.saving.save(
            report.state, snapshot, has_trained=not report.merging, is_healthy=report.is_healthy
        )
        self._remember_peers()
        self._membership.progressed(snapshot.round)
        for peer, reason in report.failed:
            if reason == "late":
                self._membership.suspect(peer)
        saved = checkpoint is not None
        self._journal.emit(round_done(report, rounds, saved, self._membership, self._traffic))
        if report.rollouts:
            self._journal.emit(rollouts_shared(report.round, report.rollouts, self._membership))
        return checkpoint

    def _remember_peers(self) -> None:
        others = self._membership.addresses_to_remember()
        if others and others != self._remembered:
            kept = self._run.home.path / PEERS
            try:
                self._run.home.remember_peers(others)
            except HomeError as error:
                self.saving.complain(kept, error)
            else:
                self._remembered = others
                self.saving.settle(kept)
