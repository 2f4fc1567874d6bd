"""Many real nodes on one virtual clock: the same ``GossipNode``, the real wire and codec bytes, seeded faults.

Every message is encoded, carried with a seeded latency, perhaps lost, and decoded, so codec and aliasing bugs show up
here and not in life. One heap of timed deliveries, one generator for the network: equal seeds give equal event logs,
summed up in ``log_hash``, in any process. Who is up is known to an oracle, or, with memberships, found out by each
peer's own ``Membership`` machine. It does not know trio, libp2p, models or real time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple, Protocol, assert_never

from gossip import wire
from gossip.adapter import AdapterState
from gossip.errors import RemoteError
from gossip.events import (
    Action,
    Check,
    Checked,
    Distrust,
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
from gossip.membership import Membership
from gossip.membership_events import Event as MembershipEvent
from gossip.messages import Offer, Pull, Refusal
from gossip.node import GossipNode
from gossip.published import PublishedAdapter, RecentPublications
from gossip.simulated_membership import SimulatedGroup
from gossip.simulated_network import LinkModel, SimulatedNetwork


class LocalSteps(NamedTuple):
    """What simulated training returns: the new state, steps done, mean loss, and the virtual time it took."""

    state: AdapterState
    steps: int
    loss: float
    seconds: float


TrainFunction = Callable[[str, Train], LocalSteps]
"""``(peer, what to do) -> LocalSteps``; deterministic in its arguments and its own seeds."""

EvaluateFunction = Callable[[str, AdapterState], float]
"""``(peer, adapter) -> loss on the peer's own held-out rows``."""


@dataclass(slots=True)
class _Host:
    """What the shell is to a real node: its shelf, the requests it holds, and the fetches it has under way."""

    node: GossipNode
    publications: RecentPublications = field(default_factory=RecentPublications)
    held: dict[tuple[str, int], Pull] = field(default_factory=dict)
    open_fetches: set[int] = field(default_factory=set)
    alive: bool = True
    life: int = 0


class Liveness(Protocol):
    """How nodes come to know who is up: whatever befalls a peer is told to it, and it posts to the nodes."""

    def start(self, peer: str) -> None: ...

    def kill(self, peer: str) -> None: ...

    def leave(self, peer: str) -> None: ...

    def revive(self, peer: str, membership: Membership | None, joins: Sequence[str]) -> None: ...

    def disconnect(self, peer: str, other: str) -> None: ...

    def reconnect(self, peer: str, other: str) -> None: ...

    def reported(self, peer: str, report: RoundReport) -> None: ...

    def penalized(self, peer: str, culprit: str, reason: str) -> None: ...


