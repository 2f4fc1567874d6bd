"""Peers find each other from one address, greet once, notice deaths, and cut off whoever misbehaves."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
import trio
import trio.testing

from gossip import wire
from gossip.errors import RemoteError
from gossip.events import Event, PeerDown, PeerUp
from gossip.manifest import RunManifest
from gossip.membership_events import Incompatible, NobodyThere
from gossip.membership_limits import HEARTBEAT_S, RUMOR_DIALS_MAX, RUMORS_MAX, STRIKES
from gossip.messages import Hello, Ping, Presence
from peer.exchange import CONTROL, Traffic, ask
from peer.membership import Membership
from peer.network.memory import MemoryNetwork
from peer.network.transport import Stream, Transport, Unreachable


def manifest(codec: str = "float32") -> RunManifest:
    return RunManifest(
        base_model="b",
        dtype="d",
        tokenizer="t",
        settings={"adapter": "a"},
        layout="l",
        seed=0,
        initial="i",
        factors="f",
        mixing="m",
        optimizer="o",
        codec=codec,
        feedback="n",
        gamma="1",
        rounds=9,
        merge="none",
        overlap="no",
        private="no",
    )


class Node:
    """One membership on the in-memory network, and what it reported."""

    def __init__(self, name: str, codec: str = "float32") -> None:
        self.name = name
        self.events: list[Event] = []
        self.told: list[str] = []
        self.answered = 0
        self.traffic = Traffic()
        self.membership = Membership(
            manifest(codec), name, self.events.append, self.told.append, self.traffic
        )
        self.transport: Transport

    async def serve(self, stream: Stream) -> None:
        self.answered += 1
        try:
            await self.membership.serve_control(stream)
        except RemoteError:
            await stream.reset()

    @property
    def up(self) -> set[str]:
        return {peer for peer, member in self.membership.members.items() if member.is_up}


@asynccontextmanager
async def group(network: MemoryNetwork, *nodes: Node) -> AsyncIterator[trio.Nursery]:
    async with AsyncExitStack() as stack:
        for node in nodes:
            node.transport = await stack.enter_async_context(
                network.factory(node.name)(
                    handlers={CONTROL: node.serve},
                    topic=node.membership.topic,
                    on_announced=node.membership.on_announced,
                    on_connection=node.membership.on_connection,
                )
            )
        async with trio.open_nursery() as nursery:
            for node in nodes:
                node.membership.use(node.transport)
                nursery.start_soon(node.membership.run)
            yield nursery
            nursery.cancel_scope.cancel()


def run(body: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        with trio.fail_after(1000):  # virtual seconds
            await body()

    trio.run(limited, clock=trio.testing.MockClock(autojump_threshold=0))


async def join(node: Node, other: Node) -> None:
    await node.membership.join(other.transport.addresses, 15.0, required=True)


def test_one_address_is_enough_to_find_everybody() -> None:
    async def body() -> None:
        nodes = [Node(name) for name in "abcd"]
        async with group(MemoryNetwork(), *nodes):
            for node in nodes[1:]:
                await join(node, nodes[0])
            for node in nodes:
                assert await node.membership.wait_for(3, 30.0) == 3
                assert node.up == set("abcd") - {node.name}
                assert {e.peer for e in node.events if isinstance(e, PeerUp)} == node.up

    run(body)


def test_peers_that_know_each_other_do_not_greet_for_ever() -> None:
    """Two members that named each other in their hellos once kept greeting, thousands of times a second."""

    async def body() -> None:
        nodes = [Node(name) for name in "abcd"]
        async with group(MemoryNetwork(), *nodes):
            for node in nodes[1:]:
                await join(node, nodes[0])
            for node in nodes:
                await node.membership.wait_for(3, 30.0)
            await trio.sleep(5.0)  # virtual; before the first heartbeat
            assert sum(node.answered for node in nodes) <= 2 * 6

    run(body)


@pytest.mark.parametrize("steps", range(12))
def test_what_happens_while_it_ends_is_not_begun(steps: int) -> None:
    """Whoever was heard of just then made it raise "Nursery is closed to new arrivals", in the transport's own call."""

    async def body() -> None:
        ours = Node("a")

        async def announce_a_little_later() -> None:
            for _ in range(steps):
                await trio.lowlevel.checkpoint()
            said = Presence(manifest().fingerprint, "b", 0, ("/memory/b/p2p/b",), False)
            ours.membership.on_announced("b", wire.encode(said))
            assert "b" in ours.membership.members

        async with trio.open_nursery() as outer, group(MemoryNetwork(), ours):
            await trio.testing.wait_all_tasks_blocked()
            outer.start_soon(announce_a_little_later)

    run(body)


