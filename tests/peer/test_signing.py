"""Offers are signed by the identity itself, and each life of it is told from those before."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from gossip.claims import claim_in
from gossip.errors import LocalError
from gossip.messages import Offer
from peer import incarnation
from peer.incarnation import begin_life
from peer.network.identity import peer_id
from peer.signing import SIGNED_MAX, Signer, is_signed

KEY, RUN = bytes(range(32)), bytes(16)
OFFER = Offer(3, 8, "int8", 100, bytes(32))


def signer(key: bytes = KEY, lives: int = 5) -> Signer:
    numbers = iter(range(lives, 2**40))
    return Signer(key, RUN, lambda: next(numbers))


def test_a_signature_holds_for_its_signer_run_and_words_alone() -> None:
    claim = claim_in(peer_id(KEY), signer().signed(OFFER))
    assert is_signed(RUN, claim)
    assert not is_signed(bytes([1]) * 16, claim)
    other = peer_id(bytes([1]) * 32)
    for changed in (
        {"peer": other}, {"peer": "no id"}, {"incarnation": 6}, {"round": 4}, {"kind": "merge"}, {"base": bytes(8)},
        {"digest": bytes([1]) * 32}, {"signature": bytes(64)}, {"signature": b""},
    ):  # fmt: skip
        assert not is_signed(RUN, replace(claim, **changed)), changed


def test_an_offer_is_signed_once_and_from_any_offset_alike() -> None:
    ours = signer()
    whole, rest = ours.signed(OFFER), ours.signed(replace(OFFER, offset=50))
    assert rest == replace(whole, offset=50)
    assert whole.incarnation == 5


def test_two_adapters_of_one_round_are_of_two_lives() -> None:
    ours = signer()
    first = ours.signed(OFFER)
    second = ours.signed(replace(OFFER, digest=bytes([1]) * 32))
    assert (first.incarnation, second.incarnation) == (5, 6)
    assert is_signed(RUN, claim_in(peer_id(KEY), second))
    for round in range(2 * SIGNED_MAX):
        ours.signed(replace(OFFER, round=round))
    assert len(ours._signed) == SIGNED_MAX


def test_lives_are_numbered_upward_whatever_the_clock_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    for clock in (1000.0, 1000.0, 10.0, 2000.0):
        monkeypatch.setattr(incarnation.time, "time", lambda clock=clock: clock)
        seen.append(begin_life(tmp_path))
    assert seen == [1000, 1001, 1002, 2000]


@pytest.mark.parametrize("kept", ["", "many", "-5", "9" * 40, "\x00\xff"])
def test_a_damaged_number_is_no_obstacle(tmp_path: Path, kept: str) -> None:
    (tmp_path / incarnation.FILE).write_text(kept, encoding="latin-1")
    assert begin_life(tmp_path) > 1_600_000_000


def test_a_folder_that_is_gone_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(LocalError, match="choose another --home"):
        begin_life(tmp_path / "gone")