class Simulation:
    """A network of nodes. Deterministic in the nodes' own generators, ``train``, ``links`` and ``seed``.

    Args:
        nodes: peer id -> node, each fresh, made with all of them as members (one tuple shared by all keeps memory
            linear in their number); with memberships, each made with itself alone.
        train: the local steps.
        links: the network's manners.
        seed: seed of latency and loss.
        run: the run fingerprint on the wire.
        on_report: called with (time, peer, report) at the end of every round of every node.
        memberships: peer id -> machine, fresh: then peers find each other themselves, and ``group`` is theirs; None =
            an oracle tells everybody who is up and down.
        joins: with memberships, peer id -> peers whose addresses it is given. Its node starts once it has joined.
        evaluate: answers nodes that check their adapters; as it is, every adapter is as good as any other.
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
        memberships: Mapping[str, Membership] | None = None,
        joins: Mapping[str, Sequence[str]] | None = None,
        evaluate: EvaluateFunction = lambda peer, state: 0.0,
    ) -> None:
        self.events = 0
        self.penalties: list[tuple[str, str, str]] = []
        self.distrusts: list[tuple[str, Distrust]] = []
        self.train = train
        self.evaluate = evaluate
        self._hosts = {peer: _Host(nodes[peer]) for peer in sorted(nodes)}
        self._network = SimulatedNetwork(links or LinkModel(), seed)
        self.group: SimulatedGroup | None = None
        if memberships is not None:
            post = partial(self._post, delay_s=0.0)
            self.group = SimulatedGroup(self._network, memberships, joins or {}, post, self._record)
        self._liveness: Liveness = self.group or _Oracle(self._network, self._hosts, self._post)
        self._run = run
        self._on_report = on_report
        self._ticket = 0
        self._started = False
        self._unfinished = set(self._hosts)
        self._log = hashlib.sha256()

    @property
    def now(self) -> float:
        """The virtual time, seconds."""
        return self._network.now

    @property
    def log_hash(self) -> str:
        """SHA-256 (hex) over every event handled so far: time, peer, kind, and the digest of what it carried."""
        return self._log.hexdigest()

    def node(self, peer: str) -> GossipNode:
        """Return one node, for looking at."""
        return self._hosts[peer].node

    def run(self, until_s: float = float("inf")) -> None:
        """Start all nodes (at the first call); go on until nothing is left or the clock passes ``until_s``.

        Memberships never come to rest: without ``until_s``, they go on until all living nodes have finished.
        """
        if not self._started:
            self._started = True
            for peer in self._hosts:
                self._liveness.start(peer)
        is_endless = self.group is not None and until_s == float("inf")
        while (self._unfinished or not is_endless) and self._network.step(until_s):
            pass

    def kill(self, peer: str) -> None:
        """End a peer as kill -9 would: at once, its shelf gone, noticed by the others a little later."""
        self._end(peer)
        self._liveness.kill(peer)

    def leave(self, peer: str) -> None:
        """Let a peer say goodbye and end."""
        self._deliver(peer, self._hosts[peer].life, Stop())
        self._end(peer)
        self._liveness.leave(peer)

    def revive(
        self,
        peer: str,
        node: GossipNode,
        membership: Membership | None = None,
        joins: Sequence[str] = (),
    ) -> None:
        """Start a killed peer again with a new node (fresh, or restored from a snapshot).

        ``membership`` and ``joins``: its new machine and whom it joins, in a simulation of memberships.
        """
        self._hosts[peer] = _Host(node, life=self._hosts[peer].life + 1)
        self._unfinished.add(peer)
        self._liveness.revive(peer, membership, joins)

    def disconnect(self, peer: str, other: str) -> None:
        """Cut the way from ``peer`` to ``other``: its requests are lost, and it finds the other down.

        With memberships its answers and rumors are lost there too, and finding out is theirs.
        """
        self._network.cut(peer, other)
        self._liveness.disconnect(peer, other)

    def reconnect(self, peer: str, other: str) -> None:
        """Restore the way from ``peer`` to ``other``."""
        self._network.heal(peer, other)
        self._liveness.reconnect(peer, other)

    def _end(self, peer: str) -> None:
        host = self._hosts[peer]
        host.alive = False
        host.life += 1
        host.held.clear()
        self._unfinished.discard(peer)

    # -- the clock

    def _post(self, peer: str, event: Event, delay_s: float) -> None:
        self._network.after(delay_s, partial(self._deliver, peer, self._hosts[peer].life, event))

    def _deliver(self, peer: str, life: int, event: Event) -> None:
        host = self._hosts[peer]
        if not host.alive or host.life != life:
            return  # meant for an earlier life of this peer
        self._record(peer, event)
        for action in host.node.handle(event, self._network.now):
            self._perform(peer, host, action)

    def _record(self, peer: str, event: Event | MembershipEvent) -> None:
        self.events += 1
        self._log.update(_log_line(self._network.now, peer, event))

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
            case Check():
                loss = self.evaluate(peer, action.candidate)
                self._post(peer, Checked(action.round, loss), 0.0)
            case Distrust():
                self.distrusts.append((peer, action))
            case Penalize():
                self.penalties.append((peer, action.peer, action.reason))
                self._liveness.penalized(peer, action.peer, action.reason)
            case Report():
                if self._on_report:
                    self._on_report(self._network.now, peer, action.report)
                self._liveness.reported(peer, action.report)
            case Finish():
                self._unfinished.discard(peer)  # it goes on serving; without memberships the queue runs dry
            case _:
                assert_never(action)

    def _ask(self, reader: str, host: _Host, fetch: Fetch) -> None:
        self._ticket += 1
        ticket = self._ticket
        host.open_fetches.add(ticket)
        pull = Pull(self._run, fetch.round, fetch.newer_than, fetch.wait_s, base=fetch.base, kind=fetch.kind)
        give_up_s = fetch.wait_s + self._network.links.give_up_s
        self._network.after(give_up_s, partial(self._answer, reader, fetch.peer, ticket, None, "timeout"))
        if not self._network.loses(reader, fetch.peer):
            asked = partial(self._asked, fetch.peer, reader, ticket, wire.encode(pull))
            self._network.after(self._network.delay_s(), asked)

    def _asked(self, server: str, reader: str, ticket: int, frame: bytes) -> None:
        host = self._hosts[server]
        if not host.alive:
            refused = partial(self._answer, reader, server, ticket, None, "unreachable")
            self._network.after(self._network.delay_s(), refused)
            return
        pull = wire.decode(frame)
        assert isinstance(pull, Pull)
        if not self._serve(server, reader, ticket, pull, waited=pull.wait_s == 0):
            host.held[reader, ticket] = pull
            self._network.after(pull.wait_s, partial(self._hold_ended, server, reader, ticket))

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
        if self._network.loses_by_chance():
            return True
        if published is None:
            frame, payload = wire.encode(Refusal("nothing")), b""
        else:
            frame, payload = wire.encode(published.offer()), bytes(published.payload)
        delay_s = self._network.delay_s(len(payload))
        self._network.after(delay_s, partial(self._answered, reader, server, ticket, frame, payload))
        return True

    def _answered(self, reader: str, server: str, ticket: int, frame: bytes, payload: bytes) -> None:
        answer = wire.decode(frame)
        if isinstance(answer, Offer):
            published = PublishedAdapter(
                answer.round, answer.age, answer.codec, payload, answer.base, kind=answer.kind
            )
            if published.digest != answer.digest:
                raise RemoteError("digest", "the simulated network does not corrupt bytes")
            if ticket in self._hosts[reader].open_fetches:  # else it has given up, and hangs up on the sender
                self._post(server, Served(reader, published.round), self._network.links.latency_s)
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


class _Oracle:
    """Knows who is up, and tells all nodes of it a little later."""

    def __init__(
        self,
        network: SimulatedNetwork,
        hosts: Mapping[str, _Host],
        post: Callable[[str, Event, float], None],
    ) -> None:
        self._network = network
        self._hosts = hosts
        self._post = post

    def start(self, peer: str) -> None:
        self._post(peer, Start(), 0.0)

    def kill(self, peer: str) -> None:
        for other in self._hosts:
            if other != peer:
                self._post(other, PeerDown(peer), self._network.links.down_notice_s)

    def leave(self, peer: str) -> None:
        for other in self._hosts:
            if other != peer:
                self._post(other, PeerDown(peer), self._network.delay_s())

    def revive(self, peer: str, membership: Membership | None, joins: Sequence[str]) -> None:
        round, life = self._hosts[peer].node.round, self._hosts[peer].life
        for other, other_host in self._hosts.items():
            if other != peer and other_host.alive:
                self._post(peer, PeerUp(other, other_host.node.round), 0.0)
                self._post(other, PeerUp(peer, round, incarnation=life), self._network.delay_s())
        self._post(peer, Start(), 0.0)

    def disconnect(self, peer: str, other: str) -> None:
        self._post(peer, PeerDown(other), self._network.links.down_notice_s)

    def reconnect(self, peer: str, other: str) -> None:
        self._post(peer, PeerUp(other, self._hosts[other].node.round), self._network.delay_s())

    def reported(self, peer: str, report: RoundReport) -> None:
        pass  # it sees everything anyway

    def penalized(self, peer: str, culprit: str, reason: str) -> None:
        pass  # it cuts nobody off


def _log_line(now: float, peer: str, event: Event | MembershipEvent) -> bytes:
    match event:
        case Trained():
            content = event.state.flat.numpy().tobytes()
        case Fetched():
            content = event.published.digest + event.peer.encode()
        case _:
            content = repr(event).encode()
    return b"|".join((now.hex().encode(), peer.encode(), type(event).__name__.encode(), content, b"\n"))
