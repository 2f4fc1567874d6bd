"""The shell around the node, on the in-memory network and on libp2p, with a trainer that theory can follow."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
from light_peers import SPEC, Quadratic, Running, libp2p, limited, memory

from gossip import wire
from gossip.adapter import AdapterState
from gossip.errors import LocalError
from gossip.messages import Message, Ping, Pull, Refusal
from gossip.neighbor import PATIENCE
from gossip.published import PublishedAdapter
from peer.checkpoint_files import HEALTHY, TRAINER_STATE
from peer.checkpoints import PEERS, Home, HomeError, open_home
from peer.exchange import ADAPTER, CONTROL, Traffic, receive_message, send_message
from peer.journal_events import Finished, JournalEvent, Listening, Measured, Note, Resumed, RoundDone
from peer.left_out_event import LeftOut
from peer.network.identity import peer_id
from peer.network.transport import Unreachable
from peer.publisher import Publisher
from peer.signing import Signer
from peer.training.frames import Trained


@pytest.fixture
def homes(tmp_path: Path) -> Any:
    with ExitStack() as stack:

        def home(name: str) -> Home:
            manager: AbstractContextManager[Home] = open_home(tmp_path / name)
            return stack.enter_context(manager)

        yield home


@pytest.mark.parametrize("network", [memory, libp2p])
def test_three_peers_meet_at_the_mean_of_their_optima(
    homes: Any, network: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gossip.deadline.FLOOR_S", 60.0)  # a busy machine is late for any shorter deadline

    async def body() -> None:
        make = network()
        first = Running(1, homes("a"), 0.0, wait_peers=2, merge="product")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(first.run, make(first.key))
            joining = {"wait_peers": 2, "join": await first.addresses(), "merge": "product"}
            rest = [Running(2, homes("b"), 3.0, **joining), Running(3, homes("c"), 6.0, **joining)]
            for running in rest:
                nursery.start_soon(running.run, make(running.key))
        for running in (first, *rest):
            rounds = running.events(RoundDone)
            assert len(rounds) == 13
            assert [event.merging for event in rounds] == [False] * 12 + [True]
            assert all(len(event.mixed) == 2 and not event.failed for event in rounds)
            assert rounds[-1].fetches_ok == 26
            # 26 publications of 16 bytes and frames of some 100; presence and greetings are a few more
            assert 26 * 16 < rounds[-1].bytes_in < 26 * 300 + 10_000
            (finished,) = running.events(Finished)
            assert finished.complete
            assert running.events(Measured)[-1].own == pytest.approx(3.0, abs=1e-3)

    limited(body)


def test_a_restart_goes_on_and_refuses_other_settings(homes: Any, tmp_path: Path) -> None:
    async def body() -> None:
        make = memory()
        home = homes("a")
        await Running(1, home, 1.0, rounds=3).run(make(bytes([1]) * 32))
        again = Running(1, home, 1.0, rounds=5)
        await again.run(make(again.key))
        assert again.events(Resumed)[0].round == 3
        assert [event.round for event in again.events(RoundDone)] == [3, 4]
        assert float(home.newest()[0].state.flat[0]) == pytest.approx(1 - 0.5**5)
        with pytest.raises(HomeError, match="whose codec is 'float32', now it would be 'int8'"):
            await Running(1, home, 1.0, codec="int8").run(make(bytes([1]) * 32))

    limited(body)


def test_a_restarted_peer_finds_the_others_though_its_own_address_has_changed(homes: Any) -> None:
    """The first peer of a group joins nobody; after a restart on another port nobody else could find it."""

    async def body() -> None:
        make = libp2p()
        home = homes("a")
        first = Running(1, home, 0.0, rounds=10**6, wait_peers=1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(first.run, make(first.key))
            joining = {"wait_peers": 1, "join": await first.addresses()}
            endless = Running(2, homes("c"), 1.0, rounds=10**6, **joining)
            nursery.start_soon(endless.run, make(endless.key))
            await first.heard.first(lambda event: isinstance(event, RoundDone) and event.round == 3)
            first.leaving.scope.cancel()
            again = Running(1, home, 0.0, rounds=10**6, wait_peers=1)
            nursery.start_soon(again.run, make(again.key))
            await again.heard.first(lambda event: len(again.events(RoundDone)) == 2)
            again.leaving.scope.cancel()
            endless.leaving.scope.cancel()
        assert again.events(Listening)[0].addresses != first.events(Listening)[0].addresses
        assert [len(event.mixed) for event in again.events(RoundDone)[:2]] == [1, 1]

    limited(body)


def test_a_restart_goes_on_though_a_remembered_peer_is_of_another_run_and_others_are_none(homes: Any) -> None:
    """Either once ended every restart: exit codes 5 and 2."""

    async def body() -> None:
        make = memory()
        home = homes("a")
        await Running(1, home, 1.0, rounds=3).run(make(bytes([1]) * 32))
        other = Running(2, homes("b"), 1.0, rounds=10**6, codec="int8")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(other.run, make(other.key))
            kept = [*await other.addresses(), "nonsense", "/ip4/10.0.0.1/tcp/1/p2p/alice", 5, None]
            (home.path / PEERS).write_text(json.dumps(kept))
            again = Running(1, home, 1.0, rounds=5)
            await again.run(make(again.key))
            other.leaving.scope.cancel()
        notes = [note.text for note in again.events(Note)]
        assert f"{home.path / PEERS}: skipped 4 entries that are no addresses" in notes
        assert any("takes part in another run" in note and "(going on without it)" in note for note in notes)
        assert [event.round for event in again.events(RoundDone)] == [3, 4]

    limited(body)


def test_a_peer_whose_training_diverges_goes_back_by_itself_and_on(homes: Any) -> None:
    async def body() -> None:
        make = memory()
        for name, diverges in (("a", [0, 1]), ("b", [6, 7, 8])):
            running = Running(1, homes(name), 1.0, rounds=12, diverges=diverges)
            await running.run(make(running.key))
            done = running.events(RoundDone)
            assert [event.round for event in done] == list(range(12))
            assert running.trainer.starts == 1 + len(diverges)
            notes = [note.text for note in running.events(Note)]
            assert sum("training has diverged in round" in note for note in notes) == len(diverges)
            assert running.events(Finished)[0].complete
            assert float(running.home.newest()[0].state.flat[0]) > 0.9
        never = Running(2, homes("c"), 1.0, rounds=30, diverges=range(5, 30))
        with pytest.raises(ExceptionGroup) as caught:
            await never.run(make(never.key))
        (error,) = [e for e in flat(caught.value) if isinstance(e, LocalError)]
        assert error.exit_code == 9
        assert "lower the learning rate" in str(error)
        assert float(never.home.newest()[0].state.flat[0]) > 0.9

    limited(body)


async def politely(running: Running) -> None:
    """Let a peer end as after one signal, once it has begun its rounds."""
    await running.heard.first(lambda event: isinstance(event, RoundDone))

    async def signals() -> AsyncIterator[int]:
        yield signal.SIGTERM

    await running.leaving.watch(signals())


def test_the_end_tells_how_many_connections_were_refused_and_why(homes: Any) -> None:
    async def body() -> None:
        make = libp2p()
        running = Running(1, homes("a"), 1.0, rounds=10**6)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(running.run, make(running.key))
            _, _, host, _, port, *_ = (await running.addresses())[0].split("/")
            for _ in range(2):
                stranger = await trio.open_tcp_stream(host, int(port))
                async with stranger:
                    await stranger.send_all(b"GET / HTTP/1.1\r\n\r\n" * 8)
                    with suppress(trio.BrokenResourceError):  # it is closed with our bytes unread
                        while await stranger.receive_some():
                            pass
            await politely(running)
        (finished,) = running.events(Finished)
        assert finished.refused == {"the handshake failed": 2}
        assert "(connections refused: 2 x the handshake failed)" in (finished.sentence() or "")

    limited(body)


class Crowded(Quadratic):
    """A training process one of whose steps does not fit into memory."""

    async def train(self, state: AdapterState, round: int, *settings: Any) -> Trained:
        return replace(await super().train(state, round, *settings), dropped=int(round == 1))


def test_the_user_is_told_once_of_a_step_that_did_not_fit_into_memory(homes: Any) -> None:
    async def body() -> None:
        make = memory()
        running = Running(1, homes("a"), 1.0, rounds=3, batch_size=6)
        running.trainer = Crowded(1.0)
        await running.run(make(running.key))
        (told,) = [note.text for note in running.events(Note) if "memory" in note.text]
        assert "a step of round 2 did not fit into memory and was dropped" in told
        assert "at most 3 sequences" in told

    limited(body)


def test_a_restart_from_a_poisoned_checkpoint_goes_on_from_the_one_in_order(homes: Any) -> None:
    async def body() -> None:
        make = memory()
        home = homes("a")
        first = Running(1, home, 1.0, rounds=12, check_every=5)
        await first.run(make(first.key))
        newest = home.newest()[0]
        assert (newest.path.parent / "round-000011" / HEALTHY).exists()
        for round in (13, 14):  # what was in order is kept, though two newer ones are not
            (home.begin(round) / TRAINER_STATE).write_bytes(b"state")
            poisoned = AdapterState(SPEC, newest.state.flat + 1e6)
            snapshot = newest.snapshot._replace(round=round)
            home.commit(poisoned, snapshot, newest.run, first.trainer.export, 2)
        again = Running(1, home, 1.0, rounds=20)
        await again.run(make(again.key))
        assert again.events(Resumed)[0].round == 14
        assert [event.round for event in again.events(RoundDone)] == list(range(14, 20))
        (note,) = [note for note in again.events(Note) if "the last adapter that was in order" in note.text]
        assert "round 15" in note.text
        assert float(home.newest()[0].state.flat[0]) == pytest.approx(1.0, abs=1e-3)

    limited(body)


def test_a_member_that_harms_is_left_out_named_and_told(homes: Any) -> None:
    async def body() -> None:
        make = memory()
        first = Running(1, homes("a"), 20.0, rounds=12, wait_peers=2, check_slack=0.05)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(first.run, make(first.key))
            joining = {"wait_peers": 2, "join": await first.addresses(), "check_slack": 0.05, "rounds": 12}
            second = Running(2, homes("b"), 21.0, **joining)
            liar = Running(3, homes("c"), -100.0, **joining)
            for running in (second, liar):
                nursery.start_soon(running.run, make(running.key))
        for running in (first, second):
            told = running.events(LeftOut)
            assert {event.peer for event in told} == {"p3"}
            assert all(event.loss > event.limit for event in told)
            done = running.events(RoundDone)
            assert ("p3", "unhealthy") in [tuple(pair) for event in done for pair in event.objections]
            assert ("p3", "left out") in [tuple(pair) for event in done for pair in event.failed]
            assert running.events(Finished)[0].complete
            assert running.events(Measured)[-1].own > 5.0  # the mean of all three optima is -20

    limited(body)


def test_deaths_of_the_trainer_are_survived_but_for_three_in_one_round(homes: Any) -> None:
    async def body() -> None:
        make = memory()
        often = Running(1, homes("a"), 1.0, rounds=5, deaths=[0, 1, 1, 3, 4])
        await often.run(make(often.key))
        assert often.trainer.starts == 6
        assert len(often.events(RoundDone)) == 5
        stuck = Running(2, homes("b"), 1.0, rounds=5, deaths=[3, 3, 3])
        with pytest.raises(ExceptionGroup) as caught:
            await stuck.run(make(stuck.key))
        (error,) = [e for e in flat(caught.value) if isinstance(e, LocalError)]
        assert error.exit_code == 8
        assert "round 3" in str(error)

    limited(body)


def noted(running: Running, words: str) -> Callable[[JournalEvent], bool]:
    """Tell events in which a peer was told something of this kind."""
    return lambda event: isinstance(event, Note) and words in event.text


def test_a_peer_that_serves_other_bytes_to_each_reader_is_cut_off_by_all(
    homes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    liar_id = peer_id(bytes([9]) * 32)
    send = Publisher._send

    async def lie(self: Publisher, stream: Any, published: PublishedAdapter, offset: int) -> None:
        if self._signed.__self__._peer == liar_id:  # type: ignore[attr-defined]
            to_reader = stream.peer[-1:].encode() + bytes(published.payload[1:])  # hardly another value
            published = replace(published, payload=to_reader)
            life = self._signed.__self__.incarnation  # type: ignore[attr-defined]
            self._signed = Signer(bytes([9]) * 32, self._run, lambda: life).signed
        await send(self, stream, published, offset)

    monkeypatch.setattr(Publisher, "_send", lie)

    async def body() -> None:
        make = memory()
        first = Running(1, homes("a"), 0.0, rounds=10**6)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(first.run, make(first.key))
            joining = {"join": await first.addresses(), "rounds": 10**6}
            honest = [first, Running(2, homes("b"), 0.0, **joining), Running(3, homes("c"), 0.0, **joining)]
            liar = Running(9, homes("liar"), 9.0, **joining)
            for running in (*honest[1:], liar):
                nursery.start_soon(running.run, make(running.key))
            for running in honest:
                told = await running.heard.first(noted(running, "is cut off for the rest of the run"))
                assert isinstance(told, Note)
                assert f"({liar_id})" in told.text
            for running in (*honest, liar):
                running.leaving.scope.cancel()
        for running in honest:
            convicted = [event for event in running.events(Note) if "cut off for the rest" in event.text]
            assert len(convicted) == 1  # nobody else, and once

    limited(body)


def test_a_member_that_never_answers_a_pull_is_soon_not_waited_for(
    homes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gossip.deadline.FLOOR_S", 0.05)
    mute = peer_id(bytes([9]) * 32)
    serve = Publisher.serve

    async def hang(self: Publisher, stream: Any) -> PublishedAdapter | None:
        if self._signed.__self__._peer == mute:  # type: ignore[attr-defined]
            await trio.sleep_forever()
        return await serve(self, stream)

    monkeypatch.setattr(Publisher, "serve", hang)

    async def body() -> None:
        make = memory()
        settings = {"rounds": 10**6, "wait_peers": 2, "collect_s": 0.5}
        first = Running(1, homes("a"), 0.0, **settings)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(first.run, make(first.key))
            joining = {"join": await first.addresses(), **settings}
            others = [Running(2, homes("b"), 0.0, **joining), Running(9, homes("mute"), 0.0, **joining)]
            for running in others:
                nursery.start_soon(running.run, make(running.key))
            await first.heard.first(lambda event: isinstance(event, RoundDone) and event.round == 40)
            for running in (first, *others):
                running.leaving.scope.cancel()
        missed = [any("p9" in peer for peer in event.failed) for event in first.events(RoundDone)[:40]]
        assert sum(missed) == PATIENCE
        assert not any(missed[20:])

    limited(body)


def test_a_peer_that_goes_on_from_an_older_checkpoint_is_not_convicted(homes: Any) -> None:
    async def body() -> None:
        make = memory()
        others = Running(1, homes("a"), 0.0, rounds=10**6)
        home = homes("b")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(others.run, make(others.key))
            joining = {"join": await others.addresses(), "rounds": 10**6, "wait_peers": 1}
            for optimum in (5.0, 6.0):  # other bytes in the same rounds
                shutil.rmtree(home.path / "checkpoints", ignore_errors=True)
                (home.path / "checkpoints").mkdir()
                again = Running(2, home, optimum, **joining)
                async with trio.open_nursery() as life:
                    life.start_soon(again.run, make(again.key))
                    reads = mixes(others) + 4
                    await others.heard.first(lambda event, reads=reads: mixes(others) >= reads)
                    again.leaving.scope.cancel()
            others.leaving.scope.cancel()
        assert not [event for event in others.events(Note) if "cut off" in event.text]

    limited(body)


def mixes(running: Running) -> int:
    """Return in how many rounds a peer has mixed something."""
    return sum(bool(event.mixed) for event in running.events(RoundDone))


def test_peers_with_fewer_rounds_are_of_another_run(homes: Any) -> None:
    async def body() -> None:
        make = memory()
        first = Running(1, homes("a"), 0.0, rounds=12, wait_peers=1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(first.run, make(first.key))
            shorter = Running(2, homes("b"), 0.0, rounds=11, join=await first.addresses())
            with pytest.raises(ExceptionGroup) as caught:
                await shorter.run(make(shorter.key))
            (error,) = [e for e in flat(caught.value) if isinstance(e, LocalError)]
            assert error.exit_code == 5
            assert "rounds differs: ours is 11, theirs is 12" in str(error)
            first.leaving.scope.cancel()

    limited(body)


@pytest.mark.parametrize("network", [memory, libp2p])
def test_without_a_hello_nothing_is_told(homes: Any, network: Any) -> None:
    async def body() -> None:
        make = network()
        victim = Running(1, homes("a"), 1.0, rounds=3, wait_peers=1)
        silent: dict[str, Any] = {
            "topic": "t",
            "on_announced": lambda *_: None,
            "on_connection": lambda *_: None,
        }
        async with trio.open_nursery() as nursery:
            nursery.start_soon(victim.run, make(victim.key))
            address = await victim.addresses()
            async with make(bytes([9]) * 32)(handlers={}, **silent) as stranger:
                await stranger.dial(address[0])
                questions: dict[str, Message] = {
                    CONTROL: Ping(1),
                    ADAPTER: Pull(bytes(16), None, -1, 0.0, kind="initial"),
                }
                for protocol, question in questions.items():
                    stream = await stranger.open(victim.id, protocol)
                    await send_message(stream, question, Traffic())
                    await stream.finish()
                    answer = await receive_message(stream, 10.0, Traffic())
                    assert isinstance(answer, Refusal)
                    assert answer.reason == "hello"
                    assert not await stream.receive(1)
            victim.leaving.scope.cancel()

    limited(body)


def flat(error: BaseException) -> list[BaseException]:
    return (
        [e for part in error.exceptions for e in flat(part)]
        if isinstance(error, BaseExceptionGroup)
        else [error]
    )


GARBAGE = {
    "random bytes": b"\x00\x00\x00\x20" + bytes(range(200, 232)),
    "an oversized frame": b"\xff\xff\xff\xff",
    "a frame that is no question": wire.framed(Ping(1))[:4] + b"\x80" * 18,
}


@pytest.mark.parametrize("network", [memory, libp2p])
@pytest.mark.parametrize("protocol", ["/gossip-peer/3/control", "/gossip-peer/3/adapter"])
def test_garbage_is_counted_the_connection_is_closed_and_the_peer_lives(
    homes: Any, network: Any, protocol: str
) -> None:
    async def body() -> None:
        make = network()
        victim = Running(1, homes("a"), 1.0, rounds=3, wait_peers=1)
        attacker = make(bytes([9]) * 32)
        silent: dict[str, Any] = {
            "topic": "t",
            "on_announced": lambda *_: None,
            "on_connection": lambda *_: None,
        }
        async with trio.open_nursery() as nursery:
            nursery.start_soon(victim.run, make(victim.key))
            address = await victim.addresses()
            async with attacker(handlers={}, **silent) as transport:
                for garbage in GARBAGE.values():
                    await transport.dial(address[0])
                    stream = await transport.open(victim.id, protocol)
                    with pytest.raises(Unreachable):
                        await say_and_read(stream, garbage)
                    while transport.is_connected(victim.id):
                        await trio.sleep(0.01)
                # and one that stops in the middle of a frame
                await transport.dial(address[0])
                stream = await transport.open(victim.id, protocol)
                await stream.send(b"\x00\x00")
            friend = Running(2, homes("b"), 1.0, rounds=3, wait_peers=1, join=address)
            nursery.start_soon(friend.run, make(friend.key))
        rejected = victim.events(RoundDone)[-1].rejected
        assert rejected["malformed"] + rejected["oversized"] == len(GARBAGE)
        assert len(friend.events(RoundDone)) == 3

    limited(body)


async def say_and_read(stream: Any, said: bytes) -> None:
    await stream.send(said)
    while await stream.receive(100):
        pass
    raise Unreachable("ended")
