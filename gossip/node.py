"""The protocol: a pure state machine, ``handle(event, now) -> [action]``.

No socket, clock, thread, file or global random number. Two phases, one dial::

          Start                  Trained -> Publish                 all fetched or failed, or timer
 (new) ---------->  TRAINING  ----------------------->  COLLECTING  ----------------------------.
                       ^                                                                        |
                       '------------------  guard, mix, round += 1, Report, Train  <------------'

Row i of W is what peer i reads, so peers pull. ``collect_s`` = 0 is asynchronous gossip learning (mix what has come
while training), large is synchronous D-PSGD. With ``overlap`` a round publishes first and trains while it reads: the
mix then acts on what was published, and the local steps are added to it (combine while adapting). After the last round
come those of the final merge, in which nobody trains. An adapter that comes late is mixed one round later; the weight
of what did not come returns to self. It does not know bytes on the wire, addresses, or how training and mixing work.
"""

from __future__ import annotations

import math
import random
from dataclasses import replace
from functools import partial
from typing import assert_never

from gossip.adapter import AdapterState
from gossip.catching_up import CatchingUp, CaughtUp
from gossip.company import Company
from gossip.errors import LocalError, RemoteError
from gossip.events import (
    Action,
    Check,
    Checked,
    Event,
    Fetched,
    FetchFailed,
    Finish,
    PeerDown,
    PeerUp,
    Penalize,
    Publish,
    Report,
    Served,
    SetTimer,
    Start,
    Stop,
    TimerFired,
    Train,
    Trained,
    TrainingFailed,
)
from gossip.health import Health
from gossip.methods.stage import RoundContext
from gossip.neighbor import Neighbors
from gossip.pacing import Pacing
from gossip.pipelines import Pipelines
from gossip.published import PublishedAdapter
from gossip.rollout_exchange import RolloutExchange
from gossip.round import NOT_A_FAULT, Phase, Round
from gossip.round_end import Settled
from gossip.row_reading import RowReading
from gossip.settings import NodeSettings, NodeSnapshot, random_state, restore_random
from topology.links import Links


