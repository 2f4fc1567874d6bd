"""Our connections and streams in the shapes that libp2p's swarm wants to see.

Uses what the library does not promise to keep (pinned: ``libp2p==0.8.1``). Knows nothing of dialing, limits or our own
protocols.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import trio
from libp2p.abc import IMuxedConn, IMuxedStream, INetConn, INotifee, ISecureConn
from libp2p.connection_types import ConnectionType
from libp2p.custom_types import TProtocol, TSecurityOptions
from libp2p.io.trio import TrioTCPStream
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.peer.id import ID
from libp2p.protocol_muxer.exceptions import MultiselectError
from libp2p.security.noise.io import BaseNoiseMsgReadWriter
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
from peer.network.pace import Pace
from peer.network.secure_link import SecureLink
from peer.network.yamux import Session


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
        assert isinstance(conn, SecureSession), "what Noise makes"
        return self._make(conn, peer_id)


def take_over(conn: SecureSession) -> SecureLink:
    """Return our own reader and writer of the socket and ciphers that the library's handshake has set up."""
    noise = conn.conn
    assert isinstance(noise, BaseNoiseMsgReadWriter)
    raw = noise.read_writer.read_write_closer
    assert isinstance(raw, RawConnection)
    tcp = raw.stream
    assert isinstance(tcp, TrioTCPStream)
    protocol = noise.noise_state.noise_protocol
    return SecureLink(
        tcp.stream,
        partial(protocol.cipher_state_encrypt.encrypt_with_ad, None),
        partial(protocol.cipher_state_decrypt.decrypt_with_ad, None),
        early=conn._drain(None),
    )


class MuxedConnection(IMuxedConn):
    """A ``Session`` as the swarm wants to see it.

    Args:
        conn: the encrypted connection, which the session takes over.
        peer_id: who is at the other end, proven by the handshake.
        stall_s: see ``Session``.
        credit: see ``Session``.
        pace: see ``Session``.
        on_end: called once with this connection when it has ended.
    """

    def __init__(
        self,
        conn: SecureSession,
        peer_id: ID,
        stall_s: float,
        credit: Credit,
        pace: Pace,
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
            pace=pace,
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

    muxed_conn: MuxedConnection

    def __init__(self, connection: MuxedConnection, stream: MuxedStream) -> None:
        self.muxed_conn = connection
        self.stream = stream

    async def __aenter__(self) -> LibraryStream:
        return self

    async def read(self, n: int | None = None) -> bytes:
        """Return up to ``n`` bytes; the end of the stream is an exception here."""
        below_bulk = BULK_READ_BYTES - 1  # so that the library's protocols never open a window
        bytes_max = below_bulk if n is None or n < 0 else min(n, below_bulk)
        try:
            data = await self.stream.receive(bytes_max) if bytes_max else b""
        except StreamBroken as error:
            raise MuxedStreamReset(str(error)) from error
        if bytes_max and not data:
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
