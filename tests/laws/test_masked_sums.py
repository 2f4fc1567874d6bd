"""Sums under masks: exact whoever is missing, closed where too few are there, and no more than that to any reader."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import numpy as np
import pytest

from gossip import fixed_point
from gossip.errors import LocalError, RemoteError
from gossip.masked_sums import (
    CODEC,
    LISTS_MAX,
    MaskingPublisher,
    Sum,
    keys_digest,
    minimum,
    sign_of,
    unmasked,
)
from gossip.messages import MaskKey, MaskSeeds, PairSeed, Summand, SumProposal, SumSigned
from gossip.published import PublishedAdapter
from peer.mask_keys import MaskSecrets
from peer.network.identity import peer_id

RUN, ROSTER = bytes(range(16)), bytes(32)
PEERS = sorted(peer_id(bytes([seed]) * 32) for seed in range(1, 8))
SEED_OF = {peer_id(bytes([seed]) * 32): seed for seed in range(1, 8)}
READER, *OTHERS = PEERS
SIZE = 64


def secrets_of(peer: str, run: bytes = RUN, roster: bytes = ROSTER) -> MaskSecrets:
    return MaskSecrets(bytes([SEED_OF[peer]]) * 32, run, roster)


class Row:
    """A reader's row of W with its publishers, and their adapters of a round."""

    def __init__(self, publishers: int, round: int = 3, size: int = SIZE) -> None:
        self.peers = OTHERS[:publishers]
        rng = np.random.default_rng(publishers)
        weights = rng.dirichlet(np.ones(publishers + 1))[:publishers]
        self.weights = dict(zip(self.peers, weights.tolist(), strict=True))
        self.secrets = {peer: secrets_of(peer) for peer in PEERS}
        self.publishers = {
            peer: MaskingPublisher(
                RUN, ROSTER, lambda reader, kind, round: self.row(reader), self.secrets[peer]
            )
            for peer in self.peers
        }
        self.values = {peer: rng.normal(size=size, scale=9.0).astype("<f4") for peer in self.peers}
        self.published = {peer: self.adapter(peer, round) for peer in self.peers}
        self.keys = tuple(self.secrets[peer].key for peer in self.peers)

    def row(self, reader: str) -> dict[str, float]:
        return self.weights if reader == READER else {}

    def adapter(self, peer: str, round: int) -> PublishedAdapter:
        return PublishedAdapter(round, 1, "float32", self.values[peer].tobytes())

    def payloads(self, keys: tuple[MaskKey, ...] | None = None) -> dict[str, PublishedAdapter]:
        keys = self.keys if keys is None else keys
        shown = {one.peer for one in keys}
        return {
            peer: self.publishers[peer].masked(READER, self.published[peer], keys)
            for peer in self.peers
            if peer in shown
        }

    def proposal(self, payloads: dict[str, PublishedAdapter], round: int = 3) -> SumProposal:
        summands = tuple(Summand(peer, payloads[peer].digest) for peer in sorted(payloads))
        return SumProposal(RUN, round, "round", keys_digest(self.keys), summands)

    def signatures(self, said: SumProposal) -> tuple[bytes, ...]:
        return tuple(self.publishers[one.peer].agree(READER, said) for one in said.summands)

    def seeds(self, said: SumProposal, signatures: tuple[bytes, ...]) -> dict[str, MaskSeeds]:
        signed = SumSigned(said.run, said.round, said.kind, said.keys, signatures)
        return {one.peer: self.publishers[one.peer].reveal(READER, signed) for one in said.summands}

    def total(self, payloads: dict[str, PublishedAdapter]) -> fixed_point.Words:
        said = self.proposal(payloads)
        seeds = self.seeds(said, self.signatures(said))
        bytes_of = {peer: one.payload for peer, one in payloads.items()}
        gone = frozenset(one.peer for one in self.keys) - payloads.keys()
        return unmasked(bytes_of, seeds, gone, self.secrets[READER])


def refused(call: object, *said: object) -> str:
    with pytest.raises(RemoteError) as caught:
        call(*said)  # type: ignore[operator]
    assert caught.value.reason in ("mask", "readers")
    return caught.value.detail


# -- the sum


