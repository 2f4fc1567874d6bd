"""Pulls over the in-memory network: holding, resuming, and every lie a server can tell."""

from __future__ import annotations

import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace

import pytest
import trio
from trio.testing import MockClock

from gossip import wire
from gossip.errors import RemoteError
from gossip.messages import Kind, Offer, Ping, Pull, Refusal
from gossip.offers import STEPS_PER_ROUND_MAX, RunShape
from gossip.published import PublishedAdapter
from peer.exchange import ADAPTER, CONTROL, RATE_MIN, STALL_S, Traffic, ask, pull
from peer.network.memory import MemoryNetwork
from peer.network.transport import Stream, Transport, Unreachable
from peer.publisher import (
    CHUNK_S,
    LAST_FOR,
    PULLS_PER_PEER,
    REPEATS_FORGIVEN,
    SLOT_S,
    UPLOADS,
    Publisher,
)

RUN = b"run fingerprint!"
SIZE = 1_000_000
SHAPE = RunShape(
    rounds=9, lengths={"round": [{SIZE}], "merge": [{SIZE}], "initial": [{SIZE}]}, replicas=False
)
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
        reader.trust("server")  # no member in time, no connection
        server.trust("reader")
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


def test_pulls_of_rollouts_are_counted_apart_from_those_of_adapters() -> None:
    shape = replace(SHAPE, lengths={**SHAPE.lengths, "rollouts": [range(100)]})

    async def body() -> None:
        publisher = publisher_of(Traffic(), shape)

        async def serve(stream: Stream) -> None:
            await publisher.serve(stream)

        async with reader_of(serve) as reader:
            ends: list[tuple[str, str]] = []

            async def pull_once(kind: Kind) -> None:
                try:
                    await read(reader, replace(wanted(0, wait_s=0.05), kind=kind))
                except RemoteError as error:
                    ends.append((kind, error.reason))

            async with trio.open_nursery() as nursery:
                for _ in range(PULLS_PER_PEER + 1):
                    nursery.start_soon(pull_once, "round")
                    nursery.start_soon(pull_once, "rollouts")
        for kind in ("round", "rollouts"):
            assert sorted(reason for one, reason in ends if one == kind) == ["busy", "nothing", "nothing"]

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


# -- what a reader refuses, and for how long it waits


def serving(*answers: bytes) -> Callable[[Stream], Awaitable[None]]:
    """Answer any question with these bytes."""

    async def serve(stream: Stream) -> None:
        await _frame(stream)
        for answer in answers:
            await stream.send(answer)
        await stream.finish()

    return serve


OF_MERGE = replace(HONEST, round=9, kind="merge")


@pytest.mark.parametrize(
    ("request_", "offered", "reason"),
    [
        (wanted(0), replace(HONEST.offer(), kind="merge"), "malformed"),
        (wanted(0), OF_MERGE.offer(), "malformed"),
        (replace(wanted(9), kind="merge"), HONEST.offer(), "malformed"),
        (replace(wanted(9), kind="merge"), replace(OF_MERGE.offer(), round=8), "malformed"),
        (wanted(0), replace(HONEST.offer(), round=9), "malformed"),
        (wanted(0), replace(HONEST.offer(), round=2**40), "malformed"),
        (wanted(0), replace(HONEST.offer(), age=STEPS_PER_ROUND_MAX + 1), "malformed"),
        (wanted(0), replace(HONEST.offer(), base=bytes(8)), "malformed"),
        (wanted(5, newer_than=3), replace(HONEST.offer(), round=3), "stale"),
        (wanted(None, newer_than=3), replace(HONEST.offer(), round=3), "stale"),
    ],
)  # fmt: skip
def test_an_offer_that_does_not_answer_the_question_is_refused(
    request_: Pull, offered: Offer, reason: str
) -> None:
    async def body() -> None:
        async with reader_of(serving(wire.framed(offered), PAYLOAD)) as reader:
            with pytest.raises(RemoteError) as caught:
                await read(reader, request_)
            assert caught.value.reason == reason

    run(body)


