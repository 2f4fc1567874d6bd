"""Which topology for my case: the catalogue ranked by simulated consensus under the user's own limits.

Every candidate runs linear consensus with the given loss (symmetric drop where W is symmetric, weight to self
elsewhere), so prediction formulas are not trusted where they do not hold. Ranked by seconds under the link model. It
advises on averaging only: how unlike the peers' data are is not asked, and a longer way to consensus may still learn
as well. Asked for liars or colluders, it says what they can reach, and which candidate withstands them. Source: ours.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array

from topology.adversaries import (
    GUARDED_READS,
    ColluderExposure,
    LiarExposure,
    borne,
    colluder_exposure,
    liar_exposure,
)
from topology.analysis import consensus_cost
from topology.consensus import ConsensusRun, of_topology, run_consensus
from topology.cost import LinkModel
from topology.edges import undirected
from topology.errors import TopologyError
from topology.links import Topology, parse_topology
from topology.loss import LOSS_RULES, Arcs
from topology.structure import remove_nodes

ROUNDS_MAX = 3000
"""Rounds after which a candidate counts as too slow. Source: guess."""
DRAWS = 5
"""Draws of loss and start values per candidate; the median counts. Source: ours: with one draw, a schedule of 6 rounds
that happened to lose nothing beat everything. Odd, so that a median is one of them."""
VALUES = 32
"""Values averaged at once, so that the start is generic. Source: guess."""
ROUNDS_LOOKED_AT = 10
"""Rounds over which liars and colluders meet rows that change. Source: ours, the rounds of a short run."""


@dataclass(frozen=True, slots=True)
class Adversaries:
    """What the group must withstand; 0 = not asked.

    Args:
        liars: peers that send what harms.
        colluders: peers that share what they read.
        rounds: looked at where rows change.
    """

    liars: int = 0
    colluders: int = 0
    rounds: int = ROUNDS_LOOKED_AT


@dataclass(frozen=True, slots=True)
class Advice:
    """One candidate, measured.

    Args:
        name: as ``parse_topology`` reads it.
        rounds: until the consensus distance fell below the tolerance, the median of ``DRAWS`` draws.
        bytes_per_peer: read by each on average until then.
        bytes_busiest: read or sent by the busiest until then.
        seconds: until then, under the link model.
        mean_error: by how much the agreed value misses the true mean, relative to the first consensus distance.
        connected_share: share of survivors that still reach each other (within a sweep) at the moment when ``churn`` of
            the peers vanish.
        reason: one sentence.
        liars, colluders: what they can reach, if that was asked.
    """

    name: str
    rounds: int
    bytes_per_peer: float
    bytes_busiest: float
    seconds: float
    mean_error: float
    connected_share: float
    reason: str
    liars: LiarExposure | None = None
    colluders: ColluderExposure | None = None


def candidates(n: int, degree_max: int, against: Adversaries = Adversaries()) -> dict[str, str]:
    """Return names that may fit and why one would take them; impossible or too wide ones are sorted out later."""
    regular = min(degree_max, n - 1)
    regular -= n * regular % 2
    epidemic = min(degree_max, n - 1)
    found = {
        "complete": "everyone reads everyone, which is exact at once and the most traffic",
        "star": "few hops, but the hub carries everything and ends it all when it leaves",
        "ring": "the least that keeps everyone joined, and the slowest of all regular graphs",
        "torus": "a ring in two directions: local, symmetric, noticeably faster than a ring",
        "hypercube": "logarithmic degree and distance with the best spectrum of the fixed graphs",
        "exponential": "logarithmic degree, directed, fast; lost messages move its mean",
        f"random-regular:{regular}": "nearly as good as any graph of its degree, and every peer looks alike",
        "one-peer-exponential": "one read a round; exact in one sweep only where the number of peers is a power of two",
        "base:1": "one partner a round and yet the exact average at any number of peers, while nothing is lost",
        f"base:{degree_max}": "the exact average after a few rounds at any number of peers, while nothing is lost",
        "random-matching": "one partner a round, drawn afresh: robust, symmetric, steady",
        f"epidemic:{epidemic}": "needs no agreement on who is there, so churn hurts it least; the mean drifts a little",
        f"epidemic-oracle:{epidemic}": "fresh random neighbors with exact column sums; all must agree on who is there",
    }
    guarded = [reads for reads in _guarded_reads(against) if reads <= epidemic]
    for reads in guarded:
        found.setdefault(
            f"random-regular:{reads}",
            f"a fixed graph with rows of {reads}, from which trim-clip drops {borne(reads)}",
        )
        if against.liars:
            found.setdefault(
                f"epidemic:{reads}",
                f"rows of {reads} drawn afresh, from which trim-clip drops {borne(reads)}",
            )
    return found


def _guarded_reads(against: Adversaries) -> list[int]:
    """Return the fewest reads of which trim-clip drops 1, 2, ... up to all liars; masks want at least 4 too."""
    if not (against.liars or against.colluders):
        return []
    return [GUARDED_READS, *(4 * dropped - 3 for dropped in range(2, against.liars + 1))]


def advise(
    n: int,
    *,
    degree_max: int,
    payload_bytes: float,
    link: LinkModel,
    loss: float = 0.0,
    churn: float = 0.0,
    tolerance: float = 1e-3,
    seed: int = 0,
    against: Adversaries = Adversaries(),
) -> list[Advice]:
    """Rank the catalogue for one case, fastest first.

    Args:
        n: peers, >= 2.
        degree_max: most peers that one may read in one round, >= 1.
        payload_bytes: of one adapter as it travels.
        link: latencies and bandwidths.
        loss: probability that one message is lost, in [0, 1).
        churn: share of peers that may vanish at once, in [0, 1).
        tolerance: consensus distance to reach, relative to the first.
        against: liars and colluders, if they are to be looked at.

    Raises:
        TopologyError: a number out of range, or nothing in the catalogue fits the degree.
    """
    _check(n, degree_max, loss, churn, against)
    ranked: list[Advice] = []
    for text, why in candidates(n, degree_max, against).items():
        topology = _possible(text, n, degree_max, seed)
        if topology is None:
            continue
        runs = [_simulate(topology, n, loss, tolerance, seed + draw) for draw in range(DRAWS)]
        reached = sorted(
            (rounds, draw) for draw, run in enumerate(runs) if (rounds := run.rounds_to(tolerance))
        )
        if 2 * len(reached) <= DRAWS:
            continue
        rounds, middle = reached[DRAWS // 2]
        outcome = runs[middle]
        total, busiest, seconds = consensus_cost(topology, n, rounds, payload_bytes, link)
        error = float(outcome.drift[-1] / outcome.distance[0])
        share = _connected_share(topology, n, churn, seed)
        reason = f"{topology.name}: {why}; here {rounds} rounds, {seconds:.3g} s"
        ranked.append(
            Advice(
                *(topology.name, rounds, total / n, busiest, seconds, error, share, reason),
                *_exposures(topology, n, against, seed),
            )
        )
    if not ranked:
        raise TopologyError(
            f"no topology reaches a consensus distance of {tolerance:g} with {n} peers, at most {degree_max} reads and "
            f"{loss:.0%} loss within {ROUNDS_MAX} rounds; allow more reads a round"
        )
    return sorted(ranked, key=lambda advice: (advice.seconds, advice.bytes_per_peer, advice.name))


def _check(n: int, degree_max: int, loss: float, churn: float, against: Adversaries) -> None:
    if n < 2 or degree_max < 1:
        raise TopologyError(
            f"advice needs at least 2 peers and a degree of at least 1, not {n} and {degree_max}"
        )
    for name, value in (("loss", loss), ("churn", churn)):
        if not 0.0 <= value < 1.0:
            raise TopologyError(f"{name} must be from 0 to below 1, not {value!r}")
    for name, count in (("liars", against.liars), ("colluders", against.colluders)):
        if not 0 <= count < n:
            raise TopologyError(f"{name} must be from 1 to {n - 1} of {n} peers, not {count}")


def _exposures(
    topology: Topology, n: int, against: Adversaries, seed: int
) -> tuple[LiarExposure | None, ColluderExposure | None]:
    """Return what the adversaries can reach, None where they were not asked for."""
    rounds, liars, colluders = against.rounds, against.liars, against.colluders
    return (
        liar_exposure(topology, n, liars, rounds=rounds, seed=seed) if liars else None,
        colluder_exposure(topology, n, colluders, rounds=rounds, seed=seed) if colluders else None,
    )


def _possible(text: str, n: int, degree_max: int, seed: int) -> Topology | None:
    """Return the topology where it exists for n and nobody reads too many; None otherwise, which is no error here."""
    try:
        topology = parse_topology(text, seed=seed)
        topology.check(n)
    except TopologyError:  # a candidate that does not exist for n is one fewer to rank
        return None
    sweep = range(topology.period(n) or 8)
    widest = max(int(np.bincount(topology.edges(n, t)[:, 0], minlength=1).max(initial=0)) for t in sweep)
    return topology if widest <= degree_max else None


def _simulate(topology: Topology, n: int, loss: float, tolerance: float, seed: int) -> ConsensusRun:
    """Run linear consensus with messages lost as the wire would lose them."""
    values = np.random.default_rng((seed, 1)).standard_normal((n, VALUES))
    rounds = of_topology(topology, n)
    if loss == 0.0:
        return run_consensus(rounds, values, ROUNDS_MAX, tolerance=tolerance)
    drop = LOSS_RULES["symmetric-drop" if topology.is_symmetric else "to-self"]

    def lossy_rounds(round: int) -> csr_array:
        arcs = Arcs.of(rounds(round))
        return drop(arcs, np.random.default_rng((seed, 2, round)).random(len(arcs.reverse)) >= loss)

    return run_consensus(lossy_rounds, values, ROUNDS_MAX, tolerance=tolerance)


def _connected_share(topology: Topology, n: int, churn: float, seed: int) -> float:
    """Remove peers from the union of one sweep (16 rounds of a random schedule); mean over 8 draws."""
    gone = min(round(churn * n), n - 1)
    if gone == 0:
        return 1.0
    union = undirected(np.concatenate([topology.edges(n, t) for t in range(topology.period(n) or 16)]))
    return float(np.mean([remove_nodes(n, union, gone, seed=seed + draw).largest_share for draw in range(8)]))
