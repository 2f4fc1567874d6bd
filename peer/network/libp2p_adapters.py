"""Our connections, limits and announcements in the shapes that libp2p's swarm and GossipSub want to see.

Imports libp2p's private seams (pinned: ``libp2p==0.8.1``) for ``libp2p.py`` and for nobody else. Knows
nothing of dialing, of our own protocols or of what is announced.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable
from functools import partial

import trio
from libp2p.abc import ConnectionType, IMuxedConn, IMuxedStream, INetConn, INotifee, ISecureConn
from libp2p.custom_types import TProtocol, TSecurityOptions
from libp2p.peer.id import ID
from libp2p.protocol_muxer.exceptions import MultiselectError
from libp2p.pubsub.gossipsub import PROTOCOL_ID_V11, GossipSub
from libp2p.pubsub.pb import rpc_pb2
from libp2p.pubsub.pubsub import Pubsub
from libp2p.security.secure_session import SecureSession
from libp2p.stream_muxer.exceptions import (
    MuxedConnUnavailable,
    MuxedStreamEOF,
    MuxedStreamError,
    MuxedStreamReset,
)
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX_ID
from libp2p.stream_muxer.yamux.yamux import Yamux
from libp2p.transport.exceptions import MuxerUpgradeFailure
from libp2p.transport.upgrader import TransportUpgrader
from multiaddr import Multiaddr

from peer.network.muxed_stream import BULK_READ_BYTES, Credit, MuxedStream, StreamBroken
from peer.network.secure_link import SecureLink
from peer.network.transport import Announced
from peer.network.yamux import Session

log = logging.getLogger(__name__)


class Upgrader(TransportUpgrader):
    """Makes our own connections where the library would make its own, whatever muxer class it was given."""

    def __init__(
        self, security: TSecurityOptions, make: Callable[[SecureSession, ID], MuxedConnection]
    ) -> None:
        super().__init__(security, {TProtocol(YAMUX_ID): Yamux})
        self._make = make

    async def upgrade_connection(self, conn: ISecureConn, peer_id: ID) -> MuxedConnection:
        """Agree on yamux, then take the socket over."""
        try:
            await self.muxer_multistream.select_transport(conn)
        except MultiselectError as error:
            raise MuxerUpgradeFailure("the remote does not speak yamux") from error
        return self._make(conn, peer_id)


def take_over(conn: SecureSession) -> SecureLink:
    """Return our own reader and writer of the socket and ciphers that the library's handshake has set up."""
    noise = conn.conn
    protocol = noise.noise_state.noise_protocol
    return SecureLink(
        noise.read_writer.read_write_closer.stream.stream,
        partial(protocol.cipher_state_encrypt.encrypt_with_ad, None),
        partial(protocol.cipher_state_decrypt.decrypt_with_ad, None),
        early=conn._drain(None),
    )


class MuxedConnection(IMuxedConn):
    """A ``Session`` as the swarm wants to see it."""

    def __init__(
        self,
        conn: SecureSession,
        peer_id: ID,
        stall_s: float,
        credit: Credit,
        on_end: Callable[[MuxedConnection], None],
    ) -> None:
        self.peer_id = peer_id
        self.event_started = trio.Event()
        self._conn = conn
        self.session = Session(
            take_over(conn),
            is_initiator=conn.is_initiator,
            stall_s=stall_s,
            credit=credit,
            on_end=partial(on_end, self),
        )

    @property
    def is_initiator(self) -> bool:
        """Whether we dialed."""
        return self._conn.is_initiator

    @property
    def is_established(self) -> bool:
        """Whether streams can be opened."""
        return self.event_started.is_set() and not self.is_closed

    @property
    def is_closed(self) -> bool:
        """Whether the connection has ended."""
        return self.session.ended.is_set()

    async def start(self) -> None:
        """Run until the connection ends."""
        self.event_started.set()
        await self.session.run()

    async def close(self) -> None:
        """End the connection at once."""
        self.session.abort("we closed the connection")
        await trio.lowlevel.checkpoint()

    async def open_stream(self) -> LibraryStream:
        """Open a stream for one of the library's own protocols."""
        try:
            return LibraryStream(self, self.session.open())
        except StreamBroken as error:
            raise MuxedConnUnavailable(str(error)) from error

    async def accept_stream(self) -> LibraryStream:
        """Wait for a stream that the remote opens."""
        try:
            return LibraryStream(self, await self.session.accept())
        except StreamBroken as error:
            raise MuxedConnUnavailable(str(error)) from error

    def get_remote_address(self) -> tuple[str, int] | None:
        """IP and port of the remote end."""
        return self._conn.get_remote_address()

    def get_transport_addresses(self) -> list[Multiaddr]:
        """The remote end as the library writes it."""
        remote = self.get_remote_address()
        if remote is None:
            return []
        return [Multiaddr(f"/{'ip6' if ':' in remote[0] else 'ip4'}/{remote[0]}/tcp/{remote[1]}")]

    def get_connection_type(self) -> ConnectionType:
        """Always direct: relays are not used."""
        return ConnectionType.DIRECT


