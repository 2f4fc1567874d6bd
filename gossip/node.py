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

import bisect
import enum
import math
import random
from dataclasses import replace
from typing import assert_never

from gossip.adapter import AdapterSpec, AdapterState
from gossip.deadline import Deadline
from gossip.errors import LocalError, RemoteError
from gossip.events import (
    Action,
    Event,
    Fetch,
    Fetched,
    FetchFailed,
    Finish,
    PeerDown,
    PeerUp,
    Penalize,
    Publish,
    Report,
    RoundReport,
    Served,
    SetTimer,
    Start,
    Stop,
    TimerFired,
    Train,
    Trained,
)
from gossip.final_merge import MERGE_S, merge_rounds, merge_topology
from gossip.methods.contribution import Contribution
from gossip.methods.factors import switching_interval
from gossip.methods.method_set import resolve
from gossip.methods.pipeline import Mixed, Pipeline
from gossip.neighbor import Neighbor
from gossip.round import Round
from gossip.settings import NodeSettings, NodeSnapshot
from topology.contraction import measured_contraction
from topology.links import Links

FETCHES_MAX = 2
"""Fetches from one peer at a time, when we wait for them (peer/exchange.py admits as many). An asynchronous node waits
for none and so cannot tell a lost fetch from a slow one: it has one at a time, which ends by itself."""
HOLD_SHARE = 0.9
"""A neighbor is asked to hold our request for this share of the deadline: its answer must still reach us in time."""
NOT_A_FAULT = frozenset({"gap"})
"""Reasons for which an adapter cannot be used although its sender did nothing wrong."""


class Diverged(LocalError):
    """Our own training produced a NaN or an infinity."""

    exit_code = 9


class Phase(enum.Enum):
    """Where a node is in its round."""

    NEW = "new"
    TRAINING = "training"
    COLLECTING = "collecting"
    DONE = "done"


