"""One contract, all transports: whatever holds here may be relied on by everything above the seam."""

import os
from contextlib import suppress
from itertools import permutations

import pytest
import trio
from networks import Network, Observer, ask, befriend, drain, echo, id_of, pair, run

from gossip.errors import LocalError
from peer.network.group import OPEN_GROUP, Group
from peer.network.transport import Stream, Unreachable, receive_exactly

ECHO = "/test/echo/1"


# -- bytes -------------------------------------------------------------------------------------------------------


def test_echo_small_and_empty(net: Network) -> None:
    async def main() -> None:
        async with pair(net, {ECHO: echo}) as (server, client):
            assert await ask(await client.open(server.peer_id, ECHO), b"hello") == b"hello"
            assert await ask(await client.open(server.peer_id, ECHO), b"") == b""

    run(main)


def test_large_payload_both_ways(net: Network) -> None:
    payload = os.urandom(8 << 20)

    async def main() -> None:
        async with pair(net, {ECHO: echo}) as (server, client):
            assert await ask(await client.open(server.peer_id, ECHO), payload) == payload

    run(main)


def test_any_buffer_can_be_sent(net: Network) -> None:
    async def main() -> None:
        async with pair(net, {ECHO: echo}) as (server, client):
            for data in (bytearray(b"abc"), memoryview(b"xabc")[1:], memoryview(bytes(8)).cast("d")):
                assert await ask(await client.open(server.peer_id, ECHO), data) == bytes(data)

    run(main)


def test_receive_returns_at_most_what_was_asked_for(net: Network) -> None:
    async def main() -> None:
        async with pair(net, {ECHO: echo}) as (server, client):
            stream = await client.open(server.peer_id, ECHO)
            await stream.send(bytes(range(100)))
            got = b""
            while len(got) < 100:
                piece = await stream.receive(7)
                assert 1 <= len(piece) <= 7
                got += piece
            assert got == bytes(range(100))

    run(main)


def test_half_close_leaves_the_answer_readable(net: Network) -> None:
    async def count(stream: Stream) -> None:
        total = 0
        while piece := await stream.receive(1000):
            total += len(piece)
        await stream.send(str(total).encode())

    async def main() -> None:
        async with pair(net, {ECHO: count}) as (server, client):
            stream = await client.open(server.peer_id, ECHO)
            await stream.send(bytes(300_000))
            await stream.finish()
            assert await receive_exactly(stream, 6, 5.0) == b"300000"
            assert await stream.receive(1) == b""
            with pytest.raises(Unreachable):
                await stream.send(b"more")

    run(main)


def test_streams_know_who_is_there(net: Network) -> None:
    async def name(stream: Stream) -> None:
        await stream.send(stream.peer.encode())

    async def main() -> None:
        async with pair(net, {ECHO: name}) as (server, client):
            stream = await client.open(server.peer_id, ECHO)
            assert stream.peer == server.peer_id == id_of(1)
            assert await stream.receive(1000) == client.peer_id.encode()

    run(main)


def test_many_streams_at_once(net: Network) -> None:
    async def main() -> None:
        async with pair(net, {ECHO: echo}) as (server, client):
            answers: dict[int, bytes] = {}

            async def ask_one(number: int) -> None:
                stream = await client.open(server.peer_id, ECHO)
                answers[number] = await ask(stream, bytes([number]) * 300_000)

            async with trio.open_nursery() as nursery:
                for number in range(12):
                    nursery.start_soon(ask_one, number)
            assert answers == {number: bytes([number]) * 300_000 for number in range(12)}

    run(main)


def test_a_probe_proves_who_is_where_and_leaves_connections_alone(net: Network) -> None:
    async def main() -> None:
        seen = Observer()
        async with net.start(1, {ECHO: echo}, seen) as server, net.start(2) as client:
            address = server.addresses[0]
            assert await client.probe(address) == server.peer_id
            assert not client.is_connected(server.peer_id)
            await client.dial(address)
            stream = await client.open(server.peer_id, ECHO)
            assert await client.probe(address) == server.peer_id
            assert await ask(stream, b"hello") == b"hello"
            assert seen.changes == [(client.peer_id, True)]
            for elsewhere in (net.setup.nobody(), net.impostor(server, 3)):
                with pytest.raises(Unreachable):
                    await client.probe(elsewhere)
            with pytest.raises(LocalError, match="malformed address"):
                await client.probe(net.setup.malformed[0])

    run(main)


