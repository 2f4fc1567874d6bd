"""The world of many ``Membership`` machines in a simulation: connections, control questions and rumors.

Connections open and close as dials and deaths have it. Questions and answers travel over them as real wire bytes; as
over TCP, what is lost is sent again. Announcements flood from connection to connection, which stands for GossipSub, and
may be lost. A way that is cut swallows everything silently, as a network does that has lost its route: only heartbeats
can find out. What is garbled on its way is what a broken machine sends, and strikes it. It does not know what nodes do.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import assert_never

from gossip import events as node_events
from gossip import wire
from gossip.errors import RemoteError
from gossip.membership import Membership
from gossip.membership_events import (
    Action,
    Announce,
    Answer,
    Answered,
    Ask,
    Asked,
    AskFailed,
    Connected,
    Dial,
    DialBack,
    Dialed,
    DialFailed,
    Disconnected,
    Drop,
    Event,
    Heard,
    Join,
    JoinEnded,
    Leave,
    Post,
    Progressed,
    Reject,
    SetTimer,
    Start,
    Strike,
    Suspect,
    Tell,
    TimerFired,
)
from gossip.messages import Message
from gossip.simulated_network import SimulatedNetwork
from gossip.told_addresses import peer_named_by

DIAL_S = 15.0
"""A dial that nobody answers fails after this, as that of the real transports (peer/network/transport.py)."""
ANSWER_S = 10.0
"""A control question that nobody answers fails after this, as in peer/exchange.py."""
RETRANSMIT_S = 1.0
"""A lost piece of a question or an answer is sent again after this. Source: TCP's first timeout (RFC 6298)."""
JOIN_S = 15.0
"""Joining goes on for this long. Source: the default of ``join_timeout_s`` (peer/config.py)."""


@dataclass(slots=True)
class _Host:
    """What transport and shell are to a real machine, in one life of a peer.

    Args:
        joins: peers whose addresses the user has given it.
        connections: peer -> number of the connection; the other end may have gone without our knowing.
        questions: number -> what was asked and is not answered yet.
        life: number of this life.
    """

    peer: str
    machine: Membership
    joins: tuple[str, ...]
    connections: dict[str, int] = field(default_factory=dict)
    questions: dict[int, Ask] = field(default_factory=dict)
    is_alive: bool = True
    life: int = 0


