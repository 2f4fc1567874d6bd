"""Many byte streams over one encrypted connection: the yamux wire format, written for bulk transfers.

The library's own multiplexer polls for window every 10 ms, sends a window update after nearly every read, reads
each encrypted frame in several small system calls, breaks the connection when a write is cancelled and does not
enforce its receive window. This one speaks the same wire format (hashicorp's yamux specification, version 0) and
mends all five: one task owns all writes, so that nobody's cancellation can cut a frame in two. It knows sockets and
two cipher functions; it knows nothing of peer ids, protocols, libp2p or adapters.
"""

from __future__ import annotations

import itertools
import logging
import struct
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import trio

from peer.network.muxed_stream import SMALL_BYTES, WINDOW_BULK, Credit, MuxedStream, StreamBroken
from peer.network.pace import Flood, Pace
from peer.network.secure_link import BATCH_BYTES, MESSAGE_BYTES, SecureLink

log = logging.getLogger(__name__)

DATA, WINDOW, PING, GO_AWAY = range(4)
SYN, ACK, FIN, RST = 1, 2, 4, 8
HEADER = struct.Struct("!BBHII")  # version, type, flags, stream id, length or increment

BODY_BYTES = MESSAGE_BYTES - HEADER.size
"""Payload of a data frame: so that the frame is one Noise message."""
URGENT_FRAMES_MAX = 1024
"""Control frames waiting behind a peer that does not read; at more, the connection ends. Source: guess."""
UPDATED_BYTES = 8 * 1024
"""For so many bytes that we have sent, a window update is expected. Source: ours come for 64 KiB, others' may be
finer."""
UPDATES_DUE_MAX = 4096.0
"""So many may come late. Source: ``frames_burst``."""
STREAMS_MAX = 64
"""Streams that the remote may hold open on one connection. Source: guess, four times what we serve."""
LINGER_S = 60.0
"""How long a stream that only we have closed may wait for the remote's end. Source: the library's value."""
SILENT_INTERVALS_MAX = 3
"""Intervals of a third of ``stall_s`` without a byte, in spite of pings, that a connection survives. Source: guess."""


class _Queued(NamedTuple):
    stream: MuxedStream
    frame: bytes
    handed: trio.Event | None  # set once the socket has taken the frame


