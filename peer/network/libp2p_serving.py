"""Serving the streams that others open over libp2p: how many at a time, and where exceptions end.

Knows streams and the peers that opened them; nothing of how connections come about.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable

from libp2p.abc import INetStream
from libp2p.custom_types import StreamHandlerFn
from libp2p.network.stream.net_stream import NetStream

from peer.network.libp2p_adapters import LibraryStream
from peer.network.limits import Limits
from peer.network.muxed_stream import MuxedStream
from peer.network.protocol_stream import ProtocolStream
from peer.network.transport import Handler, Unreachable

log = logging.getLogger(__name__)

SYSTEM_STREAMS = 4
"""Streams of one peer for GossipSub and identify, beside those that handlers serve. Source: guess."""


class StreamServer:
    """Serves any incoming stream, also those of the library's own protocols, within limits.

    Args:
        limits: ``streams_per_peer_max``, ``newcomer_streams_max`` and ``streams_max`` are kept here.
        is_member: whether a peer is one.
        serve_by_protocol: the library's handler, which agrees on a protocol and calls who serves it.
    """

    def __init__(
        self, limits: Limits, is_member: Callable[[str], bool], serve_by_protocol: StreamHandlerFn
    ) -> None:
        self._limits = limits
        self._is_member = is_member
        self._serve_by_protocol = serve_by_protocol
        self._served: Counter[str] = Counter()  # streams by peer id

    async def serve(self, net_stream: INetStream) -> None:
        """Serve one stream to its end: the one place where exceptions must end (T1), or they end the host."""
        peer, stream = _opened(net_stream)
        if self._served[peer] >= self._share_of(peer):
            log.info("refused a stream of %s: too many are being served", peer)
            stream.reset()
            return
        self._served[peer] += 1
        try:
            await self._serve_by_protocol(net_stream)
        except Exception as error:  # noqa: BLE001 - a stranger's bytes provoked it, so it ends that stream only
            log.info("stream of %s ended: %r", peer, error)
            stream.reset()
        finally:
            self._served[peer] -= 1
            if not self._served[peer]:
                del self._served[peer]
            stream.close()  # a stream left open would stay in both ends' tables (T9)

    def _share_of(self, peer: str) -> int:
        """Return how many streams a peer may have: no more than are left for others, so that some always are."""
        limits = self._limits
        own = limits.streams_per_peer_max if self._is_member(peer) else limits.newcomer_streams_max
        return min(own + SYSTEM_STREAMS, limits.streams_max - self._served.total())


def library_handler(protocol: str, handler: Handler) -> StreamHandlerFn:
    """Return a handler of ours as one of the library's; an exception resets the stream."""

    async def serve(net_stream: INetStream) -> None:
        stream = ProtocolStream(*_opened(net_stream))
        try:
            await handler(stream)
        except Exception as error:
            expected = isinstance(error, Unreachable)
            log.info("%s of %s ended: %r", protocol, stream.peer, error, exc_info=None if expected else error)
            await stream.reset()

    return serve


def _opened(net_stream: INetStream) -> tuple[str, MuxedStream]:
    """Return who opened a stream of the library's, and our own stream in it."""
    assert isinstance(net_stream, NetStream)
    library_stream = net_stream.muxed_stream
    assert isinstance(library_stream, LibraryStream)
    return str(library_stream.muxed_conn.peer_id), library_stream.stream
