"""Laws that every codec of the catalogue keeps, whatever it is."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from gossip.adapter import AdapterSpec, AdapterState
from gossip.codecs import CODECS, INT8_BLOCK
from gossip.errors import RemoteError

SIZES = (1, 7, INT8_BLOCK - 1, INT8_BLOCK, INT8_BLOCK + 1, 5000)


def adapter(size: int, seed: int = 0, scale: float = 1.0) -> AdapterState:
    generator = torch.Generator().manual_seed(seed)
    return AdapterState(AdapterSpec((("w", (size,)),)), scale * torch.randn(size, generator=generator))


def round_trip(name: str, state: AdapterState) -> AdapterState:
    codec = CODECS[name]
    payload, _ = codec.encode(state, codec.init(state.spec))
    return codec.decode(payload, state.spec)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", CODECS)
def test_error_is_within_the_declared_bound(name: str, size: int) -> None:
    for scale in (1e-6, 1.0, 1e6):
        state = adapter(size, scale=scale)
        error = (round_trip(name, state).flat - state.flat).abs().max()
        assert error <= CODECS[name].relative_error * state.flat.abs().max() * (1 + 1e-6)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", CODECS)
def test_payload_size_is_known_before_the_first_byte(name: str, size: int) -> None:
    codec = CODECS[name]
    payload, _ = codec.encode(adapter(size), codec.init(adapter(size).spec))
    assert len(payload) == codec.payload_bytes(size)


@pytest.mark.parametrize("name", CODECS)
def test_zero_stays_zero(name: str) -> None:
    state = AdapterState(AdapterSpec((("w", (1000,)),)), torch.zeros(1000))
    assert not round_trip(name, state).flat.any()


@pytest.mark.parametrize("name", CODECS)
def test_encoding_twice_gives_equal_bytes(name: str) -> None:
    codec, state = CODECS[name], adapter(1000)
    assert codec.encode(state, codec.init(state.spec))[0] == codec.encode(state, codec.init(state.spec))[0]


@pytest.mark.parametrize("change", [-1, 1, 1000])
@pytest.mark.parametrize("name", CODECS)
def test_a_wrong_length_is_the_sender_s_fault(name: str, change: int) -> None:
    codec, state = CODECS[name], adapter(1000)
    payload, _ = codec.encode(state, codec.init(state.spec))
    wrong = payload[:change] if change < 0 else payload + bytes(change)
    with pytest.raises(RemoteError, match="shape"):
        codec.decode(wrong, state.spec)


@pytest.mark.parametrize("name", CODECS)
@given(data=st.data())
@settings(max_examples=50, deadline=None)
def test_any_bytes_of_the_right_length_decode_to_a_vector(name: str, data: st.DataObject) -> None:
    codec = CODECS[name]
    size = data.draw(st.integers(1, 600))
    payload = data.draw(st.binary(min_size=codec.payload_bytes(size), max_size=codec.payload_bytes(size)))
    decoded = codec.decode(payload, AdapterSpec((("w", (size,)),)))
    assert decoded.flat.shape == (size,)
    assert decoded.flat.dtype == torch.float32


@pytest.mark.parametrize("name", CODECS)
def test_what_is_decoded_shares_no_memory_with_the_payload(name: str) -> None:
    codec, state = CODECS[name], adapter(300)
    payload = bytearray(codec.encode(state, codec.init(state.spec))[0])
    before = bytes(payload)
    codec.decode(payload, state.spec).flat.fill_(7.0)
    assert payload == before
