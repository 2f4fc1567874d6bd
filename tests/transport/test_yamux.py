"""The multiplexer by itself, against a wire that the test holds in its hands and a clock that jumps."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from peer.network.limits import Limits
from peer.network.muxed_stream import WINDOW_BULK, WINDOW_FIRST, Credit, MuxedStream, StreamBroken
from peer.network.pace import Pace
from peer.network.yamux import ACK, DATA, FIN, HEADER, PING, RST, STREAMS_MAX, SYN, WINDOW, Session

STALL_S = 30.0
UNHURRIED = Limits(frames_burst=1e9, streams_burst=1e9)


class Wire:
    """Stands in for ``SecureLink``: what the session sent, and what it is to receive."""

    def __init__(self) -> None:
        self.sent: list[tuple[int, int, int, int]] = []  # (kind, flags, stream id, value) of each frame
        self.bodies = bytearray()
        self.closed = False
        self.stuck = False  # whether the remote has stopped reading
        self._to_session, self._from_test = trio.open_memory_channel[list[bytes]](100)

    async def receive(self) -> list[bytes]:
        try:
            return await self._from_test.receive()
        except trio.EndOfChannel:
            return []

    async def send(self, messages: list[bytes], stall_s: float) -> None:
        if self.stuck:
            await trio.sleep_forever()
        await trio.lowlevel.checkpoint()
        data = b"".join(messages)
        while data:
            _, kind, flags, stream_id, value = HEADER.unpack_from(data)
            self.sent.append((kind, flags, stream_id, value))
            body = value if kind == DATA else 0
            self.bodies += data[HEADER.size : HEADER.size + body]
            data = data[HEADER.size + body :]

    def close(self) -> None:
        self.closed = True

    async def deliver(self, *messages: bytes) -> None:
        """Give messages to the session and let it digest them."""
        await self._to_session.send(list(messages))
        await trio.testing.wait_all_tasks_blocked()

    async def hang_up(self) -> None:
        self._to_session.close()
        await trio.testing.wait_all_tasks_blocked()


def frame(kind: int, flags: int, stream_id: int, value: int, body: bytes = b"") -> bytes:
    return HEADER.pack(0, kind, flags, stream_id, value) + body


def data(stream_id: int, body: bytes, flags: int = 0) -> bytes:
    return frame(DATA, flags, stream_id, len(body), body)


@asynccontextmanager
async def dialed(
    credit_bytes: int = 64 << 20, limits: Limits = UNHURRIED
) -> AsyncIterator[tuple[Session, Wire]]:
    """A running session of which we are the initiator: the remote's streams have even ids."""
    wire = Wire()
    session = Session(
        wire,
        is_initiator=True,
        stall_s=STALL_S,
        credit=Credit(credit_bytes),
        pace=Pace(limits),
        on_end=lambda: None,
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(session.run)
        yield session, wire
        session.abort("the test is over")


async def accepted(session: Session, wire: Wire, stream_id: int = 2) -> MuxedStream:
    await wire.deliver(frame(WINDOW, SYN, stream_id, 0))
    return await session.accept()


def jumping(main: object) -> None:
    """Run with a clock that jumps to the next deadline when all tasks wait."""
    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


@pytest.mark.parametrize("cut", range(1, 30))
def test_frames_may_be_cut_anywhere(cut: int) -> None:
    async def main() -> None:
        async with dialed() as (session, wire):
            bytes_in = frame(WINDOW, SYN, 2, 0) + data(2, b"hello", FIN)
            await wire.deliver(bytes_in[:cut], bytes_in[cut:])
            stream = await session.accept()
            assert await stream.receive(100) == b"hello"
            assert await stream.receive(100) == b""

    trio.run(main)


def test_sending_keeps_to_the_window() -> None:
    async def main() -> None:
        async with dialed() as (session, wire), trio.open_nursery() as nursery:
            stream = session.open()
            payload = random.Random(1).randbytes(WINDOW_FIRST + 1000)
            nursery.start_soon(stream.send, memoryview(payload))
            await trio.testing.wait_all_tasks_blocked()
            assert len(wire.bodies) == WINDOW_FIRST
            await wire.deliver(frame(WINDOW, 0, stream.stream_id, 400))
            assert len(wire.bodies) == WINDOW_FIRST + 400
            await wire.deliver(frame(WINDOW, 0, stream.stream_id, 10_000))
            assert wire.bodies == payload

    trio.run(main)


def test_window_is_opened_for_bulk_only_and_given_back() -> None:
    async def main() -> None:
        async with dialed() as (session, wire):
            stream = await accepted(session, wire)
            await wire.deliver(data(2, bytes(1000)))
            await stream.receive(1000)
            assert session.credit.free == 64 << 20
            await wire.deliver(data(2, bytes(1000)))
            await stream.receive(1 << 20)
            await trio.testing.wait_all_tasks_blocked()
            opened = WINDOW_BULK - WINDOW_FIRST
            assert (WINDOW, 0, 2, opened) in wire.sent
            assert session.credit.free == (64 << 20) - opened
            stream.reset()
            assert session.credit.free == 64 << 20

    trio.run(main)


def test_windows_of_many_streams_share_what_there_is() -> None:
    total = Credit(100 << 20)
    first, second = Credit(64 << 20, total), Credit(64 << 20, total)
    granted = [credit.take(WINDOW_BULK) for credit in (first, second) * 20]
    assert granted[0] == 16 << 20
    assert sum(granted) <= 100 << 20
    assert total.free >= 0
    first.give(granted[0])
    assert total.free + sum(granted[1:]) == 100 << 20


def test_a_window_update_comes_in_time() -> None:
    """A sender that keeps to its window can go on for ever."""

    async def main() -> None:
        async with dialed(credit_bytes=0) as (session, wire):
            stream = await accepted(session, wire)
            allowed, sent = WINDOW_FIRST, 0
            for _ in range(40):
                await wire.deliver(data(2, bytes(60_000)))
                sent += 60_000
                assert len(await stream.receive(1 << 20)) == 60_000
                await trio.testing.wait_all_tasks_blocked()
                allowed = WINDOW_FIRST + sum(
                    v for kind, _, sid, v in wire.sent if kind == WINDOW and sid == 2
                )
                assert allowed - sent >= 60_000
            assert not session.ended.is_set()

    trio.run(main)


def test_exceeding_the_window_ends_the_connection() -> None:
    async def main() -> None:
        async with dialed() as (session, wire):
            await accepted(session, wire)
            for _ in range(4):
                await wire.deliver(data(2, bytes(64 * 1024)))
            assert not session.ended.is_set()
            await wire.deliver(data(2, b"x"))
            assert "into a window of 0" in session.reason
            assert wire.closed

    trio.run(main)


def test_tiny_frames_do_not_fill_memory() -> None:
    async def main() -> None:
        async with dialed() as (session, wire):
            stream = await accepted(session, wire)
            for _ in range(20):
                await wire.deliver(data(2, b"x") * 5000)
            assert len(stream._pieces) <= 3
            received = b""
            while len(received) < 100_000:
                received += await stream.receive(7000)
            assert received == b"x" * 100_000

    trio.run(main)


def test_pieces_do_not_pin_the_message_they_came_in() -> None:
    async def main() -> None:
        async with dialed() as (session, wire):
            stream = await accepted(session, wire)
            await wire.deliver(data(2, bytes(10_000)) + frame(PING, ACK, 0, 0) * 4000)
            (piece,) = stream._pieces
            assert len(piece) == 10_000
            assert not isinstance(piece, memoryview)

    trio.run(main)


def test_data_after_our_close_reset_behind_our_own_end() -> None:
    async def main() -> None:
        async with dialed() as (session, wire):
            stream = await accepted(session, wire)
            await stream.send(memoryview(b"no"))
            stream.close()
            await wire.deliver(data(2, b"more"), data(2, bytes(5000)), data(4, b"never opened"))
            assert [sent[:3] for sent in wire.sent[1:]] == [(DATA, 0, 2), (WINDOW, FIN, 2), (WINDOW, RST, 2)]
            assert 2 not in session.streams
            assert not session.ended.is_set()

    trio.run(main)


def test_closing_with_unread_data_frees_a_sender_out_of_window() -> None:
    async def main() -> None:
        async with dialed() as (session, wire):
            stream = await accepted(session, wire)
            await wire.deliver(*[data(2, bytes(64 * 1024))] * 4)
            stream.close()
            await trio.testing.wait_all_tasks_blocked()
            assert [sent[:3] for sent in wire.sent[1:]] == [(WINDOW, FIN, 2), (WINDOW, RST, 2)]
            assert 2 not in session.streams

    trio.run(main)


def test_a_reset_behind_the_end_leaves_the_data_readable() -> None:
    async def main() -> None:
        async with dialed() as (session, wire):
            stream = await accepted(session, wire)
            await wire.deliver(data(2, b"no", FIN), frame(WINDOW, RST, 2, 0))
            with pytest.raises(StreamBroken):
                await stream.send(memoryview(b"more"))
            assert await stream.receive(10) == b"no"
            assert await stream.receive(10) == b""

    trio.run(main)


def test_one_end_alone_closed_is_swept_in_time() -> None:
    async def main() -> None:
        async with dialed() as (session, wire):
            stream = await accepted(session, wire)
            stream.close()
            assert 2 in session.streams
            for tick in range(12):
                await trio.sleep(STALL_S / 3)
                await wire._to_session.send([frame(PING, ACK, 0, tick)])
            assert 2 not in session.streams
            assert (WINDOW, RST, 2, 0) in wire.sent

    jumping(main)


def test_more_streams_than_allowed_are_reset() -> None:
    async def main() -> None:
        async with dialed() as (session, wire):
            for number in range(STREAMS_MAX + 10):
                await wire.deliver(frame(WINDOW, SYN, 2 + 2 * number, 0))
            assert len(session.streams) == STREAMS_MAX
            assert sum(1 for kind, flags, *_ in wire.sent if (kind, flags) == (WINDOW, RST)) == 10
            for number in range(STREAMS_MAX):
                await wire.deliver(frame(WINDOW, RST, 2 + 2 * number, 0))
            await wire.deliver(frame(WINDOW, SYN, 1000, 0))
            assert len(session._incoming) <= STREAMS_MAX, "also those that were reset before we looked"

    trio.run(main)


def test_asking_much_and_reading_nothing_ends_the_connection() -> None:
    async def main() -> None:
        async with dialed() as (session, wire):
            wire.stuck = True
            for _ in range(100):
                if not session.ended.is_set():
                    await wire.deliver(frame(PING, SYN, 0, 1) * 200)
            assert "asks much" in session.reason

    trio.run(main)


def test_who_opens_streams_too_fast_is_read_at_its_rate() -> None:
    async def main() -> None:
        limits = Limits(streams_per_s=10.0, streams_burst=10.0, newcomer_cost=1.0)
        async with dialed(limits=limits) as (session, wire):
            begun = trio.current_time()
            for number in range(30):
                await wire._to_session.send([frame(WINDOW, SYN, 2 + 2 * number, 0)])
                await (await session.accept()).finish()
            assert trio.current_time() - begun == pytest.approx(1.9, abs=0.1)
            assert not session.ended.is_set()

    jumping(main)


@pytest.mark.parametrize(
    "flood",
    [
        frame(WINDOW, SYN | RST, 2, 0) * 4000,
        frame(PING, ACK, 0, 0) * 4000,
        frame(WINDOW, 0, 998, 1) * 4000,
        data(998, b"x") * 4000,
        data(998, bytes(1 << 20)) * 16,
    ],
    ids=["streams", "pings", "windows", "scraps", "bytes for nobody"],
)
def test_who_floods_is_cut_off(flood: bytes) -> None:
    async def main() -> None:
        limits = Limits(frames_per_s=100.0, frames_burst=100.0, streams_per_s=10.0, streams_burst=10.0)
        async with dialed(limits=limits) as (session, wire):
            await wire.deliver(flood)
            assert session.is_flood
            assert wire.closed

    trio.run(main)


def test_a_bulk_transfer_is_no_flood() -> None:
    async def main() -> None:
        limits = Limits(frames_per_s=1.0, frames_burst=5.0, newcomer_cost=1.0)
        async with dialed(limits=limits) as (session, wire):
            stream = await accepted(session, wire)
            for _ in range(100):
                await wire.deliver(data(2, bytes(60_000)))
                assert await stream.receive(1 << 20)
            assert not session.ended.is_set()

    trio.run(main)


def test_a_silent_connection_ends_but_a_quiet_one_lives() -> None:
    async def main() -> None:
        async with dialed() as (session, wire):
            for _ in range(20):
                await trio.sleep(STALL_S / 3)
                (*_, nonce) = (
                    next(sent for sent in reversed(wire.sent) if sent[0] == PING) if wire.sent else (0,)
                )
                await wire._to_session.send([frame(PING, ACK, 0, nonce)])
            assert not session.ended.is_set()
            quiet_since = trio.current_time()
            await session.ended.wait()
            assert STALL_S <= trio.current_time() - quiet_since <= 2 * STALL_S
            assert "nothing heard" in session.reason

    jumping(main)


def test_pings_are_answered() -> None:
    async def main() -> None:
        async with dialed() as (_, wire):
            await wire.deliver(frame(PING, SYN, 0, 77))
            assert wire.sent == [(PING, ACK, 0, 77)]

    trio.run(main)


def test_hanging_up_breaks_streams_but_not_what_has_arrived() -> None:
    async def main() -> None:
        async with dialed() as (session, wire):
            whole = await accepted(session, wire)
            part = await accepted(session, wire, 4)
            await wire.deliver(data(2, b"whole", FIN), data(4, b"part"))
            await wire.hang_up()
            assert await whole.receive(10) == b"whole"
            assert await whole.receive(10) == b""
            assert await part.receive(10) == b"part"
            with pytest.raises(StreamBroken):
                await part.receive(10)
            with pytest.raises(StreamBroken):
                session.open()

    trio.run(main)


def test_a_reset_drops_what_has_arrived() -> None:
    async def main() -> None:
        async with dialed() as (session, wire):
            stream = await accepted(session, wire)
            await wire.deliver(data(2, b"half"), frame(WINDOW, RST, 2, 0))
            with pytest.raises(StreamBroken):
                await stream.receive(10)

    trio.run(main)


@pytest.mark.parametrize("seed", range(40))
def test_no_bytes_make_it_raise(seed: int) -> None:
    """Frames drawn at random, mostly well formed: whatever they are, ``run`` returns quietly."""
    draw = random.Random(seed)

    def anything() -> bytes:
        kind, flags = draw.choice((0, 0, 0, 1, 1, 2, 3, 9)), draw.choice((0, 0, 1, 2, 4, 8, 15))
        body = draw.randbytes(draw.choice((0, 1, 100, 5000)))
        value = draw.choice((len(body), len(body), 0, 1 << 20, (1 << 32) - 1))
        return HEADER.pack(draw.choice((0,) * 20 + (1,)), kind, flags, draw.randrange(12), value) + body

    async def main() -> None:
        async with dialed() as (session, wire):
            for _ in range(50):
                if session.ended.is_set():
                    break
                await wire.deliver(b"".join(anything() for _ in range(draw.randrange(1, 6))))
                for stream in list(session.streams.values()):
                    if stream._pieces:
                        assert await stream.receive(1 << 20)

    trio.run(main)
