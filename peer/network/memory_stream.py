"""A stream in memory: two pipes with a small window each, so that a writer feels its reader as on a network.

Knows its two ends and how to cut their connection; nothing of who is connected to whom.
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from peer.network.transport import CHUNK_BYTES, Unreachable

WINDOW_BYTES = 256 * 1024
"""What a sender may be ahead of its reader. Source: ours; small, so that tests meet back-pressure."""


class Pipe:
    """One direction of a stream."""

    def __init__(self) -> None:
        self.buffer = bytearray()
        self.finished = False
        self.refused = False  # the reader has closed: what still comes resets the stream
        self.broken: str | None = None
        self.changed = trio.lowlevel.ParkingLot()

    def end(self, reason: str, *, drop: bool) -> None:
        """Break the pipe; ``drop`` throws away what was not read, unless it is complete."""
        if self.broken is None:
            self.broken = reason
            if drop and not self.finished:
                self.buffer.clear()
            self.changed.unpark_all()


class MemoryStream:
    """One end of a stream; see ``transport.Stream`` for the contract of the methods.

    Args:
        peer: who is at the other end.
        incoming: what the other end sends.
        outgoing: what we send.
        stall_s: seconds without room in the window after which the connection is cut.
        cut: ends the whole connection for a reason.
    """

    def __init__(
        self, peer: str, incoming: Pipe, outgoing: Pipe, *, stall_s: float, cut: Callable[[str], None]
    ) -> None:
        self.peer = peer
        self._incoming = incoming
        self._outgoing = outgoing
        self._stall_s = stall_s
        self._cut = cut

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
                self._cut(f"the peer read nothing for {self._stall_s:g} s")

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
