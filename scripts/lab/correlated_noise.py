"""What noise that cancels between pairs of peers would gain.

    python -m scripts.lab.correlated_noise [--seeds N] [--out FOLDER]

DECOR (Allouah et al., arXiv 2405.01031): beside noise of its own, each peer adds noise to its gradients that it shares
with another peer, with the opposite sign, out of a seed that only the two know. In the mean over peers it cancels; who
reads a single peer, and does not know its seeds, meets all of it. So the noise of its own may be smaller.

Counted here is the strongest reader: it sees every peer's noisy gradient sum in every step, and k members who collude
give it all they know, the seeds shared with them included. What is left is Gaussian noise over the m other peers with
covariance s^2 I + c^2 L, where s is the own noise, c the noise of a pair, and L the Laplacian of who shares seeds with
whom among the m. A row of peer i moves coordinate i alone, and a linear map takes that to one dimension with noise
1 / sqrt((s^2 I + c^2 L)^-1_ii): the subsampled Gaussian, which ``peer.privacy`` counts. The measurement trains softmax
regression on made-up features, as the last layer of a sentence encoder would, with equal promises for all ways.

Nothing of the program uses this; docs/differential-privacy.md says why not.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

from peer.privacy.accounting import noise_multiplier_for
from scripts.lab.records import Value, record_of_table, table_of, value_of, write_record
from scripts.lab.statistics import interval

Matrix = NDArray[np.floating[Any]]
Gradient = Callable[[Matrix, NDArray[np.intp]], Matrix]


def effective_noise(laplacian: Matrix, own: float, pair: float) -> Matrix:
    """Return the standard deviation of the noise that protects each peer, given what all publish.

    Args:
        laplacian: float64[m, m], of who shares seeds with whom among the peers that do not collude.
        own, pair: standard deviations of a peer's own noise, positive, and of the noise of a pair.
    """
    covariance = own**2 * np.eye(len(laplacian)) + pair**2 * laplacian
    found: Matrix = 1 / np.sqrt(np.diag(np.linalg.inv(covariance)))
    return found


def own_noise(laplacian: Matrix, pair: float, wanted: float) -> float:
    """Return the least own noise with which every peer is protected by ``wanted``."""

    def missing(own: float) -> float:
        return float(effective_noise(laplacian, own, pair).min()) - wanted

    if missing(wanted) <= 0:  # nobody shares a seed
        return wanted
    return float(brentq(missing, 1e-3 * wanted, wanted))


def complete(peers: int) -> Matrix:
    """Return the Laplacian of peers of which every two share a seed."""
    return peers * np.eye(peers) - np.ones((peers, peers))


@dataclass(frozen=True)
class Case:
    """What is trained, and under what promise.

    Attributes:
        peers, rows: how many, and rows of each.
        batch: rows that a step takes on average.
        rounds, local_steps: exchanges, and steps between two of them.
        neighbors: read in a round, of a ring lattice; even, or one less than all for the mean of all.
        epsilon, delta: the promise of every peer; epsilon 0 = none, and no noise.
        pair: noise of a pair over the noise that a peer alone would need.
        colluders: members that tell the reader all they know.
        together: one trusted curator has all rows.
        is_adam: Adam, with its usual constants, instead of plain steps.
        lost: share of rounds in which a peer's steps reach nobody, and it begins anew from what it reads.
    """

    peers: int = 8
    rows: int = 450
    batch: int = 64
    rounds: int = 12
    local_steps: int = 5
    neighbors: int = 7
    epsilon: float = 8.0
    delta: float = 1e-5
    pair: float = 0.0
    colluders: int = 0
    together: bool = False
    is_adam: bool = False
    lost: float = 0.0

    def noises(self) -> tuple[float, float]:
        """Return the standard deviations of own noise and of the noise of a pair, over the clip."""
        if not self.epsilon:
            return 0.0, 0.0
        rate, steps = self.batch / self.rows, self.rounds * self.local_steps
        alone = noise_multiplier_for(self.epsilon, self.delta, rate, steps)
        pair = self.pair * alone
        return own_noise(complete(self.peers - self.colluders), pair, alone), pair


TITLE = "Noise that cancels between pairs of peers"
COMMAND = "python -m scripts.lab.correlated_noise --out runs/pairs"
"""That makes the record."""
FEATURES, CLASSES, HELD_OUT = 384, 4, 4000
"""As of MiniLM, and of the task that tells four sources of texts apart."""
DISTANCE = 4.0
"""Of the means of two classes, in standard deviations of a feature; 76 to 94 % are right. Source: tried."""
CLIP = 1.0
RATES = (0.003, 0.03, 0.3, 3.0)
"""Learning rates that are tried. Wide steps do: with features of one length, little depends on the rate."""
TUNING_SEED = 1000
"""Learning rates are chosen on this one, and results are of others."""


def drawn(case: Case, draw: np.random.Generator) -> tuple[Matrix, NDArray[np.intp], Matrix, NDArray[np.intp]]:
    """Return features float64[n, rows, d] and classes of every peer, and held-out ones; features have length 1."""
    means = draw.normal(size=(CLASSES, FEATURES))
    means *= DISTANCE / np.sqrt(2) / np.linalg.norm(means, axis=1, keepdims=True)

    def some(*shape: int) -> tuple[Matrix, NDArray[np.intp]]:
        classes = draw.integers(CLASSES, size=shape)
        features = means[classes] + draw.normal(size=(*shape, FEATURES))
        return features / np.linalg.norm(features, axis=-1, keepdims=True), classes

    return *some(case.peers, case.rows), *some(HELD_OUT)


def clipped_sums(
    weights: Matrix, features: Matrix, classes: NDArray[np.intp], taken: NDArray[np.bool_]
) -> Matrix:
    """Return float64[n, d, c], each peer's sum of clipped gradients of the rows that take part."""
    scores = features @ weights
    errors = np.exp(scores - scores.max(-1, keepdims=True))
    errors /= errors.sum(-1, keepdims=True)
    errors -= np.eye(CLASSES)[classes]
    lengths = np.linalg.norm(errors, axis=-1) * np.linalg.norm(features, axis=-1)
    errors *= (taken * np.minimum(1, CLIP / lengths))[..., None]
    sums: Matrix = features.transpose(0, 2, 1) @ errors
    return sums


