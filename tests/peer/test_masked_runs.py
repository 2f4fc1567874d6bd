"""Runs in which only sums are read: on the in-memory network and on libp2p, with a peer that dies, and with liars."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
from light_peers import Running, libp2p, limited, memory

from gossip.events import FetchSum
from gossip.masked_sums import key_statement
from gossip.messages import MaskKey, Message, Pull, SumSigned
from peer.checkpoints import open_home
from peer.exchange import ADAPTER, Traffic, receive_message, send_message
from peer.journal_events import Finished, JournalEvent, Measured, RoundDone
from peer.masks import Masks
from peer.network.identity import peer_id
from peer.network.transport import Unreachable
from peer.streams import Streams


def masked_peers(stack: ExitStack, folder: Path, peers: int, **settings: Any) -> list[Running]:
    """Peers of one roster, all of which read all, with optima 1, 2, 3, ..."""
    seeds = range(1, peers + 1)
    defaults = {
        "topology": "complete",
        "roster": tuple(peer_id(bytes([seed]) * 32) for seed in seeds),
        "mask": "pairs",
        "merge": "average",
        "wait_peers": peers - 1,
        "rounds": 4,
        "check_rows": 0,
    }
    return [
        Running(seed, stack.enter_context(open_home(folder / str(seed))), float(seed), **defaults | settings)
        for seed in seeds
    ]


async def start(nursery: trio.Nursery, make: Any, peers: list[Running]) -> None:
    """Let the first listen, and the others join it."""
    nursery.start_soon(peers[0].run, make(peers[0].key))
    address = await peers[0].addresses()
    for running in peers[1:]:
        running.config = running.config.with_options(join=address)
        nursery.start_soon(running.run, make(running.key))


@pytest.mark.parametrize("network", [memory, libp2p])
def test_peers_that_read_only_sums_end_where_those_end_that_read_all(tmp_path: Path, network: Any) -> None:
    with ExitStack() as stack:
        peers: list[Running] = []

        async def body() -> None:
            peers.extend(masked_peers(stack, tmp_path, 5))
            async with trio.open_nursery() as nursery:
                await start(nursery, network(), peers)

        limited(body)
        for running in peers:
            rounds = running.events(RoundDone)
            assert [event.mixed for event in rounds] == [("row",)] * 5, [event.failed for event in rounds]
            assert rounds[-1].mask_bytes > 0
            (finished,) = running.events(Finished)
            assert finished.complete
        ends = [running.events(Measured)[-1].own for running in peers]
        # from 0, each round halfway to the mean of the optima
        assert ends == pytest.approx([3.0 * (1 - 0.5**4)] * 5, abs=1e-5)


def test_a_publisher_that_goes_after_its_payload_costs_its_readers_that_round_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = Masks._answer
    gone = peer_id(bytes([5]) * 32)

    async def silent_in_round_1(self: Masks, reader: str, question: Message) -> Message:
        if self.secrets.peer == gone and isinstance(question, SumSigned) and question.round == 1:
            raise Unreachable("gone")
        return await answer(self, reader, question)

    monkeypatch.setattr(Masks, "_answer", silent_in_round_1)
    with ExitStack() as stack:
        peers: list[Running] = []

        async def body() -> None:
            peers.extend(masked_peers(stack, tmp_path, 5))
            async with trio.open_nursery() as nursery:
                await start(nursery, memory(), peers)

        limited(body)
        for running in peers:
            mixed = [event.mixed for event in running.events(RoundDone)]
            if running.id == gone:
                assert mixed == [("row",)] * 5
            else:
                assert mixed == [("row",), (), ("row",), ("row",), ("row",)]
                failed = running.events(RoundDone)[1].failed
                assert [name for name, _ in failed] == ["row"]


def test_a_peer_that_leaves_is_made_up_for_and_below_the_minimum_rows_stay_closed(tmp_path: Path) -> None:
    with ExitStack() as stack:
        peers: list[Running] = []

        async def body() -> None:
            peers.extend(masked_peers(stack, tmp_path, 5, rounds=10**6, merge="none"))
            async with trio.open_nursery() as nursery:
                await start(nursery, memory(), peers)
                first = peers[0].heard
                await first.first(lambda event: isinstance(event, RoundDone) and event.round == 1)
                peers[4].leaving.scope.cancel()
                await first.first(lambda event: _was_mixed_among(event, 3))
                peers[3].leaving.scope.cancel()
                closed = await first.first(lambda event: _was_mixed_among(event, 2))
                assert isinstance(closed, RoundDone)
                assert closed.mixed == ()
                assert closed.failed == (("row", "few"),)
                for running in peers[:3]:
                    running.leaving.scope.cancel()

        limited(body)
        among_three = [event for event in peers[0].events(RoundDone) if _was_mixed_among(event, 3)]
        assert any(event.mixed == ("row",) for event in among_three)


def _was_mixed_among(event: JournalEvent, others: int) -> bool:
    """Tell a round, not the first with so many others, that began and ended with them."""
    return isinstance(event, RoundDone) and event.peers == others and event.round > 2


def test_a_member_that_asks_for_an_adapter_without_a_mask_gets_nothing_and_a_strike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch_sum, spy = Streams.fetch_sum, peer_id(bytes([5]) * 32)
    asked: list[Pull] = []

    async def ask_in_clear(self: Streams, action: FetchSum) -> None:
        await fetch_sum(self, action)
        if self._publisher._signed.__self__._peer == spy and action.round == 1:  # type: ignore[attr-defined]
            pull = Pull(self._fingerprint, 1, -1, 0.0)
            stream = await self._transport.open(peer_id(bytes([1]) * 32), ADAPTER)
            await send_message(stream, pull, Traffic())
            await stream.finish()
            with pytest.raises(Unreachable):
                await receive_message(stream, 10.0, Traffic())
            asked.append(pull)

    monkeypatch.setattr(Streams, "fetch_sum", ask_in_clear)
    with ExitStack() as stack:
        peers: list[Running] = []

        async def body() -> None:
            peers.extend(masked_peers(stack, tmp_path, 5, merge="none"))
            async with trio.open_nursery() as nursery:
                await start(nursery, memory(), peers)

        limited(body)
        assert len(asked) == 1
        assert peers[0].events(RoundDone)[-1].rejected["malformed"] == 1


@pytest.mark.parametrize("lie", ["signature", "small order"])
def test_a_bad_key_is_its_peer_s_fault_and_closes_no_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lie: str
) -> None:
    answer, liar = Masks._answer, peer_id(bytes([5]) * 32)

    async def lying(self: Masks, reader: str, question: Message) -> Message:
        key = await answer(self, reader, question)
        if self.secrets.peer != liar or not isinstance(key, MaskKey):
            return key
        if lie == "signature":
            return replace(key, key=bytes([1] * 32))
        public = bytes(32)
        statement = key_statement(self.run, self.roster, liar, public)
        return MaskKey(liar, public, self.secrets.sign(statement))

    monkeypatch.setattr(Masks, "_answer", lying)
    with ExitStack() as stack:
        peers: list[Running] = []

        async def body() -> None:
            peers.extend(masked_peers(stack, tmp_path, 5, rounds=3, merge="none"))
            async with trio.open_nursery() as nursery:
                await start(nursery, memory(), peers)

        limited(body)
        for running in peers[:4]:
            rounds = running.events(RoundDone)
            assert [event.mixed for event in rounds] == [("row",)] * 3
            assert rounds[-1].rejected["malformed"] == 3