class GossipNode:
    """One peer's protocol state.

    Args:
        me: our peer id.
        state: the adapter to start from: the initial one, or the one of a checkpoint.
        settings: what to run.
        rng: our own generator (epidemic neighbors); not shared with anybody.
        members: peers known to be alive from the beginning, sorted, us included; may be one object shared by
            many nodes of a simulation.
        snapshot: where to go on, from ``snapshot()`` of an earlier life.
        initial: the adapter that all peers began with; None = ``state``.
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
    ) -> None:
        self.me = me
        self.members = members or (me,)  # live peers of the run, us included, sorted
        self.state = state
        self.settings = settings
        self.phase = Phase.NEW
        self.round = 0
        self.age = 0
        self.own: AdapterState | None = (
            None  # as our last local steps left it; None before the first of this life
        )
        self._rng = rng
        self._deadline = Deadline()
        if snapshot:
            self.round, self.age = snapshot.round, snapshot.age
            version, internal, gauss = snapshot.random
            rng.setstate((version, tuple(internal), gauss))
            self._deadline = Deadline(snapshot.arrivals_s)
        self._methods = resolve(settings.names, state.spec)
        saved = snapshot.tensors if snapshot else None
        self._pipeline = Pipeline(me, self._methods, initial or state, settings.norm_cap, saved)
        self._interval: int | None = self._methods.factor_rule.interval
        self._neighbors: dict[str, Neighbor] = {}
        self._current = Round()

    @property
    def spec(self) -> AdapterSpec:
        """Layout of our adapter."""
        return self.state.spec

    @property
    def lengths(self) -> frozenset[int]:
        """Sizes in bytes that payloads of this run can have."""
        return self._methods.lengths

    @property
    def rounds(self) -> int:
        """All rounds, with those of the final merge as they would be with the present members."""
        merges = self.settings.names.merge != "none"
        return self.settings.rounds + (merge_rounds(len(self.members)) if merges else 0)

    def snapshot(self) -> NodeSnapshot:
        """Return what a restart needs besides the adapter; meant for round boundaries (after a ``Report``)."""
        version, internal, gauss = self._rng.getstate()
        return NodeSnapshot(
            self.round,
            self.age,
            [version, list(internal), gauss],
            self._deadline.snapshot(),
            self._pipeline.tensors(),
        )

    def handle(self, event: Event, now: float) -> list[Action]:
        """Take one event at time ``now`` (seconds on any monotonic clock) and return what to do, in order.

        Raises:
            LocalError: our own training diverged. Nothing that a peer sends raises.
        """
        match event:
            case Start():
                return self._start(now)
            case Trained():
                return self._trained_event(event, now)
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
        return self.round >= self.settings.rounds

    @property
    def _collect_s(self) -> float:
        return max(self.settings.collect_s, MERGE_S) if self._is_merging else self.settings.collect_s

    @property
    def _waits_long(self) -> bool:
        """Deadlines are not learned: where one side gave up earlier than the other, the two would not make the same
        exchange; and a peer left out of the final merge is left out for good."""
        return self._is_merging or self._methods.mixer.confirms

    def _start(self, now: float) -> list[Action]:
        if self.phase is not Phase.NEW:
            raise LocalError("a node can be started once")
        return self._next_round(now)

    def _next_round(self, now: float) -> list[Action]:
        if self.round >= self.rounds:
            self.phase = Phase.DONE
            return [Finish()]
        self._current = Round(since_s=now, train_s=self._current.train_s)
        if self._is_merging:
            self._current.trained = Trained(self.state, 0, math.nan)
            publish = Publish(self._pipeline.publish_merge(self.state, round=self.round, age=self.age))
            return [publish, *self._collect(now)]
        if self.settings.overlap:
            publish = self._publish(self.state, 0)
            return [publish, self._train(), *self._collect(now)]
        self.phase = Phase.TRAINING
        return [self._train()]

    def _train(self) -> Train:
        if self._interval is None:
            p = measured_contraction(self.settings.topology, len(self.members))
            self._interval = switching_interval(p)
        part = self._methods.factor_rule.trained(self.round, self._interval)
        return Train(self.state, self.round, part, self._pipeline.drift())

    def _trained_event(self, event: Trained, now: float) -> list[Action]:
        current = self._current
        if self.phase is Phase.DONE or current.trained is not None:
            return []  # stopped meanwhile
        if not math.isfinite(float(event.state.flat.sum())):
            raise Diverged(
                f"the adapter is no longer finite after round {self.round}: lower the learning rate; "
                "the last complete checkpoint is unharmed"
            )
        current.trained, self.own = event, event.state
        self.age += event.steps
        current.train_s = now - current.since_s
        if self.settings.overlap:
            return self._mix_if_complete(now)
        current.since_s = now
        return [self._publish(event.state, event.steps), *self._collect(now)]

    def _publish(self, trained: AdapterState, steps: int) -> Publish:
        readers = 0
        if self._methods.mixer.extra:  # only push-sum shares its mass among its readers
            readers = self.settings.topology.readers(self.me, self.members, self.round)
        return Publish(
            self._pipeline.publish(
                self.state, trained, steps=steps, round=self.round, age=self.age, readers=readers
            )
        )

    def _collect(self, now: float) -> list[Action]:
        """Draw our row of W for this round and ask its neighbors; mix at once if there is nobody to wait for."""
        self.phase = Phase.COLLECTING
        current = self._current
        current.deadline_s = self._longest_wait_s
        current.links = self._draw_links()
        fetches_max = FETCHES_MAX if self._collect_s > 0 else 1
        actions: list[Action] = []
        for peer, weight in current.links.read_from:
            neighbor = self._neighbor(peer)
            neighbor.weight = weight
            # A fetch that is late may be slow (then it goes on) or lost (then only a second one brings anything).
            if neighbor.fetches < fetches_max:
                neighbor.fetches += 1
                actions.append(self._fetch(peer, neighbor))
        if self._collect_s > 0:
            # Waited for even if a late adapter of it is here: a neighbor late once would stay a round late for ever.
            current.waiting_for = {peer for peer, _ in current.links.read_from}
        if not current.waiting_for:
            return actions + self._mix_if_complete(now)
        return [*actions, SetTimer(self.round, current.deadline_s)]

    @property
    def _longest_wait_s(self) -> float:
        if self._waits_long:
            return self._collect_s
        return self._deadline.seconds(self._collect_s, self._current.train_s)

    def _draw_links(self) -> Links:
        if self._is_merging:
            schedule = merge_topology(len(self.members))
            return schedule.links(self.me, self.members, self.round - self.settings.rounds, self._rng)
        topology = self.settings.topology
        likeness = {}
        if topology.sharpness:
            known = ((peer, neighbor.likeness) for peer, neighbor in self._neighbors.items())
            likeness = {peer: cosine for peer, cosine in known if cosine is not None}
        return topology.links(self.me, self.members, self.round, self._rng, likeness)

    def _fetch(self, peer: str, neighbor: Neighbor) -> Fetch:
        newer_than = neighbor.newest_round
        base = self._pipeline.replica_of(peer)
        # A peer more than a round behind cannot have this round in time: take its newest and do not wait. Progress
        # is the peer's own word; a lie costs the liar (it is read at an older round) or us one deadline.
        progress = max(neighbor.progress, newer_than + 1)
        if self._collect_s == 0 or (progress < self.round - 1 and not self._is_merging):
            return Fetch(peer, None, newer_than, 0.0, base)
        return Fetch(peer, self.round, newer_than, HOLD_SHARE * self._current.deadline_s, base)

    # -- what comes back

    def _fetched(self, event: Fetched, now: float) -> list[Action]:
        peer, published, current = event.peer, event.published, self._current
        neighbor = self._neighbor(peer)
        if not neighbor.fetch_ended():
            return []
        # In the merge, what an earlier fetch brings does not end the wait for what this one will.
        is_early = self._is_merging and published.round < self.settings.rounds and neighbor.fetches > 0
        was_waited_for = not is_early and self._settle(peer)
        newest = neighbor.unmixed_round
        if self._methods.mixer.extra:  # running sums: an older one would look like a sender that began anew
            newest = neighbor.newest_round
        if published.round < newest:  # of two fetches the newer one counts
            return self._mix_if_complete(now)
        try:
            merging = published.round >= self.settings.rounds
            contribution = self._pipeline.decode(peer, published, neighbor.weight, merging=merging)
        except RemoteError as error:
            return self._unusable(peer, error.reason, now)
        if was_waited_for:
            self._deadline.arrived(now - current.since_s)
        current.payload_bytes += len(published.payload)
        neighbor.unmixed = contribution
        return self._mix_if_complete(now) or self._first_deadline(now)

    def _unusable(self, peer: str, reason: str, now: float) -> list[Action]:
        """Count an adapter that cannot be read; penalize its sender if that is its fault."""
        self._current.failed.append((peer, reason))
        if reason in NOT_A_FAULT:
            return self._mix_if_complete(now)
        self._current.objections.append((peer, reason))
        return [Penalize(peer, reason), *self._mix_if_complete(now)]

    def _first_deadline(self, now: float) -> list[Action]:
        """Set the first deadline once half of the neighbors are here; before, only the user's bound is known."""
        current = self._current
        is_first = current.deadline_s == self._collect_s and self.phase is Phase.COLLECTING
        if not is_first or self._waits_long or not current.half_are_here:
            return []
        current.deadline_s = self._longest_wait_s
        return [SetTimer(self.round, max(0.0, current.since_s + current.deadline_s - now))]

    def _fetch_failed(self, event: FetchFailed, now: float) -> list[Action]:
        neighbor = self._neighbor(event.peer)
        if not neighbor.fetch_ended():
            return []
        # With a second fetch under way there is still somebody to wait for.
        if not neighbor.fetches and self._settle(event.peer):
            self._current.failed.append((event.peer, event.reason))
        return self._mix_if_complete(now)

    def _served_event(self, event: Served, now: float) -> list[Action]:
        if event.round == self.round:
            self._current.served.add(event.peer)
        return self._mix_if_complete(now)

    def _timer_fired(self, event: TimerFired, now: float) -> list[Action]:
        if self.phase is not Phase.COLLECTING or event.round != self.round:
            return []
        current = self._current
        for peer in sorted(current.waiting_for):
            self._deadline.missed(current.deadline_s)
            current.failed.append((peer, "late"))
        current.waiting_for.clear()
        if current.trained is None:
            return []  # overlapped: the local steps are still running
        return self._mix(current.trained, now)

    def _settle(self, peer: str) -> bool:
        """Stop waiting for a peer; return whether this round did."""
        was_waited_for = peer in self._current.waiting_for
        self._current.waiting_for.discard(peer)
        return was_waited_for and self.phase is Phase.COLLECTING

    def _mix_if_complete(self, now: float) -> list[Action]:
        current = self._current
        if self.phase is not Phase.COLLECTING or current.waiting_for or current.trained is None:
            return []
        if self._methods.mixer.confirms and not self._is_merging and not self._all_confirmed():
            return []
        return self._mix(current.trained, now)

    def _all_confirmed(self) -> bool:
        """Tell whether everybody whose adapter is here has ours: only then do both sides make the same exchange."""
        return all(
            peer in self._current.served for peer, neighbor in self._neighbors.items() if neighbor.unmixed
        )

    # -- members

    def _peer_up(self, event: PeerUp) -> list[Action]:
        if event.peer == self.me:
            return []
        if not self._is_member(event.peer):
            self.members = tuple(sorted((*self.members, event.peer)))
        self._neighbor(event.peer).announced(event.round)
        return []

    def _peer_down(self, event: PeerDown, now: float) -> list[Action]:
        if event.peer == self.me or not self._is_member(event.peer):
            return []
        self.members = tuple(peer for peer in self.members if peer != event.peer)
        self._neighbor(event.peer).went_down()
        self._pipeline.forget(event.peer)
        if self._settle(event.peer):
            self._current.failed.append((event.peer, "down"))
        return self._mix_if_complete(now)

    def _is_member(self, peer: str) -> bool:
        place = bisect.bisect_left(self.members, peer)
        return place < len(self.members) and self.members[place] == peer

    def _neighbor(self, peer: str) -> Neighbor:
        """Return the record of a peer, a new one if it has none."""
        return self._neighbors.setdefault(peer, Neighbor())

    # -- the round's end

    def _mix(self, trained: Trained, now: float) -> list[Action]:
        """Mix whatever has come, in sorted order of senders; report, and begin the next round."""
        current = self._current
        mixed = self._mixed(trained, self._take_contributions())
        report = RoundReport(
            round=self.round,
            merging=self._is_merging,
            loss=trained.loss,
            age=self.age,
            mixed=tuple((other.sender, other.round, other.weight) for other in mixed.contributions),
            failed=tuple(sorted(current.failed)),
            objections=(
                *current.objections,
                *((objection.sender, objection.reason) for objection in mixed.objections),
            ),
            payload_bytes=current.payload_bytes,
            drift=mixed.drift,
            cross_term=mixed.cross_term,
            collect_s=now - current.since_s,
            deadline_s=current.deadline_s,
            state=mixed.state,
        )
        actions: list[Action] = [
            Penalize(objection.sender, objection.reason)
            for objection in mixed.objections
            if objection.is_fault
        ]
        if self.settings.topology.sharpness:
            for peer, cosine in self._pipeline.likeness(mixed.contributions).items():
                self._neighbor(peer).likeness = cosine
        self.state = mixed.state
        self.round += 1
        return [*actions, Report(report), *self._next_round(now)]

    def _take_contributions(self) -> list[Contribution]:
        """Return what waits to be mixed and can be in this round, in sorted order of senders."""
        taken = []
        for peer in sorted(peer for peer, neighbor in self._neighbors.items() if neighbor.unmixed):
            contribution = self._neighbors[peer].take_unmixed()
            if contribution and self._is_usable(contribution):
                taken.append(contribution._replace(confirmed=peer in self._current.served))
        return taken

    def _is_usable(self, contribution: Contribution) -> bool:
        """Tell whether an adapter of another phase than ours can be mixed: plain adapters can, other vectors cannot."""
        of_merge = contribution.round >= self.settings.rounds
        if of_merge == self._is_merging:
            return True
        return self._methods.sends_plain_adapters and (of_merge or self._methods.merges_as_it_mixes)

    def _mixed(self, trained: Trained, contributions: list[Contribution]) -> Mixed:
        others = 1.0 - self._current.links.self_weight
        if self._is_merging:
            return self._pipeline.merge(
                self.state, contributions, round=self.round, age=self.age, neighbor_weight=others
            )
        overlap = self.settings.overlap
        published = self.state if overlap else trained.state
        mixed = self._pipeline.mix(
            self.state,
            published,
            contributions,
            steps=trained.steps,
            round=self.round,
            age=self.age,
            neighbor_weight=others,
        )
        if not overlap:
            return mixed
        # What was published is mixed; what has been learned meanwhile comes on top.
        flat = mixed.state.flat + (trained.state.flat - self.state.flat)
        return replace(mixed, state=AdapterState(self.state.spec, flat))