# -- streams that end badly -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["opener", "handler"])
def test_reset_is_seen_at_the_other_end(net: Network, side: str) -> None:
    seen = trio.Event()

    async def handler(stream: Stream) -> None:
        await receive_exactly(stream, 2, 5.0)
        await stream.send(b"ok")
        if side == "handler":
            await stream.reset()
            return
        with pytest.raises(Unreachable):
            await stream.receive(1)
        seen.set()

    async def main() -> None:
        async with pair(net, {ECHO: handler}) as (server, client):
            stream = await client.open(server.peer_id, ECHO)
            await stream.send(b"go")
            if side == "opener":
                assert await stream.receive(2) == b"ok"
                await stream.reset()
                await seen.wait()
            else:
                with pytest.raises(Unreachable):
                    await drain(stream)
            with pytest.raises(Unreachable):
                await stream.send(b"more")

    run(main)


def test_a_refusal_ends_the_sender_and_can_be_read(net: Network) -> None:
    async def refuse(stream: Stream) -> None:
        await stream.receive(10)
        await stream.send(b"too large")

    async def main() -> None:
        async with pair(net, {ECHO: refuse}) as (server, client):
            stream = await client.open(server.peer_id, ECHO)
            with pytest.raises(Unreachable):
                await stream.send(bytes(64 << 20))
            assert await receive_exactly(stream, 9, 5.0) == b"too large"
            assert await stream.receive(1) == b""
            assert client.is_connected(server.peer_id)

    run(main)


def test_truncated_stream_is_told_from_a_complete_one(net: Network) -> None:
    async def half(stream: Stream) -> None:
        await stream.send(bytes(10))

    async def main() -> None:
        async with pair(net, {ECHO: half}) as (server, client):
            stream = await client.open(server.peer_id, ECHO)
            with pytest.raises(Unreachable, match="10 of 20"):
                await receive_exactly(stream, 20, 5.0)

    run(main)


def test_what_was_finished_survives_the_connection(net: Network) -> None:
    async def answer(stream: Stream) -> None:
        await stream.send(bytes(200_000))

    async def main() -> None:
        async with pair(net, {ECHO: echo, "/answer/1": answer}) as (server, client):
            stream = await client.open(server.peer_id, "/answer/1")
            got = await receive_exactly(stream, 100_000, 5.0)
            # Frames of one connection arrive in order: once this echo is here, so is the end of the answer.
            assert await ask(await client.open(server.peer_id, ECHO), b"x") == b"x"
            await client.drop(server.peer_id)
            got += await receive_exactly(stream, 100_000, 5.0)
            assert await stream.receive(1) == b""
            assert got == bytes(200_000)

    run(main)


def test_cancel_in_the_middle_of_a_big_send_leaves_the_connection_usable(net: Network) -> None:
    async def slow(stream: Stream) -> None:
        await receive_exactly(stream, 300_000, 5.0)
        await stream.send(b"flowing")
        with pytest.raises(Unreachable):  # the reset below
            await drain(stream)

    async def main() -> None:
        observer = Observer()
        async with (
            net.start(1, {ECHO: echo, "/slow/1": slow}) as server,
            net.start(2, {}, observer) as client,
        ):
            await client.dial(server.addresses[0])
            for _ in range(4):
                stream = await client.open(server.peer_id, "/slow/1")
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(stream.send, bytes(64 << 20))
                    assert await stream.receive(7) == b"flowing"
                    nursery.cancel_scope.cancel()
                await stream.reset()
                assert await ask(await client.open(server.peer_id, ECHO), b"alive") == b"alive"
            assert observer.changes == [(server.peer_id, True)]

    run(main)


def test_a_peer_that_never_reads_is_cut_off(net: Network) -> None:
    async def deaf(stream: Stream) -> None:
        await trio.sleep_forever()

    async def main() -> None:
        observer = Observer()
        async with net.start(1, {ECHO: deaf}) as server, net.start(2, {}, observer, stall_s=0.5) as client:
            await client.dial(server.addresses[0])
            stream = await client.open(server.peer_id, ECHO)
            with pytest.raises(Unreachable, match=r"0\.5 s"):
                await stream.send(bytes(64 << 20))
            assert not client.is_connected(server.peer_id)
            assert observer.changes == [(server.peer_id, True), (server.peer_id, False)]

    run(main)


def test_peer_vanishing_during_receive(net: Network) -> None:
    async def trickle(stream: Stream) -> None:
        await stream.send(bytes(1000))
        await trio.sleep_forever()

    async def main() -> None:
        async with net.start(2) as client:
            async with net.start(1, {ECHO: trickle}) as server:
                await client.dial(server.addresses[0])
                stream = await client.open(server.peer_id, ECHO)
                assert len(await receive_exactly(stream, 1000, 5.0)) == 1000
            with pytest.raises(Unreachable):
                await stream.receive(1)
            with pytest.raises(Unreachable):
                await stream.send(b"x")
            with pytest.raises(Unreachable):
                await client.open(server.peer_id, ECHO)
            await stream.close()  # never raises
            await stream.reset()

    run(main)


