"""One stream of a yamux connection: its two windows, its unread pieces, its ends.

Knows how much may be sent and how much the remote was allowed to send; knows no frames, sockets or other streams.
"""

from __future__ import annotations

from collections import deque
from typing import Protocol, cast

import trio

from peer.network.secure_link import BATCH_BYTES

WINDOW_FIRST = 256 * 1024
"""Bytes that each direction of a new stream may be ahead of its reader. Source: yamux specification."""
WINDOW_BULK = 16 << 20
"""The same for a bulk transfer: the largest that libp2p implementations use. Source: go-yamux."""
BULK_READ_BYTES = 64 * 1024
"""Who reads this much at once is in a bulk transfer: open the window. Source: guess."""
SMALL_BYTES = 4096
"""Smaller pieces are copied together, so that they cannot pin the message they came in. Source: guess."""


class StreamBroken(Exception):
    """The stream was reset, or its connection ended."""


class Credit:
    """Receive window, in bytes, that may still be granted: what bounds the memory that remotes can fill.

    Every connection has one, drawing on one of the whole host.
    """

    def __init__(self, bytes_max: int, parent: Credit | None = None) -> None:
        self.free = bytes_max
        self._parent = parent

    def take(self, wanted: int) -> int:
        """Reserve up to ``wanted`` bytes, at most a quarter of what is free, so that later streams get some too.

        Returns:
            How many were reserved: 0 to ``wanted``; pass them to ``give`` afterwards.
        """
        granted = min(wanted, self.free // 4)
        if self._parent is not None:
            granted = self._parent.take(granted)
        self.free -= granted
        return granted

    def give(self, count: int) -> None:
        """Free what was reserved."""
        self.free += count
        if self._parent is not None:
            self._parent.give(count)


class Carrier(Protocol):
    """What a stream needs of its connection; ``yamux.Session`` is one."""

    stall_s: float
    credit: Credit

    async def send_data(self, stream: MuxedStream, data: memoryview) -> None:
        """Queue data and wait until the socket has taken it."""
        ...

    def queue_finish(self, stream: MuxedStream) -> trio.Event:
        """Queue the end of a stream behind its data; the event tells when the socket has taken it."""
        ...

    def queue_reset(self, stream: MuxedStream) -> None:
        """Queue a reset behind all data of the stream."""
        ...

    def send_window(self, stream_id: int, increment: int) -> None:
        """Allow the remote ``increment`` more bytes."""
        ...

    def send_reset(self, stream_id: int) -> None:
        """Tell the remote that the stream is no more."""
        ...

    def forget(self, stream: MuxedStream) -> None:
        """Drop a stream that is done at both ends."""
        ...

    def abort(self, reason: str) -> None:
        """End the whole connection."""
        ...


class MuxedStream:
    """One stream. Made by a session only (``yamux.Session``).

    Args:
        session: the connection that carries it.
        stream_id: its number on that connection.
    """

    def __init__(self, session: Carrier, stream_id: int) -> None:
        self.session = session
        self.stream_id = stream_id
        self.finish_sent = False
        self.finish_received = False
        self.broken: str | None = None  # why nothing can be sent any more
        self.closed_at: float | None = None  # when we stopped reading and writing
        self.send_window = WINDOW_FIRST
        self.receive_window = WINDOW_FIRST  # bytes that the remote may still send: enforced
        self._window_max = WINDOW_FIRST  # what the receive window is topped up to
        self._granted = 0  # of the session's credit
        self._refused = False  # whether the remote was told that nobody reads any more
        self._consumed = 0  # read by us, not yet granted anew
        self._pieces: deque[bytes | bytearray | memoryview] = deque()
        self._readable = trio.lowlevel.ParkingLot()
        self._writable = trio.lowlevel.ParkingLot()

    async def send(self, data: memoryview) -> None:
        """Queue all of ``data`` and return when the socket has taken it.

        Safe to cancel at any point: the connection stays usable, how much was sent is unknown.

        Raises:
            StreamBroken: reset or lost; after ``stall_s`` without window or progress the connection is closed.
        """
        sent = 0
        while sent < len(data):
            await self._wait_for_window()
            count = min(len(data) - sent, self.send_window, BATCH_BYTES)
            self.send_window -= count
            await self.session.send_data(self, data[sent : sent + count])
            sent += count
        if not sent:
            await trio.lowlevel.checkpoint()

    async def _wait_for_window(self) -> None:
        while True:
            if self.broken is not None:
                raise StreamBroken(self.broken)
            if self.finish_sent:
                raise StreamBroken("sending was finished already")
            if self.send_window > 0:
                return
            with trio.move_on_after(self.session.stall_s) as scope:
                await self._writable.park()
            if scope.cancelled_caught:
                self.session.abort(f"the peer read nothing for {self.session.stall_s:g} s")

    async def receive(self, bytes_max: int) -> bytes:
        """Return 1 to ``bytes_max`` bytes, ``b""`` at the remote's end of stream. Safe to cancel.

        Raises:
            StreamBroken: reset, or the connection ended without an end of stream.
        """
        if bytes_max >= BULK_READ_BYTES and self._window_max == WINDOW_FIRST:
            self._open_window()
        if self._pieces or self.finish_received:
            await trio.lowlevel.checkpoint()
        while not self._pieces:
            if self.finish_received:
                return b""
            if self.broken is not None:
                raise StreamBroken(self.broken)
            await self._readable.park()
        data = self._take(bytes_max)
        self._consumed += len(data)
        if self._consumed * 4 >= self._window_max and not self.finish_received and self.broken is None:
            self._grant(self._consumed)
            self._consumed = 0
        return data

    def _take(self, bytes_max: int) -> bytes:
        if len(self._pieces) == 1 and len(self._pieces[0]) <= bytes_max:
            return bytes(self._pieces.popleft())
        taken: list[bytes | bytearray | memoryview] = []
        room = bytes_max
        while room and self._pieces:
            piece = self._pieces[0]
            if len(piece) <= room:
                taken.append(self._pieces.popleft())
                room -= len(piece)
            else:
                view = memoryview(piece)
                taken.append(view[:room])
                self._pieces[0] = view[room:]
                room = 0
        return b"".join(taken)

    def _open_window(self) -> None:
        self._granted = self.session.credit.take(WINDOW_BULK - WINDOW_FIRST)
        self._window_max += max(self._granted, 1)  # 1: asked once, also when nothing was left to grant
        self._grant(self._granted)

    def _grant(self, increment: int) -> None:
        if increment:
            self.receive_window += increment
            self.session.send_window(self.stream_id, increment)

    async def finish(self) -> None:
        """Send the end of stream behind all data; receiving still works."""
        if not self.finish_sent and self.broken is None:
            self.finish_sent = True
            await self.session.queue_finish(self).wait()
            self._release_if_done()

    def close(self) -> None:
        """Finish, and refuse what the remote may still send."""
        if not self.finish_sent and self.broken is None:
            self.finish_sent = True
            self.session.queue_finish(self)
        self.closed_at = trio.current_time()
        if self._pieces and not self.finish_received:
            self._refuse()  # the remote may have used up its window, and would wait for more
        self._pieces.clear()
        self._release_if_done()

    def _refuse(self) -> None:
        """Say that nobody reads any more, behind our own data and end: a refusal sent before can still be read."""
        if not self._refused and self.broken is None:
            self._refused = True
            self.session.queue_reset(self)
            self._release()

    def reset(self) -> None:
        """Drop the stream at both ends, data in flight included."""
        if self.broken is None and not (self.finish_sent and self.finish_received):
            self.session.send_reset(self.stream_id)
        self.finish_received = False  # also what is complete is dropped here: nobody wants it
        self.on_broken("we reset the stream")

    def on_data(self, piece: memoryview) -> None:
        """Called by the session with what arrived."""
        if self.closed_at is not None:
            self._refuse()
            return
        if len(piece) >= SMALL_BYTES:
            message = cast("bytes", piece.obj)  # what it would keep in memory
            self._pieces.append(piece if len(piece) * 2 >= len(message) else bytes(piece))
        elif (
            self._pieces
            and isinstance(self._pieces[-1], bytearray)
            and len(self._pieces[-1]) < BULK_READ_BYTES
        ):
            self._pieces[-1] += piece
        else:
            self._pieces.append(bytearray(piece))
        self._readable.unpark_all()

    def on_finish(self) -> None:
        """Called by the session at the remote's end of stream."""
        self.finish_received = True
        self._readable.unpark_all()
        self._release_if_done()

    def on_window(self, increment: int) -> None:
        """Called by the session when the remote allows more."""
        self.send_window = min(self.send_window + increment, 1 << 31)
        self._writable.unpark_all()

    def on_broken(self, reason: str, *, drop: bool = True) -> None:
        """Called when the stream is reset or the connection ends.

        A reset drops unread data, unless they are complete: then it only says that the remote reads no more.
        """
        if self.broken is None:
            self.broken = reason
            if drop and not self.finish_received:
                self._pieces.clear()
            self._readable.unpark_all()
            self._writable.unpark_all()
            self._release()

    def _release_if_done(self) -> None:
        if self.finish_sent and self.finish_received:
            self._release()

    def _release(self) -> None:
        self.session.forget(self)
        self.session.credit.give(self._granted)
        self._granted = 0