def pair_noise(peers: int, shape: tuple[int, ...], draw: np.random.Generator) -> Matrix:
    """Return float64[n, ...]: for each pair standard normal noise, added to one of the two and taken from the other."""
    noise = np.zeros((peers, *shape))
    for one in range(peers):
        for other in range(one):
            shared = draw.normal(size=shape)
            noise[one] += shared
            noise[other] -= shared
    return noise


class Optimizer:
    """Plain steps or Adam, for all peers at once."""

    def __init__(self, rate: float, is_adam: bool, shape: tuple[int, ...]) -> None:
        self._rate, self._is_adam = rate, is_adam
        self._mean, self._square, self._steps = np.zeros(shape), np.zeros(shape), 0

    def step(self, gradient: Matrix) -> Matrix:
        """Return what to add to the weights."""
        if not self._is_adam:
            return -self._rate * gradient
        self._steps += 1
        self._mean = 0.9 * self._mean + 0.1 * gradient
        self._square = 0.999 * self._square + 0.001 * gradient**2
        mean, square = self._mean / (1 - 0.9**self._steps), self._square / (1 - 0.999**self._steps)
        step: Matrix = -self._rate * mean / (np.sqrt(square) + 1e-8)
        return step


def mixing(case: Case) -> Matrix:
    """Return W of a ring lattice with equal weights."""
    if case.neighbors == case.peers - 1:
        return np.full((case.peers, case.peers), 1 / case.peers)
    row = np.zeros(case.peers)
    row[[step % case.peers for step in range(-(case.neighbors // 2), case.neighbors // 2 + 1)]] = 1
    rows: Matrix = np.array([np.roll(row, peer) for peer in range(case.peers)]) / row.sum()
    return rows


def accuracy(case: Case, rate: float, seed: int) -> float:
    """Return the share of held-out rows that the mean of all peers' models gets right after training."""
    draw = np.random.default_rng(seed)
    features, classes, held_out, answers = drawn(case, draw)
    own, pair = case.noises()
    sampling_rate, batch = case.batch / case.rows, float(case.batch)
    if case.together:
        features, classes = features.reshape(1, -1, FEATURES), classes.reshape(1, -1)
        sampling_rate, batch, case = sampling_rate, batch * case.peers, replace(case, peers=1, neighbors=0)
    shape = (case.peers, FEATURES, CLASSES)
    weights, optimizer, w = np.zeros(shape), Optimizer(rate, case.is_adam, shape), mixing(case)
    for _ in range(case.rounds):
        before = weights
        for _ in range(case.local_steps):
            taken = draw.random(classes.shape) < sampling_rate
            sums = clipped_sums(weights, features, classes, taken) + own * CLIP * draw.normal(size=shape)
            if pair:
                sums += pair * CLIP * pair_noise(case.peers, shape[1:], draw)
            weights = weights + optimizer.step(sums / batch)
        gone = draw.random(case.peers) < case.lost
        weights = np.tensordot(w, np.where(gone[:, None, None], before, weights), 1)
    return float((np.argmax(held_out @ weights.mean(0), -1) == answers).mean())


WAYS: dict[str, dict[str, Any]] = {
    "no noise": {"epsilon": 0.0},
    "alone": {"peers": 1, "neighbors": 0},
    "independent noise": {},
    "pairs, 0.5": {"pair": 0.5},
    "pairs, 0.5, 2 collude": {"pair": 0.5, "colluders": 2},
    "pairs, 1": {"pair": 1.0},
    "pairs, 1, 2 collude": {"pair": 1.0, "colluders": 2},
    "independent, 10 % lost": {"lost": 0.1},
    "pairs, 0.5, 10 % lost": {"pair": 0.5, "lost": 0.1},
    "pairs, 1, 10 % lost": {"pair": 1.0, "lost": 0.1},
    "pairs, 1, 4 neighbors": {"pair": 1.0, "neighbors": 4},
    "independent, 4 neighbors": {"neighbors": 4},
    "trusted curator": {"together": True},
}
"""Name -> what distinguishes it."""


def measured(case: Case, seeds: int) -> Value:
    """Return the accuracy over seeds, in percent, with half the width of its interval, at the best learning rate."""
    tried = {rate: accuracy(case, rate, TUNING_SEED) for rate in RATES}
    rate = max(tried, key=lambda one: tried[one])
    return value_of(interval([100 * accuracy(case, rate, seed) for seed in range(seeds)]))


def main(words: Sequence[str] | None = None) -> None:
    """Print a table of the ways, for plain steps and for Adam, and write it as a record."""
    parser = argparse.ArgumentParser(description="Gain of noise that cancels between pairs of peers.")
    parser.add_argument("--epsilon", type=float, nargs="+", default=[8.0, 2.0])
    parser.add_argument("--seeds", type=int, default=5, help="at least 2")
    parser.add_argument("--out", type=Path, help="folder that gets record.json")
    asked = parser.parse_args(words)
    rows: list[list[Value]] = [["epsilon, way", "own noise", "noise of a pair", "plain steps", "Adam"]]
    for epsilon in asked.epsilon:
        for name, difference in WAYS.items():
            case = replace(Case(epsilon=epsilon), **difference)
            accuracies = (measured(replace(case, is_adam=is_adam), asked.seeds) for is_adam in (False, True))
            rows.append([f"{epsilon:g}, {name}", *case.noises(), *accuracies])
    record = record_of_table(TITLE, COMMAND, rows, 1)
    record = replace(record, digits={**record.digits, "own noise": 2, "noise of a pair": 2})
    print("\n".join(table_of(record, {})))
    if asked.out is not None:
        write_record(asked.out / "record.json", record)


if __name__ == "__main__":
    main()