@pytest.mark.parametrize("publishers", [4, 5, 6])
def test_a_sum_is_exact_whoever_is_gone_before_its_payload_and_closed_below_the_minimum(
    publishers: int,
) -> None:
    for size in range(publishers + 1):
        for here in itertools.combinations(OTHERS[:publishers], size):
            row = Row(publishers)
            payloads = {peer: one for peer, one in row.payloads().items() if peer in here}
            if size < minimum(publishers):
                said = row.proposal(payloads)
                for peer in row.peers:
                    assert refused(row.publishers[peer].agree, READER, said)
                continue
            weight = sum(row.weights[peer] for peer in here)
            exact = sum(row.weights[peer] * row.values[peer].astype(np.float64) for peer in here)
            found = row.total(payloads).view(np.int32) * 2.0**-fixed_point.FRACTION_BITS
            assert np.abs(found - exact).max() <= size * 2.0 ** -(fixed_point.FRACTION_BITS + 1)
            mean = np.frombuffer(fixed_point.mean_of(row.total(payloads), weight), dtype="<f4")
            assert np.allclose(mean * weight, exact, atol=1e-6)


def test_whoever_has_no_key_from_the_start_is_left_out_and_a_row_without_enough_keys_is_closed() -> None:
    row = Row(5)
    row.keys = row.keys[:4]
    found = row.total(row.payloads()).view(np.int32) * 2.0**-fixed_point.FRACTION_BITS
    exact = sum(row.weights[peer] * row.values[peer].astype(np.float64) for peer in row.peers[:4])
    assert np.abs(found - exact).max() <= 4 * 2.0**-25
    row = Row(5)
    assert "are needed" in refused(
        row.publishers[row.peers[0]].masked, READER, row.published[row.peers[0]], row.keys[:3]
    )


def test_what_does_not_fit_into_the_fixed_point_is_refused_and_no_sum_wraps() -> None:
    row = Row(4)
    for peer in row.peers:
        row.values[peer][:] = fixed_point.LARGEST
        row.published[peer] = row.adapter(peer, 3)
    found = row.total(row.payloads()).view(np.int32) * 2.0**-24
    assert np.allclose(found, fixed_point.LARGEST * sum(row.weights.values()))
    for wrong in (np.nan, np.inf, -np.inf, 127.5, -1e9):
        with pytest.raises(LocalError, match="--mask none"):
            fixed_point.to_words(np.asarray([0.0, wrong], dtype="<f4").tobytes(), 0.1)


def test_a_payload_has_four_bytes_a_value_and_is_the_same_when_it_is_asked_for_again() -> None:
    row = Row(4)
    first, again = row.payloads(), row.payloads()
    assert first == again
    assert all(len(one.payload) == 4 * SIZE and one.codec == CODEC for one in first.values())
    assert len({one.base for one in first.values()}) == 1


# -- what a payload alone tells


def looks_uniform(words: np.ndarray) -> bool:
    """Chi-squared over bytes, 255 degrees of freedom: beyond 450 with a chance of one in 10^12."""
    counts = np.bincount(words.view(np.uint8), minlength=256)
    expected = counts.sum() / 256
    return float(((counts - expected) ** 2 / expected).sum()) < 450.0


def test_without_the_seeds_a_payload_is_uniform_also_for_one_who_has_all_but_one() -> None:
    row = Row(4, size=1 << 16)
    for peer in row.peers:
        row.values[peer][:] = 1.0  # nothing less uniform than this
        row.published[peer] = row.adapter(peer, 3)
    victim, *rest = row.peers
    payload = row.payloads()[victim].payload
    which = Sum(RUN, ROSTER, 3, "round", READER, keys_digest(row.keys))
    words = fixed_point.words_of(payload).copy()
    assert looks_uniform(words)
    masks = [(row.secrets[victim].own_seed(which.of_own(victim)), 1)]
    for peer in rest:
        seed = row.secrets[peer].pair_seed(row.secrets[victim].key.key, which.of_pair(victim, peer))
        masks.append((seed, sign_of(victim, peer)))
    for left in range(len(masks)):
        words = fixed_point.words_of(payload).copy()
        for place, (seed, sign) in enumerate(masks):
            if place != left:
                row.secrets[READER].add_mask(seed, words, -sign)
        assert looks_uniform(words)
    words = fixed_point.words_of(payload).copy()
    for seed, sign in masks:
        row.secrets[READER].add_mask(seed, words, -sign)
    assert not looks_uniform(words)  # so the test can tell
    assert np.array_equal(words, fixed_point.to_words(row.published[victim].payload, row.weights[victim]))


