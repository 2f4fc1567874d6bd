"""docs/protocol.md promises bytes; another implementation will believe it."""

import re
from pathlib import Path

import pytest
import torch

from gossip import wire
from gossip.adapter import AdapterSpec, AdapterState
from gossip.codecs import CODECS
from gossip.messages import Message, Parcel, Ping, Pull, Refusal

DOCUMENT = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text()
EXAMPLES = {
    name: bytes.fromhex(body) for name, body in re.findall(r"```bytes (\w+)\n(.*?)```", DOCUMENT, flags=re.DOTALL)
}
TWO_VALUES = AdapterState(AdapterSpec((("w", (2,)),)), torch.tensor([1.0, -2.0]))


def payload(codec: str) -> bytes:
    return CODECS[codec].encode(TWO_VALUES, ())[0]


@pytest.mark.parametrize(
    ("name", "message"),
    [("ping", Ping(3)), ("refusal", Refusal("nothing")), ("pull", Pull(bytes(range(16)), 3, -1, 2.5))],
)
def test_frames_are_byte_exact(name: str, message: Message) -> None:
    assert wire.framed(message) == EXAMPLES[name]
    assert wire.decode(EXAMPLES[name][wire.LENGTH_BYTES :]) == message


def test_the_offer_and_its_payload_are_byte_exact() -> None:
    parcel = Parcel(3, 8, "float32", payload("float32"))
    assert wire.framed(parcel.offer()) + parcel.payload == EXAMPLES["offer"]


@pytest.mark.parametrize("codec", ["bfloat16", "int8"])
def test_payloads_are_byte_exact(codec: str) -> None:
    assert payload(codec) == EXAMPLES[codec]


def test_every_type_field_codec_and_limit_is_documented() -> None:
    for name, (_, fields) in wire.SCHEMA.items():
        (row,) = re.findall(rf"^\| `{name}` \|(.*)$", DOCUMENT, flags=re.MULTILINE)
        for field in fields:
            assert f"`{field}`" in row, (name, field)
    for codec in CODECS:
        assert f"| `{codec}` |" in DOCUMENT
    for limit in (wire.FRAME_BYTES_MAX, wire.TEXT_BYTES_MAX):
        assert f"{limit:,}" in DOCUMENT
