"""Checkpoints on a disk that may refuse them: training goes on, the next rounds try again, and somebody is told.

A full disk costs nothing but what a crash meanwhile would cost: what is in memory is as good as before. So a refusal is
told and tried again with a later round, ever more rarely. Only after many does the peer end, because a machine that
nobody looks after would otherwise learn for days in vain. The adapter for others to load follows each checkpoint.
"""

from __future__ import annotations

from pathlib import Path

import trio

from gossip.adapter import AdapterState
from gossip.settings import NodeSnapshot
from peer.checkpoint_files import TRAINER_STATE, Checkpoint
from peer.checkpoints import HomeError, HomeGone
from peer.journal import Journal
from peer.journal_events import Note
from peer.prepared_run import PreparedRun

REFUSALS_MAX = 20
"""Refused checkpoints in a row after which a peer ends; at least 14 minutes, and 20 rounds of longer ones. Guess."""
KEPT = 2
"""Checkpoints kept of an adapter where the user says nothing. Source: one may be found corrupt."""
RETRY_S_MAX = 60.0
"""Longest wait before the next try, seconds; the first is 1 s, each next one twice as long. Source: guess."""


class Saving:
    """Saves rounds of a run.

    Args:
        run: the run; its checkpoint is the newest until a round has been saved.
        journal: where refusals are told.
    """

    def __init__(self, run: PreparedRun, journal: Journal) -> None:
        self.checkpoint = run.checkpoint
        """The newest complete one; None before the first."""
        self._run = run
        self._home = run.home
        self._journal = journal
        self._thread = trio.CapacityLimiter(1)  # nothing that others can delay may wait in the same row
        self._refusals = 0
        self._due_at = 0.0
        self._unsaved: tuple[AdapterState, NodeSnapshot] | None = None
        self._complaints: dict[Path, str] = {}

    def trainer_file(self, round: int) -> Path | None:
        """Return where the training process saves its state in ``round``, in a fresh folder; None: not in this round.

        Raises:
            HomeError: the disk has refused too often, or there is no home any more.
        """
        if not self._is_due(round):
            return None
        try:
            return self._home.begin(round + 1) / TRAINER_STATE
        except HomeError as error:
            self._take_refusal(error)
            return None

    def keep_trainer_file(self, round: int) -> None:
        """Let the checkpoint after ``round``, in which training came to nothing, have the file of the one before."""
        if self._is_due(round):
            try:
                self._home.begin(round + 1, self.checkpoint.trainer_state if self.checkpoint else None)
            except HomeError as error:
                self._take_refusal(error)

    def _is_due(self, round: int) -> bool:
        """Whether a round is to be saved: each so many, and the last that trains; and the disk may be asked again."""
        options = self._run.plan.config.run
        is_turn = (
            (round + 1) % options.checkpoint_every == 0 or round + 1 >= options.rounds or self._refusals > 0
        )
        return is_turn and trio.current_time() >= self._due_at

    def trainer_refused(self, round: int, reason: str) -> None:
        """Take note that the training process could not save its state in ``round``; raises as ``trainer_file``."""
        self._home.check()
        self._home.abandon(round + 1)
        self._take_refusal(HomeError(reason))

    async def save(
        self,
        state: AdapterState,
        snapshot: NodeSnapshot,
        *,
        has_trained: bool = True,
        is_healthy: bool = False,
    ) -> Checkpoint | None:
        """Save a round; if a checkpoint is returned, it survives kill -9 and power loss.

        Args:
            state: the adapter after the round.
            snapshot: the node's own state after it.
            has_trained: whether the training process was given ``trainer_file`` in this round; if not, its state is
                that of the newest checkpoint.
            is_healthy: the adapter was found in order.

        Returns:
            the checkpoint, or None if the disk did not take it, now or just before.

        Raises:
            HomeError: the disk has refused too often, or there is no home any more.
        """
        self._unsaved = state, snapshot
        self._home.check()
        try:
            if not has_trained and self.checkpoint and trio.current_time() >= self._due_at:
                self._home.begin(snapshot.round, self.checkpoint.trainer_state)
            if not self._home.has_begun(snapshot.round):
                return None
            checkpoint = await self._commit(state, snapshot, is_healthy)
        except HomeError as error:
            self._take_refusal(error)
            return None
        await self.export()
        return checkpoint

    async def export(self) -> None:
        """Bring ``HOME/adapter`` up to the newest checkpoint; a refusal is told, and mended by the next call.

        Raises:
            HomeGone: there is no home any more.
        """
        if self.checkpoint is None:
            return
        try:
            await self._export(self.checkpoint.state)
        except HomeError as error:
            self.complain(self._home.adapter, error)
        else:
            self.settle(self._home.adapter)

    async def finish(self) -> None:
        """Save what the disk refused before, and bring ``HOME/adapter`` up to date, even if the former is in vain.

        Raises:
            HomeError: the disk still refuses.
        """
        refusal: HomeError | None = None
        state = self.checkpoint.state if self.checkpoint else None
        if self._unsaved:
            state, snapshot = self._unsaved
            if self.checkpoint:  # without one there is no state of the training process to go on from
                try:
                    self._home.begin(snapshot.round, self.checkpoint.trainer_state)
                    await self._commit(state, snapshot)
                except HomeError as error:
                    refusal = error
        if state is not None:
            await self._export(state)
        if refusal:
            raise refusal

    def complain(self, about: Path, error: HomeError) -> None:
        """Tell a refusal that costs nothing but the file ``about``; the same one only once.

        Raises:
            HomeGone: it was that.
        """
        if isinstance(error, HomeGone):
            raise error
        if self._complaints.get(about) != str(error):
            self._journal.emit(Note(text=f"{error}. It will be tried again after the next round"))
        self._complaints[about] = str(error)

    def settle(self, about: Path) -> None:
        """Tell that ``about`` could be written, if it was complained about before."""
        if self._complaints.pop(about, None):
            self._journal.emit(Note(text=f"{about} is up to date again"))

    async def _commit(
        self, state: AdapterState, snapshot: NodeSnapshot, is_healthy: bool = False
    ) -> Checkpoint:
        run = self._run
        checkpoint = await trio.to_thread.run_sync(
            self._home.commit,
            state,
            snapshot,
            run.manifest.fields(),
            run.ready.export,
            run.plan.config.run.keep_checkpoints or (1 if run.ready.export.is_whole else KEPT),
            is_healthy,
            limiter=self._thread,
        )
        if self._refusals:
            self._journal.emit(
                Note(text=f"the checkpoint of round {checkpoint.round} is saved; all is well again")
            )
        self.checkpoint, self._unsaved = checkpoint, None
        self._refusals, self._due_at = 0, 0.0
        return checkpoint

    async def _export(self, state: AdapterState) -> None:
        home, export = self._home, self._run.ready.export
        await trio.to_thread.run_sync(home.export, home.adapter, state, export, limiter=self._thread)

    def _take_refusal(self, error: HomeError) -> None:
        saved = f"the last complete checkpoint is of round {self.checkpoint.round}" if self.checkpoint else ""
        if isinstance(error, HomeGone):
            raise error
        self._refusals += 1
        if self._refusals >= REFUSALS_MAX:
            raise HomeError(
                f"{error}; tried {self._refusals} times. {saved or 'No checkpoint is complete'}: start again to go on"
            ) from error
        wait_s = min(RETRY_S_MAX, 2.0 ** (self._refusals - 1))
        self._due_at = trio.current_time() + wait_s
        self._journal.emit(
            Note(
                text=f"{error}. Training goes on unsaved ({saved or 'no checkpoint is complete yet'}); "
                f"the next try is in {wait_s:g} s"
            )
        )