def test_masks_of_other_rounds_readers_kinds_and_lists_have_nothing_to_do_with_each_other() -> None:
    sums = [
        Sum(run, roster, round, kind, reader, keys)
        for run in (RUN, bytes(16))
        for roster in (ROSTER, bytes([1] * 32))
        for round in (0, 1)
        for kind in ("round", "merge")
        for reader in ("a", "ab")
        for keys in (bytes(32), bytes([1] * 32))
    ]
    infos = [info for one in sums for info in (one.of_pair("x", "y"), one.of_pair("xy", ""), one.of_own("x"))]
    assert len(set(infos)) == len(infos)
    one, other = secrets_of(PEERS[0]), secrets_of(PEERS[1])
    assert one.pair_seed(other.key.key, infos[0]) == other.pair_seed(one.key.key, infos[0])
    assert len({one.pair_seed(other.key.key, info) for info in infos}) == len(infos)
    assert one.own_seed(infos[0]) != other.own_seed(infos[0])
    assert one.own_seed(infos[0]) != secrets_of(PEERS[0]).own_seed(infos[0])  # another life


# -- a reader that wants more


def test_a_reader_whose_row_does_not_name_a_peer_or_that_is_on_no_roster_gets_nothing() -> None:
    row = Row(4)
    for stranger in (PEERS[-1], "nobody"):
        publisher = row.publishers[row.peers[0]]
        assert "does not name" in refused(publisher.masked, stranger, row.published[row.peers[0]], row.keys)


def test_a_roster_of_one_forged_keys_and_keys_of_others_are_refused() -> None:
    row, mine = Row(4), OTHERS[0]
    masked = row.publishers[mine].masked
    theirs = {one.peer: one for one in row.keys}
    forged = replace(theirs[OTHERS[1]], key=row.secrets[READER].key.key)
    elsewhere = MaskSecrets(bytes([SEED_OF[OTHERS[1]]]) * 32, RUN, bytes([1] * 32)).key
    another_run = MaskSecrets(bytes([SEED_OF[OTHERS[1]]]) * 32, bytes(16), ROSTER).key
    by_reader = MaskKey(OTHERS[1], row.secrets[READER].key.key, row.secrets[READER].key.signature)
    stranger, reader = row.secrets[OTHERS[5]].key, row.secrets[READER].key
    lists = [
        (theirs[mine],),
        row.keys[:2],
        (),
        *((row.keys[0], one, *row.keys[2:]) for one in (forged, elsewhere, another_run, by_reader)),
        tuple(sorted((*row.keys, stranger), key=lambda one: one.peer)),
        tuple(sorted((*row.keys, reader), key=lambda one: one.peer)),
        row.keys[::-1],
        (row.keys[0], *row.keys),
        row.keys[1:],  # not that of the publisher itself
        (secrets_of(mine).key, *row.keys[1:]),  # that of an earlier life of it
    ]
    for keys in lists:
        assert refused(masked, READER, row.published[mine], keys)
    assert masked(READER, row.published[mine], row.keys)
    small = (row.keys[0], row.secrets[OTHERS[1]].key, *row.keys[2:])
    assert masked(READER, row.published[mine], small)


def test_a_publisher_signs_one_sum_for_a_reader_and_round() -> None:
    row = Row(4)
    payloads = row.payloads()
    whole = row.proposal(payloads)
    publisher = row.publishers[OTHERS[0]]
    publisher.agree(READER, whole)
    publisher.agree(READER, whole)  # the answer may have been lost
    without = row.proposal({peer: payloads[peer] for peer in OTHERS[:3]})
    assert "another sum was signed" in refused(publisher.agree, READER, without)
    for summands in (
        whole.summands[1:],
        whole.summands[::-1],
        (whole.summands[0], *whole.summands),
        (Summand(OTHERS[0], bytes(32)), *whole.summands[1:]),
        (*whole.summands, Summand(OTHERS[5], bytes(32))),
    ):
        fresh = Row(4)
        fresh.payloads()
        assert refused(fresh.publishers[OTHERS[0]].agree, READER, replace(whole, summands=summands))
    assert refused(publisher.agree, OTHERS[5], whole)
    assert refused(publisher.agree, READER, replace(whole, round=4))
    assert refused(publisher.agree, READER, replace(whole, kind="merge"))


