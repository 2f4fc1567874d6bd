"""Announcements over libp2p: the streams on which neighbors relay them, and the signatures under them.

A neighbor is a member that is connected: strangers are neither read nor told the topic. What may come in stands in
``libp2p_rpc.py``, what is passed on to whom in ``gossipsub.py``. Knows signed frames and their authors; nothing of what
is announced.
"""

from __future__ import annotations

import logging
import random
import time
from collections import Counter, deque

import trio
from libp2p.crypto.keys import PrivateKey

from gossip.errors import LocalError, RemoteError
from peer.network.gossipsub import BEAT_S, GossipSub, Message, Outgoing, Rpc
from peer.network.libp2p_connections import Connections
from peer.network.libp2p_rpc import RPC_BYTES_MAX, decode_rpc, encode_rpc, is_signed, signed
from peer.network.muxed_stream import StreamBroken
from peer.network.protocol_stream import ProtocolStream, negotiate
from peer.network.transport import ANNOUNCEMENT_BYTES_MAX, Announced, Stream, Unreachable

log = logging.getLogger(__name__)

PROTOCOL = "/meshsub/1.1.0"
STREAMS_PER_PEER_MAX = 2
"""Streams of one neighbor that are read: one a connection, and two of those after simultaneous dials."""
QUEUE_BYTES_MAX = 256 * 1024
"""What may wait for one neighbor; beyond, it misses announcements. Source: guess, 16 of the largest."""
QUEUE_MAX = 256
"""The same in numbers of RPCs. Source: guess."""
REOPEN_FIRST_S, REOPEN_LONGEST_S = 0.2, 30.0
"""Pause before a stream that broke is opened again, doubled each time. Source: guess."""
READ_BYTES = 16 * 1024
FORGED_COST = 20.0
"""Announcements that one with a forged signature counts as: to find out costs most of what taking one does, and an
honest neighbor relays none. Source: guess."""
ID_COST = 1 / 64
"""The same of an id that is named or asked for. Source: guess."""


class _Queue:
    """What is to be told to one neighbor."""

    def __init__(self) -> None:
        self._frames: deque[bytes] = deque()
        self._bytes = 0
        self._filled = trio.lowlevel.ParkingLot()
        self.scope = trio.CancelScope()  # of the task that sends

    def put(self, frame: bytes) -> None:
        if self._bytes + len(frame) <= QUEUE_BYTES_MAX and len(self._frames) < QUEUE_MAX:
            self._frames.append(frame)
            self._bytes += len(frame)
            self._filled.unpark_all()

    async def get(self) -> bytes:
        while not self._frames:
            await self._filled.park()
        frame = self._frames.popleft()
        self._bytes -= len(frame)
        return frame