# -- handlers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        ValueError("x"),
        KeyError(1),
        ExceptionGroup("g", [RuntimeError("y"), OSError()]),
        Unreachable("z"),
        EOFError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_whatever_a_handler_raises_ends_its_stream_only(net: Network, error: Exception) -> None:
    async def bad(stream: Stream) -> None:
        await stream.receive(1)
        raise error

    async def main() -> None:
        async with pair(net, {ECHO: echo, "/bad/1": bad}) as (server, client):
            stream = await client.open(server.peer_id, "/bad/1")
            with pytest.raises(Unreachable):
                await ask(stream, b"x")
            assert await ask(await client.open(server.peer_id, ECHO), b"alive") == b"alive"
            assert client.is_connected(server.peer_id)

    run(main)


def test_more_streams_than_served_are_refused_and_come_free_again(net: Network) -> None:
    async def main() -> None:
        async with pair(net, {ECHO: echo}, streams_per_peer_max=4) as (server, client):
            held: list[Stream] = []
            with suppress(Unreachable):
                while len(held) < 12:
                    held.append(await client.open(server.peer_id, ECHO))
            assert 4 <= len(held) < 12
            for stream in held:
                assert await ask(stream, b"x") == b"x"
            again = None
            while again is None:  # the handlers end a moment after their last byte has arrived here
                with suppress(Unreachable):
                    again = await client.open(server.peer_id, ECHO)
            assert await ask(again, b"again") == b"again"

    run(main)


def test_leaving_is_quick_whatever_handlers_do(net: Network) -> None:
    async def stuck(stream: Stream) -> None:
        await stream.send(b"x")
        await trio.sleep_forever()

    async def main() -> None:
        async with net.start(2) as client:
            async with net.start(1, {ECHO: stuck}) as server:
                await client.dial(server.addresses[0])
                stream = await client.open(server.peer_id, ECHO)
                assert await stream.receive(1) == b"x"
                started = trio.current_time()
            assert trio.current_time() - started < 5.0

    run(main)


def test_an_error_in_the_body_comes_out_as_it_is(net: Network) -> None:
    async def main() -> None:
        with pytest.raises(ZeroDivisionError):
            async with net.start(1):
                raise ZeroDivisionError

    run(main)


# -- connections -----------------------------------------------------------------------------------------------------


def test_unknown_protocol(net: Network) -> None:
    async def main() -> None:
        async with pair(net, {ECHO: echo}) as (server, client):
            with pytest.raises(Unreachable, match="/other/1"):
                await client.open(server.peer_id, "/other/1")

    run(main)


def test_dialing_where_nobody_is(net: Network) -> None:
    async def main() -> None:
        async with net.start(1) as transport:
            with pytest.raises(Unreachable, match="nobody answers"):
                await transport.dial(net.setup.nobody())

    run(main)


def test_malformed_addresses_are_the_users(net: Network) -> None:
    async def main() -> None:
        async with net.start(1) as transport:
            for address in net.setup.malformed:
                with pytest.raises(LocalError, match="for example") as caught:
                    await transport.dial(address)
                assert repr(address) in str(caught.value)
            with pytest.raises(LocalError, match="own address"):
                await transport.dial(transport.addresses[0])

    run(main)


def test_another_identity_at_the_address(net: Network) -> None:
    async def main() -> None:
        async with net.start(1, {ECHO: echo}) as server, net.start(2) as client:
            with pytest.raises(Unreachable, match="another peer"):
                await client.dial(net.impostor(server, 3))
            assert not client.is_connected(id_of(3))
            await client.dial(server.addresses[0])
            assert await ask(await client.open(server.peer_id, ECHO), b"alive") == b"alive"

    run(main)


def test_connections_are_told_once_per_change(net: Network) -> None:
    async def main() -> None:
        at_server, at_client = Observer(), Observer()
        async with net.start(1, {}, at_server) as server, net.start(2, {}, at_client) as client:
            s, c = server.peer_id, client.peer_id
            await client.dial(server.addresses[0])
            assert await client.dial(server.addresses[0]) == s
            await at_server.until(lambda: bool(at_server.changes))
            await server.dial(client.addresses[0])
            assert client.is_connected(s)
            assert server.is_connected(c)
            await client.drop(s)
            assert not client.is_connected(s)
            await at_server.until(lambda: len(at_server.changes) >= 2)
            assert not server.is_connected(c)
            await client.dial(server.addresses[0])
            await at_server.until(lambda: len(at_server.changes) >= 3)
        assert at_client.changes == [(s, True), (s, False), (s, True), (s, False)]
        assert at_server.changes == [(c, True), (c, False), (c, True), (c, False)]

    run(main)


