"""Runs that share rollouts: the same in the simulator, in memory and over libp2p; liars, floods, restarts, refusals."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import trio
from light_peers import SPEC, Quadratic, Running, libp2p, limited, memory

from gossip.adapter import AdapterState
from gossip.errors import LocalError
from gossip.events import Train
from gossip.node import GossipNode
from gossip.published import PublishedAdapter
from gossip.rollouts import Buffer, Received, Rollout
from gossip.simulation import LocalSteps, Simulation
from peer.checkpoints import Home, HomeError, open_home
from peer.config import PeerConfig
from peer.journal_events import Finished, JournalEvent, Note, Resumed, RoundDone
from peer.network.identity import peer_id
from peer.publisher import Publisher
from peer.rollouts_event import RolloutsShared
from peer.run_plan import plan_run
from peer.signing import Signer
from peer.training.frames import Progress, Ready, Trained

ROUNDS = 6
IDS = [peer_id(bytes([seed]) * 32) for seed in (1, 2, 3)]


def own(peer: str, round: int) -> tuple[Rollout, ...]:
    """Return what a scripted peer answers in a round; one answer is the same for all peers."""
    mine = [Rollout("sort", 1, 10 * round + index, f"{peer[-4:]} {index}\n") for index in range(3)]
    return (*mine, Rollout("sort", 1, 10 * round, "all alike"))


class Scripted(Quadratic):
    """A training process that answers by a script, and remembers what it was given.

    ``model``: what it says of its model, adapter and tokenizer.
    """

    def __init__(self, peer: str, optimum: float, model: str = "same") -> None:
        super().__init__(optimum)
        self.peer, self.model = peer, model
        self.given: dict[int, tuple[Received, ...]] = {}
        self.own = own

    async def start(
        self, config: PeerConfig, resume: Path | None, progress: Progress
    ) -> tuple[Quadratic, Ready]:
        _, ready = await super().start(config, resume, progress)
        return self, replace(ready, takes_rollouts=True, manifest=dict.fromkeys(ready.manifest, self.model))

    async def train(self, state: AdapterState, round: int, *settings: Any) -> Trained:
        self.given[round] = tuple(settings[-1])
        trained = await super().train(state, round, *settings)
        return replace(trained, rollouts=self.own(self.peer, round))


def scripted(seed: int, home: Home, **settings: Any) -> Running:
    defaults: dict[str, Any] = {"rounds": ROUNDS, "share": "rollouts", "wait_peers": 2}
    model = settings.pop("own_model", "same")
    running = Running(seed, home, float(seed), **defaults | settings)
    running.trainer = Scripted(running.id, float(seed), model)
    return running


@pytest.fixture(autouse=True)
def no_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nobody be late because the machine is busy: who came in which round is compared exactly."""
    monkeypatch.setattr("gossip.deadline.FLOOR_S", 60.0)


@pytest.fixture
def homes(tmp_path: Path) -> Any:
    with ExitStack() as stack:
        yield lambda name: stack.enter_context(open_home(tmp_path / name))


async def meet(nursery: trio.Nursery, make: Any, peers: Sequence[Running]) -> None:
    """Let the first listen, and the others join it."""
    nursery.start_soon(peers[0].run, make(peers[0].key))
    address = await peers[0].addresses()
    for running in peers[1:]:
        running.config = running.config.with_options(join=address)
        nursery.start_soon(running.run, make(running.key))


def given(running: Running) -> dict[int, tuple[Received, ...]]:
    assert isinstance(running.trainer, Scripted)
    return running.trainer.given


def simulated() -> tuple[Simulation, dict[str, dict[int, tuple[Received, ...]]]]:
    """Return a simulation of the same run, over, and what its peers' trainings were given."""
    was_given: dict[str, dict[int, tuple[Received, ...]]] = {peer: {} for peer in IDS}
    members = tuple(sorted(IDS))

    def train(peer: str, action: Train) -> LocalSteps:
        was_given[peer][action.round] = action.rollouts
        return LocalSteps(action.state, 1, 0.0, 0.1, own(peer, action.round))

    plan = plan_run(PeerConfig.of(rounds=ROUNDS, share="rollouts", topology="complete"))
    start = AdapterState(SPEC, torch.zeros(4))
    nodes = {
        peer: GossipNode(peer, start, plan.node_settings(plan.methods(SPEC)), random.Random(0), members)
        for peer in IDS
    }
    simulation = Simulation(nodes, train)
    simulation.run()
    return simulation, was_given


