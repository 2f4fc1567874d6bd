"""Push-sum with running counters between peers: exact over one-way links under any loss, and not credulous."""

import math
import random
from dataclasses import dataclass
from typing import cast

import pytest
import torch
from torch import Tensor

from gossip.adapter import AdapterSpec, AdapterState
from gossip.methods import push_sum
from gossip.methods.contribution import Contribution
from gossip.methods.requirements import State
from topology.links import parse_topology

# Irregular, directed and strongly connected: a circle of 7 with shortcuts. arcs[i] = whom i reads.
IRREGULAR = {
    i: sorted({(i - 1) % 7, *([0] if i in (2, 4, 5) else []), *([3] if i == 1 else [])}) for i in range(7)
}


@dataclass(frozen=True, eq=False)
class Values:
    """An adapter in any precision."""

    spec: AdapterSpec
    flat: Tensor


def adapter(flat: Tensor) -> AdapterState:
    return cast("AdapterState", Values(AdapterSpec((("x", (flat.numel(),)),)), flat))


class Network:
    """Peers that read each other in lock step; ``x`` is what each has after a round."""

    def __init__(self, reads: dict[int, list[int]], start: Tensor, seed: int = 0) -> None:
        self.reads, self.x, self.random = reads, start.clone(), random.Random(seed)
        self.readers = [sum(j in read for read in reads.values()) for j in reads]
        self.states: list[State] = [push_sum.init(own) for own in start]
        self.last: list[Tensor] = []

    def round(self, loss: float = 0.0, moved: Tensor | None = None) -> None:
        trained = self.x if moved is None else self.x + moved
        self.last = []
        for i in self.reads:
            vector, self.states[i] = push_sum.publish(trained[i], self.readers[i], self.states[i])
            self.last.append(vector)
        self.x = torch.stack([self._mix(i, loss) for i in self.reads])

    def _mix(self, i: int, loss: float) -> Tensor:
        others = []
        for j in self.reads[i]:
            if self.random.random() >= loss:
                values, weight, self.states[i] = push_sum.read(f"p{j}", self.last[j], 0.3, self.states[i])
                others.append(Contribution(f"p{j}", adapter(values), weight, 0, 0))
        mixed, self.states[i] = push_sum.mix(others, self.states[i])
        return mixed

    def totals(self) -> tuple[Tensor, float]:
        """Return all of x and w: what peers hold, and what was given and not yet read."""
        x = torch.stack([state["x"] for state in self.states]).sum(dim=0)
        w = sum(float(state["w"]) for state in self.states)
        for i, read in self.reads.items():
            for j in read:
                given = self.states[j]["given"]
                missing = given - self.states[i].get(f"read/p{j}", torch.zeros_like(given))
                x, w = x + missing[:-2], w + float(missing[-2])
        return x, w