def test_another_run_is_refused_by_both_sides_in_their_own_words() -> None:
    async def body() -> None:
        ours, theirs = Node("a"), Node("b", codec="int8")
        async with group(MemoryNetwork(), ours, theirs):
            with pytest.raises(Incompatible, match="codec differs: ours is int8, theirs is float32"):
                await join(theirs, ours)
            assert ours.up == set()
            assert any("codec differs: ours is float32, theirs is int8" in line for line in ours.told)
            assert ours.traffic.rejected["manifest"] == 1

    run(body)


def test_nobody_there_is_said_within_the_time_given() -> None:
    async def body() -> None:
        node = Node("a")
        async with group(MemoryNetwork(), node):
            started = trio.current_time()
            with pytest.raises(NobodyThere, match="/memory/z/p2p/z"):
                await node.membership.join(("/memory/z/p2p/z",), 15.0, required=True)
            assert trio.current_time() - started <= 15.0
            await node.membership.join(("/memory/z/p2p/z",), 1.0, required=False)
            assert any("going on without it" in line for line in node.told)

    run(body)


def test_a_death_is_noticed_at_once_and_a_return_too() -> None:
    async def body() -> None:
        network = MemoryNetwork()
        a, b = Node("a"), Node("b")
        async with group(network, a):
            async with group(network, b):
                await join(b, a)
                assert a.up == {"b"}
                network.kill("b")
            await a.membership.wait_for(0, 1.0)
            with trio.fail_after(2.0):
                while a.up:
                    await a.membership.standing.change()
            assert PeerDown("b") in a.events
            again = Node("b")
            async with group(network, again):
                assert await a.membership.wait_for(1, 120.0) == 1  # a keeps looking for it by itself

    run(body)


def test_a_goodbye_is_believed_at_once() -> None:
    async def body() -> None:
        a, b = Node("a"), Node("b")
        async with group(MemoryNetwork(), a, b):
            await join(b, a)
            await b.membership.say_goodbye()
            with trio.fail_after(1.0):
                while a.up:
                    await a.membership.standing.change()
            assert any("left" in line for line in a.told)

    run(body)


def test_a_silent_peer_misses_two_heartbeats_and_is_down() -> None:
    async def body() -> None:
        a, b = Node("a"), Node("b")

        async def answers_once(stream: Stream) -> None:
            if b.answered:
                await trio.sleep_forever()
            await b.serve(stream)

        network = MemoryNetwork()
        b_factory = network.factory("b")(  # it runs no membership of its own: it only listens
            handlers={CONTROL: answers_once},
            topic=b.membership.topic,
            on_announced=lambda *_: None,
            on_connection=lambda *_: None,
        )
        async with b_factory as b.transport, group(network, a):
            b.membership.use(b.transport)
            await join(a, b)
            started = trio.current_time()
            while a.up:
                await a.membership.standing.change()
            assert trio.current_time() - started < 65.0
            assert any("heartbeats missed" in line for line in a.told)

    run(body)


def test_a_peer_that_hangs_holds_nobody_elses_heartbeat_up() -> None:
    async def body() -> None:
        a, b, c = Node("a"), Node("b"), Node("c")
        serve = b.serve
        released = trio.Event()

        async def hangs_after_hello(stream: Stream) -> None:
            if b.answered:
                await released.wait()
            await serve(stream)

        b.serve = hangs_after_hello  # type: ignore[method-assign]
        async with group(MemoryNetwork(), a, b, c):
            await join(a, b)
            await join(a, c)
            greeted = c.answered
            await trio.sleep(3 * HEARTBEAT_S + 1)  # virtual
            assert c.answered - greeted >= 3

    run(body)