def test_dialing_each_other_at_the_same_time(net: Network) -> None:
    async def main() -> None:
        observers = [Observer() for _ in range(3)]
        async with (
            net.start(1, {ECHO: echo}, observers[0]) as a,
            net.start(2, {ECHO: echo}, observers[1]) as b,
            net.start(3, {ECHO: echo}, observers[2]) as c,
        ):
            async with trio.open_nursery() as nursery:
                for dialer, dialed in permutations((a, b, c), 2):
                    nursery.start_soon(dialer.dial, dialed.addresses[0])
                    nursery.start_soon(dialer.dial, dialed.addresses[0])
            for asker, asked in permutations((a, b, c), 2):
                assert await ask(await asker.open(asked.peer_id, ECHO), b"x") == b"x"
            for observer in observers:
                assert len(observer.changes) == 2, "one connection per peer is told, however many there are"

    run(main)


def test_open_redials_and_serves_those_who_came_in(net: Network) -> None:
    async def main() -> None:
        at_server = Observer()
        async with net.start(1, {ECHO: echo}, at_server) as server, net.start(2, {ECHO: echo}) as client:
            with pytest.raises(Unreachable, match="no address"):
                await client.open(server.peer_id, ECHO)
            await client.dial(server.addresses[0])
            await at_server.until(lambda: bool(at_server.changes))
            assert await ask(await server.open(client.peer_id, ECHO), b"back") == b"back"
            await client.drop(server.peer_id)
            assert await ask(await client.open(server.peer_id, ECHO), b"again") == b"again"

    run(main)


def test_a_restarted_peer_is_recognized(net: Network) -> None:
    async def main() -> None:
        observer = Observer()
        async with net.start(2, {}, observer) as client:
            ids = []
            for _ in range(2):
                async with net.start(1, {ECHO: echo}) as server:
                    ids.append(await client.dial(server.addresses[0]))
                    assert await ask(await client.open(server.peer_id, ECHO), b"x") == b"x"
                await observer.until(lambda: observer.changes[-1][1] is False)
            assert ids[0] == ids[1]
            assert [connected for _, connected in observer.changes] == [True, False, True, False]

    run(main)


def test_address_ends_in_the_peer_id(net: Network) -> None:
    async def main() -> None:
        async with net.start(1) as transport:
            assert transport.addresses
            assert all(address.endswith(f"/p2p/{transport.peer_id}") for address in transport.addresses)

    run(main)


def test_what_was_asked_for_is_announced_instead_of_where_we_listen(net: Network) -> None:
    async def main() -> None:
        async with net.start(1, announce=(net.setup.elsewhere,)) as transport:
            assert transport.addresses == (f"{net.setup.elsewhere}/p2p/{transport.peer_id}",)

    run(main)
    with pytest.raises(LocalError, match="another peer"):
        net.start(1, announce=(f"{net.setup.elsewhere}/p2p/{id_of(2)}",))


# -- announcements ----------------------------------------------------------------------------------------------------


def test_announcements_reach_also_those_not_connected_to_the_author(net: Network) -> None:
    async def main() -> None:
        observers = [Observer() for _ in range(3)]
        async with (
            net.start(1, {}, observers[0]) as a,
            net.start(2, {}, observers[1]) as b,
            net.start(3, {}, observers[2]) as c,
        ):
            befriend(a, b)
            befriend(b, c)
            await b.dial(a.addresses[0])
            await c.dial(b.addresses[0])
            frame = os.urandom(1000)
            heard = (a.peer_id, frame)
            while not all(heard in observer.announced for observer in observers[1:]):
                await a.announce("test/presence", frame)  # best effort: said again until heard
                with trio.move_on_after(0.5):
                    await observers[2].until(lambda: heard in observers[2].announced)
            assert {author for author, _ in observers[1].announced + observers[2].announced} == {a.peer_id}
            assert observers[0].announced == [], "nobody hears himself"

    run(main)


def test_too_large_an_announcement_is_our_fault(net: Network) -> None:
    async def main() -> None:
        async with net.start(1) as transport:
            await transport.announce("test/presence", bytes(16 * 1024))
            with pytest.raises(LocalError, match="16384"):
                await transport.announce("test/presence", bytes(16 * 1024 + 1))

    run(main)


