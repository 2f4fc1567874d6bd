"""The network's in-memory twin: many peers in one process, same contract, no sockets, faults on command.

Passes the same conformance suite as the real one (``tests/transport``). Tests use it to kill a peer, cut a link or
run a whole network without ports. It knows bytes, peers and addresses ``/memory/<peer>/p2p/<peer>``; nothing of
adapters or rounds.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import trio

from gossip.errors import LocalError
from peer.network.identity import peer_id as peer_id_of
from peer.network.transport import (
    CHUNK_BYTES,
    Announced,
    ConnectionChanged,
    Handler,
    Stream,
    TransportFactory,
    Unreachable,
)

log = logging.getLogger(__name__)

FRAME_BYTES_MAX = 16 * 1024
WINDOW_BYTES = 256 * 1024  # what a sender may be ahead of its reader; small, so that tests meet back-pressure


class MemoryNetwork:
    """All peers that can reach each other. One per test."""

    def __init__(self) -> None:
        self._running: dict[str, MemoryTransport] = {}
        self._cuts: set[frozenset[str]] = set()

    def factory(
        self, identity: str | bytes, *, stall_s: float = 30.0, streams_per_peer_max: int = 16
    ) -> TransportFactory:
        """Return a factory of transports for one peer: a peer id, or 32 private key bytes that make one.

        Args:
            identity: who the peer is; a second transport of it may start once the first has ended or was killed.
            stall_s: seconds that a sender waits for its reader before it closes the connection.
            streams_per_peer_max: streams of one peer that are served at the same time; more are refused.
        """
        peer = identity if isinstance(identity, str) else peer_id_of(identity)

        def factory(
            *,
            handlers: Mapping[str, Handler],
            topic: str,
            on_announced: Announced,
            on_connection: ConnectionChanged,
        ) -> AbstractAsyncContextManager[MemoryTransport]:
            transport = MemoryTransport(self, peer, handlers, topic, on_announced, on_connection)
            transport.stall_s, transport.streams_per_peer_max = stall_s, streams_per_peer_max
            return self._run(transport)

        return factory

    @asynccontextmanager
    async def _run(self, transport: MemoryTransport) -> AsyncIterator[MemoryTransport]:
        peer = transport.peer_id
        if peer in self._running:
            raise LocalError(f"{peer} is running already: end it first, or use another identity")
        failure: Exception | None = None
        async with trio.open_nursery() as nursery:
            transport.nursery = nursery
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

    def cut(self, one: str, other: str) -> None:
        """Break the link between two peers, present connections included."""
        self._cuts.add(frozenset((one, other)))
        if one in self._running:
            self._running[one].disconnect(other, "the link was cut")

    def heal(self, one: str, other: str) -> None:
        """Let two peers reach each other again."""
        self._cuts.discard(frozenset((one, other)))

    def reachable(self, one: str, other: str) -> MemoryTransport | None:
        """Return ``other`` if it runs and ``one`` has a link to it."""
        if one not in self._running or frozenset((one, other)) in self._cuts:
            return None
        return self._running.get(other)

    def relayed_from(self, peer: str) -> Iterator[MemoryTransport]:
        """Yield all that an announcement of ``peer`` reaches by relaying over connections, ``peer`` excluded."""
        seen, frontier = {peer}, deque([peer])
        while frontier:
            transport = self._running.get(frontier.popleft())
            for neighbor in transport.connections if transport else ():
                if neighbor not in seen and (found := self._running.get(neighbor)):
                    seen.add(neighbor)
                    frontier.append(neighbor)
                    yield found


class MemoryTransport:
    """One peer of a ``MemoryNetwork``; see ``transport.Transport`` for the contract of the public methods."""

    stall_s: float
    streams_per_peer_max: int
    nursery: trio.Nursery

    def __init__(
        self,
        network: MemoryNetwork,
        peer: str,
        handlers: Mapping[str, Handler],
        topic: str,
        on_announced: Announced,
        on_connection: ConnectionChanged,
    ) -> None:
        self.peer_id = peer
        self.addresses = (f"/memory/{peer}/p2p/{peer}",)
        self.connections: dict[str, _Connection] = {}
        self.topic = topic
        self._network = network
        self._handlers = handlers
        self._on_announced = on_announced
        self._on_connection = on_connection
        self._known: set[str] = set()
        self._serving: Counter[str] = Counter()

    async def dial(self, address: str) -> str:
        """Connect; see ``Transport.dial``."""
        await trio.lowlevel.checkpoint()
        parts = address.split("/")
        if (
            len(parts) != 5
            or (parts[0], parts[1], parts[3]) != ("", "memory", "p2p")
            or not (parts[2] and parts[4])
        ):
            raise LocalError(f"malformed address {address!r}; valid is for example /memory/alice/p2p/alice")
        place, peer = parts[2], parts[4]
        if peer == self.peer_id:
            raise LocalError(f"{address} is this peer's own address: dial somebody else's")
        if peer not in self.connections:
            if self._network.reachable(self.peer_id, place) is None:
                raise Unreachable(f"nobody answers at {address}: is the peer running, is the port open?")
            if place != peer:
                raise Unreachable(f"another peer than {peer} answers at {address}")
            self._connect(peer)
        self._known.add(peer)
        return peer

    async def open(self, peer: str, protocol: str) -> Stream:
        """Open a stream, redialing if need be; see ``Transport.open``."""
        await trio.lowlevel.checkpoint()
        if peer not in self.connections:
            if peer not in self._known:
                raise Unreachable(f"not connected to {peer}, and no address of it is known")
            if self._network.reachable(self.peer_id, peer) is None:
                raise Unreachable(f"nobody answers at /memory/{peer}: is the peer running, is the port open?")
            self._connect(peer)
        connection = self.connections[peer]
        return connection.remote_of(self).serve(protocol, connection)

    def serve(self, protocol: str, connection: _Connection) -> MemoryStream:
        """Start our handler on a new stream and return the other end of it."""
        opener = connection.remote_of(self)
        if protocol not in self._handlers:
            raise Unreachable(f"{self.peer_id} does not speak {protocol}")
        if self._serving[opener.peer_id] >= self.streams_per_peer_max:
            raise Unreachable(f"{self.peer_id} refused {protocol}: too many streams")
        there, here = _Pipe(), _Pipe()
        ours = MemoryStream(opener.peer_id, connection, incoming=here, outgoing=there, stall_s=self.stall_s)
        theirs = MemoryStream(self.peer_id, connection, incoming=there, outgoing=here, stall_s=opener.stall_s)
        connection.pipes |= {there, here}
        self._serving[opener.peer_id] += 1
        self.nursery.start_soon(self._serve, protocol, self._handlers[protocol], ours)
        return theirs

    async def _serve(self, protocol: str, handler: Handler, stream: MemoryStream) -> None:
        try:
            await handler(stream)
        except Exception as error:  # noqa: BLE001 - the seam: whatever a handler raises ends its stream only
            log.info("%s of %s ended: %r", protocol, stream.peer, error)
            await stream.reset()
        else:
            await stream.close()
        finally:
            self._serving[stream.peer] -= 1
            stream.forget()

    def is_connected(self, peer: str) -> bool:
        """Whether a connection to ``peer`` is open."""
        return peer in self.connections

    async def announce(self, topic: str, frame: bytes) -> None:
        """Publish to all whom relaying reaches; see ``Transport.announce``."""
        if len(frame) > FRAME_BYTES_MAX:
            raise LocalError(f"an announcement of {len(frame)} bytes: at most {FRAME_BYTES_MAX}")
        await trio.lowlevel.checkpoint()
        for transport in list(self._network.relayed_from(self.peer_id)):
            if transport.topic == topic:
                transport.hear(self.peer_id, bytes(frame))

    def hear(self, author: str, frame: bytes) -> None:
        """Called by the author's transport."""
        try:
            self._on_announced(author, frame)
        except Exception:
            log.exception("on_announced raised")  # our own bug, yet no reason to fail the author

    async def drop(self, peer: str) -> None:
        """Close the connection to ``peer``."""
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

    def _connect(self, peer: str) -> None:
        other = self._network.reachable(self.peer_id, peer)
        assert other is not None, "the caller has checked"
        connection = _Connection(self, other)
        for end in (self, other):
            end.connections[connection.remote_of(end).peer_id] = connection
        for end in (self, other):
            end.tell(connection.remote_of(end).peer_id, True)

    def tell(self, peer: str, connected: bool) -> None:
        """Tell our runtime that a connection came or went."""
        try:
            self._on_connection(peer, connected)
        except Exception:
            log.exception("on_connection raised")  # our own bug, yet no reason to fail the other end