def test_a_question_is_answered_while_another_waits() -> None:
    async def body() -> None:
        a, b = Node("a"), Node("b")
        async with group(MemoryNetwork(), a, b):
            await join(a, b)
            unfinished = await a.transport.open("b", CONTROL)
            await unfinished.send(b"\0\0")  # half of a length: b waits for the rest
            started = trio.current_time()
            assert await ask(a.transport, "b", Ping(5), a.traffic) == Ping(0)
            assert trio.current_time() == started
            assert b.membership.members["a"].round == 5
            await unfinished.reset()

    run(body)


def test_announcements_keep_rounds_up_to_date_and_strangers_are_ignored() -> None:
    async def body() -> None:
        a, b = Node("a"), Node("b")
        async with group(MemoryNetwork(), a, b):
            await join(b, a)
            b.membership.progressed(7)
            await trio.sleep(6.0)
            assert a.membership.members["b"].round == 7
            assert PeerUp("b", 7) in a.events
            before = dict(a.membership.members)
            a.membership.on_announced("x", b"\xff" * 50)
            a.membership.on_announced("x", wire.encode(Presence(bytes(16), "x", 3, (), False)))
            assert a.membership.members == before
            assert a.traffic.rejected["malformed"] == 1

    run(body)


def test_a_peer_cannot_point_us_at_somebody_elses_address() -> None:
    async def body() -> None:
        a = Node("a")
        async with group(MemoryNetwork(), a):
            fingerprint = manifest().fingerprint
            lie = Presence(
                fingerprint, "x", 0, ("/memory/b/p2p/b", "/ip4/10.0.0.1/tcp/80", "/memory/x/p2p/x"), False
            )
            a.membership.on_announced("x", wire.encode(lie))
            assert a.membership.members["x"].addresses == ("/memory/x/p2p/x",)

    run(body)


def test_five_strikes_and_a_peer_is_cut_off() -> None:
    async def body() -> None:
        a, b = Node("a"), Node("b")
        async with group(MemoryNetwork(), a, b):
            await join(b, a)
            for _ in range(STRIKES - 1):
                a.membership.strike("b", "malformed")
            assert a.up == {"b"}
            a.membership.strike("b", "malformed")
            assert a.up == set()
            await trio.sleep(60.0)
            assert a.up == set()
            assert not a.transport.is_connected("b")
            await trio.sleep(900.0)  # after ten minutes it may try again
            assert a.up == {"b"}

    run(body)


def test_the_table_of_peers_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gossip.member_places.PEERS_MAX", 10)

    async def body() -> None:
        a = Node("a")
        async with group(MemoryNetwork(), a):
            for index in range(100):
                frame = wire.encode(Presence(manifest().fingerprint, f"x{index}", 0, (), False))
                a.membership.on_announced(f"x{index}", frame)
            assert len(a.membership.members) == 10
            assert Counter(type(event).__name__ for event in a.events)["PeerUp"] == 0

    run(body)


class CountingTransport:
    """A transport on which nobody answers before the time limit; it counts who is dialed at a time."""

    peer_id = "a"
    addresses = ("/memory/a/p2p/a",)
    refused: Mapping[str, int] = {}

    def __init__(self) -> None:
        self.now, self.most = 0, 0
        self.dialed: list[tuple[float, str]] = []

    def is_connected(self, peer: str) -> bool:
        return False

    async def dial(self, address: str) -> str:
        self.dialed.append((trio.current_time(), address))
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await trio.sleep(15.0)
        finally:
            self.now -= 1
        raise Unreachable("no answer")

    async def announce(self, topic: str, frame: bytes) -> None:
        await trio.lowlevel.checkpoint()

    async def drop(self, peer: str) -> None:
        await trio.lowlevel.checkpoint()