def normal(n: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(n, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)


def reads_of(topology: str, n: int) -> dict[int, list[int]]:
    matrix = parse_topology(topology, seed=0).matrix(n).toarray()
    return {i: [j for j in range(n) if j != i and matrix[i, j]] for i in range(n)}


@pytest.mark.parametrize("reads", [IRREGULAR, reads_of("exponential", 12)], ids=["irregular", "exponential"])
@pytest.mark.parametrize("loss", [0.0, 0.3])
def test_the_limit_is_the_exact_mean_under_loss(reads: dict[int, list[int]], loss: float) -> None:
    start = normal(len(reads))
    network = Network(reads, start)
    for _ in range(300):
        network.round(loss)
    assert float((network.x - start.mean(dim=0)).abs().max()) < 1e-10


@pytest.mark.parametrize("loss", [0.0, 0.3])
def test_amounts_and_masses_are_conserved_in_every_round(loss: float) -> None:
    start = normal(7)
    network = Network(IRREGULAR, start)
    for _ in range(40):
        network.round(loss)
        x, w = network.totals()
        torch.testing.assert_close(x, start.sum(dim=0), atol=1e-10, rtol=0)
        assert w == pytest.approx(7, abs=1e-10)


def test_renormalized_rows_drift_where_push_sum_does_not() -> None:
    """The negative control: averages over whatever came end somewhere else, even without loss."""
    x = normal(7)
    mean, draw = x.mean(dim=0), random.Random(0)
    for _ in range(300):
        rows = [[i, *(j for j in IRREGULAR[i] if draw.random() >= 0.3)] for i in range(7)]
        x = torch.stack([x[row].mean(dim=0) for row in rows])
    assert float((x - x[0]).abs().max()) < 1e-8
    assert float((x[0] - mean).abs().max()) > 0.05


def test_local_steps_move_the_mean_by_their_mean() -> None:
    """SGP: a step is added to the amount, whatever mass a peer has."""
    reads = reads_of("exponential", 7)
    start, moved = normal(7), 0.1 * normal(7).flip(0)
    network = Network(reads, start)
    for _ in range(20):
        network.round(0.05, moved)
        assert min(float(state["w"]) for state in network.states) > push_sum.MASS_MIN
    x, _ = network.totals()
    torch.testing.assert_close(x, (start + 20 * moved).sum(dim=0), atol=1e-10, rtol=0)
    for _ in range(300):
        network.round(0.3)
    assert float((network.x - (start + 20 * moved).mean(dim=0)).abs().max()) < 1e-10


def test_whoever_hears_of_nobody_goes_on_at_a_bounded_pace() -> None:
    """All messages lost: mass does not run out, and a round moves the adapter by no more than four of its steps."""
    network = Network(IRREGULAR, normal(7))
    moved = torch.full((7, 3), 0.1, dtype=torch.float64)
    for _ in range(50):
        before = network.x
        network.round(1.0, moved)
        assert float((network.x - before).abs().max()) <= 0.4 + 1e-9
    assert min(float(state["w"]) for state in network.states) > 0.01
    assert network.totals()[1] == pytest.approx(7, abs=1e-10)


def test_float32_on_the_wire_loses_nothing_for_good() -> None:
    """What rounding a running sum takes off stays with the sender: errors do not add up."""
    start = normal(7, torch.float32)
    network = Network(IRREGULAR, start)
    for _ in range(600):
        network.round(0.1)
    assert network.x.dtype == torch.float32
    assert network.totals()[1] == pytest.approx(7, abs=1e-4)  # what is read is rounded to float32 too
    assert float((network.x.double() - start.double().mean(dim=0)).abs().max()) < 1e-4


def test_reading_twice_or_nothing_new_changes_nothing() -> None:
    network = Network(IRREGULAR, normal(7))
    network.round()
    before = network.states[1]
    values, weight, after = push_sum.read("p0", network.last[0], 0.3, before)
    assert weight == 0.0
    assert after is before
    torch.testing.assert_close(values, network.x[1])


@pytest.mark.parametrize("mass", [math.nan, math.inf, -1.0, 2 * push_sum.MASS_MAX])
def test_a_mass_that_no_honest_peer_sends_becomes_nan_for_the_guards(mass: float) -> None:
    network = Network(IRREGULAR, normal(7))
    network.round()
    state = network.states[1]
    vector = network.last[0].clone()
    vector[-2], vector[-1] = network.last[0][-2] + mass, 2
    values, _, after = push_sum.read("p0", vector, 0.3, state)
    assert values.isnan().all()
    assert after is state


def test_what_the_guards_drop_is_not_mixed_later() -> None:
    network = Network(IRREGULAR, normal(7))
    network.round()
    own = network.x[1]
    vector, state = push_sum.publish(own, 1, network.states[1])
    _, sender = push_sum.publish(network.x[0], network.readers[0], network.states[0])
    _, _, state = push_sum.read("p0", sender["given"], 0.3, state)
    for _ in range(2):
        mixed, state = push_sum.mix([], state)
        torch.testing.assert_close(mixed, network.x[1])
    assert not any(name.startswith("mass/") for name in state)
    assert vector.numel() == own.numel() + push_sum.EXTRA


def test_a_newcomer_does_not_take_what_was_given_before_it_came() -> None:
    network = Network(IRREGULAR, normal(7))
    for _ in range(push_sum.LEAD_MAX + 2):
        network.round()
    own = torch.zeros(3, dtype=torch.float64)
    _, state = push_sum.publish(own, 1, push_sum.init(own))
    _, weight, state = push_sum.read("p0", network.last[0], 0.3, state)
    assert weight == 0.0
    held = float(network.states[0]["w"])
    network.round()
    _, weight, state = push_sum.read("p0", network.last[0], 0.3, state)
    assert weight == 0.3
    assert float(state["mass/p0"]) == pytest.approx(held / (network.readers[0] + 1))


def test_a_sender_that_lost_its_state_is_counted_from_zero() -> None:
    network = Network(IRREGULAR, normal(7))
    for _ in range(5):
        network.round()
    again = torch.ones(3, dtype=torch.float64)
    vector, _ = push_sum.publish(again, network.readers[0], push_sum.init(again))
    values, _, state = push_sum.read("p0", vector, 0.3, network.states[1])
    torch.testing.assert_close(values, again)
    assert float(state["mass/p0"]) == pytest.approx(1 / (network.readers[0] + 1))


def test_of_peers_that_have_gone_a_number_is_kept_and_nothing_is_counted_twice() -> None:
    network = Network(IRREGULAR, normal(7))
    network.round()
    state = push_sum.forget("p0", network.states[1])
    assert "read/p0" not in state
    assert state["gone/p0"].numel() == 1
    network.round()
    _, weight, state = push_sum.read("p0", network.last[0], 0.3, state)  # back: its sums are the new baseline
    assert weight == 0.0
    assert "gone/p0" not in state
    held = float(network.states[0]["w"])
    network.round()
    _, weight, state = push_sum.read("p0", network.last[0], 0.3, state)
    assert float(state["mass/p0"]) == pytest.approx(held / (network.readers[0] + 1))


def test_a_peer_that_comes_back_without_its_state_is_counted_from_zero() -> None:
    network = Network(IRREGULAR, normal(7))
    for _ in range(5):
        network.round()
    again = torch.ones(3, dtype=torch.float64)
    vector, _ = push_sum.publish(again, network.readers[0], push_sum.init(again))
    _, weight, state = push_sum.read("p0", vector, 0.3, push_sum.forget("p0", network.states[1]))
    assert weight == 0.3
    assert float(state["mass/p0"]) == pytest.approx(1 / (network.readers[0] + 1))


def test_however_many_come_and_go_the_state_stays_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(push_sum, "GONE_MAX", 20)
    state = push_sum.init(torch.zeros(3))
    for number in range(2 * push_sum.GONE_MAX):
        _, _, state = push_sum.read(f"p{number}", torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0]), 0.3, state)
        _, state = push_sum.mix([], push_sum.forget(f"p{number}", state))
    assert len(state) == 3 + push_sum.GONE_MAX