class _Connection:
    """Two transports that know each other, and the pipes between them."""

    def __init__(self, one: MemoryTransport, other: MemoryTransport) -> None:
        self._ends = (one, other)
        self.pipes: set[_Pipe] = set()  # of the streams that are being served
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


class _Pipe:
    """One direction of a stream."""

    def __init__(self) -> None:
        self.buffer = bytearray()
        self.finished = False
        self.refused = False  # the reader has closed: what still comes resets the stream
        self.broken: str | None = None
        self.changed = trio.lowlevel.ParkingLot()

    def end(self, reason: str, *, drop: bool) -> None:
        if self.broken is None:
            self.broken = reason
            if drop and not self.finished:  # what is complete stays readable
                self.buffer.clear()
            self.changed.unpark_all()


class MemoryStream:
    """One end of a stream; see ``peer.network.transport.Stream`` for the contract of the methods."""

    def __init__(
        self, peer: str, connection: _Connection, *, incoming: _Pipe, outgoing: _Pipe, stall_s: float
    ) -> None:
        self.peer = peer
        self._connection = connection
        self._incoming = incoming
        self._outgoing = outgoing
        self._stall_s = stall_s

    async def send(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of ``data``; see ``Stream.send``."""
        view = memoryview(data).cast("B")
        for start in range(0, max(len(view), 1), CHUNK_BYTES):
            await trio.lowlevel.checkpoint()
            await self._send_chunk(view[start : start + CHUNK_BYTES])

    async def _send_chunk(self, chunk: memoryview) -> None:
        pipe = self._outgoing
        while True:
            if pipe.refused:
                pipe.end("the peer closed the stream", drop=True)
            if pipe.broken is not None:
                raise Unreachable(pipe.broken)
            if pipe.finished:
                raise Unreachable("sending was finished already")
            if not chunk:
                return
            if room := WINDOW_BYTES - len(pipe.buffer):
                pipe.buffer += chunk[:room]
                chunk = chunk[room:]
                pipe.changed.unpark_all()
                continue
            with trio.move_on_after(self._stall_s) as scope:
                await pipe.changed.park()
            if scope.cancelled_caught:
                self._connection.end(f"the peer read nothing for {self._stall_s:g} s")

    async def receive(self, bytes_max: int) -> bytes:
        """Return 1 to ``bytes_max`` bytes, ``b""`` at the end; see ``Stream.receive``."""
        await trio.lowlevel.checkpoint()
        pipe = self._incoming
        while not pipe.buffer:
            if pipe.finished:
                return b""
            if pipe.broken is not None:
                raise Unreachable(pipe.broken)
            await pipe.changed.park()
        data = bytes(pipe.buffer[:bytes_max])
        del pipe.buffer[:bytes_max]
        pipe.changed.unpark_all()
        return data

    async def finish(self) -> None:
        """Half close; see ``Stream.finish``."""
        await trio.lowlevel.checkpoint()
        if self._outgoing.broken is not None:
            raise Unreachable(self._outgoing.broken)
        self._outgoing.finished = True
        self._outgoing.changed.unpark_all()

    async def close(self) -> None:
        """End both directions."""
        self._outgoing.finished |= self._outgoing.broken is None
        self._incoming.refused = True
        for pipe in (self._incoming, self._outgoing):
            pipe.changed.unpark_all()

    async def reset(self) -> None:
        """Drop the stream at once."""
        for pipe in (self._incoming, self._outgoing):
            pipe.end("the stream was reset", drop=True)
        self._incoming.buffer.clear()
        self._incoming.finished = False

    def forget(self) -> None:
        """Called when nobody serves the stream any more; what was sent can still be read at the other end."""
        self._connection.pipes -= {self._incoming, self._outgoing}
