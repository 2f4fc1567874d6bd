"""How rows are shared out among peers: by label, size, class, group or time. Seeded; each row goes to exactly one peer.

All draws come from ``topology.draws``, so that equal arguments give equal parts on every machine and nobody has to tell
anybody. It knows rows by number and label alone, neither text nor files. Which are worth comparing: algorithms.md,
section 6. The catalogue stands at the foot.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaincinv, ndtri

from gossip.errors import LocalError
from gossip.methods.catalogue import Entry, find
from topology.draws import Draws
from topology.parameters import Parameter, Value, whole

Rows = NDArray[np.int64]
"""Row numbers, int64[rows]; those of one peer ascend."""

Partitioner = Callable[[Sequence[str], int, int], list[Rows]]
"""(label or group of each row, number of peers, seed) -> rows of each peer."""

ROWS_MIN = 4
"""Fewest rows a peer is left with. Source: guess; a peer holds out one of them, and one row is not a batch."""

REDRAWS_MAX = 20
"""So often a Dirichlet split that leaves a peer too few rows is drawn anew before rows are moved. Source: guess;
redrawing keeps the law (among splits that are large enough), moving does not."""


def parse_partitioner(text: str) -> Partitioner:
    """Return what ``text``, such as ``"dirichlet:0.3"``, names.

    Raises:
        LocalError: unknown, or a bad parameter; says what would be valid.
    """
    return find("partitioner", text, PARTITIONERS)


# -- the partitioners


def iid() -> Partitioner:
    """All rows shuffled and dealt out: peers' rows differ in number by at most one."""
    return lambda labels, peers, seed: _cut_evenly(
        _order(len(labels), "iid", seed), _check(len(labels), peers)
    )


def quantity(sigma: float = 1.0) -> Partitioner:
    """Shuffled rows in log-normal numbers: exp(sigma z), z normal. The label mix stays alike.

    Args:
        sigma: standard deviation of the logarithm of the number, above 0; at 1, one peer in six has more than e times
            the median.
    """

    def partition(labels: Sequence[str], peers: int, seed: int) -> list[Rows]:
        rows = len(labels)
        _check(rows, peers)
        sizes = np.exp(sigma * ndtri(_open(Draws("quantity", seed, rows, peers).uniform(peers))))
        return _repaired(_cut(_order(rows, "quantity", seed), sizes / sizes.sum()), labels)

    return partition


def dirichlet(alpha: float = 0.3) -> Partitioner:
    """Each class goes to the peers in shares p ~ Dir(alpha, ..., alpha) of its own (Hsu et al., arXiv 1909.06335).

    Args:
        alpha: above 0; large = every peer has the global mix, near 0 = each class lies at one peer.
    """

    def draw(labels: Sequence[str], peers: int, seed: int, attempt: int) -> list[Rows]:
        pieces: list[list[Rows]] = [[] for _ in range(peers)]
        for label, rows in _by_label(labels).items():
            draws = Draws("dirichlet", seed, attempt, label, len(labels), peers)
            shuffled = rows[draws.permutation(len(rows))]
            for peer, piece in enumerate(_cut(shuffled, dirichlet_shares(draws, alpha, peers))):
                pieces[peer].append(piece)
        return _joined(pieces)

    def partition(labels: Sequence[str], peers: int, seed: int) -> list[Rows]:
        _check(len(labels), peers)
        for attempt in range(REDRAWS_MAX):
            drawn = draw(labels, peers, seed, attempt)
            if min(map(len, drawn)) >= ROWS_MIN:
                return drawn
        return _repaired(drawn, labels)

    return partition


