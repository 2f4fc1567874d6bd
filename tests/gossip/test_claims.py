"""Who contradicts itself is convicted, by whoever sees both claims; nobody else ever is."""

from __future__ import annotations

import hashlib
import random
from dataclasses import replace

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from gossip import claims, wire
from gossip.claims import Claims, statement
from gossip.events import PeerDown
from gossip.manifest import RunManifest
from gossip.membership import Membership
from gossip.membership_events import (
    Action,
    Announce,
    Answer,
    Asked,
    Drop,
    Event,
    Heard,
    Offered,
    Post,
    Progressed,
    Start,
    Tell,
)
from gossip.membership_limits import STRIKES
from gossip.messages import Claim, Evidence, Hello, Ping, Presence, Refusal

RUN = RunManifest(
    base_model="b", dtype="d", tokenizer="t", settings={"adapter": "a"}, layout="l", seed=0, initial="i",
    factors="f", mixing="m", optimizer="o", codec="c", feedback="n", gamma="1", rounds=9, merge="none", overlap="no",
    private="no",
)  # fmt: skip


def signature(run: bytes, claim: Claim) -> bytes:
    """Stand in for a key: whoever signs is written into it."""
    return hashlib.sha512(claim.peer.encode() + statement(run, claim)).digest()


def is_signed(run: bytes, claim: Claim) -> bool:
    return claim.signature == signature(run, claim)


def signed(peer: str, round: int = 0, content: str = "x", life: int = 1, base: bytes = b"") -> Claim:
    digest = hashlib.sha256(content.encode()).digest()
    claim = Claim(peer, life, round, "round", base, digest, b"")
    return replace(claim, signature=signature(RUN.fingerprint, claim))


def table() -> Claims:
    return Claims(RUN.fingerprint, is_signed)


def test_two_adapters_under_one_name_are_evidence() -> None:
    seen = table()
    first, second = signed("m", content="x"), signed("m", content="y")
    assert seen.read(first) is None
    assert seen.heard(first) is None
    assert seen.heard(second) == Evidence(first, second)
    assert seen.heard(signed("m", content="z")) is None  # once is enough
    assert table().convict(Evidence(first, second))
    assert not seen.convict(Evidence(first, second))


@pytest.mark.parametrize(
    "other",
    [signed("m", round=1, content="y"), signed("m", life=2, content="y"), signed("m", base=bytes(8), content="y"),
     signed("n", content="y"), signed("m")],
    ids=["round", "life", "base", "peer", "same"],
)  # fmt: skip
def test_what_does_not_contradict_proves_nothing(other: Claim) -> None:
    seen = table()
    seen.read(signed("m"))
    assert seen.heard(other) is None
    assert not seen.convict(Evidence(signed("m"), other))


def test_nobody_is_convicted_by_what_others_made_up() -> None:
    seen, forged = table(), replace(signed("m", content="y"), signature=bytes(64))
    seen.read(signed("m"))
    assert seen.heard(forged) is None
    assert not seen.convict(Evidence(signed("m"), forged))
    assert not seen.convict(Evidence(forged, signed("m")))
    of_another_run = replace(forged, signature=signature(bytes(16), forged))
    assert not seen.convict(Evidence(signed("m"), of_another_run))


def test_every_claim_that_was_read_is_told_once() -> None:
    seen, read = table(), [signed("m", round) for round in range(6)]
    for claim in read:
        seen.read(claim)
    assert (*seen.to_tell(), *seen.to_tell()) == tuple(reversed(read))
    assert seen.to_tell() == ()


def test_the_tables_are_bounded() -> None:
    seen = Claims(RUN.fingerprint, lambda run, claim: True)
    for number in range(3 * claims.PEERS_MAX):
        seen.heard(signed(f"m{number}"))
    for number in range(10 * claims.PER_PEER):
        seen.read(signed("m", number))
    assert len(seen._claims) == claims.PEERS_MAX
    assert len(seen._claims["m"]) == claims.PER_PEER
    assert len(seen._untold) == claims.TOLD_MAX
    for number in range(3 * claims.PROVEN_MAX):
        seen.convict(Evidence(signed(f"n{number}"), signed(f"n{number}", content="y")))
    assert len(seen.evidence) == claims.PROVEN_MAX


@given(
    st.lists(
        st.builds(
            signed,
            st.sampled_from("mn"),
            st.integers(0, 2),
            st.sampled_from("xy"),
            st.integers(1, 2),
            st.sampled_from([b"", bytes(8)]),
        ),
        max_size=12,
    )
)
@settings(max_examples=200, deadline=None)
def test_whoever_signs_one_adapter_for_each_name_is_never_convicted_in_any_order(seen: list[Claim]) -> None:
    here = table()
    for claim in seen:
        here.heard(claim)
    for peer in "mn":
        by_name: dict[tuple[object, ...], set[bytes]] = {}
        for claim in seen:
            if claim.peer == peer:
                name = (claim.incarnation, claim.round, claim.base)
                by_name.setdefault(name, set()).add(claim.digest)
        assert (peer in here.evidence) == any(len(digests) > 1 for digests in by_name.values())


