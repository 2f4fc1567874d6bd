"""The protocol: a pure state machine, ``handle(event, now) -> [action]``.

No socket, clock, thread, file or global random number. Two phases, one dial::

          Start                  Trained -> Publish                 all fetched or failed, or timer
 (new) ---------->  TRAINING  ----------------------->  COLLECTING  ----------------------------.
                       ^                                                                        |
                       '------------------  guard, mix, round += 1, Report, Train  <------------'

Row i of W is what peer i reads, so peers pull. ``collect_s`` = 0 is asynchronous gossip learning (mix what has come
while training), large is synchronous D-PSGD. A parcel that comes late is mixed one round later; the weight of what
did not come returns to self. It does not know bytes on the wire, addresses, or how training works.
"""

from __future__ import annotations

import bisect
import enum
import math
import random
from collections import Counter
from dataclasses import dataclass
from typing import Any, NamedTuple, assert_never

import torch

from gossip import guards
from gossip.adapter import AdapterSpec, AdapterState
from gossip.codecs import CODECS
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
    SetTimer,
    Start,
    Stop,
    TimerFired,
    Train,
    Trained,
)
from gossip.messages import Parcel
from gossip.mixing import MIXERS, Contribution
from topology.links import Links, Topology

FETCHES_MAX = 2
"""Fetches from one peer at a time, when we wait for them (peer/exchange.py admits as many). An asynchronous node waits
for none and so cannot tell a lost fetch from a slow one: it has one at a time, which ends by itself."""
HOLD_SHARE = 0.9
"""A neighbor is asked to hold our request for this share of the deadline: its answer must still reach us in time."""


class Diverged(LocalError):
    """Our own training produced a NaN or an infinity."""

    exit_code = 9


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSettings:
    """What a node is run with; all of it is checked by the configuration before.

    Args:
        topology: who reads whom.
        mixing: a name in ``MIXERS``.
        codec: a name in ``CODECS``.
        rounds: rounds to run.
        collect_s: longest wait for neighbors, seconds; 0 = asynchronous.
        norm_cap: see ``guards.norm_clip``.
    """

    topology: Topology
    mixing: str
    codec: str
    rounds: int
    collect_s: float
    norm_cap: float


class Phase(enum.Enum):
    """Where a node is in its round."""

    NEW = "new"
    TRAINING = "training"
    COLLECTING = "collecting"
    DONE = "done"


class NodeSnapshot(NamedTuple):
    """All of a node that must survive a restart, besides its adapter: plain JSON values, taken at a round boundary.

    Mixing rules and codecs with state of their own add it here when they come.
    """

    round: int
    age: int
    random: list[Any]
    arrivals_s: list[float]


