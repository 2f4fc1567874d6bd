"""The seam to the network: authenticated byte streams between peers, and small best-effort announcements.

Everything above this file (``peer/exchange.py``, ``peer/runtime.py``) is written against ``Transport`` and ``Stream``
alone and runs unchanged on every transport of the catalogue (``catalogue.py``): one conformance suite
(``tests/transport``) runs on all of them. A transport knows bytes, peers and addresses; it knows nothing of adapters,
rounds or runs.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

import trio

from gossip.errors import RemoteError
from peer.network.group import Group
from peer.network.limits import Limits


class Unreachable(RemoteError):
    """The peer could not be reached, or the connection broke or stalled. Whatever was sent may be lost."""

    def __init__(self, detail: str) -> None:
        super().__init__("unreachable", detail)


class Ended(Unreachable):
    """The other side finished before all was there. ``received``: bytes that had come of ``expected``."""

    def __init__(self, received: int, expected: int) -> None:
        super().__init__(f"ended after {received} of {expected} bytes")
        self.received = received


class Stream(Protocol):
    """One bidirectional byte stream to an authenticated peer.

    All methods raise ``Unreachable`` when the connection breaks or the other side resets. A killed peer is told from
    a finished stream as long as the remote runs our transport; other libp2p programs may end cleanly halfway, so
    callers always carry length and digest. One task sends and one receives at a time.
    """

    @property
    def peer(self) -> str:
        """The remote's peer id (base58), proven by the handshake."""
        ...

    async def send(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of ``data``; returns when the socket has it, which is not when the peer has.

        Safe to cancel at any point: the connection stays usable, how much was sent is unknown (reset the stream).

        Raises:
            Unreachable: broken, or the peer took no byte for ``stall_s`` (then the whole connection is closed).
        """
        ...

    async def receive(self, bytes_max: int) -> bytes:
        """Return 1 to ``bytes_max`` bytes, or ``b""`` once the other side has finished. Safe to cancel.

        Waits for ever if nothing comes: set a time limit round it. Asking for 64 KiB or more says that a bulk transfer
        is under way and allows the peer up to 16 MiB ahead.
        """
        ...

    async def finish(self) -> None:
        """Say that no more bytes will be sent (half close); receiving still works."""
        ...

    async def close(self) -> None:
        """End both directions; what was sent still arrives, what still comes resets. Never raises, at once."""
        ...

    async def reset(self) -> None:
        """Drop the stream at once, unread bytes at both ends included; never raises."""
        ...


Handler = Callable[[Stream], Awaitable[None]]
"""Serves one incoming stream. Whatever it raises ends that stream only; the transport closes the stream after it.

It may be cancelled at any await when the transport ends."""

Announced = Callable[[str, bytes], None]
"""Called with (author's peer id, frame) for each announcement of another peer. Must be quick and not raise.

The author is proven by its signature, also when others relayed the frame. Each frame comes once within two minutes;
after that a stranger may replay it: frames carry their own time or count."""

ConnectionChanged = Callable[[str, bool], None]
"""Called with (peer id, is connected now), once per change, however many connections there are to that peer.

Comes from inside the transport's own calls (``drop`` for one): must be quick, not raise and not call back."""


class Transport(Protocol):
    """A host on the network with one identity. Used inside ``async with``; leaving it ends everything."""

    @property
    def peer_id(self) -> str:
        """Our own peer id (base58)."""
        ...

    @property
    def addresses(self) -> tuple[str, ...]:
        """Full multiaddrs under which others can dial us, ``/p2p/<peer id>`` included; known after entering."""
        ...

    @property
    def refused(self) -> Mapping[str, int]:
        """Reason -> how often others were not let in, cut off, or broke a rule of the transport for it, so far."""
        ...

    async def dial(self, address: str) -> str:
        """Connect to a multiaddr ending in ``/p2p/<peer id>``; return that peer id. At once if connected already.

        Raises:
            LocalError: the address is malformed (the user's typing).
            Unreachable: no answer within ``dial_s`` (15 s), refused, or another identity answered.
        """
        ...

    async def probe(self, address: str) -> str:
        """Find out who is at a multiaddr that ends in ``/p2p/<peer id>``, connected or not; return that peer id.

        Whatever connection this takes is closed again, and those that are open stay as they are.

        Raises:
            LocalError: the address is malformed.
            Unreachable: nobody or somebody else is there, or no answer came within ``dial_s`` (15 s).
        """
        ...

    async def open(self, peer: str, protocol: str) -> Stream:
        """Open a stream to a connected or formerly dialed peer (redials by itself).

        Raises:
            Unreachable: not reachable, unknown protocol there, or too many streams, within ``open_s`` (15 s).
        """
        ...

    def is_connected(self, peer: str) -> bool:
        """Whether a connection to ``peer`` is open as far as we know (not proof of life: use a heartbeat)."""
        ...

    async def announce(self, topic: str, frame: bytes) -> None:
        """Publish at most 16 KiB to all peers of ``topic``: best effort, may be lost, never raises for the network."""
        ...

    def trust(self, peer: str) -> None:
        """Take ``peer`` for a member from now on, also when it connects again, until it is dropped; never raises.

        Who is not trusted within ``newcomer_s`` of connecting is disconnected; announcements travel between peers that
        trust each other only.
        """
        ...

    async def drop(self, peer: str) -> None:
        """Close all connections to ``peer`` now, even if a writer is stuck, and trust it no more.

        Never raises, returns within 2 s.
        """
        ...


class TransportFactory(Protocol):
    """What ``runtime.py`` needs to start a transport; ``catalogue.transport_for`` makes one for an address."""

    def __call__(
        self,
        *,
        handlers: Mapping[str, Handler],
        topic: str,
        on_announced: Announced,
        on_connection: ConnectionChanged,
    ) -> AbstractAsyncContextManager[Transport]:
        """Return an async context manager that yields a listening ``Transport``.

        Args:
            handlers: protocol name -> who serves the streams that others open for it.
            topic: the one topic of announcements to take part in.
            on_announced: told every announcement of others.
            on_connection: told which peers come and go.
        """
        ...


class MakeTransport(Protocol):
    """How a kind of transport makes the factory for one peer."""

    def __call__(
        self, *, private_key: bytes, group: Group, listen: str, announce: tuple[str, ...], limits: Limits
    ) -> TransportFactory:
        """Return a factory of transports with this identity.

        Args:
            private_key: 32 raw Ed25519 bytes.
            group: who gets a connection, in either direction: proven before any protocol is offered.
            listen: where to listen, an address of this kind.
            announce: full addresses to tell others instead of the ones we listen on; empty: those.
            limits: what to keep to.

        Raises:
            LocalError: ``listen`` is malformed.
        """
        ...


@dataclass(frozen=True, slots=True)
class TransportKind:
    """A kind of transport as the catalogue (``catalogue.py``) holds it. To read one costs no heavy import."""

    listen_example: str
    """A valid address to listen on, for error messages."""
    check_listen: Callable[[str], object]
    """Raises ``LocalError`` for an address that cannot be listened on: malformed, or taken; leaves nothing open."""
    peer_of: Callable[[str], str]
    """Returns the peer id at the end of a full address to dial, or raises ``LocalError``: malformed."""
    make: MakeTransport


ANNOUNCEMENT_BYTES_MAX = 16 * 1024
"""Largest announcement. Source: guess; a presence of ours has a few hundred bytes."""

CHUNK_BYTES = 256 * 1024
"""Largest piece handed to the network at once: what cancel safety and fairness are counted in (libp2p.md section 6)."""


async def receive_exactly(stream: Stream, count: int, stall_s: float) -> bytearray:
    """Return exactly ``count`` bytes, growing no more than what has arrived.

    Raises:
        Unreachable: the stream ended early, or brought no byte for ``stall_s`` seconds.
    """
    buffer = bytearray()
    while len(buffer) < count:
        with trio.move_on_after(stall_s):
            piece = await stream.receive(min(count - len(buffer), 1 << 20))
            if not piece:
                raise Ended(len(buffer), count)
            buffer += piece
            continue
        raise Unreachable(f"nothing arrived for {stall_s:g} s, {len(buffer)} of {count} bytes received")
    return buffer