class Announcements:
    """One peer's part in the announcements of its topic.

    Args:
        key: signs what we announce.
        peer: its peer id.
        connections: whose members are our neighbors.
        topic: the one topic that is taken part in.
        on_announced: told every frame of others, once.
    """

    def __init__(
        self, key: PrivateKey, peer: str, connections: Connections, topic: str, on_announced: Announced
    ) -> None:
        self._key = key
        self._peer = peer
        self._connections = connections
        self._topic = topic
        self._on_announced = on_announced
        self._gossip = GossipSub(random.Random())
        self._queues: dict[str, _Queue] = {}
        self._read: Counter[str] = Counter()  # streams by peer id
        self._nursery: trio.Nursery | None = None
        self._welcomed = trio.lowlevel.ParkingLot()
        # Time, not a count: after a restart numbers would repeat and our announcements be taken for old.
        self._number = time.time_ns()
        connections.on_member = self._on_member

    async def run(self) -> None:
        """Relay until cancelled."""
        async with trio.open_nursery() as self._nursery:
            try:
                while True:
                    await trio.sleep(BEAT_S)
                    self._send(self._gossip.beat(trio.current_time()))
            finally:
                self._nursery = (
                    None  # before it closes: who becomes a member meanwhile is told nothing any more
                )

    def announce(self, topic: str, frame: bytes) -> None:
        """Publish a frame to the topic, best effort.

        Raises:
            LocalError: the frame is too large.
        """
        if len(frame) > ANNOUNCEMENT_BYTES_MAX:
            raise LocalError(f"an announcement of {len(frame)} bytes: at most {ANNOUNCEMENT_BYTES_MAX}")
        self._number += 1
        message = signed(bytes(frame), topic, self._number, self._key)
        self._send(self._gossip.publish(message, trio.current_time()))

    # -- what neighbors say

    async def serve(self, stream: Stream) -> None:
        """Read a stream of a neighbor until it ends; of a newcomer, nothing.

        Raises:
            RemoteError: it broke the rules, or the stream broke.
        """
        peer = stream.peer
        if self._read[peer] >= STREAMS_PER_PEER_MAX:
            raise RemoteError("announcement", "too many streams")
        self._read[peer] += 1
        try:
            while not self._connections.is_member(peer):
                await self._welcomed.park()
            await self._read_all(stream)
        except Unreachable:
            raise
        except RemoteError as error:
            self._connections.broke_a_rule(peer, error.reason)
            raise
        finally:
            self._read[peer] -= 1
            if not self._read[peer]:
                del self._read[peer]

    async def _read_all(self, stream: Stream) -> None:
        buffer = bytearray()
        pace = self._connections.pace(stream.peer)
        while piece := await stream.receive(READ_BYTES):
            buffer += piece
            while (found := _first(buffer)) is not None:
                start, end = found
                self._hear(stream.peer, decode_rpc(bytes(buffer[start:end]), self._topic))
                del buffer[:end]
                # The rest waits: the neighbor is not refused, only read more slowly.
                await trio.sleep(pace.announcements_pause_s(trio.current_time()))

    def _hear(self, peer: str, rpc: Rpc) -> None:
        now, pace = trio.current_time(), self._connections.pace(peer)
        pace.announcements(1.0 + len(rpc.messages) + ID_COST * (len(rpc.have) + len(rpc.want)), now)
        for message in rpc.messages:
            if message.author == self._peer or not self._gossip.is_new(message.id):
                continue
            if not is_signed(message):
                pace.announcements(FORGED_COST, now)
                raise RemoteError("announcement", "a forged signature")
            self._send(self._gossip.take(message, peer, now))
            self._tell(message)
        self._send(self._gossip.handle(peer, rpc, now))

    def _tell(self, message: Message) -> None:
        try:
            self._on_announced(message.author, message.data)
        except Exception:
            log.exception("on_announced raised")  # our own bug, yet no reason to stop relaying

    # -- what we say

    def _on_member(self, peer: str, present: bool) -> None:
        if queue := self._queues.pop(peer, None):
            queue.scope.cancel()
            self._gossip.left(peer)
        if present and self._nursery is not None:
            queue = self._queues[peer] = _Queue()
            self._gossip.joined(peer)
            self._nursery.start_soon(self._tell_neighbor, peer, queue)
            self._welcomed.unpark_all()

    def _send(self, outgoing: Outgoing) -> None:
        frames: dict[int, bytes] = {}  # of the same RPC for many neighbors, once
        for peer, rpc in outgoing:
            if queue := self._queues.get(peer):
                frame = frames.get(id(rpc)) or _framed(encode_rpc(rpc, self._topic))
                frames[id(rpc)] = frame
                queue.put(frame)

    async def _tell_neighbor(self, peer: str, queue: _Queue) -> None:
        """Send what is queued, over a new stream whenever the last one broke; ends when the neighbor leaves."""
        pause_s = REOPEN_FIRST_S
        with queue.scope:
            while True:
                try:
                    await self._tell_over_a_stream(peer, queue)
                except (StreamBroken, RemoteError) as error:
                    log.debug("announcements to %s: %s", peer, error)
                except Exception:
                    log.exception("announcements to %s", peer)  # our own bug, yet no reason to end the host
                await trio.sleep(pause_s)
                pause_s = min(2 * pause_s, REOPEN_LONGEST_S)

    async def _tell_over_a_stream(self, peer: str, queue: _Queue) -> None:
        opened = self._connections.newest(peer).session.open()
        try:
            if not await negotiate(opened, PROTOCOL):
                raise RemoteError("announcement", "it takes no announcements")
            stream = ProtocolStream(peer, opened)
            await stream.send(_framed(encode_rpc(self._gossip.greeting(peer), self._topic)))
            while True:
                await stream.send(await queue.get())
        finally:
            opened.reset()


def _framed(data: bytes) -> bytes:
    """Return data behind its length as a varint."""
    count, prefix = len(data), bytearray()
    while count >= 128:
        prefix.append(count & 0x7F | 0x80)
        count >>= 7
    prefix.append(count)
    return bytes(prefix) + data


def _first(buffer: bytearray) -> tuple[int, int] | None:
    """Return where the first framed RPC begins and ends; None if it is not complete.

    Raises:
        RemoteError: too long.
    """
    length = 0
    for position, byte in enumerate(buffer[:3]):
        length |= (byte & 0x7F) << 7 * position
        if byte < 128:
            if length > RPC_BYTES_MAX:
                break
            end = position + 1 + length
            return (position + 1, end) if len(buffer) >= end else None
    if len(buffer) < 3:
        return None
    raise RemoteError("announcement", "too long")