def test_a_thousand_made_up_presences_are_dialed_few_at_a_time_and_names_never() -> None:
    """They once took all descriptors of the process; names took all its threads."""

    async def body() -> None:
        a = Node("a")
        transport = CountingTransport()
        a.membership.use(transport)  # type: ignore[arg-type] # what is not asked for is not there
        async with trio.open_nursery() as nursery:
            nursery.start_soon(a.membership.run)
            for number in range(1000):
                places = (
                    f"/memory/x{number}/p2p/x{number}",
                    f"/dns4/x{number}.example.org/tcp/1/p2p/x{number}",
                )
                frame = wire.encode(Presence(manifest().fingerprint, "x", 0, places, False))
                a.membership.on_announced(f"x{number}", frame)
            await trio.sleep(300.0)  # virtual
            nursery.cancel_scope.cancel()
        assert transport.most == RUMOR_DIALS_MAX
        assert len(transport.dialed) <= RUMOR_DIALS_MAX * (300 / 15 + 1)
        assert not any("dns" in address for _, address in transport.dialed)
        assert len(a.membership.members) <= RUMORS_MAX

    run(body)


def test_an_address_that_nobody_answers_gives_the_next_one_its_turn() -> None:
    async def body() -> None:
        network = MemoryNetwork()
        a, b = Node("a"), Node("b")
        async with group(network, a, b):
            nowhere = tuple(f"/memory/nowhere{number}/p2p/b" for number in range(3))
            said = Presence(manifest().fingerprint, "b", 0, (*nowhere, *b.transport.addresses), False)
            a.membership.on_announced("b", wire.encode(said))
            assert await a.membership.wait_for(1, 30.0) == 1

    run(body)


def test_where_a_peer_says_it_is_nobody_is_told_before_it_was_dialed_back_there() -> None:
    async def body() -> None:
        network = MemoryNetwork()
        a, b, liar = Node("a"), Node("b"), Node("liar")
        async with group(network, a, b, liar):
            await join(b, a)
            await trio.sleep(1.0)  # virtual
            lie = Hello(manifest().fields(), "liar", 0, ("/memory/b/p2p/liar", "/memory/nobody/p2p/liar"))
            await liar.transport.dial(a.transport.addresses[0])
            await ask(liar.transport, "a", lie, liar.traffic)
            await trio.sleep(1.0)
            assert a.up == {"b", "liar"}
            await b.transport.dial(a.transport.addresses[0])
            answer = await ask(b.transport, "a", Hello(manifest().fields(), "b", 0), b.traffic)
            assert isinstance(answer, Hello)
            assert answer.known == b.transport.addresses

    run(body)


class WhenNurseriesClose(trio.abc.Instrument):
    """Does something whenever the last task of a nursery has ended, before whoever opened it runs on."""

    def __init__(self, act: Callable[[], None]) -> None:
        self._act = act
        self.failures: list[Exception] = []
        self.count = 0

    def task_exited(self, task: trio.lowlevel.Task) -> None:
        if task.parent_nursery and not task.parent_nursery.child_tasks:
            self.count += 1
            try:
                self._act()
            except Exception as error:  # noqa: BLE001 - an instrument that raises is only switched off
                self.failures.append(error)


def test_what_happens_while_the_last_task_ends_starts_no_new_one() -> None:
    """A connection at the very end once printed "Nursery is closed to new arrivals"."""

    async def body() -> None:
        a = Node("a")
        a.membership.use(CountingTransport())  # type: ignore[arg-type] # as above
        for _ in range(STRIKES):
            a.membership.strike("x", "malformed")  # from now on each is answered by a task that drops it
        at_the_end = WhenNurseriesClose(lambda: a.membership.strike("x", "malformed"))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(a.membership.run)
            await trio.testing.wait_all_tasks_blocked()
            trio.lowlevel.add_instrument(at_the_end)
            nursery.cancel_scope.cancel()
        assert at_the_end.count >= 1
        assert at_the_end.failures == []
        assert a.membership._waiting == []

    run(body)
