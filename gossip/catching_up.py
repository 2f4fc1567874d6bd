"""Before its first round, a peer that comes late takes over what the others have: nobody reads it before that.

An adapter that has learned nothing, mixed with a weight of a quarter or a half into those of a group that has, costs
the group what many rounds have gained. So whoever comes to a run under way asks up to ``ASKED`` members for their
present adapters (kind ``whole``), whatever travels in rounds, and goes on from their coordinate-wise median in the
round that the lower median of them is in: of three or four one may lie. What came is guarded as in a round, and not
kept if our own held-out rows are worse off with it than with the adapter that all began with. If nobody answers, the
first round is round 0, from that adapter. A restart goes on from its checkpoint: mixing brings it up to the others.
Only where changes travel, which bring nobody up, it asks as well.

A machine within the node's, as ``round_end.py``: it says what to ask and to measure, and in the end what to begin with.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from gossip.adapter import AdapterState
from gossip.errors import RemoteError
from gossip.events import (
    Action,
    Check,
    Checked,
    Event,
    Fetch,
    Fetched,
    FetchFailed,
    Penalize,
    SetTimer,
    TimerFired,
)
from gossip.health import Health
from gossip.methods.contribution import Contribution
from gossip.neighbor import NOTHING_MIXED, Neighbors
from gossip.settings import NodeSettings
from gossip.whole_adapters import WholeAdapters

ASKED = 4
"""Members asked at most. Source: ours; of four one may lie, and a newcomer reads no more than in a round."""
BEHIND = 2
"""Rounds that others are ahead of whoever asks. Source: ours; peers that begin together are a round apart at times."""
WAIT_S = 60.0
"""Longest wait for them, seconds. Source: as a round waits by default."""
TIMER = -1
"""Stands for the round of our timer: no round has it."""


@dataclass(frozen=True, slots=True)
class CaughtUp:
    """How it has ended: where to begin; ``state`` None = where we are.

    Args:
        state: the adapter to begin with.
        round: to begin with.
        age: local steps that went into the adapter, by the word of those whom it is from.
        complaints: about those who sent what nobody sends.
    """

    state: AdapterState | None
    round: int
    age: int
    complaints: tuple[Action, ...] = ()


class CatchingUp:
    """One peer's coming to a run under way.

    Args:
        me: our peer id.
        settings: of the node.
        health: knows the adapter that all began with, and says whether our held-out rows bear what came.
        neighbors: know how far others are.
        rng: the node's generator.
        is_restart: we go on from a checkpoint.

    Attributes:
        wholes: reads and merges whole adapters, and shows ours.
    """

    def __init__(
        self,
        me: str,
        settings: NodeSettings,
        health: Health,
        neighbors: Neighbors,
        rng: random.Random,
        *,
        is_restart: bool,
    ) -> None:
        self.wholes = WholeAdapters(me, settings, health.initial)
        self._me, self._settings, self._health = me, settings, health
        self._neighbors, self._rng, self._is_restart = neighbors, rng, is_restart
        self._round = 0
        self._waiting_for: set[str] = set()
        self._came: list[Contribution] = []
        self._complaints: list[Action] = []
        self._candidate: CaughtUp | None = None  # while our held-out rows are asked

    def begin(self, members: Sequence[str], round: int) -> list[Action]:
        """Return what to ask whom; nothing where there is nothing to catch up with.

        Args:
            members: of the run, us included.
            round: where we would begin.
        """
        self._round = round
        ahead = {peer: self._neighbors.of(peer).progress for peer in members if peer != self._me}
        changes = self.wholes.alone_bring_up
        if not self.wholes.are_shown or not ahead or (self._is_restart and not changes):
            return []
        if statistics.median_low(ahead.values()) < round + (1 if changes else BEHIND):
            return []
        candidates = [peer for peer, progress in ahead.items() if progress > round]
        asked = sorted(self._rng.sample(candidates, min(ASKED, len(candidates))))
        self._waiting_for = set(asked)
        for peer in asked:
            self._neighbors.of(peer).fetches += 1
        return [
            *(Fetch(peer, None, NOTHING_MIXED, 0.0, kind="whole") for peer in asked),
            SetTimer(TIMER, WAIT_S),
        ]

    def handle(self, event: Event) -> list[Action] | CaughtUp | None:
        """Take an event; return what to do, or how it has ended. None = the event is not ours."""
        match event:
            case Fetched(peer=peer):
                if self._has_ended(peer):
                    self._read(event)
                    return self._go_on()
                return []
            case FetchFailed(peer=peer):
                return self._go_on() if self._has_ended(peer) else []
            case TimerFired(round=round):
                self._waiting_for.clear()
                return self._go_on() if round == TIMER else []
            case Checked():
                return self._measured(event.loss)
        return None

    def _has_ended(self, peer: str) -> bool:
        """Count a fetch that has ended; tell whether we have waited for it."""
        was_waited_for = self._neighbors.of(peer).fetch_ended() and peer in self._waiting_for
        self._waiting_for.discard(peer)
        return was_waited_for

    def _read(self, event: Fetched) -> None:
        try:
            self._came.append(self.wholes.read(event.peer, event.published))
        except RemoteError as error:
            self._complaints.append(Penalize(event.peer, error.reason))

    def _go_on(self) -> list[Action] | CaughtUp:
        if self._waiting_for or self._candidate:
            return []
        came = sorted(self._came, key=lambda contribution: contribution.sender)
        passed, objections = self.wholes.guarded(came)
        self._complaints += [Penalize(one.sender, one.reason) for one in objections if one.is_fault]
        if not passed:
            return self._where_we_are()
        state = self.wholes.merged(passed)
        round = statistics.median_low(one.round for one in passed)
        age = statistics.median_low(one.age for one in passed)
        # Of a run that is over the adapter is taken, not the round: our own rows have still to be learned from.
        round = round if round < self._settings.rounds else self._round
        self._candidate = CaughtUp(state, max(round, self._round), age, tuple(self._complaints))
        if not self._health.is_on:
            return self._candidate
        first = state if self._health.has_measured else self._health.initial
        return [Check(self._round, first)]

    def _measured(self, loss: float) -> list[Action] | CaughtUp:
        candidate, health = self._candidate, self._health
        if candidate is None or candidate.state is None:
            return []
        if not health.has_measured:
            health.measured_initial(loss)
            return [Check(self._round, candidate.state)]
        if not math.isfinite(loss) or loss > health.limit:
            return self._where_we_are()
        health.kept(candidate.state, loss, candidate.round, trained=False)
        return candidate

    def _where_we_are(self) -> CaughtUp:
        return CaughtUp(None, self._round, 0, tuple(self._complaints))
