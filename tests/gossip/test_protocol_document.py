"""docs/protocol.md promises bytes; another implementation will believe it."""

import dataclasses
import re
from pathlib import Path
from typing import get_args

import pytest
import torch

from gossip import fixed_point, rollouts, wire
from gossip.adapter import AdapterSpec
from gossip.claims import claim_in, statement
from gossip.manifest import RunManifest
from gossip.masked_sums import Sum, keys_digest
from gossip.messages import Claim, Kind, MaskKey, Message, Ping, Pull, Reason, Refusal
from gossip.methods.catalogue import find
from gossip.methods.codecs import CODECS, Codec
from gossip.methods.feedback import FEEDBACKS
from gossip.published import PublishedAdapter
from gossip.rollouts import ANSWER_BYTES_MAX, CAPACITY, ROLLOUTS_BYTES_MAX, TASK_BYTES_MAX, Rollout
from peer.mask_keys import MaskSecrets
from peer.network.identity import peer_id
from peer.signing import Signer, is_signed

DOCUMENT = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text()
EXAMPLES = {
    name: bytes.fromhex(body)
    for name, body in re.findall(r"```bytes (\w+)\n(.*?)```", DOCUMENT, flags=re.DOTALL)
}
TWO_VALUES = torch.tensor([1.0, -2.0])
EIGHT_VALUES = torch.arange(1.0, 9.0)


def codec_of(name: str) -> Codec:
    return find("codec", name, CODECS)


def vector_of(size: int) -> AdapterSpec:
    return AdapterSpec((("w", (size,)),))


def two_of(size: int) -> torch.Tensor:
    values = torch.zeros(size)
    values[5], values[14] = TWO_VALUES
    return values


@pytest.mark.parametrize(
    ("name", "message"),
    [("ping", Ping(3)), ("refusal", Refusal("nothing")), ("pull", Pull(bytes(range(16)), 3, -1, 2.5))],
)
def test_frames_are_byte_exact(name: str, message: Message) -> None:
    assert wire.framed(message) == EXAMPLES[name]
    assert wire.decode(EXAMPLES[name][wire.LENGTH_BYTES :]) == message


def test_the_offer_and_its_payload_are_byte_exact() -> None:
    published = PublishedAdapter(3, 8, "float32", codec_of("float32").encode(TWO_VALUES, vector_of(2), 3))
    key, run = bytes(range(32)), bytes(range(16))
    offer = Signer(key, run, lambda: 5).signed(published.offer())
    assert wire.framed(offer) + published.payload == EXAMPLES["offer"]
    claim = claim_in(peer_id(key), offer)
    assert statement(run, claim) == EXAMPLES["statement"]
    assert is_signed(run, claim)
    assert peer_id(key) in DOCUMENT


def test_rollouts_are_byte_exact() -> None:
    two = (Rollout("sort", 1, 7, "abcd"), Rollout("reverse", 0, 2**32, "ä\n"))
    assert rollouts.encode(two) == EXAMPLES["rollouts"]
    assert rollouts.decode(EXAMPLES["rollouts"]) == two
    for limit in (ROLLOUTS_BYTES_MAX, TASK_BYTES_MAX, ANSWER_BYTES_MAX, CAPACITY):
        assert f"{limit:,}" in DOCUMENT.partition("## Rollouts")[2]


def test_every_field_of_the_manifest_is_documented() -> None:
    section = DOCUMENT.partition("## Hello")[2].partition("## Pull")[0]
    documented = re.findall(r"^\| `(\w+)` \|", section, flags=re.MULTILINE)
    assert documented == [field.name for field in dataclasses.fields(RunManifest)]


def test_every_kind_reason_and_claim_is_documented() -> None:
    fields = [field.name for field in dataclasses.fields(Claim)]
    for word in (*get_args(Kind), *get_args(Reason), *fields):
        assert f"`{word}`" in DOCUMENT, word


@pytest.mark.parametrize(
    ("example", "codec", "values", "round"),
    [
        ("bfloat16", "bfloat16", TWO_VALUES, 0),
        ("int8", "int8", TWO_VALUES, 0),
        ("int4", "int4", TWO_VALUES, 0),
        ("sign", "sign", TWO_VALUES, 0),
        ("topk_bitmap", "topk:0.125", two_of(16), 0),
        ("topk", "topk:0.03", two_of(64), 0),
        ("chunked", "chunked:512:2", two_of(16), 0),
        ("randomk_round_0", "randomk:0.25", EIGHT_VALUES, 0),
        ("randomk_round_1", "randomk:0.25", EIGHT_VALUES, 1),
    ],
)
def test_payloads_are_byte_exact(example: str, codec: str, values: torch.Tensor, round: int) -> None:
    assert codec_of(codec).encode(values, vector_of(len(values)), round) == EXAMPLES[example]


def test_the_low_rank_payload_is_read_as_documented() -> None:
    # Read, not written: which of the equally good factors are found depends on the linear algebra library.
    layout = AdapterSpec((("m", (3, 4)), ("v", (2,))))
    decoded = codec_of("lowrank:1").decode(EXAMPLES["lowrank"], layout, 0)
    assert decoded.tolist() == [2.0] * 4 + [0.0] * 8 + [1.0, -2.0]


def test_every_type_field_codec_and_limit_is_documented() -> None:
    for name, (_, fields) in wire.SCHEMA.items():
        (row,) = re.findall(rf"^\| `{name}` \|(.*)$", DOCUMENT, flags=re.MULTILINE)
        for field in fields:
            assert f"`{field}`" in row, (name, field)
    for name in (*CODECS, *FEEDBACKS):
        assert re.search(rf"^\| `{name}[`:]", DOCUMENT, flags=re.MULTILINE)
    for limit in (wire.FRAME_BYTES_MAX, wire.TEXT_BYTES_MAX):
        assert f"{limit:,}" in DOCUMENT


def test_sums_under_masks_are_byte_exact() -> None:
    peers = (peer_id(bytes(range(32))), peer_id(bytes([2]) * 32))
    keys = [MaskKey(peer, bytes([number]) * 32, bytes(64)) for number, peer in enumerate(peers, 1)]
    assert all(peer in DOCUMENT for peer in peers)
    assert keys_digest(keys) == EXAMPLES["keys"]
    which = Sum(bytes(range(16)), bytes([10]) * 32, 3, "round", peers[0], EXAMPLES["keys"])
    assert which.statement == EXAMPLES["sum"]
    words = fixed_point.to_words(TWO_VALUES.numpy().tobytes(), 0.25)
    MaskSecrets(bytes(range(32)), b"", b"").add_mask(bytes(range(32)), words, 1)
    assert fixed_point.to_bytes(words) == EXAMPLES["masked"]


def test_every_message_is_documented() -> None:
    for name, (_, fields) in wire.SCHEMA.items():
        (row,) = re.findall(rf"^\| `{name}` \|.*$", DOCUMENT, flags=re.MULTILINE)
        for field in (*fields, *wire.OPTIONAL.get(name, ())):
            assert f"`{field}`" in row, (name, field)