class Session:
    """All streams of one connection. ``run`` must be running for anything to move.

    Args:
        link: the encrypted connection.
        is_initiator: whether we dialed: decides who uses odd stream ids.
        stall_s: seconds without any progress after which the connection is closed.
        credit: what may be granted to bulk receivers.
        pace: what the remote may do: who exceeds it is read more slowly, who floods us is cut off.
        on_end: called once, synchronously, when the connection has ended for whatever reason.
    """

    def __init__(
        self,
        link: SecureLink,
        *,
        is_initiator: bool,
        stall_s: float,
        credit: Credit,
        pace: Pace,
        on_end: Callable[[], None],
    ) -> None:
        self.stall_s = stall_s
        self.credit = credit
        self.streams: dict[int, MuxedStream] = {}
        self.ended = trio.Event()
        self.reason = ""
        self.is_flood = False  # whether it ended because the remote flooded us
        self._link = link
        self._pace = pace
        self._small_frames = 0.0  # received, and not yet told to the pace
        self._updates_due = 0.0  # window updates that what we have sent gives reason for
        self._on_end = on_end
        self._first_id = 1 if is_initiator else 2
        self._ids = itertools.count(self._first_id, 2)
        self._incoming: deque[MuxedStream] = deque()
        self._acceptable = trio.lowlevel.ParkingLot()
        self._urgent: deque[bytes] = deque()
        self._queue: deque[_Queued] = deque()
        self._handed: list[trio.Event] = []  # of the batch that is being sent
        self._unsent = trio.lowlevel.ParkingLot()
        self._scope = trio.CancelScope()
        self._heard = 0  # batches received, for the keepalive
        self._pings = itertools.count(1)
        self._partial = bytearray()  # a header cut by a message boundary
        self._body_left = 0
        self._body_stream: MuxedStream | None = None
        self._body_flags = 0

    async def run(self) -> None:
        """Move bytes until the connection ends. Nothing that a remote does makes it raise."""
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._write_all)
                    nursery.start_soon(self._keep_alive)
                    await self._read_all()
        finally:
            self.abort("the connection was closed")

    def abort(self, reason: str) -> None:
        """End the connection now, even if a writer is stuck. Later calls do nothing."""
        if self.ended.is_set():
            return
        self.reason = reason
        self.ended.set()
        log.debug("connection ends: %s", reason)
        for stream in list(self.streams.values()):
            stream.on_broken(reason, drop=False)
        self._handed += [queued.handed for queued in self._queue if queued.handed is not None]
        self._queue.clear()
        self._set_handed()
        self._acceptable.unpark_all()
        self._link.close()
        self._scope.cancel()
        self._on_end()

    # -- streams ----------------------------------------------------------------------------------------------

    def open(self) -> MuxedStream:
        """Open a stream; the remote need not have agreed yet.

        Raises:
            StreamBroken: the connection has ended.
        """
        if self.ended.is_set():
            raise StreamBroken(self.reason)
        stream = MuxedStream(self, next(self._ids))
        self.streams[stream.stream_id] = stream
        self.send_control(WINDOW, SYN, stream.stream_id, 0)
        return stream

    async def accept(self) -> MuxedStream:
        """Wait for a stream that the remote opens.

        Raises:
            StreamBroken: the connection has ended.
        """
        while not self._incoming:
            if self.ended.is_set():
                raise StreamBroken(self.reason)
            await self._acceptable.park()
        await trio.lowlevel.checkpoint()
        return self._incoming.popleft()

    def forget(self, stream: MuxedStream) -> None:
        """Called by a stream that is done at both ends."""
        self.streams.pop(stream.stream_id, None)

    # -- sending ----------------------------------------------------------------------------------------------

    def send_control(self, kind: int, flags: int, stream_id: int, value: int) -> None:
        """Queue a control frame ahead of all data; never waits, so the reader can answer while a writer is stuck."""
        if self.ended.is_set():
            return
        if len(self._urgent) >= URGENT_FRAMES_MAX:
            self.is_flood = True
            self.abort("the peer asks much and reads nothing")
            return
        self._urgent.append(HEADER.pack(0, kind, flags, stream_id, value))
        self._unsent.unpark_all()

    def send_window(self, stream_id: int, increment: int) -> None:
        """Allow the remote ``increment`` more bytes on a stream."""
        self.send_control(WINDOW, 0, stream_id, increment)

    def send_reset(self, stream_id: int) -> None:
        """Tell the remote that a stream is no more."""
        self.send_control(WINDOW, RST, stream_id, 0)

    async def send_data(self, stream: MuxedStream, data: memoryview) -> None:
        """Queue ``data`` of one stream and wait until the socket has taken it all."""
        handed = trio.Event()
        last = len(data) - 1
        for start in range(0, len(data), BODY_BYTES):
            body = data[start : start + BODY_BYTES]
            frame = b"".join((HEADER.pack(0, DATA, 0, stream.stream_id, len(body)), body))
            self._queue.append(_Queued(stream, frame, handed if start + BODY_BYTES > last else None))
        self._unsent.unpark_all()
        await handed.wait()
        if stream.broken is not None:
            raise StreamBroken(stream.broken)

    def queue_finish(self, stream: MuxedStream) -> trio.Event:
        """Queue the end of a stream behind its data; the event tells when the socket has taken it."""
        handed = trio.Event()
        if self.ended.is_set():
            handed.set()
        else:
            frame = HEADER.pack(0, WINDOW, FIN, stream.stream_id, 0)
            self._queue.append(_Queued(stream, frame, handed))
            self._unsent.unpark_all()
        return handed

    def queue_reset(self, stream: MuxedStream) -> None:
        """Queue a reset behind all data of the stream."""
        if not self.ended.is_set():
            self._queue.append(_Queued(stream, HEADER.pack(0, WINDOW, RST, stream.stream_id, 0), None))
            self._unsent.unpark_all()

    async def _write_all(self) -> None:
        try:
            while True:
                while not self._urgent and not self._queue:
                    await self._unsent.park()
                if messages := self._next_batch():
                    await self._link.send(messages, self.stall_s)
                self._set_handed()
        except trio.TooSlowError:
            self.abort(f"the peer took no byte for {self.stall_s:g} s")
        except Exception as error:  # noqa: BLE001 - a broken socket or an exhausted cipher ends this connection only
            self.abort(f"writing failed: {error}")

    def _set_handed(self) -> None:
        for event in self._handed:
            event.set()
        self._handed.clear()

    def _next_batch(self) -> list[bytes]:
        """Take about ``BATCH_BYTES`` of frames from the queues; small ones share an encrypted message."""
        messages: list[bytes] = []
        small = bytearray()
        while self._urgent and len(small) + HEADER.size <= MESSAGE_BYTES:
            small += self._urgent.popleft()
        size = 0
        while self._queue and size < BATCH_BYTES:
            stream, frame, event = self._queue.popleft()
            if event is not None:
                self._handed.append(event)
            if stream.broken is not None:
                continue  # reset: the remote would only throw it away
            size += len(frame)
            self._updates_due = min(UPDATES_DUE_MAX, self._updates_due + len(frame) / UPDATED_BYTES)
            if len(small) + len(frame) <= MESSAGE_BYTES:
                small += frame
                continue
            if small:
                messages.append(bytes(small))
                small.clear()
            if len(frame) > SMALL_BYTES:
                messages.append(frame)
            else:
                small += frame
        if small:
            messages.append(bytes(small))
        return messages

    # -- receiving --------------------------------------------------------------------------------------------

    async def _read_all(self) -> None:
        try:
            while messages := await self._link.receive():
                self._heard += 1
                for message in messages:
                    self._on_message(memoryview(message))
                    self._count_small_frames()
                if pause_s := self._pace.pause_s(trio.current_time()):
                    await trio.sleep(pause_s)  # the remote fills its windows and our socket, and has to wait
            self.abort("the peer closed the connection")
        except (OSError, trio.ClosedResourceError) as error:
            self.abort(f"reading failed: {error}")
        except Flood as error:
            self.is_flood = True
            self.abort(str(error))
        except Exception as error:  # noqa: BLE001 - whatever hostile bytes provoke ends this connection, never the host
            log.info("connection closed for bad bytes: %r", error)
            self.abort(f"the peer sent something invalid: {error!r}")

    def _count_small_frames(self) -> None:
        if self._small_frames:
            count, self._small_frames = self._small_frames, 0.0
            self._pace.frames(count, trio.current_time())

    def _on_message(self, message: memoryview) -> None:
        position, end = 0, len(message)
        while position < end and not self.ended.is_set():
            if self._body_left:
                piece = message[position : position + self._body_left]
                position += len(piece)
                self._body_left -= len(piece)
                if self._body_stream is not None and self._body_stream.broken is None:
                    self._body_stream.on_data(piece)
                if not self._body_left:
                    self._on_end_flags(self._body_stream, self._body_flags)
                continue
            missing = HEADER.size - len(self._partial)
            self._partial += message[position : position + missing]
            position += missing
            if len(self._partial) == HEADER.size:
                header = HEADER.unpack(self._partial)
                self._partial.clear()
                self._on_header(*header)

    def _on_header(self, version: int, kind: int, flags: int, stream_id: int, value: int) -> None:
        if version != 0 or kind > GO_AWAY:
            raise ValueError(f"unknown frame: version {version}, type {kind}")
        if kind == WINDOW and not flags and self._updates_due >= 1.0:
            self._updates_due -= 1.0  # otherwise their rate would be a limit of ours to what we may send
        elif kind != DATA or value < SMALL_BYTES:
            self._small_frames += 1.0
        if kind == PING:
            if flags & SYN:
                self.send_control(PING, ACK, 0, value)
        elif kind == GO_AWAY:
            self.abort("the peer says good-bye")
        else:
            if flags & SYN:
                self._on_opened(stream_id)
            stream = self.streams.get(stream_id)
            if kind == DATA:
                self._on_data_header(stream, flags, value)
            else:
                if stream is not None:
                    stream.on_window(value)
                self._on_end_flags(stream, flags)

    def _on_opened(self, stream_id: int) -> None:
        if stream_id == 0 or stream_id % 2 == self._first_id % 2 or stream_id in self.streams:
            raise ValueError(f"stream id {stream_id} is not the remote's to open")
        self._pace.stream(trio.current_time())
        theirs = sum(1 for open_id in self.streams if open_id % 2 != self._first_id % 2)
        if theirs >= STREAMS_MAX or len(self._incoming) >= STREAMS_MAX:
            log.info("refused a stream: %d are open on this connection", theirs)
            self.send_control(WINDOW, RST, stream_id, 0)
            return
        stream = MuxedStream(self, stream_id)
        self.streams[stream_id] = stream
        self._incoming.append(stream)
        self.send_control(WINDOW, ACK, stream_id, 0)
        self._acceptable.unpark_all()

    def _on_data_header(self, stream: MuxedStream | None, flags: int, length: int) -> None:
        if stream is not None:
            if length > stream.receive_window:
                raise ValueError(f"{length} bytes sent into a window of {stream.receive_window}")
            stream.receive_window -= length
        elif length > WINDOW_BULK:  # of a stream that we no longer know: discarded, within reason
            raise ValueError(f"a frame of {length} bytes")
        else:
            self._small_frames += length / SMALL_BYTES  # no window holds it back
        self._body_left, self._body_stream, self._body_flags = length, stream, flags
        if not length:
            self._on_end_flags(stream, flags)

    def _on_end_flags(self, stream: MuxedStream | None, flags: int) -> None:
        if stream is None:
            return
        if flags & RST:
            stream.on_broken("the peer reset the stream")
        elif flags & FIN:
            stream.on_finish()

    # -- life signs -------------------------------------------------------------------------------------------

    async def _keep_alive(self) -> None:
        """Close a connection that was silent over three intervals in spite of our pings.

        Intervals, not wall time: when this whole process was suspended, it must not blame the remotes for it.
        """
        heard, silent = -1, 0
        while True:
            await trio.sleep(self.stall_s / SILENT_INTERVALS_MAX)
            silent = silent + 1 if heard == self._heard else 0
            heard = self._heard
            if silent > SILENT_INTERVALS_MAX:
                self.abort(f"nothing heard from the peer for {self.stall_s:g} s")
            self.send_control(PING, SYN, 0, next(self._pings))
            overdue = trio.current_time() - LINGER_S
            for stream in list(self.streams.values()):
                if stream.closed_at is not None and stream.closed_at < overdue:
                    stream.reset()
