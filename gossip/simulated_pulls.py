"""Reading and serving adapters in a simulation: what ``peer/exchange.py`` is in life, with the same messages and bytes.

Requests are held, answered, refused, lost and given up; transfers take time, wait for a free upload, break off and go
on where they stopped. What a machine sends that no honest one sends strikes it. It knows neither rounds nor mixing.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from gossip import wire
from gossip.errors import RemoteError
from gossip.events import Event, Fetch, Fetched, FetchFailed, Served
from gossip.messages import Offer, Pull, Refusal
from gossip.node import GossipNode
from gossip.published import PublishedAdapter, RecentPublications
from gossip.simulated_network import SimulatedNetwork

ATTEMPTS = 3
"""Tries per pull, each going on at the offset reached, as in peer/exchange.py."""
STRUCK = frozenset({"malformed", "oversized", "shape", "digest"})
"""Reasons that no honest peer of our run ever gives, as in peer/streams.py."""


class Cheat(Protocol):
    """A Byzantine member's way to serve (gossip/byzantine.py)."""

    def answer(self, reader: str, published: PublishedAdapter) -> PublishedAdapter | None:
        """Return what a reader gets instead; None = nothing, ever."""


@dataclass(slots=True)
class _Transfer:
    """A fetch under way: what was asked, and the bytes of its payload that are here."""

    server: str
    pull: Pull
    received: bytes = b""
    attempts: int = 1


@dataclass(slots=True)
class SimulatedHost:
    """What the shell is to a real node: its shelf, the requests it holds, and the fetches it has under way.

    Args:
        life: counts its starts and ends: what is meant for an earlier life is ignored.
        slowness: so many times longer its local steps take.
        uploading, queue: payloads being sent, and those that wait for one of these to end.
        cheat: how it serves, if it is Byzantine.
    """

    node: GossipNode
    publications: RecentPublications = field(default_factory=RecentPublications)
    held: dict[tuple[str, int], Pull] = field(default_factory=dict)
    fetches: dict[int, _Transfer] = field(default_factory=dict)
    alive: bool = True
    life: int = 0
    slowness: float = 1.0
    uploading: int = 0
    queue: deque[Callable[[], None]] = field(default_factory=deque)
    cheat: Cheat | None = None