def test_where_a_sender_has_gone_on_it_is_read_there_also_if_that_was_read_before() -> None:
    async def body() -> None:
        finished = replace(HONEST, round=8)
        async with reader_of(serving(wire.framed(finished.offer()), PAYLOAD)) as reader:
            assert (await read(reader, wanted(5, newer_than=8))).round == 8

    run(body)


def test_bytes_after_the_payload_and_another_offer_for_the_rest_are_refused() -> None:
    async def body() -> None:
        async with reader_of(serving(wire.framed(HONEST.offer()), PAYLOAD, b"x")) as reader:
            with pytest.raises(RemoteError, match="after the payload"):
                await read(reader, wanted())
        older = replace(HONEST, age=2)
        offers = iter([(HONEST.offer(), PAYLOAD[:1000]), (older.offer(1000), PAYLOAD[1000:])])

        async def serve(stream: Stream) -> None:
            offer, payload = next(offers)
            await serving(wire.framed(offer), payload)(stream)

        async with reader_of(serve) as reader:
            with pytest.raises(RemoteError, match="another payload"):
                await read(reader, wanted())

    run(body)


def test_an_offer_that_its_judge_refuses_costs_no_payload() -> None:
    async def body() -> None:
        ours = Traffic()

        def judge(offer: Offer) -> None:
            raise RemoteError("malformed", "not signed")

        async with reader_of(serving(wire.framed(HONEST.offer()), PAYLOAD)) as reader:
            with pytest.raises(RemoteError, match="not signed"):
                await pull(reader, "server", wanted(), SHAPE, ours, judge)
        assert ours.bytes_in < 1000

    run(body)


def on_a_virtual_clock(body: Callable[[], Awaitable[None]]) -> None:
    trio.run(body, clock=MockClock(autojump_threshold=0))


@pytest.mark.parametrize("pause_s", [1.0, 29.0])
def test_a_transfer_that_drips_is_given_up_in_the_end(pause_s: float) -> None:
    """Each byte comes in time; all of them would take weeks."""

    async def body() -> None:
        async def drip(stream: Stream) -> None:
            await _frame(stream)
            await stream.send(wire.framed(HONEST.offer()))
            for index in range(SIZE):
                await stream.send(PAYLOAD[index : index + 1])
                await trio.sleep(pause_s)

        async with reader_of(drip) as reader:
            began = trio.current_time()
            with pytest.raises(Unreachable):
                await read(reader, wanted())
            assert trio.current_time() - began < 2 * STALL_S + SIZE / RATE_MIN

    on_a_virtual_clock(body)


def test_silence_after_a_large_promise_holds_no_memory() -> None:
    large = 256 << 20
    shape = replace(SHAPE, lengths={"round": [{large}]})

    async def body() -> None:
        async def promise(stream: Stream) -> None:
            await _frame(stream)
            await stream.send(wire.framed(replace(HONEST.offer(), length=large)))
            await trio.sleep_forever()

        async with reader_of(promise) as reader:
            with pytest.raises(Unreachable):
                await pull(reader, "server", wanted(), shape, Traffic(), lambda offer: None)

    tracemalloc.start()
    try:
        on_a_virtual_clock(body)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


# -- what a server puts up with


@asynccontextmanager
async def readers_of(publisher: Publisher, *names: str) -> AsyncIterator[dict[str, Transport]]:
    """Transports connected to a peer ``server`` that serves what is published."""
    network = MemoryNetwork()
    silent = {"topic": "t", "on_announced": lambda *_: None, "on_connection": lambda *_: None}

    async def serve(stream: Stream) -> None:
        try:
            await publisher.serve(stream)
        except RemoteError:
            await stream.reset()

    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(
            network.factory("server")(handlers={ADAPTER: serve}, **silent)
        )
        readers = {}
        for name in names:
            readers[name] = await stack.enter_async_context(network.factory(name)(handlers={}, **silent))
            await readers[name].dial(server.addresses[0])
            readers[name].trust("server")
            server.trust(name)
        yield readers