def pathological(classes: int = 2) -> Partitioner:
    """Each peer has rows of so many classes only (McMahan et al., arXiv 1602.05629, section 3).

    Classes are dealt out in a seeded cycle, and a class is cut evenly among the peers that have it.

    Raises (when applied):
        LocalError: peers times ``classes`` is below the number of classes: some would be nobody's.
    """

    def partition(labels: Sequence[str], peers: int, seed: int) -> list[Rows]:
        _check(len(labels), peers)
        groups = _by_label(labels)
        names = list(groups)
        per_peer = min(classes, len(names))
        if peers * per_peer < len(names):
            raise LocalError(
                f"partition pathological:{classes}: {peers} peers with {classes} of {len(names)} classes each leave "
                f"some to nobody. Give at least {-(-len(names) // peers)} classes to a peer, or more peers."
            )
        cycle = _order(len(names), "pathological classes", seed)
        owners: dict[str, list[int]] = {name: [] for name in names}
        for slot in range(peers * per_peer):
            owners[names[cycle[slot % len(names)]]].append(slot // per_peer)
        pieces: list[list[Rows]] = [[] for _ in range(peers)]
        for name, rows in groups.items():
            shuffled = rows[_order(len(rows), f"pathological {name}", seed)]
            for peer, piece in zip(owners[name], _cut_evenly(shuffled, len(owners[name])), strict=True):
                pieces[peer].append(piece)
        return _repaired(_joined(pieces), labels)

    return partition


def natural() -> Partitioner:
    """Groups stay whole: peer i has groups i, i + n, ... in sorted order; with fewer groups than peers, the peers i,
    i + G, ... share group i evenly."""

    def partition(labels: Sequence[str], peers: int, seed: int) -> list[Rows]:
        _check(len(labels), peers)
        groups = list(_by_label(labels).values())
        pieces: list[list[Rows]] = [[] for _ in range(peers)]
        for index, rows in enumerate(groups):
            owners = list(range(index, peers, len(groups))) or [index % peers]
            shuffled = rows[_order(len(rows), f"natural {index}", seed)]
            for peer, piece in zip(owners, _cut_evenly(shuffled, len(owners)), strict=True):
                pieces[peer].append(piece)
        return _repaired(_joined(pieces), labels)

    return partition


def temporal() -> Partitioner:
    """Rows in their own order, cut into windows: peer i has the i-th, so what it learned ages as the text changes."""
    return lambda labels, peers, seed: _cut_evenly(np.arange(len(labels)), _check(len(labels), peers))


# -- how uneven a split is


class Heterogeneity(NamedTuple):
    """How far peers' label mixes lie from the mix of all rows.

    Args:
        total_variation: mean over the peers of half the L1 distance, 0 to 1.
        jensen_shannon: mean over the peers of the square root of the divergence in bits, 0 to 1.
        sizes: rows of each peer.
    """

    total_variation: float
    jensen_shannon: float
    sizes: tuple[int, ...]


def heterogeneity(labels: Sequence[str], rows_of_peers: Sequence[Rows]) -> Heterogeneity:
    """Measure a split of rows with ``labels``; peers count alike, however many rows they have, but none may have none.

    Args:
        labels: of all rows.
        rows_of_peers: the rows of each peer.
    """
    _, codes = np.unique(np.asarray(labels, dtype=str), return_inverse=True)
    classes = int(codes.max()) + 1
    mixes = np.stack(
        [np.bincount(codes[rows], minlength=classes) / len(rows) for rows in rows_of_peers]
    )  # [n, classes]
    whole_mix = np.bincount(codes, minlength=classes) / len(codes)
    middle = (mixes + whole_mix) / 2
    divergence = _entropy(middle) - (_entropy(mixes) + _entropy(whole_mix)) / 2
    return Heterogeneity(
        total_variation=float(np.abs(mixes - whole_mix).sum(axis=-1).mean() / 2),
        jensen_shannon=float(np.sqrt(np.maximum(divergence, 0.0)).mean()),
        sizes=tuple(len(rows) for rows in rows_of_peers),
    )


def _entropy(mix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the entropy along the last axis, bits."""
    terms: NDArray[np.float64] = np.where(mix > 0, mix * np.log2(np.where(mix > 0, mix, 1.0)), 0.0)
    entropy: NDArray[np.float64] = -terms.sum(axis=-1)
    return entropy


# -- what they are made of


def dirichlet_shares(draws: Draws, alpha: float, count: int) -> NDArray[np.float64]:
    """Return float64[count] ~ Dir(alpha, ..., alpha): normalized gamma variates.

    In logarithms, by Gamma(alpha) = Gamma(alpha + 1) U^(1/alpha) (Devroye 1986, IX.3), because for small alpha all
    variates themselves would be 0.
    """
    logs = (
        np.log(gammaincinv(alpha + 1, _open(draws.uniform(count))))
        + np.log(_open(draws.uniform(count))) / alpha
    )
    weights = np.exp(logs - logs.max())
    shares: NDArray[np.float64] = weights / weights.sum()
    return shares


def _order(count: int, purpose: str, seed: int) -> Rows:
    return Draws(purpose, seed, count).permutation(count)


def _open(uniform: NDArray[np.float64]) -> NDArray[np.float64]:
    """Move uniform numbers off 0, whose logarithm and quantile are infinite."""
    return np.maximum(uniform, 2.0**-54)


def _by_label(labels: Sequence[str]) -> dict[str, Rows]:
    """Return the rows of each label, labels in sorted order."""
    names, codes = np.unique(np.asarray(labels, dtype=str), return_inverse=True)
    return {str(name): np.flatnonzero(codes == code) for code, name in enumerate(names)}


def _cut(rows: Rows, shares: NDArray[np.float64]) -> list[Rows]:
    """Cut ``rows`` into pieces of the given shares (which sum to 1), each within one row of its share."""
    ends = np.rint(np.cumsum(shares) * len(rows)).astype(np.int64)
    return [np.sort(piece) for piece in np.split(rows, ends[:-1])]


def _cut_evenly(rows: Rows, count: int) -> list[Rows]:
    """Cut ``rows`` into so many pieces, which differ in size by at most one."""
    return _cut(rows, np.full(count, 1 / count))


def _joined(pieces: Sequence[Sequence[Rows]]) -> list[Rows]:
    """Return the rows of each peer, of which it has at least one piece."""
    return [np.sort(np.concatenate(pieces_of_peer)) for pieces_of_peer in pieces]


def _check(rows: int, peers: int) -> int:
    """Return ``peers``, if there are rows enough for so many."""
    if peers < 1 or rows < peers * ROWS_MIN:
        raise LocalError(
            f"{rows} rows are too few for {peers} peers with at least {ROWS_MIN} each: give more text, or fewer peers"
        )
    return peers


def _repaired(rows_of_peers: Sequence[Rows], labels: Sequence[str]) -> list[Rows]:
    """Move rows from who has most to who has too few, each time the last row of the giver's commonest label."""
    repaired = [list(map(int, rows)) for rows in rows_of_peers]
    for short in repaired:
        while len(short) < ROWS_MIN:
            giver = max(repaired, key=len)
            held = [labels[row] for row in giver]
            commonest = max(sorted(set(held)), key=held.count)
            short.append(giver.pop(len(held) - 1 - held[::-1].index(commonest)))
    return [np.sort(np.asarray(rows, dtype=np.int64)) for rows in repaired]


def _above_zero(text: str) -> Value:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0.0 < value < math.inf:
        raise ValueError("a number above 0")
    return value


PARTITIONERS: dict[str, Entry[Partitioner]] = {
    "iid": Entry(iid, "rows shuffled and dealt out evenly"),
    "natural": Entry(natural, "whole groups (language, source, topic): one peer, one group where it can be"),
    "dirichlet": Entry(
        dirichlet,
        "each class in random shares: large A = alike, small A = each class at one peer",
        (Parameter("A", "concentration, a number above 0", _above_zero, required=False),),
    ),
    "quantity": Entry(
        quantity,
        "the same mix in parts of very different size",
        (
            Parameter(
                "S",
                "standard deviation of the log-normal sizes' logarithm, above 0",
                _above_zero,
                required=False,
            ),
        ),
    ),
    "pathological": Entry(
        pathological,
        "C classes a peer and nothing else",
        (Parameter("C", "classes of each peer, at least 1", whole(1), required=False),),
    ),
    "temporal": Entry(temporal, "rows in their order, one window a peer"),
}
"""Ways to share rows out. To add one: a function that returns a ``Partitioner``, and a line here."""
