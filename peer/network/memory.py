"""The network's in-memory twin: many peers in one process, same contract, no sockets.

Passes the same conformance suite as the real one (``tests/transport``). Its addresses are ``/memory/<place>/p2p/<peer
id>``; a peer listens at ``/memory/<place>``. Whoever holds a ``MemoryNetwork`` can kill a peer to see what the others
make of it. It knows bytes, peers and addresses; nothing of adapters or rounds.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass

import trio

from gossip.errors import LocalError
from peer.network.group import NOT_LISTED, OPEN_GROUP, OTHER_GROUP, Group
from peer.network.identity import peer_id
from peer.network.limits import DEFAULT_LIMITS, Limits
from peer.network.memory_stream import MemoryStream, Pipe
from peer.network.transport import (
    ANNOUNCEMENT_BYTES_MAX,
    Announced,
    ConnectionChanged,
    Handler,
    Stream,
    Transport,
    TransportFactory,
    TransportKind,
    Unreachable,
)

log = logging.getLogger(__name__)

_LISTEN_EXAMPLE = "/memory/alice"
_EXAMPLE = f"{_LISTEN_EXAMPLE}/p2p/alice"


def _place_of(listen: str) -> str:
    """Return the place of an address to listen on, ``/memory/<place>``.

    Raises:
        LocalError: malformed.
    """
    match listen.split("/"):
        case ["", "memory", place] if place:
            return place
        case _:
            raise LocalError(f"malformed listen address {listen!r}; valid is for example {_LISTEN_EXAMPLE}")


def _place_and_peer(address: str) -> tuple[str, str]:
    """Return place and peer id of a full address, ``/memory/<place>/p2p/<peer id>``.

    Raises:
        LocalError: malformed.
    """
    match address.split("/"):
        case ["", "memory", place, "p2p", peer] if place and peer:
            return place, peer
        case _:
            raise LocalError(f"malformed address {address!r}; valid is for example {_EXAMPLE}")


@dataclass(frozen=True, slots=True)
class _Options:
    peer: str
    group: Group
    place: str
    addresses: tuple[str, ...]
    limits: Limits


class MemoryNetwork:
    """All peers that can reach each other, in one event loop."""

    def __init__(self) -> None:
        self._running: dict[str, MemoryTransport] = {}  # by peer id

    def factory(
        self,
        identity: str | bytes,
        *,
        group: Group = OPEN_GROUP,
        listen: str = "",
        announce: tuple[str, ...] = (),
        limits: Limits = DEFAULT_LIMITS,
    ) -> TransportFactory:
        """Return a factory of transports for one peer.

        Args:
            identity: who the peer is: a peer id, or 32 private key bytes that make one. A second transport of it may
                start once the first has ended or was killed.
            group: who may connect.
            listen: ``/memory/<place>``; default: the place that is called like the peer.
            announce: full addresses to tell others instead of the one it listens on.
            limits: what to keep to, of which ``stall_s``, ``streams_per_peer_max`` and ``newcomer_s`` mean something
                in memory.

        Raises:
            LocalError: ``listen`` is malformed.
        """
        peer = identity if isinstance(identity, str) else peer_id(identity)
        place = _place_of(listen) if listen else peer
        options = _Options(peer, group, place, announce or (f"/memory/{place}/p2p/{peer}",), limits)

        def factory(
            *,
            handlers: Mapping[str, Handler],
            topic: str,
            on_announced: Announced,
            on_connection: ConnectionChanged,
        ) -> AbstractAsyncContextManager[Transport]:
            return self._run(options, handlers, topic, on_announced, on_connection)

        return factory

    @asynccontextmanager
    async def _run(
        self,
        options: _Options,
        handlers: Mapping[str, Handler],
        topic: str,
        on_announced: Announced,
        on_connection: ConnectionChanged,
    ) -> AsyncIterator[MemoryTransport]:
        peer, place = options.peer, options.place
        if peer in self._running:
            raise LocalError(f"{peer} is running already: end it first, or use another identity")
        if self.listener_at(place) is not None:
            raise LocalError(f"cannot listen on /memory/{place}: another peer does, choose another name")
        failure: Exception | None = None
        async with trio.open_nursery() as nursery:
            transport = MemoryTransport(self, options, nursery, handlers, topic, on_announced, on_connection)
            self._running[peer] = transport
            try:
                yield transport
            except Exception as error:  # noqa: BLE001 - raised again below, without the nursery's group round it
                failure = error
            finally:
                transport.end("the peer has left")
                if self._running.get(peer) is transport:
                    del self._running[peer]
                nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure

    def kill(self, peer: str) -> None:
        """End a peer as by power loss: all its connections break at once, nobody reaches it until it starts anew."""
        self._running.pop(peer).end("the peer was killed")

    def is_running(self, transport: MemoryTransport) -> bool:
        """Whether a transport has neither ended nor been killed."""
        return self._running.get(transport.peer_id) is transport

    def listener_at(self, place: str) -> MemoryTransport | None:
        """Return who listens at a place, if anybody does."""
        return next((transport for transport in self._running.values() if transport.place == place), None)

    def relayed_from(self, peer: str) -> Iterator[MemoryTransport]:
        """Yield all that an announcement of ``peer`` reaches between peers that trust each other, ``peer`` excluded."""
        reached, frontier = {peer}, deque([peer])
        while frontier:
            relay = self._running.get(frontier.popleft())
            for neighbor in relay.connections if relay else ():
                transport = self._running.get(neighbor)
                if relay and transport and neighbor not in reached and transport.is_friend_of(relay):
                    reached.add(neighbor)
                    frontier.append(neighbor)
                    yield transport


class MemoryTransport:
    """One peer of a ``MemoryNetwork``; see ``transport.Transport`` for the contract of the public methods."""

    def __init__(
        self,
        network: MemoryNetwork,
        options: _Options,
        nursery: trio.Nursery,
        handlers: Mapping[str, Handler],
        topic: str,
        on_announced: Announced,
        on_connection: ConnectionChanged,
    ) -> None:
        self.peer_id = options.peer
        self.place = options.place
        self.addresses = options.addresses
        self.limits = options.limits
        self.group = options.group
        self.topic = topic
        self.connections: dict[str, _Connection] = {}  # by the peer id of the other end
        self._network = network
        self._nursery = nursery
        self._handlers = handlers
        self._on_announced = on_announced
        self._on_connection = on_connection
        self._places: dict[str, str] = {}  # peer id -> where it was dialed
        self._serving: Counter[str] = Counter()
        self._members: set[str] = set()  # peer ids

    async def dial(self, address: str) -> str:
        """Connect; see ``Transport.dial``."""
        await trio.lowlevel.checkpoint()
        place, peer = _place_and_peer(address)
        if peer == self.peer_id:
            raise LocalError(f"{address} is this peer's own address: dial somebody else's")
        if peer not in self.connections:
            self._connect(place, peer, address)
        self._places[peer] = place
        return peer

    async def probe(self, address: str) -> str:
        """See who is there; see ``Transport.probe``."""
        await trio.lowlevel.checkpoint()
        place, peer = _place_and_peer(address)
        self._reach(place, peer, address)
        return peer

    async def open(self, peer: str, protocol: str) -> Stream:
        """Open a stream, redialing if need be; see ``Transport.open``."""
        await trio.lowlevel.checkpoint()
        if peer not in self.connections:
            if peer not in self._places:
                raise Unreachable(f"not connected to {peer}, and no address of it is known")
            place = self._places[peer]
            self._connect(place, peer, f"/memory/{place}")
        connection = self.connections[peer]
        return connection.remote_of(self).serve(protocol, connection)

    def _connect(self, place: str, peer: str, address: str) -> None:
        connection = _Connection(self, self._reach(place, peer, address))
        for end in (self, connection.remote_of(self)):
            end.connections[connection.remote_of(end).peer_id] = connection
        for end in (self, connection.remote_of(self)):
            end.tell(connection.remote_of(end).peer_id, True)
            end.expect_trust(connection)

    def _reach(self, place: str, peer: str, address: str) -> MemoryTransport:
        """Return the peer at a place, or raise ``Unreachable``."""
        remote = self._network.listener_at(place)
        if remote is None or not self._network.is_running(self):
            raise Unreachable(f"nobody answers at {address}: is the peer running, is the port open?")
        if remote.peer_id != peer:
            raise Unreachable(f"another peer than {peer} answers at {address}")
        if not self.group.admits(peer):
            raise Unreachable(f"{peer} {NOT_LISTED}")
        if remote.group.key != self.group.key or not remote.group.admits(self.peer_id):
            raise Unreachable(f"{address} answers but breaks off: {OTHER_GROUP}")
        return remote

    def expect_trust(self, connection: _Connection) -> None:
        """End a connection whose other end has not become a member in time."""

        async def watch() -> None:
            await trio.sleep(self.limits.newcomer_s)
            if connection.remote_of(self).peer_id not in self._members:
                connection.end("no member in time")

        self._nursery.start_soon(watch)

    def serve(self, protocol: str, connection: _Connection) -> MemoryStream:
        """Start our handler on a new stream and return the other end of it."""
        opener = connection.remote_of(self)
        if protocol not in self._handlers:
            raise Unreachable(f"{self.peer_id} does not speak {protocol}")
        if self._serving[opener.peer_id] >= self.limits.streams_per_peer_max:
            raise Unreachable(f"{self.peer_id} refused {protocol}: too many streams")
        request, answer = Pipe(), Pipe()
        connection.pipes |= {request, answer}
        self._serving[opener.peer_id] += 1
        self._nursery.start_soon(self._serve, protocol, connection, request, answer)
        return MemoryStream(self.peer_id, answer, request, stall_s=opener.limits.stall_s, cut=connection.end)

    async def _serve(self, protocol: str, connection: _Connection, request: Pipe, answer: Pipe) -> None:
        opener = connection.remote_of(self).peer_id
        stream = MemoryStream(opener, request, answer, stall_s=self.limits.stall_s, cut=connection.end)
        try:
            await self._handlers[protocol](stream)
        except Exception as error:  # noqa: BLE001 - the seam: whatever a handler raises ends its stream only
            log.info("%s of %s ended: %r", protocol, opener, error)
            await stream.reset()
        else:
            await stream.close()
        finally:
            self._serving[opener] -= 1
            connection.pipes -= {request, answer}  # what was sent can still be read at the other end

    @property
    def refused(self) -> Mapping[str, int]:
        """Nobody is refused in one process."""
        return {}

    def is_connected(self, peer: str) -> bool:
        """Whether a connection to ``peer`` is open."""
        return peer in self.connections

    async def announce(self, topic: str, frame: bytes) -> None:
        """Publish to all whom relaying reaches; see ``Transport.announce``."""
        if len(frame) > ANNOUNCEMENT_BYTES_MAX:
            raise LocalError(f"an announcement of {len(frame)} bytes: at most {ANNOUNCEMENT_BYTES_MAX}")
        await trio.lowlevel.checkpoint()
        for transport in list(self._network.relayed_from(self.peer_id)):
            if transport.topic == topic:
                transport.hear(self.peer_id, bytes(frame))

    def hear(self, author: str, frame: bytes) -> None:
        """Take an announcement; called by the author's transport."""
        try:
            self._on_announced(author, frame)
        except Exception:
            log.exception("on_announced raised")  # our own bug, yet no reason to fail the author

    def trust(self, peer: str) -> None:
        """Take ``peer`` for a member; see ``Transport.trust``."""
        self._members.add(peer)

    def is_friend_of(self, other: MemoryTransport) -> bool:
        """Whether both trust each other."""
        return other.peer_id in self._members and self.peer_id in other._members

    async def drop(self, peer: str) -> None:
        """Close the connection to ``peer``, and trust it no more."""
        self._members.discard(peer)
        self.disconnect(peer, "the connection was dropped")
        await trio.lowlevel.checkpoint()

    def disconnect(self, peer: str, reason: str) -> None:
        """Break the connection to ``peer``, if there is one, at both ends."""
        if connection := self.connections.get(peer):
            connection.end(reason)

    def end(self, reason: str) -> None:
        """Break everything."""
        for peer in list(self.connections):
            self.disconnect(peer, reason)

    def tell(self, peer: str, connected: bool) -> None:
        """Tell our runtime that a connection came or went."""
        try:
            self._on_connection(peer, connected)
        except Exception:
            log.exception("on_connection raised")  # our own bug, yet no reason to fail the other end