async def ask_and_dawdle(reader: Transport, pause_s: float) -> None:
    """Ask for an adapter and take a byte of it now and then."""
    stream = await reader.open("server", ADAPTER)
    await stream.send(wire.framed(wanted(None)))
    await stream.finish()
    with suppress(Unreachable):
        while await stream.receive(1):
            await trio.sleep(pause_s)


def test_slow_readers_hold_no_slot_and_are_cut_off_by_what_they_take() -> None:
    async def body() -> None:
        publisher = publisher_of(Traffic())
        publisher.publish(HONEST)
        slow = [f"slow {number}" for number in range(2 * UPLOADS)]
        async with readers_of(publisher, "honest", *slow) as readers, trio.open_nursery() as nursery:
            began = trio.current_time()
            for name in slow:
                for _ in range(PULLS_PER_PEER):
                    nursery.start_soon(ask_and_dawdle, readers[name], 0.5)
            await trio.sleep(0.5)  # they have every slot
            await read(readers["honest"], wanted(None))
            assert trio.current_time() - began < 0.5 + SLOT_S * (len(slow) * PULLS_PER_PEER / UPLOADS + 1)
        assert (
            trio.current_time() - began < 2 * CHUNK_S + 10
        )  # and the nursery ends: all slow ones were cut off

    on_a_virtual_clock(body)


def test_whoever_reads_the_same_over_and_over_comes_last_until_there_is_more() -> None:
    async def body() -> None:
        publisher = publisher_of(Traffic())
        publisher.publish(HONEST)
        async with readers_of(publisher, "greedy", "honest") as readers:
            greedy = readers["greedy"]
            for _ in range(1 + REPEATS_FORGIVEN):
                await read(greedy, wanted(0))
            for _ in range(3):
                with pytest.raises(RemoteError, match="busy"):
                    await read(greedy, wanted(0))
            await read(readers["honest"], wanted(0))
            for round in range(1, 1 + LAST_FOR):
                with pytest.raises(RemoteError, match="busy"):
                    await read(greedy, wanted(round - 1))
                publisher.publish(replace(HONEST, round=round))
            await read(greedy, wanted(LAST_FOR))

    on_a_virtual_clock(body)


def test_a_reader_that_goes_on_may_read_a_finished_peer_in_each_of_its_rounds() -> None:
    async def body() -> None:
        publisher = publisher_of(Traffic())
        publisher.publish(replace(HONEST, round=8))
        async with readers_of(publisher, "behind") as readers:
            for round in range(9):
                assert (await read(readers["behind"], wanted(round, newer_than=8))).round == 8

    on_a_virtual_clock(body)


def test_kinds_are_kept_apart_and_the_initial_adapter_can_be_had() -> None:
    async def body() -> None:
        publisher = publisher_of(Traffic())
        publisher.publish(replace(HONEST, kind="initial"))
        async with readers_of(publisher, "reader") as readers:
            reader = readers["reader"]
            with pytest.raises(RemoteError, match="nothing"):
                await read(reader, wanted(None))
            assert (await read(reader, replace(wanted(None), kind="initial"))).kind == "initial"
            publisher.publish(replace(HONEST, round=8))
            publisher.publish(OF_MERGE)
            assert (await read(reader, wanted(3))).round == 8
            assert (await read(reader, wanted(None))).kind == "round"
            assert (await read(reader, replace(wanted(9), kind="merge"))).kind == "merge"

    on_a_virtual_clock(body)


def test_a_base_in_a_run_without_replicas_is_a_fault() -> None:
    async def body() -> None:
        publisher = publisher_of(Traffic())
        publisher.publish(HONEST)
        reasons: list[str] = []

        async def serve(stream: Stream) -> None:
            try:
                await publisher.serve(stream)
            except RemoteError as error:
                reasons.append(error.reason)
                await stream.reset()

        async with reader_of(serve) as reader:
            with pytest.raises(Unreachable):
                await read(reader, replace(wanted(), base=bytes(8)))
        assert set(reasons) == {"malformed"}

    run(body)
