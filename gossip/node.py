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
from collections import Counter
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
from gossip.methods.factors import switching_interval
from gossip.methods.method_set import resolve
from gossip.methods.pipeline import Arrived, Mixed, Pipeline
from gossip.settings import NodeSettings, NodeSnapshot
from topology.consensus import measured_contraction
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
        self._progress: dict[str, int] = {}  # peer -> rounds completed, by its word; absent = none heard of
        self._mixed_round: dict[str, int] = {}  # peer -> round of the last published mixed
        self._in_flight: Counter[str] = Counter()  # peer -> fetches under way
        self._likeness: dict[str, float] = {}  # peer -> cosine of what its adapter and ours have learned
        self._weights: dict[str, float] = {}  # peer -> its weight in the row for which it was asked last
        self._inbox: dict[str, Arrived] = {}  # peer -> newest published not mixed yet
        self._waiting_for: set[str] = set()
        self._served: set[str] = set()  # peers that have got our adapter of this round
        self._failed: list[tuple[str, str]] = []
        self._links = Links((), 1.0)
        self._own: AdapterState | None = None
        self._trained: Trained | None = None  # local steps of this round, once they are done
        self._objections: list[tuple[str, str]] = []
        self._payload_bytes = 0
        self._phase_since = 0.0
        self._deadline_s = 0.0
        self._train_s = 0.0

    @property
    def spec(self) -> AdapterSpec:
        """Layout of our adapter."""
        return self.state.spec

    @property
    def own(self) -> AdapterState | None:
        """Our adapter as our last local steps left it, before anybody else's was mixed in; None after a restart."""
        return self._own

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
        self._phase_since = now
        self._served = set()
        self._failed = []
        self._trained = None
        if self._is_merging:
            self._trained = Trained(self.state, 0, math.nan)
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
        if self.phase is Phase.DONE or self._trained is not None:
            return []  # stopped meanwhile
        if not math.isfinite(float(event.state.flat.sum())):
            raise Diverged(
                f"the adapter is no longer finite after round {self.round}: lower the learning rate; "
                "the last complete checkpoint is unharmed"
            )
        self._trained, self._own = event, event.state
        self.age += event.steps
        self._train_s = now - self._phase_since
        if self.settings.overlap:
            return self._mix_if_complete(now)
        self._phase_since = now
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
        """Draw my row of W for this round and ask its neighbors; mix at once if there is nobody to wait for."""
        self.phase = Phase.COLLECTING
        self._deadline_s = self._collect_s
        if not self._waits_long:
            self._deadline_s = self._deadline.seconds(self._collect_s, self._train_s)
        topology = merge_topology(len(self.members)) if self._is_merging else self.settings.topology
        at = self.round - self.settings.rounds if self._is_merging else self.round
        self._links = topology.links(self.me, self.members, at, self._rng, self._likeness)
        self._waiting_for = set()
        fetches_max = FETCHES_MAX if self._collect_s > 0 else 1
        actions: list[Action] = []
        for peer, weight in self._links.read_from:
            # Waited for even if a late adapter of it is here: a neighbor late once would stay a round late for ever.
            self._waiting_for.add(peer)
            self._weights[peer] = weight
            # A fetch that is late may be slow (then it goes on) or lost (then only a second one brings anything).
            if self._in_flight[peer] < fetches_max:
                self._in_flight[peer] += 1
                actions.append(self._fetch(peer))
        if self._collect_s == 0:
            self._waiting_for = set()
        if not self._waiting_for:
            return actions + self._mix_if_complete(now)
        return [*actions, SetTimer(self.round, self._deadline_s)]

    def _fetch(self, peer: str) -> Fetch:
        newer_than = self._newest_seen(peer)
        base = self._pipeline.replica_of(peer)
        # A peer more than a round behind cannot have this round in time: take its newest and do not wait. Progress
        # is the peer's own word; a lie costs the liar (it is read at an older round) or us one deadline.
        progress = max(self._progress.get(peer, 0), newer_than + 1)
        if self._collect_s == 0 or (progress < self.round - 1 and not self._is_merging):
            return Fetch(peer, None, newer_than, 0.0, base)
        return Fetch(peer, self.round, newer_than, HOLD_SHARE * self._deadline_s, base)

    def _newest_seen(self, peer: str) -> int:
        """Return the round of the newest adapter of a peer that was mixed or waits to be; -1 if there is none."""
        waiting = self._inbox.get(peer)
        return max(self._mixed_round.get(peer, -1), waiting.round if waiting else -1)

    # -- what comes back

    def _fetched(self, event: Fetched, now: float) -> list[Action]:
        if not self._landed(event.peer):
            return []
        published, peer = event.published, event.peer
        # In the merge, what an earlier fetch brings does not end the wait for what this one will.
        is_early = self._is_merging and published.round < self.settings.rounds and self._in_flight[peer] > 0
        waited_for = not is_early and self._settled(peer)
        waiting = self._inbox.get(peer)
        newest = waiting.round if waiting else -1
        if self._methods.mixer.extra:  # running sums: an older one would look like a sender that began anew
            newest = max(newest, self._mixed_round.get(peer, -1))
        if published.round < newest:  # of two fetches the newer one counts
            return self._mix_if_complete(now)
        try:
            merging = published.round >= self.settings.rounds
            layout, values = self._pipeline.decode(peer, published, merging=merging)
        except RemoteError as error:
            self._failed.append((peer, error.reason))
            if error.reason in NOT_A_FAULT:
                return self._mix_if_complete(now)
            self._objections.append((peer, error.reason))
            return [Penalize(peer, error.reason), *self._mix_if_complete(now)]
        if waited_for:
            self._deadline.arrived(now - self._phase_since)
        self._payload_bytes += len(published.payload)
        self._inbox[peer] = Arrived(peer, layout, values, self._weights[peer], published.age, published.round)
        return self._mix_if_complete(now) or self._first_deadline(now)

    def _first_deadline(self, now: float) -> list[Action]:
        """Set the first deadline once half of the neighbors are here; before, only the user's bound is known."""
        first = self._deadline_s == self._collect_s and self.phase is Phase.COLLECTING
        if not first or self._waits_long or 2 * len(self._waiting_for) > len(self._links.read_from):
            return []
        self._deadline_s = self._deadline.seconds(self._collect_s, self._train_s)
        return [SetTimer(self.round, max(0.0, self._phase_since + self._deadline_s - now))]

    def _fetch_failed(self, event: FetchFailed, now: float) -> list[Action]:
        if not self._landed(event.peer):
            return []
        # With a second fetch under way there is still somebody to wait for.
        if not self._in_flight[event.peer] and self._settled(event.peer):
            self._failed.append((event.peer, event.reason))
        return self._mix_if_complete(now)

    def _served_event(self, event: Served, now: float) -> list[Action]:
        if event.round == self.round:
            self._served.add(event.peer)
        return self._mix_if_complete(now)

    def _landed(self, peer: str) -> bool:
        """Note that a fetch has ended; False if it was of a peer that has gone since."""
        if not self._in_flight[peer]:
            return False
        self._in_flight[peer] -= 1
        return True

    def _timer_fired(self, event: TimerFired, now: float) -> list[Action]:
        if self.phase is not Phase.COLLECTING or event.round != self.round:
            return []
        for peer in sorted(self._waiting_for):
            self._deadline.missed(self._deadline_s)
            self._failed.append((peer, "late"))
        self._waiting_for = set()
        if self._trained is None:
            return []  # overlapped: the local steps are still running
        return self._mix(now)

    def _settled(self, peer: str) -> bool:
        """Stop waiting for a peer; return whether this round did."""
        waited_for = peer in self._waiting_for
        self._waiting_for.discard(peer)
        return waited_for and self.phase is Phase.COLLECTING

    def _mix_if_complete(self, now: float) -> list[Action]:
        if self.phase is not Phase.COLLECTING or self._waiting_for or self._trained is None:
            return []
        if self._methods.mixer.confirms and not self._is_merging and not self._all_confirmed():
            return []
        return self._mix(now)

    def _all_confirmed(self) -> bool:
        """Tell whether everybody whose adapter is here has ours: only then do both sides make the same exchange."""
        return all(peer in self._served for peer in self._inbox)

    # -- members

    def _peer_up(self, event: PeerUp) -> list[Action]:
        if event.peer == self.me:
            return []
        if not self._is_member(event.peer):
            self.members = tuple(sorted((*self.members, event.peer)))
        self._progress[event.peer] = event.round
        if event.round < self._mixed_round.get(event.peer, -1) - 1:
            # It lost its state and began anew (not merely an old announcement): its next publications are news again.
            del self._mixed_round[event.peer]
        return []

    def _peer_down(self, event: PeerDown, now: float) -> list[Action]:
        if event.peer == self.me or not self._is_member(event.peer):
            return []
        self.members = tuple(peer for peer in self.members if peer != event.peer)
        for memory in (self._progress, self._mixed_round, self._in_flight, self._weights):
            memory.pop(event.peer, None)
        self._pipeline.forget(event.peer)
        if self._settled(event.peer):
            self._failed.append((event.peer, "down"))
        return self._mix_if_complete(now)

    def _is_member(self, peer: str) -> bool:
        place = bisect.bisect_left(self.members, peer)
        return place < len(self.members) and self.members[place] == peer

    # -- the round's end

    def _mix(self, now: float) -> list[Action]:
        """Mix whatever has come, in sorted order of senders; report, and begin the next round."""
        trained = self._trained
        assert trained is not None
        inbox, self._inbox = self._inbox, {}
        arrived = [inbox[peer]._replace(confirmed=peer in self._served) for peer in sorted(inbox)]
        for each in arrived:
            self._mixed_round[each.sender] = each.round
        mixed = self._mixed(trained, [each for each in arrived if self._is_usable(each)])
        report = RoundReport(
            round=self.round,
            merging=self._is_merging,
            loss=trained.loss,
            age=self.age,
            mixed=tuple((part.sender, part.round, part.weight) for part in mixed.parts),
            failed=tuple(sorted(self._failed)),
            objections=(*self._objections, *((found.sender, found.reason) for found in mixed.objections)),
            payload_bytes=self._payload_bytes,
            drift=mixed.drift,
            cross_term=mixed.cross_term,
            collect_s=now - self._phase_since,
            deadline_s=self._deadline_s,
            state=mixed.state,
        )
        actions: list[Action] = [
            Penalize(each.sender, each.reason) for each in mixed.objections if each.is_fault
        ]
        self._objections, self._payload_bytes = [], 0
        if self.settings.topology.sharpness:
            self._likeness.update(self._pipeline.likeness(mixed.parts))
        self.state = mixed.state
        self.round += 1
        return [*actions, Report(report), *self._next_round(now)]

    def _is_usable(self, each: Arrived) -> bool:
        """Tell whether an adapter of another phase than ours can be mixed: plain adapters can, other vectors cannot."""
        of_merge = each.round >= self.settings.rounds
        if of_merge == self._is_merging:
            return True
        return self._methods.sends_plain_adapters and (of_merge or self._methods.merges_as_it_mixes)

    def _mixed(self, trained: Trained, arrived: list[Arrived]) -> Mixed:
        others = 1.0 - self._links.self_weight
        if self._is_merging:
            return self._pipeline.merge(
                self.state, arrived, round=self.round, age=self.age, neighbor_weight=others
            )
        overlap = self.settings.overlap
        published = self.state if overlap else trained.state
        mixed = self._pipeline.mix(
            self.state,
            published,
            arrived,
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