class LibraryStream(IMuxedStream):
    """A stream with the methods and exceptions that the library's own protocols expect."""

    def __init__(self, connection: MuxedConnection, stream: MuxedStream) -> None:
        self.muxed_conn = connection
        self.stream = stream

    async def __aenter__(self) -> LibraryStream:
        return self

    async def read(self, n: int | None = None) -> bytes:
        """Return up to ``n`` bytes; the end of the stream is an exception here."""
        below_bulk = BULK_READ_BYTES - 1  # so that the library's protocols never open a window
        most = below_bulk if n is None or n < 0 else min(n, below_bulk)
        try:
            data = await self.stream.receive(most) if most else b""
        except StreamBroken as error:
            raise MuxedStreamReset(str(error)) from error
        if most and not data:
            raise MuxedStreamEOF("end of stream")
        return data

    async def write(self, data: bytes) -> None:
        """Send all of ``data``."""
        try:
            await self.stream.send(memoryview(data))
        except StreamBroken as error:
            raise MuxedStreamError(str(error)) from error

    async def close_write(self) -> None:
        """Send the end of the stream; reading goes on."""
        await self.stream.finish()

    async def close(self) -> None:
        """End both directions; waits for the socket, for the library aborts connections right after closing."""
        await self.stream.finish()
        self.stream.close()

    async def reset(self) -> None:
        """Drop the stream."""
        self.stream.reset()
        await trio.lowlevel.checkpoint()

    def set_deadline(self, ttl: int) -> None:
        """Not supported, as in the library's own multiplexer."""
        raise NotImplementedError("use trio timeouts")

    def get_remote_address(self) -> tuple[str, int] | None:
        """IP and port of the remote end."""
        return self.muxed_conn.get_remote_address()


class ConnectionNotifee(INotifee):
    """Tells which connections the swarm has registered. The multiplexer itself tells when they end."""

    def __init__(self, opened: Callable[[INetConn], None], closed: Callable[[INetConn], None]) -> None:
        self._opened = opened
        self._closed = closed

    async def connected(self, network: object, conn: INetConn) -> None:
        """A connection can be used."""
        self._opened(conn)

    async def disconnected(self, network: object, conn: INetConn) -> None:
        """A connection was forgotten."""
        self._closed(conn)

    async def opened_stream(self, network: object, stream: object) -> None:
        """Not of interest."""

    async def closed_stream(self, network: object, stream: object) -> None:
        """Not of interest."""

    async def listen(self, network: object, multiaddr: object) -> None:
        """Not of interest."""

    async def listen_close(self, network: object, multiaddr: object) -> None:
        """Not of interest."""


