"""Who is not to read a peer gets no byte of its adapters: a member asks for what is others', in every way there is."""

from __future__ import annotations

import random
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
import trio
from light_peers import SPEC, Running, libp2p, limited, memory

from gossip.adapter import AdapterState
from gossip.errors import LocalError
from gossip.events import Fetch, Fetched, PeerUp, Report, Start, Train, Trained
from gossip.messages import Message, Offer, Pull, Refusal
from gossip.node import GossipNode
from gossip.published import PublishedAdapter
from gossip.readers import everybody, row_readers
from gossip.roster import rows_of
from gossip.settings import NodeSettings
from peer.checkpoints import open_home
from peer.config import PeerConfig
from peer.exchange import ADAPTER, Traffic, receive_message, send_message
from peer.journal_events import Note, RoundDone
from peer.network.identity import peer_id
from peer.network.transport import Unreachable
from peer.publisher import Publisher
from peer.run_plan import plan_run
from peer.streams import Streams
from topology.links import parse_topology

ROUNDS = 4


def ring_of_four(stack: ExitStack, folder: Path, **settings: Any) -> list[Running]:
    """Four peers, sorted by their ids: each is read by the one before and the one after."""
    known = sorted((peer_id(bytes([seed]) * 32), seed) for seed in range(1, 5))
    roster = tuple(one for one, _ in known)
    return [
        Running(
            seed,
            stack.enter_context(open_home(folder / str(seed))),
            float(seed),
            **{"topology": "ring", "rounds": ROUNDS, "wait_peers": 3, "roster": roster, "merge": "average"}
            | settings,
        )
        for _, seed in known
    ]


class Spy:
    """A member of the ring opposite to its victim: before each of its fetches it asks the victim for all there is."""

    def __init__(self, me: str, victim: str) -> None:
        self.me, self.victim = me, victim
        self.answers: list[tuple[Pull, Message, bytes]] = []
        self.digests: list[bytes] = []  # of what the victim has published, as claims tell everybody

    async def ask_for_all(self, streams: Streams, round: int) -> None:
        """Ask in every way, and keep what came."""
        run = streams._fingerprint
        pulls = [Pull(run, wanted, -1, 0.0) for wanted in (None, *range(round + 2))]
        pulls += [Pull(run, round + 1, -1, 0.05)]
        if round < ROUNDS - 2:  # later, the victim, two neighbors away, may be in the merge, which is for all
            pulls += [Pull(run, None, -1, 0.0, kind="merge"), Pull(run, ROUNDS, -1, 0.05, kind="merge")]
        if (
            not round
        ):  # once: whoever reads the same over and over comes last, and the spy wants to be in the merge
            pulls += [Pull(run, 0, -1, 0.0, kind="initial")]
        pulls += [Pull(run, 0, -1, 0.0, offset=1, digest=digest) for digest in self.digests]
        pulls += [Pull(run, None, -1, 0.0, offset=1, digest=digest) for digest in self.digests]
        for pull in pulls:
            try:
                stream = await streams._transport.open(self.victim, ADAPTER)
                await send_message(stream, pull, Traffic())
                await stream.finish()
                answer, rest = await receive_message(stream, 10.0, Traffic()), b""
                while piece := await stream.receive(1000):
                    rest += piece
            except Unreachable:
                continue
            self.answers.append((pull, answer, rest))