def test_two_readers_on_one_side_cannot_leave_one_publisher_out_of_the_second_sum() -> None:
    """Where all read all, the difference of two sums would be one adapter."""
    everybody = PEERS
    rows = {
        reader: dict.fromkeys((peer for peer in everybody if peer != reader), 1 / 7) for reader in everybody
    }
    secrets = {peer: secrets_of(peer) for peer in everybody}
    publishers = {
        peer: MaskingPublisher(RUN, ROSTER, lambda reader, kind, round: rows[reader], secrets[peer])
        for peer in everybody
    }
    victim, liar, *others = PEERS[0], PEERS[1], *PEERS[3:]
    adapter = PublishedAdapter(3, 1, "float32", bytes(4 * SIZE))

    def proposal(reader: str, without: str = "") -> SumProposal:
        peers = [peer for peer in everybody if peer != reader]
        keys = tuple(secrets[peer].key for peer in peers)
        digests = {peer: publishers[peer].masked(reader, adapter, keys).digest for peer in peers}
        summands = tuple(Summand(peer, digests[peer]) for peer in peers if peer != without)
        return SumProposal(RUN, 3, "round", keys_digest(keys), summands)

    first, second = proposal(liar), proposal(PEERS[2], without=victim)
    for peer in others:
        publishers[peer].agree(liar, first)
        assert "who is gone" in refused(publishers[peer].agree, PEERS[2], second)
        publishers[peer].agree(PEERS[2], proposal(PEERS[2]))  # nothing was signed when it was refused
    # and the other way round: whoever was left out once, is left out by all
    for peer in others:
        publishers[peer]._publications.clear()
    first, second = proposal(liar, without=victim), proposal(PEERS[2])
    for peer in others:
        publishers[peer].agree(liar, first)
        assert "who is gone" in refused(publishers[peer].agree, PEERS[2], second)
        publishers[peer].agree(PEERS[2], proposal(PEERS[2], without=victim))


def test_seeds_are_revealed_to_whoever_has_all_signatures_of_the_very_sum_and_to_nobody_else() -> None:
    row = Row(4)
    said = row.proposal(row.payloads())
    publisher = row.publishers[OTHERS[0]]
    signed = SumSigned(RUN, 3, "round", said.keys, ())
    assert "not signed by us" in refused(publisher.reveal, READER, signed)
    signatures = row.signatures(said)
    for wrong in (
        (),
        signatures[:3],
        (*signatures, signatures[0]),
        signatures[::-1],
        (signatures[0],) * 4,
        (*signatures[:3], bytes(64)),
    ):
        assert "by all" in refused(publisher.reveal, READER, replace(signed, signatures=wrong))
    good = replace(signed, signatures=signatures)
    assert refused(publisher.reveal, OTHERS[5], good)
    # of an old round, for a new one
    for peer in row.peers:
        row.published[peer] = row.adapter(peer, 4)
    later = row.proposal(row.payloads(), round=4)
    publisher.agree(READER, later)
    assert "by all" in refused(publisher.reveal, READER, replace(good, round=4))
    assert publisher.reveal(READER, good).pairs == ()


def test_two_adapters_are_never_masked_for_one_round_and_lists_of_keys_are_bounded() -> None:
    row, mine = Row(4), OTHERS[0]
    publisher = row.publishers[mine]
    publisher.masked(READER, row.published[mine], row.keys)
    another = replace(row.published[mine], payload=bytes(4 * SIZE))
    assert "published twice" in refused(publisher.masked, READER, another, row.keys)
    for _ in range(LISTS_MAX - 1):
        keys = (row.keys[0], secrets_of(OTHERS[1]).key, *row.keys[2:])
        publisher.masked(READER, row.published[mine], keys)
    keys = (row.keys[0], secrets_of(OTHERS[1]).key, *row.keys[2:])
    assert "lists of keys" in refused(publisher.masked, READER, row.published[mine], keys)