class _Connection:
    """Two transports that know each other, and the pipes between them."""

    def __init__(self, dialer: MemoryTransport, dialed: MemoryTransport) -> None:
        self._ends = (dialer, dialed)
        self.pipes: set[Pipe] = set()  # of the streams that are being served
        self.ended = False

    def remote_of(self, end: MemoryTransport) -> MemoryTransport:
        return self._ends[1] if end is self._ends[0] else self._ends[0]

    def end(self, reason: str) -> None:
        if self.ended:
            return
        self.ended = True
        for end in self._ends:
            del end.connections[self.remote_of(end).peer_id]
        for pipe in self.pipes:
            pipe.end(reason, drop=False)
        for end in self._ends:
            end.tell(self.remote_of(end).peer_id, False)


_PROCESS = MemoryNetwork()
"""The network of all peers of this process, as loopback is the network of all peers of this machine."""


def _memory_transport(
    *, private_key: bytes, group: Group, listen: str, announce: tuple[str, ...], limits: Limits
) -> TransportFactory:
    return _PROCESS.factory(private_key, group=group, listen=listen, announce=announce, limits=limits)


KIND = TransportKind(
    _LISTEN_EXAMPLE, _place_of, lambda address: _place_and_peer(address)[1], _memory_transport
)
"""The catalogue's entry: peers of one process that listen at ``/memory/<place>`` reach each other."""
