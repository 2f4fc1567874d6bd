"""Many real nodes on one virtual clock: the same ``GossipNode``, the real wire and codec bytes, seeded faults.

Every message is encoded, carried with a seeded latency, perhaps lost, and decoded, so codec and aliasing bugs show up
here and not in life. One heap of timed deliveries, one generator for the network: equal seeds give equal event logs,
summed up in ``log_hash``, in any process. It does not know trio, libp2p, models or real time.
"""

from __future__ import annotations

import hashlib
import heapq
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple, assert_never

from gossip import wire
from gossip.adapter import AdapterState
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
    TimerFired,
    Train,
    Trained,
)
from gossip.messages import Offer, Pull, Refusal
from gossip.node import GossipNode
from gossip.published import PublishedAdapter, RecentPublications


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkModel:
    """How the simulated network treats a message.

    Args:
        latency_s: mean one-way latency, seconds, exponentially distributed above a third of it. Guess: 0.05, a WAN.
        loss: probability in [0, 1) that a request or an answer vanishes.
        bandwidth_bytes_s: payload bytes per second of one transfer.
        give_up_s: after this long without an answer beyond the agreed wait, a fetch has failed.
        down_notice_s: how long others take to notice that a peer has died.
    """

    latency_s: float = 0.05
    loss: float = 0.0
    bandwidth_bytes_s: float = 2.5e6
    give_up_s: float = 5.0
    down_notice_s: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.loss < 1:
            raise LocalError(f"loss must be at least 0 and below 1, not {self.loss}")
        if self.latency_s < 0 or self.bandwidth_bytes_s <= 0 or self.give_up_s <= 0 or self.down_notice_s < 0:
            raise LocalError(
                f"latencies must not be negative, bandwidth and give_up_s must be positive: {self}"
            )

    def delay_s(self, rng: random.Random, payload_bytes: int = 0) -> float:
        """Draw the delivery time of a message with a payload."""
        third = self.latency_s / 3
        return third + rng.expovariate(1.0) * 2 * third + payload_bytes / self.bandwidth_bytes_s


class LocalSteps(NamedTuple):
    """What simulated training returns: the new state, steps done, mean loss, and the virtual time it took."""

    state: AdapterState
    steps: int
    loss: float
    seconds: float


TrainFunction = Callable[[str, Train], LocalSteps]
"""``(peer, what to do) -> LocalSteps``; deterministic in its arguments and its own seeds."""


@dataclass(slots=True)
class _Host:
    """What the shell is to a real node: its shelf, the requests it holds, and the fetches it has under way."""

    node: GossipNode
    publications: RecentPublications = field(default_factory=RecentPublications)
    held: dict[tuple[str, int], Pull] = field(default_factory=dict)
    open_fetches: set[int] = field(default_factory=set)
    alive: bool = True
    life: int = 0


