"""Messages survive the trip; anything else is one exception and costs nothing."""

import tracemalloc
from typing import get_args

import hypothesis.strategies as st
import msgpack
import pytest
from hypothesis import example, given, settings

from gossip import wire
from gossip.errors import RemoteError
from gossip.messages import (
    Claim,
    Evidence,
    Hello,
    Kind,
    MaskKey,
    MaskKeyQuery,
    MaskSeeds,
    Message,
    Offer,
    PairSeed,
    Ping,
    Presence,
    Pull,
    Reason,
    Refusal,
    SumAgreed,
    Summand,
    SumProposal,
    SumSigned,
)

text = st.text(st.characters(codec="utf-8"), max_size=40).filter(str.isprintable)
rounds = st.integers(0, wire.ROUND_MAX)
offsets = st.integers(0, wire.PAYLOAD_BYTES_MAX)
texts = st.lists(text, max_size=4).map(tuple)
kinds = st.sampled_from(get_args(Kind))
lives = st.integers(0, wire.INCARNATION_MAX)
digests = st.binary(min_size=32, max_size=32)
bases = st.sampled_from([b"", bytes(8)])
claims = st.builds(Claim, text, lives, rounds, kinds, bases, digests, st.binary(min_size=64, max_size=64))
evidence = st.builds(Evidence, claims, claims)
runs, signatures = st.binary(min_size=16, max_size=16), st.binary(min_size=64, max_size=64)
mask_keys = st.builds(MaskKey, text, digests, signatures)
summands = st.lists(st.builds(Summand, text, digests), max_size=3).map(tuple)
pair_seeds = st.lists(st.builds(PairSeed, text, digests), max_size=3).map(tuple)
messages = st.one_of(
    st.builds(
        Hello,
        st.dictionaries(text, st.one_of(text, st.integers(-(2**62), 2**62)), max_size=6),
        text,
        rounds,
        texts,
        texts,
        st.none(),
        lives,
        st.lists(evidence, max_size=2).map(tuple),
    ),
    st.builds(Refusal, st.sampled_from(get_args(Reason)), text),
    st.builds(Ping, rounds),
    st.builds(
        Pull,
        st.binary(min_size=16, max_size=16),
        st.none() | rounds,
        st.integers(-1, wire.ROUND_MAX),
        st.floats(0, wire.WAIT_S_MAX),
        offsets,
        st.sampled_from([b"", bytes(32)]),
        bases,
        kinds,
        st.none() | st.lists(mask_keys, max_size=3).map(tuple),
    ),
    st.builds(MaskKeyQuery, runs),
    mask_keys,
    st.builds(SumProposal, runs, rounds, kinds, digests, summands),
    st.builds(SumAgreed, signatures),
    st.builds(SumSigned, runs, rounds, kinds, digests, st.lists(signatures, max_size=3).map(tuple)),
    st.builds(MaskSeeds, digests, pair_seeds),
    st.builds(
        Offer,
        rounds,
        rounds,
        text,
        offsets,
        digests,
        offsets,
        bases,
        kinds,
        lives,
        st.sampled_from([b"", bytes(64)]),
    ),
    st.builds(
        Presence,
        st.binary(min_size=16, max_size=16),
        text,
        rounds,
        texts,
        st.booleans(),
        lives,
        rounds,
        st.lists(claims, max_size=2).map(tuple),
    ),
    evidence,
)


@given(messages)
@settings(max_examples=300, deadline=None)
def test_every_message_survives_the_trip(message: Message) -> None:
    assert wire.decode(wire.encode(message)) == message


def assert_message_or_malformed(frame: bytes | bytearray) -> None:
    try:
        message = wire.decode(frame)
    except RemoteError as caught:
        reason = caught.reason
    else:
        assert wire.decode(wire.encode(message)) == message
        return
    assert reason == "malformed"


@given(st.binary(max_size=300))
@example(b"")
@example(b"\xc1")
@example(b"\x81\xa4type\xa4ping")
@example(b"\xdd\xff\xff\xff\xff")
@example(b"\xdf\xff\xff\xff\xff")
@example(b"\xc7\x04\x05abcd")
@example(b"\xd6\xff\x00\x00\x00\x00")
@settings(max_examples=500, deadline=None)
def test_any_bytes_are_a_message_or_malformed(frame: bytes) -> None:
    assert_message_or_malformed(frame)


@given(messages, st.data())
@settings(max_examples=500, deadline=None)
def test_damaged_messages_are_a_message_or_malformed(message: Message, data: st.DataObject) -> None:
    frame = bytearray(wire.encode(message))
    for _ in range(data.draw(st.integers(1, 3))):
        frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
    assert_message_or_malformed(frame)


