"""What CONTRIBUTING.md promises to whoever adds a method: one function or stage and one line, and real nodes run it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from gossip.adapter import AdapterSpec
from gossip.events import Action, Event, Publish, Train
from gossip.methods import guards, method_set
from gossip.methods.catalogue import Entry
from gossip.methods.codecs import CODECS, Codec
from gossip.methods.contribution import MixInput
from gossip.methods.method_set import MethodNames
from gossip.methods.mixing import MIXERS, Mixer, average
from gossip.methods.optimizer_stage import Optimizer
from gossip.methods.optimizers import OPTIMIZERS
from gossip.methods.pipeline import MakeStage
from gossip.methods.requirements import Requirements, State
from gossip.methods.stage import Combination, Encoded, RoundContext, Stage
from gossip.node import GossipNode
from gossip.published import PublishedAdapter
from gossip.quadratic import Quadratic, positions
from gossip.simulation import LocalSteps, Simulation
from topology.links import parse_topology

PEERS, ROUNDS = 8, 12
RING = Quadratic(peers=PEERS, dimension=5, rounds=ROUNDS)


@pytest.fixture(autouse=True)
def resolved_anew() -> Iterator[None]:
    """What was resolved with a plug-in must not outlive it."""
    method_set.resolve.cache_clear()
    yield
    method_set.resolve.cache_clear()


def from_optima(network: Quadratic) -> Simulation:
    """Return a network whose peers jump to their optima in the first round, and rest: mixing alone."""
    simulation = network.simulation()
    optima = dict(zip(network.names, network.optima(), strict=True))

    def train(name: str, action: Train) -> LocalSteps:
        flat = optima[name].clone() if action.round == 0 else action.state.flat
        return LocalSteps(replace(action.state, flat=flat), 1, 0.0, 1.0)

    simulation.train = train
    return simulation


def mixed(network: Quadratic) -> np.ndarray:
    """Return float64[peers, P] after mixing alone."""
    simulation = from_optima(network)
    simulation.run()
    return positions(simulation, network.names).double().numpy()


def published_by(node: GossipNode) -> list[PublishedAdapter]:
    """Return a list that fills with what the node publishes."""
    publications: list[PublishedAdapter] = []
    handle = node.handle

    def recorded(event: Event, now: float) -> list[Action]:
        actions = handle(event, now)
        publications.extend(action.published for action in actions if isinstance(action, Publish))
        return actions

    node.handle = recorded  # type: ignore[method-assign]  # to listen, not to change what it does
    return publications


# -- a codec


def float16() -> Codec:
    """Half precision: 16 bits a value."""

    def encode(values: Tensor, spec: AdapterSpec, round: int) -> bytes:
        return values.to(torch.float16).numpy().tobytes()

    def decode(payload: bytes | bytearray, spec: AdapterSpec, round: int) -> Tensor:
        return torch.frombuffer(bytearray(payload), dtype=torch.float16).float()

    return Codec(
        encode, decode, lambda spec: 2 * spec.size, relative_error=2**-11, gamma=1.0, doc="half precision"
    )


def test_a_codec(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CODECS, "float16", Entry(float16, "half precision"))
    coded = replace(RING, methods=MethodNames(codec="float16", feedback="none", merge="average"))
    exact = replace(RING, methods=MethodNames(merge="average"))
    simulation = from_optima(coded)
    publications = published_by(simulation.node("p0003"))
    simulation.run()
    assert {(published.codec, len(published.payload)) for published in publications} == {
        ("float16", 2 * RING.dimension)
    }
    assert simulation.penalties == []
    error = np.abs(positions(simulation, RING.names).double().numpy() - mixed(exact)).max()
    assert 1e-6 < error < 1e-2, "near what an exact codec gives, and rounded"


# -- a mixing rule with a state


@dataclass(frozen=True, slots=True)
class HeavyAverage(Stage):
    """The average of the row with momentum: v' = MU v + (W x - x), x' = x + v'."""

    gamma: float
    spec: AdapterSpec
    name: ClassVar[str] = "mixer"

    def init(self, initial: Tensor) -> State:
        return {"velocity": torch.zeros_like(initial)}

    def combine(self, row: Combination, state: State) -> tuple[Combination, State]:
        row = guards.guarded(row)
        own = row.own.state.flat
        target = average(MixInput(row.own, row.own_as_decoded, row.others, self.gamma)).flat
        velocity = MU * state["velocity"] + (target - own)
        return row._replace(vector=own + velocity), {"velocity": velocity}


