"""A stream of the network seam on top of a multiplexed one, and the agreement on what it is for.

Protocol agreement is multistream-select 1.0.0. We send both of our lines at once, which saves a round trip and is
what other implementations call lazy negotiation. Knows bytes; nothing of peers' addresses, libp2p or adapters.
"""

from __future__ import annotations

from peer.network.muxed_stream import MuxedStream, StreamBroken
from peer.network.transport import CHUNK_BYTES, Unreachable

_MULTISTREAM = b"/multistream/1.0.0\n"
_LINE_BYTES_MAX = 1024  # as in go-multistream


class ProtocolStream:
    """A ``peer.network.transport.Stream``; see there for the contract of the methods."""

    def __init__(self, peer: str, muxed: MuxedStream) -> None:
        self._peer = peer
        self._muxed = muxed

    @property
    def peer(self) -> str:
        """The remote's peer id."""
        return self._peer

    async def send(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of ``data``; see ``Stream.send``."""
        view = memoryview(data).cast("B")
        try:
            for start in range(0, max(len(view), 1), CHUNK_BYTES):
                await self._muxed.send(view[start : start + CHUNK_BYTES])
        except StreamBroken as error:
            raise Unreachable(str(error)) from error

    async def receive(self, bytes_max: int) -> bytes:
        """Return 1 to ``bytes_max`` bytes, ``b""`` at the end; see ``Stream.receive``."""
        try:
            return await self._muxed.receive(bytes_max)
        except StreamBroken as error:
            raise Unreachable(str(error)) from error

    async def finish(self) -> None:
        """Half close; see ``Stream.finish``."""
        await self._muxed.finish()
        if self._muxed.broken is not None:
            raise Unreachable(self._muxed.broken)

    async def close(self) -> None:
        """End both directions at once; what was sent before still arrives."""
        self._muxed.close()

    async def reset(self) -> None:
        """Drop the stream at once."""
        self._muxed.reset()


async def negotiate(stream: MuxedStream, protocol: str) -> bool:
    """Ask the remote to serve ``protocol`` on a new stream; return whether it will.

    Raises:
        StreamBroken: reset or lost meanwhile, or the answer is not multistream-select.
    """
    wanted = protocol.encode() + b"\n"
    await stream.send(memoryview(_line(_MULTISTREAM) + _line(wanted)))
    if (answer := await _receive_line(stream)) != _MULTISTREAM:
        raise StreamBroken(f"no multistream-select there: {answer[:40]!r}")
    return await _receive_line(stream) == wanted


def _line(text: bytes) -> bytes:
    count = len(text)
    prefix = bytes((count,)) if count < 128 else bytes((count & 0x7F | 0x80, count >> 7))
    return prefix + text


async def _receive_line(stream: MuxedStream) -> bytes:
    first = await _receive_exactly(stream, 1)
    count = first[0]
    if count >= 128:
        count = count & 0x7F | (await _receive_exactly(stream, 1))[0] << 7
    if not 0 < count <= _LINE_BYTES_MAX:
        raise StreamBroken(f"a protocol line of {count} bytes")
    return await _receive_exactly(stream, count)


async def _receive_exactly(stream: MuxedStream, count: int) -> bytes:
    received = b""
    while len(received) < count:
        piece = await stream.receive(count - len(received))
        if not piece:
            raise StreamBroken("the peer closed the stream instead of agreeing on a protocol")
        received += piece
    return received