class Pulls:
    """All fetches of a simulation; every one ends in exactly one event of its reader's node.

    Args:
        run: the run fingerprint on the wire.
        deliver: gives an event to a peer's node, now; what is meant for an earlier life is its to ignore.
        refuses: whether a peer has cut another off.
        strike: notes that a peer has sent another what no honest peer sends.

    Attributes:
        sent: (sender, digest of the payload) of all that was ever sent.
    """

    def __init__(
        self,
        network: SimulatedNetwork,
        hosts: Mapping[str, SimulatedHost],
        run: bytes,
        deliver: Callable[[str, int, Event], None],
        refuses: Callable[[str, str], bool],
        strike: Callable[[str, str, str], None],
    ) -> None:
        self.sent: set[tuple[str, bytes]] = set()
        self._network = network
        self._hosts = hosts
        self._run = run
        self._deliver = deliver
        self._refuses = refuses
        self._strike = strike
        self._ticket = 0

    # -- the reader asks

    def begin(self, reader: str, fetch: Fetch) -> None:
        """Ask a peer for an adapter."""
        self._ticket += 1
        pull = Pull(self._run, fetch.round, fetch.newer_than, fetch.wait_s, base=fetch.base, kind=fetch.kind)
        self._hosts[reader].fetches[self._ticket] = _Transfer(fetch.peer, pull)
        give_up_s = fetch.wait_s + self._network.links.give_up_s
        given_up = partial(self._end, reader, fetch.peer, self._ticket, None, "timeout")
        self._network.after(give_up_s, given_up, reader)
        self._ask(reader, self._ticket)

    def _ask(self, reader: str, ticket: int) -> None:
        transfer = self._hosts[reader].fetches[ticket]
        frame = self._network.garbled(reader, transfer.server, wire.encode(transfer.pull))
        self._network.send(
            reader, transfer.server, partial(self._asked, transfer.server, reader, ticket, frame)
        )

    def _fail(self, reader: str, server: str, ticket: int, reason: str) -> None:
        """Let a reader hear, a little later, that nothing will come."""
        if not self._network.is_cut(server, reader):
            failed = partial(self._end, reader, server, ticket, None, reason)
            self._network.after(self._network.delay_s(), failed, reader)

    # -- the server answers

    def publish(self, server: str, published: PublishedAdapter) -> None:
        """Put an adapter on a peer's shelf and answer those who wait for it."""
        host = self._hosts[server]
        host.publications.put(published)
        for (reader, ticket), pull in list(host.held.items()):
            self._serve(server, reader, ticket, pull, waited=False)

    def _asked(self, server: str, reader: str, ticket: int, frame: bytes) -> None:
        host = self._hosts[server]
        if not host.alive or self._refuses(server, reader):
            self._fail(reader, server, ticket, "unreachable")
            return
        try:
            pull = wire.decode(frame)
            if not isinstance(pull, Pull):
                raise RemoteError("malformed", "a pull was expected")
        except RemoteError as error:
            self._strike(server, reader, error.reason)
            self._fail(reader, server, ticket, "unreachable")
            return
        if pull.run != self._run:
            self._fail(reader, server, ticket, "run")
        elif not self._serve(server, reader, ticket, pull, waited=pull.wait_s == 0):
            host.held[reader, ticket] = pull
            wait_s = self._network.clocks.real_s(server, pull.wait_s)
            self._network.after(wait_s, partial(self._hold_ended, server, reader, ticket), server)

    def _hold_ended(self, server: str, reader: str, ticket: int) -> None:
        if pull := self._hosts[server].held.get((reader, ticket)):
            self._serve(server, reader, ticket, pull, waited=True)

    def _serve(self, server: str, reader: str, ticket: int, pull: Pull, *, waited: bool) -> bool:
        """Answer a request if it can be answered now; return whether it was."""
        host = self._hosts[server]
        published = host.publications.find(pull, waited=waited)
        if published is None and not waited:
            return False
        host.held.pop((reader, ticket), None)
        if published and host.cheat:
            published = host.cheat.answer(reader, published)
            if published is None:
                return True
        if published is None or pull.offset >= max(1, len(published.payload)):
            refused = partial(self._answered, reader, server, ticket, wire.encode(Refusal("nothing")), b"")
            self._network.send(server, reader, refused)
            return True
        self.sent.add((server, published.digest))
        self._upload(server, host.life, partial(self._send, server, reader, ticket, published, pull.offset))
        return True

    def _upload(self, server: str, life: int, send: Callable[[], float]) -> None:
        """Send now, or once an upload has ended; without a limit, always now."""
        host, limit = self._hosts[server], self._network.links.uploads
        if host.life != life:
            return
        if limit and host.uploading >= limit:
            host.queue.append(partial(self._upload, server, life, send))
            return
        seconds = send()
        if limit:
            host.uploading += 1
            self._network.after(seconds, partial(self._upload_ended, server, life), server)

    def _upload_ended(self, server: str, life: int) -> None:
        host = self._hosts[server]
        if host.life == life:
            host.uploading -= 1
            if host.queue:
                host.queue.popleft()()

    def _send(self, server: str, reader: str, ticket: int, published: PublishedAdapter, offset: int) -> float:
        """Send a payload from an offset on; return how long that keeps an upload, seconds."""
        network = self._network
        frame = network.garbled(server, reader, wire.encode(published.offer(offset)))
        payload = network.garbled(server, reader, bytes(published.payload)[offset:])
        broken_at = network.broken_at(server, reader, len(payload))
        arrive = partial(self._answered, reader, server, ticket, frame, payload[:broken_at])
        network.send(server, reader, arrive, len(payload))
        return len(payload) / network.read_bytes_s.get(reader, network.links.bandwidth_bytes_s)

    # -- the answer is here

    def _answered(self, reader: str, server: str, ticket: int, frame: bytes, payload: bytes) -> None:
        transfer = self._hosts[reader].fetches.get(ticket)
        if transfer is None:
            return  # it has given up, and hangs up on the sender
        try:
            answer = wire.decode(frame)
            if isinstance(answer, Offer) and answer.offset < len(transfer.received):
                return  # a copy of what is here already
            published = self._received(transfer, answer, payload)
        except RemoteError as error:
            if error.reason in STRUCK:
                self._strike(reader, server, error.reason)
            self._end(reader, server, ticket, None, error.reason)
            return
        if published is None:
            if self._hosts[reader].alive:
                self._ask(reader, ticket)
            return
        if published.kind != "rollouts":
            served = partial(self._deliver, server, self._hosts[server].life, Served(reader, published.round))
            self._network.after(self._network.links.latency_s, served, server)
        self._end(reader, server, ticket, published, "")

    def _received(self, transfer: _Transfer, answer: object, payload: bytes) -> PublishedAdapter | None:
        """Return the whole adapter; None = the transfer broke off, and the rest is to be asked for.

        Raises:
            RemoteError: it was refused, or is not what was offered, or broke off too often.
        """
        if isinstance(answer, Refusal):
            raise RemoteError(answer.reason)
        if not isinstance(answer, Offer) or answer.offset != len(transfer.received):
            raise RemoteError("malformed", "an offer from the offset asked for was expected")
        whole = transfer.received + payload
        if len(whole) < answer.length:
            if transfer.attempts == ATTEMPTS:
                raise RemoteError("unreachable", f"the connection broke {ATTEMPTS} times during one transfer")
            transfer.received, transfer.attempts = whole, transfer.attempts + 1
            if whole:
                transfer.pull = dataclasses.replace(
                    transfer.pull, wait_s=0.0, offset=len(whole), digest=answer.digest
                )
            return None
        published = PublishedAdapter(
            answer.round, answer.age, answer.codec, whole, answer.base, kind=answer.kind
        )
        if published.digest != answer.digest:
            raise RemoteError("digest", "the payload does not have the digest that was offered")
        return published

    def _end(
        self, reader: str, server: str, ticket: int, published: PublishedAdapter | None, reason: str
    ) -> None:
        """End a fetch once: whatever comes second (a late answer, the give-up timer) is ignored."""
        host = self._hosts[reader]
        if transfer := host.fetches.pop(ticket, None):
            failed = FetchFailed(server, reason, transfer.pull.kind)
            self._deliver(reader, host.life, Fetched(server, published) if published else failed)