@pytest.mark.parametrize("network", [memory, libp2p])
def test_trainings_are_given_the_same_as_in_the_simulator(homes: Any, network: Any) -> None:
    peers: list[Running] = []

    async def body() -> None:
        peers.extend(scripted(seed, homes(str(seed))) for seed in (1, 2, 3))
        async with trio.open_nursery() as nursery:
            await meet(nursery, network(), peers)

    limited(body)
    simulation, expected = simulated()
    for running in peers:
        assert given(running) == expected[running.id]
        checkpoint, _ = running.home.newest()
        assert checkpoint
        kept = simulation.node(running.id).rollouts
        assert [list(item) for item in checkpoint.snapshot.rollouts] == kept.snapshot()
        last = [item.round for item in given(running)[ROUNDS - 1]]
        assert set(last) == {ROUNDS - 2, ROUNDS - 3}
        # nothing was mixed, and nothing but rollouts was read
        assert float(checkpoint.state.flat[0]) == pytest.approx(running.trainer.optimum * (1 - 0.5**ROUNDS))
        assert all(event.mixed == () and not event.failed for event in running.events(RoundDone))
        shared = running.events(RolloutsShared)
        assert [event.published for event in shared] == [4] * ROUNDS
        others = [(f"p{peer.key[0]}", 4) for peer in peers if peer is not running]
        assert all(sorted(event.came) == others for event in shared)


def test_peers_with_other_models_share_rollouts_and_no_weights(homes: Any, tmp_path: Path) -> None:
    async def body() -> None:
        make = memory()
        settings = {"rounds": 3, "wait_peers": 1}
        peers = [scripted(seed, homes(str(seed)), own_model=f"model {seed}", **settings) for seed in (1, 2)]
        async with trio.open_nursery() as nursery:
            await meet(nursery, make, peers)
        for running, other in zip(peers, reversed(peers), strict=True):
            assert {item.sender for item in given(running)[2]} == {other.id}
            assert running.events(Finished)[0].complete

    limited(body)


def test_weights_and_rollouts_travel_together(homes: Any) -> None:
    async def body() -> None:
        make = memory()
        peers = [scripted(seed, homes(str(seed)), share="both", merge="average") for seed in (1, 2, 3)]
        async with trio.open_nursery() as nursery:
            await meet(nursery, make, peers)
        for running in peers:
            assert {item.sender for item in given(running)[ROUNDS - 1]} == set(IDS) - {running.id}
            assert all(len(event.mixed) == 2 for event in running.events(RoundDone))
            assert [event.round for event in running.events(RolloutsShared)] == list(range(ROUNDS))

    limited(body)


def lying(monkeypatch: pytest.MonkeyPatch, lie: Callable[[Publisher, str, bytes], bytes]) -> None:
    """Let the peer of seed 9 serve other bytes than its rollouts: ``(publisher, reader, payload) -> payload``."""
    liar, send = peer_id(bytes([9]) * 32), Publisher._send

    async def changed(self: Publisher, stream: Any, published: PublishedAdapter, offset: int) -> None:
        signer = self._signed.__self__  # type: ignore[attr-defined]
        if signer._peer == liar and published.kind == "rollouts":
            published = replace(published, payload=lie(self, stream.peer, bytes(published.payload)))
            life = signer.incarnation
            self._signed = Signer(bytes([9]) * 32, self._run, lambda: life).signed
        await send(self, stream, published, offset)

    monkeypatch.setattr(Publisher, "_send", changed)


def has_cut_off(event: JournalEvent) -> bool:
    """Tell whether a peer has struck somebody so often that one of two others is left."""
    return isinstance(event, RoundDone) and event.rejected.get("malformed", 0) >= 5 and event.peers == 1


@pytest.mark.parametrize("share", ["rollouts", "both"])
def test_a_liars_malformed_rollouts_are_strikes_and_cost_nobody_else_anything(
    homes: Any, monkeypatch: pytest.MonkeyPatch, share: str
) -> None:
    lying(monkeypatch, lambda publisher, reader, payload: b"\xdd\xff\xff\xff\xff" + payload)

    async def body() -> None:
        make = memory()
        settings = {"share": share, "rounds": 10**6}
        honest = [scripted(seed, homes(str(seed)), **settings) for seed in (1, 2)]
        liar = scripted(9, homes("liar"), **settings)
        async with trio.open_nursery() as nursery:
            await meet(nursery, make, [*honest, liar])
            for running in honest:
                await running.heard.first(has_cut_off)
            for running in (*honest, liar):
                running.leaving.scope.cancel()
        for running in honest:
            told = running.events(RoundDone)
            assert ("p9", "malformed") in {pair for event in told for pair in event.objections}
            senders = {item.sender for items in given(running).values() for item in items}
            assert senders <= set(IDS)

    limited(body)


