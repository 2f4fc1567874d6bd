"""Pulls over the in-memory network: holding, resuming, and every lie a server can tell."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import trio

from gossip import wire
from gossip.errors import RemoteError
from gossip.messages import Offer, Ping, Pull, Refusal
from gossip.offers import RunShape
from gossip.published import PublishedAdapter
from peer.exchange import ADAPTER, CONTROL, Traffic, ask, pull
from peer.network.memory import MemoryNetwork
from peer.network.transport import Stream, Transport, Unreachable
from peer.publisher import PULLS_PER_PEER, Publisher

RUN = b"run fingerprint!"
SIZE = 1_000_000
SHAPE = RunShape(rounds=9, lengths={"round": {SIZE}, "merge": {SIZE}, "initial": {SIZE}}, replicas=False)
PAYLOAD = bytes(range(256)) * (SIZE // 256) + bytes(SIZE % 256)


def wanted(round: int | None = 0, newer_than: int = -1, wait_s: float = 0.0) -> Pull:
    return Pull(RUN, round, newer_than, wait_s)


async def everybody(peer: str) -> bool:
    return True


def publisher_of(traffic: Traffic, shape: RunShape = SHAPE) -> Publisher:
    """A publisher to whom everybody is welcome, and who does not sign."""
    return Publisher(RUN, shape, traffic, everybody, lambda offer: offer)


async def read(reader: Transport, request: Pull, traffic: Traffic | None = None) -> PublishedAdapter:
    """Pull from the server, whatever it signs."""
    return await pull(reader, "server", request, SHAPE, traffic or Traffic(), lambda offer: None)


def run(body: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        with trio.fail_after(20):
            await body()

    trio.run(limited)


@asynccontextmanager
async def reader_of(
    handler: Callable[[Stream], Awaitable[None]], protocol: str = ADAPTER
) -> AsyncIterator[Transport]:
    """A transport connected to a peer ``server`` that answers with ``handler``."""
    network = MemoryNetwork()
    silent = {"topic": "t", "on_announced": lambda *_: None, "on_connection": lambda *_: None}
    async with (
        network.factory("server")(handlers={protocol: handler}, **silent) as server,
        network.factory("reader")(handlers={}, **silent) as reader,
    ):
        await reader.dial(server.addresses[0])
        yield reader


def test_a_pull_brings_the_published_bytes_and_counts_them() -> None:
    async def body() -> None:
        theirs, ours = Traffic(), Traffic()
        publisher = publisher_of(theirs)
        publisher.publish(PublishedAdapter(3, 12, "float32", PAYLOAD))

        async def serve(stream: Stream) -> None:
            await publisher.serve(stream)

        async with reader_of(serve) as reader:
            published = await read(reader, wanted(None), ours)
        assert (published.round, published.age, published.codec) == (3, 12, "float32")
        assert bytes(published.payload) == PAYLOAD
        assert ours.bytes_in == theirs.bytes_out
        assert SIZE < ours.bytes_in < SIZE + 1000
        assert ours.bytes_out == theirs.bytes_in

    run(body)


def test_a_request_is_held_until_its_round_is_published() -> None:
    async def body() -> None:
        publisher = publisher_of(Traffic())
        publisher.publish(PublishedAdapter(0, 1, "float32", PAYLOAD))
        asked = trio.Event()

        async def serve(stream: Stream) -> None:
            asked.set()
            await publisher.serve(stream)

        async with reader_of(serve) as reader, trio.open_nursery() as nursery:

            async def publish_later() -> None:
                await asked.wait()
                publisher.publish(PublishedAdapter(1, 2, "float32", PAYLOAD))

            nursery.start_soon(publish_later)
            published = await read(reader, wanted(1, wait_s=15.0))
            assert published.round == 1

    run(body)


def test_when_the_wait_is_over_the_newest_will_do_or_nothing() -> None:
    async def body() -> None:
        publisher = publisher_of(Traffic())
        publisher.publish(PublishedAdapter(0, 1, "float32", PAYLOAD))

        async def serve(stream: Stream) -> None:
            await publisher.serve(stream)

        async with reader_of(serve) as reader:
            assert (await read(reader, wanted(5, wait_s=0.01))).round == 0
            with pytest.raises(RemoteError, match="nothing"):
                await read(reader, wanted(5, newer_than=0, wait_s=0.01))

    run(body)


def test_a_broken_transfer_goes_on_where_it_stopped() -> None:
    async def body() -> None:
        publisher = publisher_of(Traffic())
        publisher.publish(PublishedAdapter(0, 1, "float32", PAYLOAD))
        attempts: list[int] = []

        async def serve(stream: Stream) -> None:
            if len(attempts) < 2:  # break off in the middle, twice
                request = wire.decode(await _frame(stream))
                assert isinstance(request, Pull)
                attempts.append(request.offset)
                await stream.send(
                    wire.framed(PublishedAdapter(0, 1, "float32", PAYLOAD).offer(request.offset))
                )
                await stream.send(PAYLOAD[request.offset : request.offset + 300_000])
                await stream.finish()
                return
            request_traffic = Traffic()
            publisher._traffic = request_traffic
            served = await publisher.serve(stream)
            assert served is not None
            attempts.append(SIZE - request_traffic.bytes_out)

        async with reader_of(serve) as reader:
            ours = Traffic()
            published = await read(reader, wanted(), ours)
        assert bytes(published.payload) == PAYLOAD
        assert attempts[:2] == [0, 300_000]
        assert 599_000 < attempts[2] < 600_000  # the rest and a frame
        assert ours.bytes_in < SIZE + 1000

    run(body)


async def _frame(stream: Stream) -> bytes:
    received = b""
    while len(received) < 4 or len(received) < 4 + wire.frame_length(received[:4]):
        piece = await stream.receive(4096)
        assert piece
        received += piece
    return received[4:]


async def _say_and_read_to_the_end(stream: Stream, said: bytes) -> None:
    await stream.send(said)
    await stream.finish()
    while await stream.receive(100):
        pass
    raise Unreachable("ended")


HONEST = PublishedAdapter(0, 1, "float32", PAYLOAD)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (wire.framed(Offer(0, 1, "float32", SIZE, bytes(32), 0)) + PAYLOAD, "digest"),
        (wire.framed(Offer(0, 1, "float32", SIZE + 1, HONEST.digest, 0)) + PAYLOAD, "shape"),
        (wire.framed(Offer(0, 1, "float32", 2**29, HONEST.digest, 0)), "shape"),
        (wire.framed(Offer(0, 1, "float32", SIZE, HONEST.digest, 7)) + PAYLOAD, "malformed"),
        (wire.framed(Ping(1)), "malformed"),
        (wire.framed(Refusal("run", "no")), "run"),
        (b"\xff\xff\xff\xff" + PAYLOAD, "oversized"),
        (b"\x00\x00\x00\x05abcde", "malformed"),
        (
            wire.framed(HONEST.offer()) + PAYLOAD[:1000],
            "malformed",
        ),  # broken off, then another offset than asked
        (wire.framed(HONEST.offer())[:20], "unreachable"),
        (b"", "unreachable"),
    ],
)
def test_lies_and_broken_answers_have_a_reason(answer: bytes, reason: str) -> None:
    async def body() -> None:
        async def serve(stream: Stream) -> None:
            await _frame(stream)
            await stream.send(answer)
            await stream.finish()

        async with reader_of(serve) as reader:
            with pytest.raises(RemoteError) as caught:
                await read(reader, wanted())
            assert caught.value.reason == reason

    run(body)


@pytest.mark.parametrize(
    ("request_bytes", "reason"),
    [
        (wire.framed(Ping(1)), "malformed"),
        (b"\x00\x00\x00\x03abc", "malformed"),
        (b"\xff" * 100, "oversized"),
        (b"\x00\x00", "malformed"),
        (b"\x00\x00\x00\x09", "malformed"),
        (b"", "unreachable"),
    ],
    ids=["ping", "noise", "oversized", "truncated", "no frame", "nothing"],
)
def test_a_server_survives_what_is_not_a_pull(request_bytes: bytes, reason: str) -> None:
    async def body() -> None:
        publisher = publisher_of(Traffic())
        reasons: list[str] = []

        async def serve(stream: Stream) -> None:
            try:
                await publisher.serve(stream)
            except RemoteError as error:
                reasons.append(error.reason)
                await stream.reset()

        async with reader_of(serve) as reader:
            stream = await reader.open("server", ADAPTER)
            with pytest.raises(Unreachable):
                await _say_and_read_to_the_end(stream, request_bytes)
        assert reasons == [reason]

    run(body)


def test_another_run_and_too_many_requests_are_refused() -> None:
    async def body() -> None:
        publisher = publisher_of(Traffic())

        async def serve(stream: Stream) -> None:
            await publisher.serve(stream)

        async with reader_of(serve) as reader:
            with pytest.raises(RemoteError, match="run"):
                await read(reader, Pull(b"another run's id", 0, -1, 0.0))
            reasons: list[str] = []

            async def pull_once() -> None:
                try:
                    await read(reader, wanted(0, wait_s=0.05))
                except RemoteError as error:
                    reasons.append(error.reason)

            async with trio.open_nursery() as nursery:
                for _ in range(PULLS_PER_PEER + 2):
                    nursery.start_soon(pull_once)
        assert sorted(reasons) == ["busy", "busy", "nothing", "nothing"]

    run(body)


def test_a_control_question_without_an_answer_is_unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("peer.exchange.ANSWER_S", 0.05)

    async def body() -> None:
        async def silent(stream: Stream) -> None:
            await trio.sleep_forever()

        async with reader_of(silent, CONTROL) as reader:
            with pytest.raises(Unreachable, match="no answer"):
                await ask(reader, "server", Ping(0), Traffic())

    run(body)