class Simulation:
    """A network of nodes. Deterministic in the nodes' own generators, ``train``, ``links`` and ``seed``.

    Args:
        nodes: peer id -> node, each fresh, made with all of them as members (one tuple shared by all keeps memory
            linear in their number).
        train: the local steps.
        links: the network's manners.
        seed: seed of latency and loss.
        run: the run fingerprint on the wire.
        on_report: called with (time, peer, report) at the end of every round of every node.
    """

    def __init__(
        self,
        nodes: Mapping[str, GossipNode],
        train: TrainFunction,
        links: LinkModel | None = None,
        *,
        seed: int = 0,
        run: bytes = bytes(16),
        on_report: Callable[[float, str, RoundReport], None] | None = None,
    ) -> None:
        self.now = 0.0
        self.events = 0
        self.penalties: list[tuple[str, str, str]] = []
        self._hosts = {peer: _Host(nodes[peer]) for peer in sorted(nodes)}
        self.train = train
        self._links = links or LinkModel()
        self._rng = random.Random(seed)
        self._run = run
        self._cut: set[tuple[str, str]] = set()
        self._on_report = on_report
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._sequence = 0
        self._started = False
        self._log = hashlib.sha256()

    @property
    def log_hash(self) -> str:
        """SHA-256 (hex) over every event handled so far: time, peer, kind, and the digest of what it carried."""
        return self._log.hexdigest()

    def node(self, peer: str) -> GossipNode:
        """Return one node, for looking at."""
        return self._hosts[peer].node

    def run(self, until_s: float = float("inf")) -> None:
        """Start all nodes (at the first call); go on until nothing is left or the clock passes ``until_s``."""
        if not self._started:
            self._started = True
            for peer in self._hosts:
                self._post(peer, Start(), 0.0)
        while self._queue and self._queue[0][0] <= until_s:
            self.now, _, happen = heapq.heappop(self._queue)
            happen()

    def kill(self, peer: str) -> None:
        """End a peer as kill -9 would: at once, its shelf gone, noticed by the others a little later."""
        host = self._hosts[peer]
        host.alive = False
        host.life += 1
        host.held.clear()
        for other in self._hosts:
            if other != peer:
                self._post(other, PeerDown(peer), self._links.down_notice_s)

    def revive(self, peer: str, node: GossipNode) -> None:
        """Start a killed peer again with a new node (fresh, or restored from a snapshot)."""
        host = self._hosts[peer]
        self._hosts[peer] = _Host(node, life=host.life + 1)
        for other, other_host in self._hosts.items():
            if other != peer and other_host.alive:
                self._post(peer, PeerUp(other, other_host.node.round), 0.0)
                self._post(other, PeerUp(peer, node.round), self._links.delay_s(self._rng))
        self._post(peer, Start(), 0.0)

    def disconnect(self, peer: str, other: str) -> None:
        """Cut the way from ``peer`` to ``other``: its requests are lost, and it finds the other down."""
        self._cut.add((peer, other))
        self._post(peer, PeerDown(other), self._links.down_notice_s)

    def reconnect(self, peer: str, other: str) -> None:
        """Restore the way from ``peer`` to ``other``."""
        self._cut.discard((peer, other))
        self._post(peer, PeerUp(other, self._hosts[other].node.round), self._links.delay_s(self._rng))

    # -- the clock

    def _after(self, delay_s: float, happen: Callable[[], None]) -> None:
        self._sequence += 1  # equal times happen in the order in which they were posted
        heapq.heappush(self._queue, (self.now + delay_s, self._sequence, happen))

    def _post(self, peer: str, event: Event, delay_s: float) -> None:
        self._after(delay_s, partial(self._deliver, peer, self._hosts[peer].life, event))

    def _deliver(self, peer: str, life: int, event: Event) -> None:
        host = self._hosts[peer]
        if not host.alive or host.life != life:
            return  # meant for an earlier life of this peer
        self.events += 1
        self._log.update(_log_line(self.now, peer, event))
        for action in host.node.handle(event, self.now):
            self._perform(peer, host, action)

    # -- actions

    def _perform(self, peer: str, host: _Host, action: Action) -> None:
        match action:
            case Train():
                steps = self.train(peer, action)
                self._post(peer, Trained(steps.state, steps.steps, steps.loss), steps.seconds)
            case Publish():
                host.publications.put(action.published)
                for (reader, ticket), pull in list(host.held.items()):
                    self._serve(peer, reader, ticket, pull, waited=False)
            case Fetch():
                self._ask(peer, host, action)
            case SetTimer():
                self._post(peer, TimerFired(action.round), action.delay_s)
            case Penalize():
                self.penalties.append((peer, action.peer, action.reason))
            case Report():
                if self._on_report:
                    self._on_report(self.now, peer, action.report)
            case Finish():
                pass  # it goes on serving; the queue runs dry by itself
            case _:
                assert_never(action)

    def _ask(self, reader: str, host: _Host, fetch: Fetch) -> None:
        self._sequence += 1
        ticket = self._sequence
        host.open_fetches.add(ticket)
        pull = Pull(self._run, fetch.round, fetch.newer_than, fetch.wait_s, base=fetch.base)
        give_up_s = fetch.wait_s + self._links.give_up_s
        self._after(give_up_s, partial(self._answer, reader, fetch.peer, ticket, None, "timeout"))
        if self._rng.random() >= self._links.loss and (reader, fetch.peer) not in self._cut:
            frame = wire.encode(pull)
            self._after(
                self._links.delay_s(self._rng), partial(self._asked, fetch.peer, reader, ticket, frame)
            )

    def _asked(self, server: str, reader: str, ticket: int, frame: bytes) -> None:
        host = self._hosts[server]
        if not host.alive:
            self._after(
                self._links.delay_s(self._rng),
                partial(self._answer, reader, server, ticket, None, "unreachable"),
            )
            return
        pull = wire.decode(frame)
        assert isinstance(pull, Pull)
        if not self._serve(server, reader, ticket, pull, waited=pull.wait_s == 0):
            host.held[reader, ticket] = pull
            self._after(pull.wait_s, partial(self._hold_ended, server, reader, ticket))

    def _hold_ended(self, server: str, reader: str, ticket: int) -> None:
        pull = self._hosts[server].held.get((reader, ticket))
        if pull:
            self._serve(server, reader, ticket, pull, waited=True)

    def _serve(self, server: str, reader: str, ticket: int, pull: Pull, *, waited: bool) -> bool:
        """Answer a request if it can be answered now; return whether it was."""
        host = self._hosts[server]
        published = host.publications.find(pull, waited=waited)
        if published is None and not waited:
            return False
        host.held.pop((reader, ticket), None)
        if self._rng.random() < self._links.loss:
            return True
        if published is None:
            frame, payload = wire.encode(Refusal("nothing")), b""
        else:
            frame, payload = wire.encode(published.offer()), bytes(published.payload)
        delay_s = self._links.delay_s(self._rng, len(payload))
        self._after(delay_s, partial(self._answered, reader, server, ticket, frame, payload))
        return True

    def _answered(self, reader: str, server: str, ticket: int, frame: bytes, payload: bytes) -> None:
        answer = wire.decode(frame)
        if isinstance(answer, Offer):
            published = PublishedAdapter(answer.round, answer.age, answer.codec, payload, answer.base)
            if published.digest != answer.digest:
                raise RemoteError("digest", "the simulated network does not corrupt bytes")
            if ticket in self._hosts[reader].open_fetches:  # else it has given up, and hangs up on the sender
                self._post(server, Served(reader, published.round), self._links.latency_s)
            self._answer(reader, server, ticket, published, "")
        else:
            self._answer(reader, server, ticket, None, "nothing")

    def _answer(
        self, reader: str, server: str, ticket: int, published: PublishedAdapter | None, reason: str
    ) -> None:
        """End a fetch once: whatever comes second (a late answer, the give-up timer) is ignored."""
        host = self._hosts[reader]
        if ticket not in host.open_fetches:
            return
        host.open_fetches.remove(ticket)
        self._deliver(
            reader, host.life, Fetched(server, published) if published else FetchFailed(server, reason)
        )


def _log_line(now: float, peer: str, event: Event) -> bytes:
    match event:
        case Trained():
            content = event.state.flat.numpy().tobytes()
        case Fetched():
            content = event.published.digest + event.peer.encode()
        case _:
            content = repr(event).encode()
    return b"|".join((now.hex().encode(), peer.encode(), type(event).__name__.encode(), content, b"\n"))