def test_a_raising_listener_does_not_end_the_host(net: Network) -> None:
    async def main() -> None:
        broken, fine = Observer(), Observer()
        called = trio.Event()

        def raises(author: str, frame: bytes) -> None:
            called.set()
            raise RuntimeError("a bug of ours")

        broken.on_announced = raises  # type: ignore[method-assign]
        async with net.start(1, {ECHO: echo}, broken) as server, net.start(2, {}, fine) as client:
            befriend(server, client)
            await client.dial(server.addresses[0])
            while not called.is_set():
                await client.announce("test/presence", b"x")
                with trio.move_on_after(0.5):
                    await called.wait()
            assert await ask(await client.open(server.peer_id, ECHO), b"alive") == b"alive"

    run(main)


# -- members -----------------------------------------------------------------------------------------------------


def test_who_does_not_become_a_member_in_time_is_disconnected(net: Network) -> None:
    async def main() -> None:
        observer = Observer()
        async with (
            net.start(1, {ECHO: echo}, observer, newcomer_s=0.5) as server,
            net.start(2) as member,
            net.start(3) as stranger,
        ):
            for client in (member, stranger):
                client.trust(server.peer_id)
                await client.dial(server.addresses[0])
            await observer.until(lambda: len(observer.changes) == 2)
            server.trust(member.peer_id)
            await observer.until(lambda: (stranger.peer_id, False) in observer.changes)
            assert server.is_connected(member.peer_id)
            assert await ask(await member.open(server.peer_id, ECHO), b"x") == b"x"

    run(main)


def test_who_is_dropped_is_a_member_no_more(net: Network) -> None:
    async def main() -> None:
        observer = Observer()
        async with net.start(1, {}, observer, newcomer_s=0.5) as server, net.start(2) as client:
            befriend(server, client)
            await server.drop(client.peer_id)
            await client.dial(server.addresses[0])
            await observer.until(
                lambda: observer.changes == [(client.peer_id, True), (client.peer_id, False)]
            )

    run(main)


@pytest.mark.parametrize("untrusting", ["author", "listener"])
def test_announcements_travel_between_peers_that_trust_each_other_only(net: Network, untrusting: str) -> None:
    async def main() -> None:
        observers = [Observer() for _ in range(3)]
        async with (
            net.start(1, {ECHO: echo}, observers[0]) as author,
            net.start(2, {}, observers[1]) as friend,
            net.start(3, {}, observers[2]) as other,
        ):
            befriend(author, friend)
            (other if untrusting == "author" else author).trust(
                (author if untrusting == "author" else other).peer_id
            )
            for listener in (other, friend):
                await listener.dial(author.addresses[0])
            while not observers[1].announced:
                await author.announce("test/presence", b"frame")
                with trio.move_on_after(0.5):
                    await observers[1].until(lambda: bool(observers[1].announced))
            await ask(await other.open(author.peer_id, ECHO), b"x")  # what was sent before has arrived
            assert observers[2].announced == []

    run(main)


# -- closed groups -----------------------------------------------------------------------------------------------


OURS = Group(b"a" * 32)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (OURS, OPEN_GROUP),
        (OURS, Group(b"b" * 32)),
        (Group(OURS.key, frozenset({id_of(3)})), OURS),
        (Group(b"", frozenset({id_of(3)})), OPEN_GROUP),
    ],
    ids=["of an open group", "of another group", "not on the list", "not on an open group's list"],
)
def test_nobody_connects_who_does_not_belong_to_the_group(net: Network, ours: Group, theirs: Group) -> None:
    async def main() -> None:
        served: list[str] = []

        async def serve(stream: Stream) -> None:
            served.append(stream.peer)

        observer = Observer()
        member = net.start(1, {ECHO: serve}, observer, group=ours)
        async with member as member_, net.start(2, {ECHO: serve}, group=theirs) as stranger:
            with pytest.raises(Unreachable, match=r"another group|not have us on its list"):
                await stranger.dial(member_.addresses[0])
            with pytest.raises(Unreachable, match="not on our list" if ours.allowed else "another group"):
                await member_.dial(stranger.addresses[0])
            with pytest.raises(Unreachable):
                await stranger.open(member_.peer_id, ECHO)
            assert not member_.is_connected(stranger.peer_id)
        assert not served
        assert not observer.changes

    run(main)


def test_members_of_a_closed_group_connect(net: Network) -> None:
    async def main() -> None:
        listed = Group(OURS.key, frozenset({id_of(2)}))
        async with net.start(1, {ECHO: echo}, group=listed) as server, net.start(2, group=OURS) as client:
            await client.dial(server.addresses[0])
            assert await ask(await client.open(server.peer_id, ECHO), b"hello") == b"hello"

    run(main)