MU = 0.3
HEAVY = replace(RING, methods=MethodNames(mixing="heavy"))


@pytest.fixture
def heavy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        MIXERS,
        "heavy",
        Entry(lambda: Mixer(HeavyAverage, Requirements(linear=True)), "average with momentum"),
    )


def test_a_mixing_rule_with_a_state(heavy: None) -> None:
    w = parse_topology("ring", seed=0).matrix(PEERS).toarray()
    x = RING.optima().double().numpy()
    velocity = np.zeros_like(x)
    for _ in range(ROUNDS):
        velocity = MU * velocity + w @ x - x
        x = x + velocity
    assert np.abs(mixed(HEAVY) - x).max() < 1e-5
    assert np.abs(mixed(RING) - x).max() > 1e-2


def test_its_state_outlives_a_restart(heavy: None) -> None:
    whole = mixed(HEAVY)
    simulation = from_optima(HEAVY)
    simulation.run(until_s=6.5)
    before = simulation.node("p0002")
    snapshot = before.snapshot()
    assert snapshot.tensors.keys() == {"mixer/velocity"}
    after = GossipNode("p0002", before.state, before.settings, random.Random(0), HEAVY.names, snapshot)
    torch.testing.assert_close(after.snapshot().tensors["mixer/velocity"], snapshot.tensors["mixer/velocity"])
    assert float(snapshot.tensors["mixer/velocity"].abs().max()) > 1e-3
    simulation.run()
    assert np.array_equal(positions(simulation, HEAVY.names).double().numpy(), whole)


# -- an optimizer


def rest_at_origin() -> Optimizer:
    """Every round ends at zero, whatever was learned."""
    return (
        OPTIMIZERS["none"]
        .make()
        ._replace(update=lambda start, trained, vectors, steps, state: (torch.zeros_like(start), state))
    )


def test_an_optimizer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OPTIMIZERS, "rest", Entry(rest_at_origin, "goes nowhere"))
    assert not mixed(replace(RING, methods=MethodNames(optimizer="rest"))).any()


# -- a stage between training and publishing


GRID = 0.25


@dataclass(frozen=True, slots=True)
class Coarse(Stage):
    """Only multiples of ``GRID`` leave a peer; what a privacy stage does is of this kind."""

    spec: AdapterSpec
    name: ClassVar[str] = "coarse"

    def init(self, initial: Tensor) -> State:
        return {"published": torch.tensor(0)}

    def publish(
        self, vector: Tensor, context: RoundContext, encode: Callable[[Tensor], Encoded], state: State
    ) -> tuple[Encoded, State]:
        return encode((vector / GRID).round() * GRID), {"published": state["published"] + 1}


@pytest.mark.parametrize("codec", ["float32", "bfloat16", "topk:0.5"])
def test_a_stage_between_training_and_publishing(monkeypatch: pytest.MonkeyPatch, codec: str) -> None:
    network = replace(RING, methods=MethodNames(codec=codec))
    plain, built = mixed(network), method_set.round_stages

    def with_coarse(*chosen: Any) -> tuple[MakeStage, ...]:
        optimizer, mixing, *others = built(*chosen)
        return optimizer, mixing, Coarse, *others

    monkeypatch.setattr(method_set, "round_stages", with_coarse)
    method_set.resolve.cache_clear()
    simulation = from_optima(network)
    publications = published_by(simulation.node("p0003"))
    simulation.run()
    end = positions(simulation, network.names).double().numpy()
    assert np.abs(end - plain).max() > 1e-3
    assert simulation.node("p0003").snapshot().tensors["coarse/published"] == ROUNDS
    # Every peer mixes with what readers see of it after this stage too: nothing else keeps the mean.
    assert np.abs(end.mean(axis=0) - network.optima().double().numpy().mean(axis=0)).max() < 1e-5
    if codec == "float32":
        values = np.concatenate([np.frombuffer(published.payload, "<f4") for published in publications])
        assert len(values) == ROUNDS * network.dimension
        assert not np.mod(values, GRID).any()