class GossipNode:
    """One peer's protocol state.

    Args:
        me: our peer id.
        state: the adapter to start from: the initial one, or the one of a checkpoint.
        settings: what to run.
        rng: our own generator (epidemic neighbors); not shared with anybody.
        members: peers known to be alive, sorted, us included; may be one object shared by many nodes.
        snapshot: where to go on, from ``snapshot()`` of an earlier life.
        initial: the adapter that all peers began with; None = ``state``.
        healthy: the last adapter of an earlier life that is known to be in order, if any.
    """

    def __init__(
        self,
        me: str,
        state: AdapterState,
        settings: NodeSettings,
        rng: random.Random,
        members: tuple[str, ...] = (),
        snapshot: NodeSnapshot | None = None,
        initial: AdapterState | None = None,
        healthy: AdapterState | None = None,
    ) -> None:
        self.me = me
        self.state = state
        self.settings = settings
        self.phase = Phase.NEW
        self.round = 0
        self.age = 0
        self.own: AdapterState | None = None  # as our last local steps left it; None until then
        self._rng = rng
        if snapshot:
            self.round, self.age = snapshot.round, snapshot.age
            restore_random(rng, snapshot.random)
        saved = snapshot.tensors if snapshot else None
        self._pipelines = Pipelines(me, settings, initial or state, saved, state)
        self._health = Health(settings, initial or state, healthy, snapshot.losses if snapshot else ())
        self._pacing = Pacing(settings, self._pipelines, snapshot.arrivals_s if snapshot else ())
        self._neighbors = Neighbors()
        self.rollouts = RolloutExchange(settings, snapshot.rollouts if snapshot else ())
        self._reading = RowReading(settings, self._pipelines, self._neighbors, self.rollouts, self._health)
        self._current = Round()
        self._company = Company(me, members or (me,), settings, rng, self._neighbors, self._health)
        parts = (me, settings, self._health, self._neighbors, rng)
        self._catching_up = CatchingUp(*parts, is_restart=snapshot is not None)

    @property
    def members(self) -> tuple[str, ...]:
        """Live peers of the run, us included, sorted."""
        return self._company.members

    @property
    def rounds(self) -> int:
        """All rounds, with those of the final merge as they would be with the present members."""
        return self._company.rounds

    @property
    def links(self) -> Links:
        """Our row of W in the present round; all our own before it is drawn."""
        return self._current.links

    @property
    def initial(self) -> AdapterState:
        """The adapter that all peers began with."""
        return self._health.initial

    def snapshot(self) -> NodeSnapshot:
        """Return what a restart needs besides the adapter; meant for round boundaries (after a ``Report``)."""
        arrivals_s, tensors = self._pacing.deadline.snapshot(), self._pipelines.tensors()
        random = random_state(self._rng)
        losses, rollouts = self._health.losses, self.rollouts.snapshot()
        return NodeSnapshot(self.round, self.age, random, arrivals_s, tensors, losses, rollouts)

    def handle(self, event: Event, now: float) -> list[Action]:
        """Take one event at time ``now`` (seconds on any monotonic clock) and return what to do, in order.

        Raises:
            LocalError: our own training diverged. Nothing that a peer sends raises.
        """
        if self.phase is Phase.CATCHING_UP and (outcome := self._catching_up.handle(event)) is not None:
            return self._caught_up(outcome, now) if isinstance(outcome, CaughtUp) else outcome
        match event:
            case Start():
                return self._start(now)
            case Trained():
                return self._trained_event(event, now)
            case TrainingFailed():
                return self._training_failed(event, now)
            case Checked():
                return self._checked(event, now)
            case Fetched():
                return self._fetched(event, now)
            case FetchFailed():
                return self._fetch_failed(event, now)
            case Served():
                return self._served_event(event, now)
            case PeerUp():
                return self._peer_up(event)
            case PeerDown():
                return self._peer_down(event, now)
            case TimerFired():
                return self._timer_fired(event, now)
            case Stop():
                self.phase = Phase.DONE
                return [Finish()]
            case _:
                assert_never(event)

    # -- life

    @property
    def _is_merging(self) -> bool:
        return self._pipelines.is_merging(self.round)

    def _start(self, now: float) -> list[Action]:
        if self.phase is not Phase.NEW:
            raise LocalError("a node can be started once")
        if questions := self._catching_up.begin(self.members, self.round):
            self.phase = Phase.CATCHING_UP
            return questions
        return self._next_round(now)

    def _caught_up(self, outcome: CaughtUp, now: float) -> list[Action]:
        if outcome.state is not None:
            self.state, self.round, self.age = outcome.state, outcome.round, max(self.age, outcome.age)
            self._pipelines.reset(outcome.state)
        return [*outcome.complaints, *self._next_round(now)]

    def _next_round(self, now: float) -> list[Action]:
        if self.round >= self.rounds:
            self.phase = Phase.DONE
            return [Finish()]
        self._current = Round(since_s=now, train_s=self._current.train_s)
        if self._is_merging:
            self._current.trained = Trained(self.state, 0, math.nan)
            return [*self._publish(self.state, 0), *self._collect(now)]
        if self.settings.overlap:
            return [*self._publish(self.state, 0), self._train(), *self._collect(now)]
        self.phase = Phase.TRAINING
        return [self._train()]

    def _train(self) -> Train:
        train = self._pipelines.train(self.state, self.round, len(self.members))
        return replace(train, rollouts=self.rollouts.hand_out(self.round))

    def _trained_event(self, event: Trained, now: float) -> list[Action]:
        current = self._current
        if self.phase is Phase.DONE or current.trained is not None:
            return []  # stopped meanwhile
        if not math.isfinite(float(event.state.flat.sum())):
            reason = f"the adapter is no longer finite after round {self.round}"
            return self._training_failed(TrainingFailed(self.round, reason), now)
        current.trained, self.own = event, event.state
        self.rollouts.trained(event.rollouts)
        self.age += event.steps
        current.train_s = now - current.since_s
        if self.settings.overlap:
            return self._mix_if_complete(now)
        current.since_s = now
        return [*self._publish(event.state, event.steps), *self._collect(now)]

    def _training_failed(self, event: TrainingFailed, now: float) -> list[Action]:
        """Go through the round as if we had not trained; at its end it is seen what to go on from."""
        if self.phase is Phase.DONE or self._current.trained is not None or event.round != self.round:
            return []
        self._current.has_diverged = self._health.diverged(event.reason)
        return self._trained_event(Trained(self.state, 0, math.nan), now)

    def _publish(self, trained: AdapterState, steps: int) -> list[Publish]:
        rollouts = [] if self._is_merging else self.rollouts.publish(self.round, self.age)
        if not self.settings.shares_weights:
            return rollouts
        return [Publish(self._pipelines.publish(self._context(trained, steps))), *rollouts]

    def _context(self, trained: AdapterState, steps: int) -> RoundContext:
        readers, steps = partial(self._company.readers, self.round), max(1, steps)  # they are divided by
        return RoundContext(
            round=self.round, age=self.age, steps=steps, start=self.state, trained=trained, readers=readers
        )

    def _collect(self, now: float) -> list[Action]:
        """Draw our row of W for this round and ask its neighbors; mix at once if there is nobody to wait for."""
        self.phase = Phase.COLLECTING
        current = self._current
        current.deadline_s = self._pacing.longest_wait_s(self.round, current.train_s)
        current.links = self._company.links(self.round, merging=self._is_merging)
        actions = self._reading.ask(current, self.round, self._pacing.bound_s(self.round))
        if mixing := self._mix_if_complete(now):
            return actions + mixing
        if not current.waiting_for and current.trained is None:
            return actions  # overlapped, and nobody to wait for: the local steps' end is the round's
        # Word that ours has come (``confirms``) may never come: also whoever waits for that alone has a deadline.
        return [*actions, SetTimer(self.round, current.deadline_s)]

    # -- what comes back

    def _fetched(self, event: Fetched, now: float) -> list[Action]:
        peer, published, current = event.peer, event.published, self._current
        neighbor = self._reading.asked_for(published.kind).of(peer)
        if (
            not neighbor.fetch_ended() or published.kind == "whole"
        ):  # the latter came too late to catch up with
            return []
        if published.kind == "rollouts":
            return self._rollouts_fetched(event, now)
        # In the merge, what an earlier fetch brings does not end the wait for what this one will.
        is_early = self._is_merging and published.kind != "merge" and neighbor.fetches > 0
        was_waited_for = not is_early and current.stop_waiting_for(peer)
        if not neighbor.is_news(published.round, self.round, newest_only=self._pipelines.newest_only):
            return self._mix_if_complete(now)
        try:
            weight = neighbor.weight if event.weight is None else event.weight
            contribution = self._pipelines.read(peer, published, weight)
        except RemoteError as error:
            return self._unusable(peer, error.reason, now)
        neighbor.delivered()
        neighbor.unmixed = contribution
        return self._came(published, was_waited_for, now)

    def _rollouts_fetched(self, event: Fetched, now: float) -> list[Action]:
        # Where weights are read, too, it is those that a round waits for.
        was_waited_for = not self.settings.shares_weights and self._current.stop_waiting_for(event.peer)
        try:
            self.rollouts.take(event, self.round)
        except RemoteError as error:
            return self._unusable(event.peer, error.reason, now)
        return self._came(event.published, was_waited_for, now)

    def _came(self, published: PublishedAdapter, was_waited_for: bool, now: float) -> list[Action]:
        """Go on with something usable from a neighbor."""
        if was_waited_for:
            self._pacing.deadline.arrived(now - self._current.since_s)
        self._current.payload_bytes += len(published.payload)
        if (mixing := self._mix_if_complete(now)) or self.phase is not Phase.COLLECTING:
            return mixing
        return [*self._pacing.first_deadline(self.round, self._current, now)]

    def _unusable(self, peer: str, reason: str, now: float) -> list[Action]:
        """Count an adapter that cannot be read; penalize its sender if that is its fault."""
        self._current.failed.append((peer, reason))
        if reason in NOT_A_FAULT:
            return self._mix_if_complete(now)
        self._current.objections.append((peer, reason))
        return [Penalize(peer, reason), *self._mix_if_complete(now)]

    def _fetch_failed(self, event: FetchFailed, now: float) -> list[Action]:
        neighbor = self._reading.asked_for(event.kind).of(event.peer)
        if not neighbor.fetch_ended() or event.kind == "whole":
            return []
        if self.settings.shares_weights and event.kind == "rollouts":
            neighbor.failed(event.reason, self.round)
            return []
        # With a second fetch under way there is still somebody to wait for.
        if not neighbor.fetches and self._current.stop_waiting_for(event.peer):
            self._current.failed.append((event.peer, event.reason))
            neighbor.failed(event.reason, self.round)
        return self._mix_if_complete(now)

    def _served_event(self, event: Served, now: float) -> list[Action]:
        if event.round == self.round:
            self._current.served.add(event.peer)
        return self._mix_if_complete(now)

    def _timer_fired(self, event: TimerFired, now: float) -> list[Action]:
        if self.phase is not Phase.COLLECTING or event.round != self.round:
            return []
        current = self._current
        self._pacing.is_over(current, self._reading.waited_for)
        if current.trained is None:
            return []  # overlapped: the local steps are still running
        return self._mix(current.trained, now)

    def _mix_if_complete(self, now: float) -> list[Action]:
        current = self._current
        if self.phase is not Phase.COLLECTING or current.waiting_for or current.trained is None:
            return []
        # Everybody whose adapter is here must have ours: only then do both sides make the same exchange.
        unconfirmed = self._neighbors.with_unmixed() - current.served
        is_confirmed = current.is_over or unconfirmed.isdisjoint(self.members)
        if self._pipelines.confirms(self.round) and not is_confirmed:
            return []
        return self._mix(current.trained, now)

    def _peer_up(self, event: PeerUp) -> list[Action]:
        if event.peer == self.me:
            return []
        self._company.join(event.peer)
        self.rollouts.heard_of(event)
        if self._neighbors.of(event.peer).heard_of(event):
            self._company.inform()
        return []

    def _peer_down(self, event: PeerDown, now: float) -> list[Action]:
        if event.peer == self.me or event.peer not in self._company:
            return []
        self._company.leave(event.peer)
        self._neighbors.of(event.peer).went_down()
        self.rollouts.neighbors.of(event.peer).went_down()
        self._pipelines.forget(event.peer)
        if self._current.stop_waiting_for(event.peer):
            self._current.failed.append((event.peer, "down"))
        return self._mix_if_complete(now)

    # -- the round's end

    def _mix(self, trained: Trained, now: float) -> list[Action]:
        """Mix whatever has come, in sorted order of senders; report, and begin the next round."""
        context, came = self._context(trained.state, trained.steps), self._neighbors.take_unmixed()
        usable = [one for one in came if self._pipelines.is_usable(one, self.round)]
        end = self._current.begin_end(self._pipelines, self._health, context, usable)
        return self._settle(end.begin(), now)

    def _checked(self, event: Checked, now: float) -> list[Action]:
        end = self._current.end
        if self.phase is not Phase.CHECKING or event.round != self.round or end is None:
            return []
        return self._settle(end.measured(event.loss), now)

    def _settle(self, outcome: Check | Settled, now: float) -> list[Action]:
        """Ask for a measurement, or end the round: report it, and begin the next."""
        if isinstance(outcome, Check):
            self.phase = Phase.CHECKING
            return [outcome]
        merging = self._is_merging
        rollouts = None if merging else self.rollouts.report()
        report = self._current.report(
            outcome, round=self.round, merging=merging, age=self.age, now=now, rollouts=rollouts
        )
        if self.settings.topology.sharpness:
            self._neighbors.learn_likeness(self._pipelines.likeness(outcome.mixed))
        self.state = report.state
        self.round += 1
        whole = self._catching_up.wholes.shown(self.state, self.round, self.age)
        return [*outcome.complaints, Report(report, whole), *self._next_round(now)]
