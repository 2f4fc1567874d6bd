"""Attacks: the answers known from their papers, and what each of them promises to whom."""

from __future__ import annotations

from dataclasses import replace
from statistics import fmean

import numpy as np
import pytest

from gossip.attacks import ATTACKS, Sight, alie_z
from gossip.byzantine import Cheater, Surroundings
from gossip.errors import LocalError
from gossip.fault_kinds import BEHAVIORS, Byzantine
from gossip.faults import Fault, schedule
from gossip.published import PublishedAdapter
from gossip.quadratic import Quadratic, positions
from gossip.simulated_faults import NewLife, SimulatedFaults

DRAW = np.random.default_rng(7)
HONEST = DRAW.standard_normal((5, 6))
SIGHT = Sight(
    own=DRAW.standard_normal(6),
    start=DRAW.standard_normal(6),
    first=DRAW.standard_normal(6),
    reader=HONEST[0],
    honest=HONEST,
    row=HONEST[1:4],
    weights=np.array([0.1, 0.2, 0.3]),
    lying=0.25,
    seed="seed/3",
    to_whom="reader",
)


def lie(name: str, factor: float = 0.0, sight: Sight = SIGHT) -> np.ndarray:
    attack = ATTACKS[name]
    return attack.lie(sight, factor or attack.usual)


@pytest.mark.parametrize(
    ("peers", "liars", "z"),
    [(11, 2, 0.1397), (16, 3, 0.0966), (16, 5, 0.3488), (50, 24, 1.426), (10, 2, 0.0)],
)
def test_alie_takes_the_factor_of_its_paper(peers: int, liars: int, z: float) -> None:
    assert alie_z(peers, liars) == pytest.approx(z, abs=6e-4)


def test_dissensus_freezes_a_reader_that_averages_plainly() -> None:
    """x_i + sum_H w (x_j - x_i) + sum_B w (z - x_i) = x_i."""
    z = lie("dissensus", 1.0)
    kept = 1.0 - SIGHT.weights.sum() - SIGHT.lying
    mixed = kept * SIGHT.reader + SIGHT.weights @ SIGHT.row + SIGHT.lying * z
    np.testing.assert_allclose(mixed, SIGHT.reader, atol=1e-15)


def test_sign_scale_and_ipm_turn_what_was_learned() -> None:
    learned = SIGHT.own - SIGHT.start
    np.testing.assert_allclose(lie("sign", 2.0) - SIGHT.start, -2 * learned)
    np.testing.assert_allclose(lie("scale", 3.0) - SIGHT.start, 3 * learned)
    assert (lie("ipm", 0.1) - SIGHT.start) @ (HONEST.mean(axis=0) - SIGHT.start) < 0


def test_alie_stays_among_the_honest_and_drift_as_near_as_the_nearest() -> None:
    np.testing.assert_allclose(lie("alie", 1.0), HONEST.mean(axis=0) - HONEST.std(axis=0))
    nearest = np.linalg.norm(SIGHT.row - SIGHT.reader, axis=1).min()
    one, later = lie("drift"), lie("drift", sight=replace(SIGHT, seed="seed/9", reader=HONEST[4]))
    assert np.linalg.norm(one - SIGHT.reader) == pytest.approx(nearest)
    way, later_way = one - SIGHT.reader, later - HONEST[4]
    assert way @ later_way == pytest.approx(np.linalg.norm(way) * np.linalg.norm(later_way))
    assert way @ (SIGHT.first - SIGHT.start) < 0  # against what it learned first


def test_who_equivocates_tells_each_reader_something_else_and_the_others_all_the_same() -> None:
    other = replace(SIGHT, to_whom="another")
    assert not np.array_equal(lie("equivocate"), lie("equivocate", sight=other))
    assert np.array_equal(lie("noise"), lie("noise", sight=other))
    assert np.linalg.norm(lie("noise", 2.0) - SIGHT.own) == pytest.approx(2 * np.linalg.norm(SIGHT.own))


@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_is_deterministic_and_knows_what_to_do_alone(name: str) -> None:
    assert np.array_equal(lie(name), lie(name))
    nobody = replace(SIGHT, honest=HONEST[:0], row=HONEST[:0], weights=np.zeros(0), reader=SIGHT.own)
    assert lie(name, sight=nobody).shape == (6,)
    assert np.isfinite(lie(name, sight=nobody)).all()


@pytest.mark.parametrize("behavior", sorted(set(BEHAVIORS) - {"replay", "silent"}))
def test_a_cheater_sends_what_its_attack_says(behavior: str) -> None:
    own, start, honest = (DRAW.standard_normal(4).astype("<f4") for _ in range(3))
    around = Surroundings(start.astype(float), {"a": honest.astype(float)}, {"a": 0.25, "liar": 0.5})
    published = PublishedAdapter(3, 1, "float32", own.tobytes())
    answer = Cheater(Byzantine(behavior=behavior), "s", lambda *_: around).answer("r", published)
    assert answer is not None
    sight = Sight(
        own=own, start=start, first=own, reader=own, honest=honest[None], row=honest[None], seed="s/3", to_whom="r",
        weights=np.array([0.25]), lying=0.5,
    )  # fmt: skip
    exact = replace(sight, **{name: np.asarray(getattr(sight, name), float) for name in
                              ("own", "start", "first", "reader", "honest", "row")})  # fmt: skip
    assert answer.payload == lie(behavior, sight=exact).astype("<f4").tobytes()


def test_values_of_other_codecs_cannot_be_changed() -> None:
    with pytest.raises(LocalError, match="sign with codec float32 only"):
        Cheater(Byzantine(behavior="sign"), "s").answer("r", PublishedAdapter(0, 1, "int8", bytes(9)))


def loss(network: Quadratic, *behaviors: str) -> tuple[float, float]:
    """Let p0000 and p0005 of ten cheat by each of the behaviors; return the honest mean loss before and after it."""
    liars = ("p0000", "p0005")
    honest = [name for name in network.names if name not in liars]
    losses = []
    for behavior in ("", *behaviors):
        simulation = network.simulation()
        faults = [Fault(kind=Byzantine(behavior=behavior), who=liars)] if behavior else []
        SimulatedFaults(
            simulation,
            schedule(faults, network.names, 0),
            lambda peer, checkpoint: NewLife(network.make_node(peer), None),
        )
        simulation.run()
        optimum = network.optima().mean(dim=0)
        losses.append(fmean((positions(simulation, honest) - optimum).square().sum(dim=1).tolist()))
    return losses[0], losses[1]


@pytest.mark.parametrize("behavior", ["sign", "scale", "noise", "ipm", "stale", "dissensus", "equivocate"])
def test_what_is_called_an_attack_does_harm_where_nothing_is_guarded(behavior: str) -> None:
    """On quadratics whose optima lie near to each other."""
    network = Quadratic(peers=10, rounds=10, topology="random-regular:4", heterogeneity=0.1, train_jitter=0.0)
    clean, attacked = loss(network, behavior)
    assert attacked > 1.5 * clean