class Router(GossipSub):
    """GossipSub with the specification's heartbeat and a small mesh, sending nothing that nobody here reads.

    Measured with 24 peers in one process, 5 connections each, all announcing once a second: 100 % heard within that
    second and 0.5 % of a core when idle; with version 1.2, degree 6 and the signed records 74 %, most of it late, and
    a core busy for ten seconds more.
    """

    def __init__(self) -> None:
        super().__init__(
            protocols=[PROTOCOL_ID_V11],  # 1.2 adds an IDONTWANT to every neighbor for every small frame
            degree=4,  # the specification says 6, 4, 12: for thousands of peers; every duplicate costs 0.5 ms here
            degree_low=3,
            degree_high=6,
            heartbeat_interval=1,  # specification; the library's default is 120 s
            max_messages_per_topic_per_second=200.0,  # counts what a neighbor relays: 10 would silence all but ten
        )

    def send_rpc(self, peer_id: ID, rpc: rpc_pb2.RPC, priority: bool = False) -> None:
        """Queue one message, without the signed record of our addresses, which every receiver would verify anew."""
        rpc.ClearField("senderRecord")
        super().send_rpc(peer_id, rpc, priority)


class Presence(Pubsub):
    """GossipSub for one topic of small signed frames, handed over without the library's lossy queue of 32.

    The library has checked before that the author's key made the signature and belongs to the author's peer id.
    """

    def __init__(
        self, host: object, router: GossipSub, topic: str, frame_bytes_max: int, on_announced: Announced
    ) -> None:
        super().__init__(
            host, router, strict_signing=True, allowed_topics={topic}, max_inbound_rpc_size=1 << 18
        )
        self._topic = topic
        self._frame_bytes_max = frame_bytes_max
        self._on_announced = on_announced
        # Seconds in the library: after a quick restart numbers would repeat and our announcements be taken for old.
        self.counter = time.time_ns()

    async def push_msg(self, msg_forwarder: ID, msg: rpc_pb2.Message) -> None:
        """Check, deliver and relay one message. Runs as a task of the service: an exception would end the host (T1)."""
        try:
            if len(msg.data) <= self._frame_bytes_max and list(msg.topicIDs) == [self._topic]:
                await super().push_msg(msg_forwarder, msg)
        except Exception as error:  # noqa: BLE001 - e.g. a key that cannot be parsed, made by a stranger
            log.info("announcement relayed by %s refused: %r", msg_forwarder, error)

    def notify_subscriptions(self, publish_message: rpc_pb2.Message) -> None:
        """Deliver one message, whose signature was checked."""
        author = ID(publish_message.from_id)
        if author == self.my_id:
            return
        try:
            self._on_announced(str(author), bytes(publish_message.data))
        except Exception:
            log.exception("on_announced raised")  # our own bug, yet no reason to stop relaying


class Handshakes:
    """Incoming handshakes under way. When there are too many, the oldest of the greediest address has to go (T10).

    An honest handshake takes milliseconds, so what has waited longest is most likely a silent socket.
    """

    def __init__(self, count_max: int) -> None:
        self._count_max = count_max
        self._scopes: dict[trio.CancelScope, str] = {}  # oldest first

    def begin(self, ip: str) -> trio.CancelScope:
        """Return the scope for one more handshake; pass it to ``end`` afterwards."""
        if len(self._scopes) >= self._count_max:
            greediest, _ = Counter(self._scopes.values()).most_common(1)[0]
            oldest = next(scope for scope, owner in self._scopes.items() if owner == greediest)
            oldest.cancel()
            del self._scopes[oldest]
        scope = trio.CancelScope()
        self._scopes[scope] = ip
        return scope

    def end(self, scope: trio.CancelScope) -> None:
        """Forget a handshake that is over."""
        self._scopes.pop(scope, None)


def explain_dial(error: BaseException, address: str, peer: str) -> str:
    """Say in one line what went wrong and what to look at: the library hides it three causes deep."""
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and len(chain) < 10:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    kinds = {type(each).__name__ for each in chain}
    if "PeerIDMismatchesPubkey" in kinds or any("Peer ID mismatch" in str(each) for each in chain):
        return f"another peer than {peer} answers at {address}: ask its owner for the present address"
    if "gaierror" in kinds:
        return f"the name in {address} cannot be resolved: is it spelled right, is there a network?"
    if "OpenConnectionError" in kinds:
        return f"nobody answers at {address}: is the peer running, is the port open?"
    return f"{address} answers but breaks off: it is another program, or has no room for us ({chain[-1]!r})"