class _Arrived(NamedTuple):
    parcel: Parcel
    weight: float


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
    """

    def __init__(
        self,
        me: str,
        state: AdapterState,
        settings: NodeSettings,
        rng: random.Random,
        members: tuple[str, ...] = (),
        snapshot: NodeSnapshot | None = None,
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
        self._codec = CODECS[settings.codec]
        self._codec_state = self._codec.init(state.spec)
        self._mixer = MIXERS[settings.mixing]
        self._mixer_state = self._mixer.init(state.spec)
        self._progress: dict[str, int] = {}  # peer -> rounds completed, by its word; absent = none heard of
        self._mixed_round: dict[str, int] = {}  # peer -> round of the last parcel mixed
        self._in_flight: Counter[str] = Counter()  # peer -> fetches under way
        self._weights: dict[str, float] = {}  # peer -> its weight in the row for which it was asked last
        self._inbox: dict[str, _Arrived] = {}  # peer -> newest parcel not mixed yet
        self._fetches_max = FETCHES_MAX if settings.collect_s > 0 else 1
        self._waiting_for: set[str] = set()
        self._failed: list[tuple[str, str]] = []
        self._links = Links((), 1.0)
        self._loss = float("nan")
        self._phase_since = 0.0
        self._deadline_s = 0.0
        self._train_s = 0.0

    @property
    def spec(self) -> AdapterSpec:
        """Layout of our adapter."""
        return self.state.spec

    def snapshot(self) -> NodeSnapshot:
        """Return what a restart needs besides the adapter; meant for round boundaries (after a ``Report``)."""
        version, internal, gauss = self._rng.getstate()
        return NodeSnapshot(
            self.round, self.age, [version, list(internal), gauss], self._deadline.snapshot()
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
                return self._trained(event, now)
            case Fetched():
                return self._fetched(event, now)
            case FetchFailed():
                return self._fetch_failed(event, now)
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

    def _start(self, now: float) -> list[Action]:
        if self.phase is not Phase.NEW:
            raise LocalError("a node can be started once")
        if self.round >= self.settings.rounds:
            self.phase = Phase.DONE
            return [Finish()]
        return [self._train(now)]

    def _train(self, now: float) -> Train:
        self.phase = Phase.TRAINING
        self._phase_since = now
        return Train(self.state, self.round)

    def _trained(self, event: Trained, now: float) -> list[Action]:
        if self.phase is not Phase.TRAINING:
            return []  # stopped meanwhile
        if not math.isfinite(float(event.state.flat.sum())):
            raise Diverged(
                f"the adapter is no longer finite after round {self.round}: lower the learning rate; "
                "the last complete checkpoint is unharmed"
            )
        self.state = event.state
        self.age += event.steps
        self._loss = event.loss
        payload, self._codec_state = self._codec.encode(self.state, self._codec_state)
        self._train_s = now - self._phase_since
        self.phase = Phase.COLLECTING
        self._phase_since = now
        self._deadline_s = self._deadline.seconds(self.settings.collect_s, self._train_s)
        self._failed = []
        publish = Publish(Parcel(self.round, self.age, self.settings.codec, payload))
        return [publish, *self._collect(now)]

    def _collect(self, now: float) -> list[Action]:
        """Draw my row of W for this round and ask its neighbors; mix at once if there is nobody to wait for."""
        self._links = self.settings.topology.links(self.me, self.members, self.round, self._rng)
        self._waiting_for = set()
        actions: list[Action] = []
        for peer, weight in self._links.read_from:
            # Waited for even if a late parcel of it is here: a neighbor late once would stay a round late for ever.
            self._waiting_for.add(peer)
            self._weights[peer] = weight
            # A fetch that is late may be slow (then it goes on) or lost (then only a second one brings anything).
            if self._in_flight[peer] < self._fetches_max:
                self._in_flight[peer] += 1
                actions.append(self._fetch(peer))
        if not self._waiting_for or self.settings.collect_s == 0:
            return actions + self._mix(now)
        return [*actions, SetTimer(self.round, self._deadline_s)]

    def _fetch(self, peer: str) -> Fetch:
        newer_than = self._newest_seen(peer)
        # A peer more than a round behind cannot have this round in time: take its newest and do not wait. Progress
        # is the peer's own word; a lie costs the liar (it is read at an older round) or us one deadline.
        progress = max(self._progress.get(peer, 0), newer_than + 1)
        if self.settings.collect_s == 0 or progress < self.round - 1:
            return Fetch(peer, None, newer_than, 0.0)
        return Fetch(peer, self.round, newer_than, HOLD_SHARE * self._deadline_s)

    def _newest_seen(self, peer: str) -> int:
        """Return the round of the newest parcel of a peer that was mixed or waits to be; -1 if there is none."""
        waiting = self._inbox.get(peer)
        return max(self._mixed_round.get(peer, -1), waiting.parcel.round if waiting else -1)

    # -- what comes back

    def _fetched(self, event: Fetched, now: float) -> list[Action]:
        if not self._landed(event.peer):
            return []
        waited_for = self._settled(event.peer)
        if event.parcel.codec != self.settings.codec:
            self._failed.append((event.peer, "codec"))
            return [Penalize(event.peer, "codec"), *self._mix_if_complete(now)]
        if waited_for:
            self._deadline.arrived(now - self._phase_since)
        waiting = self._inbox.get(event.peer)
        if waiting is None or event.parcel.round >= waiting.parcel.round:  # of two fetches the newer one counts
            self._inbox[event.peer] = _Arrived(event.parcel, self._weights[event.peer])
        return self._mix_if_complete(now) or self._first_deadline(now)

    def _first_deadline(self, now: float) -> list[Action]:
        """Set the first deadline once half of the neighbors are here; before, only the user's bound is known."""
        first = self._deadline_s == self.settings.collect_s and self.phase is Phase.COLLECTING
        if not first or 2 * len(self._waiting_for) > len(self._links.read_from):
            return []
        self._deadline_s = self._deadline.seconds(self.settings.collect_s, self._train_s)
        return [SetTimer(self.round, max(0.0, self._phase_since + self._deadline_s - now))]

    def _fetch_failed(self, event: FetchFailed, now: float) -> list[Action]:
        if not self._landed(event.peer):
            return []
        # With a second fetch under way there is still somebody to wait for.
        if not self._in_flight[event.peer] and self._settled(event.peer):
            self._failed.append((event.peer, event.reason))
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
        return self._mix(now)

    def _settled(self, peer: str) -> bool:
        """Stop waiting for a peer; return whether this round did."""
        waited_for = peer in self._waiting_for
        self._waiting_for.discard(peer)
        return waited_for and self.phase is Phase.COLLECTING

    def _mix_if_complete(self, now: float) -> list[Action]:
        if self.phase is Phase.COLLECTING and not self._waiting_for:
            return self._mix(now)
        return []

    # -- members

    def _peer_up(self, event: PeerUp) -> list[Action]:
        if event.peer == self.me:
            return []
        if not self._is_member(event.peer):
            self.members = tuple(sorted((*self.members, event.peer)))
        self._progress[event.peer] = event.round
        if event.round < self._mixed_round.get(event.peer, -1) - 1:
            # It lost its state and began anew (not merely an old announcement): its next parcels are news again.
            del self._mixed_round[event.peer]
        return []

    def _peer_down(self, event: PeerDown, now: float) -> list[Action]:
        if event.peer == self.me or not self._is_member(event.peer):
            return []
        self.members = tuple(peer for peer in self.members if peer != event.peer)
        for memory in (self._progress, self._mixed_round, self._in_flight, self._weights):
            memory.pop(event.peer, None)
        if self._settled(event.peer):
            self._failed.append((event.peer, "down"))
        return self._mix_if_complete(now)

    def _is_member(self, peer: str) -> bool:
        place = bisect.bisect_left(self.members, peer)
        return place < len(self.members) and self.members[place] == peer

    # -- the round's end

    def _mix(self, now: float) -> list[Action]:
        """Guard and mix whatever has come, in sorted order of senders; report, and begin the next round."""
        actions: list[Action] = []
        others: list[Contribution] = []
        objections: list[tuple[str, str]] = []
        arrived, self._inbox = self._inbox, {}
        for peer in sorted(arrived):
            parcel, weight = arrived[peer]
            self._mixed_round[peer] = parcel.round
            try:
                state = self._codec.decode(parcel.payload, self.spec)
            except RemoteError as error:
                objections.append((peer, error.reason))
                actions.append(Penalize(peer, error.reason))
                continue
            others.append(Contribution(peer, state, weight, parcel.age, parcel.round))
        own = Contribution(self.me, self.state, 1.0, self.age, self.round)
        others, found = guards.apply_all(own, self._in_row(others), self.settings.norm_cap)
        objections += [(objection.sender, objection.reason) for objection in found]
        actions += [Penalize(each.sender, each.reason) for each in found if each.is_fault]
        own = own._replace(weight=1.0 - sum(part.weight for part in others))
        mixed, self._mixer_state = self._mixer.mix(own, others, self._mixer_state)
        report = RoundReport(
            round=self.round,
            loss=self._loss,
            age=self.age,
            mixed=tuple((part.sender, part.round, part.weight) for part in others),
            failed=tuple(sorted(self._failed)),
            objections=tuple(objections),
            payload_bytes=sum(len(each.parcel.payload) for each in arrived.values()),
            drift=_relative_distance(mixed, self.state) if others else 0.0,
            collect_s=now - self._phase_since,
            deadline_s=self._deadline_s,
            state=mixed,
        )
        self.state = mixed
        self.round += 1
        actions.append(Report(report))
        if self.round >= self.settings.rounds:
            self.phase = Phase.DONE
            return [*actions, Finish()]
        return [*actions, self._train(now)]

    def _in_row(self, others: list[Contribution]) -> list[Contribution]:
        """Scale weights down if late parcels of other rounds' rows make them exceed this round's share of neighbors."""
        total = sum(part.weight for part in others)
        allowed = max(1.0 - self._links.self_weight, max((part.weight for part in others), default=0.0))
        if total <= allowed + 1e-9:
            return others
        return [part._replace(weight=part.weight * allowed / total) for part in others]


def _relative_distance(a: AdapterState, b: AdapterState) -> float:
    """Return |a - b| / |b|; 0 if both are zero."""
    scale = float(torch.linalg.vector_norm(b.flat))
    distance = float(torch.linalg.vector_norm(a.flat - b.flat))
    return distance / scale if scale else distance