@pytest.mark.parametrize("publishers", [4, 5, 6])
def test_no_reader_with_few_enough_publishers_on_its_side_takes_all_masks_off_one_adapter(
    publishers: int,
) -> None:
    """The reader shows each publisher what it likes, in any order; those on its side sign and tell all they have."""
    rng = random.Random(publishers)
    several = 0
    for _ in range(40):
        row = Row(publishers)
        liars = set(rng.sample(row.peers, rng.randint(0, minimum(publishers) - 2)))
        honest = [peer for peer in row.peers if peer not in liars]
        known = _told_to_a_liar(row, honest, liars, rng)
        several += len(known) > 1
        for victim, (own, pairs) in known.items():
            assert own
            left = {peer for peer in honest if peer != victim} - pairs
            assert left, (victim, pairs)  # of the masks with these, nothing is known
    assert several > 10  # it does get somewhere


def _told_to_a_liar(
    row: Row, honest: list[str], liars: set[str], rng: random.Random
) -> dict[str, tuple[bool, set[str]]]:
    """Return victim -> whether its own seed is known, and the honest peers whose masks with it are known.

    All is for one list of keys: masks for another list are others.
    """
    payloads = row.payloads()
    known: dict[str, tuple[bool, set[str]]] = {}
    pairs_known: set[frozenset[str]] = set()
    signed: dict[tuple[str, ...], dict[str, bytes]] = {}
    victim = rng.choice(honest)
    pool = [row.peers, [peer for peer in row.peers if peer != victim]]
    pool += [sorted(rng.sample(row.peers, rng.randint(1, len(row.peers)))) for _ in range(2)]
    for _ in range(12):
        chosen = tuple(rng.choice(pool))
        said = row.proposal({peer: payloads[peer] for peer in chosen})
        collected = signed.setdefault(chosen, {})
        for peer in chosen:
            if peer in liars:
                statement = Sum(RUN, ROSTER, 3, "round", READER, said.keys).signed_of(said.summands)
                collected[peer] = row.secrets[peer].sign(statement)
            elif rng.random() < 0.7:
                try:
                    collected[peer] = row.publishers[peer].agree(READER, said)
                except RemoteError:
                    continue
        signatures = tuple(collected.get(peer, bytes(64)) for peer in chosen)
        for peer in honest:
            try:
                seeds = row.publishers[peer].reveal(READER, SumSigned(RUN, 3, "round", said.keys, signatures))
            except RemoteError:
                continue
            known[peer] = (True, set())
            pairs_known |= {frozenset((peer, pair.peer)) for pair in seeds.pairs}
    for told in known:
        known[told][1].update(
            peer for peer in honest if peer != told and frozenset((told, peer)) in pairs_known
        )
    return known


# -- publishers that lie


def test_seeds_that_do_not_belong_to_the_sum_are_found_or_spoil_it_for_the_reader_alone() -> None:
    row = Row(4)
    payloads = {peer: one for peer, one in row.payloads().items() if peer != OTHERS[3]}
    said = row.proposal(payloads)
    seeds = row.seeds(said, row.signatures(said))
    bytes_of, gone = {peer: one.payload for peer, one in payloads.items()}, frozenset({OTHERS[3]})
    exact = unmasked(bytes_of, seeds, gone, row.secrets[READER])
    pair = seeds[OTHERS[0]].pairs[0]
    for pairs in (
        (),
        (pair, pair),
        (pair, PairSeed(OTHERS[1], bytes(32))),
        (PairSeed(OTHERS[1], bytes(32)),),
    ):
        wrong = {**seeds, OTHERS[0]: MaskSeeds(seeds[OTHERS[0]].own, pairs)}
        assert "has not revealed" in refused(unmasked, bytes_of, wrong, gone, row.secrets[READER])
    wrong = {**seeds, OTHERS[0]: MaskSeeds(bytes(32), (pair,))}
    assert not np.array_equal(unmasked(bytes_of, wrong, gone, row.secrets[READER]), exact)
    with pytest.raises(RemoteError, match="shape"):
        unmasked({**bytes_of, OTHERS[0]: bytes(8)}, seeds, gone, row.secrets[READER])


def test_a_key_of_small_order_is_refused() -> None:
    with pytest.raises(RemoteError, match="small order"):
        secrets_of(PEERS[0]).pair_seed(bytes(32), b"info")