def test_whoever_answers_each_reader_differently_is_convicted(
    homes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    lying(monkeypatch, lambda publisher, reader, payload: payload.replace(b"all alike", reader[-9:].encode()))

    async def body() -> None:
        make = memory()
        settings = {"rounds": 10**6}
        honest = [scripted(seed, homes(str(seed)), **settings) for seed in (1, 2)]
        liar = scripted(9, homes("liar"), **settings)
        async with trio.open_nursery() as nursery:
            await meet(nursery, make, [*honest, liar])
            for running in honest:
                await running.heard.first(
                    lambda event: (
                        isinstance(event, Note) and "is cut off for the rest of the run" in event.text
                    )
                )
            for running in (*honest, liar):
                running.leaving.scope.cancel()

    limited(body)


def test_a_flood_has_its_quarter_and_answers_are_text(homes: Any) -> None:
    async def body() -> None:
        make = memory()
        peers = [scripted(seed, homes(str(seed))) for seed in (1, 2, 3)]
        bomb = "__import__('os').system('touch /tmp/run-by-a-peer')"
        flooder = peers[2].trainer
        assert isinstance(flooder, Scripted)
        flooder.own = lambda peer, round: tuple(
            Rollout("sort", 1, 1000 * round + index, bomb) for index in range(900)
        )
        async with trio.open_nursery() as nursery:
            await meet(nursery, make, peers)
        for running in peers[:2]:
            last = given(running)[ROUNDS - 1]
            senders = [item.sender for item in last]
            assert senders.count(peers[2].id) == Buffer().quota
            assert len(senders) - senders.count(peers[2].id) == 2 * 4
            assert {item.rollout.answer for item in last if item.sender == peers[2].id} == {bomb}

    limited(body)


def test_a_restart_goes_on_with_what_the_next_training_would_have_been_given(homes: Any) -> None:
    async def body() -> None:
        make = memory()
        settings = {"share": "rollouts", "wait_peers": 1, "rounds": 10**6, "join_timeout_s": 0.1}
        first, other = scripted(1, homes("1"), **settings), scripted(2, homes("2"), **settings)
        async with trio.open_nursery() as nursery:
            await meet(nursery, make, [first, other])
            await other.heard.first(lambda event: isinstance(event, RoundDone) and event.round == 3)
            other.leaving.scope.cancel()
            first.leaving.scope.cancel()
        checkpoint, _ = other.home.newest()
        assert checkpoint
        again = scripted(2, other.home, **settings | {"wait_peers": 0})
        async with trio.open_nursery() as nursery:
            nursery.start_soon(again.run, make(again.key))
            await again.heard.first(lambda event: isinstance(event, RoundDone))
            again.leaving.scope.cancel()
        assert again.events(Resumed)[0].round == checkpoint.round
        kept = given(again)[checkpoint.round]
        assert kept
        assert kept == given(other).get(checkpoint.round, kept)
        assert {item.sender for item in kept} == {first.id}

    limited(body)


def test_what_does_not_learn_from_rollouts_is_refused(homes: Any) -> None:
    async def body() -> None:
        running = Running(1, homes("a"), 1.0, rounds=3, share="both")
        with pytest.raises(LocalError, match="--share both: this --trainer learns from no rollouts"):
            await running.run(memory()(running.key))

    limited(body)


def test_a_run_that_shares_weights_is_another_run(homes: Any) -> None:
    async def body() -> None:
        home = homes("a")
        settings = {"rounds": 2, "wait_peers": 0}
        await scripted(1, home, share="both", **settings).run(memory()(bytes([1]) * 32))
        with pytest.raises(HomeError, match="whose share is 'both', now it would be 'weights'"):
            await scripted(1, home, share="weights", **settings).run(memory()(bytes([1]) * 32))

    limited(body)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mask": "pairs"}, "--share {} with --mask pairs"),
        ({"dp_epsilon": 8.0}, "--share {} with --dp-epsilon 8"),
    ],
)
@pytest.mark.parametrize("share", ["rollouts", "both"])
def test_answers_tell_more_than_masks_and_noise_allow(
    share: str, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(LocalError, match=words.format(share)):
        plan_run(PeerConfig.of(share=share, **options))


@pytest.mark.parametrize(
    "options",
    [
        {"codec": "int8"},
        {"optimizer": "diloco"},
        {"mixing": "push-sum"},
        {"merge": "average"},
        {"robust": "median"},
        {"overlap": True},
        {"personalize": True},
        {"average_last": 2},
        {"budget_mb": 1.0},
    ],
)
def test_what_says_how_adapters_are_mixed_is_refused_where_none_are(options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(LocalError, match=f"--{name.replace('_', '-')} .* or use --share both"):
        plan_run(PeerConfig.of(share="rollouts", **options))