@given(messages, st.data())
@settings(max_examples=200, deadline=None)
def test_truncated_or_longer_frames_are_malformed(message: Message, data: st.DataObject) -> None:
    frame = wire.encode(message)
    cut = data.draw(st.integers(0, len(frame) - 1))
    for wrong in (frame[:cut], frame + b"\x00"):
        with pytest.raises(RemoteError, match="malformed"):
            wire.decode(wrong)


CLAIM = {
    "peer": "a", "incarnation": 1, "round": 0, "kind": "round", "base": b"", "digest": bytes(32), "signature": bytes(64)
}  # fmt: skip
PRESENCE = {
    "type": "presence", "run": bytes(16), "name": "", "round": 0, "addresses": [], "leaving": False, "incarnation": 1,
    "sequence": 1, "claims": [CLAIM],
}  # fmt: skip
PULL = {
    "type": "pull", "run": bytes(16), "round": 0, "newer_than": 0, "wait_s": 0.0, "offset": 0, "digest": b"",
    "base": b"", "kind": "round",
}  # fmt: skip


@pytest.mark.parametrize("body", [PRESENCE, PULL], ids=["presence", "pull"])
def test_what_the_bad_fields_are_made_of_is_well_formed(body: dict[str, object]) -> None:
    wire.decode(msgpack.packb(body))


BAD_FIELDS = [
    {"type": "ping"},
    {"type": "ping", "round": -1},
    {"type": "ping", "round": True},
    {"type": "ping", "round": 1.0},
    {"type": "ping", "round": 2**41},
    {"type": "ping", "round": 1, "extra": 1},
    {"type": "nothing", "round": 1},
    {"type": 5, "round": 1},
    {"type": "refusal", "reason": "because", "detail": ""},
    {"type": "refusal", "reason": "busy", "detail": "a\x1b[31m"},
    {"type": "refusal", "reason": "busy", "detail": "a\nb"},
    {"type": "refusal", "reason": "busy", "detail": "\u202eabc"},
    {"type": "refusal", "reason": "busy", "detail": "a" * 1025},
    {**PRESENCE, "run": bytes(15)},
    {**PRESENCE, "addresses": ["a"] * 65},
    {**PRESENCE, "addresses": [5]},
    {**PRESENCE, "leaving": 1},
    {**PRESENCE, "sequence": -1},
    {**PRESENCE, "claims": [{"peer": "a"}]},
    {**PRESENCE, "claims": [CLAIM] * 5},
    {**PRESENCE, "claims": [{**CLAIM, "kind": "other"}]},
    {**PRESENCE, "claims": [{**CLAIM, "signature": b""}]},
    {"type": "evidence", "first": CLAIM},
    {**PULL, "newer_than": -2},
    {**PULL, "wait_s": float("nan")},
    {**PULL, "wait_s": 601.0},
    {**PULL, "kind": "any"},
    {**PULL, "base": bytes(7)},
    [1, 2, 3],
    "text",
    5,
]


@pytest.mark.parametrize("body", BAD_FIELDS, ids=str)
def test_a_field_out_of_its_limits_is_malformed(body: object) -> None:
    with pytest.raises(RemoteError, match="malformed"):
        wire.decode(msgpack.packb(body))


def test_a_key_that_appears_twice_is_malformed() -> None:
    frame = b"\x83" + b"\xa4type\xa4ping" + b"\xa5round\x01" + b"\xa5round\x02"
    with pytest.raises(RemoteError, match="twice"):
        wire.decode(frame)


@pytest.mark.parametrize(
    "bomb",
    [
        b"\xdc\xff\xff" + b"\x90" * 60_000,  # many empty arrays
        b"\x91" * 60_000,  # deep nesting
        b"\xdd\x00\x00\xff\xff" * 10_000,  # nested headers that promise 65535 elements each
        b"\x81" * 60_000,
    ],
)
def test_a_bomb_costs_no_memory(bomb: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(RemoteError):
            wire.decode(bomb)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_lengths_are_refused_before_anything_is_allocated() -> None:
    assert wire.frame_length(b"\x00\x00\x00\x05") == 5
    for prefix in (b"\xff\xff\xff\xff", b"\x00\x01\x00\x01", b"\x00\x00\x00\x00"):
        with pytest.raises(RemoteError, match="oversized"):
            wire.frame_length(prefix)


def test_a_frame_beyond_the_limit_is_not_even_parsed() -> None:
    with pytest.raises(RemoteError, match="at most"):
        wire.decode(bytes(wire.FRAME_BYTES_MAX + 1))
