"""Rollouts on the wire and in the buffer: what is damaged is malformed, what floods has its part and no more."""

from __future__ import annotations

import random
import struct
from contextlib import suppress
from functools import reduce

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gossip.errors import LocalError, RemoteError
from gossip.rollouts import (
    ANSWER_BYTES_MAX,
    INDEX_MAX,
    ROLLOUTS_BYTES_MAX,
    ROUNDS_KEPT,
    VERSION_MAX,
    Buffer,
    Received,
    Rollout,
    add,
    decode,
    encode,
    fresh,
    key,
)

NAMES = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), min_size=1, max_size=64)
ANSWERS = st.text(max_size=128)  # of at most 4 bytes a letter
ROLLOUTS = st.builds(Rollout, NAMES, st.integers(0, VERSION_MAX), st.integers(0, INDEX_MAX), ANSWERS)
PUBLICATIONS = st.lists(ROLLOUTS, max_size=20, unique_by=key)
FEW = st.lists(
    st.builds(Rollout, st.just("sort"), st.just(0), st.integers(0, 40), st.sampled_from("ab")),
    max_size=40,
    unique_by=key,
)


def answer(index: int, text: str = "a") -> Rollout:
    return Rollout("sort", 1, index, text)


def raw(
    task: bytes = b"sort", version: int = 1, index: int = 7, text: bytes = b"abc", length: int | None = None
) -> bytes:
    """Return one rollout's bytes, whatever is wrong with them."""
    numbers = struct.pack("<IQH", version, index, len(text) if length is None else length)
    return bytes((len(task),)) + task + numbers + text


@given(PUBLICATIONS)
def test_what_was_encoded_comes_back(rollouts: list[Rollout]) -> None:
    assert decode(encode(rollouts)) == tuple(rollouts)


@given(PUBLICATIONS, st.randoms(use_true_random=False))
def test_of_the_same_rollouts_one_travels(rollouts: list[Rollout], rng: random.Random) -> None:
    again = [rollout._replace(version=3) for rollout in rollouts]
    assert decode(encode([*rollouts, *rng.sample(again, len(again))])) == tuple(rollouts)


@pytest.mark.parametrize(
    "payload",
    [
        raw(task=b""),
        raw(task=b"x" * 65),
        raw(task=b"new\nline"),
        raw(task="größe".encode()),
        raw(version=VERSION_MAX + 1),
        raw(index=INDEX_MAX + 1),
        raw(text=b"x" * (ANSWER_BYTES_MAX + 1)),
        raw(text=b"\xff\xfe"),
        raw(text=b"\xed\xa0\x80"),  # half of a surrogate pair
        raw(length=4),
        raw(length=2),
        raw() + raw(version=2),
        raw()[:-1],
        raw() + b"\x04",
        b"\xff",
        b"".join(raw(index=index, text=b"x" * 500) for index in range(130)),
        b"\x91" * 600,
        b"\xdd\xff\xff\xff\xff",
    ],
)
def test_what_is_no_publication_is_malformed(payload: bytes) -> None:
    with pytest.raises(RemoteError) as refused:
        decode(payload)
    assert refused.value.reason == "malformed"


@settings(max_examples=1000)
@given(PUBLICATIONS, st.data())
def test_damaged_bytes_are_rollouts_or_malformed(rollouts: list[Rollout], data: st.DataObject) -> None:
    payload = bytearray(encode(rollouts))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(payload)))
        payload[place : place + data.draw(st.integers(0, 20))] = data.draw(st.binary(max_size=20))
    with suppress(RemoteError):  # whatever else is raised, or comes back changed, is our bug
        assert encode(decode(payload)) == payload


def test_the_smallest_rollouts_fill_a_publication_and_no_more() -> None:
    smallest = [Rollout("a", 0, index, "") for index in range(ROLLOUTS_BYTES_MAX // 16)]
    assert len(decode(encode(smallest))) == 4096
    with pytest.raises(LocalError, match="4097 rollouts take 65552 bytes"):
        encode([*smallest, answer(0)._replace(task="a", answer="")._replace(index=5000)])


@pytest.mark.parametrize(
    "rollout",
    [
        answer(-1),
        answer(INDEX_MAX + 1),
        answer(0)._replace(version=VERSION_MAX + 1),
        answer(0)._replace(task=""),
        answer(0)._replace(task="größe"),
        answer(0, "ä" * 257),
        answer(0, "\ud800"),
    ],
)
def test_we_publish_nothing_that_others_must_refuse(rollout: Rollout) -> None:
    with pytest.raises(LocalError):
        encode([rollout])


# -- the buffer


def test_a_flood_takes_a_quarter_and_pushes_out_nobody() -> None:
    honest = add(
        add(Buffer(capacity=40), "a", 5, [answer(index) for index in range(8)]), "b", 5, [answer(100)]
    )
    flooded = honest
    for round in range(5, 9):
        flooded = add(flooded, "liar", round, [answer(index, "junk" * round) for index in range(1000)])
    assert flooded.of("liar") == flooded.quota == 10
    assert [item for item in flooded.items if item.sender != "liar"] == list(honest.items)


def test_many_senders_share_what_there_is() -> None:
    buffer = Buffer(capacity=40)
    for sender in "abcdefgh":
        buffer = add(buffer, sender, 0, [answer(index, sender) for index in range(20)])
    assert [buffer.of(sender) for sender in "abcdefgh"] == [5] * 8


def test_whoever_copies_others_takes_nothing_away() -> None:
    copied = [answer(index) for index in range(10)]
    buffer = add(Buffer(capacity=40), "liar", 3, copied)
    buffer = add(buffer, "honest", 3, copied)
    buffer = add(buffer, "liar", 4, [answer(index, "junk") for index in range(10)])
    assert {item.rollout for item in buffer.usable() if item.sender == "honest"} == set(copied)


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 5), FEW), max_size=12))
def test_the_buffer_keeps_its_limits(publications: list[tuple[str, int, list[Rollout]]]) -> None:
    buffer = reduce(lambda kept, one: add(kept, *one), publications, Buffer(capacity=32))
    usable = buffer.usable()
    assert len(buffer.items) <= 32
    assert all(buffer.of(sender) <= 8 for sender in "abcdef")
    assert len({key(item.rollout) for item in usable}) == len(usable)
    assert {key(item.rollout) for item in usable} == {key(item.rollout) for item in buffer.items}
    assert all((item.sender, item.round) in {one[:2] for one in publications} for item in buffer.items)


@given(FEW, FEW)
def test_one_senders_publications_may_come_in_any_order(first: list[Rollout], second: list[Rollout]) -> None:
    one = add(add(Buffer(capacity=400), "a", 1, first), "a", 2, second)
    other = add(add(Buffer(capacity=400), "a", 2, second), "a", 1, first)
    assert set(one.items) == set(other.items)


def test_what_is_old_goes() -> None:
    buffer = add(add(Buffer(), "a", 3, [answer(1)]), "a", 4, [answer(2)])
    assert fresh(buffer, 3 + ROUNDS_KEPT) == buffer
    assert fresh(buffer, 4 + ROUNDS_KEPT).items == (Received("a", 4, answer(2)),)
    assert fresh(buffer, 5 + ROUNDS_KEPT).items == ()


def test_what_comes_again_is_of_its_newest_round() -> None:
    buffer = add(add(Buffer(), "a", 4, [answer(1)]), "a", 3, [answer(1), answer(2)])
    assert set(buffer.items) == {Received("a", 4, answer(1)), Received("a", 3, answer(2))}