class SimulatedGroup:
    """Memberships on a simulated network.

    Args:
        network: the clock and the links.
        memberships: peer id -> its machine, fresh.
        joins: peer id -> peers that it joins when it starts; who is not in it waits for others.
        post: takes events to a peer's node: who is up or down, and ``Start`` once its joining is over.
        record: is told of every event of every machine.

    Attributes:
        asked: how many control questions were asked, by kind ("Hello", "Ping").
        told: (time, peer, line) of all that users were told.
        rejected: how often peers were turned away, by (peer, reason).
        watch: called after every event of a machine, with its peer and itself, if set.
    """

    def __init__(
        self,
        network: SimulatedNetwork,
        memberships: Mapping[str, Membership],
        joins: Mapping[str, Sequence[str]],
        post: Callable[[str, node_events.Event], None],
        record: Callable[[str, Event], None],
    ) -> None:
        self.asked: Counter[str] = Counter()
        self.told: list[tuple[float, str, str]] = []
        self.rejected: Counter[tuple[str, str]] = Counter()
        self.watch: Callable[[str, Membership], None] | None = None
        self._network = network
        self._hosts = {
            peer: _Host(peer, memberships[peer], tuple(joins.get(peer, ()))) for peer in sorted(memberships)
        }
        self._post = post
        self._record = record
        self._number = 0  # of the last connection or question

    def membership(self, peer: str) -> Membership:
        """Return one machine, for looking at."""
        return self._hosts[peer].machine

    # -- what befalls peers

    def start(self, peer: str) -> None:
        """Let a peer listen, and join whom it was told to."""
        host = self._hosts[peer]
        if not host.is_alive:
            return
        self._happened(host, Start(peer, (address_of(peer),), host.life))
        if host.joins:
            addresses = tuple(map(address_of, host.joins))
            self._happened(host, Join(0, addresses, JOIN_S, required=False))
        else:
            self._post(peer, node_events.Start())

    def kill(self, peer: str) -> None:
        """End a peer at once; its system closes its connections."""
        host = self._hosts[peer]
        host.is_alive = False
        for other, connection in host.connections.items():
            if not self._network.is_cut(peer, other):
                closed = partial(self._closed, other, peer, connection)
                self._network.after(self._network.links.down_notice_s, closed, other)

    def leave(self, peer: str) -> None:
        """Let a peer say goodbye, then end it."""
        self._happened(self._hosts[peer], Leave())
        self.kill(peer)

    def revive(self, peer: str, membership: Membership | None, joins: Sequence[str]) -> None:
        """Begin a new life of a peer."""
        assert membership is not None, "a new life needs a new membership"
        life = self._hosts[peer].life + 1
        self._hosts[peer] = _Host(peer, membership, tuple(joins), life=life)
        self.start(peer)

    def disconnect(self, peer: str, other: str) -> None:
        """Tell nobody that a way is cut: heartbeats find out."""

    def reconnect(self, peer: str, other: str) -> None:
        """Tell nobody that a way has healed: redials find out."""

    def refuses(self, peer: str, other: str) -> bool:
        """Whether a peer has cut the other off, so that no connection lasts that would bring its requests."""
        now = self._network.clocks.show(peer, self._network.now)
        return self._hosts[peer].machine.is_cut_off(other, now)

    def reported(self, peer: str, report: node_events.RoundReport) -> None:
        """Tell a machine that its node has completed a round, and who was late in it."""
        host = self._hosts[peer]
        self._happened(host, Progressed(report.round + 1))
        for other, reason in report.failed:
            if reason == "late":
                self._happened(host, Suspect(other))

    def penalized(self, peer: str, culprit: str, reason: str) -> None:
        """Tell a machine that its node has caught somebody."""
        self._happened(self._hosts[peer], Strike(culprit, reason))

    # -- events and actions

    def _later(self, host: _Host, delay_s: float, event: Event) -> None:
        self._network.after(delay_s, partial(self._happened, host, event), host.peer)

    def _happened(self, host: _Host, event: Event) -> Message | None:
        """Give an event to a machine and do what it says; return the answer, if it was a question."""
        if not host.is_alive:
            return None
        self._record(host.peer, event)
        answer = None
        actions = host.machine.handle(event, self._network.clocks.show(host.peer, self._network.now))
        if self.watch:
            self.watch(host.peer, host.machine)
        for action in actions:
            if isinstance(action, Answer):
                answer = action.message
            else:
                self._perform(host, action)
        return answer

    def _perform(self, host: _Host, action: Action) -> None:
        match action:
            case Dial():
                self._dial(host, action)
            case Ask():
                self._ask(host, action)
            case Announce():
                self._spread(host, host.peer, wire.encode(action.presence), {host.peer})
            case Drop():
                self._close(host, action.peer)
            case SetTimer():
                delay_s = self._network.clocks.real_s(host.peer, action.delay_s)
                self._later(host, delay_s, TimerFired(action.timer))
            case Post():
                self._post(host.peer, action.event)
            case Tell():
                self.told.append((self._network.now, host.peer, action.text))
            case Reject():
                self.rejected[host.peer, action.reason] += 1
            case JoinEnded():
                self._post(host.peer, node_events.Start())
            case Answer():
                raise AssertionError("only a question is answered")
            case _:
                assert_never(action)

    # -- connections

    def _dial(self, host: _Host, dial: Dial) -> None:
        if dial.afresh:
            self._close(host, dial.peer)
        self._network.after(self._network.delay_s(), partial(self._knock, host, dial), host.peer)

    def _knock(self, host: _Host, dial: Dial) -> None:
        """Arrive at the addresses: the first peer that answers counts, silence lasts longer than a refusal."""
        if not host.is_alive:
            return
        delay_s, detail = self._network.delay_s(), "nobody answers"
        for peer in map(peer_named_by, dial.addresses):
            if self._network.is_cut(host.peer, peer) or self._network.is_cut(peer, host.peer):
                delay_s, detail = DIAL_S, f"no answer within {DIAL_S:g} s"
            elif peer in self._hosts and self._hosts[peer].is_alive:
                if not isinstance(dial.errand, DialBack):
                    self._connect(host, self._hosts[peer])
                self._later(host, self._network.delay_s(), Dialed(dial.errand, peer))
                return
        self._later(host, delay_s, DialFailed(dial.errand, RemoteError("unreachable", detail)))

    def _connect(self, host: _Host, other: _Host) -> None:
        if other.peer in host.connections:
            return
        self._number += 1
        for end, far in ((host, other), (other, host)):
            if far.peer not in end.connections:
                self._later(end, 0.0, Connected(far.peer))
            end.connections[far.peer] = self._number

    def _close(self, host: _Host, peer: str) -> None:
        """Close one end; the other hears of it if it can."""
        if connection := host.connections.get(peer):
            self._closed(host.peer, peer, connection)
            if not self._network.is_cut(host.peer, peer):
                told = partial(self._closed, peer, host.peer, connection)
                self._network.after(self._network.delay_s(), told, peer)

    def _closed(self, at: str, peer: str, connection: int) -> None:
        """Let one end of a connection be gone: what was asked over it fails."""
        host = self._hosts[at]
        if not host.is_alive or host.connections.get(peer) != connection:
            return
        del host.connections[peer]
        self._later(host, 0.0, Disconnected(peer))
        for number in [number for number, ask in host.questions.items() if ask.peer == peer]:
            self._fail(host, number, "the connection is closed")

    # -- questions

    def _ask(self, host: _Host, ask: Ask) -> None:
        self.asked[type(ask.question).__name__] += 1
        self._number += 1
        number = self._number
        host.questions[number] = ask
        connection = host.connections.get(ask.peer)
        if connection is None:
            self._fail(host, number, "not connected")
            return
        failed = partial(self._fail, host, number, f"no answer within {ANSWER_S:g} s")
        self._network.after(ANSWER_S, failed, host.peer)
        frame = self._network.garbled(host.peer, ask.peer, wire.encode(ask.question))
        self._send(host.peer, ask.peer, partial(self._asked, ask.peer, host, number, connection, frame))

    def _asked(self, at: str, asker: _Host, number: int, connection: int, frame: bytes) -> None:
        host = self._hosts[at]
        if not host.is_alive or host.connections.get(asker.peer) != connection:
            if not self._network.is_cut(at, asker.peer):  # its system says that there is no such connection
                told = partial(self._closed, asker.peer, at, connection)
                self._network.after(self._network.delay_s(), told, asker.peer)
            return
        try:
            question = wire.decode(frame)
        except RemoteError as error:  # the stream ends without an answer
            self._happened(host, Strike(asker.peer, error.reason))
            return
        if answer := self._happened(host, Asked(asker.peer, question)):
            frame = self._network.garbled(at, asker.peer, wire.encode(answer))
            self._send(at, asker.peer, partial(self._answered, asker, number, frame))

    def _send(self, sender: str, receiver: str, arrive: Callable[[], None]) -> None:
        """Carry a piece of a stream, again and again until it is not lost; a way that is cut carries nothing."""
        delay_s = self._network.stream_delay_s(sender, receiver, RETRANSMIT_S)
        if not self._network.is_cut(sender, receiver):
            self._network.after(delay_s, arrive, receiver)

    def _answered(self, asker: _Host, number: int, frame: bytes) -> None:
        """End a question once: whatever comes second is ignored."""
        ask = asker.questions.pop(number, None)
        if ask is None:
            return
        try:
            event: Answered | AskFailed = Answered(ask.errand, wire.decode(frame))
        except RemoteError as error:
            self._happened(asker, Strike(ask.peer, error.reason))
            event = AskFailed(ask.errand, error)
        self._happened(asker, event)

    def _fail(self, asker: _Host, number: int, detail: str) -> None:
        if ask := asker.questions.pop(number, None):
            self._later(asker, 0.0, AskFailed(ask.errand, RemoteError("unreachable", detail)))

    # -- rumors

    def _spread(self, host: _Host, author: str, frame: bytes, heard: set[str]) -> None:
        """Pass an announcement on over all connections, but to those who are known to have ``heard`` it."""
        for peer in host.connections:
            # It is signed: what was changed on its way is dropped there.
            if peer not in heard and self._network.garbled(host.peer, peer, frame) == frame:
                self._network.send(host.peer, peer, partial(self._heard, peer, author, frame, heard))

    def _heard(self, at: str, author: str, frame: bytes, heard: set[str]) -> None:
        host = self._hosts[at]
        if host.is_alive and at not in heard:
            heard.add(at)
            self._happened(host, Heard(author, wire.decode(frame)))
            self._spread(host, author, frame, heard)


def address_of(peer: str) -> str:
    """Return the address under which a simulated peer is dialed."""
    return f"/simulated/{peer}/p2p/{peer}"