@pytest.mark.parametrize("network", [memory, libp2p])
def test_a_member_whose_row_does_not_name_a_peer_gets_no_byte_of_its_adapters(
    tmp_path: Path, network: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gossip.deadline.FLOOR_S", 60.0)  # a busy machine is late for any shorter deadline
    with ExitStack() as stack:
        ids = sorted(peer_id(bytes([seed]) * 32) for seed in range(1, 5))
        peers: list[Running] = []
        spy = Spy(ids[2], ids[0])
        fetch, publish = Streams.fetch, Publisher.publish

        async def spy_and_fetch(self: Streams, action: Fetch) -> None:
            if self._publisher._signed.__self__._peer == spy.me and action.kind == "round":  # type: ignore[attr-defined]
                await spy.ask_for_all(self, action.round or 0)
            await fetch(self, action)

        def publish_and_tell(self: Publisher, published: PublishedAdapter) -> None:
            if self._signed.__self__._peer == spy.victim and published.kind == "round":  # type: ignore[attr-defined]
                spy.digests.append(published.digest)
            publish(self, published)

        monkeypatch.setattr(Streams, "fetch", spy_and_fetch)
        monkeypatch.setattr(Publisher, "publish", publish_and_tell)

        async def body() -> None:
            make = network()
            peers.extend(ring_of_four(stack, tmp_path))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(peers[0].run, make(peers[0].key))
                address = await peers[0].addresses()
                for running in peers[1:]:
                    joining = running.config.with_options(join=address)
                    running.config = joining
                    nursery.start_soon(running.run, make(running.key))

        limited(body)
        assert len(spy.digests) == ROUNDS
        reasons = set()
        for pull, answer, rest in spy.answers:
            if pull.kind == "initial":
                assert isinstance(answer, Offer)
                assert rest == bytes(16)  # what all began with
            elif pull.kind == "round":
                assert isinstance(answer, Refusal), pull
                assert not rest
                reasons.add(answer.reason)
            else:  # asked for before its time
                assert isinstance(answer, Refusal)
        assert {"readers"} <= reasons <= {"readers", "nothing", "busy"}
        for running in peers:  # nobody is struck or cut off, and the ring has mixed as it should
            rounds = running.events(RoundDone)
            assert [len(event.mixed) for event in rounds] == [2] * ROUNDS + [3]
            assert not any("cut off" in event.text for event in running.events(Note))


def test_readers_are_those_whose_row_of_the_whole_roster_names_us() -> None:
    roster = tuple("abcdefgh")
    for name in ("ring", "random-regular:3", "exponential", "one-peer-exponential", "epidemic-oracle:2"):
        topology = parse_topology(name, seed=3)
        for me in roster:
            may_read = row_readers(rows_of(topology, roster), me)
            for round in range(6):
                named = {
                    peer
                    for peer in roster
                    if me in dict(topology(peer, roster, round, random.Random(0)).read_from)
                }
                assert {peer for peer in (*roster, "x") if may_read(peer, "round", round)} == named
                assert {peer for peer in (*roster, "x") if may_read(peer, "merge", round)} == {*roster} - {me}
                assert may_read("x", "initial", 0)


ROSTER = ("a", "b", "c", "d", "e", "f")


def test_by_default_a_roster_makes_the_row_the_readers_where_all_agree_on_w() -> None:
    def roster_of(**settings: Any) -> tuple[str, ...]:
        return plan_run(PeerConfig.of(**settings)).roster

    assert roster_of(topology="ring", roster=ROSTER[::-1]) == ROSTER
    assert roster_of(topology="ring") == ()
    assert roster_of(topology="epidemic:3", roster=ROSTER) == ()
    assert roster_of(topology="ring", weights="data-size", roster=ROSTER) == ()
    assert roster_of(topology="one-peer-exponential", roster=ROSTER) == ROSTER
    assert roster_of(topology="one-peer-exponential", roster=ROSTER, collect_s=0.0) == ()
    assert roster_of(topology="ring", roster=ROSTER, readers="all") == ()
    plan = plan_run(PeerConfig.of(topology="ring", roster=ROSTER))
    with pytest.raises(LocalError, match="--roster does not name this peer, x"):
        plan.readers("x")
    assert plan_run(PeerConfig.of(topology="ring")).readers("x") is everybody


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"topology": "ring"}, "--readers all"),
        ({"topology": "epidemic:3", "roster": ROSTER}, "random-regular:4"),
        ({"topology": "ring", "weights": "data-size", "roster": ROSTER}, "metropolis-hastings"),
        ({"topology": "one-peer-exponential", "roster": ROSTER, "collect_s": 0.0}, "--collect-s 60"),
    ],
)
def test_rows_as_readers_are_refused_where_nobody_can_know_them(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(LocalError, match="--readers row") as caught:
        plan_run(PeerConfig.of(readers="row", **settings))
    assert said in str(caught.value)


def test_a_row_of_the_roster_stays_as_it_is_when_others_come_and_go() -> None:
    """Among a, b and c alone a ring would have a read c, which must not read a while d is away."""
    settings = NodeSettings(
        topology=parse_topology("ring", seed=0), rounds=3, collect_s=9.0, norm_cap=9.0, roster=tuple("abcd")
    )
    adapter = AdapterState(SPEC, torch.ones(4))
    node = GossipNode("a", adapter, settings, random.Random(0), members=("a", "b", "c"))
    (train,) = node.handle(Start(), 0.0)
    assert isinstance(train, Train)
    actions = node.handle(Trained(adapter, 1, 0.0), 1.0)
    assert [action.peer for action in actions if isinstance(action, Fetch)] == ["b"]
    node.handle(PeerUp("d", 0), 2.0)
    node.handle(PeerUp("stranger", 0), 2.0)
    theirs = PublishedAdapter(0, 1, "float32", torch.full((4,), 4.0).numpy().tobytes())
    actions = node.handle(Fetched("b", theirs), 3.0)
    (report,) = [action.report for action in actions if isinstance(action, Report)]
    assert report.mixed == (("b", 0, pytest.approx(1 / 3)),)
    assert report.state.flat.tolist() == pytest.approx([2.0] * 4)  # what d would have had is ours
    (train,) = [action for action in actions if isinstance(action, Train)]
    actions = node.handle(Trained(adapter, 1, 0.0), 4.0)
    assert [action.peer for action in actions if isinstance(action, Fetch)] == ["b", "d"]