# -- what a member makes of it


class Member:
    """A membership machine; whatever is done with it returns the actions."""

    def __init__(self, *met: str) -> None:
        self.membership = Membership(RUN, "ME", random.Random(0), verify=is_signed)
        self.does(Start("me", ("/there/me/p2p/me",), 1))
        for peer in met:
            self.does(Asked(peer, hello(peer)))

    def does(self, event: Event, now: float = 100.0) -> list[Action]:
        return self.membership.handle(event, now)

    @property
    def up(self) -> set[str]:
        return {peer for peer, member in self.membership.members.by_id.items() if member.is_up}


def hello(peer: str, *evidence: Evidence) -> Hello:
    return Hello(RUN.fields(), peer.upper(), 0, (f"/there/{peer}/p2p/{peer}",), (), None, 1, evidence)


def presence(peer: str, *told: Claim) -> Heard:
    return Heard(peer, Presence(RUN.fingerprint, peer.upper(), 0, (), False, 1, 1, told))


PROOF = Evidence(signed("m", content="x"), signed("m", content="y"))


@pytest.mark.parametrize(
    "event",
    [presence("n", PROOF.second), Heard("n", PROOF), Heard("x", PROOF), Asked("n", hello("n", PROOF)),
     Offered(PROOF.second)],
    ids=["told", "evidence", "stranger's proof", "hello", "offer"],
)  # fmt: skip
def test_a_convicted_peer_is_cut_off_for_the_rest_of_the_run(event: Event) -> None:
    me = Member("m", "n")
    me.does(Offered(PROOF.first))
    actions = me.does(event)
    assert all(action in actions for action in (Post(PeerDown("m")), Drop("m"), Announce(PROOF)))
    (told, _) = [action.text for action in actions if isinstance(action, Tell)]
    assert "peer M (m) is cut off for the rest of the run" in told
    assert "round 0" in told
    assert me.up == {"n"}
    (answer,) = me.does(Asked("m", hello("m")), 1e6)
    assert isinstance(answer, Answer)
    assert isinstance(answer.message, Refusal)
    assert not [action for action in me.does(event, 1e6) if isinstance(action, Tell | Announce)]  # said once


def test_a_newcomer_learns_of_it_from_whoever_greets_it() -> None:
    me = Member("m")
    me.does(Heard("n", PROOF))
    (answer, *_) = me.does(Asked("n", hello("n")))
    assert answer.message.evidence == (PROOF,)
    newcomer = Member()
    newcomer.does(Asked("o", answer.message))
    assert isinstance(newcomer.does(Asked("m", hello("m")))[0].message, Refusal)
    assert newcomer.up == {"o"}


def test_a_restart_from_an_older_checkpoint_convicts_nobody() -> None:
    me = Member("m")
    for life, content in ((1, "before"), (2, "after")):
        for round in range(3):
            me.does(Offered(signed("m", round, f"{content} {round}", life)))
    assert me.up == {"m"}


def test_whoever_begins_a_new_life_for_each_reader_is_cut_off_and_who_restarts_a_few_times_is_not() -> None:
    """A new life contradicts nothing: a liar could have one for each reader, and serve each something else."""
    me = Member("m", "n", "o")
    for life in range(1, STRIKES + 2):
        me.does(presence("o", signed("m", content=f"for reader {life}", life=life)))
        me.does(Offered(signed("n", content="the same in every life", life=life)))
    assert me.up == {"n", "o"}
    me = Member("n")
    for life in range(1, STRIKES + 1):
        for round in range(5):  # of one restart, however far back it goes, only one counts
            me.does(Offered(signed("n", round, f"{life} {round}", life)))
    assert me.up == {"n"}


def test_what_we_are_offered_is_told_with_our_next_announcement() -> None:
    me = Member("m")
    me.does(Offered(PROOF.first))
    (announce, *_) = me.does(Progressed(1), 200.0)
    assert announce.presence.claims == (PROOF.first,)


def test_our_own_key_in_two_places_is_told_and_cuts_nobody_off() -> None:
    me = Member("m")
    proof = Evidence(signed("me", content="x"), signed("me", content="y"))
    (told,) = me.does(Heard("m", proof))
    assert "does another process use it" in told.text
    assert me.up == {"m"}


def test_whoever_is_cut_off_gets_no_ping_and_the_largest_hello_fits_a_frame() -> None:
    me = Member("m", "n")
    me.does(Heard("n", PROOF))
    assert isinstance(me.does(Asked("m", Ping(1)))[0].message, Refusal)
    for number in range(2 * wire.EVIDENCE_MAX):
        peer = f"m{number}" + "x" * 60
        me.does(Heard("n", Evidence(signed(peer), signed(peer, content="y"))))
    (answer, *_) = me.does(Asked("n", hello("n")))
    assert len(answer.message.evidence) == wire.EVIDENCE_MAX
    assert wire.decode(wire.encode(answer.message)) == answer.message
